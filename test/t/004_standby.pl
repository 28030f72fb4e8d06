# Hot standby: it verifies tokens and writes nothing.  It sees a revocation as
# soon as that is replayed.  After a promotion and after a crash everything works.
# With shared preload, it records usage in memory and writes it after the
# promotion.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# a query on the standby may delay the replay, but the replay must not cancel it
my $primary = start_node('primary', init => [ allows_streaming => 1 ], conf => "max_connections = 20\nmax_standby_streaming_delay = -1");
$primary->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations VALUES ('acme', 'Acme'), ('other', 'Other');
	INSERT INTO apitoken.users VALUES ('u', 'User', NULL, '{g}');
	INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'developer');
	CREATE ROLE regress_apitoken_backend LOGIN;
	SELECT apitoken.allow('regress_apitoken_backend', 'verify', 'act', 'manage');
	CREATE TABLE article (id int, organization_id text);
	INSERT INTO article VALUES (1, 'acme'), (2, 'other'), (3, 'acme');
	ALTER TABLE article ENABLE ROW LEVEL SECURITY;
	CREATE POLICY article_read ON article FOR SELECT
		USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
	GRANT SELECT ON article TO regress_apitoken_backend;
});
my %token = create_each($primary, {
	organization => q{organization_id => 'acme'},
	user => q{user_id => 'u'},
	read_only => q{organization_id => 'acme', access => 'read_only'},
	networks => q{organization_id => 'acme', allowed_networks => '{10.0.0.0/8}'},
	revoked => q{organization_id => 'acme'},
	suspended => q{organization_id => 'acme'},
	expired => q{organization_id => 'acme', expires_in => '30 days'},
	victim => q{organization_id => 'acme'},
});
$primary->safe_psql('postgres', q{
	SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'revoked';
	UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended';
	-- as time would
	ALTER TABLE apitoken_internal.token_records DISABLE TRIGGER USER;
	UPDATE apitoken_internal.token_records SET expires_at = now() - interval '1 s' WHERE label = 'expired';
	ALTER TABLE apitoken_internal.token_records ENABLE TRIGGER USER;
});

