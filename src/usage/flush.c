/*
 * flush.c
 *		Writing recorded usage to the tables of one database: how a worker does
 *		it, and how it is asked for.
 *
 * A flush takes what shared memory has of the database, writes it to the two
 * tables of usage, and commits, batch by batch.  What cannot be written goes
 * back to where it was taken from.  Batches grow as long as they are written
 * quickly, and stay smaller after one that failed; for what there is no time
 * left, the launcher is hastened.
 *
 * The extension is locked meanwhile, against being dropped and against a
 * second flush of the same database: so when one has ended, what was taken
 * before it began has been written as well.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "usage/usage.h"

/* Rows of a batch: the first one of a flush, and limits. */
#define BATCH_FIRST 1000
#define BATCH_MAX 10000
#define BATCH_MIN 100

/* After one that took no longer than this the next may be twice as large. */
#define BATCH_QUICK (250 * INT64CONST(1000))

/* No batch is begun unless it has this long. */
#define BATCH_TIME (3 * USECS_PER_SEC)

/*
 * A token that is not there may be one of a transaction that has not ended:
 * its use is kept for as long as its id is so young.
 */
#define YOUNG (1 * USECS_PER_MINUTE)

/* What was taken from shared memory, and is not committed yet. */
static ApitokenUsageRow *in_hand = NULL;
static int	count_in_hand = 0;

/*
 * What is in hand is written with the commit.  Otherwise, also when the worker
 * is told to stop, it goes back: before the extension is unlocked, so that the
 * next flush finds it there.
 */
static void
transaction_ends(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		apitoken_give_back_usage(in_hand, count_in_hand, 0);
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_COMMIT)
		count_in_hand = 0;
}

static Datum
address_datum(const ApitokenLastUse *last)
{
	inet	   *address = palloc0(sizeof(inet));

	memcpy(VARDATA(address), &last->from, sizeof(last->from));
	SET_INET_VARSIZE(address);
	return InetPGetDatum(address);
}

static int
compare_rows(const void *a, const void *b)
{
	const ApitokenUsageKey *left = &((const ApitokenUsageRow *) a)->key;
	const ApitokenUsageKey *right = &((const ApitokenUsageRow *) b)->key;
	int			order = memcmp(&left->token_id, &right->token_id, sizeof(pg_uuid_t));

	return order != 0 ? order : (left->day > right->day) - (left->day < right->day);
}

/* Of sorted rows those of each token together; how many that makes. */
static int
sum_days(const ApitokenUsageRow *rows, int count, ApitokenUsageRow *sums)
{
	int			tokens = 0;

	for (int i = 0; i < count; i++)
	{
		ApitokenUsageRow *sum = tokens > 0 ? &sums[tokens - 1] : NULL;

		if (sum == NULL || memcmp(&sum->key.token_id, &rows[i].key.token_id, sizeof(pg_uuid_t)) != 0)
		{
			sums[tokens++] = rows[i];
			continue;
		}
		sum->accepted += rows[i].accepted;
		sum->refused += rows[i].refused;
		if (rows[i].last.at >= sum->last.at)
			sum->last = rows[i].last;
	}
	return tokens;
}

/* What of a row a statement is given. */
typedef enum
{
	TOKEN_ID,
	DAY,
	LAST_USED_AT,
	ACCEPTED,
	REFUSED,
	LAST_USED_FROM,
	FIELDS
} Field;

static Datum
field_of(const ApitokenUsageRow *row, Field field, bool *isnull)
{
	*isnull = (field == LAST_USED_AT && row->last.at == DT_NOBEGIN) ||
		(field == LAST_USED_FROM && row->last.from.family == 0);
	if (*isnull)
		return (Datum) 0;
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
			return Int64GetDatum(row->refused);
		default:
			return address_datum(&row->last);
	}
}

static Datum
array_of(const ApitokenUsageRow *rows, int count, Field field)
{
	static const Oid types[FIELDS] = {
		[TOKEN_ID] = UUIDOID,[DAY] = DATEOID,[LAST_USED_AT] = TIMESTAMPTZOID,
		[ACCEPTED] = INT8OID,[REFUSED] = INT8OID,[LAST_USED_FROM] = INETOID,
	};
	Datum	   *values = palloc(count * sizeof(Datum));
	bool	   *nulls = palloc(count * sizeof(bool));
	int			bound = 1;
	int16		length;
	bool		byval;
	char		align;

	for (int i = 0; i < count; i++)
		values[i] = field_of(&rows[i], field, &nulls[i]);
	get_typlenbyvalalign(types[field], &length, &byval, &align);
	return PointerGetDatum(construct_md_array(values, nulls, 1, &count, &bound,
											  types[field], length, byval, align));
}

