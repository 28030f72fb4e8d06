/* apitoken--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION apitoken" to load this file. \quit

/*
 * Everything is created plainly (never OR REPLACE, never IF NOT EXISTS) in
 * two schemas that this script makes itself: a schema of that name made
 * before stops the installation and changes nothing.  Every name is
 * schema-qualified, operators in expressions resolve in pg_catalog alone (the
 * extension's own schema is pg_catalog, so that is the script's search_path).
 */
CREATE SCHEMA apitoken;
GRANT USAGE ON SCHEMA apitoken TO PUBLIC;
COMMENT ON SCHEMA apitoken IS 'API tokens: generate, verify, list, edit, regenerate, revoke, audit and limit them; who is acting and what they may do';

-- Nobody needs USAGE on this one: the names in views and policies are resolved
-- here, and only privileges on tables and functions are checked later.
CREATE SCHEMA apitoken_internal;
COMMENT ON SCHEMA apitoken_internal IS 'What apitoken is made of: the table of tokens, trigger functions, helpers of policies and views. Not for use';

------------------------------------------------------------------------------
-- Tables
--
-- src/tables/columns.h describes the columns that C reads; sql/schema.sql compares.
-- Ids of organizations and users are the application's own, compared by byte
-- (COLLATE "C"), as text, so that uuid, bigint and text keys all fit.
------------------------------------------------------------------------------

CREATE TABLE apitoken.organizations (
	id           text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(id) BETWEEN 1 AND 255),
	name         text,
	suspended_at timestamptz,
	created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
	idle_timeout interval,
	resumed_at   timestamptz,
	-- no part below zero, so that a mixed one is not over at once in a short month
	CONSTRAINT organizations_idle_timeout CHECK (
		idle_timeout BETWEEN '1 minute' AND '100 years'
		AND LEAST(EXTRACT(year FROM idle_timeout), EXTRACT(month FROM idle_timeout),
				  EXTRACT(day FROM idle_timeout), EXTRACT(hour FROM idle_timeout)) >= 0)
);
COMMENT ON TABLE apitoken.organizations IS 'Organizations that may own tokens; kept in step with the application''s own table';
COMMENT ON COLUMN apitoken.organizations.id IS 'The application''s own id, as text; 1 to 255 bytes; cannot change';
COMMENT ON COLUMN apitoken.organizations.name IS 'Name to show; null: none given';
COMMENT ON COLUMN apitoken.organizations.suspended_at IS 'Not null: every token of the organization is refused and its members may do nothing there, until it is null again';
COMMENT ON COLUMN apitoken.organizations.created_at IS 'When the row was made';
COMMENT ON COLUMN apitoken.organizations.idle_timeout IS 'Tokens not used, changed or resumed for so long are revoked by run_maintenance(); at least a minute; null: never for that';
COMMENT ON COLUMN apitoken.organizations.resumed_at IS 'When its last suspension ended: its tokens are not idle since before; null: it never was suspended';

CREATE TABLE apitoken.users (
	id           text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(id) BETWEEN 1 AND 255),
	name         text,
	email        text,
	groups       text[] NOT NULL DEFAULT '{}',
	role         text,
	suspended_at timestamptz,
	created_at   timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE apitoken.users IS 'Users: owners of personal tokens and members of organizations; a user without a row gets one with their first token';
COMMENT ON COLUMN apitoken.users.id IS 'The application''s own id, as text; 1 to 255 bytes; cannot change';
COMMENT ON COLUMN apitoken.users.name IS 'Name to show to oneself and to co-members; null: none given';
COMMENT ON COLUMN apitoken.users.email IS 'E-mail address, shown to the user alone; null: none given';
COMMENT ON COLUMN apitoken.users.groups IS 'Visibility groups: what current_groups() answers for this user and for their personal tokens';
COMMENT ON COLUMN apitoken.users.role IS 'Name of the role that limits what this user may do outside organizations; null: no limit on their own things';
COMMENT ON COLUMN apitoken.users.suspended_at IS 'Not null: the user may do nothing and every personal token of theirs is refused, until it is null again';
COMMENT ON COLUMN apitoken.users.created_at IS 'When the row was made';

CREATE TABLE apitoken.roles (
	name          text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(name) BETWEEN 1 AND 63),
	description   text,
	permissions   text[] NOT NULL,
	database_role name
);
COMMENT ON TABLE apitoken.roles IS 'Named sets of permissions, that a member has in an organization and that an organization''s token carries';
COMMENT ON COLUMN apitoken.roles.name IS 'Name of the role; admin and developer are built in and may be edited, not deleted';
COMMENT ON COLUMN apitoken.roles.description IS 'What the role is for; null: none given';
COMMENT ON COLUMN apitoken.roles.permissions IS 'Patterns of what the role may do: resource:action with * for either half, or * for everything; permissions of the resource token only by *, token:* or name';
COMMENT ON COLUMN apitoken.roles.database_role IS 'Database role that authenticate() and pre_request() enter for the transaction under this role, if the session user is a member of it; only the tables'' owner may set it; null: none';

