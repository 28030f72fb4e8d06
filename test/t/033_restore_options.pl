# Whatever options, order or triggers a restore has: no token may do more than
# before, every role is what it was, and the application's own tables are complete.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $place = PostgreSQL::Test::Utils::tempdir_short();
my $node = start_node('restore');
my $to = sub { return $node->connstr($_[0]) };
run_on($node);

# ----- a database with the triggers of docs/organizations.md, and with roles that were cut down ---

my ($triggers) = slurp_file('docs/organizations.md') =~ /^(CREATE FUNCTION app\.sync_organization.*?)^```/ms;
my $application = q{
	CREATE SCHEMA app;
	-- without foreign keys, whose order --data-only does not keep
	CREATE TABLE app.organizations (id uuid PRIMARY KEY, name text NOT NULL);
	CREATE TABLE app.users (id uuid PRIMARY KEY, name text NOT NULL, email text);
	CREATE TABLE app.members (organization_id uuid, user_id uuid, role text NOT NULL, PRIMARY KEY (organization_id, user_id));
} . $triggers;
my $acme = 'ac3e0000-0000-4000-8000-000000000001';
my $alice = 'a11ce000-0000-4000-8000-000000000003';
my $bob = 'b0b00000-0000-4000-8000-000000000004';

$node->safe_psql('postgres', "CREATE DATABASE source; CREATE ROLE apitoken_sync NOLOGIN; CREATE ROLE regress_apitoken_backend LOGIN; CREATE ROLE regress_apitoken_gone");
$node->safe_psql('source', qq{
	CREATE EXTENSION apitoken;
	GRANT SELECT ON apitoken.users TO regress_apitoken_gone;
	SELECT apitoken.allow('regress_apitoken_gone', 'directory');
	SELECT apitoken.allow('apitoken_sync', 'directory'), apitoken.allow('regress_apitoken_backend', 'act', 'verify', 'manage');
	$application
	UPDATE apitoken.roles SET permissions = '{article:*,token:*}' WHERE name = 'admin';
	INSERT INTO apitoken.roles (name, permissions) VALUES ('auditor', '{*:read}');
	INSERT INTO app.organizations VALUES ('$acme', 'Acme');
	INSERT INTO app.users VALUES ('$alice', 'Alice', 'alice\@example.com'), ('$bob', 'Bob', NULL);
	INSERT INTO app.members VALUES ('$acme', '$alice', 'admin'), ('$acme', '$bob', 'developer');
	UPDATE apitoken.users SET role = 'developer' WHERE id = '$bob';
	UPDATE apitoken.organizations SET idle_timeout = '90 days' WHERE id = '$acme';
});
my %token = create_each($node, {
	admin => "'$acme', role => 'admin'",
	developer => "'$acme'",
	auditor => "'$acme', role => 'auditor'",
	alice => "user_id => '$alice'",
	bob => "user_id => '$bob'",
	revoked => "'$acme'",
}, database => 'source');
$node->safe_psql('source', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked'});

# What a token may do, and everything that a restore must bring.
sub verdicts
{
	my ($db) = @_;
	return run(join('', map {
		my $token = $token{$_};
		map { "SELECT verdict || ' ' || permissions::text FROM apitoken.verify('$token', $_);" }
			"'article:read', '$acme'", "'page:delete', '$acme'", "'page:delete'" } sort keys %token), database => $db, options => '-c default_transaction_read_only=on');
}
my $rows = join ' UNION ALL ', map { "SELECT '$_: ' || t::text FROM $_ t" } qw(app.organizations app.users app.members apitoken.organizations
	apitoken.users apitoken.memberships apitoken.roles apitoken_internal.token_records apitoken.token_usage apitoken.events);
sub rows
{
	my ($db) = @_;
	return $node->safe_psql($db, "SELECT r FROM ($rows UNION ALL SELECT 'stored: ' || s::text FROM ONLY apitoken_internal.role_records s) a (r) ORDER BY 1");
}
my $verdicts = verdicts('source');
my $before = rows('source');
is(run(verdict($token{admin}, ", 'page:read', '$acme'"), database => 'source'), 'permission_refused', 'an admin that was cut down');
like($before, qr/^stored: \(admin,"Everything, tokens included","\{article:\*,token:\*\}",\)\nstored: \(auditor,,\{\*:read\},\)\nstored: \(developer,.*\)$/m, 'the roles');

sub same
{
	my ($db, $what) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(rows($db), $before, "$what: every row");
	is(verdicts($db), $verdicts, "$what: every token may do what it could");
}

# A new database, in which SQL has been run.
my $databases = 0;
sub database
{
	my ($sql) = @_;
	my $db = 'd' . ++$databases;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, $sql) if $sql;
	return $db;
}
sub restore
{
	my ($db, $what, @arguments) = @_;
	command_ok([ 'pg_restore', '--exit-on-error', '-d', $to->($db), @arguments ], $what);
}
sub restore_sql
{
	my ($db, $what, $file, %how) = @_;
	local $ENV{PGOPTIONS} = $how{replica} ? '-c session_replication_role=replica' : '';
	command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $to->($db), '-f', $file ], $what);
}
my @dump = ('pg_dump', '-d', $to->('source'));
command_ok([ @dump, '-Fd', '-f', "$place/dump" ], 'pg_dump -Fd');
command_ok([ @dump, '-f', "$place/plain.sql" ], 'pg_dump');
command_ok([ @dump, '--clean', '--if-exists', '-f', "$place/clean.sql" ], 'pg_dump --clean --if-exists');
command_ok([ @dump, '--inserts', '-f', "$place/inserts.sql" ], 'pg_dump --inserts');
command_ok([ @dump, '--data-only', '-f', "$place/data.sql" ], 'pg_dump --data-only');
command_ok([ @dump, '--data-only', '--disable-triggers', '-f', "$place/data_quiet.sql" ], 'pg_dump --data-only --disable-triggers');
command_ok([ @dump, '--data-only', '--inserts', '--on-conflict-do-nothing', '-f', "$place/data_inserts.sql" ], 'pg_dump --data-only --inserts --on-conflict-do-nothing');

# ----- schema and data together -----------------------------------------------------

my $db = database();
restore($db, 'pg_restore', "$place/dump");
same($db, 'all');
restore($db = database(), 'pg_restore --jobs', '-j', '4', "$place/dump");
same($db, 'in parallel');
restore_sql($db = database(), 'plain', "$place/plain.sql");
same($db, 'plain');
restore_sql($db = database(), 'plain, as a replica', "$place/plain.sql", replica => 1);
same($db, 'plain, as a replica');
restore_sql($db = database(), 'inserts', "$place/inserts.sql");
same($db, 'inserts');
restore_sql($db, 'cleaned and restored over itself', "$place/clean.sql");
same($db, 'over itself');
restore($db, 'pg_restore --clean --if-exists', '--clean', '--if-exists', "$place/dump");
same($db, 'cleaned by pg_restore');

# ----- the schema, then the data ------------------------------------------------------

$db = database();
restore($db, "pg_restore --section=$_", "--section=$_", "$place/dump") foreach qw(pre-data data post-data);
same($db, 'by sections');
foreach my $how ([], ['--disable-triggers'], [ '-j', '4' ], [ '-j', '4', '--disable-triggers' ])
{
	my $what = "--data-only @$how";
	restore($db = database(), 'pg_restore --schema-only', '--schema-only', "$place/dump");
	restore($db, "pg_restore $what", '--data-only', @$how, "$place/dump");
	same($db, $what);
}
# where the extension was made by hand
my $present = "CREATE EXTENSION apitoken; $application";
foreach my $how ([], ['--disable-triggers'], [ '-j', '4', '--disable-triggers' ])
{
	restore($db = database($present), "extension present, --data-only @$how", '--data-only', @$how, "$place/dump");
	same($db, "extension present, --data-only @$how");
}
foreach my $file (qw(data data_quiet data_inserts))
{
	restore_sql($db = database($present), $file, "$place/$file.sql");
	same($db, $file);
	restore_sql($db = database($present), "$file, as a replica", "$place/$file.sql", replica => 1);
	same($db, "$file, as a replica");
}
# a second time over live data: rows that exist stay as they are
restore_sql($db, 'data_inserts over a live database', "$place/data_inserts.sql");
same($db, 'over a live database');
# where the built-in roles were in use already
restore($db = database("$present UPDATE apitoken.roles SET permissions = '{x:y}' WHERE name IN ('admin', 'developer')"),
	'where built-in roles were changed', '--data-only', "$place/dump");
same($db, 'where built-in roles were changed');

# ----- piece by piece: what is missing gives no rights --------------------------------

foreach my $how ([], ['--disable-triggers'])
{
	my $what = join ' ', 'pieces', @$how;
	$db = database($present);
	foreach my $table (qw(token_records organizations memberships users role_records token_usage token_days events))
	{
		restore($db, "$what: $table", '--data-only', @$how, '-t', $table, '-n', $table =~ /records|days/ ? 'apitoken_internal' : 'apitoken', "$place/dump");
		unlike(run(join('', map { verdict($token{$_}, ", 'page:delete', '$acme'") } qw(admin alice)), database => $db, options => '-c default_transaction_read_only=on'),
			qr/valid|ERROR/, "$what: an admin who was cut down has no more rights after $table");
	}
	restore($db, "$what: $_", '--data-only', @$how, '-n', 'app', '-t', $_, "$place/dump") foreach qw(organizations users members);
	same($db, $what);
}

# ----- and the restored database goes on -----------------------------------------------

$db = database($present);
restore($db, 'once more', '--data-only', '--disable-triggers', "$place/dump");
is(run(qq{
		SELECT apitoken.allow('apitoken_sync', 'directory') IS NULL;
		UPDATE apitoken.roles SET description = 'mine' WHERE name = 'admin' RETURNING permissions;
		SELECT name, description FROM apitoken.roles WHERE name = 'admin';
		INSERT INTO app.users VALUES ('ca201000-0000-4000-8000-000000000005', 'Carol');
		INSERT INTO app.members VALUES ('$acme', 'ca201000-0000-4000-8000-000000000005', 'developer');
		SELECT count(*) FROM apitoken.memberships;
		DELETE FROM app.users WHERE name = 'Alice';
	}, database => $db) . ' ' . run(verdict($token{alice}), database => $db),
	'f {article:*,token:*} admin|mine 3 revoked', 'the directory follows the application');

# ----- without privileges, where a role is missing --------------------------------------

$node->safe_psql($_, 'DROP OWNED BY regress_apitoken_gone') foreach 'source', map { "d$_" } 1 .. $databases;
$node->safe_psql('source', 'DROP ROLE regress_apitoken_gone');
restore($db = database(), 'pg_restore --no-privileges', '--single-transaction', '--no-privileges', '--no-owner', "$place/dump");
same($db, 'without privileges');
# another role of this name does not keep what that one had
is(run(q{
		CREATE ROLE regress_apitoken_gone;
		SELECT apitoken.allow('regress_apitoken_gone', 'directory');
		SELECT apitoken.disallow('regress_apitoken_gone', 'directory');
		SELECT has_table_privilege('regress_apitoken_gone', 'apitoken.users', 'SELECT');
		DROP ROLE regress_apitoken_gone;
	}, database => $db), ' f', 'a new role of the same name');

# ----- an unused built-in role is shown, and can be changed -----------------------------

$db = database('CREATE EXTENSION apitoken');
is(run(q{
		SELECT name, permissions FROM apitoken.roles ORDER BY 1;
		SELECT count(*) FROM apitoken_internal.role_records;
		BEGIN; UPDATE apitoken.roles SET permissions = '{a:b}' WHERE name = 'admin' RETURNING name; SELECT name, permissions FROM apitoken.roles ORDER BY 1; ROLLBACK;
		SET session_replication_role = replica;
		UPDATE apitoken.roles SET permissions = '{a:b}' WHERE name = 'admin';
		RESET session_replication_role;
		SELECT r FROM ONLY apitoken_internal.role_records r;
		SELECT name, permissions FROM apitoken.roles ORDER BY 1;
		DELETE FROM apitoken.roles; DELETE FROM apitoken.roles WHERE name = 'developer'; UPDATE apitoken.roles SET name = 'x' WHERE name = 'developer';
		INSERT INTO apitoken_internal.built_in_roles VALUES ('mine', '', '{*}');
		SELECT count(*) FROM apitoken.roles;
	}, database => $db),
	'admin|{*} developer|{*:read,*:list,*:write,*:create,*:update,*:delete} 2'
	  . ' admin admin|{a:b} developer|{*:read,*:list,*:write,*:create,*:update,*:delete}'
	  . ' (admin,"Everything, tokens included",{a:b},) admin|{a:b} developer|{*:read,*:list,*:write,*:create,*:update,*:delete} 2'
	  . ' [ERROR: 42501 ERROR: 42501 ERROR: 42501]',
	'built-in roles that nobody has used');

$node->stop;
no_crash($node);
done_testing();
