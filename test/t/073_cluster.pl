# Three servers under Patroni with etcd, HAProxy and PgBouncer, from the files of
# examples/cluster, while clients create, verify and revoke tokens through HAProxy.
#
# The leader is switched over, killed, cut off, and its disk is full; a replica is cut off
# from the leader alone; all replicas are away.  After each:
# - no token that was reported created is lost, on any server,
# - no token whose revocation was reported is accepted, by any server,
# - use is lost only where a server died, at most one interval of it, and none is counted
#   twice,
# - the replicas went on verifying.
#
# CHECKS says how many verifications right after a revocation must be refused (600),
# ROUNDS how often the faults happen (1): `make test-cluster` sets them.  report.txt beside
# the logs has the pauses.

use strict;
use warnings;

use ApitokenTest;
use ApitokenCluster;

BEGIN
{
	# before anything is printed
	enter_namespace() if !missing_programs();
}

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'not installed: ' . join(', ', missing_programs()) if missing_programs();
require DBI;
require DBD::Pg;

my $checks = $ENV{CHECKS} // 600;
my $rounds = $ENV{ROUNDS} // 1;
my $interval = 10;		# apitoken.flush_interval of examples/cluster
my $writers = 2;
my $readers = 2;
my $place = PostgreSQL::Test::Utils::tempdir();
my $report = "$PostgreSQL::Test::Utils::log_path/report.txt";
sub report { my ($format, @values) = @_; my $line = sprintf($format, @values); append_to_file($report, "$line\n"); note $line; return; }

# ----- the cluster ----------------------------------------------------------------

