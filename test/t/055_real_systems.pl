# Keys that other systems made, with the tables that they created, are imported by the
# SELECTs of docs/migrating.md, and their texts go on working.
#
# django-rest-knox is neither in Debian nor in the npm registry: to run that part, put
# the directory that contains "knox" on PYTHONPATH.

use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

my $peers = 'test/bench/peers';
my $document = slurp_file('docs/migrating.md');
my $node = start_node('systems', preload => 'shared', conf => "apitoken.flush_interval = '1h'");
my $user = (getpwuid($<))[0];

# The import of a chapter, as it is printed.
sub import_of
{
	my ($chapter) = @_;
	my ($statement) = $document =~ /^## \Q$chapter\E\n.*?^(SELECT count\(apitoken\.import_token.*?;)$/ms;
	die "docs/migrating.md does not have a SELECT for $chapter\n" unless defined $statement;
	return $statement;
}

# What a program of the other system has made in a database of its own, where the extension is as well.
sub made_by
{
	my ($database, @program) = @_;
	my ($out, $err);

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGUSER => $user, PGDATABASE => $database, HOME => PostgreSQL::Test::Utils::tempdir());
	my $good = IPC::Run::run(\@program, '<', \undef, '>', \$out, '2>', \$err);
	ok($good, "$database: keys are made") or do { diag($err); return; };
	my ($json) = $out =~ /^(\{.*\})$/m;
	return decode_json($json);
}

# The verdicts of texts by name.
sub verdicts
{
	my ($database, $keys) = @_;
	return join ' ', map { "$_:" . $node->safe_psql($database, "SELECT verdict FROM apitoken.verify('$keys->{$_}')") } sort keys %$keys;
}
sub changed { my ($text) = @_; return substr($text, 0, -1) . ($text =~ /a\z/ ? 'b' : 'a'); }

