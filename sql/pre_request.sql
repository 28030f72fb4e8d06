--
-- pre_request(): which identity the headers and claims of an HTTP request give,
-- as PostgREST passes them, and how the request is refused.
--
\set SHOW_CONTEXT never
\pset format unaligned
\pset fieldsep ' = '
\pset tuples_only on
\pset null -
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
-- PostgREST's usual three roles, two for database_role, a gateway, a stranger
CREATE ROLE regress_apitoken_authenticator LOGIN NOINHERIT;
CREATE ROLE regress_apitoken_anon;
CREATE ROLE regress_apitoken_web;
CREATE ROLE regress_apitoken_reader;
CREATE ROLE "Regress_apitoken Other";
CREATE ROLE regress_apitoken_gateway LOGIN NOINHERIT;
CREATE ROLE regress_apitoken_plain LOGIN NOINHERIT;
CREATE ROLE regress_apitoken_super SUPERUSER;
GRANT regress_apitoken_anon, regress_apitoken_web, regress_apitoken_reader TO regress_apitoken_authenticator;
GRANT regress_apitoken_anon TO regress_apitoken_gateway, regress_apitoken_plain;
SELECT apitoken.allow('regress_apitoken_authenticator', 'act');
SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
SELECT apitoken.allow('regress_apitoken_anon', 'use');
SELECT apitoken.allow('regress_apitoken_web', 'manage');

INSERT INTO apitoken.organizations (id) VALUES ('acme');
INSERT INTO apitoken.users (id) VALUES ('ada');
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin');
INSERT INTO apitoken.roles (name, permissions, database_role) VALUES
	('reader', '{article:read}', 'regress_apitoken_reader'),
	('other', '{article:read}', 'Regress_apitoken Other'),
	('gone', '{article:read}', 'regress_apitoken_no_such_role'),
	('nobody', '{article:read}', 'none'),
	('super', '{article:read}', 'regress_apitoken_super');

CREATE SCHEMA pre;
GRANT USAGE ON SCHEMA pre TO PUBLIC;
CREATE TABLE pre.token (name text PRIMARY KEY, token text);
INSERT INTO pre.token
	SELECT 'org', token FROM apitoken.create_token('org', 'acme')
	UNION ALL SELECT 'org2', token FROM apitoken.create_token('org2', 'acme')
	UNION ALL SELECT 'read_only', token FROM apitoken.create_token('read_only', 'acme', access => 'read_only')
	UNION ALL SELECT 'ada', token FROM apitoken.create_token('own', user_id => 'ada')
	UNION ALL SELECT 'office', token FROM apitoken.create_token('office', 'acme', allowed_networks => '{192.0.2.0/24,2001:db8::/32}')
	UNION ALL SELECT r, token FROM unnest('{reader,other,gone,nobody,super}'::text[]) r, apitoken.create_token('with role ' || r, 'acme', role => r)
	UNION ALL SELECT 'read_only_reader', token FROM apitoken.create_token('read_only_reader', 'acme', role => 'reader', access => 'read_only')
	UNION ALL SELECT l, token FROM unnest('{revoked,expired,suspended}'::text[]) l, apitoken.create_token(l, 'acme');
UPDATE apitoken.tokens SET expires_at = now() - interval '1 second' WHERE label = 'expired';
UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended';
SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked';
INSERT INTO pre.token SELECT 'masked', apitoken.mask(token) FROM pre.token WHERE name = 'org';
INSERT INTO pre.token SELECT 'wrong', regexp_replace(token, '.$', CASE WHEN token ~ 'a$' THEN 'b' ELSE 'a' END) FROM pre.token WHERE name = 'org';
-- as Basic encodes them: curl -u "$TOKEN:", curl -u "user:$TOKEN"
INSERT INTO pre.token
	SELECT 'as_name', translate(encode(convert_to(token || ':', 'UTF8'), 'base64'), E'\n', '') FROM pre.token WHERE name = 'org'
	UNION ALL SELECT 'as_password', translate(encode(convert_to('user:' || token, 'UTF8'), 'base64'), E'\n', '') FROM pre.token WHERE name = 'org';
INSERT INTO pre.token
	SELECT 'unpadded', rtrim(token, '=') FROM pre.token WHERE name IN ('as_name', 'as_password') AND token LIKE '%='
	UNION ALL SELECT 'as_url', translate(encode(convert_to('?>?>?>' || token, 'UTF8'), 'base64'), E'+/=\n', '-_') FROM pre.token WHERE name = 'org'
	UNION ALL SELECT 'as_long', translate(encode(convert_to(repeat('long', 3000) || ':' || token, 'UTF8'), 'base64'), E'\n', '') FROM pre.token WHERE name = 'org';
GRANT SELECT ON pre.token TO PUBLIC;
CREATE TABLE pre.work (n int);
GRANT ALL ON pre.work TO PUBLIC;

-- <name> in a text is the text of that token
CREATE FUNCTION pre.fill(template text) RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
	t pre.token;
BEGIN
	FOR t IN SELECT * FROM pre.token LOOP
		template := replace(template, '<' || t.name || '>', t.token);
	END LOOP;
	RETURN template;
END $$;
CREATE FUNCTION pre.who() RETURNS text LANGUAGE sql STABLE AS $$
	SELECT concat_ws(' ', w->>'source', w->>'user_id', w->>'organization_id', w->>'database_user',
		CASE current_setting('transaction_read_only') WHEN 'on' THEN 'READ ONLY' END) FROM apitoken.whoami() w $$;
-- Runs one request as PostgREST does, and rolls it back.  Returns who is acting,
-- or the HTTP status, code and details of a refusal, or another error.
CREATE FUNCTION pre.request(headers text, claims text DEFAULT '{"role":"regress_apitoken_anon"}',
							role text DEFAULT 'regress_apitoken_anon', query text DEFAULT 'SELECT pre.who()') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
	detail text;
	hint text;
BEGIN
	-- in PostgREST's order: the role is set before the claims
	PERFORM set_config('role', role, true), set_config('request.jwt.claims', claims, true), set_config('request.headers', pre.fill(headers), true);
	PERFORM apitoken.pre_request();
	EXECUTE query INTO answer;
	RAISE SQLSTATE 'DONE0' USING MESSAGE = coalesce(answer, '-');
