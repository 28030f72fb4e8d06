# Figure 1: a verification over a connection, against reading the same row.

use strict;
use warnings;

Bench::figure('1', 'verify() over a connection', sub {
	my ($b) = @_;
	my %against = (
		# what verify() reads and answers with, no more
		'1' => ['these columns', 'id, label, organization_id, user_id, role, access, permissions, expires_at, metadata, digest'],
		'1b' => ['*', '*']);

	$b->psql('GRANT SELECT ON apitoken_internal.token_records TO bench');
	foreach my $figure (sort keys %against)
	{
		next if $b->{quick} && $figure ne '1';
		my ($name, $columns) = @{ $against{$figure} };

		$b->compare(
			figure => $figure, wanted => $figure eq '1' ? '>= 0.90' : undef, unit => 'calls/s',
			what => "verify(\$1) / SELECT $name by primary key",
			ours => sub { $b->pgbench(each => 'SELECT * FROM apitoken.verify(:t)') },
			yardstick => sub { $b->pgbench(each => "SELECT $columns FROM apitoken_internal.token_records WHERE id = :i") });
	}
});

1;
