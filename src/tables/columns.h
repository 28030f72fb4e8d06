/*
 * columns.h
 *		The columns of the extension's tables and composite types.
 *
 * Each line describes one column, in the order of the attribute numbers:
 *
 *	COLUMN(relation, name, type, null, granted)
 *
 * `null` is NOT_NULL if the column has that constraint.  `granted` lists the
 * privileges that capabilities grant on the column, as letters of PostgreSQL's
 * ACLs: r (SELECT), a (INSERT), w (UPDATE).  In token_records, only columns with
 * w can be updated by users; in organizations, members set them by
 * their role.
 *
 * These lines define the attribute numbers (Anum_...), the number of columns
 * (Natts_...), the check of a table's columns before it is read, and the column
 * grants.  sql/schema.sql compares them with the catalog.
 */
#ifndef APITOKEN_COLUMNS_H
#define APITOKEN_COLUMNS_H

#define ORGANIZATIONS_COLUMNS(COLUMN) \
	COLUMN(organizations, id,           TEXTOID,        NOT_NULL, "") \
	COLUMN(organizations, name,         TEXTOID,        NULLABLE, "") \
	COLUMN(organizations, suspended_at, TIMESTAMPTZOID, NULLABLE, "") \
	COLUMN(organizations, created_at,   TIMESTAMPTZOID, NOT_NULL, "") \
	COLUMN(organizations, idle_timeout, INTERVALOID,    NULLABLE, "") \
	COLUMN(organizations, resumed_at,   TIMESTAMPTZOID, NULLABLE, "") \
	COLUMN(organizations, max_lifetime,          INTERVALOID,  NULLABLE, "w") \
	COLUMN(organizations, require_expiry,        BOOLOID,      NOT_NULL, "w") \
	COLUMN(organizations, max_tokens,            INT4OID,      NULLABLE, "w") \
	COLUMN(organizations, allowed_networks,      CIDRARRAYOID, NULLABLE, "w") \
	COLUMN(organizations, default_role,          TEXTOID,      NULLABLE, "w") \
	COLUMN(organizations, allow_personal_tokens, BOOLOID,      NOT_NULL, "w") \
	COLUMN(organizations, notify,                TEXTARRAYOID, NULLABLE, "w") \
	COLUMN(organizations, revoke_on_reuse,       BOOLOID,      NOT_NULL, "w") \
	COLUMN(organizations, on_leak,               TEXTOID,      NOT_NULL, "w")

#define USERS_COLUMNS(COLUMN) \
	COLUMN(users, id,           TEXTOID,        NOT_NULL, "r") \
	COLUMN(users, name,         TEXTOID,        NULLABLE, "r") \
	COLUMN(users, email,        TEXTOID,        NULLABLE, "") \
	COLUMN(users, groups,       TEXTARRAYOID,   NOT_NULL, "r") \
	COLUMN(users, role,         TEXTOID,        NULLABLE, "r") \
	COLUMN(users, suspended_at, TIMESTAMPTZOID, NULLABLE, "r") \
	COLUMN(users, created_at,   TIMESTAMPTZOID, NOT_NULL, "r") \
	COLUMN(users, notify,       TEXTARRAYOID,   NULLABLE, "r")

#define DELETED_USERS_COLUMNS(COLUMN) \
	COLUMN(deleted_users, id,         TEXTOID,        NOT_NULL, "") \
	COLUMN(deleted_users, deleted_at, TIMESTAMPTZOID, NOT_NULL, "")

/* beneath the view roles */
#define ROLE_RECORDS_COLUMNS(COLUMN) \
	COLUMN(role_records, name,          TEXTOID,      NOT_NULL, "a") \
	COLUMN(role_records, description,   TEXTOID,      NULLABLE, "aw") \
	COLUMN(role_records, permissions,   TEXTARRAYOID, NOT_NULL, "aw") \
	COLUMN(role_records, database_role, NAMEOID,      NULLABLE, "")

/* a child of role_records */
#define BUILT_IN_ROLES_COLUMNS(COLUMN) \
	COLUMN(built_in_roles, name,          TEXTOID,      NOT_NULL, "") \
	COLUMN(built_in_roles, description,   TEXTOID,      NULLABLE, "") \
	COLUMN(built_in_roles, permissions,   TEXTARRAYOID, NOT_NULL, "") \
	COLUMN(built_in_roles, database_role, NAMEOID,      NULLABLE, "")

#define MEMBERSHIPS_COLUMNS(COLUMN) \
	COLUMN(memberships, organization_id, TEXTOID, NOT_NULL, "") \
	COLUMN(memberships, user_id,         TEXTOID, NOT_NULL, "") \
	COLUMN(memberships, role,            TEXTOID, NOT_NULL, "")

