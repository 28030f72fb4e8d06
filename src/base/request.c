/*
 * request.c
 *		What PostgREST tells of an HTTP request, in settings: request.headers
 *		and request.jwt.claims, each a JSON object.
 *
 * They count only if they were set in this transaction, as PostgREST does it;
 * what a finished transaction left behind (empty) or a session has set is no
 * request.  Names and values are read by the server's JSON parser, but one
 * after the other: of two headers of one name none may be lost.
 */
#include "postgres.h"

#include "common/jsonapi.h"
#include "mb/pg_wchar.h"

#include "base/base.h"

typedef struct Reading
{
	JsonLexContext *lex;
	int			depth;
	char	   *name;			/* of the value to come, in the outermost object */
	bool		is_object;
	List	   *fields;
} Reading;

static APITOKEN_JSON_ACTION
begin_nested(void *state)
{
	Reading    *reading = state;

	if (reading->depth++ == 0)
		reading->is_object = reading->lex->token_type == JSON_TOKEN_OBJECT_START;
	return APITOKEN_JSON_GO_ON;
}

static APITOKEN_JSON_ACTION
end_nested(void *state)
{
	((Reading *) state)->depth--;
	return APITOKEN_JSON_GO_ON;
}

static APITOKEN_JSON_ACTION
begin_field(void *state, char *name, bool isnull)
{
	Reading    *reading = state;

	if (reading->depth == 1)
	{
		ApitokenField *field = palloc0(sizeof(ApitokenField));

		field->name = pstrdup(name);
		reading->fields = lappend(reading->fields, field);
	}
	return APITOKEN_JSON_GO_ON;
}

static APITOKEN_JSON_ACTION
read_scalar(void *state, char *token, JsonTokenType type)
{
	Reading    *reading = state;

	if (reading->depth == 1 && reading->fields != NIL)
	{
		ApitokenField *field = llast(reading->fields);

		if (type == JSON_TOKEN_STRING || type == JSON_TOKEN_NUMBER)
			field->value = pstrdup(token);
		field->is_string = type == JSON_TOKEN_STRING;
	}
	return APITOKEN_JSON_GO_ON;
}

/* The fields of a JSON object, in order; false: it is none. */
static bool
read_object(const char *json, List **fields)
{
	Reading		reading = {0};
	JsonSemAction actions = {0};
	bool		good;

	reading.lex = compat_json_lexer(json, strlen(json), GetDatabaseEncoding());
	actions.semstate = &reading;
	actions.object_start = begin_nested;
	actions.object_end = end_nested;
	actions.array_start = begin_nested;
	actions.array_end = end_nested;
	actions.object_field_start = begin_field;
	actions.scalar = read_scalar;
	good = pg_parse_json(reading.lex, &actions) == JSON_SUCCESS && reading.is_object;
	*fields = reading.fields;
	return good;
}

/* The request's headers, as a list of ApitokenField.  PostgREST's names are in lower case. */
ApitokenRequest
apitoken_request_headers(List **headers)
{
	const char *json = apitoken_request_setting("request.headers", NULL);

	*headers = NIL;
	if (json == NULL)
		return APITOKEN_NO_REQUEST;
	return read_object(json, headers) ? APITOKEN_REQUEST : APITOKEN_BROKEN_REQUEST;
}

/* The values of a header, in order. */
List *
apitoken_header_values(List *headers, const char *name)
{
	List	   *values = NIL;
	ListCell   *lc;

	foreach(lc, headers)
	{
		ApitokenField *field = lfirst(lc);

		if (pg_strcasecmp(field->name, name) == 0)
			values = lappend(values, field);
	}
	return values;
}

/*
 * A claim of the JWT that PostgREST has verified, a string or a number, and
 * the role that told us; NULL: there is none.
 */
char *
apitoken_request_claim(const char *name, Oid *setter)
{
	const char *json = apitoken_request_setting("request.jwt.claims", setter);
	List	   *fields;
	ListCell   *lc;
	char	   *claim = NULL;

	if (json == NULL || !read_object(json, &fields))
		return NULL;
	foreach(lc, fields)
	{
		ApitokenField *field = lfirst(lc);

		/* JSON's common reading: the last of several wins */
		if (strcmp(field->name, name) == 0)
			claim = field->value;
	}
	return claim == NULL || *claim == '\0' ? NULL : claim;
}
