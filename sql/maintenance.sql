--
-- Maintenance: what it revokes and removes, what it must keep, which roles may
-- call it and where it cannot run.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_directory LOGIN;
CREATE ROLE regress_apitoken_all LOGIN;
CREATE ROLE regress_apitoken_cron LOGIN;
SELECT apitoken.allow('regress_apitoken_directory', 'directory');
SELECT apitoken.allow('regress_apitoken_all', 'use', 'manage', 'verify', 'act', 'directory');

-- the owner's way to remove tokens in this test
ALTER TABLE apitoken_internal.token_records DISABLE TRIGGER token_refuse_delete;
-- a new database has nothing to do
SELECT * FROM apitoken.run_maintenance();

--
-- organizations.idle_timeout: at least a minute, at most 100 years, and without a
-- negative part, which could end at once or leave the range of timestamps
--
SET SESSION AUTHORIZATION regress_apitoken_directory;
SELECT t, pg_catalog.split_part(public.regress_try(pg_catalog.format('UPDATE apitoken.organizations SET idle_timeout = %L WHERE id = ''acme''', t)), ' violates ', 1) AS answer
FROM pg_catalog.unnest('{1 minute,90 days,P1Y,100 years,1 mon 2 days 3 hours,30,59.999999 s,0,-1 day,101 years,1 mon -29 days,-12 mons 400 days,71582788 mons -2147483640 days,1 day -10 hours}'::text[]) t;
UPDATE apitoken.organizations SET idle_timeout = NULL;
-- only the directory sets it, not an organization's own administrators
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT id, idle_timeout, resumed_at FROM apitoken.organizations;
SELECT public.regress_try($$UPDATE apitoken.organizations SET idle_timeout = '1 minute'$$) AS member;
COMMIT;
-- resumed_at records the end of a suspension and nothing else
SET SESSION AUTHORIZATION regress_apitoken_directory;
UPDATE apitoken.organizations SET name = 'Acme', suspended_at = NULL;
SELECT id, resumed_at FROM apitoken.organizations ORDER BY id;
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme';
SELECT id, resumed_at FROM apitoken.organizations ORDER BY id;
UPDATE apitoken.organizations SET suspended_at = NULL, resumed_at = '2000-01-01';
SELECT id, resumed_at > now() - '1 hour'::interval AS just_now FROM apitoken.organizations ORDER BY id;
UPDATE apitoken.organizations SET resumed_at = NULL;
RESET SESSION AUTHORIZATION;

