/*
 * apitoken.h
 *		What the files of the extension share, grouped by the file that
 *		defines it, ground floor first.
 *
 * Data flows one way: text -> parts -> digest -> record -> verdict ->
 * identity -> answer.  A file calls only those listed above it.
 */
#ifndef APITOKEN_H
#define APITOKEN_H

#include "postgres.h"

#include "access/htup.h"
#include "access/tupdesc.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"
#include "utils/array.h"
#include "utils/date.h"
#include "utils/hsearch.h"
#include "utils/inet.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"

/* ----- token.c: the text of a token; no catalog, no palloc, no ereport ----- */

#define APITOKEN_PREFIX_MIN 2
#define APITOKEN_PREFIX_MAX 12
#define APITOKEN_ID_CHARS 22
#define APITOKEN_SECRET_CHARS 43
#define APITOKEN_CHECKSUM_CHARS 6
#define APITOKEN_BODY_CHARS (APITOKEN_ID_CHARS + APITOKEN_SECRET_CHARS + APITOKEN_CHECKSUM_CHARS)

/* "<prefix>_<kind>_<body>", without a terminating zero */
#define APITOKEN_TEXT_MAX (APITOKEN_PREFIX_MAX + 1 + 3 + 1 + APITOKEN_BODY_CHARS)

/* "<prefix>_<kind>_<id>_...<last four>", without a terminating zero */
#define APITOKEN_MASKED_MAX (APITOKEN_PREFIX_MAX + 1 + 3 + 1 + APITOKEN_ID_CHARS + 4 + 4)

/* a text that was cut off is a secret as soon as it has this many characters of one */
#define APITOKEN_SECRET_CUT 8

typedef enum ApitokenKind
{
	APITOKEN_ORGANIZATION,
	APITOKEN_USER
} ApitokenKind;

typedef struct ApitokenParts
{
	char		prefix[APITOKEN_PREFIX_MAX + 1];
	ApitokenKind kind;
	pg_uuid_t	id;
	char		masked[APITOKEN_MASKED_MAX + 1];
} ApitokenParts;

extern bool apitoken_valid_prefix(const char *prefix);
extern bool apitoken_parse_text(const char *text, size_t length, ApitokenParts *parts);
extern bool apitoken_generate_id(pg_uuid_t *id);
extern bool apitoken_generate_text(const char *prefix, ApitokenKind kind, const pg_uuid_t *id,
								   char text[APITOKEN_TEXT_MAX + 1], ApitokenParts *parts);
extern TimestampTz apitoken_id_time(const pg_uuid_t *id);
extern void apitoken_least_id(TimestampTz at, pg_uuid_t *id);
extern const char *apitoken_kind_code(ApitokenKind kind);	/* org, usr */
extern bool apitoken_holds_secret(const char *text, size_t length);
extern bool apitoken_mask_secrets(char *text, size_t length);

/* ----- digest.c: SHA-256, HMAC under a pepper, comparison ----- */

#define APITOKEN_DIGEST_LENGTH 32

extern int16 apitoken_signing_scheme(void);
extern void apitoken_digest(const char *text, size_t length, int16 scheme,
							uint8 digest[APITOKEN_DIGEST_LENGTH]);
extern void apitoken_decoy_digest(const char *text, size_t length);
extern bool apitoken_digest_matches(const uint8 a[APITOKEN_DIGEST_LENGTH],
									const uint8 b[APITOKEN_DIGEST_LENGTH]);

/* ----- permission.c: permissions, patterns and what covers what ----- */

/* "resource:action", each half 1 to this many characters */
#define APITOKEN_HALF_MAX 64
#define APITOKEN_PATTERN_MAX (2 * APITOKEN_HALF_MAX + 1)
#define APITOKEN_PATTERNS_MAX 100

typedef enum ApitokenAccess
{
	APITOKEN_READ_ONLY,
	APITOKEN_FULL,
	APITOKEN_CUSTOM
} ApitokenAccess;

