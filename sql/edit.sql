--
-- Changing tokens: editing, suspending, regenerating, revoking.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_bypass LOGIN BYPASSRLS;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_bypass', 'manage');
INSERT INTO apitoken.roles (name, permissions) VALUES ('updater', '{token:update,*:*}'), ('deleter', '{token:delete}'), ('reader', '{token:read}');
INSERT INTO apitoken.memberships VALUES ('acme', 'dave', 'deleter'), ('acme', 'uma', 'updater'), ('acme', 'rita', 'reader'), ('globex', 'ada', 'developer');
INSERT INTO apitoken.users (id) VALUES ('gina');
SELECT id AS org_id, token AS org_token FROM apitoken.create_token('deploy', 'acme') \gset
SELECT id AS org2_id, token AS org2_token FROM apitoken.create_token('second', 'acme') \gset
SELECT id AS own_id, token AS own_token FROM apitoken.create_token('laptop', user_id => 'ada') \gset
SELECT id AS globex_id, token AS globex_token FROM apitoken.create_token('of globex', 'globex') \gset

--
-- Every column that may change, as a client: by UPDATE of the view, seen at once
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT updated_at AS before FROM apitoken.tokens WHERE id = :'org_id' \gset
UPDATE apitoken.tokens SET label = 'deploy 2', description = 'new', role = 'admin', access = 'custom', permissions = '{article:read}', allowed_networks = '{10.0.0.0/8}',
	rate_limit_per_minute = 10, metadata = '{"a": 1}', expires_at = now() + '30 days'::interval, suspended_at = now()
WHERE id = :'org_id'
RETURNING label, description, role, access, permissions, allowed_networks, rate_limit_per_minute, metadata, expires_at - now() AS lives, status, updated_at > :'before' AS updated;
-- and back
UPDATE apitoken.tokens SET label = 'deploy', description = NULL, role = 'developer', access = 'full', permissions = NULL, allowed_networks = NULL,
	rate_limit_per_minute = NULL, metadata = '{}', expires_at = NULL, suspended_at = NULL
WHERE id = :'org_id'
RETURNING label, description, role, access, permissions, allowed_networks, rate_limit_per_minute, metadata, expires_at, status;
-- setting a column to its current value changes nothing, not even updated_at
SELECT updated_at AS before FROM apitoken.tokens WHERE id = :'org_id' \gset
UPDATE apitoken.tokens SET label = 'deploy', metadata = '{}', access = 'full' WHERE id = :'org_id' RETURNING updated_at = :'before' AS same;
UPDATE apitoken.tokens SET label = E'\u00a0deploy \n' WHERE id = :'org_id' RETURNING label, updated_at = :'before' AS same;
UPDATE apitoken.tokens SET label = E' deploy\u200b again\u3000' WHERE id = :'org_id' RETURNING pg_catalog.length(label);
UPDATE apitoken.tokens SET label = 'deploy ', allowed_networks = '{::ffff:10.0.0.0/104,::/0}' WHERE id = :'org_id' RETURNING label, allowed_networks, updated_at > :'before' AS changed;
SELECT updated_at AS before FROM apitoken.tokens WHERE id = :'org_id' \gset
UPDATE apitoken.tokens SET allowed_networks = '{::ffff:10.0.0.0/104,::/0}' WHERE id = :'org_id' RETURNING updated_at = :'before' AS same;
UPDATE apitoken.tokens SET description = 'mine', access = 'read_only' WHERE id = :'own_id' RETURNING label, access, description, role;
-- many at once, by the table beneath, by a subquery
WITH changed AS (UPDATE apitoken.tokens SET metadata = metadata || '{"team": "x"}' RETURNING *)
SELECT label, metadata FROM changed ORDER BY label COLLATE "C";
UPDATE apitoken_internal.token_records SET description = 'beneath' WHERE label = 'second' RETURNING label, description;
-- values are checked as at creation
CREATE TEMP TABLE bad AS SELECT a AS assignment FROM pg_catalog.unnest(ARRAY[$$label = ''$$, $$label = NULL$$, $$label = repeat('x', 256)$$, $$label = 'second'$$, $$description = repeat('x', 4001)$$,
	$$label = E'second\u00a0'$$, $$label = E' \u3000\n'$$, $$label = E'\u00ad\u200d'$$, $$label = E'a\nb'$$, $$label = E'\u202ea'$$, $$description = E'\x1b[2J'$$,
	$$role = NULL$$, $$role = 'nobody'$$, $$access = NULL$$, $$access = 'write'$$, $$access = 'custom'$$, $$access = 'custom', permissions = '{article}'$$,
	$$access = 'custom', permissions = '{NULL}'$$, $$expires_at = now()$$, $$expires_at = '2020-01-01'$$, $$expires_at = 'infinity'$$, $$expires_at = '-infinity'$$, $$expires_at = now() + '101 years'::interval$$,
	$$allowed_networks = '{}'$$, $$allowed_networks = '{NULL}'$$, $$rate_limit_per_minute = 0$$, $$rate_limit_per_minute = 1000001$$, $$metadata = NULL$$, $$metadata = '[]'$$,
	$$metadata = jsonb_build_object('a', repeat('x', 65536))$$, $$quota = 0$$, $$quota = 1000000000000000$$, $$quota_period = 'day'$$, $$quota = 5, quota_period = 'year'$$]) a;
