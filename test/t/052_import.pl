# Tokens of other systems: what their import needs beyond one session.  With shared
# preload, a READ ONLY transaction and a standby verify them, and a fast digest takes
# the place of a slow one.  A dump carries them without an event.  Two sessions
# cannot import the same token.  No log has their texts.  A slow digest can be
# interrupted.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $place = PostgreSQL::Test::Utils::tempdir_short();
my $formats = 'sanctum, strapi, knox, better-auth, unkey, prefixed-api-key, gitlab, keyhippo, drf-api-key, crypt';
my $peppers = "$place/peppers";
sub write_peppers { open(my $file, '>', $peppers) or die; print $file @_; close $file; chmod 0600, $peppers; return; }
write_peppers('1:' . '07' x 32 . "\nstrapi:" . unpack('H*', 'strapi-api-token-salt-0001') . "\ngitlab:" . unpack('H*', '0123456789abcdef0123456789abcdef') . "\n");

my $primary = start_node('primary', preload => 'shared', init => [ allows_streaming => 1 ],
	conf => "max_connections = 20\nmax_standby_streaming_delay = -1\nlog_statement = all\n"
		. "apitoken.flush_interval = 1h\napitoken.pepper_file = '$peppers'\napitoken.imported_formats = '$formats'\n");
run_on($primary);
sub owner { my ($sql) = @_; return $primary->safe_psql('postgres', $sql); }

# ----- imported -----------------------------------------------------------------

my @vectors = grep { $_->[0] ne 'bcrypt' } map { [ split /\t/ ] } (split /\n/, slurp_file('test/vectors/foreign_digests.tsv'))[ 1 .. 14 ];
is(scalar @vectors, 13, 'vectors were read');
owner(q{CREATE EXTENSION apitoken; CREATE EXTENSION pgcrypto;
	INSERT INTO apitoken.organizations (id) VALUES ('acme');
	CREATE ROLE regress_apitoken_gateway LOGIN; SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
	CREATE ROLE regress_apitoken_sync LOGIN; SELECT apitoken.allow('regress_apitoken_sync', 'directory')});
