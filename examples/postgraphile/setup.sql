-- The database of the example.  Run it as superuser, in a new database:
--
--     psql -v ON_ERROR_STOP=1 -d example -f setup.sql

CREATE EXTENSION apitoken;

-- PostGraphile identifies its client by settings, so the library must be loaded
-- before the first statement.  (Not needed if shared_preload_libraries loads it.)
ALTER DATABASE :"DBNAME" SET session_preload_libraries = 'apitoken';

-- PostGraphile logs in as the first of these roles, and switches to one of the
-- others in each transaction.  It has no privileges of its own on the API's objects.
CREATE ROLE graphile LOGIN NOINHERIT;
CREATE ROLE api_anonymous;
CREATE ROLE api_client;
GRANT api_anonymous, api_client TO graphile;

-- verify: it may verify tokens.  act: it may say which user has signed in.
SELECT apitoken.allow('graphile', 'verify', 'act');
SELECT apitoken.allow('api_client', 'manage');

-- Tokens are bind parameters: keep these out of the server log.
ALTER ROLE graphile SET log_parameter_max_length = 0;
ALTER ROLE graphile SET log_parameter_max_length_on_error = 0;

------------------------------------------------------------------------------
-- What the API publishes: articles of organizations, drafts of users
------------------------------------------------------------------------------

CREATE SCHEMA app;
GRANT USAGE ON SCHEMA app TO api_anonymous, api_client;

CREATE TABLE app.articles (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id text NOT NULL DEFAULT apitoken.current_organization_id(),
    title           text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON app.articles (organization_id);
ALTER TABLE app.articles ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT (organization_id, title), UPDATE (title), DELETE ON app.articles TO api_client;

CREATE POLICY articles_read ON app.articles FOR SELECT
    USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY articles_create ON app.articles FOR INSERT
    WITH CHECK (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:create'))));
CREATE POLICY articles_update ON app.articles FOR UPDATE
    USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:update'))));
CREATE POLICY articles_delete ON app.articles FOR DELETE
    USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:delete'))));

CREATE TABLE app.drafts (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    text NOT NULL DEFAULT apitoken.current_user_id(),
    text       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON app.drafts (user_id);
ALTER TABLE app.drafts ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT (text), UPDATE (text), DELETE ON app.drafts TO api_client;

-- A user's own drafts, as far as the user or their token has the permission
CREATE POLICY drafts_read ON app.drafts FOR SELECT
    USING (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:read')));
CREATE POLICY drafts_create ON app.drafts FOR INSERT
    WITH CHECK (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:create')));
CREATE POLICY drafts_update ON app.drafts FOR UPDATE
    USING (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:update')));
CREATE POLICY drafts_delete ON app.drafts FOR DELETE
    USING (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:delete')));

------------------------------------------------------------------------------
-- Tokens.  PostGraphile does not publish objects that belong to an extension, so
-- the API needs a view and functions of its own.
------------------------------------------------------------------------------

CREATE VIEW app.tokens WITH (security_invoker = true) AS SELECT * FROM apitoken.tokens;
COMMENT ON VIEW app.tokens IS E'@primaryKey id\nThe tokens that you may see.';
GRANT SELECT ON app.tokens TO api_client;
GRANT UPDATE (label, description, role, access, permissions, allowed_networks, rate_limit_per_minute,
              quota, quota_period, metadata, expires_at, suspended_at) ON app.tokens TO api_client;

CREATE TYPE app.issued_token AS (id uuid, token text, masked text, expires_at timestamptz);
COMMENT ON TYPE app.issued_token IS 'A new token. Its text is shown only here.';

CREATE FUNCTION app.create_token(
    label text, organization_id text DEFAULT NULL, description text DEFAULT NULL, role text DEFAULT NULL,
    access text DEFAULT NULL, permissions text[] DEFAULT NULL, expires_in interval DEFAULT NULL,
    allowed_networks cidr[] DEFAULT NULL, rate_limit_per_minute integer DEFAULT NULL, metadata jsonb DEFAULT '{}',
    quota bigint DEFAULT NULL, quota_period text DEFAULT NULL)
RETURNS app.issued_token LANGUAGE sql BEGIN ATOMIC
    SELECT made.id, made.token, made.masked, made.expires_at
    FROM apitoken.create_token(
        label => label, organization_id => organization_id, description => description, role => role,
        access => access, permissions => permissions, expires_in => expires_in, allowed_networks => allowed_networks,
        rate_limit_per_minute => rate_limit_per_minute, metadata => metadata,
        quota => quota, quota_period => quota_period) made;
END;
COMMENT ON FUNCTION app.create_token IS 'Create a token of an organization, or without one, a token of your own.';

CREATE FUNCTION app.regenerate_token(id uuid, overlap interval DEFAULT '0', expires_in interval DEFAULT NULL)
RETURNS app.issued_token LANGUAGE sql BEGIN ATOMIC
    SELECT made.id, made.token, made.masked, made.expires_at
    FROM apitoken.regenerate_token(regenerate_token.id, overlap => overlap, expires_in => expires_in) made;
END;
COMMENT ON FUNCTION app.regenerate_token IS 'Create a new secret for the same token. The old one stays valid for the overlap.';

CREATE FUNCTION app.revoke_token(id uuid, confirm_label text DEFAULT NULL, reason text DEFAULT NULL)
RETURNS boolean LANGUAGE sql BEGIN ATOMIC
    SELECT apitoken.revoke_token(id, confirm_label => confirm_label, reason => reason);
END;
COMMENT ON FUNCTION app.revoke_token IS 'Revoke a token. A token of an organization needs its label as confirm_label.';

CREATE FUNCTION app.search_tokens(label text DEFAULT NULL, organization_id text DEFAULT NULL, status text DEFAULT NULL)
RETURNS SETOF app.tokens STABLE LANGUAGE sql BEGIN ATOMIC
    SELECT * FROM apitoken.list_tokens(label, organization_id => organization_id, status => status, page_size => 1000);
END;
COMMENT ON FUNCTION app.search_tokens IS 'Tokens whose label contains this text, newest first.';

CREATE FUNCTION app.whoami() RETURNS jsonb STABLE LANGUAGE sql BEGIN ATOMIC
    SELECT apitoken.whoami();
END;
COMMENT ON FUNCTION app.whoami IS 'Who you are.';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA app FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA app TO api_client;
GRANT EXECUTE ON FUNCTION app.whoami TO api_anonymous;

------------------------------------------------------------------------------
-- What the API does not publish: sessions.  The application's sign-in page adds a
-- row and sets the cookie.  Only the digest of the cookie is stored.
------------------------------------------------------------------------------

CREATE SCHEMA private;
GRANT USAGE ON SCHEMA private TO graphile;

CREATE TABLE private.sessions (
    digest     bytea PRIMARY KEY,     -- SHA-256 of the cookie
    user_id    text NOT NULL,
    expires_at timestamptz NOT NULL DEFAULT now() + interval '12 hours'
);
GRANT SELECT ON private.sessions TO graphile;
