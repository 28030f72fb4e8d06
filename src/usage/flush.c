/*
 * flush.c
 *		Write the recorded usage of a database to its tables.
 *
 * A flush runs in a worker.  It lists the tokens that have been used, in the order of
 * their ids, which is about that of the pages of token_usage.  So it changes a page
 * in one batch, or in two.  In each batch it takes usage from shared memory, writes
 * it to token_usage, token_days and personal_token_use, and commits.  The networks
 * of tokens follow in transactions of their own, because they also make
 * notifications, which must not prevent that use is written.  On an error, what was
 * taken goes back to shared memory.  Batches grow while they are fast, and are
 * smaller after failures.  If time runs out, the flush wakes the launcher, so that
 * another flush follows soon.  That one begins after the last token of this one, so
 * that each token is written before any is written again.
 *
 * Each batch has a lock, so that there is no concurrent flush of the same database.
 * Therefore, when a flush has ended, any usage that was taken before it started has
 * been written too.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/wait_event.h"

#include "usage/usage.h"

/* Rows in the first batch of a flush, and limits for the others. */
#define BATCH_FIRST 1000
#define BATCH_MAX 10000
#define BATCH_MIN 100

/* If a batch takes no longer than this (in microseconds), the next one may be twice as large. */
#define BATCH_QUICK (250 * INT64CONST(1000))

/* Another batch is started only if at least this much time is left; of usage also twice the time of the last one. */
#define BATCH_TIME (1000 * INT64CONST(1000))
#define NETWORKS_TIME (2500 * INT64CONST(1000))

/* The list of a flush is about as long, or twice as long at most: what it can write in its time. */
#define KEYS_MAX 250000

/* A session waits this long for a free worker slot (in microseconds), with pauses (in milliseconds). */
#define SLOT_TIME (4 * USECS_PER_SEC)
#define SLOT_PAUSE 50

/*
 * A token that is not found may have been created by a transaction that has not
 * committed yet.  Its usage is deferred until its id is this old.
 */
#define UNCOMMITTED_AGE_MAX (1 * USECS_PER_MINUTE)

#define VERDICT_NAME(NAME, name, known, status) #name,

/* usage that was taken from shared memory and is not committed yet */
static ApitokenUsageRow *batch_rows = NULL;
static int	batch_count = 0;

/* the organizations of personal tokens, or the networks of tokens, as batch_rows */
#define SEEN_MAX 1000
static ApitokenSeenRow *seen_rows = NULL;
static int	seen_count = 0;

/* the use of previous secrets after their overlap in the batch, in the order of the tokens, for apitoken_tell_reuse() */
static ApitokenUsageRow *reused_rows = NULL;
static int	reused_count = 0;
static int	reused_max = 0;

/*
 * Transaction callback.  On an abort, also when the worker is terminated, the
 * batch goes back to shared memory.  This happens before the lock of the batch is
 * released, so the next flush finds the usage there.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
	{
		apitoken_return_usage(batch_rows, batch_count);
		apitoken_return_seen(seen_rows, seen_count);
	}
	if (event == XACT_EVENT_COMMIT && batch_count > 0)
		apitoken_forget_taken(batch_rows, batch_count);
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_COMMIT)
		batch_count = seen_count = 0;
}

static Datum
address_datum(const inet_struct *from)
{
	inet	   *address = palloc0(sizeof(inet));

	memcpy(VARDATA(address), from, sizeof(*from));
	SET_INET_VARSIZE(address);
	return InetPGetDatum(address);
}

/*
 * Sum the sorted rows of each token into `sums`, over all days unless `daily`.
 * Returns the number of sums.  The rows may be in the same place as the sums.
 */
static int
sum_rows(const ApitokenUsageRow *rows, int count, bool daily, ApitokenUsageRow *sums)
{
	int			summed = 0;

	for (int i = 0; i < count; i++)
	{
		ApitokenUsageRow *sum = summed > 0 ? &sums[summed - 1] : NULL;

		if (sum == NULL || memcmp(&sum->key.token_id, &rows[i].key.token_id, sizeof(pg_uuid_t)) != 0 ||
			(daily && sum->key.day != rows[i].key.day))
		{
			sums[summed++] = rows[i];
			continue;
		}
		sum->accepted += rows[i].accepted;
		for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
			sum->refused[verdict] = Min((uint64) sum->refused[verdict] + rows[i].refused[verdict], PG_UINT32_MAX);
		apitoken_merge_last_use(&sum->last, &rows[i].last);
	}
	return summed;
}