sub quoted { my ($text) = @_; return defined $text && $text ne '' ? "'" . $text =~ s/'/''/gr . "'" : 'NULL'; }
foreach my $vector (@vectors)
{
	my ($format, $token, $key, $stored, undef, $secret) = @$vector;
	owner('SELECT apitoken.import_token(' . join(', ', map { quoted($_) } $format, $stored, $key)
			. ", label => '$format', organization_id => 'acme'" . ($format eq 'knox41' ? ", salt => '$secret'" : '') . ')');
}
my $bcrypt = 'legacy-key-0001';
owner("SELECT apitoken.import_token('crypt', crypt('$bcrypt', gen_salt('bf', 5)), 'legacy-k', label => 'bcrypt', organization_id => 'acme')");
my %token = (bcrypt => $bcrypt, map { $_->[0] => $_->[1] } @vectors);
# these have the same texts as others
delete @token{qw(knox42 knox41 drf-api-key3)};

sub verdicts
{
	my ($node, $database) = @_;
	my $sql = join(' ', map { verdict($token{$_}) } sort keys %token);
	return answer($node, "BEGIN READ ONLY; $sql COMMIT;", user => 'regress_apitoken_gateway', database => $database // 'postgres');
}
my $all_valid = join(' ', ('valid') x keys %token);
my $fast = q{SELECT string_agg(format, ' ' ORDER BY format) FROM apitoken_internal.foreign_digests WHERE fast_digest IS NOT NULL};

# ----- on a standby, before the primary has seen a use --------------------------

$primary->backup('base');
my $standby = start_standby($primary, 'standby');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is(verdicts($standby), $all_valid, 'each format is verified on a standby');
is(answer($standby, verdict("${bcrypt}x"), user => 'regress_apitoken_gateway'), 'unknown', 'and a wrong text is not');
like(answer($standby, "SELECT apitoken.import_token('sha256', repeat('0', 64), organization_id => 'acme')", user => 'regress_apitoken_sync'), qr/ERROR: 25006/, 'a standby imports nothing');
like(answer($standby, "SELECT apitoken.report_leaked(ARRAY['$token{gitlab}'])", user => 'regress_apitoken_gateway'), qr/ERROR: 25006/, 'and revokes nothing');
owner('DROP EXTENSION pgcrypto');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is(verdicts($standby), $all_valid, 'without pgcrypto, by the fast digest in the memory of the standby');
like(answer($standby, verdict("${bcrypt}x"), user => 'regress_apitoken_gateway'), qr/ERROR: 55000/, 'only a text that was not used needs it');
like(answer($primary, verdict($bcrypt), user => 'regress_apitoken_gateway'), qr/ERROR: 55000/, 'on the primary it was not used');
owner('CREATE EXTENSION pgcrypto');

# ----- in READ ONLY transactions ------------------------------------------------

is(owner($fast), '', 'nothing has a fast digest');
is(verdicts($primary), $all_valid, 'each format is verified in a READ ONLY transaction');
is(owner($fast), '', 'which writes nothing');
owner('DROP EXTENSION pgcrypto');
is(verdicts($primary), $all_valid, 'the digest in memory serves at once');
owner('SELECT apitoken.flush_usage()');
like(owner($fast), qr/^crypt/, 'a flush writes the fast digest');
is(verdicts($primary), $all_valid, 'and it serves from then on');
owner('CREATE EXTENSION pgcrypto');
is(answer($primary, verdict($token{knox5} =~ s/^9/8/r), user => 'regress_apitoken_gateway'), 'unknown', 'another lookup key');

# ----- dump and restore -----------------------------------------------------------

my $tables = q{SELECT md5(string_agg(f::text, ',' ORDER BY token_id)) FROM apitoken_internal.foreign_digests f};
my $events = q{SELECT count(*), count(*) FILTER (WHERE action = 'import') FROM apitoken.events};
$primary->safe_psql('postgres', 'CREATE DATABASE restored');
system_or_bail('pg_dump', '-Fc', '-f', "$place/dump", $primary->connstr('postgres'));
system_or_bail('pg_restore', '-j', '2', '-d', $primary->connstr('restored'), "$place/dump");
is($primary->safe_psql('restored', $tables), owner($tables), 'a restore brings what was stored');
is($primary->safe_psql('restored', $events), owner($events), 'and no event');
is(owner($events), '14|14', 'of which each import has one');
is(verdicts($primary, 'restored'), $all_valid, 'the tokens are verified there');

# ----- two sessions at once ---------------------------------------------------------

my $digest = 'ab' x 32;
my $import = "SELECT apitoken.import_token('sha256', '$digest', organization_id => 'acme') IS NOT NULL;";
my $one = connection($primary, user => 'regress_apitoken_sync');
is(ask($one, "BEGIN; $import"), 't', 'a token is being imported');
my $other = connection($primary, user => 'regress_apitoken_sync');
my $pid = ask($other, 'SELECT pg_backend_pid();');
$other->query_until(qr/started/, "\\echo started\n$import\n");
$primary->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid")
  or die 'the second session does not wait';
ask($one, 'COMMIT;');
like(ask($other, 'SELECT 1;'), qr/ERROR: 23505/, 'the second one was refused');
is(owner("SELECT count(*) FROM apitoken_internal.foreign_digests WHERE digest = decode('$digest', 'hex')"), '1', 'it is imported once');
$_->quit foreach $one, $other;

# ----- the work is bounded, and can be interrupted ----------------------------------

owner(q{SELECT apitoken.import_token('drf-api-key2', 'pbkdf2_sha256$2500000$salt$kQSr/b0EaY4CKrC+qczfnaUPzlklZYX9eoxJXESQ0LM=', 'slowslow', organization_id => 'acme')});
like(run(q{SET statement_timeout = '50ms'; SELECT verdict FROM apitoken.verify('slowslow.0123456789abcdef0123')}), qr/ERROR: 57014/, 'PBKDF2 is interrupted');
is(run(verdict($token{gitlab})), 'valid', 'the next verification is right');

# ----- from PostgreSQL 18 on, pgcrypto knows more of crypt(3) ---------------------------

SKIP: {
	skip 'before PostgreSQL 18', 2 if owner('SHOW server_version_num') < 180000;
	foreach my $kind (qw(sha256crypt sha512crypt))
	{
		owner("SELECT apitoken.import_token('crypt', crypt('$kind-secret', gen_salt('$kind')), left('$kind', 6), organization_id => 'acme')");
		is(run(verdict("$kind-secret") . verdict("$kind-secre")), 'valid unknown', $kind);
	}
}

# ----- removed with its token -------------------------------------------------------

owner(q{SELECT apitoken.revoke_tokens(organization_id => 'acme');
	SET session_replication_role = replica; UPDATE apitoken_internal.token_records SET revoked_at = '2022-01-01'});
# a row that a restore has brought without its token
owner(q{INSERT INTO apitoken_internal.foreign_digests (token_id, format, digest) VALUES (gen_random_uuid(), 'sha256', '\x00');
	INSERT INTO apitoken.users (id) VALUES ('u'); SELECT apitoken.create_token('stays', user_id => 'u')});
owner(q{SET apitoken.retention = '30d'; SELECT apitoken.run_maintenance()});
is(owner('SELECT count(*) FROM apitoken_internal.foreign_digests'), '0', 'retention removes what was stored, and what has no token');
is(owner('SELECT count(*) FROM apitoken.tokens'), '1', 'with the tokens');

# ----- the log ----------------------------------------------------------------------

foreach my $format (qw(gitlab sanctum))
{
	my $mark = log_mark($primary);
	run("SELECT apitoken.verify('$token{$format}'); SELECT 1 / 0 AS \"$token{$format}\"");
	cmp_ok(in_log($primary, qr/apitoken\.verify/, $mark), '>', 0, "$format: the statement is in the log");
	my $secret = substr($token{$format}, -12);
	is(in_log($primary, qr/\Q$secret\E/, $mark), 0, "$format: without the secret");
}
is(in_log($primary, qr/PANIC|TRAP/), 0, 'no crash');
no_crash($primary);
no_crash($standby);
$_->stop foreach $standby, $primary;
done_testing();
