--
-- Making tokens: create_token(), plain INSERT, take_token().
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_other LOGIN;
CREATE ROLE regress_apitoken_anonymous LOGIN;
CREATE ROLE regress_apitoken_bypass LOGIN BYPASSRLS;
SELECT apitoken.allow('regress_apitoken_app', 'verify');
SELECT apitoken.allow('regress_apitoken_other', 'act', 'manage');
SELECT apitoken.allow('regress_apitoken_anonymous', 'manage');
SELECT apitoken.allow('regress_apitoken_bypass', 'manage', 'verify');
UPDATE apitoken.organizations SET name = pg_catalog.initcap(id);
UPDATE apitoken.users SET name = 'Ada' WHERE id = 'ada';
INSERT INTO apitoken.users (id, name) VALUES ('mike', 'Mike');
INSERT INTO apitoken.roles (name, permissions) VALUES ('maker', '{token:create,article:*}'), ('reader', '{article:read,token:read}');
INSERT INTO apitoken.memberships VALUES ('acme', 'mike', 'maker'), ('acme', 'rita', 'reader'), ('acme', 'dev', 'developer');

--
-- create_token, both kinds, and its defaults
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT id AS org_id, token AS org_token, masked AS org_masked, expires_at IS NULL AS org_forever FROM apitoken.create_token('deploy', 'acme') \gset
SELECT id AS own_id, token AS own_token, masked AS own_masked FROM apitoken.create_token('laptop') \gset
SELECT organization_id, user_id, label, description, role, access, permissions, allowed_networks, rate_limit_per_minute, metadata,
	created_by, created_by_name, created_at = now() AS now, updated_at = created_at AS updated, expires_at, suspended_at, revoked_at, revoked_by, revoke_reason,
	last_used_at, last_used, last_used_from, status
FROM apitoken.tokens ORDER BY label COLLATE "C" \gx
-- the answer agrees with the stored row
SELECT id = :'org_id' AS id, masked = :'org_masked' AS masked, expires_at, :'org_forever' AS forever FROM apitoken.tokens WHERE label = 'deploy';
COMMIT;
SELECT v.valid, v.token_id = :'org_id' AS id, v.label, v.kind, v.organization_id, v.user_id, v.role, v.access, v.permissions, v.groups, v.expires_at, v.metadata FROM apitoken.verify(:'org_token') v;
SELECT v.valid, v.token_id = :'own_id' AS id, v.label, v.kind, v.organization_id, v.user_id, v.role, v.access, v.permissions, v.groups, v.expires_at, v.metadata FROM apitoken.verify(:'own_token') v;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
-- the three types, and the documents' durations; the answer's expiry is the row's
SELECT (apitoken.create_token('week', 'acme', access => 'read_only', expires_in => '7 days', description => 'a week', role => 'reader')).id IS NOT NULL AS made;
SELECT (apitoken.create_token('month', 'acme', access => 'full', expires_in => '30 days', allowed_networks => '{10.0.0.0/8,::1/128}')).id IS NOT NULL AS made;
SELECT (apitoken.create_token('quarter', 'acme', permissions => '{article:read,article:list}', expires_in => '90 days', rate_limit_per_minute => 60, metadata => '{"a": [1]}')).id IS NOT NULL AS made;
SELECT (apitoken.create_token('own custom', permissions => '{*}', access => 'custom', expires_in => '1 minute')).id IS NOT NULL AS made;
SELECT label, role, access, permissions, expires_at - created_at AS lives, description, allowed_networks, rate_limit_per_minute, metadata, status
FROM apitoken.tokens WHERE label IN ('week', 'month', 'quarter', 'own custom') ORDER BY label COLLATE "C";
SELECT expires_at AT TIME ZONE 'UTC' = now() AT TIME ZONE 'UTC' + '1 year' AS told FROM apitoken.create_token('year', expires_in => '1 year');
SELECT expires_at AT TIME ZONE 'UTC' = now() AT TIME ZONE 'UTC' + '1 year' AS stored FROM apitoken.tokens WHERE label = 'year';
ROLLBACK;

