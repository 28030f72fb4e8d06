--
-- The audit: one event for each change, which tells who changed what, and
-- nothing that would help an attacker.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_web NOLOGIN;
CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_granted LOGIN;
CREATE ROLE regress_apitoken_directory LOGIN;
CREATE ROLE regress_apitoken_client LOGIN;
GRANT regress_apitoken_web TO regress_apitoken_app;
SELECT apitoken.allow('regress_apitoken_web', 'manage');
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_granted', 'act', 'manage');
SELECT apitoken.allow('regress_apitoken_directory', 'directory');
SELECT apitoken.allow('regress_apitoken_client', 'manage');
INSERT INTO apitoken.memberships VALUES ('acme', 'dev', 'developer');
-- what has been written since the last look, ids and times left out
CREATE TABLE public.regress_seen (id uuid);
CREATE FUNCTION public.regress_news(OUT action text, OUT owner text, OUT actor text, OUT by_token text, OUT database_user name, OUT client_address inet, OUT details jsonb) RETURNS SETOF record LANGUAGE sql SECURITY DEFINER AS $$
	WITH news AS (INSERT INTO public.regress_seen SELECT id FROM apitoken.events WHERE id NOT IN (SELECT id FROM public.regress_seen) RETURNING id)
	SELECT e.action, coalesce(e.organization_id, 'user ' || e.user_id), e.actor, t.label, e.database_user, e.client_address,
		pg_catalog.regexp_replace(pg_catalog.regexp_replace(e.details::text, '_[0-9A-Za-z]{22}_\.\.\.[0-9A-Za-z]{4}"', '_(masked)"', 'g'), '"\d{4}-\d\d-\d\dT[^"]*"', '"(time)"', 'g')::jsonb
	FROM apitoken.events e JOIN news ON news.id = e.id LEFT JOIN apitoken_internal.token_records t ON t.id = e.actor_token_id
	ORDER BY e.id
$$;

--
-- Each action writes one event.  By a user, acting through another role of the login's
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SET LOCAL ROLE regress_apitoken_web;
SET LOCAL apitoken.user_id = 'ada';
SET LOCAL apitoken.client_address = '192.0.2.7';
SELECT id AS org_id, token AS org_token FROM apitoken.create_token('deploy', 'acme', role => 'admin') \gset
SELECT id AS own_id, token AS own_token FROM apitoken.create_token('laptop') \gset
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('one', 'acme'), ('two', 'acme');
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('taken', 'acme') RETURNING apitoken.take_token(id) IS NOT NULL AS taken;
COMMIT;
SELECT * FROM public.regress_news();
-- edits: old and new values, only of the columns that changed
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
UPDATE apitoken.tokens SET label = 'deploy 2', description = 'new', metadata = '{"a": 1}' WHERE id = :'org_id';
UPDATE apitoken.tokens SET access = 'custom', permissions = '{article:read}', allowed_networks = '{10.0.0.0/8}', rate_limit_per_minute = 5, expires_at = now() + '1 day'::interval WHERE id = :'own_id';
UPDATE apitoken.tokens SET access = 'full', permissions = NULL, allowed_networks = NULL, rate_limit_per_minute = NULL, expires_at = NULL WHERE id = :'own_id';
COMMIT;
SELECT action, owner, actor, by_token, database_user, client_address IS NOT DISTINCT FROM pg_catalog.inet_client_addr() AS own_address, details FROM public.regress_news();
-- suspend and resume, alone and with an edit; suspended again is an edit of when
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'org_id';
UPDATE apitoken.tokens SET suspended_at = now() + '1 s'::interval WHERE id = :'org_id';
UPDATE apitoken.tokens SET suspended_at = NULL, label = 'deploy' WHERE id = :'org_id';
COMMIT;
SELECT action, actor, details FROM public.regress_news();
-- one event a row, not a statement
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
UPDATE apitoken.tokens SET description = 'bulk' WHERE label IN ('one', 'two', 'taken');
SELECT action, count(*) FROM public.regress_news() GROUP BY action;
COMMIT;
-- regenerate
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT token AS org_token2 FROM apitoken.regenerate_token(:'org_id', '1 day') \gset
SELECT token AS org_token3 FROM apitoken.regenerate_token(:'org_id', expires_in => '30 days') \gset
COMMIT;
SELECT action, actor, details FROM public.regress_news();
-- revoke, once
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT apitoken.revoke_token(id, label, 'done with') AS one, apitoken.revoke_token(id, label) AS again FROM apitoken.tokens WHERE label = 'one';
SELECT apitoken.revoke_tokens('acme', created_by => 'nobody') AS none;
COMMIT;
SELECT action, actor, details FROM public.regress_news();

