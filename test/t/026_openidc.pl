# A third-party relying party: Debian's Apache with mod_auth_openidc is an OAuth 2.0
# resource server, configured by examples/apache/oauth20.conf, in front of pages and
# an application.  It uses the introspection endpoint that examples/node serves,
# over https (examples/apache/endpoint.conf).
use strict;
use warnings;

use Cwd qw(getcwd);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

my $modules = '/usr/lib/apache2/modules';
my $apache = (grep { -x } map { "$_/apache2" } split(/:/, $ENV{PATH}), '/usr/sbin')[0];

plan skip_all => 'APITOKEN_NPM_NODE names no directory with the packages of examples/node'
  unless defined $ENV{APITOKEN_NPM_NODE};
plan skip_all => 'Apache with mod_auth_openidc is not installed'
  unless defined $apache && -f "$modules/mod_auth_openidc.so";

# ---- the database ----

my $node = start_node('openidc', preload => 'shared');
$node->safe_psql('postgres', slurp_file('examples/articles.sql'));
$node->safe_psql('postgres', q{
	ALTER DATABASE postgres SET apitoken.issuer = 'https://id.example.com/';
	ALTER DATABASE postgres SET apitoken.audience = 'https://api.example.com/';
	INSERT INTO apitoken.roles (name, permissions) VALUES ('reporter', '{report:read,report:write}'), ('reader', '{*:read,*:list}'), ('nothing', '{}');
	-- whose id is a user's as well
	INSERT INTO apitoken.organizations (id) VALUES ('alice');
	UPDATE apitoken.users SET role = 'reporter' WHERE id = 'bob'});

my $line = "line\r\nX-Injected: yes";
my %token = create_each($node, {
	acme => q{organization_id => 'acme', role => 'reporter', expires_in => '1 day'},
	acme_admin => q{organization_id => 'acme', role => 'admin'},
	acme_read => q{organization_id => 'acme', role => 'developer', access => 'read_only'},
	acme_articles => q{organization_id => 'acme', permissions => '{article:read}'},
	acme_write => q{organization_id => 'acme', role => 'reporter', permissions => '{report:write}'},
	globex => q{organization_id => 'globex', role => 'reporter'},
	named_alice => q{organization_id => 'alice', role => 'reporter'},
	alice => q{user_id => 'alice'},
	bob => q{user_id => 'bob'},
	nothing => q{organization_id => 'acme', role => 'nothing'},
	there => q{organization_id => 'acme', role => 'reporter', allowed_networks => '{192.0.2.0/24}'},
	limited => q{organization_id => 'acme', role => 'reporter', rate_limit_per_minute => 1},
	line => q{organization_id => 'acme', role => 'reporter'},
	(map { ($_ => q{organization_id => 'acme', role => 'reporter', expires_in => '1 day'}) }
		qw(revoked expired suspended regenerated resumed down remembered soon later)),
});
# Labels have no line ends.  One that was written past the triggers:
$node->safe_psql('postgres', qq{SET session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET label = '$line' WHERE label = 'line'});
my %id = map { ($_ => $node->safe_psql('postgres', "SELECT (apitoken.parse('$token{$_}')).id")) } keys %token;
$node->safe_psql('postgres', q{
	SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked';
	UPDATE apitoken.tokens SET expires_at = now() - interval '1 second' WHERE label = 'expired';
	UPDATE apitoken.tokens SET suspended_at = now() WHERE label IN ('suspended', 'resumed');
	SELECT apitoken.regenerate_token(id) FROM apitoken.tokens WHERE label = 'regenerated'});
$token{unknown} = $node->safe_psql('postgres', q{SELECT apitoken.generate('org')});
$token{garbage} = 'garbage';
$token{jwt} = 'eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsInNjb3BlIjoiKiJ9.';
$token{quoted} = q["},"active":true,"x":"];
$token{form} = "$token{unknown}&token=$token{acme}";
$token{long} = 'x' x 7000;

