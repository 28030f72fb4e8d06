--
-- A database's owner can drop nothing that would drop the extension, and its
-- tokens and events, as well.
--
\set SHOW_CONTEXT never
\pset null '(null)'
SET client_min_messages = warning;
SELECT current_database() AS here, current_user AS superuser \gset
CREATE ROLE regress_apitoken_dba CREATEROLE CREATEDB;
CREATE ROLE regress_apitoken_heir;
CREATE ROLE regress_apitoken_backend;
CREATE DATABASE regress_apitoken_owned OWNER regress_apitoken_dba TEMPLATE template0;
\c regress_apitoken_owned
SET client_min_messages = warning;
CREATE EXTENSION apitoken;
SELECT apitoken.allow('regress_apitoken_backend', 'manage', 'verify', 'act', 'directory', 'monitor');

-- the owner installs common extensions in the schema that is reset later
SET ROLE regress_apitoken_dba;
CREATE EXTENSION pgcrypto SCHEMA public;
CREATE EXTENSION citext SCHEMA public;
CREATE SCHEMA app;
CREATE DOMAIN app.id AS text;
CREATE TABLE app.notes (organization_id app.id, note text);
CREATE VIEW app.tokens AS SELECT count(*) FROM pg_catalog.pg_extension;
CREATE FUNCTION app.me() RETURNS text LANGUAGE sql AS 'SELECT apitoken.current_user_id()';
RESET ROLE;
SELECT token FROM apitoken.create_token('kept', user_id => 'u1') \gset

-- what the extension depends on: nothing but its two schemas' own objects and the server's
SELECT pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) AS depends_on
FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON d.classid = 'pg_extension'::regclass AND d.objid = e.oid
WHERE e.extname = 'apitoken';
SELECT count(*) AS outside
FROM pg_catalog.pg_depend own
	JOIN pg_catalog.pg_extension e ON own.refclassid = 'pg_extension'::regclass AND own.refobjid = e.oid AND own.deptype = 'e'
	JOIN pg_catalog.pg_depend d ON d.classid = own.classid AND d.objid = own.objid AND d.refclassid = 'pg_namespace'::regclass
WHERE e.extname = 'apitoken' AND d.refobjid NOT IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace);

-- Run a command as a role, see whether all is still there, and take it back.
CREATE FUNCTION pg_temp.outcome(command text, role name) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	BEGIN
		EXECUTE pg_catalog.format('SET LOCAL ROLE %I', role);
		EXECUTE command;
		RESET ROLE;
		IF NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'apitoken') THEN
			answer := 'TAKES THE EXTENSION ALONG';
		ELSIF (SELECT count(*) FROM apitoken.tokens) <> 1 OR (SELECT count(*) FROM apitoken.events) <> 1 THEN
			answer := 'TAKES TOKENS ALONG';
		ELSE
			answer := 'done';
		END IF;
		RAISE EXCEPTION USING ERRCODE = 'RB000';
	EXCEPTION
		WHEN SQLSTATE 'RB000' THEN
			RETURN answer;
		WHEN OTHERS THEN
			RETURN SQLSTATE;
	END;
