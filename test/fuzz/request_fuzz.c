/*
 * request_fuzz.c
 *		libFuzzer target for the JSON of a request's headers and claims, and for what
 *		the values of headers contain: the token, and the client's address.
 *
 * The slow version is a recursive parser of RFC 8259, in UTF-8.  (The lexer is the
 * server's own, from libpgcommon.)
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "fuzz.h"

#include "base/request.c"
#include "base/address.c"
#include "api/postgrest.c"

/* what these files use of the server and of others */
char	   *apitoken_client_address_header = "x-forwarded-for";

static const char *request;

const char *
apitoken_request_setting(const char *name, Oid *setter)
{
	return request;
}

bool
apitoken_setter_counts(Oid setter, bool (*has_capability) (Oid role))
{
	return true;
}

int
GetDatabaseEncoding(void)
{
	return PG_UTF8;
}

int
pg_inet_net_pton(int family, const char *text, void *result, size_t size)
{
	return inet_pton(family == PGSQL_AF_INET ? AF_INET : AF_INET6, text, result) == 1 ? 0 : -1;
}

Datum
inet_in(PG_FUNCTION_ARGS)
{
	return CStringGetDatum(palloc0(sizeof(inet)));
}

struct varlena *
pg_detoast_datum_packed(struct varlena *datum)
{
	return datum;
}

Datum
DirectFunctionCall1Coll(PGFunction function, Oid collation, Datum argument)
{
	return inet_in(NULL);
}

/* ----- JSON by RFC 8259 ----- */

#define FIELDS_MAX 1000

static const char *at;
static ApitokenField slow_fields[FIELDS_MAX];
static int	slow_count;

static void
space(void)
{
	while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')
		at++;
}

static int
four_digits(void)
{
	int			value = 0;

	for (int i = 0; i < 4; i++, at++)
	{
		if (!isxdigit((unsigned char) *at))
			return -1;
		value = value * 16 + (isdigit((unsigned char) *at) ? *at - '0' : (*at | 0x20) - 'a' + 10);
	}
	return value;
}

static int
put_utf8(char *out, int c)
{
	if (c < 0x80)
	{
		out[0] = c;
		return 1;
	}
	if (c < 0x800)
	{
		out[0] = 0xC0 | c >> 6;
		out[1] = 0x80 | (c & 0x3F);
		return 2;
	}
	if (c < 0x10000)
	{
		out[0] = 0xE0 | c >> 12;
		out[1] = 0x80 | (c >> 6 & 0x3F);
		out[2] = 0x80 | (c & 0x3F);
		return 3;
	}
	out[0] = 0xF0 | c >> 18;
	out[1] = 0x80 | (c >> 12 & 0x3F);
	out[2] = 0x80 | (c >> 6 & 0x3F);
	out[3] = 0x80 | (c & 0x3F);
	return 4;
}

/* NULL if it is not a string; zero and single surrogates are no characters */
static char *
string(void)
{
	char	   *value = palloc0(strlen(at) + 1);
	char	   *out = value;

	if (*at++ != '"')
		return NULL;
	while (*at != '"')
	{
		const char *escapes = "\"\\/bfnrt";
		const char *meanings = "\"\\/\b\f\n\r\t";
		const char *found;

		if ((unsigned char) *at < 0x20)
			return NULL;
		if (*at != '\\')
		{
			*out++ = *at++;
			continue;
		}
		at++;
		if (*at == 'u')
		{
			int			c;

			at++;
			c = four_digits();
			if (c <= 0 || (c >= 0xDC00 && c <= 0xDFFF))
				return NULL;
			if (c >= 0xD800 && c <= 0xDBFF)
			{
				int			second;

				if (*at++ != '\\' || *at++ != 'u')
					return NULL;
				second = four_digits();
				if (second < 0xDC00 || second > 0xDFFF)
					return NULL;
				c = 0x10000 + ((c & 0x3FF) << 10) + (second & 0x3FF);
			}
			out += put_utf8(out, c);
			continue;
		}
		if (*at == '\0' || (found = strchr(escapes, *at)) == NULL)
			return NULL;
		*out++ = meanings[found - escapes];
		at++;
	}
	at++;
	return value;
}