/* Fields of a row that are passed to statements. */
typedef enum
{
	TOKEN_ID,
	DAY,
	LAST_USED_AT,
	ACCEPTED,
	REFUSED,
	REFUSALS,
	LAST_USED_FROM,
	REUSED,
	PREVIOUS_USE,				/* the first of APITOKEN_PREVIOUS_MAX */
	FIELDS = PREVIOUS_USE + APITOKEN_PREVIOUS_MAX
} Field;

/* The refused uses by verdict, as the text of a JSON object. */
static Datum
refusals_datum(const ApitokenUsageRow *row)
{
	static const char *const names[APITOKEN_VERDICTS] = {VERDICTS(VERDICT_NAME)};
	StringInfoData object;

	initStringInfo(&object);
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
	{
		if (row->refused[verdict] > 0)
			appendStringInfo(&object, "%s\"%s\": %u", object.len == 0 ? "{" : ", ", names[verdict], row->refused[verdict]);
	}
	appendStringInfoChar(&object, '}');
	return CStringGetTextDatum(object.data);
}

static Datum
field_datum(const ApitokenUsageRow *row, Field field, bool *isnull)
{
	*isnull = (field == LAST_USED_AT && row->last.at == DT_NOBEGIN) ||
		(field == LAST_USED_FROM && row->last.from.family == 0) ||
		(field == REFUSALS && apitoken_refused_total(row) == 0) ||
		(field >= PREVIOUS_USE && row->last.previous_at[field - PREVIOUS_USE] == 0);
	if (*isnull)
		return (Datum) 0;
	if (field >= PREVIOUS_USE)
		return TimestampTzGetDatum(row->last.previous_at[field - PREVIOUS_USE]);
	switch (field)
	{
		case TOKEN_ID:
			return UUIDPGetDatum(&row->key.token_id);
		case DAY:
			return DateADTGetDatum(row->key.day);
		case LAST_USED_AT:
			return TimestampTzGetDatum(row->last.at);
		case ACCEPTED:
			return Int64GetDatum(row->accepted);
		case REFUSED:
			return Int64GetDatum(apitoken_refused_total(row));
		case REFUSALS:
			return refusals_datum(row);
		case REUSED:
			return Int16GetDatum(row->last.reused);
		default:
			return address_datum(&row->last.from);
	}
}

static Datum
field_array(const ApitokenUsageRow *rows, int count, Field field)
{
	static const Oid types[PREVIOUS_USE + 1] = {
		[TOKEN_ID] = UUIDOID,[DAY] = DATEOID,[LAST_USED_AT] = TIMESTAMPTZOID,
		[ACCEPTED] = INT8OID,[REFUSED] = INT8OID,[LAST_USED_FROM] = INETOID,
		[REFUSALS] = TEXTOID,[REUSED] = INT2OID,[PREVIOUS_USE] = TIMESTAMPTZOID,
	};
	Oid			type = types[Min(field, PREVIOUS_USE)];
	Datum	   *values = palloc(count * sizeof(Datum));
	bool	   *nulls = palloc(count * sizeof(bool));
	int			bound = 1;
	int16		length;
	bool		byval;
	char		align;

	for (int i = 0; i < count; i++)
		values[i] = field_datum(&rows[i], field, &nulls[i]);
	get_typlenbyvalalign(type, &length, &byval, &align);
	return PointerGetDatum(construct_md_array(values, nulls, 1, &count, &bound,
											  type, length, byval, align));
}

static bool
has_previous_use(const ApitokenUsageRow *row)
{
	for (int i = 0; i < APITOKEN_PREVIOUS_MAX; i++)
	{
		if (row->last.previous_at[i] != 0)
			return true;
	}
	return false;
}

/* Run a statement about the last uses of previous secrets. */
static void
execute_previous(ApitokenStatement statement, const ApitokenUsageRow *rows, int count)
{
	Datum		arrays[2 + APITOKEN_PREVIOUS_MAX];

	arrays[0] = field_array(rows, count, TOKEN_ID);
	for (int i = 0; i < APITOKEN_PREVIOUS_MAX; i++)
		arrays[1 + i] = field_array(rows, count, PREVIOUS_USE + i);
	arrays[1 + APITOKEN_PREVIOUS_MAX] = field_array(rows, count, REUSED);
	apitoken_execute(statement, arrays, NULL);
}

