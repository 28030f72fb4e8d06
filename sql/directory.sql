--
-- organizations, users, memberships and roles: kept in step with an
-- application's own tables, by a role with the capability directory.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;

CREATE ROLE regress_apitoken_app LOGIN;
CREATE ROLE regress_apitoken_job LOGIN;
CREATE ROLE regress_apitoken_login LOGIN;
SELECT apitoken.allow('regress_apitoken_job', 'directory');
SELECT apitoken.allow('regress_apitoken_login', 'act', 'manage', 'verify');

-- everything the directory holds, without the roles
CREATE VIEW public.regress_directory AS
	SELECT 'organization' AS kind, id, name AS name, CASE WHEN suspended_at IS NOT NULL THEN 'suspended' END AS what FROM apitoken.organizations
	UNION ALL SELECT 'user', id, name, concat_ws(' ', email, groups::text, CASE WHEN suspended_at IS NOT NULL THEN 'suspended' END) FROM apitoken.users
	UNION ALL SELECT 'member', organization_id, user_id, role FROM apitoken.memberships;
-- and the tokens: what verify says, why they were revoked, and by how many events
CREATE TABLE public.regress_token (label text, token text);
GRANT ALL ON public.regress_token TO PUBLIC;
CREATE VIEW public.regress_verdict AS
	SELECT t.label, v.verdict, r.revoke_reason, r.revoked_by,
		(SELECT string_agg(action, ' ' ORDER BY e.id) FROM apitoken.events e WHERE e.token_id = r.id) AS events
	FROM public.regress_token t, LATERAL apitoken.verify(t.token) v JOIN apitoken_internal.token_records r ON r.id = v.token_id;

--
-- An application with uuid keys.  The role that writes its tables holds the
-- capability directory, so the trigger functions need nothing special.
--
CREATE SCHEMA app AUTHORIZATION regress_apitoken_job;
SET SESSION AUTHORIZATION regress_apitoken_job;
CREATE TABLE app.accounts (
	id uuid PRIMARY KEY,
	name text NOT NULL,
	suspended_at timestamptz
);
CREATE TABLE app.people (
	id uuid PRIMARY KEY,
	full_name text NOT NULL,
	email text,
	teams text[] NOT NULL DEFAULT '{}',
	blocked_at timestamptz
);
CREATE TABLE app.account_members (
	account_id uuid REFERENCES app.accounts ON DELETE CASCADE,
	person_id uuid REFERENCES app.people ON DELETE CASCADE,
	is_owner boolean NOT NULL DEFAULT false,
	PRIMARY KEY (account_id, person_id)
);
-- a user and an account that existed before the recipe
INSERT INTO app.accounts VALUES ('a0000000-0000-0000-0000-000000000001', 'Old account');
INSERT INTO app.people VALUES ('b0000000-0000-0000-0000-000000000001', 'Olga Old');
INSERT INTO app.account_members VALUES ('a0000000-0000-0000-0000-000000000001', 'b0000000-0000-0000-0000-000000000001', true);

-- recipe: directory, uuid ids
CREATE FUNCTION app.sync_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND NEW.id <> OLD.id) THEN
		DELETE FROM apitoken.organizations WHERE id = OLD.id::text;
	END IF;
	IF TG_OP <> 'DELETE' THEN
		INSERT INTO apitoken.organizations (id, name, suspended_at)
		VALUES (NEW.id::text, NEW.name, NEW.suspended_at)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, suspended_at = excluded.suspended_at;
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER sync_account AFTER INSERT OR UPDATE OR DELETE ON app.accounts
	FOR EACH ROW EXECUTE FUNCTION app.sync_account();

CREATE FUNCTION app.sync_person() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND NEW.id <> OLD.id) THEN
		DELETE FROM apitoken.users WHERE id = OLD.id::text;
	END IF;
	IF TG_OP <> 'DELETE' THEN
		INSERT INTO apitoken.users (id, name, email, groups, suspended_at)
		VALUES (NEW.id::text, NEW.full_name, NEW.email, NEW.teams, NEW.blocked_at)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email,
			groups = excluded.groups, suspended_at = excluded.suspended_at;
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER sync_person AFTER INSERT OR UPDATE OR DELETE ON app.people
	FOR EACH ROW EXECUTE FUNCTION app.sync_person();

CREATE FUNCTION app.sync_member() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP <> 'INSERT' THEN
		DELETE FROM apitoken.memberships
		WHERE organization_id = OLD.account_id::text AND user_id = OLD.person_id::text;
	END IF;
	IF TG_OP <> 'DELETE' THEN
		INSERT INTO apitoken.memberships (organization_id, user_id, role)
		VALUES (NEW.account_id::text, NEW.person_id::text, CASE WHEN NEW.is_owner THEN 'admin' ELSE 'developer' END);
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER sync_member AFTER INSERT OR UPDATE OR DELETE ON app.account_members
	FOR EACH ROW EXECUTE FUNCTION app.sync_member();

-- once, for what was there before: each row through its trigger
UPDATE app.accounts SET id = id;
UPDATE app.people SET id = id;
UPDATE app.account_members SET is_owner = is_owner;
-- end of recipe

RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_directory ORDER BY 1, 2, 3;

-- what the application writes afterwards
SET SESSION AUTHORIZATION regress_apitoken_job;
INSERT INTO app.accounts VALUES ('a0000000-0000-0000-0000-000000000002', 'Acme');
INSERT INTO app.people VALUES ('b0000000-0000-0000-0000-000000000002', 'Ada', 'ada@example.com', '{staff}'),
	('b0000000-0000-0000-0000-000000000003', 'Bob', NULL, '{}');
INSERT INTO app.account_members VALUES ('a0000000-0000-0000-0000-000000000002', 'b0000000-0000-0000-0000-000000000002', true),
	('a0000000-0000-0000-0000-000000000002', 'b0000000-0000-0000-0000-000000000003', false);
