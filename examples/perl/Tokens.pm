# API tokens with DBI and DBD::Pg: identify the caller, and map errors to HTTP.
package Tokens;

use strict;
use warnings;

use DBI;
use POSIX qw(ceil);

# Refuse the request.  The exception is a hash: status, code and headers are for the
# response, log is for the log.
sub refuse
{
	my ($status, $code, %more) = @_;
	die { status => $status, code => $code, headers => $more{headers} // [], log => $more{log} };
}

# The HTTP response for a verdict other than valid (RFC 6750, RFC 6585).
sub refuse_verdict
{
	my ($verdict, $seconds) = @_;

	# $seconds is undef if the server cannot count (without shared_preload_libraries), or no wait helps
	refuse(429, $verdict, headers => $seconds ? [ 'Retry-After' => ceil($seconds) ] : []) if $verdict eq 'rate_limited' || $verdict eq 'quota_exceeded';
	refuse(403, $verdict) if $verdict eq 'policy_refused' || $verdict eq 'network_refused';
	refuse(403, 'insufficient_scope', headers => [ 'WWW-Authenticate' => 'Bearer error="insufficient_scope"' ])
	  if $verdict eq 'permission_refused';
	# malformed, unknown, revoked, expired, suspended: only the log may say which
	refuse(401, 'invalid_token', headers => [ 'WWW-Authenticate' => 'Bearer error="invalid_token"' ], log => $verdict);
}

# The token in an Authorization header; undef if there is no such header.
sub bearer
{
	my ($authorization) = @_;

	return undef unless defined $authorization;
	my ($scheme, $token) = $authorization =~ /^\s*(\S+)\s*(.*?)\s*$/s;
	refuse(401, 'invalid_token', headers => [ 'WWW-Authenticate' => 'Bearer' ]) unless lc($scheme // '') eq 'bearer';
	return $token;
}

# The HTTP status of an SQLSTATE from the request's own work.
sub status_of
{
	my ($state) = @_;
	my %known = (
		'42501' => 403,		# a policy refuses it
		'25006' => 403,		# the token is read-only
		'23505' => 409,
		'40001' => 503,		# try again
		'40P01' => 503);
	my %classes = ('22' => 400, '23' => 400, '08' => 503, '53' => 503, '57' => 503);

	return $known{$state} // $classes{ substr($state, 0, 2) } // 500;
}

# try(DBH, CODE, SQLSTATE => STATUS...): run CODE, and turn DBI's errors into
# refusals.  The given statuses override those of status_of().
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

# The connection of this process; a broken one is replaced.  libpq's environment
# variables (PGHOST, ...) name the server.  PREPARE=off is for a pooler that does
# not track prepared statements.  Do not use pg_server_prepare => 0 for that: with
# it, DBD::Pg writes the values into the statement.  ShowErrorStatement stays off:
# it would add the values, tokens included, to error messages.
sub connection
{
	my $dbh = eval {
		DBI->connect_cached('dbi:Pg:', undef, undef,
			{ AutoCommit => 1, RaiseError => 1, PrintError => 0, ShowErrorStatement => 0,
				pg_switch_prepared => ($ENV{PREPARE} // '') eq 'off' ? 0 : 2 });
	};
	return $dbh // refuse(503, 'failed', log => $@);
}

# Run one of our own statements.  DBD::Pg prepares it when it is used again.
sub ask
{
	my ($dbh, $statement, @values) = @_;
	return $dbh->selectrow_hashref($dbh->prepare_cached($statement), undef, @values);
}

# 42501 from our own statements: the login lacks a capability.  The caller is not at
# fault.
my @our_fault = ('42501' => 500);

# verify(DBH, TOKEN, PERMISSION, ORGANIZATION, ADDRESS): verify a request in one
# statement.  Returns a row about the token, or refuses the request.
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

# Only we know the client: the connection's address is ours, or the pooler's.
sub come_from
{
	my ($dbh, $address) = @_;
	return ask($dbh, q{SELECT set_config('apitoken.client_address', ?, true)}, $address // '');
}

# Identify who acts in a transaction: a token, or a user whom we have signed in.
sub by_token
{
	my ($token, $address) = @_;

	return sub {
		my ($dbh) = @_;

		come_from($dbh, $address);
		return if eval { ask($dbh, 'SELECT valid FROM apitoken.authenticate(?)', $token) };
		die $@ if $dbh->state ne '28000';
		my ($verdict) = ($dbh->pg_error_field('detail') // '') =~ /Verdict: (\w+)/;
		my ($seconds) = ($dbh->pg_error_field('hint') // '') =~ /in ([\d.]+) seconds/;
		refuse_verdict($verdict // '', $seconds);
	};
}

sub as_user
{
	my ($user_id, $address) = @_;

	return sub {
		my ($dbh) = @_;

		come_from($dbh, $address);
		ask($dbh, 'SELECT apitoken.act_as(?)', $user_id);
	};
}

# Run work in a transaction with an identity: acting(DBH, by_token(...), sub { work }).
# begin_work refuses a connection that is already in a transaction: the code that
# began that transaction would share the identity.
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
	# if ROLLBACK fails, the connection is not used again
	eval { $dbh->rollback unless $dbh->{AutoCommit}; 1 } or $dbh->disconnect;
	die $error;
}

1;