--
-- Each invalid value has its own error
--
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
CREATE TEMP TABLE bad (number int, arguments text);
INSERT INTO bad VALUES
	(1, $$NULL$$), (2, $$''$$), (3, $$E' \t\n'$$), (4, $$repeat('x', 256)$$), (5, $$repeat('é', 256)$$),
	(6, $$'deploy'$$),
	(7, $$'b', description => repeat('é', 4001)$$),
	(8, $$'b', role => 'nobody'$$), (9, $$'b', role => ''$$),
	(10, $$'b', access => 'write'$$), (11, $$'b', access => ''$$), (12, $$'b', access => 'FULL'$$),
	(13, $$'b', access => 'custom'$$), (14, $$'b', access => 'full', permissions => '{article:read}'$$), (15, $$'b', access => 'read_only', permissions => '{article:read}'$$),
	(16, $$'b', permissions => '{}'$$), (17, $$'b', permissions => '{NULL}'$$), (18, $$'b', permissions => '{article}'$$), (19, $$'b', permissions => '{"article: read"}'$$),
	(20, $$'b', permissions => '{article:re*}'$$), (21, $$'b', permissions => '{a:b:c}'$$), (22, $$'b', permissions => '{{article:read},{article:list}}'$$),
	(23, $$'b', permissions => ARRAY(SELECT 'r' || i || ':read' FROM generate_series(1, 101) i)$$), (24, $$'b', permissions => ARRAY['a:' || repeat('x', 65)]$$),
	(25, $$'b', expires_in => '30'$$), (26, $$'b', expires_in => '0'$$), (27, $$'b', expires_in => '-1 day'$$), (28, $$'b', expires_in => '59.9 seconds'$$),
	(29, $$'b', expires_in => '100 years 1 day'$$), (30, $$'b', expires_in => '170000000 years'$$), (31, $$'b', expires_in => '-170000000 years'$$),
	(32, $$'b', allowed_networks => '{}'$$), (33, $$'b', allowed_networks => '{NULL}'$$), (34, $$'b', allowed_networks => array_fill('10.0.0.0/8'::cidr, '{101}')$$), (35, $$'b', allowed_networks => '{{10.0.0.0/8}}'$$),
	(36, $$'b', rate_limit_per_minute => 0$$), (37, $$'b', rate_limit_per_minute => -1$$), (38, $$'b', rate_limit_per_minute => 1000001$$),
	(39, $$'b', metadata => '[]'$$), (40, $$'b', metadata => '"a"'$$), (41, $$'b', metadata => 'null'$$), (42, $$'b', metadata => jsonb_build_object('a', repeat('x', 65536))$$),
	(43, $$'b', quota => 0$$), (44, $$'b', quota => -1$$), (45, $$'b', quota => 1000000000000000$$), (46, $$'b', quota_period => 'day'$$), (47, $$'b', quota => 5, quota_period => 'week'$$),
	(48, $$'b', quota => 5, quota_period => ''$$), (49, $$'b', quota => 5, quota_period => 'Day'$$);
SELECT number, arguments, public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%s, organization_id => ''acme'')', arguments)) AS answer FROM bad ORDER BY number;
-- the same for a personal token, where there is no role
SELECT public.regress_try($$SELECT apitoken.create_token('b', role => 'reader')$$);
SELECT public.regress_try($$SELECT apitoken.create_token('laptop')$$);
SELECT public.regress_try($$SELECT apitoken.create_token('b', 'acme', 'ada')$$);
-- absolute times, which only INSERT accepts
SELECT expires_at, public.regress_try(pg_catalog.format('INSERT INTO apitoken.tokens (label, organization_id, expires_at) VALUES (%L, %L, %L)', 'b', 'acme', expires_at)) AS answer
FROM pg_catalog.unnest('{infinity,-infinity,2020-01-01,9999-01-01}'::text[]) expires_at;
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id, expires_at) VALUES ('b', 'acme', now())$$);
SELECT count(*) FROM apitoken.tokens;
-- values just within the limits, and unusual but valid ones
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%s, organization_id => ''acme'')', a)) AS answer FROM pg_catalog.unnest(ARRAY[
	$$repeat('é', 255)$$, $$' deploy'$$, $$'DEPLOY'$$, $$'null everything', description => NULL, role => NULL, access => NULL, permissions => NULL, expires_in => NULL, allowed_networks => NULL, rate_limit_per_minute => NULL, metadata => NULL, user_id => NULL$$,
	$$'1', description => repeat('é', 4000)$$, $$'2', permissions => ARRAY(SELECT 'r' || i || ':read' FROM generate_series(1, 100) i)$$,
	$$'3', permissions => ARRAY[repeat('r', 64) || ':' || repeat('x', 64)]$$, $$'4', rate_limit_per_minute => 1000000$$, $$'5', metadata => jsonb_build_object('a', repeat('x', 60000))$$,
	$$'6', expires_in => '100 years'$$, $$'7', metadata => NULL$$, $$'8', description => ''$$,
	$$'9', quota => 999999999999999, quota_period => 'month'$$, $$'10', quota => 1, quota_period => 'day'$$, $$'11', quota => 7$$]) a;
