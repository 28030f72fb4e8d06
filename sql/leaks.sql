--
-- report_leaked(): tokens whose texts have become known are told and revoked, once,
-- by any caller who may report them.  The answer says nothing about other texts.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_most LOGIN;
CREATE ROLE regress_apitoken_both LOGIN;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_most', 'use', 'manage', 'act', 'directory', 'monitor', 'notify');
SELECT apitoken.allow('regress_apitoken_both', 'verify', 'act');
UPDATE apitoken.users SET email = 'ada@acme.example' WHERE id = 'ada';
INSERT INTO apitoken.organizations (id, on_leak) VALUES ('patient', 'notify'), ('suspended', DEFAULT);
INSERT INTO apitoken.memberships VALUES ('patient', 'ada', 'admin');

CREATE TABLE public.regress_token (n int GENERATED ALWAYS AS IDENTITY, label text, token text);
GRANT SELECT ON public.regress_token TO PUBLIC;
INSERT INTO public.regress_token (label, token)
	SELECT l, (apitoken.create_token(l, CASE WHEN l <> 'personal' THEN CASE WHEN l ~ '^(patient|suspended)' THEN pg_catalog.split_part(l, ' ', 1) ELSE 'acme' END END,
		user_id => CASE WHEN l = 'personal' THEN 'ada' END, allowed_networks => CASE l WHEN 'network' THEN '{192.0.2.0/24}'::cidr[] END)).token
	FROM pg_catalog.unnest('{valid,personal,patient,suspended one,network,expired,resting,limited,rotated,revoked}'::text[]) WITH ORDINALITY t (l, n) ORDER BY n;
INSERT INTO public.regress_token (label, token) VALUES ('never made', apitoken.generate('organization')), ('garbage', 'apt_org_x'), ('empty', ''), ('null', NULL), ('long', pg_catalog.repeat('x', 1000000)), ('masked', (SELECT masked FROM apitoken.tokens WHERE label = 'valid'));
INSERT INTO public.regress_token (label, token) SELECT 'digest', pg_catalog.encode(digest, 'hex') FROM apitoken_internal.token_records WHERE label = 'valid';
INSERT INTO public.regress_token (label, token) SELECT 'cut', pg_catalog.left(token, -1) FROM public.regress_token WHERE label = 'valid';
INSERT INTO public.regress_token (label, token) SELECT 'longer', token || 'x' FROM public.regress_token WHERE label = 'valid';
UPDATE apitoken.tokens SET expires_at = now() - '1 s'::interval WHERE label = 'expired';
UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'resting';
UPDATE apitoken.tokens SET rate_limit_per_minute = 1, quota = 1 WHERE label = 'limited';
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'suspended';
SELECT apitoken.revoke_token(id, label, 'before') FROM apitoken.tokens WHERE label = 'revoked';
INSERT INTO public.regress_token (label, token) SELECT 'new of rotated', (apitoken.regenerate_token(id, '1 hour')).token FROM apitoken.tokens WHERE label = 'rotated';
DELETE FROM apitoken.notifications;
CREATE VIEW public.regress_told AS SELECT e.details->>'label' AS label, e.action, e.details - '{masked,label,old,new}'::text[] AS leak, e.details #>> '{new,revoke_reason}' AS reason,
	e.actor, e.database_user, n.event, n.payload->>'source' AS source, n.payload->>'url' AS url, n.payload->>'action' AS done, n.payload->>'reason' AS reason_told, n.recipients
	FROM apitoken.events e FULL JOIN apitoken.notifications n USING (id) WHERE e.action IN ('leak', 'revoke') AND e.details #>> '{new,revoke_reason}' IS DISTINCT FROM 'before' ORDER BY e.id;
-- how a report of these texts ends, which is rolled back
CREATE FUNCTION public.regress_report(labels text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', l.label, l.verdict, l.action), ', ' ORDER BY l.position) INTO answer
		FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token WHERE label = ANY (labels) ORDER BY n)) l;
	RAISE EXCEPTION USING MESSAGE = coalesce(answer, 'no rows'), ERRCODE = '00001';
EXCEPTION WHEN SQLSTATE '00001' THEN
	RETURN SQLERRM;
END $$;

