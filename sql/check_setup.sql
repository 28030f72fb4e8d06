--
-- check_setup(): for each subject the situation, its row, and that the row is gone
-- once the hint has been run.  test/t/038_check_setup.pl tests what needs other
-- settings of a server or a standby.
--
\set VERBOSITY terse
\pset format unaligned
\pset tuples_only on
\pset null '(null)'
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS apitoken CASCADE;
CREATE EXTENSION apitoken;
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_try.sql

-- what a subject has
CREATE FUNCTION public.regress_check(of text) RETURNS TABLE (level text, message text, hint text) LANGUAGE sql AS $$
	SELECT level, message, hint FROM apitoken.check_setup() WHERE subject = of ORDER BY level, message COLLATE "C"
$$;
-- the hints of a subject, to be run
CREATE FUNCTION public.regress_hints(of text) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT hint FROM apitoken.check_setup() WHERE subject = of AND level <> 'ok' ORDER BY message COLLATE "C"
$$;

-- each subject has its rows, in this order; a finding has a hint
SELECT subject, pg_catalog.bool_and(message <> '' AND level IN ('ok', 'notice', 'warning', 'error') AND (level = 'ok') = (hint IS NULL)) AS complete
FROM apitoken.check_setup() WITH ORDINALITY GROUP BY subject ORDER BY pg_catalog.min(ordinality);

