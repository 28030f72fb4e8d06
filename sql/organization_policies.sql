--
-- organization_policies: limits that an organization sets for its tokens
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_gate LOGIN;
CREATE ROLE regress_apitoken_sync LOGIN;
CREATE ROLE regress_apitoken_bypass LOGIN BYPASSRLS;
SELECT apitoken.allow('regress_apitoken_gate', 'verify') \g /dev/null
SELECT apitoken.allow('regress_apitoken_sync', 'directory') \g /dev/null
SELECT apitoken.allow('regress_apitoken_bypass', 'manage') \g /dev/null
INSERT INTO apitoken.roles (name, permissions) VALUES
	('policy', '{organization:update}'), ('reader', '{article:read}'), ('maker', '{token:*,article:read}');
INSERT INTO apitoken.memberships VALUES ('acme', 'dora', 'developer'), ('acme', 'paul', 'policy'), ('acme', 'mary', 'maker'), ('globex', 'ada', 'developer');
-- the outcome of a statement of this user
CREATE FUNCTION public.regress_as(who text, sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	BEGIN
		PERFORM apitoken.act_as(who);
		answer := public.regress_try(sql);
		RAISE SQLSTATE 'REG01';
	EXCEPTION WHEN SQLSTATE 'REG01' THEN
		RETURN answer;
	END;
END $$;
CREATE TABLE public.regress_token (label text, token text, id uuid);
GRANT ALL ON public.regress_token TO PUBLIC;
CREATE FUNCTION public.regress_verdicts(address inet DEFAULT NULL) RETURNS TABLE (label text, verdict text, status text) LANGUAGE sql AS $$
	SELECT r.label, (apitoken.verify(r.token, client_address => address)).verdict, t.status
	FROM public.regress_token r JOIN apitoken.tokens t USING (id) ORDER BY r.label COLLATE "C" $$;

--
-- Lifetimes: creation
--
UPDATE apitoken.organizations SET require_expiry = true WHERE id = 'globex';
UPDATE apitoken.organizations SET max_lifetime = '30 days' WHERE id = 'acme';
SELECT c.organization_id, c.expires_in, public.regress_try(pg_catalog.format('SELECT apitoken.create_token(%L, organization_id => %L, expires_in => %L)',
	'try ' || c.n, c.organization_id, c.expires_in)) AS answer
FROM (VALUES (1, 'acme', NULL), (2, 'acme', '30 days 1 second'), (3, 'acme', '1 mon 1 day'), (4, 'acme', '30 days'), (5, 'acme', '1 minute'),
	(6, 'globex', NULL), (7, 'globex', '90 years'), (8, NULL, NULL)) c (n, organization_id, expires_in)
WHERE c.organization_id IS NOT NULL ORDER BY c.n;
-- a lifetime of exactly the limit is allowed on each day, whatever the lengths of the months
BEGIN;
SET LOCAL TimeZone = 'UTC';
INSERT INTO apitoken.organizations (id, max_lifetime) SELECT 'policy ' || l, l FROM pg_catalog.unnest('{1 mon 1 day,1 mon,1 year 1 mon 30 days}'::interval[]) l;
SELECT l AS max_lifetime, pg_catalog.count(*) AS days, pg_catalog.count(*) FILTER (WHERE apitoken_internal.refuses_lifetime('policy ' || l, d, d + l)) AS refused,
	pg_catalog.count(*) FILTER (WHERE NOT apitoken_internal.refuses_lifetime('policy ' || l, d, d + l + interval '4 days')) AS too_long
FROM pg_catalog.unnest('{1 mon 1 day,1 mon,1 year 1 mon 30 days}'::interval[]) l, pg_catalog.generate_series('2023-01-01Z', '2026-12-31Z', interval '1 day') d GROUP BY 1;
ROLLBACK;
-- the same whatever the time zone of the session and the way of creation
SET TimeZone = 'America/New_York';
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id, expires_at) VALUES ('insert 1', 'acme', now() + '40 days')$$),
	public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('insert 2', 'acme')$$),
	public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id, expires_at) VALUES ('insert 3', 'acme', now() + '20 days')$$);
