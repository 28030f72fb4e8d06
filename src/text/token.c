/*
 * token.c
 *		The text of a token: generate, parse and mask it, and find it in
 *		other texts.
 *
 * A token is "<prefix>_<kind>_<id><secret><checksum>", for example "apt_org_"
 * followed by 71 base62 digits.  Because of the checksum, mistyped and invented
 * texts are refused before any table is read, and secret scanners can recognize
 * a token with certainty.
 *
 * This file is the first to process input from unauthenticated clients.  It
 * does not allocate memory, raise errors or read a catalog, so it can be
 * fuzzed and tested without a server.
 */
#include "postgres.h"

#include <time.h>

#include "text/text.h"
#include "port/pg_bswap.h"
#include "utils/pg_crc.h"

#define BASE 62
#define KIND_CHARS 3

/* The part after the prefix has a fixed length, so the total length gives the prefix's length. */
#define TAIL_CHARS (1 + KIND_CHARS + 1 + APITOKEN_BODY_CHARS)

/* "_org_", "_usr_" */
#define MARK_CHARS (1 + KIND_CHARS + 1)

#define MASK "_..."
#define MASK_SHOWN 4

/* Random bytes from this value on are discarded: the largest multiple of BASE up to 256. */
#define UNBIASED_BYTES (256 - 256 % BASE)

/* A UUID's timestamp has 48 bits of milliseconds, and 12 bits for the fraction of a millisecond. */
#define FRACTION_BITS 12

/* The random bytes of so many ids are drawn at once. */
#define RANDOM_OF_IDS 64

/* A UUID is converted as a number of four 32-bit limbs, most significant first. */
#define LIMBS (UUID_LEN / sizeof(uint32))

/* the number of base62 digits that fit into a limb */
#define GROUP_DIGITS 5
#define GROUP_BASE UINT64CONST(916132832)	/* BASE to the power of GROUP_DIGITS */

static const char base62_digits[] =
"0123456789"
"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"abcdefghijklmnopqrstuvwxyz";

/* A table is faster than comparisons, which the CPU cannot predict for random digits. */
static const int8 base62_values[128] = {
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -1, -1, -1, -1, -1,
	-1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
	25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, -1, -1, -1, -1, -1,
	-1, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50,
	51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, -1, -1, -1, -1, -1,
};

/* Returns the value of a base62 digit, or -1 for any other character. */
static inline int
digit_value(char digit)
{
	return IS_HIGHBIT_SET(digit) ? -1 : base62_values[(unsigned char) digit];
}

/*
 * Decode 22 base62 digits.  They can encode numbers of almost 131 bits; this
 * returns false for a number that does not fit into the 128 bits of an id.  The
 * digits are processed in groups of five, after a first group of two.
 */
static bool
decode_id(const char *digits, pg_uuid_t *id)
{
	uint32		limbs[LIMBS] = {0};

	for (int i = 0; i < APITOKEN_ID_CHARS;)
	{
		int			end = i == 0 ? APITOKEN_ID_CHARS % GROUP_DIGITS : i + GROUP_DIGITS;
		uint64		carry = 0;

		for (; i < end; i++)
			carry = carry * BASE + digit_value(digits[i]);
		for (int limb = LIMBS - 1; limb >= 0; limb--)
		{
			carry += (uint64) limbs[limb] * GROUP_BASE;
			limbs[limb] = (uint32) carry;
			carry >>= 32;
		}
		if (carry != 0)
			return false;
	}

	for (int limb = 0; limb < LIMBS; limb++)
		limbs[limb] = pg_hton32(limbs[limb]);
	memcpy(id->data, limbs, UUID_LEN);
	return true;
}

static void
encode_id(const pg_uuid_t *id, char *digits)
{
	uint32		limbs[LIMBS];

	memcpy(limbs, id->data, UUID_LEN);
	for (int limb = 0; limb < LIMBS; limb++)
		limbs[limb] = pg_ntoh32(limbs[limb]);

	for (int i = APITOKEN_ID_CHARS - 1; i >= 0; i--)
	{
		uint64		remainder = 0;

		for (int limb = 0; limb < LIMBS; limb++)
		{
			remainder = (remainder << 32) | limbs[limb];
			limbs[limb] = (uint32) (remainder / BASE);
			remainder %= BASE;
		}
		digits[i] = base62_digits[remainder];
	}
}

/*
 * Compute the checksum of a text: the CRC-32 that zlib uses, which PostgreSQL
 * calls traditional.  (pg_crc32c uses a different polynomial.)
 */
