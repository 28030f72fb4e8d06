/*
 * catalog.c
 *		Look up the extension's tables and types, and their owner.
 *
 * OIDs are cached for the session.  A relcache callback marks the cache invalid.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "tables/tables.h"

/* A column, as described in columns.h. */
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
static uint64 invalidations = 0;	/* number of relcache invalidations so far */

/* A part of the extension, as objsubid of a lock.  SQL commands lock only part 0, which is the whole. */
#define USAGE_PART 1

/*
 * These are incremented whenever one of our tables may have changed: its definition,
 * and for the directory, its rows, too (see changes.c).
 */
uint64		apitoken_table_changes = 0;
uint64		apitoken_directory_changes = 0;

static Oid	row_types[APITOKEN_ROWS];

/* Relcache callback.  InvalidOid means that any relation may have changed. */
static void
relation_changed(Datum arg, Oid relid)
{
	invalidations++;
	if (!OidIsValid(relid))
		tables_valid = false;
	for (int i = 0; i < APITOKEN_TABLES && tables_valid; i++)
	{
		if (tables[i] != relid)
			continue;
		if (i == APITOKEN_DIRECTORY_CHANGES)
			apitoken_directory_changes++;
		else
			tables_valid = false;
	}
	if (!tables_valid)
	{
		apitoken_table_changes++;
		apitoken_directory_changes++;
	}
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
 * Check that a table has the expected columns, because its owner can alter them.
 * Reading a value as the wrong type, or an unexpected null, would crash the
 * server.
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
		ereport_server(
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" does not have the expected columns", info->schema, info->name),
				 errhint("Run ALTER EXTENSION apitoken UPDATE.  The columns of the extension's tables must not be altered.")));
	columns_checked[table] = true;
}

const char *
apitoken_column_name(ApitokenTable table, AttrNumber attribute)
{
	return table_info[table].columns[attribute - 1].name;
}

Oid
apitoken_column_type(ApitokenTable table, AttrNumber attribute)
{
	return table_info[table].columns[attribute - 1].type;
}

/* Does any capability grant this privilege, a letter as in ACLs, on this column? */
bool
apitoken_column_granted(ApitokenTable table, AttrNumber attribute, char privilege)
{
	return strchr(table_info[table].columns[attribute - 1].granted, privilege) != NULL;
}

/* Returns the names of the columns with such a grant, as a list of String nodes. */
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
 * Is the extension installed in this database?  With a preload, this is called in
 * every database.  It checks that the tables belong to the extension, because
 * anybody may have created tables of the same names.  It raises an error if the
 * extension's version is not the library's.  A script that updates the extension
 * changes token_records, so that open sessions look again.
 *
 * The lookups may raise an error (for example on a cancel while waiting for a
 * lock) and may process invalidations.  Therefore the cache is filled after all
 * lookups, and is valid only if no invalidation arrived during them.
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
	apitoken_require_version(extension);
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
	tables_valid = before == invalidations && !apitoken_in_script(extension);
	return true;
}

static void
require_installed(void)
{
	if (!apitoken_installed())
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("extension \"apitoken\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION apitoken.")));
}

/*
 * Open a table of the extension, with AccessShareLock.  Its columns are checked
 * here rather than in apitoken_installed(), so that nothing waits for a lock on a
 * table that it does not read.
 */
Relation
apitoken_open_table(ApitokenTable table)
{
	/* Try twice, in case the extension was dropped and created again. */
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
			 errmsg("table \"%s.%s\" does not exist", table_info[table].schema, table_info[table].name)));
	return NULL;				/* keep the compiler quiet */
}

/* Returns the OID of a table whose columns have been checked. */
Oid
apitoken_table(ApitokenTable table)
{
	require_installed();
	if (!columns_checked[table])
		relation_close(apitoken_open_table(table), AccessShareLock);
	return tables[table];
}

/* Lock a part of the extension until the end of the transaction.  Returns false if it must not wait, but would. */
static bool
lock_part(Oid extension, uint16 part, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, part);
	if (LockAcquire(&tag, mode, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return true;
}

/* The primary key of a table that is locked, or InvalidOid. */
static Oid
primary_key(Oid table)
{
	Relation	relation = try_relation_open(table, NoLock);
	Oid			key = InvalidOid;

	if (relation != NULL)
	{
		key = compat_primary_key(relation);
		relation_close(relation, NoLock);
	}
	return key;
}

/*
 * Lock a table and its primary key without waiting.  Returns false if another
 * transaction has a conflicting lock on one of them.
 */
bool
apitoken_try_lock_table(ApitokenTable table, LOCKMODE mode)
{
	Oid			key;

	require_installed();
	if (!ConditionalLockRelationOid(tables[table], mode))
		return false;
	key = primary_key(tables[table]);
	if (OidIsValid(key) && ConditionalLockRelationOid(key, AccessShareLock))
		return true;
	UnlockRelationOid(tables[table], mode);
	return false;
}

/* Release what apitoken_try_lock_table() has locked. */
void
apitoken_unlock_table(ApitokenTable table, LOCKMODE mode)
{
	UnlockRelationOid(primary_key(tables[table]), AccessShareLock);
	UnlockRelationOid(tables[table], mode);
}

/*
 * Make other callers of this function wait until the end of the transaction.
 * Returns false if the extension is not installed, and raises an error if its
 * version is not the library's.
 *
 * The callers wait for a part of the extension that does not exist, and that no
 * SQL command can lock therefore.  Nobody waits for the extension itself, because
 * everybody can lock it: ALTER FUNCTION ... DEPENDS ON EXTENSION needs no privilege
 * on it.  If it is not locked, DROP EXTENSION waits for this transaction before it
 * locks the first table.  If it is, it may be about to be dropped.  Then the tables
 * are locked at once or not at all, so that there is no deadlock.
 */
bool
apitoken_lock_usage(void)
{
	static const char *const used[][2] = {
		{"apitoken_internal", "token_records"}, {"apitoken", "token_usage"}, {"apitoken_internal", "token_days"},
		{"apitoken_internal", "personal_token_use"}, {"apitoken_internal", "token_networks"},
		{"apitoken_internal", "usage_senders"}, {"apitoken_internal", "foreign_digests"}
	};
	Oid			extension = get_extension_oid("apitoken", true);
	bool		kept;

	if (!OidIsValid(extension))
		return false;
	lock_part(extension, USAGE_PART, ShareUpdateExclusiveLock, true);
	kept = lock_part(extension, 0, AccessShareLock, false);
	if (get_extension_oid("apitoken", true) != extension)
		return false;
	apitoken_require_version(extension);
	if (!apitoken_installed())
		return false;
	for (int i = 0; i < lengthof(used) && !kept; i++)
	{
		Oid			table = get_relname_relid(used[i][1], get_namespace_oid(used[i][0], false));

		/* the same message as that of a lock_timeout, so that the log has it once */
		if (OidIsValid(table) && !ConditionalLockRelationOid(table, RowExclusiveLock))
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("canceling statement due to lock timeout")));
	}
	return true;
}