/* Write the last uses of previous secrets, which few tokens have.  Overwrites the array. */
static void
write_previous_use(ApitokenUsageRow *sums, int tokens)
{
	int			count = 0;

	for (int i = 0; i < tokens; i++)
	{
		if (has_previous_use(&sums[i]))
			sums[count++] = sums[i];
	}
	if (count == 0)
		return;
	execute_previous(APITOKEN_WRITE_PREVIOUS_USE, sums, count);

	/* what apitoken_tell_reuse() needs, in place of the batch */
	if (reused_rows == NULL)
		reused_rows = MemoryContextAlloc(TopMemoryContext, count * sizeof(ApitokenUsageRow));
	else if (reused_max < count)
		reused_rows = repalloc(reused_rows, count * sizeof(ApitokenUsageRow));
	reused_max = Max(reused_max, count);
	for (int i = 0; i < count; i++)
	{
		if (sums[i].last.reused != 0)
			reused_rows[reused_count++] = sums[i];
	}
}

/*
 * Write the events of previous secrets that were used after their overlap, and
 * revoke their tokens where the organization wants it.  This has a transaction of
 * its own, because triggers on the tokens must not prevent that use is written.
 */
bool
apitoken_tell_reuse(void *arg)
{
	if (reused_count > 0 && SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA && apitoken_lock_usage())
	{
		execute_previous(APITOKEN_TELL_REUSE, reused_rows, reused_count);
		execute_previous(APITOKEN_REVOKE_REUSED, reused_rows, reused_count);
	}
	return false;
}

static int
compare_token(const void *id, const void *row)
{
	return memcmp(id, &((const ApitokenUsageRow *) row)->key.token_id, sizeof(pg_uuid_t));
}

/* The client's address of a use for which APITOKEN_TELL_REUSE writes an event; NULL: unknown. */
inet *
apitoken_reused_from(const pg_uuid_t *token_id)
{
	const ApitokenUsageRow *row = bsearch(token_id, reused_rows, reused_count, sizeof(ApitokenUsageRow), compare_token);

	return row == NULL || row->last.reused_from.family == 0 ? NULL :
		DatumGetInetPP(address_datum(&row->last.reused_from));
}

/* The parameters of the statements that write the use of tokens. */
static Datum *
use_arrays(const ApitokenUsageRow *rows, int count)
{
	static const Field fields[] = {TOKEN_ID, DAY, LAST_USED_AT, ACCEPTED, REFUSED, REFUSALS, LAST_USED_FROM};
	Datum	   *arrays = palloc(sizeof(Datum) * lengthof(fields));

	for (int i = 0; i < lengthof(fields); i++)
		arrays[i] = field_array(rows, count, fields[i]);
	return arrays;
}

/* Write rows, one for each token.  Overwrites the array. */
static void
write_days(ApitokenUsageRow *rows, int count)
{
	pg_uuid_t  *written;
	uint64		written_count = apitoken_execute_ids(APITOKEN_WRITE_SAME_DAY, use_arrays(rows, count), NULL, &written);
	int			others = 0;

	if (written_count == count)
		return;
	qsort(written, written_count, sizeof(pg_uuid_t), apitoken_compare_ids);
	for (int i = 0; i < count; i++)
	{
		if (bsearch(&rows[i].key.token_id, written, written_count, sizeof(pg_uuid_t), apitoken_compare_ids) == NULL)
			rows[others++] = rows[i];
	}
	apitoken_execute(APITOKEN_WRITE_USAGE, use_arrays(rows, others), NULL);
}

/*
 * Write rows, in the order of their keys.  Keys may be the same in a batch that a
 * standby has sent.  Otherwise the rows are only sorted, because they are what goes
 * back to shared memory on an error.
 *
 * The statements get a token once.  So there is one execution with the first day of
 * each token, which is mostly the only one, one with the second days, and so on.
 *
 * A token's row of token_usage is changed before token_days.  A concurrent
 * deletion of the token skips that locked row.  Housekeeping later finds it, and
 * through it the rows in token_days.
 */
