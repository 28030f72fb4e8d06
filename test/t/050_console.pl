# The page examples/console in a browser, with the backends of examples/node and
# examples/psycopg, and with PostgREST if it is on the PATH.  The tests of the
# browser are in examples/console/test/console.mjs.
#
# CONSOLE_TESTS names some of them, separated by semicolons.

use strict;
use warnings;

use ApitokenPostgREST;
use ApitokenTest;
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

foreach my $variable (qw(APITOKEN_NPM_NODE APITOKEN_NPM_CONSOLE))
{
	plan skip_all => "$variable names no directory with npm packages" unless defined $ENV{$variable};
}
my ($chromium) = grep { -x } map { my $name = $_; map { "$_/$name" } split /:/, $ENV{PATH} } qw(chromium-headless-shell chromium);
plan skip_all => 'there is no chromium' unless defined $chromium;
plan skip_all => 'there is no psycopg' unless run_log([ '/usr/bin/python3', '-c', 'import psycopg, psycopg_pool' ], '>', \my $python, '2>&1');

my $json = JSON::PP->new->utf8->canonical;
my @users = qw(alice bob carol dave erin tina);

# Anybody may be any of the users.  Only a test and the demo may do that.
my $node_http = q{
const { createPool } = require(process.cwd() + '/examples/node/server.js');
const { createDemo } = require(process.cwd() + '/examples/console/demo.js');
createDemo({ pool: createPool(), users: process.argv.slice(2).map((id) => ({ id, name: id })) }).listen(Number(process.argv[1]), '127.0.0.1');
};
my $wsgi = wsgi_program(q{
import json, re, secrets
sessions = {}
users = [{'id': user, 'name': user} for user in sys.argv[2:]]
def signed_in(environ, start_response):
    found = re.search(r'(?:^|;\s*)session=([\w-]+)', environ.get('HTTP_COOKIE', ''))
    user = sessions.get(found[1]) if found else None
    if environ['PATH_INFO'] != '/session':
        environ['REMOTE_USER'] = user or ''
        return app.application(environ, start_response)
    headers = [('Content-Type', 'application/json')]
    if environ['REQUEST_METHOD'] == 'POST':
        session = secrets.token_urlsafe(24)
        user = sessions[session] = app.body(environ)['user']
        headers.append(('Set-Cookie', f'session={session}; Path=/; HttpOnly; SameSite=Strict'))
    start_response('200 OK', headers)
    return [json.dumps({'user': user, 'users': users}).encode()]
});

my $node = start_node('console', preload => 'shared', conf => "max_connections = 60\napitoken.flush_interval = '1h'");

# A database with the tokens of the demo, and with organizations and users that only
# the tests need.
sub set_up
{
	my ($database, %how) = @_;

	drop_roles($node);
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-d', $node->connstr($database), map { ('-f', $_) } @{ $how{files} } ],
		"$database: the example's files run");
	$node->safe_psql($database, q{
		INSERT INTO apitoken.organizations (id, name, max_tokens) VALUES ('initech', 'Initech', NULL), ('full', 'Full', 0);
		INSERT INTO apitoken.roles (name, permissions) VALUES ('keeper', '{*:read,*:list,token:create,token:update}');
		INSERT INTO apitoken.users (id, name) VALUES ('dave', 'Dave'), ('erin', 'Erin'), ('tina', 'Tina');
		INSERT INTO apitoken.memberships (organization_id, user_id, role) VALUES ('initech', 'erin', 'admin'), ('full', 'erin', 'admin'), ('acme', 'tina', 'keeper');
	});
	$node->safe_psql($database, 'DELETE FROM apitoken.permissions') if $how{no_catalog};
	return;
}

sub start_page
{
	my ($name, $database) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my %command = (node => [ 'node', '-e', $node_http, '--' ], psycopg => [ '/usr/bin/python3', '-c', $wsgi ]);

	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGUSER => "app_$name", PGDATABASE => $database);
	start_program($name, [ @{ $command{$name} }, $port, @users ], port => $port);
	return "http://127.0.0.1:$port";
}

# Run the tests of the browser.  Each of its assertions is one of ours.
sub browse
{
	my ($name, $page, %environment) = @_;
	my ($out, $err) = ('', '');

	# the browser writes into its home
	local %ENV = (%ENV, HOME => PostgreSQL::Test::Utils::tempdir(), CONSOLE_URL => $page, CONSOLE_CHROMIUM => $chromium, %environment);
	my $ended = IPC::Run::run([ 'node', 'examples/console/test/console.mjs', split /;/, $ENV{CONSOLE_TESTS} // '' ], '<', \undef, '>', \$out, '2>', \$err);
	# bytes stay bytes: the TAP output of PostgreSQL 17's modules refuses wide characters
	my @lines = map { JSON::PP->new->decode($_) } split /\n/, $out;
	foreach my $line (@lines)
	{
		note("$name: $line->{note}") if defined $line->{note};
		next unless exists $line->{ok};
		ok($line->{ok}, "$name: $line->{name}") or diag($line->{about});
	}
	ok($ended && @lines && $lines[-1]{done}, "$name: the tests of the browser have ended") or diag($err);
	return;
}

my @files = ('examples/articles.sql', 'examples/console/demo.sql');
set_up('node', files => \@files);
my $page = start_page('node', 'node');
if (defined $ENV{CONSOLE_PICTURES})
{
	browse('pictures', $page);
	done_testing();
	exit;
}
browse('node', $page);
stop_program('node');
$node->safe_psql('postgres', 'DROP DATABASE node');

# here without a catalog of permissions
set_up('psycopg', files => \@files, no_catalog => 1);
browse('psycopg', start_page('psycopg', 'psycopg'), CONSOLE_BACKEND => 1);
stop_program('psycopg');
$node->safe_psql('postgres', 'DROP DATABASE psycopg');

SKIP:
{
	skip 'there is no postgrest', 1 unless grep { -x "$_/postgrest" } split /:/, $ENV{PATH};

	set_up('postgrest', files => [ @files, 'examples/postgrest/setup.sql' ]);
	my $secret = 'a secret that only this test knows, 32 bytes or more';
	my $api = ApitokenPostgREST->real($node, database => 'postgrest', conf => 'examples/postgrest/postgrest.conf', secret => $secret);
	my %jwt = map { $_ => ApitokenPostgREST::jwt($secret, role => 'web_user', sub => $_) } @users;
	browse('postgrest', start_page('node', 'postgrest'), CONSOLE_API => $api->{url}, CONSOLE_JWT => $json->encode(\%jwt));
	$api->quit;
}

no_crash($node);
done_testing();
