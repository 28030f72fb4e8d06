/*
 * store.c
 *		The one place that reads the extension's tables directly.
 *
 * What decides about the caller (tokens, owners, roles, memberships) must be
 * read past the caller's own privileges and policies, and as it is now: by
 * primary key, with a registered catalog snapshot, which is the latest
 * committed state whatever the transaction's isolation level, and which may
 * be taken in a parallel plan's leader and on a standby.  A probe takes
 * AccessShareLock and gives it back at once, so that DROP EXTENSION never
 * waits for a verification's transaction.
 *
 * OIDs are cached for the session and dropped by the relcache callback.  The
 * index of a primary key is asked of the table's relcache entry each time,
 * under the table's lock, so REINDEX CONCURRENTLY cannot surprise us.
 *
 * Whoever calls this must have decided that the caller may know the answer.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "apitoken.h"

static const char *const table_names[APITOKEN_TABLES] = {
	"organizations",
	"users",
	"roles",
	"memberships",
	"token_records",
	"token_usage",
	"events",
};

/* Indexes that are not primary keys. */
typedef enum
{
	MEMBERSHIPS_OF_USER,
	LABEL_OF_ORGANIZATION,
	LABEL_OF_USER,
	INDEXES
} NamedIndex;

static const char *const index_names[INDEXES] = {
	"memberships_user_id_idx",
	"token_records_organization_label_key",
	"token_records_user_label_key",
};

static Oid	tables[APITOKEN_TABLES];
static bool tables_valid = false;
static uint64 invalidations = 0;	/* seen so far */
static Oid	act_as_function = InvalidOid;
static Oid	verify_function = InvalidOid;

/* A table being probed, and the row that was found. */
typedef struct Probe
{
	Relation	relation;
	SysScanDesc scan;
	Datum	   *values;
	bool	   *nulls;
} Probe;

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
}

static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	act_as_function = InvalidOid;
	verify_function = InvalidOid;
}

void
apitoken_store_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
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
	[APITOKEN_ORGANIZATIONS] = {{TEXTOID, true}, {TEXTOID, false}, {TIMESTAMPTZOID, false}},
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
	[APITOKEN_TOKEN_USAGE] = {{UUIDOID, true}, {TIMESTAMPTZOID, false}},
	[APITOKEN_EVENTS] = {{UUIDOID, true}},
};

static void
check_columns(ApitokenTable table, Oid relid)
{
	Relation	relation = try_relation_open(relid, AccessShareLock);

	/* dropped this very moment: whoever opens it will see */
	if (relation == NULL)
		return;
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
	relation_close(relation, AccessShareLock);
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
		check_columns(i, found[i]);
	}
	memcpy(tables, found, sizeof(tables));
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

Oid
apitoken_table(ApitokenTable table)
{
	require_installed();
	return tables[table];
}

static Relation
open_table(ApitokenTable table)
{
	/* A second try, in case the extension was dropped and made anew. */
	for (int attempt = 0; attempt < 2; attempt++)
	{
		Relation	relation;

		require_installed();
		relation = try_relation_open(tables[table], AccessShareLock);
		if (relation != NULL)
			return relation;
		tables_valid = false;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("table apitoken.%s does not exist", table_names[table])));
	return NULL;				/* keep the compiler quiet */
}

/* The role that owns the tables, and as which write.c acts. */
Oid
apitoken_owner(void)
{
	Relation	relation = open_table(APITOKEN_TOKEN_RECORDS);
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
	Relation	relation = open_table(APITOKEN_TOKEN_RECORDS);
	bool		bypasses = check_enable_rls(RelationGetRelid(relation), InvalidOid, true) != RLS_ENABLED;

	relation_close(relation, AccessShareLock);
	return bypasses;
}

static bool
role_may(Oid role, Oid *function, const char *name, int nargs, const Oid *args)
{
	if (!OidIsValid(*function))
	{
		Oid			schema = get_namespace_oid("apitoken", true);
		oidvector  *types = buildoidvector(args, nargs);

		*function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
									CStringGetDatum(name),
									PointerGetDatum(types),
									ObjectIdGetDatum(schema));
		pfree(types);
		if (!OidIsValid(*function))
			return false;
	}
	return compat_may_execute(*function, role);
}

