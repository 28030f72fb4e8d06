--
-- Erasure: forget_user() leaves nothing of a person but a pseudonym, and nothing of
-- anybody else changes.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_job LOGIN;
CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_most LOGIN;
CREATE ROLE regress_apitoken_all LOGIN;
SELECT apitoken.allow('regress_apitoken_job', 'directory');
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_most', 'use', 'manage', 'verify', 'act', 'monitor');
SELECT apitoken.allow('regress_apitoken_all', 'use', 'act', 'directory');

-- What any table of the extension tells of a person: each row that has one of these
-- words.  A token's masked text can have any short word without punctuation in it.
CREATE FUNCTION public.regress_traces(VARIADIC words text[]) RETURNS TABLE (relation text, rows bigint) LANGUAGE plpgsql AS $$
BEGIN
	FOR relation IN SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
		WHERE c.relkind = 'r' AND c.relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) ORDER BY 1
	LOOP
		EXECUTE pg_catalog.format('SELECT count(*) FROM ONLY %s t WHERE t::text ILIKE ANY ($1)', relation) INTO rows
			USING (SELECT pg_catalog.array_agg('%' || w || '%') FROM pg_catalog.unnest(words) w);
		IF rows > 0 THEN
			RETURN NEXT;
		END IF;
	END LOOP;
END $$;
-- a row of each table, with the pseudonyms left out
CREATE FUNCTION public.regress_rows(of text) RETURNS TABLE (id uuid, t text) LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY EXECUTE pg_catalog.format('SELECT id, t::text FROM %s t', of);
END $$;

--
-- ada, with a name, an address, an organization's token, two personal ones, and
-- events of all of them; others whose ids begin with hers
--
UPDATE apitoken.users SET name = 'Ada Lovelace', email = 'ada.lovelace@example.com', groups = '{countess}' WHERE id = 'ada';
INSERT INTO apitoken.memberships VALUES ('acme', 'ada2', 'admin');
INSERT INTO apitoken.users (id, name) VALUES ('ada2', 'Adam'), ('ad', 'Addy');
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SET LOCAL apitoken.user_id = 'ada';
SET LOCAL apitoken.client_address = '192.0.2.77';
SELECT id AS org_id, token AS org_token FROM apitoken.create_token('deploy', 'acme', role => 'admin') \gset
SELECT id AS own_id, token AS own_token FROM apitoken.create_token('countess laptop', description => 'countess text', allowed_networks => '{192.0.2.0/24}', metadata => '{"countess": true}') \gset
SELECT id AS old_id FROM apitoken.create_token('countess phone') \gset
SELECT id AS spare_id FROM apitoken.create_token('spare', 'acme') \gset
UPDATE apitoken.tokens SET label = 'countess old phone', description = 'countess text' WHERE id = :'old_id';
SELECT apitoken.revoke_token(:'old_id', reason => 'countess reason'), apitoken.revoke_token(:'spare_id', 'spare', 'no longer used');
COMMIT;
BEGIN;
SET LOCAL apitoken.user_id = 'ada2';
SET LOCAL apitoken.client_address = '198.51.100.9';
SELECT id AS other_id, token AS other_token FROM apitoken.create_token('deploy 2', 'acme', role => 'admin') \gset
SELECT id AS adam_id, token AS adam_token FROM apitoken.create_token('laptop', description => 'of Adam') \gset
COMMIT;
RESET SESSION AUTHORIZATION;
-- a personal token that acts, and a use from its address
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT (apitoken.verify(:'own_token', client_address => '192.0.2.78')).verdict, (apitoken.verify(:'adam_token', client_address => '198.51.100.9')).verdict;
RESET SESSION AUTHORIZATION;
SELECT apitoken.flush_usage();
SELECT last_used_from FROM apitoken.token_usage WHERE token_id = :'own_id';
SELECT * FROM public.regress_traces('ada"', '"ada', 'ada,', 'Lovelace', 'countess', '192.0.2.');

