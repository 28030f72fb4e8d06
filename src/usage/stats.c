/*
 * stats.c
 *		The data of the view apitoken.stats: the server's counters, and the
 *		state of this database's flushes.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "usage/usage.h"

/* Column numbers.  The counters have a column each, from FIRST_COUNTER on. */
enum
{
	PRELOADED,
	STARTED_AT,
	FIRST_COUNTER,
	SLOTS = FIRST_COUNTER + APITOKEN_COUNTERS,
	ENTRIES,
	LIMITS,
	LAST_FLUSH_AT,
	LAST_FLUSH_ERROR,
	LAST_FLUSH_ERROR_AT,
	LAUNCHER_RUNS,
	COMPLETE_SINCE,
	INCOMPLETE_BECAUSE,
	MAINTENANCE_PROBLEM,
	PENDING,
	LAST_SEND_AT,
	LAST_SEND_ERROR,
	LAST_SEND_ERROR_AT,
	COLUMNS
};

static void
set_column(Datum *values, bool *nulls, int column, Datum value)
{
	values[column] = value;
	nulls[column] = false;
}

static void
describe_flushes(Datum *values, bool *nulls)
{
	ApitokenFlushState state;
	bool		sends = apitoken_sends(NULL);

	set_column(values, nulls, PENDING, Int64GetDatum(apitoken_pending_uses(MyDatabaseId)));
	if (!apitoken_flush_state(MyDatabaseId, &state))
		return;
	/* a flush of a server that sends */
	if (state.flushed_at != 0)
		set_column(values, nulls, sends ? LAST_SEND_AT : LAST_FLUSH_AT, TimestampTzGetDatum(state.flushed_at));
	if (state.failures > 0)
	{
		set_column(values, nulls, sends ? LAST_SEND_ERROR : LAST_FLUSH_ERROR, CStringGetTextDatum(state.problem));
		set_column(values, nulls, sends ? LAST_SEND_ERROR_AT : LAST_FLUSH_ERROR_AT, TimestampTzGetDatum(state.failed_at));
	}
	if (state.maintenance_problem[0] != '\0')
		set_column(values, nulls, MAINTENANCE_PROBLEM, CStringGetTextDatum(state.maintenance_problem));
}

static void
describe_completeness(Datum *values, bool *nulls)
{
	const char *reason;
	TimestampTz since;

	if (RecoveryInProgress())
		return;
	since = apitoken_complete_since(&reason);
	if (since == 0)
		return;
	set_column(values, nulls, COMPLETE_SINCE, TimestampTzGetDatum(since));
	set_column(values, nulls, INCOMPLETE_BECAUSE, CStringGetTextDatum(reason));
}

/* Without APITOKEN_FUNCTION_INFO_V1, because check_setup() reads it to tell of another version.  It has no arguments. */
PG_FUNCTION_INFO_V1(apitoken_read_stats);
Datum
apitoken_read_stats(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor = apitoken_result_type(fcinfo, COLUMNS);
	Datum		values[COLUMNS] = {0};
	bool		nulls[COLUMNS];

	memset(nulls, true, sizeof(nulls));
	set_column(values, nulls, PRELOADED, BoolGetDatum(apitoken_shared != NULL));
	if (apitoken_shared != NULL)
	{
		set_column(values, nulls, STARTED_AT, TimestampTzGetDatum(apitoken_shared->started_at));
		for (int counter = 0; counter < APITOKEN_COUNTERS; counter++)
			set_column(values, nulls, FIRST_COUNTER + counter, Int64GetDatum(apitoken_counter_value(counter)));
		set_column(values, nulls, SLOTS, Int32GetDatum(apitoken_usage_slots));
		set_column(values, nulls, ENTRIES, Int64GetDatum(apitoken_map_entries(apitoken_usage_map)));
		set_column(values, nulls, LIMITS, Int64GetDatum(apitoken_map_entries(apitoken_limit_map)));
		set_column(values, nulls, LAUNCHER_RUNS, BoolGetDatum(apitoken_launcher_runs()));
		describe_flushes(values, nulls);
		describe_completeness(values, nulls);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls)));
}
