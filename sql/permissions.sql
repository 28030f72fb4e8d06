--
-- The catalog of permissions: optional, and a misspelled permission is refused
-- while it has rows.
--
\set SHOW_CONTEXT never
\set VERBOSITY default
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_page LOGIN;
CREATE ROLE regress_apitoken_keeper LOGIN;
CREATE ROLE regress_apitoken_writer LOGIN;
CREATE ROLE regress_apitoken_nobody LOGIN;
SELECT apitoken.allow('regress_apitoken_page', 'manage', 'act', 'use');
SELECT apitoken.allow('regress_apitoken_keeper', 'directory');
GRANT pg_write_all_data TO regress_apitoken_writer;

-- without rows, every well-formed permission is accepted
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('typo', 'acme', permissions => '{artcle:raed}');
INSERT INTO apitoken.roles (name, permissions) VALUES ('typo', '{artcle:raed}');

-- the directory fills it
SET SESSION AUTHORIZATION regress_apitoken_keeper;
INSERT INTO apitoken.permissions (name, description) VALUES ('article:read', 'Read articles'), ('article:write', NULL), ('invoice:read', 'Read invoices');
INSERT INTO apitoken.permissions (name) VALUES ('mistake:read');
UPDATE apitoken.permissions SET name = 'report.v2:export' WHERE name = 'mistake:read';
SELECT * FROM apitoken.permissions ORDER BY name;
SELECT public.regress_try($$INSERT INTO apitoken.permissions (name) VALUES ('article:read')$$);
SELECT public.regress_try($$INSERT INTO apitoken.permissions (name, resource) VALUES ('a:b', 'c')$$);
SELECT public.regress_try(pg_catalog.format('INSERT INTO apitoken.permissions (name) VALUES (%L)', name))
	FROM pg_catalog.unnest(ARRAY['article', '*', 'article:*', '*:read', '', ':', 'a b:read', E'article:read\n', 'a:b:c', pg_catalog.repeat('x', 65) || ':read', NULL]) name;
-- a big text is refused, and not repeated
SELECT pg_catalog.length(public.regress_try(pg_catalog.format('INSERT INTO apitoken.permissions (name) VALUES (%L)', pg_catalog.repeat('x', 1000000)))) < 1000 AS short;
RESET SESSION AUTHORIZATION;

-- nobody else writes it, and only those who manage tokens read it
SET SESSION AUTHORIZATION regress_apitoken_page;
SELECT pg_catalog.count(*) FROM apitoken.permissions;
SELECT public.regress_try(statement) FROM pg_catalog.unnest(ARRAY[
	$$INSERT INTO apitoken.permissions (name) VALUES ('own:read')$$, $$DELETE FROM apitoken.permissions$$,
	$$UPDATE apitoken.permissions SET description = 'x'$$, $$TRUNCATE apitoken.permissions$$,
	$$SELECT apitoken_internal.check_permission('a:b')$$]) statement;
BEGIN;
SELECT apitoken.act_as('ada');
SELECT pg_catalog.count(*) FROM apitoken.permissions;
SELECT public.regress_try($$DELETE FROM apitoken.permissions$$);
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_nobody;
SELECT public.regress_try($$SELECT name FROM apitoken.permissions$$);
-- pg_write_all_data is not the directory
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_apitoken_writer;
SELECT public.regress_try($$INSERT INTO apitoken.permissions (name) VALUES ('own:read')$$);
SELECT public.regress_try($$DELETE FROM apitoken.permissions$$);
RESET SESSION AUTHORIZATION;
SELECT pg_catalog.count(*) FROM apitoken.permissions;

-- what matches none is refused, with the nearest
CREATE VIEW public.regress_refused AS
	SELECT p, public.regress_try(pg_catalog.format('SELECT masked IS NOT NULL FROM apitoken.create_token(%L, %L, permissions => %L)', 't ' || p, 'acme', ARRAY['article:read', p])) AS result
	FROM pg_catalog.unnest(ARRAY['article:read', 'article:*', '*:read', '*', '*:*', 'report.v2:export',
		'token:read', 'token:*', 'token:rotate', 'organization:update', 'organization:*',
		'artcle:read', 'article:raed', 'articles:*', '*:raed', '*:delete', 'Article:Read', 'token:reed', 'zzzzzzzz:qqqqqqqq', 'invoice:write',
		'organization:delete']) p;
SELECT * FROM public.regress_refused;
-- also for who acts, over PostgREST, and for personal tokens
SET SESSION AUTHORIZATION regress_apitoken_page;
BEGIN;
SELECT apitoken.act_as('ada');
SELECT public.regress_try($$SELECT masked IS NOT NULL FROM apitoken.create_token('p', permissions => '{artcle:read}')$$);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id, permissions) VALUES ('p', 'acme', '{zzzz:q}')$$);
SELECT pg_catalog.set_config('request.method', 'POST', true);
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label, organization_id, permissions) VALUES ('p', 'acme', '{zzzz:q}')$$);
SELECT public.regress_try($$SELECT masked IS NOT NULL FROM apitoken.create_token('p', permissions => '{article:read}')$$);
COMMIT;
RESET SESSION AUTHORIZATION;