EXCEPTION
	WHEN SQLSTATE 'DONE0' THEN
		RETURN SQLERRM;
	WHEN SQLSTATE 'PGRST' THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RETURN concat_ws(' ', detail::json->>'status', SQLERRM::json->>'code', '|', SQLERRM::json->>'details', nullif(hint, ''));
	WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RETURN concat_ws(' | ', SQLSTATE, SQLERRM, nullif(detail, ''), nullif(hint, ''));
END $$;

--
-- Which header, which scheme, which value.  A token is found, or there is none,
-- or the request is refused.  A request with a token is never anonymous.
--
CREATE TABLE pre.header (id int GENERATED ALWAYS AS IDENTITY, headers text);
GRANT SELECT ON pre.header TO PUBLIC;
INSERT INTO pre.header (headers) VALUES
	-- found
	('{"x-api-key": "<org>"}'),
	('{"X-API-Key": "<org>"}'),
	('{"x\u002dapi\u002dkey": "<org>"}'),
	('{"host": "localhost", "x-api-key": "<ada>", "accept": "*/*"}'),
	('{"x-api-key": "  <org>\t "}'),
	('{"x-api-key": "<org>\r\n"}'),
	('{"x-api-key": "Bearer <org>"}'),
	('{"x-api-key": "token <org>"}'),
	('{"authorization": "Bearer <org>"}'),
	('{"authorization": "bearer <org>"}'),
	('{"authorization": "BEARER   <org>"}'),
	('{"authorization": "tOkEn <org>"}'),
	('{"authorization": "ApiKey\t<org>"}'),
	('{"authorization": "APIKEY <org>"}'),
	('{"authorization": "<org>"}'),
	('{"authorization": "Basic dXNlcjpwYXNz", "x-api-key": "<org>"}'),
	('{"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "x-api-key": "<org>"}'),
	('{"x-api-key": "<read_only>"}'),
	-- none
	('{}'),
	(' { } '),
	('{"host": "localhost", "cookie": "<org>", "x-api-keys": "<org>", "x-api-key ": "<org>", "x_api_key": "<org>", "": "<org>"}'),
	('{"x": {"x-api-key": "<org>"}, "y": [{"x-api-key": "<org>"}], "z": {"authorization": "<org>"}}'),
	('{"authorization": "Basic dXNlcjpwYXNz"}'),
	('{"authorization": "Digest username=\"x\", realm=\"y\""}'),
	('{"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln"}'),
	('{"authorization": "bearer  eyJhbGciOiJub25lIn0.e30. "}'),
	('{"authorization": "Bearers <masked>"}'),
	('{"authorization": "Basic YXB0X29yZ18wMzUxcG5KSkM1SXBxb215MHBISjZ6"}'),
	('{"authorization": "DPoP eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}'),
	-- refused: there is a token in what is not a token
	('{"authorization": "Bearers <org>"}'),
	('{"authorization": "Bearer: <org>"}'),
	('{"authorization": "Bearer: garbage"}'),
	('{"authorization": "Bearer:<org>"}'),
	('{"authorization": "Bearer= <org>"}'),
	('{"authorization": "\"Bearer\" <org>"}'),
	('{"authorization": "\"Bearer <org>\""}'),
	('{"authorization": "Bearer \"<org>\""}'),
	('{"authorization": "Bearer ''<org>''"}'),
	('{"authorization": "Authorization: Bearer <org>"}'),
	('{"authorization": "Basic <org>"}'),
	('{"authorization": "Basic <org>:"}'),
	('{"authorization": "Basic <as_name>"}'),
	('{"authorization": "basic   <as_password>"}'),
	('{"authorization": "Basic <unpadded>"}'),
	('{"authorization": "Basic <as_url>"}'),
	('{"authorization": "Basic <as_long>"}'),
	('{"authorization": "Basic dXNlcjpwYXNz, Bearer <org>"}'),
	('{"authorization": "Digest username=\"<org>\", realm=\"y\""}'),
	('{"authorization": "x <org><org>"}'),
	('{"authorization": "x <revoked>"}'),
	('{"authorization": "x <wrong>"}'),
	('{"authorization": "x y z <org>"}'),
	('{"authorization": "\u00a0Bearer <org>"}'),
	('{"authorization": "\ufeffBearer <org>"}'),
	('{"authorization": "Bearer\u00a0<org>"}'),
	('{"authorization": "Bearer\n<org>"}'),
	('{"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln,<org>"}'),
	('{"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln <org>"}'),
	('{"authorization": "Bearer <org>.<org>.<org>"}'),
	('{"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.<org>"}'),
	('{"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.x<org><org>.c2ln"}'),
	('{"authorization": "Bearer .<org>."}'),
	('{"authorization": "Bearer ..<org>"}'),
	('{"authorization": "Bearer ..."}'),
	('{"authorization": "Bearer a.b.c d"}'),
	('{"authorization": "Bearer a.b.\u00e9"}'),
	('{"authorization": "Bearers <org>", "x-api-key": "<org>"}'),
	('{"x-api-key": "Basic <org>"}'),
	-- refused: the token is not valid
	('{"x-api-key": ""}'),
	('{"x-api-key": " "}'),
	('{"authorization": ""}'),
	('{"authorization": "Bearer"}'),
	('{"authorization": "Bearer "}'),
	('{"authorization": "Token"}'),
	('{"authorization": "ApiKey garbage"}'),
	('{"authorization": "garbage"}'),
	('{"authorization": "Basic"}'),
	('{"authorization": "Bearer,<org>"}'),
	('{"authorization": "Bearer <org> <org>"}'),
	('{"authorization": "Bearer Bearer <org>"}'),
	('{"authorization": "Bearer <masked>"}'),
	('{"authorization": "Bearer <org>."}'),
	('{"authorization": "Bearer .<org>"}'),
	('{"authorization": "Token a.b.c"}'),
	('{"x-api-key": "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"}'),
	('{"x-api-key": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln"}'),
	('{"x-api-key": "Basic dXNlcjpwYXNz"}'),
	('{"x-api-key": "<masked>"}'),
	('{"x-api-key": "<wrong>"}'),
	('{"x-api-key": "<org>x"}'),
	('{"x-api-key": "<org>,<org>"}'),
	('{"x-api-key": "<org>\u00e9"}'),
	('{"x-api-key": "apt_org_0351pnJJC5Ipqomy0pHJ6zhczwAxnSpemKegL95CqvQf4hBoOmCsCBUV7QvxeWwl02vpbPP"}'),
	('{"x-api-key": "<revoked>"}'),
	('{"x-api-key": "<expired>"}'),
	('{"x-api-key": "<suspended>"}'),
	('{"x-api-key": "<office>"}'),
	-- refused: several, even if they are the same
	('{"x-api-key": "<org>", "authorization": "Bearer <org>"}'),
	('{"x-api-key": "<org>", "authorization": "Token <org2>"}'),
	('{"x-api-key": "", "authorization": "Token <org>"}'),
	('{"x-api-key": "<org>", "x-api-key": "<org2>"}'),
	('{"x-api-key": "<org>", "x-api-key": ""}'),
	('{"x-api-key": "", "x-api-key": "<org>"}'),
	('{"x-api-key": "garbage", "X-Api-Key": "<org>"}'),
	('{"x-api-key": "<org>", "x\u002dapi-key": "<org>"}'),
	('{"authorization": "Basic dXNlcjpwYXNz", "authorization": "Token <org>"}'),
	('{"authorization": "Bearer <org>", "authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln"}'),
	-- refused: not a string
	('{"x-api-key": null}'),
	('{"x-api-key": 12345}'),
	('{"x-api-key": true}'),
	('{"x-api-key": ["<org>"]}'),
	('{"x-api-key": {"x-api-key": "<org>"}}'),
	('{"authorization": {}}'),
	('{"authorization": null, "x-api-key": "<org>"}'),
	-- refused: not a JSON object
	('[]'),
	('[{"x-api-key": "<org>"}]'),
	('null'),
	('"<org>"'),
	('1'),
	('<org>'),
	('x-api-key: <org>'),
	(' '),
	('{'),
	('{"x-api-key": "<org>"'),
	('{"x-api-key": "<org>"}}'),
	('{"x-api-key": "<org>"} {"x-api-key": "<org>"}'),
	('{"x-api-key": "<org>",}'),
	('{"x-api-key": "<org>\u0000"}'),
	('{"x-api-key": "\ud800"}'),
	('{"x-api-key": "a' || chr(1) || '"}'),
	('{''x-api-key'': ''<org>''}'),
	('{x-api-key: "<org>"}'),
	('{"x": [1 2], "x-api-key": "<org>"}'),
	('{"x": [1,], "x-api-key": "<org>"}'),
	('{"x": [,], "x-api-key": "<org>"}'),
	('{"x": [1}, "x-api-key": "<org>"}'),
	('{"x": {"y"}, "x-api-key": "<org>"}'),
	('{"x": {"y":}, "x-api-key": "<org>"}'),
	('{"x": {"y": 1,}, "x-api-key": "<org>"}'),
	('{"x": {1: 1}, "x-api-key": "<org>"}'),
	('{"x": {: 1}, "x-api-key": "<org>"}'),
	('{"x": "y": "z", "x-api-key": "<org>"}'),
	('{"x" "y", "x-api-key": "<org>"}'),
	('{"x", "x-api-key": "<org>"}'),
	('{, "x-api-key": "<org>"}'),
	('{"x-api-key": "<org>" "x-api-key": "<org>"}'),
	('{"x-api-key": "<org>"]'),
	('{"x": tru, "x-api-key": "<org>"}'),
	('{"x": 01, "x-api-key": "<org>"}'),
	('{"x": "\ud83d", "x-api-key": "<org>"}'),
	('{"x": "\ude00\ud83d", "x-api-key": "<org>"}'),
	('{"x": "\u12", "x-api-key": "<org>"}'),
	('{"x": "\x", "x-api-key": "<org>"}'),
	('{"x-api-key": "<org>"},'),
	('{"x-api-key": "<org>"}x'),
	('}'),
	(']'),
	(','),
	(':'),
	-- and not refused
	('{"x": [[], {}, [1, "a", null, {"y": [true, false]}], -1.5e3], "z": {"y": {}}, "x-api-key": "<org>", "\ud83d\ude00": "\ud83d\ude00"}'),
	(E' {\t"x-api-key"\n\r:\n"<org>"\n} \n');
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT headers, pre.request(headers) FROM pre.header ORDER BY id;

