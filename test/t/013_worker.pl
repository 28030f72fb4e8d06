# The launcher and its workers with obstacles: the extension is missing, new, or of
# another version; the database disappears; there is a lock, a trigger, a setting;
# a process is killed; there is no free worker or no disk space.  In each case,
# all recorded usage that can still be written is written.  The log gets one
# message and not many, and work resumes when the trouble is over.

use strict;
use warnings;

use ApitokenTest;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $place = PostgreSQL::Test::Utils::tempdir_short();

# While the flag file exists, no relation of a database can be written or extended.
my $no_space = "$place/no_space";
my $shim = "$place/no_space.so";
my $shimmed = build_library($shim, q{
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int
full(int fd)
{
	char		link[64];
	char		path[4096];
	ssize_t		length;

	if (access(getenv("APITOKEN_NO_SPACE"), F_OK) != 0)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	return strstr(path, "/base/") != NULL;
}

#define GUARDED(type, name, parameters, arguments, failure) \
	type name parameters \
	{ \
		static type (*real) parameters; \
		if (real == NULL) \
			real = (type (*) parameters) dlsym(RTLD_NEXT, #name); \
		if (full(fd)) \
			failure; \
		return real arguments; \
	}

GUARDED(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), { errno = ENOSPC; return -1; })
GUARDED(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), { errno = ENOSPC; return -1; })
GUARDED(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at), { errno = ENOSPC; return -1; })
GUARDED(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at), { errno = ENOSPC; return -1; })
GUARDED(int, posix_fallocate, (int fd, off_t at, off_t size), (fd, at, size), return ENOSPC)
GUARDED(int, posix_fallocate64, (int fd, off64_t at, off64_t size), (fd, at, size), return ENOSPC)
GUARDED(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), { errno = ENOSPC; return -1; })
});

my $postmaster_env = sub {
	my ($code) = @_;
	local $ENV{LD_PRELOAD} = $shim if $shimmed;
	local $ENV{APITOKEN_NO_SPACE} = $no_space;
	return $code->();
};
my $node = $postmaster_env->(sub { start_node('worker', preload => 'shared', conf => q{
	apitoken.flush_interval = '100ms'
	max_worker_processes = 8
	restart_after_crash = on
	autovacuum = off
	log_statement = none
	log_min_duration_statement = -1
}) });
run_on($node, database => 'app');

$node->safe_psql('postgres', q{
	CREATE ROLE regress_apitoken_owner LOGIN;
	CREATE ROLE regress_apitoken_weak;
});
# The databases: control stays undisturbed; everything happens to app.
my %token;
sub install
{
	my ($database) = @_;
	$node->safe_psql($database, 'CREATE EXTENSION apitoken; ' . view_of_usage());
	$token{$database} = create($node, 't', q{user_id => 'u'}, database => $database);
	return;
}
sub use_it
{
	my ($database, $times) = @_;
	$node->safe_psql($database, "SELECT 1 / v.valid::int FROM apitoken.verify('$token{$database}') v;" x ($times // 1));
	return;
}
sub accepted { my ($database) = @_; return $node->safe_psql($database, q{SELECT accepted FROM used WHERE label = 't'}); }
# The launcher writes it; the session that asks does not.
sub comes_to
{
	my ($database, $count, $name) = @_;
	ok($node->poll_query_until($database, "SELECT accepted >= $count FROM used WHERE label = 't'"), "$name: written");
	is(accepted($database), $count, "$name: once");
}
my $mark = 0;
sub mark { $mark = log_mark($node); return; }
sub told { my ($pattern) = @_; $node->wait_for_log($pattern, $mark); return; }
# (not what a session was answered)
my $any_trouble = qr/(?:WARNING|LOG|FATAL):  .*(?:could not write token usage|exited before writing|could not start background worker|could not run maintenance)/;
# After several tries the log still has the message once, and no similar ones.
sub told_once
{
	my ($pattern, $name) = @_;
	is(in_log($node, qr/WARNING:  .*$pattern/, $mark), 1, "$name: told once");
	is(in_log($node, $any_trouble, $mark), 1, "$name: and nothing else");
	return;
}
# Tries that failed: each leaves its time in stats.
sub tries
{
	my ($database, $count, $name) = @_;
	my %seen;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my $at = $node->safe_psql($database, 'SELECT last_flush_error_at FROM apitoken.stats');
		$seen{$at} = 1 if $at ne '';
		last if keys %seen >= $count;
		select undef, undef, undef, 0.1;
	}
	cmp_ok(scalar keys %seen, '>=', $count, "$name: tried again");
	return;
}
# One kind of trouble is over: the usage is written, the log gets one more message,
# and the launcher's delay, which doubles each time, starts anew.
my %count;
sub over
{
	my ($name) = @_;
	comes_to('app', $count{app}, $name);
	is(in_log($node, qr/resumed writing token usage/, $mark), 1, "$name: told that it is over");
	is($node->safe_psql('app', 'SELECT last_flush_error IS NULL FROM apitoken.stats'), 't', "$name: stats has no error");
	is($node->safe_psql('app', q{SELECT count(*) FROM (SELECT token_id FROM apitoken.token_usage u JOIN apitoken.token_usage_daily d USING (token_id) GROUP BY u.token_id
		HAVING sum(d.accepted) <> min(u.accepted)) s}), '0', "$name: and the days add up");
	return;
}
sub use_app { my ($times) = @_; use_it('app', $times); $count{app} += $times // 1; return; }

$node->safe_psql('postgres', "CREATE DATABASE $_") foreach 'control', 'app';
install($_) foreach 'control', 'app';
$count{app} = 0;

# There is one launcher, without a database, and no worker stays.
is($node->safe_psql('postgres', q{SELECT count(*), count(datid) FROM pg_stat_activity WHERE backend_type = 'apitoken launcher'}), '1|0', 'one launcher, without a database');
use_app(3);
comes_to('app', 3, 'by a worker');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'apitoken worker'}), 'which goes');

