# Quotas: many clients together get exactly the quota, whatever is written to the
# tables meanwhile.  Also: periods, edits, costs, a restart, a crash, a standby, a
# restore, housekeeping, full memory, and no shared preload.
#
# The clock cannot be set here.  So days before today are rows of
# token_usage_daily, as yesterday's use would have left them.  If midnight (UTC)
# is near, the test waits until it is over.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('quota', preload => 'shared', init => [ allows_streaming => 1 ],
	conf => "max_connections = 40\napitoken.flush_interval = '1h'");
my $left_today = $node->safe_psql('postgres', q{SELECT ceil(extract(epoch FROM date_trunc('day', u) + '1 day' - u)) FROM (SELECT now() AT TIME ZONE 'UTC') AS t (u)});

sleep $left_today + 1 if $left_today < 300;
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations VALUES ('acme');
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_app LOGIN;
	SELECT apitoken.allow('regress_apitoken_backend', 'verify', 'act', 'use');
	SELECT apitoken.allow('regress_apitoken_app', 'manage', 'act');
	CREATE UNLOGGED TABLE seen (verdict text, remaining bigint);
	GRANT ALL ON seen TO PUBLIC;
});

my $who = 'regress_apitoken_backend';
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

run_on($node, user => $who, verbosity => 'verbose');

my $count = 0;

# A new token of a user.
sub of_ann { my ($arguments) = @_; $count++; return create($node, "t$count", "user_id => 'ann', $arguments"); }
sub id_of { my ($token) = @_; return "(apitoken.parse('$token')).id"; }
sub edit { my ($token, $columns) = @_; return $node->safe_psql('postgres', "UPDATE apitoken.tokens SET $columns WHERE id = " . id_of($token)); }
sub flush { return $node->safe_psql('postgres', 'SELECT apitoken.flush_usage()'); }

