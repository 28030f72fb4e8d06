/*
 * changes.c
 *		Tells whether the directory has changed: organizations, users, memberships
 *		and roles.
 *
 * Sessions cache what roles allow (role.c), and where the caller may do what
 * (src/identity/policy.c).  Changes take effect at once nevertheless: a trigger on each
 * table sends a relcache invalidation.  The server delivers it to all sessions, also on
 * standbys, when the change is committed; the session that makes the change receives it
 * at its next command.  Whoever uses a cache first accepts pending invalidations, and
 * compares apitoken_directory_changes with its value before the rows were read.
 *
 * The invalidation is for directory_changes, a table that is empty and never read.  One
 * for the table that has changed would make all sessions plan their statements on it
 * again.
 *
 * Some changes are not announced:
 *
 *	- A rollback sends no invalidation for rows that were visible only here, or for a
 *	  change for which the trigger has not fired yet.  So nothing is cached that depends
 *	  on what this transaction wrote.
 *	- A restore that disables and enables triggers leaves them enabled, but not as
 *	  ALWAYS.  Then nothing is cached.
 */
#include "postgres.h"

#include "access/relation.h"
#include "commands/trigger.h"
#include "utils/inval.h"
#include "utils/rel.h"

#include "tables/tables.h"

static const ApitokenTable directory[] = {
	APITOKEN_ORGANIZATIONS, APITOKEN_USERS, APITOKEN_DELETED_USERS, APITOKEN_MEMBERSHIPS, APITOKEN_ROLE_RECORDS
};

/*
 * Does the trigger of this table fire regardless of session_replication_role?  False if
 * the table is locked: nobody waits here for a table that they do not read.
 */
static bool
trigger_always_fires(ApitokenTable table)
{
	Relation	relation;
	bool		fires = false;

	if (!apitoken_try_lock_table(table, AccessShareLock))
		return false;
	relation = relation_open(apitoken_table(table), NoLock);
	for (int i = 0; relation->trigdesc != NULL && i < relation->trigdesc->numtriggers; i++)
	{
		const Trigger *trigger = &relation->trigdesc->triggers[i];

		if (strcmp(trigger->tgname, "directory_after_change") == 0)
			fires = trigger->tgenabled == TRIGGER_FIRES_ALWAYS;
	}
	relation_close(relation, NoLock);
	apitoken_unlock_table(table, AccessShareLock);
	return fires;
}

/* Is every change of the directory announced? */
bool
apitoken_directory_is_watched(void)
{
	static bool watched = false;
	static uint64 watched_changes;	/* apitoken_table_changes before that was found */
	uint64		changes = apitoken_table_changes;

	if (watched && watched_changes == changes)
		return true;
	watched = false;
	for (int i = 0; i < lengthof(directory); i++)
	{
		if (!trigger_always_fires(directory[i]))
			return false;
	}
	watched_changes = changes;
	watched = true;
	return watched_changes == apitoken_table_changes;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_directory_after_change);
Datum
apitoken_directory_after_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	int			i = 0;

	while (i < lengthof(directory) - 1 && CALLED_AS_TRIGGER(fcinfo) &&
		   RelationGetRelid(trigger->tg_relation) != apitoken_table(directory[i]))
		i++;
	apitoken_expect_trigger(fcinfo, directory[i]);
	CacheInvalidateRelcacheByRelid(apitoken_table(APITOKEN_DIRECTORY_CHANGES));
	return PointerGetDatum(NULL);
}
