# Figure 16: tokens of other systems, and texts that have the shape of none.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256 sha256_hex);
use List::Util qw(sum);
use MIME::Base64 qw(encode_base64);

# few enough that the first use of each is soon over; a slow digest is some ten times
# as slow as a verification
my $iterations = 100;

# PBKDF2 as Django stores it.
sub django_pbkdf2
{
	my ($text) = @_;
	my $block = hmac_sha256("seasalt\0\0\0\1", $text);
	my $digest = $block;

	foreach (2 .. $iterations)
	{
		$block = hmac_sha256($block, $text);
		$digest ^= $block;
	}
	return "pbkdf2_sha256\$$iterations\$seasalt\$" . encode_base64($digest, '');
}

# Each format: the text of the n-th token, what is stored, the lookup key, and how the
# yardstick finds the row of foreign_digests.  The digests of crypt are made in the
# database; the row of a used token is found by its fast digest.
my %formats = (
	'sanctum' => {
		text => sub { "$_[0]|" . random_digits(40) },
		stored => sub { sha256_hex($_[0] =~ /\|(.*)/) },
		key => sub { $_[0] =~ /^(\d+)\|/ },
		found => 'f.lookup_key = k.lookup_key' },
	'better-auth' => {
		text => sub { random_digits(64) },
		stored => sub { encode_base64(Digest::SHA::sha256($_[0]), '') },
		key => sub { '' },
		found => 'f.digest = sha256(k.token::bytea)' },
	'drf-api-key2' => {
		slow => 1,
		text => sub { random_digits(8) . '.' . random_digits(32) },
		stored => \&django_pbkdf2,
		key => sub { substr $_[0], 0, 8 },
		found => 'f.lookup_key = k.lookup_key' },
	'crypt' => {
		slow => 1,
		text => sub { random_digits(40) },
		stored => sub { '' },
		key => sub { substr $_[0], 0, 8 },
		found => 'f.fast_digest = sha256(k.token::bytea)' });

# Import so many tokens of a format, and keep the texts in random order in a table.  The
# tokens belong to the same owners as the database's own, and each was used once.
sub import_tokens
{
	my ($b, $db, $format, $number) = @_;
	my %of = %{ $formats{$format} };
	my $table = 'bench.imported_' . $format =~ s/\W/_/gr;
	my $file = "$b->{dir}/imported.txt";
	my @lines;

	foreach my $n (1 .. $number)
	{
		my $text = $of{text}->($n);

		push @lines, join "\t", $n, $text, $of{stored}->($text), $of{key}->($text);
	}
	Bench::spew($file, join "\n", @lines, '');
	$b->psql("CREATE TABLE $table (n bigint, token text, stored text, lookup_key text);
		\\copy $table FROM '$file'", db => $db);
	$b->psql("UPDATE $table SET stored = crypt(token, gen_salt('xdes', 1))", db => $db) if $format eq 'crypt';
	$b->psql("SELECT count(apitoken.import_token('$format', stored, lookup_key,
			organization_id => CASE WHEN n % 2 = 1 THEN 'organization-' || n / 2 % 1000 END,
			user_id => CASE WHEN n % 2 = 0 THEN 'user-' || n / 2 % 1000 END)) FROM $table;
		SET apitoken.imported_formats = '$format';
		SELECT count(apitoken.verify(token)) FROM $table", db => $db);
	$b->flush(db => $db);
	my $left = $b->psql("SELECT count(*) FROM apitoken_internal.foreign_digests
		WHERE format = '$format' AND fast_digest IS NULL", db => $db);
	die "$left tokens of $format have no fast digest" if $of{slow} && $left ne '0';
	return $table;
}

# The loop of PL/pgSQL that runs these statements for each row of a table.
sub each_row
{
	my ($table, $statements) = @_;

	return "DO \$do\$ DECLARE k $table; BEGIN FOR k IN SELECT * FROM $table LOOP $statements END LOOP; END \$do\$";
}

Bench::figure('16', 'verifying imported tokens', sub {
	my ($b) = @_;
	my $number = $b->{quick} ? 10_000 : 20_000;
	# each token several times
	my $calls = 4 * $number;
	my $db = 'bench_imported';

	$b->make_database($db);
	$b->load($db, $number);
	foreach my $format (sort keys %formats)
	{
		my $table = import_tokens($b, $db, $format, $number);

		# each with one of the database's own, in random order
		$b->psql("CREATE UNLOGGED TABLE bench.next AS
			SELECT i.token, i.lookup_key, k.token AS native
			FROM generate_series(1, $calls / $number) pass, $table i JOIN bench.keys k USING (n) ORDER BY pass, random();
			DROP TABLE $table;
			ALTER TABLE bench.next RENAME TO " . $table =~ s/^bench\.//r, db => $db);
		$formats{$format}{table} = $table;
	}
	$b->psql('VACUUM ANALYZE', db => $db);
	$b->warm($db);

	foreach my $format (sort keys %formats)
	{
		my ($table, $found) = @{ $formats{$format} }{ 'table', 'found' };
		my %how = (db => $db, set => { 'apitoken.imported_formats' => $format });
		my $probe = "PERFORM f.digest FROM apitoken_internal.foreign_digests f WHERE f.format = '$format' AND $found;";
		my $time = sub { net($b, $calls, each_row($table, $_[0]), each_row($table, ''), %how) };
		my ($imported, $native) = ('PERFORM apitoken.verify(k.token);', 'PERFORM apitoken.verify(k.native);');

		$b->compare(
			figure => '16', unit => 'us', wanted => '<= 1', what => "verify() of an imported token, $format / of a native one, and one more probe",
			ours => sub { $time->($imported) }, yardstick => sub { $time->("$native $probe") });
		$b->compare(
			figure => '16b', unit => 'us', what => "the same, $format / of a native one alone",
			ours => sub { $time->($imported) }, yardstick => sub { $time->($native) }) unless $b->{quick};
		$b->report(figure => '16', what => "probes of a verification of an imported token, $format", wanted => '<= 3', unit => 'probes',
			value => sum(values %{ scans($b, $table, %how) }));
	}

	# what the setting costs other texts
	my %all = ('apitoken.imported_formats' => join ', ', qw(sanctum knox drf-api-key better-auth unkey prefixed-api-key keyhippo crypt sha256));
	$b->psql("CREATE TABLE bench.natives AS SELECT native AS token FROM bench.imported_sanctum;
		CREATE TABLE bench.short AS SELECT 'apt_org_0123456789 ' || n % 10 AS token FROM generate_series(1, $calls) n;
		CREATE TABLE bench.long AS SELECT repeat('0123456789abcdef', 31) || ' ' || n AS token FROM generate_series(1, $calls) n;
		VACUUM ANALYZE bench.natives, bench.short, bench.long", db => $db);
	foreach my $case ([ 'a native token', 'natives' ], [ 'a text of 20 characters that is none', 'short' ], [ 'a text of 500 characters that is none', 'long' ])
	{
		my ($what, $table) = @$case;
		my $verify = sub {
			net($b, $calls, "SELECT count(apitoken.verify(token)) FROM bench.$table", "SELECT count(octet_length(token)) FROM bench.$table", db => $db, set => $_[0]);
		};

		$b->compare(
			figure => '16c', unit => 'us', what => "verify() of $what, formats of imported tokens named / none",
			ours => sub { $verify->(\%all) }, yardstick => sub { $verify->({}) });
	}
}, long => 1);

1;
