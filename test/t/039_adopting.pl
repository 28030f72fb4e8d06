# docs/adopting.md, step by step, on an application that has its own schema and one
# login, which owns the tables.  Each step runs as the login that the document
# names.  The application and its owner come through pgbouncer with transaction
# pooling, the superuser comes directly.

use strict;
use warnings;

use DBD::Pg qw(:pg_types);
use DBI;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenPooler;
use ApitokenTest;

my $file = 'docs/adopting.md';
my ($alice, $bob, $carol) = ('a11ce000-0000-4000-8000-000000000001', 'b0b00000-0000-4000-8000-000000000002', 'ca201000-0000-4000-8000-000000000003');

my $node = start_node('adopting');
$node->safe_psql('postgres', 'CREATE DATABASE shop');
my $pooler = start_pooler($node, users => [qw(saas saas_app)],
	conf => "default_pool_size = 2\n[databases]\nshop = host=" . $node->host . ' port=' . $node->port . "\n");
my %login = (Superuser => undef, Owner => 'saas', Application => 'saas_app');

# ---- the document

# Its blocks: step, who runs it, language, text, and whether an error is shown.
my @blocks;
{
	my ($step, $who, $language, $text) = ('');
	foreach my $line (split /\n/, slurp_file($file))
	{
		if (defined $language)
		{
			if ($line ne '```')
			{
				$text .= "$line\n";
				next;
			}
			push @blocks, { step => $step, who => $who, language => $language, text => $text } unless $language eq 'text';
			$blocks[-1]{error} = 1 if $language eq 'text' && $text =~ /^ERROR:/m;
			undef $language;
		}
		elsif ($line =~ /^```(\w+)$/) { ($language, $text) = ($1, ''); }
		elsif ($line =~ /^##+ (.*)/) { ($step, $who) = ($1, undef); }
		elsif ($line =~ /^\*\*(Superuser|Owner|Application)\*\*/) { $who = $1; }
	}
}
is(scalar(grep { !defined $_->{who} } @blocks), 0, 'each block says who runs it');

# psql as a login: the superuser directly, the others through pgbouncer
sub psql_as
{
	my ($user, $sql, $database) = @_;
	my ($out, $err) = ('', '');
	my @to = defined $user ? ('-h', $pooler->{host}, '-p', $pooler->{port}, '-U', $user) : ('-h', $node->host, '-p', $node->port);

	IPC::Run::run([ 'psql', '-X', '-q', '-A', '-t', @to, '-d', $database // 'shop' ], '<', \$sql, '>', \$out, '2>', \$err);
	chomp $out;
	return ($out, $err);
}
sub as { my ($user, $sql, $database) = @_; my ($out, $err) = psql_as($user, "\\set VERBOSITY sqlstate\n$sql", $database); return join(' ', grep { length } $out =~ s/\n/ /gr, $err =~ s/\s+/ /gr =~ s/ $//r); }
sub as_superuser { return as(undef, @_); }
# in one transaction of a login that acts as a user
sub acting { my ($user, $id, $sql) = @_; return as($user, "BEGIN; SELECT FROM apitoken.act_as('$id'); $sql; COMMIT;"); }

# run_step NAME: run the blocks of SQL of a step.  Blocks in a row of one login run in
# one session, because they share psql's variables.
sub run_step
{
	my ($name) = @_;
	my @step = grep { $_->{step} =~ /$name/ && $_->{language} eq 'sql' } @blocks or die "no step $name";
	my @sessions;

	foreach my $block (@step)
	{
		my $last = $sessions[-1];
		my $script = "\\set ON_ERROR_STOP " . ($block->{error} ? 'off' : 'on') . "\n$block->{text}";
		if ($last && $last->{who} eq $block->{who}) { $last->{sql} .= $script; $last->{error} ||= $block->{error}; }
		else { push @sessions, { who => $block->{who}, sql => $script, error => $block->{error} }; }
	}
	foreach my $session (@sessions)
	{
		my ($out, $err) = psql_as($login{ $session->{who} }, $session->{sql});
		my $what = "$step[0]{step}: " . lc $session->{who};
		if ($session->{error}) { like($err, qr/ERROR: /, "$what, with the error that is shown"); }
		else { is($err, '', $what); }
	}
	return;
}
# the block of a step that has a text
sub block { my ($name, $pattern) = @_; my ($block) = grep { $_->{step} =~ /$name/ && $_->{text} =~ /$pattern/ } @blocks; return $block->{text}; }

# ---- up to the policies

run_step(qr/^The example/);
run_step(qr/^1\./);
run_step(qr/^2\./);
run_step(qr/^3\./);
my $drift = block(qr/^3\./, qr/'membership'/);
is(as_superuser($drift), '', 'the two sides agree');
is(as_superuser('SELECT count(*) FROM apitoken.organizations UNION ALL SELECT count(*) FROM apitoken.users UNION ALL SELECT count(*) FROM apitoken.memberships'), '2 3 3', 'with all rows');

# what runs a trigger
sub versions { return as_superuser("SELECT xmin FROM apitoken.users WHERE id = '$alice' UNION ALL SELECT xmin FROM apitoken.organizations WHERE id = '1' UNION ALL SELECT xmin FROM apitoken.memberships WHERE user_id = '$alice'"); }
my $before = versions();
is(as('saas', 'UPDATE users SET last_seen_at = now(); UPDATE teams SET seats = seats + 1'), '', 'an update of other columns');
is(versions(), $before, 'writes nothing to the directory');
is(as('saas', "UPDATE users SET name = 'Alice A.' WHERE id = '$alice'; UPDATE teams SET name = 'Acme Inc.' WHERE id = 1; UPDATE team_members SET role = 'ADMIN' WHERE user_id = '$alice'"), '', 'of the columns that matter');
is(as_superuser("SELECT u.name, o.name, m.role FROM apitoken.users u, apitoken.organizations o, apitoken.memberships m WHERE u.id = '$alice' AND o.id = '1' AND m.user_id = u.id"), 'Alice A.|Acme Inc.|ADMIN', 'is copied');
is(as('saas', "UPDATE team_members SET role = 'OWNER' WHERE user_id = '$alice'; UPDATE users SET name = 'Alice' WHERE id = '$alice'"), '', 'back');
is(as_superuser($drift), '', 'they agree');
is(as('saas', "INSERT INTO teams (name) VALUES ('Initech'); UPDATE teams SET id = DEFAULT WHERE name = 'Initech'; INSERT INTO users (id, email) VALUES (gen_random_uuid(), 'd\@example.com');
	INSERT INTO team_members SELECT t.id, u.id, 'MEMBER' FROM teams t, users u WHERE t.name = 'Initech' AND u.email = 'd\@example.com'; UPDATE users SET id = gen_random_uuid() WHERE email = 'x';
	DELETE FROM users WHERE email = 'd\@example.com'; DELETE FROM teams WHERE name = 'Initech'") . as_superuser($drift), '', 'rows that come, change their key and go');
is(as('saas', 'TRUNCATE teams, team_members, documents, api_keys') . as_superuser('SELECT count(*) FROM apitoken.organizations; SELECT count(*) FROM apitoken.memberships'), '0 0', 'TRUNCATE of the teams');
is(as_superuser('SET client_min_messages = warning; BEGIN; TRUNCATE users CASCADE; SELECT count(*) FROM apitoken.users; ROLLBACK'), '0', 'of the users');
is(as_superuser($drift), '', 'they agree after it');
is(as('saas', "INSERT INTO teams OVERRIDING SYSTEM VALUE VALUES (1, 'Acme'), (2, 'Globex'); INSERT INTO team_members VALUES (1, '$alice', 'OWNER'), (1, '$bob', 'MEMBER'), (2, '$carol', 'OWNER');
	INSERT INTO documents (id, team_id, title) OVERRIDING SYSTEM VALUE VALUES (1, 1, 'Anvils'), (2, 1, 'Rockets'), (3, 2, 'Doomsday devices');
	INSERT INTO api_keys (team_id, created_by, name, hashed_key) VALUES (1, '$bob', 'Deploy', encode(sha256('sk_live_example'), 'hex'))"), '', 'all of it again');
is(as_superuser($drift), '', 'they agree again');

# what passes the triggers by
is(as_superuser("BEGIN; SET LOCAL session_replication_role = replica;
	INSERT INTO teams (name) VALUES ('Missing'); DELETE FROM teams WHERE id = 2; UPDATE teams SET name = 'Other' WHERE id = 1;
	INSERT INTO users (id, email) VALUES ('00000000-0000-4000-8000-00000000000d', 'm'); DELETE FROM users WHERE id = '$carol'; UPDATE users SET deleted_at = now() WHERE id = '$bob';
	INSERT INTO team_members VALUES (1, '$carol', 'ADMIN'); DELETE FROM team_members WHERE team_id = 2; UPDATE team_members SET role = 'ADMIN' WHERE user_id = '$bob';
	SELECT string_agg(of || ' ' || drift, ', ' ORDER BY of, drift) FROM (" . $drift =~ s/;\s*$//r . ') d; ROLLBACK'),
	join(', ', map { my $of = $_; map { "$of $_" } 'different', 'left over', 'missing' } qw(membership organization user)), 'the query finds each kind of drift');

# ---- roles

run_step(qr/^4\./);
my $add = 'INSERT INTO apitoken.roles';
like((psql_as('saas', "UPDATE team_members SET role = 'SUPPORT' WHERE user_id = '$bob'"))[1], qr/token role "SUPPORT" does not exist\nHINT: .*$add .*'SUPPORT'/, 'a member with a role that is no token role');
like((psql_as(undef, "SELECT apitoken.create_token('x', organization_id => 1, role => 'SUPPORT')"))[1], qr/token role "SUPPORT" does not exist\nHINT: .*$add .*'SUPPORT'/, 'a token with it');
is(as('saas', "SELECT role FROM team_members WHERE user_id = '$bob'"), 'MEMBER', 'nothing has changed');
is(as_superuser("INSERT INTO apitoken.roles (name, permissions) VALUES ('SUPPORT', '{document:read}')") . as('saas', "UPDATE team_members SET role = 'BILLING' WHERE user_id = '$bob'; UPDATE team_members SET role = 'SUPPORT' WHERE user_id = '$bob'"),
	'', 'in the right order it works');
as('saas', "UPDATE team_members SET role = 'MEMBER' WHERE user_id = '$bob'");

# ---- the owner, and the two ways out

run_step(qr/^5\./);
as_superuser("SELECT apitoken.allow('saas', 'act')");
is(acting('saas', $bob, 'SELECT count(*) FROM documents'), '3', 'the owner sees the documents of all teams, for each acting user');
run_step(qr/^A second login/);
is(acting('saas_app', $bob, 'SELECT title FROM documents ORDER BY id'), 'Anvils Rockets', 'a second login: Bob');
is(acting('saas_app', $carol, 'SELECT title FROM documents ORDER BY id'), 'Doomsday devices', 'Carol');
is(as('saas_app', 'SELECT count(*) FROM documents'), '0', 'nobody');
is(acting('saas_app', $bob, "INSERT INTO documents (team_id, title) VALUES (2, 'x')"), 'ERROR: 42501', 'not for another team');
is(acting('saas_app', $bob, "INSERT INTO documents (team_id, title) VALUES (1, 'y'); UPDATE documents SET team_id = 2 WHERE title = 'y'"), 'ERROR: 42501', 'nor moved there');
foreach ('ALTER TABLE documents DISABLE ROW LEVEL SECURITY', 'DROP POLICY documents_read ON documents', 'SET ROLE saas', 'SET SESSION AUTHORIZATION saas', 'ALTER TABLE users DISABLE TRIGGER sync',
	"SELECT apitoken.allow('saas_app', 'directory')", 'CREATE TRIGGER t AFTER INSERT ON documents FOR EACH ROW EXECUTE FUNCTION sync_team()',
	'CREATE TEMP TABLE mine (id bigint, name text); CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION sync_team()', "INSERT INTO apitoken.memberships VALUES ('2', '$bob', 'OWNER')")
{
	is(as('saas_app', "BEGIN; $_; ROLLBACK"), 'ERROR: 42501', "it may not: $_");
}
is(as('saas', 'CREATE TABLE later (id int)') . as('saas_app', 'SELECT count(*) FROM later'), '0', 'a table of a later migration is granted');
as('saas', 'DROP TABLE later');

# FORCE: run the first block, look, then the second one
{
	my @force = grep { $_->{step} =~ /^FORCE/ } @blocks;
	is((psql_as('saas', $force[0]{text}))[1], '', 'FORCE ROW LEVEL SECURITY');
	is(as('saas', 'SELECT count(*) FROM documents'), '0', 'FORCE: nobody');
	is(acting('saas', $bob, 'SELECT title FROM documents ORDER BY id'), 'Anvils Rockets', 'FORCE: Bob');
	is(acting('saas', $bob, "INSERT INTO documents (team_id, title) VALUES (2, 'x')"), 'ERROR: 42501', 'FORCE: not for another team');
	as_superuser("INSERT INTO teams OVERRIDING SYSTEM VALUE VALUES (77, 'Hooli'); INSERT INTO documents (team_id, title) VALUES (77, 'Box')");
	is(as('saas', 'DELETE FROM teams WHERE id = 77') . as_superuser('SELECT count(*) FROM documents WHERE team_id = 77'), '0', 'FORCE: a foreign key deletes rows that the owner does not see');
	command_fails_like([ 'pg_dump', '-h', $node->host, '-p', $node->port, '-U', 'saas', '-N', 'apitoken', '-N', 'apitoken_internal', 'shop' ], qr/row-level security/, 'FORCE: the owner cannot dump');
	is((psql_as('saas', $force[1]{text}))[1], '', 'and back');
}
as_superuser("SELECT apitoken.disallow('saas', 'act')");

# ---- the application

run_step(qr/^6\./);
is(as_superuser("SELECT actor, client_address FROM apitoken.events WHERE action = 'create'"), "$alice|192.0.2.7", 'the event has the address that the application passed');
my $dbh = DBI->connect("dbi:Pg:dbname=shop;host=$pooler->{host};port=$pooler->{port}", 'saas_app', '', { AutoCommit => 1, RaiseError => 1, PrintError => 0, pg_switch_prepared => 0 });
foreach ([ 'smallint', 'PG_INT2', 1 ], [ 'integer', 'PG_INT4', 1 ], [ 'bigint', 'PG_INT8', 1 ], [ 'text', 'PG_TEXT', '1' ], [ 'varchar', 'PG_VARCHAR', '1' ], [ 'no type', 'PG_UNKNOWN', '1' ])
{
	my ($type, $number, $id) = @$_;
	my %number = (PG_INT2 => PG_INT2, PG_INT4 => PG_INT4, PG_INT8 => PG_INT8, PG_TEXT => PG_TEXT, PG_VARCHAR => PG_VARCHAR, PG_UNKNOWN => PG_UNKNOWN);

	$dbh->begin_work;
	my $made = eval {
		my $act = $dbh->prepare('SELECT apitoken.act_as($1)');
		$act->bind_param(1, $alice, { pg_type => $number =~ /INT/ ? PG_UUID : $number{$number} });
		$act->execute;
		my $create = $dbh->prepare('SELECT masked FROM apitoken.create_token($1, organization_id => $2, role => $3)');
		$create->bind_param(1, "by $type");
		$create->bind_param(2, $id, { pg_type => $number{$number} });
		$create->bind_param(3, 'MEMBER');
		$create->execute;
		$create->fetch->[0];
	} // $@;
	$dbh->rollback;
	like($made, qr/^apt_org_/, "a driver that sends ids as $type");
}
$dbh->disconnect;

# ---- the old keys

run_step(qr/^7\./);
is(as_superuser("SELECT to_regclass('public.api_keys')"), '', 'in the end the old keys are gone');

# ---- a user leaves, a team is deleted

my %token = create_each($node, { bobs => "user_id => '$bob'", acme => 'organization_id => 1', globex => 'organization_id => 2', carols => "user_id => '$carol'" }, database => 'shop');
sub verdicts { my ($database) = @_; return join(' ', map { "$_:" . as_superuser("SELECT verdict FROM apitoken.verify('$token{$_}')", $database) } sort keys %token); }
my ($soft, $hard) = map { $_->{text} } grep { $_->{step} =~ /^8\./ && $_->{text} =~ /bob\@/ } @blocks;
is(verdicts('shop'), 'acme:valid bobs:valid carols:valid globex:valid', 'before');
is((psql_as('saas_app', $soft))[1], '', 'a soft deletion');
is(as_superuser("SELECT verdict FROM apitoken.verify('$token{bobs}')") . ' ' . acting('saas_app', $bob, 'SELECT count(*) FROM documents'), 'suspended 0', 'suspends the user');
is(as('saas_app', "UPDATE users SET deleted_at = NULL WHERE id = '$bob'") . as_superuser("SELECT verdict FROM apitoken.verify('$token{bobs}')"), 'valid', 'and can be taken back');
run_step(qr/^8\./);
is(verdicts('shop'), 'acme:valid bobs:revoked carols:valid globex:revoked', 'tokens of the user and of the team are revoked');
is(acting('saas_app', $bob, 'SELECT 1'), 'ERROR: 28000 ERROR: 25P02', 'nobody can act as the user');
is(as_superuser("SELECT string_agg(label || ' ' || revoke_reason, ', ' ORDER BY label COLLATE \"C\") FROM apitoken.tokens WHERE status = 'revoked'"),
	'Deploy offboarding, bobs owner_deleted, globex owner_deleted', 'each for its reason');
is(as_superuser($drift), '', 'the two sides agree');

# ---- backups and copies

my $dir = PostgreSQL::Test::Utils::tempdir_short();
my %sh = map { ($_->{who} => $_->{text}) } grep { $_->{step} =~ /^9\./ && $_->{language} eq 'sh' } @blocks;
# The commands as they are printed.
sub sh
{
	my ($script) = @_;
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'bash', '-c', "cd '$dir' && set -o pipefail && $script" ], '>', \$out, '2>', \$err) or $err .= '[failed]';
	return $err;
}
like(sh('pg_dump -U saas -f all.sql shop'), qr/permission denied.*\[failed\]/s, 'the owner cannot dump everything');
is(sh($sh{Owner}), '', 'but the application');
my $dump = slurp_file("$dir/shop.sql");
like($dump, qr/CREATE EXTENSION IF NOT EXISTS apitoken/, 'it names the extension');
like($dump, qr/CREATE POLICY documents_read/, 'has the policies');
like($dump, qr/Anvils/, 'and the rows');
unlike($dump, qr/COPY apitoken|INSERT INTO apitoken[^(]*VALUES \('/, 'and none of the extension');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
is(sh('psql -X -q -v ON_ERROR_STOP=1 -d restored -f shop.sql >/dev/null'), '', 'a superuser restores it');
is(as_superuser("SELECT (SELECT count(*) FROM apitoken.tokens), (SELECT count(*) FROM apitoken.memberships), (SELECT count(*) FROM team_members), has_function_privilege('saas_app', 'apitoken.act_as(apitoken.id)', 'EXECUTE')", 'restored'),
	'0|0|1|t', 'without tokens and directory, but with the capabilities');
my ($members) = block(qr/^3\./, qr/CREATE ROLE/) =~ /^(INSERT INTO apitoken\.organizations.*?)^COMMIT/ms;
is(as_superuser("INSERT INTO apitoken.roles (name, permissions) VALUES ('OWNER', '{*}');\n$members$drift", 'restored'), '', 'which are copied again');

$node->safe_psql('postgres', 'CREATE DATABASE staging');
is(sh($sh{Superuser}), '', 'a copy for staging');
is(verdicts('staging'), 'acme:unknown bobs:unknown carols:unknown globex:unknown', 'no token verifies there');
is(verdicts('shop'), 'acme:valid bobs:revoked carols:valid globex:revoked', 'they do where they are from');
is(as_superuser('SELECT (SELECT count(*) FROM apitoken_internal.token_records), (SELECT count(*) FROM apitoken.token_usage), (SELECT count(*) FROM apitoken.events)', 'staging'), '0|0|0', 'no digest is there');
is(as_superuser($drift, 'staging') . as_superuser('SELECT count(*) FROM documents', 'staging'), as_superuser('SELECT count(*) FROM documents'), 'but all the rest');
is(as_superuser("SET SESSION AUTHORIZATION saas_app; BEGIN; SELECT FROM apitoken.act_as('$alice'); SELECT count(masked) FROM apitoken.create_token('staging', organization_id => 1, role => 'MEMBER'); COMMIT", 'staging'), '1', 'where new tokens can be made');

$node->safe_psql('postgres', 'CREATE DATABASE copy');
is(sh('pg_dump shop | psql -X -q -v ON_ERROR_STOP=1 -d copy >/dev/null'), '', 'a copy of everything');
is(verdicts('copy'), verdicts('shop'), 'has live tokens');
is((psql_as(undef, block(qr/^9\./, qr/revoke_token/), 'copy'))[1], '', 'until they are revoked there');
is(verdicts('copy'), join(' ', map { "$_:revoked" } sort keys %token), 'all of them');
is(verdicts('shop'), 'acme:valid bobs:revoked carols:valid globex:revoked', 'and only there');

no_crash($node);
stop_pooler($pooler);
$node->stop;
done_testing();
