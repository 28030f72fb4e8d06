/*
 * introspect.c
 *		introspect(), for gateways: OAuth 2.0 token introspection (RFC 7662).
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"

#include "identity/identity.h"

/* Seconds since 1970, the format of times in RFC 7662. */
static int64
unix_time(TimestampTz at)
{
	return at / USECS_PER_SEC + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
}

static const char *
join_strings(List *strings)
{
	StringInfoData result;
	ListCell   *lc;

	initStringInfo(&result);
	foreach(lc, strings)
		appendStringInfo(&result, "%s%s", result.len == 0 ? "" : " ", (char *) lfirst(lc));
	return result.data;
}

/*
 * Can the token be used for anything at all?  A personal token may be usable in
 * an organization, even if it allows nothing among its user's own things.
 */
static bool
allows_something(const ApitokenVerification *verification)
{
	ApitokenPrincipal principal;

	if (verification->patterns != NIL)
		return true;
	apitoken_principal_of_token(&verification->record, &principal);
	return principal.kind == APITOKEN_USER && apitoken_own_patterns(&principal) != NIL;
}

/*
 * Gateways take the subject alone as the identity that is acting.  Therefore it
 * is never the id of an organization, which may also be the id of a user (RFC
 * 9068, section 5).  If no user is behind a token, the subject is the client
 * (section 2.2), whose id is the token's id.
 */
static void
describe_token(ApitokenJson *state, const ApitokenVerification *verification)
{
	const ApitokenRecord *record = &verification->record;
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&record->id)));

	apitoken_json_string(state, "token_type", "Bearer");
	/* a list of scopes must not be empty (RFC 6749, section 3.3) */
	if (verification->patterns != NIL)
		apitoken_json_string(state, "scope", join_strings(verification->patterns));
	apitoken_json_string(state, "client_id", id);
	apitoken_json_string(state, "jti", id);
	apitoken_json_string(state, "sub", record->kind == APITOKEN_USER ? record->user_id : id);
	if (record->kind == APITOKEN_USER)
		apitoken_json_string(state, "username", record->user_id);
	apitoken_json_integer(state, "iat", unix_time(record->created_at));
	apitoken_json_integer(state, "nbf", unix_time(record->created_at));
	/* gateways cache the answer until then, so this is the end of the given text */
	if (verification->secret_ends_at != DT_NOEND)
		apitoken_json_integer(state, "exp", unix_time(verification->secret_ends_at));
	if (*apitoken_issuer != '\0')
		apitoken_json_string(state, "iss", apitoken_issuer);
	if (*apitoken_audience != '\0')
		apitoken_json_string(state, "aud", apitoken_audience);

	/* members of the extension's own, which RFC 7662, section 2.2 allows */
	apitoken_json_string(state, "label", record->label);
	apitoken_json_string(state, "kind", apitoken_kind_name(record->kind));
	if (record->organization_id != NULL)
		apitoken_json_string(state, "organization_id", record->organization_id);
	if (verification->standing.role != NULL)
		apitoken_json_string(state, "role", verification->standing.role);
	apitoken_json_string(state, "access", apitoken_access_to_text(record->access));
}

/*
 * The answer of RFC 7662.  For a token that is not active, it contains nothing
 * but that (section 2.2).  A gateway caches the answer and asks again now and
 * then, so the call is recorded as a use, and counts against the quota, but not
 * against the rate limit.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_introspect);
Datum
apitoken_introspect(PG_FUNCTION_ARGS)
{
	ApitokenVerification verification;
	ApitokenJson state = {0};
	bool		active;

	apitoken_verify_datum(PG_GETARG_DATUM(0), PG_ARGISNULL(0), NULL, NULL, NULL, &verification);
	if (verification.verdict == APITOKEN_VALID && !allows_something(&verification))
		verification.verdict = APITOKEN_PERMISSION_REFUSED;
	verification.record.rate_limit = 0;
	apitoken_use(&verification, 1, NULL, true);
	active = verification.verdict == APITOKEN_VALID;
	compat_push_json(&state, WJB_BEGIN_OBJECT, NULL);
	apitoken_json_bool(&state, "active", active);
	if (active)
		describe_token(&state, &verification);
	compat_push_json(&state, WJB_END_OBJECT, NULL);
	PG_RETURN_JSONB_P(JsonbValueToJsonb(state.result));
}