note 'namespaces: ' . (no_namespace() || 'yes');
lay_out();
start_etcd();
start_node_of('n1');
wait_until('the first leader', sub { (leader() // '') eq 'n1' });
start_node_of($_) foreach qw(n2 n3);
start_haproxy();
is(settled(), 'n1', 'a leader and two synchronous replicas');
{
	local $ENV{APITOKEN_DATABASE} = 'postgres';
	sql('n1', 'CREATE DATABASE app');
}
ApitokenCluster::run_file('n1', 'setup.sql');
like(sql('n1', 'SHOW synchronous_standby_names'), qr/^2 \((?:n2,n3|n3,n2)\)$/, 'both replicas confirm a commit');
is(join("\n", sql($_, q{SELECT concat_ws(': ', level, subject, message) FROM apitoken.check_setup() WHERE level IN ('error', 'warning') AND subject IN ('version', 'preload', 'usage', 'standby', 'privileges')})), '',
	"check_setup() has no warning on $_") foreach @nodes;
sql('n1', q{INSERT INTO apitoken.organizations (id) VALUES ('acme')});
sql('n1', q{INSERT INTO apitoken.memberships VALUES ('acme', 'admin', 'admin')});

# ----- a revocation that has returned is refused ----------------------------------------

sub connect_to
{
	my ($host, $port) = @_;
	return DBI->connect("dbi:Pg:host=$host;port=$port;dbname=app;connect_timeout=5", 'app_backend', password('backend'),
		{ RaiseError => 1, PrintError => 0, PrintWarn => 0, pg_server_prepare => 0, AutoInactiveDestroy => 1 });
}

# HAProxy closes connections as long as it knows of no server for them.
sub connect_when_possible
{
	my @where = @_;
	my $dbh;

	wait_until("a connection to @where", sub { $dbh = eval { connect_to(@where) } });
	return $dbh;
}
sub verdict_of { my ($dbh, $token) = @_; return $dbh->selectrow_array('SELECT verdict FROM apitoken.verify(?)', undef, $token); }

my $leader = 'n1';
my $write = connect_when_possible(where_is('front', 'writes'));
my %on = map { ($_ => connect_to(where_is($_, 'pooler'))) } qw(n2 n3);

# DBD::Pg waits in spite of PG_ASYNC if there are parameters
sub revoke_without_waiting { my ($dbh, $token) = @_; $dbh->do("SELECT apitoken.revoke_by_token('$token')", { pg_async => DBD::Pg::PG_ASYNC() }); return; }

sub new_tokens
{
	my ($number) = @_;
	return sql($leader, q{SELECT t.token FROM generate_series(1, ?) n, apitoken.create_token('bulk ' || n || ' ' || clock_timestamp(), organization_id => 'acme') t}, $number);
}
my ($done, $accepted, $missing) = (0, 0, 0);
my @tokens;
my $started = time;
while ($done < $checks)
{
	@tokens = new_tokens(200) if !@tokens;
	my $token = shift @tokens;
	foreach my $node (sort keys %on)
	{
		$missing++ if $done < 200 && verdict_of($on{$node}, $token) ne 'valid';
	}
	$write->do('SELECT apitoken.revoke_by_token(?)', undef, $token);
	foreach my $node (sort keys %on)
	{
		$accepted++ if verdict_of($on{$node}, $token) ne 'revoked';
		$done++;
	}
}
is($missing, 0, 'a token that was created is accepted on each replica at once');
is($accepted, 0, 'a token that was revoked is refused on each replica at once');
report('%d verifications right after a revocation returned, on both replicas: %d accepted (%.0f s)', $done, $accepted, time - $started);

# it is remote_apply that does it
my ($first, $second) = new_tokens(2);
# (Patroni would resume a replay that is paused.)
my $startup = startup_of('n2');
kill 'STOP', $startup or die;
{
	# what the setting is does not matter to a superuser's session that sets it
	sql('n1', 'WITH s AS MATERIALIZED (SELECT set_config(\'synchronous_commit\', \'local\', false)) SELECT apitoken.revoke_by_token(?) FROM s', $first);
	is(verdict_of($on{n2}, $first), 'valid', 'with synchronous_commit = local, a replica that is behind accepts it');
	revoke_without_waiting($write, $second);
	wait_until('a commit that waits', sub { sql('n1', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}) eq '1' });
	wait_until('the replay of the other', sub { verdict_of($on{n3}, $second) eq 'revoked' });
	ok(!$write->pg_ready, 'with remote_apply, the revocation does not return before the replay');
	kill 'CONT', $startup or die;
	$write->pg_result;
	is(verdict_of($on{n2}, $second), 'revoked', 'then it is refused');
}

# ----- clients ----------------------------------------------------------------------

# Each writes one line for each answer, with the time.  A writer writes what it is about
# to revoke, because the answer may be lost.
sub client
{
	my ($phase, $name, $work) = @_;
	my $pid = fork // die $!;
	return $pid if $pid;

	open my $out, '>>', "$place/$phase.$name" or POSIX::_exit(1);
	my $say = sub { syswrite($out, join(' ', @_, time) . "\n"); };
	# a commit whose wait was cancelled is not confirmed
	my $warned = 0;
	local $SIG{__WARN__} = sub { $warned = 1 if $_[0] =~ /synchronous/; };
	local $SIG{ALRM} = 'DEFAULT';
	my $dbh;
	while (!-e "$place/$phase.stop")
	{
		eval {
			$dbh //= connect_to(where_is('front', $name =~ /^w/ ? 'writes' : 'reads'));
			$dbh->{PrintWarn} = 1;
			$warned = 0;
			$dbh = $work->($dbh, $say, \$warned);
			1;
		} or do {
			$say->('error', ($@ =~ s/\s+/_/gr));
			eval { $dbh->disconnect } if $dbh;
			undef $dbh;
			select undef, undef, undef, 0.1;
		};
	}
	POSIX::_exit(0);
}

sub writer
{
	my ($phase, $number) = @_;
	my @mine;
	my $count = 0;

	return client($phase, "w$number", sub {
		my ($dbh, $say, $warned) = @_;
		$dbh->begin_work;
		$dbh->do(q{SELECT apitoken.act_as('admin')});
		my ($token) = $dbh->selectrow_array(q{SELECT token FROM apitoken.create_token(?, organization_id => 'acme')}, undef, "$phase w$number " . $count++);
		$dbh->commit;
		die "not confirmed\n" if $$warned;
		$say->('created', $token);
		push @mine, $token;
		# a use, on the leader
		$say->('verifying', $token);
		$say->(verdict_of($dbh, $token) eq 'valid' ? 'used' : 'LOST', $token, 'leader');
		if (@mine > 10)
		{
			my $ended = splice @mine, rand @mine, 1;
			$say->('revoking', $ended);
			$dbh->selectrow_array('SELECT apitoken.revoke_by_token(?)', undef, $ended);
			die "not confirmed\n" if $$warned;
			$say->('revoked', $ended);
		}
		select undef, undef, undef, 0.05;
		return $dbh;
	});
}

# A reader knows what the writers were answered.
sub reader
{
	my ($phase, $number) = @_;
	my (@files, @part, @live, @ended, %revoking);
	my $count = 0;
	my $learn = sub {
		foreach my $writer (1 .. $writers)
		{
			if (!$files[$writer]) { open $files[$writer], '<', "$place/$phase.w$writer" or next; }
			seek $files[$writer], 0, 1;
			while (my $line = readline $files[$writer])
			{
				# the end of a line may not be there yet
				$line = ($part[$writer] // '') . $line;
				$part[$writer] = $line =~ /\n\z/ ? '' : $line;
				next if $part[$writer] ne '';
				my ($what, $token) = split / /, $line;
				if ($what eq 'created') { push @live, $token; }
				elsif ($what eq 'revoking') { $revoking{$token} = 1; @live = grep { $_ ne $token } @live; }
				elsif ($what eq 'revoked') { push @ended, $token; }
			}
		}
	};

	return client($phase, "r$number", sub {
		my ($dbh, $say) = @_;
		$learn->();
		my $ended = @ended && rand() < 0.4;
		my $from = $ended ? \@ended : \@live;
		# mostly of the latest
		my $among = rand() < 0.7 && @$from > 10 ? 10 : scalar @$from;
		my $token = @$from ? $from->[ @$from - 1 - int rand $among ] : undef;
		if (!defined $token) { select undef, undef, undef, 0.05; return $dbh; }
		$say->('verifying', $token) if !$ended;
		my ($verdict, $where) = $dbh->selectrow_array(
			q{SELECT verdict, CASE WHEN pg_is_in_recovery() THEN current_setting('listen_addresses') || ':' || current_setting('port') ELSE 'leader' END FROM apitoken.verify(?)}, undef, $token);
		$learn->();
		if ($verdict eq 'valid') { $say->($ended ? 'ACCEPTED' : 'used', $token, $where); }
		elsif ($verdict eq 'revoked' && ($ended || $revoking{$token})) { $say->('refused', $token, $where); }
		else { $say->('LOST', $token, $where, $verdict); }
		select undef, undef, undef, 0.01;
		# the next one may be led elsewhere
		if (++$count % 50 == 0) { $dbh->disconnect; undef $dbh; }
		return $dbh;
	});
}

# lines PHASE, NAME: what a client wrote: [ what, token, ..., time ]
sub lines { my ($phase, $name) = @_; return map { [ split / / ] } split /\n/, -e "$place/$phase.$name" ? slurp_file("$place/$phase.$name") : ''; }
sub names { return ((map { "w$_" } 1 .. $writers), (map { "r$_" } 1 .. $readers)); }
sub count_of { my ($phase, $what, $since) = @_; return scalar grep { $_->[0] eq $what && $_->[-1] > ($since // 0) } map { lines($phase, $_) } names(); }

# The longest time between two answers of a client of this kind.
sub longest_pause
{
	my ($phase, $kind, $answers) = @_;
	my $longest = 0;
	foreach my $name (grep { /^$kind/ } names())
	{
		my $last;
		foreach my $line (grep { $_->[0] =~ /^(?:$answers)$/ } lines($phase, $name))
		{
			$longest = $line->[-1] - $last if defined $last && $line->[-1] - $last > $longest;
			$last = $line->[-1];
		}
	}
	return $longest;
}

my (%created, %revoked);		# in all phases
# phase NAME, FAULT, loses => whether use may be lost, stale => whether a replica outside of the
# list may accept: FAULT makes the fault, and returns when the cluster is whole again.
my $phases = 0;
sub phase
{
	my ($name, $fault, %how) = @_;
	my $phase = ++$phases;
	my @clients = ((map { writer($phase, $_) } 1 .. $writers), (map { reader($phase, $_) } 1 .. $readers));

	eval { wait_until('work', sub { count_of($phase, 'revoked') > 10 && count_of($phase, 'refused') > 5 }); 1 }
		or die $@ . join("\n", map { "@$_" } map { (grep { $_->[0] eq 'error' } lines($phase, $_))[0] // () } names());
	# longer than a use waits to be written
	sleep $interval + 3 if $how{loses};
	my $begun = time;
	$fault->($phase);
	$leader = settled();
	my $over = time;
	wait_until('work again', sub { count_of($phase, 'revoked', $over) > 10 && count_of($phase, 'refused', $over) > 5 });
	append_to_file("$place/$phase.stop", '');
	waitpid $_, 0 foreach @clients;

	# what the clients saw
	my @all = map { lines($phase, $_) } names();
	my (%used, %window, %tried);
	foreach my $line (@all)
	{
		my ($what, $token) = @$line;
		if ($what eq 'created') { $created{$token} = 1; }
		elsif ($what eq 'revoked') { $revoked{$token} = $line->[-1]; }
		elsif ($what eq 'verifying' || $what eq 'ACCEPTED') { $tried{$token}++; }
		elsif ($what eq 'used')
		{
			$used{$token}++;
			$window{$token}++ if $line->[-1] > $begun - $interval - 2 && $line->[-1] < $over;
		}
	}
	my @accepted = grep { $_->[0] eq 'ACCEPTED' } @all;
	if ($how{stale})
	{
		my @times = sort { $a <=> $b } map { $_->[-1] } @accepted, grep { $_->[0] eq 'LOST' } @all;
		report('%s: a replica outside of the list accepted %d times what was revoked, within %.1f s', $name, scalar @accepted, @times ? $times[-1] - $times[0] : 0);
	}
	else
	{
		is(scalar @accepted, 0, "$name: no token was accepted after its revocation") or diag(join "\n", map { "@$_" } @accepted);
	}
	my @lost = grep { $_->[0] eq 'LOST' } @all;
	report('%s: it did not know a token that had been created %d times', $name, scalar @lost) if $how{stale};
	is(scalar @lost, 0, "$name: each token was there once it was created") or diag(join "\n", map { "@$_" } grep { defined } @lost[ 0 .. 9 ]) if !$how{stale};
	report('%s: %d tokens created, %d revoked, %d verifications; longest pause of verifying %.1f s, of writing %.1f s', $name,
		count_of($phase, 'created'), count_of($phase, 'revoked'), count_of($phase, 'used') + count_of($phase, 'refused'),
		longest_pause($phase, 'r', 'used|refused'), longest_pause($phase, 'w', 'created|revoked'));

	# what the servers know
	foreach my $node (@nodes)
	{
		wait_until("the replay of $node", sub { sql($node, 'SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() < ?', sql($leader, 'SELECT pg_current_wal_flush_lsn()')) ne '1' });
		is(sql($node, q{WITH p AS MATERIALIZED (SELECT (apitoken.parse(t)).id FROM unnest(?::text[]) t) SELECT count(*) FROM p LEFT JOIN apitoken_internal.token_records r USING (id) WHERE r.id IS NULL}, [ keys %created ]),
			'0', "$name: $node has each token that was created");
		is(sql($node, q{SELECT count(*) FROM unnest(?::text[]) t, apitoken.verify(t) v WHERE v.verdict <> 'revoked'}, [ keys %revoked ]),
			'0', "$name: $node refuses each token that was revoked");
	}

	# usage, when all have sent it
	foreach my $node (@nodes)
	{
		wait_until("a flush on $node", sub { eval { sql($node, 'SELECT apitoken.flush_usage()'); 1 } });
	}
	my %counted;
	foreach my $line (sql($leader, q{WITH p AS MATERIALIZED (SELECT t, (apitoken.parse(t)).id FROM unnest(?::text[]) t) SELECT t || ' ' || coalesce(u.accepted, 0) FROM p LEFT JOIN apitoken.token_usage u ON u.token_id = p.id}, [ keys %used ]))
	{
		my ($token, $count) = split / /, $line;
		$counted{$token} = $count;
	}
	my ($total, $lost, $too_few, $too_many) = (0, 0, 0, 0);
	foreach my $token (keys %used)
	{
		$total += $used{$token};
		my $less = $used{$token} - $counted{$token};
		$lost += $less if $less > 0;
		$too_few++ if $less > ($how{loses} ? $window{$token} // 0 : 0);
		$too_many++ if $counted{$token} > $tried{$token};
	}
	is($too_few, 0, $how{loses} ? "$name: no use older than an interval is lost" : "$name: no use is lost");
	is($too_many, 0, "$name: no use is counted twice");
	report('%s: %d of %d uses lost', $name, $lost, $total);
	return $phase;
}

# Replicas went on while the writers waited: answers of replicas in the middle of the pause.
sub went_on
{
	my ($name, $phase) = @_;
	my ($from, $to) = (0, 0);
	my @times = sort { $a <=> $b } map { $_->[-1] } grep { $_->[0] eq 'created' } map { lines($phase, $_) } grep { /^w/ } names();
	foreach my $n (1 .. $#times) { ($from, $to) = @times[ $n - 1, $n ] if $times[$n] - $times[ $n - 1 ] > $to - $from; }
	my $answers = grep { $_->[0] =~ /^(?:used|refused)$/ && $_->[2] ne 'leader' && $_->[-1] > $from && $_->[-1] < $to } map { lines($phase, $_) } grep { /^r/ } names();
	cmp_ok($answers, '>', 10, sprintf('%s: replicas verified while nobody could write', $name));
	report('%s: nobody could write for %.1f s; %d answers of replicas in that time', $name, $to - $from, $answers);
	return;
}

sub log_of { my ($node) = @_; return "$PostgreSQL::Test::Utils::log_path/patroni_$node.log"; }
# The node is back; it has a part of history that the others do not have.
sub rewound { my ($name, $node, $mark) = @_; like(slurp_file(log_of($node), $mark), qr/running pg_rewind/, "$name: $node comes back by pg_rewind"); return; }

foreach my $round (1 .. $rounds)
{
	my $of = $rounds > 1 ? " $round" : '';

	# ----- a switchover
	phase("switchover$of", sub {
		my $to = (grep { $_ ne $leader } @nodes)[0];
		patronictl('switchover', 'app', '--leader', $leader, '--candidate', $to, '--force');
		wait_until('the other leader', sub { (leader() // '') eq $to });
	});

	# ----- the leader is killed; it had committed what nobody else has
	my ($old, $mark, $only_there);
	my $phase = phase("kill -9$of", sub {
		$old = $leader;
		# these would send it
		kill 'STOP', sql($old, 'SELECT pid FROM pg_stat_replication');
		$only_there = sql($old, q{WITH s AS MATERIALIZED (SELECT set_config('synchronous_commit', 'local', false)) SELECT token FROM s, apitoken.create_token('only there', user_id => 'somebody')});
		kill_node_of($old);
		wait_until('a new leader', sub { defined leader() });
		$mark = -s log_of($old);
		start_node_of($old);
	}, loses => 1);
	went_on("kill -9$of", $phase);
	rewound("kill -9$of", $old, $mark);
	is(sql($_, 'SELECT verdict FROM apitoken.verify(?)', $only_there), 'unknown', "kill -9$of: $_ does not have the token that was not confirmed") foreach @nodes;

	SKIP:
	{
		skip no_namespace() . ': no cable to cut, no disk to fill', 1 if no_namespace() ne '';

		# ----- the leader is cut off from everything
		$phase = phase("cut cable$of", sub {
			$old = $leader;
			$mark = -s log_of($old);
			cut_cable($old);
			# somebody who sits at its console
			$only_there = ApitokenCluster::at_console($old, q{SET synchronous_commit = local; SELECT token FROM apitoken.create_token('only there', user_id => 'somebody')});
			wait_until('a new leader', sub { my $new = leader(); defined $new && $new ne $old });
			mend_cable($old);
		}, loses => 1);
		went_on("cut cable$of", $phase);
		rewound("cut cable$of", $old, $mark);
		is(sql($_, 'SELECT verdict FROM apitoken.verify(?)', $only_there), 'unknown', "cut cable$of: $_ does not have the token that was not confirmed") foreach @nodes;

		# ----- the leader's disk is full
		$phase = phase("full disk$of", sub {
			$old = $leader;
			fill_disk($old);
			# the writers' WAL needs a new file at some time
			wait_until('a new leader', sub { my $new = leader(); return 1 if defined $new && $new ne $old; eval { sql($old, 'SELECT pg_switch_wal()') }; return 0; });
			empty_disk($old);
		}, loses => 1);

		# ----- a replica does not hear of the leader, but HAProxy and etcd hear of it
		phase("half cut$of", sub {
			my $replica = (grep { $_ ne $leader } @nodes)[0];
			ApitokenCluster::separate($replica, $leader);
			wait_until('a leader without it', sub { sql($leader, 'SHOW synchronous_standby_names') !~ /$replica/ });
			wait_until('a pool without it', sub { !ApitokenCluster::is_synchronous($replica) });
			sleep 3;
			ApitokenCluster::reconcile($replica, $leader);
		}, stale => 1);
	}
}

# ----- no replica: strict -------------------------------------------------------------

my ($token) = new_tokens(1);
my @replicas = grep { $_ ne $leader } @nodes;
kill_node_of($_) foreach @replicas;
wait_until('a leader without replicas', sub { sql($leader, 'SHOW synchronous_standby_names') eq '*' });
$write = connect_when_possible(where_is('front', 'writes'));
revoke_without_waiting($write, $token);
wait_until('a commit that waits', sub { sql($leader, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}) >= 1 });
is(verdict_of(connect_when_possible(where_is('front', 'reads')), $token), 'valid', 'no replica: the leader serves reads');
ok(!$write->pg_ready, 'no replica: a revocation does not return');
sql($leader, q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
$write->pg_result;
is(sql($leader, 'SELECT verdict FROM apitoken.verify(?)', $token), 'revoked', 'no replica: when its wait is cancelled, it is committed here');
revoke_without_waiting($write, $token);
wait_until('a commit that waits again', sub { sql($leader, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}) >= 1 });
ok(!$write->pg_ready, 'no replica: nor does it return when it is repeated');
start_node_of($_) foreach @replicas;
$write->pg_result;
is(verdict_of(connect_when_possible(where_is('front', 'reads')), $token), 'revoked', 'a replica is back: it returns, and is refused');
is(settled(), $leader, 'both are back');
is(sql($_, 'SELECT verdict FROM apitoken.verify(?)', $token), 'revoked', "refused on $_") foreach @nodes;

# ----- the end ----------------------------------------------------------------------------

is(sql($leader, q{SELECT count(*) FROM apitoken_internal.token_records r WHERE (r.revoked_at IS NOT NULL) <> EXISTS (SELECT FROM apitoken.events e WHERE e.token_id = r.id AND e.action = 'revoke')}),
	'0', 'a revocation and its event are one');
kill_node_of($_) foreach @nodes;
foreach my $node (@nodes)
{
	my $log = slurp_file(log_of($node));
	my $full = 0;

	# A full disk ends a server by PANIC and SIGABRT.  run.sh shall not take these for others.
	$full++ while $log =~ s/PANIC:(?=.*No space left on device)/panic:/;
	$log =~ s/terminated by signal 6:/ended by SIGABRT:/ foreach 1 .. $full;
	unlike($log, qr/terminated by signal (?!9:)|TRAP:|XX000|PANIC:/, "$node: no crash and no internal error in the log");
	unlink log_of($node);
	append_to_file(log_of($node), $log);
}
done_testing();
