/*
 * permission_test.c
 *		The string half of src/text/permission.c against first principles, without a
 *		server.  Prints TAP.
 *
 * From the top of the repository (the functions on lists and arrays need a
 * server; the linker drops them, with what they call):
 *
 *		gcc -std=gnu99 -O2 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
 *			-ffunction-sections -fdata-sections -Wl,--gc-sections \
 *			-I src -I "$(pg_config --includedir-server)" \
 *			test/unit/permission_test.c src/text/permission.c -o /tmp/permission_test
 *		/tmp/permission_test
 *
 * Patterns match infinitely many permissions, but one name that no pattern has
 * ("other") stands for all other names.  So a small set of names covers all cases.
 */
#include "postgres.h"

#include "text/text.h"

/* the C library's own functions, because libpgport is not linked */
#undef printf
#undef snprintf

#define RESOURCES 4
#define ACTIONS 3
#define PATTERNS (RESOURCES * ACTIONS + 1)
#define PERMISSIONS (RESOURCES * ACTIONS)

static const char *const pattern_resources[RESOURCES] = {"*", "token", "a", "b"};
static const char *const pattern_actions[ACTIONS] = {"*", "x", "y"};
static const char *const resources[RESOURCES] = {"other", "token", "a", "b"};
static const char *const actions[ACTIONS] = {"other", "x", "y"};

static char patterns[PATTERNS][APITOKEN_PATTERN_MAX + 1];
static char permissions[PERMISSIONS][APITOKEN_PATTERN_MAX + 1];
static bool matches[PATTERNS][PERMISSIONS];

static int	tests = 0;
static int	failures = 0;

static void
ok(bool passed, const char *name)
{
	printf("%sok %d - %s\n", passed ? "" : "not ", ++tests, name);
	if (!passed)
		failures++;
}

/* The rules as the documentation states them; the first name of each is "any". */
static void
make_world(void)
{
	for (int p = 0; p < PATTERNS; p++)
	{
		int			resource = p / ACTIONS;
		int			action = p % ACTIONS;

		if (p == PATTERNS - 1)
			strcpy(patterns[p], "*");
		else
			snprintf(patterns[p], sizeof(patterns[p]), "%s:%s",
					 pattern_resources[resource], pattern_actions[action]);

		for (int q = 0; q < PERMISSIONS; q++)
		{
			bool		token = q / ACTIONS == 1;

			snprintf(permissions[q], sizeof(permissions[q]), "%s:%s",
					 resources[q / ACTIONS], actions[q % ACTIONS]);
			matches[p][q] = p == PATTERNS - 1 ||
				((resource == q / ACTIONS || (resource == 0 && !token)) &&
				 (action == q % ACTIONS || action == 0));
		}
	}
}

static void
forms(void)
{
	static const char *const permission[] = {"a:b", "A-z_0./9:x", "token:read"};
	static const char *const pattern[] = {"*", "*:*", "a:*", "*:b", "token:*"};
	static const char *const neither[] = {"", "a", ":", "a:", ":a", "a:b:c", "a*:b", "**:a", "a:**",
	" a:b", "a:b ", "a b:c", "a:b\n", "\xc3\xa9:a", "a,b:c", "a:{b}", "**"};
	char		text[200];
	bool		right = true;

	for (int i = 0; i < lengthof(permission); i++)
		right &= apitoken_valid_permission(permission[i]) && apitoken_valid_pattern(permission[i]);
	for (int i = 0; i < lengthof(pattern); i++)
		right &= !apitoken_valid_permission(pattern[i]) && apitoken_valid_pattern(pattern[i]);
	for (int i = 0; i < lengthof(neither); i++)
		right &= !apitoken_valid_permission(neither[i]) && !apitoken_valid_pattern(neither[i]);
	ok(right, "what is a permission, a pattern, neither");

	right = true;
	for (int length = 1; length <= 80; length++)
	{
		memset(text, 'a', length);
		strcpy(text + length, ":b");
		right &= apitoken_valid_pattern(text) == (length <= APITOKEN_HALF_MAX);
		text[0] = 'b';
		text[1] = ':';
		memset(text + 2, 'a', length);
		text[2 + length] = '\0';
		right &= apitoken_valid_pattern(text) == (length <= APITOKEN_HALF_MAX);
	}
	ok(right, "halves have up to 64 characters");

	right = true;
	for (int i = 0; i < lengthof(neither); i++)
	{
		char		result[APITOKEN_PATTERN_MAX + 1];

		right &= !apitoken_pattern_matches("*", neither[i]) &&
			!apitoken_pattern_covers("*", neither[i]) &&
			!apitoken_pattern_covers(neither[i], neither[i]) &&
			!apitoken_pattern_covers(neither[i], "a:b") &&
			!apitoken_pattern_intersect("*", neither[i], result) &&
			!apitoken_pattern_intersect(neither[i], "*", result);
	}
	ok(right, "what is malformed gives nothing");
}

int
main(void)
{
	bool		match = true;
	bool		cover = true;
	bool		intersect = true;

	make_world();
	forms();

	for (int a = 0; a < PATTERNS; a++)
	{
		for (int q = 0; q < PERMISSIONS; q++)
			match &= apitoken_pattern_matches(patterns[a], permissions[q]) == matches[a][q];

		for (int b = 0; b < PATTERNS; b++)
		{
			char		result[APITOKEN_PATTERN_MAX + 1];
			bool		found = apitoken_pattern_intersect(patterns[a], patterns[b], result);
			bool		covers = true;
			bool		meet = false;

			for (int q = 0; q < PERMISSIONS; q++)
			{
				bool		both = matches[a][q] && matches[b][q];

				covers &= matches[a][q] || !matches[b][q];
				meet |= both;
				if (found)
					intersect &= apitoken_pattern_matches(result, permissions[q]) == both;
			}
			cover &= apitoken_pattern_covers(patterns[a], patterns[b]) == covers;
			intersect &= found == meet;
		}
	}
	ok(match, "a pattern matches what the rules say");
	ok(cover, "a pattern covers another one exactly if it matches all that it does");
	ok(intersect, "an intersection matches exactly what both match");

	printf("1..%d\n", tests);
	return failures > 0;
}