SELECT assignment, public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET %s WHERE id = %L', assignment, :'org_id')) AS answer FROM bad;
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET role = %L WHERE id = %L', 'developer', :'own_id')) AS role_of_a_personal_one;
SELECT public.regress_try($$UPDATE apitoken.tokens SET label = 'same' WHERE organization_id = 'acme'$$) AS both_the_same_label;
SELECT label, description FROM apitoken.tokens ORDER BY label COLLATE "C";
ROLLBACK;
-- a quota and its period
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
UPDATE apitoken.tokens SET quota = 5, quota_period = 'month' WHERE id = :'org_id' RETURNING quota, quota_period, remaining;
UPDATE apitoken.tokens SET quota_period = NULL WHERE id = :'org_id' RETURNING quota, quota_period, remaining;
UPDATE apitoken.tokens SET quota = 9, quota_period = 'day' WHERE id = :'org_id' RETURNING quota, quota_period, remaining;
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET quota = NULL WHERE id = %L', :'org_id')) AS no_quota_and_a_period;
UPDATE apitoken.tokens SET quota = NULL, quota_period = NULL WHERE id = :'org_id' RETURNING quota, quota_period, remaining;
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET remaining = 5 WHERE id = %L', :'org_id')) AS what_is_left;
ROLLBACK;
-- authorization comes before values here too: another's token answers "no rows" or the one error
BEGIN;
SELECT apitoken.act_as('rita') AS me \gset
CREATE TEMP TABLE bad AS SELECT a AS assignment FROM pg_catalog.unnest(ARRAY[$$label = ''$$, $$label = 'second'$$, $$role = 'nobody'$$, $$access = 'write'$$, $$expires_at = 'infinity'$$, $$metadata = '[]'$$]) a;
SELECT DISTINCT public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET %s WHERE id = %L', assignment, i)) AS answer FROM bad, pg_catalog.unnest(ARRAY[:'org_id', :'globex_id', :'own_id']) i;
ROLLBACK;

