/*
 * maintenance.c
 *		Housekeeping: revoke idle tokens, clear previous digests after their
 *		overlap, and remove data that is older than its retention.
 *
 * Maintenance runs in batches.  A worker runs each batch in a transaction of its
 * own; run_maintenance() runs all in the caller's transaction.  The result does not
 * depend on the caller, but only on the tables, the clock, and settings that only a
 * superuser can change.  So the privilege to execute run_maintenance() only allows
 * choosing the time.
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
#include "commands/trigger.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

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

/*
 * Compute the time before which data is removed.  Returns false if everything is
 * kept.  Raises an error if the configured value was refused: the default must not
 * take its place.
 */
static bool
retention_cutoff(const int *retention, TimestampTz now, TimestampTz *cutoff)
{
	apitoken_require_setting(retention);
	*cutoff = now - *retention * USECS_PER_MINUTE;
	return *retention != APITOKEN_KEEP_ALL;
}

/* Run a statement.  Returns true if its batch was full, so there may be more rows. */
static bool
run_batch(ApitokenStatement statement, Datum *values, int batch, uint64 *counter)
{
	uint64		processed = apitoken_execute(statement, values, NULL);

	*counter += processed;
	return processed >= batch;
}

/*
 * Check the next rows of token_usage: revoke their tokens if they are idle, and
 * remove rows of tokens that no longer exist.  A run checks each row once, in
 * batches, so the duration of a batch does not depend on the number of tokens.
 */
static void
check_usage(int batch, TimestampTz now, ApitokenMaintenance *done)
{
	Datum		next[2];
	Datum		idle[4];
	Datum		orphans[2];
	char		idle_nulls[4] = {' ', ' ', ' ', ' '};
	char		orphans_nulls[2] = {' ', ' '};
	Datum		end = (Datum) 0;

	next[0] = UUIDPGetDatum(&done->usage_seen);
	next[1] = Int64GetDatum((int64) batch * USAGE_FACTOR);
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
 * Run one batch of maintenance, with at most `batch` rows of each kind, in the
 * current transaction, which must have an active snapshot.  Returns whether there
 * is more to do.  The caller must have flushed the recorded usage.
 */
bool
apitoken_maintain(int batch, ApitokenMaintenance *done)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz cutoff;
	pg_uuid_t	bound;
	Datum		values[3];
	bool		more = false;

	/* Without triggers, a revocation would write no event, and a deletion would not remove usage. */
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot run maintenance while \"session_replication_role\" is \"replica\""),
				 errdetail("The triggers of the extension do not fire in this mode."),
				 errhint("Run SET session_replication_role = origin.")));

	values[1] = Int64GetDatum(batch);
	values[0] = TimestampTzGetDatum(now);
	more |= run_batch(APITOKEN_CLEAR_PREVIOUS, values, batch, &done->digests_cleared);

	if (retention_cutoff(&apitoken_retention, now, &cutoff))
	{
		values[0] = TimestampTzGetDatum(cutoff);
		apitoken_min_id(cutoff + EVENT_SLACK, &bound);
		values[2] = UUIDPGetDatum(&bound);
		more |= run_batch(APITOKEN_REMOVE_EVENTS, values, batch, &done->events_removed);
		more |= run_batch(APITOKEN_REMOVE_REVOKED, values, batch, &done->tokens_removed);
		more |= run_batch(APITOKEN_REMOVE_EXPIRED, values, batch, &done->tokens_removed);
	}
	if (retention_cutoff(&apitoken_usage_retention, now, &cutoff))
	{
		/* days are those of UTC, whatever the session's time zone */
		values[0] = DirectFunctionCall1(timestamp_date, TimestampGetDatum(cutoff));
		more |= run_batch(APITOKEN_REMOVE_DAYS, values, batch, &done->usage_removed);
	}

	/* Check usage last, because removing tokens can leave rows of usage behind. */
	if (!more && !done->usage_done)
	{
		check_usage(batch, now, done);
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

	/* Flush first, so that a token that was just used does not appear idle. */
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
