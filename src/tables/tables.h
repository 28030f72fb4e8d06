/*
 * tables.h
 *		The extension's objects in the catalog, and access to its tables.
 */
#ifndef APITOKEN_TABLES_H
#define APITOKEN_TABLES_H

#include "base/base.h"

#include "access/htup.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "nodes/parsenodes.h"
#include "storage/lockdefs.h"
#include "utils/date.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

#include "tables/columns.h"

/* ----- catalog.c: the extension's tables and types, and their owner ----- */

extern void apitoken_catalog_init(void);
extern bool apitoken_installed(void);
extern uint64 apitoken_table_changes;
extern uint64 apitoken_directory_changes;
extern Oid	apitoken_table(ApitokenTable table);
extern const char *apitoken_column_name(ApitokenTable table, AttrNumber attribute);
extern Oid	apitoken_column_type(ApitokenTable table, AttrNumber attribute);
extern bool apitoken_column_granted(ApitokenTable table, AttrNumber attribute, char privilege);
extern List *apitoken_columns_granted(ApitokenTable table, char privilege);
extern Relation apitoken_open_table(ApitokenTable table);
extern bool apitoken_try_lock_table(ApitokenTable table, LOCKMODE mode);
extern void apitoken_unlock_table(ApitokenTable table, LOCKMODE mode);
extern bool apitoken_lock_usage(void);
extern bool apitoken_lock_actor(const char *user_id, LOCKMODE mode, bool wait);
extern Oid	apitoken_owner(void);
extern bool apitoken_is_owner(void);
extern bool apitoken_bypasses_rls(void);
extern bool apitoken_was_granted(Oid relation, AclMode mode);
extern TupleDesc apitoken_result_type(FunctionCallInfo fcinfo, int columns);
extern Datum apitoken_form_row(ApitokenRow row, const Datum *values, const bool *nulls);

/* ----- read.c: reads the tables, bypassing privileges and row-level security ----- */

/* A token's current secret, and those before it whose digests are kept. */
#define APITOKEN_PREVIOUS_MAX 4
#define APITOKEN_SECRETS (1 + APITOKEN_PREVIOUS_MAX)

typedef struct ApitokenSecret
{
	TimestampTz expires_at;		/* end of the overlap; DT_NOEND for the current secret */
	TimestampTz replaced_at;	/* when a new secret took its place */
	int16		scheme;			/* negative: imported, and the digest is its seal */
	uint8		digest[APITOKEN_DIGEST_LENGTH];
} ApitokenSecret;

/* The period of a quota, in UTC. */
typedef enum ApitokenQuotaPeriod
{
	APITOKEN_LIFE,				/* of the token */
	APITOKEN_MONTH,
	APITOKEN_DAY
} ApitokenQuotaPeriod;

/* The scheme of a seal under a pepper; 0: without one.  See src/identity/foreign.c. */
#define APITOKEN_SEAL_SCHEME(scheme) ((int16) (-1 - (scheme)))

/* A row of token_records, allocated in the caller's memory context. */
typedef struct ApitokenRecord
{
	pg_uuid_t	id;
	ApitokenKind kind;
	char	   *organization_id;	/* NULL in a personal token */
	char	   *user_id;		/* NULL in an organization's token */
	char	   *label;
	char	   *role;			/* NULL in a personal token */
	ApitokenAccess access;
	List	   *permissions;	/* used with APITOKEN_CUSTOM */
	ArrayType  *allowed_networks;	/* NULL if not restricted */
	int32		rate_limit;		/* uses per minute, 0 if not limited */
	int64		quota;			/* uses in a period, 0 if not limited */
	ApitokenQuotaPeriod quota_period;
	Datum		metadata;		/* jsonb */
	char	   *masked;
	TimestampTz created_at;
	TimestampTz issued_at;		/* when its secret was made: creation or last regeneration */
	TimestampTz expires_at;		/* DT_NOEND if never */
	bool		suspended;
	bool		revoked;
	int			secret_count;
	ApitokenSecret secrets[APITOKEN_SECRETS];	/* the current one first */
	/* If false, label, permissions, allowed_networks and metadata are not read yet. */
	bool		whole;
} ApitokenRecord;

/* Is the current secret that of another system? */
static inline bool
apitoken_is_imported(const ApitokenRecord *record)
{
	return record->secret_count > 0 && record->secrets[0].scheme < 0;
}

/* Suspension and policy of an organization. */
typedef struct ApitokenOrganizationRow
{
	bool		suspended;
	Interval   *max_lifetime;	/* NULL if not limited */
	bool		require_expiry;
	bool		limits_tokens;	/* it has max_tokens */
	ArrayType  *allowed_networks;	/* NULL if not restricted */
	char	   *default_role;	/* NULL if none */
	bool		allow_personal_tokens;
	bool		tells_networks; /* notify has new_network */
} ApitokenOrganizationRow;

typedef struct ApitokenUserRow
{
	char	   *name;			/* NULL if none */
	char	   *role;			/* limits the user outside organizations; NULL if none */
	ArrayType  *groups;
	bool		suspended;
	bool		tells_networks; /* notify has new_network */
} ApitokenUserRow;