--
-- Columns that may not change: clients lack the privilege, and a trigger refuses everybody
--
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT c AS "column", pg_catalog.split_part(public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET %I = NULL WHERE id = %L', c, :'org_id')), ' | ', 1) AS view,
	pg_catalog.split_part(public.regress_try(pg_catalog.format('UPDATE apitoken_internal.token_records SET %I = NULL WHERE id = %L', c, :'org_id')), ' | ', 1) AS beneath
FROM pg_catalog.unnest('{id,organization_id,user_id,masked,created_by,created_by_name,created_at,updated_at,revoked_at,revoked_by,revoke_reason,digest,digest_scheme,previous_digest,previous_digest_scheme,previous_expires_at,previous_replaced_at,last_used_at,status}'::text[]) c;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT a AS superuser, public.regress_try(pg_catalog.format('UPDATE apitoken_internal.token_records SET %s WHERE id = %L', a, :'org_id')) AS answer
FROM pg_catalog.unnest(ARRAY[$$id = gen_random_uuid()$$, $$organization_id = 'globex'$$, $$organization_id = NULL, user_id = 'ada', role = NULL$$, $$masked = 'x'$$, $$created_by = 'x'$$, $$created_by_name = 'x'$$,
	$$created_at = now()$$, $$digest = decode(repeat('00', 32), 'hex')$$, $$digest_scheme = 1$$, $$previous_digest = digest, previous_digest_scheme = '{0}', previous_expires_at = '{infinity}', previous_replaced_at = '{2020-01-01}'$$,
	$$revoked_at = now()$$, $$revoked_by = 'x'$$, $$revoke_reason = 'x'$$]) a;
-- updated_at is set by the extension; any other value is ignored
UPDATE apitoken_internal.token_records SET updated_at = '2020-01-01', description = 'dba' WHERE id = :'org_id' RETURNING updated_at > now() - '1 day'::interval AS own;
UPDATE apitoken_internal.token_records SET updated_at = '2020-01-01' WHERE id = :'org_id' RETURNING updated_at > now() - '1 day'::interval AS own;
GRANT UPDATE ON apitoken_internal.token_records TO regress_apitoken_app;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT public.regress_try($$UPDATE apitoken_internal.token_records SET organization_id = 'globex'$$) AS granted_too_much, public.regress_try($$UPDATE apitoken_internal.token_records SET digest = decode(repeat('00', 32), 'hex')$$) AS granted_too_much;
COMMIT;
RESET SESSION AUTHORIZATION;
REVOKE UPDATE ON apitoken_internal.token_records FROM regress_apitoken_app;
SELECT apitoken.allow('regress_apitoken_app', 'manage');
SELECT (apitoken.verify(:'org_token')).verdict;

--
-- Access and permissions go together: leaving custom drops them, giving some
-- means custom; both at once must fit.
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT id AS narrowed_id FROM apitoken.create_token('narrowed') \gset
UPDATE apitoken.tokens SET permissions = '{article:read}' WHERE id = :'narrowed_id' RETURNING access, permissions;
UPDATE apitoken.tokens SET label = 'narrowed still' WHERE id = :'narrowed_id' RETURNING access, permissions;
UPDATE apitoken.tokens SET access = 'read_only' WHERE id = :'narrowed_id' RETURNING access, permissions;
UPDATE apitoken.tokens SET access = 'custom', permissions = '{}' WHERE id = :'narrowed_id' RETURNING access, permissions;
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET permissions = NULL WHERE id = %L', :'narrowed_id')) AS none,
	public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET access = ''full'', permissions = ''{a:b}'' WHERE id = %L', :'narrowed_id')) AS contradiction,
	public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET permissions = ''{a}'' WHERE id = %L', :'narrowed_id')) AS malformed,
	public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET expires_at = now() - interval ''1 day'' WHERE id = %L', :'narrowed_id')) AS past;
-- an administrator may let it expire as of yesterday
RESET SESSION AUTHORIZATION;
UPDATE apitoken.tokens SET expires_at = now() - interval '1 day' WHERE id = :'narrowed_id' RETURNING status;
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET expires_at = ''infinity'' WHERE id = %L', :'narrowed_id')) AS infinity,
	public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET suspended_at = ''-infinity'' WHERE id = %L', :'narrowed_id')) AS suspended,
	public.regress_try($$INSERT INTO apitoken.tokens (label, user_id, expires_at) VALUES ('past', 'ada', now() - interval '1 day')$$) AS made_expired;
ROLLBACK;
RESET SESSION AUTHORIZATION;

--
-- DELETE is refused: with a hint for those who have the privilege, which no capability grants
--
SELECT public.regress_try('DELETE FROM apitoken.tokens') AS superuser, public.regress_try('TRUNCATE apitoken_internal.token_records') AS truncate;
SET SESSION AUTHORIZATION regress_apitoken_bypass;
SELECT public.regress_try('DELETE FROM apitoken.tokens') AS bypass, public.regress_try('DELETE FROM apitoken_internal.token_records') AS beneath, public.regress_try('TRUNCATE apitoken_internal.token_records') AS truncate;
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_try('DELETE FROM apitoken.tokens') AS anonymous, public.regress_try('DELETE FROM apitoken_internal.token_records') AS beneath;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT public.regress_try('DELETE FROM apitoken.tokens') AS ada, public.regress_try('DELETE FROM apitoken.tokens WHERE false') AS none;
COMMIT;

--
-- Suspending: at once, and back
--
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
WITH changed AS (UPDATE apitoken.tokens SET suspended_at = now() WHERE id IN (:'org_id', :'own_id') RETURNING *)
SELECT label, status FROM changed ORDER BY label COLLATE "C";
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT (apitoken.verify(:'org_token')).verdict, (apitoken.verify(:'own_token')).verdict;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
WITH changed AS (UPDATE apitoken.tokens SET suspended_at = NULL WHERE id IN (:'org_id', :'own_id') RETURNING *)
SELECT label, status FROM changed ORDER BY label COLLATE "C";
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT (apitoken.verify(:'org_token')).verdict, (apitoken.verify(:'own_token')).verdict;

--
-- Regenerating: same id and settings, another secret
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('uma') AS me \gset
SELECT updated_at AS before, masked AS old_masked FROM apitoken.tokens WHERE id = :'org_id' \gset
SELECT id = :'org_id' AS same_id, token AS org_token2, masked AS new_masked, expires_at IS NULL AS forever FROM apitoken.regenerate_token(:'org_id') \gset
SELECT :'same_id' AS same_id, :'forever' AS forever, :'org_token2' <> :'org_token' AS other, :'new_masked' <> :'old_masked' AS other_mask;
SELECT label, organization_id, role, access, masked = :'new_masked' AS masked, updated_at > :'before' AS updated, expires_at FROM apitoken.tokens WHERE id = :'org_id';
-- take_token is for insertions
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.take_token(%L)', :'org_id')) AS take_token;
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT (apitoken.verify(:'org_token')).verdict AS old, (apitoken.verify(:'org_token2')).verdict AS new;
-- with an overlap both are accepted, and not the one that had none
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('uma') AS me \gset
SELECT token AS org_token3 FROM apitoken.regenerate_token(:'org_id', '1 hour') \gset
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT (apitoken.verify(:'org_token')).verdict AS first, (apitoken.verify(:'org_token2')).verdict AS second, (apitoken.verify(:'org_token3')).verdict AS third;
SELECT v.label, v.role, v.access, v.permissions, v.expires_at BETWEEN now() + '59 minutes' AND now() + '1 hour' AS in_an_hour FROM apitoken.verify(:'org_token2') v;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('uma') AS me \gset
SELECT token AS org_token4 FROM apitoken.regenerate_token(:'org_id', overlap => '2 days') \gset
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT (apitoken.verify(:'org_token2')).verdict AS second, (apitoken.verify(:'org_token3')).verdict AS third, (apitoken.verify(:'org_token4')).verdict AS fourth;
SELECT previous_expires_at[3] BETWEEN now() + '1 day 23 hours' AND now() + '2 days' AS in_two_days FROM apitoken_internal.token_records WHERE id = :'org_id';
-- when the overlap is over, so is the old secret
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records SET previous_expires_at[3] = clock_timestamp() WHERE id = :'org_id';
SELECT (apitoken.verify(:'org_token3')).verdict AS third, (apitoken.verify(:'org_token4')).verdict AS fourth;
ROLLBACK;
-- suspension and revocation end both
BEGIN;
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'org_id';
SELECT (apitoken.verify(:'org_token3')).verdict AS third, (apitoken.verify(:'org_token4')).verdict AS fourth;
SELECT apitoken.revoke_token(:'org_id', 'deploy');
SELECT (apitoken.verify(:'org_token3')).verdict AS third, (apitoken.verify(:'org_token4')).verdict AS fourth, (apitoken.verify(:'org_token')).verdict AS first;
ROLLBACK;
-- a regeneration without overlap ends one that is still running
BEGIN;
SELECT token AS org_token5 FROM apitoken.regenerate_token(:'org_id') \gset
SELECT (apitoken.verify(:'org_token3')).verdict AS third, (apitoken.verify(:'org_token4')).verdict AS fourth, (apitoken.verify(:'org_token5')).verdict AS fifth;
SELECT count(*) AS previous FROM apitoken_internal.token_records, unnest(previous_expires_at) e WHERE id = :'org_id' AND e > clock_timestamp();
-- and a rollback undoes it
ROLLBACK;
SELECT (apitoken.verify(:'org_token3')).verdict AS third, (apitoken.verify(:'org_token4')).verdict AS fourth, (apitoken.verify(:'org_token5')).verdict AS fifth;
-- wrong arguments
SELECT o AS overlap, public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, overlap => %L)', :'org_id', o)) AS answer FROM pg_catalog.unnest('{30,-1 day,59 seconds,101 years}'::text[]) o;
SELECT e AS expires_in, public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, expires_in => %L)', :'org_id', e)) AS answer FROM pg_catalog.unnest('{30,-1 day,0,101 years}'::text[]) e;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, NULL, NULL)', :'globex_id')) AS nulls, (apitoken.verify(:'globex_token')).verdict AS old;
SELECT public.regress_try('SELECT apitoken.regenerate_token(NULL)') AS null, public.regress_try('SELECT apitoken.regenerate_token(gen_random_uuid())') AS unknown;

