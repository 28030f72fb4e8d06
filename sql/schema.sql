--
-- What the extension installs, which privileges exist before and after
-- apitoken.allow(), and that DROP EXTENSION leaves nothing.
--
\set SHOW_CONTEXT never
\pset null '(null)'
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS apitoken CASCADE;
-- users work with apitoken; apitoken_internal holds the rest
\set schemas '(''apitoken''::regnamespace, ''apitoken_internal''::regnamespace)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_try.sql
-- how many objects there are of each kind
CREATE VIEW public.regress_objects AS
	SELECT (SELECT count(*) FROM pg_catalog.pg_namespace) AS namespaces,
		(SELECT count(*) FROM pg_catalog.pg_class WHERE oid >= 16384) AS relations,
		(SELECT count(*) FROM pg_catalog.pg_proc) AS functions,
		(SELECT count(*) FROM pg_catalog.pg_type WHERE oid >= 16384) AS types,
		(SELECT count(*) FROM pg_catalog.pg_trigger) AS triggers,
		(SELECT count(*) FROM pg_catalog.pg_policy) AS policies,
		(SELECT count(*) FROM pg_catalog.pg_constraint) AS constraints,
		(SELECT count(*) FROM pg_catalog.pg_extension) AS extensions,
		(SELECT count(*) FROM pg_catalog.pg_default_acl) AS default_acls,
		(SELECT count(*) FROM pg_catalog.pg_cast) AS casts;
SELECT o::text AS before FROM public.regress_objects o \gset

-- it needs nothing else
CREATE EXTENSION apitoken;
SELECT extname, extrelocatable FROM pg_catalog.pg_extension ORDER BY extname COLLATE "C";

--
-- The objects
--
-- relations: kind, row-level security, dumped by pg_dump, options
SELECT c.relkind, c.oid::regclass AS relation, c.relrowsecurity AS rls, c.oid = ANY (e.extconfig) AS dumped, c.reloptions
FROM pg_catalog.pg_class c, pg_catalog.pg_extension e
WHERE c.relnamespace IN :schemas AND e.extname = 'apitoken' AND c.relkind <> 'i'
ORDER BY c.relkind, c.oid::regclass::text COLLATE "C";
-- whole tables are dumped, not parts
SELECT extcondition FROM pg_catalog.pg_extension WHERE extname = 'apitoken';
-- no sequences, no rules except the views' own
SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace IN :schemas AND relkind = 'S';
SELECT count(*) FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
WHERE c.relnamespace IN :schemas AND r.rulename <> '_RETURN';
SELECT indexrelid::regclass, indisunique FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
WHERE c.relnamespace IN :schemas ORDER BY indexrelid::regclass::text COLLATE "C";
SELECT tablename, policyname, permissive, roles, cmd FROM pg_catalog.pg_policies WHERE schemaname IN ('apitoken', 'apitoken_internal')
ORDER BY tablename, policyname;
SELECT tgrelid::regclass, tgname, tgfoid::regproc, tgenabled FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace IN :schemas AND NOT tgisinternal ORDER BY tgrelid::regclass::text COLLATE "C", tgname;

\pset format unaligned
-- columns
SELECT c.relname, pg_catalog.string_agg(a.attname, ' ' ORDER BY a.attnum) AS columns
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace IN :schemas AND c.relkind IN ('r', 'v', 'c')
GROUP BY c.relname ORDER BY c.relname COLLATE "C";
\pset format aligned
-- src/tables/columns.h describes each column of these relations as the catalog does: number, type, null.  No
-- column is missing from it.
\set header `sed -n 's/^[[:space:]]*COLUMN(\(.*\)).*/\1/p' "$PG_ABS_SRCDIR/src/tables/columns.h"`
CREATE TABLE public.regress_described AS
	SELECT m[1] AS relation, m[2] AS name, pg_catalog.row_number() OVER (PARTITION BY m[1] ORDER BY line) AS attnum,
		pg_catalog.regexp_replace(pg_catalog.lower(m[3]), '^(\w+)arrayoid$|^(\w+)oid$', CASE WHEN m[3] ~ 'ARRAY' THEN '_\1' ELSE '\2' END)::regtype AS type,
		m[4] = 'NOT_NULL' AS not_null, m[5] AS granted
	FROM pg_catalog.regexp_split_to_table(:'header', '\n') WITH ORDINALITY AS l (text, line),
		pg_catalog.regexp_match(l.text, '^(\w+), (\w+), +(\w+), +(\w+), "(\w*)"$') m;
WITH actual AS (
	SELECT c.relname AS relation, a.attname AS name, a.attnum, a.atttypid::regtype AS type, a.attnotnull AS not_null
	FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
	WHERE c.relnamespace IN :schemas AND c.relname IN (SELECT relation FROM public.regress_described)
)
SELECT pg_catalog.count(d.*) AS described,
	pg_catalog.count(*) FILTER (WHERE (d.attnum, d.type, d.not_null) IS DISTINCT FROM (a.attnum, a.type, a.not_null)) AS wrong
FROM public.regress_described d FULL JOIN actual a USING (relation, name);
-- each verdict of src/base/verdicts.h has its column in stats, in that order
\set header `sed -n 's/^[[:space:]]*VERDICT(\([A-Z_]*\), *\([a-z_]*\),.*/\2/p' "$PG_ABS_SRCDIR/src/base/verdicts.h"`
SELECT pg_catalog.count(*) AS verdicts, pg_catalog.bool_and(a.attname IS NOT DISTINCT FROM v.name) AS in_order
FROM pg_catalog.regexp_split_to_table(:'header', '\n') WITH ORDINALITY AS v (name, n)
	LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = 'apitoken.stats'::regclass
		AND a.attnum = v.n + (SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = 'apitoken.stats'::regclass AND attname = 'valid') - 1;

-- functions: only VOLATILE ones take texts of tokens, and none is SECURITY DEFINER
SELECT oid::regprocedure AS function, provolatile AS v, proparallel AS p, proisstrict AS strict, prosecdef AS definer
FROM pg_catalog.pg_proc WHERE pronamespace IN :schemas ORDER BY oid::regprocedure::text COLLATE "C";
SELECT count(*) AS not_volatile FROM pg_catalog.pg_proc
WHERE pronamespace IN :schemas AND 'token' = ANY (proargnames[1:pronargs]) AND provolatile <> 'v';
\pset format unaligned
-- argument names and defaults are part of the contract
SELECT proname, pg_catalog.pg_get_function_arguments(oid) AS arguments
FROM pg_catalog.pg_proc WHERE pronamespace IN :schemas AND pronargs > 0 ORDER BY oid::regprocedure::text COLLATE "C";
\pset format aligned

