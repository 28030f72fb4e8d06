# Figure 11: making tokens.

use strict;
use warnings;

Bench::figure('11', 'making tokens', sub {
	my ($b) = @_;
	my $loop = 10_000;
	my $bulk = $b->{quick} ? 20_000 : 100_000;
	my $db = $b->{db};
	my $began = 0;

	$b->psql_file("$b->{here}/creation.sql");

	# a run goes on with the labels where the last one ended
	my $pgbench = sub {
		my ($statement, %how) = @_;
		return $b->pgbench(%how, define => { first => 10_000_000 * ++$began },
			script => "\\set first :first + 1\n\\set label :first * :clients + :client_id\n\\set owner random(0, 999)\n$statement\n");
	};
	my $columns = $b->psql('SELECT bench.columns()');
	my $bare = "INSERT INTO bench.bare_records ($columns) VALUES (('ff' || lpad(to_hex(:label::bigint), 30, '0'))::uuid, " . $b->psql('SELECT bench.constants()') . ');';
	my $create = q{SELECT * FROM apitoken.create_token('made ' || :label, organization_id => 'organization-' || :owner);};

	$b->compare(
		figure => '11', unit => 'tokens/s', wanted => '>= 0.5', what => 'create_token() / INSERT of the row alone, each committed',
		ours => sub { $pgbench->($create, user => 'postgres') }, yardstick => sub { $pgbench->($bare, user => 'postgres') });
	$b->compare(
		figure => '11b', unit => 'tokens/s', what => 'act_as() and create_token() as a member / INSERT of the row alone, in a transaction',
		ours => sub { $pgbench->("BEGIN;\nSELECT FROM apitoken.act_as('creator');\n" . $create =~ s/'organization-' \|\| :owner/'creation'/r . "\nEND;", user => 'bench_creator') },
		yardstick => sub { $pgbench->("BEGIN;\n$bare\nEND;", user => 'postgres') }) unless $b->{quick};

	$b->compare(
		figure => '11f', unit => 'tokens/s', wanted => '>= 0.5', what => 'create_token() that three members are told of / INSERT of the row alone, each committed',
		ours => sub { $pgbench->($create =~ s/'organization-' \|\| :owner/'told'/r, user => 'postgres') },
		yardstick => sub { $pgbench->($bare, user => 'postgres') });
	$b->psql(q{SELECT 1 / (count(*) FILTER (WHERE cardinality(recipients) = 3))::int FROM apitoken.notifications WHERE organization_id = 'told'});

	my $rate = sub {
		my ($function, $number) = @_;
		return $number / $b->psql("SELECT bench.$function($number)");
	};
	$b->compare(
		figure => '11c', unit => 'tokens/s', what => "create_token() / INSERT of the row alone, $loop in one transaction",
		ours => sub { $rate->('create_tokens', $loop) }, yardstick => sub { $rate->('insert_rows', $loop) }) unless $b->{quick};

	my %rates;
	foreach my $round (1 .. $b->{rounds})
	{
		$b->psql('CHECKPOINT');
		my $took = $b->milliseconds(qq{INSERT INTO apitoken.tokens (label, organization_id)
			SELECT 'bulk $round.' || i, 'organization-' || i % 1000 FROM generate_series(1, $bulk) i});
		push @{ $rates{ours} }, $bulk / $took * 1000;
		$b->psql('CHECKPOINT');
		# the first change of a page after a checkpoint writes the whole page to WAL
		push @{ $rates{$_} }, $pgbench->(qq{INSERT INTO apitoken.tokens (label, organization_id)
			SELECT 'together ' || :label || '.' || i, 'organization-' || i % 1000 FROM generate_series(1, $bulk) i;} =~ s/\n//r,
			user => 'postgres', transactions => 1, statements => $bulk) foreach qw(first next);
		$b->psql('CHECKPOINT');
		push @{ $rates{bare} }, $rate->('insert_all', $bulk);
	}
	$b->report(figure => '11d', unit => 'tokens/s', what => "INSERT ... SELECT of $bulk, right after a checkpoint", value => $rates{ours});
	my $together = "INSERT ... SELECT of $bulk by $b->{clients} sessions at once, together";
	$b->report(figure => '11d', unit => 'tokens/s', what => "$together, right after a checkpoint", value => $rates{first});
	$b->report(figure => '11d', unit => 'tokens/s', wanted => '>= 25000', what => "$together, no checkpoint lately", value => $rates{next});
	$b->report(figure => '11dx', unit => 'tokens/s', what => 'INSERT ... SELECT of ready rows of tokens, usage and events into equal tables', value => $rates{bare});
	$b->report(figure => '11e', unit => 'tokens/s', what => "the same with take_token(), kept in a table: this benchmark's data", value => $b->{rates}{$db});
	$b->note(figure => '11', text => 'create_token() writes three rows, each with its indexes, where the yardstick writes one.');
});

1;
