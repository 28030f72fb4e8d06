/*
 * shared.c
 *		The extension's shared memory.
 *
 * It exists only if the library is in shared_preload_libraries.
 *
 * Contents
 *
 *	- four maps: from a token to its usage that is not written yet (usage.c), from a
 *	  token to the state of its rate limit and quota (limit.c), from a personal
 *	  token and an organization, and from a token and a network, to the time of its
 *	  last use there (seen.c);
 *	- the state of each database that has usage (flush_state.c);
 *	- counters since the start of the server (stats.c).
 *
 * The sizes are fixed; apitoken.usage_slots sets the size of the maps.  If a use
 * does not fit, it is dropped and counted as dropped.  Nothing ever waits for
 * free space.
 *
 * Locking
 *
 * A map consists of APITOKEN_PARTITIONS shared hash tables (dynahash), each with
 * an LWLock.  The high bits of a key's hash value give its partition.
 *
 *	- The shared lock prevents entries from being added or removed.  A
 *	  verification takes it if the token already has an entry, and so does a scan
 *	  of all entries.  Processes with the shared lock change the counters of an
 *	  entry by atomic operations, and other members under the entry's spinlock.
 *	- The exclusive lock is required to add or remove entries.
 *
 * A process holds only one of these locks at a time, at most for a scan of one
 * partition.  While it holds the lock, it does not allocate memory, read a catalog,
 * raise an error, or wait for anything except an entry's spinlock.  A spinlock is
 * held for a few assignments only.
 *
 * A process that takes the lock on the database states holds no other of these
 * locks.  The counters are atomic and divided into stripes; a process always uses
 * the same stripe.
 *
 * The postmaster takes these locks before it starts the first process, and after
 * the last one has ended, so it never waits for them.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "usage/usage.h"

#define TRANCHE "apitoken"

struct ApitokenMap
{
	const char *name;
	int			share;			/* it has room for one entry for so many slots */
	Size		key_size;
	Size		entry_size;
	HTAB	   *partitions[APITOKEN_PARTITIONS];
	LWLockPadded *locks;		/* one for each partition */
};

static ApitokenMap usage_map = {
	.name = "apitoken usage",
	.share = 1,
	.key_size = sizeof(ApitokenUsageKey),
	.entry_size = sizeof(ApitokenUsage)
};
static ApitokenMap limit_map = {
	.name = "apitoken limits",
	.share = 1,
	.key_size = sizeof(ApitokenLimitKey),
	.entry_size = sizeof(ApitokenLimit)
};

/* Its entries are long, and personal tokens that act in organizations are few. */
static ApitokenMap organization_map = {
	.name = "apitoken organizations",
	.share = 16,
	.key_size = APITOKEN_SEEN_KEY_SIZE(organization_id),
	.entry_size = APITOKEN_SEEN_ENTRY_SIZE(organization_id)
};
static ApitokenMap network_map = {
	.name = "apitoken networks",
	.share = 1,
	.key_size = APITOKEN_SEEN_KEY_SIZE(network),
	.entry_size = APITOKEN_SEEN_ENTRY_SIZE(network)
};

/* A token needs an entry once in its life; on a standby, for as long as the server runs. */
static ApitokenMap digest_map = {
	.name = "apitoken digests",
	.share = 16,
	.key_size = APITOKEN_SEEN_KEY_SIZE(digest),
	.entry_size = APITOKEN_SEEN_ENTRY_SIZE(digest)
};

static ApitokenMap *const maps[] = {&usage_map, &limit_map, &organization_map, &network_map, &digest_map};

ApitokenMap *const apitoken_usage_map = &usage_map;
ApitokenMap *const apitoken_limit_map = &limit_map;
ApitokenMap *const apitoken_seen_maps[APITOKEN_PLACES] = {
	[APITOKEN_IN_ORGANIZATION] = &organization_map,
	[APITOKEN_IN_NETWORK] = &network_map,
	[APITOKEN_WITH_DIGEST] = &digest_map
};