$primary->backup('base');
my $standby = start_standby($primary, 'standby');
sub replayed { $primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert')); }
replayed();

my @backend = (extra_params => [ '-U', 'regress_apitoken_backend', '-v', 'VERBOSITY=verbose' ]);
sub on { my ($node, $sql) = @_; my ($rc, $out, $err) = $node->psql('postgres', $sql, @backend, on_error_stop => 0); return join("\n", grep { length } $out, $err); }

# ----- verified there ----------------------------------------------------------

my %verdicts = (organization => 'valid', user => 'valid', read_only => 'valid', networks => 'network_refused',
	revoked => 'revoked', suspended => 'suspended', expired => 'expired', victim => 'valid');
foreach my $level ('READ COMMITTED', 'REPEATABLE READ')
{
	foreach my $mode ('READ ONLY', '')
	{
		is_deeply([ split /\n/, on($standby, "BEGIN ISOLATION LEVEL $level $mode; " . join(';', map { verdict($token{$_}) } sort keys %verdicts) . '; COMMIT') ],
			[ map { $verdicts{$_} } sort keys %verdicts ], "every verdict on the standby, $level $mode");
	}
}
is(on($standby, verdict($token{networks}, q{, client_address => '10.1.1.1'})), 'valid', 'with an address');
is(on($standby, verdict($token{organization}, q{, 'article:read', 'acme'})), 'valid', 'with a permission');
is(on($standby, verdict($token{organization}, q{, 'article:read', 'other'})), 'permission_refused', 'elsewhere');
is(on($standby, 'SELECT verdict FROM apitoken.verify(NULL)'), 'malformed', 'without a token');

# identities and policies
my $articles = 'SELECT string_agg(id::text, \',\' ORDER BY id) FROM article';
is(on($standby, $articles), '', 'anonymous sees no article');
is(on($standby, "BEGIN; SELECT (apitoken.authenticate('$token{organization}')).valid; $articles; SELECT apitoken.current_organization_id(); COMMIT"),
	"t\n1,3\nacme", 'authenticate() and a policy');
is(on($standby, "BEGIN; SET LOCAL apitoken.token = '$token{read_only}'; SELECT apitoken.can('article:read'), apitoken.can('article:write'); COMMIT"),
	't|f', 'the setting apitoken.token')
  or diag(on($standby, 'SELECT 1'));
is(on($standby, "BEGIN; SELECT apitoken.act_as('u'); $articles; SELECT count(*) FROM apitoken.list_tokens(); COMMIT"),
	"u\n1,3\n1", 'act_as(), a policy, and list_tokens()');
is(on($standby, "BEGIN; SELECT apitoken.act_as('nobody'); SELECT apitoken.can('a:b'), apitoken.can('a:b', 'acme'); COMMIT"),
	"nobody\nt|f", 'act_as() of a user without a row');
like(on($standby, "BEGIN; SELECT apitoken.authenticate('$token{revoked}')"), qr/ERROR:  28000/, 'a revoked token is an error there as well');

# nothing may write; the server itself refuses, with a clean error
foreach my $statement (
	q{SELECT apitoken.create_token('new')},
	q{INSERT INTO apitoken.tokens (label) VALUES ('new')},
	q{UPDATE apitoken.tokens SET description = 'x'},
	q{SELECT apitoken.regenerate_token((SELECT id FROM apitoken.tokens WHERE label = 'user'))},
	q{SELECT apitoken.revoke_token((SELECT id FROM apitoken.tokens WHERE label = 'user'))},
	q{SELECT apitoken.revoke_tokens(user_id => 'u')},
	"SELECT apitoken.revoke_by_token('$token{user}')")
{
	like(on($standby, "BEGIN; SELECT apitoken.act_as('u'); $statement"), qr/^u\n.*ERROR:  25006: /s, "read-only there: $statement");
}
is(on($standby, verdict($token{user})), 'valid', 'and it changed nothing');

# verifications on the standby are not written anywhere
is($standby->safe_psql('postgres', 'SELECT count(*) FROM apitoken.token_usage WHERE last_used_at IS NOT NULL'), '0', 'no use was recorded');

# ----- revocation --------------------------------------------------------------

my %session;
foreach my $level ('READ COMMITTED', 'REPEATABLE READ')
{
	$session{$level} = connection($standby, user => 'regress_apitoken_backend', verbosity => 'verbose');
	# this takes its snapshot before the revocation
	is(ask_raw($session{$level}, "BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM pg_class WHERE relname = 'article'; " . verdict($token{victim})), "1\nvalid",
		"valid in a $level transaction");
}
$primary->safe_psql('postgres', q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'victim'});
# repeated, it is a transaction with WAL, whose commit waits for synchronous standbys (tap:073_cluster)
is($primary->safe_psql('postgres', "BEGIN; SELECT apitoken.revoke_by_token('$token{victim}'); SELECT pg_current_xact_id_if_assigned() IS NOT NULL; COMMIT"), "f\nt", 'revoked again');
is($primary->safe_psql('postgres', "BEGIN READ ONLY; SELECT apitoken.revoke_by_token('$token{victim}'); SELECT pg_current_xact_id_if_assigned() IS NOT NULL; COMMIT"), "f\nf", 'revoked again in a READ ONLY transaction');
replayed();
foreach my $level (sort keys %session)
{
	is(ask_raw($session{$level}, verdict($token{victim})), 'revoked', "refused after replay in a $level transaction that began before");
	like(ask_raw($session{$level}, "SELECT apitoken.authenticate('$token{victim}')"), qr/ERROR:  28000.*revoked/s, "and not authenticated ($level)");
	ask_raw($session{$level}, 'ROLLBACK');
}
# so are suspension and resumption
$primary->safe_psql('postgres', q{UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'acme'});
replayed();
is(ask_raw($session{'READ COMMITTED'}, verdict($token{organization})), 'suspended', 'a suspended organization');
$primary->safe_psql('postgres', q{UPDATE apitoken.organizations SET suspended_at = NULL});
replayed();
is(ask_raw($session{'READ COMMITTED'}, verdict($token{organization})), 'valid', 'resumed');

# and a session forgets what it has cached about roles
is(ask_raw($session{'READ COMMITTED'}, verdict($token{organization}, q{, 'article:write'})), 'valid', 'what its role allows');
$primary->safe_psql('postgres', q{UPDATE apitoken.roles SET permissions = '{article:read}' WHERE name = 'developer'});
replayed();
is(ask_raw($session{'READ COMMITTED'}, verdict($token{organization}, q{, 'article:write'})), 'permission_refused', 'a role that allows less');

# a transaction that goes on there forgets where its user may do what
my $allowed = q{SELECT ARRAY(SELECT apitoken.organizations_allowed('article:read'))};
ask_raw($session{'READ COMMITTED'}, q{BEGIN; SELECT apitoken.act_as('u')});
is(ask_raw($session{'READ COMMITTED'}, $allowed), '{acme}', 'a member');
$primary->safe_psql('postgres', q{DELETE FROM apitoken.memberships});
replayed();
is(ask_raw($session{'READ COMMITTED'}, $allowed), '{}', 'a member no longer');
$primary->safe_psql('postgres', q{INSERT INTO apitoken.memberships VALUES ('acme', 'u', 'developer')});
replayed();
is(ask_raw($session{'READ COMMITTED'}, $allowed), '{acme}', 'a member again');
ask_raw($session{'READ COMMITTED'}, 'COMMIT');