-- every object in the schemas belongs to the extension, and no object elsewhere does
SELECT pg_catalog.pg_describe_object(classid, objid, 0) AS stray
FROM (SELECT 'pg_class'::regclass AS classid, oid AS objid FROM pg_catalog.pg_class WHERE relnamespace IN :schemas AND relkind IN ('r', 'v', 'S', 'm', 'f')
	UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_catalog.pg_proc WHERE pronamespace IN :schemas
	UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
		WHERE t.typnamespace IN :schemas AND c.relkind = 'c') o
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	WHERE e.extname = 'apitoken' AND d.deptype = 'e' AND d.classid = o.classid AND d.objid = o.objid);
SELECT count(*) AS elsewhere
FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass,
	pg_catalog.pg_identify_object(d.classid, d.objid, 0) i
WHERE e.extname = 'apitoken' AND d.deptype = 'e' AND (i.schema IN ('apitoken', 'apitoken_internal')) IS NOT TRUE AND i.identity NOT IN ('apitoken', 'apitoken_internal')
	AND d.classid <> 'pg_cast'::regclass;
-- casts, which have no schema, are from and to a type of ours only
SELECT c.castsource::regtype AS source, c.casttarget::regtype AS target, c.castcontext, c.castmethod, CASE WHEN c.castfunc <> 0 THEN c.castfunc::regprocedure END AS function
FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	JOIN pg_catalog.pg_cast c ON d.classid = 'pg_cast'::regclass AND c.oid = d.objid
WHERE e.extname = 'apitoken' AND d.deptype = 'e' ORDER BY c.castsource::regtype::text COLLATE "C";

-- visible objects have a comment: schemas, relations, functions, types, and the columns in apitoken
SELECT oid::regnamespace::text AS uncommented FROM pg_catalog.pg_namespace WHERE oid IN :schemas AND pg_catalog.obj_description(oid, 'pg_namespace') IS NULL
UNION ALL
SELECT oid::regclass::text FROM pg_catalog.pg_class
WHERE relnamespace IN :schemas AND relkind IN ('r', 'v') AND pg_catalog.obj_description(oid, 'pg_class') IS NULL
UNION ALL
SELECT c.relname || '.' || a.attname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'apitoken'::regnamespace AND c.relkind IN ('r', 'v', 'c') AND pg_catalog.col_description(c.oid, a.attnum) IS NULL
UNION ALL
SELECT oid::regprocedure::text FROM pg_catalog.pg_proc
WHERE pronamespace IN :schemas AND pg_catalog.obj_description(oid, 'pg_proc') IS NULL
UNION ALL
SELECT t.oid::regtype::text FROM pg_catalog.pg_type t JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
WHERE t.typnamespace IN :schemas AND c.relkind = 'c' AND pg_catalog.obj_description(t.oid, 'pg_type') IS NULL;
SELECT extname FROM pg_catalog.pg_extension WHERE extname = 'apitoken' AND pg_catalog.obj_description(oid, 'pg_extension') IS NULL;

-- settings (only SHOW shows apitoken.token, as ***)
-- usage_slots has context postmaster where it has an effect
SELECT name, CASE WHEN name = 'apitoken.usage_slots' AND (context = 'postmaster') = preloaded THEN '(by preload)' ELSE context END AS context,
	vartype, boot_val, short_desc <> '' AS described
FROM pg_catalog.pg_settings, apitoken.stats WHERE name LIKE 'apitoken.%' ORDER BY name;
SHOW apitoken.token;

--
-- Privileges before allow(), without the owner's own.  PUBLIC has USAGE on the
-- schema apitoken, EXECUTE on functions that tell only about the caller, and USAGE
-- on the two types, as on any type.  In apitoken_internal it has EXECUTE on what
-- policies and views call, but no USAGE on the schema, so nothing else can call it.
--
CREATE VIEW public.regress_privileges AS
	SELECT grantee, privilege_type AS privilege, is_grantable, 'schema' AS kind, nspname::text AS object, NULL AS columns
	FROM pg_catalog.pg_namespace, pg_catalog.aclexplode(coalesce(nspacl, pg_catalog.acldefault('n', nspowner)))
	WHERE oid IN :schemas AND grantee <> nspowner
	UNION ALL
	SELECT grantee, privilege_type, is_grantable, 'function', oid::regprocedure::text, NULL
	FROM pg_catalog.pg_proc, pg_catalog.aclexplode(coalesce(proacl, pg_catalog.acldefault('f', proowner)))
	WHERE pronamespace IN :schemas AND grantee <> proowner
	UNION ALL
	SELECT grantee, privilege_type, is_grantable, 'relation', oid::regclass::text, NULL
	FROM pg_catalog.pg_class, pg_catalog.aclexplode(coalesce(relacl, pg_catalog.acldefault('r', relowner)))
	WHERE relnamespace IN :schemas AND relkind IN ('r', 'v') AND grantee <> relowner
	UNION ALL
	SELECT grantee, privilege_type, is_grantable, 'columns', attrelid::regclass::text, pg_catalog.string_agg(attname, ' ' ORDER BY attnum)
	FROM pg_catalog.pg_attribute JOIN pg_catalog.pg_class c ON c.oid = attrelid, pg_catalog.aclexplode(attacl)
	WHERE relnamespace IN :schemas AND grantee <> relowner
	GROUP BY 1, 2, 3, 5
	UNION ALL
	SELECT grantee, privilege_type, is_grantable, 'type', t.oid::regtype::text, NULL
	FROM pg_catalog.pg_type t JOIN pg_catalog.pg_class c ON c.oid = typrelid AND c.relkind = 'c',
		pg_catalog.aclexplode(coalesce(typacl, pg_catalog.acldefault('T', typowner)))
	WHERE typnamespace IN :schemas AND grantee <> typowner;
SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee, privilege, is_grantable, kind, object, columns
FROM public.regress_privileges ORDER BY grantee, kind, object COLLATE "C", privilege;