# ----- the table is locked -----------------------------------------------------

foreach my $lock ('LOCK TABLE apitoken.token_usage IN ACCESS EXCLUSIVE MODE', 'LOCK TABLE apitoken.token_usage IN SHARE MODE',
	'LOCK TABLE apitoken_internal.token_records IN ACCESS EXCLUSIVE MODE', 'SELECT 1 FROM apitoken.token_usage FOR UPDATE')
{
	# used before, because nobody can read a locked token_records
	my $blocker = $node->background_psql('app', on_error_stop => 0);
	my $user = $node->background_psql('app', on_error_stop => 0);
	$user->query("SELECT 1 / v.valid::int FROM apitoken.verify('$token{app}') v");
	comes_to('app', ++$count{app}, "before $lock");
	mark();
	if ($lock =~ /token_records/)
	{
		# the use is recorded but not yet written when the lock comes: an earlier lock
		# held up the flush
		my $holder = $node->background_psql('app', on_error_stop => 0);
		$holder->query('BEGIN; LOCK TABLE apitoken.token_usage IN SHARE MODE');
		use_app(2);
		$blocker->query("BEGIN; $lock");
		$holder->query('ROLLBACK');
		$holder->quit;
	}
	else
	{
		$blocker->query("BEGIN; $lock");
		use_app(2);
	}
	told(qr/could not write token usage in database "app": canceling statement due to lock timeout/);
	if ($lock !~ /token_records/)
	{
		tries('app', 2, $lock);
		is($user->query("SELECT verdict FROM apitoken.verify('$token{app}')"), 'valid', "$lock: verified meanwhile");
		$count{app}++;
	}
	told_once(qr/could not write .* lock timeout/, $lock);
	use_it('control');
	comes_to('control', ++$count{control}, "$lock: another database");
	$blocker->query('ROLLBACK');
	over($lock);
	$_->quit foreach $blocker, $user;
}

# ----- the extension is locked ---------------------------------------------------

