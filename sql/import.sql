--
-- Tokens of other systems: import, verification by the text that their clients send.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_gateway LOGIN;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify', 'use');
CREATE ROLE regress_apitoken_sync LOGIN;
SELECT apitoken.allow('regress_apitoken_sync', 'directory');
INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read,article:list}');

-- keys of other systems are in the pepper file, by name
SELECT current_setting('data_directory') || '/regress_apitoken_peppers' AS pepper_file,
	'umask 077; cat > "' || current_setting('data_directory') || '/regress_apitoken_peppers"' AS write_peppers \gset
COPY (SELECT '1:' || repeat('07', 32) UNION ALL SELECT 'strapi:' || encode('strapi-api-token-salt-0001', 'hex')
	UNION ALL SELECT 'gitlab:' || encode('0123456789abcdef0123456789abcdef', 'hex')) TO PROGRAM :'write_peppers';

-- what ten systems store, row for row
CREATE TABLE public.regress_vector (format text, token text, lookup_key text, stored text, algorithm text, secret text, notes text);
\set vectors :srcdir '/test/vectors/foreign_digests.tsv'
\set read_vectors 'tail -n +2 "' :vectors '"'
COPY public.regress_vector FROM PROGRAM :'read_vectors' WITH (FORMAT csv, DELIMITER E'\t', QUOTE E'\b', NULL '');
DELETE FROM public.regress_vector WHERE format = 'bcrypt';
GRANT SELECT ON public.regress_vector TO PUBLIC;
SELECT count(*) FROM public.regress_vector;

-- the key of the other system is needed
SET ROLE regress_apitoken_sync;
SELECT public.regress_try(format('SELECT apitoken.import_token(%L, %L, organization_id => ''acme'')', format, stored))
FROM public.regress_vector WHERE format IN ('strapi', 'gitlab');
RESET ROLE;
-- as long as it is missing, each text of that shape is an error, but no other one
SET apitoken.imported_formats = 'knox, gitlab';
SELECT public.regress_try($$SELECT verdict FROM apitoken.verify('glpat-aaaaaaaaaaaaaaaaaaaa')$$), public.regress_try($$SELECT verdict FROM apitoken.verify('short')$$),
	public.regress_try($$SELECT verdict FROM apitoken.verify(apitoken.generate('user'))$$);
SELECT level, message, hint FROM apitoken.check_setup() WHERE subject = 'peppers' AND level = 'error';
SET apitoken.pepper_file = :'pepper_file';
SELECT level, message, hint FROM apitoken.check_setup() WHERE subject = 'peppers' AND level = 'error';
SET apitoken.imported_formats = '';
SET ROLE regress_apitoken_sync;
SELECT apitoken.import_token(v.format, v.stored, v.lookup_key, label => 'key of ' || v.format, organization_id => 'acme', role => 'reader',
	salt => CASE WHEN v.format = 'knox41' THEN v.secret END, created_at => '2021-02-03 04:05:06+00', last_used_at => '2022-02-03 04:05:06+00',
	metadata => jsonb_build_object('n', row_number() OVER ())) IS NOT NULL AS imported
FROM public.regress_vector v;
RESET ROLE;

