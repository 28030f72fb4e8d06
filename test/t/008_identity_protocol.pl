# The identity with other ways to talk to the server than simple queries: prepared
# statements of the extended protocol whose plans outlive roles and identities,
# pipelines, two-phase commit, and parallel query wherever possible.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('protocol', conf => 'max_prepared_transactions = 5');
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
my $parallel = $node->safe_psql('postgres', q{SELECT name FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode') ORDER BY 1 LIMIT 1});

$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_login LOGIN;
	CREATE ROLE regress_apitoken_weak;
	CREATE ROLE regress_apitoken_above BYPASSRLS;
	GRANT regress_apitoken_weak, regress_apitoken_above TO regress_apitoken_login;
	SELECT apitoken.allow('regress_apitoken_login', 'act', 'verify', 'use');
	INSERT INTO apitoken.organizations (id) VALUES ('1'), ('2'), ('3'), ('4');
	INSERT INTO apitoken.users (id) VALUES ('1'), ('2'), ('3'), ('4');
	INSERT INTO apitoken.memberships SELECT id, id, 'developer' FROM apitoken.users;
	-- organization n has n rows
	CREATE TABLE article (organization_id bigint);
	INSERT INTO article SELECT o FROM generate_series(1, 4) o, generate_series(1, o);
	ALTER TABLE article ENABLE ROW LEVEL SECURITY;
	CREATE POLICY p ON article USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read')::bigint)));
	GRANT ALL ON article TO regress_apitoken_login, regress_apitoken_weak, regress_apitoken_above;
	-- a wrong answer ends pgbench
	CREATE FUNCTION expect(got bigint, expected bigint, what text) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF got IS DISTINCT FROM expected THEN
			RAISE EXCEPTION '%: got %, expected %', what, got, expected;
		END IF;
	END
	$$;
	CREATE TABLE secret (id int PRIMARY KEY, token text);
	INSERT INTO secret SELECT n, (apitoken.create_token('t', user_id => n::text, access => CASE WHEN n % 2 = 1 THEN 'read_only' END)).token
		FROM generate_series(1, 4) n;
	CREATE FUNCTION token_of(n bigint) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT token FROM secret WHERE id = n';
	CREATE TABLE work (n int);
	GRANT ALL ON work TO PUBLIC;
});

# ---- prepared statements that keep their plans from one identity to the next

my $count = 'SELECT count(*) AS rows FROM article \gset' . "\n";

