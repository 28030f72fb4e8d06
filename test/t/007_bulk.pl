# Many tokens in one statement, many subtransactions, and long texts.  Memory must
# not grow with the number of calls.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# few connections: the server's lock table has room for a few thousand locks
my $node = start_node('bulk', conf => "max_connections = 20\nlog_statement = none\njit = off");
$node->safe_psql('postgres', q{
	CREATE EXTENSION pgcrypto;
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations VALUES ('acme');
	CREATE TABLE made (n serial, id uuid, token text);
	-- of all contexts, in bytes
	CREATE FUNCTION memory() RETURNS bigint LANGUAGE sql VOLATILE
		AS 'SELECT sum(used_bytes)::bigint FROM pg_catalog.pg_backend_memory_contexts';
});

# One session's statements, each answer a line.
sub answers { return split /\n/, $node->safe_psql('postgres', join(";\n", @_)); }

# ----- 20,000 at once ----------------------------------------------------------

my $many = 20_000;
$node->safe_psql('postgres', qq{
	WITH t AS (INSERT INTO apitoken.tokens (label, organization_id)
		SELECT 'bulk ' || i, 'acme' FROM generate_series(1, $many) i
		RETURNING id, apitoken.take_token(id) AS token)
	INSERT INTO made (id, token) SELECT id, token FROM t ORDER BY id});
is($node->safe_psql('postgres', q{SELECT count(DISTINCT id) || ' ' || count(DISTINCT token) FROM made}),
	"$many $many", 'ids and texts of 20,000 tokens: none repeats');
is($node->safe_psql('postgres', q{
	SELECT count(*) FROM (SELECT substr(label, 6)::int AS n, lag(substr(label, 6)::int) OVER (ORDER BY id) AS before
		FROM apitoken.tokens) o WHERE before IS NOT NULL AND n <> before + 1}),
	'0', 'ids ascend in the order in which they were made');
is($node->safe_psql('postgres', q{SELECT count(*) FROM apitoken.token_usage}), $many, 'each has its usage row');
is($node->safe_psql('postgres', q{SELECT count(*) || ' ' || count(DISTINCT token_id) FROM apitoken.events WHERE action = 'create'}),
	"$many $many", 'and one event');

# If a transaction took a lock for each token that it verifies, the server's lock
# table would overflow.
my ($rc, $out, $err) = $node->psql('postgres',
	q{SELECT count(*) FROM made, LATERAL apitoken.verify(token) v WHERE v.valid AND v.token_id = made.id});
is($err, '', 'verifying all of them in one statement raises nothing');
is($out, $many, 'and all are valid');
is($node->safe_psql('postgres', q{SELECT count(*) FROM apitoken.token_usage WHERE last_used_at IS NOT NULL}),
	$many, 'and their use is recorded');
is(join(' ', answers('BEGIN', q{SELECT count(*) FROM made, LATERAL apitoken.verify(token) v WHERE v.valid},
		q{SELECT count(*) < 100 FROM pg_locks WHERE pid = pg_backend_pid()}, 'COMMIT')),
	"$many t", 'no transaction holds a lock for each of them');

# ----- subtransactions ---------------------------------------------------------

