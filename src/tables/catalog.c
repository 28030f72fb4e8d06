/*
 * catalog.c
 *		Where the extension's objects are, and who owns them.
 *
 * OIDs are cached for the session and dropped by the relcache callback.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "tables/tables.h"

static const char *const table_names[APITOKEN_TABLES] = {
	"organizations",
	"users",
	"roles",
	"memberships",
	"token_records",
	"token_usage",
	"events",
};

static Oid	tables[APITOKEN_TABLES];
static bool tables_valid = false;
static bool columns_checked[APITOKEN_TABLES];
static uint64 invalidations = 0;	/* seen so far */

/* Advances whenever one of our tables may have changed. */
uint64		apitoken_table_changes = 0;

static const char *const row_names[APITOKEN_ROWS] = {
	"verification",
	"issued_token",
};

static Oid	row_types[APITOKEN_ROWS];

/* Any of our tables, or everything (InvalidOid), may have changed. */
static void
relation_changed(Datum arg, Oid relid)
{
	invalidations++;
	if (!OidIsValid(relid))
		tables_valid = false;
	for (int i = 0; i < APITOKEN_TABLES && tables_valid; i++)
	{
		if (tables[i] == relid)
			tables_valid = false;
	}
	if (!tables_valid)
		apitoken_table_changes++;
}

static void
type_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	memset(row_types, 0, sizeof(row_types));
}

void
apitoken_catalog_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, type_changed, (Datum) 0);
}

/*
 * The columns that are read here, in order of their numbers: the owner of a
 * table can change them, and reading a value of another type, or a null where
 * there is none, would crash the server.
 */
typedef struct
{
	Oid			type;
	bool		not_null;
} Column;

#define TABLE_COLUMNS_MAX Anum_token_records_revoke_reason

static const Column columns[APITOKEN_TABLES][TABLE_COLUMNS_MAX] = {
	[APITOKEN_ORGANIZATIONS] = {{TEXTOID, true}, {TEXTOID, false}, {TIMESTAMPTZOID, false},
	{TIMESTAMPTZOID, true}, {INTERVALOID, false}, {TIMESTAMPTZOID, false}},
	[APITOKEN_USERS] = {{TEXTOID, true}, {TEXTOID, false}, {TEXTOID, false}, {TEXTARRAYOID, true},
	{TEXTOID, false}, {TIMESTAMPTZOID, false}},
	[APITOKEN_ROLES] = {{TEXTOID, true}, {TEXTOID, false}, {TEXTARRAYOID, true}, {NAMEOID, false}},
	[APITOKEN_MEMBERSHIPS] = {{TEXTOID, true}, {TEXTOID, true}, {TEXTOID, true}},
	[APITOKEN_TOKEN_RECORDS] = {
		{UUIDOID, true},		/* id */
		{TIMESTAMPTZOID, true}, {TIMESTAMPTZOID, true}, {TIMESTAMPTZOID, false},
		{TIMESTAMPTZOID, false}, {TIMESTAMPTZOID, false}, {TIMESTAMPTZOID, false},
		{INT4OID, false},		/* rate_limit_per_minute */
		{INT2OID, true}, {INT2OID, false}, {BYTEAOID, true}, {BYTEAOID, false},
		{TEXTOID, false}, {TEXTOID, false}, {TEXTOID, true}, {TEXTOID, true}, {TEXTOID, false},
		{TEXTARRAYOID, false},	/* permissions */
		{CIDRARRAYOID, false}, {JSONBOID, true}, {TEXTOID, true}, {TEXTOID, false},
		{TEXTOID, false}, {TEXTOID, false}, {TEXTOID, false}, {TEXTOID, false},
	},
	[APITOKEN_TOKEN_USAGE] = {{UUIDOID, true}, {TIMESTAMPTZOID, false}, {INT8OID, true}, {INT8OID, true}, {INETOID, false}},
	[APITOKEN_EVENTS] = {{UUIDOID, true}, {TIMESTAMPTZOID, true}, {TEXTOID, true}, {UUIDOID, true},
	{TEXTOID, false}, {TEXTOID, false}, {TEXTOID, false}, {UUIDOID, false}, {NAMEOID, true}, {INETOID, false}, {JSONBOID, true}},
};

static void
check_columns(ApitokenTable table, Relation relation)
{
	for (int i = 0; i < TABLE_COLUMNS_MAX && OidIsValid(columns[table][i].type); i++)
	{
		TupleDesc	descriptor = RelationGetDescr(relation);

		if (i < descriptor->natts &&
			TupleDescAttr(descriptor, i)->atttypid == columns[table][i].type &&
			(TupleDescAttr(descriptor, i)->attnotnull || !columns[table][i].not_null))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table apitoken.%s has not the columns that this library knows", table_names[table]),
				 errhint("ALTER EXTENSION apitoken UPDATE; and do not alter the extension's columns.")));
	}
	columns_checked[table] = true;
}

/*
 * Is the extension there, in this database, now?  With a preload this is asked
 * in every database, and a schema and tables of these names may be anybody's.
 *
 * A look-up may raise (a cancel, while it waits for a lock) and may itself
 * bring news of changes: the cache counts only once all of it is there and
 * nothing came in between.
 */
bool
apitoken_installed(void)
{
	uint64		before = invalidations;
	Oid			found[APITOKEN_TABLES];
	Oid			schema;
	Oid			extension;

	if (tables_valid)
		return true;
	extension = get_extension_oid("apitoken", true);
	schema = get_namespace_oid("apitoken", true);
	if (!OidIsValid(extension) || !OidIsValid(schema))
		return false;
	for (int i = 0; i < APITOKEN_TABLES; i++)
	{
		found[i] = get_relname_relid(table_names[i], schema);
		if (!OidIsValid(found[i]) ||
			getExtensionOfObject(RelationRelationId, found[i]) != extension)
			return false;
	}
	memcpy(tables, found, sizeof(tables));
	memset(columns_checked, false, sizeof(columns_checked));
	tables_valid = before == invalidations;
	return true;
}

