/*
 * shared.c
 *		Memory that all sessions share; with shared_preload_libraries only.
 *
 * What is there
 *
 *	- two maps, from a token to its use that is not written yet (usage.c), and
 *	  from a token to the state of its rate limit (limit.c);
 *	- what is known of each database that has tokens in use (flush_state.c);
 *	- counters since the server started (stats.c).
 *
 * All of it has a fixed size, given by apitoken.usage_slots.  What does not
 * fit is dropped and counted as dropped; nothing ever waits for room.
 *
 * Locking
 *
 * A map is APITOKEN_PARTITIONS hash tables of the server's, each with an
 * LWLock.  A key belongs to one partition, by the high bits of its hash.
 *
 *	- Shared, the lock keeps entries where they are: it is what a verification
 *	  takes whose token has an entry, and whoever looks at all entries in turn.
 *	  Under it an entry's counters are changed by atomic operations, and what
 *	  does not fit into one of these under the entry's own spinlock.
 *	- Exclusive, it is needed to add an entry or to remove some.
 *
 * A process holds one of these locks at a time, for as long as it takes to
 * look at the entries of one partition at most.  Under it nothing allocates
 * memory, reads a catalog, raises, or waits for anything but an entry's
 * spinlock, and under that there are but a few assignments.
 *
 * The lock on the databases is taken alone, too.  The counters are atomic, in
 * stripes, of which a process always uses the same.
 *
 * In the postmaster the locks are taken before the first process is there and
 * after the last one is gone, when nobody can be in the way.
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
	Size		key_size;
	Size		entry_size;
	HTAB	   *partitions[APITOKEN_PARTITIONS];
	LWLockPadded *locks;		/* one for each partition */
};

static ApitokenMap usage_map = {
	.name = "apitoken usage",
	.key_size = sizeof(ApitokenUsageKey),
	.entry_size = sizeof(ApitokenUsage)
};
static ApitokenMap limit_map = {
	.name = "apitoken limits",
	.key_size = sizeof(ApitokenLimitKey),
	.entry_size = sizeof(ApitokenLimit)
};

ApitokenMap *const apitoken_usage_map = &usage_map;
ApitokenMap *const apitoken_limit_map = &limit_map;

HTAB	   *apitoken_flush_states = NULL;
LWLock	   *apitoken_flush_states_lock = NULL;

ApitokenShared *apitoken_shared = NULL;

static shmem_request_hook_type previous_request = NULL;
static shmem_startup_hook_type previous_startup = NULL;

static int
slots_in_partition(void)
{
	return (apitoken_usage_slots + APITOKEN_PARTITIONS - 1) / APITOKEN_PARTITIONS;
}

static Size
map_size(const ApitokenMap *map)
{
	return mul_size(APITOKEN_PARTITIONS, hash_estimate_size(slots_in_partition(), map->entry_size));
}

static void
request_memory(void)
{
	if (previous_request)
		previous_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(ApitokenShared)));
	RequestAddinShmemSpace(map_size(&usage_map));
	RequestAddinShmemSpace(map_size(&limit_map));
	RequestAddinShmemSpace(hash_estimate_size(APITOKEN_DATABASES_MAX, sizeof(ApitokenFlushState)));
	RequestNamedLWLockTranche(TRANCHE, 2 * APITOKEN_PARTITIONS + 1);
}

