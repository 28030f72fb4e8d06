# What a flush writes: one row of each token, in place, with little WAL; the days
# before the last one in a table of their own; and each token once before any is
# written again.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Whole pages would hide what a row takes, and vacuum would change where rows go.
my $node = start_node('usage_rows', preload => 'shared', conf => q{
	apitoken.flush_interval = '1h'
	autovacuum = off
	full_page_writes = off
});
my $today = $node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE TABLE keys (n int, id uuid, token text);
	INSERT INTO keys SELECT i, t.id, t.token FROM generate_series(1, 3000) i, apitoken.create_token('key ' || i, user_id => 'u') t;
	VACUUM ANALYZE;
	SELECT (now() AT TIME ZONE 'UTC')::date});

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub used { my ($condition) = @_; return one("SELECT count(*) FROM keys, apitoken.verify(token, client_address => '192.0.2.1') v WHERE v.valid AND $condition"); }
sub flush { return one('SELECT apitoken.flush_usage()'); }

# The updates of token_usage, those of them in place, and the WAL of one more use of a thousand tokens.
sub measured
{
	my ($updates, $hot, $bytes);
	my $counters = q{SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'apitoken.token_usage'::regclass};

	used('n <= 1000');
	my ($updates_before, $hot_before) = split /\|/, one($counters);
	my $lsn = one('SELECT pg_current_wal_insert_lsn()');
	flush();
	$bytes = one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '$lsn')");
	$node->poll_query_until('postgres', "SELECT n_tup_upd >= $updates_before + 1000 FROM ($counters) c");
	($updates, $hot) = split /\|/, one($counters);
	return ($updates - $updates_before, $hot - $hot_before, $bytes);
}

# ----- in place --------------------------------------------------------------

# The first use makes rows longer, so some move to other pages.
foreach (1, 2)
{
	used('n <= 1000');
	flush();
}
foreach my $time ('third', 'fourth')
{
	my ($updates, $hot, $bytes) = measured();

	is("$updates $hot", '1000 1000', "the $time use of a day: one row of each token, all in place");
	cmp_ok($bytes, '<=', 1000 * 120, 'at most 120 bytes of WAL for each');
}
is(one('SELECT count(*), (SELECT count(*) FROM apitoken_internal.token_days) FROM apitoken.token_usage_daily'), '1000|0', 'one row of each token, of its last day');
is(one("SELECT DISTINCT u.accepted, d.day = '$today' OR d.day = '$today'::date + 1, d.accepted, d.refused, d.refusals IS NULL FROM apitoken.token_usage u JOIN apitoken.token_usage_daily d USING (token_id)"),
	'4|t|4|0|t', 'with its counts');

# ----- days ------------------------------------------------------------------

