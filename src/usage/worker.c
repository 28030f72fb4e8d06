/*
 * worker.c
 *		The launcher and the workers that it starts.
 *
 * The launcher is not connected to a database.  Every apitoken.flush_interval, and
 * at once when shared memory is full, it finds the databases that have usage to be
 * written or are due for their daily maintenance, and starts a worker for each.
 *
 * A worker connects to its database, works for at most WORK_TIME, and ends.  So it
 * does not block DROP DATABASE and CREATE DATABASE ... TEMPLATE, which give up after
 * 5 seconds, and delays DROP EXTENSION only briefly.  SQL can catch the timeout of a
 * statement: a trigger on a table may do so.  Therefore a worker terminates itself
 * after WORK_LIMIT, which SQL cannot catch.
 *
 * A database's owner can make its workers slow, for example with triggers, or with
 * a transaction that keeps them from connecting.  So that others need not wait,
 * several workers run at once, and one place is only for databases whose last flush
 * did not fail.
 *
 * A worker that fails records the problem in shared memory, logs it if it is new,
 * and ends normally.  The launcher tries again after a delay, which doubles with
 * each failure.  If the launcher fails, the postmaster restarts it, and no usage is
 * lost.
 *
 * On a standby, workers send the usage to the primary, if apitoken.primary_conninfo
 * is set (send.c).  Otherwise the launcher starts workers only after promotion.  On a
 * logical subscriber, a worker finds out whether its database sends or writes.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "tcop/tcopprot.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/relcache.h"
#include "utils/timeout.h"
#include "utils/wait_event.h"

#include "usage/usage.h"

#define WORK_TIME (3500 * INT64CONST(1000))	/* for a worker to do its work, once connected */
#define WORK_LIMIT 4000			/* milliseconds for it to connect, and then again to end */
#define LAUNCH_TIME (10 * USECS_PER_SEC)	/* for a worker to start, connect and end */
#define LOCK_TIMEOUT "2s"
#define RESTART_TIME 5			/* before a failed launcher is restarted, in seconds */

/* Minimum time between rounds of the launcher when memory is full, in microseconds. */
#define WAKE_DELAY (200 * 1000)

/* The launcher looks for standbys at least this often. */
#define WATCH_INTERVAL (10 * USECS_PER_SEC)

#define MAINTENANCE_INTERVAL USECS_PER_DAY
#define MAINTENANCE_BATCH 1000

/* Maintenance is started only if at least this much time is left. */
#define MAINTENANCE_TIME (2 * USECS_PER_SEC)

/* Workers that may run at once; if the last flush of their databases failed, one less. */
#define PLACES 3

/* Maximum number of workers that did not end in time.  They take no place. */
#define STUCK_MAX 64

/* Maximum number of databases in one round.  Others follow in the next rounds. */
#define DATABASES_MAX 512

/*
 * The extension may be about to be created in a database.  So its usage is
 * discarded only after this many attempts to find the extension.
 */
#define MISSING_MAX 5

PGDLLEXPORT void apitoken_launcher_main(Datum arg);
PGDLLEXPORT void apitoken_worker_main(Datum arg);

/* ---- a worker ---- */

/* Values that a worker needs for settings that a database or a role may change. */
static const char *const worker_settings[][2] = {
	{"search_path", "pg_catalog"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"session_replication_role", "origin"},
	{"row_security", "on"},
	{"jit", "off"},
	/* enough for the planner to use a hashed subplan in APITOKEN_WRITE_USAGE */
	{"work_mem", "64MB"},
	{"lock_timeout", LOCK_TIMEOUT},
	{"transaction_timeout", "0"},	/* PostgreSQL 17 and later */
	/* do not wait for a synchronous standby, which may not respond */
	{"synchronous_commit", "local"},
};

static bool
maintain_batch(void *arg)
{
	return apitoken_maintain(MAINTENANCE_BATCH, arg);
}

static bool
is_usable(void *arg)
{
	return apitoken_installed();
}

