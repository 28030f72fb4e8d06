/*
 * worker.c
 *		The launcher, which has no database, and the workers that it starts.
 *
 * Every apitoken.flush_interval, and at once when shared memory is full, the
 * launcher looks which databases have usage to be written, or are due for
 * their daily maintenance, and starts a worker for one after the other.  A
 * worker connects, does what it can within WORK_TIME, and is gone: so DROP
 * DATABASE, CREATE DATABASE ... TEMPLATE, which give up after 5 s, and DROP
 * EXTENSION, which waits, are held up no longer.
 *
 * A worker that fails says why in shared memory, tells the log if that is
 * new, and ends quietly; the launcher tries again after a while that doubles
 * each time.  An error in the launcher ends it, and the postmaster starts it
 * again; nothing is lost thereby.
 *
 * On a standby the launcher waits for the promotion.
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

#define WORK_TIME (4 * USECS_PER_SEC)	/* of a worker, once it is connected */
#define LAUNCH_TIME (15 * USECS_PER_SEC)	/* for it to start, connect and end */
#define LOCK_TIMEOUT "2s"
#define RESTART_TIME 5			/* of the launcher, in seconds */

/* A full memory makes the launcher look again after this long, not earlier. */
#define HASTE (200 * 1000)

#define MAINTENANCE_INTERVAL USECS_PER_DAY
#define MAINTENANCE_BATCH 1000

/* Maintenance is not begun unless it has this long. */
#define MAINTENANCE_TIME (2 * USECS_PER_SEC)

/* Databases looked at in one round; others are in the next. */
#define DATABASES_MAX 512

/* A database without the extension may be about to get it: looked for so often. */
#define LOOKS_UNTIL_GONE 5

PGDLLEXPORT void apitoken_launcher_main(Datum arg);
PGDLLEXPORT void apitoken_worker_main(Datum arg);

/* ---- a worker ---- */

/* What a database or a role may set, and what is right for a worker. */
static const char *const worker_settings[][2] = {
	{"search_path", "pg_catalog"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"session_replication_role", "origin"},
	{"row_security", "on"},
	{"jit", "off"},
	/* a flush looks up which rows it has updated: by hash, if the planner expects that to fit */
	{"work_mem", "64MB"},
	{"lock_timeout", LOCK_TIMEOUT},
	{"transaction_timeout", "0"},	/* from PostgreSQL 17 on */
	/* on disk here: a standby that does not answer must not hold up a worker */
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
		more = apitoken_in_transaction(maintain_batch, &done, until, problem);
	while (more && GetCurrentTimestamp() < until - USECS_PER_SEC);

	if (problem[0] != '\0')
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not maintain the tokens of the database: %s", problem),
				 errdetail("It is tried again tomorrow."),
				 errhint("SELECT * FROM apitoken.run_maintenance(); does it now.")));
	if (!more)
		memset(&done.usage_seen, 0, sizeof(done.usage_seen));
	apitoken_maintenance_ended(MyDatabaseId, more ? 0 : GetCurrentTimestamp(), &done.usage_seen);
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

	/* what a slow flush leaves no time for is still due: the next worker does it */
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
	DATABASE_GONE				/* or half dropped */
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
	/* soon after a start the index is not known to a process without a database */
	scan = systable_beginscan(relation, DatabaseOidIndexId, criticalSharedRelcachesBuilt, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_database row = (Form_pg_database) GETSTRUCT(tuple);

		/* -2 is what a DROP DATABASE leaves that was interrupted */
		if (row->datconnlimit != -2)
			state = row->datallowconn ? DATABASE_OPEN : DATABASE_CLOSED;
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	return state;
}

/* Nobody will ever want what is recorded of this database. */
static void
discard(Oid database)
{
	ApitokenUsageRow rows[100];

	while (apitoken_take_usage(database, 0, rows, lengthof(rows)) == lengthof(rows))
		;
	apitoken_forget_flush_state(database);
}

static void
launcher_ends(int code, Datum arg)
{
	SpinLockAcquire(&apitoken_shared->mutex);
	apitoken_shared->launcher = NULL;
	SpinLockRelease(&apitoken_shared->mutex);
}

