-- demo.sql: a tour of apitoken, with real output.  "make demo" runs it on a
-- temporary server.  To run it in an empty database of your own, as superuser:
--
--     psql -X -q -v ON_ERROR_STOP=1 < examples/demo.sql
--
-- ECHO is on for the statements that a reader should see.

\set ECHO none
\set VERBOSITY default
\set SHOW_CONTEXT never
\pset pager off
\pset footer off
\pset null '-'
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';

\echo '=== 1. Install it ==='
\echo
\set ECHO queries
CREATE EXTENSION apitoken;
\set ECHO none
\echo
\echo 'An application logs in to the database as "demo_backend".  It may act as the users'
\echo 'that it has signed in, verify tokens, and manage tokens for those users:'
\echo
CREATE ROLE demo_backend LOGIN;
\set ECHO queries
\o /dev/null
SELECT apitoken.allow('demo_backend', 'act', 'verify', 'manage');
\o
\set ECHO none
\echo
\echo 'Two organizations and their members.  (Triggers can keep them in step with the'
\echo 'tables of the application; docs/organizations.md shows such triggers.)'
\echo
INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme'), ('globex', 'Globex');
INSERT INTO apitoken.users (id, name) VALUES ('alice', 'Alice'), ('bob', 'Bob'), ('carol', 'Carol');
INSERT INTO apitoken.memberships (organization_id, user_id, role)
VALUES ('acme', 'alice', 'admin'), ('acme', 'bob', 'developer'), ('globex', 'carol', 'admin');
SELECT m.organization_id, m.user_id, m.role, array_to_string(r.permissions, ', ') AS "what the role may do"
FROM apitoken.memberships m JOIN apitoken.roles r ON r.name = m.role ORDER BY 1, 2;