--
-- Who may
--
SELECT proname, pg_catalog.pg_get_function_arguments(oid), provolatile, proparallel FROM pg_catalog.pg_proc WHERE oid = 'apitoken.report_leaked'::regproc;
SET SESSION AUTHORIZATION regress_apitoken_most;
SELECT public.regress_try($$SELECT apitoken.report_leaked('{}')$$);
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_try($$SELECT apitoken.report_leaked('{}')$$);

--
-- Each verdict.  The gateway has no address that is in the token's list.
--
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT l.position, t.label AS text, l.token_id IS NOT NULL AS has_id, l.masked ~ '_\.\.\.....$' AS masked, l.label, l.verdict, l.action
FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token ORDER BY n), 'commit', 'https://git.example/acme/app/blob/1/.env') l JOIN public.regress_token t ON t.n = l.position ORDER BY l.position;
RESET SESSION AUTHORIZATION;
SELECT label, status, revoked_by, revoke_reason FROM apitoken.tokens ORDER BY created_at, label;
SELECT * FROM public.regress_told;
-- the masked form and the id are those of the token; no text is in an event or a notification
SELECT pg_catalog.count(*) AS texts FROM public.regress_token t, (SELECT pg_catalog.to_jsonb(e)::text FROM apitoken.events e UNION ALL SELECT pg_catalog.to_jsonb(n)::text FROM apitoken.notifications n) r (told)
	WHERE t.label <> 'masked' AND pg_catalog.length(t.token) > 20 AND pg_catalog.strpos(r.told, pg_catalog.substr(t.token, 31, 43)) > 0;
-- a second report
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT l.verdict, l.action, pg_catalog.count(*) FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token)) l GROUP BY 1, 2 ORDER BY 1, 2;
RESET SESSION AUTHORIZATION;
SELECT label, action, leak, event FROM public.regress_told OFFSET 17;
-- it was no use of the tokens
SELECT apitoken.flush_usage();
SELECT pg_catalog.count(*) AS used FROM apitoken.token_usage WHERE accepted > 0 OR refused > 0 OR last_used_at IS NOT NULL;

--
-- Organizations decide: for now, and for those of their own only
--
SELECT pg_catalog.split_part(public.regress_try(sql), ' | Failing', 1) AS refused FROM (VALUES ($$UPDATE apitoken.organizations SET on_leak = 'ignore'$$), ($$UPDATE apitoken.organizations SET on_leak = NULL$$)) s (sql);
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada');
SELECT public.regress_try($$UPDATE apitoken.organizations SET on_leak = 'notify' WHERE id = 'globex'$$) AS other, public.regress_try($$UPDATE apitoken.organizations SET on_leak = 'revoke' WHERE id = 'patient'$$) AS own;
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT public.regress_report('{patient}');
RESET SESSION AUTHORIZATION;
UPDATE apitoken.organizations SET on_leak = 'notify' WHERE id IN ('acme', 'patient');
DELETE FROM apitoken.notifications;
INSERT INTO public.regress_token (label, token) SELECT l, (apitoken.create_token(l, 'acme')).token FROM pg_catalog.unnest('{one,two}'::text[]) l;
SELECT id AS two_id FROM apitoken.tokens WHERE label = 'two' \gset
INSERT INTO public.regress_token (label, token) SELECT 'new of two', (apitoken.regenerate_token(:'two_id', '1 hour')).token;

--
-- The same token several times, by one text or by two: told once
--
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT l.position, l.verdict, l.action FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token, pg_catalog.generate_series(1, 3) WHERE label IN ('one', 'two', 'new of two') ORDER BY n), 'gist') l;
RESET SESSION AUTHORIZATION;
SELECT label, action, leak, event, source, url, done FROM public.regress_told WHERE label IN ('one', 'two') AND (event IS NOT NULL OR action = 'leak');
UPDATE apitoken.organizations SET on_leak = 'revoke' WHERE id = 'acme';
BEGIN;
SELECT l.position, l.verdict, l.action FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token, pg_catalog.generate_series(1, 2) WHERE label IN ('two', 'new of two') ORDER BY n)) l;
SELECT label, action, leak FROM public.regress_told WHERE label = 'two' AND leak->>'action' IS DISTINCT FROM 'notified';
ROLLBACK;
-- an overlap that is over: such a text is none of ours any more
SELECT apitoken.end_overlap(:'two_id');
SELECT public.regress_report('{two}');

