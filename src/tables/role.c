/*
 * role.c
 *		What roles allow, remembered for the session.
 *
 * Roles are few and change seldom, and each verification asks about one.  So
 * that a change tells at once all the same, a trigger on the table sends the
 * relcache invalidation of the table, which the server delivers to all
 * sessions, on standbys too, once the change is committed, and to the session
 * itself from its next command on, or when that is rolled back.  Whoever asks
 * looks for such news first, and reads with a snapshot that is taken after it.
 *
 * What is not there is not remembered, so that a new role needs no news; nor is
 * what this transaction has written, so that nobody need tell when a new role,
 * or a change of which the trigger has not told yet, is rolled back; nor
 * anything while the trigger is not enabled always: a restore that disables
 * triggers and enables them again leaves it enabled as any other.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "tables/tables.h"

/* Beyond so many all are forgotten. */
#define ROLES_MAX 1000

typedef struct Role
{
	char		name[NAMEDATALEN];	/* the table's names are no longer */
	ApitokenRoleRow row;
} Role;

static HTAB *roles = NULL;		/* NULL: there is nothing to be found */
static MemoryContext memory = NULL; /* of the table and all that is in it */
static uint64 remembered_since; /* what apitoken_table_changes was then */

/* Has nothing been heard since then that may concern the table? */
static bool
is_valid(void)
{
	return roles != NULL && remembered_since == apitoken_table_changes;
}

static void
begin_anew(void)
{
	HASHCTL		control = {0};

	if (memory == NULL)
		memory = AllocSetContextCreate(TopMemoryContext, "apitoken roles", ALLOCSET_DEFAULT_SIZES);
	roles = NULL;
	MemoryContextReset(memory);
	control.keysize = NAMEDATALEN;
	control.entrysize = sizeof(Role);
	control.hcxt = memory;
	roles = hash_create("apitoken roles", 16, &control, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	remembered_since = apitoken_table_changes;
}

/* In the memory of now: what is remembered may be gone with the next look at a table. */
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
remember(const char *name, const ApitokenRoleRow *row)
{
	ApitokenRoleRow copy;
	MemoryContext caller = MemoryContextSwitchTo(memory);

	/* whole before it can be found */
	copy_row(row, &copy);
	MemoryContextSwitchTo(caller);
	((Role *) hash_search(roles, name, HASH_ENTER, NULL))->row = copy;
}

/* A role, its patterns reduced; false: there is none. */
bool
apitoken_role(const char *name, ApitokenRoleRow *row)
{
	Role	   *known;
	Snapshot	snapshot;
	bool		found;

	/* no role has such a name; the hash table would cut it off */
	if (strlen(name) >= NAMEDATALEN)
		return false;

	AcceptInvalidationMessages();
	if (!is_valid() || hash_get_num_entries(roles) >= ROLES_MAX)
		begin_anew();
	known = hash_search(roles, name, HASH_FIND, NULL);
	if (known != NULL)
	{
		copy_row(&known->row, row);
		return true;
	}

	snapshot = apitoken_latest_snapshot();
	found = apitoken_fetch_role(snapshot, name, row);
	UnregisterSnapshot(snapshot);
	if (!found)
		return false;
	row->patterns = apitoken_patterns_reduce(row->patterns);
	/* unless there was news while it was read */
	if (is_valid() && row->lasting)
		remember(name, row);
	return true;
}

PG_FUNCTION_INFO_V1(apitoken_role_after_change);
Datum
apitoken_role_after_change(PG_FUNCTION_ARGS)
{
	apitoken_expect_trigger(fcinfo, APITOKEN_ROLES);
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}
