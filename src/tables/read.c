/*
 * read.c
 *		Look up rows of the extension's tables by index, without SQL.
 *
 * This is the only file that reads the tables directly.  It bypasses the
 * caller's privileges and row-level security, because tokens, owners, roles and
 * memberships decide what the caller may do.  Callers of these functions must
 * first check that the user may know the result.
 *
 * Lookups use a registered catalog snapshot.  It shows the latest committed state
 * at any isolation level, and can be taken in the leader of a parallel plan and
 * on a standby.
 *
 * A lookup takes AccessShareLock on the table and releases it at its end, so DROP
 * EXTENSION never waits for the transaction of a verification.  Each lookup gets
 * the index of the primary key from the table's relcache entry while it has this
 * lock, so REINDEX CONCURRENTLY is safe.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/relscan.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "common/int.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "tables/tables.h"

/* Indexes other than primary keys, which are found by name. */
typedef enum
{
	MEMBERSHIPS_OF_USER,
	LABEL_OF_ORGANIZATION,
	LABEL_OF_USER,
	TOKENS_OF_ORGANIZATION,
	TOKENS_OF_USER,
	EVENTS_OF_TOKEN,
	FOREIGN_BY_KEY,
	FOREIGN_BY_DIGEST,
	FOREIGN_BY_FAST_DIGEST,
	INDEXES
} NamedIndex;

static const char *const index_names[INDEXES] = {
	"memberships_user_id_idx",
	"token_records_organization_label_key",
	"token_records_user_label_key",
	"token_records_organization_id_idx",
	"token_records_user_id_idx",
	"events_token_id_idx",
	"foreign_digests_lookup_key_idx",
	"foreign_digests_digest_key",
	"foreign_digests_fast_digest_idx",
};

/* A lookup in progress, and the current row.  Only the columns that were asked for are valid. */
typedef struct Lookup
{
	Relation	relation;
	SysScanDesc scan;
	HeapTuple	tuple;
	const Datum *values;
	const bool *nulls;
	/* before the lookup */
	PgStat_TableCounts table_counts;
	PgStat_TableCounts index_counts;
	BufferUsage buffers;
} Lookup;

/*
 * Returns a snapshot that shows the latest committed state and the changes of
 * earlier commands of this transaction.  Release it with UnregisterSnapshot();
 * an error releases it as well.
 */
Snapshot
apitoken_latest_snapshot(void)
{
	return RegisterSnapshot(GetCatalogSnapshot(apitoken_table(APITOKEN_TOKEN_RECORDS)));
}

static void
begin_lookup(Lookup *lookup, ApitokenTable table, const char *index_name,
			Snapshot snapshot, int nkeys, ScanKey keys)
{
	Relation	relation = apitoken_open_table(table);
	Oid			index;

	if (index_name == NULL)
		index = compat_primary_key(relation);
	else
		index = get_relname_relid(index_name, RelationGetNamespace(relation));

	lookup->relation = relation;
	lookup->buffers = pgBufferUsage;
	lookup->scan = systable_beginscan(relation, index, OidIsValid(index), snapshot, nkeys, keys);
	lookup->table_counts = compat_counts(relation);
	if (lookup->scan->irel != NULL)
		lookup->index_counts = compat_counts(lookup->scan->irel);
}

/* Fetch the next row, with the columns up to "last".  Returns false at the end. */
static bool
next_row(Lookup *lookup, AttrNumber last)
{
	TupleTableSlot *slot = lookup->scan->slot;

	CHECK_FOR_INTERRUPTS();
	lookup->tuple = systable_getnext(lookup->scan);
	if (!HeapTupleIsValid(lookup->tuple))
		return false;
	slot_getsomeattrs(slot, last);
	lookup->values = slot->tts_values;
	lookup->nulls = slot->tts_isnull;
	return true;
}

/*
 * Everybody may see in the statistics views and in EXPLAIN (BUFFERS) what their own
 * transaction has read.  The views count a lookup, but not the rows and blocks that
 * it has read, because that would tell whether a token exists that the caller may
 * not see.
 */
static void
end_lookup(Lookup *lookup)
{
	if (lookup->scan->irel != NULL)
		compat_forget_reading(lookup->scan->irel, &lookup->index_counts);
	compat_forget_reading(lookup->relation, &lookup->table_counts);
	systable_endscan(lookup->scan);
	pgBufferUsage = lookup->buffers;
	relation_close(lookup->relation, AccessShareLock);
}

