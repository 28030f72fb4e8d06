--
-- verify_all() and explain_verify(): the decision is that of verify(), for many
-- tokens or step by step.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_gateway LOGIN;
CREATE ROLE regress_apitoken_most LOGIN;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_most', 'use', 'manage', 'act', 'directory', 'monitor');
INSERT INTO apitoken.organizations (id) VALUES ('suspended');
INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read}');

-- Tokens for each verdict, in the order of the verdicts.
CREATE TABLE public.regress_token (n int GENERATED ALWAYS AS IDENTITY, label text, token text);
GRANT SELECT ON public.regress_token TO PUBLIC;
INSERT INTO public.regress_token (label, token)
	SELECT l, (apitoken.create_token(l, CASE WHEN l <> 'personal' THEN CASE l WHEN 'of suspended' THEN 'suspended' ELSE 'acme' END END,
		user_id => CASE WHEN l = 'personal' THEN 'ada' END, role => CASE WHEN l <> 'personal' THEN 'reader' END,
		allowed_networks => CASE l WHEN 'network' THEN '{192.0.2.0/24}'::cidr[] END)).token
	FROM pg_catalog.unnest('{revoked,expired,token suspended,of suspended,network,valid,personal}'::text[]) WITH ORDINALITY t (l, n) ORDER BY n;
