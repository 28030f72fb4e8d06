# Figure 15: one server and three, a primary and two replicas, behind PgBouncer;
# and how long it takes until a replica knows of a revocation.

package Replicas;

use strict;
use warnings;

use List::Util qw(min sum);
use POSIX ();
use Time::HiRes qw(sleep);

use constant POOLER_PORT => 6432;

my @servers = qw(primary replica1 replica2);

# Each has a directory for its socket: PgBouncer takes a list of hosts, but one port.
sub socket_of { my ($b, $server) = @_; return "$b->{work}/s-$server"; }

sub start_servers
{
	my ($b, $tokens) = @_;
	# What usage costs to write is figure 17's, and would fall into some rounds only.
	my %settings = $b->settings(shared_buffers => '512MB', max_wal_size => '4GB', track_commit_timestamp => 'on',
		'apitoken.usage_slots' => 4 * $tokens, 'apitoken.flush_interval' => '1h');

	mkdir socket_of($b, $_) foreach @servers;
	{
		local $b->{host} = socket_of($b, 'primary');
		$b->start('primary', %settings, unix_socket_directories => $b->{host});
		$b->make_database('replicated');
		$b->psql("SELECT bench.load(1, $tokens)", db => 'replicated');
		$b->psql_file("$b->{here}/batches.sql", db => 'replicated');
		$b->psql(q{
			-- no transaction goes on for longer than one verification
			CREATE PROCEDURE bench.await_refusal(token text, INOUT at double precision DEFAULT NULL) LANGUAGE plpgsql AS $$
			BEGIN
				WHILE (apitoken.verify(token)).valid LOOP
					COMMIT;
				END LOOP;
				at := extract(epoch FROM clock_timestamp());
			END $$}, db => 'replicated');
		$b->psql('VACUUM ANALYZE', db => 'replicated');
		$b->psql('CHECKPOINT', db => 'replicated');
		$b->{batches}{$_} = $b->psql('SELECT count(*) FROM bench.batch_t', db => 'replicated') foreach qw(alone spread);
	}
	foreach my $replica (@servers[ 1, 2 ])
	{
		my $data = "$b->{work}/data-$replica";

		$b->command("$b->{bin}/pg_basebackup", '-h', socket_of($b, 'primary'), '-p', $b->{port}, '-U', 'postgres', '-D', $data, qw(-c fast -X stream -R));
		open my $conf, '>>', "$data/postgresql.conf" or die "$data: $!";
		print $conf "unix_socket_directories = '", socket_of($b, $replica), "'\n";
		close $conf;
		$b->command("$b->{bin}/pg_ctl", '-D', $data, '-l', "$data.log", qw(-s -w start));
	}
	foreach my $server (@servers)
	{
		$b->psql(q{SELECT count(public.pg_prewarm(oid)) FROM pg_class
			WHERE relnamespace IN ('apitoken'::regnamespace, 'bench'::regnamespace) AND relkind IN ('r', 'i')},
			db => 'replicated', host => socket_of($b, $server));
	}
}

# Two databases of the pooler's: on the primary alone, and on all in turn.
sub start_pooler
{
	my ($b) = @_;
	my $hosts = join ',', map { socket_of($b, $_) } @servers;

	Bench::spew("$b->{dir}/users", qq{"bench" ""\n});
	Bench::spew("$b->{dir}/pgbouncer.ini", <<"INI");
[databases]
alone = host=@{[ socket_of($b, 'primary') ]} port=$b->{port} dbname=replicated
spread = host=$hosts port=$b->{port} dbname=replicated
[pgbouncer]
listen_addr =
listen_port = @{[ POOLER_PORT ]}
unix_socket_dir = $b->{host}
auth_type = trust
auth_file = $b->{dir}/users
pool_mode = transaction
default_pool_size = 12
server_round_robin = 1
log_connections = 0
log_disconnections = 0
INI
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		open STDOUT, '>', "$b->{dir}/pgbouncer.log";
		open STDERR, '>&', \*STDOUT;
		exec 'pgbouncer', "$b->{dir}/pgbouncer.ini" or POSIX::_exit(127);
	}
	foreach (1 .. 100)
	{
		return $pid if -S "$b->{host}/.s.PGSQL." . POOLER_PORT;
		sleep 0.1;
	}
	die 'pgbouncer does not start: ' . Bench::slurp("$b->{dir}/pgbouncer.log");
}

sub postmaster { my ($b, $server) = @_; return Bench::slurp("$b->{work}/data-$server/postmaster.pid") =~ /^(\d+)/ ? $1 : die; }

# Seconds of CPU time that a process and its children have had, those that ended
# included.
sub cpu_time
{
	my ($parent) = @_;
	my $ticks = 0;

	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		my $stat = eval { Bench::slurp($file) } // next;
		my ($pid) = $stat =~ /^(\d+)/;
		my @fields = split ' ', $stat =~ s/^.*\) //sr;		# the third is the first of these
		next unless $pid == $parent || $fields[1] == $parent;
		$ticks += sum @fields[ 11, 12, $pid == $parent ? (13, 14) : () ];
	}
	return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# Servers get one half of the cores, and who asks them the other; what could be had.
sub pin
{
	my ($b, $pooler) = @_;
	my $half = int(cores() / 2);

	return 'all processes share all cores' unless $half && eval {
		keep_to($b, 0, $half - 1, map { postmaster($b, $_) } @servers);
		keep_to($b, $half, cores() - 1, $pooler, $$);
		1;
	};
	return "the servers share $half of " . cores() . ' cores, PgBouncer and pgbench the rest';
}