# a session's caches follow the replay
foreach my $ddl ('VACUUM FULL apitoken_internal.token_records', 'REINDEX TABLE CONCURRENTLY apitoken_internal.token_records', 'ALTER TABLE apitoken_internal.token_records ADD COLUMN extra int DEFAULT random()',
	'ALTER TABLE apitoken_internal.token_records DROP COLUMN extra')
{
	$primary->safe_psql('postgres', $ddl);
	replayed();
	is(ask_raw($session{'READ COMMITTED'}, verdict($token{organization})), 'valid', "a session on the standby goes on after $ddl");
}
# DROP EXTENSION on the primary is not held up by an idle transaction there
ask_raw($session{'READ COMMITTED'}, 'BEGIN; ' . verdict($token{organization}));
$primary->safe_psql('postgres', 'CREATE DATABASE scratch');
replayed();
ask_raw($session{'READ COMMITTED'}, 'ROLLBACK');

# ----- promotion ---------------------------------------------------------------

$standby->promote;
my $promoted = $standby;
is(ask_raw($session{'READ COMMITTED'}, verdict($token{organization})), 'valid', 'a session of before the promotion verifies');
is($promoted->safe_psql('postgres', q{SELECT count(*) FROM apitoken.token_usage WHERE last_used_at IS NOT NULL}), '1', 'and its use is recorded now');
is_deeply([ split /\n/, on($promoted, join(';', map { verdict($token{$_}) } sort keys %verdicts)) ],
	[ map { $_ eq 'victim' ? 'revoked' : $verdicts{$_} } sort keys %verdicts ], 'every verdict after the promotion');
like(ask_raw($session{'READ COMMITTED'}, "BEGIN; SELECT apitoken.act_as('u'); SELECT token FROM apitoken.create_token('promoted'); COMMIT"),
	qr/^u\napt_usr_[0-9A-Za-z]{71}$/, 'a session of before the promotion makes a token');
like(on($promoted, "BEGIN; SELECT apitoken.act_as('u'); SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken.tokens WHERE label = 'promoted')); "
		. q{SELECT apitoken.revoke_token((SELECT id FROM apitoken.tokens WHERE label = 'promoted')); COMMIT}),
	qr/^u\napt_usr_[0-9A-Za-z]{71}\nt$/, 'and it is regenerated and revoked');
is($promoted->safe_psql('postgres', q{SELECT string_agg(action, ' ' ORDER BY id) FROM apitoken.events
	WHERE token_id = (SELECT id FROM apitoken.tokens WHERE label = 'promoted')}), 'create regenerate revoke', 'with events');
$_->quit foreach values %session;

# ----- crash -------------------------------------------------------------------

# after a crash, committed changes are there and uncommitted ones are not
my $before = on($promoted, q{BEGIN; SELECT apitoken.act_as('u'); SELECT token FROM apitoken.create_token('crash'); COMMIT}) =~ s/^u\n//r;
my $open = $promoted->background_psql('postgres', on_error_stop => 0);
my $uncommitted = ask_raw($open, q{BEGIN; SELECT token FROM apitoken.create_token('uncommitted', user_id => 'u')});
ask_raw($open, q{SELECT apitoken.revoke_token(id) FROM apitoken.tokens WHERE label = 'crash'});
like($uncommitted, qr/^apt_usr_/, 'a token made and one revoked in an open transaction');
$promoted->stop('immediate');
$open->{run}->kill_kill;
$promoted->start;
is(on($promoted, "SELECT verdict FROM apitoken.verify('$before'); SELECT verdict FROM apitoken.verify('$uncommitted')"), "valid\nunknown",
	'after a crash: what was committed');
is_deeply([ split /\n/, on($promoted, join(';', map { verdict($token{$_}) } sort keys %verdicts)) ],
	[ map { $_ eq 'victim' ? 'revoked' : $verdicts{$_} } sort keys %verdicts ], 'every verdict after a crash');
like(on($promoted, q{BEGIN; SELECT apitoken.act_as('u'); SELECT token FROM apitoken.create_token('after'); COMMIT}), qr/^u\napt_usr_/, 'new tokens after a crash');

# ----- a standby with the library preloaded ------------------------------------

my $preloaded = start_standby($primary, 'preloaded', conf => "session_preload_libraries = 'apitoken'");
$primary->wait_for_catchup($preloaded, 'replay', $primary->lsn('insert'));
is(on($preloaded, "BEGIN; SET LOCAL apitoken.token = '$token{organization}'; $articles; COMMIT"), '1,3', 'session preload on a standby');
is(on($preloaded, verdict($token{victim})), 'revoked', 'which replayed the revocation');

# ----- usage in shared memory on a standby -------------------------------------

