# What the tests of use that is sent to another server share: a way that can be cut,
# crashes, and a server that lives in the past.

package ApitokenSending;

use strict;
use warnings;

use ApitokenTest;
use Exporter 'import';
use PostgreSQL::Test::Utils;

our @EXPORT = qw(way start_way mode release kill_9 build_clock);

my $way;

# way: the directory of the socket, to connect to.
sub way { $way //= PostgreSQL::Test::Utils::tempdir_short(); return $way; }

# mode MODE: what becomes of connections in which record_usage() is called from now on:
# pass, drop_request (the server does not get it), drop_answer (the client does not get
# the answer) or hold (the server gets it after release).
sub mode
{
	my ($mode) = @_;

	unlink way() . '/release';
	append_to_file("$way/mode.new", $mode);
	rename "$way/mode.new", "$way/mode" or die $!;
	return;
}
sub release { append_to_file(way() . '/release', ''); return; }

# start_way NODE: a proxy on a socket of the same port, in front of the server.
sub start_way
{
	my ($node) = @_;

	mode('pass');
	start_program('way', [ 'perl', '-e', q{
		use strict;
		use IO::Socket::UNIX;
		use IO::Select;
		$SIG{PIPE} = 'IGNORE';
		$SIG{CHLD} = 'IGNORE';
		my ($way, $port, $to) = @ARGV;
		unlink "$way/.s.PGSQL.$port";
		my $listen = IO::Socket::UNIX->new(Local => "$way/.s.PGSQL.$port", Listen => 20) or die $!;
		sub mode { open my $f, '<', "$way/mode" or return ''; local $/; return <$f>; }
		while (1)
		{
			my $client = $listen->accept or next;
			next if fork;
			my $server = IO::Socket::UNIX->new(Peer => "$to/.s.PGSQL.$port") or exit;
			my $select = IO::Select->new($client, $server);
			my $mode = '';
			while (1)
			{
				foreach my $from ($select->can_read)
				{
					my $data;
					exit if !sysread($from, $data, 1 << 20);
					$mode = mode() if $from == $client && $data =~ /record_usage/;
					exit if $mode eq 'drop_request';
					# the transaction has ended when the answer comes
					exit if $mode eq 'drop_answer' && $from == $server;
					if ($mode eq 'hold')
					{
						$select->remove($client);
						close $client;
						select undef, undef, undef, 0.05 until -e "$way/release";
						$mode = 'held';
					}
					my $other = $from == $client ? $server : $client;
					syswrite($other, $data) == length($data) or exit;
				}
			}
		}
	}, $way, $node->port, $node->host ], ready => sub { -S "$way/.s.PGSQL." . $node->port });
	return;
}

# kill_9 NODE, PID: of one of its processes; then the server is started again.
sub kill_9
{
	my ($node, $pid) = @_;

	kill 'KILL', $pid or die;
	# the server stays down after a crash
	$node->{_pid} or die;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default) { last if !kill 0, $node->{_pid}; select undef, undef, undef, 0.1; }
	$node->_update_pid(0);
	$node->start;
	return;
}

# build_clock FILE: a library for LD_PRELOAD, with which the server's clock is behind by
# the number of days in the file that APITOKEN_DAYS names.
sub build_clock
{
	my ($file) = @_;

	return build_library($file, q{
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

int
gettimeofday(struct timeval *now, void *zone)
{
	static int (*real) (struct timeval *, void *);
	int			result;
	int			days = 0;
	FILE	   *file = fopen(getenv("APITOKEN_DAYS"), "r");

	if (real == NULL)
		real = (int (*) (struct timeval *, void *)) dlsym(RTLD_NEXT, "gettimeofday");
	result = real(now, zone);
	if (file != NULL)
	{
		if (fscanf(file, "%d", &days) == 1)
			now->tv_sec -= days * 86400;
		fclose(file);
	}
	return result;
}
});
}

1;
