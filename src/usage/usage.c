/*
 * usage.c
 *		When tokens are used, from where, and how often.
 *
 * With shared preload this is recorded in shared memory (shared.c has the
 * locking rules), at once and whatever becomes of the caller's transaction,
 * and written from there by a worker (flush.c).  An entry is of one token on
 * one day, which the counts by day need.  Taking what is to be written leaves
 * the entry with counts of zero; those that are so still are removed by the
 * launcher, when it has had everything written.  When there is no room for an
 * entry, the use is not recorded, but counted as dropped, and the launcher
 * hastened.
 *
 * Refusals are recorded of those who had the right secret only: others cannot
 * be told from guesses, and the time that it takes would tell which ids exist.
 *
 * Without preload a use is written in the caller's transaction, and must never
 * be what makes that transaction wait or fail: at most once a minute for a
 * token, only in a READ COMMITTED transaction that can write, and only if no
 * other transaction has the row locked (SKIP LOCKED, which would raise 40001
 * under REPEATABLE READ).  No advisory lock is taken: a query that verifies
 * many tokens would fill the server's lock table.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "usage/usage.h"

#define WRITE_INTERVAL (1 * SECS_PER_MINUTE * 1000)	/* milliseconds */

static DateADT
day_of(TimestampTz at)
{
	DateADT		day = at / USECS_PER_DAY;

	return at % USECS_PER_DAY < 0 ? day - 1 : day;
}

/* ---- in shared memory ---- */

static void
begin_usage(void *entry)
{
	ApitokenUsage *usage = entry;

	pg_atomic_init_u64(&usage->accepted, 0);
	pg_atomic_init_u64(&usage->refused, 0);
	usage->left_by = 0;
	SpinLockInit(&usage->mutex);
	memset(&usage->last, 0, sizeof(usage->last));
	usage->last.at = DT_NOBEGIN;
}

/*
 * Add to the entry of a key; false if it has none and there is no room.  If it
 * comes from a flush that leaves it for a later one: which.  (0: it does not.)
 */
static bool
add_usage(const ApitokenUsageKey *key, uint64 accepted, uint64 refused, const ApitokenLastUse *last,
		  uint32 left_by)
{
	LWLock	   *lock;
	ApitokenUsage *usage = apitoken_map_entry(apitoken_usage_map, key, begin_usage, &lock);

	if (usage == NULL)
	{
		apitoken_count(APITOKEN_DROPPED, accepted + refused);
		return false;
	}
	if (last->at != DT_NOBEGIN)
	{
		/* before it is counted: whoever takes the count finds a time */
		SpinLockAcquire(&usage->mutex);
		if (last->at >= usage->last.at)
			usage->last = *last;
		SpinLockRelease(&usage->mutex);
	}
	if (left_by != 0)
		usage->left_by = left_by;
	if (accepted > 0)
		pg_atomic_fetch_add_u64(&usage->accepted, accepted);
	if (refused > 0)
		pg_atomic_fetch_add_u64(&usage->refused, refused);
	LWLockRelease(lock);
	return true;
}

static void
remember_use(const pg_uuid_t *id, bool accepted, TimestampTz now, inet *address)
{
	ApitokenUsageKey key;
	ApitokenLastUse last;

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.day = day_of(now);
	key.token_id = *id;
	memset(&last, 0, sizeof(last));
	last.at = DT_NOBEGIN;
	if (accepted)
	{
		inet	   *client = apitoken_client_address(address);

		last.at = now;
		if (client != NULL)
			memcpy(&last.from, VARDATA_ANY(client), Min(VARSIZE_ANY_EXHDR(client), sizeof(last.from)));
	}
	if (!add_usage(&key, accepted ? 1 : 0, accepted ? 0 : 1, &last, 0))
		apitoken_hasten();
}

/* What apitoken_take_usage() collects. */
typedef struct Taking
{
	Oid			database;
	uint32		flush;
	ApitokenUsageRow *rows;
	int			max;
	int			count;
} Taking;