--
-- By a token: its id, and its user if it has one.  By a gateway: the login alone.
-- By a DBA: nobody that the extension knows, and the login.
--
BEGIN;
SELECT (apitoken.authenticate(:'org_token3')).verdict;
SELECT (apitoken.create_token('by token', 'acme')).id IS NOT NULL AS made;
UPDATE apitoken.tokens SET description = 'by token' WHERE label = 'two';
COMMIT;
SELECT action, owner, actor, by_token, database_user, details -> 'new' AS new FROM public.regress_news();
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
UPDATE apitoken.tokens SET access = 'custom', permissions = '{*,token:create,token:delete,token:read}' WHERE id = :'own_id';
SELECT count(*) FROM public.regress_news();
COMMIT;
BEGIN;
SELECT (apitoken.authenticate(:'own_token')).verdict;
SELECT (apitoken.create_token('by own token', permissions => '{article:read}')).id IS NOT NULL AS made;
SELECT apitoken.revoke_tokens(user_id => 'ada') AS revoked;
COMMIT;
SELECT action, owner, actor, by_token, database_user, details - 'masked' - 'old' AS details FROM public.regress_news() ORDER BY action, details ->> 'label';
RESET SESSION AUTHORIZATION;
SELECT token AS found_token FROM apitoken.create_token('found', 'acme') \gset
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT apitoken.revoke_by_token(:'found_token') AS revoked, apitoken.revoke_by_token(:'found_token') AS again;
SELECT action, owner, actor, by_token, database_user = session_user AS own_login, details - 'masked' AS details FROM public.regress_news();
-- a login that may not vouch for clients cannot choose the address
RESET SESSION AUTHORIZATION;
UPDATE apitoken.tokens SET description = NULL WHERE label = 'taken';
SELECT count(*) FROM public.regress_news();
SET SESSION AUTHORIZATION regress_apitoken_client;
BEGIN;
SET LOCAL apitoken.client_address = '203.0.113.1';
SELECT (apitoken.authenticate(:'org_token3')).verdict;
UPDATE apitoken.tokens SET description = 'by client' WHERE label = 'taken';
COMMIT;
SELECT action, by_token, database_user, client_address IS NOT DISTINCT FROM pg_catalog.inet_client_addr() AS own_address FROM public.regress_news();
SET SESSION AUTHORIZATION regress_apitoken_gateway;
-- verifications are not changes
SELECT (apitoken.verify(:'org_token3')).verdict, (apitoken.verify('nonsense')).verdict;
SELECT count(*) FROM public.regress_news();
-- the directory's job deletes owners
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.organizations (id) VALUES ('short lived');
SELECT (apitoken.create_token('x', 'short lived')).id IS NOT NULL AS org, (apitoken.create_token('x', user_id => 'short lived')).id IS NOT NULL AS own;
SELECT count(*) FROM public.regress_news();
SET SESSION AUTHORIZATION regress_apitoken_directory;
DELETE FROM apitoken.organizations WHERE id = 'short lived';
DELETE FROM apitoken.users WHERE id = 'short lived';
SELECT action, owner, actor, database_user, details #>> '{new,revoke_reason}' AS reason FROM public.regress_news();
RESET SESSION AUTHORIZATION;