extern bool apitoken_valid_permission(const char *permission);
extern bool apitoken_valid_pattern(const char *pattern);
extern bool apitoken_pattern_matches(const char *pattern, const char *permission);
extern bool apitoken_pattern_covers(const char *pattern, const char *other);
extern bool apitoken_pattern_intersect(const char *a, const char *b,
									   char result[APITOKEN_PATTERN_MAX + 1]);
extern bool apitoken_patterns_match(List *patterns, const char *permission);
extern const char *apitoken_patterns_uncovered(List *patterns, List *by);
extern List *apitoken_patterns_reduce(List *patterns);
extern List *apitoken_patterns_narrow(List *patterns, ApitokenAccess access, List *own,
									  bool personal);
extern bool apitoken_narrowing_allows(ApitokenAccess access, List *own, bool personal,
									  const char *permission);
extern List *apitoken_strings_from_array(ArrayType *array);
extern ArrayType *apitoken_strings_to_array(List *strings);
extern void apitoken_check_patterns(ArrayType *array);
extern void apitoken_check_permission(const char *permission);
extern char *apitoken_clip(const char *text);
extern ApitokenAccess apitoken_access_from_text(const char *access);
extern const char *apitoken_access_to_text(ApitokenAccess access);

/* ----- guc.c: settings ----- */

/* ids of organizations and users, in bytes */
#define APITOKEN_OWNER_ID_MAX 255

typedef enum ApitokenSetting
{
	APITOKEN_SETTING_TOKEN,
	APITOKEN_SETTING_USER_ID,
	APITOKEN_SETTING_CLIENT_ADDRESS,
	APITOKEN_SETTINGS
} ApitokenSetting;

/* What is kept for so long, and then removed by maintenance.c. */
typedef enum ApitokenRetention
{
	APITOKEN_RETENTION,			/* events and ended tokens */
	APITOKEN_USAGE_RETENTION,
	APITOKEN_RETENTIONS
} ApitokenRetention;

extern char *apitoken_prefix;
extern char *apitoken_pepper_file;
extern bool apitoken_pepper_file_refused;
extern int	apitoken_usage_slots;
extern int	apitoken_flush_interval;
extern char *apitoken_token_headers;
extern char *apitoken_client_address_header;
extern char *apitoken_jwt_user_claim;
extern char *apitoken_issuer;
extern char *apitoken_audience;
extern bool apitoken_mask_logs;
extern uint64 apitoken_setting_generation;
extern void apitoken_guc_init(void);
extern const char *apitoken_setting_in_force(ApitokenSetting setting);
extern Oid	apitoken_setting_role(ApitokenSetting setting);
extern const Interval *apitoken_retention(ApitokenRetention retention);
extern const char *apitoken_request_setting(const char *name, Oid *setter);

/* ----- json.c: fields of JSON objects ----- */

extern void apitoken_json_string(JsonbParseState **state, const char *key, const char *string);
extern void apitoken_json_bool(JsonbParseState **state, const char *key, bool boolean);
extern void apitoken_json_integer(JsonbParseState **state, const char *key, int64 integer);
extern void apitoken_json_strings(JsonbParseState **state, const char *key, ArrayType *array);

/* ----- request.c: what PostgREST tells of an HTTP request ----- */

typedef enum ApitokenRequest
{
	APITOKEN_NO_REQUEST,
	APITOKEN_REQUEST,
	APITOKEN_BROKEN_REQUEST		/* its headers are no JSON object */
} ApitokenRequest;

typedef struct ApitokenField
{
	char	   *name;
	char	   *value;			/* NULL: neither a string nor a number */
	bool		is_string;
} ApitokenField;

extern ApitokenRequest apitoken_request_headers(List **headers);
extern List *apitoken_header_values(List *headers, const char *name);
extern char *apitoken_request_claim(const char *name, Oid *setter);

/* ----- shared.c: memory that all sessions share, with shared_preload_libraries ----- */

