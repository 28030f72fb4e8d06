/*
 * request.c
 *		The HTTP request, as PostgREST passes it in the settings
 *		request.headers and request.jwt.claims, each a JSON object, and
 *		request.method.
 *
 * A setting counts only if it was set in the current transaction, which is what
 * PostgREST does.  An empty value that a finished transaction left behind, and a
 * value set for the session, do not count.
 *
 * The objects are not parsed as jsonb, because jsonb would keep only one of
 * several headers of the same name.  They are read with the server's lexer, but
 * not with its parser: that is recursive, and nested arrays make it raise an
 * error.  Whatever the settings contain, this file raises none.
 */
#include "postgres.h"

#include <ctype.h>

#include "common/jsonapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "base/base.h"

/* What may come next in a JSON text. */
typedef enum Expected
{
	VALUE,
	VALUE_OR_END,				/* after [ */
	NAME,
	NAME_OR_END,				/* after { */
	COLON,
	COMMA_OR_END
} Expected;

/*
 * Does the database's encoding have all characters that a JSON text escapes as
 * \u....?  The lexer of PostgreSQL 15 raises an error otherwise.  What is not
 * valid as an escape is left to the lexer, which reports it.
 */
static bool
escapes_fit(const char *json)
{
	pg_wchar	first = 0;		/* of a surrogate pair */

	if (GetDatabaseEncoding() == PG_UTF8)
		return true;
	while ((json = strchr(json, '\\')) != NULL && json[1] != '\0')
	{
		pg_wchar	character = 0;
		unsigned char utf8[4];

		CHECK_FOR_INTERRUPTS();
		json += 2;
		if (json[-1] != 'u')
			continue;
		for (int i = 0; i < 4 && isxdigit((unsigned char) *json); i++, json++)
			character = character << 4 | (isdigit((unsigned char) *json) ? *json - '0' : (*json | 0x20) - 'a' + 10);
		if (is_utf16_surrogate_second(character) && first != 0)
			character = surrogate_pair_to_codepoint(first, character);
		first = is_utf16_surrogate_first(character) ? character : 0;
		if (character < 0x80 || (character >= 0xD800 && character <= 0xDFFF))
			continue;
		unicode_to_utf8(character, utf8);
		if (apitoken_convert((char *) utf8, pg_utf_mblen(utf8), PG_UTF8, GetDatabaseEncoding()) == NULL)
			return false;
	}
	return true;
}

/* The lexer cannot be interrupted within a string.  Servers accept much shorter headers. */
#define STRING_MAX (4 * 1024 * 1024)

/* Does no string of this JSON text exceed the limit? */
static bool
strings_fit(const char *json)
{
	const char *start = NULL;	/* of the string that is open */

	if (strlen(json) <= STRING_MAX)
		return true;
	for (const char *next = json; (next = strpbrk(next, start != NULL ? "\"\\" : "\"")) != NULL; next++)
	{
		CHECK_FOR_INTERRUPTS();
		if (*next == '"')
		{
			if (start != NULL && next - start > STRING_MAX)
				return false;
			start = start != NULL ? NULL : next;
		}
		else if (*++next == '\0')
			break;				/* after a backslash, any character is part of the string */
	}
	return start == NULL;
}

/*
 * Parse a JSON object into a list of ApitokenField, in the order of the text.
 * Values that are arrays or objects are checked, but not kept.  Returns false if
 * the text is not a JSON object.
 */
static bool
parse_object(const char *json, List **fields)
{
	JsonLexContext *lex = compat_json_lexer(json, strlen(json), GetDatabaseEncoding());
	StringInfoData open;		/* the brackets that are open */
	Expected	expected = VALUE;
	ApitokenField *field = NULL;	/* the last one */

	*fields = NIL;
	if (!strings_fit(json) || !escapes_fit(json))
		return false;
	initStringInfo(&open);
	do
	{
		bool		in_object;
		bool		expects_value = expected == VALUE || expected == VALUE_OR_END;

		CHECK_FOR_INTERRUPTS();
		if (json_lex(lex) != JSON_SUCCESS)
			return false;
		if (open.len == 0 && lex->token_type != JSON_TOKEN_OBJECT_START)
			return false;
		in_object = open.len > 0 && open.data[open.len - 1] == '{';
		if (lex->token_type == JSON_TOKEN_STRING && (expected == NAME || expected == NAME_OR_END))
		{
			if (open.len == 1)
			{
				field = palloc0(sizeof(ApitokenField));
				field->name = pstrdup(lex->strval->data);
				*fields = lappend(*fields, field);
			}
			expected = COLON;
			continue;
		}

		switch (lex->token_type)
		{
			case JSON_TOKEN_OBJECT_START:
			case JSON_TOKEN_ARRAY_START:
				if (!expects_value)
					return false;
				in_object = lex->token_type == JSON_TOKEN_OBJECT_START;
				appendStringInfoChar(&open, in_object ? '{' : '[');
				expected = in_object ? NAME_OR_END : VALUE_OR_END;
				break;
			case JSON_TOKEN_OBJECT_END:
			case JSON_TOKEN_ARRAY_END:
				if (in_object != (lex->token_type == JSON_TOKEN_OBJECT_END) ||
					(expected != COMMA_OR_END && expected != (in_object ? NAME_OR_END : VALUE_OR_END)))
					return false;
				open.len--;
				expected = COMMA_OR_END;
				break;
			case JSON_TOKEN_COMMA:
				if (expected != COMMA_OR_END)
					return false;
				expected = in_object ? NAME : VALUE;
				break;
			case JSON_TOKEN_COLON:
				if (expected != COLON)
					return false;
				expected = VALUE;
				break;
			case JSON_TOKEN_STRING:
			case JSON_TOKEN_NUMBER:
			case JSON_TOKEN_TRUE:
			case JSON_TOKEN_FALSE:
			case JSON_TOKEN_NULL:
				if (!expects_value)
					return false;
				if (open.len == 1)
				{
					field->is_string = lex->token_type == JSON_TOKEN_STRING;
					if (field->is_string)
						field->value = pstrdup(lex->strval->data);
					else if (lex->token_type == JSON_TOKEN_NUMBER)
						field->value = pnstrdup(lex->token_start, lex->token_terminator - lex->token_start);
				}
				expected = COMMA_OR_END;
				break;
			default:
				return false;
		}
	} while (open.len > 0);
	return json_lex(lex) == JSON_SUCCESS && lex->token_type == JSON_TOKEN_END;
}

/*
 * The method of the request that PostgREST describes, or NULL if the transaction
 * is not one of PostgREST's.
 */
const char *
apitoken_request_method(void)
{
	Oid			setter = InvalidOid;
	const char *method = apitoken_request_setting("request.method", &setter);

	return method != NULL && apitoken_setter_counts(setter, apitoken_role_may_use) ? method : NULL;
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