-- nothing is accepted as long as no format is
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.token) v;
-- each only as its format
SET apitoken.imported_formats = 'knox5, gitlab';
SELECT t.format, v.verdict FROM public.regress_vector t, apitoken.verify(t.token) v ORDER BY 1, 2;
SET apitoken.imported_formats = 'sanctum, strapi, knox, drf-api-key, better-auth, unkey, prefixed-api-key, gitlab, keyhippo, sha256';
SELECT t.format, v.verdict, v.label, v.kind, v.organization_id, v.role, v.permissions, v.secret FROM public.regress_vector t, apitoken.verify(t.token) v ORDER BY 1, 3;
-- a stored digest is no token, in no format, and nor is one with another secret
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.stored) v;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(coalesce(t.lookup_key || '|', '') || t.stored) v;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.lookup_key || t.stored) v WHERE t.lookup_key IS NOT NULL;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.lookup_key || '.' || substr(t.stored, 1, 60)) v WHERE t.lookup_key IS NOT NULL;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(overlay(t.token PLACING CASE right(t.token, 1) WHEN '0' THEN '1' ELSE '0' END FROM length(t.token))) v;
-- each in its own format alone
CREATE FUNCTION public.regress_as(format text, token text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('apitoken.imported_formats', format, true);
	RETURN (SELECT concat_ws(' ', v.verdict, v.label, v.secret) FROM apitoken.verify(token) v);
END $$;
SELECT format, public.regress_as(format, token) FROM public.regress_vector ORDER BY 1, 2;
-- and in no other system's
SELECT t.format, f.format AS tried, public.regress_as(f.format, t.token) FROM public.regress_vector t, (SELECT DISTINCT format FROM public.regress_vector) f
WHERE t.format <> f.format AND public.regress_as(f.format, t.token) NOT IN ('malformed', 'unknown') ORDER BY 1, 2;
-- a part of a text is no token
SELECT DISTINCT v.verdict FROM public.regress_vector t, generate_series(1, 20) n, apitoken.verify(left(t.token, -n)) v ORDER BY 1;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.token || 'x') v ORDER BY 1;
-- another case is another token
SELECT t.format, v.verdict, v.label FROM public.regress_vector t, apitoken.verify(upper(t.token)) v WHERE v.verdict = 'valid' ORDER BY 1;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(' ' || t.token) v;
-- of Sanctum, the secret alone is a token as well, but not with the id of another one
SELECT t.lookup_key, v.verdict, v.token_id IS NOT NULL AS found FROM public.regress_vector t, apitoken.verify(split_part(t.token, '|', 2)) v WHERE t.format = 'sanctum' ORDER BY 1;
SELECT t.lookup_key, v.verdict FROM public.regress_vector t, apitoken.verify(CASE t.lookup_key WHEN '42' THEN '43|' ELSE '42|' END || split_part(t.token, '|', 2)) v WHERE t.format = 'sanctum' ORDER BY 1;

-- what the import has kept
SELECT label, role, access, masked, imported_as, created_at AT TIME ZONE 'UTC' AS created_at, last_used_at > created_at AS used, status
FROM apitoken.tokens ORDER BY imported_as, masked;
SELECT action, actor, actor_token_id, database_user = session_user AS login, details FROM apitoken.events WHERE action = 'import'
ORDER BY details ->> 'imported_as' COLLATE "C", details ->> 'masked' LIMIT 4;
SELECT count(*) FROM apitoken.events;
SELECT count(*) FROM apitoken.notifications;
-- the slow digest has a fast one now, under the pepper
SELECT apitoken.flush_usage() \g /dev/null
SELECT format, fast_digest_scheme, fast_digest = (SELECT h FROM public.regress_vector t, apitoken.hash(t.token) h WHERE t.format = f.format) AS fast
FROM apitoken_internal.foreign_digests f WHERE fast_digest IS NOT NULL;
SELECT public.regress_as('drf-api-key2', token) FROM public.regress_vector WHERE format = 'drf-api-key2';
SELECT public.regress_as('drf-api-key2', left(token, -1) || 'x') FROM public.regress_vector WHERE format = 'drf-api-key2';
-- nothing else shows what is stored
SELECT count(*) FROM apitoken.events e, public.regress_vector v WHERE strpos(e::text, v.stored) > 0;
SELECT count(*) FROM apitoken.tokens t, public.regress_vector v WHERE strpos(t::text, v.stored) > 0 OR strpos(t::text, left(v.token, 12)) > 0;

