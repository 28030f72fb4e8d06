/*
 * usage.h
 *		Usage of tokens: recorded and limited in shared memory, and written to
 *		the tables by background workers; counters; housekeeping.
 */
#ifndef APITOKEN_USAGE_H
#define APITOKEN_USAGE_H

#include "tables/tables.h"

#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"
#include "utils/hsearch.h"

/* ----- shared.c: shared memory, present only with shared_preload_libraries ----- */

#define APITOKEN_PARTITIONS 16

/* Maximum number of databases with an ApitokenFlushState. */
#define APITOKEN_DATABASES_MAX 1024

/* The counters: first verifications by verdict (ApitokenVerdict), then these. */
typedef enum ApitokenCounter
{
	APITOKEN_FLUSHES = APITOKEN_VERDICTS,
	APITOKEN_DROPPED,
	APITOKEN_MASKED,
	APITOKEN_SENT,
	APITOKEN_COUNTERS
} ApitokenCounter;

/* Each process uses one of the stripes, so that few processes share a cache line. */
typedef union ApitokenStripe
{
	pg_atomic_uint64 counters[APITOKEN_COUNTERS];
	char		padding[PG_CACHE_LINE_SIZE];
} ApitokenStripe;

/* Ways to lose use of tokens: see complete.c. */
typedef enum ApitokenLoss
{
	APITOKEN_LOST_IN_CRASH,
	APITOKEN_LOST_FOR_ROOM,
	APITOKEN_LOST_ON_STANDBY,
	APITOKEN_LOST_ON_SUBSCRIBER,
	APITOKEN_LOST_BEFORE_PROMOTION,
	APITOKEN_LOSSES
} ApitokenLoss;

typedef struct ApitokenShared
{
	TimestampTz started_at;		/* never changes */
	pg_atomic_uint64 lost_at[APITOKEN_LOSSES];	/* when use was last lost; 0 if never */
	ApitokenStripe stripes[APITOKEN_PARTITIONS];
	pg_atomic_uint32 wake_requested;	/* 1 if the launcher was asked to run at once */
	pg_atomic_uint64 tickets;	/* number of flushes started, and the last ticket */
	pg_atomic_uint64 written;	/* number of batches that flushes have committed */
	pg_atomic_uint32 first_day; /* no entry of usage_map is of an earlier day */
	pg_atomic_uint32 usage_file;	/* 1 if the file was loaded and not yet removed */
	slock_t		mutex;			/* protects launcher_latch */
	Latch	   *launcher_latch; /* NULL if the launcher is not running */
} ApitokenShared;

/* A token in a database on a day (in UTC, as a date). */
typedef struct ApitokenUsageKey
{
	Oid			database;
	DateADT		day;
	pg_uuid_t	token_id;
} ApitokenUsageKey;

/*
 * The last accepted use: its time, and the client's address; and the last use of
 * each previous secret, accepted or after its overlap, with the address of the last
 * one after its overlap.  The family of an unknown address is 0.
 */
typedef struct ApitokenLastUse
{
	TimestampTz at;				/* DT_NOBEGIN if all uses were refused */
	TimestampTz previous_at[APITOKEN_PREVIOUS_MAX]; /* 0 if not used */
	int16		reused;			/* bit n: previous_at[n] may be after the overlap; cleared by a flush */
	inet_struct from;
	inet_struct reused_from;	/* only if reused is not 0 */
} ApitokenLastUse;

typedef struct ApitokenUsage
{
	ApitokenUsageKey key;		/* never changes */
	pg_atomic_uint64 accepted;	/* uses not yet taken by a flush */
	pg_atomic_uint32 refused[APITOKEN_VERDICTS];	/* the same, by verdict */
	slock_t		mutex;			/* protects the following, and moving uses between accepted and taken */
	TransactionId taken_by;		/* the transaction of the flush that has taken uses */
	ApitokenLastUse last;
	uint64		taken;			/* accepted uses that a flush has taken and not yet committed, or that are in a batch */
	bool		in_batch;		/* uses are in the batch for another server: see batch.c */
	int16		batch_reused;	/* of the batch, as in ApitokenLastUse; only if in_batch, as the next */
	uint32		batch_refused[APITOKEN_VERDICTS];
} ApitokenUsage;

/*
 * The kinds of places where a token is seen: a personal token in an organization, any
 * token in a network.  An imported token whose own digest is slow is seen with a fast one.
 */