# Everybody can lock the extension, and a member of it.  (COMMENT needs the owner.)
# It keeps no use from being written, and no housekeeping from being done.
$node->safe_psql('app', q{CREATE ROLE regress_apitoken_anybody LOGIN; GRANT TEMPORARY ON DATABASE app TO regress_apitoken_anybody});
foreach my $lock ([ 'regress_apitoken_anybody', 'CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql RETURN 1; BEGIN; ALTER FUNCTION pg_temp.f() DEPENDS ON EXTENSION apitoken' ],
	[ undef, 'BEGIN; COMMENT ON EXTENSION apitoken IS NULL' ])
{
	my ($who, $sql) = @$lock;
	my $blocker = connection($node, database => 'app', user => $who);
	mark();
	is(ask($blocker, $sql), '', "$sql");
	is($node->safe_psql('app', q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_extension'::regclass AND granted}), 't', 'it is locked');
	use_app(2);
	comes_to('app', $count{app}, 'an extension that is locked');
	is(run('SET statement_timeout = 5000; SELECT apitoken.flush_usage(); SELECT tokens_revoked FROM apitoken.run_maintenance()'), ' 0', 'flush_usage() and run_maintenance() do not wait');
	is(in_log($node, $any_trouble, $mark), 0, 'and nothing is told');
	$blocker->query('ROLLBACK');
	$blocker->quit;
}
# What a flush waits for is a lock that no session without a worker's rights has.
is(run(q{SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_extension'::regclass AND objsubid <> 0}), '0', 'nobody else holds the lock of a flush');
$node->safe_psql('app', 'DROP OWNED BY regress_apitoken_anybody; DROP ROLE regress_apitoken_anybody');

# ----- another version ---------------------------------------------------------

# A session that has called the function before goes on with it.
{
	my $earlier = connection($node, database => 'app');
	my $use = "SELECT 1 / v.valid::int FROM apitoken.verify('$token{app}') v";

	$earlier->query($use);
	comes_to('app', ++$count{app}, 'before another version');
	mark();
	$node->safe_psql('app', q{UPDATE pg_extension SET extversion = '0.0' WHERE extname = 'apitoken'});
	$earlier->query($use) foreach 1, 2;
	$count{app} += 2;
	$earlier->quit;
}
told(qr/could not write token usage in database "app": extension "apitoken" has version 0\.0, but its library/);
tries('app', 3, 'another version');
is(run('SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'another version: flush_usage() fails');
told_once(qr/has version 0\.0/, 'another version');
# also a version without one of this version's tables
$node->safe_psql('app', 'ALTER EXTENSION apitoken DROP TABLE apitoken.events');
tries('app', 2, 'another version, without a table');
$node->safe_psql('app', 'ALTER EXTENSION apitoken ADD TABLE apitoken.events');
told_once(qr/has version 0\.0/, 'another version, without a table');
$node->safe_psql('app', q{UPDATE pg_extension SET extversion = (SELECT default_version FROM pg_available_extensions WHERE name = 'apitoken') WHERE extname = 'apitoken'});
over('another version');

# ----- what the owner of the tables may do -------------------------------------

# A trigger that fails, a trigger that waits, a rule, and a constraint.
my %obstacle = (
	trigger => [ q{CREATE FUNCTION public.obstacle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'obstacle'; END$$;
		CREATE TRIGGER obstacle BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION public.obstacle()}, qr/obstacle/, 'DROP FUNCTION public.obstacle CASCADE' ],
	'slow trigger' => [ q{CREATE FUNCTION public.obstacle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(600); RETURN new; END$$;
		CREATE TRIGGER obstacle BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION public.obstacle()}, qr/canceling statement due to statement timeout/, 'DROP FUNCTION public.obstacle CASCADE' ],
	rule => [ 'CREATE RULE obstacle AS ON UPDATE TO apitoken.token_usage DO INSTEAD NOTHING', qr/cannot perform UPDATE RETURNING on relation "token_usage"/, 'DROP RULE obstacle ON apitoken.token_usage' ],
	constraint => [ 'ALTER TABLE apitoken.token_usage ADD CONSTRAINT obstacle CHECK (accepted < 0) NOT VALID', qr/violates check constraint "obstacle"/, 'ALTER TABLE apitoken.token_usage DROP CONSTRAINT obstacle' ],
);
foreach my $kind (sort keys %obstacle)
{
	my ($sql, $problem, $remove) = @{ $obstacle{$kind} };
	mark();
	$node->safe_psql('app', $sql);
	use_app(2);
	told(qr/could not write token usage in database "app": .*$problem/);
	tries('app', 2, $kind);
	told_once($problem, $kind);
	$node->safe_psql('app', $remove);
	over($kind);
}

# An owner that is not a superuser must not become one, although a worker's session
# is a superuser's.
my @tables = qw(apitoken.token_usage apitoken_internal.token_days apitoken_internal.token_records);
$node->safe_psql('app', q{
	GRANT CREATE, USAGE ON SCHEMA public TO regress_apitoken_owner;
	GRANT USAGE ON SCHEMA apitoken_internal TO regress_apitoken_owner;
	CREATE TABLE public.seen (who name, session_is_super text, at text);
	ALTER TABLE public.seen OWNER TO regress_apitoken_owner;
} . join '', map { "ALTER TABLE $_ OWNER TO regress_apitoken_owner;" } @tables);
my @attempts = (
	q{ALTER ROLE regress_apitoken_owner SUPERUSER},
	q{SET ROLE NONE},
	q{SET SESSION AUTHORIZATION DEFAULT},
	q{RESET SESSION AUTHORIZATION},
	q{SET LOCAL session_authorization TO DEFAULT},
	q{COPY public.seen TO PROGRAM 'cat'},
);
foreach my $timing ('', 'DEFERRABLE INITIALLY DEFERRED')
{
	mark();
	$node->safe_psql('app', q{SET SESSION AUTHORIZATION regress_apitoken_owner;
		CREATE FUNCTION public.climb() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN }
		. join('', map { "BEGIN $_; INSERT INTO public.seen VALUES (current_user, 'climbed', \$q\$$_\$q\$); EXCEPTION WHEN OTHERS THEN NULL; END;" } @attempts)
		. q{ INSERT INTO public.seen VALUES (current_user, 'no'); RETURN NULL; END$$;} .
		"CREATE CONSTRAINT TRIGGER climb AFTER UPDATE ON apitoken.token_usage $timing FOR EACH ROW EXECUTE FUNCTION public.climb()");
	use_app(1);
	if ($timing eq '')
	{
		comes_to('app', $count{app}, 'a trigger of the owner');
		is($node->safe_psql('app', 'SELECT DISTINCT who, session_is_super FROM public.seen'), 'regress_apitoken_owner|no', 'which runs as the owner, and gets no further');
	}
	else
	{
		told(qr/cannot fire deferred trigger within security-restricted operation/);
		tries('app', 2, 'a deferred trigger of the owner');
		is($node->safe_psql('app', 'SELECT count(*) FROM public.seen'), '0', 'which does not run as the worker');
		told_once(qr/deferred trigger/, 'a deferred trigger of the owner');
	}
	is($node->safe_psql('app', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'regress_apitoken_owner'}), 'f', 'and the owner is no superuser');
	$node->safe_psql('app', 'DROP FUNCTION public.climb() CASCADE; TRUNCATE public.seen');
	comes_to('app', $count{app}, 'without it');
}
# an immediate trigger that defers its own work
$node->safe_psql('app', q{SET SESSION AUTHORIZATION regress_apitoken_owner;
	CREATE FUNCTION public.climb() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN ALTER ROLE regress_apitoken_owner SUPERUSER; RETURN NULL; END$$;
	CREATE CONSTRAINT TRIGGER climb AFTER INSERT ON public.seen DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.climb();
	CREATE FUNCTION public.step() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
		BEGIN INSERT INTO public.seen VALUES (current_user); EXCEPTION WHEN OTHERS THEN NULL; END;
		BEGIN EXECUTE 'DECLARE c CURSOR WITH HOLD FOR SELECT public.climb_now()'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN NULL; END$$;
	CREATE FUNCTION public.climb_now() RETURNS int LANGUAGE plpgsql AS $$BEGIN ALTER ROLE regress_apitoken_owner SUPERUSER; RETURN 1; END$$;
	CREATE TRIGGER step AFTER UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION public.step()});
use_app(1);
comes_to('app', $count{app}, 'a trigger that leaves work for the end');
is($node->safe_psql('app', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'regress_apitoken_owner'}), 'f', 'and the owner is no superuser');
$node->safe_psql('app', 'DROP FUNCTION public.climb, public.step, public.climb_now CASCADE; DROP TABLE public.seen');
$node->safe_psql('app', join ';', map({ "ALTER TABLE $_ OWNER TO CURRENT_USER" } @tables), 'REVOKE USAGE ON SCHEMA apitoken_internal FROM regress_apitoken_owner');

# ----- settings ----------------------------------------------------------------

# Settings of the database, and of the role that the worker's session belongs to;
# and objects in its search_path.  The worker would fail if any of them counted.
mark();
$node->safe_psql('app', q{
	CREATE SCHEMA hostile;
	CREATE FUNCTION hostile.fail(anyelement, anyelement) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE 'hostile'; END$$;
	CREATE FUNCTION hostile.fail_plus(bigint, bigint) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN RAISE 'hostile'; END$$;
	CREATE OPERATOR hostile.= (FUNCTION = hostile.fail, LEFTARG = anyelement, RIGHTARG = anyelement);
	CREATE OPERATOR hostile.+ (FUNCTION = hostile.fail_plus, LEFTARG = bigint, RIGHTARG = bigint);
	CREATE TABLE hostile.token_usage (n int);
	CREATE FUNCTION hostile.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS $$BEGIN RAISE 'hostile'; END$$;
	CREATE FUNCTION hostile.max(timestamptz) RETURNS timestamptz LANGUAGE plpgsql AS $$BEGIN RAISE 'hostile'; END$$;
	-- a trigger that is not to be left out, and takes its time
	CREATE FUNCTION hostile.noticed() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_catalog.pg_sleep(0.3); RETURN new; END$$;
	CREATE TABLE hostile.notices (n int, isolation text, read_only text, session_replication_role text);
	CREATE FUNCTION hostile.notice() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
		INSERT INTO hostile.notices VALUES (1, current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('session_replication_role')); RETURN new; END$$;
	CREATE TRIGGER noticed BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION hostile.noticed();
	CREATE TRIGGER notice BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION hostile.notice();
});
my $uses = 0;
my $superuser = $node->safe_psql('postgres', 'SELECT rolname FROM pg_roles WHERE oid = 10');
my @settings = (
	[ 'default_transaction_read_only', 'on' ], [ 'default_transaction_isolation', 'serializable' ], [ 'default_transaction_deferrable', 'on' ],
	[ 'lock_timeout', q('1ms') ], [ 'statement_timeout', q('100ms') ], [ 'idle_in_transaction_session_timeout', q('1ms') ],
	[ 'search_path', 'hostile, pg_catalog' ], [ 'session_replication_role', 'replica' ], [ 'row_security', 'off' ], [ 'role', 'regress_apitoken_weak' ],
	[ 'transaction_timeout', q('200ms') ]);
foreach my $setting (@settings)
{
	my ($name, $value) = @$setting;
	next if $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = '$name'") eq '0' && $name ne 'role';
	foreach my $target ('DATABASE app', "ROLE $superuser IN DATABASE app")
	{
		next if $name eq 'role' && $target =~ /ROLE/;
		# the use comes first, from a session that the settings do not affect; a lock
		# holds up the flush
		my $holder = $node->background_psql('app', on_error_stop => 0);
		$holder->query('BEGIN; SELECT 1 FROM apitoken.token_usage FOR UPDATE');
		use_app(1);
		my $since = $node->safe_psql('postgres', "ALTER $target SET $name = $value; SELECT clock_timestamp()");
		# a worker that started with the setting, and waits in spite of a lock_timeout
		ok($node->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_stat_activity
			WHERE backend_type = 'apitoken worker' AND datname = 'app' AND backend_start > '$since' AND wait_event_type = 'Lock'"), "$name of $target: a worker");
		$holder->query('COMMIT');
		$holder->query("SELECT apitoken.flush_usage()");
		is($holder->query(q{SELECT accepted FROM used WHERE label = 't'}), $count{app}, "$name of $target: written");
		is($holder->query('SELECT count(*) FROM hostile.notices'), ++$uses, "$name of $target: with the triggers");
		$node->safe_psql('postgres', "ALTER $target RESET $name");
		$holder->quit;
	}
}
is($node->safe_psql('app', 'SELECT DISTINCT isolation, read_only, session_replication_role FROM hostile.notices'), 'read committed|off|origin', 'in a transaction as it should be');
$node->safe_psql('app', 'DROP SCHEMA hostile CASCADE');
is(in_log($node, qr/hostile/, $mark), 0, 'nothing hostile was met');

# ----- a changed interval ------------------------------------------------------

configure($node, 'apitoken.flush_interval', '1h');
use_app(1);
$node->append_conf('postgresql.conf', q{apitoken.flush_interval = '100ms'});
$node->reload;
comes_to('app', $count{app}, 'an interval made shorter counts at once');

# ----- workers and launcher that are ended -------------------------------------

# A worker that waits is caught by its backend type.
sub waiting_worker
{
	my $pid;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND datname = 'app' AND wait_event_type = 'Lock'});
		last if $pid ne '';
		select undef, undef, undef, 0.05;
	}
	return $pid;
}
mark();
{
	my $blocker = $node->background_psql('app', on_error_stop => 0);
	$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage IN ACCESS EXCLUSIVE MODE');
	use_app(3);
	my $pid = waiting_worker();
	is($node->safe_psql('postgres', "SELECT state, query FROM pg_stat_activity WHERE pid = $pid"), 'active|writing the usage of tokens', 'a worker says what it does');
	is($node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)"), 't', 'it is terminated, with rows in hand');
	told(qr/WARNING:  background worker exited before writing token usage/);
	told_once(qr/background worker exited before/, 'terminated');
	# and cancelled: an error as any other (a slow machine may be too late for one of them)
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND datname = 'app' AND wait_event_type = 'Lock'});
		last if in_log($node, qr/canceling statement due to user request/, $mark);
	}
	told(qr/could not write .*: canceling statement due to user request/);
	$blocker->query('ROLLBACK');
	$blocker->quit;
}
over('terminated and cancelled');