/* Run maintenance.  `unwritten` tells why the usage could not be written; it is empty if it was. */
static void
maintain(TimestampTz until, const char *unwritten)
{
	/* static, because it is too large for the stack */
	static ApitokenMaintenance run;
	ApitokenFlushState state;
	char		problem[APITOKEN_PROBLEM_MAX];
	bool		more;

	/* If the extension is missing or of another version, the flush has told so. */
	if (!apitoken_run_in_transaction(is_usable, NULL, until, problem))
		return;
	snprintf(run.unwritten, sizeof(run.unwritten), "%s", unwritten);
	if (apitoken_flush_state(MyDatabaseId, &state))
	{
		run.task = state.task;
		run.position = state.position;
	}
	do
	{
		more = apitoken_run_in_transaction(maintain_batch, &run, until, problem);
		if (problem[0] != '\0')
		{
			apitoken_end_task(&run, problem);
			more = run.task < APITOKEN_TASKS;
		}
	} while (more && GetCurrentTimestamp() < until - USECS_PER_SEC);

	apitoken_report_maintenance(&run);
	if (!more)
		run.task = 0;
	if (run.expiry_at != 0)
		apitoken_record_expiry(MyDatabaseId, run.expiry_at);
	apitoken_record_maintenance(MyDatabaseId, more ? 0 : GetCurrentTimestamp(), run.task, &run.position);
}

/*
 * Tell of the expiries that have come near since the last maintenance.  The next one
 * reports what makes this fail.
 */
static void
tell_expiries(TimestampTz until)
{
	static ApitokenMaintenance run;
	char		problem[APITOKEN_PROBLEM_MAX];

	if (!apitoken_run_in_transaction(is_usable, NULL, until, problem))
		return;
	run.task = APITOKEN_EXPIRY_TASK;
	while (apitoken_run_in_transaction(maintain_batch, &run, until, problem) && run.task == APITOKEN_EXPIRY_TASK)
	{
		/* the next worker goes on */
		if (GetCurrentTimestamp() >= until - USECS_PER_SEC)
			return;
	}
	apitoken_record_expiry(MyDatabaseId, run.expiry_at != 0 ? run.expiry_at : GetCurrentTimestamp() + APITOKEN_EXPIRY_INTERVAL);
}

static void
limit_reached(void)
{
	kill(MyProcPid, SIGTERM);
}