static uint32
checksum_of(const char *text, size_t length)
{
	pg_crc32	crc;

	INIT_TRADITIONAL_CRC32(crc);
	COMP_TRADITIONAL_CRC32(crc, text, length);
	FIN_TRADITIONAL_CRC32(crc);
	return crc;
}

/* Six digits can encode a number above 32 bits, which then equals no checksum. */
static uint64
decode_checksum(const char *digits)
{
	uint64		value = 0;

	for (int i = 0; i < APITOKEN_CHECKSUM_CHARS; i++)
		value = value * BASE + digit_value(digits[i]);
	return value;
}

static void
encode_checksum(uint32 value, char *digits)
{
	for (int i = APITOKEN_CHECKSUM_CHARS - 1; i >= 0; i--)
	{
		digits[i] = base62_digits[value % BASE];
		value /= BASE;
	}
}

/* This does not use isalpha() or isalnum(), whose results depend on the locale. */
static bool
valid_prefix(const char *prefix, size_t length)
{
	if (length < APITOKEN_PREFIX_MIN || length > APITOKEN_PREFIX_MAX)
		return false;
	if (prefix[0] < 'a' || prefix[0] > 'z')
		return false;
	for (size_t i = 1; i < length; i++)
	{
		if (!(prefix[i] >= 'a' && prefix[i] <= 'z') &&
			!(prefix[i] >= '0' && prefix[i] <= '9'))
			return false;
	}
	return true;
}

/* Is this a valid prefix?  It must match [a-z][a-z0-9]{1,11}. */
bool
apitoken_valid_prefix(const char *prefix)
{
	return valid_prefix(prefix, strlen(prefix));
}

/* Returns the kind as it appears in a token's text. */
const char *
apitoken_kind_code(ApitokenKind kind)
{
	return kind == APITOKEN_ORGANIZATION ? "org" : "usr";
}

/* Returns the kind as it appears in SQL. */
const char *
apitoken_kind_name(ApitokenKind kind)
{
	return kind == APITOKEN_ORGANIZATION ? "organization" : "user";
}

/* Look up a kind by its name or code.  Returns false if there is none. */
bool
apitoken_kind_from_name(const char *name, ApitokenKind *kind)
{
	for (*kind = APITOKEN_ORGANIZATION; *kind <= APITOKEN_USER; (*kind)++)
	{
		if (strcmp(name, apitoken_kind_name(*kind)) == 0 || strcmp(name, apitoken_kind_code(*kind)) == 0)
			return true;
	}
	return false;
}

/*
 * Write the masked form of a token's text.  Prefix, kind, id and the last four
 * characters stay readable; the rest of the token cannot be derived from them.
 */
static void
fill_masked(const char *text, size_t length, char *masked)
{
	size_t		shown = length - APITOKEN_SECRET_CHARS - APITOKEN_CHECKSUM_CHARS;

	memcpy(masked, text, shown);
	masked += shown;
	memcpy(masked, MASK, strlen(MASK));
	masked += strlen(MASK);
	memcpy(masked, text + length - MASK_SHOWN, MASK_SHOWN);
	masked[MASK_SHOWN] = '\0';
}

/*
 * Parse the text of a token.  The input may be any bytes of any length,
 * including zeros; no byte past length is read.  Returns false, and leaves
 * "parts" unchanged, unless the input is exactly a token's text.
 */
bool
apitoken_parse_text(const char *text, size_t length, ApitokenParts *parts)
{
	size_t		prefix_length;
	const char *code;
	const char *body;
	const char *checksum;
	ApitokenKind kind;
	pg_uuid_t	id;

	if (length < APITOKEN_PREFIX_MIN + TAIL_CHARS || length > APITOKEN_TEXT_MAX)
		return false;

	prefix_length = length - TAIL_CHARS;
	if (!valid_prefix(text, prefix_length))
		return false;

	code = text + prefix_length + 1;
	body = code + KIND_CHARS + 1;
	checksum = text + length - APITOKEN_CHECKSUM_CHARS;
	if (code[-1] != '_' || body[-1] != '_')
		return false;

	if (memcmp(code, apitoken_kind_code(APITOKEN_ORGANIZATION), KIND_CHARS) == 0)
		kind = APITOKEN_ORGANIZATION;
	else if (memcmp(code, apitoken_kind_code(APITOKEN_USER), KIND_CHARS) == 0)
		kind = APITOKEN_USER;
	else
		return false;

	for (int i = 0; i < APITOKEN_BODY_CHARS; i++)
	{
		if (digit_value(body[i]) < 0)
			return false;
	}

	if (decode_checksum(checksum) != checksum_of(text, checksum - text))
		return false;
	if (!decode_id(body, &id))
		return false;

	memcpy(parts->prefix, text, prefix_length);
	parts->prefix[prefix_length] = '\0';
	parts->kind = kind;
	parts->id = id;
	fill_masked(text, length, parts->masked);
	return true;
}

