/*
 * read.c
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
 * The index of a primary key is asked of the table's relcache entry each time,
 * under the table's lock, so REINDEX CONCURRENTLY cannot surprise us.
 *
 * Whoever calls this must have decided that the caller may know the answer.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/relscan.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "tables/tables.h"

/* Indexes that are not primary keys. */
typedef enum
{
	MEMBERSHIPS_OF_USER,
	LABEL_OF_ORGANIZATION,
	LABEL_OF_USER,
	TOKENS_OF_ORGANIZATION,
	TOKENS_OF_USER,
	INDEXES
} NamedIndex;

static const char *const index_names[INDEXES] = {
	"memberships_user_id_idx",
	"token_records_organization_label_key",
	"token_records_user_label_key",
	"token_records_organization_id_idx",
	"token_records_user_id_idx",
};

/* A table being probed, and the row that was found: as many columns as asked for. */
typedef struct Probe
{
	Relation	relation;
	SysScanDesc scan;
	HeapTuple	tuple;
	const Datum *values;
	const bool *nulls;
} Probe;

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
	Relation	relation = apitoken_open_table(table);
	Oid			index;

	if (index_name == NULL)
		index = compat_primary_key(relation);
	else
		index = get_relname_relid(index_name, RelationGetNamespace(relation));

	probe->relation = relation;
	probe->scan = systable_beginscan(relation, index, OidIsValid(index), snapshot, nkeys, keys);
}

/* The next row, and of it the columns up to this one. */
static bool
next_row(Probe *probe, AttrNumber last)
{
	TupleTableSlot *slot = probe->scan->slot;

	probe->tuple = systable_getnext(probe->scan);
	if (!HeapTupleIsValid(probe->tuple))
		return false;
	slot_getsomeattrs(slot, last);
	probe->values = slot->tts_values;
	probe->nulls = slot->tts_isnull;
	return true;
}