UPDATE app.accounts SET name = 'Acme Ltd' WHERE name = 'Acme';
UPDATE app.people SET teams = '{staff,press}' WHERE full_name = 'Ada';
UPDATE app.account_members SET is_owner = true WHERE person_id = 'b0000000-0000-0000-0000-000000000003';
DELETE FROM app.accounts WHERE name = 'Old account';
DELETE FROM app.people WHERE full_name = 'Olga Old';
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_directory ORDER BY 1, 2, 3;

-- tokens of both: Bob makes two for the account, and one of his own
SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT apitoken.act_as('b0000000-0000-0000-0000-000000000003') IS NOT NULL AS acts, apitoken.whoami()->'groups' AS groups;
INSERT INTO public.regress_token SELECT 'ours', token FROM apitoken.create_token('ours', organization_id => 'a0000000-0000-0000-0000-000000000002');
INSERT INTO public.regress_token SELECT 'also ours', token FROM apitoken.create_token('also ours', organization_id => 'a0000000-0000-0000-0000-000000000002');
INSERT INTO public.regress_token SELECT 'mine', token FROM apitoken.create_token('mine');
COMMIT;
BEGIN;
SELECT apitoken.act_as('b0000000-0000-0000-0000-000000000002') IS NOT NULL AS acts, apitoken.whoami()->'groups' AS groups;
INSERT INTO public.regress_token SELECT 'adas', token FROM apitoken.create_token('adas');
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_verdict ORDER BY 1;

-- the application suspends and resumes
UPDATE app.accounts SET suspended_at = now();
UPDATE app.people SET blocked_at = now() WHERE full_name = 'Bob';
SELECT * FROM public.regress_verdict ORDER BY 1;
UPDATE app.accounts SET suspended_at = NULL;
UPDATE app.people SET blocked_at = NULL;
SELECT label, verdict FROM public.regress_verdict ORDER BY 1;

-- Bob leaves: his own tokens end, those that he made for the account still work.
-- A rollback undoes this.
SET SESSION AUTHORIZATION regress_apitoken_job;
BEGIN;
DELETE FROM app.people WHERE full_name = 'Bob';
ROLLBACK;
RESET SESSION AUTHORIZATION;
SELECT label, verdict FROM public.regress_verdict ORDER BY 1;
SET SESSION AUTHORIZATION regress_apitoken_job;
DELETE FROM app.people WHERE full_name = 'Bob';
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_verdict ORDER BY 1;
SELECT * FROM public.regress_directory ORDER BY 1, 2, 3;

-- the account is deleted
SET SESSION AUTHORIZATION regress_apitoken_job;
DELETE FROM app.accounts;
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_verdict ORDER BY 1;
SELECT * FROM public.regress_directory ORDER BY 1, 2, 3;
SELECT DISTINCT actor, actor_token_id, database_user FROM apitoken.events WHERE action = 'revoke';

-- Using the same ids again revives no token and no membership, and nobody can
-- bring them back by any path.
SET SESSION AUTHORIZATION regress_apitoken_job;
INSERT INTO app.accounts VALUES ('a0000000-0000-0000-0000-000000000002', 'Another Acme');
INSERT INTO app.people VALUES ('b0000000-0000-0000-0000-000000000003', 'Another Bob');
RESET SESSION AUTHORIZATION;
SELECT label, verdict FROM public.regress_verdict ORDER BY 1;
SELECT * FROM public.regress_directory ORDER BY 1, 2, 3;
SET SESSION AUTHORIZATION regress_apitoken_job;
INSERT INTO app.account_members VALUES ('a0000000-0000-0000-0000-000000000002', 'b0000000-0000-0000-0000-000000000003', true);
SET SESSION AUTHORIZATION regress_apitoken_login;
\set VERBOSITY sqlstate
BEGIN;
SELECT apitoken.act_as('b0000000-0000-0000-0000-000000000003') IS NOT NULL AS acts, apitoken.whoami()->>'source' AS source;
SAVEPOINT s;
SELECT label, status FROM apitoken.tokens ORDER BY label;
UPDATE apitoken.tokens SET suspended_at = NULL, expires_at = NULL, description = 'back' WHERE label = 'mine';
ROLLBACK TO s;
UPDATE apitoken.tokens SET label = 'mine again' WHERE label = 'ours';
ROLLBACK TO s;
SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = 'mine';
ROLLBACK TO s;
SELECT apitoken.regenerate_token(id, '1 hour', '30 days') FROM apitoken.tokens WHERE label = 'ours';
ROLLBACK TO s;
UPDATE apitoken_internal.token_records SET revoked_at = NULL;
ROLLBACK TO s;
SELECT label, apitoken.revoke_token(id, label) FROM apitoken.tokens ORDER BY label;
-- the labels are free again
SELECT count(*) FROM (SELECT apitoken.create_token('mine') UNION ALL
	SELECT apitoken.create_token('ours', organization_id => 'a0000000-0000-0000-0000-000000000002')) t;
ROLLBACK;
RESET SESSION AUTHORIZATION;
\set VERBOSITY terse
SELECT label, verdict FROM public.regress_verdict ORDER BY 1;

-- ids that change: the old owner is deleted
SET SESSION AUTHORIZATION regress_apitoken_job;
DELETE FROM app.account_members;
UPDATE app.accounts SET id = 'a0000000-0000-0000-0000-000000000009';
UPDATE app.people SET id = 'b0000000-0000-0000-0000-000000000009' WHERE full_name = 'Another Bob';
RESET SESSION AUTHORIZATION;
SELECT kind, id, name FROM public.regress_directory ORDER BY 1, 2, 3;
SELECT label, verdict FROM public.regress_verdict ORDER BY 1;
DROP SCHEMA app CASCADE;
DELETE FROM apitoken.organizations;
DELETE FROM apitoken.users;
TRUNCATE public.regress_token;

--
-- An application with bigint keys, whose login has no privilege on the
-- extension: the trigger functions run as the job.
--
CREATE SCHEMA app AUTHORIZATION regress_apitoken_app;
SET SESSION AUTHORIZATION regress_apitoken_app;
CREATE TABLE app.companies (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL
);
CREATE TABLE app.users (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	company_id bigint REFERENCES app.companies ON DELETE CASCADE,	-- each user is in one
	role text NOT NULL DEFAULT 'developer',							-- a name in apitoken.roles
	name text NOT NULL,
	active boolean NOT NULL DEFAULT true
);
RESET SESSION AUTHORIZATION;
GRANT USAGE, CREATE ON SCHEMA app TO regress_apitoken_job;
SET SESSION AUTHORIZATION regress_apitoken_job;

