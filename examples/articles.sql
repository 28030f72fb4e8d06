-- articles.sql: articles of two organizations.  The examples psycopg, node and
-- perl serve them over HTTP.  Run it in a database of your own, as superuser:
--
--     psql -X -v ON_ERROR_STOP=1 -f examples/articles.sql

CREATE EXTENSION IF NOT EXISTS apitoken;

INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme'), ('globex', 'Globex');
INSERT INTO apitoken.users (id, name) VALUES ('alice', 'Alice'), ('bob', 'Bob');
INSERT INTO apitoken.memberships (organization_id, user_id, role)
VALUES ('acme', 'alice', 'admin'), ('globex', 'bob', 'developer');

CREATE TABLE article (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id text NOT NULL,
    title           text NOT NULL CHECK (title <> ''),
    UNIQUE (organization_id, title)
);
INSERT INTO article (organization_id, title) VALUES ('acme', 'Anvils'), ('globex', 'Doomsday devices');

-- The policies decide who may do what.  The programs need no checks of their own.
ALTER TABLE article ENABLE ROW LEVEL SECURITY;
CREATE POLICY article_read ON article FOR SELECT
    USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY article_create ON article FOR INSERT
    WITH CHECK (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:create'))));

-- A login for each program, with the capabilities that it needs:
--   verify  verify a token in one statement; set the client address
--   use     act by a token
--   act     act as the signed-in user
--   manage  create and list tokens for that user (includes use)
CREATE ROLE app_psycopg LOGIN;
CREATE ROLE app_node LOGIN;
CREATE ROLE app_perl LOGIN;
SELECT apitoken.allow('app_psycopg', 'verify', 'act', 'manage');
SELECT apitoken.allow('app_node', 'verify', 'act', 'manage');
SELECT apitoken.allow('app_perl', 'verify', 'act', 'use');
GRANT SELECT, INSERT ON article TO app_psycopg, app_node, app_perl;

-- Tokens are bind parameters: keep these out of the server log.
ALTER ROLE app_psycopg SET log_parameter_max_length = 0;
ALTER ROLE app_psycopg SET log_parameter_max_length_on_error = 0;
ALTER ROLE app_node SET log_parameter_max_length = 0;
ALTER ROLE app_node SET log_parameter_max_length_on_error = 0;
ALTER ROLE app_perl SET log_parameter_max_length = 0;
ALTER ROLE app_perl SET log_parameter_max_length_on_error = 0;