/* A verification reads the columns up to masked.  Columns that it does not need follow. */
#define TOKEN_RECORDS_COLUMNS(COLUMN) \
	COLUMN(token_records, id,                     UUIDOID,        NOT_NULL, "r") \
	COLUMN(token_records, created_at,             TIMESTAMPTZOID, NOT_NULL, "r") \
	COLUMN(token_records, updated_at,             TIMESTAMPTZOID, NOT_NULL, "r") \
	COLUMN(token_records, expires_at,             TIMESTAMPTZOID, NULLABLE, "raw") \
	COLUMN(token_records, suspended_at,           TIMESTAMPTZOID, NULLABLE, "rw") \
	COLUMN(token_records, revoked_at,             TIMESTAMPTZOID, NULLABLE, "r") \
	COLUMN(token_records, regenerated_at,         TIMESTAMPTZOID, NULLABLE, "r") \
	COLUMN(token_records, quota,                  INT8OID,        NULLABLE, "raw") \
	COLUMN(token_records, rate_limit_per_minute,  INT4OID,        NULLABLE, "raw") \
	COLUMN(token_records, digest_scheme,          INT2OID,        NOT_NULL, "") \
	COLUMN(token_records, digest,                 BYTEAOID,       NOT_NULL, "") \
	COLUMN(token_records, previous_expires_at,    TIMESTAMPTZARRAYOID, NULLABLE, "r") \
	COLUMN(token_records, previous_replaced_at,   TIMESTAMPTZARRAYOID, NULLABLE, "r") \
	COLUMN(token_records, previous_digest_scheme, INT2ARRAYOID,   NULLABLE, "") \
	COLUMN(token_records, previous_digest,        BYTEAOID,       NULLABLE, "") \
	COLUMN(token_records, organization_id,        TEXTOID,        NULLABLE, "ra") \
	COLUMN(token_records, user_id,                TEXTOID,        NULLABLE, "ra") \
	COLUMN(token_records, label,                  TEXTOID,        NOT_NULL, "raw") \
	COLUMN(token_records, quota_period,           TEXTOID,        NULLABLE, "raw") \
	COLUMN(token_records, access,                 TEXTOID,        NOT_NULL, "raw") \
	COLUMN(token_records, role,                   TEXTOID,        NULLABLE, "raw") \
	COLUMN(token_records, permissions,            TEXTARRAYOID,   NULLABLE, "raw") \
	COLUMN(token_records, allowed_networks,       CIDRARRAYOID,   NULLABLE, "raw") \
	COLUMN(token_records, metadata,               JSONBOID,       NOT_NULL, "raw") \
	COLUMN(token_records, masked,                 TEXTOID,        NOT_NULL, "r") \
	COLUMN(token_records, created_by,             TEXTOID,        NULLABLE, "r") \
	COLUMN(token_records, created_by_name,        TEXTOID,        NULLABLE, "r") \
	COLUMN(token_records, description,            TEXTOID,        NULLABLE, "raw") \
	COLUMN(token_records, revoked_by,             TEXTOID,        NULLABLE, "r") \
	COLUMN(token_records, revoke_reason,          TEXTOID,        NULLABLE, "r") \
	COLUMN(token_records, expiry_notified_at,     TIMESTAMPTZOID, NULLABLE, "") \
	COLUMN(token_records, previous_reused_at,     TIMESTAMPTZARRAYOID, NULLABLE, "") \
	COLUMN(token_records, imported_as,            TEXTOID,        NULLABLE, "r")

#define TOKEN_USAGE_COLUMNS(COLUMN) \
	COLUMN(token_usage, token_id,       UUIDOID,        NOT_NULL, "") \
	COLUMN(token_usage, refused,        INT8OID,        NOT_NULL, "") \
	COLUMN(token_usage, day_refused,    INT8OID,        NULLABLE, "") \
	COLUMN(token_usage, last_day,       DATEOID,        NULLABLE, "") \
	COLUMN(token_usage, last_used_at,   TIMESTAMPTZOID, NULLABLE, "") \
	COLUMN(token_usage, accepted,       INT8OID,        NOT_NULL, "") \
	COLUMN(token_usage, day_accepted,   INT8OID,        NULLABLE, "") \
	COLUMN(token_usage, last_used_from, INETOID,        NULLABLE, "") \
	COLUMN(token_usage, day_refusals,   JSONBOID,       NULLABLE, "") \
	COLUMN(token_usage, previous_last_used_at, TIMESTAMPTZARRAYOID, NULLABLE, "")

#define TOKEN_DAYS_COLUMNS(COLUMN) \
	COLUMN(token_days, token_id, UUIDOID,  NOT_NULL, "r") \
	COLUMN(token_days, day,      DATEOID,  NOT_NULL, "r") \
	COLUMN(token_days, accepted, INT8OID,  NOT_NULL, "r") \
	COLUMN(token_days, refused,  INT8OID,  NOT_NULL, "r") \
	COLUMN(token_days, refusals, JSONBOID, NULLABLE, "r")

