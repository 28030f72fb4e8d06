# A session has cached OIDs, index OIDs and plans.  It goes on working, whatever
# another session does to the tables.  Nothing crashes, nothing stale is read, and
# nobody waits for a session that only verified.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# a lock that is never released must fail a test, not hang it
my $node = start_node('caches', conf => "lock_timeout = 10s\nmax_connections = 20");

my $install = q{CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations VALUES ('acme', 'Acme');
	INSERT INTO apitoken.users VALUES ('u', 'User', NULL, '{g}');
	INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'developer');};
$node->safe_psql('postgres', $install);

my @verbose = (verbosity => 'verbose');

my $count = 0;
sub create_in { my ($session, $label) = @_; return ask_raw($session, "SELECT token FROM apitoken.create_token('$label', organization_id => 'acme')"); }

# Every path that caches something, in one running session.
sub works
{
	my ($session, $token, $what) = @_;
	my $label = 'w' . ++$count;
	my $id = "(SELECT id FROM apitoken.tokens WHERE label = '$label')";
	my ($new, $newer);
	my @got;

	push @got, ask_raw($session, "SELECT verdict FROM apitoken.verify('$token', 'article:read', 'acme')");
	push @got, ask_raw($session, "BEGIN; SELECT (apitoken.authenticate('$token')).valid; SELECT apitoken.can('article:read', 'acme'); COMMIT");
	push @got, ask_raw($session, "BEGIN; SELECT apitoken.act_as('u') IS NOT NULL; SELECT apitoken.whoami()->>'groups'; SELECT * FROM apitoken.organizations_allowed('article:read'); COMMIT");
	$new = create_in($session, $label);
	push @got, substr($new, 0, 8);
	push @got, ask_raw($session, "SELECT verdict FROM apitoken.verify('$new')");
	# a label in use: found by its index
	push @got, ask_raw($session, "SELECT apitoken.create_token('$label', organization_id => 'acme')") =~ /23505/ ? '23505' : 'no 23505';
	push @got, ask_raw($session, "SELECT count(*) FROM apitoken.list_tokens('$label')");
	$newer = ask_raw($session, "SELECT token FROM apitoken.regenerate_token($id)");
	push @got, join(' ', map { ask_raw($session, "SELECT verdict FROM apitoken.verify('$_')") } $new, $newer);
	push @got, ask_raw($session, "UPDATE apitoken.tokens SET description = 'd' WHERE label = '$label' RETURNING description");
	push @got, ask_raw($session, "SELECT apitoken.revoke_token($id, '$label')");
	push @got, ask_raw($session, "SELECT verdict FROM apitoken.verify('$newer')");
	push @got, ask_raw($session, "SELECT string_agg(action, ' ' ORDER BY id) FROM apitoken.events WHERE token_id = $id");
	is_deeply(\@got, [ 'valid', "t\nt", "t\n[\"g\"]\nacme", 'apt_org_', 'valid', '23505', '1', 'unknown valid', 'd', 't', 'revoked', 'create regenerate edit revoke' ],
		"a running session goes on: $what") or diag(explain(\@got));
}

my $session = connection($node, @verbose);
my $token = create_in($session, 'standing');
works($session, $token, 'first');
works($session, $token, 'with everything cached');

# ----- what happens to tables --------------------------------------------------

my @tables = qw(apitoken.organizations apitoken.users apitoken_internal.role_records apitoken.memberships
	apitoken_internal.token_records apitoken.token_usage apitoken.events);
foreach my $ddl (
	(map { "REINDEX TABLE $_" } @tables),
	(map { "REINDEX TABLE CONCURRENTLY $_" } @tables),
	'REINDEX INDEX CONCURRENTLY apitoken_internal.token_records_pkey',
	'REINDEX INDEX CONCURRENTLY apitoken_internal.token_records_organization_label_key',
	'REINDEX SCHEMA apitoken',
	'REINDEX SCHEMA apitoken_internal',
	'CLUSTER apitoken_internal.token_records USING token_records_pkey',
	(map { "VACUUM FULL $_" } @tables),
	'VACUUM FREEZE ANALYZE apitoken_internal.token_records',
	(map { "ALTER TABLE $_ ADD COLUMN extra int DEFAULT 7" } @tables),
	(map { "ALTER TABLE $_ ALTER COLUMN extra TYPE bigint" } @tables),
	(map { "ALTER TABLE $_ DROP COLUMN extra" } @tables),
	# a volatile default rewrites the table; its column is not the last of the table
	'ALTER TABLE apitoken_internal.token_records ADD COLUMN extra uuid DEFAULT gen_random_uuid()',
	'ALTER TABLE apitoken_internal.token_records ADD COLUMN another text DEFAULT repeat(\'x\', 3000)',
	'ALTER TABLE apitoken_internal.token_records DROP COLUMN extra',
	'ALTER TABLE apitoken_internal.token_records DROP COLUMN another',
	'ALTER TABLE apitoken_internal.token_records SET UNLOGGED; ALTER TABLE apitoken_internal.token_records SET LOGGED',
	'ALTER TABLE apitoken_internal.token_records SET (fillfactor = 70)',
	'ALTER TABLE apitoken_internal.token_records FORCE ROW LEVEL SECURITY',
	'ALTER TABLE apitoken_internal.token_records NO FORCE ROW LEVEL SECURITY',
	'ALTER TABLE apitoken_internal.token_records DROP CONSTRAINT token_records_pkey; ALTER TABLE apitoken_internal.token_records ADD PRIMARY KEY (id)',
	'DISCARD PLANS')
{
	$node->safe_psql('postgres', join(';', map { "$_;" } split /;/, $ddl) =~ s/;;/;\n/gr);
	works($session, $token, $ddl);
}

