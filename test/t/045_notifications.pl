# The outbox on a server: NOTIFY at commit, a full queue of it, two-phase
# transactions, dump and restore, and logical replication.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

my $node = start_node('main', init => [ allows_streaming => 'logical' ], conf => "max_prepared_transactions = 5");
my $set_up = q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.users (id, email) VALUES ('ada', 'ada@acme.example');
};
sub sql { my ($sql, $db) = @_; return $node->safe_psql($db // 'postgres', $sql); }
sub create_sql { return "SELECT count(apitoken.create_token('$_[0]', user_id => 'ada'));"; }
sql($set_up);

# ---- NOTIFY has the ids of what was committed, when it was
# psql tells of notifications after the statement that brings them
sub heard
{
	my ($statements) = @_;
	my ($out, $err) = ('', '');
	$node->psql('postgres', "LISTEN apitoken;\n$statements\nSELECT 'end';", stdout => \$out);
	return join ' ', $out =~ /Asynchronous notification "apitoken" with payload "([-0-9a-f]*)" received/g;
}
is(heard(create_sql('one')), sql("SELECT id FROM apitoken.notifications WHERE payload->>'label' = 'one'"), 'NOTIFY has the id');
is(heard('BEGIN; ' . create_sql('two') . ' ROLLBACK;'), '', 'nothing is sent for what was rolled back');
is(heard('BEGIN; SAVEPOINT s; ' . create_sql('three') . ' ROLLBACK TO s; ' . create_sql('four') . ' COMMIT;'),
	sql("SELECT id FROM apitoken.notifications WHERE payload->>'label' = 'four'"), '... nor to a savepoint');
my $many = heard("BEGIN; SELECT count(apitoken.create_token('many ' || i, user_id => 'ada')) FROM generate_series(1, 150) i; COMMIT;");
is(scalar(split / /, $many), 100, 'at most 100 for a transaction');
is(heard('SET apitoken.notifications = off; ' . create_sql('silent')), '', 'nothing is sent if the outbox is off');

# ---- nobody is woken while the server's queue is more than half full; a full one stops nothing
SKIP:
{
	skip 'before 17 the queue holds 8 GB', 8 if $node->pg_version < 17;
	my $small = start_node('small', conf => 'max_notify_queue_pages = 64');
	my $listener = $small->background_psql('postgres');
	my $usage = sub { $small->safe_psql('postgres', 'SELECT round(pg_notification_queue_usage()::numeric, 1)') };
	my $fill = sub { $small->psql('postgres', "SELECT pg_notify('other', repeat('x', 7900) || $_)") foreach 1 .. $_[0] };
	$small->safe_psql('postgres', $set_up);
	$listener->query_safe('LISTEN other');
	$listener->query_safe('BEGIN; SELECT 1;');
	$fill->(26);
	is($usage->(), '0.4', 'a session that listens keeps the queue');
	$small->safe_psql('postgres', create_sql("some $_")) foreach 1 .. 3;
	cmp_ok($small->safe_psql('postgres', q{SELECT pg_notification_queue_usage() - 0.4}), '<', 0.05, 'below a half it is used');
	$fill->(70);
	isnt($small->psql('postgres', "NOTIFY other, 'one'"), 0, 'it is full: other transactions with NOTIFY fail');
	is($small->psql('postgres', 'BEGIN; ' . create_sql('full') . ' COMMIT;'), 0, '... and the creation of a token does not');
	is($small->psql('postgres', q{SELECT apitoken.revoke_token(id) FROM apitoken.tokens WHERE label = 'full'}), 0, '... nor its revocation');
	is($small->safe_psql('postgres', q{SELECT string_agg(event, ' ' ORDER BY id) FROM apitoken.notifications WHERE payload->>'label' = 'full'}),
		'create revoke', 'a mailer finds both at its next look');
	$listener->query_safe('COMMIT');
	$listener->quit;
	ok($small->poll_query_until('postgres', 'SELECT pg_notification_queue_usage() < 0.1'), 'the session is gone');
	my $out = '';
	$small->psql('postgres', "LISTEN apitoken;\n" . create_sql('after'), stdout => \$out);
	like($out, qr/Asynchronous notification "apitoken"/, 'mailers are woken again');
	no_crash($small);
	$small->stop;
}

# ---- in two phases
sql('DELETE FROM apitoken.notifications');
is(heard('BEGIN; ' . create_sql('two phases') . " PREPARE TRANSACTION 'p';"), '', 'PREPARE TRANSACTION works, and sends nothing');
is(sql('SELECT count(*) FROM apitoken.claim_notifications()'), '0', 'nothing is claimed before the commit');
sql("COMMIT PREPARED 'p'");
is(sql("SELECT payload->>'label' FROM apitoken.claim_notifications()"), 'two phases', '... and after it, it is');

# ---- dump and restore: not delivered again
sql('DELETE FROM apitoken.notifications');
sql(create_sql('delivered') . create_sql('claimed') . create_sql('pending'));
sql("SELECT apitoken.notification_delivered(id) FROM apitoken.claim_notifications(1)");
sql("SELECT count(*) FROM apitoken.claim_notifications(1)");
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
foreach my $options ([], [ '--jobs=2' ])
{
	sql('DROP DATABASE IF EXISTS restored');
	sql('CREATE DATABASE restored');
	$node->command_ok([ 'pg_restore', '-d', $node->connstr('restored'), @$options, $dump ], "pg_restore @$options");
	is(sql("SELECT string_agg(concat_ws(' ', payload->>'label', delivered_at IS NOT NULL, next_attempt_at IS NOT NULL), ', ' ORDER BY id) FROM apitoken.notifications", 'restored'),
		'delivered t f, claimed f f, pending f f', 'all rows are there, and none is to be delivered');
	is(sql('SELECT count(*) FROM apitoken.claim_notifications()', 'restored'), '0', 'a mailer gets none');
}
sql('UPDATE apitoken.notifications SET next_attempt_at = now() WHERE delivered_at IS NULL', 'restored');
is(sql('SELECT count(*) FROM apitoken.claim_notifications()', 'restored'), '2', '... unless the owner wants it');

# ---- logical replication
sql('CREATE DATABASE subscriber');
sql('CREATE EXTENSION apitoken', 'subscriber');
sql('CREATE PUBLICATION p FOR TABLE apitoken.notifications');
sql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
(my $publisher = $node->connstr('postgres')) =~ s/'/''/g;
sql("CREATE SUBSCRIPTION s CONNECTION '$publisher' PUBLICATION p WITH (create_slot = false, slot_name = 's')", 'subscriber');
sql(create_sql('replicated'));
ok($node->poll_query_until('subscriber', 'SELECT count(*) = 4 FROM apitoken.notifications'), 'rows are replicated');
sql('UPDATE apitoken.notifications SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL');
sql('SELECT count(*) FROM apitoken.claim_notifications()');
ok($node->poll_query_until('subscriber', 'SELECT max(attempts) FROM apitoken.notifications', sql('SELECT max(attempts) FROM apitoken.notifications')), 'changes, too');
is(sql('SELECT count(*) FROM apitoken.notifications WHERE next_attempt_at IS NOT NULL', 'subscriber'), '0', 'none is delivered by the subscriber');
sql('DROP SUBSCRIPTION s', 'subscriber');

# ---- a coming expiry is told when it is a day off, and not at the next daily housekeeping
{
	my $daily = start_node('daily', preload => 'shared', conf => "apitoken.flush_interval = '100ms'");
	my $expires = sub {
		my ($label, $in) = @_;
		$daily->safe_psql('postgres', "SET session_replication_role = replica;
			UPDATE apitoken_internal.token_records SET created_at = now() - interval '30 days', expiry_notified_at = now() - interval '5 days', expires_at = now() + interval '$in' WHERE label = '$label'");
	};
	my $told = sub { return "SELECT count(*) = 1 FROM apitoken.notifications WHERE event = 'expire' AND payload->>'label' = '$_[0]'" };
	$daily->safe_psql('postgres', $set_up);
	my $token = $daily->safe_psql('postgres', q{SELECT token FROM apitoken.create_token('used', user_id => 'ada')});
	$daily->safe_psql('postgres', create_sql($_)) foreach 'first', 'second', 'third';
	$expires->('first', '20 hours');
	$daily->safe_psql('postgres', "SELECT apitoken.verify('$token')");
	ok($daily->poll_query_until('postgres', $told->('first')), 'the first housekeeping tells a coming expiry');
	# what has come near when the server starts; housekeeping is not due until tomorrow
	$daily->stop;
	$daily->start;
	$expires->('second', '20 hours');
	$daily->restart;
	ok($daily->poll_query_until('postgres', $told->('second')), 'the start of the server looks for others');
	# what comes near later
	$expires->('third', '24 hours 20 seconds');
	$daily->restart;
	ok($daily->poll_query_until('postgres', $told->('third')), 'and what comes near later is told then');
	is($daily->safe_psql('postgres', q{SELECT (payload->>'expires_at')::timestamptz - created_at BETWEEN '23 hours 50 minutes' AND '24 hours' FROM apitoken.notifications WHERE event = 'expire' AND payload->>'label' = 'third'}), 't', '... a day before');
	no_crash($daily);
	$daily->stop;
}

no_crash($node);
done_testing();
