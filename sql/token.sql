--
-- Texts of tokens: generate(), parse(), mask(), hash(), and what verify() returns
-- for texts that are not tokens.
--
\set SHOW_CONTEXT never
\pset null '(null)'
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgcrypto;
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
SELECT extnamespace::regnamespace AS crypto FROM pg_catalog.pg_extension WHERE extname = 'pgcrypto' \gset

--
-- Known answers.  The files are read by the client, so that it works with any server.
--
\set valid `cat "$PG_ABS_SRCDIR/test/vectors/token_text_valid.tsv"`
\set malformed `cat "$PG_ABS_SRCDIR/test/vectors/token_text_malformed.tsv"`
CREATE TEMP TABLE valid AS
	SELECT f[1] AS token, f[2] AS prefix, f[3] AS kind, f[4]::uuid AS id, pg_catalog.decode(f[5], 'hex') AS sha256, pg_catalog.decode(f[6], 'hex') AS hmac
	FROM (SELECT pg_catalog.string_to_array(line, E'\t') AS f
		FROM pg_catalog.regexp_split_to_table(:'valid', '\n') WITH ORDINALITY l (line, number) WHERE number > 1) s;
CREATE TEMP TABLE malformed AS
	SELECT pg_catalog.replace(f[1], '\n', E'\n') AS token, f[2] AS why
	FROM (SELECT pg_catalog.string_to_array(line, E'\t') AS f
		FROM pg_catalog.regexp_split_to_table(:'malformed', '\n') WITH ORDINALITY l (line, number) WHERE number > 1) s;
SELECT (SELECT count(*) FROM valid) AS valid, (SELECT count(*) FROM malformed) AS malformed;

-- none of these queries returns a row
SELECT v.token, p.* FROM valid v, apitoken.parse(v.token) p
WHERE (p.prefix, p.kind, p.id) IS DISTINCT FROM (v.prefix, CASE v.kind WHEN 'org' THEN 'organization' ELSE 'user' END, v.id);
SELECT token FROM valid WHERE apitoken.hash(token) IS DISTINCT FROM sha256;
SELECT token FROM valid WHERE apitoken.hash(token) IS DISTINCT FROM :crypto.digest(token, 'sha256');
-- a TAP test compares hash() with the HMAC column, because this needs a pepper file; here pgcrypto confirms it
SELECT token FROM valid
WHERE hmac IS DISTINCT FROM :crypto.hmac(pg_catalog.convert_to(token, 'UTF8'), pg_catalog.decode(pg_catalog.repeat('00', 31) || '01', 'hex'), 'sha256');
SELECT token FROM valid v
WHERE apitoken.mask(token) IS DISTINCT FROM prefix || '_' || kind || '_' || pg_catalog.substr(pg_catalog.split_part(token, '_', 3), 1, 22) || '_...' || pg_catalog.right(token, 4);
-- well-formed texts that belong to no token are unknown, and nothing more is told
SELECT v.verdict, v.valid, pg_catalog.num_nonnulls(VARIADIC ARRAY[v.token_id::text, v.label, v.kind, v.organization_id, v.user_id, v.role, v.access, v.permissions::text,
	v.groups::text, v.expires_at::text, v.metadata::text, v.retry_after::text]) AS more, count(*)
FROM valid t, apitoken.verify(t.token) v GROUP BY 1, 2, 3;
SELECT v.verdict, v.valid, pg_catalog.num_nonnulls(v.token_id, v.label, v.kind, v.organization_id, v.user_id, v.role, v.access) AS more, count(*)
FROM malformed t, apitoken.verify(t.token) v GROUP BY 1, 2, 3;
SELECT why FROM malformed t WHERE apitoken.mask(token) IS NOT NULL OR apitoken.parse(token) IS NOT NULL;
-- more malformed texts: any character of a valid text changed, dropped, doubled or in the other case
WITH changed AS (
	SELECT token, c.text, c.what, i
	FROM (SELECT * FROM valid LIMIT 3) v, pg_catalog.generate_series(1, pg_catalog.length(token)) i,
		LATERAL (VALUES ('changed', overlay(token PLACING CASE pg_catalog.substr(token, i, 1) WHEN '1' THEN '2' ELSE '1' END FROM i FOR 1)),
			('dropped', overlay(token PLACING '' FROM i FOR 1)),
			('doubled', overlay(token PLACING pg_catalog.repeat(pg_catalog.substr(token, i, 1), 2) FROM i FOR 1)),
			('other case', overlay(token PLACING pg_catalog.translate(pg_catalog.substr(token, i, 1), 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ',
				'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz') FROM i FOR 1))) c (what, text)
	WHERE c.text <> token
)
SELECT what, count(*) > 200 AS many, count(apitoken.mask(text)) AS accepted FROM changed WHERE what <> 'other case' GROUP BY what
UNION ALL
SELECT what, count(*) > 50, count(apitoken.mask(text)) FROM changed WHERE what = 'other case' GROUP BY what
ORDER BY 1;

