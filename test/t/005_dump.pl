# pg_dump, restore and pg_upgrade: every token is still valid, privileges stay
# granted, and no event appears twice.  In the matrix the tokens come from the
# oldest server, otherwise from one of the same version.

use strict;
use warnings;

use ApitokenTest;
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $place = PostgreSQL::Test::Utils::tempdir_short();
my @old_server = ();
@old_server = (install_path => dirname($ENV{APITOKEN_FROM_BINDIR})) if $ENV{APITOKEN_FROM_BINDIR};

my $old = PostgreSQL::Test::Cluster->new('old', @old_server);
$old->init(extra => ['--data-checksums']);
$old->append_conf('postgresql.conf', "log_statement = none\nmax_connections = 20");
$old->start;
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(extra => ['--data-checksums']);
$new->append_conf('postgresql.conf', "log_statement = none\nmax_connections = 20");
$new->start;
note('from ' . $old->safe_psql('postgres', 'SHOW server_version') . ' to ' . $new->safe_psql('postgres', 'SHOW server_version'));

# ----- a database with everything that could get lost --------------------------

my $roles = join ';', map { "CREATE ROLE regress_apitoken_$_ LOGIN" } qw(backend people job partial owner backup);
$_->safe_psql('postgres', "$roles; ALTER ROLE regress_apitoken_backup BYPASSRLS; GRANT pg_read_all_data TO regress_apitoken_backup")
  foreach $old, $new;

$old->safe_psql('postgres', 'CREATE DATABASE app');
$old->safe_psql('postgres', q{ALTER DATABASE app SET apitoken.prefix = 'acme'; ALTER DATABASE app SET session_preload_libraries = 'apitoken'});
$old->safe_psql('app', q{
	CREATE SCHEMA crypto;
	CREATE EXTENSION pgcrypto SCHEMA crypto;
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id, name, suspended_at) VALUES ('acme', 'Acme', NULL), ('idle', 'Idle', now()), ('strict', NULL, NULL), ('Ümläut "x"', NULL, NULL);
	INSERT INTO apitoken.users (id, name, email, groups) VALUES ('u', 'User', 'u@example.org', '{a,b}'), ('v', NULL, NULL, '{}');
	UPDATE apitoken.roles SET description = 'narrowed', permissions = '{article:*,token:read}' WHERE name = 'admin';
	INSERT INTO apitoken.roles VALUES ('editor', 'Edits', '{article:write}', NULL), ('auditor', NULL, '{*:read}', 'regress_apitoken_people');
	UPDATE apitoken.users SET role = 'editor' WHERE id = 'v';
	UPDATE apitoken.organizations SET idle_timeout = '1 mon 2 days 03:04:05', resumed_at = '2020-02-29 12:00+00' WHERE id = 'acme';
	INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'admin'), ('acme', 'v', 'editor'), ('idle', 'u', 'auditor');
	SELECT apitoken.allow('regress_apitoken_backend', 'act', 'verify', 'manage');
	SELECT apitoken.allow('regress_apitoken_people', 'use');
	-- a privilege of its own, which disallow() leaves
	GRANT SELECT ON apitoken.users TO regress_apitoken_job;
	SELECT apitoken.allow('regress_apitoken_job', 'directory');
	-- and what somebody granted or took by hand
	GRANT SELECT (id, label) ON apitoken.tokens TO regress_apitoken_partial;
	GRANT SELECT (id, label), UPDATE (label) ON apitoken_internal.token_records TO regress_apitoken_partial;
	REVOKE EXECUTE ON FUNCTION apitoken.whoami() FROM PUBLIC;
	GRANT EXECUTE ON FUNCTION apitoken.whoami() TO regress_apitoken_people WITH GRANT OPTION;
	GRANT EXECUTE ON FUNCTION apitoken.run_maintenance() TO regress_apitoken_job;

	CREATE SCHEMA app;
	CREATE TABLE app.article (id int PRIMARY KEY, organization_id text);
	INSERT INTO app.article VALUES (1, 'acme'), (2, 'idle');
	ALTER TABLE app.article ENABLE ROW LEVEL SECURITY;
	CREATE POLICY article_read ON app.article FOR SELECT
		USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
	GRANT USAGE ON SCHEMA app TO regress_apitoken_people;
	GRANT SELECT ON app.article TO regress_apitoken_people;
});