# A script that sets an identity, reads its rows, and ends the identity.
sub visit
{
	my ($what, $appears, $goes) = @_;

	return q{
		\set n random(1, 4)
		BEGIN;
		SELECT FROM } . $appears . ";\n$count SELECT expect(:rows, :n, '$what');\n" . ($goes // 'COMMIT') . ";\n";
}

my %scripts = (
	'act_as' => visit('act_as', 'apitoken.act_as((:n)::text)'),
	'setting' => visit('setting', q{set_config('apitoken.user_id', (:n)::text, true)}),
	'setting and role' => visit('setting and role', q{set_config('apitoken.user_id', (:n)::text, true) u, set_config('role', 'regress_apitoken_weak', true) r}),
	'session-wide setting' => visit('session-wide setting', q{set_config('apitoken.user_id', (:n)::text, false)})
		. "$count SELECT expect(:rows, 0, 'after a session-wide setting');\n",
	'token' => visit('token', q{set_config('apitoken.token', token_of(:n), true)}),
	'authenticate' => visit('authenticate', 'apitoken.authenticate(token_of(:n))', 'ROLLBACK'),
	'nobody' => q{
		BEGIN;
		} . $count . q{
		SELECT expect(:rows, 0, 'nobody');
		COMMIT;
		} . $count . q{
		SELECT expect(:rows, 0, 'nobody, outside');
	},
	'a role above the policies' => q{
		BEGIN;
		SET LOCAL ROLE regress_apitoken_above;
		} . $count . q{
		SELECT expect(:rows, 10, 'above');
		COMMIT;
	},
	'writing' => q{
		\set n random(1, 4)
		BEGIN;
		SELECT FROM apitoken.authenticate(token_of(:n));
		SELECT expect((current_setting('transaction_read_only') = 'on')::int, :n % 2, 'read only');
		ROLLBACK;
		BEGIN;
		INSERT INTO work VALUES (1);
		ROLLBACK;
	},
	'savepoint' => q{
		\set n random(1, 4)
		\set m random(1, 4)
		BEGIN;
		SAVEPOINT s;
		SELECT FROM apitoken.act_as((:n)::text);
		} . $count . q{
		SELECT expect(:rows, :n, 'savepoint');
		ROLLBACK TO s;
		} . $count . q{
		SELECT expect(:rows, 0, 'after ROLLBACK TO');
		SELECT FROM apitoken.act_as((:m)::text);
		} . $count . q{
		SELECT expect(:rows, :m, 'the second');
		COMMIT;
	},
);
my @files;
foreach my $name (sort keys %scripts)
{
	my $file = "$PostgreSQL::Test::Utils::tmp_check/" . ($name =~ s/\W/_/gr) . '.sql';

	append_to_file($file, $scripts{$name} =~ s/^\s+//gmr);
	push @files, '-f', $file;
}

sub bench_identities
{
	my ($mode, $label, $files, $user) = @_;
	my ($out, $err) = ('', '');
	my @command = ('pgbench', '-n', '-c', '4', '-t', '150', '-M', $mode, '-h', $node->host, '-p', $node->port,
		'-U', $user, @$files, 'postgres');
	my $ok = run_log(\@command, '>', \$out, '2>', \$err);

	# in some versions pgbench succeeds although a client failed
	ok($ok && $err !~ /got \S+, expected|aborted|ERROR/ && $out =~ m{transactions actually processed: 600/600}, "$label, $mode")
	  or diag($out, $err);
}

foreach my $form ('plain', 'session')
{
	$node->safe_psql('postgres', q{ALTER ROLE regress_apitoken_login SET session_preload_libraries = 'apitoken'}) if $form eq 'session';
	foreach my $plan ('auto', 'force_generic_plan', 'force_custom_plan')
	{
		$node->safe_psql('postgres', "ALTER ROLE regress_apitoken_login SET plan_cache_mode = $plan");
		bench_identities('prepared', "$form: many identities, plans $plan", \@files, 'regress_apitoken_login');
	}
	bench_identities('extended', "$form: many identities", \@files, 'regress_apitoken_login');
	bench_identities('simple', "$form: many identities", \@files, 'regress_apitoken_login');

	# use parallel plans wherever possible
	$node->safe_psql('postgres', "ALTER ROLE regress_apitoken_login SET $parallel = on");
	bench_identities('prepared', "$form: many identities, $parallel", \@files, 'regress_apitoken_login');
	$node->safe_psql('postgres', "ALTER ROLE regress_apitoken_login RESET $parallel");
}

# The control: a wrong answer does end pgbench.
{
	my $file = "$PostgreSQL::Test::Utils::tmp_check/wrong.sql";
	append_to_file($file, "$count SELECT expect(:rows, 1, 'wrong');\n" =~ s/^\s+//gmr);
	my ($out, $err) = ('', '');
	run_log([ 'pgbench', '-n', '-t', '1', '-h', $node->host, '-p', $node->port, '-U', 'regress_apitoken_login', '-f', $file, 'postgres' ],
		'>', \$out, '2>', \$err);
	like($err, qr/got 0, expected 1/, 'a wrong answer is told');
}

# ---- pipelines

my $pipeline = "$PostgreSQL::Test::Utils::tmp_check/pipeline.sql";
append_to_file($pipeline, q{
	\set n random(1, 4)
	\startpipeline
	BEGIN;
	SELECT FROM apitoken.act_as((:n)::text);
	SELECT expect((SELECT count(*) FROM article), :n, 'pipeline');
	COMMIT;
	SELECT expect((SELECT count(*) FROM article), 0, 'pipeline, after');
	BEGIN;
	SELECT FROM set_config('apitoken.token', token_of(:n), true);
	SELECT expect((SELECT count(*) FROM article), :n, 'pipeline, token');
	ROLLBACK;
	SELECT expect((SELECT count(*) FROM article), 0, 'pipeline, after the token');
	\endpipeline
} =~ s/^\s+//gmr);
bench_identities('extended', 'pipeline', [ '-f', $pipeline ], 'regress_apitoken_login');
bench_identities('prepared', 'pipeline', [ '-f', $pipeline ], 'regress_apitoken_login');

# Without BEGIN, a pipeline is one implicit transaction block, whose identity ends
# with it.  Only its first statement warns: the server cannot know that others follow.
my $implicit = "$PostgreSQL::Test::Utils::tmp_check/implicit.sql";
append_to_file($implicit, q{
	\set n random(1, 4)
	\startpipeline
	SELECT FROM apitoken.act_as((:n)::text);
	SELECT FROM apitoken.act_as((:n)::text);
	SELECT FROM set_config('apitoken.user_id', (:n)::text, true);
	SELECT expect((SELECT count(*) FROM article), :n, 'pipeline without BEGIN');
	\endpipeline
	SELECT expect((SELECT count(*) FROM article), 0, 'after the pipeline');
} =~ s/^\s+//gmr);
foreach my $mode ('extended', 'prepared')
{
	my $mark = log_mark($node);

	bench_identities($mode, 'pipeline without BEGIN', [ '-f', $implicit ], 'regress_apitoken_login');
	is(in_log($node, 'WARNING:  effect of act_as\(\) ends with this statement or pipeline', $mark), 600, "$mode: its first statement warns, and says how long the effect lasts");
	is(in_log($node, 'WARNING:', $mark), 600, "$mode: no other one does");
}
my $read_only = "$PostgreSQL::Test::Utils::tmp_check/read_only.sql";
append_to_file($read_only, "\\startpipeline\nSELECT FROM apitoken.authenticate(token_of(1));\nINSERT INTO work VALUES (9);\n\\endpipeline\n");
{
	my ($out, $err) = ('', '');
	run_log([ 'pgbench', '-n', '-t', '1', '-M', 'extended', '-h', $node->host, '-p', $node->port, '-U', 'regress_apitoken_login', '-f', $read_only, 'postgres' ],
		'>', \$out, '2>', \$err);
	like($err, qr/cannot execute INSERT in a read-only transaction/, 'a read-only token holds in a pipeline without BEGIN');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM work WHERE n = 9'), '0', 'and nothing is written');
}
run_on($node, user => 'regress_apitoken_login');

# several statements in one query message are such a block as well, and none of them warns
is(run("SELECT apitoken.act_as('2') \\; SELECT count(*) FROM article \\; SET apitoken.user_id = '2';"), '2 2', 'one message of several statements');
like(run("SELECT apitoken.act_as('2');"), qr/^2 \[WARNING: 25P01\]$/, 'a statement alone warns');

# ---- two-phase commit: allowed, and the identity is gone with it


my $who = q{SELECT coalesce(apitoken.current_user_id(), 'nobody');};

is(run("BEGIN; SELECT FROM apitoken.act_as('1'); INSERT INTO work SELECT apitoken.current_user_id()::int; PREPARE TRANSACTION 'a'; $who
	BEGIN; $who SELECT FROM apitoken.act_as('2'); $who PREPARE TRANSACTION 'b'; $who"), 'nobody nobody 2 nobody',
	'PREPARE TRANSACTION leaves nobody');
is(run("BEGIN; SELECT FROM apitoken.authenticate(token_of(3)); SELECT apitoken.current_user_id(); PREPARE TRANSACTION 'c'; $who SHOW transaction_read_only; BEGIN; INSERT INTO work VALUES (2); COMMIT;"),
	'3 nobody off', 'PREPARE TRANSACTION of a read-only identity');
is(run("SELECT FROM apitoken.whoami(); BEGIN; SET LOCAL apitoken.user_id = '1'; PREPARE TRANSACTION 'd'; $who BEGIN; $who COMMIT;"), 'nobody nobody',
	'PREPARE TRANSACTION with a setting that nobody used');
# Another session, with another identity, ends the transaction.
is(run("COMMIT PREPARED 'a'; ROLLBACK PREPARED 'b'; COMMIT PREPARED 'c'; COMMIT PREPARED 'd'; $who SELECT string_agg(n::text, ' ' ORDER BY n) FROM work;"), 'nobody 1 2',
	'COMMIT PREPARED makes nobody somebody');

# ---- the token functions wherever a parallel plan is possible

my $cheap = '-c parallel_setup_cost=0 -c parallel_tuple_cost=0 -c min_parallel_table_scan_size=0';
foreach my $mode ('off', 'on')
{
	my @options = (options => "-c $parallel=$mode $cheap");

	is(run("BEGIN; SELECT FROM apitoken.act_as('3'); SELECT count(*), apitoken.current_user_id(), apitoken.can('article:read', 3), apitoken.can('article:read', 2) FROM article; COMMIT; SELECT count(*) FROM article;", @options),
		'3|3|t|f 0', "a parallel plan sees the identity, $parallel $mode");
	is(run("SELECT count(*), (apitoken.verify(token_of(1))).verdict, (SELECT verdict FROM apitoken.verify('garbage')) FROM article;", @options),
		'0|valid|malformed', "verify in a parallel plan, $parallel $mode");
	is(run("BEGIN; SELECT (apitoken.authenticate(token_of(1))).user_id; SELECT count(*) FROM article; INSERT INTO work VALUES (3); ROLLBACK;", @options),
		'1 1 [ERROR: 25006]', "authenticate, $parallel $mode");
	is(run("BEGIN; SELECT FROM set_config('apitoken.token', token_of(2), true); SELECT count(*) FROM article; INSERT INTO work VALUES (3); ROLLBACK;", @options),
		'2', "a token by the setting, $parallel $mode");
	is(run("BEGIN; SELECT FROM set_config('apitoken.token', 'garbage', true); SELECT count(*) FROM article; ROLLBACK;", @options),
		'[ERROR: 28000]', "a bad one, $parallel $mode");
	is(run("SELECT label FROM apitoken.tokens ORDER BY user_id LIMIT 1; SELECT count(*) FROM apitoken.tokens;", user => $superuser, @options),
		't 4', "the view, $parallel $mode");
}
# The author of a function declared it parallel safe, but it asks for the identity.
# In a parallel worker it gets anonymous: no other identity, and no crash.
$node->safe_psql('postgres', q{
	CREATE FUNCTION mislabelled(bigint) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS
		$$BEGIN RETURN coalesce(apitoken.current_user_id(), 'nobody'); END$$;
	CREATE TABLE big AS SELECT n FROM generate_series(1, 20000) n;
	GRANT SELECT ON big TO PUBLIC;
	ANALYZE big;
});
like(run("BEGIN; SELECT FROM apitoken.act_as('3'); SELECT bool_and(mislabelled(n) IN ('3', 'nobody')) FROM big; ROLLBACK;", options => $cheap), qr/^t$/,
	'a function wrongly marked parallel safe is nobody else');
like(run("BEGIN; SELECT FROM set_config('apitoken.user_id', '3', true); SELECT bool_and(mislabelled(n) IN ('3', 'nobody')) FROM big; ROLLBACK;", options => $cheap), qr/^t$/,
	'nor by a setting');

no_crash($node);
$node->stop;
done_testing();
