--
-- Who may do what to whose tokens: every kind of caller, every operation, both
-- kinds of owner, by plain SQL and by function.
--
-- A cell is y (it worked), n (refused, or nothing was visible), r (refused
-- because the transaction is READ ONLY) or - (the operation is refused to all,
-- with a hint).  Anything unexpected prints its SQLSTATE.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;

CREATE ROLE regress_apitoken_login LOGIN NOINHERIT;
CREATE ROLE regress_apitoken_web;
CREATE ROLE regress_apitoken_job LOGIN;
CREATE ROLE regress_apitoken_stranger LOGIN;
GRANT regress_apitoken_web TO regress_apitoken_login;
SELECT apitoken.allow('regress_apitoken_login', 'act');
SELECT apitoken.allow('regress_apitoken_web', 'manage');
SELECT apitoken.allow('regress_apitoken_job', 'directory');

--
-- The people.  Every managed token, and everybody, has article:read, so that the
-- ceiling refuses nothing here (see ceiling.sql).
--
INSERT INTO apitoken.roles (name, permissions) VALUES
	('reader', '{article:read}'),
	('sees', '{token:read,article:read}'),
	('creates', '{token:create,article:read}'),
	('updates', '{token:update,article:read}'),
	('deletes', '{token:delete,article:read}'),
	('keeper', '{token:*,article:read}');
INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('beta'), ('frozen');
INSERT INTO apitoken.users (id, name, email) VALUES
	('olga', 'Olga', 'olga@example.com'), ('dev', 'Dev', 'dev@example.com');
INSERT INTO apitoken.memberships VALUES
	('acme', 'ada', 'admin'), ('acme', 'dev', 'developer'),
	('acme', 'see', 'sees'), ('acme', 'create', 'creates'),
	('acme', 'update', 'updates'), ('acme', 'delete', 'deletes'),
	('acme', 'rem', 'admin'), ('acme', 'sus', 'admin'),
	('beta', 'zoe', 'admin'), ('frozen', 'fay', 'admin');

CREATE SCHEMA matrix;
GRANT USAGE ON SCHEMA matrix TO PUBLIC;

-- The tokens that everybody tries to manage, each made by a user.
CREATE TABLE matrix.target (name text PRIMARY KEY, organization_id text, user_id text, id uuid);
GRANT SELECT ON matrix.target TO PUBLIC;

BEGIN;
SELECT apitoken.act_as('rem') AS acts;
INSERT INTO matrix.target SELECT 'acme', 'acme', NULL, id FROM apitoken.create_token('target', organization_id => 'acme', role => 'reader');
COMMIT;
BEGIN;
SELECT apitoken.act_as('fay') AS acts;
INSERT INTO matrix.target SELECT 'frozen', 'frozen', NULL, id FROM apitoken.create_token('target', organization_id => 'frozen', role => 'reader');
COMMIT;
DO $$
DECLARE
	person text;
BEGIN
	FOREACH person IN ARRAY '{olga,ada,sus}'::text[] LOOP
		INSERT INTO matrix.target
			SELECT person, NULL, person, id FROM apitoken.create_token('target', user_id => person, permissions => '{article:read}');
	END LOOP;
END
$$;

--
-- The callers.  target: the user whose personal token they try to manage; place:
-- the organization whose token they try to manage.  Callers that are personal
-- tokens belong to ada, acme's admin, and try her own token.
--
CREATE TABLE matrix.caller (
	n int PRIMARY KEY,
	caller text,
	user_id text,				-- acts directly
	token text,					-- acts by this
	target text DEFAULT 'olga',
	place text DEFAULT 'acme'
);
GRANT SELECT ON matrix.caller TO PUBLIC;
INSERT INTO matrix.caller (n, caller, user_id) VALUES
	(1, 'owner user', 'olga'),
	(2, 'other user', 'otto'),
	(3, 'admin', 'ada'),
	(4, 'developer', 'dev'),
	(5, 'member, token:read', 'see'),
	(6, 'member, token:create', 'create'),
	(7, 'member, token:update', 'update'),
	(8, 'member, token:delete', 'delete'),
	(9, 'admin elsewhere', 'zoe'),
	(10, 'removed admin, creator', 'rem');
-- a suspended user tries their own token; an admin tries a suspended organization's
INSERT INTO matrix.caller (n, caller, user_id, target, place) VALUES
	(11, 'suspended admin', 'sus', 'sus', 'acme'),
	(12, 'admin of suspended', 'fay', 'olga', 'frozen');
