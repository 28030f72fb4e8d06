# The event new_network: the first use of a token from a network becomes a
# notification, however the transaction ended; what is no news; how many; a restart,
# failed flushes, full memory; retention, forget_user(), a dump; what it costs.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# written only when the test says so
my $node = start_node('network', preload => 'shared', conf => q{
	apitoken.flush_interval = '1h'
	apitoken.usage_slots = 1024
	apitoken.usage_retention = '10d'
	max_prepared_transactions = 2
	log_statement = none
});
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_job LOGIN;
	CREATE ROLE regress_apitoken_monitor LOGIN;
	SELECT apitoken.allow('regress_apitoken_backend', 'use', 'manage', 'verify', 'act');
	SELECT apitoken.allow('regress_apitoken_job', 'directory');
	SELECT apitoken.allow('regress_apitoken_monitor', 'monitor');
	INSERT INTO apitoken.organizations (id, name, notify) VALUES ('acme', 'Acme Corp.', '{revoke,new_network}'), ('quiet', 'Quiet', NULL), ('usual', 'Usual', DEFAULT);
	INSERT INTO apitoken.users (id, email, notify) VALUES ('ada', 'ada@acme.example', '{new_network}'), ('bob', 'bob@acme.example', '{create,revoke}'), ('cid', NULL, '{new_network}'), ('eve', 'eve@usual.example', DEFAULT);
	INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('acme', 'bob', 'developer'), ('quiet', 'eve', 'admin'), ('usual', 'eve', 'admin');
});
run_on($node, user => 'regress_apitoken_backend');
sub flush { $node->safe_psql('postgres', 'SELECT apitoken.flush_usage()'); return; }
sub owner { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub from { my ($token, $address) = @_; return verdict($token, ", client_address => '$address'"); }
# the news since the last call: label, network and recipients, in the order of the uses
sub told
{
	my $sql = q{SELECT coalesce(string_agg(concat_ws(' ', payload->>'label', payload->>'client_address', recipients::text), ', ' ORDER BY created_at, id), 'nothing')
		FROM apitoken.notifications WHERE event = 'new_network'; DELETE FROM apitoken.notifications;};
	flush();
	return owner($sql);
}
sub networks
{
	my ($label) = @_;
	return owner(qq{SELECT coalesce(string_agg(n.network::text, ' ' ORDER BY n.network), 'none') FROM apitoken_internal.token_networks n
		JOIN apitoken_internal.token_records r ON r.id = n.token_id WHERE r.label = '$label'});
}
my $written = 'SELECT count(*) FROM apitoken_internal.token_networks';

# ----- what is news --------------------------------------------------------------------

my $deploy = create($node, 'deploy', q{organization_id => 'acme', role => 'developer'});
owner('DELETE FROM apitoken.notifications');
is(run(from($deploy, '192.0.2.7')), 'valid', 'the first use');
is(owner($written), '0', 'writes nothing itself');
is(told(), 'nothing', 'the first network of a token is no news');
is(networks('deploy'), '192.0.2.0/24', 'it is remembered');
run(from($deploy, '192.0.2.200'));
is(told(), 'nothing', 'an address of the same network');
is(run(from($deploy, '198.51.100.1') . from($deploy, '198.51.100.2')), 'valid valid', 'another network, twice');
is(told(), 'deploy 198.51.100.0/24 {ada@acme.example}', 'is told once');
run(from($deploy, '198.51.100.3') . from($deploy, '192.0.2.1'));
is(told(), 'nothing', 'and no more');
is(run(from($deploy, '2001:db8:1:2::3') . from($deploy, '2001:db8:1:ffff::1') . from($deploy, '2001:db8:2::1')), 'valid valid valid', 'IPv6');
is(told(), 'deploy 2001:db8:1::/48 {ada@acme.example}, deploy 2001:db8:2::/48 {ada@acme.example}', 'by a /48');
run(from($deploy, '::ffff:192.0.2.9'));
is(told(), 'nothing', 'an IPv4-mapped address is the IPv4 address');
run(from($deploy, '::ffff:203.0.113.5'));
is(told(), 'deploy 203.0.113.0/24 {ada@acme.example}', 'in a network of IPv4');
is(run(verdict($deploy)), 'valid', 'a Unix socket');
is(told(), 'nothing', 'has no network');
is(networks('deploy'), '192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8:1::/48 2001:db8:2::/48', 'all that are remembered');
run(from($deploy, '100.64.0.1/10'));
is(told(), 'deploy 100.64.0.0/10 {ada@acme.example}', 'a network in place of an address stays a network');

# what the notification says
run(from($deploy, '100.1.1.1'));
flush();
is(owner(q{SELECT concat_ws('|', n.organization_id, n.payload->>'organization_name', n.payload->>'masked' = r.masked, n.payload->>'actor', (n.payload->>'at')::timestamptz = n.created_at,
		n.created_at = u.last_used_at, n.next_attempt_at = n.created_at, n.payload::text ~ '_[0-9A-Za-z]{71}')
	FROM apitoken.notifications n JOIN apitoken_internal.token_records r ON r.id = n.token_id JOIN apitoken.token_usage u USING (token_id)}),
	'acme|Acme Corp.|t|t|t|t|f', 'the token and the time of the use, without the secret');
is(owner(q{SELECT event, payload->>'client_address' FROM apitoken.claim_notifications(); SELECT apitoken.notification_delivered(id) FROM apitoken.notifications}), "new_network|100.1.1.0/24\nt", 'a mailer gets it');
is(owner(q{SELECT count(*) FROM apitoken.events WHERE action = 'new_network'}), '0', 'it is no event of the audit');
is(told(), 'deploy 100.1.1.0/24 {ada@acme.example}', 'once');

# ----- however it is used ----------------------------------------------------------------

my $n = 0;
sub next_network { return '10.0.' . ++$n; }
sub by_setting { my ($token, $address) = @_; return "SET LOCAL apitoken.client_address = '$address'; SET LOCAL apitoken.token = '$token'; SELECT apitoken.whoami() IS NOT NULL;"; }
my %ways = (
	'READ ONLY' => sub { 'BEGIN READ ONLY; ' . from($_[0], $_[1]) . 'COMMIT;' },
	'rolled back' => sub { 'BEGIN; ' . from($_[0], $_[1]) . 'ROLLBACK;' },
	'SERIALIZABLE READ ONLY' => sub { 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; ' . from($_[0], $_[1]) . 'COMMIT;' },
	'a savepoint' => sub { 'BEGIN; SAVEPOINT s; ' . from($_[0], $_[1]) . 'ROLLBACK TO s; COMMIT;' },
	'an error after it' => sub { 'BEGIN; ' . from($_[0], $_[1]) . 'SELECT 1/0;' },
	'prepared, rolled back' => sub { 'BEGIN; ' . from($_[0], $_[1]) . q{PREPARE TRANSACTION 'x'; ROLLBACK PREPARED 'x';} },
	'authenticate()' => sub { "BEGIN; SET LOCAL apitoken.client_address = '$_[1]'; SELECT valid FROM apitoken.authenticate('$_[0]'); COMMIT;" },
	'the setting' => sub { 'BEGIN; ' . by_setting(@_) . 'ROLLBACK;' },
	'introspect()' => sub { "BEGIN; SET LOCAL apitoken.client_address = '$_[1]'; SELECT apitoken.introspect('$_[0]')->>'active'; COMMIT;" },
	'verify_all()' => sub { "BEGIN; SET LOCAL apitoken.client_address = '$_[1]'; SELECT valid FROM apitoken.verify_all(ARRAY['$_[0]']); COMMIT;" },
	'a previous secret' => sub { from($_[0], $_[1]) },
);
foreach my $way (sort keys %ways)
{
	my $token = create($node, $way, q{organization_id => 'acme', role => 'developer'});
	run(from($token, '192.0.2.1'));
	told();
	owner(qq{SELECT apitoken.regenerate_token(id, overlap => '1 day') FROM apitoken.tokens WHERE label = '$way'}) if $way =~ /previous/;
	my $network = next_network();
	my $answer = run($ways{$way}->($token, "$network.1"));
	like($answer, qr/^(valid|t|true)\b/, "$way: accepted");
	is(told(), "$way $network.0/24 {ada\@acme.example}", "$way: told");
}

my $limited = create($node, 'limited', q{organization_id => 'acme', role => 'developer', rate_limit_per_minute => 1});
my $bound = create($node, 'bound', q{organization_id => 'acme', role => 'developer', allowed_networks => '{192.0.2.0/24}'});
my $old = create($node, 'old', q{organization_id => 'acme', role => 'developer'});
is(run(from($limited, '192.0.2.1') . from($bound, '192.0.2.1') . from($old, '192.0.2.1')), 'valid valid valid', 'three tokens');
owner(q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'old'});
told();
my %others = (
	'a refused permission' => [ verdict($deploy, q{, 'a:b', 'usual', client_address => '10.9.1.1'}), 'permission_refused' ],
	'a network that is not allowed' => [ from($bound, '10.9.2.1'), 'network_refused' ],
	'a rate limit' => [ from($limited, '10.9.3.1'), 'rate_limited' ],
	'a revoked token' => [ from($old, '10.9.4.1'), 'revoked' ],
	'a guess' => [ from($deploy =~ s/.{8}$/AAAAAAAA/r, '10.9.5.1'), 'malformed' ],
	'explain_verify()' => [ "SELECT bool_and(passed) FROM apitoken.explain_verify('$deploy', client_address => '10.9.6.1');", 't' ],
	'the user' => [ "BEGIN; SET LOCAL apitoken.client_address = '10.9.7.1'; SELECT apitoken.act_as('ada'); SELECT apitoken.can('a:b', 'acme'); COMMIT;", 'ada t' ],
);
foreach my $other (sort keys %others)
{
	is(run($others{$other}[0]), $others{$other}[1], "$other: answered");
	is(told(), 'nothing', "$other: is not told");
	is(owner(q{SELECT count(*) FROM apitoken_internal.token_networks WHERE network << '10.9.0.0/16'}), '0', "$other: nor remembered");
}

# ----- who wants to be told ----------------------------------------------------------------

foreach my $owner ([ 'quiet', q{organization_id => 'quiet', role => 'developer'} ], [ 'usual', q{organization_id => 'usual', role => 'developer'} ], [ 'phone', q{user_id => 'bob'} ])
{
	my $token = create($node, @$owner);
	run(from($token, '192.0.2.1') . from($token, '10.8.1.1'));
	is(told() . ', ' . networks($owner->[0]), 'nothing, none', "$owner->[0]: not asked for, and not recorded");
}
my $laptop = create($node, 'laptop', q{user_id => 'ada'});
run(from($laptop, '192.0.2.1') . verdict($laptop, q{, 'a:b', 'quiet', client_address => '10.8.2.1'}) . verdict($laptop, q{, 'a:b', 'acme', client_address => '10.8.3.1'}));
is(told(), 'laptop 10.8.3.0/24 {ada@acme.example}', "a personal token: its user is told, not the organization's members");
my $silent = create($node, 'silent', q{user_id => 'cid'});
run(from($silent, '192.0.2.1') . from($silent, '10.8.4.1'));
is(told() . ', ' . networks('silent'), 'nothing, 10.8.4.0/24 192.0.2.0/24', 'a user without an address');

# news begins when it is switched on: the first network after that is none
my $late = create($node, 'late', q{organization_id => 'usual', role => 'developer'});
run(from($late, '192.0.2.1'));
told();
owner(q{UPDATE apitoken.organizations SET notify = '{new_network}' WHERE id = 'usual'});
run(from($late, '10.8.5.1'));
is(told(), 'nothing', 'the first use after new_network was switched on');
run(from($late, '192.0.2.1'));
is(told(), 'late 192.0.2.0/24 {eve@usual.example}', 'what was before is not known');
run(from($late, '10.8.6.1'));
owner(q{UPDATE apitoken.organizations SET notify = '{revoke}' WHERE id = 'usual'});
is(told() . ', ' . networks('late'), 'nothing, 10.8.5.0/24 10.8.6.0/24 192.0.2.0/24', 'switched off before the flush');
owner(q{UPDATE apitoken.organizations SET notify = '{new_network}' WHERE id = 'usual'});
# the outbox is off: networks are remembered, so that it does not begin with old news
configure($node, 'apitoken.notifications', 'off');
run(from($late, '10.8.7.1'));
is(told() . ', ' . networks('late'), 'nothing, 10.8.5.0/24 10.8.6.0/24 10.8.7.0/24 192.0.2.0/24', 'without the outbox');
configure($node, 'apitoken.notifications', 'on');
run(from($late, '10.8.7.1'));
is(told(), 'nothing', 'with it again');
# an odd row: a long list of networks makes the server compress the others
owner(q{UPDATE apitoken.organizations SET allowed_networks = '{0.0.0.0/0}', name = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3000) i) WHERE id = 'usual'});
run(from($late, '10.8.8.1'));
is(told(), 'late 10.8.8.0/24 {eve@usual.example}', 'a row that is stored elsewhere');

