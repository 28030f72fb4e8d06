--
-- Attacks: by owners of schemas and objects in the database, by members on other
-- tenants, by members on what they may not change, and with unusual values.
--
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE ROLE regress_apitoken_attacker LOGIN;
CREATE ROLE regress_apitoken_login LOGIN;
DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO regress_apitoken_attacker', current_database()); END $$;

--
-- Somebody has already made one of the schemas or objects.  The installation
-- stops and leaves nothing; it does not adopt what somebody else owns.
--
SET SESSION AUTHORIZATION regress_apitoken_attacker;
CREATE SCHEMA apitoken;
CREATE TABLE apitoken.tokens (id uuid);
RESET SESSION AUTHORIZATION;
\set VERBOSITY sqlstate
CREATE EXTENSION apitoken;
DROP SCHEMA apitoken CASCADE;
SET SESSION AUTHORIZATION regress_apitoken_attacker;
CREATE SCHEMA apitoken_internal;
CREATE TABLE apitoken_internal.token_records (id uuid);
RESET SESSION AUTHORIZATION;
CREATE EXTENSION apitoken;
\set VERBOSITY terse
SELECT count(*) FROM pg_extension WHERE extname = 'apitoken';
SELECT oid::regclass, relowner::regrole FROM pg_class WHERE relnamespace::regnamespace::text ~ '^apitoken';
DROP SCHEMA apitoken_internal CASCADE;

--
-- The attacker's schema, full of traps, comes before pg_catalog in the path
-- during the installation.  Each
-- trap records the role that it ran as.
--
SET SESSION AUTHORIZATION regress_apitoken_attacker;
CREATE SCHEMA evil;
GRANT ALL ON SCHEMA evil TO PUBLIC;
CREATE TABLE evil.ran (who pg_catalog.name, what pg_catalog.text);
GRANT ALL ON evil.ran TO PUBLIC;
CREATE FUNCTION evil.trap(pg_catalog.text) RETURNS pg_catalog.void LANGUAGE plpgsql AS $$
BEGIN
	IF pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'off' THEN
		INSERT INTO evil.ran VALUES (current_user, $1);
	END IF;
END
$$;
-- operators, of the same types as those of pg_catalog
DO $do$
DECLARE
	o record;
BEGIN
	FOR o IN SELECT oprname, oprcode::oid::regproc::text AS code, format_type(oprleft, NULL) AS l, format_type(oprright, NULL) AS r, format_type(oprresult, NULL) AS result,
			row_number() OVER () AS n
		FROM pg_operator
		WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprname IN ('=', '<>', '<', '<=', '>', '>=', '+', '-', '||', '~~', '~~*', '->', '->>', '@>', '<<=')
			AND oprleft IN ('text'::regtype, 'uuid'::regtype, 'name'::regtype, 'jsonb'::regtype, 'timestamptz'::regtype, 'int4'::regtype, 'int8'::regtype, 'int2'::regtype, 'bool'::regtype, 'inet'::regtype, 'interval'::regtype, 'bytea'::regtype)
			AND oprright IN ('text'::regtype, 'uuid'::regtype, 'name'::regtype, 'jsonb'::regtype, 'timestamptz'::regtype, 'int4'::regtype, 'int8'::regtype, 'int2'::regtype, 'bool'::regtype, 'inet'::regtype, 'interval'::regtype, 'bytea'::regtype)
	LOOP
		EXECUTE format('CREATE FUNCTION evil.op%s(pg_catalog.%s, pg_catalog.%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN PERFORM evil.trap(%L); RETURN $1 OPERATOR(pg_catalog.%s) $2; END $f$',
			o.n, (SELECT quote_ident(typname) FROM pg_type WHERE oid = o.l::regtype), (SELECT quote_ident(typname) FROM pg_type WHERE oid = o.r::regtype), o.result, o.oprname, o.oprname);
		EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.op%s, LEFTARG = %s, RIGHTARG = %s)', o.oprname, o.n, o.l, o.r);
	END LOOP;
