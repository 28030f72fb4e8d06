/*
 * permission.c
 *		Permissions, patterns, and what covers what.
 *
 * A permission is "resource:action".  A pattern has "*" for either half, or is
 * "*".  Permissions on tokens ("token:...") are special: whoever holds them can
 * make further tokens, so that a leaked one could outlive its revocation.  They
 * are therefore matched only by "*", "token:*" or by name, and "*:*" means
 * everything except them.
 *
 * What is not a well-formed pattern matches nothing, covers nothing and is
 * covered by nothing: a fault in a stored list takes rights away, never adds.
 */
#include "postgres.h"

#include "text/text.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"

#define EVERYTHING "*"
#define EVERYTHING_BUT_TOKENS "*:*"
#define TOKEN_RESOURCE "token"

/* how much of a malformed pattern an error shows, in characters */
#define QUOTED_CHARS 100

typedef struct Half
{
	const char *text;			/* within the pattern, so not terminated */
	size_t		length;
} Half;

typedef struct Halves
{
	Half		resource;
	Half		action;
} Halves;

/* the actions that a read-only token keeps */
static const char *const read_only_patterns[] = {"*:read", "*:list"};

static const char *const access_names[] = {
	[APITOKEN_READ_ONLY] = "read_only",
	[APITOKEN_FULL] = "full",
	[APITOKEN_CUSTOM] = "custom"
};

static bool
is_everything(const char *pattern)
{
	return strcmp(pattern, EVERYTHING) == 0;
}

static bool
is_any(Half half)
{
	return half.length == 1 && half.text[0] == '*';
}

static bool
same_half(Half a, Half b)
{
	return a.length == b.length && memcmp(a.text, b.text, a.length) == 0;
}

static bool
is_token(Half resource)
{
	return resource.length == strlen(TOKEN_RESOURCE) &&
		memcmp(resource.text, TOKEN_RESOURCE, resource.length) == 0;
}

/* Compared by hand: what a letter is must not depend on the locale. */
static bool
valid_half(Half half)
{
	if (half.length < 1 || half.length > APITOKEN_HALF_MAX)
		return false;
	if (is_any(half))
		return true;
	for (size_t i = 0; i < half.length; i++)
	{
		char		c = half.text[i];

		if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9') &&
			c != '_' && c != '.' && c != '/' && c != '-')
			return false;
	}
	return true;
}

/* False for "*", which has no halves, and for everything malformed. */
static bool
split(const char *pattern, Halves *halves)
{
	const char *colon = strchr(pattern, ':');

	if (colon == NULL)
		return false;
	halves->resource.text = pattern;
	halves->resource.length = colon - pattern;
	halves->action.text = colon + 1;
	halves->action.length = strlen(colon + 1);
	return valid_half(halves->resource) && valid_half(halves->action);
}

/* Does every resource that matches b match a? */
static bool
resource_covers(Half a, Half b)
{
	return same_half(a, b) || (is_any(a) && !is_token(b));
}

static bool
action_covers(Half a, Half b)
{
	return same_half(a, b) || is_any(a);
}

/* Is this a permission, which names both its halves? */
bool
apitoken_valid_permission(const char *permission)
{
	Halves		halves;

	return split(permission, &halves) && !is_any(halves.resource) && !is_any(halves.action);
}

/* Is this a pattern?  Each permission is one, too. */
bool
apitoken_valid_pattern(const char *pattern)
{
	Halves		halves;

	return is_everything(pattern) || split(pattern, &halves);
}

/* Does this pattern allow this permission? */
bool
apitoken_pattern_matches(const char *pattern, const char *permission)
{
	/* a permission is the pattern that matches nothing else */
	return apitoken_valid_permission(permission) &&
		apitoken_pattern_covers(pattern, permission);
}

/* Does every permission that matches other match pattern? */
bool
apitoken_pattern_covers(const char *pattern, const char *other)
{
	Halves		a;
	Halves		b;

	if (is_everything(pattern))
		return apitoken_valid_pattern(other);
	return split(pattern, &a) && split(other, &b) &&
		resource_covers(a.resource, b.resource) &&
		action_covers(a.action, b.action);
}

/*
 * The one pattern that matches what both match; false if there is nothing.
 * Halves meet independently, so that one pattern always suffices.
 */
bool
apitoken_pattern_intersect(const char *a, const char *b,
						   char result[APITOKEN_PATTERN_MAX + 1])
{
	Halves		left;
	Halves		right;
	Half		resource;
	Half		action;
	bool		left_split = split(a, &left);
	bool		right_split = split(b, &right);

	if ((!left_split && !is_everything(a)) || (!right_split && !is_everything(b)))
		return false;
	if (!left_split || !right_split)
	{
		/* what is not "*" has two valid halves, so it fits */
		strcpy(result, left_split ? a : b);
		return true;
	}

	if (resource_covers(left.resource, right.resource))
		resource = right.resource;
	else if (resource_covers(right.resource, left.resource))
		resource = left.resource;
	else
		return false;

	if (action_covers(left.action, right.action))
		action = right.action;
	else if (action_covers(right.action, left.action))
		action = left.action;
	else
		return false;

	memcpy(result, resource.text, resource.length);
	result[resource.length] = ':';
	memcpy(result + resource.length + 1, action.text, action.length);
	result[resource.length + 1 + action.length] = '\0';
	return true;
}

