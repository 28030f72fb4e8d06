# pgbouncer with transaction pooling, a pool of three connections, and eight
# clients.  They run 10,000 transactions of different users, of tokens, and of
# nobody.  Some clients vanish, some fail, and some leave our settings behind for
# the whole session.  Each client asks for its identity before, during and after a
# transaction, and is never taken for another.

use strict;
use warnings;

use DBI;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenPooler;
use ApitokenTest;

my $clients = 8;
my $transactions = 1250;		# of each client
my $login = 'regress_apitoken_pool';

my $node = start_node('pgbouncer', conf => q{
	apitoken.jwt_user_claim = 'sub'
	apitoken.client_address_header = 'x-real-ip'
});
$node->safe_psql('postgres', qq{
	CREATE EXTENSION apitoken;
	CREATE ROLE $login LOGIN;
	CREATE ROLE regress_apitoken_entered;
	GRANT regress_apitoken_entered TO $login;
	SELECT apitoken.allow('$login', 'act', 'verify', 'use');
	INSERT INTO apitoken.roles (name, permissions, database_role) VALUES ('enters', '{article:read}', 'regress_apitoken_entered');
});
set_up_articles($node);
$node->safe_psql('postgres', qq{
	CREATE TABLE work (who text);
	GRANT SELECT ON article TO $login, regress_apitoken_entered;
	GRANT SELECT, INSERT ON work TO $login;
});

# The identities, and what each must see of itself: source, user, organization,
# READ ONLY, database role, organizations of the rows that it sees.
my $nobody = "none|-|-|off|$login|-";
my (@users, @tokens, @bad, $distant);

