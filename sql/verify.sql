--
-- verify(): its verdicts, their order, what it tells to whom, and that no input
-- makes it raise an error.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql

CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_backend LOGIN;
CREATE ROLE regress_apitoken_stranger LOGIN NOINHERIT;
GRANT regress_apitoken_gateway TO regress_apitoken_stranger;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_backend', 'act');

INSERT INTO apitoken.roles (name, permissions) VALUES
	('writer', '{article:read,article:write}'), ('reader', '{article:read}'), ('keeper', '{token:*,article:*}');
INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme'), ('beta', NULL), ('other', NULL);
INSERT INTO apitoken.users (id, name, groups) VALUES ('ann', 'Ann', '{staff,"north, west"}');
INSERT INTO apitoken.memberships VALUES ('acme', 'ann', 'keeper'), ('beta', 'ann', 'reader');

-- the columns of a verification that are not null
CREATE FUNCTION pg_temp.told(v apitoken.verification) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(key, ' ') FROM jsonb_each(jsonb_strip_nulls(to_jsonb(v)))
$$;

--
-- No text makes it raise an error.  A text that is not a token is malformed,
-- whatever the other arguments are.
--
\set malformed `cat "$PG_ABS_SRCDIR/test/vectors/token_text_malformed.tsv"`
CREATE TEMP TABLE text_vector AS
	SELECT n, split_part(line, E'\t', 1) AS token, split_part(line, E'\t', 2) AS why
	FROM regexp_split_to_table(:'malformed', E'\n') WITH ORDINALITY AS l (line, n)
	WHERE n > 1 AND line <> '';
SELECT count(*) > 20 AS enough, array_agg(why) FILTER (WHERE v.verdict <> 'malformed' OR v.valid) AS not_malformed,
	array_agg(DISTINCT pg_temp.told(v)) AS told
FROM text_vector, LATERAL apitoken.verify(token, 'article:read', 'acme', '10.0.0.1') v;
SELECT array_agg(why) AS not_malformed FROM text_vector, LATERAL apitoken.verify(replace(token, '\n', E'\n')) v
WHERE v.verdict <> 'malformed';

