# Previous secrets of tokens with shared preload: the last use of each, and their
# use after the overlap, which leaves an event and may revoke the token.
use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# written only when the test says so
my $node = start_node('rotation', preload => 'shared', conf => q{apitoken.flush_interval = '1h'});
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id, revoke_on_reuse) VALUES ('acme', false), ('strict', true);
	INSERT INTO apitoken.users (id, email) VALUES ('ada', 'ada@acme.example');
	INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin');
	UPDATE apitoken.organizations SET notify = '{reuse}' WHERE id = 'acme';
	CREATE ROLE regress_apitoken_gateway LOGIN;
	SELECT apitoken.allow('regress_apitoken_gateway', 'verify')});

sub sql { return $node->safe_psql('postgres', shift) }
sub verdict_of { my ($token) = @_; return sql("SELECT verdict FROM apitoken.verify('$token')") }
sub flush { sql('SELECT apitoken.flush_usage()'); return }
sub made { my ($label, $owner) = @_; return sql("SELECT token FROM apitoken.create_token('$label', $owner)") }

sub regenerate
{
	my ($label, $overlap) = @_;
	return sql("SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken.tokens WHERE label = '$label' AND revoked_at IS NULL), overlap => '$overlap')");
}

sub events
{
	my ($label) = @_;
	return sql(qq{SELECT string_agg(concat_ws(' ', action, details->'new'->>'revoke_reason', actor), ', ' ORDER BY id) FROM apitoken.events
		WHERE action IN ('reuse', 'revoke') AND details->>'label' = '$label'});
}

sub used
{
	my ($label) = @_;
	return sql(qq{SELECT string_agg(s->>'last_used', ', ' ORDER BY n) FROM apitoken.tokens, jsonb_array_elements(previous_secrets) WITH ORDINALITY u (s, n) WHERE label = '$label'});
}

# ----- the last use of each secret -----------------------------------------------

my @secret = made('deploy', "'acme'");
push @secret, regenerate('deploy', '1 day') foreach 1 .. 3;
is(used('deploy'), 'never, never, never', 'three previous secrets');
is(verdict_of($secret[3]), 'valid', 'the current one is used');
is(sql("BEGIN READ ONLY; SELECT verdict || ' ' || secret FROM apitoken.verify('$secret[1]'); ROLLBACK"), 'valid previous', 'and the second, READ ONLY and rolled back');
flush();
is(used('deploy'), 'never, just now, never', 'each has its own last use');
verdict_of($secret[0]);
$node->restart;
flush();
is(used('deploy'), 'just now, just now, never', 'a restart loses none');
is(sql("SELECT accepted, refused FROM apitoken.token_usage JOIN apitoken.tokens ON id = token_id WHERE label = 'deploy'"), '3|0', 'they are uses of the token');
flush();
is(events('deploy'), '', 'no event of a use during the overlap');

# ----- after the overlap -----------------------------------------------------------

sql(q{SELECT apitoken.end_overlap(id) FROM apitoken.tokens WHERE label = 'deploy'});
flush();
is(events('deploy'), '', 'the uses before the end count for nothing');
is(sql(qq{SELECT concat_ws(' ', verdict, token_id, label, secret) FROM apitoken.verify('$secret[1]')}), 'unknown', 'the answer tells nothing');
is(sql("BEGIN READ ONLY; SELECT verdict FROM apitoken.verify('$secret[1]'); ROLLBACK"), 'unknown', 'READ ONLY, too');
is(events('deploy'), '', 'the verification itself writes nothing');
flush();
is(events('deploy'), 'reuse', 'the flush does');
is(sql(q{SELECT count(*) FROM apitoken.events WHERE action = 'reuse' AND details->'new'->'previous_reused_at'->>1 IS NOT NULL AND details->'new'->'previous_reused_at'->>0 IS NULL AND details::text !~ 'digest'}),
	'1', 'which tells the secret by its place, and when');
is(sql(q{SELECT n.event, n.payload->>'label', n.payload->>'actor', n.recipients, n.created_at = e.at, n.payload::text ~ '_[0-9A-Za-z]{71}'
		FROM apitoken.notifications n JOIN apitoken.events e USING (id, token_id)}), 'reuse|deploy||{ada@acme.example}|t|f', 'and tells who wants to be told');
verdict_of($secret[1]);
flush();
is(events('deploy'), 'reuse', 'once for each secret');
is(verdict_of($_), 'unknown', 'another secret') foreach @secret[ 0, 2 ];
flush();
is(events('deploy'), 'reuse, reuse', 'both others in one event');
is(verdict_of($secret[3]), 'valid', 'the current one goes on');
flush();
is(sql(q{SELECT accepted, refused FROM apitoken.token_usage JOIN apitoken.tokens ON id = token_id WHERE label = 'deploy'}), '4|5', 'they count as refused');
my $guess = $secret[3] =~ s/^(apt_org_.{22}).{43}/$1 . 'x' x 43/er;
is(verdict_of($guess), 'malformed', 'guesses do not');
is(verdict_of(sql(q{SELECT apitoken.generate('organization')})), 'unknown', 'nor unknown texts');
flush();
is(events('deploy'), 'reuse, reuse', 'and leave no event');

# a secret that was replaced without an overlap
my $replaced = $secret[3];
my $current = regenerate('deploy', '0');
verdict_of($replaced);
flush();
is(events('deploy'), 'reuse, reuse, reuse', 'a secret without an overlap');
is(verdict_of($current), 'valid', 'revoke_on_reuse is off');

# ----- revoke_on_reuse -------------------------------------------------------------