typedef enum ApitokenPlace
{
	APITOKEN_IN_ORGANIZATION,
	APITOKEN_IN_NETWORK,
	APITOKEN_WITH_DIGEST,
	APITOKEN_PLACES
} ApitokenPlace;

/* The digest of a token's text, as that of our own tokens. */
typedef struct ApitokenFastDigest
{
	int16		scheme;
	uint8		digest[APITOKEN_DIGEST_LENGTH];
} ApitokenFastDigest;

/*
 * A token in a place, padded with zeros.  In the map of a kind of place, keys end with
 * the place, and the time of the last use there follows: see seen.c.
 */
typedef struct ApitokenSeenKey
{
	Oid			database;
	pg_uuid_t	token_id;
	union
	{
		char		organization_id[APITOKEN_OWNER_ID_MAX + 1];
		inet_struct network;
		ApitokenFastDigest digest;
	}			in;
} ApitokenSeenKey;

#define APITOKEN_SEEN_KEY_SIZE(place) \
	(offsetof(ApitokenSeenKey, in) + sizeof(((ApitokenSeenKey *) NULL)->in.place))
#define APITOKEN_SEEN_ENTRY_SIZE(place) \
	(MAXALIGN(APITOKEN_SEEN_KEY_SIZE(place)) + sizeof(pg_atomic_uint64))

typedef struct ApitokenLimitKey
{
	Oid			database;
	pg_uuid_t	token_id;
} ApitokenLimitKey;

/* Uses of a token in a period of its quota. */
typedef struct ApitokenQuotaUse
{
	uint64		read_at;		/* when they were read from the tables; 0: never */
	ApitokenQuotaPeriod period;
	DateADT		since;			/* first day of the period; DATEVAL_NOBEGIN for APITOKEN_LIFE */
	int64		used;
} ApitokenQuotaUse;

typedef struct ApitokenLimit
{
	ApitokenLimitKey key;		/* never changes */
	slock_t		mutex;			/* protects the following: see limit.c */
	uint64		tat;			/* theoretical arrival time */
	uint64		quota_used_at;	/* when a use was last counted against the quota */
	ApitokenQuotaUse quota;
} ApitokenLimit;

#define APITOKEN_PROBLEM_MAX 256

/* The outcome of a flush, which writes a database's usage. */
typedef enum ApitokenOutcome
{
	APITOKEN_FLUSH_DONE,		/* everything was written */
	APITOKEN_FLUSH_UNFINISHED,	/* its time was over, and more is left */
	APITOKEN_FLUSH_MISSING,		/* the extension is not installed */
	APITOKEN_FLUSH_FAILED
} ApitokenOutcome;

/* The batches that this server sends from a database: see batch.c. */
typedef struct ApitokenBatchId
{
	pg_uuid_t	sender;			/* of the database on this server */
	pg_uuid_t	last;			/* the last batch */
	bool		sent;			/* it is not known yet whether it was counted */
} ApitokenBatchId;

/*
 * The state of a database.  If its use is sent to another server (logical.c), a flush
 * sends it.  apitoken_flush_states_lock protects all members.
 */
typedef struct ApitokenFlushState
{
	Oid			database;
	int			failures;		/* number of consecutive failed flushes */
	int			missing;		/* how many of the latest failed because the extension is missing */
	TimestampTz retry_at;		/* do not try again before this time, unless 0 */
	TimestampTz maintained_at;	/* end of the last maintenance, or 0 */
	TimestampTz expiry_at;		/* when to look for expiries that are to be told, or 0 */
	int			task;			/* position of an unfinished maintenance */
	pg_uuid_t	position;		/* position within the task */
	uint64		done_ticket;	/* highest ticket of a flush that wrote everything */
	uint64		last_ticket;	/* highest ticket of a flush that ended */
	ApitokenOutcome outcome;	/* outcome of the flush with last_ticket */
	pg_uuid_t	flushed_to;		/* the last token of which a flush has written the use */
	TimestampTz flushed_at;		/* time of the last successful flush, or 0 */
	TimestampTz failed_at;		/* time of the last failed flush, or 0 */
	char		problem[APITOKEN_PROBLEM_MAX];	/* error message of the last failure */
	char		maintenance_problem[APITOKEN_PROBLEM_MAX];	/* of the last maintenance; empty if none */
	ApitokenBatchId batch;		/* of the use that is on its way to another server */
} ApitokenFlushState;

