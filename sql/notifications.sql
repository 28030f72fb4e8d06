--
-- The outbox: who is told what, who sees it, and what a mailer may do.
--
\set SHOW_CONTEXT never
\pset null '(null)'
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
CREATE ROLE regress_apitoken_app LOGIN;
CREATE ROLE regress_apitoken_mailer LOGIN;
CREATE ROLE regress_apitoken_job LOGIN;
CREATE ROLE regress_apitoken_nobody LOGIN;
SELECT apitoken.allow('regress_apitoken_app', 'act', 'manage');
SELECT apitoken.allow('regress_apitoken_mailer', 'notify');
SELECT apitoken.allow('regress_apitoken_job', 'directory');

-- one administrator with an address, one without, one suspended; a developer, who may not read tokens; a reader
INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{token:read}'), ('updater', '{token:update}');
INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme Corp.'), ('globex', 'Globex');
INSERT INTO apitoken.users (id, name, email, suspended_at) VALUES ('ada', 'Ada', 'ada@acme.example', NULL), ('ann', 'Ann', NULL, NULL),
	('abe', 'Abe', '', NULL), ('sue', 'Sue', 'sue@acme.example', now()), ('dan', 'Dan', 'dan@acme.example', NULL),
	('rob', 'Rob', 'rob@acme.example', NULL), ('gina', 'Gina', 'gina@globex.example', NULL), ('uma', 'Uma', 'uma@acme.example', NULL);
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('acme', 'ann', 'admin'), ('acme', 'abe', 'admin'), ('acme', 'sue', 'admin'),
	('acme', 'dan', 'developer'), ('acme', 'rob', 'reader'), ('acme', 'uma', 'updater'), ('globex', 'gina', 'admin'), ('acme', 'nix', 'admin');
SELECT id, notify FROM apitoken.organizations UNION ALL SELECT id, notify FROM apitoken.users WHERE id = 'ada' ORDER BY 1;
CREATE VIEW public.regress_outbox AS
	SELECT n.event, n.payload->>'label' AS label, n.organization_id AS org, n.user_id, n.recipients, n.attempts,
		n.next_attempt_at IS NOT NULL AS pending, n.delivered_at IS NOT NULL AS delivered, n.last_error
	FROM apitoken.notifications n ORDER BY n.id;

--
-- Rows are made where somebody wants them
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT apitoken.act_as('ada');
SET LOCAL apitoken.client_address = '192.0.2.7';
SELECT id AS one FROM apitoken.create_token('one', 'acme', role => 'developer', expires_in => '90 days') \gset
SELECT id AS mine FROM apitoken.create_token('mine') \gset
-- resuming and editing are no events that anybody is told
UPDATE apitoken.tokens SET description = 'x' WHERE id = :'one';
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'one';
UPDATE apitoken.tokens SET suspended_at = NULL WHERE id = :'one';
SELECT token IS NOT NULL AS regenerated FROM apitoken.regenerate_token(:'one');
SELECT apitoken.revoke_token(:'one', 'one', 'lost');
COMMIT;
RESET SESSION AUTHORIZATION;
TABLE public.regress_outbox;
-- the payload, with neither the secret nor its digest
SELECT key, CASE WHEN key ~ '_at$|^at$|^token_id$|^masked$' AND value <> 'null' THEN '(set)' ELSE value::text END AS value
FROM apitoken.notifications, pg_catalog.jsonb_each(payload) WHERE event = 'revoke' ORDER BY key COLLATE "C";
SELECT pg_catalog.count(*) AS with_digest FROM apitoken.notifications n, apitoken_internal.token_records r
WHERE n.payload::text ~ pg_catalog.encode(r.digest, 'hex') OR n.payload::text ~ '_[0-9A-Za-z]{71}';
SELECT e.action, n.event, n.created_at = e.at AS same_time, (n.payload->>'client_address')::inet IS NOT DISTINCT FROM e.client_address AS same_address,
	n.payload->>'at' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$' AND (n.payload->>'at')::timestamptz = e.at AS at_in_utc FROM apitoken.events e JOIN apitoken.notifications n USING (id, token_id) ORDER BY e.id;
