# Use of tokens on a logical subscriber arrives on the publisher, once, and comes back:
# both show the same, exact numbers, whatever happens to the connection, the servers
# and the settings in between.  Also: where the use must not go, which databases send,
# and what the publisher may not revoke.

use strict;
use warnings;

use ApitokenSending;
use ApitokenTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# ----- a publisher, a subscriber, and a way between them that can be cut ---------------

# flushes happen when a test calls flush_usage()
my $settings = q{
	shared_preload_libraries = 'apitoken'
	apitoken.flush_interval = '1h'
	apitoken.imported_formats = 'crypt'
	max_connections = 30
	max_worker_processes = 16
	wal_retrieve_retry_interval = '100ms'
};
my $pub = start_node('publisher', init => [ allows_streaming => 'logical' ], conf => $settings);
start_way($pub);
my $conninfo = 'host=' . way() . ' port=' . $pub->port . ' user=regress_apitoken_sender';
my $sends = "apitoken.primary_conninfo = '$conninfo'\napitoken.subscriber_sends = on\n";
my $sub = start_node('subscriber', init => [ allows_streaming => 'logical' ], conf => $settings . $sends);
my @tables = ('apitoken.token_usage', 'apitoken.token_usage_daily', map { "apitoken_internal.$_" } qw(token_days personal_token_use token_networks));
my $sub_port = $sub->port;

$_->safe_psql('postgres', q{
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_sender LOGIN}) foreach $pub, $sub;
my $allow = q{SELECT apitoken.allow('regress_apitoken_backend', 'verify'), apitoken.allow('regress_apitoken_sender', 'usage')};
$_->safe_psql('postgres', 'CREATE EXTENSION apitoken; CREATE EXTENSION pgcrypto; ' . view_of_usage() . $allow) foreach $pub, $sub;
$pub->safe_psql('postgres', q{
	INSERT INTO apitoken.organizations (id, notify) VALUES ('acme', '{new_network}');
	INSERT INTO apitoken.users (id, name, notify) VALUES ('u', 'User', '{new_network}');
	INSERT INTO apitoken.users (id, name, email) VALUES ('boss', 'Boss', 'boss@acme.example');
	INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'developer'), ('acme', 'boss', 'admin');
	SELECT apitoken.import_token('crypt', crypt('legacy-key-0001', gen_salt('bf', 4)), 'legacy-k', label => 'slow', organization_id => 'acme')});
my %token = create_each($pub, {
	a => q{organization_id => 'acme'},
	b => q{organization_id => 'acme'},
	personal => q{user_id => 'u'},
	networks => q{organization_id => 'acme', allowed_networks => '{10.0.0.0/8}'},
	daily => q{user_id => 'u', quota => 3, quota_period => 'day'},
	rotated => q{user_id => 'u'},
});
my %id = map { $_ => $pub->safe_psql('postgres', "SELECT id FROM apitoken.tokens WHERE label = '$_'") } keys %token;

