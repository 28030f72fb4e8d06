/*
 * token.c
 *		The text of a token: making it, taking it apart, masking it, and
 *		finding it in other texts.
 *
 * A token is "<prefix>_<kind>_<id><secret><checksum>", for example "apt_org_"
 * followed by 71 base62 digits.  The checksum lets mistyped and made-up texts
 * be refused before any table is touched, and secret scanners be certain.
 *
 * Whatever a stranger sends arrives here first.  Therefore nothing in this
 * file allocates, raises or reads a catalog: it can be fuzzed and tested
 * alone, without a server.
 */
#include "postgres.h"

#include <time.h>

#include "text/text.h"
#include "port/pg_bswap.h"
#include "utils/pg_crc.h"

#define BASE 62
#define KIND_CHARS 3

/* what follows the prefix always has the same length, so that finds the prefix */
#define TAIL_CHARS (1 + KIND_CHARS + 1 + APITOKEN_BODY_CHARS)

/* "_org_", "_usr_" */
#define MARK_CHARS (1 + KIND_CHARS + 1)

#define MASK "_..."
#define MASK_SHOWN 4

/* the largest multiple of BASE that a byte can hold: bytes from there on are thrown away */
#define UNBIASED_BYTES (256 - 256 % BASE)

/* a UUID's timestamp has 48 bits of milliseconds, then 12 bits of their fraction */
#define FRACTION_BITS 12

/* a UUID as four 32-bit digits, most significant first */
#define LIMBS (UUID_LEN / sizeof(uint32))

/* as many base62 digits as a limb can hold, and how many values they have */
#define GROUP_DIGITS 5
#define GROUP_BASE UINT64CONST(916132832)	/* BASE to that power */

static const char base62_digits[] =
"0123456789"
"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"abcdefghijklmnopqrstuvwxyz";

/* A table, as comparisons of random digits mislead the branch predictor. */
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

/* The value of a base62 digit, or -1. */
static inline int
digit_value(char digit)
{
	return IS_HIGHBIT_SET(digit) ? -1 : base62_values[(unsigned char) digit];
}

/*
 * 22 digits can say almost three bits more than an id has: those are refused.
 * They are taken in groups as large as a limb can hold; the first has two.
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
 * The checksum of a text.  What PostgreSQL calls the traditional CRC-32 is
 * zlib's; its pg_crc32c has another polynomial.
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

/* Six digits can say more than 32 bits; such a number equals no checksum. */
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

/* Compared by hand: what a letter is must not depend on the locale. */
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

/* May new tokens begin with this?  [a-z][a-z0-9]{1,11} */
bool
apitoken_valid_prefix(const char *prefix)
{
	return valid_prefix(prefix, strlen(prefix));
}

/* How a token says whose it is. */
const char *
apitoken_kind_code(ApitokenKind kind)
{
	return kind == APITOKEN_ORGANIZATION ? "org" : "usr";
}

/* The kind as SQL names it. */
const char *
apitoken_kind_name(ApitokenKind kind)
{
	return kind == APITOKEN_ORGANIZATION ? "organization" : "user";
}

/* The kind of this name, or of this code. */
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

/* Prefix, kind and id stay readable; the rest cannot be completed to a token. */
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
 * Take a text apart.  Any bytes of any length will do, zeros among them; no
 * byte past length is read.  False for whatever is not exactly a token's text,
 * and then parts is left as it was.
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

/* An id begins with 48 bits of milliseconds since 1970. */
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
 * A new id: UUID version 7 with a fraction of a millisecond in place of the
 * leftmost random bits (RFC 9562, section 6.2, method 3).
 *
 * Ids made by one process strictly ascend, so that they can be listed in the
 * order of creation.  When the clock stands still or goes back, the timestamp
 * runs ahead of it by the smallest step (a quarter of a microsecond) an id.
 */
bool
apitoken_generate_id(pg_uuid_t *id)
{
	static uint64 last_stamp = 0;
	struct timespec now = {0};
	uint64		stamp;

	if (!pg_strong_random(id->data + 8, UUID_LEN - 8))
		return false;

	/* a clock that cannot be read is one that stands still */
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

/* Microseconds from 1970 to 2000, where PostgreSQL's timestamps begin. */
#define EPOCH ((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* When an id was made, to the millisecond (RFC 9562, section 5.7). */
TimestampTz
apitoken_id_time(const pg_uuid_t *id)
{
	int64		milliseconds = 0;

	for (int i = 0; i < 6; i++)
		milliseconds = milliseconds << 8 | id->data[i];
	return milliseconds * 1000 - EPOCH;
}

/* The least id that can have been made at this time. */
void
apitoken_least_id(TimestampTz at, pg_uuid_t *id)
{
	memset(id, 0, sizeof(*id));
	put_milliseconds(Max(at + EPOCH, 0) / 1000, id);
}

/*
 * A new secret: 43 uniform base62 digits.  A byte modulo 62 would favour the
 * first eight digits, so the few bytes that cause it are thrown away.
 */
static bool
fill_secret(char *secret)
{
	uint8		random[64];		/* mostly enough the first time */
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
 * A new token's text, with its terminating zero, and its parts.  False when the
 * random source fails; text is all zeros then.
 */
bool
apitoken_generate_text(const char *prefix, ApitokenKind kind, const pg_uuid_t *id,
					   char text[APITOKEN_TEXT_MAX + 1], ApitokenParts *parts)
{
	size_t		prefix_length = strlen(prefix);
	char	   *end = text;

	Assert(apitoken_valid_prefix(prefix));

	/* also keeps a bad prefix from writing past the end of text */
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

	/* nothing is handed out that would not be accepted */
	if (apitoken_parse_text(text, end - text, parts))
		return true;

failed:
	explicit_bzero(text, APITOKEN_TEXT_MAX + 1);
	return false;
}

/*
 * Find a secret in text[*start .. length): what follows "_org_" or "_usr_", a
 * character of a prefix before it and an id behind it, however long it is.  No
 * checksum is asked for: a text that was cut off, mistyped or folded to lower
 * case has most of a secret in it all the same.
 *
 * Looks at each character a bounded number of times, whatever the text is: no
 * mark begins within a body.
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
		if (at[MARK_CHARS - 1] != '_' || at == text ||
			!((at[-1] >= 'a' && at[-1] <= 'z') || (at[-1] >= '0' && at[-1] <= '9')) ||
			(memcmp(at + 1, apitoken_kind_code(APITOKEN_ORGANIZATION), KIND_CHARS) != 0 &&
			 memcmp(at + 1, apitoken_kind_code(APITOKEN_USER), KIND_CHARS) != 0))
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

		/* the mark's end can be the beginning of one: "a_usr_org_" */
		at += MARK_CHARS - 1;
	}
	return false;
}

bool
apitoken_holds_secret(const char *text, size_t length)
{
	size_t		start = 0;
	size_t		count;

	return next_secret(text, length, &start, &count);
}

/*
 * Overwrite each secret in a text, without changing its length: positions in
 * it stay right.  True if there was one.  A masked text holds none.
 */
bool
apitoken_mask_secrets(char *text, size_t length)
{
	size_t		start = 0;
	size_t		count;
	bool		found = false;

	while (next_secret(text, length, &start, &count))
	{
		memset(text + start, '*', count);
		start += count;

		/* in a comment of a statement, which others scan, "*" and "/" would be its end */
		if (start < length && text[start] == '/')
			text[start - 1] = '_';
		found = true;
	}
	return found;
}
