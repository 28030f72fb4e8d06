# Attacks on the rules: a cancelled look-up, a function of another role in the
# session, a statement that brings its own read-only token, a user with thousands
# of memberships, an owner that alters the tables, and errors that quote rows.
# Each attack runs twice: the first call loads the library (plain), or
# session_preload_libraries does.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# a lock that is never released must fail a test, not hang it
my $node = start_node('attacks', conf => "lock_timeout = 10s\nautovacuum = off");
# the warning about an identity outside a transaction block, tested elsewhere
$ApitokenTest::unwarned = '25P01';
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

# backend: a trusted login; manager: has only the role of a signed-in user;
# gateway: only verifies; sync: maintains the directory; stranger: writes
# functions and has no capability; voucher: writes functions and has act; user:
# writes functions and has use; plain: a login without a capability.
$node->safe_psql('postgres', q{
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_manager LOGIN;
	CREATE ROLE regress_apitoken_gateway LOGIN;
	CREATE ROLE regress_apitoken_sync;
	CREATE ROLE regress_apitoken_stranger;
	CREATE ROLE regress_apitoken_voucher;
	CREATE ROLE regress_apitoken_plain LOGIN;
	CREATE ROLE regress_apitoken_user;
	CREATE ROLE regress_apitoken_weak;
	GRANT pg_execute_server_program TO regress_apitoken_backend;
});

