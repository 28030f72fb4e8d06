# What several TAP tests need beyond PostgreSQL::Test::Cluster.
#
# The tests also use its own $node->poll_query_until, wait_for_log (from the
# position that log_mark returns), safe_psql and background_psql.  A server made by
# init() listens on a socket only, runs without fsync, logs each statement, and
# stays down after a crash (restart_after_crash = off).

package ApitokenTest;

use strict;
use warnings;

use Cwd qw(getcwd);
use Exporter 'import';
use HTTP::Tiny;
use IO::Socket::INET;
use IPC::Run ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  start_node start_standby configure answer run run_as run_on connection ask ask_raw
  create create_each verdict stat_of view_of_usage drop_roles set_up_articles pick
  log_mark log_since in_log no_crash pg_upgrade
  listens http_request start_program stop_program start_echo wsgi_program build_library);

# ---- servers

# start_node NAME, preload => 'shared' or 'session', conf => settings, init =>
# arguments of init(): a running server, with or without the library preloaded.
sub start_node
{
	my ($name, %how) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(@{ $how{init} // [] });
	$node->append_conf('postgresql.conf', "$how{preload}_preload_libraries = 'apitoken'") if $how{preload};
	$node->append_conf('postgresql.conf', $how{conf}) if $how{conf};
	$node->start;
	return $node;
}

# start_standby PRIMARY, NAME, conf => settings: a running standby, made from
# PRIMARY's backup 'base'.
sub start_standby
{
	my ($primary, $name, %how) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init_from_backup($primary, 'base', has_streaming => 1);
	$node->append_conf('postgresql.conf', $how{conf}) if $how{conf};
	$node->start;
	return $node;
}

# configure NODE, NAME, VALUE: a setting changes in the running server.  Connections
# that are open have been told when new ones have it.
sub configure
{
	my ($node, $name, $value) = @_;

	$node->append_conf('postgresql.conf', "$name = '$value'");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('$name', true) = '$value'") or die "$name is not $value";
}

# ---- SQL and its answers

# If a test sets this SQLSTATE, warnings with it are left out of all answers.
our $unwarned;

# What psql wrote, as one line: the output, then errors and warnings in brackets,
# such as '1 2 [ERROR: 25006]'.
sub one_line
{
	my ($out, $err) = @_;

	$err =~ s/^psql:<stdin>:\d+: //mg;
	$err =~ s/^LOCATION: .*\n?//mg;
	$err =~ s/^WARNING:  $unwarned\n?//mg if defined $unwarned;
	foreach ($out, $err)
	{
		s/\s+$//;
		s/\n+/ /g;
	}
	$err =~ s/\s+/ /g;
	return join(' ', grep { $_ ne '' } $out, $err eq '' ? '' : "[$err]");
}

# answer NODE, SQL, database =>, user =>, options => PGOPTIONS, verbosity => of
# errors (sqlstate): run SQL in a new session, continuing after errors.  Returns
# the result in one line.
sub answer
{
	my ($node, $sql, %how) = @_;
	my ($out, $err) = ('', '');

	local $ENV{PGOPTIONS} = $how{options} // '';
	$node->psql($how{database} // 'postgres', "\\set VERBOSITY " . ($how{verbosity} // 'sqlstate') . "\n$sql",
		stdout => \$out, stderr => \$err, on_error_stop => 0,
		timeout => $PostgreSQL::Test::Utils::timeout_default,
		extra_params => [ defined $how{user} ? ('-U', $how{user}) : () ]);
	return one_line($out, $err);
}

# run SQL, ...: answer() on the server and with the arguments that run_on NODE, ...
# has set; arguments of run() override those.  run_as USER, SQL, ...: as another
# user.
my ($run_node, %run_how);
sub run_on { ($run_node, %run_how) = @_; return; }
sub run { my ($sql, %how) = @_; return answer($run_node, $sql, %run_how, %how); }
sub run_as { my ($user, $sql, %how) = @_; return run($sql, %how, user => $user); }

# connection NODE, database =>, user =>, options => PGOPTIONS, verbosity => of
# errors (sqlstate): a session that stays open, for ask() and quit.
sub connection
{
	my ($node, %how) = @_;

	local $ENV{PGOPTIONS} = $how{options} // '';
	return $node->background_psql($how{database} // 'postgres', on_error_stop => 0,
		extra_params => [ '-v', 'VERBOSITY=' . ($how{verbosity} // 'sqlstate'), defined $how{user} ? ('-U', $how{user}) : () ]);
}

# ask CONNECTION, SQL: the answer in the form of answer().  ask_raw: the answer as
# psql prints it, line by line, and then the errors.
sub out_and_err
{
	my ($session, $sql) = @_;

	$session->{stderr} = '';
	my $out = $session->query($sql);
	my $err = $session->{stderr};
	$session->{stderr} = '';
	return ($out, $err);
}
sub ask { return one_line(out_and_err(@_)); }
sub ask_raw { my ($out, $err) = out_and_err(@_); chomp $out; return $out . $err; }

# ---- tokens

# create NODE, LABEL, ARGUMENTS, database =>: a new token's text.  ARGUMENTS are
# those of create_token() after the label.
sub create
{
	my ($node, $label, $arguments, %how) = @_;
	my $quoted = $label =~ s/'/''/gr;

	return $node->safe_psql($how{database} // 'postgres', "SELECT token FROM apitoken.create_token('$quoted', $arguments)");
}

# create_each NODE, { LABEL => ARGUMENTS, ... }, database =>: the texts, by label.
sub create_each
{
	my ($node, $wanted, %how) = @_;

	return map { ($_ => create($node, $_, $wanted->{$_}, %how)) } sort keys %$wanted;
}

# verdict TOKEN, ARGUMENTS: the statement that asks for the verdict.  ARGUMENTS are
# further arguments of verify(), with a comma in front.
sub verdict { my ($token, $arguments) = @_; return "SELECT verdict FROM apitoken.verify('$token'" . ($arguments // '') . ');'; }

# stat_of NODE, COLUMNS: columns of apitoken.stats.
sub stat_of { my ($node, $columns) = @_; return $node->safe_psql('postgres', "SELECT $columns FROM apitoken.stats"); }

# The statement that creates a view of the written usage of each token.
sub view_of_usage
{
	return q{CREATE VIEW used AS SELECT r.label, u.accepted, u.refused, u.last_used_at, u.last_used_from
		FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id;};
}

# ---- what tests set up

# drop_roles NODE: drop all roles that were created there.
sub drop_roles
{
	my ($node) = @_;

	foreach my $role (split /\n/, $node->safe_psql('postgres', 'SELECT quote_ident(rolname) FROM pg_roles WHERE oid >= 16384'))
	{
		$node->safe_psql('postgres', "DROP ROLE $role");
	}
	return;
}

# set_up_articles NODE: five organizations, org0 to org4; ten users, where userN is
# a developer in organization N % 5; and a table with one row of each organization,
# visible to users and tokens that may read articles there.
sub set_up_articles
{
	my ($node) = @_;

	$node->safe_psql('postgres', q{
		INSERT INTO apitoken.organizations (id) SELECT 'org' || n FROM generate_series(0, 4) n;
		INSERT INTO apitoken.users (id) SELECT 'user' || n FROM generate_series(0, 9) n;
		INSERT INTO apitoken.memberships SELECT 'org' || n % 5, 'user' || n, 'developer' FROM generate_series(0, 9) n;
		CREATE TABLE article (organization_id text);
		INSERT INTO article SELECT id FROM apitoken.organizations;
		ALTER TABLE article ENABLE ROW LEVEL SECURITY;
		CREATE POLICY p ON article USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
	});
	return;
}

# pick LIST: one of them, at random.
sub pick { return $_[ rand @_ ]; }

# ---- the server's log

# log_mark NODE: the current end of the server's log.  log_since NODE, MARK: what
# was logged since then.
sub log_mark { my ($node) = @_; return -s $node->logfile; }
sub log_since { my ($node, $mark) = @_; return slurp_file($node->logfile, $mark); }

# in_log NODE, PATTERN, MARK: how often the log matches, since MARK or in total.
sub in_log { my ($node, $pattern, $mark) = @_; return scalar(() = log_since($node, $mark // 0) =~ /$pattern/g); }

# no_crash NODE, killed => whether the test itself killed a process with signal 9:
# an assertion about the server's log.
sub no_crash
{
	my ($node, %how) = @_;
	my $signal = $how{killed} ? 'terminated by signal (?!9:)' : 'terminated by signal';

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return unlike(slurp_file($node->logfile), qr/$signal|PANIC|TRAP|XX000/, $node->name . ': no crash and no internal error in the log');
}

# pg_upgrade OLD, NEW, NAME: an assertion.  Both have stopped.
sub pg_upgrade
{
	my ($old, $new, $name) = @_;
	my $place = PostgreSQL::Test::Utils::tempdir_short();
	my $here = getcwd();

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# it leaves its files in the current directory
	chdir $place or die;
	command_ok([ 'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir,
			'-b', $old->config_data('--bindir'), '-B', $new->config_data('--bindir'),
			'-s', $place, '-p', $old->port, '-P', $new->port, '-U', scalar(getpwuid($<)) ], $name);
	chdir $here or die;
	return;
}

# ---- other programs

# listens PORT: does a program listen on this port of this machine?
sub listens { my ($port) = @_; return defined IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port); }

# http_request PORT, PATH, TOKEN, headers => {...}, method =>, content =>: the response
# to a request with this token, if it is defined, as Bearer.
my $http = HTTP::Tiny->new(timeout => 60);
sub http_request
{
	my ($port, $path, $token, %with) = @_;
	my %headers = %{ $with{headers} // {} };

	$headers{Authorization} = "Bearer $token" if defined $token;
	return $http->request($with{method} // 'GET', "http://127.0.0.1:$port$path",
		{ headers => \%headers, defined $with{content} ? (content => $with{content}) : () });
}

# start_program NAME, [COMMAND], port => PORT or ready => CODE, log => FILE, in =>
# DIRECTORY: runs it until stop_program NAME, or until the test ends for any reason.
# It has started when it listens, or when CODE returns true.
my %programs;
my $test_process = $$;
sub start_program
{
	my ($name, $command, %how) = @_;
	my $log = $how{log} // "$PostgreSQL::Test::Utils::log_path/$name.log";
	my $ready = $how{ready} // sub { return listens($how{port}); };
	# so that END runs then, too; but not in a process that the test forked
	$SIG{$_} //= sub { $$ == $test_process ? exit 1 : POSIX::_exit(1) } foreach qw(INT TERM HUP);
	my @in = defined $how{in} ? (init => sub { chdir $how{in} or die "$how{in}: $!"; }) : ();

	die "$name runs already" if defined $programs{$name};
	die "port $how{port} is in use" if defined $how{port} && listens($how{port});
	$programs{$name} = IPC::Run::start($command, '<', \undef, '>>', $log, '2>&1', @in);
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return if $ready->();
		last unless $programs{$name}->pumpable;
		select undef, undef, undef, 0.1;
	}
	die "$name does not start: " . slurp_file($log);
}

sub stop_program
{
	my ($name) = @_;
	my $program = delete $programs{$name} or return;

	$program->kill_kill(grace => 10);
	return;
}

END
{
	# not in a process that the test forked
	if ($$ == $test_process)
	{
		my $status = $?;

		stop_program($_) foreach keys %programs;
		$? = $status;
	}
}

# start_echo NAME, PORT: a server that answers each request with the head of that
# request: the first line and the headers.
sub start_echo
{
	my ($name, $port) = @_;

	start_program($name, [ 'perl', '-e', q{
		use IO::Socket::INET;
		$SIG{PIPE} = 'IGNORE';
		my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], Listen => 50, ReuseAddr => 1) or die $!;
		while (my $client = $listen->accept)
		{
			my $head = '';
			while (defined(my $line = <$client>))
			{
				last if $line =~ /^\r?\n$/;
				$head .= $line;
			}
			print $client "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: " . length($head) . "\r\n\r\n$head";
			close $client;
		}
	}, $port ], port => $port);
	return;
}

# wsgi_program SESSION: a program of Python that serves examples/psycopg on a port, its
# first argument.  SESSION defines signed_in(), in place of a session middleware.
sub wsgi_program
{
	my ($session) = @_;

	return q{
import sys
sys.path.insert(0, 'examples/psycopg')
sys.dont_write_bytecode = True
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, WSGIRequestHandler, make_server
import app
class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 50
class Handler(WSGIRequestHandler):
    def log_message(self, *arguments): pass
} . $session . q{
make_server('127.0.0.1', int(sys.argv[1]), signed_in, Server, Handler).serve_forever()
};
}

# build_library FILE, SOURCE: builds FILE, a library for LD_PRELOAD, from C source;
# returns false if that is not possible.
sub build_library
{
	my ($file, $source) = @_;

	append_to_file("$file.c", $source);
	return system('cc', '-shared', '-fPIC', '-o', $file, "$file.c", '-ldl') == 0;
}

1;
