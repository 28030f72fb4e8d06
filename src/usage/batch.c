/*
 * batch.c
 *		The use that is sent to another server, in shared memory.
 *
 * Use is sent in batches (send.c).  A database has at most one batch on its
 * way.  While it is not known whether it was counted, its uses stay in
 * their entries, apart from later ones: accepted uses in `taken`, others in
 * batch_refused.  Then they are removed, or become use like any other again.  So it
 * does not matter whether the worker that has sent the batch still exists.  The
 * number of the batch is in the state of the database (flush_state.c).  The process
 * that settles it there also settles the uses here.
 *
 * The time of last use is not set apart, because the later time counts: sending it
 * twice makes no difference.
 *
 * Use that cannot be sent or written would fill one entry for each token and day.
 * Where it is sent, uses of all days before yesterday are therefore moved together: to
 * yesterday, or to the last day of their month if that is earlier.  So no quota of a
 * day or month sees another use than before.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "usage/usage.h"

/* Lock tags of pg_advisory_lock() end with 1 or 2. */
#define SENDER_LOCK 3

/* Arguments and results of take_entry(). */
typedef struct TakeState
{
	Oid			database;
	ApitokenUsageRow *rows;
	int			max;
	int			count;
} TakeState;

/* Wait until no other worker of this database sends, and keep it so until the end of the session or transaction. */
void
apitoken_lock_sending(bool session)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, 0, SENDER_LOCK);
	(void) LockAcquire(&tag, ExclusiveLock, session, false);
}

/* Move the uses of an entry to the batch.  Returns false if there are none. */
static bool
take_uses(ApitokenUsage *usage)
{
	bool		used = false;

	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
	{
		usage->batch_refused[verdict] = pg_atomic_exchange_u32(&usage->refused[verdict], 0);
		used = used || usage->batch_refused[verdict] > 0;
	}
	usage->taken = pg_atomic_read_u64(&usage->accepted);
	if (usage->taken > APITOKEN_SENT_COUNT_MAX)
		usage->taken = APITOKEN_SENT_COUNT_MAX;
	pg_atomic_fetch_sub_u64(&usage->accepted, usage->taken);
	usage->taken_by = InvalidTransactionId;
	/* the count of a use follows: see add_usage() */
	used = used || usage->taken > 0;
	usage->batch_reused = used ? usage->last.reused : 0;
	if (used)
		usage->last.reused = 0;
	usage->in_batch = used;
	return used;
}

/* What an entry has in the batch.  The caller holds the spinlock. */
static void
fill_row(const ApitokenUsage *usage, ApitokenUsageRow *row)
{
	memset(row, 0, sizeof(*row));
	row->key = usage->key;
	row->accepted = usage->taken;
	row->last = usage->last;
	row->last.reused = usage->batch_reused;
	memcpy(row->refused, usage->batch_refused, sizeof(row->refused));
}

static bool
take_entry(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	TakeState  *state = arg;

	if (usage->key.database != state->database)
		return true;
	SpinLockAcquire(&usage->mutex);
	if (!usage->in_batch && usage->taken == 0 && take_uses(usage))
		fill_row(usage, &state->rows[state->count++]);
	SpinLockRelease(&usage->mutex);
	return state->count < state->max;
}

/*
 * Put use of a database into the batch, at most `max` rows (one or more).  Returns
 * the number of rows.  If it is less than `max`, no other use is left.
 */
int
apitoken_take_batch(Oid database, ApitokenUsageRow *rows, int max)
{
	TakeState	state = {database, rows, max, 0};

	apitoken_map_each(apitoken_usage_map, take_entry, &state);
	return state.count;
}

/* Arguments and results of end_entry(). */
typedef struct EndState
{
	Oid			database;
	bool		counted;
	uint64		uses;
} EndState;

static bool
end_entry(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	EndState   *state = arg;
	ApitokenUsageRow row;
	bool		in_batch;

	if (usage->key.database != state->database)
		return true;
	SpinLockAcquire(&usage->mutex);
	in_batch = usage->in_batch;
	if (in_batch)
	{
		fill_row(usage, &row);
		if (!state->counted)
		{
			pg_atomic_fetch_add_u64(&usage->accepted, usage->taken);
			/* as add_refused() does, the count never starts again at zero */
			for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
			{
				if (pg_atomic_read_u32(&usage->refused[verdict]) < PG_UINT32_MAX / 2)
					pg_atomic_fetch_add_u32(&usage->refused[verdict], Min(usage->batch_refused[verdict], PG_UINT32_MAX / 2));
			}
			usage->last.reused |= usage->batch_reused;
		}
		usage->taken = 0;
		usage->in_batch = false;
	}
	SpinLockRelease(&usage->mutex);
	if (in_batch)
		state->uses += row.accepted + apitoken_refused_total(&row);
	return true;
}