\echo 'A table of the application, with policies that ask who is acting:'
\echo
CREATE TABLE public.articles (organization_id text NOT NULL, title text NOT NULL);
GRANT SELECT, INSERT ON public.articles TO demo_backend;
INSERT INTO public.articles VALUES ('acme', 'Anvils'), ('acme', 'Rockets'), ('globex', 'Doomsday devices');
\set ECHO queries
ALTER TABLE articles ENABLE ROW LEVEL SECURITY;
CREATE POLICY articles_read ON articles FOR SELECT
  USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY articles_create ON articles FOR INSERT
  WITH CHECK (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:create'))));
\set ECHO none
\echo

SELECT apitoken.generate('user') AS token \gset unknown_

-- from here on, the backend's login runs everything
SET SESSION AUTHORIZATION demo_backend;

\echo
\echo '=== 2. Create tokens ==='
\echo
\echo 'Alice, an admin of Acme, creates a token that belongs to the organization:'
\echo
\set ECHO queries
BEGIN;
SELECT apitoken.act_as('alice');
SELECT * FROM apitoken.create_token('Website', organization_id => 'acme', expires_in => '90 days')\; \gset website_
COMMIT;
\set ECHO none
\pset expanded on
SELECT :'website_id' AS id, :'website_token' AS token, :'website_masked' AS masked, :'website_expires_at' AS expires_at;
\pset expanded off
\echo '(Below, everything done "as Alice" also runs in a transaction with act_as.)'
\echo
\echo 'The text of the token is shown only once.  The database stores only its digest:'
\echo
RESET SESSION AUTHORIZATION;
\set ECHO queries
SELECT label, digest FROM apitoken_internal.token_records;
\set ECHO none
SET SESSION AUTHORIZATION demo_backend;
\echo 'As Bob, a personal token for his laptop that can only read:'
\echo
BEGIN;
SELECT apitoken.act_as('bob') \g /dev/null
\set ECHO queries
SELECT token FROM apitoken.create_token('laptop', access => 'read_only', expires_in => '30 days')\; \gset laptop_
\set ECHO none
COMMIT;
SELECT :'laptop_token' AS token;

\echo
\echo '=== 3. Verify them ==='
\echo
\set ECHO queries
SELECT verdict, label, kind, organization_id, user_id, role, access FROM apitoken.verify(
  :'website_token');
\set ECHO none
\echo 'verify(token, permission, organization) also says whether a token may do something:'
\echo
SELECT q.question AS "may ...", v.valid, v.verdict, v.label
FROM (VALUES
        (1, 'Website read articles at Acme?', :'website_token', 'article:read', 'acme'),
        (2, 'Website write articles at Acme?', :'website_token', 'article:write', 'acme'),
        (3, 'Website read articles at Globex?', :'website_token', 'article:read', 'globex'),
        (4, 'Website create more tokens?', :'website_token', 'token:create', 'acme'),
        (5, 'Bob''s laptop read articles at Acme?', :'laptop_token', 'article:read', 'acme'),
        (6, 'Bob''s laptop write articles at Acme?', :'laptop_token', 'article:write', 'acme'),
        (7, 'a mistyped token do anything?', left(:'laptop_token', -1) || '_', NULL, NULL),
        (8, 'a token from another database do anything?', :'unknown_token', NULL, NULL)
     ) AS q (n, question, token, permission, organization),
     LATERAL apitoken.verify(q.token, q.permission, q.organization) v
ORDER BY q.n;

-- so that the lists below include these verifications; section 6 explains it
RESET SESSION AUTHORIZATION;
SELECT apitoken.flush_usage() \g /dev/null
SET SESSION AUTHORIZATION demo_backend;

\echo
\echo '=== 4. Who sees which token ==='
\echo
\echo 'Row-level security decides.  As Alice, admin of Acme:'
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
SELECT label, masked, organization_id, user_id, created_by, status, last_used FROM apitoken.list_tokens();
\set ECHO none
COMMIT;
\echo 'The same as Bob.  He is only a developer of Acme, and sees his own token.  Alice does not see it:'
\echo
BEGIN;
SELECT apitoken.act_as('bob') \g /dev/null
SELECT label, masked, organization_id, user_id, created_by, status, last_used FROM apitoken.list_tokens();
COMMIT;
\echo 'Carol, admin of the other organization, sees none of them, and neither does the Website token:'
\echo
BEGIN;
SELECT apitoken.act_as('carol') \g /dev/null
SELECT count(*) AS carol_sees FROM apitoken.tokens \gset
COMMIT;
BEGIN;
SELECT apitoken.authenticate(:'website_token') \g /dev/null
SELECT count(*) AS website_sees FROM apitoken.tokens \gset
COMMIT;
SELECT :carol_sees AS "Carol sees", :website_sees AS "Website sees";

\echo
\echo '=== 5. Your own tables ==='
\echo
\echo 'A request with a token acts by that token until the end of its transaction:'
\echo
\set ECHO queries
BEGIN;
SELECT valid, kind, organization_id FROM apitoken.authenticate(
  :'website_token');
INSERT INTO articles VALUES ('acme', 'Giant magnets');
SELECT * FROM articles;
COMMIT;
\set ECHO none
\echo
\echo 'Bob''s token reads the same rows.  The database itself refuses its writes:'
\echo
\set ECHO queries
BEGIN;
SELECT valid, kind, user_id, access FROM apitoken.authenticate(
  :'laptop_token');
SELECT count(*) FROM articles;
\set ON_ERROR_STOP off
INSERT INTO articles VALUES ('acme', 'Spring-powered shoes');
ROLLBACK;
\set ON_ERROR_STOP on
\set ECHO none
-- the demo fails if this was another error, or no error
SELECT 1 / (:'LAST_ERROR_SQLSTATE' = '25006')::int \g /dev/null
\echo
\echo 'Without any token:'
\echo
\set ECHO queries
SELECT count(*) FROM articles;
\set ECHO none

\echo
\echo '=== 6. Last used, and rate limits ==='
\echo
RESET SESSION AUTHORIZATION;
SELECT preloaded FROM apitoken.stats \gset
\if :preloaded
\echo 'The server preloads apitoken.  Each use above was recorded in shared memory, also in READ ONLY'
\echo 'transactions, and a background worker writes it to a table.  To see it now:'
\echo
\set ECHO queries
\o /dev/null
SELECT apitoken.flush_usage();
\o
SELECT t.label, t.last_used, u.accepted, u.refused
FROM apitoken.tokens t JOIN apitoken.token_usage u ON u.token_id = t.id ORDER BY t.created_at;
\set ECHO none
\else
\echo 'Without shared_preload_libraries, a use is written in its own transaction, at most once a minute:'
\echo
\set ECHO queries
SELECT label, last_used FROM apitoken.tokens ORDER BY created_at;
\set ECHO none
\endif
SET SESSION AUTHORIZATION demo_backend;
\if :preloaded
\echo 'As Alice, a token that may be used three times a minute:'
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
SELECT token FROM apitoken.create_token('probe', rate_limit_per_minute => 3)\; \gset probe_
\set ECHO none
COMMIT;
SELECT :'probe_token' AS token;
\set ECHO queries
SELECT n, (apitoken.verify(
  :'probe_token')).verdict
FROM generate_series(1, 4) n;
SELECT verdict, date_trunc('second', retry_after) AS retry_after FROM apitoken.verify(
  :'probe_token');
\set ECHO none
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
SELECT apitoken.revoke_token(id) FROM apitoken.tokens WHERE label = 'probe' \g /dev/null
COMMIT;
\else
\echo '(Rate limits need shared memory, so they are not shown here.)'
\endif

\echo
\echo '=== 7. Edit, suspend ==='
\echo
\echo 'As Alice:'
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
UPDATE apitoken.tokens SET label = 'Website 2', suspended_at = now() WHERE label = 'Website'
RETURNING label, status;
\set ECHO none
COMMIT;
SELECT verdict AS "verify() now says" FROM apitoken.verify(:'website_token');
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
UPDATE apitoken.tokens SET suspended_at = NULL WHERE label = 'Website 2' RETURNING label, status;
\set ECHO none
COMMIT;

\echo
\echo '=== 8. Regenerate: a new secret for the same token ==='
\echo
\echo 'As Alice.  The old secret stays valid for an hour, so that no client breaks in the meantime:'
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
SELECT token FROM apitoken.regenerate_token(:'website_id', overlap => '1 hour')\; \gset second_
\set ECHO none
COMMIT;
SELECT (apitoken.verify(:'website_token')).verdict AS "first secret",
       (apitoken.verify(:'second_token')).verdict AS "second secret";
\echo 'As Alice, without an overlap, because the secret has leaked:'
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
SELECT token FROM apitoken.regenerate_token(:'website_id')\; \gset third_
\set ECHO none
COMMIT;
SELECT (apitoken.verify(:'website_token')).verdict AS "first secret",
       (apitoken.verify(:'second_token')).verdict AS "second secret",
       (apitoken.verify(:'third_token')).verdict AS "third secret";

\echo
\echo '=== 9. Revoke ==='
\echo
\echo 'As Alice.  Many programs may use an organization''s token, so its label is required:'
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
\set ON_ERROR_STOP off
SELECT apitoken.revoke_token(:'website_id', confirm_label => 'Website');
\set ECHO none
ROLLBACK;
\set ON_ERROR_STOP on
SELECT 1 / (:'LAST_ERROR_SQLSTATE' = '22023')::int \g /dev/null
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
SELECT apitoken.revoke_token(:'website_id', confirm_label => 'Website 2',
                             reason => 'site closed') AS revoked;
\set ECHO none
COMMIT;
\set ECHO queries
SELECT verdict FROM apitoken.verify(
  :'third_token');
\set ECHO none
\echo 'A personal token needs no label.  The text of a token is enough to revoke it:'
\echo
\set ECHO queries
SELECT apitoken.revoke_by_token(
  :'laptop_token') AS revoked;
\set ECHO none

\echo
\echo '=== 10. What happened ==='
\echo
\echo 'Each change has left an event.  Nobody can change or delete an event.  As Alice:'
\echo
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
\set ECHO queries
SELECT action, actor, database_user, details->>'label' AS label, details->'new'->>'revoke_reason' AS reason
FROM apitoken.events ORDER BY id;
\set ECHO none
COMMIT;
