# Rate limits: many clients together get exactly the limit and the burst.  Only
# requests that know the secret count.  Also: edits, a restart, a standby, full
# memory, and no shared preload.
#
# A limit of n a minute is a burst of n, and then one use every 60/n seconds.  The
# expected number is computed from the time that really passed.  That time has a
# generous margin on both sides, so that no test fails on a slow machine.  A limit
# of 1 a minute shows every use: the second use within a minute is refused.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

my $node = start_node('limits', preload => 'shared', init => [ allows_streaming => 1 ], conf => 'max_connections = 40');
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations VALUES ('acme');
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_monitor LOGIN;
	CREATE ROLE regress_apitoken_stranger LOGIN;
	SELECT apitoken.allow('regress_apitoken_backend', 'verify', 'act', 'use', 'manage');
	SELECT apitoken.allow('regress_apitoken_monitor', 'monitor');
	CREATE UNLOGGED TABLE seen (token text, verdict text, retry_after interval);
	GRANT ALL ON seen TO PUBLIC;
});

my $who = 'regress_apitoken_backend';
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

my @as_backend = (user => $who, verbosity => 'verbose');
run_on($node, @as_backend);

my $count = 0;

# A new token of a user.
sub of_ann { my ($arguments) = @_; $count++; return create($node, "t$count", "user_id => 'ann', $arguments"); }
sub limited { return of_ann("rate_limit_per_minute => $_[0]"); }
sub edit { my ($token, $limit) = @_; $node->safe_psql('postgres', "UPDATE apitoken.tokens SET rate_limit_per_minute = $limit WHERE id = (apitoken.parse('$token')).id"); }
sub seconds { return clock_gettime(CLOCK_MONOTONIC); }

# Ask so many times, as fast as possible.  Returns how many were accepted, and how
# long it took.
sub uses
{
	my ($token, $times, $database) = @_;
	my $before = seconds();
	my $accepted = run("SELECT count(*) FILTER (WHERE (apitoken.verify('$token')).valid) FROM generate_series(1, $times);", database => $database // 'postgres');

	return ($accepted, seconds() - $before);
}

# Are these the uses that `left` and a limit allow within that time?
sub is_within
{
	my ($accepted, $elapsed, $left, $limit, $what) = @_;
	my $most = $left + $elapsed * $limit / 60 + 1;

	ok($accepted >= $left && $accepted <= $most, "$what: $left and what is earned meanwhile")
	  or diag("$accepted accepted, $left to $most expected in $elapsed s");
}

# ----- burst and rate ----------------------------------------------------------

foreach my $limit (1, 2, 7, 60, 1000)
{
	my $token = limited($limit);

	is_within(uses($token, 2 * $limit + 100), $limit, $limit, "limit $limit");
}
{
	my $token = limited(1_000_000);
	my $began = seconds();

	is((uses($token, 20_000))[0], 20_000, 'limit 1000000: 20000 at once');
	# A fiftieth is used up, and that share counts for the new limit as well.  What
	# is earned includes the time of the edit.
	edit($token, 100);
	is_within((uses($token, 300))[0], seconds() - $began, 98, 100, 'of which then 100 remain 98');
}

# ----- many clients at once ----------------------------------------------------

# pgbench with a file for each token.  Returns how long it took, and the number of
# accepted uses of each token.
sub bench_tokens
{
	my ($transactions, %tokens) = @_;
	my @files;

	$node->safe_psql('postgres', 'TRUNCATE seen');
	foreach my $name (sort keys %tokens)
	{
		my $file = $node->basedir . "/$name.sql";

		append_to_file($file, "INSERT INTO seen SELECT '$name', verdict, retry_after FROM apitoken.verify('$tokens{$name}');\n");
		push @files, '-f', $file;
	}
	my $before = seconds();
	my ($out, $err);
	my $ran = IPC::Run::run([ 'pgbench', '-n', '-c', '16', '-j', '4', '-t', $transactions, @files, '-U', $who, $node->connstr('postgres') ],
		'>', \$out, '2>', \$err);
	my $elapsed = seconds() - $before;

	ok($ran, "16 clients, $transactions times each") or diag($err);
	is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'), 16 * $transactions, 'and each got an answer');
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT verdict, ' ' ORDER BY verdict) FROM seen}), 'rate_limited valid', 'accepted or limited');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM seen WHERE (verdict = 'rate_limited') <> (retry_after IS NOT NULL)
		OR retry_after <= '0' OR retry_after > '1 minute'}), '0', 'retry_after stands with rate_limited, and is up to a minute');
	return $elapsed, map { my ($name, $n) = split /\|/; ($name => $n) }
		split /\n/, $node->safe_psql('postgres', q{SELECT token, count(*) FILTER (WHERE verdict = 'valid') FROM seen GROUP BY 1});
}