# subscribe DATABASE, WITH: the subscriber's database to the one of the same name
sub subscribe
{
	my ($db, $with) = @_;
	my $connection = $pub->connstr($db) =~ s/'/''/gr;
	$sub->safe_psql($db, "CREATE SUBSCRIPTION s_$db CONNECTION '$connection' PUBLICATION everything" . ($with // ''));
	return;
}
# applied DATABASE: all changes of the publisher are on the subscriber
sub applied { my ($db) = @_; $db //= 'postgres'; $pub->wait_for_catchup("s_$db"); return; }
# use_token NODE, LABEL, NUMBER, ARGUMENTS: accepted uses
sub use_token { my ($node, $label, @more) = @_; return use_text($node, $token{$label}, @more); }
sub findings { my ($node, $db) = @_; return answer($node, q{SELECT level || ': ' || message FROM apitoken.check_setup() WHERE subject = 'standby' AND level <> 'ok'}, database => $db // 'postgres'); }
# All numbers of the publisher's tokens are the same on both sides.
sub same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	applied();
	foreach my $table (@tables)
	{
		my $sql = "SELECT t::text FROM $table t WHERE token_id <> (SELECT id FROM apitoken_internal.token_records WHERE label = 'own') IS NOT FALSE ORDER BY 1";
		is($sub->safe_psql('postgres', $sql), $pub->safe_psql('postgres', $sql), "$name: the same $table");
	}
	return;
}

$pub->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
subscribe('postgres');
$sub->wait_for_subscription_sync($pub, 's_postgres');

# ----- use arrives, and comes back ----------------------------------------------------

is(use_token($sub, 'a', 3, q{, client_address => '192.0.2.7'}), 3, 'a token is used on the subscriber');
is(answer($sub, verdict($token{networks}), user => 'regress_apitoken_backend'), 'network_refused', 'and another one is refused');
is(stat_of($sub, 'pending, sent, last_send_at IS NULL'), '4|0|t', 'which is pending');
is(flush($sub), '', 'it is sent');
is(stat_of($sub, q{pending, sent, flushes, last_send_at > now() - interval '1 min', last_send_error IS NULL, last_flush_at IS NULL}), '0|4|0|t|t|t', 'nothing is pending, and nothing was written here');
is($pub->safe_psql('postgres', q{SELECT accepted, refused, host(last_used_from), last_used_at BETWEEN now() - interval '1 min' AND now() FROM used WHERE label = 'a'}),
	'3|0|192.0.2.7|t', 'and it is on the publisher, with time and address');
is($pub->safe_psql('postgres', "SELECT refusals FROM apitoken.token_usage_daily WHERE token_id = '$id{networks}'"), '{"network_refused": 1}', 'with refusals by verdict');
applied();
is(used($sub, 'a'), '3', 'and comes back');
is(answer($sub, q{SELECT message FROM apitoken.check_setup() WHERE subject = 'standby'}), 'this subscriber sends recorded use to the publisher', 'check_setup() says so');

# both sides at once
is(use_token($sub, 'a', 2, q{, client_address => '192.0.2.8'}), 2, 'used on the subscriber');
is(use_token($pub, 'a', 4, q{, client_address => '192.0.2.9'}), 4, 'then on the publisher');
is(flush($sub) . flush($pub), '', 'and both are written');
is($pub->safe_psql('postgres', q{SELECT accepted, host(last_used_from) FROM used WHERE label = 'a'}), '9|192.0.2.9', 'the counts add, the later use is the last one');

# what follows use: quotas, previous secrets, networks, organizations of personal tokens
is(use_token($sub, 'daily', 2), 2, 'a token with a quota is used on the subscriber');
is(flush($sub), '', 'sent');
is(answer($pub, "SELECT remaining FROM apitoken.verify('$token{daily}'); " . verdict($token{daily}), user => 'regress_apitoken_backend'), '0 quota_exceeded', 'its quota on the publisher counts what arrived');
$pub->safe_psql('postgres', "SELECT apitoken.regenerate_token('$id{rotated}')");
applied();
is(answer($sub, verdict($token{rotated}), user => 'regress_apitoken_backend'), 'unknown', 'a replaced secret is used on the subscriber');
is(use_token($sub, 'personal', 1, q{, client_address => '192.0.2.7', organization_id => 'acme'}), 1, 'a personal token is used in an organization');
is(use_token($sub, 'a', 1, q{, client_address => '198.51.100.7'}), 1, 'and another one from a new network');
is(flush($sub), '', 'sent');
applied();
foreach my $node ($pub, $sub)
{
	my $name = $node->name;
	is($node->safe_psql('postgres', "SELECT count(*) FROM apitoken.events WHERE action = 'reuse' AND token_id = '$id{rotated}'"), '1', "$name: one event of the replaced secret");
	is($node->safe_psql('postgres', "SELECT string_agg(network::text, ' ' ORDER BY network) FROM apitoken_internal.token_networks WHERE token_id = '$id{a}'"), '192.0.2.0/24 198.51.100.0/24', "$name: the networks");
	is($node->safe_psql('postgres', "SELECT count(*), count(next_attempt_at) FROM apitoken.notifications WHERE event = 'new_network'"), $node == $pub ? '1|1' : '1|0', "$name: one notification, which the publisher delivers");
	is($node->safe_psql('postgres', "SELECT organization_id FROM apitoken_internal.personal_token_use WHERE token_id = '$id{personal}'"), 'acme', "$name: the organization");
}
same('after all kinds of use');

# a user is forgotten on the publisher while use of theirs is on the subscriber
my $leaver = create($pub, 'leaver', q{user_id => 'leaver'});
my $leaver_id = $pub->safe_psql('postgres', q{SELECT id FROM apitoken.tokens WHERE label = 'leaver'});
applied();
is(answer($sub, verdict($leaver, q{, client_address => '192.0.2.99'}), user => 'regress_apitoken_backend'), 'valid', 'a person uses a token on the subscriber');
is($pub->safe_psql('postgres', q{SELECT apitoken.forget_user('leaver')}), 't', 'and is forgotten');
is(flush($sub), '', 'then the use is sent');
is($pub->safe_psql('postgres', "SELECT accepted, last_used_from IS NULL FROM apitoken.token_usage WHERE token_id = '$leaver_id'"), '1|t', 'it is counted without its address');

# an imported token with a slow digest: the fast one is not sent, but written here
is(answer($sub, verdict('legacy-key-0001'), user => 'regress_apitoken_backend'), 'valid', 'an imported token is used');
is(flush($sub), '', 'sent');
is($_->safe_psql('postgres', 'SELECT count(fast_digest) FROM apitoken_internal.foreign_digests'), $_ == $sub ? '1' : '0', $_->name . ': its fast digest') foreach $sub, $pub;
is(used($pub, 'slow'), '1', 'its use is counted');

# tokens that one side does not know
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION s_postgres DISABLE');
my $new = create($pub, 'new', q{organization_id => 'acme'});
is(answer($sub, verdict($new), user => 'regress_apitoken_backend'), 'unknown', 'a token whose row has not arrived is not verified');
my $own = create($sub, 'own', q{organization_id => 'acme'});
is(answer($sub, verdict($own), user => 'regress_apitoken_backend'), 'valid', 'one of the subscriber alone is');
is(flush($sub), '', 'and is sent');
is($_->safe_psql('postgres', q{SELECT count(*) FROM used WHERE label = 'own' AND accepted > 0}), '0', $_->name . ': which counts it nowhere') foreach $pub, $sub;
$sub->safe_psql('postgres', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'own'; ALTER SUBSCRIPTION s_postgres ENABLE});
applied();
is(answer($sub, verdict($new), user => 'regress_apitoken_backend'), 'valid', 'it is verified when its row has arrived');
is(flush($sub), '', 'and counted');
is(used($pub, 'new'), '1', 'on the publisher');

# more than one batch
my $many = $pub->safe_psql('postgres', q{SELECT string_agg(quote_literal((apitoken.create_token('many' || n, user_id => 'u')).token), ',') FROM generate_series(1, 2500) n});
applied();
is($sub->safe_psql('postgres', "SELECT count(*) FROM unnest(ARRAY[$many]) t, apitoken.verify(t) v WHERE v.valid"), '2500', 'many tokens are used');
is(flush($sub), '', 'sent');
is($pub->safe_psql('postgres', q{SELECT count(*), sum(accepted) FROM used WHERE label LIKE 'many%'}), '2500|2500', 'and counted');

# ----- both sides at once, by themselves ------------------------------------------------

# load NODE, LABEL: a process that uses the token 1,500 times; finish_load PROCESS
sub load
{
	my ($node, $label) = @_;
	my $out = '';
	my $file = PostgreSQL::Test::Utils::tempdir() . '/sql';
	append_to_file($file, "SELECT count(*) FILTER (WHERE (apitoken.verify('$token{$label}')).valid) FROM generate_series(1, 50), pg_sleep(0.05);\n" x 30);
	my $process = IPC::Run::start([ 'psql', '-XAtq', '-f', $file, '-d', $node->connstr('postgres') . ' user=regress_apitoken_backend' ], '<', \undef, '>', \$out, '2>&1');
	return { process => $process, out => \$out };
}
sub finish_load
{
	my ($load) = @_;
	$load->{process}->finish;
	my $sum = 0;
	$sum += /^\d+$/ ? $_ : die "load: $_" foreach split /\n/, ${ $load->{out} };
	return $sum;
}

my $expected = used($pub, 'a');
configure($_, 'apitoken.flush_interval', '100ms') foreach $pub, $sub;
$expected += finish_load($_) foreach map { load($_, 'a') } $pub, $sub, $pub, $sub;
configure($_, 'apitoken.flush_interval', '1h') foreach $pub, $sub;
is(flush($_), '', 'flushed: ' . $_->name) foreach $pub, $sub;
is(used($pub, 'a'), $expected, 'concurrent use on both: the sum is exact');
same('concurrent use on both');

# ----- the connection is cut ------------------------------------------------------------

foreach my $cut ('drop_request', 'drop_answer')
{
	$expected += use_token($sub, 'a', 5);
	mode($cut);
	like(flush($sub), qr/$lost/, "$cut: an error");
	is(stat_of($sub, 'pending, last_send_error, last_flush_error IS NULL'), '5|the connection was lost or timed out|t', "$cut: pending");
	is(used($pub, 'a'), $cut eq 'drop_answer' ? $expected : $expected - 5, "$cut: what the publisher has counted");
	$expected += use_token($sub, 'a', 2);
	like(findings($sub), qr/^warning: recorded use could not be sent: the connection was lost or timed out$/, "$cut: in check_setup()");
	mode('pass');
	is(flush($sub), '', "$cut: the connection is back");
	is(used($pub, 'a'), $expected, "$cut: all is counted once");
	is(stat_of($sub, 'pending, last_send_error IS NULL'), '0|t', "$cut: nothing is pending");
}
$expected += use_token($sub, 'a', 5);
mode('hold');
like(flush($sub), qr/$lost/, 'a request is held up');
mode('pass');
is(flush($sub), '', 'the next one is not');
release();
ok($pub->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'apitoken'}), 'the first one arrives');
is(used($pub, 'a'), $expected, 'and is not counted again');

# ----- crashes and restarts ---------------------------------------------------------------

$expected = survives_crashes($sub, $pub, 'a', $token{a});
same('after crashes of both');

# ----- failures ---------------------------------------------------------------------------

# a wrong password
$pub->safe_psql('postgres', q{SET password_encryption = 'scram-sha-256'; CREATE ROLE regress_apitoken_secret LOGIN PASSWORD 'secret-of-the-sender'; SELECT apitoken.allow('regress_apitoken_secret', 'usage')});
my $hba = slurp_file($pub->data_dir . '/pg_hba.conf');
unlink $pub->data_dir . '/pg_hba.conf';
append_to_file($pub->data_dir . '/pg_hba.conf', "local all regress_apitoken_secret scram-sha-256\n$hba");
$pub->reload;
my $passfile = way() . '/passfile';
append_to_file($passfile, "*:*:*:*:secret-that-is-wrong\n");
chmod 0600, $passfile or die;
configure($sub, 'apitoken.primary_conninfo', $conninfo =~ s/_sender/_secret/r . " passfile=$passfile");
$expected += use_token($sub, 'a', 1);
my $mark = log_mark($sub);
like(flush($sub), qr/could not send token usage: could not connect: FATAL: password authentication failed/, 'a wrong password');
flush($sub);
is(in_log($sub, qr/WARNING:  could not send token usage of database "postgres": could not connect/, $mark), 1, 'is logged once');
unlike(log_since($sub, $mark), qr/secret-/, 'without the password');

# servers that the use must not go to: itself, another server with a database of this name
configure($sub, 'apitoken.primary_conninfo', 'host=' . $sub->host . " port=$sub_port user=regress_apitoken_sender");
$mark = log_mark($sub);
like(flush($sub), qr/"apitoken.primary_conninfo" does not lead to the publisher/, 'not to itself');
like(log_since($sub, $mark), qr/HINT:  Name the publisher\./, 'with a hint');
my $foreign = start_node('foreign', init => [ force_initdb => 1, allows_streaming => 'logical' ], conf => $settings);
$foreign->safe_psql('postgres', q{CREATE EXTENSION apitoken; CREATE ROLE regress_apitoken_sender LOGIN; SELECT apitoken.allow('regress_apitoken_sender', 'usage')});
configure($sub, 'apitoken.primary_conninfo', 'host=' . $foreign->host . ' port=' . $foreign->port . ' user=regress_apitoken_sender');
like(flush($sub), qr/"apitoken.primary_conninfo" does not lead to the publisher/, 'not to another server');
$foreign->safe_psql('postgres', q{CREATE DATABASE second});
$foreign->safe_psql('second', q{SELECT pg_create_logical_replication_slot('s_postgres', 'pgoutput')});
like(flush($sub), qr/"apitoken.primary_conninfo" does not lead to the publisher/, 'nor to one that publishes another database');
$foreign->stop;
is($sub->safe_psql('postgres', q{SELECT count(*) FROM apitoken.stats WHERE pending = 1}), '1', 'it is still pending');
configure($sub, 'apitoken.primary_conninfo', $conninfo);
$mark = log_mark($sub);
is(flush($sub), '', 'to the publisher');
is(in_log($sub, qr/LOG:  resumed sending token usage of database "postgres"/, $mark), 1, 'which is logged');
is(used($pub, 'a'), $expected, 'counted once');

# a subscriber that sends counts for nobody
my $batch = sprintf '%012x', int(time * 1000);
$batch =~ s/(.{8})(.{4})/$1-$2-7000-8000-000000000001/;
is(answer($sub, "SELECT apitoken.record_usage('11111111-1111-4111-8111-111111111111', '$batch', '[]')", user => 'regress_apitoken_sender'), '[ERROR: 55000]', 'a subscriber that sends counts no use of others');

# ----- which databases send -----------------------------------------------------------------

# one that is no subscriber, on the same server
$sub->safe_psql('postgres', 'CREATE DATABASE alone');
$sub->safe_psql('alone', q{CREATE EXTENSION apitoken; SELECT apitoken.allow('regress_apitoken_backend', 'verify'); } . view_of_usage());
my $alone = create($sub, 'alone', q{user_id => 'u'}, database => 'alone');
is(answer($sub, verdict($alone) . 'SELECT apitoken.flush_usage(); SELECT accepted FROM used', database => 'alone'), 'valid 1', 'a database without a subscription writes');
is(findings($sub, 'alone'), '', 'check_setup() is content');

# A circle: each is a subscriber of the other.  (The way back is not enabled, because
# without the origin of changes, which 16 has, they would go on forever.)
$_->safe_psql('postgres', 'CREATE DATABASE circle') foreach $pub, $sub;
$_->safe_psql('circle', q{CREATE EXTENSION apitoken; SELECT apitoken.allow('regress_apitoken_backend', 'verify'), apitoken.allow('regress_apitoken_sender', 'usage');
	CREATE PUBLICATION everything FOR ALL TABLES; } . view_of_usage()) foreach $pub, $sub;
my $round = create($pub, 'round', q{user_id => 'u'}, database => 'circle');
subscribe('circle');
$sub->wait_for_subscription_sync($pub, 's_circle', 'circle');
my $back = $sub->connstr('circle') =~ s/'/''/gr;
$pub->safe_psql('circle', "CREATE SUBSCRIPTION back CONNECTION '$back' PUBLICATION everything WITH (enabled = false, copy_data = false)");
configure($pub, 'apitoken.primary_conninfo', 'host=' . $sub->host . " port=$sub_port user=regress_apitoken_sender");
configure($pub, 'apitoken.subscriber_sends', 'on');
is(answer($_, verdict($round), database => 'circle', user => 'regress_apitoken_backend'), 'valid', 'circle: used on the ' . $_->name) foreach $pub, $sub;
like(flush($_, 'circle'), qr/could not send token usage: server does not count token usage, because it sends its own to the publisher/, 'circle: refused') foreach $pub, $sub;
is($_->safe_psql('circle', 'SELECT pending FROM apitoken.stats'), '1', 'circle: pending') foreach $pub, $sub;
$expected += use_token($pub, 'a', 1);
is(flush($pub), '', 'circle: another database of the publisher, which is no subscriber,');
is(used($pub, 'a'), $expected, 'writes');
$pub->safe_psql('circle', 'DROP SUBSCRIPTION back');
is(flush($_, 'circle'), '', 'circle: broken') foreach $pub, $sub;
is($pub->safe_psql('circle', 'SELECT accepted FROM used'), '2', 'circle: then all is counted');
configure($pub, 'apitoken.subscriber_sends', 'off');
configure($pub, 'apitoken.primary_conninfo', '');

# two subscriptions that bring use: there is no publisher that knows all
$pub->safe_psql('circle', 'CREATE PUBLICATION again FOR TABLE apitoken.token_usage');
$sub->safe_psql('circle', "CREATE SUBSCRIPTION other CONNECTION '" . $pub->connstr('circle') =~ s/'/''/gr . q{' PUBLICATION again WITH (enabled = false, copy_data = false)});
is(findings($sub, 'circle'), 'warning: recorded use is written here, and not sent, because several subscriptions change apitoken.token_usage: 2', 'several subscriptions');
$sub->safe_psql('circle', 'DROP SUBSCRIPTION other');
is(findings($sub, 'circle'), '', 'and one again');