--
-- A statement that changes nothing writes no event
--
BEGIN;
UPDATE apitoken.tokens SET label = label, metadata = metadata, access = access, suspended_at = suspended_at WHERE label = 'deploy';
UPDATE apitoken_internal.token_records SET updated_at = now() - '1 day'::interval WHERE label = 'deploy';
UPDATE apitoken.tokens SET description = 'x' WHERE false;
COMMIT;
SELECT public.regress_try($$UPDATE apitoken.tokens SET label = '' WHERE label = 'deploy'$$), public.regress_try($$SELECT apitoken.create_token('deploy', 'acme')$$), public.regress_try($$SELECT apitoken.create_token('', 'acme')$$);
SELECT count(*) FROM public.regress_news();
BEGIN;
SELECT (apitoken.create_token('rolled back', 'acme')).id IS NOT NULL AS made;
UPDATE apitoken.tokens SET description = 'rolled back' WHERE label = 'deploy';
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT (apitoken.create_token('rolled back', 'acme')).id IS NOT NULL AS made;
SELECT apitoken.revoke_tokens('acme') > 0 AS revoked;
ROLLBACK TO s;
COMMIT;
SELECT count(*) FROM public.regress_news();
-- restored rows are no changes, and bring no usage row: the dump has it
INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme)
SELECT id, 'restored', organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme FROM (SELECT gen_random_uuid() AS id, organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme FROM apitoken_internal.token_records WHERE label = 'deploy') s;
SELECT count(*) FROM public.regress_news();
SELECT count(*) FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label = 'restored';
-- but changes to them are
UPDATE apitoken.tokens SET description = 'edited' WHERE label = 'restored';
SELECT action, details - 'masked' AS details FROM public.regress_news();
-- restored together with a new one in one transaction and one statement
INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme)
SELECT CASE WHEN i = 1 THEN gen_random_uuid() END, 'mixed ' || i, 'acme', 'developer', 'full', now(), now(), '', CASE WHEN i = 1 THEN decode(repeat('00', 32), 'hex') END, 0 FROM pg_catalog.generate_series(1, 2) i;
SELECT action, details ->> 'label' AS label FROM public.regress_news();

--
-- New tokens, one or many: each has one event and one usage row, however it is
-- inserted and whatever else happens to it in between
--
CREATE FUNCTION public.regress_made(OUT action text, OUT labels text, OUT usage bigint) RETURNS SETOF record LANGUAGE sql SECURITY DEFINER AS $$
	SELECT n.action, pg_catalog.string_agg(n.details ->> 'label', ', '), (SELECT count(*) FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label = ANY (pg_catalog.array_agg(n.details ->> 'label')))
	FROM public.regress_news() n GROUP BY n.action ORDER BY 1
