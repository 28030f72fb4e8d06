# Beside other extensions: pgaudit, which logs the parameters of statements, in both
# orders of preload; and pg_repack, which rewrites all of the extension's tables while
# tokens are created, verified and revoked.

use strict;
use warnings;

use ApitokenTest;
use DBI;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

sub has_extension
{
	my ($name) = @_;
	my $directory = qx(pg_config --sharedir);

	chomp $directory;
	return -f "$directory/extension/$name.control";
}

SKIP:
{
	skip 'pgaudit is not installed', 1 unless has_extension('pgaudit');
	audit($_) foreach 'pgaudit, apitoken', 'apitoken, pgaudit';
}

SKIP:
{
	skip 'pg_repack is not installed', 1 unless has_extension('pg_repack');
	repack();
}

done_testing();

# ---- pgaudit

sub audit
{
	my ($libraries) = @_;
	my $node = start_node('audit_' . ($libraries =~ /^pgaudit/ ? 'first' : 'last'), conf => qq{
		shared_preload_libraries = '$libraries'
		pgaudit.log = 'all'
		pgaudit.log_parameter = on
		pgaudit.log_catalog = on
		pgaudit.log_relation = on
		pgaudit.log_client = on
		pgaudit.role = 'regress_apitoken_auditor'
		log_statement = none});

	$node->safe_psql('postgres', q{
		CREATE ROLE regress_apitoken_auditor;
		CREATE ROLE regress_apitoken_gateway LOGIN;
		CREATE EXTENSION pgaudit;
		CREATE EXTENSION apitoken;
		SELECT apitoken.allow('regress_apitoken_gateway', 'verify', 'use');
		GRANT SELECT ON apitoken_internal.token_records TO regress_apitoken_auditor;
		INSERT INTO apitoken.organizations (id) VALUES ('acme');
		CREATE TABLE seen (token text);
		GRANT ALL ON seen TO PUBLIC});
	my $token = create($node, 't', q{'acme'});
	my ($head, $secret) = $token =~ /^(apt_org_.{22})(.*)$/;
	my $mark = log_mark($node);
	my @notices;
	my $db = DBI->connect('dbi:Pg:' . $node->connstr('postgres'), 'regress_apitoken_gateway', '', { RaiseError => 1, PrintError => 0, pg_server_prepare => 1 });

	# what reaches the client, too
	local $SIG{__WARN__} = sub { push @notices, @_ };
	$db->do('SET client_min_messages = log');
	my %is = (
		'a parameter' => sub { $db->selectrow_array('SELECT verdict FROM apitoken.verify($1)', {}, $token) },
		'the same statement again' => sub { my $s = $db->prepare('SELECT verdict FROM apitoken.verify($1)'); $s->execute($token); $s->execute($token); ($s->fetchrow_array)[0] },
		'a literal' => sub { $db->selectrow_array("SELECT verdict FROM apitoken.verify('$token')") },
		'a parameter among others' => sub { $db->selectrow_array('SELECT verdict, $2::text, $3::text FROM apitoken.verify($1)', {}, $token, "before $token after", $secret) },
		'PREPARE and EXECUTE' => sub { $db->do('PREPARE p AS SELECT verdict FROM apitoken.verify($1)'); $db->selectrow_array("EXECUTE p('$token')") },
		'a DO block' => sub { $db->do("DO \$\$ BEGIN PERFORM apitoken.verify('$token'); END \$\$"); 'valid' },
		'a setting' => sub { $db->begin_work; $db->do("SET LOCAL apitoken.token = '$token'"); my $is = $db->selectrow_array(q{SELECT CASE apitoken.whoami()->>'source' WHEN 'token' THEN 'valid' END}); $db->commit; $is },
		'a row' => sub { $db->do('INSERT INTO seen VALUES ($1)', {}, $token); 'valid' },
		'an error' => sub { eval { $db->selectrow_array('SELECT $1::int', {}, $token) }; 'valid' });
	foreach my $what (sort keys %is)
	{
		is($is{$what}->(), 'valid', "$libraries: $what");
	}
	$db->disconnect;
	my $log = log_since($node, $mark);

	cmp_ok(scalar(() = $log =~ /AUDIT: SESSION/g), '>=', 10, "$libraries: pgaudit has logged the statements");
	cmp_ok(scalar(() = $log =~ /AUDIT: .*\Q$head\E/g), '>=', 8, "$libraries: with the id of the token");
	# the parameter that is a secret without a token around it is no token's text
	$log =~ s/after,\Q$secret\E|after"",\Q$secret\E|"?before [^\n]*\Q$secret\E//g;
	my $left = join '', map { "$_\n" } grep { index($_, substr($secret, 0, 12)) >= 0 } split /\n/, $log;
	is($left, '', "$libraries: no secret in the log");
	is(join('', grep { index($_, substr($secret, 0, 12)) >= 0 && !/before/ } @notices), '', "$libraries: nor in messages to the client");
	$node->stop;
	no_crash($node);
	return;
}

# ---- pg_repack