BEGIN;
UPDATE apitoken.organizations SET max_lifetime = '1 year' WHERE id = 'acme';
SELECT expires_at - now() BETWEEN '365 days' AND '366 days' AS whole FROM apitoken.create_token('year', organization_id => 'acme', expires_in => '1 year');
SELECT count(*) FROM (SELECT apitoken.create_token('month ' || n, organization_id => 'acme', expires_in => pg_catalog.make_interval(months => n)) FROM pg_catalog.generate_series(1, 12) n) c;
ROLLBACK;
RESET TimeZone;
-- each kind of caller
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_as('ada', $$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS admin,
	public.regress_as('ada', $$SELECT apitoken.create_token('t')$$) AS personal,
	-- who may not create a token there learns nothing of the policy
	public.regress_as('dora', $$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS member,
	public.regress_as('gina', $$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS stranger;
SET SESSION AUTHORIZATION regress_apitoken_bypass;
SELECT public.regress_try($$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS bypass;
RESET SESSION AUTHORIZATION;
SELECT count(apitoken.revoke_tokens(organization_id => o)) FROM pg_catalog.unnest('{acme,globex}'::text[]) o;

--
-- A stricter policy counts at once, for tokens that exist, and revokes nothing
--
UPDATE apitoken.organizations SET max_lifetime = NULL, require_expiry = false;
WITH token (label, expires_in) AS (VALUES ('a day', '1 day'::interval), ('a year', '1 year'), ('endless', NULL))
INSERT INTO public.regress_token SELECT t.label, i.token, i.id FROM token t, apitoken.create_token(t.label, organization_id => 'acme', expires_in => t.expires_in) i;
INSERT INTO public.regress_token SELECT 'globex', i.token, i.id FROM apitoken.create_token('globex', organization_id => 'globex') i;
INSERT INTO public.regress_token SELECT 'personal', i.token, i.id FROM apitoken.create_token('personal', user_id => 'ada') i;
INSERT INTO public.regress_token SELECT 'suspended', i.token, i.id FROM apitoken.create_token('suspended', organization_id => 'acme') i;
UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended';
SELECT * FROM public.regress_verdicts();
UPDATE apitoken.organizations SET require_expiry = true WHERE id = 'acme';
SELECT * FROM public.regress_verdicts();
UPDATE apitoken.organizations SET require_expiry = false, max_lifetime = '30 days' WHERE id = 'acme';
SELECT * FROM public.regress_verdicts();
-- the answer of a refusal has the token's id and label, and nothing of what it may do
SELECT valid, verdict, token_id = t.id AS id, v.label, kind, role, permissions, metadata FROM public.regress_token t, apitoken.verify(t.token) v WHERE t.label = 'endless';
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.authenticate(%L)', t.token)) AS authenticate, apitoken.introspect(t.token) FROM public.regress_token t WHERE t.label = 'endless';
SELECT label, status FROM apitoken.list_tokens(organization_id => 'acme', status => 'policy_refused') ORDER BY label COLLATE "C";
SELECT label, status FROM apitoken.list_tokens(organization_id => 'acme', status => 'active') ORDER BY label COLLATE "C";
SELECT label, status, revoked_at FROM apitoken.tokens WHERE organization_id = 'acme' AND label = 'endless';
-- seen by members, not by others
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('mary') AS me \gset
SELECT label, status FROM apitoken.tokens WHERE revoked_at IS NULL ORDER BY label COLLATE "C";
COMMIT;
-- nor does the function that the view calls tell anything of another organization
SELECT c.who, apitoken_internal.refuses_lifetime('acme', pg_catalog.now(), NULL) FROM (SELECT 'nobody' AS who) c;
BEGIN;
SELECT apitoken.act_as('gina') AS me \gset
SELECT c.who, apitoken_internal.refuses_lifetime('acme', pg_catalog.now(), NULL), apitoken_internal.refuses_lifetime(NULL, NULL, NULL) FROM (SELECT 'gina' AS who) c;
COMMIT;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT c.who, apitoken_internal.refuses_lifetime('acme', pg_catalog.now(), e) FROM (SELECT 'ada' AS who) c, (VALUES (NULL), (pg_catalog.now() + '29 days'), (pg_catalog.now() + '31 days')) v (e);
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT c.who, apitoken_internal.refuses_lifetime('acme', pg_catalog.now(), NULL), apitoken_internal.refuses_lifetime('none', pg_catalog.now(), NULL) FROM (SELECT 'owner' AS who) c;
-- a transaction that is already authenticated may do nothing more
SELECT token FROM public.regress_token WHERE label = 'a year' \gset
UPDATE apitoken.organizations SET max_lifetime = NULL WHERE id = 'acme';
BEGIN;
SELECT verdict FROM apitoken.authenticate(:'token');
SELECT apitoken.can('a:read'), apitoken.can('a:read', 'acme'), array(SELECT apitoken.organizations_allowed('a:read'));
UPDATE apitoken.organizations SET max_lifetime = '30 days' WHERE id = 'acme';
SELECT apitoken.can('a:read'), apitoken.can('a:read', 'acme'), array(SELECT apitoken.organizations_allowed('a:read'));
ROLLBACK;
UPDATE apitoken.organizations SET max_lifetime = '30 days' WHERE id = 'acme';
-- a regeneration ends the refusal; the old secret does not outlive the policy
SELECT id AS endless_id, token AS endless FROM public.regress_token WHERE label = 'endless' \gset
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L)', :'endless_id')) AS endless,
	public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L, expires_in => ''31 days'')', :'endless_id')) AS too_long;
BEGIN;
SET LOCAL session_replication_role = replica;	-- as if it were old
UPDATE apitoken_internal.token_records SET created_at = created_at - '600 hours'::interval WHERE id = :'endless_id';
COMMIT;
SELECT token AS endless2, expires_at - now() AS lives FROM apitoken.regenerate_token(:'endless_id', overlap => '20 days', expires_in => '30 days') \gset
SELECT :'lives'::interval = '30 days' AS exactly, (apitoken.verify(:'endless2')).verdict, (apitoken.verify(:'endless')).verdict AS old,
	regenerated_at BETWEEN created_at + '600 hours' AND created_at + '600 hours 1 minute' AS soon, previous_expires_at[1] = created_at + '720 hours' AS old_ends
FROM apitoken_internal.token_records WHERE id = :'endless_id';
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records SET regenerated_at = regenerated_at - '40 days'::interval, expires_at = NULL WHERE id = :'endless_id';
COMMIT;
SELECT (apitoken.verify(:'endless2')).verdict, (SELECT verdict FROM apitoken.regenerate_token(:'endless_id', overlap => '20 days', expires_in => '30 days') r, apitoken.verify(r.token)) AS new;
SELECT (apitoken.verify(:'endless2')).verdict AS refused_before, (apitoken.verify(:'endless')).verdict AS older;
SELECT status, regenerated_at > created_at AS regenerated FROM apitoken.tokens WHERE id = :'endless_id';
SELECT DISTINCT pg_catalog.jsonb_object_keys(details -> 'new') FROM apitoken.events WHERE token_id = :'endless_id' AND action = 'regenerate' ORDER BY 1;
-- edits: a new expiry must be allowed, and what does not change may stay
SELECT id AS year_id FROM public.regress_token WHERE label = 'a year' \gset
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT e AS edit, public.regress_as('ada', pg_catalog.format('UPDATE apitoken.tokens SET %s WHERE id = %L', e, :'year_id')) AS answer
FROM pg_catalog.unnest(ARRAY['expires_at = NULL', $$expires_at = now() + '31 days'$$, $$expires_at = now() + '29 days'$$, $$description = 'x'$$,
	'expires_at = expires_at', 'suspended_at = now()', 'regenerated_at = now()']) e;
RESET SESSION AUTHORIZATION;
-- nobody sets the time of a regeneration
SELECT public.regress_try($$INSERT INTO apitoken_internal.token_records (label, organization_id, expires_at, regenerated_at) VALUES ('later', 'acme', now() + '60 days', now() + '50 days')$$) AS insert,
	public.regress_try(pg_catalog.format('UPDATE apitoken_internal.token_records SET regenerated_at = now() WHERE id = %L', :'year_id')) AS update;
-- rows of a restore are kept, and reading them does not fail
BEGIN;
INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, expires_at, masked, digest, digest_scheme)
SELECT gen_random_uuid(), 'restored ' || n, 'acme', 'developer', 'full', c::timestamptz, now(), e::timestamptz, '', pg_catalog.decode(pg_catalog.repeat('00', 32), 'hex'), 0
FROM (VALUES (1, '2020-01-01', NULL), (2, '294276-12-31', '294276-12-31'), (3, '4713-01-01 BC', '294276-12-31'), (4, '4713-01-02 BC', '4713-01-03 BC')) r (n, c, e);
UPDATE apitoken.organizations SET max_lifetime = '100 years' WHERE id = 'acme';
SELECT label, status FROM apitoken.tokens WHERE label LIKE 'restored%' ORDER BY 1;
ROLLBACK;

--
-- Networks: the token's list and its organization's must contain the address
--
UPDATE apitoken.organizations SET max_lifetime = NULL, allowed_networks = '{10.0.0.0/8,2001:db8::/32,::ffff:192.0.2.0/120}' WHERE id = 'acme';
SELECT allowed_networks FROM apitoken.organizations WHERE id = 'acme';
DELETE FROM public.regress_token WHERE label IN ('a year', 'endless', 'suspended');
INSERT INTO public.regress_token SELECT 'own list', i.token, i.id FROM apitoken.create_token('own list', organization_id => 'acme', allowed_networks => '{10.1.0.0/16,198.51.100.0/24}') i;
SELECT a AS address, (SELECT pg_catalog.string_agg(v.label || ' ' || v.verdict, ', ' ORDER BY v.label COLLATE "C") FROM public.regress_verdicts(a) v) AS verdicts
FROM pg_catalog.unnest('{10.1.2.3,10.2.3.4,::ffff:10.1.2.3,198.51.100.1,192.0.2.1,::ffff:192.0.2.1,2001:db8::1,2001:db9::1,0.0.0.0,::}'::inet[]) a;
-- an unknown address is in no list; who may not speak for clients cannot give one
SELECT token FROM public.regress_token WHERE label = 'a day' \gset
SELECT (apitoken.verify(:'token')).verdict AS unknown;
GRANT EXECUTE ON FUNCTION apitoken.authenticate(text) TO regress_apitoken_bypass;
SET SESSION AUTHORIZATION regress_apitoken_bypass;
BEGIN;
SET LOCAL apitoken.client_address = '10.1.2.3';
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.authenticate(%L)', :'token'));
ROLLBACK;
SET SESSION AUTHORIZATION regress_apitoken_gate;
SELECT (apitoken.verify(:'token', client_address => '10.1.2.3')).verdict, (apitoken.verify(:'token', client_address => '11.1.2.3')).verdict AS outside;
RESET SESSION AUTHORIZATION;
-- the policy of the lifetime is decided first
UPDATE apitoken.organizations SET max_lifetime = '1 hour' WHERE id = 'acme';
SELECT (apitoken.verify(:'token', client_address => '11.1.2.3')).verdict;
UPDATE apitoken.organizations SET max_lifetime = NULL WHERE id = 'acme';
-- a long list, which is stored outside of the row
UPDATE apitoken.organizations SET allowed_networks = (SELECT pg_catalog.array_agg(('2001:db8:' || pg_catalog.to_hex(n * 257) || ':' || pg_catalog.to_hex(n * 655) || '::/64')::cidr) FROM pg_catalog.generate_series(1, 100) n) WHERE id = 'acme';
SELECT (apitoken.verify(:'token', client_address => '2001:db8:101:28f::1')).verdict, (apitoken.verify(:'token', client_address => '2001:db8:101:290::1')).verdict AS outside;
UPDATE apitoken.organizations SET allowed_networks = NULL WHERE id = 'acme';

--
-- The greatest number of tokens that are not revoked.  Races: isolation test max_tokens.
--
SELECT count(*) AS revoked FROM (SELECT apitoken.revoke_tokens(organization_id => 'acme')) r;
UPDATE apitoken.organizations SET max_tokens = 3 WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
INSERT INTO apitoken.tokens (label, organization_id) VALUES ('one', 'acme'), ('two', 'acme');
-- one statement cannot make too many, and leaves none
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('three', 'acme'), ('four', 'acme')$$);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('three', 'acme')$$);
SELECT public.regress_try($$SELECT apitoken.create_token('four', organization_id => 'acme')$$);
-- elsewhere there is no limit
SELECT public.regress_try($$SELECT apitoken.create_token('four')$$);
-- a revocation makes place, a suspension does not
UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'one';
SELECT public.regress_try($$SELECT apitoken.create_token('four', organization_id => 'acme')$$);
SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'one';
SELECT public.regress_try($$SELECT apitoken.create_token('four', organization_id => 'acme')$$);
-- a rollback to a savepoint gives the place back, and the lock is taken again
SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'four' AND organization_id = 'acme';
SAVEPOINT s;
SELECT public.regress_try($$SELECT apitoken.create_token('five', organization_id => 'acme')$$);
ROLLBACK TO s;
SELECT public.regress_try($$SELECT apitoken.create_token('six', organization_id => 'acme')$$);
SELECT public.regress_try($$SELECT apitoken.create_token('seven', organization_id => 'acme')$$);
COMMIT;
SELECT public.regress_as('dora', $$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS member,
	public.regress_as('gina', $$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS stranger;
RESET SESSION AUTHORIZATION;
-- an expired token keeps its place, so that no edit or regeneration can take one
UPDATE apitoken.tokens SET expires_at = now() - '1 day'::interval WHERE label = 'six';
SELECT public.regress_try($$SELECT apitoken.create_token('seven', organization_id => 'acme')$$);
-- a smaller number revokes nothing; 0: no more tokens
UPDATE apitoken.organizations SET max_tokens = 0 WHERE id = 'acme';
SELECT label, status FROM apitoken.tokens WHERE organization_id = 'acme' AND revoked_at IS NULL ORDER BY label COLLATE "C";
SELECT public.regress_try($$SELECT apitoken.create_token('seven', organization_id => 'acme')$$);
SELECT token IS NOT NULL AS regenerated FROM apitoken.tokens t, apitoken.regenerate_token(t.id) WHERE t.label = 'two';
UPDATE apitoken.organizations SET max_tokens = NULL WHERE id = 'acme';

--
-- The role of a token for which none is given
--
SELECT public.regress_try($$UPDATE apitoken.organizations SET default_role = 'none' WHERE id = 'acme'$$) AS unknown;
UPDATE apitoken.organizations SET default_role = 'reader' WHERE id = 'acme';
SELECT (SELECT role FROM apitoken.verify(c.token)) AS role FROM apitoken.create_token('default', organization_id => 'acme') c;
SELECT (SELECT role FROM apitoken.verify(c.token)) AS role FROM apitoken.create_token('given', organization_id => 'acme', role => 'admin') c;
SELECT (SELECT role FROM apitoken.verify(c.token)) AS role FROM apitoken.create_token('elsewhere', organization_id => 'globex') c;
-- who has less than the default role cannot create a token with it
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_as('mary', $$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS covered;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.organizations SET default_role = 'policy' WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_as('mary', $$SELECT apitoken.create_token('t', organization_id => 'acme')$$) AS not_covered;
RESET SESSION AUTHORIZATION;
-- a role in use as a default stays
INSERT INTO apitoken.roles (name, permissions) VALUES ('only default', '{article:read}');
UPDATE apitoken.organizations SET default_role = 'only default' WHERE id = 'acme';
SELECT public.regress_try($$DELETE FROM apitoken.roles WHERE name = 'only default'$$) AS delete,
	public.regress_try($$UPDATE apitoken.roles SET name = 'renamed' WHERE name = 'only default'$$) AS rename,
	public.regress_try($$UPDATE apitoken.roles SET permissions = '{article:list}' WHERE name = 'only default'$$) AS change;
-- a built-in role becomes a row
UPDATE apitoken.organizations SET default_role = 'admin' WHERE id = 'acme';
SELECT name FROM ONLY apitoken_internal.role_records WHERE name = 'admin';
-- a restore may bring the organization before the role; then there is no role to give
BEGIN;
SET LOCAL row_security = off;
UPDATE apitoken.organizations SET default_role = 'not there' WHERE id = 'acme';
SET LOCAL row_security = on;
SELECT public.regress_try($$SELECT apitoken.create_token('t', organization_id => 'acme')$$);
ROLLBACK;
UPDATE apitoken.organizations SET default_role = NULL WHERE id = 'acme';
DELETE FROM apitoken.roles WHERE name = 'only default';

--
-- Personal tokens in an organization
--
SELECT token FROM public.regress_token WHERE label = 'personal' \gset
CREATE FUNCTION public.regress_where() RETURNS TABLE (can_acme boolean, can_globex boolean, own boolean, allowed text[], organizations text[], members bigint, tokens bigint) LANGUAGE sql AS $$
	SELECT apitoken.can('article:read', 'acme'), apitoken.can('article:read', 'globex'), apitoken.can('article:read'),
		array(SELECT o FROM apitoken.organizations_allowed('article:read') o ORDER BY 1),
		array(SELECT id FROM apitoken.organizations ORDER BY id), (SELECT count(*) FROM apitoken.members WHERE organization_id = 'acme'),
		(SELECT count(*) FROM apitoken.tokens WHERE organization_id = 'acme') $$;
UPDATE apitoken.organizations SET allow_personal_tokens = false WHERE id = 'acme';
SELECT verdict, role, permissions FROM apitoken.verify(:'token');
SELECT verdict, role, permissions FROM apitoken.verify(:'token', NULL, 'acme');
SELECT verdict FROM apitoken.verify(:'token', 'article:read', 'acme');
SELECT verdict, role FROM apitoken.verify(:'token', 'article:read', 'globex');
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT verdict FROM apitoken.authenticate(:'token');
SELECT * FROM public.regress_where();
COMMIT;
-- their user may, directly
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT can_acme, can_globex, own, allowed, organizations, members, tokens > 0 AS tokens FROM public.regress_where();
SELECT id AS custom_id, token AS custom FROM apitoken.create_token('custom', permissions => '{token:*,organization:*,article:read}') \gset
COMMIT;
-- also a personal token that manages tokens or the policy itself
BEGIN;
SELECT verdict FROM apitoken.authenticate(:'custom');
SELECT public.regress_try($$SELECT apitoken.create_token('t', organization_id => 'acme')$$),
	public.regress_try($$UPDATE apitoken.organizations SET allow_personal_tokens = true$$);
COMMIT;
RESET SESSION AUTHORIZATION;
-- tokens of the organization are not personal
SELECT verdict FROM apitoken.create_token('not personal', organization_id => 'acme') c, apitoken.verify(c.token);
-- the policy of the lifetime is about personal tokens in the organization, too
UPDATE apitoken.organizations SET allow_personal_tokens = true, require_expiry = true WHERE id = 'acme';
SELECT (apitoken.verify(:'token', NULL, 'acme')).verdict, (apitoken.verify(:'token', NULL, 'globex')).verdict AS globex, (apitoken.verify(:'token')).verdict AS own;
UPDATE apitoken.organizations SET require_expiry = false, max_lifetime = '1 year' WHERE id = 'acme';
SELECT (apitoken.verify(:'token', NULL, 'acme')).verdict, (SELECT (apitoken.verify(c.token, NULL, 'acme')).verdict FROM apitoken.create_token('short', user_id => 'ada', expires_in => '1 year') c) AS short;
-- whom it does not concern learns nothing of it
SELECT verdict FROM apitoken.create_token('t', user_id => 'gina') c, apitoken.verify(c.token, 'article:read', 'acme');
UPDATE apitoken.organizations SET max_lifetime = NULL WHERE id = 'acme';
SELECT (apitoken.verify(:'token', NULL, 'acme')).verdict;

--
-- Who may set a policy: members with organization:update, and the directory
--
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT who, c AS column, public.regress_as(who, pg_catalog.format('UPDATE apitoken.organizations SET %s', c)) AS answer
FROM pg_catalog.unnest('{ada,paul,dora,gina,nobody}'::text[]) who, pg_catalog.unnest(ARRAY[$$max_lifetime = '1 day'$$, $$name = 'Mine'$$]) c;
SELECT c AS column, public.regress_as('paul', pg_catalog.format('UPDATE apitoken.organizations SET %s WHERE id = %L', c, 'acme')) AS answer
FROM pg_catalog.unnest(ARRAY['require_expiry = true', 'max_tokens = 5', $$allowed_networks = '{10.0.0.0/8}'$$, 'default_role = NULL', 'allow_personal_tokens = false',
	$$notify = '{create,reuse}'$$, 'notify = NULL', 'revoke_on_reuse = true', 'suspended_at = NULL', 'idle_timeout = NULL', 'resumed_at = now()', 'created_at = now()', $$id = 'acme2'$$]) c;
SELECT public.regress_as('paul', $$UPDATE apitoken.organizations SET max_tokens = 1 WHERE id = 'globex'$$) AS elsewhere,
	public.regress_as('ada', $$UPDATE apitoken.organizations SET max_tokens = 1 WHERE id IN ('acme', 'globex') RETURNING id$$) AS own,
	public.regress_as('paul', $$INSERT INTO apitoken.organizations (id) VALUES ('new')$$) AS insert,
	public.regress_as('paul', $$DELETE FROM apitoken.organizations$$) AS delete,
	public.regress_as('paul', $$SELECT FROM apitoken.organizations WHERE id = 'acme' FOR UPDATE$$) AS lock,
	public.regress_as('paul', $$SELECT FROM apitoken.organizations WHERE id = 'globex' FOR UPDATE$$) AS lock_elsewhere,
	public.regress_as('dora', $$SELECT FROM apitoken.organizations FOR UPDATE$$) AS lock_without;
-- only a default role that the member could give
SELECT who, role, public.regress_as(who, pg_catalog.format('UPDATE apitoken.organizations SET default_role = %L WHERE id = %L', role, 'acme')) AS answer
FROM (VALUES ('ada', 'admin'), ('paul', 'policy'), ('paul', 'reader'), ('paul', 'admin'), ('paul', 'none')) t (who, role);
-- null is the role developer
RESET SESSION AUTHORIZATION;
UPDATE apitoken.organizations SET default_role = 'policy' WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT who, public.regress_as(who, $$UPDATE apitoken.organizations SET default_role = NULL WHERE id = 'acme'$$) AS answer FROM pg_catalog.unnest('{ada,paul}'::text[]) who;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.organizations SET default_role = NULL WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_app;
-- *:update is not organization:update
BEGIN;
SELECT apitoken.act_as('dora') AS me \gset
SELECT apitoken.can('article:update', 'acme'), apitoken.can('organization:update', 'acme'), apitoken.can('organization:read', 'acme');
COMMIT;
-- tokens: of the organization by their role, personal ones only by name
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT token AS admin FROM apitoken.create_token('by admin', organization_id => 'acme', role => 'admin') \gset
SELECT token AS developer FROM apitoken.create_token('by developer', organization_id => 'acme') \gset
SELECT token AS full FROM apitoken.create_token('by full') \gset
SELECT token AS read_only FROM apitoken.create_token('by read_only', organization_id => 'acme', role => 'admin', access => 'read_only') \gset
COMMIT;
RESET SESSION AUTHORIZATION;
CREATE FUNCTION public.regress_sets(token text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM apitoken.authenticate(token);
	RETURN public.regress_try('UPDATE apitoken.organizations SET max_tokens = 100');
END $$;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN; SELECT public.regress_sets(:'admin') AS admin; ROLLBACK;
BEGIN; SELECT public.regress_sets(:'developer') AS developer; ROLLBACK;
BEGIN; SELECT public.regress_sets(:'full') AS full; ROLLBACK;
BEGIN; SELECT public.regress_sets(:'custom') AS custom; ROLLBACK;
BEGIN; SELECT public.regress_sets(:'read_only') AS read_only; ROLLBACK;
-- without an identity
SELECT public.regress_try('UPDATE apitoken.organizations SET max_tokens = 100') AS anonymous;
RESET SESSION AUTHORIZATION;
-- nothing in a suspended organization
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_as('ada', 'UPDATE apitoken.organizations SET max_tokens = 100') AS suspended;
-- how many rows of others there are is not visible
RESET SESSION AUTHORIZATION;
UPDATE apitoken.organizations SET suspended_at = NULL WHERE id = 'acme';
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('paul') AS me \gset
-- the table is so small that a sequential scan would be as cheap
SET LOCAL enable_seqscan = off;
DO $$
DECLARE
	line text;
BEGIN
	FOR line IN EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) UPDATE apitoken.organizations SET max_tokens = 7 LOOP
		IF line ~ 'Removed|actual rows=[^0]' THEN
			-- 18 and later count parts of a row
			RAISE NOTICE '%', pg_catalog.regexp_replace(pg_catalog.btrim(line), '(rows=[0-9]+)\.00', '\1');
		END IF;
	END LOOP;
END $$;
ROLLBACK;
-- the directory sets all columns, everywhere, and any role
SET SESSION AUTHORIZATION regress_apitoken_sync;
SELECT public.regress_try($$UPDATE apitoken.organizations SET max_lifetime = '1 year', require_expiry = true, max_tokens = 10, allowed_networks = '{10.0.0.0/8}', default_role = 'admin', allow_personal_tokens = false$$) AS directory,
	public.regress_try($$INSERT INTO apitoken.organizations (id, default_role, allowed_networks) VALUES ('new', 'reader', '{::ffff:10.0.0.0/104}') RETURNING allowed_networks$$) AS insert,
	public.regress_try($$INSERT INTO apitoken.organizations (id, default_role) VALUES ('new2', 'none')$$) AS unknown_role,
	public.regress_try($$INSERT INTO apitoken.organizations (id, default_role) VALUES (NULL, 'reader')$$) AS no_id;
SELECT id, max_lifetime, require_expiry, max_tokens, allowed_networks, default_role, allow_personal_tokens FROM apitoken.organizations ORDER BY id;
-- values
SELECT c AS column, pg_catalog.split_part(public.regress_try(pg_catalog.format('UPDATE apitoken.organizations SET %s WHERE id = %L', c, 'acme')), ' | Failing row', 1) AS answer
FROM pg_catalog.unnest(ARRAY[$$max_lifetime = '59 seconds'$$, $$max_lifetime = '30'$$, $$max_lifetime = '-1 day'$$, $$max_lifetime = '101 years'$$, $$max_lifetime = '1 mon -29 days'$$, $$max_lifetime = '1 minute'$$,
	'require_expiry = NULL', 'max_tokens = -1', 'max_tokens = 1000001', 'max_tokens = 1000000', $$allowed_networks = '{}'$$, $$allowed_networks = '{NULL}'$$, $$allowed_networks = '{{10.0.0.0/8}}'$$,
	$$allowed_networks = pg_catalog.array_fill('10.0.0.0/8'::cidr, ARRAY[101])$$, $$default_role = ''$$, 'allow_personal_tokens = NULL']) c;
RESET SESSION AUTHORIZATION;

--
-- The audit: a policy that stops all tokens does not change unseen, and neither does
-- a suspension.  What the application keeps in its own tables leaves no event.
--
-- the events since the last look
CREATE TABLE public.regress_looked AS SELECT id FROM apitoken.events;
CREATE FUNCTION public.regress_news(OUT action text, OUT org text, OUT usr text, OUT actor text, OUT by_token boolean, OUT login name, OUT address inet, OUT details text) RETURNS SETOF record LANGUAGE sql SECURITY DEFINER AS $$
	WITH news AS (INSERT INTO public.regress_looked SELECT id FROM apitoken.events WHERE id NOT IN (SELECT id FROM public.regress_looked) RETURNING id)
	SELECT e.action, e.organization_id, e.user_id, e.actor, e.actor_token_id IS NOT NULL, e.database_user, e.client_address,
		pg_catalog.regexp_replace(e.details::text, '"\d{4}-\d\d-\d\dT[^"]*"', '"(time)"', 'g')
	FROM apitoken.events e JOIN news ON news.id = e.id WHERE e.token_id IS NULL ORDER BY e.id
$$;
UPDATE apitoken.organizations SET max_lifetime = NULL, require_expiry = false, max_tokens = NULL, allowed_networks = NULL, default_role = NULL, allow_personal_tokens = true WHERE id IN ('acme', 'globex');
SELECT pg_catalog.count(*) > 0 AS changed FROM public.regress_news();
-- who did it, from where, and what changed
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('paul') AS me \gset
SET LOCAL apitoken.client_address = '192.0.2.7';
UPDATE apitoken.organizations SET max_lifetime = '1 minute', allowed_networks = '{10.0.0.0/8}', notify = '{}';
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT action, org, usr, actor, by_token, address, details FROM public.regress_news();
SELECT (apitoken.create_token('keeper', 'globex', role => 'admin')).token AS keeper \gset
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT (apitoken.authenticate(:'keeper')).verdict;
UPDATE apitoken.organizations SET allow_personal_tokens = false;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT action, org, actor, by_token, login, details FROM public.regress_news();
-- each column; a suspension, alone and with a policy; users
SET SESSION AUTHORIZATION regress_apitoken_sync;
SET IntervalStyle = 'iso_8601';
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.organizations SET %s WHERE id = %L', c, 'acme')), pg_catalog.count(*)
FROM pg_catalog.unnest(ARRAY['max_lifetime = NULL', 'require_expiry = true', 'max_tokens = 5', 'allowed_networks = NULL', $$default_role = 'reader'$$, 'allow_personal_tokens = false',
	$$notify = '{create}'$$, 'revoke_on_reuse = true', $$on_leak = 'notify'$$, $$idle_timeout = '90 days'$$, $$name = 'Acme'$$, $$created_at = created_at - interval '1 day'$$, 'max_tokens = max_tokens',
	'suspended_at = now(), max_tokens = 6', $$suspended_at = now() - interval '1 day'$$, 'suspended_at = NULL']) c GROUP BY 1;
RESET IntervalStyle;
SELECT action, org, details FROM public.regress_news();
SELECT public.regress_try(pg_catalog.format('UPDATE apitoken.users SET %s WHERE id = %L', c, 'ada')), pg_catalog.count(*)
FROM pg_catalog.unnest(ARRAY['suspended_at = now()', 'suspended_at = NULL', $$name = 'Ada'$$, $$email = 'ada@acme.example'$$, $$groups = '{a}'$$, $$notify = '{}'$$]) c GROUP BY 1;
SELECT action, org, usr, details FROM public.regress_news();
-- INSERT ... ON CONFLICT, as the triggers of the application have it, and MERGE
INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme 2') ON CONFLICT (id) DO UPDATE SET name = excluded.name;
INSERT INTO apitoken.organizations (id, max_tokens) VALUES ('acme', 8) ON CONFLICT (id) DO UPDATE SET max_tokens = excluded.max_tokens;
SELECT action, org, details FROM public.regress_news();
-- one for each row, and none for what is rolled back or refused
UPDATE apitoken.organizations SET max_tokens = 9 WHERE id IN ('acme', 'globex');
BEGIN;
SAVEPOINT s;
UPDATE apitoken.organizations SET max_tokens = 10;
ROLLBACK TO s;
COMMIT;
SELECT action, org, details FROM public.regress_news() ORDER BY org;
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT public.regress_as('dora', 'UPDATE apitoken.organizations SET max_tokens = 11') AS without_permission, public.regress_as('paul', 'UPDATE apitoken.organizations SET max_tokens = -1') AS refused;
BEGIN READ ONLY;
SELECT public.regress_as('paul', 'UPDATE apitoken.organizations SET max_tokens = 11') AS read_only;
COMMIT;
-- objects in the way, an old snapshot
BEGIN ISOLATION LEVEL SERIALIZABLE;
CREATE TEMP TABLE events (LIKE apitoken.events);
CREATE FUNCTION pg_temp.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS $$SELECT '{}'::jsonb$$;
SET LOCAL search_path = pg_temp, pg_catalog;
SELECT apitoken.act_as('paul') AS me \gset
UPDATE apitoken.organizations SET max_tokens = 12;
SELECT pg_catalog.count(*) AS stolen FROM pg_temp.events;
DROP TABLE pg_temp.events;
DROP FUNCTION pg_temp.to_jsonb(anyelement);
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT action, org, actor, details FROM public.regress_news();
-- who sees them: who may see the tokens there, and who acted; of a user's suspension the user
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT w AS who, public.regress_as(w, $$SELECT FROM apitoken.events WHERE token_id IS NULL AND organization_id = 'acme'$$) AS acme,
	public.regress_as(w, $$SELECT FROM apitoken.events WHERE token_id IS NULL AND organization_id = 'globex'$$) AS globex,
	public.regress_as(w, $$SELECT FROM apitoken.events WHERE token_id IS NULL AND organization_id IS NULL$$) AS users,
	public.regress_as(w, $$SELECT FROM apitoken.events WHERE token_id IS NULL$$) AS all,
	public.regress_as(w, $$SELECT FROM (SELECT FROM apitoken.events WHERE action IN ('policy', 'suspend', 'resume') ORDER BY id DESC LIMIT 100) e$$) AS newest
FROM pg_catalog.unnest('{ada,mary,paul,dora,gina,nobody}'::text[]) w;
-- erasure: who acted, and who was suspended
SET SESSION AUTHORIZATION regress_apitoken_sync;
SELECT apitoken.forget_user('paul') AS paul, apitoken.forget_user('ada') AS ada;
RESET SESSION AUTHORIZATION;
SELECT pg_catalog.count(*) AS left_over FROM apitoken.events e WHERE e::text ~ '\mpaul\M|\mada\M|192\.0\.2\.7';
SELECT action, organization_id, user_id ~ '^forgotten-' AS of_forgotten, actor ~ '^forgotten-' AS by_forgotten, details FROM apitoken.events
WHERE token_id IS NULL AND action <> 'forget' AND (actor ~ '^forgotten-' OR user_id ~ '^forgotten-') ORDER BY id;
-- nothing is told, and nothing follows for whom triggers do not fire: replication has the events as well
SELECT pg_catalog.count(*) FROM apitoken.notifications;
SET session_replication_role = replica;
UPDATE apitoken.organizations SET max_tokens = 13;
RESET session_replication_role;
SELECT pg_catalog.count(*) FROM public.regress_news() WHERE action <> 'forget';
DROP FUNCTION public.regress_news();
DROP TABLE public.regress_looked;

DROP FUNCTION public.regress_as(text, text), public.regress_sets(text), public.regress_verdicts(inet), public.regress_where();
DROP TABLE public.regress_token;
\i :srcdir/test/regress_teardown.sql