/*
 * Write what is in hand, in the order of its keys.
 *
 * token_usage first: its row is locked from then on, so that whoever deletes
 * the token meanwhile leaves it to housekeeping, which finds the token's days
 * by it.  The other way round these might be left alone.
 */
static void
write_usage(void)
{
	static const Field usage[] = {TOKEN_ID, LAST_USED_AT, ACCEPTED, REFUSED, LAST_USED_FROM};
	static const Field daily[] = {TOKEN_ID, DAY, ACCEPTED, REFUSED};
	Datum		arrays[FIELDS];
	ApitokenUsageRow *sums = palloc(count_in_hand * sizeof(ApitokenUsageRow));
	int			tokens;

	qsort(in_hand, count_in_hand, sizeof(ApitokenUsageRow), compare_rows);
	tokens = sum_days(in_hand, count_in_hand, sums);
	for (int i = 0; i < lengthof(usage); i++)
		arrays[i] = array_of(sums, tokens, usage[i]);
	apitoken_execute(APITOKEN_WRITE_USAGE, arrays, NULL);
	for (int i = 0; i < lengthof(daily); i++)
		arrays[i] = array_of(in_hand, count_in_hand, daily[i]);
	apitoken_execute(APITOKEN_WRITE_USAGE_DAILY, arrays, NULL);
}

/* Is this of a token that may yet come? */
static bool
may_come(const ApitokenUsageRow *row, Snapshot snapshot, TimestampTz now)
{
	TimestampTz made_at = apitoken_id_time(&row->key.token_id);
	ApitokenRecord record;

	return made_at > now - YOUNG && made_at < now + YOUNG &&
		!apitoken_fetch_token(snapshot, &row->key.token_id, &record);
}

/*
 * Give back what is of tokens that may yet come, and keep the rest in hand.
 * This flush does not take it again: however much it is, the rest gets its turn.
 */
static void
set_aside_young(uint32 flush)
{
	TimestampTz now = GetCurrentTimestamp();
	Snapshot	snapshot = apitoken_latest_snapshot();
	bool	   *young = palloc(count_in_hand * sizeof(bool));
	int			kept = 0;

	for (int i = 0; i < count_in_hand; i++)
		young[i] = may_come(&in_hand[i], snapshot, now);
	UnregisterSnapshot(snapshot);

	/* from here on nothing is interrupted: each row is in one place */
	for (int i = 0; i < count_in_hand; i++)
	{
		if (young[i])
			apitoken_give_back_usage(&in_hand[i], 1, flush);
		else
			in_hand[kept++] = in_hand[i];
	}
	count_in_hand = kept;
}

typedef struct Batch
{
	uint32		flush;			/* which */
	int			max;
	ApitokenOutcome outcome;
} Batch;

/* One batch, within a transaction. */
static bool
flush_batch(void *arg)
{
	Batch	   *batch = arg;

	if (!apitoken_lock_extension())
	{
		batch->outcome = APITOKEN_FLUSH_MISSING;
		return false;
	}
	count_in_hand = apitoken_take_usage(MyDatabaseId, batch->flush, in_hand, batch->max);
	batch->outcome = count_in_hand < batch->max ? APITOKEN_FLUSH_DONE : APITOKEN_FLUSH_UNFINISHED;
	set_aside_young(batch->flush);
	if (count_in_hand > 0)
	{
		write_usage();
		apitoken_count(APITOKEN_FLUSHES, 1);
	}
	return batch->outcome == APITOKEN_FLUSH_UNFINISHED;
}

/*
 * Do something in a transaction of its own, that must end before `until`.
 * What it answers; false after an error, which is put in words.
 */
bool
apitoken_in_transaction(bool (*work) (void *arg), void *arg, TimestampTz until,
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

static void
tell(ApitokenOutcome outcome, const char *problem)
{
	char	   *database;

	StartTransactionCommand();
	database = get_database_name(MyDatabaseId);
	if (outcome == APITOKEN_FLUSH_FAILED || outcome == APITOKEN_FLUSH_MISSING)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not write the usage of tokens in database \"%s\": %s", database, problem),
				 errdetail("It is kept in memory, and tried again.")));
	else
		ereport(LOG,
				(errmsg("the usage of tokens in database \"%s\" is written again", database)));
	CommitTransactionCommand();
}

