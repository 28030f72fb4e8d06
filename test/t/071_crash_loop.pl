# The postmaster is killed (kill -9) under load, with fsync, again and again; and all
# connections are in use.  (012 tests full shared memory, 013 a full disk and no free
# worker: each told once, and over when it is over.)
#
# Clients create, verify and revoke tokens, and write down what they were answered.
# After each restart:
# - no token that was reported created is lost,
# - no token whose revocation returned is accepted,
# - each use before a flush that returned is written, and none is written twice,
# - the server verifies, records and writes as before.
#
# ROUNDS says how many times (5).

use strict;
use warnings;

use ApitokenTest;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $rounds = $ENV{ROUNDS} // 5;
my $clients = 4;
my $interval = 1;
my $node = start_node('crashes', preload => 'shared', conf => qq{
	fsync = on
	apitoken.flush_interval = '${interval}s'
	max_connections = 20
	superuser_reserved_connections = 3
	log_statement = none
	log_min_duration_statement = -1
	autovacuum = on
});
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id) VALUES ('acme');
	CREATE ROLE regress_apitoken_client LOGIN;
	SELECT apitoken.allow('regress_apitoken_client', 'verify');
	-- what clients were answered
	CREATE TABLE created (round int, client text, n int, token text PRIMARY KEY, revoked boolean NOT NULL DEFAULT false, id uuid);
	CREATE TABLE revoked (token text);
	CREATE TABLE used (token text, at float8);
});
my $place = PostgreSQL::Test::Utils::tempdir();

# One token after the other: created, used three times, and two of three revoked.  An
# answer is written down when the transaction has ended.
my $script = "\\set ON_ERROR_STOP 1\n";
foreach my $n (1 .. 5000)
{
	my $owner = $n % 2 ? "organization_id => 'acme'" : "user_id => 'u'";
	$script .= "SELECT token FROM apitoken.create_token('r' || :round || ' c' || :client || ' ' || $n, $owner) \\gset\n\\echo created $n :token\n";
	$script .= "SELECT 1 / valid::int FROM apitoken.verify(:'token') \\g /dev/null\nSELECT extract(epoch FROM clock_timestamp()) AS at \\gset\n\\echo used :token :at\n" x 3;
	$script .= "SELECT 1 / apitoken.revoke_by_token(:'token')::int \\g /dev/null\n\\echo revoked :token\n" if $n % 3;
}
append_to_file("$place/client.sql", $script);
append_to_file("$place/flush.sql", "\\set ON_ERROR_STOP 1\n" .
	"SELECT extract(epoch FROM clock_timestamp()) AS at \\gset\nSELECT apitoken.flush_usage() \\g /dev/null\n\\echo flushed :at\n" x 5000);

# pick a moment in the whole course of a flush and of a checkpoint
sub work_for
{
	my ($round) = @_;
	my @running;
	my $checkpoints = 0;
	my $until = time + 1 + $round % 3;

	foreach my $client (1 .. $clients, 'flush')
	{
		my $file = $client eq 'flush' ? 'flush.sql' : 'client.sql';
		my $out = "$place/$round.$client";
		push @running, IPC::Run::start([ 'psql', '-X', '-q', '-A', '-t', '-d', $node->connstr('postgres'), '-v', "round=$round", '-v', "client=$client", '-f', "$place/$file" ],
			'>', $out, '2>', "$out.err");
	}
	while (time < $until)
	{
		# psql's errors do not matter: they end with the server
		$node->psql('postgres', 'CHECKPOINT') if $checkpoints++ % 2;
		select undef, undef, undef, 0.05 + rand 0.3;
	}
	$node->kill9;
	my $killed = time;
	eval { $_->finish } foreach @running;
	return $killed;
}

