/*
 * permission.c
 *		Permissions and permission patterns.
 *
 * A permission is "resource:action".  A pattern may have "*" in place of either
 * half, or be "*" alone.  A pattern covers another one if it matches every
 * permission that the other one matches.
 *
 * Permissions on tokens ("token:...") are special.  They allow creating more
 * tokens, and those would survive the revocation of a leaked token.  So are those
 * on organizations ("organization:..."), which allow changing the policy that
 * limits tokens.  Therefore only "*", "token:*" and the exact name match them;
 * "*:*" matches everything else.
 *
 * A malformed pattern matches nothing, covers nothing and is covered by
 * nothing.  So an error in a stored list can only take permissions away.
 */
#include "postgres.h"

#include "text/text.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"

#define EVERYTHING "*"
#define EVERYTHING_UNRESERVED "*:*"

/* An error message quotes at most this many characters of a malformed pattern. */
#define QUOTED_CHARS 100

typedef struct Half
{
	const char *text;			/* points into the pattern; not null-terminated */
	size_t		length;
} Half;

typedef struct Halves
{
	Half		resource;
	Half		action;
} Halves;

/* the permissions that a read-only token keeps */
static const char *const read_only_patterns[] = {"*:read", "*:list"};

static const char *const reserved_resources[] = {"token", "organization"};

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
is_reserved(Half resource)
{
	for (int i = 0; i < lengthof(reserved_resources); i++)
	{
		if (resource.length == strlen(reserved_resources[i]) &&
			memcmp(resource.text, reserved_resources[i], resource.length) == 0)
			return true;
	}
	return false;
}

/* This does not use isalpha() or isalnum(), whose results depend on the locale. */
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

/* Split a pattern into its halves.  Returns false for "*" alone and for malformed patterns. */
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

/* Does a match every resource that b matches? */
static bool
resource_covers(Half a, Half b)
{
	return same_half(a, b) || (is_any(a) && !is_reserved(b));
}

static bool
action_covers(Half a, Half b)
{
	return same_half(a, b) || is_any(a);
}

/* Is this a permission?  It has no "*". */
bool
apitoken_valid_permission(const char *permission)
{
	Halves		halves;

	return split(permission, &halves) && !is_any(halves.resource) && !is_any(halves.action);
}

/* Is this a well-formed pattern?  Every permission is also a pattern. */
bool
apitoken_valid_pattern(const char *pattern)
{
	Halves		halves;

	return is_everything(pattern) || split(pattern, &halves);
}

/* Does the pattern match the permission? */
bool
apitoken_pattern_matches(const char *pattern, const char *permission)
{
	/* As a pattern, a permission matches only itself. */
	return apitoken_valid_permission(permission) &&
		apitoken_pattern_covers(pattern, permission);
}

/* Does pattern match every permission that other matches? */
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
 * Compute the pattern that matches exactly the permissions that both patterns
 * match.  Returns false if there are none.  One pattern is always enough,
 * because the two halves are independent.
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
		/* The pattern that could be split is valid, so it fits into the buffer. */
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

/* Does any of the patterns match the permission? */
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
 * Returns the first pattern in "patterns" that no single pattern in "by"
 * covers, or NULL if all are covered.
 *
 * A pattern that only several patterns together cover counts as uncovered.
 * Otherwise the result would depend on which resources and actions exist.
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
 * A set of patterns: a hash table of pointers with open addressing, at most
 * half full.  Two lists of a hundred patterns can have ten thousand
 * intersections.  Comparing each of those with all others would add seconds to
 * every verification.
 */
typedef struct PatternSet
{
	const char **slots;
	uint32		mask;
} PatternSet;

/* Returns the slot of the pattern, or the free slot where it can be inserted. */
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

