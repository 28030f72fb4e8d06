# run.pl BINDIR WORK: the benchmark's driver, run by test/bench.sh as the user
# who runs servers.  README.md says what is measured, and names the settings.

use strict;
use warnings;

use File::Basename;
use Bench;

$| = 1;
my ($bin, $work) = @ARGV;
my $here = dirname(__FILE__);

# A size is a number of tokens, or an exponent of ten.
my @sizes = map { $_ < 20 ? 10**$_ : $_ } split ' ', $ENV{SIZES} || ($ENV{QUICK} ? '5' : '6');
my $b = Bench->new(
	bin => $bin, work => $work, here => $here, sizes => \@sizes, quick => $ENV{QUICK} ? 1 : 0,
	rounds => $ENV{ROUNDS}, seconds => $ENV{SECONDS_EACH}, clients => $ENV{CLIENTS},
	only => $ENV{ONLY}, command => $ENV{APITOKEN_COMMAND});

foreach my $file (sort glob "$here/figures/*.pl")
{
	require "./$file";
}
$b->start('main', $b->settings);
$b->run;
$b->finish;