# A killed postmaster leaves its children for a moment, and their shared memory: a
# start is refused as long as one of them lives.
sub start_again
{
	foreach (1 .. $PostgreSQL::Test::Utils::timeout_default)
	{
		my $living = grep { /\Q${\ $node->data_dir}\E|^postgres: crashes:/ } map { my $c = eval { slurp_file($_) } // ''; $c =~ tr/\0/ /; $c } glob '/proc/[0-9]*/cmdline';
		last if $living == 0;
		select undef, undef, undef, 0.1;
	}
	# where nobody has waited for the killed process, its id is still taken
	unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	return $node->start(fail_ok => 1);
}

my $oldest_lost = 0;
foreach my $round (1 .. $rounds)
{
	my $killed = work_for($round);
	ok(start_again(), "round $round: the server starts");

	my ($created, $revoked, $used) = ('', '', '');
	my ($count, $flushed) = (0, 0);
	foreach my $client (1 .. $clients)
	{
		foreach my $line (split /\n/, slurp_file("$place/$round.$client"))
		{
			my ($what, @rest) = split / /, $line;
			if ($what eq 'created') { $created .= join("\t", $round, $client, @rest) . "\n"; $count++; }
			elsif ($what eq 'revoked') { $revoked .= "$rest[0]\n"; }
			elsif ($what eq 'used') { $used .= join("\t", @rest) . "\n"; }
		}
	}
	foreach my $line (split /\n/, slurp_file("$place/$round.flush"))
	{
		$flushed = $1 if $line =~ /^flushed (.+)/;
	}
	cmp_ok($count, '>', 10, "round $round: the clients worked: $count tokens");
	append_to_file("$place/created.$round", $created);
	append_to_file("$place/revoked.$round", $revoked);
	append_to_file("$place/used.$round", $used);
	$node->safe_psql('postgres', "TRUNCATE revoked, used;\n" .
		"\\copy created (round, client, n, token) from '$place/created.$round'\n\\copy revoked from '$place/revoked.$round'\n\\copy used from '$place/used.$round'\n" .
		"UPDATE created SET id = (apitoken.parse(token)).id, revoked = token IN (SELECT token FROM revoked) WHERE round = $round;\n" .
		'ANALYZE; ANALYZE apitoken.token_usage, apitoken_internal.token_days, apitoken.events, apitoken_internal.token_records;');

	# usage first, because looking at tokens is a use; of this round, because what was
	# lost in an earlier one does not come back
	is($node->safe_psql('postgres', qq{
		SELECT count(*) FROM (SELECT token, count(*) FROM used WHERE at <= $flushed GROUP BY token) s JOIN created c USING (token)
		LEFT JOIN apitoken.token_usage u ON u.token_id = c.id WHERE u.accepted < s.count OR u.accepted IS NULL}),
		'0', "round $round: each use before a flush that returned is written");
	# a use whose answer was lost may have been counted
	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM (SELECT token, count(*) FROM used GROUP BY token) s JOIN created c USING (token)
		JOIN apitoken.token_usage u ON u.token_id = c.id WHERE u.accepted > s.count + 1}),
		'0', "round $round: and none twice");
	my $lost = $node->safe_psql('postgres', qq{
		SELECT coalesce($killed - min(s.at), 0) FROM (SELECT token, at, row_number() OVER (PARTITION BY token ORDER BY at) n FROM used) s JOIN created c USING (token)
		LEFT JOIN apitoken.token_usage u ON u.token_id = c.id WHERE s.n > coalesce(u.accepted, 0)});
	$oldest_lost = $lost if $lost > $oldest_lost;

	is($node->safe_psql('postgres', q{SELECT count(*) FROM created c LEFT JOIN apitoken_internal.token_records r USING (id) WHERE r.id IS NULL}),
		'0', "round $round: no token is lost");
	# all of them, also those of earlier rounds; of each client, one may have been
	# revoked without an answer
	is($node->safe_psql('postgres', q{
		WITH last AS (SELECT round, client, max(n) AS n FROM created GROUP BY round, client)
		SELECT coalesce(string_agg(verdict || ' ' || count, ', '), 'none') FROM (
			SELECT v.verdict, count(*) FROM created c LEFT JOIN last l USING (round, client, n), apitoken.verify(c.token) v
			WHERE CASE WHEN c.revoked THEN v.verdict <> 'revoked' ELSE v.verdict <> 'valid' AND NOT (v.verdict = 'revoked' AND l.round IS NOT NULL) END
			GROUP BY v.verdict) s}),
		'none', "round $round: what was revoked is refused, and nothing else");
	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM apitoken_internal.token_records r LEFT JOIN apitoken.token_usage u ON u.token_id = r.id
		WHERE u.token_id IS NULL OR num_nonnulls(r.organization_id, r.user_id) <> 1 OR NOT EXISTS (SELECT FROM apitoken.events e WHERE e.token_id = r.id AND e.action = 'create')}),
		'0', "round $round: each token has an owner, a row of usage and an event");
	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM apitoken_internal.token_records r WHERE (r.revoked_at IS NOT NULL) <> EXISTS (SELECT FROM apitoken.events e WHERE e.token_id = r.id AND e.action = 'revoke')}),
		'0', "round $round: a revocation and its event are one");

	# what is in shared memory is written; the file that preserves use over a restart is not there
	$node->safe_psql('postgres', 'SELECT apitoken.flush_usage()');
	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM (SELECT token_id, sum(accepted) s FROM apitoken.token_usage_daily GROUP BY token_id) d JOIN apitoken.token_usage u USING (token_id) WHERE u.accepted <> d.s}),
		'0', "round $round: the days of usage add up");
	is(stat_of($node, 'last_flush_error IS NULL, launcher_runs, dropped'), 't|t|0', "round $round: the launcher writes");
}
note sprintf('the oldest use that was lost was %.2f s old (flush interval: %d s)', $oldest_lost, $interval);

# ----- all connections are in use ----------------------------------------------

my $mark = log_mark($node);
my $token = create($node, 'connections', q{user_id => 'u'});
my @sessions;
# they come with the right to connect that is not reserved
foreach (1 .. 17)
{
	push @sessions, connection($node, user => 'regress_apitoken_client');
}
is(ask($sessions[0], "SELECT valid FROM apitoken.verify('$token')"), 't', 'no connection is free: verified');
like(answer($node, 'SELECT 1', user => 'regress_apitoken_client', verbosity => 'default'), qr/FATAL/, 'no connection is free: refused');
ok($node->poll_query_until('postgres', "SELECT accepted = 1 FROM apitoken.token_usage WHERE token_id = (apitoken.parse('$token')).id"), 'no connection is free: the use is written');
is(ask($_, "SELECT valid FROM apitoken.verify('$token')"), 't', 'no connection is free: verified in each') foreach @sessions[ 1 .. 3 ];
$_->quit foreach @sessions;
ok($node->poll_query_until('postgres', "SELECT accepted = 4 FROM apitoken.token_usage WHERE token_id = (apitoken.parse('$token')).id"), 'connections are free: written');
is(in_log($node, qr/(?:WARNING|LOG):  .*(?:could not write token usage|could not start background worker)/, $mark), 0, 'nothing of it concerns the workers');

$node->stop;
no_crash($node, killed => 1);
done_testing();