foreach my $n (0 .. 9)
{
	my $organization = 'org' . $n % 5;

	push @users, { id => "user$n", is => "user|user$n|-|off|$login|$organization", jwt => "jwt|user$n|-|off|$login|$organization" };
	push @tokens, { text => create($node, 't', "user_id => 'user$n'"), is => "token|user$n|-|off|$login|$organization" };
	push @tokens, { text => create($node, 'ro', "user_id => 'user$n', access => 'read_only'"), is => "token|user$n|-|on|$login|$organization", read_only => 1 };
}
foreach my $n (0 .. 4)
{
	push @tokens, { text => create($node, 't', "organization_id => 'org$n', role => 'admin'"), is => "token|-|org$n|off|$login|org$n" };
	push @tokens, { text => create($node, 'enters', "organization_id => 'org$n', role => 'enters'"), enters => 1,
		is => "token|-|org$n|off|regress_apitoken_entered|org$n", settings => "token|-|org$n|off|$login|org$n" };
}
$distant = { text => create($node, 'distant', q{user_id => 'user3', allowed_networks => '{192.0.2.0/24}'}), is => "token|user3|-|off|$login|org3" };
push @bad, 'garbage', '', create($node, 'revoked', q{organization_id => 'org0'}), $node->safe_psql('postgres', q{SELECT apitoken.generate('org')});
$node->safe_psql('postgres', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked'});

# ---- one client ----

my ($client, $pooler, $dbh, $doing);
my %count;						# of transactions, and of what was seen on the way

sub connect_now
{
	$dbh = DBI->connect("dbi:Pg:dbname=postgres;host=$pooler->{host};port=$pooler->{port}", $login, '',
		{ AutoCommit => 1, RaiseError => 0, PrintError => 0, PrintWarn => 0, pg_switch_prepared => 0 })
	  or wrong("cannot connect: $DBI::errstr");
}

sub wrong
{
	my ($what) = @_;
	print STDERR "client $client, $doing: $what\n";
	$count{wrong}++;
}

# execute SQL, VALUES...: its first value, or the SQLSTATE in brackets
sub execute
{
	my ($sql, @values) = @_;
	my $sth = $dbh->prepare($sql);

	# without values it uses the simple protocol, and may be several statements
	my $done = @values ? $sth->execute(@values) : $dbh->do($sql);
	if (!$done)
	{
		$count{ $dbh->state }++;
		return '[' . $dbh->state . ']';
	}
	return @values && $sth->{NUM_OF_FIELDS} ? $sth->fetch->[0] : '';
}

# who: ask for the identity; note which connection it is, and which setting was left
# behind there
my $ask = q{
	SELECT concat_ws('|', w->>'source', coalesce(apitoken.current_user_id(), '-'), coalesce(apitoken.current_organization_id(), '-'),
		current_setting('transaction_read_only'), current_user,
		coalesce((SELECT string_agg(organization_id, ',' ORDER BY organization_id) FROM article), '-')),
		pg_backend_pid(), current_setting('apitoken.user_id', true)
	FROM apitoken.whoami() w WHERE $1::int = 1};
my ($backend, $left);
sub who
{
	my $row = $dbh->selectrow_arrayref($ask, undef, 1);

	return '[' . $dbh->state . ']' unless $row;
	$backend = $row->[1];
	$left = $row->[2] // '';
	$count{"backend $backend"}++;
	return $row->[0];
}
sub is_now
{
	my ($expected, $when) = @_;
	my $got = who();
	$count{asked}++;
	wrong("$when it was $got, not $expected") if $got ne $expected;
}
sub gives
{
	my ($expected, @statement) = @_;
	my $got = execute(@statement);
	wrong("$statement[0] gave $got, not $expected") if $got ne $expected;
}

sub authenticate { return execute('SELECT FROM apitoken.authenticate($1)', $_[0]); }
sub act_as { return execute('SELECT FROM apitoken.act_as($1)', $_[0]); }
sub set { my ($name, $value, $local) = @_; return execute('SELECT set_config($1, $2, $3)', $name, $value, $local // 'true'); }

# BEGIN, still nobody, IDENTIFY, the expected identity, and what the test adds
sub transaction
{
	my ($identify, $is, $more, $end) = @_;

	gives('', 'BEGIN');
	is_now($nobody, 'after BEGIN');
	$identify->();
	is_now($is, 'during');
	if ($more)
	{
		$more->();
	}
	gives('', $end // 'COMMIT');
}

# The client disappears without a message: the pooler ends the server's connection,
# or the transaction.
sub vanish
{
	open(my $socket, '+<&', $dbh->{pg_socket}) or die $!;
	shutdown($socket, 2);
	close $socket;
	$dbh->disconnect;
	connect_now();
}

my %ways = (
	'authenticate' => sub { my $t = pick(@tokens); transaction(sub { authenticate($t->{text}) }, $t->{is}, sub { is_now($t->{is}, 'still') }) },
	'authenticate, rolled back' => sub { my $t = pick(@tokens); transaction(sub { authenticate($t->{text}) }, $t->{is}, undef, 'ROLLBACK') },
	'write' => sub {
		my $t = pick(@tokens);
		transaction(sub { authenticate($t->{text}) }, $t->{is}, sub {
			gives($t->{read_only} ? '[25006]' : $t->{enters} ? '[42501]' : '', 'INSERT INTO work VALUES ($1)', $t->{is});
		});
	},
	'act_as' => sub { my $u = pick(@users); transaction(sub { act_as($u->{id}) }, $u->{is}, sub { gives('', 'INSERT INTO work VALUES ($1)', $u->{is}) }) },
	'settings: token' => sub { my $t = pick(@tokens); transaction(sub { set('apitoken.token', $t->{text}) }, $t->{settings} // $t->{is}) },
	'settings: user' => sub { my $u = pick(@users); transaction(sub { set('apitoken.user_id', $u->{id}) }, $u->{is}) },
	'settings: SET LOCAL' => sub { my $u = pick(@users); transaction(sub { execute("SET LOCAL apitoken.user_id = '$u->{id}'") }, $u->{is}) },
	'nobody' => sub { transaction(sub { }, $nobody, sub { gives('', q{INSERT INTO work VALUES ('nobody')}) }) },
	'one message' => sub { my $u = pick(@users); gives('', "BEGIN; SELECT apitoken.act_as('$u->{id}'); INSERT INTO work VALUES ('x'); COMMIT") },
	'outside a transaction' => sub { my $u = pick(@users); act_as($u->{id}); authenticate(pick(@tokens)->{text}) },
	'verify' => sub {
		my $t = pick(@tokens);
		gives((split /\|/, $t->{is})[1] =~ s/^-$/(split m{\|}, $t->{is})[2]/er,
			'SELECT coalesce(user_id, organization_id) FROM apitoken.verify($1)', $t->{text});
	},
	# refused
	'bad token' => sub {
		gives('', 'BEGIN');
		gives('[28000]', 'SELECT FROM apitoken.authenticate($1)', pick(@bad));
		is_now('[25P02]', 'after a bad token');
		gives('', rand() < 0.5 ? 'ROLLBACK' : 'COMMIT');
	},
	'bad token by setting' => sub {
		gives('', 'BEGIN');
		set('apitoken.token', 'garbage');
		is_now('[28000]', 'with a bad token set');
		gives('', 'ROLLBACK');
	},
	'error after authenticate' => sub {
		my $t = pick(@tokens);
		transaction(sub { authenticate($t->{text}) }, $t->{is}, sub { gives('[22012]', 'SELECT 1 / $1::int', 0); is_now('[25P02]', 'failed') });
	},
	'error after act_as' => sub { my $u = pick(@users); transaction(sub { act_as($u->{id}) }, $u->{is}, sub { gives('[22012]', 'SELECT 1 / 0', ) }, 'ROLLBACK') },
	'another identity' => sub {
		my $u = pick(@users);
		transaction(sub { act_as($u->{id}) }, $u->{is}, sub { gives('[25001]', 'SELECT FROM apitoken.act_as($1)', 'intruder') }, 'ROLLBACK');
	},
	'savepoint' => sub {
		my ($u, $t) = (pick(@users), pick(@tokens));
		transaction(sub { execute('SAVEPOINT s'); act_as($u->{id}) }, $u->{is}, sub {
			execute('ROLLBACK TO s');
			is_now($nobody, 'after ROLLBACK TO');
			authenticate($t->{text});
			is_now($t->{is}, 'as another');
		});
	},
	'chained' => sub { my $u = pick(@users); transaction(sub { act_as($u->{id}) }, $u->{is}, sub { execute('COMMIT AND CHAIN'); is_now($nobody, 'chained') }) },
	# disappears in the middle
	'gone' => sub { my $t = pick(@tokens); gives('', 'BEGIN'); authenticate($t->{text}); is_now($t->{is}, 'before it is gone'); vanish() },
	'gone as a user' => sub {
		my $u = pick(@users);
		gives('', 'BEGIN');
		set('apitoken.user_id', $u->{id}, 'false');
		is_now($u->{is}, 'before it is gone');
		vanish();
	},
	'gone within a statement' => sub {
		gives('', 'BEGIN');
		act_as(pick(@users)->{id});
		$dbh->do('SELECT pg_sleep(0.02)', { pg_async => 1 });
		vanish();
	},
	'gone after an error' => sub { gives('', 'BEGIN'); act_as(pick(@users)->{id}); execute('SELECT 1 / 0'); vanish() },
	# bad neighbours: settings left behind for the session
	'left: user' => sub { my $u = pick(@users); set('apitoken.user_id', $u->{id}, 'false'); execute("SET apitoken.user_id = '$u->{id}'") },
	'left: token' => sub { my $t = pick(@tokens); set('apitoken.token', $t->{text}, 'false'); },
	'left: bad token' => sub { execute(q{SET apitoken.token = 'garbage'}) },
	'left: address' => sub { execute(q{SET apitoken.client_address = '192.0.2.1'}) },
	'left: headers' => sub {
		my $t = pick(@tokens);
		set('request.headers', qq({"x-api-key": "$t->{text}", "x-real-ip": "192.0.2.1"}), 'false');
		set('request.jwt.claims', '{"sub": "user1"}', 'false');
	},
	'left: broken headers' => sub { set('request.headers', '{"x-api-key": ', 'false'); set('request.jwt.claims', '[', 'false') },
	'left in a transaction' => sub { my $u = pick(@users); transaction(sub { set('apitoken.user_id', $u->{id}, 'false') }, $u->{is}) },
	'left in a transaction: token' => sub { my $t = pick(@tokens); transaction(sub { execute("SET apitoken.token = '$t->{text}'") }, $t->{settings} // $t->{is}) },
	# an address counts only if it is passed
	'address told' => sub {
		transaction(sub { set('apitoken.client_address', '192.0.2.7'); authenticate($distant->{text}) }, $distant->{is});
	},
	'address not told' => sub {
		gives('', 'BEGIN');
		gives('[28000]', 'SELECT FROM apitoken.authenticate($1)', $distant->{text});
		gives('', 'ROLLBACK');
		gives('network_refused', 'SELECT verdict FROM apitoken.verify($1)', $distant->{text});
	},
	# what PostgREST passes
	'pre_request: token' => sub {
		my $t = pick(@tokens);
		transaction(sub { set('request.headers', qq({"x-api-key": "$t->{text}"})); execute('SELECT FROM apitoken.pre_request()') }, $t->{is});
	},
	'pre_request: user' => sub {
		my $u = pick(@users);
		transaction(sub { set('request.headers', '{}'); set('request.jwt.claims', qq({"sub": "$u->{id}"})); execute('SELECT FROM apitoken.pre_request()') }, $u->{jwt});
	},
	'pre_request: nothing' => sub { transaction(sub { gives('', 'SELECT FROM apitoken.pre_request()') }, $nobody) },
	'pre_request: bad token' => sub {
		gives('', 'BEGIN');
		set('request.headers', '{"x-api-key": "garbage"}');
		gives('[PGRST]', 'SELECT FROM apitoken.pre_request()');
		gives('', 'ROLLBACK');
	});
my @ways = sort keys %ways;

# First each way in turn, then random ones; few vanish, so that connections live long.
sub choose
{
	my ($n) = @_;
	my $way = $n <= @ways ? $ways[ ($n + $client * 5) % @ways ] : $ways[ rand @ways ];

	return $way =~ /^gone/ && $n > @ways && rand() < 0.9 ? choose($n) : $way;
}

sub be_a_client
{
	srand(240 + $client);
	$doing = 'beginning';
	connect_now();
	foreach my $n (1 .. $transactions)
	{
		$doing = choose($n);
		is_now($nobody, 'before');
		# a setting that another client left behind
		$count{poisoned}++ if $left ne '';
		my $before = $backend;
		$ways{$doing}->();
		$count{"way $doing"}++;
		$count{transactions}++;
		is_now($nobody, 'after');
		$count{moved}++ if $backend ne $before;
		if (($count{wrong} // 0) > 10)
		{
			print STDERR "client $client gives up\n";
			last;
		}
	}
	$dbh->disconnect;
}

# ---- all of them ----

my ($version) = pooler_version();
note("pgbouncer $version");

foreach my $form ('plain', 'session')
{
	my (@running, %all);

	$node->safe_psql('postgres', "ALTER ROLE $login SET session_preload_libraries = 'apitoken'") if $form eq 'session';
	$pooler = start_pooler($node, users => [$login], conf => "default_pool_size = 3\n");
	foreach my $n (1 .. $clients)
	{
		pipe(my $read, my $write) or die $!;
		my $pid = fork // die $!;
		if ($pid == 0)
		{
			close $read;
			$client = $n;
			eval { be_a_client(); 1 } or do { print STDERR "client $n, $doing: $@"; $count{wrong}++ };
			print $write map { "$_\t$count{$_}\n" } keys %count;
			close $write;
			POSIX::_exit(0);
		}
		close $write;
		push @running, [ $read, $pid ];
	}
	foreach (@running)
	{
		my ($read, $pid) = @$_;

		while (my $line = <$read>)
		{
			chomp $line;
			my ($name, $value) = split /\t/, $line;
			$all{$name} += $value;
			$all{"clients of $name"}++;
		}
		waitpid($pid, 0);
	}
	stop_pooler($pooler);

	is($all{wrong} // 0, 0, "$form: nobody was taken for another");
	is($all{transactions}, $clients * $transactions, "$form: that many transactions");
	cmp_ok($all{asked}, '>', 3 * $clients * $transactions, "$form: each asked before, during and after");
	is(join(', ', grep { !$all{"way $_"} || $all{"way $_"} < $clients } @ways), '', "$form: in every way there is");
	# otherwise the test would prove nothing
	my @backends = map { /^backend (\d+)/ ? $1 : () } keys %all;
	my $shared = 0;
	$shared += $all{"backend $_"} foreach grep { $all{"clients of backend $_"} > $clients / 2 } @backends;
	cmp_ok($shared, '>', $all{asked} / 2, "$form: most were on connections that served most clients");
	cmp_ok($all{moved}, '>', $clients * $transactions / 10, "$form: clients went from connection to connection");
	cmp_ok($all{poisoned}, '>', $clients * $transactions / 50, "$form: settings of others lay about");
	is(join(' ', sort grep { /^[0-9A-Z]{5}$/ } keys %all), '22012 25001 25006 28000 42501 PGRST', "$form: with the errors that were meant, and no others");
	note(join(', ', map { "$_: $all{$_}" } qw(asked moved poisoned)), ', connections: ', scalar @backends);
}

$node->stop;
done_testing();