HTAB	   *apitoken_flush_states = NULL;
LWLock	   *apitoken_flush_states_lock = NULL;

ApitokenShared *apitoken_shared = NULL;

static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;

static int
slots_in_partition(const ApitokenMap *map)
{
	int			partitions = APITOKEN_PARTITIONS * map->share;

	return (apitoken_usage_slots + partitions - 1) / partitions;
}

static Size
map_size(const ApitokenMap *map)
{
	return mul_size(APITOKEN_PARTITIONS, hash_estimate_size(slots_in_partition(map), map->entry_size));
}

static void
request_shmem(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(ApitokenShared)));
	for (int i = 0; i < lengthof(maps); i++)
		RequestAddinShmemSpace(map_size(maps[i]));
	RequestAddinShmemSpace(hash_estimate_size(APITOKEN_DATABASES_MAX, sizeof(ApitokenFlushState)));
	RequestNamedLWLockTranche(TRANCHE, lengthof(maps) * APITOKEN_PARTITIONS + 1);
}

/* Create a hash table whose entries are all allocated at once, so it cannot grow. */
static HTAB *
create_table(const char *name, int slots, Size key_size, Size entry_size)
{
	HASHCTL		control = {0};

	control.keysize = key_size;
	control.entrysize = entry_size;
	return compat_shared_hash(name, slots, &control, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

static void
create_map(ApitokenMap *map, LWLockPadded *locks)
{
	map->locks = locks;
	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
		map->partitions[i] = create_table(psprintf("%s %d", map->name, i), slots_in_partition(map),
										map->key_size, map->entry_size);
}

static void
startup_shmem(void)
{
	LWLockPadded *locks;
	bool		found;

	if (previous_shmem_startup)
		previous_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	apitoken_shared = ShmemInitStruct("apitoken", sizeof(ApitokenShared), &found);
	locks = GetNamedLWLockTranche(TRANCHE);
	for (int i = 0; i < lengthof(maps); i++)
		create_map(maps[i], locks + i * APITOKEN_PARTITIONS);
	apitoken_flush_states = create_table("apitoken databases", APITOKEN_DATABASES_MAX, sizeof(Oid), sizeof(ApitokenFlushState));
	apitoken_flush_states_lock = &locks[lengthof(maps) * APITOKEN_PARTITIONS].lock;
	if (!found)
	{
		memset(apitoken_shared, 0, sizeof(ApitokenShared));
		apitoken_shared->started_at = GetCurrentTimestamp();
		SpinLockInit(&apitoken_shared->mutex);
		pg_atomic_init_u32(&apitoken_shared->wake_requested, 0);
		pg_atomic_init_u64(&apitoken_shared->tickets, 0);
		pg_atomic_init_u64(&apitoken_shared->written, 0);
		pg_atomic_init_u32(&apitoken_shared->first_day, PG_INT32_MAX);
		pg_atomic_init_u32(&apitoken_shared->usage_file, 0);
		for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
			pg_atomic_init_u64(&apitoken_shared->lost_at[loss], 0);
		for (int i = 0; i < APITOKEN_PARTITIONS; i++)
		{
			for (int counter = 0; counter < APITOKEN_COUNTERS; counter++)
				pg_atomic_init_u64(&apitoken_shared->stripes[i].counters[counter], 0);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

void
apitoken_shared_init(void)
{
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

/*
 * Returns the entry of a key, and sets `lock` to its partition's lock, which the
 * caller must release.  If there is no entry, one is added, and `initialize` is
 * called for it; if `initialize` is NULL, none is added.  If there is no entry then,
 * or the partition is full, returns NULL and holds no lock.
 */
void *
apitoken_map_entry(ApitokenMap *map, const void *key, void (*initialize) (void *entry), LWLock **lock)
{
	/* The partition's hash table uses the low bits of the hash value. */
	uint32		hash = get_hash_value(map->partitions[0], key);
	int			partition = hash / (PG_UINT32_MAX / APITOKEN_PARTITIONS + 1);
	HTAB	   *table = map->partitions[partition];
	void	   *entry;
	bool		found;

	*lock = &map->locks[partition].lock;
	LWLockAcquire(*lock, LW_SHARED);
	entry = hash_search_with_hash_value(table, key, hash, HASH_FIND, NULL);
	if (entry != NULL)
		return entry;
	LWLockRelease(*lock);
	if (initialize == NULL)
		return NULL;

	LWLockAcquire(*lock, LW_EXCLUSIVE);
	entry = hash_search_with_hash_value(table, key, hash, HASH_ENTER_NULL, &found);
	if (entry == NULL)
		LWLockRelease(*lock);
	else if (!found)
		initialize(entry);
	return entry;
}

/* Call `visit` for each entry, with the shared lock on its partition, until it returns false. */
void
apitoken_map_each(ApitokenMap *map, bool (*visit) (void *entry, void *arg), void *arg)
{
	bool		more = true;

	for (int i = 0; i < APITOKEN_PARTITIONS && more; i++)
	{
		HASH_SEQ_STATUS status;
		void	   *entry;

		LWLockAcquire(&map->locks[i].lock, LW_SHARED);
		hash_seq_init(&status, map->partitions[i]);
		while (more && (entry = hash_seq_search(&status)) != NULL)
			more = visit(entry, arg);
		if (!more)
			hash_seq_term(&status);
		LWLockRelease(&map->locks[i].lock);
	}
}

/*
 * Remove the entries for which `removable` returns true.  A first pass over each
 * partition takes only the shared lock, and checks whether there are any.
 */
void
apitoken_map_remove(ApitokenMap *map, bool (*removable) (void *entry, void *arg), void *arg)
{
	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
	{
		for (int pass = 0; pass < 2; pass++)
		{
			HASH_SEQ_STATUS status;
			void	   *entry;
			int			count = 0;

			LWLockAcquire(&map->locks[i].lock, pass == 0 ? LW_SHARED : LW_EXCLUSIVE);
			hash_seq_init(&status, map->partitions[i]);
			while ((entry = hash_seq_search(&status)) != NULL)
			{
				if (!removable(entry, arg))
					continue;
				count++;
				if (pass > 0)
					/* An entry begins with its key.  A scan allows removing its current entry. */
					hash_search(map->partitions[i], entry, HASH_REMOVE, NULL);
			}
			LWLockRelease(&map->locks[i].lock);
			if (count == 0)
				break;
		}
	}
}

/* Returns the number of entries.  It is approximate while others add or remove entries. */
int64
apitoken_map_entries(ApitokenMap *map)
{
	int64		count = 0;

	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
		count += hash_get_num_entries(map->partitions[i]);
	return count;
}

/* Add to a counter. */
void
apitoken_count(ApitokenCounter counter, uint64 by)
{
	if (apitoken_shared != NULL)
		pg_atomic_fetch_add_u64(&apitoken_shared->stripes[MyProcPid % APITOKEN_PARTITIONS].counters[counter], by);
}

uint64
apitoken_counter_value(ApitokenCounter counter)
{
	uint64		sum = 0;

	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
		sum += pg_atomic_read_u64(&apitoken_shared->stripes[i].counters[counter]);
	return sum;
}

/*
 * Wake the launcher, so that it makes room at once in shared memory.  This sets
 * its latch only once until the launcher starts its next round.
 */
void
apitoken_wake_launcher(void)
{
	Latch	   *launcher;

	if (pg_atomic_exchange_u32(&apitoken_shared->wake_requested, 1) != 0)
		return;
	SpinLockAcquire(&apitoken_shared->mutex);
	launcher = apitoken_shared->launcher_latch;
	SpinLockRelease(&apitoken_shared->mutex);
	if (launcher != NULL)
		SetLatch(launcher);
}

bool
apitoken_launcher_runs(void)
{
	bool		runs;

	SpinLockAcquire(&apitoken_shared->mutex);
	runs = apitoken_shared->launcher_latch != NULL;
	SpinLockRelease(&apitoken_shared->mutex);
	return runs;
}
