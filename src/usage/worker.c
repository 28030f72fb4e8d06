/*
 * worker.c
 *		The launcher and the workers that it starts.
 *
 * The launcher is not connected to a database.  Every apitoken.flush_interval, and
 * at once when shared memory is full, it finds the databases that have usage to be
 * written or are due for their daily maintenance, and starts a worker for each,
 * one after the other.  A worker connects to its database, works for at most
 * WORK_TIME, and ends.  So it does not block DROP DATABASE and CREATE DATABASE ...
 * TEMPLATE, which give up after 5 seconds, and delays DROP EXTENSION only briefly.
 *
 * A worker that fails records the problem in shared memory, logs it if it is new,
 * and ends normally.  The launcher tries again after a delay, which doubles with
 * each failure.  If the launcher fails, the postmaster restarts it, and no usage is
 * lost.
 *
 * On a standby, the launcher starts workers only after promotion.
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
#include "utils/wait_event.h"

#include "usage/usage.h"

#define WORK_TIME (4 * USECS_PER_SEC)	/* for a worker to do its work, once connected */
#define LAUNCH_TIME (15 * USECS_PER_SEC)	/* for a worker to start, connect and end */
#define LOCK_TIMEOUT "2s"
#define RESTART_TIME 5			/* before a failed launcher is restarted, in seconds */

/* Minimum time between rounds of the launcher when memory is full, in microseconds. */
#define WAKE_DELAY (200 * 1000)

#define MAINTENANCE_INTERVAL USECS_PER_DAY
#define MAINTENANCE_BATCH 1000

/* Maintenance is started only if at least this much time is left. */
#define MAINTENANCE_TIME (2 * USECS_PER_SEC)

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

static void
maintain(TimestampTz until)
{
	ApitokenMaintenance done = {0};
	ApitokenFlushState state;
	char		problem[APITOKEN_PROBLEM_MAX];
	bool		more;

	if (apitoken_flush_state(MyDatabaseId, &state))
		done.usage_seen = state.usage_seen;
	do
		more = apitoken_run_in_transaction(maintain_batch, &done, until, problem);
	while (more && GetCurrentTimestamp() < until - USECS_PER_SEC);

	if (problem[0] != '\0')
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not run maintenance in database with OID %u: %s", MyDatabaseId, problem),
				 errdetail("Maintenance will be retried tomorrow."),
				 errhint("Run SELECT * FROM apitoken.run_maintenance() to retry now.")));
	if (!more)
		memset(&done.usage_seen, 0, sizeof(done.usage_seen));
	apitoken_record_maintenance(MyDatabaseId, more ? 0 : GetCurrentTimestamp(), &done.usage_seen);
}

void
apitoken_worker_main(Datum arg)
{
	ApitokenJob job;
	TimestampTz until;

	memcpy(&job, MyBgworkerEntry->bgw_extra, sizeof(job));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	until = GetCurrentTimestamp() + WORK_TIME;
	for (int i = 0; i < lengthof(worker_settings); i++)
	{
		if (GetConfigOption(worker_settings[i][0], true, false) != NULL)
			SetConfigOption(worker_settings[i][0], worker_settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}

	/* If the flush leaves no time for maintenance, that stays due, and the next worker does it. */
	if (apitoken_flush(job.ticket, until) == APITOKEN_FLUSH_DONE && job.maintain &&
		GetCurrentTimestamp() < until - MAINTENANCE_TIME)
		maintain(until);
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
	ApitokenUsageRow rows[100];

	while (apitoken_take_usage(database, 0, rows, lengthof(rows)) == lengthof(rows))
		;
	apitoken_remove_flush_state(database);
}

static void
launcher_exit(int code, Datum arg)
{
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

/* Run a worker for a database, and wait for its end.  Returns true if the launcher must stop. */
static bool
run_worker(Oid database, bool maintenance)
{
	static bool reported = false;
	BackgroundWorkerHandle *handle;
	uint64		ticket = apitoken_start_worker(database, maintenance, &handle);
	TimestampTz until = GetCurrentTimestamp() + LAUNCH_TIME;
	ApitokenFlushState state;
	pid_t		pid;

	if (ticket == 0)
	{
		if (!reported)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("could not start background worker to write token usage"),
					 errdetail("The usage is kept in memory, and writing it will be retried."),
					 errhint("Increase \"max_worker_processes\".")));
		reported = true;
		return false;
	}
	reported = false;

	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		if (GetCurrentTimestamp() > until)
			TerminateBackgroundWorker(handle);
		if (wait_until(Max(until, GetCurrentTimestamp() + USECS_PER_SEC)))
			return true;
	}
	pfree(handle);

	if (apitoken_flush_state(database, &state) && state.last_ticket >= ticket)
		return false;
	if (apitoken_record_flush(database, ticket, APITOKEN_FLUSH_FAILED, "background worker exited early"))
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("background worker exited before writing token usage in database with OID %u", database),
				 errdetail("The usage is kept in memory, and writing it will be retried.")));
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

/* Run one round of the launcher.  Returns true if the launcher must stop. */
static bool
run_once(void)
{
	Oid			databases[2 * DATABASES_MAX];
	int			with_usage;
	int			count;

	apitoken_remove_expired_limits();
	if (RecoveryInProgress())
		return false;

	with_usage = apitoken_databases_with_usage(databases, DATABASES_MAX);
	count = with_usage + apitoken_flush_state_databases(databases + with_usage, DATABASES_MAX);
	for (int i = 0; i < count; i++)
	{
		TimestampTz now = GetCurrentTimestamp();
		ApitokenFlushState state = {0};
		bool		known = apitoken_flush_state(databases[i], &state);
		bool		due = !is_future(state.maintained_at + MAINTENANCE_INTERVAL, now, MAINTENANCE_INTERVAL);

		/* A database with usage is in both lists; its state may be removed by now. */
		if (i >= with_usage && !(known && due))
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
		if (run_worker(databases[i], due))
			return true;
	}
	apitoken_remove_written_usage();
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
			stop = wait_until(started_at + pause);
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
