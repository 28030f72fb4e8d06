--
-- What may be learnt of rows that one may not see: nothing that depends on them.
--
-- The same statements run twice.  In between, all values in all rows that the
-- callers do not see are replaced, but not the number of rows.  Everything that
-- a caller gets must be the same: rows, errors, plans with their costs, and rows
-- removed, and the counters of the statistics views.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
-- scans that are switched off cost so much that the server would compile each plan
SET jit = off;
CREATE ROLE regress_apitoken_app LOGIN;
CREATE ROLE regress_apitoken_web LOGIN;
CREATE ROLE regress_apitoken_user LOGIN;
CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_monitor LOGIN;
CREATE ROLE regress_apitoken_nobody LOGIN;
SELECT apitoken.allow('regress_apitoken_app', 'act', 'manage');
SELECT apitoken.allow('regress_apitoken_web', 'manage');
SELECT apitoken.allow('regress_apitoken_user', 'use');
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_monitor', 'monitor');

-- acme is the callers' own organization, the others are hidden from them
INSERT INTO apitoken.organizations (id, name, idle_timeout) SELECT 'org' || n, 'Name ' || n, (n || ' days')::interval FROM generate_series(1, 40) n;
INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme');
INSERT INTO apitoken.users (id, name, email, groups) SELECT 'user' || n, 'User ' || n, n || '@example.com', ARRAY['group' || n] FROM generate_series(1, 80) n;
INSERT INTO apitoken.users (id, name, email) VALUES ('ada', 'Ada', 'ada@example.org'), ('bob', 'Bob', 'bob@example.org');
INSERT INTO apitoken.memberships SELECT 'org' || n % 40 + 1, 'user' || n, CASE WHEN n % 3 = 0 THEN 'admin' ELSE 'developer' END FROM generate_series(1, 80) n;
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('acme', 'bob', 'developer');
SELECT count(apitoken.create_token('label ' || n, organization_id => 'org' || n % 40 + 1, description => 'text ' || n || repeat('y', 40), metadata => jsonb_build_object('n', n),
	rate_limit_per_minute => n, expires_in => n * interval '1 day', allowed_networks => ARRAY[('10.0.' || n || '.0/24')::cidr])) FROM generate_series(1, 80) n;
SELECT count(apitoken.create_token('label ' || n, user_id => 'user' || n, description => 'text ' || n || repeat('y', 40), access => 'custom', permissions => ARRAY['article:x' || n])) FROM generate_series(1, 80) n;
-- the lengths of the descriptions give the table the same number of pages in both worlds
SELECT count(apitoken.create_token('own ' || n, organization_id => 'acme', description => repeat('x', 400))) FROM generate_series(1, 5) n;
SELECT count(apitoken.create_token('own ' || n, user_id => 'ada', description => repeat('x', 400))) FROM generate_series(1, 5) n;
UPDATE apitoken.tokens SET suspended_at = now() WHERE label IN ('label 3', 'label 4');
SELECT count(apitoken.revoke_token(id, label)) FROM apitoken.tokens WHERE label LIKE 'label 1_';
-- tokens with 0 to 4 previous secrets
SELECT count((apitoken.regenerate_token(id, '1 hour')).id) FROM apitoken.tokens, generate_series(1, right(label, 1)::int % 5) WHERE label LIKE 'label 2_';
UPDATE apitoken.token_usage SET last_used_at = now() - random() * interval '1 day', accepted = 1000 * random(), refused = 1000 * random(), last_used_from = '192.0.2.7',
	last_day = current_date, day_accepted = 100 * random(), day_refused = 100 * random();
INSERT INTO apitoken_internal.token_days SELECT id, current_date - n, n * 7, n * 5 FROM apitoken.tokens, generate_series(1, 3) n;
-- hidden values that are stored outside of their rows
ALTER TABLE apitoken_internal.token_records ALTER metadata SET STORAGE EXTERNAL;
UPDATE apitoken.tokens SET metadata = jsonb_build_object('long', repeat('x', 20000)) WHERE label IN ('label 43', 'label 44');
-- a token whose text is known with another secret: unknown is answered for the id
SELECT token AS old, id AS old_id FROM apitoken.create_token('old', organization_id => 'org1') \gset
SELECT id IS NOT NULL AS regenerated FROM apitoken.regenerate_token(:'old_id');
SELECT count((apitoken.regenerate_token(:'old_id', '1 hour')).id) FROM generate_series(1, 4);
-- and one whose text is known with a secret that was right before
SELECT token AS ended, id AS ended_id FROM apitoken.create_token('ended', organization_id => 'org1') \gset
SELECT count((apitoken.regenerate_token(:'ended_id')).id) FROM generate_series(1, 2);
SELECT token AS mine FROM apitoken.create_token('mine', user_id => 'ada', access => 'custom', permissions => '{token:read}') \gset
-- its next uses are not written, so that it looks the same in both worlds
UPDATE apitoken.token_usage SET last_used_at = now() + interval '1 day' WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'mine');

