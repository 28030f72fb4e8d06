# Housekeeping with settings from outside: configuration files, the database, the
# connection's options.  Also on a standby, during a restore, and two runs at once
# under load, together with everything that changes tokens.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = start_node('primary', init => [ allows_streaming => 1 ], conf => "max_connections = 30\nmax_standby_streaming_delay = -1");
$primary->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_cron LOGIN;
	GRANT EXECUTE ON FUNCTION apitoken.run_maintenance() TO regress_apitoken_cron;
	INSERT INTO apitoken.organizations (id) VALUES ('acme');
	SELECT count(apitoken.create_token('t' || i, 'acme')) FROM generate_series(1, 4) i;
	-- a day of each decade
	CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS $$
		INSERT INTO apitoken_internal.token_days (token_id, day) SELECT id, current_date - 3650 * i FROM apitoken_internal.token_records, generate_series(0, 2) i ON CONFLICT DO NOTHING $$;
	SELECT fill();
});
my @cron = (extra_params => [ '-U', 'regress_apitoken_cron', '-v', 'VERBOSITY=verbose' ]);
my $removed = 'SELECT events_removed, tokens_removed, usage_removed FROM apitoken.run_maintenance()';

# ----- a standby -----------------------------------------------------------------

$primary->backup('base');
my $standby = start_standby($primary, 'standby');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
my ($rc, $out, $err) = $standby->psql('postgres', $removed, @cron);
like($err, qr/ERROR:  25006: .*run_maintenance\(\) during recovery/, 'a standby: 25006');
$standby->promote;
is($standby->safe_psql('postgres', $removed), '0|0|8', 'promoted: it runs');
$standby->stop;

# ----- settings ------------------------------------------------------------------

# A connection's options can hide the value that the administrator configured.
# (With the library preloaded, the connection itself is refused.)  The default must
# not replace that value.
sub usage_retention { configure($primary, 'apitoken.usage_retention', $_[0]); }
$primary->append_conf('postgresql.conf', "apitoken.retention = '365d'");
usage_retention('9125d');
is($primary->safe_psql('postgres', $removed, @cron), '0|0|0', 'what is configured counts');
foreach my $preload ('', 'apitoken')
{
	$primary->safe_psql('postgres', "ALTER ROLE regress_apitoken_cron SET session_preload_libraries = '$preload'") if $preload;
	my $how = $preload ? 'session preload' : 'no preload';
	foreach my $option ('apitoken.usage_retention=1d', 'apitoken.retention=1d', 'apitoken.usage_retention=', 'apitoken.usage_retention=-1')
	{
		local $ENV{PGOPTIONS} = "-c $option";
		($rc, $out, $err) = $primary->psql('postgres', "SET client_min_messages = error; $removed", @cron);
		my ($name) = $option =~ /^(.*)=/;
		like($err, qr/ERROR:  F0000: value of parameter "\Q$name\E" was rejected/, "$how, options with $option: refused");
	}
	local $ENV{PGOPTIONS} = '-c apitoken.usage_retention=3700d';
	is($primary->safe_psql('postgres', "BEGIN; $removed; ROLLBACK"), '0|0|4', "$how, a superuser's options count");
}
$primary->safe_psql('postgres', 'ALTER ROLE regress_apitoken_cron RESET ALL');
# another role's SET before the library is loaded does not count either
($rc, $out, $err) = $primary->psql('postgres', "SET client_min_messages = error; SET apitoken.usage_retention = '1d'; $removed", @cron);
is($out, '0|0|0', "somebody's SET before the library is loaded does not count");

