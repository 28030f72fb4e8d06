/*
 * verify.c
 *		The decision: facts in, verdict out; then verify().
 *
 *	1. shape and checksum of the text			malformed
 *	2. the token's row, by primary key			unknown
 *	3. the digest, in constant time				unknown
 *	   (from here on only to who has the right secret)
 *	4. revoked									revoked
 *	5. its expiry, by the clock					expired
 *	6. it, its user or organization suspended	suspended
 *	7. the client's address						network_refused
 *	8. what was asked, where it was asked		permission_refused
 *	9. the rate limit, where the token is used	rate_limited
 *
 * The address is the client_address argument, if any: address.c says whether
 * it counts, and is asked only when it matters.
 *
 * All is read with one snapshot of the latest committed state, or a newer one.
 * Without a permission that makes three probes at most: the token, its owner,
 * and a role that the session does not remember (role.c).
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "identity/identity.h"

#define VERDICT_ROW(NAME, name, known, status) {#name, known, status},

const ApitokenVerdictInfo apitoken_verdicts[APITOKEN_VERDICTS] = {VERDICTS(VERDICT_ROW)};

static bool
digest_matches(const char *text, size_t length, int16 scheme, const uint8 *stored)
{
	uint8		digest[APITOKEN_DIGEST_LENGTH];
	bool		matches;

	apitoken_digest(text, length, scheme, digest);
	matches = apitoken_digest_matches(digest, stored);
	explicit_bzero(digest, sizeof(digest));
	return matches;
}

/* Is this the token's secret, or the one before, and until when? */
static bool
secret_is_right(const char *text, size_t length, const ApitokenRecord *record, TimestampTz now,
				TimestampTz *ends_at)
{
	*ends_at = record->expires_at;
	if (digest_matches(text, length, record->digest_scheme, record->digest))
		return true;
	*ends_at = Min(record->expires_at, record->previous_expires_at);
	if (record->previous_expires_at > now)
		return digest_matches(text, length, record->previous_digest_scheme, record->previous_digest);
	apitoken_decoy_digest(text, length);
	return false;
}

/*
 * The token of this text.  A clock does not tell whether there is one of this
 * id with another secret or none at all: either way a refusal looks into the
 * index twice, reads one row and computes two digests.
 */
static bool
find_token(const char *text, size_t length, const pg_uuid_t *id, Snapshot snapshot,
		   ApitokenVerification *verification)
{
	bool		found = apitoken_fetch_token(snapshot, id, &verification->record);

	if (found && secret_is_right(text, length, &verification->record, verification->at,
								 &verification->secret_ends_at))
		return true;
	if (!found)
	{
		apitoken_decoy_digest(text, length);
		apitoken_decoy_digest(text, length);
	}
	/* after the digests in either case: they change what the processor's caches hold */
	apitoken_fetch_decoy(snapshot, id, !found);
	return false;
}

static ApitokenVerdict
decide(const ApitokenRecord *record, const char *permission, const char *organization_id,
	   inet *address, Snapshot snapshot, TimestampTz now,
	   ApitokenStanding *standing, List **patterns)
{
	ApitokenPrincipal principal;

	if (record->revoked)
		return APITOKEN_REVOKED;
	if (record->expires_at <= now)
		return APITOKEN_EXPIRED;
	if (record->suspended)
		return APITOKEN_SUSPENDED;
	apitoken_principal_of_token(record, &principal);
	apitoken_standing(&principal, organization_id, snapshot, standing);
	if (standing->suspended)
		return APITOKEN_SUSPENDED;
	if (record->allowed_networks != NULL &&
		!apitoken_in_networks(apitoken_client_address(address), record->allowed_networks))
		return APITOKEN_NETWORK_REFUSED;
	if (permission != NULL && !apitoken_standing_allows(&principal, standing, permission))
		return APITOKEN_PERMISSION_REFUSED;
	/* asked about a place where it may do nothing at all */
	*patterns = apitoken_effective_patterns(&principal, standing);
	if (organization_id != NULL && *patterns == NIL)
		return APITOKEN_PERMISSION_REFUSED;
	return APITOKEN_VALID;
}

void
apitoken_verify(const char *text, size_t length, const char *permission,
				const char *organization_id, inet *address,
				ApitokenVerification *verification)
{
	ApitokenParts parts;
	Snapshot	snapshot;

	memset(verification, 0, sizeof(*verification));
	verification->verdict = APITOKEN_MALFORMED;
	if (permission != NULL)
		apitoken_check_permission(permission);
	if (!apitoken_parse_text(text, length, &parts))
		return;

	/* not the transaction's time: an expiry is seen as it happens */
	verification->at = GetCurrentTimestamp();
	snapshot = apitoken_latest_snapshot();
	verification->verdict = APITOKEN_UNKNOWN;
	if (find_token(text, length, &parts.id, snapshot, verification))
		verification->verdict = decide(&verification->record, permission, organization_id, address,
									   snapshot, verification->at, &verification->standing,
									   &verification->patterns);
	UnregisterSnapshot(snapshot);
}

