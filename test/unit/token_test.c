/*
 * token_test.c
 *		Tests of src/text/token.c alone, without a server.  Prints TAP.
 *
 * From the top of the repository:
 *
 *		gcc -std=gnu99 -O2 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
 *			-I src -I "$(pg_config --includedir-server)" \
 *			test/unit/token_test.c src/text/token.c -o /tmp/token_test
 *		/tmp/token_test test/vectors
 *
 * With -fsanitize=address,undefined it also proves that no byte outside of a
 * text is read: texts that must be refused are in memory of exactly their size.
 *
 * This file has its own random source and clock, so that they can fail, stand
 * still and go back.  It also has its own table of the CRC, made from zlib's
 * polynomial.
 */
#include "postgres.h"

#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "text/text.h"

/* the C library's own functions, because libpgport is not linked */
#undef printf
#undef snprintf
#undef qsort

#define TOKENS 1000000

/*
 * With 62 cells there are 61 degrees of freedom; a uniform source exceeds this
 * value once in 10^9 runs.  A byte modulo 62 would reach about 6600 over 10^6
 * characters; bias_is_noticed() shows this.
 */
#define CELLS 62
#define CHI_SQUARED_MAX 152.1

static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

static int	tests = 0;
static int	failures = 0;

static void
ok(bool passed, const char *name)
{
	printf("%sok %d - %s\n", passed ? "" : "not ", ++tests, name);
	fflush(stdout);
	if (!passed)
		failures++;
}

/* ----- functions of the server and the system that token.c uses ----- */

/* what Assert() calls on a server with assertions (with one more argument until 15) */
#if PG_VERSION_NUM >= 160000
void
ExceptionalCondition(const char *condition, const char *file, int line)
#else
void
ExceptionalCondition(const char *condition, const char *type, const char *file, int line)
#endif
{
	printf("Bail out! assertion failed: %s, %s:%d\n", condition, file, line);
	abort();
}

extern uint32 pg_crc32_table[256];
uint32		pg_crc32_table[256];

static enum
{
	RANDOM_REAL, RANDOM_FAILS, RANDOM_COUNTS_DOWN
}			random_mode = RANDOM_REAL;

static struct timespec fixed_clock;
static bool clock_is_fixed = false;

static void
make_crc_table(void)
{
	for (uint32 i = 0; i < 256; i++)
	{
		uint32		crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ ((crc & 1) ? 0xEDB88320 : 0);
		pg_crc32_table[i] = crc;
	}
}

bool
pg_strong_random(void *buffer, size_t length)
{
	static uint8 pool[1 << 16];
	static size_t used = sizeof(pool);

	if (random_mode == RANDOM_FAILS)
		return false;
	if (random_mode == RANDOM_COUNTS_DOWN)
	{
		for (size_t i = 0; i < length; i++)
			((uint8 *) buffer)[i] = (uint8) (255 - i);
		return true;
	}

	/* millions of system calls would take most of the time */
	if (length > sizeof(pool) - used)
	{
		for (size_t filled = 0; filled < sizeof(pool);)
		{
			ssize_t		got = getrandom(pool + filled, sizeof(pool) - filled, 0);

			if (got > 0)
				filled += got;
		}
		used = 0;
	}
	memcpy(buffer, pool + used, length);
	used += length;
	return true;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	if (!clock_is_fixed)
		return (int) syscall(SYS_clock_gettime, clock, now);
	*now = fixed_clock;
	return 0;
}

/* ----- helpers ----- */

/* Parse from memory that ends where the text ends. */
static bool
parses(const char *text, size_t length)
{
	ApitokenParts parts;
	char	   *exact = malloc(length > 0 ? length : 1);
	bool		result;

	memcpy(exact, text, length);
	result = apitoken_parse_text(exact, length, &parts);
	free(exact);
	return result;
}

