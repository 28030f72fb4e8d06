/*
 * http.c
 *		For automatic APIs: pre_request(), which PostgREST calls before each
 *		request, and introspect(), which gateways call.
 *
 * pre_request() looks for a token in the request's headers, and acts by it;
 * without one it leaves the request to its JWT's user, or anonymous.  Whatever
 * is there and is not exactly one good token is refused, in PostgREST's way of
 * raising an HTTP status: SQLSTATE PGRST, with JSON in message and detail.
 */
#include "postgres.h"

#include <ctype.h>

#include "common/string.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/varlena.h"

#include "apitoken.h"

#define ERRCODE_POSTGREST MAKE_SQLSTATE('P', 'G', 'R', 'S', 'T')

static void
append_field(StringInfo json, const char *name, const char *value)
{
	appendStringInfoString(json, json->len == 0 ? "{" : ", ");
	escape_json(json, name);
	appendStringInfoString(json, ": ");
	escape_json(json, value);
}

static pg_noreturn void refuse(int status, const char *code, const char *message, const char *details,
							   const char *hint, const char *header, const char *value);

/* Refuse the request with this status and, if given, this header. */
static void
refuse(int status, const char *code, const char *message, const char *details,
	   const char *hint, const char *header, const char *value)
{
	StringInfoData body;
	StringInfoData headers;

	initStringInfo(&body);
	append_field(&body, "code", code);
	append_field(&body, "message", message);
	append_field(&body, "details", details);
	append_field(&body, "hint", hint);
	initStringInfo(&headers);
	if (header != NULL)
		append_field(&headers, header, value);
	else
		appendStringInfoChar(&headers, '{');
	ereport(ERROR,
			(errcode(ERRCODE_POSTGREST),
			 errmsg_internal("%s}", body.data),
			 errdetail_internal("{\"status\": %d, \"headers\": %s}}", status, headers.data)));
}

/* RFC 6750, section 3.1: the request is malformed, not the token. */
static pg_noreturn void
refuse_request(const char *details, const char *hint)
{
	refuse(400, "invalid_request", "the request cannot be authenticated", details, hint,
		   "WWW-Authenticate", "Bearer error=\"invalid_request\"");
}

static pg_noreturn void
refuse_token(const ApitokenVerification *verification)
{
	const char *verdict = apitoken_verdict_name(verification->verdict);
	const char *details = psprintf("Verdict: %s.", verdict);

	switch (verification->verdict)
	{
		case APITOKEN_RATE_LIMITED:
			{
				/* RFC 6585 section 4, RFC 9110 section 10.2.3: whole seconds */
				int64		seconds = (verification->retry_after + USECS_PER_SEC - 1) / USECS_PER_SEC;

				if (seconds <= 0)
					refuse(429, verdict, "the token has a rate limit, which cannot be counted here", details,
						   "Ask whoever runs the server: it needs apitoken in shared_preload_libraries.", NULL, NULL);

				refuse(429, verdict, "the token is used too often", details,
					   psprintf("Try again in " INT64_FORMAT " seconds.", seconds),
					   "Retry-After", psprintf(INT64_FORMAT, seconds));
			}
		case APITOKEN_NETWORK_REFUSED:
		case APITOKEN_PERMISSION_REFUSED:
			refuse(403, verdict, "the token may not be used for this request", details,
				   "Ask whoever manages the token.", NULL, NULL);
		default:
			/* RFC 6750, section 3 */
			refuse(401, "invalid_token", "the token is not valid", details,
				   "Check the token, or get another one.",
				   "WWW-Authenticate", "Bearer error=\"invalid_token\"");
	}
}

/*
 * A JWT, which PostgREST has verified, has three parts (RFC 7519, section 3,
 * and RFC 7515, section 3.1); no token of ours has a dot.  One that is masked
 * or cut short has others, and is refused, not taken for somebody else's.
 */
static bool
looks_like_jwt(const char *text)
{
	const char *first = strchr(text, '.');
	const char *second = first == NULL ? NULL : strchr(first + 1, '.');

	return second != NULL && strchr(second + 1, '.') == NULL;
}

/*
 * The token in the value of a header: alone, or after its scheme.  NULL: the
 * header is not about a token of ours, but another kind of credentials.
 */
static char *
token_in_value(const char *header, const char *value)
{
	static const char *const schemes[] = {"Bearer", "Token", "ApiKey"};
	char	   *text = pstrdup(value);
	size_t		length;
	bool		bearer = false;
	bool		named = false;

	text += strspn(text, " \t");
	pg_strip_crlf(text);
	for (length = strlen(text); length > 0 && strchr(" \t", text[length - 1]) != NULL; length--)
		text[length - 1] = '\0';
	length = strcspn(text, " \t");
	for (int i = 0; i < lengthof(schemes); i++)
	{
		if (length != strlen(schemes[i]) || pg_strncasecmp(text, schemes[i], length) != 0)
			continue;
		named = true;
		bearer = i == 0;
		text += length;
		text += strspn(text, " \t");
		break;
	}
	if (pg_strcasecmp(header, "authorization") == 0)
	{
		/* Basic, Digest, ...: has a scheme, and none of those */
		if (!named && text[length] != '\0')
			return NULL;
		if (bearer && looks_like_jwt(text))
			return NULL;
	}
	return text;
}

