# The examples for backends, with real drivers: psycopg 3, node-postgres and
# DBD::Pg.  The example files themselves serve HTTP here.  Each has a login of its
# own with the capabilities that it needs.  They connect to the server directly,
# and through pgbouncer with transaction pooling, with and without prepared
# statements.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenPooler;
use ApitokenTest;

plan skip_all => 'APITOKEN_NPM_NODE names no directory with the packages of examples/node'
  unless defined $ENV{APITOKEN_NPM_NODE};

my ($pooler_version, $pooler_prepares) = pooler_version();
my $json = JSON::PP->new->utf8->canonical;

# A header replaces the programs' own session middleware here.  Only a test may do
# that.
my $wsgi = wsgi_program(q{
def signed_in(environ, start_response):
    environ['REMOTE_USER'] = environ.pop('HTTP_X_TEST_USER', '')
    return app.application(environ, start_response)
});
my $node_http = q{
const { createServer, createPool } = require(process.cwd() + '/examples/node/server.js');
createServer({ pool: createPool(), signedInUser: (request) => request.headers['x-test-user'] }).listen(Number(process.argv[1]), '127.0.0.1');
};
# Three processes, like those of a forking server.
my $psgi = q{
use IO::Socket::INET;
my $app = do './examples/perl/app.psgi' or die $@ || $!;
my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], Listen => 50, ReuseAddr => 1) or die $!;
my @children;
$SIG{TERM} = sub { kill TERM => @children; exit };
for (1 .. 3) { my $pid = fork; if (!$pid) { $SIG{TERM} = 'DEFAULT'; @children = (); last } push @children, $pid }
if (@children) { wait for @children; exit }
while (1) {
	my $client = $listen->accept or next;
	my ($line, %env) = scalar <$client>;
	@env{'REQUEST_METHOD', 'PATH_INFO'} = $line =~ m{^(\S+) ([^? ]+)} or next;
	$env{PATH_INFO} =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
	while (($line = <$client>) =~ /^([^:]+):\s*(.*?)\r?$/) { $env{'HTTP_' . uc($1 =~ tr/-/_/r)} = $2 }
	$env{$_} = delete $env{"HTTP_$_"} for 'CONTENT_TYPE', 'CONTENT_LENGTH';
	$env{REMOTE_ADDR} = $client->peerhost;
	$env{REMOTE_USER} = delete $env{HTTP_X_TEST_USER};
	$env{'psgi.input'} = $client;
	my ($status, $headers, $body) = @{ $app->(\%env) };
	my %headers = (@$headers, 'Content-Length' => length join('', @$body), Connection => 'close');
	print $client "HTTP/1.1 $status -\r\n", (map { "$_: $headers{$_}\r\n" } keys %headers), "\r\n", @$body;
	close $client;
}
};

# prepared: how the server's log names a statement that this driver prepared
my %backends = (
	psycopg => { login => 'app_psycopg', command => [ '/usr/bin/python3', '-c', $wsgi ], prepared => qr/_pg3_/ },
	node => { login => 'app_node', command => [ 'node', '-e', $node_http, '--' ], prepared => qr/apitoken / },
	perl => { login => 'app_perl', command => [ 'perl', '-e', $psgi ], prepared => qr/dbdpg_/ });

my $node = start_node('backends', preload => 'shared', conf => q{
	log_statement = 'all'
	max_connections = 60
	# that no token gets there is not for this to do
	apitoken.mask_logs = off
});
$node->safe_psql('postgres', slurp_file('examples/articles.sql'));
# Which address the database is told with each article.
$node->safe_psql('postgres', q{
	CREATE TABLE told (title text, user_id text, address text);
	CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
		INSERT INTO told VALUES (NEW.title, apitoken.current_user_id(), current_setting('apitoken.client_address', true));
		RETURN NULL;
	END $$;
	CREATE TRIGGER tell AFTER INSERT ON article FOR EACH ROW EXECUTE FUNCTION tell();
});