-- the whole of a refusal: SQLSTATE PGRST, and two JSON texts
SELECT set_config('role', 'regress_apitoken_anon', false) \g /dev/null
BEGIN; SELECT set_config('request.headers', '{"x-api-key": "apt"}', true) \g /dev/null
SELECT apitoken.pre_request(); ROLLBACK;
BEGIN; SELECT set_config('request.headers', pre.fill('{"x-api-key": "<office>"}'), true) \g /dev/null
SELECT apitoken.pre_request(); ROLLBACK;
BEGIN; SELECT set_config('request.headers', pre.fill('{"x-api-key": "<org>", "authorization": "token <org>"}'), true) \g /dev/null
SELECT apitoken.pre_request(); ROLLBACK;
BEGIN; SELECT set_config('request.headers', 'broken', true) \g /dev/null
SELECT apitoken.pre_request(); ROLLBACK;
RESET ROLE;

-- of any size: over-long values, names, depth, numbers of headers
SELECT n, name, pre.request(json) FROM unnest('{100,8192,1048576}'::int[]) n, LATERAL (VALUES
	('value', format('{"x-api-key": %s}', to_json(repeat('a', n)))),
	('scheme', format('{"authorization": %s}', to_json('Token ' || repeat('a', n)))),
	('token and more', format('{"x-api-key": %s}', to_json('<org>' || repeat('a', n)))),
	('blanks', format('{"x-api-key": %s}', to_json(repeat(' ', n) || '<org>' || repeat(' ', n)))),
	('blanks alone', format('{"x-api-key": %s}', to_json(repeat(' ', n)))),
	('another header', format('{"x-api-key": "<org>", "cookie": %s}', to_json(repeat('a', n)))),
	('name', format('{%s: "<org>"}', to_json('x-api-key' || repeat('a', n))))) v (name, json);
