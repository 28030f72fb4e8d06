# examples/nginx: a token in "Authorization: Bearer" arrives as X-API-Key, JWTs
# arrive as they are, and the client's address is what nginx says.  Browsers may
# read the headers of refusals.
#
# Debian's nginx, with the example's files, is in front of a server that answers
# with the request that it got.

use strict;
use warnings;

use ApitokenTest;
use Cwd;
use IO::Socket::INET;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($nginx) = grep { -x } map { "$_/nginx" } split(/:/, $ENV{PATH}), '/usr/sbin';
plan skip_all => 'no nginx' unless defined $nginx;

my $directory = "$PostgreSQL::Test::Utils::tmp_check/nginx";
my $examples = getcwd() . "/examples/nginx";

# the server behind, which answers with the head of the request
my $backend = PostgreSQL::Test::Cluster::get_free_port();
start_echo('behind', $backend);

# one that refuses as PostgREST does, or tells where a new row is
my $refusing = PostgreSQL::Test::Cluster::get_free_port();
start_program('refusing', [ 'perl', '-e', q{
	use IO::Socket::INET;
	my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], Listen => 50, ReuseAddr => 1) or die $!;
	while (my $client = $listen->accept)
	{
		my ($status) = (<$client> // '') =~ m{/(\d+)};
		while (<$client> =~ /\S/) {}
		print $client "HTTP/1.1 $status -\r\nLocation: /articles?id=eq.3\r\nRetry-After: 7\r\nWWW-Authenticate: Bearer\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: Content-Range, Location\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" if $status;
		close $client;
	}
}, $refusing ], port => $refusing);

# ---- nginx, run by a user other than root

mkdir $directory or die "$directory: $!";
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $temporary = join "\n", map { "\t${_}_temp_path $directory/$_;" } qw(client_body proxy fastcgi uwsgi scgi);
append_to_file("$directory/nginx.conf", <<"CONF");
daemon off;
worker_processes 1;
pid $directory/nginx.pid;
error_log $directory/error.log;
events {}
http {
$temporary
	access_log $directory/access.log;
	large_client_header_buffers 4 64k;
	include $examples/apitoken.conf;
	server {
		listen 127.0.0.1:$port;
		location / {
			proxy_pass http://127.0.0.1:$backend;
			include $examples/apitoken-headers.conf;
		}
		location /api/ {
			proxy_pass http://127.0.0.1:$refusing/;
			proxy_redirect / /api/;
			include $examples/apitoken-headers.conf;
		}
		location /own/ {
			proxy_set_header X-Own "yes";
			include $examples/apitoken-headers.conf;
			proxy_pass http://127.0.0.1:$backend;
		}
	}
}
CONF
my $log = "$directory/start.log";
my @nginx = ($nginx, '-e', "$directory/error.log", '-p', $directory, '-c', "$directory/nginx.conf");
is(system("'" . join("' '", @nginx, '-q', '-t') . "' >$log 2>&1"), 0, 'nginx takes the configuration') or diag(slurp_file($log));
start_program('nginx', \@nginx, port => $port, log => $log);
ok(listens($port), 'nginx runs');