static void
text_key(ScanKey key, AttrNumber attribute, const char *value)
{
	/* The indexed columns have collation "C", which is also ScanKeyInit()'s. */
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

/* Digests, one after the other.  Nothing else has their length. */
static const uint8 *
digests_at(const Datum *values, AttrNumber attribute, int count)
{
	bytea	   *stored = DatumGetByteaPP(values[attribute - 1]);

	if (VARSIZE_ANY_EXHDR(stored) != count * APITOKEN_DIGEST_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored token digest has an invalid length")));
	return (const uint8 *) VARDATA_ANY(stored);
}

/* The number of elements of an array of one dimension, from 1 on, without nulls; 0 of others. */
static int
plain_length(const ArrayType *array)
{
	return ARR_NDIM(array) == 1 && ARR_LBOUND(array)[0] == 1 && !ARR_HASNULL(array) ? ARR_DIMS(array)[0] : 0;
}

/* The elements of an array; *count becomes their number, or 0 if it is not as it should be. */
static const void *
elements_at(const Datum *values, const bool *nulls, AttrNumber attribute, int *count)
{
	ArrayType  *array;

	*count = 0;
	if (nulls[attribute - 1])
		return NULL;
	array = DatumGetArrayTypeP(values[attribute - 1]);
	*count = plain_length(array);
	return ARR_DATA_PTR(array);
}

/* Read the secrets before the current one: three arrays of the same length, and the digests. */
static void
previous_secrets_at(const Datum *values, const bool *nulls, ApitokenRecord *record)
{
	int			counts[3];
	const TimestampTz *expires_at = elements_at(values, nulls, Anum_token_records_previous_expires_at, &counts[0]);
	const TimestampTz *replaced_at = elements_at(values, nulls, Anum_token_records_previous_replaced_at, &counts[1]);
	const int16 *schemes = elements_at(values, nulls, Anum_token_records_previous_digest_scheme, &counts[2]);
	const uint8 *digests = digests_at(values, Anum_token_records_previous_digest, counts[0]);

	if (counts[0] > APITOKEN_PREVIOUS_MAX || counts[1] != counts[0] || counts[2] != counts[0])
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored previous secrets of a token are invalid")));
	for (int i = 0; i < counts[0]; i++)
	{
		ApitokenSecret *secret = &record->secrets[record->secret_count++];

		secret->expires_at = expires_at[i];
		secret->replaced_at = replaced_at[i];
		secret->scheme = schemes[i];
		memcpy(secret->digest, digests + i * APITOKEN_DIGEST_LENGTH, APITOKEN_DIGEST_LENGTH);
	}
}

/* For a CHECK constraint: are these what previous_secrets_at() can read, or all null? */
APITOKEN_FUNCTION_INFO_V1(apitoken_check_previous);
Datum
apitoken_check_previous(PG_FUNCTION_ARGS)
{
	int			nulls = 0;
	int			count;
	ArrayType  *arrays[3];		/* expires_at, replaced_at, digest_scheme */
	bool		valid;

	for (int i = 0; i < PG_NARGS(); i++)
		nulls += PG_ARGISNULL(i);
	if (nulls > 0)
		PG_RETURN_BOOL(nulls == PG_NARGS());

	for (int i = 0; i < lengthof(arrays); i++)
		arrays[i] = PG_GETARG_ARRAYTYPE_P(i);
	count = plain_length(arrays[0]);
	valid = count > 0 && count <= APITOKEN_PREVIOUS_MAX &&
		plain_length(arrays[1]) == count && plain_length(arrays[2]) == count &&
		VARSIZE_ANY_EXHDR(PG_GETARG_BYTEA_PP(3)) == count * APITOKEN_DIGEST_LENGTH;
	for (int i = 0; i < count && valid; i++)
		valid = !TIMESTAMP_NOT_FINITE(((TimestampTz *) ARR_DATA_PTR(arrays[0]))[i]) &&
			!TIMESTAMP_NOT_FINITE(((TimestampTz *) ARR_DATA_PTR(arrays[1]))[i]);
	PG_RETURN_BOOL(valid);
}

/* An element of an array of times, which may have nulls; DT_NOBEGIN if there is none. */
static TimestampTz
element_at(const Datum *values, const bool *nulls, AttrNumber attribute, int index)
{
	bool		isnull = nulls[attribute - 1];
	Datum		element = (Datum) 0;

	if (!isnull)
		element = array_get_element(values[attribute - 1], 1, &index, -1, sizeof(TimestampTz), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &isnull);
	return isnull ? DT_NOBEGIN : DatumGetTimestampTz(element);
}

static ApitokenQuotaPeriod
period_at(const Datum *values, const bool *nulls, AttrNumber attribute)
{
	char	   *period = text_at(values, nulls, attribute);

	if (period == NULL)
		return APITOKEN_LIFE;
	return strcmp(period, "day") == 0 ? APITOKEN_DAY : APITOKEN_MONTH;
}

/* Is this value stored outside of the row? */
static bool
is_outside(const Datum *values, const bool *nulls, AttrNumber attribute)
{
	return !nulls[attribute - 1] && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(values[attribute - 1]));
}

/*
 * Without `whole`, long values are left out that may be stored outside of the row,
 * if one of them is.
 */
static void
record_from_values(const Datum *values, const bool *nulls, bool whole, ApitokenRecord *record)
{
	char	   *access;

	memset(record, 0, sizeof(*record));
	record->whole = whole || !(is_outside(values, nulls, Anum_token_records_label) ||
							   is_outside(values, nulls, Anum_token_records_permissions) ||
							   is_outside(values, nulls, Anum_token_records_allowed_networks) ||
							   is_outside(values, nulls, Anum_token_records_metadata));
	if (!nulls[Anum_token_records_id - 1])
		record->id = *DatumGetUUIDP(values[Anum_token_records_id - 1]);
	record->organization_id = text_at(values, nulls, Anum_token_records_organization_id);
	record->user_id = text_at(values, nulls, Anum_token_records_user_id);
	record->kind = record->organization_id != NULL ? APITOKEN_ORGANIZATION : APITOKEN_USER;
	record->role = text_at(values, nulls, Anum_token_records_role);
	access = text_at(values, nulls, Anum_token_records_access);
	record->access = access != NULL ? apitoken_access_from_text(access) : APITOKEN_FULL;
	if (record->whole)
	{
		record->label = text_at(values, nulls, Anum_token_records_label);
		if (!nulls[Anum_token_records_permissions - 1])
			record->permissions = apitoken_strings_from_array(DatumGetArrayTypeP(values[Anum_token_records_permissions - 1]));
		if (!nulls[Anum_token_records_allowed_networks - 1])
			record->allowed_networks = DatumGetArrayTypePCopy(values[Anum_token_records_allowed_networks - 1]);
		if (!nulls[Anum_token_records_metadata - 1])
			record->metadata = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[Anum_token_records_metadata - 1]));
	}
	if (!nulls[Anum_token_records_rate_limit_per_minute - 1])
		record->rate_limit = DatumGetInt32(values[Anum_token_records_rate_limit_per_minute - 1]);
	if (!nulls[Anum_token_records_quota - 1])
		record->quota = DatumGetInt64(values[Anum_token_records_quota - 1]);
	record->quota_period = period_at(values, nulls, Anum_token_records_quota_period);
	record->masked = text_at(values, nulls, Anum_token_records_masked);
	record->created_at = timestamp_at(values, nulls, Anum_token_records_created_at, DT_NOBEGIN);
	record->issued_at = timestamp_at(values, nulls, Anum_token_records_regenerated_at, record->created_at);
	record->expires_at = timestamp_at(values, nulls, Anum_token_records_expires_at, DT_NOEND);
	record->suspended = !nulls[Anum_token_records_suspended_at - 1];
	record->revoked = !nulls[Anum_token_records_revoked_at - 1];
	if (!nulls[Anum_token_records_digest - 1])
	{
		record->secret_count = 1;
		record->secrets[0].expires_at = DT_NOEND;
		record->secrets[0].scheme = DatumGetInt16(values[Anum_token_records_digest_scheme - 1]);
		memcpy(record->secrets[0].digest, digests_at(values, Anum_token_records_digest, 1), APITOKEN_DIGEST_LENGTH);
	}
	if (record->secret_count > 0 && !nulls[Anum_token_records_previous_digest - 1])
		previous_secrets_at(values, nulls, record);
}