/* Append the right checksum to a text, computed bit by bit, without the table. */
static void
append_checksum(char *text)
{
	size_t		length = strlen(text);
	uint32		crc = 0xFFFFFFFF;

	for (size_t i = 0; i < length; i++)
	{
		crc ^= (uint8) text[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ ((crc & 1) ? 0xEDB88320 : 0);
	}
	crc ^= 0xFFFFFFFF;
	for (int i = APITOKEN_CHECKSUM_CHARS - 1; i >= 0; i--)
	{
		text[length + i] = digits[crc % CELLS];
		crc /= CELLS;
	}
	text[length + APITOKEN_CHECKSUM_CHARS] = '\0';
}

static double
chi_squared(const uint64 counts[CELLS])
{
	double		total = 0;
	double		sum = 0;

	for (int i = 0; i < CELLS; i++)
		total += counts[i];
	for (int i = 0; i < CELLS; i++)
	{
		double		off = counts[i] - total / CELLS;

		sum += off * off / (total / CELLS);
	}
	return sum;
}

static bool
uniform(const uint64 counts[CELLS])
{
	return chi_squared(counts) < CHI_SQUARED_MAX;
}

static void
id_to_text(const pg_uuid_t *id, char text[37])
{
	char	   *end = text;

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*end++ = '-';
		end += snprintf(end, 3, "%02x", id->data[i]);
	}
}

/* Open a file of vectors, and skip its heading. */
static FILE *
open_vectors(const char *directory, const char *name)
{
	char		path[1024];
	char		heading[1024];
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "r");
	if (file == NULL || fgets(heading, sizeof(heading), file) == NULL)
	{
		printf("Bail out! cannot read %s\n", path);
		exit(1);
	}
	return file;
}

/* ----- tests ----- */

static void
valid_vectors(const char *directory)
{
	FILE	   *file = open_vectors(directory, "token_text_valid.tsv");
	char		line[1024];
	int			lines = 0;
	bool		right = true;

	while (fgets(line, sizeof(line), file) != NULL)
	{
		char	   *text = strtok(line, "\t\n");
		char	   *prefix = strtok(NULL, "\t\n");
		char	   *kind = strtok(NULL, "\t\n");
		char	   *id = strtok(NULL, "\t\n");
		char		found[37];
		char		masked[100];
		ApitokenParts parts;

		if (text == NULL || prefix == NULL || kind == NULL || id == NULL)
		{
			right = false;
			printf("# line without its columns\n");
			continue;
		}

		lines++;
		snprintf(masked, sizeof(masked), "%s_%s_%.22s_...%s",
				 prefix, kind, text + strlen(prefix) + 5, text + strlen(text) - 4);
		if (!parses(text, strlen(text)) || !apitoken_parse_text(text, strlen(text), &parts))
		{
			right = false;
			printf("# refused: %s\n", text);
			continue;
		}
		id_to_text(&parts.id, found);
		if (strcmp(parts.prefix, prefix) != 0 ||
			strcmp(apitoken_kind_code(parts.kind), kind) != 0 ||
			strcmp(found, id) != 0 ||
			strcmp(parts.masked, masked) != 0)
		{
			right = false;
			printf("# other parts: %s\n", text);
		}
	}
	fclose(file);
	ok(right && lines >= 20, "every valid vector has the parts it should");
}

static void
malformed_vectors(const char *directory)
{
	FILE	   *file = open_vectors(directory, "token_text_malformed.tsv");
	char		line[1024];
	int			lines = 0;
	bool		right = true;

	while (fgets(line, sizeof(line), file) != NULL)
	{
		size_t		length = strcspn(line, "\t");

		/* one vector ends in a line feed, which is written as \n */
		if (length >= 2 && line[length - 2] == '\\' && line[length - 1] == 'n')
			line[--length - 1] = '\n';

		lines++;
		if (parses(line, length))
		{
			right = false;
			printf("# accepted: %s", line);
		}
	}
	fclose(file);
	ok(right && lines >= 20, "every malformed vector is refused");
}

static void
prefix_rule(void)
{
	static const char *const good[] = {"ab", "a1", "apt", "z9z9z9z9z9z9", "abcdefghijkl"};
	static const char *const bad[] = {"", "a", "1a", "_a", "Ab", "aB", "a_b", "a-b", "a b", "ab\n",
	"abcdefghijklm", "\xc3\xa9\xc3\xa9"};
	bool		right = true;

	for (int i = 0; i < lengthof(good); i++)
		right &= apitoken_valid_prefix(good[i]);
	for (int i = 0; i < lengthof(bad); i++)
		right &= !apitoken_valid_prefix(bad[i]);
	ok(right, "prefixes");
}