/* Set the first 48 bits of an id: the milliseconds since 1970. */
static void
put_milliseconds(uint64 milliseconds, pg_uuid_t *id)
{
	for (int i = 5; i >= 0; i--)
	{
		id->data[i] = (unsigned char) milliseconds;
		milliseconds >>= 8;
	}
}

/*
 * Generate an id: a UUID version 7 with a fraction of a millisecond in place of
 * the leftmost random bits (RFC 9562, section 6.2, method 3).  Returns false if
 * the random source fails.
 *
 * The ids of one process strictly ascend, so they can be listed in the order of
 * creation.  If the clock stands still or goes back, each new id gets the last
 * timestamp plus the smallest step, a quarter of a microsecond.
 */
bool
apitoken_generate_id(pg_uuid_t *id)
{
	static uint64 last_stamp = 0;
	static uint8 random[RANDOM_OF_IDS][UUID_LEN - 8];
	static int	left = 0;
	struct timespec now = {0};
	uint64		stamp;

	/*
	 * An id is not secret, so its random bytes may be drawn in advance.  Each draw
	 * takes long.  No process may inherit what is left: the postmaster, which starts
	 * all others, generates no ids.
	 */
	if (left == 0)
	{
		if (!pg_strong_random(random, sizeof(random)))
			return false;
		left = RANDOM_OF_IDS;
	}
	memcpy(id->data + 8, random[--left], UUID_LEN - 8);

	/* If the clock cannot be read, this continues as if it stood still. */
	(void) clock_gettime(CLOCK_REALTIME, &now);
	stamp = ((uint64) now.tv_sec * 1000 + now.tv_nsec / 1000000) << FRACTION_BITS;
	stamp += ((uint64) (now.tv_nsec % 1000000) << FRACTION_BITS) / 1000000;
	if (stamp <= last_stamp)
		stamp = last_stamp + 1;
	last_stamp = stamp;

	put_milliseconds(stamp >> FRACTION_BITS, id);
	id->data[6] = 0x70 | ((stamp >> 8) & 0x0f); /* version 7 */
	id->data[7] = (unsigned char) stamp;
	id->data[8] = 0x80 | (id->data[8] & 0x3f);	/* variant 10 */
	return true;
}

/* For qsort() and bsearch(): the order of ids, which is about that of their creation. */
int
apitoken_compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

/* microseconds from 1970 to 2000, the epoch of PostgreSQL's timestamps */
#define EPOCH ((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* Returns the time of creation of an id, with millisecond precision (RFC 9562, section 5.7). */
TimestampTz
apitoken_id_time(const pg_uuid_t *id)
{
	int64		milliseconds = 0;

	for (int i = 0; i < 6; i++)
		milliseconds = milliseconds << 8 | id->data[i];
	return milliseconds * 1000 - EPOCH;
}

/* Set "id" to the smallest id with this time of creation. */
void
apitoken_min_id(TimestampTz at, pg_uuid_t *id)
{
	memset(id, 0, sizeof(*id));
	put_milliseconds(Max(at + EPOCH, 0) / 1000, id);
}

/*
 * Generate a secret: 43 uniformly distributed base62 digits.  A byte modulo 62
 * would favor the first eight digits, so the few bytes from UNBIASED_BYTES on
 * are discarded.
 */
static bool
fill_secret(char *secret)
{
	uint8		random[64];		/* usually enough for one pass */
	int			filled = 0;
	bool		drawn;

	do
	{
		drawn = pg_strong_random(random, sizeof(random));
		for (int i = 0; drawn && i < sizeof(random) && filled < APITOKEN_SECRET_CHARS; i++)
		{
			if (random[i] < UNBIASED_BYTES)
				secret[filled++] = base62_digits[random[i] % BASE];
		}
	} while (drawn && filled < APITOKEN_SECRET_CHARS);

	explicit_bzero(random, sizeof(random));
	return drawn;
}

/*
 * Generate the null-terminated text of a new token, and its parts.  Returns
 * false, with "text" all zeros, if the random source fails.
 */
