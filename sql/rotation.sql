--
-- Rotation: several secrets of one token, each until its overlap ends.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_gateway LOGIN;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{token:read,article:read}'), ('updater', '{token:update,article:read}');
INSERT INTO apitoken.memberships VALUES ('acme', 'rita', 'reader'), ('acme', 'uma', 'updater');

-- what verify() says of each secret, in the order of their making
CREATE TABLE public.regress_secret (n serial, label text, token text);
CREATE FUNCTION public.regress_verdicts(label text) RETURNS text LANGUAGE sql AS $$
	SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', v.verdict, v.secret), ', ' ORDER BY s.n)
	FROM public.regress_secret s, apitoken.verify(s.token) v WHERE s.label = regress_verdicts.label $$;
CREATE FUNCTION public.regress_create(label text, expires_in interval DEFAULT NULL) RETURNS uuid LANGUAGE sql AS $$
	WITH c AS MATERIALIZED (SELECT * FROM apitoken.create_token(label, 'acme', role => 'reader', expires_in => expires_in)),
		i AS (INSERT INTO public.regress_secret (label, token) SELECT label, c.token FROM c)
	SELECT id FROM c $$;
CREATE FUNCTION public.regress_regenerate(label text, overlap interval DEFAULT '0', expires_in interval DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.regress_secret (label, token)
	SELECT regress_regenerate.label, r.token FROM apitoken.tokens t, apitoken.regenerate_token(t.id, overlap => regress_regenerate.overlap, expires_in => regress_regenerate.expires_in) r
	WHERE t.label = regress_regenerate.label $$;
-- time goes by: the n-th previous secret ends now
CREATE FUNCTION public.regress_over(label text, n int) RETURNS void LANGUAGE sql SET session_replication_role = replica AS $$
	UPDATE apitoken_internal.token_records SET previous_expires_at[n] = pg_catalog.clock_timestamp() WHERE token_records.label = regress_over.label $$;

--
-- A client that gets no answer tries again.  The secret in production goes on to
-- its end, and so do those of the answers that were lost.
--
SELECT public.regress_create('deploy') AS id \gset
SELECT public.regress_regenerate('deploy', '1 day');
SELECT public.regress_regenerate('deploy', '1 day');
SELECT public.regress_verdicts('deploy');
SELECT public.regress_regenerate('deploy', '1 hour');
SELECT public.regress_regenerate('deploy', '2 days');
SELECT public.regress_verdicts('deploy');
-- at most four: the answer says what to do, and nothing has changed
SELECT public.regress_try($$SELECT public.regress_regenerate('deploy', '1 day')$$);
SELECT public.regress_verdicts('deploy');
-- each until its own end, in whatever order they end; a place that is free is used again
SELECT public.regress_over('deploy', 3);
SELECT public.regress_verdicts('deploy');
SELECT public.regress_regenerate('deploy', '1 minute');
SELECT public.regress_verdicts('deploy');
SELECT public.regress_try($$SELECT public.regress_regenerate('deploy', '1 day')$$);
SELECT public.regress_over('deploy', 1), public.regress_over('deploy', 4);
SELECT public.regress_regenerate('deploy', '1 day');
SELECT public.regress_verdicts('deploy');
-- without an overlap, the older ones end as well; also if there are four
SELECT public.regress_regenerate('deploy', '1 day');
SELECT public.regress_try($$SELECT public.regress_regenerate('deploy', '1 day')$$);
SELECT public.regress_regenerate('deploy');
SELECT public.regress_verdicts('deploy');
SELECT public.regress_regenerate('deploy', '1 day');
SELECT public.regress_regenerate('deploy', NULL);
SELECT public.regress_verdicts('deploy');
-- many at once in one statement, and in a savepoint that is rolled back
BEGIN;
SAVEPOINT s;
SELECT public.regress_regenerate('deploy', '1 day') FROM generate_series(1, 4);
SELECT public.regress_verdicts('deploy');
ROLLBACK TO s;
SELECT public.regress_verdicts('deploy');
COMMIT;

--
-- Never past the expiry that the token had: a later expiry revives none of them
--
SELECT public.regress_create('short', '1 hour') AS short_id \gset
SELECT public.regress_regenerate('short', '30 days');
SELECT public.regress_regenerate('short', '10 minutes', '90 days');
SELECT public.regress_regenerate('short', '30 days', '90 days');
SELECT public.regress_verdicts('short');
SELECT e <= created_at + '1 hour' AS within_the_first_hour FROM apitoken_internal.token_records, unnest(previous_expires_at) WITH ORDINALITY u (e, n) WHERE id = :'short_id' ORDER BY n;
SELECT s.n - min(s.n) OVER () AS n, v.secret, v.expires_at < now() + '1 hour' AS within_the_hour, v.expires_at > now() + '89 days' AS with_the_token
FROM public.regress_secret s, apitoken.verify(s.token) v WHERE s.label = 'short' ORDER BY s.n;
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = clock_timestamp() WHERE id = :'short_id';
RESET session_replication_role;
SELECT public.regress_verdicts('short');
SELECT public.regress_regenerate('short', '1 day', '30 days');
SELECT public.regress_verdicts('short');

--
-- verify() tells when this text ends, and which secret it is; introspect() as well
--
SELECT public.regress_create('ends', '10 days') AS ends_id \gset
SELECT public.regress_regenerate('ends', '1 day');
SELECT public.regress_regenerate('ends', '1 hour');
SELECT v.secret, round(extract(epoch FROM v.expires_at - now()) / 3600) AS hours,
	round((apitoken.introspect(s.token)->>'exp')::numeric / 3600 - extract(epoch FROM now()) / 3600) AS exp
FROM public.regress_secret s, apitoken.verify(s.token) v WHERE s.label = 'ends' ORDER BY s.n;
-- the token may end before the overlap
UPDATE apitoken.tokens SET expires_at = now() + '30 minutes'::interval WHERE id = :'ends_id';
SELECT v.secret, v.expires_at = t.expires_at AS with_the_token FROM apitoken.tokens t, public.regress_secret s, apitoken.verify(s.token) v WHERE s.label = 'ends' AND t.label = 'ends' ORDER BY s.n;
-- null unless it is valid
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'ends_id';
SELECT v.verdict, v.secret, v.expires_at FROM public.regress_secret s, apitoken.verify(s.token) v WHERE s.label = 'ends' ORDER BY s.n;
UPDATE apitoken.tokens SET suspended_at = NULL WHERE id = :'ends_id';

--
-- end_overlap()
--
SELECT apitoken.end_overlap(:'ends_id');
SELECT public.regress_verdicts('ends');
SELECT apitoken.end_overlap(:'ends_id') AS nothing_left, apitoken.end_overlap(:'id') AS none;
SELECT action, details->'new' ? 'previous_expires_at' AS ends, details ? 'masked' AS masked FROM apitoken.events WHERE token_id = :'ends_id' AND action IN ('regenerate', 'end_overlap') ORDER BY id;
SELECT count(*) AS secrets_in_events FROM apitoken.events WHERE details::text ~ 'digest|\\\\x';
-- who may: the permission token:update, and nobody else; one answer for a token of others, an unknown one and none
SELECT public.regress_regenerate('ends', '1 minute');
SELECT token AS globex_token, id AS globex_id FROM apitoken.create_token('other', 'globex') \gset
SELECT (apitoken.regenerate_token(:'globex_id', '1 day')).id IS NOT NULL AS overlap;
SELECT token AS own_token, id AS own_id FROM apitoken.create_token('own', user_id => 'rita') \gset
SELECT (apitoken.regenerate_token(:'own_id', '1 day')).id IS NOT NULL AS overlap;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('rita') AS me \gset
SELECT public.regress_try(format('SELECT apitoken.end_overlap(%L)', i)) AS rita FROM unnest(ARRAY[:'ends_id', :'globex_id', :'own_id', '00000000-0000-7000-8000-000000000000', NULL]) WITH ORDINALITY u (i, n) ORDER BY n;
COMMIT;
BEGIN;
SELECT apitoken.act_as('uma') AS me \gset
SELECT public.regress_try(format('SELECT apitoken.end_overlap(%L)', i)) AS uma FROM unnest(ARRAY[:'ends_id', :'globex_id', :'own_id', '00000000-0000-7000-8000-000000000000', NULL]) WITH ORDINALITY u (i, n) ORDER BY n;
COMMIT;
SELECT DISTINCT public.regress_try(format('SELECT apitoken.end_overlap(%L)', i)) AS anonymous FROM unnest(ARRAY[:'ends_id', :'globex_id', :'own_id', '00000000-0000-7000-8000-000000000000', NULL]) i;
BEGIN READ ONLY;
SELECT apitoken.act_as('uma') AS me \gset
SELECT public.regress_try(format('SELECT apitoken.end_overlap(%L)', :'ends_id')) AS read_only;
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT apitoken.end_overlap(:'ends_id');
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT action, actor FROM apitoken.events WHERE token_id = :'ends_id' AND action = 'end_overlap' ORDER BY id;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT public.regress_verdicts('ends');
-- a revoked token has none left to end
SELECT public.regress_regenerate('ends', '1 day');
SELECT apitoken.revoke_token(:'ends_id', 'ends');
SELECT apitoken.end_overlap(:'ends_id');
SELECT public.regress_verdicts('ends');

--
-- The list shows the previous secrets that are still accepted, and when each was used
--
SELECT public.regress_create('seen', '10 days') AS seen_id \gset
SELECT public.regress_regenerate('seen', '1 day');
SELECT public.regress_regenerate('seen', '20 days');
SELECT public.regress_regenerate('seen', '1 hour');
CREATE FUNCTION public.regress_previous(label text) RETURNS TABLE (hours numeric, with_the_token boolean, used boolean, in_words text) LANGUAGE sql AS $$
	SELECT round(extract(epoch FROM (s->>'expires_at')::timestamptz - now()) / 3600), (s->>'expires_at')::timestamptz = t.expires_at,
		now() - (s->>'last_used_at')::timestamptz < '1 minute', s->>'last_used'
	FROM apitoken.list_tokens(regress_previous.label) t, jsonb_array_elements(t.previous_secrets) WITH ORDINALITY u (s, n) ORDER BY n $$;
SELECT * FROM public.regress_previous('seen');
-- use of the current secret is none of these
SELECT verdict FROM apitoken.verify((SELECT token FROM public.regress_secret WHERE label = 'seen' ORDER BY n DESC LIMIT 1));
SELECT apitoken.flush_usage();
SELECT * FROM public.regress_previous('seen');
SELECT verdict, secret FROM apitoken.verify((SELECT token FROM public.regress_secret WHERE label = 'seen' ORDER BY n LIMIT 1 OFFSET 1));
SELECT apitoken.flush_usage();
SELECT * FROM public.regress_previous('seen');
SELECT verdict, secret FROM apitoken.verify((SELECT token FROM public.regress_secret WHERE label = 'seen' ORDER BY n LIMIT 1));
SELECT apitoken.flush_usage();
SELECT * FROM public.regress_previous('seen');
-- another secret in the same place has not been used
SELECT public.regress_over('seen', 2);
SELECT public.regress_regenerate('seen', '3 hours');
SELECT public.regress_regenerate('seen', '4 hours');
SELECT * FROM public.regress_previous('seen');
SELECT verdict, secret FROM apitoken.verify((SELECT token FROM public.regress_secret WHERE label = 'seen' ORDER BY n DESC LIMIT 1 OFFSET 1));
SELECT apitoken.flush_usage();
SELECT * FROM public.regress_previous('seen');
-- an early expiry of the token is shown; a revoked token has none
UPDATE apitoken.tokens SET expires_at = now() + '2 hours' WHERE id = :'seen_id';
SELECT hours, with_the_token FROM public.regress_previous('seen');
SELECT previous_secrets IS NULL AS none FROM apitoken.tokens WHERE label = 'deploy';
-- who sees the token sees them, and nobody their digests
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('rita') AS me \gset
SELECT label, jsonb_array_length(previous_secrets) AS previous FROM apitoken.tokens WHERE label IN ('seen', 'other');
SELECT DISTINCT k FROM apitoken.tokens, jsonb_array_elements(previous_secrets) s, jsonb_object_keys(s) k ORDER BY 1;
SELECT public.regress_try(format('SELECT %I FROM apitoken_internal.token_records', c)) AS answer FROM unnest('{previous_digest,previous_digest_scheme,previous_reused_at}'::text[]) c;
SELECT public.regress_try('UPDATE apitoken.tokens SET previous_secrets = NULL');
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT apitoken.revoke_token(:'seen_id', 'seen');
SELECT previous_secrets IS NULL AS none FROM apitoken.tokens WHERE id = :'seen_id';

--
-- A token whose own permissions name token:rotate regenerates itself, and nothing else
--
CREATE TABLE public.regress_ci (n serial, label text, id uuid, token text);
GRANT ALL ON public.regress_ci, public.regress_ci_n_seq TO regress_apitoken_app;
INSERT INTO apitoken.roles (name, permissions) VALUES ('rotator', '{article:read,token:rotate}');
INSERT INTO public.regress_ci (label, id, token) SELECT u.label, c.id, c.token
FROM (VALUES (1, 'ci', 'developer', '{deploy:write,token:rotate}'::text[], '30 days'::interval),	-- which the role need not have
	(2, 'forever', 'developer', '{deploy:write,token:rotate}', NULL),
	(3, 'plain', 'developer', '{deploy:write}', '30 days'),
	(4, 'by role', 'rotator', NULL, '30 days'),
	(5, 'by pattern', 'rotator', '{*:*,article:read}', '30 days'),
	(6, 'reader', 'reader', '{token:read,token:rotate}', '30 days'),
	(7, 'unlimited', 'developer', '{token:rotate}', NULL),
	(8, 'updater', 'updater', '{token:update,article:read}', '30 days')) u (n, label, role, permissions, expires_in),
	LATERAL apitoken.create_token(u.label, 'acme', role => u.role, permissions => u.permissions, expires_in => u.expires_in) c ORDER BY u.n;
INSERT INTO public.regress_ci (label, id, token) SELECT 'read-only', c.id, c.token FROM apitoken.create_token('read-only', 'acme', role => 'rotator', access => 'read_only') c;
INSERT INTO public.regress_ci (label, id, token) SELECT 'personal', c.id, c.token FROM apitoken.create_token('personal', user_id => 'rita', permissions => '{article:read,token:rotate}', expires_in => '30 days') c;
INSERT INTO public.regress_ci (label, id, token) SELECT 'all personal', c.id, c.token FROM apitoken.create_token('all personal', user_id => 'rita', expires_in => '30 days') c;
-- the n-th last secret of a token, and what regenerate_token() answers if it is presented
CREATE FUNCTION public.regress_ci_secret(name text, n int DEFAULT 0) RETURNS text LANGUAGE sql AS $$
	SELECT token FROM public.regress_ci c WHERE c.label = name ORDER BY c.n DESC LIMIT 1 OFFSET regress_ci_secret.n $$;
CREATE FUNCTION public.regress_rotate(name text, overlap interval DEFAULT '1 hour', expires_in interval DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
	WITH r AS MATERIALIZED (SELECT * FROM apitoken.regenerate_token((SELECT id FROM public.regress_ci WHERE label = name LIMIT 1), overlap, expires_in)),
		i AS (INSERT INTO public.regress_ci (label, id, token) SELECT name, r.id, r.token FROM r)
	SELECT 'new secret' FROM r $$;
CREATE FUNCTION public.regress_rotate_by(name text, arguments text DEFAULT '', n int DEFAULT 0) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM apitoken.authenticate(public.regress_ci_secret(name, n));
	RETURN public.regress_try(format('SELECT public.regress_rotate(%L%s)', name, arguments));
END $$;
SET SESSION AUTHORIZATION regress_apitoken_app;
-- authenticate() warns outside of transaction blocks
SET client_min_messages = error;
SELECT expires_at AS ci_expiry FROM apitoken.authenticate(public.regress_ci_secret('ci')) \gset
SELECT public.regress_rotate_by('ci');
SELECT v.verdict, v.secret, v.expires_at = :'ci_expiry' AS same_expiry, v.permissions FROM generate_series(0, 1) n, apitoken.authenticate(public.regress_ci_secret('ci')) v WHERE n = 0;
-- the secret before it is in its overlap: it is accepted, and does not rotate
SELECT (apitoken.authenticate(public.regress_ci_secret('ci', 1))).secret;
SELECT public.regress_rotate_by('ci', n => 1);
SELECT public.regress_rotate_by('ci', ', overlap => ''0''', n => 1);
-- nor does it if the current one is presented after it, or if the current one was replaced in this transaction
BEGIN;
SELECT (apitoken.authenticate(public.regress_ci_secret('ci', 1))).secret;
SELECT public.regress_rotate_by('ci');
COMMIT;
BEGIN;
SELECT public.regress_rotate_by('ci');
SELECT public.regress_try('SELECT public.regress_rotate(''ci'')');
ROLLBACK;
-- a rolled-back savepoint changes nothing
BEGIN;
SELECT (apitoken.authenticate(public.regress_ci_secret('ci'))).secret;
SAVEPOINT s;
SELECT public.regress_rotate('ci');
ROLLBACK TO s;
SELECT public.regress_rotate('ci');
COMMIT;
-- by the setting; without an overlap
BEGIN;
SELECT set_config('apitoken.token', public.regress_ci_secret('ci'), true) IS NOT NULL AS set;
SELECT public.regress_rotate('ci', NULL);
COMMIT;
BEGIN;
SELECT set_config('apitoken.token', public.regress_ci_secret('ci', 1), true) IS NOT NULL AS set \g /dev/null
SELECT public.regress_rotate('ci', NULL);
COMMIT;
SELECT public.regress_rotate_by('ci');
-- not in a READ ONLY transaction
BEGIN READ ONLY;
SELECT (apitoken.authenticate(public.regress_ci_secret('ci'))).verdict;
SELECT public.regress_try('SELECT apitoken.regenerate_token(apitoken.current_token_id())') AS answer;
COMMIT;
-- never longer-lived than it was; it may give itself less
SELECT public.regress_rotate_by('ci', ', expires_in => ''31 days''');
SELECT public.regress_rotate_by('ci', ', expires_in => ''100 years''');
SELECT public.regress_rotate_by('ci', ', expires_in => ''30 days 1 minute''');
SELECT public.regress_rotate_by('ci', ', expires_in => ''-1 day''');
SELECT public.regress_rotate_by('ci', ', overlap => ''29 days'', expires_in => ''1 day''');
SELECT expires_at < now() + '25 hours' AS shorter FROM apitoken.authenticate(public.regress_ci_secret('ci'));
SELECT public.regress_rotate_by('ci', ', expires_in => ''25 hours''');
SELECT public.regress_rotate_by('forever');
SELECT expires_at FROM apitoken.authenticate(public.regress_ci_secret('forever'));
SELECT public.regress_rotate_by('forever', ', expires_in => ''1 day''');
-- a personal token as well
SELECT public.regress_rotate_by('personal');
SELECT public.regress_rotate_by('personal', n => 1);
-- nobody without the name in the token's own permissions: not by a role, nor by a pattern; a read-only token writes nothing
SELECT public.regress_rotate_by('plain');
SELECT public.regress_rotate_by('by role');
SELECT public.regress_rotate_by('by pattern');
BEGIN;
SELECT (apitoken.authenticate(public.regress_ci_secret('read-only'))).verdict;
SELECT public.regress_try('SELECT apitoken.regenerate_token(apitoken.current_token_id())') AS answer;
COMMIT;
SELECT public.regress_rotate_by('all personal');
-- with token:update the token manages the others too, and its own lifetime
SELECT public.regress_rotate_by('updater', ', expires_in => ''60 days''');
-- nothing else: neither another token nor anything but a new secret
SELECT id AS ci_id FROM public.regress_ci WHERE label = 'ci' LIMIT 1 \gset
CREATE FUNCTION pg_temp.others(secret text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	own uuid = (apitoken.authenticate(secret)).token_id;
	command text;
	name text;
BEGIN
	FOREACH name IN ARRAY '{plain,by role,personal,all personal,forever,ci,updater}'::text[] LOOP
		CONTINUE WHEN own = (SELECT id FROM public.regress_ci WHERE label = name LIMIT 1);
		RETURN NEXT name || ': ' || public.regress_try(format('SELECT public.regress_rotate(%L)', name));
	END LOOP;
	RETURN NEXT 'none: ' || public.regress_try('SELECT apitoken.regenerate_token(NULL)');
	RETURN NEXT 'unknown: ' || public.regress_try('SELECT apitoken.regenerate_token(''00000000-0000-7000-8000-000000000000'')');
	FOREACH command IN ARRAY ARRAY['SELECT apitoken.end_overlap(%L)', 'SELECT apitoken.revoke_token(%L, ''ci'')', 'SELECT apitoken.revoke_token(%L)',
		'UPDATE apitoken.tokens SET label = ''x'' WHERE id = %L RETURNING label', 'UPDATE apitoken.tokens SET expires_at = NULL WHERE id = %L RETURNING label',
		'SELECT apitoken.take_token(%L)', 'SELECT FROM apitoken.tokens WHERE id = %L', 'SELECT FROM apitoken.list_tokens(organization_id => ''globex'')',
		'SELECT FROM apitoken.token_usage WHERE token_id = %L', 'SELECT FROM apitoken.revoke_tokens(''acme'') n WHERE n > 0', 'SELECT apitoken.create_token(''more'', ''acme'')', 'SELECT apitoken.create_token(''more'')'] LOOP
		RETURN NEXT command || ': ' || public.regress_try(format(command, own));
	END LOOP;
END $$;
SELECT * FROM pg_temp.others(public.regress_ci_secret('ci'));
SELECT * FROM pg_temp.others(public.regress_ci_secret('personal'));
SELECT * FROM pg_temp.others(public.regress_ci_secret('reader'));
-- its user, and anybody who is no token, regenerates nothing by this name
BEGIN;
SELECT apitoken.act_as('rita') AS me \gset
SELECT public.regress_try('SELECT public.regress_rotate(''ci'')');
COMMIT;
SELECT public.regress_try('SELECT public.regress_rotate(''ci'')') AS anonymous;
-- the database role needs the capability for regenerate_token(), as any other caller
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT public.regress_try(format('SELECT apitoken.regenerate_token(%L)', :'ci_id')) AS answer;
RESET SESSION AUTHORIZATION;
-- who did it
SELECT DISTINCT t.label, action, actor, actor_token_id = token_id AS by_itself FROM apitoken.events e JOIN apitoken.tokens t ON t.id = e.token_id
WHERE action = 'regenerate' AND t.label IN ('ci', 'forever', 'personal', 'updater') ORDER BY 1;
-- the policy of the organization applies
INSERT INTO public.regress_ci (label, id, token) SELECT 'limited', c.id, c.token FROM apitoken.create_token('limited', 'acme', permissions => '{deploy:write,token:rotate}', expires_in => '5 days') c;
UPDATE apitoken.organizations SET max_lifetime = '10 days', require_expiry = true WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_rotate_by('limited', ', overlap => ''20 days''');
SELECT v.secret, v.expires_at < now() + '5 days' AS within FROM generate_series(0, 1) n, apitoken.authenticate(public.regress_ci_secret('limited', n)) v WHERE n = 1;
SELECT public.regress_rotate_by('limited', ', expires_in => ''6 days''');
-- one that the policy refuses cannot help itself
SELECT public.regress_rotate_by('unlimited', ', expires_in => ''1 day''');
RESET SESSION AUTHORIZATION;
UPDATE apitoken.organizations SET max_lifetime = NULL, require_expiry = false WHERE id = 'acme';
-- at most four previous secrets, as for everybody
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_rotate_by('limited');
SELECT public.regress_rotate_by('limited');
SELECT public.regress_rotate_by('limited');
SELECT public.regress_rotate_by('limited');
SELECT public.regress_rotate_by('limited', ', overlap => ''0''');
RESET SESSION AUTHORIZATION;
-- a user or an organization that is suspended within the transaction; the token's user who was deleted; a role that allows nothing more
CREATE FUNCTION public.regress_as_dba(command text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN EXECUTE command; END';
CREATE FUNCTION public.regress_meanwhile(name text, command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM apitoken.authenticate(public.regress_ci_secret(name));
	PERFORM public.regress_as_dba(command);
	RETURN public.regress_try(format('SELECT public.regress_rotate(%L)', name));
END $$;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT public.regress_meanwhile('personal', $$UPDATE apitoken.users SET suspended_at = now() WHERE id = 'rita'$$);
ROLLBACK;
BEGIN;
SELECT public.regress_meanwhile('personal', $$DELETE FROM apitoken.users WHERE id = 'rita'$$);
ROLLBACK;
BEGIN;
SELECT public.regress_meanwhile('ci', $$UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme'$$);
ROLLBACK;
BEGIN;
SELECT public.regress_meanwhile('ci', $$UPDATE apitoken.tokens SET permissions = '{deploy:write}' WHERE label = 'ci'$$);
ROLLBACK;
BEGIN;
SELECT public.regress_meanwhile('ci', $$UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'ci'$$);
ROLLBACK;
-- the user's role and membership limit what a personal token does, not that it is replaced
BEGIN;
SELECT public.regress_meanwhile('personal', $$DELETE FROM apitoken.memberships WHERE user_id = 'rita'; UPDATE apitoken.users SET role = 'reader' WHERE id = 'rita'$$);
ROLLBACK;
RESET SESSION AUTHORIZATION;
-- who gives it to a token must have it, where the token's role includes it
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT (apitoken.authenticate(public.regress_ci_secret('updater'))).verdict;
SELECT public.regress_try($$UPDATE apitoken.tokens SET permissions = '{token:rotate}' WHERE label = 'by role'$$);
ROLLBACK;
RESET SESSION AUTHORIZATION;
DROP FUNCTION public.regress_ci_secret(text, int), public.regress_rotate(text, interval, interval), public.regress_rotate_by(text, text, int), public.regress_as_dba(text), public.regress_meanwhile(text, text), pg_temp.others(text);
DROP TABLE public.regress_ci;
RESET client_min_messages;

--
-- What a restore or a replication brings must be readable
--
SELECT public.regress_regenerate('deploy', '1 day');
SET session_replication_role = replica;
SELECT c AS change, split_part(public.regress_try(format('UPDATE apitoken_internal.token_records SET %s WHERE id = %L', c, :'id')), ' | ', 1) AS answer
FROM unnest(ARRAY[$$previous_expires_at = NULL$$, $$previous_replaced_at = NULL$$, $$previous_digest_scheme = NULL$$, $$previous_digest = NULL$$,
	$$previous_expires_at = '{}', previous_replaced_at = '{}', previous_digest_scheme = '{}', previous_digest = ''$$,
	$$previous_expires_at[1] = NULL$$, $$previous_replaced_at[1] = NULL$$, $$previous_digest_scheme[1] = NULL$$, $$previous_digest_scheme[1] = -32769$$,
	$$previous_expires_at[1] = 'infinity'$$, $$previous_replaced_at[1] = '-infinity'$$, $$previous_digest = previous_digest || '\x00'$$,
	$$previous_digest = substr(previous_digest, 33)$$, $$previous_digest_scheme = previous_digest_scheme || 0::smallint$$,
	$$previous_expires_at = previous_expires_at || previous_expires_at, previous_replaced_at = previous_replaced_at || previous_replaced_at, previous_digest_scheme = previous_digest_scheme || previous_digest_scheme, previous_digest = previous_digest || previous_digest$$,
	$$previous_expires_at = ARRAY[previous_expires_at], previous_replaced_at = ARRAY[previous_replaced_at], previous_digest_scheme = ARRAY[previous_digest_scheme]$$,
	$$previous_expires_at = '[0:0]={2030-01-01}', previous_replaced_at = '[0:0]={2030-01-01}', previous_digest_scheme = '[0:0]={0}', previous_digest = digest$$,
	$$previous_expires_at = '{2030-01-01}', previous_replaced_at = '{2030-01-01}', previous_digest_scheme = '{0}', previous_digest = digest$$,
	$$previous_expires_at = NULL, previous_replaced_at = NULL, previous_digest_scheme = NULL, previous_digest = NULL$$]) WITH ORDINALITY u (c, n) ORDER BY n;
RESET session_replication_role;
SELECT public.regress_verdicts('deploy');
-- the row has its secrets in itself, whatever else is long
SELECT attname, attstorage FROM pg_attribute WHERE attrelid = 'apitoken_internal.token_records'::regclass AND attname LIKE 'previous%' AND attname <> 'previous_reused_at' ORDER BY attnum;

DROP TABLE public.regress_secret;
DROP FUNCTION public.regress_verdicts(text), public.regress_create(text, interval), public.regress_regenerate(text, interval, interval), public.regress_over(text, int), public.regress_previous(text);
\i :srcdir/test/regress_teardown.sql
