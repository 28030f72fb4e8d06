--
-- Nobody hands out more than they hold.  The caller who creates, edits or
-- regenerates a token must cover each of its effective patterns, before and
-- after the change, with a single effective pattern of their own.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- what lies beneath the view is tried as well: as if somebody had granted USAGE on its schema
GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC;

CREATE ROLE regress_apitoken_login LOGIN NOINHERIT;
CREATE ROLE regress_apitoken_web;
GRANT regress_apitoken_web TO regress_apitoken_login;
SELECT apitoken.allow('regress_apitoken_login', 'act', 'verify');
SELECT apitoken.allow('regress_apitoken_web', 'manage');

-- what members hold
INSERT INTO apitoken.roles (name, permissions) VALUES
	('boss', '{*}'),
	('all but', '{*:*,token:create,token:update}'),
	('lead', '{token:*,article:*}'),
	('clerk', '{token:*,article:read}'),
	('by name', '{token:create,token:update,article:read,article:write}'),
	('by action', '{token:create,token:update,*:read}');
-- what tokens are given
INSERT INTO apitoken.roles (name, permissions) VALUES
	('star', '{*}'),
	('star star', '{*:*}'),
	('tokens', '{token:*}'),
	('articles', '{article:*}'),
	('writer', '{article:read,article:write}'),
	('reads', '{*:read}'),
	('reader', '{article:read}');
INSERT INTO apitoken.organizations (id) VALUES ('acme');
INSERT INTO apitoken.memberships SELECT 'acme', name, name FROM apitoken.roles WHERE description IS NULL;

