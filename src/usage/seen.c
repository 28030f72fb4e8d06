/*
 * seen.c
 *		Record where tokens are seen: in which organizations personal tokens act,
 *		and from which networks tokens are used.
 *
 * A personal token acts in an organization when verify() accepts it there, or when
 * it is allowed a permission there.  The network of an accepted use is recorded only
 * if the owner of the token wants to be told of new ones (`notify`).  Both are
 * recorded in shared memory at once, as usage is (usage.c): also in a READ ONLY
 * transaction, and even if the transaction is rolled back later.  A flush writes
 * them to personal_token_use and token_networks.  Without shared memory they are not
 * recorded.
 *
 * The fast digest of an imported token whose own one is slow is recorded in the same
 * way: the token is "seen with" it.
 *
 * There is one entry for each token and place.  When a flush takes it, its time is
 * set to zero, and the launcher removes it at the end of a round.  Each kind of
 * place has a map of its own, so none takes the room of another, or that of usage, on
 * which quotas depend.  If there is no room, the place is counted as dropped, and
 * the launcher is woken.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"

#include "usage/usage.h"

static const Size key_sizes[APITOKEN_PLACES] = {
	[APITOKEN_IN_ORGANIZATION] = APITOKEN_SEEN_KEY_SIZE(organization_id),
	[APITOKEN_IN_NETWORK] = APITOKEN_SEEN_KEY_SIZE(network),
	[APITOKEN_WITH_DIGEST] = APITOKEN_SEEN_KEY_SIZE(digest)
};

/* The last time in an entry; 0 if a flush has taken it. */
static pg_atomic_uint64 *
time_of(ApitokenPlace place, void *entry)
{
	return (pg_atomic_uint64 *) ((char *) entry + MAXALIGN(key_sizes[place]));
}

static void
init_in_organization(void *entry)
{
	pg_atomic_init_u64(time_of(APITOKEN_IN_ORGANIZATION, entry), 0);
}

static void
init_in_network(void *entry)
{
	pg_atomic_init_u64(time_of(APITOKEN_IN_NETWORK, entry), 0);
}

static void
init_with_digest(void *entry)
{
	pg_atomic_init_u64(time_of(APITOKEN_WITH_DIGEST, entry), 0);
}

static void (*const initialize[APITOKEN_PLACES]) (void *entry) = {
	[APITOKEN_IN_ORGANIZATION] = init_in_organization,
	[APITOKEN_IN_NETWORK] = init_in_network,
	[APITOKEN_WITH_DIGEST] = init_with_digest
};

/* Set the time of an entry, unless it has a later one.  Returns false if there is no room. */
static bool
add_seen(const ApitokenSeenRow *row)
{
	LWLock	   *lock;
	void	   *entry = apitoken_map_entry(apitoken_seen_maps[row->place], &row->key,
										   initialize[row->place], &lock);
	pg_atomic_uint64 *last;
	uint64		at;

	if (entry == NULL)
	{
		/* without a fast digest, a use takes longer, but none is lost */
		if (row->place != APITOKEN_WITH_DIGEST)
			apitoken_count(APITOKEN_DROPPED, 1);
		return false;
	}
	last = time_of(row->place, entry);
	at = pg_atomic_read_u64(last);
	while ((TimestampTz) at < row->at && !pg_atomic_compare_exchange_u64(last, &at, row->at))
		;
	LWLockRelease(lock);
	return true;
}

/* A row without its place. */
static void
init_row(ApitokenSeenRow *row, ApitokenPlace place, const pg_uuid_t *token_id, TimestampTz at)
{
	memset(row, 0, sizeof(*row));
	row->place = place;
	row->key.database = MyDatabaseId;
	row->key.token_id = *token_id;
	row->at = at;
}