/*
 * Lock the events of a user as actor until the end of the transaction.  A
 * session that writes one takes ShareLock, and one that erases them ExclusiveLock.  The lock is on
 * an object that does not exist, as in apitoken_lock_usage().  Two users may have
 * the same one.  Returns false if it must not wait, but would.
 */
bool
apitoken_lock_actor(const char *user_id, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, apitoken_table(APITOKEN_USERS),
					   hash_bytes((const unsigned char *) user_id, strlen(user_id)), 0);
	if (LockAcquire(&tag, mode, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return true;
}

/* Returns the owner of the tables, as which write.c runs its statements. */
Oid
apitoken_owner(void)
{
	Relation	relation = apitoken_open_table(APITOKEN_TOKEN_RECORDS);
	Oid			owner = relation->rd_rel->relowner;

	relation_close(relation, AccessShareLock);
	return owner;
}

/* Does the current user have the privileges of the tables' owner? */
bool
apitoken_is_owner(void)
{
	return has_privs_of_role(GetUserId(), apitoken_owner());
}

/* Does the current user bypass row-level security, as superuser, owner or with BYPASSRLS? */
bool
apitoken_bypasses_rls(void)
{
	/* Open the table, because check_enable_rls() returns RLS_NONE for a table that does not exist. */
	Relation	relation = apitoken_open_table(APITOKEN_TOKEN_RECORDS);
	bool		bypasses = check_enable_rls(RelationGetRelid(relation), InvalidOid, true) != RLS_ENABLED;

	relation_close(relation, AccessShareLock);
	return bypasses;
}

/* The privileges of this mode that a list of privileges in the catalog gives to the current user. */
static AclMode
granted_in(int cache, HeapTuple tuple, AttrNumber attribute, Oid owner, AclMode mode)
{
	bool		isnull;
	Datum		acl = SysCacheGetAttr(cache, tuple, attribute, &isnull);

	return isnull ? 0 : aclmask(DatumGetAclP(acl), GetUserId(), owner, mode, ACLMASK_ANY);
}

/*
 * Was this privilege on a relation, or on one of its columns, granted to the
 * current user or to a role whose privileges it has?  The server's own check also
 * counts what members of pg_write_all_data have on all tables.
 */
bool
apitoken_was_granted(Oid relation, AclMode mode)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Form_pg_class class;
	Oid			owner;
	int			columns;
	bool		granted;

	if (!HeapTupleIsValid(tuple))
		return false;
	class = (Form_pg_class) GETSTRUCT(tuple);
	owner = class->relowner;
	columns = class->relnatts;
	granted = has_privs_of_role(GetUserId(), owner) ||
		granted_in(RELOID, tuple, Anum_pg_class_relacl, owner, mode) != 0;
	ReleaseSysCache(tuple);
	for (AttrNumber i = 1; i <= columns && !granted; i++)
	{
		tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relation), Int16GetDatum(i));
		if (!HeapTupleIsValid(tuple))
			continue;
		granted = granted_in(ATTNUM, tuple, Anum_pg_attribute_attacl, owner, mode) != 0;
		ReleaseSysCache(tuple);
	}
	return granted;
}

/* Returns the row type of a function's result, which must have this number of columns. */
TupleDesc
apitoken_result_type(FunctionCallInfo fcinfo, int columns)
{
	TupleDesc	descriptor;

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE || descriptor->natts != columns)
		ereport_server(
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
 * Form a row of a composite type of the extension.  The arrays have one element
 * for each column in columns.h.  The type may have further columns that were
 * added and dropped again.
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

		/* The type of a dropped column is InvalidOid. */
		expected = TupleDescAttr(descriptor, i)->atttypid == (known ? info->columns[i].type : InvalidOid);
		row_values[i] = known ? values[i] : (Datum) 0;
		row_nulls[i] = known ? nulls[i] : true;
	}
	if (!expected)
		ereport_server(
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("type \"%s.%s\" does not have the expected columns", info->schema, info->name),
				 errhint("Run ALTER EXTENSION apitoken UPDATE, or install the library of the extension's version.")));
	tuple = heap_form_tuple(descriptor, row_values, row_nulls);
	ReleaseTupleDesc(descriptor);
	return HeapTupleGetDatum(tuple);
}
