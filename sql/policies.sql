--
-- The policies of docs/policies.md and examples/policies.sql.  Tries each cell of
-- the document's table, and ways around the policies.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\set ECHO none
\i :srcdir/examples/policies.sql
\set ECHO all
\pset null -

-- an application's login, and the three roles of PostgREST
CREATE ROLE regress_apitoken_app LOGIN;
CREATE ROLE regress_apitoken_authenticator LOGIN NOINHERIT;
CREATE ROLE regress_apitoken_anonymous;
CREATE ROLE regress_apitoken_member;
GRANT regress_apitoken_anonymous, regress_apitoken_member TO regress_apitoken_authenticator;
SELECT apitoken.allow('regress_apitoken_app', 'act', 'use'), apitoken.allow('regress_apitoken_authenticator', 'act'),
	apitoken.allow('regress_apitoken_anonymous', 'use'), apitoken.allow('regress_apitoken_member', 'use');
GRANT SELECT, INSERT, UPDATE, DELETE ON article, draft TO regress_apitoken_app, regress_apitoken_anonymous, regress_apitoken_member;

INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{*:read,*:list}');
INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('globex'), ('initech');
INSERT INTO apitoken.users (id, groups, role, suspended_at) VALUES
	('alice', '{staff}', NULL, NULL), ('bob', '{}', NULL, NULL), ('rita', '{}', NULL, NULL), ('lea', '{}', 'reader', NULL),
	('gil', '{}', NULL, NULL), ('sue', '{staff}', NULL, now());
INSERT INTO apitoken.memberships VALUES
	('acme', 'alice', 'admin'), ('acme', 'bob', 'developer'), ('acme', 'rita', 'reader'), ('acme', 'lea', 'developer'),
	('acme', 'sue', 'admin'), ('globex', 'gil', 'developer'), ('initech', 'gil', 'admin');