SELECT pre.request((SELECT json_object_agg('x-' || i, i::text) || '' FROM generate_series(1, 20000) i)) AS many;
SELECT pre.request(format('{%s "x-api-key": "<org>"}', (SELECT string_agg(format('"x-%s": ""', i), ', ') || ',' FROM generate_series(1, 20000) i))) AS many_and_one;
SELECT pre.request('{"x-api-key": "<org>"' || repeat(', "x-api-key": "<org>"', 20000) || '}') AS many_tokens;
SELECT pre.request('{"x": ' || repeat('[', 1000000)) AS deep;
SELECT pre.request('{"x": ' || repeat('[', 500) || repeat(']', 500) || ', "x-api-key": "<org>"}') AS less_deep;
-- nested as deep as one likes, in little stack: the rest of the request counts
RESET SESSION AUTHORIZATION;
SET max_stack_depth = '100kB';
CREATE FUNCTION pre.nested(open text, close text, n int, more text DEFAULT '') RETURNS text LANGUAGE sql STABLE AS $$
	SELECT '{"x": ' || repeat(open, n) || '1' || repeat(close, n) || more || '}' $$;
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT n, open, pre.request(pre.nested(open, close, n, ', "x-api-key": "<org>"')) AS token, pre.request(pre.nested(open, close, n)) AS none,
	pre.request(pre.nested(open, close, n, close)) AS closed_too_often
FROM (VALUES ('[', ']'), ('{"x-api-key": ', '}'), ('[{"y": ', '}]')) v (open, close), unnest('{1,100,10000,1000000}'::int[]) n;
SELECT pre.request(pre.nested('[', '}', 1000)), pre.request(pre.nested('{"y": ', ']', 1000)), pre.request(pre.nested('[', '', 1000)), pre.request('{"x": ' || repeat('{"y": ', 1000000));

--
-- Settings left in the session by an earlier user are not a request
--
SELECT pre.request(NULL), pre.request(''), pre.request(NULL, NULL), pre.request('', '');
RESET ROLE;
-- never set in this session, and as it is after a request
SELECT set_config('role', 'regress_apitoken_anon', false) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
RESET ROLE;
BEGIN;
SELECT set_config('role', 'regress_apitoken_anon', true), set_config('request.headers', pre.fill('{"x-api-key": "<org>"}'), true) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
COMMIT;
SELECT current_setting('request.headers') = '' AS empty, current_user;
SELECT set_config('role', 'regress_apitoken_anon', false) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
-- session-wide, good or bad; RESET in a transaction restores such a value
SELECT set_config('request.headers', pre.fill('{"x-api-key": "<org>"}'), false) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
BEGIN; SELECT apitoken.pre_request(), pre.who(); COMMIT;
BEGIN; SELECT set_config('request.headers', '{}', true) \g /dev/null
RESET request.headers; SELECT apitoken.pre_request(), pre.who(); COMMIT;
SET request.headers = 'broken';
BEGIN; SELECT apitoken.pre_request(), pre.who(); COMMIT;
-- taken back with its savepoint
BEGIN; SAVEPOINT s;
SELECT set_config('request.headers', pre.fill('{"x-api-key": "<ada>"}'), true) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
ROLLBACK TO s; SELECT apitoken.pre_request(), pre.who(); COMMIT;
RESET request.headers;
RESET ROLE;
-- an earlier user of the session set it under a name in another case
\c -
SET client_min_messages = warning;
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SET "REQUEST"."Headers" = '';
SET "Request"."JWT"."claims" = '';
SELECT pre.request('{"x-api-key": "<org>"}'), left(pre.request('{"x-api-key": "garbage"}'), 5);

--
-- The same token twice is the same identity; another token is another identity
--
BEGIN;
SELECT set_config('role', 'regress_apitoken_anon', true), set_config('request.headers', pre.fill('{"x-api-key": "<org>"}'), true) \g /dev/null
SELECT apitoken.pre_request(), apitoken.pre_request(), pre.who();
SELECT set_config('request.headers', '{}', true) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
SELECT set_config('request.headers', pre.fill('{"x-api-key": "<org2>"}'), true) \g /dev/null
\set VERBOSITY sqlstate
SELECT apitoken.pre_request();
ROLLBACK;
-- a setting takes precedence and must agree
BEGIN;
SELECT set_config('role', 'regress_apitoken_anon', true), set_config('apitoken.token', pre.fill('<ada>'), true), set_config('request.headers', pre.fill('{"x-api-key": "<org>"}'), true) \g /dev/null
SELECT apitoken.pre_request();
ROLLBACK;
BEGIN;
SELECT set_config('apitoken.token', pre.fill('<ada>'), true), set_config('role', 'regress_apitoken_anon', true), set_config('request.headers', '{}', true) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
COMMIT;
\set VERBOSITY default

--
-- READ ONLY transactions (each GET), and read-only tokens
--
BEGIN READ ONLY;
SELECT set_config('role', 'regress_apitoken_anon', true), set_config('request.headers', pre.fill('{"x-api-key": "<org>"}'), true) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
COMMIT;
SELECT pre.request('{"x-api-key": "<read_only>"}', query => 'INSERT INTO pre.work VALUES (1) RETURNING n');
SELECT pre.request('{"x-api-key": "<read_only>"}', query => 'SELECT pg_catalog.set_config(''transaction_read_only'', ''off'', true)');
SELECT pre.request('{"x-api-key": "<org>"}', query => 'INSERT INTO pre.work VALUES (1) RETURNING n');

--
-- Who may call it: capability use, which manage includes
--
SELECT r, pre.request('{"x-api-key": "<org>"}', role => r), pre.request('{}', role => r)
FROM unnest('{regress_apitoken_anon,regress_apitoken_web,regress_apitoken_reader,none}'::text[]) r;
RESET SESSION AUTHORIZATION;
SELECT r, has_function_privilege('regress_apitoken_' || r, 'apitoken.pre_request()', 'EXECUTE') FROM unnest('{authenticator,anon,web,gateway,plain}'::text[]) r;
SELECT pre.request('{"x-api-key": "<ada>"}', role => 'regress_apitoken_super');

--
-- apitoken.token_headers: other headers; authorization has its own format in any case
--
SET apitoken.token_headers = 'X-Token, "X-Other!#$%&''*+.^_`|~"';
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT h, pre.request(h) FROM (VALUES
	('{"x-token": "<org>"}'), ('{"x-token": "Token <org>"}'), ('{"x-other!#$%&''*+.^_`|~": "<org>"}'), ('{"x-api-key": "<org>", "authorization": "Token <org>"}'),
	('{"x-token": "<org>", "x-other!#$%&''*+.^_`|~": "<org>"}'), ('{"x-token": "a.b.c"}')) v (h);