# ----- what check_setup() says without one of the settings ---------------------------------------

configure($sub, 'apitoken.primary_conninfo', '');
is(findings($sub), 'warning: this subscriber does not send recorded use to the publisher', 'without a connection');
configure($sub, 'apitoken.primary_conninfo', $conninfo);
is(findings($sub), '', 'with one');
configure($sub, 'apitoken.subscriber_sends', 'off');
is(findings($sub), 'notice: this server is a subscriber: the publisher does not know of the use here, and changes of the publisher replace it', 'switched off');
configure($sub, 'apitoken.subscriber_sends', 'on');
is(findings($sub), '', 'switched on');

# ----- switched on and off under load --------------------------------------------------------------

# Without the replication in between, which would replace what is written here.  Each
# use is counted on one side or the other.
applied();
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION s_postgres DISABLE');
my $written = used($sub, 'a');
is($written, $expected, 'the same number on both');
configure($sub, 'apitoken.flush_interval', '100ms');
my @loads = map { load($sub, 'a') } 1 .. 2;
foreach my $n (1 .. 8)
{
	configure($sub, 'apitoken.subscriber_sends', $n % 2 ? 'off' : 'on');
	mode($n % 4 < 2 ? 'pass' : 'drop_request');
	select undef, undef, undef, 0.25;
}
mode('pass');
my $load = 0;
$load += finish_load($_) foreach @loads;
configure($sub, 'apitoken.flush_interval', '1h');
is(flush($sub), '', 'switched on and off: flushed');
is(stat_of($sub, 'pending'), '0', 'switched on and off: nothing is pending');
my ($here, $there) = (used($sub, 'a') - $written, used($pub, 'a') - $expected);
is($here + $there, $load, "switched on and off: each use is counted once");
ok($here > 0 && $there > 0, "on either side: $here here, $there there");
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION s_postgres ENABLE');
$expected = used($pub, 'a') + use_token($sub, 'a', 1);
is(flush($sub), '', 'the replication goes on');
applied();
is(used($_, 'a'), $expected, $_->name . ': the number of the publisher') foreach $pub, $sub;

