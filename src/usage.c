/*
 * usage.c
 *		When a token was last used.
 *
 * Without preload this is written in the caller's transaction, and must never
 * be what makes that transaction wait or fail: at most once a minute for a
 * token, only in a READ COMMITTED transaction that can write, and only if no
 * other transaction has the row locked (SKIP LOCKED, which would raise 40001
 * under REPEATABLE READ).  No advisory lock is taken: a query that verifies
 * many tokens would fill the server's lock table.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "apitoken.h"

#define WRITE_INTERVAL (1 * SECS_PER_MINUTE * 1000)	/* milliseconds */

static bool
written_recently(const pg_uuid_t *id, TimestampTz now)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	TimestampTz last_used_at = apitoken_fetch_last_used(snapshot, id);

	UnregisterSnapshot(snapshot);
	return last_used_at > DT_NOBEGIN &&
		!TimestampDifferenceExceeds(last_used_at, now, WRITE_INTERVAL);
}

void
apitoken_record_use(const pg_uuid_t *id, inet *address)
{
	TimestampTz now = GetCurrentTimestamp();
	inet	   *client;
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};

	if (XactReadOnly || IsInParallelMode() || RecoveryInProgress() ||
		XactIsoLevel > XACT_READ_COMMITTED)
		return;
	if (written_recently(id, now))
		return;

	values[0] = UUIDPGetDatum(id);
	values[1] = TimestampTzGetDatum(now);
	client = apitoken_client_address(address);
	values[2] = InetPGetDatum(client);
	if (client == NULL)
		nulls[2] = 'n';
	apitoken_execute(APITOKEN_TOUCH_USAGE, values, nulls);
}
