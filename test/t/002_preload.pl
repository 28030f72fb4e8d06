# Settings that come from outside the transaction, the fixed identity, and
# READ ONLY: with a plain CREATE EXTENSION, with session_preload_libraries, and
# with shared_preload_libraries.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('preload');
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

$node->safe_psql('postgres', 'CREATE DATABASE app');
$node->safe_psql('app', q{
	CREATE EXTENSION apitoken;
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
my $token = create($node, 't', q{user_id => 'alice'}, database => 'app');
my $ro = create($node, 'ro', q{user_id => 'alice', access => 'read_only'}, database => 'app');

my $form;
run_on($node, database => 'app', user => 'regress_apitoken_backend');

sub check
{
	my ($sql, $expected, $label, %other) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(run($sql, %other), $expected, "$form: $label");
}

my $who = q{SELECT coalesce(apitoken.current_user_id(), 'nobody');};
my $load = 'SELECT apitoken.whoami() IS NOT NULL;';

foreach ('plain', 'session', 'shared')
{
	$form = $_;
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

	check($who, 'nobody', 'a new session is anonymous');

	# ---- values from outside the transaction never count

	my @by = (options => '-c apitoken.user_id=alice');
	check($who, 'nobody', 'user_id by PGOPTIONS', @by);
	check("BEGIN; $who COMMIT;", 'nobody', 'user_id by PGOPTIONS, in a transaction', @by);
	check("BEGIN; SAVEPOINT s; SET LOCAL apitoken.user_id = 'bob'; ROLLBACK TO s; $who COMMIT;", 'nobody', 'user_id by PGOPTIONS, after ROLLBACK TO', @by);
	check("BEGIN; SET LOCAL apitoken.user_id = 'bob'; RESET apitoken.user_id; SHOW apitoken.user_id; $who COMMIT;", 'alice nobody', 'user_id by PGOPTIONS, after RESET', @by);
	check("BEGIN; SET LOCAL apitoken.user_id = 'bob'; $who COMMIT; $who", 'bob nobody', 'user_id by PGOPTIONS gives way, and does not come after', @by);
	check("$load DISCARD ALL; SHOW apitoken.user_id; $who", 't alice nobody', 'user_id by PGOPTIONS, after DISCARD ALL', @by);
	@by = (options => "-c apitoken.token=$token");
	check($who, 'nobody', 'token by PGOPTIONS', @by);
	check("BEGIN; $who COMMIT;", 'nobody', 'token by PGOPTIONS, in a transaction', @by);
	check("$load SHOW apitoken.token; SELECT count(*) FROM pg_settings WHERE '$token' IN (setting, reset_val, boot_val);", 't *** 0', 'it is not shown', @by);
	check("BEGIN; $who COMMIT;", 'nobody', 'garbage by PGOPTIONS is no error, since it does not count', options => '-c apitoken.token=garbage');

	foreach my $target ('ROLE regress_apitoken_backend', 'DATABASE app', 'ROLE regress_apitoken_backend IN DATABASE app')
	{
		foreach my $setting ([ 'user_id', 'alice' ], [ 'token', $token ])
		{
			my ($name, $value) = @$setting;
			my $by = "$name by ALTER $target";

			# a superuser may set a parameter that no library has defined yet
			$node->safe_psql('app', "SELECT apitoken.whoami(); ALTER $target SET apitoken.$name = '$value'");
			check("$who BEGIN; $who SAVEPOINT s; $who ROLLBACK TO s; $who COMMIT;", 'nobody nobody nobody nobody', $by);
			check("BEGIN; SET LOCAL apitoken.user_id = 'carol'; SET LOCAL apitoken.token = ''; $who COMMIT; $who", 'carol nobody', "$by gives way to a value of the transaction");
			check("BEGIN; SET LOCAL apitoken.$name = 'x'; RESET apitoken.$name; $who COMMIT; $who", 'nobody nobody', "$by does not count by RESET either");
			$node->safe_psql('app', "ALTER $target RESET apitoken.$name");
		}
	}

	# ---- a value set before the library was loaded counts in its transaction only

	my $alice = "SET LOCAL apitoken.user_id = 'alice';";
	check("BEGIN; $alice $who COMMIT; $who", 'alice nobody', 'SET LOCAL as the first statement');
	check("BEGIN; SET apitoken.user_id = 'alice'; $who COMMIT; $who", 'alice nobody', 'SET in a transaction as the first statement');
	check("BEGIN; SET apitoken.user_id = 'alice'; COMMIT; $who BEGIN; $who COMMIT;", 'nobody nobody', 'SET in an earlier transaction');
	like(run("SET apitoken.user_id = 'alice'; BEGIN; $who COMMIT; $who"), qr/^nobody nobody( \[WARNING: 25P01\])?$/, "$form: SET before the transaction");
	check("BEGIN; SAVEPOINT s; $alice RELEASE s; $who COMMIT; $who", 'alice nobody', 'SET LOCAL in a released savepoint');
	check("BEGIN; SAVEPOINT s; $alice ROLLBACK TO s; $who COMMIT;", 'nobody', 'SET LOCAL rolled back');
	check("BEGIN; $alice SAVEPOINT s; SET LOCAL apitoken.user_id = 'bob'; ROLLBACK TO s; $who COMMIT;", 'alice', 'SET LOCAL over SET LOCAL, rolled back');
	check("BEGIN; $alice SAVEPOINT s; $who ROLLBACK TO s; $who COMMIT; $who", 'alice alice nobody', 'loaded in a savepoint that is rolled back');
	check("BEGIN; SET LOCAL apitoken.token = '$token'; $who COMMIT; $who", 'alice nobody', 'a token as the first statement');
	check("BEGIN; SET LOCAL apitoken.token = 'garbage'; $who ROLLBACK;", '[ERROR: 28000]', 'a bad token as the first statement');

	# ---- roles that lack the capability

	@by = (user => 'regress_apitoken_client');
	check("BEGIN; $alice $who ROLLBACK;", '[ERROR: 42501]', 'no capability act', @by);
	check($who, 'nobody', 'no capability act, PGOPTIONS', @by, options => '-c apitoken.user_id=alice');

	# ---- the fixed identity: one expression gives up the role and changes the user id

	my $forgery = "set_config('role', 'none', true), set_config('apitoken.user_id', 'admin', true)";
	my $forge = "SELECT $forgery";
	my $nested = "query_to_xml(\$q\$$forge\$q\$, true, true, '') IS NOT NULL";
	my $scoped = "BEGIN; SET LOCAL ROLE regress_apitoken_weak; $alice";
	# the identity is fixed as soon as the extension was called in the session
	foreach my $before ($preloaded ? ('', $who) : ($who))
	{
		foreach my $case (
			[ 'in one expression', "$forge, apitoken.current_user_id();", '' ],
			[ 'in the next statement', "$forge; $who", 'none|admin ' ],
			[ 'by query_to_xml', "SELECT $nested; $who", 't ' ],
			[ 'by query_to_xml in one statement', "SELECT $nested, query_to_xml('SELECT apitoken.current_user_id()', true, true, '') IS NOT NULL;", '' ],
			[ 'in a DO block', "DO \$d\$BEGIN PERFORM $forgery; PERFORM apitoken.current_user_id(); END\$d\$;", '' ],
			[ 'after a savepoint took it back', "SAVEPOINT s; SELECT 1; ROLLBACK TO s; $forge, apitoken.current_user_id();", '1 ' ])
		{
			my ($name, $sql, $printed) = @$case;

			check("$before $scoped $sql ROLLBACK;", ($before ? 'nobody ' : '') . $printed . '[ERROR: 25001]',
				'fixed ' . ($before ? 'after a call' : 'at once') . ", $name");
		}
	}
	# The limit of the plain form: before the library is loaded, nothing notices that
	# the value changed, so the last value counts.
	check("$scoped $forge, apitoken.current_user_id(); ROLLBACK;", 'none|admin|admin', 'not fixed before the first call of a session') if !$preloaded;
	# A call of act_as() or authenticate() fixes the identity in every form.
	check("BEGIN; SELECT apitoken.act_as('alice'); $forge, apitoken.current_user_id(); ROLLBACK;", 'alice [ERROR: 25001]', 'fixed after act_as');
	check("BEGIN; SELECT user_id FROM apitoken.authenticate('$token'); $forge, apitoken.current_user_id(); ROLLBACK;", 'alice [ERROR: 25001]', 'fixed after authenticate');

	# ---- a read-only token

	my $write = 'INSERT INTO work VALUES (1);';
	my $authenticate = "SELECT user_id FROM apitoken.authenticate('$ro');";
	my $set = "SET LOCAL apitoken.token = '$ro';";
	check("BEGIN; $authenticate $write ROLLBACK;", 'alice [ERROR: 25006]', 'READ ONLY after authenticate');
	check("BEGIN; $authenticate SELECT nextval('numbers'); ROLLBACK;", 'alice [ERROR: 25006]', 'READ ONLY after authenticate, nextval');
	check("BEGIN; SAVEPOINT s; $authenticate RELEASE s; $write ROLLBACK;", 'alice [ERROR: 25006]', 'READ ONLY after authenticate and RELEASE');
	check("BEGIN; $set $who $write ROLLBACK;", 'alice [ERROR: 25006]', 'READ ONLY by the setting, after a call');
	if ($preloaded)
	{
		check("BEGIN; $set $write ROLLBACK;", '[ERROR: 25006]', 'READ ONLY by the setting, from the first statement');
		check("BEGIN; $set SELECT nextval('numbers'); ROLLBACK;", '[ERROR: 25006]', 'READ ONLY by the setting, nextval');
		check("BEGIN; $set TRUNCATE work; ROLLBACK;", '[ERROR: 25006]', 'READ ONLY by the setting, utility statement');
		check("BEGIN; $set DO \$d\$BEGIN $write END\$d\$; ROLLBACK;", '[ERROR: 25006]', 'READ ONLY by the setting, DO');
		check("BEGIN; SET LOCAL apitoken.token = 'garbage'; SELECT 1; ROLLBACK;", '[ERROR: 28000]', 'a bad token fails the first statement, whatever it is');
	}
	else
	{
		check("BEGIN; $set $write SELECT 1; ROLLBACK;", '1', 'the setting alone says nothing before the first call of a session');
		check("BEGIN; $set $write $who $write ROLLBACK;", 'alice [ERROR: 25006]', 'from the first call on');
	}
	check('SELECT count(*) FROM work; SELECT is_called FROM numbers;', '0 f', 'nothing was written');

	# ---- settings that do not exist

	check("$load SET apitoken.nonsense = 1; SHOW apitoken.nonsense;", 't [ERROR: 42602 ERROR: 42704]', 'an unknown setting is refused once loaded');
	if ($preloaded)
	{
		check('SET apitoken.nonsense = 1;', '[ERROR: 42602]', 'an unknown setting is refused');
	}
	else
	{
		check("SET apitoken.nonsense = 1; $load SHOW apitoken.nonsense;", 't [WARNING: 42602 ERROR: 42704]', 'an unknown setting goes when the library comes');
	}
	# a superuser's setting that another role set before the library defined it
	like(run("SET apitoken.prefix = 'zzz'; $load SHOW apitoken.prefix;"), qr/^t apt \[(WARNING|ERROR): 42501\]$/, "$form: the prefix is not anybody's to set");

	# ---- a database without the extension

	check("SELECT 1; BEGIN; $alice SELECT 2; COMMIT; BEGIN; $set CREATE TEMP TABLE t (n int); SELECT 3; ROLLBACK;", '1 2 3',
		'a database without the extension is left alone', database => 'postgres');

	# ---- a bad prefix in the configuration file is never used

	@by = (user => $superuser);
	$node->append_conf('postgresql.conf', q{apitoken.prefix = 'Not A Prefix'});
	my $mark = log_mark($node);
	$node->restart;
	like(run(q{SELECT apitoken.generate('usr') LIKE 'apt_usr_%'; SHOW apitoken.prefix;}, @by), qr/^t apt( \[WARNING: [^\[\]]*\])?$/,
		"$form: with a bad prefix the default one is used");
	like(log_since($node, $mark), qr/(WARNING|LOG): .*"apitoken\.prefix"/, "$form: which the log tells");
	$node->append_conf('postgresql.conf', q{apitoken.prefix = 'good'});
	$node->reload;
	$node->poll_query_until('app', q{SELECT apitoken.generate('usr') LIKE 'good_usr_%'});
	like(run(q{SELECT apitoken.generate('usr') LIKE 'good_usr_%';}, @by), qr/^t/, "$form: a good one is taken by reload");
	$node->append_conf('postgresql.conf', q{apitoken.prefix = 'Bad'});
	$node->reload;
	like(run(q{SELECT pg_sleep(0.2); SELECT apitoken.generate('usr') ~ '^(good|apt)_usr_';}, @by), qr/ t( |$)/, "$form: a bad one is not taken by reload");
	$node->adjust_conf('postgresql.conf', 'apitoken.prefix', undef);
	$node->restart;
}

# ---- a schema that looks like the extension's, in a database without the extension

$node->safe_psql('postgres', q{
	CREATE DATABASE lure;
	CREATE ROLE regress_apitoken_lurer LOGIN;
	GRANT CREATE ON DATABASE lure TO regress_apitoken_lurer;
});
my $id = $node->safe_psql('app', "SELECT id FROM apitoken.parse('$token')");
# all of its tables, with as many columns, of another type
my $tables = $node->safe_psql('app', q{
	SELECT string_agg(format('CREATE TABLE %s (%s);', c.oid::regclass,
		(SELECT string_agg(CASE WHEN c.relname = 'token_records' AND a.attnum = 1 THEN 'id uuid PRIMARY KEY'
			ELSE format('%I bigint DEFAULT 8', a.attname) END, ', ' ORDER BY a.attnum)
		 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)), ' ')
	FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace)});
is(scalar(() = $tables =~ /CREATE TABLE/g), scalar(() = slurp_file('src/tables/columns.h') =~ /^\tRELATION\(\w+, apitoken\w*, (?!verification|issued_token)/gm) + 2,
	'all tables are copied: those in columns.h, own_privileges and permissions');
is( run(qq{
		CREATE SCHEMA apitoken;
		CREATE SCHEMA apitoken_internal;
		$tables
		INSERT INTO apitoken_internal.token_records (id) VALUES ('$id');
		BEGIN; SET LOCAL apitoken.token = '$token'; SELECT 1; ROLLBACK;
		SELECT 2;
	}, database => 'lure', user => 'regress_apitoken_lurer'),
	'1 2', 'tables that are not the extension\'s are not read');
no_crash($node);

$node->stop;
done_testing();
