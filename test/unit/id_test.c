/*
 * id_test.c
 *		src/text/id.c: which texts are ids of organizations and users, without a
 *		server.  Prints TAP.
 *
 * sql/directory.sql compares the rule with the server's own types.
 */
#include "postgres.h"

#include "text/text.h"

/* the C library's own functions, because libpgport is not linked */
#undef printf
#undef snprintf

static int	tests = 0;
static int	failures = 0;

static void
check(const char *id, size_t length, bool expected)
{
	/* a copy without a terminating zero, so that the sanitizer sees each byte too far */
	char	   *copy = malloc(length > 0 ? length : 1);
	bool		valid;

	memcpy(copy, id, length);
	valid = apitoken_id_fault(copy, length) == NULL;
	free(copy);
	printf("%sok %d - \"%.*s\" is %san id\n", valid == expected ? "" : "not ", ++tests,
		   (int) (length > 60 ? 60 : length), id, expected ? "" : "not ");
	if (valid != expected)
		failures++;
}

int
main(void)
{
	static const char *const ids[] = {
		/* names, and what looks like a number or a uuid but is none */
		"acme", "forgotten", "forgotten-1", "Forgotten:1", " forgotten:1", "a b", "x", "_", "-", "--", "{}", "{", "}", "0x", "0X", "0b", "0o", "0xg", "0b2", "0o8", "1_", "_1", "1__0", "0x1_", "0x1__0", "1.0", "1.2.3", "1e3", "00-1", "1-0",
		"+", "+-1", "- 1", "1 000", "\xc3\xa9", "a\tb", "12a", "007a", "a007", "0x0g", "1,000", "{1}",
		/* white space around other texts, which no type skips */
		" ", "  ", "\n", " acme", "acme ", "\tacme", "acme\n", " -", "+ ", "7\xc2\xa0", " 5f0e7d4c-2a57-4d3a-9d8e-0123456789ab", "5F0E7D4C-2A57-4D3A-9D8E-0123456789AB ",
		/* integers in the form of their type */
		"0", "7", "42", "-1", "-42", "9223372036854775807", "-9223372036854775808",
		/* too large for the type, so nothing casts them to it */
		"9223372036854775808", "-9223372036854775809", "09223372036854775808", "+99999999999999999999", "0000123456789012345678901",
		"0x8000000000000000", "-0x8000000000000001", "0x71C7656EC7ab88b098defB751B7401B5f6d8976F", "18446744073709551616", "018446744073709551616",
		/* uuids in the form of their type */
		"5f0e7d4c-2a57-4d3a-9d8e-0123456789ab", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
		/* a digit too few or too many, hyphens and braces where the type has none */
		"5F0E7D4C-2A57-4D3A-9D8E-0123456789A", "5F0E7D4C-2A57-4D3A-9D8E-0123456789ABC", "5F0E7D4C2A574D3A9D8E0123456789A", "5F0E7D4C2A574D3A9D8E0123456789ABC",
		"5F0E7D4C--2A57-4D3A-9D8E-0123456789AB", "-5F0E7D4C-2A57-4D3A-9D8E-0123456789AB", "5F0E7D4C-2A57-4D3A-9D8E-0123456789AB-", "5F0E7-D4C-2A57-4D3A-9D8E-0123456789AB",
		"{5F0E7D4C-2A57-4D3A-9D8E-0123456789AB", "5F0E7D4C-2A57-4D3A-9D8E-0123456789AB}", "{{5F0E7D4C-2A57-4D3A-9D8E-0123456789AB}}", "(5F0E7D4C-2A57-4D3A-9D8E-0123456789AB)",
		"5G0E7D4C-2A57-4D3A-9D8E-0123456789AB", "urn:uuid:5f0e7d4c-2a57-4d3a-9d8e-0123456789ab", "d41d8cd98f00b204e9800998ecf8427", "507f1f77bcf86cd799439011", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
	};
	static const char *const others[] = {
		/* what stands for users who were forgotten */
		"forgotten:", "forgotten:1",
		/* integers with white space around */
		" 7", "7 ", "\t7", "7\n", "7\v", "7\f", "\r7", "  -42 \n", " +7", " 0x2A ", " 9223372036854775807",
		/* integers in another form */
		"007", "00", "01", "+7", "+0", "-0", "-007", "1_000", "10_00_0", "0x2A", "0x2a", "0X2a", "0x_2a", "0x00000000000000000000002a", "-0x1", "+0x1", "0o17", "0O17", "0b101", "0B1", "0b_1",
		"0_0", "000000000000000000000000000000000000000000019", "09223372036854775807", "-09223372036854775808", "0x7fffffffffffffff", "-0x8000000000000000",
		/* uuids in another form */
		"5F0E7D4C-2A57-4D3A-9D8E-0123456789AB", "5f0e7d4c-2a57-4d3a-9d8e-0123456789aB", "5f0e7d4c2a574d3a9d8e0123456789ab", "{5f0e7d4c-2a57-4d3a-9d8e-0123456789ab}", "{5f0e7d4c2a574d3a9d8e0123456789ab}",
		"5f0e-7d4c-2a57-4d3a-9d8e-0123-4567-89ab", "5f0e7d4c-2a574d3a-9d8e0123-456789ab", "5f0e7d4c2a57-4d3a-9d8e-0123456789ab", "5f0e-7d4c2a57-4d3a-9d8e-0123456789ab", "00000000000000000000000000000000",
		"{00000000-0000-0000-0000-000000000000}",
	};
	char		text[257];

	for (int i = 0; i < lengthof(ids); i++)
		check(ids[i], strlen(ids[i]), true);
	for (int i = 0; i < lengthof(others); i++)
		check(others[i], strlen(others[i]), false);
	memset(text, 'x', sizeof(text));
	check(text, 0, false);
	check(text, 255, true);
	check(text, 256, false);
	memset(text, '0', sizeof(text));
	check(text, 255, false);
	memset(text, '9', sizeof(text));
	check(text, 255, true);
	memset(text, '{', sizeof(text));
	check(text, 255, true);
	printf("1..%d\n", tests);
	return failures > 0;
}
