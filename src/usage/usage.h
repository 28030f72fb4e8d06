/*
 * usage.h
 *		When tokens are used: recorded in shared memory, limited, counted, and
 *		written to the tables by background workers.
 */
#ifndef APITOKEN_USAGE_H
#define APITOKEN_USAGE_H

#include "tables/tables.h"

#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"
#include "utils/date.h"
#include "utils/hsearch.h"

/* ----- shared.c: memory that all sessions share, with shared_preload_libraries ----- */

#define APITOKEN_PARTITIONS 16

/* Databases of which anything is known at a time. */
#define APITOKEN_DATABASES_MAX 1024

/* What is counted: verifications by verdict, then these. */
typedef enum ApitokenCounter
{
	APITOKEN_FLUSHES = APITOKEN_VERDICTS,
	APITOKEN_DROPPED,
	APITOKEN_MASKED,
	APITOKEN_COUNTERS
} ApitokenCounter;

/* A process counts in one stripe, so that processes seldom meet in a cache line. */
typedef union ApitokenStripe
{
	pg_atomic_uint64 counters[APITOKEN_COUNTERS];
	char		padding[PG_CACHE_LINE_SIZE];
} ApitokenStripe;

typedef struct ApitokenShared
{
	TimestampTz started_at;		/* never changes */
	ApitokenStripe stripes[APITOKEN_PARTITIONS];
	pg_atomic_uint32 hasten;	/* 1: the launcher has been asked to look at once */
	pg_atomic_uint64 tickets;	/* of flushes begun */
	pg_atomic_uint32 usage_file;	/* 1: what was saved is here, and its file is there still */
	slock_t		mutex;			/* protects the next */
	Latch	   *launcher;		/* NULL: it is not there */
} ApitokenShared;

/* The use of a token in a database on a day (UTC, counted as type date does). */
typedef struct ApitokenUsageKey
{
	Oid			database;
	DateADT		day;
	pg_uuid_t	token_id;
} ApitokenUsageKey;

/* Who used it last and when; its family is 0 if the address is unknown. */
typedef struct ApitokenLastUse
{
	TimestampTz at;				/* DT_NOBEGIN: only refused */
	inet_struct from;
} ApitokenLastUse;

typedef struct ApitokenUsage
{
	ApitokenUsageKey key;		/* never changes */
	pg_atomic_uint64 accepted;	/* not yet taken for writing */
	pg_atomic_uint64 refused;	/* the same */
	uint32		left_by;		/* the last flush that left it for a later one; theirs alone */
	slock_t		mutex;			/* protects the next */
	ApitokenLastUse last;
} ApitokenUsage;

typedef struct ApitokenLimitKey
{
	Oid			database;
	pg_uuid_t	token_id;
} ApitokenLimitKey;

typedef struct ApitokenLimit
{
	ApitokenLimitKey key;		/* never changes */
	pg_atomic_uint64 free_at;	/* nanoseconds on the monotonic clock */
} ApitokenLimit;

#define APITOKEN_PROBLEM_MAX 256

/* How the last attempt to write a database's usage ended. */
typedef enum ApitokenOutcome
{
	APITOKEN_FLUSH_DONE,		/* nothing is left */
	APITOKEN_FLUSH_UNFINISHED,	/* its time was up */
	APITOKEN_FLUSH_MISSING,		/* the extension is not there */
	APITOKEN_FLUSH_FAILED
} ApitokenOutcome;

/* What is known of a database; all protected by apitoken_flush_states_lock. */
typedef struct ApitokenFlushState
{
	Oid			database;
	int			failures;		/* in a row */
	int			missing;		/* of these the last, for want of the extension */
	TimestampTz retry_at;		/* not before then; 0: any time */
	TimestampTz maintained_at;	/* 0: not since it is known */
	pg_uuid_t	usage_seen;		/* how far the maintenance under way has looked */
	uint64		done_ticket;	/* the last that left nothing to write */
	uint64		last_ticket;	/* the highest that ended, and how: */
	ApitokenOutcome outcome;
	TimestampTz flushed_at;		/* 0: never */
	TimestampTz failed_at;		/* 0: never */
	char		problem[APITOKEN_PROBLEM_MAX];	/* of the last failure */
} ApitokenFlushState;

