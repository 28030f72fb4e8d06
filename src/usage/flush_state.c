/*
 * flush_state.c
 *		What is known, in shared memory, of each database with tokens in use:
 *		how writing its usage went, when to try again, when it was maintained.
 *
 * A flush that fails is tried again after twice the time each time, and the
 * same problem is told once.  All is under one lock (shared.c has the rules),
 * held for a few assignments.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "usage/usage.h"

/* A copy of what is known; false: nothing is. */
bool
apitoken_flush_state(Oid database, ApitokenFlushState *state)
{
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_SHARED);
	entry = hash_search(apitoken_flush_states, &database, HASH_FIND, NULL);
	if (entry != NULL)
		*state = *entry;
	LWLockRelease(apitoken_flush_states_lock);
	return entry != NULL;
}

/* All of which something is known, `max` at most; how many. */
int
apitoken_flush_state_databases(Oid *databases, int max)
{
	HASH_SEQ_STATUS status;
	ApitokenFlushState *entry;
	int			count = 0;

	LWLockAcquire(apitoken_flush_states_lock, LW_SHARED);
	hash_seq_init(&status, apitoken_flush_states);
	while (count < max && (entry = hash_seq_search(&status)) != NULL)
		databases[count++] = entry->database;
	if (count == max)
		hash_seq_term(&status);
	LWLockRelease(apitoken_flush_states_lock);
	return count;
}

/* The entry, made if need be; NULL: there is no room.  The lock is held. */
static ApitokenFlushState *
entry_of(Oid database)
{
	bool		found;
	ApitokenFlushState *entry = hash_search(apitoken_flush_states, &database, HASH_ENTER_NULL, &found);

	if (entry != NULL && !found)
	{
		memset(entry, 0, sizeof(*entry));
		entry->database = database;
	}
	return entry;
}

/*
 * A flush has ended.  True if there is something to tell: a problem that is
 * not the last one's, or the end of one.
 */
bool
apitoken_flush_ended(Oid database, uint64 ticket, ApitokenOutcome outcome, const char *problem)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		good = outcome == APITOKEN_FLUSH_DONE || outcome == APITOKEN_FLUSH_UNFINISHED;
	bool		news;
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = entry_of(database);
	if (entry == NULL)
		news = !good;
	else if (good)
	{
		news = entry->failures > 0;
		entry->failures = 0;
		entry->missing = 0;
		entry->retry_at = 0;
		entry->flushed_at = now;
		if (outcome == APITOKEN_FLUSH_DONE)
			entry->done_ticket = Max(entry->done_ticket, ticket);
	}
	else
	{
		int			doublings = Min(entry->failures, 12);

		news = entry->failures == 0 || strncmp(entry->problem, problem, APITOKEN_PROBLEM_MAX - 1) != 0;
		entry->failures++;
		entry->missing = outcome == APITOKEN_FLUSH_MISSING ? entry->missing + 1 : 0;
		entry->retry_at = now + Min((int64) apitoken_flush_interval << doublings, APITOKEN_RETRY_MAX) * 1000;
		entry->failed_at = now;
		snprintf(entry->problem, APITOKEN_PROBLEM_MAX, "%s", problem);
	}
	if (entry != NULL && ticket >= entry->last_ticket)
	{
		entry->last_ticket = ticket;
		entry->outcome = outcome;
	}
	LWLockRelease(apitoken_flush_states_lock);
	return news;
}

/* Maintenance has ended (`at`), or got so far and goes on the next time (`at` is 0). */
void
apitoken_maintenance_ended(Oid database, TimestampTz at, const pg_uuid_t *usage_seen)
{
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = entry_of(database);
	if (entry != NULL)
	{
		if (at != 0)
			entry->maintained_at = at;
		entry->usage_seen = *usage_seen;
	}
	LWLockRelease(apitoken_flush_states_lock);
}

void
apitoken_forget_flush_state(Oid database)
{
	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	hash_search(apitoken_flush_states, &database, HASH_REMOVE, NULL);
	LWLockRelease(apitoken_flush_states_lock);
}