my $acme = q{organization_id => 'acme'};
my %token = create_each($old, {
	plain => $acme,
	personal => q{user_id => 'u'},
	limited => q{user_id => 'v', access => 'read_only'},
	custom => q{organization_id => 'acme', role => 'admin', permissions => '{article:read}', description => E'tab\there, "quotes"\nlines',
		expires_in => '90 days', allowed_networks => '{10.0.0.0/8,2001:db8::/32}', metadata => '{"a": [1, "ü\\\\"]}'},
	odd => q{organization_id => 'Ümläut "x"', role => 'auditor'},
	(map { ($_ => $acme) } qw(renewed over suspended revoked expired used)),
	sleeping => q{organization_id => 'idle'},
	strict => q{organization_id => 'strict'},
	limit => q{organization_id => 'acme', rate_limit_per_minute => 10},
	orphan => q{user_id => 'gone'},
}, database => 'app');
foreach ([ 'renewed', '1 day' ], [ 'over', '1 hour' ])
{
	my ($label, $overlap) = @$_;
	$token{"$label before"} = $token{$label};
	$token{$label} = $old->safe_psql('app',
		"SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken.tokens WHERE label = '$label'), overlap => '$overlap')");
}
$old->safe_psql('app', qq{
	UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended';
	SELECT apitoken.revoke_token(id, label, 'lost') FROM apitoken.tokens WHERE label = 'revoked';
	SELECT apitoken.create_token('revoked', organization_id => 'acme');	-- the label is free again
	DELETE FROM apitoken.users WHERE id = 'gone';
	UPDATE apitoken.organizations SET max_lifetime = '1 mon 2 days', require_expiry = true, max_tokens = 7, allowed_networks = '{10.0.0.0/8,2001:db8::/32}'::cidr[], default_role = 'auditor', allow_personal_tokens = false WHERE id = 'strict';
	SELECT apitoken.verify('$token{used}', client_address => '192.0.2.7');
	INSERT INTO apitoken_internal.token_days (token_id, day, accepted, refused)
		SELECT id, '2020-02-29'::date + i, 10 * i, i FROM apitoken.tokens, generate_series(0, 2) i WHERE label IN ('used', 'personal');
	UPDATE apitoken_internal.token_days SET refusals = '{"expired": 1, "network_refused": 1}' WHERE refused = 2;
	INSERT INTO apitoken_internal.personal_token_use SELECT 'acme', id, now() FROM apitoken.tokens WHERE user_id IS NOT NULL;
	INSERT INTO apitoken_internal.token_networks SELECT id, n, now(), now() FROM apitoken.tokens, unnest('{192.0.2.0/24,2001:db8::/48}'::cidr[]) n;
	INSERT INTO apitoken_internal.usage_senders VALUES ('11111111-1111-4111-8111-111111111111', '01900000-0000-7000-8000-000000000000', now(), 'sender', '192.0.2.1');
	SELECT apitoken.import_token('sanctum', encode(sha256('imported-secret-0001'), 'hex'), '42', label => 'used', organization_id => 'acme', last_used_at => '2020-02-29');
	SELECT apitoken.import_token('knox41', repeat('ab', 64), '12345678', salt => '0011', label => 'used', user_id => 'u', revoked_at => '2020-02-29');
	-- as time would
	ALTER TABLE apitoken_internal.token_records DISABLE TRIGGER USER;
	UPDATE apitoken_internal.token_records SET expires_at = now() - interval '1 day', created_at = now() - interval '9 days' WHERE label = 'expired';
	UPDATE apitoken_internal.token_records SET previous_expires_at[1] = now() - interval '1 s' WHERE label = 'over';
	ALTER TABLE apitoken_internal.token_records ENABLE TRIGGER USER;
});