/* The same for an argument, of which a text too long to be a token is not read. */
void
apitoken_verify_datum(Datum token, bool isnull, const char *permission,
					  const char *organization_id, inet *address,
					  ApitokenVerification *verification)
{
	text	   *argument;

	if (isnull || toast_raw_datum_size(token) - VARHDRSZ > APITOKEN_TEXT_MAX)
	{
		apitoken_verify("", 0, permission, organization_id, address, verification);
		return;
	}
	argument = DatumGetTextPP(token);
	apitoken_verify(VARDATA_ANY(argument), VARSIZE_ANY_EXHDR(argument),
					permission, organization_id, address, verification);
	if (PointerGetDatum(argument) != token)
		explicit_bzero(argument, VARSIZE_ANY(argument));
}

/*
 * What was verified is used: that counts against the token's rate limit, which
 * may refuse it yet, and is recorded.  (revoke_by_token() verifies only: a
 * token can be ended that nobody may use.)  `may_write`: whether without
 * preload the use may be written in this transaction.
 */
void
apitoken_use(ApitokenVerification *verification, inet *address, bool may_write)
{
	const ApitokenRecord *record = &verification->record;

	if (verification->verdict == APITOKEN_VALID && record->rate_limit > 0 &&
		!apitoken_within_limit(&record->id, record->rate_limit, &verification->retry_after))
		verification->verdict = APITOKEN_RATE_LIMITED;
	apitoken_record_use(verification->verdict,
						apitoken_verdicts[verification->verdict].known ? &record->id : NULL,
						verification->at, address, may_write);
}

static void
set_column(Datum *values, bool *nulls, AttrNumber column, Datum value)
{
	values[column - 1] = value;
	nulls[column - 1] = false;
}

static void
set_text(Datum *values, bool *nulls, AttrNumber column, const char *value)
{
	if (value != NULL)
		set_column(values, nulls, column, CStringGetTextDatum(value));
}

/* A verification as a value of type apitoken.verification. */
Datum
apitoken_verification_datum(const ApitokenVerification *verification)
{
	const ApitokenRecord *record = &verification->record;
	const ApitokenStanding *standing = &verification->standing;
	Datum		values[Natts_verification] = {0};
	bool		nulls[Natts_verification];

	memset(nulls, true, sizeof(nulls));
	set_column(values, nulls, Anum_verification_valid, BoolGetDatum(verification->verdict == APITOKEN_VALID));
	set_text(values, nulls, Anum_verification_verdict, apitoken_verdicts[verification->verdict].name);
	if (apitoken_verdicts[verification->verdict].known)
	{
		set_column(values, nulls, Anum_verification_token_id, UUIDPGetDatum(&record->id));
		set_text(values, nulls, Anum_verification_label, record->label);
	}
	if (verification->verdict == APITOKEN_VALID)
	{
		set_text(values, nulls, Anum_verification_kind, apitoken_kind_name(record->kind));
		set_text(values, nulls, Anum_verification_organization_id, record->organization_id);
		set_text(values, nulls, Anum_verification_user_id, record->user_id);
		set_text(values, nulls, Anum_verification_role, standing->role);
		set_text(values, nulls, Anum_verification_access, apitoken_access_to_text(record->access));
		set_column(values, nulls, Anum_verification_permissions,
				   PointerGetDatum(apitoken_strings_to_array(verification->patterns)));
		set_column(values, nulls, Anum_verification_groups,
				   PointerGetDatum(standing->groups != NULL ? standing->groups : construct_empty_array(TEXTOID)));
		if (record->expires_at != DT_NOEND)
			set_column(values, nulls, Anum_verification_expires_at, TimestampTzGetDatum(record->expires_at));
		set_column(values, nulls, Anum_verification_metadata, record->metadata);
	}
	if (verification->retry_after > 0)
	{
		Interval   *wait = palloc0(sizeof(Interval));

		wait->time = verification->retry_after;
		set_column(values, nulls, Anum_verification_retry_after, IntervalPGetDatum(wait));
	}
	return apitoken_form_row(APITOKEN_VERIFICATION_ROW, values, nulls);
}

PG_FUNCTION_INFO_V1(apitoken_verify_sql);
Datum
apitoken_verify_sql(PG_FUNCTION_ARGS)
{
	char	   *permission = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *organization_id = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	inet	   *address = PG_ARGISNULL(3) ? NULL : PG_GETARG_INET_PP(3);
	ApitokenVerification verification;

	apitoken_verify_datum(PG_GETARG_DATUM(0), PG_ARGISNULL(0), permission, organization_id,
						  address, &verification);
	apitoken_use(&verification, address, true);
	PG_RETURN_DATUM(apitoken_verification_datum(&verification));
}