--
-- The decision is that of every token.
--
SELECT token AS knox FROM public.regress_vector WHERE format = 'knox5' \gset
SELECT token AS gitlab FROM public.regress_vector WHERE format = 'gitlab' \gset
SELECT token AS sanctum FROM public.regress_vector WHERE lookup_key = '42' \gset
SELECT v.verdict FROM apitoken.verify(:'knox', 'article:write') v;
SELECT v.verdict FROM apitoken.verify(:'knox', 'article:read', 'globex') v;
UPDATE apitoken.tokens SET suspended_at = now() WHERE imported_as = 'knox5';
SELECT v.verdict, v.label FROM apitoken.verify(:'knox') v;
UPDATE apitoken.tokens SET suspended_at = NULL, allowed_networks = '{192.0.2.0/24}', access = 'read_only' WHERE imported_as = 'knox5';
SELECT v.verdict FROM apitoken.verify(:'knox', client_address => '192.0.2.7') v;
SELECT v.verdict, v.label FROM apitoken.verify(:'knox', client_address => '198.51.100.7') v;
UPDATE apitoken.tokens SET allowed_networks = NULL, label = 'key of gitlab' WHERE imported_as = 'knox5';
UPDATE apitoken.organizations SET require_expiry = true WHERE id = 'acme';
SELECT v.verdict FROM apitoken.verify(:'knox') v;
UPDATE apitoken.organizations SET require_expiry = false, suspended_at = now() WHERE id = 'acme';
SELECT v.verdict FROM apitoken.verify(:'knox') v;
UPDATE apitoken.organizations SET suspended_at = NULL WHERE id = 'acme';
SELECT e.step, e.name, e.passed, pg_catalog.regexp_replace(e.detail, '\w{3} \w{3} \d\d [^;]*', '(time)', 'g') AS detail FROM apitoken.explain_verify(:'gitlab', 'article:read') e;
SELECT e.* FROM apitoken.explain_verify('glpat-aaaaaaaaaaaaaaaaaaaa') e;
SELECT apitoken.introspect(:'gitlab') - '{iat,nbf,jti,sub,client_id}'::text[] AS introspected;
-- as the identity, by each way
BEGIN;
SELECT a.verdict, a.label FROM apitoken.authenticate(:'gitlab') a;
SELECT apitoken.current_organization_id(), apitoken.can('article:read'), apitoken.whoami() ->> 'source' AS source;
ROLLBACK;
BEGIN READ ONLY;
SET LOCAL apitoken.token = :'sanctum';
SELECT apitoken.current_organization_id(), apitoken.current_role_name();
ROLLBACK;
BEGIN;
SELECT set_config('request.headers', json_build_object('authorization', 'Bearer ' || :'sanctum')::text, true) \g /dev/null
SELECT apitoken.pre_request();
SELECT apitoken.current_organization_id(), apitoken.whoami() ->> 'source' AS source;
ROLLBACK;
BEGIN;
SELECT set_config('request.headers', json_build_object('authorization', 'Api-Key ' || token)::text, true) FROM public.regress_vector WHERE format = 'drf-api-key3' \g /dev/null
SELECT apitoken.pre_request();
SELECT apitoken.current_organization_id();
ROLLBACK;
BEGIN;
SELECT set_config('request.headers', json_build_object('authorization', 'Token ' || :'knox')::text, true) \g /dev/null
SELECT apitoken.pre_request();
SELECT apitoken.whoami() -> 'read_only' AS read_only;
CREATE TABLE public.regress_none (a int);
ROLLBACK;
BEGIN;
SELECT set_config('request.headers', json_build_object('authorization', 'Bearer ' || :'sanctum' || 'x')::text, true) \g /dev/null
SELECT apitoken.pre_request();
ROLLBACK;
-- as a gateway, in a READ ONLY transaction, after a savepoint, with a hostile search_path
CREATE SCHEMA regress_evil;
CREATE FUNCTION regress_evil.texteq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR regress_evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_evil.texteq);
CREATE FUNCTION regress_evil.crypt(text, text) RETURNS text LANGUAGE sql AS 'SELECT $2';
GRANT USAGE ON SCHEMA regress_evil TO PUBLIC;
SET ROLE regress_apitoken_gateway;
BEGIN READ ONLY;
SET LOCAL search_path = regress_evil, pg_catalog;
SAVEPOINT s;
SELECT v.verdict, v.label FROM apitoken.verify(:'gitlab') v;
SELECT v.verdict FROM apitoken.verify('glpat-EXAMPLEexample012346') v;
ROLLBACK TO s;
SELECT v.verdict, v.label FROM apitoken.verify(:'sanctum') v;
COMMIT;
BEGIN;
SET LOCAL search_path = regress_evil, pg_catalog;
SELECT l.position, l.verdict, l.action FROM apitoken.report_leaked(ARRAY['glpat-EXAMPLEexample012346', :'sanctum', :'gitlab']) l;
SET LOCAL ROLE regress_apitoken_sync;
SELECT apitoken.import_token('sha256', repeat('0', 64), organization_id => 'acme') IS NOT NULL AS imported;
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT v.verdict FROM apitoken.verify(:'sanctum') v;
COMMIT;
-- garbage of any length, and null
SELECT t.n, v.verdict FROM unnest(ARRAY[NULL, '', '|', '42|', '.', repeat('a', 512), repeat('a', 513), repeat('9', 300000), '42|' || repeat('a', 600), E'42|\u00e4\u00e4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',
	repeat('_', 60), repeat('|', 60), 'a_b_' || repeat('_', 40), repeat('.', 60)]) WITH ORDINALITY t (token, n), apitoken.verify(t.token) v ORDER BY t.n;
