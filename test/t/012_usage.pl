# Usage in shared memory: which uses of which tokens are recorded, from which
# address, however the transaction ends.  Many clients, full memory, a stop or a
# crash must not lose a count or add it twice.  flush_usage() must keep its
# promises.  (013 tests workers that fail, 004 tests standbys.)

use strict;
use warnings;

use ApitokenTest;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

# written only when the test says so
my $node = start_node('usage', preload => 'shared', conf => q{
	apitoken.flush_interval = '1h'
	max_prepared_transactions = 2
	max_worker_processes = 16
	restart_after_crash = on
	log_statement = none
	log_min_duration_statement = -1
});
my $saved = $node->data_dir . '/pg_stat/apitoken.usage';

my $setup = q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id) VALUES ('acme');
	SELECT apitoken.allow('regress_apitoken_backend', 'use', 'manage', 'verify', 'act', 'directory');
	SELECT apitoken.allow('regress_apitoken_client', 'use');
	GRANT EXECUTE ON FUNCTION apitoken.flush_usage() TO regress_apitoken_flusher;
} . view_of_usage();
$node->safe_psql('postgres', q{
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_client LOGIN;
	CREATE ROLE regress_apitoken_flusher LOGIN;
	CREATE ROLE regress_apitoken_reader LOGIN;
});
$node->safe_psql('postgres', $setup);

my %token;