-- The owner's privileges, too, and those that a dump takes for the extension's own
CREATE VIEW public.regress_acls AS
	WITH object (classoid, oid, subid, name, acl) AS (
		SELECT 'pg_namespace'::regclass, oid, 0, nspname::text, coalesce(nspacl, pg_catalog.acldefault('n', nspowner))
		FROM pg_catalog.pg_namespace WHERE nspname IN ('apitoken', 'apitoken_internal')
		UNION ALL
		SELECT 'pg_proc'::regclass, oid, 0, oid::regprocedure::text, coalesce(proacl, pg_catalog.acldefault('f', proowner))
		FROM pg_catalog.pg_proc WHERE pronamespace::regnamespace::text IN ('apitoken', 'apitoken_internal')
		UNION ALL
		SELECT 'pg_class'::regclass, oid, 0, oid::regclass::text, coalesce(relacl, pg_catalog.acldefault('r', relowner))
		FROM pg_catalog.pg_class WHERE relnamespace::regnamespace::text IN ('apitoken', 'apitoken_internal') AND relkind NOT IN ('i', 'c')
		UNION ALL
		SELECT 'pg_class'::regclass, attrelid, attnum, attrelid::regclass || '.' || attname, attacl
		FROM pg_catalog.pg_attribute WHERE attacl IS NOT NULL AND attrelid::regclass::text ~ '^apitoken'
		UNION ALL
		SELECT 'pg_type'::regclass, oid, 0, oid::regtype::text, coalesce(typacl, pg_catalog.acldefault('T', typowner))
		FROM pg_catalog.pg_type WHERE typnamespace::regnamespace::text IN ('apitoken', 'apitoken_internal')
	)
	SELECT o.classoid || ' ' || o.name || ' ' || a.kind || ' ' || (a.item).grantee || ' ' || (a.item).privilege_type || ' ' || (a.item).is_grantable AS entry
	FROM object o, LATERAL (
		SELECT 'has' AS kind, pg_catalog.aclexplode(o.acl) AS item
		UNION ALL
		SELECT 'initially', pg_catalog.aclexplode(i.initprivs) FROM pg_catalog.pg_init_privs i
		WHERE (i.classoid, i.objoid, i.objsubid) = (o.classoid, o.oid, o.subid)) a;
CREATE TABLE public.regress_installed AS SELECT entry FROM public.regress_acls;
SELECT pg_catalog.count(*) > 300 AS enough, pg_catalog.count(*) FILTER (WHERE entry ~ ' has ') - pg_catalog.count(*) FILTER (WHERE entry ~ ' initially ') AS not_initial
FROM public.regress_installed WHERE entry !~ '^pg_type apitoken(_internal)?\.(?!verification |issued_token )';

-- a role without capabilities can read only the names and permissions of roles
CREATE ROLE regress_apitoken_nobody;
CREATE ROLE regress_apitoken_some LOGIN;
SET ROLE regress_apitoken_nobody;
SELECT public.regress_try(pg_catalog.format('TABLE apitoken.%I', r)) AS refused
FROM pg_catalog.unnest('{organizations,users,roles,memberships,token_usage,token_usage_daily,events,notifications,tokens,members,stats}'::text[]) r;
SELECT public.regress_try('SELECT apitoken.' || f) AS refused FROM pg_catalog.unnest(ARRAY['authenticate(NULL)', 'verify(NULL)',
	'revoke_by_token(NULL)', 'act_as(NULL)', 'create_token(NULL)', 'take_token(pg_catalog.gen_random_uuid())', 'regenerate_token(NULL)', 'revoke_token(NULL)',
	'revoke_tokens(NULL)', 'list_tokens()', 'generate(''org'')', 'hash(''x'')', 'parse(''x'')', 'mask(''x'')', 'run_maintenance()', 'flush_usage()', 'allow(''regress_apitoken_nobody'', ''act'')']) f;
SELECT apitoken.current_user_id(), apitoken.current_organization_id(), apitoken.current_token_id(), apitoken.current_role_name(),
	apitoken.current_groups(), apitoken.can('article:read'), ARRAY(SELECT apitoken.organizations_allowed('article:read')) AS allowed;
-- only the owner can reach objects in apitoken_internal by name, whatever allow() granted to others
RESET ROLE;
SELECT apitoken.allow('regress_apitoken_some', 'use', 'manage', 'verify', 'act', 'directory', 'monitor', 'notify', 'usage');
SELECT r AS role, pg_catalog.count(*) > 40 AS enough, pg_catalog.array_agg(DISTINCT outcome) AS outcomes
FROM pg_catalog.unnest('{regress_apitoken_nobody,regress_apitoken_some}'::name[]) r, LATERAL (
	SELECT pg_catalog.set_config('role', r, true), public.regress_try('TABLE apitoken_internal.token_records') AS outcome
	UNION ALL
	SELECT pg_catalog.set_config('role', r, true), public.regress_try(pg_catalog.format('SELECT %s FROM apitoken_internal.token_records', name)) FROM public.regress_described WHERE relation = 'token_records'
	UNION ALL
	SELECT pg_catalog.set_config('role', r, true), public.regress_try(pg_catalog.format('SELECT apitoken_internal.%I(NULL)', proname))
	FROM pg_catalog.pg_proc WHERE pronamespace = 'apitoken_internal'::regnamespace) t
GROUP BY r ORDER BY r;
SELECT apitoken.disallow('regress_apitoken_some', 'use', 'manage', 'verify', 'act', 'directory', 'monitor', 'notify', 'usage');
SET ROLE regress_apitoken_nobody;
SELECT apitoken.whoami();
-- it may not hand out capabilities, even with EXECUTE on allow()
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_nobody', 'manage')$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION apitoken.allow(name, text[]), apitoken.disallow(name, text[]) TO regress_apitoken_nobody;
SET ROLE regress_apitoken_nobody;
SELECT pg_catalog.regexp_replace(public.regress_try(pg_catalog.format('SELECT apitoken.%s(%L, %L)', f, 'regress_apitoken_nobody', 'use')),
	'role ".*",', 'role (the owner),') AS refused
FROM pg_catalog.unnest('{allow,disallow}'::text[]) f;
RESET ROLE;
REVOKE EXECUTE ON FUNCTION apitoken.allow(name, text[]), apitoken.disallow(name, text[]) FROM regress_apitoken_nobody;
-- trigger functions work only for the extension's own tables
CREATE TABLE public.regress_other (id uuid, digest bytea);
SELECT f, public.regress_try(pg_catalog.format('CREATE TRIGGER t BEFORE INSERT ON public.regress_other FOR EACH ROW EXECUTE FUNCTION apitoken_internal.%I()', f)) AS created,
	public.regress_try('INSERT INTO public.regress_other DEFAULT VALUES') AS used,
	public.regress_try('DROP TRIGGER t ON public.regress_other') AS dropped
FROM pg_catalog.unnest('{token_before_insert,token_before_update,token_after_change,token_refuse_delete,event_refuse_change,role_before_change,directory_after_change,owner_before_change,owner_after_delete}'::text[]) f;
DROP TABLE public.regress_other;

