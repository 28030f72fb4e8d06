# Housekeeping by the worker: once a day in each database that it knows, also
# across restarts; what happens when it fails, or when a flush leaves it no time;
# and what it and the launcher do when the clock is set back.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# While the flag file exists, the server's clock is two days behind.
my $place = PostgreSQL::Test::Utils::tempdir_short();
my $behind = "$place/behind";
my $shimmed = build_library("$place/clock.so", q{
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

int
gettimeofday(struct timeval *now, void *zone)
{
	static int (*real) (struct timeval *, void *);
	int			result;

	if (real == NULL)
		real = (int (*) (struct timeval *, void *)) dlsym(RTLD_NEXT, "gettimeofday");
	result = real(now, zone);
	if (access(getenv("APITOKEN_BEHIND"), F_OK) == 0)
		now->tv_sec -= 2 * 86400;
	return result;
}
});

my $node = start_node('daily', preload => 'shared', conf => q{
	apitoken.flush_interval = '100ms'
	apitoken.retention = '365d'
	log_statement = none
});
my $mark;

# Tokens that are used, idle, regenerated, and revoked long ago, in a new database.
my %token;
sub new_database
{
	my ($database) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, q{
		CREATE EXTENSION apitoken;
		INSERT INTO apitoken.organizations (id, idle_timeout) VALUES ('acme', '30 days');
	});
	$token{$database} = create($node, 'used', q{'acme'}, database => $database);
	fill($database, 'first');
}

# They look as if created 40 days ago; one of them was revoked 2 years ago.
sub fill
{
	my ($database, $round) = @_;
	$node->safe_psql($database, qq{
		SELECT apitoken.create_token('$round ' || l, 'acme') FROM unnest('{idle,regenerated,revoked}'::text[]) l;
		SET session_replication_role = replica;
		UPDATE apitoken_internal.token_records SET created_at = created_at - interval '40 days', updated_at = updated_at - interval '40 days' WHERE label = '$round idle';
		UPDATE apitoken_internal.token_records SET previous_digest = digest, previous_digest_scheme = '{0}', previous_expires_at = ARRAY[now()], previous_replaced_at = ARRAY[now()] WHERE label = '$round regenerated';
		UPDATE apitoken_internal.token_records SET revoked_at = now() - interval '2 years' WHERE label = '$round revoked';
	});
}

# What became of those three, in one line.
sub state_of
{
	my ($database, $round) = @_;
	return $node->safe_psql($database, qq{
		SELECT string_agg(format('%s %s%s', split_part(label, ' ', 2), coalesce(revoke_reason, 'as it was'), CASE WHEN previous_digest IS NOT NULL THEN ', two secrets' END),
			'; ' ORDER BY label)
		FROM apitoken_internal.token_records WHERE label LIKE '$round %'});
}
my $untouched = 'idle as it was; regenerated as it was, two secrets; revoked as it was';
my $done = 'idle idle; regenerated as it was, two secrets';

# A use, which the launcher has written.
my %uses;
sub use_and_flush
{
	my ($database) = @_;
	my $count = ++$uses{$database};
	$node->safe_psql($database, "SELECT 1 / valid::int FROM apitoken.verify('$token{$database}')");
	return $node->poll_query_until($database, "SELECT sum(accepted) = $count FROM apitoken.token_usage");
}
sub is_done { my ($database, $round) = @_; return $node->poll_query_until($database, "SELECT revoked_at IS NOT NULL FROM apitoken_internal.token_records WHERE label = '$round idle'"); }

# A clean restart without the saved file: no loss is known then.
sub forget_losses
{
	$node->stop;
	unlink $node->data_dir . '/pg_stat/apitoken.usage';
	$node->start;
	return;
}

# ----- once a day, where tokens are used -----------------------------------------