SELECT v.verdict FROM apitoken.verify_all(ARRAY[:'gitlab', 'x', NULL, :'sanctum']) v;
-- a gateway does not import, and neither it nor the one that imports sees what is stored
SELECT public.regress_try($$SELECT apitoken.import_token('sha256', repeat('00', 32), organization_id => 'acme')$$);
SELECT public.regress_try('SELECT * FROM apitoken_internal.foreign_digests');
SET ROLE regress_apitoken_sync;
SELECT public.regress_try('SELECT * FROM apitoken_internal.foreign_digests');
SELECT public.regress_try('INSERT INTO apitoken_internal.foreign_digests (token_id) VALUES (gen_random_uuid())');
SELECT public.regress_try('SELECT * FROM apitoken.tokens');
SELECT public.regress_try($$SELECT apitoken.verify('x')$$);
SET ROLE regress_apitoken_app;
SELECT public.regress_try($$SELECT apitoken.import_token('sha256', repeat('00', 32), organization_id => 'acme')$$);
-- members see imported tokens of their organization, and others do not
BEGIN;
SELECT apitoken.act_as('ada');
SELECT count(*), count(imported_as) FROM apitoken.tokens;
SELECT label, masked, imported_as FROM apitoken.list_tokens('key of strapi');
ROLLBACK;
BEGIN;
SELECT apitoken.act_as('gina');
SELECT count(*) FROM apitoken.tokens;
ROLLBACK;
RESET ROLE;