/* Convert a row that a trigger received.  Any column may still be null. */
void
apitoken_record_from_tuple(HeapTuple tuple, TupleDesc descriptor, ApitokenRecord *record)
{
	Datum	   *values = palloc(descriptor->natts * sizeof(Datum));
	bool	   *nulls = palloc(descriptor->natts * sizeof(bool));

	heap_deform_tuple(tuple, descriptor, values, nulls);
	record_from_values(values, nulls, true, record);
	pfree(values);
	pfree(nulls);
}

/* The last column that record_from_values() reads. */
#define RECORD_COLUMNS Anum_token_records_masked

static void
begin_token_lookup(Lookup *lookup, StrategyNumber strategy, RegProcedure operator, Snapshot snapshot,
				  const pg_uuid_t *id)
{
	ScanKeyData key;

	ScanKeyInit(&key, Anum_token_records_id, strategy, operator, UUIDPGetDatum(id));
	begin_lookup(lookup, APITOKEN_TOKEN_RECORDS, NULL, snapshot, 1, &key);
}

static bool
fetch_record(Snapshot snapshot, const pg_uuid_t *id, bool whole, ApitokenRecord *record)
{
	Lookup		lookup;
	bool		found;

	begin_token_lookup(&lookup, BTEqualStrategyNumber, F_UUID_EQ, snapshot, id);
	found = next_row(&lookup, RECORD_COLUMNS);
	if (found)
		record_from_values(lookup.values, lookup.nulls, whole, record);
	end_lookup(&lookup);
	return found;
}

/*
 * Fetch a token.  Call apitoken_complete_token() as soon as it is known that the
 * caller may see it: long values are read from another table, and everybody sees
 * that in the statistics of their transaction.
 */
bool
apitoken_fetch_token(Snapshot snapshot, const pg_uuid_t *id, ApitokenRecord *record)
{
	return fetch_record(snapshot, id, false, record);
}

/* The same snapshot shows the same row. */
void
apitoken_complete_token(Snapshot snapshot, ApitokenRecord *record)
{
	pg_uuid_t	id = record->id;

	if (!record->whole && !fetch_record(snapshot, &id, true, record))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("token cannot be read a second time"),
				 errhint("Run REINDEX TABLE apitoken_internal.token_records.")));
}