# The primary does not record usage.  64 entries are few enough to use up.
$token{limited} = create($primary, 'limited', q{user_id => 'u', rate_limit_per_minute => 2});
$primary->safe_psql('postgres', q{CREATE TABLE many AS SELECT n, (apitoken.create_token('many' || n, user_id => 'u')).token AS t FROM generate_series(1, 200) n});
my $shared = start_standby($primary, 'shared', conf => q{
	shared_preload_libraries = 'apitoken'
	apitoken.usage_slots = 64
	apitoken.flush_interval = '100ms'
});
$primary->wait_for_catchup($shared, 'replay', $primary->lsn('insert'));
my $written = q{SELECT concat_ws(' ', u.accepted, u.refused, host(u.last_used_from)) FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label = };

# recorded only in memory; every transaction on the standby is READ ONLY
is(on($shared, verdict($token{organization}, q{, client_address => '192.0.2.1'})), 'valid', 'shared preload on a standby: verified');
is(on($shared, 'BEGIN; ' . verdict($token{organization}, q{, client_address => '192.0.2.2'}) . '; ROLLBACK'), 'valid', 'in a transaction rolled back');
is(on($shared, verdict($token{networks})), 'network_refused', 'and one that is refused');
is(stat_of($shared, 'valid, network_refused, entries, dropped'), '2|1|2|0', 'which is recorded in memory');
is($shared->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'apitoken launcher'}), '1', 'a launcher waits');
my ($refused_rc, $refused_out, $refused) = $shared->psql('postgres', 'SELECT apitoken.flush_usage()', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($refused, qr/ERROR:  55000: cannot write token usage during recovery\nHINT:  .*promoted/, 'flush_usage() is refused there');

# rate limits are this server's own
is(on($shared, join ';', (verdict($token{limited})) x 3), "valid\nvalid\nrate_limited", 'a rate limit on a standby');
is(on($shared, "SELECT verdict, retry_after BETWEEN '1 us' AND '30 s' FROM apitoken.verify('$token{limited}')"), 'rate_limited|t', 'and how long to wait');

# a clean restart of the standby loses nothing
$shared->restart;
is(stat_of($shared, 'entries, dropped'), '3|0', 'kept over a restart of the standby');
is(on($shared, verdict($token{organization}, q{, client_address => '192.0.2.3'})), 'valid', 'and added to');

# the memory is full, and nobody can write it
my $many = q{SELECT count(*) FROM many, apitoken.verify(t) v WHERE v.valid};
is($shared->safe_psql('postgres', $many), '200', 'full: every token is verified');
is($shared->safe_psql('postgres', $many), '200', 'full: and again');
my ($entries, $dropped) = split /\|/, stat_of($shared, 'entries, dropped');
cmp_ok($entries, '<=', 64, 'full: there is no more room than was said');
is($dropped, 400 - 2 * ($entries - 3), 'full: what does not fit is dropped and counted');
is(on($shared, verdict($token{victim})), 'revoked', 'full: verdicts are what they are');
$dropped = stat_of($shared, 'dropped');

# after the promotion everything is written, without a restart
my $old_session = $shared->background_psql('postgres', on_error_stop => 0);
$old_session->query('SELECT apitoken.current_user_id()');
my $began = stat_of($shared, 'started_at');
$shared->promote;
ok($shared->poll_query_until('postgres', q{SELECT accepted = 3 FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label = 'organization'}),
	'promoted: written');
is($shared->safe_psql('postgres', $written . q{'organization'}), '3 0 192.0.2.3', 'promoted: with the last address');
is($shared->safe_psql('postgres', $written . q{'networks'}), '0 1', 'promoted: the refusal');
is($shared->safe_psql('postgres', $written . q{'limited'}), '2 2', 'promoted: the rate limit\'s');
is($shared->safe_psql('postgres', q{SELECT sum(accepted), max(accepted) FROM apitoken.token_usage u JOIN apitoken_internal.token_records r ON r.id = u.token_id WHERE r.label LIKE 'many%'}),
	2 * ($entries - 3) . '|2', 'promoted: and what there was room for');
is(stat_of($shared, 'started_at'), $began, 'promoted: without a restart');
is($old_session->query("SELECT verdict FROM apitoken.verify('$token{user}'); SELECT apitoken.flush_usage() IS NULL"), "valid\nf", 'promoted: an old session has its use flushed');
is($shared->safe_psql('postgres', $written . q{'user'}), '1 0', 'promoted: which is written');
$old_session->quit;
ok($shared->poll_query_until('postgres', 'SELECT entries = 0 FROM apitoken.stats'), 'promoted: there is room again');
is($shared->safe_psql('postgres', "$many AND n <= 3"), '3', 'promoted: verified');
is(stat_of($shared, 'dropped'), $dropped, 'promoted: and none is dropped');

$_->stop foreach $shared, $preloaded, $promoted, $primary;
no_crash($_) foreach $primary, $standby, $preloaded, $shared;
done_testing();
