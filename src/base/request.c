/*
 * request.c
 *		The HTTP request, as PostgREST passes it in the settings
 *		request.headers and request.jwt.claims, each a JSON object.
 *
 * A setting counts only if it was set in the current transaction, which is what
 * PostgREST does.  An empty value that a finished transaction left behind, and a
 * value set for the session, do not count.
 *
 * The objects are parsed with the server's JSON parser, and not as jsonb: jsonb
 * would keep only one of several headers of the same name.
 */
#include "postgres.h"

#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "base/base.h"

typedef struct ObjectParser
{
	JsonLexContext *lex;
	int			depth;
	bool		is_object;		/* is the outermost value an object? */
	List	   *fields;			/* ApitokenField, of the outermost object */
} ObjectParser;

static APITOKEN_JSON_ACTION
start_nested(void *state)
{
	ObjectParser *parser = state;

	if (parser->depth++ == 0)
		parser->is_object = parser->lex->token_type == JSON_TOKEN_OBJECT_START;
	return APITOKEN_JSON_GO_ON;
}

static APITOKEN_JSON_ACTION
finish_nested(void *state)
{
	((ObjectParser *) state)->depth--;
	return APITOKEN_JSON_GO_ON;
}

static APITOKEN_JSON_ACTION
start_field(void *state, char *name, bool isnull)
{
	ObjectParser *parser = state;

	CHECK_FOR_INTERRUPTS();
	if (parser->depth == 1)
	{
		ApitokenField *field = palloc0(sizeof(ApitokenField));

		field->name = pstrdup(name);
		parser->fields = lappend(parser->fields, field);
	}
	return APITOKEN_JSON_GO_ON;
}

static APITOKEN_JSON_ACTION
add_scalar(void *state, char *token, JsonTokenType type)
{
	ObjectParser *parser = state;

	CHECK_FOR_INTERRUPTS();
	if (parser->depth == 1 && parser->fields != NIL)
	{
		ApitokenField *field = llast(parser->fields);

		if (type == JSON_TOKEN_STRING || type == JSON_TOKEN_NUMBER)
			field->value = pstrdup(token);
		field->is_string = type == JSON_TOKEN_STRING;
	}
	return APITOKEN_JSON_GO_ON;
}

/*
 * Parse a JSON object into a list of ApitokenField, in the order of the text.
 * Returns false if the text is not a JSON object.
 */
static bool
parse_object(const char *json, List **fields)
{
	ObjectParser parser = {0};
	JsonSemAction actions = {0};
	bool		valid;

	parser.lex = compat_json_lexer(json, strlen(json), GetDatabaseEncoding());
	actions.semstate = &parser;
	actions.object_start = start_nested;
	actions.object_end = finish_nested;
	actions.array_start = start_nested;
	actions.array_end = finish_nested;
	actions.object_field_start = start_field;
	actions.scalar = add_scalar;
	valid = pg_parse_json(parser.lex, &actions) == JSON_SUCCESS && parser.is_object;
	*fields = parser.fields;
	return valid;
}

/* Get the request's headers, as a list of ApitokenField.  PostgREST folds their names to lower case. */
ApitokenRequest
apitoken_request_headers(List **headers)
{
	Oid			setter = InvalidOid;
	const char *json = apitoken_request_setting("request.headers", &setter);

	*headers = NIL;
	if (json == NULL)
		return APITOKEN_NO_REQUEST;
	if (!apitoken_setter_counts(setter, apitoken_role_may_use))
		return APITOKEN_FOREIGN_REQUEST;
	return parse_object(json, headers) ? APITOKEN_REQUEST : APITOKEN_BROKEN_REQUEST;
}

/* Returns all headers of this name, as a list of ApitokenField, in order. */
List *
apitoken_header_values(List *headers, const char *name)
{
	List	   *values = NIL;
	ListCell   *lc;

	foreach(lc, headers)
	{
		ApitokenField *field = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (pg_strcasecmp(field->name, name) == 0)
			values = lappend(values, field);
	}
	return values;
}

/*
 * Returns a claim, a string or a number, of the JWT that PostgREST verified, or
 * NULL if there is none.  "setter" is set to the role that set the claims.
 */
char *
apitoken_request_claim(const char *name, Oid *setter)
{
	const char *json = apitoken_request_setting("request.jwt.claims", setter);
	List	   *fields;
	ListCell   *lc;
	char	   *claim = NULL;

	if (json == NULL || !parse_object(json, &fields))
		return NULL;
	foreach(lc, fields)
	{
		ApitokenField *field = lfirst(lc);

		/* As most JSON parsers do, use the last of several claims of this name. */
		if (strcmp(field->name, name) == 0)
			claim = field->value;
	}
	return claim == NULL || *claim == '\0' ? NULL : claim;
}
