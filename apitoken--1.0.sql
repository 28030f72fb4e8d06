/* apitoken--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION apitoken" to load this file. \quit

/*
 * All objects are created plainly (never with OR REPLACE or IF NOT EXISTS), in
 * two schemas that this script creates itself.  If a schema of one of these names
 * exists already, the installation fails and changes nothing.  All names are
 * schema-qualified.  Operators in expressions are resolved in pg_catalog alone:
 * this is the extension's own schema, and therefore the script's search_path.
 */
CREATE SCHEMA apitoken;
COMMENT ON SCHEMA apitoken IS 'API tokens: create, verify, list, edit, regenerate, revoke, audit and rate-limit tokens; the current identity and its permissions';

-- Nobody needs USAGE on this schema.  Names in views and policies are resolved
-- when these are created, and later only privileges on tables and functions are
-- checked.
CREATE SCHEMA apitoken_internal;
COMMENT ON SCHEMA apitoken_internal IS 'Internal objects of the extension apitoken: the table of tokens, trigger functions, helpers of policies and views; not for direct use';

CREATE FUNCTION apitoken_internal.check_id(owner text, id text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_check_id_sql' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.check_id(text, text) IS 'For CHECK constraints: true if the text can be the id of an owner (user or organization); null for null; 22023 otherwise';
CREATE FUNCTION apitoken_internal.check_permission(permission text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_check_permission_sql' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.check_permission(text) IS 'For a CHECK constraint: true if the text is a permission (resource:action, without *); null for null; 22023 otherwise';
CREATE FUNCTION apitoken_internal.check_notify(events text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_check_notify' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.check_notify(text[]) IS 'For CHECK constraints: true if the array has only names of events that notifications are about; null for null; 22023 otherwise';

-- A function, because the server reads each constraint anew for each statement that
-- writes to the table: the same in SQL took a seventh of the time of a create_token().
CREATE FUNCTION apitoken_internal.check_previous(expires_at timestamptz[], replaced_at timestamptz[], digest_scheme smallint[], digest bytea) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_check_previous' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.check_previous(timestamptz[], timestamptz[], smallint[], bytea) IS 'For a CHECK constraint: true if these can be the previous secrets of a token, that is, all are null, or each array has one dimension and as many elements as the others, from 1 on and at most 4, none of them null or an infinite time, and there is a digest of 32 bytes for each; false otherwise';

-- Ids in function arguments.  The casts accept the application's keys as drivers send
-- them: a number, a uuid, a text, or a parameter without a type.  Overloaded functions
-- would do this as well, but PostgREST cannot choose between functions with the same
-- argument names.
CREATE TYPE apitoken.id;
CREATE FUNCTION apitoken_internal.id_in(cstring) RETURNS apitoken.id
	AS 'textin' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.id_in(cstring) IS 'Input of the type apitoken.id';
CREATE FUNCTION apitoken_internal.id_out(apitoken.id) RETURNS cstring
	AS 'textout' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.id_out(apitoken.id) IS 'Output of the type apitoken.id';
CREATE FUNCTION apitoken_internal.id_recv(internal) RETURNS apitoken.id
	AS 'textrecv' LANGUAGE internal STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.id_recv(internal) IS 'Binary input of the type apitoken.id';
CREATE FUNCTION apitoken_internal.id_send(apitoken.id) RETURNS bytea
	AS 'textsend' LANGUAGE internal STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.id_send(apitoken.id) IS 'Binary output of the type apitoken.id';
CREATE TYPE apitoken.id (
	INPUT = apitoken_internal.id_in, OUTPUT = apitoken_internal.id_out,
	RECEIVE = apitoken_internal.id_recv, SEND = apitoken_internal.id_send,
	LIKE = pg_catalog.text
);
COMMENT ON TYPE apitoken.id IS 'Id of an organization or user in the arguments of functions: the application''s own key, of type text, uuid, bigint, integer or smallint';
CREATE CAST (pg_catalog.text AS apitoken.id) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (pg_catalog.varchar AS apitoken.id) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (pg_catalog.name AS apitoken.id) WITH INOUT AS IMPLICIT;
CREATE CAST (pg_catalog.uuid AS apitoken.id) WITH INOUT AS IMPLICIT;
CREATE CAST (pg_catalog.int8 AS apitoken.id) WITH INOUT AS IMPLICIT;
CREATE CAST (pg_catalog.int4 AS apitoken.id) WITH INOUT AS IMPLICIT;
CREATE CAST (pg_catalog.int2 AS apitoken.id) WITH INOUT AS IMPLICIT;
CREATE CAST (apitoken.id AS pg_catalog.text) WITHOUT FUNCTION AS ASSIGNMENT;

------------------------------------------------------------------------------
-- Tables
--
-- src/tables/columns.h describes the columns that C code reads, and sql/schema.sql
-- compares it with the catalog.  Ids of organizations and users are the
-- application's own.  They are stored as text, so that uuid, bigint and text keys
-- all fit, and are compared by byte (COLLATE "C").  So each key must have one text:
-- see src/text/id.c.
------------------------------------------------------------------------------

CREATE TABLE apitoken.organizations (
	id           text COLLATE "C" PRIMARY KEY CHECK (apitoken_internal.check_id('organization', id)),
	name         text,
	suspended_at timestamptz,
	created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
	idle_timeout interval,
	resumed_at   timestamptz CHECK (pg_catalog.isfinite(resumed_at)),
	max_lifetime          interval,
	require_expiry        boolean NOT NULL DEFAULT false,
	max_tokens            integer CHECK (max_tokens BETWEEN 0 AND 1000000),
	allowed_networks      cidr[],
	default_role          text COLLATE "C",
	allow_personal_tokens boolean NOT NULL DEFAULT true,
	notify                text[] DEFAULT '{create,revoke,expire,leak}' CHECK (apitoken_internal.check_notify(notify)),
	revoke_on_reuse boolean NOT NULL DEFAULT false,
	on_leak text COLLATE "C" NOT NULL DEFAULT 'revoke' CONSTRAINT organizations_on_leak CHECK (on_leak IN ('revoke', 'notify')),
	CONSTRAINT organizations_max_lifetime CHECK (
		max_lifetime BETWEEN '1 minute' AND '100 years'
		AND LEAST(EXTRACT(year FROM max_lifetime), EXTRACT(month FROM max_lifetime),
				  EXTRACT(day FROM max_lifetime), EXTRACT(hour FROM max_lifetime)) >= 0),
	-- no field is negative: a mixed interval could be over at once in a short month
	CONSTRAINT organizations_idle_timeout CHECK (
		idle_timeout BETWEEN '1 minute' AND '100 years'
		AND LEAST(EXTRACT(year FROM idle_timeout), EXTRACT(month FROM idle_timeout),
				  EXTRACT(day FROM idle_timeout), EXTRACT(hour FROM idle_timeout)) >= 0)
);
COMMENT ON TABLE apitoken.organizations IS 'Organizations that may own tokens; the application keeps them in step with its own table';
COMMENT ON COLUMN apitoken.organizations.id IS 'The application''s own id, as text of 1 to 255 bytes: a uuid or a bigint as its output writes it; cannot change';
COMMENT ON COLUMN apitoken.organizations.name IS 'Display name; null: none given';
COMMENT ON COLUMN apitoken.organizations.suspended_at IS 'Time of the suspension; while it is not null, all tokens of the organization are refused and its members may do nothing there; null: not suspended';
COMMENT ON COLUMN apitoken.organizations.created_at IS 'When the row was created';
COMMENT ON COLUMN apitoken.organizations.idle_timeout IS 'Time after which run_maintenance() revokes tokens that were not used, changed or resumed; 1 minute to 100 years; null: never';
COMMENT ON COLUMN apitoken.organizations.resumed_at IS 'When the last suspension ended; the idle time of the tokens starts no earlier; null: no suspension has ended';
COMMENT ON COLUMN apitoken.organizations.max_lifetime IS 'Longest time from the creation or last regeneration of a token to its expiry, 1 minute to 100 years; other tokens of the organization are refused, and so are other personal tokens in it; null: no limit';
COMMENT ON COLUMN apitoken.organizations.require_expiry IS 'True: tokens of the organization that never expire are refused, and so are such personal tokens in it';
COMMENT ON COLUMN apitoken.organizations.max_tokens IS 'Greatest number of tokens of the organization that are not revoked, 0 to 1000000; no token is created beyond it; null: no limit';
COMMENT ON COLUMN apitoken.organizations.allowed_networks IS 'Networks from which tokens of the organization are accepted; a token''s own list must contain the address too; null: from everywhere';
COMMENT ON COLUMN apitoken.organizations.default_role IS 'Role of a new token of the organization for which none is given; null: developer';
COMMENT ON COLUMN apitoken.organizations.allow_personal_tokens IS 'False: personal tokens may do nothing in the organization; users who act directly may';
COMMENT ON COLUMN apitoken.organizations.notify IS 'Events of its tokens that members who may read tokens are told by notifications: create, regenerate, suspend, revoke, expire, reuse, leak, new_network; null or empty: none';
COMMENT ON COLUMN apitoken.organizations.revoke_on_reuse IS 'True: a token is revoked when a previous secret of it is used after its overlap; needs shared preload';
COMMENT ON COLUMN apitoken.organizations.on_leak IS 'What report_leaked() does with a token of the organization: revoke, or notify (an event and a notification only)';

CREATE TABLE apitoken.users (
	id           text COLLATE "C" PRIMARY KEY CHECK (apitoken_internal.check_id('user', id)),
	name         text,
	email        text,
	groups       text[] NOT NULL DEFAULT '{}',
	role         text,
	suspended_at timestamptz,
	created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
	notify       text[] DEFAULT '{create,revoke,expire,leak}' CHECK (apitoken_internal.check_notify(notify))
);
COMMENT ON TABLE apitoken.users IS 'Users: owners of personal tokens and members of organizations; a user without a row gets one with their first token, unless the row was deleted or apitoken.require_known_users is on';
COMMENT ON COLUMN apitoken.users.id IS 'The application''s own id, as text of 1 to 255 bytes: a uuid or a bigint as its output writes it; cannot change';
COMMENT ON COLUMN apitoken.users.name IS 'Display name, visible to the user and to members of the same organizations; null: none given';
COMMENT ON COLUMN apitoken.users.email IS 'E-mail address, visible to the user only; null: none given';
COMMENT ON COLUMN apitoken.users.groups IS 'Visibility groups, which current_groups() returns for this user and for their personal tokens';
COMMENT ON COLUMN apitoken.users.role IS 'Name of the role that limits what the user may do outside organizations; null: no limit';
COMMENT ON COLUMN apitoken.users.suspended_at IS 'Time of the suspension; while it is not null, the user may do nothing and their personal tokens are refused; null: not suspended';
COMMENT ON COLUMN apitoken.users.created_at IS 'When the row was created';
COMMENT ON COLUMN apitoken.users.notify IS 'Events of their personal tokens that the user is told by notifications: create, regenerate, suspend, revoke, expire, reuse, leak, new_network; null or empty: none';

CREATE TABLE apitoken_internal.deleted_users (
	id         text COLLATE "C" PRIMARY KEY,
	deleted_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE apitoken_internal.deleted_users IS 'Users whose row in users was deleted; without a new row, they cannot be acted as, and no token creates the row. Of a user who was forgotten, it has the SHA-256 digest of the id.';

-- The table beneath the view roles.  Only its own rows count for verification.  The
-- built-in roles are rows of a child, which shows them in the view as long as the
-- table has no row of that name.  The first organization, use or change of one of
-- them stores it in the table.  So no row of this script can be in the way of a restored or
-- replicated row, whether triggers fire or not, and no built-in role takes the
-- place of one that is not restored yet.
CREATE TABLE apitoken_internal.role_records (
	name          text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(name) BETWEEN 1 AND 63),
	description   text,
	permissions   text[] NOT NULL,
	database_role name
);
COMMENT ON TABLE apitoken_internal.role_records IS 'Table beneath the view apitoken.roles, which clients use';
CREATE TABLE apitoken_internal.built_in_roles (
	PRIMARY KEY (name)
) INHERITS (apitoken_internal.role_records);
COMMENT ON TABLE apitoken_internal.built_in_roles IS 'Built-in roles as they are before their first use or change, which stores them in role_records';
INSERT INTO apitoken_internal.built_in_roles (name, description, permissions) VALUES
	('admin', 'Everything, tokens included', '{*}'),
	('developer', 'Everything but tokens', '{*:read,*:list,*:write,*:create,*:update,*:delete}');

CREATE VIEW apitoken.roles AS
SELECT r.name, r.description, r.permissions, r.database_role
FROM apitoken_internal.role_records r
WHERE r.tableoid = 'apitoken_internal.role_records'::pg_catalog.regclass
	OR NOT EXISTS (SELECT FROM ONLY apitoken_internal.role_records s WHERE s.name = r.name);
COMMENT ON VIEW apitoken.roles IS 'Roles: named sets of permissions that members have in organizations and that tokens of organizations have';
COMMENT ON COLUMN apitoken.roles.name IS 'Name of the role, one line of 1 to 63 bytes without blank characters at its ends; admin and developer are built in and cannot be renamed or deleted';
COMMENT ON COLUMN apitoken.roles.description IS 'Purpose of the role; null: none given';
COMMENT ON COLUMN apitoken.roles.permissions IS 'Patterns of the permissions: resource:action, with * for either half, or * for everything; permissions of the resource token are included only by *, by token:* or by name';
COMMENT ON COLUMN apitoken.roles.database_role IS 'Database role that authenticate() and pre_request() enter until the transaction ends (42501 if the session user is not a member of it); only the tables'' owner may set it; null: none';

-- The catalog of permissions, which the application fills or leaves empty: see
-- apitoken_check_known() in src/manage/validate.c.
CREATE TABLE apitoken.permissions (
	name        text COLLATE "C" PRIMARY KEY CHECK (apitoken_internal.check_permission(name)),
	description text,
	resource    text COLLATE "C" GENERATED ALWAYS AS (pg_catalog.split_part(name, ':', 1)) STORED,
	action      text COLLATE "C" GENERATED ALWAYS AS (pg_catalog.split_part(name, ':', 2)) STORED
);
COMMENT ON TABLE apitoken.permissions IS 'Catalog of the permissions that the application knows, which pages offer; while it has rows, permissions of tokens and roles that match none of them are refused (apitoken.allow_unknown_permissions). It gives no permission to anybody';
COMMENT ON COLUMN apitoken.permissions.name IS 'The permission: resource:action, without *';
COMMENT ON COLUMN apitoken.permissions.description IS 'What it allows, for people; null: none given';
COMMENT ON COLUMN apitoken.permissions.resource IS 'The part of the name before the colon';
COMMENT ON COLUMN apitoken.permissions.action IS 'The part of the name after the colon';

-- There are no foreign keys.  Those of an extension exist before a restore loads
-- data, and pg_restore --jobs loads the tables in any order.  Triggers do the work
-- of foreign keys.
CREATE TABLE apitoken.memberships (
	organization_id text COLLATE "C" NOT NULL CHECK (apitoken_internal.check_id('organization', organization_id)),
	user_id         text COLLATE "C" NOT NULL CHECK (apitoken_internal.check_id('user', user_id)),
	role            text COLLATE "C" NOT NULL,
	PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX memberships_user_id_idx ON apitoken.memberships (user_id, organization_id);
CREATE INDEX memberships_role_idx ON apitoken.memberships (role);
COMMENT ON TABLE apitoken.memberships IS 'Members of organizations and their roles';
COMMENT ON COLUMN apitoken.memberships.organization_id IS 'The organization; deleting it ends its memberships';
COMMENT ON COLUMN apitoken.memberships.user_id IS 'The user, who needs no row in users; deleting that row ends the memberships';
COMMENT ON COLUMN apitoken.memberships.role IS 'Name of the member''s role in the organization';

-- No relation depends on it, so that an invalidation of it costs nothing else.
CREATE TABLE apitoken_internal.directory_changes ();
COMMENT ON TABLE apitoken_internal.directory_changes IS 'Always empty. Sessions are told through it that organizations, users, memberships or roles have changed: see src/tables/changes.c';

CREATE TABLE apitoken_internal.token_records (
	id                     uuid PRIMARY KEY,
	created_at             timestamptz NOT NULL,
	updated_at             timestamptz NOT NULL,
	expires_at             timestamptz,
	suspended_at           timestamptz,
	revoked_at             timestamptz,
	regenerated_at         timestamptz,
	quota                  bigint,
	rate_limit_per_minute  integer,
	digest_scheme          smallint NOT NULL,
	digest                 bytea NOT NULL CHECK (pg_catalog.octet_length(digest) = 32),
	previous_expires_at    timestamptz[],
	previous_replaced_at   timestamptz[],
	previous_digest_scheme smallint[],
	previous_digest        bytea,
	organization_id        text COLLATE "C" CHECK (apitoken_internal.check_id('organization', organization_id)),
	user_id                text COLLATE "C" CHECK (apitoken_internal.check_id('user', user_id)),
	label                  text NOT NULL,
	quota_period           text COLLATE "C",
	access                 text COLLATE "C" NOT NULL CHECK (access IN ('read_only', 'full', 'custom')),
	role                   text COLLATE "C",
	permissions            text[],
	allowed_networks       cidr[],
	metadata               jsonb NOT NULL DEFAULT '{}',
	masked                 text COLLATE "C" NOT NULL,
	created_by             text COLLATE "C",
	created_by_name        text,
	description            text,
	revoked_by             text COLLATE "C",
	revoke_reason          text,
	expiry_notified_at     timestamptz,
	previous_reused_at     timestamptz[],
	imported_as            text COLLATE "C",
	CONSTRAINT token_records_one_owner CHECK (pg_catalog.num_nonnulls(organization_id, user_id) = 1),
	CONSTRAINT token_records_role CHECK ((organization_id IS NULL) = (role IS NULL)),
	CONSTRAINT token_records_custom CHECK ((access = 'custom') = (permissions IS NOT NULL)),
	CONSTRAINT token_records_previous CHECK (
		apitoken_internal.check_previous(previous_expires_at, previous_replaced_at, previous_digest_scheme, previous_digest)),
	CONSTRAINT token_records_imported CHECK ((digest_scheme < 0) = (imported_as IS NOT NULL)),
	-- A row that a restore or replication brings must not make reading the tokens fail.
	CONSTRAINT token_records_times CHECK (
		pg_catalog.isfinite(created_at) AND pg_catalog.isfinite(updated_at) AND pg_catalog.isfinite(expires_at)
		AND pg_catalog.isfinite(suspended_at) AND pg_catalog.isfinite(revoked_at) AND pg_catalog.isfinite(regenerated_at)),
	CONSTRAINT token_records_rate_limit CHECK (rate_limit_per_minute BETWEEN 1 AND 1000000),
	CONSTRAINT token_records_quota CHECK (quota BETWEEN 1 AND 999999999999999),
	CONSTRAINT token_records_quota_period CHECK (quota_period IS NULL OR (quota_period IN ('day', 'month') AND quota IS NOT NULL)),
	CONSTRAINT token_records_label CHECK (pg_catalog.char_length(label) <= 255),
	CONSTRAINT token_records_metadata CHECK (pg_catalog.jsonb_typeof(metadata) = 'object')
);
-- A verification reads these in the row itself, and never from another table.
ALTER TABLE apitoken_internal.token_records
	ALTER previous_expires_at SET STORAGE PLAIN, ALTER previous_replaced_at SET STORAGE PLAIN,
	ALTER previous_digest_scheme SET STORAGE PLAIN, ALTER previous_digest SET STORAGE PLAIN;
-- Labels of imported tokens need not be unique: the last column tells them apart.
CREATE UNIQUE INDEX token_records_organization_label_key
	ON apitoken_internal.token_records (organization_id, label COLLATE "C", (CASE WHEN digest_scheme < 0 THEN id END)) NULLS NOT DISTINCT
	WHERE revoked_at IS NULL AND organization_id IS NOT NULL;
CREATE UNIQUE INDEX token_records_user_label_key
	ON apitoken_internal.token_records (user_id, label COLLATE "C", (CASE WHEN digest_scheme < 0 THEN id END)) NULLS NOT DISTINCT
	WHERE revoked_at IS NULL AND user_id IS NOT NULL;
ALTER INDEX apitoken_internal.token_records_organization_label_key ALTER COLUMN 3 SET STATISTICS 0;
ALTER INDEX apitoken_internal.token_records_user_label_key ALTER COLUMN 3 SET STATISTICS 0;
CREATE INDEX token_records_organization_id_idx ON apitoken_internal.token_records (organization_id, created_at DESC, id DESC)
	WHERE organization_id IS NOT NULL;
CREATE INDEX token_records_user_id_idx ON apitoken_internal.token_records (user_id, created_at DESC, id DESC)
	WHERE user_id IS NOT NULL;
CREATE INDEX token_records_revoked_at_idx ON apitoken_internal.token_records (revoked_at)
	WHERE revoked_at IS NOT NULL;
CREATE INDEX token_records_expires_at_idx ON apitoken_internal.token_records (expires_at)
	WHERE expires_at IS NOT NULL AND revoked_at IS NULL;
COMMENT ON TABLE apitoken_internal.token_records IS 'Table beneath the view apitoken.tokens, which clients use; only the extension''s own functions and triggers create, change and revoke tokens';
COMMENT ON COLUMN apitoken_internal.token_records.previous_expires_at IS 'For each previous secret, at most 4: end of its overlap, until which it is accepted; one whose overlap is over stays until another secret takes its place; null: none';
COMMENT ON COLUMN apitoken_internal.token_records.previous_replaced_at IS 'For each previous secret: when a new secret took its place; null: none';
COMMENT ON COLUMN apitoken_internal.token_records.previous_reused_at IS 'For each previous secret: its first use after its overlap that has an event; a time before previous_expires_at is of a secret that had the place before; null: none';
COMMENT ON COLUMN apitoken_internal.token_records.digest_scheme IS '0: SHA-256 of the token text (FIPS 180-4); n: HMAC-SHA-256 (RFC 2104) of it with pepper n; negative: the secret was imported, and the digest is a seal of its row in foreign_digests, made with SHA-256 (-1) or with pepper n (-1 - n)';
COMMENT ON COLUMN apitoken_internal.token_records.previous_digest_scheme IS 'For each previous secret: its digest scheme; null: none';
COMMENT ON COLUMN apitoken_internal.token_records.imported_as IS 'Format of the system that made the secret, which was imported; null: apitoken made it';
COMMENT ON COLUMN apitoken_internal.token_records.digest IS 'Digest of the token text, 32 bytes; granted to nobody';
COMMENT ON COLUMN apitoken_internal.token_records.expiry_notified_at IS 'When housekeeping last made a notification of the coming expiry, or found that nobody wants one; null: never';
COMMENT ON COLUMN apitoken_internal.token_records.previous_digest IS 'Digests of the previous secrets, 32 bytes each, one after the other; null: none; granted to nobody';

-- A verification reads the row by one of the indexes.  Values are never outside of it.
CREATE TABLE apitoken_internal.foreign_digests (
	token_id           uuid PRIMARY KEY,
	format             text COLLATE "C" NOT NULL,
	lookup_key         text COLLATE "C",
	digest             bytea NOT NULL,
	salt               bytea,
	fast_digest_scheme smallint,
	fast_digest        bytea CHECK (pg_catalog.octet_length(fast_digest) = 32),
	CONSTRAINT foreign_digests_fast CHECK ((fast_digest IS NULL) = (fast_digest_scheme IS NULL) AND fast_digest_scheme >= 0),
	CONSTRAINT foreign_digests_length CHECK (pg_catalog.octet_length(lookup_key) <= 64 AND pg_catalog.octet_length(digest) <= 512
		AND pg_catalog.octet_length(salt) <= 128)
);
ALTER TABLE apitoken_internal.foreign_digests
	ALTER format SET STORAGE PLAIN, ALTER lookup_key SET STORAGE PLAIN, ALTER digest SET STORAGE PLAIN, ALTER salt SET STORAGE PLAIN,
	ALTER fast_digest SET STORAGE PLAIN;
ALTER TABLE apitoken_internal.foreign_digests
	ALTER token_id SET STATISTICS 0, ALTER format SET STATISTICS 0, ALTER lookup_key SET STATISTICS 0, ALTER digest SET STATISTICS 0,
	ALTER salt SET STATISTICS 0, ALTER fast_digest_scheme SET STATISTICS 0, ALTER fast_digest SET STATISTICS 0;
CREATE UNIQUE INDEX foreign_digests_digest_key ON apitoken_internal.foreign_digests (format, digest);
CREATE INDEX foreign_digests_lookup_key_idx ON apitoken_internal.foreign_digests (format, lookup_key) WHERE lookup_key IS NOT NULL;
CREATE INDEX foreign_digests_fast_digest_idx ON apitoken_internal.foreign_digests (format, fast_digest) WHERE fast_digest IS NOT NULL;
COMMENT ON TABLE apitoken_internal.foreign_digests IS 'What other systems stored of tokens that were imported from them, also of secrets that were regenerated since; granted to nobody';
COMMENT ON COLUMN apitoken_internal.foreign_digests.token_id IS 'Id of the token';
COMMENT ON COLUMN apitoken_internal.foreign_digests.format IS 'Format: sanctum, strapi, knox5, knox42, knox41, drf-api-key3, drf-api-key2, better-auth, unkey, prefixed-api-key, gitlab, keyhippo, crypt or sha256';
COMMENT ON COLUMN apitoken_internal.foreign_digests.lookup_key IS 'Part of the token text by which it is found; empty for a token of format crypt without one; null: found by its digest';
COMMENT ON COLUMN apitoken_internal.foreign_digests.digest IS 'Digest as the other system made it, in bytes; for drf-api-key2 and crypt the text with its parameters';
COMMENT ON COLUMN apitoken_internal.foreign_digests.salt IS 'Salt of the token; null: none, or within the digest';
COMMENT ON COLUMN apitoken_internal.foreign_digests.fast_digest_scheme IS 'Scheme of fast_digest: 0 or the number of a pepper, as in token_records; null: none';
COMMENT ON COLUMN apitoken_internal.foreign_digests.fast_digest IS 'Digest of the token text as of our own tokens, stored at the first use of a token whose own digest is slow; null: none';

-- A flush changes one row of a token.  The row has the counts of the last day on
-- which the token was used; earlier days are in token_days.  Half of each page is
-- for the next versions of its rows.  A flush then updates no index, even if it
-- changes all rows of a page.  What changes in most flushes is side by side, because
-- WAL has the bytes from the first to the last that differ.
CREATE TABLE apitoken.token_usage (
	token_id       uuid PRIMARY KEY,
	refused        bigint NOT NULL DEFAULT 0,
	day_refused    bigint,
	last_day       date,
	last_used_at   timestamptz CHECK (pg_catalog.isfinite(last_used_at)),
	accepted       bigint NOT NULL DEFAULT 0,
	day_accepted   bigint,
	last_used_from inet,
	day_refusals   jsonb CHECK (pg_catalog.jsonb_typeof(day_refusals) = 'object'
		AND NOT pg_catalog.jsonb_path_exists(day_refusals, '$.* ? (@.type() <> "number")')),
	previous_last_used_at timestamptz[] CHECK ('-infinity' <> ALL (previous_last_used_at) AND 'infinity' <> ALL (previous_last_used_at))
) WITH (fillfactor = 50);
COMMENT ON TABLE apitoken.token_usage IS 'Use of each token; the row is created with the token';
COMMENT ON COLUMN apitoken.token_usage.token_id IS 'Id of the token';
COMMENT ON COLUMN apitoken.token_usage.last_used_at IS 'When the token was last accepted; without shared preload accurate to the minute; null: never';
COMMENT ON COLUMN apitoken.token_usage.accepted IS 'Number of accepted uses: each verification counts its cost, mostly 1; without shared preload at most one per minute is counted';
COMMENT ON COLUMN apitoken.token_usage.refused IS 'Number of refused verifications with the right secret, or with a previous one after its overlap; not counted without shared preload';
COMMENT ON COLUMN apitoken.token_usage.last_used_from IS 'Client address of the last accepted verification; null: unknown';
COMMENT ON COLUMN apitoken.token_usage.last_day IS 'Last day (in UTC) of which token_usage_daily has a row; null: none';
COMMENT ON COLUMN apitoken.token_usage.day_accepted IS 'Number of accepted uses on that day';
COMMENT ON COLUMN apitoken.token_usage.day_refused IS 'Number of refused verifications on that day';
COMMENT ON COLUMN apitoken.token_usage.day_refusals IS 'The refused verifications on that day by verdict, as a JSON object; null: none';
COMMENT ON COLUMN apitoken.token_usage.previous_last_used_at IS 'Last use of each previous secret, in the order of token_records.previous_expires_at; a time before previous_replaced_at is of a secret that had the place before; null: none was used';

-- What token_usage_daily shows of the days before the last one.
CREATE TABLE apitoken_internal.token_days (
	token_id uuid,
	day      date,
	accepted bigint NOT NULL DEFAULT 0,
	refused  bigint NOT NULL DEFAULT 0,
	refusals jsonb CHECK (pg_catalog.jsonb_typeof(refusals) = 'object'
		AND NOT pg_catalog.jsonb_path_exists(refusals, '$.* ? (@.type() <> "number")')),
	PRIMARY KEY (token_id, day)
);
CREATE INDEX token_days_day_idx ON apitoken_internal.token_days (day);
COMMENT ON TABLE apitoken_internal.token_days IS 'Use of each token on each day before its last one, which is in token_usage; kept for apitoken.usage_retention';
COMMENT ON COLUMN apitoken_internal.token_days.token_id IS 'Id of the token';
COMMENT ON COLUMN apitoken_internal.token_days.day IS 'Day in UTC';
COMMENT ON COLUMN apitoken_internal.token_days.accepted IS 'Number of accepted uses on that day';
COMMENT ON COLUMN apitoken_internal.token_days.refused IS 'Number of refused verifications on that day';
COMMENT ON COLUMN apitoken_internal.token_days.refusals IS 'The refused verifications by verdict, as a JSON object; null: none';

CREATE TABLE apitoken_internal.personal_token_use (
	organization_id text COLLATE "C",
	token_id        uuid,
	last_used_at    timestamptz NOT NULL,
	PRIMARY KEY (organization_id, token_id)
) WITH (fillfactor = 70);
ALTER TABLE apitoken_internal.personal_token_use
	ALTER organization_id SET STATISTICS 0, ALTER token_id SET STATISTICS 0, ALTER last_used_at SET STATISTICS 0;
COMMENT ON TABLE apitoken_internal.personal_token_use IS 'When each personal token last acted in each organization, kept for apitoken.usage_retention; filled with shared preload only';
COMMENT ON COLUMN apitoken_internal.personal_token_use.organization_id IS 'Id of the organization';
COMMENT ON COLUMN apitoken_internal.personal_token_use.token_id IS 'Id of the personal token';
COMMENT ON COLUMN apitoken_internal.personal_token_use.last_used_at IS 'When it was last accepted there, or allowed a permission there';

CREATE TABLE apitoken_internal.token_networks (
	token_id      uuid,
	network       cidr,
	first_seen_at timestamptz NOT NULL,
	last_seen_at  timestamptz NOT NULL,
	PRIMARY KEY (token_id, network)
) WITH (fillfactor = 70);
ALTER TABLE apitoken_internal.token_networks
	ALTER token_id SET STATISTICS 0, ALTER network SET STATISTICS 0, ALTER first_seen_at SET STATISTICS 0, ALTER last_seen_at SET STATISTICS 0;
COMMENT ON TABLE apitoken_internal.token_networks IS 'Networks from which tokens were accepted whose owner is told of new ones, at most 32 of a token, kept for apitoken.usage_retention and the latest as long as the token; filled with shared preload only';
COMMENT ON COLUMN apitoken_internal.token_networks.token_id IS 'Id of the token';
COMMENT ON COLUMN apitoken_internal.token_networks.network IS 'Network of the client: a /24 of IPv4, a /48 of IPv6';
COMMENT ON COLUMN apitoken_internal.token_networks.first_seen_at IS 'When the token was first accepted from there';
COMMENT ON COLUMN apitoken_internal.token_networks.last_seen_at IS 'When it was last accepted from there';

-- The last batch of use that each other server has sent to this database: see src/usage/receive.c.
CREATE TABLE apitoken_internal.usage_senders (
	sender         uuid PRIMARY KEY,
	batch          uuid NOT NULL,
	received_at    timestamptz NOT NULL,
	database_user  name NOT NULL,
	client_address inet
) WITH (fillfactor = 50);
COMMENT ON TABLE apitoken_internal.usage_senders IS 'The last batch of use that each standby or logical subscriber has sent, so that none is counted twice; kept for 90 days after it';
COMMENT ON COLUMN apitoken_internal.usage_senders.sender IS 'Random id of the server that sends, a new one after a crash of it';
COMMENT ON COLUMN apitoken_internal.usage_senders.batch IS 'Id of its last batch; earlier ones have smaller ids';
COMMENT ON COLUMN apitoken_internal.usage_senders.received_at IS 'When the batch arrived';
COMMENT ON COLUMN apitoken_internal.usage_senders.database_user IS 'Session user of the connection by which it arrived';
COMMENT ON COLUMN apitoken_internal.usage_senders.client_address IS 'Address of the connection; null: a socket';

CREATE TABLE apitoken.events (
	id              uuid PRIMARY KEY,
	at              timestamptz NOT NULL CHECK (pg_catalog.isfinite(at)),
	action          text COLLATE "C" NOT NULL,
	token_id        uuid,
	organization_id text COLLATE "C",
	user_id         text COLLATE "C",
	actor           text COLLATE "C",
	actor_token_id  uuid,
	database_user   name NOT NULL,
	client_address  inet,
	details         jsonb NOT NULL
);
CREATE INDEX events_token_id_idx ON apitoken.events (token_id, id);
CREATE INDEX events_organization_id_idx ON apitoken.events (organization_id, id) WHERE organization_id IS NOT NULL;
CREATE INDEX events_user_id_idx ON apitoken.events (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX events_actor_idx ON apitoken.events (actor, id) WHERE actor IS NOT NULL;
CREATE INDEX events_actor_token_id_idx ON apitoken.events (actor_token_id, id) WHERE actor_token_id IS NOT NULL;
COMMENT ON TABLE apitoken.events IS 'Audit: one row for each creation, import, edit, suspension, resumption, regeneration and revocation of a token, for each end of its overlaps, for the use of a previous secret after its overlap, and for each report that it has leaked; for each change of an organization''s policy, and each suspension and resumption of an organization or user; and one for each user who was forgotten; run_maintenance() removes rows older than apitoken.retention, forget_user() replaces a user''s id and removes what a row tells of them, and nothing else changes a row';
COMMENT ON COLUMN apitoken.events.id IS 'UUID version 7 (RFC 9562), ascending within a session';
COMMENT ON COLUMN apitoken.events.at IS 'Time of the event';
COMMENT ON COLUMN apitoken.events.action IS 'Action: create, import, edit, suspend, resume, regenerate, end_overlap, reuse, leak or revoke; policy: an organization''s policy changed; forget: a user was forgotten';
COMMENT ON COLUMN apitoken.events.token_id IS 'Id of the token; null: the event is about the organization or the user';
COMMENT ON COLUMN apitoken.events.organization_id IS 'Organization that owns the token, or that changed; null: a personal token, or a user';
COMMENT ON COLUMN apitoken.events.user_id IS 'User who owns the token or was suspended or resumed, or the pseudonym of the user who was forgotten; null: a token of an organization, or an organization';
COMMENT ON COLUMN apitoken.events.actor IS 'Id of the user who acted; null: a token of an organization, a database administrator or housekeeping';
COMMENT ON COLUMN apitoken.events.actor_token_id IS 'Id of the token that acted; null: no token';
COMMENT ON COLUMN apitoken.events.database_user IS 'Login of the session (session_user)';
COMMENT ON COLUMN apitoken.events.client_address IS 'Address of the client; null: unknown, or a Unix socket';
COMMENT ON COLUMN apitoken.events.details IS 'JSON object: masked and label of the token; old and new values of an edit or a policy; reason of a revocation; of a leak: source, url, secret (current or previous) and action (revoked or notified)';

-- The outbox.  An event and its notification have the same id.  Only rows with
-- next_attempt_at are still to be delivered, and only those are in the two indexes
-- that claim_notifications() uses.
CREATE TABLE apitoken.notifications (
	id              uuid PRIMARY KEY,
	created_at      timestamptz NOT NULL CHECK (pg_catalog.isfinite(created_at)),
	event           text COLLATE "C" NOT NULL,
	token_id        uuid NOT NULL,
	organization_id text COLLATE "C",
	user_id         text COLLATE "C",
	payload         jsonb NOT NULL,
	recipients      text[] NOT NULL,
	attempts        integer NOT NULL DEFAULT 0,
	next_attempt_at timestamptz,
	delivered_at    timestamptz,
	last_error      text,
	recipient_ids   text[] NOT NULL DEFAULT '{}'
);
CREATE INDEX notifications_organization_id_idx ON apitoken.notifications (organization_id, id) WHERE organization_id IS NOT NULL;
CREATE INDEX notifications_user_id_idx ON apitoken.notifications (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX notifications_next_attempt_at_idx ON apitoken.notifications (next_attempt_at, id) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX notifications_token_id_idx ON apitoken.notifications (token_id, id) WHERE next_attempt_at IS NOT NULL;
COMMENT ON TABLE apitoken.notifications IS 'Outbox: one row for each event that somebody wants to be told, made in the transaction of the event; a mailer claims the rows with claim_notifications(), and run_maintenance() removes those older than apitoken.notification_retention';
COMMENT ON COLUMN apitoken.notifications.id IS 'UUID version 7 (RFC 9562): the id of the event in events; of expire and new_network, which are no events there, an id of its own';
COMMENT ON COLUMN apitoken.notifications.created_at IS 'Time of the event';
COMMENT ON COLUMN apitoken.notifications.event IS 'Event: create, regenerate, suspend, revoke, expire, reuse, leak or new_network';
COMMENT ON COLUMN apitoken.notifications.token_id IS 'Id of the token';
COMMENT ON COLUMN apitoken.notifications.organization_id IS 'Organization that owns the token; null: a personal token';
COMMENT ON COLUMN apitoken.notifications.user_id IS 'User who owns the token; null: a token of an organization';
COMMENT ON COLUMN apitoken.notifications.payload IS 'JSON object: the event, and the token as it was then, without its secret';
COMMENT ON COLUMN apitoken.notifications.recipients IS 'E-mail addresses at the time of the event, at most 1000, never empty; granted to nobody';
COMMENT ON COLUMN apitoken.notifications.attempts IS 'How often it was claimed';
COMMENT ON COLUMN apitoken.notifications.next_attempt_at IS 'When it may be claimed: the end of the lease, or of the delay after a failure; null: delivered, given up, or restored from a dump';
COMMENT ON COLUMN apitoken.notifications.delivered_at IS 'When it was delivered; null: not yet, or never';
COMMENT ON COLUMN apitoken.notifications.last_error IS 'Why the last attempt failed, without secrets; granted to nobody, because it can contain addresses; null: none failed';
COMMENT ON COLUMN apitoken.notifications.recipient_ids IS 'Ids of the users who had these addresses, in the same order; granted to nobody';

-- The planner uses statistics of all rows, and EXPLAIN shows its estimates to
-- everybody: how frequent a value is, or where in the table's order it stands.
-- Therefore no statistics are collected about columns with tenants' data.
ALTER TABLE apitoken.organizations
	ALTER id SET STATISTICS 0, ALTER name SET STATISTICS 0, ALTER suspended_at SET STATISTICS 0,
	ALTER created_at SET STATISTICS 0, ALTER idle_timeout SET STATISTICS 0, ALTER resumed_at SET STATISTICS 0,
	ALTER max_lifetime SET STATISTICS 0, ALTER require_expiry SET STATISTICS 0, ALTER max_tokens SET STATISTICS 0,
	ALTER allowed_networks SET STATISTICS 0, ALTER default_role SET STATISTICS 0, ALTER allow_personal_tokens SET STATISTICS 0,
	ALTER revoke_on_reuse SET STATISTICS 0, ALTER on_leak SET STATISTICS 0;
ALTER TABLE apitoken.users
	ALTER id SET STATISTICS 0, ALTER name SET STATISTICS 0, ALTER email SET STATISTICS 0,
	ALTER groups SET STATISTICS 0, ALTER role SET STATISTICS 0, ALTER suspended_at SET STATISTICS 0,
	ALTER created_at SET STATISTICS 0;
ALTER TABLE apitoken.memberships
	ALTER organization_id SET STATISTICS 0, ALTER user_id SET STATISTICS 0, ALTER role SET STATISTICS 0;
ALTER TABLE apitoken_internal.token_records
	ALTER id SET STATISTICS 0, ALTER created_at SET STATISTICS 0, ALTER updated_at SET STATISTICS 0,
	ALTER expires_at SET STATISTICS 0, ALTER suspended_at SET STATISTICS 0, ALTER revoked_at SET STATISTICS 0,
	ALTER regenerated_at SET STATISTICS 0,
	ALTER previous_expires_at SET STATISTICS 0, ALTER previous_replaced_at SET STATISTICS 0, ALTER rate_limit_per_minute SET STATISTICS 0,
	ALTER quota SET STATISTICS 0, ALTER quota_period SET STATISTICS 0,
	ALTER digest_scheme SET STATISTICS 0, ALTER previous_digest_scheme SET STATISTICS 0,
	ALTER digest SET STATISTICS 0, ALTER previous_digest SET STATISTICS 0, ALTER organization_id SET STATISTICS 0,
	ALTER user_id SET STATISTICS 0, ALTER label SET STATISTICS 0, ALTER access SET STATISTICS 0,
	ALTER role SET STATISTICS 0, ALTER permissions SET STATISTICS 0, ALTER allowed_networks SET STATISTICS 0,
	ALTER metadata SET STATISTICS 0, ALTER masked SET STATISTICS 0, ALTER created_by SET STATISTICS 0,
	ALTER created_by_name SET STATISTICS 0, ALTER description SET STATISTICS 0, ALTER revoked_by SET STATISTICS 0,
	ALTER revoke_reason SET STATISTICS 0, ALTER previous_reused_at SET STATISTICS 0, ALTER imported_as SET STATISTICS 0;
ALTER TABLE apitoken.token_usage
	ALTER token_id SET STATISTICS 0, ALTER last_used_at SET STATISTICS 0, ALTER accepted SET STATISTICS 0,
	ALTER refused SET STATISTICS 0, ALTER last_used_from SET STATISTICS 0, ALTER previous_last_used_at SET STATISTICS 0,
	ALTER last_day SET STATISTICS 0, ALTER day_accepted SET STATISTICS 0, ALTER day_refused SET STATISTICS 0,
	ALTER day_refusals SET STATISTICS 0;
ALTER TABLE apitoken_internal.token_days
	ALTER token_id SET STATISTICS 0, ALTER day SET STATISTICS 0, ALTER accepted SET STATISTICS 0,
	ALTER refused SET STATISTICS 0, ALTER refusals SET STATISTICS 0;
ALTER TABLE apitoken.events
	ALTER id SET STATISTICS 0, ALTER at SET STATISTICS 0, ALTER action SET STATISTICS 0,
	ALTER token_id SET STATISTICS 0, ALTER organization_id SET STATISTICS 0, ALTER user_id SET STATISTICS 0,
	ALTER actor SET STATISTICS 0, ALTER actor_token_id SET STATISTICS 0, ALTER database_user SET STATISTICS 0,
	ALTER client_address SET STATISTICS 0, ALTER details SET STATISTICS 0;
ALTER TABLE apitoken.organizations ALTER notify SET STATISTICS 0;
ALTER TABLE apitoken.users ALTER notify SET STATISTICS 0;
ALTER TABLE apitoken_internal.token_records ALTER expiry_notified_at SET STATISTICS 0;
ALTER TABLE apitoken.notifications
	ALTER id SET STATISTICS 0, ALTER created_at SET STATISTICS 0, ALTER event SET STATISTICS 0,
	ALTER token_id SET STATISTICS 0, ALTER organization_id SET STATISTICS 0, ALTER user_id SET STATISTICS 0,
	ALTER payload SET STATISTICS 0, ALTER recipients SET STATISTICS 0, ALTER recipient_ids SET STATISTICS 0, ALTER attempts SET STATISTICS 0,
	ALTER next_attempt_at SET STATISTICS 0, ALTER delivered_at SET STATISTICS 0, ALTER last_error SET STATISTICS 0;

-- For apitoken.allow() and apitoken.disallow(): see src/manage/grant.c.
CREATE TABLE apitoken_internal.own_privileges (
	database_role text COLLATE "C",
	privilege     text COLLATE "C",
	PRIMARY KEY (database_role, privilege)
);
COMMENT ON TABLE apitoken_internal.own_privileges IS 'Privileges that a database role had before apitoken.allow() granted a capability with them; apitoken.disallow() leaves them';
COMMENT ON COLUMN apitoken_internal.own_privileges.database_role IS 'Name of the role; the role need not exist, so that a dump can be restored without it';
COMMENT ON COLUMN apitoken_internal.own_privileges.privilege IS 'The privilege, for example SELECT on apitoken.users';

CREATE VIEW apitoken_internal.capabilities AS
	SELECT true AS use, true AS manage, true AS verify, true AS act, true AS directory, true AS monitor,
		true AS notify, true AS usage;
COMMENT ON VIEW apitoken_internal.capabilities IS 'One column for each capability: SELECT on it shows that apitoken.allow() has granted the capability to a role. The row means nothing.';

-- Each table needs its own statement: of a single SELECT, only the last call would
-- be kept.
SELECT pg_catalog.pg_extension_config_dump('apitoken.organizations', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.users', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.deleted_users', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.role_records', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.permissions', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.memberships', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.token_records', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.token_usage', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.token_days', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.events', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.own_privileges', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.notifications', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.personal_token_use', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.token_networks', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.usage_senders', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.foreign_digests', '');

------------------------------------------------------------------------------
-- Types
------------------------------------------------------------------------------

CREATE TYPE apitoken.verification AS (
	valid           boolean,
	verdict         text,
	token_id        uuid,
	label           text,
	kind            text,
	organization_id text,
	user_id         text,
	role            text,
	access          text,
	permissions     text[],
	groups          text[],
	expires_at      timestamptz,
	metadata        jsonb,
	retry_after     interval,
	remaining       bigint,
	secret          text
);
COMMENT ON TYPE apitoken.verification IS 'Result of a verification; token_id and label are null unless the secret was right, kind to metadata and secret are null unless the token is valid';
COMMENT ON COLUMN apitoken.verification.valid IS 'True if the verdict is valid; never null';
COMMENT ON COLUMN apitoken.verification.verdict IS 'Verdict: valid, malformed, unknown, revoked, expired, suspended, policy_refused, network_refused, permission_refused, quota_exceeded or rate_limited; all but malformed and unknown need the right secret; never null';
COMMENT ON COLUMN apitoken.verification.token_id IS 'Id of the token; null unless the secret was right';
COMMENT ON COLUMN apitoken.verification.label IS 'Label of the token; null unless the secret was right';
COMMENT ON COLUMN apitoken.verification.kind IS 'Kind of owner: organization or user';
COMMENT ON COLUMN apitoken.verification.organization_id IS 'Organization that owns the token; null: a personal token';
COMMENT ON COLUMN apitoken.verification.user_id IS 'User who owns the token; null: a token of an organization';
COMMENT ON COLUMN apitoken.verification.role IS 'Role in force: the role of an organization''s token, or the user''s role in the given organization; null: none';
COMMENT ON COLUMN apitoken.verification.access IS 'Access: read_only, full or custom';
COMMENT ON COLUMN apitoken.verification.permissions IS 'Effective patterns in the given organization: those of the role, narrowed by access';
COMMENT ON COLUMN apitoken.verification.groups IS 'Visibility groups of the user; empty for a token of an organization';
COMMENT ON COLUMN apitoken.verification.expires_at IS 'When this text is accepted no longer: at the expiry of the token, or at the end of the overlap if that is sooner; null: never';
COMMENT ON COLUMN apitoken.verification.metadata IS 'JSON object of the application';
COMMENT ON COLUMN apitoken.verification.retry_after IS 'How long to wait, with the verdicts quota_exceeded and rate_limited; null with other verdicts, without shared preload, and if no wait helps';
COMMENT ON COLUMN apitoken.verification.remaining IS 'What is left of the quota after this verification; null: no quota, or another verdict than valid, quota_exceeded and rate_limited';
COMMENT ON COLUMN apitoken.verification.secret IS 'current, or previous for a secret that was replaced and is accepted until its overlap ends; null unless the token is valid';

CREATE TYPE apitoken.issued_token AS (
	id         uuid,
	token      text,
	masked     text,
	expires_at timestamptz
);
COMMENT ON TYPE apitoken.issued_token IS 'A token that was just created or regenerated; its text is returned this once and not stored';
COMMENT ON COLUMN apitoken.issued_token.id IS 'Id of the token';
COMMENT ON COLUMN apitoken.issued_token.token IS 'Token text, the credential itself';
COMMENT ON COLUMN apitoken.issued_token.masked IS 'Token text without its secret, as in lists';
COMMENT ON COLUMN apitoken.issued_token.expires_at IS 'When the token expires; null: never';

------------------------------------------------------------------------------
-- The current identity.  PUBLIC may call these functions: they tell only about the
-- caller, and the application's own policies call them.
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.current_user_id() RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_current_user_id' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_user_id() IS 'Id of the user who is acting, directly or by a personal token; null for a token of an organization and for an anonymous caller';

CREATE FUNCTION apitoken.current_organization_id() RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_current_organization_id' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_organization_id() IS 'Id of the organization whose token is acting; null for a user, who may belong to several organizations, and for an anonymous caller';

CREATE FUNCTION apitoken.current_token_id() RETURNS uuid
	AS 'MODULE_PATHNAME', 'apitoken_current_token_id' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_token_id() IS 'Id of the token that is acting; null if no token is';

CREATE FUNCTION apitoken.current_role_name() RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_current_role_name' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_role_name() IS 'Role of the organization''s token that is acting, or the role that limits the acting user outside organizations; null: none';

CREATE FUNCTION apitoken.current_groups() RETURNS text[]
	AS 'MODULE_PATHNAME', 'apitoken_current_groups' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_groups() IS 'Visibility groups of the acting user; empty for a token of an organization and for an anonymous caller, never null';

CREATE FUNCTION apitoken.whoami() RETURNS jsonb
	AS 'MODULE_PATHNAME', 'apitoken_whoami' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.whoami() IS 'Current identity: source (token, user, jwt or none), user_id, organization_id, token_id, role, groups, access, suspended, read_only, database_user (current_user), bypasses_rls';

CREATE FUNCTION apitoken.can(permission text, organization_id apitoken.id DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_can' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.can(text, apitoken.id) IS 'May the current identity do this (resource:action) in this organization? Without an organization, the question is about the own organization of an organization''s token, or about the user''s own things. False for a null permission and for an anonymous caller. 22023 if the permission is malformed.';

CREATE FUNCTION apitoken.organizations_allowed(permission text) RETURNS SETOF text
	AS 'MODULE_PATHNAME', 'apitoken_organizations_allowed' LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION apitoken.organizations_allowed(text) IS 'Ids of the organizations where the current identity may do this (resource:action); no rows for null. Use in policies: organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed(''article:read''))). 22023 if the permission is malformed.';

-- The policies and views below use these functions, which also tell only about
-- the caller.
CREATE FUNCTION apitoken_internal.managed_organizations(VARIADIC permissions text[]) RETURNS text[]
	AS 'MODULE_PATHNAME', 'apitoken_managed_organizations' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.managed_organizations(text[]) IS 'For policies: ids of the organizations where the current identity has at least one of these permissions (resource:action). Nulls in the list are ignored. Empty for a null list and for an anonymous caller. 22023 if a permission is malformed or contains a *, and for more than 100 permissions.';

CREATE FUNCTION apitoken_internal.managed_user(VARIADIC permissions text[]) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_managed_user' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.managed_user(text[]) IS 'For policies: id of the user whose personal tokens the current identity may manage. That is the acting user, directly or by a custom personal token that names one of these permissions; otherwise null. Permissions and errors as for managed_organizations().';

CREATE FUNCTION apitoken_internal.policy_support(internal) RETURNS internal
	AS 'MODULE_PATHNAME', 'apitoken_policy_support' LANGUAGE C STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.policy_support(internal) IS 'Planner support function of the functions that policies call';

CREATE FUNCTION apitoken_internal.manages_organization(organization_id text, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_organization' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_organization(text, text[]) IS 'For policies: is the organization one of managed_organizations()? Null if an argument is null.';

CREATE FUNCTION apitoken_internal.manages_user(user_id text, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_user' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_user(text, text[]) IS 'For policies: is the user managed_user()? Null if an argument is null.';

CREATE FUNCTION apitoken_internal.manages_record(id uuid, organization_id text, user_id text, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_record' LANGUAGE C STABLE PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_record(uuid, text, text, text[]) IS 'For the policies of token_records: does manages_organization() or manages_user() hold for the owner of a token, which is one of the two? A null counts as false.';

CREATE FUNCTION apitoken_internal.manages_event(token_id uuid, organization_id text, user_id text, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_event' LANGUAGE C STABLE PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_event(uuid, text, text, text[]) IS 'For the policy of events: the same as manages_record() for the token of an event';

CREATE FUNCTION apitoken_internal.manages_token(token_id uuid, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_token' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_token(uuid, text[]) IS 'For policies: does manages_organization() or manages_user() hold for the owner of this token? False if the token does not exist. Null if an argument is null.';

CREATE FUNCTION apitoken_internal.managed_token(token_id uuid, permissions text[]) RETURNS uuid
	AS 'MODULE_PATHNAME', 'apitoken_managed_token' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.managed_token(uuid, text[]) IS 'For index conditions of policies: the id of the token if manages_token() holds, otherwise null';

CREATE FUNCTION apitoken_internal.managed_token_of_events(token_id uuid, permissions text[]) RETURNS uuid
	AS 'MODULE_PATHNAME', 'apitoken_managed_token_of_events' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.managed_token_of_events(uuid, text[]) IS 'For index conditions of policies: the id of the token if manages_event() holds for its events, otherwise null';

CREATE FUNCTION apitoken_internal.is_current_token(token_id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_is_current_token' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.is_current_token(uuid) IS 'For policies: is this token acting? Null for null.';

CREATE FUNCTION apitoken_internal.seen_organizations() RETURNS text[]
	AS 'MODULE_PATHNAME', 'apitoken_seen_organizations' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.seen_organizations() IS 'For policies: ids of the organizations to which the current identity belongs; empty for an anonymous caller and for a suspended user; all ids for a role that may delete organizations';

CREATE FUNCTION apitoken_internal.seen_users() RETURNS text[]
	AS 'MODULE_PATHNAME', 'apitoken_seen_users' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.seen_users() IS 'For policies: id of the user who is acting; empty for a token of an organization, an anonymous caller and a suspended user; all ids for a role that may delete users';

CREATE FUNCTION apitoken_internal.sees_organization(id text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_sees_organization' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.sees_organization(text) IS 'For policies: is the organization one of seen_organizations()? Null for null.';

CREATE FUNCTION apitoken_internal.sees_members(organization_id text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_sees_members' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.sees_members(text) IS 'For policies: may the caller see the memberships in this organization? Those in seen_organizations(), or all for a role that may delete memberships. Null for null.';

CREATE FUNCTION apitoken_internal.sees_user(id text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_sees_user' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.sees_user(text) IS 'For policies: is the user one of seen_users()? Null for null.';

CREATE FUNCTION apitoken_internal.was_granted(relation oid, privilege text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_was_granted_sql' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.was_granted(oid, text) IS 'For policies: was the privilege INSERT, UPDATE or DELETE on this relation, or on a column, granted to the current user? Not counted: pg_write_all_data. Null for null.';

CREATE FUNCTION apitoken_internal.read_members(OUT organization_id text, OUT user_id text, OUT name text, OUT role text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'apitoken_read_members' LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION apitoken_internal.read_members() IS 'Rows of the view apitoken.members';

CREATE FUNCTION apitoken_internal.refuses_lifetime(organization_id text, issued_at timestamptz, expires_at timestamptz) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_refuses_lifetime' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.refuses_lifetime(text, timestamptz, timestamptz) IS 'For the view tokens: does the policy of the organization refuse this lifetime of a token? expires_at null: never expires. False for an organization that the caller does not see, and for null.';

CREATE FUNCTION apitoken_internal.in_words(at timestamptz) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_in_words' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.in_words(timestamptz) IS 'How long ago a time was, in words: just now, 5 minutes ago, 5 days ago; never for null; null for an infinite time';

------------------------------------------------------------------------------
-- Use by day
------------------------------------------------------------------------------

CREATE VIEW apitoken.token_usage_daily WITH (security_invoker = true) AS
SELECT d.token_id, d.day, d.accepted, d.refused, d.refusals FROM apitoken_internal.token_days d
UNION ALL
SELECT u.token_id, u.last_day, u.day_accepted, u.day_refused, u.day_refusals FROM apitoken.token_usage u WHERE u.last_day IS NOT NULL;
COMMENT ON VIEW apitoken.token_usage_daily IS 'Use of each token on each day, kept for apitoken.usage_retention; filled with shared preload only';
COMMENT ON COLUMN apitoken.token_usage_daily.token_id IS 'Id of the token';
COMMENT ON COLUMN apitoken.token_usage_daily.day IS 'Day in UTC';
COMMENT ON COLUMN apitoken.token_usage_daily.accepted IS 'Number of accepted uses on that day: each verification counts its cost, mostly 1';
COMMENT ON COLUMN apitoken.token_usage_daily.refused IS 'Number of refused verifications with the right secret, or with a previous one after its overlap, on that day';
COMMENT ON COLUMN apitoken.token_usage_daily.refusals IS 'The refused verifications by verdict, as a JSON object: {"expired": 3, "network_refused": 1}; null: none';

------------------------------------------------------------------------------
-- The view that every client uses
------------------------------------------------------------------------------

CREATE VIEW apitoken.tokens WITH (security_invoker = true) AS
SELECT r.id,
	r.organization_id,
	r.user_id,
	r.label,
	r.description,
	r.role,
	r.access,
	r.permissions,
	r.allowed_networks,
	r.rate_limit_per_minute,
	r.quota,
	r.quota_period,
	r.metadata,
	r.masked,
	r.created_by,
	r.created_by_name,
	r.created_at,
	r.updated_at,
	r.expires_at,
	r.suspended_at,
	r.revoked_at,
	r.revoked_by,
	r.revoke_reason,
	(SELECT u.last_used_at FROM apitoken.token_usage u WHERE u.token_id = r.id) AS last_used_at,
	apitoken_internal.in_words((SELECT u.last_used_at FROM apitoken.token_usage u WHERE u.token_id = r.id)) AS last_used,
	(SELECT u.last_used_from FROM apitoken.token_usage u WHERE u.token_id = r.id) AS last_used_from,
	-- numeric, and within bounds: an owner may have set any number of uses
	CASE WHEN r.quota IS NOT NULL THEN
		LEAST(r.quota, GREATEST(0, r.quota - COALESCE(CASE
			WHEN r.quota_period IS NULL THEN
				(SELECT u.accepted::numeric FROM apitoken.token_usage u WHERE u.token_id = r.id)
			ELSE
				-- the parts of token_usage_daily, because a plan with that view takes longer to make
				COALESCE((SELECT pg_catalog.sum(d.accepted) FROM apitoken_internal.token_days d
					WHERE d.token_id = r.id
						AND d.day >= pg_catalog.date_trunc(r.quota_period, pg_catalog.timezone('UTC', pg_catalog.statement_timestamp()))::date), 0)
				+ COALESCE((SELECT u.day_accepted FROM apitoken.token_usage u
					WHERE u.token_id = r.id
						AND u.last_day >= pg_catalog.date_trunc(r.quota_period, pg_catalog.timezone('UTC', pg_catalog.statement_timestamp()))::date), 0)
		END, 0)))::bigint
	END AS remaining,
	CASE
		WHEN r.revoked_at IS NOT NULL THEN 'revoked'
		WHEN r.expires_at <= pg_catalog.statement_timestamp() THEN 'expired'
		WHEN r.suspended_at IS NOT NULL THEN 'suspended'
		WHEN apitoken_internal.refuses_lifetime(r.organization_id, COALESCE(r.regenerated_at, r.created_at), r.expires_at) THEN 'policy_refused'
		WHEN r.expires_at <= pg_catalog.statement_timestamp()
			+ LEAST('7 days'::interval, GREATEST((r.expires_at - r.created_at) / 2, '3 days'::interval)) THEN 'expiring'
		ELSE 'active'
	END AS status,
	r.regenerated_at,
	CASE WHEN r.previous_expires_at IS NOT NULL AND r.revoked_at IS NULL THEN (
		SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('replaced_at', p.replaced_at, 'expires_at', LEAST(p.expires_at, r.expires_at),
				'last_used_at', p.last_used_at, 'last_used', apitoken_internal.in_words(p.last_used_at)) ORDER BY p.replaced_at)
		FROM (SELECT s.expires_at, s.replaced_at, CASE WHEN s.used_at >= s.replaced_at THEN s.used_at END AS last_used_at
			FROM ROWS FROM (pg_catalog.unnest(r.previous_expires_at), pg_catalog.unnest(r.previous_replaced_at),
				pg_catalog.unnest((SELECT u.previous_last_used_at FROM apitoken.token_usage u WHERE u.token_id = r.id))) s (expires_at, replaced_at, used_at)) p
		WHERE p.expires_at > pg_catalog.statement_timestamp() AND (r.expires_at > pg_catalog.statement_timestamp()) IS NOT FALSE)
	END AS previous_secrets,
	r.imported_as
FROM apitoken_internal.token_records r;
COMMENT ON VIEW apitoken.tokens IS 'Tokens that the caller may see. INSERT creates a token (take_token() returns its text), UPDATE edits or suspends it, revoke_token() ends it.';
COMMENT ON COLUMN apitoken.tokens.id IS 'Id of the token, UUID version 7 (RFC 9562); the token text contains it';
COMMENT ON COLUMN apitoken.tokens.organization_id IS 'Organization that owns the token; null: a personal token';
COMMENT ON COLUMN apitoken.tokens.user_id IS 'User who owns the token; null: a token of an organization';
COMMENT ON COLUMN apitoken.tokens.label IS 'Name of the token, one line of 1 to 255 characters without blank characters at its ends, unique among the owner''s tokens that are neither revoked nor imported';
COMMENT ON COLUMN apitoken.tokens.description IS 'Free text, up to 4000 characters; null: none';
COMMENT ON COLUMN apitoken.tokens.role IS 'Name of the role of an organization''s token; null for a personal token';
COMMENT ON COLUMN apitoken.tokens.access IS 'Access: read_only, full or custom; narrows what the role or the user allows';
COMMENT ON COLUMN apitoken.tokens.permissions IS 'Patterns (resource:action) to which access custom narrows the token; null with any other access';
COMMENT ON COLUMN apitoken.tokens.allowed_networks IS 'Networks from which the token is accepted; IPv4 networks written as IPv6 (::ffff:192.0.2.0/120) are stored as IPv4; null: from everywhere';
COMMENT ON COLUMN apitoken.tokens.rate_limit_per_minute IS 'Verifications per minute that each server accepts, all at once after a minute''s rest; without shared preload a token with a limit is refused; null: no limit';
COMMENT ON COLUMN apitoken.tokens.quota IS 'Number of uses that are accepted in each period, 1 to 999999999999999; without shared preload a token with a quota is refused; null: no quota';
COMMENT ON COLUMN apitoken.tokens.quota_period IS 'Period of the quota in UTC: day or month; null: the life of the token';
COMMENT ON COLUMN apitoken.tokens.metadata IS 'JSON object of the application, up to 64 kB';
COMMENT ON COLUMN apitoken.tokens.masked IS 'Token text without its secret: prefix, kind, id and the last four characters; of an imported token, its format and at most 8 characters of its lookup key';
COMMENT ON COLUMN apitoken.tokens.imported_as IS 'Format of the system that the secret was imported from; null: apitoken made it, and so does a regeneration';
COMMENT ON COLUMN apitoken.tokens.created_by IS 'Id of the user who created the token; null: created by a token of an organization or by a database administrator';
COMMENT ON COLUMN apitoken.tokens.created_by_name IS 'Name of that user at that time; null: unknown';
COMMENT ON COLUMN apitoken.tokens.created_at IS 'When the token was created';
COMMENT ON COLUMN apitoken.tokens.updated_at IS 'When the token was last changed';
COMMENT ON COLUMN apitoken.tokens.expires_at IS 'When the token expires; it is refused from then on; null: never';
COMMENT ON COLUMN apitoken.tokens.suspended_at IS 'Time of the suspension; the token is refused while this is not null; null: not suspended';
COMMENT ON COLUMN apitoken.tokens.revoked_at IS 'Time of the revocation, which is final; null: not revoked';
COMMENT ON COLUMN apitoken.tokens.revoked_by IS 'Id of the user who revoked the token; null: not revoked, or not by a user';
COMMENT ON COLUMN apitoken.tokens.revoke_reason IS 'Reason of the revocation; null: not revoked, or none given';
COMMENT ON COLUMN apitoken.tokens.last_used_at IS 'When the token was last accepted; null: never';
COMMENT ON COLUMN apitoken.tokens.last_used IS 'Last use in words: never, just now, 5 minutes ago, 5 days ago';
COMMENT ON COLUMN apitoken.tokens.last_used_from IS 'Client address of the last use; null: unknown';
COMMENT ON COLUMN apitoken.tokens.remaining IS 'What is left of the quota, as far as use is written to the tables (apitoken.flush_interval); null: no quota';
COMMENT ON COLUMN apitoken.tokens.regenerated_at IS 'When the token was last regenerated; null: never';
COMMENT ON COLUMN apitoken.tokens.status IS 'Status: active, expiring, expired, suspended, policy_refused (its organization''s policy does not allow its lifetime) or revoked. Expiring means that less than 7 days are left; with a lifetime under 14 days, less than half of it or less than 3 days, whichever is more.';
COMMENT ON COLUMN apitoken.tokens.previous_secrets IS 'Secrets that were replaced and are still accepted, as a JSON array of objects: replaced_at, expires_at (end of the overlap), last_used_at and last_used (in words) of that secret; null: none';

CREATE VIEW apitoken.members AS
SELECT m.organization_id COLLATE "C" AS organization_id, m.user_id COLLATE "C" AS user_id, m.name, m.role COLLATE "C" AS role
FROM apitoken_internal.read_members() m;
COMMENT ON VIEW apitoken.members IS 'Members of the caller''s own organizations, with the columns that members may see of each other';
COMMENT ON COLUMN apitoken.members.organization_id IS 'Id of the organization';
COMMENT ON COLUMN apitoken.members.user_id IS 'Id of the member';
COMMENT ON COLUMN apitoken.members.name IS 'Name of the member; null: none given';
COMMENT ON COLUMN apitoken.members.role IS 'Name of the member''s role in the organization';

CREATE FUNCTION apitoken_internal.read_personal_tokens_seen(OUT organization_id text, OUT user_id text, OUT label text, OUT masked text,
		OUT last_used_at timestamptz) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'apitoken_read_personal_tokens_seen' LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION apitoken_internal.read_personal_tokens_seen() IS 'Rows of the view apitoken.personal_tokens_seen';

CREATE VIEW apitoken.personal_tokens_seen AS
SELECT s.organization_id COLLATE "C" AS organization_id, s.user_id COLLATE "C" AS user_id, s.label, s.masked, s.last_used_at,
	apitoken_internal.in_words(s.last_used_at) AS last_used
FROM apitoken_internal.read_personal_tokens_seen() s;
COMMENT ON VIEW apitoken.personal_tokens_seen IS 'Personal tokens that acted in the organizations where the caller has the permission token:read; filled with shared preload only';
COMMENT ON COLUMN apitoken.personal_tokens_seen.organization_id IS 'Id of the organization where the token acted';
COMMENT ON COLUMN apitoken.personal_tokens_seen.user_id IS 'Id of the user who owns the token';
COMMENT ON COLUMN apitoken.personal_tokens_seen.label IS 'Name of the token';
COMMENT ON COLUMN apitoken.personal_tokens_seen.masked IS 'Token text without its secret';
COMMENT ON COLUMN apitoken.personal_tokens_seen.last_used_at IS 'When the token was last accepted in the organization, or allowed a permission there, as of the last flush';
COMMENT ON COLUMN apitoken.personal_tokens_seen.last_used IS 'The same in words: just now, 5 minutes ago, 5 days ago';

-- Computed relationships: with them, automatic APIs embed rows of one relation in
-- those of another.  Foreign keys would do it too, but there are none on owners.
-- The argument has no name, so that PostgREST publishes no /rpc/ of them.  No body is
-- BEGIN ATOMIC: the table that it is called for could then get no column with a
-- default, because the function uses its row type.
CREATE FUNCTION apitoken.organizations(apitoken.tokens) RETURNS SETOF apitoken.organizations
	LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 1
	AS $$ SELECT o.* FROM apitoken.organizations o WHERE o.id OPERATOR(pg_catalog.=) ($1).organization_id $$;
COMMENT ON FUNCTION apitoken.organizations(apitoken.tokens) IS 'The organization that owns a token, if the caller may see it: tokens?select=label,organizations(name) in PostgREST';

CREATE FUNCTION apitoken.members(apitoken.organizations) RETURNS SETOF apitoken.members
	AS 'MODULE_PATHNAME', 'apitoken_read_members_of' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION apitoken.members(apitoken.organizations) IS 'The members of an organization, if the caller may see them: organizations?select=id,members(name,role) in PostgREST';

------------------------------------------------------------------------------
-- Using tokens
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.verify(token text, permission text DEFAULT NULL, organization_id apitoken.id DEFAULT NULL,
								client_address inet DEFAULT NULL, cost integer DEFAULT 1) RETURNS apitoken.verification
	AS 'MODULE_PATHNAME', 'apitoken_verify_sql' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.verify(text, text, apitoken.id, inet, integer) IS 'Verify a token, and whether it may do this (resource:action) in this organization from this client address. The use counts as cost uses (1 to 1000000, null: 1) against the rate limit and the quota. Returns one row. A bad token is a verdict and not an error. 22023 if the permission is malformed or the cost out of range; F0000 or a file error if the token needs a pepper that is not available.';

CREATE FUNCTION apitoken.verify_all(tokens text[]) RETURNS SETOF apitoken.verification
	AS 'MODULE_PATHNAME', 'apitoken_verify_all' LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION apitoken.verify_all(text[]) IS 'Verify up to 1000 tokens, each as verify() does without a permission. Returns one row for each element, in their order: use WITH ORDINALITY. A null element is malformed; no rows for a null array. 22023 for more than 1000 elements.';

CREATE FUNCTION apitoken.explain_verify(token text, permission text DEFAULT NULL, organization_id apitoken.id DEFAULT NULL,
										client_address inet DEFAULT NULL) RETURNS TABLE (step integer, name text, passed boolean, detail text)
	AS 'MODULE_PATHNAME', 'apitoken_explain_verify' LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION apitoken.explain_verify(text, text, apitoken.id, inet) IS 'The decision of verify() step by step, up to the first step that is not passed: name is the verdict that the step may give, detail what it saw. Nothing is recorded or counted. Of a text whose secret is wrong, it tells what verify() tells. 22023 if the permission is malformed; F0000 or a file error if the token needs a pepper that is not available.';

CREATE FUNCTION apitoken.authenticate(token text) RETURNS apitoken.verification
	AS 'MODULE_PATHNAME', 'apitoken_authenticate' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.authenticate(text) IS 'Verify a token and act by it until the transaction ends. 28000 if the token is refused; 25001 if the transaction already has another identity; 42501 if the session user may not enter the database_role of the role. Warns (25P01) outside a transaction block.';

CREATE FUNCTION apitoken.act_as(user_id apitoken.id) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_act_as' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.act_as(apitoken.id) IS 'Act as this user until the transaction ends, and return the id. The session user needs the capability act. 42501 without the capability; 28000 if the user was deleted, or has no row in users and needs one; 25001 if the transaction already has another identity; 22023 if the id is null, empty, longer than 255 bytes or no canonical spelling of a uuid or bigint. Warns (25P01) outside a transaction block.';

CREATE FUNCTION apitoken.pre_request() RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_pre_request' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.pre_request() IS 'For PostgREST''s db-pre-request: act by the token in the request''s headers (apitoken.token_headers), otherwise as the user of the JWT (apitoken.jwt_user_claim), otherwise stay anonymous. For a token with a rate limit or quota, adds RateLimit-Policy and RateLimit to response.headers. PGRST with HTTP status 400, 401, 403 or 429 if the token is refused or there are several; 42501 if the session user may not enter the database_role of the role.';

CREATE FUNCTION apitoken.introspect(token text, token_type_hint text DEFAULT NULL) RETURNS jsonb
	AS 'MODULE_PATHNAME', 'apitoken_introspect' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.introspect(text, text) IS 'Answer of OAuth 2.0 token introspection (RFC 7662): active, and for an active token scope, client_id, username, token_type, exp, iat, nbf, sub, aud, iss, jti, label, kind, organization_id, role, access. token_type_hint is ignored. A bad token is not active and not an error.';

CREATE FUNCTION apitoken.generate(kind text) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_generate_sql' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.generate(text) IS 'New token text of kind organization or user, which is not stored; null for null; 22023 for another kind';

CREATE FUNCTION apitoken.hash(token text) RETURNS bytea
	AS 'MODULE_PATHNAME', 'apitoken_hash' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.hash(text) IS 'Digest under which a token text would be stored now: SHA-256 (FIPS 180-4), or HMAC-SHA-256 (RFC 2104) with the highest pepper; null for null; F0000 or a file error if the pepper file cannot be used';

CREATE FUNCTION apitoken.parse(token text, OUT prefix text, OUT kind text, OUT id uuid) RETURNS record
	AS 'MODULE_PATHNAME', 'apitoken_parse_sql' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken.parse(text) IS 'Parts of a token text; null if the text is malformed; reads no table';

CREATE FUNCTION apitoken.mask(token text) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_mask' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken.mask(text) IS 'Token text without its secret; null if the text is malformed; reads no table';

CREATE FUNCTION apitoken.find_tokens(document text, OUT "position" integer, OUT token text, OUT masked text, OUT prefix text,
									 OUT kind text, OUT id uuid) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'apitoken_find_tokens' LANGUAGE C VOLATILE STRICT PARALLEL SAFE ROWS 1;
COMMENT ON FUNCTION apitoken.find_tokens(text) IS 'Tokens in any text, by their shape and checksum, with their position in characters from 1; also those of GitLab (glpat-), without kind and id; no row for null; reads no table, so it does not tell whether a token exists';

------------------------------------------------------------------------------
-- Managing tokens
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.create_token(label text, organization_id apitoken.id DEFAULT NULL, user_id apitoken.id DEFAULT NULL,
									  description text DEFAULT NULL, role text DEFAULT NULL, access text DEFAULT NULL,
									  permissions text[] DEFAULT NULL, expires_in interval DEFAULT NULL,
									  allowed_networks cidr[] DEFAULT NULL, rate_limit_per_minute integer DEFAULT NULL,
									  metadata jsonb DEFAULT '{}', quota bigint DEFAULT NULL,
									  quota_period text DEFAULT NULL) RETURNS apitoken.issued_token
	AS 'MODULE_PATHNAME', 'apitoken_create_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.create_token(text, apitoken.id, apitoken.id, text, text, text, text[], interval, cidr[], integer, jsonb, bigint, text) IS 'Create a token of an organization, or without organization_id a personal token of the caller. The result contains the token text, this once. expires_in: for example 7 days, 30 days or 90 days; null: never expires. 42501 if not allowed; 22023 for bad values and for a lifetime that the organization''s policy does not allow; 55000 if the organization has the greatest number of tokens; 23503 for an unknown role or organization; 23505 if the label is in use.';

CREATE FUNCTION apitoken.import_token(format text, stored text, lookup_key text DEFAULT NULL, label text DEFAULT NULL,
									  organization_id apitoken.id DEFAULT NULL, user_id apitoken.id DEFAULT NULL,
									  role text DEFAULT NULL, access text DEFAULT NULL, permissions text[] DEFAULT NULL,
									  salt text DEFAULT NULL, created_at timestamptz DEFAULT NULL, expires_at timestamptz DEFAULT NULL,
									  last_used_at timestamptz DEFAULT NULL, revoked_at timestamptz DEFAULT NULL,
									  metadata jsonb DEFAULT '{}') RETURNS uuid
	AS 'MODULE_PATHNAME', 'apitoken_import_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.import_token(text, text, text, text, apitoken.id, apitoken.id, text, text, text[], text, timestamptz, timestamptz, timestamptz, timestamptz, jsonb) IS 'Import a token of another system, whose text goes on working if apitoken.imported_formats has the format, and return its id. stored is what that system keeps of the token, lookup_key the part of its text by which that system finds it. The label need not be unique. 22023 for bad values; 23503 for an unknown role, organization or user; 23505 if the token was imported before; 42501 for a role with a database_role; F0000 if the pepper file does not have the key of the other system; 55000 if pgcrypto is needed and not installed.';

CREATE FUNCTION apitoken.take_token(id uuid) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_take_token' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.take_token(uuid) IS 'Text of a token that the same role inserted in this transaction, once: INSERT INTO apitoken.tokens (...) RETURNING id, apitoken.take_token(id); null for null; 55000 if the text is not available';

CREATE FUNCTION apitoken.regenerate_token(id uuid, overlap interval DEFAULT '0', expires_in interval DEFAULT NULL)
	RETURNS apitoken.issued_token
	AS 'MODULE_PATHNAME', 'apitoken_regenerate_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.regenerate_token(uuid, interval, interval) IS 'Give a token a new secret. The old secret is accepted for overlap longer, but never past its old expiry, and overlaps of earlier calls go on. An overlap of 0 ends all of them. expires_in null keeps the expiry. A token whose own permissions name token:rotate may call this for itself. 42501 if the token does not exist or the caller may not change it, and if a token calls this for itself by a previous secret; 55000 if it is revoked, if it is expired and expires_in is null, or if 4 overlaps are not over; 22023 for a duration out of range, for an expiry that the organization''s policy does not allow, and for a later one that a token would give itself.';

CREATE FUNCTION apitoken.end_overlap(id uuid) RETURNS integer
	AS 'MODULE_PATHNAME', 'apitoken_end_overlap' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.end_overlap(uuid) IS 'End all overlaps of a token: only its current secret is accepted from now on. Returns the number of secrets that were ended. 42501 if the token does not exist or the caller may not change it.';

CREATE FUNCTION apitoken.revoke_token(id uuid, confirm_label text DEFAULT NULL, reason text DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_revoke_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.revoke_token(uuid, text, text) IS 'Revoke a token for good. For a token of an organization, confirm_label must be its label. Returns true, or false if the token was revoked before. 42501 if the token does not exist or the caller may not revoke it; 22023 if the label is wrong.';

CREATE FUNCTION apitoken.revoke_by_token(token text, token_type_hint text DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_revoke_by_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.revoke_by_token(text, text) IS 'Revoke the token with this text (RFC 7009); the text is the only authorization needed. Returns true if this call revoked the token, false if there was nothing to revoke. token_type_hint is ignored.';

CREATE FUNCTION apitoken.report_leaked(tokens text[], source text DEFAULT NULL, url text DEFAULT NULL, OUT "position" integer,
									   OUT token_id uuid, OUT masked text, OUT label text, OUT verdict text, OUT action text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'apitoken_report_leaked' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION apitoken.report_leaked(text[], text, text) IS 'Report up to 1000 texts of tokens that have become known. Each token that is not revoked gets an event, a notification and, unless its organization''s on_leak is notify, its end. Returns one row for each element: label is true_positive if the text is that of a token, verdict as of verify(), action is revoked, notified or none. source and url, which tell where the text was found, are kept up to 200 and 2000 bytes, with secrets masked. This is no use of the tokens. No rows for a null array; 22023 for more than 1000 elements; 25006 in a READ ONLY transaction.';

CREATE FUNCTION apitoken.revoke_tokens(organization_id apitoken.id DEFAULT NULL, user_id apitoken.id DEFAULT NULL,
									   created_by apitoken.id DEFAULT NULL, reason text DEFAULT NULL) RETURNS bigint
	AS 'MODULE_PATHNAME', 'apitoken_revoke_tokens' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.revoke_tokens(apitoken.id, apitoken.id, apitoken.id, text) IS 'Revoke all tokens that match every given id and that the caller may revoke, and return their number; 22023 if no id is given';

CREATE FUNCTION apitoken_internal.list_pattern(label text) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_list_pattern' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.list_pattern(text) IS 'For list_tokens(): ILIKE pattern for a label. A text with % is a pattern already, any other text means contains. Null for null.';

CREATE FUNCTION apitoken_internal.list_limit(page_size integer, status text) RETURNS bigint
	AS 'MODULE_PATHNAME', 'apitoken_list_limit' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.list_limit(integer, text) IS 'For list_tokens(): check the page size (1 to 1000) and the status, and return the page size; 22023 if one of them is not valid';

CREATE FUNCTION apitoken.list_tokens(label text DEFAULT NULL, organization_id apitoken.id DEFAULT NULL, status text DEFAULT NULL,
									 before_id uuid DEFAULT NULL, page_size integer DEFAULT 50) RETURNS SETOF apitoken.tokens
	LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 50
BEGIN ATOMIC
	SELECT t.*
	FROM apitoken.tokens t
	WHERE (list_tokens.organization_id IS NULL OR t.organization_id = list_tokens.organization_id::text)
		AND (list_tokens.label IS NULL OR t.label ILIKE apitoken_internal.list_pattern(list_tokens.label))
		AND (list_tokens.status IS NULL OR t.status = list_tokens.status)
		AND (list_tokens.before_id IS NULL
			 OR (t.created_at, t.id) < ((SELECT b.created_at FROM apitoken_internal.token_records b WHERE b.id = list_tokens.before_id), list_tokens.before_id))
	ORDER BY t.created_at DESC, t.id DESC
	LIMIT apitoken_internal.list_limit(list_tokens.page_size, list_tokens.status);
END;
COMMENT ON FUNCTION apitoken.list_tokens(text, apitoken.id, text, uuid, integer) IS 'Tokens that the caller may see, newest first. label: an ILIKE pattern with %, or plain text that means contains; status: active, expiring, expired, suspended, policy_refused or revoked; before_id: id of the last row of the page before; page_size: 1 to 1000. A null means all; page_size cannot be null. 22023 for an unknown status or a page size out of range.';

------------------------------------------------------------------------------
-- Erasure
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.forget_user(user_id apitoken.id) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_forget_user' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.forget_user(apitoken.id) IS 'Delete a user, and replace their id in tokens, events and the list of deleted users by one random pseudonym. Their names and addresses, and the texts of their personal tokens, are removed. Returns true, or false if there was nothing of the user. 22023 for an id that is not valid; 42501 while a user or token is acting; 25006 where nothing can be written; 55000 if triggers do not fire (session_replication_role).';

------------------------------------------------------------------------------
-- Capabilities
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.allow(database_role name, VARIADIC capabilities text[]) RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_allow' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.allow(name, text[]) IS 'Grant capabilities (use, manage, verify, act, directory, monitor, notify, usage) to a database role; 42501 unless the caller is the tables'' owner; 22023 for an unknown capability';

CREATE FUNCTION apitoken.disallow(database_role name, VARIADIC capabilities text[]) RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_disallow' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.disallow(name, text[]) IS 'Revoke capabilities from a database role. Each privilege of the role is then as it was before allow(). Privileges that another capability of the role contains are kept. 55000 if the role still has the whole capability because another role has granted it; 2BP01 if the role has granted one of the privileges to others; other errors as for allow().';

------------------------------------------------------------------------------
-- Recorded use, and counters of the server
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.flush_usage() RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_flush_usage' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.flush_usage() IS 'Write the use of this database''s tokens from shared memory to the tables, and wait until it is on disk. On a standby, send it to the primary; on a logical subscriber with apitoken.subscriber_sends, to the publisher. Does nothing without shared preload. 55000 if the use cannot be written or sent, and on a standby without apitoken.primary_conninfo; 53000 if no background worker is free.';

CREATE FUNCTION apitoken.record_usage(sender uuid, batch uuid, uses jsonb, places jsonb DEFAULT '[]') RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_record_usage' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.record_usage(uuid, uuid, jsonb, jsonb) IS 'Count use of tokens that another server has recorded; standbys with apitoken.primary_conninfo call it, and logical subscribers with apitoken.subscriber_sends. True: it is counted now; false, and nothing changes, if this batch or one with a greater id of the same sender was counted before, or the batch is older than 90 days. Ids of batches are UUIDs of version 7. Counts are added, later times replace earlier ones, times in the future become the current time, and unknown tokens are left out. 22023, 22P02 or 22003 for a batch that is not valid; 22004 for a null; 54000 for more than 10000 objects; 25006 where nothing can be written; 55000 on a server that sends its own use.';

CREATE FUNCTION apitoken_internal.read_stats(
	OUT preloaded boolean, OUT started_at timestamptz,
	OUT valid bigint, OUT malformed bigint, OUT unknown bigint, OUT revoked bigint, OUT expired bigint,
	OUT suspended bigint, OUT policy_refused bigint, OUT network_refused bigint, OUT permission_refused bigint,
	OUT quota_exceeded bigint, OUT rate_limited bigint,
	OUT flushes bigint, OUT dropped bigint, OUT masked bigint, OUT sent bigint,
	OUT slots integer, OUT entries bigint, OUT limits bigint,
	OUT last_flush_at timestamptz, OUT last_flush_error text, OUT last_flush_error_at timestamptz, OUT launcher_runs boolean,
	OUT complete_since timestamptz, OUT incomplete_because text, OUT maintenance_problem text,
	OUT pending bigint, OUT last_send_at timestamptz, OUT last_send_error text, OUT last_send_error_at timestamptz) RETURNS record
	AS 'MODULE_PATHNAME', 'apitoken_read_stats' LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.read_stats() IS 'Row of the view apitoken.stats';

CREATE VIEW apitoken.stats AS SELECT * FROM apitoken_internal.read_stats();
COMMENT ON VIEW apitoken.stats IS 'One row: what this server has counted since it started, in all databases, and how the last flush of this database went. Without shared preload, all columns but preloaded are null.';
COMMENT ON COLUMN apitoken.stats.preloaded IS 'True if the library is in shared_preload_libraries';
COMMENT ON COLUMN apitoken.stats.started_at IS 'When counting began: at the start of the server, or at its restart after a crash';
COMMENT ON COLUMN apitoken.stats.valid IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.malformed IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.unknown IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.revoked IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.expired IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.suspended IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.policy_refused IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.network_refused IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.permission_refused IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.quota_exceeded IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.rate_limited IS 'Number of verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.flushes IS 'Number of batches of use that were written to the tables';
COMMENT ON COLUMN apitoken.stats.dropped IS 'Number of uses not recorded, and of uses of tokens with a rate limit or quota refused, because shared memory was full; increase apitoken.usage_slots';
COMMENT ON COLUMN apitoken.stats.masked IS 'Number of log messages in which a token text was masked';
COMMENT ON COLUMN apitoken.stats.sent IS 'Number of uses that this server has sent: to its primary as a standby, to the publisher as a logical subscriber';
COMMENT ON COLUMN apitoken.stats.slots IS 'Value of apitoken.usage_slots';
COMMENT ON COLUMN apitoken.stats.entries IS 'Number of tokens whose use is in shared memory, written or not';
COMMENT ON COLUMN apitoken.stats.limits IS 'Number of tokens whose rate limit or quota is in shared memory';
COMMENT ON COLUMN apitoken.stats.last_flush_at IS 'When a flush of this database last succeeded; null: not since the start';
COMMENT ON COLUMN apitoken.stats.last_flush_error IS 'Why the last flush of this database failed; null: it did not fail';
COMMENT ON COLUMN apitoken.stats.last_flush_error_at IS 'When the last flush of this database failed; null: it did not fail';
COMMENT ON COLUMN apitoken.stats.launcher_runs IS 'True if the launcher runs, which has use written and housekeeping done; false: see the server log, and increase max_worker_processes';
COMMENT ON COLUMN apitoken.stats.complete_since IS 'Since when this server has recorded all use; tokens are not revoked as idle until their idle_timeout has passed after that; null: no loss is known, or recovery; now, if it sends its use';
COMMENT ON COLUMN apitoken.stats.incomplete_because IS 'Why use may be unrecorded before complete_since';
COMMENT ON COLUMN apitoken.stats.maintenance_problem IS 'What the last housekeeping of this database could not do, and why; null: it did everything, or has not run since the start';
COMMENT ON COLUMN apitoken.stats.pending IS 'Number of uses of this database in memory that are not written yet; on a server that sends its use, not sent yet';
COMMENT ON COLUMN apitoken.stats.last_send_at IS 'On a server that sends its use, when that of this database last arrived; null: never';
COMMENT ON COLUMN apitoken.stats.last_send_error IS 'On a server that sends its use, why that of this database could not be sent; null: the last attempt succeeded';
COMMENT ON COLUMN apitoken.stats.last_send_error_at IS 'When it could not be sent';

------------------------------------------------------------------------------
-- The outbox
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.claim_notifications(max integer DEFAULT 100, lease interval DEFAULT '5 minutes') RETURNS SETOF apitoken.notifications
	AS 'MODULE_PATHNAME', 'apitoken_claim_notifications' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.claim_notifications(integer, interval) IS 'Claim notifications that are to be delivered, up to max (1 to 1000), and return them, oldest first. Nobody else gets them until the lease ends (1 second to 1 day). A notification is not claimed while an earlier one of the same token is neither delivered nor given up. After the 20th attempt it is given up. 22023 if an argument is out of range or null; 25006 where nothing can be written.';

CREATE FUNCTION apitoken.notification_delivered(id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_notification_delivered' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.notification_delivered(uuid) IS 'Record that a claimed notification was delivered, also after the lease has ended. False if it was recorded already, was never claimed or does not exist. Null for null.';

CREATE FUNCTION apitoken.notification_failed(id uuid, error text, attempts integer DEFAULT NULL) RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'apitoken_notification_failed' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.notification_failed(uuid, text, integer) IS 'Record that the delivery of a claimed notification failed, and why. Returns when it can be claimed again: after a minute, then twice as long each time, at most six hours. Null, and nothing changes, if it was given up (after 20 attempts), was delivered, was never claimed or does not exist, or if attempts is given, as claim_notifications() returned it, and the notification was claimed again since. Secrets in the error are masked, and only its beginning is kept.';

CREATE FUNCTION apitoken_internal.role_allows(role text, permission text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_role_allows' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.role_allows(text, text) IS 'For the recipients of notifications: does this role include the permission? Null if an argument is null.';
CREATE FUNCTION apitoken_internal.new_id() RETURNS uuid
	AS 'MODULE_PATHNAME', 'apitoken_new_id' LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.new_id() IS 'For notifications of expiries: a new UUID of version 7';
CREATE FUNCTION apitoken_internal.notification_before_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_notification_before_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.notification_before_change() IS 'Trigger: has NOTIFY sent for a new notification; one that a restore or replication brings is not to be delivered';

CREATE TRIGGER notification_before_change BEFORE INSERT OR UPDATE ON apitoken.notifications
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.notification_before_change();
-- This fires for replication and restores, too: see src/manage/notify.c.
ALTER TABLE apitoken.notifications ENABLE ALWAYS TRIGGER notification_before_change;

ALTER TABLE apitoken.notifications ENABLE ROW LEVEL SECURITY;
CREATE POLICY notifications_read ON apitoken.notifications FOR SELECT
	USING (apitoken_internal.manages_organization(organization_id, 'token:read', 'token:update', 'token:delete')
		   OR apitoken_internal.manages_user(user_id, 'token:read', 'token:update', 'token:delete'));

------------------------------------------------------------------------------
-- Housekeeping
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.run_maintenance(OUT tokens_revoked bigint, OUT events_removed bigint,
										 OUT tokens_removed bigint, OUT usage_removed bigint,
										 OUT tokens_spared bigint, OUT problems text[],
										 OUT notifications_removed bigint) RETURNS record
	AS 'MODULE_PATHNAME', 'apitoken_run_maintenance' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.run_maintenance() IS 'Do the housekeeping that is due, and return how much was done: revoke idle tokens, remove events and ended tokens older than apitoken.retention, daily use older than apitoken.usage_retention and notifications older than apitoken.notification_retention, and make notifications of tokens that expire within 7 days and within 1 day. tokens_spared counts idle tokens that are not revoked because they may have been used without a record. problems has what could not be done, and why. 25006 where nothing can be written; 55000 if triggers do not fire (session_replication_role); F0000 if the value of one of these settings was refused.';

------------------------------------------------------------------------------
-- Check of the set-up.  Each subject is a part of the query below, which begins
-- with a comment of its name.  A part has a row for each finding; a subject without
-- rows is in order.  Everything is read with the caller's privileges.
------------------------------------------------------------------------------

CREATE FUNCTION apitoken_internal.read_setup(OUT library_version text, OUT installed_version text, OUT peppers smallint[],
											 OUT pepper_problem text, OUT pepper_hint text,
											 OUT sends boolean, OUT conninfo_fault text) RETURNS record
	AS 'MODULE_PATHNAME', 'apitoken_read_setup' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.read_setup() IS 'For check_setup(): version of the library, version of the installed files (null: not found), numbers of the peppers, and why tokens cannot be made, or imported ones not be verified, with the pepper file; whether the use of this database is sent to another server, and what is wrong with apitoken.primary_conninfo';

CREATE FUNCTION apitoken_internal.count_tokens() RETURNS jsonb
	LANGUAGE sql VOLATILE PARALLEL RESTRICTED
BEGIN ATOMIC
	WITH token AS (
		SELECT * FROM apitoken_internal.token_records
		WHERE revoked_at IS NULL AND (expires_at > pg_catalog.now()) IS NOT FALSE
	)
	SELECT pg_catalog.jsonb_build_object(
		'endless', (SELECT pg_catalog.count(*) FROM token WHERE expires_at IS NULL),
		'limited', (SELECT pg_catalog.count(*) FROM token WHERE rate_limit_per_minute IS NOT NULL OR quota IS NOT NULL),
		'current', (SELECT pg_catalog.jsonb_object_agg(s.digest_scheme, s.count) FROM (
			SELECT CASE WHEN digest_scheme < 0 THEN -1 - digest_scheme ELSE digest_scheme END AS digest_scheme, pg_catalog.count(*)
			FROM token GROUP BY 1) s),
		'imported', (SELECT pg_catalog.jsonb_object_agg(s.imported_as, s.count) FROM (
			SELECT imported_as, pg_catalog.count(*) FROM token WHERE imported_as IS NOT NULL GROUP BY 1) s),
		'previous', (SELECT pg_catalog.jsonb_object_agg(s.scheme, s.count) FROM (
			SELECT CASE WHEN p.scheme < 0 THEN -1 - p.scheme ELSE p.scheme END AS scheme, pg_catalog.count(DISTINCT t.id)
			FROM token t, ROWS FROM (pg_catalog.unnest(t.previous_digest_scheme), pg_catalog.unnest(t.previous_expires_at)) p (scheme, expires_at)
			WHERE p.expires_at > pg_catalog.now() GROUP BY 1) s),
		-- of a token, the first is delivered before the next one can be claimed
		'unclaimed', (SELECT pg_catalog.count(*) FROM (
			SELECT DISTINCT ON (n.token_id) n.next_attempt_at FROM apitoken.notifications n
			WHERE n.next_attempt_at IS NOT NULL ORDER BY n.token_id, n.id) n
			WHERE n.next_attempt_at < pg_catalog.now() - interval '1 hour'),
		'given_up', (SELECT pg_catalog.count(*) FROM apitoken.notifications n
			WHERE n.next_attempt_at IS NULL AND n.delivered_at IS NULL AND n.attempts >= 20 AND n.recipients <> '{}'));
END;
COMMENT ON FUNCTION apitoken_internal.count_tokens() IS 'For check_setup(): numbers of notifications that could have been claimed for an hour (unclaimed) and that were given up (given_up), and of tokens that are neither revoked nor expired: all that never expire (endless), that have a rate limit or a quota (limited), by format of imported ones (imported), and by digest scheme of the current and of previous secrets whose overlap is not over';

CREATE FUNCTION apitoken.check_setup() RETURNS TABLE (level text, subject text, message text, hint text)
	LANGUAGE sql VOLATILE PARALLEL RESTRICTED ROWS 20
	SET search_path = pg_catalog, pg_temp	-- names in messages and hints are then qualified
BEGIN ATOMIC
	WITH RECURSIVE
	-- What several parts read
	setup AS MATERIALIZED (
		SELECT s.*, e.extversion AS version, e.extowner, c.relowner AS owner
		FROM apitoken_internal.read_setup() s
			JOIN pg_catalog.pg_class c ON c.oid = 'apitoken_internal.token_records'::pg_catalog.regclass
			JOIN pg_catalog.pg_extension e ON e.extname = 'apitoken'
	),
	-- the extension's objects
	member AS MATERIALIZED (
		SELECT d.classid, d.objid AS oid
		FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
		WHERE e.extname = 'apitoken' AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e'
	),
	stats AS MATERIALIZED (SELECT s.* FROM apitoken.stats s),
	-- the subscriptions that change the use of tokens
	subscription AS MATERIALIZED (
		SELECT pg_catalog.count(*) AS number FROM pg_catalog.pg_subscription_rel r WHERE r.srrelid = 'apitoken.token_usage'::pg_catalog.regclass
	),
	-- without the settings that the caller may not see
	setting AS MATERIALIZED (SELECT s.name, s.setting AS value, s.source, s.pending_restart FROM pg_catalog.pg_settings s),
	-- null for a caller who does not see all tokens
	tokens AS MATERIALIZED (
		SELECT CASE WHEN pg_catalog.has_table_privilege('apitoken_internal.token_records'::pg_catalog.regclass, 'SELECT')
				AND NOT pg_catalog.row_security_active('apitoken_internal.token_records'::pg_catalog.regclass)
				AND pg_catalog.has_table_privilege('apitoken.notifications'::pg_catalog.regclass, 'SELECT')
			THEN apitoken_internal.count_tokens() END AS numbers
	),
	-- tokens whose current or previous secret needs this pepper (0: none)
	scheme AS (
		SELECT k.kind, s.key::integer AS scheme, s.value::bigint AS tokens
		FROM tokens t, (VALUES ('current'), ('previous')) k (kind), pg_catalog.jsonb_each_text(t.numbers -> k.kind) s
		WHERE pg_catalog.jsonb_typeof(t.numbers -> k.kind) = 'object'
	),
	-- shared_preload_libraries, in order; no rows for a caller who may not see it
	library AS (
		SELECT l.n, pg_catalog.btrim(l.name, ' "') AS name, l.name ~ '(^|[ "/])apitoken(\.so)?[ "]*$' AS is_ours
		FROM setting s, pg_catalog.unnest(pg_catalog.string_to_array(s.value, ',')) WITH ORDINALITY l (name, n)
		WHERE s.name = 'shared_preload_libraries' AND l.name <> ''
	),
	-- The list in the hint would take back a change that awaits a restart.
	preload (hint) AS (
		SELECT CASE WHEN EXISTS (SELECT FROM setting s WHERE s.name = 'shared_preload_libraries' AND NOT s.pending_restart)
			THEN pg_catalog.format('ALTER SYSTEM SET shared_preload_libraries = %s''apitoken'';  -- then restart the server',
				(SELECT pg_catalog.string_agg(pg_catalog.quote_literal(l.name) || ', ', '' ORDER BY l.n) FROM library l WHERE NOT l.is_ours))
			ELSE 'shared_preload_libraries = ''..., apitoken''  # in postgresql.conf, as the last of the list; then restart the server' END
	),
	-- what follows ALTER SYSTEM SET apitoken.*, which cannot share a query string with another statement
	reload (hint) AS (
		SELECT CASE WHEN s.preloaded THEN '  -- then SELECT pg_reload_conf();'
			ELSE '  -- in a session that has run LOAD ''apitoken''; then SELECT pg_reload_conf();' END
		FROM stats s
	),
	-- Memberships: does the member have the role's privileges, and may it SET ROLE?
	-- PostgreSQL 15 has no options for this: the member's attribute INHERIT decides the
	-- one, and it always may do the other.  Since 16, REVOKE takes back what one grantor
	-- granted, which for a superuser is the role that initdb made.
	membership AS MATERIALIZED (
		SELECT m.roleid, m.member, COALESCE((o.options ->> 'inherit_option')::boolean, r.rolinherit) AS inherits,
			COALESCE((o.options ->> 'set_option')::boolean, true) AS may_set,
			pg_catalog.format('REVOKE %s FROM %s%s;', m.roleid::pg_catalog.regrole, m.member::pg_catalog.regrole,
				CASE WHEN o.options ? 'set_option' AND m.grantor <> 10 THEN ' GRANTED BY ' || m.grantor::pg_catalog.regrole END) AS remedy
		FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.member, pg_catalog.to_jsonb(m) o (options)
		UNION ALL
		SELECT r.oid, b.datdba, true, true, pg_catalog.format('ALTER DATABASE %I OWNER TO %I;', b.datname, pg_catalog.pg_get_userbyid(10))
		FROM pg_catalog.pg_roles r, pg_catalog.pg_database b WHERE r.rolname = 'pg_database_owner' AND b.datname = pg_catalog.current_database()
	),
	-- A capability that a role was granted, or may use as if, and the statement that
	-- takes it away: see src/manage/grant.c and src/base/function.c.
	granted AS (
		SELECT g.grantee AS role, a.attname::text AS capability,
			pg_catalog.format('SELECT apitoken.disallow(%L, %L);', pg_catalog.pg_get_userbyid(g.grantee), a.attname) AS remedy
		FROM pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) g
		WHERE a.attrelid = 'apitoken_internal.capabilities'::pg_catalog.regclass AND g.grantee <> 0
	),
	held AS (
		SELECT g.* FROM granted g
		UNION
		SELECT g.grantee, f.capability, pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM %s;', f.function, g.grantee::pg_catalog.regrole)
		FROM (VALUES ('act', 'apitoken.act_as(apitoken.id)'),
					 ('use', 'apitoken.authenticate(text)'),
					 ('verify', 'apitoken.verify(text, text, apitoken.id, inet, integer)')) f (capability, function)
			JOIN pg_catalog.pg_proc p ON p.oid = pg_catalog.to_regprocedure(f.function), pg_catalog.aclexplode(p.proacl) g
		WHERE g.grantee NOT IN (0, p.proowner)
			AND NOT EXISTS (SELECT FROM granted m WHERE m.role = g.grantee
				AND (m.capability = f.capability OR (m.capability = 'manage' AND f.capability = 'use')))
		UNION
		SELECT m.member, h.capability, m.remedy FROM held h JOIN membership m ON m.roleid = h.role WHERE m.inherits
	),
	holder AS (
		SELECT r.*, r.oid::pg_catalog.regrole::text AS name, h.capabilities, h.remedy,
			h.capabilities <> 'monitor' AS uses_tokens
		FROM (SELECT h.role, pg_catalog.string_agg(DISTINCT h.capability, ', ') AS capabilities,
				pg_catalog.string_agg(DISTINCT h.remedy, ' ') AS remedy FROM held h GROUP BY h.role) h
			JOIN pg_catalog.pg_roles r ON r.oid = h.role
	),
	-- privileges on the extension's objects
	object AS (
		SELECT m.*, 0 AS subid, 'ON SCHEMA' AS kind, n.oid::pg_catalog.regnamespace::text AS name, n.nspacl AS acl
		FROM member m JOIN pg_catalog.pg_namespace n ON n.oid = m.oid WHERE m.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
		UNION ALL
		SELECT m.*, 0, 'ON FUNCTION', p.oid::pg_catalog.regprocedure::text, COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner))
		FROM member m JOIN pg_catalog.pg_proc p ON p.oid = m.oid WHERE m.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
		UNION ALL
		SELECT m.*, 0, 'ON TABLE', c.oid::pg_catalog.regclass::text, c.relacl
		FROM member m JOIN pg_catalog.pg_class c ON c.oid = m.oid WHERE m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
		UNION ALL
		SELECT m.*, a.attnum, pg_catalog.format('(%I) ON TABLE', a.attname), a.attrelid::pg_catalog.regclass::text, a.attacl
		FROM member m JOIN pg_catalog.pg_attribute a ON a.attrelid = m.oid WHERE m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
		UNION ALL
		SELECT m.*, 0, 'ON TYPE', t.oid::pg_catalog.regtype::text, COALESCE(t.typacl, pg_catalog.acldefault('T', t.typowner))
		FROM member m JOIN pg_catalog.pg_type t ON t.oid = m.oid LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
		WHERE m.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
			-- PostgreSQL 17 and later count array types and the row types of tables among them
			AND t.typcategory <> 'A' AND COALESCE(c.relkind, 'c') = 'c'
	),
	-- what PUBLIC has, and what it had after the installation
	public_now AS (
		SELECT o.kind, o.name, g.privilege_type AS privilege FROM object o, pg_catalog.aclexplode(o.acl) g WHERE g.grantee = 0
	),
	public_initially AS (
		SELECT o.kind, o.name, g.privilege_type AS privilege
		FROM object o JOIN pg_catalog.pg_init_privs i ON i.classoid = o.classid AND i.objoid = o.oid AND i.objsubid = o.subid,
			pg_catalog.aclexplode(i.initprivs) g
		WHERE g.grantee = 0
	),

	-- Functions, views and tables that depend on the extension: its own, those that call
	-- or read one of these, and tables with a policy that does.  What a function calls is
	-- unknown if its body is a string.
	dependent (classid, oid) AS (
		SELECT m.classid, m.oid FROM member m
		WHERE m.classid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_class'::pg_catalog.regclass)
		UNION
		SELECT CASE WHEN x.relation IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::pg_catalog.regclass END, COALESCE(x.relation, d.objid)
		FROM dependent b JOIN pg_catalog.pg_depend d ON d.refclassid = b.classid AND d.refobjid = b.oid
			LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid AND r.ev_type = '1'
			LEFT JOIN pg_catalog.pg_policy y ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND y.oid = d.objid,
			LATERAL (SELECT COALESCE(r.ev_class, y.polrelid)) x (relation)
		WHERE d.deptype = 'n' AND (x.relation IS NOT NULL OR d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass)
	),
	-- the tables among them that are not the extension's
	guarded AS MATERIALIZED (
		SELECT c.oid, c.oid::pg_catalog.regclass::text AS name, c.relowner AS owner, c.relrowsecurity, c.relforcerowsecurity
		FROM dependent b JOIN pg_catalog.pg_class c ON c.oid = b.oid
		WHERE b.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.relkind IN ('r', 'p')
			AND NOT EXISTS (SELECT FROM member m WHERE m.classid = b.classid AND m.oid = b.oid)
	),
	-- Owners of tables, and the roles with their privileges.  Others may become the owner
	-- by SET ROLE, or a role that inherits from it.
	owner_member (owner, role, inherits) AS (
		SELECT s.owner, s.owner, true FROM setup s
		UNION
		SELECT g.owner, g.owner, true FROM guarded g WHERE g.relrowsecurity AND NOT g.relforcerowsecurity
		UNION
		SELECT o.owner, m.member, k.inherits
		FROM owner_member o JOIN membership m ON m.roleid = o.role, LATERAL (VALUES (true), (false)) k (inherits)
		WHERE CASE WHEN k.inherits THEN o.inherits AND m.inherits ELSE m.may_set END
	),
	heir AS MATERIALIZED (
		SELECT o.owner, o.role, pg_catalog.bool_or(o.inherits) AS inherits FROM owner_member o GROUP BY o.owner, o.role
	),
	-- logins among them, without those that FORCE ROW LEVEL SECURITY does not bind
	owner_login AS MATERIALIZED (
		SELECT h.owner, h.inherits, pg_catalog.string_agg(r.oid::pg_catalog.regrole::text, ', ' ORDER BY r.rolname) AS logins
		FROM heir h JOIN pg_catalog.pg_roles r ON r.oid = h.role JOIN pg_catalog.pg_roles o ON o.oid = h.owner
		WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND (h.inherits OR NOT (o.rolsuper OR o.rolbypassrls))
		GROUP BY h.owner, h.inherits
	),
	-- tables whose policies are in force, and their partitions and children, which have
	-- policies of their own or none if they are read by name
	covered (oid) AS (
		SELECT g.oid FROM guarded g WHERE g.relrowsecurity
		UNION
		SELECT i.inhrelid FROM covered c JOIN pg_catalog.pg_inherits i ON i.inhparent = c.oid
	),
	-- These and the views that show them.  The first view on the way without
	-- security_invoker is the one that reads the table as its owner.
	shown (relation, of_table, by_view) AS (
		SELECT c.oid, c.oid, NULL::oid FROM covered c
		UNION
		SELECT v.oid, s.of_table, COALESCE(s.by_view, CASE WHEN NOT i.security_invoker THEN v.oid END)
		FROM shown s
			JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = s.relation
				AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.deptype = 'n'
			JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1'
			JOIN pg_catalog.pg_class v ON v.oid = r.ev_class,
			LATERAL (SELECT EXISTS (SELECT FROM pg_catalog.pg_options_to_table(v.reloptions) o
				WHERE o.option_name = 'security_invoker' AND o.option_value::boolean)) i (security_invoker)
		WHERE s.by_view IS NULL OR NOT i.security_invoker
	),
	-- those that roles other than the owner may use
	shared AS MATERIALIZED (
		SELECT c.oid, c.oid::pg_catalog.regclass::text AS name, g.grantees
		FROM pg_catalog.pg_class c, LATERAL (
			SELECT pg_catalog.string_agg(DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::pg_catalog.regrole::text END, ', ')
			FROM (SELECT c.relacl UNION ALL SELECT a.attacl FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid) a (acl),
				pg_catalog.aclexplode(a.acl) g
			WHERE g.grantee <> c.relowner AND g.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
		) g (grantees)
		WHERE c.oid IN (SELECT s.relation FROM shown s) AND g.grantees IS NOT NULL
	),

	finding (subject, level, message, hint) AS (
		-- version
		SELECT 'version', 'error',
			pg_catalog.format('the extension has version %s in this database, but its library has version %s', s.version, s.library_version),
			CASE WHEN s.installed_version IS DISTINCT FROM s.library_version
				THEN 'pg_ctl restart  # sessions that are still connected use the old library'
				ELSE 'ALTER EXTENSION apitoken UPDATE;' END
		FROM setup s WHERE s.version <> s.library_version
		UNION ALL
		SELECT 'version', 'warning',
			pg_catalog.format('version %s is installed on this server, but sessions use version %s', s.installed_version, s.version),
			'ALTER EXTENSION apitoken UPDATE;  -- then restart the server'
		FROM setup s WHERE s.version = s.library_version AND s.installed_version <> s.version

		-- preload
		UNION ALL
		SELECT 'preload', 'warning',
			'apitoken is not in shared_preload_libraries: tokens with a rate limit or quota are refused, refused use is not counted, accepted use is recorded at most once a minute and only in transactions that can write, new networks and the use of previous secrets after their overlap are not noticed (revoke_on_reuse revokes nothing), and the log is masked only in sessions that have loaded the library',
			p.hint
		FROM preload p, stats s WHERE NOT s.preloaded
		UNION ALL
		SELECT 'preload', 'warning',
			pg_catalog.format('%s comes after apitoken in shared_preload_libraries, and may see the texts of tokens before they are masked',
				pg_catalog.string_agg(l.name, ', ' ORDER BY l.n)), p.hint
		FROM preload p, library l
		WHERE NOT l.is_ours AND l.n > (SELECT pg_catalog.max(o.n) FROM library o WHERE o.is_ours)
		GROUP BY p.hint
		UNION ALL
		SELECT 'preload', 'notice', 'this role may not see the order of shared_preload_libraries',
			pg_catalog.format('GRANT pg_read_all_settings TO %s;', CURRENT_USER::pg_catalog.regrole)
		FROM stats s WHERE s.preloaded AND NOT EXISTS (SELECT FROM setting WHERE setting.name = 'shared_preload_libraries')

		-- usage
		UNION ALL
		SELECT 'usage', 'notice', 'without shared preload the server does not know which use is not recorded', p.hint
		FROM preload p, stats s WHERE NOT s.preloaded
		UNION ALL
		SELECT 'usage', 'error', 'the launcher does not run: recorded use is not written, and there is no housekeeping',
			pg_catalog.format('ALTER SYSTEM SET max_worker_processes = %s;  -- then restart the server', pg_catalog.current_setting('max_worker_processes')::integer + 4)
		FROM stats s WHERE NOT s.launcher_runs
		UNION ALL
		SELECT 'usage', 'warning',
			pg_catalog.format('uses that were dropped, or tokens with a rate limit or quota refused, because memory was full: %s', s.dropped),
			pg_catalog.format('ALTER SYSTEM SET apitoken.usage_slots = %s;  -- then restart the server', 2 * s.slots::bigint)
		FROM stats s WHERE s.dropped > 0
		UNION ALL
		SELECT 'usage', 'warning',
			pg_catalog.format('there are %s slots, and %s tokens with recorded use and %s with a rate limit or quota in them: half of the slots should be free', s.slots, s.entries, s.limits),
			pg_catalog.format('ALTER SYSTEM SET apitoken.usage_slots = %s;  -- then restart the server', 2 * GREATEST(s.entries, s.limits, s.slots))
		FROM stats s WHERE 2 * GREATEST(s.entries, s.limits) > s.slots
		UNION ALL
		SELECT 'usage', 'warning', pg_catalog.format('the last flush of recorded use failed: %s', s.last_flush_error),
			'SELECT apitoken.flush_usage();  -- when the cause is removed'
		FROM stats s WHERE s.last_flush_error IS NOT NULL
		UNION ALL
		SELECT 'usage', 'warning', pg_catalog.format('the last housekeeping could not do everything: %s', s.maintenance_problem),
			'SELECT * FROM apitoken.run_maintenance();  -- when the cause is removed'
		FROM stats s WHERE s.maintenance_problem IS NOT NULL

		-- standby, also logical replication
		UNION ALL
		SELECT 'standby', 'notice', 'this server is a standby: it writes recorded use only after a promotion, so a token that is used only here looks unused on the primary',
			'ALTER SYSTEM SET apitoken.standbys_verify = on;' || r.hint || ' on the primary, so that no token is revoked as idle'
		FROM reload r, setup s WHERE pg_catalog.pg_is_in_recovery() AND NOT s.sends
		UNION ALL
		SELECT 'standby', 'warning', 'this standby does not send recorded use to the primary',
			'ALTER SYSTEM SET apitoken.primary_conninfo = ''host=... user=... passfile=...'';' || r.hint || ' a role of the primary with the capability usage'
		FROM reload r, setup s WHERE pg_catalog.pg_is_in_recovery() AND NOT s.sends AND (SELECT t.preloaded FROM stats t)
		UNION ALL
		SELECT 'standby', 'warning', 'apitoken.primary_conninfo ' || s.conninfo_fault,
			'ALTER SYSTEM SET apitoken.primary_conninfo = ''host=... user=... passfile=...'';' || r.hint || ' with a password file or a certificate'
		FROM reload r, setup s WHERE s.conninfo_fault IS NOT NULL
		UNION ALL
		SELECT 'standby', 'warning', pg_catalog.format('recorded use could not be sent: %s', s.last_send_error),
			'SELECT apitoken.flush_usage();  -- when the cause is removed'
		FROM stats s WHERE s.last_send_error IS NOT NULL
		UNION ALL
		SELECT 'standby', 'notice', 'a long query on this standby delays the replay, and with it revocations',
			'ALTER SYSTEM SET hot_standby_feedback = on;  -- then SELECT pg_reload_conf();'
		WHERE pg_catalog.pg_is_in_recovery() AND pg_catalog.current_setting('hot_standby_feedback') = 'off'
		UNION ALL
		SELECT 'standby', 'notice', 'a standby may use tokens without the knowledge of this server: no token is revoked as idle while it is connected',
			'ALTER SYSTEM SET apitoken.standbys_verify = off;' || r.hint || ' if standbys verify no tokens'
		FROM reload r WHERE pg_catalog.current_setting('apitoken.standbys_verify') = 'on' AND NOT pg_catalog.pg_is_in_recovery()
			AND (SELECT s.incomplete_because FROM stats s) = 'a standby was connected'
		UNION ALL
		SELECT 'standby', 'warning', 'this subscriber does not send recorded use to the publisher',
			'ALTER SYSTEM SET apitoken.primary_conninfo = ''host=... user=... passfile=...'';' || r.hint || ' a role of the publisher with the capability usage'
		FROM reload r, setup s, stats t, subscription n
		WHERE n.number = 1 AND t.preloaded AND NOT s.sends AND NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.current_setting('apitoken.subscriber_sends') = 'on'
		UNION ALL
		SELECT 'standby', 'warning', pg_catalog.format('recorded use is written here, and not sent, because several subscriptions change apitoken.token_usage: %s', n.number),
			'ALTER PUBLICATION ... DROP TABLE apitoken.token_usage;  -- so that one is left; then ALTER SUBSCRIPTION ... REFRESH PUBLICATION'
		FROM subscription n
		WHERE n.number > 1 AND NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.current_setting('apitoken.subscriber_sends') = 'on'
		UNION ALL
		SELECT 'standby', 'notice', 'this server is a subscriber: the publisher does not know of the use here, and changes of the publisher replace it',
			'ALTER SYSTEM SET apitoken.subscriber_sends = on;' || r.hint || ' apitoken.primary_conninfo, too, if tokens are used here'
		FROM reload r, stats t, subscription n
		WHERE n.number > 0 AND t.preloaded AND NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.current_setting('apitoken.subscriber_sends') = 'off'
		UNION ALL
		SELECT 'standby', 'notice', 'a logical subscriber may use tokens without the knowledge of this server: no token is revoked as idle while its replication slot exists',
			'ALTER SYSTEM SET apitoken.standbys_verify = off;' || r.hint || ' if subscribers and standbys verify no tokens'
		FROM reload r WHERE pg_catalog.current_setting('apitoken.standbys_verify') = 'on' AND NOT pg_catalog.pg_is_in_recovery()
			AND (SELECT s.incomplete_because FROM stats s) = 'there was a logical subscriber'

		-- peppers
		UNION ALL
		SELECT 'peppers', 'error', s.pepper_problem || COALESCE(' (' || NULLIF(f.value, '') || ')', ''), s.pepper_hint
		FROM setup s LEFT JOIN setting f ON f.name = 'apitoken.pepper_file' WHERE s.pepper_problem IS NOT NULL
		UNION ALL
		SELECT 'peppers', 'notice', 'there is no pepper file: every role that can write the table of tokens can make a token',
			'ALTER SYSTEM SET apitoken.pepper_file = ''/etc/postgresql/apitoken.peppers'';' || r.hint || ' a file with a line 1:KEY, with the output of "openssl rand -hex 32" as the key'
		FROM reload r, setup s WHERE s.pepper_problem IS NULL AND s.peppers = '{}'
		UNION ALL
		SELECT 'peppers', 'error', pg_catalog.format('tokens that need pepper %s, which the server does not have: %s', c.scheme, pg_catalog.sum(c.tokens)),
			pg_catalog.format('%s:KEY  # restore this line of the pepper file', c.scheme)
		FROM setup s, scheme c WHERE s.pepper_problem IS NULL AND c.scheme > 0 AND c.scheme <> ALL (s.peppers)
		GROUP BY c.scheme
		UNION ALL
		SELECT 'peppers', 'warning', pg_catalog.format(CASE WHEN pg_catalog.current_setting('apitoken.require_pepper') = 'on'
				THEN 'tokens without a pepper, which are refused: %s' ELSE 'tokens without a pepper: %s' END, c.tokens),
			'SELECT t.id, r.token FROM apitoken_internal.token_records t, apitoken.regenerate_token(t.id, overlap => ''7 days'') r WHERE t.digest_scheme IN (0, -1) AND t.revoked_at IS NULL AND (t.expires_at > now()) IS NOT FALSE;'
		FROM setup s, scheme c WHERE s.peppers <> '{}' AND c.scheme = 0 AND c.kind = 'current'
		UNION ALL
		SELECT 'peppers', 'notice', pg_catalog.format('tokens whose previous secret has no pepper, and is accepted until its overlap ends: %s', c.tokens),
			'ALTER SYSTEM SET apitoken.require_pepper = on;' || r.hint || ' when it has ended'
		FROM reload r, setup s, scheme c WHERE s.peppers <> '{}' AND c.scheme = 0 AND c.kind = 'previous'
			AND pg_catalog.current_setting('apitoken.require_pepper') = 'off'
		UNION ALL
		SELECT 'peppers', 'notice', 'tokens without a pepper are accepted: every role that can write the table of tokens can make one',
			'ALTER SYSTEM SET apitoken.require_pepper = on;' || r.hint
		FROM reload r, setup s, tokens t WHERE s.peppers <> '{}' AND pg_catalog.current_setting('apitoken.require_pepper') = 'off'
			-- the hint is for those who know that no token is refused then
			AND t.numbers IS NOT NULL AND NOT EXISTS (SELECT FROM scheme c WHERE c.scheme = 0)

		-- logs
		UNION ALL
		SELECT 'logs', 'warning', 'apitoken.mask_logs is off: the texts of tokens in statements are readable in the log and in pg_stat_activity',
			'ALTER SYSTEM SET apitoken.mask_logs = on;' || r.hint
		FROM reload r WHERE pg_catalog.current_setting('apitoken.mask_logs') = 'off'
		UNION ALL
		SELECT 'logs', CASE WHEN s.preloaded AND pg_catalog.current_setting('apitoken.mask_logs') = 'on' THEN 'notice' ELSE 'warning' END,
			pg_catalog.format('%s is not 0 for login %s: the log may have bind parameters with tokens', p.name, h.name),
			pg_catalog.format('ALTER ROLE %s SET %s = 0;', h.name, p.name)
		FROM stats s, holder h, (VALUES ('log_parameter_max_length'), ('log_parameter_max_length_on_error')) p (name)
		WHERE h.rolcanlogin AND h.capabilities ~ '(use|manage|verify)'
			AND COALESCE(
				(SELECT pg_catalog.split_part(c.assignment, '=', 2)
				 FROM pg_catalog.pg_db_role_setting d, pg_catalog.unnest(d.setconfig) c (assignment)
				 WHERE d.setrole IN (0, h.oid) AND pg_catalog.split_part(c.assignment, '=', 1) = p.name
					AND d.setdatabase IN (0, (SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname = pg_catalog.current_database()))
				 ORDER BY d.setrole = 0, d.setdatabase = 0 LIMIT 1),
				-- the value for all roles, unless this session has another one
				(SELECT v.value FROM setting v WHERE v.name = p.name AND v.source IN ('default', 'environment variable', 'configuration file', 'command line')),
				'-1') !~ '^0+ *[kMGT]?B?$'

		-- capabilities
		UNION ALL
		SELECT 'capabilities', 'ok', pg_catalog.format('role %s holds %s', h.name, h.capabilities), NULL FROM holder h
		UNION ALL
		SELECT 'capabilities', 'notice', 'no role holds a capability: only superusers and the owner of the tables can use tokens',
			'CREATE ROLE backend LOGIN; SELECT apitoken.allow(''backend'', ''act'', ''verify'', ''manage'');'
		WHERE NOT EXISTS (SELECT FROM holder)
		UNION ALL
		SELECT 'capabilities', 'warning', pg_catalog.format('role %s, which holds %s, is a superuser: nothing limits what it sees and does', h.name, h.capabilities),
			-- the role that initdb made cannot be anything else
			CASE WHEN h.oid = 10 THEN h.remedy ELSE pg_catalog.format('ALTER ROLE %s NOSUPERUSER;', h.name) END
		FROM holder h WHERE h.rolsuper AND h.uses_tokens
		UNION ALL
		SELECT 'capabilities', 'warning', pg_catalog.format('role %s, which holds %s, has BYPASSRLS: no policy applies to it', h.name, h.capabilities),
			pg_catalog.format('ALTER ROLE %s NOBYPASSRLS;', h.name)
		FROM holder h WHERE h.rolbypassrls AND NOT h.rolsuper AND h.uses_tokens
		UNION ALL
		SELECT 'capabilities', 'warning', pg_catalog.format(CASE WHEN o.inherits
				THEN 'role %s, which holds %s, owns the tables of the extension: no policy of theirs applies to it'
				ELSE 'role %s, which holds %s, may become the owner of the tables of the extension by SET ROLE: no policy of theirs applies to it then' END,
				h.name, h.capabilities),
			CASE WHEN h.oid = s.owner THEN h.remedy
				ELSE (SELECT pg_catalog.string_agg(DISTINCT m.remedy, ' ') FROM membership m JOIN heir r ON r.role = m.roleid
					WHERE m.member = h.oid AND r.owner = s.owner AND (m.inherits OR m.may_set)) END
		FROM setup s JOIN heir o ON o.owner = s.owner JOIN holder h ON h.oid = o.role WHERE NOT h.rolsuper AND h.uses_tokens
		UNION ALL
		SELECT 'capabilities', 'warning', pg_catalog.format('role %s holds act, and runs the SQL of clients as the database_role of %s', h.name, d.roles),
			(SELECT pg_catalog.string_agg(a.remedy, ' ') FROM held a WHERE a.role = h.oid AND a.capability = 'act')
		FROM holder h JOIN (SELECT r.database_role, pg_catalog.string_agg(r.name, ', ' ORDER BY r.name) AS roles FROM apitoken.roles r GROUP BY 1) d
				ON d.database_role = h.rolname
		WHERE EXISTS (SELECT FROM held a WHERE a.role = h.oid AND a.capability = 'act')

		-- privileges
		UNION ALL
		SELECT 'privileges', 'error', pg_catalog.format('PUBLIC does not have %s %s %s: policies and views that need it fail', p.privilege, p.kind, p.name),
			pg_catalog.format('GRANT %s %s %s TO PUBLIC;', p.privilege, p.kind, p.name)
		FROM (TABLE public_initially EXCEPT TABLE public_now) p
		UNION ALL
		SELECT 'privileges', CASE p.kind WHEN 'ON FUNCTION' THEN 'error' ELSE 'warning' END,
			pg_catalog.format('PUBLIC has %s %s %s: so has every role, whatever its capabilities', p.privilege, p.kind, p.name),
			pg_catalog.format('REVOKE %s %s %s FROM PUBLIC;', p.privilege, p.kind, p.name)
		FROM (TABLE public_now EXCEPT TABLE public_initially) p

		-- default privileges
		UNION ALL
		SELECT 'default privileges', 'warning',
			pg_catalog.format('%s that role %s creates, such as those of an update of the extension, are granted to %s', k.name, d.defaclrole::pg_catalog.regrole, g.name),
			pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %s%s REVOKE ALL ON %s FROM %s;', d.defaclrole::pg_catalog.regrole,
				' IN SCHEMA ' || NULLIF(d.defaclnamespace, 0)::pg_catalog.regnamespace, k.name, g.name)
		FROM setup s, pg_catalog.pg_default_acl d JOIN pg_catalog.pg_roles r ON r.oid = d.defaclrole
			JOIN (VALUES ('r', 'TABLES'), ('f', 'FUNCTIONS'), ('T', 'TYPES'), ('n', 'SCHEMAS')) k (letter, name) ON k.letter = d.defaclobjtype::text,
			LATERAL (
				SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::text END
				FROM pg_catalog.aclexplode(d.defaclacl) a
				WHERE a.grantee <> d.defaclrole
					-- what PostgreSQL itself grants by default
					AND NOT (d.defaclnamespace = 0 AND a.grantee = 0 AND k.letter IN ('f', 'T'))
			) g (name)
		-- roles that may update the extension
		WHERE (r.rolsuper OR d.defaclrole IN (s.extowner, s.owner))
			AND d.defaclnamespace IN (0, 'apitoken'::pg_catalog.regnamespace, 'apitoken_internal'::pg_catalog.regnamespace)

		-- tables
		UNION ALL
		SELECT 'tables', 'error', pg_catalog.format('row-level security of table %s is off: its policies have no effect', g.name),
			pg_catalog.format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY;', g.name)
		FROM guarded g WHERE NOT g.relrowsecurity
		UNION ALL
		SELECT 'tables', 'warning', pg_catalog.format(CASE WHEN l.inherits
				THEN 'login %s is the owner of table %s, or inherits from it: no policy of the table applies to that login'
				ELSE 'login %s may become the owner of table %s by SET ROLE: no policy of the table applies to it then' END, l.logins, g.name),
			pg_catalog.format('ALTER TABLE %s FORCE ROW LEVEL SECURITY;', g.name)
		FROM guarded g JOIN owner_login l ON l.owner = g.owner WHERE g.relrowsecurity AND NOT g.relforcerowsecurity
		UNION ALL
		SELECT 'tables', 'warning',
			pg_catalog.format('table %s, a partition or child of a table with policies, has no row-level security, and is granted to %s', a.name, a.grantees),
			pg_catalog.format('REVOKE ALL ON %s FROM %s;', a.name, a.grantees)
		FROM covered c JOIN shared a ON a.oid = c.oid JOIN pg_catalog.pg_class t ON t.oid = c.oid
		WHERE NOT t.relrowsecurity AND c.oid NOT IN (SELECT g.oid FROM guarded g)
		UNION ALL
		SELECT 'tables', 'warning',
			pg_catalog.format('view %s reads table %s as its owner, and no policy applies to that: all rows are readable through %s', v.oid::pg_catalog.regclass,
				pg_catalog.string_agg(DISTINCT t.oid::pg_catalog.regclass::text, ', '), pg_catalog.string_agg(DISTINCT a.name || ' by ' || a.grantees, ', ')),
			CASE v.relkind WHEN 'v' THEN pg_catalog.format('ALTER VIEW %s SET (security_invoker = true);', v.oid::pg_catalog.regclass)
				ELSE pg_catalog.string_agg(DISTINCT pg_catalog.format('REVOKE ALL ON %s FROM %s;', a.name, a.grantees), ' ') END
		FROM shown s JOIN shared a ON a.oid = s.relation JOIN pg_catalog.pg_class t ON t.oid = s.of_table
			JOIN pg_catalog.pg_class v ON v.oid = s.by_view JOIN pg_catalog.pg_roles o ON o.oid = v.relowner
		WHERE o.rolsuper OR o.rolbypassrls OR NOT t.relrowsecurity
			OR (NOT t.relforcerowsecurity AND EXISTS (SELECT FROM heir h WHERE h.owner = t.relowner AND h.role = v.relowner AND h.inherits))
		GROUP BY v.oid, v.relkind

		-- tokens
		UNION ALL
		SELECT s.name, 'notice', 'this role may not count the ' || s.what,
			pg_catalog.format('SELECT * FROM apitoken.check_setup();  -- as role %s', u.owner::pg_catalog.regrole)
		FROM tokens t, setup u, (VALUES ('tokens', 'tokens'), ('peppers', 'tokens that need each pepper'), ('notifications', 'notifications')) s (name, what) WHERE t.numbers IS NULL
		UNION ALL
		SELECT 'tokens', 'notice', pg_catalog.format('tokens that never expire: %s', t.numbers ->> 'endless'),
			'UPDATE apitoken.tokens SET expires_at = now() + interval ''90 days'' WHERE expires_at IS NULL AND revoked_at IS NULL;'
		FROM tokens t WHERE (t.numbers ->> 'endless')::bigint > 0
		UNION ALL
		SELECT 'tokens', 'error', pg_catalog.format('tokens with a rate limit or quota, which are refused because apitoken is not in shared_preload_libraries: %s', t.numbers ->> 'limited'), p.hint
		FROM tokens t, preload p, stats s WHERE (t.numbers ->> 'limited')::bigint > 0 AND NOT s.preloaded

		UNION ALL
		SELECT 'tokens', 'warning', pg_catalog.format('tokens imported as %s, which are refused because apitoken.imported_formats does not have it: %s', f.key, f.value),
			pg_catalog.format('ALTER SYSTEM SET apitoken.imported_formats = %L;', pg_catalog.concat_ws(', ', NULLIF(pg_catalog.current_setting('apitoken.imported_formats'), ''), f.key)) || r.hint
		FROM tokens t, reload r, pg_catalog.jsonb_each_text(CASE WHEN pg_catalog.jsonb_typeof(t.numbers -> 'imported') = 'object' THEN t.numbers -> 'imported' ELSE '{}' END) f
		WHERE NOT EXISTS (SELECT FROM pg_catalog.regexp_split_to_table(pg_catalog.current_setting('apitoken.imported_formats'), '[, ]+') g
			WHERE g = f.key OR (g IN ('knox', 'drf-api-key') AND pg_catalog.starts_with(f.key, g)) OR (g = 'bcrypt' AND f.key = 'crypt'))

		-- notifications
		UNION ALL
		SELECT 'notifications', 'warning', pg_catalog.format('notifications that no program has claimed for an hour: %s', t.numbers ->> 'unclaimed'),
			'ALTER SYSTEM SET apitoken.notifications = off;' || r.hint || '  -- or run a mailer'
		FROM tokens t, reload r WHERE (t.numbers ->> 'unclaimed')::bigint > 0
		UNION ALL
		SELECT 'notifications', 'warning', pg_catalog.format('notifications that were given up, last_error says why: %s', t.numbers ->> 'given_up'),
			'UPDATE apitoken.notifications SET next_attempt_at = now(), attempts = 0 WHERE next_attempt_at IS NULL AND delivered_at IS NULL AND attempts >= 20 AND recipients <> ''{}'';'
		FROM tokens t WHERE (t.numbers ->> 'given_up')::bigint > 0
	)
	SELECT COALESCE(f.level, 'ok'), s.name, COALESCE(f.message, s.in_order), f.hint
	FROM (VALUES
			(1, 'version', 'the library has the version of the extension'),
			(2, 'preload', 'apitoken is in shared_preload_libraries, and last'),
			(3, 'usage', 'no recorded use is lost, as far as this server knows'),
			(4, 'standby', CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'this standby sends recorded use to the primary, and no long query delays the replay'
				WHEN (SELECT s.sends FROM setup s) THEN 'this subscriber sends recorded use to the publisher'
				ELSE 'this server is not a standby or subscriber, and none keeps idle tokens from being revoked' END),
			(5, 'peppers', 'a pepper is required, and all tokens have one that the server has'),
			(6, 'logs', 'masking is on, and no login that handles tokens has its parameters logged'),
			(7, 'capabilities', NULL),
			(8, 'privileges', 'PUBLIC has the privileges that the extension gave it'),
			(9, 'default privileges', 'no default privileges give away objects of the extension'),
			(10, 'tables', 'each table with a policy that depends on the extension has row-level security, no login owns it, and no view or partition passes the policies by'),
			(11, 'tokens', 'each token expires'),
			(12, 'notifications', 'each notification was delivered, or waits for its next attempt')
		) s (n, name, in_order) LEFT JOIN finding f ON f.subject = s.name
	ORDER BY s.n, pg_catalog.array_position('{error,warning,notice}'::text[], f.level), f.message COLLATE "C";
END;
COMMENT ON FUNCTION apitoken.check_setup() IS 'Check the set-up of this server and database. Rows for each subject: level error, warning or notice with what is wrong in message and the statement or configuration line that mends it in hint, or level ok. What the caller may not see is a notice.';

------------------------------------------------------------------------------
-- Triggers.  Nobody is granted their functions.  Each function checks which table
-- fired it.
------------------------------------------------------------------------------

CREATE FUNCTION apitoken_internal.token_before_insert() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_before_insert' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_before_insert() IS 'Trigger: checks authorization, then values, and sets id and digest of a new token';
CREATE FUNCTION apitoken_internal.token_before_update() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_before_update' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_before_update() IS 'Trigger: checks which columns of a token change, and whether the caller may change them';
CREATE FUNCTION apitoken_internal.token_after_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_after_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_after_change() IS 'Trigger: writes the event of a change; and for new tokens, when their statement ends, their usage rows and notifications, too';
CREATE FUNCTION apitoken_internal.token_refuse_delete() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_refuse_delete' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_refuse_delete() IS 'Trigger: refuses DELETE and TRUNCATE of tokens (0A000), except the removal by run_maintenance()';
CREATE FUNCTION apitoken_internal.owner_after_update() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_owner_after_update' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.owner_after_update() IS 'Trigger: writes the event of a suspension, resumption or change of policy of an organization, and of a suspension or resumption of a user';
CREATE FUNCTION apitoken_internal.event_refuse_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_event_refuse_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.event_refuse_change() IS 'Trigger: refuses UPDATE, DELETE and TRUNCATE of events (42501), except the removal by run_maintenance()';
CREATE FUNCTION apitoken_internal.usage_before_insert() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_usage_before_insert' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.usage_before_insert() IS 'Trigger: leaves out replicated rows of usage that exist already';
CREATE FUNCTION apitoken_internal.role_before_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_role_before_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.role_before_change() IS 'Trigger: checks the patterns, keeps built-in roles and roles of members from being renamed or deleted (42501, 23503), a database_role from being changed but by the owner (42501), and refuses TRUNCATE (0A000)';
CREATE FUNCTION apitoken_internal.role_before_insert() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_role_before_insert' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.role_before_insert() IS 'Trigger: lets a restored or replicated role replace an existing one, and keeps rows out of built_in_roles';
CREATE FUNCTION apitoken_internal.directory_after_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_directory_after_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.directory_after_change() IS 'Trigger: invalidates what sessions have cached of organizations, users, memberships and roles';
CREATE FUNCTION apitoken_internal.built_in_role_after_update() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_built_in_role_after_update' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.built_in_role_after_update() IS 'Trigger: stores a built-in role at its first change';
CREATE FUNCTION apitoken_internal.membership_before_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_membership_before_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.membership_before_change() IS 'Trigger: checks that the organization and the role of a membership exist (23503)';
CREATE FUNCTION apitoken_internal.owner_before_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_owner_before_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.owner_before_change() IS 'Trigger: refuses TRUNCATE and changes of ids of organizations and users (0A000), sets resumed_at at the end of a suspension, and stores built-in roles';
CREATE FUNCTION apitoken_internal.owner_after_delete() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_owner_after_delete' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.owner_after_delete() IS 'Trigger: revokes the tokens of a deleted organization or user, ends its memberships, and remembers a deleted user';

CREATE TRIGGER token_before_insert BEFORE INSERT ON apitoken_internal.token_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_before_insert();
CREATE TRIGGER token_before_update BEFORE UPDATE ON apitoken_internal.token_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_before_update();
CREATE TRIGGER token_after_change AFTER INSERT OR UPDATE OR DELETE ON apitoken_internal.token_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_after_change();
CREATE TRIGGER token_refuse_delete BEFORE DELETE OR TRUNCATE ON apitoken_internal.token_records
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.token_refuse_delete();
-- A statement trigger on a view fires only if there is also an INSTEAD OF trigger.
CREATE TRIGGER token_refuse_delete BEFORE DELETE ON apitoken.tokens
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.token_refuse_delete();
CREATE TRIGGER token_refuse_delete_row INSTEAD OF DELETE ON apitoken.tokens
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_refuse_delete();
CREATE TRIGGER event_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON apitoken.events
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.event_refuse_change();
CREATE TRIGGER usage_before_insert BEFORE INSERT ON apitoken.token_usage
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.usage_before_insert();
ALTER TABLE apitoken.token_usage ENABLE REPLICA TRIGGER usage_before_insert;
CREATE TRIGGER usage_before_insert BEFORE INSERT ON apitoken_internal.token_days
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.usage_before_insert();
ALTER TABLE apitoken_internal.token_days ENABLE REPLICA TRIGGER usage_before_insert;
CREATE TRIGGER usage_before_insert BEFORE INSERT ON apitoken_internal.personal_token_use
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.usage_before_insert();
ALTER TABLE apitoken_internal.personal_token_use ENABLE REPLICA TRIGGER usage_before_insert;
CREATE TRIGGER usage_before_insert BEFORE INSERT ON apitoken_internal.token_networks
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.usage_before_insert();
ALTER TABLE apitoken_internal.token_networks ENABLE REPLICA TRIGGER usage_before_insert;
CREATE TRIGGER role_before_change BEFORE INSERT OR UPDATE OR DELETE ON apitoken_internal.role_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.role_before_change();
CREATE TRIGGER role_before_truncate BEFORE TRUNCATE ON apitoken_internal.role_records
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.role_before_change();
CREATE TRIGGER role_before_insert BEFORE INSERT ON apitoken_internal.role_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.role_before_insert();
CREATE TRIGGER built_in_role_before_insert BEFORE INSERT ON apitoken_internal.built_in_roles
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.role_before_insert();
CREATE TRIGGER role_before_change BEFORE UPDATE OR DELETE ON apitoken_internal.built_in_roles
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.role_before_change();
CREATE TRIGGER role_before_truncate BEFORE TRUNCATE ON apitoken_internal.built_in_roles
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.role_before_change();
CREATE TRIGGER built_in_role_after_update AFTER UPDATE ON apitoken_internal.built_in_roles
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.built_in_role_after_update();
-- These fire for replication and restores, too.
ALTER TABLE apitoken_internal.role_records ENABLE ALWAYS TRIGGER role_before_insert;
ALTER TABLE apitoken_internal.built_in_roles ENABLE ALWAYS TRIGGER built_in_role_before_insert;
ALTER TABLE apitoken_internal.built_in_roles ENABLE ALWAYS TRIGGER built_in_role_after_update;
CREATE TRIGGER membership_before_change BEFORE INSERT OR UPDATE ON apitoken.memberships
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.membership_before_change();
CREATE TRIGGER organization_before_insert BEFORE INSERT ON apitoken.organizations
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER organization_before_update BEFORE UPDATE ON apitoken.organizations
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER organization_after_update AFTER UPDATE ON apitoken.organizations
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_after_update();
CREATE TRIGGER organization_before_truncate BEFORE TRUNCATE ON apitoken.organizations
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER organization_after_delete AFTER DELETE ON apitoken.organizations
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_after_delete();
CREATE TRIGGER user_before_insert BEFORE INSERT ON apitoken.users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER user_before_update BEFORE UPDATE ON apitoken.users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER user_after_update AFTER UPDATE ON apitoken.users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_after_update();
CREATE TRIGGER user_before_truncate BEFORE TRUNCATE ON apitoken.users
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER user_after_delete AFTER DELETE ON apitoken.users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_after_delete();

-- A change of the directory takes effect at once, whatever makes it: these fire for
-- replication and restores, too.
CREATE TRIGGER directory_after_change AFTER INSERT OR UPDATE OR DELETE ON apitoken.organizations
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.directory_after_change();
CREATE TRIGGER directory_after_change AFTER INSERT OR UPDATE OR DELETE ON apitoken.users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.directory_after_change();
CREATE TRIGGER directory_after_change AFTER INSERT OR UPDATE OR DELETE ON apitoken_internal.deleted_users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.directory_after_change();
CREATE TRIGGER directory_after_change AFTER INSERT OR UPDATE OR DELETE ON apitoken.memberships
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.directory_after_change();
CREATE TRIGGER directory_after_change AFTER INSERT OR UPDATE OR DELETE ON apitoken_internal.role_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.directory_after_change();
ALTER TABLE apitoken.organizations ENABLE ALWAYS TRIGGER directory_after_change;
ALTER TABLE apitoken.users ENABLE ALWAYS TRIGGER directory_after_change;
ALTER TABLE apitoken_internal.deleted_users ENABLE ALWAYS TRIGGER directory_after_change;
ALTER TABLE apitoken.memberships ENABLE ALWAYS TRIGGER directory_after_change;
ALTER TABLE apitoken_internal.role_records ENABLE ALWAYS TRIGGER directory_after_change;

------------------------------------------------------------------------------
-- Row-level security.  Privileges (apitoken.allow) decide which database role may
-- use a table, and policies decide which rows it may use.  The functions compute
-- what depends on the identity once per statement.
------------------------------------------------------------------------------

ALTER TABLE apitoken.organizations ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.users ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.deleted_users ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.role_records ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.built_in_roles ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.permissions ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.memberships ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.directory_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.token_records ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.token_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.token_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.events ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.own_privileges ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.personal_token_use ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.token_networks ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.usage_senders ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.foreign_digests ENABLE ROW LEVEL SECURITY;

-- The directory: a database role that was granted DELETE on a table (capability
-- directory) sees all its rows, whatever the identity.  pg_write_all_data grants
-- nothing here.
CREATE POLICY organizations_read ON apitoken.organizations FOR SELECT
	USING (apitoken_internal.sees_organization(id));
CREATE POLICY organizations_insert ON apitoken.organizations FOR INSERT
	WITH CHECK (apitoken_internal.was_granted('apitoken.organizations'::pg_catalog.regclass, 'INSERT'));
-- Members may update the columns of the policy, on which the capability manage grants
-- UPDATE.  So that privilege does not tell them from a role that keeps the directory.
CREATE POLICY organizations_update ON apitoken.organizations FOR UPDATE
	USING (apitoken_internal.sees_organization(id)
		   AND (apitoken_internal.was_granted('apitoken.organizations'::pg_catalog.regclass, 'DELETE')
				OR apitoken_internal.manages_organization(id, 'organization:update')));
CREATE POLICY organizations_delete ON apitoken.organizations FOR DELETE
	USING (apitoken_internal.was_granted('apitoken.organizations'::pg_catalog.regclass, 'DELETE'));

CREATE POLICY users_read ON apitoken.users FOR SELECT
	USING (apitoken_internal.sees_user(id));
CREATE POLICY users_insert ON apitoken.users FOR INSERT
	WITH CHECK (apitoken_internal.was_granted('apitoken.users'::pg_catalog.regclass, 'INSERT'));
CREATE POLICY users_update ON apitoken.users FOR UPDATE
	USING (apitoken_internal.was_granted('apitoken.users'::pg_catalog.regclass, 'UPDATE'));
CREATE POLICY users_delete ON apitoken.users FOR DELETE
	USING (apitoken_internal.was_granted('apitoken.users'::pg_catalog.regclass, 'DELETE'));

CREATE POLICY memberships_read ON apitoken.memberships FOR SELECT
	USING (apitoken_internal.sees_members(organization_id));
CREATE POLICY memberships_insert ON apitoken.memberships FOR INSERT
	WITH CHECK (apitoken_internal.was_granted('apitoken.memberships'::pg_catalog.regclass, 'INSERT'));
CREATE POLICY memberships_update ON apitoken.memberships FOR UPDATE
	USING (apitoken_internal.was_granted('apitoken.memberships'::pg_catalog.regclass, 'UPDATE'));
CREATE POLICY memberships_delete ON apitoken.memberships FOR DELETE
	USING (apitoken_internal.was_granted('apitoken.memberships'::pg_catalog.regclass, 'DELETE'));

CREATE POLICY permissions_read ON apitoken.permissions FOR SELECT
	USING (true);
CREATE POLICY permissions_insert ON apitoken.permissions FOR INSERT
	WITH CHECK (apitoken_internal.was_granted('apitoken.permissions'::pg_catalog.regclass, 'INSERT'));
CREATE POLICY permissions_update ON apitoken.permissions FOR UPDATE
	USING (apitoken_internal.was_granted('apitoken.permissions'::pg_catalog.regclass, 'UPDATE'));
CREATE POLICY permissions_delete ON apitoken.permissions FOR DELETE
	USING (apitoken_internal.was_granted('apitoken.permissions'::pg_catalog.regclass, 'DELETE'));

-- The OR is for queries that name neither a token nor an owner, manages_record()
-- for queries that name one: see src/identity/plan.c.
CREATE POLICY token_records_read ON apitoken_internal.token_records FOR SELECT
	USING ((apitoken_internal.manages_organization(organization_id, 'token:read', 'token:update', 'token:delete')
			OR apitoken_internal.manages_user(user_id, 'token:read', 'token:update', 'token:delete'))
		   AND apitoken_internal.manages_record(id, organization_id, user_id, 'token:read', 'token:update', 'token:delete'));
CREATE POLICY token_records_create ON apitoken_internal.token_records FOR INSERT
	WITH CHECK (apitoken_internal.manages_record(id, organization_id, user_id, 'token:create'));
CREATE POLICY token_records_update ON apitoken_internal.token_records FOR UPDATE
	USING (apitoken_internal.manages_record(id, organization_id, user_id, 'token:update'));

CREATE POLICY token_usage_read ON apitoken.token_usage FOR SELECT
	USING (apitoken_internal.manages_token(token_id, 'token:read', 'token:update', 'token:delete'));

CREATE POLICY token_days_read ON apitoken_internal.token_days FOR SELECT
	USING (apitoken_internal.manages_token(token_id, 'token:read', 'token:update', 'token:delete'));

-- The events of a token whose owner the caller manages, and the caller's own.  The
-- second OR is for queries that name a token.
CREATE POLICY events_read ON apitoken.events FOR SELECT
	USING ((apitoken_internal.manages_organization(organization_id, 'token:read', 'token:update', 'token:delete')
			OR apitoken_internal.manages_user(user_id, 'token:read', 'token:update', 'token:delete')
			OR apitoken_internal.manages_user(actor, 'token:read', 'token:update', 'token:delete')
			OR apitoken_internal.is_current_token(actor_token_id))
		   AND (apitoken_internal.manages_event(token_id, organization_id, user_id, 'token:read', 'token:update', 'token:delete')
				OR apitoken_internal.manages_user(actor, 'token:read', 'token:update', 'token:delete')
				OR apitoken_internal.is_current_token(actor_token_id)));


------------------------------------------------------------------------------
-- Privileges.  The owner has all of them, and nobody else has any but those that
-- are granted here: default privileges of the installing role, which can name any
-- role and can also take privileges away, change nothing.  apitoken.allow() grants
-- those that capabilities contain.
------------------------------------------------------------------------------

DO LANGUAGE plpgsql $$
DECLARE
	role_name text;
BEGIN
	FOR role_name IN
		SELECT 'PUBLIC'
		UNION
		SELECT acl.grantee::regrole::text
		FROM (
			SELECT nspacl FROM pg_namespace WHERE nspname IN ('apitoken', 'apitoken_internal')
			UNION ALL
			SELECT relacl FROM pg_class WHERE relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace)
			UNION ALL
			SELECT proacl FROM pg_proc WHERE pronamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace)
			UNION ALL
			SELECT typacl FROM pg_type WHERE typnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace)
		) object (privileges), aclexplode(object.privileges) acl
		WHERE acl.grantee <> 0 AND pg_get_userbyid(acl.grantee) <> CURRENT_USER
	LOOP
		EXECUTE 'REVOKE ALL ON SCHEMA apitoken, apitoken_internal FROM ' || role_name;
		EXECUTE 'REVOKE ALL ON ALL TABLES IN SCHEMA apitoken, apitoken_internal FROM ' || role_name;
		EXECUTE 'REVOKE ALL ON ALL FUNCTIONS IN SCHEMA apitoken, apitoken_internal FROM ' || role_name;
		EXECUTE 'REVOKE ALL ON TYPE apitoken.id, apitoken.verification, apitoken.issued_token FROM ' || role_name;
	END LOOP;
END
$$;
GRANT ALL ON SCHEMA apitoken, apitoken_internal TO CURRENT_USER;
GRANT ALL ON ALL TABLES IN SCHEMA apitoken, apitoken_internal TO CURRENT_USER;
GRANT ALL ON ALL FUNCTIONS IN SCHEMA apitoken, apitoken_internal TO CURRENT_USER;
GRANT ALL ON TYPE apitoken.id, apitoken.verification, apitoken.issued_token TO CURRENT_USER;

GRANT USAGE ON SCHEMA apitoken TO PUBLIC;
GRANT USAGE ON TYPE apitoken.id, apitoken.verification, apitoken.issued_token TO PUBLIC;
GRANT SELECT ON apitoken.roles TO PUBLIC;
-- These functions tell only about the caller, or nothing about anybody.  Policies,
-- also the application's own, and views call them.
GRANT EXECUTE ON FUNCTION
	apitoken.current_user_id(),
	apitoken.current_organization_id(),
	apitoken.current_token_id(),
	apitoken.current_role_name(),
	apitoken.current_groups(),
	apitoken.whoami(),
	apitoken.can(text, apitoken.id),
	apitoken.organizations_allowed(text),
	apitoken_internal.managed_organizations(text[]),
	apitoken_internal.managed_user(text[]),
	apitoken_internal.managed_token(uuid, text[]),
	apitoken_internal.managed_token_of_events(uuid, text[]),
	apitoken_internal.manages_organization(text, text[]),
	apitoken_internal.manages_user(text, text[]),
	apitoken_internal.manages_record(uuid, text, text, text[]),
	apitoken_internal.manages_event(uuid, text, text, text[]),
	apitoken_internal.manages_token(uuid, text[]),
	apitoken_internal.is_current_token(uuid),
	apitoken_internal.seen_organizations(),
	apitoken_internal.seen_users(),
	apitoken_internal.sees_organization(text),
	apitoken_internal.sees_members(text),
	apitoken_internal.sees_user(text),
	apitoken_internal.was_granted(oid, text),
	apitoken_internal.check_id(text, text),
	apitoken_internal.check_notify(text[]),
	apitoken_internal.check_previous(timestamptz[], timestamptz[], smallint[], bytea),
	apitoken_internal.refuses_lifetime(text, timestamptz, timestamptz),
	apitoken_internal.in_words(timestamptz),
	-- the planner calls these to cast a constant
	apitoken_internal.id_in(cstring),
	apitoken_internal.id_out(apitoken.id),
	apitoken_internal.id_recv(internal),
	apitoken_internal.id_send(apitoken.id)
TO PUBLIC;
