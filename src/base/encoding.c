/*
 * encoding.c
 *		Conversion of texts between encodings, without errors.
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