my $old = made('strict', "'strict'");
my $new = regenerate('strict', '1 hour');
is(verdict_of($old), 'valid', 'revoke_on_reuse: during the overlap');
flush();
is(verdict_of($new), 'valid', 'the token goes on');

# uses that were accepted while the end was not committed are not uses after the end
my $session = $node->background_psql('postgres');
ask($session, 'BEGIN');
ask($session, q{SELECT apitoken.end_overlap(id) FROM apitoken.tokens WHERE label = 'strict'});
is(verdict_of($old), 'valid', 'accepted until the end is committed');
ask($session, 'COMMIT');
$session->quit;
flush();
is(verdict_of($new), 'valid', 'which does not count against the token');
is(events('strict'), '', 'without an event');

is(verdict_of($old), 'unknown', 'after the overlap');
flush();
is(events('strict'), 'reuse, revoke reuse', 'the token is revoked');
is(verdict_of($new), 'revoked', 'also for the current secret');
verdict_of($old);
flush();
is(events('strict'), 'reuse, revoke reuse', 'once');

# a personal token has no organization that could want it
$old = made('own', q{user_id => 'ada'});
$new = regenerate('own', '0');
verdict_of($old);
flush();
is(events('own'), 'reuse', 'a personal token');
is(verdict_of($new), 'valid', 'goes on');

# a trigger of the user's that fails must not prevent that use is written
$old = made('guarded', "'strict'");
$new = regenerate('guarded', '0');
sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not today'; END$$;
	CREATE TRIGGER refuse BEFORE UPDATE ON apitoken_internal.token_records FOR EACH ROW EXECUTE FUNCTION refuse()});
verdict_of($old);
verdict_of($new);
flush();
is(sql(q{SELECT accepted, refused FROM apitoken.token_usage JOIN apitoken.tokens ON id = token_id WHERE label = 'guarded'}), '1|1', 'a trigger that fails: use is written');
like(slurp_file($node->logfile), qr/WARNING:  could not record the use of replaced token secrets: not today/, 'the log tells');
sql('DROP FUNCTION refuse() CASCADE');
# nor a token that another transaction has locked
$session = $node->background_psql('postgres');
ask($session, 'BEGIN');
ask($session, q{SELECT id IS NOT NULL FROM apitoken_internal.token_records WHERE label = 'guarded' FOR UPDATE});
verdict_of($old);
flush();
is(events('guarded'), '', 'a locked token is left out');
ask($session, 'COMMIT');
$session->quit;
verdict_of($old);
flush();
is(events('guarded'), 'reuse, revoke reuse', 'until its next use');

# the event has the client's address of that use, and not that of an accepted one
my @old = map { made("from $_", "'acme'") } 1 .. 3;
my @new = map { regenerate("from $_", '0') } 1 .. 3;
sub reused_from { return sql(q{SELECT string_agg(concat_ws(' ', e.details->>'label', e.client_address, n.payload->>'client_address'), ', ' ORDER BY e.details->>'label')
	FROM apitoken.events e JOIN apitoken.notifications n USING (id) WHERE e.action = 'reuse' AND e.details->>'label' LIKE 'from%'}) }
sql("SELECT apitoken.verify('$old[$_->[0]]', client_address => '$_->[1]')") foreach [ 0, '192.0.2.5' ], [ 0, '198.51.100.7' ], [ 1, '::ffff:192.0.2.6' ], [ 2, '2001:db8::1' ];
sql("SELECT apitoken.verify('$new[0]', client_address => '203.0.113.9')");
sql('ALTER TABLE apitoken.token_usage ADD CONSTRAINT refuse CHECK (accepted < 0) NOT VALID');
is(($node->psql('postgres', 'SELECT apitoken.flush_usage()', on_error_stop => 1))[0], 3, 'a flush that fails');
$node->restart;
sql('ALTER TABLE apitoken.token_usage DROP CONSTRAINT refuse');
flush();
is(reused_from(), 'from 1 198.51.100.7 198.51.100.7, from 2 192.0.2.6 192.0.2.6, from 3 2001:db8::1 2001:db8::1', 'the client that used the old secret last');
is(sql(q{SELECT u.last_used_from FROM apitoken.token_usage u JOIN apitoken.tokens ON id = token_id WHERE label = 'from 1'}), '203.0.113.9', 'which is not the last accepted use');
is(sql(q{SELECT count(*) FROM apitoken.events WHERE action = 'reuse' AND details->>'label' = 'deploy' AND client_address IS NULL}), '3', 'an unknown address is none');
# forget_user() removes an address that is not written yet
$old = made('of a person', q{user_id => 'ada'});
regenerate('of a person', '0');
sql("SELECT apitoken.verify('$old', client_address => '192.0.2.77')");
sql(q{SELECT apitoken.forget_user('ada')});
flush();
is(sql(q{SELECT count(*) FROM apitoken.events e WHERE e::text LIKE '%192.0.2.77%'}), '0', 'the address of a forgotten user is not written');

# housekeeping leaves the secrets, and a place that is used again is another secret's
$old = made('again', "'acme'");
my @others = map { regenerate('again', '0') } 1 .. 4;
sql('SELECT apitoken.run_maintenance()');
verdict_of($old);
flush();
is(events('again'), 'reuse', 'the oldest of four places');
regenerate('again', '1 day');
verdict_of($old);
flush();
is(events('again'), 'reuse', 'which another secret has now: nothing is known of the old one');
is(verdict_of($others[3]), 'valid', 'and that one is in its overlap');
flush();
is(events('again'), 'reuse', 'which is none');

$node->stop;
done_testing();
