# Figure 13: what masking costs a server that logs each statement.

use strict;
use warnings;

Bench::figure('13', 'masking in the log', sub {
	my ($b) = @_;
	my $db = 'bench_log';
	# pgbench's own statement, in pgbench's own tables
	my %how = (script => "\\set aid random(1, 100000 * :scale)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n",
		define => { scale => 10 }, db => $db, user => 'postgres');
	my $logged = sub {
		my ($mask, $mode) = @_;

		local $ENV{PGOPTIONS} = "-c log_min_duration_statement=0 -c apitoken.mask_logs=$mask";
		return $b->pgbench(%how, mode => $mode);
	};

	$b->psql("CREATE DATABASE $db", db => 'postgres');
	$b->command("$b->{bin}/pgbench", qw(-i -q -s 10), $b->connection, $db);
	foreach my $mode ($b->{quick} ? 'simple' : ('simple', 'prepared'))
	{
		$b->compare(
			figure => $mode eq 'simple' ? '13' : '13b', unit => 'statements/s', wanted => '>= 0.98',
			what => "pgbench -S -M $mode, each statement logged: masked / not masked",
			ours => sub { $logged->('on', $mode) }, yardstick => sub { $logged->('off', $mode) });
	}
	$b->psql("DROP DATABASE $db", db => 'postgres');
});

1;