void
apitoken_worker_main(Datum arg)
{
	ApitokenJob job;
	ApitokenFlushState state;
	ApitokenOutcome outcome;
	TimestampTz until;
	TimeoutId	limit;
	pg_uuid_t	first = {0};

	memcpy(&job, MyBgworkerEntry->bgw_extra, sizeof(job));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	limit = RegisterTimeout(USER_TIMEOUT, limit_reached);
	enable_timeout_after(limit, WORK_LIMIT);
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	enable_timeout_after(limit, WORK_LIMIT);
	until = GetCurrentTimestamp() + WORK_TIME;
	for (int i = 0; i < lengthof(worker_settings); i++)
	{
		if (GetConfigOption(worker_settings[i][0], true, false) != NULL)
			SetConfigOption(worker_settings[i][0], worker_settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}

	if (apitoken_send(job.ticket, until))
	{
		/* the server that counts the use keeps house */
		if (job.housekeeping == APITOKEN_MAINTENANCE_DUE)
			apitoken_record_maintenance(MyDatabaseId, GetCurrentTimestamp(), 0, &first);
		if (job.housekeeping != APITOKEN_NOTHING_DUE)
			apitoken_record_expiry(MyDatabaseId, GetCurrentTimestamp() + APITOKEN_EXPIRY_INTERVAL);
		proc_exit(0);
	}

	/*
	 * If the flush leaves no time for maintenance, that stays due, and the next worker
	 * does it.  After one failure as well: the extension may be about to be dropped.
	 */
	outcome = apitoken_flush(job.ticket, until);
	if (job.housekeeping == APITOKEN_NOTHING_DUE || GetCurrentTimestamp() >= until - MAINTENANCE_TIME)
		proc_exit(0);
	if (outcome == APITOKEN_FLUSH_DONE)
		state.problem[0] = '\0';
	else if (outcome != APITOKEN_FLUSH_FAILED || !apitoken_flush_state(MyDatabaseId, &state) || state.failures <= 1)
		proc_exit(0);
	if (job.housekeeping == APITOKEN_MAINTENANCE_DUE)
		maintain(until, state.problem);
	else
		tell_expiries(until);
	proc_exit(0);
}

/* ---- the launcher ---- */

/* Can a worker connect to a database? */
typedef enum DatabaseState
{
	DATABASE_OPEN,
	DATABASE_CLOSED,			/* ALLOW_CONNECTIONS false */
	DATABASE_GONE				/* dropped, at least in part */
} DatabaseState;

static DatabaseState
database_state(Oid database)
{
	Relation	relation;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	DatabaseState state = DATABASE_GONE;

	StartTransactionCommand();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_database_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(database));
	/* Soon after a start, a process without a database cannot use the index. */
	scan = systable_beginscan(relation, DatabaseOidIndexId, criticalSharedRelcachesBuilt, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_database row = (Form_pg_database) GETSTRUCT(tuple);

		/* An interrupted DROP DATABASE leaves a connection limit of -2. */
		if (row->datconnlimit != -2)
			state = row->datallowconn ? DATABASE_OPEN : DATABASE_CLOSED;
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	return state;
}

/* Discard the usage and the state of a database that is gone or does not have the extension. */
static void
discard_usage(Oid database)
{
	ApitokenSeenRow seen[100];

	apitoken_discard_usage(database);
	for (int place = 0; place < APITOKEN_PLACES; place++)
	{
		while (apitoken_take_seen(place, database, seen, lengthof(seen)) == lengthof(seen))
			;
	}
	(void) apitoken_end_batch(database, true);
	apitoken_remove_flush_state(database);
}

/* A worker that the launcher has started. */
typedef struct Running
{
	Oid			database;
	uint64		ticket;
	BackgroundWorkerHandle *handle;
	TimestampTz until;			/* when it should have ended */
	bool		stuck;			/* it did not end in time */
} Running;

static Running running[PLACES + STUCK_MAX];
static int	running_count = 0;
static int	stuck_count = 0;

/* Whoever waits for a worker ends it when they stop waiting. */
static void
launcher_exit(int code, Datum arg)
{
	for (int i = 0; i < running_count; i++)
		TerminateBackgroundWorker(running[i].handle);
	SpinLockAcquire(&apitoken_shared->mutex);
	apitoken_shared->launcher_latch = NULL;
	SpinLockRelease(&apitoken_shared->mutex);
}

/* Wait for the latch, at most until this time.  Returns true if the launcher must stop. */
static bool
wait_until(TimestampTz until)
{
	int			events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;

	(void) WaitLatch(MyLatch, events, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until),
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	return ShutdownRequestPending;
}

static void
record_failure(Oid database, uint64 ticket, const char *problem, const char *message, const char *hint)
{
	if (apitoken_record_flush(database, ticket, APITOKEN_FLUSH_FAILED, problem))
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s in database with OID %u", message, database),
				 errdetail("The usage is kept in memory, and writing it will be retried."),
				 hint == NULL ? 0 : errhint("%s", hint)));
}

/* Make room.  Usage that a worker has in hand keeps its room, because it may return. */
static void
remove_written_usage(void)
{
	Oid			busy[lengthof(running)];

	for (int i = 0; i < running_count; i++)
		busy[i] = running[i].database;
	apitoken_remove_written_usage(busy, running_count);
}