# ---- the programs ----

my $dir = PostgreSQL::Test::Utils::tempdir_short();
my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } qw(gateway endpoint node application);

my @credentials = ('gateway', 'a secret: 100% +/&?');
sub escaped { return $_[0] =~ s/([^A-Za-z0-9])/sprintf('%%%02X', ord $1)/ger; }

sub start_endpoint
{
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGUSER} = 'app_node';
	local $ENV{PGDATABASE} = 'postgres';
	local $ENV{PORT} = $port{node};
	local $ENV{INTROSPECTION_CLIENT} = join(':', @credentials);
	start_program('node', [ 'node', 'examples/node/server.js' ], port => $port{node}, log => "$dir/node.log");
	return;
}

system_or_bail('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
	'-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-keyout', "$dir/key.pem", '-out', "$dir/cert.pem");
mkdir "$dir/$_" foreach qw(pages pages/reports pages/acme pages/admin);
append_to_file("$dir/pages$_", "the page\n") foreach qw(/index.html /reports/index.html /acme/index.html /admin/index.html);

# start_apache interval => how long an answer is remembered, ca =>, secret =>
sub start_apache
{
	my (%how) = @_;
	my $ca = $how{ca} // "$dir/cert.pem";

	stop_program('apache');

	unlink "$dir/httpd.conf";
	append_to_file("$dir/httpd.conf", <<"CONF");
ServerRoot $dir
ServerName localhost
PidFile $dir/httpd.pid
DefaultRuntimeDir $dir
ErrorLog $dir/error.log
LoadModule mpm_event_module $modules/mod_mpm_event.so
@{[ map { "LoadModule ${_}_module $modules/mod_$_.so\n" } qw(authn_core authz_core authz_host authz_user headers rewrite dir alias proxy proxy_http ssl auth_openidc) ]}
StartServers 1
ServerLimit 2
ThreadsPerChild 10
MaxRequestWorkers 20
Listen 127.0.0.1:$port{gateway}
DocumentRoot $dir/pages
DirectoryIndex index.html
LogFormat "%>s %u %r" common
CustomLog $dir/access.log common
ProxyPass /app http://127.0.0.1:$port{application}/app
Define INTROSPECTION_ENDPOINT https://localhost:$port{endpoint}/introspect
Define INTROSPECTION_CA $ca
@{[ defined $how{interval} ? "Define INTROSPECTION_INTERVAL $how{interval}" : '' ]}
Define ENDPOINT_LISTEN 127.0.0.1:$port{endpoint}
Define ENDPOINT_NAME localhost
Define ENDPOINT_CERT $dir/cert.pem
Define ENDPOINT_KEY $dir/key.pem
Define ENDPOINT_BACKEND http://127.0.0.1:$port{node}
<VirtualHost 127.0.0.1:$port{gateway}>
Include @{[ getcwd() ]}/examples/apache/oauth20.conf
</VirtualHost>
Include @{[ getcwd() ]}/examples/apache/endpoint.conf
CONF
	local $ENV{INTROSPECTION_ID} = $credentials[0];
	local $ENV{INTROSPECTION_SECRET} = $how{secret} // $credentials[1];
	start_program('apache', [ $apache, '-DFOREGROUND', '-f', "$dir/httpd.conf" ], port => $port{gateway}, log => "$dir/apache.log");
	return;
}

# ---- asking ----

my $response;

# get PATH, TOKEN, ...: the status; arguments as http_request() has them
sub get { $response = http_request($port{gateway}, @_); return $response->{status}; }

# What the application got: { lower-case name => value }
sub got
{
	return { map { /^([^:]+): (.*?)\r?$/ ? (lc $1 => $2) : () } split /\n/, $response->{content} };
}