INSERT INTO matrix.caller (n, caller) VALUES (13, 'anonymous');
INSERT INTO matrix.caller (n, caller, token)
	SELECT n, caller, (apitoken.create_token(caller, organization_id => 'acme', role => role, access => access, permissions => permissions)).token
	FROM (VALUES
		(14, 'org, token:*', 'keeper', 'full', NULL::text[]),
		(15, 'org, developer', 'developer', 'full', NULL),
		(16, 'org, admin read_only', 'admin', 'read_only', NULL),
		(17, 'org, custom token:read', 'admin', 'custom', '{token:read,article:read}'),
		(18, 'org, custom, but developer', 'developer', 'custom', '{token:*,article:read}')) AS t (n, caller, role, access, permissions);
INSERT INTO matrix.caller (n, caller, token, target)
	SELECT n, caller, (apitoken.create_token(caller, user_id => 'ada', access => access, permissions => permissions)).token, 'ada'
	FROM (VALUES
		(19, 'personal full', 'full', NULL::text[]),
		(20, 'personal read_only', 'read_only', NULL),
		(21, 'personal custom *', 'custom', '{*}'),
		(22, 'personal custom *:*', 'custom', '{*:*}'),
		(23, 'personal, token:read', 'custom', '{token:read,article:read}'),
		(24, 'personal, token:create', 'custom', '{token:create,article:read}'),
		(25, 'personal, token:update', 'custom', '{token:update,article:read}'),
		(26, 'personal, token:delete', 'custom', '{token:delete,article:read}'),
		(27, 'personal, token:*', 'custom', '{token:*,article:read}')) AS t (n, caller, access, permissions);
INSERT INTO matrix.caller (n, caller) VALUES
	(28, 'no capability'),
	(29, 'directory job'),
	(30, 'superuser');
INSERT INTO matrix.caller (n, caller, user_id) VALUES (31, 'superuser as otto', 'otto');

DELETE FROM apitoken.memberships WHERE user_id = 'rem';
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'sus';
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'frozen';