/*
 * The batch of a database was counted, or will never be.  Returns its number of
 * uses.  The caller has settled the batch, or nobody else uses the database.
 */
uint64
apitoken_end_batch(Oid database, bool counted)
{
	EndState	state = {database, counted, 0};

	apitoken_map_each(apitoken_usage_map, end_entry, &state);
	return state.uses;
}

/* What an entry has in a batch.  Returns false if nothing.  For the usage file. */
bool
apitoken_read_batch(void *entry, ApitokenUsageRow *row)
{
	ApitokenUsage *usage = entry;

	if (usage->in_batch)
		fill_row(usage, row);
	return usage->in_batch;
}

/* Put a row that was read back into the batch.  Its entry must exist, or its uses are lost. */
void
apitoken_return_batch(const ApitokenUsageRow *row)
{
	LWLock	   *lock;
	ApitokenUsage *usage = apitoken_map_entry(apitoken_usage_map, &row->key, NULL, &lock);

	if (usage == NULL)
		return;
	SpinLockAcquire(&usage->mutex);
	usage->taken = row->accepted;
	usage->in_batch = true;
	usage->batch_reused = row->last.reused;
	memcpy(usage->batch_refused, row->refused, sizeof(row->refused));
	SpinLockRelease(&usage->mutex);
	LWLockRelease(lock);
}

/* Arguments and results of add_pending(). */
typedef struct PendingState
{
	Oid			database;
	uint64		uses;
} PendingState;

static bool
add_pending(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	PendingState *state = arg;

	if (usage->key.database != state->database)
		return true;
	SpinLockAcquire(&usage->mutex);
	state->uses += pg_atomic_read_u64(&usage->accepted) + usage->taken;
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
		state->uses += pg_atomic_read_u32(&usage->refused[verdict]) +
			(usage->in_batch ? usage->batch_refused[verdict] : 0);
	SpinLockRelease(&usage->mutex);
	return true;
}

/* The number of uses of a database that are neither written nor counted by another server. */
uint64
apitoken_pending_uses(Oid database)
{
	PendingState state = {database, 0};

	apitoken_map_each(apitoken_usage_map, add_pending, &state);
	return state.uses;
}

/* ---- days ---- */

/* Arguments and results of find_old(). */
typedef struct OldState
{
	DateADT		yesterday;
	ApitokenUsageKey keys[100];
	int			count;
} OldState;

/* The day that has the uses of an earlier day, too. */
static DateADT
merged_day(DateADT day, DateADT yesterday)
{
	DateADT		first = apitoken_first_day_of(APITOKEN_MONTH, day);
	DateADT		last_of_month = apitoken_first_day_of(APITOKEN_MONTH, first + 31) - 1;

	return Min(last_of_month, yesterday);
}

static bool
find_old(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	OldState   *state = arg;

	if (usage->key.day < state->yesterday && merged_day(usage->key.day, state->yesterday) != usage->key.day &&
		!apitoken_is_written(usage))
		state->keys[state->count++] = usage->key;
	return state->count < lengthof(state->keys);
}

/* Move the uses of an entry, except those in a batch, to another day.  Returns false if there is no room. */
static bool
move_uses(const ApitokenUsageKey *key, DateADT day)
{
	ApitokenUsageRow row;
	LWLock	   *lock;
	ApitokenUsage *usage;

	memset(&row, 0, sizeof(row));
	row.key = *key;
	row.key.day = day;
	if (apitoken_map_entry(apitoken_usage_map, &row.key, apitoken_init_usage, &lock) == NULL)
		return false;
	LWLockRelease(lock);
	usage = apitoken_map_entry(apitoken_usage_map, key, NULL, &lock);
	if (usage == NULL)
		return true;
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
		row.refused[verdict] = pg_atomic_exchange_u32(&usage->refused[verdict], 0);
	SpinLockAcquire(&usage->mutex);
	row.accepted = pg_atomic_exchange_u64(&usage->accepted, 0);
	row.last = usage->last;
	usage->last.reused = 0;
	SpinLockRelease(&usage->mutex);
	LWLockRelease(lock);
	apitoken_add_uses(&row);
	return true;
}

/* Where use is sent: move together what is of days before yesterday.  Only the launcher calls this. */
void
apitoken_merge_days(void)
{
	OldState	state;
	bool		moved;

	state.yesterday = apitoken_day_of(GetCurrentTimestamp()) - 1;
	do
	{
		state.count = 0;
		moved = true;
		apitoken_map_each(apitoken_usage_map, find_old, &state);
		for (int i = 0; i < state.count && moved; i++)
			moved = move_uses(&state.keys[i], merged_day(state.keys[i].day, state.yesterday));
	} while (moved && state.count == lengthof(state.keys));
}
