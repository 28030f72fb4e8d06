/*
 * limit.c
 *		Rate limits, counted in shared memory.
 *
 * Only requests that know the token's secret count, so a stranger cannot use up
 * the limit of a token.
 *
 * The algorithm is the generic cell rate algorithm (GCRA, ITU-T I.371).  It needs
 * one timestamp for each token, the theoretical arrival time ("tat").  A token
 * with a limit of n uses per minute regains one use every 60/n seconds, up to n.
 * So it may be used n times at once after a minute without use.  tat is the time
 * when the token will have regained all uses.  Each use adds 60/n seconds to it.
 * A use is refused if tat would then be more than a minute in the future.
 *
 * Times are from the monotonic clock, so setting the server's clock does not
 * affect limits.  They are in nanoseconds, so that even a limit of a million uses
 * per minute is exact enough.  tat is updated by compare-and-exchange: if two
 * processes update it at the same time, one of them tries again.
 *
 * A use counts if nothing else refuses it, even if the transaction is rolled
 * back.  When a limit is edited, tat does not change: the fraction of the old
 * limit that is used up is also used up of the new one.  Each server, including
 * standbys, counts for itself.  After a restart, counting starts anew.
 */
#include "postgres.h"

#include <time.h>

#include "miscadmin.h"

#include "usage/usage.h"

#define MINUTE UINT64CONST(60000000000) /* nanoseconds */

static uint64
monotonic_time(void)
{
	struct timespec now = {0};

	/* CLOCK_MONOTONIC exists on all supported platforms, so this cannot fail. */
	(void) clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64) now.tv_sec * 1000000000 + now.tv_nsec;
}

static void
init_limit(void *entry)
{
	pg_atomic_init_u64(&((ApitokenLimit *) entry)->tat, 0);
}

/*
 * May this token be used now?  If so, and `count` is true, this counts the use.
 * Otherwise it sets `retry_after` to the number of microseconds until the next use is allowed.  The
 * caller must have verified the secret.
 */
bool
apitoken_within_limit(const pg_uuid_t *id, int32 per_minute, bool count, int64 *retry_after)
{
	ApitokenLimitKey key;
	ApitokenLimit *limit;
	LWLock	   *lock;
	uint64		interval = (MINUTE + per_minute - 1) / per_minute;
	uint64		now;
	uint64		tat;
	uint64		ahead;

	if (apitoken_shared == NULL)
	{
		/* Refuse the use rather than ignore the limit. */
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot verify a token with a rate limit on this server"),
				 errdetail("Uses of the token are counted in shared memory, which apitoken has only if it is preloaded."),
				 errhint("Add \"apitoken\" to \"shared_preload_libraries\" and restart the server, or set \"rate_limit_per_minute\" of the token to null.")));
		return false;
	}

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.token_id = *id;
	limit = apitoken_map_entry(apitoken_limit_map, &key, count ? init_limit : NULL, &lock);
	if (limit == NULL && !count)
		return true;			/* it was not used lately */
	if (limit == NULL)
	{
		/* There is no room to count the use, so refuse it too.  The launcher will make room. */
		apitoken_count(APITOKEN_DROPPED, 1);
		apitoken_wake_launcher();
		*retry_after = USECS_PER_SEC;
		return false;
	}

	now = monotonic_time();
	tat = pg_atomic_read_u64(&limit->tat);
	do
	{
		ahead = Max(tat, now) - now;
		if (ahead > (per_minute - 1) * interval)
			break;
	} while (count && !pg_atomic_compare_exchange_u64(&limit->tat, &tat, now + ahead + interval));
	LWLockRelease(lock);

	if (ahead <= (per_minute - 1) * interval)
		return true;
	*retry_after = (ahead - (per_minute - 1) * interval + 999) / 1000;
	return false;
}

static bool
limit_expired(void *entry, void *now)
{
	return pg_atomic_read_u64(&((ApitokenLimit *) entry)->tat) <= *(uint64 *) now;
}

/* Remove limits whose tat has passed.  Such an entry means the same as no entry. */
void
apitoken_remove_expired_limits(void)
{
	uint64		now = monotonic_time();

	apitoken_map_remove(apitoken_limit_map, limit_expired, &now);
}