#define EVENTS_COLUMNS(COLUMN) \
	COLUMN(events, id,              UUIDOID,        NOT_NULL, "") \
	COLUMN(events, at,              TIMESTAMPTZOID, NOT_NULL, "") \
	COLUMN(events, action,          TEXTOID,        NOT_NULL, "") \
	COLUMN(events, token_id,        UUIDOID,        NULLABLE, "") \
	COLUMN(events, organization_id, TEXTOID,        NULLABLE, "") \
	COLUMN(events, user_id,         TEXTOID,        NULLABLE, "") \
	COLUMN(events, actor,           TEXTOID,        NULLABLE, "") \
	COLUMN(events, actor_token_id,  UUIDOID,        NULLABLE, "") \
	COLUMN(events, database_user,   NAMEOID,        NOT_NULL, "") \
	COLUMN(events, client_address,  INETOID,        NULLABLE, "") \
	COLUMN(events, details,         JSONBOID,       NOT_NULL, "")

/* Addresses, also those in errors, and who has them, are for the mailer alone. */
#define NOTIFICATIONS_COLUMNS(COLUMN) \
	COLUMN(notifications, id,              UUIDOID,        NOT_NULL, "r") \
	COLUMN(notifications, created_at,      TIMESTAMPTZOID, NOT_NULL, "r") \
	COLUMN(notifications, event,           TEXTOID,        NOT_NULL, "r") \
	COLUMN(notifications, token_id,        UUIDOID,        NOT_NULL, "r") \
	COLUMN(notifications, organization_id, TEXTOID,        NULLABLE, "r") \
	COLUMN(notifications, user_id,         TEXTOID,        NULLABLE, "r") \
	COLUMN(notifications, payload,         JSONBOID,       NOT_NULL, "r") \
	COLUMN(notifications, recipients,      TEXTARRAYOID,   NOT_NULL, "") \
	COLUMN(notifications, attempts,        INT4OID,        NOT_NULL, "r") \
	COLUMN(notifications, next_attempt_at, TIMESTAMPTZOID, NULLABLE, "r") \
	COLUMN(notifications, delivered_at,    TIMESTAMPTZOID, NULLABLE, "r") \
	COLUMN(notifications, last_error,      TEXTOID,        NULLABLE, "") \
	COLUMN(notifications, recipient_ids,   TEXTARRAYOID,   NOT_NULL, "")

/* Members read it through the view personal_tokens_seen. */
#define PERSONAL_TOKEN_USE_COLUMNS(COLUMN) \
	COLUMN(personal_token_use, organization_id, TEXTOID,        NOT_NULL, "") \
	COLUMN(personal_token_use, token_id,        UUIDOID,        NOT_NULL, "") \
	COLUMN(personal_token_use, last_used_at,    TIMESTAMPTZOID, NOT_NULL, "")

#define TOKEN_NETWORKS_COLUMNS(COLUMN) \
	COLUMN(token_networks, token_id,      UUIDOID,        NOT_NULL, "") \
	COLUMN(token_networks, network,       CIDROID,        NOT_NULL, "") \
	COLUMN(token_networks, first_seen_at, TIMESTAMPTZOID, NOT_NULL, "") \
	COLUMN(token_networks, last_seen_at,  TIMESTAMPTZOID, NOT_NULL, "")

#define USAGE_SENDERS_COLUMNS(COLUMN) \
	COLUMN(usage_senders, sender,         UUIDOID,        NOT_NULL, "") \
	COLUMN(usage_senders, batch,          UUIDOID,        NOT_NULL, "") \
	COLUMN(usage_senders, received_at,    TIMESTAMPTZOID, NOT_NULL, "") \
	COLUMN(usage_senders, database_user,  NAMEOID,        NOT_NULL, "") \
	COLUMN(usage_senders, client_address, INETOID,        NULLABLE, "")

/* What other systems stored of tokens that were imported from them. */
#define FOREIGN_DIGESTS_COLUMNS(COLUMN) \
	COLUMN(foreign_digests, token_id,           UUIDOID,  NOT_NULL, "") \
	COLUMN(foreign_digests, format,             TEXTOID,  NOT_NULL, "") \
	COLUMN(foreign_digests, lookup_key,         TEXTOID,  NULLABLE, "") \
	COLUMN(foreign_digests, digest,             BYTEAOID, NOT_NULL, "") \
	COLUMN(foreign_digests, salt,               BYTEAOID, NULLABLE, "") \
	COLUMN(foreign_digests, fast_digest_scheme, INT2OID,  NULLABLE, "") \
	COLUMN(foreign_digests, fast_digest,        BYTEAOID, NULLABLE, "")