/* Read the owner from these columns.  Returns false if both are null. */
static bool
owner_at(const Lookup *lookup, AttrNumber organization_id, AttrNumber user_id, ApitokenOwner *owner)
{
	bool		personal = lookup->nulls[organization_id - 1];

	if (personal && lookup->nulls[user_id - 1])
		return false;
	owner->kind = personal ? APITOKEN_USER : APITOKEN_ORGANIZATION;
	owner->id = DatumGetTextPCopy(lookup->values[(personal ? user_id : organization_id) - 1]);
	return true;
}

/* Fetch the owner and the creation time of a token. */
bool
apitoken_fetch_owner(Snapshot snapshot, const pg_uuid_t *id, ApitokenOwner *owner)
{
	Lookup		lookup;
	bool		found;

	begin_token_lookup(&lookup, BTEqualStrategyNumber, F_UUID_EQ, snapshot, id);
	found = next_row(&lookup, Anum_token_records_user_id) &&
		owner_at(&lookup, Anum_token_records_organization_id, Anum_token_records_user_id, owner);
	if (found)
		owner->created_at = timestamp_at(lookup.values, lookup.nulls, Anum_token_records_created_at, DT_NOBEGIN);
	end_lookup(&lookup);
	return found;
}

/* Fetch the owner of a token from its events.  The token itself may be removed. */
bool
apitoken_fetch_owner_of_events(Snapshot snapshot, const pg_uuid_t *token_id, ApitokenOwner *owner)
{
	Lookup		lookup;
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, Anum_events_token_id, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(token_id));
	begin_lookup(&lookup, APITOKEN_EVENTS, index_names[EVENTS_OF_TOKEN], snapshot, 1, &key);
	found = next_row(&lookup, Anum_events_user_id) &&
		owner_at(&lookup, Anum_events_organization_id, Anum_events_user_id, owner);
	end_lookup(&lookup);
	return found;
}

/*
 * Fetch the ids of up to "max" tokens of this owner that are not newer than
 * owner->created_at, newest first.  Returns their number.
 */
int
apitoken_fetch_older(Snapshot snapshot, const ApitokenOwner *owner, pg_uuid_t *ids, int max)
{
	bool		personal = owner->kind == APITOKEN_USER;
	Lookup		lookup;
	ScanKeyData keys[2];
	int			count = 0;

	ScanKeyInit(&keys[0], personal ? Anum_token_records_user_id : Anum_token_records_organization_id,
				BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(owner->id));
	ScanKeyInit(&keys[1], Anum_token_records_created_at,
				BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE, TimestampTzGetDatum(owner->created_at));
	begin_lookup(&lookup, APITOKEN_TOKEN_RECORDS,
				index_names[personal ? TOKENS_OF_USER : TOKENS_OF_ORGANIZATION], snapshot, 2, keys);
	/* Without the index, rows come in no order, and reading the whole table would be too slow. */
	while (lookup.scan->irel != NULL && count < max && next_row(&lookup, Anum_token_records_id))
		ids[count++] = *DatumGetUUIDP(lookup.values[Anum_token_records_id - 1]);
	end_lookup(&lookup);
	return count;
}

/*
 * Do decoy work, so that the response time does not reveal whether a token with
 * this id exists.  Every refused verification finds another id in the index: the
 * greatest that is not greater, because there is none above the newest token.  If
 * the verification has not read a row (read_row), this also reads the row found.
 */
void
apitoken_fetch_decoy(Snapshot snapshot, const pg_uuid_t *id, bool read_row)
{
	Lookup		lookup;
	TupleTableSlot *slot;
	ApitokenRecord decoy;

	begin_token_lookup(&lookup, BTLessEqualStrategyNumber, F_UUID_LE, snapshot, id);
	slot = lookup.scan->slot;
	/* without the index, each lookup reads the whole table anyway */
	if (lookup.scan->iscan != NULL && !read_row)
		(void) index_getnext_tid(lookup.scan->iscan, BackwardScanDirection);
	else if (lookup.scan->iscan != NULL && index_getnext_slot(lookup.scan->iscan, BackwardScanDirection, slot))
	{
		slot_getsomeattrs(slot, RECORD_COLUMNS);
		record_from_values(slot->tts_values, slot->tts_isnull, false, &decoy);
	}
	end_lookup(&lookup);
}

/* ---- tokens of other systems ---- */

static ApitokenBytes
bytes_at(const Datum *values, const bool *nulls, AttrNumber attribute)
{
	ApitokenBytes bytes = {NULL, 0};

	if (!nulls[attribute - 1])
	{
		bytea	   *value = DatumGetByteaPCopy(values[attribute - 1]);

		bytes.data = VARDATA(value);
		bytes.length = VARSIZE(value) - VARHDRSZ;
	}
	return bytes;
}

