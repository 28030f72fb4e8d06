/*
 * maintenance.c
 *		Housekeeping: revoke idle tokens, and remove data that is older than its
 *		retention.
 *
 * Maintenance runs in batches.  A worker runs each batch in a transaction of its
 * own; run_maintenance() runs all in the caller's transaction.  The result does not
 * depend on the caller, but only on the tables, the clock, and settings that only a
 * superuser can change.  So the privilege to execute run_maintenance() only allows
 * choosing the time.
 *
 * It consists of tasks, and each batch of a task runs in a subtransaction.  What
 * makes one task fail, such as a foreign key or a trigger of the user's, does not
 * stop the others.  Rows that cannot be removed do not stop the removal of others.
 * The answer, the log and apitoken.stats tell what could not be done.
 *
 * The statements never wait for a row.  Rows that another transaction has locked
 * are left to the next run.  So maintenance is never blocked, and never takes part
 * in a deadlock.
 *
 * Removals write no events, because the purpose of a retention is to remove all
 * traces.  Tenants cannot bring a removal forward: only the extension sets the
 * times on which it depends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "usage/usage.h"

/* Rows of each kind in a batch of run_maintenance(). */
#define BATCH 10000

/* the number of token_usage rows that a batch checks, as a multiple of the batch size */
#define USAGE_FACTOR 10

/* The recorded last use may be this much earlier than the actual one, in microseconds. */
#define USE_PRECISION USECS_PER_MINUTE

/*
 * The id of an event is generated after its time `at`: the difference is up to the
 * duration of the transaction.  An event with a larger difference than this slack
 * is removed later.
 */
#define EVENT_SLACK USECS_PER_HOUR

/* A worker looks for expiries no more often than this. */
#define EXPIRY_PAUSE USECS_PER_MINUTE

/* A batch of a task. */
typedef struct Batch
{
	ApitokenMaintenance *run;
	int			size;			/* at most this many rows of each kind */
	TimestampTz now;
	bool		more;			/* result: the task is not finished */
} Batch;

/* Compute the time before which data is removed.  Returns false if everything is kept. */
static bool
retention_cutoff(int retention, TimestampTz now, TimestampTz *cutoff)
{
	*cutoff = now - retention * USECS_PER_MINUTE;
	return retention != APITOKEN_KEEP_ALL;
}

/* ---- subtransactions ---- */

/* Errors that must end the caller's transaction. */
static bool
must_be_raised(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_OPERATOR_INTERVENTION:
			return true;
		default:
			return false;
	}
}

/* Errors that are not about a certain row, so that fewer rows would not help. */
static bool
is_general(int sqlerrcode)
{
	/* each row would wait for the lock */
	if (sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
		return true;
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_PROGRAM_LIMIT_EXCEEDED:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return true;
		default:
			return false;
	}
}

/* Call work(arg) in a subtransaction.  Returns NULL, or the error for which it was rolled back. */
ErrorData *
apitoken_try(void (*work) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL && must_be_raised(error->sqlerrcode))
		ReThrowError(error);
	return error;
}

static void
copy_problem(char *to, const char *format, const char *problem)
{
	snprintf(to, APITOKEN_PROBLEM_MAX, format, problem);
	to[pg_mbcliplen(to, strlen(to), APITOKEN_PROBLEM_MAX - 1)] = '\0';
}

/* ---- the tasks ---- */

/* Run a statement that processes at most as many rows as a batch has. */
static void
run_statement(Batch *batch, ApitokenStatement statement, Datum *values, uint64 *counter)
{
	uint64		processed = apitoken_execute(statement, values, NULL);

	*counter += processed;
	batch->more = processed >= batch->size;
}