bool
apitoken_generate_text(const char *prefix, ApitokenKind kind, const pg_uuid_t *id,
					   char text[APITOKEN_TEXT_MAX + 1], ApitokenParts *parts)
{
	size_t		prefix_length = strlen(prefix);
	char	   *end = text;

	Assert(apitoken_valid_prefix(prefix));

	/* This check also prevents an invalid prefix from overflowing the buffer. */
	if (!valid_prefix(prefix, prefix_length))
		goto failed;

	memcpy(end, prefix, prefix_length);
	end += prefix_length;
	*end++ = '_';
	memcpy(end, apitoken_kind_code(kind), KIND_CHARS);
	end += KIND_CHARS;
	*end++ = '_';
	encode_id(id, end);
	end += APITOKEN_ID_CHARS;
	if (!fill_secret(end))
		goto failed;
	end += APITOKEN_SECRET_CHARS;
	encode_checksum(checksum_of(text, end - text), end);
	end += APITOKEN_CHECKSUM_CHARS;
	*end = '\0';

	/* Return the text only if it can be parsed again. */
	if (apitoken_parse_text(text, end - text, parts))
		return true;

failed:
	explicit_bzero(text, APITOKEN_TEXT_MAX + 1);
	return false;
}

/*
 * Is this "_org_" or "_usr_", after a character that a prefix can have?  Upper
 * and lower case are the same, because upper(), lower() and initcap() of a token
 * still contain most of its secret.
 */
static bool
is_mark(const char *at)
{
	char		code[KIND_CHARS];

	if (at[0] != '_' || at[MARK_CHARS - 1] != '_' || digit_value(at[-1]) < 0)
		return false;
	for (int i = 0; i < KIND_CHARS; i++)
		code[i] = at[1 + i] | ('a' ^ 'A');
	return memcmp(code, apitoken_kind_code(APITOKEN_ORGANIZATION), KIND_CHARS) == 0 ||
		memcmp(code, apitoken_kind_code(APITOKEN_USER), KIND_CHARS) == 0;
}

/*
 * Find the next secret in text[*start .. length).  The function searches for a
 * mark.  The mark is followed by base62 digits: an id, then the secret, which
 * may be of any length from APITOKEN_SECRET_CUT on.  The checksum is not
 * verified, because a text that was truncated, mistyped or folded to another
 * case still contains most of a secret.
 *
 * The function examines each character a bounded number of times, because no
 * mark can begin within the digits that follow a mark.
 */
static bool
next_secret(const char *text, size_t length, size_t *start, size_t *count)
{
	const char *end = text + length;
	const char *at = text + *start;

	while ((at = memchr(at, '_', end - at)) != NULL)
	{
		const char *secret = at + MARK_CHARS + APITOKEN_ID_CHARS;
		const char *stop;

		if (end - at < MARK_CHARS + APITOKEN_ID_CHARS + APITOKEN_SECRET_CUT)
			return false;
		if (at == text || !is_mark(at))
		{
			at++;
			continue;
		}

		stop = at + MARK_CHARS;
		while (stop < end && digit_value(*stop) >= 0)
			stop++;
		if (stop - secret >= APITOKEN_SECRET_CUT)
		{
			*start = secret - text;
			*count = stop - secret;
			return true;
		}

		/* The last character of a mark can be the first one of the next: "a_usr_org_". */
		at += MARK_CHARS - 1;
	}
	return false;
}

/* The prefix of GitLab's tokens, and the fewest characters that follow it in a whole one, and in a part of one. */
#define GITLAB_PREFIX "glpat-"
#define GITLAB_CHARS 20
#define GITLAB_CUT 8

/* The fewest characters after the bar in a token of Laravel Sanctum. */
#define SANCTUM_CHARS 40

static size_t
gitlab_chars(const char *at, const char *end)
{
	const char *stop = at;

	while (stop < end && (digit_value(*stop) >= 0 || *stop == '-' || *stop == '_' || *stop == '.'))
		stop++;
	return stop - at;
}

/*
 * Find the next secret of another system in text[*start .. length).  Only these can be
 * recognized: GitLab's "glpat-..." by its prefix, and Laravel Sanctum's "42|..." by
 * its form.  Each is found by the character before the secret, because the ones before
 * that can be the end of the last secret, if nothing is between the two.
 */
