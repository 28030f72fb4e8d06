/*
 * usage.c
 *		Record the usage of tokens: the time and address of the last use, and
 *		the numbers of accepted uses, and of refused ones by verdict.
 *
 * With shared_preload_libraries, a use is recorded in shared memory at once, even
 * if the caller's transaction is rolled back later (see shared.c for the locking
 * rules).  A worker writes it to the tables (flush.c).  There is one entry for
 * each token and day, because daily counts are kept.  When a flush takes the usage
 * of an entry, it sets the counts to zero, and notes the accepted uses as taken
 * until it has committed.  So a sum of the uses of a token counts each one once:
 * in the tables, or here.  The launcher removes entries with
 * counts of zero at the end of a round.  If there is no room for an entry, the
 * use is not recorded but counted as dropped, and the launcher is woken.
 *
 * A refusal is recorded only if the request had the right secret, or one that was
 * right before.  Other requests may be guesses, and the time to record them would
 * reveal which ids exist.
 *
 * Without shared memory, the caller's transaction writes the use to the table.
 * This must never make that transaction wait or fail.  Therefore it is done at
 * most once a minute for each secret, only in a READ COMMITTED transaction that can
 * write, and only if no other transaction has locked the row or the table.  (SKIP
 * LOCKED would raise a serialization failure, 40001, under REPEATABLE READ.)  It
 * does not use advisory locks, because a query that verifies many tokens would
 * fill the server's lock table.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "common/int.h"
#include "miscadmin.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "usage/usage.h"

#define WRITE_INTERVAL (1 * SECS_PER_MINUTE * 1000)	/* milliseconds */

/* Refused uses with a verdict that an entry counts between two flushes. */
#define REFUSED_MAX (PG_UINT32_MAX / 2)

/* Of a long list, one key in so many tells which ones a flush begins with. */
#define LIST_SAMPLE 64

DateADT
apitoken_day_of(TimestampTz at)
{
	DateADT		day = at / USECS_PER_DAY;

	return at % USECS_PER_DAY < 0 ? day - 1 : day;
}

/* ---- in shared memory ---- */

/* Initialize an entry of the map. */
void
apitoken_init_usage(void *entry)
{
	ApitokenUsage *usage = entry;
	uint32		first = pg_atomic_read_u32(&apitoken_shared->first_day);

	while (usage->key.day < (DateADT) first &&
		   !pg_atomic_compare_exchange_u32(&apitoken_shared->first_day, &first, (uint32) usage->key.day))
		;
	pg_atomic_init_u64(&usage->accepted, 0);
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
		pg_atomic_init_u32(&usage->refused[verdict], 0);
	SpinLockInit(&usage->mutex);
	memset(&usage->last, 0, sizeof(usage->last));
	usage->last.at = DT_NOBEGIN;
	usage->taken = 0;
	usage->taken_by = InvalidTransactionId;
	usage->in_batch = false;
}

/* When a previous secret was last used after its overlap; 0 if none was. */
static TimestampTz
reused_at(const ApitokenLastUse *last)
{
	TimestampTz at = 0;

	for (int i = 0; i < APITOKEN_PREVIOUS_MAX; i++)
	{
		if (last->reused & (1 << i))
			at = Max(at, last->previous_at[i]);
	}
	return at;
}

/* The later use counts, for the token and for each of its previous secrets. */
void
apitoken_merge_last_use(ApitokenLastUse *last, const ApitokenLastUse *other)
{
	if (other->reused != 0 && reused_at(other) >= reused_at(last))
		last->reused_from = other->reused_from;
	if (other->at != DT_NOBEGIN && other->at >= last->at)
	{
		last->at = other->at;
		last->from = other->from;
	}
	for (int i = 0; i < APITOKEN_PREVIOUS_MAX; i++)
		last->previous_at[i] = Max(last->previous_at[i], other->previous_at[i]);
	last->reused |= other->reused;
}

uint64
apitoken_refused_total(const ApitokenUsageRow *row)
{
	uint64		total = 0;

	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
		total += row->refused[verdict];
	return total;
}

/*
 * Add refused uses.  While flushes fail, a count ends between REFUSED_MAX and twice
 * that, so it never starts again at zero.
 */
static void
add_refused(ApitokenUsage *usage, const ApitokenUsageRow *row)
{
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
	{
		if (row->refused[verdict] == 0)
			continue;
		if (pg_atomic_read_u32(&usage->refused[verdict]) < REFUSED_MAX)
			pg_atomic_fetch_add_u32(&usage->refused[verdict], Min(row->refused[verdict], REFUSED_MAX));
		else
			apitoken_count(APITOKEN_DROPPED, row->refused[verdict]);
	}
}

