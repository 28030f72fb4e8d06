/*
 * regenerate.c
 *		New secrets of tokens: regenerate_token() and end_overlap().
 *
 * A secret that was promised an overlap is accepted until the overlap ends,
 * whatever regenerations follow, unless one of them has no overlap or the overlaps
 * are ended by end_overlap().  The row keeps up to APITOKEN_PREVIOUS_MAX secrets,
 * each in its place.  One whose overlap is over stays until another secret needs
 * the place, so that its use is recognized.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "manage/manage.h"

/* Lock the token's row, then read it again: concurrent calls run one after the other. */
static void
lock_managed(const pg_uuid_t *id, const char *permission, bool *by_itself, ApitokenRecord *record)
{
	Datum		value = UUIDPGetDatum(id);

	apitoken_fetch_managed(id, permission, by_itself, record);
	apitoken_execute(APITOKEN_LOCK_TOKEN, &value, NULL);
	apitoken_fetch_managed(id, permission, by_itself, record);
}

static Datum
array_of(Datum *values, int count, Oid type)
{
	int16		length;
	bool		byval;
	char		align;

	get_typlenbyvalalign(type, &length, &byval, &align);
	return PointerGetDatum(construct_array(values, count, type, length, byval, align));
}

/* The value of previous_expires_at. */
static Datum
previous_ends(const ApitokenRecord *record)
{
	Datum		ends[APITOKEN_PREVIOUS_MAX];

	for (int i = 1; i < record->secret_count; i++)
		ends[i - 1] = TimestampTzGetDatum(record->secrets[i].expires_at);
	return array_of(ends, record->secret_count - 1, TIMESTAMPTZOID);
}

/* The values of the columns of previous secrets, in the order of APITOKEN_REGENERATE. */
static void
previous_columns(const ApitokenRecord *record, Datum *columns)
{
	int			count = record->secret_count - 1;
	int			length = VARHDRSZ + count * APITOKEN_DIGEST_LENGTH;
	Datum		replaced[APITOKEN_PREVIOUS_MAX];
	Datum		schemes[APITOKEN_PREVIOUS_MAX];
	bytea	   *digests = palloc(length);

	SET_VARSIZE(digests, length);
	for (int i = 0; i < count; i++)
	{
		replaced[i] = TimestampTzGetDatum(record->secrets[i + 1].replaced_at);
		schemes[i] = Int16GetDatum(record->secrets[i + 1].scheme);
		memcpy(VARDATA(digests) + i * APITOKEN_DIGEST_LENGTH, record->secrets[i + 1].digest, APITOKEN_DIGEST_LENGTH);
	}
	columns[0] = previous_ends(record);
	columns[1] = array_of(replaced, count, TIMESTAMPTZOID);
	columns[2] = array_of(schemes, count, INT2OID);
	columns[3] = PointerGetDatum(digests);
}

/* End all overlaps.  Returns how many were not over. */
static int
end_overlaps(ApitokenRecord *record, TimestampTz now)
{
	int			count = 0;

	for (int i = 1; i < record->secret_count; i++)
	{
		if (record->secrets[i].expires_at <= now)
			continue;
		record->secrets[i].expires_at = now;
		count++;
	}
	return count;
}

/* Make the current secret a previous one, which ends at `until`. */
static void
retire_secret(ApitokenRecord *record, TimestampTz until, TimestampTz now)
{
	int			place = record->secret_count;

	if (place < APITOKEN_SECRETS)
		record->secret_count++;
	else
	{
		place = 1;
		for (int i = 2; i < APITOKEN_SECRETS; i++)
		{
			if (record->secrets[i].expires_at < record->secrets[place].expires_at)
				place = i;
		}
		if (record->secrets[place].expires_at > now)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("token has %d previous secrets whose overlap is not over", APITOKEN_PREVIOUS_MAX),
					 apitoken_errhint("Wait for the end of an overlap, or end all of them by end_overlap(id) or by regenerate_token(id, overlap => '0').",
									  "Wait for the end of an overlap, or end all of them by POST /rpc/end_overlap or by \"overlap\": \"0\".")));
	}
	record->secrets[place] = record->secrets[0];
	record->secrets[place].expires_at = until;
	record->secrets[place].replaced_at = now;
}