void
apitoken_write_usage(ApitokenUsageRow *rows, int count)
{
	ApitokenUsageRow *days = palloc(count * sizeof(ApitokenUsageRow));
	int			written = 0;

	reused_count = 0;
	qsort(rows, count, sizeof(ApitokenUsageRow), apitoken_compare_keys);
	count = sum_rows(rows, count, true, rows);
	for (int nth = 0; written < count; nth++)
	{
		int			chosen = 0;
		int			day = 0;

		for (int i = 0; i < count; i++)
		{
			day = i > 0 && memcmp(&rows[i].key.token_id, &rows[i - 1].key.token_id, sizeof(pg_uuid_t)) == 0 ? day + 1 : 0;
			if (day == nth)
				days[chosen++] = rows[i];
		}
		written += chosen;
		write_days(days, chosen);
	}
	write_previous_use(days, sum_rows(rows, count, false, days));
}

/* Write where tokens were seen: the statement gets the places, the tokens and the times. */
void
apitoken_write_seen(ApitokenPlace place, const ApitokenSeenRow *rows, int count)
{
	bool		in_network = place == APITOKEN_IN_NETWORK;
	Datum	   *columns[3];
	Datum		values[4];

	for (int i = 0; i < lengthof(columns); i++)
		columns[i] = palloc(count * sizeof(Datum));
	for (int i = 0; i < count; i++)
	{
		columns[0][i] = in_network ? address_datum(&rows[i].key.in.network) :
			CStringGetTextDatum(rows[i].key.in.organization_id);
		columns[1][i] = UUIDPGetDatum(&rows[i].key.token_id);
		columns[2][i] = TimestampTzGetDatum(rows[i].at);
	}
	values[0] = PointerGetDatum(construct_array(columns[0], count, in_network ? CIDROID : TEXTOID, -1, false, TYPALIGN_INT));
	values[1] = PointerGetDatum(construct_array(columns[1], count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	values[2] = PointerGetDatum(construct_array(columns[2], count, TIMESTAMPTZOID, sizeof(TimestampTz),
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[3] = BoolGetDatum(apitoken_notifications);
	apitoken_execute(in_network ? APITOKEN_WRITE_NETWORKS : APITOKEN_WRITE_SEEN, values, NULL);
}

/* May this row belong to a token whose creation is not committed yet? */
static bool
may_be_uncommitted(const ApitokenUsageRow *row, Snapshot snapshot, TimestampTz now)
{
	TimestampTz made_at = apitoken_id_time(&row->key.token_id);
	ApitokenRecord record;

	return made_at > now - UNCOMMITTED_AGE_MAX && made_at < now + UNCOMMITTED_AGE_MAX &&
		!apitoken_fetch_token(snapshot, &row->key.token_id, &record);
}

/*
 * Remove the rows of possibly uncommitted tokens from the batch, and return them
 * to shared memory, for a later flush.
 */
static void
defer_uncommitted(void)
{
	TimestampTz now = GetCurrentTimestamp();
	Snapshot	snapshot = apitoken_latest_snapshot();
	bool	   *uncommitted = palloc(batch_count * sizeof(bool));
	int			remaining = 0;

	for (int i = 0; i < batch_count; i++)
		uncommitted[i] = may_be_uncommitted(&batch_rows[i], snapshot, now);
	UnregisterSnapshot(snapshot);

	/* Nothing can interrupt this loop, so no row is lost or duplicated. */
	for (int i = 0; i < batch_count; i++)
	{
		if (uncommitted[i])
			apitoken_return_usage(&batch_rows[i], 1);
		else
			batch_rows[remaining++] = batch_rows[i];
	}
	batch_count = remaining;
}

typedef struct Batch
{
	ApitokenUsageKey *keys;		/* what has been used */
	int			key_count;
	int			done;			/* number of keys that were taken */
	bool		all;			/* the keys are all there were */
	int			max;			/* maximum number of rows */
	ApitokenOutcome outcome;
} Batch;

/*
 * This server was promoted, or is no longer a subscriber that sends, while a batch was
 * on its way.  If it was counted, and this server knows so, its uses are in the
 * tables.  Otherwise they are to be written here.  No worker waits for its answer any
 * more: see list_keys().
 */
static void
settle_batch(void)
{
	ApitokenFlushState state;
	Datum		values[2];
	bool		counted;

	if (!apitoken_flush_state(MyDatabaseId, &state) || !state.batch.sent)
		return;
	values[0] = UUIDPGetDatum(&state.batch.sender);
	values[1] = UUIDPGetDatum(&state.batch.last);
	counted = apitoken_execute(APITOKEN_BATCH_COUNTED, values, NULL) > 0;
	if (apitoken_settle_batch(MyDatabaseId, &state.batch.last, false))
		(void) apitoken_end_batch(MyDatabaseId, counted);
}

/*
 * List what has been used, within a transaction, beginning after the token to which
 * the last flush came.  Returns whether the extension is installed.
 */
static bool
list_keys(void *arg)
{
	Batch	   *batch = arg;
	MemoryContext context;
	ApitokenFlushState state = {0};

	/* first, because a worker that sends takes these locks in the same order */
	apitoken_lock_sending(false);
	if (!apitoken_lock_usage())
	{
		batch->outcome = APITOKEN_FLUSH_MISSING;
		return false;
	}
	settle_batch();
	(void) apitoken_flush_state(MyDatabaseId, &state);
	context = MemoryContextSwitchTo(TopMemoryContext);
	batch->keys = apitoken_list_usage(MyDatabaseId, &state.flushed_to, KEYS_MAX, &batch->key_count, &batch->all);
	MemoryContextSwitchTo(context);
	return true;
}

/* Take the uses of the next keys. */
static void
take_batch(Batch *batch)
{
	int			count = Min(batch->max, batch->key_count - batch->done);

	batch_count = apitoken_take_usage(batch->keys + batch->done, count, GetCurrentTransactionId(), batch_rows);
	batch->done += count;
}

/* Write one batch, within a transaction.  Returns whether there may be more. */
static bool
flush_batch(void *arg)
{
	Batch	   *batch = arg;

	if (!apitoken_lock_usage())
	{
		batch->outcome = APITOKEN_FLUSH_MISSING;
		return false;
	}
	take_batch(batch);
	seen_count = apitoken_take_seen(APITOKEN_IN_ORGANIZATION, MyDatabaseId, seen_rows, SEEN_MAX);
	batch->outcome = batch->done == batch->key_count && batch->all && seen_count < SEEN_MAX ?
		APITOKEN_FLUSH_DONE : APITOKEN_FLUSH_UNFINISHED;
	defer_uncommitted();
	if (batch_count > 0)
		apitoken_write_usage(batch_rows, batch_count);
	if (seen_count > 0)
		apitoken_write_seen(APITOKEN_IN_ORGANIZATION, seen_rows, seen_count);
	if (batch_count + seen_count > 0)
		apitoken_count(APITOKEN_FLUSHES, 1);
	return batch->outcome == APITOKEN_FLUSH_UNFINISHED && (batch->done < batch->key_count || seen_count == SEEN_MAX);
}

/* Write one batch of networks, within a transaction.  Returns whether there may be more. */
static bool
flush_networks(void *arg)
{
	int		   *max = arg;		/* maximum number of rows */

	if (!apitoken_lock_usage())
		return false;
	seen_count = apitoken_take_seen(APITOKEN_IN_NETWORK, MyDatabaseId, seen_rows, *max);
	if (seen_count > 0)
		apitoken_write_seen(APITOKEN_IN_NETWORK, seen_rows, seen_count);
	return seen_count == *max;
}

/* The same of fast digests of imported tokens. */
static bool
flush_digests(void *arg)
{
	if (!apitoken_lock_usage())
		return false;
	seen_count = apitoken_take_seen(APITOKEN_WITH_DIGEST, MyDatabaseId, seen_rows, SEEN_MAX);
	if (seen_count > 0)
		apitoken_write_digests(seen_rows, seen_count);
	return seen_count == SEEN_MAX;
}

/*
 * Call work(arg) in a transaction of its own, with a statement timeout at `until`.
 * Returns its result.  On an error, returns false and copies the error message to
 * `problem`, which is empty otherwise.
 */
bool
apitoken_run_in_transaction(bool (*work) (void *arg), void *arg, TimestampTz until,
						char problem[APITOKEN_PROBLEM_MAX])
{
	volatile bool more = false;

	problem[0] = '\0';
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		pgstat_report_activity(STATE_RUNNING, "writing the usage of tokens");
		enable_timeout_at(STATEMENT_TIMEOUT, until);
		more = work(arg);
		disable_timeout(STATEMENT_TIMEOUT, false);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		HOLD_INTERRUPTS();
		disable_timeout(STATEMENT_TIMEOUT, false);
		QueryCancelPending = false;
		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		snprintf(problem, APITOKEN_PROBLEM_MAX, "%s", error->message);
		problem[pg_mbcliplen(problem, strlen(problem), APITOKEN_PROBLEM_MAX - 1)] = '\0';
		FreeErrorData(error);
		more = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	pgstat_report_activity(STATE_IDLE, NULL);
	return more;
}

/* Memory for what is taken from shared memory.  A worker calls this once. */
static void
prepare_rows(int max_rows)
{
	batch_rows = MemoryContextAlloc(TopMemoryContext, max_rows * sizeof(ApitokenUsageRow));
	seen_rows = MemoryContextAlloc(TopMemoryContext, SEEN_MAX * sizeof(ApitokenSeenRow));
	RegisterXactCallback(xact_callback, NULL);
}

/*
 * Write fast digests, which are not sent.  If this fails, they stay in shared memory,
 * where they serve as well, and the next worker tries again.
 */
void
apitoken_flush_digests(TimestampTz until)
{
	char		problem[APITOKEN_PROBLEM_MAX];

	prepare_rows(1);
	(void) apitoken_run_in_transaction(flush_digests, NULL, until, problem);
}

static void
report_outcome(ApitokenOutcome outcome, const char *problem)
{
	char	   *database;

	StartTransactionCommand();
	database = get_database_name(MyDatabaseId);
	if (outcome == APITOKEN_FLUSH_FAILED || outcome == APITOKEN_FLUSH_MISSING)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not write token usage in database \"%s\": %s", database, problem),
				 errdetail("The usage is kept in memory, and writing it will be retried.")));
	else
		ereport(LOG,
				(errmsg("resumed writing token usage in database \"%s\"", database)));
	CommitTransactionCommand();
}

static void
report_reuse(TimestampTz until)
{
	char		problem[APITOKEN_PROBLEM_MAX];

	(void) apitoken_run_in_transaction(apitoken_tell_reuse, NULL, until, problem);
	if (problem[0] != '\0')
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not record the use of replaced token secrets: %s", problem),
				 errdetail("Their next use will be recorded.")));
}

