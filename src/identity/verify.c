/*
 * verify.c
 *		Verification of tokens, and verify().
 *
 * These are the checks in their order, each with the verdict if it fails:
 *
 *	1. shape and checksum of the text, or the
 *	   shape of an imported format				malformed
 *	2. the token's row, by primary key (of an
 *	   imported token after its foreign digest,
 *	   see foreign.c)							unknown
 *	3. the digests, in constant time			unknown
 *	   (only callers with the right secret get the following verdicts)
 *	4. revocation of the token					revoked
 *	5. its expiry, by the clock					expired
 *	6. suspension of it, its user or its
 *	   organization								suspended
 *	7. the policy of its organization, or of
 *	   the organization where it is to act		policy_refused
 *	8. the client's address						network_refused
 *	9. the permission, in the organization		permission_refused
 *	10. the quota, when the token is used		quota_exceeded
 *	11. the rate limit, when the token is used	rate_limited
 *
 * The address is the client_address argument, if there is one.  address.c
 * decides whether the argument counts.  It is called only if the token or its
 * organization has a list of networks.
 *
 * All rows are read with one snapshot of the latest committed state, or with a
 * newer one.  Without a permission, a verification makes at most three index
 * probes: the token, its owner, and its role if the session has not cached it
 * (role.c).
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "identity/identity.h"

#define VERDICT_ROW(NAME, name, known, status) {#name, known, status},

const ApitokenVerdictInfo apitoken_verdicts[APITOKEN_VERDICTS] = {VERDICTS(VERDICT_ROW)};

/* Which secret of the token has the digest of this text under the pepper?  -1: none. */
static int
secret_under(const ApitokenPepper *pepper, const char *text, size_t length, const ApitokenRecord *record)
{
	int16		scheme = pepper == NULL ? 0 : pepper->scheme;
	uint8		digest[APITOKEN_DIGEST_LENGTH];
	int			right = -1;

	apitoken_pepper_digest(text, length, pepper, digest);
	for (int i = 0; i < record->secret_count; i++)
	{
		if (record->secrets[i].scheme == scheme && apitoken_digest_matches(digest, record->secrets[i].digest))
			right = i;
	}
	explicit_bzero(digest, sizeof(digest));
	return right;
}

/* The position of a scheme's pepper, -1 for none.  Raises an error if there is none. */
static int
position_of_scheme(const ApitokenPepper *peppers, int count, int16 scheme)
{
	/* a seal of an imported secret is not compared with a digest */
	if (scheme <= 0)
		return -1;
	for (int i = 0; i < count; i++)
	{
		if (peppers[i].scheme == scheme)
			return i;
	}
	(void) apitoken_pepper(scheme);
	ereport(ERROR,
			(errcode(ERRCODE_CONFIG_FILE_ERROR),
			 errmsg("pepper file changed while it was read"),
			 errhint("Try again.")));
}

/*
 * Which secret of the token is this text?  Returns -1 if none, and for a record
 * without secrets, which stands for a token that does not exist.  Previous secrets
 * whose overlap is over count as well.
 *
 * The work of finding none does not depend on the token: it is one digest without
 * a pepper, unless one is required, and one under each pepper of the server.  The
 * scheme of the current secret comes first, so that accepting it takes one digest.
 */
static int
which_secret(const char *text, size_t length, const ApitokenRecord *record, TimestampTz now)
{
	bool		plain = !apitoken_required(&apitoken_require_pepper);
	int			count;
	const ApitokenPepper *peppers = apitoken_usable_peppers(&count);
	int			first = count - 1;
	int			right = -1;

	/* -1 is the scheme without a pepper, the others are positions in "peppers" */
	if (record->secret_count > 0)
		first = position_of_scheme(peppers, count, record->secrets[0].scheme);
	if (first >= 0 || plain)
		right = secret_under(first < 0 ? NULL : &peppers[first], text, length, record);
	for (int i = 1; i < record->secret_count && right < 0; i++)
	{
		/* one that is refused anyway raises no error about its pepper */
		if (record->secrets[i].expires_at > now)
			(void) position_of_scheme(peppers, count, record->secrets[i].scheme);
	}
	for (int i = plain ? -1 : 0; i < count && right < 0; i++)
	{
		if (i != first)
			right = secret_under(i < 0 ? NULL : &peppers[i], text, length, record);
	}
	return right;
}

