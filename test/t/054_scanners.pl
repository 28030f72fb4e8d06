# The rules for scanners in examples/leaks and docs/leaks.md: their pattern is the
# published one.  It finds each token of the vectors in any surroundings, and nothing
# that has another shape.  gitleaks and TruffleHog themselves run if they are
# installed; Debian has neither.  No server is needed.

use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
my ($published) = slurp_file('docs/reference.md') =~ /^## Secret scanners\n.*?^```text\n(.*?)\n```/ms;
ok(defined $published, 'the published pattern');

# ---- the same pattern everywhere, without a group that is captured
my $page = slurp_file('docs/leaks.md');
my %rules = (
	'gitleaks.toml' => [ qr/^regex = '''(.*)'''$/m, qr/^```toml\n(.*?)^```/ms ],
	'trufflehog.yaml' => [ qr/^      token: '(.*)'$/m, qr/^```yaml\n(.*?)^```/ms ]);
my %patterns;
foreach my $file (sort keys %rules)
{
	my ($pattern, $block) = @{ $rules{$file} };
	my $text = slurp_file("examples/leaks/$file");

	($patterns{$file}) = $text =~ $pattern;
	is($patterns{$file} =~ s/\(\?:/(/r, $published, "$file: the pattern");
	unlike($patterns{$file}, qr/\((?!\?:)/, "$file: no group is captured");
	my ($shown) = $page =~ $block;
	ok(index($text, $shown) >= 0, "$file: docs/leaks.md shows it");
	foreach my $keyword ($text =~ /(_(?:org|usr)_)(?=["\n])/g)
	{
		like('apt' . $keyword . 'x', qr/$keyword/, "$file: keyword $keyword");
	}
}
like($page, qr/\Q`$published`\E/, 'docs/leaks.md: the pattern');

# ---- vectors
sub vectors
{
	my ($name) = @_;
	my (undef, @lines) = split /\n/, slurp_file("test/vectors/token_text_$name.tsv");
	return map { [ split /\t/ ] } @lines;
}
my @valid = map { $_->[0] } vectors('valid');
cmp_ok(scalar(@valid), '>', 3, 'there are vectors');
my $pattern = qr/$patterns{'gitleaks.toml'}/;
foreach my $around ([ '', '' ], [ 'TOKEN=', "\n" ], [ '"', '"' ], [ 'Authorization: Bearer ', "\r\n" ], [ 'https://x/?key=', '&a=b' ], [ "(", ').' ], [ 'a-', '/' ], [ "\t", ' # x' ])
{
	is(scalar(grep { my $token = $_; join('|', "$around->[0]$token$around->[1]" =~ /($pattern)/g) ne $token } @valid), 0, "each token is found in '" . ($around->[0] =~ s/\s/ /gr) . "'");
}
is(scalar(grep { "x$_" =~ /^$pattern$/ && length(($_ =~ /^(.*?)_/)[0]) == 12 } @valid), 0, 'a longer prefix is another shape');
# What the shape alone does not tell: the checksum, and an id or checksum that is too large.
my %by_shape = ('leading space' => 1, 'trailing space' => 1, 'trailing newline (escaped here)' => 1, 'with a scheme' => 1,
	'id over 128 bits, checksum right' => 1, 'checksum over 32 bits' => 1);
foreach my $vector (vectors('malformed'))
{
	my ($text, $why) = @$vector;
	my ($character) = $why =~ /^character (\d+) changed$/;
	my $matches = $by_shape{$why} || (defined $character && $character >= 7);

	is($text =~ $pattern ? 'found' : 'not found', $matches ? 'found' : 'not found', "malformed: $why");
}
foreach my $text ('apt_org_0351pnJJC5Ipqomy0pHJ6z_...pbPP', 'apt_org_' . '*' x 71, substr($valid[0], 0, -1), "$valid[0]x", "${\ substr $valid[0], 0, 40}\n${\ substr $valid[0], 40}")
{
	unlike($text, $pattern, 'not found: ' . ($text =~ s/\n/ /r));
}

# ---- the programs
sub found_by { my ($program) = @_; return scalar grep { -x "$_/$program" } split /:/, $ENV{PATH}; }
mkdir "$dir/files" or die;
append_to_file("$dir/files/notes.txt", join('', map { "key: $_\n" } @valid) . join('', map { "not: $_->[0]\n" } grep { $_->[1] =~ /prefix|kind|short|dashes|body/ } vectors('malformed')));
my $expected = join "\n", sort @valid;
SKIP:
{
	skip 'gitleaks is not installed', 1 unless found_by('gitleaks');
	IPC::Run::run([ 'gitleaks', 'dir', '--no-banner', '--config', 'examples/leaks/gitleaks.toml', '--report-format', 'json', '--report-path', "$dir/gitleaks.json", '--exit-code', '0', "$dir/files" ], '>&', \my $output);
	is(join("\n", sort map { $_->{Secret} } grep { $_->{RuleID} eq 'apitoken' } @{ decode_json(slurp_file("$dir/gitleaks.json")) }), $expected, 'gitleaks finds them');
}
SKIP:
{
	skip 'TruffleHog is not installed', 1 unless found_by('trufflehog');
	IPC::Run::run([ 'trufflehog', 'filesystem', '--no-update', '--no-verification', '--json', '--config=examples/leaks/trufflehog.yaml', "$dir/files" ], '>', \my $output, '2>', \my $errors);
	my %found = map { $_->{Raw} => 1 } grep { ($_->{DetectorName} // '') eq 'CustomRegex' } map { eval { decode_json($_) } // () } split /\n/, $output;
	is(join("\n", sort keys %found), $expected, 'TruffleHog finds them');
}

done_testing();
