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
	CREATE TABLE created (round int, client text, n int, token text PRIMARY KEY);
	CREATE TABLE revoked (token text PRIMARY KEY);
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

# A killed postmaster leaves its children for a moment, and their shared memory.
sub start_again
{
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $node->start(fail_ok => 1);
		select undef, undef, undef, 0.1;
	}
	return 0;
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
	$node->safe_psql('postgres', "COPY created FROM STDIN;\n$created\\.\nCOPY revoked FROM STDIN;\n$revoked\\.\nCOPY used FROM STDIN;\n$used\\.\n");

	# usage first, because looking at tokens is a use
	is($node->safe_psql('postgres', qq{
		SELECT count(*) FROM (SELECT token, count(*) FROM used WHERE at <= $flushed GROUP BY token) s
		LEFT JOIN apitoken.token_usage u ON u.token_id = (apitoken.parse(s.token)).id WHERE u.accepted < s.count OR u.accepted IS NULL}),
		'0', "round $round: each use before a flush that returned is written");
	# a use whose answer was lost may have been counted
	is($node->safe_psql('postgres', qq{
		SELECT count(*) FROM (SELECT c.token, count(u.token) FROM created c LEFT JOIN used u ON u.token = c.token WHERE c.round = $round GROUP BY c.token) s
		JOIN apitoken.token_usage u ON u.token_id = (apitoken.parse(s.token)).id WHERE u.accepted > s.count + 1}),
		'0', "round $round: and none twice");
	my $lost = $node->safe_psql('postgres', qq{
		SELECT coalesce($killed - min(s.at), 0) FROM (SELECT token, at, row_number() OVER (PARTITION BY token ORDER BY at) n FROM used) s
		LEFT JOIN apitoken.token_usage u ON u.token_id = (apitoken.parse(s.token)).id WHERE s.n > coalesce(u.accepted, 0)});
	$oldest_lost = $lost if $lost > $oldest_lost;

	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM created c LEFT JOIN apitoken_internal.token_records r ON r.id = (apitoken.parse(c.token)).id WHERE r.id IS NULL}),
		'0', "round $round: no token is lost");
	# all of them, also those of earlier rounds; of each client, one may have been
	# revoked without an answer
	is($node->safe_psql('postgres', qq{
		SELECT coalesce(string_agg(verdict || ' ' || count, ', '), 'none') FROM (
			SELECT v.verdict, count(*) FROM created c LEFT JOIN revoked r USING (token), apitoken.verify(c.token) v
			WHERE CASE WHEN r.token IS NOT NULL THEN v.verdict <> 'revoked'
				ELSE v.verdict <> 'valid' AND NOT (v.verdict = 'revoked' AND c.n = (SELECT max(n) FROM created l WHERE (l.round, l.client) = (c.round, c.client))) END
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
