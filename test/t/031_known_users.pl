# Users who are deleted do not come back by acting: in sessions that go on, after a
# restore, and with apitoken.require_known_users in the configuration.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('known', conf => 'lock_timeout = 10s');

# app: acts for users and manages their tokens; sync: maintains the directory
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_app LOGIN;
	CREATE ROLE regress_apitoken_sync LOGIN;
	SELECT apitoken.allow('regress_apitoken_app', 'act', 'manage', 'verify');
	SELECT apitoken.allow('regress_apitoken_sync', 'directory');
	INSERT INTO apitoken.organizations (id) VALUES ('acme');
	INSERT INTO apitoken.users (id) VALUES ('19'), ('20'), ('21'), ('22');
	INSERT INTO apitoken.memberships VALUES ('acme', '19', 'admin'), ('acme', 'no row', 'admin');
});
run_on($node, user => 'regress_apitoken_app');
sub sync { return run_as('regress_apitoken_sync', $_[0]); }

my $personal = q{SELECT (apitoken.create_token('t')).id IS NOT NULL;};
my $ours = q{SELECT (apitoken.create_token('t', organization_id => 'acme')).id IS NOT NULL;};
my $may = q{SELECT apitoken.can('a:b'), apitoken.can('a:b', 'acme');};

foreach my $form ('plain', 'session')
{
	$node->safe_psql('postgres', q{ALTER ROLE regress_apitoken_app SET session_preload_libraries = 'apitoken'}) if $form eq 'session';
	$node->safe_psql('postgres', q{INSERT INTO apitoken.users (id) VALUES ('19') ON CONFLICT DO NOTHING;
		INSERT INTO apitoken.memberships VALUES ('acme', '19', 'admin') ON CONFLICT DO NOTHING});

	# ----- a transaction that acts already, when another session deletes the user ---

	foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
	{
		my $session = connection($node, user => 'regress_apitoken_app');

		is(ask($session, "BEGIN ISOLATION LEVEL $level; SELECT apitoken.act_as('19'); $may"), '19 t|t', "$form, $level: the user acts");
		is(sync(q{DELETE FROM apitoken.users WHERE id = '19'}), '', "$form, $level: and is deleted");
		is(ask($session, $may), 'f|f', "$form, $level: then may do nothing");
		is(ask($session, "SAVEPOINT s; $personal"), '[ERROR: 42501]', "$form, $level: makes no personal token");
		is(ask($session, "ROLLBACK TO s; $ours"), '[ERROR: 42501]', "$form, $level: nor one of the organization");
		is(ask($session, "ROLLBACK TO s; SELECT apitoken.act_as('19')"), '[ERROR: 28000]', "$form, $level: nor acts again");
		ask($session, 'ROLLBACK');
		is(ask($session, "BEGIN ISOLATION LEVEL $level; SELECT apitoken.act_as('19'); COMMIT"), '[ERROR: 28000]', "$form, $level: also in the next transaction");
		is(ask($session, "BEGIN; SET LOCAL apitoken.user_id = '19'; SELECT apitoken.current_user_id(); ROLLBACK"), '[ERROR: 28000]', "$form, $level: nor by the setting");
		$session->quit;
		is($node->safe_psql('postgres', q{SELECT count(*) FROM apitoken.users WHERE id = '19'}), '0', "$form, $level: there is no row");
		sync(q{INSERT INTO apitoken.users (id) VALUES ('19'); INSERT INTO apitoken.memberships VALUES ('acme', '19', 'admin')});
		is(run("BEGIN; SELECT apitoken.act_as('19'); $may ROLLBACK;"), '19 t|t', "$form, $level: inserted again, the user acts again");
	}

	# a deletion that is not committed yet: the token waits for it
	my $session = connection($node, user => 'regress_apitoken_sync');

	ask($session, q{BEGIN; DELETE FROM apitoken.users WHERE id = '19'});
	is(run("BEGIN; SELECT apitoken.act_as('19'); $may ROLLBACK;"), '19 t|t', "$form: until it is committed, nothing changes");
	ask($session, 'ROLLBACK');
	$session->quit;

	# users without a row, who were never deleted
	is(run("BEGIN; SELECT apitoken.act_as('no row'); $may ROLLBACK;"), 'no row t|t', "$form: a member without a row acts");
	is(run("BEGIN; SELECT apitoken.act_as('new'); $may $personal ROLLBACK;"), 'new t|f t', "$form: somebody new acts, and makes a token");
}

# ----- a restore remembers -------------------------------------------------------

sync(q{DELETE FROM apitoken.users WHERE id = '20'});
foreach my $how ([ 'whole', [] ], [ 'data only', [ '--data-only', '--disable-triggers' ] ])
{
	my ($name, $options) = @$how;
	my $database = 'restored_' . $name =~ s/\W/_/r;
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/$database.sql";

	$node->command_ok([ 'pg_dump', '-f', $dump, @$options, 'postgres' ], "$name: dump");
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, q{CREATE EXTENSION apitoken;
		SELECT apitoken.allow('regress_apitoken_app', 'act', 'manage')}) if @$options;
	$node->psql($database, "\\i $dump", on_error_stop => 0);
	is(run("BEGIN; SELECT apitoken.act_as('20'); ROLLBACK;", database => $database), '[ERROR: 28000]', "$name: the deleted user is still deleted");
	is(run("BEGIN; SELECT apitoken.act_as('21'); ROLLBACK;", database => $database), '21', "$name: another user is there");
}

# ----- apitoken.require_known_users ----------------------------------------------

$node->append_conf('postgresql.conf', 'apitoken.require_known_users = on');
$node->reload;
$node->poll_query_until('postgres', q{SELECT current_setting('apitoken.require_known_users', true) = 'on'}) or die 'reload';
is(run("BEGIN; SELECT apitoken.act_as('21'); SELECT apitoken.can('a:b'); $personal COMMIT;"), '21 t t', 'required: a known user acts');
is(run("BEGIN; SELECT apitoken.act_as('no row'); ROLLBACK;"), '[ERROR: 28000]', 'a member without a row does not');
is(run("BEGIN; SET LOCAL apitoken.user_id = 'new'; SELECT apitoken.current_user_id(); ROLLBACK;"), '[ERROR: 28000]', 'nor somebody new');
is(run("SET apitoken.require_known_users = off;"), '[ERROR: 42501]', 'a login does not switch it off');
{
	# before the library is loaded, the server takes any value for the setting, and drops it later
	my $answer = run("BEGIN; SELECT apitoken.act_as('new'); ROLLBACK;", options => '-c apitoken.require_known_users=off');

	unlike($answer, qr/^new/, "nor do a client's options");
	like($answer, qr/ERROR: (F0000|28000)/, 'which are an error');
}
{
	my $session = connection($node, user => 'regress_apitoken_app');

	is(ask($session, "BEGIN; SELECT apitoken.act_as('22'); SELECT apitoken.can('a:b')"), '22 t', 'required: the user acts');
	sync(q{DELETE FROM apitoken.users WHERE id = '22'});
	is(ask($session, "SELECT apitoken.can('a:b'), apitoken.whoami()->'suspended'"), 'f|true', 'and when deleted, may do nothing');
	is(ask($session, "SAVEPOINT s; $personal"), '[ERROR: 42501]', 'and makes no token');
	$session->quit;
}

no_crash($node);
$node->stop;
done_testing();