SKIP:
{
	my $python = '/usr/bin/python3';
	skip 'there is no djangorestframework-api-key', 1 unless run_log([ $python, '-c', 'import rest_framework_api_key, psycopg2' ], '>', \my $ignored, '2>&1');
	my $made = made_by('django', $python, "$peers/make_django_keys.py") or last SKIP;

	is(join(' ', grep { $made->{valid}{$_} } sort keys %{ $made->{valid} }), 'plain', 'django: the keys are those that it knows');
	$node->safe_psql('django', q{CREATE EXTENSION apitoken; INSERT INTO apitoken.organizations (id) VALUES ('1'); INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read}')});
	is(verdicts('django', $made->{keys}), 'expired:malformed plain:malformed revoked:malformed', 'django: not before the import');
	is($node->safe_psql('django', import_of('djangorestframework-api-key')), 3, 'django: all keys are imported');
	$node->safe_psql('django', "ALTER DATABASE django SET apitoken.imported_formats = 'drf-api-key'");
	is(verdicts('django', $made->{keys}), 'expired:expired plain:valid revoked:revoked', 'django: the texts go on working');
	is(verdicts('django', { plain => changed($made->{keys}{plain}) }), 'plain:unknown', 'django: another text does not');
	$node->safe_psql('django', 'SELECT apitoken.flush_usage()');
	is(verdicts('django', $made->{keys}), 'expired:expired plain:valid revoked:revoked', 'django: nor with a fast digest');
	is($node->safe_psql('django', q{SELECT label, organization_id, role, expires_at AT TIME ZONE 'UTC' FROM apitoken.tokens WHERE label = 'expired'}), 'expired|1|reader|2025-01-02 03:04:05', 'django: the columns are carried over');
	is($node->safe_psql('django', "SELECT count(*) FROM rest_framework_api_key_apikey a, apitoken.verify(a.hashed_key) v WHERE v.valid"), 0, 'django: what it stores is no token');
}

SKIP:
{
	my $python = '/usr/bin/python3';
	skip 'there is no django-rest-knox', 1 unless run_log([ $python, '-c', 'import knox, rest_framework, psycopg2' ], '>', \my $ignored, '2>&1');
	my $made = made_by('knox', $python, '-B', "$peers/make_knox_keys.py") or last SKIP;
	my $salted = $node->safe_psql('knox', "SELECT count(*) FROM pg_attribute WHERE attrelid = 'knox_authtoken'::regclass AND attname = 'salt'");
	my @names = grep { $_ ne 'expired' } sort keys %{ $made->{keys} };

	is(join(' ', grep { $made->{valid}{$_} } sort keys %{ $made->{valid} }), "@names", 'knox: the tokens are those that it knows');
	$node->safe_psql('knox', "CREATE EXTENSION apitoken; INSERT INTO apitoken.users (id) VALUES ('$made->{user}')");
	is($node->safe_psql('knox', import_of('django-rest-knox')), @names + 1, 'knox: all tokens are imported');
	$node->safe_psql('knox', "ALTER DATABASE knox SET apitoken.imported_formats = 'knox'");
	is(verdicts('knox', $made->{keys}), join(' ', map { $_ eq 'expired' ? 'expired:expired' : "$_:valid" } sort @names, 'expired'), 'knox: the texts go on working');
	is(verdicts('knox', { map { $_ => changed($made->{keys}{$_}) } @names }), join(' ', map { "$_:unknown" } @names), 'knox: other texts do not');
	is($node->safe_psql('knox', 'SELECT count(*) FROM knox_authtoken k, apitoken.verify(k.digest) v WHERE v.valid'), 0, 'knox: what it stores is no token');
	is($node->safe_psql('knox', "SELECT count(*), count(expires_at) FROM apitoken.tokens WHERE imported_as IN ('knox5', 'knox42') = ($salted = 0)"), @names + 1 . '|' . @names, 'knox: formats and expiry');
}

SKIP:
{
	skip 'APITOKEN_NPM_PEERS names no directory with npm packages', 1 unless defined $ENV{APITOKEN_NPM_PEERS};
	my $made = made_by('better_auth', 'node', "$peers/make_keys.mjs") or last SKIP;

	is(join(' ', grep { $made->{valid}{$_} } sort keys %{ $made->{valid} }), 'expired limited plain prefixed', 'better-auth: the keys are those that it knows');
	$node->safe_psql('better_auth', "CREATE EXTENSION apitoken; INSERT INTO apitoken.users (id) VALUES ('$made->{user}')");
	is($node->safe_psql('better_auth', import_of('better-auth')), 4, 'better-auth: all keys that are enabled are imported');
	$node->safe_psql('better_auth', "ALTER DATABASE better_auth SET apitoken.imported_formats = 'better-auth'");
	is(verdicts('better_auth', $made->{keys}), 'disabled:unknown expired:expired limited:valid plain:valid prefixed:valid', 'better-auth: the texts go on working');
	is(verdicts('better_auth', { map { $_ => changed($made->{keys}{$_}) } qw(plain prefixed) }), 'plain:unknown prefixed:unknown', 'better-auth: other texts do not');
	is($node->safe_psql('better_auth', 'SELECT label, user_id, access, permissions, metadata FROM apitoken.tokens WHERE revoked_at IS NULL ORDER BY label'),
		join("\n", map { my ($label, @more) = @$_; join('|', $label, $made->{user}, @more) } [ 'expired', 'full', '', '{}' ], [ 'limited', 'custom', '{article:read,article:list}', '{}' ],
			[ 'plain', 'full', '', '{"old": true}' ], [ 'prefixed', 'full', '', '{"plan": "free"}' ]), 'better-auth: the columns are carried over');
	is($node->safe_psql('better_auth', 'SELECT count(*) FROM apikey k, apitoken.verify(k.key) v WHERE v.valid'), 0, 'better-auth: what it stores is no token');
}

no_crash($node);
$node->stop;
done_testing();