# ----- the subscription is dropped, with a batch on its way --------------------------------------

my $number = 0;
foreach my $case ([ 'counted, and back', 'drop_answer', 1 ], [ 'counted, and not back', 'drop_answer', 0 ], [ 'not counted', 'drop_request', 0 ])
{
	my ($name, $cut, $comes_back) = @$case;
	my $db = 'cut' . ++$number;
	$_->safe_psql('postgres', "CREATE DATABASE $db") foreach $pub, $sub;
	$_->safe_psql($db, 'CREATE EXTENSION apitoken; ' . view_of_usage()) foreach $pub, $sub;
	$pub->safe_psql($db, q{SELECT apitoken.allow('regress_apitoken_sender', 'usage'); CREATE PUBLICATION everything FOR ALL TABLES});
	my $of = create($pub, 'cut', q{user_id => 'u'}, database => $db);
	my $uses = sub { my ($count) = @_; return answer($sub, "SELECT count(*) FILTER (WHERE (apitoken.verify('$of')).valid) FROM generate_series(1, $count)", database => $db); };
	subscribe($db);
	$sub->wait_for_subscription_sync($pub, "s_$db", $db);
	is($uses->(5), '5', "dropped, $name: used");
	$sub->safe_psql($db, "ALTER SUBSCRIPTION s_$db DISABLE") if !$comes_back;
	mode($cut);
	like(flush($sub, $db), qr/$lost/, "dropped, $name: an error");
	mode('pass');
	is($uses->(2), '2', "dropped, $name: used again");
	applied($db) if $comes_back;
	$sub->safe_psql($db, "DROP SUBSCRIPTION s_$db");
	is(flush($sub, $db), '', "dropped, $name: it writes its use itself");
	is(used($sub, 'cut', $db), '7', "dropped, $name: once");
	is($sub->safe_psql($db, 'SELECT pending, last_flush_error IS NULL, last_send_error IS NULL FROM apitoken.stats'), '0|t|t', "dropped, $name: nothing is pending");
}