/* Does any of these allow this permission? */
bool
apitoken_patterns_match(List *patterns, const char *permission)
{
	ListCell   *cell;

	foreach(cell, patterns)
	{
		if (apitoken_pattern_matches(lfirst(cell), permission))
			return true;
	}
	return false;
}

/*
 * The first of patterns that no single one of by covers, or NULL.
 *
 * Several that cover it only together do not count: what they cover would then
 * depend on which resources and actions there are.
 */
const char *
apitoken_patterns_uncovered(List *patterns, List *by)
{
	ListCell   *cell;

	foreach(cell, patterns)
	{
		const char *pattern = lfirst(cell);
		bool		covered = false;
		ListCell   *by_cell;

		foreach(by_cell, by)
		{
			if (apitoken_pattern_covers(lfirst(by_cell), pattern))
			{
				covered = true;
				break;
			}
		}
		if (!covered)
			return pattern;
	}
	return NULL;
}

/*
 * A set of patterns: a table of pointers with open addressing, at most half
 * full.  Two lists of a hundred patterns can meet in ten thousand, where
 * comparing all with all would take seconds of every verification.
 */
typedef struct PatternSet
{
	const char **slots;
	uint32		mask;
} PatternSet;

/* Where a pattern is, or the free slot where it would be. */
static const char **
find_slot(const PatternSet *set, const char *pattern)
{
	uint32		slot = hash_bytes((const unsigned char *) pattern, strlen(pattern)) & set->mask;

	while (set->slots[slot] != NULL && strcmp(set->slots[slot], pattern) != 0)
		slot = (slot + 1) & set->mask;
	return &set->slots[slot];
}

static bool
contains(const PatternSet *set, const char *pattern)
{
	return *find_slot(set, pattern) != NULL;
}

/* Is there a pattern in the set that covers this one and is another one? */
static bool
covered_in_set(const PatternSet *set, const char *pattern)
{
	/* besides "*", only these three can, whatever else there is */
	static const char *const formats[] = {"%.*s:*", "*:%.*s", EVERYTHING_BUT_TOKENS};
	Halves		halves;
	int			count;

	if (is_everything(pattern))
		return false;
	if (contains(set, EVERYTHING))
		return true;
	if (!split(pattern, &halves))
		return false;

	count = is_token(halves.resource) ? 1 : lengthof(formats);
	for (int i = 0; i < count; i++)
	{
		Half		half = i == 0 ? halves.resource : halves.action;
		char		wider[APITOKEN_PATTERN_MAX + 1];

		snprintf(wider, sizeof(wider), formats[i], (int) half.length, half.text);
		if (strcmp(wider, pattern) != 0 && contains(set, wider))
			return true;
	}
	return false;
}

/* Drop repetitions and what another one covers; keep the order. */
List *
apitoken_patterns_reduce(List *patterns)
{
	List	   *distinct = NIL;
	List	   *result = NIL;
	PatternSet	set;
	ListCell   *cell;
	uint32		size;

	if (list_length(patterns) <= 1)
		return patterns;
	size = pg_nextpower2_32(2 * list_length(patterns));
	set.slots = palloc0(size * sizeof(const char *));
	set.mask = size - 1;

	foreach(cell, patterns)
	{
		const char **slot = find_slot(&set, lfirst(cell));

		if (*slot == NULL)
		{
			*slot = lfirst(cell);
			distinct = lappend(distinct, lfirst(cell));
		}
	}
	foreach(cell, distinct)
	{
		if (!covered_in_set(&set, lfirst(cell)))
			result = lappend(result, lfirst(cell));
	}

	list_free(distinct);
	pfree(set.slots);
	return result;
}

static List *
append_intersection(List *result, const char *a, const char *b)
{
	char		both[APITOKEN_PATTERN_MAX + 1];

	if (apitoken_pattern_intersect(a, b, both))
		result = lappend(result, pstrdup(both));
	return result;
}

/*
 * The effective patterns: those of a role or a user, which are reduced, narrowed
 * by a token's access and, if that is custom, by the token's own ones.  A new
 * list of new strings, reduced as well: what full access leaves of each pattern
 * is that pattern, or nothing.
 *
 * A personal token has all that its user may do, but manages tokens only where
 * its own patterns name that.  So "*" means "*:*" then, unless "token:..." is
 * written out; and with full access nothing is.  Read-only tokens never manage
 * tokens, as "*:read" does not match "token:read".
 */