# accepted, and refused with a verdict, on each day; the sum of token_usage
sub days
{
	my ($n) = @_;
	return one("SELECT string_agg(concat_ws(' ', d.day - current_day, d.accepted, d.refused, refusals), ', ' ORDER BY d.day), u.accepted, u.refused
		FROM keys k JOIN apitoken.token_usage u ON u.token_id = k.id JOIN apitoken.token_usage_daily d USING (token_id), (SELECT '$today'::date AS current_day) c
		WHERE n = $n GROUP BY u.accepted, u.refused");
}
# A batch from elsewhere may have any day: triples of a token, a day, from today, and accepted uses.
sub batch
{
	my (@uses) = @_;
	my @objects;

	while (my ($n, $day, $accepted) = splice @uses, 0, 3)
	{
		push @objects, sprintf '{"token_id": "%s", "day": "%s", "accepted": %d, "refused": {"expired": 1}, "last_used_at": "2020-01-01"}',
			one("SELECT COALESCE((SELECT id FROM keys WHERE n = $n), apitoken_internal.new_id())"), one("SELECT '$today'::date + $day"), $accepted;
	}
	return sprintf q{SELECT apitoken.record_usage('11111111-1111-4111-8111-111111111111', apitoken_internal.new_id(), '[%s]')}, join ', ', @objects;
}
# The same of one token.
sub arrives
{
	my ($n, @uses) = @_;
	my @triples;

	push @triples, $n, splice @uses, 0, 2 while @uses;
	return one(batch(@triples));
}

arrives(2001, -5, 1);
is(days(2001), '-5 1 1 {"expired": 1}|1|1', 'a day');
arrives(2001, -5, 1);
is(days(2001), '-5 2 2 {"expired": 2}|2|2', 'the same day again');
arrives(2001, -3, 4);
is(days(2001), '-5 2 2 {"expired": 2}, -3 4 1 {"expired": 1}|6|3', 'a later day');
arrives(2001, -5, 1, -4, 10, -3, 1);
is(days(2001), '-5 3 3 {"expired": 3}, -4 10 1 {"expired": 1}, -3 5 2 {"expired": 2}|18|6', 'three days in one batch, two of them earlier');
arrives(2001, -3, 1, -3, 1, -2, 7);
is(days(2001), '-5 3 3 {"expired": 3}, -4 10 1 {"expired": 1}, -3 7 4 {"expired": 4}, -2 7 1 {"expired": 1}|27|9', 'a day twice, and a later one');
used('n = 2001');
flush();
is(one("SELECT count(*), count(*) FILTER (WHERE day < (SELECT last_day FROM apitoken.token_usage WHERE token_id = k.id)) FROM keys k JOIN apitoken_internal.token_days d ON d.token_id = k.id WHERE n = 2001"),
	'4|4', 'what is not the last day is elsewhere');
one('DELETE FROM apitoken.token_usage WHERE token_id = (SELECT id FROM keys WHERE n = 2002)');
arrives(2002, -2, 1, -1, 1);
is(days(2002), '-2 1 1 {"expired": 1}, -1 1 1 {"expired": 1}|2|2', 'the same of a token without a row of usage');

# one batch of tokens that were used last on that day, before it, after it, never, and of one that does not exist
arrives(2011, -2, 1);
arrives(2012, -4, 1);
arrives(2013, -1, 1);
one('DELETE FROM apitoken.token_usage WHERE token_id = (SELECT id FROM keys WHERE n = 2015)');
one(batch(map { ($_, -2, 5) } 2011 .. 2015, 999999));
is(days(2011), '-2 6 2 {"expired": 2}|6|2', 'of several tokens: one that was used on that day');
is(days(2012), '-4 1 1 {"expired": 1}, -2 5 1 {"expired": 1}|6|2', 'one that was used before');
is(days(2013), '-2 5 1 {"expired": 1}, -1 1 1 {"expired": 1}|6|2', 'one that was used later');
is(days($_), '-2 5 1 {"expired": 1}|5|1', 'one that was never used' . ($_ == 2015 ? ', without a row' : '')) foreach 2014, 2015;
is(one('SELECT count(*) FROM apitoken.token_usage LEFT JOIN keys ON id = token_id WHERE id IS NULL'), '0', 'and none of a token that does not exist');

# rows that another transaction changes meanwhile: the last day, so that it is no longer that of the batch, the counts, and none
my $other = $node->background_psql('postgres');
my $waiting = $node->background_psql('postgres');
sub meanwhile
{
	my ($change, $end, @uses) = @_;

	$other->query_safe("BEGIN; $change");
	$waiting->query_until(qr/asked/, "\\echo asked\n" . batch(@uses) . ";\n");
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%record_usage%'}), 'a batch waits for a row');
	$other->query_safe($end);
	return $waiting->query_safe('SELECT 1');
}
my $row = 'token_id = (SELECT id FROM keys WHERE n = 2011)';
meanwhile("UPDATE apitoken.token_usage SET last_day = last_day - 1 WHERE $row", 'COMMIT', 2011, -2, 3, 2012, -2, 3);
is(days(2011), '-3 6 2 {"expired": 2}, -2 3 1 {"expired": 1}|9|3', 'another last day: both days');
is(days(2012), '-4 1 1 {"expired": 1}, -2 8 2 {"expired": 2}|9|3', 'and the other token, once');
meanwhile("UPDATE apitoken.token_usage SET accepted = accepted + 100, day_accepted = day_accepted + 100 WHERE $row", 'COMMIT', 2011, -2, 1);
is(days(2011), '-3 6 2 {"expired": 2}, -2 104 2 {"expired": 2}|110|4', 'other counts: both are added');
meanwhile("UPDATE apitoken.token_usage SET last_day = last_day - 1, accepted = 0 WHERE $row", 'ROLLBACK', 2011, -2, 1, 2012, -2, 1);
is(days(2011), '-3 6 2 {"expired": 2}, -2 105 3 {"expired": 3}|111|5', 'rolled back');
is(days(2012), '-4 1 1 {"expired": 1}, -2 9 3 {"expired": 3}|10|4', 'and the other token, once');
meanwhile("DELETE FROM apitoken.token_usage WHERE $row; DELETE FROM apitoken_internal.token_days WHERE $row", 'COMMIT', 2011, -2, 1, 2012, -2, 1);
is(days(2011), '-2 1 1 {"expired": 1}|1|1', 'a row that is gone');
is(days(2012), '-4 1 1 {"expired": 1}, -2 10 4 {"expired": 4}|11|5', 'and the other token, once');
$_->quit foreach $other, $waiting;

# what a trigger of the owner keeps out is in neither table
my $known = days(2001);
one(q{CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	CREATE TRIGGER keep_out BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION keep_out()});
arrives(2001, $_, 1) foreach -6, 0, 0;
one('DROP FUNCTION keep_out CASCADE');
is(days(2001), $known, 'a trigger that keeps the rows as they are, also those of the days');

# ----- a flush that fails late ----------------------------------------------------

# Use is in shared memory until it is in the tables, whatever was written before the error.
my ($old) = one(q{SELECT token FROM keys WHERE n = 2022});
one(q{SELECT token IS NOT NULL FROM apitoken.regenerate_token((SELECT id FROM keys WHERE n = 2022), overlap => '1 day')});
one(q{CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
	CREATE TRIGGER fail BEFORE UPDATE OF previous_last_used_at ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION fail()});
used('n IN (2021, 2023)');
is(one("SELECT valid FROM apitoken.verify('$old')"), 't', 'a token is used with its previous secret');
isnt($node->psql('postgres', 'SELECT apitoken.flush_usage()'), 0, 'a flush fails after it has written the counts');
one('DROP FUNCTION fail CASCADE');
flush();
is(one('SELECT string_agg(accepted::text, \' \' ORDER BY n) FROM keys JOIN apitoken.token_usage u ON u.token_id = id WHERE n BETWEEN 2021 AND 2023'), '1 1 1', 'each use is counted once');
used('n = 2021');
one("SELECT valid FROM apitoken.verify('$old')");
flush();
configure($node, 'apitoken.flush_interval', '1s');
ok($node->poll_query_until('postgres', 'SELECT entries = 0 FROM apitoken.stats'), 'nothing of what was written stays in memory');
configure($node, 'apitoken.flush_interval', '1h');

# ----- each token once -------------------------------------------------------

# A worker has no time for all of them.  Those that it has written are used again,
# and wait until the others have been written.
$node->safe_psql('postgres', q{
	INSERT INTO keys SELECT i, t.id, t.token FROM generate_series(3001, 12000) i, apitoken.create_token('key ' || i, user_id => 'u') t;
	CREATE TABLE written (n int GENERATED ALWAYS AS IDENTITY, token_id uuid);
	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(0.0003);
		INSERT INTO public.written (token_id) VALUES (NEW.token_id);
		RETURN NEW;
	END $$;
	CREATE TRIGGER slow BEFORE UPDATE ON apitoken.token_usage FOR EACH ROW EXECUTE FUNCTION slow()});
my $before = one('SELECT sum(accepted) FROM apitoken.token_usage');
used('true');
my $flusher = $node->background_psql('postgres', on_error_stop => 0);
$flusher->query_until(qr/asked/, "\\echo asked\nSELECT apitoken.flush_usage();\n");
ok($node->poll_query_until('postgres', 'SELECT count(*) BETWEEN 1 AND 11999 FROM written'), 'a flush has written some');
my $again = used('id IN (SELECT token_id FROM written)');
$flusher->query('SELECT 1');
$flusher->quit;
my $failed = one('SELECT last_flush_error IS NOT NULL FROM apitoken.stats') eq 't';
$node->poll_query_until('postgres', 'SELECT apitoken.flush_usage() IS NOT NULL');
SKIP:
{
	# what a flush could not write goes after all others
	skip 'the machine is so busy that a batch took more than two seconds', 1 if $failed;
	is(one('SELECT count(DISTINCT token_id) FROM (SELECT token_id FROM written ORDER BY n LIMIT 12000) w'), '12000', 'each token is written before any is written again');
}
is(one('SELECT sum(accepted) FROM apitoken.token_usage'), $before + 12000 + $again, 'and each use is counted once');
is(one('SELECT count(*) FROM apitoken.token_usage u WHERE accepted <> (SELECT sum(accepted) FROM apitoken.token_usage_daily d WHERE d.token_id = u.token_id)'), '0', 'the days add up');
is(one('SELECT dropped FROM apitoken.stats'), '0', 'none is dropped');

$node->stop;
done_testing();