RESET SESSION AUTHORIZATION;
SET apitoken.token_headers = 'AUTHORIZATION';
SELECT h, pre.request(h) FROM (VALUES ('{"authorization": "Bearer a.b.c"}'), ('{"Authorization": "Token <org>"}'), ('{"authorization": "Basic x"}'), ('{"x-api-key": "<org>"}')) v (h);
-- none: no header is looked at
SET apitoken.token_headers = '';
SELECT h, pre.request(h) FROM (VALUES ('{"x-api-key": "<org>"}'), ('{"authorization": "Token garbage"}'), ('{')) v (h);
RESET apitoken.token_headers;
-- values that are not lists of header names
\set VERBOSITY sqlstate
SET apitoken.token_headers = 'x api key';
SET apitoken.token_headers = 'x-api-key,';
SET apitoken.token_headers = 'x-api-key,,authorization';
SET apitoken.token_headers = 'x-api-key:';
SET apitoken.token_headers = '"x-api-key';
SET apitoken.token_headers = '""';
SET apitoken.token_headers = 'x-äpi-key';
SET apitoken.token_headers = 'x-api-key, authorization, X-API-KEY';
SET apitoken.client_address_header = 'x-forwarded-for, x-real-ip';
SET apitoken.client_address_header = 'x real ip';
SHOW apitoken.token_headers;
SHOW apitoken.client_address_header;
-- the login cannot change it
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SET apitoken.token_headers = 'x-other';
SET apitoken.client_address_header = 'x-other';
SET apitoken.jwt_user_claim = 'sub';
SET apitoken.issuer = 'x';
SET apitoken.audience = 'x';
SHOW apitoken.jwt_user_claim;
SHOW apitoken.token_headers;
RESET SESSION AUTHORIZATION;
\set VERBOSITY default

--
-- The client's address: the last one in the header, if the login may vouch for clients
--
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
-- no header is named: the connection's address counts, which is unknown on a Unix socket
SELECT pre.request('{"x-api-key": "<office>", "x-forwarded-for": "192.0.2.7"}') AS no_header_named;
RESET SESSION AUTHORIZATION;
SET apitoken.client_address_header = 'X-Forwarded-For';
CREATE TABLE pre.address (id int GENERATED ALWAYS AS IDENTITY, value text);
GRANT SELECT ON pre.address TO PUBLIC;
INSERT INTO pre.address (value) VALUES
	-- inside
	('"192.0.2.7"'), ('"  192.0.2.7\t"'), ('"192.0.2.7:443"'), ('"[192.0.2.7]"'), ('"::ffff:192.0.2.7"'), ('"[::ffff:192.0.2.7]:80"'),
	('"2001:db8::1"'), ('"[2001:db8::1]"'), ('"[2001:db8::1]:443"'), ('"2001:DB8:0:0:0:0:0:1"'),
	('"203.0.113.1, 192.0.2.7"'), ('"garbage,192.0.2.7"'), ('",192.0.2.7"'), ('"192.0.2.7"  '),
	-- outside
	('"203.0.113.1"'), ('"192.0.2.7, 203.0.113.1"'), ('"192.0.2.7,2001:db9::1"'), ('"::ffff:203.0.113.1"'), ('"::1"'), ('"[2001:db9::1]"'), ('"203.0.113.1:1"'),
	-- not an address, therefore unknown
	('""'), ('" "'), ('"192.0.2.7,"'), ('"192.0.2.7, "'), ('"unknown"'), ('"_hidden"'), ('"192.0.2.7 evil"'), ('"evil 192.0.2.7"'), ('"192.0.2.7;192.0.2.7"'),
	('"192.0.2"'), ('"192.0.2."'), ('"192"'), ('"192.0.2.7.8"'), ('"192.0.2.256"'), ('"192.0.2.7/32"'), ('"192.0.2.0/24"'), ('"2001:db8::/32"'), ('"[2001:db8::1]/32"'),
	('"0xc0000207"'), ('"0300.0.2.7"'), ('"192.0.2.7:80:80"'), ('"192.0.2.7:"'), ('"192.0.2.7:x"'), ('"192.0.2.7:80/"'), ('"[192.0.2.7"'), ('"[2001:db8::1]x"'), ('"[2001:db8::1]:"'), ('":443"'), ('"["'), ('"[]"'), ('"[:443"'), ('"[2001:db8::1"'), ('"2001:db8::1]"'), ('"2001:db8::1%eth0"'),
	('"2001:db8::g"'), ('"2001:db8:::1"'), ('"for=192.0.2.7"'), ('"\"192.0.2.7\""'), ('"192.0.2.7\u00e9"'), ('"192.0.2.7\n"'),
	('null'), ('true'), ('192.0'), ('3221225991'), ('["192.0.2.7"]'), ('{"x-forwarded-for": "192.0.2.7"}');
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT value, pre.request(format('{"x-api-key": "<office>", "x-forwarded-for": %s}', value)) FROM pre.address ORDER BY id;
-- missing, in the other case, several, too long
SELECT left(h, 60), pre.request(h) FROM (VALUES
	('{"x-api-key": "<office>"}'),
	('{"x-api-key": "<office>", "X-FORWARDED-FOR": "192.0.2.7"}'),
	('{"x-api-key": "<office>", "x-real-ip": "192.0.2.7", "forwarded": "for=192.0.2.7"}'),
	('{"x-api-key": "<office>", "x-forwarded-for": "203.0.113.1", "x-forwarded-for": "192.0.2.7"}'),
	('{"x-forwarded-for": "192.0.2.7", "X-Forwarded-For": "192.0.2.7"}'),
	(format('{"x-forwarded-for": "%s192.0.2.7", "x-api-key": "<office>"}', repeat('203.0.113.1, ', 100000))),
	(format('{"x-forwarded-for": "%s", "x-api-key": "<office>"}', repeat('1', 1000000)))) v (h);
-- a token without allowed networks needs no address
SELECT pre.request('{"x-api-key": "<org>"}');
-- the setting takes precedence over the header
BEGIN; SET LOCAL apitoken.client_address = '192.0.2.1'; SELECT pre.request('{"x-api-key": "<office>", "x-forwarded-for": "203.0.113.1"}'); COMMIT;
-- without a request the connection's address counts, as usual
SELECT pre.request('', query => 'SELECT (apitoken.authenticate(pre.fill(''<office>''))).verdict');
-- verify is enough to vouch; without act and verify the header is ignored
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT pre.request('{"x-api-key": "<office>", "x-forwarded-for": "192.0.2.7"}') AS with_verify;
SET SESSION AUTHORIZATION regress_apitoken_plain;
SELECT pre.request('{"x-api-key": "<office>", "x-forwarded-for": "192.0.2.7"}') AS without;
RESET SESSION AUTHORIZATION;
RESET apitoken.client_address_header;

