/*
 * limit.c
 *		Rate limits and quotas, counted in shared memory.
 *
 * Only requests that know the token's secret count, so a stranger cannot use up
 * the limit of a token.  A use counts if nothing else refuses it, even if the
 * transaction is rolled back.  It counts against the rate limit and the quota, or
 * against neither: both are in one entry, under its spinlock.  Only a use that turns
 * out to have no place to be recorded gives back its part of the quota alone.
 *
 * Rate limits
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
 * per minute is exact enough.
 *
 * When a limit is edited, tat does not change: the fraction of the old limit that
 * is used up is also used up of the new one.  Each server, including standbys,
 * counts for itself.  After a restart, counting starts anew.
 *
 * Quotas
 *
 * The recorded use of a token is what counts: accepted uses in token_days and on the
 * last day in token_usage, or there for the whole life, and those in shared memory that are not
 * written yet.  So a restart forgets nothing, and a crash what was not written.
 * An entry holds the sum, which is read when there is no entry, when the period is
 * another one, and after a minute, for use that other servers have recorded.  Until
 * then, the entry alone counts, so that concurrent uses cannot exceed the quota.
 *
 * A use is recorded just after it was counted.  So a sum may lack uses that an
 * entry has counted, but no more than those of the last moments.  Therefore:
 *
 *	- A sum of the same period never lowers the count.
 *	- An entry is removed only if its last use is more than a minute old.
 *	- A sum that is older than a minute is not used.
 */
#include "postgres.h"

#include <time.h>

#include "miscadmin.h"
#include "storage/spin.h"
#include "utils/datetime.h"

#include "usage/usage.h"

#define MINUTE_NS UINT64CONST(60000000000) /* nanoseconds */

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
	ApitokenLimit *limit = entry;

	SpinLockInit(&limit->mutex);
	limit->tat = 0;
	limit->quota_used_at = 0;
	memset(&limit->quota, 0, sizeof(limit->quota));
}

/* The first day of the period that contains a day. */
DateADT
apitoken_first_day_of(ApitokenQuotaPeriod period, DateADT day)
{
	int			year;
	int			month;
	int			ignored;

	if (period == APITOKEN_LIFE)
		return DATEVAL_NOBEGIN;
	if (period == APITOKEN_DAY)
		return day;
	j2date(day + POSTGRES_EPOCH_JDATE, &year, &month, &ignored);
	return date2j(year, month, 1) - POSTGRES_EPOCH_JDATE;
}

/*
 * May the entry's count of uses be used?  A process that has looked at the clock
 * just before the end of a period counts with those that are in the next one.
 */
static bool
is_current(const ApitokenQuotaUse *entry, const ApitokenQuotaUse *wanted, uint64 now)
{
	return entry->read_at != 0 && now < entry->read_at + MINUTE_NS &&
		entry->period == wanted->period && entry->since >= wanted->since;
}

/* What an entry says after a use. */
typedef struct Outcome
{
	bool		within_rate;
	bool		within_quota;
	uint64		ahead;			/* nanoseconds from now to tat */
	int64		used;			/* of the quota */
} Outcome;

/* Count a use in an entry, if both limits allow it and `count` is true.  The caller holds the spinlock. */
static void
count_use(ApitokenLimit *limit, const ApitokenRecord *record, uint64 interval, int32 cost, bool count, uint64 now,
		  Outcome *outcome)
{
	outcome->ahead = Max(limit->tat, now) - now;
	outcome->used = limit->quota.used;
	outcome->within_rate = record->rate_limit == 0 ||
		(cost <= record->rate_limit && outcome->ahead <= (record->rate_limit - cost) * interval);
	outcome->within_quota = record->quota == 0 || outcome->used <= record->quota - cost;
	if (!count || !outcome->within_rate || !outcome->within_quota)
		return;
	if (record->rate_limit > 0)
	{
		outcome->ahead += cost * interval;
		limit->tat = now + outcome->ahead;
	}
	if (record->quota > 0)
	{
		outcome->used += cost;
		limit->quota.used = outcome->used;
		limit->quota_used_at = now;
	}
}

/* The use of a token whose uses nothing counts is refused, rather than its limit ignored. */
static ApitokenVerdict
refuse_uncounted(bool quota)
{
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 quota ? errmsg("cannot verify a token with a quota on this server") :
			 errmsg("cannot verify a token with a rate limit on this server"),
			 errdetail("Uses of the token are counted in shared memory, which apitoken has only if it is preloaded."),
			 errhint("Add \"apitoken\" to \"shared_preload_libraries\" and restart the server, or set \"%s\" of the token to null.",
					 quota ? "quota" : "rate_limit_per_minute")));
	return quota ? APITOKEN_QUOTA_EXCEEDED : APITOKEN_RATE_LIMITED;
}