#define APITOKEN_PARTITIONS 16

/* Databases of which anything is known at a time. */
#define APITOKEN_DATABASES_MAX 1024

typedef enum ApitokenVerdict
{
	APITOKEN_VALID,
	APITOKEN_MALFORMED,
	APITOKEN_UNKNOWN,
	APITOKEN_REVOKED,
	APITOKEN_EXPIRED,
	APITOKEN_SUSPENDED,
	APITOKEN_NETWORK_REFUSED,
	APITOKEN_PERMISSION_REFUSED,
	APITOKEN_RATE_LIMITED,
	APITOKEN_VERDICTS
} ApitokenVerdict;

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
	pg_atomic_uint32 saved_file;	/* 1: what was saved is here, and its file is there still */
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

/* What is known of a database; all protected by apitoken_databases_lock. */
typedef struct ApitokenDatabase
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
} ApitokenDatabase;

typedef struct ApitokenMap ApitokenMap;

extern ApitokenShared *apitoken_shared; /* NULL without shared preload */
extern ApitokenMap *const apitoken_usage_map;
extern ApitokenMap *const apitoken_limit_map;
extern HTAB *apitoken_databases;
extern LWLock *apitoken_databases_lock;

extern void apitoken_shared_init(void);
extern void *apitoken_map_entry(ApitokenMap *map, const void *key,
								void (*initialize) (void *entry), LWLock **lock);
extern void apitoken_map_each(ApitokenMap *map, bool (*visit) (void *entry, void *arg), void *arg);
extern void apitoken_map_remove(ApitokenMap *map, bool (*spent) (void *entry, void *arg), void *arg);
extern int64 apitoken_map_entries(ApitokenMap *map);
extern void apitoken_count(ApitokenCounter counter, uint64 by);
extern uint64 apitoken_counted(ApitokenCounter counter);
extern void apitoken_hasten(void);

/* ----- catalog.c: where the extension's objects are, and whose ----- */

typedef enum ApitokenTable
{
	APITOKEN_ORGANIZATIONS,
	APITOKEN_USERS,
	APITOKEN_ROLES,
	APITOKEN_MEMBERSHIPS,
	APITOKEN_TOKEN_RECORDS,
	APITOKEN_TOKEN_USAGE,
	APITOKEN_EVENTS,
	APITOKEN_TABLES
} ApitokenTable;

/* Attribute numbers; sql/schema.sql compares them with the catalog. */
#define Anum_organizations_id 1
#define Anum_organizations_suspended_at 3
#define Anum_organizations_idle_timeout 5
#define Anum_organizations_resumed_at 6

#define Anum_users_id 1
#define Anum_users_name 2
#define Anum_users_groups 4
#define Anum_users_role 5
#define Anum_users_suspended_at 6

#define Anum_roles_name 1
#define Anum_roles_description 2
#define Anum_roles_permissions 3
#define Anum_roles_database_role 4

#define Anum_memberships_organization_id 1
#define Anum_memberships_user_id 2
#define Anum_memberships_role 3

#define Anum_token_records_id 1
#define Anum_token_records_created_at 2
#define Anum_token_records_updated_at 3
#define Anum_token_records_expires_at 4
#define Anum_token_records_suspended_at 5
#define Anum_token_records_revoked_at 6
#define Anum_token_records_previous_expires_at 7
#define Anum_token_records_rate_limit_per_minute 8
#define Anum_token_records_digest_scheme 9
#define Anum_token_records_previous_digest_scheme 10
#define Anum_token_records_digest 11
#define Anum_token_records_previous_digest 12
#define Anum_token_records_organization_id 13
#define Anum_token_records_user_id 14
#define Anum_token_records_label 15
#define Anum_token_records_access 16
#define Anum_token_records_role 17
#define Anum_token_records_permissions 18
#define Anum_token_records_allowed_networks 19
#define Anum_token_records_metadata 20
#define Anum_token_records_masked 21
#define Anum_token_records_created_by 22
#define Anum_token_records_created_by_name 23
#define Anum_token_records_description 24
#define Anum_token_records_revoked_by 25
#define Anum_token_records_revoke_reason 26