--
-- A JWT's user: if the setting names the claim, and the session user holds act
--
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT pre.request('{}', '{"sub": "ada"}') AS off, pre.request('{}', '{"": "ada"}') AS off;
RESET SESSION AUTHORIZATION;
SET apitoken.jwt_user_claim = 'sub';
CREATE TABLE pre.claims (id int GENERATED ALWAYS AS IDENTITY, claims text);
GRANT SELECT ON pre.claims TO PUBLIC;
INSERT INTO pre.claims (claims) VALUES
	('{"role": "regress_apitoken_web", "sub": "ada"}'), ('{"sub": "nobody we know"}'), ('{"sub": 42}'), ('{"sub": 9007199254740993}'), ('{"sub": -1.50}'),
	('{"s\u0075b": "\u0061da"}'), ('{"sub": "bob", "sub": "ada"}'), ('{"sub": "' || repeat('a', 255) || '"}'),
	-- nobody
	('{"role": "regress_apitoken_web"}'), ('{"sub": ""}'), ('{"sub": null}'), ('{"sub": true}'), ('{"sub": {"sub": "ada"}}'), ('{"sub": ["ada"]}'), ('{"x": {"sub": "ada"}}'),
	('{"SUB": "ada"}'), ('{"sub ": "ada"}'), ('{"sub": "ada", "sub": null}'), ('{"sub": "ada", "sub": {}}'), ('{"sub": "ada", "sub": ""}'), ('[{"sub": "ada"}]'), ('"ada"'), ('ada'), ('{'), ('{"sub": "ada"'),
	('{"sub": "ada\u0000"}'), (''), (NULL),
	-- too long
	('{"sub": "' || repeat('a', 256) || '"}'), ('{"sub": "' || repeat('a', 1000000) || '"}'), ('{"sub": ' || repeat('1', 256) || '}'),
	('{"sub": "A11CE000-0000-4000-8000-000000000003"}'), ('{"sub": "007"}'), ('{"sub": "7 "}'), ('{"sub": -0}'), ('{"sub": 7}');
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT left(claims, 60), left(pre.request('{}', claims, 'regress_apitoken_web'), 90) FROM pre.claims ORDER BY id;
SELECT n, pre.request('{}', pre.nested('[', ']', n, ', "sub": "ada"')), pre.request('{}', pre.nested('[{"sub": ', '}]', n, ', "sub": "ada"')), pre.request('{}', pre.nested('[', '', n))
FROM unnest('{1,1000,1000000}'::int[]) n;
-- the user's permissions are checked as usual
SELECT pre.request('{}', '{"sub": "ada"}', 'regress_apitoken_web', 'SELECT apitoken.can(''article:read'', ''acme'') || '' '' || count(*) FROM apitoken.tokens');
SELECT pre.request('{}', '{"sub": "eve"}', 'regress_apitoken_web', 'SELECT apitoken.can(''article:read'', ''acme'') || '' '' || count(*) FROM apitoken.tokens');
-- without pre_request too, at the first use
BEGIN;
SELECT set_config('role', 'regress_apitoken_web', true), set_config('request.jwt.claims', '{"sub": "ada"}', true) \g /dev/null
SELECT pre.who();
COMMIT;
SELECT pre.who();
-- session-wide: it does not count
SELECT set_config('request.jwt.claims', '{"sub": "ada"}', false) \g /dev/null
SELECT pre.who();
BEGIN; SELECT pre.who(); COMMIT;
RESET request.jwt.claims;
-- a token takes precedence over the JWT, even a bad one
SELECT pre.request('{"x-api-key": "<org>"}', '{"sub": "ada"}'), pre.request('{"x-api-key": "<ada>"}', '{"sub": "bob"}'),
	pre.request('{"x-api-key": "<org>"}', '{"sub": "' || repeat('a', 256) || '"}'), left(pre.request('{"x-api-key": "x"}', '{"sub": "ada"}'), 5);
-- a setting takes precedence over the JWT
BEGIN;
SELECT set_config('role', 'regress_apitoken_web', true), set_config('request.jwt.claims', '{"sub": "ada"}', true), set_config('apitoken.user_id', 'bob', true) \g /dev/null
SELECT apitoken.pre_request(), pre.who();
COMMIT;
-- changed within the transaction: another user is refused, no user changes nothing, ROLLBACK TO takes it back
\set VERBOSITY sqlstate
BEGIN;
SELECT set_config('request.jwt.claims', '{"sub": "ada"}', true), pre.who();
SAVEPOINT s;
SELECT set_config('request.jwt.claims', '{"sub": "bob"}', true), pre.who();
ROLLBACK TO s;
SELECT set_config('request.jwt.claims', '{"sub": "ada", "exp": 1}', true), pre.who();
SELECT set_config('request.jwt.claims', '{}', true), pre.who();
SELECT set_config('request.jwt.claims', '', true), pre.who();
SELECT set_config('request.jwt.claims', 'broken', true), pre.who();
SELECT apitoken.act_as('bob');
ROLLBACK;
BEGIN; SAVEPOINT s;
SELECT set_config('request.jwt.claims', '{"sub": "ada"}', true), pre.who();
ROLLBACK TO s;
SELECT pre.who();
SELECT set_config('request.jwt.claims', '{"sub": "bob"}', true), pre.who();
COMMIT;
\set VERBOSITY default
-- without act the request is anonymous, without an error, however long the id
SET SESSION AUTHORIZATION regress_apitoken_gateway;
SELECT pre.request('{}', '{"sub": "ada"}'), pre.request('{}', '{"sub": "' || repeat('a', 256) || '"}');
SET SESSION AUTHORIZATION regress_apitoken_plain;
SELECT pre.request('{}', '{"sub": "ada"}'), pre.request('{"x-api-key": "<org>"}', '{"sub": "ada"}');
RESET SESSION AUTHORIZATION;
-- a function of another role cannot change who is acting
CREATE FUNCTION pre.claim(id text) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
	SELECT set_config('request.jwt.claims', json_build_object('sub', id)::text, true) $$;