# Tokens, by name.
my %token = create_each($node, {
	acme => q{organization_id => 'acme'},
	acme_read => q{organization_id => 'acme', access => 'read_only'},
	acme_other => q{organization_id => 'acme', permissions => '{invoice:read}'},
	globex => q{organization_id => 'globex'},
	alice => q{user_id => 'alice'},
	bob => q{user_id => 'bob'},
	here => q{organization_id => 'acme', allowed_networks => '{127.0.0.1/32}'},
	elsewhere => q{organization_id => 'acme', allowed_networks => '{192.0.2.0/24}'},
	revoked => q{organization_id => 'acme'},
	suspended => q{organization_id => 'acme'},
	expired => q{organization_id => 'acme', expires_in => '1 hour'},
});
$node->safe_psql('postgres', q{
	SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked';
	UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended';
	UPDATE apitoken.tokens SET expires_at = now() - interval '1 hour' WHERE label = 'expired';
});
$token{garbage} = 'garbage';
$token{long} = 'apt_org_' . 'x' x 5000;
$token{quote} = q{'); SELECT apitoken.act_as('alice'); --};
$token{nobodys} = $node->safe_psql('postgres', q{SELECT apitoken.generate('org')});
my @bad = qw(revoked suspended expired garbage long quote nobodys);

# ---- asking ----

my $http = HTTP::Tiny->new(timeout => 60);
my $base;

# http_answer METHOD, PATH, token =>, user =>, json =>, form =>, headers => {...}: the answer in one line
my $response;
sub http_answer
{
	my ($method, $path, %with) = @_;
	my %headers = %{ $with{headers} // {} };
	my $content;

	$headers{Authorization} = "Bearer $with{token}" if defined $with{token};
	$headers{'X-Test-User'} = $with{user} if defined $with{user};
	if (defined $with{json})
	{
		$headers{'Content-Type'} = 'application/json';
		$content = ref $with{json} ? $json->encode($with{json}) : $with{json};
	}
	if (defined $with{form})
	{
		$headers{'Content-Type'} = 'application/x-www-form-urlencoded';
		$content = $with{form};
	}
	$response = $http->request($method, "$base$path", { headers => \%headers, defined $content ? (content => $content) : () });
	my $value = eval { $json->decode($response->{content}) };
	my $said = $response->{content};

	if (ref $value eq 'ARRAY')
	{
		$said = join(',', map { $_->{title} } @$value);
	}
	elsif (ref $value eq 'HASH')
	{
		$said = $value->{error} // $value->{title} // $value->{label} // $said;
	}
	my $challenge = $response->{headers}{'www-authenticate'};
	return join(' ', $response->{status}, $said, defined $challenge ? "[$challenge]" : ());
}
my $invalid = '401 invalid_token [Bearer error="invalid_token"]';
my $unauthorized = '401 unauthorized [Bearer]';
my $scope = '403 insufficient_scope [Bearer error="insufficient_scope"]';

# ---- the programs ----

sub start_backend
{
	my ($name, $to, $prepare) = @_;
	my $backend = $backends{$name};
	my $port = PostgreSQL::Test::Cluster::get_free_port();

	local %ENV = (%ENV, PGHOST => $to->{host}, PGPORT => $to->{port}, PGUSER => $backend->{login}, PGDATABASE => 'postgres',
		PREPARE => $prepare, POOL_SIZE => 3, INTROSPECTION_CLIENT => 'gateway:s3cret%');
	start_program($name, [ @{ $backend->{command} }, $port ], port => $port);
	$base = "http://127.0.0.1:$port";
	return;
}

my $superuser = connection($node);
sub articles { return ask($superuser, q{SELECT coalesce(string_agg(organization_id || ':' || title, ',' ORDER BY id), '') FROM article}); }
my $articles = articles();

# ---- the rules, for each program in each way to the server ----

sub check_backend
{
	my ($name, $to, $prepare, $way) = @_;
	my $login = $backends{$name}{login};
	my $mark;

	start_backend($name, $to, $prepare);
	$mark = log_mark($node);
	my $is = sub { my ($got, $expected, $what) = @_; is($got, $expected, "$name, $way: $what"); };

	# the rows that each identity sees
	$is->(http_answer('GET', '/articles'), $unauthorized, 'nobody');
	$is->(http_answer('GET', '/articles', token => $token{acme}), '200 Anvils', "an organization's token");
	$is->(http_answer('GET', '/articles', token => $token{globex}), '200 Doomsday devices', "another organization's");
	$is->(http_answer('GET', '/articles', token => $token{acme_other}), '200 ', 'a token that may not');
	$is->(http_answer('GET', '/articles', token => $token{alice}), '200 Anvils', "a user's token");
	$is->(http_answer('GET', '/articles', user => 'bob'), '200 Doomsday devices', 'a user who is signed in');
	$is->(http_answer('GET', '/articles', user => 'stranger'), '200 ', 'one who is in no organization');
	$is->(http_answer('GET', '/articles', user => 'bob', token => $token{alice}), '200 Anvils', 'the token counts, not the session');
	$is->(http_answer('GET', '/articles', headers => { Authorization => 'Basic YTpi' }, user => 'bob'),
		'401 invalid_token [Bearer]', 'credentials that are no token are no session either');
	$is->(http_answer('GET', '/articles', headers => { Authorization => "bEARER  $token{alice}" }), '200 Anvils', 'the scheme has no case');
	$is->(http_answer('GET', '/nothing', token => $token{acme}), '404 not found', 'another path');

	# a bad token is refused, and the session does not replace it
	foreach my $bad (@bad)
	{
		$is->(http_answer('GET', '/articles', token => $token{$bad}, user => 'alice'), $invalid, "$bad: articles");
		$is->(http_answer('GET', '/feed/acme', token => $token{$bad}), $invalid, "$bad: feed");
	}
	$is->(http_answer('GET', '/articles', headers => { Authorization => 'Bearer' }, user => 'alice'), $invalid, 'an empty token');

	# one statement
	$is->(http_answer('GET', '/feed/acme'), $unauthorized, 'feed: nobody');
	$is->(http_answer('GET', '/feed/acme', user => 'alice'), $unauthorized, 'feed: a session is no token');
	$is->(http_answer('GET', '/feed/acme', token => $token{acme_read}), '200 acme_read', 'feed: a token');
	$is->(http_answer('GET', '/feed/acme', token => $token{alice}), '200 alice', "feed: a user's token");
	$is->(http_answer('GET', '/feed/acme', token => $token{bob}), $scope, 'feed: of another organization');
	$is->(http_answer('GET', '/feed/globex', token => $token{acme}), $scope, 'feed: for another organization');
	$is->(http_answer('GET', '/feed/acme', token => $token{acme_other}), $scope, 'feed: without the permission');
	$is->(http_answer('GET', q{/feed/acme'%20OR%20true--}, token => $token{acme}), $scope, 'feed: an organization that is none');
	like(http_answer('GET', '/feed/acme%00', token => $token{acme}), qr/^4\d\d /, "$name, $way: feed: a NUL in the path");

	# the client's address, as the program passes it
	$is->(http_answer('GET', '/feed/acme', token => $token{here}), '200 here', 'feed: the network is right');
	$is->(http_answer('GET', '/articles', token => $token{here}), '200 Anvils', 'articles: the network is right');
	$is->(http_answer('GET', '/feed/acme', token => $token{elsewhere}), '403 network_refused', 'feed: the network is wrong');
	$is->(http_answer('GET', '/articles', token => $token{elsewhere}, headers => { 'X-Forwarded-For' => '192.0.2.1' }),
		'403 network_refused', 'articles: the network is wrong, whatever the client says');

	# writing
	my %by = (token => $token{acme});
	$is->(http_answer('POST', '/articles', %by, json => { organization_id => 'acme', title => "$name $way" }), "201 $name $way", 'create');
	$is->(http_answer('POST', '/articles', %by, json => { organization_id => 'acme', title => "$name $way" }), '409 refused', 'create twice');
	$is->(http_answer('POST', '/articles', %by, json => { organization_id => 'globex', title => 'x' }), '403 refused', 'create elsewhere');
	$is->(http_answer('POST', '/articles', token => $token{acme_read}, json => { organization_id => 'acme', title => 'x' }),
		'403 refused', 'create by a read-only token');
	$is->(http_answer('POST', '/articles', token => $token{acme_other}, json => { organization_id => 'acme', title => 'x' }),
		'403 refused', 'create without the permission');
	$is->(http_answer('POST', '/articles', user => 'stranger', json => { organization_id => 'acme', title => 'x' }), '403 refused', 'create by a stranger');
	$is->(http_answer('POST', '/articles', token => $token{revoked}, user => 'alice', json => { organization_id => 'acme', title => 'x' }),
		$invalid, 'create by a revoked token');
	$is->(http_answer('POST', '/articles', json => { organization_id => 'acme', title => 'x' }), $unauthorized, 'create by nobody');
	$is->(http_answer('POST', '/articles', %by, json => { organization_id => 'acme', title => '' }), '400 refused', 'create without a title');
	$is->(http_answer('POST', '/articles', %by, json => { organization_id => 'acme' }), '400 refused', 'create with a null');
	$is->(http_answer('POST', '/articles', %by, json => '{"title":'), '400 a JSON object is expected', 'broken JSON');
	$is->(http_answer('POST', '/articles', %by, json => '{"organization_id": "acme", "title": {}}'), '400 strings are expected', 'no string');
	like(http_answer('POST', '/articles', %by, json => '{"organization_id": "acme", "title": "a\u0000b"}'), qr/^400 /, "$name, $way: a NUL");
	like(http_answer('POST', '/articles', user => 'alice', form => 'organization_id=acme&title=x'), qr/^415 /, "$name, $way: a form");
	my $title = q{x'); DROP TABLE article; -- $1 %s ?};
	$is->(http_answer('POST', '/articles', user => 'alice', json => { organization_id => 'acme', title => $title }), "201 $title", 'create what looks like SQL');
	is(articles(), "$articles,acme:$name $way,acme:$title", "$name, $way: that is what is there now");
	is(ask($superuser, q{WITH t AS (DELETE FROM told RETURNING *) SELECT string_agg(concat_ws(' ', coalesce(user_id, 'token'), address), ', ' ORDER BY user_id) FROM t}),
		'alice 127.0.0.1, token 127.0.0.1', "$name, $way: with the client's address, for the user as for the token");
	ask($superuser, q{DELETE FROM article WHERE title NOT IN ('Anvils', 'Doomsday devices')});

	# rates
	$token{"rate $name $way"} = create($node, "rate $name $way", q{organization_id => 'acme', rate_limit_per_minute => 1});
	my %rate = (token => $token{"rate $name $way"});
	$is->(http_answer('GET', '/articles', %rate), '200 Anvils', 'once a minute');
	$is->(http_answer('GET', '/articles', %rate), '429 rate_limited', 'articles: twice');
	like($response->{headers}{'retry-after'}, qr/^[1-9]\d?$/, "$name, $way: articles: when to come again");
	$is->(http_answer('GET', '/feed/acme', %rate), '429 rate_limited', 'feed: twice');
	like($response->{headers}{'retry-after'}, qr/^[1-9]\d?$/, "$name, $way: feed: when to come again");

	if ($name eq 'psycopg')
	{
		my %wanted = (label => "made $way", organization_id => 'acme', access => 'read_only');
		like(http_answer('POST', '/tokens', user => 'alice', json => \%wanted), qr/^201 /, "$name, $way: a token for who is signed in");
		my $made = eval { $json->decode($response->{content})->{token} };
		$is->(http_answer('GET', '/feed/acme', token => $made), "200 made $way", 'it works');
		is(ask($superuser, qq{SELECT e.actor, e.client_address FROM apitoken.events e JOIN apitoken.tokens t ON t.id = e.token_id WHERE t.label = 'made $way' AND e.action = 'create'}),
			'alice|127.0.0.1', "$name, $way: the event has the client's address");
		$is->(http_answer('POST', '/tokens', user => 'alice', json => \%wanted), '409 refused', 'its label is taken');
		$is->(http_answer('POST', '/tokens', user => 'bob', json => { %wanted, label => 'x' }), '403 refused', "not in another's organization");
		$is->(http_answer('POST', '/tokens', token => $token{alice}, json => { %wanted, label => 'x' }), $unauthorized, 'a token is no session');
		$is->(http_answer('POST', '/tokens', user => 'alice', json => { %wanted, label => 'x', expires_in => '30' }), '400 refused', 'thirty seconds');
		$is->(http_answer('POST', '/tokens', user => 'alice', json => { %wanted, label => 'x', expires_in => 'soon' }), '400 refused', 'no interval');
	}
	if ($name eq 'node')
	{
		my $basic = sub { return (headers => { Authorization => 'Basic ' . unpack('H*', '') . encode_base64($_[0]) }) };
		my %client = $basic->('gateway:s3cret%25');
		my $form = "token=$token{acme_read}";

		like(http_answer('POST', '/introspect', %client, form => $form), qr/^200 acme_read$/, "$name, $way: introspect");
		is($json->decode($response->{content})->{active}, JSON::PP::true, "$name, $way: introspect: active");
		foreach my $bad (@bad)
		{
			$is->(http_answer('POST', '/introspect', %client, form => 'token=' . ($token{$bad} =~ s/(\W)/sprintf '%%%02X', ord $1/ger)),
				'200 {"active":false}', "introspect: $bad");
		}
		my $refused = '401 invalid_client [Basic realm="introspection"]';
		$is->(http_answer('POST', '/introspect', form => $form), $refused, 'introspect: who asks?');
		$is->(http_answer('POST', '/introspect', token => $token{acme}, form => $form), $refused, 'introspect: a token is no gateway');
		$is->(http_answer('POST', '/introspect', $basic->('gateway:wrong'), form => $form), $refused, 'introspect: wrong secret');
		$is->(http_answer('POST', '/introspect', $basic->('gateway:s3cret%'), form => $form), $refused, 'introspect: badly encoded');
		$is->(http_answer('POST', '/introspect', $basic->(''), form => $form), $refused, 'introspect: empty');
		$is->(http_answer('POST', '/introspect', %client, form => ''), '400 invalid_request', 'introspect: nothing');
		$is->(http_answer('POST', '/introspect', %client, form => "$form&$form"), '400 invalid_request', 'introspect: twice');
		like(http_answer('POST', '/introspect', %client, json => { token => 'x' }), qr/^415 /, "$name, $way: introspect: JSON");
	}

	# If the login lacks a capability, the client is not blamed, and nothing is done.
	my $use = $name eq 'perl' ? 'use' : 'manage';
	my %lacks = ($use => [ '500', '200', '200' ], verify => [ '200', '500', '200' ], act => [ '200', '200', '500' ]);
	foreach my $capability (sort keys %lacks)
	{
		ask($superuser, "SELECT apitoken.disallow('$login', '$capability')");
		my @got = (http_answer('GET', '/articles', token => $token{acme}), http_answer('GET', '/feed/acme', token => $token{acme}),
			http_answer('GET', '/articles', user => 'alice'));
		is(join(' ', map { (split / /)[0] } @got), join(' ', @{ $lacks{$capability} }), "$name, $way: without $capability");
		ask($superuser, "SELECT apitoken.allow('$login', '$capability')");
	}
	$is->(http_answer('GET', '/articles', token => $token{acme}), '200 Anvils', 'with all of them again');

	# Sessions that end: the next requests may fail, but then all is well again.
	ask($superuser, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '$login'");
	my @after = map { http_answer('GET', '/articles', token => $token{acme}) } 1 .. 12;
	is(join(',', grep { !/^(503 failed|200 Anvils)$/ } @after), '', "$name, $way: after the sessions have ended");
	is($after[-1], '200 Anvils', "$name, $way: it has new ones");

	# many at once, from one pool
	is(crowd(qr/(?!)/), '', "$name, $way: many at once, each as who it was");
	is(crowd(qr/^503 failed$/, sub {
		foreach my $n (1 .. 20)
		{
			ask($superuser, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '$login'");
			select(undef, undef, undef, 0.02);
		}
	}), '', "$name, $way: many at once, while sessions end");
	@after = map { http_answer('GET', '/articles', token => $token{acme}) } 1 .. 12;
	is($after[-1], '200 Anvils', "$name, $way: that is over");
	is(ask($superuser, "SELECT count(*) FROM pg_stat_activity WHERE usename = '$login' AND state <> 'idle'"), '0',
		"$name, $way: no connection is left in a transaction");

	# what was sent
	stop_program($name);
	my $log = log_since($node, $mark);
	my @sent = $log =~ /(?:statement|execute (?:<unnamed>|[^:\n]+)): ([^\n]*apitoken\.(?:verify|authenticate|act_as|introspect)[^\n]*)/g;
	cmp_ok(scalar @sent, '>', 50, "$name, $way: what was sent is in the log");
	is(join("\n", grep { /\((?!\$1)/ && !/extract|disallow|\ballow/ } @sent), '', "$name, $way: bind parameters, always");
	is(join(' ', grep { index($log, $token{$_}) >= 0 } grep { length $token{$_} > 20 } sort keys %token), '', "$name, $way: no token is in the log");
	# pgbouncer uses its own names for them
	my $named = () = $log =~ /execute (?:$backends{$name}{prepared}|PGBOUNCER_)/g;
	if ($prepare eq 'off')
	{
		is($named, 0, "$name, $way: nothing was prepared");
	}
	else
	{
		cmp_ok($named, '>', 0, "$name, $way: statements were prepared");
	}
	return;
}

sub encode_base64 { require MIME::Base64; return MIME::Base64::encode_base64($_[0], ''); }

# crowd FORGIVEN, MEANWHILE: five clients at once, 40 requests each, of all
# identities.  Returns what was wrong.
sub crowd
{
	my ($forgiven, $meanwhile) = @_;
	my @ways = (
		[ [ token => $token{acme} ], '200 Anvils' ],
		[ [ token => $token{globex} ], '200 Doomsday devices' ],
		[ [ token => $token{acme_other} ], '200 ' ],
		[ [ user => 'alice' ], '200 Anvils' ],
		[ [ user => 'bob' ], '200 Doomsday devices' ],
		[ [ user => 'stranger' ], '200 ' ],
		[ [ token => $token{revoked} ], $invalid ],
		[ [], $unauthorized ]);
	my @pipes;

	foreach my $client (1 .. 5)
	{
		pipe(my $read, my $write) or die $!;
		my $pid = fork // die $!;
		if ($pid == 0)
		{
			close $read;
			srand($client);
			$http = HTTP::Tiny->new(timeout => 60);
			foreach my $n (1 .. 40)
			{
				my ($with, $expected) = @{ $ways[ rand @ways ] };
				my $got = http_answer('GET', '/articles', @$with);
				print $write "$client/$n: $got, not $expected; " if $got ne $expected && $got !~ $forgiven;
			}
			print $write "done\n";
			close $write;
			require POSIX;
			POSIX::_exit(0);
		}
		close $write;
		push @pipes, [ $read, $pid ];
	}
	$meanwhile->() if $meanwhile;
	my $wrong = '';
	foreach (@pipes)
	{
		my ($read, $pid) = @$_;
		my $said = do { local $/; <$read> } // '';
		waitpid($pid, 0);
		$wrong .= $said ne "done\n" ? "$said\n" : '';
	}
	return $wrong;
}

my $direct = { host => $node->host, port => $node->port };
my $pooler = start_pooler($node, users => [ map { $_->{login} } values %backends ], conf => "default_pool_size = 2\n");

note("pgbouncer $pooler_version");
foreach my $name (sort keys %backends)
{
	check_backend($name, $direct, 'on', 'direct');
	check_backend($name, $pooler, 'off', 'pgbouncer, not prepared');
}
# psycopg before 3.2 sends DEALLOCATE ALL, which pgbouncer may not notice.
foreach my $name (sort keys %backends)
{
	SKIP:
	{
		skip "pgbouncer $pooler_version knows no prepared statements with a name, 1.21 does: $name was tested without", 1
		  unless $pooler_prepares;
		skip "this psycopg cannot close prepared statements, 3.2 with libpq 17 can: it was tested without", 1
		  if $name eq 'psycopg' && system('/usr/bin/python3', '-c', 'import sys, psycopg; sys.exit(not psycopg.capabilities.has_send_close_prepared())') != 0;
		check_backend($name, $pooler, 'on', 'pgbouncer, prepared');
	}
}

stop_pooler($pooler);
$superuser->quit;
$node->stop;
done_testing();
