--
-- Who is acting in a transaction.
--
-- Most errors are shown by SQLSTATE only: 28000 bad token, 42501 no capability,
-- 25001 a second identity, 25P01 (warning) outside a transaction block.
--
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
\set VERBOSITY sqlstate
\pset format unaligned
\pset tuples_only on
\pset null -

CREATE ROLE regress_apitoken_backend LOGIN;
CREATE ROLE regress_apitoken_client LOGIN;
CREATE ROLE regress_apitoken_weak;
GRANT regress_apitoken_weak TO regress_apitoken_backend;
SELECT apitoken.allow('regress_apitoken_backend', 'act', 'verify', 'manage');
SELECT apitoken.allow('regress_apitoken_weak', 'use');
SELECT apitoken.allow('regress_apitoken_client', 'use');

INSERT INTO apitoken.roles (name, permissions) VALUES
	('reader', '{article:read}'),
	('editor', '{article:read,article:write,page:read}');
INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('globex'), ('initech');
INSERT INTO apitoken.users (id, name, groups, role) VALUES
	('alice', 'Alice', '{staff,eu}', NULL),
	('bob', 'Bob', '{}', NULL),
	('carol', 'Carol', '{eu}', NULL),
	('dora', 'Dora', '{}', 'reader');
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'carol';
INSERT INTO apitoken.memberships VALUES
	('acme', 'alice', 'admin'), ('acme', 'bob', 'editor'), ('globex', 'bob', 'reader'),
	('acme', 'carol', 'admin');

SELECT (apitoken.create_token('o1', organization_id => 'acme', role => 'editor')).token AS org \gset
SELECT (apitoken.create_token('o2', organization_id => 'acme', role => 'editor', access => 'read_only')).token AS org_ro \gset
SELECT (apitoken.create_token('o3', organization_id => 'initech')).token AS org_gone \gset
SELECT (apitoken.create_token('u1', user_id => 'alice')).token AS alice \gset
SELECT (apitoken.create_token('u2', user_id => 'alice', permissions => '{article:read}')).token AS alice_custom \gset
SELECT (apitoken.create_token('u3', user_id => 'bob', access => 'read_only')).token AS bob_ro \gset
SELECT (apitoken.create_token('u4', user_id => 'bob')).token AS bob \gset
SELECT (apitoken.create_token('u5', user_id => 'dora')).token AS dora \gset
SELECT (apitoken.create_token('u6', user_id => 'alice')).token AS revoked \gset
SELECT apitoken.revoke_by_token(:'revoked');
SELECT apitoken.generate('usr') AS unknown \gset

-- shows who is acting, the role, the groups, and whether it is read-only
\set who 'SELECT apitoken.whoami()->>\'source\', apitoken.current_user_id(), apitoken.current_organization_id(), apitoken.current_token_id() IS NOT NULL, apitoken.current_role_name(), apitoken.current_groups(), apitoken.whoami()->>\'read_only\''

--
-- Each kind of principal
--
:who;
SET SESSION AUTHORIZATION regress_apitoken_client;
:who;
SELECT apitoken.current_groups() IS NULL, (SELECT count(*) FROM apitoken.organizations_allowed('article:read'));
BEGIN; SELECT valid, verdict, kind, organization_id, user_id, role, access, permissions FROM apitoken.authenticate(:'org'); :who; COMMIT;
BEGIN; SELECT valid, verdict, kind, organization_id, user_id, role, access, permissions FROM apitoken.authenticate(:'org_ro'); :who; COMMIT;
BEGIN; SELECT valid, verdict, kind, organization_id, user_id, role, access, permissions FROM apitoken.authenticate(:'alice'); :who; COMMIT;
BEGIN; SELECT valid, verdict, kind, organization_id, user_id, role, access, permissions FROM apitoken.authenticate(:'bob_ro'); :who; COMMIT;
BEGIN; SELECT valid, verdict, kind, organization_id, user_id, role, access, permissions FROM apitoken.authenticate(:'dora'); :who; COMMIT;
-- no identity outlives its transaction
:who;
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN; SELECT apitoken.act_as('alice'); SELECT apitoken.whoami(); :who; COMMIT;
BEGIN; SELECT apitoken.act_as('dora'); SELECT apitoken.whoami(); :who; COMMIT;
-- a user that nobody has heard of may be acted as; a suspended one sees nothing
BEGIN; SELECT apitoken.act_as('nobody'); SELECT apitoken.whoami(); :who; SELECT apitoken.can('article:read'), apitoken.can('article:read', 'acme'); COMMIT;
BEGIN; SELECT apitoken.act_as('carol'); SELECT apitoken.whoami(); :who; SELECT apitoken.can('article:read'), apitoken.can('article:read', 'acme'), count(*) FROM apitoken.organizations_allowed('article:read'); COMMIT;
-- Another spelling of an id is refused, whether there is such a user or not: a policy
-- with a cast would take it for the same user, and a suspension would not.
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.users (id, suspended_at) VALUES ('a11ce000-0000-4000-8000-000000000003', now()), ('19', now());
SET SESSION AUTHORIZATION regress_apitoken_backend;
SELECT apitoken.act_as('A11CE000-0000-4000-8000-000000000003');
SELECT apitoken.act_as('{a11ce000-0000-4000-8000-000000000003}');
SELECT apitoken.act_as('a11ce00000004000800000000000000a');
SELECT apitoken.act_as('019');
SELECT apitoken.act_as(' 19');
SELECT apitoken.act_as(E'19\n');
BEGIN; SET LOCAL apitoken.user_id = 'A11CE000-0000-4000-8000-000000000003'; :who; ROLLBACK;
BEGIN; SELECT set_config('apitoken.user_id', '+19', true); ROLLBACK;
\set VERBOSITY default
SELECT apitoken.act_as('A11CE000-0000-4000-8000-000000000003');
SELECT apitoken.act_as('019');
BEGIN; SET LOCAL apitoken.user_id = '019'; ROLLBACK;
\set VERBOSITY sqlstate
-- a value from before the library was loaded is refused when it is used, not ignored
\c
SET SESSION AUTHORIZATION regress_apitoken_backend;
SET client_min_messages = error;
DO $$BEGIN EXECUTE $s$SET LOCAL apitoken.user_id = '019'$s$; PERFORM apitoken.current_user_id(); END$$;
RESET client_min_messages;
BEGIN; SELECT apitoken.act_as('a11ce000-0000-4000-8000-000000000003'); SELECT apitoken.can('article:read'), apitoken.whoami()->'suspended'; COMMIT;
RESET SESSION AUTHORIZATION;
DELETE FROM apitoken.users WHERE id IN ('a11ce000-0000-4000-8000-000000000003', '19');
SET SESSION AUTHORIZATION regress_apitoken_backend;
-- not an id
SELECT apitoken.act_as(NULL);
SELECT apitoken.act_as('');
SELECT apitoken.act_as(repeat('x', 256));
BEGIN; SELECT apitoken.act_as(repeat('x', 255)) IS NOT NULL; COMMIT;
:who;
RESET SESSION AUTHORIZATION;

-- whoami() as superuser, and with a token that bypasses row-level security
SELECT apitoken.whoami() - 'database_user';
BEGIN; SELECT (apitoken.authenticate(:'org_ro')).valid; SELECT apitoken.whoami() - 'database_user' - 'token_id'; COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_client;
SELECT apitoken.whoami();
BEGIN; SELECT (apitoken.authenticate(:'alice_custom')).valid; SELECT apitoken.whoami() - 'token_id'; COMMIT;
RESET SESSION AUTHORIZATION;
-- it returns the id of the given token, not of another one
BEGIN;
SELECT (apitoken.authenticate(:'org')).token_id = (SELECT id FROM apitoken.tokens WHERE label = 'o1');
SELECT apitoken.current_token_id() = (SELECT id FROM apitoken.tokens WHERE label = 'o1'),
	apitoken.whoami()->>'token_id' = apitoken.current_token_id()::text;
COMMIT;

