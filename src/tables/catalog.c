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

/* A column as columns.h describes it. */
typedef struct Column
{
	const char *name;
	Oid			type;
	bool		not_null;
	const char *granted;
} Column;

/* A table or composite type of the extension. */
typedef struct RelationInfo
{
	const char *schema;
	const char *name;
	int			natts;
	const Column *columns;
} RelationInfo;

#define NOT_NULL true
#define NULLABLE false
#define COLUMN_ROW(relation, name, type, null, granted) {#name, type, null, granted},
#define COLUMN_ROWS(NAME, schema, name) static const Column name##_columns[] = {NAME##_COLUMNS(COLUMN_ROW)};
#define RELATION_ROW(NAME, schema, name) {#schema, #name, Natts_##name, name##_columns},

TABLE_RELATIONS(COLUMN_ROWS)
ROW_RELATIONS(COLUMN_ROWS)

static const RelationInfo table_info[] = {TABLE_RELATIONS(RELATION_ROW)};
static const RelationInfo row_info[] = {ROW_RELATIONS(RELATION_ROW)};

static Oid	tables[APITOKEN_TABLES];
static bool tables_valid = false;
static bool columns_checked[APITOKEN_TABLES];
static uint64 invalidations = 0;	/* seen so far */

/* Advances whenever one of our tables may have changed. */
uint64		apitoken_table_changes = 0;

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
 * The owner of a table can change its columns.  Reading a value as another type,
 * or a null where none is expected, would crash the server.
 */
static void
check_columns(ApitokenTable table, Relation relation)
{
	const RelationInfo *info = &table_info[table];
	TupleDesc	descriptor = RelationGetDescr(relation);
	bool		expected = descriptor->natts >= info->natts;

	for (int i = 0; i < info->natts && expected; i++)
	{
		Form_pg_attribute column = TupleDescAttr(descriptor, i);

		expected = column->atttypid == info->columns[i].type &&
			(column->attnotnull || !info->columns[i].not_null);
	}
	if (!expected)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s.%s does not have the expected columns", info->schema, info->name),
				 errhint("Run ALTER EXTENSION apitoken UPDATE, and do not alter the columns of the extension's tables.")));
	columns_checked[table] = true;
}

const char *
apitoken_table_schema(ApitokenTable table)
{
	return table_info[table].schema;
}

const char *
apitoken_table_name(ApitokenTable table)
{
	return table_info[table].name;
}

/* Do capabilities grant this privilege (an ACL letter) on this column? */
bool
apitoken_column_granted(ApitokenTable table, AttrNumber attribute, char privilege)
{
	return strchr(table_info[table].columns[attribute - 1].granted, privilege) != NULL;
}

/* The names of all columns on which they do, as a list of String nodes. */
List *
apitoken_columns_granted(ApitokenTable table, char privilege)
{
	List	   *names = NIL;

	for (AttrNumber i = 1; i <= table_info[table].natts; i++)
	{
		if (apitoken_column_granted(table, i, privilege))
			names = lappend(names, makeString(pstrdup(table_info[table].columns[i - 1].name)));
	}
	return names;
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
	Oid			extension;

	if (tables_valid)
		return true;
	extension = get_extension_oid("apitoken", true);
	if (!OidIsValid(extension))
		return false;
	for (int i = 0; i < APITOKEN_TABLES; i++)
	{
		Oid			schema = get_namespace_oid(table_info[i].schema, true);

		if (!OidIsValid(schema))
			return false;
		found[i] = get_relname_relid(table_info[i].name, schema);
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
				 errhint("Run CREATE EXTENSION apitoken.")));
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
			 errmsg("table %s.%s does not exist", table_info[table].schema, table_info[table].name)));
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
				 errmsg("extension apitoken has version %s, but its library has version %s",
						version == NULL ? "none" : version, APITOKEN_VERSION),
				 errhint("Run ALTER EXTENSION apitoken UPDATE.  If the library is older, restart the server.")));
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
				 errmsg("function \"%s\" does not have the expected result type",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("Run ALTER EXTENSION apitoken UPDATE, or install the library of the extension's version.")));
	return BlessTupleDesc(descriptor);
}

static Oid
row_type(ApitokenRow row)
{
	if (!OidIsValid(row_types[row]))
		row_types[row] = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
										 CStringGetDatum(row_info[row].name),
										 ObjectIdGetDatum(get_namespace_oid(row_info[row].schema, false)));
	return row_types[row];
}

/*
 * A row of a composite type of the extension, from as many values as columns.h
 * gives it columns.  Behind them there may be some that were added and dropped.
 */
Datum
apitoken_form_row(ApitokenRow row, const Datum *values, const bool *nulls)
{
	const RelationInfo *info = &row_info[row];
	TupleDesc	descriptor = lookup_rowtype_tupdesc(row_type(row), -1);
	bool		expected = descriptor->natts >= info->natts;
	Datum	   *row_values = palloc0(descriptor->natts * sizeof(Datum));
	bool	   *row_nulls = palloc(descriptor->natts * sizeof(bool));
	HeapTuple	tuple;

	for (int i = 0; i < descriptor->natts && expected; i++)
	{
		bool		known = i < info->natts;

		/* a dropped column has no type */
		expected = TupleDescAttr(descriptor, i)->atttypid == (known ? info->columns[i].type : InvalidOid);
		row_values[i] = known ? values[i] : (Datum) 0;
		row_nulls[i] = known ? nulls[i] : true;
	}
	if (!expected)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("type %s.%s does not have the expected columns", info->schema, info->name),
				 errhint("Run ALTER EXTENSION apitoken UPDATE, or install the library of the extension's version.")));
	tuple = heap_form_tuple(descriptor, row_values, row_nulls);
	ReleaseTupleDesc(descriptor);
	return HeapTupleGetDatum(tuple);
}
