# What the tests of use that is sent to another server share: a way that can be cut,
# crashes, and a server that lives in the past.

package ApitokenSending;

use strict;
use warnings;

use ApitokenTest;
use Exporter 'import';
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(way start_way mode release kill_9 flush used use_text survives_crashes $lost build_clock);

# the error of a flush whose connection was cut
our $lost = 'could not send token usage: the connection was lost or timed out';

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

# flush NODE, DATABASE: the answer of flush_usage(), which sends on a server that does not write.
sub flush { my ($node, $db) = @_; return answer($node, 'SELECT apitoken.flush_usage()', verbosity => 'terse', database => $db // 'postgres'); }

# use_text NODE, TOKEN, NUMBER, ARGUMENTS: accepted uses of a token text.
sub use_text
{
	my ($node, $text, $number, $arguments) = @_;
	my $valid = answer($node, "SELECT (apitoken.verify('$text'" . ($arguments // '') . ")).verdict FROM generate_series(1, $number)", user => 'regress_apitoken_backend');

	return $valid eq join(' ', ('valid') x $number) ? $number : $valid;
}

# used NODE, LABEL, DATABASE: the accepted uses of a token that were written.
sub used { my ($node, $label, $db) = @_; return $node->safe_psql($db // 'postgres', "SELECT accepted FROM used WHERE label = '$label'"); }

# survives_crashes FROM, TO, LABEL, TEXT: no use of this token is counted twice when the
# server that sends is restarted or crashes, or the one that counts crashes.  Returns the
# number of uses that are counted.
sub survives_crashes
{
	my ($from, $to, $label, $text) = @_;
	my $expected = used($to, $label);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $cut ('drop_request', 'drop_answer')
	{
		# a clean restart keeps what the server knows
		$expected += use_text($from, $text, 5);
		mode($cut);
		like(flush($from), qr/$lost/, "restart after $cut: an error");
		mode('pass');
		$expected += use_text($from, $text, 1);
		$from->restart;
		is(flush($from), '', "restart after $cut: sent");
		is(used($to, $label), $expected, "restart after $cut: counted once");

		# a crash forgets it
		is(use_text($from, $text, 5), 5, "crash after $cut: used");
		mode($cut);
		like(flush($from), qr/$lost/, "crash after $cut: an error");
		mode('pass');
		$expected = used($to, $label);
		kill_9($from, $from->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'apitoken launcher'}));
		is(stat_of($from, 'pending'), '0', "crash after $cut: nothing is pending");
		$expected += use_text($from, $text, 2);
		is(flush($from), '', "crash after $cut: sent");
		is(used($to, $label), $expected, "crash after $cut: nothing is counted twice");
	}

	# a crash while the use is counted
	my $name = 'crash of the ' . $to->name;
	my $locker = $to->background_psql('postgres', on_error_stop => 0);
	$locker->query('BEGIN; LOCK TABLE apitoken.token_usage');
	$expected += use_text($from, $text, 3);
	my $session = connection($from);
	$session->query_until(qr/started/, "\\echo started\nSELECT apitoken.flush_usage();\n");
	$to->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'apitoken' AND wait_event_type = 'Lock'}) or die;
	kill_9($to, $to->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE application_name = 'apitoken'}));
	like(ask($session, ''), qr/ERROR/, "$name: an error");
	$locker->{run}->kill_kill;
	$session->quit;
	is(flush($from), '', "$name: sent");
	is(used($to, $label), $expected, "$name: counted once");
	return $expected;
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