-- the overlap never outlives the old expiry, whatever the new one is
SELECT id AS short_id, token AS short_token FROM apitoken.create_token('short', 'acme', expires_in => '1 hour') \gset
SELECT token AS short_token2, expires_at - now() AS lives FROM apitoken.regenerate_token(:'short_id', overlap => '30 days', expires_in => '90 days') \gset
\echo :lives
SELECT previous_expires_at[1] <= created_at + '1 hour' AS within_the_old, expires_at > now() + '89 days' AS new FROM apitoken_internal.token_records WHERE id = :'short_id';
-- a null expires_in keeps the expiry
SELECT expires_at > now() + '89 days' AND expires_at <= now() + '90 days' AS kept FROM apitoken.regenerate_token(:'short_id');
-- an edit of the expiry does not extend the old secret
BEGIN;
SELECT token AS short_token3 FROM apitoken.regenerate_token(:'short_id', overlap => '30 days', expires_in => '30 days') \gset
UPDATE apitoken.tokens SET expires_at = now() + '10 days'::interval WHERE id = :'short_id';
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = clock_timestamp() WHERE id = :'short_id';
SET LOCAL session_replication_role = origin;
SELECT (apitoken.verify(:'short_token3')).verdict;
-- an expired token needs a new expiry; its old secret is not accepted again
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L)', :'short_id')) AS without, public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, %L)', :'short_id', '1 day')) AS overlap_only;
SELECT token AS short_token4 FROM apitoken.regenerate_token(:'short_id', '1 day', '30 days') \gset
SELECT (apitoken.verify(:'short_token3')).verdict AS old, (apitoken.verify(:'short_token4')).verdict AS new;
SELECT count(*) AS previous FROM apitoken_internal.token_records, unnest(previous_expires_at) e WHERE id = :'short_id' AND e > clock_timestamp();
ROLLBACK;
-- an expired token whose expiry is edited is accepted again, with the secret it had
BEGIN;
SELECT token AS short_token5 FROM apitoken.regenerate_token(:'short_id') \gset
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = clock_timestamp() WHERE id = :'short_id';
SET LOCAL session_replication_role = origin;
UPDATE apitoken.tokens SET description = 'still expired' WHERE id = :'short_id' RETURNING status;
UPDATE apitoken.tokens SET expires_at = NULL WHERE id = :'short_id' RETURNING status;
SELECT (apitoken.verify(:'short_token5')).verdict;
ROLLBACK;
-- regenerating needs token:update; token:read, token:delete or another organization's role is not enough
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('rita') AS me \gset
SELECT DISTINCT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, %L)', i, o)) AS answer FROM pg_catalog.unnest(ARRAY[:'org_id', :'globex_id', :'own_id', pg_catalog.gen_random_uuid()::text, NULL]) i, pg_catalog.unnest('{0,30}'::text[]) o;
COMMIT;
BEGIN;
SELECT apitoken.act_as('dave') AS me \gset
SELECT DISTINCT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, %L)', i, o)) AS answer FROM pg_catalog.unnest(ARRAY[:'org_id', :'globex_id', :'own_id', pg_catalog.gen_random_uuid()::text, NULL]) i, pg_catalog.unnest('{0,30}'::text[]) o;
COMMIT;
SELECT DISTINCT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, %L)', i, o)) AS anonymous FROM pg_catalog.unnest(ARRAY[:'org_id', :'globex_id', :'own_id', pg_catalog.gen_random_uuid()::text, NULL]) i, pg_catalog.unnest('{0,30}'::text[]) o;