#define Anum_token_usage_token_id 1
#define Anum_token_usage_last_used_at 2
#define Anum_token_usage_accepted 3
#define Anum_token_usage_refused 4
#define Anum_token_usage_last_used_from 5

#define Anum_events_id 1
#define Anum_events_at 2
#define Anum_events_action 3
#define Anum_events_token_id 4
#define Anum_events_organization_id 5
#define Anum_events_user_id 6
#define Anum_events_actor 7
#define Anum_events_actor_token_id 8
#define Anum_events_database_user 9
#define Anum_events_client_address 10
#define Anum_events_details 11

/* The composite types that functions answer with. */
typedef enum ApitokenRow
{
	APITOKEN_VERIFICATION_ROW,
	APITOKEN_ISSUED_ROW,
	APITOKEN_ROWS
} ApitokenRow;

extern void apitoken_catalog_init(void);
extern bool apitoken_installed(void);
extern uint64 apitoken_table_changes;
extern Oid	apitoken_table(ApitokenTable table);
extern Relation apitoken_open_table(ApitokenTable table);
extern bool apitoken_lock_extension(void);
extern Oid	apitoken_owner(void);
extern bool apitoken_is_owner(void);
extern bool apitoken_bypasses_rls(void);
extern bool apitoken_role_may_act(Oid role);
extern bool apitoken_session_may_vouch(void);
extern TupleDesc apitoken_result_type(FunctionCallInfo fcinfo, int columns);
extern Datum apitoken_form_row(ApitokenRow row, int count, const Oid *types,
							   const Datum *values, const bool *nulls);

/* ----- store.c: reads the tables, past privileges and row-level security ----- */

/* A row of token_records, in the caller's memory context. */
typedef struct ApitokenRecord
{
	pg_uuid_t	id;
	ApitokenKind kind;
	char	   *organization_id;	/* NULL: personal */
	char	   *user_id;		/* NULL: an organization's */
	char	   *label;
	char	   *role;			/* NULL: personal */
	ApitokenAccess access;
	List	   *permissions;	/* with APITOKEN_CUSTOM */
	ArrayType  *allowed_networks;	/* NULL: from everywhere */
	int32		rate_limit;		/* a minute; 0: none */
	Datum		metadata;		/* jsonb */
	char	   *masked;
	TimestampTz created_at;
	TimestampTz expires_at;		/* DT_NOEND: never */
	bool		suspended;
	bool		revoked;
	int16		digest_scheme;
	uint8		digest[APITOKEN_DIGEST_LENGTH];
	TimestampTz previous_expires_at;	/* DT_NOBEGIN: no previous digest */
	int16		previous_digest_scheme;
	uint8		previous_digest[APITOKEN_DIGEST_LENGTH];
} ApitokenRecord;

typedef struct ApitokenUserRow
{
	char	   *name;			/* NULL: none given */
	char	   *role;			/* NULL: no limit */
	ArrayType  *groups;
	bool		suspended;
} ApitokenUserRow;

typedef struct ApitokenRoleRow
{
	List	   *patterns;
	char	   *database_role;	/* NULL: none */
	bool		lasting;		/* until somebody tells of a change */
} ApitokenRoleRow;

typedef struct ApitokenMembership
{
	char	   *organization_id;
	char	   *role;
} ApitokenMembership;

typedef struct ApitokenOwner
{
	ApitokenKind kind;
	text	   *id;
	TimestampTz since;			/* when the token was made */
} ApitokenOwner;

