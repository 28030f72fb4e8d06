# Three servers under Patroni with etcd, PgBouncer beside each, and HAProxy in front:
# the files of examples/cluster, with other paths, addresses where that is necessary, and
# passwords.
#
# If the kernel lets this user make namespaces, the test runs in its own: nothing listens
# on the machine's network, each node has an address and a cable of its own that can be
# pulled, each node has a disk of its own that can be filled, and every process ends with
# the test.  Addresses and ports are then those of the files.  Otherwise everything is on
# 127.0.0.1, with free ports, and cables and disks cannot be tested.

package ApitokenCluster;

use strict;
use warnings;

use ApitokenTest;
use Cwd qw(getcwd);
use Exporter 'import';
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

our @EXPORT = qw(@nodes missing_programs enter_namespace no_namespace lay_out start_etcd start_node_of kill_node_of
  start_haproxy node_directory sql where_is member_states leader settled wait_until password patronictl cut_cable mend_cable
  fill_disk empty_disk processes_of startup_of);

our @nodes = qw(n1 n2 n3);
my %host = (n1 => '10.0.0.11', n2 => '10.0.0.12', n3 => '10.0.0.13', front => '10.0.0.10');
my %service = (etcd => 2379, peers => 2380, postgres => 5432, pooler => 6432, rest => 8008, writes => 5000, reads => 5001);
my %password = map { ($_ => "$_-" . join('', map { ('a' .. 'z')[rand 26] } 1 .. 16)) } qw(superuser replicator rewinder backend sender);
my $dir;				# of all files
my %holder;				# the process whose network namespace is that of a node
my %port;				# 'n1 postgres' => port, without namespaces

# The programs that are not there.
sub missing_programs
{
	my @missing = grep { my $p = $_; !grep { -x "$_/$p" } split(/:/, $ENV{PATH}), '/usr/sbin' } qw(patroni patronictl etcd haproxy pgbouncer);

	push @missing, 'DBD::Pg' if !eval { require DBD::Pg; 1 };
	return @missing;
}

# ---- namespaces

# Run this program again in namespaces of its own, if that is possible: before it prints
# anything.
sub enter_namespace
{
	return if defined $ENV{APITOKEN_NAMESPACE};
	my @unshare = qw(unshare --user --map-current-user --keep-caps --net --mount --pid --fork --kill-child --mount-proc);
	my ($out, $err) = ('', '');
	my $works = eval {
		IPC::Run::run([ @unshare, 'sh', '-c', 'ip link set lo up && ip link add cables type bridge && unshare --net true && d=$(mktemp -d) && mount -t tmpfs -o size=1m none "$d" && umount "$d" && rmdir "$d"' ],
			'>', \$out, '2>', \$err);
	};
	if (!$works)
	{
		$ENV{APITOKEN_NAMESPACE} = 'no namespaces: ' . ((split /\n/, $@ || $err || 'unshare failed')[0]);
		return;
	}
	$ENV{APITOKEN_NAMESPACE} = '';
	# The first process inherits those whose parents end, and must wait for them, as a shell
	# does: Patroni takes a server that nobody has waited for as running.
	exec @unshare, 'sh', '-c', '"$@"; exit $?', 'sh', $^X, (map { "-I$_" } @INC), $0 or die "unshare: $!";
}
# Why there are none, or ''.
sub no_namespace { return $ENV{APITOKEN_NAMESPACE}; }

sub command { my (@command) = @_; system(@command) == 0 or die "@command: $?"; return; }
# inside NODE, COMMAND...: the command that runs there
sub inside { my ($node, @command) = @_; return ($holder{$node} ? ('nsenter', '-t', $holder{$node}, '-n') : (), @command); }

