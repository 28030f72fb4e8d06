# Logical replication of the whole database, with the extension on both sides: the
# tables are copied and applied without conflict, a revocation is refused on the
# subscriber, and nothing is written twice.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $settings = "apitoken.flush_interval = '1h'\nwal_retrieve_retry_interval = 100ms";
my $pub = start_node('publisher', preload => 'shared', init => [ allows_streaming => 'logical' ], conf => $settings);
my $sub = start_node('subscriber', preload => 'shared', init => [ allows_streaming => 'logical' ], conf => $settings);
my @tables = (map({ "apitoken.$_" } qw(organizations users memberships events token_usage token_usage_daily)),
	map({ "apitoken_internal.$_" } qw(role_records token_records token_days personal_token_use token_networks foreign_digests)));

foreach my $what ('ALL TABLES', 'TABLES IN SCHEMA apitoken, apitoken_internal')
{
	my $db = $what =~ /^ALL/ ? 'whole' : 'schemas';
	my $same = sub {
		my ($when, @of) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		$pub->wait_for_catchup($db);
		foreach my $table (@of ? @of : (@tables, 'apitoken.roles'))
		{
			my $sql = "SELECT t::text FROM " . ($table =~ /role_records/ ? 'ONLY ' : '') . "$table t ORDER BY 1";
			is($sub->safe_psql($db, $sql), $pub->safe_psql($db, $sql), "$what, $when: $table");
		}
	};
	my $on = sub { my ($node, $sql) = @_; return answer($node, $sql, database => $db); };

	$_->safe_psql('postgres', "CREATE DATABASE $db") foreach $pub, $sub;
	$_->safe_psql($db, 'CREATE EXTENSION apitoken') foreach $pub, $sub;
	$pub->safe_psql($db, q{
		INSERT INTO apitoken.organizations (id, notify) VALUES ('acme', '{new_network}'), ('globex', DEFAULT);
		INSERT INTO apitoken.users (id, email) VALUES ('ada', 'ada@acme.example');
		UPDATE apitoken.roles SET permissions = '{article:*,token:*}' WHERE name = 'admin';
		INSERT INTO apitoken.roles (name, permissions) VALUES ('auditor', '{*:read}');
		INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin');
		SELECT apitoken.import_token('sha256', encode(sha256('imported'), 'hex'), organization_id => 'acme');
	});
	my %token = create_each($pub, {
		admin => "'acme', role => 'admin'",
		auditor => "'acme', role => 'auditor'",
		ada => "user_id => 'ada'",
		other => "'globex', role => 'auditor'",
	}, database => $db);
	$on->($pub, verdict($token{admin}) . 'SELECT apitoken.flush_usage()');

	# ----- the initial copy ----------------------------------------------------------
	$pub->safe_psql($db, "CREATE PUBLICATION $db FOR $what");
	my $connection = $pub->connstr($db) =~ s/'/''/gr;
	$sub->safe_psql($db, "CREATE SUBSCRIPTION $db CONNECTION '$connection' PUBLICATION $db");
	$sub->wait_for_subscription_sync($pub, $db, $db);
	$same->('copied');
	is($on->($sub, verdict($token{admin}, ", 'page:read'") . verdict($token{admin}, ", 'article:read'") . verdict($token{ada}, ", 'page:read', 'acme'")),
		'permission_refused valid permission_refused', "$what: a role that was cut down is so on the subscriber");

	is($on->($sub, q{SET apitoken.imported_formats = 'sha256'; SELECT verdict FROM apitoken.verify('imported')}), 'valid', "$what: an imported token is verified on the subscriber");

	# ----- use on both servers, on the same day ---------------------------------------
	my %new = create_each($pub, { new => "'acme', role => 'auditor'" }, database => $db);
	$pub->wait_for_catchup($db);
	$on->($sub, verdict($_) . 'SELECT apitoken.flush_usage()') foreach $token{auditor}, $new{new};
	$on->($pub, verdict($_) . 'SELECT apitoken.flush_usage()') foreach $token{auditor}, $new{new};
	# a personal token in an organization, on the subscriber first
	$on->($_, verdict($token{ada}, ", 'article:read', 'acme'") . 'SELECT apitoken.flush_usage()') foreach $sub, $pub;
	# a network, on the subscriber first; a second one on the publisher, which tells it alone
	$on->($_, verdict($token{admin}, ", client_address => '192.0.2.1'") . 'SELECT apitoken.flush_usage()') foreach $sub, $pub;
	$on->($pub, verdict($token{admin}, ", client_address => '198.51.100.1'") . 'SELECT apitoken.flush_usage()');
	$pub->wait_for_catchup($db);
	$on->($sub, verdict($token{admin}, ", client_address => '198.51.100.2'") . 'SELECT apitoken.flush_usage()');
	is($on->($_, q{SELECT string_agg(network::text, ' ' ORDER BY network) FROM apitoken_internal.token_networks}), '192.0.2.0/24 198.51.100.0/24', "$what: one row of each network") foreach $sub, $pub;
	is($on->($sub, q{SELECT count(*), count(next_attempt_at) FROM apitoken.notifications WHERE event = 'new_network'}), '1|0', "$what: one notification, which the publisher delivers");
	$same->('after use on both', grep { !/usage|personal_token_use|token_networks/ } @tables);
	is($on->($_, 'SELECT count(*) FROM apitoken_internal.personal_token_use'), '1', "$what: one row of a personal token in an organization") foreach $sub, $pub;
	is($on->($sub, q{SELECT count(*), min(accepted) FROM apitoken.token_usage_daily d JOIN apitoken.tokens t ON t.id = d.token_id WHERE label IN ('auditor', 'new')}), '2|1', "$what: each token has one row of the day");

	# ----- changes take effect, and are written once -----------------------------------
	$on->($sub, verdict($token{auditor}, ", 'article:read'"));
	$on->($pub, q{UPDATE apitoken.roles SET permissions = '{page:read}' WHERE name = 'auditor'});
	$pub->wait_for_catchup($db);
	is($on->($sub, verdict($token{auditor}, ", 'article:read'")), 'permission_refused', "$what: a change of a role");
	$on->($pub, q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'auditor'});
	$pub->wait_for_catchup($db);
	is($on->($sub, verdict($token{auditor})), 'revoked', "$what: a revocation");
	$on->($pub, q{DELETE FROM apitoken.organizations WHERE id = 'globex'; DELETE FROM apitoken.users WHERE id = 'ada'});
	$pub->wait_for_catchup($db);
	is($on->($sub, verdict($token{other}) . verdict($token{ada})), 'revoked revoked', "$what: deleted owners");
	$same->('after all changes', grep { !/usage|personal_token_use|token_networks/ } @tables);

	# retention
	$on->($pub, q{
		SET session_replication_role = replica;
		UPDATE apitoken_internal.token_records SET revoked_at = now() - interval '3 years' WHERE label = 'auditor';
		RESET session_replication_role;
		SET apitoken.retention = '730d'; SELECT tokens_removed FROM apitoken.run_maintenance()});
	$same->('after the retention', 'apitoken_internal.token_records');
	is($on->($sub, verdict($token{auditor})), 'unknown', "$what: a token that was removed");
	is($sub->safe_psql($db, "SELECT apply_error_count, sync_error_count FROM pg_stat_subscription_stats WHERE subname = '$db'"), '0|0', "$what: no error");
	$sub->safe_psql($db, "DROP SUBSCRIPTION $db");
}