/* Composite types that functions return. */

#define VERIFICATION_COLUMNS(COLUMN) \
	COLUMN(verification, valid,           BOOLOID,        NULLABLE, "") \
	COLUMN(verification, verdict,         TEXTOID,        NULLABLE, "") \
	COLUMN(verification, token_id,        UUIDOID,        NULLABLE, "") \
	COLUMN(verification, label,           TEXTOID,        NULLABLE, "") \
	COLUMN(verification, kind,            TEXTOID,        NULLABLE, "") \
	COLUMN(verification, organization_id, TEXTOID,        NULLABLE, "") \
	COLUMN(verification, user_id,         TEXTOID,        NULLABLE, "") \
	COLUMN(verification, role,            TEXTOID,        NULLABLE, "") \
	COLUMN(verification, access,          TEXTOID,        NULLABLE, "") \
	COLUMN(verification, permissions,     TEXTARRAYOID,   NULLABLE, "") \
	COLUMN(verification, groups,          TEXTARRAYOID,   NULLABLE, "") \
	COLUMN(verification, expires_at,      TIMESTAMPTZOID, NULLABLE, "") \
	COLUMN(verification, metadata,        JSONBOID,       NULLABLE, "") \
	COLUMN(verification, retry_after,     INTERVALOID,    NULLABLE, "") \
	COLUMN(verification, remaining,       INT8OID,        NULLABLE, "") \
	COLUMN(verification, secret,          TEXTOID,        NULLABLE, "")

#define ISSUED_TOKEN_COLUMNS(COLUMN) \
	COLUMN(issued_token, id,         UUIDOID,        NULLABLE, "") \
	COLUMN(issued_token, token,      TEXTOID,        NULLABLE, "") \
	COLUMN(issued_token, masked,     TEXTOID,        NULLABLE, "") \
	COLUMN(issued_token, expires_at, TIMESTAMPTZOID, NULLABLE, "")

/*
 * The relations: RELATION(C name, schema, name).  ApitokenTable has the order of
 * the tables, ApitokenRow that of the types.
 */
/* It has none: see changes.c. */
#define DIRECTORY_CHANGES_COLUMNS(COLUMN)

#define TABLE_RELATIONS(RELATION) \
	RELATION(ORGANIZATIONS, apitoken, organizations) \
	RELATION(USERS, apitoken, users) \
	RELATION(DELETED_USERS, apitoken_internal, deleted_users) \
	RELATION(ROLE_RECORDS, apitoken_internal, role_records) \
	RELATION(BUILT_IN_ROLES, apitoken_internal, built_in_roles) \
	RELATION(MEMBERSHIPS, apitoken, memberships) \
	RELATION(DIRECTORY_CHANGES, apitoken_internal, directory_changes) \
	RELATION(TOKEN_RECORDS, apitoken_internal, token_records) \
	RELATION(TOKEN_USAGE, apitoken, token_usage) \
	RELATION(TOKEN_DAYS, apitoken_internal, token_days) \
	RELATION(EVENTS, apitoken, events) \
	RELATION(NOTIFICATIONS, apitoken, notifications) \
	RELATION(PERSONAL_TOKEN_USE, apitoken_internal, personal_token_use) \
	RELATION(TOKEN_NETWORKS, apitoken_internal, token_networks) \
	RELATION(USAGE_SENDERS, apitoken_internal, usage_senders) \
	RELATION(FOREIGN_DIGESTS, apitoken_internal, foreign_digests)

#define ROW_RELATIONS(RELATION) \
	RELATION(VERIFICATION, apitoken, verification) \
	RELATION(ISSUED_TOKEN, apitoken, issued_token)

#define COLUMN_NUMBER(relation, name, type, null, granted) Anum_##relation##_##name,
#define RELATION_NUMBERS(NAME, schema, name) \
	enum { Anum_##name##_0, NAME##_COLUMNS(COLUMN_NUMBER) End_##name, Natts_##name = End_##name - 1 };

TABLE_RELATIONS(RELATION_NUMBERS)
ROW_RELATIONS(RELATION_NUMBERS)

#define TABLE_ENUM(NAME, schema, name) APITOKEN_##NAME,
#define ROW_ENUM(NAME, schema, name) APITOKEN_##NAME##_ROW,

typedef enum ApitokenTable
{
	TABLE_RELATIONS(TABLE_ENUM)
	APITOKEN_TABLES
} ApitokenTable;

typedef enum ApitokenRow
{
	ROW_RELATIONS(ROW_ENUM)
	APITOKEN_ROWS
} ApitokenRow;

#endif							/* APITOKEN_COLUMNS_H */