/*
 * Add usage to the entry of its key.  Returns false if there is no room for a new
 * entry.  `returned`: a flush has taken this usage from the entry.
 */
static bool
add_usage(const ApitokenUsageRow *row, bool returned)
{
	LWLock	   *lock;
	ApitokenUsage *usage = apitoken_map_entry(apitoken_usage_map, &row->key, apitoken_init_usage, &lock);

	if (usage == NULL)
	{
		apitoken_count(APITOKEN_DROPPED, row->accepted + apitoken_refused_total(row));
		if (row->accepted > 0)
			apitoken_note_loss(APITOKEN_LOST_FOR_ROOM);
		return false;
	}
	/* Set the times before the counts, so that a flush never takes a count without a time. */
	SpinLockAcquire(&usage->mutex);
	apitoken_merge_last_use(&usage->last, &row->last);
	SpinLockRelease(&usage->mutex);
	if (returned)
	{
		SpinLockAcquire(&usage->mutex);
		usage->taken = 0;
		pg_atomic_fetch_add_u64(&usage->accepted, row->accepted);
		SpinLockRelease(&usage->mutex);
	}
	else if (row->accepted > 0)
		pg_atomic_fetch_add_u64(&usage->accepted, row->accepted);
	add_refused(usage, row);
	LWLockRelease(lock);
	return true;
}

static void
copy_client_address(inet *argument, inet_struct *copy)
{
	inet	   *client = apitoken_client_address(argument);

	if (client != NULL)
		memcpy(copy, VARDATA_ANY(client), Min(VARSIZE_ANY_EXHDR(client), sizeof(*copy)));
}

static bool
record_in_memory(const ApitokenRecord *record, int secret, ApitokenVerdict verdict, uint32 cost,
				 TimestampTz now, inet *address)
{
	ApitokenUsageRow use;

	memset(&use, 0, sizeof(use));
	use.key.database = MyDatabaseId;
	use.key.day = apitoken_day_of(now);
	use.key.token_id = record->id;
	use.last.at = DT_NOBEGIN;
	if (secret > 0)
	{
		use.last.previous_at[secret - 1] = now;
		if (record->secrets[secret].expires_at <= now)
		{
			use.last.reused = 1 << (secret - 1);
			copy_client_address(address, &use.last.reused_from);
		}
	}
	if (verdict == APITOKEN_VALID)
	{
		use.accepted = cost;
		use.last.at = now;
		copy_client_address(address, &use.last.from);
	}
	else
		use.refused[verdict] = 1;
	if (add_usage(&use, false))
		return true;
	apitoken_wake_launcher();
	return false;
}

/* Take the uses of an entry.  Returns false if it has none. */
static bool
take_uses(ApitokenUsage *usage, TransactionId xid, ApitokenUsageRow *row)
{
	bool		used;

	SpinLockAcquire(&usage->mutex);
	/* a server that no longer sends: flush.c settles the batch first */
	if (usage->in_batch)
	{
		SpinLockRelease(&usage->mutex);
		return false;
	}
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
		row->refused[verdict] = pg_atomic_exchange_u32(&usage->refused[verdict], 0);
	used = apitoken_refused_total(row) > 0;
	row->accepted = pg_atomic_exchange_u64(&usage->accepted, 0);
	if (TransactionIdIsValid(xid))
	{
		usage->taken = row->accepted;
		usage->taken_by = xid;
	}
	row->last = usage->last;
	used = used || row->accepted > 0;
	/* the count of a use follows: see add_usage() */
	if (used)
		usage->last.reused = 0;
	SpinLockRelease(&usage->mutex);
	row->key = usage->key;
	return used;
}

/* Keys of a database, in any order. */
typedef struct KeyList
{
	ApitokenUsageKey *keys;
	int			count;
	int			max;
} KeyList;

/* Arguments and results of list_entry(). */
typedef struct ListState
{
	Oid			database;
	const pg_uuid_t *after;
	KeyList		first;			/* those after the token `after` */
	KeyList		rest;
} ListState;

/* Have room for so many keys. */
static void
reserve(KeyList *list, int max)
{
	Size		size = max * sizeof(ApitokenUsageKey);

	if (max <= list->max)
		return;
	list->keys = list->keys == NULL ? MemoryContextAllocHuge(CurrentMemoryContext, size) : repalloc_huge(list->keys, size);
	list->max = max;
}