--
-- Revoking
--
BEGIN;
SELECT apitoken.act_as('dave') AS me \gset
-- an organization's token needs its label, exactly
SELECT l AS typed, public.regress_try(pg_catalog.format('SELECT apitoken.revoke_token(%L, %L)', :'org_id', l)) AS answer FROM pg_catalog.unnest(ARRAY[NULL, '', 'Deploy', 'deploy ', 'second']) l;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.revoke_token(%L, %L, repeat(%L, 1001))', :'org_id', 'deploy', 'x')) AS reason;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.revoke_token(%L, %L, %L)', :'org_id', 'deploy', E'lost\x1b[2J')) AS reason;
-- a token that the caller may not revoke: always the same answer
SELECT DISTINCT public.regress_try(pg_catalog.format('SELECT apitoken.revoke_token(%L, %L)', i, l)) AS answer FROM pg_catalog.unnest(ARRAY[:'globex_id', :'own_id', pg_catalog.gen_random_uuid()::text, NULL]) i, pg_catalog.unnest('{"of globex",laptop,wrong,NULL}'::text[]) l;
SAVEPOINT s;
SELECT apitoken.revoke_token(:'org_id', 'deploy', 'a mistake');
SELECT status, revoked_by, revoke_reason, revoked_at >= now() AS now FROM apitoken.tokens WHERE id = :'org_id';
SELECT apitoken.revoke_token(:'org_id', 'deploy') AS again, apitoken.revoke_token(:'org_id') AS without_label;
ROLLBACK TO s;
SELECT status FROM apitoken.tokens WHERE id = :'org_id';
SELECT apitoken.revoke_token(:'org_id', 'deploy', 'left the building');
COMMIT;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
-- a personal token needs no label; a label given anyway is ignored
SELECT apitoken.revoke_token(:'own_id', 'wrong');
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT (apitoken.verify(:'org_token')).verdict AS first, (apitoken.verify(:'org_token3')).verdict AS third, (apitoken.verify(:'org_token4')).verdict AS fourth, (apitoken.verify(:'own_token')).verdict AS own;
SELECT label, status, revoked_by, revoke_reason FROM apitoken.tokens WHERE status = 'revoked' ORDER BY label COLLATE "C";