/* Forget the workers that have ended, and no longer wait for those that should have. */
static void
check_workers(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		ended = false;

	for (int i = running_count - 1; i >= 0; i--)
	{
		Running    *worker = &running[i];
		ApitokenFlushState state;
		pid_t		pid;

		if (GetBackgroundWorkerPid(worker->handle, &pid) == BGWH_STOPPED)
		{
			if (worker->stuck)
				stuck_count--;
			else if (!apitoken_flush_state(worker->database, &state) || state.last_ticket < worker->ticket)
				record_failure(worker->database, worker->ticket, "background worker exited early",
							   "background worker exited before writing token usage", NULL);
			pfree(worker->handle);
			*worker = running[--running_count];
			ended = true;
		}
		else if (!worker->stuck && now > worker->until && stuck_count < STUCK_MAX)
		{
			TerminateBackgroundWorker(worker->handle);
			worker->stuck = true;
			stuck_count++;
			record_failure(worker->database, worker->ticket, "background worker does not end",
						   "background worker does not end", NULL);
		}
	}
	if (ended)
		remove_written_usage();
}

static bool
is_running(Oid database)
{
	for (int i = 0; i < running_count; i++)
	{
		if (running[i].database == database)
			return true;
	}
	return false;
}

/*
 * Start a worker for a database.  If all places are taken, a database whose last
 * flush failed is put off to the next round, which follows soon; for others this
 * waits.  Returns true if the launcher must stop.
 */
static bool
start_worker(Oid database, ApitokenHousekeeping housekeeping, bool failed)
{
	Running		worker = {.database = database};

	while (running_count - stuck_count >= (failed ? PLACES - 1 : PLACES))
	{
		if (failed)
		{
			pg_atomic_write_u32(&apitoken_shared->wake_requested, 1);
			return false;
		}
		if (wait_until(GetCurrentTimestamp() + USECS_PER_SEC))
			return true;
		check_workers();
	}
	if (apitoken_start_worker(database, housekeeping, &worker.ticket, &worker.handle))
	{
		worker.until = GetCurrentTimestamp() + LAUNCH_TIME;
		running[running_count++] = worker;
	}
	else
		record_failure(database, 0, "no background worker is free",
					   "could not start background worker to write token usage",
					   "Increase \"max_worker_processes\".");
	return false;
}

/*
 * Is this time in the future?  If it is more than `at_most` in the future, the
 * clock was set back in the meantime, and the answer is no.
 */
static bool
is_future(TimestampTz at, TimestampTz now, int64 at_most)
{
	return at > now && at <= now + at_most;
}

static ApitokenHousekeeping
what_is_due(const ApitokenFlushState *state, TimestampTz now)
{
	if (!is_future(state->maintained_at + MAINTENANCE_INTERVAL, now, MAINTENANCE_INTERVAL))
		return APITOKEN_MAINTENANCE_DUE;
	return is_future(state->expiry_at, now, APITOKEN_EXPIRY_INTERVAL) ? APITOKEN_NOTHING_DUE : APITOKEN_EXPIRIES_DUE;
}

/*
 * Start what is due in the databases whose last flush failed, or in the others.
 * Returns true if the launcher must stop.
 */
static bool
start_workers(const Oid *databases, int with_usage, int count, bool failed)
{
	for (int i = 0; i < count; i++)
	{
		TimestampTz now = GetCurrentTimestamp();
		ApitokenFlushState state = {0};
		bool		known = apitoken_flush_state(databases[i], &state);
		ApitokenHousekeeping due = what_is_due(&state, now);

		if ((state.failures > 0) != failed || is_running(databases[i]))
			continue;
		/* A database with usage is in both lists; its state may be removed by now. */
		if (i >= with_usage && (!known || due == APITOKEN_NOTHING_DUE))
			continue;
		if (is_future(state.retry_at, now, APITOKEN_RETRY_MAX * (int64) 1000))
			continue;
		switch (database_state(databases[i]))
		{
			case DATABASE_GONE:
				discard_usage(databases[i]);
				continue;
			case DATABASE_CLOSED:
				continue;
			case DATABASE_OPEN:
				break;
		}
		if (state.missing >= MISSING_MAX)
		{
			discard_usage(databases[i]);
			continue;
		}
		if (start_worker(databases[i], RecoveryInProgress() ? APITOKEN_NOTHING_DUE : due, failed))
			return true;
	}
	return false;
}