/* Is this secret of the record accepted?  -1 is none.  If so, the record is completed. */
static bool
accept_secret(int secret, Snapshot snapshot, ApitokenVerification *verification)
{
	ApitokenRecord *record = &verification->record;

	verification->secret = Max(secret, 0);
	if (secret < 0 || record->secrets[secret].expires_at <= verification->at)
		return false;
	verification->secret_ends_at = Min(record->expires_at, record->secrets[secret].expires_at);
	apitoken_complete_token(snapshot, record);
	return true;
}

/*
 * Fetch the token with this text.  The time of a refusal does not tell whether
 * a token with this id exists: in both cases a refusal does two index lookups,
 * reads one row and computes the same digests.
 */
static bool
find_token(const char *text, size_t length, const pg_uuid_t *id, Snapshot snapshot,
		   ApitokenVerification *verification)
{
	ApitokenRecord *record = &verification->record;
	bool		found = apitoken_fetch_token(snapshot, id, record);
	int			secret = which_secret(text, length, record, verification->at);

	if (accept_secret(secret, snapshot, verification))
		return true;
	/* after the digests, which change the processor's caches */
	apitoken_fetch_decoy(snapshot, id, !found);
	return false;
}

/* The same for a text that another system made. */
static bool
find_imported(const char *text, size_t length, Snapshot snapshot, ApitokenVerification *verification)
{
	int			secret = apitoken_find_imported(text, length, snapshot, &verification->record,
												&verification->has_fast_digest, &verification->fast_digest);

	return accept_secret(secret, snapshot, verification);
}

/* Does a list of networks, which may be NULL, allow the client's address? */
static bool
network_allowed(ArrayType *networks, inet *address)
{
	return networks == NULL || apitoken_in_networks(apitoken_client_address(address), networks);
}

/*
 * One step of the decision: if it does not pass, its verdict is the decision.  The
 * rest is what the step saw, for explain_verify(), in the form of psprintf().  It
 * is evaluated only if `steps` is not NULL.  A new step is a line in decide().
 */
#define STEP(verdict, passed, ...) \
	do { \
		bool		passed_ = (passed); \
		if (steps != NULL) \
			add_step(steps, verdict, passed_, psprintf(__VA_ARGS__)); \
		if (!passed_) \
			return verdict; \
	} while (0)

static void
add_step(List **steps, ApitokenVerdict verdict, bool passed, char *saw)
{
	ApitokenStep *step = palloc(sizeof(ApitokenStep));

	step->verdict = verdict;
	step->passed = passed;
	step->saw = saw;
	*steps = lappend(*steps, step);
}

static char *
array_in_words(Oid type, Datum array)
{
	Oid			output;
	bool		is_varlena;

	getTypeOutputInfo(type, &output, &is_varlena);
	return OidOutputFunctionCall(output, array);
}

static const char *
networks_in_words(ArrayType *networks)
{
	return networks == NULL ? "all" : array_in_words(CIDRARRAYOID, PointerGetDatum(networks));
}

static const char *
address_in_words(inet *address)
{
	return address == NULL ? "unknown" : DatumGetCString(DirectFunctionCall1(inet_out, InetPGetDatum(address)));
}

static const char *
time_in_words(TimestampTz at)
{
	return at == DT_NOEND ? "never" : DatumGetCString(DirectFunctionCall1(timestamptz_out, TimestampTzGetDatum(at)));
}

