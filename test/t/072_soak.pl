# Many clients with mixed operations for a while, and one session that lives long.
#
# Each client changes tokens of its own, and notes in the same transaction what it has
# done; all clients verify and read all tokens.  At the end, every token is as noted,
# every use is counted once, and the tables agree with each other.  Then one session
# runs many transactions, and its memory must not grow.
#
# APITOKEN_SECONDS says how long (20), APITOKEN_TRANSACTIONS how many transactions of 20
# verifications the session runs (3000): `make soak` sets them.  The table of what was
# done is report.txt beside the logs.

use strict;
use warnings;

use ApitokenTest;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{APITOKEN_SECONDS} // 20;
my $transactions = $ENV{APITOKEN_TRANSACTIONS} // 3000;
my $clients = 16;
my $node = start_node('soak', preload => 'shared', conf => q{
	apitoken.flush_interval = '1s'
	apitoken.usage_slots = 1000000
	shared_buffers = 256MB
	max_wal_size = 2GB
	log_statement = none
	log_min_duration_statement = -1
});
$node->safe_psql('postgres', qq{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id) SELECT 'org' || n FROM generate_series(0, 9) n;
	INSERT INTO apitoken.memberships SELECT 'org' || n % 10, 'user' || n, CASE WHEN n % 2 = 0 THEN 'admin' ELSE 'developer' END FROM generate_series(0, 19) n;
	CREATE ROLE regress_apitoken_client LOGIN;
	SELECT apitoken.allow('regress_apitoken_client', 'act', 'manage', 'verify', 'notify');

	-- what the clients have done
	CREATE SCHEMA soak;
	GRANT USAGE ON SCHEMA soak TO PUBLIC;
	CREATE TABLE soak.pool (client int, n int, id uuid NOT NULL, token text NOT NULL, state text NOT NULL, PRIMARY KEY (client, n));
	CREATE TABLE soak.article (organization_id text);
	INSERT INTO soak.article SELECT id FROM apitoken.organizations;
	ALTER TABLE soak.article ENABLE ROW LEVEL SECURITY;
	CREATE POLICY p ON soak.article USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
	GRANT SELECT, INSERT, UPDATE ON soak.pool TO PUBLIC;
	GRANT SELECT ON soak.article TO PUBLIC;
	CREATE TABLE soak.memory (transactions int, contexts bigint, resident bigint);
	INSERT INTO soak.pool SELECT c, n, t.id, t.token, 'valid' FROM generate_series(0, $clients - 1) c, generate_series(1, 20) n,
		apitoken.create_token(format('client %s token %s', c, n), organization_id => 'org' || (c + n) % 10, role => 'developer') t;
});

# ---- what a client does: pgbench's scripts, with their weights