# A PL/pgSQL loop: each round is a subtransaction of its own.  Measured are the
# time, the memory within the transaction, and the memory that stays after it.
sub rounds
{
	my ($n, $label, $body) = @_;
	$body =~ s/LABEL/'$label ' || i/;
	return "DO \$\$ BEGIN FOR i IN 1..$n LOOP BEGIN $body EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END \$\$";
}
my $create = q{PERFORM apitoken.create_token(LABEL, organization_id => 'acme');};
my $insert = q{INSERT INTO apitoken.tokens (label, organization_id) VALUES (LABEL, 'acme');};
$node->safe_psql('postgres', q{ALTER TABLE apitoken.events ADD CONSTRAINT unwritten CHECK (details ->> 'label' NOT LIKE '%without event%')});
foreach (
	[ 'created', $create, 2000 ],
	[ 'inserted', $insert, 2000 ],
	[ 'created and rolled back', "$create PERFORM 1 / (i - i);", 0 ],
	[ 'inserted and rolled back', "$insert PERFORM 1 / (i - i);", 0 ],
	[ 'refused', q{PERFORM apitoken.create_token(LABEL, organization_id => 'acme', permissions => '{a}'); EXCEPTION WHEN invalid_parameter_value THEN NULL; END; BEGIN NULL;}, 0 ],
	[ 'without event', "$insert EXCEPTION WHEN check_violation THEN NULL; END; BEGIN NULL;", 0 ])
{
	my ($label, $body, $made) = @$_;
	my $began = time;
	# the first rounds fill caches and make plans
	my ($before, $inside, $after) = answers(rounds(20, "warm $label", $body), 'SELECT memory()',
		'BEGIN', rounds(2000, $label, $body), 'SELECT memory()', 'COMMIT', 'SELECT memory()');
	my $seconds = time - $began;
	is($node->safe_psql('postgres', "SELECT count(*) FROM apitoken.tokens WHERE label LIKE '$label %' AND label ~ '[0-9]\$'"),
		$made, "2,000 subtransactions, $label: $made tokens");
	note("$label: $seconds s, ", $inside - $before, ' bytes within, ', $after - $before, ' after');
	# a text that was not taken is kept until the end of the transaction
	cmp_ok($inside - $before, '<', $label eq 'inserted' ? 2_000_000 : 200_000, "2,000 subtransactions, $label: memory within");
	cmp_ok($after - $before, '<', 50_000, "2,000 subtransactions, $label: memory after");
}
$node->safe_psql('postgres', 'ALTER TABLE apitoken.events DROP CONSTRAINT unwritten');

# Many texts that nobody took do not make every later subtransaction slow.
my $began = time;
is($node->safe_psql('postgres', q{
	BEGIN;
	INSERT INTO apitoken.tokens (label, organization_id) SELECT 'left ' || i, 'acme' FROM generate_series(1, 20000) i;
	DO $$ BEGIN FOR i IN 1..20000 LOOP BEGIN PERFORM 1 / (i - i); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;
	SELECT 'done';
	ROLLBACK}), 'done', '20,000 subtransactions beside 20,000 texts that nobody took');
note(time - $began, ' s');

# An administrator's trigger may prevent the insertion of a row.  That row is not
# a token, and its text must not be returned as one.
$node->safe_psql('postgres', q{
	CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	CREATE TRIGGER z_nothing BEFORE INSERT ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION nothing()});
($rc, $out, $err) = $node->psql('postgres', q{SELECT token FROM apitoken.create_token('suppressed', organization_id => 'acme')},
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/ERROR:  55000: token was not inserted/, 'a token that was not inserted is an error');
is($out, '', 'and shows no text');
$node->safe_psql('postgres', 'DROP TRIGGER z_nothing ON apitoken_internal.token_records');

# The same holds for the text of another token that such a trigger made.
$node->safe_psql('postgres', q{
	CREATE FUNCTION another() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.label = 'outer' THEN
			PERFORM apitoken.create_token('inner', organization_id => 'acme');
			INSERT INTO apitoken.tokens (label, organization_id) VALUES ('inner, inserted', 'acme');
		END IF;
		RETURN NULL;
	END $$;
	CREATE TRIGGER z_another AFTER INSERT ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION another()});
is($node->safe_psql('postgres', q{SELECT (apitoken.verify((apitoken.create_token('outer', organization_id => 'acme')).token)).label}),
	'outer', 'a trigger that makes tokens does not change which one is answered');
$node->safe_psql('postgres', 'DROP TRIGGER z_another ON apitoken_internal.token_records');

# ----- long texts --------------------------------------------------------------

