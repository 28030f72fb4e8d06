# Use of tokens on a standby arrives on the primary, once: whatever happens to the
# connection, the answer, the servers and their roles in between.  Also: who may
# send, hostile batches, failures and their reports, cascades and promotions.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# ----- a primary, a standby, and a way between them that can be cut -------------

# sends happen when a test calls flush_usage()
my $preload = q{
	shared_preload_libraries = 'apitoken'
	apitoken.flush_interval = '1h'
	max_connections = 30
	wal_receiver_status_interval = '100ms'
};
my $primary = start_node('primary', init => [ allows_streaming => 1 ], conf => $preload);
$primary->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme'), ('other', 'Other');
	INSERT INTO apitoken.users (id, name, notify) VALUES ('u', 'User', '{new_network}');
	INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'developer');
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_sender LOGIN;
	CREATE ROLE regress_apitoken_nobody LOGIN;
	CREATE ROLE regress_apitoken_all LOGIN;
	SELECT apitoken.allow('regress_apitoken_backend', 'verify');
	SELECT apitoken.allow('regress_apitoken_sender', 'usage');
	SELECT apitoken.allow('regress_apitoken_all', 'use', 'manage', 'verify', 'act', 'directory', 'monitor', 'notify');
} . view_of_usage());
my %token = create_each($primary, {
	a => q{organization_id => 'acme'},
	b => q{organization_id => 'acme'},
	personal => q{user_id => 'u'},
	networks => q{organization_id => 'acme', allowed_networks => '{10.0.0.0/8}'},
	daily => q{user_id => 'u', quota => 3, quota_period => 'day'},
	rotated => q{user_id => 'u'},
});
my %id = map { $_ => $primary->safe_psql('postgres', "SELECT id FROM apitoken.tokens WHERE label = '$_'") } keys %token;

# A proxy on a socket, in front of the primary.  The file "mode" tells what becomes of
# a connection in which record_usage() is called.
my $way = PostgreSQL::Test::Utils::tempdir_short();
sub mode { my ($mode) = @_; unlink "$way/release"; append_to_file("$way/mode.new", $mode); rename "$way/mode.new", "$way/mode" or die $!; return; }
sub start_way
{
	my ($to) = @_;
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
	}, $way, $primary->port, $to ], ready => sub { -S "$way/.s.PGSQL." . $primary->port });
	return;
}
start_way($primary->host);

$primary->backup('base');
my $conninfo = "host=$way port=" . $primary->port . ' user=regress_apitoken_sender';
my $sends = "apitoken.primary_conninfo = '$conninfo'";
my $standby = start_standby($primary, 'standby', conf => $sends);
sub replayed { $primary->wait_for_catchup($_, 'replay', $primary->lsn('insert')) foreach @_ ? @_ : $standby; return; }

# flush NODE: the answer of flush_usage(), which sends on a standby
sub flush { my ($node) = @_; return answer($node, 'SELECT apitoken.flush_usage()', verbosity => 'terse'); }
# use_token NODE, LABEL, NUMBER, ARGUMENTS: accepted uses
sub use_token
{
	my ($node, $label, $number, $arguments) = @_;
	my $valid = answer($node, "SELECT (apitoken.verify('$token{$label}'" . ($arguments // '') . ")).verdict FROM generate_series(1, $number)", user => 'regress_apitoken_backend');
	return $valid eq join(' ', ('valid') x $number) ? $number : $valid;
}
sub used { my ($node, $label) = @_; return $node->safe_psql('postgres', "SELECT accepted FROM used WHERE label = '$label'"); }
sub error_of { my ($node) = @_; return stat_of($node, 'last_send_error'); }
# set NODE, SETTING => VALUE
sub set
{
	my ($node, $setting, $value) = @_;
	$node->safe_psql('postgres', $_) foreach "ALTER SYSTEM SET $setting = '" . ($value =~ s/'/''/gr) . q{'}, 'SELECT pg_reload_conf()';
	$node->poll_query_until('postgres', "SELECT current_setting('$setting') = '" . ($value =~ s/'/''/gr) . q{'}) or die;
	return;
}

# ----- use arrives --------------------------------------------------------------

is(use_token($standby, 'a', 3, q{, client_address => '192.0.2.7'}), 3, 'a token is used on the standby');
is(answer($standby, verdict($token{networks}), user => 'regress_apitoken_backend'), 'network_refused', 'and another one is refused');
is(stat_of($standby, 'pending, sent, last_send_at IS NULL'), '4|0|t', 'which is pending');
is(flush($standby), '', 'it is sent');
is(stat_of($standby, 'pending, sent, last_send_at > now() - interval \'1 min\', last_send_error IS NULL, last_flush_at IS NULL'), '0|4|t|t|t', 'nothing is pending');
is($primary->safe_psql('postgres', q{SELECT accepted, refused, host(last_used_from), last_used_at BETWEEN now() - interval '1 min' AND now() FROM used WHERE label = 'a'}),
	'3|0|192.0.2.7|t', 'and it is on the primary, with time and address');
is($primary->safe_psql('postgres', "SELECT day = (now() AT TIME ZONE 'UTC')::date, accepted, refusals FROM apitoken.token_usage_daily WHERE token_id = '$id{networks}'"),
	't|0|{"network_refused": 1}', 'with refusals by verdict');
replayed();
is(used($standby, 'a'), '3', 'and comes back to the standby');

# both sides at once: counts add, the greatest time wins
is(use_token($standby, 'a', 2, q{, client_address => '192.0.2.8'}), 2, 'used on the standby');
is(use_token($primary, 'a', 4, q{, client_address => '192.0.2.9'}), 4, 'then on the primary');
is(flush($primary) . flush($standby), '', 'and both are written');
is($primary->safe_psql('postgres', q{SELECT accepted, host(last_used_from) FROM used WHERE label = 'a'}), '9|192.0.2.9', 'the counts add, the later use is the last one');

done_testing();