END
$do$;
-- functions
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('now'); RETURN 'infinity'; END $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('clock_timestamp'); RETURN 'infinity'; END $$;
CREATE FUNCTION evil.statement_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('statement_timestamp'); RETURN 'infinity'; END $$;
CREATE FUNCTION evil.jsonb_each(jsonb, OUT key text, OUT value jsonb) RETURNS SETOF record LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('jsonb_each'); END $$;
CREATE FUNCTION evil.to_jsonb(anyelement) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('to_jsonb'); RETURN '{}'; END $$;
CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('octet_length'); RETURN 1; END $$;
CREATE FUNCTION evil.has_table_privilege(regclass, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('has_table_privilege'); RETURN true; END $$;
CREATE FUNCTION evil.pg_extension_config_dump(regclass, text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('pg_extension_config_dump'); END $$;
CREATE FUNCTION evil.current_user_id() RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('current_user_id'); RETURN 'zoe'; END $$;
CREATE FUNCTION evil.seen_organizations() RETURNS text[] LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('seen_organizations'); RETURN '{beta}'; END $$;
-- tables
CREATE TABLE evil.token_records (id uuid, organization_id text);
CREATE TABLE evil.tokens (id uuid);
CREATE TABLE evil.events (id uuid);
CREATE TABLE evil.users (id text);
CREATE TABLE evil.roles (name text);
-- types
CREATE FUNCTION evil.check(anyelement) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.trap('domain'); RETURN true; END $$;
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (evil.check(VALUE));
CREATE DOMAIN evil.uuid AS pg_catalog.uuid CHECK (evil.check(VALUE));
CREATE DOMAIN evil.timestamptz AS pg_catalog.timestamptz CHECK (evil.check(VALUE));
CREATE DOMAIN evil.inet AS pg_catalog.inet CHECK (evil.check(VALUE));
CREATE TYPE evil.verification AS (valid pg_catalog.bool);
CREATE TYPE evil.issued_token AS (token pg_catalog.text);
RESET SESSION AUTHORIZATION;

SET search_path = evil, pg_catalog;
CREATE EXTENSION apitoken;
RESET search_path;
SELECT * FROM evil.ran;

INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('beta');
INSERT INTO apitoken.users (id, name) VALUES ('ada', 'Ada'), ('zoe', 'Zoe');
INSERT INTO apitoken.roles (name, permissions) VALUES ('sees', '{token:read}'), ('creates', '{token:create}');
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('acme', 'see', 'sees'), ('acme', 'create', 'creates'), ('beta', 'zoe', 'admin');
SELECT apitoken.allow('regress_apitoken_attacker', 'act', 'use', 'manage', 'verify', 'directory'), apitoken.allow('regress_apitoken_login', 'act', 'manage', 'verify');

-- the attacker calls everything that the extension does as its owner
SET SESSION AUTHORIZATION regress_apitoken_attacker;
SET search_path = evil, pg_catalog;
-- the traps do work
SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text AS equal, now() AS now, 'x'::text AS domain;
SELECT DISTINCT what FROM evil.ran ORDER BY 1;
BEGIN;
SELECT apitoken.act_as('ada') IS NOT NULL AS acts;
SELECT id, token FROM apitoken.create_token('one', organization_id => 'acme', metadata => '{"a": 1}') \gset
SELECT token AS personal FROM apitoken.create_token('mine') \gset
SELECT verdict FROM apitoken.verify(:'token', 'article:read', 'acme');
UPDATE apitoken.tokens SET label = 'two', metadata = '{"a": 2}', suspended_at = pg_catalog.now() WHERE id OPERATOR(pg_catalog.=) :'id';
UPDATE apitoken.tokens SET suspended_at = NULL WHERE id OPERATOR(pg_catalog.=) :'id';
SELECT token FROM apitoken.regenerate_token(:'id', '1 hour') \gset
-- (preload decides when the use is shown)
SELECT label, last_used IN ('just now', 'never') AS in_words, status FROM apitoken.list_tokens('w');
SELECT pg_catalog.count(*) FROM apitoken.tokens;
SELECT pg_catalog.count(*) FROM apitoken.members;
SELECT pg_catalog.count(*) FROM apitoken.events;
SELECT apitoken.can('article:read', 'acme'), apitoken.can('article:read', 'beta');
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('three', 'acme') RETURNING apitoken.take_token(id) IS NOT NULL AS taken;
SELECT apitoken.revoke_token(:'id', 'two', 'reason');
SELECT apitoken.revoke_by_token(:'personal');
SELECT apitoken.revoke_tokens('acme');
COMMIT;
BEGIN;
SELECT verdict FROM apitoken.verify(:'token');
DELETE FROM apitoken.organizations WHERE id OPERATOR(pg_catalog.=) 'acme';
DELETE FROM apitoken.users WHERE id OPERATOR(pg_catalog.=) 'ada';
INSERT INTO apitoken.roles (name, permissions) VALUES ('editor', '{article:*}');
UPDATE apitoken.roles SET permissions = '{article:read}' WHERE name OPERATOR(pg_catalog.=) 'editor';
SELECT who, what FROM evil.ran WHERE who OPERATOR(pg_catalog.<>) current_user;
ROLLBACK;
RESET search_path;
RESET SESSION AUTHORIZATION;
-- the owner's own insert of a role, which becomes an update
SET search_path = evil, pg_catalog;
INSERT INTO apitoken.roles (name, permissions) VALUES ('sees', '{token:read}');
SELECT apitoken.allow('regress_apitoken_login', 'verify');
RESET search_path;
SELECT DISTINCT who FROM evil.ran WHERE who <> 'regress_apitoken_attacker';
SELECT (SELECT count(*) FROM evil.token_records) + (SELECT count(*) FROM evil.tokens) + (SELECT count(*) FROM evil.events)
	+ (SELECT count(*) FROM evil.users) + (SELECT count(*) FROM evil.roles) AS rows_gone_astray;
SELECT action, count(*) FROM apitoken.events GROUP BY 1 ORDER BY 1;
SELECT apitoken.disallow('regress_apitoken_attacker', 'act', 'use', 'manage', 'verify', 'directory');
DROP EXTENSION apitoken;
DROP SCHEMA evil CASCADE;

--
-- From here on: an ordinary installation, two tenants.
--
CREATE EXTENSION apitoken;
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('beta');
INSERT INTO apitoken.users (id, name, email) VALUES ('ada', 'Ada', 'ada@example.com'), ('zoe', 'Zoe', 'zoe@example.com');
INSERT INTO apitoken.roles (name, permissions) VALUES ('sees', '{token:read}'), ('creates', '{token:create,article:read}'), ('reader', '{article:read}');
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('acme', 'see', 'sees'), ('acme', 'create', 'creates'), ('beta', 'zoe', 'admin');
SELECT apitoken.allow('regress_apitoken_login', 'use', 'act', 'manage', 'verify');
SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT apitoken.act_as('zoe') AS acts;
SELECT id AS beta_id, token AS beta FROM apitoken.create_token('beta only', organization_id => 'beta') \gset
SELECT id AS zoe_id FROM apitoken.create_token('zoe only') \gset
COMMIT;
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SELECT id AS acme_id, token AS acme FROM apitoken.create_token('acme only', organization_id => 'acme') \gset
SELECT id AS ada_id FROM apitoken.create_token('ada only') \gset
COMMIT;

-- try a command as a user; what came of it, in words
RESET SESSION AUTHORIZATION;
CREATE SCHEMA attack;
GRANT USAGE ON SCHEMA attack TO PUBLIC;
CREATE FUNCTION attack.try(who text, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
	detail text;
	hint text;
BEGIN
	IF who IS NOT NULL THEN
		PERFORM apitoken.act_as(who);
	END IF;
	EXECUTE command;
	GET DIAGNOSTICS n = ROW_COUNT;
	RAISE SQLSTATE 'REG01';
EXCEPTION
	WHEN SQLSTATE 'REG01' THEN
		RETURN n || ' rows';
	WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RETURN concat_ws(' ', SQLSTATE, SQLERRM, detail, hint);
END
$$;
SET SESSION AUTHORIZATION regress_apitoken_login;

--
-- A tenant cannot learn from an answer what another tenant has.  The answers for
-- an existing object, a missing one and a label in use are identical.
--
SELECT count(DISTINCT answer) AS answers, max(answer) AS answer, what FROM (
	SELECT what, attack.try('ada', format(command, target)) AS answer
	FROM (VALUES (:'beta_id'), (:'zoe_id'), ('00000000-0000-7000-8000-000000000000')) AS t (target),
		(VALUES (1, 'regenerate', 'SELECT apitoken.regenerate_token(%L)'),
			(2, 'revoke', 'SELECT apitoken.revoke_token(%L)'),
			(3, 'revoke, label right', 'SELECT apitoken.revoke_token(%L, ''beta only'')'),
			(4, 'revoke, reason too long', 'SELECT apitoken.revoke_token(%L, ''beta only'', repeat(''x'', 10000))'),
			(5, 'regenerate, bad overlap', 'SELECT apitoken.regenerate_token(%L, ''1 second'', ''-1 day'')'),
			(6, 'take_token', 'SELECT apitoken.take_token(%L)'),
			(7, 'update', 'UPDATE apitoken.tokens SET label = ''x'' WHERE id = %L'),
			(8, 'update, bad value', 'UPDATE apitoken.tokens SET label = '''' WHERE id = %L'),
			(9, 'list before', 'SELECT * FROM apitoken.list_tokens(before_id => %L)'),
			(10, 'lock', 'SELECT id FROM apitoken.tokens WHERE id = %L FOR UPDATE')) AS c (n, what, command)) a
GROUP BY what ORDER BY what;
SELECT count(DISTINCT answer) AS answers, max(answer) AS answer FROM (
	SELECT attack.try('ada', format('SELECT apitoken.create_token(%L, organization_id => %L, role => %L)', label, organization, role)) AS answer
	FROM (VALUES ('beta'), ('no such'), ('')) AS o (organization), (VALUES ('beta only'), ('free'), ('')) AS l (label), (VALUES ('admin'), ('no such role')) AS r (role)
	UNION ALL
	SELECT attack.try('ada', format('SELECT apitoken.create_token(%L, user_id => %L)', label, owner))
	FROM (VALUES ('zoe'), ('no such'), ('')) AS o (owner), (VALUES ('zoe only'), ('free')) AS l (label)
	UNION ALL
	SELECT attack.try('ada', format('INSERT INTO apitoken_internal.token_records (label, organization_id) VALUES (%L, ''beta'')', label))
	FROM (VALUES ('beta only'), ('free')) AS l (label)) a;
SELECT attack.try('ada', 'SELECT 1 WHERE apitoken.revoke_tokens(organization_id => ''beta'') + apitoken.revoke_tokens(user_id => ''zoe'') + apitoken.revoke_tokens(created_by => ''zoe'') > 0') AS revoked;
-- a token's owner cannot be changed
SELECT attack.try('ada', 'UPDATE apitoken.tokens SET organization_id = ''beta''') AS moved,
	attack.try('ada', 'UPDATE apitoken_internal.token_records SET user_id = ''ada'', organization_id = NULL') AS taken;

--
-- A user's own functions and operators in a query, however cheap, see only the
-- rows that the user may see.  Errors reveal nothing either.
--
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.memberships VALUES ('acme', 'both', 'reader');
GRANT CREATE ON SCHEMA attack TO regress_apitoken_login;
SET SESSION AUTHORIZATION regress_apitoken_login;
CREATE TABLE attack.seen (who text);
CREATE FUNCTION attack.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
	INSERT INTO attack.seen VALUES ($1);
	RETURN true;
END
$$;
CREATE OPERATOR attack.## (FUNCTION = attack.leak, RIGHTARG = text);
CREATE VIEW attack.leaky AS SELECT * FROM apitoken.tokens WHERE attack.leak(label);
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SELECT count(*) FROM apitoken.tokens WHERE attack.leak(label);
SELECT count(*) FROM apitoken_internal.token_records WHERE OPERATOR(attack.##) label AND OPERATOR(attack.##) masked IS NOT NULL;
SELECT count(*) FROM attack.leaky WHERE attack.leak(created_by);
SELECT count(*) FROM apitoken.events WHERE attack.leak(actor);
SELECT count(*) FROM apitoken.token_usage WHERE attack.leak(token_id::text) AND token_id IN (:'beta_id', :'zoe_id');
SELECT count(*) FROM apitoken.organizations WHERE attack.leak(id);
SELECT count(*) FROM apitoken.users WHERE attack.leak(name);
SELECT count(*) FROM apitoken.memberships WHERE attack.leak(user_id);
SELECT count(*) FROM apitoken.members WHERE attack.leak(name);
SELECT count(*) FROM apitoken.tokens t JOIN apitoken.events e ON attack.leak(e.details::text) AND attack.leak(t.user_id);
UPDATE apitoken.tokens SET description = 'x' WHERE attack.leak(label) AND label = 'beta only' RETURNING label;
-- this would divide by zero if it saw a label that begins with beta
SELECT count(*) FROM apitoken.tokens WHERE 1 / (position('beta' in label) - 1) <> 7;
SELECT count(*) FROM apitoken.events WHERE 1 / (position('beta' in (details->>'label')) - 1) <> 7;
SELECT count(*) FROM attack.seen WHERE who ~ 'beta|zoe' OR who IN (:'beta_id', :'zoe_id');
SELECT count(*) > 10 AS leaks FROM attack.seen;
-- a query copies only what it may see
CREATE TEMP TABLE stolen AS SELECT * FROM apitoken.tokens;
SELECT label FROM stolen ORDER BY 1;
COPY (SELECT label FROM apitoken.tokens ORDER BY 1) TO STDOUT;
ROLLBACK;
-- the same after ANALYZE has collected statistics
RESET SESSION AUTHORIZATION;
ANALYZE apitoken_internal.token_records;
ANALYZE apitoken.users;
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT count(*) FROM pg_stats WHERE schemaname = 'apitoken';

--
-- Plans: they are the same for the tenant's own values, another tenant's and
-- missing ones, except for the constant.  (The estimated costs and rows do
-- reveal how frequent a value is; see docs/security.md.)
--
RESET SESSION AUTHORIZATION;
CREATE FUNCTION attack.plan(who text, command text, target text, seqscan text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	line text;
	plan text := '';
BEGIN
	PERFORM apitoken.act_as(who);
	PERFORM set_config('enable_seqscan', seqscan, true);
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF, VERBOSE) ' || format(command, target) LOOP
		plan := plan || line || E'\n';
	END LOOP;
	RAISE SQLSTATE 'REG01';
EXCEPTION
	WHEN SQLSTATE 'REG01' THEN
		RETURN replace(plan, quote_literal(target), '...');
END
$$;
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT what, seqscan, count(DISTINCT plan) AS plans, bool_and(plan ~ 'Scan' AND plan ~ '[.]{3}') AS plausible FROM (
	SELECT what, seqscan, attack.plan('ada', command, target, seqscan) AS plan
	FROM (VALUES ('organization', 'acme'), ('organization', 'beta'), ('organization', 'none'),
			('user', 'ada'), ('user', 'zoe'), ('user', 'nil'),
			('token', :'ada_id'), ('token', :'zoe_id'), ('token', :'beta_id'), ('token', '00000000-0000-7000-8000-000000000000')) AS t (kind, target),
		(VALUES ('organization', 'tokens, list', 'SELECT * FROM apitoken.tokens WHERE organization_id = %L ORDER BY created_at DESC, id DESC LIMIT 5'),
			('organization', 'tokens, count', 'SELECT count(*) FROM apitoken_internal.token_records WHERE organization_id = %L'),
			('organization', 'tokens, label', 'SELECT id FROM apitoken.tokens WHERE organization_id = %L AND label = ''beta only'''),
			('organization', 'tokens, update', 'UPDATE apitoken.tokens SET label = ''x'' WHERE organization_id = %L'),
			('organization', 'events', 'SELECT * FROM apitoken.events WHERE organization_id = %L'),
			('organization', 'organizations', 'SELECT * FROM apitoken.organizations WHERE id = %L'),
			('organization', 'memberships', 'SELECT * FROM apitoken.memberships WHERE organization_id = %L'),
			('organization', 'members', 'SELECT * FROM apitoken.members WHERE organization_id = %L'),
			('user', 'tokens of a user', 'SELECT * FROM apitoken.tokens WHERE user_id = %L'),
			('user', 'users', 'SELECT id, name FROM apitoken.users WHERE id = %L'),
			('token', 'token', 'SELECT * FROM apitoken.tokens WHERE id = %L'),
			('token', 'token_usage', 'SELECT * FROM apitoken.token_usage WHERE token_id = %L')) AS c (kind, what, command),
		(VALUES ('on'), ('off')) AS s (seqscan)
	WHERE c.kind = t.kind) p
GROUP BY 1, 2 ORDER BY 1, 2;

-- a prepared statement and a saved plan see what the current caller may see
PREPARE mine AS SELECT label FROM apitoken.tokens WHERE $1 ORDER BY 1;
CREATE FUNCTION attack.mine() RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY SELECT label FROM apitoken.tokens ORDER BY 1; END $$;
SET plan_cache_mode = force_generic_plan;
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
EXECUTE mine(true);
SELECT * FROM attack.mine();
COMMIT;
BEGIN;
SELECT apitoken.act_as('zoe') AS acts;
EXECUTE mine(true);
SELECT * FROM attack.mine();
COMMIT;
EXECUTE mine(true);
SELECT * FROM attack.mine();
RESET plan_cache_mode;
DEALLOCATE mine;

--
-- What a member may not do to the extension.
--
RESET SESSION AUTHORIZATION;
CREATE TABLE attack.command (n int GENERATED ALWAYS AS IDENTITY, command text);
GRANT SELECT ON attack.command TO PUBLIC;
INSERT INTO attack.command (command) VALUES
	-- written by the extension alone
	('INSERT INTO apitoken.events (id, at, action, token_id, database_user, details) SELECT gen_random_uuid(), now(), ''create'', id, ''x'', ''{}'' FROM apitoken.tokens'),
	('UPDATE apitoken.events SET actor = ''zoe'''),
	('DELETE FROM apitoken.events'),
	('TRUNCATE apitoken.events'),
	('INSERT INTO apitoken.token_usage (token_id) SELECT gen_random_uuid()'),
	('UPDATE apitoken.token_usage SET last_used_at = NULL'),
	('DELETE FROM apitoken.token_usage'),
	('INSERT INTO apitoken_internal.token_records (label, organization_id, id) VALUES (''x'', ''acme'', gen_random_uuid())'),
	('INSERT INTO apitoken_internal.token_records (label, organization_id, digest, digest_scheme) VALUES (''x'', ''acme'', sha256(''x''), 0)'),
	('INSERT INTO apitoken_internal.token_records (label, organization_id, created_by) VALUES (''x'', ''acme'', ''zoe'')'),
	('INSERT INTO apitoken.tokens (label, organization_id, revoked_at) VALUES (''x'', ''acme'', NULL)'),
	('UPDATE apitoken_internal.token_records SET digest = sha256(''x'')'),
	('UPDATE apitoken_internal.token_records SET previous_digest = sha256(''x''), previous_digest_scheme = ''{0}'', previous_expires_at = ''{infinity}'''),
	('UPDATE apitoken_internal.token_records SET digest_scheme = 0'),
	('UPDATE apitoken_internal.token_records SET revoked_at = now(), revoke_reason = ''x'''),
	('UPDATE apitoken.tokens SET revoked_by = ''zoe'''),
	('UPDATE apitoken.tokens SET id = gen_random_uuid()'),
	('UPDATE apitoken.tokens SET masked = ''x'''),
	('UPDATE apitoken.tokens SET created_by = ''zoe'''),
	('UPDATE apitoken.tokens SET created_at = now()'),
	('UPDATE apitoken.tokens SET updated_at = now()'),
	('UPDATE apitoken.tokens SET last_used_at = now()'),
	('DELETE FROM apitoken_internal.token_records'),
	('TRUNCATE apitoken_internal.token_records'),
	-- the objects
	('SELECT apitoken.allow(''regress_apitoken_login'', ''directory'')'),
	('SELECT apitoken.disallow(''regress_apitoken_attacker'', ''manage'')'),
	('GRANT regress_apitoken_attacker TO regress_apitoken_login'),
	('GRANT UPDATE ON apitoken.memberships TO PUBLIC'),
	('GRANT EXECUTE ON FUNCTION apitoken_internal.token_before_insert() TO PUBLIC'),
	('ALTER TABLE apitoken_internal.token_records DISABLE ROW LEVEL SECURITY'),
	('ALTER TABLE apitoken_internal.token_records DISABLE TRIGGER ALL'),
	('ALTER TABLE apitoken_internal.token_records OWNER TO regress_apitoken_login'),
	('ALTER VIEW apitoken.tokens SET (security_invoker = false)'),
	('CREATE OR REPLACE VIEW apitoken.tokens AS SELECT 1 AS id'),
	('CREATE POLICY p ON apitoken_internal.token_records USING (true)'),
	('DROP POLICY token_records_read ON apitoken_internal.token_records'),
	('CREATE TRIGGER t BEFORE INSERT ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()'),
	('CREATE TRIGGER t INSTEAD OF INSERT ON apitoken.tokens FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()'),
	('CREATE RULE r AS ON INSERT TO apitoken.tokens DO INSTEAD NOTHING'),
	('CREATE TABLE apitoken.mine ()'),
	('CREATE FUNCTION apitoken.verify(text) RETURNS int LANGUAGE sql RETURN 1'),
	('ALTER FUNCTION apitoken.verify(text, text, apitoken.id, inet, integer) SET search_path = attack'),
	('CREATE TABLE attack.child () INHERITS (apitoken_internal.token_records)'),
	('CREATE TABLE attack.refers (id text REFERENCES apitoken.organizations)'),
	('CREATE TABLE attack.fires (id uuid); CREATE TRIGGER t BEFORE INSERT ON attack.fires FOR EACH ROW EXECUTE FUNCTION apitoken_internal.token_before_insert()'),
	('CREATE INDEX ON apitoken_internal.token_records (attack.leak(label))'),
	('CREATE STATISTICS attack.s ON id, label FROM apitoken_internal.token_records'),
	('COMMENT ON VIEW apitoken.tokens IS ''x'''),
	('ALTER EXTENSION apitoken DROP VIEW apitoken.members'),
	('DROP EXTENSION apitoken CASCADE'),
	('LOCK TABLE apitoken_internal.token_records IN ACCESS EXCLUSIVE MODE'),
	('LOCK TABLE apitoken.tokens IN ACCESS EXCLUSIVE MODE'),
	('LOCK TABLE apitoken.tokens IN SHARE MODE'),
	('LOCK TABLE apitoken.organizations IN SHARE ROW EXCLUSIVE MODE'),
	('LOCK TABLE apitoken.members IN EXCLUSIVE MODE'),
	-- the caller's identity
	('SET row_security = off; SELECT 1 FROM apitoken.tokens'),
	('SET row_security = off; SELECT apitoken.create_token(''x'', organization_id => ''acme'')'),
	('SET session_replication_role = replica'),
	('SET apitoken.prefix = ''evil'''),
	('SET apitoken.pepper_file = ''/etc/passwd'''),
	('SHOW apitoken.pepper_file'),
	('SET ROLE regress_apitoken_attacker');
SET SESSION AUTHORIZATION regress_apitoken_login;
-- (The messages are the server's own and differ between versions.  A GRANT
-- without the grant option only warns.)
SET client_min_messages = error;
SELECT left(attack.try('ada', command), 5) AS answer, command FROM attack.command ORDER BY n;

-- only the privilege was missing: for a superuser the same LOCK commands work
RESET SESSION AUTHORIZATION;
SELECT left(attack.try(NULL, command), 5) AS answer, command FROM attack.command WHERE command LIKE 'LOCK%' ORDER BY n;
SET SESSION AUTHORIZATION regress_apitoken_login;

-- such a GRANT has no effect
SET client_min_messages = error;
GRANT ALL ON apitoken.tokens TO PUBLIC;
GRANT SELECT (digest) ON apitoken_internal.token_records TO regress_apitoken_login;
SET client_min_messages = warning;
SELECT has_table_privilege('public', 'apitoken.tokens', 'SELECT') AS tokens,
	has_column_privilege('regress_apitoken_login', 'apitoken_internal.token_records', 'digest', 'SELECT') AS digest;

--
-- COPY cannot read the digests or bypass the policies.
--
\set VERBOSITY sqlstate
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SAVEPOINT s;
COPY apitoken_internal.token_records TO STDOUT;
ROLLBACK TO s;
COPY apitoken_internal.token_records (label, digest) TO STDOUT;
ROLLBACK TO s;
COPY apitoken_internal.token_records (label) TO STDOUT;
COPY apitoken.tokens TO STDOUT;
ROLLBACK TO s;
COPY apitoken_internal.token_records (label, organization_id) FROM PROGRAM 'true';
ROLLBACK TO s;
-- (data in the script would be run as SQL by some versions of psql, because COPY fails)
\copy apitoken_internal.token_records (label, organization_id) FROM /dev/null
ROLLBACK TO s;
\copy apitoken.tokens (label, organization_id) FROM /dev/null
ROLLBACK;
\set VERBOSITY terse

--
-- A user cannot lock rows that they may only read.
--
SELECT attack.try('see', 'SELECT 1 FROM apitoken.tokens') AS sees, attack.try('see', 'SELECT 1 FROM apitoken.tokens FOR UPDATE') AS "for update",
	attack.try('see', 'SELECT 1 FROM apitoken_internal.token_records FOR NO KEY UPDATE') AS "for no key update",
	attack.try('see', 'SELECT 1 FROM apitoken_internal.token_records FOR SHARE') AS "for share",
	attack.try('see', 'SELECT 1 FROM apitoken.tokens FOR KEY SHARE') AS "for key share";
SELECT attack.try('see', 'SELECT 1 FROM apitoken.organizations FOR UPDATE') AS organizations,
	-- with organization:update, those whose policy they may change
	attack.try('ada', 'SELECT 1 FROM apitoken.organizations FOR UPDATE') AS own_organizations,
	left(attack.try('ada', 'SELECT 1 FROM apitoken.roles FOR SHARE'), 5) AS roles,
	left(attack.try('ada', 'SELECT 1 FROM apitoken.token_usage FOR UPDATE'), 5) AS token_usage,
	left(attack.try('ada', 'SELECT 1 FROM apitoken.events FOR UPDATE'), 5) AS events;

--
-- A user who may only create sees no token, not even by RETURNING.  The role
-- that made the token gets its text, once.
--
SELECT left(attack.try('create', 'INSERT INTO apitoken.tokens (label, organization_id, role) VALUES (''x'', ''acme'', ''reader'')'), 6) AS inserts,
	left(attack.try('create', 'INSERT INTO apitoken.tokens (label, organization_id, role) VALUES (''x'', ''acme'', ''reader'') RETURNING id'), 5) AS returning,
	left(attack.try('create', 'SELECT apitoken.create_token(''x'', ''acme'', role => ''reader'')'), 6) AS function;
RESET SESSION AUTHORIZATION;
CREATE FUNCTION attack.by_owner(OUT id uuid) LANGUAGE sql SECURITY DEFINER
	AS $$ INSERT INTO apitoken.tokens (label, organization_id) VALUES ('by owner', 'acme') RETURNING id $$;
SET SESSION AUTHORIZATION regress_apitoken_login;
\set VERBOSITY sqlstate
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SELECT id FROM attack.by_owner() \gset
SAVEPOINT s;
-- made by another role
SELECT apitoken.take_token(:'id');
ROLLBACK TO s;
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('once', 'acme') RETURNING id, length(apitoken.take_token(id)) AS length \gset
SELECT :length AS length;
SELECT apitoken.take_token(:'id');
ROLLBACK TO s;
SELECT apitoken.take_token(:'id');
ROLLBACK;

--
-- A SECURITY DEFINER function lends nothing if its owner has no capabilities.
-- If its owner has manage, it may do what the acting user may do.
--
RESET SESSION AUTHORIZATION;
GRANT USAGE, CREATE ON SCHEMA attack TO regress_apitoken_attacker;
SET SESSION AUTHORIZATION regress_apitoken_attacker;
CREATE FUNCTION attack.definer() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS $$ SELECT apitoken.revoke_tokens(organization_id => 'acme', user_id => NULL) $$;
CREATE FUNCTION attack.definer_reads() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS $$ SELECT count(*) FROM apitoken.tokens $$;
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT left(attack.try('ada', 'SELECT attack.definer()'), 5) AS revokes, left(attack.try('ada', 'SELECT attack.definer_reads()'), 5) AS reads;
RESET SESSION AUTHORIZATION;
SELECT apitoken.allow('regress_apitoken_attacker', 'manage');
SET SESSION AUTHORIZATION regress_apitoken_attacker;
SELECT attack.definer(), attack.definer_reads();

--
-- ANALYZE (which autovacuum runs as well), REINDEX, REFRESH and cascades of
-- foreign keys call functions of a table's owner in a superuser's session,
-- which holds act.  That does not make the owner somebody.
--
CREATE TABLE attack.loot (answer text);
CREATE FUNCTION attack.steal() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('apitoken.user_id', 'ada', true);
	INSERT INTO attack.loot SELECT 'made' FROM apitoken.create_token('loot');
	RETURN NULL;
EXCEPTION WHEN OTHERS THEN
	INSERT INTO attack.loot VALUES (SQLSTATE);
	RETURN NULL;
END
$$;
CREATE FUNCTION attack.baited(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF session_user <> current_user THEN
		PERFORM attack.steal();
	END IF;
	RETURN $1;
END
$$;
CREATE TABLE attack.bait (x text);
CREATE INDEX bait_idx ON attack.bait (attack.baited(x));
INSERT INTO attack.bait VALUES ('x');
CREATE MATERIALIZED VIEW attack.summary AS SELECT attack.baited(x) FROM attack.bait;
CREATE FUNCTION attack.on_delete() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM attack.baited('x'); RETURN OLD; END $$;
RESET SESSION AUTHORIZATION;
CREATE TABLE public.regress_parent (id int PRIMARY KEY);
INSERT INTO public.regress_parent VALUES (1);
GRANT REFERENCES, SELECT ON public.regress_parent TO regress_apitoken_attacker;
SET SESSION AUTHORIZATION regress_apitoken_attacker;
CREATE TABLE attack.child (id int REFERENCES public.regress_parent ON DELETE CASCADE);
CREATE TRIGGER t BEFORE DELETE ON attack.child FOR EACH ROW EXECUTE FUNCTION attack.on_delete();
INSERT INTO attack.child VALUES (1);
RESET SESSION AUTHORIZATION;
DELETE FROM public.regress_parent;
ANALYZE attack.bait;
REINDEX TABLE attack.bait;
REFRESH MATERIALIZED VIEW attack.summary;
SELECT answer, count(*) >= 4 AS each FROM attack.loot GROUP BY 1;
SELECT count(*) FROM apitoken.tokens WHERE label = 'loot';
SELECT apitoken.current_user_id();

--
-- Trigger functions: called directly, or attached by a superuser to another
-- table.
--
RESET SESSION AUTHORIZATION;
CREATE TABLE attack.fires AS SELECT * FROM apitoken_internal.token_records WITH NO DATA;
SELECT left(attack.try(NULL, format('SELECT %s', oid::regprocedure)), 5) AS answer, proname
FROM pg_proc WHERE pronamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND prorettype = 'trigger'::regtype ORDER BY 2;
SELECT left(attack.try(NULL, format('CREATE TRIGGER t %s INSERT ON attack.fires FOR EACH %s EXECUTE FUNCTION %s;
	INSERT INTO attack.fires (id, label, organization_id) VALUES (gen_random_uuid(), ''x'', ''acme'')', at, level, oid::regprocedure)), 5) AS answer, proname, at, level
FROM pg_proc, (VALUES ('BEFORE', 'ROW'), ('AFTER', 'ROW'), ('AFTER', 'STATEMENT')) AS v (at, level)
WHERE pronamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND prorettype = 'trigger'::regtype ORDER BY 2, 3, 4;
DROP TABLE attack.fires;

--
-- Each function with nulls, and with the largest and strangest values of its
-- types, by every role that may call it: never an internal error.
--
CREATE TABLE attack.value (type regtype, value text);
INSERT INTO attack.value VALUES
	('text', 'repeat(''x'', 1000000)'), ('text', ''''''), ('text', 'repeat(''%'', 10000)'), ('text', 'E''\x01'''), ('text', 'repeat(''ä'', 300)'),
	('text[]', '(SELECT array_agg(''a:b'' || n) FROM generate_series(1, 10000) n)'), ('text[]', 'ARRAY[[''a:b''],[NULL]]'), ('text[]', '''{}'''), ('text[]', '''[5:6]={a:b,c:d}'''),
	('uuid', '''ffffffff-ffff-ffff-ffff-ffffffffffff'''),
	('interval', '''178000000 years'''), ('interval', '''-178000000 years'''), ('interval', '''2147483647 days'''), ('interval', '''00:00:00.000001'''),
	('cidr[]', '''{0.0.0.0/0,::/0}'''), ('cidr[]', '''{}'''), ('cidr[]', '''{NULL}'''), ('cidr[]', 'array_fill(''10.0.0.0/8''::cidr, ARRAY[100000])'),
	('inet', '''::/0'''), ('integer', '2147483647'), ('integer', '-2147483648'), ('bigint', '-1'),
	('jsonb', '''null'''), ('jsonb', '''[]'''), ('jsonb', '(repeat(''{"a":'', 1000) || ''1'' || repeat(''}'', 1000))::jsonb'), ('jsonb', 'jsonb_build_object(''a'', repeat(''x'', 1000000))'),
	('timestamptz', '''infinity'''), ('timestamptz', '''-infinity'''), ('timestamptz', '''4713-01-01 BC'''), ('regrole', '0'), ('regrole', '4294967295'),
	('apitoken.id', ''''''), ('apitoken.id', '''x'''), ('apitoken.id', 'repeat(''x'', 1000000)'), ('apitoken.id', 'E''\x01'''), ('apitoken.id', 'repeat(''ä'', 300)'), ('apitoken.id', '''-9223372036854775808''::bigint'),
	('apitoken.id', '''ffffffff-ffff-ffff-ffff-ffffffffffff''::uuid');
CREATE VIEW attack.call AS
	WITH f AS (
		SELECT p.oid, proname, a.type::regtype AS type, a.n, CASE WHEN provariadic <> 0 AND a.n = pronargs THEN 'VARIADIC ' ELSE '' END AS spread
		FROM pg_proc p, unnest(proargtypes::oid[]) WITH ORDINALITY AS a (type, n)
		WHERE pronamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND prorettype <> 'trigger'::regtype)
	-- all null, then one odd value at each place
	SELECT proname, format('SELECT %s(%s)', oid::regproc, string_agg(spread || 'NULL::' || type, ', ' ORDER BY n)) AS command
	FROM f GROUP BY oid, proname
	UNION ALL
	SELECT f.proname, format('SELECT %s(%s)', f.oid::regproc, (SELECT string_agg(g.spread || CASE WHEN g.n = f.n THEN v.value || '::' || f.type
			WHEN g.type = 'text'::regtype THEN '''x''' ELSE 'NULL::' || g.type END, ', ' ORDER BY g.n) FROM f g WHERE g.oid = f.oid))
	FROM f JOIN attack.value v ON v.type = f.type;
GRANT SELECT ON attack.call TO PUBLIC;
SET client_min_messages = error;
-- as a superuser, as a member and as nobody
SELECT count(*) > 200 AS many, array_agg(DISTINCT proname || ' ' || answer || ' ' || left(command, 100)) FILTER (WHERE answer ~ '^(XX|58|57|53|P0|08|42883|42601|42804|42P)') AS internal
FROM (SELECT proname, command, attack.try(who, command) AS answer FROM attack.call, (VALUES (NULL), ('ada')) AS w (who)) a;
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT array_agg(DISTINCT proname || ' ' || answer || ' ' || left(command, 100)) FILTER (WHERE answer ~ '^(XX|58|57|53|P0|08|42883|42601|42804|42P)') AS internal
FROM (SELECT proname, command, attack.try(who, command) AS answer FROM attack.call, (VALUES (NULL), ('ada')) AS w (who)) a;
-- an anonymous caller gets nothing from the functions that PUBLIC may call
RESET SESSION AUTHORIZATION;
CREATE ROLE regress_apitoken_nobody LOGIN;
SET SESSION AUTHORIZATION regress_apitoken_nobody;
SELECT apitoken.current_user_id(), apitoken.current_organization_id(), apitoken.current_token_id(), apitoken.current_role_name(), apitoken.current_groups(),
	apitoken.can('article:read'), apitoken.can('article:read', 'acme'), apitoken_internal.managed_user('token:read'), apitoken_internal.managed_organizations('a:b', 'token:read', NULL), apitoken_internal.seen_organizations();
RESET SESSION AUTHORIZATION;
DROP ROLE regress_apitoken_nobody;
RESET client_min_messages;
SET client_min_messages = warning;

--
-- Ids and labels with the greatest length and with unusual characters.
--
INSERT INTO apitoken.organizations (id) VALUES (repeat('o', 255)), (E'a''b"\\ c'), ('ACME'), ('acme ');
INSERT INTO apitoken.memberships SELECT o.id, u.id, 'admin'
	FROM apitoken.organizations o, (VALUES (repeat('ü', 127) || 'u'), (E'x''y"\\ z')) AS u (id) WHERE o.id NOT IN ('acme', 'beta');
SET SESSION AUTHORIZATION regress_apitoken_login;
CREATE FUNCTION pg_temp.odd(who text) RETURNS TABLE (place text, verdict text, label int, listed bigint) LANGUAGE plpgsql AS $$
DECLARE
	secret text;
BEGIN
	PERFORM apitoken.act_as(who);
	FOR place IN SELECT o FROM apitoken.organizations_allowed('article:read') o ORDER BY o COLLATE "C" LOOP
		secret := (apitoken.create_token(repeat('😀', 255), organization_id => place)).token;
		SELECT v.verdict, length(v.label) INTO verdict, label FROM apitoken.verify(secret, 'article:read', place) v;
		listed := (SELECT count(*) FROM apitoken.list_tokens(repeat('😀', 255), place));
		RETURN NEXT;
	END LOOP;
	secret := (apitoken.create_token(repeat('😀', 255))).token;
	place := '(own)';
	SELECT v.verdict, length(v.label) INTO verdict, label FROM apitoken.verify(secret) v;
	listed := (SELECT count(*) FROM apitoken.list_tokens() l WHERE l.user_id = who);
	RETURN NEXT;
END
$$;
BEGIN;
SELECT md5(place) = md5(repeat('o', 255)) AS long, left(place, 10) AS place, verdict, label, listed FROM pg_temp.odd(repeat('ü', 127) || 'u');
ROLLBACK;
BEGIN;
SELECT left(place, 10) AS place, verdict, label, listed FROM pg_temp.odd(E'x''y"\\ z');
ROLLBACK;
-- case and blanks are significant
SELECT attack.try('ada', 'SELECT apitoken.create_token(''x'', organization_id => ''ACME'')') AS upper_case,
	attack.try('ada', 'SELECT apitoken.create_token(''x'', organization_id => ''acme '')') AS blank,
	attack.try('Ada', 'SELECT apitoken.create_token(''x'', organization_id => ''acme'')') AS another_user;
DROP FUNCTION pg_temp.odd(text);
RESET SESSION AUTHORIZATION;

--
-- Saved plans outlive changes: the owner adds columns, or drops the extension
-- and creates it again.
--
ALTER TABLE apitoken_internal.token_records ADD COLUMN extra text DEFAULT 'x';
ALTER TABLE apitoken.organizations ADD COLUMN extra text DEFAULT 'x';
CREATE INDEX regress_extra ON apitoken_internal.token_records (extra);
SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SELECT id, token FROM apitoken.create_token('with extra', organization_id => 'acme') \gset
UPDATE apitoken.tokens SET description = 'x' WHERE id = :'id' RETURNING label, status;
SELECT token FROM apitoken.regenerate_token(:'id') \gset
SELECT verdict FROM apitoken.verify(:'token');
SELECT apitoken.revoke_token(:'id', 'with extra');
SELECT verdict FROM apitoken.verify(:'token');
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT string_agg(action, ' ' ORDER BY id) FROM apitoken.events WHERE token_id = :'id';

\set VERBOSITY sqlstate
PREPARE saved AS SELECT (apitoken.create_token('saved', user_id => 'ada')).token IS NOT NULL AS made;
EXECUTE saved;
BEGIN;
DROP EXTENSION apitoken CASCADE;
SELECT apitoken.whoami();
ROLLBACK;
SELECT (apitoken.verify(:'acme')).verdict;
DROP EXTENSION apitoken CASCADE;
EXECUTE saved;
SELECT 1 AS still_here;
CREATE EXTENSION apitoken;
SELECT (apitoken.verify(:'acme')).verdict;
EXECUTE saved;
SELECT id FROM apitoken.tokens \gset
UPDATE apitoken.tokens SET description = 'x' WHERE id = :'id';
SELECT token IS NOT NULL AS regenerated FROM apitoken.regenerate_token(:'id');
DELETE FROM apitoken.users WHERE id = 'ada';
SELECT action FROM apitoken.events ORDER BY id;
DEALLOCATE saved;
\set VERBOSITY terse

--
-- Values of any length: refused, or interrupted in time
--
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_try.sql
CREATE TEMP TABLE long AS SELECT array_agg('zz:b' || g) AS permissions FROM generate_series(1, 101) g;
INSERT INTO long SELECT array_agg('zz:b' || g) FROM generate_series(1, 300000) g;
INSERT INTO long SELECT array_fill(NULL::text, '{300000}');
INSERT INTO apitoken.organizations (id) VALUES ('long');
INSERT INTO apitoken.users (id) VALUES ('ada');
INSERT INTO apitoken.memberships (organization_id, user_id, role) VALUES ('long', 'ada', 'admin');
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SELECT cardinality(permissions), public.regress_try(format(call, permissions))
FROM long, (VALUES (1, 'SELECT apitoken_internal.managed_organizations(VARIADIC %L)'),
	(2, 'SELECT apitoken_internal.managed_user(VARIADIC %L)'),
	(3, 'SELECT apitoken_internal.manages_organization(''long'', VARIADIC %L)'),
	(4, 'SELECT apitoken_internal.manages_user(''ada'', VARIADIC %L)'),
	(5, 'SELECT apitoken_internal.manages_record(gen_random_uuid(), ''long'', NULL, VARIADIC %L)'),
	(6, 'SELECT apitoken_internal.manages_event(gen_random_uuid(), ''long'', NULL, VARIADIC %L)'),
	(7, 'SELECT apitoken_internal.manages_token(gen_random_uuid(), VARIADIC %L)')) calls (n, call)
ORDER BY n, ctid;
SELECT apitoken_internal.managed_organizations(VARIADIC permissions[:100]) FROM long LIMIT 1;
ROLLBACK;
SET apitoken.token_headers = 'a1,a2,a3,a4,a5,a6,a7,a8,a9,a10,a11,a12,a13,a14,a15,a16,a17';
SET apitoken.token_headers = 'a1,a2,a3,a4,a5,a6,a7,a8,a9,a10,a11,a12,a13,a14,a15,a16';
RESET apitoken.token_headers;
-- Headers without end: the whole time, then that of a cancelled call
BEGIN;
SELECT set_config('request.headers', '{' || repeat('"a":"b",', 1000000) || '"c":"d"}', true) IS NOT NULL AS set;
SELECT clock_timestamp() AS began \gset
SELECT apitoken.pre_request();
SELECT clock_timestamp() - :'began' AS whole \gset
SAVEPOINT s;
SET LOCAL statement_timeout = '20ms';
SELECT clock_timestamp() AS began \gset
SELECT apitoken.pre_request();
ROLLBACK TO s;
SELECT clock_timestamp() - :'began' < :'whole'::interval / 2 AS in_time;
ROLLBACK;
DELETE FROM apitoken.organizations WHERE id = 'long';
DROP TABLE long;

DROP SCHEMA attack CASCADE;
DROP TABLE public.regress_parent;
DO $$ BEGIN EXECUTE format('REVOKE CREATE ON DATABASE %I FROM regress_apitoken_attacker', current_database()); END $$;
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_teardown.sql
