/*
 * tables.h
 *		The extension's objects in the catalog, and its tables read and written.
 */
#ifndef APITOKEN_TABLES_H
#define APITOKEN_TABLES_H

#include "base/base.h"

#include "access/htup.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

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
extern TupleDesc apitoken_result_type(FunctionCallInfo fcinfo, int columns);
extern Datum apitoken_form_row(ApitokenRow row, int count, const Oid *types,
							   const Datum *values, const bool *nulls);

/* ----- read.c: reads the tables, past privileges and row-level security ----- */

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

/* ----- trigger.c: what the trigger functions have in common ----- */

extern void apitoken_expect_trigger(FunctionCallInfo fcinfo, ApitokenTable table);
extern bool apitoken_column_changed(TriggerData *trigger, AttrNumber attribute);
extern bool apitoken_is_editable(AttrNumber attribute);
extern bool apitoken_edited(TriggerData *trigger);

#endif							/* APITOKEN_TABLES_H */
