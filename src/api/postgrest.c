/*
 * postgrest.c
 *		pre_request(), which PostgREST calls before each request.
 *
 * It looks for a token in the request's headers, and acts by it.  Without a
 * token, the request has the identity of its JWT's user, or is anonymous.  If
 * the headers contain anything but exactly one valid token, the request is
 * refused by an error that PostgREST turns into an HTTP status: SQLSTATE PGRST,
 * with JSON in message and detail.
 */
#include "postgres.h"

#include <ctype.h>

#include "access/xact.h"
#include "common/base64.h"
#include "common/string.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/varlena.h"

#include "identity/identity.h"

static pg_noreturn void refuse(int status, const char *code, const char *message, const char *details,
							   const char *hint, const ApitokenHttpHeader *headers);

/* Refuse the request with this status and, if given, these headers. */
static void
refuse(int status, const char *code, const char *message, const char *details,
	   const char *hint, const ApitokenHttpHeader *headers)
{
	const ApitokenHttpError error = {
		.status = status, .code = code, .message = message, .details = details, .hint = hint,
		.headers = headers
	};

	apitoken_raise_http(&error);
}

/* Refuse a malformed request (RFC 6750, section 3.1). */
static pg_noreturn void
refuse_request(const char *details, const char *hint)
{
	refuse(400, "invalid_request", "cannot authenticate the request", details, hint,
		   (ApitokenHttpHeader[]) {{"WWW-Authenticate", "Bearer error=\"invalid_request\""}, {NULL, NULL}});
}

/* One of the policies that limit a token, for the fields below. */
static void
append_policy(StringInfo policies, StringInfo limits, const char *name, int64 quota, int64 window,
			  int64 remaining, int64 reset)
{
	const char *separator = policies->len == 0 ? "" : ", ";

	appendStringInfo(policies, "%s\"%s\";q=" INT64_FORMAT, separator, name, quota);
	if (window > 0)
		appendStringInfo(policies, ";w=" INT64_FORMAT, window);
	appendStringInfo(limits, "%s\"%s\";r=" INT64_FORMAT, separator, name, remaining);
	if (reset > 0)
		appendStringInfo(limits, ";t=" INT64_FORMAT, (reset + USECS_PER_SEC - 1) / USECS_PER_SEC);
}

/*
 * Add the fields RateLimit-Policy and RateLimit of the Internet-Draft
 * draft-ietf-httpapi-ratelimit-headers-10, which say what the limits of a token are
 * and what is left, and Retry-After if the request is refused and may be repeated
 * (RFC 9110, section 10.2.3: whole seconds).  Returns the array.
 */
static const ApitokenHttpHeader *
limit_headers(const ApitokenVerification *verification)
{
	const ApitokenRecord *record = &verification->record;
	const ApitokenAllowance *allowance = &verification->allowance;
	ApitokenHttpHeader *headers = palloc0(4 * sizeof(ApitokenHttpHeader));
	ApitokenHttpHeader *next = headers;
	StringInfoData policies;
	StringInfoData limits;

	if (allowance->retry_after > 0)
		*next++ = (ApitokenHttpHeader) {"Retry-After",
			psprintf(INT64_FORMAT, (allowance->retry_after + USECS_PER_SEC - 1) / USECS_PER_SEC)};
	if (!allowance->counted)
		return headers;
	initStringInfo(&policies);
	initStringInfo(&limits);
	if (record->rate_limit > 0)
		append_policy(&policies, &limits, "minute", record->rate_limit, SECS_PER_MINUTE,
					  allowance->rate_remaining, allowance->rate_reset);
	if (record->quota > 0)
	{
		static const char *const names[] = {
			[APITOKEN_LIFE] = "life",[APITOKEN_MONTH] = "month",[APITOKEN_DAY] = "day"
		};

		append_policy(&policies, &limits, names[record->quota_period], record->quota,
					  allowance->quota_window / USECS_PER_SEC, allowance->remaining, allowance->quota_reset);
	}
	*next++ = (ApitokenHttpHeader) {"RateLimit-Policy", policies.data};
	*next++ = (ApitokenHttpHeader) {"RateLimit", limits.data};
	return headers;
}