--
-- Who may: the capability directory, by which nobody is acting
--
SELECT public.regress_try($$SELECT apitoken.forget_user('nobody')$$) AS owner;
SET SESSION AUTHORIZATION regress_apitoken_most;
SELECT public.regress_try($$SELECT apitoken.forget_user('ada')$$) AS other_capabilities;
SET SESSION AUTHORIZATION regress_apitoken_all;
BEGIN;
SELECT apitoken.act_as('ada2');
SELECT public.regress_try($$SELECT apitoken.forget_user('ada')$$) AS acting_for_another;
SELECT public.regress_try($$SELECT apitoken.forget_user('ada2')$$) AS acting_for_oneself;
ROLLBACK;
BEGIN;
SELECT (apitoken.authenticate(:'other_token')).verdict;
SELECT public.regress_try($$SELECT apitoken.forget_user('ada')$$) AS by_token;
ROLLBACK;
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT id, public.regress_try(pg_catalog.format('SELECT apitoken.forget_user(%L)', id)) AS refused
FROM pg_catalog.unnest(ARRAY[NULL, '', '007', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', pg_catalog.repeat('x', 256)]) id;
BEGIN READ ONLY;
SELECT public.regress_try($$SELECT apitoken.forget_user('ada')$$) AS read_only;
ROLLBACK;
RESET SESSION AUTHORIZATION;
SET session_replication_role = replica;
SELECT public.regress_try($$SELECT apitoken.forget_user('ada')$$) AS without_triggers;
RESET session_replication_role;
-- nothing happened
SELECT * FROM public.regress_traces('Lovelace', 'countess', '192.0.2.');

--
-- Rolled back, nothing of her is gone
--
CREATE TABLE public.regress_before AS SELECT 'apitoken.events' AS relation, * FROM public.regress_rows('apitoken.events')
	UNION ALL SELECT 'tokens', * FROM public.regress_rows('apitoken_internal.token_records');
SET SESSION AUTHORIZATION regress_apitoken_job;
BEGIN;
SAVEPOINT a;
SELECT apitoken.forget_user('ada');
ROLLBACK TO a;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT pg_catalog.count(*) AS changed FROM public.regress_before b WHERE t NOT IN (SELECT t FROM public.regress_rows('apitoken.events') UNION ALL SELECT t FROM public.regress_rows('apitoken_internal.token_records'));
SELECT (apitoken.verify(:'own_token', client_address => '192.0.2.78')).verdict;

--
-- In a transaction whose snapshot is old, with objects in the way
--
CREATE FUNCTION public.regress_equal(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR public.= (FUNCTION = public.regress_equal, LEFTARG = text, RIGHTARG = text);
GRANT SELECT ON public.regress_before TO regress_apitoken_job;
SET SESSION AUTHORIZATION regress_apitoken_job;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SET LOCAL search_path = public, pg_catalog;
SELECT pg_catalog.count(*) > 0 FROM public.regress_before;
SELECT apitoken.forget_user('ada') AS forgotten;
COMMIT;
RESET SESSION AUTHORIZATION;
DROP OPERATOR public.= (text, text);
DROP FUNCTION public.regress_equal;

-- no table has her id, her name, her addresses or what she wrote
SELECT * FROM public.regress_traces('"ada"', '(ada,', ',ada,', ',ada)', 'Lovelace', 'countess', '192.0.2.');
SELECT count(*) FROM apitoken.users WHERE id = 'ada';
SELECT count(*) FROM apitoken.memberships WHERE user_id = 'ada';
-- one pseudonym, which looks like nothing
SELECT DISTINCT p ~ '^forgotten-[0-9a-f]{32}$' AS form, pg_catalog.count(*) OVER () AS pseudonyms
FROM (SELECT created_by AS p FROM apitoken_internal.token_records WHERE id IN (:'org_id', :'own_id', :'old_id', :'spare_id')
	UNION SELECT user_id FROM apitoken_internal.token_records WHERE id IN (:'own_id', :'old_id')
	UNION SELECT revoked_by FROM apitoken_internal.token_records WHERE id IN (:'old_id', :'spare_id')
	UNION SELECT actor FROM apitoken.events WHERE token_id = :'org_id'
	UNION SELECT user_id FROM apitoken.events WHERE token_id = :'own_id'
	UNION SELECT details #>> '{new,revoked_by}' FROM apitoken.events WHERE token_id = :'spare_id' AND action = 'revoke'
	UNION SELECT user_id FROM apitoken.events WHERE action = 'forget') s GROUP BY 1, p;
SELECT created_by AS pseudonym FROM apitoken_internal.token_records WHERE id = :'org_id' \gset
-- what remains of the tokens
SELECT label, description, metadata, allowed_networks, created_by = :'pseudonym' AS created, created_by_name, user_id = :'pseudonym' AS owner, revoked_at IS NOT NULL AS revoked, revoked_by = :'pseudonym' AS revoked_by, revoke_reason
FROM apitoken_internal.token_records WHERE id IN (:'org_id', :'own_id', :'old_id', :'spare_id') ORDER BY created_at, label, revoke_reason;
SELECT last_used_at IS NOT NULL AS used, last_used_from FROM apitoken.token_usage WHERE token_id = :'own_id';
-- an organization's token goes on working, a personal one does not
SELECT (apitoken.verify(:'org_token')).verdict AS org, (apitoken.verify(:'own_token', client_address => '192.0.2.78')).verdict AS own;
-- and of the events: all rows in their order, with what happened
SELECT action, organization_id, user_id = :'pseudonym' AS owner, actor = :'pseudonym' AS actor, client_address IS NULL AS no_address,
	pg_catalog.regexp_replace(pg_catalog.regexp_replace(pg_catalog.replace(details::text, :'pseudonym', '(pseudonym)'), '_[0-9A-Za-z]{22}_\.\.\.[0-9A-Za-z]{4}"', '_(masked)"', 'g'), '"\d{4}-\d\d-\d\dT[^"]*"', '"(time)"', 'g') AS details
FROM apitoken.events WHERE actor_token_id IS NULL AND (token_id IS NULL OR token_id IN (:'org_id', :'own_id', :'old_id', :'spare_id')) ORDER BY id;
SELECT action, token_id, organization_id, actor, database_user, details FROM apitoken.events WHERE action = 'forget';
SELECT pg_catalog.count(*) AS lost FROM public.regress_before b WHERE relation = 'apitoken.events' AND id NOT IN (SELECT id FROM apitoken.events);
-- nothing of others has changed
SELECT pg_catalog.count(*) AS others, pg_catalog.count(*) FILTER (WHERE t NOT IN (SELECT t FROM public.regress_rows('apitoken.events') UNION ALL SELECT t FROM public.regress_rows('apitoken_internal.token_records'))) AS changed
FROM public.regress_before WHERE t !~ '[(,"]ada[,")]';
SELECT last_used_from FROM apitoken.token_usage WHERE token_id = :'adam_id';
SELECT id, name FROM apitoken.users ORDER BY id;

--
-- Otherwise nobody can change events
--
SELECT public.regress_try($$UPDATE apitoken.events SET actor = 'x'$$), public.regress_try($$DELETE FROM apitoken.events$$);
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT public.regress_try($$UPDATE apitoken.events SET actor = 'x'$$), public.regress_try($$SELECT * FROM apitoken.events$$);
RESET SESSION AUTHORIZATION;

--
-- The id used again: a session or a JWT that is still valid brings nobody back,
-- nor does the pseudonym.  The directory may, and nothing returns.
--
SELECT pg_catalog.count(*) AS rows, pg_catalog.count(*) FILTER (WHERE id = :'pseudonym') AS pseudonym, pg_catalog.count(*) FILTER (WHERE id ~ '^forgotten:[0-9a-f]{64}$' AND deleted_at = '-infinity') AS marks
FROM apitoken_internal.deleted_users;
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_try($$SELECT apitoken.act_as('ada')$$) AS id;
SELECT pg_catalog.replace(public.regress_try(pg_catalog.format('SELECT apitoken.act_as(%L)', :'pseudonym')), :'pseudonym', '(pseudonym)') AS pseudonym;
RESET SESSION AUTHORIZATION;
SELECT public.regress_try($$SELECT apitoken.create_token('x', user_id => 'ada')$$) AS by_owner;
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT apitoken.forget_user('ada') AS again;
INSERT INTO apitoken.users (id) VALUES ('ada');
RESET SESSION AUTHORIZATION;
SELECT action, pg_catalog.count(*) FROM apitoken.events WHERE action = 'forget' GROUP BY 1;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada');
SELECT (SELECT pg_catalog.count(*) FROM apitoken.tokens) AS tokens, (SELECT pg_catalog.count(*) FROM apitoken.events) AS events;
SELECT (apitoken.create_token('new')).id IS NOT NULL AS made;
COMMIT;
RESET SESSION AUTHORIZATION;
-- forgotten once more, under another pseudonym
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT apitoken.forget_user('ada') AS again;
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_traces('(ada,', ',ada,', ',ada)');
SELECT pg_catalog.count(DISTINCT user_id) AS pseudonyms FROM apitoken.events WHERE action = 'forget';

--
-- Users of whom there is little: only a membership, only a deleted row, only events
--
INSERT INTO apitoken.memberships VALUES ('acme', 'bob.b', 'developer');
INSERT INTO apitoken.users (id) VALUES ('carl.c');
DELETE FROM apitoken.users WHERE id = 'carl.c';
INSERT INTO apitoken.memberships VALUES ('acme', 'dora', 'admin');
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('dora');
UPDATE apitoken.tokens SET description = 'by dora' WHERE label = 'deploy 2';
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_job;
DELETE FROM apitoken.memberships WHERE user_id = 'dora';
SELECT u, apitoken.forget_user(u) AS first, apitoken.forget_user(u) AS second FROM pg_catalog.unnest('{bob.b,carl.c,dora,stranger}'::text[]) u;
SELECT apitoken.forget_user(42), apitoken.forget_user('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid);
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_traces('bob.b', 'carl.c', '(dora', ',dora,', 'stranger');
SELECT public.regress_try($$SELECT apitoken.create_token('x', user_id => 'stranger')$$) AS stranger;

--
-- Notifications: erin's row in users is deleted first, as by a trigger of the
-- application, and her address had changed before.  fay has the address of the team,
-- too, and hal has the first one of two.
--
INSERT INTO apitoken.organizations (id, notify) VALUES ('told', '{create}');
INSERT INTO apitoken.users (id, email) VALUES ('erin.e', 'erin.e@old.example'), ('fay.f', 'team@told.example'), ('gus', 'team@told.example'), ('hal', 'hal@told.example');
INSERT INTO apitoken.memberships SELECT 'told', u, 'admin' FROM pg_catalog.unnest('{erin.e,fay.f,gus,hal}'::text[]) u;
BEGIN;
SELECT apitoken.act_as('hal');
SELECT (apitoken.create_token('first', 'told')).id IS NOT NULL AS made;
COMMIT;
UPDATE apitoken.users SET email = 'erin.e@new.example' WHERE id = 'erin.e';
BEGIN;
SELECT apitoken.act_as('hal');
SELECT (apitoken.create_token('second', 'told')).id IS NOT NULL AS made;
COMMIT;
UPDATE apitoken.notifications SET last_error = 'erin.e@new.example: no such mailbox' WHERE payload->>'label' = 'second';
SELECT payload->>'label' AS label, recipients, recipient_ids FROM apitoken.notifications WHERE organization_id = 'told' ORDER BY id;
SET SESSION AUTHORIZATION regress_apitoken_job;
DELETE FROM apitoken.users WHERE id = 'erin.e';
SELECT apitoken.forget_user('erin.e'), apitoken.forget_user('fay.f');
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_traces('erin.e', 'fay.f');
SELECT payload->>'label' AS label, recipients, recipient_ids, next_attempt_at IS NOT NULL AS pending, last_error FROM apitoken.notifications WHERE organization_id = 'told' ORDER BY id;
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT apitoken.forget_user('hal'), apitoken.forget_user('gus');
RESET SESSION AUTHORIZATION;
SELECT payload->>'label' AS label, recipients, recipient_ids, next_attempt_at IS NOT NULL AS pending FROM apitoken.notifications WHERE organization_id = 'told' ORDER BY id;

-- what stands for a forgotten user is no id, so nobody can be given it or have it erased
SELECT id AS mark FROM apitoken_internal.deleted_users WHERE id = 'forgotten:' || pg_catalog.encode(pg_catalog.sha256('erin.e'), 'hex') \gset
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT pg_catalog.replace(public.regress_try(pg_catalog.format(s, :'mark')), :'mark', '(mark)') AS mark
FROM (VALUES ('SELECT apitoken.forget_user(%L)'), ('INSERT INTO apitoken.users (id) VALUES (%L)'), ('INSERT INTO apitoken.organizations (id) VALUES (%L)')) v (s);
RESET SESSION AUTHORIZATION;
BEGIN;
SELECT public.regress_try($$SELECT apitoken.act_as('erin.e')$$) AS erin;
ROLLBACK;

DROP FUNCTION public.regress_traces, public.regress_rows;
DROP TABLE public.regress_before;
SET client_min_messages = warning;
\i :srcdir/test/regress_teardown.sql