-- A revoked token does not come back, by any path, for anybody
SELECT a AS superuser, public.regress_try(pg_catalog.format('UPDATE apitoken_internal.token_records SET %s WHERE id = %L', a, :'org_id')) AS answer
FROM pg_catalog.unnest(ARRAY[$$revoked_at = NULL$$, $$revoked_at = NULL, revoked_by = NULL, revoke_reason = NULL$$, $$revoked_at = 'infinity'$$, $$suspended_at = NULL$$, $$suspended_at = now()$$, $$expires_at = NULL$$, $$label = 'x'$$, $$description = 'x'$$]) a;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, %L, %L)', :'org_id', '1 hour', '30 days')) AS regenerate;
SELECT public.regress_try(pg_catalog.format($$INSERT INTO apitoken_internal.token_records SELECT (r).* FROM (SELECT r FROM apitoken_internal.token_records r WHERE id = %L) s ON CONFLICT (id) DO UPDATE SET revoked_at = NULL$$, :'org_id')) AS on_conflict;
SELECT public.regress_try(pg_catalog.format($$UPDATE apitoken.tokens SET label = label || '!' WHERE id = %L$$, :'org_id')) AS view;
-- nor by removing its row and inserting it again, also with BYPASSRLS and every privilege
GRANT USAGE ON SCHEMA apitoken_internal TO regress_apitoken_bypass;
GRANT ALL ON apitoken_internal.token_records TO regress_apitoken_bypass;
CREATE FUNCTION public.regress_again(id uuid) RETURNS TABLE (way text, answer text) LANGUAGE sql AS $$
	SELECT w, pg_catalog.split_part(public.regress_try(pg_catalog.format(w, id)), ' | ', 1)
	FROM pg_catalog.unnest(ARRAY[
		'DELETE FROM apitoken_internal.token_records WHERE id = %L',
		'WITH r AS (DELETE FROM apitoken_internal.token_records WHERE id = %L RETURNING *) INSERT INTO apitoken_internal.token_records SELECT * FROM r',
		'MERGE INTO apitoken_internal.token_records r USING (VALUES (%L::uuid)) v (id) ON r.id = v.id WHEN MATCHED THEN DELETE',
		'INSERT INTO apitoken_internal.token_records SELECT * FROM apitoken_internal.token_records WHERE id = %L']) w