--
-- The settings: durations with PostgreSQL's own units, from a day to 100 years.
-- A number without a unit means minutes.  -1 means no limit.
--
CREATE FUNCTION pg_temp.set(name text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	PERFORM pg_catalog.set_config(name, value, true);
	RETURN pg_catalog.format('done: "%s"', pg_catalog.left(pg_catalog.current_setting(name), 30));
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN pg_catalog.concat_ws(' | ', SQLSTATE, detail, hint);
END $$;
\pset format unaligned
SELECT pg_catalog.left(v, 30) AS v, pg_temp.set('apitoken.retention', v) AS retention, pg_temp.set('apitoken.usage_retention', v) AS usage_retention
FROM pg_catalog.unnest(ARRAY['-1', '90d', '90 d', '1d', '1440', '1440min', '1.5d', '36h', ' 365d ', '365', '86400s', '36500d', '30', '0', '1439', '23h', '23.999h', '59 s', '-2', '-1d', '-1440', '36501d', '2147483647', '99999999999999999999d', '1e30d', 'x', '90D', '1w',
	'', '1 year', '90 DAYS', 'P1Y2M', '1-2', '@ 5 weeks', '36:00:00', '1 day', '23:59:59', '1 minute', '90.5', '-1 day', '1 day ago', '1 mon -1 day',
	'1 mon -5 hours', '1 yaer', 'never', 'infinity', '-infinity', 'nan', 'today', '101 years', '100 years', '99999999999999999999 years', '2147483647 years', 'P99999999999Y', pg_catalog.repeat('1 day ', 200), ' ']) v;
\pset format aligned
SET SESSION AUTHORIZATION regress_apitoken_all;
SELECT pg_temp.set(n, '1d') FROM pg_catalog.unnest('{apitoken.retention,apitoken.usage_retention}'::text[]) n;
SHOW apitoken.retention;
SHOW apitoken.usage_retention;
SELECT name, unit, min_val, max_val FROM pg_catalog.pg_settings WHERE name ~ '^apitoken.*retention$' ORDER BY name;
RESET SESSION AUTHORIZATION;
-- for one database, by a superuser
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER DATABASE %I SET apitoken.retention = ''730d''', pg_catalog.current_database()); END $$;
\c -
SET client_min_messages = warning;
SELECT apitoken.current_user_id();
SHOW apitoken.retention;
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER DATABASE %I RESET apitoken.retention', pg_catalog.current_database()); END $$;
\c -
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SET timezone = 'UTC';

--
-- No capability allows calling it.  A role with EXECUTE needs no other privilege
--
SET SESSION AUTHORIZATION regress_apitoken_all;
SELECT public.regress_try('SELECT apitoken.run_maintenance()');
SET SESSION AUTHORIZATION regress_apitoken_cron;
SELECT public.regress_try('SELECT apitoken.run_maintenance()');
RESET SESSION AUTHORIZATION;
GRANT EXECUTE ON FUNCTION apitoken.run_maintenance() TO regress_apitoken_cron, regress_apitoken_app;
SET SESSION AUTHORIZATION regress_apitoken_cron;
SELECT * FROM apitoken.run_maintenance();
-- EXECUTE allows nothing else
SELECT public.regress_try(s) FROM pg_catalog.unnest(ARRAY['SELECT FROM apitoken.token_usage_daily', 'SELECT FROM apitoken.tokens', 'DELETE FROM apitoken.events']) s;
-- it reports an error where it cannot write
BEGIN READ ONLY;
SELECT public.regress_try('SELECT apitoken.run_maintenance()');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM apitoken.run_maintenance();
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM apitoken.run_maintenance();
COMMIT;
SET row_security = off;
SELECT * FROM apitoken.run_maintenance();
RESET row_security;
RESET SESSION AUTHORIZATION;
-- an acting read-only token makes the transaction READ ONLY
SELECT token AS read_only FROM apitoken.create_token('read only', user_id => 'ada', access => 'read_only') \gset
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT (apitoken.authenticate(:'read_only')).verdict;
SELECT public.regress_try('SELECT apitoken.run_maintenance()');
ROLLBACK;
SELECT (SELECT verdict FROM apitoken.authenticate(:'read_only')) AS verdict, apitoken.run_maintenance();
RESET SESSION AUTHORIZATION;
-- without triggers there would be no events
SET session_replication_role = replica;
SELECT public.regress_try('SELECT apitoken.run_maintenance()');
RESET session_replication_role;
DELETE FROM apitoken_internal.token_records;

--
-- Idle tokens.  Each label says what must happen to the token.  The timeout is
-- 30 days, and 60 for "fresh".
--
INSERT INTO apitoken.organizations (id) VALUES ('fresh'), ('asleep'), ('woken');
CREATE TABLE public.regress_token (label text, organization_id text, user_id text, id uuid, token text, changed interval, used interval);
INSERT INTO public.regress_token (label, organization_id, user_id, changed, used) VALUES
	('revoked: used long ago', 'acme', NULL, '90 days', '31 days'),
	('revoked: never used', 'acme', NULL, '31 days', NULL),
	('revoked: used a minute too long ago', 'acme', NULL, '90 days', '30 days 2 minutes'),
	('kept: used lately', 'acme', NULL, '90 days', '29 days'),
	('kept: used as long ago as last use is exact', 'acme', NULL, '90 days', '30 days 10 seconds'),
	('kept: new, never used', 'acme', NULL, '29 days', NULL),
	('kept: edited lately', 'acme', NULL, '90 days', '90 days'),
	('kept: regenerated lately', 'acme', NULL, '90 days', '90 days'),
	('kept: resumed lately', 'acme', NULL, '90 days', '90 days'),
	('kept: suspended', 'acme', NULL, '90 days', '90 days'),
	('kept: expired', 'acme', NULL, '90 days', '90 days'),
	('kept: not known when it was used', 'acme', NULL, '90 days', '90 days'),
	('kept: revoked before', 'acme', NULL, '90 days', '90 days'),
	('kept: no timeout there', 'globex', NULL, '900 days', '900 days'),
	('kept: longer timeout', 'fresh', NULL, '59 days', NULL),
	('revoked: longer timeout', 'fresh', NULL, '61 days', NULL),
	('kept: organization suspended', 'asleep', NULL, '90 days', '90 days'),
	('kept: organization resumed lately', 'woken', NULL, '90 days', '90 days'),
	('kept: personal', NULL, 'ada', '900 days', '900 days');
DO $$
DECLARE
	t record;
	made record;
BEGIN
	FOR t IN SELECT * FROM public.regress_token LOOP
		SELECT * INTO made FROM apitoken.create_token(t.label, organization_id => t.organization_id, user_id => t.user_id);
		UPDATE public.regress_token SET id = made.id, token = made.token WHERE label = t.label;
	END LOOP;
END $$;
UPDATE apitoken.tokens SET suspended_at = now() WHERE label IN ('kept: resumed lately', 'kept: suspended');
SELECT apitoken.revoke_token(id, label, 'test') FROM public.regress_token WHERE label = 'kept: revoked before';
UPDATE apitoken.organizations SET suspended_at = now() WHERE id IN ('asleep', 'woken');
-- set the times as if time had passed
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records r SET created_at = now() - t.changed, updated_at = now() - t.changed FROM public.regress_token t WHERE t.id = r.id;
UPDATE apitoken.token_usage u SET last_used_at = now() - t.used FROM public.regress_token t WHERE t.id = u.token_id;
UPDATE apitoken_internal.token_records SET expires_at = now() - '1 day'::interval WHERE label = 'kept: expired';
DELETE FROM apitoken.token_usage u USING public.regress_token t WHERE t.id = u.token_id AND label = 'kept: not known when it was used';
RESET session_replication_role;
UPDATE apitoken.tokens SET description = 'x' WHERE label = 'kept: edited lately';
SELECT r.token IS NOT NULL AS regenerated FROM public.regress_token t, apitoken.regenerate_token(t.id) r WHERE label = 'kept: regenerated lately';
UPDATE apitoken.tokens SET suspended_at = NULL WHERE label = 'kept: resumed lately';
UPDATE apitoken.organizations SET suspended_at = NULL WHERE id = 'woken';
CREATE TABLE public.regress_before AS SELECT * FROM apitoken_internal.token_records;
-- without a timeout nothing is idle
SELECT * FROM apitoken.run_maintenance();
UPDATE apitoken.organizations SET idle_timeout = CASE id WHEN 'fresh' THEN '60 days' ELSE '30 days' END::interval WHERE id <> 'globex';
SELECT count(*) AS events FROM apitoken.events \gset
-- rolled back with the savepoint
BEGIN;
SAVEPOINT s;
SELECT tokens_revoked FROM apitoken.run_maintenance();
ROLLBACK TO s;
SELECT count(*) - :events AS events FROM apitoken.events;
COMMIT;
-- called by a role without other privileges while a user is acting; the events do
-- not name the user.  The caller chose the time zone, and a search_path where
-- every operator and function that the statements use is a trap
CREATE SCHEMA regress_evil AUTHORIZATION regress_apitoken_app;
SET SESSION AUTHORIZATION regress_apitoken_app;
CREATE TABLE regress_evil.organizations (id text, idle_timeout interval, suspended_at timestamptz, resumed_at timestamptz);
CREATE FUNCTION regress_evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION regress_evil.timezone(text, timestamptz) RETURNS timestamp LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION regress_evil.timezone(text, timestamp) RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
DO $$
DECLARE
	o record;
BEGIN
	FOR o IN SELECT oprname, oprleft::regtype AS l, oprright::regtype AS r, oprresult::regtype AS result, oprcode, row_number() OVER () AS n FROM pg_catalog.pg_operator
		WHERE oprname IN ('=', '<', '<=', '>', '>=', '-') AND oprleft = ANY ('{text,uuid,timestamptz,timestamp,date,tid,int8,int4}'::regtype[])
			AND oprright = ANY ('{text,uuid,timestamptz,timestamp,date,tid,int8,int4,interval}'::regtype[])
	LOOP
		EXECUTE pg_catalog.format('CREATE FUNCTION regress_evil.op%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''trapped''; END $f$', o.n, o.l, o.r, o.result);
		EXECUTE pg_catalog.format('CREATE OPERATOR regress_evil.%s (FUNCTION = regress_evil.op%s, LEFTARG = %s, RIGHTARG = %s)', o.oprname, o.n, o.l, o.r);
	END LOOP;
END $$;
SET search_path = regress_evil, pg_catalog;
SELECT 1 = 1;
RESET search_path;
BEGIN;
SELECT apitoken.act_as('gina') AS me \gset
SET LOCAL timezone = 'Pacific/Kiritimati';
SET LOCAL search_path = regress_evil, pg_catalog;
SET LOCAL intervalstyle = 'sql_standard';
SELECT * FROM apitoken.run_maintenance();
COMMIT;
RESET SESSION AUTHORIZATION;
SET client_min_messages = error;
DROP SCHEMA regress_evil CASCADE;
SET client_min_messages = warning;
SELECT t.label, r.revoked_by, r.revoke_reason, r.revoked_at > now() - '1 hour'::interval AS just_now, r.updated_at > now() - '1 hour'::interval AS touched
FROM apitoken_internal.token_records r JOIN public.regress_token t USING (id) WHERE r.revoked_at IS NOT NULL ORDER BY t.label;
-- kept tokens are unchanged
SELECT t.label FROM public.regress_token t WHERE NOT EXISTS (SELECT FROM apitoken_internal.token_records r JOIN public.regress_before b ON b = r WHERE r.id = t.id) ORDER BY 1;
-- one event each, without an actor
SELECT e.details ->> 'label' AS label, e.action, e.actor, e.actor_token_id, e.database_user, e.details #>> '{new,revoke_reason}' AS reason
FROM apitoken.events e ORDER BY e.id OFFSET :events;
-- revoked tokens are refused and their labels are free; the others are accepted
SELECT pg_catalog.split_part(label, ':', 1) AS kept, (apitoken.verify(token)).verdict, count(*) FROM public.regress_token GROUP BY 1, 2 ORDER BY 1, 2;
SELECT (apitoken.create_token('revoked: never used', 'acme')).id IS NOT NULL AS made;
-- a second run changes nothing, and a token in use is kept (verify above recorded a use)
SELECT * FROM apitoken.run_maintenance();
-- the directory may set a timeout that ends every old token at once; other organizations are not affected
UPDATE apitoken.organizations SET idle_timeout = '1 minute' WHERE id = 'globex';
SELECT tokens_revoked FROM apitoken.run_maintenance();
UPDATE apitoken.token_usage SET last_used_at = now() - '2 minutes'::interval;
SELECT tokens_revoked FROM apitoken.run_maintenance();
SELECT organization_id, label FROM apitoken.tokens WHERE revoke_reason = 'idle' AND label LIKE 'kept%';
UPDATE apitoken.organizations SET idle_timeout = NULL;

--
-- Previous digests stay after their overlap, and are refused: no event, no new updated_at
--
DELETE FROM apitoken_internal.token_records;
SELECT id AS over_id, token AS over_before FROM apitoken.create_token('over', 'acme') \gset
SELECT id AS running_id, token AS running_before FROM apitoken.create_token('running', 'acme') \gset
SELECT token AS over FROM apitoken.regenerate_token(:'over_id', overlap => '1 hour') \gset
SELECT token AS running FROM apitoken.regenerate_token(:'running_id', overlap => '1 hour') \gset
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET previous_expires_at[1] = now() - '1 s'::interval, updated_at = '2020-01-01' WHERE id = :'over_id';
RESET session_replication_role;
SELECT count(*) AS events FROM apitoken.events \gset
SELECT * FROM apitoken.run_maintenance();
SELECT label, pg_catalog.num_nulls(previous_digest, previous_digest_scheme, previous_expires_at, previous_replaced_at) AS cleared, updated_at < '2021-01-01' AS untouched FROM apitoken_internal.token_records ORDER BY label;
SELECT count(*) = :events AS no_event FROM apitoken.events;
SELECT (apitoken.verify(:'over_before')).verdict AS over_before, (apitoken.verify(:'over')).verdict AS over, (apitoken.verify(:'running_before')).verdict AS running_before, (apitoken.verify(:'running')).verdict AS running;
-- not even a superuser can clear one by hand
SELECT public.regress_try('UPDATE apitoken_internal.token_records SET previous_digest = NULL, previous_digest_scheme = NULL, previous_expires_at = NULL, previous_replaced_at = NULL');

--
-- Only events older than apitoken.retention are removed
--
CREATE FUNCTION public.regress_id(at timestamptz) RETURNS uuid LANGUAGE sql AS $$
	SELECT overlay(overlay(gen_random_uuid()::text PLACING pg_catalog.regexp_replace(pg_catalog.lpad(pg_catalog.to_hex((EXTRACT(epoch FROM at) * 1000)::bigint), 12, '0'), '(.{8})', '\1-') FROM 1) PLACING '7' FROM 15)::uuid $$;
CREATE FUNCTION public.regress_event(label text, at timestamptz, later interval DEFAULT '0') RETURNS void LANGUAGE sql AS $$
	INSERT INTO apitoken.events (id, at, action, token_id, database_user, details)
	VALUES (public.regress_id(at + later), at, 'edit', gen_random_uuid(), session_user, pg_catalog.jsonb_build_object('label', label)) $$;
SELECT public.regress_event('removed: ancient', '1999-12-31');
SELECT public.regress_event('removed: older than the epoch', '1960-01-01', '10 years 10 days');
SELECT public.regress_event('removed', now() - '366 days'::interval);
SELECT public.regress_event('removed: of a transaction of half an hour', now() - '366 days'::interval, '30 minutes');
SELECT public.regress_event('kept: not as old', now() - '364 days'::interval);
SELECT public.regress_event('kept: within the hour of slack', now() - '365 days'::interval + '10 minutes'::interval);
SELECT public.regress_event('kept until later: of a transaction of two days', now() - '366 days'::interval, '2 days');
SELECT events_removed AS kept_for_ever FROM apitoken.run_maintenance();
SET apitoken.retention = '365d';
SELECT events_removed FROM apitoken.run_maintenance();
SELECT details ->> 'label' AS label FROM apitoken.events WHERE action = 'edit' AND database_user = session_user AND actor IS NULL AND details ->> 'label' ~ 'kept|removed' AND at < now() - '1 day'::interval ORDER BY at;
-- only that statement may delete events: its caller may not, even afterwards
BEGIN;
SELECT events_removed FROM apitoken.run_maintenance();
SELECT public.regress_try('DELETE FROM apitoken.events'), public.regress_try('UPDATE apitoken.events SET actor = NULL'), public.regress_try('TRUNCATE apitoken.events');
COMMIT;
-- a tenant cannot cause a removal: they cannot set a time in the past
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT public.regress_try($$UPDATE apitoken.tokens SET expires_at = '2000-01-01'$$) AS expires_at,
	pg_catalog.left(public.regress_try($$UPDATE apitoken.tokens SET created_at = '2000-01-01'$$), 5) AS created_at,
	pg_catalog.left(public.regress_try($$UPDATE apitoken_internal.token_records SET revoked_at = '2000-01-01'$$), 5) AS revoked_at,
	pg_catalog.left(public.regress_try($$SET apitoken.retention = '1d'$$), 5) AS retention;
COMMIT;
RESET SESSION AUTHORIZATION;

--
-- Tokens that ended longer ago are removed with their usage; newer events stay
--
DELETE FROM apitoken_internal.token_records;
DELETE FROM public.regress_token;
INSERT INTO public.regress_token (label, organization_id, user_id) VALUES
	('removed: revoked', 'acme', NULL), ('removed: expired', 'acme', NULL), ('removed: revoked, would have lived', 'acme', NULL), ('removed: personal', NULL, 'ada'),
	('removed: expired while suspended', 'acme', NULL),
	('kept: revoked later', 'acme', NULL), ('kept: expired before, revoked later', 'acme', NULL), ('kept: old', 'acme', NULL), ('kept: expires', 'acme', NULL), ('kept: expired later', 'acme', NULL);
DO $$
DECLARE
	t record;
	made record;
BEGIN
	FOR t IN SELECT * FROM public.regress_token LOOP
		SELECT * INTO made FROM apitoken.create_token(t.label, organization_id => t.organization_id, user_id => t.user_id, expires_in => CASE WHEN t.label ~ 'expire|would' THEN '1 year'::interval END);
		UPDATE public.regress_token SET id = made.id, token = made.token WHERE label = t.label;
	END LOOP;
END $$;
SELECT count(apitoken.revoke_token(id, label)) FROM public.regress_token WHERE label ~ 'revoked|personal';
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET created_at = now() - '5 years'::interval, updated_at = now() - '2 years'::interval;
UPDATE apitoken_internal.token_records SET revoked_at = now() - CASE WHEN label LIKE 'removed%' THEN '366 days' ELSE '364 days' END::interval WHERE revoked_at IS NOT NULL;
UPDATE apitoken_internal.token_records SET expires_at = now() - CASE WHEN label ~ 'removed|before' THEN '366 days' ELSE '364 days' END::interval WHERE expires_at IS NOT NULL AND label !~ 'would|expires';
UPDATE apitoken_internal.token_records SET suspended_at = now() WHERE label ~ 'suspended';
RESET session_replication_role;
INSERT INTO apitoken_internal.token_days SELECT id, current_date - i, 1, 0 FROM public.regress_token, pg_catalog.generate_series(1, 3) i;
SELECT count(*) AS events FROM apitoken.events \gset
SET apitoken.retention = -1;
SELECT tokens_removed AS kept_for_ever FROM apitoken.run_maintenance();
SET apitoken.retention = '365d';
SELECT * FROM apitoken.run_maintenance();
SELECT t.label, (SELECT count(*) FROM apitoken_internal.token_records r WHERE r.id = t.id) AS rows, (SELECT count(*) FROM apitoken.token_usage u WHERE u.token_id = t.id) AS usage,
	(SELECT count(*) FROM apitoken.token_usage_daily d WHERE d.token_id = t.id AND d.day < current_date) AS days, (apitoken.verify(t.token)).verdict
FROM public.regress_token t ORDER BY label;
SELECT count(*) - :events AS events FROM apitoken.events;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT details ->> 'label' AS label, action FROM apitoken.events WHERE token_id IN (SELECT token_id FROM apitoken.events WHERE details ->> 'label' LIKE 'removed: %') AND organization_id = 'acme' AND details ->> 'label' LIKE 'removed: revoked%' ORDER BY id;
COMMIT;
RESET SESSION AUTHORIZATION;
RESET apitoken.retention;

--
-- Each task by itself.  A foreign key of the user's keeps some tokens from being
-- removed, and nothing else: other tokens are removed, and idle ones revoked.
--
DELETE FROM apitoken_internal.token_records;
UPDATE apitoken.organizations SET idle_timeout = '30 days' WHERE id = 'acme';
SELECT count((apitoken.create_token('old ' || i, 'acme')).id) FROM pg_catalog.generate_series(1, 40) i;
SELECT (apitoken.create_token('idle', 'acme')).id IS NOT NULL AS made;
SELECT count(apitoken.revoke_token(id, label)) FROM apitoken.tokens WHERE label LIKE 'old%';
CREATE TABLE public.regress_request_log (token_id uuid REFERENCES apitoken_internal.token_records, event_id uuid REFERENCES apitoken.events);
INSERT INTO public.regress_request_log (token_id) SELECT id FROM apitoken.tokens WHERE label IN ('old 3', 'old 4', 'old 17', 'old 40');
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET created_at = now() - '2 years'::interval, updated_at = now() - '2 years'::interval;
UPDATE apitoken_internal.token_records SET revoked_at = now() - '1 year'::interval WHERE label LIKE 'old%';
RESET session_replication_role;
INSERT INTO apitoken_internal.token_days (token_id, day) SELECT id, '2000-01-01' FROM apitoken.tokens WHERE label = 'idle';
SELECT public.regress_event('old event ' || i, now() - '1 year'::interval) FROM pg_catalog.generate_series(1, 10) i;
INSERT INTO public.regress_request_log (event_id) SELECT id FROM apitoken.events WHERE details ->> 'label' = 'old event 7';
SET apitoken.retention = '30d';
SET SESSION AUTHORIZATION regress_apitoken_cron;
\pset format unaligned
SELECT tokens_revoked, events_removed, tokens_removed, usage_removed, tokens_spared, pg_catalog.unnest(problems) AS problem FROM apitoken.run_maintenance();
RESET SESSION AUTHORIZATION;
SELECT label, status, revoke_reason FROM apitoken.tokens ORDER BY label;
-- it is told again, and a later run does what is possible then
SELECT tokens_removed, events_removed, pg_catalog.unnest(problems) AS problem FROM apitoken.run_maintenance();
\pset format aligned
DELETE FROM public.regress_request_log WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'old 17');
SELECT tokens_removed, events_removed FROM apitoken.run_maintenance();
TRUNCATE public.regress_request_log;
SELECT tokens_removed, events_removed, problems FROM apitoken.run_maintenance();
-- more rows that cannot be removed than rows that can; the youngest can
DELETE FROM apitoken_internal.token_records WHERE label LIKE 'old%';
SELECT count(apitoken.create_token('old ' || i, 'acme')) FROM pg_catalog.generate_series(1, 1101) i;
SELECT apitoken.revoke_tokens('acme') > 1100 AS revoked;
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET created_at = now() - '2 years'::interval, revoked_at = now() - '1 year'::interval WHERE label LIKE 'old%';
RESET session_replication_role;
INSERT INTO public.regress_request_log (token_id) SELECT id FROM apitoken.tokens WHERE label LIKE 'old%' AND label <> 'old 1101';
SELECT tokens_removed FROM apitoken.run_maintenance();
SELECT count(*) FROM apitoken.tokens WHERE label LIKE 'old%';
DELETE FROM public.regress_request_log WHERE token_id IN (SELECT id FROM apitoken.tokens WHERE label NOT LIKE 'old 10%');
SELECT tokens_removed FROM apitoken.run_maintenance();
DROP TABLE public.regress_request_log;
-- a trigger that skips rows, or fails for one with a state of the server's own
CREATE FUNCTION public.regress_skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER regress_skip BEFORE DELETE ON apitoken_internal.token_records FOR EACH ROW WHEN (old.label LIKE 'old 100%') EXECUTE FUNCTION public.regress_skip();
CREATE FUNCTION public.regress_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'this row is kept' USING ERRCODE = '55000'; END $$;
CREATE TRIGGER regress_fail BEFORE DELETE ON apitoken_internal.token_records FOR EACH ROW WHEN (old.label = 'old 1050') EXECUTE FUNCTION public.regress_fail();
SELECT tokens_removed, problems FROM apitoken.run_maintenance();
SELECT label FROM apitoken.tokens WHERE label LIKE 'old%' ORDER BY label;
DROP TRIGGER regress_fail ON apitoken_internal.token_records;
SELECT tokens_removed, problems FROM apitoken.run_maintenance();
DROP FUNCTION public.regress_skip(), public.regress_fail() CASCADE;
SELECT tokens_removed, problems FROM apitoken.run_maintenance();
-- a trigger of the user's keeps idle tokens from being revoked, and nothing else;
-- what must end the transaction does
SELECT id AS idle_id FROM apitoken.create_token('idle too', 'acme') \gset
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET created_at = now() - '2 years'::interval, updated_at = now() - '2 years'::interval WHERE id = :'idle_id';
RESET session_replication_role;
INSERT INTO apitoken_internal.token_days (token_id, day) VALUES (:'idle_id', '2000-01-01');
CREATE FUNCTION public.regress_obstacle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'obstacle' USING ERRCODE = TG_ARGV[0]; END $$;
CREATE TRIGGER regress_obstacle BEFORE UPDATE ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION public.regress_obstacle('P0001');
SELECT tokens_revoked, usage_removed, problems FROM apitoken.run_maintenance();
DROP TRIGGER regress_obstacle ON apitoken_internal.token_records;
CREATE TRIGGER regress_obstacle BEFORE UPDATE ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION public.regress_obstacle('40001');
SELECT public.regress_try('SELECT apitoken.run_maintenance()');
DROP TRIGGER regress_obstacle ON apitoken_internal.token_records;
CREATE TRIGGER regress_obstacle BEFORE UPDATE ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION public.regress_obstacle('57014');
SELECT public.regress_try('SELECT apitoken.run_maintenance()');
DROP TRIGGER regress_obstacle ON apitoken_internal.token_records;
DROP FUNCTION public.regress_obstacle();
SELECT tokens_revoked, problems FROM apitoken.run_maintenance();
RESET apitoken.retention;
UPDATE apitoken.organizations SET idle_timeout = NULL;

--
-- Use by day: visible to users who see the token, writable by nobody
--
DELETE FROM apitoken_internal.token_records;
SELECT count(*) FROM apitoken.token_usage_daily WHERE day < current_date;
SELECT (apitoken.create_token('a', 'acme')).id AS acme_id \gset
SELECT (apitoken.create_token('g', 'globex')).id AS globex_id \gset
SELECT (apitoken.create_token('own', user_id => 'ada')).id AS own_id \gset
-- (remove usage that a flush may have written for the tokens above)
SELECT apitoken.run_maintenance() IS NOT NULL AS clean;
INSERT INTO apitoken_internal.token_days (token_id, day, accepted, refused) VALUES (:'acme_id', '2020-01-01', 5, 1), (:'globex_id', '2020-01-01', 7, 0), (:'own_id', '2020-01-01', 9, 0);
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT count(*) AS anonymous FROM apitoken.token_usage_daily;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT t.label, d.day, d.accepted, d.refused FROM apitoken.token_usage_daily d JOIN apitoken.tokens t ON t.id = d.token_id ORDER BY 1;
SELECT count(*) FROM apitoken.token_usage_daily;
SELECT public.regress_try(s) FROM pg_catalog.unnest(ARRAY['UPDATE apitoken.token_usage_daily SET accepted = 0', 'DELETE FROM apitoken.token_usage_daily', 'DELETE FROM apitoken_internal.token_days',
	pg_catalog.format('INSERT INTO apitoken.token_usage_daily VALUES (%L, ''2020-01-02'')', :'acme_id')]) s;
COMMIT;
RESET SESSION AUTHORIZATION;
-- not even with GRANT ALL
GRANT USAGE ON SCHEMA apitoken_internal TO regress_apitoken_app;
GRANT ALL ON apitoken.token_usage, apitoken_internal.token_days, apitoken.token_usage_daily TO regress_apitoken_app;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
UPDATE apitoken_internal.token_days SET accepted = 0;
DELETE FROM apitoken_internal.token_days;
UPDATE apitoken.token_usage SET day_accepted = 0;
SELECT public.regress_try(pg_catalog.format('INSERT INTO apitoken_internal.token_days VALUES (%L, ''2020-01-02'')', :'acme_id'));
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT count(*), sum(accepted) FROM apitoken.token_usage_daily;
REVOKE USAGE ON SCHEMA apitoken_internal FROM regress_apitoken_app;
REVOKE ALL ON apitoken.token_usage, apitoken_internal.token_days, apitoken.token_usage_daily FROM regress_apitoken_app;
SELECT apitoken.allow('regress_apitoken_app', 'manage');
-- a token has one row per day, which is deleted with the token
SELECT pg_catalog.split_part(public.regress_try(pg_catalog.format('INSERT INTO apitoken_internal.token_days VALUES (%L, ''2020-01-01'')', :'acme_id')), ' | Key ', 1) AS regress_try;
DELETE FROM apitoken_internal.token_records WHERE id = :'globex_id';
SELECT count(*) FROM apitoken.token_usage_daily;

--
-- Days older than apitoken.usage_retention are removed: 90 days, another limit, none
--
DELETE FROM apitoken_internal.token_days;
INSERT INTO apitoken_internal.token_days (token_id, day, accepted) SELECT t, (now() AT TIME ZONE 'UTC')::date - i, 1 FROM pg_catalog.unnest(ARRAY[:'acme_id', :'own_id']::uuid[]) t, pg_catalog.generate_series(0, 99) i;
SET apitoken.usage_retention = -1;
SELECT usage_removed FROM apitoken.run_maintenance();
RESET apitoken.usage_retention;
SELECT usage_removed FROM apitoken.run_maintenance();
SELECT max((now() AT TIME ZONE 'UTC')::date - day) AS oldest FROM apitoken.token_usage_daily;
SET apitoken.usage_retention = '1d';
SELECT usage_removed FROM apitoken.run_maintenance();
SELECT max((now() AT TIME ZONE 'UTC')::date - day) AS oldest FROM apitoken.token_usage_daily;
-- the last day of a token is in token_usage; its other counts stay
UPDATE apitoken.token_usage SET last_day = CASE token_id WHEN :'acme_id' THEN '2020-01-01' ELSE (now() AT TIME ZONE 'UTC')::date END, day_accepted = 2, day_refused = 1, day_refusals = '{"expired": 1}', accepted = 3
	WHERE token_id IN (:'acme_id', :'own_id');
SELECT count(*), sum(accepted) FROM apitoken.token_usage_daily WHERE refusals IS NOT NULL;
SELECT usage_removed FROM apitoken.run_maintenance();
SELECT token_id = :'acme_id' AS old, last_day IS NOT NULL AS day, day_accepted, day_refused, day_refusals, accepted FROM apitoken.token_usage WHERE token_id IN (:'acme_id', :'own_id') ORDER BY 1;
RESET apitoken.usage_retention;

--
-- Usage of deleted tokens is removed too, unless there is no token at all: then a
-- restore may not have reached the tokens yet
--
INSERT INTO apitoken.token_usage (token_id, accepted) SELECT gen_random_uuid(), 1 FROM pg_catalog.generate_series(1, 5);
INSERT INTO apitoken_internal.token_days (token_id, day) SELECT token_id, now() FROM apitoken.token_usage WHERE accepted = 1;
BEGIN;
SET LOCAL session_replication_role = replica;
DELETE FROM apitoken_internal.token_records;
SET LOCAL session_replication_role = origin;
SELECT usage_removed FROM apitoken.run_maintenance();
ROLLBACK;
SELECT usage_removed FROM apitoken.run_maintenance();
SELECT (SELECT count(*) FROM apitoken.token_usage) AS usage, (SELECT count(DISTINCT token_id) FROM apitoken.token_usage_daily) AS daily, (SELECT count(*) FROM apitoken_internal.token_records) AS tokens;

--
-- One call also processes more rows than fit in a batch (10000 rows, and 100000
-- usage rows to scan)
--
DELETE FROM apitoken_internal.token_records;
INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, revoked_at, masked, digest, digest_scheme)
SELECT gen_random_uuid(), 'batch ' || i, 'acme', 'developer', 'full', '2020-01-01', '2020-01-01', CASE WHEN i > 10010 THEN '2020-01-01'::timestamptz END, '', '\x0000000000000000000000000000000000000000000000000000000000000000'::bytea, 0
FROM pg_catalog.generate_series(1, 20020) i;
INSERT INTO apitoken.token_usage (token_id) SELECT id FROM apitoken_internal.token_records;
INSERT INTO apitoken.token_usage (token_id) SELECT gen_random_uuid() FROM pg_catalog.generate_series(1, 100010);
INSERT INTO apitoken_internal.token_days (token_id, day) SELECT id, '2020-01-01' FROM apitoken_internal.token_records;
INSERT INTO apitoken.events (id, at, action, token_id, database_user, details)
SELECT public.regress_id('2020-01-01'::timestamptz + i * '1 s'::interval), '2020-01-01'::timestamptz + i * '1 s'::interval, 'edit', gen_random_uuid(), 'x', '{}' FROM pg_catalog.generate_series(1, 20010) i;
ANALYZE apitoken_internal.token_records, apitoken.token_usage, apitoken_internal.token_days, apitoken.events;
UPDATE apitoken.organizations SET idle_timeout = '1 year' WHERE id = 'acme';
SET apitoken.retention = '365d';
SELECT * FROM apitoken.run_maintenance();
SELECT count(*), count(revoked_at) FROM apitoken_internal.token_records;
SELECT count(*) FROM apitoken.token_usage;
SELECT count(*) FROM apitoken.token_usage_daily;
SELECT count(*) FROM apitoken.events WHERE details #>> '{new,revoke_reason}' = 'idle' AND details ->> 'label' LIKE 'batch %';
SELECT * FROM apitoken.run_maintenance();
RESET apitoken.retention;

--
-- A batch whose rows are told to as many as 1000 members is small: a worker has
-- only seconds for it, and would never end a large one.
--
DELETE FROM apitoken_internal.token_records;
UPDATE apitoken.users SET email = 'ada@acme.example' WHERE id = 'ada';
SELECT count((apitoken.create_token('told ' || i, 'acme')).id) FROM pg_catalog.generate_series(1, 250) i;
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET created_at = now() - '30 days'::interval, updated_at = now() - '30 days'::interval, expires_at = now() + '12 hours'::interval;
RESET session_replication_role;
SELECT tokens_revoked, problems FROM apitoken.run_maintenance();
SELECT pg_catalog.sum(n) AS expiries, pg_catalog.max(n) <= 100 AS small
	FROM (SELECT count(*) AS n FROM apitoken.notifications WHERE event = 'expire' GROUP BY xmin::text, cmin::text) batch;
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET created_at = now() - '2 years'::interval, updated_at = now() - '2 years'::interval, expires_at = NULL;
RESET session_replication_role;
SELECT tokens_revoked, problems FROM apitoken.run_maintenance();
SELECT pg_catalog.sum(n) AS revoked, pg_catalog.max(n) <= 100 AS small
	FROM (SELECT count(*) AS n FROM apitoken_internal.token_records WHERE revoke_reason = 'idle' GROUP BY xmin::text, cmin::text) batch;

DROP FUNCTION public.regress_id(timestamptz), public.regress_event(text, timestamptz, interval);
DROP TABLE public.regress_token, public.regress_before;
\i :srcdir/test/regress_teardown.sql
