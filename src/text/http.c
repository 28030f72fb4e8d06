/*
 * http.c
 *		The form of the names in HTTP: of headers and of authentication schemes.
 */
#include "postgres.h"

#include "text/text.h"

/* Are these characters a token of HTTP (RFC 9110, section 5.6.2), such as the name of a header? */
bool
apitoken_is_http_token(const char *text, size_t length)
{
	return length > 0 &&
		strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") >= length;
}