/* Write what is recorded of this worker's database; how that ended is noted under the ticket. */
ApitokenOutcome
apitoken_flush(uint64 ticket, TimestampTz until)
{
	ApitokenFlushState state;
	Batch		batch = {(uint32) ticket, BATCH_FIRST, APITOKEN_FLUSH_FAILED};
	int			largest = BATCH_MAX;
	TimestampTz began;
	char		problem[APITOKEN_PROBLEM_MAX];
	bool		more;

	if (apitoken_flush_state(MyDatabaseId, &state))
		largest = Max(BATCH_MAX >> Min(state.failures, 12), BATCH_MIN);
	batch.max = Min(batch.max, largest);
	in_hand = MemoryContextAlloc(TopMemoryContext, largest * sizeof(ApitokenUsageRow));
	RegisterXactCallback(transaction_ends, NULL);
	apitoken_remove_usage_file();

	do
	{
		began = GetCurrentTimestamp();
		more = apitoken_in_transaction(flush_batch, &batch, until, problem);
		if (problem[0] != '\0')
			batch.outcome = APITOKEN_FLUSH_FAILED;
		if (GetCurrentTimestamp() - began <= BATCH_QUICK)
			batch.max = Min(2 * batch.max, largest);
	} while (more && GetCurrentTimestamp() < until - BATCH_TIME);
	if (more)
		apitoken_hasten();

	if (batch.outcome == APITOKEN_FLUSH_MISSING)
		snprintf(problem, sizeof(problem), "extension apitoken is not installed");
	if (apitoken_flush_ended(MyDatabaseId, ticket, batch.outcome, problem))
		tell(batch.outcome, problem);
	return batch.outcome;
}

/* ---- in any session ---- */

/*
 * Start a worker for a database; its ticket, or 0 if there is no place for
 * one.  The caller is told, by its latch, when the worker starts and ends.
 */
uint64
apitoken_start_worker(Oid database, bool maintenance, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker = {0};
	ApitokenJob job = {0};

	job.ticket = pg_atomic_add_fetch_u64(&apitoken_shared->tickets, 1);
	job.maintain = maintenance;
	memcpy(worker.bgw_extra, &job, sizeof(job));
	snprintf(worker.bgw_name, BGW_MAXLEN, "apitoken worker");
	snprintf(worker.bgw_type, BGW_MAXLEN, "apitoken worker");
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "apitoken");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "apitoken_worker_main");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, handle) ? job.ticket : 0;
}

/*
 * Have all that was recorded of this database before now written, and wait
 * until it is on disk.  A worker does it, so that it lasts whatever becomes of
 * the caller's transaction.
 */
void
apitoken_flush_now(void)
{
	/* without shared memory use is written where it happens */
	if (apitoken_shared == NULL)
		return;
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("usage cannot be written during recovery"),
				 errhint("What is recorded here is written when this server is promoted.")));
	for (;;)
	{
		BackgroundWorkerHandle *handle;
		uint64		ticket = apitoken_start_worker(MyDatabaseId, false, &handle);
		ApitokenFlushState state;

		if (ticket == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("there is no background worker to write the usage of tokens"),
					 errhint("Try again, or raise max_worker_processes.")));
		if (WaitForBackgroundWorkerShutdown(handle) == BGWH_POSTMASTER_DIED)
			ereport(FATAL,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg("the postmaster is gone")));
		if (apitoken_flush_state(MyDatabaseId, &state))
		{
			if (state.done_ticket >= ticket)
				return;
			/* that of a later one, which found something left, is as good */
			if (state.last_ticket >= ticket && state.outcome == APITOKEN_FLUSH_UNFINISHED)
				continue;
			if (state.last_ticket >= ticket)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("could not write the usage of tokens: %s", state.problem),
						 errdetail("It is kept in memory, and tried again.")));
		}
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the worker ended before it had written the usage of tokens"),
				 errhint("The server's log says why.")));
	}
}

PG_FUNCTION_INFO_V1(apitoken_flush_usage);
Datum
apitoken_flush_usage(PG_FUNCTION_ARGS)
{
	apitoken_flush_now();
	PG_RETURN_VOID();
}