static ApitokenForeign *
foreign_from_values(const Datum *values, const bool *nulls)
{
	ApitokenForeign *row = palloc0(sizeof(ApitokenForeign));

	row->token_id = *DatumGetUUIDP(values[Anum_foreign_digests_token_id - 1]);
	row->lookup_key = text_at(values, nulls, Anum_foreign_digests_lookup_key);
	row->digest = bytes_at(values, nulls, Anum_foreign_digests_digest);
	row->salt = bytes_at(values, nulls, Anum_foreign_digests_salt);
	if (!nulls[Anum_foreign_digests_fast_digest - 1] && !nulls[Anum_foreign_digests_fast_digest_scheme - 1])
	{
		row->has_fast = true;
		row->fast_scheme = DatumGetInt16(values[Anum_foreign_digests_fast_digest_scheme - 1]);
		memcpy(row->fast_digest, digests_at(values, Anum_foreign_digests_fast_digest, 1), APITOKEN_DIGEST_LENGTH);
	}
	return row;
}

/* Finish a lookup of foreign_digests.  Returns a list of ApitokenForeign. */
static List *
finish_foreign_lookup(Lookup *lookup)
{
	List	   *rows = NIL;

	while (list_length(rows) < APITOKEN_FOREIGN_MAX && next_row(lookup, Natts_foreign_digests))
		rows = lappend(rows, foreign_from_values(lookup->values, lookup->nulls));
	end_lookup(lookup);
	return rows;
}

/* Fetch the imported tokens with this lookup key. */
List *
apitoken_fetch_foreign(Snapshot snapshot, const char *format, const char *lookup_key, size_t key_length)
{
	Lookup		lookup;
	ScanKeyData keys[2];

	text_key(&keys[0], Anum_foreign_digests_format, format);
	text_key(&keys[1], Anum_foreign_digests_lookup_key, pnstrdup(lookup_key, key_length));
	begin_lookup(&lookup, APITOKEN_FOREIGN_DIGESTS, index_names[FOREIGN_BY_KEY], snapshot, 2, keys);
	return finish_foreign_lookup(&lookup);
}

/* Fetch the imported token with this digest; NULL if there is none. */
ApitokenForeign *
apitoken_fetch_foreign_digest(Snapshot snapshot, const char *format, const ApitokenBytes *digest)
{
	Lookup		lookup;
	ScanKeyData keys[2];
	List	   *rows;

	text_key(&keys[0], Anum_foreign_digests_format, format);
	ScanKeyInit(&keys[1], Anum_foreign_digests_digest, BTEqualStrategyNumber, F_BYTEAEQ,
				apitoken_bytea_datum(digest->data, digest->length));
	begin_lookup(&lookup, APITOKEN_FOREIGN_DIGESTS, index_names[FOREIGN_BY_DIGEST], snapshot, 2, keys);
	rows = finish_foreign_lookup(&lookup);
	return rows == NIL ? NULL : linitial(rows);
}

/* Fetch the imported tokens with this fast digest. */
List *
apitoken_fetch_foreign_fast(Snapshot snapshot, const char *format, const uint8 digest[APITOKEN_DIGEST_LENGTH])
{
	Lookup		lookup;
	ScanKeyData keys[2];

	text_key(&keys[0], Anum_foreign_digests_format, format);
	ScanKeyInit(&keys[1], Anum_foreign_digests_fast_digest, BTEqualStrategyNumber, F_BYTEAEQ,
				apitoken_bytea_datum(digest, APITOKEN_DIGEST_LENGTH));
	begin_lookup(&lookup, APITOKEN_FOREIGN_DIGESTS, index_names[FOREIGN_BY_FAST_DIGEST], snapshot, 2, keys);
	return finish_foreign_lookup(&lookup);
}

/*
 * Do the same work whether there is a token with this lookup key or not, as
 * apitoken_fetch_decoy() does.  With read_row, this returns a row with another key,
 * so that the digest of a text can be compared with that; NULL if there is none.
 */
ApitokenForeign *
apitoken_fetch_foreign_decoy(Snapshot snapshot, const char *format, const char *lookup_key, size_t key_length,
							 bool read_row)
{
	ApitokenForeign *decoy = NULL;
	char	   *key = pnstrdup(lookup_key, key_length);

	/* the greatest key that is not greater, otherwise the smallest */
	for (int attempt = 0; attempt < 2 && decoy == NULL; attempt++)
	{
		Lookup		lookup;
		ScanKeyData keys[2];
		TupleTableSlot *slot;
		ScanDirection direction = attempt == 0 ? BackwardScanDirection : ForwardScanDirection;

		text_key(&keys[0], Anum_foreign_digests_format, format);
		ScanKeyInit(&keys[1], Anum_foreign_digests_lookup_key,
					attempt == 0 ? BTLessEqualStrategyNumber : BTGreaterStrategyNumber,
					attempt == 0 ? F_TEXT_LE : F_TEXT_GT, CStringGetTextDatum(key));
		begin_lookup(&lookup, APITOKEN_FOREIGN_DIGESTS, index_names[FOREIGN_BY_KEY], snapshot, 2, keys);
		slot = lookup.scan->slot;
		if (lookup.scan->iscan != NULL && !read_row)
			(void) index_getnext_tid(lookup.scan->iscan, direction);
		else if (lookup.scan->iscan != NULL && index_getnext_slot(lookup.scan->iscan, direction, slot))
		{
			slot_getsomeattrs(slot, Natts_foreign_digests);
			decoy = foreign_from_values(slot->tts_values, slot->tts_isnull);
		}
		end_lookup(&lookup);
		if (!read_row)
			break;
	}
	return decoy;
}

