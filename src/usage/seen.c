/*
 * seen.c
 *		Record in which organizations personal tokens act.
 *
 * A personal token acts in an organization when verify() accepts it there, or when
 * it is allowed a permission there.  This is recorded in shared memory at once, as
 * usage is (usage.c): also in a READ ONLY transaction, and even if the transaction
 * is rolled back later.  A flush writes it to personal_token_use.  Without shared
 * memory it is not recorded.
 *
 * There is one entry for each token and organization.  When a flush takes it, its
 * time is set to zero, and the launcher removes it at the end of a round.  The
 * entries have a map of their own, so they never take the room of usage, on which
 * quotas depend.  If there is no room, the use is counted as dropped, and the
 * launcher is woken.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "usage/usage.h"

static void
init_seen(void *entry)
{
	pg_atomic_init_u64(&((ApitokenSeen *) entry)->at, 0);
}

/* Set the time of an entry, unless it has a later one.  Returns false if there is no room. */
static bool
add_seen(const ApitokenSeenRow *row)
{
	LWLock	   *lock;
	ApitokenSeen *seen = apitoken_map_entry(apitoken_seen_map, &row->key, init_seen, &lock);
	uint64		at;

	if (seen == NULL)
	{
		apitoken_count(APITOKEN_DROPPED, 1);
		return false;
	}
	at = pg_atomic_read_u64(&seen->at);
	while ((TimestampTz) at < row->at && !pg_atomic_compare_exchange_u64(&seen->at, &at, row->at))
		;
	LWLockRelease(lock);
	return true;
}

/* Record that a personal token acts in an organization, whose id is valid. */
void
apitoken_record_seen(const pg_uuid_t *token_id, const char *organization_id, TimestampTz at)
{
	ApitokenSeenRow row;

	if (apitoken_shared == NULL)
		return;
	memset(&row, 0, sizeof(row));
	row.key.database = MyDatabaseId;
	row.key.token_id = *token_id;
	/* not strlcpy(), which only some C libraries have */
	snprintf(row.key.organization_id, sizeof(row.key.organization_id), "%s", organization_id);
	row.at = at;
	if (!add_seen(&row))
		apitoken_wake_launcher();
}

/* Arguments and results of take_entry(). */
typedef struct TakeState
{
	Oid			database;
	ApitokenSeenRow *rows;
	int			max;
	int			count;
} TakeState;

static bool
take_entry(void *entry, void *arg)
{
	ApitokenSeen *seen = entry;
	TakeState  *state = arg;
	ApitokenSeenRow *row = &state->rows[state->count];

	if (seen->key.database != state->database)
		return true;
	row->at = pg_atomic_exchange_u64(&seen->at, 0);
	if (row->at == 0)
		return true;
	row->key = seen->key;
	state->count++;
	return state->count < state->max;
}

/* Take what is recorded of a database, at most `max` rows (one or more).  Returns their number. */
int
apitoken_take_seen(Oid database, ApitokenSeenRow *rows, int max)
{
	TakeState	state = {database, rows, max, 0};

	apitoken_map_each(apitoken_seen_map, take_entry, &state);
	return state.count;
}

/* Return what was taken but not written. */
void
apitoken_return_seen(const ApitokenSeenRow *rows, int count)
{
	for (int i = 0; i < count; i++)
		(void) add_seen(&rows[i]);
}

static bool
is_removable(void *entry, void *arg)
{
	return pg_atomic_read_u64(&((ApitokenSeen *) entry)->at) == 0;
}

/* Make room by removing the entries that were taken. */
void
apitoken_remove_written_seen(void)
{
	apitoken_map_remove(apitoken_seen_map, is_removable, NULL);
}