# All clients use a token that has not been used before.  Each of them may be the
# first to record it.
{
	my ($elapsed, %accepted) = bench_tokens(100, fresh => limited(60));

	is_within($accepted{fresh}, $elapsed, 60, 60, 'first used by many at once');
}

# Two tokens at once: each has its own.
{
	my ($elapsed, %accepted) = bench_tokens(200, few => limited(30), many => limited(1200));

	is_within($accepted{few}, $elapsed, 30, 30, 'the one with the lower limit');
	is_within($accepted{many}, $elapsed, 1200, 1200, 'the one with the higher limit');
}

# Four sessions in tight loops read and advance the same time concurrently.  A lost
# step is a use too many.  The time is measured so closely that a few of them show
# (the margin of a thousandth is for a clock that is being adjusted).
{
	my $limit = 60_000;
	my $token = limited($limit);
	my $file = $node->basedir . '/tight.sql';
	my ($out, $err);

	$node->safe_psql('postgres', 'CREATE TABLE tight (accepted int, began timestamptz, ended timestamptz); GRANT ALL ON tight TO PUBLIC');
	append_to_file($file, qq{DO \$\$
		DECLARE
			began timestamptz := clock_timestamp();
			accepted int := (SELECT count(*) FILTER (WHERE (apitoken.verify('$token')).valid) FROM generate_series(1, 25000));
		BEGIN
			INSERT INTO tight VALUES (accepted, began, clock_timestamp());
		END \$\$;\n} =~ s/\n\t*/ /gr . "\n");
	ok(IPC::Run::run([ 'pgbench', '-n', '-c', '4', '-j', '4', '-t', '1', '-f', $file, '-U', $who, $node->connstr('postgres') ], '>', \$out, '2>', \$err),
		'4 sessions, 25000 times each') or diag($err);
	is_within(split(/\|/, $node->safe_psql('postgres', q{SELECT sum(accepted), 1.001 * extract(epoch FROM max(ended) - min(began)) FROM tight})),
		$limit, $limit, 'in tight loops');
}

# Every use that the limit allows is accepted.  This counts from the time when all
# is used up, through the time while many ask, until the rest is used.
{
	my $limit = 6000;
	my $token = limited($limit);
	my $began = seconds();

	uses($token, $limit + 1000);
	my $used_up = seconds();
	my (undef, %accepted) = bench_tokens(300, busy => $token);
	my $resumed = seconds();
	my ($rest) = uses($token, $limit + 1000);
	my $ended = seconds();
	my $earned = $accepted{busy} + $rest;
	my $least = int($limit * ($resumed - $used_up > 60 ? 60 : $resumed - $used_up) / 60) - 1;
	my $most = $limit * ($ended - $began) / 60 + 1;

	cmp_ok($earned, '>=', $least, 'what a limit earns is given, whoever asks');
	cmp_ok($earned, '<=', $most, 'and no more');
}

# ----- what counts -------------------------------------------------------------

