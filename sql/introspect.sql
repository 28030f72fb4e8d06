--
-- introspect() as in RFC 7662, and revoke_by_token() as in RFC 7009: what they
-- tell about a token, to whom, and that they never tell more.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\pset null -

CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_user LOGIN;
CREATE ROLE regress_apitoken_manager LOGIN;
CREATE ROLE regress_apitoken_backend LOGIN;
CREATE ROLE regress_apitoken_keeper LOGIN;
CREATE ROLE regress_apitoken_monitor LOGIN;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_user', 'use');
SELECT apitoken.allow('regress_apitoken_manager', 'manage');
SELECT apitoken.allow('regress_apitoken_backend', 'act');
SELECT apitoken.allow('regress_apitoken_keeper', 'directory');
SELECT apitoken.allow('regress_apitoken_monitor', 'monitor');

-- an organization and a user may have the same id
INSERT INTO apitoken.roles (name, permissions) VALUES
	('writer', '{article:read,article:write}'), ('reader', '{article:read}'), ('nothing', '{}'),
	('odd', '{*:*,token:read,a/b.c_d-E9:x/y.z_w-Q0,*:sum,_:.,/:-}');
INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('ann'), ('beta');
INSERT INTO apitoken.users (id, name, role) VALUES ('ann', 'Ann', NULL), ('bob', 'Bob', 'reader'), ('cid', 'Cid', 'nothing');
INSERT INTO apitoken.memberships VALUES ('acme', 'cid', 'writer');

CREATE TEMP TABLE made (label text, id uuid, token text);
INSERT INTO made
	SELECT v.label, t.id, t.token
	FROM (VALUES
		('org', 'acme', NULL, 'writer', 'full', NULL::text[], NULL::interval),
		('org expires', 'acme', NULL, 'writer', 'full', NULL, '90 days'),
		('org read_only', 'acme', NULL, 'writer', 'read_only', NULL, NULL),
		('org custom', 'acme', NULL, 'writer', 'custom', '{*:write}', NULL),
		('org admin', 'acme', NULL, 'admin', 'full', NULL, NULL),
		('org odd', 'acme', NULL, 'odd', 'full', NULL, NULL),
		('org named ann', 'ann', NULL, 'reader', 'full', NULL, NULL),
		('ann', NULL, 'ann', NULL, 'full', NULL, NULL),
		('ann expires', NULL, 'ann', NULL, 'full', NULL, '7 days'),
		('ann read_only', NULL, 'ann', NULL, 'read_only', NULL, NULL),
		('ann custom', NULL, 'ann', NULL, 'custom', '{page:*,token:read}', NULL),
		('bob', NULL, 'bob', NULL, 'full', NULL, NULL),
		('cid', NULL, 'cid', NULL, 'full', NULL, NULL),
		('"quoted" \ ? <ä>', NULL, 'ann', NULL, 'full', NULL, NULL))
		AS v (label, organization_id, user_id, role, access, permissions, expires_in),
	LATERAL apitoken.create_token(v.label, organization_id => v.organization_id, user_id => v.user_id, role => v.role,
		access => v.access, permissions => v.permissions, expires_in => v.expires_in) t;
-- an expiry of infinity, which the table refuses, and a control character in a label, which only a superuser can store
ALTER TABLE apitoken_internal.token_records DROP CONSTRAINT token_records_times;
INSERT INTO made SELECT 'ann infinity', id, token FROM apitoken.create_token('ann infinity', user_id => 'ann');
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = 'infinity' WHERE label = 'ann infinity';
UPDATE apitoken_internal.token_records SET label = pg_catalog.replace(label, '?', E'\x01') WHERE label LIKE '"quoted"%';
UPDATE made SET label = pg_catalog.replace(label, '?', E'\x01') WHERE label LIKE '"quoted"%';
RESET session_replication_role;
SELECT token AS org, id AS org_id FROM made WHERE label = 'org' \gset
SELECT token AS ann, id AS ann_id FROM made WHERE label = 'ann' \gset
GRANT SELECT ON made TO regress_apitoken_gateway;

--
-- Each member of the answer, its value and its type, compared with the token's
-- row.  Times are whole seconds since 1970, and never later than in the row.
--
SET apitoken.issuer = 'https://id.example.com/';
SET apitoken.audience = 'https://api.example.com/';
SELECT made.label, answer - 'client_id' - 'jti' - 'iat' - 'nbf' - 'exp' -
	CASE WHEN answer ? 'username' THEN '' ELSE 'sub' END AS answer
