# What the benchmark's figures use: servers, psql, pgbench, pairs measured in
# alternation, and the report.  README.md says how things are measured.

package Bench;

use strict;
use warnings;

use List::Util qw(max min sum);
use POSIX qw(strftime);
use Time::HiRes qw(time);

# statements of one batch
use constant BATCH => 100;

my @figures;

# figure(ID, TITLE, SUB): SUB runs with the Bench as argument, unless ONLY excludes
# it.  With long => 1, it is not in the short form, unless ONLY names it.  With
# own_server => 1, it does not use the database of the other figures.
sub figure
{
	my ($id, $title, $sub, %how) = @_;

	push @figures, { id => $id, title => $title, run => $sub, %how };
}

sub new
{
	my ($class, %how) = @_;
	my $self = bless {%how}, $class;

	$self->{sizes} = [ sort { $a <=> $b } @{ $how{sizes} } ];
	# the size for all figures that do not compare sizes
	$self->{size} = (grep { $_ == 1_000_000 } @{ $self->{sizes} }) ? 1_000_000 : $self->{sizes}[-1];
	$self->{db} = "bench_$self->{size}";
	$self->{rounds} ||= $self->{quick} ? 3 : 5;
	$self->{seconds} ||= $self->{quick} ? 0.5 : 5;
	$self->{clients} ||= 2;
	$self->{host} = "$self->{work}/s";
	$self->{port} = 5432;
	$self->{dir} = "$self->{work}/bench";
	$self->{started} = time;
	($self->{load}) = slurp('/proc/loadavg') =~ /^(\S+)/;
	$self->{ticks} = ticks();
	mkdir $self->{dir} or die "$self->{dir}: $!";
	return $self;
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	my $n = @sorted;

	return $n % 2 ? $sorted[ ($n - 1) / 2 ] : ($sorted[ $n / 2 - 1 ] + $sorted[ $n / 2 ]) / 2;
}

sub slurp
{
	my ($file) = @_;

	open my $in, '<', $file or die "$file: $!";
	local $/;
	return scalar <$in>;
}

sub spew
{
	my ($file, $text) = @_;

	open my $out, '>', $file or die "$file: $!";
	print $out $text;
	close $out or die "$file: $!";
	return $file;
}