# What is pending stays with the old server: see 045_notifications.
sub deliver
{
	my ($node, $db) = @_;

	# one of a token follows the other
	$node->safe_psql($db, 'SELECT apitoken.claim_notifications(); SELECT apitoken.notification_delivered(id) FROM apitoken.notifications') foreach 1, 2;
	is($node->safe_psql($db, 'SELECT count(*) FROM apitoken.notifications WHERE next_attempt_at IS NOT NULL'), '0', 'all notifications are delivered');
	return;
}
deliver($old, 'app');
$token{nobody} = $old->safe_psql('app', q{SELECT apitoken.generate('org')});

my @tables = (qw(apitoken.organizations apitoken.users apitoken_internal.deleted_users apitoken_internal.role_records apitoken.permissions apitoken.memberships apitoken_internal.token_records),
	qw(apitoken.token_usage apitoken_internal.token_days apitoken.events apitoken.notifications apitoken_internal.own_privileges apitoken_internal.personal_token_use apitoken_internal.token_networks apitoken_internal.usage_senders apitoken_internal.foreign_digests));

# This must be the same afterwards, line by line.
my %same = (
	(map { ("rows of $_" => 'SELECT r::text FROM ' . (/role_records/ ? 'ONLY ' : '') . "$_ r ORDER BY 1") } @tables),
	'roles' => 'SELECT r::text FROM apitoken.roles r ORDER BY 1',
	'privileges' => q{
		SELECT o.name || ' ' || pg_catalog.pg_get_userbyid(a.grantor) || ' ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END
			|| ' ' || a.privilege_type || ' ' || a.is_grantable
		FROM (SELECT c.oid::regclass::text AS name, coalesce(c.relacl, acldefault('r', c.relowner)) AS acl FROM pg_class c WHERE c.relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND c.relkind IN ('r', 'v')
			UNION ALL SELECT t.attrelid::regclass || '.' || t.attname, t.attacl FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid WHERE c.relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace)
			UNION ALL SELECT p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p WHERE p.pronamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace)
			UNION ALL SELECT n.nspname, coalesce(n.nspacl, acldefault('n', n.nspowner)) FROM pg_namespace n WHERE n.nspname IN ('apitoken', 'apitoken_internal')) o, aclexplode(o.acl) a
		WHERE a.privilege_type <> 'MAINTAIN' ORDER BY 1},
	'column privileges' => q{SELECT grantee || ' ' || table_name || '.' || column_name || ' ' || privilege_type
		FROM information_schema.column_privileges WHERE table_schema IN ('apitoken', 'apitoken_internal') ORDER BY 1},
	'schema of pgcrypto' => q{SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'pgcrypto'});
sub contents { my ($node, $db) = @_; return { map { ($_ => $node->safe_psql($db, "SET timezone = 'UTC'; SET intervalstyle = 'postgres'; $same{$_}")) } keys %same }; }
my @labels = sort keys %token;
sub verdicts
{
	my ($node, $db) = @_;
	# READ ONLY, so that this changes nothing
	my $sql = join ' UNION ALL ', map { my $n = $_; "SELECT $n, '$labels[$n] ' || verdict FROM apitoken.verify('$token{$labels[$n]}')" } 0 .. $#labels;
	return $node->safe_psql($db, "SET default_transaction_read_only = on; SET client_min_messages = error; SELECT v FROM ($sql) AS s (n, v) ORDER BY n");
}

# a catalog that does not have the permissions of these tokens and roles: a restore does not ask it
$old->safe_psql('app', "INSERT INTO apitoken.permissions (name, description) VALUES ('report:export', 'Exports \"reports\"'), ('report:make', NULL)");
my $before = contents($old, 'app');
my $verdicts = verdicts($old, 'app');
is($verdicts, join("\n", 'custom network_refused', 'expired expired', 'limit rate_limited', 'limited valid', 'nobody unknown', 'odd valid',
		'orphan revoked', 'over valid', 'over before unknown', 'personal valid', 'plain valid', 'renewed valid', 'renewed before valid',
		'revoked revoked', 'sleeping suspended', 'strict policy_refused', 'suspended suspended', 'used valid'),
	'the verdicts before');
like($before->{'rows of apitoken.token_usage'}, qr/192\.0\.2\.7/, 'a use that was recorded');
like($before->{'rows of apitoken.notifications'}, qr/u\@example\.org/, 'a notification that was delivered');
like($before->{'column privileges'}, qr/regress_apitoken_partial token_records\.label UPDATE/, 'a privilege on a column');