/* The largest id, and the next number, which has the right checksum too. */
static void
id_limit(void)
{
	char		text[APITOKEN_TEXT_MAX + 1];
	char		secret[APITOKEN_SECRET_CHARS + 1];

	memset(secret, 'x', APITOKEN_SECRET_CHARS);
	secret[APITOKEN_SECRET_CHARS] = '\0';

	snprintf(text, sizeof(text), "apt_org_7n42DGM5Tflk9n8mt7Fhc7%s", secret);
	append_checksum(text);
	ok(parses(text, strlen(text)), "the largest id is accepted");
	snprintf(text, sizeof(text), "apt_org_7n42DGM5Tflk9n8mt7Fhc8%s", secret);
	append_checksum(text);
	ok(!parses(text, strlen(text)), "an id one larger is refused");
}

static int
compare_secrets(const void *a, const void *b)
{
	return memcmp(a, b, APITOKEN_SECRET_CHARS);
}

static void
many_tokens(void)
{
	char		(*secrets)[APITOKEN_SECRET_CHARS] = malloc((size_t) TOKENS * APITOKEN_SECRET_CHARS);
	uint64		all[CELLS] = {0};
	uint64		first[CELLS] = {0};
	uint64		last[CELLS] = {0};
	pg_uuid_t	before = {{0}};
	bool		parse = true;
	bool		ascend = true;
	bool		version = true;
	bool		distinct = true;

	for (int i = 0; i < TOKENS; i++)
	{
		pg_uuid_t	id;
		char		text[APITOKEN_TEXT_MAX + 1];
		ApitokenParts made;
		ApitokenParts parsed;
		ApitokenKind kind = i % 2 ? APITOKEN_USER : APITOKEN_ORGANIZATION;
		const char *prefix = i % 3 ? "apt" : "abcdefghijkl";

		if (!apitoken_generate_id(&id) ||
			!apitoken_generate_text(prefix, kind, &id, text, &made) ||
			!apitoken_parse_text(text, strlen(text), &parsed))
		{
			parse = false;
			break;
		}
		parse &= strcmp(parsed.prefix, prefix) == 0 && parsed.kind == kind &&
			memcmp(&parsed.id, &id, UUID_LEN) == 0 &&
			strcmp(parsed.masked, made.masked) == 0 &&
			memcmp(&made.id, &id, UUID_LEN) == 0;
		ascend &= memcmp(&before, &id, UUID_LEN) < 0;
		version &= (id.data[6] >> 4) == 7 && (id.data[8] >> 6) == 2;
		before = id;

		memcpy(secrets[i], text + strlen(prefix) + 5 + APITOKEN_ID_CHARS, APITOKEN_SECRET_CHARS);
		for (int j = 0; j < APITOKEN_SECRET_CHARS; j++)
			all[strchr(digits, secrets[i][j]) - digits]++;
		first[strchr(digits, secrets[i][0]) - digits]++;
		last[strchr(digits, secrets[i][APITOKEN_SECRET_CHARS - 1]) - digits]++;
	}

	qsort(secrets, TOKENS, APITOKEN_SECRET_CHARS, compare_secrets);
	for (int i = 1; i < TOKENS; i++)
		distinct &= compare_secrets(secrets[i - 1], secrets[i]) != 0;
	free(secrets);

	ok(parse, "generated tokens parse to what they were made of");
	ok(ascend, "ids ascend strictly");
	ok(version, "ids are UUIDs of version 7");
	ok(distinct, "no secret repeats");
	printf("# chi-squared: all %.1f, first %.1f, last %.1f\n",
		   chi_squared(all), chi_squared(first), chi_squared(last));
	ok(uniform(all), "secret characters are uniform");
	ok(uniform(first), "the first secret character is uniform");
	ok(uniform(last), "the last secret character is uniform");
}