--
-- Regenerated, it is one of our own, and the old text has its overlap.
--
SELECT t.id AS id, r.token AS native FROM apitoken.tokens t, apitoken.regenerate_token(t.id, overlap => '1 day') r WHERE t.imported_as = 'gitlab' \gset
SELECT label, masked LIKE 'apt\_org\_%' AS native, imported_as, jsonb_array_length(previous_secrets) AS previous FROM apitoken.tokens WHERE id = :'id';
SELECT v.verdict, v.secret, v.expires_at < now() + interval '25 hours' AS ends FROM unnest(ARRAY[:'native', :'gitlab']) t, apitoken.verify(t) v;
SELECT details -> 'old' ->> 'imported_as' AS old, details -> 'new' ->> 'imported_as' AS new, details -> 'old' ? 'digest' AS digest FROM apitoken.events WHERE action = 'regenerate';
-- its label is unique from now on; that of an imported one is free
SELECT regexp_replace(public.regress_try(format('SELECT apitoken.regenerate_token(%L, overlap => ''1 day'')', id)), 'apt_org_\w+', 'apt_org_') FROM apitoken.tokens WHERE imported_as = 'knox5';
SELECT public.regress_try($$SELECT apitoken.create_token('key of gitlab', 'acme')$$);
SELECT public.regress_try($$SELECT apitoken.create_token('key of strapi', 'acme')$$);
SELECT public.regress_try($$SELECT apitoken.create_token('key of strapi', 'acme')$$);
UPDATE apitoken.tokens SET label = 'key of strapi' WHERE imported_as = 'knox5';
SELECT r.token AS native FROM apitoken.tokens t, apitoken.regenerate_token(t.id, overlap => '1 day') r WHERE t.id = :'id' \gset
SELECT v.verdict, v.secret FROM unnest(ARRAY[:'native', :'gitlab']) t, apitoken.verify(t) v;
SELECT apitoken.end_overlap(:'id');
SELECT v.verdict, v.secret FROM unnest(ARRAY[:'native', :'gitlab']) t, apitoken.verify(t) v;
-- a token that may rotate itself becomes one of our own by itself
SELECT apitoken.import_token('sha256', encode(sha256('rotating-secret-0001'), 'hex'), label => 'rotating', organization_id => 'acme', role => 'reader', permissions => '{article:read,token:rotate}') AS rotating \gset
SELECT apitoken.allow('regress_apitoken_gateway', 'manage') \g /dev/null
SET ROLE regress_apitoken_gateway;
BEGIN;
SELECT a.verdict FROM apitoken.authenticate('rotating-secret-0001') a;
SELECT r.masked LIKE 'apt\_org\_%' AS native FROM apitoken.regenerate_token(:'rotating') r;
COMMIT;
SELECT v.verdict FROM apitoken.verify('rotating-secret-0001') v;
-- revocation by the text
SELECT apitoken.revoke_by_token('42|abcdefghijABCDEFGHIJ0123456789abcdefghijac23d2c4') AS wrong, apitoken.revoke_by_token(:'sanctum') AS right;
SELECT apitoken.revoke_by_token(:'sanctum') AS again;
RESET ROLE;
SELECT v.verdict, v.label FROM apitoken.verify(:'sanctum') v;
SELECT action, details -> 'new' ->> 'revoke_reason' AS reason FROM apitoken.events WHERE action = 'revoke';

-- a format that is removed, and added again, in the middle of a session
BEGIN;
SELECT a.verdict FROM apitoken.authenticate(:'knox') a;
SET LOCAL apitoken.imported_formats = 'sha256';
SELECT v.verdict, apitoken.current_organization_id() AS still FROM apitoken.verify(:'knox') v;
SAVEPOINT s;
SELECT public.regress_try(format('SELECT apitoken.authenticate(%L)', :'knox'));
ROLLBACK TO s;
SET LOCAL apitoken.imported_formats = 'sha256, knox';
SELECT v.verdict, apitoken.current_organization_id() AS still FROM apitoken.verify(:'knox') v;
COMMIT;
-- one import is rolled back to a savepoint, the next one counts
BEGIN;
SAVEPOINT s;
SELECT apitoken.import_token('sha256', repeat('5', 64), organization_id => 'acme') IS NOT NULL AS imported;
ROLLBACK TO s;
SELECT apitoken.import_token('sha256', repeat('5', 64), organization_id => 'acme', label => 'second') IS NOT NULL AS imported;
SELECT public.regress_try($$SELECT apitoken.import_token('sha256', repeat('5', 64), organization_id => 'acme')$$) ~ '^23505' AS again;
SELECT count(*), min(label) FROM apitoken.tokens t JOIN apitoken_internal.foreign_digests f ON f.token_id = t.id WHERE f.digest = decode(repeat('5', 64), 'hex');
ROLLBACK;

-- shapes that are recognized in any text
SELECT position, masked IS NOT DISTINCT FROM 'glpat-...' AS foreign, prefix, kind, id IS NULL AS no_id, left(token, 6) AS token, length(token)
FROM apitoken.find_tokens('ä ' || :'gitlab' || '. ' || apitoken.generate('user') || ' glpat-short ' || :'gitlab' || '/' || :'sanctum');