typedef struct ApitokenMap ApitokenMap;

extern ApitokenShared *apitoken_shared; /* NULL without shared_preload_libraries */
extern ApitokenMap *const apitoken_usage_map;
extern ApitokenMap *const apitoken_limit_map;
extern ApitokenMap *const apitoken_seen_maps[APITOKEN_PLACES];
extern HTAB *apitoken_flush_states;
extern LWLock *apitoken_flush_states_lock;

extern void apitoken_shared_init(void);
extern void *apitoken_map_entry(ApitokenMap *map, const void *key,
								void (*initialize) (void *entry), LWLock **lock);
extern void apitoken_map_each(ApitokenMap *map, bool (*visit) (void *entry, void *arg), void *arg);
extern void apitoken_map_remove(ApitokenMap *map, bool (*removable) (void *entry, void *arg), void *arg);
extern int64 apitoken_map_entries(ApitokenMap *map);
extern void apitoken_count(ApitokenCounter counter, uint64 by);
extern uint64 apitoken_counter_value(ApitokenCounter counter);
extern void apitoken_wake_launcher(void);
extern bool apitoken_launcher_runs(void);

/* ----- complete.c: since when has all use been recorded? ----- */

extern void apitoken_note_loss(ApitokenLoss loss);
extern void apitoken_watch_losses(void);
extern TimestampTz apitoken_complete_since(const char **reason);

/* ----- logical.c: is use written or sent, and who else may use the tokens? ----- */

extern bool apitoken_sends(const char **slot);
extern bool apitoken_has_subscriber(void);

/* ----- usage.c: records the usage of tokens ----- */

/* The usage of a token on a day, taken from shared memory to be written to the tables. */
typedef struct ApitokenUsageRow
{
	ApitokenUsageKey key;		/* the first: see apitoken_compare_keys() */
	uint64		accepted;
	ApitokenLastUse last;
	uint32		refused[APITOKEN_VERDICTS];	/* by verdict */
} ApitokenUsageRow;

extern DateADT apitoken_day_of(TimestampTz at);
extern void apitoken_merge_last_use(ApitokenLastUse *last, const ApitokenLastUse *other);
extern uint64 apitoken_refused_total(const ApitokenUsageRow *row);
extern bool apitoken_record_use(const ApitokenRecord *record, int secret, ApitokenVerdict verdict, uint32 cost,
								TimestampTz at, inet *address, bool may_write);
extern int64 apitoken_accepted_uses(const pg_uuid_t *id, DateADT since, DateADT today);
extern int	apitoken_compare_keys(const void *a, const void *b);
extern ApitokenUsageKey *apitoken_list_usage(Oid database, const pg_uuid_t *after, int max, int *count, bool *all);
extern int	apitoken_take_usage(const ApitokenUsageKey *keys, int count, TransactionId xid, ApitokenUsageRow *rows);
extern void apitoken_discard_usage(Oid database);
extern void apitoken_init_usage(void *entry);
extern bool apitoken_is_written(ApitokenUsage *usage);
extern void apitoken_add_uses(const ApitokenUsageRow *row);
extern void apitoken_forget_taken(const ApitokenUsageRow *rows, int count);
extern void apitoken_return_usage(const ApitokenUsageRow *rows, int count);
extern int	apitoken_databases_with_usage(Oid *databases, int max);
extern void apitoken_remove_written_usage(Oid *busy, int count);
extern void apitoken_forget_places(Oid database, const pg_uuid_t *ids, int count);

/* Tokens of a database, sorted by id. */
typedef struct ApitokenForgottenTokens
{
	Oid			database;
	const pg_uuid_t *ids;
	int			count;
} ApitokenForgottenTokens;

extern bool apitoken_is_forgotten(const ApitokenForgottenTokens *tokens, Oid database, const pg_uuid_t *id);

/* ----- batch.c: use that is sent to another server ----- */

/* Rows of each kind in a batch, at most, and the largest count in a row. */
#define APITOKEN_SENT_MAX 2000
#define APITOKEN_SENT_COUNT_MAX INT64CONST(1000000000000000)

/* What is known of a sender is kept for so long after its last batch; older batches are not counted. */
#define APITOKEN_SENDER_RETENTION (90 * USECS_PER_DAY)