static Datum
uuid_array(const pg_uuid_t *ids, int count)
{
	Datum	   *values = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		values[i] = UUIDPGetDatum(&ids[i]);
	return PointerGetDatum(construct_array(values, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

/* Rows to be removed. */
typedef struct Removal
{
	ApitokenMaintenance *run;
	ApitokenStatement statement;
	const pg_uuid_t *ids;
	int			count;
	uint64	   *counter;
} Removal;

static void
problem_of_rows(ApitokenMaintenance *run, const char *problem)
{
	copy_problem(run->problems[run->task], "some rows could not be removed: %s", problem);
}

static void
remove_ids(void *arg)
{
	Removal    *removal = arg;
	Datum		ids = uuid_array(removal->ids, removal->count);
	uint64		removed = apitoken_execute(removal->statement, &ids, NULL);

	*removal->counter += removed;
	if (removed < removal->count)
		problem_of_rows(removal->run, "a trigger or rule prevented it");
}

/* Remove rows.  If that fails, remove those that can be removed, by halves. */
static void
remove_rows(Removal removal)
{
	ErrorData  *error;
	Removal		half = removal;

	CHECK_FOR_INTERRUPTS();
	error = apitoken_try(remove_ids, &removal);
	if (error == NULL)
		return;
	if (is_general(error->sqlerrcode))
		ReThrowError(error);
	if (removal.count == 1)
		problem_of_rows(removal.run, error->message);
	FreeErrorData(error);
	if (removal.count == 1)
		return;
	half.count = removal.count / 2;
	remove_rows(half);
	half.ids += half.count;
	half.count = removal.count - half.count;
	remove_rows(half);
}

/*
 * Find rows that are past their retention, and remove them.  A task visits each row
 * once, in the order of ids, whatever becomes of it.
 */
static void
remove_old(Batch *batch, ApitokenStatement find, ApitokenStatement statement, uint64 *counter)
{
	ApitokenMaintenance *run = batch->run;
	Removal		removal = {run, statement, NULL, 0, counter};
	TimestampTz cutoff;
	pg_uuid_t	bound;
	Datum		values[4];
	Datum		found = (Datum) 0;
	Datum	   *ids;

	if (!retention_cutoff(apitoken_retention, batch->now, &cutoff))
		return;
	apitoken_min_id(cutoff + EVENT_SLACK, &bound);
	values[0] = TimestampTzGetDatum(cutoff);
	values[1] = Int64GetDatum(batch->size);
	values[2] = UUIDPGetDatum(&run->position);
	values[3] = UUIDPGetDatum(&bound);
	(void) apitoken_execute_value(find, values, NULL, &found);
	if (found == (Datum) 0)
		return;
	deconstruct_array(DatumGetArrayTypeP(found), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &ids, NULL, &removal.count);
	/* The elements of an array of a type of fixed length, without nulls, follow each other. */
	removal.ids = DatumGetUUIDP(ids[0]);
	remove_rows(removal);
	run->position = removal.ids[removal.count - 1];
	batch->more = removal.count >= batch->size;
}

static void
remove_events(Batch *batch)
{
	remove_old(batch, APITOKEN_FIND_EVENTS, APITOKEN_REMOVE_EVENTS, &batch->run->events_removed);
}

static void
remove_revoked(Batch *batch)
{
	remove_old(batch, APITOKEN_FIND_REVOKED, APITOKEN_REMOVE_TOKENS, &batch->run->tokens_removed);
}

static void
remove_expired(Batch *batch)
{
	remove_old(batch, APITOKEN_FIND_EXPIRED, APITOKEN_REMOVE_TOKENS, &batch->run->tokens_removed);
}

/*
 * The days before which use by day is removed: of tokens with a quota of a month, and
 * of others.  Returns false if all of it is kept.
 */
static bool
days_cutoff(Batch *batch, Datum *monthly, Datum *others)
{
	TimestampTz cutoff;

	if (!retention_cutoff(apitoken_usage_retention, batch->now, &cutoff))
		return false;
	/* days are those of UTC, whatever the session's time zone */
	*others = DirectFunctionCall1(timestamp_date, TimestampGetDatum(cutoff));
	*monthly = DateADTGetDatum(apitoken_first_day_of(APITOKEN_MONTH, apitoken_day_of(batch->now)));
	return true;
}

static void
remove_days(Batch *batch)
{
	Datum		values[3];

	if (!days_cutoff(batch, &values[2], &values[0]))
		return;
	values[1] = Int64GetDatum(batch->size);
	run_statement(batch, APITOKEN_REMOVE_DAYS, values, &batch->run->usage_removed);
}

/*
 * The range of token_usage that a batch checks, so that its duration does not depend
 * on the number of tokens.
 */
static void
next_usage(Batch *batch, Datum *first, Datum *last, char *last_is_null)
{
	Datum		values[2];

	*first = values[0] = UUIDPGetDatum(&batch->run->position);
	values[1] = Int64GetDatum((int64) batch->size * USAGE_FACTOR);
	batch->more = apitoken_execute_value(APITOKEN_NEXT_USAGE, values, NULL, last);
	*last_is_null = batch->more ? ' ' : 'n';
}

static void
usage_checked(Batch *batch, Datum last)
{
	if (batch->more)
		batch->run->position = *DatumGetUUIDP(last);
}

/* Revoke idle tokens, except those of whose use this server may not know. */
static void
revoke_idle(Batch *batch)
{
	ApitokenMaintenance *run = batch->run;
	const char *reason;
	TimestampTz since = apitoken_complete_since(&reason);
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};
	uint64		revoked;
	Datum		spared = (Datum) 0;

	if (run->unwritten[0] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("idle tokens are not revoked: %s", run->unwritten)));
	next_usage(batch, &values[2], &values[3], &nulls[3]);
	values[0] = TimestampTzGetDatum(batch->now);
	values[1] = TimestampTzGetDatum(batch->now - USE_PRECISION);
	values[4] = TimestampTzGetDatum(since == 0 ? DT_NOBEGIN : since);
	values[5] = Int64GetDatum(APITOKEN_NOTIFY_BATCH);
	revoked = apitoken_execute(APITOKEN_REVOKE_IDLE, values, nulls);
	run->tokens_revoked += revoked;
	if (revoked == APITOKEN_NOTIFY_BATCH)
	{
		/* the next batch is about the same tokens */
		batch->more = true;
		return;
	}
	if (since != 0)
		(void) apitoken_execute_value(APITOKEN_COUNT_SPARED, values, nulls, &spared);
	if (DatumGetInt64(spared) > 0)
	{
		run->tokens_spared += DatumGetInt64(spared);
		copy_problem(run->problems[run->task], "idle tokens are not revoked yet, because they may have been used: %s", reason);
	}
	usage_checked(batch, values[3]);
}

/* Remove usage of tokens that no longer exist, and the last days that are old. */
static void
remove_orphans(Batch *batch)
{
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', ' '};

	next_usage(batch, &values[0], &values[1], &nulls[1]);
	batch->run->usage_removed += apitoken_execute(APITOKEN_REMOVE_ORPHANS, values, nulls);
	if (days_cutoff(batch, &values[3], &values[2]))
		batch->run->usage_removed += apitoken_execute(APITOKEN_FORGET_DAYS, values, nulls);
	usage_checked(batch, values[1]);
}

/* Remove places where tokens were seen, when that is old or one of them is gone. */
static void
remove_places(Batch *batch, ApitokenStatement statement)
{
	TimestampTz cutoff;
	Datum		values[2];

	if (!retention_cutoff(apitoken_usage_retention, batch->now, &cutoff))
		cutoff = DT_NOBEGIN;
	values[0] = TimestampTzGetDatum(cutoff);
	values[1] = Int64GetDatum(batch->size);
	run_statement(batch, statement, values, &batch->run->usage_removed);
}

static void
remove_seen(Batch *batch)
{
	remove_places(batch, APITOKEN_REMOVE_SEEN);
}

static void
remove_networks(Batch *batch)
{
	remove_places(batch, APITOKEN_REMOVE_NETWORKS);
}

/* Remove what other systems stored of tokens that are gone, if it was locked when they were removed. */
static void
remove_foreign(Batch *batch)
{
	Datum		size = Int64GetDatum(batch->size);
	uint64		removed = 0;

	run_statement(batch, APITOKEN_REMOVE_FOREIGN, &size, &removed);
}

/*
 * Make the notifications of coming expiries, and find out when the next ones are due.
 * What is created or changed meanwhile can be due earlier, so they are looked for at
 * intervals, too.
 */
static void
notify_expiry(Batch *batch)
{
	Datum		values[2] = {TimestampTzGetDatum(batch->now), Int64GetDatum(APITOKEN_NOTIFY_BATCH)};
	TimestampTz at = batch->now + APITOKEN_EXPIRY_INTERVAL;
	Datum		next = (Datum) 0;

	if (apitoken_notifications)
	{
		batch->more = apitoken_execute(APITOKEN_NOTIFY_EXPIRY, values, NULL) == APITOKEN_NOTIFY_BATCH;
		if (batch->more)
			return;
		(void) apitoken_execute_value(APITOKEN_NEXT_EXPIRY, values, NULL, &next);
	}
	if (next != (Datum) 0)
		at = Min(at, DatumGetTimestampTz(next));
	batch->run->expiry_at = Max(at, batch->now + EXPIRY_PAUSE);
}

static void
remove_notifications(Batch *batch)
{
	TimestampTz cutoff;
	pg_uuid_t	bound;
	Datum		values[2] = {UUIDPGetDatum(&bound), Int64GetDatum(batch->size)};

	if (!retention_cutoff(apitoken_notification_retention, batch->now, &cutoff))
		return;
	apitoken_min_id(cutoff, &bound);
	run_statement(batch, APITOKEN_REMOVE_NOTIFICATIONS, values, &batch->run->notifications_removed);
}

/* Have notifications delivered that would otherwise wait until a clock that was set back is where it was. */
static void
resume_notifications(Batch *batch)
{
	uint64		resumed = 0;
	Datum		values[2] = {TimestampTzGetDatum(batch->now), Int64GetDatum(batch->size)};

	run_statement(batch, APITOKEN_RESUME_NOTIFICATIONS, values, &resumed);
}

/*
 * Remove senders of use that have sent nothing for long.  A batch that is older than
 * this is not counted: see receive.c.
 */
static void
remove_senders(Batch *batch)
{
	uint64		removed = 0;
	Datum		values[2] = {TimestampTzGetDatum(batch->now - APITOKEN_SENDER_RETENTION), Int64GetDatum(batch->size)};

	run_statement(batch, APITOKEN_REMOVE_SENDERS, values, &removed);
}

/* In this order, because removing tokens can leave rows of usage behind. */
static void (*const tasks[APITOKEN_TASKS]) (Batch *batch) = {
	revoke_idle, remove_events, remove_revoked, remove_expired, remove_days, remove_orphans,
	[APITOKEN_EXPIRY_TASK] = notify_expiry, remove_notifications, resume_notifications, remove_seen,
	remove_networks, remove_senders, remove_foreign
};

static void
run_batch(void *arg)
{
	Batch	   *batch = arg;

	tasks[batch->run->task] (batch);
}

/* Go on with the next task.  `problem` is why this one failed, or NULL. */
void
apitoken_end_task(ApitokenMaintenance *run, const char *problem)
{
	if (problem != NULL)
		copy_problem(run->problems[run->task], "%s", problem);
	run->task++;
	memset(&run->position, 0, sizeof(run->position));
}

/*
 * Run one batch of maintenance, with at most `size` rows of each kind, in the
 * current transaction, which must have an active snapshot.  Returns whether there
 * is more to do.  The caller must have tried to flush the recorded usage.
 */
bool
apitoken_maintain(int size, ApitokenMaintenance *run)
{
	Batch		batch = {run, size, GetCurrentTimestamp(), false};
	ApitokenMaintenance before = *run;
	ErrorData  *error;

	/* Without triggers, a revocation would write no event, and a deletion would not remove usage. */
	apitoken_require_triggers("run maintenance");
	/* The default must not take the place of a configured value that was refused. */
	apitoken_require_setting(&apitoken_retention);
	apitoken_require_setting(&apitoken_usage_retention);
	apitoken_require_setting(&apitoken_notification_retention);
	apitoken_require_setting(&apitoken_notifications);
	apitoken_require_setting(&apitoken_standbys_verify);

	error = apitoken_try(run_batch, &batch);
	if (error != NULL)
	{
		*run = before;
		apitoken_end_task(run, error->message);
	}
	else if (!batch.more)
		apitoken_end_task(run, NULL);
	return run->task < APITOKEN_TASKS;
}

/* Record and log what could not be done. */
void
apitoken_report_maintenance(const ApitokenMaintenance *run)
{
	char		all[APITOKEN_PROBLEM_MAX] = "";

	for (int task = 0; task < APITOKEN_TASKS; task++)
	{
		int			length = strlen(all);

		if (run->problems[task][0] != '\0' && strstr(all, run->problems[task]) == NULL)
			snprintf(all + length, sizeof(all) - length, "%s%s", length > 0 ? "; " : "", run->problems[task]);
	}
	all[pg_mbcliplen(all, strlen(all), sizeof(all) - 1)] = '\0';
	if (apitoken_shared == NULL ? all[0] != '\0' : apitoken_record_maintenance_problem(MyDatabaseId, all))
		ereport(MyBackendType == B_BG_WORKER ? WARNING : LOG_SERVER_ONLY,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not run maintenance in database with OID %u: %s", MyDatabaseId, all),
				 errdetail("Maintenance will be retried tomorrow."),
				 errhint("Run SELECT * FROM apitoken.run_maintenance() to retry now.")));
}