static bool
next_foreign_secret(const char *text, size_t length, size_t *start, size_t *count)
{
	const char *end = text + length;
	const char *at = text + *start;

	for (; at < end; at++)
	{
		const char *stop;

		if (*at == '|' && at > text && at[-1] >= '0' && at[-1] <= '9')
		{
			stop = at + 1;
			while (stop < end && (digit_value(*stop) >= 0 || *stop == '_'))
				stop++;
			if (stop - at - 1 < SANCTUM_CHARS)
				continue;
			*start = at + 1 - text;
			*count = stop - at - 1;
			return true;
		}
		if (*at == '-' && at + 1 - text >= strlen(GITLAB_PREFIX) &&
			memcmp(at + 1 - strlen(GITLAB_PREFIX), GITLAB_PREFIX, strlen(GITLAB_PREFIX)) == 0)
		{
			*start = at + 1 - text;
			*count = gitlab_chars(at + 1, end);
			if (*count >= GITLAB_CUT)
				return true;
		}
	}
	return false;
}

/*
 * Find the next token of another system that has a prefix of its own in text[*start ..
 * length): one of GitLab's.
 */
bool
apitoken_next_foreign(const char *text, size_t length, size_t *start, size_t *token_length)
{
	const char *end = text + length;

	for (const char *at = text + *start; at < end; at++)
	{
		size_t		count;

		if (*at != GITLAB_PREFIX[0] || end - at <= strlen(GITLAB_PREFIX) ||
			memcmp(at, GITLAB_PREFIX, strlen(GITLAB_PREFIX)) != 0)
			continue;
		count = gitlab_chars(at + strlen(GITLAB_PREFIX), end);
		/* a full stop ends the sentence */
		while (count > 0 && at[strlen(GITLAB_PREFIX) + count - 1] == '.')
			count--;
		if (count < GITLAB_CHARS)
			continue;
		*start = at - text;
		*token_length = strlen(GITLAB_PREFIX) + count;
		return true;
	}
	return false;
}

bool
apitoken_holds_secret(const char *text, size_t length)
{
	size_t		start = 0;
	size_t		count;

	if (next_secret(text, length, &start, &count))
		return true;
	start = 0;
	return next_foreign_secret(text, length, &start, &count);
}

/*
 * Find the next whole token in text[*start .. length), with a valid checksum.  A
 * search for further ones continues after it.
 */
bool
apitoken_next_token(const char *text, size_t length, size_t *start, size_t *token_length, ApitokenParts *parts)
{
	size_t		secret = *start;
	size_t		count;

	for (; next_secret(text, length, &secret, &count); secret += count)
	{
		const char *mark = text + secret - APITOKEN_ID_CHARS - MARK_CHARS;

		if (count < APITOKEN_SECRET_CHARS + APITOKEN_CHECKSUM_CHARS)
			continue;
		for (size_t prefix = APITOKEN_PREFIX_MIN; prefix <= Min(APITOKEN_PREFIX_MAX, mark - text); prefix++)
		{
			/* the checksum includes the prefix, so only one of these is a token */
			if (!apitoken_parse_text(mark - prefix, prefix + TAIL_CHARS, parts))
				continue;
			*start = mark - prefix - text;
			*token_length = prefix + TAIL_CHARS;
			return true;
		}
	}
	return false;
}

/* Does a text contain a whole token? */
bool
apitoken_holds_token(const char *text, size_t length)
{
	size_t		start = 0;
	size_t		token_length;
	ApitokenParts parts;

	return apitoken_next_token(text, length, &start, &token_length, &parts);
}

/*
 * Overwrite each secret in a text, and return whether there was one.  The
 * length of the text does not change, so positions in it stay valid.  The
 * masked form of a token contains no secret.
 *
 * Foreign secrets come first.  Each of them holds a secret of ours completely or not at
 * all, but may begin with the last digits of one, which must not be overwritten yet.
 */
bool
apitoken_mask_secrets(char *text, size_t length)
{
	bool		(*const nexts[]) (const char *text, size_t length, size_t *start, size_t *count) = {
		next_foreign_secret, next_secret
	};
	bool		found = false;

	for (int i = 0; i < lengthof(nexts); i++)
	{
		size_t		start = 0;
		size_t		count = 0;
		bool		more = nexts[i] (text, length, &start, &count);

		while (more)
		{
			size_t		next = start + count;
			size_t		next_count = 0;

			/*
			 * The prefix of the next token can be the end of these digits, if nothing is
			 * between the two.  So it is searched before they are overwritten.
			 */
			more = nexts[i] (text, length, &next, &next_count);
			memset(text + start, '*', count);

			/* Within an SQL comment, a "*" before this "/" would end the comment. */
			if (start + count < length && text[start + count] == '/')
				text[start + count - 1] = '_';
			found = true;
			start = next;
			count = next_count;
		}
	}
	return found;
}
