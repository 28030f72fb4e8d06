# Figure 14: refusals, and whether their time tells which ids exist.

use strict;
use warnings;

use Compress::Zlib qw(crc32);
use POSIX qw(erfc);

my @digits = ('0' .. '9', 'A' .. 'Z', 'a' .. 'z');

sub random_digits { return join '', map { $digits[ rand 62 ] } 1 .. $_[0]; }

# A text with its checksum, as src/text/token.c makes it.
sub with_checksum
{
	my ($text) = @_;
	my $value = crc32($text);
	my $checksum = '';

	foreach (1 .. 6)
	{
		$checksum = $digits[ $value % 62 ] . $checksum;
		$value = int($value / 62);
	}
	return $text . $checksum;
}

# Texts that are refused, made of tokens' (prefix, kind, 22 digits of the id, 43
# of the secret, 6 of the checksum): with another secret, and with another id
# close to that token's.
sub refused_texts
{
	my ($b, $number) = @_;
	my $file = "$b->{dir}/refused.txt";
	my @tokens = split /\n/, $b->psql("SELECT token FROM bench.keys ORDER BY random() LIMIT 2 * $number");
	my @lines;

	foreach my $i (0 .. $#tokens)
	{
		my ($start, $id) = $tokens[$i] =~ /^(\w+_)(\w{22})\w{49}$/ or die 'not a token';

		push @lines, $i % 2 ? "wrong\t" . with_checksum($start . $id . random_digits(43))
			: "unknown\t" . with_checksum($start . substr($id, 0, 16) . random_digits(6 + 43));
	}
	Bench::spew($file, join "\n", @lines, '');
	$b->psql("DROP TABLE IF EXISTS bench.refused, bench.batch_w, bench.batch_u, bench.groups;
		CREATE TABLE bench.refused (r serial, kind text, token text);
		\\copy bench.refused (kind, token) FROM '$file'
		SELECT bench.make_batches('w', 'text', \$\$SELECT r, token AS value FROM bench.refused WHERE kind = 'wrong'\$\$);
		SELECT bench.make_batches('u', 'text', \$\$SELECT r, token AS value FROM bench.refused WHERE kind = 'unknown'\$\$);
		-- ten of a kind at a time
		CREATE TABLE bench.groups AS
			SELECT kind, t FROM (SELECT kind, array_agg(token) AS t FROM (
				SELECT kind, token, (row_number() OVER (PARTITION BY kind) - 1) / 10 AS g FROM bench.refused) r
				GROUP BY kind, g HAVING count(*) = 10) o;
		VACUUM ANALYZE bench.refused, bench.batch_w, bench.batch_u, bench.groups");
	my $other = $b->psql('SELECT count(*) FROM bench.refused, LATERAL apitoken.verify(token) WHERE verdict <> $$unknown$$');
	die "$other texts are not refused as unknown" if $other ne '0';
	return;
}

# Microseconds for ten calls, of each group in random order: a line 'kind time'.
my $time_groups = 'CREATE OR REPLACE FUNCTION bench.time_groups() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	g record;
	began timestamptz;
BEGIN
	FOR g IN SELECT kind, ' . join(', ', map { "t[$_] AS t$_" } 1 .. 10) . ' FROM bench.groups ORDER BY random() LOOP
		began := clock_timestamp();
		' . join("\n\t\t", map { "PERFORM apitoken.verify(g.t$_);" } 1 .. 10) . '
		RETURN NEXT g.kind || $_$ $_$ || round(extract(epoch FROM clock_timestamp() - began) * 1000000);
	END LOOP;
END
$$';

# mann_whitney \@A, \@B: U of A, and z and the two-sided p of the normal
# approximation, corrected for ties.
sub mann_whitney
{
	my ($first, $second) = @_;
	my ($m, $n) = (scalar @$first, scalar @$second);
	my @all = sort { $a->[0] <=> $b->[0] } (map { [ $_, 1 ] } @$first), (map { [ $_, 0 ] } @$second);
	my ($ranks, $ties, $from) = (0, 0, 0);

	while ($from < @all)
	{
		my $to = $from;
		my $ours = 0;

		while ($to < @all && $all[$to][0] == $all[$from][0])
		{
			$ours += $all[$to][1];
			$to++;
		}
		my $equal = $to - $from;
		$ranks += $ours * ($from + 1 + $to) / 2;
		$ties += $equal**3 - $equal;
		$from = $to;
	}
	my $u = $ranks - $m * ($m + 1) / 2;
	my $sigma = sqrt($m * $n / 12 * ($m + $n + 1 - $ties / (($m + $n) * ($m + $n - 1))));
	my $z = ($u - $m * $n / 2) / $sigma;

	return ($u, $z, erfc(abs($z) / sqrt 2));
}

Bench::figure('14', 'refusing', sub {
	my ($b) = @_;
	my $number = $b->{quick} ? 20_000 : 100_000;

	refused_texts($b, $number);
	$b->compare(
		figure => '14', unit => 'calls/s', what => 'refusing a malformed text / SELECT 1',
		ours => sub {
			$b->pgbench(script => "SELECT * FROM apitoken.verify(:m);\n" x 100, statements => 100,
				define => { m => 'apt_org_0123456789' });
		},
		yardstick => sub { $b->pgbench(script => "SELECT 1;\n" x 100, statements => 100) });
	foreach (['unknown id', 'u'], ['wrong secret', 'w'])
	{
		my ($what, $letter) = @$_;

		$b->compare(
			figure => '14', wanted => '>= 0.9', unit => 'calls/s', what => "refusing a token text with $what / accepting",
			ours => sub { $b->pgbench(each => "SELECT * FROM apitoken.verify(:$letter)", batches => $number / 100) },
			yardstick => sub { $b->pgbench(each => 'SELECT * FROM apitoken.verify(:t)') });
	}

	$b->psql($time_groups);
	my (@difference, @p, $u, $z, $p);
	foreach my $round (0 .. $b->{rounds})
	{
		my %times;

		push @{ $times{ (split)[0] } }, (split)[1] foreach split /\n/, $b->psql('SELECT bench.time_groups()');
		# the first is for warming
		next if $round == 0;
		($u, $z, $p) = mann_whitney($times{unknown}, $times{wrong});
		push @p, $p;
		push @difference, 100 * (Bench::median(@{ $times{unknown} }) - Bench::median(@{ $times{wrong} }));
		$b->note(figure => '14', text => sprintf(
			'round %d: Mann-Whitney U = %.0f of %d and %d groups of ten calls, z = %.2f, p = %.3g; medians of a call %.0f and %.0f ns',
			$round, $u, scalar @{ $times{unknown} }, scalar @{ $times{wrong} }, $z, $p,
			100 * Bench::median(@{ $times{unknown} }), 100 * Bench::median(@{ $times{wrong} })));
	}
	$b->report(figure => '14', what => "unknown id against wrong secret, $number calls each: difference of the medians",
		unit => 'ns', value => \@difference);
	$b->report(figure => '14', what => 'the two not told apart by time: p of the Mann-Whitney test', unit => 'p', value => \@p);
});

1;