/* Fetch the token that has the same owner and label as "like", and is not revoked. */
bool
apitoken_fetch_label(Snapshot snapshot, const ApitokenRecord *like, ApitokenRecord *record)
{
	Lookup		lookup;
	ScanKeyData keys[2];
	bool		found;

	if (like->kind == APITOKEN_ORGANIZATION)
		text_key(&keys[0], Anum_token_records_organization_id, like->organization_id);
	else
		text_key(&keys[0], Anum_token_records_user_id, like->user_id);
	text_key(&keys[1], Anum_token_records_label, like->label);
	begin_lookup(&lookup, APITOKEN_TOKEN_RECORDS,
				index_names[like->kind == APITOKEN_ORGANIZATION ? LABEL_OF_ORGANIZATION : LABEL_OF_USER],
				snapshot, 2, keys);
	/* The index has only tokens that are not revoked, but a scan without it finds all.  Imported ones do not count. */
	do
	{
		found = next_row(&lookup, RECORD_COLUMNS);
		if (found)
			record_from_values(lookup.values, lookup.nulls, true, record);
	} while (found && (record->revoked || apitoken_is_imported(record)));
	end_lookup(&lookup);
	return found;
}

/* Count the tokens of an organization that are not revoked, up to "max". */
int
apitoken_count_tokens(Snapshot snapshot, const char *organization_id, int max)
{
	Lookup		lookup;
	ScanKeyData key;
	int			count = 0;

	text_key(&key, Anum_token_records_organization_id, organization_id);
	begin_lookup(&lookup, APITOKEN_TOKEN_RECORDS, index_names[LABEL_OF_ORGANIZATION], snapshot, 1, &key);
	/* The index has only tokens that are not revoked, but a scan without it finds all. */
	while (count < max && next_row(&lookup, Anum_token_records_revoked_at))
		count += lookup.nulls[Anum_token_records_revoked_at - 1] ? 1 : 0;
	end_lookup(&lookup);
	return count;
}

/*
 * Is new_network one of the events in `notify`?  No other event contains this word,
 * and the constraint allows only events.  So the array is searched as it is, because
 * each verification does it.
 */
static bool
tells_networks(const Datum *values, const bool *nulls, AttrNumber notify)
{
	struct varlena *events;

	if (nulls[notify - 1])
		return false;
	events = PG_DETOAST_DATUM_PACKED(values[notify - 1]);
	return memmem(VARDATA_ANY(events), VARSIZE_ANY_EXHDR(events),
				  APITOKEN_NEW_NETWORK, strlen(APITOKEN_NEW_NETWORK)) != NULL;
}

static void
organization_from_values(const Datum *values, const bool *nulls, ApitokenOrganizationRow *row)
{
	row->suspended = !nulls[Anum_organizations_suspended_at - 1];
	if (!nulls[Anum_organizations_max_lifetime - 1])
	{
		row->max_lifetime = palloc(sizeof(Interval));
		*row->max_lifetime = *DatumGetIntervalP(values[Anum_organizations_max_lifetime - 1]);
	}
	row->require_expiry = DatumGetBool(values[Anum_organizations_require_expiry - 1]);
	row->limits_tokens = !nulls[Anum_organizations_max_tokens - 1];
	if (!nulls[Anum_organizations_allowed_networks - 1])
		row->allowed_networks = DatumGetArrayTypePCopy(values[Anum_organizations_allowed_networks - 1]);
	row->default_role = text_at(values, nulls, Anum_organizations_default_role);
	row->allow_personal_tokens = DatumGetBool(values[Anum_organizations_allow_personal_tokens - 1]);
	row->tells_networks = tells_networks(values, nulls, Anum_organizations_notify);
}

bool
apitoken_fetch_organization(Snapshot snapshot, const char *id, ApitokenOrganizationRow *row)
{
	Lookup		lookup;
	ScanKeyData key;
	bool		found;

	memset(row, 0, sizeof(*row));

	text_key(&key, Anum_organizations_id, id);
	begin_lookup(&lookup, APITOKEN_ORGANIZATIONS, NULL, snapshot, 1, &key);
	found = next_row(&lookup, Natts_organizations);
	if (found)
		organization_from_values(lookup.values, lookup.nulls, row);
	end_lookup(&lookup);
	return found;
}

bool
apitoken_fetch_user(Snapshot snapshot, const char *id, ApitokenUserRow *user)
{
	Lookup		lookup;
	ScanKeyData key;
	bool		found;

	text_key(&key, Anum_users_id, id);
	begin_lookup(&lookup, APITOKEN_USERS, NULL, snapshot, 1, &key);
	found = next_row(&lookup, Natts_users);
	if (found)
	{
		user->name = text_at(lookup.values, lookup.nulls, Anum_users_name);
		user->role = text_at(lookup.values, lookup.nulls, Anum_users_role);
		user->groups = DatumGetArrayTypePCopy(lookup.values[Anum_users_groups - 1]);
		user->suspended = !lookup.nulls[Anum_users_suspended_at - 1];
		user->tells_networks = tells_networks(lookup.values, lookup.nulls, Anum_users_notify);
	}
	end_lookup(&lookup);
	return found;
}

