/*
 * cache.c
 *		Roles and organizations that the session remembers.
 *
 * Every verification needs the patterns of a role, and every creation the policy of
 * an organization, while these rarely change.  Changes take effect at once
 * nevertheless: see changes.c.  Each lookup first accepts pending invalidations, and
 * then takes its snapshot.
 *
 * Only rows of role_records count.  A built-in role that is not stored there does
 * not exist: after a restore that has not loaded the roles yet, it must not have
 * more permissions than the stored row.
 *
 * Some rows are not cached:
 *
 *	- Roles and organizations that do not exist.
 *	- Rows that the current transaction wrote.
 *	- All rows, while changes are not announced.
 *	- Further rows, when there are CACHED_MAX of a kind.
 */
#include "postgres.h"

#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "tables/tables.h"

#define CACHED_MAX 1000

typedef struct CachedRole
{
	char		name[NAMEDATALEN];	/* role names are not longer */
	ApitokenRoleRow row;
} CachedRole;

typedef struct CachedOrganization
{
	char		id[APITOKEN_OWNER_ID_MAX + 1];
	ApitokenOrganizationRow row;
} CachedOrganization;

static HTAB *roles = NULL;		/* NULL if the cache is not valid */
static HTAB *organizations = NULL;	/* the same */
static MemoryContext cache_context = NULL;	/* has the hash tables and their entries */
static uint64 cached_changes;	/* apitoken_directory_changes when the cache was created */

/* Has there been no invalidation since the cache was created? */
static bool
cache_is_valid(void)
{
	return roles != NULL && cached_changes == apitoken_directory_changes;
}

static HTAB *
create_hash(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		control = {0};

	control.keysize = key_size;
	control.entrysize = entry_size;
	control.hcxt = cache_context;
	return hash_create(name, 16, &control, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

/* Make the cache valid. */
static void
prepare_cache(void)
{
	AcceptInvalidationMessages();
	if (cache_is_valid())
		return;
	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "apitoken directory", ALLOCSET_DEFAULT_SIZES);
	roles = organizations = NULL;
	MemoryContextReset(cache_context);
	organizations = create_hash("apitoken organizations", sizeof(((CachedOrganization *) NULL)->id), sizeof(CachedOrganization));
	roles = create_hash("apitoken roles", NAMEDATALEN, sizeof(CachedRole));
	cached_changes = apitoken_directory_changes;
}

/* May a row that was just read be added?  Not if an invalidation arrived meanwhile. */
static bool
may_add(HTAB *hash, bool written_here)
{
	return !written_here && apitoken_directory_is_watched() && cache_is_valid() &&
		hash_get_num_entries(hash) < CACHED_MAX;
}

/* Copy a row into the current memory context.  A cached row may go away at the next table access. */
static void
copy_role(const ApitokenRoleRow *from, ApitokenRoleRow *to)
{
	ListCell   *lc;

	to->patterns = NIL;
	foreach(lc, from->patterns)
		to->patterns = lappend(to->patterns, pstrdup(lfirst(lc)));
	to->database_role = from->database_role == NULL ? NULL : pstrdup(from->database_role);
}

/* The same. */
static void
copy_organization(const ApitokenOrganizationRow *from, ApitokenOrganizationRow *to)
{
	*to = *from;
	if (from->max_lifetime != NULL)
	{
		to->max_lifetime = palloc(sizeof(Interval));
		*to->max_lifetime = *from->max_lifetime;
	}
	if (from->allowed_networks != NULL)
		to->allowed_networks = DatumGetArrayTypePCopy(PointerGetDatum(from->allowed_networks));
	if (from->default_role != NULL)
		to->default_role = pstrdup(from->default_role);
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

	prepare_cache();
	cached = hash_search(roles, name, HASH_FIND, NULL);
	if (cached != NULL)
	{
		copy_role(&cached->row, row);
		return true;
	}

	snapshot = apitoken_latest_snapshot();
	found = apitoken_fetch_role(snapshot, name, row);
	UnregisterSnapshot(snapshot);
	if (!found)
		return false;
	row->patterns = apitoken_patterns_reduce(row->patterns);
	if (may_add(roles, row->written_here))
	{
		ApitokenRoleRow copy;
		MemoryContext caller = MemoryContextSwitchTo(cache_context);

		/* Complete the copy before adding the entry, because the copy may raise an error. */
		copy_role(row, &copy);
		MemoryContextSwitchTo(caller);
		((CachedRole *) hash_search(roles, name, HASH_ENTER, NULL))->row = copy;
	}
	return true;
}

/* Look up an organization.  Returns false if it does not exist. */
bool
apitoken_organization(const char *id, ApitokenOrganizationRow *row)
{
	CachedOrganization *cached;
	Snapshot	snapshot;
	bool		found;

	/* No organization has such a long id.  The hash table would truncate it. */
	if (strlen(id) > APITOKEN_OWNER_ID_MAX)
		return false;

	prepare_cache();
	cached = hash_search(organizations, id, HASH_FIND, NULL);
	if (cached != NULL)
	{
		copy_organization(&cached->row, row);
		return true;
	}

	snapshot = apitoken_latest_snapshot();
	found = apitoken_fetch_organization(snapshot, id, row);
	UnregisterSnapshot(snapshot);
	if (found && may_add(organizations, row->written_here))
	{
		ApitokenOrganizationRow copy;
		MemoryContext caller = MemoryContextSwitchTo(cache_context);

		copy_organization(row, &copy);
		MemoryContextSwitchTo(caller);
		((CachedOrganization *) hash_search(organizations, id, HASH_ENTER, NULL))->row = copy;
	}
	return found;
}