/* The test above proves something only if it fails for a biased source. */
static void
bias_is_noticed(void)
{
	uint64		counts[CELLS] = {0};

	for (int i = 0; i < TOKENS; i++)
	{
		uint8		byte;

		pg_strong_random(&byte, 1);
		counts[byte % CELLS]++;
	}
	printf("# chi-squared of bytes modulo 62: %.1f\n", chi_squared(counts));
	ok(!uniform(counts), "a byte modulo 62 would be found out");
}

/* 255 down to 192: the first eight bytes cannot be used. */
static void
rejection(void)
{
	pg_uuid_t	id = {{0}};
	char		text[APITOKEN_TEXT_MAX + 1];
	ApitokenParts parts;
	const char *secret = text + strlen("apt_org_") + APITOKEN_ID_CHARS;
	bool		right;

	random_mode = RANDOM_COUNTS_DOWN;
	right = apitoken_generate_text("apt", APITOKEN_ORGANIZATION, &id, text, &parts);
	random_mode = RANDOM_REAL;
	for (int i = 0; i < APITOKEN_SECRET_CHARS; i++)
		right &= secret[i] == digits[(247 - i) % CELLS];
	ok(right, "bytes from 248 on are thrown away");
}

static void
random_failure(void)
{
	static const char zeros[APITOKEN_TEXT_MAX + 1];
	char		text[APITOKEN_TEXT_MAX + 1];
	ApitokenParts parts;
	pg_uuid_t	id = {{0}};
	bool		made_id;
	bool		made_text;

	memset(text, 'x', sizeof(text));
	random_mode = RANDOM_FAILS;
	made_id = apitoken_generate_id(&id);
	made_text = apitoken_generate_text("apt", APITOKEN_USER, &id, text, &parts);
	random_mode = RANDOM_REAL;
	ok(!made_id && !made_text, "without a random source nothing is made");
	ok(memcmp(text, zeros, sizeof(text)) == 0, "and no part of a text is left");
}

/* Make ids while the clock advances by a step before each: do they ascend? */
static bool
ids_ascend(int count, long step)
{
	pg_uuid_t	before;
	pg_uuid_t	id;
	bool		ascend = true;

	apitoken_generate_id(&before);
	for (int i = 0; i < count; i++)
	{
		fixed_clock.tv_sec += step;
		apitoken_generate_id(&id);
		ascend &= memcmp(&before, &id, UUID_LEN) < 0;
		before = id;
	}
	return ascend;
}

static void
odd_clocks(void)
{
	pg_uuid_t	id;
	char		text[37];

	clock_is_fixed = true;

	/* in the future, because real ids exist already: 2100-01-01 00:00:00.999999999 */
	fixed_clock.tv_sec = INT64CONST(4102444800);
	fixed_clock.tv_nsec = 999999999;
	apitoken_generate_id(&id);
	id_to_text(&id, text);
	text[18] = '\0';
	ok(strcmp(text, "03bb2cc3-dbe7-7fff") == 0, "an id tells the time, with its fraction");

	ok(ids_ascend(100000, 0), "ids ascend while the clock stands still");
	ok(ids_ascend(1000, -3600), "ids ascend while the clock goes back");
	ok(ids_ascend(1000, 7200), "ids ascend while the clock goes on");
	clock_is_fixed = false;
}

static void
single_changes(void)
{
	static const char *const prefixes[] = {"ab", "apt", "abcdefghijkl"};
	bool		refused = true;

	for (int i = 0; i < 30; i++)
	{
		pg_uuid_t	id;
		char		text[APITOKEN_TEXT_MAX + 2];
		ApitokenParts parts;
		size_t		length;

		apitoken_generate_id(&id);
		apitoken_generate_text(prefixes[i % 3], i % 2 ? APITOKEN_USER : APITOKEN_ORGANIZATION,
							   &id, text, &parts);
		length = strlen(text);

		for (int position = 0; position < length; position++)
		{
			char		was = text[position];

			for (int value = 0; value < 256; value++)
			{
				if ((char) value == was)
					continue;
				text[position] = (char) value;
				refused &= !parses(text, length);
			}
			text[position] = was;
		}

		/* shorter at either end, longer, doubled */
		for (int cut = 1; cut <= length; cut++)
			refused &= !parses(text, length - cut) && !parses(text + cut, length - cut);
		for (int value = 0; value < 256; value++)
		{
			text[length] = (char) value;
			refused &= !parses(text, length + 1);
		}
	}
	ok(refused, "every change of one character is refused");
}