$$;
-- events stand in the order of the rows
INSERT INTO apitoken.tokens (label, organization_id, user_id)
SELECT 'many ' || i, CASE WHEN i % 2 = 0 THEN 'acme' END, CASE WHEN i % 2 = 1 THEN 'ada' END FROM pg_catalog.generate_series(1, 5) i;
SELECT owner, details ->> 'label' AS label FROM public.regress_news();
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'thousand ' || i, 'acme' FROM pg_catalog.generate_series(1, 1000) i;
SELECT count(*), count(DISTINCT details ->> 'label') AS labels, bool_and(owner = 'acme' AND action = 'create') AS created FROM public.regress_news();
SELECT count(*) FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label LIKE 'thousand %';
-- several statements in one, COPY, ON CONFLICT, MERGE, none at all
WITH a AS (INSERT INTO apitoken.tokens (label, organization_id) VALUES ('with a', 'acme') RETURNING id), b AS (INSERT INTO apitoken_internal.token_records (label, user_id) VALUES ('with b', 'ada'))
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'with c', 'acme' FROM a;
SELECT action, pg_catalog.string_agg(label, ', ' ORDER BY label) AS labels FROM (SELECT action, details ->> 'label' AS label FROM public.regress_news()) n GROUP BY 1;
COPY apitoken_internal.token_records (label, organization_id) FROM stdin;
copied 1	acme
copied 2	acme
\.
SELECT * FROM public.regress_made();
INSERT INTO apitoken_internal.token_records (label, organization_id) VALUES ('on conflict', 'acme') ON CONFLICT DO NOTHING;
INSERT INTO apitoken_internal.token_records (label, organization_id) VALUES ('on conflict 2', 'acme') ON CONFLICT (id) DO UPDATE SET description = 'never';
MERGE INTO apitoken_internal.token_records r USING (VALUES ('merged'), ('two')) v (label) ON r.label = v.label WHEN MATCHED THEN UPDATE SET description = 'merged' WHEN NOT MATCHED THEN INSERT (label, organization_id) VALUES (v.label, 'acme');
SELECT action, details ->> 'label' AS label FROM public.regress_news() ORDER BY 1, 2;
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'never', 'acme' WHERE false;
SELECT count(*) FROM public.regress_news();
-- one that is used before the statement ends keeps its usage row
CREATE FUNCTION public.regress_use(token text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	verdict text := (apitoken.verify(token)).verdict;
BEGIN
	INSERT INTO apitoken.token_usage (token_id, accepted) SELECT (apitoken.parse(token)).id, 1 ON CONFLICT DO NOTHING;
	RETURN verdict;
END $$;
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'used at once ' || i, 'acme' FROM pg_catalog.generate_series(1, 2) i RETURNING label, public.regress_use(apitoken.take_token(id)) AS verdict;
SELECT r.label, u.accepted > 0 AS used FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label LIKE 'used at once %' ORDER BY 1;
SELECT * FROM public.regress_made();
DROP FUNCTION public.regress_use(text);
-- an administrator's trigger that suspends what is new, and one that makes more: the creation comes first
CREATE FUNCTION public.regress_suspend() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	UPDATE apitoken_internal.token_records SET suspended_at = clock_timestamp() WHERE id = NEW.id;
	IF NEW.label = 'outer' THEN
		BEGIN
			INSERT INTO apitoken.tokens (label, organization_id) VALUES ('inner, rolled back', 'acme');
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			INSERT INTO apitoken.tokens (label, organization_id) VALUES ('inner', 'acme');
		END;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER z_suspend AFTER INSERT ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION public.regress_suspend();
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('outer', 'acme'), ('outer 2', 'acme');
SELECT action, details ->> 'label' AS label FROM public.regress_news();
SELECT count(*) FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label ~ '^(outer|inner)';
DROP TRIGGER z_suspend ON apitoken_internal.token_records;
DROP FUNCTION public.regress_suspend();

--
-- What an administrator adds to the tables of events and usage holds for new
-- tokens: columns with defaults, constraints, indexes, triggers, rules
--
BEGIN;
ALTER TABLE apitoken.events ADD COLUMN marked text DEFAULT 'marked';
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('column', 'acme'), ('column 2', 'acme');
SELECT action, details ->> 'label' AS label, marked FROM apitoken.events WHERE details ->> 'label' LIKE 'column%' ORDER BY id;
ROLLBACK;
BEGIN;
ALTER TABLE apitoken.events ADD CONSTRAINT regress_none CHECK (details ->> 'label' <> 'refused');
CREATE UNIQUE INDEX regress_usage ON apitoken.token_usage ((accepted + 1)) WHERE accepted > 100;
CREATE UNIQUE INDEX regress_label ON apitoken.events ((details ->> 'label')) WHERE details ->> 'label' LIKE 'indexed%';
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('indexed', 'acme');
SET LOCAL enable_seqscan = off;
SELECT count(*) FROM apitoken.events WHERE details ->> 'label' = 'indexed' AND details ->> 'label' LIKE 'indexed%';
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('not refused', 'acme'), ('refused', 'acme')$$) AS constrained, public.regress_try($$INSERT INTO apitoken.tokens (label, user_id) VALUES ('indexed', 'ada')$$) AS unique;
SELECT count(*) FROM apitoken_internal.token_records WHERE label IN ('refused', 'not refused');
ROLLBACK;
CREATE FUNCTION public.regress_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE WARNING '% % of % as owner: %', TG_WHEN, TG_LEVEL, TG_TABLE_NAME, current_user = (SELECT relowner::regrole::text FROM pg_catalog.pg_class WHERE oid = TG_RELID);
	RETURN NEW;