static bool
is_deleted_id(Snapshot snapshot, const char *id)
{
	Lookup		lookup;
	ScanKeyData key;
	bool		found;

	text_key(&key, Anum_deleted_users_id, id);
	begin_lookup(&lookup, APITOKEN_DELETED_USERS, NULL, snapshot, 1, &key);
	found = next_row(&lookup, Anum_deleted_users_id);
	end_lookup(&lookup);
	return found;
}

/*
 * What deleted_users has in place of the id of a forgotten user, so that the user
 * does not come back by acting.
 */
char *
apitoken_forgotten_mark(const char *id)
{
	uint8		digest[APITOKEN_DIGEST_LENGTH];
	char		hex[2 * APITOKEN_DIGEST_LENGTH + 1] = {0};

	apitoken_digest(id, strlen(id), 0, digest);
	hex_encode((const char *) digest, sizeof(digest), hex);
	return psprintf(APITOKEN_FORGOTTEN_MARK "%s", hex);
}

bool
apitoken_user_was_forgotten(Snapshot snapshot, const char *id)
{
	return is_deleted_id(snapshot, apitoken_forgotten_mark(id));
}

/* Was the row of this user deleted, or the user forgotten? */
bool
apitoken_user_was_deleted(Snapshot snapshot, const char *id)
{
	return is_deleted_id(snapshot, id) || apitoken_user_was_forgotten(snapshot, id);
}

bool
apitoken_fetch_role(Snapshot snapshot, const char *name, ApitokenRoleRow *row)
{
	Lookup		lookup;
	ScanKeyData key;
	bool		found;

	text_key(&key, Anum_role_records_name, name);
	begin_lookup(&lookup, APITOKEN_ROLE_RECORDS, NULL, snapshot, 1, &key);
	found = next_row(&lookup, Anum_role_records_database_role);
	if (found)
	{
		row->patterns = apitoken_strings_from_array(DatumGetArrayTypeP(lookup.values[Anum_role_records_permissions - 1]));
		row->database_role = lookup.nulls[Anum_role_records_database_role - 1] ? NULL :
			pstrdup(NameStr(*DatumGetName(lookup.values[Anum_role_records_database_role - 1])));
		row->written_here = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(lookup.tuple->t_data));
	}
	end_lookup(&lookup);
	return found;
}

/* Returns the role of a user in an organization, or NULL if the user is not a member. */
char *
apitoken_fetch_membership(Snapshot snapshot, const char *organization_id, const char *user_id)
{
	Lookup		lookup;
	ScanKeyData keys[2];
	char	   *role = NULL;

	text_key(&keys[0], Anum_memberships_organization_id, organization_id);
	text_key(&keys[1], Anum_memberships_user_id, user_id);
	begin_lookup(&lookup, APITOKEN_MEMBERSHIPS, NULL, snapshot, 2, keys);
	if (next_row(&lookup, Anum_memberships_role))
		role = text_at(lookup.values, lookup.nulls, Anum_memberships_role);
	end_lookup(&lookup);
	return role;
}

/* Finish a lookup of memberships.  Returns a list of ApitokenMembership. */
static List *
finish_memberships_lookup(Lookup *lookup)
{
	List	   *memberships = NIL;

	while (next_row(lookup, Anum_memberships_role))
	{
		ApitokenMembership *membership = palloc(sizeof(ApitokenMembership));

		CHECK_FOR_INTERRUPTS();
		membership->organization_id = text_at(lookup->values, lookup->nulls, Anum_memberships_organization_id);
		membership->user_id = text_at(lookup->values, lookup->nulls, Anum_memberships_user_id);
		membership->role = text_at(lookup->values, lookup->nulls, Anum_memberships_role);
		memberships = lappend(memberships, membership);
	}
	end_lookup(lookup);
	return memberships;
}

/* Returns all memberships of a user. */
List *
apitoken_fetch_memberships(Snapshot snapshot, const char *user_id)
{
	Lookup		lookup;
	ScanKeyData key;

	text_key(&key, Anum_memberships_user_id, user_id);
	begin_lookup(&lookup, APITOKEN_MEMBERSHIPS, index_names[MEMBERSHIPS_OF_USER], snapshot, 1, &key);
	return finish_memberships_lookup(&lookup);
}

/* Returns all memberships in an organization. */
List *
apitoken_fetch_members(Snapshot snapshot, const char *organization_id)
{
	Lookup		lookup;
	ScanKeyData key;

	text_key(&key, Anum_memberships_organization_id, organization_id);
	begin_lookup(&lookup, APITOKEN_MEMBERSHIPS, NULL, snapshot, 1, &key);
	return finish_memberships_lookup(&lookup);
}

/*
 * Returns the personal tokens that acted in an organization, as a list of
 * ApitokenPersonalUse.  What is older than the organization was in another one, which
 * had the same id and was deleted.
 */
