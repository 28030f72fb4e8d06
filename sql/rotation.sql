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
-- What a restore or a replication brings must be readable
--
SELECT public.regress_regenerate('deploy', '1 day');
SET session_replication_role = replica;
SELECT c AS change, split_part(public.regress_try(format('UPDATE apitoken_internal.token_records SET %s WHERE id = %L', c, :'id')), ' | ', 1) AS answer
FROM unnest(ARRAY[$$previous_expires_at = NULL$$, $$previous_replaced_at = NULL$$, $$previous_digest_scheme = NULL$$, $$previous_digest = NULL$$,
	$$previous_expires_at = '{}', previous_replaced_at = '{}', previous_digest_scheme = '{}', previous_digest = ''$$,
	$$previous_expires_at[1] = NULL$$, $$previous_replaced_at[1] = NULL$$, $$previous_digest_scheme[1] = NULL$$, $$previous_digest_scheme[1] = -1$$,
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