extern void apitoken_lock_sending(bool session);
extern int	apitoken_take_batch(Oid database, ApitokenUsageRow *rows, int max);
extern uint64 apitoken_end_batch(Oid database, bool counted);
extern bool apitoken_read_batch(void *entry, ApitokenUsageRow *row);
extern void apitoken_return_batch(const ApitokenUsageRow *row);
extern uint64 apitoken_pending_uses(Oid database);
extern void apitoken_merge_days(void);

/* ----- seen.c: records where tokens are seen, and fast digests ----- */

/* A token in a place, taken from shared memory to be written to the table. */
typedef struct ApitokenSeenRow
{
	ApitokenPlace place;
	ApitokenSeenKey key;
	TimestampTz at;
} ApitokenSeenRow;

extern void apitoken_record_seen(const pg_uuid_t *token_id, const char *organization_id, TimestampTz at);
extern void apitoken_record_network(const pg_uuid_t *token_id, const inet *address, TimestampTz at);
extern void apitoken_record_digest(const pg_uuid_t *token_id, const ApitokenFastDigest *digest, TimestampTz at, bool may_write);
extern bool apitoken_digest_is_recorded(const pg_uuid_t *token_id, const ApitokenFastDigest *digest);
extern void apitoken_write_digests(const ApitokenSeenRow *rows, int count);
extern int	apitoken_take_seen(ApitokenPlace place, Oid database, ApitokenSeenRow *rows, int max);
extern void apitoken_return_seen(const ApitokenSeenRow *rows, int count);
extern void apitoken_each_seen(bool (*visit) (const ApitokenSeenRow *row, void *arg), void *arg);
extern void apitoken_forget_seen(const ApitokenForgottenTokens *tokens);
extern void apitoken_remove_written_seen(void);

/* ----- limit.c: rate limits and quotas ----- */

/* The largest cost of a use. */
#define APITOKEN_COST_MAX 1000000

/* What the rate limit and the quota of a token allow after a use.  Times are in microseconds. */
typedef struct ApitokenAllowance
{
	bool		counted;		/* false: not known, nor are the next four */
	int32		rate_remaining;	/* uses that the rate limit allows at once */
	int64		rate_reset;		/* until it allows one more; 0: it allows all */
	int64		remaining;		/* uses left of the quota */
	int64		quota_window;	/* length of the period; 0: life, as in the next */
	int64		quota_reset;	/* until the next period */
	int64		retry_after;	/* with a refusal, until the use may be allowed; 0: unknown, or never */
} ApitokenAllowance;

extern ApitokenVerdict apitoken_count_use(const ApitokenRecord *record, int32 cost, bool count, TimestampTz at,
										  ApitokenAllowance *allowance);
extern void apitoken_uncount_use(const ApitokenRecord *record, int32 cost, TimestampTz at,
								 ApitokenAllowance *allowance);
extern DateADT apitoken_first_day_of(ApitokenQuotaPeriod period, DateADT day);
extern void apitoken_remove_expired_limits(void);

/* ----- flush_state.c: state of each database with usage ----- */

/* maximum delay before a failed flush is tried again, in milliseconds */
#define APITOKEN_RETRY_MAX (5 * SECS_PER_MINUTE * 1000)

extern bool apitoken_flush_state(Oid database, ApitokenFlushState *state);
extern bool apitoken_next_batch(Oid database, const pg_uuid_t *fresh_sender, const pg_uuid_t *fresh_batch, ApitokenBatchId *batch);
extern bool apitoken_settle_batch(Oid database, const pg_uuid_t *batch, bool new_sender);
extern void apitoken_restore_batch(Oid database, const ApitokenBatchId *batch);
extern void apitoken_retry_flushes(void);
extern int	apitoken_flush_state_databases(Oid *databases, int max);
extern bool apitoken_record_flush(Oid database, uint64 ticket, ApitokenOutcome outcome,
									const char *problem);
extern void apitoken_record_flushed_to(Oid database, const pg_uuid_t *token_id);
extern void apitoken_record_maintenance(Oid database, TimestampTz at, int task, const pg_uuid_t *position);
extern void apitoken_record_expiry(Oid database, TimestampTz at);
extern bool apitoken_record_maintenance_problem(Oid database, const char *problem);
extern void apitoken_remove_flush_state(Oid database);

/* ----- usage_file.c: preserves recorded usage across a restart ----- */

extern void apitoken_remove_usage_file(void);
extern void apitoken_usage_file_init(void);

