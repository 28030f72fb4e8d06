# How "Authorization: Bearer" gets through gateways.  Caddy in front of PostgREST
# (examples/caddy/postgrest.caddy): a token arrives as X-API-Key, and everything else
# as it is.  nginx, Caddy and HAProxy ask the server of examples/node about each
# request, and admit only what it admits.
#
# Debian's programs run with the examples' files.  021_nginx.pl is about nginx in
# front of PostgREST, 026_openidc.pl about introspection.

use strict;
use warnings;

use Cwd;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

my $examples = getcwd() . '/examples';
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my %program = map {
	my $name = $_;
	($name => (grep { -x } map { "$_/$name" } split(/:/, $ENV{PATH}), '/usr/sbin', '/sbin')[0]);
} qw(nginx caddy haproxy);

# what Caddy writes beside its log
$ENV{XDG_DATA_HOME} = $ENV{XDG_CONFIG_HOME} = "$dir/caddy";

my $port;
my $response;

# get PATH, TOKEN, ...: the status; arguments as http_request() has them
sub get { $response = http_request($port, @_); return $response->{status}; }

# what arrived in this header, if the program behind answered
sub arrived
{
	my ($name) = @_;
	my @values = $response->{content} =~ /^\Q$name\E: *(.*?)\r?$/mig;

	return @values ? join(' AND ', @values) : '-';
}