--
-- One try runs an SQL command and counts its rows, in a subtransaction that is
-- always rolled back, with identity, role and READ ONLY.
--
-- In a command, $1 is the token's id, $2 and $3 its owner (organization, user).
--
CREATE TABLE matrix.operation (n int, sheet text, operation text, command text, PRIMARY KEY (sheet, n));
GRANT SELECT ON matrix.operation TO PUBLIC;
INSERT INTO matrix.operation VALUES
	(1, 'sql', 'see', 'SELECT 1 FROM apitoken.tokens WHERE id = $1'),
	(2, 'sql', 'create', 'INSERT INTO apitoken.tokens (label, organization_id, user_id, role, access, permissions)
		SELECT ''new'', $2, $3, CASE WHEN $2 IS NOT NULL THEN ''reader'' END, ''custom'', ''{article:read}''::text[]'),
	(3, 'sql', 'own', 'INSERT INTO apitoken.tokens (label, permissions) SELECT ''own'', ''{article:read}''::text[] WHERE $1 IS NOT NULL'),
	(4, 'sql', 'edit', 'UPDATE apitoken.tokens SET description = ''changed'' WHERE id = $1'),
	(5, 'sql', 'suspend', 'UPDATE apitoken_internal.token_records SET suspended_at = now() WHERE id = $1'),
	(6, 'sql', 'regenerate', 'UPDATE apitoken_internal.token_records SET digest = pg_catalog.sha256(''known'') WHERE id = $1'),
	(7, 'sql', 'revoke', 'UPDATE apitoken_internal.token_records SET revoked_at = now() WHERE id = $1'),
	(8, 'sql', 'delete', 'DELETE FROM apitoken.tokens WHERE id = $1'),
	(9, 'sql', 'usage', 'SELECT 1 FROM apitoken.token_usage WHERE token_id = $1'),
	(10, 'sql', 'events', 'SELECT 1 FROM apitoken.events WHERE token_id = $1'),
	(1, 'function', 'list', 'SELECT 1 FROM apitoken.list_tokens(''target'', $2) WHERE id = $1'),
	(2, 'function', 'create', 'SELECT * FROM apitoken.create_token(''new'', organization_id => $2, user_id => $3,
		role => CASE WHEN $2 IS NOT NULL THEN ''reader'' END, permissions => ''{article:read}'')'),
	(3, 'function', 'own', 'SELECT * FROM apitoken.create_token(''own'', permissions => ''{article:read}'') WHERE $1 IS NOT NULL'),
	(4, 'function', 'regenerate', 'SELECT * FROM apitoken.regenerate_token($1)'),
	(5, 'function', 'revoke', 'SELECT 1 WHERE apitoken.revoke_token($1, ''target'')'),
	(6, 'function', 'revoke_tokens', 'SELECT 1 WHERE apitoken.revoke_tokens($2, $3) > 0'),
	(1, 'directory', 'acme', 'SELECT 1 FROM apitoken.organizations WHERE id = ''acme'''),
	(2, 'directory', 'beta', 'SELECT 1 FROM apitoken.organizations WHERE id = ''beta'''),
	(3, 'directory', 'w', 'UPDATE apitoken.organizations SET name = ''x'' WHERE id = ''acme'''),
	(4, 'directory', 'self', 'SELECT 1 FROM apitoken.users WHERE id = coalesce(apitoken.current_user_id(), ''ada'')'),
	(5, 'directory', 'dev', 'SELECT 1 FROM apitoken.users WHERE id = ''dev'''),
	(6, 'directory', 'u', 'UPDATE apitoken.users SET name = ''x'' WHERE id = ''dev'''),
	(7, 'directory', 'in acme', 'SELECT 1 FROM apitoken.memberships WHERE organization_id = ''acme'' LIMIT 1'),
	(8, 'directory', 'in beta', 'SELECT 1 FROM apitoken.memberships WHERE organization_id = ''beta'''),
	(9, 'directory', 'm', 'INSERT INTO apitoken.memberships VALUES (''acme'', ''otto'', ''admin'')'),
	(10, 'directory', 'names', 'SELECT 1 FROM apitoken.members WHERE organization_id = ''acme'' AND name = ''Dev'''),
	(11, 'directory', 'roles', 'SELECT 1 FROM apitoken.roles WHERE name = ''reader'''),
	(12, 'directory', 'o', 'UPDATE apitoken.roles SET permissions = ''{*}'' WHERE name = ''reader'''),
	(13, 'directory', 'd', 'UPDATE apitoken.roles SET database_role = ''postgres'' WHERE name = ''reader''');

CREATE FUNCTION matrix.try(caller matrix.caller, command text, target text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	t matrix.target := (SELECT x FROM matrix.target x WHERE name = target);
	found_rows bigint;
BEGIN
	BEGIN
		IF caller.user_id IS NOT NULL THEN
			PERFORM apitoken.act_as(caller.user_id);
		END IF;
		IF session_user = 'regress_apitoken_login' THEN
			SET LOCAL ROLE regress_apitoken_web;
		END IF;
		IF caller.token IS NOT NULL THEN
			PERFORM apitoken.authenticate(caller.token);
		END IF;
		EXECUTE command USING t.id, t.organization_id, t.user_id;
		GET DIAGNOSTICS found_rows = ROW_COUNT;
		RAISE SQLSTATE 'REG01';
	EXCEPTION
		WHEN SQLSTATE 'REG01' THEN
			RETURN CASE WHEN found_rows > 0 THEN 'y' ELSE 'n' END;
		WHEN insufficient_privilege THEN
			RETURN 'n';
		WHEN read_only_sql_transaction THEN
			RETURN 'r';
		WHEN feature_not_supported THEN
			RETURN '-';
		WHEN OTHERS THEN
			RETURN SQLSTATE;
	END;
END
$$;

CREATE TABLE matrix.cell (sheet text, kind text, caller int, operation int, result text);
GRANT INSERT ON matrix.cell TO PUBLIC;
CREATE FUNCTION matrix.run(callers int[]) RETURNS void
LANGUAGE sql AS $$
	INSERT INTO matrix.cell
	SELECT o.sheet, k.kind, c.n, o.n,
		matrix.try(c, o.command, CASE k.kind WHEN 'personal' THEN c.target ELSE c.place END)
	FROM matrix.caller c, matrix.operation o, (VALUES ('personal'), ('organization')) AS k (kind)
	WHERE c.n = ANY (callers)
		AND NOT (k.kind = 'organization' AND (o.operation = 'own' OR o.sheet = 'directory'));
$$;

SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT matrix.run(ARRAY(SELECT generate_series(1, 27)));
SET SESSION AUTHORIZATION regress_apitoken_stranger;
SELECT matrix.run('{28}');
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT matrix.run('{29}');
RESET SESSION AUTHORIZATION;
SELECT matrix.run('{30,31}');

-- all tries were rolled back
SELECT count(*) AS tokens, count(*) FILTER (WHERE label = 'target') AS targets,
	count(updated_at > created_at OR NULL) AS changed
FROM apitoken_internal.token_records;
SELECT action, count(*) FROM apitoken.events GROUP BY 1;

CREATE FUNCTION matrix.row(sheet text, kind text) RETURNS TABLE (n int, caller text, cells text[])
LANGUAGE sql AS $$
	SELECT c.n, c.caller, array_agg(x.result ORDER BY x.operation)
	FROM matrix.cell x JOIN matrix.caller c ON c.n = x.caller
	WHERE x.sheet = row.sheet AND x.kind = row.kind
	GROUP BY c.n, c.caller
$$;

--
-- Personal tokens: only their user manages them, no administrator of any
-- organization.  A token may only if it is custom and names the permission.
-- regenerate and revoke work only through the functions, even for a superuser;
-- nobody can write a digest or a revocation by plain SQL.
--
-- Not obvious:
--   own: every user may make tokens for themself; an organization's token never
--     may.  A personal token needs token:create for it.
--   read_only: refused because its transaction is READ ONLY, before anything
--     else could refuse it.
--   personal, token:read, token:update and token:delete: each permission allows
--     seeing the token; token:create does not.
--   delete: n for a role without the privilege; the others get a hint (-).
--   events: personal tokens need the permission to see the token.
--   A suspended user may not manage even their own token.
--   superuser, own: without an acting user the token has no owner (22023).
--
SELECT caller, cells[1] AS see, cells[2] AS "create", cells[3] AS own, cells[4] AS edit, cells[5] AS suspend,
	cells[6] AS regenerate, cells[7] AS revoke, cells[8] AS delete, cells[9] AS usage, cells[10] AS events
FROM matrix.row('sql', 'personal') ORDER BY n;
SELECT caller, cells[1] AS list, cells[2] AS "create", cells[3] AS own, cells[4] AS regenerate,
	cells[5] AS revoke, cells[6] AS revoke_tokens
FROM matrix.row('function', 'personal') ORDER BY n;

--
-- Tokens of an organization: the role's current permissions there decide.
--
-- Not obvious:
--   removed admin: still sees the events of what they did themself (own
--     events), here the creation, and nothing else.
--   admin of a suspended organization: may do nothing there.
--   org, custom, but developer: a custom token has only permissions that its
--     role has too, and developer has no token: permission.
--   personal tokens of the admin: they have the role's permissions there, but
--     token: permissions only by name, as for their own tokens.
--
SELECT caller, cells[1] AS see, cells[2] AS "create", cells[3] AS edit, cells[4] AS suspend,
	cells[5] AS regenerate, cells[6] AS revoke, cells[7] AS delete, cells[8] AS usage, cells[9] AS events
FROM matrix.row('sql', 'organization') ORDER BY n;
SELECT caller, cells[1] AS list, cells[2] AS "create", cells[3] AS regenerate,
	cells[4] AS revoke, cells[5] AS revoke_tokens
FROM matrix.row('function', 'organization') ORDER BY n;

--
-- The directory.  organizations, memberships: members see those of their
-- organizations, an organization's token those of its own.  users: a user sees
-- their own row, and co-members' names in the view members.  roles: every role
-- with manage sees them.
-- w, u, m, o, d: write organizations, users, memberships, roles, database_role.
--
-- Not obvious:
--   self: olga and ada have a row, others get one with their first token.  An
--     organization's token is nobody, and a suspended user sees nothing.
--   dev: the developer's own row is their self; co-members do not see it.
--   Members still see a suspended organization but may do nothing there (the
--     table does not show frozen).
--
SELECT caller, cells[1] AS acme, cells[2] AS beta, cells[3] AS w, cells[4] AS self, cells[5] AS dev, cells[6] AS u,
	cells[7] AS "in acme", cells[8] AS "in beta", cells[9] AS m, cells[10] AS names,
	cells[11] AS roles, cells[12] AS o, cells[13] AS d
FROM matrix.row('directory', 'personal') ORDER BY n;

--
-- A change of the membership takes effect in the next statement of the same
-- transaction.
--
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SET LOCAL ROLE regress_apitoken_web;
SELECT count(*) > 0 AS sees FROM apitoken.tokens WHERE organization_id = 'acme';
RESET ROLE;
UPDATE apitoken.memberships SET role = 'developer' WHERE user_id = 'ada';
SET LOCAL ROLE regress_apitoken_web;
SELECT count(*) > 0 AS sees FROM apitoken.tokens WHERE organization_id = 'acme';
SELECT count(*) > 0 AS sees_own FROM apitoken.tokens WHERE user_id = 'ada';
RESET ROLE;
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'ada';
SET LOCAL ROLE regress_apitoken_web;
SELECT count(*) > 0 AS sees_own FROM apitoken.tokens WHERE user_id = 'ada';
ROLLBACK;

--
-- A user who sees a token still cannot read, sort by or filter by its digest.
--
SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT apitoken.act_as('ada') AS acts;
SET LOCAL ROLE regress_apitoken_web;
SAVEPOINT s;
SELECT digest FROM apitoken_internal.token_records;
ROLLBACK TO s;
SELECT 1 FROM apitoken_internal.token_records ORDER BY previous_digest;
ROLLBACK TO s;
SELECT * FROM apitoken_internal.token_records;
ROLLBACK TO s;
UPDATE apitoken_internal.token_records SET description = encode(digest, 'hex');
ROLLBACK TO s;
SELECT t FROM apitoken_internal.token_records t;
ROLLBACK;
RESET SESSION AUTHORIZATION;

DROP SCHEMA matrix CASCADE;
\i :srcdir/test/regress_teardown.sql
