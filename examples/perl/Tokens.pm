# API tokens with DBI and DBD::Pg: who is asking, and what became of it.
package Tokens;

use strict;
use warnings;

use DBI;
use POSIX qw(ceil);

# What is thrown: { status, code, headers } to answer with, and what the log
# gets.
sub refuse
{
	my ($status, $code, %more) = @_;
	die { status => $status, code => $code, headers => $more{headers} // [], log => $more{log} };
}

# What a verdict other than valid is in HTTP (RFC 6750, RFC 6585).
sub refuse_verdict
{
	my ($verdict, $seconds) = @_;

	# when is not known where the server cannot count (without shared_preload_libraries)
	refuse(429, $verdict, headers => $seconds ? [ 'Retry-After' => ceil($seconds) ] : []) if $verdict eq 'rate_limited';
	refuse(403, $verdict) if $verdict eq 'network_refused';
	refuse(403, 'insufficient_scope', headers => [ 'WWW-Authenticate' => 'Bearer error="insufficient_scope"' ])
	  if $verdict eq 'permission_refused';
	# malformed, unknown, revoked, expired, suspended: the log may know which
	refuse(401, 'invalid_token', headers => [ 'WWW-Authenticate' => 'Bearer error="invalid_token"' ], log => $verdict);
}

# The token of an Authorization header; undef if there is no such header.
sub bearer
{
	my ($authorization) = @_;

	return undef unless defined $authorization;
	my ($scheme, $token) = $authorization =~ /^\s*(\S+)\s*(.*?)\s*$/s;
	refuse(401, 'invalid_token', headers => [ 'WWW-Authenticate' => 'Bearer' ]) unless lc($scheme // '') eq 'bearer';
	return $token;
}

# The HTTP status of the SQLSTATE that a request's own work ended with.
sub status_of
{
	my ($state) = @_;
	my %known = (
		'42501' => 403,		# a policy says no
		'25006' => 403,		# the token is read-only
		'23505' => 409,
		'40001' => 503,		# try again
		'40P01' => 503);
	my %classes = ('22' => 400, '23' => 400, '08' => 503, '53' => 503, '57' => 503);

	return $known{$state} // $classes{ substr($state, 0, 2) } // 500;
}

# try(DBH, CODE, SQLSTATE => STATUS...): run CODE; DBI's errors become what is
# thrown here, with another status where one is given.
sub try
{
	my ($dbh, $code, %status) = @_;
	my $result = eval { $code->() };

	return $result if $@ eq '';
	die $@ if ref $@;
	my $state = $dbh->state;
	my $status = $status{$state} // status_of($state);
	refuse($status, $status < 500 ? 'refused' : 'failed', log => $@);
}

# A process's own connection, made anew when it broke.  Where the server is,
# libpq's variables say (PGHOST, ...).  PREPARE=off: for a pooler that does not
# know prepared statements.  pg_server_prepare is not the way to do that: without
# it DBD::Pg writes the values into the statement.  ShowErrorStatement stays off:
# it would put them, tokens among them, into error messages.
sub connection
{
	my $dbh = eval {
		DBI->connect_cached('dbi:Pg:', undef, undef,
			{ AutoCommit => 1, RaiseError => 1, PrintError => 0, ShowErrorStatement => 0,
				pg_switch_prepared => ($ENV{PREPARE} // '') eq 'off' ? 0 : 2 });
	};
	return $dbh // refuse(503, 'failed', log => $@);
}

# One of our own statements: prepared by the server when it is used again.
sub ask
{
	my ($dbh, $statement, @values) = @_;
	return $dbh->selectrow_hashref($dbh->prepare_cached($statement), undef, @values);
}

# Without the capability it is the login that lacks something, not who is asking.
my @our_fault = ('42501' => 500);

# verify(DBH, TOKEN, PERMISSION, ORGANIZATION, ADDRESS): in one statement; a row
# about the token, or refused.
sub verify
{
	my ($dbh, @asked) = @_;
	my $row = try($dbh, sub {
		ask($dbh, q{
			SELECT valid, verdict, token_id, label, kind, organization_id, user_id, role, access, permissions, groups,
			       expires_at, metadata, extract(epoch FROM retry_after)::float8 AS seconds
			FROM apitoken.verify(?, ?, ?, ?)}, @asked[ 0 .. 3 ]);
	}, @our_fault);

	refuse_verdict($row->{verdict}, $row->{seconds}) unless $row->{valid};
	return $row;
}

# Who acts in a transaction: a token, or a user whom we have signed in ourselves.
sub by_token
{
	my ($token, $address) = @_;

	return sub {
		my ($dbh) = @_;

		# nobody else knows it: the connection's address is ours, or the pooler's
		ask($dbh, q{SELECT set_config('apitoken.client_address', ?, true)}, $address // '');
		return if eval { ask($dbh, 'SELECT valid FROM apitoken.authenticate(?)', $token) };
		die $@ if $dbh->state ne '28000';
		my ($verdict) = ($dbh->pg_error_field('detail') // '') =~ /Verdict: (\w+)/;
		my ($seconds) = ($dbh->pg_error_field('hint') // '') =~ /in ([\d.]+) seconds/;
		refuse_verdict($verdict // '', $seconds);
	};
}

sub as_user
{
	my ($user_id) = @_;
	return sub { ask($_[0], 'SELECT apitoken.act_as(?)', $user_id) };
}

# A transaction in which somebody acts: acting(DBH, by_token(...), sub { work }).
# begin_work refuses a connection that is within a transaction: who began that
# would share the identity.
sub acting
{
	my ($dbh, $identify, $work) = @_;
	my $result = eval {
		try($dbh, sub { $dbh->begin_work });
		try($dbh, sub { $identify->($dbh) }, @our_fault);
		try($dbh, sub { my $value = $work->($dbh); $dbh->commit; $value });
	};

	return $result if $@ eq '';
	my $error = $@;
	# a connection that cannot even do this is not used again
	eval { $dbh->rollback unless $dbh->{AutoCommit}; 1 } or $dbh->disconnect;
	die $error;
}

1;