is(run(q{SELECT array_agg(e ORDER BY e) FROM unnest('{create,regenerate,suspend,revoke,expire,reuse,leak,new_network}'::text[]) e WHERE apitoken_internal.check_notify(ARRAY[e]);}, user => 'postgres') =~ s/,/ /gr, '{create expire leak new_network regenerate reuse revoke suspend}', 'the events');
ok(-s "examples/mailer/templates/$_.txt", "the mailer has a text for $_") foreach qw(create regenerate suspend revoke expire reuse leak new_network);

# ----- nobody else sees it ---------------------------------------------------------------

is(run(qq{BEGIN; SELECT apitoken.act_as('ada'); $_; COMMIT;}), 'ada [ERROR: 42501]', "not directly: $_") foreach
	'SELECT * FROM apitoken_internal.token_networks', 'DELETE FROM apitoken_internal.token_networks', q{INSERT INTO apitoken_internal.token_networks VALUES (gen_random_uuid(), '10.0.0.0/8', now(), now())};
is(run_as('regress_apitoken_monitor', 'SELECT * FROM apitoken_internal.token_networks'), '[ERROR: 42501]', 'nor by another capability');

# ----- how many ----------------------------------------------------------------------------

sub from_many { my ($token, $first, $last) = @_; return "SELECT count(*) FROM generate_series($first, $last) i, LATERAL apitoken.verify('$token', client_address => ('10.' || i / 256 || '.' || i % 256 || '.1')::inet) v WHERE v.valid;"; }
my $roaming = create($node, 'roaming', q{organization_id => 'acme', role => 'developer'});
told();
is(run(from_many($roaming, 1, 30)), '30', 'from 30 networks');
is(scalar(my @first = split(/, /, told())), 29, 'all but the first are told');
is(run(from_many($roaming, 31, 40)), '10', 'from 10 more');
is(scalar(my @second = split(/, /, told())), 2, 'up to 32 are');
like("@second", qr{^roaming 10\.0\.31\.0/24 .*10\.0\.32\.0/24}, 'those that came first');
is(run(from($roaming, '192.0.2.1')), 'valid', 'and one more');
is(told(), 'nothing', 'is not');
is(scalar(split(/ /, networks('roaming'))), 32, 'no more are remembered');
owner(q{UPDATE apitoken_internal.token_networks SET last_seen_at = now() - interval '11 days' WHERE network = '10.0.5.0/24'; SELECT apitoken.run_maintenance()});
run(from($roaming, '192.0.2.1'));
is(told(), 'roaming 192.0.2.0/24 {ada@acme.example}', 'until the retention removes one');
# full memory: what does not fit is dropped and counted, and no use is
my $uses = owner(q{SELECT sum(accepted) FROM apitoken.token_usage});
my $fits = run(q{SELECT dropped FROM apitoken.stats;}, user => 'postgres');
my $spread = create($node, 'spread', q{organization_id => 'acme', role => 'developer'});
is(run(from_many($spread, 1000, 3999)), '3000', 'more networks than there is room for');
flush();
cmp_ok(run(q{SELECT dropped FROM apitoken.stats;}, user => 'postgres') - $fits, '>', 1000, 'what does not fit is counted');
is(owner(q{SELECT sum(accepted) FROM apitoken.token_usage}), $uses + 3000, 'and takes no room of usage');
is(scalar(split(/, /, told())), 31, 'the news is not more');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM apitoken.stats WHERE entries > 0}), 'the launcher makes room');