/* Write the usage of this worker's database, and record the outcome under the ticket. */
ApitokenOutcome
apitoken_flush(uint64 ticket, TimestampTz until)
{
	ApitokenFlushState state = {0};
	Batch		batch = {.max = BATCH_FIRST, .outcome = APITOKEN_FLUSH_FAILED};
	int			max_rows = BATCH_MAX;
	int			max_networks;
	TimestampTz started_at;
	char		problem[APITOKEN_PROBLEM_MAX];
	TimestampTz ended_at;
	bool		more;

	if (apitoken_flush_state(MyDatabaseId, &state))
		max_rows = Max(BATCH_MAX >> Min(state.failures, 12), BATCH_MIN);
	batch.max = Min(batch.max, max_rows);
	max_networks = Max(APITOKEN_NOTIFY_BATCH >> Min(state.failures, 12), 1);
	prepare_rows(max_rows);
	apitoken_remove_usage_file();

	more = apitoken_run_in_transaction(list_keys, &batch, until, problem);
	while (more)
	{
		started_at = GetCurrentTimestamp();
		reused_count = 0;
		more = apitoken_run_in_transaction(flush_batch, &batch, until, problem);
		if (problem[0] != '\0')
			batch.outcome = APITOKEN_FLUSH_FAILED;
		else if (reused_count > 0)
			report_reuse(until);
		ended_at = GetCurrentTimestamp();
		if (ended_at - started_at <= BATCH_QUICK)
			batch.max = Min(2 * batch.max, max_rows);
		more = more && ended_at < until - Max(BATCH_TIME, 2 * (ended_at - started_at));
	}
	more = batch.outcome == APITOKEN_FLUSH_UNFINISHED;
	/* Also if use remains, so that networks do not wait until there is less of it. */
	if (batch.outcome == APITOKEN_FLUSH_DONE || batch.outcome == APITOKEN_FLUSH_UNFINISHED)
	{
		bool		more_networks;

		do
		{
			started_at = GetCurrentTimestamp();
			more_networks = apitoken_run_in_transaction(flush_networks, &max_networks, until, problem);
			if (GetCurrentTimestamp() - started_at <= BATCH_QUICK)
				max_networks = Min(2 * max_networks, SEEN_MAX);
		} while (more_networks && GetCurrentTimestamp() < until - NETWORKS_TIME);
		if (problem[0] == '\0' && apitoken_run_in_transaction(flush_digests, NULL, until, problem))
			more_networks = true;
		if (problem[0] != '\0')
			batch.outcome = APITOKEN_FLUSH_FAILED;
		else if (more_networks)
			batch.outcome = APITOKEN_FLUSH_UNFINISHED;
		more = more || more_networks;
	}
	if (batch.done > 0)
		apitoken_record_flushed_to(MyDatabaseId, &batch.keys[batch.done - 1].token_id);
	if (more)
		apitoken_wake_launcher();

	if (batch.outcome == APITOKEN_FLUSH_MISSING)
		snprintf(problem, sizeof(problem), "extension \"apitoken\" is not installed");
	if (apitoken_record_flush(MyDatabaseId, ticket, batch.outcome, problem))
		report_outcome(batch.outcome, problem);
	return batch.outcome;
}