--
-- What each capability grants, exactly, and that disallow() takes all of it back
--
SELECT apitoken.allow('regress_apitoken_some', 'use');
SELECT privilege, is_grantable, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole ORDER BY kind, object COLLATE "C", privilege;
SELECT apitoken.disallow('regress_apitoken_some', 'use');
SELECT apitoken.allow('regress_apitoken_some', 'manage');
SELECT privilege, is_grantable, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole ORDER BY kind, object COLLATE "C", privilege;
SELECT apitoken.disallow('regress_apitoken_some', 'manage');
SELECT count(*) FROM public.regress_privileges WHERE grantee = 'regress_apitoken_some'::regrole;
SELECT apitoken.allow('regress_apitoken_some', 'verify');
SELECT privilege, is_grantable, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole ORDER BY kind, object COLLATE "C", privilege;
SELECT apitoken.disallow('regress_apitoken_some', 'verify');
SELECT apitoken.allow('regress_apitoken_some', 'act');
SELECT privilege, is_grantable, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole ORDER BY kind, object COLLATE "C", privilege;
SELECT apitoken.disallow('regress_apitoken_some', 'act');
SELECT apitoken.allow('regress_apitoken_some', 'directory');
SELECT privilege, is_grantable, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole ORDER BY kind, object COLLATE "C", privilege;
SELECT apitoken.disallow('regress_apitoken_some', 'directory');
SELECT apitoken.allow('regress_apitoken_some', 'notify');
SELECT privilege, is_grantable, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole ORDER BY kind, object COLLATE "C", privilege;
SELECT apitoken.disallow('regress_apitoken_some', 'notify');
SELECT apitoken.allow('regress_apitoken_some', 'monitor');
SELECT privilege, is_grantable, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole ORDER BY kind, object COLLATE "C", privilege;
-- monitor: reading the view and its function, nothing else
SET ROLE regress_apitoken_some;
SELECT count(*) FROM apitoken.stats;
SELECT pg_catalog.left(public.regress_try(s), 5) AS refused FROM pg_catalog.unnest(ARRAY['UPDATE apitoken.stats SET valid = 0', 'DELETE FROM apitoken.stats',
	'SELECT apitoken.flush_usage()', 'TABLE apitoken.token_usage', 'TABLE apitoken.tokens', 'SELECT apitoken.verify(NULL)']) s;
RESET ROLE;
-- without EXECUTE on the function the view cannot be read
REVOKE EXECUTE ON FUNCTION apitoken_internal.read_stats() FROM regress_apitoken_some;
SET ROLE regress_apitoken_some;
SELECT public.regress_try('TABLE apitoken.stats') AS refused;
RESET ROLE;

-- manage is enough for a member to do everything, without USAGE on apitoken_internal
INSERT INTO apitoken.organizations (id) VALUES ('acme');
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin');
SELECT apitoken.allow('regress_apitoken_some', 'act', 'manage');
SET SESSION AUTHORIZATION regress_apitoken_some;
SELECT pg_catalog.has_schema_privilege('apitoken_internal', 'USAGE') AS usage;
BEGIN;
SELECT apitoken.act_as('ada');
SELECT id FROM apitoken.create_token('one', organization_id => 'acme') \gset
INSERT INTO apitoken.tokens (label) VALUES ('mine') RETURNING label, apitoken.take_token(id) IS NOT NULL AS taken;
UPDATE apitoken.tokens SET description = 'edited' WHERE id = :'id' RETURNING label, description, status;
SELECT token IS NOT NULL AS regenerated FROM apitoken.regenerate_token(:'id', overlap => '1 hour');
SELECT label, last_used, organization_id FROM apitoken.list_tokens('o');
SELECT label FROM apitoken.tokens WHERE organization_id = 'acme' ORDER BY created_at DESC LIMIT 5;
SELECT (SELECT count(*) FROM apitoken.events) AS events, (SELECT count(*) FROM apitoken.token_usage) AS usage,
	(SELECT count(*) FROM apitoken.token_usage_daily) AS daily, (SELECT count(*) FROM apitoken.members) AS members,
	(SELECT count(*) FROM apitoken.organizations) AS organizations, (SELECT count(*) FROM apitoken.memberships) AS memberships;
SELECT apitoken.revoke_token(:'id', 'one'), apitoken.revoke_tokens(user_id => 'ada');
ROLLBACK;
RESET SESSION AUTHORIZATION;
DELETE FROM apitoken.organizations;
SELECT apitoken.disallow('regress_apitoken_some', 'act', 'manage');
SELECT apitoken.allow('regress_apitoken_some', 'monitor');

-- allowing twice is the same as once; all capabilities together still cannot read digests or write audit and usage
SELECT apitoken.allow('regress_apitoken_some', 'use', 'manage', 'verify', 'act', 'directory', 'monitor', 'notify', 'usage', 'directory');
SELECT apitoken.allow('regress_apitoken_some', VARIADIC '{use,manage}');
SELECT grantee::regrole, count(*) FROM public.regress_privileges WHERE grantee <> 0 GROUP BY 1;
SELECT a.attname, p AS privilege, has_column_privilege('regress_apitoken_some', a.attrelid, a.attnum, p) AS granted
FROM pg_catalog.pg_attribute a, pg_catalog.unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) p
WHERE a.attrelid = 'apitoken_internal.token_records'::regclass AND (a.attname LIKE '%digest%' OR a.attname LIKE 'previous%') ORDER BY a.attnum, p;
SELECT r::regclass, p AS privilege FROM pg_catalog.unnest('{apitoken_internal.token_records,apitoken.token_usage,apitoken_internal.token_days,apitoken.events,apitoken.notifications}'::text[]) r,
	pg_catalog.unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
WHERE has_table_privilege('regress_apitoken_some', r, p);
SELECT has_column_privilege('regress_apitoken_some', 'apitoken.roles', 'database_role', 'INSERT') AS insert,
	has_column_privilege('regress_apitoken_some', 'apitoken.roles', 'database_role', 'UPDATE') AS update;
SELECT oid::regprocedure AS never_granted FROM pg_catalog.pg_proc
WHERE pronamespace IN :schemas AND NOT has_function_privilege('regress_apitoken_some', oid, 'EXECUTE')
ORDER BY oid::regprocedure::text COLLATE "C";
-- the use that manage includes was also allowed by itself, and stays as other capabilities do
SELECT apitoken.disallow('regress_apitoken_some', 'manage');
SELECT privilege, kind, object, columns FROM public.regress_privileges
WHERE grantee = 'regress_apitoken_some'::regrole AND object !~ 'organizations|users|memberships' ORDER BY kind, object COLLATE "C", privilege;
SELECT apitoken.disallow('regress_apitoken_some', 'use', 'manage', 'verify', 'act', 'directory', 'monitor', 'notify', 'usage');
SELECT count(*) FROM public.regress_privileges WHERE grantee <> 0;

--
-- Each privilege is as it was before allow() once disallow() has run.  An item is
-- one privilege on one object or column.
--
CREATE VIEW public.regress_item AS
	SELECT a.grantee, a.privilege_type || ' ON FUNCTION ' || p.oid::regprocedure AS item, a.is_grantable
	FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a WHERE p.pronamespace IN :schemas
	UNION ALL
	SELECT a.grantee, a.privilege_type || ' ON ' || c.oid::regclass, a.is_grantable
	FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a WHERE c.relnamespace IN :schemas
	UNION ALL
	SELECT a.grantee, a.privilege_type || ' (' || t.attname || ') ON ' || t.attrelid::regclass, a.is_grantable
	FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid, pg_catalog.aclexplode(t.attacl) a WHERE c.relnamespace IN :schemas;