# how often the endpoint was asked about a token and found it valid
sub asked
{
	my ($name) = @_;
	return $node->safe_psql('postgres', "SELECT apitoken.flush_usage(); SELECT accepted FROM apitoken.token_usage WHERE token_id = '$id{$name}'") =~ s/^\n//r;
}

start_endpoint();
# an application that answers with the headers that it got
start_echo('application', $port{application});
start_apache();

# ---- access: the page, one for report:read, one for Acme, one for setting:write ----

my @paths = qw(/ /reports/ /acme/ /admin/);
my %let_in = (
	acme => '200 200 200 403',
	acme_admin => '200 200 200 200',
	acme_read => '200 200 200 403',
	acme_articles => '200 403 200 403',
	acme_write => '200 403 200 403',
	globex => '200 200 403 403',
	named_alice => '200 200 403 403',
	alice => '200 200 403 200',
	bob => '200 200 403 403');
foreach my $name (sort keys %let_in)
{
	is(join(' ', map { get($_, $token{$name}) } @paths), $let_in{$name}, "$name: let in");
	get('/', $token{$name});
	is($response->{content}, "the page\n", "$name: sees the page");
	next unless $let_in{$name} =~ /403/;
	get((grep { get($_, $token{$name}) == 403 } @paths)[0], $token{$name});
	like($response->{headers}{'www-authenticate'}, qr/^Bearer .*error="insufficient_scope"/, "$name: is told why not");
	unlike($response->{content}, qr/the page/, "$name: sees no other page");
}

foreach my $name (qw(revoked expired suspended regenerated nothing there unknown garbage jwt quoted form long))
{
	is(join(' ', map { get($_, $token{$name}) } @paths, '/app/'), '401 401 401 401 401', "$name: refused");
	like($response->{headers}{'www-authenticate'}, qr/^Bearer .*error="invalid_token"/, "$name: is told so");
}

# without a token, or with one in a place where the server does not look
is(join(' ', map { get($_) } @paths, '/app/'), '401 401 401 401 401', 'no token: refused');
like($response->{headers}{'www-authenticate'}, qr/^Bearer /, 'no token: is told that one is wanted');
is(get("/?access_token=$token{acme}"), '401', 'a token in the query');
is(get('/', undef, headers => { Cookie => "access_token=$token{acme}; PA.global=$token{acme}" }), '401', 'a token in a cookie');
is(get('/', undef, method => 'POST', headers => { 'Content-Type' => 'application/x-www-form-urlencoded' }, content => "access_token=$token{acme}"),
	'401', 'a token in a form');
is(get('/', undef, headers => { 'X-API-Key' => $token{acme} }), '401', 'a token in another header');
is(get('/', undef, headers => { Authorization => $_ }), '401', "Authorization: " . substr($_, 0, 6))
  foreach "Token $token{acme}", $token{acme}, 'Bearer', 'Bearer ', 'Basic ' . 'eDp5', '', "Bearer $token{acme}, Bearer $token{acme}";
foreach my $sent ("Token $token{acme}", $token{acme})
{
	get('/', undef, headers => { Authorization => $sent });
	is($response->{headers}{'www-authenticate'}, 'Bearer realm="api"', 'Authorization: ' . substr($sent, 0, 6) . ': the module, which would log it, does not see it');
}
is(get('/', undef, headers => { Authorization => [ "Bearer $token{garbage}", "Bearer $token{acme}" ] }), '401', 'two headers');
is(get('/', undef, headers => { Authorization => "bearer $token{acme}" }), '200', 'the scheme in lower case');

# each method; OPTIONS does not bypass the check
foreach my $method (qw(HEAD POST PUT PATCH DELETE OPTIONS TRACE))
{
	like(get('/reports/', undef, method => $method), qr/^40[135]$/, "$method of a page without a token");
	my $status = get('/app/', undef, method => $method, headers => { OIDC_CLAIM_sub => 'alice' });

	like($status, qr/^40[135]$/, "$method without a token");
	unlike($response->{content}, qr/oidc_claim_sub: alice/i, "$method without a token does not reach the application");
	like(get('/app/', $token{revoked}, method => $method), qr/^40[135]$/, "$method with a revoked token");
}