/* Bytes of any value, then base62 digits, then everything right but the checksum. */
static void
garbage(void)
{
	bool		refused = true;

	for (int round = 0; round < 300; round++)
	{
		for (int length = 0; length <= 200; length++)
		{
			char		text[200];

			pg_strong_random(text, sizeof(text));
			if (round % 3 > 0)
			{
				for (int i = 0; i < length; i++)
					text[i] = digits[(uint8) text[i] % CELLS];
			}
			if (round % 3 > 1 && length >= 78)
			{
				int			prefix_length = Min(length - 76, APITOKEN_PREFIX_MAX);

				memset(text, 'a', prefix_length);
				memcpy(text + prefix_length, "_usr_", 5);
			}
			refused &= !parses(text, length);
		}
	}
	ok(refused, "garbage of every length is refused");
}

/* ----- masking within other texts ----- */

#define ID "0123456789abcdefABCDEF"	/* 22 characters */
#define SECRET "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0iL3oR6uX9bD2e123456"	/* 49 */
#define STARS "*************************************************"
#define FORTY "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0iL3oR6uX9b"
#define STARS_40 "****************************************"

/* Mask a text in memory of exactly its size, with nothing behind it. */
static bool
masks(const char *text, size_t length, char *result)
{
	char	   *exact = malloc(length > 0 ? length : 1);
	bool		held;
	bool		masked;

	memcpy(exact, text, length);
	held = apitoken_holds_secret(exact, length);
	masked = apitoken_mask_secrets(exact, length);
	memcpy(result, exact, length);
	result[length] = '\0';

	/* both functions agree, and nothing is left to mask */
	if (held != masked || apitoken_holds_secret(exact, length))
		printf("# not told alike: %.200s\n", text), failures++;
	free(exact);
	return masked;
}