# add LABEL, ARGUMENTS: create a token; here its label is its name.
sub add { my ($label, $arguments) = @_; $token{$label} = create($node, $label, $arguments // "user_id => 'u'"); return; }
sub verify { my ($label, $arguments) = @_; return "apitoken.verify('$token{$label}'" . ($arguments // '') . ')'; }
sub flush { my ($on, $database) = @_; ($on // $node)->safe_psql($database // 'postgres', 'SELECT apitoken.flush_usage()'); return; }

# What is written of a token: accepted, refused, address.
sub written
{
	my ($label, $on, $database) = @_;
	return ($on // $node)->safe_psql($database // 'postgres',
		"SELECT concat_ws(' ', accepted, refused, CASE WHEN last_used_at IS NULL THEN 'never' END, host(last_used_from)) FROM used WHERE label = '$label'");
}
# The refused uses by verdict, with a space between two days.
sub refusals
{
	my ($label) = @_;
	return $node->safe_psql('postgres', "SELECT string_agg(coalesce(d.refusals::text, '-'), ' ' ORDER BY d.day) FROM apitoken.token_usage_daily d JOIN apitoken.tokens t ON t.id = d.token_id WHERE t.label = '$label'");
}
run_on($node);

# The daily counts add up to the total, and those of the verdicts to the refused uses
# of the day.  Days are in UTC, whatever the session's time zone.
sub days_agree
{
	my ($name, $on, $database) = @_;
	is(($on // $node)->safe_psql($database // 'postgres', q{
		SET timezone = 'Pacific/Kiritimati';
		SELECT count(*) FROM apitoken.token_usage u FULL JOIN (SELECT token_id, sum(accepted) AS accepted, sum(refused) AS refused, max(day) AS day
			FROM apitoken.token_usage_daily GROUP BY 1) d USING (token_id)
		WHERE (coalesce(u.accepted, 0), coalesce(u.refused, 0)) IS DISTINCT FROM (coalesce(d.accepted, 0), coalesce(d.refused, 0))
			OR d.day < (u.last_used_at AT TIME ZONE 'UTC')::date}), '0', $name);
	is(($on // $node)->safe_psql($database // 'postgres', q{
		SELECT count(*) FROM apitoken.token_usage_daily d
		WHERE refused <> coalesce((SELECT sum(value::numeric) FROM jsonb_each_text(refusals)), 0) OR refusals = '{}'}), '0', "$name and verdict");
}

# ----- however the transaction ends --------------------------------------------

# One use each, each in a session of its own, with the expected answer.
my %ways = (
	'a statement' => [ 'V', 'valid' ],
	'COMMIT' => [ 'BEGIN; V COMMIT;', 'valid' ],
	'ROLLBACK' => [ 'BEGIN; V ROLLBACK;', 'valid' ],
	'ROLLBACK TO' => [ 'BEGIN; SAVEPOINT s; V ROLLBACK TO s; COMMIT;', 'valid' ],
	'READ ONLY' => [ 'BEGIN READ ONLY; V COMMIT;', 'valid' ],
	'READ ONLY rolled back' => [ 'BEGIN READ ONLY; V ROLLBACK;', 'valid' ],
	'REPEATABLE READ' => [ 'BEGIN ISOLATION LEVEL REPEATABLE READ; V COMMIT;', 'valid' ],
	'SERIALIZABLE' => [ 'BEGIN ISOLATION LEVEL SERIALIZABLE; V COMMIT;', 'valid' ],
	'DEFERRABLE' => [ 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; V COMMIT;', 'valid' ],
	'prepared, rolled back' => [ "BEGIN; V PREPARE TRANSACTION 'x'; ROLLBACK PREPARED 'x';", 'valid' ],
	'an error of the statement' => [ 'SELECT 1 / (length(F.verdict) - 5) FROM F;', '[ERROR: 22012]' ],
	'an error after it' => [ 'BEGIN; V SELECT 1/0; COMMIT;', 'valid [ERROR: 22012]' ],
	'an error caught' => [ q{DO $$BEGIN PERFORM * FROM F; RAISE 'x'; EXCEPTION WHEN raise_exception THEN NULL; END$$;}, '' ],
	'an error at COMMIT' => [ 'CREATE TEMP TABLE t (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); BEGIN; INSERT INTO t VALUES (1), (1); V COMMIT;', 'valid [ERROR: 23505]' ],
	'authenticate()' => [ 'BEGIN; SELECT valid FROM A; COMMIT;', 't' ],
	'authenticate(), rolled back' => [ 'BEGIN; SELECT valid FROM A; ROLLBACK;', 't' ],
	'authenticate() in READ ONLY' => [ 'BEGIN READ ONLY; SELECT valid FROM A; SELECT apitoken.current_user_id(); COMMIT;', 't u' ],
	# a transaction with the setting is one use, however many statements ask
	'the setting' => [ "BEGIN; SET LOCAL apitoken.token = 'T'; SELECT apitoken.current_user_id(); SELECT apitoken.can('a:b'); SELECT 1; COMMIT;", 'u t 1' ],
	'the setting, rolled back' => [ "BEGIN READ ONLY; SET LOCAL apitoken.token = 'T'; SELECT apitoken.current_user_id(); ROLLBACK;", 'u' ],
	'a connection that ends' => [ 'BEGIN; V', 'valid' ],
);
foreach my $way (sort keys %ways)
{
	my ($sql, $answer) = @{ $ways{$way} };
	add($way);
	my ($v, $f) = (verdict($token{$way}), verify($way));
	$sql =~ s/\bV\b/$v/g;
	$sql =~ s/FROM F\b/FROM $f AS f/g;
	$sql =~ s/F\.verdict/f.verdict/g;
	$sql =~ s/FROM A\b/FROM apitoken.authenticate('$token{$way}')/g;
	$sql =~ s/'T'/'$token{$way}'/g;
	is(run($sql, user => 'regress_apitoken_backend'), $answer, "$way: used");
}
# by a client whose connection is cut within the transaction
{
	add('cut off');
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');
	$session->query('BEGIN; ' . verdict($token{'cut off'}));
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
	$ways{'cut off'} = 1;
	eval { $session->quit; };
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM used WHERE accepted <> 0 OR refused <> 0 OR last_used_at IS NOT NULL'), '0',
	'none of them wrote it in its own transaction');
flush();
is(written($_), '1 0', "recorded, once: $_") foreach sort keys %ways;
is($node->safe_psql('postgres', 'SELECT count(*) FROM used WHERE last_used_at NOT BETWEEN pg_postmaster_start_time() AND clock_timestamp()'), '0', 'with the time');
days_agree('and by day');

# ----- refused -----------------------------------------------------------------

my %refused = (
	revoked => [ "organization_id => 'acme'", '', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked'} ],
	suspended => [ "user_id => 'u'", '', q{UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended'} ],
	expired => [ "user_id => 'u', expires_in => '30 days'", '', q{ALTER TABLE apitoken_internal.token_records DISABLE TRIGGER USER;
		UPDATE apitoken_internal.token_records SET expires_at = now() - interval '1 s' WHERE label = 'expired'; ALTER TABLE apitoken_internal.token_records ENABLE TRIGGER USER} ],
	network_refused => [ "user_id => 'u', allowed_networks => '{10.0.0.0/8}'", ", client_address => '192.0.2.1'", '' ],
	permission_refused => [ "organization_id => 'acme'", ", 'token:create', 'acme'", '' ],
);
add($_, $refused{$_}[0]) foreach sort keys %refused;
add('rate_limited', "user_id => 'u', rate_limit_per_minute => 1");
add('regenerated');
add('replaced');
add('accepted');
foreach my $label (sort keys %refused)
{
	$node->safe_psql('postgres', $refused{$label}[2]) if $refused{$label}[2];
	is(run(verdict($token{$label}, $refused{$label}[1]) x 2, user => 'regress_apitoken_backend'), "$label $label", "refused: $label");
}
is(run(verdict($token{rate_limited}, ", client_address => '192.0.2.3'") . verdict($token{rate_limited}, ", client_address => '192.0.2.4'"), user => 'regress_apitoken_backend'),
	'valid rate_limited', 'refused: rate_limited');

# A wrong secret, an unknown id, no token at all: recorded for no token.
my $entries = stat_of($node, 'entries');
my $before = stat_of($node, 'unknown, malformed');
my $old = $token{regenerated};
# so often that its digest is no longer kept
$node->safe_psql('postgres', q{SELECT apitoken.regenerate_token(id) IS NULL FROM apitoken.tokens WHERE label = 'regenerated'}) foreach 1 .. 5;
$token{unknown} = $node->safe_psql('postgres', q{SELECT apitoken.generate('usr')});
is(run("SELECT verdict FROM apitoken.verify('$old'); " . verdict($token{unknown}) . "SELECT verdict FROM apitoken.verify('garbage'); SELECT verdict FROM apitoken.verify(NULL)"),
	'unknown unknown malformed malformed', 'refused: a wrong secret, an unknown id, garbage, nothing');
is(stat_of($node, 'entries'), $entries, 'of which no entry is made');
my ($unknown, $malformed) = split /\|/, $before;
is(stat_of($node, 'unknown, malformed'), join('|', $unknown + 2, $malformed + 2), 'but the server counts them');
# a secret that was right before is recorded
$node->safe_psql('postgres', q{SELECT apitoken.regenerate_token(id) IS NULL FROM apitoken.tokens WHERE label = 'replaced'});
is(run("SELECT verdict FROM apitoken.verify('$token{replaced}')"), 'unknown', 'refused: a secret that was replaced');
is(stat_of($node, 'entries'), $entries + 1, 'of which an entry is made');
# a role that may not verify is not counted
is(run(verdict($token{accepted}), user => 'regress_apitoken_reader'), '[ERROR: 42501]', 'who may not verify');
flush();
is(written($_), '0 2 never', "recorded: $_") foreach sort keys %refused;
is(written('rate_limited'), '1 1 192.0.2.3', 'recorded: rate_limited, with the address that was accepted');
is(written('replaced'), '0 1 never', 'recorded: replaced');
is(refusals($_), qq({"$_": 2}), "by verdict: $_") foreach sort keys %refused;
is(refusals('rate_limited'), '{"rate_limited": 1}', 'by verdict: rate_limited');
is(refusals('replaced'), '{"unknown": 1}', 'by verdict: a secret that was replaced is unknown');
is(refusals($_), '', "by verdict: nothing of $_") foreach 'regenerated', 'accepted';
is(written($_), '0 0 never', "recorded: nothing of $_") foreach 'regenerated', 'accepted';
days_agree('and by day');

# stats counts each verdict once
is(run(q{CREATE TEMP TABLE before AS SELECT * FROM apitoken.stats; } . join('', map { 'SELECT FROM ' . verify($_, $refused{$_}[1] // '') . ';' } 'accepted', sort(keys %refused), 'rate_limited', 'unknown')
		. q{SELECT concat_ws(' ', n.valid - b.valid, n.malformed - b.malformed, n.unknown - b.unknown, n.revoked - b.revoked, n.expired - b.expired, n.suspended - b.suspended,
			n.network_refused - b.network_refused, n.permission_refused - b.permission_refused, n.rate_limited - b.rate_limited, n.dropped - b.dropped, n.flushes - b.flushes)
			FROM apitoken.stats n, before b}), '1 0 1 1 1 1 1 1 1 0 0', 'stats counts each verdict');
my $flushes = stat_of($node, 'flushes');
flush();
flush();
is(stat_of($node, 'flushes'), $flushes + 1, 'and a flush that writes something');
is(stat_of($node, q{last_flush_at IS NOT NULL, last_flush_error, last_flush_error_at, dropped, preloaded}), 't|||0|t', 'and tells how flushes go');

# several verdicts on one day, however the transaction ends, and after a flush that failed
add('several', "user_id => 'u', allowed_networks => '{10.0.0.0/8}'");
my $elsewhere = verdict($token{several}, ", client_address => '192.0.2.1'");
is(run("BEGIN READ ONLY; $elsewhere ROLLBACK; BEGIN; SAVEPOINT s; $elsewhere ROLLBACK TO s; COMMIT;", user => 'regress_apitoken_backend'),
	'network_refused network_refused', 'refused, and rolled back');
$node->safe_psql('postgres', q{
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$;
	CREATE TRIGGER refuse BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION refuse()});
is(run('SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'a flush that fails');
is(refusals('several'), '', 'writes no verdict');
$node->safe_psql('postgres', q{UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'several'});
is(run($elsewhere x 3, user => 'regress_apitoken_backend'), 'suspended suspended suspended', 'refused with another verdict');
$node->safe_psql('postgres', 'DROP TRIGGER refuse ON apitoken.token_usage');
flush();
is(refusals('several'), '{"suspended": 3, "network_refused": 2}', 'the next flush writes each once');
$node->safe_psql('postgres', q{UPDATE apitoken.tokens SET suspended_at = NULL WHERE label = 'several'});
run($elsewhere . verdict($token{several}, ", client_address => '10.0.0.1'"), user => 'regress_apitoken_backend');
$node->restart;
flush();
is(refusals('several'), '{"suspended": 3, "network_refused": 3}', 'and adds to the day, also after a restart');
# what an owner may write there stops no flush
is(run(qq{UPDATE apitoken.token_usage SET day_refusals = '$_'}), '[ERROR: 23514]', "refusals cannot be $_") foreach '[1]', '{"expired": "many"}', '{"expired": {"a": 1}}', '3';
$node->safe_psql('postgres', q{UPDATE apitoken.token_usage u SET day_refused = 9000000000000000001, day_refusals = '{"network_refused": 9000000000000000000.5, "of old": 0.5}' FROM apitoken.tokens t WHERE t.id = u.token_id AND t.label = 'several'});
run($elsewhere, user => 'regress_apitoken_backend');
flush();
is(refusals('several'), '{"of old": 0.5, "network_refused": 9000000000000000001.5}', 'numbers of all sizes are added');
$node->safe_psql('postgres', q{DELETE FROM apitoken.token_usage u USING apitoken.tokens t WHERE t.id = u.token_id AND t.label = 'several'});
# nobody but the owner writes them, and who may not see the token does not read them
is(run(q{UPDATE apitoken.token_usage SET day_refusals = NULL}, user => 'regress_apitoken_backend'), '[ERROR: 42501]', 'members do not write them');
is(run(q{SELECT count(refusals) FROM apitoken.token_usage_daily}, user => 'regress_apitoken_backend'), '0', 'others do not read them');
is(run(q{BEGIN; SELECT apitoken.act_as('u'); SELECT count(refusals) > 0 FROM apitoken.token_usage_daily; SELECT count(*) FROM apitoken.token_usage_daily d WHERE NOT EXISTS (SELECT FROM apitoken.tokens t WHERE t.id = d.token_id); COMMIT;}, user => 'regress_apitoken_backend'),
	'u t 0', 'the user of the tokens does');

# ----- from where --------------------------------------------------------------

my @from = (
	[ 'argument', ", client_address => '192.0.2.7'", '192.0.2.7' ],
	[ 'ipv6', ", client_address => '2001:db8::7'", '2001:db8::7' ],
	[ 'mapped', ", client_address => '::ffff:192.0.2.8'", '192.0.2.8' ],
	[ 'socket', '', '' ],
);
foreach my $from (@from)
{
	add($from->[0]);
	run(verdict($token{ $from->[0] }, $from->[1]), user => 'regress_apitoken_backend');
}
add($_) foreach 'by setting', 'not vouched for';
run("BEGIN; SET LOCAL apitoken.client_address = '192.0.2.9'; " . verdict($token{'by setting'}) . 'ROLLBACK', user => 'regress_apitoken_backend');
run("BEGIN; SET LOCAL apitoken.client_address = '192.0.2.10'; SELECT FROM apitoken.authenticate('$token{'not vouched for'}'); COMMIT", user => 'regress_apitoken_client');
flush();
is(written($_->[0]), join(' ', '1 0', grep { length } $_->[2]), "address: $_->[0]") foreach @from;
is(written('by setting'), '1 0 192.0.2.9', 'address: by the setting');
is(written('not vouched for'), '1 0', 'address: whom nobody trusts is not asked');

# ----- the greatest time wins, counts add --------------------------------------

sub use_at_once { my ($label, $address) = @_; run(verdict($token{$label}, $address ? ", client_address => '$address'" : ''), user => 'regress_apitoken_backend'); return; }
add('time');
use_at_once('time', '192.0.2.1');
flush();
# a later time than any use: another server may have written it before
$node->safe_psql('postgres', q{UPDATE apitoken.token_usage SET last_used_at = '2100-01-01 UTC', last_used_from = '198.51.100.1'
	WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'time')});
use_at_once('time', '192.0.2.2');
run(verdict($token{time}, ", 'a:b', 'acme'"), user => 'regress_apitoken_backend');
flush();
is(written('time'), '2 1 198.51.100.1', 'a later time stays, with its address, and the counts add');
is($node->safe_psql('postgres', q{SELECT last_used_at = '2100-01-01 UTC' FROM used WHERE label = 'time'}), 't', 'that time');
# an earlier use changes neither the time nor the address
$node->safe_psql('postgres', q{UPDATE apitoken.token_usage SET last_used_at = '2020-01-01 UTC' WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'time')});
use_at_once('time', '192.0.2.3');
use_at_once('time', '192.0.2.4');
flush();
is(written('time'), '4 1 192.0.2.4', 'an earlier time gives way to the last of several uses');
# refusals alone change neither
my $at = $node->safe_psql('postgres', q{SELECT last_used_at FROM used WHERE label = 'time'});
$node->safe_psql('postgres', q{UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'time'});
use_at_once('time', '192.0.2.5');
flush();
is(written('time'), '4 2 192.0.2.4', 'a refusal counts, and leaves the address');
is($node->safe_psql('postgres', q{SELECT last_used_at FROM used WHERE label = 'time'}), $at, 'and the time');
$node->safe_psql('postgres', q{UPDATE apitoken.tokens SET suspended_at = NULL WHERE label = 'time'});
use_at_once('time');
flush();
is(written('time'), '5 2', 'the address is that of the last use, known or not');
# a token without a row of usage gets one (a partial restore can leave this)
$node->safe_psql('postgres', q{DELETE FROM apitoken.token_usage WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'time')});
use_at_once('time', '192.0.2.6');
flush();
is(written('time'), '1 0 192.0.2.6', 'a row that was missing is made');

# ----- flush_usage() -----------------------------------------------------------

add('flushed');
my $uses = 0;
foreach my $how ('BEGIN READ ONLY; F COMMIT;', 'BEGIN; F ROLLBACK;', 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; F ROLLBACK;', 'BEGIN; SAVEPOINT s; F ROLLBACK TO s; COMMIT;',
	'SET default_transaction_read_only = on; F', 'F F', 'BEGIN; F F ROLLBACK;', 'SELECT apitoken.flush_usage() FROM generate_series(1, 3);')
{
	use_at_once('flushed');
	run($how =~ s/F\b/SELECT apitoken.flush_usage();/gr);
	is(written('flushed'), ++$uses . ' 0', "written: $how");
}
is(run(verdict($token{flushed}) . q{SELECT apitoken.flush_usage() IS NULL; SELECT accepted FROM used WHERE label = 'flushed'}), 'valid f ' . ++$uses, 'the caller sees it');
is(run('SELECT apitoken.flush_usage()'), '', 'with nothing to write');

# which roles may call it
add('by whom');
use_at_once('by whom');
foreach my $role ('regress_apitoken_reader', 'regress_apitoken_client', 'regress_apitoken_backend')
{
	is(run('SELECT apitoken.flush_usage()', user => $role), '[ERROR: 42501]', "not by $role");
}
is(written('by whom'), '0 0 never', 'and nothing is written');
is(run('SELECT apitoken.flush_usage()', user => 'regress_apitoken_flusher'), '', 'by who was granted it');
is(written('by whom'), '1 0', 'it is');

# Another transaction has the table locked: the caller gets an error, and nothing
# is lost.  A caller can also stop waiting earlier.
add('locked');
use_at_once('locked');
my $blocker = $node->background_psql('postgres', on_error_stop => 0);
$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage IN ACCESS EXCLUSIVE MODE');
is(run('SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'the table is locked');
is(run(q{SELECT last_flush_error ~ 'lock timeout', last_flush_error_at IS NOT NULL FROM apitoken.stats}), 't|t', 'which stats tells');
is(run(q{SET statement_timeout = '50ms'; SELECT apitoken.flush_usage()}), '[ERROR: 57014]', 'statement_timeout while it waits');
is(run(verdict($token{locked})), 'valid', 'a verification does not wait meanwhile');
{
	my $waiting = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $waiting->query('SELECT pg_backend_pid()');
	$waiting->query_until(qr/asked/, "\\echo asked\nSELECT apitoken.flush_usage();\n");
	$node->poll_query_until('postgres', "SELECT wait_event ILIKE 'BgworkerShutdown' FROM pg_stat_activity WHERE pid = $pid");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	$waiting->query('SELECT 1');
	like($waiting->{stderr}, qr/canceling statement due to user request/, 'cancelled while it waits');
	$waiting->{stderr} = '';
	is($waiting->query(q{SELECT 'usable'}), 'usable', 'after which the session goes on');
	$waiting->quit;
}
$blocker->query('COMMIT');
flush();
is(written('locked'), '2 0', 'and nothing is lost or counted twice');
is(run('SELECT last_flush_error IS NULL FROM apitoken.stats'), 't', 'stats has no error then');
# a caller that holds the lock itself gets the error as well
use_at_once('locked');
is(run('BEGIN; LOCK TABLE apitoken.token_usage; SELECT apitoken.flush_usage(); ROLLBACK'), '[ERROR: 55000]', 'the caller has it locked');
flush();
is(written('locked'), '3 0', 'and nothing is lost');

# durable when it returns
add('durable');
use_at_once('durable', '192.0.2.1');
run('BEGIN; SELECT apitoken.flush_usage(); ROLLBACK');
$node->stop('immediate');
$blocker->{run}->kill_kill;
$node->start;
is(written('durable'), '1 0 192.0.2.1', 'what flush_usage() wrote has outlived a crash');

# ----- tokens that come and go -------------------------------------------------

add($_) foreach 'deleted', 'beside it';
use_at_once($_) foreach 'deleted', 'beside it';
my $id = $node->safe_psql('postgres', q{SELECT id FROM apitoken.tokens WHERE label = 'deleted'});
# nobody does this, but the owner can
$node->safe_psql('postgres', 'ALTER TABLE apitoken_internal.token_records DISABLE TRIGGER token_refuse_delete');
$node->safe_psql('postgres', q{DELETE FROM apitoken_internal.token_records WHERE label = 'deleted'});
flush();
is(written('beside it'), '1 0', 'a token that is gone takes nothing along');
is($node->safe_psql('postgres', "SELECT (SELECT count(*) FROM apitoken.token_usage WHERE token_id = '$id') + (SELECT count(*) FROM apitoken.token_usage_daily WHERE token_id = '$id')"),
	'0', 'and leaves nothing behind');

# deleted while its use is being written: housekeeping finds the rows that stay,
# including those of the days
{
	add($_) foreach 'leaving', 'leaving unseen';
	use_at_once('leaving');
	flush();
	use_at_once($_) foreach 'leaving', 'leaving unseen';
	$node->safe_psql('postgres', q{
		CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.7); RETURN NULL; END $$;
		CREATE TRIGGER pause AFTER INSERT ON apitoken.token_usage FOR EACH STATEMENT EXECUTE FUNCTION pause();
		-- so that its day is moved
		UPDATE apitoken.token_usage SET last_day = last_day - 1 WHERE token_id = (SELECT id FROM apitoken_internal.token_records WHERE label = 'leaving');
		-- as a restore leaves it
		DELETE FROM apitoken.token_usage WHERE token_id = (SELECT id FROM apitoken_internal.token_records WHERE label = 'leaving unseen')});
	my $flusher = $node->background_psql('postgres', on_error_stop => 0);
	$flusher->query_until(qr/asked/, "\\echo asked\nSELECT apitoken.flush_usage();\n");
	ok($node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND wait_event = 'PgSleep'}), 'a flush has written the rows');
	my $ids = $node->safe_psql('postgres', q{WITH gone AS (DELETE FROM apitoken_internal.token_records WHERE label LIKE 'leaving%' RETURNING id) SELECT string_agg(quote_literal(id), ',') FROM gone});
	$flusher->query('SELECT 1');
	$flusher->quit;
	my $left = join ' + ', map { "(SELECT count(*) FROM apitoken.$_ WHERE token_id IN ($ids))" } 'token_usage', 'token_usage_daily';
	cmp_ok($node->safe_psql('postgres', "SELECT $left"), '>', 0, 'tokens are deleted meanwhile: something is left');
	$node->safe_psql('postgres', 'DROP FUNCTION pause CASCADE');
	is($node->safe_psql('postgres', "SET client_min_messages = error; SELECT FROM apitoken.run_maintenance(); SELECT $left"), '0', 'which housekeeping removes');
}

# made and used in a transaction that is still open
my $maker = $node->background_psql('postgres', on_error_stop => 0);
$maker->query('BEGIN');
$token{'in the making'} = $maker->query(q{SELECT token FROM apitoken.create_token('in the making', user_id => 'u')});
is($maker->query(verdict($token{'in the making'}, ", client_address => '192.0.2.20'")), 'valid', 'a token is used before it is committed');
use_at_once('beside it');
flush();
is(written('beside it'), '2 0', 'others are flushed meanwhile');
$maker->query('COMMIT');
flush();
is(written('in the making'), '1 0 192.0.2.20', 'its use is written once it is there');
$maker->query('BEGIN');
$token{'never made'} = $maker->query(q{SELECT token FROM apitoken.create_token('never made', user_id => 'u')});
$maker->query(verdict($token{'never made'}));
$maker->query('ROLLBACK');
use_at_once('beside it');
flush();
is(written('beside it'), '3 0', 'one that is rolled back is in nobody\'s way');

# very many do no harm either: more than a flush takes at once
$node->safe_psql('postgres', q{
	CREATE TABLE others AS SELECT (apitoken.create_token('other ' || i, user_id => 'u')).token FROM generate_series(1, 30) i;
	CREATE TABLE many AS SELECT i, apitoken.generate('user') AS token FROM generate_series(1, 15000) i;
});
$maker->query(q{BEGIN; SET LOCAL session_replication_role = replica;
	INSERT INTO apitoken_internal.token_records (id, created_at, updated_at, digest_scheme, digest, user_id, label, access, masked)
		SELECT (apitoken.parse(token)).id, now(), now(), 0, apitoken.hash(token), 'u', 'many ' || i, 'full', apitoken.mask(token) FROM many});
is($maker->query('SELECT count(*) FROM many, apitoken.verify(token) v WHERE v.valid'), '15000', 'fifteen thousand tokens that are not committed are used');
is($node->safe_psql('postgres', 'SELECT count(*) FROM others, apitoken.verify(token) v WHERE v.valid'), '30', 'and thirty that are');
flush();
is($node->safe_psql('postgres', q{SELECT count(*) FROM used WHERE label LIKE 'other %' AND accepted = 1}), '30', 'and the latter are written');
$maker->query('COMMIT');
flush();
is($node->safe_psql('postgres', q{SELECT count(*) FROM used WHERE label LIKE 'many %' AND accepted = 1}), '15000', 'the former once they are there');
$node->safe_psql('postgres', q{
	SET session_replication_role = replica;
	DELETE FROM apitoken.token_usage u USING apitoken_internal.token_records r WHERE u.token_id = r.id AND label LIKE 'many %';
	DELETE FROM apitoken_internal.token_records WHERE label LIKE 'many %';
	DROP TABLE others, many;
});
$maker->quit;

# ----- two databases, the same tokens ------------------------------------------

add('copied');
use_at_once('copied');
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
$node->safe_psql('copy', verdict($token{copied}) x 3);
flush(undef, 'copy');
is(written('copied', undef, 'copy'), '3 0', 'in the copy, its own uses');
is(written('copied'), '0 0 never', 'of which the first knows nothing');
flush();
is(written('copied'), '1 0', 'nor the copy of its');
days_agree('by day', undef, 'copy');

# ----- many clients during constant flushes ------------------------------------

my $clients_since = log_mark($node);
$node->safe_psql('postgres', q{ALTER SYSTEM SET apitoken.flush_interval = '100ms'});
$node->reload;
add("shared $_") foreach 1 .. 10;
my $list = join ',', map { "('" . $token{"shared $_"} . "')" } 1 .. 10;
$node->safe_psql('postgres', "CREATE TABLE texts (t text, n int GENERATED ALWAYS AS IDENTITY); INSERT INTO texts VALUES $list");
my ($flushed_before, $dropped_before) = split /\|/, stat_of($node, 'flushes, dropped');
my $flusher;
{
	# flush_usage() at the same time; it may find no free worker
	my $file = "$PostgreSQL::Test::Utils::tmp_check/flush.sql";
	append_to_file($file, q{DO $$BEGIN PERFORM apitoken.flush_usage(); EXCEPTION WHEN insufficient_resources THEN NULL; END$$;} . "\n");
	$flusher = IPC::Run::start([ 'pgbench', '-n', '-c', '2', '-t', '60', '-f', $file, '-h', $node->host, '-p', $node->port, 'postgres' ], '>', \my $out, '2>', \my $err);
}
foreach my $mode ('simple', 'prepared')
{
	$node->pgbench("-n -c 8 -t 300 -M $mode", 0, [qr{2400/2400}], [qr{^}], "8 clients, $mode", {
		"verify_$mode" => q{
			\set n random(1, 10)
			SELECT 1 / (v.valid::int) FROM texts, apitoken.verify(t) v WHERE n = :n;
		} });
}
ok($flusher->finish, 'and flush_usage() beside them') or diag('pgbench failed');
flush();
is($node->safe_psql('postgres', q{SELECT sum(accepted), sum(refused) FROM used WHERE label LIKE 'shared %'}), '4800|0', 'each use is counted once');
days_agree('and by day');
is(stat_of($node, 'dropped'), $dropped_before, 'none was dropped');
cmp_ok(stat_of($node, 'flushes'), '>', $flushed_before + 1, 'there were flushes meanwhile');
# the launcher flushes without a request
use_at_once('shared 1');
ok($node->poll_query_until('postgres', q{SELECT sum(accepted) = 4801 FROM used WHERE label LIKE 'shared %'}), 'the launcher has the rest written');
# Only the token that was rolled back may keep its entry, for a minute: the
# launcher cannot know whether its transaction will still commit.
ok($node->poll_query_until('postgres', 'SELECT entries <= 1 FROM apitoken.stats'), 'and the memory is free again');
is(in_log($node, qr/could not write|exited before/, $clients_since), 0, 'and no flush failed, or was taken for one that did');
$node->safe_psql('postgres', q{ALTER SYSTEM RESET apitoken.flush_interval});
$node->reload;

# ----- clean restarts ----------------------------------------------------------

add('kept');
my $kept = 0;
sub gone_after_start { ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_ls_dir('pg_stat') f WHERE f LIKE 'apitoken%'}), "$_[0]: the file is gone"); return; }
foreach my $mode ('fast', 'smart')
{
	use_at_once('kept', '192.0.2.30') foreach 1 .. 3;
	$kept += 3;
	$node->stop($mode);
	ok(-e $saved, "$mode: usage is saved");
	ok(!-e "$saved.tmp", "$mode: under its name");
	is((stat $saved)[2] & 0777, 0600, "$mode: for the server alone");
	$node->start;
	gone_after_start($mode);
	# restarted again and again, with uses added to what was saved
	foreach my $again (1, 2)
	{
		use_at_once('kept', '192.0.2.31');
		$kept++;
		$node->stop($again == 1 ? 'fast' : 'smart');
		$node->start;
	}
	gone_after_start("$mode, again");
	flush();
	is(written('kept'), "$kept 0 192.0.2.31", "$mode: nothing is lost or counted twice, over several restarts");
	$node->restart;
	flush();
	is(written('kept'), "$kept 0 192.0.2.31", "$mode: nor after it was written");
}
days_agree('and by day');

# A start that fails for another reason loses nothing.
use_at_once('kept', '192.0.2.32');
$kept++;
$node->stop;
my $hba = slurp_file($node->data_dir . '/pg_hba.conf');
append_to_file($node->data_dir . '/pg_hba.conf', "nonsense\n");
ok(!$node->start(fail_ok => 1), 'a start that fails');
unlink $node->data_dir . '/pg_hba.conf';
append_to_file($node->data_dir . '/pg_hba.conf', $hba);
$node->start;
flush();
is(written('kept'), "$kept 0 192.0.2.32", 'loses nothing');

# A server that is started for pg_upgrade, and verifies nothing, loses nothing
# either.
use_at_once('kept', '192.0.2.33');
$kept++;
$node->stop;
{
	# pg_upgrade starts it with an option that $node->start cannot pass.  (The
	# caller itself writes a use there.  This use is skipped: the last one was a
	# moment ago.)
	my $log_before = log_mark($node);
	command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-o', '-b', 'start' ], 'started in binary-upgrade mode');
	is(run(q{SELECT preloaded FROM apitoken.stats; SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'apitoken%';
		SELECT count(*) FROM pg_shmem_allocations WHERE name LIKE 'apitoken%'; SELECT apitoken.flush_usage(); } . verdict($token{kept})),
		'f 0 0 valid', 'where no memory, launcher or worker is');
	ok(-e $saved, 'and the file is left alone');
	command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, 'stop' ], 'stopped');
	unlike(substr(slurp_file($node->logfile), $log_before), qr/apitoken launcher/, 'no launcher was started');
}
$node->start;
flush();
is(written('kept') =~ s/ 0 .*//r, $kept, 'what was saved before is written after');

# ----- invalid files -----------------------------------------------------------

use_at_once('kept');
$node->stop;
my $good = slurp_file($saved);
my %files = (
	'no bytes' => '',
	'a part' => substr($good, 0, 30),
	'no end' => substr($good, 0, length($good) - 4),
	'no rows' => substr($good, 0, 72),
	'somebody else\'s' => "some other file\n" x 100,
	'another version\'s' => substr($good, 0, 16) . pack('a16', '0.1') . substr($good, 32),
	'a row changed' => substr($good, 0, 80) . "\x07" . substr($good, 81),
	'a count of rows changed' => substr($good, 0, 40) . pack('q<', 1 << 40) . substr($good, 48),
	'something behind it' => $good . 'x',
	'a negative count' => substr($good, 0, 40) . pack('q<', -1) . substr($good, 48));
foreach my $kind (sort keys %files)
{
	unlink $saved;
	append_to_file($saved, $files{$kind});
	my $since = log_mark($node);
	ok($node->start(fail_ok => 1), "a file with $kind: the server starts");
	gone_after_start("a file with $kind");
	flush();
	is(written('kept') =~ s/ 0.*//r, $kept, "a file with $kind: nothing of it is counted");
	is(in_log($node, qr/LOG:  ignoring file "pg_stat\/apitoken\.usage"/, $since), 1, "a file with $kind: told once");
	$node->stop;
}
# an interrupted stop leaves a file with the temporary name: it is not read
unlink $saved;
append_to_file("$saved.tmp", $good);
$node->start;
flush();
is(written('kept') =~ s/ 0.*//r, $kept, 'a temporary file is not read');

# ----- days, and more tokens than there is room for ----------------------------

# The clock cannot be set here, but the saved file can be changed: it gets a row
# of yesterday beside today's, of the same token.
sub crc32c
{
	my ($data) = @_;
	my $crc = 0xffffffff;
	foreach my $byte (unpack 'C*', $data)
	{
		$crc ^= $byte;
		$crc = $crc & 1 ? ($crc >> 1) ^ 0x82f63b78 : $crc >> 1 foreach 1 .. 8;
	}
	return pack 'L<', $crc ^ 0xffffffff;
}
add('days');
flush();
$node->restart;
use_at_once('days', '192.0.2.40');
$node->stop;
$good = slurp_file($saved);
my ($row_size, $rows) = unpack 'x32 l< x4 q<', $good;
is($rows, 1, 'one row is saved');
my $row = substr $good, 72, $row_size;
my ($day, $time) = unpack 'x4 l< x16 x8 q<', $row;
# yesterday's: 5 accepted, 2 refused, from elsewhere
my $yesterday = substr($row, 0, 4) . pack('l<', $day - 1) . substr($row, 8, 16) . pack('Q< q<', 5, $time - 86_400_000_000) . substr($row, 40);
# key, accepted, last use (its address, and that of a reuse, last), refused by verdict (suspended is the sixth)
substr($yesterday, 76, 4) = pack 'C4', 198, 51, 100, 7;
my $suspended = 112 + 5 * 4;
substr($yesterday, $suspended, 4) = pack 'L<', 2;
my $two_days = 0;
my $rest = substr $good, 72 + $row_size, length($good) - 72 - $row_size - 4;
# in either order
foreach my $order ([ $row, $yesterday ], [ $yesterday, $row ])
{
	my $file = substr($good, 0, 40) . pack('q<', 2) . substr($good, 48, 24) . join('', @$order) . $rest;
	unlink $saved;
	append_to_file($saved, $file . crc32c($file));
	$node->start;
	flush();
	my $times = ++$two_days;
	is(written('days'), join(' ', 6 * $times, 2 * $times, '192.0.2.40'), 'two days: the counts add, the greatest time wins');
	is($node->safe_psql('postgres', q{SET timezone = 'Pacific/Kiritimati';
		SELECT string_agg(concat_ws(' ', d.accepted, d.refused, d.day - (u.last_used_at AT TIME ZONE 'UTC')::date), ', ' ORDER BY d.day)
		FROM apitoken.token_usage_daily d JOIN used u ON d.token_id = (SELECT id FROM apitoken.tokens WHERE label = u.label) WHERE u.label = 'days'}),
		join(', ', 5 * $times . ' ' . 2 * $times . ' -1', "$times 0 0"), 'and each day has its own');
	is(refusals('days'), sprintf('{"suspended": %d} -', 2 * $times), 'and its own verdicts');
	$node->stop;
}
# so many refusals between two flushes that the counter would start again
my $many = $yesterday;
substr($many, $suspended, 4) = pack 'L<', 0xffffffff;
my $flood = substr($good, 0, 40) . pack('q<', 2) . substr($good, 48, 24) . $many x 2 . $rest;
unlink $saved;
append_to_file($saved, $flood . crc32c($flood));
$node->start;
is(stat_of($node, 'dropped'), 0xffffffff, 'refusals that do not fit are dropped');
flush();
is(refusals('days'), sprintf('{"suspended": %d} -', 4 + 0x7fffffff), 'and the count does not start again');
$node->stop;

# ----- crashes -----------------------------------------------------------------

unlink $saved;
$node->start;
add('crash');
foreach my $crash ('immediate stop', 'kill -9 of a backend')
{
	my $flushed = written('crash') =~ s/ .*//r;
	use_at_once('crash') foreach 1 .. 2;
	flush();
	use_at_once('crash') foreach 1 .. 3;
	if ($crash eq 'immediate stop')
	{
		$node->stop('immediate');
		# memory is as the processes left it when they were killed
		ok(!-e $saved, "$crash: nothing is saved");
		$node->start;
	}
	else
	{
		my $since = log_mark($node);
		my $victim = $node->background_psql('postgres', on_error_stop => 0);
		my $pid = $victim->query('SELECT pg_backend_pid()');
		kill 'KILL', $pid;
		$node->wait_for_log(qr/database system is ready to accept connections/, $since);
		eval { $victim->quit; };
		is(run(q{SELECT valid, entries FROM apitoken.stats}), '0|0', "$crash: the server goes on, and counts anew");
	}
	flush();
	is(written('crash'), $flushed + 2 . ' 0', "$crash: what was flushed is there, once");
	use_at_once('crash');
	flush();
	is(written('crash'), $flushed + 3 . ' 0', "$crash: and it goes on");
}
# Saved usage that has been written is not read a second time after a crash.
my $flushed = written('crash') =~ s/ .*//r;
use_at_once('crash') foreach 1 .. 2;
$node->restart;
flush();
$node->stop('immediate');
$node->start;
flush();
is(written('crash'), $flushed + 2 . ' 0', 'a crash after a restart counts nothing twice');
$node->stop;

# ----- memory that is full -----------------------------------------------------

my $full = start_node('full', preload => 'shared', conf => q{
	apitoken.usage_slots = 64
	apitoken.flush_interval = '1h'
	log_statement = none
});
$full->safe_psql('postgres', 'CREATE ROLE regress_apitoken_backend LOGIN; CREATE ROLE regress_apitoken_client LOGIN; CREATE ROLE regress_apitoken_flusher LOGIN;');
$full->safe_psql('postgres', $setup);
$full->safe_psql('postgres', q{
	CREATE TABLE texts AS SELECT n, (apitoken.create_token('t' || n, user_id => 'u')).token AS t FROM generate_series(1, 400) n;
});
my $all = q{SELECT count(*) FROM texts, apitoken.verify(t) v WHERE v.valid};

# nothing can be written: nobody waits
$blocker = $full->background_psql('postgres', on_error_stop => 0);
$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage IN ACCESS EXCLUSIVE MODE');
is($full->safe_psql('postgres', $all), '400', 'full: every token is verified');
is($full->safe_psql('postgres', $all), '400', 'full: and again');
my ($entries_full, $dropped) = split /\|/, stat_of($full, 'entries, dropped');
cmp_ok($entries_full, '>', 48, 'full: there is room for some');
cmp_ok($entries_full, '<=', 64, 'full: and for no more than was said');
is($dropped, 800 - 2 * $entries_full, 'full: the others are counted as dropped');
$blocker->query('COMMIT');
$blocker->quit;

# The interval is an hour: anything written now is written because the memory is
# full.  (After a failure on the locked table, the launcher may be waiting.)
flush($full);
is($full->safe_psql('postgres', 'SELECT sum(accepted) FROM used'), 2 * $entries_full, 'full: what is recorded is written');
$full->restart;
is($full->safe_psql('postgres', $all), '400', 'full: once more, with the table free');
ok($full->poll_query_until('postgres', 'SELECT sum(accepted) > ' . 2 * $entries_full . ' FROM used'), 'full: the flush is hastened');
ok($full->poll_query_until('postgres', 'SELECT entries = 0 FROM apitoken.stats'), 'full: there is room again');
$dropped = stat_of($full, 'dropped');
is($full->safe_psql('postgres', 'SELECT sum(accepted) + ' . ($dropped - 400 - 2 * $entries_full) . ' FROM used'), '0', 'full: written and dropped make the whole');
$full->safe_psql('postgres', "$all AND n <= 3");
is(stat_of($full, 'dropped'), $dropped, 'full: of few tokens none is dropped');
flush($full);
is($full->safe_psql('postgres', 'SELECT sum(accepted) FROM used'), 3 + 400 - $dropped + 2 * $entries_full, 'full: they are written');

# Constant load with more tokens than there is room for: the uses written and the
# uses dropped add up to all verifications.
my $verified = $full->safe_psql('postgres', 'SELECT valid FROM apitoken.stats');
my $was = $full->safe_psql('postgres', 'SELECT sum(accepted) FROM used');
$full->pgbench('-n -c 4 -t 100', 0, [qr{400/400}], [qr{^}], 'full: 4 clients', {
	'verify_full' => q{
		\set n random(1, 380)
		SELECT 1 / (v.valid::int) FROM texts, apitoken.verify(t) v WHERE n BETWEEN :n AND :n + 20;
	} });
flush($full);
is(stat_of($full, 'valid') - $verified, 8400, 'full: nobody failed');
is($full->safe_psql('postgres', 'SELECT sum(accepted) FROM used') - $was + stat_of($full, 'dropped') - $dropped, 8400, 'full: each is written or dropped');

# The memory is smaller than what was saved: the rest counts as dropped, too.
$full->append_conf('postgresql.conf', 'apitoken.usage_slots = 10000');
$full->restart;
$was = $full->safe_psql('postgres', 'SELECT sum(accepted) FROM used');
$full->safe_psql('postgres', $all);
is(stat_of($full, 'entries, dropped'), '400|0', 'enough room for all');
$full->append_conf('postgresql.conf', 'apitoken.usage_slots = 64');
$full->restart;
$dropped = stat_of($full, 'dropped');
cmp_ok($dropped, '>=', 336, 'with less room than was saved');
flush($full);
is($full->safe_psql('postgres', 'SELECT sum(accepted) FROM used') - $was, 400 - $dropped, 'what there is room for is written');
days_agree('by day', $full);
$full->stop;

no_crash($_, killed => 1) foreach $node, $full;
done_testing();