# ----- built-in roles that both sides store by themselves -----------------------------

$_->safe_psql('postgres', 'CREATE DATABASE fresh') foreach $pub, $sub;
$_->safe_psql('fresh', 'CREATE EXTENSION apitoken') foreach $pub, $sub;
$pub->safe_psql('fresh', 'CREATE PUBLICATION fresh FOR ALL TABLES');
$sub->safe_psql('fresh', q{CREATE SUBSCRIPTION fresh CONNECTION '} . $pub->connstr('fresh') =~ s/'/''/gr . q{' PUBLICATION fresh});
$sub->wait_for_subscription_sync($pub, 'fresh', 'fresh');
$sub->safe_psql('fresh', q{INSERT INTO apitoken.organizations (id) VALUES ('mine'); UPDATE apitoken.roles SET permissions = '{x:y}'});
$pub->safe_psql('fresh', q{UPDATE apitoken.roles SET permissions = '{y:z}' WHERE name = 'developer'; INSERT INTO apitoken.organizations (id) VALUES ('acme')});
$pub->wait_for_catchup('fresh');
is($sub->safe_psql('fresh', q{SELECT name, permissions FROM apitoken.roles ORDER BY 1}), "admin|{*}\ndeveloper|{y:z}", "the publisher's roles take the place of the subscriber's");
is($sub->safe_psql('fresh', q{SELECT apply_error_count, sync_error_count FROM pg_stat_subscription_stats WHERE subname = 'fresh'}), '0|0', 'without an error');
$sub->safe_psql('fresh', 'DROP SUBSCRIPTION fresh');

# ----- events on another server, by the commands of docs/operations.md ------------------

{
	my ($commands) = slurp_file('docs/operations.md') =~ /^### Events on another server\n.*?^```sh\n(.*?)^```/ms;
	my ($publication, @other) = $commands =~ /-c "(.*?)"/gs;
	my $connection = $pub->connstr('audited') =~ s/'/''/gr;

	is(s/(CONNECTION ')[^']*'/$1$connection'/, 1, 'the connection of the subscription') foreach $other[-1];
	$pub->safe_psql('postgres', 'CREATE DATABASE audited');
	$pub->safe_psql('audited', q{CREATE EXTENSION apitoken; INSERT INTO apitoken.organizations (id) VALUES ('acme')});
	create_each($pub, { before => "'acme'" }, database => 'audited');
	$pub->safe_psql('audited', $publication);
	$sub->safe_psql('postgres', 'CREATE DATABASE audit');
	$sub->safe_psql('audit', $_) foreach @other;
	$sub->wait_for_subscription_sync($pub, 'audit', 'audit');
	create_each($pub, { after => "'acme', allowed_networks => '{10.0.0.0/8}'" }, database => 'audited');
	$pub->safe_psql('audited', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens});
	$pub->wait_for_catchup('audit');

	my $all = q{SELECT e::text FROM apitoken.events e ORDER BY id};
	my $events = $pub->safe_psql('audited', $all);
	is($sub->safe_psql('audit', $all), $events, 'events on another server');
	is($sub->safe_psql('audit', q{SELECT string_agg(action, ' ' ORDER BY id) FROM apitoken.events}), 'create create revoke revoke', 'from before and after');
	# whatever a superuser does to them
	$pub->safe_psql('audited', q{
		SET session_replication_role = replica;
		UPDATE apitoken.events SET actor = 'mallory' WHERE action = 'create'; DELETE FROM apitoken.events WHERE action = 'revoke'});
	$pub->wait_for_catchup('audit');
	is($sub->safe_psql('audit', $all), $events, 'stay as they were');
	is($sub->safe_psql('audit', q{SELECT apply_error_count, sync_error_count FROM pg_stat_subscription_stats WHERE subname = 'audit'}), '0|0', 'without an error');
	$sub->safe_psql('audit', 'DROP SUBSCRIPTION audit');
}

$_->stop foreach $sub, $pub;
no_crash($_) foreach $sub, $pub;
done_testing();