$$;
SELECT * FROM public.regress_again(:'org_id');
SET SESSION AUTHORIZATION regress_apitoken_bypass;
SELECT * FROM public.regress_again(:'org_id');
RESET SESSION AUTHORIZATION;
REVOKE ALL ON apitoken_internal.token_records FROM regress_apitoken_bypass;
REVOKE ALL ON SCHEMA apitoken_internal FROM regress_apitoken_bypass;
DROP FUNCTION public.regress_again;
SELECT verdict FROM apitoken.verify(:'org_token4');

-- Without triggers, as in a restore or by replication, no row can be stored that
-- makes reading the tokens fail
SET session_replication_role = replica;
SELECT t AS relation, c AS change, pg_catalog.split_part(answer, ' | ', 1) AS sqlstate, pg_catalog.split_part(answer, ' | ', 2) AS answer
FROM (VALUES ('apitoken_internal.token_records', 'rate_limit_per_minute = 0'), ('apitoken_internal.token_records', 'rate_limit_per_minute = -1'),
	('apitoken_internal.token_records', 'rate_limit_per_minute = 1000001'), ('apitoken_internal.token_records', 'quota = 0'),
	('apitoken_internal.token_records', $$quota_period = 'day'$$), ('apitoken_internal.token_records', $$quota = 1, quota_period = 'week'$$),
	('apitoken_internal.token_records', $$created_at = '-infinity'$$), ('apitoken_internal.token_records', $$updated_at = 'infinity'$$),
	('apitoken_internal.token_records', $$expires_at = 'infinity'$$), ('apitoken_internal.token_records', $$expires_at = '-infinity'$$),
	('apitoken_internal.token_records', $$suspended_at = 'infinity'$$), ('apitoken_internal.token_records', $$revoked_at = 'infinity'$$),
	('apitoken_internal.token_records', $$previous_digest = digest, previous_digest_scheme = '{0}', previous_replaced_at = '{2020-01-01}', previous_expires_at = '{infinity}'$$),
	('apitoken_internal.token_records', $$label = pg_catalog.repeat('x', 256)$$),
	('apitoken_internal.token_records', $$metadata = '[]'$$), ('apitoken_internal.token_records', $$metadata = 'null'$$),
	('apitoken.token_usage', $$last_used_at = 'infinity'$$), ('apitoken.events', $$at = '-infinity'$$),
	('apitoken.organizations', $$resumed_at = 'infinity'$$)) AS v (t, c),
	public.regress_try(pg_catalog.format('UPDATE %s SET %s', t, c)) AS answer;
RESET session_replication_role;
SELECT count(*) > 0 AS readable FROM apitoken.list_tokens();
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('uma') AS me \gset
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET suspended_at = NULL WHERE id = %L', :'org_id')) AS edit, public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L)', :'org_id')) AS regenerate;
COMMIT;
RESET SESSION AUTHORIZATION;
-- deleting an owner and using the id again revives nothing
SELECT id AS lost_id, token AS lost_token FROM apitoken.create_token('lost', 'globex') \gset
SELECT id AS lost_own_id, token AS lost_own_token FROM apitoken.create_token('lost', user_id => 'gina') \gset
DELETE FROM apitoken.organizations WHERE id = 'globex';
DELETE FROM apitoken.users WHERE id = 'gina';
SELECT (apitoken.verify(:'lost_token')).verdict AS organization, (apitoken.verify(:'lost_own_token')).verdict AS "user";
INSERT INTO apitoken.organizations (id) VALUES ('globex');
INSERT INTO apitoken.users (id) VALUES ('gina');
INSERT INTO apitoken.memberships VALUES ('globex', 'gina', 'admin');
SELECT (apitoken.verify(:'lost_token')).verdict AS organization, (apitoken.verify(:'lost_own_token')).verdict AS "user";
SELECT label, organization_id, user_id, status, revoked_by, revoke_reason FROM apitoken.tokens WHERE id IN (:'lost_id', :'lost_own_id') ORDER BY organization_id;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('gina') AS me \gset
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L)', i)) AS regenerate, public.regress_try(pg_catalog.format('UPDATE apitoken.tokens SET suspended_at = NULL WHERE id = %L', i)) AS edit FROM pg_catalog.unnest(ARRAY[:'lost_id', :'lost_own_id']) i;
-- the label is free again, as another token
SELECT (apitoken.create_token('lost', 'globex')).id <> :'lost_id' AS another;
COMMIT;
RESET SESSION AUTHORIZATION;

