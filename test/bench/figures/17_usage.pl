# Figure 17: writing the use of many different tokens.

use strict;
use warnings;

# What one flush writes: tokens a second, bytes of WAL for each, and the share of
# updates in place.  The launcher sleeps, so all of the use is written by this flush.
my $flush = q{
	SELECT count((apitoken.verify(token, client_address => '192.0.2.7')).valid) AS used FROM bench.keys \gset
	SELECT pg_stat_get_tuples_updated(oid) AS updated, pg_stat_get_tuples_hot_updated(oid) AS hot, pg_current_wal_insert_lsn() AS lsn, clock_timestamp() AS at
		FROM pg_class WHERE oid = 'apitoken.token_usage'::regclass \gset
	SELECT apitoken.flush_usage() \g /dev/null
	SELECT :used / extract(epoch FROM clock_timestamp() - :'at') AS rate, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :'lsn') / :used AS bytes \gset
	-- the counters of the workers that have ended
	SELECT pg_stat_clear_snapshot() \g /dev/null
	SELECT :rate, :bytes, (pg_stat_get_tuples_hot_updated(oid) - :hot) / (pg_stat_get_tuples_updated(oid) - :updated)::numeric
		FROM pg_class WHERE oid = 'apitoken.token_usage'::regclass};

Bench::figure('17', 'writing the use of many tokens', sub {
	my ($b) = @_;
	my $tokens = $b->{quick} ? 50_000 : 1_000_000;
	my %there = (port => $b->{port} + 1, db => 'used');
	my (@first, @again);

	# Whole pages are in WAL once after each checkpoint, which is another question.
	$b->start('used', $b->settings(port => $there{port}, full_page_writes => 'off', 'apitoken.usage_slots' => $tokens + 100_000, 'apitoken.flush_interval' => '1h'));
	$b->make_database('used', %there);
	for (my $from = 1; $from <= $tokens; $from += 100_000)
	{
		$b->psql("SELECT bench.load($from, least($from + 99999, $tokens))", %there);
	}
	$b->psql('VACUUM ANALYZE', %there);
	# A flush looks up tokens of the last minute first, because they may not be committed yet.
	$b->psql(q{SELECT pg_sleep_until(max(created_at) + interval '61 s') FROM apitoken_internal.token_records}, %there);

	# The first use of a token changes its row from a short one, and the next one may find no room.
	my @ever = split /\|/, $b->psql($flush, %there);
	$b->psql($flush, %there);
	foreach (1 .. $b->{rounds})
	{
		$b->psql(q{UPDATE apitoken.token_usage SET last_day = last_day - 1; VACUUM apitoken.token_usage}, %there);
		push @first, [ split /\|/, $b->psql($flush, %there) ];
		push @again, [ split /\|/, $b->psql($flush, %there) ];
	}
	my $of = sub { my ($n, @of) = @_; return [ map { $_->[$n] } @of ]; };

	$b->report(figure => '17', unit => 'tokens/s', wanted => '>= 100000', what => "a flush writes the use of $tokens tokens, used before on that day", value => $of->(0, @again));
	$b->report(figure => '17', unit => 'bytes', wanted => '<= 120', what => 'its WAL for each of them', value => $of->(1, @again));
	$b->report(figure => '17', unit => '', what => 'share of the rows that were updated in place', value => $of->(2, @again));
	$b->report(figure => '17', unit => 'tokens/s', what => 'the same, the first use of a day', value => $of->(0, @first));
	$b->report(figure => '17', unit => 'bytes', what => 'its WAL for each of them', value => $of->(1, @first));
	$b->report(figure => '17', unit => 'tokens/s', what => 'the same, the first use ever', value => $ever[0]);
	$b->report(figure => '17', unit => 'bytes', what => 'its WAL for each of them', value => $ever[1]);
	$b->report(figure => '17', unit => 'uses', what => 'dropped', value => $b->psql('SELECT dropped FROM apitoken.stats', %there) + 0);
	$b->note(figure => '17', text => 'without full page writes');
	$b->stop('used');
}, long => 1, own_server => 1);

1;