-- all events, and none
UPDATE apitoken.organizations SET notify = '{create,regenerate,suspend,revoke,expire}' WHERE id = 'acme';
UPDATE apitoken.users SET notify = '{}' WHERE id = 'ada';
DELETE FROM apitoken.notifications;
BEGIN;
SELECT id AS two FROM apitoken.create_token('two', 'acme', role => 'developer') \gset
UPDATE apitoken.tokens SET suspended_at = now() WHERE id = :'two';
SELECT token IS NOT NULL AS regenerated FROM apitoken.regenerate_token(:'two');
SELECT apitoken.revoke_tokens('acme');
SELECT apitoken.revoke_token(:'mine');
COMMIT;
SELECT event, label, recipients FROM public.regress_outbox;
DELETE FROM apitoken.notifications;
UPDATE apitoken.organizations SET notify = NULL WHERE id = 'acme';
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('three', 'acme');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('theirs', user_id => 'ada');
UPDATE apitoken.organizations SET notify = '{create}' WHERE id = 'acme';
UPDATE apitoken.users SET notify = '{create}' WHERE id = 'ada';
SET apitoken.notifications = off;
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('four', 'acme');
RESET apitoken.notifications;
-- nobody there has an address
UPDATE apitoken.users SET email = NULL WHERE id IN ('ada', 'rob');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('five', 'acme');
UPDATE apitoken.users SET email = id || '@acme.example' WHERE id IN ('ada', 'rob');
TABLE public.regress_outbox;
-- an address that two of them have is told once; a role that ceases to allow it, at once no more
UPDATE apitoken.users SET email = 'team@acme.example' WHERE id IN ('ada', 'rob', 'ann');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('six', 'acme');
UPDATE apitoken.roles SET permissions = '{article:read}' WHERE name = 'reader';
UPDATE apitoken.users SET email = id || '@acme.example' WHERE id IN ('ada', 'rob');
UPDATE apitoken.users SET email = NULL WHERE id = 'ann';
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('seven', 'acme');
-- tokens of a deleted organization end untold: it has no members any more
INSERT INTO apitoken.organizations (id) VALUES ('gone');
INSERT INTO apitoken.memberships VALUES ('gone', 'ada', 'admin');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('eight', 'gone');
DELETE FROM apitoken.organizations WHERE id = 'gone';
SELECT event, label, recipients FROM public.regress_outbox;
-- a savepoint takes its row back
DELETE FROM apitoken.notifications;
BEGIN;
SAVEPOINT s;
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('nine', 'acme');
ROLLBACK TO s;
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('ten', 'acme');
COMMIT;
SELECT event, label FROM public.regress_outbox;