# flush_usage() whose worker is terminated
{
	my $blocker = $node->background_psql('app', on_error_stop => 0);
	my $caller = $node->background_psql('app', on_error_stop => 0);
	$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage IN ACCESS EXCLUSIVE MODE');
	use_app(1);
	$caller->query_until(qr/asked/, "\\echo asked\n\\set VERBOSITY sqlstate\nSELECT apitoken.flush_usage();\n");
	my $caught = 0;
	foreach (1 .. 100)
	{
		my $pids = $node->safe_psql('postgres', q{SELECT string_agg(pg_terminate_backend(pid)::text, ' ') FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND datname = 'app'});
		$caught = 1 if $pids ne '';
		last if $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event ILIKE 'bgworkershutdown'}) eq '0';
		select undef, undef, undef, 0.05;
	}
	$caller->query('SELECT 1');
	like($caller->{stderr}, qr/ERROR:  55000/, 'flush_usage() tells that its worker was ended');
	$caller->{stderr} = '';
	$blocker->query('ROLLBACK');
	$_->quit foreach $caller, $blocker;
	comes_to('app', $count{app}, 'and nothing is lost');
}

# the launcher
mark();
my $launcher = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'apitoken launcher'});
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher, 60000)"), 't', 'the launcher is terminated');
use_app(2);
is(run('SELECT apitoken.flush_usage()'), '', 'flush_usage() does not need it');
is(accepted('app'), $count{app}, 'and writes');
use_app(2);
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'apitoken launcher' AND pid <> $launcher"), 'it comes back');
comes_to('app', $count{app}, 'and has the rest written');
is(in_log($node, qr/apitoken launcher.*exited/, $mark), 1, 'told once');