-- recipe: directory, bigint ids
CREATE FUNCTION app.sync_company() RETURNS trigger LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		DELETE FROM apitoken.organizations WHERE id = OLD.id::text;
	ELSE
		INSERT INTO apitoken.organizations (id, name) VALUES (NEW.id::text, NEW.name)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name;
	END IF;
	RETURN NULL;
END
$$;

CREATE FUNCTION app.sync_user() RETURNS trigger LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		DELETE FROM apitoken.users WHERE id = OLD.id::text;
		RETURN NULL;
	END IF;
	INSERT INTO apitoken.users (id, name, suspended_at)
	VALUES (NEW.id::text, NEW.name, CASE WHEN NOT NEW.active THEN now() END)
	ON CONFLICT (id) DO UPDATE SET name = excluded.name, suspended_at = excluded.suspended_at;
	DELETE FROM apitoken.memberships
	WHERE user_id = NEW.id::text AND organization_id IS DISTINCT FROM NEW.company_id::text;
	IF NEW.company_id IS NOT NULL THEN
		INSERT INTO apitoken.memberships (organization_id, user_id, role)
		VALUES (NEW.company_id::text, NEW.id::text, NEW.role)
		ON CONFLICT (organization_id, user_id) DO UPDATE SET role = excluded.role;
	END IF;
	RETURN NULL;
END
$$;
-- end of recipe

REVOKE ALL ON FUNCTION app.sync_company(), app.sync_user() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.sync_company(), app.sync_user() TO regress_apitoken_app;
SET SESSION AUTHORIZATION regress_apitoken_app;

-- recipe: directory, bigint ids, the triggers
CREATE TRIGGER sync_company AFTER INSERT OR UPDATE OF name OR DELETE ON app.companies
	FOR EACH ROW EXECUTE FUNCTION app.sync_company();
CREATE TRIGGER sync_user AFTER INSERT OR UPDATE OR DELETE ON app.users
	FOR EACH ROW EXECUTE FUNCTION app.sync_user();
-- end of recipe

INSERT INTO app.companies (name) VALUES ('Acme'), ('Beta');
INSERT INTO app.users (company_id, role, name) VALUES (1, 'admin', 'Ada'), (1, 'developer', 'Bob'), (2, 'admin', 'Zoe'), (NULL, 'admin', 'Eve');
UPDATE app.users SET company_id = 2 WHERE name = 'Bob';
-- a role that does not exist is refused, and the application's write fails with it
\set VERBOSITY sqlstate
UPDATE app.users SET role = 'chief' WHERE name = 'Ada';
-- the login itself may do none of it
INSERT INTO apitoken.memberships VALUES ('1', '4', 'admin');
SELECT 1 FROM apitoken.users;
SELECT app.sync_user();
\set VERBOSITY terse
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_directory ORDER BY 1, 2, 3;

SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT apitoken.act_as('1') AS user_id;
-- ids as the application has them
SELECT apitoken.can('article:read', 1), apitoken.can('article:read', 1::bigint), apitoken.can('article:read', 2::bigint), apitoken.can('article:read', NULL::bigint);
SELECT array_agg(o::bigint) FROM apitoken.organizations_allowed('article:read') o;
INSERT INTO public.regress_token SELECT 'ours', token FROM apitoken.create_token('ours', organization_id => '1');
INSERT INTO public.regress_token SELECT 'mine', token FROM apitoken.create_token('mine');
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_app;
UPDATE app.users SET active = false WHERE name = 'Ada';
RESET SESSION AUTHORIZATION;
SELECT label, verdict FROM public.regress_verdict ORDER BY 1;
SET SESSION AUTHORIZATION regress_apitoken_app;
UPDATE app.users SET active = true WHERE name = 'Ada';
DELETE FROM app.companies WHERE name = 'Acme';
RESET SESSION AUTHORIZATION;
SELECT label, verdict, revoke_reason FROM public.regress_verdict ORDER BY 1;
SELECT * FROM public.regress_directory ORDER BY 1, 2, 3;
DROP SCHEMA app CASCADE;
DELETE FROM apitoken.organizations;
DELETE FROM apitoken.users;
TRUNCATE public.regress_token;

--
-- Personal tokens need no synchronization: an unknown user gets a row when they
-- first create a token, and not before.
--
SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT apitoken.act_as('4711') AS acts, apitoken.whoami()->>'source' AS source;
SELECT count(*) FROM apitoken.list_tokens();
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_directory;
SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT apitoken.act_as('4711') AS acts, apitoken.whoami()->>'source' AS source;
INSERT INTO public.regress_token SELECT 'personal', token FROM apitoken.create_token('personal');
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT * FROM public.regress_directory;
SELECT label, verdict FROM public.regress_verdict;
-- deleting the application's user deletes that row
SET SESSION AUTHORIZATION regress_apitoken_job;
DELETE FROM apitoken.users WHERE id = '4711';
RESET SESSION AUTHORIZATION;
SELECT label, verdict, revoke_reason FROM public.regress_verdict;

