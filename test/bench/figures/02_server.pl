# Figures 2 and 5: the server's time for a verification, without the client.

use strict;
use warnings;

use List::Util qw(sum);

# Only the yardstick's own way: nested loops over primary keys.
my %probes_only = map { ("enable_$_" => 'off') }
	qw(hashjoin mergejoin memoize material seqscan bitmapscan indexonlyscan);
$probes_only{join_collapse_limit} = 1;

# What verify() may read for each kind of token besides its record, and how the
# yardstick reads it.
my %kinds = (
	organization => {
		name => 'an organization\'s token',
		reads => [
			[ 'organizations', 'x.id = t.organization_id', 'created_at', 'id = k.organization_id' ],
			[ 'roles', 'x.name = t.role', 'permissions', 'name = k.role' ]] },
	user => {
		name => 'a personal token',
		reads => [[ 'users', 'x.id = t.user_id', 'groups', 'id = k.user_id' ]] });

# A table of keys in random order, by name: at least so many, each as often as
# that takes.
sub make_keys
{
	my ($b, $db, $name, $number, $condition) = @_;

	$b->psql("DROP TABLE IF EXISTS bench.$name;
		CREATE UNLOGGED TABLE bench.$name AS
		WITH found AS MATERIALIZED (
			SELECT k.id, k.token, t.organization_id, t.user_id, t.role
			FROM bench.keys k JOIN apitoken_internal.token_records t USING (id)
			WHERE $condition ORDER BY random() LIMIT $number)
		SELECT f.* FROM generate_series(1, ceil($number / (SELECT count(*) FROM found)::numeric)) pass, found f
		ORDER BY pass, random() LIMIT $number;
		VACUUM ANALYZE bench.$name", db => $db);
	$b->warm($db);
	return;
}

# Microseconds of a processor for each of NUMBER rows that a statement takes more
# than another that only reads them.
sub net
{
	my ($b, $number, $statement, $only_reads, %how) = @_;

	my ($all, $reading) = map { $b->milliseconds($_, %how, processor => 1) } $statement, $only_reads;
	return ($all - $reading) * 1000 / $number;
}

# scans KEYS, db =>, set => { name => value }: how many scans a verification makes of
# each table that it may read.
sub scans
{
	my ($b, $keys, %how) = @_;
	my $calls = 1000;
	my $count = q{SELECT relname, coalesce(idx_scan, 0) + seq_scan FROM pg_stat_user_tables
		WHERE schemaname LIKE 'apitoken%' AND relname IN ('token_records', 'foreign_digests', 'organizations', 'users', 'roles', 'memberships')};
	my %set = %{ $how{set} // {} };
	my %scans;

	# what writes the use of earlier ones scans tables, too
	$b->flush(%how);
	foreach (split /\n/, $b->psql(join("\n", map { "SET $_ = '$set{$_}';" } sort keys %set) . "$count;
		SELECT FROM (SELECT count(apitoken.verify(token)) FROM (SELECT token FROM $keys LIMIT $calls) k) s, pg_stat_force_next_flush();
		$count", %how))
	{
		my ($table, $number) = split /\|/;
		# the second time less the first
		$scans{$table} = $number / $calls - ($scans{$table} // 0);
	}
	return \%scans;
}

Bench::figure('2', 'the server\'s time for a verification', sub {
	my ($b) = @_;
	my $number = $b->{quick} ? 20_000 : 50_000;

	foreach my $kind (sort keys %kinds)
	{
		my $name = $kinds{$kind}{name};
		my $keys = "bench.random_$kind";

		make_keys($b, $b->{db}, "random_$kind", $number, "t.${kind}_id IS NOT NULL");

		# the yardstick reads what is read each time
		my $scans = scans($b, $keys);
		my @reads = grep { $scans->{ $_->[0] } >= 0.5 } @{ $kinds{$kind}{reads} };
		my ($joins, $columns, $performs) = ('', '', 'PERFORM digest FROM apitoken_internal.token_records WHERE id = k.id;');
		my $probes = 1;
		foreach (@reads)
		{
			my ($table, $join, $column, $condition) = @$_;
			my $alias = 'x' . ++$probes;

			$joins .= " JOIN apitoken.$table $alias ON " . $join =~ s/\bx\b/$alias/r;
			$columns .= "count($alias.$column), ";
			$performs .= " PERFORM $column FROM apitoken.$table WHERE $condition;";
		}
		my $yardstick = "SELECT count(t.digest), $columns count(sha256(k.token::bytea))
			FROM $keys k JOIN apitoken_internal.token_records t ON t.id = k.id$joins";
		my $plan = $b->psql(join("\n", (map { "SET $_ = '$probes_only{$_}';" } sort keys %probes_only), "EXPLAIN $yardstick"));
		my $by_key = () = $plan =~ /Index Scan using \w+_pkey/g;
		die "not by primary keys: $plan" if $by_key != $probes || $plan =~ /Hash|Merge|Memoize|Materialize|Sort/;

		$b->compare(
			figure => '2', wanted => '<= 1.2', unit => 'us',
			what => "verify() of $name / $probes primary-key probes and sha256()",
			ours => sub { net($b, $number, "SELECT count(apitoken.verify(token)) FROM $keys", "SELECT count(length(token)) FROM $keys") },
			yardstick => sub {
				net($b, $number, $yardstick, "SELECT count(length(token)), count(id) FROM $keys", set => \%probes_only);
			});
		$b->report(figure => '2', what => "probes of a verification of $name", wanted => '<= 3', unit => 'probes',
			value => sum(values %$scans));
		next if $b->{quick};

		my $loop = sub { "DO \$do\$ DECLARE k $keys; BEGIN FOR k IN SELECT * FROM $keys LOOP $_[0] END LOOP; END \$do\$" };
		$b->compare(
			figure => '2b', unit => 'us',
			what => "the same, each a statement of a PL/pgSQL loop, $name",
			ours => sub { net($b, $number, $loop->('PERFORM apitoken.verify(k.token);'), $loop->('')) },
			yardstick => sub { net($b, $number, $loop->("$performs PERFORM sha256(k.token::bytea);"), $loop->('')) });
	}
});

Bench::figure('5', 'the server\'s time as tokens grow in number', sub {
	my ($b) = @_;
	my $number = $b->{quick} ? 20_000 : 100_000;
	my @sizes = @{ $b->{sizes} };
	my %db;

	# against something, if one size is all that was asked for
	unshift @sizes, $b->{quick} ? 1_000 : 10_000 if @sizes == 1;
	my $small = shift @sizes;
	foreach my $size ($small, @sizes)
	{
		$db{$size} = $b->database($size);
		make_keys($b, $db{$size}, 'random_any', $number, 'true');
	}
	my $time = sub {
		net($b, $number, 'SELECT count(apitoken.verify(token)) FROM bench.random_any',
			'SELECT count(length(token)) FROM bench.random_any', db => $db{ $_[0] });
	};
	# what the table's and the index's size make of a single probe
	my $probe = sub {
		net($b, $number, 'SELECT count(t.digest) FROM bench.random_any k JOIN apitoken_internal.token_records t ON t.id = k.id',
			'SELECT count(id) FROM bench.random_any', db => $db{ $_[0] }, set => \%probes_only);
	};
	foreach my $size (@sizes)
	{
		$b->compare(
			figure => '5', wanted => '<= 1.3', unit => 'us', what => "verify() among $size tokens / among $small",
			ours => sub { $time->($size) }, yardstick => sub { $time->($small) });
		$b->compare(
			figure => '5x', unit => 'us', what => "a probe of the executor's among $size tokens / among $small",
			ours => sub { $probe->($size) }, yardstick => sub { $probe->($small) });
	}
});

1;