static bool
list_entry(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	ListState  *state = arg;
	KeyList    *list;

	if (usage->key.database != state->database || usage->in_batch || apitoken_is_written(usage))
		return true;
	list = memcmp(&usage->key.token_id, state->after, sizeof(pg_uuid_t)) > 0 ? &state->first : &state->rest;
	if (list->count == list->max)
		reserve(list, 2 * list->max);
	list->keys[list->count++] = usage->key;
	return true;
}

/* For qsort(): the order of keys, or of rows, which begin with a key: by token, then by day. */
int
apitoken_compare_keys(const void *a, const void *b)
{
	const ApitokenUsageKey *left = a;
	const ApitokenUsageKey *right = b;
	int			order = memcmp(&left->token_id, &right->token_id, sizeof(pg_uuid_t));

	return order != 0 ? order : (left->day > right->day) - (left->day < right->day);
}

/*
 * Keep about `max` of the first keys, in any order: those up to one that a sample
 * tells.  Up to about twice as many are kept as they are.
 */
static void
keep_first(KeyList *list, int max)
{
	int			samples = list->count / LIST_SAMPLE;
	ApitokenUsageKey *sample;
	ApitokenUsageKey last;
	int			kept = 0;

	Assert(max >= 0);
	if (list->count <= 2 * max + LIST_SAMPLE)
		return;
	sample = palloc_extended(samples * sizeof(ApitokenUsageKey), MCXT_ALLOC_HUGE);
	for (int i = 0; i < samples; i++)
		sample[i] = list->keys[i * LIST_SAMPLE];
	qsort(sample, samples, sizeof(ApitokenUsageKey), apitoken_compare_keys);
	last = sample[max / LIST_SAMPLE];
	pfree(sample);
	for (int i = 0; i < list->count; i++)
	{
		if (apitoken_compare_keys(&list->keys[i], &last) <= 0)
			list->keys[kept++] = list->keys[i];
	}
	list->count = kept;
}

/*
 * List the tokens and days of a database that have uses now, in the order of the
 * tokens, with those after `after` first.  If there are many, these are not all of
 * them, but between about `max` and twice as many.  The list is in the current
 * memory context.
 */
ApitokenUsageKey *
apitoken_list_usage(Oid database, const pg_uuid_t *after, int max, int *count, bool *all)
{
	ListState	state = {.database = database, .after = after};
	KeyList    *first = &state.first;
	KeyList    *rest = &state.rest;

	reserve(first, 1024);
	reserve(rest, 1024);
	apitoken_map_each(apitoken_usage_map, list_entry, &state);
	*all = first->count + rest->count <= 2 * max;
	if (!*all)
	{
		keep_first(first, max);
		if (first->count < max)
			keep_first(rest, max - first->count);
		else
			rest->count = 0;
	}
	*count = first->count + rest->count;
	reserve(first, *count);
	qsort(first->keys, first->count, sizeof(ApitokenUsageKey), apitoken_compare_keys);
	qsort(rest->keys, rest->count, sizeof(ApitokenUsageKey), apitoken_compare_keys);
	memcpy(first->keys + first->count, rest->keys, rest->count * sizeof(ApitokenUsageKey));
	pfree(rest->keys);
	return first->keys;
}

/*
 * Take the recorded usage of these tokens and days.  `xid` is the transaction that
 * writes it.  Returns the number of rows, which is less than `count` if some have
 * no uses any more.
 */
int
apitoken_take_usage(const ApitokenUsageKey *keys, int count, TransactionId xid, ApitokenUsageRow *rows)
{
	int			taken = 0;

	for (int i = 0; i < count; i++)
	{
		LWLock	   *lock;
		ApitokenUsage *usage = apitoken_map_entry(apitoken_usage_map, &keys[i], NULL, &lock);

		if (usage == NULL)
			continue;
		if (take_uses(usage, xid, &rows[taken]))
			taken++;
		LWLockRelease(lock);
	}
	return taken;
}

static bool
discard_entry(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	ApitokenUsageRow discarded;

	if (usage->key.database == *(Oid *) arg)
		(void) take_uses(usage, InvalidTransactionId, &discarded);
	return true;
}

/* Discard the recorded usage of a database. */
void
apitoken_discard_usage(Oid database)
{
	apitoken_map_each(apitoken_usage_map, discard_entry, &database);
}

/* Return usage that was taken but not written. */
void
apitoken_return_usage(const ApitokenUsageRow *rows, int count)
{
	for (int i = 0; i < count; i++)
		(void) add_usage(&rows[i], true);
}