/* All entries of a table are there from the start: it cannot grow. */
static HTAB *
make_table(const char *name, int slots, Size key_size, Size entry_size)
{
	HASHCTL		control = {0};

	control.keysize = key_size;
	control.entrysize = entry_size;
	return compat_shared_hash(name, slots, &control, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

static void
make_map(ApitokenMap *map, LWLockPadded *locks)
{
	map->locks = locks;
	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
		map->partitions[i] = make_table(psprintf("%s %d", map->name, i), slots_in_partition(),
										map->key_size, map->entry_size);
}

static void
set_up_memory(void)
{
	LWLockPadded *locks;
	bool		found;

	if (previous_startup)
		previous_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	apitoken_shared = ShmemInitStruct("apitoken", sizeof(ApitokenShared), &found);
	locks = GetNamedLWLockTranche(TRANCHE);
	make_map(&usage_map, locks);
	make_map(&limit_map, locks + APITOKEN_PARTITIONS);
	apitoken_flush_states = make_table("apitoken databases", APITOKEN_DATABASES_MAX, sizeof(Oid), sizeof(ApitokenFlushState));
	apitoken_flush_states_lock = &locks[2 * APITOKEN_PARTITIONS].lock;
	if (!found)
	{
		memset(apitoken_shared, 0, sizeof(ApitokenShared));
		apitoken_shared->started_at = GetCurrentTimestamp();
		SpinLockInit(&apitoken_shared->mutex);
		pg_atomic_init_u32(&apitoken_shared->hasten, 0);
		pg_atomic_init_u64(&apitoken_shared->tickets, 0);
		pg_atomic_init_u32(&apitoken_shared->usage_file, 0);
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
	previous_request = shmem_request_hook;
	shmem_request_hook = request_memory;
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = set_up_memory;
}

/*
 * The entry of a key, with its partition's lock in `lock`, to be released by
 * the caller.  An entry that is not there yet is added, and `initialize` is
 * called for it.  NULL, and no lock: there is no room.
 */
void *
apitoken_map_entry(ApitokenMap *map, const void *key, void (*initialize) (void *entry), LWLock **lock)
{
	/* the low bits are what the partition's own table goes by */
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

	LWLockAcquire(*lock, LW_EXCLUSIVE);
	entry = hash_search_with_hash_value(table, key, hash, HASH_ENTER_NULL, &found);
	if (entry == NULL)
		LWLockRelease(*lock);
	else if (!found)
		initialize(entry);
	return entry;
}

/* Show each entry to `visit`, until it says false.  No entry is added or removed meanwhile where it looks. */
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

/* Remove the entries that `spent` says true of.  It looks first with the lock that disturbs nobody. */
void
apitoken_map_remove(ApitokenMap *map, bool (*spent) (void *entry, void *arg), void *arg)
{
	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
	{
		for (int look = 0; look < 2; look++)
		{
			HASH_SEQ_STATUS status;
			void	   *entry;
			int			count = 0;

			LWLockAcquire(&map->locks[i].lock, look == 0 ? LW_SHARED : LW_EXCLUSIVE);
			hash_seq_init(&status, map->partitions[i]);
			while ((entry = hash_seq_search(&status)) != NULL)
			{
				if (!spent(entry, arg))
					continue;
				count++;
				if (look > 0)
					/* the key is where the entry begins; the one just seen may go */
					hash_search(map->partitions[i], entry, HASH_REMOVE, NULL);
			}
			LWLockRelease(&map->locks[i].lock);
			if (count == 0)
				break;
		}
	}
}

/* How many entries there are; about, while others add and remove some. */
int64
apitoken_map_entries(ApitokenMap *map)
{
	int64		count = 0;

	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
		count += hash_get_num_entries(map->partitions[i]);
	return count;
}

/* Count something that happened. */
void
apitoken_count(ApitokenCounter counter, uint64 by)
{
	if (apitoken_shared != NULL)
		pg_atomic_fetch_add_u64(&apitoken_shared->stripes[MyProcPid % APITOKEN_PARTITIONS].counters[counter], by);
}

uint64
apitoken_counted(ApitokenCounter counter)
{
	uint64		sum = 0;

	for (int i = 0; i < APITOKEN_PARTITIONS; i++)
		sum += pg_atomic_read_u64(&apitoken_shared->stripes[i].counters[counter]);
	return sum;
}

/*
 * Memory is full: what can be written should be, now.  Only the first to say
 * so wakes the launcher, which has then not yet looked.
 */
void
apitoken_hasten(void)
{
	Latch	   *launcher;

	if (pg_atomic_exchange_u32(&apitoken_shared->hasten, 1) != 0)
		return;
	SpinLockAcquire(&apitoken_shared->mutex);
	launcher = apitoken_shared->launcher;
	SpinLockRelease(&apitoken_shared->mutex);
	if (launcher != NULL)
		SetLatch(launcher);
}