# Ask so many times, with these further arguments.  Returns how many were accepted.
sub uses
{
	my ($token, $times, $arguments) = @_;

	return run("SELECT count(*) FILTER (WHERE (apitoken.verify('$token'" . ($arguments // '') . ")).valid) FROM generate_series(1, $times);");
}

# What a verification says: verdict and what is left.
sub left { my ($token, $arguments) = @_; return "SELECT verdict, remaining FROM apitoken.verify('$token'" . ($arguments // '') . ');'; }

# What the view says is left.
sub listed { my ($token) = @_; return $node->safe_psql('postgres', 'SELECT remaining FROM apitoken.tokens WHERE id = ' . id_of($token)); }

# As if the token had been used so often on this day.
sub used_before
{
	my ($token, $day, $accepted) = @_;

	return $node->safe_psql('postgres', 'INSERT INTO apitoken_internal.token_days AS d (token_id, day, accepted) VALUES (' . id_of($token) . ", $day, $accepted)
		ON CONFLICT (token_id, day) DO UPDATE SET accepted = d.accepted + excluded.accepted");
}

my $today = q{(now() AT TIME ZONE 'UTC')::date};
my $month = q{date_trunc('month', now() AT TIME ZONE 'UTC')::date};

# ----- what a quota allows -----------------------------------------------------

foreach my $period ([ 'day', 1 ], [ 'month', 31 ])
{
	my $token = of_ann("quota => 3, quota_period => '$period->[0]'");

	is(run(left($token) x 5), 'valid|2 valid|1 valid|0 quota_exceeded|0 quota_exceeded|0', "a quota of 3 a $period->[0]");
	is(run("SELECT valid, token_id IS NOT NULL, permissions IS NULL, retry_after > '0',
		now() + retry_after BETWEEN next - interval '1 minute' AND next, retry_after <= interval '24 hours' * $period->[1]
		FROM apitoken.verify('$token'), (SELECT (date_trunc('$period->[0]', now() AT TIME ZONE 'UTC') + interval '1 $period->[0]') AT TIME ZONE 'UTC') n (next);"),
		'f|t|t|t|t|t', 'and then nothing until the next one');
	is(run("BEGIN; SELECT apitoken.authenticate('$token');") =~ /invalid token DETAIL: Verdict: quota_exceeded\. HINT: Try again in \d+\.\d{3} seconds\./ ? 1 : 0, 1, 'authenticate() says so');
}
{
	my $token = of_ann('quota => 2');

	is(run(left($token) x 3), 'valid|1 valid|0 quota_exceeded|0', 'a quota for life');
	is(run("SELECT retry_after IS NULL FROM apitoken.verify('$token');"), 't', 'never comes back');
	is(run("BEGIN; SELECT apitoken.authenticate('$token');"), '[ERROR: 28000: invalid token DETAIL: Verdict: quota_exceeded.]', 'authenticate() gives no time');
	is(run("SELECT apitoken.revoke_by_token('$token'); " . verdict($token)), 't revoked', 'a token that is used up is revoked by its text');
}
is(run(left(of_ann('rate_limit_per_minute => 5'))), 'valid|', 'without a quota, nothing is left of it');

# What was used before the period does not count, what was used in it does.
{
	my $token = of_ann(q{quota => 10, quota_period => 'day'});

	used_before($token, "$today - 1", 1000);
	is(run(left($token)), 'valid|9', q{yesterday's use does not count today});
	$token = of_ann(q{quota => 10, quota_period => 'day'});
	used_before($token, $today, 9);
	is(run(left($token) x 2), 'valid|0 quota_exceeded|0', q{today's does});
	$token = of_ann(q{quota => 10, quota_period => 'month'});
	used_before($token, "$month - 1", 1000);
	used_before($token, $month, 7);
	is(listed($token), 3, 'the list: the first of the month counts, the day before it does not');
	is(run(left($token)), 'valid|2', 'and so does a verification');
	$token = of_ann('quota => 10');
	used_before($token, $month, 1000);
	$node->safe_psql('postgres', 'UPDATE apitoken.token_usage SET accepted = 4 WHERE token_id = ' . id_of($token));
	is(listed($token) . ' ' . run(left($token)), '6 valid|5', 'for life, all accepted uses count, and no day');
	# what only an owner can store, or a restore
	foreach my $accepted ('-9000000000000000000', '9223372036854775807')
	{
		$token = of_ann(q{quota => 3, quota_period => 'month'});
		used_before($token, $month, $accepted);
		used_before($token, "$month + 1", $accepted);
		is(run(left($token)) . ' ' . listed($token), $accepted < 0 ? 'valid|2 3' : 'quota_exceeded|0 0', "a count of $accepted");
	}
}

# ----- many clients at once ----------------------------------------------------

# pgbench with this script.
sub bench
{
	my ($clients, $transactions, $script) = @_;
	my $file = $node->basedir . '/' . ++$count . '.sql';
	my ($out, $err);

	append_to_file($file, "$script\n");
	ok(IPC::Run::run([ 'pgbench', '-n', '-c', $clients, '-j', '4', '-t', $transactions, '-f', $file, '-U', $who, $node->connstr('postgres') ], '>', \$out, '2>', \$err),
		"$clients clients, $transactions times each") or diag($err);
	return;
}

# A process that flushes all the time, until it is ended.
sub start_flushing
{
	my ($sleep) = @_;
	my $file = $node->basedir . '/' . ++$count . '.sql';
	my ($in, $out) = ('', '');

	append_to_file($file, "SELECT apitoken.flush_usage();\n\\sleep $sleep ms\n");
	return IPC::Run::start([ 'pgbench', '-n', '-c', '1', '-T', '300', '-f', $file, '-U', $superuser, $node->connstr('postgres') ], '<', \$in, '>', \$out, '2>&1');
}

{
	my $flushing = start_flushing(1);

	foreach my $arguments ('quota => 1000', q{quota => 1000, quota_period => 'day'}, q{quota => 1000, quota_period => 'month', rate_limit_per_minute => 1000000})
	{
		my $token = of_ann($arguments);

		$node->safe_psql('postgres', 'TRUNCATE seen');
		bench(16, 100, "INSERT INTO seen SELECT verdict, remaining FROM apitoken.verify('$token');");
		is($node->safe_psql('postgres', q{SELECT string_agg(verdict || ' ' || n, ' ' ORDER BY verdict DESC) FROM (SELECT verdict, count(*) FROM seen GROUP BY 1) s (verdict, n)}),
			'valid 1000 quota_exceeded 600', "$arguments: exactly the quota");
		is($node->safe_psql('postgres', q{SELECT count(DISTINCT remaining), min(remaining), max(remaining) FROM seen WHERE verdict = 'valid'}), '1000|0|999', 'and each use was told another rest');
		flush();
		is(listed($token), 0, 'nothing is left');
	}

	# The sum that an entry starts with counts each use once: used so often without a
	# quota, and then with one of one more, while flushes take and write them.
	$node->safe_psql('postgres', q{CREATE TABLE crowd AS SELECT n, id, token FROM generate_series(1, 400) n, LATERAL apitoken.create_token('crowd ' || n, user_id => 'ann');
		GRANT SELECT ON crowd TO PUBLIC});
	my $wrong = $node->safe_psql('postgres', q{
		DO $$
		DECLARE
			this record;
			verdicts text;
		BEGIN
			FOR this IN SELECT * FROM crowd LOOP
				PERFORM apitoken.verify(this.token) FROM generate_series(1, 1 + this.n % 5);
				UPDATE apitoken.tokens SET quota = 2 + this.n % 5, quota_period = (ARRAY['day', 'month', NULL])[1 + this.n % 3] WHERE id = this.id;
				verdicts := (SELECT string_agg((apitoken.verify(this.token)).verdict, ' ') FROM generate_series(1, 2));
				IF verdicts <> 'valid quota_exceeded' THEN
					RAISE EXCEPTION 'token %: %', this.n, verdicts;
				END IF;
				COMMIT;
			END LOOP;
		END $$;
		SELECT 'none'});
	is($wrong, 'none', 'uses on their way to the tables count once');
	$flushing->kill_kill;
	flush();
	is($node->safe_psql('postgres', 'SELECT count(*) FROM crowd c JOIN apitoken.token_usage u ON u.token_id = c.id WHERE u.accepted <> 2 + c.n % 5'), 0, 'and all of them were written');
}

# While a flush has taken uses and cannot write them, they count.
foreach my $arguments ('', q{, quota_period = 'month'})
{
	my $token = of_ann(q{description => ''});
	my $blocker = connection($node);
	my $flusher = connection($node);

	is(uses($token, 3), 3, 'used three times');
	ask($blocker, 'BEGIN; SELECT FROM apitoken.token_usage WHERE token_id = ' . id_of($token) . ' FOR UPDATE;');
	$flusher->query_until(qr/started/, "\\echo started\nSELECT apitoken.flush_usage();\n");
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND wait_event_type = 'Lock'}), 'a flush has taken them, and waits');
	edit($token, "quota = 5$arguments");
	is(run(left($token) x 3), 'valid|1 valid|0 quota_exceeded|0', 'they count');
	is(listed($token), 5, 'though no table has them yet');
	ask($blocker, 'ROLLBACK;');
	$flusher->quit;
	$blocker->quit;
	flush();
	is(listed($token), 0, 'until they are written');
}

# ----- what counts -------------------------------------------------------------

{
	my $token = of_ann('quota => 5');

	is(run('BEGIN; ' . left($token) . ' ROLLBACK; BEGIN READ ONLY; ' . left($token) . ' COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; ' . left($token)
		. ' SAVEPOINT s; ' . left($token) . ' ROLLBACK TO s; COMMIT; ' . left($token) x 2), 'valid|4 valid|3 valid|2 valid|1 valid|0 quota_exceeded|0',
		'uses in transactions that were rolled back, or are READ ONLY');
	# the first use of an entry reads the tables
	foreach my $begin ('BEGIN READ ONLY;', 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;', 'SET force_parallel_mode = on; SET debug_parallel_query = on; BEGIN;')
	{
		$token = of_ann(q{quota => 1, quota_period => 'month'});
		like(run("$begin " . left($token) . ' ' . left($token) . ' COMMIT;'), qr/^valid\|0 quota_exceeded\|0/, $begin);
	}
	$token = of_ann(q{quota => 2, allowed_networks => '{10.0.0.0/8}', access => 'custom', permissions => '{article:read}'});
	is(run(verdict($token) . verdict($token, q{, 'article:write', NULL, '10.0.0.1'}) . verdict(substr($token, 0, -1) . 'x') . "SELECT apitoken.verify('$token', cost => 0);"
		. left($token, q{, 'article:read', NULL, '10.0.0.1'})) =~ /^network_refused permission_refused \w+ valid\|1 \[ERROR: 22023: cost of a use is out of range HINT: Specify 1 to 1000000 uses\./ ? 1 : 0,
		1, 'refused uses cost nothing');
	$token = of_ann('quota => 2');
	is(run("SELECT apitoken.introspect('$token') ->> 'active' FROM generate_series(1, 3);" . left($token)), 'true true false quota_exceeded|0', 'introspect() is a use, and says when there are none left');
	$token = of_ann('quota => 2');
	is(run("BEGIN; SET LOCAL apitoken.token = '$token'; SELECT apitoken.current_user_id(); SELECT apitoken.can('a:b'); COMMIT; BEGIN; SELECT remaining FROM apitoken.authenticate('$token'); COMMIT;"),
		'ann t 0', 'the setting and authenticate(): one use a transaction');
}

# A rate limit and a quota: a use counts against both or neither.
{
	my $token = of_ann('quota => 5, rate_limit_per_minute => 1');

	is(run(left($token) x 3), 'valid|4 rate_limited|4 rate_limited|4', 'a use over the rate limit costs no quota');
	edit($token, 'quota = 1');
	is(run(verdict($token)), 'quota_exceeded', 'of both verdicts, this one');
	$token = of_ann('quota => 1, rate_limit_per_minute => 2');
	is(run(left($token) x 4), 'valid|0 quota_exceeded|0 quota_exceeded|0 quota_exceeded|0', 'a quota used up');
	edit($token, 'quota = 3');
	is(run(left($token) x 2), 'valid|1 rate_limited|1', 'and a use over the quota costs no rate');
}

# ----- costs -------------------------------------------------------------------

{
	my $token = of_ann('quota => 10');

	is(run(left($token, ', cost => 4') . left($token, ', cost => 7') . left($token, ', cost => 6') . left($token)), 'valid|6 quota_exceeded|6 valid|0 quota_exceeded|0',
		'a cost that exceeds what is left uses nothing');
	flush();
	is($node->safe_psql('postgres', 'SELECT u.accepted, u.refused, d.accepted FROM apitoken.token_usage u JOIN apitoken.token_usage_daily d USING (token_id) WHERE token_id = ' . id_of($token)),
		'10|2|10', 'and the costs are recorded');
	$token = of_ann(q{quota => 10, quota_period => 'day'});
	is(run("SELECT verdict, retry_after IS NULL FROM apitoken.verify('$token', cost => 11);"), 'quota_exceeded|t', 'a cost above the quota: no wait helps');
	is(run("SELECT verdict, retry_after IS NULL FROM apitoken.verify('$token', cost => 1000000);" . left($token, ', cost => 10')), 'quota_exceeded|t valid|0', 'whatever it is');
	$token = of_ann('rate_limit_per_minute => 10');
	is(run(verdict($token, ', cost => 11') . "SELECT retry_after IS NULL FROM apitoken.verify('$token', cost => 1000000);" . verdict($token, ', cost => 10')), 'rate_limited t valid', 'a cost above the rate limit');
	is(run("SELECT verdict, retry_after > '50 s' AND retry_after <= '1 minute' FROM apitoken.verify('$token', cost => 10);"), 'rate_limited|t', 'and one that will be earned');
	$token = of_ann('rate_limit_per_minute => 1000000');
	is(run(verdict($token, ', cost => 1000000') . verdict($token, ', cost => 100000')), 'valid rate_limited', 'the largest cost');
	is(run(left(of_ann('quota => 2'), ', cost => NULL')), 'valid|1', 'a null is 1');
	foreach my $cost ('0', '-1', '1000001', '2147483647', '-2147483648')
	{
		like(run("SELECT apitoken.verify('nonsense', cost => $cost);"), qr/^\[ERROR: 22023: cost of a use is out of range/, "cost => $cost, whatever the token");
	}
	$token = of_ann('quota => 1000');
	bench(8, 50, "SELECT apitoken.verify('$token', cost => 7);");
	is(run(left($token, ', cost => 6') . left($token)), 'valid|0 quota_exceeded|0', '142 times 7 of 1000');
}

# ----- requests of PostgREST ---------------------------------------------------

# What pre_request() adds to the response, after `before`; or the status, the
# headers and the message of a refusal.
sub request
{
	my ($token, $before) = @_;
	my $answer = run(qq{BEGIN; SET LOCAL request.headers = '{"x-api-key": "$token"}';} . ($before // '') . q{SELECT apitoken.pre_request(); SELECT current_setting('response.headers', true); COMMIT;});

	return $answer =~ s/^ //r =~ s/;t=\d+/;t=T/gr;
}

{
	my $minute = q{[{"RateLimit-Policy": "\"minute\";q=3;w=60"}, {"RateLimit": "\"minute\";r=2;t=T"}]};

	is(request(of_ann('rate_limit_per_minute => 3')), $minute, 'a rate limit');
	is(request(of_ann(q{quota => 5, quota_period => 'day'})), q{[{"RateLimit-Policy": "\"day\";q=5;w=86400"}, {"RateLimit": "\"day\";r=4;t=T"}]}, 'a quota a day');
	is(request(of_ann('quota => 999999999999999')), q{[{"RateLimit-Policy": "\"life\";q=999999999999999"}, {"RateLimit": "\"life\";r=999999999999998"}]}, 'for life');
	like(request(of_ann(q{quota => 5, quota_period => 'month', rate_limit_per_minute => 1})),
		qr/^\[\{"RateLimit-Policy": "\\"minute\\";q=1;w=60, \\"month\\";q=5;w=(2419200|2505600|2592000|2678400)"\}, \{"RateLimit": "\\"minute\\";r=0;t=T, \\"month\\";r=4;t=T"\}\]$/, 'both');
	is(request(of_ann(q{description => ''})), '', 'neither: no header');

	# what is there is kept
	my $limited = sub { return request(of_ann('rate_limit_per_minute => 3'), $_[0]); };
	is($limited->(q{SET LOCAL response.headers = '[{"Set-Cookie": "a=b"}]';}), q{[{"Set-Cookie": "a=b"}, } . substr($minute, 1), 'other headers are kept');
	is($limited->("SET LOCAL response.headers = '$_';"), $minute =~ s/^\[/$_ =~ s,\]\s*$,,r/er, "an empty array: $_") foreach '[]', '[ ] ';
	is($limited->("SET LOCAL response.headers = '$_';"), $_, "what is no array is left as it is: $_") foreach '{"a": "b"}', 'x';
	is($limited->(q{SET LOCAL response.headers = '';}), $minute, 'nothing');

	# a refusal
	my $token = of_ann(q{quota => 1, quota_period => 'day'});
	request($token);
	my $refused = request($token);
	my $seconds = $node->safe_psql('postgres', q{SELECT ceil(extract(epoch FROM date_trunc('day', u) + '1 day' - u)) FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC') AS t (u)});
	like($refused, qr/"code": "quota_exceeded", "message": "quota of the token exceeded", "details": "Verdict: quota_exceeded\.", "hint": "Try again in \d+ seconds\."/, 'refused');
	like($refused, qr/"status": 429, "headers": \{"Retry-After": "\d+", "RateLimit-Policy": "\\"day\\";q=1;w=86400", "RateLimit": "\\"day\\";r=0;t=T"\}/, '... with the headers');
	my ($said) = $refused =~ /"Retry-After": "(\d+)"/;
	cmp_ok(abs($said - $seconds), '<', 60, '... until midnight UTC');
	$token = of_ann('quota => 1');
	request($token);
	like(request($token), qr/"hint": "Contact the owner of the token\.".*"headers": \{"RateLimit-Policy": "\\"life\\";q=1", "RateLimit": "\\"life\\";r=0"\}/, 'for life: no time');
	$token = of_ann('rate_limit_per_minute => 1');
	request($token);
	like(request($token), qr/"code": "rate_limited".*"headers": \{"Retry-After": "\d+", "RateLimit-Policy": "\\"minute\\";q=1;w=60", "RateLimit": "\\"minute\\";r=0;t=T"\}/, 'a rate limit');
}

# ----- edits -------------------------------------------------------------------

{
	my $token = of_ann('quota => 2');

	is(uses($token, 5), 2, 'used up');
	edit($token, 'quota = 4');
	is(run(left($token)), 'valid|1', 'raised');
	edit($token, 'quota = 1');
	is(run(left($token)), 'quota_exceeded|0', 'lowered');
	edit($token, q{quota = 5, quota_period = 'day'});
	is(run(left($token)), 'valid|1', 'another period counts what was used in it, before it was set, too');
	edit($token, 'quota = NULL, quota_period = NULL');
	is(uses($token, 3), 3, 'without a quota');
	edit($token, 'quota = 7');
	is(run(left($token)), 'quota_exceeded|0', 'and with one again: uses in between count, and nothing is forgotten');
	used_before($token, "$today - 40", 0);
	edit($token, q{quota = 8, quota_period = 'month'});
	is(run(left($token) x 2), 'valid|0 quota_exceeded|0', 'of the month');

	# an edit counts when it is committed
	my $editor = connection($node);
	ask($editor, 'BEGIN; UPDATE apitoken.tokens SET quota = 100 WHERE id = ' . id_of($token) . ';');
	is(run(verdict($token)), 'quota_exceeded', 'an edit that is not committed');
	ask($editor, 'COMMIT;');
	is(run(left($token)), 'valid|91', 'and one that is');
	$editor->quit;

	# two secrets share one quota
	$token = of_ann('quota => 3');
	my $new = $node->safe_psql('postgres', 'SELECT token FROM apitoken.regenerate_token(' . id_of($token) . ", overlap => '1 hour')");
	is(run(left($token) . left($new) . left($token) . left($new)), 'valid|2 valid|1 valid|0 quota_exceeded|0', 'old and new secret share the quota');
}

# Who may edit a token sets its quota; its own holder may not by the token itself.
{
	my $token = of_ann(q{quota => 2, access => 'full'});
	my $id = $node->safe_psql('postgres', 'SELECT ' . id_of($token));

	is(run_as('regress_apitoken_app', "BEGIN; SELECT apitoken.act_as('ann'); UPDATE apitoken.tokens SET quota = 3 WHERE id = '$id' RETURNING quota, remaining; COMMIT;"), 'ann 3|3', 'the owner edits it');
	is(run_as('regress_apitoken_app', "BEGIN; SELECT valid FROM apitoken.authenticate('$token'); UPDATE apitoken.tokens SET quota = 1000 WHERE id = '$id' RETURNING quota; COMMIT;"), 't', 'an ordinary token does not edit itself');
}

# ----- a restart, a crash ------------------------------------------------------

my %kept = map { ($_ => of_ann($_)) } 'quota => 10', q{quota => 10, quota_period => 'day'}, q{quota => 10, quota_period => 'month'};

is(join(' ', map { uses($_, 4) } values %kept), '4 4 4', 'used four times');
flush();
is(join(' ', map { uses($_, 3) } values %kept), '3 3 3', 'and three times more, not written yet');
$node->restart;
is(run(left($kept{$_})), 'valid|2', "$_: a restart forgets nothing, and counts nothing twice") foreach sort keys %kept;
$node->restart;
is(run(left($kept{$_})), 'valid|1', "$_: nor do two") foreach sort keys %kept;
flush();
is(listed($kept{$_}), 1, "$_: written") foreach sort keys %kept;
is(run(left($kept{$_}) x 2), 'valid|0 quota_exceeded|0', "$_: used up") foreach sort keys %kept;
$node->stop('immediate');
$node->start;
is(run(left($kept{$_}) x 2), 'valid|0 quota_exceeded|0', "$_: a crash forgets what was not written, the last use") foreach sort keys %kept;

# ----- a standby, a copy, a restore --------------------------------------------

flush();
{
	my $token = of_ann(q{quota => 5, quota_period => 'month'});

	is(uses($token, 2), 2, 'used twice on the primary');
	flush();
	$node->backup('base');
	my $standby = start_standby($node, 'standby');
	is(answer($standby, left($token) x 4, user => $who), 'valid|2 valid|1 valid|0 quota_exceeded|0', 'a standby counts what was written on the primary, and then its own');
	$standby->restart;
	is(answer($standby, left($token), user => $who), 'quota_exceeded|0', 'and a restart forgets nothing there');
	is(run(left($token)), 'valid|2', 'the primary does not know of it');
	flush();
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	$standby->promote;
	is(answer($standby, left($token), user => $who), 'quota_exceeded|0', 'promoted');
	is(answer($standby, 'SELECT apitoken.flush_usage(); SELECT accepted FROM apitoken.token_usage WHERE token_id = ' . id_of($token)), ' 6', 'it writes its own use to that of the primary');
	is(answer($standby, left($token), user => $who), 'quota_exceeded|0', 'and goes on counting');
	$standby->stop;
	no_crash($standby);

	$node->safe_psql('template1', 'CREATE DATABASE twin TEMPLATE postgres');
	is(run(left($token), database => 'twin'), 'valid|1', 'a copy of the database counts on from what was written');
	is(run(left($token)), 'valid|1', 'on its own');
	$node->safe_psql('template1', 'DROP DATABASE twin');
	flush();
	my $dump = $node->basedir . '/quota.dump';
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'dumped');
	$node->safe_psql('template1', 'CREATE DATABASE twin');
	$node->command_ok([ 'pg_restore', '-d', $node->connstr('twin'), $dump ], 'restored');
	is(run(left($token) x 2, database => 'twin'), 'valid|0 quota_exceeded|0', 'and so does a restored one');
	$node->safe_psql('template1', 'DROP DATABASE twin');
}

# ----- housekeeping ------------------------------------------------------------

# The time that daily use is kept may be shorter than a month: a quota of a month
# keeps the days of the month.
SKIP:
{
	skip 'the month has just begun', 3 if $node->safe_psql('postgres', "SELECT $today - $month") < 3;
	my $monthly = of_ann(q{quota => 10, quota_period => 'month'});
	my $daily = of_ann(q{quota => 10, quota_period => 'day'});

	foreach my $token ($monthly, $daily)
	{
		used_before($token, "$month - 1", 1);
		used_before($token, $month, 8);
	}
	$node->safe_psql('postgres', q{SET apitoken.usage_retention = '1d'; SELECT apitoken.run_maintenance()});
	is(listed($monthly) . ' ' . run(left($monthly)), '2 valid|1', 'days that a quota counts are kept');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM apitoken.token_usage_daily WHERE token_id = ' . id_of($_->[0])), $_->[1], $_->[2])
		foreach [ $monthly, 1, 'but not those of the month before' ], [ $daily, 0, 'and no others' ];
}

# ----- memory is full ----------------------------------------------------------

$node->append_conf('postgresql.conf', 'apitoken.usage_slots = 64');
$node->restart;
$node->safe_psql('postgres', q{
	DROP TABLE crowd;
	CREATE TABLE crowd AS SELECT n, token FROM generate_series(1, 300) n, LATERAL apitoken.create_token('quota ' || n, user_id => 'ann', quota => 1);
	GRANT SELECT ON crowd TO PUBLIC;
	CREATE TABLE answers (n int, verdict text, retry_after interval);
});
{
	my $refused = q{SELECT count(*) FROM answers WHERE verdict <> 'valid' AND (verdict, retry_after) <> ('rate_limited', '1 s')};

	$node->safe_psql('postgres', 'INSERT INTO answers SELECT n, verdict, retry_after FROM crowd, LATERAL apitoken.verify(token)');
	my $accepted = $node->safe_psql('postgres', q{SELECT count(*) FROM answers WHERE verdict = 'valid'});
	cmp_ok($accepted, '>', 0, 'memory for 64 tokens with quotas, of 300: some are accepted');
	cmp_ok($accepted, '<=', 64, 'no more than fit, for a minute');
	is($node->safe_psql('postgres', $refused), 0, 'the others are refused, and told to come again');
	cmp_ok(stat_of($node, 'dropped'), '>', 0, 'which is counted');

	# Memory for the use itself is full, that for quotas is not: tokens without a
	# quota fill it, and a flush cannot empty it.
	$node->restart;
	my $blocker = connection($node);
	$node->safe_psql('postgres', q{CREATE TABLE plain AS SELECT n, token FROM generate_series(1, 300) n, LATERAL apitoken.create_token('plain ' || n, user_id => 'ann')});
	my $token = of_ann('quota => 3');
	ask($blocker, 'BEGIN; LOCK TABLE apitoken.token_usage IN SHARE MODE;');
	$node->safe_psql('postgres', 'SELECT count(*) FROM plain, LATERAL apitoken.verify(token)');
	is(run("SELECT verdict, retry_after, remaining FROM apitoken.verify('$token');" x 5), join(' ', ('rate_limited|00:00:01|3') x 5), 'a use that cannot be recorded is refused, and costs nothing');
	ask($blocker, 'ROLLBACK;');
	$blocker->quit;
	ok($node->poll_query_until('postgres', "SELECT (apitoken.verify('$token')).valid"), 'until there is room');
	is(run(left($token)), 'valid|1', 'and the next one costs one');
}

# ----- without shared preload --------------------------------------------------

foreach my $form ('plain', 'session')
{
	$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
	$node->append_conf('postgresql.conf', "session_preload_libraries = 'apitoken'") if $form eq 'session';
	$node->restart;

	my $token = of_ann(q{quota => 1000, quota_period => 'day', rate_limit_per_minute => 5});
	my $warning = qr/WARNING: 55000: cannot verify a token with a quota on this server DETAIL: [^:]* HINT: Add "apitoken" to "shared_preload_libraries" and restart the server, or set "quota" of the token to null\./;

	like(run("SELECT valid, verdict, retry_after IS NULL, remaining IS NULL FROM apitoken.verify('$token');"), qr/^f\|quota_exceeded\|t\|t \[$warning\]$/, "$form: refused, never unlimited, and why");
	like(run("BEGIN; SELECT apitoken.authenticate('$token');"), qr/^\[$warning ERROR: 28000: invalid token DETAIL: Verdict: quota_exceeded\.\]$/, "$form: by authenticate()");
	is(run(verdict($token, q{, 'token:read'})), 'permission_refused', "$form: what else is wrong is told without a warning");
	is(run("SELECT apitoken.introspect('$token') ->> 'active';") =~ /^false / ? 1 : 0, 1, "$form: by introspect()");
	is(request($token) =~ /"message": "cannot verify a token with a quota on this server".*"status": 429, "headers": \{\}/ ? 1 : 0, 1, "$form: by pre_request()");
	edit($token, 'quota = NULL, quota_period = NULL, rate_limit_per_minute = NULL');
	is(run(verdict($token)), 'valid', "$form: without the limits it is valid");
}

$node->stop;
no_crash($node);
done_testing();
