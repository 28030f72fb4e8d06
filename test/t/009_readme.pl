# Every ```sql block of README.md and of docs/*.md runs, in order and unchanged.
#
# The blocks of a file run in one psql session, as superuser, in a fresh
# database "app", without and with the library preloaded.  A ```text block that
# follows a ```sql block, with only blank lines between them, is exactly what psql
# printed for it: first the results, then errors.  A block without such a text
# may print results, but no errors and no warnings.  An error is expected only
# where the text shows a line "ERROR:".
use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @files = ('README.md', glob('docs/*.md'));

# blocks: [line number, sql, expected text or undef]
sub blocks
{
	my ($file) = @_;
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
		if ($fence eq 'sql')
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

# run_file(FILE, CONFIGURATION): run its blocks, and compare
sub run_file
{
	my ($file, $configuration) = @_;
	my @blocks = blocks($file);
	return unless @blocks;

	# what an earlier file left: its database, then its roles
	$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS app');
	drop_roles($node);
	$node->safe_psql('postgres', 'CREATE DATABASE app');

	my $script = '';
	foreach my $i (0 .. $#blocks)
	{
		my ($line, $sql, $expected) = @{ $blocks[$i] };
		my $error_shown = defined $expected && $expected =~ /^ERROR:/m;
		$script .= "\\set ON_ERROR_STOP " . ($error_shown ? 'off' : 'on') . "\n";
		$script .= "\\echo \@\@$i\n\\warn \@\@$i\n$sql";
	}
	$script .= "\\echo \@\@" . @blocks . "\n\\warn \@\@" . @blocks . "\n";

	local $ENV{PGOPTIONS} = '-c client_min_messages=warning';
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	my ($stdout, $stderr);
	my $ran = IPC::Run::run([ 'psql', '-X', '-q', '-P', 'pager=off', '-d', $node->connstr('app') ],
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
	cmp_ok(scalar(@blocks), '>', 20, 'blocks were found') if $file eq 'README.md';

	return unless $file eq 'README.md';

	# what a new session of that database has
	is($node->safe_psql('app', 'SHOW session_preload_libraries'), 'apitoken', 'the library is preloaded from now on');

	# the recipe: only its owner can attach its functions to a table
	$node->safe_psql('app', 'CREATE ROLE regress_apitoken_stranger LOGIN; GRANT USAGE ON SCHEMA app TO regress_apitoken_stranger');
	foreach my $function (qw(sync_organization sync_user sync_member))
	{
		my ($rc, $out, $err) = $node->psql('app', "SET SESSION AUTHORIZATION regress_apitoken_stranger;
			CREATE TEMP TABLE mine (id text, name text, email text, organization_id text, user_id text, role text);
			CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION app.$function()",
			on_error_stop => 1);
		like($err, qr/permission denied for function app\.$function/, "a stranger cannot use $function");
	}

	# the recipe: a changed key, a removed member, TRUNCATE
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

run_file($_, 'plain') foreach @files;
$node->append_conf('postgresql.conf', "session_preload_libraries = 'apitoken'\n");
$node->restart;
run_file($_, 'session') foreach @files;

# Links within the project lead somewhere.
foreach my $file (@files)
{
	my $text = slurp_file($file);
	my ($directory) = $file =~ m{^(.*/)};
	my @broken;
	foreach my $link ($text =~ /\]\(([^)\s]+)\)/g)
	{
		next if $link =~ m{^https?://};
		my ($path, $anchor) = split /#/, $link, 2;
		my $target = $path eq '' ? $file : ($directory // '') . $path;
		while ($target =~ s{[^/]+/\.\./}{}) { }
		if (!-f $target)
		{
			push @broken, $link;
			next;
		}
		next unless defined $anchor;
		my %anchors = map { my $a = lc; $a =~ s/[^\w\s-]//g; $a =~ s/ /-/g; $a => 1 } slurp_file($target) =~ /^#+ +(.*?)\s*$/mg;
		push @broken, $link unless $anchors{$anchor};
	}
	is("@broken", '', "$file: links");
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

	my @capabilities = qw(use manage verify act directory monitor);
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