sub repack
{
	my $node = start_node('repack', preload => 'shared', conf => "apitoken.flush_interval = '200ms'\nmax_connections = 50");
	my $scripts = $node->basedir;

	$node->safe_psql('postgres', q{
		CREATE EXTENSION pg_repack;
		CREATE EXTENSION apitoken;
		CREATE ROLE regress_apitoken_gateway LOGIN;
		SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
		INSERT INTO apitoken.organizations (id) VALUES ('acme');
		INSERT INTO apitoken.users (id) VALUES ('ada');
		INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin');
		CREATE TABLE kept AS SELECT n, (apitoken.create_token('kept ' || n, 'acme')).token FROM generate_series(1, 200) n;
		ALTER TABLE kept ADD PRIMARY KEY (n);
		CREATE TABLE made (id uuid, token text, revoked boolean DEFAULT false);
		CREATE TABLE wrong (what text);
		GRANT ALL ON kept, made, wrong TO PUBLIC;
		CREATE SEQUENCE label;
	});
	my %load = (
		verify => [ 'regress_apitoken_gateway', 3, q{
			\set n random(1, 200)
			INSERT INTO wrong SELECT verdict FROM kept, apitoken.verify(token) WHERE n = :n AND NOT valid;} ],
		create => [ $node->safe_psql('postgres', 'SELECT current_user'), 2, q{
			INSERT INTO made SELECT id, token FROM apitoken.create_token('made ' || nextval('label'), 'acme');} ],
		revoke => [ $node->safe_psql('postgres', 'SELECT current_user'), 1, q{
			UPDATE made SET revoked = apitoken.revoke_token(id, (SELECT label FROM apitoken.tokens t WHERE t.id = made.id))
			WHERE ctid = (SELECT ctid FROM made WHERE NOT revoked LIMIT 1);
			INSERT INTO wrong SELECT 'revoked is ' || v.verdict FROM (SELECT token FROM made WHERE revoked LIMIT 1) m, apitoken.verify(m.token) v WHERE v.verdict <> 'revoked';} ]);
	my %client;

	foreach my $name (sort keys %load)
	{
		my ($user, $clients, $script) = @{ $load{$name} };

		append_to_file("$scripts/$name.sql", $script);
		my $out = "$PostgreSQL::Test::Utils::log_path/pgbench_$name.log";
		$client{$name} = IPC::Run::start([ 'pgbench', '-n', '-c', $clients, '-T', 600, '-f', "$scripts/$name.sql", '-U', $user, '-d', $node->connstr('postgres') ], '<', \undef, '>', $out, '2>&1');
	}
	$node->poll_query_until('postgres', 'SELECT count(*) > 50 FROM made WHERE revoked') or die 'no load';

	my @tables = split /\n/, $node->safe_psql('postgres', q{
		SELECT c.oid::regclass FROM pg_class c WHERE relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND relkind = 'r' AND relnatts > 0 ORDER BY 1});
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM made');
	cmp_ok(scalar @tables, '>=', 7, 'the tables');
	foreach my $table (@tables)
	{
		my $file = $node->safe_psql('postgres', "SELECT pg_relation_filenode('$table')");
		my ($out, $err) = ('', '');

		ok(run_log([ 'pg_repack', '-h', $node->host, '-p', $node->port, '-d', 'postgres', '-t', $table, '--wait-timeout', 60, '--no-kill-backend' ], '>', \$out, '2>', \$err), "pg_repack rewrites $table") or diag($err);
		isnt($node->safe_psql('postgres', "SELECT pg_relation_filenode('$table')"), $file, "$table has another file");
	}
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM made'), '>', $before, 'tokens were created meanwhile');
	foreach my $name (sort keys %client)
	{
		ok($client{$name}->pumpable, "$name went on to the end");
		$client{$name}->signal('INT');
		$client{$name}->finish;
		unlike(slurp_file("$PostgreSQL::Test::Utils::log_path/pgbench_$name.log"), qr/ERROR|aborted|FATAL/, "$name had no error");
	}
	$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'});

	is($node->safe_psql('postgres', 'SELECT what, count(*) FROM wrong GROUP BY 1'), '', 'no verification was wrong');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM kept, apitoken.verify(token) WHERE valid}), 200, 'the old tokens are valid');
	is($node->safe_psql('postgres', q{SELECT count(*) FILTER (WHERE verdict <> CASE WHEN revoked THEN 'revoked' ELSE 'valid' END), count(*) > 50 FROM made, apitoken.verify(token)}), '0|t',
		'each of the new ones is what it was made');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM made FULL JOIN (SELECT id FROM apitoken.tokens WHERE label LIKE 'made %') t USING (id) WHERE made.token IS NULL OR t.id IS NULL}), 0, 'none is lost');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM apitoken.tokens LEFT JOIN apitoken.token_usage u ON u.token_id = tokens.id WHERE u.token_id IS NULL}), 0, 'each has its usage row');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM apitoken.tokens t WHERE (SELECT count(*) FROM apitoken.events e WHERE e.token_id = t.id AND action = 'create') <> 1
		OR (SELECT count(*) FROM apitoken.events e WHERE e.token_id = t.id AND action = 'revoke') <> (t.revoked_at IS NOT NULL)::int}), 0, 'and its events');
	$node->safe_psql('postgres', 'SELECT apitoken.flush_usage()');
	is($node->safe_psql('postgres', q{SELECT sum(accepted) = (SELECT valid FROM apitoken.stats) FROM apitoken.token_usage}), 't', 'each use was counted once');
	# the triggers, the policies and what the extension knows of its tables
	is(answer($node, q{UPDATE apitoken.events SET action = 'x'; DELETE FROM apitoken.roles WHERE name = 'admin'; TRUNCATE apitoken.users;}), '[ERROR: 42501 ERROR: 42501 ERROR: 0A000]', 'the triggers are there');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_class WHERE relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND relkind = 'r' AND NOT relrowsecurity}), 0, 'row-level security is');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_trigger WHERE tgname = 'repack_trigger'}), 0, "and none of pg_repack's");
	$node->stop;
	no_crash($node);
	return;
}