-- the test's rows: id and code of each, and how to insert a similar one
CREATE TABLE public.regress_thing (id int, relation text, code text, columns text, row_values text);
INSERT INTO public.regress_thing VALUES
	(1, 'article', 'A', 'organization_id, groups', '''acme'', ''{}'''),
	(2, 'article', 'S', 'organization_id, groups', '''acme'', ''{staff}'''),
	(3, 'article', 'G', 'organization_id, groups', '''globex'', ''{}'''),
	(4, 'article', 'I', 'organization_id, groups', '''initech'', ''{}'''),
	(1, 'draft', 'a', 'user_id, submitted_to', '''alice'', NULL'),
	(2, 'draft', 's', 'user_id, submitted_to', '''alice'', ''acme'''),
	(3, 'draft', 'b', 'user_id, submitted_to', '''bob'', NULL'),
	(4, 'draft', 'l', 'user_id, submitted_to', '''lea'', NULL'),
	(5, 'draft', 'g', 'user_id, submitted_to', '''gil'', ''globex''');
GRANT SELECT ON public.regress_thing TO PUBLIC;
DO $$
DECLARE
	thing public.regress_thing;
BEGIN
	FOR thing IN SELECT * FROM public.regress_thing ORDER BY relation, id LOOP
		EXECUTE format('INSERT INTO %s (%s, title) VALUES (%s, %L)', thing.relation, thing.columns, thing.row_values, thing.code);
	END LOOP;
END
$$;

-- Does this statement affect its one row?  A policy refuses by no row or 42501, a
-- read-only token by 25006.  The effect is rolled back.
CREATE FUNCTION public.regress_may(sql text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	EXECUTE sql;
	GET DIAGNOSTICS n = ROW_COUNT;
	RAISE SQLSTATE 'REG01';
EXCEPTION
	WHEN SQLSTATE 'REG01' THEN
		RETURN CASE n WHEN 0 THEN false WHEN 1 THEN true END;
	WHEN insufficient_privilege OR read_only_sql_transaction THEN
		RETURN false;
END
$$;
-- A caller's line of the table: which rows they may see, insert, update, delete.
CREATE FUNCTION public.regress_line(caller text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	line text := '| ' || caller || ' |';
	tried text;
BEGIN
	FOR tried IN
		SELECT string_agg(t.code, ' ' ORDER BY t.id) FILTER (WHERE public.regress_may(format(statement, t.relation, t.columns, t.row_values, t.id)))
		FROM unnest('{article,draft}'::text[]) WITH ORDINALITY AS r (relation, rn) JOIN public.regress_thing t USING (relation),
			unnest(ARRAY['SELECT FROM %1$s WHERE id = %4$s',
				'INSERT INTO %1$s (%2$s, title) VALUES (%3$s, ''new'') RETURNING id',
				'UPDATE %1$s SET title = ''changed'' WHERE id = %4$s RETURNING id',
				'DELETE FROM %1$s WHERE id = %4$s RETURNING id']) WITH ORDINALITY AS s (statement, sn)
		GROUP BY rn, sn ORDER BY rn, sn
	LOOP
		line := line || ' ' || coalesce(tried, '-') || ' |';
	END LOOP;
	RETURN line;
END
$$;
-- the control: a role that bypasses row-level security may do everything
SELECT public.regress_line('superuser');

SELECT token AS org FROM apitoken.create_token('org', organization_id => 'acme') \gset
SELECT token AS org_reader FROM apitoken.create_token('org_reader', organization_id => 'acme', role => 'reader') \gset
SELECT token AS org_read_only FROM apitoken.create_token('org_read_only', organization_id => 'acme', access => 'read_only') \gset
SELECT token AS org_custom FROM apitoken.create_token('org_custom', organization_id => 'acme', permissions => '{article:read,article:create}') \gset
SELECT token AS org_globex FROM apitoken.create_token('org_globex', organization_id => 'globex', role => 'admin') \gset
SELECT token AS org_initech FROM apitoken.create_token('org_initech', organization_id => 'initech', role => 'admin') \gset
SELECT token AS alice FROM apitoken.create_token('alice', user_id => 'alice') \gset
SELECT token AS alice_read_only FROM apitoken.create_token('alice_read_only', user_id => 'alice', access => 'read_only') \gset
SELECT token AS alice_articles FROM apitoken.create_token('alice_articles', user_id => 'alice', permissions => '{article:*}') \gset
SELECT token AS alice_drafts FROM apitoken.create_token('alice_drafts', user_id => 'alice', permissions => '{draft:read,draft:update}') \gset
SELECT token AS alice_nothing FROM apitoken.create_token('alice_nothing', user_id => 'alice', permissions => '{}') \gset
SELECT token AS alice_blind FROM apitoken.create_token('alice_blind', user_id => 'alice', permissions => '{article:create,article:update,article:delete}') \gset
SELECT token AS lea FROM apitoken.create_token('lea', user_id => 'lea') \gset
SELECT token AS gil FROM apitoken.create_token('gil', user_id => 'gil') \gset
SELECT token AS sue FROM apitoken.create_token('sue', user_id => 'sue') \gset
UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'initech';

--
-- The table.  Users, in each way that an application can name them: by a call,
-- by a setting, and by PostgREST's JWT.
--
\pset format unaligned
\pset tuples_only on
SET apitoken.jwt_user_claim = 'sub';
\set as_app 'SET SESSION AUTHORIZATION regress_apitoken_app;'
\set as_authenticator 'SET SESSION AUTHORIZATION regress_apitoken_authenticator;'
\set by_call 'BEGIN; SELECT FROM apitoken.act_as(:''user''); SELECT public.regress_line(:''caller''); ROLLBACK;'
\set by_setting 'BEGIN; SET LOCAL apitoken.user_id = :''user''; SELECT public.regress_line(''the same by a setting''); ROLLBACK;'
\set claims 'json_build_object(''role'', ''regress_apitoken_member'', ''sub'', :''user'')::text'
\set by_jwt 'BEGIN; WITH request AS MATERIALIZED (SELECT set_config(''role'', ''regress_apitoken_member'', true), set_config(''request.jwt.claims'', :claims, true)) SELECT FROM request; SELECT public.regress_line(''the same by a JWT''); ROLLBACK;'

\set user alice
\set caller 'Alice, admin in Acme, group staff'
:as_app :by_call :by_setting :as_authenticator :by_jwt
\set user bob
\set caller 'Bob, developer in Acme'
:as_app :by_call :by_setting :as_authenticator :by_jwt
\set user rita
\set caller 'Rita, reader in Acme'
:as_app :by_call :by_setting :as_authenticator :by_jwt
\set user lea
\set caller 'Lea, developer in Acme, her own role is reader'
:as_app :by_call :by_setting :as_authenticator :by_jwt
\set user gil
\set caller 'Gil, developer in Globex, admin in Initech'
:as_app :by_call :by_setting :as_authenticator :by_jwt
\set user sue
\set caller 'Sue, admin in Acme, group staff, suspended'
:as_app :by_call :by_setting :as_authenticator :by_jwt
\set user nobody
\set caller 'a user whom nobody knows'
:as_app :by_call :by_setting :as_authenticator :by_jwt

-- Tokens, by a call, by a setting, and in a header of PostgREST's.
\set by_call 'BEGIN; SELECT FROM apitoken.authenticate(:''token''); SELECT public.regress_line(:''caller''); ROLLBACK;'
\set by_setting 'BEGIN; SET LOCAL apitoken.token = :''token''; SELECT public.regress_line(''the same by a setting''); ROLLBACK;'
\set headers 'json_build_object(''x-api-key'', :''token'')::text'
\set by_header 'BEGIN; WITH request AS MATERIALIZED (SELECT set_config(''role'', ''regress_apitoken_anonymous'', true), set_config(''request.headers'', :headers, true)) SELECT FROM request; SELECT FROM apitoken.pre_request(); SELECT public.regress_line(''the same by a header''); ROLLBACK;'

\set token :alice
\set caller 'Alice''s token, full'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :alice_read_only
\set caller 'Alice''s token, read_only'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :alice_articles
\set caller 'Alice''s token, custom `{article:*}`'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :alice_drafts
\set caller 'Alice''s token, custom `{draft:read,draft:update}`'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :alice_nothing
\set caller 'Alice''s token, custom `{}`'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :lea
\set caller 'Lea''s token, full'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :gil
\set caller 'Gil''s token, full'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :org
\set caller 'Acme''s token, developer, full'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :org_read_only
\set caller 'Acme''s token, developer, read_only'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :org_custom
\set caller 'Acme''s token, developer, custom `{article:read,article:create}`'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :org_reader
\set caller 'Acme''s token, reader, full'
:as_app :by_call :by_setting :as_authenticator :by_header
\set token :org_globex
\set caller 'Globex'' token, admin, full'
:as_app :by_call :by_setting :as_authenticator :by_header

-- Anonymous callers: no token and no user; claims that name no user; and a login
-- without the capability act.
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN; SELECT public.regress_line('anonymous'); ROLLBACK;
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
BEGIN; WITH request AS MATERIALIZED (SELECT set_config('role', 'regress_apitoken_anonymous', true), set_config('request.jwt.claims', '{"role": "regress_apitoken_anonymous"}', true), set_config('request.headers', '{}', true)) SELECT FROM request; SELECT FROM apitoken.pre_request(); SELECT public.regress_line('by PostgREST'); ROLLBACK;
BEGIN; WITH request AS MATERIALIZED (SELECT set_config('role', 'regress_apitoken_member', true), set_config('request.jwt.claims', '{"sub": null}', true)) SELECT FROM request; SELECT public.regress_line('claim null'); ROLLBACK;
RESET SESSION AUTHORIZATION;
SELECT apitoken.disallow('regress_apitoken_authenticator', 'act') \g /dev/null
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
\set user alice
BEGIN; WITH request AS MATERIALIZED (SELECT set_config('role', 'regress_apitoken_member', true), set_config('request.jwt.claims', :claims, true)) SELECT FROM request; SELECT public.regress_line('Alice, said by nobody who may'); ROLLBACK;
RESET SESSION AUTHORIZATION;
SELECT apitoken.allow('regress_apitoken_authenticator', 'act') \g /dev/null
-- Claims set for the session or in an earlier transaction do not count.
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SET request.jwt.claims = '{"sub": "alice"}';
BEGIN; SET LOCAL ROLE regress_apitoken_member; SELECT public.regress_line('claims of the session'); ROLLBACK;
RESET request.jwt.claims;

-- Tokens of a suspended user or organization are refused.
SET SESSION AUTHORIZATION regress_apitoken_app;
\set VERBOSITY default
BEGIN; SELECT FROM apitoken.authenticate(:'sue'); ROLLBACK;
BEGIN; SELECT FROM apitoken.authenticate(:'org_initech'); ROLLBACK;
\set VERBOSITY terse

--
-- Cases that the table does not show.  A user may not move rows to another
-- organization, to a group that they are not in or to another user, and may not
-- submit a draft where they may not write.
--
BEGIN; SELECT FROM apitoken.act_as('alice');
SELECT public.regress_try($$UPDATE article SET organization_id = 'globex' WHERE id = 1$$);
SELECT public.regress_try($$UPDATE article SET groups = '{board}' WHERE id = 1$$);
SELECT public.regress_try($$UPDATE article SET groups = '{board,staff}' WHERE id = 1$$);
SELECT public.regress_try($$UPDATE article SET groups = '{}' WHERE id = 2$$);
SELECT public.regress_try($$INSERT INTO article (organization_id, groups, title) VALUES ('acme', '{board}', 'x')$$);
SELECT public.regress_try($$INSERT INTO article (organization_id, title) VALUES ('acme', 'x'), ('globex', 'x')$$);
SELECT public.regress_try($$INSERT INTO article (organization_id, title) VALUES ('nowhere', 'x')$$);
SELECT public.regress_try($$UPDATE draft SET user_id = 'bob' WHERE id = 1$$);
SELECT public.regress_try($$UPDATE draft SET submitted_to = 'acme' WHERE id = 1$$);
SELECT public.regress_try($$UPDATE draft SET submitted_to = 'globex' WHERE id = 1$$);
SELECT public.regress_try($$UPDATE draft SET submitted_to = NULL WHERE id = 2$$);
SELECT public.regress_try($$INSERT INTO draft (submitted_to, title) VALUES ('globex', 'x')$$);
ROLLBACK;
-- a user who may only read cannot submit, nor can a token that may not write articles
BEGIN; SELECT FROM apitoken.act_as('rita');
SELECT public.regress_try($$INSERT INTO draft (submitted_to, title) VALUES ('acme', 'x')$$);
SELECT public.regress_try($$INSERT INTO draft (title) VALUES ('x')$$);
ROLLBACK;
BEGIN; SELECT FROM apitoken.authenticate(:'alice_drafts');
SELECT public.regress_try($$UPDATE draft SET submitted_to = 'acme' WHERE id = 1$$);
ROLLBACK;

-- A column that is left out defaults to the acting owner, or the row is refused.
BEGIN; SELECT FROM apitoken.authenticate(:'org');
INSERT INTO article (title) VALUES ('x') RETURNING organization_id;
SELECT public.regress_try($$INSERT INTO draft (title) VALUES ('x')$$);
ROLLBACK;
BEGIN; SELECT FROM apitoken.act_as('bob');
INSERT INTO draft (title) VALUES ('x') RETURNING user_id;
SELECT public.regress_try($$INSERT INTO article (title) VALUES ('x')$$);
ROLLBACK;

-- A caller who may write but not read learns nothing by it.  A statement that
-- names a column finds no row, and one that returns rows is refused.
BEGIN; SELECT FROM apitoken.authenticate(:'alice_blind');
SELECT public.regress_try($$INSERT INTO article (organization_id, title) VALUES ('acme', 'x')$$);
SELECT public.regress_try($$INSERT INTO article (organization_id, title) VALUES ('acme', 'x') RETURNING id$$);
SELECT public.regress_try($$UPDATE article SET title = 'x' WHERE id = 1$$);
SELECT public.regress_try($$DELETE FROM article WHERE title = 'A'$$);
-- without a condition, it changes all of Acme's rows and none of Globex's
SELECT public.regress_try($$UPDATE article SET title = 'x'$$);
SELECT public.regress_try($$DELETE FROM article$$);
ROLLBACK;

-- A function in WHERE never sees rows that the policies hide, however low its
-- declared cost is.
RESET SESSION AUTHORIZATION;
CREATE FUNCTION public.regress_peep(title text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
	RAISE INFO 'sees %', title;
	RETURN true;
END
$$;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN; SELECT FROM apitoken.act_as('bob');
SELECT title FROM article WHERE public.regress_peep(title);
SELECT title FROM draft WHERE public.regress_peep(title);
ROLLBACK;

-- Joins, counts, COPY, MERGE, cursors and the user's own views hide them as well.
BEGIN; SELECT FROM apitoken.act_as('bob');
SELECT (SELECT count(*) FROM article), (SELECT count(*) FROM article a JOIN draft d ON true), (SELECT max(id) FROM draft);
COPY article (title) TO STDOUT;
COPY (SELECT title FROM draft) TO STDOUT;
MERGE INTO article USING (VALUES (1), (2), (3)) AS v (id) ON article.id = v.id WHEN MATCHED THEN UPDATE SET title = 'merged';
CREATE TEMP VIEW seen AS SELECT title FROM article;
SELECT * FROM seen;
DECLARE c CURSOR FOR SELECT title FROM article ORDER BY id;
FETCH ALL FROM c;
RESET SESSION AUTHORIZATION;
SELECT string_agg(title, ' ' ORDER BY id) FROM article;
ROLLBACK;

-- A cached plan returns each caller their own rows.
SET SESSION AUTHORIZATION regress_apitoken_app;
SET plan_cache_mode = force_generic_plan;
PREPARE titles AS SELECT string_agg(title, ' ' ORDER BY title) FROM (SELECT title FROM article UNION ALL SELECT title FROM draft) t;
BEGIN; SELECT FROM apitoken.act_as('alice'); EXECUTE titles; ROLLBACK;
BEGIN; SELECT FROM apitoken.act_as('bob'); EXECUTE titles; ROLLBACK;
BEGIN; SELECT FROM apitoken.authenticate(:'org'); EXECUTE titles; ROLLBACK;
BEGIN; SELECT FROM apitoken.act_as('gil'); EXECUTE titles; ROLLBACK;
EXECUTE titles;
DEALLOCATE titles;
RESET plan_cache_mode;

-- A changed membership, role or suspension counts from the next statement on.
-- The identity itself cannot change.
BEGIN; SELECT FROM apitoken.act_as('bob');
SELECT string_agg(title, ' ') FROM article;
RESET SESSION AUTHORIZATION;
DELETE FROM apitoken.memberships WHERE user_id = 'bob';
INSERT INTO apitoken.memberships VALUES ('globex', 'bob', 'reader');
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT string_agg(title, ' ') FROM article;
SELECT public.regress_try($$UPDATE article SET title = 'x' WHERE id = 3$$);
RESET SESSION AUTHORIZATION;
UPDATE apitoken.roles SET permissions = '{*:update}' WHERE name = 'reader';
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT string_agg(title, ' ') FROM article;
SELECT string_agg(title, ' ') FROM draft;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.users SET suspended_at = now() WHERE id = 'bob';
SET SESSION AUTHORIZATION regress_apitoken_app;
SELECT string_agg(title, ' ') FROM draft;
ROLLBACK;

-- none of this changed anything
RESET SESSION AUTHORIZATION;
SELECT (SELECT string_agg(title, ' ' ORDER BY id) FROM article), (SELECT string_agg(title, ' ' ORDER BY id) FROM draft);

SET client_min_messages = warning;
DROP TABLE article, draft, public.regress_thing;
DROP FUNCTION public.regress_may(text), public.regress_line(text), public.regress_peep(text);
\i :srcdir/test/regress_teardown.sql