# ----- what it costs ------------------------------------------------------------------------

# the scans of all tables, catalogs included, that a verification makes in a session that has made others
sub scans
{
	my ($token) = @_;
	return owner(qq{
		DO \$\$
		DECLARE
			total bigint; before bigint; without bigint; made bigint;
		BEGIN
			FOR i IN 1 .. 12 LOOP
				IF i > 6 THEN
					PERFORM apitoken.verify('$token', client_address => '192.0.2.1');
				END IF;
				SELECT sum(seq_scan + coalesce(idx_scan, 0)) INTO total FROM pg_stat_xact_all_tables;
				IF i = 6 THEN
					without := total - before;
				END IF;
				made := total - before;
				before := total;
			END LOOP;
			PERFORM set_config('my.scans', (made - without)::text, false);
		END\$\$;
		SELECT current_setting('my.scans')});
}
my ($plain, $telling) = map { create($node, "cost of $_", qq{organization_id => '$_', role => 'developer'}) } 'quiet', 'acme';
my ($mine, $his) = map { create($node, "cost of $_", qq{user_id => '$_'}) } 'ada', 'bob';
is(scans($plain), '2', 'a verification reads the token and its organization');
is(scans($telling), '2', 'and no more where news is wanted');
is(scans($his), '2', 'or the token and its user');
is(scans($mine), '2', 'and no more, either');
told();