sub make_network
{
	my $ip = 'ip';

	command($ip, qw(link set lo up));
	command($ip, qw(link add cables type bridge));
	command($ip, 'addr', 'add', "$host{front}/24", 'dev', 'cables');
	command($ip, qw(link set cables up));
	foreach my $node (@nodes)
	{
		my $released = "$dir/$node.network";

		defined($holder{$node} = fork) or die $!;
		exec 'unshare', '--net', 'sh', '-c', "touch $released && exec sleep infinity" or POSIX::_exit(1) if $holder{$node} == 0;
		wait_until("a network of $node", sub { -e $released });
		command($ip, 'link', 'add', "to_$node", 'type', 'veth', 'peer', 'name', 'cable', 'netns', $holder{$node});
		command($ip, 'link', 'set', "to_$node", 'master', 'cables', 'up');
		command(inside($node, $ip, qw(link set lo up)));
		command(inside($node, $ip, 'addr', 'add', "$host{$node}/24", 'dev', 'cable'));
		command(inside($node, $ip, qw(link set cable up)));
	}
	return;
}

sub cut_cable { my ($node) = @_; command('ip', 'link', 'set', "to_$node", 'down'); return; }
sub mend_cable { my ($node) = @_; command('ip', 'link', 'set', "to_$node", 'up'); return; }

# REPLICA and LEADER do not hear of each other; others do.
sub separate { my ($replica, $leader) = @_; command(inside($replica, 'ip', qw(route add blackhole), "$host{$leader}/32")); return; }
sub reconcile { my ($replica, $leader) = @_; command(inside($replica, 'ip', qw(route del blackhole), "$host{$leader}/32")); return; }

