# Figure 9: an organization's newest 50 tokens, of 1,000.

use strict;
use warnings;

my $NEWEST = 'ORDER BY created_at DESC, id DESC LIMIT 50';
my $OWNER = "WHERE organization_id = 'list-1'";

# Three organizations with 1,000 tokens each, a member of one of them and a
# member of all.  The tokens are made in turn, and not all at the same time.
sub set_up
{
	my ($b, $db) = @_;

	$b->psql(q{
		SELECT apitoken.allow('bench_member', 'act', 'manage');
		INSERT INTO apitoken.organizations (id) SELECT 'list-' || i FROM generate_series(1, 3) i;
		INSERT INTO apitoken.memberships VALUES ('list-1', 'of-one', 'admin'),
			('list-1', 'of-three', 'admin'), ('list-2', 'of-three', 'admin'), ('list-3', 'of-three', 'admin');
		DO $$ BEGIN
			FOR i IN 1 .. 20 LOOP
				INSERT INTO apitoken.tokens (organization_id, label)
				SELECT 'list-' || 1 + j % 3, format('key %s.%s', i, j) FROM generate_series(0, 149) j;
				COMMIT;
			END LOOP;
		END $$;
		VACUUM ANALYZE apitoken_internal.token_records;
		VACUUM ANALYZE apitoken.token_usage}, db => $db);
	$b->warm($db);
	return;
}

Bench::figure('9', 'the newest 50 tokens of an organization with 1,000', sub {
	my ($b) = @_;
	my @databases = map { $b->database($_) } @{ $b->{sizes} };
	my $times = $b->{quick} ? 100 : 500;

	$b->psql('CREATE ROLE bench_member LOGIN', db => 'postgres');
	set_up($b, $_) foreach @databases;

	my $member = sub {
		my ($user, $where, $db) = @_;
		return $b->microseconds("SELECT * FROM apitoken.tokens $where $NEWEST", times => $times, db => $db, user => 'bench_member',
			before => "SELECT FROM apitoken.act_as('$user')");
	};
	my $superuser = sub { return $b->microseconds("SELECT * FROM apitoken.tokens $OWNER $NEWEST", times => $times, db => $_[0]) };

	foreach my $i (0 .. $#databases)
	{
		my ($db, $size) = ($databases[$i], $b->{sizes}[$i]);

		$b->compare(
			figure => '9', unit => 'us', wanted => '<= 1.30', what => "member, WHERE organization_id = ... / superuser, the same; of $size",
			ours => sub { $member->('of-one', $OWNER, $db) }, yardstick => sub { $superuser->($db) });
	}
	my ($small, $large) = @databases[ 0, -1 ];
	my %without = ('9b' => [ 'of-one', 'member of one organization' ], '9c' => [ 'of-three', 'member of three' ]);
	foreach my $figure (sort keys %without)
	{
		my ($user, $who) = @{ $without{$figure} };

		$b->compare(
			figure => $figure, unit => 'us', wanted => '<= 1.50', what => "$who, no WHERE / superuser, WHERE organization_id = ...; of $b->{sizes}[-1]",
			ours => sub { $member->($user, '', $large) }, yardstick => sub { $superuser->($large) });
	}
	return if $small eq $large;
	$b->compare(
		figure => '9d', unit => 'us', wanted => '<= 1.30', what => "member, WHERE organization_id = ...; of $b->{sizes}[-1] / of $b->{sizes}[0]",
		ours => sub { $member->('of-one', $OWNER, $large) }, yardstick => sub { $member->('of-one', $OWNER, $small) });
});

1;