# the same while a transaction is open that verified before and after
foreach my $ddl ('VACUUM FULL apitoken_internal.token_records', 'REINDEX TABLE CONCURRENTLY apitoken_internal.token_records',
	'ALTER TABLE apitoken_internal.token_records ADD COLUMN extra int DEFAULT random()', 'ALTER TABLE apitoken_internal.token_records DROP COLUMN extra',
	'CLUSTER apitoken_internal.token_records USING token_records_pkey', 'ALTER TABLE apitoken.users ADD COLUMN extra int DEFAULT random()')
{
	foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
	{
		next if $ddl =~ /COLUMN/ && $level ne 'REPEATABLE READ';
		# REINDEX CONCURRENTLY waits for every older snapshot of the database
		next if $ddl =~ /CONCURRENTLY/ && $level ne 'READ COMMITTED';
		ask_raw($session, "BEGIN ISOLATION LEVEL $level READ ONLY; SELECT 1");
		my $before = ask_raw($session, "SELECT verdict FROM apitoken.verify('$token')");
		my ($rc, $out, $err) = $node->psql('postgres', $ddl);
		is($err, '', "not blocked by an open transaction that verified ($level): $ddl");
		is("$before " . ask_raw($session, "SELECT verdict FROM apitoken.verify('$token')"), 'valid valid', "and that goes on ($level): $ddl");
		ask_raw($session, 'COMMIT');
	}
}

# ----- the policy of an organization -------------------------------------------

