# personal_tokens_seen: which personal tokens acted in an organization, however they
# did it and however the transaction ended; who sees it; a restart, failed flushes,
# full memory; retention, forget_user(), deleted organizations, a dump.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

# written only when the test says so
my $node = start_node('seen', preload => 'shared', conf => q{
	apitoken.flush_interval = '1h'
	apitoken.usage_slots = 1024
	apitoken.usage_retention = '10d'
	max_prepared_transactions = 2
	log_statement = none
});
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_backend LOGIN;
	CREATE ROLE regress_apitoken_job LOGIN;
	CREATE ROLE regress_apitoken_monitor LOGIN;
	SELECT apitoken.allow('regress_apitoken_backend', 'use', 'manage', 'verify', 'act');
	SELECT apitoken.allow('regress_apitoken_job', 'directory');
	SELECT apitoken.allow('regress_apitoken_monitor', 'monitor');
	INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('other');
	INSERT INTO apitoken.users (id) VALUES ('ada'), ('bob'), ('boss'), ('clerk'), ('auditor'), ('olga');
	INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read}'), ('auditor', '{token:read}'), ('editor', '{article:*, token:update}');
	INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'reader'), ('other', 'ada', 'reader'), ('acme', 'boss', 'admin'),
		('acme', 'clerk', 'reader'), ('acme', 'auditor', 'auditor'), ('acme', 'bob', 'editor'), ('other', 'olga', 'admin');
	CREATE TABLE article (id int, organization_id text);
	INSERT INTO article VALUES (1, 'acme'), (2, 'other');
	ALTER TABLE article ENABLE ROW LEVEL SECURITY;
	CREATE POLICY article_read ON article FOR SELECT
		USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
	GRANT SELECT ON article TO regress_apitoken_backend;
});
run_on($node, user => 'regress_apitoken_backend');
sub flush { $node->safe_psql('postgres', 'SELECT apitoken.flush_usage()'); return; }
sub owner { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub by { my ($token, $sql) = @_; return "BEGIN; SELECT valid FROM apitoken.authenticate('$token'); $sql COMMIT;"; }

# What this user sees: organization/owner/label.
my $list = q{SELECT coalesce(string_agg(concat_ws('/', organization_id, user_id, label), ' ' ORDER BY organization_id, user_id, label), 'nothing') FROM apitoken.personal_tokens_seen;};
sub seen { my ($user) = @_; return run("BEGIN; SELECT apitoken.act_as('$user'); $list COMMIT;") =~ s/^\S+ //r; }
sub forget_all { flush(); owner('DELETE FROM apitoken_internal.personal_token_use'); return; }

# ----- however it acts ---------------------------------------------------------------

my $ada = create($node, 'laptop', q{user_id => 'ada'});
my $team = create($node, 'deploy', q{organization_id => 'acme', role => 'reader'});
my $in_acme = verdict($ada, ", 'article:read', 'acme'");
my $can = q{SELECT apitoken.can('article:read', 'acme');};
my %ways = (
	'verify()' => [ $in_acme, 'valid' ],
	'verify() without a permission' => [ verdict($ada, ", organization_id => 'acme'"), 'valid' ],
	'verify(), rolled back' => [ "BEGIN; $in_acme ROLLBACK;", 'valid' ],
	'verify() in READ ONLY' => [ "BEGIN READ ONLY; $in_acme ROLLBACK;", 'valid' ],
	'verify() in SERIALIZABLE' => [ "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; $in_acme COMMIT;", 'valid' ],
	'verify(), savepoint' => [ "BEGIN; SAVEPOINT s; $in_acme ROLLBACK TO s; COMMIT;", 'valid' ],
	'verify(), an error after it' => [ "BEGIN; $in_acme SELECT 1/0;", 'valid [ERROR: 22012]' ],
	'can()' => [ by($ada, $can), 't t' ],
	'can() in READ ONLY' => [ "BEGIN READ ONLY; SELECT valid FROM apitoken.authenticate('$ada'); $can ROLLBACK;", 't t' ],
	'can() by the setting' => [ "BEGIN; SET LOCAL apitoken.token = '$ada'; $can COMMIT;", 't' ],
	'prepared, rolled back' => [ "BEGIN; $in_acme PREPARE TRANSACTION 'x'; ROLLBACK PREPARED 'x';", 'valid' ],
);
foreach my $way (sort keys %ways)
{
	is(run($ways{$way}[0]), $ways{$way}[1], "$way: acts");
	is(owner('SELECT count(*) FROM apitoken_internal.personal_token_use'), '0', "$way: writes nothing itself");
	flush();
	is(seen('boss'), 'acme/ada/laptop', "$way: is seen");
	forget_all();
}
is(run(by($ada, 'SELECT count(*) FROM article;')), 't 2', 'a policy of the application');
flush();
is(seen('boss') . ', ' . seen('olga'), 'acme/ada/laptop, other/ada/laptop', 'acts in all organizations that it shows');
forget_all();

# ----- what is no action ---------------------------------------------------------------

my %others = (
	'a permission that is refused' => [ verdict($ada, ", 'article:write', 'acme'"), 'permission_refused' ],
	'can(), refused' => [ by($ada, q{SELECT apitoken.can('article:write', 'acme');}), 't f' ],
	'no organization' => [ verdict($ada), 'valid' ],
	'another one' => [ verdict($ada, ", 'article:read', 'nowhere'"), 'permission_refused' ],
	'an unknown one of any length' => [ verdict($ada, q{, 'article:read', repeat('x', 300)}) . verdict($ada, q{, 'article:read', repeat('x', 10000000)}), qr/permission_refused|22023/ ],
	'explain_verify()' => [ "SELECT bool_and(passed) FROM apitoken.explain_verify('$ada', 'article:read', 'acme');", 't' ],
	'a token of the organization' => [ verdict($team, ", 'article:read', 'acme'") . by($team, $can), 'valid t t' ],
	'the user' => [ "BEGIN; SELECT apitoken.act_as('ada'); $can SELECT count(*) FROM article; COMMIT;", 'ada t 2' ],
	'a guess' => [ verdict($ada =~ s/.{8}$/AAAAAAAA/r, ", 'article:read', 'acme'"), 'malformed' ],
);
foreach my $other (sort keys %others)
{
	my $got = run($others{$other}[0]);
	ref $others{$other}[1] ? like($got, $others{$other}[1], "$other: answered") : is($got, $others{$other}[1], "$other: answered");
	flush();
	is(owner('SELECT count(*) FROM apitoken_internal.personal_token_use'), '0', "$other: is not recorded");
}

# ----- who sees it ---------------------------------------------------------------------

my $bob = create($node, 'phone', q{user_id => 'bob'});
run(verdict($bob, ", 'article:read', 'acme'") . $in_acme . verdict($ada, ", 'article:read', 'other'"));
flush();
is(seen($_), 'acme/ada/laptop acme/bob/phone', "who may read tokens: $_") foreach 'boss', 'auditor';
is(seen('olga'), 'other/ada/laptop', 'who may in another organization');
is(seen($_), 'nothing', "who may not: $_") foreach 'ada', 'bob', 'clerk', 'nobody';
is(run($list), 'nothing', 'who is nobody');
is(run(by($team, $list)), 't nothing', 'a token without the permission');
my $reading = create($node, 'audit', q{organization_id => 'acme', role => 'auditor'});
is(run(by($reading, $list)), 't acme/ada/laptop acme/bob/phone', 'a token with the permission');
is(run_as('regress_apitoken_monitor', $list), '[ERROR: 42501]', 'a role without the capability');
is(run(qq{BEGIN; SELECT apitoken.act_as('boss'); $_; COMMIT;}), 'boss [ERROR: 42501]', "not directly: $_") foreach
	'SELECT * FROM apitoken_internal.personal_token_use', 'DELETE FROM apitoken_internal.personal_token_use', 'SELECT * FROM apitoken_internal.read_stats()';
is(run(q{BEGIN; SELECT apitoken.act_as('boss'); DELETE FROM apitoken.personal_tokens_seen; COMMIT;}), 'boss [ERROR: 55000]', 'nobody changes it');
is(run(q{BEGIN; SELECT apitoken.act_as('boss'); SELECT last_used, masked LIKE 'apt\_usr\_%' FROM apitoken.personal_tokens_seen WHERE user_id = 'bob'; COMMIT;}), 'boss just now|t', 'what is told of it');
is(run(q{SET search_path = pg_temp; CREATE TEMP TABLE personal_token_use (); CREATE FUNCTION pg_temp.in_words(timestamptz) RETURNS text LANGUAGE sql AS $$SELECT 'stolen'$$;
	BEGIN; SELECT apitoken.act_as('boss'); SELECT DISTINCT last_used FROM apitoken.personal_tokens_seen; COMMIT;}), 'boss just now', 'a hostile search_path changes nothing');
# the end of a membership or a suspension counts at once
owner(q{UPDATE apitoken.memberships SET role = 'reader' WHERE user_id = 'auditor'});
is(seen('auditor'), 'nothing', 'who may no longer');
owner(q{UPDATE apitoken.memberships SET role = 'auditor' WHERE user_id = 'auditor'});
# a token that ended, and a user who left, stay on the list
owner(q{SELECT apitoken.revoke_token(id, label) FROM apitoken.tokens WHERE label = 'phone'; DELETE FROM apitoken.memberships WHERE user_id = 'ada' AND organization_id = 'acme'});
is(seen('boss'), 'acme/ada/laptop acme/bob/phone', 'what was is still seen');
owner(q{INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'reader')});

# ----- lost is nothing -------------------------------------------------------------------

sub last_use { return owner(q{SELECT max(last_used_at) FROM apitoken_internal.personal_token_use WHERE organization_id = 'acme'}); }
forget_all();
run($in_acme);
$node->restart;
flush();
is(seen('boss'), 'acme/ada/laptop', 'a restart keeps it');
my $before = last_use();
owner(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$;
	CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON apitoken_internal.personal_token_use FOR EACH ROW EXECUTE FUNCTION refuse()});