# an invalid value: again the default must not replace it
foreach my $value ('30', '0', '23h', '-2', 'x', '', '25 yaers', '-1 day')
{
	usage_retention($value);
	($rc, $out, $err) = $primary->psql('postgres', "SET client_min_messages = error; $removed", @cron);
	like($err, qr/ERROR:  F0000: value of parameter "apitoken\.usage_retention" was rejected/, "configured as '$value': refused");
}
foreach my $for ('DATABASE postgres', 'ROLE regress_apitoken_cron')
{
	usage_retention('9125d');
	$primary->safe_psql('postgres', "ALTER $for SET apitoken.usage_retention = '30'");
	($rc, $out, $err) = $primary->psql('postgres', "SET client_min_messages = error; $removed", @cron);
	like($err, qr/ERROR:  F0000: value of parameter "apitoken\.usage_retention" was rejected/, "configured for $for as '30': refused");
	$primary->safe_psql('postgres', "ALTER $for RESET apitoken.usage_retention");
}
usage_retention('-1');
is($primary->safe_psql('postgres', $removed, @cron), '0|0|0', '-1 keeps everything');
is($primary->safe_psql('postgres', 'SELECT count(*) FROM apitoken.token_usage_daily'), 12, 'nothing was removed');
# the same if the server loads the library when it starts
$primary->append_conf('postgresql.conf', "shared_preload_libraries = 'apitoken'\napitoken.usage_retention = '30'");
$primary->restart;
($rc, $out, $err) = $primary->psql('postgres', $removed, @cron);
like($err, qr/ERROR:  F0000: value of parameter "apitoken\.usage_retention" was rejected/, "shared preload, configured as '30': refused");
usage_retention('9125d');
is($primary->safe_psql('postgres', $removed, @cron), '0|0|0', 'shared preload, corrected: what is configured counts');
$primary->append_conf('postgresql.conf', "shared_preload_libraries = ''\napitoken.usage_retention = '30'");
$primary->restart;
is($primary->safe_psql('postgres', "SET client_min_messages = error; LOAD 'apitoken'; SET apitoken.usage_retention = '5475d'; $removed"), '0|0|4', "a superuser's SET counts");
usage_retention('9125d');
$primary->safe_psql('postgres', q{ALTER DATABASE postgres SET apitoken.usage_retention = '1825d'});
is($primary->safe_psql('postgres', $removed, @cron), '0|0|4', "the database's own setting counts");
$primary->safe_psql('postgres', q{ALTER DATABASE postgres RESET apitoken.usage_retention});

# ----- a restore that has not reached the usage, or the tokens, yet --------------

my $place = PostgreSQL::Test::Utils::tempdir_short();
$primary->safe_psql('postgres', q{
	UPDATE apitoken.organizations SET idle_timeout = '30 days';
	SET session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET created_at = now() - interval '1 year', updated_at = now() - interval '1 year';
	UPDATE apitoken.token_usage SET last_used_at = now() - interval '1 day'});
foreach my $first ('token_records', 'token_usage')
{
	my $second = $first eq 'token_usage' ? 'token_records' : 'token_usage';
	$primary->safe_psql('postgres', 'CREATE DATABASE restored');
	$primary->safe_psql('restored', 'CREATE EXTENSION apitoken');
	foreach my $table ('organizations', $first, 'RUN', $second, 'token_days')
	{
		if ($table eq 'RUN')
		{
			is($primary->safe_psql('restored', 'SELECT apitoken.run_maintenance()'), '(0,0,0,0,0,{},0)', "restored up to $first: nothing is ended or removed");
			next;
		}
		my $schema = $table =~ /token_(records|days)/ ? 'apitoken_internal' : 'apitoken';

		$primary->safe_psql('postgres', "COPY $schema.$table TO '$place/$table'");
		$primary->safe_psql('restored', "COPY $schema.$table FROM '$place/$table'");
		unlink "$place/$table";
	}
	is($primary->safe_psql('restored', 'SELECT apitoken.run_maintenance(); SELECT count(*) FROM apitoken.tokens JOIN apitoken.token_usage ON token_id = id WHERE revoked_at IS NULL'),
		"(0,0,0,0,0,{},0)\n4", 'restored: nor later');
	$primary->safe_psql('postgres', 'DROP DATABASE restored');
}