--
-- Arguments
--
SELECT pg_catalog.count(*) FROM apitoken.report_leaked(NULL);
SELECT pg_catalog.count(*) FROM apitoken.report_leaked('{}');
SELECT l.position, l.token_id, l.masked, l.label, l.verdict, l.action FROM apitoken.report_leaked('[5:7]={NULL,"",x}') l;
SELECT l.position, l.verdict FROM apitoken.report_leaked('{{x,NULL},{y,z}}') l;
SELECT label, verdict, action, pg_catalog.count(*) FROM apitoken.report_leaked(pg_catalog.array_fill('x'::text, '{1000}')) GROUP BY 1, 2, 3;
SELECT public.regress_try($$SELECT apitoken.report_leaked(pg_catalog.array_fill('x'::text, '{1001}'))$$), public.regress_try($$SELECT apitoken.report_leaked(pg_catalog.array_fill('x'::text, '{2,600}'))$$);
-- what is said of the place: without secrets, and cut at a whole character.  A url with the token in it is likely.
SELECT pg_catalog.count(*) FROM public.regress_token t, apitoken.report_leaked(ARRAY[t.token], source => 'log of ' || t.token || ' and x' || t.token || pg_catalog.left(t.token, 60), url => 'https://acme.example/?key=' || t.token) WHERE t.label = 'one';
SELECT pg_catalog.regexp_replace(leak->>'source', '_[0-9A-Za-z]{21,22}', '_(id)', 'g') AS source, pg_catalog.regexp_replace(leak->>'url', '_[0-9A-Za-z]{22}', '_(id)') AS url,
	source = leak->>'source' AS same_source, url = leak->>'url' AS same_url FROM public.regress_told WHERE label = 'one' AND action = 'leak' AND leak->>'source' <> 'gist';
INSERT INTO public.regress_token (label, token) SELECT 'long place', (apitoken.create_token('long place', 'acme')).token;
SELECT l.action FROM public.regress_token t, apitoken.report_leaked(ARRAY[t.token], pg_catalog.repeat('é', 1000) || t.token, 'https://x/' || pg_catalog.repeat('ü', 1000000)) l WHERE t.label = 'long place';
SELECT pg_catalog.octet_length(leak->>'source') AS source, pg_catalog.octet_length(leak->>'url') AS url FROM public.regress_told WHERE label = 'long place' AND action = 'leak';
-- at the end of what is kept
INSERT INTO public.regress_token (label, token) SELECT 'end', (apitoken.create_token('end', 'acme')).token;
SELECT l.action FROM public.regress_token t, apitoken.report_leaked(ARRAY[t.token], pg_catalog.repeat('x', 130) || ' ' || t.token, '') l WHERE t.label = 'end';
SELECT pg_catalog.regexp_replace(leak->>'source', '_[0-9A-Za-z]{21,22}', '_(id)', 'g') AS source, leak->>'url' AS url FROM public.regress_told WHERE label = 'end' AND action = 'leak';

--
-- Transactions
--
INSERT INTO public.regress_token (label, token) SELECT l, (apitoken.create_token(l, 'acme', access => 'read_only')).token FROM pg_catalog.unnest('{three,four}'::text[]) l;
SELECT token AS three FROM public.regress_token WHERE label = 'three' \gset
SELECT token AS four FROM public.regress_token WHERE label = 'four' \gset
SET SESSION AUTHORIZATION regress_apitoken_gateway;
BEGIN READ ONLY;
SELECT public.regress_try($$SELECT apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token WHERE label = 'three'))$$) AS live, public.regress_try($$SELECT apitoken.report_leaked('{x}')$$) AS unknown, public.regress_try($$SELECT apitoken.report_leaked('{}')$$) AS none,
	public.regress_try($$SELECT apitoken.report_leaked(NULL)$$) AS of_null;