# 100 MB go into every argument that takes a token, and into some that do not.
# Nothing may crash, and no answer may repeat the text.
my $long = q{repeat('apt_org_', 13107200)};
my @long = (
	[ "verify: malformed", "SELECT verdict FROM apitoken.verify($long)", qr/^malformed$/ ],
	[ "parse: null", "SELECT apitoken.parse($long) IS NULL OR (apitoken.parse($long)).kind IS NULL", qr/^t$/ ],
	[ "mask: null", "SELECT apitoken.mask($long) IS NULL", qr/^t$/ ],
	[ "revoke_by_token: false", "SELECT apitoken.revoke_by_token($long)", qr/^f$/ ],
	[ "authenticate: 28000", "SELECT apitoken.authenticate($long)", qr/ERROR:  28000/ ],
	[ "hash", "SELECT apitoken.hash($long) = public.digest($long, 'sha256')", qr/^t$/ ],
	[ "verify's permission: 22023", "SELECT verdict FROM apitoken.verify('x', $long)", qr/ERROR:  22023/ ],
	[ "verify's organization", "SELECT verdict FROM apitoken.verify((SELECT token FROM made LIMIT 1), NULL, $long)", qr/^permission_refused$/ ],
	[ "can's permission: 22023", "SELECT apitoken.can($long)", qr/ERROR:  22023/ ],
	[ "can's organization", "SELECT apitoken.can('a:b', $long)", qr/^f$/ ],
	[ "act_as: 22023", "SELECT apitoken.act_as($long)", qr/ERROR:  22023/ ],
	[ "organizations_allowed: 22023", "SELECT count(*) FROM apitoken.organizations_allowed($long)", qr/ERROR:  22023/ ],
	[ "a label: 22023", "SELECT apitoken.create_token($long, user_id => 'u')", qr/ERROR:  22023/ ],
	[ "a description: 22023", "SELECT apitoken.create_token('l', user_id => 'u', description => $long)", qr/ERROR:  22023/ ],
	[ "a user id: 22023", "SELECT apitoken.create_token('l', user_id => $long)", qr/ERROR:  22023/ ],
	[ "an organization: 22023", "SELECT apitoken.create_token('l', organization_id => $long)", qr/ERROR:  22023/ ],
	[ "a role: 23503", "SELECT apitoken.create_token('l', organization_id => 'acme', role => $long)", qr/ERROR:  23503/ ],
	[ "an access: 22023", "SELECT apitoken.create_token('l', user_id => 'u', access => $long)", qr/ERROR:  22023/ ],
	[ "a pattern: 22023", "SELECT apitoken.create_token('l', user_id => 'u', permissions => ARRAY[$long])", qr/ERROR:  22023/ ],
	[ "a reason: 22023", "SELECT apitoken.revoke_tokens(user_id => 'u', reason => $long)", qr/ERROR:  22023/ ],
	[ "a kind: 22023", "SELECT apitoken.generate($long)", qr/ERROR:  22023/ ],
	[ "a user id setting: 22023", "BEGIN; SELECT set_config('apitoken.user_id', $long, true)", qr/ERROR:  22023/ ],
	[ "a token setting: 28000", "BEGIN; SELECT length(set_config('apitoken.token', $long, true)); SELECT 1", qr/ERROR:  28000/ ]);
foreach (@long)
{
	my ($what, $sql, $expected) = @$_;
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT apitoken.can('x:y');\n$sql",
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	$out =~ s/^f\n?//;
	like("$out$err" =~ s/^psql:<stdin>:\d+: //rm, $expected, "100 MB, $what")
	  or diag(substr("$out$err", 0, 500));
	# the server repeats a setting's value; a token's text must not come back
	cmp_ok(length($err), '<', 2000, "100 MB, $what: not repeated in a message")
	  unless $what =~ /^a user id setting:/;
}

# ----- memory ------------------------------------------------------------------

$node->safe_psql('postgres', q{
	INSERT INTO apitoken.users VALUES ('u', 'User', NULL, '{a,b}');
	INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'developer');
	CREATE TABLE few (n serial, token text);
	INSERT INTO few (token) SELECT token FROM made WHERE n <= 50;
	INSERT INTO few (token) SELECT (apitoken.create_token('p' || i, user_id => 'u', access => 'custom',
		permissions => '{article:read,article:write}', expires_in => '30 days', allowed_networks => '{10.0.0.0/8}',
		metadata => jsonb_build_object('long', repeat('x', 10000)))).token FROM generate_series(1, 50) i;
	INSERT INTO few (token) SELECT apitoken.generate('org') FROM generate_series(1, 20);
	INSERT INTO few (token) VALUES ('garbage'), (NULL);
});