# ----- no free worker ----------------------------------------------------------

# The launcher takes one slot, logical replication the other: none is left.
mark();
$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$postmaster_env->(sub { $node->restart });
use_app(2);
told(qr/WARNING:  could not start background worker to write token usage/);
is(run('SELECT apitoken.flush_usage()'), '[ERROR: 53000]', 'no free worker: flush_usage()');
# several intervals later: such tries leave no trace.  In the other database, a worker was to look for coming expiries.
$node->safe_psql('postgres', 'SELECT pg_sleep(1)');
is(in_log($node, qr/WARNING:  could not start background worker to write token usage in database with OID $_->[0]\n/, $mark), 1, "no free worker: told once of $_->[1]")
	foreach map { [ $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = '$_'"), $_ ] } 'app', 'control';
is(in_log($node, $any_trouble, $mark), 2, 'no free worker: and nothing else');
is($node->safe_psql('app', 'SELECT last_flush_error, launcher_runs FROM apitoken.stats'), 'no background worker is free|t', 'no free worker: as stats tells');
is(accepted('app'), $count{app} - 2, 'no free worker: not written');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$postmaster_env->(sub { $node->restart });
comes_to('app', $count{app}, 'no free worker, and a restart with more');

# ----- killed ------------------------------------------------------------------

mark();
{
	my $blocker = $node->background_psql('app', on_error_stop => 0);
	$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage IN ACCESS EXCLUSIVE MODE');
	use_it('app', 2);
	kill 'KILL', waiting_worker();
	$node->wait_for_log(qr/database system is ready to accept connections/, $mark);
	eval { $blocker->quit; };
}
is(accepted('app'), $count{app}, 'a worker is killed: what was written is there, and what was not is not');
use_app(2);
comes_to('app', $count{app}, 'after which it goes on');
mark();
$launcher = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'apitoken launcher'});
kill 'KILL', $launcher;
$node->wait_for_log(qr/database system is ready to accept connections/, $mark);
use_app(1);
comes_to('app', $count{app}, 'the launcher is killed');