--
-- Nulls, empty texts and very large texts
--
SELECT apitoken.generate(NULL), apitoken.hash(NULL), apitoken.parse(NULL), apitoken.mask(NULL);
SELECT apitoken.mask(''), apitoken.parse(''), apitoken.hash('') = :crypto.digest('', 'sha256') AS hash;
SELECT v.verdict, v.valid FROM apitoken.verify(NULL) v;
SELECT v.verdict, v.valid FROM apitoken.verify('') v;
SELECT v.verdict, v.valid FROM apitoken.verify(NULL, 'article:read', 'acme', '10.0.0.1') v;
SELECT apitoken.revoke_by_token(NULL), apitoken.revoke_by_token(''), apitoken.revoke_by_token((SELECT token FROM valid LIMIT 1));
-- an invalid permission is the caller's mistake and an error, whatever the token
\set VERBOSITY sqlstate
SELECT apitoken.verify(NULL, 'nonsense');
SELECT apitoken.verify(NULL, '*:read');
SELECT apitoken.authenticate(NULL);
SELECT apitoken.authenticate('');
\set VERBOSITY default
-- 100 MB of garbage is not even read, whether in memory or stored, compressed or not
CREATE TEMP TABLE garbage (content text);
ALTER TABLE garbage ALTER content SET STORAGE EXTERNAL;
INSERT INTO garbage VALUES (pg_catalog.repeat('apt_org_0', 11500000));
INSERT INTO garbage SELECT pg_catalog.string_agg(token, '') FROM valid;
DO $$
DECLARE
	garbage text := pg_catalog.repeat('apt_org_', 13000000);
	started timestamptz;
	verdict text;
BEGIN
	started := pg_catalog.clock_timestamp();
	FOR i IN 1..1000 LOOP
		verdict := (apitoken.verify(garbage)).verdict;
		IF verdict <> 'malformed' OR apitoken.mask(garbage) IS NOT NULL OR apitoken.parse(garbage) IS NOT NULL
			OR apitoken.revoke_by_token(garbage) THEN
			RAISE 'accepted';
		END IF;
	END LOOP;
	RAISE INFO 'in memory: % s', CASE WHEN pg_catalog.clock_timestamp() - started < '5 s' THEN 'under 5' ELSE 'over 5' END;
	started := pg_catalog.clock_timestamp();
	FOR i IN 1..100 LOOP
		PERFORM FROM garbage WHERE (apitoken.verify(content)).verdict <> 'malformed' OR apitoken.mask(content) IS NOT NULL
			OR apitoken.parse(content) IS NOT NULL OR apitoken.revoke_by_token(content);
		IF FOUND THEN
			RAISE 'accepted';
		END IF;
	END LOOP;
	RAISE INFO 'stored: % s', CASE WHEN pg_catalog.clock_timestamp() - started < '5 s' THEN 'under 5' ELSE 'over 5' END;
END $$;
DROP TABLE garbage;

--
-- New texts
--
SELECT apitoken.generate('org') ~ '^apt_org_[0-9A-Za-z]{71}$' AS org, apitoken.generate('usr') ~ '^apt_usr_[0-9A-Za-z]{71}$' AS usr,
	apitoken.generate('organization') ~ '^apt_org_[0-9A-Za-z]{71}$' AS organization, apitoken.generate('user') ~ '^apt_usr_[0-9A-Za-z]{71}$' AS "user";
-- the pattern published for secret scanners finds tokens in a text
SELECT count(*) FROM pg_catalog.regexp_matches('x=' || apitoken.generate('org') || '; "' || apitoken.generate('usr') || '"',
	'\y[a-z][a-z0-9]{1,11}_(org|usr)_[0-9A-Za-z]{71}\y', 'g');