List *
apitoken_patterns_narrow(List *patterns, ApitokenAccess access, List *own, bool personal)
{
	List	   *result = NIL;
	ListCell   *cell;

	foreach(cell, patterns)
	{
		const char *pattern = lfirst(cell);
		ListCell   *own_cell;

		switch (access)
		{
			case APITOKEN_READ_ONLY:
				for (int i = 0; i < lengthof(read_only_patterns); i++)
					result = append_intersection(result, pattern, read_only_patterns[i]);
				break;
			case APITOKEN_FULL:
				result = append_intersection(result, pattern,
											 personal ? EVERYTHING_BUT_TOKENS : EVERYTHING);
				break;
			case APITOKEN_CUSTOM:
				foreach(own_cell, own)
				{
					const char *limit = lfirst(own_cell);

					if (personal && is_everything(limit))
						limit = EVERYTHING_BUT_TOKENS;
					result = append_intersection(result, pattern, limit);
				}
				break;
		}
	}
	return access == APITOKEN_FULL ? result : apitoken_patterns_reduce(result);
}

/*
 * Does a token's narrowing leave this permission?  The same as asking the
 * effective patterns, without making them.
 */
bool
apitoken_narrowing_allows(ApitokenAccess access, List *own, bool personal, const char *permission)
{
	ListCell   *cell;

	switch (access)
	{
		case APITOKEN_READ_ONLY:
			return apitoken_pattern_matches(read_only_patterns[0], permission) ||
				apitoken_pattern_matches(read_only_patterns[1], permission);
		case APITOKEN_FULL:
			return apitoken_pattern_matches(personal ? EVERYTHING_BUT_TOKENS : EVERYTHING, permission);
		case APITOKEN_CUSTOM:
			foreach(cell, own)
			{
				const char *limit = lfirst(cell);

				if (personal && is_everything(limit))
					limit = EVERYTHING_BUT_TOKENS;
				if (apitoken_pattern_matches(limit, permission))
					return true;
			}
			break;
	}
	return false;
}

/* The elements of a text[], patterns or ids; none for a null array or null elements. */
List *
apitoken_strings_from_array(ArrayType *array)
{
	List	   *result = NIL;
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (array == NULL)
		return NIL;
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		if (!nulls[i])
			result = lappend(result, TextDatumGetCString(elements[i]));
	}
	return result;
}

/* The reverse; an empty array, never null, for an empty list. */
ArrayType *
apitoken_strings_to_array(List *strings)
{
	Datum	   *elements;
	ListCell   *cell;
	int			count = 0;

	if (strings == NIL)
		return construct_empty_array(TEXTOID);
	elements = palloc(list_length(strings) * sizeof(Datum));
	foreach(cell, strings)
		elements[count++] = CStringGetTextDatum(lfirst(cell));
	return construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/* The beginning of a text that an error quotes. */
char *
apitoken_clip(const char *text)
{
	return pnstrdup(text, pg_mbcharcliplen(text, strlen(text), QUOTED_CHARS));
}

/* Raise for a malformed pattern or permission, quoting its beginning. */
static void
report_malformed(const char *pattern, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("malformed permission \"%s\"", apitoken_clip(pattern)),
			 errhint("%s", hint)));
}

/* Raise unless these are patterns that may be stored. */
void
apitoken_check_patterns(ArrayType *array)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (array == NULL)
		return;
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("permissions must be an array of one dimension"),
				 errhint("Write them as '{article:read,article:write}'.")));

	/* counted before the elements are taken apart, which costs memory */
	count = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	if (count > APITOKEN_PATTERNS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many permissions: %d", count),
				 errhint("Give at most %d; a pattern such as 'article:*' stands for many.",
						 APITOKEN_PATTERNS_MAX)));

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *pattern;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a permission must not be null"),
					 errhint("Remove the null element; an empty array allows nothing.")));

		pattern = TextDatumGetCString(elements[i]);
		if (!apitoken_valid_pattern(pattern))
			report_malformed(pattern,
							 "Write 'resource:action', each of 1 to 64 letters, digits or \"_./-\"; "
							 "'*' stands for any resource, for any action, or alone for everything.");
		pfree(pattern);
	}
}

/* Raise unless this can be asked for. */
void
apitoken_check_permission(const char *permission)
{
	if (!apitoken_valid_permission(permission))
		report_malformed(permission,
						 "Ask for 'resource:action', each of 1 to 64 letters, digits or \"_./-\", "
						 "without '*'.");
}

ApitokenAccess
apitoken_access_from_text(const char *access)
{
	for (int i = 0; i < lengthof(access_names); i++)
	{
		if (strcmp(access, access_names[i]) == 0)
			return (ApitokenAccess) i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown access \"%s\"", apitoken_clip(access)),
			 errhint("Access is 'read_only', 'full' or 'custom'.")));
}

const char *
apitoken_access_to_text(ApitokenAccess access)
{
	return access_names[access];
}
