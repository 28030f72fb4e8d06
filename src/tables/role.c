/*
 * role.c
 *		A cache of roles, for the session.
 *
 * Every verification needs the patterns of a role, while roles are few and
 * rarely change.  Changes take effect at once nevertheless: see changes.c.  Each
 * lookup first accepts pending invalidations, and then takes its snapshot.
 *
 * Only rows of role_records count.  A built-in role that is not stored there does
 * not exist: after a restore that has not loaded the roles yet, it must not have
 * more permissions than the stored row.
 *
 * Some rows are not cached:
 *
 *	- Roles that do not exist.
 *	- Rows that the current transaction wrote.
 *	- All rows, while changes are not announced.
 */
#include "postgres.h"

#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "tables/tables.h"

/* The cache is cleared when it has this many entries. */
#define CACHED_ROLES_MAX 1000

typedef struct CachedRole
{
	char		name[NAMEDATALEN];	/* role names are not longer */
	ApitokenRoleRow row;
} CachedRole;

static HTAB *role_cache = NULL; /* NULL if it is not valid */
static MemoryContext cache_context = NULL;	/* has the hash table and its entries */
static uint64 cached_changes;	/* apitoken_directory_changes when the cache was created */

/* Has there been no invalidation since the cache was created? */
static bool
cache_is_valid(void)
{
	return role_cache != NULL && cached_changes == apitoken_directory_changes;
}

static void
reset_cache(void)
{
	HASHCTL		control = {0};

	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "apitoken roles", ALLOCSET_DEFAULT_SIZES);
	role_cache = NULL;
	MemoryContextReset(cache_context);
	control.keysize = NAMEDATALEN;
	control.entrysize = sizeof(CachedRole);
	control.hcxt = cache_context;
	role_cache = hash_create("apitoken roles", 16, &control, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	cached_changes = apitoken_directory_changes;
}

/* Copy a row into the current memory context.  A cached row may go away at the next table access. */
static void
copy_row(const ApitokenRoleRow *from, ApitokenRoleRow *to)
{
	ListCell   *lc;

	to->patterns = NIL;
	foreach(lc, from->patterns)
		to->patterns = lappend(to->patterns, pstrdup(lfirst(lc)));
	to->database_role = from->database_role == NULL ? NULL : pstrdup(from->database_role);
}

static void
add_to_cache(const char *name, const ApitokenRoleRow *row)
{
	ApitokenRoleRow copy;
	MemoryContext caller = MemoryContextSwitchTo(cache_context);

	/* Complete the copy before adding the entry, because the copy may raise an error. */
	copy_row(row, &copy);
	MemoryContextSwitchTo(caller);
	((CachedRole *) hash_search(role_cache, name, HASH_ENTER, NULL))->row = copy;
}

/* Look up a role, with its patterns reduced.  Returns false if it does not exist. */
bool
apitoken_role(const char *name, ApitokenRoleRow *row)
{
	CachedRole *cached;
	Snapshot	snapshot;
	bool		found;

	/* No role has such a long name.  The hash table would truncate it. */
	if (strlen(name) >= NAMEDATALEN)
		return false;

	AcceptInvalidationMessages();
	if (!cache_is_valid() || hash_get_num_entries(role_cache) >= CACHED_ROLES_MAX)
		reset_cache();
	cached = hash_search(role_cache, name, HASH_FIND, NULL);
	if (cached != NULL)
	{
		copy_row(&cached->row, row);
		return true;
	}

	snapshot = apitoken_latest_snapshot();
	found = apitoken_fetch_role(snapshot, name, row);
	UnregisterSnapshot(snapshot);
	if (!found)
		return false;
	row->patterns = apitoken_patterns_reduce(row->patterns);
	/* Do not cache the row if an invalidation arrived while it was read. */
	if (!row->written_here && apitoken_directory_is_watched() && cache_is_valid())
		add_to_cache(name, row);
	return true;
}