# ----- idle tokens ----------------------------------------------------------------------------------

my $idle = q{SELECT tokens_revoked, tokens_spared, problems FROM apitoken.run_maintenance()};
$pub->safe_psql('postgres', q{
	SELECT apitoken.create_token('idle', organization_id => 'acme');
	UPDATE apitoken.organizations SET idle_timeout = '1 hour' WHERE id = 'acme';
	SET session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET created_at = now() - interval '1 year', updated_at = now() - interval '1 year' WHERE label = 'idle';
	UPDATE apitoken.token_usage SET last_used_at = now() - interval '1 year' WHERE token_id = (SELECT id FROM apitoken_internal.token_records WHERE label = 'idle')});
like(answer($pub, $idle), qr/^0\|1\|\{"idle tokens are not revoked yet, because they may have been used: there was a logical subscriber"\}$/, 'the publisher revokes no token as idle');
is(findings($pub), 'notice: a logical subscriber may use tokens without the knowledge of this server: no token is revoked as idle while its replication slot exists', 'and check_setup() tells');
applied();
like(answer($sub, $idle), qr/^0\|1\|\{"idle tokens are not revoked yet, because they may have been used: this server sends its use to another one"\}$/, 'nor does the subscriber');
is(stat_of($sub, 'incomplete_because'), 'this server sends its use to another one', 'which stats tells');
# it has crashed above, which a restart without the file forgets
is(flush($pub), '', 'nothing is left in memory');
$pub->stop;
unlink $pub->data_dir . '/pg_stat/apitoken.usage';
$pub->start;
is(answer($pub, "SET apitoken.standbys_verify = off; SELECT tokens_revoked, tokens_spared FROM apitoken.run_maintenance()"), '1|0', 'the publisher does if it is told that nobody else verifies');
applied();