sub unpin { my ($b) = @_; eval { keep_to($b, 0, cores() - 1, $$, map { postmaster($b, $_) } @servers) }; return; }

sub cores { return scalar(() = Bench::slurp('/proc/cpuinfo') =~ /^processor\s*:/mg); }

# Their children follow, those that are there already excepted.
sub keep_to
{
	my ($b, $first, $last, @pids) = @_;

	$b->command(qw(taskset -a -p -c), "$first-$last", $_) foreach @pids;
	return;
}

# From the commit of a revocation, before it is on disk, to the first refusal at a
# server that is asked all the time; in milliseconds.
sub revocations
{
	my ($b, $server, $from, $count) = @_;
	my @took;

	foreach my $n ($from .. $from + $count - 1)
	{
		my ($id, $token) = split /\|/, $b->psql("SELECT id, token FROM bench.keys WHERE n = $n",
			db => 'replicated', host => socket_of($b, 'primary'));
		my $pid = open my $seen, '-|', "$b->{bin}/psql", '-XAtq', '-h', socket_of($b, $server), '-p', $b->{port}, qw(-U bench -d replicated -c),
			"CALL bench.await_refusal('$token')";

		sleep 0.1;		# it is asking by now
		my $committed = $b->psql(qq{
			DO \$\$ BEGIN PERFORM apitoken.revoke_token('$id', 'key $n'); END \$\$;
			SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM apitoken_internal.token_records WHERE id = '$id'},
			db => 'replicated', host => socket_of($b, 'primary'));
		chomp(my $refused = <$seen> // die "$server does not refuse what was revoked\n");
		close $seen;
		push @took, ($refused - $committed) * 1000;
	}
	return \@took;
}

Bench::figure('15', 'a primary and two replicas behind PgBouncer', sub {
	my ($b) = @_;
	my $tokens = $b->{quick} ? 10_000 : 100_000;
	my $count = $b->{quick} ? 10 : 50;

	return $b->missing('15', 'not measured: pgbouncer is not installed')
		unless grep { -x "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';
	local $ENV{PATH} = "$ENV{PATH}:/usr/sbin";
	start_servers($b, $tokens);
	my $pooler = start_pooler($b);
	eval {
		my $arranged = pin($b, $pooler);
		my %cpu;
		my $measure = sub {
			my ($db, $each, %how) = @_;
			my @processes = ($pooler, map { postmaster($b, $_) } @servers);
			my @before = map { cpu_time($_) } @processes;
			my $rate = $b->pgbench(each => $each, db => $db, port => POOLER_PORT, clients => 16, mode => 'extended', %how);
			my ($pooling, @used) = map { (cpu_time($processes[$_]) - $before[$_]) / $b->{done} * 1e6 } 0 .. $#processes;

			push @{ $cpu{pooler} }, $pooling;
			push @{ $cpu{$db} }, sum(@used);
			push @{ $cpu{share} }, min(@used) / sum(@used) if $db eq 'spread';
			return $rate;
		};
		my $three = sub {
			my ($what, $each) = @_;

			%cpu = ();
			$b->compare(figure => '15', unit => 'calls/s', what => "$what, 16 clients: a primary and two replicas / the primary alone",
				ours => sub { $measure->('spread', $each) }, yardstick => sub { $measure->('alone', $each) });
		};

		$b->note(figure => '15', text => "$tokens tokens; $arranged; transaction pooling, statements not prepared");
		# that all three take their memory from one machine costs others as well
		$three->('SELECT by primary key', 'SELECT id, label, digest FROM apitoken_internal.token_records WHERE id = :i') unless $b->{quick};
		$three->('verify($1)', 'SELECT * FROM apitoken.verify(:t)');
		# the first round does not count
		shift @$_ foreach values %cpu;
		$b->report(figure => '15', unit => 'us', what => 'CPU time of the servers for one of these, the primary alone', value => $cpu{alone});
		$b->report(figure => '15', unit => 'us', what => 'the same, a primary and two replicas', value => $cpu{spread});
		$b->report(figure => '15', unit => 'us', what => 'CPU time of PgBouncer for one', value => $cpu{pooler});
		$b->report(figure => '15', unit => '', what => 'share of the CPU time of the server that had least of it', value => $cpu{share});

		$b->{batches}{replicated} = $b->{batches}{alone};
		$measure->('replicated', 'SELECT * FROM apitoken.verify(:t)', host => socket_of($b, 'primary'), port => $b->{port},
			clients => 2, mode => 'prepared') foreach 0 .. $b->{rounds};
		$b->report(figure => '15', unit => 'us', what => 'CPU time of the primary for one, prepared, without PgBouncer',
			value => [ @{ $cpu{replicated} }[ 1 .. $b->{rounds} ] ]);
		unpin($b);
		$b->report(figure => '15', unit => 'ms', what => 'from the commit of a revocation until a replica refuses the token',
			value => revocations($b, 'replica1', 1, $count));
		$b->report(figure => '15', unit => 'ms', what => 'the same, the primary',
			value => revocations($b, 'primary', 1 + $count, $count));
		1;
	};
	my $failure = $@;

	unpin($b);
	kill 'INT', $pooler;
	waitpid $pooler, 0;
	$b->stop($_) foreach reverse @servers;
	die $failure if $failure;
}, long => 1, own_server => 1);

1;
