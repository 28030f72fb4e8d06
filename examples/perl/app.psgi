# Articles over HTTP, as a PSGI application, for programs with an API token and for
# signed-in users (your session middleware sets REMOTE_USER).
#
#     PGUSER=app_perl PGDATABASE=app plackup app.psgi
#
# GET, POST /articles       the articles that the caller may see
# GET /feed/ORGANIZATION    for tokens with article:read there

use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;

use lib dirname(__FILE__);
use Tokens;

my $json = JSON::PP->new->utf8->canonical;

sub required
{
	my ($credentials) = @_;

	return $credentials if defined $credentials && $credentials ne '';
	Tokens::refuse(401, 'unauthorized', headers => [ 'WWW-Authenticate' => 'Bearer' ]);
}

# Identify who acts.  A request with a bad token never acts as its signed-in user.
# REMOTE_ADDR is the client's address as this server sees it.  Behind your own proxy,
# use the address that the proxy sends.
sub caller_of
{
	my ($env) = @_;
	my $token = Tokens::bearer($env->{HTTP_AUTHORIZATION});

	return Tokens::by_token($token, $env->{REMOTE_ADDR}) if defined $token;
	return Tokens::as_user(required($env->{REMOTE_USER}), $env->{REMOTE_ADDR});
}

sub body
{
	my ($env) = @_;
	my $value;

	# only JSON: a form on another site cannot send it with our cookie
	Tokens::refuse(415, 'application/json expected')
	  unless ($env->{CONTENT_TYPE} // '') =~ m{^application/json\s*(;|$)};
	$env->{'psgi.input'}->read(my $text, $env->{CONTENT_LENGTH} > 65536 ? 65536 : $env->{CONTENT_LENGTH})
	  if $env->{CONTENT_LENGTH};
	$value = eval { $json->decode($text) };
	Tokens::refuse(400, 'a JSON object is expected') unless ref $value eq 'HASH';
	# DBD::Pg truncates a string at a NUL
	Tokens::refuse(400, 'strings are expected') if grep { !defined || ref || /\0/ } values %$value;
	return $value;
}

my %routes = (
	'GET /articles' => sub {
		my ($env) = @_;

		return Tokens::acting(Tokens::connection(), caller_of($env), sub {
			my ($dbh) = @_;
			return [ 200, $dbh->selectall_arrayref(
				'SELECT id, organization_id, title FROM article ORDER BY id', { Slice => {} }) ];
		});
	},

	'POST /articles' => sub {
		my ($env) = @_;
		my $article = body($env);

		return Tokens::acting(Tokens::connection(), caller_of($env), sub {
			my ($dbh) = @_;
			return [ 201, $dbh->selectrow_hashref(
				'INSERT INTO article (organization_id, title) VALUES (?, ?) RETURNING id, organization_id, title',
				undef, $article->{organization_id}, $article->{title}) ];
		});
	},

	# no transaction, no policies: one question, and we must act on the answer
	'GET /feed/' => sub {
		my ($env, $organization_id) = @_;
		my $token = required(Tokens::bearer($env->{HTTP_AUTHORIZATION}));

		utf8::decode($organization_id);
		my $row = Tokens::verify(Tokens::connection(), $token, 'article:read', $organization_id, $env->{REMOTE_ADDR});

		return [ 200, { organization_id => $organization_id, label => $row->{label}, kind => $row->{kind} } ];
	});

sub respond
{
	my ($status, $value, @headers) = @_;
	return [ $status, [ 'Content-Type' => 'application/json', 'Cache-Control' => 'no-store', @headers ],
		[ $json->encode($value) ] ];
}

sub {
	my ($env) = @_;
	my ($path, $id) = $env->{PATH_INFO} =~ m{^(/articles|/feed/(?=.))([^/\0]*)$};
	my $route = $routes{"$env->{REQUEST_METHOD} " . ($path // '')};

	return respond(404, { error => 'not found' }) unless $route && ($path eq '/feed/' || $id eq '');
	my $answer = eval { $route->($env, $id) };
	return respond(@$answer) if $@ eq '';

	# the server's message is for our log: it may quote other users' data
	my $error = ref $@ ? $@ : { status => 500, code => 'failed', headers => [], log => $@ };
	print STDERR "$error->{status}: $error->{log}\n" if defined $error->{log};
	return respond($error->{status}, { error => $error->{code} }, @{ $error->{headers} });
};