CREATE TEMP TABLE oddity (n int, what text, token text);
ALTER TABLE oddity ALTER token SET STORAGE EXTERNAL;
INSERT INTO oddity VALUES
	(1, 'null', NULL),
	(2, 'empty', ''),
	(3, 'blank', ' '),
	(4, 'one character', 'a'),
	(5, 'underscores', repeat('_', 83)),
	(6, 'control characters', E'apt_org_\x01\x02\x1b[2J'),
	(7, 'a quote', $$apt_org_'; DROP TABLE apitoken_internal.token_records; --$$),
	(8, 'backslashes', repeat('\', 79)),
	(9, 'not ASCII', repeat('ä', 40)),
	(10, 'stored out of line', repeat('apt_org_', 100000)),
	(11, 'two tokens', apitoken.generate('org') || apitoken.generate('org')),
	(12, 'a token and a null character, escaped', apitoken.generate('org') || '\000'),
	(13, 'a prefix more', 'apt_' || apitoken.generate('org')),
	(14, 'upper case', upper(apitoken.generate('usr')));
SELECT what, v.verdict, pg_temp.told(v) AS told FROM oddity, LATERAL apitoken.verify(token) v ORDER BY n;
-- 100 MB, as they are and compressed
SELECT (apitoken.verify(repeat('x', 100 * 1024 * 1024))).verdict;
SELECT (apitoken.verify(repeat(apitoken.generate('org'), 1300000), repeat('article:', 0) || 'article:read', 'acme')).verdict;
CREATE TEMP TABLE long_text AS SELECT repeat('x', 100 * 1024 * 1024) AS token;
SELECT (apitoken.verify(token)).verdict FROM long_text;
SELECT (apitoken.verify(apitoken.generate('org'), NULL, token)).verdict FROM long_text;
DROP TABLE long_text;

-- A wrong value of another argument is the caller's mistake and an error, whatever
-- the token.  A misspelt permission must not look like a refusal.
\set VERBOSITY sqlstate
SELECT apitoken.verify(NULL, '');
SELECT apitoken.verify('x', 'article');
SELECT apitoken.verify('x', '*');
SELECT apitoken.verify('x', 'article:*');
SELECT apitoken.verify('x', 'article:read:write');
SELECT apitoken.verify('x', repeat('a', 1000000));
\set VERBOSITY terse

--
-- A missing id and a wrong secret give the same answer: unknown, and nothing else
-- is told.
--
SELECT id AS org_id, token AS org FROM apitoken.create_token('build', organization_id => 'acme', role => 'writer',
	description => 'x', metadata => '{"team": 1}', expires_in => '30 days') \gset
SELECT id AS usr_id, token AS usr FROM apitoken.create_token('laptop', user_id => 'ann') \gset
SELECT id AS regen_id, token AS first FROM apitoken.create_token('regenerated', organization_id => 'acme') \gset
SELECT token AS second FROM apitoken.regenerate_token(:'regen_id') \gset
SELECT what, v.verdict, pg_temp.told(v) AS told
FROM (VALUES (1, 'another id', apitoken.generate('org')), (2, 'another secret', :'first'), (3, 'a digest as hex', encode(sha256(:'org'), 'hex')),
	(4, 'a digest as bytea', sha256(:'org')::text)) AS t (n, what, token), LATERAL apitoken.verify(token) v ORDER BY n;

-- A stored digest is not a token in any form.  A text with the right id, the right
-- checksum and another secret is not one either; another kind or prefix fails too.
-- The test computes the checksum (CRC-32 in base62) independently.
CREATE FUNCTION pg_temp.with_checksum(text text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	digits text := '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
	crc bigint := 4294967295;
	checksum text := '';
BEGIN
	FOR i IN 1 .. length(text) LOOP
		crc := crc # ascii(substr(text, i, 1));
		FOR bit IN 1 .. 8 LOOP
			crc := (crc >> 1) # CASE crc & 1 WHEN 1 THEN 3988292384 ELSE 0 END;
		END LOOP;
	END LOOP;
	crc := crc # 4294967295;
	FOR i IN 1 .. 6 LOOP
		checksum := substr(digits, (crc % 62)::int + 1, 1) || checksum;
		crc := crc / 62;
	END LOOP;
	RETURN text || checksum;
END
$$;
SELECT (apitoken.verify(pg_temp.with_checksum(left(:'org', -6)))).verdict AS unchanged;
SELECT shape, array_agg(DISTINCT v.verdict) AS verdicts
FROM apitoken_internal.token_records r,
	LATERAL split_part(masked, '_', 3) AS i (code),
	LATERAL (VALUES (1, encode(digest, 'hex')), (2, encode(digest, 'base64')), (3, digest::text), (4, masked),
		(5, pg_temp.with_checksum('apt_org_' || i.code || left(encode(digest, 'hex'), 43))),
		(6, pg_temp.with_checksum('apt_usr_' || i.code || left(encode(digest, 'hex'), 43))),
		(7, pg_temp.with_checksum('apt_org_' || i.code || repeat('0', 43)))) AS s (shape, token),
	LATERAL apitoken.verify(token) v
GROUP BY shape ORDER BY shape;
SELECT (apitoken.verify(pg_temp.with_checksum(left(replace(:'org', '_org_', '_usr_'), -6)))).verdict AS other_kind,
	(apitoken.verify(pg_temp.with_checksum(left(replace(:'org', 'apt_', 'apu_'), -6)))).verdict AS other_prefix,
	(apitoken.verify(left(:'org', -6) || '000000')).verdict AS no_checksum;

--
-- What a verification tells about a valid token, for both kinds.
--
\x on
SELECT valid, verdict, token_id = :'org_id' AS token_id, label, kind, organization_id, user_id, role, access, permissions, groups,
	expires_at > now() + '29 days'::interval AS expires_at, metadata, retry_after
FROM apitoken.verify(:'org');
SELECT valid, verdict, token_id = :'usr_id' AS token_id, label, kind, organization_id, user_id, role, access, permissions, groups,
	expires_at, metadata, retry_after
FROM apitoken.verify(:'usr');
\x off

--
-- The order of the verdicts: a token has every fault at once, and the test removes
-- them one by one.  (Only a superuser can change a revoked token, by bypassing the
-- triggers.)
--
SELECT id AS bad_id, token AS bad FROM apitoken.create_token('bad', organization_id => 'beta', role => 'reader',
	allowed_networks => '{192.0.2.0/24}', rate_limit_per_minute => 10) \gset
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET revoked_at = now(), expires_at = now() - '1 day'::interval, suspended_at = now() WHERE id = :'bad_id';
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'beta';
RESET session_replication_role;
CREATE FUNCTION pg_temp.bad(token text, OUT valid boolean, OUT verdict text, OUT told text) LANGUAGE sql AS $$
	SELECT v.valid, v.verdict, pg_temp.told(v) FROM apitoken.verify(token, 'article:write', NULL, '10.0.0.1') v
$$;
SELECT * FROM pg_temp.bad(:'bad');
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET revoked_at = NULL WHERE id = :'bad_id';
SELECT * FROM pg_temp.bad(:'bad');
UPDATE apitoken_internal.token_records SET expires_at = NULL WHERE id = :'bad_id';
SELECT * FROM pg_temp.bad(:'bad');
UPDATE apitoken_internal.token_records SET suspended_at = NULL WHERE id = :'bad_id';
SELECT * FROM pg_temp.bad(:'bad');
UPDATE apitoken.organizations SET suspended_at = NULL WHERE id = 'beta';
SELECT * FROM pg_temp.bad(:'bad');
UPDATE apitoken_internal.token_records SET allowed_networks = NULL WHERE id = :'bad_id';
SELECT * FROM pg_temp.bad(:'bad');
-- (one use per minute: with shared preload the first is accepted; without, none is, and a warning says so;
-- test/t/014_rate_limit.pl distinguishes the two)
UPDATE apitoken_internal.token_records SET role = 'writer', rate_limit_per_minute = 1 WHERE id = :'bad_id';
SET client_min_messages = error;
SELECT valid AS accepted_once FROM pg_temp.bad(:'bad') \gset
SELECT valid, verdict, replace(told, ' retry_after', '') AS told FROM pg_temp.bad(:'bad');
RESET client_min_messages;
UPDATE apitoken_internal.token_records SET rate_limit_per_minute = NULL WHERE id = :'bad_id';
SELECT * FROM pg_temp.bad(:'bad');
-- a row whose owner is deleted counts as suspended
DELETE FROM apitoken.organizations WHERE id = 'beta';
SELECT * FROM pg_temp.bad(:'bad');
INSERT INTO apitoken.organizations VALUES ('beta');
RESET session_replication_role;

--
-- The permission and the organization.  An organization's token acts only in its
-- own organization; null means the same.  A personal token may do what its user
-- may there; without an organization it acts on the user's own data.
--
CREATE TEMP TABLE kind_of_token (n int, what text, token text);
INSERT INTO kind_of_token
	SELECT n, what, (apitoken.create_token(what, organization_id => organization_id, user_id => user_id, role => role,
		access => access, permissions => permissions)).token
	FROM (VALUES
		(1, 'org writer', 'acme', NULL, 'writer', 'full', NULL::text[]),
		(2, 'org writer read_only', 'acme', NULL, 'writer', 'read_only', NULL),
		(3, 'org writer custom', 'acme', NULL, 'writer', 'custom', '{*:write}'),
		(4, 'org keeper', 'acme', NULL, 'keeper', 'full', NULL),
		(5, 'org keeper read_only', 'acme', NULL, 'keeper', 'read_only', NULL),
		(6, 'personal', NULL, 'ann', NULL, 'full', NULL),
		(7, 'personal read_only', NULL, 'ann', NULL, 'read_only', NULL),
		(8, 'personal custom', NULL, 'ann', NULL, 'custom', '{*:read,page:write}'),
		(9, 'personal custom token', NULL, 'ann', NULL, 'custom', '{token:read}')) AS v (n, what, organization_id, user_id, role, access, permissions);
CREATE FUNCTION pg_temp.asked(token text, permission text, organization text) RETURNS text LANGUAGE sql AS $$
	SELECT replace(replace(verdict, 'valid', 'y'), 'permission_refused', 'n') FROM apitoken.verify(token, permission, organization)
$$;
SELECT what, permission, pg_temp.asked(token, permission, NULL) AS nowhere, pg_temp.asked(token, permission, 'acme') AS acme,
	pg_temp.asked(token, permission, 'beta') AS beta, pg_temp.asked(token, permission, 'other') AS other,
	pg_temp.asked(token, permission, 'none') AS "none", pg_temp.asked(token, permission, '') AS empty
FROM kind_of_token, (VALUES (1, NULL), (2, 'article:read'), (3, 'article:write'), (4, 'page:write'), (5, 'token:read')) AS p (m, permission)
ORDER BY n, m;
-- with an organization, the role and the patterns are those of the user there
SELECT what, place, v.role, v.permissions, v.groups
FROM kind_of_token, (VALUES (NULL), ('acme'), ('beta')) AS p (place), LATERAL apitoken.verify(token, NULL, place) v
WHERE v.valid ORDER BY n, place NULLS FIRST;

--
-- Networks.  The argument and the setting count if the session user holds verify
-- or act.  Otherwise the connection's own address counts.  On a Unix socket it is
-- unknown, and an unknown address is refused.
--
SELECT token AS net FROM apitoken.create_token('net', user_id => 'ann', allowed_networks => '{10.0.0.0/8,192.0.2.7,2001:db8::/32}') \gset
CREATE TEMP TABLE address (n int, client inet);
INSERT INTO address VALUES (1, NULL), (2, '10.1.2.3'), (3, '11.1.2.3'), (4, '192.0.2.7'), (5, '192.0.2.8'), (6, '2001:db8::1'),
	(7, '2001:db9::1'), (8, '::ffff:10.1.2.3'), (9, '10.0.0.0/8'), (10, '0.0.0.0/0'), (11, '::/0');
GRANT SELECT ON address TO PUBLIC;
SELECT client, (apitoken.verify(:'net', NULL, NULL, client)).verdict FROM address ORDER BY n;

-- An IPv4 address or network that is mapped to IPv6 is that of IPv4, in the list and
-- for the client, also in a list that was stored without the trigger.  No other
-- network of one family contains an address of the other.
CREATE TEMP TABLE listed (n int, networks cidr[]);
INSERT INTO listed VALUES (1, '{::ffff:192.0.2.1/128}'), (2, '{::ffff:192.0.2.0/120}'), (3, '{::ffff:0:0/96}'), (4, '{::fffe:0:0/95}'), (5, '{::/64}'), (6, '{::/0}'), (7, '{0.0.0.0/0}'),
	(8, '{0.0.0.0/0,::/0}'), (9, '{::192.0.2.1/128}'), (10, '{64:ff9b::192.0.2.1/128}'), (11, '{fe80::/10,::ffff:192.0.2.1}'), (12, '{2001:db8::ffff:192.0.2.1}');
SELECT n, (apitoken.create_token('list ' || n, user_id => 'ann', allowed_networks => networks)).token INTO TEMP listed_token FROM listed;
SELECT label, allowed_networks FROM apitoken.tokens WHERE label LIKE 'list %' ORDER BY id;
CREATE FUNCTION pg_temp.valid_from(token text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(host(c), ' ') FROM unnest('{192.0.2.1,::ffff:192.0.2.1,192.0.2.2,::ffff:c000:202,198.51.100.1,::192.0.2.1,64:ff9b::192.0.2.1,fe80::1,2001:db8::1,2001:db8::ffff:192.0.2.1}'::inet[]) c
	WHERE (apitoken.verify(token, client_address => c)).valid $$;
SELECT networks, pg_temp.valid_from(token) FROM listed JOIN listed_token USING (n) ORDER BY n;
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records r SET allowed_networks = l.networks FROM listed l WHERE r.label = 'list ' || l.n;
SET LOCAL session_replication_role = origin;
SELECT allowed_networks, pg_temp.valid_from(token) FROM apitoken.tokens JOIN listed_token t ON label = 'list ' || t.n ORDER BY t.n;
ROLLBACK;

SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT (apitoken.verify(:'net', NULL, NULL, '10.1.2.3')).verdict;
SELECT (apitoken.verify(:'net')).verdict;
BEGIN;
SET LOCAL apitoken.client_address = '10.1.2.3';
SELECT (apitoken.verify(:'net')).verdict;
-- the argument takes precedence over the setting
SELECT (apitoken.verify(:'net', NULL, NULL, '11.1.2.3')).verdict;
SET LOCAL apitoken.client_address = '2001:db9::1';
SELECT (apitoken.verify(:'net')).verdict;
COMMIT;
-- a session's value does not count, because a pooler may have carried it over
SET client_min_messages = error;
SET apitoken.client_address = '10.1.2.3';
RESET client_min_messages;
SELECT (apitoken.verify(:'net')).verdict;
RESET apitoken.client_address;
-- an invalid address is refused when it is set, not when it is used
\set VERBOSITY sqlstate
BEGIN;
SET LOCAL apitoken.client_address = 'unknown';
ROLLBACK;
BEGIN;
SET LOCAL apitoken.client_address = '10.1.2.3, 11.1.2.3';
ROLLBACK;
\set VERBOSITY terse

-- a login that may verify only after SET ROLE may not vouch for an address
SET SESSION AUTHORIZATION regress_apitoken_stranger;
BEGIN;
SAVEPOINT s;
SELECT (apitoken.verify(:'net', NULL, NULL, '10.1.2.3')).verdict;
ROLLBACK TO s;
SET LOCAL ROLE regress_apitoken_gateway;
SELECT (apitoken.verify(:'net', NULL, NULL, '10.1.2.3')).verdict;
SET LOCAL apitoken.client_address = '10.1.2.3';
SELECT (apitoken.verify(:'net')).verdict;
ROLLBACK;

-- act vouches for an address, but does not verify
SET SESSION AUTHORIZATION regress_apitoken_backend;
SELECT (apitoken.verify(:'net', NULL, NULL, '10.1.2.3')).verdict;
RESET SESSION AUTHORIZATION;
SELECT apitoken.allow('regress_apitoken_backend', 'use');
SET SESSION AUTHORIZATION regress_apitoken_backend;
BEGIN;
SET LOCAL apitoken.client_address = '10.1.2.3';
SELECT verdict FROM apitoken.authenticate(:'net');
ROLLBACK;
RESET SESSION AUTHORIZATION;

--
-- Changes are visible at once, even in a transaction with an older snapshot.  (The
-- isolation tests cover changes by other sessions.)
--
CREATE FUNCTION pg_temp.seen(token text, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	result := (apitoken.verify(token)).verdict;
	EXECUTE command;
	result := result || ' > ' || (apitoken.verify(token)).verdict;
	RAISE SQLSTATE 'REG01';
EXCEPTION WHEN SQLSTATE 'REG01' THEN
	-- a change that was rolled back has no effect
	RETURN result || ' > ' || (apitoken.verify(token)).verdict;
END
$$;
CREATE TEMP TABLE happening (n int, token text, command text);
INSERT INTO happening VALUES
	(1, :'org', $$UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'build'$$),
	(2, :'org', $$SELECT apitoken.revoke_token(id, 'build') FROM apitoken.tokens WHERE label = 'build'$$),
	(3, :'org', $$SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = 'build'$$),
	(4, :'org', $$SELECT apitoken.regenerate_token(id, '1 hour') FROM apitoken.tokens WHERE label = 'build'$$),
	(5, :'org', $$UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme'$$),
	(6, :'org', $$DELETE FROM apitoken.organizations WHERE id = 'acme'$$),
	(7, :'org', $$UPDATE apitoken.users SET suspended_at = now()$$),
	(8, :'org', $$UPDATE apitoken_internal.token_records SET allowed_networks = '{10.0.0.0/8}' WHERE label = 'build'$$),
	(9, :'usr', $$UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ann'$$),
	(10, :'usr', $$DELETE FROM apitoken.users WHERE id = 'ann'$$),
	(11, :'usr', $$SELECT apitoken.revoke_tokens(user_id => 'ann')$$),
	(12, :'usr', $$UPDATE apitoken.organizations SET suspended_at = now()$$);
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT n, pg_temp.seen(token, command) FROM happening ORDER BY n;
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT n, pg_temp.seen(token, command) FROM happening ORDER BY n;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT n, pg_temp.seen(token, command) FROM happening ORDER BY n;
COMMIT;

-- a token is valid from the statement that creates it, and expires by the clock,
-- not by the transaction's time
SELECT (apitoken.verify(token)).verdict FROM apitoken.create_token('just now', user_id => 'ann');
SELECT token AS short FROM apitoken.create_token('short', user_id => 'ann') \gset
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = clock_timestamp() + '3 seconds'::interval WHERE label = 'short';
RESET session_replication_role;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT (apitoken.verify(:'short')).verdict;
SELECT FROM pg_sleep(3.1);
SELECT (apitoken.verify(:'short')).verdict, now() < (SELECT expires_at FROM apitoken.tokens WHERE label = 'short') AS too_early_for_now;
COMMIT;

--
-- The previous secret: accepted during its overlap, and never after the old
-- expiry.  In everything else it is the same token.
--
SELECT id, token AS one FROM apitoken.create_token('rotating', user_id => 'ann', expires_in => '1 hour') \gset
SELECT token AS two FROM apitoken.regenerate_token(:'id', overlap => '30 minutes') \gset
SELECT (apitoken.verify(:'one')).verdict, (apitoken.verify(:'two')).verdict;
SELECT token AS three FROM apitoken.regenerate_token(:'id', overlap => '10 days', expires_in => '20 days') \gset
SELECT (apitoken.verify(:'one')).verdict, (apitoken.verify(:'two')).verdict, (apitoken.verify(:'three')).verdict;
SELECT previous_expires_at[2] <= created_at + '1 hour'::interval AS not_past_old_expiry FROM apitoken_internal.token_records WHERE id = :'id';
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'id';
SELECT (apitoken.verify(:'two')).verdict, (apitoken.verify(:'three')).verdict;
UPDATE apitoken.tokens SET suspended_at = NULL WHERE id = :'id';
SET session_replication_role = replica;
UPDATE apitoken_internal.token_records SET previous_expires_at[2] = clock_timestamp() WHERE id = :'id';
RESET session_replication_role;
SELECT (apitoken.verify(:'two')).verdict, (apitoken.verify(:'three')).verdict;
SELECT token AS four FROM apitoken.regenerate_token(:'id', overlap => '30 minutes') \gset
SELECT apitoken.revoke_token(:'id');
SELECT (apitoken.verify(:'three')).verdict, (apitoken.verify(:'four')).verdict, (apitoken.verify(:'two')).verdict;

--
-- READ ONLY transactions, and parallel plans (in the leader).
--
BEGIN READ ONLY;
SELECT (apitoken.verify(:'org')).verdict, (apitoken.verify(:'usr', 'article:read', 'acme')).verdict, (apitoken.verify('x')).verdict;
SELECT verdict FROM apitoken.authenticate(:'usr');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT (apitoken.verify(:'org')).verdict;
COMMIT;

CREATE TABLE public.regress_attempt AS SELECT n, CASE n % 3 WHEN 0 THEN :'org' WHEN 1 THEN :'usr' ELSE 'x' END AS token FROM generate_series(1, 3000) n;
ANALYZE public.regress_attempt;
DO $$
BEGIN
	PERFORM set_config(CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'debug_parallel_query' ELSE 'force_parallel_mode' END, 'on', false);
END
$$;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
DO $$
DECLARE
	line text;
	gathers boolean := false;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN SELECT (apitoken.verify(token)).verdict FROM public.regress_attempt WHERE n > 10' LOOP
		gathers := gathers OR line LIKE '%Gather%';
	END LOOP;
	RAISE NOTICE 'parallel: %', gathers;
END
$$;
SELECT (apitoken.verify(token)).verdict, count(*) FROM public.regress_attempt WHERE n > 0 GROUP BY 1 ORDER BY 1;
BEGIN ISOLATION LEVEL REPEATABLE READ;
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ann';
SELECT (apitoken.verify(token)).verdict, count(*) FROM public.regress_attempt WHERE n > 0 GROUP BY 1 ORDER BY 1;
ROLLBACK;
RESET ALL;
\set VERBOSITY terse
DROP TABLE public.regress_attempt;

--
-- Last used.  Without shared preload, verify and authenticate write it in the
-- caller's transaction, at most once a minute, only when the token is accepted,
-- and only in a READ COMMITTED transaction that can write.  With shared preload,
-- each use and refusal is counted, even if the transaction is rolled back.
-- used() compares with the expected values, first without and then with shared
-- preload: accepted, refused, last used, and from where, if not from this session's own address.
--
CREATE FUNCTION pg_temp.used(of_label text, plain text, shared text, OUT without text, OUT with_shared_preload text) LANGUAGE plpgsql AS $$
DECLARE
	found text;
BEGIN
	PERFORM apitoken.flush_usage();
	found := (SELECT concat_ws(' ', u.accepted, u.refused, t.last_used, nullif(t.last_used_from, inet_client_addr()))
		FROM apitoken.tokens t JOIN apitoken.token_usage u ON u.token_id = t.id WHERE t.label = of_label);
	IF (SELECT preloaded FROM apitoken.stats) THEN
		without := plain;
		with_shared_preload := CASE WHEN found = shared THEN found ELSE found || ', which is wrong' END;
	ELSE
		without := CASE WHEN found = plain THEN found ELSE found || ', which is wrong' END;
		with_shared_preload := shared;
	END IF;
END
$$;
SELECT id, token FROM apitoken.create_token('used', user_id => 'ann') \gset
SELECT * FROM pg_temp.used('used', '0 0 never', '0 0 never');
-- refused, or not allowed to write: nothing is written, and no transaction id is taken
BEGIN;
SELECT (apitoken.verify(:'token', 'token:read')).verdict, pg_current_xact_id_if_assigned();
COMMIT;
SELECT * FROM pg_temp.used('used', '0 0 never', '0 1 never');
BEGIN READ ONLY;
SELECT (apitoken.verify(:'token')).verdict;
COMMIT;
SELECT * FROM pg_temp.used('used', '0 0 never', '1 1 just now');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT (apitoken.verify(:'token')).verdict;
SELECT pg_current_xact_id_if_assigned();
COMMIT;
SELECT * FROM pg_temp.used('used', '0 0 never', '2 1 just now');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT verdict FROM apitoken.authenticate(:'token');
COMMIT;
SELECT * FROM pg_temp.used('used', '0 0 never', '3 1 just now');
-- a wrong secret for that id does not count as a use
SELECT (apitoken.verify(pg_temp.with_checksum(left(:'token', -8) || '00'))).verdict;
SELECT * FROM pg_temp.used('used', '0 0 never', '3 1 just now');
-- rolled back with its transaction
BEGIN;
SELECT (apitoken.verify(:'token')).verdict;
SELECT * FROM pg_temp.used('used', '1 0 just now', '4 1 just now');
ROLLBACK;
SELECT * FROM pg_temp.used('used', '0 0 never', '4 1 just now');
-- once a minute
SELECT (apitoken.verify(:'token', NULL, NULL, '10.1.2.3')).verdict;
SELECT * FROM pg_temp.used('used', '1 0 just now 10.1.2.3', '5 1 just now 10.1.2.3');
BEGIN;
SELECT (apitoken.verify(:'token', NULL, NULL, '10.1.2.4')).verdict;
SELECT pg_current_xact_id_if_assigned();
COMMIT;
SELECT * FROM pg_temp.used('used', '1 0 just now 10.1.2.3', '6 1 just now 10.1.2.4');
UPDATE apitoken.token_usage SET last_used_at = clock_timestamp() - '40 seconds'::interval WHERE token_id = :'id';
SELECT verdict FROM apitoken.verify(:'token', NULL, NULL, '10.1.2.5');
SELECT * FROM pg_temp.used('used', '1 0 just now 10.1.2.3', '7 1 just now 10.1.2.5');
UPDATE apitoken.token_usage SET last_used_at = clock_timestamp() - '61 seconds'::interval WHERE token_id = :'id';
BEGIN;
SET LOCAL apitoken.client_address = '2001:db8::1';
SELECT verdict FROM apitoken.authenticate(:'token');
COMMIT;
SELECT * FROM pg_temp.used('used', '2 0 just now 2001:db8::1', '8 1 just now 2001:db8::1');
-- many at once, in one statement
UPDATE apitoken.token_usage SET last_used_at = NULL;
SELECT count(*) FILTER (WHERE (apitoken.verify(:'token', NULL, NULL, '10.1.2.6')).valid) FROM generate_series(1, 100);
SELECT * FROM pg_temp.used('used', '3 0 just now 10.1.2.6', '108 1 just now 10.1.2.6');
-- a read-only token's own use is written before its transaction is READ ONLY
SELECT token AS reading FROM apitoken.create_token('reading', user_id => 'ann', access => 'read_only') \gset
BEGIN;
SELECT verdict FROM apitoken.authenticate(:'reading');
SELECT verdict FROM apitoken.verify(:'org');
COMMIT;
SELECT * FROM pg_temp.used('reading', '1 0 just now', '1 0 just now');
-- with only the gateway's privileges, which do not include the table
UPDATE apitoken.token_usage SET last_used_at = NULL;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT verdict FROM apitoken.verify(:'token', NULL, NULL, '10.1.2.7');
SELECT count(*) FROM apitoken.token_usage;
SELECT apitoken.flush_usage();
SELECT * FROM apitoken.stats;
RESET SESSION AUTHORIZATION;
SELECT * FROM pg_temp.used('used', '4 0 just now 10.1.2.7', '109 1 just now 10.1.2.7');

--
-- Without the capability verify() cannot be called.
--
SET SESSION AUTHORIZATION regress_apitoken_stranger;
SELECT apitoken.verify('x');
SELECT apitoken.revoke_by_token('x');
RESET SESSION AUTHORIZATION;
SELECT apitoken.revoke_by_token(NULL), apitoken.revoke_by_token(''), apitoken.revoke_by_token(apitoken.generate('org')), apitoken.revoke_by_token(repeat('x', 100000));

SET client_min_messages = warning;
DROP TABLE text_vector, oddity, kind_of_token, address, happening;
DROP FUNCTION pg_temp.told(apitoken.verification), pg_temp.with_checksum(text), pg_temp.bad(text), pg_temp.asked(text, text, text), pg_temp.seen(text, text), pg_temp.used(text, text, text);
\i :srcdir/test/regress_teardown.sql