sub challenge { return $response->{headers}{'www-authenticate'} // '-'; }

# no_secret FILE, TOKENS: an assertion that none of them is in the file
sub no_secret
{
	my ($file, %tokens) = @_;
	my $text = slurp_file($file);

	is(join(' ', grep { index($text, substr($tokens{$_}, -49)) >= 0 } sort keys %tokens), '', 'no token is in ' . $file =~ s{.*/}{}r);
	return;
}

sub start_caddy
{
	my ($file, %environment) = @_;

	local %ENV = (%ENV, PUBLIC => "http://127.0.0.1:$port", ADMIN => 'off', %environment);
	start_program('caddy', [ $program{caddy}, 'run', '--adapter', 'caddyfile', '--config', "$examples/caddy/$file" ],
		port => $port, log => "$dir/$file.log");
	return;
}

# ---- Caddy in front of PostgREST ----

subtest 'Caddy in front of PostgREST' => sub {
	plan skip_all => 'caddy is not installed' unless defined $program{caddy};

	my $behind = PostgreSQL::Test::Cluster::get_free_port();
	start_echo('postgrest', $behind);
	$port = PostgreSQL::Test::Cluster::get_free_port();
	start_caddy('postgrest.caddy', POSTGREST => "127.0.0.1:$behind");

	my $token = 'apt_org_0351pnJJC5Ipqomy0pHJ6zhczwAxnSpemKegL95CqvQf4hBoOmCsCBUV7QvxeWwl02vpbPP';
	my $jwt = 'eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhcHRfb3JnXyJ9.bm8gc2lnbmF0dXJl';
	my $passes = sub {
		my (%headers) = @_;
		my $status = get('/articles', undef, headers => \%headers);
		return $status eq '200' ? join(' / ', map { arrived($_) } 'X-API-Key', 'Authorization') : $status;
	};

	foreach my $scheme ('Bearer ', 'bearer ', "BEARER \t ")
	{
		is($passes->(Authorization => "$scheme$token"), "$token / -", "a token after '$scheme'");
	}
	foreach my $other ($token =~ s/^apt/a1/r, $token =~ s/^apt_org/mycompany123_usr/r, 'apt_org_x', "${token}x", 'apt_org_' . 'x' x 8000)
	{
		is($passes->(Authorization => "Bearer $other"), "$other / -", 'another one, good or bad: ' . substr($other, 0, 20));
	}
	foreach my $value ("Bearer $jwt", 'Bearer', 'Bearer x', "Bearer $token.x.y", "Bearer x.$token.y", "Token $token", "ApiKey $token", $token, 'Basic YXB0X29yZ18=',
		"Bearer $token $token", "Bearer Bearer $token", "Basic Bearer $token", "Bearer,$token", "Bearer $token,$token", 'Bearer a_org_x', 'Bearer apt_xyz_x', 'Bearer APT_org_x', 'Bearer apt_org_')
	{
		is($passes->(Authorization => $value), "- / $value", 'as it is: ' . substr($value, 0, 40));
	}
	is($passes->(), '- / -', 'without any');
	is($passes->('X-API-Key' => $token), "$token / -", 'X-API-Key as it is');
	is($passes->('X-API-Key' => $token, Authorization => "Bearer $jwt"), "$token / Bearer $jwt", 'beside a JWT');
	is($passes->('X-API-Key' => 'garbage', Authorization => "Bearer $token"), "garbage / Bearer $token", 'in both: both arrive');
	is($passes->(Authorization => [ "Bearer $jwt", "Bearer $token" ]), "- / Bearer $jwt AND Bearer $token", 'Authorization twice: both arrive');
	is($passes->(Authorization => [ "Bearer $token", "Bearer $jwt" ]), "- / Bearer $token AND Bearer $jwt", 'the other way round');

	get('/', $token, headers => { 'X-Real-IP' => [ '192.0.2.66', '192.0.2.67' ], 'X-Forwarded-For' => '192.0.2.66', Forwarded => 'for=192.0.2.66' });
	is(join(' ', map { arrived($_) } qw(X-Real-IP X-Forwarded-For Forwarded)), '127.0.0.1 127.0.0.1 -', "the client's address is Caddy's word");
	is($response->{headers}{'access-control-expose-headers'}, 'Retry-After, WWW-Authenticate', 'what browsers may read');

	stop_program('postgrest');
	is(get('/', $token), '502', 'nobody behind');
	is(get('/', undef, headers => { 'X-API-Key' => $token }), '502', 'nor for a token in X-API-Key');
	stop_program('caddy');
	like(slurp_file("$dir/postgrest.caddy.log"), qr/"uri":"\/articles"/, 'requests are logged');
	no_secret("$dir/postgrest.caddy.log", token => $token);
};

# ---- gateways that ask about each request ----

# Each of these starts its program on $port, in front of the application.
my %start = (
	nginx => sub {
		my ($verify, $application) = @_;
		my $temporary = join "\n", map { "\t${_}_temp_path $dir/$_;" } qw(client_body proxy fastcgi uwsgi scgi);

		append_to_file("$dir/nginx.conf", <<"CONF");
daemon off;
worker_processes 1;
pid $dir/nginx.pid;
error_log $dir/nginx-error.log;
events {}
http {
$temporary
	access_log $dir/nginx-access.log;
	upstream apitoken_verify { server 127.0.0.1:$verify; }
	server {
		listen 127.0.0.1:$port;
		include $examples/nginx/gateway-server.conf;
		location / {
			auth_request /_apitoken;
			include $examples/nginx/gateway-location.conf;
			proxy_pass http://127.0.0.1:$application;
		}
		location /reports {
			auth_request /_apitoken/report:read;
			include $examples/nginx/gateway-location.conf;
			proxy_pass http://127.0.0.1:$application;
		}
		location /acme {
			auth_request /_apitoken/report:read/acme;
			include $examples/nginx/gateway-location.conf;
			proxy_pass http://127.0.0.1:$application;
		}
	}
}
CONF
		start_program('nginx', [ $program{nginx}, '-e', "$dir/nginx-error.log", '-p', $dir, '-c', "$dir/nginx.conf" ],
			port => $port, log => "$dir/nginx.log");
		return "$dir/nginx-error.log", "$dir/nginx-access.log", "$dir/nginx.log";
	},
	caddy => sub {
		my ($verify, $application) = @_;

		start_caddy('gateway.caddy', VERIFY => "127.0.0.1:$verify", APPLICATION => "127.0.0.1:$application");
		return "$dir/gateway.caddy.log";
	},
	haproxy => sub {
		my ($verify, $application, $url) = @_;

		local %ENV = (%ENV, PUBLIC => "127.0.0.1:$port", VERIFY => $url // "http://127.0.0.1:$verify", APPLICATION => "127.0.0.1:$application");
		start_program('haproxy', [ $program{haproxy}, '-db', '-f', "$examples/haproxy/haproxy.cfg" ], port => $port, log => "$dir/haproxy.log");
		return "$dir/haproxy.log";
	});

my ($node, %token, $verify);

sub start_verify
{
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGUSER => 'app_node', PGDATABASE => 'postgres', PORT => $verify, BEHIND_PROXY => 1);
	start_program('verify', [ 'node', "$examples/node/server.js" ], port => $verify, log => "$dir/verify.log");
	return;
}

if (defined $ENV{APITOKEN_NPM_NODE} && grep { defined } values %program)
{
	$node = start_node('bearer', preload => 'shared');
	$node->safe_psql('postgres', slurp_file('examples/articles.sql'));
	$node->safe_psql('postgres', q{
		INSERT INTO apitoken.roles (name, permissions) VALUES ('reporter', '{report:read}');
		INSERT INTO apitoken.users (id) VALUES (E'Zo\u00eb <zoe@example.com>')});
	%token = create_each($node, {
		acme => q{organization_id => 'acme', role => 'reporter'},
		articles => q{organization_id => 'acme', permissions => '{article:read}'},
		globex => q{organization_id => 'globex', role => 'reporter'},
		alice => q{user_id => 'alice'},
		zoe => q{user_id => E'Zo\u00eb <zoe@example.com>'},
		here => q{organization_id => 'acme', role => 'reporter', allowed_networks => '{127.0.0.1/32}'},
		elsewhere => q{organization_id => 'acme', role => 'reporter', allowed_networks => '{192.0.2.0/24}'},
		revoked => q{organization_id => 'acme', role => 'reporter'},
		expired => q{organization_id => 'acme', role => 'reporter', expires_in => '1 hour'},
		suspended => q{organization_id => 'acme', role => 'reporter'},
		map { ("limited_$_" => q{organization_id => 'acme', role => 'reporter', rate_limit_per_minute => 1}) } keys %program });
	$node->safe_psql('postgres', q{
		SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked';
		UPDATE apitoken.tokens SET expires_at = now() - interval '1 second' WHERE label = 'expired';
		UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended'});
	$token{unknown} = $node->safe_psql('postgres', q{SELECT apitoken.generate('org')});
	$verify = PostgreSQL::Test::Cluster::get_free_port();
	start_verify();
}

foreach my $gateway (sort keys %program)
{
	subtest "$gateway asks about each request" => sub {
		plan skip_all => "$gateway is not installed" unless defined $program{$gateway};
		plan skip_all => 'APITOKEN_NPM_NODE names no directory with the packages of examples/node' unless defined $node;

		check_gateway($gateway);
	};
}

sub check_gateway
{
	my ($gateway) = @_;
	my $application = PostgreSQL::Test::Cluster::get_free_port();

	start_echo('application', $application);
	$port = PostgreSQL::Test::Cluster::get_free_port();
	my @logs = $start{$gateway}->($verify, $application);

	# who gets in: any valid token, and one with report:read
	my %let_in = (acme => '200 200', articles => '200 403', globex => '200 200', alice => '200 200', zoe => '200 200', here => '200 200');
	foreach my $name (sort keys %let_in)
	{
		is(join(' ', map { get($_, $token{$name}) } qw(/ /reports/)), $let_in{$name}, "$name: let in");
	}
	is(get('/reports/', $token{articles}), '403', 'without the permission');
	is(challenge(), 'Bearer error="insufficient_scope"', 'and told why not');
	if ($gateway eq 'nginx')
	{
		is(join(' ', map { get('/acme/', $token{$_}) } qw(acme alice globex)), '200 200 403', 'in one organization');
	}
	foreach my $name (qw(revoked expired suspended unknown))
	{
		is(join(' ', map { get($_, $token{$name}) } qw(/ /reports/)), '401 401', "$name: refused");
		is(challenge(), 'Bearer error="invalid_token"', "$name: told so");
	}
	is(join(' ', map { get($_) } qw(/ /reports/)), '401 401', 'no token');
	is(challenge(), 'Bearer', 'told that one is wanted');
	is(get('/', undef, headers => { Authorization => $_ }), '401', "Authorization: " . substr($_, 0, 8))
	  foreach "Token $token{acme}", $token{acme}, 'Bearer', 'Basic eDp5', 'Bearer garbage', "Bearer $token{acme}, Bearer $token{acme}", 'Bearer ' . 'x' x 5000;
	is(get('/', undef, headers => { 'X-API-Key' => $token{acme} }), '401', 'a token in another header');
	isnt(get('/', undef, headers => { Authorization => $_ }), '200', 'two headers')
	  foreach [ "Bearer $token{unknown}", "Bearer $token{acme}" ], [ "Bearer $token{acme}", "Bearer $token{unknown}" ];

	# each method
	foreach my $method (qw(HEAD POST PUT DELETE OPTIONS))
	{
		my %with = $method =~ /^P/ ? (content => 'x' x 1000) : ();

		is(join(' ', map { get($_, undef, method => $method, %with) } qw(/ /reports/)), '401 401', "$method without a token");
		is(get('/reports/', $token{articles}, method => $method, %with), '403', "$method without the permission");
		is(get('/reports/', $token{acme}, method => $method, %with), '200', "$method with it");
	}

	# other spellings of the path
	foreach my $path ('//reports/', '/./reports/', '/x/../reports/', '/%72eports/', '/x/%2e%2e/reports/', '/x/..%2freports/', '/%2freports/', '/x/../%72eports/')
	{
		like(get($path, $token{articles}), qr/^40[034]$/, "$path: the same page");
	}
	isnt(get($_), '200', "$_ is not for clients") foreach '/_apitoken', '/verify', '/_apitoken/report:read';

	# the client's address
	is(get('/', $token{elsewhere}), '403', 'from another network');
	is(get('/', $token{elsewhere}, headers => { 'X-Forwarded-For' => [ '192.0.2.1', '192.0.2.2' ], 'X-Real-IP' => '192.0.2.1' }), '403', 'whatever the client says');
	is(get('/', $token{here}, headers => { 'X-Forwarded-For' => '192.0.2.1' }), '200', 'from the right one');
	is(arrived('X-Forwarded-For'), '127.0.0.1', 'the application gets the address, too');

	# what the application is told
	my %spoofed = map { ($_ => 'evil') } qw(X-Apitoken-Id X-Apitoken-User X-Apitoken-Organization X_Apitoken_User X-Apitoken_User x_apitoken-organization);
	my $told = sub {
		get('/', $token{ $_[0] }, headers => \%spoofed);
		return join(' ', map { $_ eq '' ? '-' : $_ } map { arrived("X-Apitoken-$_") } qw(Id User Organization));
	};
	my %id = map { ($_ => $node->safe_psql('postgres', "SELECT (apitoken.parse('$token{$_}')).id")) } qw(acme alice zoe);
	is($told->('acme'), "$id{acme} - acme", "an organization's token");
	unlike($response->{content}, qr/evil/, 'nothing that the client invented');
	is($told->('alice'), "$id{alice} alice -", "a user's token");
	unlike($response->{content}, qr/evil/, 'nothing that the client invented');
	is($told->('zoe'), "$id{zoe} Zo%C3%AB%20%3Czoe%40example.com%3E -", 'any text can be an id');
	is(arrived('Authorization'), '-', 'the token does not arrive');

	# a rate
	my @statuses;
	push @statuses, get('/', $token{"limited_$gateway"}) while @statuses < 20 && ($statuses[-1] // '') ne '429';
	is("$statuses[0] $statuses[-1]", '200 429', 'too many requests');
	like($response->{headers}{'retry-after'} // '', qr/^[1-9]\d?$/, 'and when to come again');

	# A revocation counts at once.
	my $soon = $token{"soon_$gateway"} = create($node, "soon_$gateway", q{organization_id => 'acme'});
	is(get('/', $soon), '200', 'before it is revoked');
	$node->safe_psql('postgres', "SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'soon_$gateway'");
	is(get('/', $soon), '401', 'and after');

	# Without an answer, nobody gets in.
	$node->safe_psql('postgres', q{SELECT apitoken.disallow('app_node', 'verify')});
	like(get('/', $token{acme}), qr/^50[0-4]$/, 'the server may not verify');
	$node->safe_psql('postgres', q{SELECT apitoken.allow('app_node', 'verify')});
	stop_program('verify');
	like(get('/', $token{acme}), qr/^50[234]$/, 'the server is down');
	start_verify();
	is(get('/', $token{acme}), '200', 'and up again');
	stop_program('application');
	like(get('/', $token{acme}), qr/^50[234]$/, 'the application is down');
	is(get('/'), '401', 'which only those learn who get in');

	stop_program($gateway);
	no_secret($_, %token) foreach grep { -e } @logs;

	# HAProxy goes on with a request when Lua fails: here it has no server to ask.
	if ($gateway eq 'haproxy')
	{
		start_echo('application', $application);
		$start{haproxy}->('', $application, '');
		is(join(' ', map { get($_, $token{acme}) } qw(/ /reports/)), '503 503', 'Lua fails: nobody gets in');
		stop_program($_) foreach qw(haproxy application);
		like(slurp_file($logs[0]), qr/runtime error/, 'it did fail');
		no_secret($logs[0], %token);
	}
	return;
}

if (defined $node)
{
	stop_program('verify');
	no_secret($_, %token) foreach "$dir/verify.log", $node->logfile;
	$node->stop;
}
done_testing();