/*
 * If the server was promoted, or a setting of sending has changed, what has failed
 * before may be possible now.
 */
static void
watch_primary(bool standby)
{
	static bool was_standby = false;
	static bool subscriber_sent = false;
	static char *conninfo = NULL;

	if (conninfo != NULL && (was_standby != standby || subscriber_sent != apitoken_subscriber_sends ||
							 strcmp(conninfo, apitoken_primary_conninfo) != 0))
		apitoken_retry_flushes();
	if (conninfo == NULL || strcmp(conninfo, apitoken_primary_conninfo) != 0)
	{
		if (conninfo != NULL)
			pfree(conninfo);
		conninfo = MemoryContextStrdup(TopMemoryContext, apitoken_primary_conninfo);
	}
	was_standby = standby;
	subscriber_sent = apitoken_subscriber_sends;
}

/* Run one round of the launcher.  Returns true if the launcher must stop. */
static bool
run_once(void)
{
	Oid			databases[2 * DATABASES_MAX];
	int			with_usage;
	int			count;
	bool		standby = RecoveryInProgress();

	apitoken_remove_expired_limits();
	watch_primary(standby);
	/* the other server may be away for long */
	if (standby || apitoken_subscriber_sends)
		apitoken_merge_days();
	if (standby && !apitoken_sends(NULL))
	{
		remove_written_usage();
		return false;
	}

	with_usage = count = apitoken_databases_with_usage(databases, DATABASES_MAX);
	/* a standby has no maintenance */
	if (!standby)
		count += apitoken_flush_state_databases(databases + with_usage, DATABASES_MAX);
	if (start_workers(databases, with_usage, count, false) ||
		start_workers(databases, with_usage, count, true))
		return true;
	remove_written_usage();
	return false;
}

void
apitoken_launcher_main(Datum arg)
{
	bool		stop = false;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	before_shmem_exit(launcher_exit, (Datum) 0);
	SpinLockAcquire(&apitoken_shared->mutex);
	apitoken_shared->launcher_latch = MyLatch;
	SpinLockRelease(&apitoken_shared->mutex);
	BackgroundWorkerUnblockSignals();

	/* Connect to no database.  This gives access to the shared catalogs only. */
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("apitoken launcher");
	apitoken_remove_usage_file();

	while (!stop)
	{
		TimestampTz started_at = GetCurrentTimestamp();

		/* From here on, processes that find no room request another round. */
		pg_atomic_write_u32(&apitoken_shared->wake_requested, 0);
		pg_memory_barrier();
		stop = run_once();
		while (!stop)
		{
			bool		woken = pg_atomic_read_u32(&apitoken_shared->wake_requested) != 0;
			int64		pause = woken ? WAKE_DELAY : apitoken_flush_interval * (int64) 1000;

			if (!is_future(started_at + pause, GetCurrentTimestamp(), pause))
				break;
			/* A worker that does not end, or a standby, sets no latch. */
			stop = wait_until(Min(started_at + pause,
								  GetCurrentTimestamp() + (running_count > 0 ? USECS_PER_SEC : WATCH_INTERVAL)));
			check_workers();
			apitoken_watch_losses();
		}
	}

	/* With exit code 1, the launcher is restarted, unless the server is stopping. */
	proc_exit(1);
}

void
apitoken_worker_init(void)
{
	BackgroundWorker worker = {0};

	snprintf(worker.bgw_name, BGW_MAXLEN, "apitoken launcher");
	snprintf(worker.bgw_type, BGW_MAXLEN, "apitoken launcher");
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "apitoken");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "apitoken_launcher_main");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = RESTART_TIME;
	RegisterBackgroundWorker(&worker);
}