-- The cost in an organization with many administrators: its row is read once, members only if the event is wanted, and no
-- more than can be told.
INSERT INTO apitoken.organizations (id, notify) VALUES ('huge', '{revoke}');
INSERT INTO apitoken.users (id, email) SELECT 'huge-' || i, 'huge-' || i || '@huge.example' FROM pg_catalog.generate_series(1, 1500) i;
INSERT INTO apitoken.memberships SELECT 'huge', 'huge-' || i, 'admin' FROM pg_catalog.generate_series(1, 1500) i;
CREATE FUNCTION public.regress_reads(relation text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
	SELECT CASE relation WHEN 'organizations' THEN seq_scan + idx_scan ELSE seq_tup_read + idx_tup_fetch END
	FROM pg_catalog.pg_stat_xact_all_tables WHERE relid = ('apitoken.' || relation)::pg_catalog.regclass $$;
BEGIN;
DELETE FROM apitoken.notifications;
SELECT public.regress_reads('organizations') AS organizations, public.regress_reads('memberships') AS memberships, public.regress_reads('users') AS users \gset
SELECT id AS many FROM apitoken.create_token('many', 'huge') \gset
SELECT public.regress_reads('organizations') - :organizations < 10 AS organizations, public.regress_reads('memberships') - :memberships < 10 AS memberships,
	public.regress_reads('users') - :users < 10 AS users;
SELECT public.regress_reads('organizations') AS organizations, public.regress_reads('memberships') AS memberships \gset
SELECT apitoken.revoke_token(:'many', 'many');
SELECT public.regress_reads('organizations') - :organizations < 10 AS organizations, public.regress_reads('memberships') - :memberships < 1100 AS memberships;
SELECT event, pg_catalog.cardinality(recipients) FROM apitoken.notifications;
ROLLBACK;
DELETE FROM apitoken.organizations WHERE id = 'huge';
DELETE FROM apitoken.users WHERE id ~ '^huge';
DROP FUNCTION public.regress_reads(text);

-- names of events are checked
SELECT public.regress_try($$UPDATE apitoken.organizations SET notify = '$$ || n || $$' WHERE id = 'acme'$$)
FROM pg_catalog.unnest(ARRAY['{create,nothing}', '{Create}', '{NULL}', '{create,create,create,create,create,create,create,create,create}', '{{create},{revoke}}', '{""}']) n;
SELECT public.regress_try($$INSERT INTO apitoken.users (id, notify) VALUES ('new', '{resume}')$$);

--
-- Who sees what
--
UPDATE apitoken.organizations SET notify = '{create}';
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('globular', 'globex');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('own', user_id => 'ada');
SELECT pg_catalog.string_agg(attname, ' ' ORDER BY attnum) FILTER (WHERE has_column_privilege('regress_apitoken_app', attrelid, attnum, 'SELECT')) AS granted,
	pg_catalog.string_agg(attname, ' ' ORDER BY attnum) FILTER (WHERE NOT has_column_privilege('regress_apitoken_app', attrelid, attnum, 'SELECT')) AS not_granted,
	pg_catalog.bool_or(has_column_privilege('regress_apitoken_app', attrelid, attnum, 'INSERT, UPDATE')) AS writes
FROM pg_catalog.pg_attribute WHERE attrelid = 'apitoken.notifications'::regclass AND attnum > 0;
SET SESSION AUTHORIZATION regress_apitoken_app;
\set seen 'SELECT pg_catalog.string_agg(payload->>\'label\', \' \' ORDER BY id) AS seen FROM apitoken.notifications'
BEGIN; SELECT apitoken.act_as('ada'); :seen; COMMIT;
BEGIN; SELECT apitoken.act_as('uma'); :seen; COMMIT;
BEGIN; SELECT apitoken.act_as('dan'); :seen; COMMIT;
BEGIN; SELECT apitoken.act_as('sue'); :seen; COMMIT;
BEGIN; SELECT apitoken.act_as('gina'); :seen; COMMIT;
:seen;
BEGIN;
SELECT apitoken.act_as('ada');
-- no addresses, neither one's own organization's nor another's; nothing to write
SELECT public.regress_try(s) FROM pg_catalog.unnest(ARRAY['SELECT recipients FROM apitoken.notifications', 'SELECT last_error FROM apitoken.notifications',
	'TABLE apitoken.notifications', 'SELECT n FROM apitoken.notifications n', $$SELECT FROM apitoken.notifications WHERE recipients @> '{ada@acme.example}'$$,
	'DELETE FROM apitoken.notifications', 'UPDATE apitoken.notifications SET delivered_at = now()',
	'INSERT INTO apitoken.notifications (id) VALUES (NULL)', 'SELECT apitoken.claim_notifications()',
	'SELECT apitoken.notification_delivered(pg_catalog.gen_random_uuid())', $$SELECT apitoken.notification_failed(NULL, 'x')$$,
	$$SELECT apitoken_internal.role_allows('admin', 'token:read')$$, 'SELECT apitoken_internal.new_id()']) s;
ROLLBACK;
-- the job that keeps the directory may set what is told, and reads nothing of the outbox
SET SESSION AUTHORIZATION regress_apitoken_job;
SELECT public.regress_try($$UPDATE apitoken.organizations SET notify = '{create,revoke}' WHERE id = 'acme'$$),
	public.regress_try('SELECT id FROM apitoken.notifications'), public.regress_try('SELECT apitoken.claim_notifications()');
-- nobody else may do anything
SET SESSION AUTHORIZATION regress_apitoken_nobody;
SELECT public.regress_try(s) FROM pg_catalog.unnest(ARRAY['SELECT id FROM apitoken.notifications', 'SELECT apitoken.claim_notifications()',
	'SET apitoken.notifications = off', $$SET apitoken.notification_retention = '2d'$$]) s;

--
-- The mailer
--
-- it has these three functions and nothing else
SET SESSION AUTHORIZATION regress_apitoken_mailer;
SELECT public.regress_try(s) FROM pg_catalog.unnest(ARRAY['SELECT id FROM apitoken.notifications', 'TABLE apitoken.tokens', 'TABLE apitoken.users',
	'SELECT id FROM apitoken.events', 'SELECT apitoken.run_maintenance()', 'SELECT apitoken.verify(NULL)',
	'DELETE FROM apitoken.notifications']) s;
SELECT public.regress_try(s) FROM pg_catalog.unnest(ARRAY['SELECT apitoken.claim_notifications(0)', 'SELECT apitoken.claim_notifications(1001)',
	'SELECT apitoken.claim_notifications(NULL)', 'SELECT apitoken.claim_notifications(1, NULL)', $$SELECT apitoken.claim_notifications(1, '0')$$,
	$$SELECT apitoken.claim_notifications(1, '-1 hour')$$, $$SELECT apitoken.claim_notifications(1, '25 hours')$$,
	$$SELECT apitoken.claim_notifications(1, '2 months')$$, $$SELECT apitoken.claim_notifications(1, '178000000 years')$$,
	$$SELECT apitoken.claim_notifications(1, '-178000000 years')$$, $$SELECT apitoken.claim_notifications(1, '5900000 years -2147483000 days')$$]) s;
BEGIN READ ONLY;
SELECT public.regress_try('SELECT apitoken.claim_notifications()'), public.regress_try($$SELECT apitoken.notification_failed(NULL, 'x')$$);
SELECT public.regress_try($$SELECT apitoken.notification_delivered(pg_catalog.gen_random_uuid())$$),
	public.regress_try($$SELECT apitoken.notification_failed(pg_catalog.gen_random_uuid(), 'x')$$);
ROLLBACK;
-- hostile names on the way do not matter
RESET SESSION AUTHORIZATION;
CREATE SCHEMA regress_hostile;
GRANT ALL ON SCHEMA regress_hostile TO regress_apitoken_mailer;
SET SESSION AUTHORIZATION regress_apitoken_mailer;
CREATE FUNCTION regress_hostile.no(integer, integer) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'operator of %', current_user; END$$;
CREATE OPERATOR regress_hostile.< (LEFTARG = integer, RIGHTARG = integer, FUNCTION = regress_hostile.no);
SET search_path = regress_hostile, pg_catalog;
SELECT event, payload->>'label' AS label, recipients, attempts, delivered_at, last_error FROM apitoken.claim_notifications(2) ORDER BY id;
RESET search_path;
-- claimed ones are not claimed again
SELECT id AS claimed, payload->>'label' AS label, attempts FROM apitoken.claim_notifications(1) \gset
SELECT :'label' AS label, :attempts AS attempts;
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();
SELECT apitoken.notification_delivered(:'claimed') AS first, apitoken.notification_delivered(:'claimed') AS again,
	apitoken.notification_failed(:'claimed', 'too late') AS failed, apitoken.notification_delivered(NULL) AS null,
	apitoken.notification_delivered(pg_catalog.gen_random_uuid()) AS unknown, apitoken.notification_failed(NULL, NULL) AS null_failed;
RESET SESSION AUTHORIZATION;
DROP SCHEMA regress_hostile CASCADE;
TABLE public.regress_outbox;
-- one that was never claimed has no outcome
DELETE FROM apitoken.notifications;
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('eleven', 'acme');
SELECT id FROM apitoken.notifications \gset
SELECT apitoken.notification_delivered(:'id'), apitoken.notification_failed(:'id', 'x');
-- a lease that ends
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications(10, '1 second');
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();
SELECT pg_catalog.pg_sleep(1.1);
SELECT attempts FROM apitoken.claim_notifications();
-- a mailer whose lease has ended does not take the row from the next one, but its delivery counts
UPDATE apitoken.notifications SET next_attempt_at = now();
SELECT attempts FROM apitoken.claim_notifications(10, '1 hour');
SET SESSION AUTHORIZATION regress_apitoken_mailer;
SELECT apitoken.notification_failed(:'id', 'ended', a) FROM pg_catalog.unnest('{2,1,0,-1,4}'::integer[]) a;
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();
RESET SESSION AUTHORIZATION;
SELECT last_error, attempts, next_attempt_at > now() + '50 minutes' AS still_leased FROM apitoken.notifications;
BEGIN;
SELECT apitoken.notification_delivered(:'id');
ROLLBACK;
SELECT apitoken.notification_failed(:'id', 'mine', attempts => 3) > now() AS failed, apitoken.notification_failed(:'id', 'unknown', NULL) > now() AS unknown;
UPDATE apitoken.notifications SET attempts = 2;
-- failures: a growing delay, an end, and the error without secrets
SELECT apitoken.generate('organization') AS secret \gset
CREATE FUNCTION public.regress_fail(error text) RETURNS text LANGUAGE sql AS $$
	UPDATE apitoken.notifications SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL;
	SELECT apitoken.claim_notifications();
	SELECT attempts || ': ' || coalesce(pg_catalog.round(extract(epoch FROM apitoken.notification_failed(id, error) - pg_catalog.clock_timestamp()) / 60) || ' minutes', 'given up')
	FROM apitoken.notifications $$;
SELECT public.regress_fail('550 ' || :'secret' || ' refused') AS attempt;
SELECT pg_catalog.regexp_replace(last_error, '[0-9A-Za-z]{22}', '(id)') AS last_error, pg_catalog.strpos(last_error, :'secret') AS secret FROM apitoken.notifications;
SELECT public.regress_fail(pg_catalog.repeat('ä', 900) || :'secret') AS attempt;
SELECT pg_catalog.octet_length(last_error) AS length, last_error ~ '^ä+$' AS whole FROM apitoken.notifications;
-- the secret is cut in two by what is read of a long error
SELECT public.regress_fail(pg_catalog.repeat(' ', 7960) || :'secret' || pg_catalog.repeat(' ', 100000000)) AS attempt;
SELECT pg_catalog.octet_length(last_error) AS length FROM apitoken.notifications;
SELECT public.regress_fail(NULL) AS attempt;
SELECT pg_catalog.string_agg(public.regress_fail('451 later'), ', ') AS attempts FROM pg_catalog.generate_series(1, 14);
SELECT attempts, next_attempt_at, last_error, delivered_at FROM apitoken.notifications;
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();
-- the owner may have it tried again
UPDATE apitoken.notifications SET next_attempt_at = now(), attempts = 0;
SELECT attempts FROM apitoken.claim_notifications();
-- no outcome is reported, twenty times: it is given up as well
UPDATE apitoken.notifications SET next_attempt_at = now(), attempts = 20, last_error = NULL;
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();
SELECT attempts, next_attempt_at, last_error FROM apitoken.notifications;

-- in order for each token: a later one waits for an earlier one
DELETE FROM apitoken.notifications;
SELECT id AS first FROM apitoken.create_token('first', 'acme') \gset
SELECT id AS second FROM apitoken.create_token('second', 'acme') \gset
SELECT apitoken.revoke_token(:'first', 'first');
CREATE VIEW public.regress_claim AS SELECT n.id, n.event, n.payload->>'label' AS label FROM apitoken.claim_notifications() n ORDER BY n.id;
SELECT event, label FROM public.regress_claim;
SELECT event, payload->>'label' AS label, attempts FROM apitoken.notifications ORDER BY id;
SELECT pg_catalog.count(*) FROM public.regress_claim;
SELECT id AS create_of_first FROM apitoken.notifications WHERE token_id = :'first' AND event = 'create' \gset
SELECT apitoken.notification_failed(:'create_of_first', 'x') IS NOT NULL AS failed;
SELECT pg_catalog.count(*) FROM public.regress_claim;
SELECT apitoken.notification_delivered(:'create_of_first');
SELECT event, label FROM public.regress_claim;

-- the application's rows, and those of a restore, are not delivered here
DELETE FROM apitoken.notifications;
INSERT INTO apitoken.notifications (id, created_at, event, token_id, payload, recipients, next_attempt_at)
	VALUES (pg_catalog.gen_random_uuid(), now(), 'create', :'first', '{}', '{x@y.example}', now());
SET session_replication_role = replica;
INSERT INTO apitoken.notifications (id, created_at, event, token_id, payload, recipients, next_attempt_at)
	VALUES (pg_catalog.gen_random_uuid(), now(), 'create', :'first', '{}', '{x@y.example}', now());
UPDATE apitoken.notifications SET next_attempt_at = now();
RESET session_replication_role;
SELECT next_attempt_at FROM apitoken.notifications;
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();

--
-- A coming expiry, by housekeeping
--
DELETE FROM apitoken.notifications;
UPDATE apitoken.organizations SET notify = '{expire}' WHERE id = 'acme';
UPDATE apitoken.users SET notify = '{expire}' WHERE id = 'ada';
SELECT pg_catalog.count(apitoken.revoke_tokens(organization_id => o)) FROM pg_catalog.unnest('{acme,globex}'::text[]) o;
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('template', 'acme', role => 'developer');
-- as old as a restored token can be
CREATE FUNCTION public.regress_add(new_label text, age interval, life interval, who text DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
	INSERT INTO apitoken_internal.token_records
	SELECT (pg_catalog.jsonb_populate_record(r, pg_catalog.jsonb_build_object('id', apitoken_internal.new_id(), 'label', new_label,
		'created_at', now() - age, 'expires_at', now() + life, 'user_id', who,
		'organization_id', CASE WHEN who IS NULL THEN 'acme' END, 'role', CASE WHEN who IS NULL THEN 'developer' END))).*
	FROM apitoken_internal.token_records r WHERE r.label = 'template' $$;
SELECT public.regress_add('endless', '100 days', NULL), public.regress_add('8 days', '100 days', '8 days'), public.regress_add('6 days', '100 days', '6 days'),
	public.regress_add('12 hours', '100 days', '12 hours'), public.regress_add('over', '100 days', '-1 second'),
	public.regress_add('short', '1 day', '5 days'), public.regress_add('personal', '100 days', '3 days', 'ada'), public.regress_add('unwanted', '100 days', '3 days', 'dan');
UPDATE apitoken.users SET notify = NULL WHERE id = 'dan';
-- the setting
SET apitoken.notifications = off;
SELECT problems FROM apitoken.run_maintenance();
RESET apitoken.notifications;
SELECT pg_catalog.count(*) FROM apitoken.notifications;
SELECT problems FROM apitoken.run_maintenance();
SELECT problems FROM apitoken.run_maintenance();
SELECT event, label, org, user_id, recipients, pending FROM public.regress_outbox ORDER BY label;
SELECT pg_catalog.count(*) AS expiries_in_events FROM apitoken.events WHERE action = 'expire';
-- four days and a half go by, and housekeeping did not run: once more, a day before; "short" for the first time
CREATE FUNCTION public.regress_later(by interval) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET created_at = created_at - by, expires_at = expires_at - by, expiry_notified_at = expiry_notified_at - by;
END $$;
DELETE FROM apitoken.notifications;
SELECT public.regress_later('4 days 12 hours');
SELECT problems FROM apitoken.run_maintenance();
SELECT problems FROM apitoken.run_maintenance();
SELECT event, label FROM public.regress_outbox ORDER BY label;
SELECT public.regress_later('1 day');
SELECT problems FROM apitoken.run_maintenance();
SELECT event, label FROM public.regress_outbox ORDER BY label;
-- a token whose expiry was moved is told again
UPDATE apitoken.tokens SET expires_at = now() + '30 days' WHERE label = '6 days';
DELETE FROM apitoken.notifications;
SELECT public.regress_later('24 days');
SELECT problems FROM apitoken.run_maintenance();
SELECT event, label FROM public.regress_outbox ORDER BY label;
-- nobody but housekeeping sets the time
SELECT public.regress_try('UPDATE apitoken_internal.token_records SET expiry_notified_at = now()');
-- the clock was ahead, and is set back: the expiry is told, and what waits for that time is delivered
DELETE FROM apitoken.notifications;
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE apitoken_internal.token_records SET expires_at = now() + '3 days', expiry_notified_at = now() + '2 days' WHERE label = '6 days';
COMMIT;
SELECT problems FROM apitoken.run_maintenance();
SELECT problems FROM apitoken.run_maintenance();
SELECT event, label FROM public.regress_outbox ORDER BY label;
UPDATE apitoken.notifications SET next_attempt_at = now() + '10 years';
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();
SELECT problems FROM apitoken.run_maintenance();
SELECT attempts FROM apitoken.claim_notifications(lease => '1 day');
-- the longest lease is none of these
SELECT problems FROM apitoken.run_maintenance();
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications();
SELECT public.regress_try('UPDATE apitoken.tokens SET label = label');

-- a reason that quotes a secret is told without it
UPDATE apitoken.organizations SET notify = '{revoke}' WHERE id = 'acme';
DELETE FROM apitoken.notifications;
SELECT id AS found, token AS found_token FROM apitoken.create_token('found', 'acme') \gset
SELECT apitoken.revoke_token(:'found', 'found', E'found in a log:\n' || :'found_token' || ' (ä)');
SELECT id AS found2 FROM apitoken.create_token('found 2', 'acme') \gset
SELECT apitoken.revoke_tokens('acme', reason => pg_catalog.repeat('x', 900) || ' ' || :'found_token') > 0 AS all;
SELECT pg_catalog.count(*) AS rows, pg_catalog.count(*) FILTER (WHERE pg_catalog.strpos(t, pg_catalog.substr(:'found_token', 40)) > 0) AS with_secret,
	pg_catalog.count(*) FILTER (WHERE t ~ 'found in a log:.{1,2}apt_org_\w{22}\*+ \(ä\)') AS masked
FROM (SELECT revoke_reason FROM apitoken.tokens WHERE id IN (:'found', :'found2') UNION ALL SELECT details::text FROM apitoken.events WHERE token_id IN (:'found', :'found2') AND action = 'revoke'
	UNION ALL SELECT payload->>'reason' FROM apitoken.notifications WHERE token_id IN (:'found', :'found2')) s (t);

-- erasure: neither the address nor the id of a forgotten user stays
UPDATE apitoken.organizations SET notify = '{create}' WHERE id = 'acme';
UPDATE apitoken.users SET notify = '{create}' WHERE id = 'ada';
UPDATE apitoken.users SET notify = '{create}', suspended_at = NULL WHERE id = 'sue';
DELETE FROM apitoken.notifications;
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SET LOCAL apitoken.client_address = '198.51.100.9';
SELECT apitoken.act_as('sue');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('by sue', 'acme', role => 'developer');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('sues own');
COMMIT;
RESET SESSION AUTHORIZATION;
UPDATE apitoken.users SET email = NULL WHERE id = 'ada';
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('to sue only', 'acme');
SELECT event, label, recipients, pending FROM public.regress_outbox;
SELECT apitoken.forget_user('sue');
SELECT event, label, recipients, pending FROM public.regress_outbox;
SELECT pg_catalog.count(*) AS left_over FROM apitoken.notifications n WHERE n::text ~ '\msue@|"sue"|198\.51\.100\.9|Sue';
UPDATE apitoken.users SET email = 'ada@acme.example' WHERE id = 'ada';
DELETE FROM apitoken.notifications;

-- retention
SELECT pg_catalog.count(*) AS before FROM apitoken.notifications;
INSERT INTO apitoken.notifications (id, created_at, event, token_id, payload, recipients)
	SELECT (pg_catalog.lpad(pg_catalog.to_hex((extract(epoch FROM now() - age::interval) * 1000)::bigint), 12, '0')
		|| '7000' || pg_catalog.left(pg_catalog.md5(age), 16))::uuid, now() - age::interval, 'create', :'first', '{}', '{x@y.example}'
	FROM pg_catalog.unnest('{29 days,31 days,2 years}'::text[]) age;
SET apitoken.notification_retention = -1;
SELECT notifications_removed FROM apitoken.run_maintenance();
SET apitoken.notification_retention = '365d';
SELECT notifications_removed FROM apitoken.run_maintenance();
RESET apitoken.notification_retention;
SELECT notifications_removed FROM apitoken.run_maintenance();
SELECT pg_catalog.count(*) AS after FROM apitoken.notifications;
SELECT public.regress_try($$SET apitoken.notification_retention = '30'$$);

-- A claim reads no more if a token has more pending ones, and those of other tokens are claimed all the same.
DELETE FROM apitoken.notifications;
SELECT id AS many FROM apitoken.create_token('many', 'acme') \gset
CREATE FUNCTION public.regress_flood(first int, last int) RETURNS void LANGUAGE sql AS $$
	WITH made AS (INSERT INTO apitoken.notifications (id, created_at, event, token_id, payload, recipients)
		SELECT apitoken_internal.new_id(), now(), 'suspend', (SELECT id FROM apitoken.tokens WHERE label = 'many'), '{}', '{x@y.example}'
		FROM pg_catalog.generate_series(first, last) RETURNING id)
	SELECT pg_catalog.count(*) FROM made;
	-- older than those of other tokens
	UPDATE apitoken.notifications SET next_attempt_at = '2001-01-01' WHERE next_attempt_at IS NULL AND attempts = 0;
$$;
CREATE FUNCTION public.regress_reads() RETURNS bigint LANGUAGE sql AS $$
	SELECT pg_catalog.sum(pg_catalog.pg_stat_get_xact_tuples_returned(c.oid) + pg_catalog.pg_stat_get_xact_tuples_fetched(c.oid))::bigint
	FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
	WHERE COALESCE(i.indrelid, c.oid) = 'apitoken.notifications'::pg_catalog.regclass $$;
-- what a claim reads, in a transaction of its own
CREATE FUNCTION public.regress_cost(OUT claimed text, OUT reads bigint) LANGUAGE plpgsql AS $$
DECLARE
	before bigint := public.regress_reads();
BEGIN
	SELECT pg_catalog.string_agg(n.payload->>'label', ',' ORDER BY n.id) INTO claimed FROM apitoken.claim_notifications(2) n;
	reads := public.regress_reads() - before;
END $$;
SELECT public.regress_flood(1, 5000);
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('behind it', 'acme');
SELECT masked IS NOT NULL AS created FROM apitoken.create_token('and another', 'acme');
VACUUM ANALYZE apitoken.notifications;
BEGIN;
SELECT claimed, reads AS reads_of_few FROM public.regress_cost() \gset
ROLLBACK;
SELECT :'claimed' AS claimed;
SELECT public.regress_flood(5001, 15000);
VACUUM ANALYZE apitoken.notifications;
SELECT claimed, reads < 1.2 * :reads_of_few AS no_more FROM public.regress_cost();
-- the next claim has what is left
SELECT claimed, reads < 1.2 * :reads_of_few AS no_more FROM public.regress_cost();
SELECT claimed FROM public.regress_cost();
-- the first that is delivered makes way for the next one, and no other
SELECT pg_catalog.count(apitoken.notification_delivered(id)) FROM apitoken.notifications WHERE attempts > 0;
SELECT pg_catalog.count(*) FROM apitoken.claim_notifications(1000);
DELETE FROM apitoken.notifications;
DROP FUNCTION public.regress_flood(int, int), public.regress_cost(), public.regress_reads();

SELECT apitoken.disallow('regress_apitoken_mailer', 'notify');
SET SESSION AUTHORIZATION regress_apitoken_mailer;
SELECT public.regress_try('SELECT apitoken.claim_notifications()');
RESET SESSION AUTHORIZATION;
DROP VIEW public.regress_outbox, public.regress_claim;
DROP FUNCTION public.regress_fail(text), public.regress_add(text, interval, interval, text), public.regress_later(interval);
\i :srcdir/test/regress_teardown.sql