# ----- out of disk -------------------------------------------------------------

SKIP: {
	skip 'cc cannot make a library to preload', 1 unless $shimmed;
	mark();
	# new rows, more than there is room for on the pages there are
	$node->safe_psql('app', q{CREATE TABLE texts AS SELECT n, (apitoken.create_token('many' || n, user_id => 'u')).token AS t FROM generate_series(1, 1000) n;
		DELETE FROM apitoken.token_usage WHERE token_id IN (SELECT id FROM apitoken.tokens WHERE label LIKE 'many%'); VACUUM (TRUNCATE) apitoken.token_usage, texts});
	append_to_file($no_space, 'x');
	$node->safe_psql('app', 'SELECT count(*) FROM texts, apitoken.verify(t)');
	told(qr/could not write token usage in database "app": could not extend file .*: No space left on device/);
	tries('app', 3, 'out of disk');
	is(run('SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'out of disk: flush_usage()');
	is($node->safe_psql('app', 'SELECT count(*) FROM texts, apitoken.verify(t) v WHERE v.valid'), '1000', 'out of disk: verified meanwhile');
	is($node->safe_psql('app', q{SELECT count(*) FROM used WHERE label LIKE 'many%'}), '0', 'out of disk: nothing is written by halves');
	told_once(qr/No space left on device/, 'out of disk');
	unlink $no_space;
	ok($node->poll_query_until('app', q{SELECT sum(accepted) >= 2000 FROM used WHERE label LIKE 'many%'}), 'room again: written');
	is($node->safe_psql('app', q{SELECT sum(accepted), min(accepted), max(accepted) FROM used WHERE label LIKE 'many%'}), '2000|2|2', 'room again: all of it, once');
	is(in_log($node, qr/resumed writing token usage/, $mark), 1, 'room again: told');
	is($node->safe_psql('app', q{SELECT dropped FROM apitoken.stats}), '0', 'and nothing was dropped');
	$node->safe_psql('app', 'DROP TABLE texts');
}

# ----- the extension goes, and comes -------------------------------------------

sub entries { return $node->safe_psql('control', 'SELECT entries FROM apitoken.stats'); }
# with uses in memory
$node->safe_psql('postgres', 'CREATE DATABASE gone');
install('gone');
mark();
{
	my $blocker = $node->background_psql('gone', on_error_stop => 0);
	# a worker that waits for the table gives way after its lock_timeout
	$blocker->query("SET deadlock_timeout = '10s'; BEGIN; LOCK TABLE apitoken.token_usage");
	use_it('gone', 3);
	$blocker->query('DROP EXTENSION apitoken CASCADE; COMMIT');
	$blocker->quit;
}
told(qr/could not write token usage in database "gone": extension "apitoken" is not installed/);
ok($node->poll_query_until('control', 'SELECT entries = 0 FROM apitoken.stats'), 'dropped: the memory is given up after a while');
is(in_log($node, qr/database "gone".*not installed/, $mark), 1, 'dropped: told once');
is(in_log($node, qr/database "gone"/, $mark) - in_log($node, qr/lock timeout/, $mark), 1, 'dropped: and nothing else, but of the lock before');

# The extension exists but is not committed: uses within that transaction are
# written after it, earlier uses are not.
mark();
{
	my $maker = $node->background_psql('gone', on_error_stop => 0);
	$maker->query('BEGIN; CREATE EXTENSION apitoken; CREATE VIEW used AS SELECT r.label, u.accepted FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id;');
	$token{gone} = $maker->query(q{SELECT token FROM apitoken.create_token('t', user_id => 'u')});
	is($maker->query("SELECT verdict FROM apitoken.verify('$token{gone}')"), 'valid', 'being created: a token is used');
	told(qr/could not write token usage in database "gone": extension "apitoken" is not installed/);
	is(run('SELECT 1', database => 'gone'), '1', 'being created: others go on');
	$maker->query('COMMIT');
	$maker->quit;
}
comes_to('gone', 1, 'created');
is(in_log($node, qr/could not write/, $mark), 1, 'being created: told once');

# While a flush runs, DROP EXTENSION waits for it, but no longer.
mark();
{
	my $blocker = $node->background_psql('gone', on_error_stop => 0);
	my $dropper = $node->background_psql('gone', on_error_stop => 0);
	$blocker->query('BEGIN; SELECT 1 FROM apitoken.token_usage FOR UPDATE');
	use_it('gone', 3);
	foreach (1 .. 1200)
	{
		last if $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND datname = 'gone' AND wait_event_type = 'Lock'}) ne '0';
		select undef, undef, undef, 0.05;
	}
	$dropper->query_until(qr/asked/, "\\echo asked\nDROP EXTENSION apitoken CASCADE;\n");
	$blocker->query('COMMIT');
	is($dropper->query(q{SELECT count(*) FROM pg_extension WHERE extname = 'apitoken'}), '0', 'dropped while a flush runs');
	$_->quit foreach $blocker, $dropper;
}
ok($node->poll_query_until('control', 'SELECT entries = 0 FROM apitoken.stats'), 'and nothing is left in memory');
is(in_log($node, qr/deadlock/, $mark), 0, 'without a deadlock');

