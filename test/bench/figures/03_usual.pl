# Figures 3, 4, 6 and 7b: against what people write in PL/pgSQL.

use strict;
use warnings;

use List::Util qw(min);

# The yardsticks' tables in a database, made when they are first needed.
sub yardsticks
{
	my ($b, $db) = @_;

	$b->psql_file("$b->{here}/yardsticks.sql", db => $db) unless $b->{yardsticks}{$db}++;
	return;
}

# Our throughput against a function's.
sub against
{
	my ($b, $function, %how) = @_;

	yardsticks($b, $b->{db});
	$b->compare(
		%how, unit => 'calls/s',
		ours => sub { $b->pgbench(each => 'SELECT * FROM apitoken.verify(:t)') },
		yardstick => sub { $b->pgbench(each => "SELECT * FROM bench.$function(:t)") });
	return;
}

# Bytes of WAL while a sub runs.
sub wal
{
	my ($b, $sub) = @_;
	my $position = q{SELECT pg_current_wal_insert_lsn() - '0/0'};
	my $before = $b->psql($position);

	$sub->();
	return $b->psql($position) - $before;
}

Bench::figure('3', 'the usual function that notes the last use', sub {
	my ($b) = @_;

	against($b, 'check_and_note', figure => '3', wanted => '>= 4',
		what => 'verify() / PL/pgSQL over pgcrypto that updates last_used_at');
	return if $b->{quick};
	$b->psql('ALTER ROLE bench SET synchronous_commit = off');
	against($b, 'check_and_note', figure => '3', what => 'the same, the yardstick not waiting for the disk');
	$b->psql('ALTER ROLE bench RESET synchronous_commit');
});

Bench::figure('4', 'the usual function without the update', sub {
	my ($b) = @_;

	against($b, 'check_only', figure => '4', wanted => '>= 1.5',
		what => 'verify() / PL/pgSQL over pgcrypto that only reads');
});

Bench::figure('6', 'WAL of verifications', sub {
	my ($b) = @_;
	my $number = $b->{quick} ? 100_000 : 1_000_000;
	# the function is called less often, and its bytes multiplied
	my $times = $b->{quick} ? 100 : 10;
	my %tokens = (few => 100, some => min(1_000, $b->{size}), many => min($number, $b->{size}));

	yardsticks($b, $b->{db});
	# what is written does not depend on who waits for it
	$b->psql('ALTER ROLE bench SET synchronous_commit = off');
	foreach my $which ('few', 'some', 'many')
	{
		my $tokens = $tokens{$which};
		my $verify = sub {
			my ($passes) = @_;

			$b->psql("SELECT count(apitoken.verify(token)) FROM generate_series(1, $passes) pass, bench.wal_keys");
			$b->flush;
		};
		# each call in a transaction of its own, as clients' calls are
		my $call = sub {
			my ($calls) = @_;

			$b->pgbench(
				script => "\\set n :n % $tokens + 1\nSELECT token AS t FROM bench.wal_keys WHERE n = :n \\gset\n"
					. "SELECT * FROM bench.check_and_note(:t);\n",
				transactions => $calls, clients => 1, define => { n => 0 });
		};
		my $ratio = sub {
			my ($wanted, $when, $ours, $yardstick) = @_;

			$b->add({
				figure => '6', unit => 'bytes', wanted => $wanted, ratio => 1, ours => $ours, yardstick => $yardstick,
				what => "WAL of $number verifications of $tokens tokens, $when / of PL/pgSQL that updates last_used_at",
				map { ($_ => $ours / $yardstick) } qw(median min max) });
		};

		# what earlier figures left is written before
		$b->flush;
		# anywhere in the tables, in the order of their pages
		$b->psql("DROP TABLE IF EXISTS bench.wal_keys;
			CREATE TABLE bench.wal_keys AS SELECT row_number() OVER (ORDER BY n) AS n, token
			FROM (SELECT n, token FROM bench.keys ORDER BY random() LIMIT $tokens) k;
			ALTER TABLE bench.wal_keys ADD PRIMARY KEY (n);
			GRANT SELECT ON bench.wal_keys TO bench;
			VACUUM ANALYZE apitoken.token_usage, apitoken.token_usage_daily, bench.api_keys, bench.wal_keys;
			CHECKPOINT");
		if ($which ne 'many')
		{
			# A page's first change after a checkpoint is written with the whole
			# page.  What the function writes for that is not counted.
			my $passes = $number / $tokens;
			my $first = wal($b, sub { $verify->($passes) });
			my $next = wal($b, sub { $verify->($passes) });

			$call->($tokens);
			my $yardstick = $times * wal($b, sub { $call->($number / $times) });
			$ratio->('<= 0.001', 'no checkpoint lately', $next, $yardstick);
			$ratio->('<= 0.001', 'right after a checkpoint', $first, $yardstick);
		}
		else
		{
			# some of the tokens once each, so that pages weigh the same
			my $ours = wal($b, sub { $verify->($number / $tokens) });
			$ratio->('reported', 'right after a checkpoint', $ours, $times * wal($b, sub { $call->($number / $times) }));
		}
	}
	$b->psql('ALTER ROLE bench RESET synchronous_commit');
});

Bench::figure('7b', 'three selects and an update once a minute', sub {
	my ($b) = @_;

	against($b, 'check_in_parts', figure => '7b',
		what => 'verify() / PL/pgSQL of three SELECTs and a guarded UPDATE, keys not used in the last minute');
});

1;