--
-- What is refused.
--
CREATE FUNCTION public.regress_import(VARIADIC arguments text[]) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT regexp_replace(public.regress_try('SELECT apitoken.import_token(' || a || ')'), '[0-9a-f-]{36}', '(id)') FROM unnest(arguments) a $$;
SET ROLE regress_apitoken_sync;
SELECT public.regress_import(format('%L, %L, %L, organization_id => ''acme''', format, stored, lookup_key))
FROM public.regress_vector WHERE format IN ('keyhippo', 'unkey') ORDER BY format;
SELECT public.regress_import(
	$$NULL, 'x'$$, $$'sha256', NULL$$, $$'', ''$$, $$'md5', 'x'$$, $$'sha256', repeat('x', 600)$$, $$'sha256', repeat('0', 63), organization_id => 'acme'$$, $$'sha256', repeat('g', 64), organization_id => 'acme'$$,
	$$'sha256', repeat('0', 64)$$, $$'sha256', repeat('0', 64), organization_id => 'acme', user_id => 'ada'$$, $$'sha256', repeat('0', 64), organization_id => 'nowhere'$$,
	$$'sha256', repeat('0', 64), 'key', organization_id => 'acme'$$, $$'sha256', repeat('0', 64), organization_id => 'acme', salt => '00'$$, $$'strapi', repeat('0', 128), organization_id => 'acme', salt => 'x'$$,
	$$'knox5', repeat('0', 128), organization_id => 'acme'$$, $$'knox5', repeat('0', 128), '12345678', organization_id => 'acme'$$, $$'knox41', repeat('0', 128), '12345678', organization_id => 'acme'$$,
	$$'knox41', repeat('0', 128), '12345678', organization_id => 'acme', salt => 'xy'$$, $$'sanctum', repeat('0', 64), organization_id => 'acme'$$, $$'sanctum', repeat('0', 64), '4 2', organization_id => 'acme'$$,
	$$'drf-api-key', 'pbkdf2_sha256$3000000$salt$kQSr/b0EaY4CKrC+qczfnaUPzlklZYX9eoxJXESQ0LM=', 'abc', organization_id => 'acme'$$, $$'drf-api-key3', 'sha512$x$00', 'abc', organization_id => 'acme'$$,
	$$'drf-api-key2', 'pbkdf2_sha256$0$salt$kQSr/b0EaY4CKrC+qczfnaUPzlklZYX9eoxJXESQ0LM=', 'abc', organization_id => 'acme'$$,
	$$'drf-api-key2', 'pbkdf2_sha256$99999999999999999999$salt$kQSr/b0EaY4CKrC+qczfnaUPzlklZYX9eoxJXESQ0LM=', 'abc', organization_id => 'acme'$$,
	$$'unkey', 'short', organization_id => 'acme'$$,
	$$'sha256', repeat('0', 64), organization_id => 'acme', created_at => now() + '1 day'$$, $$'sha256', repeat('0', 64), organization_id => 'acme', created_at => '-infinity'$$,
	$$'sha256', repeat('0', 64), organization_id => 'acme', expires_at => 'infinity'$$, $$'sha256', repeat('0', 64), organization_id => 'acme', revoked_at => now() + '1 day'$$,
	$$'sha256', repeat('0', 64), organization_id => 'acme', last_used_at => 'infinity'$$, $$'sha256', repeat('0', 64), organization_id => 'acme', metadata => '[]'$$,
	$$'sha256', repeat('0', 64), organization_id => 'acme', label => E'a\nb'$$, $$'sha256', repeat('0', 64), organization_id => 'acme', role => 'none'$$, $$'sha256', repeat('0', 64), user_id => 'ada', role => 'reader'$$,
	$$'sha256', repeat('0', 64), organization_id => 'acme', access => 'custom'$$, $$'sha256', repeat('0', 64), organization_id => 'acme', permissions => '{x}'$$);
RESET ROLE;
UPDATE apitoken.roles SET database_role = 'regress_apitoken_app' WHERE name = 'reader';
SET ROLE regress_apitoken_sync;
SELECT public.regress_import($$'sha256', repeat('0', 64), organization_id => 'acme', role => 'reader'$$);
BEGIN READ ONLY;
SELECT public.regress_import($$'sha256', repeat('0', 64), organization_id => 'acme'$$);
ROLLBACK;
RESET ROLE;
UPDATE apitoken.roles SET database_role = NULL WHERE name = 'reader';
SELECT count(*) FROM apitoken_internal.foreign_digests WHERE digest = decode(repeat('0', 64), 'hex');
-- the setting
SET apitoken.imported_formats = 'sanctum, nothing';
SET apitoken.imported_formats = 'sanctum,,knox';
SET apitoken.imported_formats = 'sanctum knox';
SET apitoken.imported_formats = ' sanctum ,knox,knox5 ';
SET ROLE regress_apitoken_gateway;
SET apitoken.imported_formats = 'sha256';
RESET ROLE;