/* Record that a personal token acts in an organization, whose id is valid. */
void
apitoken_record_seen(const pg_uuid_t *token_id, const char *organization_id, TimestampTz at)
{
	ApitokenSeenRow row;

	if (apitoken_shared == NULL)
		return;
	init_row(&row, APITOKEN_IN_ORGANIZATION, token_id, at);
	/* not strlcpy(), which only some C libraries have */
	snprintf(row.key.in.organization_id, sizeof(row.key.in.organization_id), "%s", organization_id);
	if (!add_seen(&row))
		apitoken_wake_launcher();
}

/* Record that a token is used from the network of an address; an unknown one is in none. */
void
apitoken_record_network(const pg_uuid_t *token_id, const inet *address, TimestampTz at)
{
	ApitokenSeenRow row;

	if (apitoken_shared == NULL || address == NULL)
		return;
	init_row(&row, APITOKEN_IN_NETWORK, token_id, at);
	apitoken_network_of(address, &row.key.in.network);
	if (!add_seen(&row))
		apitoken_wake_launcher();
}

/* ---- fast digests of imported tokens ---- */

static Datum
array_of(Datum *values, int count, Oid type, int16 length, bool byval, char align)
{
	return PointerGetDatum(construct_array(values, count, type, length, byval, align));
}

