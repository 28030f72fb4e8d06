/*
 * limit.c
 *		Rate limits: the generic cell rate algorithm (ITU-T I.371), which needs
 *		one time for each token.
 *
 * A token with a limit of n a minute earns one use each 60/n seconds, up to n:
 * after a minute's rest it may be used n times at once.  `free_at` is when
 * all that was used will be earned again.  A use moves it on by 60/n seconds,
 * and is refused if it would then be more than a minute ahead.
 *
 * The time is the monotonic clock's, so that setting the server's clock
 * neither stops a token nor frees it, in nanoseconds, so that a limit of a
 * million a minute is one.  Each process moves `free_at` on by compare and
 * exchange: of two at once one tries again.
 *
 * A use counts when it is verified and nothing else refuses it, whatever
 * becomes of the transaction.  When the limit is edited `free_at` stays: what
 * was used of a minute's share is used of the new one.  The limit is one
 * server's: replicas and other servers count for themselves, and a restart
 * forgets what was used.
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

	/* CLOCK_MONOTONIC is always there, POSIX.1-2001 says */
	(void) clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64) now.tv_sec * 1000000000 + now.tv_nsec;
}

static void
begin_limit(void *entry)
{
	pg_atomic_init_u64(&((ApitokenLimit *) entry)->free_at, 0);
}

/*
 * May this token be used once more now?  Then that is counted; otherwise
 * `retry_after` says in how many microseconds it may.  The token's secret has
 * been found right: a stranger uses up nobody's limit.
 */
bool
apitoken_within_limit(const pg_uuid_t *id, int32 per_minute, int64 *retry_after)
{
	ApitokenLimitKey key;
	ApitokenLimit *limit;
	LWLock	   *lock;
	uint64		each = (MINUTE + per_minute - 1) / per_minute;
	uint64		now;
	uint64		free_at;
	uint64		ahead;

	if (apitoken_shared == NULL)
	{
		/* never silently unlimited */
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a token with a rate limit cannot be verified on this server"),
				 errdetail("Its uses are counted in shared memory, which apitoken does not have here."),
				 errhint("Add apitoken to shared_preload_libraries and restart the server, or clear the token's rate_limit_per_minute.")));
		return false;
	}

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.token_id = *id;
	limit = apitoken_map_entry(apitoken_limit_map, &key, begin_limit, &lock);
	if (limit == NULL)
	{
		/* nor unlimited for want of room, which the launcher makes now */
		apitoken_count(APITOKEN_DROPPED, 1);
		apitoken_hasten();
		*retry_after = USECS_PER_SEC;
		return false;
	}

	now = monotonic_time();
	free_at = pg_atomic_read_u64(&limit->free_at);
	do
	{
		ahead = Max(free_at, now) - now;
		if (ahead > (per_minute - 1) * each)
			break;
	} while (!pg_atomic_compare_exchange_u64(&limit->free_at, &free_at, now + ahead + each));
	LWLockRelease(lock);

	if (ahead <= (per_minute - 1) * each)
		return true;
	*retry_after = (ahead - (per_minute - 1) * each + 999) / 1000;
	return false;
}

static bool
earned_again(void *entry, void *now)
{
	return pg_atomic_read_u64(&((ApitokenLimit *) entry)->free_at) <= *(uint64 *) now;
}

/* An entry whose time has come says no more than none. */
void
apitoken_forget_limits(void)
{
	uint64		now = monotonic_time();

	apitoken_map_remove(apitoken_limit_map, earned_again, &now);
}