SELECT label, quota, quota_period, remaining FROM apitoken.tokens WHERE quota IS NOT NULL ORDER BY quota;
SELECT label, role, access, permissions, metadata, expires_at FROM apitoken.tokens WHERE label IN ('null everything', '7') ORDER BY label COLLATE "C";
ROLLBACK;
SELECT public.regress_try($$SELECT apitoken.create_token(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$);

--
-- Authorization comes first: a caller without the right to create tokens learns
-- nothing from errors about values
--
CREATE TABLE pg_temp.bad AS SELECT a AS arguments FROM pg_catalog.unnest(ARRAY[$$NULL$$, $$''$$, $$'deploy'$$, $$'free'$$, $$'b', role => 'nobody'$$, $$'b', access => 'write'$$,
	$$'b', access => 'full', permissions => '{article:read}'$$, $$'b', permissions => '{article}'$$, $$'b', expires_in => '30'$$, $$'b', expires_in => '200 years'$$,
	$$'b', allowed_networks => '{}'$$, $$'b', rate_limit_per_minute => 0$$, $$'b', metadata => '[]'$$, $$'b', description => repeat('x', 5000)$$, $$'b', quota => 0$$, $$'b', quota_period => 'day'$$]) a;
CREATE FUNCTION pg_temp.answers(owner text) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT DISTINCT public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%s, %s)', arguments, owner)) FROM pg_temp.bad
	UNION
	SELECT DISTINCT public.regress_try(pg_catalog.format('INSERT INTO apitoken.tokens (label, expires_at, %s) VALUES (%L, %L, %L)', pg_catalog.split_part(owner, ' ', 1), l, e, pg_catalog.split_part(owner, '''', 2)))
	FROM pg_catalog.unnest('{"",deploy,free}'::text[]) l, pg_catalog.unnest('{2020-01-01,infinity}'::text[]) e
$$;
BEGIN;
SELECT apitoken.act_as('rita') AS me \gset
SELECT pg_temp.answers($$organization_id => 'acme'$$) AS "member without token:create";
SELECT pg_temp.answers($$organization_id => 'globex'$$) AS "of another organization";
SELECT pg_temp.answers($$organization_id => 'nowhere'$$) AS "of none";
SELECT pg_temp.answers($$user_id => 'ada'$$) AS "another user's";
SELECT pg_temp.answers($$user_id => 'nobody'$$) AS "nobody's";
SELECT pg_temp.answers($$organization_id => ''$$) AS "an empty id";
COMMIT;
BEGIN;
SELECT apitoken.act_as('dev') AS me \gset
SELECT pg_temp.answers($$organization_id => 'acme'$$) AS "developer";
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_anonymous;
SELECT public.regress_try($$SELECT apitoken.create_token('b')$$) AS anonymous
UNION SELECT public.regress_try($$SELECT apitoken.create_token('')$$)
UNION SELECT public.regress_try($$SELECT apitoken.create_token('b', 'acme')$$)
UNION SELECT public.regress_try($$SELECT apitoken.create_token('deploy', 'acme')$$)
UNION SELECT public.regress_try($$SELECT apitoken.create_token('b', 'acme', expires_in => '30')$$)
UNION SELECT public.regress_try($$SELECT apitoken.create_token('b', user_id => 'ada')$$)
UNION SELECT public.regress_try($$INSERT INTO apitoken.tokens (label) VALUES ('b')$$)
UNION SELECT public.regress_try($$INSERT INTO apitoken.tokens DEFAULT VALUES$$);
SET SESSION AUTHORIZATION regress_apitoken_app;

--
-- Plain SQL: RETURNING take_token, for many rows at once
--
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
INSERT INTO apitoken.tokens (label, organization_id, role, access, expires_at) VALUES ('many 1', 'acme', 'reader', 'read_only', now() + '1 day'), ('many 2', 'acme', NULL, NULL, NULL)
RETURNING label, organization_id, user_id, role, access, masked ~ '^apt_org_[0-9A-Za-z]{22}_\.\.\.' AS masked, created_by, status, (apitoken.verify(apitoken.take_token(id))).verdict;
INSERT INTO apitoken.tokens (label) SELECT 'own ' || i FROM pg_catalog.generate_series(1, 3) i
RETURNING label, user_id, access, apitoken.take_token(id) ~ '^apt_usr_' AS taken;
-- each text belongs to its row
WITH made AS (INSERT INTO apitoken.tokens (label, organization_id) SELECT 'bulk ' || i, 'acme' FROM pg_catalog.generate_series(1, 200) i RETURNING id, label, apitoken.take_token(id) AS token)
SELECT count(*) AS rows, count(DISTINCT token) AS texts FROM made;
SELECT count(*) FROM apitoken.tokens WHERE label LIKE 'bulk %';
-- later in the transaction, once; the text verifies, with the id and label of its row
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('later', 'acme') RETURNING id AS later_id \gset
SAVEPOINT s;
SELECT apitoken.take_token(:'later_id') AS later_token \gset
SELECT v.verdict, v.token_id = :'later_id' AS id, v.label FROM apitoken.verify(:'later_token') v;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'later_id')) AS again;
-- a rollback does not bring it back
ROLLBACK TO s;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'later_id')) AS again;
-- create_token has handed its text out
SELECT id AS created_id FROM apitoken.create_token('created', 'acme') \gset
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'created_id')) AS of_create_token;
SELECT public.regress_try('SELECT apitoken.take_token(gen_random_uuid())') AS unknown, apitoken.take_token(NULL);
COMMIT;
-- not in another transaction, not even the next
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('left', 'acme') RETURNING id AS left_id \gset
COMMIT;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'left_id')) AS next_transaction;
-- a savepoint's tokens go with it; those of a released one stay until the end
SAVEPOINT s;
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('gone', 'acme') RETURNING id AS gone_id \gset
ROLLBACK TO s;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'gone_id')) AS rolled_back;
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('gone', 'acme') RETURNING id AS released_id \gset
RELEASE s;
SELECT apitoken.take_token(:'released_id') ~ '^apt_org_' AS released;
-- nested, with an error between
SAVEPOINT a;
SAVEPOINT b;
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('nested', 'acme') RETURNING id AS nested_id \gset
RELEASE b;
ROLLBACK TO a;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'nested_id')) AS released_then_rolled_back;
SELECT count(*) FROM apitoken.tokens WHERE label = 'nested';
ROLLBACK;
-- only the role that inserted it
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('others', 'acme') RETURNING id AS others_id \gset
RESET SESSION AUTHORIZATION;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'others_id')) AS superuser;
SET LOCAL ROLE regress_apitoken_other;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'others_id')) AS other_role;
RESET ROLE;
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT apitoken.take_token(:'others_id') ~ '^apt_org_' AS own_role;
ROLLBACK;
SELECT label FROM apitoken.list_tokens();

--
-- Permission to create but not to read: RETURNING is refused, create_token works
--
BEGIN;
SELECT apitoken.act_as('mike') AS me \gset
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id, permissions) VALUES ('mike 1', 'acme', '{article:read}') RETURNING apitoken.take_token(id)$$) AS returning;
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id, permissions) VALUES ('mike 2', 'acme', '{article:read}')$$) AS blind;
SELECT token AS mike_token FROM apitoken.create_token('mike 3', 'acme', permissions => '{article:read}', role => 'reader') \gset
SELECT v.valid, v.label, v.permissions, v.role FROM apitoken.verify(:'mike_token') v;
-- nobody hands out more than they hold: neither the default role nor any role beyond their own
SELECT public.regress_try($$SELECT apitoken.create_token('mike 4', 'acme')$$) AS default_role;
SELECT public.regress_try($$SELECT apitoken.create_token('mike 4', 'acme', role => 'admin', access => 'read_only')$$) AS admin;
SELECT count(*) FROM apitoken.tokens;
COMMIT;

--
-- ON CONFLICT
--
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
CREATE TEMP VIEW regress_view WITH (security_invoker = true) AS SELECT id, organization_id, label, description FROM apitoken.tokens;
CREATE TEMP TABLE regress_ruled (label text);
CREATE RULE regress_rule AS ON INSERT TO regress_ruled DO INSTEAD INSERT INTO apitoken.tokens (label, organization_id) VALUES (new.label, 'acme') ON CONFLICT DO NOTHING;
-- it is refused: the caller gets a token or the reason why not
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('deploy', 'acme') ON CONFLICT DO NOTHING$$);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('twice', 'acme'), ('twice', 'acme')$$);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('twice', 'acme'), ('twice', 'acme') ON CONFLICT DO NOTHING$$);
-- (it may not reach what INSERT and UPDATE may not)
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('deploy', 'acme') ON CONFLICT (id) DO UPDATE SET organization_id = 'globex'$$);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('deploy', 'acme') ON CONFLICT (id) DO UPDATE SET label = 'taken over'$$);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('new', 'acme') ON CONFLICT (organization_id, label) DO UPDATE SET description = 'x'$$) AS unfit,
	public.regress_try($$WITH made AS (INSERT INTO apitoken.tokens (label, organization_id) VALUES ('new', 'acme') ON CONFLICT DO NOTHING RETURNING id) SELECT * FROM made$$) AS common,
	public.regress_try($$EXPLAIN INSERT INTO apitoken.tokens (label, organization_id) VALUES ('new', 'acme') ON CONFLICT DO NOTHING$$) AS explained,
	public.regress_try($$PREPARE regress_upsert AS INSERT INTO apitoken.tokens (label, organization_id) VALUES ('new', 'acme') ON CONFLICT DO NOTHING$$) AS prepared,
	public.regress_try($$EXECUTE regress_upsert$$) AS executed,
	public.regress_try($$CREATE TEMP TABLE made AS WITH made AS (INSERT INTO apitoken.tokens (label, organization_id) VALUES ('new', 'acme') ON CONFLICT DO NOTHING RETURNING id) SELECT * FROM made$$) AS stored,
	public.regress_try($$INSERT INTO pg_temp.regress_view (label, organization_id) VALUES ('new', 'acme') ON CONFLICT DO NOTHING$$) AS viewed,
	public.regress_try($$INSERT INTO pg_temp.regress_view (label, organization_id) VALUES ('new', 'acme') ON CONFLICT (id) DO UPDATE SET description = 'x'$$) AS viewed_id,
	public.regress_try($$INSERT INTO pg_temp.regress_ruled (label) VALUES ('new')$$) AS ruled,
	public.regress_try($$DO 'BEGIN INSERT INTO apitoken.tokens (label, organization_id) VALUES (''new'', ''acme'') ON CONFLICT DO NOTHING; END'$$) AS nested;
SELECT label, count(*) FROM apitoken.tokens WHERE label IN ('deploy', 'twice', 'new') GROUP BY label ORDER BY label COLLATE "C";
ROLLBACK;

--
-- Columns that only the extension fills, and ways around the view
--
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT c AS "column", r AS relation, pg_catalog.split_part(public.regress_try(pg_catalog.format('INSERT INTO %s (label, organization_id, %I) VALUES (%L, %L, NULL)', r, c, 'sly', 'acme')), ' | ', 1) AS answer
FROM pg_catalog.unnest('{apitoken.tokens,apitoken_internal.token_records}'::text[]) r, pg_catalog.unnest('{id,masked,created_by,created_by_name,created_at,updated_at,suspended_at,revoked_at,revoked_by,revoke_reason,digest,digest_scheme,previous_digest,previous_expires_at,previous_replaced_at,last_used_at,status}'::text[]) c
ORDER BY 2, 1;
-- the table beneath takes what the view takes, and treats it the same
SELECT public.regress_try($$INSERT INTO apitoken_internal.token_records (label, organization_id) VALUES ('beneath', 'globex')$$);
INSERT INTO apitoken_internal.token_records (label, organization_id) VALUES ('beneath', 'acme') RETURNING role, access, created_by, apitoken.take_token(id) ~ '^apt_org_' AS taken;
ROLLBACK;
\set VERBOSITY sqlstate
\copy apitoken.tokens (label, organization_id) from '/dev/null'
\copy apitoken_internal.token_records (label, organization_id) from '/dev/null'
\set VERBOSITY default
-- writing where nothing may be written
BEGIN READ ONLY;
SELECT apitoken.act_as('ada') AS me \gset
SELECT public.regress_try($$SELECT apitoken.create_token('b', 'acme')$$);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('b', 'acme')$$);
COMMIT;
-- in REPEATABLE READ and SERIALIZABLE
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT apitoken.act_as('ada') AS me \gset
SELECT token AS rr_token FROM apitoken.create_token('repeatable', 'acme') \gset
SELECT (apitoken.verify(:'rr_token')).verdict;
SELECT public.regress_try($$SELECT apitoken.create_token('repeatable', 'acme')$$);
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('repeatable 2', 'acme') RETURNING apitoken.take_token(id) ~ '^apt_org_' AS taken;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT apitoken.act_as('newcomer') AS me \gset
SELECT (apitoken.create_token('serializable')).id IS NOT NULL AS made;
SELECT user_id, created_by, created_by_name, label FROM apitoken.tokens;
COMMIT;

--
-- Personal tokens need no synchronization: the first one makes the user's row
--
BEGIN;
SELECT apitoken.act_as('fresh') AS me \gset
SELECT count(*) AS before FROM apitoken.users;
SELECT token AS fresh_token FROM apitoken.create_token('first') \gset
SELECT id, name, groups, role, suspended_at FROM apitoken.users;
SELECT (apitoken.create_token('second')).id IS NOT NULL AS second;
COMMIT;
SELECT v.valid, v.user_id, v.permissions FROM apitoken.verify(:'fresh_token') v;
-- a member without a row in users makes an organization's token
BEGIN;
SELECT apitoken.act_as('gina') AS me \gset
SELECT (apitoken.create_token('by gina', 'globex')).id IS NOT NULL AS made;
SELECT id FROM apitoken.users;
-- a user may name their own id, but nobody else's
SELECT (apitoken.create_token('own', user_id => 'gina')).id IS NOT NULL AS made;
SELECT public.regress_try($$SELECT apitoken.create_token('own', user_id => 'ada')$$);
COMMIT;
RESET SESSION AUTHORIZATION;
-- the organization's token keeps the name that its creator had then
UPDATE apitoken.users SET name = 'Ada L.' WHERE id = 'ada';
SELECT DISTINCT organization_id, created_by, created_by_name FROM apitoken.tokens WHERE organization_id IS NOT NULL ORDER BY 1, 2;

--
-- Labels: unique among an owner's tokens that are not revoked
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
-- other owners may use the same labels: ada's own deploy, acme's laptop
SELECT (apitoken.create_token('deploy')).id IS NOT NULL AS own, (apitoken.create_token('laptop', 'acme')).id IS NOT NULL AS acme;
UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'deploy' AND organization_id = 'acme';
SELECT public.regress_try($$SELECT apitoken.create_token('deploy', 'acme')$$) AS suspended;
SELECT apitoken.revoke_token(:'org_id', 'deploy');
SELECT id AS org_id2 FROM apitoken.create_token('deploy', 'acme') \gset
SELECT apitoken.revoke_token(:'org_id2', 'deploy');
SELECT (apitoken.create_token('deploy', 'acme')).id IS NOT NULL AS again;
SELECT status, count(*) FROM apitoken.tokens WHERE label = 'deploy' AND organization_id = 'acme' GROUP BY status ORDER BY status;
ROLLBACK;
-- a label is what people see of it: blank characters at its ends are not part of it
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
CREATE TEMP TABLE shown (n int GENERATED ALWAYS AS IDENTITY, what text, label text);
INSERT INTO shown (what, label) VALUES
	('plain', 'Build'), ('spaces', '  Build  '), ('line break', E'Build\r\n'), ('tabs', E'\t\x0b\fBuild\t'), ('next line', E'Build\u0085'), ('no-break space', E'\u00a0Build\u00a0'),
	('em space', E'\u2003Build'), ('ideographic space', E'Build\u3000'), ('line separator', E'\u2028Build\u2029'), ('zero width space', E'Build\u200b'),
	('word joiner', E'Build\u2060'), ('byte order mark', E'\ufeffBuild'), ('several', E' \u200b\u00a0Build\u3000\ufeff\n'), ('another', E'\u00a0Buil d\u2009\u2009é\u3000');
SELECT what, public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%L, ''acme'')', label)) AS created,
	public.regress_try(pg_catalog.format('INSERT INTO apitoken.tokens (label) VALUES (%L)', label)) AS inserted FROM shown ORDER BY n;
SELECT label, pg_catalog.length(label), count(*) FROM apitoken.tokens WHERE label LIKE 'Buil%' GROUP BY label ORDER BY label COLLATE "C";
-- it is confirmed as it is shown
SELECT apitoken.revoke_token(id, 'Build') FROM apitoken.tokens WHERE label = 'Build' AND organization_id = 'acme';
ROLLBACK;
-- a label that shows nothing, or that has control characters, is refused
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
CREATE TEMP TABLE hidden (n int GENERATED ALWAYS AS IDENTITY, what text, label text);
INSERT INTO hidden (what, label) VALUES
	('no-break space', E'\u00a0'), ('ideographic space', E'\u3000'), ('zero width space', E'\u200b'), ('byte order mark', E'\ufeff'), ('vertical tab', E'\x0b'), ('all blanks', E' \t\n\u0085\u1680\u2028\u202f\u205f\u2060'),
	('soft hyphen', E'\u00ad'), ('zero width joiners', E'\u200c\u200d'), ('left-to-right mark', E'\u200e'), ('Hangul filler', E'\u3164'), ('empty Braille pattern', E'\u2800\u2800'), ('variation selector', E' \ufe0f '),
	('tag characters', E'\U000e0041\U000e007f'), ('invisible times', E'\u2062'), ('combining grapheme joiner', E'\u034f'), ('interlinear', E'\ufff0'), ('annotation', E'\ufff9\ufffb'), ('null notehead', E'\U0001d159'), ('Khitan filler', E'\U00016fe4'), ('noncharacters', E'\uffff\ufdd0'),
	('escape sequence', E'\x1b[31mred'), ('line break', E'a\nb'), ('tab', E'a\tb'), ('bell', E'a\x07'), ('delete', E'a\x7f'), ('next line', E'a\u0085b'), ('control sequence introducer', E'a\u009b31m'),
	('line separator', E'a\u2028b'), ('paragraph separator', E'a\u2029b'), ('right-to-left override', E'\u202edliuB'), ('embedding', E'a\u202bb'), ('pop', E'a\u202c'), ('isolate', E'a\u2066b\u2069'), ('override alone', E'\u202e');
SELECT what, public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%L, ''acme'')', label)) AS created,
	public.regress_try(pg_catalog.format('INSERT INTO apitoken.tokens (label) VALUES (%L)', label)) = public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%L, ''acme'')', label)) AS inserted FROM hidden ORDER BY n;
-- in a description, lines are not refused
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%L, ''acme'', description => %L)', 'described', d)) AS answer
FROM pg_catalog.unnest(ARRAY[E'a\x1b[31m', E'a\u202eb', E'a\u2028b', E'a\u0085b', E' \tone\r\ntwo\n']) d;
SELECT pg_catalog.length(description) FROM apitoken.tokens WHERE label = 'described';
-- and characters of every script, with what joins them, are not refused
SELECT n, public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%L, ''acme'')', l)) AS answer
FROM pg_catalog.unnest(ARRAY['Größe', 'Развёртывание', '部署', E'\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645', E'\u05d0\u200e1', E'\U0001F468\u200d\U0001F469', E'\u2764\ufe0f', 'a' || E'\u00a0' || 'b', E'Cafe\u0301']) WITH ORDINALITY AS v (l, n);
SELECT count(*) FROM apitoken.tokens WHERE label = E'\u2764\ufe0f';
ROLLBACK;
-- an expired token holds its label until it is revoked
RESET SESSION AUTHORIZATION;
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = now() - '1 day'::interval WHERE label = 'deploy';
SET LOCAL session_replication_role = origin;
SELECT public.regress_try($$SELECT apitoken.create_token('deploy', 'acme')$$) AS expired;
ROLLBACK;

--
-- An organization's token as creator, and the database administrator
--
BEGIN;
SELECT token AS maker_token FROM apitoken.create_token('maker', 'acme', role => 'maker') \gset
SELECT token AS reader_token FROM apitoken.create_token('full access is not enough', 'acme', role => 'maker', access => 'read_only') \gset
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_anonymous;
BEGIN;
SELECT (apitoken.authenticate(:'maker_token')).verdict;
SELECT token AS made_token FROM apitoken.create_token('by a token', 'acme', permissions => '{article:read}', role => 'reader') \gset
SELECT public.regress_try($$SELECT apitoken.create_token('b', 'globex')$$) AS elsewhere;
SELECT public.regress_try($$SELECT apitoken.create_token('b')$$) AS personal;
SELECT public.regress_try($$SELECT apitoken.create_token('b', user_id => 'ada')$$) AS of_ada;
SELECT public.regress_try($$SELECT apitoken.create_token('', NULL, expires_in => '30')$$) AS ownerless;
COMMIT;
BEGIN;
SELECT (apitoken.authenticate(:'reader_token')).verdict;
SELECT public.regress_try($$SELECT apitoken.create_token('b', 'acme', permissions => '{article:read}', role => 'reader')$$) AS read_only;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT created_by, created_by_name, (apitoken.verify(:'made_token')).verdict FROM apitoken.tokens WHERE label = 'by a token';
-- a superuser and a role with BYPASSRLS make tokens for any owner, but an owner must be named and valid
SELECT (apitoken.create_token('by dba', 'globex')).id IS NOT NULL AS organization, (apitoken.create_token('by dba', user_id => 'ada')).id IS NOT NULL AS ada, (apitoken.create_token('by dba', user_id => 'brand new')).id IS NOT NULL AS new;
SELECT public.regress_try($$SELECT apitoken.create_token('b')$$) AS ownerless;
SELECT public.regress_try($$SELECT apitoken.create_token('b', 'nowhere')$$) AS nowhere;
SELECT public.regress_try($$SELECT apitoken.create_token('b', 'acme', 'ada')$$) AS two_owners;
SELECT public.regress_try($$SELECT apitoken.create_token('b', user_id => '')$$) AS empty;
SELECT public.regress_try($$SELECT apitoken.create_token('b', user_id => repeat('x', 256))$$) AS too_long;
SELECT public.regress_try($$INSERT INTO apitoken.tokens (id, label, organization_id) VALUES (gen_random_uuid(), 'b', 'acme')$$) AS own_id;
SELECT organization_id, user_id, created_by, role FROM apitoken.tokens WHERE label = 'by dba' ORDER BY 1, 2;
SET SESSION AUTHORIZATION regress_apitoken_bypass;
SELECT (apitoken.create_token('by bypass', 'globex', role => 'admin')).id IS NOT NULL AS organization, (apitoken.create_token('by bypass', user_id => 'mike')).id IS NOT NULL AS mike;
RESET SESSION AUTHORIZATION;
-- a DBA's values for columns that only the extension fills are ignored
INSERT INTO apitoken_internal.token_records (label, organization_id, created_by, created_by_name, created_at, updated_at, masked, revoked_at, revoked_by, revoke_reason, previous_expires_at)
VALUES ('chosen', 'acme', 'mallory', 'M.', '2020-01-01', '2020-01-01', 'apt_org_x', '2020-01-01', 'mallory', 'x', '{infinity}')
RETURNING created_by, created_by_name, created_at = now() AS now, updated_at = now() AS now, masked ~ '^apt_org_[0-9A-Za-z]{22}_\.\.\.' AS masked, revoked_at, revoked_by, revoke_reason, previous_expires_at, (apitoken.verify(apitoken.take_token(id))).verdict;
-- the same with COPY, which a DBA may use
BEGIN;
\copy apitoken_internal.token_records (label, organization_id) from program 'echo "by copy,acme"' with (format csv)
SELECT role, access, (apitoken.verify(apitoken.take_token(id))).verdict FROM apitoken.tokens WHERE label = 'by copy';
COMMIT;
-- a row that comes with a digest is kept as it is; only the tables' owner may insert one
INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme, created_by)
VALUES ('01890000-0000-7000-8000-000000000001', '', 'acme', 'gone', 'full', '2020-01-01', '2020-01-02', 'as it was', apitoken.hash('x'), 0, 'long gone')
RETURNING id, label, role, created_by, masked;
GRANT INSERT ON apitoken_internal.token_records TO regress_apitoken_bypass, regress_apitoken_app;
\set restored 'INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme) VALUES (''01890000-0000-7000-8000-000000000002'', ''sly'', ''acme'', ''admin'', ''full'', now(), now(), ''sly'', decode(repeat(''00'', 32), ''hex''), 0)'
SET SESSION AUTHORIZATION regress_apitoken_bypass;
SELECT public.regress_try(:'restored') AS bypass;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT public.regress_try(:'restored') AS ada;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM apitoken.tokens WHERE label = 'sly';

-- suspended owners get no new tokens
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme';
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'fresh';
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT public.regress_try($$SELECT apitoken.create_token('b', 'acme')$$) AS suspended_organization;
COMMIT;
BEGIN;
SELECT apitoken.act_as('fresh') AS me \gset
SELECT public.regress_try($$SELECT apitoken.create_token('b')$$) AS suspended_user;
COMMIT;
RESET SESSION AUTHORIZATION;

-- every token has its usage row and its event, except the restored one
SELECT count(*) FROM apitoken_internal.token_records r WHERE NOT EXISTS (SELECT FROM apitoken.token_usage u WHERE u.token_id = r.id) OR NOT EXISTS (SELECT FROM apitoken.events e WHERE e.token_id = r.id AND e.action = 'create');

DROP FUNCTION pg_temp.answers(text);
DROP TABLE pg_temp.bad;
\i :srcdir/test/regress_teardown.sql