--
-- Ended and personal tokens, the defaults, and many at once.
--
SET apitoken.imported_formats = 'sha256, better-auth';
SET ROLE regress_apitoken_sync;
SELECT count(apitoken.import_token('sha256', encode(sha256(('secret-' || n)::bytea), 'hex'), label => 'token', organization_id => 'globex')) FROM generate_series(1, 1000) n;
SELECT apitoken.import_token('sha256', encode(sha256('expired-secret'), 'hex'), organization_id => 'globex', expires_at => '2022-01-01') IS NOT NULL AS expired,
	apitoken.import_token('sha256', '\x' || encode(sha256('revoked-secret'), 'hex'), organization_id => 'globex', revoked_at => '2022-01-01') IS NOT NULL AS revoked,
	apitoken.import_token('sha256', upper(encode(sha256('personal-secret'), 'hex')), user_id => 'new', access => 'read_only') IS NOT NULL AS personal,
	apitoken.import_token('better-auth', translate(encode(sha256('personal-secret-2'), 'base64'), '+/=', '-_'), user_id => 'new', permissions => '{article:read}', label => ' two ') IS NOT NULL AS custom;
RESET ROLE;
SELECT v.verdict, v.label, v.kind, v.organization_id, v.user_id, v.role, v.access, v.permissions
FROM unnest('{secret-1,secret-1000,secret-1001,expired-secret,revoked-secret,personal-secret,personal-secret-2}'::text[]) t, apitoken.verify(t) v;
SELECT label, masked, access, permissions, revoke_reason, status FROM apitoken.tokens WHERE label <> 'token' AND organization_id IS DISTINCT FROM 'acme' ORDER BY label, masked, status;
-- a limit on the number of tokens counts them
UPDATE apitoken.organizations SET max_tokens = 500 WHERE id = 'globex';
SELECT public.regress_try($$SELECT apitoken.create_token('one more', 'globex')$$);
-- the end of the owner is theirs
DELETE FROM apitoken.organizations WHERE id = 'globex';
SELECT v.verdict FROM apitoken.verify('secret-1') v;
-- retention removes what was stored with the token
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET revoked_at = '2022-01-01' WHERE organization_id = 'globex';
RESET session_replication_role;
SET apitoken.retention = '365d';
SELECT tokens_removed FROM apitoken.run_maintenance();
SELECT count(*) FROM apitoken_internal.foreign_digests f WHERE NOT EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id = f.token_id);
SELECT count(*) FROM apitoken_internal.foreign_digests WHERE format = 'sha256';
RESET apitoken.retention;

--
-- A role that can write the tables, but does not have the pepper file, cannot make a token.
--
SET apitoken.require_pepper = on;
SELECT t, v.verdict FROM unnest('{personal-secret,rotating-secret-0001}'::text[]) t, apitoken.verify(t) v;
UPDATE apitoken_internal.foreign_digests SET digest = sha256('forged-secret') WHERE digest = sha256('personal-secret');
SELECT t, v.verdict FROM unnest('{personal-secret,forged-secret}'::text[]) t, apitoken.verify(t) v;
UPDATE apitoken_internal.foreign_digests SET digest = sha256('personal-secret') WHERE digest = sha256('forged-secret');
SELECT v.verdict FROM apitoken.verify('personal-secret') v;
SET apitoken.require_pepper = off;
SET apitoken.pepper_file = '';
SELECT public.regress_try($$SELECT v.verdict FROM apitoken.verify('personal-secret') v$$);
SELECT v.verdict FROM apitoken.verify('another-secret') v;
-- imported without a pepper
SELECT apitoken.import_token('sha256', encode(sha256('without-pepper'), 'hex'), organization_id => 'acme') IS NOT NULL AS imported;
SELECT v.verdict FROM apitoken.verify('without-pepper') v;
SET apitoken.pepper_file = :'pepper_file';
SELECT v.verdict FROM apitoken.verify('without-pepper') v;
SET apitoken.require_pepper = on;
SELECT v.verdict FROM apitoken.verify('without-pepper') v;
SET apitoken.require_pepper = off;