--
-- The statements: for each column of each relation, conditions with a hidden
-- value, alone and with others.
--
CREATE SCHEMA oracle;
GRANT USAGE ON SCHEMA oracle TO PUBLIC;
CREATE TABLE oracle.probe (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, relation text, kind text, query text);
GRANT SELECT ON oracle.probe TO PUBLIC;
CREATE FUNCTION oracle.hidden(relation regclass, attribute text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	value text;
	whose text := CASE relation::text
		WHEN 'apitoken.organizations' THEN 'id <> ''acme'''
		WHEN 'apitoken.users' THEN 'id NOT IN (''ada'', ''bob'')'
		WHEN 'apitoken.token_usage' THEN 'token_id NOT IN (SELECT id FROM apitoken.tokens WHERE organization_id = ''acme'' OR user_id = ''ada'')'
		WHEN 'apitoken.token_usage_daily' THEN 'token_id NOT IN (SELECT id FROM apitoken.tokens WHERE organization_id = ''acme'' OR user_id = ''ada'')'
		ELSE '(organization_id IS DISTINCT FROM ''acme'' AND user_id IS DISTINCT FROM ''ada'')'
	END;
BEGIN
	EXECUTE format('SELECT max(%1$I::text) FROM (SELECT %1$I FROM %2$s WHERE %3$s AND %1$I IS NOT NULL ORDER BY 1 OFFSET 7 LIMIT 1) x', attribute, relation, whose) INTO value;
	RETURN value;
END $$;
INSERT INTO oracle.probe (relation, kind, query)
SELECT relation, kind, format(query, relation, attname, value, type, 'SET LOCAL ')
FROM (SELECT a.attrelid::regclass::text AS relation, a.attname, format_type(a.atttypid, NULL) AS type, a.attnum,
		coalesce(oracle.hidden(CASE a.attrelid::regclass::text WHEN 'apitoken.members' THEN 'apitoken.memberships'::regclass ELSE a.attrelid END,
			CASE WHEN a.attrelid = 'apitoken.members'::regclass AND a.attname = 'name' THEN 'user_id' ELSE a.attname END), CASE WHEN a.atttypid = 'text'::regtype THEN 'none' END) AS value
	FROM pg_attribute a
	WHERE a.attnum > 0 AND (a.attname IN ('id', 'token_id', 'organization_id', 'user_id', 'label', 'email', 'name', 'suspended_at')
		OR a.attrelid <> ALL ('{apitoken.tokens,apitoken_internal.token_records}'::regclass[]) OR a.attname IN ('description', 'masked', 'role', 'expires_at', 'revoked_at', 'last_used_at') AND a.attrelid <> 'apitoken.tokens'::regclass) AND a.attrelid = ANY ('{apitoken.organizations,apitoken.users,apitoken.memberships,apitoken.members,apitoken.tokens,
		apitoken_internal.token_records,apitoken.token_usage,apitoken.token_usage_daily,apitoken.events}'::regclass[])) a,
	(VALUES ('filter order', 'SELECT %2$I FROM %1$s WHERE %2$I = %3$L'),
		('filter order', 'SELECT count(*) FROM %1$s WHERE %2$I > ANY (ARRAY[%3$L::%4$s])'),
		('filter order', 'SELECT count(*) FROM %1$s WHERE %2$I >= %3$L AND %2$I <= %3$L'),
		('rows removed', 'SELECT %2$I FROM %1$s ORDER BY %2$I LIMIT 1'),
		('rows removed', 'SELECT count(*) FROM (VALUES (%3$L::%4$s)) v (v) JOIN %1$s t ON t.%2$I = v.v'),
		('rows removed', 'SELECT count(*) FROM %1$s WHERE %2$I = %3$L OR %2$I = ANY (ARRAY[%3$L::%4$s])'),
		('error', 'WITH x AS MATERIALIZED (SELECT set_config(''apitoken.user_id'', ''zz'', true)) SELECT count(*) FROM x, %1$s WHERE %2$I = ANY (ARRAY[%3$L::%4$s])'),
		('union', 'SELECT count(*) FROM (SELECT %2$I FROM %1$s UNION ALL SELECT %2$I FROM %1$s) u WHERE %2$I = ANY (ARRAY[%3$L::%4$s])'),
		('union', 'WITH x AS MATERIALIZED (SELECT set_config(''apitoken.user_id'', ''zz'', true) s) SELECT count(*) FROM x, (SELECT %2$I FROM %1$s UNION ALL SELECT %2$I FROM %1$s) u WHERE s <> '''' AND %2$I = ANY (ARRAY[%3$L::%4$s])')) q (kind, query)
WHERE value IS NOT NULL;
-- views and functions have no samples
INSERT INTO oracle.probe (relation, kind, query)
SELECT relation, 'sample', replace(query, relation, relation || ' TABLESAMPLE SYSTEM (100)') FROM oracle.probe
WHERE kind = 'filter order' AND query LIKE '%> ANY%' AND relation NOT IN ('apitoken.tokens', 'apitoken.members');
-- two columns of one index, and functions that get the id of a token
INSERT INTO oracle.probe (relation, kind, query)
SELECT 'apitoken_internal.token_records', 'rows removed', format(query, 'org5', 'label 4', id)
FROM apitoken.tokens, (VALUES ('SELECT count(*) FROM apitoken_internal.token_records WHERE organization_id = %1$L AND label >= %2$L AND revoked_at IS NULL'),
	('SELECT count(*) FROM apitoken_internal.token_records WHERE organization_id > %1$L'),
	('SELECT count(*) FROM apitoken.tokens WHERE id = %3$L'), ('SELECT count(*) FROM apitoken.token_usage WHERE token_id = %3$L'),
	('SELECT count(*) FROM apitoken.events WHERE token_id = %3$L'), ('SELECT count(*) FROM apitoken.events WHERE token_id > %3$L AND organization_id = %1$L'),
	('UPDATE apitoken.tokens SET description = ''x'' WHERE id = %3$L')) q (query)
WHERE organization_id = 'org5' AND label = 'label 4';
INSERT INTO oracle.probe (relation, kind, query)
SELECT 'functions', 'index counters', format(query, :'old', id)
FROM apitoken.tokens, (VALUES ('SELECT apitoken.verify(%1$L)'), ('SELECT apitoken.authenticate(%1$L)'), ('SELECT apitoken.introspect(%1$L)'), ('SELECT apitoken.revoke_by_token(%1$L)'),
	('SELECT apitoken.revoke_token(%2$L)'), ('SELECT apitoken.regenerate_token(%2$L)'), ('SELECT apitoken.end_overlap(%2$L)'),
	('SELECT apitoken.revoke_tokens(organization_id => ''org5'')'), ('SELECT apitoken.revoke_tokens(user_id => ''user9'')'),
	('SELECT count(*) FROM apitoken.list_tokens(before_id => %2$L)')) q (query)
WHERE label IN ('old', 'label 44', 'label 45');
INSERT INTO oracle.probe (relation, kind, query)
SELECT 'functions', 'index counters', format('SELECT apitoken.%I(%L)', f, :'ended') FROM unnest('{verify,authenticate,introspect,revoke_by_token}'::text[]) f;

--
-- What a caller gets of a statement.
--
CREATE TABLE oracle.counted AS SELECT c.oid::regclass AS name, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
	WHERE relkind IN ('r', 'i') AND nspname LIKE 'apitoken%' AND relname <> 'roles_pkey'	-- sessions remember roles
	OR c.oid IN (SELECT unnest(ARRAY[reltoastrelid, indexrelid]) FROM pg_class t JOIN pg_index i ON i.indrelid = reltoastrelid WHERE t.relnamespace::regnamespace::text LIKE 'apitoken%');
GRANT SELECT ON oracle.counted TO PUBLIC;
CREATE FUNCTION oracle.seen(query text, tables oid[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	line text;
	answer text := '';
	before bigint[];
	after bigint[];
	counters text := 'SELECT array_agg(pg_stat_get_xact_numscans(t) * 1000000000 + pg_stat_get_xact_blocks_fetched(t) * 1000000 + pg_stat_get_xact_tuples_returned(t) * 1000 + pg_stat_get_xact_tuples_fetched(t)) FROM unnest($1) t';
BEGIN
	EXECUTE counters USING tables INTO before;
	BEGIN
		FOR line IN EXECUTE 'EXPLAIN (ANALYZE, BUFFERS OFF, TIMING OFF, SUMMARY OFF) ' || query LOOP
			answer := answer || line || E'\n';
		END LOOP;
		EXECUTE counters USING tables INTO after;
		RAISE SQLSTATE 'REG01';
	EXCEPTION
		WHEN SQLSTATE 'REG01' THEN NULL;
		WHEN OTHERS THEN
			EXECUTE counters USING tables INTO after;
			answer := SQLSTATE || ' ' || SQLERRM;
	END;
	RETURN answer || coalesce((SELECT string_agg(format('%s: %s', t.name, a - b), ', ') FROM unnest(before, after, tables) c (b, a, oid) JOIN oracle.counted t USING (oid) WHERE a <> b), '');
END $$;
CREATE TABLE oracle.answer (world int, caller text, planner text, n int, answer text);
GRANT INSERT ON oracle.answer TO PUBLIC;

-- Runs all statements as each caller, with the planner's usual choice of scans and with others.
CREATE TABLE oracle.planner (name text, settings text[]);
INSERT INTO oracle.planner VALUES ('usual', '{}'), ('index scans', '{enable_seqscan,enable_bitmapscan}'), ('free operators', '{enable_indexscan,enable_bitmapscan}');
GRANT SELECT ON oracle.planner TO PUBLIC;
CREATE FUNCTION oracle.run(world int, caller text, identity text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	p record;
	s text;
BEGIN
	IF identity IS NOT NULL THEN
		EXECUTE identity;
	END IF;
	FOR p IN SELECT name, settings FROM oracle.planner WHERE caller = 'member' OR (caller = 'anonymous') = (name <> 'usual') LOOP
		PERFORM set_config('enable_seqscan', 'on', true), set_config('enable_indexscan', 'on', true), set_config('enable_bitmapscan', 'on', true);
		-- the least number above 0: a condition with one operator costs 0
		PERFORM set_config('cpu_operator_cost', CASE p.name WHEN 'free operators' THEN '0x1p-1074' ELSE '0.0025' END, true);
		FOREACH s IN ARRAY p.settings LOOP
			PERFORM set_config(s, 'off', true);
		END LOOP;
		INSERT INTO oracle.answer SELECT world, caller, p.name, n, oracle.seen(query, ARRAY(SELECT oid FROM oracle.counted)) FROM oracle.probe
			WHERE n % 5 = 0 OR relation = 'functions' OR caller IN ('member', 'anonymous') ORDER BY n;
	END LOOP;
END $$;

-- VACUUM FULL keeps rows that another session could still see, for example the one that writes use
CREATE PROCEDURE oracle.wait_for_others() LANGUAGE plpgsql AS $$
BEGIN
	WHILE EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)) LOOP
		COMMIT;
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;

-- the tables of both worlds: as large, and analyzed; autovacuum would change the estimates of one of them
DO $$ DECLARE t regclass; BEGIN
	FOR t IN SELECT c.oid FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text LIKE 'apitoken%' LOOP
		EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)', t);
	END LOOP;
END $$;
CALL oracle.wait_for_others();
VACUUM FULL apitoken.organizations, apitoken.users, apitoken.memberships, apitoken_internal.token_records, apitoken.token_usage, apitoken_internal.token_days, apitoken.events;
VACUUM ANALYZE apitoken.organizations, apitoken.users, apitoken.memberships, apitoken_internal.token_records, apitoken.token_usage, apitoken_internal.token_days, apitoken.events;

\set world 1
\i :srcdir/test/regress_oracles.sql

-- the other world
SET session_replication_role = replica;
CREATE FUNCTION oracle.other(text) RETURNS text LANGUAGE sql AS $$ SELECT translate($1, '0123456789', 'ABCDEFGHIJ') $$;
CREATE FUNCTION oracle.other(uuid) RETURNS uuid LANGUAGE sql AS $$ SELECT translate($1::text, '0123456789abcdef', '89abcdef01234567')::uuid $$;
UPDATE apitoken.organizations SET id = oracle.other(id), name = oracle.other(name), idle_timeout = idle_timeout + '1 day', created_at = created_at + '1 hour' WHERE id <> 'acme';
UPDATE apitoken.users SET id = oracle.other(id), name = oracle.other(name), email = oracle.other(email), groups = ARRAY[oracle.other(groups[1])], created_at = created_at + '1 hour' WHERE id LIKE 'user%';
UPDATE apitoken.users SET email = 'robert@a.test' WHERE id = 'bob';
UPDATE apitoken.memberships SET organization_id = oracle.other(organization_id), user_id = oracle.other(user_id), role = CASE role WHEN 'admin' THEN 'developer' ELSE 'admin' END WHERE organization_id <> 'acme';
CREATE TABLE oracle.renamed AS SELECT id FROM apitoken.tokens WHERE organization_id IS DISTINCT FROM 'acme' AND user_id IS DISTINCT FROM 'ada';
UPDATE apitoken_internal.token_records SET id = oracle.other(id), organization_id = oracle.other(organization_id), user_id = oracle.other(user_id), label = oracle.other(label),
	description = oracle.other(rtrim(description, 'y')), masked = oracle.other(masked), metadata = '{"n": 0}', rate_limit_per_minute = 1000 - rate_limit_per_minute, created_at = created_at + '1 hour',
	updated_at = updated_at - interval '1 hour', expires_at = expires_at + '1 day', suspended_at = suspended_at - interval '1 day', revoked_at = revoked_at - interval '1 day',
	access = CASE access WHEN 'full' THEN 'read_only' ELSE access END, permissions = CASE WHEN permissions IS NOT NULL THEN ARRAY[oracle.other(permissions[1])] END, allowed_networks = '{10.9.9.0/24}'
WHERE id IN (SELECT id FROM oracle.renamed);
-- other tokens have 0 to 4 previous secrets
UPDATE apitoken_internal.token_records SET previous_expires_at = CASE WHEN n > 0 THEN array_fill(now() + '2 hours', ARRAY[n]) END, previous_replaced_at = CASE WHEN n > 0 THEN array_fill(now(), ARRAY[n]) END,
	previous_digest_scheme = CASE WHEN n > 0 THEN array_fill(0::smallint, ARRAY[n]) END, previous_digest = CASE WHEN n > 0 THEN decode(repeat('ab', 32 * n), 'hex') END
FROM generate_series(0, 9) i, LATERAL (SELECT 4 - i % 5) k (n) WHERE label = oracle.other('label 2' || i);
UPDATE apitoken.token_usage SET token_id = oracle.other(token_id), last_used_at = last_used_at - interval '1 day', accepted = accepted + 5000, refused = refused + 5000, last_used_from = '192.0.2.8',
	last_day = last_day + 1, day_accepted = day_accepted + 500, day_refused = day_refused + 500 WHERE token_id IN (SELECT id FROM oracle.renamed);
UPDATE apitoken_internal.token_days SET token_id = oracle.other(token_id), day = day - 100, accepted = accepted + 500, refused = refused + 500 WHERE token_id IN (SELECT id FROM oracle.renamed);
UPDATE apitoken.events SET id = oracle.other(id), at = at - interval '1 day', token_id = oracle.other(token_id), organization_id = oracle.other(organization_id), user_id = oracle.other(user_id), details = translate(details::text, 'bcdgikmo', 'cdgikmob')::jsonb WHERE token_id IN (SELECT id FROM oracle.renamed);
RESET session_replication_role;
CALL oracle.wait_for_others();
VACUUM FULL apitoken.organizations, apitoken.users, apitoken.memberships, apitoken_internal.token_records, apitoken.token_usage, apitoken_internal.token_days, apitoken.events;
VACUUM ANALYZE apitoken.organizations, apitoken.users, apitoken.memberships, apitoken_internal.token_records, apitoken.token_usage, apitoken_internal.token_days, apitoken.events;
\set world 2
\i :srcdir/test/regress_oracles.sql

-- the number of statements whose answers differ, and of those that read something
SELECT relation, kind, count(DISTINCT p.n) > 0 AS tried, count(*) FILTER (WHERE a.answer ~ 'Scan') > 0 AS scanned,
	count(*) FILTER (WHERE a.answer IS DISTINCT FROM b.answer) AS differ
FROM oracle.probe p JOIN oracle.answer a ON a.n = p.n AND a.world = 1
	LEFT JOIN oracle.answer b ON b.n = a.n AND b.caller = a.caller AND b.planner = a.planner AND b.world = 2
GROUP BY relation, kind ORDER BY relation COLLATE "C", kind;
SELECT a.caller, a.planner, query, a.answer AS world_1, b.answer AS world_2
FROM oracle.probe p JOIN oracle.answer a ON a.n = p.n AND a.world = 1
	LEFT JOIN oracle.answer b ON b.n = a.n AND b.caller = a.caller AND b.planner = a.planner AND b.world = 2
WHERE a.answer IS DISTINCT FROM b.answer ORDER BY p.n, a.caller, a.planner LIMIT 3;
-- the callers who see rows see them
SELECT caller, count(*) FILTER (WHERE answer ~ 'rows=[1-9]') > 0 AS rows FROM oracle.answer WHERE world = 1 GROUP BY 1 ORDER BY 1;

SET client_min_messages = warning;
DROP SCHEMA oracle CASCADE;
RESET client_min_messages;
\i :srcdir/test/regress_teardown.sql