-- No foreign keys: the extension's are there before a restore's data, which
-- comes in any order with pg_restore --jobs.  Triggers do what they would.
CREATE TABLE apitoken.memberships (
	organization_id text COLLATE "C" NOT NULL,
	user_id         text COLLATE "C" NOT NULL CHECK (pg_catalog.octet_length(user_id) BETWEEN 1 AND 255),
	role            text COLLATE "C" NOT NULL,
	PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX memberships_user_id_idx ON apitoken.memberships (user_id, organization_id);
CREATE INDEX memberships_role_idx ON apitoken.memberships (role);
COMMENT ON TABLE apitoken.memberships IS 'Who is a member of which organization, and in which role';
COMMENT ON COLUMN apitoken.memberships.organization_id IS 'The organization; its memberships end with it';
COMMENT ON COLUMN apitoken.memberships.user_id IS 'The user; needs no row in users, and memberships end when that row is deleted';
COMMENT ON COLUMN apitoken.memberships.role IS 'Name of the role that the member has there';

CREATE TABLE apitoken_internal.token_records (
	id                     uuid PRIMARY KEY,
	created_at             timestamptz NOT NULL,
	updated_at             timestamptz NOT NULL,
	expires_at             timestamptz,
	suspended_at           timestamptz,
	revoked_at             timestamptz,
	previous_expires_at    timestamptz,
	rate_limit_per_minute  integer,
	digest_scheme          smallint NOT NULL CHECK (digest_scheme >= 0),
	previous_digest_scheme smallint CHECK (previous_digest_scheme >= 0),
	digest                 bytea NOT NULL CHECK (pg_catalog.octet_length(digest) = 32),
	previous_digest        bytea CHECK (pg_catalog.octet_length(previous_digest) = 32),
	organization_id        text COLLATE "C",
	user_id                text COLLATE "C",
	label                  text NOT NULL,
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
	CONSTRAINT token_records_one_owner CHECK (pg_catalog.num_nonnulls(organization_id, user_id) = 1),
	CONSTRAINT token_records_role CHECK ((organization_id IS NULL) = (role IS NULL)),
	CONSTRAINT token_records_custom CHECK ((access = 'custom') = (permissions IS NOT NULL)),
	CONSTRAINT token_records_previous CHECK (pg_catalog.num_nonnulls(previous_digest, previous_digest_scheme, previous_expires_at) IN (0, 3))
);
CREATE UNIQUE INDEX token_records_organization_label_key ON apitoken_internal.token_records (organization_id, label COLLATE "C")
	WHERE revoked_at IS NULL AND organization_id IS NOT NULL;
CREATE UNIQUE INDEX token_records_user_label_key ON apitoken_internal.token_records (user_id, label COLLATE "C")
	WHERE revoked_at IS NULL AND user_id IS NOT NULL;
CREATE INDEX token_records_organization_id_idx ON apitoken_internal.token_records (organization_id, created_at DESC, id DESC)
	WHERE organization_id IS NOT NULL;
CREATE INDEX token_records_user_id_idx ON apitoken_internal.token_records (user_id, created_at DESC, id DESC)
	WHERE user_id IS NOT NULL;
CREATE INDEX token_records_previous_expires_at_idx ON apitoken_internal.token_records (previous_expires_at)
	WHERE previous_expires_at IS NOT NULL;
CREATE INDEX token_records_revoked_at_idx ON apitoken_internal.token_records (revoked_at)
	WHERE revoked_at IS NOT NULL;
CREATE INDEX token_records_expires_at_idx ON apitoken_internal.token_records (expires_at)
	WHERE expires_at IS NOT NULL AND revoked_at IS NULL;
COMMENT ON TABLE apitoken_internal.token_records IS 'What is stored of each token; clients use the view apitoken.tokens. Made, changed and ended by the extension''s own functions and triggers';
COMMENT ON COLUMN apitoken_internal.token_records.previous_expires_at IS 'Until then the secret before the last regeneration is accepted too; null: it is not';
COMMENT ON COLUMN apitoken_internal.token_records.digest_scheme IS '0: SHA-256 of the token text; n: HMAC-SHA-256 of it under pepper n';
COMMENT ON COLUMN apitoken_internal.token_records.previous_digest_scheme IS 'As digest_scheme, for previous_digest';
COMMENT ON COLUMN apitoken_internal.token_records.digest IS 'Digest of the token text; granted to nobody';
COMMENT ON COLUMN apitoken_internal.token_records.previous_digest IS 'Digest of the token text before the last regeneration; granted to nobody';

-- With room on each page: a flush then writes no index, and a quarter of the WAL.
CREATE TABLE apitoken.token_usage (
	token_id       uuid PRIMARY KEY,
	last_used_at   timestamptz,
	accepted       bigint NOT NULL DEFAULT 0,
	refused        bigint NOT NULL DEFAULT 0,
	last_used_from inet
) WITH (fillfactor = 90);
COMMENT ON TABLE apitoken.token_usage IS 'When each token was last used; its row is made with the token';
COMMENT ON COLUMN apitoken.token_usage.token_id IS 'The token';
COMMENT ON COLUMN apitoken.token_usage.last_used_at IS 'When it was last accepted, to the minute without shared preload; null: never';
COMMENT ON COLUMN apitoken.token_usage.accepted IS 'How often it was accepted; without shared preload at most one a minute counts';
COMMENT ON COLUMN apitoken.token_usage.refused IS 'How often it was refused to who had the right secret; not counted without shared preload';
COMMENT ON COLUMN apitoken.token_usage.last_used_from IS 'Client address of that use; null: unknown';

CREATE TABLE apitoken.token_usage_daily (
	token_id uuid,
	day      date,
	accepted bigint NOT NULL DEFAULT 0,
	refused  bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (token_id, day)
) WITH (fillfactor = 70);
CREATE INDEX token_usage_daily_day_idx ON apitoken.token_usage_daily (day);
COMMENT ON TABLE apitoken.token_usage_daily IS 'How often each token was used on each day, kept for apitoken.usage_retention; filled with shared preload only';
COMMENT ON COLUMN apitoken.token_usage_daily.token_id IS 'The token';
COMMENT ON COLUMN apitoken.token_usage_daily.day IS 'The day, in UTC';
COMMENT ON COLUMN apitoken.token_usage_daily.accepted IS 'How often it was accepted on that day';
COMMENT ON COLUMN apitoken.token_usage_daily.refused IS 'How often it was refused on that day';

CREATE TABLE apitoken.events (
	id              uuid PRIMARY KEY,
	at              timestamptz NOT NULL,
	action          text COLLATE "C" NOT NULL,
	token_id        uuid NOT NULL,
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
COMMENT ON TABLE apitoken.events IS 'Audit: one row for each creation, edit, suspension, resumption, regeneration and revocation; only ever added to, and kept for apitoken.retention';
COMMENT ON COLUMN apitoken.events.id IS 'UUID version 7: ascends with time within a session';
COMMENT ON COLUMN apitoken.events.at IS 'When it happened';
COMMENT ON COLUMN apitoken.events.action IS 'create, edit, suspend, resume, regenerate or revoke';
COMMENT ON COLUMN apitoken.events.token_id IS 'The token it happened to';
COMMENT ON COLUMN apitoken.events.organization_id IS 'The organization that owns the token; null: a personal token';
COMMENT ON COLUMN apitoken.events.user_id IS 'The user who owns the token; null: an organization''s token';
COMMENT ON COLUMN apitoken.events.actor IS 'Id of the user who did it; null: an organization''s token or a database administrator';
COMMENT ON COLUMN apitoken.events.actor_token_id IS 'The token that did it; null: no token';
COMMENT ON COLUMN apitoken.events.database_user IS 'The login that did it (session_user)';
COMMENT ON COLUMN apitoken.events.client_address IS 'Address of the client; null: unknown, or a Unix socket';
COMMENT ON COLUMN apitoken.events.details IS 'masked and label of the token; old and new values of what an edit changed; the reason of a revocation';


-- one statement each: in a single SELECT only the last would be kept
SELECT pg_catalog.pg_extension_config_dump('apitoken.organizations', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.users', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.roles', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.memberships', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken_internal.token_records', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.token_usage', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.token_usage_daily', '');
SELECT pg_catalog.pg_extension_config_dump('apitoken.events', '');

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
	retry_after     interval
);
COMMENT ON TYPE apitoken.verification IS 'Outcome of one verification; token_id and label whenever the secret was right, what follows them only when valid';
COMMENT ON COLUMN apitoken.verification.valid IS 'May it go ahead?';
COMMENT ON COLUMN apitoken.verification.verdict IS 'valid, malformed or unknown; and to who has the right secret: revoked, expired, suspended, network_refused, permission_refused, rate_limited';
COMMENT ON COLUMN apitoken.verification.token_id IS 'The token; null unless the secret was right';
COMMENT ON COLUMN apitoken.verification.label IS 'Its label; null unless the secret was right';
COMMENT ON COLUMN apitoken.verification.kind IS 'organization or user: the kind of owner';
COMMENT ON COLUMN apitoken.verification.organization_id IS 'The organization that owns it; null: a personal token';
COMMENT ON COLUMN apitoken.verification.user_id IS 'The user who owns it; null: an organization''s token';
COMMENT ON COLUMN apitoken.verification.role IS 'The role in force: an organization''s token''s own, or the user''s in the organization asked about; null: none';
COMMENT ON COLUMN apitoken.verification.access IS 'read_only, full or custom';
COMMENT ON COLUMN apitoken.verification.permissions IS 'Effective patterns: the role''s, narrowed by access, in the organization asked about';
COMMENT ON COLUMN apitoken.verification.groups IS 'Visibility groups of the user; empty for an organization''s token';
COMMENT ON COLUMN apitoken.verification.expires_at IS 'When it expires; null: never';
COMMENT ON COLUMN apitoken.verification.metadata IS 'The application''s own JSON object';
COMMENT ON COLUMN apitoken.verification.retry_after IS 'With rate_limited: how long to wait; null: another verdict, or without shared preload, which it needs';

CREATE TYPE apitoken.issued_token AS (
	id         uuid,
	token      text,
	masked     text,
	expires_at timestamptz
);
COMMENT ON TYPE apitoken.issued_token IS 'A token just made; its text is shown this once and stored nowhere';
COMMENT ON COLUMN apitoken.issued_token.id IS 'Its id';
COMMENT ON COLUMN apitoken.issued_token.token IS 'Its text, the credential itself';
COMMENT ON COLUMN apitoken.issued_token.masked IS 'Its text without the secret, as lists show it';
COMMENT ON COLUMN apitoken.issued_token.expires_at IS 'When it expires; null: never';

------------------------------------------------------------------------------
-- Who is acting.  Open to everyone: these tell only about the caller, and a
-- forgotten GRANT would break the users' own policies.
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.current_user_id() RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_current_user_id' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_user_id() IS 'Id of the user who is acting, directly or by a personal token; null: an organization''s token, or anonymous';

CREATE FUNCTION apitoken.current_organization_id() RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_current_organization_id' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_organization_id() IS 'Id of the organization whose token is acting; null: a user (who may have many), or anonymous';

CREATE FUNCTION apitoken.current_token_id() RETURNS uuid
	AS 'MODULE_PATHNAME', 'apitoken_current_token_id' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_token_id() IS 'Id of the token that is acting; null: no token';

CREATE FUNCTION apitoken.current_role_name() RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_current_role_name' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_role_name() IS 'Role of the organization''s token that is acting, or the role that limits the acting user outside organizations; null: none';

CREATE FUNCTION apitoken.current_groups() RETURNS text[]
	AS 'MODULE_PATHNAME', 'apitoken_current_groups' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.current_groups() IS 'Visibility groups of the acting user; empty for an organization''s token and for anonymous, never null';

CREATE FUNCTION apitoken.whoami() RETURNS jsonb
	AS 'MODULE_PATHNAME', 'apitoken_whoami' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.whoami() IS 'Who is acting: source (token, user, jwt, none), user_id, organization_id, token_id, role, groups, access, suspended, read_only, database_user (current_user), bypasses_rls';

CREATE FUNCTION apitoken.can(permission text, organization_id "any" DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_can' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.can(text, "any") IS 'May who is acting do this (resource:action) in this organization? A null organization means an organization''s token''s own, or a user''s own things. Null permission: no. 22023 if the permission is malformed';

CREATE FUNCTION apitoken.organizations_allowed(permission text) RETURNS SETOF text
	AS 'MODULE_PATHNAME', 'apitoken_organizations_allowed' LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION apitoken.organizations_allowed(text) IS 'Ids of the organizations where who is acting may do this (resource:action); for policies: organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed(''article:read'')))';

-- Used by the policies and views below; they, too, tell only about the caller.
CREATE FUNCTION apitoken_internal.managed_organizations(VARIADIC permissions text[]) RETURNS text[]
	AS 'MODULE_PATHNAME', 'apitoken_managed_organizations' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.managed_organizations(text[]) IS 'For policies: organizations where who is acting has at least one of these permissions (resource:action; without *, else 22023; nulls count for nothing); none where nobody acts, and for a null list';

CREATE FUNCTION apitoken_internal.managed_user(VARIADIC permissions text[]) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_managed_user' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.managed_user(text[]) IS 'For policies: the user whose personal tokens who is acting may manage: the user themself, or by a custom personal token that names one of these permissions; otherwise null. Permissions as for managed_organizations()';

CREATE FUNCTION apitoken_internal.policy_support(internal) RETURNS internal
	AS 'MODULE_PATHNAME', 'apitoken_policy_support' LANGUAGE C STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.policy_support(internal) IS 'For the planner: what it should know of the functions below';

CREATE FUNCTION apitoken_internal.manages_organization(organization_id text, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_organization' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_organization(text, text[]) IS 'For policies: is it one of managed_organizations()? Null where an argument is';

CREATE FUNCTION apitoken_internal.manages_user(user_id text, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_user' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_user(text, text[]) IS 'For policies: is it managed_user()? Null where an argument is';

CREATE FUNCTION apitoken_internal.manages_owner(organization_id text, user_id text, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_owner' LANGUAGE C STABLE PARALLEL RESTRICTED
	SUPPORT apitoken_internal.policy_support;
COMMENT ON FUNCTION apitoken_internal.manages_owner(text, text, text[]) IS 'For policies: manages_organization() or manages_user(), of a token, which has one owner; false where the other one, or the list, is null';

CREATE FUNCTION apitoken_internal.manages_token(token_id uuid, VARIADIC permissions text[]) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_manages_token' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.manages_token(uuid, text[]) IS 'For policies: the same of a token''s owner; false where there is no such token, null where an argument is';

CREATE FUNCTION apitoken_internal.own_organizations() RETURNS text[]
	AS 'MODULE_PATHNAME', 'apitoken_own_organizations' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken_internal.own_organizations() IS 'For policies: organizations that who is acting belongs to; none for anonymous and suspended users';

CREATE FUNCTION apitoken_internal.in_words(at timestamptz) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_in_words' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.in_words(timestamptz) IS 'How long ago that was, in words: just now, 5 minutes ago, 5 days ago; null: never';

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
	CASE
		WHEN r.revoked_at IS NOT NULL THEN 'revoked'
		WHEN r.expires_at <= pg_catalog.statement_timestamp() THEN 'expired'
		WHEN r.suspended_at IS NOT NULL THEN 'suspended'
		WHEN r.expires_at <= pg_catalog.statement_timestamp()
			+ LEAST('7 days'::interval, GREATEST((r.expires_at - r.created_at) / 2, '3 days'::interval)) THEN 'expiring'
		ELSE 'active'
	END AS status
FROM apitoken_internal.token_records r;
COMMENT ON VIEW apitoken.tokens IS 'The tokens that the caller may see. INSERT makes one (take_token gives its text), UPDATE edits or suspends it, revoke_token ends it';
COMMENT ON COLUMN apitoken.tokens.id IS 'The token''s id (UUID version 7); also stands in the token text';
COMMENT ON COLUMN apitoken.tokens.organization_id IS 'The organization that owns it; null: a personal token';
COMMENT ON COLUMN apitoken.tokens.user_id IS 'The user who owns it; null: an organization''s token';
COMMENT ON COLUMN apitoken.tokens.label IS 'Name, 1 to 255 characters, unique among the owner''s tokens that are not revoked';
COMMENT ON COLUMN apitoken.tokens.description IS 'Free text, up to 4000 characters; null: none';
COMMENT ON COLUMN apitoken.tokens.role IS 'Name of the role that an organization''s token carries; null for a personal token';
COMMENT ON COLUMN apitoken.tokens.access IS 'read_only, full or custom: narrows what the role or the user allows';
COMMENT ON COLUMN apitoken.tokens.permissions IS 'With access custom: the patterns (resource:action) that it is narrowed to; otherwise null';
COMMENT ON COLUMN apitoken.tokens.allowed_networks IS 'Networks from which it is accepted; null: from everywhere';
COMMENT ON COLUMN apitoken.tokens.rate_limit_per_minute IS 'Verifications a minute that each server accepts, as many at once after a minute''s rest; none without shared preload; null: no limit';
COMMENT ON COLUMN apitoken.tokens.metadata IS 'A JSON object of the application''s own';
COMMENT ON COLUMN apitoken.tokens.masked IS 'The token text without its secret: prefix, kind, id and the last four characters';
COMMENT ON COLUMN apitoken.tokens.created_by IS 'Id of the user who made it; null: made by an organization''s token or by a database administrator';
COMMENT ON COLUMN apitoken.tokens.created_by_name IS 'That user''s name when it was made; null: unknown';
COMMENT ON COLUMN apitoken.tokens.created_at IS 'When it was made';
COMMENT ON COLUMN apitoken.tokens.updated_at IS 'When it was last changed';
COMMENT ON COLUMN apitoken.tokens.expires_at IS 'From then on it is refused; null: never';
COMMENT ON COLUMN apitoken.tokens.suspended_at IS 'Not null: it is refused until this is null again';
COMMENT ON COLUMN apitoken.tokens.revoked_at IS 'Not null: it is refused for good';
COMMENT ON COLUMN apitoken.tokens.revoked_by IS 'Id of the user who revoked it';
COMMENT ON COLUMN apitoken.tokens.revoke_reason IS 'Why it was revoked';
COMMENT ON COLUMN apitoken.tokens.last_used_at IS 'When it was last accepted; null: never';
COMMENT ON COLUMN apitoken.tokens.last_used IS 'The same in words: never, just now, 5 minutes ago, 5 days ago';
COMMENT ON COLUMN apitoken.tokens.last_used_from IS 'Client address of that use; null: unknown';
COMMENT ON COLUMN apitoken.tokens.status IS 'active, expiring (less than 7 days are left; for a short-lived token less than half its life, or 3 days), expired, suspended or revoked';

CREATE VIEW apitoken.members WITH (security_barrier = true) AS
SELECT m.organization_id, m.user_id, u.name, m.role
FROM apitoken.memberships m LEFT JOIN apitoken.users u ON u.id = m.user_id
WHERE m.organization_id = ANY ((SELECT apitoken_internal.own_organizations())::text[]);
COMMENT ON VIEW apitoken.members IS 'Members of the caller''s own organizations: what co-members may know of each other';
COMMENT ON COLUMN apitoken.members.organization_id IS 'The organization';
COMMENT ON COLUMN apitoken.members.user_id IS 'The member';
COMMENT ON COLUMN apitoken.members.name IS 'The member''s name; null: none given';
COMMENT ON COLUMN apitoken.members.role IS 'The member''s role there';

------------------------------------------------------------------------------
-- Using tokens
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.verify(token text, permission text DEFAULT NULL, organization_id text DEFAULT NULL,
								client_address inet DEFAULT NULL) RETURNS apitoken.verification
	AS 'MODULE_PATHNAME', 'apitoken_verify_sql' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.verify(text, text, text, inet) IS 'Verify a token, and whether it may do this (resource:action) in this organization, from this client address. One row, never an error for a bad token. 22023 if the permission is malformed';

CREATE FUNCTION apitoken.authenticate(token text) RETURNS apitoken.verification
	AS 'MODULE_PATHNAME', 'apitoken_authenticate' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.authenticate(text) IS 'Verify a token and act as its owner until the transaction ends. 28000 if it is refused; 25001 if this transaction acts as somebody else already; 42501 if its role''s database_role cannot be entered; warns outside a transaction block';

CREATE FUNCTION apitoken.act_as(user_id text) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_act_as' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.act_as(text) IS 'Act as this user until the transaction ends; the session user needs the capability act. Returns the id. 42501 without the capability; 25001 if this transaction acts as somebody else already; 22023 if the id is null, empty or longer than 255 bytes';

CREATE FUNCTION apitoken.pre_request() RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_pre_request' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.pre_request() IS 'For PostgREST''s db-pre-request: act by the token in the request''s headers (apitoken.token_headers), else as the JWT''s user (apitoken.jwt_user_claim), else anonymous. PGRST with HTTP status 400, 401, 403 or 429 if the token is refused or there are several; 42501 if its role''s database_role cannot be entered';

CREATE FUNCTION apitoken.introspect(token text, token_type_hint text DEFAULT NULL) RETURNS jsonb
	AS 'MODULE_PATHNAME', 'apitoken_introspect' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.introspect(text, text) IS 'What OAuth 2.0 token introspection answers (RFC 7662): active, and of an active token scope, client_id, username, token_type, exp, iat, nbf, sub, aud, iss, jti, label, kind, organization_id, role, access. token_type_hint is not looked at. Never an error for a bad token';

CREATE FUNCTION apitoken.generate(kind text) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_generate_sql' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION apitoken.generate(text) IS 'A new token text of kind organization or user, stored nowhere. 22023 for another kind';

CREATE FUNCTION apitoken.hash(token text) RETURNS bytea
	AS 'MODULE_PATHNAME', 'apitoken_hash' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken.hash(text) IS 'The digest under which a token text is stored now: SHA-256, or HMAC-SHA-256 (RFC 2104) under the highest pepper. F0000 or a file error if the pepper file cannot be used';

CREATE FUNCTION apitoken.parse(token text, OUT prefix text, OUT kind text, OUT id uuid) RETURNS record
	AS 'MODULE_PATHNAME', 'apitoken_parse_sql' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken.parse(text) IS 'The parts of a token text; null if it is malformed. Looks at no table';

CREATE FUNCTION apitoken.mask(token text) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_mask' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION apitoken.mask(text) IS 'The token text without its secret; null if it is malformed';

------------------------------------------------------------------------------
-- Managing tokens
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.create_token(label text, organization_id text DEFAULT NULL, user_id text DEFAULT NULL,
									  description text DEFAULT NULL, role text DEFAULT NULL, access text DEFAULT NULL,
									  permissions text[] DEFAULT NULL, expires_in interval DEFAULT NULL,
									  allowed_networks cidr[] DEFAULT NULL, rate_limit_per_minute integer DEFAULT NULL,
									  metadata jsonb DEFAULT '{}') RETURNS apitoken.issued_token
	AS 'MODULE_PATHNAME', 'apitoken_create_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.create_token(text, text, text, text, text, text, text[], interval, cidr[], integer, jsonb) IS 'Make a token: an organization''s, or without one a personal token of the caller. Its text is in the answer, this once. expires_in: 7 days, 30 days, 90 days, ...; null: never expires. 42501 if not allowed; 22023 for bad values; 23505 if the label is in use';

CREATE FUNCTION apitoken.take_token(id uuid) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_take_token' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.take_token(uuid) IS 'The text of a token that the same role inserted in this transaction, once: INSERT INTO apitoken.tokens (...) RETURNING id, apitoken.take_token(id). 55000 if there is none';

CREATE FUNCTION apitoken.regenerate_token(id uuid, overlap interval DEFAULT '0', expires_in interval DEFAULT NULL)
	RETURNS apitoken.issued_token
	AS 'MODULE_PATHNAME', 'apitoken_regenerate_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.regenerate_token(uuid, interval, interval) IS 'A new secret for the same token. The old one goes on for overlap, never past its old expiry. expires_in null keeps the expiry. 42501 if there is no such token or it may not be changed; 55000 if it is revoked, or expired and no new expiry is given';

CREATE FUNCTION apitoken.revoke_token(id uuid, confirm_label text DEFAULT NULL, reason text DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_revoke_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.revoke_token(uuid, text, text) IS 'End a token for good; an organization''s needs its label typed. True, or false if it was revoked before. 42501 if there is no such token or it may not be revoked; 22023 if the label is wrong';

CREATE FUNCTION apitoken.revoke_by_token(token text, token_type_hint text DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'apitoken_revoke_by_token' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.revoke_by_token(text, text) IS 'End the token whose text this is, whoever holds it (RFC 7009; token_type_hint is not looked at); true if that revoked it, false if there was nothing to revoke';

CREATE FUNCTION apitoken.revoke_tokens(organization_id text DEFAULT NULL, user_id text DEFAULT NULL,
									   created_by text DEFAULT NULL, reason text DEFAULT NULL) RETURNS bigint
	AS 'MODULE_PATHNAME', 'apitoken_revoke_tokens' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.revoke_tokens(text, text, text, text) IS 'Revoke all tokens that match every id given and that the caller may revoke; how many were. 22023 if no id is given';

CREATE FUNCTION apitoken_internal.list_pattern(label text) RETURNS text
	AS 'MODULE_PATHNAME', 'apitoken_list_pattern' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.list_pattern(text) IS 'For list_tokens: a text with % is an ILIKE pattern already, another one means contains';

CREATE FUNCTION apitoken_internal.list_limit(page_size integer, status text) RETURNS bigint
	AS 'MODULE_PATHNAME', 'apitoken_list_limit' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.list_limit(integer, text) IS 'For list_tokens: the page size, 1 to 1000, and the status if it is given checked; 22023 otherwise';

CREATE FUNCTION apitoken.list_tokens(label text DEFAULT NULL, organization_id text DEFAULT NULL, status text DEFAULT NULL,
									 before_id uuid DEFAULT NULL, page_size integer DEFAULT 50) RETURNS SETOF apitoken.tokens
	LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 50
BEGIN ATOMIC
	SELECT t.*
	FROM apitoken.tokens t
	WHERE (list_tokens.organization_id IS NULL OR t.organization_id = list_tokens.organization_id)
		AND (list_tokens.label IS NULL OR t.label ILIKE apitoken_internal.list_pattern(list_tokens.label))
		AND (list_tokens.status IS NULL OR t.status = list_tokens.status)
		AND (list_tokens.before_id IS NULL
			 OR (t.created_at, t.id) < ((SELECT b.created_at FROM apitoken_internal.token_records b WHERE b.id = list_tokens.before_id), list_tokens.before_id))
	ORDER BY t.created_at DESC, t.id DESC
	LIMIT apitoken_internal.list_limit(list_tokens.page_size, list_tokens.status);
END;
COMMENT ON FUNCTION apitoken.list_tokens(text, text, text, uuid, integer) IS 'Tokens that the caller may see, newest first. label: an ILIKE pattern, or plain text meant as contains; status: active, expiring, expired, suspended, revoked; before_id: id of the last row of the page before; page_size: 1 to 1000';

------------------------------------------------------------------------------
-- Capabilities
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.allow(database_role name, VARIADIC capabilities text[]) RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_allow' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.allow(name, text[]) IS 'Grant capabilities (use, manage, verify, act, directory, monitor) to a database role. 42501 unless called by the tables'' owner; 22023 for an unknown capability';

CREATE FUNCTION apitoken.disallow(database_role name, VARIADIC capabilities text[]) RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_disallow' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.disallow(name, text[]) IS 'Take capabilities back; manage takes use with it; what a capability that the role keeps needs stays. Errors as allow';

------------------------------------------------------------------------------
-- Recorded usage, and what the server counts
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.flush_usage() RETURNS void
	AS 'MODULE_PATHNAME', 'apitoken_flush_usage' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.flush_usage() IS 'Have the usage of this database''s tokens that is recorded in shared memory written now, and wait until it is on disk; does nothing without shared preload. 55000 if it cannot be written, or during recovery; 53000 if no background worker is free';

CREATE FUNCTION apitoken_internal.read_stats(
	OUT preloaded boolean, OUT started_at timestamptz,
	OUT valid bigint, OUT malformed bigint, OUT unknown bigint, OUT revoked bigint, OUT expired bigint,
	OUT suspended bigint, OUT network_refused bigint, OUT permission_refused bigint, OUT rate_limited bigint,
	OUT flushes bigint, OUT dropped bigint, OUT masked bigint,
	OUT slots integer, OUT entries bigint, OUT limits bigint,
	OUT last_flush_at timestamptz, OUT last_flush_error text, OUT last_flush_error_at timestamptz) RETURNS record
	AS 'MODULE_PATHNAME', 'apitoken_read_stats' LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION apitoken_internal.read_stats() IS 'What the view apitoken.stats shows';

CREATE VIEW apitoken.stats AS SELECT * FROM apitoken_internal.read_stats();
COMMENT ON VIEW apitoken.stats IS 'One row: what this server counted since it started, in all databases, and how writing this database''s usage goes. Without shared preload all but preloaded is null';
COMMENT ON COLUMN apitoken.stats.preloaded IS 'Is the library in shared_preload_libraries?';
COMMENT ON COLUMN apitoken.stats.started_at IS 'When counting began: the start of the server, or its restart after a crash';
COMMENT ON COLUMN apitoken.stats.valid IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.malformed IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.unknown IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.revoked IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.expired IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.suspended IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.network_refused IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.permission_refused IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.rate_limited IS 'Verifications with this verdict';
COMMENT ON COLUMN apitoken.stats.flushes IS 'Batches of usage written to tables';
COMMENT ON COLUMN apitoken.stats.dropped IS 'Uses not recorded, and tokens with a rate limit refused, because shared memory was full: raise apitoken.usage_slots';
COMMENT ON COLUMN apitoken.stats.masked IS 'Log messages in which a token text was masked';
COMMENT ON COLUMN apitoken.stats.slots IS 'Value of apitoken.usage_slots';
COMMENT ON COLUMN apitoken.stats.entries IS 'Tokens with usage in shared memory now, written or not';
COMMENT ON COLUMN apitoken.stats.limits IS 'Tokens with a rate limit in shared memory now';
COMMENT ON COLUMN apitoken.stats.last_flush_at IS 'When usage of this database was last looked after without an error; null: not since the start';
COMMENT ON COLUMN apitoken.stats.last_flush_error IS 'Why the last attempt failed; null: it did not';
COMMENT ON COLUMN apitoken.stats.last_flush_error_at IS 'When it failed; null: it did not';

------------------------------------------------------------------------------
-- Housekeeping
------------------------------------------------------------------------------

CREATE FUNCTION apitoken.run_maintenance(OUT tokens_revoked bigint, OUT digests_cleared bigint, OUT events_removed bigint,
										 OUT tokens_removed bigint, OUT usage_removed bigint) RETURNS record
	AS 'MODULE_PATHNAME', 'apitoken_run_maintenance' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION apitoken.run_maintenance() IS 'Revoke idle tokens, clear previous digests past their overlap, remove what is older than apitoken.retention and apitoken.usage_retention; how many of each. 25006 where nothing can be written; 55000 where triggers do not fire; F0000 if one of these settings was refused';

------------------------------------------------------------------------------
-- Triggers.  Their functions are revoked from everybody below, and check which
-- table fired them.
------------------------------------------------------------------------------

CREATE FUNCTION apitoken_internal.token_before_insert() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_before_insert' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_before_insert() IS 'Trigger: authorization, then values, then id and digest of a new token';
CREATE FUNCTION apitoken_internal.token_before_update() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_before_update' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_before_update() IS 'Trigger: what may change of a token, and by whom';
CREATE FUNCTION apitoken_internal.token_after_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_after_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_after_change() IS 'Trigger: the event, and the usage row of a new token';
CREATE FUNCTION apitoken_internal.token_refuse_delete() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_token_refuse_delete' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.token_refuse_delete() IS 'Trigger: DELETE on the view tokens and TRUNCATE of token_records are refused';
CREATE FUNCTION apitoken_internal.event_refuse_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_event_refuse_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.event_refuse_change() IS 'Trigger: events are only ever added to, and removed by run_maintenance() alone';
CREATE FUNCTION apitoken_internal.role_before_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_role_before_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.role_before_change() IS 'Trigger: patterns are well formed, built-in roles stay, a restored built-in role replaces the installed one';
CREATE FUNCTION apitoken_internal.role_after_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_role_after_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.role_after_change() IS 'Trigger: all sessions forget what they remember of roles';
CREATE FUNCTION apitoken_internal.membership_before_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_membership_before_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.membership_before_change() IS 'Trigger: a membership needs its organization and its role';
CREATE FUNCTION apitoken_internal.owner_before_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_owner_before_change' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.owner_before_change() IS 'Trigger: ids of organizations and users do not change, TRUNCATE is refused, and the end of a suspension is noted';
CREATE FUNCTION apitoken_internal.owner_after_delete() RETURNS trigger
	AS 'MODULE_PATHNAME', 'apitoken_owner_after_delete' LANGUAGE C;
COMMENT ON FUNCTION apitoken_internal.owner_after_delete() IS 'Trigger: what a deleted organization or user owned is revoked';

CREATE TRIGGER token_before_insert BEFORE INSERT ON apitoken_internal.token_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_before_insert();
CREATE TRIGGER token_before_update BEFORE UPDATE ON apitoken_internal.token_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_before_update();
CREATE TRIGGER token_after_change AFTER INSERT OR UPDATE OR DELETE ON apitoken_internal.token_records
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_after_change();
CREATE TRIGGER token_refuse_truncate BEFORE TRUNCATE ON apitoken_internal.token_records
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.token_refuse_delete();
-- A statement trigger on a view fires only beside an INSTEAD OF trigger.
CREATE TRIGGER token_refuse_delete BEFORE DELETE ON apitoken.tokens
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.token_refuse_delete();
CREATE TRIGGER token_refuse_delete_row INSTEAD OF DELETE ON apitoken.tokens
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_refuse_delete();
CREATE TRIGGER event_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON apitoken.events
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.event_refuse_change();
CREATE TRIGGER role_before_change BEFORE INSERT OR UPDATE OR DELETE ON apitoken.roles
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.role_before_change();
-- A changed role tells at once, also when replication or a restore changes it.
CREATE TRIGGER role_after_change AFTER UPDATE OR DELETE ON apitoken.roles
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.role_after_change();
ALTER TABLE apitoken.roles ENABLE ALWAYS TRIGGER role_after_change;
CREATE TRIGGER membership_before_change BEFORE INSERT OR UPDATE ON apitoken.memberships
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.membership_before_change();
CREATE TRIGGER organization_before_update BEFORE UPDATE ON apitoken.organizations
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER organization_before_truncate BEFORE TRUNCATE ON apitoken.organizations
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER organization_after_delete AFTER DELETE ON apitoken.organizations
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_after_delete();
CREATE TRIGGER user_before_update BEFORE UPDATE ON apitoken.users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER user_before_truncate BEFORE TRUNCATE ON apitoken.users
	FOR EACH STATEMENT EXECUTE FUNCTION apitoken_internal.owner_before_change();
CREATE TRIGGER user_after_delete AFTER DELETE ON apitoken.users
	FOR EACH ROW EXECUTE FUNCTION apitoken_internal.owner_after_delete();

------------------------------------------------------------------------------
-- Row-level security.  Privileges say which role may try (apitoken.allow);
-- these say which rows.  Each condition on who is acting is a sub-select of
-- its own, so that it is evaluated once per query and not per row.
------------------------------------------------------------------------------

ALTER TABLE apitoken.organizations ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.users ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.roles ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.memberships ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken_internal.token_records ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.token_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.token_usage_daily ENABLE ROW LEVEL SECURITY;
ALTER TABLE apitoken.events ENABLE ROW LEVEL SECURITY;

-- The directory: who may write a table (capability directory) sees all of it,
-- and is not asked who is acting.
CREATE POLICY organizations_read ON apitoken.organizations FOR SELECT
	USING ((SELECT pg_catalog.has_table_privilege('apitoken.organizations'::regclass, 'DELETE'))
		   OR id = ANY ((SELECT apitoken_internal.own_organizations())::text[]));
CREATE POLICY organizations_insert ON apitoken.organizations FOR INSERT WITH CHECK (true);
CREATE POLICY organizations_update ON apitoken.organizations FOR UPDATE USING (true);
CREATE POLICY organizations_delete ON apitoken.organizations FOR DELETE USING (true);

CREATE POLICY users_read ON apitoken.users FOR SELECT
	USING ((SELECT pg_catalog.has_table_privilege('apitoken.users'::regclass, 'DELETE'))
		   OR (id = (SELECT apitoken.current_user_id()) AND suspended_at IS NULL));
CREATE POLICY users_insert ON apitoken.users FOR INSERT WITH CHECK (true);
CREATE POLICY users_update ON apitoken.users FOR UPDATE USING (true);
CREATE POLICY users_delete ON apitoken.users FOR DELETE USING (true);

CREATE POLICY memberships_read ON apitoken.memberships FOR SELECT
	USING ((SELECT pg_catalog.has_table_privilege('apitoken.memberships'::regclass, 'DELETE'))
		   OR organization_id = ANY ((SELECT apitoken_internal.own_organizations())::text[]));
CREATE POLICY memberships_insert ON apitoken.memberships FOR INSERT WITH CHECK (true);
CREATE POLICY memberships_update ON apitoken.memberships FOR UPDATE USING (true);
CREATE POLICY memberships_delete ON apitoken.memberships FOR DELETE USING (true);

GRANT SELECT ON apitoken.roles TO PUBLIC;
CREATE POLICY roles_read ON apitoken.roles FOR SELECT USING (true);
CREATE POLICY roles_insert ON apitoken.roles FOR INSERT WITH CHECK (true);
CREATE POLICY roles_update ON apitoken.roles FOR UPDATE USING (true);
CREATE POLICY roles_delete ON apitoken.roles FOR DELETE USING (true);

-- The OR is for queries that name no owner, the rest for those that do: see src/identity/policy.c.
CREATE POLICY token_records_read ON apitoken_internal.token_records FOR SELECT
	USING ((apitoken_internal.manages_organization(organization_id, 'token:read', 'token:update', 'token:delete')
			OR apitoken_internal.manages_user(user_id, 'token:read', 'token:update', 'token:delete'))
		   AND apitoken_internal.manages_owner(organization_id, user_id, 'token:read', 'token:update', 'token:delete'));
CREATE POLICY token_records_create ON apitoken_internal.token_records FOR INSERT
	WITH CHECK (organization_id = ANY ((SELECT apitoken_internal.managed_organizations('token:create'))::text[])
				OR user_id = (SELECT apitoken_internal.managed_user('token:create')));
CREATE POLICY token_records_update ON apitoken_internal.token_records FOR UPDATE
	USING (organization_id = ANY ((SELECT apitoken_internal.managed_organizations('token:update'))::text[])
		   OR user_id = (SELECT apitoken_internal.managed_user('token:update')));

CREATE POLICY token_usage_read ON apitoken.token_usage FOR SELECT
	USING (apitoken_internal.manages_token(token_id, 'token:read', 'token:update', 'token:delete'));

CREATE POLICY token_usage_daily_read ON apitoken.token_usage_daily FOR SELECT
	USING (EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id = token_id));

CREATE POLICY events_read ON apitoken.events FOR SELECT
	USING (organization_id = ANY ((SELECT apitoken_internal.managed_organizations('token:read', 'token:update', 'token:delete'))::text[])
		   OR user_id = (SELECT apitoken_internal.managed_user('token:read', 'token:update', 'token:delete'))
		   OR actor = (SELECT apitoken_internal.managed_user('token:read', 'token:update', 'token:delete'))
		   OR actor_token_id = (SELECT apitoken.current_token_id()));


------------------------------------------------------------------------------
-- Nothing is anybody's until apitoken.allow says so, but for what tells only
-- about the caller.
------------------------------------------------------------------------------

REVOKE ALL ON FUNCTION
	apitoken.verify(text, text, text, inet),
	apitoken.authenticate(text),
	apitoken.act_as(text),
	apitoken.generate(text),
	apitoken.hash(text),
	apitoken.parse(text),
	apitoken.mask(text),
	apitoken.create_token(text, text, text, text, text, text, text[], interval, cidr[], integer, jsonb),
	apitoken_internal.policy_support(internal),
	apitoken.take_token(uuid),
	apitoken.regenerate_token(uuid, interval, interval),
	apitoken.revoke_token(uuid, text, text),
	apitoken.revoke_by_token(text, text),
	apitoken.pre_request(),
	apitoken.introspect(text, text),
	apitoken.revoke_tokens(text, text, text, text),
	apitoken_internal.list_pattern(text),
	apitoken_internal.list_limit(integer, text),
	apitoken.list_tokens(text, text, text, uuid, integer),
	apitoken.allow(name, text[]),
	apitoken.disallow(name, text[]),
	apitoken.flush_usage(),
	apitoken_internal.read_stats(),
	apitoken.run_maintenance(),
	apitoken_internal.token_before_insert(),
	apitoken_internal.token_before_update(),
	apitoken_internal.token_after_change(),
	apitoken_internal.token_refuse_delete(),
	apitoken_internal.event_refuse_change(),
	apitoken_internal.role_before_change(),
	apitoken_internal.role_after_change(),
	apitoken_internal.membership_before_change(),
	apitoken_internal.owner_before_change(),
	apitoken_internal.owner_after_delete()
FROM PUBLIC;

------------------------------------------------------------------------------
-- The built-in roles
------------------------------------------------------------------------------

INSERT INTO apitoken.roles (name, description, permissions) VALUES
	('admin', 'Everything, tokens included', '{*}'),
	('developer', 'Everything but tokens', '{*:read,*:list,*:write,*:create,*:update,*:delete}');
