# What a plain CREATE EXTENSION, session_preload_libraries and
# shared_preload_libraries make of settings that come from outside the
# transaction, of the latch, and of READ ONLY.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('preload');
$node->init;
$node->start;
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

$node->safe_psql('postgres', 'CREATE DATABASE app');
$node->safe_psql('app', q{
	CREATE EXTENSION apitoken CASCADE;
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_client LOGIN;
	CREATE ROLE regress_apitoken_weak;
	GRANT regress_apitoken_weak TO regress_apitoken_backend;
	SELECT apitoken.allow('regress_apitoken_backend', 'act', 'verify', 'use');
	SELECT apitoken.allow('regress_apitoken_client', 'use');
	CREATE TABLE work (n int);
	CREATE SEQUENCE numbers;
	GRANT ALL ON work, numbers TO PUBLIC;
});
my $token = $node->safe_psql('app', q{SELECT token FROM apitoken.create_token('t', user_id => 'alice')});
my $ro = $node->safe_psql('app', q{SELECT token FROM apitoken.create_token('ro', user_id => 'alice', access => 'read_only')});

# Run SQL in a new session; what it printed, and its errors by SQLSTATE.
my $options = '';
my $user = 'regress_apitoken_backend';

sub run
{
	my ($sql, $database) = @_;
	my ($out, $err) = ('', '');

	local $ENV{PGOPTIONS} = $options;
	$node->psql($database // 'app', "\\set VERBOSITY sqlstate\n$sql",
		stdout => \$out, stderr => \$err, on_error_stop => 0,
		extra_params => [ '-U', $user ]);
	$err =~ s/^psql:<stdin>:\d+: //mg;
	$out =~ s/\n+/ /g;
	$err =~ s/\s+/ /g;
	$err =~ s/ $//;
	return join(' ', grep { $_ ne '' } $out, $err eq '' ? '' : "[$err]");
}

my $who = q{SELECT coalesce(apitoken.current_user_id(), 'nobody');};

# The server's log since then, without what was asked.
my $log_position = 0;

sub log_since
{
	my $log = slurp_file($node->logfile);
	my $new = substr($log, $log_position);

	$log_position = length $log;
	return $new;
}

