# check_setup(), where it depends on the server: preload and its order, the pepper
# file, settings of the log, recorded use, a standby.  For each the situation, its
# row, and that the row is gone once the hint has been run.  sql/check_setup.sql tests
# the rest, 040_upgrade the versions.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $place = PostgreSQL::Test::Utils::tempdir();
my $node = start_node('check_setup', init => [ allows_streaming => 1 ], conf => "shared_preload_libraries = 'auto_explain'\nhot_standby_feedback = off\njit = off");
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
my $missing = 'apitoken is not in shared_preload_libraries';

$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_monitor LOGIN;
	SELECT apitoken.allow('regress_apitoken_monitor', 'monitor')});

# findings NODE, SUBJECT, as => USER, begin => SQL in front: the rows that are not ok,
# each as "level: message".
sub findings
{
	my ($on, $subject, %how) = @_;
	my $begin = $how{begin} // '';
	my ($out, $err) = ('', '');

	$on->psql('postgres', "$begin; SELECT level || ': ' || message FROM apitoken.check_setup() WHERE subject = '$subject' AND level <> 'ok'",
		stdout => \$out, stderr => \$err, extra_params => [ defined $how{as} ? ('-U', $how{as}) : () ]);
	return join("\n", grep { $_ ne '' } $out, $err);
}

sub hint
{
	my ($subject, $message, %how) = @_;

	return ($how{on} // $node)->safe_psql('postgres',
		"SELECT hint FROM apitoken.check_setup() WHERE subject = '$subject' AND message ~ '$message' AND level <> 'ok'",
		extra_params => [ defined $how{as} ? ('-U', $how{as}) : () ]);
}

# apply HINT, on => NODE: run it in a new session, as one query string.  What is to be
# done before or then is a part of the hint.
sub apply
{
	my ($hint, %how) = @_;
	my $on = $how{on} // $node;
	my $loaded = $on->safe_psql('postgres', 'SELECT pg_conf_load_time()');
	my ($before) = $hint =~ /(LOAD 'apitoken';)/;
	my ($then) = $hint =~ /then (SELECT pg_reload_conf\(\);)/;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$on->command_ok([ 'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-d', 'postgres', map { ('-c', $_) } grep { defined } $before, $hint, $then ], "applied: $hint");
	$on->restart if $hint =~ /restart the server/;
	$on->poll_query_until('postgres', "SELECT pg_conf_load_time() > '$loaded'") if defined $then;
	return;
}