/* ---- in any session ---- */

/*
 * Start a worker for a database.  Returns false if no worker slot is free.  The
 * caller's latch is set when the worker starts and ends.
 */
bool
apitoken_start_worker(Oid database, ApitokenHousekeeping housekeeping, uint64 *ticket, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker = {0};
	ApitokenJob job = {0};

	*ticket = pg_atomic_add_fetch_u64(&apitoken_shared->tickets, 1);
	job.ticket = *ticket;
	job.housekeeping = housekeeping;
	memcpy(worker.bgw_extra, &job, sizeof(job));
	snprintf(worker.bgw_name, BGW_MAXLEN, "apitoken worker");
	snprintf(worker.bgw_type, BGW_MAXLEN, "apitoken worker");
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "apitoken");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "apitoken_worker_main");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	/* on a standby, it sends the usage */
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

/* End a worker whose caller stops waiting for it. */
static void
end_worker(int code, Datum handle)
{
	TerminateBackgroundWorker((BackgroundWorkerHandle *) DatumGetPointer(handle));
}

/*
 * Run a worker for this database, and wait for its end.  Returns its ticket.  If
 * no slot is free, this waits a while: other workers are short, too.
 */
static uint64
run_worker(void)
{
	TimestampTz until = GetCurrentTimestamp() + SLOT_TIME;
	uint64		ticket;
	BackgroundWorkerHandle *handle;
	BgwHandleStatus status;

	while (!apitoken_start_worker(MyDatabaseId, APITOKEN_NOTHING_DUE, &ticket, &handle))
	{
		if (GetCurrentTimestamp() > until)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("could not start background worker to write token usage"),
					 errhint("Try again later, or increase \"max_worker_processes\".")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, SLOT_PAUSE, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	PG_ENSURE_ERROR_CLEANUP(end_worker, PointerGetDatum(handle));
	{
		status = WaitForBackgroundWorkerShutdown(handle);
	}
	PG_END_ENSURE_ERROR_CLEANUP(end_worker, PointerGetDatum(handle));
	if (status == BGWH_POSTMASTER_DIED)
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("terminating connection due to unexpected postmaster exit")));
	return ticket;
}