# ---- what the application is told ----

foreach my $name (qw(acme alice bob named_alice acme_admin))
{
	my %claims = map { /^(\w+)\|(.*)$/ ? ("oidc_claim_$1" => $2) : () } split /\n/,
	  $node->safe_psql('postgres', "SELECT key, CASE value WHEN 'true' THEN '1' ELSE value END FROM jsonb_each_text(apitoken.introspect('$token{$name}'))");

	is(get('/app/', $token{$name}), '200', "$name: reaches the application");
	my $got = got();
	my %told = map { $_ => $got->{$_} } grep { /^oidc/ } keys %$got;
	is_deeply(\%told, \%claims, "$name: the application is told all that the answer says, and no more");
	unlike($response->{content}, qr/\Q$token{$name}\E/, "$name: the application does not get the token");
}
is(do { get('/app/', $token{alice}); got()->{oidc_claim_sub} }, 'alice', 'a user is the subject of a personal token');
is(do { get('/app/', $token{named_alice}); got()->{oidc_claim_sub} }, $id{named_alice}, 'and never an organization of that name');

# what a client claims about itself
get('/app/', $token{acme}, headers => { OIDC_CLAIM_sub => 'evil', 'OIDC-CLAIM-username' => 'evil', 'oidc_claim_scope' => 'evil', 'OIDC_CLAIM_email' => 'evil',
	'OIDC-Claim_organization_id' => 'evil', OIDC_access_token => 'evil', REMOTE_USER => 'x' });
is($response->{status}, '200', 'with headers made up');
unlike($response->{content}, qr/evil/, 'which the application does not get');

# a label that somebody chose
get('/app/', $token{line});
like(got()->{oidc_claim_label} // '', qr/^line\s+X-Injected: yes$/, 'a label with line ends is one line');
ok(!exists got()->{'x-injected'}, 'and no header');

# the identity in the log
get('/', $token{$_}) foreach qw(alice named_alice);
$node->poll_query_until('postgres', "SELECT pg_read_file('$dir/access.log') LIKE '%200 $id{named_alice} GET / %'") or fail('the access log');
like(slurp_file("$dir/access.log"), qr{^200 alice GET / HTTP}m, 'REMOTE_USER is the subject');

# ---- changes, and when they take effect ----

is(get('/', $token{resumed}), '401', 'suspended');
$node->safe_psql('postgres', q{UPDATE apitoken.tokens SET suspended_at = NULL WHERE label = 'resumed'});
is(get('/', $token{resumed}), '200', 'a refusal is not remembered');

# at once, in a place where each request is checked
is(get('/admin/', $token{acme_admin}), '200', 'before');
$node->safe_psql('postgres', q{UPDATE apitoken.tokens SET permissions = '{report:read}' WHERE label = 'acme_admin'});
is(get('/admin/', $token{acme_admin}), '403', 'permissions taken');
$node->safe_psql('postgres', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'acme_admin'});
is(get('/admin/', $token{acme_admin}), '401', 'revoked');

# a rate limit counts requests to the database, not questions to the endpoint
is(join(' ', map { get('/admin/', $token{limited}) } 1 .. 3), '403 403 403', 'a rate limit is not used up');
is($node->safe_psql('postgres', "SELECT (apitoken.verify('$token{limited}')).verdict"), 'valid', 'and is left for others');
cmp_ok(asked('limited'), '>=', 3, 'a question is a use');