# command PROGRAM, ARGUMENT...: its output; dies with the error if it fails.
sub command
{
	my ($b, @command) = @_;
	my $errors = "$b->{dir}/errors.$$";
	my $pid = open(my $out, '-|') // die "fork: $!";

	if ($pid == 0)
	{
		open STDERR, '>', $errors;
		exec @command or POSIX::_exit(127);
	}
	my $text = do { local $/; <$out> };
	close $out;
	die join(' ', map { length > 200 ? substr($_, 0, 200) . '...' : $_ } @command) . ': ' . slurp($errors) if $?;
	chomp($text //= '');
	return $text;
}

# ---- servers -----------------------------------------------------------------

# The machine's memory, in kB.
sub memory { return slurp('/proc/meminfo') =~ /^MemTotal:\s+(\d+)/m ? $1 : 4 * 1024 * 1024; }

# The settings of a server under measurement, changed by the arguments.
sub settings
{
	my ($b, %changes) = @_;

	return (
		fsync => 'on', synchronous_commit => 'on', full_page_writes => 'on',
		shared_preload_libraries => 'apitoken',
		shared_buffers => int(min(memory() / 4, 6 * 1024 * 1024)) . 'kB',
		max_wal_size => '64GB', checkpoint_timeout => '1h',
		maintenance_work_mem => '512MB', work_mem => '256MB',
		autovacuum => 'off', jit => 'off', max_parallel_workers_per_gather => 0,
		# room for all tokens in use at once: batches.sql has a million at most
		'apitoken.usage_slots' => 2_000_000,
		listen_addresses => '', unix_socket_directories => $b->{host},
		log_line_prefix => '%m [%p] %q%a ',
		%changes);
}

# start NAME, SETTINGS: a new cluster, in the directory data-NAME of the work
# directory; its log is data-NAME.log.  When test/bench.sh ends, it stops all
# running servers.
sub start
{
	my ($b, $name, %settings) = @_;
	my $data = "$b->{work}/data-$name";

	$b->command("$b->{bin}/initdb", '-D', $data, qw(-U postgres -A trust -E UTF8 --no-locale --no-sync));
	$settings{port} //= $b->{port};
	open my $conf, '>>', "$data/postgresql.conf" or die "$data: $!";
	print $conf "$_ = '$settings{$_}'\n" foreach sort keys %settings;
	close $conf;
	$b->command("$b->{bin}/pg_ctl", '-D', $data, '-l', "$data.log", qw(-s -w start));
	# this login reads everything, as superusers do, but is not a superuser
	$b->psql('CREATE ROLE bench LOGIN BYPASSRLS', db => 'postgres', port => $settings{port});
	return $data;
}

sub stop
{
	my ($b, $name) = @_;

	return $b->command("$b->{bin}/pg_ctl", '-D', "$b->{work}/data-$name", qw(-s -w -m fast stop));
}

sub connection
{
	my ($b, %how) = @_;

	return ('-h', $how{host} // $b->{host}, '-p', $how{port} // $b->{port}, '-U', $how{user} // 'postgres');
}

# psql SQL, db =>, user =>, host =>, port =>: the output.
sub psql
{
	my ($b, $sql, %how) = @_;

	return $b->psql_file(spew("$b->{dir}/statement.$$.sql", $sql), %how);
}

# psql_file FILE, the same, and vars => { name => value }.
sub psql_file
{
	my ($b, $file, %how) = @_;
	my %vars = %{ $how{vars} // {} };

	return $b->command("$b->{bin}/psql", qw(-XAtq -v ON_ERROR_STOP=1), $b->connection(%how),
		'-d', $how{db} // $b->{db}, (map { ('-v', "$_=$vars{$_}") } sort keys %vars), '-f', $file);
}

# milliseconds SQL, set => { name => value }, before => SQL, db =>, ...: server
# time of one statement; its rows are discarded.  With processor => 1 only the
# processor time, for statements that neither wait nor write.
sub milliseconds
{
	my ($b, $sql, %how) = @_;
	my %set = %{ $how{set} // {} };

	return $b->psql(join("\n", (map { "SET $_ = '$set{$_}';" } sort keys %set), ($how{before} // '') . ';',
			'SELECT ' . ($how{processor} ? 'processor' : 'clock') . " FROM bench.milliseconds(\$statement\$$sql\$statement\$);"), %how) =~ /([\d.e+-]+)\s*\z/ ? $1 : die "no time";
}

# microseconds SQL, times =>, before => SQL, db =>, user =>, ...: the processor
# time of a prepared statement, the mean of so many in a loop; each row is fetched.
# The SQL before it runs in the same transaction, and is not counted.
sub microseconds
{
	my ($b, $sql, %how) = @_;
	my $times = $how{times} // 1;
	my $before = defined $how{before} ? "$how{before};" : '';

	# the first rounds plan, and fill caches
	return $b->psql(qq{
		BEGIN;
		$before
		DO \$loop\$
		DECLARE
			had bigint;
			each record;
		BEGIN
			FOR i IN -2 .. $times LOOP
				IF i = 1 THEN
					had := bench.processor_time();
				END IF;
				FOR each IN $sql LOOP
				END LOOP;
			END LOOP;
			PERFORM set_config('bench.took', (bench.processor_time() - had)::text, true);
		END
		\$loop\$;
		SELECT current_setting('bench.took')::bigint / 1e3 / $times;
		COMMIT}, %how) =~ /([\d.e+-]+)\s*\z/ ? $1 : die "no time";
}

# The script of a batch: each statement a hundred times, with the texts (:t) or ids
# (:i) of the next hundred tokens, or other values that bench.make_batches() got
# with a letter.  One statement before them fetches these values.  The tokens in
# the batches are in random order; the batches are used one after another.
sub batch_script
{
	my ($b, $each) = @_;
	my $script = "\\set k :k + 1\n\\set n (:start + :k * :clients + :client_id) % :batches\n";

	my %letters = map { $_ => 1 } $each =~ /(?<!:):([a-z])\b/g;

	$script .= "SELECT * FROM bench.batch_$_ WHERE n = :n \\gset\n" foreach sort keys %letters;
	foreach my $number (1 .. BATCH)
	{
		(my $one = $each) =~ s/(?<!:):([a-z])\b/:$1$number/g;
		$script .= "$one;\n";
	}
	return $script;
}

# pgbench each => STATEMENT (a batch of it; batches => their number, if it is not
# one for each hundred tokens) or script => TEXT or FILE with statements => NUMBER;
# clients =>, jobs =>, seconds => or transactions => (of each client), mode =>,
# define => {}, user =>, db =>, host =>, port =>: statements per second.
sub pgbench
{
	my ($b, %how) = @_;
	my $script = $how{script} // $b->batch_script($how{each});
	my $statements = $how{statements} // ($how{each} ? BATCH : 1);
	my $clients = $how{clients} // $b->{clients};
	my $jobs = $how{jobs} // min($clients, 2);
	my $db = $how{db} // $b->{db};
	my %define = (%{ $how{define} // {} }, clients => $clients);

	if ($how{each})
	{
		# a run continues where the last one ended
		$define{batches} = $how{batches} // $b->{batches}{$db} or die "$db has no batches";
		$define{start} = $b->{next}{"$db $how{each}"} //= int(rand $define{batches});
		$define{k} = 0;
	}
	$script = spew("$b->{dir}/script.$$.sql", $script) if $script =~ /\n/ || ! -e $script;
	# pgbench supports whole seconds only.  For a shorter time, run as many
	# transactions as fit, once their rate is known.
	my $seconds = $how{seconds} // $b->{seconds};
	my $known = \$b->{tps}{ join ' ', $db, $how{port} // '', $clients, $how{each} // $how{script} };
	my $transactions = $how{transactions};
	$transactions //= POSIX::ceil($$known * $seconds / $clients) if $$known && $seconds < 1;
	my $out = $b->command("$b->{bin}/pgbench", '-n', '-M', $how{mode} // 'prepared', '-c', $clients, '-j', $jobs,
		($transactions ? ('-t', $transactions) : ('-T', POSIX::ceil($seconds))), (map { ('-D', "$_=$define{$_}") } sort keys %define),
		'-f', $script, $b->connection(user => 'bench', %how), $db);
	my ($tps) = $out =~ /^tps = ([\d.]+)/m or die "pgbench: $out";
	die "pgbench: $out" if $out =~ /^number of failed transactions: [1-9]/m;
	my ($done) = $out =~ /^number of transactions actually processed: (\d+)/m or die "pgbench: $out";
	$b->{next}{"$db $how{each}"} += 1 + $done if $how{each};
	# for figures that divide something by it
	$b->{done} = $done * $statements;
	$$known = $tps;
	return $tps * $statements;
}

# ---- data --------------------------------------------------------------------

# database SIZE: the name of the database with so many tokens.  It is created on
# the first request.
sub database
{
	my ($b, $size) = @_;
	my $db = "bench_$size";

	return $db if $b->{rates}{$db};
	$b->make_database($db);
	$b->load($db, $size);
	return $db;
}

sub make_database
{
	my ($b, $db, %how) = @_;

	$b->psql("CREATE DATABASE $db", %how, db => 'postgres');
	$b->psql_file("$b->{here}/database.sql", %how, db => $db);
	return;
}

# Create tokens as an application does, at most 100,000 in a transaction.  Keeps
# the rates, in tokens per second.
sub load
{
	my ($b, $db, $size) = @_;
	my $chunk = min($size, 100_000);

	print "Loading $size tokens\n";
	for (my $from = 1; $from <= $size; $from += $chunk)
	{
		my $began = time;

		$b->psql("SELECT bench.load($from, " . min($size, $from + $chunk - 1) . ')', db => $db);
		push @{ $b->{rates}{$db} }, $chunk / (time - $began);
	}
	$b->psql_file("$b->{here}/batches.sql", db => $db);
	$b->psql('VACUUM ANALYZE', db => $db);
	$b->{batches}{$db} = $b->psql('SELECT count(*) FROM bench.batch_t', db => $db);
	$b->warm($db);
	return;
}

# Load what the figures read into shared buffers.  With ten million tokens there is
# no room for the audit, the plain keys, and indexes that only lists use.
sub warm
{
	my ($b, $db) = @_;

	$b->psql(q{SELECT pg_catalog.count(public.pg_prewarm(c.oid))
		FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
		WHERE c.relnamespace IN ('apitoken'::regnamespace, 'bench'::regnamespace)
			AND (c.relkind = 'r' OR i.indisprimary)
			AND coalesce(i.indrelid, c.oid) NOT IN ('apitoken.events'::regclass, 'bench.keys'::regclass)}, db => $db);
	return;
}

# Flush all recorded usage.  Each attempt has only seconds.  So on a busy machine
# it takes several attempts after the use of a million tokens, also because the
# worker of the launcher's next flush is busy with them.
sub flush
{
	my ($b, %how) = @_;

	foreach (1 .. 50)
	{
		return if eval { $b->psql('SELECT apitoken.flush_usage()', %how); 1 };
		die $@ unless $@ =~ /timeout/;
	}
	die $@;
}

# ---- measuring and reporting ---------------------------------------------------

# compare figure =>, what =>, unit =>, wanted =>, ours => SUB, yardstick => SUB: run
# both alternately, after a round that does not count.  A round's ratio is
# ours / yardstick, or yardstick / ours with invert => 1.
sub compare
{
	my ($b, %how) = @_;
	my (@ours, @yardstick);

	foreach my $round (0 .. $how{rounds} // $b->{rounds})
	{
		my ($ours, $yardstick);

		# the two take turns in going first
		if ($round % 2)
		{
			$ours = $how{ours}->();
			$yardstick = $how{yardstick}->();
		}
		else
		{
			$yardstick = $how{yardstick}->();
			$ours = $how{ours}->();
		}
		next if $round == 0;
		push @ours, $ours;
		push @yardstick, $yardstick;
	}
	my @ratios = map { $how{invert} ? $yardstick[$_] / $ours[$_] : $ours[$_] / $yardstick[$_] } 0 .. $#ours;
	my $row = {
		figure => $how{figure}, what => $how{what}, wanted => $how{wanted} // 'reported', unit => $how{unit},
		median => median(@ratios), min => min(@ratios), max => max(@ratios), ratio => 1,
		ours => median(@ours), yardstick => median(@yardstick) };
	$b->add($row);
	return $row;
}

# report figure =>, what =>, unit =>, wanted =>, value => NUMBER or [NUMBERS].
sub report
{
	my ($b, %how) = @_;
	my @values = ref $how{value} ? @{ $how{value} } : ($how{value});

	return $b->add({
		figure => $how{figure}, what => $how{what}, wanted => $how{wanted} // 'reported', unit => $how{unit} // '',
		median => median(@values), min => min(@values), max => max(@values) });
}

# note figure =>, text =>: a line under the table.
sub note
{
	my ($b, %how) = @_;

	push @{ $b->{notes} }, \%how;
	return;
}

# missing FIGURE, WHY: a row that says so.
sub missing
{
	my ($b, $figure, $why) = @_;

	return $b->add({ figure => $figure, what => $why, wanted => '', unit => '' });
}

sub add
{
	my ($b, $row) = @_;

	push @{ $b->{rows} }, $row;
	printf "  %-4s %s: %s\n", $row->{figure}, $row->{what}, join ' ', (cells($row))[ 3 .. 6 ];
	return $row;
}

sub run
{
	my ($b) = @_;
	my %only = map { $_ => 1 } split /[\s,]+/, $b->{only} // '';

	foreach my $figure (@figures)
	{
		next if %only && !$only{ $figure->{id} };
		if ($figure->{long} && $b->{quick} && !%only)
		{
			$b->missing($figure->{id}, 'not measured: not in the short form');
			next;
		}
		print "$figure->{id}: $figure->{title}\n";
		my $began = time;
		eval {
			if (!$figure->{own_server})
			{
				$b->database($b->{size});
				# usage from earlier figures must not be written during this measurement
				$b->flush;
				$b->psql('CHECKPOINT');
			}
			$figure->{run}->($b);
			1;
		} or do {
			print "  $@\n";
			(my $why = $@) =~ s/^.*?(?=ERROR:)//s;
			$b->missing($figure->{id}, 'failed: ' . substr($why =~ s/\s+/ /gr, 0, 80));
		};
		printf "  (%.0f s)\n", time - $began;
	}
	return;
}

# Sorts figures as 7, 7b, 8, 10, and then those without a number.
sub by_number
{
	my ($first, $second) = @_;
	my ($m, $n) = map { /^(\d+)/ ? $1 : 1000 } $first, $second;

	return $m <=> $n || $first cmp $second;
}

# Three significant digits, and no exponent.
sub number
{
	my ($value) = @_;

	return '' unless defined $value;
	return sprintf '%.0f', $value if abs($value) >= 100 || $value == int $value;
	return sprintf '%.1f', $value if abs($value) >= 10;
	return sprintf '%.2f', $value if abs($value) >= 0.1;
	return sprintf '%.3g', $value;
}

sub cells
{
	my ($row) = @_;
	my $value = number($row->{median});

	$value .= ' [' . number($row->{min}) . ' .. ' . number($row->{max}) . ']'
		if defined $row->{min} && $row->{min} != $row->{max};
	return ($row->{figure}, $row->{what}, $row->{wanted}, $value, number($row->{ours}), number($row->{yardstick}),
		$row->{unit});
}

sub table
{
	my ($b) = @_;
	my @lines = ([ 'figure', 'what', 'wanted', 'median [min .. max]', 'ours', 'yardstick', 'unit' ],
		map { [ cells($_) ] } @{ $b->{rows} });
	my @widths = map { my $column = $_; max(map { length $_->[$column] } @lines) } 0 .. 6;

	return join '', map {
		my $line = $_;
		my $text = join '  ', map { sprintf '%-*s', $widths[$_], $line->[$_] } 0 .. 6;
		$text =~ s/\s+$/\n/ or $text .= "\n";
		$text;
	} @lines;
}

# The times of all processors in /proc/stat: user, nice, system, idle, iowait, irq,
# softirq, and steal (taken by other virtual machines).
sub ticks { return [ slurp('/proc/stat') =~ /^cpu\s+(\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)/ ]; }

# How much of the demanded processor time other virtual machines took, in percent.
sub stolen
{
	my ($b) = @_;
	my $now = ticks();
	my ($user, $nice, $system, undef, undef, $irq, $softirq, $stolen) = map { $now->[$_] - $b->{ticks}[$_] } 0 .. 7;

	return 100 * $stolen / max(1, $user + $nice + $system + $irq + $softirq + $stolen);
}

# The circumstances of the measurement.
sub circumstances
{
	my ($b) = @_;
	my $cpu = slurp('/proc/cpuinfo');
	my ($model) = $cpu =~ /^model name\s*:\s*(.*)$/m;
	my $cores = () = $cpu =~ /^processor\s*:/mg;
	my @uname = POSIX::uname();

	return (
		date => strftime('%Y-%m-%d %H:%M UTC', gmtime $b->{started}),
		command => $b->{command} // '',
		machine => sprintf('%s, %d cores, %.0f GB of memory, %s %s', $model // 'unknown', $cores,
			memory() / 1024 / 1024, @uname[ 0, 2 ]),
		server => $b->psql('SELECT version()', db => 'postgres'),
		load => slurp('/proc/loadavg') =~ /^(\S+)/ ? "$b->{load} when it began, $1 when it ended" : '',
		stolen => sprintf('%.0f %% of the time in which processors were wanted, by other virtual machines', stolen($b)),
		tokens => join(', ', @{ $b->{sizes} }) . "; $b->{size} where no other number is named",
		rounds => "$b->{rounds} of $b->{seconds} s with $b->{clients} clients; the median, and the smallest and largest",
		duration => sprintf('%.0f minutes', max(1, (time - $b->{started}) / 60)));
}

# A line of the CSV; numbers have six digits, because sixteen would not be accurate.
sub csv
{
	my @cells = map { $_ // '' } @_;

	foreach (@cells)
	{
		$_ = 0 + sprintf '%.6g', $_ if /^-?[\d.]+(?:e[+-]?\d+)?$/;
		$_ = '"' . s/"/""/gr . '"' if /[",\n]/;
	}
	return join(',', @cells) . "\n";
}

# For the plot: each ratio as a multiple of its target.
sub plot_data
{
	my ($b) = @_;
	my $data = '';

	foreach my $row (reverse grep { $_->{ratio} } @{ $b->{rows} })
	{
		my ($less, $wanted) = $row->{wanted} =~ /^([<>])= ([\d.]+)/ or next;
		my @as_good = map { $less eq '<' ? $wanted / $row->{$_} : $row->{$_} / $wanted } qw(median min max);

		(my $label = "$row->{figure}  $row->{what}  ($row->{wanted})") =~ s/(.{40}\S*) (?=.{20})/$1\\n/g;
		$data .= sprintf "\"%s\"\t%.4g\t%.4g\t%.4g\n", $label, $as_good[0], min(@as_good), max(@as_good);
	}
	return $data;
}

# The table, the same as CSV, and the plot, in the directory results.
sub finish
{
	my ($self) = @_;
	my $results = "$self->{work}/results";
	my @circumstances = $self->circumstances;

	# rows of one figure keep the order in which they were added
	@{ $self->{$_} } = sort { by_number($a->{figure}, $b->{figure}) } @{ $self->{$_} // [] } foreach qw(rows notes);
	my $text = $self->table . "\n";

	$text .= "$_->{figure}: $_->{text}\n" foreach @{ $self->{notes} };
	my $csv = '';
	while (my ($name, $value) = splice @circumstances, 0, 2)
	{
		$text .= sprintf "%-9s %s\n", "$name:", $value;
		$csv .= "# $name: $value\n";
	}
	$csv .= csv(qw(figure what wanted median min max ours yardstick unit));
	$csv .= csv(@$_{qw(figure what wanted median min max ours yardstick unit)}) foreach @{ $self->{rows} };
	print "\n$text\n";
	spew("$results/performance.txt", $text);
	spew("$results/performance.csv", $csv);

	my $data = $self->plot_data;
	return unless $data ne '';
	spew("$self->{dir}/plot.dat", $data);
	eval {
		$self->command('gnuplot', '-e', "data='$self->{dir}/plot.dat'; png='$results/performance.png'", "$self->{here}/plot.gp");
		1;
	} or print "No plot: $@";
	return;
}

1;