extern Snapshot apitoken_latest_snapshot(void);
extern void apitoken_record_from_tuple(HeapTuple tuple, TupleDesc descriptor, ApitokenRecord *record);
extern bool apitoken_fetch_token(Snapshot snapshot, const pg_uuid_t *id, ApitokenRecord *record);
extern bool apitoken_fetch_owner(Snapshot snapshot, const pg_uuid_t *id, ApitokenOwner *owner);
extern int	apitoken_fetch_older(Snapshot snapshot, const ApitokenOwner *owner, pg_uuid_t *ids, int max);
extern void apitoken_fetch_decoy(Snapshot snapshot, const pg_uuid_t *id, bool row);
extern bool apitoken_fetch_label(Snapshot snapshot, const ApitokenRecord *like, ApitokenRecord *record);
extern bool apitoken_fetch_organization(Snapshot snapshot, const char *id, bool *suspended);
extern bool apitoken_fetch_user(Snapshot snapshot, const char *id, ApitokenUserRow *user);
extern bool apitoken_fetch_role(Snapshot snapshot, const char *name, ApitokenRoleRow *row);
extern char *apitoken_fetch_membership(Snapshot snapshot, const char *organization_id, const char *user_id);
extern List *apitoken_fetch_memberships(Snapshot snapshot, const char *user_id);
extern bool apitoken_fetch_last_used(Snapshot snapshot, const pg_uuid_t *id,
									 TimestampTz *last_used_at);

/* ----- role.c: what roles allow, remembered ----- */

extern bool apitoken_role(const char *name, ApitokenRoleRow *row);

/* ----- write.c: statements that run as the tables' owner ----- */

typedef enum ApitokenStatement
{
	APITOKEN_NO_STATEMENT,
	APITOKEN_LOCK_ORGANIZATION,
	APITOKEN_LOCK_USER,
	APITOKEN_ENSURE_USER,
	APITOKEN_LOCK_TOKEN,
	APITOKEN_REGENERATE,
	APITOKEN_REVOKE,
	APITOKEN_REVOKE_MATCHING,
	APITOKEN_END_MEMBERSHIPS_OF_USER,
	APITOKEN_END_MEMBERSHIPS_IN,
	APITOKEN_LOCK_ROLE,
	APITOKEN_MEMBERS_WITH_ROLE,
	APITOKEN_CREATED,
	APITOKEN_CHANGED,
	APITOKEN_FORGET_USAGE,
	APITOKEN_TOUCH_USAGE,
	APITOKEN_ADD_USAGE,
	APITOKEN_WRITE_USAGE,
	APITOKEN_WRITE_USAGE_DAILY,
	APITOKEN_REPLACE_ROLE,
	APITOKEN_REVOKE_IDLE,
	APITOKEN_CLEAR_PREVIOUS,
	APITOKEN_REMOVE_EVENTS,
	APITOKEN_REMOVE_REVOKED,
	APITOKEN_REMOVE_EXPIRED,
	APITOKEN_REMOVE_DAYS,
	APITOKEN_NEXT_USAGE,
	APITOKEN_REMOVE_ORPHANS,
	APITOKEN_STATEMENTS
} ApitokenStatement;

extern ApitokenStatement apitoken_running_statement;
extern uint64 apitoken_execute(ApitokenStatement statement, Datum *values, const char *nulls);
extern bool apitoken_execute_value(ApitokenStatement statement, Datum *values, const char *nulls,
								   Datum *value);
extern void apitoken_as_owner(ApitokenStatement statement, void (*work) (void *arg), void *arg);

/* ----- append.c: new rows, written without a statement ----- */

extern bool apitoken_open_append(Relation *relation, ApitokenTable table, int columns);
extern void apitoken_append(Relation relation, const Datum *values, const bool *nulls);
extern void apitoken_close_append(Relation relation);

/* ----- subtransaction.c: what a transaction keeps, by subtransactions ----- */

/* The part of an entry that tells in which subtransaction it was made. */
typedef struct ApitokenMade
{
	dlist_node	node;
	SubTransactionId subtransaction;
} ApitokenMade;

extern void apitoken_add_made(dlist_head *in_order, ApitokenMade *made);
extern void apitoken_end_made(dlist_head *in_order, SubXactEvent event, SubTransactionId subtransaction,
							  SubTransactionId parent, void (*forget) (ApitokenMade *made));