CREATE TEMP TABLE generated AS SELECT i, apitoken.generate(CASE i % 2 WHEN 0 THEN 'org' ELSE 'usr' END) AS token FROM pg_catalog.generate_series(1, 20000) i;
-- all can be parsed, none repeats, ids are UUIDs of version 7 that ascend within the session
SELECT count(*) AS rows, count(p.id) AS parse, count(DISTINCT g.token) AS texts, count(DISTINCT p.id) AS ids,
	count(DISTINCT pg_catalog.substr(g.token, 31, 43)) AS secrets,
	bool_and(p.kind = CASE i % 2 WHEN 0 THEN 'organization' ELSE 'user' END) AS kinds,
	bool_and(pg_catalog.substr(p.id::text, 15, 1) = '7' AND pg_catalog.substr(p.id::text, 20, 1) IN ('8', '9', 'a', 'b')) AS version_7
FROM generated g, apitoken.parse(g.token) p;
SELECT count(*) AS descending
FROM (SELECT p.id, pg_catalog.lag(p.id) OVER (ORDER BY i) AS before FROM generated g, apitoken.parse(g.token) p) s WHERE id <= before;
SELECT count(*) AS wrong_mask FROM generated, apitoken.mask(token) masked
WHERE masked <> pg_catalog.left(token, 30) || '_...' || pg_catalog.right(token, 4)
	-- the masked form is not a valid token and contains nothing of the secret
	OR apitoken.mask(masked) IS NOT NULL OR apitoken.parse(masked) IS NOT NULL OR (apitoken.verify(masked)).verdict <> 'malformed'
	OR masked ~ '[a-z][a-z0-9]{1,11}_(org|usr)_[0-9A-Za-z]{71}';
-- nothing is stored
SELECT (SELECT count(*) FROM apitoken_internal.token_records) AS tokens, (SELECT count(*) FROM apitoken.events) AS events;
SELECT (apitoken.verify(token)).verdict, count(*) FROM generated WHERE i <= 10 GROUP BY 1;
-- an invalid kind
SELECT apitoken.generate('ORG');
SELECT apitoken.generate('');
SELECT apitoken.generate('organisation');

--
-- The prefix: for new texts only
--
INSERT INTO apitoken.organizations (id) VALUES ('acme');
SELECT token AS old, id AS old_id FROM apitoken.create_token('old', 'acme') \gset
SET apitoken.prefix = 'acme2';
SELECT token AS new, id AS new_id FROM apitoken.create_token('new', 'acme') \gset
SELECT pg_catalog.left(:'old', 8) AS old, pg_catalog.left(:'new', 10) AS new, pg_catalog.left(apitoken.generate('usr'), 10) AS generated;
SELECT (apitoken.verify(:'old')).verdict AS old, (apitoken.verify(:'new')).verdict AS new;
SELECT (apitoken.parse(:'old')).prefix AS old, (apitoken.parse(:'new')).prefix AS new;
-- the same secret under another prefix is another text, with another checksum and digest
SELECT (apitoken.verify(pg_catalog.replace(:'new', 'acme2_', 'apt_'))).verdict;
RESET apitoken.prefix;
SELECT (apitoken.verify(:'old')).verdict AS old, (apitoken.verify(:'new')).verdict AS new;
-- a new secret uses the current prefix
SELECT pg_catalog.left(token, 8) AS regenerated FROM apitoken.regenerate_token(:'new_id') \gset
\echo :regenerated
SELECT pg_catalog.left(masked, 8) FROM apitoken.tokens WHERE label = 'new';
-- an existing id with another secret is unknown, like a missing id
SELECT (apitoken.verify(:'new')).*;
-- only a digest is stored, and the digest is not a credential
SELECT digest = apitoken.hash(:'old') AS hash, digest_scheme, pg_catalog.strpos(r::text, pg_catalog.substr(:'old', 31, 43)) AS secret
FROM apitoken_internal.token_records r WHERE id = :'old_id';
SELECT (apitoken.verify(pg_catalog.encode(digest, 'hex'))).verdict AS hex, (apitoken.verify(digest::text)).verdict AS bytea,
	(apitoken.verify(masked)).verdict AS masked, (apitoken.verify(id::text)).verdict AS id
FROM apitoken_internal.token_records WHERE id = :'old_id';
-- wrong prefixes
\set VERBOSITY terse
SET apitoken.prefix = '';
SET apitoken.prefix = 'a';
SET apitoken.prefix = 'abcdefghijklm';
SET apitoken.prefix = '1ab';
SET apitoken.prefix = 'Abc';
SET apitoken.prefix = 'a_b';
SET apitoken.prefix = 'a b';
SET apitoken.prefix = 'äb';
SET apitoken.prefix = E'ab\ncd';
\set VERBOSITY default
SET apitoken.prefix = 'a-b';
SET apitoken.prefix = 'a0';
SELECT pg_catalog.left(apitoken.generate('org'), 7);
SET apitoken.prefix = 'abcdefghijkl';
SELECT pg_catalog.left(apitoken.generate('org'), 17), apitoken.mask(apitoken.generate('org')) IS NOT NULL AS parses;
RESET apitoken.prefix;

