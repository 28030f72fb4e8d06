# What several TAP tests need beyond PostgreSQL::Test::Cluster.
#
# Used there already, and not offered anew: $node->poll_query_until, wait_for_log
# (from the place that log_mark gives), safe_psql, background_psql.  init() gives
# a server that listens on a socket only, without fsync, that logs each
# statement, and stays down after a crash (restart_after_crash = off).

package ApitokenTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(start_node answer connection ask log_mark log_since);

# start_node NAME, preload => 'shared' or 'session', conf => settings, init =>
# arguments of init(): a server that runs, with the library preloaded or not.
sub start_node
{
	my ($name, %how) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(@{ $how{init} // [] });
	$node->append_conf('postgresql.conf', "$how{preload}_preload_libraries = 'apitoken'") if $how{preload};
	$node->append_conf('postgresql.conf', $how{conf}) if $how{conf};
	$node->start;
	return $node;
}

# The SQLSTATE of a warning that is left out of all answers, if a test sets one.
our $unwarned;

# What psql wrote as one line: the output, then what was raised in brackets, as
# '1 2 [ERROR: 25006]'.
sub one_line
{
	my ($out, $err) = @_;

	$err =~ s/^psql:<stdin>:\d+: //mg;
	$err =~ s/^WARNING:  $unwarned\n?//mg if defined $unwarned;
	foreach ($out, $err)
	{
		s/\s+$//;
		s/\n+/ /g;
	}
	$err =~ s/\s+/ /g;
	return join(' ', grep { $_ ne '' } $out, $err eq '' ? '' : "[$err]");
}

# answer NODE, SQL, database =>, user =>, options => PGOPTIONS: run SQL in a new
# session, past errors; what came of it in one line.
sub answer
{
	my ($node, $sql, %how) = @_;
	my ($out, $err) = ('', '');

	local $ENV{PGOPTIONS} = $how{options} // '';
	$node->psql($how{database} // 'postgres', "\\set VERBOSITY sqlstate\n$sql",
		stdout => \$out, stderr => \$err, on_error_stop => 0,
		timeout => $PostgreSQL::Test::Utils::timeout_default,
		extra_params => [ defined $how{user} ? ('-U', $how{user}) : () ]);
	return one_line($out, $err);
}

# connection NODE, database =>, user =>, options => PGOPTIONS: a session that
# stays, to ask and to quit.
sub connection
{
	my ($node, %how) = @_;

	local $ENV{PGOPTIONS} = $how{options} // '';
	return $node->background_psql($how{database} // 'postgres', on_error_stop => 0,
		extra_params => [ '-v', 'VERBOSITY=sqlstate', defined $how{user} ? ('-U', $how{user}) : () ]);
}

# ask CONNECTION, SQL: its answer, like that of answer().
sub ask
{
	my ($session, $sql) = @_;

	$session->{stderr} = '';
	my $out = $session->query($sql);
	my $err = $session->{stderr};
	$session->{stderr} = '';
	return one_line($out, $err);
}

# log_mark NODE: where the server's log ends now.  log_since NODE, MARK: what it
# has got since.
sub log_mark { my ($node) = @_; return -s $node->logfile; }
sub log_since { my ($node, $mark) = @_; return slurp_file($node->logfile, $mark); }

1;