/* The expiry of a regenerated token.  A token does not prolong its own life. */
static TimestampTz
new_expiry(const ApitokenRecord *record, Interval *expires_in, bool by_itself)
{
	if (expires_in != NULL)
	{
		TimestampTz expires_at = apitoken_expiry_after(expires_in);

		if (by_itself && expires_at > record->expires_at)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("token cannot give itself a later expiration time"),
					 apitoken_errhint("Omit expires_in to keep the expiration time, or specify a shorter interval.",
									  "Omit \"expires_in\" to keep the expiration time, or send a shorter interval.")));
		return expires_at;
	}
	if (record->expires_at <= GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("token is expired"),
				 apitoken_errhint("Use regenerate_token(id, expires_in => '30 days') to set a new expiration time.",
								  "Send \"expires_in\", such as \"30 days\", to set a new expiration time.")));
	return record->expires_at;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_regenerate_token);
Datum
apitoken_regenerate_token(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id;
	bool		by_itself;
	ApitokenRecord record;
	ApitokenParts parts;
	TimestampTz overlap_until = DT_NOBEGIN;
	TimestampTz expires_at;
	TimestampTz policy_ends_at;
	TimestampTz now;
	Snapshot	snapshot;
	char		buffer[APITOKEN_TEXT_MAX + 1];
	bytea	   *digest = palloc(VARHDRSZ + APITOKEN_DIGEST_LENGTH);
	int16		scheme;
	text	   *secret;
	Datum		values[9];
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	if (PG_ARGISNULL(0))
		apitoken_refuse();
	id = PG_GETARG_UUID_P(0);
	lock_managed(id, "token:update", &by_itself, &record);
	if (record.revoked)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("token is revoked"),
				 errhint("Create another token.")));
	snapshot = apitoken_latest_snapshot();
	/* from now on it is one of our own, whose label is unique */
	if (apitoken_is_imported(&record))
		apitoken_check_label_free(&record, snapshot);
	if (by_itself)
		apitoken_check_rotation(&record, snapshot);
	else
		apitoken_check_ceiling(&record, snapshot);

	if (!PG_ARGISNULL(1))
		overlap_until = apitoken_overlap_until(PG_GETARG_INTERVAL_P(1));
	expires_at = new_expiry(&record, PG_ARGISNULL(2) ? NULL : PG_GETARG_INTERVAL_P(2), by_itself);
	/* an overlap makes no secret live longer than it may live alone */
	policy_ends_at = apitoken_check_policy(&record, GetCurrentTransactionStartTimestamp(), expires_at, snapshot);
	UnregisterSnapshot(snapshot);

	now = GetCurrentTimestamp();
	if (overlap_until == DT_NOBEGIN)
	{
		(void) end_overlaps(&record, now);
		overlap_until = now;
	}
	/* a later expiry of the token does not make an old secret live longer */
	for (int i = 1; i < record.secret_count; i++)
		record.secrets[i].expires_at = Min(record.secrets[i].expires_at, record.expires_at);
	retire_secret(&record, Min(overlap_until, Min(record.expires_at, policy_ends_at)), now);

	scheme = apitoken_signing_scheme();
	apitoken_check_random(apitoken_generate_text(apitoken_prefix, record.kind, id, buffer, &parts));
	SET_VARSIZE(digest, VARHDRSZ + APITOKEN_DIGEST_LENGTH);
	apitoken_digest(buffer, strlen(buffer), scheme, (uint8 *) VARDATA(digest));
	secret = cstring_to_text(buffer);
	explicit_bzero(buffer, sizeof(buffer));

	values[0] = UUIDPGetDatum(id);
	values[1] = PointerGetDatum(digest);
	values[2] = Int16GetDatum(scheme);
	values[3] = CStringGetTextDatum(parts.masked);
	values[4] = TimestampTzGetDatum(expires_at);
	if (expires_at == DT_NOEND)
		nulls[4] = 'n';
	previous_columns(&record, &values[5]);
	apitoken_execute(APITOKEN_REGENERATE, values, nulls);
	PG_RETURN_DATUM(apitoken_issued_datum(id, secret, parts.masked, expires_at));
}

/* No ceiling: this gives nobody a permission. */
APITOKEN_FUNCTION_INFO_V1(apitoken_end_overlap);
Datum
apitoken_end_overlap(PG_FUNCTION_ARGS)
{
	ApitokenRecord record;
	Datum		values[2];
	int			count;

	if (PG_ARGISNULL(0))
		apitoken_refuse();
	lock_managed(PG_GETARG_UUID_P(0), "token:update", NULL, &record);
	count = record.revoked ? 0 : end_overlaps(&record, GetCurrentTimestamp());
	if (count > 0)
	{
		values[0] = PG_GETARG_DATUM(0);
		values[1] = previous_ends(&record);
		apitoken_execute(APITOKEN_END_OVERLAP, values, NULL);
	}
	PG_RETURN_INT32(count);
}
