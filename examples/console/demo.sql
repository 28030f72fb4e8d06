-- demo.sql: what "make demo-console" shows.  It is for the demo's throw-away database,
-- in which it runs as superuser after examples/articles.sql: it writes use and times
-- that never were.

\set ON_ERROR_STOP on
SET client_min_messages = warning;

INSERT INTO apitoken.roles (name, description, permissions) VALUES
    ('viewer', 'Reads everything', '{*:read,*:list}'),
    ('auditor', 'Reads everything, and sees the tokens', '{*:read,*:list,token:read}'),
    ('publisher', 'Writes articles and media', '{article:*,media:*,*:read,*:list}');
INSERT INTO apitoken.users (id, name) VALUES ('carol', 'Carol');
INSERT INTO apitoken.memberships (organization_id, user_id, role)
VALUES ('acme', 'carol', 'auditor'), ('acme', 'bob', 'developer'), ('globex', 'alice', 'admin');
UPDATE apitoken.users SET name = 'Alice Anderson' WHERE id = 'alice';
UPDATE apitoken.organizations SET require_expiry = true, max_lifetime = '60 days' WHERE id = 'globex';

-- The permissions that the page offers.
INSERT INTO apitoken.permissions (name, description) VALUES
    ('article:read', 'Read an article'), ('article:list', 'List articles'), ('article:create', 'Write an article'),
    ('article:update', 'Change an article'), ('article:delete', 'Delete an article'),
    ('media:read', 'Download a file'), ('media:list', 'List files'), ('media:create', 'Upload a file'), ('media:delete', 'Delete a file'),
    ('stats:read', 'Read a figure'), ('stats:list', 'List figures'),
    ('token:rotate', 'Regenerate itself');

-- The tokens that users created, oldest first.
SET SESSION AUTHORIZATION app_node;
BEGIN;
SELECT apitoken.act_as('alice') \g /dev/null
SELECT apitoken.create_token(label, organization_id => 'acme', description => description, role => role, access => access,
                             permissions => permissions, expires_in => expires_in, allowed_networks => networks,
                             rate_limit_per_minute => rate, quota => quota, quota_period => period)
FROM (VALUES
        ('Old importer', 'Replaced by “Nightly import”', 'developer', 'full', NULL::text[], '30 days'::interval, NULL::cidr[], NULL::integer, NULL::bigint, NULL),
        ('Nightly import', 'Fetches the articles of our partners', 'publisher', 'full', NULL, '1 year', '{192.0.2.0/24,2001:db8::/32}', NULL, NULL, NULL),
        ('Website', 'Renders the public pages', 'viewer', 'read_only', NULL, NULL, NULL, 600, NULL, NULL),
        ('Terraform', NULL, 'developer', 'full', NULL, '90 days', '{198.51.100.17/32}', NULL, NULL, NULL),
        ('Grafana', 'The board in the hall', 'viewer', 'custom', '{stats:read,stats:list}', '90 days', NULL, NULL, 10000, 'day'),
        ('Partner preview', 'Until their contract begins', 'viewer', 'read_only', NULL, '30 days', NULL, 60, NULL, NULL),
        ('Deploy job', 'Publishes what is merged', 'publisher', 'custom', '{article:create,article:update,media:*,token:rotate}', '90 days', NULL, NULL, NULL, NULL)
     ) AS t (label, description, role, access, permissions, expires_in, networks, rate, quota, period) \g /dev/null
SELECT apitoken.create_token('Laptop', access => 'full', expires_in => '90 days') \g /dev/null
SELECT apitoken.create_token('Notebook in the library', access => 'read_only', expires_in => '7 days') \g /dev/null
SELECT apitoken.create_token('Shop', organization_id => 'globex', role => 'viewer', access => 'read_only', expires_in => '60 days') \g /dev/null
COMMIT;
RESET SESSION AUTHORIZATION;

-- When all that was, and how they were used since.
CREATE TEMP TABLE story (label text, created interval, left_ interval, used interval, a_day integer, refused integer);
INSERT INTO story VALUES
    ('Old importer', '95 days', '-65 days', '66 days', 0, 0), ('Nightly import', '80 days', '285 days', '9 hours', 24, 0),
    ('Website', '71 days', NULL, '12 seconds', 5200, 0), ('Terraform', '60 days', '30 days', '5 days', 3, 0),
    ('Grafana', '44 days', '46 days', '2 minutes', 1440, 30), ('Partner preview', '20 days', '10 days', NULL, 0, 0),
    ('Deploy job', '88 days', '2 days', '1 hour', 11, 2), ('Laptop', '3 days', '87 days', '26 minutes', 40, 0),
    ('Notebook in the library', '5 days', '2 days', '5 days', 0, 0), ('Shop', '12 days', '48 days', '1 minute', 310, 0);

BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records r SET created_at = now() - s.created, updated_at = now() - s.created, expires_at = now() + s.left_
FROM story s WHERE r.label = s.label;
UPDATE apitoken.token_usage u SET last_used_at = now() - s.used FROM story s JOIN apitoken_internal.token_records r USING (label)
WHERE u.token_id = r.id AND s.used IS NOT NULL;
CREATE TEMPORARY TABLE days ON COMMIT DROP AS
SELECT r.id, current_date - n AS day, d.accepted, d.refused
FROM story s JOIN apitoken_internal.token_records r USING (label), generate_series(0, 29) n,
     LATERAL (SELECT round(s.a_day * (1 + 0.45 * sin(n * 2.1) + 0.25 * cos(n * 0.7)) * CASE WHEN extract(isodow FROM current_date - n) > 5 THEN 0.4 ELSE 1 END),
                     CASE WHEN n % 9 = 4 THEN s.refused ELSE 0 END) d (accepted, refused)
WHERE make_interval(days => n) >= coalesce(s.used, '0') - interval '1 day' AND make_interval(days => n) < s.created AND d.accepted + d.refused > 0;
INSERT INTO apitoken_internal.token_days (token_id, day, accepted, refused) SELECT * FROM days WHERE day < current_date;
UPDATE apitoken.token_usage u SET last_day = day, day_accepted = d.accepted, day_refused = d.refused FROM days d WHERE u.token_id = d.id AND day = current_date;
COMMIT;

BEGIN;
SET SESSION AUTHORIZATION app_node;
SELECT apitoken.act_as('alice') \g /dev/null
UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'Partner preview';
SELECT apitoken.regenerate_token(id, overlap => '1 day') FROM apitoken.tokens WHERE label = 'Terraform' \g /dev/null
COMMIT;
RESET SESSION AUTHORIZATION;