static void
masked_texts(void)
{
	static const struct
	{
		const char *text;
		const char *expected;	/* NULL: stays as it is */
	}			cases[] =
	{
		{"", NULL},
		{"_", NULL},
		{"_org_", NULL},
		{"apt_org_" ID SECRET, "apt_org_" ID STARS},
		{"apt_usr_" ID SECRET, "apt_usr_" ID STARS},
		{"x9_usr_" ID SECRET, "x9_usr_" ID STARS},
		{"SELECT 'apt_org_" ID SECRET "'", "SELECT 'apt_org_" ID STARS "'"},
		{"\xc3\xa9" "apt_org_" ID SECRET "\xc3\xa9", "\xc3\xa9" "apt_org_" ID STARS "\xc3\xa9"},
		/* two tokens, and nothing between them: the prefix of the second is among the digits of the first */
		{"apt_org_" ID SECRET "apt_org_" ID SECRET, "apt_org_" ID STARS "***_org_" ID STARS},
		{"apt_org_" ID SECRET "_usr_" ID SECRET "_org_" ID SECRET, "apt_org_" ID STARS "_usr_" ID STARS "_org_" ID STARS},
		{"apt_org_" ID SECRET "/_usr_" ID SECRET, "apt_org_" ID "************************************************_/_usr_" ID SECRET},
		/* shorter: from eight characters of the secret on */
		{"apt_org_" ID "aB3dE6gH", "apt_org_" ID "********"},
		{"apt_org_" ID "aB3dE6gH...", "apt_org_" ID "********..."},
		{"apt_org_" ID "aB3dE6g", NULL},
		{"apt_org_" ID "aB3dE6g-" SECRET, NULL},
		{"apt_org_" ID, NULL},
		{"apt_org_" ID "_..." "3456", NULL},
		/* longer */
		{"apt_org_" ID SECRET SECRET, "apt_org_" ID STARS STARS},
		/* several, one after the other */
		{"apt_org_" ID SECRET ",ab_usr_" ID SECRET, "apt_org_" ID STARS ",ab_usr_" ID STARS},
		{"apt_org_" ID "aB3dE6g apt_org_" ID SECRET, "apt_org_" ID "aB3dE6g apt_org_" ID STARS},
		/* a mark within a text that looks like another mark */
		{"a_org_a_org_apt_org_" ID SECRET, "a_org_a_org_apt_org_" ID STARS},
		{"a_org_org_" ID SECRET, "a_org_org_" ID STARS},
		{"__org_apt__usr_x_usr_" ID SECRET, "__org_apt__usr_x_usr_" ID STARS},
		{"a_usr_org_" ID SECRET, "a_usr_org_" ID STARS},
		{"apt_org_org_usr_" ID SECRET, "apt_org_org_usr_" ID STARS},
		/* another case, as upper(), initcap() and lower() make it */
		{"APT_ORG_" ID SECRET, "APT_ORG_" ID STARS},
		{"Apt_Usr_" ID SECRET, "Apt_Usr_" ID STARS},
		{"X9_uSR_" ID SECRET, "X9_uSR_" ID STARS},
		{"A_org_" ID SECRET, "A_org_" ID STARS},
		{"apt_ORG_" ID SECRET, "apt_ORG_" ID STARS},
		/* none: no prefix, another kind */
		{"_org_" ID SECRET, NULL},
		{" _org_" ID SECRET, NULL},
		{"*_ORG_" ID SECRET, NULL},
		{"apt_o2g_" ID SECRET, NULL},
		{"apt_/rg_" ID SECRET, NULL},
		{"apt_app_" ID SECRET, NULL},
		{"apt_org-" ID SECRET, NULL},
		{"apt-org_" ID SECRET, NULL},
		{ID SECRET, NULL},
		/* masking must not create the end of a comment */
		{"/* apt_org_" ID "aB3dE6gH/ */", "/* apt_org_" ID "*******_/ */"},
		{"apt_org_" ID "aB3dE6gH/", "apt_org_" ID "*******_/"},
		/* of other systems: GitLab's from eight characters on, Sanctum's from forty */
		{"glpat-aB3-_.gH", "glpat-********"},
		{"xglpat-glpat-aB3", "xglpat-*********"},
		{"glpat-aB3dE6g", NULL},
		{"glpa-aB3dE6gH", NULL},
		{"42|" FORTY, "42|" STARS_40},
		{"42|" FORTY "_/", "42|" STARS_40 "_/"},
		{"|" FORTY, NULL},
		{"x|" FORTY, NULL},
		{"42|" ID "aB3dE6gHaB3dE6gHa", NULL},
		/* nothing between two: the first characters of the second are the last ones of the first */
		{"1|" FORTY "glpat-aB3dE6gH", "1|" STARS_40 "*****-********"},
		{"1|" FORTY "9|" FORTY, "1|" STARS_40 "*|" STARS_40},
		{"glpat-aB3dE6g9|" FORTY, "glpat-********|" STARS_40},
		{"apt_org_" ID SECRET "9|" FORTY, "apt_org_" ID STARS "*|" STARS_40},
		{"apt_org_" ID SECRET "glpat-aB3dE6gH", "apt_org_" ID STARS "*****-********"},
		/* one that holds one of ours */
		{"glpat-a_org_" ID SECRET "-aB3", "glpat-******" "**********************" STARS "****"},
		{"1|a_org_" ID SECRET "_aB3", "1|******" "**********************" STARS "****"},
	};
	bool		right = true;

	for (int i = 0; i < lengthof(cases); i++)
	{
		char		result[1024];
		bool		masked = masks(cases[i].text, strlen(cases[i].text), result);
		const char *expected = cases[i].expected ? cases[i].expected : cases[i].text;

		if (masked != (cases[i].expected != NULL) || strcmp(result, expected) != 0)
		{
			right = false;
			printf("# %s: became %s\n", cases[i].text, result);
		}
	}
	ok(right, "secrets within texts are masked, and nothing else");
}

