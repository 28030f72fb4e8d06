# Figure 12: what a token takes on disk.

use strict;
use warnings;

Bench::figure('12', 'bytes on disk per token', sub {
	my ($b) = @_;
	my $tokens = $b->{quick} ? 20_000 : 100_000;
	my $db = 'bench_disk';

	# loaded as the others are, and not used
	$b->make_database($db);
	$b->psql("SELECT bench.load(1, $tokens)", db => $db);
	$b->psql('VACUUM', db => $db);

	my %figure = (token_records => '12', token_usage => '12b', events => '12c');
	foreach my $table (qw(token_records token_usage events))
	{
		my $schema = $table eq 'token_records' ? 'apitoken_internal' : 'apitoken';
		my ($all, $heap) = split /\|/, $b->psql(
			"SELECT pg_total_relation_size('$schema.$table') / $tokens.0, pg_table_size('$schema.$table') / $tokens.0", db => $db);

		$b->report(
			figure => $figure{$table}, unit => 'bytes', wanted => $table eq 'token_records' ? '<= 450' : undef,
			what => sprintf('%s (heap %.0f, indexes %.0f)', $table, $heap, $all - $heap), value => $all + 0);
	}
	my $indexes = $b->psql(
		"SELECT string_agg(format('%s %s', relname, round(pg_relation_size(oid) / $tokens.0)), ', ' ORDER BY pg_relation_size(oid) DESC)
		FROM pg_class WHERE relnamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND relname ~ '^(token_records|token_usage|events)_' AND pg_relation_size(oid) > $tokens", db => $db);
	$b->note(figure => '12', text => "labels have 5 to 10 characters; bytes a token by index: $indexes");
	$b->psql("DROP DATABASE $db", db => 'postgres');
});

1;