typedef struct ApitokenMap ApitokenMap;

extern ApitokenShared *apitoken_shared; /* NULL without shared preload */
extern ApitokenMap *const apitoken_usage_map;
extern ApitokenMap *const apitoken_limit_map;
extern HTAB *apitoken_flush_states;
extern LWLock *apitoken_flush_states_lock;

extern void apitoken_shared_init(void);
extern void *apitoken_map_entry(ApitokenMap *map, const void *key,
								void (*initialize) (void *entry), LWLock **lock);
extern void apitoken_map_each(ApitokenMap *map, bool (*visit) (void *entry, void *arg), void *arg);
extern void apitoken_map_remove(ApitokenMap *map, bool (*spent) (void *entry, void *arg), void *arg);
extern int64 apitoken_map_entries(ApitokenMap *map);
extern void apitoken_count(ApitokenCounter counter, uint64 by);
extern uint64 apitoken_counted(ApitokenCounter counter);
extern void apitoken_hasten(void);

/* ----- usage.c: when tokens are used ----- */

/* A piece of usage on its way from memory to the tables. */
typedef struct ApitokenUsageRow
{
	ApitokenUsageKey key;
	uint64		accepted;
	uint64		refused;
	ApitokenLastUse last;
} ApitokenUsageRow;

extern void apitoken_record_use(ApitokenVerdict verdict, const pg_uuid_t *id, TimestampTz at, inet *address,
								bool may_write);
extern int	apitoken_take_usage(Oid database, uint32 flush, ApitokenUsageRow *rows, int max);
extern void apitoken_give_back_usage(const ApitokenUsageRow *rows, int count, uint32 flush);
extern int	apitoken_databases_used(Oid *databases, int max);
extern void apitoken_forget_written(void);

/* ----- limit.c: rate limits ----- */

extern bool apitoken_within_limit(const pg_uuid_t *id, int32 per_minute, int64 *retry_after);
extern void apitoken_forget_limits(void);

/* ----- flush_state.c: what is known of each database with tokens in use ----- */

/* The longest time until a flush that failed is tried again, in milliseconds. */
#define APITOKEN_RETRY_MAX (5 * SECS_PER_MINUTE * 1000)

extern bool apitoken_flush_state(Oid database, ApitokenFlushState *state);
extern int	apitoken_flush_state_databases(Oid *databases, int max);
extern bool apitoken_flush_ended(Oid database, uint64 ticket, ApitokenOutcome outcome,
									const char *problem);
extern void apitoken_maintenance_ended(Oid database, TimestampTz at, const pg_uuid_t *usage_seen);
extern void apitoken_forget_flush_state(Oid database);

/* ----- usage_file.c: what is recorded survives a restart ----- */

extern void apitoken_remove_usage_file(void);
extern void apitoken_usage_file_init(void);

/* ----- flush.c: recorded usage is written ----- */

/* What a worker is told, in its bgw_extra; its bgw_main_arg is the database. */
typedef struct ApitokenJob
{
	uint64		ticket;
	bool		maintain;
} ApitokenJob;

extern bool apitoken_in_transaction(bool (*work) (void *arg), void *arg, TimestampTz until,
									char problem[APITOKEN_PROBLEM_MAX]);
extern ApitokenOutcome apitoken_flush(uint64 ticket, TimestampTz until);
extern uint64 apitoken_start_worker(Oid database, bool maintenance, BackgroundWorkerHandle **handle);
extern void apitoken_flush_now(void);

/* ----- maintenance.c: idle tokens, old digests, retention ----- */

/* One run, zeroed before its first batch: what was done, and how far it got. */
typedef struct ApitokenMaintenance
{
	uint64		tokens_revoked;
	uint64		digests_cleared;
	uint64		events_removed;
	uint64		tokens_removed;
	uint64		usage_removed;
	pg_uuid_t	usage_seen;		/* usage of tokens up to this id was looked through */
	bool		usage_done;		/* all of it was */
} ApitokenMaintenance;

extern bool apitoken_maintain(int batch, ApitokenMaintenance *done);

/* ----- worker.c: the launcher and its workers ----- */

extern void apitoken_worker_init(void);

#endif							/* APITOKEN_USAGE_H */