# ----- databases that are dropped, copied, closed ------------------------------

# Under constant load in another database, and with recent uses in this one.
my $load_file = "$PostgreSQL::Test::Utils::tmp_check/load.sql";
append_to_file($load_file, "SELECT 1 / v.valid::int FROM apitoken.verify('$token{control}') v;\n");
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', '2', '-R', '200', '-T', '600', '-f', $load_file, '-h', $node->host, '-p', $node->port, 'control' ], '>', \my $load_out, '2>', \my $load_err);
mark();
foreach my $round (1 .. 5)
{
	$node->safe_psql('postgres', 'CREATE DATABASE passing');
	install('passing');
	use_it('passing', 5);
	is(run('CREATE DATABASE passing_copy TEMPLATE passing', database => 'postgres'), '', "round $round: copied right after uses");
	use_it('passing', 5);
	is(run('DROP EXTENSION apitoken CASCADE', database => 'passing_copy') =~ s/^\[NOTICE: 00000\]$//r, '', "round $round: dropped from the copy");
	use_it('passing', 5);
	is(run('ALTER DATABASE passing RENAME TO passed', database => 'postgres'), '', "round $round: renamed right after uses");
	is(run('DROP DATABASE passed', database => 'postgres'), '', "round $round: dropped");
	is(run('DROP DATABASE passing_copy', database => 'postgres'), '', "round $round: and the copy");
}
# while a worker in it waits for a lock
$node->safe_psql('postgres', 'CREATE DATABASE passing');
install('passing');
{
	$node->safe_psql('passing', q{CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(2); RETURN new; END$$;
		CREATE TRIGGER slow BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION slow()});
	use_it('passing', 2);
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND datname = 'passing'}), 'a slow worker is in a database');
	is(run('CREATE DATABASE passing_copy TEMPLATE passing', database => 'postgres'), '', 'which is copied meanwhile');
	use_it('passing', 2);
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND datname = 'passing'}), 'and again');
	is(run('DROP DATABASE passing', database => 'postgres'), '', 'and dropped');
	is(run('DROP DATABASE passing_copy', database => 'postgres'), '', 'as is the copy');
	# by force, with the worker in it
	$node->safe_psql('postgres', 'CREATE DATABASE passing');
	install('passing');
	my $blocker = $node->background_psql('passing', on_error_stop => 0);
	$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage');
	use_it('passing', 2);
	is(run('DROP DATABASE passing WITH (FORCE)', database => 'postgres'), '', 'dropped by force');
	eval { $blocker->quit; };
}
$load->signal('TERM');
eval { $load->finish; };
unlike($load_err // '', qr/ERROR|FATAL/, 'the load in another database met no error');
ok($node->poll_query_until('control', 'SELECT entries = 0 FROM apitoken.stats'), 'of databases that are gone nothing is kept');
my $control = $node->safe_psql('control', q{SELECT accepted FROM used WHERE label = 't'});
cmp_ok($control, '>', $count{control}, 'and those of the load are written');
$count{control} = $control;

# closed to connections: the usage is kept until it is open again
mark();
{
	my $blocker = $node->background_psql('app', on_error_stop => 0);
	$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage');
	use_app(4);
	told(qr/lock timeout/);
	$node->safe_psql('postgres', 'ALTER DATABASE app ALLOW_CONNECTIONS false');
	$blocker->query('COMMIT');
	$blocker->quit;
}
use_it('control');
comes_to('control', ++$count{control}, 'a closed database is in nobody\'s way');
my $in_log = in_log($node, qr/WARNING|FATAL/, $mark);
use_it('control', 2);
comes_to('control', $count{control} += 2, 'rounds later');
is(in_log($node, qr/WARNING|FATAL/, $mark), $in_log, 'closed: no storm');
$node->safe_psql('postgres', 'ALTER DATABASE app ALLOW_CONNECTIONS true');
comes_to('app', $count{app}, 'closed, and opened again');
# also over a restart
{
	my $blocker = $node->background_psql('app', on_error_stop => 0);
	$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage');
	use_app(1);
	$node->safe_psql('postgres', 'ALTER DATABASE app ALLOW_CONNECTIONS false');
	eval { $blocker->quit; };
}
$postmaster_env->(sub { $node->restart });
use_it('control');
comes_to('control', ++$count{control}, 'closed, over a restart: others go on');
$node->safe_psql('postgres', 'ALTER DATABASE app ALLOW_CONNECTIONS true');
comes_to('app', $count{app}, 'closed, over a restart, and opened again');

# ----- workers that do not end by themselves, or cannot connect -------------------

# Whoever waits for a worker ends it when they stop waiting.
sub interval { configure($node, 'apitoken.flush_interval', $_[0]); }
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'apitoken worker' AND datname = 'app'};
my $endless = q{CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN LOOP
	BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; WHEN OTHERS THEN NULL; END; END LOOP; END$$;
	CREATE TRIGGER endless BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION endless()};