# the next token follows the policy of that moment
sub by_default { my ($in, $role) = @_; return $in->("UPDATE apitoken.organizations SET default_role = '$role' WHERE id = 'acme'"); }
my $here = sub { return ask_raw($session, $_[0]); };
my $elsewhere = sub { return $node->safe_psql('postgres', $_[0]); };
sub default_is
{
	my ($role, $what) = @_;
	my $label = 'policy ' . ++$count;

	create_in($session, $label);
	is(ask_raw($session, "SELECT role FROM apitoken.tokens WHERE label = '$label'"), $role, "the default role: $what");
}
$elsewhere->(q{INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read}')});
by_default($elsewhere, 'reader');
default_is('reader', $_) foreach 'changed elsewhere', 'again';
$here->('BEGIN');
default_is('reader', 'in a transaction');
by_default($elsewhere, 'admin');
default_is('admin', 'changed elsewhere meanwhile');
$here->('COMMIT');
$here->('BEGIN');
by_default($here, 'developer');
default_is('developer', 'changed in the transaction itself');
$here->('ROLLBACK');
default_is('admin', 'rolled back');
$here->('BEGIN');
default_is('admin', 'in another transaction');
$here->('SAVEPOINT s');
by_default($here, 'developer');
default_is('developer', 'changed after a savepoint');
$here->('ROLLBACK TO s');
default_is('admin', 'rolled back to the savepoint');
$here->('COMMIT');
is(ask_raw($session, q{DO $$ BEGIN
		PERFORM apitoken.create_token('policy loop ' || i, organization_id => 'acme') FROM generate_series(1, 3) i;
		UPDATE apitoken.organizations SET default_role = 'reader' WHERE id = 'acme';
		PERFORM apitoken.create_token('policy loop ' || i, organization_id => 'acme') FROM generate_series(4, 6) i;
	END $$;
	SELECT string_agg(role, ' ' ORDER BY label) FROM apitoken.tokens WHERE label LIKE 'policy loop %'}),
	'admin admin admin reader reader reader', 'the default role: changed between two statements of a function');
# the same if nothing tells of a change
$elsewhere->(q{ALTER TABLE apitoken.organizations DISABLE TRIGGER directory_after_change});
default_is('reader', 'without the trigger');
by_default($elsewhere, 'admin');
default_is('admin', 'changed without the trigger');
$elsewhere->(q{ALTER TABLE apitoken.organizations ENABLE ALWAYS TRIGGER directory_after_change});
default_is('admin', 'with it again');
by_default($elsewhere, 'developer');
default_is('developer', 'and changed');
# many organizations in one statement
is(ask_raw($session, q{INSERT INTO apitoken.organizations (id, default_role) SELECT 'many ' || i, CASE WHEN i % 2 = 0 THEN 'reader' ELSE 'admin' END FROM generate_series(1, 1100) i;
	INSERT INTO apitoken.tokens (label, organization_id) SELECT 'first', 'many ' || i FROM generate_series(1, 1100) i;
	INSERT INTO apitoken.tokens (label, organization_id) SELECT 'second', 'many ' || i FROM generate_series(1, 1100) i;
	SELECT count(*), count(DISTINCT o.id) FROM apitoken.tokens t JOIN apitoken.organizations o ON o.id = t.organization_id WHERE o.id LIKE 'many %' AND t.role = o.default_role}),
	'2200|1100', 'the default role: of each of many');
my $long = 'x' x 256;
like(ask_raw($session, "SELECT apitoken.create_token('long', organization_id => '$long')"), qr/22023/, 'an id that is too long');

# ----- what the extension refuses ----------------------------------------------

my ($rc, $out, $err) = $node->psql('postgres', 'CREATE SCHEMA elsewhere; ALTER EXTENSION apitoken SET SCHEMA elsewhere');
like($err, qr/does not support SET SCHEMA/, 'the extension does not move');
works($session, $token, 'after the attempt to move it');

# ----- DROP EXTENSION, CREATE EXTENSION ----------------------------------------

# not blocked by an open transaction that verified, authenticated, asked
my $open = connection($node, @verbose);
ask_raw($open, 'BEGIN READ ONLY');
is(ask_raw($open, "SELECT verdict FROM apitoken.verify('$token'); SELECT (apitoken.authenticate('$token')).valid; SELECT apitoken.can('article:read', 'acme')"),
	"valid\nt\nt", 'an open transaction verifies');
($rc, $out, $err) = $node->psql('postgres', 'DROP EXTENSION apitoken');
is($err, '', 'DROP EXTENSION does not wait for it');
like(ask_raw($open, "SELECT verdict FROM apitoken.verify('$token')"), qr/ERROR:  (42P01|42883|3F000)/, 'which then gets a clear error');
ask_raw($open, 'ROLLBACK');

# without the extension: an error, no crash, nothing stale
foreach my $statement ("SELECT verdict FROM apitoken.verify('$token')", 'SELECT apitoken.can(\'a:b\')',
	"SELECT token FROM apitoken.create_token('x', organization_id => 'acme')", 'SELECT count(*) FROM apitoken.tokens')
{
	like(ask_raw($session, $statement), qr/ERROR:  (42P01|42883|3F000)/, "dropped: $statement");
}
is(ask_raw($session, "BEGIN; SET LOCAL apitoken.token = '$token'; SELECT 1; COMMIT"), '1', 'dropped: a token in the settings disturbs nobody');

$node->safe_psql('postgres', $install);
is(ask_raw($session, "SELECT verdict FROM apitoken.verify('$token')"), 'unknown', 'made anew: the old token is unknown in the old session');
my $second = create_in($session, 'standing');
works($session, $second, 'after DROP and CREATE EXTENSION');
is(ask_raw($open, "SELECT verdict FROM apitoken.verify('$token'), generate_series(1, 2)"), "unknown\nunknown", 'and so in the other');
works($open, $second, 'another session after DROP and CREATE EXTENSION');

# dropped and made in the session itself, and rolled back
ask_raw($session, 'BEGIN; DROP EXTENSION apitoken');
like(ask_raw($session, "SELECT verdict FROM apitoken.verify('$second')"), qr/ERROR:  (42P01|42883|3F000)/, 'dropped in this transaction');
ask_raw($session, 'ROLLBACK');
works($session, $second, 'after a DROP EXTENSION that was rolled back');
ask_raw($session, "BEGIN; DROP EXTENSION apitoken; $install");
my $third = create_in($session, 'inside');
is(ask_raw($session, "SELECT verdict FROM apitoken.verify('$second'); SELECT verdict FROM apitoken.verify('$third')"), "unknown\nvalid",
	'dropped and made in this transaction');
ask_raw($session, 'ROLLBACK');
is(ask_raw($session, "SELECT verdict FROM apitoken.verify('$third')"), 'unknown', 'what was made there is gone');
works($session, $second, 'after DROP and CREATE EXTENSION were rolled back');
ask_raw($session, 'BEGIN; SAVEPOINT s; DROP EXTENSION apitoken; ROLLBACK TO s');
is(ask_raw($session, "SELECT verdict FROM apitoken.verify('$second'); COMMIT"), 'valid', 'after a ROLLBACK TO the state before DROP EXTENSION');

# prepared statements of the client and of PL/pgSQL
ask_raw($session, q{PREPARE v(text) AS SELECT verdict FROM apitoken.verify($1)});
ask_raw($session, q{CREATE FUNCTION verdict_of(t text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN (apitoken.verify(t)).verdict; END'});
is(ask_raw($session, "EXECUTE v('$second'); SELECT verdict_of('$second')"), "valid\nvalid", 'prepared') for 1 .. 7;
$node->safe_psql('postgres', "DROP EXTENSION apitoken; $install");
my $fourth = create_in($session, 'standing');
is(ask_raw($session, "EXECUTE v('$second'); EXECUTE v('$fourth')"), "unknown\nvalid", 'a prepared statement after DROP and CREATE EXTENSION');
is(ask_raw($session, "SELECT verdict_of('$second'); SELECT verdict_of('$fourth')"), "unknown\nvalid", 'PL/pgSQL after DROP and CREATE EXTENSION');
works($session, $fourth, 'once more');

# a transaction that fixed an identity of the dropped extension
ask_raw($open, "BEGIN; SELECT (apitoken.authenticate('$fourth')).valid");
$node->safe_psql('postgres', "SET lock_timeout = '5s'; UPDATE apitoken.token_usage SET last_used_at = now()");
ask_raw($open, 'COMMIT');
ask_raw($open, "BEGIN READ ONLY; SELECT (apitoken.authenticate('$fourth')).valid");
$node->safe_psql('postgres', "DROP EXTENSION apitoken; $install");
unlike(ask_raw($open, 'SELECT apitoken.whoami()'), qr/XX000|server closed/, 'a fixed identity of an extension that is gone does no harm');
ask_raw($open, 'ROLLBACK');
my $fifth = create_in($open, 'standing');
works($open, $fifth, 'after the transaction');

# ----- other databases ---------------------------------------------------------

foreach my $preload ('', 'apitoken')
{
	configure($node, 'session_preload_libraries', $preload);
	my $config = $preload ? 'session preload' : 'plain';

	$node->safe_psql('postgres', 'CREATE DATABASE without');
	my $elsewhere = connection($node, database => 'without', @verbose);
	is(ask_raw($elsewhere, "BEGIN; SET LOCAL apitoken.token = 'garbage'; SET LOCAL apitoken.user_id = 'u'; SELECT 1; CREATE TABLE t AS SELECT 2 AS x; SELECT x FROM t; COMMIT"),
		"1\n2", "$config: identities in a database without the extension disturb nobody");
	# somebody's own tables with the same names
	ask_raw($elsewhere, 'CREATE SCHEMA apitoken');
	ask_raw($elsewhere, "CREATE TABLE $_ (a int)") foreach @tables;
	is(ask_raw($elsewhere, "BEGIN; SET LOCAL apitoken.token = '$fifth'; SELECT 1; COMMIT"), '1',
		"$config: nor do tables of the same names");
	$elsewhere->quit;
	my $idle = connection($node, @verbose);
	is(ask_raw($idle, "SELECT verdict FROM apitoken.verify('$fifth')"), 'valid', "$config: a session that verified");
	($rc, $out, $err) = $node->psql('postgres', 'DROP DATABASE without');
	is($err, '', "$config: DROP DATABASE is not hindered by a session elsewhere");
	$idle->quit;

	# a database that gets the extension while a session runs in it
	$node->safe_psql('postgres', 'CREATE DATABASE later');
	my $early = connection($node, database => 'later', @verbose);
	is(ask_raw($early, 'SELECT 1'), '1', "$config: a session in a database without the extension");
	$node->safe_psql('later', $install);
	my $first = create_in($early, 'standing');
	works($early, $first, "$config: after the extension came");
	is(ask_raw($early, "SELECT verdict FROM apitoken.verify('$fifth')"), 'unknown', "$config: a token of another database is unknown");
	$early->quit;
	$node->safe_psql('postgres', 'DROP DATABASE later');
}

$session->quit;
$open->quit;
$node->stop;
no_crash($node);
done_testing();