/* The token of the request; NULL: it has none. */
static char *
find_token(void)
{
	List	   *headers;
	List	   *names;
	ListCell   *lc;
	char	   *token = NULL;

	switch (apitoken_request_headers(&headers))
	{
		case APITOKEN_NO_REQUEST:
			return NULL;
		case APITOKEN_BROKEN_REQUEST:
			refuse_request("The setting request.headers is not a JSON object.", "Check the gateway in front of the database.");
		case APITOKEN_REQUEST:
			break;
	}
	if (*apitoken_client_address_header != '\0' &&
		list_length(apitoken_header_values(headers, apitoken_client_address_header)) > 1)
		refuse_request("There are several headers with the client's address.", "Have the proxy join them, or send one.");

	(void) SplitGUCList(pstrdup(apitoken_token_headers), ',', &names);
	foreach(lc, names)
	{
		List	   *values = apitoken_header_values(headers, lfirst(lc));
		ListCell   *value;

		foreach(value, values)
		{
			ApitokenField *field = lfirst(value);
			char	   *found;

			if (!field->is_string)
				refuse_request("A header that may hold a token is not a string.", "Check the gateway in front of the database.");
			found = token_in_value(lfirst(lc), field->value);
			if (found != NULL && (token != NULL || list_length(values) > 1))
				refuse_request("There are several tokens.", "Send one token, in one header.");
			if (found != NULL)
				token = found;
		}
	}
	return token;
}

PG_FUNCTION_INFO_V1(apitoken_pre_request);
Datum
apitoken_pre_request(PG_FUNCTION_ARGS)
{
	char	   *token = find_token();
	ApitokenVerification verification;

	if (token == NULL)
	{
		/* latches the JWT's user, if there is one */
		(void) apitoken_principal();
		PG_RETURN_VOID();
	}
	apitoken_sync_identity();
	apitoken_verify(token, strlen(token), NULL, NULL, NULL, &verification);
	apitoken_use(&verification, NULL, true);
	if (verification.verdict != APITOKEN_VALID)
		refuse_token(&verification);
	apitoken_act_by(&verification);
	PG_RETURN_VOID();
}

/* ---- introspection ---- */

/* Seconds since 1970, as RFC 7662 has times. */
static int64
unix_time(TimestampTz at)
{
	return at / USECS_PER_SEC + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
}

static const char *
joined(List *strings)
{
	StringInfoData result;
	ListCell   *lc;

	initStringInfo(&result);
	foreach(lc, strings)
		appendStringInfo(&result, "%s%s", result.len == 0 ? "" : " ", (char *) lfirst(lc));
	return result.data;
}

/*
 * Can the token be used for anything at all?  A personal one can in some
 * organization, maybe, also if its user has no things of their own.
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
 * The subject is what gateways take for who is acting, by itself: never an
 * organization's id, which may be somebody's user id as well (RFC 9068,
 * section 5).  Where no user is behind a token, it is the client (section 2.2).
 */
static void
describe_token(JsonbParseState **state, const ApitokenVerification *verification)
{
	const ApitokenRecord *record = &verification->record;
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&record->id)));

	apitoken_json_string(state, "token_type", "Bearer");
	/* a list of scopes is never empty (RFC 6749, section 3.3) */
	if (verification->patterns != NIL)
		apitoken_json_string(state, "scope", joined(verification->patterns));
	apitoken_json_string(state, "client_id", id);
	apitoken_json_string(state, "jti", id);
	apitoken_json_string(state, "sub", record->kind == APITOKEN_USER ? record->user_id : id);
	if (record->kind == APITOKEN_USER)
		apitoken_json_string(state, "username", record->user_id);
	apitoken_json_integer(state, "iat", unix_time(record->created_at));
	apitoken_json_integer(state, "nbf", unix_time(record->created_at));
	/* gateways remember the answer until then: so the end of this very text */
	if (verification->secret_ends_at != DT_NOEND)
		apitoken_json_integer(state, "exp", unix_time(verification->secret_ends_at));
	if (*apitoken_issuer != '\0')
		apitoken_json_string(state, "iss", apitoken_issuer);
	if (*apitoken_audience != '\0')
		apitoken_json_string(state, "aud", apitoken_audience);

	/* members of our own, as section 2.2 allows */
	apitoken_json_string(state, "label", record->label);
	apitoken_json_string(state, "kind", record->kind == APITOKEN_ORGANIZATION ? "organization" : "user");
	if (record->organization_id != NULL)
		apitoken_json_string(state, "organization_id", record->organization_id);
	if (verification->standing.role != NULL)
		apitoken_json_string(state, "role", verification->standing.role);
	apitoken_json_string(state, "access", apitoken_access_to_text(record->access));
}

/*
 * RFC 7662.  Of a token that is not active nothing else is said (section 2.2).
 * A gateway remembers the answer and asks again now and then, so it counts as
 * a use but not against the rate limit.
 */
PG_FUNCTION_INFO_V1(apitoken_introspect);
Datum
apitoken_introspect(PG_FUNCTION_ARGS)
{
	ApitokenVerification verification;
	JsonbParseState *state = NULL;
	bool		active;

	apitoken_verify_datum(PG_GETARG_DATUM(0), PG_ARGISNULL(0), NULL, NULL, NULL, &verification);
	if (verification.verdict == APITOKEN_VALID && !allows_something(&verification))
		verification.verdict = APITOKEN_PERMISSION_REFUSED;
	verification.record.rate_limit = 0;
	apitoken_use(&verification, NULL, true);
	active = verification.verdict == APITOKEN_VALID;
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	apitoken_json_bool(&state, "active", active);
	if (active)
		describe_token(&state, &verification);
	PG_RETURN_JSONB_P(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}