END $$;
BEGIN;
CREATE TRIGGER t BEFORE INSERT ON apitoken.events FOR EACH ROW EXECUTE FUNCTION public.regress_told();
CREATE TRIGGER t AFTER INSERT ON apitoken.token_usage FOR EACH STATEMENT EXECUTE FUNCTION public.regress_told();
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('trigger', 'acme'), ('trigger 2', 'acme');
SELECT * FROM public.regress_made();
ROLLBACK;
BEGIN;
CREATE RULE r AS ON INSERT TO apitoken.events WHERE new.action = 'create' DO INSTEAD NOTHING;
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('rule', 'acme');
SELECT * FROM public.regress_made();
ROLLBACK;
-- many tokens of one statement, whose events are written at once
CREATE FUNCTION public.regress_batch() RETURNS text LANGUAGE sql AS $$
	SELECT pg_catalog.concat_ws(', ', (SELECT count(*) FROM apitoken_internal.token_records WHERE label LIKE 'batch%') || ' tokens',
		(SELECT count(*) FROM apitoken.events WHERE details ->> 'label' LIKE 'batch%') || ' events',
		(SELECT count(*) FROM apitoken_internal.token_records t WHERE label LIKE 'batch%'
			AND (SELECT count(*) FROM apitoken.events e WHERE e.token_id = t.id AND action = 'create' AND at = t.created_at AND e.id > t.id) <> 1) || ' wrong',
		(SELECT count(*) FROM apitoken_internal.token_records t WHERE label LIKE 'batch%'
			AND NOT EXISTS (SELECT FROM apitoken.token_usage u WHERE u.token_id = t.id)) || ' without usage') $$;
BEGIN;
INSERT INTO apitoken.tokens (label, organization_id, metadata) SELECT 'batch ' || i, 'acme', '{}' FROM generate_series(1, 2500) i;
SELECT public.regress_batch();
SELECT string_agg(details ->> 'label', ' ' ORDER BY id) = (SELECT string_agg('batch ' || i, ' ' ORDER BY i) FROM generate_series(1, 2500) i) AS in_order
FROM apitoken.events WHERE details ->> 'label' LIKE 'batch%';
-- large ones
INSERT INTO apitoken.tokens (label, organization_id, metadata) SELECT 'batch large ' || i, 'acme', jsonb_build_object('x', (SELECT string_agg(md5(j::text || i::text), '') FROM generate_series(1, 400) j)) FROM generate_series(1, 200) i;
SELECT public.regress_batch();
ROLLBACK;
-- statements within a statement: each has its events, or is rolled back with them
BEGIN;
CREATE FUNCTION public.regress_more() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.label !~ '^batch [0-9]+$' THEN
		RETURN NULL;
	END IF;
	BEGIN
		INSERT INTO apitoken.tokens (label, organization_id) VALUES (new.label || ' a', 'acme'), (new.label || ' b', 'acme');
		IF new.label ~ '[02468]$' THEN
			RAISE EXCEPTION 'even';
		END IF;
	EXCEPTION WHEN raise_exception THEN NULL;
	END;
	INSERT INTO apitoken.tokens (label, organization_id) VALUES (new.label || ' c', 'acme');
	RETURN NULL;