/* Record uses that were recorded before, in another entry. */
void
apitoken_add_uses(const ApitokenUsageRow *row)
{
	(void) add_usage(row, false);
}

/*
 * The transaction that took these rows has committed, so now the tables have them.
 * The count of batches must change first: see apitoken_accepted_uses().
 */
void
apitoken_forget_taken(const ApitokenUsageRow *rows, int count)
{
	pg_atomic_fetch_add_u64(&apitoken_shared->written, 1);
	for (int i = 0; i < count; i++)
	{
		LWLock	   *lock;
		ApitokenUsage *usage = apitoken_map_entry(apitoken_usage_map, &rows[i].key, NULL, &lock);

		if (usage == NULL)
			continue;
		SpinLockAcquire(&usage->mutex);
		usage->taken = 0;
		SpinLockRelease(&usage->mutex);
		LWLockRelease(lock);
	}
}

/* The accepted uses of a token on a day that this snapshot does not show in the tables. */
static uint64
unwritten_uses(const ApitokenUsageKey *key, Snapshot snapshot)
{
	LWLock	   *lock;
	ApitokenUsage *usage = apitoken_map_entry(apitoken_usage_map, key, NULL, &lock);
	uint64		accepted;
	uint64		taken;
	TransactionId taken_by;

	if (usage == NULL)
		return 0;
	SpinLockAcquire(&usage->mutex);
	accepted = pg_atomic_read_u64(&usage->accepted);
	taken = usage->taken;
	taken_by = usage->taken_by;
	SpinLockRelease(&usage->mutex);
	LWLockRelease(lock);

	if (taken > 0 && (XidInMVCCSnapshot(taken_by, snapshot) || !TransactionIdDidCommit(taken_by)))
		accepted += taken;
	return accepted;
}

/*
 * How often was a token accepted from the day `since` on, or ever (DATEVAL_NOBEGIN)?
 * Each use is counted once, whether it is in shared memory, in the tables, or on its
 * way.  What a flush has taken counts here if the snapshot does not show it in the
 * tables.  If a flush commits meanwhile, taken uses may already be forgotten that
 * the snapshot does not show, so this starts again.
 */
int64
apitoken_accepted_uses(const pg_uuid_t *id, DateADT since, DateADT today)
{
	for (;;)
	{
		uint64		written = pg_atomic_read_u64(&apitoken_shared->written);
		ApitokenUsageKey key;
		Snapshot	snapshot;
		int64		uses;

		pg_memory_barrier();
		snapshot = apitoken_latest_snapshot();
		uses = apitoken_fetch_accepted(snapshot, id, since);
		memset(&key, 0, sizeof(key));
		key.database = MyDatabaseId;
		key.token_id = *id;
		/* another process may have seen the next day already */
		for (key.day = Max(since, (DateADT) pg_atomic_read_u32(&apitoken_shared->first_day));
			 key.day <= today + 1; key.day++)
		{
			if (pg_add_s64_overflow(uses, (int64) unwritten_uses(&key, snapshot), &uses))
				uses = PG_INT64_MAX;
		}
		UnregisterSnapshot(snapshot);
		pg_memory_barrier();
		if (pg_atomic_read_u64(&apitoken_shared->written) == written)
			return uses;
		CHECK_FOR_INTERRUPTS();
	}
}

/* Has an entry no uses, except those that a flush or a batch has taken? */
bool
apitoken_is_written(ApitokenUsage *usage)
{
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
	{
		if (pg_atomic_read_u32(&usage->refused[verdict]) != 0)
			return false;
	}
	return pg_atomic_read_u64(&usage->accepted) == 0;
}

/* Arguments and results of add_database(). */
typedef struct DatabaseList
{
	Oid		   *databases;
	int			max;
	int			count;
} DatabaseList;

static bool
add_database(DatabaseList *list, Oid database)
{
	for (int i = 0; i < list->count; i++)
	{
		if (list->databases[i] == database)
			return true;
	}
	list->databases[list->count++] = database;
	return list->count < list->max;
}

static bool
add_database_of_usage(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;

	return (apitoken_is_written(usage) && !usage->in_batch) || add_database(arg, usage->key.database);
}

static bool
add_database_of_seen(const ApitokenSeenRow *row, void *arg)
{
	DatabaseList *list = arg;

	/* a standby does not send digests */
	if (row->place == APITOKEN_WITH_DIGEST && RecoveryInProgress())
		return true;
	return list->count < list->max && add_database(list, row->key.database);
}

