--
-- A read-only identity makes its transaction READ ONLY, whatever is tried.
--
-- 25006: refused in a READ ONLY transaction.  Each attempt runs in its own
-- transaction, as the tables' owner, so that only the identity can be the reason
-- for a refusal.
--
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\set VERBOSITY sqlstate
\pset format unaligned
\pset tuples_only on
\pset null -

INSERT INTO apitoken.organizations (id) VALUES ('acme');
SELECT (apitoken.create_token('ro', organization_id => 'acme', access => 'read_only')).token AS ro \gset
SELECT (apitoken.create_token('rw', organization_id => 'acme')).token AS rw \gset
SELECT (apitoken.create_token('ro', user_id => 'alice', access => 'read_only')).token AS ro2 \gset
UPDATE apitoken.token_usage SET last_used_at = clock_timestamp();

CREATE SCHEMA ro;
CREATE TABLE ro.t (n int);
CREATE TABLE ro.log (n int);
CREATE SEQUENCE ro.s;
CREATE TABLE ro.secret (kind text PRIMARY KEY, token text);
INSERT INTO ro.secret VALUES ('ro', :'ro'), ('rw', :'rw'), ('ro2', :'ro2');
-- authenticates, without the text in any statement
CREATE FUNCTION ro.be(kind text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RETURN (apitoken.authenticate((SELECT s.token FROM ro.secret s WHERE s.kind = be.kind))).valid;
END
$$;
-- the same in a block with EXCEPTION, which reverts READ ONLY at its end
CREATE FUNCTION ro.be_inside(kind text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RETURN (apitoken.authenticate((SELECT s.token FROM ro.secret s WHERE s.kind = be_inside.kind))).valid;
EXCEPTION WHEN division_by_zero THEN
	RETURN NULL;
END
$$;
-- runs one attempt and returns its SQLSTATE
CREATE FUNCTION ro.try(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
CREATE FUNCTION ro.insert_one() RETURNS int LANGUAGE sql AS 'INSERT INTO ro.t VALUES (1) RETURNING n';
CREATE FUNCTION ro.insert_definer() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO ro.t VALUES (1) RETURNING n';
CREATE FUNCTION ro.insert_plpgsql() RETURNS int LANGUAGE plpgsql AS 'BEGIN INSERT INTO ro.t VALUES (1); RETURN 1; END';
CREATE FUNCTION ro.insert_stable() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN ro.insert_plpgsql(); END';
CREATE PROCEDURE ro.insert_procedure() LANGUAGE plpgsql AS 'BEGIN INSERT INTO ro.t VALUES (1); END';
CREATE VIEW ro.v AS SELECT ro.insert_one();
CREATE FUNCTION ro.trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO ro.log VALUES (1); RETURN NEW; END';

\set written 'SELECT (SELECT count(*) FROM ro.t), (SELECT count(*) FROM ro.log), (SELECT is_called FROM ro.s)'
:written;

--
-- Commands that PostgreSQL refuses in READ ONLY transactions
--
CREATE TABLE ro.attempts (id int, query text);
INSERT INTO ro.attempts VALUES
	(1, 'INSERT INTO ro.t VALUES (1)'),
	(2, 'UPDATE ro.t SET n = 2'),
	(3, 'DELETE FROM ro.t'),
	(4, 'MERGE INTO ro.t USING (SELECT 1) s ON false WHEN NOT MATCHED THEN INSERT VALUES (1)'),
	(5, 'WITH w AS (INSERT INTO ro.t VALUES (1) RETURNING n) SELECT * FROM w'),
	(6, 'TRUNCATE ro.t'),
	(7, 'SELECT * FROM ro.t FOR UPDATE'),
	(8, 'CREATE TABLE ro.new (n int)'),
	(9, 'SELECT 1 AS n INTO ro.new'),
	(10, 'CREATE TABLE ro.new AS SELECT 1 AS n'),
	(11, 'ALTER TABLE ro.t ADD m int'),
	(12, 'DROP TABLE ro.t'),
	(13, 'CREATE INDEX ON ro.t (n)'),
	(14, 'CREATE FUNCTION ro.new() RETURNS int LANGUAGE sql AS ''SELECT 1'''),
	(15, 'GRANT SELECT ON ro.t TO PUBLIC'),
	(16, 'COMMENT ON TABLE ro.t IS ''x'''),
	(17, 'REINDEX TABLE ro.secret'),
	(18, 'LOCK TABLE ro.t IN ROW EXCLUSIVE MODE'),
	(19, 'LOCK TABLE ro.t IN ACCESS EXCLUSIVE MODE'),
	(20, 'SELECT nextval(''ro.s'')'),
	(21, 'SELECT setval(''ro.s'', 10)'),
	(22, 'SELECT ro.insert_one()'),
	(23, 'SELECT ro.insert_definer()'),
	(24, 'SELECT max(ro.insert_one()) FROM generate_series(1, 3)'),
	(25, 'SELECT ro.insert_plpgsql()'),
	(26, 'SELECT ro.insert_stable()'),
	(27, 'SELECT * FROM ro.v'),
	(28, 'CALL ro.insert_procedure()'),
	(29, 'DO $d$BEGIN INSERT INTO ro.t VALUES (1); END$d$'),
	(30, 'DO $d$DECLARE x bigint; BEGIN x := nextval(''ro.s''); END$d$'),
	(31, 'DO $d$BEGIN EXECUTE ''INSERT INTO ro.t VALUES (1)''; END$d$'),
	(32, 'DO $d$BEGIN BEGIN INSERT INTO ro.t VALUES (1); EXCEPTION WHEN division_by_zero THEN NULL; END; END$d$'),
	(33, 'EXPLAIN ANALYZE INSERT INTO ro.t VALUES (1)'),
	(34, 'EXECUTE prepared_before'),
	(35, 'SELECT query_to_xml(''INSERT INTO ro.t VALUES (1) RETURNING n'', true, true, '''')'),
	(36, 'SELECT query_to_xml(''SELECT nextval(''''ro.s'''')'', true, true, '''')'),
	(37, 'UPDATE apitoken.organizations SET name = ''x'''),
	(38, 'SELECT apitoken.create_token(''new'', organization_id => ''acme'')'),
	(39, 'INSERT INTO apitoken.tokens (label, organization_id) VALUES (''new'', ''acme'')'),
	(40, 'SELECT apitoken.revoke_by_token((SELECT token FROM ro.secret WHERE kind = ''rw''))'),
	(41, 'SELECT apitoken.revoke_tokens(organization_id => ''acme'')'),
	(42, 'SELECT apitoken.regenerate_token((SELECT id FROM apitoken.tokens WHERE label = ''rw''))'),
	(43, 'SELECT apitoken.allow(''pg_monitor'', ''act'')'),
	(44, 'ALTER EXTENSION apitoken ADD TABLE ro.t'),
	(45, 'ANALYZE ro.t'),
	(46, 'NOTIFY x'),
	(47, 'CREATE TEMP TABLE tt (n int)'),
	(48, 'REFRESH MATERIALIZED VIEW ro.no_such'),
	(49, 'PREPARE TRANSACTION ''x'''),
	(50, 'COPY ro.t FROM ''/dev/null'''),
	(51, 'SELECT apitoken.disallow(''pg_monitor'', ''act'')'),
	(52, 'SELECT ro.be(''ro'')');
PREPARE prepared_before AS INSERT INTO ro.t VALUES (1);
-- First the server's own answer under READ ONLY, then the answer with a read-only
-- identity: by authenticate(), by the setting, by authenticate() in a block with
-- EXCEPTION.  They must not differ, and nothing may have been written.
\set VERBOSITY terse
CREATE TABLE ro.results (id int, server text, call text, setting text, block text);
DO $$
DECLARE
	attempt ro.attempts;
	r ro.results;
	who text;
	outcome text;
BEGIN
	FOR attempt IN SELECT * FROM ro.attempts ORDER BY id LOOP
		r := ROW (attempt.id, NULL, NULL, NULL, NULL);
		FOREACH who IN ARRAY '{server,call,setting,block}'::text[] LOOP
			-- raises whatever happens, so that it is all rolled back
			BEGIN
				IF who = 'server' THEN
					SET LOCAL transaction_read_only = on;
				ELSIF who = 'call' THEN
					PERFORM ro.be('ro');
				ELSIF who = 'setting' THEN
					PERFORM set_config('apitoken.token', s.token, true) FROM ro.secret s WHERE s.kind = 'ro';
				ELSE
					PERFORM ro.be_inside('ro');
				END IF;
				outcome := ro.try(attempt.query);
				RAISE division_by_zero;
			EXCEPTION WHEN division_by_zero THEN
				NULL;
			END;
			CASE who
				WHEN 'server' THEN r.server := outcome;
				WHEN 'call' THEN r.call := outcome;
				WHEN 'setting' THEN r.setting := outcome;
				ELSE r.block := outcome;
			END CASE;
		END LOOP;
		INSERT INTO ro.results SELECT r.*;
	END LOOP;
END
$$;
\set VERBOSITY sqlstate
-- each cell where the identity and the server give different answers
SELECT * FROM ro.results r JOIN ro.attempts a USING (id) WHERE (call, setting, block) IS DISTINCT FROM (server, server, server) ORDER BY id;
SELECT id, server, left(query, 60) FROM ro.results JOIN ro.attempts USING (id) ORDER BY id;
:written;

--
-- The same at top level, outside of any block
--
BEGIN; SELECT ro.be('ro'); INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be_inside('ro'); INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be_inside('ro'); SELECT nextval('ro.s'); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; CREATE TABLE ro.new (n int); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; SELECT nextval('ro.s'); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; TRUNCATE ro.t; ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; COPY ro.t FROM '/dev/null'; ROLLBACK;
BEGIN; SELECT ro.be('ro'); COPY ro.t FROM '/dev/null'; ROLLBACK;
BEGIN; SELECT ro.be_inside('ro'); COPY ro.t FROM '/dev/null'; ROLLBACK;
BEGIN; SELECT ro.be('ro'); COPY (INSERT INTO ro.t VALUES (1) RETURNING n) TO STDOUT; ROLLBACK;
BEGIN; SELECT ro.be('ro'); COPY ro.t TO STDOUT; ROLLBACK;
BEGIN; SELECT ro.be('ro'); EXECUTE prepared_before; ROLLBACK;
BEGIN; SELECT ro.be('ro'); SELECT apitoken.authenticate(:'ro') IS NULL; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be('ro2'); INSERT INTO ro.t VALUES (1); ROLLBACK;
-- in the same statement as the authentication
BEGIN; SELECT ro.be('ro'), nextval('ro.s'); ROLLBACK;
BEGIN; SELECT ro.be('ro'), ro.insert_plpgsql(); ROLLBACK;
BEGIN; SELECT ro.be_inside('ro'), ro.insert_plpgsql(); ROLLBACK;
BEGIN; SELECT set_config('apitoken.token', :'ro', true) IS NULL, ro.insert_plpgsql(); ROLLBACK;
-- in one message
BEGIN \; SELECT ro.be('ro') \; INSERT INTO ro.t VALUES (1);
ROLLBACK;
-- control: a token with full access can write
BEGIN; SELECT ro.be('rw'); INSERT INTO ro.t VALUES (1); SELECT nextval('ro.s'); SELECT count(*) FROM ro.t; ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'rw'; INSERT INTO ro.t VALUES (1); ROLLBACK;
ALTER SEQUENCE ro.s RESTART;
SELECT setval('ro.s', 1, false);
:written;

--
-- Ways to take READ ONLY back
--
BEGIN; SELECT ro.be('ro'); SET TRANSACTION READ WRITE; ROLLBACK;
BEGIN; SELECT ro.be('ro'); SET transaction_read_only = off; ROLLBACK;
BEGIN; SELECT ro.be('ro'); SET LOCAL transaction_read_only = off; ROLLBACK;
BEGIN; SELECT ro.be('ro'); SELECT set_config('transaction_read_only', 'off', true); ROLLBACK;
-- (16 and later refuse this RESET itself)
BEGIN; SELECT ro.be('ro'); SELECT ro.try('RESET transaction_read_only') IN ('done', '0A000'); INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be('ro'); RESET ALL; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be('ro'); SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be('ro'); SET LOCAL default_transaction_read_only = off; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; SET TRANSACTION READ WRITE; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN READ WRITE; SELECT ro.be('ro'); INSERT INTO ro.t VALUES (1); ROLLBACK;
-- clearing the setting does not end the identity
BEGIN; SET LOCAL apitoken.token = :'ro'; SELECT 1; SET LOCAL apitoken.token = ''; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; SELECT 1; RESET apitoken.token; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; SELECT 1; SAVEPOINT s; SET LOCAL apitoken.token = ''; INSERT INTO ro.t VALUES (1); ROLLBACK;
-- savepoints around, before and after
BEGIN; SAVEPOINT s; SELECT ro.be('ro'); RELEASE s; SHOW transaction_read_only; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT ro.be('ro'); RELEASE s; SELECT nextval('ro.s'); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT ro.be('ro'); RELEASE s; CREATE TABLE ro.new (n int); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT ro.be('ro'); RELEASE s; SET TRANSACTION READ WRITE; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT ro.be('ro'); RELEASE s; SAVEPOINT t; ROLLBACK TO t; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SAVEPOINT s; SAVEPOINT t; SELECT ro.be('ro'); RELEASE t; RELEASE s; EXECUTE prepared_before; ROLLBACK;
BEGIN; SELECT ro.be('ro'); SAVEPOINT s; ROLLBACK TO s; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; SAVEPOINT s; SELECT 1; ROLLBACK TO s; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SAVEPOINT s; SET LOCAL apitoken.token = :'ro'; RELEASE s; INSERT INTO ro.t VALUES (1); ROLLBACK;
-- ROLLBACK TO a savepoint before the identity restores the earlier mode
BEGIN; SAVEPOINT s; SELECT ro.be('ro'); ROLLBACK TO s; INSERT INTO ro.t VALUES (1); SELECT count(*) FROM ro.t; ROLLBACK;
BEGIN; SAVEPOINT s; SAVEPOINT t; SELECT ro.be('ro'); RELEASE t; SELECT 1; ROLLBACK TO s; INSERT INTO ro.t VALUES (1); SELECT count(*) FROM ro.t; ROLLBACK;
BEGIN READ ONLY; SAVEPOINT s; SELECT ro.be('ro'); ROLLBACK TO s; INSERT INTO ro.t VALUES (1); ROLLBACK;
-- a second identity that can write
BEGIN; SELECT ro.be('ro'); SELECT ro.be('rw'); ROLLBACK;
BEGIN; SELECT ro.be('ro'); SELECT apitoken.act_as('alice'); ROLLBACK;

--
-- PL/pgSQL evaluates simple expressions without a statement
--
\set VERBOSITY terse
-- a new one after the block
DO $$
DECLARE
	x bigint;
BEGIN
	PERFORM ro.be_inside('ro');
	x := nextval('ro.s');
	RAISE NOTICE 'written';
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE '%', SQLERRM;
END
$$;
DO $$
DECLARE
	x bigint;
BEGIN
	BEGIN
		x := (apitoken.authenticate((SELECT token FROM ro.secret WHERE kind = 'ro'))).valid::int;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	IF nextval('ro.s') > 0 THEN
		RAISE NOTICE 'written';
	END IF;
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE '%', SQLERRM;
END
$$;
-- an expression that was evaluated before, and is cached for the transaction
SELECT setval('ro.s', 1, false);
DO $$
DECLARE
	x bigint;
BEGIN
	FOR i IN 1..3 LOOP
		BEGIN
			IF i = 2 THEN
				x := ro.be('ro')::int;
			END IF;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
		x := nextval('ro.s');
		RAISE NOTICE 'pass % wrote', i;
	END LOOP;
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE '%', SQLERRM;
END
$$;
SELECT setval('ro.s', 1, false);
CREATE FUNCTION ro.next() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN nextval(''ro.s''); END';
DO $$
DECLARE
	x bigint;
BEGIN
	x := ro.next();
	PERFORM ro.be_inside('ro');
	x := ro.next();
	RAISE NOTICE 'written';
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE '%', SQLERRM;
END
$$;
SELECT setval('ro.s', 1, false);
\set VERBOSITY sqlstate
:written;

--
-- Cursors opened before the identity is set
--
BEGIN;
DECLARE c CURSOR FOR SELECT ro.insert_plpgsql() FROM generate_series(1, 3);
DECLARE d CURSOR FOR SELECT nextval('ro.s') FROM generate_series(1, 3);
SELECT ro.be('ro');
SAVEPOINT s;
FETCH c;
ROLLBACK TO s;
FETCH d;
ROLLBACK;
-- fetched further after the end of a block reverted READ ONLY
BEGIN;
DECLARE d CURSOR FOR SELECT nextval('ro.s') FROM generate_series(1, 3);
SELECT ro.be_inside('ro');
FETCH d;
ROLLBACK;
BEGIN;
DECLARE d CURSOR FOR SELECT nextval('ro.s') FROM generate_series(1, 3);
SELECT ro.be_inside('ro');
MOVE d;
ROLLBACK;
BEGIN;
DECLARE d CURSOR WITH HOLD FOR SELECT nextval('ro.s') FROM generate_series(1, 3);
SELECT ro.be_inside('ro');
COMMIT;
FETCH d;
SELECT setval('ro.s', 1, false);
:written;

--
-- Triggers
--
CREATE TRIGGER t BEFORE INSERT ON ro.t FOR EACH ROW EXECUTE FUNCTION ro.trigger();
BEGIN; SELECT ro.be('ro'); INSERT INTO ro.t VALUES (1); ROLLBACK;
-- on a temporary table: the table may be written, but its trigger may not write others
CREATE TEMP TABLE temporary (n int);
CREATE TEMP SEQUENCE temporary_sequence;
BEGIN; SELECT ro.be('ro'); INSERT INTO temporary VALUES (1); SELECT nextval('temporary_sequence'); SELECT count(*) FROM temporary; COMMIT;
CREATE TRIGGER t AFTER INSERT ON temporary FOR EACH ROW EXECUTE FUNCTION ro.trigger();
BEGIN; SELECT ro.be('ro'); INSERT INTO temporary VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be_inside('ro'); INSERT INTO temporary VALUES (1); ROLLBACK;
-- deferred: written before the identity, fired after it
DROP TRIGGER t ON ro.t;
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON ro.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ro.trigger();
BEGIN; INSERT INTO ro.t VALUES (1); SELECT ro.be('ro'); COMMIT;
BEGIN; INSERT INTO ro.t VALUES (1); SELECT ro.be_inside('ro'); COMMIT;
BEGIN; INSERT INTO ro.t VALUES (1); SELECT ro.be_inside('ro'); SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK;
DROP TRIGGER t ON ro.t;
:written;

--
-- Procedures that end the transaction
--
\set VERBOSITY terse
CREATE PROCEDURE ro.two_transactions() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM ro.be('ro');
	COMMIT;
	INSERT INTO ro.log VALUES (2);
	RAISE NOTICE 'the second transaction writes, as nobody: %', apitoken.current_token_id();
	COMMIT;
	PERFORM ro.be_inside('ro');
	INSERT INTO ro.log VALUES (3);
	RAISE NOTICE 'written';
END
$$;
SET client_min_messages = error;
CALL ro.two_transactions();
RESET client_min_messages;
\set VERBOSITY sqlstate
SELECT n FROM ro.log;
DELETE FROM ro.log;

--
-- Statements that fix the identity themselves, after the server has checked them
--
-- ro.fix() authenticates with the token that ro.who names, if it names one.
\set VERBOSITY terse
CREATE FUNCTION ro.fix() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RETURN coalesce(current_setting('ro.who', true), '') = '' OR ro.be(current_setting('ro.who'));
END
$$;
CREATE FUNCTION ro.fix_immutable(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN PERFORM ro.fix(); RETURN n; END';
CREATE FUNCTION ro.fix_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM ro.fix(); RETURN NEW; END';
CREATE FUNCTION ro.fix_event() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM ro.fix(); END';
CREATE PROCEDURE ro.fix_procedure(b boolean) LANGUAGE plpgsql AS 'BEGIN NULL; END';
-- in this schema, so that nothing but the statement itself calls ro.fix()
CREATE SCHEMA rw;
CREATE TABLE rw.t (n int);
INSERT INTO rw.t VALUES (1), (2);
CREATE TABLE rw.truncated (n int);
CREATE TRIGGER t BEFORE TRUNCATE ON rw.truncated FOR EACH STATEMENT EXECUTE FUNCTION ro.fix_trigger();
CREATE TABLE rw.referring (n int) INHERITS (rw.truncated);
CREATE TABLE rw.copied (b boolean DEFAULT ro.fix(), n int);
CREATE TABLE rw.copied_trigger (n int);
CREATE TRIGGER t BEFORE INSERT ON rw.copied_trigger FOR EACH STATEMENT EXECUTE FUNCTION ro.fix_trigger();
CREATE TABLE rw.partitioned (b boolean) PARTITION BY LIST (b);
CREATE TABLE rw.ranges (b boolean) PARTITION BY RANGE (b);
CREATE TABLE rw.part (b boolean CHECK (b));
INSERT INTO rw.part VALUES (true);
CREATE DOMAIN rw.d AS int;
CREATE TABLE rw.of_domain (n rw.d);
INSERT INTO rw.of_domain VALUES (1);
ALTER DOMAIN rw.d ADD CONSTRAINT later CHECK (ro.fix()) NOT VALID;
CREATE TABLE rw.checked (n int);
INSERT INTO rw.checked VALUES (1);
ALTER TABLE rw.checked ADD CONSTRAINT later CHECK (ro.fix()) NOT VALID;
CREATE TABLE rw.indexed (n int);
INSERT INTO rw.indexed VALUES (1), (2);
CREATE INDEX indexed_n ON rw.indexed (ro.fix_immutable(n));
CREATE MATERIALIZED VIEW rw.m AS SELECT ro.fix() WITH NO DATA;
CREATE TABLE rw.deferred (n int);
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON rw.deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ro.fix_trigger();
CREATE SEQUENCE rw.s;
CREATE TEMP TABLE temporary_copied (b boolean DEFAULT ro.fix(), n int);
INSERT INTO temporary_copied VALUES (true, 1);
CREATE ROLE regress_apitoken_nobody;
PREPARE prepared_fix(boolean) AS SELECT 1;
PREPARE prepared_insert(boolean) AS INSERT INTO rw.t VALUES (3);
CREATE TABLE ro.during (id int, event boolean, query text, server text, by_rw text, by_ro text);
INSERT INTO ro.during (id, event, query) VALUES
	(1, false, 'TRUNCATE rw.truncated'),
	(2, false, 'TRUNCATE rw.t, rw.truncated'),
	(3, false, 'CREATE TABLE rw.p1 PARTITION OF rw.partitioned FOR VALUES IN (ro.fix())'),
	(4, false, 'CREATE TABLE rw.p2 PARTITION OF rw.ranges FOR VALUES FROM (MINVALUE) TO (ro.fix())'),
	(5, false, 'ALTER TABLE rw.partitioned ATTACH PARTITION rw.part FOR VALUES IN (ro.fix())'),
	(6, false, 'ALTER DOMAIN rw.d ADD CHECK (value > 0 AND ro.fix())'),
	(7, false, 'ALTER DOMAIN rw.d VALIDATE CONSTRAINT later'),
	(8, false, 'ALTER TABLE rw.t ADD b boolean DEFAULT ro.fix()'),
	(9, false, 'ALTER TABLE rw.t ALTER n TYPE boolean USING ro.fix()'),
	(10, false, 'ALTER TABLE rw.t ADD CHECK (ro.fix())'),
	(11, false, 'ALTER TABLE rw.checked VALIDATE CONSTRAINT later'),
	(12, false, 'CREATE INDEX ON rw.t (ro.fix_immutable(n))'),
	(13, false, 'CREATE INDEX ON rw.t (n) WHERE ro.fix_immutable(n) = 1'),
	(14, false, 'ALTER TABLE rw.t ADD EXCLUDE ((ro.fix_immutable(n)) WITH =)'),
	(15, true, 'CREATE TABLE rw.new (LIKE rw.indexed INCLUDING INDEXES)'),
	(16, false, 'CREATE TABLE rw.new AS SELECT ro.fix()'),
	(17, false, 'EXPLAIN ANALYZE SELECT ro.fix() FROM rw.t FOR SHARE'),
	(18, false, 'CREATE MATERIALIZED VIEW rw.new AS SELECT ro.fix()'),
	(19, false, 'REFRESH MATERIALIZED VIEW rw.m'),
	(20, false, 'EXPLAIN ANALYZE CREATE TABLE rw.new AS SELECT ro.fix()'),
	(21, false, 'CREATE TABLE rw.new AS EXECUTE prepared_fix(ro.fix())'),
	(22, false, 'COPY rw.copied (n) FROM PROGRAM ''echo 1'''),
	(23, false, 'COPY rw.copied_trigger FROM PROGRAM ''echo 1'''),
	(24, false, 'COPY temporary_copied (n) FROM PROGRAM ''echo 1'''),
	(25, false, 'SELECT ro.fix() FROM rw.t FOR UPDATE'),
	(26, false, 'SELECT ro.fix() FROM rw.t FOR KEY SHARE'),
	(27, false, 'SELECT ro.fix() FROM temporary_copied FOR UPDATE'),
	(28, false, 'INSERT INTO rw.t SELECT 1 WHERE ro.fix()'),
	(29, false, 'EXECUTE prepared_insert(ro.fix())'),
	(30, false, 'EXECUTE prepared_fix(ro.fix())'),
	(31, false, 'EXPLAIN ANALYZE SELECT ro.fix()'),
	(32, false, 'EXPLAIN ANALYZE INSERT INTO rw.t SELECT 1 WHERE ro.fix()'),
	(33, false, 'CALL ro.fix_procedure(ro.fix())'),
	(34, false, 'DO $d$BEGIN PERFORM ro.fix(); END$d$'),
	(35, false, 'REINDEX TABLE rw.indexed'),
	(36, false, 'ANALYZE rw.indexed'),
	(37, false, 'CLUSTER rw.indexed USING indexed_n'),
	(38, true, 'CREATE TABLE rw.new (n int)'),
	(39, true, 'CREATE TEMP TABLE new (n int)'),
	(40, true, 'CREATE SCHEMA new CREATE TABLE t (n int)'),
	(41, true, 'CREATE VIEW rw.new AS SELECT 1'),
	(42, true, 'CREATE FUNCTION rw.new() RETURNS int LANGUAGE sql AS ''SELECT 1'''),
	(43, true, 'CREATE TYPE rw.new AS ENUM (''a'')'),
	(44, true, 'CREATE DOMAIN rw.new AS int CHECK (value > 0)'),
	(45, true, 'CREATE SEQUENCE rw.new'),
	(46, true, 'ALTER SEQUENCE rw.s RESTART'),
	(47, true, 'CREATE TRIGGER new BEFORE INSERT ON rw.t EXECUTE FUNCTION ro.trigger()'),
	(48, true, 'CREATE POLICY new ON rw.t USING (true)'),
	(49, true, 'CREATE RULE new AS ON INSERT TO rw.t DO NOTHING'),
	(50, true, 'CREATE STATISTICS rw.new ON n, (n + 1) FROM rw.t'),
	(51, true, 'CREATE PUBLICATION regress_apitoken_new'),
	(52, true, 'CREATE CAST (rw.t AS rw.truncated) WITH INOUT'),
	(53, true, 'CREATE FOREIGN DATA WRAPPER regress_apitoken_new'),
	(54, true, 'CREATE EXTENSION IF NOT EXISTS plpgsql'),
	(55, true, 'ALTER TABLE rw.t RENAME TO new'),
	(56, true, 'ALTER TABLE rw.t SET SCHEMA public'),
	(57, true, 'ALTER TABLE rw.t OWNER TO CURRENT_USER'),
	(58, true, 'ALTER FUNCTION ro.fix() STABLE'),
	(59, true, 'ALTER DEFAULT PRIVILEGES IN SCHEMA rw GRANT SELECT ON TABLES TO PUBLIC'),
	(60, true, 'GRANT SELECT ON rw.t TO PUBLIC'),
	(61, true, 'REVOKE SELECT ON rw.t FROM PUBLIC'),
	(62, true, 'COMMENT ON TABLE rw.t IS ''x'''),
	(63, true, 'DROP TABLE rw.t'),
	(64, true, 'DROP FUNCTION ro.fix_trigger() CASCADE'),
	(65, true, 'DROP OWNED BY regress_apitoken_nobody'),
	(66, true, 'CREATE TEXT SEARCH CONFIGURATION rw.new (COPY = simple)'),
	(67, true, 'CREATE OPERATOR rw.@@@@ (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)');
-- The server's own answer under READ ONLY, then by a token with full access and by a
-- read-only one, where the transaction is READ WRITE when the statement begins.
DO $$
DECLARE
	d ro.during;
	who text;
	outcome text;
BEGIN
	FOR d IN SELECT * FROM ro.during ORDER BY id LOOP
		FOREACH who IN ARRAY '{"",rw,ro}'::text[] LOOP
			-- raises whatever happens, so that it is all rolled back
			BEGIN
				SET LOCAL client_min_messages = error;
				IF who = '' THEN
					SET LOCAL transaction_read_only = on;
				ELSIF d.event THEN
					CREATE EVENT TRIGGER regress_apitoken_event ON ddl_command_start EXECUTE FUNCTION ro.fix_event();
				END IF;
				PERFORM set_config('ro.who', who, true);
				outcome := ro.try(d.query);
				IF outcome = 'done' AND who <> '' AND apitoken.current_token_id() IS NULL THEN
					outcome := 'no identity';
				END IF;
				RAISE division_by_zero;
			EXCEPTION WHEN division_by_zero THEN
				NULL;
			END;
			CASE who
				WHEN '' THEN d.server := outcome;
				WHEN 'rw' THEN d.by_rw := outcome;
				ELSE d.by_ro := outcome;
			END CASE;
		END LOOP;
		UPDATE ro.during SET server = d.server, by_rw = d.by_rw, by_ro = d.by_ro WHERE id = d.id;
	END LOOP;
END
$$;
\set VERBOSITY sqlstate
-- each statement where the identity and the server give different answers, or that
-- does not run with full access.  The server forgets CREATE TABLE AS under EXPLAIN
-- ANALYZE, which creates the table; the identity does not.
SELECT * FROM ro.during WHERE by_ro IS DISTINCT FROM server OR by_rw IS DISTINCT FROM 'done' ORDER BY id;
SELECT id, server, left(query, 60) FROM ro.during ORDER BY id;

-- the same at top level
SET client_min_messages = error;
SET ro.who = 'ro';
BEGIN; TRUNCATE rw.t, rw.truncated; COMMIT;
SELECT count(*) FROM rw.t;
TRUNCATE rw.t, rw.truncated;
SELECT count(*) FROM rw.t;
SELECT ro.fix() INTO rw.new;
ALTER DOMAIN rw.d ADD CHECK (value > 0 AND ro.fix());
CREATE TABLE rw.p1 PARTITION OF rw.partitioned FOR VALUES IN (ro.fix());
-- an event trigger after the command
CREATE EVENT TRIGGER regress_apitoken_event ON ddl_command_end EXECUTE FUNCTION ro.fix_event();
-- (CREATE EVENT TRIGGER itself fires none)
CREATE TABLE rw.new (n int);
DROP TABLE rw.t;
CREATE SCHEMA new CREATE TABLE t (n int);
DROP EVENT TRIGGER regress_apitoken_event;
-- in a block with EXCEPTION, which reverts READ ONLY before the statement ends
CREATE OR REPLACE FUNCTION ro.fix_trigger() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM ro.be_inside('ro'); RETURN NEW; END$$;
TRUNCATE rw.t, rw.truncated;
-- the identity is rolled back before the statement ends
CREATE OR REPLACE FUNCTION ro.fix_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM ro.be('ro');
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
	RETURN NEW;
END
$$;
BEGIN; TRUNCATE rw.t, rw.truncated; SELECT count(*) FROM rw.t; ROLLBACK;
-- Several transactions, each with an identity of its own: what the earlier ones have
-- written remains, which is an invalid index.
CREATE INDEX CONCURRENTLY concurrent ON rw.t (ro.fix_immutable(n));
SELECT indisvalid FROM pg_index WHERE indexrelid = 'rw.concurrent'::regclass;
SET ro.who = '';
CREATE INDEX CONCURRENTLY concurrent_2 ON rw.t (ro.fix_immutable(n));
SELECT indisvalid FROM pg_index WHERE indexrelid = 'rw.concurrent_2'::regclass;
SELECT count(*) FROM pg_class WHERE relnamespace = 'rw'::regnamespace AND relname IN ('new', 'p1', 'p2');
DROP TABLE temporary_copied;
DROP SCHEMA rw CASCADE;
DROP ROLE regress_apitoken_nobody;
RESET client_min_messages;
:written;

--
-- It ends with the transaction
--
BEGIN; SELECT ro.be('ro'); COMMIT;
SHOW transaction_read_only;
BEGIN; SHOW transaction_read_only; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SELECT ro.be('ro'); INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; INSERT INTO ro.t VALUES (1); SELECT count(*) FROM ro.t; ROLLBACK;
BEGIN; SET LOCAL apitoken.token = :'ro'; SELECT 1; COMMIT;
BEGIN; INSERT INTO ro.t VALUES (1); ROLLBACK;
SELECT ro.be('ro');
INSERT INTO ro.log VALUES (4);
DELETE FROM ro.log;
-- A chained transaction inherits the characteristics of the previous one, as
-- always in PostgreSQL: it has no identity, but is READ ONLY until changed.
BEGIN; SELECT ro.be('ro'); COMMIT AND CHAIN; SHOW transaction_read_only; SELECT apitoken.current_token_id(); ROLLBACK;
BEGIN; SELECT ro.be('ro'); COMMIT AND CHAIN; SET TRANSACTION READ WRITE; INSERT INTO ro.t VALUES (1); ROLLBACK;
BEGIN; SHOW transaction_read_only; COMMIT;

--
-- Large objects.  PostgreSQL 15 does not refuse to write them.  The identity
-- refuses the same functions as the server
--
SELECT lo_create(0) AS lo \gset
CREATE TEMP TABLE outcome (query text, server text, identity text);
INSERT INTO outcome (query) VALUES
	('SELECT lo_create(0)'),
	(format('SELECT lo_put(%s, 0, ''x'')', :lo)),
	(format('SELECT lowrite(lo_open(%s, 131072), ''x'')', :lo)),
	(format('SELECT lo_unlink(%s)', :lo)),
	(format('SELECT lo_get(%s)', :lo));
DO $$
DECLARE
	o outcome;
	server_says text;
	identity_says text;
BEGIN
	FOR o IN SELECT * FROM outcome LOOP
		BEGIN
			SET LOCAL transaction_read_only = on;
			server_says := ro.try(o.query);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
		BEGIN
			PERFORM ro.be_inside('ro');
			identity_says := ro.try(o.query);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
		UPDATE outcome u SET server = server_says, identity = identity_says WHERE u.query = o.query;
	END LOOP;
END
$$;
SELECT count(*) FROM outcome WHERE server IS DISTINCT FROM identity;
-- libpq's functions call theirs without a statement: the setting counts for them, too.
-- (The first call of a connection queries their OIDs.)
\lo_export :lo /dev/null
BEGIN;
SET LOCAL apitoken.token = :'ro';
\lo_export :lo /dev/null
SHOW transaction_read_only;
ROLLBACK;
SELECT lo_unlink(:lo);

-- only the intended statements above have written anything
:written;

--
-- A savepoint for each statement, as drivers set with "autosave", over a whole
-- transaction: psql releases it, or rolls back to it after an error
--
SELECT count(*) FROM ro.t \gset before_
\set ON_ERROR_ROLLBACK on
BEGIN;
SELECT ro.be('ro');
\set ECHO none
SELECT query FROM ro.attempts WHERE id NOT IN (48, 49) ORDER BY id \gexec
\set ECHO all
SELECT current_setting('transaction_read_only'), apitoken.whoami()->>'read_only', apitoken.can('article:read'), apitoken.can('article:update');
COMMIT;
-- the same with an identity that is set, and one that was authenticated in a block
BEGIN;
SELECT set_config('apitoken.token', token, true) IS NOT NULL FROM ro.secret WHERE kind = 'ro';
INSERT INTO ro.t VALUES (1);
SELECT 1/0;
INSERT INTO ro.t VALUES (1);
SELECT nextval('ro.s');
COMMIT;
BEGIN;
SELECT ro.be_inside('ro');
INSERT INTO ro.t VALUES (1);
SELECT 1/0;
INSERT INTO ro.t VALUES (1);
SELECT nextval('ro.s');
COMMIT;
\set ON_ERROR_ROLLBACK off
-- and by hand: released, rolled back to, left open, nested
BEGIN; SAVEPOINT s; SELECT ro.be('ro'); RELEASE s; SAVEPOINT s; INSERT INTO ro.t VALUES (1); ROLLBACK TO s; SAVEPOINT s; SELECT 1; SAVEPOINT s; INSERT INTO ro.t VALUES (1); ROLLBACK TO s; RELEASE s;
SAVEPOINT s; SELECT nextval('ro.s'); ROLLBACK TO s; SELECT current_setting('transaction_read_only'); INSERT INTO ro.t VALUES (1); COMMIT;
SELECT count(*) = :before_count AS nothing_written FROM ro.t;
:written;

\set VERBOSITY default
DEALLOCATE ALL;
SET client_min_messages = error;
DROP TABLE temporary, outcome;
DROP SEQUENCE temporary_sequence;
DROP SCHEMA ro CASCADE;
\i :srcdir/test/regress_teardown.sql