--
-- Roles, by the job.
--
CREATE TABLE public.regress_command (n int GENERATED ALWAYS AS IDENTITY, command text);
GRANT SELECT ON public.regress_command TO PUBLIC;
INSERT INTO public.regress_command (command) VALUES
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('editor', '{article:*,*:list,token:read}')$$),
	($$INSERT INTO apitoken.roles (name, description, permissions) VALUES ('idle', 'nothing', '{}')$$),
	-- there already: not replaced, as the owner's insert would
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('editor', '{*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('admin', '{}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('editor', '{*}') ON CONFLICT (name) DO UPDATE SET permissions = '{article:read}'$$),
	-- no patterns
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{article}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{article:read:now}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{article:re*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{":read"}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{"article: read"}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{""}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{NULL}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', '{{a:b},{c:d}}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('x', NULL)$$),
	($$INSERT INTO apitoken.roles (name, permissions) SELECT 'x', array_agg('a' || n || ':b') FROM generate_series(1, 101) n$$),
	($$UPDATE apitoken.roles SET permissions = '{article}' WHERE name = 'editor'$$),
	-- names
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (NULL, '{}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('', '{}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (repeat('x', 64), '{}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES ('editor ', '{*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (E'\u00a0admin', '{*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (E'admin\u200b', '{*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (E' \u3000', '{*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (E'\u200d', '{*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (E'\u202enimda', '{*}')$$),
	($$INSERT INTO apitoken.roles (name, permissions) VALUES (E'ad\nmin', '{*}')$$),
	($$UPDATE apitoken.roles SET name = 'author' WHERE name = 'editor'$$),
	-- the built-in ones stay, and may be edited
	($$UPDATE apitoken.roles SET description = 'Boss', permissions = '{*:*,token:*}' WHERE name = 'admin'$$),
	($$DELETE FROM apitoken.roles WHERE name = 'admin'$$),
	($$DELETE FROM apitoken.roles$$),
	($$UPDATE apitoken.roles SET name = 'chief' WHERE name = 'admin'$$),
	-- database_role is the owner's
	($$UPDATE apitoken.roles SET database_role = 'regress_apitoken_job'$$),
	($$INSERT INTO apitoken.roles (name, permissions, database_role) VALUES ('x', '{}', 'regress_apitoken_job')$$),
	-- in use by a member
	($$INSERT INTO apitoken.organizations (id) VALUES ('acme')$$),
	($$INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'idle')$$),
	($$DELETE FROM apitoken.roles WHERE name = 'idle'$$),
	($$INSERT INTO apitoken.memberships VALUES ('acme', 'v', 'no such role')$$),
	($$INSERT INTO apitoken.memberships VALUES ('no such organization', 'v', 'idle')$$),
	-- ids
	($$INSERT INTO apitoken.organizations (id) VALUES ('')$$),
	($$INSERT INTO apitoken.organizations (id) VALUES (repeat('x', 256))$$),
	($$INSERT INTO apitoken.organizations (id) VALUES (repeat('x', 255))$$),
	($$INSERT INTO apitoken.users (id) VALUES ('')$$),
	($$INSERT INTO apitoken.users (id) VALUES (repeat('ä', 128))$$),
	($$INSERT INTO apitoken.memberships VALUES ('acme', '', 'idle')$$),
	($$UPDATE apitoken.organizations SET id = 'acme2' WHERE id = 'acme'$$),
	($$UPDATE apitoken.organizations SET id = NULL WHERE id = 'acme'$$),
	($$UPDATE apitoken.organizations SET id = id, name = 'Acme' WHERE id = 'acme'$$),
	($$INSERT INTO apitoken.users (id, groups) VALUES ('u', NULL)$$),
	($$INSERT INTO apitoken.users (id) VALUES ('u')$$),
	($$UPDATE apitoken.users SET id = 'w' WHERE id = 'u'$$),
	($$TRUNCATE apitoken.organizations$$),
	($$TRUNCATE apitoken.organizations CASCADE$$),
	($$TRUNCATE apitoken.users$$);
-- The job may not manage tokens or choose who is acting.
INSERT INTO public.regress_command (command) VALUES
	($$SELECT 1 FROM apitoken.tokens$$),
	($$SELECT id FROM apitoken_internal.token_records$$),
	($$SELECT 1 FROM apitoken.token_usage$$),
	($$SELECT 1 FROM apitoken.events$$),
	($$INSERT INTO apitoken.tokens (label, organization_id) VALUES ('x', 'acme')$$),
	($$UPDATE apitoken.tokens SET label = 'x'$$),
	($$DELETE FROM apitoken.tokens$$),
	($$SELECT apitoken.create_token('x', 'acme')$$),
	($$SELECT apitoken.revoke_tokens('acme')$$),
	($$SELECT apitoken.list_tokens()$$),
	($$SELECT apitoken.verify('x')$$),
	($$SELECT apitoken.authenticate('x')$$),
	($$SELECT apitoken.act_as('u')$$),
	($$SELECT set_config('apitoken.user_id', 'u', true), apitoken.current_user_id()$$),
	($$SELECT apitoken.allow('regress_apitoken_job', 'act')$$),
	($$GRANT SELECT ON apitoken.tokens TO regress_apitoken_job$$),
	($$INSERT INTO apitoken.events (id) SELECT gen_random_uuid()$$);
SET SESSION AUTHORIZATION regress_apitoken_job;
SET client_min_messages = error;
SELECT pg_catalog.split_part(public.regress_try(command), ' | ', 1) AS answer, command FROM public.regress_command ORDER BY n;
RESET client_min_messages;
RESET SESSION AUTHORIZATION;
SELECT name, permissions, database_role FROM apitoken.roles ORDER BY name;

--
-- The owner and a superuser cannot delete a built-in role, change an id, or
-- truncate tables that have tokens.  Inserting an existing role replaces it.
--
SELECT token AS acme FROM apitoken.create_token('acme', organization_id => 'acme') \gset
\set VERBOSITY sqlstate
DELETE FROM apitoken.roles WHERE name = 'developer';
UPDATE apitoken.roles SET name = 'dev' WHERE name = 'developer';
UPDATE apitoken.organizations SET id = 'acme2' WHERE id = 'acme';
UPDATE apitoken.users SET id = 'w' WHERE id = 'u';
SET client_min_messages = error;
TRUNCATE apitoken.users;
TRUNCATE apitoken.organizations CASCADE;
TRUNCATE apitoken.memberships, apitoken.organizations;
RESET client_min_messages;
\set VERBOSITY terse
SELECT (apitoken.verify(:'acme')).verdict;
UPDATE apitoken.roles SET database_role = 'regress_apitoken_app' WHERE name = 'editor';
INSERT INTO apitoken.roles (name, permissions) VALUES ('editor', '{page:*}'), ('author', '{*:read}');
SELECT name, permissions, database_role FROM apitoken.roles WHERE name IN ('editor', 'author') ORDER BY name;
UPDATE apitoken.roles SET name = 'writer' WHERE name = 'author';
DELETE FROM apitoken.roles WHERE name = 'writer';

--
-- Only the tables' owner sets, changes or removes a database_role, whatever is
-- granted to others.
--
INSERT INTO apitoken.roles (name, permissions, database_role) VALUES ('batch', '{article:read}', 'regress_apitoken_app'), ('spare', '{article:read}', NULL);
CREATE ROLE regress_apitoken_granted LOGIN BYPASSRLS;
GRANT ALL ON apitoken.roles, apitoken_internal.role_records TO regress_apitoken_granted;
GRANT USAGE ON SCHEMA apitoken_internal TO regress_apitoken_granted;
CREATE TABLE public.regress_role_command (n int GENERATED ALWAYS AS IDENTITY, command text);
GRANT SELECT ON public.regress_role_command TO PUBLIC;
INSERT INTO public.regress_role_command (command) VALUES
	('INSERT INTO apitoken.roles (name, permissions, database_role) VALUES (''new'', ''{}'', ''regress_apitoken_app'')'),
	('UPDATE apitoken.roles SET database_role = ''regress_apitoken_job'' WHERE name = ''spare'''),
	('UPDATE apitoken.roles SET database_role = ''regress_apitoken_job'' WHERE name = ''batch'''),
	('UPDATE apitoken.roles SET database_role = NULL WHERE name = ''batch'''),
	('DELETE FROM apitoken.roles WHERE name = ''batch'''),
	('DELETE FROM apitoken.roles WHERE database_role IS NOT NULL'),
	('INSERT INTO apitoken.roles (name, permissions) VALUES (''batch'', ''{}'') ON CONFLICT (name) DO UPDATE SET database_role = NULL'),
	('INSERT INTO apitoken.roles (name, permissions) VALUES (''spare'', ''{}'') ON CONFLICT (name) DO UPDATE SET database_role = ''regress_apitoken_app'''),
	('INSERT INTO apitoken.roles (name, permissions, database_role) VALUES (''batch'', ''{}'', ''regress_apitoken_job'') ON CONFLICT DO NOTHING'),
	('MERGE INTO apitoken_internal.role_records r USING (VALUES (1)) v ON r.name = ''batch'' WHEN MATCHED THEN DELETE'),
	('MERGE INTO apitoken_internal.role_records r USING (VALUES (1)) v ON r.name = ''batch'' WHEN MATCHED THEN UPDATE SET database_role = NULL'),
	('MERGE INTO apitoken_internal.role_records r USING (VALUES (1)) v ON r.name = ''new'' WHEN NOT MATCHED THEN INSERT (name, permissions, database_role) VALUES (''new'', ''{}'', ''regress_apitoken_app'')'),
	('WITH gone AS (DELETE FROM apitoken.roles WHERE name = ''batch'') INSERT INTO apitoken.roles (name, permissions) VALUES (''other'', ''{}'')'),
	('TRUNCATE apitoken_internal.role_records'),
	-- what leaves it alone
	('UPDATE apitoken.roles SET permissions = ''{article:write}'', description = ''x'' WHERE name = ''batch'''),
	('INSERT INTO apitoken.roles (name, permissions) VALUES (''batch'', ''{page:read}'') ON CONFLICT (name) DO UPDATE SET permissions = excluded.permissions'),
	('DELETE FROM apitoken.roles WHERE name = ''spare'''),
	('INSERT INTO apitoken.roles (name, permissions) VALUES (''spare'', ''{}'')');
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT pg_catalog.split_part(public.regress_try(command), ' | ', 1) AS job, command FROM public.regress_role_command ORDER BY n;
SET SESSION AUTHORIZATION regress_apitoken_granted;
SELECT pg_catalog.split_part(public.regress_try(command), ' | ', 1) AS granted, command FROM public.regress_role_command ORDER BY n;
\set VERBOSITY default
DELETE FROM apitoken.roles WHERE name = 'batch';
\set VERBOSITY terse
RESET SESSION AUTHORIZATION;
SELECT name, description, permissions, database_role FROM apitoken.roles WHERE name IN ('batch', 'spare', 'new', 'other') ORDER BY name;
UPDATE apitoken.roles SET database_role = NULL WHERE name = 'batch';
DELETE FROM apitoken.roles WHERE name IN ('batch', 'spare');
DROP TABLE public.regress_role_command;

--
-- What PostgreSQL's predefined roles may do with all tables is not a grant on
-- these: they write nothing, and see what their identity sees.
--
CREATE ROLE regress_apitoken_predefined LOGIN IN ROLE pg_read_all_data, pg_write_all_data;
SET SESSION AUTHORIZATION regress_apitoken_predefined;
SELECT command, public.regress_try(command) FROM (VALUES
	(1, $$INSERT INTO apitoken.organizations (id) VALUES ('mine')$$),
	(2, $$UPDATE apitoken.organizations SET suspended_at = now()$$),
	(3, $$DELETE FROM apitoken.organizations$$),
	(4, $$INSERT INTO apitoken.users (id) VALUES ('me')$$),
	(5, $$UPDATE apitoken.users SET role = NULL$$),
	(6, $$DELETE FROM apitoken.users$$),
	(7, $$INSERT INTO apitoken.memberships VALUES ('acme', 'me', 'admin')$$),
	(8, $$UPDATE apitoken.memberships SET role = 'admin'$$),
	(9, $$DELETE FROM apitoken.memberships$$),
	(10, $$INSERT INTO apitoken.roles (name, permissions) VALUES ('mine', '{*}')$$),
	(11, $$UPDATE apitoken.roles SET permissions = '{*}' WHERE name = 'editor'$$),
	(12, $$UPDATE apitoken.roles SET permissions = '{*}' WHERE name = 'developer'$$),
	(13, $$DELETE FROM apitoken.roles WHERE name = 'editor'$$),
	(14, $$INSERT INTO apitoken.tokens (label, user_id) VALUES ('mine', 'me')$$),
	(15, $$UPDATE apitoken.tokens SET label = 'mine'$$),
	(16, $$DELETE FROM apitoken.events$$),
	(17, $$UPDATE apitoken.token_usage SET last_used_at = NULL$$),
	(18, $$INSERT INTO apitoken.token_usage (token_id) SELECT gen_random_uuid()$$)) c (n, command) ORDER BY n;
SELECT (SELECT count(*) FROM apitoken.organizations) AS organizations, (SELECT count(*) FROM apitoken.users) AS users,
	(SELECT count(*) FROM apitoken.memberships) AS memberships, (SELECT count(*) FROM apitoken.tokens) AS tokens, (SELECT count(*) FROM apitoken.events) AS events;
RESET SESSION AUTHORIZATION;

--
-- A user who is only a member has no row to delete.  The application deletes the
-- memberships, or keeps users in step as above.
--
SELECT user_id FROM apitoken.memberships ORDER BY 1;
DELETE FROM apitoken.users WHERE id = 'u';
SELECT user_id FROM apitoken.memberships ORDER BY 1;

--
-- A deleted user does not come back by acting: neither who had tokens nor who had
-- none, nor in the transaction that acts already.  A user without a row who was
-- never deleted may act.
--
CREATE ROLE regress_apitoken_acting LOGIN;
SELECT apitoken.allow('regress_apitoken_acting', 'act', 'manage');
CREATE FUNCTION public.regress_delete(id text) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM apitoken.users u WHERE u.id = $1';
CREATE TABLE public.regress_deleted AS SELECT (apitoken.create_token('made', user_id => 'had tokens')).token;
INSERT INTO apitoken.users (id) VALUES ('had none'), ('acts already');
INSERT INTO apitoken.organizations (id) VALUES ('place');
INSERT INTO apitoken.memberships VALUES ('place', 'only a member', 'admin'), ('place', 'acts already', 'admin');
DELETE FROM apitoken.users WHERE id LIKE 'had %';
SET SESSION AUTHORIZATION regress_apitoken_acting;
\set VERBOSITY default
BEGIN; SELECT apitoken.act_as('had tokens'); ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'had none'; SELECT apitoken.current_user_id(); ROLLBACK;
\set VERBOSITY terse
BEGIN;
SELECT apitoken.act_as('acts already') IS NOT NULL AS acts;
SELECT apitoken.can('a:b'), apitoken.can('a:b', 'place'), count(*) FROM apitoken.organizations_allowed('a:b');
SELECT public.regress_delete('acts already');
SELECT apitoken.can('a:b'), apitoken.can('a:b', 'place'), (SELECT count(*) FROM apitoken.organizations_allowed('a:b')), apitoken.whoami()->'suspended' AS suspended;
SELECT public.regress_try($$SELECT apitoken.create_token('t')$$) AS create_token;
SELECT public.regress_try($$INSERT INTO apitoken.tokens (label) VALUES ('t')$$) AS insert;
SELECT public.regress_try($$SELECT apitoken.create_token('t', organization_id => 'place')$$) AS organizations;
COMMIT;
BEGIN; SELECT apitoken.act_as('only a member') IS NOT NULL AS acts, apitoken.can('a:b', 'place'), (apitoken.create_token('t')).id IS NOT NULL AS made; COMMIT;
BEGIN; SELECT apitoken.act_as('never heard of') IS NOT NULL AS acts, apitoken.can('a:b'), (apitoken.create_token('t')).id IS NOT NULL AS made; COMMIT;
RESET SESSION AUTHORIZATION;
-- an administrator has to insert the row first
SELECT public.regress_try($$SELECT apitoken.create_token('t', user_id => 'had tokens')$$) AS administrator;
SELECT id FROM apitoken.users WHERE id LIKE 'had %' OR id LIKE '%acts%' OR id LIKE '%member' OR id LIKE 'never%' ORDER BY id;
INSERT INTO apitoken.users (id) VALUES ('had tokens');
SET SESSION AUTHORIZATION regress_apitoken_acting;
BEGIN; SELECT apitoken.act_as('had tokens') IS NOT NULL AS acts, apitoken.can('a:b'), (apitoken.create_token('made')).id IS NOT NULL AS made; COMMIT;
RESET SESSION AUTHORIZATION;
SELECT (apitoken.verify(token)).verdict FROM public.regress_deleted;
-- deleted and inserted in one transaction, and deleted again
BEGIN; DELETE FROM apitoken.users WHERE id = 'had tokens'; INSERT INTO apitoken.users (id) VALUES ('had tokens'); COMMIT;
BEGIN; SELECT apitoken.act_as('had tokens') IS NOT NULL AS acts; COMMIT;
DELETE FROM apitoken.users WHERE id = 'had tokens';
BEGIN; SELECT apitoken.act_as('had tokens'); ROLLBACK;
-- a deletion that was rolled back is none
BEGIN; DELETE FROM apitoken.users WHERE id = 'only a member'; ROLLBACK;
BEGIN; SELECT apitoken.act_as('only a member') IS NOT NULL AS acts; COMMIT;

--
-- apitoken.require_known_users: who has no row cannot be acted as
--
SET SESSION AUTHORIZATION regress_apitoken_acting;
SELECT public.regress_try('SET apitoken.require_known_users = off') AS not_for_everybody;
RESET SESSION AUTHORIZATION;
SET apitoken.require_known_users = on;
INSERT INTO apitoken.users (id) VALUES ('known');
INSERT INTO apitoken.memberships VALUES ('place', 'no row', 'admin');
SET apitoken.jwt_user_claim = 'sub';
SET SESSION AUTHORIZATION regress_apitoken_acting;
\set VERBOSITY default
BEGIN; SELECT apitoken.act_as('no row'); ROLLBACK;
BEGIN; SET LOCAL apitoken.user_id = 'no row'; SELECT apitoken.current_user_id(); ROLLBACK;
BEGIN; SET LOCAL "request.jwt.claims" = '{"sub": "no row"}'; SELECT apitoken.current_user_id(); ROLLBACK;
\set VERBOSITY terse
BEGIN; SET LOCAL "request.jwt.claims" = '{"sub": "known"}'; SELECT apitoken.current_user_id(), apitoken.can('a:b'); COMMIT;
BEGIN; SELECT apitoken.act_as('known') IS NOT NULL AS acts, apitoken.can('a:b'), (apitoken.create_token('t')).id IS NOT NULL AS made;
SELECT public.regress_delete('known');
SELECT apitoken.can('a:b'), apitoken.whoami()->'suspended' AS suspended, public.regress_try($$SELECT apitoken.create_token('u')$$) AS create_token;
ROLLBACK;
RESET SESSION AUTHORIZATION;
-- a user who acts already, when it is switched on
SET apitoken.require_known_users = off;
BEGIN; SELECT apitoken.act_as('no row') IS NOT NULL AS acts;
SELECT apitoken.can('a:b', 'place'), count(*) FROM apitoken.organizations_allowed('a:b');
SET LOCAL apitoken.require_known_users = on;
SELECT apitoken.can('a:b', 'place'), count(*) FROM apitoken.organizations_allowed('a:b');
COMMIT;
SET apitoken.require_known_users = on;
SELECT public.regress_try($$SELECT apitoken.create_token('t', user_id => 'no row')$$) AS administrator;
SELECT count(*) FROM apitoken.users WHERE id = 'no row';
RESET apitoken.require_known_users;
RESET apitoken.jwt_user_claim;
DROP FUNCTION public.regress_delete(text);
DROP TABLE public.regress_deleted;

--
-- The same rules as with foreign keys: a membership needs its organization and
-- role, and a role in use by a member cannot be deleted.  A restore
-- (row_security off, as in pg_dump's scripts) may insert them in any order.
--
\set VERBOSITY default
INSERT INTO apitoken.organizations (id) VALUES ('kept');
INSERT INTO apitoken.roles (name, permissions) VALUES ('kept', '{a:b}');
INSERT INTO apitoken.memberships VALUES ('kept', 'm', 'kept');
INSERT INTO apitoken.memberships VALUES ('nowhere', 'm', 'kept');
INSERT INTO apitoken.memberships VALUES ('kept', 'n', 'norole');
UPDATE apitoken.memberships SET role = 'norole' WHERE organization_id = 'kept';
UPDATE apitoken.memberships SET organization_id = 'nowhere' WHERE organization_id = 'kept';
UPDATE apitoken.roles SET name = 'renamed' WHERE name = 'kept';
DELETE FROM apitoken.roles WHERE name = 'kept';
BEGIN;
SET LOCAL row_security = off;
INSERT INTO apitoken.memberships VALUES ('nowhere', 'm', 'kept'), ('kept', 'n', 'norole');
SELECT apitoken.act_as('m') IS NOT NULL AS m;
SELECT apitoken.can('a:b', 'kept') AS kept, apitoken.can('a:b', 'nowhere') AS nowhere;
ROLLBACK;
DELETE FROM apitoken.organizations WHERE id = 'kept';
SELECT count(*) FROM apitoken.memberships WHERE organization_id = 'kept';
DELETE FROM apitoken.roles WHERE name = 'kept';

--
-- An id has one spelling.  A text that a cast to uuid or bigint takes for the
-- same key is refused, by every way into the tables, also with triggers off.
--
\set VERBOSITY default
INSERT INTO apitoken.users (id) VALUES ('A11CE000-0000-4000-8000-000000000003');
\set VERBOSITY terse
INSERT INTO apitoken.organizations (id) VALUES ('5F0E7D4C-2A57-4D3A-9D8E-0123456789AB');
INSERT INTO apitoken.organizations (id) VALUES ('5f0e7d4c-2a57-4d3a-9d8e-0123456789ab');
CREATE TABLE public.regress_spelling (n serial, id text, right_one boolean);
INSERT INTO public.regress_spelling (id, right_one) VALUES
	('5f0e7d4c-2a57-4d3a-9d8e-0123456789ac', true), ('5F0E7D4C-2A57-4D3A-9D8E-0123456789AC', false), ('5f0e7d4c2a574d3a9d8e0123456789ac', false),
	('{5f0e7d4c-2a57-4d3a-9d8e-0123456789ac}', false), ('5f0e-7d4c-2a57-4d3a-9d8e-0123-4567-89ac', false), (' 5f0e7d4c-2a57-4d3a-9d8e-0123456789ac', true),
	('7', true), ('007', false), ('+7', false), (' 7', false), (E'7\n', false), ('-7', true), ('-0', false), ('0x7', false), ('0b111', false), ('0_7', false), ('1_000', false),
	('umbrella', true), ('umbrella ', true), (E'\t-8', false), ('1.0', true), ('9223372036854775808', true), ('5F0E7D4C-2A57-4D3A-9D8E-0123456789A', true), ('Umbrella', true);
-- the statement that stores each id in each column, and the answer: 0 rows is wrong
SELECT count(*) AS statements, count(*) FILTER (WHERE (answer = 'done (1)') <> right_one OR (NOT right_one AND answer NOT LIKE '22023 | invalid % id |%')) AS wrong
FROM public.regress_spelling, (VALUES
	('INSERT INTO apitoken.organizations (id) VALUES (%L)'),
	('INSERT INTO apitoken.users (id) VALUES (%L)'),
	('INSERT INTO apitoken.memberships VALUES (''acme'', %L, ''admin'')'),
	('INSERT INTO apitoken.memberships VALUES (%L, ''u'', ''admin'')'),
	('SELECT apitoken.create_token(%L, organization_id => %1$L)'),
	('SELECT apitoken.create_token(%1$L, user_id => %1$L)'),
	('INSERT INTO apitoken.tokens (label, user_id) VALUES (''by view'', %L)'),
	('SELECT apitoken.revoke_tokens(organization_id => %L)'),
	('SELECT apitoken.revoke_tokens(user_id => %L)'),
	('SELECT apitoken.revoke_tokens(created_by => %L)')) s (statement),
	LATERAL (SELECT public.regress_try(format(statement, id)) AS answer) a;
SELECT count(*) FILTER (WHERE right_one) AS right_ones, count(*) AS all_of_them FROM public.regress_spelling JOIN apitoken.organizations USING (id);
-- COPY, and a restore with the triggers off
\set VERBOSITY sqlstate
\copy apitoken.users (id) from program 'echo 0019'
SET session_replication_role = replica;
\copy apitoken.users (id) from program 'echo 0019'
\copy apitoken.organizations (id) from program 'echo 0019'
\copy apitoken.memberships (organization_id, user_id, role) from program 'echo acme,0019,admin' with (format csv)
\copy apitoken.memberships (organization_id, user_id, role) from program 'echo 0019,u,admin' with (format csv)
INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme)
	VALUES (gen_random_uuid(), 'x', '0019', 'admin', 'full', now(), now(), '', apitoken.hash('x'), 0);
INSERT INTO apitoken_internal.token_records (id, label, user_id, access, created_at, updated_at, masked, digest, digest_scheme)
	VALUES (gen_random_uuid(), 'x', 'A11CE000-0000-4000-8000-000000000003', 'full', now(), now(), '', apitoken.hash('x'), 0);
UPDATE apitoken.users SET id = '+7' WHERE id = '7';
UPDATE apitoken_internal.token_records SET user_id = '+7' WHERE user_id = '7';
RESET session_replication_role;
\set VERBOSITY terse
-- The server's own types agree: what one of them reads is an id only as it writes it.
DO $$
DECLARE
	id text;
	again text;
	wrong int := 0;
	readable int := 0;
BEGIN
	PERFORM setseed(0.5);
	FOR n IN 1 .. 20000 LOOP
		-- a uuid or an integer, with one character changed, put in or taken out
		id := CASE n % 4 WHEN 0 THEN md5(n::text)::uuid::text WHEN 1 THEN md5(n::text) WHEN 2 THEN (random() * 1e6)::int::text ELSE (random() * 1e19 - 5e18)::numeric(20)::text END;
		id := overlay(id PLACING substr('{}-+0_AFa17x', 1 + (random() * 12)::int, (random() * 1.2)::int) FROM 1 + (random() * length(id))::int FOR (random() * 1.2)::int);
		CONTINUE WHEN id = '';
		again := NULL;
		BEGIN
			again := id::uuid::text;
		EXCEPTION WHEN invalid_text_representation THEN
			BEGIN
				again := id::bigint::text;
			EXCEPTION WHEN invalid_text_representation OR numeric_value_out_of_range THEN
			END;
		END;
		BEGIN
			PERFORM apitoken_internal.check_id('user', id);
			wrong := wrong + coalesce((again <> id)::int, 0);
		EXCEPTION WHEN invalid_parameter_value THEN
			-- 15 does not read 0x7 and 1_000, which later servers do
			wrong := wrong + (again IS NULL AND id !~ '^[-+]?0[xXbBoO]|_')::int + coalesce((again = id)::int, 0);
		END;
		readable := readable + (again IS NOT NULL)::int;
	END LOOP;
	RAISE NOTICE 'many were readable: %, wrong: %', readable > 5000, wrong;
END
$$;
DROP TABLE public.regress_spelling;

--
-- The computed relationship members: what the view has, for one organization.  It
-- reads no others, so that many organizations take the time of their members.
--
BEGIN;
CREATE ROLE regress_apitoken_embed LOGIN;
SELECT apitoken.allow('regress_apitoken_embed', 'act', 'manage');
CREATE ROLE regress_apitoken_embed_directory;
SELECT apitoken.allow('regress_apitoken_embed_directory', 'directory');
INSERT INTO apitoken.organizations (id, name) SELECT 'embed-' || n, 'Embed' FROM generate_series(1, 300) n;
INSERT INTO apitoken.users (id, name) VALUES ('embed-ann', 'Ann');
INSERT INTO apitoken.memberships SELECT 'embed-' || n, 'embed-' || u, 'admin' FROM generate_series(1, 300) n, generate_series(1, 50) u;
INSERT INTO apitoken.memberships SELECT 'embed-' || n, 'embed-ann', 'admin' FROM generate_series(1, 299) n;
SET LOCAL SESSION AUTHORIZATION regress_apitoken_embed;
SELECT count(*) AS of_nobody FROM apitoken.organizations o, apitoken.members(o);
SELECT FROM apitoken.act_as('embed-ann');
CREATE TEMP TABLE embedded AS SELECT m.* FROM apitoken.organizations o, apitoken.members(o) m;
SELECT count(*), count(name) AS with_name FROM embedded;
SELECT count(*) AS differences FROM (
	(TABLE embedded EXCEPT ALL TABLE apitoken.members) UNION ALL (TABLE apitoken.members EXCEPT ALL TABLE embedded)) d;
-- in a list of columns, too
SELECT count(*) FROM (SELECT apitoken.members(o) FROM apitoken.organizations o) m;
-- a row that is made up shows no other organization
SELECT n, (SELECT count(*) FROM apitoken.members(jsonb_populate_record(NULL::apitoken.organizations, n)) m)
FROM unnest('{"{\"id\": \"embed-300\"}", "{\"id\": \"embed-299\"}", "{\"id\": null}", "{\"id\": \"no such\"}"}'::jsonb[]) n;
SELECT count(*) FROM apitoken.members(NULL);
-- the function itself is scanned, not the view with a filter on the organization
DO $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) SELECT m.* FROM apitoken.organizations o, apitoken.members(o) m' LOOP
		IF line ~ 'Function Scan' THEN
			RAISE NOTICE '%', regexp_replace(line, '^[ >-]*', '');
		END IF;
	END LOOP;
END
$$;
RESET SESSION AUTHORIZATION;
SAVEPOINT s;
SET LOCAL ROLE regress_apitoken_embed_directory;
SELECT apitoken.members(NULL);
ROLLBACK TO s;
ROLLBACK;

DROP VIEW public.regress_verdict, public.regress_directory;
DROP TABLE public.regress_token, public.regress_command;
SET client_min_messages = warning;
\i :srcdir/test/regress_teardown.sql