/* Sleep until the latch is set, but no longer than that; true: stop everything. */
static bool
rest_until(TimestampTz until)
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

/* Have a worker do what there is to do in a database; true: stop everything. */
static bool
serve(Oid database, bool maintenance)
{
	static bool told = false;
	BackgroundWorkerHandle *handle;
	uint64		ticket = apitoken_start_worker(database, maintenance, &handle);
	TimestampTz until = GetCurrentTimestamp() + LAUNCH_TIME;
	ApitokenFlushState state;
	pid_t		pid;

	if (ticket == 0)
	{
		if (!told)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("there is no background worker to write the usage of tokens"),
					 errdetail("It is kept in memory, and tried again."),
					 errhint("Raise max_worker_processes.")));
		told = true;
		return false;
	}
	told = false;

	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		if (GetCurrentTimestamp() > until)
			TerminateBackgroundWorker(handle);
		if (rest_until(Max(until, GetCurrentTimestamp() + USECS_PER_SEC)))
			return true;
	}
	pfree(handle);

	if (apitoken_flush_state(database, &state) && state.last_ticket >= ticket)
		return false;
	if (apitoken_flush_ended(database, ticket, APITOKEN_FLUSH_FAILED, "the worker ended early"))
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a worker ended before it had written the usage of tokens in database %u", database),
				 errdetail("It is kept in memory, and tried again.")));
	return false;
}

/*
 * Is a time yet to come?  One that is further off than it ever was belongs to
 * a clock that was set back since, and is not waited for.
 */
static bool
is_to_come(TimestampTz at, TimestampTz now, int64 at_most)
{
	return at > now && at <= now + at_most;
}

/* One round; true: stop everything. */
static bool
look_around(void)
{
	Oid			databases[2 * DATABASES_MAX];
	int			used;
	int			count;

	apitoken_forget_limits();
	if (RecoveryInProgress())
		return false;

	used = apitoken_databases_used(databases, DATABASES_MAX);
	count = used + apitoken_flush_state_databases(databases + used, DATABASES_MAX);
	for (int i = 0; i < count; i++)
	{
		TimestampTz now = GetCurrentTimestamp();
		ApitokenFlushState state = {0};
		bool		known = apitoken_flush_state(databases[i], &state);
		bool		due = !is_to_come(state.maintained_at + MAINTENANCE_INTERVAL, now, MAINTENANCE_INTERVAL);

		/* those known come twice if they are used, or are gone by now */
		if (i >= used && !(known && due))
			continue;
		if (is_to_come(state.retry_at, now, APITOKEN_RETRY_MAX * (int64) 1000))
			continue;
		switch (database_state(databases[i]))
		{
			case DATABASE_GONE:
				discard(databases[i]);
				continue;
			case DATABASE_CLOSED:
				continue;
			case DATABASE_OPEN:
				break;
		}
		if (state.missing >= LOOKS_UNTIL_GONE)
		{
			discard(databases[i]);
			continue;
		}
		if (serve(databases[i], due))
			return true;
	}
	apitoken_forget_written();
	return false;
}

void
apitoken_launcher_main(Datum arg)
{
	bool		stop = false;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	before_shmem_exit(launcher_ends, (Datum) 0);
	SpinLockAcquire(&apitoken_shared->mutex);
	apitoken_shared->launcher = MyLatch;
	SpinLockRelease(&apitoken_shared->mutex);
	BackgroundWorkerUnblockSignals();

	/* no database, but the catalogs that all share */
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("apitoken launcher");
	apitoken_remove_usage_file();

	while (!stop)
	{
		TimestampTz began = GetCurrentTimestamp();

		/* whoever finds no room from here on asks again */
		pg_atomic_write_u32(&apitoken_shared->hasten, 0);
		pg_memory_barrier();
		stop = look_around();
		while (!stop)
		{
			bool		hasty = pg_atomic_read_u32(&apitoken_shared->hasten) != 0;
			int64		pause = hasty ? HASTE : apitoken_flush_interval * (int64) 1000;

			if (!is_to_come(began + pause, GetCurrentTimestamp(), pause))
				break;
			stop = rest_until(began + pause);
		}
	}

	/* 1: started again, unless the server is stopping */
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