CREATE FUNCTION public.regress_has() RETURNS text[] LANGUAGE sql AS $$
	SELECT pg_catalog.array_agg(item || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END ORDER BY item)
	FROM public.regress_item WHERE pg_catalog.pg_get_userbyid(grantee) = 'regress_apitoken_some'
$$;
CREATE TABLE public.regress_capability (capability text, item text);
CREATE TABLE public.regress_wrong (n int GENERATED ALWAYS AS IDENTITY, what text);
SET client_min_messages = error;
DO $$
DECLARE
	capabilities text[] := '{use,manage,verify,act,directory,monitor}';
	a text;
	b text;
	before text[];
	single record;
BEGIN
	FOREACH a IN ARRAY capabilities LOOP
		PERFORM apitoken.allow('regress_apitoken_some', a);
		INSERT INTO public.regress_capability SELECT a, item FROM public.regress_item WHERE grantee = 'regress_apitoken_some'::regrole;
		PERFORM apitoken.disallow('regress_apitoken_some', a);
		INSERT INTO public.regress_wrong (what) SELECT pg_catalog.format('%s: %s', a, i) FROM pg_catalog.unnest(public.regress_has()) i;
	END LOOP;

	-- each pair
	FOREACH a IN ARRAY capabilities LOOP
		FOREACH b IN ARRAY capabilities LOOP
			CONTINUE WHEN a = b;
			PERFORM apitoken.allow('regress_apitoken_some', a);
			before := public.regress_has();
			PERFORM apitoken.allow('regress_apitoken_some', b);
			PERFORM apitoken.disallow('regress_apitoken_some', b);
			INSERT INTO public.regress_wrong (what) SELECT pg_catalog.format('%s, then %s', a, b) WHERE public.regress_has() <> before;
			PERFORM apitoken.allow('regress_apitoken_some', b);
			PERFORM apitoken.disallow('regress_apitoken_some', a, b);
			INSERT INTO public.regress_wrong (what) SELECT pg_catalog.format('%s and %s', a, b) WHERE public.regress_has() IS NOT NULL;
		END LOOP;
		COMMIT;
	END LOOP;

	-- each single privilege, before each capability; with grant option, before all of them
	FOR single IN SELECT DISTINCT item FROM public.regress_capability WHERE item !~ 'apitoken_internal.capabilities' LOOP
		EXECUTE 'GRANT ' || single.item || ' TO regress_apitoken_some';
		before := public.regress_has();
		FOREACH a IN ARRAY capabilities LOOP
			PERFORM apitoken.allow('regress_apitoken_some', a);
			PERFORM apitoken.disallow('regress_apitoken_some', a);
			INSERT INTO public.regress_wrong (what) SELECT pg_catalog.format('%s, then %s', single.item, a) WHERE public.regress_has() <> before;
		END LOOP;
		-- what it does not have cannot be taken away, and gives nothing
		PERFORM apitoken.disallow('regress_apitoken_some', VARIADIC capabilities);
		INSERT INTO public.regress_wrong (what) SELECT pg_catalog.format('%s alone', single.item) WHERE public.regress_has() <> before;
		EXECUTE 'GRANT ' || single.item || ' TO regress_apitoken_some WITH GRANT OPTION';
		before := public.regress_has();
		PERFORM apitoken.allow('regress_apitoken_some', VARIADIC capabilities);
		PERFORM apitoken.disallow('regress_apitoken_some', VARIADIC capabilities);
		INSERT INTO public.regress_wrong (what) SELECT pg_catalog.format('%s with grant option', single.item) WHERE public.regress_has() <> before;
		EXECUTE 'REVOKE ' || single.item || ' FROM regress_apitoken_some';
		-- so that the old versions of catalog rows can be removed
		COMMIT;
	END LOOP;
END $$;
-- any privileges of its own, then capabilities that come and go: always the union
DO $$
DECLARE
	capabilities text[] := '{use,manage,verify,act,directory,monitor}';
	own text[];
	had text[];
	capability text;
	single text;
BEGIN
	PERFORM pg_catalog.setseed(0.12);
	FOR walk IN 1 .. 10 LOOP
		own := ARRAY(SELECT item FROM (SELECT DISTINCT item FROM public.regress_capability WHERE item !~ 'apitoken_internal.capabilities' ORDER BY item) i WHERE pg_catalog.random() < walk / 12.0);
		had := '{}';
		FOREACH single IN ARRAY own LOOP
			EXECUTE 'GRANT ' || single || ' TO regress_apitoken_some';
		END LOOP;
		FOR step IN 1 .. 20 LOOP
			capability := capabilities[1 + pg_catalog.floor(6 * pg_catalog.random())];
			IF pg_catalog.random() < 0.5 THEN
				PERFORM apitoken.allow('regress_apitoken_some', capability);
				had := had || capability;
			ELSE
				PERFORM apitoken.disallow('regress_apitoken_some', capability);
				had := pg_catalog.array_remove(had, capability);
			END IF;
			INSERT INTO public.regress_wrong (what)
			SELECT pg_catalog.format('walk %s, step %s, with %s and %s: %s', walk, step, had, own, i)
			FROM ((SELECT item FROM public.regress_capability c WHERE c.capability = ANY (had) UNION SELECT pg_catalog.unnest(own)
					EXCEPT SELECT pg_catalog.unnest(public.regress_has()))
				UNION ALL
				(SELECT pg_catalog.unnest(public.regress_has())
					EXCEPT SELECT item FROM public.regress_capability c WHERE c.capability = ANY (had) EXCEPT SELECT pg_catalog.unnest(own))) d (i);
		END LOOP;
		PERFORM apitoken.disallow('regress_apitoken_some', VARIADIC capabilities);
		INSERT INTO public.regress_wrong (what) SELECT pg_catalog.format('end of walk %s', walk)
		WHERE public.regress_has() IS DISTINCT FROM (SELECT pg_catalog.array_agg(i ORDER BY i) FROM pg_catalog.unnest(own) i);
		FOREACH single IN ARRAY own LOOP
			EXECUTE 'REVOKE ' || single || ' FROM regress_apitoken_some';
		END LOOP;
		COMMIT;
	END LOOP;
END $$;
SET client_min_messages = warning;
SELECT pg_catalog.count(DISTINCT item) > 100 AS enough FROM public.regress_capability;
SELECT what FROM public.regress_wrong ORDER BY n LIMIT 20;
SELECT count(*) FROM apitoken_internal.own_privileges;
-- each capability has a column that marks it
SELECT c.capability, pg_catalog.array_agg(item) FILTER (WHERE item ~ 'apitoken_internal.capabilities') AS mark FROM public.regress_capability c GROUP BY 1 ORDER BY 1;

