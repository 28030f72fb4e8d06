# Every ```sql block of README.md and of docs/*.md runs, in order and unchanged.
#
# The blocks of a file run in one psql session, as superuser, in a fresh
# database, the one that the file creates by createdb or "app", without and with the
# library preloaded.
# A ```text block that follows a ```sql block, with only blank lines between them, is
# exactly what psql printed for it: first the results, then errors.  A block without
# such a text may print results, but no errors and no warnings.  An error is expected
# only where the text shows a line "ERROR:".
#
# The ```python block of a file runs after them, with psycopg.  ```sh blocks are
# only parsed here, because they act on the machine.  All links lead somewhere.
use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @files = ('README.md', glob('docs/*.md'));

# blocks: [line number, sql, expected text or undef]
sub blocks
{
	my ($file, $language) = @_;
	$language //= 'sql';
	my (@blocks, $fence, $content, $start, $last);
	my $number = 0;

	foreach my $line (split /\n/, slurp_file($file))
	{
		$number++;
		if (!defined $fence)
		{
			if ($line =~ /^```(\w*)$/)
			{
				($fence, $content, $start) = ($1, '', $number);
			}
			elsif ($line =~ /\S/)
			{
				$last = undef;
			}
			next;
		}
		if ($line ne '```')
		{
			$content .= "$line\n";
			next;
		}
		if ($fence eq $language)
		{
			$last = [ $start, $content, undef ];
			push @blocks, $last;
		}
		else
		{
			$last->[2] = $content if $fence eq 'text' && defined $last;
			$last = undef;
		}
		$fence = undef;
	}
	die "$file: a block is not closed" if defined $fence;
	return @blocks;
}

# psql's output, one part for each block
sub parts
{
	my ($output) = @_;
	my ($before, %parts) = split /^\@\@(\d+)\n/m, $output;
	return ($before, \%parts);
}

# what a person copies: no trailing blanks, no empty lines at either end
sub plain
{
	my ($text) = @_;
	$text =~ s/[ \t]+$//mg;
	$text =~ s/\A\n+|\n+\z//g;
	return $text;
}

my $node = start_node('readme', conf => "timezone = 'UTC'\nlc_messages = 'C'");

# What else must be true when the blocks of a file have run.
my %afterwards = (
	'docs/operations.md' => sub {
		is($node->safe_psql('app', 'SHOW session_preload_libraries'), 'apitoken', 'the library is preloaded from now on');
	},
	'docs/organizations.md' => \&try_triggers);

# the triggers that keep the directory up to date, and the query that finds drift
sub try_triggers
{
	# only its owner can attach its functions to a table
	$node->safe_psql('app', 'CREATE ROLE regress_apitoken_stranger LOGIN; GRANT USAGE ON SCHEMA app TO regress_apitoken_stranger');
	foreach my $function (qw(sync_organization sync_user sync_member))
	{
		my ($rc, $out, $err) = $node->psql('app', "SET SESSION AUTHORIZATION regress_apitoken_stranger;
			CREATE TEMP TABLE mine (id text, name text, email text, organization_id text, user_id text, role text);
			CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION app.$function()",
			on_error_stop => 1);
		like($err, qr/permission denied for function app\.$function/, "a stranger cannot use $function");
	}

	# an UPDATE that sets no copied column writes nothing into the directory
	my $versions = q{SELECT string_agg(version, ' ' ORDER BY version) FROM (
		SELECT 'o ' || ctid || xmin FROM apitoken.organizations UNION ALL SELECT 'u ' || ctid || xmin FROM apitoken.users
		UNION ALL SELECT 'm ' || ctid || xmin FROM apitoken.memberships) v (version)};
	my $before = $node->safe_psql('app', $versions);
	$node->safe_psql('app', join('', map {
		"ALTER TABLE app.$_ ADD COLUMN seen_at timestamptz; UPDATE app.$_ SET seen_at = now();" } qw(organizations users members)));
	is($node->safe_psql('app', $versions), $before, 'an UPDATE of another column writes nothing into the directory');

	# drift: app.teams is in the directory, too, and the query does not ask for it
	my ($drift) = map { $_->[1] } grep { $_->[1] =~ /^WITH application/ } blocks('docs/organizations.md');
	my $teams = 'organizations|42||("Night shift")';
	my ($acme, $alice, $bob) = qw(ac3e0000-0000-4000-8000-000000000001 a11ce000-0000-4000-8000-000000000003 b0b00000-0000-4000-8000-000000000004);
	my ($new, $dan) = qw(0e100000-0000-4000-8000-000000000006 da000000-0000-4000-8000-000000000007);
	is($node->safe_psql('app', $drift), $teams, 'no drift');
	$node->safe_psql('app', qq{
		SET session_replication_role = replica;
		INSERT INTO app.organizations VALUES ('$new', 'New');
		UPDATE app.organizations SET name = 'Acme, Inc.' WHERE id = '$acme';
		INSERT INTO app.users VALUES ('$dan', 'Dan', NULL);
		UPDATE app.users SET email = NULL WHERE id = '$alice';
		INSERT INTO app.members VALUES ('$new', '$dan', 'admin');
		UPDATE app.members SET role = 'admin' WHERE user_id = '$bob';
		DELETE FROM app.members WHERE user_id = '$alice'});
	my $found = join("\n",
		"memberships|($new,$dan)|admin|", "memberships|($acme,$alice)||admin", "memberships|($acme,$bob)|admin|developer",
		qq{organizations|$new|(New)|}, $teams, qq{organizations|$acme|("Acme, Inc.")|(Acme)},
		"users|$alice|(Alice,)|(Alice,alice\@example.com)", "users|$dan|(Dan,)|");
	is($node->safe_psql('app', $drift), $found, 'each drift is found');
	$node->safe_psql('app', 'GRANT USAGE ON SCHEMA app TO apitoken_sync; GRANT SELECT ON ALL TABLES IN SCHEMA app TO apitoken_sync');
	is($node->safe_psql('app', "SET ROLE apitoken_sync; $drift"), $found, 'also by a role with the capability directory');
	$node->safe_psql('app', qq{
		UPDATE app.organizations SET name = name; UPDATE app.users SET name = name; UPDATE app.members SET role = role;
		DELETE FROM apitoken.memberships WHERE user_id = '$alice'});
	is($node->safe_psql('app', $drift), $teams, 'and mended');
	$node->safe_psql('app', qq{
		INSERT INTO app.members VALUES ('$acme', '$alice', 'admin');
		UPDATE app.members SET role = 'developer' WHERE user_id = '$bob';
		DELETE FROM app.organizations WHERE id = '$new'});

	# a changed key, a removed member, TRUNCATE
	$node->safe_psql('app', q{
		UPDATE app.users SET id = 'ca201000-0000-4000-8000-000000000099' WHERE name = 'Carol';
		DELETE FROM app.members WHERE role = 'developer'});
	is($node->safe_psql('app', "SELECT id FROM apitoken.users WHERE name = 'Carol'"),
		'ca201000-0000-4000-8000-000000000099', 'a changed key is followed');
	is($node->safe_psql('app', 'SELECT count(*) FROM apitoken.memberships'), '1', 'a removed member is followed');
	$node->safe_psql('app', q{SELECT apitoken.create_token('last', user_id => id::text) FROM app.users WHERE name = 'Bob';
		TRUNCATE app.users CASCADE});
	is($node->safe_psql('app', 'SELECT (SELECT count(*) FROM apitoken.users), (SELECT count(*) FROM apitoken.memberships)'),
		'0|0', 'TRUNCATE is followed');
	is($node->safe_psql('app', "SELECT status, revoke_reason FROM apitoken.tokens WHERE label = 'last'"),
		'revoked|owner_deleted', 'and revokes');
}

# The library's own driver for Debian's python, as in 023_backends.
my $has_psycopg = -x '/usr/bin/python3' && run_log([ '/usr/bin/python3', '-c', 'import psycopg' ]);

# run_python(FILE, CONFIGURATION, TOKEN): run its ```python blocks as the backend,
# with the token that its last \gset has left.
sub run_python
{
	my ($file, $configuration, $token) = @_;
	foreach my $block (blocks($file, 'python'))
	{
		my ($line, $python) = @$block;
	  SKIP: {
			skip 'psycopg is not installed', 1 unless $has_psycopg;
			local $ENV{APITOKEN_CONNECTION} = $node->connstr('app') . ' user=backend';
			local $ENV{APITOKEN_TOKEN} = $token // '';
			my ($stdout, $stderr);
			IPC::Run::run([ '/usr/bin/python3', '-c', "import os, psycopg\n"
				. "connection = psycopg.connect(os.environ['APITOKEN_CONNECTION'], autocommit=True)\n"
				. "token = os.environ['APITOKEN_TOKEN']\n" . $python . "print(rows)\n" ],
				'>', \$stdout, '2>', \$stderr);
			is($stdout . $stderr, "[('Anvils',)]\n", "$configuration, $file, line $line: sees the token's articles");
		}
	}
}

my $database = 'app';

# run_file(FILE, CONFIGURATION): run its blocks, compare, and return their number
sub run_file
{
	my ($file, $configuration) = @_;
	my @blocks = blocks($file);
	return 0 unless @blocks;

	# what an earlier file left: its database, then its roles
	$node->safe_psql('postgres', "DROP DATABASE IF EXISTS $database");
	drop_roles($node);
	($database) = (slurp_file($file) =~ /^The database is one of its own: `createdb (\w+)`/m, 'app');
	$node->safe_psql('postgres', "CREATE DATABASE $database");

	my $script = '';
	foreach my $i (0 .. $#blocks)
	{
		my ($line, $sql, $expected) = @{ $blocks[$i] };
		my $error_shown = defined $expected && $expected =~ /^ERROR:/m;
		$script .= "\\set ON_ERROR_STOP " . ($error_shown ? 'off' : 'on') . "\n";
		$script .= "\\echo \@\@$i\n\\warn \@\@$i\n$sql";
	}
	$script .= "\\echo \@\@" . @blocks . "\n\\warn \@\@" . @blocks . "\n\\echo :token\n";

	local $ENV{PGOPTIONS} = '-c client_min_messages=warning';
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	my ($stdout, $stderr);
	my $ran = IPC::Run::run([ 'psql', '-X', '-q', '-P', 'pager=off', '-d', $node->connstr($database) ],
		'<', \$script, '>', \$stdout, '2>', \$stderr);
	my ($nothing, $results) = parts($stdout);
	my (undef, $errors) = parts($stderr);

	foreach my $i (0 .. $#blocks)
	{
		my ($line, $sql, $expected) = @{ $blocks[$i] };
		my $where = "$configuration, $file, line $line";
		if (!defined $results->{$i})
		{
			fail("$where: was not reached");
			next;
		}
		my $error = plain($errors->{$i} // '');
		if (defined $expected)
		{
			my $got = plain($results->{$i});
			$got .= "\n\n" if $got ne '' && $error ne '';
			is($got . $error, plain($expected), "$where: prints what is shown");
		}
		else
		{
			is($error, '', "$where: runs without error or warning");
		}
	}
	ok($ran && exists $results->{ scalar @blocks }, "$configuration, $file: runs to its end");
	my ($token) = ($results->{ scalar @blocks } // '') =~ /^(apt_\S+)$/m;
	run_python($file, $configuration, $token);
	$afterwards{$file}->() if $afterwards{$file};
	return scalar @blocks;
}

my $blocks = 0;
$blocks += run_file($_, 'plain') foreach @files;
cmp_ok($blocks, '>', 70, 'blocks were found');
$node->append_conf('postgresql.conf', "session_preload_libraries = 'apitoken'\n");
$node->restart;
run_file($_, 'session') foreach @files;

# The blocks that act on the machine, and are not run here, are at least shell.
foreach my $file (@files)
{
	foreach my $block (blocks($file, 'sh'))
	{
		my ($line, $script) = @$block;
		my $said = '';
		IPC::Run::run([ 'bash', '-n' ], '<', \$script, '2>', \$said);
		is($said, '', "$file, line $line: is a shell's");
	}
}

# What a reader meets first is short.
cmp_ok(scalar(my @lines = split /\n/, slurp_file('README.md')), '<=', 250, 'README.md is short');

# Links within the project lead somewhere, and README.md leads to each page.  A
# heading's anchor is as GitHub makes it.
{
	my %prose;
	my $prose = sub {
		my ($file) = @_;
		return $prose{$file} //= slurp_file($file) =~ s/^```.*?^```$//gmsr;
	};
	my $anchors = sub {
		my ($file) = @_;
		my (%seen, %anchors);
		foreach my $heading ($prose->($file) =~ /^#+ +(.*?)\s*$/mg)
		{
			my $anchor = lc($heading =~ s/\[([^\]]*)\]\([^)]*\)/$1/gr) =~ s/[^\w\s-]//gr =~ s/ /-/gr;
			$anchors{ $seen{$anchor}++ ? "$anchor-" . ($seen{$anchor} - 1) : $anchor } = 1;
		}
		return \%anchors;
	};
	my %linked;
	foreach my $file (glob('*.md docs/*.md src/*.md test/*.md test/*/*.md examples/*/*.md'))
	{
		my ($directory) = $file =~ m{^(.*/)};
		my @broken;
		foreach my $link ($prose->($file) =~ /\]\(([^)\s]+)\)/g)
		{
			next if $link =~ m{^https?://};
			my ($path, $anchor) = split /#/, $link, 2;
			my $target = $path eq '' ? $file : ($directory // '') . $path;
			while ($target =~ s{[^/]+/\.\./}{}) { }
			$linked{$target} = 1 if $file eq 'README.md';
			push @broken, $link unless defined $anchor ? -f $target && $anchors->($target)->{$anchor} : -e $target;
		}
		is("@broken", '', "$file: links");
	}
	is(join(' ', grep { !$linked{$_} } glob('docs/*.md')), '', 'README.md leads to each page');
}

# Each function and setting that users have stands under its own heading.
{
	my %headings = map { $_ => 1 } slurp_file('docs/reference.md') =~ /^### +(\S+)\s*$/mg;
	$node->safe_psql('app', 'CREATE EXTENSION IF NOT EXISTS apitoken');
	my @missing = grep { !$headings{$_} } split /\n/, $node->safe_psql('app', q{
		LOAD 'apitoken';
		SELECT DISTINCT p.proname FROM pg_proc p
		WHERE p.pronamespace = 'apitoken'::regnamespace AND p.prorettype <> 'trigger'::regtype
			AND obj_description(p.oid, 'pg_proc') !~ '^For '
			AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
		UNION ALL
		SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'apitoken'::regnamespace AND c.relkind IN ('r', 'v')
		UNION ALL
		SELECT t.typname FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid
		WHERE t.typnamespace = 'apitoken'::regnamespace AND c.relkind = 'c'
		UNION ALL
		SELECT name FROM pg_settings WHERE name LIKE 'apitoken.%'
		UNION ALL
		SELECT 'apitoken.token'});
	is("@missing", '', 'docs/reference.md has everything');
}

# The table of privileges must match a new installation exactly.  There, each
# capability is granted to a role of its own.  Each object must be in the table.
{
	my ($table) = slurp_file('docs/reference.md') =~ /^### Privileges\n(.*?)(?=^##|\z)/ms;
	my (%documented, @unclear);
	foreach my $line (grep { /^\|/ } split /\n/, $table // '')
	{
		my ($who, $privileges, $objects, $columns) = $line =~ /^\| (.*?) \| (.*?) \| (.*?) \| ?(.*?) ?\|$/ or next;
		next if $who eq 'who';
		$who =~ s/`//g;
		my ($kind) = $objects =~ /^(schema|type|function|relation)s? `/;
		my @columns = $columns =~ /`(\w+)`/g;
		push @unclear, $line unless defined $kind && ($columns eq '' || @columns);
		foreach my $privilege (split /, /, $privileges)
		{
			foreach my $object ($objects =~ /`(\w+)`/g)
			{
				my @entries = map { join(' ', $who, $privilege, $kind // '?', $object, $_) } (@columns ? @columns : ('*'));
				push @unclear, grep { $documented{$_}++ } @entries;
			}
		}
	}
	is(join("\n", @unclear), '', 'the table of privileges is well formed, and says nothing twice');

	my @capabilities = qw(use manage verify act directory monitor notify usage);
	$node->safe_psql('postgres', 'CREATE DATABASE privileges');
	$node->safe_psql('privileges', 'CREATE EXTENSION apitoken');
	$node->safe_psql('privileges', "CREATE ROLE regress_apitoken_$_; SELECT apitoken.allow('regress_apitoken_$_', '$_')") foreach @capabilities;

	# every object, every column; "*" is all of an object
	my $actual = $node->safe_psql('privileges', q{
		WITH object AS (
			SELECT 'schema' AS kind, nspname::text AS object, '*' AS part, nspowner AS owner, coalesce(nspacl, acldefault('n', nspowner)) AS acl
			FROM pg_namespace WHERE nspname = 'apitoken'
			UNION ALL
			SELECT 'type', typname, '*', typowner, coalesce(typacl, acldefault('T', typowner))
			FROM pg_type t WHERE typnamespace = 'apitoken'::regnamespace
				-- relations' row types and all types' arrays cannot be granted by themselves
				AND typcategory <> 'A' AND NOT EXISTS (SELECT FROM pg_class WHERE oid = typrelid AND relkind <> 'c')
			UNION ALL
			SELECT 'function', proname, '*', proowner, coalesce(proacl, acldefault('f', proowner))
			FROM pg_proc WHERE pronamespace = 'apitoken'::regnamespace
			UNION ALL
			SELECT 'relation', relname, '*', relowner, coalesce(relacl, acldefault('r', relowner))
			FROM pg_class WHERE relnamespace = 'apitoken'::regnamespace AND relkind NOT IN ('c', 'i')
			UNION ALL
			SELECT 'relation', relname, attname, relowner, attacl
			FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
			WHERE relnamespace = 'apitoken'::regnamespace AND relkind NOT IN ('c', 'i') AND attnum > 0 AND NOT attisdropped
		), granted AS (
			SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE replace(grantee::regrole::text, 'regress_apitoken_', '') END AS who,
				privilege_type || CASE WHEN is_grantable THEN '*' ELSE '' END AS privilege, kind, object, part
			FROM object, aclexplode(acl) WHERE grantee <> owner
		)
		SELECT concat_ws(' ', who, privilege, kind, object, part) FROM granted
		UNION ALL
		-- a whole that nobody has anything of; a part that nobody has, alone or with the whole
		SELECT concat_ws(' ', 'nobody', 'anything', kind, object, part) FROM object o
		WHERE NOT EXISTS (SELECT FROM granted g WHERE g.kind = o.kind AND g.object = o.object AND (g.part IN ('*', o.part) OR o.part = '*'))});
	my %actual;
	my @twice = grep { $actual{$_}++ } split /\n/, $actual;
	is("@twice", '', 'no function has two forms');
	is(join("\n", sort grep { !$documented{$_} } keys %actual), '', 'docs/reference.md names every privilege');
	is(join("\n", sort grep { !$actual{$_} } keys %documented), '', 'and every privilege that it names is there');
	cmp_ok(scalar(keys %actual), '>', 80, 'privileges were found');
}

$node->stop;
done_testing();