FROM made, LATERAL apitoken.introspect(token) AS answer ORDER BY made.label COLLATE "C";
CREATE TEMP VIEW expected AS
	SELECT r.label, jsonb_strip_nulls(jsonb_build_object(
		'active', true,
		'token_type', 'Bearer',
		'scope', nullif(array_to_string(v.permissions, ' '), ''),
		'client_id', r.id,
		'jti', r.id,
		'sub', CASE WHEN r.user_id IS NULL THEN r.id::text ELSE r.user_id END,
		'username', r.user_id,
		'iat', floor(extract(epoch FROM r.created_at)),
		'nbf', floor(extract(epoch FROM r.created_at)),
		'exp', CASE WHEN isfinite(r.expires_at) THEN floor(extract(epoch FROM r.expires_at)) END,
		'iss', 'https://id.example.com/',
		'aud', 'https://api.example.com/',
		'label', r.label,
		'kind', v.kind,
		'organization_id', r.organization_id,
		'role', v.role,
		'access', r.access)) AS answer
	FROM apitoken_internal.token_records r JOIN made USING (id), LATERAL apitoken.verify(made.token) v;
SELECT count(*) AS tokens, count(*) FILTER (WHERE apitoken.introspect(m.token) = e.answer) AS as_expected
FROM made m JOIN expected e USING (label);
SELECT key, jsonb_typeof(value) AS type, bool_and(jsonb_typeof(value) <> 'number' OR value::text ~ '^[1-9][0-9]*$') AS whole,
	count(*) AS tokens
FROM made, LATERAL jsonb_each(apitoken.introspect(token)) GROUP BY 1, 2 ORDER BY 1, 2;
-- nothing of the text, and no digest
SELECT bool_or(answer LIKE '%' || right(token, 49) || '%' OR answer LIKE '%' || encode(digest, 'hex') || '%') AS told
FROM made JOIN apitoken_internal.token_records USING (id), LATERAL CAST(apitoken.introspect(token) AS text) AS answer;

-- the subject identifies one user or one token, even if an organization has the same id
SELECT label, answer->>'sub' = 'ann' AS says_ann FROM made, LATERAL apitoken.introspect(token) AS answer
WHERE label IN ('ann', 'org named ann') ORDER BY label;
SELECT count(DISTINCT apitoken.introspect(token)->>'sub') FROM made WHERE label LIKE 'org%';

-- the administrator sets iss and aud; they are left out if not set
SET apitoken.issuer = '';
SELECT apitoken.introspect(:'org') ?| '{iss}', apitoken.introspect(:'org')->'aud';
SET apitoken.audience = '';
SELECT apitoken.introspect(:'org') ?| '{iss,aud}';
SET apitoken.issuer = 'a "quoted" \ name';
SELECT apitoken.introspect(:'org')->'iss', apitoken.introspect('x');
RESET apitoken.issuer;
RESET apitoken.audience;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
\set VERBOSITY sqlstate
SET apitoken.issuer = 'https://evil.example.com/';
SET apitoken.audience = 'https://evil.example.com/';
\set VERBOSITY terse
RESET SESSION AUTHORIZATION;

--
-- scope: a list of scope-tokens, 1*( %x21 / %x23-5B / %x5D-7E ) with one space
-- between (RFC 6749, section 3.3), whatever the patterns are.
--
CREATE FUNCTION pg_temp.well_formed(scope text) RETURNS boolean LANGUAGE sql AS
	'SELECT scope ~ ''^[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*$''';
SELECT bool_and(pg_temp.well_formed(scope)) AS well_formed, count(*)
FROM made, LATERAL CAST(apitoken.introspect(token)->>'scope' AS text) AS scope WHERE scope IS NOT NULL;
-- each character that a pattern may have, at each place, and the longest ones
SELECT array_agg(DISTINCT half) AS halves FROM (
	SELECT chr(c) AS half FROM generate_series(1, 255) c WHERE chr(c) ~ '^[a-zA-Z0-9_./*-]$'
	UNION ALL SELECT repeat('z', 64)) AS h \gset