typedef struct ApitokenRoleRow
{
	List	   *patterns;
	char	   *database_role;	/* NULL if none */
	bool		written_here;	/* by this transaction */
} ApitokenRoleRow;

typedef struct ApitokenMembership
{
	char	   *organization_id;
	char	   *user_id;
	char	   *role;
} ApitokenMembership;

/* A personal token that acted in an organization. */
typedef struct ApitokenPersonalUse
{
	pg_uuid_t	token_id;
	TimestampTz last_used_at;
} ApitokenPersonalUse;

/* What another system stored of a token that was imported from there. */
typedef struct ApitokenForeign
{
	pg_uuid_t	token_id;
	char	   *lookup_key;		/* NULL if none */
	ApitokenBytes digest;
	ApitokenBytes salt;			/* data is NULL if none */
	bool		has_fast;		/* the next two are set */
	int16		fast_scheme;
	uint8		fast_digest[APITOKEN_DIGEST_LENGTH];	/* of the whole text, as of our own tokens */
} ApitokenForeign;

typedef struct ApitokenOwner
{
	ApitokenKind kind;
	text	   *id;
	TimestampTz created_at;		/* creation time of the token */
} ApitokenOwner;

/* The event of a token that is used from a network where it was never seen. */
#define APITOKEN_NEW_NETWORK "new_network"

/* Rows with the same lookup key that are compared with a text; fewer if their digests are slow. */
#define APITOKEN_FOREIGN_MAX 16
#define APITOKEN_FOREIGN_SLOW_MAX 8

extern Snapshot apitoken_latest_snapshot(void);
extern void apitoken_record_from_tuple(HeapTuple tuple, TupleDesc descriptor, ApitokenRecord *record);
extern bool apitoken_fetch_token(Snapshot snapshot, const pg_uuid_t *id, ApitokenRecord *record);
extern void apitoken_complete_token(Snapshot snapshot, ApitokenRecord *record);
extern bool apitoken_fetch_owner(Snapshot snapshot, const pg_uuid_t *id, ApitokenOwner *owner);
extern bool apitoken_fetch_owner_of_events(Snapshot snapshot, const pg_uuid_t *token_id, ApitokenOwner *owner);
extern int	apitoken_fetch_older(Snapshot snapshot, const ApitokenOwner *owner, pg_uuid_t *ids, int max);
extern void apitoken_fetch_decoy(Snapshot snapshot, const pg_uuid_t *id, bool read_row);
extern List *apitoken_fetch_foreign(Snapshot snapshot, const char *format, const char *lookup_key, size_t key_length);
extern ApitokenForeign *apitoken_fetch_foreign_digest(Snapshot snapshot, const char *format, const ApitokenBytes *digest);
extern List *apitoken_fetch_foreign_fast(Snapshot snapshot, const char *format,
										 const uint8 digest[APITOKEN_DIGEST_LENGTH]);
extern ApitokenForeign *apitoken_fetch_foreign_decoy(Snapshot snapshot, const char *format, const char *lookup_key,
													 size_t key_length, bool read_row);
extern bool apitoken_fetch_label(Snapshot snapshot, const ApitokenRecord *like, ApitokenRecord *record);
extern bool apitoken_fetch_organization(Snapshot snapshot, const char *id, ApitokenOrganizationRow *row);
extern int	apitoken_count_tokens(Snapshot snapshot, const char *organization_id, int max);
extern bool apitoken_fetch_user(Snapshot snapshot, const char *id, ApitokenUserRow *user);
extern char *apitoken_forgotten_mark(const char *id);
extern bool apitoken_user_was_forgotten(Snapshot snapshot, const char *id);
extern bool apitoken_user_was_deleted(Snapshot snapshot, const char *id);
extern bool apitoken_fetch_role(Snapshot snapshot, const char *name, ApitokenRoleRow *row);
extern char *apitoken_fetch_membership(Snapshot snapshot, const char *organization_id, const char *user_id);
extern List *apitoken_fetch_memberships(Snapshot snapshot, const char *user_id);
extern List *apitoken_fetch_members(Snapshot snapshot, const char *organization_id);
extern List *apitoken_fetch_personal_use(Snapshot snapshot, const char *organization_id);
extern List *apitoken_fetch_all_ids(ApitokenTable table);
extern bool apitoken_fetch_last_used(Snapshot snapshot, const pg_uuid_t *id, int secret,
									 TimestampTz *last_used_at);
extern int64 apitoken_fetch_accepted(Snapshot snapshot, const pg_uuid_t *id, DateADT since);

/* ----- changes.c: changes of organizations, users, memberships and roles ----- */

extern bool apitoken_directory_is_watched(void);

/* ----- role.c: cache of roles ----- */

extern bool apitoken_role(const char *name, ApitokenRoleRow *row);

/* ----- write.c: statements that run as the tables' owner ----- */

