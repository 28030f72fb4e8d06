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

void
apitoken_record_use(const pg_uuid_t *id, inet *address)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz last_used_at;
	Snapshot	snapshot;
	bool		has_row;
	inet	   *client;
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};

	if (XactReadOnly || IsInParallelMode() || RecoveryInProgress() ||
		XactIsoLevel > XACT_READ_COMMITTED)
		return;
	snapshot = apitoken_latest_snapshot();
	has_row = apitoken_fetch_last_used(snapshot, id, &last_used_at);
	UnregisterSnapshot(snapshot);
	if (has_row && last_used_at > DT_NOBEGIN &&
		!TimestampDifferenceExceeds(last_used_at, now, WRITE_INTERVAL))
		return;

	values[0] = UUIDPGetDatum(id);
	values[1] = TimestampTzGetDatum(now);
	client = apitoken_client_address(address);
	values[2] = InetPGetDatum(client);
	if (client == NULL)
		nulls[2] = 'n';
	apitoken_execute(has_row ? APITOKEN_TOUCH_USAGE : APITOKEN_ADD_USAGE, values, nulls);
}
