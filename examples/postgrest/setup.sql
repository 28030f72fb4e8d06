-- The database side of examples/postgrest/postgrest.conf.  Run it once, as
-- superuser, in the database of the application:
--
--     psql -d app -v ON_ERROR_STOP=1 -1 -f setup.sql

CREATE EXTENSION IF NOT EXISTS apitoken;

-- PostgREST's three roles.  PostgREST connects as the first, and switches to one
-- of the others for each request.  Give the first a password or an entry in
-- pg_hba.conf.
CREATE ROLE authenticator LOGIN NOINHERIT;
CREATE ROLE anon NOLOGIN;
CREATE ROLE web_user NOLOGIN;
GRANT anon, web_user TO authenticator;

-- The user that a JWT names and the client address count for this login.
SELECT apitoken.allow('authenticator', 'act');
-- A request without a JWT starts as anon.  For PostgREST it stays anon, also with
-- a token.  A JWT contains {"role": "web_user", "sub": "<id of the user>"}.
SELECT apitoken.allow('anon', 'use');
SELECT apitoken.allow('web_user', 'manage');

ALTER ROLE authenticator SET session_preload_libraries = 'apitoken';
ALTER ROLE authenticator SET apitoken.jwt_user_claim = 'sub';
-- Only behind a proxy that always sets this header itself (examples/nginx), and
-- only if clients cannot reach PostgREST directly.  Otherwise remove this line.
ALTER ROLE authenticator SET apitoken.client_address_header = 'x-real-ip';
-- PostgREST passes the headers of each request, tokens included, as parameters.
-- Keep parameters out of the server log.
ALTER ROLE authenticator SET log_parameter_max_length = 0;
ALTER ROLE authenticator SET log_parameter_max_length_on_error = 0;

-- PostgREST calls this function before each request.  apitoken.pre_request() alone
-- is enough; this function also switches anon with a valid token to web_user,
-- so that anon needs no privileges on tables.  It cannot be SECURITY DEFINER:
-- PostgreSQL does not allow such a function to change the role.
CREATE SCHEMA api_private;
GRANT USAGE ON SCHEMA api_private TO anon, web_user;
CREATE FUNCTION api_private.pre_request() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM apitoken.pre_request();
	IF current_user = 'anon' AND apitoken.current_token_id() IS NOT NULL THEN
		PERFORM pg_catalog.set_config('role', 'web_user', true);
	END IF;
END
$$;

-- A database role for the tokens of gateways: services that ask whether tokens
-- are valid (/rpc/introspect), or revoke them (/rpc/revoke_by_token).
CREATE ROLE gateway NOLOGIN;
GRANT gateway TO authenticator;
SELECT apitoken.allow('gateway', 'use', 'verify');
GRANT USAGE ON SCHEMA api_private TO gateway;
INSERT INTO apitoken.roles (name, description, permissions, database_role)
VALUES ('gateway', 'Introspects and revokes tokens by their text, nothing else', '{}', 'gateway');

-- The application's own API: privileges decide which objects are published,
-- policies decide which rows are visible.
CREATE SCHEMA api;
GRANT USAGE ON SCHEMA api TO anon, web_user;
CREATE TABLE api.articles (
	id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	organization_id text NOT NULL,
	title           text NOT NULL
);
CREATE INDEX ON api.articles (organization_id);
GRANT SELECT, INSERT, UPDATE, DELETE ON api.articles TO web_user;
ALTER TABLE api.articles ENABLE ROW LEVEL SECURITY;
CREATE POLICY articles_read ON api.articles FOR SELECT
	USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY articles_create ON api.articles FOR INSERT
	WITH CHECK (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:create'))));
CREATE POLICY articles_update ON api.articles FOR UPDATE
	USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:update'))));
CREATE POLICY articles_delete ON api.articles FOR DELETE
	USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:delete'))));
