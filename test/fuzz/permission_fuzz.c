/*
 * permission_fuzz.c
 *		libFuzzer target for permission patterns, against sets of permissions.
 *
 * The slow version lists all permissions that can differ: each resource that the
 * input names, and one that it does not name, with each action.  A pattern is the
 * set of those that it matches; covering is inclusion, and narrowing is intersection.
 *
 * An input is one byte (access and kind) and lines: patterns, an empty line, the
 * token's own patterns.
 */
#include "postgres.h"

#include "fuzz.h"
#include "text/text.h"

#define LINES_MAX 6
#define NAMES_MAX (2 * LINES_MAX + 3)

static char resources[NAMES_MAX][256];
static char actions[NAMES_MAX][256];
static int	resource_count;
static int	action_count;

typedef struct Set
{
	bool		has[NAMES_MAX][NAMES_MAX];
} Set;

static bool
slow_half(const char *half, size_t length)
{
	if (length == 1 && *half == '*')
		return true;
	return length >= 1 && length <= 64 &&
		strspn(half, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-") >= length;
}

static bool
slow_valid(const char *pattern)
{
	size_t		resource = strcspn(pattern, ":");

	return strcmp(pattern, "*") == 0 ||
		(pattern[resource] == ':' && slow_half(pattern, resource) &&
		 slow_half(pattern + resource + 1, strlen(pattern + resource + 1)));
}

/* What the documentation says: only "*", "token:*" and the exact name match "token:...". */
static bool
slow_matches(const char *pattern, const char *resource, const char *action)
{
	char		names[6][2 * 256];
	int			count;

	if (!slow_valid(pattern))
		return false;
	snprintf(names[0], sizeof(names[0]), "%s:%s", resource, action);
	snprintf(names[1], sizeof(names[1]), "%s:*", resource);
	snprintf(names[2], sizeof(names[2]), "*");
	count = 3;
	if (strcmp(resource, "token") != 0 && strcmp(resource, "organization") != 0)
	{
		snprintf(names[3], sizeof(names[3]), "*:%s", action);
		snprintf(names[4], sizeof(names[4]), "*:*");
		count = 5;
	}
	for (int i = 0; i < count; i++)
	{
		if (strcmp(pattern, names[i]) == 0)
			return true;
	}
	return false;
}

static void
add_name(char names[][256], int *count, const char *name, size_t length)
{
	char		copy[256];

	if (length == 0 || length > 64 || !slow_half(name, length) || *name == '*')
		return;
	memcpy(copy, name, length);
	copy[length] = '\0';
	for (int i = 0; i < *count; i++)
	{
		if (strcmp(names[i], copy) == 0)
			return;
	}
	strcpy(names[(*count)++], copy);
}

static void
add_names(List *patterns)
{
	ListCell   *lc;

	foreach(lc, patterns)
	{
		const char *pattern = lfirst(lc);
		size_t		resource = strcspn(pattern, ":");

		if (pattern[resource] == '\0')
			continue;
		add_name(resources, &resource_count, pattern, resource);
		add_name(actions, &action_count, pattern + resource + 1, strlen(pattern + resource + 1));
	}
}

/* a name that is not there stands for all others */
static void
add_other(char names[][256], int *count)
{
	int			before = *count;

	for (int n = 0; *count == before; n++)
	{
		char		name[16];

		snprintf(name, sizeof(name), "other%d", n);
		add_name(names, count, name, strlen(name));
	}
}

/* the permissions that any of the patterns matches */
static Set
set_of(List *patterns)
{
	Set			set;
	ListCell   *lc;

	memset(&set, 0, sizeof(set));
	for (int r = 0; r < resource_count; r++)
	{
		for (int a = 0; a < action_count; a++)
		{
			foreach(lc, patterns)
				set.has[r][a] |= slow_matches(lfirst(lc), resources[r], actions[a]);
		}
	}
	return set;
}

static Set
set_of_one(const char *pattern)
{
	return set_of(lappend(NIL, unconstify(char *, pattern)));
}

static bool
includes(const Set *set, const Set *other)
{
	for (int r = 0; r < resource_count; r++)
	{
		for (int a = 0; a < action_count; a++)
		{
			if (other->has[r][a] && !set->has[r][a])
				return false;
		}
	}
	return true;
}

static Set
common(Set a, const Set *b)
{
	for (int r = 0; r < NAMES_MAX; r++)
	{
		for (int i = 0; i < NAMES_MAX; i++)
			a.has[r][i] &= b->has[r][i];
	}
	return a;
}

static bool
same(const Set *a, const Set *b)
{
	return memcmp(a, b, sizeof(Set)) == 0;
}

static void
check_pair(const char *a, const char *b)
{
	Set			left = set_of_one(a);
	Set			right = set_of_one(b);
	Set			both = common(left, &right);
	Set			nothing;
	char		result[APITOKEN_PATTERN_MAX + 1];

	memset(&nothing, 0, sizeof(nothing));
	require(apitoken_pattern_covers(a, b) == (slow_valid(a) && slow_valid(b) && includes(&left, &right)));
	if (apitoken_pattern_intersect(a, b, result))
	{
		Set			found = set_of_one(result);

		require(slow_valid(result));
		require(same(&found, &both));
		require(!same(&found, &nothing));
	}
	else
		require(same(&both, &nothing));
}

/* the same permissions; no two patterns of which one covers the other; the given order */
static void
check_reduced(List *before, List *after)
{
	Set			wanted = set_of(before);
	Set			found = set_of(after);
	ListCell   *lc;
	ListCell   *other;
	int			at = 0;

	require(same(&wanted, &found));
	foreach(lc, after)
	{
		foreach(other, after)
			require(lc == other || (strcmp(lfirst(lc), lfirst(other)) != 0 && !apitoken_pattern_covers(lfirst(lc), lfirst(other))));
		while (at < list_length(before) && strcmp(list_nth(before, at), lfirst(lc)) != 0)
			at++;
		require(at < list_length(before));
	}
}

static List *
take_lines(const uint8_t **data, size_t *size)
{
	List	   *lines = NIL;

	while (*size > 0 && list_length(lines) < LINES_MAX)
	{
		char	   *line = fuzz_part(data, size, '\n');

		if (*line == '\0')
			break;
		lines = lappend(lines, line);
	}
	return lines;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	ApitokenAccess access;
	bool		personal;
	List	   *patterns;
	List	   *own;
	List	   *narrowed;
	Set			allowed;
	Set			limit;
	Set			found;
	ListCell   *lc;
	ListCell   *other;

	if (size == 0)
		return 0;
	access = data[0] % 3;
	personal = data[0] & 0x80;
	data++;
	size--;
	patterns = take_lines(&data, &size);
	own = take_lines(&data, &size);

	resource_count = action_count = 0;
	add_name(resources, &resource_count, "token", 5);
	add_name(resources, &resource_count, "organization", 12);
	add_name(actions, &action_count, "read", 4);
	add_name(actions, &action_count, "list", 4);
	add_names(patterns);
	add_names(own);
	add_other(resources, &resource_count);
	add_other(actions, &action_count);

	foreach(lc, patterns)
	{
		const char *pattern = lfirst(lc);

		require(apitoken_valid_pattern(pattern) == slow_valid(pattern));
		require(apitoken_valid_permission(pattern) == (slow_valid(pattern) && strchr(pattern, '*') == NULL));
		for (int r = 0; r < resource_count; r++)
		{
			for (int a = 0; a < action_count; a++)
			{
				char		permission[2 * 256];

				snprintf(permission, sizeof(permission), "%s:%s", resources[r], actions[a]);
				require(apitoken_pattern_matches(pattern, permission) == slow_matches(pattern, resources[r], actions[a]));
			}
		}
		foreach(other, patterns)
			check_pair(pattern, lfirst(other));
		foreach(other, own)
		{
			check_pair(pattern, lfirst(other));
			check_pair(lfirst(other), pattern);
		}
	}

	/* the first pattern that no single one covers */
	{
		const char *uncovered = apitoken_patterns_uncovered(patterns, own);

		foreach(lc, patterns)
		{
			Set			set = set_of_one(lfirst(lc));
			bool		covered = false;

			foreach(other, own)
			{
				Set			by = set_of_one(lfirst(other));

				covered |= slow_valid(lfirst(lc)) && slow_valid(lfirst(other)) && includes(&by, &set);
			}
			if (!covered)
				break;
		}
		require(uncovered == (lc == NULL ? NULL : lfirst(lc)));
	}

	/* lists are reduced without the malformed patterns, which cover nothing */
	{
		List	   *valid = NIL;
		List	   *valid_own = NIL;

		foreach(lc, patterns)
		{
			if (slow_valid(lfirst(lc)))
				valid = lappend(valid, lfirst(lc));
		}
		foreach(lc, own)
		{
			if (slow_valid(lfirst(lc)))
				valid_own = lappend(valid_own, lfirst(lc));
		}
		patterns = apitoken_patterns_reduce(list_copy(valid));
		check_reduced(valid, patterns);
		own = apitoken_patterns_reduce(list_copy(valid_own));
		check_reduced(valid_own, own);
	}

	/* what is allowed, and what the token's access leaves of it */
	allowed = set_of(patterns);
	memset(&limit, 0, sizeof(limit));
	for (int r = 0; r < resource_count; r++)
	{
		bool		reserved = strcmp(resources[r], "token") == 0 || strcmp(resources[r], "organization") == 0;

		for (int a = 0; a < action_count; a++)
		{
			char		permission[2 * 256];

			snprintf(permission, sizeof(permission), "%s:%s", resources[r], actions[a]);
			switch (access)
			{
				case APITOKEN_READ_ONLY:
					limit.has[r][a] = !reserved && (strcmp(actions[a], "read") == 0 || strcmp(actions[a], "list") == 0);
					break;
				case APITOKEN_FULL:
					limit.has[r][a] = !personal || !reserved;
					break;
				case APITOKEN_CUSTOM:
					foreach(lc, own)
					{
						/* a personal token manages tokens only if its patterns name them */
						if (slow_matches(lfirst(lc), resources[r], actions[a]) &&
							!(personal && reserved && strcmp(lfirst(lc), "*") == 0))
							limit.has[r][a] = true;
					}
					break;
			}
			require(apitoken_narrowing_allows(access, own, personal, permission) == limit.has[r][a]);
		}
	}
	narrowed = apitoken_patterns_narrow(patterns, access, own, personal);
	found = set_of(narrowed);
	limit = common(limit, &allowed);
	require(same(&found, &limit));
	check_reduced(narrowed, narrowed);
	foreach(lc, narrowed)
		require(slow_valid(lfirst(lc)));

	fuzz_free_all();
	return 0;
}