static void
end_probe(Probe *probe)
{
	systable_endscan(probe->scan);
	relation_close(probe->relation, AccessShareLock);
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
	record->created_at = timestamp_at(values, nulls, Anum_token_records_created_at, DT_NOBEGIN);
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

/* The last column that record_from_values() reads. */
#define RECORD_COLUMNS Anum_token_records_masked

static void
begin_token_probe(Probe *probe, StrategyNumber strategy, RegProcedure operator, Snapshot snapshot,
				  const pg_uuid_t *id)
{
	ScanKeyData key;

	ScanKeyInit(&key, Anum_token_records_id, strategy, operator, UUIDPGetDatum(id));
	begin_probe(probe, APITOKEN_TOKEN_RECORDS, NULL, snapshot, 1, &key);
}

static bool
end_token_probe(Probe *probe, ApitokenRecord *record)
{
	bool		found = next_row(probe, RECORD_COLUMNS);

	if (found)
		record_from_values(probe->values, probe->nulls, record);
	end_probe(probe);
	return found;
}

bool
apitoken_fetch_token(Snapshot snapshot, const pg_uuid_t *id, ApitokenRecord *record)
{
	Probe		probe;

	begin_token_probe(&probe, BTEqualStrategyNumber, F_UUID_EQ, snapshot, id);
	return end_token_probe(&probe, record);
}

/* Whose a token is, and since when. */
bool
apitoken_fetch_owner(Snapshot snapshot, const pg_uuid_t *id, ApitokenOwner *owner)
{
	Probe		probe;
	bool		found;

	begin_token_probe(&probe, BTEqualStrategyNumber, F_UUID_EQ, snapshot, id);
	found = next_row(&probe, Anum_token_records_user_id) &&
		/* it has one, but for a check constraint that somebody dropped */
		!(probe.nulls[Anum_token_records_organization_id - 1] && probe.nulls[Anum_token_records_user_id - 1]);
	if (found)
	{
		bool		personal = probe.nulls[Anum_token_records_organization_id - 1];

		owner->kind = personal ? APITOKEN_USER : APITOKEN_ORGANIZATION;
		owner->id = DatumGetTextPCopy(probe.values[(personal ? Anum_token_records_user_id :
													Anum_token_records_organization_id) - 1]);
		owner->since = timestamp_at(probe.values, probe.nulls, Anum_token_records_created_at, DT_NOBEGIN);
	}
	end_probe(&probe);
	return found;
}

/* Ids of this owner's tokens that are not newer, newest first; how many. */
int
apitoken_fetch_older(Snapshot snapshot, const ApitokenOwner *owner, pg_uuid_t *ids, int max)
{
	bool		personal = owner->kind == APITOKEN_USER;
	Probe		probe;
	ScanKeyData keys[2];
	int			count = 0;

	ScanKeyInit(&keys[0], personal ? Anum_token_records_user_id : Anum_token_records_organization_id,
				BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(owner->id));
	ScanKeyInit(&keys[1], Anum_token_records_created_at,
				BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE, TimestampTzGetDatum(owner->since));
	begin_probe(&probe, APITOKEN_TOKEN_RECORDS,
				index_names[personal ? TOKENS_OF_USER : TOKENS_OF_ORGANIZATION], snapshot, 2, keys);
	/* without the index there is no order, and no reason to read the table */
	while (probe.scan->irel != NULL && count < max && next_row(&probe, Anum_token_records_id))
		ids[count++] = *DatumGetUUIDP(probe.values[Anum_token_records_id - 1]);
	end_probe(&probe);
	return count;
}

/*
 * The work that hides from a clock whether there is a token of an id: what has
 * been refused looks for the next one in the index, and whoever has not read a
 * row yet reads that one's.
 */
void
apitoken_fetch_decoy(Snapshot snapshot, const pg_uuid_t *id, bool row)
{
	Probe		probe;
	ApitokenRecord decoy;

	begin_token_probe(&probe, BTGreaterEqualStrategyNumber, F_UUID_GE, snapshot, id);
	if (row)
		(void) end_token_probe(&probe, &decoy);
	else
	{
		if (probe.scan->iscan != NULL)
			(void) index_getnext_tid(probe.scan->iscan, ForwardScanDirection);
		end_probe(&probe);
	}
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
		found = next_row(&probe, RECORD_COLUMNS);
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
	found = next_row(&probe, Anum_organizations_suspended_at);
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
	found = next_row(&probe, Anum_users_suspended_at);
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

/* Does the trigger of role.c fire, whoever changes a role? */
static bool
tells_of_changes(Relation roles)
{
	const TriggerDesc *triggers = roles->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (strcmp(triggers->triggers[i].tgname, "role_after_change") == 0)
			return triggers->triggers[i].tgenabled == TRIGGER_FIRES_ALWAYS;
	}
	return false;
}

bool
apitoken_fetch_role(Snapshot snapshot, const char *name, ApitokenRoleRow *row)
{
	Probe		probe;
	ScanKeyData key;
	bool		found;

	text_key(&key, Anum_roles_name, name);
	begin_probe(&probe, APITOKEN_ROLES, NULL, snapshot, 1, &key);
	found = next_row(&probe, Anum_roles_database_role);
	if (found)
	{
		row->patterns = apitoken_strings_from_array(DatumGetArrayTypeP(probe.values[Anum_roles_permissions - 1]));
		row->database_role = probe.nulls[Anum_roles_database_role - 1] ? NULL :
			pstrdup(NameStr(*DatumGetName(probe.values[Anum_roles_database_role - 1])));
		row->lasting = tells_of_changes(probe.relation) &&
			!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(probe.tuple->t_data));
	}
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
	if (next_row(&probe, Anum_memberships_role))
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
	while (next_row(&probe, Anum_memberships_role))
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
	found = next_row(&probe, Anum_token_usage_last_used_at);
	if (found)
		*last_used_at = timestamp_at(probe.values, probe.nulls, Anum_token_usage_last_used_at, DT_NOBEGIN);
	end_probe(&probe);
	return found;
}