# Is the restored database the same as the old one, and does it work?
my %made;
sub check_restored
{
	my ($node, $db, $what, %skip) = @_;
	my $after = contents($node, $db);
	foreach my $thing (sort keys %same)
	{
		next if $skip{$thing};
		is($after->{$thing}, $before->{$thing}, "$what: $thing");
	}
	is(verdicts($node, $db), $verdicts, "$what: every verdict") unless $skip{verdicts};
	is($node->safe_psql($db, q{SELECT string_agg(p::text, ' ' ORDER BY i) FROM unnest(ARRAY[
			has_function_privilege('regress_apitoken_backend', 'apitoken.verify(text,text,apitoken.id,inet,integer)', 'EXECUTE'), has_function_privilege('regress_apitoken_backend', 'apitoken.act_as(apitoken.id)', 'EXECUTE'),
			has_table_privilege('regress_apitoken_backend', 'apitoken.tokens', 'SELECT'), has_column_privilege('regress_apitoken_backend', 'apitoken.tokens', 'label', 'UPDATE'), has_table_privilege('regress_apitoken_backend', 'apitoken.organizations', 'UPDATE'),
			has_column_privilege('regress_apitoken_backend', 'apitoken_internal.token_records', 'digest', 'SELECT')]) WITH ORDINALITY AS u (p, i)}),
		'true true true true false false', "$what: capabilities") unless $skip{privileges};
	is($node->safe_psql($db, q{SET client_min_messages = error; BEGIN; SELECT apitoken.disallow('regress_apitoken_job', 'directory');
			SELECT string_agg(p, ' ') FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) p WHERE has_table_privilege('regress_apitoken_job', 'apitoken.users', p); ROLLBACK}),
		"\nSELECT", "$what: what disallow() leaves") unless $skip{privileges};
	return if $skip{going_on};

	# as the application: new tokens, use, regeneration, revocation
	my $text = $node->safe_psql($db, q{
		SET SESSION AUTHORIZATION regress_apitoken_backend; BEGIN; SELECT apitoken.act_as('u') IS NULL;
		SELECT token FROM apitoken.create_token('after'); COMMIT}) =~ s/^f\n//r;
	like($text, $skip{settings} ? qr/^apt_usr_/ : qr/^acme_usr_/, "$what: a new token, under the database's own prefix");
	is($node->safe_psql($db, "SELECT verdict FROM apitoken.verify('$text')"), 'valid', "$what: which verifies");
	is($node->safe_psql($db, "SELECT verdict FROM apitoken.verify('$token{plain}'); SELECT accepted FROM apitoken.token_usage WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'plain')"),
		"valid\n1", "$what: use is recorded");
	is($node->safe_psql($db, q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label IN ('plain', 'after') ORDER BY label;
			SELECT string_agg(action, ' ' ORDER BY id) FROM apitoken.events WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'after')}),
		"t\nt\ncreate revoke", "$what: and revoked, with events");
	is($node->safe_psql($db, "SELECT verdict FROM apitoken.verify('$token{plain}')"), 'revoked', "$what: for good");
	my ($rc, $out, $err) = $node->psql($db, q{SELECT apitoken.create_token('used', organization_id => 'acme')}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/ERROR:  23505/, "$what: labels are in use");
	($rc, $out, $err) = $node->psql($db, q{DELETE FROM apitoken.events}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/ERROR:  42501/, "$what: events stay");

	# housekeeping finds what there is to do, and the setting that goes with the database
	is($node->safe_psql($db, q{SELECT events_removed, tokens_removed, usage_removed FROM apitoken.run_maintenance()}),
		'0|0|6', "$what: housekeeping");
}
sub database { my ($name, $sql) = @_; $new->safe_psql('postgres', "CREATE DATABASE $name"); $new->safe_psql($name, $sql) if $sql; }
my $from = $old->connstr('app');