# ----- lost is nothing ------------------------------------------------------------------------

run(from($deploy, '10.7.1.1'));
$node->restart;
is(told(), 'deploy 10.7.1.0/24 {ada@acme.example}', 'a restart keeps it');
owner(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$;
	CREATE TRIGGER refuse BEFORE INSERT ON apitoken.notifications FOR EACH ROW EXECUTE FUNCTION refuse()});
$uses = owner(q{SELECT sum(accepted) FROM apitoken.token_usage});
run(from($deploy, '10.7.2.1'));
is(run_as('postgres', 'SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'an outbox that cannot be written');
is(owner(q{SELECT sum(accepted) FROM apitoken.token_usage}), $uses + 1, 'does not prevent that use is written');
owner('DROP TRIGGER refuse ON apitoken.notifications');
is(told(), 'deploy 10.7.2.0/24 {ada@acme.example}', 'and is written later');
# very many at once, as when a gateway moves: a flush has only seconds, and must not try all of them together for ever
# (both networks of all of them have room in shared memory)
owner(q{INSERT INTO apitoken.organizations (id, notify) VALUES ('moving', '{new_network}');
	INSERT INTO apitoken.users (id, email) VALUES ('max', 'max@moving.example');
	INSERT INTO apitoken.memberships VALUES ('moving', 'max', 'admin');
	CREATE TABLE moving AS SELECT t.id, t.token FROM generate_series(1, 250) i, apitoken.create_token('moving ' || i, 'moving') t;
	GRANT SELECT ON moving TO regress_apitoken_backend;
	CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.016); RETURN new; END$$;
	CREATE TRIGGER be_slow BEFORE INSERT ON apitoken.notifications FOR EACH ROW EXECUTE FUNCTION be_slow()});
sub move { my ($address) = @_; return run("SELECT count(*) FROM moving m, LATERAL apitoken.verify(m.token, client_address => '$address') v WHERE v.valid;"); }
is(move('192.0.2.1'), '250', 'many tokens of an organization');
flush();
is(move('10.7.5.1'), '250', 'that move to another network at once');
is(scalar(split(/, /, told())), 250, 'are told, though a flush has not time for all of them');
owner('DROP TRIGGER be_slow ON apitoken.notifications; DROP TABLE moving');
# a flush does not wait for a token that somebody changes; the next use counts
my $changing = $node->background_psql('postgres');
$changing->query_safe(q{BEGIN; UPDATE apitoken.tokens SET description = 'x' WHERE label = 'deploy'});
run(from($deploy, '10.7.3.1') . from($laptop, '10.7.3.1'));
is(told(), 'laptop 10.7.3.0/24 {ada@acme.example}', 'a token that is being changed');
$changing->query_safe('COMMIT');
$changing->quit;
run(from($deploy, '10.7.3.1'));
is(told(), 'deploy 10.7.3.0/24 {ada@acme.example}', 'its next use');
# another database
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', q{CREATE EXTENSION apitoken; SELECT apitoken.allow('regress_apitoken_backend', 'verify');
	INSERT INTO apitoken.organizations (id, notify) VALUES ('acme', '{new_network}')});