INSERT INTO public.regress_token (label, token) VALUES ('garbage', 'apt_org_x'), ('empty', ''), ('null', NULL), ('never made', apitoken.generate('organization')), ('long', pg_catalog.repeat('x', 1000000));
UPDATE apitoken.tokens SET expires_at = now() - '1 s'::interval WHERE label = 'expired';
UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'token suspended';
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'suspended';
SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked';
-- a wrong secret with the id of a token, and a right checksum
CREATE FUNCTION public.regress_wrong(token text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	digits text := '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
	body text := pg_catalog.left(token, 30) || pg_catalog.repeat('z', 43);
	crc bigint := 4294967295;
	sum text := '';
BEGIN
	FOR i IN 1 .. pg_catalog.length(body) LOOP
		crc := crc # pg_catalog.ascii(pg_catalog.substr(body, i, 1));
		FOR j IN 1 .. 8 LOOP
			crc := (crc >> 1) # (CASE WHEN crc & 1 = 1 THEN 3988292384 ELSE 0 END);
		END LOOP;
	END LOOP;
	crc := crc # 4294967295;
	FOR i IN 1 .. 6 LOOP
		sum := pg_catalog.substr(digits, (crc % 62)::int + 1, 1) || sum;
		crc := crc / 62;
	END LOOP;
	RETURN body || sum;
END $$;
INSERT INTO public.regress_token (label, token) SELECT 'wrong secret of ' || label, public.regress_wrong(token) FROM public.regress_token WHERE label IN ('valid', 'revoked');

--
-- Who may
--
SET SESSION AUTHORIZATION regress_apitoken_most;
SELECT public.regress_try($$SELECT apitoken.verify_all('{}')$$), public.regress_try($$SELECT apitoken.explain_verify('x')$$);
SET SESSION AUTHORIZATION regress_apitoken_gateway;

--
-- verify_all(): one row for each element, as verify() answers
--
SELECT t.label, v.valid, v.verdict, v.label AS of, v.kind, v.organization_id, v.user_id, v.role, v.access, v.permissions
FROM public.regress_token t JOIN apitoken.verify_all(ARRAY(SELECT token FROM public.regress_token ORDER BY n)) WITH ORDINALITY v ON v.ordinality = t.n ORDER BY t.n;
SELECT pg_catalog.count(*) AS differ FROM public.regress_token t
	JOIN (SELECT pg_catalog.row_number() OVER () AS n, v FROM (SELECT apitoken.verify_all(ARRAY(SELECT token FROM public.regress_token ORDER BY n)) AS v) s) s ON s.n = t.n
WHERE s.v IS DISTINCT FROM apitoken.verify(t.token);
-- the same token several times, arrays of other shapes, none
SELECT (SELECT pg_catalog.array_agg(verdict) FROM apitoken.verify_all(ARRAY[token, token, 'x', NULL, token])) AS repeated,
	(SELECT pg_catalog.array_agg(verdict) FROM apitoken.verify_all(ARRAY[[token, 'x'], [NULL, token]])) AS two_dimensions,
	(SELECT pg_catalog.count(*) FROM apitoken.verify_all(NULL)) AS of_null, (SELECT pg_catalog.count(*) FROM apitoken.verify_all('{}')) AS of_none
FROM public.regress_token WHERE label = 'valid';
SELECT verdict, pg_catalog.count(*) FROM apitoken.verify_all(pg_catalog.array_fill('x'::text, '{1000}')) GROUP BY 1;
SELECT public.regress_try($$SELECT apitoken.verify_all(pg_catalog.array_fill('x'::text, '{1001}'))$$);
SELECT public.regress_try($$SELECT apitoken.verify_all(pg_catalog.array_fill('x'::text, '{2,600}'))$$);
-- READ ONLY, and the middle of a statement
BEGIN READ ONLY;
SELECT verdict, label FROM apitoken.verify_all(ARRAY(SELECT token FROM public.regress_token WHERE label IN ('valid', 'personal') ORDER BY n));
SELECT passed FROM apitoken.explain_verify((SELECT token FROM public.regress_token WHERE label = 'valid')) LIMIT 1;
COMMIT;
-- a revocation counts at once
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT (SELECT pg_catalog.array_agg(verdict) FROM apitoken.verify_all(ARRAY[token, token])) AS before, apitoken.revoke_by_token(token), (SELECT pg_catalog.array_agg(verdict) FROM apitoken.verify_all(ARRAY[token, token])) AS after
FROM public.regress_token WHERE label = 'personal';
ROLLBACK;

--
-- explain_verify(): the steps up to the first that is not passed, whose name is
-- the verdict of verify()
--
SELECT t.label, e.step, e.name, e.passed, pg_catalog.regexp_replace(e.detail, '\w{3} \w{3} \d\d [^;]*', '(time)', 'g') AS detail
FROM public.regress_token t, apitoken.explain_verify(t.token, client_address => '198.51.100.1') e ORDER BY t.n, e.step;
SELECT pg_catalog.count(*) AS differ
FROM public.regress_token t, (VALUES (NULL, NULL, NULL), ('article:read', NULL, NULL), ('article:write', NULL, NULL), ('article:read', 'acme', NULL),
	('article:read', 'globex', NULL), (NULL, 'acme', NULL), (NULL, 'globex', NULL), (NULL, NULL, '192.0.2.1'::inet), (NULL, NULL, '198.51.100.1')) a (permission, organization_id, address)
WHERE (apitoken.verify(t.token, a.permission, a.organization_id, a.address)).verdict IS DISTINCT FROM
	(SELECT CASE WHEN e.passed THEN 'valid' ELSE e.name END FROM apitoken.explain_verify(t.token, a.permission, a.organization_id, a.address) e ORDER BY e.step DESC LIMIT 1)
	OR EXISTS (SELECT FROM apitoken.explain_verify(t.token, a.permission, a.organization_id, a.address) e HAVING pg_catalog.count(*) FILTER (WHERE NOT e.passed) > 1);
-- what was asked for
SELECT e.name, e.passed, pg_catalog.regexp_replace(e.detail, '\w{3} \w{3} \d\d [^;]*', '(time)', 'g') AS detail FROM public.regress_token t, apitoken.explain_verify(t.token, 'article:write', 'acme', '192.0.2.9') e WHERE t.label = 'valid' AND e.step > 4 ORDER BY e.step;
SELECT e.name, e.passed, pg_catalog.regexp_replace(e.detail, '\w{3} \w{3} \d\d [^;]*', '(time)', 'g') AS detail FROM public.regress_token t, apitoken.explain_verify(t.token, 'article:read', 'globex', '198.51.100.1') e WHERE t.label = 'personal' AND e.step > 5 ORDER BY e.step;
SELECT e.name, e.passed, pg_catalog.regexp_replace(e.detail, '\w{3} \w{3} \d\d [^;]*', '(time)', 'g') AS detail FROM public.regress_token t, apitoken.explain_verify(t.token, NULL, 'globex', '198.51.100.1') e WHERE t.label = 'personal' AND e.step > 5 ORDER BY e.step;
SELECT e.name, e.passed, pg_catalog.regexp_replace(e.detail, '\w{3} \w{3} \d\d [^;]*', '(time)', 'g') AS detail FROM public.regress_token t, apitoken.explain_verify(t.token, client_address => '192.0.2.9') e WHERE t.label = 'network' AND e.step > 6 ORDER BY e.step;
-- a policy, of the organization or of one where a personal token is to act
RESET SESSION AUTHORIZATION;
UPDATE apitoken.organizations SET max_lifetime = '30 days', require_expiry = true, allow_personal_tokens = false WHERE id = 'acme';
SELECT t.label, e.name, e.passed, pg_catalog.regexp_replace(e.detail, '\w{3} \w{3} \d\d [^;]*', '(time)', 'g') AS detail
FROM public.regress_token t, apitoken.explain_verify(t.token, NULL, 'acme') e WHERE t.label IN ('valid', 'personal') AND e.name = 'policy_refused' ORDER BY t.n;
UPDATE apitoken.organizations SET max_lifetime = NULL, require_expiry = false, allow_personal_tokens = true WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT public.regress_try($$SELECT apitoken.explain_verify('x', 'no permission')$$), public.regress_try($$SELECT apitoken.explain_verify('x', '*')$$);
-- of a wrong secret nothing is told that depends on the token
SELECT pg_catalog.count(DISTINCT steps) AS answers FROM (
	SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(e) ORDER BY e.step) AS steps FROM public.regress_token t, apitoken.explain_verify(t.token, 'article:read', 'acme', '192.0.2.1') e
	WHERE t.label ~ 'wrong secret|never made' GROUP BY t.n) s;

--
-- verify_all() is a use of each token, explain_verify() of none
--
RESET SESSION AUTHORIZATION;
SELECT (apitoken.create_token('counted', 'acme', role => 'reader')).token AS counted \gset
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT pg_catalog.bool_and(passed) AS passed FROM apitoken.explain_verify(:'counted');
RESET SESSION AUTHORIZATION;
SELECT apitoken.flush_usage();
SELECT last_used FROM apitoken.tokens WHERE label = 'counted';
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT verdict FROM apitoken.verify_all(ARRAY[:'counted']);
RESET SESSION AUTHORIZATION;
SELECT apitoken.flush_usage();
SELECT last_used FROM apitoken.tokens WHERE label = 'counted';

DROP TABLE public.regress_token;
DROP FUNCTION public.regress_wrong;
SET client_min_messages = warning;
\i :srcdir/test/regress_teardown.sql