# The largest resident size so far, in kB.
sub peak
{
	my ($session) = @_;
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	chomp $pid;
	return slurp_file("/proc/$pid/status") =~ /VmHWM:\s+(\d+) kB/ ? $1 : undef;
}

my $rounds = 200_000;
# the text depends on the row, so no plan can make fewer calls
my $rows = q{(SELECT array_agg(token ORDER BY n) AS t FROM few) a, generate_series(1, ROUNDS) i};
my $call = q{apitoken.verify(a.t[1 + i % 122], 'article:read', 'acme', '10.1.2.3')};
my %queries = (
	'verify() in FROM' => "SELECT count(*) FILTER (WHERE v.valid) FROM $rows, LATERAL $call v",
	'verify() in a target list' => "SELECT count(x) FROM (SELECT $call AS x FROM $rows OFFSET 0) s",
	'verify() in a condition' => "SELECT count(*) FROM $rows WHERE ($call).valid",
	'verify() in PL/pgSQL' => q{SELECT verify_often(ROUNDS)},
	'can() in a condition' => q{SELECT count(*) FROM generate_series(1, ROUNDS) i WHERE apitoken.can('article:' || CASE i % 2 WHEN 0 THEN 'read' ELSE 'write' END, 'acme')},
	'can() with an integer' => q{SELECT count(apitoken.can('article:read', i)) FROM generate_series(1, ROUNDS) i},
	'organizations_allowed() per row' => q{SELECT count(o) FROM generate_series(1, ROUNDS) i, LATERAL apitoken.organizations_allowed('article:' || CASE i % 2 WHEN 0 THEN 'read' ELSE 'write' END) o},
	'whoami() per row' => q{SELECT count(apitoken.whoami()) FROM generate_series(1, ROUNDS) i},
	'parse(), mask() and hash()' => "SELECT count(apitoken.parse(a.t[1 + i % 122])) + count(apitoken.mask(a.t[1 + i % 122])) + count(apitoken.hash(a.t[1 + i % 122])) FROM $rows",
	'take_token() refused' => q{SELECT refused_often(ROUNDS / 10)},
	'act_as() again' => q{SELECT count(apitoken.act_as('u')) FROM generate_series(1, ROUNDS) i});
$node->safe_psql('postgres', q{
	CREATE FUNCTION verify_often(times int) RETURNS bigint LANGUAGE plpgsql AS $$
	DECLARE
		tokens text[] := ARRAY(SELECT token FROM few ORDER BY n);
		valid bigint := 0;
	BEGIN
		FOR i IN 1..times LOOP
			IF (apitoken.verify(tokens[1 + i % 122], 'article:read', 'acme', '10.1.2.3')).valid THEN
				valid := valid + 1;
			END IF;
		END LOOP;
		RETURN valid;
	END $$;
	CREATE FUNCTION refused_often(times int) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1..times LOOP
			BEGIN
				PERFORM apitoken.take_token('018f0000-0000-7000-8000-000000000000');
			EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL;
			END;
		END LOOP;
	END $$;
});

foreach my $what (sort keys %queries)
{
	my $session = $node->background_psql('postgres');
	$session->query_safe(q{SET max_parallel_workers_per_gather = 0; SET work_mem = '1MB'; BEGIN; SELECT apitoken.act_as('u')});
	# a short run first: caches, plans, libraries
	$session->query_safe($queries{$what} =~ s/ROUNDS/2000/r);
	my $peak = peak($session);
	my $before = $session->query_safe('SELECT memory()');
	$session->query_safe($queries{$what} =~ s/ROUNDS/$rounds/r);
	my $after = $session->query_safe('SELECT memory()');
	my $peak_after = peak($session);
	# Less than a byte a call remains.  The server itself needs a few MB, for a
	# tuplestore of work_mem or for the bookkeeping of subtransactions.
	cmp_ok($after - $before, '<', $rounds, "$what, $rounds times: " . ($after - $before) . ' bytes stay in the transaction');
	cmp_ok($peak_after - $peak, '<', 10_000, "$what, $rounds times: at most " . ($peak_after - $peak) . ' kB more on the way');
	$session->query_safe('COMMIT');
	$session->quit;
}

$node->stop;
done_testing();