--
-- A bad token is an error, never anonymous
--
SET SESSION AUTHORIZATION regress_apitoken_client;
SELECT apitoken.authenticate(:'unknown');
SELECT apitoken.authenticate(:'revoked');
SELECT apitoken.authenticate(NULL);
SELECT apitoken.authenticate('');
SELECT apitoken.authenticate('garbage');
\set VERBOSITY default
SELECT apitoken.authenticate(:'revoked');
\set VERBOSITY sqlstate
BEGIN; SET LOCAL apitoken.token = 'garbage'; SELECT apitoken.current_user_id(); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = 'garbage'; SELECT 1; ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'unknown'; SELECT 1; ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'revoked'; SELECT 1; ROLLBACK;
-- a user id in addition does not hide a bad token
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SET LOCAL apitoken.token = :'revoked'; :who; ROLLBACK;
-- a transaction with a bad token can be ended, and the token can be cleared before its first use
BEGIN; SET LOCAL apitoken.token = 'garbage'; COMMIT;
BEGIN; SET LOCAL apitoken.token = 'garbage'; SET LOCAL apitoken.token = ''; :who; COMMIT;

--
-- Capability act: the session user must hold it, whatever the current role
--
SET SESSION AUTHORIZATION regress_apitoken_client;
SELECT apitoken.act_as('alice');
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT apitoken.current_user_id(); ROLLBACK;
\set VERBOSITY default
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; ROLLBACK;
\set VERBOSITY sqlstate
-- a SECURITY DEFINER function does not lend its owner's capability
RESET SESSION AUTHORIZATION;
CREATE SCHEMA ident;
GRANT USAGE ON SCHEMA ident TO PUBLIC;
CREATE FUNCTION ident.definer() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$SELECT apitoken.act_as('alice')$$;
CREATE FUNCTION ident.definer_setting() RETURNS text LANGUAGE sql SECURITY DEFINER SET apitoken.user_id = 'alice' AS $$SELECT apitoken.current_user_id()$$;
SET SESSION AUTHORIZATION regress_apitoken_client;
SELECT ident.definer();
SELECT ident.definer_setting();
-- a token needs no capability
BEGIN; SET LOCAL apitoken.token = :'alice'; :who; COMMIT;
-- a trusted login that enters a weaker role keeps the capability and gains none
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN; SET LOCAL ROLE regress_apitoken_weak; SELECT apitoken.act_as('alice'); ROLLBACK;
BEGIN; SET LOCAL ROLE regress_apitoken_weak; SET LOCAL apitoken.user_id = 'alice'; :who; COMMIT;

--
-- Precedence: the token before the user id
--
BEGIN; SET LOCAL apitoken.user_id = 'dora'; SET LOCAL apitoken.token = :'bob'; :who; COMMIT;
BEGIN; SET LOCAL apitoken.token = :'bob'; SET LOCAL apitoken.user_id = 'dora'; :who; COMMIT;

--
-- Settings that do not count
--
-- empty
BEGIN; SET LOCAL apitoken.user_id = ''; SET LOCAL apitoken.token = ''; :who; COMMIT;
-- session-wide, set in an earlier transaction or outside of one (with a warning)
SET apitoken.user_id = 'alice';
:who;
BEGIN; :who; COMMIT;
BEGIN; SAVEPOINT s; :who; RELEASE s; :who; COMMIT;
BEGIN; SET apitoken.user_id = 'bob'; :who; COMMIT;
SHOW apitoken.user_id;
:who;
BEGIN; :who; COMMIT;
-- taking another value back does not revive the stale value
BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = 'alice'; ROLLBACK TO s; SHOW apitoken.user_id; :who; COMMIT;
BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = ''; RELEASE s; :who; COMMIT;
BEGIN; RESET apitoken.user_id; :who; ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id TO DEFAULT; :who; COMMIT;
SHOW apitoken.user_id;
:who;
-- a value, set and reset in the transaction
BEGIN; SET LOCAL apitoken.user_id = 'alice'; RESET apitoken.user_id; :who; ROLLBACK;
SHOW apitoken.user_id;
BEGIN; DO $$BEGIN PERFORM set_config('apitoken.user_id', 'alice', true); PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN NULL; END$$; SHOW apitoken.user_id; :who; COMMIT;
RESET apitoken.user_id;
RESET ALL;
-- a session-wide token does not count either; even a bad one does not fail
SET apitoken.token = :'alice';
:who;
SET apitoken.token = 'garbage';
:who;
BEGIN; :who; COMMIT;
RESET apitoken.token;
-- a transaction's own value ends with the transaction
BEGIN; SET LOCAL apitoken.user_id = 'alice'; COMMIT;
:who;
BEGIN; SELECT set_config('apitoken.user_id', 'alice', false); ROLLBACK;
:who;
-- an error in the transaction ends it as well
BEGIN; SET LOCAL apitoken.user_id = 'alice'; :who; SELECT 1/0; ROLLBACK;
:who;
-- nobody can read a token back from the setting
BEGIN; SET LOCAL apitoken.token = :'alice'; SHOW apitoken.token; SELECT current_setting('apitoken.token'), count(*) FROM pg_settings WHERE setting = :'alice' OR reset_val = :'alice'; COMMIT;
SHOW apitoken.token;

--
-- Settings that count
--
BEGIN; SET apitoken.user_id = 'alice'; :who; ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; :who; COMMIT;
BEGIN; SELECT set_config('apitoken.user_id', 'alice', true); :who; COMMIT;
BEGIN; SELECT set_config('apitoken.user_id', 'alice', false); :who; ROLLBACK;
-- set and used in one expression
BEGIN; SELECT set_config('apitoken.user_id', 'alice', true), apitoken.current_user_id(); COMMIT;
-- through savepoints
BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = 'alice'; RELEASE s; :who; COMMIT;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SAVEPOINT s; SET LOCAL apitoken.user_id = 'bob'; ROLLBACK TO s; :who; COMMIT;
-- from a block with EXCEPTION that succeeded
BEGIN; DO $$BEGIN PERFORM set_config('apitoken.user_id', 'alice', true); EXCEPTION WHEN division_by_zero THEN NULL; END$$; :who; COMMIT;
-- the same value as the stale one, but set here
SET apitoken.user_id = 'alice';
BEGIN; SET LOCAL apitoken.user_id = 'alice'; :who; COMMIT;
:who;
RESET apitoken.user_id;
-- in one message of several statements, which is one transaction
SET apitoken.user_id = 'alice' \; SELECT apitoken.current_user_id();
RESET apitoken.user_id;
-- a function's SET clause
RESET SESSION AUTHORIZATION;
CREATE FUNCTION ident.clause() RETURNS text LANGUAGE plpgsql SET apitoken.user_id = 'bob' AS $$BEGIN RETURN apitoken.current_user_id(); END$$;
CREATE FUNCTION ident.clause_unset() RETURNS text LANGUAGE plpgsql SET apitoken.user_id = '' AS $$BEGIN RETURN apitoken.current_user_id(); END$$;
CREATE FUNCTION ident.clause_over() RETURNS text LANGUAGE plpgsql SET apitoken.user_id = '' AS $$BEGIN PERFORM set_config('apitoken.user_id', 'bob', true); RETURN apitoken.current_user_id(); END$$;
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN; SELECT ident.clause(); :who; COMMIT;
BEGIN; SET LOCAL apitoken.user_id = 'bob'; SELECT ident.clause(); COMMIT;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT ident.clause(); ROLLBACK;
-- a clause with an empty value does not make an acting user anonymous
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT ident.clause_unset(); COMMIT;
BEGIN; SELECT ident.clause_over(); :who; COMMIT;
-- a stale value under a function's clause
SET apitoken.user_id = 'alice';
BEGIN; SELECT ident.clause_unset(); :who; COMMIT;
RESET apitoken.user_id;
:who;
-- an id that is too long
BEGIN; SELECT set_config('apitoken.user_id', repeat('x', 256), true); ROLLBACK;