SELECT pg_temp.well_formed(scope) AS well_formed, array_length(string_to_array(scope, ' '), 1) AS scopes, length(scope)
FROM unnest(:'halves'::text[]) WITH ORDINALITY AS h (half, n),
	LATERAL (SELECT token FROM apitoken.create_token('half ' || n, user_id => 'ann',
		permissions => ARRAY[half || ':x', 'x:' || half, half || ':' || half])) AS t,
	LATERAL CAST(apitoken.introspect(token)->>'scope' AS text) AS scope
WHERE half IN ('*', 'a', '/', repeat('z', 64)) ORDER BY n;
SELECT bool_and(pg_temp.well_formed(scope)) AS well_formed, count(*) AS patterns
FROM unnest(:'halves'::text[]) WITH ORDINALITY AS h (half, n),
	LATERAL (SELECT token FROM apitoken.create_token('halves ' || n, user_id => 'ann',
		permissions => ARRAY[half || ':x', 'x:' || half, half || ':' || half])) AS t,
	LATERAL CAST(apitoken.introspect(token)->>'scope' AS text) AS scope;
-- many of them
INSERT INTO apitoken.roles (name, permissions) SELECT 'many', array_agg('r' || n || ':*') FROM generate_series(1, 100) n;
SELECT token AS many FROM apitoken.create_token('many', organization_id => 'acme', role => 'many',
	permissions => (SELECT array_agg('*:a' || n) FROM generate_series(1, 100) n)) \gset
SELECT pg_temp.well_formed(scope), array_length(string_to_array(scope, ' '), 1)
FROM CAST(apitoken.introspect(:'many')->>'scope' AS text) AS scope;
-- a list that is stored malformed, which only a superuser can do, adds nothing
SET session_replication_role = replica;
UPDATE apitoken.roles SET permissions = ARRAY['article:read', 'a b:c', 'x"y:z', 'x\y:z', E'x\ny:z', '', ' ', 'ä:ö', 'article:read token:read']
WHERE name = 'many';
UPDATE apitoken_internal.token_records SET access = 'full', permissions = NULL WHERE label = 'many';
RESET session_replication_role;
SELECT apitoken.introspect(:'many')->>'scope';

--
-- For a token that is not active the answer says only that (section 2.2),
-- whatever the reason.
--
CREATE TEMP TABLE nothing (n int, what text, token text);
ALTER TABLE nothing ALTER token SET STORAGE EXTERNAL;
INSERT INTO nothing VALUES
	(1, 'null', NULL),
	(2, 'empty', ''),
	(3, 'garbage', 'garbage'),
	(4, 'control characters', E'apt_org_\x01\x02\x1b[2J'),
	(5, 'a token and more', :'org' || ' '),
	(6, 'two tokens', :'org' || :'ann'),
	(7, 'upper case', upper(:'org')),
	(8, 'not ASCII', repeat('ä', 40)),
	(9, 'long, stored out of line', repeat(:'org', 10000)),
	(10, 'unknown', apitoken.generate('org')),
	(11, 'the id', :'org_id'),
	(12, 'masked', apitoken.mask(:'org')),
	(13, 'the digest', encode(apitoken.hash(:'org'), 'hex')),
	(14, 'a JWT', 'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl');
SELECT what, apitoken.introspect(token) FROM nothing ORDER BY n;
SELECT apitoken.introspect(repeat('x', 100 * 1024 * 1024));
SELECT apitoken.introspect(repeat(:'org', 1300000));

-- the token is active before, and again when the reason is gone
CREATE FUNCTION pg_temp.meanwhile(token text, command text, OUT before boolean, OUT after jsonb, OUT again boolean) LANGUAGE plpgsql AS $$
BEGIN
	before := apitoken.introspect(token)->'active';
	BEGIN
		EXECUTE command;
		after := apitoken.introspect(token);
		RAISE SQLSTATE 'REG01';
	EXCEPTION WHEN SQLSTATE 'REG01' THEN
		NULL;
	END;
	again := apitoken.introspect(token)->'active';