# ----- all at once ---------------------------------------------------------------

# Nothing fails and nothing deadlocks.  Each revocation has one event.  In the end
# everything that was due is done.  (The isolation tests show that a timely use
# keeps a token.)
$primary->safe_psql('postgres', q{
	ALTER TABLE apitoken_internal.token_records DISABLE TRIGGER token_refuse_delete;
	DELETE FROM apitoken_internal.token_records;
	CREATE TABLE secret AS SELECT i, t.* FROM generate_series(1, 400) i, apitoken.create_token('load ' || i, 'acme', expires_in => CASE WHEN i % 3 = 0 THEN '1 year'::interval END) t;
	SET session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET created_at = now() - interval '90 days', updated_at = now() - interval '90 days', revoked_at = CASE WHEN label LIKE '%9' THEN now() - interval '3 years' END;
	UPDATE apitoken_internal.token_records SET expires_at = now() - interval '3 years' WHERE expires_at IS NOT NULL AND label LIKE '%8';
	UPDATE apitoken.token_usage SET last_used_at = now() - interval '20 days'});
my %script = (
	'run@2' => 'SELECT apitoken.run_maintenance();',
	'use@3' => q{\set i random(1, 400)
		SELECT verdict FROM secret, apitoken.verify(token) WHERE i = :i;},
	# as time would
	'age@3' => q{\set i random(1, 400)
		UPDATE apitoken.token_usage SET last_used_at = now() - interval '90 days' WHERE token_id = (SELECT id FROM secret WHERE i = :i);},
	'edit@2' => q{\set i random(1, 400)
		UPDATE apitoken.tokens SET suspended_at = CASE WHEN suspended_at IS NULL THEN now() END WHERE label = 'load ' || :i AND revoked_at IS NULL AND :i % 4 = 0;
		SELECT apitoken.revoke_token(id, label, 'edit') FROM apitoken.tokens WHERE label = 'load ' || :i AND :i % 40 = 1;
		SELECT apitoken.revoke_tokens(organization_id => 'acme', user_id => 'nobody');
		DELETE FROM apitoken_internal.token_records WHERE label = 'load ' || :i AND :i % 40 = 2;});
my @scripts;
foreach my $name (sort keys %script)
{
	my ($file, $weight) = split /@/, $name;
	append_to_file("$place/$file.sql", "$script{$name}\n");
	push @scripts, '-f', "$place/$file.sql\@$weight";
}
my ($stdout, $stderr) = ('', '');
my $run = IPC::Run::run([ 'pgbench', '-n', '-c', '6', '-j', '2', '-t', '100', @scripts, $primary->connstr('postgres') ], '>', \$stdout, '2>', \$stderr);
ok($run, 'all at once: nobody failed') or diag($stderr);
unlike($stderr, qr/deadlock|ERROR/, 'no deadlock');
is($primary->safe_psql('postgres', q{
	SELECT count(*) FROM (SELECT token_id FROM apitoken.events WHERE action = 'revoke' GROUP BY 1 HAVING count(*) > 1) t}), '0', 'each was revoked once');
is($primary->safe_psql('postgres', q{
	SELECT apitoken.run_maintenance() IS NOT NULL;
	SELECT count(*) FILTER (WHERE revoked_at IS NULL AND suspended_at IS NULL AND GREATEST(updated_at, last_used_at) < now() - interval '31 days'),
		count(*) FILTER (WHERE LEAST(revoked_at, expires_at) < now() - interval '1 year'),
		count(*) FILTER (WHERE revoke_reason = 'idle') > 0, count(*) FILTER (WHERE last_used_at IS NOT NULL) > 0 FROM apitoken.tokens;
	SELECT count(*) FROM apitoken.token_usage WHERE NOT EXISTS (SELECT FROM apitoken_internal.token_records WHERE id = token_id)}), "t\n0|0|t|t\n0", 'and all that was due is done');

$primary->stop;
no_crash($_) foreach $primary, $standby;
done_testing();