/* Describe what the limits allow now.  Times are rounded up, so that waiting is enough. */
static void
describe_allowance(const ApitokenRecord *record, const Outcome *outcome, uint64 interval, int32 cost,
				   TimestampTz at, ApitokenAllowance *allowance)
{
	allowance->counted = true;
	if (record->rate_limit > 0)
	{
		uint64		used = (outcome->ahead + interval - 1) / interval;

		allowance->rate_remaining = record->rate_limit - Min(used, record->rate_limit);
		allowance->rate_reset = ((used == 0 ? 0 : outcome->ahead - (used - 1) * interval) + 999) / 1000;
	}
	if (record->quota > 0)
	{
		allowance->remaining = Max(record->quota - outcome->used, 0);
		if (record->quota_period != APITOKEN_LIFE)
		{
			DateADT		first = apitoken_first_day_of(record->quota_period, apitoken_day_of(at));
			DateADT		next = record->quota_period == APITOKEN_DAY ? first + 1 :
				apitoken_first_day_of(APITOKEN_MONTH, first + 31);

			allowance->quota_window = (next - first) * USECS_PER_DAY;
			allowance->quota_reset = next * USECS_PER_DAY - at;
		}
	}
	/* if the cost alone exceeds a limit, no wait helps */
	if (!outcome->within_quota)
		allowance->retry_after = cost <= record->quota ? allowance->quota_reset : 0;
	else if (!outcome->within_rate && cost <= record->rate_limit)
		allowance->retry_after = (outcome->ahead - (record->rate_limit - cost) * interval + 999) / 1000;
}

static ApitokenLimitKey
limit_key(const pg_uuid_t *id)
{
	ApitokenLimitKey key;

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.token_id = *id;
	return key;
}

/*
 * Count a use of a token with a rate limit or a quota.  Returns the verdict, and
 * what is left.  If `count` is false, tells only what would be decided.  The caller
 * must have verified the secret.
 */
ApitokenVerdict
apitoken_count_use(const ApitokenRecord *record, int32 cost, bool count, TimestampTz at,
				   ApitokenAllowance *allowance)
{
	DateADT		today = apitoken_day_of(at);
	uint64		interval = record->rate_limit > 0 ? (MINUTE_NS + record->rate_limit - 1) / record->rate_limit : 0;
	ApitokenQuotaUse quota = {0};
	ApitokenLimitKey key = limit_key(&record->id);
	ApitokenLimit unused;
	Outcome		outcome;
	bool		counted;

	if (apitoken_shared == NULL)
		return refuse_uncounted(record->quota > 0);

	init_limit(&unused);
	quota.period = record->quota_period;
	quota.since = apitoken_first_day_of(quota.period, today);
	for (;;)
	{
		LWLock	   *lock;
		ApitokenLimit *limit = apitoken_map_entry(apitoken_limit_map, &key, count ? init_limit : NULL, &lock);
		uint64		now = monotonic_time();

		if (limit == NULL && !count)
		{
			/* it was not used lately */
			limit = &unused;
			lock = NULL;
		}
		if (limit == NULL)
		{
			/* There is no room to count the use, so refuse it too.  The launcher will make room. */
			apitoken_count(APITOKEN_DROPPED, 1);
			apitoken_wake_launcher();
			allowance->retry_after = USECS_PER_SEC;
			return APITOKEN_RATE_LIMITED;
		}
		SpinLockAcquire(&limit->mutex);
		if (quota.read_at != 0 && now < quota.read_at + MINUTE_NS && !is_current(&limit->quota, &quota, now))
		{
			if (limit->quota.period == quota.period && limit->quota.since == quota.since)
				quota.used = Max(quota.used, limit->quota.used);
			limit->quota = quota;
		}
		counted = record->quota == 0 || is_current(&limit->quota, &quota, now);
		if (counted)
			count_use(limit, record, interval, cost, count, now, &outcome);
		SpinLockRelease(&limit->mutex);
		if (lock != NULL)
			LWLockRelease(lock);
		if (counted)
			break;
		quota.read_at = monotonic_time();
		quota.used = apitoken_accepted_uses(&record->id, quota.since, today);
	}

	describe_allowance(record, &outcome, interval, cost, at, allowance);
	if (!outcome.within_quota)
		return APITOKEN_QUOTA_EXCEEDED;
	return outcome.within_rate ? APITOKEN_VALID : APITOKEN_RATE_LIMITED;
}

/* Take back a use that was counted against a quota but cannot be recorded. */
void
apitoken_uncount_use(const ApitokenRecord *record, int32 cost, TimestampTz at, ApitokenAllowance *allowance)
{
	DateADT		since = apitoken_first_day_of(record->quota_period, apitoken_day_of(at));
	ApitokenLimitKey key = limit_key(&record->id);
	LWLock	   *lock;
	ApitokenLimit *limit = apitoken_map_entry(apitoken_limit_map, &key, NULL, &lock);

	allowance->remaining += cost;
	allowance->retry_after = USECS_PER_SEC;
	if (limit == NULL)
		return;
	SpinLockAcquire(&limit->mutex);
	if (limit->quota.period == record->quota_period && limit->quota.since == since)
		limit->quota.used = Max(limit->quota.used - cost, 0);
	SpinLockRelease(&limit->mutex);
	LWLockRelease(lock);
}

static bool
limit_expired(void *entry, void *now)
{
	ApitokenLimit *limit = entry;
	uint64		tat;
	uint64		last;

	SpinLockAcquire(&limit->mutex);
	tat = limit->tat;
	last = Max(limit->quota.read_at, limit->quota_used_at);
	SpinLockRelease(&limit->mutex);
	return tat <= *(uint64 *) now && (last == 0 || last + MINUTE_NS < *(uint64 *) now);
}

/*
 * Remove limits whose tat has passed, and whose uses are recorded.  Such an entry
 * means the same as no entry.
 */
void
apitoken_remove_expired_limits(void)
{
	uint64		now = monotonic_time();

	apitoken_map_remove(apitoken_limit_map, limit_expired, &now);
}