my $place = PostgreSQL::Test::Utils::tempdir();
my $other = qq{\\set other random(0, $clients - 1)\n\\set n random(1, 20)\n};
my $own = "\\set n random(1, 1000000)\n";
my $mine = 'SELECT id FROM soak.pool WHERE client = :client_id AND state = \'valid\' ORDER BY n % (1 + :n % 7), n LIMIT 1';
# the first 20 tokens of each client are always valid, because others authenticate with them
my $spare = $mine =~ s/'valid'/'valid' AND n > 20/r;
my @scripts = (
	[ 60, 'verify', $other . "SELECT verdict FROM apitoken.verify((SELECT token FROM soak.pool WHERE client = :other AND n = :n), 'article:read');\n" ],
	# locked by a statement of its own: the expressions of a SELECT FOR SHARE are computed before its locks
	[ 20, 'authenticate and read', $other . qq{BEGIN;
		SELECT FROM soak.pool WHERE client = :other AND n = :n FOR SHARE;
		SELECT CASE WHEN state = 'valid' THEN (apitoken.authenticate(token)).verdict END FROM soak.pool WHERE client = :other AND n = :n;
		SELECT count(*) FROM soak.article;
		COMMIT;
	} ],
	[ 5, 'create', $own . q{BEGIN;
		INSERT INTO soak.pool SELECT :client_id, (SELECT 1 + max(n) FROM soak.pool WHERE client = :client_id), t.id, t.token, 'valid'
			FROM apitoken.create_token(format('client %s random %s %s', :client_id, :n, clock_timestamp()), organization_id => 'org' || :n % 10, role => 'developer') t;
		COMMIT;
	} ],
	[ 5, 'revoke', $own . qq{BEGIN;
		WITH one AS ($spare), done AS (SELECT id, apitoken.revoke_by_token(token) FROM soak.pool WHERE id IN (SELECT id FROM one))
		UPDATE soak.pool p SET state = 'revoked' FROM done WHERE p.id = done.id;
		COMMIT;
	} ],
	[ 4, 'regenerate', $own . qq{BEGIN;
		WITH one AS ($mine), done AS (SELECT t.* FROM one, apitoken.regenerate_token(one.id) t)
		UPDATE soak.pool p SET token = done.token FROM done WHERE p.id = done.id;
		COMMIT;
	} ],
	[ 3, 'suspend and resume', $own . qq{
		UPDATE apitoken.tokens SET suspended_at = now() WHERE id IN ($spare);
		UPDATE apitoken.tokens SET suspended_at = NULL WHERE id IN (SELECT id FROM soak.pool WHERE client = :client_id) AND suspended_at IS NOT NULL;
	} ],
	[ 3, 'relabel', $own . qq{UPDATE apitoken.tokens SET description = 'changed', metadata = jsonb_build_object('n', :n) WHERE id IN ($mine);\n} ],
	[ 5, 'list as a member', $own . qq{BEGIN;
		SELECT apitoken.act_as('user' || :n % 20);
		SELECT count(*), max(label) FROM apitoken.list_tokens(organization_id => 'org' || :n % 10);
		SELECT apitoken.can('article:read', 'org' || :n % 10), (SELECT count(*) FROM soak.article);
		ROLLBACK;
	} ],
	[ 2, 'garbage', "SELECT verdict FROM apitoken.verify('apt_org_' || :client_id);\n" ],
	[ 1, 'notifications', "BEGIN;\nSELECT count(apitoken.notification_delivered(id)) FROM apitoken.claim_notifications(50);\nCOMMIT;\n" ],
);
my @arguments;
foreach my $script (@scripts)
{
	my $file = "$place/" . $script->[1] =~ s/ /_/gr;
	append_to_file($file, $script->[2] =~ s/^\t+//gmr);
	push @arguments, '-f', "$file\@$script->[0]";
}

my ($out, $err) = ('', '');
my $done = IPC::Run::run([ 'pgbench', '-n', '-c', $clients, '-j', 2, '-T', $seconds, @arguments, $node->connstr('postgres') ],
	'>', \$out, '2>', \$err);
ok($done && $err !~ /aborted|error/i, 'no client saw an error') or diag substr($err, 0, 2000);

# ---- invariants

$node->safe_psql('postgres', 'ANALYZE; SELECT apitoken.flush_usage()');
my $report = '';
sub none
{
	my ($name, $sql) = @_;
	my $count = $node->safe_psql('postgres', $sql);
	$report .= sprintf("  %-60s %s\n", $name, $count eq '0' ? 'holds' : "BROKEN: $count");
	is($count, '0', $name);
	return;
}
is(stat_of($node, 'last_flush_error IS NULL, launcher_runs, dropped'), 't|t|0', 'nothing was dropped');
none('every valid verification is a use of one token', q{SELECT abs((SELECT valid FROM apitoken.stats) - (SELECT sum(accepted) FROM apitoken.token_usage))});
none('days of usage add up', q{SELECT count(*) FROM apitoken.token_usage u LEFT JOIN (SELECT token_id, sum(accepted) a FROM apitoken.token_usage_daily GROUP BY token_id) d USING (token_id)
	WHERE u.accepted <> coalesce(d.a, 0)});
none('each token is as its client has noted', q{SELECT count(*) FROM soak.pool p, apitoken.verify(p.token) v WHERE v.verdict <> p.state});
none('there are no other tokens', q{SELECT count(*) FROM apitoken_internal.token_records r FULL JOIN soak.pool p USING (id) WHERE r.id IS NULL OR p.id IS NULL});
none('each token has one owner', q{SELECT count(*) FROM apitoken_internal.token_records WHERE num_nonnulls(organization_id, user_id) <> 1});
none('each token has a row of usage', q{SELECT count(*) FROM apitoken_internal.token_records r LEFT JOIN apitoken.token_usage u ON u.token_id = r.id WHERE u.token_id IS NULL});
none('each token has one event of its creation', q{SELECT count(*) FROM (SELECT count(e.id) c FROM apitoken_internal.token_records r LEFT JOIN apitoken.events e ON e.token_id = r.id AND e.action = 'create' GROUP BY r.id) s WHERE c <> 1});
none('a revocation has one event', q{SELECT count(*) FROM (SELECT r.revoked_at, count(e.id) c FROM apitoken_internal.token_records r LEFT JOIN apitoken.events e ON e.token_id = r.id AND e.action = 'revoke' GROUP BY r.id) s WHERE c <> (revoked_at IS NOT NULL)::int});
none('labels are unique', q{SELECT count(*) FROM (SELECT FROM apitoken_internal.token_records WHERE revoked_at IS NULL GROUP BY organization_id, user_id, label HAVING count(*) > 1) s});
none('notifications are not claimed for ever', q{SELECT count(*) FROM apitoken.notifications WHERE delivered_at IS NULL AND attempts > 1});

# ---- one session that lives long

$node->safe_psql('postgres', qq{
	CREATE FUNCTION soak.measure(transactions int) RETURNS void LANGUAGE sql AS \$\$
		INSERT INTO soak.memory SELECT transactions, (SELECT sum(total_bytes) FROM pg_backend_memory_contexts),
			coalesce(substring(pg_read_file('/proc/self/status', 0, 10000, true) FROM 'RssAnon:\\s+(\\d+) kB')::bigint * 1024, 0)
	\$\$;
	CREATE SEQUENCE soak.transaction;
});
append_to_file("$place/long", q{\set n random(1, 20)
BEGIN;
SELECT (apitoken.authenticate(token)).verdict FROM soak.pool WHERE client = 0 AND n = :n;
SELECT count(*) FROM soak.article;
SELECT count(*) FROM generate_series(1, 20) g, apitoken.verify((SELECT token FROM soak.pool WHERE client = 1 AND n = g)) v WHERE v.valid;
COMMIT;
SELECT nextval('soak.transaction') AS done \gset
\set often } . ($transactions > 20 ? int($transactions / 20) : 1) . q{
\if :done % :often = 0
SELECT soak.measure(:done);
\endif
});
my $long_out = '';
$done = IPC::Run::run([ 'pgbench', '-n', '-c', 1, '-t', $transactions, '-f', "$place/long", $node->connstr('postgres') ], '>', \$long_out, '2>', \$err);
ok($done, "a session with $transactions transactions and " . 20 * $transactions . ' verifications') or diag substr($err, 0, 2000);
my @memory = map { [ split /\|/ ] } split /\n/, $node->safe_psql('postgres', 'SELECT transactions, contexts, resident FROM soak.memory ORDER BY transactions');
cmp_ok(scalar @memory, '>=', 10, 'its memory was measured');
# after the first quarter all caches are filled
my ($early, $late) = ($memory[ @memory / 4 ], $memory[-1]);
cmp_ok($late->[1] - $early->[1], '<=', 128 * 1024, 'its memory contexts do not grow');
cmp_ok($late->[2] - $early->[2], '<=', 2 * 1024 * 1024, 'nor does the memory of its process');

# ---- the report

my $table = "$clients clients, $seconds s\n";
foreach my $part (split /^SQL script /m, $out)
{
	next unless $part =~ m{^\d+: (\S+)};
	my $name = (split m{/}, $1)[-1] =~ s/_/ /gr;
	my ($count) = $part =~ /- (\d+) transactions/;
	my ($latency) = $part =~ /latency average = ([\d.]+)/;
	$table .= sprintf("  %-30s %10d transactions, %9.3f ms on average\n", $name, $count // 0, $latency // 0);
}
$table .= "invariants\n$report";
$table .= "one session: transactions, bytes of its memory contexts, bytes of its process\n";
$table .= sprintf("  %10d %12d %12d\n", @$_) foreach @memory;
append_to_file("$PostgreSQL::Test::Utils::log_path/report.txt", $table);
note $table;

no_crash($node);
$node->stop;
done_testing();
