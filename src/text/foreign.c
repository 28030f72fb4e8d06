/*
 * foreign.c
 *		Formats of tokens that other systems made: their names, the shapes of
 *		their texts, and what these systems store.
 *
 * A text is tried as a format only if it has the format's shape, which divides it
 * into the key by which the token is looked up, and what its digest is made of.
 * Like token.c, this is the first to process input from unauthenticated clients:
 * it does not allocate memory, raise errors or read a catalog.
 */
#include "postgres.h"

#include "text/text.h"

typedef bool (*Shape) (const char *text, size_t length, ApitokenForeignParts *parts);

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_letter_or_digit(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Characters of generated tokens: letters, digits, and those of base64, base64url and URLs. */
static bool
is_token_char(char c)
{
	return is_letter_or_digit(c) || c == '-' || c == '_' || c == '.' || c == '+' || c == '/' || c == '=' || c == '~';
}

static bool
is_key_char(char c)
{
	return is_letter_or_digit(c) || c == '-' || c == '_';
}

static bool
is_base64_char(char c)
{
	return is_letter_or_digit(c) || c == '+' || c == '/' || c == '-' || c == '_' || c == '=';
}

/* ASCII without blanks and control characters, as HTTP can send it. */
static bool
is_graphic(char c)
{
	return c > ' ' && c < 0x7f;
}

static bool
is_hex(char c)
{
	return apitoken_hex_value(c) >= 0;
}

static bool
consists_of(const char *text, size_t length, bool (*is_member) (char c))
{
	for (size_t i = 0; i < length; i++)
	{
		if (!is_member(text[i]))
			return false;
	}
	return true;
}

/* The parts of a text of which the first characters, or none, are the key, and all are the secret. */
static void
set_parts(ApitokenForeignParts *parts, const char *key, size_t key_length, const char *secret, size_t secret_length)
{
	parts->key = key;
	parts->key_length = key_length;
	parts->secret = secret;
	parts->secret_length = secret_length;
}

/* "<id>|<secret>", or the secret alone; the id is a number, or a UUID or ULID. */
static bool
shape_sanctum(const char *text, size_t length, ApitokenForeignParts *parts)
{
	const char *bar = memchr(text, '|', length);
	const char *secret = bar == NULL ? text : bar + 1;
	size_t		key_length = bar == NULL ? 0 : bar - text;
	size_t		secret_length = length - (secret - text);

	if (secret_length < 20 || !consists_of(secret, secret_length, is_token_char))
		return false;
	if (bar != NULL && (key_length < 1 || key_length > APITOKEN_LOOKUP_KEY_MAX ||
						!consists_of(text, key_length, is_key_char)))
		return false;
	set_parts(parts, bar == NULL ? NULL : text, key_length, secret, secret_length);
	return true;
}

static bool
shape_strapi(const char *text, size_t length, ApitokenForeignParts *parts)
{
	set_parts(parts, NULL, 0, text, length);
	return length == 256 && consists_of(text, length, is_hex);
}

static bool
knox(const char *text, size_t length, size_t key_length, ApitokenForeignParts *parts)
{
	set_parts(parts, text, key_length, text, length);
	return length >= 32 && length <= 256;
}

/* Hexadecimal digits, from version 5 on after a prefix that the application chooses. */
static bool
shape_knox5(const char *text, size_t length, ApitokenForeignParts *parts)
{
	return knox(text, length, 15, parts) && consists_of(text, length, is_token_char) &&
		consists_of(text + length - 16, 16, is_hex);
}

static bool
shape_knox4(const char *text, size_t length, ApitokenForeignParts *parts)
{
	return knox(text, length, 8, parts) && length % 2 == 0 && consists_of(text, length, is_hex);
}

/* "<prefix>.<secret>" */
static bool
shape_drf_api_key(const char *text, size_t length, ApitokenForeignParts *parts)
{
	const char *dot = memchr(text, '.', length);
	size_t		key_length = dot == NULL ? 0 : dot - text;

	if (key_length < 1 || key_length > APITOKEN_LOOKUP_KEY_MAX || length - key_length - 1 < 16)
		return false;
	set_parts(parts, text, key_length, text, length);
	return consists_of(text, key_length, is_key_char) &&
		consists_of(dot + 1, length - key_length - 1, is_key_char);
}

/* Texts without a form of their own: a prefix that the application chooses, and random characters. */
static bool
shape_random(const char *text, size_t length, ApitokenForeignParts *parts)
{
	set_parts(parts, NULL, 0, text, length);
	return length >= 16 && consists_of(text, length, is_token_char);
}

static bool
shape_gitlab(const char *text, size_t length, ApitokenForeignParts *parts)
{
	return length >= 20 && shape_random(text, length, parts);
}

/* "<prefix>_<short token>_<long token>"; the prefix may contain "_". */
static bool
shape_prefixed_api_key(const char *text, size_t length, ApitokenForeignParts *parts)
{
	size_t		last = length;
	size_t		middle;

	while (last > 0 && text[last - 1] != '_')
		last--;
	if (last < 2 || length - last < 16)
		return false;
	middle = last - 1;
	while (middle > 0 && text[middle - 1] != '_')
		middle--;
	if (middle < 2 || last - 1 - middle < 4 || last - 1 - middle > APITOKEN_LOOKUP_KEY_MAX)
		return false;
	set_parts(parts, text + middle, last - 1 - middle, text + last, length - last);
	return consists_of(text, middle, is_key_char) &&
		consists_of(text + middle, last - 1 - middle, is_letter_or_digit) &&
		consists_of(text + last, length - last, is_letter_or_digit);
}

/* The key, then 128 hexadecimal digits. */
static bool
shape_keyhippo(const char *text, size_t length, ApitokenForeignParts *parts)
{
	size_t		key_length = length - 128;

	if (length < 128 + 8 || key_length > APITOKEN_LOOKUP_KEY_MAX)
		return false;
	set_parts(parts, text, key_length, text + key_length, 128);
	return consists_of(text, key_length, is_base64_char) && consists_of(text + key_length, 128, is_hex);
}

/* Whatever text the application made its tokens of. */
static bool
shape_any(const char *text, size_t length, ApitokenForeignParts *parts)
{
	set_parts(parts, NULL, 0, text, length);
	return length >= 8 && consists_of(text, length, is_graphic);
}

/*
 * The formats.  The lengths are those of the lookup key that import_token()
 * accepts.  Formats of one family are those of one system's versions; the name of
 * the family stands for all of them.
 */
typedef struct FormatRow
{
	ApitokenFormat format;
	Shape		shape;
} FormatRow;

static const FormatRow formats[] = {
	{{"sanctum", NULL, APITOKEN_LOOKUP_BOTH, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_SHA256, NULL, 1, APITOKEN_LOOKUP_KEY_MAX, 8}, shape_sanctum},
	{{"strapi", NULL, APITOKEN_LOOKUP_DIGEST, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_HMAC_SHA512, "strapi", 0, 0, 0}, shape_strapi},
	{{"knox5", "knox", APITOKEN_LOOKUP_KEY, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_SHA512, NULL, 15, 15, 4}, shape_knox5},
	{{"knox42", "knox", APITOKEN_LOOKUP_KEY, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_SHA512_BYTES, NULL, 8, 8, 4}, shape_knox4},
	{{"knox41", "knox", APITOKEN_LOOKUP_KEY, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_SHA512_SALTED, NULL, 8, 8, 4}, shape_knox4},
	{{"drf-api-key3", "drf-api-key", APITOKEN_LOOKUP_KEY, APITOKEN_STORED_DJANGO, APITOKEN_FOREIGN_SHA512, NULL, 1, APITOKEN_LOOKUP_KEY_MAX, 8}, shape_drf_api_key},
	{{"drf-api-key2", "drf-api-key", APITOKEN_LOOKUP_KEY, APITOKEN_STORED_PBKDF2, APITOKEN_FOREIGN_PBKDF2, NULL, 1, APITOKEN_LOOKUP_KEY_MAX, 8}, shape_drf_api_key},
	{{"better-auth", NULL, APITOKEN_LOOKUP_DIGEST, APITOKEN_STORED_BASE64, APITOKEN_FOREIGN_SHA256, NULL, 0, 0, 0}, shape_random},
	{{"unkey", NULL, APITOKEN_LOOKUP_DIGEST, APITOKEN_STORED_BASE64, APITOKEN_FOREIGN_SHA256, NULL, 0, 0, 0}, shape_random},
	{{"prefixed-api-key", NULL, APITOKEN_LOOKUP_KEY, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_SHA256, NULL, 4, APITOKEN_LOOKUP_KEY_MAX, 8}, shape_prefixed_api_key},
	{{"gitlab", NULL, APITOKEN_LOOKUP_DIGEST, APITOKEN_STORED_BASE64, APITOKEN_FOREIGN_SHA256_KEYED, "gitlab", 0, 0, 0}, shape_gitlab},
	{{"keyhippo", NULL, APITOKEN_LOOKUP_KEY, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_SHA512, NULL, 8, APITOKEN_LOOKUP_KEY_MAX, 8}, shape_keyhippo},
	{{"crypt", "bcrypt", APITOKEN_LOOKUP_PREFIX, APITOKEN_STORED_CRYPT, APITOKEN_FOREIGN_CRYPT, NULL, APITOKEN_CRYPT_KEY_MIN, APITOKEN_CRYPT_KEY_MAX, 4}, shape_any},
	{{"sha256", NULL, APITOKEN_LOOKUP_DIGEST, APITOKEN_STORED_HEX, APITOKEN_FOREIGN_SHA256, NULL, 0, 0, 0}, shape_any},
};

StaticAssertDecl(lengthof(formats) == APITOKEN_FORMATS, "APITOKEN_FORMATS is the number of formats");

/* Returns the n-th format; NULL if there are fewer. */
const ApitokenFormat *
apitoken_format(int n)
{
	return n < lengthof(formats) ? &formats[n].format : NULL;
}

/* Does this text have the shape of the format? */
bool
apitoken_foreign_shape(const ApitokenFormat *format, const char *text, size_t length, ApitokenForeignParts *parts)
{
	const FormatRow *row = (const FormatRow *) ((const char *) format - offsetof(FormatRow, format));

	return length <= APITOKEN_FOREIGN_TEXT_MAX && row->shape(text, length, parts);
}

/* Is this the name of the format, or of its family?  The name need not end with a zero. */
bool
apitoken_format_has_name(const ApitokenFormat *format, const char *name, size_t length)
{
	return (strlen(format->name) == length && memcmp(format->name, name, length) == 0) ||
		(format->family != NULL && strlen(format->family) == length && memcmp(format->family, name, length) == 0);
}

/*
 * The formats in a list of names, separated by commas, in its order, each once.
 * Returns their number; -1 if a name is none of a format.
 */
int
apitoken_formats_in_list(const char *list, const ApitokenFormat *found[APITOKEN_FORMATS])
{
	int			count = 0;

	if (list[strspn(list, " \t\r\n")] == '\0')
		return 0;
	for (;;)
	{
		size_t		length;
		bool		known = false;

		list += strspn(list, " \t\r\n");
		length = strcspn(list, ", \t\r\n");
		for (int i = 0; i < lengthof(formats); i++)
		{
			bool		listed = false;

			if (!apitoken_format_has_name(&formats[i].format, list, length))
				continue;
			known = true;
			for (int j = 0; j < count; j++)
				listed = listed || found[j] == &formats[i].format;
			if (!listed)
				found[count++] = &formats[i].format;
		}
		if (!known)
			return -1;
		list += length;
		list += strspn(list, " \t\r\n");
		if (*list == '\0')
			return count;
		if (*list++ != ',')
			return -1;
	}
}
