--
-- What lists show: the view tokens, list_tokens(), the view members.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;
\i :srcdir/test/regress_tenants.sql
SELECT apitoken.allow('regress_apitoken_app', 'verify');
INSERT INTO apitoken.organizations (id) VALUES ('initech');
UPDATE apitoken.organizations SET name = pg_catalog.initcap(id);
UPDATE apitoken.users SET name = 'Ada', email = 'ada@example.org' WHERE id = 'ada';
INSERT INTO apitoken.users (id, name, email) VALUES ('bob', 'Bob', 'bob@example.org'), ('gina', 'Gina', 'gina@example.org');
INSERT INTO apitoken.roles (name, permissions) VALUES ('editor', '{token:update,token:read,*:read,*:list,*:write,*:create,*:update,*:delete}');
INSERT INTO apitoken.memberships VALUES ('initech', 'ada', 'developer'), ('acme', 'bob', 'editor'), ('acme', 'nameless', 'developer');
-- one token of each state, with uses of each age
SELECT apitoken.create_token(l, 'acme', role => 'developer') IS NULL AS failed FROM pg_catalog.unnest('{active,expiring,expired,suspended,revoked,suspended and expired,revoked and suspended,suspended and expiring,never ends}'::text[]) l;
SELECT apitoken.create_token('other 100%', 'globex') IS NULL AS failed, apitoken.create_token('laptop', user_id => 'ada') IS NULL AS failed;
UPDATE apitoken.tokens SET expires_at = now() + '2 days 23 hours 59 minutes'::interval WHERE label LIKE '%expiring';
UPDATE apitoken.tokens SET expires_at = now() + '7 days 1 minute'::interval WHERE label = 'active';
UPDATE apitoken.tokens SET suspended_at = now() WHERE label LIKE '%suspended%';
SELECT apitoken.revoke_token(id, label, 'no longer needed') FROM apitoken.tokens WHERE label LIKE 'revoked%' ORDER BY label COLLATE "C";
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = now() - '1 second'::interval WHERE label LIKE '%expired';
UPDATE apitoken.token_usage SET last_used_at = now() - ago::interval, last_used_from = '192.0.2.1'
FROM apitoken_internal.token_records r JOIN (VALUES ('active', '10 seconds'), ('expiring', '80 seconds'), ('expired', '5 minutes 30 seconds'), ('suspended', '1 hour'), ('revoked', '47 hours 59 minutes'),
	('suspended and expired', '29 days 23 hours'), ('revoked and suspended', '60 days 1 hour'), ('suspended and expiring', '366 days')) u (label, ago) USING (label)
WHERE token_id = r.id AND organization_id = 'acme';
COMMIT;

--
-- Status and "last used" in words
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT label, status, last_used, last_used_from, last_used_at IS NULL AS unused, revoked_by, revoke_reason FROM apitoken.tokens ORDER BY label COLLATE "C";
COMMIT;
-- expiring: less than 7 days are left, or less than half of a short life, but no less than 3 days
RESET SESSION AUTHORIZATION;
BEGIN;
SET LOCAL session_replication_role = replica;
CREATE FUNCTION pg_temp.status_with(life interval, rest interval) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	UPDATE apitoken_internal.token_records SET created_at = now() + rest - life, expires_at = now() + rest WHERE label = 'laptop';
	RETURN (SELECT status FROM apitoken.tokens WHERE label = 'laptop');
END $$;
SELECT life, rest, pg_temp.status_with(life::interval, rest::interval) AS status
FROM (VALUES ('90 days', '7 days 1 minute'), ('90 days', '6 days 23:59'), ('10 days', '5 days 00:01'), ('10 days', '4 days 23:59'),
	('7 days', '7 days'), ('5 days', '3 days 00:01'), ('5 days', '2 days 23:59'), ('1 day', '1 day')) v (life, rest);
ROLLBACK;
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT ago, apitoken_internal.in_words(statement_timestamp() - ago::interval)
FROM pg_catalog.unnest('{0,0.9 seconds,59 seconds,1 minute,119 seconds,59 minutes,1 hour,23 hours,24 hours,48 hours,720 hours,1440 hours,8760 hours,17520 hours,876000 hours,-1 second,-10 days}'::text[]) ago;
SELECT apitoken_internal.in_words(NULL), apitoken_internal.in_words('infinity'), apitoken_internal.in_words('-infinity');

