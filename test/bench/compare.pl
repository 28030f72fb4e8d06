# compare.pl OLD NEW: what two results of the benchmark say of the same figures.
#
# A figure has moved if each median is outside the range of the other run.  Within
# the ranges, the rounds of one run differ as much as the two runs do.  Figures that
# only one of the runs has are not compared.

use strict;
use warnings;

# read_results FILE: what is written before its table, and its rows by figure and description
sub read_results
{
	my ($file) = @_;
	my (%result, @columns);

	open(my $handle, '<', $file) or die "$file: $!\n";
	while (my $line = <$handle>)
	{
		chomp $line;
		if ($line =~ /^#/)
		{
			$result{$1} = $2 if $line =~ /^# ([^:]+): (.*)/;
			next;
		}
		my @cells;
		while ($line =~ /\G(?:"((?:[^"]|"")*)"|([^,]*))(?:,|$)/gc)
		{
			push @cells, defined $1 ? $1 =~ s/""/"/gr : $2;
			last if pos($line) == length $line;
		}
		push @cells, '' if $line =~ /,$/;
		if (!@columns)
		{
			@columns = @cells;
			next;
		}
		my %row;
		@row{@columns} = @cells;
		# how much a flush writes has a unit, and no ratio
		$result{rows}{"$row{figure}  $row{what}"} = \%row if $row{median} =~ /^-?[\d.]+(?:e[+-]?\d+)?$/;
		push @{ $result{order} }, "$row{figure}  $row{what}";
	}
	close $handle;
	return \%result;
}

# Is the median of one run outside the range of the other?
sub outside { my ($a, $b) = @_; return $a->{median} < $b->{min} || $a->{median} > $b->{max}; }

my ($old, $new) = map { read_results($_) } @ARGV;
my ($compared, @moved) = (0);

foreach my $name (@{ $new->{order} // [] })
{
	my ($before, $after) = map { $_->{rows}{$name} } $old, $new;

	next unless $before && $after;
	$compared++;
	# of what was measured once, the range is one value
	next if grep { $_->{min} eq '' || $_->{max} eq '' } $before, $after;
	next unless outside($before, $after) && outside($after, $before);
	push @moved, sprintf '  %-100s %s [%s .. %s] -> %s [%s .. %s]%s', $name, @$before{qw(median min max)}, @$after{qw(median min max)},
		$before->{median} > 0 ? sprintf(' (%+.0f %%)', 100 * ($after->{median} / $before->{median} - 1)) : '';
}
print "Compared with the run of " . ($old->{date} // 'an unknown date') . ': '
	. (@moved ? @moved . " of $compared figures moved beyond their range:" : "none of $compared figures moved beyond its range") . "\n";
print "$_\n" foreach @moved;
foreach my $same (qw(machine server))
{
	print "  The $same was another: $old->{$same}\n" if ($old->{$same} // '') ne ($new->{$same} // '');
}