# ----- a standby of the subscriber, and its promotion --------------------------------------------------

$expected = used($pub, 'b') || 0;
$sub->backup('base');
my $heir = start_standby($sub, 'heir');
$sub->wait_for_catchup($heir, 'replay', $sub->lsn('insert'));
$expected += use_token($heir, 'b', 3);
is(flush($heir), '', 'a standby of the subscriber sends to the publisher');
is(used($pub, 'b'), $expected, 'which counts it');
configure($heir, 'apitoken.primary_conninfo', 'host=' . $sub->host . " port=$sub_port user=regress_apitoken_sender");
$expected += use_token($heir, 'b', 3);
like(flush($heir), qr/"apitoken.primary_conninfo" does not lead to the publisher/, 'not to the subscriber');
configure($heir, 'apitoken.primary_conninfo', $conninfo);
$expected += use_token($sub, 'b', 4);
mode('drop_answer');
like(flush($_), qr/$lost/, 'counted, without an answer: ' . $_->name) foreach $heir, $sub;
mode('pass');
is(flush($sub), '', 'the subscriber sends');
applied();
$sub->wait_for_catchup($heir, 'replay', $sub->lsn('insert'));
$sub->stop;
$heir->promote;
$expected += use_token($heir, 'b', 2);
is(flush($heir), '', 'promoted, it is the subscriber that sends');
is(used($pub, 'b'), $expected, 'all is counted once');
applied();
is(used($heir, 'b'), $expected, 'and comes back');

