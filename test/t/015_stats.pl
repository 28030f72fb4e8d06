# apitoken.stats: which roles may read it, what it counts, and what it shows
# without shared preload.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('stats', preload => 'shared', conf => "apitoken.flush_interval = '1h'");
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations VALUES ('acme');
	CREATE ROLE regress_apitoken_monitor LOGIN;
	CREATE ROLE regress_apitoken_heir LOGIN;
	GRANT regress_apitoken_monitor TO regress_apitoken_heir;
	CREATE ROLE regress_apitoken_stranger LOGIN;
	CREATE ROLE regress_apitoken_everything LOGIN;
	SELECT apitoken.allow('regress_apitoken_everything', 'use', 'manage', 'verify', 'act', 'directory');
});
$node->safe_psql('template1', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION apitoken');

run_on($node);

# ----- which roles may read it ---------------------------------------------------

my $look = 'SELECT preloaded FROM apitoken.stats; SELECT preloaded FROM apitoken_internal.read_stats();';

is(run_as("regress_apitoken_$_", $look), '[ERROR: 42501 ERROR: 42501]', "$_ may not") foreach 'stranger', 'everything', 'monitor';
run(q{SELECT apitoken.allow('regress_apitoken_monitor', 'monitor')});
is(run_as('regress_apitoken_monitor', $look), 't [ERROR: 42501]', 'who holds monitor may, by the view');
is(run_as('regress_apitoken_heir', $look), 't [ERROR: 42501]', 'and who inherits it');
is(run_as('regress_apitoken_stranger', $look), '[ERROR: 42501 ERROR: 42501]', 'others still may not');
is(run_as('regress_apitoken_monitor', 'SELECT apitoken.flush_usage(); TABLE apitoken.token_usage; SELECT apitoken.verify(NULL); SELECT * FROM apitoken.tokens;'),
	'[' . join(' ', ('ERROR: 42501') x 4) . ']', 'and monitor is nothing else');
is(run_as('regress_apitoken_monitor', $look, database => 'other'), '[ERROR: 42501 ERROR: 42501]', 'nor is it more than one database\'s');
is(run('BEGIN READ ONLY; SELECT count(*) FROM apitoken.stats; COMMIT'), '1', 'it can be read in a READ ONLY transaction');

# ----- what it counts ------------------------------------------------------------

my @verdicts = qw(valid malformed unknown revoked expired suspended policy_refused network_refused permission_refused quota_exceeded rate_limited);
my $columns = join(', ', @verdicts);

# how much each counter has grown since the last time
my @before = split /\|/, run("SELECT $columns FROM apitoken.stats");
sub counted
{
	my @now = split /\|/, run("SELECT $columns FROM apitoken.stats");
	my @grown = grep { $now[$_] != $before[$_] } 0 .. $#now;
	my $answer = join(' ', map { "$verdicts[$_] " . ($now[$_] - $before[$_]) } @grown);

	@before = @now;
	return $answer;
}

my %token = map { ($_ => create($node, $_, q{user_id => 'ann'})) } qw(valid revoked expired suspended);
run(q{INSERT INTO apitoken.organizations (id) VALUES ('strict')});
$token{policy_refused} = create($node, 'o', q{organization_id => 'strict'});
$token{network_refused} = create($node, 'n', q{user_id => 'ann', allowed_networks => '{10.0.0.0/8}'});
$token{permission_refused} = create($node, 'p', q{user_id => 'ann'});
$token{rate_limited} = create($node, 'r', q{user_id => 'ann', rate_limit_per_minute => 1});
$token{quota_exceeded} = create($node, 'q', q{user_id => 'ann', quota => 1});
$token{malformed} = 'nonsense';
$token{unknown} = run(q{SELECT apitoken.generate('org')});
run(q{
	SELECT apitoken.revoke_token(id) FROM apitoken.tokens WHERE label = 'revoked';
	UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended';
	UPDATE apitoken.organizations SET require_expiry = true WHERE id = 'strict';
	SET session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET expires_at = now() WHERE label = 'expired';
});
is(counted(), '', 'making and changing tokens counts nothing');
foreach my $verdict (@verdicts)
{
	my $permission = $verdict eq 'permission_refused' ? q{, 'token:read'} : '';
	my $answers = run("SELECT (apitoken.verify('$token{$verdict}'$permission)).verdict FROM generate_series(1, 3)");

	is($answers, $verdict =~ /^(quota_exceeded|rate_limited)$/ ? "valid $verdict $verdict" : join(' ', ($verdict) x 3), "verified three times: $verdict");
	is(counted(), $verdict =~ /^(quota_exceeded|rate_limited)$/ ? "valid 1 $verdict 2" : "$verdict 3", 'is what is counted');
}
is(run("BEGIN; SELECT verdict FROM apitoken.authenticate('$token{valid}'); SELECT verdict FROM apitoken.authenticate('$token{revoked}'); ROLLBACK"), 'valid [ERROR: 28000]',
	'authenticate(), in a transaction that is rolled back');
is(counted(), 'valid 1 revoked 1', 'is counted');
is(run("BEGIN; SET LOCAL apitoken.token = '$token{valid}'; SELECT apitoken.can('a:b'); SELECT apitoken.can('a:b'); COMMIT"), 't t', 'the setting');
is(counted(), 'valid 1', 'is verified once a transaction');
is(run('SELECT verdict FROM apitoken.verify(NULL)', database => 'other'), 'malformed', 'in another database');
is(counted(), 'malformed 1', 'which the same server counts');
is(run("SELECT count(apitoken.parse('$token{valid}')), count(apitoken.revoke_by_token('$token{revoked}'))"), '1|1', 'other functions');
is(counted(), '', 'count nothing');

# ----- memory, and writing ----------------------------------------------------------

like(run(q{SELECT slots, entries, limits, dropped, last_flush_at IS NULL, last_flush_error, last_flush_error_at, started_at BETWEEN pg_postmaster_start_time() - interval '1 min' AND now() FROM apitoken.stats}),
	qr/^65536\|9\|2\|0\|t\|\|\|t$/, 'nine tokens have been used, two of them have limits, and nothing is written yet');
is(run('SELECT flushes, masked IS NULL FROM apitoken.stats'), '0|f', 'no flush');
# (flush_usage() itself answers an empty line)
is(run('SELECT apitoken.flush_usage(); SELECT flushes, last_flush_at <= clock_timestamp(), last_flush_error IS NULL FROM apitoken.stats'), ' 1|t|t', 'one flush');
is(run('SELECT count(*), sum(accepted), sum(refused) FROM apitoken.token_usage WHERE accepted + refused > 0'), '9|7|23', 'as it is written');
is(run('SELECT flushes, last_flush_at IS NULL FROM apitoken.stats', database => 'other'), '1|t', 'the other database has not been written to');
is(run('SELECT apitoken.flush_usage(); SELECT flushes FROM apitoken.stats'), ' 1', 'with nothing to write nothing is');

# a flush that fails, and the reason
my $blocker = $node->background_psql('postgres', on_error_stop => 0);
$blocker->query('BEGIN; LOCK apitoken.token_usage, apitoken.events');
# (a session that has not verified before does not wait for these tables either)
is(run("SELECT verdict FROM apitoken.verify('$token{valid}'); SELECT apitoken.flush_usage()"), 'valid [ERROR: 55000]', 'a table that is locked');
like(run(q{SELECT last_flush_error, last_flush_error_at <= clock_timestamp() FROM apitoken.stats}), qr/^canceling statement due to .*timeout\|t$/, 'is told');
is(run_as('regress_apitoken_monitor', q{SELECT last_flush_error IS NOT NULL FROM apitoken.stats}), 't', 'to who monitors');
$blocker->query('COMMIT');
$blocker->quit;
is(run('SELECT apitoken.flush_usage(); SELECT last_flush_error IS NULL, last_flush_error_at IS NULL FROM apitoken.stats'), ' t|t', 'until one succeeds');

# ----- restart, and without shared preload -------------------------------------------

$node->restart;
is(run("SELECT $columns, flushes, dropped, entries, limits FROM apitoken.stats"), join('|', (0) x (@verdicts + 4)), 'a restart counts anew');
foreach my $form ('plain', 'session')
{
	$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
	$node->append_conf('postgresql.conf', "session_preload_libraries = 'apitoken'") if $form eq 'session';
	$node->restart;
	is(run_as('regress_apitoken_stranger', $look), '[ERROR: 42501 ERROR: 42501]', "$form: others may not");
	is(run_as('regress_apitoken_monitor', "SELECT verdict FROM apitoken.verify('$token{valid}'); SELECT preloaded, num_nonnulls(VARIADIC ARRAY(SELECT value FROM jsonb_each_text(to_jsonb(s)))) FROM apitoken.stats s"),
		'f|1 [ERROR: 42501]', "$form: one row, of which all but preloaded is null");
	is(run('SELECT apitoken.flush_usage()'), '', "$form: there is nothing to flush");
}
run(q{SELECT apitoken.disallow('regress_apitoken_monitor', 'monitor')});
is(run_as("regress_apitoken_$_", $look), '[ERROR: 42501 ERROR: 42501]', "after disallow() $_ may not") foreach 'monitor', 'heir';

$node->stop;
no_crash($node);
done_testing();