run($in_acme);
is(run_as('postgres', 'SELECT apitoken.flush_usage()'), '[ERROR: 55000]', 'a flush that fails');
owner('DROP TRIGGER refuse ON apitoken_internal.personal_token_use');
flush();
isnt(last_use(), $before, 'is done again');
# many at once: what does not fit is dropped and counted, and no use is
owner(q{INSERT INTO apitoken.organizations (id) SELECT 'org ' || n FROM generate_series(1, 500) n;
	INSERT INTO apitoken.memberships SELECT 'org ' || n, 'ada', 'reader' FROM generate_series(1, 500) n});
forget_all();
my $uses = owner(q{SELECT sum(accepted) FROM apitoken.token_usage});
my $fits = run(q{SELECT dropped FROM apitoken.stats;}, user => 'postgres');
run(by($ada, 'SELECT count(*) FROM article;'));
flush();
my $dropped = run(q{SELECT dropped FROM apitoken.stats;}, user => 'postgres') - $fits;
cmp_ok($dropped, '>', 0, 'more organizations than there is room for');
is(owner('SELECT count(*) FROM apitoken_internal.personal_token_use') + $dropped, 502, 'are written or dropped');
is(owner(q{SELECT sum(accepted) FROM apitoken.token_usage}), $uses + 1, 'and take no room of usage');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM apitoken.stats WHERE entries > 0}), 'the launcher makes room');
owner(q{DELETE FROM apitoken.organizations WHERE id LIKE 'org %'});