/* Does this role hold the capability act? */
bool
apitoken_role_may_act(Oid role)
{
	static const Oid args[] = {TEXTOID};

	return role_may(role, &act_as_function, "act_as", lengthof(args), args);
}

/* Does the session user speak for clients: does it hold act or verify? */
bool
apitoken_session_may_vouch(void)
{
	static const Oid args[] = {TEXTOID, TEXTOID, TEXTOID, INETOID};

	return apitoken_role_may_act(GetSessionUserId()) ||
		role_may(GetSessionUserId(), &verify_function, "verify", lengthof(args), args);
}

/*
 * A row of a composite type of the extension, given the columns that it has to
 * have.  Behind them there may be some that were added and dropped again.
 */
Datum
apitoken_form_row(const char *name, int count, const Oid *types,
				  const Datum *values, const bool *nulls)
{
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									   CStringGetDatum(name),
									   ObjectIdGetDatum(get_namespace_oid("apitoken", false)));
	TupleDesc	descriptor = lookup_rowtype_tupdesc(type, -1);
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
				 errmsg("type apitoken.%s has not the columns that this library knows", name),
				 errhint("ALTER EXTENSION apitoken UPDATE; or install the library that belongs to the extension's version.")));
	tuple = heap_form_tuple(descriptor, row_values, row_nulls);
	ReleaseTupleDesc(descriptor);
	return HeapTupleGetDatum(tuple);
}

/*
 * The latest committed state, and what this transaction did before this
 * command.  To be given back with UnregisterSnapshot; an error does that too.
 */
Snapshot
apitoken_latest_snapshot(void)
{
	return RegisterSnapshot(GetCatalogSnapshot(apitoken_table(APITOKEN_TOKEN_RECORDS)));
}

static void
begin_probe(Probe *probe, ApitokenTable table, const char *index_name,
			Snapshot snapshot, int nkeys, ScanKey keys)
{
	Relation	relation = open_table(table);
	int			columns = RelationGetNumberOfAttributes(relation);
	Oid			index;

	if (index_name == NULL)
		index = compat_primary_key(relation);
	else
		index = get_relname_relid(index_name, RelationGetNamespace(relation));

	probe->relation = relation;
	probe->values = palloc(columns * sizeof(Datum));
	probe->nulls = palloc(columns * sizeof(bool));
	probe->scan = systable_beginscan(relation, index, OidIsValid(index), snapshot, nkeys, keys);
}

static bool
next_row(Probe *probe)
{
	HeapTuple	tuple = systable_getnext(probe->scan);

	if (!HeapTupleIsValid(tuple))
		return false;
	heap_deform_tuple(tuple, RelationGetDescr(probe->relation), probe->values, probe->nulls);
	return true;
}

static void
end_probe(Probe *probe)
{
	systable_endscan(probe->scan);
	relation_close(probe->relation, AccessShareLock);
	pfree(probe->values);
	pfree(probe->nulls);
}

static void
text_key(ScanKey key, AttrNumber attribute, const char *value)
{
	/* ids and labels are indexed under "C", which is what a scan key means */
	ScanKeyInit(key, attribute, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(value));
}

static char *
text_at(const Datum *values, const bool *nulls, AttrNumber attribute)
{
	return nulls[attribute - 1] ? NULL : TextDatumGetCString(values[attribute - 1]);
}

static TimestampTz
timestamp_at(const Datum *values, const bool *nulls, AttrNumber attribute, TimestampTz none)
{
	return nulls[attribute - 1] ? none : DatumGetTimestampTz(values[attribute - 1]);
}

