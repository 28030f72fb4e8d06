# Use of tokens on a standby arrives on the primary, once: whatever happens to the
# connection, the answer, the servers and their roles in between.  Also: who may
# send, hostile batches, failures and their reports, cascades and promotions.

use strict;
use warnings;

use ApitokenSending;
use ApitokenTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# ----- a primary, a standby, and a way between them that can be cut -------------

# sends happen when a test calls flush_usage()
my $preload = q{
	shared_preload_libraries = 'apitoken'
	apitoken.flush_interval = '1h'
	max_connections = 30
	wal_receiver_status_interval = '100ms'
};
my $primary = start_node('primary', init => [ allows_streaming => 1 ], conf => $preload);
$primary->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme'), ('other', 'Other');
	INSERT INTO apitoken.users (id, name, notify) VALUES ('u', 'User', '{new_network}');
	INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'developer');
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_sender LOGIN;
	CREATE ROLE regress_apitoken_nobody LOGIN;
	CREATE ROLE regress_apitoken_all LOGIN;
	SELECT apitoken.allow('regress_apitoken_backend', 'verify');
	SELECT apitoken.allow('regress_apitoken_sender', 'usage');
	SELECT apitoken.allow('regress_apitoken_all', 'use', 'manage', 'verify', 'act', 'directory', 'monitor', 'notify');
} . view_of_usage());
my %token = create_each($primary, {
	a => q{organization_id => 'acme'},
	b => q{organization_id => 'acme'},
	personal => q{user_id => 'u'},
	networks => q{organization_id => 'acme', allowed_networks => '{10.0.0.0/8}'},
	daily => q{user_id => 'u', quota => 3, quota_period => 'day'},
	rotated => q{user_id => 'u'},
});
my %id = map { $_ => $primary->safe_psql('postgres', "SELECT id FROM apitoken.tokens WHERE label = '$_'") } keys %token;

my $way = way();
start_way($primary);

$primary->backup('base');
my $conninfo = "host=$way port=" . $primary->port . ' user=regress_apitoken_sender';
my $sends = "apitoken.primary_conninfo = '$conninfo'";
my $standby = start_standby($primary, 'standby', conf => $sends);
sub replayed { $primary->wait_for_catchup($_, 'replay', $primary->lsn('insert')) foreach @_ ? @_ : $standby; return; }

# use_token NODE, LABEL, NUMBER, ARGUMENTS: accepted uses
sub use_token { my ($node, $label, @more) = @_; return use_text($node, $token{$label}, @more); }
sub error_of { my ($node) = @_; return stat_of($node, 'last_send_error'); }

# ----- use arrives --------------------------------------------------------------

is(use_token($standby, 'a', 3, q{, client_address => '192.0.2.7'}), 3, 'a token is used on the standby');
is(answer($standby, verdict($token{networks}), user => 'regress_apitoken_backend'), 'network_refused', 'and another one is refused');
is(stat_of($standby, 'pending, sent, last_send_at IS NULL'), '4|0|t', 'which is pending');
is(flush($standby), '', 'it is sent');
is(stat_of($standby, 'pending, sent, last_send_at > now() - interval \'1 min\', last_send_error IS NULL, last_flush_at IS NULL'), '0|4|t|t|t', 'nothing is pending');
is($primary->safe_psql('postgres', q{SELECT accepted, refused, host(last_used_from), last_used_at BETWEEN now() - interval '1 min' AND now() FROM used WHERE label = 'a'}),
	'3|0|192.0.2.7|t', 'and it is on the primary, with time and address');
is($primary->safe_psql('postgres', "SELECT day = (now() AT TIME ZONE 'UTC')::date, accepted, refusals FROM apitoken.token_usage_daily WHERE token_id = '$id{networks}'"),
	't|0|{"network_refused": 1}', 'with refusals by verdict');
replayed();
is(used($standby, 'a'), '3', 'and comes back to the standby');

# both sides at once: counts add, the greatest time wins
is(use_token($standby, 'a', 2, q{, client_address => '192.0.2.8'}), 2, 'used on the standby');
is(use_token($primary, 'a', 4, q{, client_address => '192.0.2.9'}), 4, 'then on the primary');
is(flush($primary) . flush($standby), '', 'and both are written');
is($primary->safe_psql('postgres', q{SELECT accepted, host(last_used_from) FROM used WHERE label = 'a'}), '9|192.0.2.9', 'the counts add, the later use is the last one');

