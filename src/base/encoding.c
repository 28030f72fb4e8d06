/*
 * encoding.c
 *		Conversion of texts between encodings, without errors, and what people
 *		see of a text in the database's encoding.
 */
#include "postgres.h"

#include "catalog/pg_conversion.h"
#include "catalog/pg_namespace.h"
#include "mb/pg_wchar.h"

#include "base/base.h"

/*
 * Convert a text to another encoding.  Returns NULL if the other encoding does
 * not have one of its characters, or if the server cannot convert between the
 * two (SQL_ASCII, MULE_INTERNAL).  Conversions that users created are not used.
 */
char *
apitoken_convert(const char *text, size_t length, int from, int to)
{
	Oid			function = FindDefaultConversion(PG_CATALOG_NAMESPACE, from, to);
	size_t		size = length * MAX_CONVERSION_GROWTH + 1;
	char	   *result;

	if (!OidIsValid(function))
		return NULL;
	result = palloc(size);
	if (pg_do_encoding_conversion_buf(function, from, to, (unsigned char *) unconstify(char *, text), length,
									  (unsigned char *) result, size, true) < length)
		return NULL;
	return result;
}

/*
 * Examine a text in the database's encoding, as apitoken_examine() does.  If
 * `trimmed` is given, it becomes the text without the blank characters at its
 * ends: the same pointer if there are none.
 *
 * A text in SQL_ASCII that is valid UTF-8 is taken for that.  In a text that
 * cannot be converted, all characters but those of ASCII count as visible.
 */
ApitokenVisible
apitoken_examine_text(char *text, bool lines, char **trimmed)
{
	size_t		length = strlen(text);
	int			encoding = GetDatabaseEncoding();
	char	   *utf8 = text;
	ApitokenVisible result;
	char	   *start = text;
	int			rest;
	int			before;
	int			after;

	if (encoding == PG_SQL_ASCII && pg_verify_mbstr(PG_UTF8, text, length, true))
		encoding = PG_UTF8;
	if (encoding != PG_UTF8)
		utf8 = apitoken_convert(text, length, encoding, PG_UTF8);
	if (utf8 == NULL)
	{
		/* so that each byte is a character */
		encoding = PG_SQL_ASCII;
		utf8 = pstrdup(text);
		for (char *byte = utf8; *byte != '\0'; byte++)
		{
			if (IS_HIGHBIT_SET(*byte))
				*byte = '?';
		}
	}
	result = apitoken_examine(utf8, strlen(utf8), lines, &before, &after);
	if (trimmed == NULL)
		return result;

	*trimmed = text;
	if (before == 0 && after == 0)
		return result;
	rest = -before - after;
	for (char *end = text; *end != '\0'; end += pg_encoding_mblen(encoding, end))
		rest++;
	for (int i = 0; i < before; i++)
		start += pg_encoding_mblen(encoding, start);
	length = 0;
	for (int i = 0; i < rest; i++)
		length += pg_encoding_mblen(encoding, start + length);
	*trimmed = pnstrdup(start, length);
	return result;
}
