# No token is revoked as idle on the word of a server that cannot know whether it
# was used: while a standby is connected, and for a whole idle_timeout after that,
# after a promotion, after a crash or a restart that lost use, and after use was
# dropped.  The answer of run_maintenance(), apitoken.stats and the log tell why.
# Also pg_upgrade, which must carry recorded use over.

use strict;
use warnings;

use ApitokenTest;
use File::Copy qw(copy);
use IPC::Run ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('primary', preload => 'shared', init => [ allows_streaming => 'logical' ], conf => q{
	apitoken.flush_interval = '1h'
	apitoken.usage_slots = 64
	log_statement = none
});
my $saved = $node->data_dir . '/pg_stat/apitoken.usage';

$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_cron LOGIN;
	GRANT EXECUTE ON FUNCTION apitoken.run_maintenance() TO regress_apitoken_cron;
	INSERT INTO apitoken.organizations (id, idle_timeout) VALUES ('acme', '30 days'), ('long', '100 years');
	SELECT apitoken.create_token('long', 'long');
	CREATE TABLE texts AS SELECT n, (apitoken.create_token('t' || n, user_id => 'u')).token AS t FROM generate_series(1, 400) n;
});
run_on($node);

# A token of acme that looks as if it was made, and last used, 40 days ago.
my $made = 0;
sub add_idle
{
	$made++;
	run(qq{SELECT FROM apitoken.create_token('idle $made', 'acme'); SET session_replication_role = replica;
		UPDATE apitoken_internal.token_records SET created_at = now() - interval '40 days', updated_at = now() - interval '40 days' WHERE label = 'idle $made';
		UPDATE apitoken.token_usage SET last_used_at = now() - interval '40 days' WHERE token_id = (SELECT id FROM apitoken_internal.token_records WHERE label = 'idle $made')});
	return;
}
sub revoked { my ($on) = @_; return ($on // $node)->safe_psql('postgres', q{SELECT count(*) FROM apitoken.tokens WHERE revoke_reason = 'idle'}); }
my $maintain = 'SELECT tokens_revoked, tokens_spared, problems FROM apitoken.run_maintenance()';
# Where each server's log was when it was looked at.  The launcher's own housekeeping
# may follow a start at once, before the calls below.
my %looked_at;
# Whoever calls it, and however, it revokes nothing and says why; the log has it once.
sub spared
{
	my ($reason, $name, $on) = @_;
	my $mark = $looked_at{ ($on // $node)->name } // log_mark($on // $node);
	my $before = revoked($on);

	run_on($on // $node);
	foreach my $who (undef, 'regress_apitoken_cron')
	{
		like(run($maintain, user => $who), qr/^0\|1\|\{"idle tokens are not revoked yet, because they may have been used: $reason"\}$/, "$name: none is revoked, and why");
	}
	run("BEGIN ISOLATION LEVEL SERIALIZABLE; $maintain; COMMIT");
	is(revoked($on), $before, "$name: none is");
	is(in_log($on // $node, qr/may have been used: $reason$/m, $mark), 1, "$name: the log has it once")
	  if run('SELECT preloaded FROM apitoken.stats') eq 't';
	$looked_at{ ($on // $node)->name } = log_mark($on // $node);
	run_on($node);
	return;
}
# All that were made are revoked, by this call or by the launcher's daily run.
sub not_spared
{
	my ($name, $sql) = @_;
	like(run(($sql // '') . "$maintain"), qr/^[01]\|0\|\{\}$/, "$name: no token is spared");
	is(revoked(), $made, "$name: it is revoked");
	add_idle();
	$looked_at{ $node->name } = log_mark($node);
	return;
}
# A clean restart without the file: nothing is known to be lost.
sub forget_losses
{
	$node->stop;
	unlink $saved;
	$node->start;
	is(stat_of($node, 'complete_since IS NULL, incomplete_because IS NULL'), 't|t', 'nothing is known to be lost');
	return;
}

add_idle();
is(stat_of($node, 'complete_since, incomplete_because, maintenance_problem, launcher_runs'), '|||t', 'a new server has lost nothing');
not_spared('a new server');
$node->restart;
not_spared('a restart');

# ----- a standby ------------------------------------------------------------------

$node->backup('base');
my $standby = start_standby($node, 'standby', conf => q{apitoken.flush_interval = '100ms'});
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
spared('a standby was connected', 'a standby');
is(stat_of($node, q{complete_since > now() - interval '1 minute', incomplete_because, maintenance_problem ~ 'a standby was connected'}), 't|a standby was connected|t', 'as stats tells');
is(stat_of($standby, 'complete_since, incomplete_because'), '|', 'on the standby it tells nothing');
is(run('SET apitoken.standbys_verify = off', user => 'regress_apitoken_cron'), '[ERROR: 42501]', 'only a superuser says that standbys verify nothing');
not_spared('a standby that verifies nothing', 'SET apitoken.standbys_verify = off; ');
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET apitoken.standbys_verify = off');
not_spared('the setting of the database');
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET apitoken.standbys_verify');

# when it has gone, an idle_timeout must pass
$standby->stop;
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_replication'), 'the standby has gone');
$node->restart;
spared('a standby was connected', 'a standby that was connected before a restart');
forget_losses();
not_spared('when that is forgotten');

# programs that receive WAL but are no standbys
{
	my $place = PostgreSQL::Test::Utils::tempdir();
	my $receiver = IPC::Run::start([ 'pg_receivewal', '-D', $place, '-s', '1', '-d', $node->connstr('postgres') ], '>', \my $out, '2>', \my $err);
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn IS NOT NULL OR reply_time IS NOT NULL}), 'pg_receivewal');
	not_spared('pg_receivewal');
	$receiver->kill_kill;
	$node->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('s', 'pgoutput'); CREATE PUBLICATION p FOR TABLE texts});
	my $logical = IPC::Run::start([ 'pg_recvlogical', '-d', $node->connstr('postgres'), '-S', 's', '--start', '-f', "$place/out", '-s', '1', '-o', 'proto_version=1', '-o', 'publication_names=p' ], '>', \$out, '2>', \$err);
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming' AND reply_time IS NOT NULL}), 'pg_recvlogical');
	not_spared('logical replication');
	$logical->kill_kill;
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_replication}), 'it ends');
	$node->safe_psql('postgres', q{SELECT pg_drop_replication_slot('s'); DROP PUBLICATION p});
}

# ----- a logical subscriber ---------------------------------------------------------

# if it gets the tokens, also while it is not connected
foreach my $what ('TABLE apitoken_internal.token_records', 'TABLES IN SCHEMA apitoken_internal', 'ALL TABLES')
{
	$node->safe_psql('postgres', "CREATE PUBLICATION p FOR $what");
	not_spared("FOR $what, without a slot");
	$node->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('s', 'pgoutput')});
	spared('there was a logical subscriber', "FOR $what");
	not_spared("FOR $what, which verifies nothing", 'SET apitoken.standbys_verify = off; ');
	$node->safe_psql('postgres', q{SELECT pg_drop_replication_slot('s')});
	spared('there was a logical subscriber', "FOR $what, after it");
	forget_losses();
	not_spared("FOR $what, when that is forgotten");
	$node->safe_psql('postgres', 'DROP PUBLICATION p');
}
# in another database, or of another kind
$node->safe_psql('postgres', q{CREATE PUBLICATION p FOR ALL TABLES; CREATE DATABASE elsewhere});
$node->safe_psql('elsewhere', q{SELECT pg_create_logical_replication_slot('s', 'pgoutput')});
not_spared('a slot of another database');
$node->safe_psql('elsewhere', q{SELECT pg_drop_replication_slot('s')});
$node->safe_psql('postgres', q{SELECT pg_create_physical_replication_slot('s', true)});
not_spared('a physical slot');
$node->safe_psql('postgres', $_) foreach q{SELECT pg_drop_replication_slot('s'); DROP PUBLICATION p}, 'DROP DATABASE elsewhere';

# ----- promotion ------------------------------------------------------------------

# The standby does its daily housekeeping as soon as it is promoted.
$node->safe_psql('postgres', 'CHECKPOINT');
$standby->start;
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
$standby->stop;
$standby->start;
my $text = $node->safe_psql('postgres', 'SELECT t FROM texts WHERE n = 1');
is($standby->safe_psql('postgres', "SELECT verdict FROM apitoken.verify('$text')"), 'valid', 'a use on the standby');
my $before = revoked($standby);
$standby->promote;
ok($standby->poll_query_until('postgres', q{SELECT maintenance_problem IS NOT NULL FROM apitoken.stats}), 'promoted: housekeeping is done by itself');
like(stat_of($standby, 'maintenance_problem'), qr/the server was promoted or recovered from a backup/, 'promoted: stats tells why tokens are spared');
is(revoked($standby), $before, 'promoted: none is revoked');
is(in_log($standby, qr/WARNING:  could not run maintenance.*the server was promoted/), 1, 'promoted: the log has it once');
is($standby->safe_psql('postgres', $maintain) =~ s/\|\{.*//sr, '0|1', 'promoted: nor by run_maintenance()');
$looked_at{ $standby->name } = log_mark($standby);
$standby->restart;
spared('the server was promoted or recovered from a backup', 'promoted, and restarted', $standby);
# a new cluster that got the usage file, as after pg_upgrade, which has no history of promotions
$standby->stop;
my $upgraded = PostgreSQL::Test::Cluster->new('upgraded');
$upgraded->init;
$upgraded->append_conf('postgresql.conf', "shared_preload_libraries = 'apitoken'");
copy($standby->data_dir . '/pg_stat/apitoken.usage', $upgraded->data_dir . '/pg_stat/apitoken.usage') or die;
$upgraded->start;
$upgraded->safe_psql('postgres', 'CREATE EXTENSION apitoken');
is($upgraded->safe_psql('postgres', q{SELECT incomplete_because, complete_since > now() - interval '1 hour' FROM apitoken.stats}),
	'the server was promoted or recovered from a backup|t', 'a promotion before pg_upgrade');
$upgraded->stop;
$standby->start;
# without the library preloaded, too
$standby->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$standby->restart;
spared('the server was promoted or recovered from a backup', 'promoted, without preload', $standby);
# the idle_timeout has passed since then
my $history = $standby->data_dir . '/pg_wal/00000002.history';
ok(utime(time - 29 * 86400, time - 29 * 86400, $history), 'promoted 29 days ago');
spared('the server was promoted or recovered from a backup', 'promoted 29 days ago', $standby);
utime(time - 31 * 86400, time - 31 * 86400, $history);
is($standby->safe_psql('postgres', $maintain), '1|0|{}', 'promoted 31 days ago: it is revoked');
unlink $history;
is($standby->safe_psql('postgres', 'SELECT count(*) FROM apitoken.tokens'), $node->safe_psql('postgres', 'SELECT count(*) FROM apitoken.tokens'), 'nothing is removed');
$standby->stop;

# ----- crashes, and usage that is not loaded ----------------------------------------

forget_losses();
not_spared('before the crash');
$node->stop('immediate');
$node->start;
spared('use was lost in a crash or at a restart', 'a crash');
$node->restart;
spared('use was lost in a crash or at a restart', 'a crash, and a restart');
foreach my $case ('a damaged file', 'a longer file', 'a FIFO', 'a stop that could not save')
{
	forget_losses();
	not_spared("before $case");
	$node->stop;
	if ($case eq 'a damaged file') { truncate $saved, 20; }
	elsif ($case eq 'a longer file') { append_to_file($saved, 'x'); }
	elsif ($case eq 'a FIFO') { unlink $saved; POSIX::mkfifo($saved, 0600) or die; }
	else { unlink $saved; append_to_file("$saved.tmp", ''); }
	$node->start;
	spared('use was lost in a crash or at a restart', $case);
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_ls_dir('pg_stat') f WHERE f LIKE 'apitoken%'}), '0', "$case: the file is gone");
}
# a stop does not wait for a FIFO either
POSIX::mkfifo("$saved.tmp", 0600) or die;
$node->stop;
ok(-f $saved, 'a FIFO at the name of the temporary file: saved');
$node->start;

# ----- dropped use ------------------------------------------------------------------

forget_losses();
not_spared('before uses are dropped');
is(run('BEGIN; LOCK apitoken.token_usage IN SHARE MODE; SELECT count(*) FROM texts, apitoken.verify(t) v WHERE v.valid; SELECT dropped > 0 FROM apitoken.stats; ROLLBACK'), '400 t', 'more uses than there is room for');
spared('use was dropped because memory was full', 'dropped use');
# refused tokens with rate limits are no uses
forget_losses();
run(q{CREATE TABLE limited AS SELECT (apitoken.create_token('l' || n, user_id => 'u', rate_limit_per_minute => 1)).token AS t FROM generate_series(1, 64) n;
	SELECT count(*) FROM limited, apitoken.verify(t)});
$node->safe_psql('postgres', 'SELECT apitoken.flush_usage()');
is(stat_of($node, q{incomplete_because IS NULL OR dropped > 0}), 't', 'limits without room');

# a used token is kept as ever, and the time of its use counts
forget_losses();

# ----- one task fails, the others do their work ---------------------------------------

# use that cannot be written: nothing is revoked as idle, but all else is done
$node->safe_psql('postgres', q{
	CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no writing'; END$$;
	CREATE TRIGGER fail BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION fail();
	INSERT INTO apitoken_internal.token_days (token_id, day) SELECT id, '2000-01-01' FROM apitoken.tokens WHERE label = 'long'});
run(verdict($text));
is(run('SELECT tokens_revoked, usage_removed, problems FROM apitoken.run_maintenance()'), '0|1|{"idle tokens are not revoked: could not write token usage: no writing"}', 'use that cannot be written');
$node->safe_psql('postgres', 'DROP FUNCTION fail() CASCADE');
not_spared('when it can be');

# ----- the launcher -------------------------------------------------------------------

$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
is(stat_of($node, 'preloaded, launcher_runs'), 't|f', 'a launcher that could not start');
is(run('SELECT apitoken.flush_usage()'), '[ERROR: 53000]', 'and no worker can');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
ok($node->poll_query_until('postgres', 'SELECT launcher_runs FROM apitoken.stats'), 'it runs');
# more callers than there are slots: they wait for each other
$node->pgbench('-n -c 10 -t 5', 0, [qr{50/50}], [qr{^}], 'flush_usage() and run_maintenance() find a free worker', {
	flush_and_maintain => 'SELECT apitoken.flush_usage(); SELECT apitoken.run_maintenance();' });

# ----- pg_upgrade ---------------------------------------------------------------------

my $uses = $node->safe_psql('postgres', 'SELECT apitoken.flush_usage(); SELECT sum(accepted) FROM apitoken.token_usage') =~ s/^\n//r;
run(verdict($text) x 3);
$node->stop;
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'apitoken'\napitoken.flush_interval = '1h'");
pg_upgrade($node, $new, 'pg_upgrade');
ok(!-e $new->data_dir . '/pg_stat/apitoken.usage', 'which does not copy recorded use');
ok(system('cp', '-p', $saved, $new->data_dir . '/pg_stat/') == 0, 'copied by hand');
$new->start;
is($new->safe_psql('postgres', 'SELECT apitoken.flush_usage(); SELECT sum(accepted) FROM apitoken.token_usage') =~ s/^\n//r, $uses + 3, 'it is written there');
is($new->safe_psql('postgres', 'SELECT complete_since IS NULL FROM apitoken.stats'), 't', 'and nothing is known to be lost');
$new->stop;

no_crash($_) foreach $node, $standby, $new;
done_testing();
