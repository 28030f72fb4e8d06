# Others that keep API keys in PostgreSQL, each installed and called as its own
# documentation says, against verify() by the same process over the same
# connections.

package Peers;

use strict;
use warnings;

use IPC::Open2;
use List::Util qw(min);

# No more keys than these are made for them; ours are among all tokens.
use constant KEYS => 100_000;

# start_peer SCHEMA, COMMAND...: a program of test/bench/peers, as a function from
# the name of a way to the calls a second that it makes; and how to end it.
sub start_peer
{
	my ($b, $schema, @command) = @_;
	my ($from, $to);

	$b->psql("CREATE SCHEMA $schema AUTHORIZATION bench; GRANT SELECT ON apitoken_internal.token_records, bench.keys TO bench");
	local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE NODE_ENV)} = ($b->{host}, $b->{port}, 'bench', $b->{db}, 'production');
	my $pid = open2($from, $to, @command, $b->{quick} ? KEYS / 10 : min(KEYS, $b->{size}));
	my $ask = sub {
		print $to join(' ', @_), "\n" if @_;
		return scalar readline($from) // die "$command[1] has ended\n";
	};
	$ask->();
	return ($ask, sub { close $to; waitpid $pid, 0; $b->psql("DROP SCHEMA $schema CASCADE") });
}

# pair ASK, WHAT, ours, yardstick, wanted: what nothing is wanted of gets fewer rounds.
sub pair
{
	my ($b, $ask, $what, $ours, $yardstick, $wanted) = @_;
	my $seconds = $b->{quick} ? 0.5 : min($b->{seconds}, 3);

	$b->compare(figure => 'peers', what => "verify(\$1) / $what", wanted => $wanted, unit => 'calls/s',
		rounds => $wanted ? $b->{rounds} : min($b->{rounds}, 3),
		ours => sub { $ask->($seconds, $ours) }, yardstick => sub { $ask->($seconds, $yardstick) });
}

sub better_auth
{
	my ($b) = @_;
	my ($ask, $end) = start_peer($b, 'better_auth', 'node', "$b->{here}/peers/better-auth.mjs");

	pair($b, $ask, 'better-auth, by node-postgres', 'apitoken prepared', 'better-auth', '>= 25');
	pair($b, $ask, 'SELECT by primary key, by node-postgres', 'apitoken prepared', 'primary key prepared');
	unless ($b->{quick})
	{
		pair($b, $ask, 'better-auth, verify() not prepared', 'apitoken', 'better-auth');
		pair($b, $ask, 'better-auth with synchronous_commit off', 'apitoken prepared', 'better-auth hasty');
		pair($b, $ask, 'better-auth with its keys in memory, no database', 'apitoken prepared', 'better-auth cached');
	}
	$end->();
}

sub django
{
	my ($b) = @_;
	my ($ask, $end) = start_peer($b, 'django', '/usr/bin/python3', "$b->{here}/peers/django_keys.py");

	pair($b, $ask, "Django REST framework's TokenAuthentication, by psycopg2", 'apitoken', 'token');
	pair($b, $ask, 'djangorestframework-api-key, by psycopg2', 'apitoken', 'api key');
	$end->();
}

Bench::figure('peers', 'others that keep keys in PostgreSQL', sub {
	my ($b) = @_;

	# who ends too early is noticed where its answer is missing
	local $SIG{PIPE} = 'IGNORE';
	if (-d "$b->{here}/peers/node_modules")
	{
		better_auth($b);
	}
	else
	{
		$b->missing('peers', 'not measured: better-auth is not installed');
	}
	if (eval { $b->command(qw(/usr/bin/python3 -c), 'import psycopg2, rest_framework_api_key'); 1 })
	{
		django($b);
	}
	else
	{
		$b->missing('peers', 'not measured: python3-djangorestframework-api-key is not installed');
	}
}, long => 1);

1;