static bool
number(void)
{
	if (*at == '-')
		at++;
	if (!isdigit((unsigned char) *at))
		return false;
	if (*at == '0')
		at++;
	else
		while (isdigit((unsigned char) *at))
			at++;
	if (*at == '.')
	{
		at++;
		if (!isdigit((unsigned char) *at))
			return false;
		while (isdigit((unsigned char) *at))
			at++;
	}
	if (*at == 'e' || *at == 'E')
	{
		at++;
		if (*at == '+' || *at == '-')
			at++;
		if (!isdigit((unsigned char) *at))
			return false;
		while (isdigit((unsigned char) *at))
			at++;
	}
	return true;
}

static bool
value(int depth, ApitokenField *field)
{
	const char *start;
	char	   *text;
	char		close;

	space();
	start = at;
	switch (*at)
	{
		case '"':
			text = string();
			if (text != NULL && field != NULL)
			{
				field->is_string = true;
				field->value = text;
			}
			return text != NULL;
		case '{':
		case '[':
			close = *at++ == '{' ? '}' : ']';
			space();
			if (*at == close)
			{
				at++;
				return true;
			}
			for (;;)
			{
				ApitokenField *inner = NULL;

				if (close == '}')
				{
					space();
					text = string();
					if (text == NULL)
						return false;
					if (depth == 0)
					{
						require(slow_count < FIELDS_MAX);
						inner = &slow_fields[slow_count++];
						memset(inner, 0, sizeof(*inner));
						inner->name = text;
					}
					space();
					if (*at++ != ':')
						return false;
				}
				if (!value(depth + 1, inner))
					return false;
				space();
				if (*at == close)
				{
					at++;
					return true;
				}
				if (*at++ != ',')
					return false;
			}
		case 't':
		case 'f':
		case 'n':
			for (int i = 0; i < 3; i++)
			{
				static const char *const words[] = {"true", "false", "null"};

				if (strncmp(at, words[i], strlen(words[i])) == 0)
				{
					at += strlen(words[i]);
					return true;
				}
			}
			return false;
		default:
			if (!number())
				return false;
			if (field != NULL)
				field->value = pnstrdup(start, at - start);
			return true;
	}
}

static bool
slow_object(const char *json)
{
	at = json;
	slow_count = 0;
	space();
	if (*at != '{' || !value(0, NULL))
		return false;
	space();
	return *at == '\0';
}

static bool
is_separator(char c)
{
	return c <= ' ' || c == 0x7F || strchr("\"(),/:;<=>?@[\\]{}", c) != NULL;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	List	   *headers;
	char	   *json = fuzz_part(&data, &size, '\0');
	char	   *name = fuzz_part(&data, &size, '\0');
	ListCell   *lc;
	int			i = 0;
	int			named = 0;
	char	   *claim = NULL;
	char	   *found;
	Oid			setter;
	bool		valid;
	bool		is_token = *name != '\0';

	request = json;
	valid = slow_object(json);
	require(apitoken_request_headers(&headers) == (valid ? APITOKEN_REQUEST : APITOKEN_BROKEN_REQUEST));
	if (valid)
	{
		require(list_length(headers) == slow_count);
		foreach(lc, headers)
		{
			ApitokenField *field = lfirst(lc);

			require(strcmp(field->name, slow_fields[i].name) == 0);
			require((field->value == NULL) == (slow_fields[i].value == NULL));
			require(field->is_string == slow_fields[i].is_string);
			require(field->value == NULL || strcmp(field->value, slow_fields[i].value) == 0);
			named += strcasecmp(field->name, name) == 0;
			if (strcmp(field->name, name) == 0)
				claim = slow_fields[i].value;
			i++;

			/* a value is a token or not; nothing else happens */
			if (field->is_string)
			{
				char	   *token = token_in_value(name, field->value);

				/* what is not taken for a token contains none */
				require(token != NULL || !apitoken_holds_token(field->value, strlen(field->value)));
				require(token == NULL || (*token != ' ' && *token != '\t' && strstr(field->value, token) != NULL));
				(void) parse_address(field->value);
			}
		}
		require(list_length(apitoken_header_values(headers, name)) == named);
		(void) header_address(headers);
	}
	found = apitoken_request_claim(name, &setter);
	require((found == NULL) == (claim == NULL || *claim == '\0'));
	require(found == NULL || strcmp(found, claim) == 0);

	for (const char *c = name; *c != '\0'; c++)
		is_token &= (unsigned char) *c < 0x80 && !is_separator(*c);
	require(apitoken_is_http_token(name, strlen(name)) == is_token);
	fuzz_free_all();
	return 0;
}