foreach my $form ('plain', 'session', 'shared')
{
	my $preloaded = $form ne 'plain';

	if ($form eq 'session')
	{
		$node->safe_psql('postgres', q{ALTER DATABASE app SET session_preload_libraries = 'apitoken'});
	}
	if ($form eq 'shared')
	{
		$node->safe_psql('postgres', q{ALTER DATABASE app RESET session_preload_libraries});
		$node->append_conf('postgresql.conf', q{shared_preload_libraries = 'apitoken'});
		$node->restart;
	}

	is(run($who), 'nobody', "$form: a new session is anonymous");

	# ---- values from outside the transaction never count

	$options = '-c apitoken.user_id=alice';
	is(run($who), 'nobody', "$form: user_id by PGOPTIONS");
	is(run("BEGIN; $who COMMIT;"), 'nobody', "$form: user_id by PGOPTIONS, in a transaction");
	is(run("BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = 'bob'; ROLLBACK TO s; $who COMMIT;"), 'nobody',
		"$form: user_id by PGOPTIONS, after ROLLBACK TO");
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'bob'; RESET apitoken.user_id; SHOW apitoken.user_id; $who COMMIT;"), 'alice nobody',
		"$form: user_id by PGOPTIONS, after RESET");
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'bob'; $who COMMIT; $who"), 'bob nobody',
		"$form: user_id by PGOPTIONS gives way, and does not come after");
	is(run("SELECT apitoken.whoami() IS NOT NULL; DISCARD ALL; SHOW apitoken.user_id; $who"), 't alice nobody',
		"$form: user_id by PGOPTIONS, after DISCARD ALL");
	$options = "-c apitoken.token=$token";
	is(run($who), 'nobody', "$form: token by PGOPTIONS");
	is(run("BEGIN; $who COMMIT;"), 'nobody', "$form: token by PGOPTIONS, in a transaction");
	is(run("SELECT apitoken.whoami() IS NOT NULL; SHOW apitoken.token; SELECT count(*) FROM pg_settings WHERE '$token' IN (setting, reset_val, boot_val);"),
		't *** 0', "$form: it is not shown");
	$options = '-c apitoken.token=garbage';
	is(run("BEGIN; $who COMMIT;"), 'nobody', "$form: garbage by PGOPTIONS is no error, since it does not count");
	$options = '';

	foreach my $target ('ROLE regress_apitoken_backend', 'DATABASE app', 'ROLE regress_apitoken_backend IN DATABASE app')
	{
		foreach my $setting ([ 'user_id', 'alice' ], [ 'token', $token ])
		{
			my ($name, $value) = @$setting;

			# a superuser may set what no library has defined yet
			$node->safe_psql('app', "SELECT apitoken.whoami(); ALTER $target SET apitoken.$name = '$value'");
			is(run("$who BEGIN; $who SAVEPOINT s; $who ROLLBACK TO s; $who COMMIT;"), 'nobody nobody nobody nobody',
				"$form: $name by ALTER $target");
			is(run("BEGIN; SET LOCAL apitoken.user_id = 'carol'; SET LOCAL apitoken.token = ''; $who COMMIT; $who"), 'carol nobody',
				"$form: $name by ALTER $target gives way to a value of the transaction");
			is(run("BEGIN; SET LOCAL apitoken.$name = 'x'; RESET apitoken.$name; $who COMMIT; $who"), 'nobody nobody',
				"$form: $name by ALTER $target does not count by RESET either");
			$node->safe_psql('app', "ALTER $target RESET apitoken.$name");
		}
	}

	# ---- a value set before the library was loaded counts in its transaction only

	is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; $who COMMIT; $who"), 'alice nobody',
		"$form: SET LOCAL as the first statement");
	is(run("BEGIN; SET apitoken.user_id = 'alice'; $who COMMIT; $who"), 'alice nobody',
		"$form: SET in a transaction as the first statement");
	is(run("BEGIN; SET apitoken.user_id = 'alice'; COMMIT; $who BEGIN; $who COMMIT;"), 'nobody nobody',
		"$form: SET in an earlier transaction");
	like(run("SET apitoken.user_id = 'alice'; BEGIN; $who COMMIT; $who"), qr/^nobody nobody( \[WARNING: 25P01\])?$/,
		"$form: SET before the transaction");
	is(run("BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = 'alice'; RELEASE s; $who COMMIT; $who"), 'alice nobody',
		"$form: SET LOCAL in a released savepoint");
	is(run("BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = 'alice'; ROLLBACK TO s; $who COMMIT;"), 'nobody',
		"$form: SET LOCAL rolled back");
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; SAVEPOINT s; SET LOCAL apitoken.user_id = 'bob'; ROLLBACK TO s; $who COMMIT;"), 'alice',
		"$form: SET LOCAL over SET LOCAL, rolled back");
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; SAVEPOINT s; $who ROLLBACK TO s; $who COMMIT; $who"), 'alice alice nobody',
		"$form: loaded in a savepoint that is rolled back");
	is(run("BEGIN; SET LOCAL apitoken.token = '$token'; $who COMMIT; $who"), 'alice nobody',
		"$form: a token as the first statement");
	is(run("BEGIN; SET LOCAL apitoken.token = 'garbage'; $who ROLLBACK;"), '[ERROR: 28000]',
		"$form: a bad token as the first statement");

	# ---- who lacks the capability

	$user = 'regress_apitoken_client';
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; $who ROLLBACK;"), '[ERROR: 42501]', "$form: no capability act");
	$options = '-c apitoken.user_id=alice';
	is(run($who), 'nobody', "$form: no capability act, PGOPTIONS");
	$options = '';
	$user = 'regress_apitoken_backend';

	# ---- the latch: the role given up and the user id changed in one expression

	my $forge = "SELECT set_config('role', 'none', true), set_config('apitoken.user_id', 'admin', true)";
	my $scoped = "BEGIN; SET LOCAL ROLE regress_apitoken_weak; SET LOCAL apitoken.user_id = 'alice';";
	# the latch is there as soon as the extension was called in the session
	foreach my $before ($preloaded ? ('', "$who ") : ("$who "))
	{
		my $label = $before eq '' ? "$form, at once" : "$form, after a call";
		my $printed = $before eq '' ? '' : 'nobody ';

		is(run("$before$scoped $forge, apitoken.current_user_id(); ROLLBACK;"), "${printed}[ERROR: 25001]",
			"$label: latch, in one expression");
		is(run("$before$scoped $forge; $who ROLLBACK;"), "${printed}none|admin [ERROR: 25001]",
			"$label: latch, in the next statement");
		is(run("$before$scoped SELECT query_to_xml(\$q\$$forge\$q\$, true, true, '') IS NOT NULL; $who ROLLBACK;"), "${printed}t [ERROR: 25001]",
			"$label: latch, by query_to_xml");
		is(run("$before$scoped SELECT query_to_xml(\$q\$$forge\$q\$, true, true, '') IS NOT NULL, query_to_xml('SELECT apitoken.current_user_id()', true, true, '') IS NOT NULL; ROLLBACK;"),
			"${printed}[ERROR: 25001]", "$label: latch, by query_to_xml in one statement");
		is(run("$before$scoped DO \$d\$BEGIN PERFORM set_config('role', 'none', true), set_config('apitoken.user_id', 'admin', true); PERFORM apitoken.current_user_id(); END\$d\$; ROLLBACK;"),
			"${printed}[ERROR: 25001]", "$label: latch, in a DO block");
		is(run("$before$scoped SAVEPOINT s; SELECT 1; ROLLBACK TO s; $forge, apitoken.current_user_id(); ROLLBACK;"),
			"${printed}1 [ERROR: 25001]", "$label: latch, after a savepoint took it back");
	}
	# The plain form's limit: before the library is loaded nobody notices that
	# the value changed, so that the last one counts.
	if (!$preloaded)
	{
		is(run("$scoped $forge, apitoken.current_user_id(); ROLLBACK;"), 'none|admin|admin',
			'plain: no latch before the first call of a session');
	}
	# Called by its own way, the identity is latched in any form.
	is(run("BEGIN; SELECT apitoken.act_as('alice')->>'user_id'; $forge, apitoken.current_user_id(); ROLLBACK;"), 'alice [ERROR: 25001]',
		"$form: latch after act_as");
	is(run("BEGIN; SELECT user_id FROM apitoken.authenticate('$token'); $forge, apitoken.current_user_id(); ROLLBACK;"), 'alice [ERROR: 25001]',
		"$form: latch after authenticate");

	# ---- a read-only token

	is(run("BEGIN; SELECT user_id FROM apitoken.authenticate('$ro'); INSERT INTO work VALUES (1); ROLLBACK;"), 'alice [ERROR: 25006]',
		"$form: READ ONLY after authenticate");
	is(run("BEGIN; SELECT user_id FROM apitoken.authenticate('$ro'); SELECT nextval('numbers'); ROLLBACK;"), 'alice [ERROR: 25006]',
		"$form: READ ONLY after authenticate, nextval");
	is(run("BEGIN; SAVEPOINT s; SELECT user_id FROM apitoken.authenticate('$ro'); RELEASE s; INSERT INTO work VALUES (1); ROLLBACK;"), 'alice [ERROR: 25006]',
		"$form: READ ONLY after authenticate and RELEASE");
	is(run("BEGIN; SET LOCAL apitoken.token = '$ro'; $who INSERT INTO work VALUES (1); ROLLBACK;"), 'alice [ERROR: 25006]',
		"$form: READ ONLY by the setting, after a call");
	if ($preloaded)
	{
		is(run("BEGIN; SET LOCAL apitoken.token = '$ro'; INSERT INTO work VALUES (1); ROLLBACK;"), '[ERROR: 25006]',
			"$form: READ ONLY by the setting, from the first statement");
		is(run("BEGIN; SET LOCAL apitoken.token = '$ro'; SELECT nextval('numbers'); ROLLBACK;"), '[ERROR: 25006]',
			"$form: READ ONLY by the setting, nextval");
		is(run("BEGIN; SET LOCAL apitoken.token = '$ro'; TRUNCATE work; ROLLBACK;"), '[ERROR: 25006]',
			"$form: READ ONLY by the setting, utility statement");
		is(run("BEGIN; SET LOCAL apitoken.token = '$ro'; DO \$d\$BEGIN INSERT INTO work VALUES (1); END\$d\$; ROLLBACK;"), '[ERROR: 25006]',
			"$form: READ ONLY by the setting, DO");
		is(run("BEGIN; SET LOCAL apitoken.token = 'garbage'; SELECT 1; ROLLBACK;"), '[ERROR: 28000]',
			"$form: a bad token fails the first statement, whatever it is");
	}
	else
	{
		is(run("BEGIN; SET LOCAL apitoken.token = '$ro'; INSERT INTO work VALUES (1); SELECT 1; ROLLBACK;"), '1',
			'plain: the setting alone says nothing before the first call of a session');
		is(run("BEGIN; SET LOCAL apitoken.token = '$ro'; INSERT INTO work VALUES (1); $who INSERT INTO work VALUES (1); ROLLBACK;"), 'alice [ERROR: 25006]',
			'plain: from the first call on');
	}
	is(run('SELECT count(*) FROM work; SELECT is_called FROM numbers;'), '0 f', "$form: nothing was written");

	# ---- settings that there are not

	is(run("SELECT apitoken.whoami() IS NOT NULL; SET apitoken.nonsense = 1; SHOW apitoken.nonsense;"),
		't [ERROR: 42602 ERROR: 42704]', "$form: an unknown setting is refused once loaded");
	if ($preloaded)
	{
		is(run('SET apitoken.nonsense = 1;'), '[ERROR: 42602]', "$form: an unknown setting is refused");
	}
	else
	{
		is(run("SET apitoken.nonsense = 1; SELECT apitoken.whoami() IS NOT NULL; SHOW apitoken.nonsense;"),
			't [WARNING: 42602 ERROR: 42704]', 'plain: an unknown setting goes when the library comes');
	}
	# a setting that only superusers may set, set by another before it was known
	like(run("SET apitoken.prefix = 'zzz'; SELECT apitoken.whoami() IS NOT NULL; SHOW apitoken.prefix;"),
		qr/^t apt \[(WARNING|ERROR): 42501\]$/, "$form: the prefix is not anybody's to set");

	# ---- a database without the extension

	is(run("SELECT 1; BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT 2; COMMIT; BEGIN; SET LOCAL apitoken.token = '$ro'; CREATE TEMP TABLE t (n int); SELECT 3; ROLLBACK;", 'postgres'),
		'1 2 3', "$form: a database without the extension is left alone");

	# ---- a bad prefix in the configuration file is never taken

	$node->append_conf('postgresql.conf', q{apitoken.prefix = 'Not A Prefix'});
	log_since();
	$node->restart;
	$user = $superuser;
	like(run(q{SELECT apitoken.generate('usr') LIKE 'apt_usr_%'; SHOW apitoken.prefix;}), qr/^t apt( \[WARNING: [^\[\]]*\])?$/,
		"$form: with a bad prefix the default one is used");
	like(log_since(), qr/(WARNING|LOG): .*"apitoken\.prefix"/, "$form: which the log tells");
	$node->append_conf('postgresql.conf', q{apitoken.prefix = 'good'});
	$node->reload;
	$node->poll_query_until('app', q{SELECT apitoken.generate('usr') LIKE 'good_usr_%'});
	like(run(q{SELECT apitoken.generate('usr') LIKE 'good_usr_%';}), qr/^t/, "$form: a good one is taken by reload");
	$node->append_conf('postgresql.conf', q{apitoken.prefix = 'Bad'});
	$node->reload;
	like(run(q{SELECT pg_sleep(0.2); SELECT apitoken.generate('usr') ~ '^(good|apt)_usr_';}), qr/ t( |$)/, "$form: a bad one is not taken by reload");
	$user = 'regress_apitoken_backend';
	$node->adjust_conf('postgresql.conf', 'apitoken.prefix', undef);
	$node->restart;
}