# ----- another server becomes the publisher ------------------------------------------------------------------

$pub->backup('base');
my $next = start_standby($pub, 'next');
$pub->wait_for_catchup($next, 'replay', $pub->lsn('insert'));
# a batch that was counted and replicated, and use that was not sent
$expected += use_token($heir, 'b', 5);
mode('drop_answer');
like(flush($heir), qr/$lost/, 'counted, without an answer');
mode('pass');
$expected += use_token($heir, 'b', 1);
applied();
$pub->wait_for_catchup($next, 'replay', $pub->lsn('insert'));
$heir->safe_psql('postgres', 'ALTER SUBSCRIPTION s_postgres DISABLE');
$heir->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'logical replication worker' AND datname = 'postgres'}) or die;
$pub->stop;
stop_program('way');
$next->promote;
configure($heir, 'apitoken.primary_conninfo', 'host=' . $next->host . ' port=' . $next->port . ' user=regress_apitoken_sender');
like(flush($heir), qr/"apitoken.primary_conninfo" does not lead to the publisher/, 'a new publisher does not have the slot yet');
$next->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('s_postgres', 'pgoutput')});
$heir->safe_psql('postgres', "ALTER SUBSCRIPTION s_postgres CONNECTION '" . $next->connstr('postgres') =~ s/'/''/gr . q{'; ALTER SUBSCRIPTION s_postgres ENABLE});
is(flush($heir), '', 'when it has, the use is sent');
is(used($next, 'b'), $expected, 'and all of it is counted once');
$next->wait_for_catchup('s_postgres');
is(used($heir, 'b'), $expected, 'and comes back');