# what follows use: quotas, previous secrets, networks, organizations of personal tokens
is(use_token($standby, 'daily', 2), 2, 'a token with a quota is used on the standby');
is(flush($standby), '', 'sent');
is(answer($primary, "SELECT remaining FROM apitoken.verify('$token{daily}'); " . verdict($token{daily}), user => 'regress_apitoken_backend'), '0 quota_exceeded', 'its quota on the primary counts what arrived');
$primary->safe_psql('postgres', "SELECT apitoken.regenerate_token('$id{rotated}')");
replayed();
is(answer($standby, verdict($token{rotated}), user => 'regress_apitoken_backend'), 'unknown', 'a replaced secret is used on the standby');
is(use_token($standby, 'personal', 1, q{, client_address => '192.0.2.7', organization_id => 'acme'}), 1, 'a personal token is used in an organization');
is(use_token($standby, 'personal', 1, q{, client_address => '198.51.100.7'}), 1, 'and from another network');
is(flush($standby), '', 'sent');
is($primary->safe_psql('postgres', "SELECT count(*) FROM apitoken.events WHERE action = 'reuse' AND token_id = '$id{rotated}'"), '1', 'the use of the replaced secret has an event');
is($primary->safe_psql('postgres', "SELECT string_agg(network::text, ' ' ORDER BY network) FROM apitoken_internal.token_networks WHERE token_id = '$id{personal}'"), '192.0.2.0/24 198.51.100.0/24', 'the networks arrive');
is($primary->safe_psql('postgres', "SELECT count(*) FROM apitoken.notifications WHERE event = 'new_network' AND token_id = '$id{personal}'"), '0', 'nobody without an address is told');
is($primary->safe_psql('postgres', "SELECT organization_id FROM apitoken_internal.personal_token_use WHERE token_id = '$id{personal}'"), 'acme', 'the organization arrives');

# a user is forgotten while use of theirs is on the standby
my $leaver = create($primary, 'leaver', q{user_id => 'leaver'});
my $leaver_id = $primary->safe_psql('postgres', q{SELECT id FROM apitoken.tokens WHERE label = 'leaver'});
replayed();
is(answer($standby, verdict($leaver, q{, client_address => '192.0.2.99', organization_id => 'acme'}) . ';' . verdict($leaver, q{, client_address => '192.0.2.99'}), user => 'regress_apitoken_backend'),
	'permission_refused valid', 'a person uses a token on the standby');
is($primary->safe_psql('postgres', q{SELECT apitoken.forget_user('leaver')}), 't', 'and is forgotten');
is(flush($standby), '', 'then the use is sent');
is($primary->safe_psql('postgres', "SELECT accepted, last_used_from IS NULL FROM apitoken.token_usage WHERE token_id = '$leaver_id'"), '1|t', 'it is counted without its address');

# by itself
configure($standby, 'apitoken.flush_interval', '100ms');
is(use_token($standby, 'b', 1), 1, 'used');
ok($primary->poll_query_until('postgres', q{SELECT accepted = 1 FROM used WHERE label = 'b'}), 'and it arrives without being asked for');
configure($standby, 'apitoken.flush_interval', '1h');

# more than one batch
$primary->safe_psql('postgres', q{CREATE TABLE many AS SELECT (apitoken.create_token('many' || n, user_id => 'u')).token AS t FROM generate_series(1, 4500) n});
replayed();
is($standby->safe_psql('postgres', 'SELECT count(*) FROM many, apitoken.verify(t) v WHERE v.valid'), '4500', 'many tokens are used');
is(flush($standby), '', 'sent');
is($primary->safe_psql('postgres', q{SELECT count(*), sum(accepted) FROM used WHERE label LIKE 'many%'}), '4500|4500', 'and counted');
is(stat_of($standby, 'pending'), '0', 'none is pending');

# ----- who may send -----------------------------------------------------------------

