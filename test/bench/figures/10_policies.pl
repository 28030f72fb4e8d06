# Figure 10: what policies on a table of the user's own cost.

use strict;
use warnings;

Bench::figure('10', "policies on a user's own table", sub {
	my ($b) = @_;
	my $rows = $b->{quick} ? 100_000 : 1_000_000;
	my $per_row = $rows / 20;
	my $name = $rows == 1_000_000 ? '10^6' : '10^5';

	$b->psql_file("$b->{here}/policies.sql", vars => { rows => $rows });
	my ($token) = $b->psql(q{SELECT token FROM apitoken.create_token('policies', organization_id => 'policy-1')});
	my %identity = (
		user => q{SELECT FROM apitoken.act_as('policy-member')},
		token => "SELECT FROM apitoken.authenticate('$token')");
	my %queries = (
		count => [ 'SELECT count(*) FROM bench.TABLE', $b->{quick} ? 500 : 300 ],
		scan => [ 'SELECT count(*) FROM bench.TABLE', 3, 'SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off' ],
		point => [ 'SELECT title FROM bench.TABLE WHERE id = 7', $b->{quick} ? 2000 : 20_000 ]);
	my $time = sub {
		my ($query, $table, $as) = @_;
		my ($sql, $times, $settings) = @{ $queries{$query} };

		$sql =~ s/TABLE/$table/;
		return $b->microseconds($sql, times => $times, user => 'bench_policies', before => join '; ', $identity{$as}, $settings // ());
	};
	my %what = (
		count => 'count of the visible rows by index', scan => "count of the visible rows, $name rows read", point => 'a row by primary key');
	# how many rows they see is three thousandths, and one
	my @policies = (
		[ '10', 'allowed', 'constants', 'user', 'organizations_allowed(), member of three organizations' ],
		[ '10b', 'own', 'constant', 'token', 'current_organization_id()' ]);

	foreach my $policy (@policies)
	{
		my ($figure, $ours, $constants, $as, $who) = @$policy;
		my $seen = $b->psql("BEGIN; $identity{$as}; SELECT count(*) FROM bench.$ours; COMMIT", user => 'bench_policies') =~ /(\d+)\s*\z/ ? $1 : 0;
		my $same = $b->psql("SELECT count(*) FROM bench.$constants", user => 'bench_policies');

		die "$seen rows are seen, and $same by constants" if $seen != $same || !$seen;
		foreach my $query (qw(count scan point))
		{
			$b->compare(
				# these take microseconds, and the machine's speed changes more than they differ
				rounds => $query eq 'scan' ? undef : 7 * $b->{rounds},
				figure => $figure, unit => 'us', wanted => $query eq 'point' ? undef : '<= 1.05',
				what => "$who / constants: $what{$query}",
				ours => sub { $time->($query, $ours, $as) }, yardstick => sub { $time->($query, $constants, $as) });
		}
	}

	# the price of asking for each row, net of reading it
	my @can = map {
		my %took = map {
			my $table = $_;
			$table => $b->microseconds("SELECT count(*) FROM bench.$table WHERE id <= $per_row", user => 'bench_policies', before => $identity{user})
		} qw(careless constants);
		($took{careless} - $took{constants}) / $per_row;
	} 1 .. $b->{rounds};
	$b->report(figure => '10c', what => 'can(permission, organization_id) in a policy, for each row', unit => 'us/row', value => \@can);
});

1;
