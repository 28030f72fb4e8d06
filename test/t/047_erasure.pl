# forget_user() with usage in shared memory: no address of the user's tokens comes
# back by a flush, whenever the flush and the use were.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# written only when the test says so
my $node = start_node('erasure', preload => 'shared', conf => q{
	apitoken.flush_interval = '1h'
	max_prepared_transactions = 2
	log_statement = none
});
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id) VALUES ('acme');
	CREATE ROLE regress_apitoken_job LOGIN;
	SELECT apitoken.allow('regress_apitoken_job', 'directory');
} . view_of_usage());
run_on($node);

my $flush = 'SELECT apitoken.flush_usage()';
sub from { my ($token, $address) = @_; return verdict($token, ", client_address => '$address'"); }
sub forget { my ($user) = @_; return "SELECT apitoken.forget_user('$user');"; }

# What is written of the personal tokens of an address: uses, and addresses.
sub written
{
	return $node->safe_psql('postgres', q{SELECT sum(accepted), count(last_used_from) FROM apitoken.token_usage u JOIN apitoken_internal.token_records t ON t.id = u.token_id WHERE t.user_id IS NOT NULL AND t.label = 'forgotten'});
}
my $uses = 0;

# ----- used and not written ------------------------------------------------------

my $other = create($node, 'other', q{user_id => 'bob'});
my $token = create($node, 'first', q{user_id => 'ada'});
is(run(from($token, '192.0.2.1') . from($other, '198.51.100.1')), 'valid valid', 'tokens that were used');
is(run_as('regress_apitoken_job', forget('ada')), 't', 'the user of one is forgotten');
$node->safe_psql('postgres', $flush);
is(written(), ++$uses . '|0', 'its use is counted, without the address');
is($node->safe_psql('postgres', q{SELECT host(last_used_from) FROM used WHERE label = 'other'}), '198.51.100.1', "others' addresses are kept");

# ----- while a user is being forgotten -------------------------------------------

foreach my $end ('COMMIT', 'PREPARE')
{
	my $user = 'user ' . lc $end;
	$token = create($node, 'laptop', "user_id => '$user'");
	is(run(from($token, '192.0.2.2') . $flush), 'valid', "$end: a use that is written");
	my $job = connection($node, user => 'regress_apitoken_job');
	ask($job, 'BEGIN;');
	is(ask($job, forget($user)), 't', "$end: the user is being forgotten");
	is(run(from($token, '192.0.2.3')), 'valid', "$end: meanwhile the token is used");
	my $flusher = $node->background_psql('postgres');
	$flusher->query_until(qr/started/, "\\echo started\n$flush;\n\\echo flushed\n");
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype = 'object'}), "$end: a flush waits");
	is(ask($job, $end eq 'COMMIT' ? 'COMMIT;' : q{PREPARE TRANSACTION 'forget';}), '', "$end: to the end");
	is($node->safe_psql('postgres', q{COMMIT PREPARED 'forget'}), '', 'prepared') if $end eq 'PREPARE';
	$flusher->query_until(qr/flushed/, "\\echo\n");
	$flusher->quit;
	$job->quit;
	$node->safe_psql('postgres', $flush);
	is(written(), ($uses += 2) . '|0', "$end: no address is written");
}

# ----- across a restart ------------------------------------------------------------

$token = create($node, 'restarted', q{user_id => 'cora'});
is(run(from($token, '192.0.2.4')), 'valid', 'a use that is not written');
is(run_as('regress_apitoken_job', forget('cora')), 't', 'the user is forgotten');
$node->restart;
# the server removes the file when it has read it
my $saved = '';
if (open my $file, '<:raw', $node->data_dir . '/pg_stat/apitoken.usage')
{
	local $/ = undef;
	$saved = <$file>;
}
unlike($saved, qr/\xc0\x00\x02\x04/, 'no address is in the file of usage');
$node->safe_psql('postgres', $flush);
is(written(), ++$uses . '|0', 'nor written after the restart');
is(run('SELECT apitoken.forget_user(u) FROM unnest(ARRAY[\'ada\', \'cora\']) u'), 'f f', 'nothing is left');

$node->stop;
no_crash($node);
done_testing();