--
-- Tokens in any text
--
CREATE TABLE public.regress_found (name text, document text);
INSERT INTO public.regress_found
	SELECT 'one', :'old'
	UNION ALL SELECT 'two', 'token=' || :'old' || E'\n"' || :'new' || '"'
	UNION ALL SELECT 'next to each other', :'old' || :'new' || :'old'
	UNION ALL SELECT 'after other characters', 'x' || :'old' || ' - ' || pg_catalog.repeat('y', 20) || :'old' || ' ' || pg_catalog.chr(65) || '_' || :'new'
	UNION ALL SELECT 'after marks', 'a_usr_org_' || :'old' || ' apt_org_' || :'new'
	UNION ALL SELECT 'in a longer word', :'old' || 'abc'
	UNION ALL SELECT 'cut', pg_catalog.left(:'old', -1)
	UNION ALL SELECT 'upper case', pg_catalog.upper(:'old')
	UNION ALL SELECT 'masked', apitoken.mask(:'old')
	UNION ALL SELECT 'another checksum', pg_catalog.left(:'old', -1) || CASE pg_catalog.right(:'old', 1) WHEN 'a' THEN 'b' ELSE 'a' END
	UNION ALL SELECT 'empty', ''
	UNION ALL SELECT 'null', NULL
	UNION ALL SELECT 'marks only', pg_catalog.repeat('_org_', 10000)
	UNION ALL SELECT 'many', pg_catalog.repeat(:'old' || ' ', 2000);
SELECT name, pg_catalog.count(f.token), pg_catalog.count(*) FILTER (WHERE f.token IN (:'old', :'new') AND f.masked = apitoken.mask(f.token)
		AND (f.prefix, f.kind, f.id) = (SELECT p.prefix, p.kind, p.id FROM apitoken.parse(f.token) p)
		AND pg_catalog.substr(document, f.position, pg_catalog.length(f.token)) = f.token) AS right, pg_catalog.min(f.position) AS first, pg_catalog.max(f.position) AS last
	FROM public.regress_found LEFT JOIN LATERAL apitoken.find_tokens(document) f ON true GROUP BY name ORDER BY name COLLATE "C";
-- positions are characters, in any encoding
SELECT position FROM apitoken.find_tokens(pg_catalog.convert_from('\xc3a4c3b6c3bc20', 'UTF8') || :'old');
-- it does not tell whether a token exists
SELECT pg_catalog.count(*) FROM apitoken.find_tokens(apitoken.generate('org'));
SELECT pg_catalog.pg_get_function_result('apitoken.find_tokens'::pg_catalog.regproc), proparallel FROM pg_catalog.pg_proc WHERE oid = 'apitoken.find_tokens'::pg_catalog.regproc;
DROP TABLE public.regress_found;

--
-- Only administrators may call the primitives and choose the prefix
--
CREATE ROLE regress_apitoken_all LOGIN;
SELECT apitoken.allow('regress_apitoken_all', 'use', 'manage', 'verify', 'act', 'directory');
SET SESSION AUTHORIZATION regress_apitoken_all;
\set VERBOSITY sqlstate
SELECT apitoken.generate('org');
SELECT apitoken.hash('x');
SELECT apitoken.parse('x');
SELECT apitoken.mask('x');
SELECT apitoken.find_tokens('x');
SET apitoken.prefix = 'evil';
SET apitoken.pepper_file = '/dev/null';
SHOW apitoken.pepper_file;
\set VERBOSITY default
SHOW apitoken.prefix;
-- the same in a session that has not loaded the library yet
\c -
\pset null '(null)'
SET client_min_messages = error;
SET SESSION AUTHORIZATION regress_apitoken_all;
DO $$
BEGIN
	SET apitoken.prefix = 'evil';
EXCEPTION WHEN insufficient_privilege THEN
	NULL;
END $$;
BEGIN;
SELECT apitoken.act_as('alice') AS acts, apitoken.whoami()->>'source' AS source;
SELECT pg_catalog.left(token, 8) FROM apitoken.create_token('of alice');
COMMIT;
SHOW apitoken.prefix;
RESET SESSION AUTHORIZATION;
\i :srcdir/test/regress_teardown.sql