--
-- Who may call it
--
SELECT CURRENT_USER AS superuser \gset
CREATE ROLE regress_apitoken_stranger LOGIN;
CREATE ROLE regress_apitoken_monitor LOGIN;
CREATE ROLE regress_apitoken_all LOGIN;
CREATE ROLE regress_apitoken_reader LOGIN;
CREATE ROLE regress_apitoken_bypass LOGIN BYPASSRLS;
GRANT pg_read_all_data TO regress_apitoken_reader;
SELECT apitoken.allow('regress_apitoken_monitor', 'monitor');
SELECT apitoken.allow('regress_apitoken_reader', 'monitor');
SELECT apitoken.allow('regress_apitoken_bypass', 'monitor');
SELECT apitoken.allow('regress_apitoken_all', 'use', 'manage', 'verify', 'act', 'directory');
INSERT INTO apitoken.organizations (id, name) VALUES ('tenant-1', 'Tenant 1'), ('tenant-2', 'Tenant 2');
INSERT INTO apitoken.memberships VALUES ('tenant-1', 'alice', 'admin');
SELECT pg_catalog.count(token) FROM apitoken.create_token('label-1', organization_id => 'tenant-1');
SELECT pg_catalog.count(token) FROM apitoken.create_token('label-2', user_id => 'alice', expires_in => '1 day');
CREATE FUNCTION public.regress_as(database_role name, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	outcome text;
BEGIN
	PERFORM pg_catalog.set_config('role', database_role, true);
	outcome := public.regress_try(statement);
	PERFORM pg_catalog.set_config('role', 'none', true);
	RETURN outcome;
END
$$;
SELECT r, pg_catalog.regexp_replace(public.regress_as(r, 'SELECT apitoken.check_setup()'), '\d+\)', 'n)')
FROM pg_catalog.unnest('{regress_apitoken_stranger,regress_apitoken_all,regress_apitoken_monitor}'::name[]) r;
-- the parts beneath cannot be called by name
SELECT public.regress_as('regress_apitoken_monitor', s)
FROM pg_catalog.unnest('{SELECT apitoken_internal.read_setup(),SELECT apitoken_internal.count_tokens()}'::text[]) s;
-- what a role cannot see is a notice, also for roles that may read the table but not all of its rows
SET ROLE regress_apitoken_monitor;
SELECT level, message, pg_catalog.replace(hint, pg_catalog.quote_ident(:'superuser'), '(owner)') FROM public.regress_check('tokens');
SELECT level, message, pg_catalog.replace(hint, pg_catalog.quote_ident(:'superuser'), '(owner)') FROM public.regress_check('peppers') WHERE message ~ 'may not';
SELECT c.message FROM public.regress_check('preload') c WHERE message !~ 'this role may not see the order' AND message !~ 'is not in shared_preload_libraries';
SET ROLE regress_apitoken_bypass;
SELECT message FROM public.regress_check('tokens');
SET ROLE regress_apitoken_reader;
SELECT message FROM public.regress_check('tokens');
RESET ROLE;
GRANT regress_apitoken_reader TO regress_apitoken_bypass;
SET ROLE regress_apitoken_bypass;
SELECT message FROM public.regress_check('tokens');
-- no role learns a value of a tenant, or part of a token
RESET ROLE;
SELECT r, pg_catalog.count(*) > 10 AS rows, pg_catalog.count(*) FILTER (WHERE row ~* 'tenant|label-|alice|apt_') AS telling
FROM pg_catalog.unnest('{regress_apitoken_monitor,regress_apitoken_reader,none}'::name[]) r,
	LATERAL pg_catalog.set_config('role', r, true) s, LATERAL (SELECT s, c::text AS row FROM apitoken.check_setup() c) c
GROUP BY r ORDER BY r;
-- an owner who is no superuser sees the tokens
CREATE ROLE regress_apitoken_owner LOGIN;
CREATE PROCEDURE public.regress_give(new_owner name) LANGUAGE plpgsql AS $$
DECLARE
	t regclass;
BEGIN
	FOR t IN SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND c.relkind = 'r' LOOP
		EXECUTE pg_catalog.format('ALTER TABLE %s OWNER TO %I', t, new_owner);
	END LOOP;
END
$$;
CALL public.regress_give('regress_apitoken_owner');
GRANT USAGE ON SCHEMA apitoken, apitoken_internal TO regress_apitoken_owner;
SELECT apitoken.allow('regress_apitoken_owner', 'monitor');
SET ROLE regress_apitoken_owner;
SELECT c.* FROM public.regress_check('tokens') c;
RESET ROLE;

--
-- capabilities
--
-- the owner of the extension's tables, and a member of it
SELECT apitoken.allow('regress_apitoken_owner', 'act', 'verify');
CREATE ROLE regress_apitoken_login LOGIN;
SELECT apitoken.allow('regress_apitoken_login', 'use');
GRANT regress_apitoken_owner TO regress_apitoken_login;
SELECT c.* FROM public.regress_check('capabilities') c;
SELECT public.regress_hints('capabilities') \gexec
SELECT c.* FROM public.regress_check('capabilities') c;
CALL public.regress_give(:'superuser');
REVOKE USAGE ON SCHEMA apitoken, apitoken_internal FROM regress_apitoken_owner;
SELECT apitoken.disallow('regress_apitoken_owner', 'monitor');
DROP ROLE regress_apitoken_owner;
-- a superuser, and BYPASSRLS; monitor alone does not matter
SELECT apitoken.allow('regress_apitoken_bypass', 'verify');
ALTER ROLE regress_apitoken_monitor SUPERUSER;
ALTER ROLE regress_apitoken_login SUPERUSER;
SELECT c.* FROM public.regress_check('capabilities') c WHERE level <> 'ok';
SELECT public.regress_hints('capabilities') \gexec
SELECT c.* FROM public.regress_check('capabilities') c WHERE level <> 'ok';
ALTER ROLE regress_apitoken_monitor NOSUPERUSER;
-- the role that initdb made remains a superuser
SELECT oid::regrole::name AS initdb FROM pg_catalog.pg_roles WHERE oid = 10 \gset
SELECT apitoken.allow(:'initdb', 'verify');
SELECT pg_catalog.replace(message, pg_catalog.quote_ident(:'initdb'), '(initdb)'), pg_catalog.replace(hint, pg_catalog.quote_literal(:'initdb'), '(initdb)')
FROM public.regress_check('capabilities') WHERE level <> 'ok';
SET client_min_messages = error;
SELECT hint AS mend FROM public.regress_check('capabilities') WHERE level <> 'ok' \gset
:mend
SET client_min_messages = warning;
SELECT pg_catalog.count(*) FROM public.regress_check('capabilities') WHERE level <> 'ok';
-- act on a role that runs clients' SQL: granted by allow(), by GRANT, and inherited
CREATE ROLE regress_apitoken_web;
CREATE ROLE "regress_apitoken Web 2";
CREATE ROLE regress_apitoken_web3;
UPDATE apitoken.roles SET database_role = 'regress_apitoken_web' WHERE name = 'admin';
UPDATE apitoken.roles SET database_role = 'regress_apitoken Web 2' WHERE name = 'developer';
INSERT INTO apitoken.roles (name, permissions, database_role) VALUES ('reader', '{*:read}', 'regress_apitoken_web3'), ('writer', '{*:*}', 'regress_apitoken_web3');
SELECT apitoken.allow('regress_apitoken_web', 'act');
GRANT EXECUTE ON FUNCTION apitoken.act_as(apitoken.id) TO "regress_apitoken Web 2";
GRANT regress_apitoken_all TO regress_apitoken_web3;
SELECT c.* FROM public.regress_check('capabilities') c;
SELECT public.regress_hints('capabilities') \gexec
SELECT c.* FROM public.regress_check('capabilities') c WHERE level <> 'ok';
DELETE FROM apitoken.roles WHERE database_role = 'regress_apitoken_web3';
UPDATE apitoken.roles SET database_role = NULL;
-- a name that needs quotes, in a string; a membership that another role granted
CREATE ROLE regress_apitoken_grantor;
GRANT regress_apitoken_all TO regress_apitoken_grantor WITH ADMIN OPTION;
GRANT regress_apitoken_all TO regress_apitoken_web GRANTED BY regress_apitoken_grantor;
SELECT apitoken.allow('regress_apitoken Web 2', 'act');
UPDATE apitoken.roles SET database_role = 'regress_apitoken Web 2' WHERE name = 'developer';
UPDATE apitoken.roles SET database_role = 'regress_apitoken_web' WHERE name = 'admin';
SELECT message, pg_catalog.replace(hint, ' GRANTED BY regress_apitoken_grantor', '') FROM public.regress_check('capabilities') WHERE level <> 'ok';
\set ECHO none
SELECT public.regress_hints('capabilities') \gexec
\set ECHO all
SELECT c.* FROM public.regress_check('capabilities') c WHERE level <> 'ok';
UPDATE apitoken.roles SET database_role = NULL;
DROP ROLE regress_apitoken_web, "regress_apitoken Web 2", regress_apitoken_web3, regress_apitoken_grantor;
-- a role that does not inherit from the owner of the tables, but may become it, itself or through another role
CREATE ROLE regress_apitoken_owner;
CALL public.regress_give('regress_apitoken_owner');
CREATE ROLE regress_apitoken_deputy NOINHERIT;
GRANT regress_apitoken_owner TO regress_apitoken_deputy;
GRANT regress_apitoken_deputy TO regress_apitoken_login;
SELECT c.* FROM public.regress_check('capabilities') c WHERE level <> 'ok';
SELECT public.regress_hints('capabilities') \gexec
SELECT c.* FROM public.regress_check('capabilities') c WHERE level <> 'ok';
CALL public.regress_give(:'superuser');
DROP ROLE regress_apitoken_owner, regress_apitoken_deputy;

--
-- logs: logins whose parameters are logged.  The last of these wins: a value for all
-- roles, for the database, for the role, for both
--
SELECT message, hint FROM public.regress_check('logs') WHERE message ~ 'login';
SELECT public.regress_hints('logs') \gexec
SELECT message, hint FROM public.regress_check('logs') WHERE message ~ 'login';
ALTER ROLE regress_apitoken_all SET log_parameter_max_length_on_error = '1kB';
ALTER ROLE regress_apitoken_bypass IN DATABASE :"DBNAME" SET log_parameter_max_length = -1;
SELECT message, hint FROM public.regress_check('logs') WHERE message ~ 'login';
ALTER ROLE regress_apitoken_all SET log_parameter_max_length_on_error = '0 kB';
ALTER ROLE regress_apitoken_bypass IN DATABASE :"DBNAME" SET log_parameter_max_length = 0;
ALTER ROLE regress_apitoken_bypass SET log_parameter_max_length = -1;
SELECT message, hint FROM public.regress_check('logs') WHERE message ~ 'login';
SET apitoken.mask_logs = off;
-- where the library is preloaded, the comment is shorter: see test/t/038_check_setup.pl
SELECT message, pg_catalog.split_part(hint, '  -- ', 1) AS hint FROM public.regress_check('logs');
RESET apitoken.mask_logs;

--
-- privileges that PUBLIC misses, or should not have
--
SELECT c.* FROM public.regress_check('privileges') c;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA apitoken FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION apitoken_internal.sees_user(text) FROM PUBLIC;
REVOKE USAGE ON SCHEMA apitoken FROM PUBLIC;
REVOKE SELECT ON apitoken.roles FROM PUBLIC;
REVOKE USAGE ON TYPE apitoken.verification, apitoken.id FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apitoken.act_as(apitoken.id) TO PUBLIC;
GRANT SELECT, DELETE ON apitoken.events TO PUBLIC;
GRANT SELECT (digest) ON apitoken_internal.token_records TO PUBLIC;
GRANT CREATE ON SCHEMA apitoken_internal TO PUBLIC;
SELECT c.* FROM public.regress_check('privileges') c;
SELECT public.regress_hints('privileges') \gexec
SELECT c.* FROM public.regress_check('privileges') c;

-- objects of others in the schema do not matter
CREATE FUNCTION apitoken.regress_mine() RETURNS int LANGUAGE sql RETURN 1;
CREATE PROCEDURE apitoken.regress_mine_too() LANGUAGE sql AS 'SELECT 1';
CREATE TYPE apitoken.regress_kind AS ENUM ('a');
CREATE VIEW apitoken.regress_view AS SELECT 1 AS a;
GRANT SELECT ON apitoken.regress_view TO PUBLIC;
SELECT c.* FROM public.regress_check('privileges') c;
DROP VIEW apitoken.regress_view;
DROP TYPE apitoken.regress_kind;
DROP ROUTINE apitoken.regress_mine(), apitoken.regress_mine_too();

--
-- default privileges of roles that may update the extension
--
SELECT c.* FROM public.regress_check('default privileges') c;
BEGIN;
ALTER ROLE regress_apitoken_login SUPERUSER;
-- harmless: of other roles, in other schemas, and such that only take away
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_all GRANT ALL ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login IN SCHEMA public GRANT ALL ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login REVOKE ALL ON TYPES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login GRANT ALL ON SEQUENCES TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
SELECT c.* FROM public.regress_check('default privileges') c;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login GRANT SELECT, INSERT ON TABLES TO PUBLIC, regress_apitoken_stranger;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login GRANT EXECUTE ON FUNCTIONS TO regress_apitoken_stranger;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login GRANT USAGE ON SCHEMAS TO regress_apitoken_stranger;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_apitoken_login IN SCHEMA apitoken GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE CURRENT_USER IN SCHEMA apitoken_internal GRANT SELECT ON TABLES TO regress_apitoken_stranger;
SELECT level, pg_catalog.replace(message, pg_catalog.quote_ident(:'superuser'), '(owner)'), pg_catalog.replace(hint, pg_catalog.quote_ident(:'superuser'), '(owner)')
FROM public.regress_check('default privileges') c ORDER BY pg_catalog.replace(c::text, pg_catalog.quote_ident(:'superuser'), '(owner)') COLLATE "C";
\set ECHO none
SELECT public.regress_hints('default privileges') \gexec
\set ECHO all
SELECT c.* FROM public.regress_check('default privileges') c;
ROLLBACK;

--
-- tables
--
CREATE SCHEMA "regress Shop";
CREATE TABLE "regress Shop".article (organization_id text);
CREATE TABLE "regress Shop"."Order" (organization_id text);
CREATE TABLE "regress Shop".free (organization_id text);
CREATE POLICY p ON "regress Shop".article USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY p ON "regress Shop"."Order" USING (true) WITH CHECK (apitoken.can('order:write', organization_id));
CREATE POLICY q ON "regress Shop"."Order" USING (apitoken.can('order:read', organization_id));
CREATE POLICY p ON "regress Shop".free USING (organization_id = CURRENT_USER);
SELECT c.* FROM public.regress_check('tables') c;
SELECT public.regress_hints('tables') \gexec
SELECT c.* FROM public.regress_check('tables') c;
-- owned by a login; by a group of a login
CREATE ROLE regress_apitoken_group;
GRANT regress_apitoken_group TO regress_apitoken_stranger;
ALTER TABLE "regress Shop".article OWNER TO regress_apitoken_login;
ALTER TABLE "regress Shop"."Order" OWNER TO regress_apitoken_group;
ALTER TABLE "regress Shop".free OWNER TO regress_apitoken_login;
SELECT c.* FROM public.regress_check('tables') c;
-- the login that is named sees everything, and no longer after the hint
INSERT INTO "regress Shop".article VALUES ('tenant-1');
GRANT USAGE ON SCHEMA "regress Shop" TO regress_apitoken_login;
SET ROLE regress_apitoken_login;
SELECT pg_catalog.count(*) FROM "regress Shop".article;
RESET ROLE;
SELECT public.regress_hints('tables') \gexec
SELECT c.* FROM public.regress_check('tables') c;
SET ROLE regress_apitoken_login;
SELECT pg_catalog.count(*) FROM "regress Shop".article;
RESET ROLE;
-- and the other way out: an owner who cannot log in.  What FORCE cannot mend is not here.
ALTER ROLE regress_apitoken_bypass BYPASSRLS;
ALTER TABLE "regress Shop".article NO FORCE ROW LEVEL SECURITY;
ALTER TABLE "regress Shop".article OWNER TO regress_apitoken_bypass;
ALTER TABLE "regress Shop"."Order" NO FORCE ROW LEVEL SECURITY;
REVOKE regress_apitoken_group FROM regress_apitoken_stranger;
SELECT c.* FROM public.regress_check('tables') c;
ALTER ROLE regress_apitoken_bypass NOBYPASSRLS;
SELECT c.* FROM public.regress_check('tables') c;
-- a login that may only become the owner by SET ROLE: itself, through another role, and by a role that inherits
ALTER TABLE "regress Shop".article OWNER TO regress_apitoken_group;
CREATE ROLE regress_apitoken_deputy NOINHERIT LOGIN;
CREATE ROLE regress_apitoken_heir;
GRANT regress_apitoken_group TO regress_apitoken_heir;
GRANT regress_apitoken_heir TO regress_apitoken_deputy;
GRANT regress_apitoken_deputy TO regress_apitoken_login;
SELECT c.* FROM public.regress_check('tables') c WHERE c.message ~ 'article';
SELECT public.regress_hints('tables') \gexec
SELECT c.* FROM public.regress_check('tables') c;
ALTER TABLE "regress Shop".article NO FORCE ROW LEVEL SECURITY;
-- not one that may become a superuser, where FORCE would not help
ALTER ROLE regress_apitoken_group SUPERUSER;
SELECT c.* FROM public.regress_check('tables') c WHERE c.message ~ 'article';
ALTER ROLE regress_apitoken_group NOSUPERUSER;
REVOKE regress_apitoken_group FROM regress_apitoken_heir;
DROP ROLE regress_apitoken_deputy, regress_apitoken_heir;

-- policies that read the extension's relations, call functions that do, or read a table with such a policy
CREATE FUNCTION "regress Shop".is_staff(organization_id text) RETURNS boolean LANGUAGE sql STABLE
	BEGIN ATOMIC SELECT apitoken.can('shop:staff', organization_id::text); END;
CREATE FUNCTION "regress Shop".is_chief(organization_id text) RETURNS boolean LANGUAGE sql STABLE
	BEGIN ATOMIC SELECT "regress Shop".is_staff(organization_id); END;
CREATE VIEW "regress Shop".colleague AS SELECT user_id FROM apitoken.members;
CREATE TABLE "regress Shop".by_members (organization_id text);
CREATE POLICY p ON "regress Shop".by_members USING (organization_id IN (SELECT m.organization_id::text FROM apitoken.members m));
CREATE TABLE "regress Shop".by_function (organization_id text);
CREATE POLICY p ON "regress Shop".by_function USING ("regress Shop".is_chief(organization_id));
CREATE TABLE "regress Shop".by_view (user_id text);
CREATE POLICY p ON "regress Shop".by_view USING (EXISTS (SELECT FROM "regress Shop".colleague c WHERE c.user_id::text = by_view.user_id));
CREATE TABLE "regress Shop".by_table (organization_id text);
CREATE POLICY p ON "regress Shop".by_table USING (EXISTS (SELECT FROM "regress Shop".by_function f WHERE f.organization_id = by_table.organization_id));
CREATE TABLE "regress Shop".unrelated (organization_id text);
CREATE POLICY p ON "regress Shop".unrelated USING (EXISTS (SELECT FROM "regress Shop".free f WHERE f.organization_id = unrelated.organization_id));
SELECT c.* FROM public.regress_check('tables') c;
SELECT public.regress_hints('tables') \gexec
SELECT c.* FROM public.regress_check('tables') c;
DROP TABLE "regress Shop".by_members, "regress Shop".by_function, "regress Shop".by_view, "regress Shop".by_table, "regress Shop".unrelated CASCADE;

-- views that read a table as its owner, and partitions and children that have no policies.  A tenant's rows are read through each.
CREATE ROLE regress_apitoken_app LOGIN;
CREATE ROLE regress_apitoken_author;
GRANT USAGE ON SCHEMA "regress Shop" TO regress_apitoken_app, regress_apitoken_author;
CREATE TABLE "regress Shop".event (organization_id text, n int) PARTITION BY LIST (n);
CREATE TABLE "regress Shop"."event 1" PARTITION OF "regress Shop".event FOR VALUES IN (1) PARTITION BY LIST (n);
CREATE TABLE "regress Shop".event_leaf PARTITION OF "regress Shop"."event 1" DEFAULT;
CREATE TABLE "regress Shop".event_kept PARTITION OF "regress Shop".event FOR VALUES IN (2);
CREATE TABLE "regress Shop".event_own PARTITION OF "regress Shop".event FOR VALUES IN (3);
CREATE TABLE "regress Shop".article_child () INHERITS ("regress Shop".article);
ALTER TABLE "regress Shop".event_own ENABLE ROW LEVEL SECURITY;
ALTER TABLE "regress Shop".event ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON "regress Shop".event USING (apitoken.can('event:read', organization_id));
INSERT INTO "regress Shop".event VALUES ('tenant-1', 1), ('tenant-2', 2), ('tenant-1', 3);
CREATE VIEW "regress Shop"."All" AS SELECT * FROM "regress Shop".event;
CREATE VIEW "regress Shop".above AS SELECT organization_id FROM "regress Shop"."All";
CREATE VIEW "regress Shop".invoker WITH (security_invoker = on) AS SELECT * FROM "regress Shop".event;
CREATE VIEW "regress Shop".above_invoker AS SELECT * FROM "regress Shop".invoker;
CREATE VIEW "regress Shop".invoker_above WITH (security_invoker) AS SELECT * FROM "regress Shop".above;
CREATE MATERIALIZED VIEW "regress Shop".copied AS SELECT * FROM "regress Shop".event;
CREATE VIEW "regress Shop".of_partition AS SELECT * FROM "regress Shop".event_kept;
CREATE VIEW "regress Shop".by_author AS SELECT * FROM "regress Shop".event;
GRANT SELECT ON "regress Shop".event TO regress_apitoken_author;
ALTER VIEW "regress Shop".by_author OWNER TO regress_apitoken_author;
-- nobody else may use them
SELECT c.* FROM public.regress_check('tables') c WHERE c.message !~ '^login';
GRANT SELECT ON "regress Shop".event, "regress Shop"."event 1", "regress Shop".event_leaf, "regress Shop".event_own, "regress Shop".article, "regress Shop".invoker,
	"regress Shop".above, "regress Shop".above_invoker, "regress Shop".invoker_above, "regress Shop".copied, "regress Shop".of_partition, "regress Shop".by_author TO regress_apitoken_app;
GRANT UPDATE (organization_id) ON "regress Shop".article_child TO PUBLIC;
GRANT SELECT (n) ON "regress Shop"."All" TO regress_apitoken_app;
GRANT ALL ON "regress Shop".event_leaf TO regress_apitoken_author WITH GRANT OPTION;
CREATE VIEW public.regress_readable AS
	SELECT c.relname, public.regress_as('regress_apitoken_app', pg_catalog.format('SELECT %I FROM %s',
		CASE c.relname WHEN 'All' THEN 'n' ELSE 'organization_id' END, c.oid::regclass)) AS outcome
	FROM pg_catalog.pg_class c WHERE c.relnamespace = '"regress Shop"'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relname <> 'free'
	ORDER BY c.relname COLLATE "C";
TABLE public.regress_readable;
SELECT c.* FROM public.regress_check('tables') c WHERE c.message !~ '^login';
SELECT hint FROM public.regress_check('tables') WHERE message !~ '^login' \gexec
SELECT c.* FROM public.regress_check('tables') c WHERE c.message !~ '^login';
-- security_invoker moves the question to the view above
SELECT hint FROM public.regress_check('tables') WHERE message !~ '^login' \gexec
SELECT c.* FROM public.regress_check('tables') c WHERE c.message !~ '^login';
TABLE public.regress_readable;
DROP VIEW public.regress_readable;
DROP SCHEMA "regress Shop" CASCADE;
DROP ROLE regress_apitoken_app, regress_apitoken_author;

-- many tables, and a long chain of roles: this takes less than a second
BEGIN;
SET LOCAL client_min_messages = error;
DO $$
BEGIN
	FOR i IN 1..400 LOOP
		EXECUTE pg_catalog.format('CREATE ROLE regress_apitoken_chain%s LOGIN', i);
		EXECUTE pg_catalog.format('GRANT %I TO regress_apitoken_chain%s', CASE i WHEN 1 THEN 'regress_apitoken_group' ELSE 'regress_apitoken_chain' || i - 1 END, i);
	END LOOP;
	FOR i IN 1..100 LOOP
		EXECUTE pg_catalog.format('CREATE TABLE public.regress_many%s (organization_id text)', i);
		EXECUTE pg_catalog.format('ALTER TABLE public.regress_many%s ENABLE ROW LEVEL SECURITY', i);
		EXECUTE pg_catalog.format('CREATE POLICY p ON public.regress_many%s USING (apitoken.can(''a:b'', organization_id))', i);
		EXECUTE pg_catalog.format('ALTER TABLE public.regress_many%s OWNER TO regress_apitoken_group', i);
	END LOOP;
END
$$;
SELECT apitoken.allow('regress_apitoken_group', 'verify');
SET LOCAL statement_timeout = '60s';
SELECT level, pg_catalog.count(*), pg_catalog.min(pg_catalog.cardinality(pg_catalog.string_to_array(message, ', '))) AS logins FROM public.regress_check('tables') GROUP BY 1;
SELECT pg_catalog.count(*) FROM public.regress_check('capabilities') WHERE message ~ 'chain';
ROLLBACK;
DROP ROLE regress_apitoken_group;

--
-- tokens, and the extension's version
--
SELECT public.regress_hints('tokens') \gexec
SELECT c.* FROM public.regress_check('tokens') c;
SELECT pg_catalog.count(token) FROM apitoken.create_token('label-3', user_id => 'alice', expires_in => '1 day', rate_limit_per_minute => 5);
SELECT c.level, c.message, c.hint ~ '^ALTER SYSTEM SET shared_preload_libraries = .*''apitoken'';' AS hint FROM public.regress_check('tokens') c
UNION ALL
SELECT 'error', 'tokens with a rate limit or quota, which are refused because apitoken is not in shared_preload_libraries: 1', true FROM apitoken.stats WHERE preloaded
EXCEPT
SELECT 'ok', 'each token expires', NULL FROM apitoken.stats WHERE preloaded;

--
-- notifications: those that wait for an earlier one of their token are not counted
--
SELECT c.* FROM public.regress_check('notifications') c;
BEGIN;
-- an INSERT is taken for a restore, whose rows are delivered elsewhere, so they do not count
INSERT INTO apitoken.notifications (id, created_at, event, token_id, payload, recipients, attempts)
SELECT pg_catalog.format('00000000-0000-0000-0000-%s', pg_catalog.lpad(n::text, 12, '0'))::pg_catalog.uuid, pg_catalog.now() - interval '1 day', 'create',
	pg_catalog.format('00000000-0000-0000-0000-00000000000%s', CASE WHEN n < 3 THEN 'a' ELSE 'b' END)::pg_catalog.uuid, '{}',
	CASE WHEN n < 5 THEN '{a@example.org}'::text[] ELSE '{}' END, CASE WHEN n < 5 THEN 1 ELSE 20 END
FROM pg_catalog.generate_series(1, 5) n;
SELECT c.* FROM public.regress_check('notifications') c;
UPDATE apitoken.notifications n SET next_attempt_at = v.next_attempt_at, delivered_at = v.delivered_at
FROM (VALUES (1, pg_catalog.now() + interval '1 minute', NULL), (2, pg_catalog.now() - interval '1 day', NULL),
	(3, pg_catalog.now() - interval '59 minutes', NULL), (4, NULL, pg_catalog.now())) v (n, next_attempt_at, delivered_at)
WHERE n.id::text ~ ('0' || v.n || '$');
SELECT c.* FROM public.regress_check('notifications') c;
UPDATE apitoken.notifications SET next_attempt_at = pg_catalog.now() - interval '61 minutes' WHERE id IN ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000003');
UPDATE apitoken.notifications SET next_attempt_at = NULL, attempts = 20 WHERE id = '00000000-0000-0000-0000-000000000002';
SELECT c.level, c.message, pg_catalog.regexp_replace(c.hint, '--.*  --', '...') AS hint FROM public.regress_check('notifications') c;
-- the second hint does what it says
SELECT c.hint FROM public.regress_check('notifications') c WHERE c.message ~ 'given up' \gexec
SELECT c.message FROM public.regress_check('notifications') c;
ROLLBACK;

SELECT c.* FROM public.regress_check('version') c;
SELECT extversion AS version FROM pg_catalog.pg_extension WHERE extname = 'apitoken' \gset
UPDATE pg_catalog.pg_extension SET extversion = '0.9' WHERE extname = 'apitoken';
SELECT level, pg_catalog.replace(message, :'version', '(version)'), hint FROM public.regress_check('version');
UPDATE pg_catalog.pg_extension SET extversion = :'version' WHERE extname = 'apitoken';

--
-- Whatever the session is: READ ONLY, REPEATABLE READ, in a savepoint, in a prepared
-- statement, in a parallel plan, with objects of the same names in the search_path
--
CREATE TABLE public.regress_rows AS SELECT * FROM apitoken.check_setup();
GRANT SELECT ON public.regress_rows TO PUBLIC;
CREATE FUNCTION public.regress_differs() RETURNS bigint LANGUAGE sql AS $$
	SELECT pg_catalog.count(*) FROM (SELECT * FROM apitoken.check_setup() EXCEPT ALL TABLE public.regress_rows) d
$$;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT public.regress_differs();
SAVEPOINT s;
SELECT 1 / 0;
ROLLBACK TO s;
SELECT public.regress_differs();
COMMIT;
PREPARE regress_check AS SELECT pg_catalog.count(*) > 10 FROM apitoken.check_setup();
EXECUTE regress_check;
EXECUTE regress_check;
DEALLOCATE regress_check;
BEGIN;
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SELECT pg_catalog.count(*) FROM (SELECT c.subject, pg_catalog.count(*) FROM apitoken.check_setup() c, pg_catalog.pg_class k GROUP BY 1) x;
COMMIT;
CREATE SCHEMA regress_evil;
SET search_path = regress_evil, pg_catalog, pg_temp;
CREATE FUNCTION regress_evil.evil() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'was called'; END $$;
DO $$
DECLARE
	f record;
	t name;
BEGIN
	FOR f IN SELECT DISTINCT p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid) AS arguments FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.proname IN ('format', 'aclexplode', 'acldefault', 'btrim', 'unnest', 'has_table_privilege', 'pg_has_role',
			'row_security_active', 'current_setting', 'jsonb_each_text', 'split_part', 'string_to_array', 'pg_is_in_recovery', 'array_position', 'quote_literal', 'count', 'now')
			AND p.proretset IS NOT NULL AND pg_catalog.pg_get_function_identity_arguments(p.oid) !~ 'VARIADIC|OUT' LOOP
		EXECUTE pg_catalog.format('CREATE FUNCTION regress_evil.%I(%s) RETURNS text LANGUAGE sql AS $f$ SELECT regress_evil.evil() $f$', f.proname,
			pg_catalog.regexp_replace(f.arguments, '\m(anyarray|anycompatiblearray|anyelement|anycompatible)\M', '\1', 'g'));
	END LOOP;
	FOREACH t IN ARRAY '{pg_settings,pg_class,pg_roles,pg_proc,pg_policy,pg_depend,pg_default_acl,pg_extension,pg_available_extensions,pg_init_privs,pg_auth_members,stats,roles}'::name[] LOOP
		EXECUTE pg_catalog.format('CREATE TABLE regress_evil.%I (oid oid, name text)', t);
		EXECUTE pg_catalog.format('CREATE TEMP TABLE %I (oid oid, name text)', t);
	END LOOP;
	CREATE TYPE regress_evil.text AS (a int);