# Leave no byte free where the node has its files.
sub fill_disk
{
	my ($node) = @_;

	open my $file, '>', "$dir/$node/filler" or die $!;
	foreach my $size (1 << 20, 4096, 1)
	{
		1 while (syswrite($file, "\0" x $size) // 0) == $size;
	}
	close $file;
	return;
}
sub empty_disk { my ($node) = @_; unlink "$dir/$node/filler" or die $!; return; }

# ---- files

sub node_directory { my ($node) = @_; return "$dir/$node"; }
# where_is NODE or 'front', SERVICE: (host, port)
sub where_is
{
	my ($node, $service) = @_;

	return ($host{$node}, $service{$service}) if no_namespace() eq '';
	return ('127.0.0.1', $port{"$node $service"} //= PostgreSQL::Test::Cluster::get_free_port());
}
sub address { my ($node, $service) = @_; return join(':', where_is($node, $service)); }
sub password { my ($whose) = @_; return $password{$whose}; }

# Lay out the files of examples/cluster.
sub lay_out
{
	$dir = PostgreSQL::Test::Utils::tempdir_short();
	make_network() if no_namespace() eq '';
	my $bindir = PostgreSQL::Test::Utils::run_command([ 'pg_config', '--bindir' ]);
	foreach my $node (@nodes)
	{
		mkdir "$dir/$node" or die;
		command(qw(mount -t tmpfs -o size=640m none), "$dir/$node") if no_namespace() eq '';
		mkdir "$dir/$node/s" or die;
		foreach my $file (qw(patroni.yml pgbouncer.ini userlist.txt sender.pgpass))
		{
			adapt($file, "$dir/$node/$file", $node, $bindir);
		}
	}
	adapt($_, "$dir/$_") foreach qw(etcd.yml haproxy.cfg setup.sql);
	return;
}

# Each replacement must find something, so that the files cannot change unseen.
sub replace
{
	my ($text, $what, $by, $file) = @_;

	$$text =~ s/$what/ref $by ? $by->() : $by/gme or die "$file has nothing like $what";
	return;
}

sub adapt
{
	my ($from, $to, $node, $bindir) = @_;
	my $text = slurp_file(getcwd() . "/examples/cluster/$from");
	my %in = (
		'etcd.yml' => sub { replace(\$text, '/var/lib/etcd/app', "$dir/etcd", $from); },
		'haproxy.cfg' => sub { },
		'setup.sql' => sub { replace(\$text, "$_-password", $password{$_}, $from) foreach qw(backend sender); },
		'userlist.txt' => sub { replace(\$text, 'backend-password', $password{backend}, $from); },
		'sender.pgpass' => sub { replace(\$text, 'sender-password', $password{sender}, $from); },
		'pgbouncer.ini' => sub {
			replace(\$text, '/var/run/postgresql', "$dir/$node/s", $from);
			replace(\$text, '/etc/pgbouncer', "$dir/$node", $from);
			replace(\$text, '^listen_addr = 10\.0\.0\.11', "listen_addr = $host{$node}", $from);
		},
		'patroni.yml' => sub {
			replace(\$text, '/var/lib/postgresql/15/app', "$dir/$node/data", $from);
			replace(\$text, '/var/lib/postgresql/', "$dir/$node/", $from);
			replace(\$text, '/usr/lib/postgresql/15/bin', $bindir, $from);
			# the passfile has the same path on all nodes
			replace(\$text, '/etc/patroni/', "$dir/n1/", $from);
			replace(\$text, '/var/run/postgresql', "$dir/$node/s", $from);
			replace(\$text, "$_-password", $password{$_}, $from) foreach qw(superuser replicator rewinder);
			replace(\$text, '^(.*)  # this node$', sub { $1 =~ s/\bn1\b/$node/r =~ s/10\.0\.0\.11/$host{$node}/r }, $from);
		});
	$in{$from}->();

	# free ports on 127.0.0.1
	if (no_namespace() ne '')
	{
		my %service_of = reverse %service;
		my %node_of = reverse %host;
		my $all = join('|', map { quotemeta } values %host);

		$text =~ s/^(\s*server.* )($all):(\d+) check port (\d+)$/$1 . address($node_of{$2}, $service_of{$3}) . ' check port ' . (where_is($node_of{$2}, $service_of{$4}))[1]/gme;
		$text =~ s/($all):(\d+)/address($node_of{$1}, $service_of{$2})/ge;
		$text =~ s/host=($all),($all),($all) port=5432,5432,5432/'host=127.0.0.1,127.0.0.1,127.0.0.1 port=' . join(',', map { (where_is($_, 'postgres'))[1] } @nodes)/ge;
		$text =~ s/^listen_addr = ($all)\nlisten_port = 6432$/"listen_addr = 127.0.0.1\nlisten_port = " . (where_is($node, 'pooler'))[1]/gme;
		$text =~ s/ port=5432 / ' port=' . (where_is($node, 'postgres'))[1] . ' '/ge if $from eq 'pgbouncer.ini';
		$text =~ s{10\.0\.0\.0/24}{127.0.0.0/8}g;
		die "an address is left in $from: $1" if $text =~ /^((?!\s*(?:#|;|--)).*10\.0\.0.*)/m;
	}
	append_to_file($to, $text);
	chmod 0600, $to or die;
	return;
}

# ---- programs

sub start_etcd
{
	start_program('etcd', [ 'etcd', '--config-file', "$dir/etcd.yml" ], ready => sub { http('front', 'etcd', '/health') =~ /true/ });
	return;
}

# Patroni, which starts the server, and PgBouncer.
sub start_node_of
{
	my ($node) = @_;

	start_program("patroni $node", [ inside($node, 'patroni', "$dir/$node/patroni.yml") ],
		log => "$PostgreSQL::Test::Utils::log_path/patroni_$node.log", ready => sub { http($node, 'rest', '/liveness', 'status') ne '599' });
	start_program("pgbouncer $node", [ inside($node, 'pgbouncer', "$dir/$node/pgbouncer.ini") ],
		log => "$PostgreSQL::Test::Utils::log_path/pgbouncer_$node.log", ready => sub { connects(where_is($node, 'pooler')) });
	return;
}

sub connects { my ($host, $port) = @_; return defined IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port, Timeout => 2); }

# Ids of the postmaster, of its children, and of Patroni.
sub processes_of
{
	my ($node) = @_;
	my @found;

	foreach my $file (glob '/proc/[0-9]*/cmdline')
	{
		my ($pid) = $file =~ /(\d+)/;
		my $command = eval { slurp_file($file) } // next;
		my $in = readlink("/proc/$pid/cwd") // '';
		push @found, $pid if $in eq "$dir/$node/data" || $command =~ m{\Q$dir/$node/patroni.yml\E};
	}
	return @found;
}

# All at once, Patroni and the server, as if the machine had stopped.
# startup_of NODE: the process that replays.
sub startup_of
{
	my ($node) = @_;
	my ($pid) = grep { (eval { slurp_file("/proc/$_/cmdline") } // '') =~ /startup recovering/ } processes_of($node);

	return $pid // die "$node does not replay";
}

sub kill_node_of
{
	my ($node) = @_;

	kill 'KILL', processes_of($node);
	wait_until("the end of $node", sub { !processes_of($node) });
	stop_program("$_ $node") foreach "patroni", "pgbouncer";
	return;
}

sub start_haproxy
{
	start_program('haproxy', [ 'haproxy', '-db', '-f', "$dir/haproxy.cfg" ], ready => sub { connects(where_is('front', 'writes')) });
	return;
}

sub patronictl
{
	my (@arguments) = @_;
	my $out = '';

	# of any node: it asks etcd
	IPC::Run::run([ 'patronictl', '-c', "$dir/n1/patroni.yml", @arguments ], '<', \undef, '>', \$out, '2>', \$out, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	note $out;
	return $out;
}

# ---- state

# http NODE, SERVICE, PATH: the answer's text, or with 'status' its status (599: none)
my $http = HTTP::Tiny->new(timeout => 3);
sub http
{
	my ($node, $service, $path, $what) = @_;

	return $http->get('http://' . address($node, $service) . $path)->{ $what // 'content' };
}

sub wait_until
{
	my ($what, $condition, $seconds) = @_;
	my $end = time + ($seconds // 90);

	while (!$condition->())
	{
		die "waited in vain for: $what" if time > $end;
		select undef, undef, undef, 0.2;
	}
	return;
}

# As NODE knows it: { n1 => 'leader running', n2 => 'sync_standby running', ... }
sub member_states
{
	my ($node) = @_;
	my $cluster = eval { JSON::PP::decode_json(http($node, 'rest', '/cluster')) } // return {};

	return { map { ($_->{name} => "$_->{role} $_->{state}") } @{ $cluster->{members} // [] } };
}

# The leader, of which its own Patroni and HAProxy know; or undef.
sub leader
{
	foreach my $node (@nodes)
	{
		return $node if http($node, 'rest', '/primary', 'status') eq '200';
	}
	return undef;
}

sub is_synchronous { my ($node) = @_; return http($node, 'rest', '/sync', 'status') eq '200'; }

# A leader, and all others are synchronous: each by its own answer.
sub settled
{
	my (@others) = @_;

	wait_until('a leader, and synchronous replicas', sub {
		my $leader = leader() // return 0;
		foreach my $node (@others ? @others : @nodes)
		{
			return 0 if $node ne $leader && http($node, 'rest', '/sync', 'status') ne '200';
		}
		return 1;
	});
	return leader();
}

# sql NODE, SQL, PARAMETERS...: the first column, as superuser of the server itself.
sub sql
{
	my ($node, $sql, @parameters) = @_;
	my ($host, $port) = where_is($node, 'postgres');
	my $dbh = DBI->connect("dbi:Pg:host=$host;port=$port;dbname=" . ($ENV{APITOKEN_DATABASE} // 'app') . ';connect_timeout=5', 'postgres', $password{superuser},
		{ RaiseError => 1, PrintError => 0, pg_server_prepare => 0 });
	my $values = $sql =~ /^\s*(?:SELECT|WITH|SHOW|UPDATE.*RETURNING)/is ? $dbh->selectcol_arrayref($sql, undef, @parameters) : [ $dbh->do($sql, undef, @parameters) ];

	$dbh->disconnect;
	return wantarray ? @$values : $values->[0];
}

# run_file NODE, FILE: as the file says, in one transaction.  at_console NODE, SQL: from the
# machine itself, whatever its cables do.
sub psql_of
{
	my ($node, @arguments) = @_;
	my ($host, $port) = where_is($node, 'postgres');
	my $out = '';

	local $ENV{PGPASSWORD} = $password{superuser};
	IPC::Run::run([ inside($node, 'psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-h', $host, '-p', $port, '-U', 'postgres', '-d', 'app', @arguments) ], '>', \$out) or die;
	chomp $out;
	return $out;
}
sub run_file { my ($node, $file) = @_; psql_of($node, '-1', '-f', "$dir/$file"); return; }
sub at_console { my ($node, $sql) = @_; return psql_of($node, '-c', $sql); }

# This runs before the END of ApitokenTest, which would stop one program after the other,
# and Patroni waits for an etcd that has gone.
my $test_process = $$;
END
{
	kill 'KILL', processes_of($_) foreach defined $dir && $$ == $test_process ? @nodes : ();
}

1;