{
	my $token = limited(1);

	is(run("BEGIN; " . verdict($token) . " ROLLBACK; " . verdict($token)), 'valid rate_limited', 'a use that was rolled back counts');
	$token = limited(1);
	is(run("BEGIN; SAVEPOINT s; " . verdict($token) . " ROLLBACK TO s; " . verdict($token) . " COMMIT;"), 'valid rate_limited', 'to a savepoint as well');
	$token = limited(1);
	is(run("BEGIN READ ONLY; " . verdict($token) . " COMMIT; BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; " . verdict($token) . " COMMIT;"),
		'valid rate_limited', 'so does one in a READ ONLY transaction');
	$token = limited(1);
	like(run("BEGIN; " . verdict($token) . " SELECT 1/0; ROLLBACK; " . verdict($token)), qr/^valid rate_limited \[ERROR: 22012:/, 'and one in a transaction that failed');
}

# authenticate() and the setting: each verification of the token is one use
{
	my $token = limited(1);
	my $limited = qr/\[ERROR: 28000: invalid token DETAIL: Verdict: rate_limited\. HINT: Try again in \d+\.\d{3} seconds\.\]$/;

	is(run("BEGIN; SELECT valid FROM apitoken.authenticate('$token'); SELECT apitoken.current_user_id(), apitoken.can('a:b') FROM generate_series(1, 3); COMMIT;"),
		't ann|t ann|t ann|t', 'authenticate(): one use a transaction');
	like(run("BEGIN; SELECT valid FROM apitoken.authenticate('$token'); COMMIT;"), qr/^$limited/, 'and then 28000 that says when');
	is(run(verdict($token)), 'rate_limited', 'verify() counts the same uses');
	like(run("BEGIN; SET LOCAL apitoken.token = '$token'; SELECT apitoken.current_user_id(); COMMIT;"), qr/^$limited/, 'and so does the setting');
	# an aborted subtransaction does not help
	like(run(qq{BEGIN; DO \$\$
		BEGIN
			FOR i IN 1 .. 100 LOOP
				BEGIN
					PERFORM apitoken.authenticate('$token');
					RAISE WARNING 'accepted';
				EXCEPTION WHEN invalid_authorization_specification THEN
				END;
			END LOOP;
			PERFORM apitoken.authenticate('$token');
		END \$\$; COMMIT;}), qr/^\[ERROR: 28000: invalid token/, 'nor do exception blocks');
	$token = limited(1);
	is(run("BEGIN; SET LOCAL apitoken.token = '$token'; SELECT apitoken.current_user_id(); SELECT apitoken.can('a:b'); SELECT count(*) FROM apitoken.tokens; COMMIT;"),
		'ann t 0', 'the setting: one use a transaction');
	like(run("BEGIN; SET LOCAL apitoken.token = '$token'; SELECT apitoken.current_user_id(); COMMIT;"), qr/^$limited/, 'and then 28000');
	# an identity that was rolled back is verified again
	$token = limited(2);
	my $anew = "BEGIN; SET LOCAL apitoken.token = '$token'; SAVEPOINT s; SELECT apitoken.current_user_id(); ROLLBACK TO s; SELECT apitoken.current_user_id(); COMMIT;";
	is(run($anew), 'ann ann', 'ROLLBACK TO a savepoint before the first use of the setting');
	is(run(verdict($token)), 'rate_limited', 'makes it two');
}

# ----- which requests use it up ------------------------------------------------

# the text of a token with its checksum
sub with_checksum
{
	my ($text) = @_;
	my $crc = 0xffffffff;
	my $checksum = '';

	foreach my $byte (unpack 'C*', $text)
	{
		$crc ^= $byte;
		$crc = ($crc >> 1) ^ ($crc & 1 ? 0xedb88320 : 0) foreach 1 .. 8;
	}
	$crc ^= 0xffffffff;
	for (1 .. 6)
	{
		$checksum = (0 .. 9, 'A' .. 'Z', 'a' .. 'z')[ $crc % 62 ] . $checksum;
		$crc = int($crc / 62);
	}
	return $text . $checksum;
}

{
	my $token = of_ann(q{rate_limit_per_minute => 1, access => 'custom', permissions => '{article:read}', allowed_networks => '{10.0.0.0/8}'});
	my $id = $node->safe_psql('postgres', "SELECT (apitoken.parse('$token')).id");
	my $valid = "SELECT verdict FROM apitoken.verify('$token', 'article:read', NULL, '10.1.2.3');";
	my ($begin) = $token =~ /^(apt_usr_.{22})/;
	# bypass the triggers, as the passage of time and a restore do
	my $set = sub { $node->safe_psql('postgres', "SET session_replication_role = replica; UPDATE apitoken_internal.token_records SET $_[0] WHERE id = '$id'"); };
	my $all = sub { my ($text, $arguments) = @_; return run("SELECT DISTINCT (apitoken.verify('$text'$arguments)).verdict FROM generate_series(1, 1000);"); };

	is(with_checksum(substr($token, 0, -6)), $token, 'the checksum is the extension\'s');
	my @wrong = map { my $n = $_; with_checksum($begin . sprintf('%043d', $n)) } 1 .. 2000;
	is(run('SELECT DISTINCT (apitoken.verify(t, NULL, NULL, \'10.1.2.3\')).verdict FROM unnest(ARRAY[' . join(',', map { "'$_'" } @wrong) . ']) t;'),
		'unknown', '2000 wrong secrets');
	is($all->(with_checksum(substr($token, 0, 3) . '_org_' . substr($token, 8, -6)), ''), 'unknown', 'the right one, of the wrong kind');
	is($all->($node->safe_psql('postgres', q{SELECT apitoken.generate('usr')}), ''), 'unknown', 'an id that there is not');
	is($all->($begin, ''), 'malformed', 'half a token');
	is($all->($token, q{, NULL, NULL, '192.0.2.1'}), 'network_refused', 'the right secret from elsewhere');
	is($all->($token, ''), 'network_refused', 'and from an unknown address');
	is($all->($token, q{, 'article:write', NULL, '10.1.2.3'}), 'permission_refused', 'asked for what it may not do');
	is($all->($token, q{, NULL, 'acme', '10.1.2.3'}), 'permission_refused', 'or where it may do nothing');
	like(run("SELECT apitoken.verify('$token', 'nonsense', NULL, '10.1.2.3');"), qr/^\[ERROR: 22023:/, 'asked for nonsense');
	foreach my $state ([ 'suspended_at', 'suspended' ], [ 'expires_at', 'expired' ], [ 'revoked_at', 'revoked' ])
	{
		$set->("$state->[0] = now()");
		is($all->($token, q{, NULL, NULL, '10.1.2.3'}), $state->[1], "the right secret, $state->[1]");
		$set->("$state->[0] = NULL");
	}
	is(run("BEGIN; SELECT apitoken.revoke_by_token('$token'); ROLLBACK;"), 't', 'a revocation that was rolled back');
	# a role that lacks the capability
	like(run_as('regress_apitoken_stranger', $valid x 3), qr/^\[ERROR: 42501: permission denied for function verify ERROR: 42501/, 'somebody who may not verify');
	is(run("SELECT retry_after IS NULL, verdict FROM apitoken.verify('$token', 'article:read', NULL, '10.1.2.3');"), 't|valid',
		'none of that used up the one use a minute that it has');
	is(run($valid), 'rate_limited', 'which then is gone');
	is($all->($token, q{, NULL, NULL, '192.0.2.1'}), 'network_refused', 'what else is wrong is told first');

	# while it is limited, its text can still revoke it
	is(run("SELECT apitoken.revoke_by_token('$token');"), 't', 'a limited token is revoked by its text');
	is(run($valid), 'revoked', 'and is');
}

# ----- retry_after -------------------------------------------------------------

{
	my $token = limited(600);

	uses($token, 1000);
	# a client that waits for retry_after is accepted, each time
	is(run_as($superuser, qq{DO \$\$
		DECLARE
			v apitoken.verification;
			refused int := 0;
		BEGIN
			FOR i IN 1 .. 200 LOOP
				EXIT WHEN refused = 10;
				v := apitoken.verify('$token');
				CONTINUE WHEN v.valid AND v.retry_after IS NULL;
				refused := refused + 1;
				IF v.verdict <> 'rate_limited' OR v.retry_after IS NULL OR v.retry_after <= '0' OR v.retry_after > '101 ms' OR v.permissions IS NOT NULL
					OR v.token_id IS NULL OR v.label IS NULL THEN
					RAISE WARNING 'wrong: %', v;
				END IF;
				PERFORM pg_sleep_for(v.retry_after);
				v := apitoken.verify('$token');
				IF v.verdict <> 'valid' THEN
					RAISE WARNING '% after waiting', v.verdict;
				END IF;
			END LOOP;
		END \$\$;}), '', 'waiting for as long as retry_after says is enough');
	$token = limited(1);
	is(run_as($superuser, qq{SELECT valid FROM apitoken.verify('$token');
		SELECT retry_after > '0' AND retry_after <= '1 minute' FROM apitoken.verify('$token');}), 't t', 'and is a minute at most');
	is(run_as($superuser, q{SELECT bool_and(retry_after IS NULL) FROM unnest(ARRAY['', NULL, apitoken.generate('org')]) t, LATERAL apitoken.verify(t);}), 't', 'others have none');
}

# ----- edits -------------------------------------------------------------------

{
	my $token = limited(1);

	is(run(verdict($token) x 2), 'valid rate_limited', 'a token used up');
	edit($token, 'NULL');
	is((uses($token, 500))[0], 500, 'without a limit it goes on at once');
	edit($token, 1);
	is(run(verdict($token)), 'rate_limited', 'with one again it is still used up: to clear a limit forgets nothing');
	# the used share of the minute stays; the rest is refilled at the new rate
	edit($token, 6000);
	# (pg_sleep_for() itself answers an empty line)
	is(run("SELECT pg_sleep_for(coalesce(retry_after, '0')) FROM apitoken.verify('$token');" . verdict($token)), ' valid', 'raised, it is accepted within moments');
	$token = limited(6000);
	my $began = seconds();
	is((uses($token, 3000))[0], 3000, 'half of 6000');
	edit($token, 60);
	is_within((uses($token, 200))[0], seconds() - $began, 30, 60, 'lowered to 60, half of that is left');
	edit($token, 1);
	is(run(verdict($token)), 'rate_limited', 'lowered to 1, nothing is');
	# an edit counts when it is committed
	$token = limited(1);
	my $editor = $node->background_psql('postgres', on_error_stop => 0);

	$editor->query("BEGIN; UPDATE apitoken.tokens SET rate_limit_per_minute = NULL WHERE id = (apitoken.parse('$token')).id;");
	is(run(verdict($token) x 2), 'valid rate_limited', 'an edit that is not committed');
	$editor->query('COMMIT');
	is(run(verdict($token) x 2), 'valid valid', 'and one that is');
	$editor->quit;

	# a new secret does not get a new budget: two secrets share one
	$token = limited(3);
	my $new = $node->safe_psql('postgres', "SELECT token FROM apitoken.regenerate_token((apitoken.parse('$token')).id, overlap => '1 hour')");
	is(run(verdict($token) . verdict($new) . verdict($token) . verdict($new) . verdict($token)), 'valid valid valid rate_limited rate_limited', 'old and new secret share the limit');
	$new = $node->safe_psql('postgres', "SELECT token FROM apitoken.regenerate_token((apitoken.parse('$token')).id)");
	is(run(verdict($new) . verdict($token)), 'rate_limited unknown', 'the newest too');
}

# ----- another database, a restart, a standby ----------------------------------

my $here = limited(1);
my $twin = limited(50);
uses($twin, 60);
$node->safe_psql('template1', 'CREATE DATABASE twin TEMPLATE postgres');
is_within(uses($twin, 100, 'twin'), 50, 50, 'the same token in a copy of the database has a limit of its own');
is(run(verdict($here) x 2), 'valid rate_limited', 'used up here');
is(run(verdict($here) x 2, database => 'twin'), 'valid rate_limited', 'and there');

$node->backup('base');
my $standby = start_standby($node, 'standby');
my $there = limited(1);
is(run(verdict($there) x 2), 'valid rate_limited', 'used up on the primary');
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
like(answer($standby, "SELECT verdict, retry_after > '0' AND retry_after <= '1 minute' FROM apitoken.verify('$there');" x 2 . "BEGIN; SELECT apitoken.authenticate('$there');", @as_backend),
	qr/^valid\| rate_limited\|t \[ERROR: 28000: .* HINT: Try again in /, 'a standby has its own limits');
$standby->promote;
is(answer($standby, verdict($there), @as_backend), 'rate_limited', 'which a promotion does not reset');
$standby->stop;

$node->restart;
is(run(verdict($here) x 2), 'valid rate_limited', 'a restart does');
$node->stop('immediate');
$node->start;
is(run(verdict($here) x 2), 'valid rate_limited', 'and so does a crash');

# ----- memory is full ----------------------------------------------------------

# The launcher works on request, and otherwise only once an hour.
$node->append_conf('postgresql.conf', "apitoken.usage_slots = 64\napitoken.flush_interval = '1h'");
$node->restart;
$node->safe_psql('postgres', q{
	CREATE TABLE crowd AS SELECT n, token FROM generate_series(1, 300) n, LATERAL apitoken.create_token('crowd ' || n, user_id => 'ann', rate_limit_per_minute => 20);
	GRANT SELECT ON crowd TO PUBLIC;
});
{
	my $dropped = stat_of($node, 'dropped');
	my $began = seconds();

	# an entry has to be kept for three seconds after one use
	$node->safe_psql('postgres', 'TRUNCATE seen; INSERT INTO seen SELECT n, verdict, retry_after FROM crowd, LATERAL apitoken.verify(token)');
	my $elapsed = seconds() - $began;
	my ($valid, $refused, $other) = split /\|/, $node->safe_psql('postgres',
		q{SELECT count(*) FILTER (WHERE verdict = 'valid'), count(*) FILTER (WHERE verdict = 'rate_limited'), count(*) FILTER (WHERE verdict NOT IN ('valid', 'rate_limited')) FROM seen});

	cmp_ok($valid, '>', 0, 'memory for 64 tokens with limits, of 300: some are accepted');
	cmp_ok($valid, '<=', 64 * (1 + int($elapsed / 3) + 1), 'no more than fit');
	is("$other " . ($valid + $refused), '0 300', 'the others are refused');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM seen WHERE verdict = 'rate_limited' AND (retry_after IS NULL OR retry_after <= '0' OR retry_after > '1 minute')}),
		'0', 'and told to come again');
	cmp_ok(stat_of($node, 'dropped') - $dropped, '>=', $refused, 'each is counted as dropped');
	cmp_ok(stat_of($node, 'limits'), '<=', 64, 'no more entries than slots');
	is((uses(of_ann("description => ''"), 200))[0], 200, 'tokens without a limit are accepted all the time');

	# the refused tokens get their turn when the others' time is over
	my $late = $node->safe_psql('postgres', q{SELECT crowd.token FROM crowd JOIN seen ON seen.token = n::text WHERE verdict = 'rate_limited' ORDER BY n LIMIT 1});
	SKIP:
	{
		skip 'this machine is so slow that all fitted', 2 if $late eq '';
		ok($node->poll_query_until('postgres', "SELECT (apitoken.verify(split_part('$late', E'\\n', 1))).valid"), 'there is room again later');
		is_within(uses($late, 100), 19, 20, 'and the limit counts');
	}
	is(stat_of($node, 'last_flush_error IS NULL'), 't', 'nothing went wrong on the way');
}
$node->safe_psql('postgres', 'DROP TABLE crowd');

# ----- without shared preload --------------------------------------------------

foreach my $form ('plain', 'session')
{
	$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
	$node->append_conf('postgresql.conf', "session_preload_libraries = 'apitoken'") if $form eq 'session';
	$node->restart;

	my $token = limited(1000);
	my $warning = qr/WARNING: 55000: cannot verify a token with a rate limit on this server DETAIL: [^:]* HINT: Add "apitoken" to "shared_preload_libraries" and restart the server, or set "rate_limit_per_minute" of the token to null\./;

	like(run("SELECT valid, verdict, retry_after IS NULL FROM apitoken.verify('$token');"), qr/^f\|rate_limited\|t \[$warning\]$/, "$form: refused, never unlimited, and why");
	like(run("BEGIN; SELECT apitoken.authenticate('$token');"), qr/^\[$warning ERROR: 28000: invalid token DETAIL: Verdict: rate_limited\.\]$/, "$form: by authenticate()");
	like(run("BEGIN; SELECT apitoken.whoami() IS NULL; SET LOCAL apitoken.token = '$token'; SELECT apitoken.current_user_id();"), qr/^f \[$warning ERROR: 28000: /, "$form: by the setting");
	is(run("SELECT verdict FROM apitoken.verify('$token', 'token:read');"), 'permission_refused', "$form: what else is wrong is told without a warning");
	is(run("SELECT apitoken.revoke_by_token('$token'); " . verdict($token)), 't revoked', "$form: it can be revoked by its text");
	$token = limited(5);
	edit($token, 'NULL');
	is(run(verdict($token)), 'valid', "$form: with the limit cleared it is valid");
}

$node->stop;
no_crash($_) foreach $node, $standby;
done_testing();