-- it is told what the role keeps
GRANT EXECUTE ON FUNCTION apitoken.verify(text, text, apitoken.id, inet, integer) TO regress_apitoken_some;
SELECT apitoken.allow('regress_apitoken_some', 'verify');
SELECT * FROM apitoken_internal.own_privileges;
SELECT apitoken.disallow('regress_apitoken_some', 'verify');
SELECT public.regress_has();
-- The role is renamed: what it had of its own is not known by the new name, and is taken.
-- Dropped and created again; privileges are revoked by hand.
SELECT apitoken.allow('regress_apitoken_some', 'verify', 'directory');
ALTER ROLE regress_apitoken_some RENAME TO regress_apitoken_renamed;
SELECT apitoken.disallow('regress_apitoken_renamed', 'verify', 'directory');
ALTER ROLE regress_apitoken_renamed RENAME TO regress_apitoken_some;
SELECT public.regress_has();
SELECT apitoken.allow('regress_apitoken_some', 'verify');
REVOKE EXECUTE ON FUNCTION apitoken.verify(text, text, apitoken.id, inet, integer), apitoken.introspect(text, text) FROM regress_apitoken_some;
SELECT apitoken.allow('regress_apitoken_some', 'verify');
SELECT apitoken.disallow('regress_apitoken_some', 'verify');
SELECT public.regress_has();
GRANT SELECT ON apitoken.users TO regress_apitoken_some;
SELECT apitoken.allow('regress_apitoken_some', 'directory', 'act');
DROP OWNED BY regress_apitoken_some;
SELECT public.regress_has();
SELECT apitoken.allow('regress_apitoken_some', 'manage');
SELECT apitoken.disallow('regress_apitoken_some', 'manage');
SELECT public.regress_has();
GRANT SELECT ON apitoken.users TO regress_apitoken_some;
SELECT apitoken.allow('regress_apitoken_some', 'directory');
DROP OWNED BY regress_apitoken_some;
DROP ROLE regress_apitoken_some;
CREATE ROLE regress_apitoken_some LOGIN;
SELECT apitoken.allow('regress_apitoken_some', 'directory');
SELECT apitoken.disallow('regress_apitoken_some', 'directory');
SELECT public.regress_has();
DELETE FROM apitoken_internal.own_privileges WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = database_role);
SELECT * FROM apitoken_internal.own_privileges;

-- another role has granted all or a part of a capability
GRANT EXECUTE ON FUNCTION apitoken.act_as(apitoken.id), apitoken.verify(text, text, apitoken.id, inet, integer) TO regress_apitoken_nobody WITH GRANT OPTION;
SET ROLE regress_apitoken_nobody;
GRANT EXECUTE ON FUNCTION apitoken.act_as(apitoken.id), apitoken.verify(text, text, apitoken.id, inet, integer) TO regress_apitoken_some;
RESET ROLE;
SELECT apitoken.allow('regress_apitoken_some', 'act', 'verify');
SELECT apitoken.disallow('regress_apitoken_some', 'act');
SELECT apitoken.disallow('regress_apitoken_some', 'verify');
SELECT public.regress_has();
REVOKE ALL ON FUNCTION apitoken.act_as(apitoken.id), apitoken.verify(text, text, apitoken.id, inet, integer) FROM regress_apitoken_nobody CASCADE;
SELECT apitoken.disallow('regress_apitoken_some', 'act');
SELECT public.regress_has();
-- the role has granted a privilege on
SELECT apitoken.allow('regress_apitoken_some', 'act');
GRANT EXECUTE ON FUNCTION apitoken.act_as(apitoken.id) TO regress_apitoken_some WITH GRANT OPTION;
SET ROLE regress_apitoken_some;
GRANT EXECUTE ON FUNCTION apitoken.act_as(apitoken.id) TO regress_apitoken_nobody;
RESET ROLE;
SELECT public.regress_try($$SELECT apitoken.disallow('regress_apitoken_some', 'act')$$);
SELECT public.regress_has();
REVOKE GRANT OPTION FOR EXECUTE ON FUNCTION apitoken.act_as(apitoken.id) FROM regress_apitoken_some CASCADE;
SELECT apitoken.disallow('regress_apitoken_some', 'act');
SELECT public.regress_has();

-- event triggers see each GRANT and REVOKE
CREATE FUNCTION public.regress_seen() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
	command record;
BEGIN
	FOR command IN SELECT * FROM pg_catalog.pg_event_trigger_ddl_commands() LOOP
		RAISE INFO '% %', command.command_tag, command.object_type;
	END LOOP;
END
$$;
CREATE EVENT TRIGGER regress_apitoken_seen ON ddl_command_end EXECUTE FUNCTION public.regress_seen();
SELECT apitoken.allow('regress_apitoken_some', 'monitor');
SELECT apitoken.disallow('regress_apitoken_some', 'monitor');
DROP EVENT TRIGGER regress_apitoken_seen;
DROP FUNCTION public.regress_seen();
DROP FUNCTION public.regress_has();
DROP VIEW public.regress_item;
DROP TABLE public.regress_capability, public.regress_wrong;