--
-- The latch: one identity per transaction, however a second one is set
--
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT apitoken.act_as('bob'); ROLLBACK;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT apitoken.authenticate(:'alice'); ROLLBACK;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SET LOCAL apitoken.user_id = 'bob'; SELECT 1; ROLLBACK;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SET LOCAL apitoken.token = :'alice'; SELECT 1; ROLLBACK;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SELECT apitoken.authenticate(:'bob'); ROLLBACK;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SELECT apitoken.authenticate(:'alice_custom'); ROLLBACK;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SELECT apitoken.act_as('alice'); ROLLBACK;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; ROLLBACK;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SET LOCAL apitoken.token = :'bob'; SELECT 1; ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; SET LOCAL apitoken.user_id = 'bob'; SELECT 1; ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; SET LOCAL apitoken.token = :'bob'; SELECT 1; ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT apitoken.act_as('bob'); ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT apitoken.authenticate(:'bob'); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'alice'; SELECT apitoken.act_as('alice'); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'alice'; SELECT 1; SET LOCAL apitoken.token = :'bob'; SELECT 1; ROLLBACK;
-- the first use is a utility statement
BEGIN; SET LOCAL apitoken.user_id = 'alice'; LISTEN x; SET LOCAL apitoken.user_id = 'bob'; SELECT 1; ROLLBACK;
-- a bad token after an identity is an error as well, and so is a user id without act
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SET LOCAL apitoken.token = 'garbage'; SELECT 1; ROLLBACK;
SET SESSION AUTHORIZATION regress_apitoken_client;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; ROLLBACK;
SET SESSION AUTHORIZATION regress_apitoken_backend;
\set VERBOSITY default
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT apitoken.act_as('bob'); ROLLBACK;
\set VERBOSITY sqlstate
-- in one statement
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL, apitoken.act_as('bob') IS NOT NULL; ROLLBACK;
BEGIN; SELECT set_config('apitoken.user_id', 'alice', true), apitoken.current_user_id(), set_config('apitoken.user_id', 'bob', true), apitoken.current_user_id(); ROLLBACK;
-- one expression resets the role and changes the user id before the identity is used
BEGIN;
SET LOCAL ROLE regress_apitoken_weak;
SET LOCAL apitoken.user_id = 'alice';
SELECT set_config('role', 'none', true), set_config('apitoken.user_id', 'bob', true), apitoken.current_user_id();
ROLLBACK;
BEGIN;
SET LOCAL ROLE regress_apitoken_weak;
SET LOCAL apitoken.user_id = 'alice';
SELECT set_config('role', 'none', true), set_config('apitoken.user_id', '', true), set_config('apitoken.token', :'bob', true), apitoken.current_user_id();
ROLLBACK;
BEGIN;
SET LOCAL ROLE regress_apitoken_weak;
SET LOCAL apitoken.user_id = 'alice';
SELECT query_to_xml($$SELECT set_config('role', 'none', true), set_config('apitoken.user_id', 'bob', true)$$, true, true, '') IS NOT NULL,
	query_to_xml('SELECT apitoken.current_user_id()', true, true, '') IS NOT NULL;
ROLLBACK;
-- clearing the setting in between does not change the identity
BEGIN;
SET LOCAL apitoken.user_id = 'alice';
SELECT set_config('role', 'none', true), set_config('apitoken.user_id', '', true), apitoken.current_user_id();
:who;
COMMIT;
-- setting the same identity twice works, in any way
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT apitoken.act_as('alice') IS NOT NULL; SET LOCAL apitoken.user_id = 'alice'; :who; COMMIT;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SELECT (apitoken.authenticate(:'alice')).valid; SET LOCAL apitoken.token = :'alice'; :who; COMMIT;
BEGIN; SET LOCAL apitoken.token = :'alice'; SET LOCAL apitoken.user_id = 'dora'; SELECT (apitoken.authenticate(:'alice')).valid; :who; COMMIT;
-- anonymous is not an identity: a user may follow it
BEGIN; :who; SELECT apitoken.act_as('alice') IS NOT NULL; :who; COMMIT;
-- until the first use, settings may change
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SET LOCAL apitoken.user_id = 'bob'; SHOW apitoken.user_id; :who; COMMIT;

-- ROLLBACK TO takes the latch back, RELEASE does not
BEGIN; SAVEPOINT s; SELECT apitoken.act_as('alice') IS NOT NULL; ROLLBACK TO s; :who; SELECT apitoken.act_as('bob') IS NOT NULL; :who; COMMIT;
BEGIN; SAVEPOINT s; SELECT apitoken.act_as('alice') IS NOT NULL; RELEASE s; :who; SELECT apitoken.act_as('bob') IS NOT NULL; ROLLBACK;
BEGIN; SAVEPOINT s; SAVEPOINT t; SELECT apitoken.act_as('alice') IS NOT NULL; RELEASE t; ROLLBACK TO s; :who; COMMIT;
BEGIN; SAVEPOINT s; SAVEPOINT t; SELECT apitoken.act_as('alice') IS NOT NULL; RELEASE t; SAVEPOINT u; ROLLBACK TO u; :who; ROLLBACK TO s; :who; COMMIT;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SAVEPOINT s; ROLLBACK TO s; :who; SELECT apitoken.act_as('bob') IS NOT NULL; ROLLBACK;
-- a failed second identity leaves the first
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SAVEPOINT s; SELECT apitoken.act_as('bob'); ROLLBACK TO s; :who; COMMIT;
-- a setting from before the savepoint stands again
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SAVEPOINT s; SELECT 1; ROLLBACK TO s; :who; COMMIT;
-- one from after it does not
BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; ROLLBACK TO s; :who; SET LOCAL apitoken.user_id = 'bob'; :who; COMMIT;
-- blocks with EXCEPTION: a successful one keeps the identity, a failed one does not
BEGIN; DO $$BEGIN PERFORM apitoken.act_as('alice'); EXCEPTION WHEN division_by_zero THEN NULL; END$$; :who; SELECT apitoken.act_as('bob'); ROLLBACK;
BEGIN; DO $$BEGIN PERFORM apitoken.act_as('alice'); PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN NULL; END$$; :who; SELECT apitoken.act_as('bob') IS NOT NULL; COMMIT;
-- a loop that tries one after another
\set VERBOSITY terse
BEGIN;
DO $$
DECLARE
	who text;
BEGIN
	FOREACH who IN ARRAY '{alice,bob,dora}'::text[] LOOP
		BEGIN
			PERFORM apitoken.act_as(who);
			RAISE NOTICE '% as %', who, apitoken.current_user_id();
		EXCEPTION WHEN active_sql_transaction THEN
			RAISE NOTICE '%: %, still %', who, SQLERRM, apitoken.current_user_id();
		END;
	END LOOP;
END
$$;
ROLLBACK;
-- a procedure that commits may have another identity in each of its transactions
DO $$
BEGIN
	PERFORM apitoken.act_as('alice');
	RAISE NOTICE '%', apitoken.current_user_id();
	COMMIT;
	RAISE NOTICE '%', apitoken.current_user_id();
	PERFORM apitoken.act_as('bob');
	RAISE NOTICE '%', apitoken.current_user_id();
	ROLLBACK;
	RAISE NOTICE '%', apitoken.current_user_id();
END
$$;
\set VERBOSITY sqlstate
-- AND CHAIN does not pass the identity on
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; COMMIT AND CHAIN; :who; ROLLBACK AND CHAIN; :who; COMMIT;

--
-- Outside a transaction block: a warning, and no effect on what follows
--
SELECT valid, user_id FROM apitoken.authenticate(:'alice');
:who;
SELECT apitoken.act_as('alice');
:who;
SET apitoken.user_id = 'alice';
SET apitoken.user_id = '';
SELECT set_config('apitoken.user_id', 'alice', true);
:who;
SET apitoken.client_address = '192.0.2.1';
RESET apitoken.client_address;
\set VERBOSITY default
SELECT apitoken.act_as('alice');
SET apitoken.user_id = 'alice';
RESET apitoken.user_id;
\set VERBOSITY sqlstate
RESET SESSION AUTHORIZATION;

--
-- can(): what, where, by ids of any type
--
INSERT INTO apitoken.organizations (id) VALUES ('42'), ('5000000000'), ('5f0e7d4c-2a57-4d3a-9d8e-0123456789ab');
INSERT INTO apitoken.memberships
	SELECT id, 'bob', 'reader' FROM unnest('{42,5000000000,5f0e7d4c-2a57-4d3a-9d8e-0123456789ab}'::text[]) id;