/* Each generated token, cut off at each position. */
static void
masked_tokens(void)
{
	bool		right = true;

	for (int i = 0; i < 2000; i++)
	{
		pg_uuid_t	id;
		char		text[APITOKEN_TEXT_MAX + 1];
		char		result[APITOKEN_TEXT_MAX + 1];
		ApitokenParts parts;
		size_t		shown;

		apitoken_generate_id(&id);
		apitoken_generate_text(i % 3 ? "apt" : "abcdefghijkl",
							   i % 2 ? APITOKEN_USER : APITOKEN_ORGANIZATION, &id, text, &parts);
		shown = strlen(text) - APITOKEN_SECRET_CHARS - APITOKEN_CHECKSUM_CHARS;
		for (size_t length = 0; length <= strlen(text); length++)
		{
			bool		secret = length >= shown + APITOKEN_SECRET_CUT;

			right &= masks(text, length, result) == secret;
			right &= memcmp(result, text, Min(length, shown)) == 0;
			right &= !secret || strspn(result + shown, "*") == length - shown;
		}
		right &= !masks(parts.masked, strlen(parts.masked), result);
	}
	ok(right, "tokens are masked, however they are cut off");
}

/* A whole token is found whatever is around it; a part of one, or a wrong one, is not. */
static void
tokens_in_texts(void)
{
	static const char *const before[] = {"", " ", "Bearer: ", "\"", ".", "_", "a_org_", "Z", "_usr_", "apt_org_" ID "."};
	static const char *const after[] = {"", " ", "\"", ".x", "_", "a", "0000000000000000000000000000000000000000"};
	bool		right = true;

	for (int i = 0; i < 200; i++)
	{
		pg_uuid_t	id;
		char		token[APITOKEN_TEXT_MAX + 1];
		ApitokenParts parts;
		size_t		length;

		apitoken_generate_id(&id);
		apitoken_generate_text(i % 3 ? "apt" : i % 2 ? "ab" : "abcdefghijkl",
							   i % 2 ? APITOKEN_USER : APITOKEN_ORGANIZATION, &id, token, &parts);
		length = strlen(token);
		for (int b = 0; b < lengthof(before); b++)
		{
			for (int a = 0; a < lengthof(after); a++)
			{
				size_t		start = strlen(before[b]);
				size_t		size = start + length + strlen(after[a]);
				char	   *text = malloc(size);	/* a read past its end is an error */

				memcpy(text, before[b], start);
				memcpy(text + start, token, length);
				memcpy(text + start + length, after[a], size - start - length);
				right &= apitoken_holds_token(text, size);
				right &= apitoken_holds_token(text, start + length);
				right &= !apitoken_holds_token(text, start + length - 1);
				text[start + length - 1] ^= 1;
				right &= !apitoken_holds_token(text, size);
				free(text);
			}
		}
	}
	ok(right, "whole tokens are found within texts");
}

/* Mask a secret; but no comment ends there. */
static void
mask_part(const char *text, size_t length, size_t start, size_t end, char *result)
{
	memset(result + start, '*', end - start);
	if (end < length && text[end] == '/')
		result[end - 1] = '_';
}

/* The end of the characters that are digits or among `others`. */
static size_t
end_of(const char *text, size_t length, size_t at, const char *others)
{
	while (at < length && text[at] != '\0' && (strchr(digits, text[at]) != NULL || strchr(others, text[at]) != NULL))
		at++;
	return at;
}

/*
 * The same rule in its simplest form: at each position, is there a mark with a
 * character of a prefix before it, and an id and more behind it?  (The prefix may
 * be among the digits of another token.)  Or a token of another system?
 */