/* Get the databases that have usage to be written, at most `max`.  Returns their number. */
int
apitoken_databases_with_usage(Oid *databases, int max)
{
	DatabaseList list = {databases, max, 0};

	apitoken_map_each(apitoken_usage_map, add_database_of_usage, &list);
	apitoken_each_seen(add_database_of_seen, &list);
	return list.count;
}

static bool
is_removable(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	DatabaseList *busy = arg;

	for (int i = 0; i < busy->count; i++)
	{
		if (busy->databases[i] == usage->key.database)
			return false;
	}
	/* while a flush of another session's has taken uses, the database may not be busy */
	return apitoken_is_written(usage) && usage->taken == 0 && !usage->in_batch;
}

/* Make room by removing the entries whose usage was taken, except those of busy databases. */
void
apitoken_remove_written_usage(Oid *busy, int count)
{
	DatabaseList list = {busy, count, count};

	apitoken_map_remove(apitoken_usage_map, is_removable, &list);
	apitoken_remove_written_seen();
}

bool
apitoken_is_forgotten(const ApitokenForgottenTokens *tokens, Oid database, const pg_uuid_t *id)
{
	return database == tokens->database &&
		bsearch(id, tokens->ids, tokens->count, sizeof(pg_uuid_t), apitoken_compare_ids) != NULL;
}

static bool
forget_address(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;

	if (apitoken_is_forgotten(arg, usage->key.database, &usage->key.token_id))
	{
		SpinLockAcquire(&usage->mutex);
		memset(&usage->last.from, 0, sizeof(usage->last.from));
		memset(&usage->last.reused_from, 0, sizeof(usage->last.reused_from));
		SpinLockRelease(&usage->mutex);
	}
	return true;
}

/* Forget the client addresses and the places of these tokens, which are sorted by id.  This cannot fail. */
void
apitoken_forget_places(Oid database, const pg_uuid_t *ids, int count)
{
	ApitokenForgottenTokens tokens = {database, ids, count};

	if (apitoken_shared == NULL)
		return;
	apitoken_map_each(apitoken_usage_map, forget_address, &tokens);
	apitoken_forget_seen(&tokens);
}

/* ---- in the caller's transaction ---- */

static void
record_in_table(const ApitokenRecord *record, int secret, TimestampTz now, inet *address)
{
	const pg_uuid_t *id = &record->id;
	TimestampTz last_used_at;
	Snapshot	snapshot;
	bool		has_row;
	inet	   *client;
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', ' '};

	if (XactReadOnly || IsInParallelMode() || RecoveryInProgress() ||
		XactIsoLevel > XACT_READ_COMMITTED)
		return;
	if (!apitoken_try_lock_table(APITOKEN_TOKEN_USAGE, RowExclusiveLock))
		return;
	snapshot = apitoken_latest_snapshot();
	has_row = apitoken_fetch_last_used(snapshot, id, secret, &last_used_at);
	UnregisterSnapshot(snapshot);
	/* a time before is of another secret, which had the place */
	if (has_row && secret > 0 && last_used_at < record->secrets[secret].replaced_at)
		last_used_at = DT_NOBEGIN;
	if ((has_row && last_used_at > DT_NOBEGIN &&
		 !TimestampDifferenceExceeds(last_used_at, now, WRITE_INTERVAL)) ||
		(!has_row && !apitoken_try_lock_table(APITOKEN_TOKEN_RECORDS, RowShareLock)))
	{
		apitoken_unlock_table(APITOKEN_TOKEN_USAGE, RowExclusiveLock);
		return;
	}

	values[0] = UUIDPGetDatum(id);
	values[1] = TimestampTzGetDatum(now);
	client = apitoken_client_address(address);
	values[2] = InetPGetDatum(client);
	if (client == NULL)
		nulls[2] = 'n';
	values[3] = Int32GetDatum(secret);
	apitoken_execute(has_row ? APITOKEN_TOUCH_USAGE : APITOKEN_ADD_USAGE, values, nulls);
}

/*
 * Record the use of a token at time `at`: an accepted one as `cost` uses, a refused
 * one by its verdict.  `secret` is 0 for the current secret, n for the n-th previous one, also
 * after its overlap.  `may_write` allows writing to the table if there is no shared
 * memory.  Returns false if shared memory had no room for it.
 */
bool
apitoken_record_use(const ApitokenRecord *record, int secret, ApitokenVerdict verdict, uint32 cost,
					TimestampTz at, inet *address, bool may_write)
{
	if (apitoken_shared != NULL)
		return record_in_memory(record, secret, verdict, cost, at, address);
	if (verdict == APITOKEN_VALID && may_write)
		record_in_table(record, secret, at, address);
	return true;
}
