/*
 * flush_state.c
 *		The state of each database with usage, in shared memory: the outcome of
 *		its flushes, the time of the next attempt, the last maintenance.
 *
 * After each consecutive failure of a flush, the delay before the next attempt
 * doubles.  The same problem is reported only once.  One lock protects all states
 * (see shared.c for the rules).  It is held for a few assignments only.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "usage/usage.h"

/* Get a copy of a database's state.  Returns false if it has none. */
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

/* Get the databases that have a state, at most `max`.  Returns their number. */
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

/* Returns the entry, adding it if necessary; NULL if there is no room.  The caller holds the lock. */
static ApitokenFlushState *
find_or_add_entry(Oid database)
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
 * Record the end of a flush.  Returns true if it must be reported: on a new
 * problem, or on the first success after failures.
 */
bool
apitoken_record_flush(Oid database, uint64 ticket, ApitokenOutcome outcome, const char *problem)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		succeeded = outcome == APITOKEN_FLUSH_DONE || outcome == APITOKEN_FLUSH_UNFINISHED;
	bool		report;
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = find_or_add_entry(database);
	if (entry == NULL)
		report = !succeeded;
	else if (succeeded)
	{
		report = entry->failures > 0;
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

		report = entry->failures == 0 || strncmp(entry->problem, problem, APITOKEN_PROBLEM_MAX - 1) != 0;
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
	return report;
}

/* Record how far a flush came: the next one continues with the tokens after this one. */
void
apitoken_record_flushed_to(Oid database, const pg_uuid_t *token_id)
{
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = find_or_add_entry(database);
	if (entry != NULL)
		entry->flushed_to = *token_id;
	LWLockRelease(apitoken_flush_states_lock);
}

/*
 * Record the end of a worker's maintenance.  `at` is the current time if the run
 * is finished.  It is 0 if the next worker must continue at the given position.
 */
void
apitoken_record_maintenance(Oid database, TimestampTz at, int task, const pg_uuid_t *position)
{
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = find_or_add_entry(database);
	if (entry != NULL)
	{
		if (at != 0)
			entry->maintained_at = at;
		entry->task = task;
		entry->position = *position;
	}
	LWLockRelease(apitoken_flush_states_lock);
}

/* Record when to look for expiries again. */
void
apitoken_record_expiry(Oid database, TimestampTz at)
{
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = find_or_add_entry(database);
	if (entry != NULL)
		entry->expiry_at = at;
	LWLockRelease(apitoken_flush_states_lock);
}

/* Record what maintenance could not do; empty if it did everything.  Returns true if it must be reported. */
bool
apitoken_record_maintenance_problem(Oid database, const char *problem)
{
	bool		report = problem[0] != '\0';
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = find_or_add_entry(database);
	if (entry != NULL)
	{
		report = report && strcmp(entry->maintenance_problem, problem) != 0;
		snprintf(entry->maintenance_problem, APITOKEN_PROBLEM_MAX, "%s", problem);
	}
	LWLockRelease(apitoken_flush_states_lock);
	return report;
}

void
apitoken_remove_flush_state(Oid database)
{
	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	hash_search(apitoken_flush_states, &database, HASH_REMOVE, NULL);
	LWLockRelease(apitoken_flush_states_lock);
}

/* ---- batches for another server ---- */

/*
 * The id of the next batch.  Ids of a sender's batches increase, also if the clock
 * is set back.  The fresh ids are random; that of the sender counts only for the
 * first batch.  Returns false if there is no room, or a batch is sent already.
 */
bool
apitoken_next_batch(Oid database, const pg_uuid_t *fresh_sender, const pg_uuid_t *fresh_batch, ApitokenBatchId *batch)
{
	static const pg_uuid_t none = {0};
	ApitokenFlushState *entry;
	bool		made;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = find_or_add_entry(database);
	made = entry != NULL && !entry->batch.sent;
	if (made)
	{
		if (memcmp(&entry->batch.sender, &none, sizeof(none)) == 0)
			entry->batch.sender = *fresh_sender;
		if (memcmp(fresh_batch, &entry->batch.last, sizeof(pg_uuid_t)) > 0)
			entry->batch.last = *fresh_batch;
		else
		{
			/* the next number */
			for (int i = UUID_LEN - 1; i >= 0 && ++entry->batch.last.data[i] == 0; i--)
				;
		}
		entry->batch.sent = true;
		*batch = entry->batch;
	}
	LWLockRelease(apitoken_flush_states_lock);
	return made;
}

/*
 * It is known whether this batch was counted.  Returns false if that was known
 * already.  `new_sender`: the next batch is of another sender, because later
 * batches of this one were counted.
 */
bool
apitoken_settle_batch(Oid database, const pg_uuid_t *batch, bool new_sender)
{
	ApitokenFlushState *entry;
	bool		settled;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = hash_search(apitoken_flush_states, &database, HASH_FIND, NULL);
	settled = entry != NULL && entry->batch.sent && memcmp(&entry->batch.last, batch, sizeof(pg_uuid_t)) == 0;
	if (settled)
	{
		entry->batch.sent = false;
		if (new_sender)
			memset(&entry->batch.sender, 0, sizeof(pg_uuid_t));
	}
	LWLockRelease(apitoken_flush_states_lock);
	return settled;
}

/* What was saved before a restart. */
void
apitoken_restore_batch(Oid database, const ApitokenBatchId *batch)
{
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	entry = find_or_add_entry(database);
	if (entry != NULL)
		entry->batch = *batch;
	LWLockRelease(apitoken_flush_states_lock);
}

/* Forget all failures, because their cause may be gone: the server was promoted, or has other settings of sending. */
void
apitoken_retry_flushes(void)
{
	HASH_SEQ_STATUS status;
	ApitokenFlushState *entry;

	LWLockAcquire(apitoken_flush_states_lock, LW_EXCLUSIVE);
	hash_seq_init(&status, apitoken_flush_states);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		entry->failures = 0;
		entry->missing = 0;
		entry->retry_at = 0;
	}
	LWLockRelease(apitoken_flush_states_lock);
}