my $batch = 0;
# ids of version 7, now and increasing
my ($sender, $now) = ('11111111-1111-4111-8111-111111111111', int(time * 1000));
sub batch_id { my ($number) = @_; return sprintf('%08x-%04x-7000-8000-%012x', $now >> 16, $now & 0xffff, $number); }
sub today { return $primary->safe_psql('postgres', q{SELECT (now() AT TIME ZONE 'UTC')::date}); }
# record USES, PLACES, by => ROLE, batch =>, sender =>: the answer of record_usage()
sub record
{
	my ($uses, $places, %how) = @_;
	my $id = $how{batch} // batch_id(++$batch);
	my $from = $how{sender} // $sender;
	return answer($how{on} // $primary, ($how{before} // '') . "SELECT apitoken.record_usage('$from', '$id', '$uses'" . (defined $places ? ", '$places'" : '') . ');' . ($how{after} // ''),
		user => $how{by} // 'regress_apitoken_sender');
}
my $today = today();
sub one { my ($label, $number) = @_; return qq([{"token_id": "$id{$label}", "day": "$today", "accepted": $number, "last_used_at": "2026-01-01 00:00:00+00"}]); }

is(record(one('b', 10), undef, by => "regress_apitoken_$_"), '[ERROR: 42501]', "not by a role with: $_") foreach qw(nobody backend all);
is($primary->safe_psql('postgres', q{SELECT count(*) FROM apitoken_internal.usage_senders WHERE sender = '} . $sender . q{'}), '0', 'nothing of that is counted');
is(record(one('b', 10)), 't', 'by one with the capability usage');
is(used($primary, 'b'), '11', 'it is counted');
is($primary->safe_psql('postgres', q{SELECT last_used_at > now() - interval '1 hour' FROM used WHERE label = 'b'}), 't', 'an earlier time does not replace a later one');
is(answer($primary, 'SELECT * FROM apitoken_internal.usage_senders', user => 'regress_apitoken_sender'), '[ERROR: 42501]', 'and the role can read nothing');
is(answer($primary, "SELECT $_", user => 'regress_apitoken_sender'), '[ERROR: 42501]', "nor call $_")
  foreach "apitoken.verify('x')", 'apitoken.flush_usage()', 'apitoken.list_tokens()', "apitoken.act_as('u')";
is(record(one('b', 1), undef, before => 'BEGIN READ ONLY; ', after => 'COMMIT'), '[ERROR: 25006]', 'not in a READ ONLY transaction');
is(record(one('b', 1), undef, on => $standby), '[ERROR: 25006]', 'not on a standby');
is(record(one('b', 1), undef, before => 'BEGIN; ', after => 'ROLLBACK'), 't', 'in a transaction that is rolled back');
is(record(one('b', 1), undef, before => "BEGIN ISOLATION LEVEL $_; ", after => 'ROLLBACK'), 't', "in $_") foreach 'REPEATABLE READ', 'SERIALIZABLE';
is(used($primary, 'b'), '11', 'nothing of that is counted');

# ----- a batch is counted once --------------------------------------------------------

is(record(one('b', 1), undef, batch => batch_id(1)), 'f', 'a batch is counted once');
is(record(one('b', 1), undef, batch => batch_id(100)), 't', 'a later one is counted');
is(record(one('b', 1), undef, batch => batch_id(99)), 'f', 'one that arrives after it is not');
is(record('[]', undef, batch => batch_id(101)), 't', 'an empty one is counted');
is(record(one('b', 1), undef, batch => batch_id(101)), 'f', 'and takes the place of the one with its id');
is(record(one('b', 1), undef, batch => batch_id(1), sender => '22222222-2222-4222-8222-222222222222'), 't', 'another sender has ids of its own');
is(record(one('b', 1), undef, batch => '01000000-0000-7000-8000-000000000000', sender => '22222222-2222-4222-8222-222222222223'), 'f', 'one that is older than what is kept is not counted');
is(used($primary, 'b'), '13', 'as told');
$batch = 200;

# two at once
{
	my $first = connection($primary, user => 'regress_apitoken_sender');
	my $second = connection($primary, user => 'regress_apitoken_sender');
	my $call = sub { my ($from, $id) = @_; return "SELECT apitoken.record_usage('$from', '$id', '" . one('b', 1) . "');\n"; };

	foreach my $case ([ 'the same batch', $sender, batch_id(300), 'f', 14 ], [ 'two senders', '22222222-2222-4222-8222-222222222222', batch_id(301), 't', 16 ])
	{
		my ($name, $other, $id, $answer, $used) = @$case;
		is(ask($first, 'BEGIN; ' . $call->($sender, $id)), 't', "$name: one is counted");
		$second->query_until(qr/started/, "\\echo started\n" . $call->($other, $id));
		ok($primary->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%record_usage%'}), "$name: the other waits");
		ask($first, 'COMMIT');
		like(ask($second, ''), qr/^\s*$answer\s*$/, "$name: and is " . ($answer eq 't' ? 'counted' : 'not counted'));
		is(used($primary, 'b'), $used, "$name: together");
	}
	$_->quit foreach $first, $second;
	$batch = 400;
}

# ----- hostile batches --------------------------------------------------------------------

sub with { my (%more) = @_; return '[{' . join(', ', map { qq("$_": $more{$_}) } sort keys %more) . '}]'; }
my %good = (token_id => qq("$id{b}"), day => qq("$today"), accepted => 1, last_used_at => '"2026-01-01 00:00:00+00"');
my $before = $primary->safe_psql('postgres', 'SELECT string_agg(u::text, chr(10) ORDER BY token_id) FROM apitoken.token_usage u');
is(answer($primary, "SELECT apitoken.record_usage($_)", user => 'regress_apitoken_sender'), '[ERROR: 22004]', "null: $_")
  foreach "NULL, '" . batch_id(1000) . "', '[]'", "'$sender', NULL, '[]'", "'$sender', '" . batch_id(1000) . "', NULL", "'$sender', '" . batch_id(1000) . "', '[]', NULL";
foreach my $case (
	[ '{}', '22023' ], [ '1', '22023' ], [ 'null', '22023' ], [ '"x"', '22023' ], [ '[1]', '22023' ], [ '[null]', '22023' ], [ '[[]]', '22023' ], [ '[{}]', '22023' ],
	(map { [ with(%good, $_->[0] => $_->[1]), $_->[2] ] } (
		[ token_id => 'null', '22023' ], [ token_id => '1', '22023' ], [ token_id => '"x"', '22P02' ],
		[ day => 'null', '22023' ], [ day => '"infinity"', '22023' ], [ day => '"x"', '22007' ],
		[ accepted => '-1', '22023' ], [ accepted => '"1"', '22023' ], [ accepted => '1e15', '' ], [ accepted => '1.000000000000001e15', '22023' ], [ accepted => '1e1000', '22003' ],
		[ last_used_at => 'null', '22023' ], [ last_used_at => '"infinity"', '22023' ], [ last_used_at => '"-infinity"', '22023' ], [ last_used_at => '5', '22023' ], [ last_used_at => '"x"', '22007' ],
		[ last_used_from => '"x"', '22P02' ], [ last_used_from => '7', '22023' ],
		[ refused => '[]', '22023' ], [ refused => '1', '22023' ], [ refused => '{"x": 1}', '22023' ], [ refused => '{"expired": -1}', '22023' ], [ refused => '{"expired": 4294967296}', '22023' ],
		[ previous => '{"5": "2026-01-01"}', '22023' ], [ previous => '{"1": "infinity"}', '22023' ], [ reused => '16', '22023' ], [ reused => '-1', '22023' ],
		[ later => '1', '22023' ])))
{
	my ($uses, $sqlstate) = @$case;
	is(record($uses, undef, before => 'BEGIN; ', after => 'ROLLBACK'), $sqlstate eq '' ? 't' : "[ERROR: $sqlstate]", "uses $uses: " . ($sqlstate || 'counted'));
}
foreach my $case ([ '{}', '22023' ], [ '[{}]', '22023' ],
	[ qq([{"token_id": "$id{b}", "seen_at": "2026-01-01"}]), '22023' ],
	[ qq([{"token_id": "$id{b}", "seen_at": "2026-01-01", "network": "10.0.0.0/8", "organization_id": "acme"}]), '22023' ],
	[ qq([{"token_id": "$id{b}", "network": "10.0.0.0/8"}]), '22023' ],
	[ qq([{"token_id": "$id{b}", "seen_at": "2026-01-01", "organization_id": ") . 'x' x 300 . '"}]', '22023' ],
	[ qq([{"token_id": "$id{b}", "seen_at": "2026-01-01", "network": "x"}]), '22P02' ])
{
	is(record('[]', $case->[0], before => 'BEGIN; ', after => 'ROLLBACK'), "[ERROR: $case->[1]]", "places $case->[0]: $case->[1]");
}
like(record('[' . join(', ', ('{}') x 10001) . ']'), qr/ERROR: 54000/, 'more than 10000 objects');
is($primary->safe_psql('postgres', 'SELECT string_agg(u::text, chr(10) ORDER BY token_id) FROM apitoken.token_usage u'), $before, 'nothing of that is counted');

# what is valid but not true
is(record(with(%good, token_id => '"01900000-0000-7000-8000-000000000000"'), '[{"token_id": "01900000-0000-7000-8000-000000000000", "seen_at": "2026-01-01", "organization_id": "nowhere"}]'), 't', 'a token that does not exist');
is($primary->safe_psql('postgres', q{SELECT count(*) FROM apitoken.token_usage WHERE token_id = '01900000-0000-7000-8000-000000000000'}), '0', 'is left out');
is(record(with(%good, last_used_at => '"9999-01-01 00:00:00+00"', day => '"9999-01-01"')), 't', 'times in the future');
is($primary->safe_psql('postgres', "SELECT last_used_at <= now(), (SELECT max(day) FROM apitoken.token_usage_daily WHERE token_id = '$id{b}') FROM used WHERE label = 'b'"), "t|$today", 'are now');
is(record('[' . join(', ', map { substr with(%good, accepted => $_), 1, -1 } 1 .. 4) . ']', '[' . join(', ', (qq({"token_id": "$id{personal}", "seen_at": "2026-01-01", "organization_id": "acme"})) x 2, (qq({"token_id": "$id{personal}", "seen_at": "2026-01-01", "network": "192.0.2.9"})) x 2) . ']'),
	't', 'one token and place several times');
is(used($primary, 'b'), '27', 'counts add');
is($primary->safe_psql('postgres', "SELECT accepted FROM apitoken.token_usage_daily WHERE token_id = '$id{b}'"), '27', 'of the day, too');

# ----- the connection is cut ------------------------------------------------------------

my $expected = used($primary, 'a');
foreach my $cut ('drop_request', 'drop_answer')
{
	$expected += use_token($standby, 'a', 5);
	mode($cut);
	like(flush($standby), qr/$lost/, "$cut: an error");
	is(stat_of($standby, 'pending, last_send_error'), '5|the connection was lost or timed out', "$cut: pending");
	is(used($primary, 'a'), $cut eq 'drop_answer' ? $expected : $expected - 5, "$cut: what the primary has counted");
	like(flush($standby), qr/$lost/, "$cut: again");
	$expected += use_token($standby, 'a', 2);
	is(stat_of($standby, 'pending'), '7', "$cut: with later use");
	mode('pass');
	is(flush($standby), '', "$cut: the connection is back");
	is(used($primary, 'a'), $expected, "$cut: all is counted once");
	is(stat_of($standby, 'pending, last_send_error IS NULL'), '0|t', "$cut: nothing is pending");
}

# a request that arrives after the next one
$expected += use_token($standby, 'a', 5);
mode('hold');
like(flush($standby), qr/$lost/, 'a request is held up');
mode('pass');
is(flush($standby), '', 'the next one is not');
is(used($primary, 'a'), $expected, 'all is counted');
release();
ok($primary->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'apitoken'}), 'the first one arrives');
is(used($primary, 'a'), $expected, 'and is not counted again');
$expected += use_token($standby, 'a', 1);
is(flush($standby), '', 'sent');
is(used($primary, 'a'), $expected, 'nor does it disturb the next one');

# the primary ends the session, or the standby ends the worker, in the middle
foreach my $who ('primary', 'standby')
{
	my $locker = $primary->background_psql('postgres');
	$locker->query_safe('BEGIN; LOCK TABLE apitoken.token_usage');
	$expected += use_token($standby, 'a', 3);
	my $session = connection($standby);
	$session->query_until(qr/started/, "\\echo started\nSELECT apitoken.flush_usage();\n");
	$primary->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'apitoken' AND wait_event_type = 'Lock'}) or die;
	if ($who eq 'primary')
	{
		$primary->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'apitoken'});
	}
	else
	{
		$standby->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'apitoken worker'});
	}
	like(ask($session, ''), qr/ERROR/, "terminated on the $who: an error");
	is(stat_of($standby, 'pending'), '3', "terminated on the $who: pending");
	$locker->query_safe('COMMIT');
	$_->quit foreach $locker, $session;
	$primary->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'apitoken'}) or die;
	is(flush($standby), '', "terminated on the $who: sent");
	is(used($primary, 'a'), $expected, "terminated on the $who: all is counted once");
}