END
$$;
CREATE TEMP TABLE commands (kind text, command text);
INSERT INTO commands
	SELECT 'schema', pg_catalog.format('DROP SCHEMA %I CASCADE', nspname) FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_(temp|toast)'
	UNION ALL
	SELECT 'extension', pg_catalog.format('DROP EXTENSION %I CASCADE', extname) FROM pg_catalog.pg_extension
	UNION ALL
	SELECT 'language', pg_catalog.format('DROP LANGUAGE %I CASCADE', lanname) FROM pg_catalog.pg_language
	UNION ALL
	SELECT 'type', pg_catalog.format('DROP TYPE %s CASCADE', t.oid::regtype) FROM pg_catalog.pg_type t
	WHERE t.typtype IN ('b', 'c', 'd') AND t.typelem = 0 AND t.typnamespace::regnamespace::text !~ '^(pg_toast|pg_temp|information_schema)'
	UNION ALL
	SELECT 'function', pg_catalog.format('DROP FUNCTION %s CASCADE', p.oid::regprocedure) FROM pg_catalog.pg_proc p
	WHERE p.pronamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace, 'public'::regnamespace, 'app'::regnamespace) AND p.prokind = 'f'
	UNION ALL
	SELECT 'relation', pg_catalog.format('DROP %s %s CASCADE', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass) FROM pg_catalog.pg_class c
	WHERE c.relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace, 'app'::regnamespace) AND c.relkind IN ('r', 'v')
	UNION ALL
	SELECT 'role', pg_catalog.format(c, r) FROM pg_catalog.unnest('{regress_apitoken_dba,regress_apitoken_heir,regress_apitoken_backend}'::name[]) r,
		pg_catalog.unnest('{DROP OWNED BY %I CASCADE,REASSIGN OWNED BY %I TO regress_apitoken_heir,DROP ROLE %I}'::text[]) c
	UNION ALL
	SELECT 'owner', pg_catalog.format(c, :'superuser') FROM pg_catalog.unnest('{DROP OWNED BY %I CASCADE,REASSIGN OWNED BY %I TO regress_apitoken_dba,DROP ROLE %I}'::text[]) c;

-- as the owner: each command is refused, or leaves the extension and its rows alone
SELECT kind, count(*) > 0 AS tried, count(*) FILTER (WHERE outcome = 'done') > 0 AS some_done,
	count(*) FILTER (WHERE outcome LIKE 'TAKES%') AS harmful
FROM (SELECT kind, pg_temp.outcome(command, 'regress_apitoken_dba') AS outcome FROM commands WHERE kind NOT IN ('type', 'function')) c
GROUP BY kind ORDER BY kind;
SELECT kind, command, outcome
FROM (SELECT kind, command, pg_temp.outcome(command, 'regress_apitoken_dba') AS outcome FROM commands) c
WHERE outcome LIKE 'TAKES%';
-- for real: a database is reset as people do it
SET ROLE regress_apitoken_dba;
DROP SCHEMA public CASCADE;
DROP SCHEMA app CASCADE;
CREATE SCHEMA public;
RESET ROLE;
SELECT extname FROM pg_catalog.pg_extension ORDER BY extname COLLATE "C";
SELECT valid, verdict, label FROM apitoken.verify(:'token');

-- DROP OWNED BY a role with capabilities, by a superuser, removes its grants and nothing else
DROP OWNED BY regress_apitoken_backend;
SELECT valid FROM apitoken.verify(:'token');
-- after REASSIGN OWNED the tables belong to the new owner, and everything still works
CREATE ROLE regress_apitoken_super SUPERUSER;
CREATE DATABASE regress_apitoken_moved TEMPLATE template0;
\c regress_apitoken_moved
SET client_min_messages = warning;
SET ROLE regress_apitoken_super;
CREATE EXTENSION apitoken;
RESET ROLE;
SELECT token FROM apitoken.create_token('moved', user_id => 'u1') \gset
REASSIGN OWNED BY regress_apitoken_super TO regress_apitoken_dba;
SELECT DISTINCT pg_catalog.pg_get_userbyid(relowner) AS owner FROM pg_catalog.pg_class
WHERE relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND relkind IN ('r', 'v');
SELECT valid FROM apitoken.verify(:'token');
SELECT token AS later FROM apitoken.create_token('made later', user_id => 'u2') \gset
SELECT valid, label FROM apitoken.verify(:'later');
SELECT apitoken.revoke_token((SELECT id FROM apitoken.tokens WHERE label = 'moved'));
SELECT valid, verdict FROM apitoken.verify(:'token');

\c :here
SET client_min_messages = warning;
DROP DATABASE regress_apitoken_owned;
DROP DATABASE regress_apitoken_moved;
DROP ROLE regress_apitoken_dba, regress_apitoken_heir, regress_apitoken_backend, regress_apitoken_super;