static void
digest_at(const Datum *values, AttrNumber attribute, uint8 digest[APITOKEN_DIGEST_LENGTH])
{
	bytea	   *stored = DatumGetByteaPP(values[attribute - 1]);

	if (VARSIZE_ANY_EXHDR(stored) != APITOKEN_DIGEST_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a stored digest has the wrong length")));
	memcpy(digest, VARDATA_ANY(stored), APITOKEN_DIGEST_LENGTH);
}

static void
record_from_values(const Datum *values, const bool *nulls, ApitokenRecord *record)
{
	char	   *access;

	memset(record, 0, sizeof(*record));
	if (!nulls[Anum_token_records_id - 1])
		record->id = *DatumGetUUIDP(values[Anum_token_records_id - 1]);
	record->organization_id = text_at(values, nulls, Anum_token_records_organization_id);
	record->user_id = text_at(values, nulls, Anum_token_records_user_id);
	record->kind = record->organization_id != NULL ? APITOKEN_ORGANIZATION : APITOKEN_USER;
	record->label = text_at(values, nulls, Anum_token_records_label);
	record->role = text_at(values, nulls, Anum_token_records_role);
	access = text_at(values, nulls, Anum_token_records_access);
	record->access = access != NULL ? apitoken_access_from_text(access) : APITOKEN_FULL;
	if (!nulls[Anum_token_records_permissions - 1])
		record->permissions = apitoken_strings_from_array(DatumGetArrayTypeP(values[Anum_token_records_permissions - 1]));
	if (!nulls[Anum_token_records_allowed_networks - 1])
		record->allowed_networks = DatumGetArrayTypePCopy(values[Anum_token_records_allowed_networks - 1]);
	if (!nulls[Anum_token_records_rate_limit_per_minute - 1])
		record->rate_limit = DatumGetInt32(values[Anum_token_records_rate_limit_per_minute - 1]);
	if (!nulls[Anum_token_records_metadata - 1])
		record->metadata = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[Anum_token_records_metadata - 1]));
	record->masked = text_at(values, nulls, Anum_token_records_masked);
	record->expires_at = timestamp_at(values, nulls, Anum_token_records_expires_at, DT_NOEND);
	record->suspended = !nulls[Anum_token_records_suspended_at - 1];
	record->revoked = !nulls[Anum_token_records_revoked_at - 1];
	if (!nulls[Anum_token_records_digest - 1])
	{
		record->digest_scheme = DatumGetInt16(values[Anum_token_records_digest_scheme - 1]);
		digest_at(values, Anum_token_records_digest, record->digest);
	}
	record->previous_expires_at = timestamp_at(values, nulls, Anum_token_records_previous_expires_at, DT_NOBEGIN);
	if (!nulls[Anum_token_records_previous_digest - 1])
	{
		record->previous_digest_scheme = DatumGetInt16(values[Anum_token_records_previous_digest_scheme - 1]);
		digest_at(values, Anum_token_records_previous_digest, record->previous_digest);
	}
}

/* The same for a row that a trigger was given, where much may be null yet. */
void
apitoken_record_from_tuple(HeapTuple tuple, TupleDesc descriptor, ApitokenRecord *record)
{
	Datum	   *values = palloc(descriptor->natts * sizeof(Datum));
	bool	   *nulls = palloc(descriptor->natts * sizeof(bool));

	heap_deform_tuple(tuple, descriptor, values, nulls);
	record_from_values(values, nulls, record);
	pfree(values);
	pfree(nulls);
}

bool
apitoken_fetch_token(Snapshot snapshot, const pg_uuid_t *id, ApitokenRecord *record)
{
	Probe		probe;
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, Anum_token_records_id, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	begin_probe(&probe, APITOKEN_TOKEN_RECORDS, NULL, snapshot, 1, &key);
	found = next_row(&probe);
	if (found)
		record_from_values(probe.values, probe.nulls, record);
	end_probe(&probe);
	return found;
}

/* The token with this one's label among its owner's that are not revoked. */
bool
apitoken_fetch_label(Snapshot snapshot, const ApitokenRecord *like, ApitokenRecord *record)
{
	Probe		probe;
	ScanKeyData keys[2];
	bool		found;

	if (like->kind == APITOKEN_ORGANIZATION)
		text_key(&keys[0], Anum_token_records_organization_id, like->organization_id);
	else
		text_key(&keys[0], Anum_token_records_user_id, like->user_id);
	text_key(&keys[1], Anum_token_records_label, like->label);
	begin_probe(&probe, APITOKEN_TOKEN_RECORDS,
				index_names[like->kind == APITOKEN_ORGANIZATION ? LABEL_OF_ORGANIZATION : LABEL_OF_USER],
				snapshot, 2, keys);
	/* the index has only tokens that are not revoked; without it, look */
	do
	{
		found = next_row(&probe);
		if (found)
			record_from_values(probe.values, probe.nulls, record);
	} while (found && record->revoked);
	end_probe(&probe);
	return found;
}