# ----- crashes and restarts -----------------------------------------------------------------

$expected = survives_crashes($standby, $primary, 'a', $token{a});

# ----- failures, and what is said of them ------------------------------------------------------

# Failures of flush_usage(): the reason, the hint in the log, once, and nothing of the connection string.
sub fails
{
	my ($name, $pattern, $hint, %how) = @_;
	my $mark = log_mark($standby);
	my $answer = answer($standby, 'SELECT apitoken.flush_usage()', verbosity => 'terse', %how);
	flush_again(%how) foreach 1 .. 2;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($answer, $pattern, "$name: an error");
	is(in_log($standby, qr/WARNING:  could not send token usage of database/, $mark), 1, "$name: logged once");
	like(log_since($standby, $mark), $hint, "$name: with a hint") if defined $hint;
	like($standby->safe_psql($how{database} // 'postgres', 'SELECT last_send_error FROM apitoken.stats'), $pattern, "$name: in apitoken.stats");
	unlike($answer . error_of($standby), qr/\Q$way\E|secret/, "$name: nothing of the connection string");
	return;
}
sub flush_again { my (%how) = @_; answer($standby, 'SELECT apitoken.flush_usage()', %how); return; }
# and it recovers
sub recovers
{
	my ($name) = @_;
	my $mark = log_mark($standby);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(flush($standby), '', "$name: sent when the cause is removed");
	is(in_log($standby, qr/LOG:  resumed sending token usage of database "postgres"/, $mark), 1, "$name: which is logged");
	is(used($primary, 'a'), $expected, "$name: counted once");
	return;
}

$expected += use_token($standby, 'a', 1);
$primary->safe_psql('postgres', q{SELECT apitoken.disallow('regress_apitoken_sender', 'usage')});
fails('no capability', qr/permission denied for function record_usage/, qr/HINT:  Run SELECT apitoken.allow\('...', 'usage'\)/);
$primary->safe_psql('postgres', q{SELECT apitoken.allow('regress_apitoken_sender', 'usage')});
recovers('no capability');

$expected += use_token($standby, 'a', 1);
$primary->stop;
fails('the primary is away', qr/could not connect|connection was lost/, undef);
like(answer($standby, q{SELECT level, message FROM apitoken.check_setup() WHERE message ~ 'could not be sent'}), qr/^warning\|recorded use could not be sent: /, 'the primary is away: in check_setup()');
$primary->start;
recovers('the primary is away');

# a password
$primary->safe_psql('postgres', q{SET password_encryption = 'scram-sha-256'; CREATE ROLE regress_apitoken_secret LOGIN PASSWORD 'secret-of-the-sender'; SELECT apitoken.allow('regress_apitoken_secret', 'usage')});
my $hba = slurp_file($primary->data_dir . '/pg_hba.conf');
unlink $primary->data_dir . '/pg_hba.conf';
append_to_file($primary->data_dir . '/pg_hba.conf', "local all regress_apitoken_secret scram-sha-256\n$hba");
$primary->reload;
my $passfile = "$way/passfile";
append_to_file($passfile, "*:*:*:*:secret-that-is-wrong\n");
chmod 0600, $passfile or die;
configure($standby, 'apitoken.primary_conninfo', $conninfo =~ s/_sender/_secret/r . " passfile=$passfile");
$expected += use_token($standby, 'a', 1);
{
	my $mark = log_mark($standby);
	like(flush($standby), qr/could not connect: FATAL: +password authentication failed for user "regress_apitoken_secret"/, 'wrong password: an error');
	flush($standby);
	is(in_log($standby, qr/WARNING:  could not send token usage of database/, $mark), 1, 'wrong password: logged once');
	unlike(log_since($standby, $mark) . error_of($standby), qr/secret-/, 'wrong password: nothing of it is said');
}
unlink $passfile;
append_to_file($passfile, "*:*:*:*:secret-of-the-sender\n");
chmod 0600, $passfile or die;
recovers('wrong password');
configure($standby, 'apitoken.primary_conninfo', $conninfo =~ s/_sender/_secret/r . ' password=secret-of-the-sender');
is(answer($standby, q{SELECT level, message FROM apitoken.check_setup() WHERE message ~ 'conninfo'}), 'warning|apitoken.primary_conninfo has a password in it', 'check_setup() warns of a password in the connection string');
is(answer($standby, 'SHOW apitoken.primary_conninfo', user => 'regress_apitoken_all'), '[ERROR: 42501]', 'others do not see the connection string');
is(answer($standby, q{SELECT count(*) FROM pg_settings WHERE name = 'apitoken.primary_conninfo'}, user => 'regress_apitoken_all'), '0', 'nor in pg_settings');

# connection strings that are wrong
$expected += use_token($standby, 'a', 1);
configure($standby, 'apitoken.primary_conninfo', 'secret-of-the-sender');
fails('not a connection string', qr/"apitoken.primary_conninfo" is not a connection string/, undef);
is(answer($standby, q{SELECT message FROM apitoken.check_setup() WHERE message ~ '^apitoken.primary_conninfo'}), 'apitoken.primary_conninfo is not a connection string', 'check_setup() knows');
configure($standby, 'apitoken.primary_conninfo', 'postgresql://x:secret-of-the-sender@[::1');
like(flush($standby), qr/"apitoken.primary_conninfo" is not a connection string\]/, 'nor is a broken URI');
unlike(slurp_file($standby->logfile) =~ s/.*ALTER SYSTEM.*|.*current_setting.*|.*parameter "apitoken.primary_conninfo" changed.*//rg, qr/secret-of/, 'the log of the standby does not have the password');
configure($standby, 'apitoken.primary_conninfo', 'host=' . $standby->host . ' port=' . $standby->port);
fails('itself', qr/"apitoken.primary_conninfo" leads to a standby/, qr/HINT:  Name the primary/);
my $foreign = start_node('foreign', init => [ force_initdb => 1 ], conf => $preload);
configure($standby, 'apitoken.primary_conninfo', 'host=' . $foreign->host . ' port=' . $foreign->port);
fails('another cluster', qr/"apitoken.primary_conninfo" leads to another cluster/, qr/HINT:  Name the primary of this standby/);
$foreign->stop;

# none
configure($standby, 'apitoken.primary_conninfo', '');
like(answer($standby, 'SELECT apitoken.flush_usage()', verbosity => 'default'), qr/cannot write token usage during recovery.*apitoken.primary_conninfo/, 'without the setting, it cannot be sent');
is(answer($standby, q{SELECT level, message FROM apitoken.check_setup() WHERE message ~ 'does not send'}), 'warning|this standby does not send recorded use to the primary', 'of which check_setup() warns');
configure($standby, 'apitoken.primary_conninfo', $conninfo);
is(flush($standby), '', 'with the setting again');
is(used($primary, 'a'), $expected, 'counted once');
is(answer($standby, q{SELECT message FROM apitoken.check_setup() WHERE subject = 'standby' AND message ~ 'send|sent|recorded|conninfo'}), '', 'check_setup() has nothing to say of that');
configure($standby, 'hot_standby_feedback', 'on');
is(answer($standby, q{SELECT level, message FROM apitoken.check_setup() WHERE subject = 'standby'}), 'ok|this standby sends recorded use to the primary, and no long query delays the replay', 'nor of the standby, which it calls one');
configure($standby, 'hot_standby_feedback', 'off');

# another version there, and no extension there; in another database
$primary->safe_psql('postgres', 'CREATE DATABASE second');
$primary->safe_psql('second', q{CREATE EXTENSION apitoken; SELECT apitoken.allow('regress_apitoken_sender', 'usage'), apitoken.allow('regress_apitoken_backend', 'verify'); } . view_of_usage());
my $second = create($primary, 'second', q{user_id => 'u'}, database => 'second');
replayed();
is(answer($standby, verdict($second), database => 'second', user => 'regress_apitoken_backend'), 'valid', 'used in another database');
is(answer($standby, 'SELECT apitoken.flush_usage()', database => 'second'), '', 'sent');
is($primary->safe_psql('second', 'SELECT accepted FROM used'), '1', 'to the one of the same name');
is(answer($standby, verdict($second), database => 'second', user => 'regress_apitoken_backend'), 'valid', 'used again');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
$standby->poll_query_until('postgres', q{SELECT pg_get_wal_replay_pause_state() = 'paused'}) or die;
$primary->safe_psql('second', 'ALTER EXTENSION apitoken DROP FUNCTION apitoken.record_usage; DROP FUNCTION apitoken.record_usage');
fails('another version', qr/the extension "apitoken" of the primary has another version/, qr/HINT:  Run ALTER EXTENSION apitoken UPDATE there/, database => 'second');
$primary->safe_psql('second', 'DROP EXTENSION apitoken CASCADE');
fails('no extension', qr/the extension "apitoken" is not installed in this database of the primary/, qr/HINT:  Run CREATE EXTENSION/, database => 'second');
$expected += use_token($standby, 'a', 1);
is(flush($standby), '', 'while other databases send');
is(used($primary, 'a'), $expected, 'and are counted');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
$primary->safe_psql('postgres', 'DROP DATABASE second');
replayed();

# ----- a cascade, and promotions ------------------------------------------------------------------

$standby->backup('base');
my $cascade = start_standby($standby, 'cascade', conf => $sends);
$standby->wait_for_catchup($cascade, 'replay', $standby->lsn('replay'));
$expected += use_token($cascade, 'a', 2);
is(flush($cascade), '', 'a standby of a standby sends to the primary');
is(used($primary, 'a'), $expected, 'which counts it');
configure($cascade, 'apitoken.primary_conninfo', 'host=' . $standby->host . ' port=' . $standby->port . ' user=regress_apitoken_sender');
$expected += use_token($cascade, 'a', 2);
like(flush($cascade), qr/"apitoken.primary_conninfo" leads to a standby/, 'not to the standby');
configure($cascade, 'apitoken.primary_conninfo', $conninfo);
is(flush($cascade), '', 'but to the primary');
is(used($primary, 'a'), $expected, 'which counts that, too');

# A batch of each is on its way, which the primary has counted, and another one that it has not.
my $other = start_standby($primary, 'other', conf => $sends);
replayed($standby, $other);
$standby->wait_for_catchup($cascade, 'replay', $standby->lsn('replay'));
$expected += use_token($cascade, 'a', 5) + use_token($standby, 'a', 5);
mode('drop_answer');
like(flush($_), qr/$lost/, 'counted: ' . $_->name) foreach $cascade, $standby;
$expected += use_token($other, 'a', 7);
mode('drop_request');
like(flush($other), qr/$lost/, 'not counted: other');
$expected += use_token($_, 'a', 1) foreach $cascade, $standby, $other;
replayed();
$standby->wait_for_catchup($cascade, 'replay', $standby->lsn('replay'));
# the primary is gone for good
$primary->stop;
stop_program('way');
$standby->promote;
is(stat_of($standby, 'pending'), '6', 'promoted: pending');
is(flush($standby), '', 'promoted: it writes its use itself');
is(used($standby, 'a'), $expected - 1 - 8, 'promoted: once') or diag(used($standby, 'a') . " of $expected");
is(stat_of($standby, 'pending, last_send_error IS NULL, last_flush_error IS NULL'), '0|t|t', 'promoted: nothing is pending');
my $new = 'host=' . $standby->host . ' port=' . $standby->port . ' user=regress_apitoken_sender';
# the other standby follows the new primary
$other->safe_psql('postgres', q{ALTER SYSTEM SET primary_conninfo = '} . 'host=' . $standby->host . ' port=' . $standby->port . q{'});
configure($other, 'apitoken.primary_conninfo', $new);
configure($cascade, 'apitoken.primary_conninfo', $new);
is(flush($_), '', $_->name . ' sends to the new primary') foreach $cascade, $other;
is(used($standby, 'a'), $expected, 'all is counted once');

# ----- days without a primary ------------------------------------------------------------------------

SKIP:
{
	my $place = PostgreSQL::Test::Utils::tempdir_short();
	skip 'no compiler', 1 if !build_clock("$place/clock.so");
	my $late;
	{
		local $ENV{LD_PRELOAD} = "$place/clock.so";
		local $ENV{APITOKEN_DAYS} = "$place/days";
		# without a primary to send to
		$late = start_standby($standby, 'late', conf => $sends);
	}
	configure($late, 'apitoken.flush_interval', '100ms');
	my $used = 0;
	foreach my $days (reverse 0 .. 9)
	{
		append_to_file("$place/new", $days);
		rename "$place/new", "$place/days" or die;
		$used += use_token($late, 'b', 1);
	}
	is($used, 10, 'used on ten days');
	ok($late->poll_query_until('postgres', 'SELECT entries <= 4 FROM apitoken.stats'), 'on a standby, days do not pile up');
	is(stat_of($late, 'pending, dropped'), '10|0', 'but nothing is lost');
	$late->stop;
}

no_crash($_, killed => 1) foreach $primary, $standby;
no_crash($_) foreach $cascade, $other;
done_testing();