my $setup = q{
	CREATE EXTENSION apitoken;
	SELECT apitoken.allow('regress_apitoken_backend', 'act', 'manage');
	GRANT regress_apitoken_weak TO regress_apitoken_backend;
	SELECT apitoken.allow('regress_apitoken_manager', 'manage');
	SELECT apitoken.allow('regress_apitoken_gateway', 'verify');
	SELECT apitoken.allow('regress_apitoken_sync', 'directory');
	SELECT apitoken.allow('regress_apitoken_voucher', 'act');
	SELECT apitoken.allow('regress_apitoken_user', 'use');
	INSERT INTO apitoken.organizations VALUES ('o1'), ('o2');
	INSERT INTO apitoken.users (id) VALUES ('alice'), ('bob');
	INSERT INTO apitoken.memberships VALUES ('o1', 'alice', 'admin');

	CREATE SCHEMA stranger AUTHORIZATION regress_apitoken_stranger;
	CREATE SCHEMA voucher AUTHORIZATION regress_apitoken_voucher;
	CREATE SCHEMA client AUTHORIZATION regress_apitoken_user;
	GRANT USAGE ON SCHEMA stranger, voucher, client TO PUBLIC;

	SET ROLE regress_apitoken_voucher;
	CREATE FUNCTION voucher.set_user(id text) RETURNS text LANGUAGE sql SECURITY DEFINER
		AS $$SELECT set_config('apitoken.user_id', id, true)$$;

	SET ROLE regress_apitoken_user;
	CREATE FUNCTION client.set_any(name text, value text) RETURNS boolean LANGUAGE sql SECURITY DEFINER
		AS $$SELECT set_config(name, value, true) IS NOT NULL$$;

	SET ROLE regress_apitoken_stranger;
	CREATE FUNCTION stranger.set_any(name text, value text) RETURNS boolean LANGUAGE sql SECURITY DEFINER
		AS $$SELECT set_config(name, value, true) IS NOT NULL$$;
	CREATE TYPE stranger.word AS (word text);
	CREATE FUNCTION stranger.read_word(word stranger.word) RETURNS text LANGUAGE sql SECURITY DEFINER
		AS $$SELECT set_config('apitoken.token', word.word, true)$$;
	CREATE CAST (stranger.word AS text) WITH FUNCTION stranger.read_word(stranger.word) AS IMPLICIT;
	CREATE FUNCTION stranger.set_user(id text) RETURNS text LANGUAGE sql SECURITY DEFINER
		AS $$SELECT set_config('apitoken.user_id', id, true)$$;
	CREATE FUNCTION stranger.has_user() RETURNS text LANGUAGE sql SECURITY DEFINER SET apitoken.user_id = 'bob'
		AS $$SELECT apitoken.current_user_id()$$;
	CREATE FUNCTION stranger.asks() RETURNS text LANGUAGE sql SECURITY DEFINER
		AS $$SELECT coalesce(apitoken.current_user_id(), 'nobody')$$;
	CREATE FUNCTION stranger.asks_on_a_path() RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
		AS $$BEGIN RETURN coalesce(apitoken.current_user_id(), 'nobody'); END$$;
	CREATE FUNCTION stranger.on_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
		AS $$BEGIN PERFORM set_config('apitoken.user_id', 'bob', true); RETURN NEW; END$$;
	CREATE TABLE stranger.box (n int);
	GRANT ALL ON stranger.box TO PUBLIC;
	CREATE TRIGGER t BEFORE INSERT ON stranger.box FOR EACH ROW EXECUTE FUNCTION stranger.on_insert();
	-- what an index asks: first harmless, so that there are rows and an index
	CREATE FUNCTION stranger.indexed(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN n; END$$;
	CREATE TABLE stranger.rows AS SELECT generate_series(1, 10) AS n;
	CREATE INDEX ON stranger.rows (stranger.indexed(n));
	RESET ROLE;

	CREATE TABLE notes (owner text, body text);
	INSERT INTO notes VALUES ('alice', 'kept');
	CREATE TABLE guarded (owner text, body text);
	INSERT INTO guarded VALUES ('alice', 'kept');
	ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
	CREATE POLICY everyones ON guarded USING (true) WITH CHECK (owner = apitoken.current_user_id());
	GRANT ALL ON notes, guarded TO PUBLIC;
	-- from now on the name means a temporary table
	CREATE FUNCTION shadow_notes() RETURNS boolean LANGUAGE plpgsql
		AS $$BEGIN CREATE TEMP TABLE notes (owner text, body text) ON COMMIT DROP; RETURN true; END$$;
	GRANT CREATE ON SCHEMA public TO regress_apitoken_backend;
};

# ----- helpers -----------------------------------------------------------------

my $database;

sub connection_as { return connection($node, database => $database, user => $_[0]); }

# The same as the superuser, and it must not fail.
sub admin { return $node->safe_psql($database, $_[0]); }

my $who = q{SELECT coalesce(apitoken.current_user_id(), 'nobody');};

foreach my $form ('plain', 'session')
{
	my $preloaded = $form eq 'session';

	$database = "app_$form";
	run_on($node, database => $database, user => 'regress_apitoken_backend');
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql('postgres', "ALTER DATABASE $database SET session_preload_libraries = 'apitoken'") if $preloaded;
	admin($setup);
	my $postmaster = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

	# ----- a cancelled look-up does not make an administrator --------------------

	my $o2 = admin(q{SELECT token FROM apitoken.create_token('t', organization_id => 'o2')});
	my $holder = connection_as($superuser);
	my $manager = connection_as('regress_apitoken_manager');

	is(ask($holder, 'BEGIN; LOCK TABLE pg_catalog.pg_depend IN ACCESS EXCLUSIVE MODE'), '', "$form: look-ups have to wait");
	is(ask($manager, "SET statement_timeout = '300ms'; SELECT apitoken.whoami()"), '[ERROR: 57014]', "$form: the first one is cancelled");
	is(ask($manager, 'SELECT apitoken.whoami()'), '[ERROR: 57014]', "$form: and the second");
	ask($holder, 'COMMIT');
	ask($manager, 'RESET statement_timeout');
	is(ask($manager, "SELECT apitoken.current_user_id() IS NULL; SELECT apitoken.revoke_tokens(organization_id => 'o2');"
			. "SELECT apitoken.whoami()->>'bypasses_rls'; SELECT count(*) FROM apitoken.tokens"),
		't 0 false 0', "$form: nobody is above the policies after a cancelled look-up");
	like(ask($manager, q{SELECT apitoken.create_token('mine', organization_id => 'o2')}), qr/^\[ERROR: 42501\]$/, "$form: and makes no token");
	is(run_as('regress_apitoken_gateway', "SELECT verdict FROM apitoken.verify('$o2')"), 'valid', "$form: the tokens there are valid still");
	$_->quit foreach $holder, $manager;

	# ----- a function of another role names the user ------------------------------

	# the next statement is refused, and so is a call in the same statement
	is(run("BEGIN; SELECT stranger.set_user('bob'); $who ROLLBACK;"), 'bob [ERROR: 42501]', "$form: set by a function of a role without act");
	is(run("SELECT stranger.set_user('bob'), apitoken.current_user_id();"), '[ERROR: 42501]', "$form: in one statement");
	is(run("BEGIN; SELECT stranger.set_user('bob'); SELECT apitoken.whoami(); ROLLBACK;"), 'bob [ERROR: 42501]', "$form: whoami");
	is(run("BEGIN; SELECT stranger.set_user('bob'); SELECT apitoken.can('a:b'); ROLLBACK;"), 'bob [ERROR: 42501]', "$form: can");
	is(run("BEGIN; SELECT stranger.set_user('bob'); INSERT INTO guarded VALUES ('bob', 'x'); COMMIT;"), 'bob [ERROR: 42501]', "$form: a policy");
	is(run("BEGIN; SELECT stranger.set_user('bob'); SELECT apitoken.create_token('t') IS NOT NULL; COMMIT;"), 'bob [ERROR: 42501]', "$form: create_token");
	is(run("BEGIN; SELECT stranger.set_user('bob'); SELECT 1; ROLLBACK;"), $preloaded ? 'bob [ERROR: 42501]' : 'bob 1',
		"$form: a statement that asks nothing");
	is(run("BEGIN; INSERT INTO stranger.box VALUES (1); $who COMMIT;"), '[ERROR: 42501]', "$form: by a trigger");
	is(run("INSERT INTO stranger.box VALUES (1); $who"), 'nobody', "$form: by a trigger, in a transaction before");
	is(run("SELECT stranger.has_user();"), '[ERROR: 42501]', "$form: by a function's own SET");
	is(run_as($superuser, "BEGIN; SELECT stranger.set_user('bob'); $who ROLLBACK;"), 'bob [ERROR: 42501]', "$form: in a superuser's session");
	# it overwrites a user that the session has set, before or after its first use
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT stranger.set_user('bob'); $who ROLLBACK;"), 'bob [ERROR: 42501]',
		"$form: over the session's own");
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; $who SELECT stranger.set_user('bob'); $who ROLLBACK;"), 'alice bob [ERROR: 42501]',
		"$form: over the session's own, used before");

	# ANALYZE runs the index's function, as the table's owner, in the superuser's session
	foreach my $caught (0, 1)
	{
		my $body = q{PERFORM set_config('apitoken.user_id', 'bob', true); PERFORM apitoken.current_user_id();};

		$body = "BEGIN $body EXCEPTION WHEN OTHERS THEN NULL; END;" if $caught;
		admin("SET ROLE regress_apitoken_stranger; CREATE OR REPLACE FUNCTION stranger.indexed(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \$\$BEGIN $body RETURN n; END\$\$");
		is(run_as($superuser, "BEGIN; ANALYZE stranger.rows; $who ROLLBACK;"), $caught ? 'nobody' : '[ERROR: 42501 ERROR: 25P02]',
			"$form: by an index function that ANALYZE runs" . ($caught ? ', which keeps quiet about it' : ''));
	}

	# ----- a function of another role brings a token -------------------------------

	my $here = q{SELECT coalesce(apitoken.current_organization_id(), 'nobody');};
	my $by_stranger = "SELECT stranger.set_any('apitoken.token', '$o2');";

	foreach my $login ('backend', 'manager', 'gateway', 'plain', $superuser)
	{
		my $role = $login eq $superuser ? $login : "regress_apitoken_$login";

		is(run_as($role, "BEGIN; $by_stranger $here ROLLBACK;"), 't [ERROR: 42501]', "$form, $login: a token set by a function of a role without use");
		is(run_as($role, "SELECT stranger.set_any('apitoken.token', '$o2'), apitoken.current_organization_id();"), '[ERROR: 42501]',
			"$form, $login: in one statement");
		is(run_as($role, "BEGIN; SELECT ROW('$o2')::stranger.word::text <> ''; $here ROLLBACK;"), 't [ERROR: 42501]',
			"$form, $login: by a cast");
		is(run_as($role, "BEGIN; SET LOCAL apitoken.token = '$o2'; $here ROLLBACK;"), 'o2', "$form, $login: the session's own token counts");
		is(run_as($role, "BEGIN; SET LOCAL apitoken.token = '$o2'; $here $by_stranger $here ROLLBACK;"), 'o2 t [ERROR: 42501]',
			"$form, $login: over the session's own, used before");
		is(run_as($role, "BEGIN; SELECT client.set_any('apitoken.token', '$o2'); $here ROLLBACK;"), 't o2',
			"$form, $login: a function of a role that holds use may");
	}
	is(run("BEGIN; SET LOCAL ROLE regress_apitoken_weak; SET LOCAL apitoken.token = '$o2'; $here ROLLBACK;"), 'o2',
		"$form: the role in force outside functions may");
	is(run("BEGIN; SELECT apitoken.act_as('alice'); $by_stranger $who ROLLBACK;"), 'alice t [ERROR: 42501]', "$form: over an acting user");
	is(run("BEGIN; $by_stranger SELECT apitoken.create_token('t') IS NOT NULL; COMMIT;"), 't [ERROR: 42501]', "$form: create_token");
	is(run("BEGIN; $by_stranger SELECT 1; ROLLBACK;"), $preloaded ? 't [ERROR: 42501]' : 't 1', "$form: a statement that asks nothing");
	is(run("BEGIN; SAVEPOINT s; $by_stranger ROLLBACK TO s; $here ROLLBACK;"), 't nobody', "$form: a savepoint takes it back");
	# the first call loads the library, which a function's SET of its settings needs
	admin("SELECT apitoken.whoami(); SET ROLE regress_apitoken_stranger;
		CREATE FUNCTION stranger.has_token() RETURNS text LANGUAGE sql SECURITY DEFINER SET apitoken.token = '$o2'
			AS 'SELECT apitoken.current_organization_id()';
		CREATE FUNCTION stranger.bring() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
			AS \$\$BEGIN PERFORM set_config('apitoken.token', '$o2', true); RETURN NEW; END\$\$;
		CREATE TABLE stranger.gift (n int); GRANT ALL ON stranger.gift TO PUBLIC;
		CREATE TRIGGER t BEFORE INSERT ON stranger.gift FOR EACH ROW EXECUTE FUNCTION stranger.bring()");
	is(run('SELECT stranger.has_token();'), '[ERROR: 42501]', "$form: by a function's own SET of a token");
	is(run("BEGIN; INSERT INTO stranger.gift VALUES (1); $here COMMIT;"), '[ERROR: 42501]', "$form: a token brought by a trigger");
	foreach my $caught (0, 1)
	{
		my $body = "PERFORM set_config('apitoken.token', '$o2', true); PERFORM apitoken.current_user_id();";

		$body = "BEGIN $body EXCEPTION WHEN OTHERS THEN NULL; END;" if $caught;
		admin("SET ROLE regress_apitoken_stranger; CREATE OR REPLACE FUNCTION stranger.indexed(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \$\$BEGIN $body RETURN n; END\$\$");
		is(run_as($superuser, "BEGIN; ANALYZE stranger.rows; $here ROLLBACK;"), $caught ? 'nobody' : '[ERROR: 42501 ERROR: 25P02]',
			"$form: a token brought by an index function that ANALYZE runs" . ($caught ? ', which keeps quiet about it' : ''));
	}
	# what pre_request() and the network rules read follows the same rule
	my $headers = qq{'request.headers', '{"x-api-key": "$o2"}'};
	my $near = admin(q{SELECT token FROM apitoken.create_token('near', organization_id => 'o2', allowed_networks => '{192.0.2.1}')});
	my $address = q{'apitoken.client_address', '192.0.2.1'};

	is(run("BEGIN; SELECT stranger.set_any($headers); SELECT apitoken.pre_request(); ROLLBACK;"), 't [ERROR: PGRST]',
		"$form: headers set by a function of a role without use");
	is(run("BEGIN; SELECT client.set_any($headers); SELECT apitoken.pre_request() IS NULL; $here ROLLBACK;"), 't f o2', "$form: with use they count");
	is(run("BEGIN; SELECT set_config($headers, true) <> ''; SELECT apitoken.pre_request() IS NULL; $here ROLLBACK;"), 't f o2', "$form: and the session's own");
	foreach my $setter ([ 'stranger.set_any(%s)', 'network_refused' ], [ 'client.set_any(%s)', 'network_refused' ], [ "set_config(%s, true) <> ''", 'valid' ])
	{
		is(run_as('regress_apitoken_gateway', 'BEGIN; SELECT ' . sprintf($setter->[0], $address) . "; SELECT verdict FROM apitoken.verify('$near'); ROLLBACK;"),
			"t $setter->[1]", "$form: the client's address, by $setter->[0]");
	}

	# what is allowed
	is(run("BEGIN; SELECT voucher.set_user('bob'); $who ROLLBACK;"), 'bob bob', "$form: a function of a role that holds act may");
	is(run_as('regress_apitoken_manager', "BEGIN; SELECT voucher.set_user('bob'); $who ROLLBACK;"), 'bob [ERROR: 42501]',
		"$form: not in the session of a login that does not");
	foreach my $function ('asks', 'asks_on_a_path')
	{
		is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT stranger.$function(); $who ROLLBACK;"), 'alice alice',
			"$form: the session's own setting counts inside $function, which is its first use");
		is(run("BEGIN; SELECT set_config('apitoken.user_id', 'alice', true); SAVEPOINT s; SELECT stranger.$function(); ROLLBACK TO s; $who ROLLBACK;"),
			'alice alice alice', "$form: and in a savepoint ($function)");
	}

	# ----- a statement that brings its own read-only token ------------------------

	my $ro = admin(q{SELECT token FROM apitoken.create_token('ro', user_id => 'alice', access => 'read_only')});
	my $full = admin(q{SELECT token FROM apitoken.create_token('full', user_id => 'alice')});
	my $by_token = sub { return "a AS MATERIALIZED (SELECT (apitoken.authenticate('$_[0]')).valid AS v)"; };
	my $by_setting = sub { return "set_config('apitoken.token', '$_[0]', true) IS NOT NULL"; };
	my @writes = (
		[ 'INSERT', sub { return 'WITH ' . $by_token->($_[0]) . " INSERT INTO notes SELECT 'alice', 'written' FROM a WHERE v"; } ],
		[ 'UPDATE', sub { return 'WITH ' . $by_token->($_[0]) . " UPDATE notes SET body = 'written' FROM a WHERE v"; } ],
		[ 'DELETE', sub { return 'WITH ' . $by_token->($_[0]) . ' DELETE FROM notes USING a WHERE v'; } ],
		[ 'MERGE', sub { return 'WITH ' . $by_token->($_[0]) . " MERGE INTO notes USING a ON v WHEN MATCHED THEN UPDATE SET body = 'written'"; } ],
		[ 'INSERT in WITH', sub { return 'WITH ' . $by_token->($_[0]) . ", w AS (INSERT INTO notes SELECT 'alice', 'written' FROM a WHERE v) SELECT"; } ],
		[ 'INSERT ... RETURNING', sub { return "INSERT INTO notes VALUES ('alice', 'written') RETURNING (apitoken.authenticate('$_[0]')).valid"; } ],
		[ 'EXPLAIN ANALYZE', sub { return 'DO $d$BEGIN EXECUTE $e$EXPLAIN ANALYZE WITH ' . $by_token->($_[0]) . " INSERT INTO notes SELECT 'alice', 'written' FROM a WHERE v\$e\$; END\$d\$"; } ],
		[ 'DO', sub { return 'DO $d$BEGIN WITH ' . $by_token->($_[0]) . " INSERT INTO notes SELECT 'alice', 'written' FROM a WHERE v; END\$d\$"; } ],
		[ 'INSERT by setting', sub { return "INSERT INTO guarded SELECT 'alice', 'written' WHERE " . $by_setting->($_[0]); } ],
		[ 'UPDATE by setting', sub { return "UPDATE guarded SET body = 'written' WHERE " . $by_setting->($_[0]); } ],
		[ 'DELETE by setting', sub { return 'DELETE FROM guarded WHERE ' . $by_setting->($_[0]) . ' RETURNING apitoken.current_user_id()'; } ],
		[ 'COPY', sub { return "COPY notes FROM PROGRAM 'printf \"alice\\\\twritten\"' WHERE (apitoken.authenticate('$_[0]')).valid"; } ],
		[ 'COPY, shadowed', sub { return "COPY notes FROM PROGRAM 'printf \"alice\\\\twritten\"' WHERE CASE WHEN shadow_notes() THEN (apitoken.authenticate('$_[0]')).valid END"; } ],
	);
	# COPY evaluates expressions by itself: the library's hook must exist before it
	my $first_call = sub { return $_[0] =~ /^COPY/ ? 'SELECT FROM apitoken.roles WHERE apitoken.can(NULL); ' : ''; };
	my $contents = q{SELECT string_agg(t || ' ' || body, ', ' ORDER BY t, body) FROM (SELECT 'guarded' AS t, body FROM guarded UNION ALL SELECT 'notes', body FROM notes) x};

	foreach my $write (@writes)
	{
		my ($name, $sql) = @$write;

		like(run($first_call->($name) . $sql->($ro) . ';'), qr/^\[ERROR: 25006\]$/, "$form: a read-only token within $name");
		like(run($first_call->($name) . 'BEGIN; ' . $sql->($ro) . '; COMMIT;'), qr/^\[ERROR: 25006\]$/, "$form: and in a transaction block");
		is(admin($contents), 'guarded kept, notes kept', "$form: nothing was written by $name");
		# the same statement with another token writes
		admin('CREATE TABLE before_notes AS TABLE notes; CREATE TABLE before_guarded AS TABLE guarded');
		unlike(run('BEGIN; ' . $sql->($full) . '; COMMIT;'), qr/ERROR/, "$form: a full token within $name");
		isnt(admin($contents), 'guarded kept, notes kept', "$form: which writes");
		admin('TRUNCATE notes, guarded; INSERT INTO notes TABLE before_notes; INSERT INTO guarded TABLE before_guarded; DROP TABLE before_notes, before_guarded');
	}
	is(run('CREATE TEMP TABLE scratch (owner text, body text); BEGIN; WITH ' . $by_token->($ro) . " INSERT INTO scratch SELECT 'alice', 'written' FROM a WHERE v; SELECT body FROM scratch; COMMIT;"),
		'written', "$form: a temporary table is written as PostgreSQL allows it");
	like(run('BEGIN; CREATE TABLE made AS WITH ' . $by_token->($ro) . ' SELECT v FROM a; COMMIT;'), qr/ERROR: 25006\]$/, "$form: CREATE TABLE AS");
	like(run('BEGIN; EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) CREATE TABLE made AS WITH ' . $by_token->($ro) . ' SELECT v FROM a; COMMIT;'),
		qr/ERROR: 25006\]$/, "$form: EXPLAIN ANALYZE CREATE TABLE AS");
	like(run('BEGIN; CREATE MATERIALIZED VIEW made AS WITH ' . $by_token->($ro) . ' SELECT v FROM a; COMMIT;'), qr/ERROR: 25006\]$/,
		"$form: CREATE MATERIALIZED VIEW");
	like(run('BEGIN; WITH ' . $by_token->($ro) . ' SELECT v INTO made FROM a; COMMIT;'), qr/ERROR: 25006\]$/, "$form: SELECT INTO");
	is(admin(q{SELECT to_regclass('made') IS NULL}), 't', "$form: no table was made");

	# ----- a user with many memberships -------------------------------------------

	admin(q{
		INSERT INTO apitoken.users (id) VALUES ('busy');
		INSERT INTO apitoken.roles (name, permissions) SELECT 'wide', array_agg('r' || n || ':*') FROM generate_series(1, 100) n;
		INSERT INTO apitoken.organizations (id) SELECT 'many' || n FROM generate_series(1, 2000) n;
		INSERT INTO apitoken.memberships SELECT 'many' || n, 'busy', 'wide' FROM generate_series(1, 2000) n;
		INSERT INTO apitoken.memberships VALUES ('o1', 'busy', 'developer');
		UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'many7';
		ANALYZE apitoken.organizations; ANALYZE apitoken.memberships;
	});
	my $wide = admin(q{SELECT token FROM apitoken.create_token('wide', user_id => 'busy',
		permissions => (SELECT array_agg('*:a' || n) FROM generate_series(1, 100) n))});
	my $busy = connection_as('regress_apitoken_backend');
	my $peak = sub
	{
		my ($status) = eval { slurp_file("/proc/$_[0]/status") };

		return defined $status && $status =~ /^VmHWM:\s+(\d+) kB/m ? $1 : undef;
	};
	is(ask($busy, "BEGIN READ ONLY; SELECT (apitoken.authenticate('$wide')).valid"), 't', "$form: a wide token");
	my $pid = ask($busy, 'SELECT pg_backend_pid()');
	my $before = $peak->($pid);
	is(ask($busy, q{SELECT count(*) FROM apitoken.organizations_allowed('r50:a50')}), '1999', "$form: organizations_allowed, a permission that both lists have");
	is(ask($busy, q{SELECT count(*) FROM apitoken.organizations_allowed('r50:a101')}), '0', "$form: that the token has not");
	is(ask($busy, q{SELECT count(*) FROM apitoken.organizations_allowed('r101:a50')}), '0', "$form: that the role has not");
	is(ask($busy, q{SELECT apitoken.can('r50:a50', 'many6'), apitoken.can('r50:a50', 'many7'), apitoken.can('r50:a50', 'o2')}), 't|f|f', "$form: can says the same");
	my $after = $peak->($pid);
  SKIP:
	{
		skip 'the system does not tell a process\'s memory', 1 unless defined $before && defined $after;
		cmp_ok($after - $before, '<', 50 * 1024, "$form: and all that takes little memory");
	}
	ask($busy, 'COMMIT');
	$busy->quit;

	# ----- the owner alters the tables --------------------------------------------

	my $running = connection_as($superuser);
	my $verify = "SELECT verdict FROM apitoken.verify('$full')";
	my $acts = q{BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT apitoken.whoami()->>'groups'; COMMIT};

	$pid = ask($running, 'SELECT pg_backend_pid()');
	is(ask($running, "$verify; $acts"), 'valid []', "$form: before the owner alters the tables");
	foreach my $case (
		[ 'a column that may be null', 'ALTER TABLE apitoken_internal.token_records ALTER metadata DROP NOT NULL',
			'ALTER TABLE apitoken_internal.token_records ALTER metadata SET NOT NULL', $verify, 'valid' ],
		[ 'a column of another type',
			'ALTER TABLE apitoken.users ALTER groups DROP DEFAULT, ALTER groups TYPE integer USING 7',
			q{ALTER TABLE apitoken.users ALTER groups TYPE text[] USING '{}', ALTER groups SET DEFAULT '{}'}, $acts, '[]' ],
		[ 'a column of the same size and another type',
			'ALTER TABLE apitoken_internal.token_records ALTER rate_limit_per_minute TYPE real',
			'ALTER TABLE apitoken_internal.token_records ALTER rate_limit_per_minute TYPE integer', $verify, 'valid', 'view' ],
		[ 'a composite type with a column more', 'ALTER TYPE apitoken.verification ADD ATTRIBUTE extra integer',
			'ALTER TYPE apitoken.verification DROP ATTRIBUTE extra', $verify, 'valid' ],
		[ 'a composite type with a column of another type', 'ALTER TYPE apitoken.verification ALTER ATTRIBUTE label TYPE integer',
			'ALTER TYPE apitoken.verification ALTER ATTRIBUTE label TYPE text', $verify, 'valid' ])
	{
		my ($name, $alter, $back, $statement, $answer, $view) = @$case;

		# a column that the view shows cannot change its type at all
		if ($view)
		{
			is(ask($running, $alter), '[ERROR: 0A000]', "$form: $name is refused by the server");
			next;
		}
		admin($alter);
		like(ask($running, $statement), qr/^\[ERROR: 55000( |\])/, "$form: $name");
		ask($running, 'ROLLBACK') if $statement =~ /BEGIN/;
		like(run_as($superuser, "$statement;"), qr/^\[ERROR: 55000( |\])/, "$form: $name, in a new session");
		admin($back);
		is(ask($running, $statement), $answer, "$form: $name, taken back");
		is(run_as($superuser, "$statement;"), $answer, "$form: $name, taken back, in a new session");
	}
	is(ask($running, 'SELECT pg_backend_pid()'), $pid, "$form: the session lives");
	is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $postmaster, "$form: the server lives");
	$running->quit;

	# ----- errors that quote rows do not quote digests ----------------------------

	my $id = run(q{BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT id FROM apitoken.create_token('short', expires_in => '30 days'); COMMIT;});
	like($id, qr/^[0-9a-f-]{36}$/, "$form: a token to regenerate");
	my $digest = admin("SELECT encode(digest, 'hex') FROM apitoken_internal.token_records WHERE id = '$id'");
	admin(q{ALTER TABLE apitoken_internal.token_records ADD CONSTRAINT within_a_year CHECK (expires_at < created_at + '1 year') NOT VALID});
	foreach my $statement (
		"SELECT apitoken.regenerate_token('$id', expires_in => '5 years')",
		"SELECT apitoken.regenerate_token('$id', overlap => '1 day', expires_in => '5 years')",
		"UPDATE apitoken.tokens SET expires_at = now() + interval '5 years' WHERE id = '$id'",
		"SELECT apitoken.create_token('long', expires_in => '5 years')")
	{
		my $position = log_mark($node);
		my ($out, $err) = ('', '');

		$node->psql($database, "\\set VERBOSITY verbose\nBEGIN; SET LOCAL apitoken.user_id = 'alice'; $statement; COMMIT;",
			stdout => \$out, stderr => \$err, on_error_stop => 0, extra_params => [ '-U', 'regress_apitoken_backend' ]);
		like($err, qr/ERROR:  23514: .*within_a_year/, "$form: a constraint of the administrator's own: $statement");
		my $log = log_since($node, $position);
		like($log, qr/within_a_year/, "$form: which the log tells");
		foreach my $told ([ 'client', $err ], [ 'log', $log ])
		{
			my ($where, $text) = @$told;
			# the new digest is not stored, so any bytes count
			my $shown = $text =~ /\\x[0-9a-f]{12}/ || grep { index($text, substr($digest, $_, 12)) >= 0 } 0 .. length($digest) - 12;
			ok(!$shown, "$form: no digest for the $where: $statement") or diag($text);
		}
	}
	admin('ALTER TABLE apitoken_internal.token_records DROP CONSTRAINT within_a_year');
	is(run("BEGIN; SET LOCAL apitoken.user_id = 'alice'; SELECT apitoken.regenerate_token('$id', expires_in => '5 years') IS NOT NULL; COMMIT;"), 't',
		"$form: without it the token is regenerated");

	# ----- triggers that keep the directory in step -------------------------------

	admin(q{
		CREATE SCHEMA app;
		CREATE TABLE app.organizations (id int PRIMARY KEY, name text);
		CREATE TABLE app.users (id int PRIMARY KEY, name text);
		CREATE TABLE app.members (organization_id int, user_id int, role text, PRIMARY KEY (organization_id, user_id));
		GRANT USAGE ON SCHEMA app TO regress_apitoken_backend;
		GRANT ALL ON app.organizations, app.users, app.members TO regress_apitoken_backend;

		CREATE FUNCTION app.sync() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
		BEGIN
			IF TG_OP = 'DELETE' THEN
				IF TG_TABLE_NAME = 'organizations' THEN DELETE FROM apitoken.organizations WHERE id = OLD.id::text;
				ELSIF TG_TABLE_NAME = 'users' THEN DELETE FROM apitoken.users WHERE id = OLD.id::text;
				ELSE DELETE FROM apitoken.memberships WHERE organization_id = OLD.organization_id::text AND user_id = OLD.user_id::text;
				END IF;
			ELSIF TG_TABLE_NAME = 'organizations' THEN
				INSERT INTO apitoken.organizations (id, name) VALUES (NEW.id::text, NEW.name)
				ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name;
			ELSIF TG_TABLE_NAME = 'users' THEN
				INSERT INTO apitoken.users (id, name) VALUES (NEW.id::text, NEW.name)
				ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name;
			ELSE
				INSERT INTO apitoken.memberships (organization_id, user_id, role) VALUES (NEW.organization_id::text, NEW.user_id::text, NEW.role)
				ON CONFLICT (organization_id, user_id) DO UPDATE SET role = EXCLUDED.role;
			END IF;
			RETURN NULL;
		END $$;
		REVOKE ALL ON FUNCTION app.sync() FROM PUBLIC;
		ALTER FUNCTION app.sync() OWNER TO regress_apitoken_sync;
		CREATE TRIGGER sync AFTER INSERT OR UPDATE OR DELETE ON app.organizations FOR EACH ROW EXECUTE FUNCTION app.sync();
		CREATE TRIGGER sync AFTER INSERT OR UPDATE OR DELETE ON app.users FOR EACH ROW EXECUTE FUNCTION app.sync();
		CREATE TRIGGER sync AFTER INSERT OR UPDATE OR DELETE ON app.members FOR EACH ROW EXECUTE FUNCTION app.sync();
	});
	my $directory = q{SELECT coalesce(string_agg(o.name || ' ' || u.name || ' ' || m.role, ', '), 'none') FROM apitoken.memberships m
		JOIN apitoken.organizations o ON o.id = m.organization_id JOIN apitoken.users u ON u.id = m.user_id WHERE u.id = '8'};
	my $as_alice = "BEGIN; SET LOCAL apitoken.user_id = 'alice';";

	# each in a session that uses the extension for the first time
	foreach my $step (
		[ "INSERT INTO app.organizations VALUES (7, 'Seven'); INSERT INTO app.users VALUES (8, 'Eight'); INSERT INTO app.members VALUES (7, 8, 'developer')",
			'Seven Eight developer' ],
		[ "INSERT INTO app.organizations VALUES (7, 'again') ON CONFLICT (id) DO UPDATE SET name = 'Sept'", 'Sept Eight developer' ],
		[ "UPDATE app.users SET name = 'Huit'", 'Sept Huit developer' ],
		[ "UPDATE app.members SET role = 'admin'", 'Sept Huit admin' ],
		[ 'DELETE FROM app.members', 'none' ],
		[ "INSERT INTO app.members VALUES (7, 8, 'developer')", 'Sept Huit developer' ],
		[ 'DELETE FROM app.users', 'none' ],
		[ 'DELETE FROM app.organizations', 'none' ])
	{
		my ($statement, $result) = @$step;

		is(run("$as_alice $statement; $who COMMIT;"), 'alice', "$form: kept in step under the session's own user: $statement");
		is(admin($directory), $result, "$form: with the result $result");
	}
	is(admin(q{SELECT count(*) FROM apitoken.organizations WHERE id = '7'}), '0', "$form: the organization is gone");

	# ----- a token that came without usage ----------------------------------------

	my $restore = sub
	{
		my ($text, $label) = @_;

		admin(qq{INSERT INTO apitoken_internal.token_records (id, created_at, updated_at, digest_scheme, digest, user_id, label, access, masked)
			SELECT p.id, now(), now(), 0, apitoken.hash('$text'), 'alice', '$label', 'full', apitoken.mask('$text') FROM apitoken.parse('$text') p});
		return admin("SELECT id FROM apitoken.parse('$text')");
	};
	my $usage = "SELECT coalesce(string_agg(accepted || ' ' || apitoken_internal.in_words(last_used_at), ', '), 'none') FROM apitoken.token_usage WHERE token_id = ";
	my ($first, $second) = map { connection_as('regress_apitoken_gateway') } 1 .. 2;
	my @ends = ('COMMIT', 'ROLLBACK');

	ask($second, "SET lock_timeout = '2s'; SET statement_timeout = '4s'");
	foreach my $end (@ends)
	{
		my $text = admin(q{SELECT apitoken.generate('usr')});
		my $token_id = $restore->($text, "restored $end");
		my $asks = "SELECT verdict FROM apitoken.verify('$text')";

		is(admin("$usage '$token_id'"), 'none', "$form: a restored token has no usage ($end)");
		is(ask($first, "BEGIN; $asks"), 'valid', "$form: verified in a transaction that stays open");
		is(ask($second, $asks), 'valid', "$form: the second session does not wait");
		is(ask($second, "BEGIN; $asks; $asks"), 'valid valid', "$form: nor in a transaction");
		is(ask($first, $asks), 'valid', "$form: the first goes on");
		ask($first, $end);
		is(ask($second, "$asks; COMMIT"), 'valid', "$form: the second goes on after $end");
		is(run_as('regress_apitoken_gateway', "$asks;"), 'valid', "$form: and so does a third");
		is(admin("$usage '$token_id'"), '1 just now', "$form: used once, just now ($end)");
		is(admin("SELECT last_used FROM apitoken.tokens WHERE id = '$token_id'"), 'just now', "$form: which the list tells ($end)");
	}
	# a usage row that is locked, or lost with its table's contents
	is(ask($first, "BEGIN; SELECT verdict FROM apitoken.verify('$o2')"), 'valid', "$form: a token with a usage row");
	is(ask($second, "SELECT verdict FROM apitoken.verify('$o2')"), 'valid', "$form: nobody waits for that either");
	ask($first, 'COMMIT');
	admin('DELETE FROM apitoken.token_usage');
	is(ask($first, "SELECT verdict FROM apitoken.verify('$o2')"), 'valid', "$form: without its row");
	is(admin('SELECT count(*) FROM apitoken.token_usage'), '1', "$form: which is made again");
	is(ask($second, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT verdict FROM apitoken.verify('$full'); COMMIT"), 'valid', "$form: not in REPEATABLE READ");
	is(ask($second, "BEGIN READ ONLY; SELECT verdict FROM apitoken.verify('$full'); COMMIT"), 'valid', "$form: not in READ ONLY");
	is(admin('SELECT count(*) FROM apitoken.token_usage'), '1', "$form: where nothing is written");
	$_->quit foreach $first, $second;
}

$node->stop;
no_crash($node);
done_testing();
