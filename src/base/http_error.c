/*
 * http_error.c
 *		Errors for clients of HTTP.
 *
 * An error with SQLSTATE PGRST and JSON in message and detail is one that
 * PostgREST turns into an HTTP response with this status, these headers and this
 * body.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/json.h"

#include "base/base.h"

static void
append_field(StringInfo json, const char *name, const char *value)
{
	appendStringInfoString(json, json->len == 0 ? "{" : ", ");
	escape_json(json, name);
	appendStringInfoString(json, ": ");
	if (value == NULL)
		appendStringInfoString(json, "null");
	else
		escape_json(json, value);
}

/* Raise an error with this status.  What is for the log only is not in the response. */
void
apitoken_raise_http(const ApitokenHttpError *error)
{
	StringInfoData body;
	StringInfoData headers;

	initStringInfo(&body);
	append_field(&body, "code", error->code);
	append_field(&body, "message", error->message);
	append_field(&body, "details", error->details);
	append_field(&body, "hint", error->hint);
	initStringInfo(&headers);
	for (const ApitokenHttpHeader *header = error->headers; header != NULL && header->name != NULL; header++)
		append_field(&headers, header->name, header->value);
	if (headers.len == 0)
		appendStringInfoChar(&headers, '{');
	ereport(ERROR,
			(errcode(APITOKEN_ERRCODE_POSTGREST),
			 errmsg_internal("%s}", body.data),
			 errdetail_internal("{\"status\": %d, \"headers\": %s}}", error->status, headers.data),
			 error->log == NULL ? 0 : errdetail_log("%s", error->log),
			 /* errcontext() is two expressions */
			 error->context == NULL ? 0 : errcontext_msg("%s", error->context)));
}

/*
 * Within ereport(): a hint in the words of the client, which may be one of SQL or
 * one of HTTP.  NULL: none.
 */
int
apitoken_errhint(const char *sql, const char *http)
{
	const char *hint = apitoken_request_method() != NULL ? http : sql;

	return hint == NULL ? 0 : errhint("%s", hint);
}