# ----- organizations and persons that end ---------------------------------------------

forget_all();
run($in_acme . verdict($ada, ", 'article:read', 'other'"));
flush();
owner(q{DELETE FROM apitoken.organizations WHERE id = 'other'; INSERT INTO apitoken.organizations (id) VALUES ('other'); INSERT INTO apitoken.memberships VALUES ('other', 'olga', 'admin')});
is(seen('olga'), 'nothing', 'a new organization with an old id does not show what acted in the old one');
owner(q{DELETE FROM apitoken.organizations WHERE id = 'other'});
is(owner('SELECT usage_removed FROM apitoken.run_maintenance()'), '1', 'housekeeping removes that of a deleted organization');
is(seen('boss'), 'acme/ada/laptop', 'and no other');
owner(q{UPDATE apitoken_internal.personal_token_use SET last_used_at = now() - interval '9 days'});
is(owner('SELECT usage_removed FROM apitoken.run_maintenance()'), '0', 'before the retention nothing is removed');
owner(q{UPDATE apitoken.organizations SET created_at = now() - interval '1 year' WHERE id = 'acme'});
is(run(q{BEGIN; SELECT apitoken.act_as('boss'); SELECT last_used FROM apitoken.personal_tokens_seen; COMMIT;}), 'boss 9 days ago', 'how long ago');
owner(q{UPDATE apitoken_internal.personal_token_use SET last_used_at = now() - interval '11 days'});
is(owner('SELECT usage_removed FROM apitoken.run_maintenance()'), '1', 'after it is');
is(seen('boss'), 'nothing', 'and no longer seen');
# a person is forgotten: what is written, and what is not yet
run($in_acme);
flush();
run($in_acme);
is(run_as('regress_apitoken_job', q{SELECT apitoken.forget_user('ada')}), 't', 'a user is forgotten');
is(owner('SELECT count(*) FROM apitoken_internal.personal_token_use'), '0', 'what was written is removed');
flush();
is(owner('SELECT count(*) FROM apitoken_internal.personal_token_use'), '0', 'and no flush brings it back');

# ----- dump and restore -----------------------------------------------------------------

my $cora = create($node, 'cli', q{user_id => 'cora'});
owner(q{INSERT INTO apitoken.memberships VALUES ('acme', 'cora', 'reader')});
run(verdict($cora, ", 'article:read', 'acme'"));
flush();
my $dump = $node->basedir . '/seen.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, 'postgres' ], 'dumped');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, 'restored' ], 'restored');
is($node->safe_psql('restored', q{SELECT u.organization_id, r.label FROM apitoken_internal.personal_token_use u JOIN apitoken_internal.token_records r ON r.id = u.token_id}), 'acme|cli', 'the restored database has it');

$node->stop;
no_crash($node);
done_testing();