END
$$;
CREATE FUNCTION regress_evil.same(pg_catalog.text, pg_catalog.text) RETURNS boolean LANGUAGE sql AS $$ SELECT regress_evil.evil() IS NULL $$;
CREATE OPERATOR regress_evil.= (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = regress_evil.same);
CREATE OPERATOR regress_evil.~ (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = regress_evil.same);
CREATE OPERATOR regress_evil.<> (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = regress_evil.same);
SELECT regress_evil.evil();
SELECT public.regress_differs();
RESET search_path;
-- with another schema first, the names in hints are still whole
SET search_path = apitoken;
SELECT public.regress_differs();
RESET search_path;
DISCARD TEMP;
DROP SCHEMA regress_evil CASCADE;

-- without any role with a capability
SELECT pg_catalog.format('SELECT apitoken.disallow(%L, ''use'', ''manage'', ''verify'', ''act'', ''directory'', ''monitor'')', rolname)
FROM pg_catalog.pg_roles WHERE rolname ~ '^regress_apitoken' ORDER BY 1 \gexec
SELECT c.* FROM public.regress_check('capabilities') c;
SELECT pg_catalog.replace(public.regress_hints('capabilities'), 'backend', 'regress_apitoken_backend') AS mend \gset
:mend
SELECT c.* FROM public.regress_check('capabilities') c;

SET client_min_messages = warning;
DROP TABLE public.regress_rows;
DROP PROCEDURE public.regress_give(name);
DROP FUNCTION public.regress_check(text), public.regress_hints(text), public.regress_as(name, text), public.regress_differs();
\i :srcdir/test/regress_teardown.sql