my $elsewhere = create($node, 'elsewhere', q{organization_id => 'acme', role => 'developer'}, database => 'other');
is(run(from($elsewhere, '192.0.2.1') . from($elsewhere, '10.7.4.1'), database => 'other'), 'valid valid', 'another database');
is(told(), 'nothing', 'whose flush is its own');
is($node->safe_psql('other', 'SELECT apitoken.flush_usage(); SELECT count(*) FROM apitoken_internal.token_networks') =~ s/\s//gr, '2', 'and writes its own table');

# dropped with its networks in memory: they take no room afterwards
is(run(from_many($elsewhere, 1, 700), database => 'other'), '700', 'many networks that are not written');
$node->safe_psql('postgres', 'DROP DATABASE other');
configure($node, 'apitoken.flush_interval', '1s');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM apitoken.stats WHERE entries > 0}), 'what is left of a dropped database is discarded');
configure($node, 'apitoken.flush_interval', '1h');
$fits = run(q{SELECT dropped FROM apitoken.stats;}, user => 'postgres');
run(from_many($spread, 5000, 5699));
cmp_ok(run(q{SELECT dropped FROM apitoken.stats;}, user => 'postgres') - $fits, '<', 100, 'and its networks, too');
is(told(), 'nothing', 'a token of more than 32 networks makes no news');