static char *
policy_in_words(const ApitokenRecord *record, const ApitokenStanding *standing)
{
	if (!standing->has_policy)
		return pstrdup("no organization's policy is asked");
	return psprintf("the organization's policy %s the token; max_lifetime: %s; require_expiry: %s%s; the secret is from %s; the token expires: %s",
					standing->policy_refused ? "refuses" : "allows",
					standing->max_lifetime == NULL ? "none" :
					DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(standing->max_lifetime))),
					standing->require_expiry ? "true" : "false",
					record->kind == APITOKEN_ORGANIZATION ? "" :
					standing->allow_personal_tokens ? "; allow_personal_tokens: true" : "; allow_personal_tokens: false",
					time_in_words(record->issued_at), time_in_words(record->expires_at));
}

static ApitokenVerdict
decide(const ApitokenRecord *record, const char *permission, const char *organization_id,
	   inet *address, Snapshot snapshot, TimestampTz now,
	   ApitokenStanding *standing, List **patterns, List **steps)
{
	ApitokenPrincipal principal;

	STEP(APITOKEN_REVOKED, !record->revoked, "the token is %s", passed_ ? "not revoked" : "revoked");
	STEP(APITOKEN_EXPIRED, record->expires_at > now, "the token expires: %s", time_in_words(record->expires_at));
	STEP(APITOKEN_SUSPENDED, !record->suspended, "the token is %s", passed_ ? "not suspended" : "suspended");
	apitoken_principal_of_token(record, &principal);
	apitoken_standing(&principal, organization_id, snapshot, standing);
	STEP(APITOKEN_SUSPENDED, !standing->suspended, "the %s that owns the token is %s",
		 apitoken_kind_name(record->kind), passed_ ? "not suspended" : "suspended, or has no row");
	STEP(APITOKEN_POLICY_REFUSED, !standing->policy_refused, "%s", policy_in_words(record, standing));
	STEP(APITOKEN_NETWORK_REFUSED, network_allowed(record->allowed_networks, address) &&
		 network_allowed(standing->allowed_networks, address),
		 "client address: %s; the token's networks: %s; the organization's networks: %s",
		 address_in_words(apitoken_client_address(address)),
		 networks_in_words(record->allowed_networks), networks_in_words(standing->allowed_networks));
	*patterns = apitoken_effective_patterns(&principal, standing);
	STEP(APITOKEN_PERMISSION_REFUSED, permission == NULL || apitoken_standing_allows(&principal, standing, permission),
		 "permission: %s; role: %s; access: %s; effective patterns: %s",
		 permission == NULL ? "not asked for" : permission, standing->role == NULL ? "none" : standing->role,
		 apitoken_access_to_text(record->access), array_in_words(TEXTARRAYOID, PointerGetDatum(apitoken_strings_to_array(*patterns))));
	/* a token that may do nothing at all in the given organization is refused */
	if (organization_id != NULL)
		STEP(APITOKEN_PERMISSION_REFUSED, *patterns != NIL,
			 "the token may do %s in the given organization", passed_ ? "something" : "nothing at all");
	return APITOKEN_VALID;
}

/*
 * Verify a text with this snapshot; NULL: with one of its own.  If `steps` is not
 * NULL, the steps of the decision are added to it.
 */
