# Figure 7: what tracking use and limiting rates costs.

use strict;
use warnings;

Bench::figure('7', 'tracking and rate limits', sub {
	my ($b) = @_;
	my $tokens = $b->{quick} ? 10_000 : 100_000;
	my $from = $b->database($tokens);
	my %off = (port => $b->{port} + 1);
	my $dump = "$b->{dir}/limits.sql";

	# Two servers with the same tokens; this one limits them, as highly as can be.
	$b->psql("DROP DATABASE IF EXISTS limits WITH (FORCE)", db => 'postgres');
	$b->psql("CREATE DATABASE limits TEMPLATE $from", db => 'postgres');
	$b->command("$b->{bin}/pg_dump", $b->connection, '-f', $dump, 'limits');
	$b->psql('UPDATE apitoken_internal.token_records SET rate_limit_per_minute = 1000000; VACUUM ANALYZE', db => 'limits');
	$b->start('off', $b->settings(%off, shared_preload_libraries => ''));
	$b->psql('CREATE DATABASE limits', %off, db => 'postgres');
	$b->psql_file($dump, %off, db => 'limits');
	$b->psql('VACUUM ANALYZE', %off, db => 'limits');
	$b->{batches}{limits} = $b->{batches}{$from};

	# Not preloaded, a use would be written by the caller: not in READ ONLY
	# transactions, which both sides use.
	$b->psql('ALTER ROLE bench IN DATABASE limits SET default_transaction_read_only = on', @$_, db => 'limits')
		foreach [], [%off];

	my $token = $b->psql('SELECT token FROM bench.keys WHERE n = 1', db => 'limits');
	my %one = (script => "SELECT * FROM apitoken.verify(:t);\n" x 100, statements => 100, define => { t => $token },
		clients => 4 * $b->{clients});
	my %many = (each => 'SELECT * FROM apitoken.verify(:t)');
	my $refused = q{SELECT rate_limited + dropped FROM apitoken.stats};
	my $before = $b->psql($refused, db => 'limits');

	$b->compare(
		figure => '7', wanted => '>= 0.95', unit => 'calls/s',
		what => "tracking and limits on / off, one token from $one{clients} clients",
		ours => sub { $b->pgbench(%one, db => 'limits') },
		yardstick => sub { $b->pgbench(%one, %off, db => 'limits') });
	$b->compare(
		figure => '7', wanted => '>= 0.95', unit => 'calls/s',
		what => "tracking and limits on / off, $tokens tokens",
		ours => sub { $b->pgbench(%many, db => 'limits') },
		yardstick => sub { $b->pgbench(%many, %off, db => 'limits') });
	my $over = $b->psql($refused, db => 'limits') - $before;
	$b->note(figure => '7', text => "$over verifications were over their limit or not recorded") if $over > 0;
	$b->stop('off');
});

1;