# ----- retention, persons that end ---------------------------------------------------------------

is(networks('bound'), '192.0.2.0/24', 'a token of one network');
owner(q{DELETE FROM apitoken_internal.token_networks WHERE token_id NOT IN (SELECT id FROM apitoken.tokens WHERE label IN ('bound', 'laptop'));
	UPDATE apitoken_internal.token_networks SET last_seen_at = now() - interval '9 days'; SELECT apitoken.run_maintenance()});
is(networks('laptop'), '10.7.3.0/24 10.8.3.0/24 192.0.2.0/24', 'before the retention nothing is removed');
owner(q{UPDATE apitoken_internal.token_networks SET last_seen_at = now() - interval '11 days' - CASE network WHEN '10.8.3.0/24' THEN interval '1 day' ELSE interval '2 days' END});
is(owner('SELECT usage_removed FROM apitoken.run_maintenance()'), '2', 'after it is');
is(networks('laptop') . ', ' . networks('bound'), '10.8.3.0/24, 192.0.2.0/24', 'but the latest of a token stays');
run(from($laptop, '10.6.1.1'));
is(told(), 'laptop 10.6.1.0/24 {ada@acme.example}', 'so that a token which was not used for long is told');
owner(q{SET session_replication_role = replica; DELETE FROM apitoken_internal.token_records WHERE label = 'bound'; RESET session_replication_role;});
cmp_ok(owner('SELECT usage_removed FROM apitoken.run_maintenance()'), '>', 0, 'housekeeping removes those of tokens that are gone');
is(owner('SELECT count(*) FROM apitoken_internal.token_networks n WHERE NOT EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id = n.token_id)'), '0', 'all of them');
# a person is forgotten: what is written, and what is not yet
run(from($laptop, '10.6.2.1'));
flush();
run(from($laptop, '10.6.3.1'));
is(run_as('regress_apitoken_job', q{SELECT apitoken.forget_user('ada')}), 't', 'a user is forgotten');
is(networks('forgotten') . ', ' . owner(q{SELECT count(*) FROM apitoken.notifications WHERE payload::text ~ '10\.6\.'}), 'none, 0', 'what was written is removed');
is(told() . ', ' . owner(q{SELECT count(*) FROM apitoken_internal.token_networks WHERE network << '10.6.0.0/16'}), 'nothing, 0', 'and no flush brings it back');

# a flush waits for the end of an erasure, and writes nothing of the person then
owner(q{INSERT INTO apitoken.users (id, email, notify) VALUES ('dan', 'dan@acme.example', '{new_network}')});
my $dans = create($node, 'of dan', q{user_id => 'dan'});
run(from($dans, '192.0.2.1'));
told();
run(from($dans, '10.6.4.1'));
my $erasing = $node->background_psql('postgres');
$erasing->query_safe(q{BEGIN; SELECT apitoken.forget_user('dan')});
is(run_as('postgres', 'SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'a flush during an erasure');
$erasing->query_safe('COMMIT');
$erasing->quit;
is(told() . ', ' . owner(q{SELECT count(*) FROM apitoken_internal.token_networks WHERE network << '10.6.0.0/16'}), 'nothing, 0', 'brings nothing back, either');

# ----- dump and restore ----------------------------------------------------------------------------

run(from($late, '10.5.1.1'));
flush();
my $dump = $node->basedir . '/network.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, 'postgres' ], 'dumped');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, 'restored' ], 'restored');
is($node->safe_psql('restored', 'SELECT * FROM apitoken_internal.token_networks ORDER BY 1, 2'), owner('SELECT * FROM apitoken_internal.token_networks ORDER BY 1, 2'), 'the restored database has them');
is(run(from($late, '10.5.1.1'), database => 'restored'), 'valid', 'a known network there');
is($node->safe_psql('restored', q{DELETE FROM apitoken.notifications; SELECT apitoken.flush_usage(); SELECT count(*) FROM apitoken.notifications}) =~ s/\s//gr, '0', 'is no news');

$node->stop;
no_crash($node);
done_testing();