static void
verify_text(const char *text, size_t length, const char *permission,
			const char *organization_id, inet *address, Snapshot snapshot, List **steps,
			ApitokenVerification *verification)
{
	ApitokenParts parts;
	bool		native;
	bool		passed;

	memset(verification, 0, sizeof(*verification));
	verification->verdict = APITOKEN_MALFORMED;
	verification->organization_id = organization_id;
	if (permission != NULL)
		apitoken_check_permission(permission);
	native = apitoken_parse_text(text, length, &parts);
	passed = native || apitoken_has_imported_shape(text, length);
	if (steps != NULL)
		add_step(steps, APITOKEN_MALFORMED, passed,
				 passed && !native ? psprintf("the text has the shape of imported tokens: %s", apitoken_imported_shapes(text, length)) :
				 pstrdup(passed ? "the text has the shape of a token, and the right checksum" :
						 "the text does not have the shape of a token, or its checksum is wrong"));
	if (!passed)
		return;

	/* not the transaction's time: a token may expire during the transaction */
	verification->at = GetCurrentTimestamp();
	snapshot = snapshot == NULL ? apitoken_latest_snapshot() : RegisterSnapshot(snapshot);
	verification->verdict = APITOKEN_UNKNOWN;
	passed = native ? find_token(text, length, &parts.id, snapshot, verification) :
		find_imported(text, length, snapshot, verification);
	if (steps != NULL)
		add_step(steps, APITOKEN_UNKNOWN, passed,
				 passed ? psprintf("the secret is right; it ends: %s", time_in_words(verification->secret_ends_at)) :
				 pstrdup(native ? "there is no token with this id, or the secret is wrong" :
						 "no imported token has this text"));
	if (passed)
		verification->verdict = decide(&verification->record, permission, organization_id, address,
									   snapshot, verification->at, &verification->standing,
									   &verification->patterns, steps);
	UnregisterSnapshot(snapshot);
}

void
apitoken_verify(const char *text, size_t length, const char *permission,
				const char *organization_id, inet *address,
				ApitokenVerification *verification)
{
	verify_text(text, length, permission, organization_id, address, NULL, NULL, verification);
}

/*
 * The same for an SQL argument, with a snapshot and steps as in verify_text().  A
 * text too long to be a token is not detoasted.
 */
void
apitoken_verify_in_steps(Datum token, bool isnull, const char *permission,
						 const char *organization_id, inet *address, Snapshot snapshot, List **steps,
						 ApitokenVerification *verification)
{
	text	   *argument;

	if (isnull || toast_raw_datum_size(token) - VARHDRSZ >
		(apitoken_imported_formats_count == 0 ? APITOKEN_TEXT_MAX : APITOKEN_FOREIGN_TEXT_MAX))
	{
		verify_text("", 0, permission, organization_id, address, snapshot, steps, verification);
		return;
	}
	argument = DatumGetTextPP(token);
	verify_text(VARDATA_ANY(argument), VARSIZE_ANY_EXHDR(argument),
				permission, organization_id, address, snapshot, steps, verification);
	if (PointerGetDatum(argument) != token)
		explicit_bzero(argument, VARSIZE_ANY(argument));
}

void
apitoken_verify_datum(Datum token, bool isnull, const char *permission,
					  const char *organization_id, inet *address,
					  ApitokenVerification *verification)
{
	apitoken_verify_in_steps(token, isnull, permission, organization_id, address, NULL, NULL, verification);
}

/* Would a whole record be accepted now, if its secret is right? */
ApitokenVerdict
apitoken_decide_again(const ApitokenRecord *record, Snapshot snapshot)
{
	ApitokenStanding standing;
	List	   *patterns;

	return decide(record, NULL, NULL, NULL, snapshot, GetCurrentTimestamp(), &standing, &patterns, NULL);
}

/* The steps that follow when a token is used: what they would decide now, without a use. */
void
apitoken_explain_use(ApitokenVerification *verification, List **steps)
{
	const ApitokenRecord *record = &verification->record;
	ApitokenVerdict verdict = APITOKEN_VALID;

	if (verification->verdict != APITOKEN_VALID)
		return;
	if (record->rate_limit > 0 || record->quota > 0)
		verdict = apitoken_count_use(record, 1, false, verification->at, &verification->allowance);
	verification->verdict = verdict;
	add_step(steps, APITOKEN_QUOTA_EXCEEDED, verdict != APITOKEN_QUOTA_EXCEEDED,
			 record->quota <= 0 ? pstrdup("quota: none") :
			 psprintf("quota: " INT64_FORMAT "; uses left: " INT64_FORMAT, record->quota, verification->allowance.remaining));
	if (verdict == APITOKEN_QUOTA_EXCEEDED)
		return;
	add_step(steps, APITOKEN_RATE_LIMITED, verdict != APITOKEN_RATE_LIMITED,
			 record->rate_limit <= 0 ? pstrdup("rate limit: none") :
			 psprintf("rate limit: %d per minute; uses left: %s", record->rate_limit,
					  verdict != APITOKEN_RATE_LIMITED ? "at least one" : "none"));
}