static bool
take(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	Taking	   *taking = arg;
	ApitokenUsageRow *row = &taking->rows[taking->count];

	if (usage->key.database != taking->database)
		return true;
	if (taking->flush != 0 && usage->left_by == taking->flush)
		return true;
	row->accepted = pg_atomic_exchange_u64(&usage->accepted, 0);
	row->refused = pg_atomic_exchange_u64(&usage->refused, 0);
	if (row->accepted == 0 && row->refused == 0)
		return true;
	row->key = usage->key;
	SpinLockAcquire(&usage->mutex);
	row->last = usage->last;
	SpinLockRelease(&usage->mutex);
	taking->count++;
	return taking->count < taking->max;
}

/*
 * Take what has been recorded of a database, `max` rows of it at most (one or
 * more), but for what this flush has left already (0: leave nothing); how many.
 * Fewer than `max`: it is all.
 */
int
apitoken_take_usage(Oid database, uint32 flush, ApitokenUsageRow *rows, int max)
{
	Taking		taking = {database, flush, rows, max, 0};

	apitoken_map_each(apitoken_usage_map, take, &taking);
	return taking.count;
}

/* What could not be written goes back; what a flush leaves (not 0) it does not take again. */
void
apitoken_give_back_usage(const ApitokenUsageRow *rows, int count, uint32 flush)
{
	for (int i = 0; i < count; i++)
		(void) add_usage(&rows[i].key, rows[i].accepted, rows[i].refused, &rows[i].last, flush);
}

static bool
is_written(ApitokenUsage *usage)
{
	return pg_atomic_read_u64(&usage->accepted) == 0 && pg_atomic_read_u64(&usage->refused) == 0;
}

/* What apitoken_databases_used() collects. */
typedef struct Naming
{
	Oid		   *databases;
	int			max;
	int			count;
} Naming;

static bool
name_database(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	Naming	   *naming = arg;

	if (is_written(usage))
		return true;
	for (int i = 0; i < naming->count; i++)
	{
		if (naming->databases[i] == usage->key.database)
			return true;
	}
	naming->databases[naming->count++] = usage->key.database;
	return naming->count < naming->max;
}

/* The databases that have something to be written, `max` at most; how many. */
int
apitoken_databases_used(Oid *databases, int max)
{
	Naming		naming = {databases, max, 0};

	apitoken_map_each(apitoken_usage_map, name_database, &naming);
	return naming.count;
}

static bool
is_spent(void *entry, void *arg)
{
	return is_written(entry);
}

/* Make room: what is written need not stay. */
void
apitoken_forget_written(void)
{
	apitoken_map_remove(apitoken_usage_map, is_spent, NULL);
}

/* ---- in the caller's transaction ---- */

static void
write_use(const pg_uuid_t *id, TimestampTz now, inet *address)
{
	TimestampTz last_used_at;
	Snapshot	snapshot;
	bool		has_row;
	inet	   *client;
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};

	if (XactReadOnly || IsInParallelMode() || RecoveryInProgress() ||
		XactIsoLevel > XACT_READ_COMMITTED)
		return;
	snapshot = apitoken_latest_snapshot();
	has_row = apitoken_fetch_last_used(snapshot, id, &last_used_at);
	UnregisterSnapshot(snapshot);
	if (has_row && last_used_at > DT_NOBEGIN &&
		!TimestampDifferenceExceeds(last_used_at, now, WRITE_INTERVAL))
		return;

	values[0] = UUIDPGetDatum(id);
	values[1] = TimestampTzGetDatum(now);
	client = apitoken_client_address(address);
	values[2] = InetPGetDatum(client);
	if (client == NULL)
		nulls[2] = 'n';
	apitoken_execute(has_row ? APITOKEN_TOUCH_USAGE : APITOKEN_ADD_USAGE, values, nulls);
}

/*
 * Record the outcome of a verification, made at that time.  `id` is the token's
 * if the secret was right, otherwise NULL; `may_write` allows writing where
 * there is no shared memory.
 */
void
apitoken_record_use(ApitokenVerdict verdict, const pg_uuid_t *id, TimestampTz at, inet *address,
					bool may_write)
{
	apitoken_count((ApitokenCounter) verdict, 1);
	if (id == NULL)
		return;
	if (apitoken_shared != NULL)
		remember_use(id, verdict == APITOKEN_VALID, at, address);
	else if (verdict == APITOKEN_VALID && may_write)
		write_use(id, at, address);
}