/* ----- locked.c: owners that this transaction has locked ----- */

extern void apitoken_locked_init(void);
extern bool apitoken_is_locked(ApitokenTable table, const char *id);
extern void apitoken_note_locked(ApitokenTable table, const char *id);
extern void apitoken_forget_locked(void);

/* ----- address.c: where a client is ----- */

extern inet *apitoken_client_address(inet *argument);
extern bool apitoken_in_networks(inet *address, ArrayType *networks);

/* ----- principal.c: who may do what where ----- */

typedef enum ApitokenSource
{
	APITOKEN_SOURCE_TOKEN,
	APITOKEN_SOURCE_USER
} ApitokenSource;

typedef struct ApitokenPrincipal
{
	ApitokenSource source;
	ApitokenKind kind;
	char	   *organization_id;	/* an organization's token's */
	char	   *user_id;		/* a user's, or a personal token's */
	pg_uuid_t	token_id;		/* with APITOKEN_SOURCE_TOKEN, as are: */
	char	   *role;
	ApitokenAccess access;
	List	   *permissions;
} ApitokenPrincipal;

/* What a principal is in one place, read anew each time. */
typedef struct ApitokenStanding
{
	bool		suspended;		/* the owner is, or is gone */
	char	   *role;			/* NULL: none */
	List	   *role_patterns;	/* before they are narrowed; NIL: may do nothing */
	char	   *database_role;	/* the role's; NULL: none */
	ArrayType  *groups;			/* NULL: none */
} ApitokenStanding;

extern void apitoken_principal_of_token(const ApitokenRecord *record, ApitokenPrincipal *principal);
extern bool apitoken_same_principal(const ApitokenPrincipal *a, const ApitokenPrincipal *b);
extern void apitoken_standing(const ApitokenPrincipal *principal, const char *organization_id,
							  Snapshot snapshot, ApitokenStanding *standing);
extern bool apitoken_standing_allows(const ApitokenPrincipal *principal, const ApitokenStanding *standing,
									 const char *permission);
extern List *apitoken_effective_patterns(const ApitokenPrincipal *principal,
										 const ApitokenStanding *standing);
extern bool apitoken_may(const ApitokenPrincipal *principal, const char *permission,
						 const char *organization_id);
extern List *apitoken_organizations_where(const ApitokenPrincipal *principal, List *permissions);
extern const char *apitoken_managed_user_of(const ApitokenPrincipal *principal, List *permissions);
extern List *apitoken_own_patterns(const ApitokenPrincipal *principal);
extern List *apitoken_token_patterns(const ApitokenRecord *record);

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

/* ----- database.c: what is known of each database with tokens in use ----- */

/* The longest time until a flush that failed is tried again, in milliseconds. */
#define APITOKEN_RETRY_MAX (5 * SECS_PER_MINUTE * 1000)

extern bool apitoken_database_known(Oid database, ApitokenDatabase *state);
extern int	apitoken_databases_known(Oid *databases, int max);
extern bool apitoken_database_ended(Oid database, uint64 ticket, ApitokenOutcome outcome,
									const char *problem);
extern void apitoken_database_maintained(Oid database, TimestampTz at, const pg_uuid_t *usage_seen);
extern void apitoken_database_forget(Oid database);

/* ----- save.c: what is recorded survives a restart ----- */

extern void apitoken_remove_saved(void);
extern void apitoken_save_init(void);

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

/* ----- verify.c: facts in, verdict out ----- */

typedef struct ApitokenVerification
{
	ApitokenVerdict verdict;
	TimestampTz at;				/* when; not with APITOKEN_MALFORMED */
	int64		retry_after;	/* with APITOKEN_RATE_LIMITED: microseconds; 0: not known */
	TimestampTz secret_ends_at;	/* the previous secret's overlap, or as the token's expiry */
	ApitokenRecord record;		/* from APITOKEN_REVOKED on, and when valid */
	ApitokenStanding standing;	/* when valid, as are: */
	List	   *patterns;		/* effective patterns */
} ApitokenVerification;