/* Does the set contain a different pattern that covers this one? */
static bool
covered_in_set(const PatternSet *set, const char *pattern)
{
	/* Apart from "*", only patterns of these three forms can cover this one. */
	static const char *const formats[] = {"%.*s:*", "*:%.*s", EVERYTHING_UNRESERVED};
	Halves		halves;
	int			count;

	if (is_everything(pattern))
		return false;
	if (contains(set, EVERYTHING))
		return true;
	if (!split(pattern, &halves))
		return false;

	count = is_reserved(halves.resource) ? 1 : lengthof(formats);
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

/* Remove duplicates and patterns that another pattern covers; keep the order. */
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
 * Compute the effective patterns of a token: the patterns of a role or a user,
 * narrowed by the token's access and, with custom access, by the token's own
 * patterns.  The given patterns must be reduced.  The result is a new list of
 * new strings, and is reduced too.  (Full access keeps or drops each pattern, or
 * turns "*" into "*:*", so its result needs no further reduction.)
 *
 * A personal token can do whatever its user may do, except that it manages
 * tokens and organizations only if its own patterns name "token:..." or
 * "organization:...".  Therefore "*" means "*:*"
 * for a personal token.  With full access there are no own patterns, so such a
 * token never manages tokens.  A read-only token does not either, because
 * "*:read" does not match "token:read".
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
											 personal ? EVERYTHING_UNRESERVED : EVERYTHING);
				break;
			case APITOKEN_CUSTOM:
				foreach(own_cell, own)
				{
					const char *limit = lfirst(own_cell);

					if (personal && is_everything(limit))
						limit = EVERYTHING_UNRESERVED;
					result = append_intersection(result, pattern, limit);
				}
				break;
		}
	}
	return access == APITOKEN_FULL ? result : apitoken_patterns_reduce(result);
}

/*
 * Do a token's access and own patterns allow this permission?  This checks only
 * the token's part of apitoken_patterns_narrow(), and builds no list.
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
			return apitoken_pattern_matches(personal ? EVERYTHING_UNRESERVED : EVERYTHING, permission);
		case APITOKEN_CUSTOM:
			foreach(cell, own)
			{
				const char *limit = lfirst(cell);

				if (personal && is_everything(limit))
					limit = EVERYTHING_UNRESERVED;
				if (apitoken_pattern_matches(limit, permission))
					return true;
			}
			break;
	}
	return false;
}

/* Convert a text[] to a list of C strings.  Null elements are skipped; a NULL array gives NIL. */
bool
apitoken_strings_contain(List *strings, const char *string)
{
	ListCell   *lc;

	foreach(lc, strings)
	{
		if (strcmp(lfirst(lc), string) == 0)
			return true;
	}
	return false;
}

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

/* Convert a list of C strings to a text[].  An empty list gives an empty array. */
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

/* Returns a copy of the text, truncated for use in an error message. */
char *
apitoken_clip(const char *text)
{
	return pnstrdup(text, pg_mbcharcliplen(text, strlen(text), QUOTED_CHARS));
}

/* Raise an error about a malformed pattern or permission. */
static void
report_malformed(const char *pattern, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("malformed permission \"%s\"", apitoken_clip(pattern)),
			 errhint("%s", hint)));
}

/*
 * Raise an error if the array has more elements than a list of permissions may
 * have.  This reads no element, so it is called before the elements are
 * processed.
 */
void
apitoken_check_count(ArrayType *array, const char *hint)
{
	int			count = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

	if (count > APITOKEN_PATTERNS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of permissions (%d) exceeds the maximum allowed (%d)", count,
						APITOKEN_PATTERNS_MAX),
				 errhint("%s", hint)));
}

/* Raise an error unless the array is a valid list of patterns. */
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
				 errmsg("permissions must be a one-dimensional array"),
				 errhint("Write one list of permissions, not a list of lists.")));

	apitoken_check_count(array, "Use a pattern such as 'article:*' for several permissions.");
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *pattern;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("permissions must not contain nulls"),
					 errhint("Remove the null element.  An empty array allows nothing.")));

		pattern = TextDatumGetCString(elements[i]);
		if (!apitoken_valid_pattern(pattern))
			report_malformed(pattern,
							 "Use the form 'resource:action'.  Each part has 1 to 64 letters, digits or characters of \"_./-\", "
							 "or is '*' for all.  A single '*' allows everything.");
		pfree(pattern);
	}
}

/* Raise an error unless this is a valid permission. */
void
apitoken_check_permission(const char *permission)
{
	if (!apitoken_valid_permission(permission))
		report_malformed(permission,
						 "Use the form 'resource:action' without '*'.  Each part has 1 to 64 letters, digits or "
						 "characters of \"_./-\".");
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
			 errmsg("unrecognized access \"%s\"", apitoken_clip(access)),
			 errhint("Use \"read_only\", \"full\" or \"custom\".")));
}

const char *
apitoken_access_to_text(ApitokenAccess access)
{
	return access_names[access];
}