--
-- SELECT *, count(*), aliases, UPDATE ... RETURNING *, as a member; nothing as somebody else
--
BEGIN;
SELECT apitoken.act_as('bob') AS me \gset
SELECT count(*) FROM apitoken.tokens;
SELECT count(*), count(DISTINCT t.masked) FROM (SELECT * FROM apitoken.tokens) t;
SELECT count("tokens".*) FROM apitoken.tokens;
SELECT pg_catalog.count(*) FROM (SELECT "apitoken"."tokens".* FROM "apitoken"."tokens" WHERE "apitoken"."tokens"."status" = 'active' LIMIT 1 OFFSET 0) t;
WITH changed AS (UPDATE apitoken.tokens SET description = 'changed' WHERE label = 'active' RETURNING *)
SELECT label, description, status, last_used, organization_id, updated_at > created_at AS later FROM changed;
WITH changed AS (UPDATE apitoken.tokens SET description = NULL WHERE label = 'active' RETURNING "tokens".*)
SELECT label, description, status, last_used FROM changed;
SELECT count(*) FROM apitoken.tokens WHERE organization_id = 'globex' OR user_id = 'ada';
-- the table beneath: its columns one by one, but not all of them
SELECT count(*) FROM apitoken_internal.token_records;
SELECT public.regress_try('SELECT * FROM apitoken_internal.token_records') AS whole, public.regress_try('SELECT digest FROM apitoken_internal.token_records') AS digest,
	public.regress_try('SELECT previous_digest FROM apitoken_internal.token_records') AS previous, public.regress_try('SELECT previous_digest_scheme FROM apitoken_internal.token_records') AS scheme, public.regress_try('SELECT r FROM apitoken_internal.token_records r') AS row;
SELECT public.regress_try('SELECT * FROM apitoken.tokens FOR UPDATE') AS lock;
-- usage follows the tokens
SELECT count(*) FROM apitoken.token_usage;
COMMIT;
SELECT count(*) AS anonymous FROM apitoken.tokens;
\set VERBOSITY sqlstate
\copy apitoken_internal.token_records to '/dev/null'
\set VERBOSITY default
BEGIN;
SELECT apitoken.act_as('nameless') AS me \gset
SELECT count(*) AS developer, (SELECT count(*) FROM apitoken.token_usage) AS usage FROM apitoken.tokens;
COMMIT;