extern const char *apitoken_verdict_name(ApitokenVerdict verdict);
extern bool apitoken_secret_was_right(ApitokenVerdict verdict);
extern void apitoken_verify(const char *text, size_t length, const char *permission,
							const char *organization_id, inet *address,
							ApitokenVerification *verification);
extern void apitoken_verify_datum(Datum token, bool isnull, const char *permission,
								  const char *organization_id, inet *address,
								  ApitokenVerification *verification);
extern void apitoken_use(ApitokenVerification *verification, inet *address, bool may_write);
extern Datum apitoken_verification_datum(const ApitokenVerification *verification);

/* ----- identity.c: who is acting in this transaction ----- */

extern void apitoken_identity_init(void);
extern void apitoken_sync_identity(void);
extern void apitoken_enforce_read_only(void);
extern const ApitokenPrincipal *apitoken_principal(void);
extern bool apitoken_principal_read_only(void);
extern void apitoken_act_by(const ApitokenVerification *verification);

/* ----- policy.c: which tokens the caller sees ----- */

extern uint64 apitoken_moment;

/* ----- redact.c: texts of tokens in the log and in what shows statements ----- */

extern void apitoken_redact_activity(void);
extern const char *apitoken_redacted(const char *text, int location, int length);
extern void apitoken_redact_init(void);

/* ----- guard.c: hooks that keep the identity and READ ONLY in force ----- */

extern void apitoken_guard_init(void);

/* ----- secret.c: texts of tokens made in this transaction ----- */

extern void apitoken_secret_init(void);
extern void apitoken_keep_secret(const pg_uuid_t *id, const char *text);
extern text *apitoken_release_secret(const pg_uuid_t *id);
extern bool apitoken_made_here(const pg_uuid_t *id);
extern pg_uuid_t *apitoken_capture_id(pg_uuid_t *id);

/* ----- authority.c: who may manage which token ----- */

extern bool apitoken_may_manage(const ApitokenRecord *record, const char *permission);
extern void apitoken_check_ceiling(const ApitokenRecord *record, Snapshot snapshot);
extern pg_noreturn void apitoken_refuse(void);
extern void apitoken_fetch_managed(const pg_uuid_t *id, const char *permission, ApitokenRecord *record);

/* ----- values.c: what the columns of a token may hold ----- */

extern void apitoken_check_label(const char *label);
extern void apitoken_check_description(const char *description);
extern void apitoken_check_expiry(TimestampTz expires_at, bool may_be_past);
extern TimestampTz apitoken_expiry_after(Interval *expires_in);
extern TimestampTz apitoken_overlap_until(Interval *overlap);
extern void apitoken_lock_organization(const char *id);
extern pg_noreturn void apitoken_refuse_role(const char *role);
extern void apitoken_check_role(const char *role);
extern void apitoken_check_access(const char *access, ArrayType *permissions);
extern void apitoken_check_networks(ArrayType *networks);
extern void apitoken_check_rate_limit(int32 limit);
extern void apitoken_check_metadata(Datum metadata);
extern void apitoken_check_label_free(const ApitokenRecord *record, Snapshot snapshot);

/* ----- trigger.c: what the trigger functions have in common ----- */

extern void apitoken_expect_trigger(FunctionCallInfo fcinfo, ApitokenTable table);
extern bool apitoken_column_changed(TriggerData *trigger, AttrNumber attribute);
extern bool apitoken_is_editable(AttrNumber attribute);
extern bool apitoken_edited(TriggerData *trigger);

/* ----- issue.c: making tokens ----- */

extern Datum apitoken_issued_datum(const pg_uuid_t *id, text *secret, const char *masked,
								   TimestampTz expires_at);

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

#endif							/* APITOKEN_H */