SET SESSION AUTHORIZATION regress_apitoken_backend;
-- anonymous: nothing, whatever the id
SELECT apitoken.can('article:read'), apitoken.can('article:read', NULL), apitoken.can('article:read', 'acme'), apitoken.can('article:read', 42), apitoken.can(NULL, 'acme');
BEGIN;
SELECT apitoken.act_as('bob') IS NOT NULL;
SELECT apitoken.can('article:read', 'acme'), apitoken.can('article:write', 'acme'::text), apitoken.can('article:write', 'acme'::varchar), apitoken.can('article:write', 'acme'::name),
	apitoken.can('article:delete', 'acme'), apitoken.can('token:read', 'acme');
SELECT apitoken.can('article:read', 42), apitoken.can('article:read', 42::bigint), apitoken.can('article:read', 42::smallint), apitoken.can('article:read', 5000000000),
	apitoken.can('article:read', '5f0e7d4c-2a57-4d3a-9d8e-0123456789ab'::uuid), apitoken.can('article:read', '5F0E7D4C-2A57-4D3A-9D8E-0123456789AB'::uuid);
SELECT apitoken.can('article:write', 42), apitoken.can('article:read', 43), apitoken.can('article:read', 43::bigint), apitoken.can('article:read', '00000000-0000-0000-0000-000000000000'::uuid),
	apitoken.can('article:read', '5F0E7D4C-2A57-4D3A-9D8E-0123456789AB'), apitoken.can('article:read', ''), apitoken.can('article:read', 'globex '), apitoken.can('article:read', 'no such');
-- null ids of each type: the caller's own data
SELECT apitoken.can('article:write', NULL::uuid), apitoken.can('article:write', NULL::bigint), apitoken.can('article:write', NULL::text), apitoken.can('article:write', NULL), apitoken.can('article:write');
SELECT apitoken.can(NULL), apitoken.can(NULL, 'acme');
-- an id from a column and from a parameter
SELECT id, apitoken.can('article:read', id) FROM (VALUES (42), (43)) v (id);
PREPARE can_int (int) AS SELECT apitoken.can('article:read', $1);
PREPARE can_text AS SELECT apitoken.can('article:read', $1::text);
PREPARE can_untyped AS SELECT apitoken.can('article:read', $1);
EXECUTE can_int (42); EXECUTE can_int (43); EXECUTE can_int (NULL); EXECUTE can_text ('acme'); EXECUTE can_text ('nowhere');
EXECUTE can_untyped ('acme'); EXECUTE can_untyped ('nowhere'); EXECUTE can_untyped (42);
DEALLOCATE ALL;
-- an organization in another spelling is no organization: can() and verify() find nothing there
SELECT apitoken.can('article:read', '042'), apitoken.can('article:read', '+42'), apitoken.can('article:read', ' 42'), apitoken.can('article:read', '{5f0e7d4c-2a57-4d3a-9d8e-0123456789ab}');
SELECT o, verdict FROM unnest('{42,042,"{5f0e7d4c-2a57-4d3a-9d8e-0123456789ab}",5f0e7d4c-2a57-4d3a-9d8e-0123456789ab}'::text[]) o, apitoken.verify(:'bob', 'article:read', o);
SELECT count(*), string_agg(o, ' ' ORDER BY o COLLATE "C") FROM apitoken.organizations_allowed('article:read') o;
SELECT o FROM apitoken.organizations_allowed('article:write') o;
SELECT o FROM apitoken.organizations_allowed('article:delete') o;
SELECT o FROM apitoken.organizations_allowed(NULL) o;
SAVEPOINT s; SELECT apitoken.can('*'); ROLLBACK TO s;
SELECT apitoken.can('article'); ROLLBACK TO s;
SELECT apitoken.can('article:*', 'acme'); ROLLBACK TO s;
SELECT apitoken.organizations_allowed('article:*'); ROLLBACK TO s;
COMMIT;

--
-- Every function takes ids as drivers send them: as a number, a uuid, one of the
-- types of text, or without a type; also by name.
--
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.organizations (id) VALUES ('5');
INSERT INTO apitoken.memberships SELECT o, u, 'admin'
	FROM unnest('{5,42,5000000000,5f0e7d4c-2a57-4d3a-9d8e-0123456789ab}'::text[]) o, unnest('{7,70000,7000000000,5f0e7d4c-2a57-4d3a-9d8e-0123456789ac,ann}'::text[]) u;
CREATE TYPE ident.color AS ENUM ('red');
CREATE DOMAIN ident.key AS uuid;
CREATE FUNCTION ident.send(statement text, type text, VARIADIC ids text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	EXECUTE 'PREPARE sent' || CASE WHEN type = '' THEN '' ELSE '(' || concat_ws(', ', VARIADIC array_fill(type, ARRAY[cardinality(ids)])) || ')' END || ' AS ' || statement;
	EXECUTE 'EXECUTE sent (' || (SELECT string_agg(quote_nullable(id), ', ') FROM unnest(ids) id) || ')' INTO answer;
	DEALLOCATE sent;
	RETURN answer;
EXCEPTION WHEN OTHERS THEN
	IF EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'sent') THEN DEALLOCATE sent; END IF;
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
CREATE TABLE ident.sent (n int GENERATED ALWAYS AS IDENTITY, type text, user_id text, organization_id text);
INSERT INTO ident.sent (type, user_id, organization_id) VALUES ('smallint', '7', '5'), ('integer', '70000', '42'), ('bigint', '7000000000', '5000000000'),
	('uuid', '5F0E7D4C2A574D3A9D8E0123456789AC', '5F0E7D4C2A574D3A9D8E0123456789AB'), ('ident.key', '5F0E7D4C2A574D3A9D8E0123456789AC', '5F0E7D4C2A574D3A9D8E0123456789AB'),
	('text', 'ann', '42'), ('varchar', 'ann', '42'), ('name', 'ann', '42'), ('', 'ann', '42'), ('', '7', '5'),
	-- refused as text of the same spelling is
	('text', '007', '5'), ('text', '5F0E7D4C2A574D3A9D8E0123456789AC', '5'), ('', '+7', '5'), ('', '', '5'), ('bigint', NULL, '5'), ('uuid', NULL, '5');
GRANT USAGE ON SCHEMA ident TO regress_apitoken_backend;
GRANT SELECT ON ident.sent TO regress_apitoken_backend;
SET SESSION AUTHORIZATION regress_apitoken_backend;
CREATE FUNCTION pg_temp.each(statement text) RETURNS TABLE (type text, user_id text, organization_id text, acted text, answer text) LANGUAGE plpgsql AS $$
BEGIN
	FOR type, user_id, organization_id IN SELECT s.type, s.user_id, s.organization_id FROM ident.sent s ORDER BY n LOOP
		BEGIN
			acted := ident.send('SELECT apitoken.act_as($1)', type, user_id);
			PERFORM ident.send('SELECT apitoken.create_token(''made'', organization_id => $1)', type, organization_id);
			answer := ident.send(statement, type, VARIADIC CASE WHEN statement ~ '\$2' THEN ARRAY[organization_id, user_id] ELSE ARRAY[organization_id] END);
			RETURN NEXT;
			RAISE EXCEPTION SQLSTATE 'ZZ001';
		EXCEPTION WHEN SQLSTATE 'ZZ001' THEN
		END;
	END LOOP;