--
-- list_tokens
--
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
-- newest first, all that one may see; the same columns as the view
SELECT count(*) FROM apitoken.list_tokens();
SELECT count(*) FROM (TABLE apitoken.tokens EXCEPT ALL SELECT * FROM apitoken.list_tokens(page_size => 1000)) d;
SELECT label FROM apitoken.list_tokens(organization_id => 'acme', page_size => 2);
SELECT label FROM apitoken.list_tokens(organization_id => 'globex');
SELECT label FROM apitoken.list_tokens(organization_id => '');
-- by status
SELECT s AS status, (SELECT pg_catalog.string_agg(label, ', ' ORDER BY label COLLATE "C") FROM apitoken.list_tokens(status => s)) AS labels FROM pg_catalog.unnest('{active,expiring,expired,suspended,revoked}'::text[]) s;
SELECT public.regress_try($$SELECT * FROM apitoken.list_tokens(status => 'Active')$$) AS wrong, public.regress_try($$SELECT * FROM apitoken.list_tokens(status => '')$$) AS empty;
-- also when no row has a status to compare
SELECT public.regress_try($$SELECT * FROM apitoken.list_tokens(organization_id => 'nowhere', status => 'Active')$$) AS wrong;
-- by label: "contains", case-insensitive, with _ and \ taken literally; with %, a pattern
INSERT INTO apitoken.tokens (label) VALUES ('CI_build'), ('CIxbuild'), ('back\slash'), ('100% sure'), ('a_%b');
SELECT l AS label, (SELECT pg_catalog.string_agg(label, ', ' ORDER BY label COLLATE "C") FROM apitoken.list_tokens(l)) AS found
FROM pg_catalog.unnest(ARRAY['expir', 'EXPIR', 'ci_b', '_', '', '\', 'k\s', 'ci%', 'CI_b%', '%b', '%', '%100\%%', 'a\_\%b', 'no such']) l;
-- a pattern that ends in its escape is refused
SELECT l AS label, public.regress_try(pg_catalog.format('SELECT * FROM apitoken.list_tokens(%L)', l)) AS answer
FROM pg_catalog.unnest(ARRAY['%\', '\%\', '%\\\', '%\\']) l;
SELECT public.regress_try($$SELECT * FROM apitoken.list_tokens($q$'; DROP TABLE apitoken.tokens; --$q$)$$) AS injected;
-- together
SELECT label, status FROM apitoken.list_tokens('expir', 'acme', 'suspended');
-- NULL is "all", a page has 1 to 1000 rows
SELECT count(*) FROM apitoken.list_tokens(NULL, NULL, NULL, NULL, 1000);
SELECT n AS page_size, public.regress_try(pg_catalog.format('SELECT * FROM apitoken.list_tokens(page_size => %L)', n)) AS answer FROM pg_catalog.unnest('{1,1000,0,-1,1001,NULL,2147483647}'::int[]) n;
ROLLBACK;
-- the default page is 50; all pages together are all rows, in order, also where many were made at once
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'page ' || pg_catalog.to_char(i, 'FM000'), 'initech' FROM pg_catalog.generate_series(1, 120) i;
SET SESSION AUTHORIZATION regress_apitoken_app;
CREATE FUNCTION pg_temp.pages(label text, organization_id text, page_size integer, OUT pages integer, OUT rows integer, OUT ordered boolean, OUT same boolean) LANGUAGE plpgsql AS $$
DECLARE
	seen uuid[] := '{}';
	page uuid[];
BEGIN
	pages := 0;
	LOOP
		page := ARRAY(SELECT id FROM apitoken.list_tokens(pages.label, pages.organization_id, before_id => seen[cardinality(seen)], page_size => pages.page_size));
		EXIT WHEN page = '{}';
		seen := seen || page;
		pages := pages.pages + 1;
	END LOOP;
	rows := cardinality(seen);
	ordered := seen = ARRAY(SELECT t.id FROM apitoken.tokens t WHERE t.id = ANY (seen) ORDER BY t.created_at DESC, t.id DESC);
	same := (SELECT pg_catalog.count(DISTINCT s) FROM pg_catalog.unnest(seen) s) = rows;
END $$;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT count(*) AS not_readable FROM apitoken.list_tokens(organization_id => 'initech');
COMMIT;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.memberships SET role = 'editor' WHERE organization_id = 'initech';
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT count(*) FROM apitoken.list_tokens();
SELECT count(*), count(DISTINCT created_at) AS instants FROM apitoken.tokens WHERE organization_id = 'initech';
SELECT n AS page_size, p.* FROM pg_catalog.unnest('{1,7,50,60,120,1000}'::int[]) n, pg_temp.pages(NULL, 'initech', n) p;
SELECT p.* FROM pg_temp.pages('page 0', NULL, 10) p;
SELECT pages > 1 AS many, rows = (SELECT count(*) FROM apitoken.tokens) AS whole, ordered, same FROM pg_temp.pages(NULL, NULL, 13);
-- before_id of a token that does not exist or is not visible: no rows in both cases
SELECT count(*) FROM apitoken.list_tokens(before_id => gen_random_uuid());
RESET SESSION AUTHORIZATION;
SELECT id AS globex_id FROM apitoken.tokens WHERE organization_id = 'globex' \gset
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT count(*) FROM apitoken.list_tokens(before_id => :'globex_id');
COMMIT;
-- a wrong status or page size is an error also where there is nothing to list
BEGIN;
SELECT apitoken.act_as('nobody') AS me \gset
SELECT count(*) FROM apitoken.list_tokens();
PREPARE listed(text, int) AS SELECT count(*) FROM apitoken.list_tokens(status => $1, page_size => $2);
SELECT public.regress_try(pg_catalog.format('EXECUTE listed(%L, %L)', s, n)) AS answer FROM (VALUES ('active', 1), ('Active', 1), ('active', 0), (NULL, 50)) v (s, n);
SET LOCAL plan_cache_mode = force_generic_plan;
SELECT public.regress_try(pg_catalog.format('EXECUTE listed(%L, %L)', s, n)) AS answer FROM (VALUES ('active', 1), ('active', 0), (NULL, 50)) v (s, n);
DEALLOCATE listed;
COMMIT;

--
-- A member's list of one organization comes in order from the owner's index,
-- without a sort, however many other tokens there are
--
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.organizations (id) SELECT 'many ' || i FROM pg_catalog.generate_series(1, 20) i;
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'more ' || i, 'initech' FROM pg_catalog.generate_series(1, 3000) i;
INSERT INTO apitoken.tokens (label, organization_id) SELECT 'of many ' || i, 'many ' || i % 20 + 1 FROM pg_catalog.generate_series(1, 4000) i;
ANALYZE apitoken_internal.token_records, apitoken.memberships, apitoken.organizations;
CREATE FUNCTION pg_temp.uses(query text, index_name text, OUT uses boolean, OUT sorts boolean, OUT scans_all boolean) LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	uses := false; sorts := false; scans_all := false;
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
		uses := uses OR pg_catalog.strpos(line, index_name) > 0;
		-- not the previous secrets of one token
		sorts := sorts OR line ~ 'Sort Key: .*created_at';
		scans_all := scans_all OR line LIKE '%Seq Scan on token_records%';
	END LOOP;
END $$;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada') AS me \gset
SELECT (pg_temp.uses($$SELECT * FROM apitoken.list_tokens(organization_id => 'initech')$$, 'token_records_organization_id_idx')).*;
SELECT uses, scans_all FROM pg_temp.uses($$SELECT * FROM apitoken.list_tokens('page', 'initech', page_size => 10)$$, 'token_records_organization_id_idx');
SELECT (pg_temp.uses($$SELECT * FROM apitoken.tokens WHERE organization_id = 'initech' ORDER BY created_at DESC, id DESC LIMIT 10$$, 'token_records_organization_id_idx')).*;
-- the same for drivers' prepared statements, also after the fifth execution
PREPARE listed(text) AS SELECT id FROM apitoken.list_tokens(organization_id => $1, page_size => 10);
DO $$ BEGIN FOR i IN 1..8 LOOP EXECUTE 'EXECUTE listed(''initech'')'; END LOOP; END $$;
SELECT (pg_temp.uses($$EXECUTE listed('initech')$$, 'token_records_organization_id_idx')).*;
DEALLOCATE listed;
COMMIT;

--
-- members: what co-members may know of each other, never the address
--
BEGIN;
SELECT apitoken.act_as('bob') AS me \gset
SELECT * FROM apitoken.members ORDER BY 1, 2;
SELECT id, name FROM apitoken.users;
SAVEPOINT s;
SELECT email FROM apitoken.users;
ROLLBACK TO s;
-- a function that would print what it is given sees no other rows than these
CREATE FUNCTION pg_temp.spy(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE INFO 'saw % %', $1, $2; RETURN false; END $$;
SELECT * FROM apitoken.members WHERE pg_temp.spy(organization_id, user_id) AND organization_id = 'acme' AND user_id = 'ada';
SELECT public.regress_try($$UPDATE apitoken.members SET role = 'admin'$$) AS update, public.regress_try($$DELETE FROM apitoken.members$$) AS delete;
SELECT count(*) FROM apitoken.memberships WHERE organization_id = 'globex';
COMMIT;
SELECT count(*) AS anonymous FROM apitoken.members;

RESET SESSION AUTHORIZATION;
-- a superuser sees every token, as always in PostgreSQL
SELECT count(*) = (SELECT count(*) FROM apitoken_internal.token_records) AS all FROM apitoken.tokens;
DROP FUNCTION pg_temp.uses(text, text), pg_temp.spy(text, text), pg_temp.pages(text, text, integer);
\i :srcdir/test/regress_teardown.sql