bool
apitoken_fetch_organization(Snapshot snapshot, const char *id, bool *suspended)
{
	Probe		probe;
	ScanKeyData key;
	bool		found;

	text_key(&key, Anum_organizations_id, id);
	begin_probe(&probe, APITOKEN_ORGANIZATIONS, NULL, snapshot, 1, &key);
	found = next_row(&probe);
	if (found)
		*suspended = !probe.nulls[Anum_organizations_suspended_at - 1];
	end_probe(&probe);
	return found;
}

bool
apitoken_fetch_user(Snapshot snapshot, const char *id, ApitokenUserRow *user)
{
	Probe		probe;
	ScanKeyData key;
	bool		found;

	text_key(&key, Anum_users_id, id);
	begin_probe(&probe, APITOKEN_USERS, NULL, snapshot, 1, &key);
	found = next_row(&probe);
	if (found)
	{
		user->name = text_at(probe.values, probe.nulls, Anum_users_name);
		user->role = text_at(probe.values, probe.nulls, Anum_users_role);
		user->groups = DatumGetArrayTypePCopy(probe.values[Anum_users_groups - 1]);
		user->suspended = !probe.nulls[Anum_users_suspended_at - 1];
	}
	end_probe(&probe);
	return found;
}

bool
apitoken_fetch_role(Snapshot snapshot, const char *name, List **patterns)
{
	Probe		probe;
	ScanKeyData key;
	bool		found;

	text_key(&key, Anum_roles_name, name);
	begin_probe(&probe, APITOKEN_ROLES, NULL, snapshot, 1, &key);
	found = next_row(&probe);
	if (found)
		*patterns = apitoken_strings_from_array(DatumGetArrayTypeP(probe.values[Anum_roles_permissions - 1]));
	end_probe(&probe);
	return found;
}

/* The role that a user has in an organization; NULL: not a member. */
char *
apitoken_fetch_membership(Snapshot snapshot, const char *organization_id, const char *user_id)
{
	Probe		probe;
	ScanKeyData keys[2];
	char	   *role = NULL;

	text_key(&keys[0], Anum_memberships_organization_id, organization_id);
	text_key(&keys[1], Anum_memberships_user_id, user_id);
	begin_probe(&probe, APITOKEN_MEMBERSHIPS, NULL, snapshot, 2, keys);
	if (next_row(&probe))
		role = text_at(probe.values, probe.nulls, Anum_memberships_role);
	end_probe(&probe);
	return role;
}

/* All memberships of a user, as a list of ApitokenMembership. */
List *
apitoken_fetch_memberships(Snapshot snapshot, const char *user_id)
{
	Probe		probe;
	ScanKeyData key;
	List	   *memberships = NIL;

	text_key(&key, Anum_memberships_user_id, user_id);
	begin_probe(&probe, APITOKEN_MEMBERSHIPS, index_names[MEMBERSHIPS_OF_USER], snapshot, 1, &key);
	while (next_row(&probe))
	{
		ApitokenMembership *membership = palloc(sizeof(ApitokenMembership));

		membership->organization_id = text_at(probe.values, probe.nulls, Anum_memberships_organization_id);
		membership->role = text_at(probe.values, probe.nulls, Anum_memberships_role);
		memberships = lappend(memberships, membership);
	}
	end_probe(&probe);
	return memberships;
}

/* When a token was last used (DT_NOBEGIN: never); false: it has no usage row. */
bool
apitoken_fetch_last_used(Snapshot snapshot, const pg_uuid_t *id, TimestampTz *last_used_at)
{
	Probe		probe;
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, Anum_token_usage_token_id, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	begin_probe(&probe, APITOKEN_TOKEN_USAGE, NULL, snapshot, 1, &key);
	found = next_row(&probe);
	if (found)
		*last_used_at = timestamp_at(probe.values, probe.nulls, Anum_token_usage_last_used_at, DT_NOBEGIN);
	end_probe(&probe);
	return found;
}