/*
 * Count the use of a verified token against its rate limit and its quota, as `cost`
 * uses, and record it.  A token over a limit gets the verdict quota_exceeded or
 * rate_limited instead of valid.  So does a token with a quota whose use finds no
 * room to be recorded: otherwise the quota could forget it.
 * revoke_by_token() does not call this, because a token can also be revoked
 * when it cannot be used.  `may_write`: without preload, may the use be written
 * in this transaction?
 */
void
apitoken_use(ApitokenVerification *verification, int32 cost, inet *address, bool may_write)
{
	const ApitokenRecord *record = &verification->record;

	if (verification->verdict == APITOKEN_VALID && (record->rate_limit > 0 || record->quota > 0))
		verification->verdict = apitoken_count_use(record, cost, true, verification->at, &verification->allowance);
	if ((apitoken_verdicts[verification->verdict].known || verification->secret > 0) &&
		!apitoken_record_use(record, verification->secret, verification->verdict, cost,
							 verification->at, address, may_write) &&
		verification->verdict == APITOKEN_VALID && record->quota > 0)
	{
		verification->verdict = APITOKEN_RATE_LIMITED;
		apitoken_uncount_use(record, cost, verification->at, &verification->allowance);
	}
	if (verification->has_fast_digest && apitoken_verdicts[verification->verdict].known)
		apitoken_record_digest(&record->id, &verification->fast_digest, verification->at, may_write);
	if (verification->verdict == APITOKEN_VALID && record->kind == APITOKEN_USER && verification->organization_id != NULL)
		apitoken_record_seen(&record->id, verification->organization_id, verification->at);
	if (verification->verdict == APITOKEN_VALID && verification->standing.tells_networks)
		apitoken_record_network(&record->id, apitoken_client_address(address), verification->at);
	apitoken_count((ApitokenCounter) verification->verdict, 1);
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

/* Form a value of type apitoken.verification. */
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
		if (verification->secret_ends_at != DT_NOEND)
			set_column(values, nulls, Anum_verification_expires_at, TimestampTzGetDatum(verification->secret_ends_at));
		set_column(values, nulls, Anum_verification_metadata, record->metadata);
		set_text(values, nulls, Anum_verification_secret, verification->secret == 0 ? "current" : "previous");
	}
	if (verification->allowance.counted && record->quota > 0)
		set_column(values, nulls, Anum_verification_remaining, Int64GetDatum(verification->allowance.remaining));
	if (verification->allowance.retry_after > 0)
	{
		Interval   *wait = palloc0(sizeof(Interval));

		wait->time = verification->allowance.retry_after;
		set_column(values, nulls, Anum_verification_retry_after, IntervalPGetDatum(wait));
	}
	return apitoken_form_row(APITOKEN_VERIFICATION_ROW, values, nulls);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_verify_sql);
Datum
apitoken_verify_sql(PG_FUNCTION_ARGS)
{
	char	   *permission = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *organization_id = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	inet	   *address = PG_ARGISNULL(3) ? NULL : PG_GETARG_INET_PP(3);
	int32		cost = PG_ARGISNULL(4) ? 1 : PG_GETARG_INT32(4);
	ApitokenVerification verification;

	if (cost < 1 || cost > APITOKEN_COST_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost of a use is out of range"),
				 errhint("Specify 1 to %d uses.", APITOKEN_COST_MAX)));

	apitoken_verify_datum(PG_GETARG_DATUM(0), PG_ARGISNULL(0), permission, organization_id,
						  address, &verification);
	apitoken_use(&verification, cost, address, true);
	PG_RETURN_DATUM(apitoken_verification_datum(&verification));
}