static void
flush(void *arg)
{
	apitoken_flush_now();
}

static Datum
problem_array(const ApitokenMaintenance *run)
{
	Datum		problems[APITOKEN_TASKS];
	int			count = 0;

	for (int task = 0; task < APITOKEN_TASKS; task++)
	{
		if (run->problems[task][0] != '\0')
			problems[count++] = CStringGetTextDatum(run->problems[task]);
	}
	return PointerGetDatum(construct_array(problems, count, TEXTOID, -1, false, TYPALIGN_INT));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_run_maintenance);
Datum
apitoken_run_maintenance(PG_FUNCTION_ARGS)
{
	ApitokenMaintenance *run = palloc0(sizeof(ApitokenMaintenance));
	ErrorData  *error;
	Datum		values[7];
	TupleDesc	descriptor = apitoken_result_type(fcinfo, lengthof(values));
	bool		nulls[7] = {false};

	PreventCommandDuringRecovery("apitoken.run_maintenance()");
	PreventCommandIfReadOnly("apitoken.run_maintenance()");
	PreventCommandIfParallelMode("apitoken.run_maintenance()");

	/* Flush first, so that a token that was just used does not appear idle. */
	error = apitoken_try(flush, NULL);
	if (error != NULL)
		copy_problem(run->unwritten, "%s", error->message);

	while (apitoken_maintain(BATCH, run))
		CHECK_FOR_INTERRUPTS();
	apitoken_report_maintenance(run);

	values[0] = Int64GetDatum(run->tokens_revoked);
	values[1] = Int64GetDatum(run->events_removed);
	values[2] = Int64GetDatum(run->tokens_removed);
	values[3] = Int64GetDatum(run->usage_removed);
	values[4] = Int64GetDatum(run->tokens_spared);
	values[5] = problem_array(run);
	values[6] = Int64GetDatum(run->notifications_removed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls)));
}