END $$;
SELECT * FROM pg_temp.each('SELECT masked IS NOT NULL FROM apitoken.create_token(''sent'', organization_id => $1)');
SELECT type, organization_id, answer FROM pg_temp.each('SELECT masked IS NOT NULL FROM apitoken.create_token(''sent'', $1, role => ''developer'')') WHERE acted !~ ' ';
SELECT type, user_id, answer FROM pg_temp.each('SELECT masked IS NOT NULL FROM apitoken.create_token(''sent'', organization_id => NULLIF($1, $1), user_id => $2)') WHERE acted !~ ' ';
SELECT type, organization_id, answer FROM pg_temp.each('SELECT apitoken.can(''article:read'', organization_id => $1)') WHERE acted !~ ' ';
SELECT type, organization_id, answer FROM pg_temp.each('SELECT count(*) FROM apitoken.list_tokens(organization_id => $1)') WHERE acted !~ ' ';
SELECT type, organization_id, answer FROM pg_temp.each('SELECT apitoken.revoke_tokens(organization_id => $1, created_by => $2)') WHERE acted !~ ' ';
SELECT type, organization_id, answer FROM pg_temp.each('SELECT verdict FROM apitoken.verify(''x'', ''article:read'', organization_id => $1)') WHERE acted !~ ' ';
-- by name
BEGIN; SELECT apitoken.act_as(user_id => 7::smallint), apitoken.current_user_id(); COMMIT;
-- not what is no key
SELECT ident.send('SELECT apitoken.act_as($1)', t, v) FROM (VALUES ('numeric', '7.0'), ('ident.color', 'red'), ('json', '7'), ('double precision', '7'), ('text[]', '{7}'), ('boolean', 't'), ('char(9)', 'ann')) s (t, v);
RESET SESSION AUTHORIZATION;
DELETE FROM apitoken.organizations WHERE id = '5';
DELETE FROM apitoken.memberships WHERE role = 'admin' AND user_id IN ('7', '70000', '7000000000', '5f0e7d4c-2a57-4d3a-9d8e-0123456789ac', 'ann');
SET SESSION AUTHORIZATION regress_apitoken_backend;

-- a user's role limits them only outside organizations
BEGIN; SELECT apitoken.act_as('dora') IS NOT NULL; SELECT apitoken.can('article:read'), apitoken.can('article:write'), apitoken.can('article:read', 'acme'); COMMIT;
-- an organization's token: only its own organization; null means the same
BEGIN; SELECT (apitoken.authenticate(:'org')).valid;
SELECT apitoken.can('article:write'), apitoken.can('article:write', 'acme'), apitoken.can('article:read', 'globex'), apitoken.can('article:read', 42), apitoken.can('article:delete'), apitoken.can('token:read');
SELECT apitoken.organizations_allowed('article:write'), apitoken.organizations_allowed('page:read'); COMMIT;
-- narrowed by access
BEGIN; SELECT (apitoken.authenticate(:'org_ro')).valid; SELECT apitoken.can('article:read'), apitoken.can('article:write'), apitoken.can('page:read', 'acme'); SELECT apitoken.organizations_allowed('article:write'); COMMIT;
BEGIN; SELECT (apitoken.authenticate(:'alice_custom')).valid; SELECT apitoken.can('article:read'), apitoken.can('article:write'), apitoken.can('article:read', 'acme'), apitoken.can('page:read', 'acme'), apitoken.can('article:read', 'globex'); COMMIT;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; SELECT apitoken.can('article:write', 'acme'), apitoken.can('token:read', 'acme'), apitoken.can('token:read'), apitoken.can('article:read', 'globex'); COMMIT;

--
-- Identity calls write nothing: READ ONLY works, and no transaction id is taken
--
RESET SESSION AUTHORIZATION;
-- used just now, so that there is nothing to write
UPDATE apitoken.token_usage SET last_used_at = clock_timestamp();
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN; SELECT valid FROM apitoken.authenticate(:'alice'); :who; SELECT apitoken.can('article:read', 'acme'), apitoken.organizations_allowed('article:read'), pg_current_xact_id_if_assigned(); COMMIT;
BEGIN; SELECT valid FROM apitoken.verify(:'alice'); SELECT pg_current_xact_id_if_assigned(); COMMIT;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; :who; SELECT pg_current_xact_id_if_assigned(); COMMIT;
BEGIN; SET LOCAL apitoken.token = :'bob'; :who; SELECT pg_current_xact_id_if_assigned(); COMMIT;
RESET SESSION AUTHORIZATION;
SELECT apitoken.flush_usage();
UPDATE apitoken.token_usage SET last_used_at = NULL;
SET SESSION AUTHORIZATION regress_apitoken_backend;
-- never used, but READ ONLY or with a snapshot of its own
BEGIN READ ONLY; SELECT valid FROM apitoken.authenticate(:'alice'); :who; SELECT valid FROM apitoken.verify(:'bob'); SELECT pg_current_xact_id_if_assigned(); COMMIT;
BEGIN READ ONLY; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT pg_current_xact_id_if_assigned(); COMMIT;
BEGIN READ ONLY; SET LOCAL apitoken.token = :'alice'; :who; SELECT pg_current_xact_id_if_assigned(); COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT valid FROM apitoken.authenticate(:'alice'); SELECT valid FROM apitoken.verify(:'bob'); SELECT pg_current_xact_id_if_assigned(); COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; SELECT valid FROM apitoken.authenticate(:'alice'); SELECT pg_current_xact_id_if_assigned(); COMMIT;
-- a setting's token is recorded in shared memory only
BEGIN; SET LOCAL apitoken.token = :'dora'; :who; SELECT pg_current_xact_id_if_assigned(); COMMIT;
-- control: a transaction id is taken when there is something to write; with shared preload
-- there never is
RESET SESSION AUTHORIZATION;
SELECT preloaded FROM apitoken.stats \gset
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN; SELECT valid FROM apitoken.authenticate(:'alice'); SELECT pg_current_xact_id_if_assigned() IS NULL = :'preloaded' AS right; COMMIT;
RESET SESSION AUTHORIZATION;
SELECT apitoken.flush_usage();
SELECT string_agg(user_id, ' ' ORDER BY user_id) = CASE WHEN :'preloaded' THEN 'alice bob dora' ELSE 'alice' END AS right
FROM apitoken.tokens WHERE last_used_at IS NOT NULL;

--
-- Each statement reads memberships, roles and suspensions again.  An identity
-- stays, even if its token is revoked
--
GRANT SELECT, INSERT, UPDATE, DELETE ON apitoken.memberships, apitoken.roles, apitoken.users, apitoken.organizations TO regress_apitoken_backend;
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT apitoken.act_as('bob') IS NOT NULL;
SELECT apitoken.can('article:write', 'acme');
UPDATE apitoken.memberships SET role = 'reader' WHERE (organization_id, user_id) = ('acme', 'bob');
SELECT apitoken.can('article:write', 'acme'), apitoken.can('article:read', 'acme');
UPDATE apitoken.roles SET permissions = '{page:read}' WHERE name = 'reader';
SELECT apitoken.can('article:read', 'acme'), apitoken.can('page:read', 'acme');
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme';
SELECT apitoken.can('page:read', 'acme'), apitoken.can('page:read', 'globex');
DELETE FROM apitoken.memberships WHERE user_id = 'bob';
SELECT apitoken.can('page:read', 'globex'), apitoken.can('article:read');
UPDATE apitoken.users SET groups = '{new}' WHERE id = 'bob';
:who;
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'bob';
SELECT apitoken.can('article:read');
:who;
ROLLBACK;
BEGIN;
SELECT valid FROM apitoken.authenticate(:'bob');
SELECT apitoken.revoke_by_token(:'bob');
:who;
SELECT apitoken.can('article:write', 'acme');
SAVEPOINT s;
-- but it is not verified again
SELECT apitoken.authenticate(:'bob');
ROLLBACK TO s;
SELECT valid, verdict FROM apitoken.verify(:'bob');
:who;
ROLLBACK;
-- an identity that ROLLBACK TO took back does not return
BEGIN;
SAVEPOINT s;
SELECT (apitoken.authenticate(:'org_gone')).valid;
:who;
ROLLBACK TO s;
DELETE FROM apitoken.organizations WHERE id = 'initech';
SAVEPOINT t;
SELECT (apitoken.authenticate(:'org_gone')).valid;
ROLLBACK TO t;
:who;
ROLLBACK;
RESET SESSION AUTHORIZATION;
REVOKE ALL ON apitoken.memberships, apitoken.roles, apitoken.users, apitoken.organizations FROM regress_apitoken_backend;