# send_request TARGET, HEADER LINES: the status, and the headers that arrived behind, as lists
sub send_request
{
	my ($target, @lines) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or die $!;
	my $answer = '';

	local $SIG{PIPE} = 'IGNORE';
	print $socket join("\r\n", "GET $target HTTP/1.1", 'Host: api', 'Connection: close', @lines, '', '');
	while (defined(my $line = <$socket>)) { $answer .= $line }
	my ($status) = $answer =~ m{^HTTP/1\.1 (\d+)};
	my (undef, $head) = split /\r\n\r\n/, $answer, 2;
	my %arrived;
	push @{ $arrived{lc $1} }, $2 while ($head // '') =~ /^([\w-]+): *(.*?)\r?$/mg;
	return ($status, \%arrived);
}

# arrives LINES: "X-API-Key / Authorization" behind
sub arrives
{
	my ($status, $arrived) = send_request('/articles', @_);

	return $status if $status != 200;
	return join ' / ', map { join ' AND ', @{ $arrived->{$_} // ['-'] } } 'x-api-key', 'authorization';
}

my $token = 'apt_org_0351pnJJC5Ipqomy0pHJ6zhczwAxnSpemKegL95CqvQf4hBoOmCsCBUV7QvxeWwl02vpbPP';
my $jwt = 'eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhcHRfb3JnXyJ9.bm8gc2lnbmF0dXJl';

# ---- tokens of ours, in Bearer

is(arrives("Authorization: Bearer $token"), "$token / -", 'a token in Bearer becomes X-API-Key');
is(arrives("authorization: bearer $token"), "$token / -", 'in small letters');
is(arrives("AUTHORIZATION: BEARER \t  $token  "), "$token / -", 'in capitals, with blanks');
foreach my $other ($token =~ s/^apt/a1/r, $token =~ s/^apt_org/mycompany123_usr/r)
{
	is(arrives("Authorization: Bearer $other"), "$other / -", 'of another prefix, or kind');
}
# a text that looks like one of our tokens goes to us, to be refused with our error
foreach my $bad ('apt_org_x', $token . 'x', 'apt_org_' . 'x' x 8000, 'apt_usr_"quoted";\'%41$http_host')
{
	is(arrives("Authorization: Bearer $bad"), "$bad / -", 'a bad one goes there too: ' . substr($bad, 0, 30));
}

# ---- JWTs and everything else arrive unchanged

foreach my $value ("Bearer $jwt", "bearer $jwt", 'Bearer', 'Bearer x', "Bearer $token.x.y", "Bearer x.$token.y", "Token $token", "ApiKey $token", $token, 'Basic YXB0X29yZ18=',
	"Bearer $token $token", "Bearer Bearer $token", "Basic Bearer $token", "Bearer,$token", "Bearer a_org_x", "Bearer apt_xyz_x", "Bearer APT_org_x", "Bearer 1apt_org_x", "Bearer apt_org_", 'Bearer toolongprefix_org_x')
{
	is(arrives("Authorization: $value"), "- / $value", 'as it is: ' . substr($value, 0, 40));
}
is(arrives(), '- / -', 'without any');
is(arrives("X-API-Key: $token"), "$token / -", 'X-API-Key as it is');
is(arrives('X-API-Key: garbage'), 'garbage / -', 'also a bad one');
is(arrives("x-api-key: $token", "Authorization: Bearer $jwt"), "$token / Bearer $jwt", 'beside a JWT');

# ---- several headers: none gets lost, so that the request is refused

is(arrives("X-API-Key: $token", "Authorization: Bearer $token"), "$token / Bearer $token", 'in both: both arrive');
is(arrives('X-API-Key: garbage', "Authorization: Bearer $token"), "garbage / Bearer $token", 'in both, a bad one first');
is(arrives('X-API-Key: |Bearer apt_org_y', "Authorization: Bearer $token"), "|Bearer apt_org_y / Bearer $token", 'in both, one of them made to confuse');
is(arrives("X-API-Key: x|Bearer $token"), "x|Bearer $token / -", 'in X-API-Key, as Bearer');
is(arrives("X-API-Key: |Bearer $token"), "|Bearer $token / -", 'the same');
like(arrives("Authorization: Bearer $jwt", "Authorization: Bearer $token"), qr{^(400|- / Bearer \Q$jwt\E)$}, 'Authorization twice: refused, or one arrives');
like(arrives("Authorization: Bearer $token", "Authorization: Bearer $jwt"), qr{^(400|\Q$token\E / -)$}, 'the other way round');
# headers that some servers treat as the same
is(arrives("X_API_Key: $token", "X-API_Key: $token"), '- / -', 'names with _ do not arrive');

# ---- the client's address

foreach my $location ('/', '/own/')
{
	my ($status, $arrived) = send_request($location, 'X-Real-IP: 192.0.2.66', 'x-real-ip: 192.0.2.67', 'X-Forwarded-For: 192.0.2.66, 192.0.2.67', 'X-Forwarded-For: 192.0.2.68',
		'Forwarded: for=192.0.2.66', "Authorization: Bearer $token");
	is(join(' ', @{ $arrived->{'x-real-ip'} }), '127.0.0.1', "$location: X-Real-IP is nginx's word");
	is(join(' ', @{ $arrived->{'x-forwarded-for'} }), '127.0.0.1', "$location: X-Forwarded-For too");
	ok(!exists $arrived->{forwarded}, "$location: Forwarded does not arrive");
	is(join(' ', @{ $arrived->{'x-api-key'} }), $token, "$location: the token does");
}
is((send_request('/own/'))[1]{'x-own'}[0], 'yes', 'a location has its own headers beside');

# ---- what a browser may read in an answer to another origin

foreach my $status (200, 201, 401, 403, 429, 500)
{
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or die $!;
	my %headers;
	print $socket "GET /api/$status HTTP/1.1\r\nHost: api\r\nOrigin: https://example.com\r\nConnection: close\r\n\r\n";
	my $answer = join '', <$socket>;
	push @{ $headers{lc $1} }, $2 while $answer =~ /^([\w-]+): *(.*?)\r?$/mg;
	like($answer, qr{^HTTP/1\.1 $status }, "$status arrives");
	is(join(', ', @{ $headers{'access-control-expose-headers'} }), 'Content-Range, Location, Retry-After, WWW-Authenticate', 'with what PostgREST lets it read, and our two');
	is("@{ $headers{'retry-after'} } @{ $headers{'www-authenticate'} }", '7 Bearer', 'once each');
	like($headers{location}[0], qr{^(http://api(:\d+)?)?/api/articles\?id=eq\.3$}, 'and where a new row is, as the client sees it');
}

# ---- nginx writes no token into its logs, as long as there is no error

unlike(slurp_file("$directory/access.log") . slurp_file("$directory/error.log"), qr/_(org|usr)_/, 'no token in the logs');

done_testing();