--
-- What a login reaches that tries everything, without and with each capability:
-- every command on every relation and column, and every function.  What is not
-- listed is refused with 42501.  Nothing is kept.
--
CREATE FUNCTION public.regress_reach(sql text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE sql;
	RAISE SQLSTATE 'DONE0';
EXCEPTION
	WHEN SQLSTATE 'DONE0' THEN RETURN 'done';
	WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
CREATE TABLE public.regress_attempt AS
	WITH relation AS (
		SELECT oid, oid::regclass::text AS name, relkind, CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind
		FROM pg_catalog.pg_class WHERE relnamespace IN :schemas AND relkind IN ('r', 'v')
	)
	SELECT c AS command, name AS object, pg_catalog.format(c, name, kind) AS sql
	FROM relation, pg_catalog.unnest(ARRAY['TABLE %s', 'INSERT INTO %s DEFAULT VALUES', 'DELETE FROM %s', 'LOCK %s IN ACCESS EXCLUSIVE MODE',
		'COMMENT ON %2$s %1$s IS NULL', 'DROP %2$s %1$s CASCADE']) c
	UNION ALL
	SELECT c, name, pg_catalog.format(c, name)
	FROM relation, pg_catalog.unnest(ARRAY['TRUNCATE %s CASCADE', 'SELECT * FROM %s FOR UPDATE', 'ALTER TABLE %s DISABLE ROW LEVEL SECURITY',
		'ALTER TABLE %s DISABLE TRIGGER ALL', 'ALTER TABLE %s ADD COLUMN more int', 'ALTER TABLE %s SET (autovacuum_enabled = off)', 'CREATE INDEX ON %s ((1))', 'CREATE POLICY mine ON %s USING (true)',
		'CREATE RULE mine AS ON INSERT TO %s DO NOTHING', 'CREATE TRIGGER mine BEFORE INSERT ON %s EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()']) c WHERE relkind = 'r'
	UNION ALL
	SELECT c, r.name || '.' || a.attname, pg_catalog.format(c, r.name, a.attname)
	FROM relation r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0,
		pg_catalog.unnest(ARRAY['SELECT %2$I FROM %1$s', 'UPDATE %s SET %I = DEFAULT', 'INSERT INTO %s (%I) VALUES (DEFAULT)']) c
	UNION ALL
	SELECT 'SELECT %s', oid::regprocedure::text, pg_catalog.format('SELECT %s(%s)', oid::regproc,
		(SELECT pg_catalog.string_agg(CASE WHEN provariadic <> 0 AND n = pronargs THEN 'VARIADIC ' ELSE '' END || 'NULL::' || t::regtype, ', ' ORDER BY n) FROM pg_catalog.unnest(proargtypes) WITH ORDINALITY AS u (t, n)))
	FROM pg_catalog.pg_proc WHERE pronamespace IN :schemas AND NOT 'internal'::regtype = ANY (proargtypes)
	UNION ALL
	SELECT c, oid::regprocedure::text, pg_catalog.format(c, oid::regprocedure)
	FROM pg_catalog.pg_proc, pg_catalog.unnest(ARRAY['ALTER FUNCTION %s SECURITY DEFINER', 'DROP FUNCTION %s CASCADE']) c
	WHERE pronamespace IN :schemas
	UNION ALL
	SELECT c, '', c FROM pg_catalog.unnest(ARRAY['DROP EXTENSION apitoken CASCADE', 'ALTER EXTENSION apitoken UPDATE', 'ALTER EXTENSION apitoken DROP FUNCTION apitoken.mask(text)',
		'CREATE TABLE apitoken.mine ()', 'CREATE TABLE apitoken_internal.mine ()', 'DROP SCHEMA apitoken CASCADE', 'GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC']) c
	UNION ALL
	SELECT 'SET', name, pg_catalog.format('SET %s = %s', name, boot_val) FROM pg_catalog.pg_settings WHERE name LIKE 'apitoken.%' AND vartype IN ('bool', 'integer') AND context <> 'postmaster' AND name <> 'apitoken.usage_slots'
	UNION ALL
	SELECT c, name, pg_catalog.format(c, name, boot_val) FROM pg_catalog.pg_settings, pg_catalog.unnest(ARRAY['SET %s = %L', 'SHOW %s']) c WHERE name LIKE 'apitoken.%' AND vartype = 'string';
SELECT pg_catalog.count(*) > 500 AS enough FROM public.regress_attempt;
CREATE TABLE public.regress_reached (capability text, command text, object text, outcome text);
GRANT SELECT ON public.regress_attempt TO PUBLIC;
GRANT ALL ON public.regress_reached TO PUBLIC;
-- rows that the login may not see
INSERT INTO apitoken.organizations (id) VALUES ('acme');
INSERT INTO apitoken.users (id, email) VALUES ('ada', 'ada@example.com');
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin');
SELECT (apitoken.create_token('x', 'acme')).id IS NOT NULL AS made, (apitoken.create_token('x', user_id => 'ada')).id IS NOT NULL AS made;
SET client_min_messages = error;
DO $$
DECLARE
	c text;
BEGIN
	FOREACH c IN ARRAY '{none,use,manage,verify,act,directory,monitor}'::text[] LOOP
		IF c <> 'none' THEN
			PERFORM apitoken.allow('regress_apitoken_some', c);
		END IF;
		SET LOCAL SESSION AUTHORIZATION regress_apitoken_some;
		INSERT INTO public.regress_reached SELECT c, command, object, public.regress_reach(sql) FROM public.regress_attempt;
		RESET SESSION AUTHORIZATION;
		IF c <> 'none' THEN
			PERFORM apitoken.disallow('regress_apitoken_some', c);
		END IF;
	END LOOP;
END $$;
RESET client_min_messages;
-- what everybody reaches, and what each capability adds or changes
\pset format unaligned
SELECT capability, command, outcome, pg_catalog.string_agg(object, ' ' ORDER BY object COLLATE "C") AS objects
FROM public.regress_reached
WHERE outcome <> '42501' AND (capability = 'none' OR (command, object, outcome) NOT IN (SELECT command, object, outcome FROM public.regress_reached WHERE capability = 'none'))
GROUP BY 1, 2, 3 ORDER BY pg_catalog.array_position('{none,use,manage,verify,act,directory,monitor}', capability), command COLLATE "C", outcome COLLATE "C";
\pset format aligned
SELECT (SELECT pg_catalog.count(*) FROM apitoken.tokens WHERE status = 'active') AS tokens, (SELECT pg_catalog.count(*) FROM apitoken.memberships) AS memberships;
DELETE FROM apitoken.organizations;
DELETE FROM apitoken.users;
DROP TABLE public.regress_attempt, public.regress_reached;
DROP FUNCTION public.regress_reach(text);

-- errors leave no partial grants
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_some', 'use', 'nonsense')$$);
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_some', 'nonsense', 'use')$$);
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_some', 'USE')$$);
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_some', '')$$);
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_some', VARIADIC '{use,NULL}')$$);
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_some', VARIADIC '{}')$$);
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_some', VARIADIC NULL)$$);
SELECT public.regress_try($$SELECT apitoken.allow(NULL, 'use')$$);
SELECT public.regress_try($$SELECT apitoken.allow('regress_apitoken_missing', 'use')$$);
SELECT public.regress_try($$SELECT apitoken.allow('public', 'use')$$);
SELECT public.regress_try($$SELECT apitoken.disallow('regress_apitoken_some', 'nonsense')$$);
SELECT public.regress_try($$SELECT apitoken.disallow('regress_apitoken_missing', 'use')$$);
SELECT count(*) FROM public.regress_privileges WHERE grantee <> 0;
-- a role whose name needs quotes in SQL: the functions take the name as it is
CREATE ROLE "regress_apitoken_Some ""one""";
SELECT apitoken.allow('regress_apitoken_Some "one"', 'act');
SELECT grantee::regrole, object FROM public.regress_privileges WHERE grantee <> 0;
SELECT apitoken.disallow('regress_apitoken_Some "one"', 'act');
DROP ROLE "regress_apitoken_Some ""one""";

DROP ROLE regress_apitoken_some, regress_apitoken_nobody;
DROP VIEW public.regress_privileges;
DROP TABLE public.regress_described;

--
-- Whatever the default privileges of the installing role are, every object has the
-- same privileges.  Those in a schema can only come from an event trigger: the
-- script creates the schemas.
--
CREATE ROLE regress_apitoken_default;
CREATE ROLE "regress_apitoken_Default ""two""";
CREATE FUNCTION public.regress_default() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
	schema text;
	command text;
BEGIN
	FOR schema IN SELECT object_identity FROM pg_catalog.pg_event_trigger_ddl_commands() WHERE object_type = 'schema' LOOP
		FOREACH command IN ARRAY pg_catalog.string_to_array(pg_catalog.current_setting('regress.default'), ';') LOOP
			EXECUTE 'ALTER DEFAULT PRIVILEGES IN SCHEMA ' || schema || ' ' || command;
		END LOOP;
	END LOOP;
END
$$;
CREATE FUNCTION public.regress_install(commands text[], in_schema bool) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	command text;
	answer text;
BEGIN
	DROP EXTENSION apitoken;
	IF in_schema THEN
		PERFORM pg_catalog.set_config('regress.default', pg_catalog.array_to_string(commands, ';'), true);
		CREATE EVENT TRIGGER regress_apitoken_default ON ddl_command_end WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION public.regress_default();
	ELSE
		FOREACH command IN ARRAY commands LOOP
			EXECUTE 'ALTER DEFAULT PRIVILEGES ' || command;
		END LOOP;
	END IF;
	CREATE EXTENSION apitoken;
	answer := (SELECT coalesce(pg_catalog.string_agg(entry, E'\n' ORDER BY entry), 'the same') FROM (
		SELECT 'missing: ' || entry AS entry FROM (SELECT entry FROM public.regress_installed EXCEPT ALL SELECT entry FROM public.regress_acls) m
		UNION ALL
		SELECT 'more: ' || entry FROM (SELECT entry FROM public.regress_acls EXCEPT ALL SELECT entry FROM public.regress_installed) m) d)
		|| ', with default privileges for ' || (SELECT pg_catalog.string_agg(defaclobjtype::text || CASE WHEN defaclnamespace = 0 THEN '' ELSE ' in schema' END, ', ' ORDER BY defaclnamespace::regnamespace::text, defaclobjtype) FROM pg_catalog.pg_default_acl);
	DROP EVENT TRIGGER IF EXISTS regress_apitoken_default;
	-- back to the server's own
	DROP EXTENSION apitoken;
	FOREACH command IN ARRAY '{TABLES,SEQUENCES,FUNCTIONS,TYPES,SCHEMAS}'::text[] LOOP
		EXECUTE 'ALTER DEFAULT PRIVILEGES REVOKE ALL ON ' || command || ' FROM PUBLIC, regress_apitoken_default, "regress_apitoken_Default ""two""", pg_monitor';
		EXECUTE 'ALTER DEFAULT PRIVILEGES GRANT ALL ON ' || command || ' TO CURRENT_USER';
	END LOOP;
	ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
	ALTER DEFAULT PRIVILEGES GRANT USAGE ON TYPES TO PUBLIC;
	CREATE EXTENSION apitoken;
	RETURN answer;
END
$$;
SELECT public.regress_install(ARRAY(SELECT pg_catalog.format('GRANT ALL ON %s TO regress_apitoken_default, "regress_apitoken_Default ""two""", pg_monitor WITH GRANT OPTION', k)
	FROM pg_catalog.unnest('{TABLES,SEQUENCES,FUNCTIONS,TYPES,SCHEMAS}'::text[]) k), false) AS granted;
SELECT public.regress_install(ARRAY(SELECT pg_catalog.format('GRANT ALL ON %s TO PUBLIC', k)
	FROM pg_catalog.unnest('{TABLES,SEQUENCES,FUNCTIONS,TYPES,SCHEMAS}'::text[]) k), false) AS granted_to_public;
SELECT public.regress_install(ARRAY(SELECT pg_catalog.format('REVOKE ALL ON %s FROM PUBLIC', k)
	FROM pg_catalog.unnest('{TABLES,SEQUENCES,FUNCTIONS,TYPES,SCHEMAS}'::text[]) k), false) AS revoked;
-- (a default without any grant at all means the server's own)
SELECT public.regress_install(ARRAY(SELECT pg_catalog.format(c, k)
	FROM pg_catalog.unnest('{GRANT ALL ON %s TO regress_apitoken_default,"REVOKE ALL ON %s FROM PUBLIC, CURRENT_USER"}'::text[]) c,
		pg_catalog.unnest('{TABLES,SEQUENCES,FUNCTIONS,TYPES,SCHEMAS}'::text[]) k), false) AS revoked_from_owner;
SELECT public.regress_install(ARRAY(SELECT pg_catalog.format('GRANT ALL ON %s TO regress_apitoken_default, "regress_apitoken_Default ""two""", PUBLIC', k)
	FROM pg_catalog.unnest('{TABLES,SEQUENCES,FUNCTIONS,TYPES}'::text[]) k), true) AS granted_in_schema;
DROP FUNCTION public.regress_install(text[], bool);
DROP FUNCTION public.regress_default();
DROP ROLE regress_apitoken_default, "regress_apitoken_Default ""two""";
DROP VIEW public.regress_acls;
DROP TABLE public.regress_installed;

--
-- DROP EXTENSION leaves nothing
--
DROP EXTENSION apitoken;
SELECT o::text = :'before' AS nothing_left FROM public.regress_objects o;
SELECT pg_catalog.to_regnamespace('apitoken'), pg_catalog.to_regnamespace('apitoken_internal');
-- CREATE EXTENSION creates nothing if somebody else has made one of the schemas
CREATE SCHEMA apitoken;
SELECT public.regress_try('CREATE EXTENSION apitoken');
DROP SCHEMA apitoken;
CREATE SCHEMA apitoken_internal;
SELECT public.regress_try('CREATE EXTENSION apitoken');
DROP SCHEMA apitoken_internal;
SELECT o::text = :'before' AS nothing_left FROM public.regress_objects o;
-- digests agree with pgcrypto's, whatever its schema
CREATE SCHEMA "regress_apitoken Elsewhere";
CREATE EXTENSION pgcrypto SCHEMA "regress_apitoken Elsewhere";
CREATE EXTENSION apitoken;
SELECT apitoken.hash('text') = "regress_apitoken Elsewhere".digest('text', 'sha256') AS same;
SELECT label FROM apitoken.tokens;
-- a user's table with the extension's type prevents DROP EXTENSION without CASCADE
CREATE TABLE public.regress_verifications (v apitoken.verification);
SELECT public.regress_try('DROP EXTENSION apitoken');
DROP TABLE public.regress_verifications;
DROP EXTENSION apitoken CASCADE;
DROP EXTENSION pgcrypto;
DROP SCHEMA "regress_apitoken Elsewhere";
SELECT o::text = :'before' AS nothing_left FROM public.regress_objects o;
DROP VIEW public.regress_objects;
DROP FUNCTION public.regress_try(text);