--
-- The recommended policy, on tables with keys of type uuid, bigint and text
--
CREATE TABLE ident.article_uuid (organization_id uuid, n int);
CREATE TABLE ident.article_bigint (organization_id bigint, n int);
CREATE TABLE ident.article_text (organization_id text, n int);
INSERT INTO ident.article_uuid SELECT CASE n % 3 WHEN 0 THEN '5f0e7d4c-2a57-4d3a-9d8e-0123456789ab'::uuid ELSE gen_random_uuid() END, n FROM generate_series(1, 300) n;
INSERT INTO ident.article_bigint SELECT CASE n % 3 WHEN 0 THEN 42 WHEN 1 THEN 5000000000 ELSE 7 END, n FROM generate_series(1, 300) n;
INSERT INTO ident.article_text SELECT CASE n % 3 WHEN 0 THEN 'acme' WHEN 1 THEN 'globex' ELSE 'initech' END, n FROM generate_series(1, 300) n;
ALTER TABLE ident.article_uuid ENABLE ROW LEVEL SECURITY;
ALTER TABLE ident.article_bigint ENABLE ROW LEVEL SECURITY;
ALTER TABLE ident.article_text ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON ident.article_uuid, ident.article_bigint, ident.article_text TO regress_apitoken_backend, regress_apitoken_weak, regress_apitoken_client;
-- The cast is of the allowed ids, which may hold some that are no uuid or bigint.
CREATE POLICY p ON ident.article_text USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY p ON ident.article_uuid USING (organization_id::text = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY p ON ident.article_bigint USING (organization_id::text = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
\set rows 'SELECT (SELECT count(*) FROM ident.article_uuid), (SELECT count(*) FROM ident.article_bigint), (SELECT count(*) FROM ident.article_text)'
:rows;
SET SESSION AUTHORIZATION regress_apitoken_backend;
:rows;
BEGIN; SELECT apitoken.act_as('bob') IS NOT NULL; :rows; COMMIT;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; :rows; COMMIT;
BEGIN; SELECT apitoken.act_as('carol') IS NOT NULL; :rows; COMMIT;
BEGIN; SELECT (apitoken.authenticate(:'org_ro')).valid; :rows; COMMIT;
BEGIN; SET LOCAL apitoken.user_id = 'bob'; SET LOCAL ROLE regress_apitoken_weak; :rows; COMMIT;
:rows;
-- a client that forges a user id during a query sees no additional rows
SET SESSION AUTHORIZATION regress_apitoken_client;
BEGIN; SELECT set_config('apitoken.user_id', 'bob', true), count(*) FROM ident.article_text; ROLLBACK;
BEGIN; WITH w AS MATERIALIZED (SELECT set_config('apitoken.user_id', 'bob', true) AS x) SELECT w.x, count(*) FROM w LEFT JOIN ident.article_text ON true GROUP BY 1; ROLLBACK;
BEGIN; SELECT (apitoken.authenticate(:'alice')).valid; :rows; COMMIT;
RESET SESSION AUTHORIZATION;
-- with the cast on the other side, where all ids are of that type
INSERT INTO apitoken.users (id) VALUES ('erin');
INSERT INTO apitoken.memberships VALUES ('42', 'erin', 'reader'), ('5000000000', 'erin', 'reader');
ALTER POLICY p ON ident.article_bigint USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read')::bigint)));
INSERT INTO apitoken.users (id) VALUES ('frank');
INSERT INTO apitoken.memberships VALUES ('5f0e7d4c-2a57-4d3a-9d8e-0123456789ab', 'frank', 'reader');
ALTER POLICY p ON ident.article_uuid USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read')::uuid)));
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN; SELECT apitoken.act_as('erin') IS NOT NULL; SELECT count(*) FROM ident.article_bigint; COMMIT;
BEGIN; SELECT apitoken.act_as('frank') IS NOT NULL; SELECT count(*) FROM ident.article_uuid; COMMIT;
SELECT count(*) FROM ident.article_bigint;
SELECT count(*) FROM ident.article_uuid;
RESET SESSION AUTHORIZATION;

-- evaluated once per query, not per row: an init plan, and the index is used
CREATE INDEX ON ident.article_text (organization_id);
CREATE INDEX ON ident.article_bigint (organization_id);
CREATE INDEX ON ident.article_uuid (organization_id);
ANALYZE ident.article_text, ident.article_bigint, ident.article_uuid;
CREATE FUNCTION ident.plan(query text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	result json;
BEGIN
	EXECUTE 'EXPLAIN (FORMAT json, COSTS off) ' || query INTO result;
	RETURN result;
END
$$;
GRANT EXECUTE ON FUNCTION ident.plan TO PUBLIC;
SET SESSION AUTHORIZATION regress_apitoken_backend;
SET enable_seqscan = off;
\set VERBOSITY terse
DO $$
DECLARE
	name text;
	plan jsonb;
BEGIN
	FOREACH name IN ARRAY '{article_text,article_bigint,article_uuid}'::text[] LOOP
		plan := ident.plan('SELECT * FROM ident.' || name);
		RAISE NOTICE '%: init plans %, other subplans %, index condition %', name,
			jsonb_array_length(jsonb_path_query_array(plan, '$.**{last} ? (@ == "InitPlan")')),
			jsonb_array_length(jsonb_path_query_array(plan, '$.**{last} ? (@ == "SubPlan")')),
			jsonb_array_length(jsonb_path_query_array(plan, '$.**."Index Cond"')) > 0;
	END LOOP;
END
$$;
\set VERBOSITY sqlstate
RESET enable_seqscan;
-- the policies on the extension's own tables: an index for each kind of owner
SET enable_seqscan = off;
\set VERBOSITY terse
DO $$
DECLARE
	plan jsonb := ident.plan('SELECT id FROM apitoken_internal.token_records');
BEGIN
	RAISE NOTICE 'own: index conditions %, subplans %',
		regexp_count(plan::text, '"Index Cond"'), regexp_count(plan::text, '"SubPlan"');
END
$$;
\set VERBOSITY sqlstate
RESET enable_seqscan;

--
-- Each statement determines again what the caller manages.  It does not reuse
-- the answer from before an identity, under an identity that was rolled back, or
-- from before a membership ended.  The other direction is the same.
--
RESET SESSION AUTHORIZATION;
CREATE FUNCTION ident.leave(organization_id text, user_id text) RETURNS void LANGUAGE sql SECURITY DEFINER
	AS 'DELETE FROM apitoken.memberships m WHERE m.organization_id = $1 AND m.user_id = $2';
CREATE FUNCTION ident.join(organization_id text, user_id text) RETURNS void LANGUAGE sql SECURITY DEFINER
	AS $$INSERT INTO apitoken.memberships VALUES ($1, $2, 'admin')$$;
GRANT EXECUTE ON FUNCTION ident.leave, ident.join TO PUBLIC;
SELECT id AS o1 FROM apitoken.tokens WHERE label = 'o1' \gset
SET SESSION AUTHORIZATION regress_apitoken_backend;
\set seen 'SELECT (SELECT string_agg(label, \' \' ORDER BY label) FROM apitoken.tokens), (SELECT count(*) FROM apitoken.token_usage), (SELECT count(*) FROM apitoken.token_usage WHERE token_id = ' :'o1' ')'
BEGIN; :seen; SELECT apitoken.act_as('alice') IS NOT NULL; :seen; COMMIT;
:seen;
BEGIN; SAVEPOINT s; SELECT apitoken.act_as('alice') IS NOT NULL; :seen; ROLLBACK TO s; :seen; SELECT apitoken.act_as('dora') IS NOT NULL; :seen; COMMIT;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT ident.leave('acme', 'alice'); :seen; SELECT ident.join('acme', 'alice'); :seen; ROLLBACK;
\set VERBOSITY terse
DO $$
DECLARE
	seen int;
BEGIN
	PERFORM apitoken.act_as('alice');
	FOR i IN 1 .. 3 LOOP
		seen := (SELECT count(*) FROM apitoken.tokens WHERE organization_id = 'acme');
		RAISE NOTICE 'any of Acme''s %, o1 %, Acme %', seen > 0,
			apitoken_internal.manages_token((SELECT token_id FROM apitoken.token_usage u JOIN apitoken.tokens t ON t.id = u.token_id WHERE t.label = 'o1'), 'token:read'),
			apitoken_internal.manages_organization('acme', 'token:read');
		PERFORM CASE i WHEN 1 THEN ident.leave('acme', 'alice') WHEN 2 THEN ident.join('acme', 'alice') END;
	END LOOP;
	PERFORM ident.leave('acme', 'alice');
	-- an expression alone, with no statement before it
	BEGIN
		seen := apitoken_internal.manages_user('alice', 'token:read')::int;
		RAISE EXCEPTION SQLSTATE 'ZZ001';
	EXCEPTION WHEN SQLSTATE 'ZZ001' THEN
		RAISE NOTICE 'alice %, bob %, nobody %', apitoken_internal.manages_user('alice', 'token:read'), apitoken_internal.manages_user('bob', 'token:read'),
			apitoken_internal.manages_record(NULL, NULL, NULL, 'token:read');
	END;
	RAISE EXCEPTION SQLSTATE 'ZZ002';
EXCEPTION WHEN SQLSTATE 'ZZ002' THEN
	RAISE NOTICE 'alice % when she no longer acts', apitoken_internal.manages_user('alice', 'token:read');
END
$$;
\set VERBOSITY sqlstate
-- without an identity, every answer is no
SELECT apitoken_internal.manages_organization('acme', 'token:read'), apitoken_internal.manages_user('alice', 'token:read'), apitoken_internal.manages_record(NULL, 'acme', 'alice', 'token:read'),
	apitoken_internal.manages_token(:'o1', 'token:read'), apitoken_internal.manages_organization(NULL, 'token:read'), apitoken_internal.manages_record(NULL, 'acme', 'alice', VARIADIC NULL);

-- The answer also changes when this transaction writes something or rolls it
-- back and PL/pgSQL asks again without a statement in between.
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.organizations (id) VALUES ('later');
\set VERBOSITY terse
DO $$
DECLARE
	seen boolean;
BEGIN
	PERFORM apitoken.act_as('alice');
	BEGIN
		INSERT INTO apitoken.memberships VALUES ('later', 'alice', 'admin');
		seen := apitoken_internal.manages_organization('later', 'token:read');
		RAISE EXCEPTION SQLSTATE 'ZZ001';
	EXCEPTION WHEN SQLSTATE 'ZZ001' THEN
		RAISE NOTICE 'joined %, and taken back %', seen, apitoken_internal.manages_organization('later', 'token:read');
	END;
	INSERT INTO apitoken.memberships VALUES ('later', 'alice', 'admin');
	DELETE FROM apitoken.memberships WHERE organization_id = 'later' AND apitoken_internal.manages_organization(organization_id, 'token:read');
	RAISE NOTICE 'deleted by the answer itself: %', apitoken_internal.manages_organization('later', 'token:read');
END
$$;
\set VERBOSITY sqlstate

--
-- The planner uses an index instead of these functions.  The result must be the
-- same as without an index: with permissions from the same row, which an index
-- scan does not have yet; in order, with the owner as the index's second column;
-- with another row's owner; in a collation that takes two organizations for one;
-- for many lists of permissions.
--
CREATE FUNCTION ident.both(query text, OUT by_index text, OUT by_table text) LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL enable_seqscan = off;
	SET LOCAL enable_sort = off;
	SET LOCAL enable_bitmapscan = off;
	EXECUTE query INTO by_index;
	SET LOCAL enable_seqscan = on;
	SET LOCAL enable_sort = on;
	SET LOCAL enable_indexscan = off;
	SET LOCAL enable_indexonlyscan = off;
	EXECUTE query INTO by_table;
	RESET enable_seqscan;
	RESET enable_sort;
	RESET enable_bitmapscan;
	RESET enable_indexscan;
	RESET enable_indexonlyscan;
END
$$;
CREATE TABLE ident.owned (n int, organization_id text COLLATE "C", permissions text[]);
INSERT INTO ident.owned SELECT n, CASE n % 10 WHEN 1 THEN 'acme' WHEN 0 THEN 'later' ELSE 'x' || n END, ARRAY[CASE n % 3 WHEN 0 THEN 'token:read' END]
	FROM generate_series(1, 2000) n;
CREATE INDEX ON ident.owned (organization_id);
CREATE INDEX ON ident.owned (n, organization_id);
ANALYZE ident.owned;
DO $$
BEGIN
	-- a server without ICU has no such collation
	IF EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i') THEN
		CREATE COLLATION ident.whatever_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE ident.loud (organization_id text COLLATE ident.whatever_case);
	ELSE
		CREATE TABLE ident.loud (organization_id text);
	END IF;
	INSERT INTO ident.loud SELECT 'x' || n FROM generate_series(1, 2000) n UNION ALL VALUES ('acme'), ('ACME');
	CREATE INDEX ON ident.loud (organization_id);
	ANALYZE ident.loud;
END
$$;
BEGIN;
INSERT INTO apitoken.memberships VALUES ('later', 'alice', 'admin');
SELECT apitoken.act_as('alice') IS NOT NULL;
SELECT * FROM ident.both('SELECT count(*) FROM ident.owned WHERE apitoken_internal.manages_organization(organization_id, VARIADIC permissions)');
SELECT * FROM ident.both('SELECT count(*) FROM ident.owned WHERE apitoken_internal.manages_organization(organization_id, VARIADIC ARRAY[''random:'' || random(), ''token:read''])');
SELECT * FROM ident.both('SELECT string_agg(n::text, '' '') FROM (SELECT n FROM ident.owned WHERE apitoken_internal.manages_organization(organization_id, ''token:read'') ORDER BY n LIMIT 6) o');
SELECT * FROM ident.both('SELECT count(*) > 0 FROM apitoken_internal.token_records WHERE organization_id = ''initech'' AND apitoken_internal.manages_record(id, organization_id, ''alice'', ''token:read'')');
SELECT * FROM ident.both('SELECT count(*) > 0 FROM apitoken_internal.token_records WHERE user_id = ''bob'' AND apitoken_internal.manages_record(id, ''acme'', user_id, ''token:read'')');
SELECT * FROM ident.both('SELECT string_agg(organization_id, '' '') FROM (SELECT organization_id FROM ident.loud WHERE apitoken_internal.manages_organization(organization_id, ''token:read'') ORDER BY organization_id) l');
SELECT count(*) FROM generate_series(1, 1000) n WHERE apitoken_internal.manages_organization('acme', VARIADIC ARRAY['token:' || n, 'token:read']);
ROLLBACK;
-- the planner needs an estimate before the arguments are known
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL;
SELECT count(*) FROM ident.owned o JOIN apitoken.users u ON apitoken_internal.manages_user(u.id, VARIADIC o.permissions) WHERE o.n < 10;
SELECT count(*) FROM ident.owned GROUP BY organization_id HAVING apitoken_internal.manages_organization(max(organization_id), VARIADIC (SELECT '{token:read}'::text[]));
SELECT count(*) FROM (SELECT 'acme' AS o UNION ALL SELECT organization_id COLLATE "POSIX" FROM ident.owned) o WHERE apitoken_internal.manages_organization(o, VARIADIC ARRAY['token:read' COLLATE "POSIX"]);
SELECT count(*) FROM ident.owned WHERE apitoken_internal.manages_organization(organization_id, VARIADIC ARRAY[['token:read', NULL], [NULL, 'x:y']]);
SELECT count(*) FROM ident.owned WHERE apitoken_internal.manages_organization(organization_id, VARIADIC ARRAY[NULL]::text[]);
COMMIT;
-- invalid permissions are an error for every caller, also where the planner would answer
SELECT apitoken_internal.managed_organizations('token:read', 'nonsense');
SELECT apitoken_internal.managed_user('token:*');
SELECT apitoken_internal.manages_organization('acme', 'nonsense');
SELECT apitoken_internal.manages_user('alice', '');
SELECT apitoken_internal.manages_record(NULL, 'acme', NULL, 'token:read', '*');
SELECT apitoken_internal.manages_token(:'o1', ' token:read');
SELECT count(*) FROM ident.owned WHERE apitoken_internal.manages_organization(organization_id, 'nonsense');
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT apitoken_internal.manages_organization('acme', 'token:read', 'nonsense'); ROLLBACK;
DELETE FROM apitoken.organizations WHERE id = 'later';

--
-- A transaction that has written nothing finds out once where its user may do what
--
RESET SESSION AUTHORIZATION;
CREATE FUNCTION ident.lookups() RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER AS $$
	SELECT sum(pg_catalog.pg_stat_get_xact_numscans(c.oid)) FROM pg_catalog.pg_class c
	WHERE relnamespace = ANY (ARRAY['apitoken', 'apitoken_internal']::regnamespace[]) AND relkind IN ('r', 'i') $$;
CREATE FUNCTION ident.lookups_of(OUT organizations_allowed bigint, OUT tokens bigint) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	before bigint := ident.lookups();
BEGIN
	PERFORM ARRAY(SELECT apitoken.organizations_allowed('article:read'));
	organizations_allowed := ident.lookups() - before;
	before := ident.lookups();
	PERFORM apitoken_internal.managed_user('token:read');
	tokens := ident.lookups() - before;
END $$;
GRANT EXECUTE ON FUNCTION ident.lookups(), ident.lookups_of() TO regress_apitoken_backend;
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN;
SELECT apitoken.act_as('alice') IS NOT NULL;
SELECT organizations_allowed > 0 AS organizations_allowed, tokens > 0 AS tokens FROM ident.lookups_of();
SELECT organizations_allowed, tokens FROM ident.lookups_of();
-- it has written something
SELECT count(*) FROM apitoken.create_token('lookups');
SELECT organizations_allowed > 0 AS organizations_allowed, tokens > 0 AS tokens FROM ident.lookups_of();
ROLLBACK;

--
-- Sessions remember roles, but not a role or a change that was never committed,
-- and not under a longer name
--
RESET SESSION AUTHORIZATION;
CREATE FUNCTION ident.stop() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'may %', apitoken.can('later:do', 'acme');
END
$$;
\set VERBOSITY terse
\set may 'BEGIN; SELECT apitoken.act_as(\'gwen\') IS NOT NULL AS acting, apitoken.can(\'later:do\', \'acme\'), apitoken.can(\'later:do\') AS own; ROLLBACK;'
BEGIN;
INSERT INTO apitoken.roles (name, permissions) VALUES (repeat('r', 63), '{*}');
INSERT INTO apitoken.memberships VALUES ('acme', 'gwen', repeat('r', 63));
SELECT apitoken.act_as('gwen') IS NOT NULL, apitoken.can('later:do', 'acme');
ROLLBACK;
INSERT INTO apitoken.roles (name, permissions) VALUES (repeat('r', 63), '{later:look}');
INSERT INTO apitoken.memberships VALUES ('acme', 'gwen', repeat('r', 63));
:may
UPDATE apitoken.roles SET description = 'forgotten' WHERE name = repeat('r', 63);
BEGIN;
SELECT apitoken.act_as('gwen') IS NOT NULL;
WITH change AS (UPDATE apitoken.roles SET permissions = '{*}' WHERE name = repeat('r', 63) RETURNING 1) SELECT ident.stop() FROM change;
ROLLBACK;
:may
UPDATE apitoken.roles SET permissions = '{later:do}' WHERE name = repeat('r', 63);
INSERT INTO apitoken.users (id, role) VALUES ('gwen', repeat('r', 64));
:may
-- also when no trigger reports the change: disabled, or no longer enabled always
ALTER TABLE apitoken_internal.role_records DISABLE TRIGGER ALL;
:may
UPDATE apitoken.roles SET permissions = '{later:look}' WHERE name = repeat('r', 63);
:may
ALTER TABLE apitoken_internal.role_records ENABLE TRIGGER ALL;
:may
SET session_replication_role = replica;
UPDATE apitoken.roles SET permissions = '{later:do}' WHERE name = repeat('r', 63);
RESET session_replication_role;
:may
ALTER TABLE apitoken_internal.role_records ENABLE ALWAYS TRIGGER directory_after_change;
DELETE FROM apitoken.users WHERE id = 'gwen';
DELETE FROM apitoken.roles WHERE name = repeat('r', 63);
\set VERBOSITY sqlstate
SET SESSION AUTHORIZATION regress_apitoken_backend;

--
-- Parallel plans: the same rows
--
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
SET enable_indexscan = off;
SET enable_bitmapscan = off;
SET enable_indexonlyscan = off;
SELECT jsonb_path_exists(ident.plan('SELECT count(*) FROM ident.article_text'), '$.** ? (@."Node Type" == "Gather")');
:rows;
BEGIN; SELECT apitoken.act_as('bob') IS NOT NULL; SELECT count(*), sum(n) FROM ident.article_text; COMMIT;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; SELECT count(*), sum(n) FROM ident.article_text; COMMIT;
BEGIN; SET LOCAL apitoken.token = :'org'; SELECT count(*), sum(n) FROM ident.article_text; COMMIT;
-- a token verified in the leader of a parallel plan
BEGIN; SET LOCAL apitoken.token = :'org_ro'; SELECT count(*), sum(n), apitoken.current_organization_id() FROM ident.article_text; COMMIT;
SELECT count(*), sum(n), (SELECT valid FROM apitoken.verify(:'org')) FROM ident.article_text;
-- can() for each row, above the gather
BEGIN; SELECT apitoken.act_as('bob') IS NOT NULL; SELECT count(*) FROM ident.article_text WHERE apitoken.can('article:write', organization_id); COMMIT;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
RESET max_parallel_workers_per_gather;
RESET enable_indexscan;
RESET enable_bitmapscan;
RESET enable_indexonlyscan;

--
-- Cursors and prepared statements see who is acting when they run
--
PREPARE articles AS SELECT count(*), apitoken.current_user_id() FROM ident.article_text;
SET plan_cache_mode = force_generic_plan;
EXECUTE articles;
BEGIN; SELECT apitoken.act_as('bob') IS NOT NULL; EXECUTE articles; COMMIT;
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; EXECUTE articles; COMMIT;
BEGIN; SET LOCAL apitoken.user_id = 'dora'; EXECUTE articles; COMMIT;
BEGIN; SET LOCAL apitoken.user_id = 'bob'; SET LOCAL ROLE regress_apitoken_weak; EXECUTE articles; COMMIT;
EXECUTE articles;
RESET plan_cache_mode;
DEALLOCATE articles;
BEGIN;
DECLARE c CURSOR FOR SELECT apitoken.current_user_id() FROM ident.article_text LIMIT 2;
SELECT apitoken.act_as('alice') IS NOT NULL;
FETCH c;
SAVEPOINT s;
SELECT apitoken.act_as('bob');
ROLLBACK TO s;
FETCH c;
COMMIT;
-- a held cursor returns the rows that its transaction saw
BEGIN;
SELECT apitoken.act_as('alice') IS NOT NULL;
DECLARE h CURSOR WITH HOLD FOR SELECT apitoken.current_user_id();
COMMIT;
FETCH h;
:who;
CLOSE h;
-- a deferred trigger still has the identity; statements after the commit do not
RESET SESSION AUTHORIZATION;
CREATE TABLE ident.log (who text);
CREATE TABLE ident.work (n int);
CREATE FUNCTION ident.log() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO ident.log VALUES (apitoken.current_user_id()); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON ident.work DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ident.log();
BEGIN; SELECT apitoken.act_as('alice') IS NOT NULL; INSERT INTO ident.work VALUES (1); COMMIT;
INSERT INTO ident.work VALUES (2);
SELECT * FROM ident.log;

--
-- DISCARD ALL, and after the extension is gone
--
SET apitoken.user_id = 'alice';
DISCARD ALL;
SHOW apitoken.user_id;
:who;
-- an unknown setting of ours is refused
SET apitoken.nonsense = 1;
SET apitoken.tokens = 1;

\set VERBOSITY default
SET client_min_messages = error;
DROP SCHEMA ident CASCADE;
\i :srcdir/test/regress_teardown.sql
-- settings stay harmless without it
BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT 1; COMMIT;
BEGIN; SET LOCAL apitoken.token = 'garbage'; SELECT 1; COMMIT;