/*
 * Flush all usage of this database that was recorded before now, and wait until it
 * is on disk.  A worker writes it, so it remains written even if the caller's
 * transaction is rolled back.
 */
void
apitoken_flush_now(void)
{
	bool		sends = apitoken_sends(NULL);

	/* Without shared memory, usage is written immediately. */
	if (apitoken_shared == NULL)
		return;
	if (RecoveryInProgress() && !sends)
		ereport_server(
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot write token usage during recovery"),
				 errhint("Token usage recorded on this server will be written when it is promoted. It is sent to the primary if \"apitoken.primary_conninfo\" is set.")));
	for (;;)
	{
		uint64		ticket = run_worker();
		ApitokenFlushState state;

		if (apitoken_flush_state(MyDatabaseId, &state))
		{
			if (state.done_ticket >= ticket)
				return;
			/* If this flush or a later one was unfinished, start another one. */
			if (state.last_ticket >= ticket && state.outcome == APITOKEN_FLUSH_UNFINISHED)
				continue;
			if (state.last_ticket >= ticket)
				ereport_server(
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 sends ? errmsg("could not send token usage: %s", state.problem) :
						 errmsg("could not write token usage: %s", state.problem),
						 errdetail("The usage is kept in memory, and writing it will be retried.")));
		}
		ereport_server(
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("background worker exited before writing token usage"),
				 errhint("See the server log for details.")));
	}
}

APITOKEN_FUNCTION_INFO_V1(apitoken_flush_usage);
Datum
apitoken_flush_usage(PG_FUNCTION_ARGS)
{
	apitoken_flush_now();
	PG_RETURN_VOID();
}