interval('1h');
$node->safe_psql('app', $endless);
use_app(1);
foreach my $end ('statement_timeout', 'terminated', 'cut off')
{
	my $caller = connection($node, database => 'app');
	my $pid = $caller->query('SELECT pg_backend_pid()');
	$caller->query(q{SET statement_timeout = '1s'}) if $end eq 'statement_timeout';
	$caller->query(q{SET client_connection_check_interval = '100ms'}) if $end eq 'cut off';
	$caller->query_until(qr/asked/, "\\echo asked\nSELECT apitoken.flush_usage();\n");
	ok($node->poll_query_until('postgres', "SELECT ($workers) = 1"), "$end: a worker") if $end ne 'statement_timeout';
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)") if $end eq 'terminated';
	$caller->query('SELECT 1') if $end eq 'statement_timeout';
	$caller->{run}->kill_kill if $end eq 'cut off';
	my $gone = 0;
	foreach (1 .. 20)
	{
		$gone = $node->safe_psql('postgres', $workers) eq '0' and last;
		select undef, undef, undef, 0.1;
	}
	ok($gone, "$end: its worker ends with it");
	eval { $caller->quit; } if $end ne 'cut off';
}

# A trigger that catches the end of its statement does not make a worker endless.
{
	my $start = time;
	is(run('SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'an endless trigger: flush_usage() is told');
	cmp_ok(time - $start, '<=', 8, 'and soon');
	is($node->safe_psql('postgres', $workers), '0', 'and its worker has ended');
	interval('100ms');
	my $oldest = 0;
	foreach my $i (1 .. 10)
	{
		use_it('control');
		comes_to('control', ++$count{control}, "an endless trigger in another database, $i");
		my $age = $node->safe_psql('postgres', q{SELECT coalesce(max(extract(epoch FROM clock_timestamp() - backend_start)), 0) FROM pg_stat_activity WHERE backend_type = 'apitoken worker'});
		$oldest = $age if $age > $oldest;
		select undef, undef, undef, 0.7;
	}
	cmp_ok($oldest, '<', 6, 'no worker becomes old');
}
$node->safe_psql('app', 'DROP FUNCTION endless() CASCADE');
comes_to('app', $count{app}, 'when the trigger is gone');

# A database's owner keeps workers from connecting to several databases.  Others do
# not wait for them one after the other.
{
	my @held = map { "held$_" } 1 .. 4;
	my @holders;
	interval('1h');
	foreach my $database (@held)
	{
		$node->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE control OWNER regress_apitoken_owner");
		$token{$database} = $token{control};
		use_it($database);
		push @holders, connection($node);
		is(ask($holders[-1], "BEGIN; ALTER DATABASE $database RENAME TO was_$database"), '', "$database is held");
	}
	interval('100ms');
	foreach my $i (1 .. 4)
	{
		my $start = time;
		use_it('control');
		comes_to('control', ++$count{control}, "databases that are held, $i");
		cmp_ok(time - $start, '<=', 7, "databases that are held, $i: nobody waits for them");
	}
	$_->query('ROLLBACK') foreach @holders;
	$_->quit foreach @holders;
	is(run("DROP DATABASE $_ WITH (FORCE)", database => 'postgres'), '', "$_ is free") foreach @held;
}
ok($node->poll_query_until('control', 'SELECT entries = 0 FROM apitoken.stats'), 'and nothing is left of them');

# ----- a stop in the middle ----------------------------------------------------

# with a worker that holds rows and waits for a lock
mark();
{
	my $blocker = $node->background_psql('app', on_error_stop => 0);
	$blocker->query('BEGIN; LOCK TABLE apitoken.token_usage');
	use_app(3);
	waiting_worker();
	$postmaster_env->(sub { $node->restart });
	eval { $blocker->quit; };
}
comes_to('app', $count{app}, 'stopped while a worker has rows in hand');

$node->stop;
no_crash($node, killed => 1);
done_testing();
