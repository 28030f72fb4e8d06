# pgbouncer in front of a test's server, with transaction pooling.

package ApitokenPooler;

use strict;
use warnings;

use ApitokenTest;
use Exporter 'import';
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(pooler_version start_pooler stop_pooler);

# APITOKEN_PGBOUNCER names another program than the one on the PATH.
sub program { return $ENV{APITOKEN_PGBOUNCER} // 'pgbouncer'; }

# Its version, and whether it supports named prepared statements of the protocol:
# 1.21 and later do.
sub pooler_version
{
	my ($out, $err) = ('', '');

	IPC::Run::run([ program(), '--version' ], '>', \$out, '2>', \$err) or die "pgbouncer does not run: $err";
	my ($version, $major, $minor) = $out =~ /^PgBouncer ((\d+)\.(\d+)\S*)/m or die "what version is this: $out";
	return ($version, $major > 1 || $minor >= 21);
}

# start_pooler NODE, users => [...], conf => settings: returns where to connect, as
# { host, port }, and the log.
sub start_pooler
{
	my ($node, %how) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $pooler = { host => $dir, port => PostgreSQL::Test::Cluster::get_free_port(), log => "$dir/log" };
	my (undef, $prepares) = pooler_version();

	append_to_file("$dir/users", join('', map { "\"$_\" \"\"\n" } @{ $how{users} }));
	append_to_file("$dir/ini", sprintf(<<'INI', $node->host, $node->port, $pooler->{port}, $dir, $dir));
[databases]
postgres = host=%s port=%s
[pgbouncer]
listen_port = %s
unix_socket_dir = %s
auth_type = trust
auth_file = %s/users
pool_mode = transaction
log_connections = 0
log_disconnections = 0
INI
	append_to_file("$dir/ini", "max_prepared_statements = 100\n") if $prepares;
	append_to_file("$dir/ini", $how{conf} // '');
	start_program("pgbouncer $pooler->{port}", [ program(), "$dir/ini" ], log => $pooler->{log}, ready => sub { -S "$dir/.s.PGSQL.$pooler->{port}" });
	return $pooler;
}

sub stop_pooler { my ($pooler) = @_; stop_program("pgbouncer $pooler->{port}"); return; }

1;
