/*
 * id.c
 *		The form of the ids of organizations and users.
 *
 * Ids are the application's own keys, as text, and are compared by byte.  The
 * application's policies cast them to the type of its keys: current_user_id()::uuid.
 * If two texts were two users here and one user after the cast, a suspended user
 * could act under the other text.  Therefore a text that the input of uuid or
 * bigint accepts is an id only in the form that the output of the type writes.
 * The rule is that of the newest server, so that an id is valid on all of them.
 */
#include "postgres.h"

#include "text/text.h"

/* white space, which the input of bigint skips at both ends */
#define SPACES " \t\n\v\f\r"

/* Returns the value of a hexadecimal digit, or -1 for any other character. */
int
apitoken_hex_value(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	if (digit >= 'a' && digit <= 'f')
		return digit - 'a' + 10;
	if (digit >= 'A' && digit <= 'F')
		return digit - 'A' + 10;
	return -1;
}

static bool
is_space(char c)
{
	return c != '\0' && strchr(SPACES, c) != NULL;
}

/*
 * Does the input of uuid accept this text?  It has 32 digits, of either case, a
 * hyphen or none after each four of them, and braces or none around it.
 */
static bool
reads_as_uuid(const char *id, size_t length)
{
	size_t		i = 0;
	int			digits = 0;

	if (length >= 2 && id[0] == '{' && id[length - 1] == '}')
	{
		i++;
		length--;
	}
	for (; i < length; i++)
	{
		if (apitoken_hex_value(id[i]) >= 0)
			digits++;
		else if (id[i] != '-' || id[i - (i > 0)] == '-' || digits == 0 || digits % 4 != 0 || digits == 32)
			return false;
	}
	return digits == 32;
}

/* Is a text that reads_as_uuid() in the form that the output of uuid writes? */
static bool
is_canonical_uuid(const char *id, size_t length)
{
	if (length != 36)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		if ((id[i] == '-') != (i == 8 || i == 13 || i == 18 || i == 23) ||
			(id[i] >= 'A' && id[i] <= 'F') || id[i] == '{')
			return false;
	}
	return true;
}

/*
 * Does the input of bigint accept this text?  It has white space or none around
 * it, a sign or none, and digits, which may be hexadecimal, octal or binary (0x2A)
 * and may have single underscores between them.
 */
static bool
reads_as_bigint(const char *id, size_t length)
{
	const char *end = id + length;
	uint64		limit = PG_INT64_MAX;
	uint64		value = 0;
	int			base = 10;
	bool		may_have_underscore = false;

	while (id < end && is_space(*id))
		id++;
	while (id < end && is_space(end[-1]))
		end--;
	if (id < end && (*id == '-' || *id == '+'))
		limit += *id++ == '-';
	if (end - id > 2 && *id == '0')
	{
		char		letter = id[1] | 0x20;

		base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
		may_have_underscore = base != 10;
		if (base != 10)
			id += 2;
	}
	if (id == end)
		return false;
	for (; id < end; id++)
	{
		int			digit;

		if (*id == '_' && may_have_underscore && ++id == end)
			return false;
		digit = apitoken_hex_value(*id);
		if (digit < 0 || digit >= base || value > (limit - digit) / base)
			return false;
		value = value * base + digit;
		may_have_underscore = true;
	}
	return true;
}

/* Is a text that reads_as_bigint() in the form that the output of bigint writes? */
static bool
is_canonical_bigint(const char *id, size_t length)
{
	if (length == 1 && *id == '0')
		return true;
	if (*id == '-')
	{
		id++;
		length--;
	}
	if (*id < '1' || *id > '9')
		return false;
	for (size_t i = 0; i < length; i++)
	{
		if (id[i] < '0' || id[i] > '9')
			return false;
	}
	return true;
}

/* Returns NULL if this text can be an id, otherwise a hint that names the fix. */
const char *
apitoken_id_fault(const char *id, size_t length)
{
	if (length == 0 || length > APITOKEN_OWNER_ID_MAX)
		return "Use an id of 1 to 255 bytes.";
	if (length >= strlen(APITOKEN_FORGOTTEN_MARK) && memcmp(id, APITOKEN_FORGOTTEN_MARK, strlen(APITOKEN_FORGOTTEN_MARK)) == 0)
		return "Use an id that does not begin with \"" APITOKEN_FORGOTTEN_MARK "\", which marks users who were forgotten.";
	if (reads_as_uuid(id, length) && !is_canonical_uuid(id, length))
		return "Write a UUID as PostgreSQL does, in lower case and with hyphens: cast it to uuid and then to text.";
	if (reads_as_bigint(id, length) && !is_canonical_bigint(id, length))
		return "Write an integer as PostgreSQL does, without plus sign, leading zeros, prefix, underscores or white space: cast it to bigint and then to text.";
	return NULL;
}

/* Raise an error unless this text can be the id of an owner: "user" or "organization". */
void
apitoken_check_id(const char *owner, const char *id)
{
	const char *fault = apitoken_id_fault(id, strlen(id));

	if (fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid %s id", owner),
				 errhint("%s", fault)));
}