# Normally the newer server's pg_dump is used.  But 15.20 keeps an option
# pg_attver with each column.  The pg_dump of a newer major that is a minor release
# behind writes this option into the dump, and no restore understands it.  In that
# case the older server's own pg_dump is used, and pg_upgrade is not tested.
my $pg_dump = 'pg_dump';
my ($schema_only) = run_command([ 'pg_dump', '-d', $from, '--schema-only' ]);
my $behind = $schema_only =~ /pg_attver/;
$pg_dump = "$ENV{APITOKEN_FROM_BINDIR}/pg_dump" if $behind;
note("with $pg_dump");
my $to = sub { return $new->connstr($_[0]) };

# ----- plain -------------------------------------------------------------------

command_ok([ $pg_dump, '-d', $from, '-f', "$place/plain.sql" ], 'pg_dump');
database('plain');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $to->('plain'), '-f', "$place/plain.sql" ], 'restore with psql');
check_restored($new, 'plain', 'plain', settings => 1);

# into a database that has the extension already
database('present', 'CREATE SCHEMA crypto; CREATE EXTENSION pgcrypto SCHEMA crypto; CREATE EXTENSION apitoken');
(my $present = slurp_file("$place/plain.sql")) =~ s/^CREATE SCHEMA crypto;$//m;
append_to_file("$place/present.sql", $present);
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $to->('present'), '-f', "$place/present.sql" ], 'restore where the extension is');
check_restored($new, 'present', 'extension present', settings => 1);

# as INSERTs
command_ok([ $pg_dump, '-d', $from, '--column-inserts', '-f', "$place/inserts.sql" ], 'pg_dump --column-inserts');
database('inserts');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-1', '-d', $to->('inserts'), '-f', "$place/inserts.sql" ], 'restored in one transaction');
check_restored($new, 'inserts', 'inserts', settings => 1);

# ----- custom, directory -------------------------------------------------------

command_ok([ $pg_dump, '-Fc', '-d', $from, '-f', "$place/custom" ], 'pg_dump -Fc');
database('custom');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $to->('custom'), "$place/custom" ], 'pg_restore');
check_restored($new, 'custom', 'custom', settings => 1);

# data only, into the extension as it was installed
database('data', 'CREATE EXTENSION apitoken; CREATE SCHEMA app; CREATE TABLE app.article (id int PRIMARY KEY, organization_id text)');
command_ok([ 'pg_restore', '--exit-on-error', '--data-only', '-d', $to->('data'), "$place/custom" ], 'pg_restore --data-only');
check_restored($new, 'data', 'data only', settings => 1, privileges => 1, 'column privileges' => 1, 'schema of pgcrypto' => 1, going_on => 1);

# with its settings, by --create, from a directory by two jobs
command_ok([ $pg_dump, '-Fd', '--jobs', '2', '--create', '-d', $from, '-f', "$place/directory" ], 'pg_dump -Fd --jobs 2');
command_ok([ 'pg_restore', '--exit-on-error', '--jobs', '2', '--create', '-d', $to->('postgres'), "$place/directory" ], 'pg_restore --create --jobs 2');
check_restored($new, 'app', 'directory');
is($new->safe_psql('app', 'SHOW session_preload_libraries; SHOW apitoken.prefix'), "apitoken\nacme", "directory: the database's settings");

# the restored database is dumped and restored again
deliver($new, 'custom');
command_ok([ 'pg_dump', '-Fc', '-d', $to->('custom'), '-f', "$place/again" ], 'pg_dump of what was restored');
$before = contents($new, 'custom');
$verdicts = verdicts($new, 'custom');
database('again');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $to->('again'), "$place/again" ], 'restored a second time');
check_restored($new, 'again', 'again', settings => 1, going_on => 1);
$before = contents($old, 'app');
$verdicts = verdicts($old, 'app');

# ----- who dumps, and what -----------------------------------------------------

command_ok([ $pg_dump, '-d', $from, '-U', 'regress_apitoken_backup', '-Fc', '-f', "$place/backup" ], 'pg_dump by a role with pg_read_all_data and BYPASSRLS');
database('backup');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $to->('backup'), "$place/backup" ], 'restored');
check_restored($new, 'backup', 'by a backup role', settings => 1, going_on => 1);