# ----- days without a publisher ------------------------------------------------------------------------------

SKIP:
{
	my $place = PostgreSQL::Test::Utils::tempdir_short();
	skip 'no compiler', 1 if !build_clock("$place/clock.so");
	configure($heir, 'apitoken.primary_conninfo', $conninfo);
	configure($heir, 'apitoken.flush_interval', '100ms');
	$heir->stop;
	{
		local $ENV{LD_PRELOAD} = "$place/clock.so";
		local $ENV{APITOKEN_DAYS} = "$place/days";
		$heir->start;
	}
	my $days_used = 0;
	foreach my $days (reverse 0 .. 9)
	{
		append_to_file("$place/new", $days);
		rename "$place/new", "$place/days" or die;
		$days_used += use_token($heir, 'b', 1);
	}
	is($days_used, 10, 'used on ten days');
	ok($heir->poll_query_until('postgres', 'SELECT entries <= 4 FROM apitoken.stats'), 'without a publisher, days do not pile up');
	is(stat_of($heir, 'pending, dropped'), '10|0', 'but nothing is lost');
	configure($heir, 'apitoken.primary_conninfo', 'host=' . $next->host . ' port=' . $next->port . ' user=regress_apitoken_sender');
	ok($next->poll_query_until('postgres', "SELECT accepted = $expected + 10 FROM used WHERE label = 'b'"), 'and it arrives');
}

$_->stop foreach $heir, $next;
no_crash($_, killed => 1) foreach $pub, $sub;
no_crash($_) foreach $heir, $next;
done_testing();