END $$;
CREATE TRIGGER more AFTER INSERT ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION public.regress_more();
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'batch ' || i, 'acme' FROM generate_series(1, 10) i;
SELECT public.regress_batch();
SAVEPOINT s;
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'batch ' || i, 'acme' FROM generate_series(11, 20) i;
SELECT public.regress_batch();
ROLLBACK TO s;
SELECT public.regress_batch();
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) SELECT 'batch ' || i, 'acme' FROM unnest(ARRAY[21, 22, 21]) i$$);
SELECT public.regress_batch();
ROLLBACK;
-- a trigger on what is written
BEGIN;
CREATE FUNCTION public.regress_echo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.details ->> 'label' ~ '^batch [0-9]+$' THEN
		INSERT INTO apitoken.tokens (label, organization_id) VALUES (new.details ->> 'label' || ' echo', 'acme');
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER echo BEFORE INSERT ON apitoken.events FOR EACH ROW EXECUTE FUNCTION public.regress_echo();
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'batch ' || i, 'acme' FROM generate_series(1, 1010) i;
SELECT public.regress_batch();
ROLLBACK;
-- the creator of the token sees none of it
ALTER TABLE apitoken.events ADD CONSTRAINT regress_none CHECK (details ->> 'label' <> 'refused');
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('refused', 'acme');
ROLLBACK;
RESET SESSION AUTHORIZATION;
ALTER TABLE apitoken.events DROP CONSTRAINT regress_none;
DROP FUNCTION public.regress_told(), public.regress_made(), public.regress_batch();

--
-- Events contain no token text and no digest
--
SELECT count(*) > 20 AS enough, count(*) FILTER (WHERE e::text ~ '(org|usr)_[0-9A-Za-z]{71}') AS tokens,
	count(*) FILTER (WHERE EXISTS (SELECT FROM apitoken_internal.token_records r WHERE e::text LIKE '%' || pg_catalog.encode(r.digest, 'hex') || '%' OR e::text LIKE '%' || pg_catalog.encode(r.digest, 'base64') || '%')) AS digests,
	count(*) FILTER (WHERE e.details::text ~ 'digest') AS digest_keys,
	count(*) FILTER (WHERE EXISTS (SELECT FROM pg_catalog.unnest(ARRAY[:'org_token', :'org_token2', :'org_token3', :'own_token', :'found_token']) t WHERE e::text LIKE '%' || pg_catalog.substr(t, 31, 20) || '%')) AS secrets
FROM apitoken.events e;
-- each event names its token as lists show it and has a time; ids ascend
SELECT count(*) FILTER (WHERE e.details ->> 'masked' IS DISTINCT FROM r.masked AND NOT EXISTS (SELECT FROM apitoken.events l WHERE l.token_id = e.token_id AND l.action = 'regenerate')) AS other_mask,
	count(*) FILTER (WHERE e.at IS NULL OR e.at > clock_timestamp()) AS wrong_time, count(*) FILTER (WHERE pg_catalog.substr(e.id::text, 15, 1) <> '7') AS not_version_7
FROM apitoken.events e JOIN apitoken_internal.token_records r ON r.id = e.token_id;

--
-- Events are only ever added, even for a role with more privileges and a superuser
--
GRANT ALL ON apitoken.events TO regress_apitoken_granted;
SELECT count(*) AS before FROM apitoken.events \gset
SELECT s AS superuser, public.regress_try(s) AS answer FROM pg_catalog.unnest(ARRAY['UPDATE apitoken.events SET actor = NULL', 'UPDATE apitoken.events SET actor = NULL WHERE false',
	'DELETE FROM apitoken.events', 'DELETE FROM apitoken.events WHERE false', 'TRUNCATE apitoken.events', 'TRUNCATE apitoken.events, apitoken.token_usage']) s;