--
-- try() runs a command as a user or as a token, and rolls it back.  It answers
-- "y", the pattern that the caller lacks, or the SQLSTATE.
--
CREATE SCHEMA ceiling;
GRANT USAGE ON SCHEMA ceiling TO PUBLIC;
CREATE TABLE ceiling.token (name text PRIMARY KEY, id uuid, token text);
GRANT SELECT, INSERT ON ceiling.token TO PUBLIC;
CREATE FUNCTION ceiling.become(who text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	secret text := (SELECT token FROM ceiling.token WHERE name = who);
BEGIN
	IF secret IS NULL THEN
		PERFORM apitoken.act_as(who);
	END IF;
	SET LOCAL ROLE regress_apitoken_web;
	IF secret IS NOT NULL THEN
		PERFORM apitoken.authenticate(secret);
	END IF;
END
$$;
CREATE FUNCTION ceiling.try(who text, command text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	affected bigint;
	excess text;
BEGIN
	PERFORM ceiling.become(who);
	EXECUTE command;
	GET DIAGNOSTICS affected = ROW_COUNT;
	RAISE SQLSTATE 'REG01';
EXCEPTION
	WHEN SQLSTATE 'REG01' THEN
		RETURN CASE WHEN affected > 0 THEN 'y' ELSE 'no row' END;
	WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS excess = PG_EXCEPTION_DETAIL;
		RETURN coalesce(substring(excess FROM 'The caller does not have the permission "(.*)"'), SQLSTATE);
END
$$;
-- the same for creating a token; both paths must give the same answer
CREATE FUNCTION ceiling.make(who text, organization text, role text, access text, permissions text[] DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	by_function text := ceiling.try(who, format('SELECT * FROM apitoken.create_token(''new'', organization_id => %L, role => %L, access => %L, permissions => %L)',
		organization, role, access, permissions));
	by_insert text := ceiling.try(who, format('INSERT INTO apitoken.tokens (label, organization_id, role, access, permissions) VALUES (''new'', %L, %L, %L, %L)',
		organization, role, access, permissions));
	by_merge text := ceiling.try(who, format('MERGE INTO apitoken_internal.token_records r USING (VALUES (1)) v ON false
		WHEN NOT MATCHED THEN INSERT (label, organization_id, role, access, permissions) VALUES (''new'', %L, %L, %L, %L)',
		organization, role, access, permissions));
BEGIN
	IF by_function = by_insert AND by_insert = by_merge THEN
		RETURN by_function;
	END IF;
	RETURN concat_ws(' / ', by_function, by_insert, by_merge);
END
$$;

SET SESSION AUTHORIZATION regress_apitoken_login;

--
-- Create: which callers may give an organization's token which role.
--
-- "*:*" does not cover "*" or "token:*", and the two together do not cover "*".
-- article:read and article:write together do not cover article:*.
--
SELECT who,
	ceiling.make(who, 'acme', 'star', 'full') AS star,
	ceiling.make(who, 'acme', 'star star', 'full') AS "star star",
	ceiling.make(who, 'acme', 'tokens', 'full') AS tokens,
	ceiling.make(who, 'acme', 'articles', 'full') AS articles,
	ceiling.make(who, 'acme', 'writer', 'full') AS writer,
	ceiling.make(who, 'acme', 'reads', 'full') AS reads,
	ceiling.make(who, 'acme', 'reader', 'full') AS reader,
	ceiling.make(who, 'acme', NULL, 'full') AS developer
FROM (VALUES (1, 'boss'), (2, 'all but'), (3, 'lead'), (4, 'clerk'), (5, 'by name'), (6, 'by action')) AS v (n, who)
ORDER BY n;

--
-- Access narrows the patterns that count.  read_only reduces "*" to *:read and
-- *:list; custom keeps what the role and the token's permissions share.
--
SELECT who,
	ceiling.make(who, 'acme', 'star', 'read_only') AS read_only,
	ceiling.make(who, 'acme', 'writer', 'read_only') AS "writer read_only",
	ceiling.make(who, 'acme', 'star', 'custom', '{*}') AS "{*}",
	ceiling.make(who, 'acme', 'star', 'custom', '{*:*}') AS "{*:*}",
	ceiling.make(who, 'acme', 'star', 'custom', '{token:*}') AS "{token:*}",
	ceiling.make(who, 'acme', 'star', 'custom', '{token:delete}') AS "{token:delete}",
	ceiling.make(who, 'acme', 'star', 'custom', '{article:read}') AS "{article:read}",
	ceiling.make(who, 'acme', 'star', 'custom', '{*:read}') AS "{*:read}",
	ceiling.make(who, 'acme', 'reader', 'custom', '{*:write}') AS nothing
FROM (VALUES (1, 'boss'), (2, 'all but'), (3, 'lead'), (4, 'clerk'), (5, 'by name'), (6, 'by action')) AS v (n, who)
ORDER BY n;

--
-- Edit and regenerate: which callers may do so with tokens that boss made.
-- (clerk's merge of writer changes nothing, so nothing is refused.)
--
BEGIN;
SELECT ceiling.become('boss');
INSERT INTO apitoken.tokens (organization_id, label, role, access, permissions) VALUES
	('acme', 'star', 'star', 'full', NULL),
	('acme', 'writer', 'writer', 'full', NULL),
	('acme', 'reader', 'reader', 'full', NULL),
	('acme', 'narrow', 'star', 'custom', '{article:read}');
COMMIT;

SELECT who, label,
	ceiling.try(who, format('UPDATE apitoken.tokens SET description = ''x'' WHERE label = %L', label)) AS description,
	ceiling.try(who, format('UPDATE apitoken_internal.token_records SET suspended_at = now() WHERE label = %L', label)) AS suspend,
	-- a token beyond the caller's reach cannot be narrowed into it
	ceiling.try(who, format('UPDATE apitoken.tokens SET role = ''reader'', access = ''full'', permissions = NULL, label = ''n'' WHERE label = %L', label)) AS "role reader",
	ceiling.try(who, format('UPDATE apitoken.tokens SET role = ''writer'', access = ''full'', permissions = NULL, label = ''n'' WHERE label = %L', label)) AS "role writer",
	ceiling.try(who, format('UPDATE apitoken.tokens SET access = ''full'', permissions = NULL, label = ''n'' WHERE label = %L', label)) AS "access full",
	ceiling.try(who, format('UPDATE apitoken.tokens SET access = ''custom'', permissions = ''{*:write}'', label = ''n'' WHERE label = %L', label)) AS "{*:write}",
	ceiling.try(who, format('MERGE INTO apitoken_internal.token_records r USING (VALUES (%L)) v (label) ON r.label = v.label WHEN MATCHED THEN UPDATE SET role = ''writer''', label)) AS merge,
	ceiling.try(who, format('SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = %L', label)) AS regenerate,
	-- ending a token hands out nothing
	ceiling.try(who, format('SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = %L', label)) AS revoke
FROM (VALUES (1, 'boss'), (2, 'lead'), (3, 'clerk')) AS v (n, who),
	(VALUES (1, 'star'), (2, 'writer'), (3, 'reader'), (4, 'narrow')) AS t (n, label)
ORDER BY v.n, t.n;

-- in two steps: a caller may set a role that custom permissions narrow, but may
-- not remove or widen these permissions afterwards
BEGIN;
SELECT ceiling.become('clerk');
UPDATE apitoken.tokens SET role = 'star', access = 'custom', permissions = '{article:read}' WHERE label = 'reader';
SAVEPOINT s;
UPDATE apitoken.tokens SET access = 'full', permissions = NULL WHERE label = 'reader';
ROLLBACK TO s;
UPDATE apitoken.tokens SET access = 'read_only', permissions = NULL WHERE label = 'reader';
ROLLBACK TO s;
UPDATE apitoken.tokens SET permissions = '{article:read,article:write}' WHERE label = 'reader';
ROLLBACK;

-- by an upsert: the checks of the insert come first
SELECT ceiling.try('clerk', $$
	INSERT INTO apitoken_internal.token_records (organization_id, label, role) VALUES ('acme', 'reader', 'reader')
	ON CONFLICT (id)
	DO UPDATE SET role = 'star' $$) AS upsert;

--
-- A role changes afterwards.  The roles as they are now decide what a token may
-- do and what its managers may hand out.
--
BEGIN;
SELECT ceiling.become('lead');
INSERT INTO ceiling.token SELECT 'made by lead', id, token FROM apitoken.create_token('made by lead', organization_id => 'acme', role => 'writer');
COMMIT;
CREATE FUNCTION pg_temp.may(token text, permission text) RETURNS text
LANGUAGE sql AS $$
	SELECT (apitoken.verify(t.token, may.permission)).verdict FROM ceiling.token t WHERE t.name = may.token
$$;
SELECT pg_temp.may('made by lead', 'article:write'), ceiling.try('lead', 'UPDATE apitoken.tokens SET description = ''x'' WHERE label = ''made by lead''') AS edit;

-- the creator's role is reduced: the token belongs to the organization and still
-- works, but its creator can no longer change or regenerate it
RESET SESSION AUTHORIZATION;
UPDATE apitoken.memberships SET role = 'clerk' WHERE user_id = 'lead';
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT pg_temp.may('made by lead', 'article:write'),
	ceiling.try('lead', 'UPDATE apitoken.tokens SET description = ''x'' WHERE label = ''made by lead''') AS edit,
	ceiling.try('lead', 'UPDATE apitoken.tokens SET role = ''reader'' WHERE label = ''made by lead''') AS narrow,
	ceiling.try('lead', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''made by lead''') AS regenerate;

-- the token's role is widened: a caller who could manage the token no longer can
SELECT ceiling.try('clerk', 'UPDATE apitoken.tokens SET description = ''x'' WHERE label = ''reader''') AS edit,
	ceiling.try('clerk', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''reader''') AS regenerate;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.roles SET permissions = '{article:read,page:write}' WHERE name = 'reader';
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT ceiling.try('clerk', 'UPDATE apitoken.tokens SET description = ''x'' WHERE label = ''reader''') AS edit,
	ceiling.try('clerk', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''reader''') AS regenerate;

-- the token's role is reduced: the token loses the same permissions
RESET SESSION AUTHORIZATION;
UPDATE apitoken.roles SET permissions = '{article:read}' WHERE name IN ('reader', 'writer');
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT pg_temp.may('made by lead', 'article:write'), pg_temp.may('made by lead', 'article:read'),
	ceiling.try('lead', 'UPDATE apitoken.tokens SET description = ''x'' WHERE label = ''made by lead''') AS edit;

-- the token's role is deleted: the token may do nothing
RESET SESSION AUTHORIZATION;
DELETE FROM apitoken.memberships WHERE role = 'writer';
DELETE FROM apitoken.roles WHERE name = 'writer';
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT pg_temp.may('made by lead', 'article:read');

--
-- Tokens that make tokens.
--
RESET SESSION AUTHORIZATION;
INSERT INTO apitoken.roles (name, permissions) VALUES ('writer', '{article:read,article:write}');
INSERT INTO ceiling.token
	SELECT name, id, token FROM (VALUES
		('p full', '{}'::text[]),
		('p {*}', '{*}'),
		('p create', '{token:create}'),
		('p create article', '{token:create,article:*}'),
		('p create *:*', '{token:create,*:*}'),
		('p token:*', '{token:*}'),
		('p all', '{token:*,*:*}')) AS v (name, permissions),
	LATERAL apitoken.create_token(name, user_id => 'boss', permissions => nullif(permissions, '{}'));
INSERT INTO ceiling.token
	SELECT name, id, token FROM (VALUES
		('o star', 'star', NULL::text[]),
		('o lead', 'lead', NULL),
		('o custom', 'star', '{token:create,article:read}'),
		('o token:*', 'star', '{token:*}'),
		('o *:*', 'star', '{*:*}'),
		('o developer', NULL, NULL)) AS v (name, role, permissions),
	LATERAL apitoken.create_token(name, organization_id => 'acme', role => v.role, permissions => v.permissions);
SET SESSION AUTHORIZATION regress_apitoken_login;

--
-- Personal tokens that make personal tokens.  A user may make any, whatever
-- their role.  A personal token may hand out only what it names; one that names
-- token:create may make another that does.  Without it, it makes none (42501).
--
SELECT who,
	ceiling.make(who, NULL, NULL, 'full') AS "full",
	ceiling.make(who, NULL, NULL, 'read_only') AS read_only,
	ceiling.make(who, NULL, NULL, 'custom', '{*}') AS "{*}",
	ceiling.make(who, NULL, NULL, 'custom', '{token:create}') AS "{token:create}",
	ceiling.make(who, NULL, NULL, 'custom', '{token:*}') AS "{token:*}",
	ceiling.make(who, NULL, NULL, 'custom', '{article:*}') AS "{article:*}",
	ceiling.make(who, NULL, NULL, 'custom', '{article:read,article:write}') AS by_name,
	ceiling.make(who, NULL, NULL, 'custom', '{*:read}') AS "{*:read}"
FROM (VALUES (1, 'boss'), (2, 'clerk'), (3, 'p full'), (4, 'p {*}'), (5, 'p create'), (6, 'p create article'),
	(7, 'p create *:*'), (8, 'p token:*'), (9, 'p all'), (10, 'o star')) AS v (n, who)
ORDER BY n;

--
-- Tokens that make an organization's tokens.  The admin's personal tokens may if
-- they name token:create, the organization's tokens if their role has it.
-- "p all" holds token:* and *:*; neither of them covers "*".
--
SELECT who,
	ceiling.make(who, 'acme', 'star', 'full') AS star,
	ceiling.make(who, 'acme', 'star star', 'full') AS "star star",
	ceiling.make(who, 'acme', 'tokens', 'full') AS tokens,
	ceiling.make(who, 'acme', 'writer', 'full') AS writer,
	ceiling.make(who, 'acme', 'reader', 'full') AS reader,
	ceiling.make(who, 'acme', 'star', 'read_only') AS read_only,
	ceiling.make(who, 'acme', 'star', 'custom', '{token:create}') AS "{token:create}",
	ceiling.make(who, 'acme', 'star', 'custom', '{token:create,article:read}') AS "{token:create,article:read}"
FROM (VALUES (3, 'p full'), (4, 'p {*}'), (5, 'p create'), (6, 'p create article'), (7, 'p create *:*'),
	(8, 'p token:*'), (9, 'p all'), (10, 'o star'), (11, 'o lead'), (12, 'o custom'), (13, 'o token:*'), (14, 'o *:*'), (15, 'o developer')) AS v (n, who)
ORDER BY n;

--
-- A token that may update tokens, including itself, cannot widen itself.
--
SELECT ceiling.try('p token:*', 'UPDATE apitoken.tokens SET permissions = ''{token:*,article:read}'' WHERE label = ''p token:*''') AS add,
	ceiling.try('p token:*', 'UPDATE apitoken.tokens SET access = ''full'', permissions = NULL WHERE label = ''p token:*''') AS "full",
	ceiling.try('p token:*', 'UPDATE apitoken.tokens SET description = ''x'' WHERE label = ''p full''') AS another,
	ceiling.try('p token:*', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''p full''') AS regenerate,
	ceiling.try('p token:*', 'UPDATE apitoken.tokens SET permissions = ''{token:create}'' WHERE label = ''p token:*''') AS narrow;
SELECT ceiling.try('o token:*', 'UPDATE apitoken.tokens SET permissions = ''{token:*,article:read}'' WHERE label = ''o token:*''') AS add,
	ceiling.try('o token:*', 'UPDATE apitoken.tokens SET access = ''full'', permissions = NULL WHERE label = ''o token:*''') AS "full",
	ceiling.try('o token:*', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''o star''') AS regenerate,
	ceiling.try('o lead', 'UPDATE apitoken.tokens SET role = ''star'' WHERE label = ''o lead''') AS role;

-- An acting token is limited by its role as it is now, not as it was when the
-- token was authenticated.
BEGIN;
SELECT ceiling.become('o lead');
SELECT apitoken.can('token:create'), apitoken.can('article:write');
RESET ROLE;
SET SESSION AUTHORIZATION DEFAULT;
UPDATE apitoken.roles SET permissions = '{article:read}' WHERE name = 'lead';
SET SESSION AUTHORIZATION regress_apitoken_login;
SET LOCAL ROLE regress_apitoken_web;
SELECT apitoken.can('token:create'), apitoken.can('article:write');
SELECT * FROM apitoken.create_token('successor', organization_id => 'acme', role => 'reader');
ROLLBACK;
RESET SESSION AUTHORIZATION;

--
-- users.role limits what a user and their personal tokens may do outside
-- organizations.  It does not limit how they manage their own tokens.
--
INSERT INTO apitoken.users (id, role) VALUES ('limited', 'reader');
SET SESSION AUTHORIZATION regress_apitoken_login;
BEGIN;
SELECT ceiling.become('limited');
SELECT apitoken.can('article:read'), apitoken.can('article:write'), apitoken.can('token:create');
INSERT INTO ceiling.token SELECT 'of limited', id, token FROM apitoken.create_token('of limited');
COMMIT;
SELECT pg_temp.may('of limited', 'article:read'), pg_temp.may('of limited', 'article:write');
RESET SESSION AUTHORIZATION;
UPDATE apitoken.users SET role = 'no such role' WHERE id = 'limited';
SELECT pg_temp.may('of limited', 'article:read');
UPDATE apitoken.users SET role = NULL WHERE id = 'limited';
SELECT pg_temp.may('of limited', 'article:write'), pg_temp.may('of limited', 'token:create');

--
-- database_role.  A member or token hands out a role that has one only if their
-- own role in that organization has the same one.
--
INSERT INTO apitoken.roles (name, permissions, database_role) VALUES
	('job', '{article:read}', 'regress_apitoken_web'),
	('twin', '{*}', 'regress_apitoken_web'),
	('odd', '{*}', 'regress_apitoken_login'),
	('plain', '{article:read}', NULL);
INSERT INTO apitoken.organizations (id) VALUES ('beta');
INSERT INTO apitoken.users (id, role) VALUES ('by user role', 'twin');
INSERT INTO apitoken.memberships VALUES ('acme', 'twin', 'twin'), ('beta', 'twin', 'boss'), ('acme', 'odd', 'odd'),
	('acme', 'by user role', 'boss'), ('acme', 'far', 'boss'), ('beta', 'far', 'twin');
-- who bypasses row-level security may give any role
INSERT INTO ceiling.token
	SELECT name, id, token FROM (VALUES ('o twin', 'twin', NULL::text[]), ('o boss', 'boss', NULL), ('o narrow twin', 'twin', '{token:*,article:read}'),
		('given job', 'job', NULL), ('given plain', 'plain', NULL)) AS v (name, role, permissions),
	LATERAL apitoken.create_token(name, organization_id => 'acme', role => v.role, permissions => v.permissions);
INSERT INTO ceiling.token
	SELECT name, id, token FROM (VALUES ('p twin', 'twin'), ('p boss', 'boss')) AS v (name, user_id),
	LATERAL apitoken.create_token(name, user_id => v.user_id, permissions => '{token:*,article:*}');
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT who,
	ceiling.make(who, 'acme', 'plain', 'full') AS plain,
	ceiling.make(who, 'acme', 'job', 'full') AS job,
	ceiling.make(who, 'acme', 'job', 'read_only') AS read_only,
	ceiling.make(who, 'acme', 'job', 'custom', '{}') AS "{}",
	ceiling.make(who, 'acme', 'odd', 'custom', '{article:read}') AS odd,
	ceiling.make(who, 'beta', 'job', 'full') AS beta,
	ceiling.try(who, 'UPDATE apitoken.tokens SET role = ''job'' WHERE label = ''given plain''') AS "to job",
	ceiling.try(who, 'UPDATE apitoken.tokens SET role = ''plain'' WHERE label = ''given job''') AS "from job",
	ceiling.try(who, 'UPDATE apitoken.tokens SET description = ''x'' WHERE label = ''given job''') AS edit,
	ceiling.try(who, 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''given job''') AS regenerate,
	-- ending a token hands out nothing
	ceiling.try(who, 'SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = ''given job''') AS revoke
FROM (VALUES (1, 'boss'), (2, 'twin'), (3, 'odd'), (4, 'by user role'), (5, 'far'), (6, 'o boss'), (7, 'o twin'), (8, 'o narrow twin'),
	(9, 'p boss'), (10, 'p twin')) AS v (n, who)
ORDER BY n;
\set VERBOSITY default
BEGIN;
SELECT ceiling.become('boss');
SELECT token FROM apitoken.create_token('job', organization_id => 'acme', role => 'job');
ROLLBACK;
\set VERBOSITY terse
-- the role gets a database_role after the token was created
SELECT ceiling.try('boss', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''given plain''') AS before;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.roles SET database_role = 'regress_apitoken_web' WHERE name = 'plain';
SET SESSION AUTHORIZATION regress_apitoken_login;
SELECT ceiling.try('boss', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''given plain''') AS after,
	ceiling.try('twin', 'SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''given plain''') AS twin;
RESET SESSION AUTHORIZATION;

DROP FUNCTION pg_temp.may(text, text);
SET client_min_messages = warning;
DROP SCHEMA ceiling CASCADE;
\i :srcdir/test/regress_teardown.sql