sub gone
{
	my ($subject, $message, %how) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return unlike(findings($how{on} // $node, $subject), qr/$message/, "$subject: gone");
}

# ----- preload ------------------------------------------------------------------

my $limited = create($node, 'limited', q{user_id => 'ann', rate_limit_per_minute => 5, expires_in => '30 days'});
like(findings($node, 'preload'), qr/\Awarning: $missing: [^\n]*\z/, 'not preloaded');
like(findings($node, 'preload', as => 'regress_apitoken_monitor'), qr/\Awarning: $missing: [^\n]*\z/, 'not preloaded, as monitor');
is(findings($node, 'tokens'), "error: tokens with a rate limit or quota, which are refused because $missing: 1", 'a token with a rate limit');
is($node->safe_psql('postgres', "SELECT verdict FROM apitoken.verify('$limited')"), 'rate_limited', 'which is refused indeed');
is(hint('preload', $missing, as => 'regress_apitoken_monitor'), q{shared_preload_libraries = '..., apitoken'  # in postgresql.conf, as the last of the list; then restart the server},
	'a caller who may not see the list gets a line without it');
is(hint('tokens', 'rate limit'), hint('preload', $missing), 'the same hint');
# settings of the library, where it is not preloaded
is(findings($node, 'peppers'), 'notice: there is no pepper file: every role that can write the table of tokens can make a token', 'no pepper file, not preloaded');
apply(hint('peppers', 'no pepper file') =~ s{/etc/postgresql/apitoken.peppers}{$place/none}r);
is($node->safe_psql('postgres', "LOAD 'apitoken'; SHOW apitoken.pepper_file"), "$place/none", 'it is set');
$node->safe_psql('postgres', q{ALTER SYSTEM RESET apitoken.pepper_file});
$node->reload;
# a list that awaits a restart
$node->safe_psql('postgres', q{ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', 'pg_prewarm'});
$node->reload;
ok($node->poll_query_until('postgres', q{SELECT pending_restart FROM pg_settings WHERE name = 'shared_preload_libraries'}), 'the list awaits a restart');
is(hint('preload', $missing), q{shared_preload_libraries = '..., apitoken'  # in postgresql.conf, as the last of the list; then restart the server}, 'the hint does not take it back');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET shared_preload_libraries');
$node->reload;
ok($node->poll_query_until('postgres', q{SELECT NOT pending_restart FROM pg_settings WHERE name = 'shared_preload_libraries'}), 'it is withdrawn');
apply(hint('preload', $missing));
is($node->safe_psql('postgres', 'SHOW shared_preload_libraries'), 'auto_explain, apitoken', 'it keeps the others');
is(findings($node, $_), '', "preloaded: $_") foreach qw(preload usage tokens);

is(findings($node, 'preload', as => 'regress_apitoken_monitor'), 'notice: this role may not see the order of shared_preload_libraries', 'monitor does not know the order');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET shared_preload_libraries');
foreach ('apitoken,auto_explain', 'auto_explain, $libdir/apitoken, pg_prewarm', '"auto_explain","apitoken" , "auto_explain"')
{
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$_'");
	$node->restart;
	my ($last) = /(\w+)"?$/;
	is(findings($node, 'preload'), "warning: $last comes after apitoken in shared_preload_libraries, and may see the texts of tokens before they are masked", "not the last: $_");
	is(findings($node, 'preload', as => 'regress_apitoken_monitor'), 'notice: this role may not see the order of shared_preload_libraries', 'monitor does not learn it');
}
apply(hint('preload', 'comes after'));
gone('preload', '.');
apply(hint('preload', 'may not see', as => 'regress_apitoken_monitor'));
is(findings($node, 'preload', as => 'regress_apitoken_monitor'), '', 'nor does monitor find anything, now that it may see it');

# ----- peppers ------------------------------------------------------------------

my $peppers = "$place/peppers";
sub write_peppers
{
	my ($text) = @_;

	unlink $peppers;
	append_to_file($peppers, $text);
	chmod 0600, $peppers or die $!;
	return;
}
my $key = 'aaaaaaaabbbbbbbbccccccccddddddddeeeeeeeeffffffff0000000011111111';
is(findings($node, 'peppers'), 'notice: there is no pepper file: every role that can write the table of tokens can make a token', 'no pepper file');
apply(hint('peppers', 'no pepper file') =~ s{/etc/postgresql/apitoken.peppers}{$peppers}r);
like(findings($node, 'peppers'), qr/^error: could not read pepper file \(\Q$peppers\E\)$/m, 'the file does not exist');
my $told = findings($node, 'peppers', as => 'regress_apitoken_monitor');
like($told, qr/^error: could not read pepper file \(\Q$peppers\E\)$/m, 'a role that may see all settings sees its path');
$node->safe_psql('postgres', 'REVOKE pg_read_all_settings FROM regress_apitoken_monitor');
$told = findings($node, 'peppers', as => 'regress_apitoken_monitor');
is($told, "error: could not read pepper file\nnotice: this role may not count the tokens that need each pepper", 'monitor does not');
write_peppers("1:$key\n");
chmod 0644, $peppers;
like(findings($node, 'peppers'), qr/^error: pepper file has group or world access \(\Q$peppers\E\)$/m, 'a file that others can read');
like(hint('peppers', 'group or world'), qr/0600/, 'the hint');
write_peppers("1:$key\n1:$key\n");
like(findings($node, 'peppers'), qr/^error: line 2 of pepper file repeats/m, 'a file with a fault');
unlike($node->safe_psql('postgres', 'SELECT * FROM apitoken.check_setup()'), qr/aaaabbbb|AAAABBBB/, 'no key is shown');
write_peppers("1:$key\n");
is(findings($node, 'peppers'), 'warning: tokens without a pepper: 1', 'a token that was made before');
like(findings($node, 'peppers', begin => 'SET apitoken.require_pepper = on'), qr/^warning: tokens without a pepper, which are refused: 1$/m, 'the same if a pepper is required');
apply(hint('peppers', 'tokens without'));
is(findings($node, 'peppers'), 'notice: tokens whose previous secret has no pepper, and is accepted until its overlap ends: 1', 'regenerated, with an overlap');
like(hint('peppers', 'previous'), qr/^ALTER SYSTEM SET apitoken.require_pepper = on;  -- then SELECT pg_reload_conf\(\); when it has ended$/, 'what comes then');
$node->safe_psql('postgres', q{
	SET session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET previous_expires_at[1] = now() - interval '1 s'});
is(findings($node, 'peppers'), 'notice: tokens without a pepper are accepted: every role that can write the table of tokens can make one', 'no token needs scheme 0');
is(findings($node, 'peppers', as => 'regress_apitoken_monitor'), 'notice: this role may not count the tokens that need each pepper', 'monitor cannot know that, and is not told to require a pepper');
apply(hint('peppers', 'are accepted'));
is(findings($node, 'peppers'), '', 'in order');
write_peppers("2:$key\n");
is(findings($node, 'peppers'), 'error: tokens that need pepper 1, which the server does not have: 1', 'a pepper that tokens need is missing');
is(hint('peppers', 'need pepper'), '1:KEY  # restore this line of the pepper file', 'the hint');
write_peppers("1:$key\n2:$key\n");
is(findings($node, 'peppers'), '', 'it is restored');
$node->safe_psql('postgres', q{ALTER SYSTEM RESET apitoken.pepper_file});
$node->reload;
ok($node->poll_query_until('postgres', q{SELECT current_setting('apitoken.pepper_file') = ''}), 'no file, but a pepper is required');
like(findings($node, 'peppers'), qr/^error: "apitoken.require_pepper" is on, but no pepper file is set$/m, 'is an error');
$node->safe_psql('postgres', q{ALTER SYSTEM RESET apitoken.require_pepper});
$node->reload;
ok($node->poll_query_until('postgres', q{SELECT current_setting('apitoken.require_pepper') = 'off'}), 'no file');
like(findings($node, 'peppers'), qr/^error: tokens that need pepper 1, which the server does not have: 1$/m, 'and a token that needs one');
like(findings($node, 'peppers', begin => q{SET lock_timeout = 1}), qr/^error: tokens that need/m, 'settings of the session do not matter');

# ----- logs ---------------------------------------------------------------------

$node->safe_psql('postgres', q{CREATE ROLE regress_apitoken_backend LOGIN; SELECT apitoken.allow('regress_apitoken_backend', 'verify')});
is(findings($node, 'logs'), 'notice: log_parameter_max_length is not 0 for login regress_apitoken_backend: the log may have bind parameters with tokens', 'PostgreSQL\'s default');
is(findings($node, 'logs', as => 'regress_apitoken_monitor'), findings($node, 'logs'), 'monitor is told the same');
$node->append_conf('postgresql.conf', "log_parameter_max_length = 0\nlog_parameter_max_length_on_error = 100\napitoken.mask_logs = off");
$node->reload;
ok($node->poll_query_until('postgres', q{SELECT current_setting('apitoken.mask_logs') = 'off'}), 'other settings of the server');
is(findings($node, 'logs'), join("\n", 'warning: apitoken.mask_logs is off: the texts of tokens in statements are readable in the log and in pg_stat_activity',
	'warning: log_parameter_max_length_on_error is not 0 for login regress_apitoken_backend: the log may have bind parameters with tokens'), 'the server\'s settings count');
like(findings($node, 'logs', begin => 'SET log_parameter_max_length_on_error = 0'), qr/^warning: log_parameter_max_length_on_error is not 0/m, 'but not those of the session that asks');
apply(hint('logs', 'mask_logs'));
apply(hint('logs', 'on_error'));
gone('logs', '.');
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET log_parameter_max_length = 50');
is(findings($node, 'logs'), 'notice: log_parameter_max_length is not 0 for login regress_apitoken_backend: the log may have bind parameters with tokens', 'a setting of the database');
apply(hint('logs', 'log_parameter'));
gone('logs', '.');
is($node->safe_psql('postgres', 'SHOW log_parameter_max_length', extra_params => [ '-U', 'regress_apitoken_backend' ]), '0', 'as that login has it');

# ----- recorded use -------------------------------------------------------------

$node->append_conf('postgresql.conf', "apitoken.usage_slots = 1024\napitoken.flush_interval = '1h'");
$node->restart;
gone('usage', '.');
$node->safe_psql('postgres', q{
	CREATE TABLE made AS SELECT n, t.token FROM generate_series(1, 1400) n, apitoken.create_token('t' || n, user_id => 'ann', expires_in => '30 days') t;
	SELECT count(apitoken.verify(token)) FROM made WHERE n <= 530});
is(findings($node, 'usage'), 'warning: there are 1024 slots, and 530 tokens with recorded use and 0 with a rate limit or quota in them: half of the slots should be free', 'more than half of the slots');
is(hint('usage', 'slots'), 'ALTER SYSTEM SET apitoken.usage_slots = 2048;  -- then restart the server', 'the hint doubles them');
# the launcher, which makes room then, does not end what was dropped
$node->safe_psql('postgres', 'SELECT count(apitoken.verify(token)) FROM made');
like(findings($node, 'usage'), qr/^warning: uses that were dropped, or tokens with a rate limit or quota refused, because memory was full: \d+$/m, 'dropped use');
like(findings($node, 'usage', as => 'regress_apitoken_monitor'), qr/^warning: uses that were dropped/m, 'monitor is told');
apply(hint('usage', 'dropped'));
gone('usage', '.');

my $blocker = $node->background_psql('postgres', on_error_stop => 0);
$blocker->query('BEGIN; LOCK apitoken.token_usage');
$node->psql('postgres', 'SELECT apitoken.verify(token) FROM made WHERE n = 1; SELECT apitoken.flush_usage()', on_error_stop => 0);
like(findings($node, 'usage'), qr/^warning: the last flush of recorded use failed: canceling statement/m, 'a flush that fails');
my $mend = hint('usage', 'last flush');
$blocker->query('COMMIT');
$blocker->quit;
apply($mend);
gone('usage', '.');

$node->safe_psql('postgres', q{
	CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not today'; END$$;
	INSERT INTO apitoken_internal.token_days (token_id, day, accepted, refused) SELECT id, '2020-02-29', 1, 0 FROM apitoken.tokens WHERE label = 't1';
	CREATE TRIGGER refuse BEFORE DELETE ON apitoken_internal.token_days FOR EACH ROW EXECUTE FUNCTION public.refuse();
	SELECT apitoken.run_maintenance()});
like(findings($node, 'usage'), qr/^warning: the last housekeeping could not do everything: .*not today/m, 'housekeeping that fails');
$node->safe_psql('postgres', 'DROP FUNCTION public.refuse() CASCADE');
apply(hint('usage', 'housekeeping'));
gone('usage', '.');

$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
is(findings($node, 'usage'), 'error: the launcher does not run: recorded use is not written, and there is no housekeeping', 'no launcher');
apply(hint('usage', 'launcher'));
ok($node->poll_query_until('postgres', 'SELECT launcher_runs FROM apitoken.stats'), 'the launcher runs');
gone('usage', '.');

# ----- a standby ----------------------------------------------------------------

is(findings($node, 'standby'), '', 'no standby');
$node->backup('base');
my $standby = start_standby($node, 'check_setup_standby');
$node->wait_for_catchup($standby);
is(findings($standby, 'standby'), join("\n", 'warning: this standby does not send recorded use to the primary',
	'notice: a long query on this standby delays the replay, and with it revocations',
	'notice: this server is a standby: it writes recorded use only after a promotion, so a token that is used only here looks unused on the primary'), 'on the standby');
is(findings($standby, 'standby', as => 'regress_apitoken_monitor'), findings($standby, 'standby'), 'on the standby, as monitor');
is(findings($standby, $_), findings($node, $_), "on the standby: $_") foreach qw(version preload logs capabilities privileges tables tokens);
apply(hint('standby', 'long query', on => $standby), on => $standby);
gone('standby', 'long query', on => $standby);
my $connected = 'a standby may use tokens without the knowledge of this server: no token is revoked as idle while it is connected';
is(findings($node, 'standby'), "notice: $connected", 'on the primary');
apply(hint('standby', 'may use'));
gone('standby', '.');
# the hint of the standby is for the primary
apply(hint('standby', 'is a standby', on => $standby));
is(findings($node, 'standby'), "notice: $connected", 'on the primary again');
$standby->stop;

no_crash($node);
$node->stop;
done_testing();