# ---- a schema that looks like the extension's, in a database where it is not

$node->safe_psql('postgres', q{
	CREATE DATABASE lure;
	CREATE ROLE regress_apitoken_lurer LOGIN;
	GRANT CREATE ON DATABASE lure TO regress_apitoken_lurer;
});
my $id = $node->safe_psql('app', "SELECT id FROM apitoken.parse('$token')");
$user = 'regress_apitoken_lurer';
my $columns = join(', ', map { "c$_ bigint DEFAULT 8" } 2 .. 26);
is( run(qq{
		CREATE SCHEMA apitoken;
		CREATE TABLE apitoken.organizations (); CREATE TABLE apitoken.users (); CREATE TABLE apitoken.roles ();
		CREATE TABLE apitoken.memberships (); CREATE TABLE apitoken.token_usage (); CREATE TABLE apitoken.events ();
		CREATE TABLE apitoken.token_records (id uuid PRIMARY KEY, $columns);
		INSERT INTO apitoken.token_records (id) VALUES ('$id');
		BEGIN; SET LOCAL apitoken.token = '$token'; SELECT 1; ROLLBACK;
		SELECT 2;
	}, 'lure'),
	'1 2', 'tables that are not the extension\'s are not read');
unlike(slurp_file($node->logfile), qr/terminated by signal/, 'no server process crashed');

$node->stop;
done_testing();