END
$$;
SELECT what, m.*
FROM (VALUES
	(1, 'org', 'revoked', $$SELECT apitoken.revoke_token(id, label) FROM made WHERE label = 'org'$$),
	(2, 'org', 'expired', $$UPDATE apitoken.tokens SET expires_at = now() - '1 second'::interval WHERE label = 'org'$$),
	(3, 'org', 'suspended', $$UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'org'$$),
	(4, 'org', 'regenerated', $$SELECT apitoken.regenerate_token(id) FROM made WHERE label = 'org'$$),
	(5, 'org', 'organization suspended', $$UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme'$$),
	(6, 'org', 'organization deleted', $$DELETE FROM apitoken.organizations WHERE id = 'acme'$$),
	(7, 'ann', 'user suspended', $$UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ann'$$),
	(8, 'ann', 'user deleted', $$DELETE FROM apitoken.users WHERE id = 'ann'$$),
	(9, 'org', 'network refused', $$UPDATE apitoken.tokens SET allowed_networks = '{192.0.2.0/24}' WHERE label = 'org'$$),
	(10, 'org', 'role without permissions', $$UPDATE apitoken.roles SET permissions = '{}' WHERE name = 'writer'$$),
	(11, 'org', 'role deleted', $$DELETE FROM apitoken.memberships; DELETE FROM apitoken.roles WHERE name = 'writer'$$),
	(12, 'org', 'nothing common with the role', $$UPDATE apitoken.tokens SET permissions = '{page:read}' WHERE label = 'org'$$),
	(13, 'org', 'no permissions', $$UPDATE apitoken.tokens SET permissions = '{}' WHERE label = 'org'$$),
	(14, 'ann', 'no permissions', $$UPDATE apitoken.tokens SET permissions = '{}' WHERE label = 'ann'$$)) AS v (n, label, what, command)
	JOIN made USING (label), LATERAL pg_temp.meanwhile(token, command) m ORDER BY n;
-- changes to other owners do not matter
SELECT what, before, after->'active' AS after, again
FROM (VALUES
	(1, 'ann', 'an organization of that name suspended', $$UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'ann'$$),
	(2, 'org named ann', 'a user of that name suspended', $$UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ann'$$)) AS v (n, label, what, command)
	JOIN made USING (label), LATERAL pg_temp.meanwhile(token, command) ORDER BY n;

-- The gateway passes the client's address; without an address it is refused.
SELECT token AS net FROM apitoken.create_token('net', user_id => 'ann', allowed_networks => '{192.0.2.0/24}') \gset
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT apitoken.introspect(:'net');
BEGIN; SET LOCAL apitoken.client_address = '192.0.2.7'; SELECT apitoken.introspect(:'net')->'label'; COMMIT;
BEGIN; SET LOCAL apitoken.client_address = '192.0.3.7'; SELECT apitoken.introspect(:'net'); COMMIT;

--
-- The hint is not looked at, whatever it is; arguments have the names that a
-- form's fields have (section 2.1).
--
SELECT DISTINCT apitoken.introspect(:'org', hint)->'label' AS label, apitoken.introspect('x', hint) AS bad
FROM (VALUES (NULL), (''), ('access_token'), ('refresh_token'), ('urn:x'), (repeat('x', 1000000))) AS h (hint);
SELECT apitoken.introspect(token => :'org', token_type_hint => 'access_token')->'label' AS label,
	apitoken.introspect(token_type_hint => 'access_token', token => NULL) AS bad;
SELECT apitoken.introspect("token" := form."token", "token_type_hint" := form."token_type_hint")->'label' AS label
FROM json_to_record(json_build_object('token', :'org', 'token_type_hint', 'access_token')) AS form ("token" text, "token_type_hint" text);
SELECT provolatile, proargnames FROM pg_proc WHERE oid IN ('apitoken.introspect'::regproc, 'apitoken.revoke_by_token'::regproc) ORDER BY proname;

--
-- It names the token's owner, and does not change who is acting.
--
BEGIN;
SELECT apitoken.introspect(:'org')->'active' AS active;
SELECT apitoken.whoami()->>'source' AS source;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT token AS reading FROM made WHERE label = 'ann read_only' \gset
SELECT apitoken.allow('regress_apitoken_gateway', 'use');
SET SESSION AUTHORIZATION regress_apitoken_gateway;
BEGIN;
SELECT verdict FROM apitoken.authenticate(:'reading');
SELECT apitoken.introspect(:'org')->'label' AS label, apitoken.introspect('x') AS bad;
SELECT apitoken.current_user_id(), apitoken.whoami()->'read_only' AS read_only;
COMMIT;

-- It works in READ ONLY transactions of any isolation level, and takes no transaction id.
BEGIN READ ONLY;
SELECT apitoken.introspect(:'org')->'active' AS active, apitoken.introspect('x'), pg_current_xact_id_if_assigned();
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT apitoken.introspect(:'ann')->'active' AS active;
COMMIT;
-- Changes are visible at once, even with an older snapshot.
RESET SESSION AUTHORIZATION;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT apitoken.introspect(:'ann')->'active' AS active;
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ann';
SELECT apitoken.introspect(:'ann');
ROLLBACK;

--
-- Only roles with capability verify may call it.
--
SELECT capability, has_function_privilege(role, 'apitoken.introspect(text, text)', 'EXECUTE') AS introspect,
	has_function_privilege(role, 'apitoken.revoke_by_token(text, text)', 'EXECUTE') AS revoke
FROM (VALUES ('verify', 'regress_apitoken_gateway'), ('use', 'regress_apitoken_user'), ('manage', 'regress_apitoken_manager'),
	('act', 'regress_apitoken_backend'), ('directory', 'regress_apitoken_keeper'), ('monitor', 'regress_apitoken_monitor'),
	('(PUBLIC)', 'public')) AS r (capability, role) ORDER BY capability COLLATE "C";
\set VERBOSITY sqlstate
SET SESSION AUTHORIZATION regress_apitoken_manager;
SELECT apitoken.introspect(:'org');
SELECT apitoken.introspect('x');
SELECT apitoken.revoke_by_token('x');
-- not even about the token of the current identity
BEGIN;
SELECT verdict FROM apitoken.authenticate(:'ann');
SELECT apitoken.introspect(:'ann');
ROLLBACK;
RESET SESSION AUTHORIZATION;
SELECT apitoken.disallow('regress_apitoken_gateway', 'verify');
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT apitoken.introspect(:'org');
RESET SESSION AUTHORIZATION;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
\set VERBOSITY terse

--
-- It is a use of the token, if the answer is active; and does not count
-- against the rate limit, which is for requests and not for gateways' questions.
--
SELECT id AS used_id, token AS used FROM apitoken.create_token('used', user_id => 'ann', rate_limit_per_minute => 1) \gset
CREATE FUNCTION pg_temp.last_used(id uuid) RETURNS text LANGUAGE sql AS $$
	SELECT apitoken.flush_usage();
	SELECT t.last_used || ' ' || (u.accepted > 0) FROM apitoken.tokens t JOIN apitoken.token_usage u ON u.token_id = t.id WHERE t.id = last_used.id
$$;
SELECT pg_temp.last_used(:'used_id');
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'used_id';
SELECT apitoken.introspect(:'used');
SELECT pg_temp.last_used(:'used_id');
UPDATE apitoken.tokens SET suspended_at = NULL, permissions = '{}' WHERE id = :'used_id';
SELECT apitoken.introspect(:'used');
SELECT pg_temp.last_used(:'used_id');
UPDATE apitoken.tokens SET access = 'full' WHERE id = :'used_id';
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT apitoken.introspect(:'used')->'active' AS active;
SELECT DISTINCT apitoken.introspect(:'used')->'active' AS active FROM generate_series(1, 10);
RESET SESSION AUTHORIZATION;
SELECT pg_temp.last_used(:'used_id');
-- one a minute is left, where limits are counted
SET client_min_messages = error;
SELECT array_agg((apitoken.verify(:'used')).verdict) = CASE WHEN (SELECT preloaded FROM apitoken.stats)
	THEN '{valid,rate_limited}'::text[] ELSE '{rate_limited,rate_limited}' END AS counted
FROM generate_series(1, 2);
RESET client_min_messages;
-- a token whose rate limit is used up is still active
SELECT apitoken.introspect(:'used')->'active' AS active;

--
-- A gateway may remember the answer until exp.  The secret before the last
-- regeneration ends with its overlap, or with the token if that is sooner.
--
SELECT id AS regen_id, token AS first FROM apitoken.create_token('regenerated', user_id => 'ann') \gset
SELECT token AS second FROM apitoken.regenerate_token(:'regen_id', overlap => '1 hour') \gset
SELECT to_timestamp((apitoken.introspect(:'first')->'exp')::bigint) = date_trunc('second', previous_expires_at[1]) AS first,
	apitoken.introspect(:'second')->'exp' AS second
FROM apitoken_internal.token_records WHERE id = :'regen_id';
UPDATE apitoken.tokens SET expires_at = now() + '10 minutes'::interval WHERE id = :'regen_id';
SELECT to_timestamp((apitoken.introspect(:'first')->'exp')::bigint) = date_trunc('second', expires_at) AS first,
	apitoken.introspect(:'first') = apitoken.introspect(:'second') AS alike
FROM apitoken_internal.token_records WHERE id = :'regen_id';
UPDATE apitoken.tokens SET expires_at = now() + '1 year'::interval WHERE id = :'regen_id';
SELECT to_timestamp((apitoken.introspect(:'first')->'exp')::bigint) = date_trunc('second', previous_expires_at[1]) AS first,
	to_timestamp((apitoken.introspect(:'second')->'exp')::bigint) = date_trunc('second', expires_at) AS second
FROM apitoken_internal.token_records WHERE id = :'regen_id';

--
-- revoke_by_token: an unknown token is no error, the hint is not looked at
-- (RFC 7009, sections 2.1 and 2.2), and what is revoked is so at once.
--
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT DISTINCT apitoken.revoke_by_token(token, hint)
FROM (VALUES (NULL), (''), ('garbage'), (repeat('x', 1000000)), ('apt_org_0351pnJJC5Ipqomy0pHJ6zhczwAxnSpemKegL95CqvQf4hBoOmCsCBUV7QvxeWwl02vpbPP')) AS t (token),
	(VALUES (NULL), (''), ('access_token'), ('refresh_token'), ('unheard_of'), (repeat('x', 1000000))) AS h (hint);
SELECT apitoken.revoke_by_token(:'org', 'refresh_token');
SELECT apitoken.revoke_by_token(:'org', 'refresh_token');
SELECT apitoken.introspect(:'org');
RESET SESSION AUTHORIZATION;
SELECT status, revoke_reason, revoked_by FROM apitoken.tokens WHERE id = :'org_id';
SELECT action, actor, actor_token_id, database_user FROM apitoken.events WHERE token_id = :'org_id' ORDER BY id DESC LIMIT 1;

-- the text revokes any token: expired, suspended, from the wrong network, without
-- permissions, by the previous secret; with one argument, or with named arguments
CREATE FUNCTION pg_temp.ended(token text, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE command;
	result := concat_ws(' ', apitoken.revoke_by_token(token_type_hint => 'x', token => token), apitoken.revoke_by_token(token));
	RAISE SQLSTATE 'REG01';
EXCEPTION WHEN SQLSTATE 'REG01' THEN
	RETURN result;
END
$$;
SELECT what, pg_temp.ended(token, command)
FROM (VALUES
	(1, 'expired', :'ann', $$UPDATE apitoken.tokens SET expires_at = now() - '1 second'::interval WHERE label = 'ann'$$),
	(2, 'suspended', :'ann', $$UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'ann'$$),
	(3, 'user suspended', :'ann', $$UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ann'$$),
	(4, 'wrong network', :'net', $$SELECT$$),
	(5, 'no permissions', :'ann', $$UPDATE apitoken.tokens SET permissions = '{}' WHERE label = 'ann'$$),
	(6, 'the secret before, in its overlap', :'first', $$SELECT$$),
	(7, 'the secret before, after it', :'first', $$SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = 'regenerated'$$)) AS v (n, what, token, command)
ORDER BY n;

-- It needs a transaction that can write; a GET request's cannot.
\set VERBOSITY sqlstate
SET SESSION AUTHORIZATION regress_apitoken_gateway;
BEGIN READ ONLY;
SELECT apitoken.revoke_by_token('x');
SELECT apitoken.revoke_by_token(:'ann');
ROLLBACK;
BEGIN;
SELECT verdict FROM apitoken.authenticate(:'reading');
SELECT apitoken.revoke_by_token(:'ann');
ROLLBACK;
SELECT apitoken.introspect(:'ann')->'active' AS active;
RESET SESSION AUTHORIZATION;
\set VERBOSITY terse

SET client_min_messages = warning;
DROP TABLE made, nothing CASCADE;
DROP FUNCTION pg_temp.well_formed(text), pg_temp.meanwhile(text, text), pg_temp.ended(text, text), pg_temp.last_used(uuid);
\i :srcdir/test/regress_teardown.sql