static bool
mask_plainly(const char *text, size_t length, char *result)
{
	bool		found = false;

	memcpy(result, text, length);
	for (size_t at = 1; at < length; at++)
	{
		size_t		body = at + 5;
		size_t		end;

		if (at >= 6 && memcmp(text + at - 6, "glpat-", 6) == 0 && (end = end_of(text, length, at, "-_.")) >= at + 8)
		{
			mask_part(text, length, at, end, result);
			found = true;
		}
		if (text[at] == '|' && text[at - 1] >= '0' && text[at - 1] <= '9' &&
			(end = end_of(text, length, at + 1, "_")) >= at + 1 + 40)
		{
			mask_part(text, length, at + 1, end, result);
			found = true;
		}
		if (body > length ||
			(strncasecmp(text + at, "_org_", 5) != 0 && strncasecmp(text + at, "_usr_", 5) != 0) ||
			text[at - 1] == '\0' || strchr(digits, text[at - 1]) == NULL)
			continue;
		end = end_of(text, length, body, "");
		if (end < body + APITOKEN_ID_CHARS + APITOKEN_SECRET_CUT)
			continue;
		mask_part(text, length, body + APITOKEN_ID_CHARS, end, result);
		found = true;
	}
	return found;
}

/* Texts made of pieces of tokens, in random order. */
static void
masked_garbage(void)
{
	static const char *const pieces[] = {"_", "_org_", "_usr_", "a_org_", "9_usr_", "A_ORG_", "Z_Usr_", "org", "_or", "/", "*", "z", "A",
		" ", "\x80", "\xff", ID, ID, SECRET, SECRET, "aB3dE6gH", "aB3dE6g", "apt_org_" ID SECRET,
		"glpat-", "glpat", "-", ".", "9|", "|", FORTY
	};
	char		text[4096];
	char		expected[4096];
	char		result[4096];
	int			with = 0;
	bool		right = true;

	for (int round = 0; round < 100000 && right; round++)
	{
		uint8		random[24];
		size_t		length = 0;
		bool		found;

		pg_strong_random(random, sizeof(random));
		for (int i = 0; i < random[0] % sizeof(random); i++)
		{
			const char *piece = pieces[random[i] % lengthof(pieces)];

			memcpy(text + length, piece, strlen(piece));
			length += strlen(piece);
		}
		/* cut anywhere */
		length -= Min(length, random[1] % 16);
		text[length] = '\0';

		found = mask_plainly(text, length, expected);
		right = masks(text, length, result) == found && memcmp(result, expected, length) == 0;
		with += found;
		if (!right)
			printf("# differs: %s\n", text);
	}
	ok(right && with > 1000, "texts made of pieces of tokens are masked by the plain rule");
}

/*
 * Long and hostile: with quadratic time, this would not end.
 */
static void
masked_long(void)
{
	static const char *const units[] = {"_", "a_org_", "a_usr_" ID, "a_org_" ID "aB3dE6", "a", "_org_", "glpat-", "9|",
		"glpat-aB3dE6g ", "9|" ID "|", "glpat-aB3dE6gH ", "a_org_" ID "aB3dE6gH_"};
	size_t		size = 8 * 1024 * 1024;
	char	   *text = malloc(size);
	bool		right = true;

	for (int i = 0; i < lengthof(units); i++)
	{
		size_t		unit = strlen(units[i]);

		for (size_t at = 0; at < size; at++)
			text[at] = units[i][at % unit];
		right &= apitoken_mask_secrets(text, size) ==
			(i == lengthof(units) - 1 || i == lengthof(units) - 2 || strcmp(units[i], "glpat-") == 0);
	}

	/* one long token made only of digits */
	memcpy(text, "apt_org_", 8);
	memset(text + 8, '7', size - 8);
	right &= apitoken_mask_secrets(text, size);
	right &= text[8 + APITOKEN_ID_CHARS - 1] == '7' && text[8 + APITOKEN_ID_CHARS] == '*' && text[size - 1] == '*';
	free(text);
	ok(right, "long hostile texts");
}

int
main(int argc, char **argv)
{
	const char *directory = argc > 1 ? argv[1] : "test/vectors";

	make_crc_table();
	valid_vectors(directory);
	malformed_vectors(directory);
	prefix_rule();
	id_limit();
	many_tokens();
	bias_is_noticed();
	rejection();
	random_failure();
	odd_clocks();
	single_changes();
	garbage();
	masked_texts();
	masked_tokens();
	tokens_in_texts();
	masked_garbage();
	masked_long();
	printf("1..%d\n", tests);
	return failures > 0;
}