SET SESSION AUTHORIZATION regress_apitoken_granted;
SELECT s AS granted, public.regress_try(s) AS answer FROM pg_catalog.unnest(ARRAY['UPDATE apitoken.events SET actor = NULL', 'DELETE FROM apitoken.events', 'TRUNCATE apitoken.events',
	-- a forged event: no policy allows it
	'INSERT INTO apitoken.events (id, at, action, token_id, database_user, details) VALUES (gen_random_uuid(), now(), ''create'', gen_random_uuid(), ''x'', ''{}'')',
	'CREATE TRIGGER t BEFORE INSERT ON apitoken.events FOR EACH ROW EXECUTE FUNCTION apitoken_internal.event_refuse_change()', 'ALTER TABLE apitoken.events DISABLE TRIGGER ALL']) s;
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT s AS manager, public.regress_try(s) AS answer FROM pg_catalog.unnest(ARRAY['UPDATE apitoken.events SET actor = NULL', 'DELETE FROM apitoken.events', 'TRUNCATE apitoken.events',
	'INSERT INTO apitoken.events (id, at, action, token_id, database_user, details) VALUES (gen_random_uuid(), now(), ''create'', gen_random_uuid(), ''x'', ''{}'')']) s;
RESET SESSION AUTHORIZATION;
SELECT count(*) = :before AS unchanged FROM apitoken.events;

--
-- Users see the events of tokens that they may see, and their own
--
SELECT (apitoken.create_token('g', 'globex')).id IS NOT NULL AS globex, (apitoken.create_token('gina''s', user_id => 'gina')).id IS NOT NULL AS gina;
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT count(*) AS anonymous FROM apitoken.events;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT DISTINCT coalesce(organization_id, 'user ' || user_id) AS ada FROM apitoken.events ORDER BY 1;
COMMIT;
BEGIN;
SELECT apitoken.act_as('gina') AS me \gset
SELECT coalesce(organization_id, 'user ' || user_id) AS gina, action FROM apitoken.events ORDER BY 1;
COMMIT;
BEGIN;
SELECT apitoken.act_as('dev') AS me \gset
SELECT count(*) AS developer FROM apitoken.events;
COMMIT;
BEGIN;
-- an organization's token sees its organization's
SELECT (apitoken.authenticate(:'org_token3')).verdict;
SELECT DISTINCT coalesce(organization_id, 'user ' || user_id) AS token FROM apitoken.events ORDER BY 1;
COMMIT;
-- a user who has left the organization still sees what they did themself
RESET SESSION AUTHORIZATION;
DELETE FROM apitoken.memberships WHERE user_id = 'ada';
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT count(*) > 0 AS some, bool_and(actor = 'ada' OR user_id = 'ada') AS own FROM apitoken.events;
COMMIT;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ada';
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT count(*) AS suspended FROM apitoken.events;
COMMIT;
-- events stay when their token and its owner are deleted
RESET SESSION AUTHORIZATION;
DELETE FROM apitoken.organizations WHERE id = 'acme';
DELETE FROM apitoken.users WHERE id = 'ada';
SELECT count(*) > :before AS kept FROM apitoken.events;

--
-- A transaction's knowledge of the extension ends with it: the next transaction
-- does not take an owner for locked
--
BEGIN;
INSERT INTO apitoken.organizations (id) VALUES ('initech');
INSERT INTO apitoken.users (id) VALUES ('ada');
INSERT INTO apitoken.tokens (label, organization_id, user_id) VALUES ('t', 'initech', NULL), ('t', NULL, 'ada');
DROP EXTENSION apitoken CASCADE;
CREATE EXTENSION apitoken;
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('t', 'initech')$$) AS organization, public.regress_try($$INSERT INTO apitoken.tokens (label, user_id) VALUES ('t', 'ada')$$) AS "user";
SELECT id FROM apitoken.users;
ROLLBACK;

DROP FUNCTION public.regress_news();
DROP TABLE public.regress_seen;
\i :srcdir/test/regress_teardown.sql