COMMIT;
BEGIN;
SAVEPOINT s;
SELECT verdict, action FROM apitoken.report_leaked(ARRAY[:'three']);
SELECT verdict, action FROM apitoken.report_leaked(ARRAY[:'three']);
SELECT (apitoken.verify(:'three')).verdict;
ROLLBACK TO s;
SELECT (apitoken.verify(:'three')).verdict;
SELECT verdict, action FROM apitoken.report_leaked(ARRAY[:'four']);
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT (apitoken.verify(:'three')).verdict;
SELECT verdict, action FROM apitoken.report_leaked(ARRAY[:'three']);
SELECT (apitoken.verify(:'three')).verdict;
ROLLBACK;
RESET SESSION AUTHORIZATION;
SELECT label, action, database_user FROM public.regress_told WHERE label IN ('three', 'four');

--
-- Who acts: a user, or a token, also the one that is reported
--
SET SESSION AUTHORIZATION regress_apitoken_both;
BEGIN;
SELECT apitoken.act_as('ada');
SELECT verdict, action FROM apitoken.report_leaked(ARRAY[:'three']);
RESET SESSION AUTHORIZATION;
SELECT action, actor, database_user FROM public.regress_told WHERE label = 'three';
ROLLBACK;
RESET SESSION AUTHORIZATION;
-- a read-only token makes the transaction READ ONLY, whose the texts ever are
SET SESSION AUTHORIZATION regress_apitoken_both;
BEGIN;
SELECT pg_catalog.set_config('apitoken.token', :'three', true) IS NOT NULL AS set;
SELECT public.regress_try($$SELECT apitoken.report_leaked('{x}')$$);
ROLLBACK;
BEGIN;
SELECT pg_catalog.set_config('apitoken.token', (SELECT token FROM public.regress_token WHERE label = 'new of two'), true) IS NOT NULL AS set;
SELECT verdict, action FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token WHERE label = 'new of two'));
RESET SESSION AUTHORIZATION;
SELECT e.action, e.actor, e.actor_token_id = e.token_id AS by_itself FROM apitoken.events e ORDER BY id DESC LIMIT 2;
ROLLBACK;
RESET SESSION AUTHORIZATION;

--
-- Many, in any order
--
INSERT INTO public.regress_token (label, token) SELECT 'many', (apitoken.create_token('many ' || n, 'acme')).token FROM pg_catalog.generate_series(1, 500) n;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT label, verdict, action, pg_catalog.count(*), pg_catalog.count(DISTINCT token_id) AS tokens, pg_catalog.min(position), pg_catalog.max(position) FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token WHERE label = 'many' ORDER BY pg_catalog.md5(token)) || pg_catalog.array_fill('y'::text, '{500}')) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
RESET SESSION AUTHORIZATION;
SELECT pg_catalog.count(*) FROM apitoken.tokens WHERE label LIKE 'many%' AND revoke_reason = 'leaked';
-- an imported token; while its format is not named, its text is none of ours
SELECT apitoken.import_token('better-auth', 'JNR3cZ6gNB5MAh-uUv-6ZMX0N9IM-bHMeaTz3grN60w', label => 'imported', organization_id => 'acme') IS NOT NULL AS imported;
SELECT l.label, l.verdict, l.action FROM apitoken.report_leaked('{ba_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl}', 'here: ba_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl') l;
SET apitoken.imported_formats = 'better-auth';
SELECT l.label, l.verdict, l.action FROM apitoken.report_leaked('{ba_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl}', 'here') l;
RESET apitoken.imported_formats;
SELECT status, revoke_reason FROM apitoken.tokens WHERE label = 'imported';
-- no notifications, where nobody wants them
INSERT INTO public.regress_token (label, token) SELECT 'quiet', (apitoken.create_token('quiet', 'globex')).token;
DELETE FROM apitoken.notifications;
SELECT action FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token WHERE label = 'quiet'));
UPDATE apitoken.organizations SET notify = '{create}' WHERE id = 'patient';
SELECT action FROM apitoken.report_leaked(ARRAY(SELECT token FROM public.regress_token WHERE label = 'patient'));
SELECT pg_catalog.count(*) AS notifications FROM apitoken.notifications;
-- a user who is forgotten: where it was found goes, too
SELECT apitoken.forget_user('ada') IS NOT NULL AS forgotten;
SELECT details - 'masked' AS details FROM apitoken.events WHERE action = 'leak' AND user_id IS NOT NULL;

DROP VIEW public.regress_told;
DROP TABLE public.regress_token;
DROP FUNCTION public.regress_report(text[]);
SET client_min_messages = warning;
\i :srcdir/test/regress_teardown.sql
