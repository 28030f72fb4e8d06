# One server connection goes from client to client, as behind a pooler.  It runs
# 2000 transactions of different users, of tokens, and of nobody, by every way to
# set an identity.  Settings left behind, errors and rollbacks come in between.
# No client is ever taken for another.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $transactions = 2000;

my $node = start_node('pooled');
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_pool LOGIN;
	CREATE ROLE regress_apitoken_weak;
	GRANT regress_apitoken_weak TO regress_apitoken_pool;
	SELECT apitoken.allow('regress_apitoken_pool', 'act', 'verify', 'use');
	SELECT apitoken.allow('regress_apitoken_weak', 'use');
});
set_up_articles($node);
$node->safe_psql('postgres', q{
	GRANT ALL ON article TO regress_apitoken_pool, regress_apitoken_weak;
	CREATE TABLE work (n int);
	GRANT ALL ON work TO regress_apitoken_pool, regress_apitoken_weak;
});

# The identities, and what each must see of itself: source, user, organization,
# whether it is READ ONLY, and the organizations of the rows that it sees.
my $nobody = { is => 'none|-|-|off|-' };
my (@users, @tokens);

foreach my $n (0 .. 9)
{
	my $organization = 'org' . $n % 5;

	push @users, { id => "user$n", is => "user|user$n|-|off|$organization" };
	push @tokens, { text => create($node, 't', "user_id => 'user$n'"),
		is => "token|user$n|-|off|$organization" };
	push @tokens, { text => create($node, 'ro', "user_id => 'user$n', access => 'read_only'"),
		is => "token|user$n|-|on|$organization" };
}
foreach my $n (0 .. 4)
{
	push @tokens, { text => create($node, 't', "organization_id => 'org$n', role => 'admin'"),
		is => "token|-|org$n|off|org$n" };
	push @tokens, { text => create($node, 'ro', "organization_id => 'org$n', access => 'read_only'"),
		is => "token|-|org$n|on|org$n" };
}

# The question is a statement that is prepared once and keeps its plan.
my $ask = 'EXECUTE who;';

# The ways to set an identity.  Each returns the statements of one transaction,
# and the answers to $ask in it, in order.
srand(20);

my @ways = (
	sub { return ("BEGIN; $ask COMMIT;", $nobody); },
	sub { return ($ask, $nobody); },
	sub { my $u = pick(@users); return ("BEGIN; SET LOCAL apitoken.user_id = '$u->{id}'; $ask COMMIT;", $u); },
	sub { my $u = pick(@users); return ("BEGIN; SELECT FROM set_config('apitoken.user_id', '$u->{id}', true); $ask COMMIT;", $u); },
	sub { my $u = pick(@users); return ("BEGIN; SET LOCAL apitoken.user_id = '$u->{id}'; SET LOCAL ROLE regress_apitoken_weak; $ask COMMIT;", $u); },
	sub { my $u = pick(@users); return ("BEGIN; SELECT FROM apitoken.act_as('$u->{id}'); $ask COMMIT;", $u); },
	sub { my $t = pick(@tokens); return ("BEGIN; SET LOCAL apitoken.token = '$t->{text}'; $ask COMMIT;", $t); },
	sub { my $t = pick(@tokens); return ("BEGIN; SELECT FROM apitoken.authenticate('$t->{text}'); $ask COMMIT;", $t); },
	# left behind for the whole session
	sub { my $u = pick(@users); return ("BEGIN; SET apitoken.user_id = '$u->{id}'; $ask COMMIT;", $u); },
	sub { my $t = pick(@tokens); return ("BEGIN; SELECT FROM set_config('apitoken.token', '$t->{text}', false); $ask COMMIT;", $t); },
	sub { my $u = pick(@users); return ("SET apitoken.user_id = '$u->{id}'; $ask", $nobody); },
	sub { my $t = pick(@tokens); return ("SET apitoken.token = '$t->{text}'; $ask", $nobody); },
	sub { return ("SET apitoken.token = 'garbage'; $ask", $nobody); },
	# outside a transaction block
	sub { my $u = pick(@users); return ("SELECT FROM apitoken.act_as('$u->{id}'); $ask", $nobody); },
	sub { my $t = pick(@tokens); return ("SELECT FROM apitoken.authenticate('$t->{text}'); $ask", $nobody); },
	# rolled back, failed, failed at the end
	sub { my $u = pick(@users); return ("BEGIN; SET LOCAL apitoken.user_id = '$u->{id}'; $ask ROLLBACK;", $u); },
	sub { my $u = pick(@users); return ("BEGIN; SELECT FROM apitoken.act_as('$u->{id}'); $ask SELECT 1/0; $ask ROLLBACK; $ask", $u, $nobody); },
	sub { my $t = pick(@tokens); return ("BEGIN; SET apitoken.token = '$t->{text}'; $ask SELECT 1/0; COMMIT; $ask", $t, $nobody); },
	sub { my $t = pick(@tokens); return ("BEGIN; SET LOCAL apitoken.token = 'garbage'; $ask ROLLBACK; BEGIN; SET LOCAL apitoken.token = '$t->{text}'; $ask COMMIT;", $t); },
	sub { my $u = pick(@users); return ("BEGIN; SELECT FROM apitoken.act_as('$u->{id}'); $ask SELECT FROM apitoken.act_as('intruder'); ROLLBACK; $ask", $u, $nobody); },
	sub { return ("BEGIN; SELECT FROM apitoken.authenticate('garbage'); ROLLBACK; $ask", $nobody); },
	# savepoints
	sub { my $u = pick(@users); return ("BEGIN; SAVEPOINT s; SELECT FROM apitoken.act_as('$u->{id}'); $ask ROLLBACK TO s; $ask COMMIT;", $u, $nobody); },
	sub { my $t = pick(@tokens); return ("BEGIN; SAVEPOINT s; SELECT FROM apitoken.authenticate('$t->{text}'); RELEASE s; $ask COMMIT; $ask", $t, $nobody); },
	sub { my ($u, $t) = (pick(@users), pick(@tokens)); return ("BEGIN; SAVEPOINT s; SELECT FROM apitoken.act_as('$u->{id}'); $ask ROLLBACK TO s; SELECT FROM apitoken.authenticate('$t->{text}'); $ask COMMIT;", $u, $t); },
	sub { my ($u, $t) = (pick(@users), pick(@tokens)); return ("BEGIN; SET LOCAL apitoken.user_id = '$u->{id}'; SAVEPOINT s; $ask ROLLBACK TO s; SET LOCAL apitoken.user_id = ''; SET LOCAL apitoken.token = '$t->{text}'; $ask COMMIT;", $u, $t); },
	# one after another in one message, and chained
	sub { my ($u, $t) = (pick(@users), pick(@tokens)); return ("BEGIN\\; SELECT FROM apitoken.act_as('$u->{id}')\\; COMMIT; $ask BEGIN\\; SELECT FROM apitoken.authenticate('$t->{text}')\\; ROLLBACK; $ask", $nobody, $nobody); },
	sub { my $u = pick(@users); return ("BEGIN; SET apitoken.user_id = '$u->{id}'; $ask COMMIT AND CHAIN; $ask COMMIT;", $u, $nobody); },
	# what poolers do between clients
	sub { my $u = pick(@users); return ("BEGIN; SET apitoken.user_id = '$u->{id}'; $ask COMMIT; RESET ALL; $ask", $u, $nobody); },
	sub { my $u = pick(@users); return ("SET apitoken.user_id = '$u->{id}'; DEALLOCATE ALL; DISCARD PLANS; :prepare $ask", $nobody); },
);

