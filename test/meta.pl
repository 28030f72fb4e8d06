# meta.pl: check META.json against PGXN's Meta Spec 1.0.0, and what it says of our
# files and versions against them.

use strict;
use warnings;

use JSON::PP;

my @wrong;
sub wrong { push @wrong, "META.json: @_\n"; return; }
sub slurp { my ($file) = @_; local (@ARGV, $/) = $file; return scalar <>; }

# ----- the kinds of values that the specification has --------------------------

my $number = qr/(?:0|[1-9][0-9]*)/;
my $semver = qr/$number\.$number\.$number(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?/;
my $uri = qr{[a-z][a-z0-9+.-]*:\S+}i;
my %license = map { ($_ => 1) } qw(agpl_3 apache_1_1 apache_2_0 artistic_1 artistic_2 bsd freebsd gfdl_1_2 gfdl_1_3 gpl_1 gpl_2 gpl_3
	lgpl_2_1 lgpl_3_0 mit mozilla_1_0 mozilla_1_1 openssl perl_5 postgresql qpl_1_0 ssleay sun zlib open_source restricted unrestricted unknown);

sub string { my ($v) = @_; return defined $v && !ref $v && $v =~ /\S/; }
sub matching { my ($pattern) = @_; return sub { return string($_[0]) && $_[0] =~ /^$pattern\z/; }; }
sub one_or_more { my ($is) = @_; return sub { my @v = ref $_[0] eq 'ARRAY' ? @{ $_[0] } : $_[0]; return @v && !grep { !$is->($_) } @v; }; }
sub list { my ($is) = @_; return sub { return ref $_[0] eq 'ARRAY' && @{ $_[0] } && !grep { !$is->($_) } @{ $_[0] }; }; }
# a name that can be a file's
my $term = matching(qr/[^\s\/\\[:cntrl:]][^\/\\[:cntrl:]]+/);
my $range = matching(qr/0|(?:(?:==|!=|<=|<|>=|>)?\s*$semver)(?:\s*,\s*(?:==|!=|<=|<|>=|>)\s*$semver)*/);

# A map with these keys; ! marks one that is required, and 'x_...' is allowed everywhere.
sub map_of
{
	my (%keys) = @_;
	return sub {
		my ($v, $path) = @_;
		return unless ref $v eq 'HASH' && %$v;
		foreach my $key (map { s/!$//r } grep { /!$/ } keys %keys)
		{
			wrong("$path.$key is missing") unless exists $v->{$key};
		}
		foreach my $key (sort keys %$v)
		{
			my $is = $keys{"$key!"} // $keys{$key};
			next if !$is && $key =~ /^x_/i;
			wrong($is ? "$path.$key is not valid" : "$path.$key is not known") unless $is && $is->($v->{$key}, "$path.$key");
		}
		return 1;
	};
}

# A map from names to values of one kind.
sub names_to
{
	my ($is_name, $is) = @_;
	return sub {
		my ($v, $path) = @_;
		return ref $v eq 'HASH' && %$v && !grep { !$is_name->($_) || !$is->($v->{$_}, "$path.$_") } keys %$v;
	};
}

my $prereqs = map_of(map { ($_ => names_to($term, $range)) } qw(requires recommends suggests conflicts));
my $spec = map_of(
	'name!' => $term,
	'version!' => matching($semver),
	'abstract!' => \&string,
	'maintainer!' => one_or_more(\&string),
	'license!' => sub { my ($v) = @_; return ref $v eq 'HASH' ? names_to(\&string, matching($uri))->($v, 'license') : one_or_more(sub { string($_[0]) && $license{ $_[0] } })->($v); },
	'provides!' => names_to($term, map_of('file!' => \&string, 'version!' => matching($semver), abstract => \&string, docfile => \&string)),
	'meta-spec!' => map_of('version!' => matching(qr/1\.0\.\d+/), url => matching($uri)),
	description => \&string,
	generated_by => \&string,
	tags => list(sub { string($_[0]) && length $_[0] <= 255 && $_[0] !~ m{[/\\[:cntrl:]]} }),
	no_index => map_of(file => one_or_more(\&string), directory => one_or_more(\&string)),
	prereqs => map_of(map { ($_ => $prereqs) } qw(configure build test runtime develop)),
	release_status => matching(qr/stable|testing|unstable/),
	resources => map_of(
		homepage => matching($uri),
		bugtracker => map_of(web => matching($uri), mailto => matching(qr/\S+@\S+/)),
		repository => map_of(url => matching($uri), web => matching($uri), type => matching(qr/[a-z]+/))));

my $meta = eval { decode_json(slurp('META.json')) };
die "META.json: $@" unless $meta;
$spec->($meta, 'META') or wrong('no map');

# ----- our own files -----------------------------------------------------------

my $control = slurp('apitoken.control');
my ($default) = $control =~ /^default_version = '(.*)'$/m;
my ($debian) = slurp('debian/changelog') =~ /^apitoken \((.*)-[0-9]+\)/;
my ($rpm) = slurp('packaging/apitoken.spec') =~ /^Version:\s*(\S+)$/m;
my $provided = $meta->{provides}{apitoken} // {};

wrong("$_->[0] is $_->[1]; expected $meta->{version}") foreach grep { ($_->[1] // '') ne $meta->{version} }
	[ 'provides.apitoken.version', $provided->{version} ], [ 'debian/changelog', $debian ], [ 'packaging/apitoken.spec', $rpm ];
wrong("version is not one of $default") unless $meta->{version} =~ /^\Q$default\E\.$number(?:-|\z)/;
wrong("$_ is not there") foreach grep { !-e } map { ref $_ ? @$_ : $_ // () } $provided->{file}, $provided->{docfile}, $meta->{no_index}{directory}, $meta->{no_index}{file};
wrong('provides.apitoken.file does not install the default version') unless ($provided->{file} // '') =~ /^apitoken--(?:.*--)?\Q$default\E\.sql\z/;
wrong('the abstract is not the comment of the control file') unless $control =~ /^comment = '\Q$meta->{abstract}\E'$/m;

# ----- the check itself --------------------------------------------------------

# Each of these changes must be found.
my $good = encode_json($meta);
foreach my $break (
	sub { delete $_[0]{license} }, sub { $_[0]{license} = 'isc' }, sub { $_[0]{version} = '1.0' }, sub { $_[0]{version} = '01.0.0' },
	sub { delete $_[0]{provides} }, sub { delete $_[0]{provides}{apitoken}{file} }, sub { $_[0]{provides}{apitoken}{version} = '1' },
	sub { $_[0]{no_index} = ['src'] }, sub { $_[0]{no_index}{dir} = 'src' }, sub { $_[0]{resources} = 'https://example.org' },
	sub { $_[0]{resources} = { bugtracker => 'https://example.org' } }, sub { $_[0]{resources} = { repository => { url => 'no uri' } } },
	sub { $_[0]{prereqs}{runtime}{requires}{PostgreSQL} = '15' }, sub { $_[0]{prereqs}{runtime} = { PostgreSQL => '15.0.0' } },
	sub { $_[0]{'meta-spec'}{version} = '2.0.0' }, sub { $_[0]{tags} = 'one' }, sub { $_[0]{maintainer} = '' }, sub { $_[0]{licence} = 'mit' })
{
	my $broken = decode_json($good);
	my @before = @wrong;
	my $n;
	@wrong = ();
	$break->($broken);
	$spec->($broken, 'META') or wrong('no map');
	$n = @wrong;
	@wrong = @before;
	wrong('this check does not find: ' . encode_json($broken)) unless $n;
}
print @wrong;
exit(@wrong ? 1 : 0);