# Access is refused when the endpoint is unreachable, or refuses to answer.
stop_program('node');
is(get('/admin/', $token{alice}), '401', 'the endpoint is down');
is(get('/', $token{down}), '401', 'the endpoint is down, for one never seen');
start_endpoint();
is(get('/', $token{down}), '200', 'and up again');
start_apache(secret => 'wrong');
is(get('/', $token{alice}), '401', 'wrong credentials at the endpoint');
start_apache(ca => '/etc/ssl/certs/ca-certificates.crt') if -f '/etc/ssl/certs/ca-certificates.crt';
is(get('/', $token{alice}), '401', 'an endpoint whose certificate is not known');

# Answers are remembered for the interval, and until exp at most.
start_apache(interval => 600);
is(get('/', $token{remembered}), '200', 'a new one is asked about');
my $before = asked('remembered');
is(join(' ', map { get('/', $token{remembered}) } 1 .. 3), '200 200 200', 'and remembered');
is(asked('remembered'), $before, 'which asks no more');
$node->safe_psql('postgres', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'remembered'});
is(get('/', $token{remembered}), '200', 'revoked meanwhile: let in for the rest of the interval, as documented');
is(get('/admin/', $token{remembered}), '401', 'but not where each request is asked about');
$node->safe_psql('postgres', q{UPDATE apitoken.tokens SET expires_at = now() + interval '5 seconds' WHERE label = 'soon'});
my $status = get('/', $token{soon});
ok($status eq '200' || $node->safe_psql('postgres', q{SELECT expires_at < now() FROM apitoken.tokens WHERE label = 'soon'}) eq 't', 'one that expires soon');
ok(until_refused('soon'), 'is not remembered for longer');

start_apache(interval => 2);
is(get('/', $token{later}), '200', 'with a short interval');
$node->safe_psql('postgres', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'later'});
ok(until_refused('later'), 'a revoked token is refused after it');

sub until_refused
{
	my ($name) = @_;

	foreach my $try (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if get('/', $token{$name}) eq '401';
		select(undef, undef, undef, 0.1);
	}
	return 0;
}

# ---- the endpoint, from elsewhere ----

sub curl
{
	my (@arguments) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'curl', '-sS', '--max-time', '60', '--cacert', "$dir/cert.pem", '-w', ' %{http_code}', @arguments ], '>', \$out, '2>', \$err);
	return $out . $err;
}
my $endpoint = "https://localhost:$port{endpoint}/introspect";
my $user = join(':', map { escaped($_) } @credentials);
is(curl('-u', $user, '-d', "token=$token{unknown}", $endpoint), '{"active":false} 200', 'the endpoint answers');
like(curl('-u', $user, '-d', "token=$token{alice}&token_type_hint=refresh_token", $endpoint), qr/^\{.*"active":true.*\} 200$/, 'whatever the hint');
like(curl('-u', 'gateway:wrong', '-d', "token=$token{alice}", $endpoint), qr/invalid_client.* 401$/, 'not to anybody');
like(curl('-d', "token=$token{alice}", $endpoint), qr/invalid_client.* 401$/, 'not without credentials');
unlike(curl('-u', $user, "$endpoint?token=$token{alice}"), qr/active|200$/, 'not by GET');
unlike(curl('-u', $user, "https://localhost:$port{endpoint}/articles"), qr/ (200|401)$/, 'nothing else is there');

# ---- no token is in a log ----

foreach my $log ("$dir/error.log", "$dir/node.log", $node->logfile)
{
	my $text = slurp_file($log);
	my @found = grep { my $secret = substr($token{$_}, -49); defined $id{$_} && index($text, $secret) >= 0 } sort keys %token;

	is("@found", '', "no token is in " . $log =~ s{.*/}{}r);
}
# (the access log has the one that was sent in a query)
is(join(' ', grep { $_ ne 'acme' && defined $id{$_} && index(slurp_file("$dir/access.log"), substr($token{$_}, -49)) >= 0 } sort keys %token), 'alice',
	'access.log has only those that a client put into a URL');

stop_program($_) foreach qw(apache application node);
$node->stop;
done_testing();