# the owner of the tables, which is not a superuser
$old->safe_psql('app', join ';', 'ALTER TABLE app.article OWNER TO regress_apitoken_owner', 'ALTER SCHEMA app OWNER TO regress_apitoken_owner',
	map({ "ALTER TABLE $_ OWNER TO regress_apitoken_owner" } @tables), 'GRANT USAGE ON SCHEMA apitoken_internal TO regress_apitoken_owner');
command_ok([ $pg_dump, '-d', $from, '-U', 'regress_apitoken_owner', '-Fc', '-f', "$place/owner" ], "pg_dump by the tables' owner");
database('owner');
command_ok([ 'pg_restore', '--exit-on-error', '--no-owner', '-d', $to->('owner'), "$place/owner" ], 'restored');
check_restored($new, 'owner', 'by the owner', settings => 1, privileges => 1, 'column privileges' => 1, going_on => 1);
$old->safe_psql('app', join ';', 'ALTER TABLE app.article OWNER TO CURRENT_USER', 'ALTER SCHEMA app OWNER TO CURRENT_USER',
	map({ "ALTER TABLE $_ OWNER TO CURRENT_USER" } @tables), 'REVOKE USAGE ON SCHEMA apitoken_internal FROM regress_apitoken_owner');

# a role that may read but is under the policies: an error, not a dump without tokens
$old->safe_psql('postgres', 'ALTER ROLE regress_apitoken_backup NOBYPASSRLS');
command_fails_like([ $pg_dump, '-d', $from, '-U', 'regress_apitoken_backup', '-f', "$place/partial" ],
	qr/row-level security/, 'pg_dump by who is under the policies fails');

# one schema of the application's own: no tokens
command_ok([ $pg_dump, '-d', $from, '-n', 'app', '-f', "$place/schema.sql" ], 'pg_dump -n app');
my $schema = slurp_file("$place/schema.sql");
like($schema, qr/CREATE TABLE app\.article/, 'pg_dump -n app has the application');
unlike($schema, qr/token_records|CREATE EXTENSION/, 'and no tokens');

# the dump itself shows digests but no text
unlike(slurp_file("$place/plain.sql"), qr/$_/, 'no text in a dump') foreach (values %token)[ 0 .. 2 ];

# ----- other roles may not insert digests --------------------------------------

my ($rc, $out, $err) = $new->psql('plain', q{GRANT USAGE ON SCHEMA apitoken_internal TO regress_apitoken_partial; GRANT INSERT ON apitoken_internal.token_records TO regress_apitoken_partial;
	SET SESSION AUTHORIZATION regress_apitoken_partial;
	INSERT INTO apitoken_internal.token_records (id, created_at, updated_at, digest_scheme, digest, organization_id, role, label, access, masked)
		VALUES (gen_random_uuid(), now(), now(), 0, '\x} . ('00' x 32) . q{', 'acme', 'admin', 'forged', 'full', 'm')},
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/ERROR:  42501/, 'a row with a digest comes from the owner alone');

# ----- pg_upgrade --------------------------------------------------------------

my @nodes = ($old, $new);
SKIP: {
	skip 'the pg_dump that pg_upgrade uses does not know the columns\' options of the older server', 1 if $behind;
	my $upgraded = PostgreSQL::Test::Cluster->new('upgraded');
	push @nodes, $upgraded;
	$upgraded->init(extra => ['--data-checksums']);
	$before = contents($old, 'app');
	$old->stop;
	pg_upgrade($old, $upgraded, 'pg_upgrade');
	$upgraded->start;
	check_restored($upgraded, 'app', 'upgraded');
	is($upgraded->safe_psql('app', 'SHOW session_preload_libraries; SHOW apitoken.prefix'), "apitoken\nacme", "upgraded: the database's settings");
	command_ok([ 'pg_dump', '-d', $upgraded->connstr('app'), '-f', "$place/upgraded.sql" ], 'upgraded: pg_dump');
	like(slurp_file("$place/upgraded.sql"), qr/COPY apitoken_internal\.token_records/, 'upgraded: which has the tokens');
	$upgraded->stop;
}
$old->stop if $behind;
$new->stop;
no_crash($_) foreach @nodes;
done_testing();