List *
apitoken_fetch_personal_use(Snapshot snapshot, const char *organization_id)
{
	Lookup		lookup;
	ScanKeyData key;
	TimestampTz since = DT_NOEND;
	List	   *uses = NIL;

	text_key(&key, Anum_organizations_id, organization_id);
	begin_lookup(&lookup, APITOKEN_ORGANIZATIONS, NULL, snapshot, 1, &key);
	if (next_row(&lookup, Anum_organizations_created_at))
		since = timestamp_at(lookup.values, lookup.nulls, Anum_organizations_created_at, DT_NOBEGIN);
	end_lookup(&lookup);

	text_key(&key, Anum_personal_token_use_organization_id, organization_id);
	begin_lookup(&lookup, APITOKEN_PERSONAL_TOKEN_USE, NULL, snapshot, 1, &key);
	while (next_row(&lookup, Anum_personal_token_use_last_used_at))
	{
		ApitokenPersonalUse *use = palloc(sizeof(ApitokenPersonalUse));

		use->token_id = *DatumGetUUIDP(lookup.values[Anum_personal_token_use_token_id - 1]);
		use->last_used_at = timestamp_at(lookup.values, lookup.nulls, Anum_personal_token_use_last_used_at, DT_NOBEGIN);
		if (use->last_used_at >= since)
			uses = lappend(uses, use);
	}
	end_lookup(&lookup);
	return uses;
}

/* Returns all ids of a table whose first column is the id, as a list of strings. */
List *
apitoken_fetch_all_ids(ApitokenTable table)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	Lookup		lookup;
	List	   *ids = NIL;

	begin_lookup(&lookup, table, NULL, snapshot, 0, NULL);
	while (next_row(&lookup, 1))
	{
		CHECK_FOR_INTERRUPTS();
		ids = lappend(ids, text_at(lookup.values, lookup.nulls, 1));
	}
	end_lookup(&lookup);
	UnregisterSnapshot(snapshot);
	return ids;
}

/*
 * Fetch the time of the last use of a token, or of its previous secret `secret`
 * unless that is 0; DT_NOBEGIN if it was never used.  Returns false if the token
 * has no usage row.
 */
bool
apitoken_fetch_last_used(Snapshot snapshot, const pg_uuid_t *id, int secret, TimestampTz *last_used_at)
{
	Lookup		lookup;
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, Anum_token_usage_token_id, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	begin_lookup(&lookup, APITOKEN_TOKEN_USAGE, NULL, snapshot, 1, &key);
	found = next_row(&lookup, Anum_token_usage_previous_last_used_at);
	if (found && secret == 0)
		*last_used_at = timestamp_at(lookup.values, lookup.nulls, Anum_token_usage_last_used_at, DT_NOBEGIN);
	else if (found)
		*last_used_at = element_at(lookup.values, lookup.nulls, Anum_token_usage_previous_last_used_at, secret);
	end_lookup(&lookup);
	return found;
}

/* Add a number of uses in the current row.  An owner's UPDATE may have set it to anything. */
static void
add_uses(const Lookup *lookup, AttrNumber attribute, int64 *sum)
{
	int64		uses = lookup->nulls[attribute - 1] ? 0 : DatumGetInt64(lookup->values[attribute - 1]);

	if (uses > 0 && pg_add_s64_overflow(*sum, uses, sum))
		*sum = PG_INT64_MAX;
}

/*
 * Fetch the number of uses of a token that the tables count as accepted: those on
 * the days from `since` on, or all of its life for DATEVAL_NOBEGIN.
 */
int64
apitoken_fetch_accepted(Snapshot snapshot, const pg_uuid_t *id, DateADT since)
{
	bool		life = DATE_IS_NOBEGIN(since);
	Lookup		lookup;
	ScanKeyData keys[2];
	int64		sum = 0;

	ScanKeyInit(&keys[0], Anum_token_usage_token_id, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	begin_lookup(&lookup, APITOKEN_TOKEN_USAGE, NULL, snapshot, 1, keys);
	if (next_row(&lookup, Anum_token_usage_day_accepted))
	{
		if (life)
			add_uses(&lookup, Anum_token_usage_accepted, &sum);
		else if (!lookup.nulls[Anum_token_usage_last_day - 1] &&
				 DatumGetDateADT(lookup.values[Anum_token_usage_last_day - 1]) >= since)
			add_uses(&lookup, Anum_token_usage_day_accepted, &sum);
	}
	end_lookup(&lookup);
	if (life)
		return sum;

	ScanKeyInit(&keys[0], Anum_token_days_token_id, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	ScanKeyInit(&keys[1], Anum_token_days_day, BTGreaterEqualStrategyNumber, F_DATE_GE, DateADTGetDatum(since));
	begin_lookup(&lookup, APITOKEN_TOKEN_DAYS, NULL, snapshot, 2, keys);
	while (next_row(&lookup, Anum_token_days_accepted))
		add_uses(&lookup, Anum_token_days_accepted, &sum);
	end_lookup(&lookup);
	return sum;
}