# Prepared once, and again after DEALLOCATE.
my $prepare = q{
	PREPARE who AS SELECT concat_ws('|', apitoken.whoami()->>'source', coalesce(apitoken.current_user_id(), '-'),
		coalesce(apitoken.current_organization_id(), '-'), current_setting('transaction_read_only'),
		coalesce((SELECT string_agg(organization_id, ',') FROM article), '-'));
};
$prepare =~ s/\s+/ /g;

foreach my $form ('plain', 'session')
{
	my $script = "\\set VERBOSITY sqlstate\n\\set prepare '" . ($prepare =~ s/'/''/gr) . "'\nSET plan_cache_mode = force_generic_plan;\n:prepare\n";
	my (@expected, @made);
	my ($out, $err) = ('', '');

	$node->safe_psql('postgres', q{ALTER ROLE regress_apitoken_pool SET session_preload_libraries = 'apitoken'})
	  if $form eq 'session';
	foreach my $n (1 .. $transactions)
	{
		my ($statements, @answers) = $ways[ $n <= @ways ? $n - 1 : rand @ways ]->();

		$script .= "\\echo #$n\n$statements\n";
		foreach my $answer (@answers)
		{
			push @expected, "$n: $answer->{is}";
		}
		$made[$n] = $statements;
	}
	$script .= "\\echo #end\nSELECT count(*) FROM pg_stat_activity WHERE usename = current_user;\n";

	my $file = "$PostgreSQL::Test::Utils::tmp_check/pooled_$form.sql";
	append_to_file($file, $script);
	$node->psql('postgres', "\\i $file", stdout => \$out, stderr => \$err, on_error_stop => 0,
		timeout => $PostgreSQL::Test::Utils::timeout_default,
		extra_params => [ '-U', 'regress_apitoken_pool' ]);

	my ($n, $done, @got) = ('', '');
	foreach my $line (split /\n/, $out)
	{
		if ($line =~ /^#(\w+)$/)
		{
			$n = $1;
		}
		elsif ($n eq 'end')
		{
			$done = $line;
		}
		elsif ($line ne '')
		{
			push @got, "$n: $line";
		}
	}

	my $wrong;
	for my $i (0 .. ($#got > $#expected ? $#got : $#expected))
	{
		next if ($got[$i] // '') eq ($expected[$i] // '');
		$wrong = $i;
		last;
	}
	ok(!defined $wrong, "$form: $transactions transactions, each as who it was")
	  or diag sprintf("got '%s', expected '%s' of: %s", $got[$wrong] // '', $expected[$wrong] // '',
		$made[ (split /:/, $got[$wrong] // $expected[$wrong])[0] ]);
	cmp_ok(scalar @got, '>', $transactions, "$form: they were asked");
	is($done, '1', "$form: on one connection, to the end");
	my %states;
	$states{$1}++ while $err =~ /(?:ERROR|WARNING|FATAL|PANIC): +(\w+)/g;
	is(join(' ', sort keys %states), '22012 25001 25P01 25P02 28000', "$form: with the errors that were meant, and no others");
}

$node->stop;
done_testing();