/* ----- flush.c: writes recorded usage to the tables ----- */

/* What a worker does after the flush. */
typedef enum ApitokenHousekeeping
{
	APITOKEN_NOTHING_DUE,
	APITOKEN_EXPIRIES_DUE,		/* one task of the maintenance */
	APITOKEN_MAINTENANCE_DUE
} ApitokenHousekeeping;

/* A worker's bgw_extra.  Its bgw_main_arg is the database. */
typedef struct ApitokenJob
{
	uint64		ticket;			/* the flush's */
	ApitokenHousekeeping housekeeping;
} ApitokenJob;

/*
 * Rows of a batch of which each can become a notification, with as many as 1000
 * recipients: a worker has only seconds for a batch.
 */
#define APITOKEN_NOTIFY_BATCH 100

extern void apitoken_write_usage(ApitokenUsageRow *rows, int count);
extern void apitoken_write_seen(ApitokenPlace place, const ApitokenSeenRow *rows, int count);
extern bool apitoken_tell_reuse(void *arg);
extern bool apitoken_run_in_transaction(bool (*work) (void *arg), void *arg, TimestampTz until,
									char problem[APITOKEN_PROBLEM_MAX]);
extern inet *apitoken_reused_from(const pg_uuid_t *token_id);
extern ApitokenOutcome apitoken_flush(uint64 ticket, TimestampTz until);
extern void apitoken_flush_digests(TimestampTz until);
extern bool apitoken_start_worker(Oid database, ApitokenHousekeeping housekeeping, uint64 *ticket,
								  BackgroundWorkerHandle **handle);
extern void apitoken_flush_now(void);

/* ----- primary.c: the connection to the server that counts the use ----- */

/* Why the primary could not be reached or did not do what it was asked for. */
typedef struct ApitokenPrimaryError
{
	char		problem[APITOKEN_PROBLEM_MAX];	/* names neither hosts nor passwords */
	char	   *detail;			/* for the server log only; NULL if none */
	const char *hint;			/* NULL if none */
	bool		refused;		/* the primary has rolled back what it was asked for */
} ApitokenPrimaryError;

typedef struct ApitokenPrimary ApitokenPrimary;

extern const char *apitoken_conninfo_fault(void);
extern ApitokenPrimary *apitoken_connect_primary(const char *database, const char *slot, TimestampTz until,
												 ApitokenPrimaryError *error);
extern bool apitoken_ask_primary(ApitokenPrimary *primary, const char *const *values, TimestampTz until, bool *counted,
								 ApitokenPrimaryError *error);
extern void apitoken_leave_primary(ApitokenPrimary *primary);

/* ----- send.c: a standby or a logical subscriber sends its use ----- */

extern bool apitoken_send(uint64 ticket, TimestampTz until);

/* ----- maintenance.c: idle tokens, retention ----- */

#define APITOKEN_TASKS 13
#define APITOKEN_EXPIRY_TASK 6	/* tells of coming expiries */

/* Expiries are looked for no less often than this. */
#define APITOKEN_EXPIRY_INTERVAL USECS_PER_HOUR

/* Counts, position and problems of a maintenance run.  Set to zero before the first batch. */
typedef struct ApitokenMaintenance
{
	uint64		tokens_revoked;
	uint64		events_removed;
	uint64		tokens_removed;
	uint64		usage_removed;
	uint64		tokens_spared;	/* idle tokens that were not revoked */
	uint64		notifications_removed;
	int			task;			/* the current task, APITOKEN_TASKS at the end */
	pg_uuid_t	position;		/* the task has visited the rows up to this id */
	TimestampTz expiry_at;		/* when to look for expiries again; 0 if that was not found out */
	char		unwritten[APITOKEN_PROBLEM_MAX];	/* why use was not written before; empty if it was */
	char		problems[APITOKEN_TASKS][APITOKEN_PROBLEM_MAX]; /* empty if none */
} ApitokenMaintenance;

extern ErrorData *apitoken_try(void (*work) (void *arg), void *arg);
extern bool apitoken_maintain(int batch, ApitokenMaintenance *run);
extern void apitoken_end_task(ApitokenMaintenance *run, const char *problem);
extern void apitoken_report_maintenance(const ApitokenMaintenance *run);

/* ----- worker.c: the launcher and its workers ----- */

extern void apitoken_worker_init(void);

#endif							/* APITOKEN_USAGE_H */