--
-- revoke_tokens: revokes all matching tokens that the caller may revoke
--
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'a' || i, 'acme' FROM pg_catalog.generate_series(1, 3) i;
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'g' || i, 'globex' FROM pg_catalog.generate_series(1, 3) i;
INSERT INTO apitoken.tokens (label, user_id) VALUES ('p1', 'ada'), ('p2', 'ada'), ('p3', 'dave');
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT (apitoken.create_token('by ada', 'acme')).id IS NOT NULL AS made;
COMMIT;
SELECT public.regress_try('SELECT apitoken.revoke_tokens()') AS nothing, public.regress_try('SELECT apitoken.revoke_tokens(reason => ''x'')') AS reason_only;
SELECT apitoken.revoke_tokens('acme') AS anonymous, apitoken.revoke_tokens(user_id => 'ada') AS anonymous;
BEGIN;
SELECT apitoken.act_as('uma') AS me \gset
SELECT apitoken.revoke_tokens('acme') AS updater, apitoken.revoke_tokens('globex') AS elsewhere, apitoken.revoke_tokens(created_by => 'ada') AS creator, apitoken.revoke_tokens(user_id => 'ada') AS of_ada;
COMMIT;
BEGIN;
SELECT apitoken.act_as('dave') AS me \gset
SAVEPOINT s;
SELECT apitoken.revoke_tokens('globex') AS elsewhere, apitoken.revoke_tokens(user_id => 'ada') AS of_ada, apitoken.revoke_tokens('acme', user_id => 'dave') AS both_owners, apitoken.revoke_tokens('nowhere') AS nowhere;
SELECT apitoken.revoke_tokens(created_by => 'ada', reason => 'ada left') AS by_ada;
SELECT label, revoked_by, revoke_reason FROM apitoken.tokens WHERE revoke_reason = 'ada left';
SELECT apitoken.revoke_tokens(user_id => 'dave') AS own;
SELECT apitoken.revoke_tokens('acme', reason => 'rotation') AS all, apitoken.revoke_tokens('acme') AS again;
SELECT status, count(*) FROM apitoken.tokens GROUP BY status ORDER BY status;
ROLLBACK TO s;
SELECT status, count(*) FROM apitoken.tokens GROUP BY status ORDER BY status;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT apitoken.revoke_tokens('globex') AS dba, apitoken.revoke_tokens(user_id => 'ada') AS of_ada;
SET SESSION AUTHORIZATION regress_apitoken_bypass;
SELECT apitoken.revoke_tokens(created_by => 'ada') AS bypass;
RESET SESSION AUTHORIZATION;

--
-- revoke_by_token: knowing the text is enough to revoke the token
--
SELECT id AS found_id, token AS found_token FROM apitoken.create_token('found', 'acme') \gset
SELECT token AS found_token2 FROM apitoken.regenerate_token(:'found_id', '1 hour') \gset
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.revoke_by_token(%L)', :'found_token')) AS without_capability;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT apitoken.revoke_by_token(pg_catalog.left(:'found_token', -1)) AS almost, apitoken.revoke_by_token(NULL) AS null, apitoken.revoke_by_token('') AS empty, apitoken.revoke_by_token(:'own_token') AS revoked_before;
SELECT (apitoken.verify(:'found_token2')).verdict;
-- the old secret is enough too, during the overlap
SELECT apitoken.revoke_by_token(:'found_token') AS revoked, apitoken.revoke_by_token(:'found_token') AS again, apitoken.revoke_by_token(:'found_token2') AS again;
SELECT (apitoken.verify(:'found_token')).verdict, (apitoken.verify(:'found_token2')).verdict;
RESET SESSION AUTHORIZATION;
SELECT status, revoked_by, revoke_reason FROM apitoken.tokens WHERE id = :'found_id';
-- suspended and expired tokens can be revoked as well
SELECT id AS susp_id, token AS susp_token FROM apitoken.create_token('susp', 'acme') \gset
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'susp_id';
SELECT apitoken.revoke_by_token(:'susp_token') AS suspended;
SELECT status FROM apitoken.tokens WHERE id = :'susp_id';

\i :srcdir/test/regress_teardown.sql