-- an edit that leaves the permissions alone is not refused, and one that changes them is checked
SELECT public.regress_try($$UPDATE apitoken.tokens SET description = 'x' WHERE label = 'typo'$$);
SELECT public.regress_try($$UPDATE apitoken.tokens SET permissions = '{artcle:raed,article:read}' WHERE label = 'typo'$$);
SELECT public.regress_try($$UPDATE apitoken.tokens SET permissions = '{article:read}' WHERE label = 'typo'$$);
SELECT public.regress_try($$SELECT masked IS NOT NULL FROM apitoken.regenerate_token((SELECT id FROM apitoken.tokens WHERE label = 'typo'))$$);

-- roles: refused for the directory, a warning for the owner, because a restore must not fail
SET SESSION AUTHORIZATION regress_apitoken_keeper;
SELECT public.regress_try($$INSERT INTO apitoken.roles (name, permissions) VALUES ('r1', '{article:raed}')$$);
SELECT public.regress_try($$INSERT INTO apitoken.roles (name, permissions) VALUES ('r1', '{article:*,*:read}')$$);
SELECT public.regress_try($$UPDATE apitoken.roles SET permissions = '{article:write,artcle:read}' WHERE name = 'r1'$$);
SELECT public.regress_try($$UPDATE apitoken.roles SET description = 'still misspelled' WHERE name = 'typo'$$);
-- the built-in roles have actions that no catalog needs
SELECT public.regress_try($$UPDATE apitoken.roles SET description = 'All but tokens' WHERE name = 'developer'$$);
SELECT public.regress_try($$UPDATE apitoken.roles SET permissions = '{article:raed}' WHERE name = 'developer'$$);
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.roles (name, permissions) VALUES ('r2', '{article:raed}');
INSERT INTO apitoken_internal.role_records (name, permissions) VALUES ('r2', '{invoice:raed}');
SELECT name, permissions FROM apitoken.roles WHERE name IN ('r1', 'r2') ORDER BY name;

-- decisions do not read it
SELECT token AS secret FROM apitoken.create_token('deciding', 'acme', permissions => '{invoice:read}') \gset
DELETE FROM apitoken.permissions WHERE name = 'invoice:read';
SELECT valid, verdict FROM apitoken.verify(:'secret', 'invoice:read');
SELECT valid, verdict FROM apitoken.verify(:'secret', 'never:heard');

-- in a READ ONLY transaction it can be read
BEGIN READ ONLY;
SELECT pg_catalog.count(*) FROM apitoken.permissions;
COMMIT;

-- a hostile search_path changes nothing
CREATE SCHEMA regress_apitoken_hostile;
CREATE TABLE regress_apitoken_hostile.permissions (name text);
INSERT INTO regress_apitoken_hostile.permissions VALUES ('own:read');
SET search_path = regress_apitoken_hostile, pg_catalog, public;
SELECT public.regress_try($$SELECT masked IS NOT NULL FROM apitoken.create_token('p2', 'acme', permissions => '{own:read}')$$);
RESET search_path;
DROP SCHEMA regress_apitoken_hostile CASCADE;

-- who does not want it; only a superuser may say so
SET SESSION AUTHORIZATION regress_apitoken_page;
SELECT public.regress_try($$SET apitoken.allow_unknown_permissions = on$$);
RESET SESSION AUTHORIZATION;
SET apitoken.allow_unknown_permissions = on;
SELECT public.regress_try($$SELECT masked IS NOT NULL FROM apitoken.create_token('p3', 'acme', permissions => '{artcle:read}')$$);
SELECT public.regress_try($$SELECT masked IS NOT NULL FROM apitoken.create_token('p4', 'acme', permissions => '{artcle}')$$);
RESET apitoken.allow_unknown_permissions;

-- a big catalog is not read for permissions that are in it
INSERT INTO apitoken.permissions (name) SELECT 'big.' || i || ':read' FROM pg_catalog.generate_series(1, 10000) i;
ANALYZE apitoken.permissions;
CREATE FUNCTION public.regress_reads(permissions text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	reads bigint := 0;
BEGIN
	FOR i IN 1 .. 2 LOOP
		SELECT pg_catalog.sum(pg_catalog.pg_stat_get_xact_tuples_returned(oid)) - reads INTO reads FROM pg_catalog.pg_class
			WHERE oid IN ('apitoken.permissions'::pg_catalog.regclass, 'apitoken.permissions_pkey'::pg_catalog.regclass);
		IF i = 1 THEN
			PERFORM apitoken.create_token('big ' || permissions, 'acme', permissions => permissions::text[]);
		END IF;
	END LOOP;
	RETURN reads > 1000;
END $$;
BEGIN;
SELECT public.regress_reads('{article:read,big.77:read,big.9999:read}') AS all_read;
SELECT public.regress_reads('{big.77:*}') AS all_read;
ROLLBACK;
SELECT public.regress_try($$SELECT masked IS NOT NULL FROM apitoken.create_token('p5', 'acme', permissions => '{article:read,big.77:raed}')$$);
DROP FUNCTION public.regress_reads(text);

DROP VIEW public.regress_refused;
\i :srcdir/test/regress_teardown.sql