new_database('app');
new_database('quiet');
ok(use_and_flush('app') && is_done('app', 'first'), 'a database in which a token is used');
is(state_of('app', 'first'), $done, 'is looked after');
is($node->safe_psql('app', q{SELECT DISTINCT actor IS NULL, details #>> '{new,revoke_reason}' FROM apitoken.events WHERE action = 'revoke'}), 't|idle', 'with an event of nobody');
is(state_of('quiet', 'first'), $untouched, 'one in which none is used is not known');

fill('app', 'second');
ok(use_and_flush('app') && use_and_flush('app'), 'rounds later, on the same day');
is(state_of('app', 'second'), $untouched, 'nothing is looked after again');
$node->restart;
ok(use_and_flush('app') && use_and_flush('app'), 'nor after a restart');
is(state_of('app', 'second'), $untouched, 'which does not forget when it was');
is($node->safe_psql('app', q{SELECT tokens_revoked, tokens_removed FROM apitoken.run_maintenance()}), '1|1', 'run_maintenance() does it whenever it is called');

# a crash forgets it
fill('app', 'third');
$node->stop('immediate');
$node->start;
ok(use_and_flush('app') && $node->poll_query_until('app', q{SELECT maintenance_problem IS NOT NULL FROM apitoken.stats}), 'a crash does');
is(state_of('app', 'third'), 'idle as it was; regenerated as it was, two secrets', 'and it is done again, but no token is idle for certain');
like($node->safe_psql('app', 'SELECT maintenance_problem FROM apitoken.stats'), qr/may have been used: use was lost in a crash/, 'as stats tells');
forget_losses();
ok(use_and_flush('app') && is_done('app', 'third'), 'when that is forgotten');
is(state_of('app', 'third'), $done, 'all is done');

# ----- where it fails -------------------------------------------------------------

new_database('failing');
$node->safe_psql('failing', q{
	CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not today'; END$$;
	CREATE TRIGGER fail BEFORE UPDATE ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION fail();
});
$mark = log_mark($node);
ok(use_and_flush('failing'), 'where it fails, use is written');
$node->wait_for_log(qr/could not run maintenance in database with OID \d+: not today/, $mark);
ok(use_and_flush('failing') && use_and_flush('failing'), 'and goes on to be');
is(in_log($node, qr/could not run maintenance/, $mark), 1, 'it is told once, and tried again tomorrow');
is(state_of('failing', 'first'), 'idle as it was; regenerated as it was, two secrets', 'what can be done is done');

# ----- a flush that takes most of the worker's time --------------------------------

# The flush takes three of the worker's four seconds; housekeeping needs half of
# the four.
new_database('slow');
$node->safe_psql('slow', q{
	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(tg_argv[0]::float8); RETURN NULL; END$$;
	CREATE TRIGGER slow AFTER INSERT ON apitoken.token_usage FOR EACH STATEMENT EXECUTE FUNCTION slow('3');
	CREATE TRIGGER slow AFTER UPDATE ON apitoken_internal.token_records FOR EACH STATEMENT EXECUTE FUNCTION slow('0.6');
});
$mark = log_mark($node);
ok(use_and_flush('slow') && is_done('slow', 'first'), 'a flush that leaves no time');
is(state_of('slow', 'first'), $done, 'puts housekeeping off to the next worker');
is(in_log($node, qr/could not/, $mark), 0, 'and not to tomorrow');

# ----- a clock that is set back ------------------------------------------------------

SKIP:
{
	skip 'no C compiler', 7 unless $shimmed;

	$node->stop;
	{
		local $ENV{LD_PRELOAD} = "$place/clock.so";
		local $ENV{APITOKEN_BEHIND} = $behind;
		$node->start;
	}
	ok(use_and_flush('app') && use_and_flush('failing'), 'use is written');
	is($node->safe_psql('app', 'SELECT now() > pg_postmaster_start_time()'), 't', 'with the clock as it is');

	# a flush of one database has failed and is to be tried again
	$node->safe_psql('failing', q{
		CREATE FUNCTION fail_too() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$;
		CREATE TRIGGER fail_too BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION fail_too();
		SELECT 1 / valid::int FROM apitoken.verify('} . $token{failing} . q{');
	});
	$node->wait_for_log(qr/could not write token usage in database "failing": not now/);
	$node->safe_psql('failing', 'DROP FUNCTION fail_too CASCADE');
	fill('app', 'fourth');

	append_to_file($behind, '');
	is($node->safe_psql('app', 'SELECT now() < pg_postmaster_start_time()'), 't', 'set back by two days');
	ok(use_and_flush('app'), 'the launcher does not wait until it is that late again');
	$uses{failing}++;
	ok($node->poll_query_until('failing', "SELECT sum(accepted) = $uses{failing} FROM apitoken.token_usage"), 'nor does what had failed');
	ok(is_done('app', 'fourth'), 'nor housekeeping');
	unlink($behind);
	ok(use_and_flush('app'), 'and set forward again it goes on');
}

$node->stop;
no_crash($node);
done_testing();