/* Write fast digests to the table. */
void
apitoken_write_digests(const ApitokenSeenRow *rows, int count)
{
	Datum	   *columns[3];
	Datum		values[3];

	for (int i = 0; i < lengthof(columns); i++)
		columns[i] = palloc(count * sizeof(Datum));
	for (int i = 0; i < count; i++)
	{
		columns[0][i] = UUIDPGetDatum(&rows[i].key.token_id);
		columns[1][i] = Int16GetDatum(rows[i].key.in.digest.scheme);
		columns[2][i] = apitoken_bytea_datum(rows[i].key.in.digest.digest, APITOKEN_DIGEST_LENGTH);
	}
	values[0] = array_of(columns[0], count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
	values[1] = array_of(columns[1], count, INT2OID, sizeof(int16), true, TYPALIGN_SHORT);
	values[2] = array_of(columns[2], count, BYTEAOID, -1, false, TYPALIGN_INT);
	apitoken_execute(APITOKEN_WRITE_FAST_DIGESTS, values, NULL);
}

/*
 * Record the fast digest of a token whose own one is slow, after its text was found
 * to be right.  With shared memory a flush writes it.  On a standby it stays there,
 * and serves as well.  Otherwise the caller's transaction writes it, under the
 * conditions under which it may write usage (usage.c).
 */
void
apitoken_record_digest(const pg_uuid_t *token_id, const ApitokenFastDigest *digest, TimestampTz at, bool may_write)
{
	ApitokenSeenRow row;

	init_row(&row, APITOKEN_WITH_DIGEST, token_id, at);
	row.key.in.digest = *digest;
	if (apitoken_shared != NULL)
	{
		(void) add_seen(&row);
		return;
	}
	if (may_write && !XactReadOnly && !IsInParallelMode() && !RecoveryInProgress() &&
		XactIsoLevel <= XACT_READ_COMMITTED && apitoken_try_lock_table(APITOKEN_FOREIGN_DIGESTS, RowExclusiveLock))
		apitoken_write_digests(&row, 1);
}

/* Is this the fast digest of the token, which no flush has written yet? */
bool
apitoken_digest_is_recorded(const pg_uuid_t *token_id, const ApitokenFastDigest *digest)
{
	ApitokenSeenRow row;
	LWLock	   *lock;
	void	   *entry;
	bool		recorded;

	if (apitoken_shared == NULL)
		return false;
	init_row(&row, APITOKEN_WITH_DIGEST, token_id, 0);
	row.key.in.digest = *digest;
	entry = apitoken_map_entry(apitoken_seen_maps[APITOKEN_WITH_DIGEST], &row.key, NULL, &lock);
	if (entry == NULL)
		return false;
	recorded = pg_atomic_read_u64(time_of(APITOKEN_WITH_DIGEST, entry)) != 0;
	LWLockRelease(lock);
	return recorded;
}

/* What an entry has recorded, which is taken from it if `take` is true.  Returns false if nothing. */
static bool
read_entry(ApitokenPlace place, void *entry, bool take, ApitokenSeenRow *row)
{
	pg_atomic_uint64 *last = time_of(place, entry);
	uint64		at = take ? pg_atomic_exchange_u64(last, 0) : pg_atomic_read_u64(last);

	if (at == 0)
		return false;
	memset(row, 0, sizeof(*row));
	row->place = place;
	memcpy(&row->key, entry, key_sizes[place]);
	row->at = at;
	return true;
}

/* Arguments and results of take_entry(). */
typedef struct TakeState
{
	ApitokenPlace place;
	Oid			database;
	ApitokenSeenRow *rows;
	int			max;
	int			count;
} TakeState;

static bool
take_entry(void *entry, void *arg)
{
	TakeState  *state = arg;

	/* an entry begins with its key */
	if (((ApitokenSeenKey *) entry)->database == state->database &&
		read_entry(state->place, entry, true, &state->rows[state->count]))
		state->count++;
	return state->count < state->max;
}

/* Take what is recorded of a database, at most `max` rows (one or more).  Returns their number. */
int
apitoken_take_seen(ApitokenPlace place, Oid database, ApitokenSeenRow *rows, int max)
{
	TakeState	state = {place, database, rows, max, 0};

	apitoken_map_each(apitoken_seen_maps[place], take_entry, &state);
	return state.count;
}

/* Return what was taken but not written. */
void
apitoken_return_seen(const ApitokenSeenRow *rows, int count)
{
	for (int i = 0; i < count; i++)
		(void) add_seen(&rows[i]);
}

/* Arguments of visit_entry(). */
typedef struct VisitState
{
	ApitokenPlace place;
	bool		(*visit) (const ApitokenSeenRow *row, void *arg);
	void	   *arg;
} VisitState;

static bool
visit_entry(void *entry, void *arg)
{
	VisitState *state = arg;
	ApitokenSeenRow row;

	return !read_entry(state->place, entry, false, &row) || state->visit(&row, state->arg);
}

/* Call `visit` for all that is recorded; it ends with the places of a kind when that returns false. */
void
apitoken_each_seen(bool (*visit) (const ApitokenSeenRow *row, void *arg), void *arg)
{
	for (int place = 0; place < APITOKEN_PLACES; place++)
	{
		VisitState	state = {place, visit, arg};

		apitoken_map_each(apitoken_seen_maps[place], visit_entry, &state);
	}
}

/* Arguments of forget_entry(). */
typedef struct ForgetState
{
	ApitokenPlace place;
	const ApitokenForgottenTokens *tokens;
} ForgetState;

static bool
forget_entry(void *entry, void *arg)
{
	ForgetState *state = arg;
	ApitokenSeenKey *key = entry;

	if (apitoken_is_forgotten(state->tokens, key->database, &key->token_id))
		pg_atomic_write_u64(time_of(state->place, entry), 0);
	return true;
}

/* Forget where these tokens were seen.  This cannot fail. */
void
apitoken_forget_seen(const ApitokenForgottenTokens *tokens)
{
	for (int place = 0; place < APITOKEN_PLACES; place++)
	{
		ForgetState state = {place, tokens};

		apitoken_map_each(apitoken_seen_maps[place], forget_entry, &state);
	}
}

static bool
is_removable(void *entry, void *arg)
{
	ApitokenPlace *place = arg;

	return pg_atomic_read_u64(time_of(*place, entry)) == 0;
}

/* Make room by removing the entries that were taken. */
void
apitoken_remove_written_seen(void)
{
	for (ApitokenPlace place = 0; place < APITOKEN_PLACES; place++)
		apitoken_map_remove(apitoken_seen_maps[place], is_removable, &place);
}