--
-- crypt(3), by pgcrypto alone
--
SET apitoken.imported_formats = 'crypt';
SET client_min_messages = error;
DROP EXTENSION IF EXISTS pgcrypto;
RESET client_min_messages;
SET search_path = regress_evil, public;
SELECT public.regress_import($$'crypt', '$2a$06$' || repeat('a', 53), 'lega', organization_id => 'acme'$$);
CREATE SCHEMA regress_crypto;
CREATE EXTENSION pgcrypto SCHEMA regress_crypto;
SELECT public.regress_import(
	format('''crypt'', %L, ''legacy-k'', organization_id => ''acme'', label => ''bcrypt''', regress_crypto.crypt('legacy-key-0001', regress_crypto.gen_salt('bf', 4))),
	format('''bcrypt'', %L, ''lega'', organization_id => ''acme'', label => ''2b''', overlay(regress_crypto.crypt('legacy-key-0002', regress_crypto.gen_salt('bf', 4)) PLACING '$2b$' FROM 1)),
	format('''crypt'', %L, organization_id => ''acme'', label => ''md5''', regress_crypto.crypt('legacy-key-0003', regress_crypto.gen_salt('md5'))),
	format('''crypt'', %L, organization_id => ''acme'', label => ''xdes''', regress_crypto.crypt('legacy-key-0004', regress_crypto.gen_salt('xdes'))),
	$$'crypt', 'aaFBkQ1e5m3kw', organization_id => 'acme'$$, $$'crypt', '*0', organization_id => 'acme'$$, $$'crypt', '$2a$31$' || repeat('a', 53), organization_id => 'acme'$$,
	$$'crypt', '$1$salt$short', organization_id => 'acme'$$, $$'crypt', '_' || repeat('z', 19), organization_id => 'acme'$$, $$'crypt', '$2a$06$' || repeat('a', 53), 'abc', organization_id => 'acme'$$);
SELECT t, v.verdict, v.label FROM unnest('{legacy-key-0001,legacy-key-0002,legacy-key-0003,legacy-key-0004,legacy-key-0005,legacy-k,other-key}'::text[]) t, apitoken.verify(t) v;
SELECT DISTINCT v.verdict FROM apitoken_internal.foreign_digests f, apitoken.verify(convert_from(f.digest, 'UTF8')) v WHERE f.format = 'crypt';
SELECT apitoken.flush_usage() \g /dev/null
SELECT lookup_key, fast_digest_scheme FROM apitoken_internal.foreign_digests WHERE format = 'crypt' ORDER BY 1, 2;
SELECT t, v.verdict, v.label FROM unnest('{legacy-key-0001,legacy-key-0002,legacy-key-0003,legacy-key-0004,legacy-key-0005}'::text[]) t, apitoken.verify(t) v;
-- only so many are compared
SELECT r FROM generate_series(1, 7) n, public.regress_import(format('''crypt'', %L, organization_id => ''acme''', regress_crypto.crypt('other-' || n, regress_crypto.gen_salt('md5')))) r;
DROP EXTENSION pgcrypto;
SELECT t, v.verdict FROM unnest('{legacy-key-0001,legacy-key-0004}'::text[]) t, apitoken.verify(t) v;
SELECT public.regress_try($$SELECT v.verdict FROM apitoken.verify('legacy-key-0009') v$$);
RESET search_path;

DROP SCHEMA regress_evil CASCADE;
DROP SCHEMA regress_crypto;
\set remove_peppers 'cat >/dev/null; rm "' :pepper_file '"'
COPY (SELECT) TO PROGRAM :'remove_peppers';
DROP TABLE public.regress_vector;
DROP FUNCTION public.regress_as, public.regress_import;
\i :srcdir/test/regress_teardown.sql