typedef enum ApitokenStatement
{
	APITOKEN_NO_STATEMENT,
	APITOKEN_LOCK_ORGANIZATION,
	APITOKEN_LOCK_PLACES,
	APITOKEN_LOCK_USER,
	APITOKEN_ENSURE_USER,
	APITOKEN_REMEMBER_DELETED,
	APITOKEN_CATALOG,
	APITOKEN_LOCK_TOKEN,
	APITOKEN_REGENERATE,
	APITOKEN_END_OVERLAP,
	APITOKEN_REVOKE,
	APITOKEN_LOCK_LEAKED,
	APITOKEN_ONLY_NOTIFIES,
	APITOKEN_REVOKE_MATCHING,
	APITOKEN_END_MEMBERSHIPS_OF_USER,
	APITOKEN_END_MEMBERSHIPS_IN,
	APITOKEN_LOCK_ROLE,
	APITOKEN_MEMBERS_WITH_ROLE,
	APITOKEN_DEFAULTS_TO_ROLE,
	APITOKEN_CREATED,
	APITOKEN_CHANGED,
	APITOKEN_ORGANIZATION_CHANGED,
	APITOKEN_USER_CHANGED,
	APITOKEN_LEAKED,
	APITOKEN_IMPORT,
	APITOKEN_WRITE_FAST_DIGESTS,
	APITOKEN_REMOVE_FOREIGN,
	APITOKEN_HAS_USAGE,
	APITOKEN_HAS_DAY,
	APITOKEN_FORGET_USAGE,
	APITOKEN_TOUCH_USAGE,
	APITOKEN_ADD_USAGE,
	APITOKEN_WRITE_SAME_DAY,
	APITOKEN_WRITE_USAGE,
	APITOKEN_WRITE_PREVIOUS_USE,
	APITOKEN_TELL_REUSE,
	APITOKEN_REVOKE_REUSED,
	APITOKEN_STORE_BUILT_IN_ROLE,
	APITOKEN_STORE_ROLE,
	APITOKEN_REPLACE_ROLE,
	APITOKEN_LOCK_OWN_PRIVILEGES,
	APITOKEN_ADD_OWN_PRIVILEGE,
	APITOKEN_REMOVE_OWN_PRIVILEGE,
	APITOKEN_REVOKE_IDLE,
	APITOKEN_COUNT_SPARED,
	APITOKEN_FIND_EVENTS,
	APITOKEN_FIND_REVOKED,
	APITOKEN_FIND_EXPIRED,
	APITOKEN_REMOVE_EVENTS,
	APITOKEN_REMOVE_TOKENS,
	APITOKEN_REMOVE_DAYS,
	APITOKEN_FORGET_DAYS,
	APITOKEN_NEXT_USAGE,
	APITOKEN_REMOVE_ORPHANS,
	APITOKEN_DELETE_USER,
	APITOKEN_MARK_FORGOTTEN,
	APITOKEN_ERASE_DELETED,
	APITOKEN_ERASE_TOKENS,
	APITOKEN_ERASE_USAGE,
	APITOKEN_ERASE_EVENTS,
	APITOKEN_ERASE_RECIPIENT,
	APITOKEN_ERASE_NOTIFICATIONS,
	APITOKEN_FORGOTTEN,
	APITOKEN_FORGOTTEN_TOKENS,
	APITOKEN_NOTIFY,
	APITOKEN_NOTIFY_LEAK,
	APITOKEN_NOTIFY_EXPIRY,
	APITOKEN_NEXT_EXPIRY,
	APITOKEN_CLAIM_NOTIFICATIONS,
	APITOKEN_NOTIFICATION_DELIVERED,
	APITOKEN_NOTIFICATION_FAILED,
	APITOKEN_REMOVE_NOTIFICATIONS,
	APITOKEN_RESUME_NOTIFICATIONS,
	APITOKEN_HAS_SEEN,
	APITOKEN_WRITE_SEEN,
	APITOKEN_REMOVE_SEEN,
	APITOKEN_ERASE_SEEN,
	APITOKEN_HAS_NETWORK,
	APITOKEN_WRITE_NETWORKS,
	APITOKEN_REMOVE_NETWORKS,
	APITOKEN_ERASE_NETWORKS,
	APITOKEN_FORGOTTEN_AMONG,
	APITOKEN_CLAIM_BATCH,
	APITOKEN_BATCH_COUNTED,
	APITOKEN_REMOVE_SENDERS,
	APITOKEN_STATEMENTS
} ApitokenStatement;

extern ApitokenStatement apitoken_running_statement;
extern uint64 apitoken_execute(ApitokenStatement statement, Datum *values, const char *nulls);
extern bool apitoken_execute_value(ApitokenStatement statement, Datum *values, const char *nulls,
								   Datum *value);
extern uint64 apitoken_execute_ids(ApitokenStatement statement, Datum *values, const char *nulls,
								   pg_uuid_t **ids);

/* ----- trigger.c: functions that several trigger functions use ----- */

extern void apitoken_expect_trigger(FunctionCallInfo fcinfo, ApitokenTable table);
extern void apitoken_require_triggers(const char *action);
extern bool apitoken_column_changed(TriggerData *trigger, AttrNumber attribute);
extern bool apitoken_edited(TriggerData *trigger);

#endif							/* APITOKEN_TABLES_H */
