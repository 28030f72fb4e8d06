/*
 * usage.c
 *		When a token was last used.
 *
 * Without preload this is written in the caller's transaction, and must never
 * be what makes that transaction wait or fail: at most once a minute for a
 * token, only in a READ COMMITTED transaction that can write, and only by
 * whoever gets the token's advisory lock without waiting.  (An upsert would
 * wait for another session's row, and even SKIP LOCKED raises 40001 under
 * REPEATABLE READ.)
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "apitoken.h"

#define WRITE_INTERVAL (1 * SECS_PER_MINUTE * 1000)	/* milliseconds */

/* Tells our advisory locks from the application's, which are 1 and 2. */
#define LOCK_SPACE 0xA91

static bool
written_recently(const pg_uuid_t *id, TimestampTz now)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	TimestampTz last_used_at = apitoken_fetch_last_used(snapshot, id);

	UnregisterSnapshot(snapshot);
	return last_used_at > DT_NOBEGIN &&
		!TimestampDifferenceExceeds(last_used_at, now, WRITE_INTERVAL);
}

/* Only one session at a time, until its transaction ends. */
static bool
lock_without_waiting(const pg_uuid_t *id)
{
	LOCKTAG		tag;
	uint32		high;
	uint32		low;

	/* the last 8 bytes of the id are random */
	memcpy(&high, id->data + 8, sizeof(high));
	memcpy(&low, id->data + 12, sizeof(low));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, high, low, LOCK_SPACE);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
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
	if (written_recently(id, now) || !lock_without_waiting(id))
		return;
	/* another session may have written it just before we got the lock */
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