static void
require_installed(void)
{
	if (!apitoken_installed())
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("extension apitoken is not installed in this database"),
				 errhint("CREATE EXTENSION apitoken CASCADE;")));
}

/*
 * A table of the extension, with AccessShareLock.  Its columns are checked
 * here, and not when the extension is looked for: nobody is to wait for the
 * lock on a table that they do not read.
 */
Relation
apitoken_open_table(ApitokenTable table)
{
	/* A second try, in case the extension was dropped and made anew. */
	for (int attempt = 0; attempt < 2; attempt++)
	{
		Relation	relation;

		require_installed();
		relation = try_relation_open(tables[table], AccessShareLock);
		if (relation != NULL)
		{
			if (!tables_valid || !columns_checked[table])
				check_columns(table, relation);
			return relation;
		}
		tables_valid = false;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("table apitoken.%s does not exist", table_names[table])));
	return NULL;				/* keep the compiler quiet */
}

/* Its OID, for who has it open: with columns as they should be. */
Oid
apitoken_table(ApitokenTable table)
{
	require_installed();
	if (!columns_checked[table])
		relation_close(apitoken_open_table(table), AccessShareLock);
	return tables[table];
}

/* The version in which the extension is installed. */
static char *
installed_version(Oid extension)
{
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(relation, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(relation), &isnull);

		if (!isnull)
			version = TextDatumGetCString(datum);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return version;
}

/*
 * Keep the extension from being dropped, and another transaction that asks the
 * same away, until the transaction ends.  False: it is not installed.
 */
bool
apitoken_lock_extension(void)
{
	Oid			extension = get_extension_oid("apitoken", true);
	char	   *version;

	if (!OidIsValid(extension))
		return false;
	LockDatabaseObject(ExtensionRelationId, extension, 0, ShareUpdateExclusiveLock);
	if (get_extension_oid("apitoken", true) != extension)
		return false;
	version = installed_version(extension);
	if (version == NULL || strcmp(version, APITOKEN_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension apitoken has version %s, and its library %s",
						version == NULL ? "none" : version, APITOKEN_VERSION),
				 errhint("ALTER EXTENSION apitoken UPDATE; and restart the server if the library is the older one.")));
	return apitoken_installed();
}

/* The role that owns the tables, and as which write.c acts. */
Oid
apitoken_owner(void)
{
	Relation	relation = apitoken_open_table(APITOKEN_TOKEN_RECORDS);
	Oid			owner = relation->rd_rel->relowner;

	relation_close(relation, AccessShareLock);
	return owner;
}

/* Is the current user the tables' owner, a member of it, or a superuser? */
bool
apitoken_is_owner(void)
{
	return has_privs_of_role(GetUserId(), apitoken_owner());
}

/* Is the current user above the policies: superuser, owner, BYPASSRLS? */
bool
apitoken_bypasses_rls(void)
{
	/* opened: for a table that is not there the server would say yes */
	Relation	relation = apitoken_open_table(APITOKEN_TOKEN_RECORDS);
	bool		bypasses = check_enable_rls(RelationGetRelid(relation), InvalidOid, true) != RLS_ENABLED;

	relation_close(relation, AccessShareLock);
	return bypasses;
}

/* The row that a function of the extension answers with, of so many columns. */
TupleDesc
apitoken_result_type(FunctionCallInfo fcinfo, int columns)
{
	TupleDesc	descriptor;

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE || descriptor->natts != columns)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function apitoken.%s has not the result that this library knows",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("ALTER EXTENSION apitoken UPDATE; or install the library that belongs to the extension's version.")));
	return BlessTupleDesc(descriptor);
}

static Oid
row_type(ApitokenRow row)
{
	if (!OidIsValid(row_types[row]))
		row_types[row] = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
										 CStringGetDatum(row_names[row]),
										 ObjectIdGetDatum(get_namespace_oid("apitoken", false)));
	return row_types[row];
}

/*
 * A row of a composite type of the extension, given the columns that it has to
 * have.  Behind them there may be some that were added and dropped again.
 */
Datum
apitoken_form_row(ApitokenRow row, int count, const Oid *types,
				  const Datum *values, const bool *nulls)
{
	TupleDesc	descriptor = lookup_rowtype_tupdesc(row_type(row), -1);
	bool		known = descriptor->natts >= count;
	Datum	   *row_values = palloc0(descriptor->natts * sizeof(Datum));
	bool	   *row_nulls = palloc(descriptor->natts * sizeof(bool));
	HeapTuple	tuple;

	for (int i = 0; i < descriptor->natts && known; i++)
	{
		/* a dropped column has no type */
		known = TupleDescAttr(descriptor, i)->atttypid == (i < count ? types[i] : InvalidOid);
		row_values[i] = i < count ? values[i] : (Datum) 0;
		row_nulls[i] = i < count ? nulls[i] : true;
	}
	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("type apitoken.%s has not the columns that this library knows", row_names[row]),
				 errhint("ALTER EXTENSION apitoken UPDATE; or install the library that belongs to the extension's version.")));
	tuple = heap_form_tuple(descriptor, row_values, row_nulls);
	ReleaseTupleDesc(descriptor);
	return HeapTupleGetDatum(tuple);
}