CREATE FUNCTION pre.claim_and_ask(id text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	PERFORM set_config('request.jwt.claims', json_build_object('sub', id)::text, true);
	RETURN pre.who();
END $$;
ALTER FUNCTION pre.claim(text) OWNER TO regress_apitoken_plain;
ALTER FUNCTION pre.claim_and_ask(text) OWNER TO regress_apitoken_plain;
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
BEGIN; SELECT pre.claim('eve'); SELECT pre.who(), pre.claim_and_ask('eve'); ROLLBACK;
SELECT pre.request('{}', '{"sub": "ada"}', query => 'SELECT pre.claim_and_ask(''eve'') || '', '' || pre.who()');
SELECT pre.request('{"x-api-key": "<org>"}', '{"sub": "ada"}', query => 'SELECT pre.claim_and_ask(''eve'') || '', '' || pre.who()');
RESET SESSION AUTHORIZATION;
-- another claim
SET apitoken.jwt_user_claim = 'https://example.com/user';
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT pre.request('{}', '{"sub": "eve", "https://example.com/user": "ada"}'), pre.request('{}', '{"sub": "eve"}');
RESET SESSION AUTHORIZATION;
RESET apitoken.jwt_user_claim;

--
-- roles.database_role
--
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
SELECT t, pre.request(format('{"x-api-key": "<%s>"}', t)), pre.request(format('{"x-api-key": "<%s>"}', t), role => 'regress_apitoken_web')
FROM unnest('{org,reader,read_only_reader,other,gone,nobody,super}'::text[]) t;
SELECT pre.request('{"x-api-key": "<read_only_reader>"}', query => 'INSERT INTO pre.work VALUES (1) RETURNING n');
-- entered for the transaction and taken back with a savepoint; a convenience, not a security boundary
BEGIN;
SELECT set_config('role', 'regress_apitoken_anon', true), set_config('request.headers', pre.fill('{"x-api-key": "<reader>"}'), true) \g /dev/null
SAVEPOINT s;
SELECT apitoken.pre_request(), pre.who();
ROLLBACK TO s;
SELECT pre.who();
SELECT apitoken.pre_request(), pre.who();
RESET ROLE;
SELECT pre.who();
COMMIT;
SELECT current_user;
-- authenticate() does the same, a user and a JWT's user do not
BEGIN; SELECT (apitoken.authenticate(pre.fill('<reader>'))).verdict; ROLLBACK;
RESET SESSION AUTHORIZATION;
SELECT apitoken.allow('regress_apitoken_authenticator', 'use');
UPDATE apitoken.users SET role = 'reader' WHERE id = 'ada';
SET apitoken.jwt_user_claim = 'sub';
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
BEGIN; SELECT (apitoken.authenticate(pre.fill('<reader>'))).verdict, current_user; SELECT current_user; COMMIT;
BEGIN; SELECT apitoken.act_as('ada') IS NOT NULL, apitoken.whoami()->>'database_user', apitoken.current_role_name(); COMMIT;
SELECT pre.request('{}', '{"sub": "ada"}', 'regress_apitoken_web'), pre.request('{"x-api-key": "<ada>"}', '{}', 'regress_apitoken_web');
BEGIN; SELECT apitoken.authenticate(pre.fill('<other>')); ROLLBACK;
RESET SESSION AUTHORIZATION;
-- refused in a SECURITY DEFINER function, where the server allows no SET ROLE; nobody is acting then
CREATE FUNCTION pre.definer() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'SELECT apitoken.pre_request()';
-- in one with a SET clause it is entered, and outlives the function
CREATE FUNCTION pre.invoker() RETURNS void LANGUAGE sql SET search_path = '' AS 'SELECT apitoken.pre_request()';
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
\set VERBOSITY sqlstate
BEGIN;
SELECT set_config('role', 'regress_apitoken_anon', true), set_config('request.headers', pre.fill('{"x-api-key": "<reader>"}'), true) \g /dev/null
SAVEPOINT s;
SELECT pre.definer();
ROLLBACK TO s;
SELECT pre.who();
SELECT pre.invoker();
SELECT pre.who();
COMMIT;
\set VERBOSITY default
RESET SESSION AUTHORIZATION;
-- the capability directory is not enough to set it
CREATE ROLE regress_apitoken_sync LOGIN;
SELECT apitoken.allow('regress_apitoken_sync', 'directory');
SET SESSION AUTHORIZATION regress_apitoken_sync;
\set VERBOSITY sqlstate
UPDATE apitoken.roles SET database_role = 'regress_apitoken_super' WHERE name = 'reader';
INSERT INTO apitoken.roles (name, permissions, database_role) VALUES ('mine', '{}', 'regress_apitoken_super');
\set VERBOSITY default
RESET SESSION AUTHORIZATION;

--
-- Errors within a request that PostgREST describes: the status is in the detail,
-- the body in the message.  Anywhere else an error is as always.
--
SELECT id AS revoked_id FROM apitoken.tokens WHERE label = 'revoked' \gset
CREATE FUNCTION pre.describe(method text, headers text DEFAULT '{}', claims text DEFAULT '{"sub": "ada"}', role text DEFAULT 'regress_apitoken_web')
	RETURNS void LANGUAGE sql AS $$
	SELECT set_config('role', role, true), set_config('request.jwt.claims', claims, true),
		set_config('request.method', method, true), set_config('request.headers', pre.fill(headers), true) $$;
CREATE FUNCTION pre.describe_definer() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ SELECT set_config('request.method', 'POST', true) $$;
ALTER FUNCTION pre.describe_definer() OWNER TO regress_apitoken_plain;
UPDATE apitoken.users SET role = NULL WHERE id = 'ada';
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
-- of a request
BEGIN; SELECT pre.describe('POST') \g /dev/null
SELECT apitoken.regenerate_token(:'revoked_id');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- of none: not described, described for the session or with no method, no longer, or by a role that has not use
BEGIN; SELECT apitoken.act_as('ada') \g /dev/null
SET LOCAL ROLE regress_apitoken_web;
SELECT apitoken.regenerate_token(:'revoked_id');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SET request.method = 'POST';
BEGIN; SELECT apitoken.act_as('ada') \g /dev/null
SET LOCAL ROLE regress_apitoken_web;
SELECT apitoken.regenerate_token(:'revoked_id');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
RESET request.method;
BEGIN; SELECT pre.describe('') \g /dev/null
SELECT apitoken.regenerate_token(:'revoked_id');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN; SELECT apitoken.act_as('ada') \g /dev/null
SAVEPOINT s; SELECT pre.describe('POST') \g /dev/null
ROLLBACK TO s; SET LOCAL ROLE regress_apitoken_web;
SELECT apitoken.regenerate_token(:'revoked_id');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN; SELECT apitoken.act_as('ada') \g /dev/null
SELECT pre.describe_definer() \g /dev/null
SET LOCAL ROLE regress_apitoken_web;
SELECT current_setting('request.method');
SELECT apitoken.regenerate_token(:'revoked_id');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- in the transaction after one
BEGIN; SELECT pre.describe('POST') \g /dev/null
COMMIT;
BEGIN; SELECT apitoken.act_as('ada') \g /dev/null
SET LOCAL ROLE regress_apitoken_web;
SELECT apitoken.regenerate_token(:'revoked_id');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- functions within the request catch the error itself, however deep, and also after one that was replaced
BEGIN; SELECT pre.describe('POST') \g /dev/null
SAVEPOINT s;
SELECT apitoken.regenerate_token(:'revoked_id');
ROLLBACK TO s;
SELECT public.regress_try(pg_catalog.format('SELECT apitoken.regenerate_token(%L)', :'revoked_id'));
SELECT public.regress_try(pg_catalog.format('DO $do$ BEGIN PERFORM apitoken.regenerate_token(%L); END $do$', :'revoked_id'));
SELECT public.regress_try(pg_catalog.format('SELECT public.regress_try(%L), apitoken.regenerate_token(%L)', 'SELECT 1', :'revoked_id'));
ROLLBACK;
-- whatever statement it leaves
BEGIN; SELECT pre.describe('POST') \g /dev/null
SAVEPOINT s;
DO $$ BEGIN PERFORM apitoken.regenerate_token((SELECT id FROM apitoken.tokens WHERE label = 'revoked')); END $$;
ROLLBACK TO s;
PREPARE pre_again AS SELECT apitoken.regenerate_token($1);
EXECUTE pre_again(:'revoked_id');
ROLLBACK TO s;
EXPLAIN (ANALYZE, COSTS OFF) SELECT apitoken.regenerate_token(:'revoked_id');
ROLLBACK TO s;
DECLARE pre_cursor CURSOR FOR SELECT apitoken.regenerate_token(:'revoked_id');
FETCH pre_cursor;
ROLLBACK TO s;
WITH again AS (UPDATE apitoken.tokens SET metadata = '[]' WHERE label = 'org' RETURNING 1) SELECT count(*) FROM again;
ROLLBACK;
DEALLOCATE ALL;
-- a missing privilege: 403 with an identity; else PostgREST decides by its role
BEGIN; SELECT pre.describe('POST', '{"x-api-key": "<org>"}', role => 'regress_apitoken_anon') \g /dev/null
SELECT apitoken.pre_request() \g /dev/null
SELECT count(*) FROM apitoken.tokens;
ROLLBACK;
BEGIN; SELECT pre.describe('POST', claims => '{}', role => 'regress_apitoken_anon') \g /dev/null
SELECT apitoken.pre_request() \g /dev/null
SELECT count(*) FROM apitoken.tokens;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- a read-only token writes, in a statement of any kind; with GET it is the method that is wrong
BEGIN; SELECT pre.describe('POST', '{"x-api-key": "<read_only>"}') \g /dev/null
SELECT apitoken.pre_request() \g /dev/null
SAVEPOINT s;
INSERT INTO pre.work VALUES (1);
ROLLBACK TO s;
SELECT n FROM pre.work FOR UPDATE;
ROLLBACK TO s;
WITH w AS (DELETE FROM pre.work RETURNING 1) SELECT count(*) FROM w;
ROLLBACK TO s;
CREATE TEMP TABLE pre_temporary (n int);
ROLLBACK TO s;
SELECT public.regress_try('INSERT INTO pre.work VALUES (1)');
ROLLBACK;
BEGIN; SELECT pre.describe('GET', '{"x-api-key": "<read_only>"}') \g /dev/null
SELECT apitoken.pre_request() \g /dev/null
INSERT INTO pre.work VALUES (1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY; SELECT pre.describe('POST', '{"x-api-key": "<org>"}') \g /dev/null
SELECT apitoken.pre_request() \g /dev/null
INSERT INTO pre.work VALUES (1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- a fault of the server tells the client nothing
BEGIN; SELECT pre.describe('GET', '{"x-api-key": "<gone>"}') \g /dev/null
SELECT apitoken.pre_request();
ROLLBACK;
BEGIN; SELECT pre.describe('GET', '{"x-api-key": "<other>"}') \g /dev/null
SELECT apitoken.pre_request();
ROLLBACK;
-- what PostgREST translates well is as it was
BEGIN; SELECT pre.describe('POST') \g /dev/null
SELECT apitoken.create_token('x', role => 'admin');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
RESET SESSION AUTHORIZATION;

-- a function catches the error, although no statement is seen around it: in a
-- trigger that is fired at COMMIT, and where the statement itself loads the library
CREATE FUNCTION pre.catch() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN RAISE NOTICE '%', public.regress_try('SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = ''revoked'''); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER catch AFTER INSERT ON pre.work DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pre.catch();
SET client_min_messages = notice;
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
BEGIN; SELECT pre.describe('POST') \g /dev/null
SELECT apitoken.pre_request() \g /dev/null
INSERT INTO pre.work VALUES (1);
SET CONSTRAINTS ALL IMMEDIATE;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO pre.work VALUES (1);
COMMIT;
\c -
SET SESSION AUTHORIZATION regress_apitoken_authenticator;
BEGIN; SELECT pre.describe('POST', claims => '{}', role => 'regress_apitoken_authenticator') \g /dev/null
DO $$ BEGIN
	PERFORM apitoken.act_as('ada');
	RAISE NOTICE '%', public.regress_try('SELECT count(*) FROM apitoken.events');
END $$;
SELECT count(*) FROM apitoken.events;
ROLLBACK;
\c -
SET client_min_messages = warning;

RESET max_stack_depth;
DROP SCHEMA pre CASCADE;
\i :srcdir/test/regress_teardown.sql
