/*
 * maintenance.c
 *		Housekeeping: idle tokens are revoked, previous digests past their
 *		overlap cleared, and what is older than its retention is removed.
 *
 * It is done in batches, by the worker each in a transaction of its own, by
 * run_maintenance() all in the caller's.  It acts for nobody: what it does
 * depends on the tables, the clock and settings that only a superuser can set,
 * and not on who calls.  So who was granted run_maintenance() chooses no more
 * than the moment.
 *
 * Its statements never wait for a row: what another transaction has locked is
 * left to the next run.  So it blocks on nobody and is part of no deadlock.
 *
 * No event tells of a removal: a retention is there to leave no trace.  No
 * tenant can hasten one either, since the times that it goes by are set by the
 * extension alone.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "commands/trigger.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgrprotos.h"

#include "usage/usage.h"

/* Rows of each kind that run_maintenance() takes at once. */
#define BATCH 10000

/* Usage rows that a batch looks through, for each row of other kinds that it may take. */
#define LOOKS 10

/* Last use is known to the minute. */
#define USE_PRECISION USECS_PER_MINUTE

/*
 * An event's id is made after its time was taken: later by as long as its
 * transaction had been going on.  One that was slower is found some time after.
 */
#define EVENT_SLACK USECS_PER_HOUR

/* Now less a retention, in UTC, whatever the session's time zone; false: all is kept. */
static bool
retention_cutoff(ApitokenRetention retention, TimestampTz now, TimestampTz *cutoff)
{
	const Interval *kept = apitoken_retention(retention);

	if (kept == NULL)
		return false;
	*cutoff = DatumGetTimestamp(DirectFunctionCall2(timestamp_mi_interval,
													TimestampGetDatum(now),
													IntervalPGetDatum(kept)));
	return true;
}

/* Run a statement; was its batch full, so that there may be more to do? */
static bool
work(ApitokenStatement statement, Datum *values, int batch, uint64 *counter)
{
	uint64		processed = apitoken_execute(statement, values, NULL);

	*counter += processed;
	return processed >= batch;
}

/*
 * The next rows of usage: is it of idle tokens, or of tokens that are gone?
 * All of them are looked through once in a run, so that each batch takes as
 * long as the others, however many tokens there are.
 */
static void
look_through_usage(int batch, TimestampTz now, ApitokenMaintenance *done)
{
	Datum		next[2];
	Datum		idle[4];
	Datum		orphans[2];
	char		idle_nulls[4] = {' ', ' ', ' ', ' '};
	char		orphans_nulls[2] = {' ', ' '};
	Datum		end = (Datum) 0;

	next[0] = UUIDPGetDatum(&done->usage_seen);
	next[1] = Int64GetDatum((int64) batch * LOOKS);
	done->usage_done = !apitoken_execute_value(APITOKEN_NEXT_USAGE, next, NULL, &end);
	if (done->usage_done)
		idle_nulls[3] = orphans_nulls[1] = 'n';

	idle[0] = TimestampTzGetDatum(now);
	idle[1] = TimestampTzGetDatum(now - USE_PRECISION);
	idle[2] = orphans[0] = next[0];
	idle[3] = orphans[1] = end;
	done->tokens_revoked += apitoken_execute(APITOKEN_REVOKE_IDLE, idle, idle_nulls);
	done->usage_removed += apitoken_execute(APITOKEN_REMOVE_ORPHANS, orphans, orphans_nulls);
	if (!done->usage_done)
		done->usage_seen = *DatumGetUUIDP(end);
}

/*
 * At most so many rows of each kind, in the current transaction, which has an
 * active snapshot; is there more to do?  It takes the recorded uses as they
 * are in the table: whoever calls this has flushed them before.
 */
bool
apitoken_maintain(int batch, ApitokenMaintenance *done)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz cutoff;
	pg_uuid_t	bound;
	Datum		values[3];
	bool		more = false;

	/* a revocation without its event, a deletion that leaves usage behind */
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("housekeeping needs the extension's triggers"),
				 errdetail("With session_replication_role = replica they do not fire."),
				 errhint("SET session_replication_role = origin;")));

	values[1] = Int64GetDatum(batch);
	values[0] = TimestampTzGetDatum(now);
	more |= work(APITOKEN_CLEAR_PREVIOUS, values, batch, &done->digests_cleared);

	if (retention_cutoff(APITOKEN_RETENTION, now, &cutoff))
	{
		values[0] = TimestampTzGetDatum(cutoff);
		apitoken_min_id(cutoff + EVENT_SLACK, &bound);
		values[2] = UUIDPGetDatum(&bound);
		more |= work(APITOKEN_REMOVE_EVENTS, values, batch, &done->events_removed);
		more |= work(APITOKEN_REMOVE_REVOKED, values, batch, &done->tokens_removed);
		more |= work(APITOKEN_REMOVE_EXPIRED, values, batch, &done->tokens_removed);
	}
	if (retention_cutoff(APITOKEN_USAGE_RETENTION, now, &cutoff))
	{
		values[0] = DirectFunctionCall1(timestamp_date, TimestampGetDatum(cutoff));
		more |= work(APITOKEN_REMOVE_DAYS, values, batch, &done->usage_removed);
	}

	/* last, when no token is removed any more that could leave some */
	if (!more && !done->usage_done)
	{
		look_through_usage(batch, now, done);
		more = !done->usage_done;
	}
	return more;
}

PG_FUNCTION_INFO_V1(apitoken_run_maintenance);
Datum
apitoken_run_maintenance(PG_FUNCTION_ARGS)
{
	ApitokenMaintenance done = {0};
	Datum		values[5];
	TupleDesc	descriptor = apitoken_result_type(fcinfo, lengthof(values));
	bool		nulls[5] = {false, false, false, false, false};

	PreventCommandDuringRecovery("apitoken.run_maintenance()");
	PreventCommandIfReadOnly("apitoken.run_maintenance()");
	PreventCommandIfParallelMode("apitoken.run_maintenance()");

	/* nobody's token is idle who used it just now */
	apitoken_flush_now();

	while (apitoken_maintain(BATCH, &done))
		CHECK_FOR_INTERRUPTS();

	values[0] = Int64GetDatum(done.tokens_revoked);
	values[1] = Int64GetDatum(done.digests_cleared);
	values[2] = Int64GetDatum(done.events_removed);
	values[3] = Int64GetDatum(done.tokens_removed);
	values[4] = Int64GetDatum(done.usage_removed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls)));
}