/*
 * Add headers to the response, by the setting that PostgREST reads: a JSON array
 * of objects.  Headers that are there already are kept.  A value that is not an
 * array is left to PostgREST, which reports it.
 */
static void
add_response_headers(const ApitokenHttpHeader *headers)
{
	const char *present = GetConfigOption("response.headers", true, false);
	StringInfoData array;

	/* parallel workers could not get the setting */
	if (headers->name == NULL || IsInParallelMode())
		return;
	initStringInfo(&array);
	appendStringInfoString(&array, present == NULL ? "" : present);
	while (array.len > 0 && isspace((unsigned char) array.data[array.len - 1]))
		array.data[--array.len] = '\0';
	if (array.len == 0)
		appendStringInfoChar(&array, '[');
	else if (array.data[array.len - 1] == ']')
	{
		bool		empty;

		array.data[--array.len] = '\0';
		empty = array.data[strspn(array.data, " \t\r\n[")] == '\0';
		appendStringInfoString(&array, empty ? "" : ", ");
	}
	else
		return;
	for (; headers->name != NULL; headers++)
	{
		appendStringInfoChar(&array, '{');
		escape_json(&array, headers->name);
		appendStringInfoString(&array, ": ");
		escape_json(&array, headers->value);
		appendStringInfoString(&array, headers[1].name != NULL ? "}, " : "}]");
	}
	(void) set_config_option("response.headers", array.data, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

static pg_noreturn void
refuse_token(const ApitokenVerification *verification)
{
	const char *verdict = apitoken_verdicts[verification->verdict].name;
	int			status = apitoken_verdicts[verification->verdict].http_status;
	const char *details = psprintf("Verdict: %s.", verdict);

	switch (status)
	{
		case 429:
			{
				/* RFC 6585, section 4 */
				bool		quota = verification->verdict == APITOKEN_QUOTA_EXCEEDED;
				int64		seconds = (verification->allowance.retry_after + USECS_PER_SEC - 1) / USECS_PER_SEC;

				if (apitoken_shared == NULL)
					refuse(status, verdict, quota ? "cannot verify a token with a quota on this server" :
						   "cannot verify a token with a rate limit on this server", details,
						   "Ask the server administrator to add \"apitoken\" to \"shared_preload_libraries\".", NULL);

				refuse(status, verdict, quota ? "quota of the token exceeded" : "rate limit of the token exceeded", details,
					   seconds > 0 ? psprintf("Try again in " INT64_FORMAT " seconds.", seconds) : "Contact the owner of the token.",
					   limit_headers(verification));
			}
		case 403:
			refuse(status, verdict, "permission denied to use the token for this request", details,
				   "Contact the owner of the token.", NULL);
		default:
			/* RFC 6750, section 3 */
			refuse(status, "invalid_token", "invalid token", details,
				   "Check the token, or use another one.",
				   (ApitokenHttpHeader[]) {{"WWW-Authenticate", "Bearer error=\"invalid_token\""}, {NULL, NULL}});
	}
}

/*
 * Is this a JWT?  PostgREST has verified it.  A JWT has three parts in base64url,
 * separated by dots (RFC 7519, section 3, and RFC 7515, section 3.1); without a
 * signature, the last part is empty.  Everything else is taken for a token, and
 * refused.  A token within something of this form is refused as well.
 */
static bool
is_jwt(const char *text)
{
	const char *end = text;

	for (int part = 0; part < 3; part++)
	{
		size_t		length = strspn(end, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_");

		if (part < 2 && (length == 0 || end[length++] != '.'))
			return false;
		end += length;
	}
	return *end == '\0' && !apitoken_holds_token(text, end - text);
}

/*
 * Do these credentials contain a token in base64, as Basic encodes a user's name
 * and password?  Clients also leave out the padding, or use the alphabet of
 * base64url.
 */
static bool
encodes_token(const char *credentials, size_t length)
{
	char	   *encoded = palloc(length + 4);
	char	   *decoded;
	int			decoded_length;

	while (length > 0 && credentials[length - 1] == '=')
		length--;
	for (size_t i = 0; i < length; i++)
		encoded[i] = credentials[i] == '-' ? '+' : credentials[i] == '_' ? '/' : credentials[i];
	while (length % 4 != 0)
		encoded[length++] = '=';
	decoded = palloc(pg_b64_dec_len(length));
	decoded_length = pg_b64_decode(encoded, length, (void *) decoded, pg_b64_dec_len(length));
	return decoded_length >= 0 && apitoken_holds_secret(decoded, decoded_length);
}

/*
 * Are these credentials of another scheme (RFC 9110, section 11.4), such as
 * Basic or Digest?  Not if they contain a token.
 */
static bool
is_another_scheme(const char *text, size_t scheme_length)
{
	const char *credentials = text + scheme_length + strspn(text + scheme_length, " \t");
	size_t		length = strlen(credentials);

	return length > 0 && apitoken_is_http_token(text, scheme_length) &&
		!apitoken_holds_secret(credentials, length) && !encodes_token(credentials, length);
}

/*
 * The token in the value of a header: the whole value, or what follows the
 * scheme.  NULL if the header has credentials of another kind.  A value that is
 * neither is not a token either; it is returned, and refused as malformed.
 */
static char *
token_in_value(const char *header, const char *value)
{
	static const char *const schemes[] = {"Bearer", "Token", "ApiKey", "Api-Key"};
	char	   *text = pstrdup(value);
	size_t		length;
	bool		bearer = false;
	bool		has_scheme = false;

	text += strspn(text, " \t");
	pg_strip_crlf(text);
	for (length = strlen(text); length > 0 && strchr(" \t", text[length - 1]) != NULL; length--)
		text[length - 1] = '\0';
	length = strcspn(text, " \t");
	for (int i = 0; i < lengthof(schemes); i++)
	{
		if (length != strlen(schemes[i]) || pg_strncasecmp(text, schemes[i], length) != 0)
			continue;
		has_scheme = true;
		bearer = i == 0;
		text += length;
		text += strspn(text, " \t");
		break;
	}
	if (pg_strcasecmp(header, "authorization") == 0 &&
		(has_scheme ? bearer && is_jwt(text) : is_another_scheme(text, length)))
		return NULL;
	return text;
}

/* The token of the request; NULL if it has none. */
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
			refuse_request("The setting \"request.headers\" is not a JSON object.", "Check the gateway in front of the database.");
		case APITOKEN_FOREIGN_REQUEST:
			refuse_request("A function of another role set the setting \"request.headers\".", "Call apitoken.pre_request() before other functions.");
		case APITOKEN_REQUEST:
			break;
	}
	if (*apitoken_client_address_header != '\0' &&
		list_length(apitoken_header_values(headers, apitoken_client_address_header)) > 1)
		refuse_request("The request has several headers with the client address.", "Configure the proxy to join these headers, or send only one.");

	(void) SplitGUCList(pstrdup(apitoken_token_headers), ',', &names);
	foreach(lc, names)
	{
		List	   *values = apitoken_header_values(headers, lfirst(lc));
		ListCell   *value;

		foreach(value, values)
		{
			ApitokenField *field = lfirst(value);
			char	   *found;

			CHECK_FOR_INTERRUPTS();
			if (!field->is_string)
				refuse_request("A header that can contain a token is not a string.", "Check the gateway in front of the database.");
			found = token_in_value(lfirst(lc), field->value);
			if (found != NULL && (token != NULL || list_length(values) > 1))
				refuse_request("The request has several tokens.", "Send one token in one header.");
			if (found != NULL)
				token = found;
		}
	}
	return token;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_pre_request);
Datum
apitoken_pre_request(PG_FUNCTION_ARGS)
{
	char	   *token = find_token();
	ApitokenVerification verification;

	if (token == NULL)
	{
		/* this fixes the identity to the user of the JWT, if there is one */
		(void) apitoken_principal();
		PG_RETURN_VOID();
	}
	apitoken_sync_identity();
	apitoken_verify(token, strlen(token), NULL, NULL, NULL, &verification);
	apitoken_use(&verification, 1, NULL, true);
	if (verification.verdict != APITOKEN_VALID)
		refuse_token(&verification);
	apitoken_act_by(&verification);
	add_response_headers(limit_headers(&verification));
	PG_RETURN_VOID();
}
