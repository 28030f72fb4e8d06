# ALTER EXTENSION UPDATE: what it leaves is what a fresh install makes, from each
# version that was released, and from versions that this test makes up.  While the
# library and the extension have different versions, everything fails and says what
# to run.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('upgrade', conf => 'log_statement = none');
my $scripts = $node->config_data('--sharedir') . '/extension';
my $control = "$scripts/apitoken.control";
my $control_file = slurp_file($control);
my @made;

sub write_control { my ($text) = @_; unlink $control; append_to_file($control, $text); return; }
END { unlink @made; write_control($control_file) if -w $scripts && slurp_file($control) ne $control_file; }

plan skip_all => "needs to write scripts into $scripts" unless -w $scripts;

my $version = $node->safe_psql('postgres', q{SELECT default_version FROM pg_available_extensions WHERE name = 'apitoken'});

# What a fresh install runs: one script, or the first one and all steps from there.
my @steps = -e "$scripts/apitoken--$version.sql" ? $version : split /--/, $node->safe_psql('postgres', qq{
	SELECT path FROM pg_extension_update_paths('apitoken') WHERE target = '$version' AND path IS NOT NULL ORDER BY length(path) DESC LIMIT 1});
my $fresh_script = join '', map { slurp_file("$scripts/apitoken--$_.sql") } $steps[0], map { "$steps[$_ - 1]--$steps[$_]" } 1 .. $#steps;

# ----- what must be the same ---------------------------------------------------

# The extension as lines of text without OIDs.
my $everything = q{
	SET search_path = pg_catalog;
	CREATE TEMP TABLE member AS
		SELECT classid, objid FROM pg_depend
		WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'apitoken');
	CREATE TEMP TABLE relation AS SELECT c.* , c.oid::regclass::text AS name FROM pg_class c JOIN member ON classid = 'pg_class'::regclass AND objid = c.oid;
	CREATE FUNCTION pg_temp.privileges(acl aclitem[]) RETURNS text LANGUAGE sql AS $$SELECT coalesce(string_agg(a::text, ' ' ORDER BY a::text), 'default') FROM unnest(acl) a$$;
	SELECT line FROM (
		SELECT 'member ' || i.type || ' ' || i.identity FROM member, pg_identify_object(classid, objid, 0) i
		UNION ALL
		SELECT format('extension %s %s %s', extversion, extrelocatable, extnamespace::regnamespace) FROM pg_extension WHERE extname = 'apitoken'
		UNION ALL
		SELECT format('dumped %s where %s', t.id::regclass, t.condition) FROM pg_extension, unnest(extconfig, extcondition) AS t (id, condition) WHERE extname = 'apitoken'
		UNION ALL
		SELECT format('schema %s %s %s', nspname, nspowner::regrole, pg_temp.privileges(nspacl)) FROM pg_namespace JOIN member ON classid = 'pg_namespace'::regclass AND objid = oid
		UNION ALL
		SELECT format('relation %s %s %s %s rls %s %s %s replica %s privileges %s', name, relkind, relowner::regrole, relpersistence, relrowsecurity, relforcerowsecurity, reloptions, relreplident, pg_temp.privileges(relacl)) FROM relation
		UNION ALL
		SELECT format('view %s %s', name, pg_get_viewdef(oid)) FROM relation WHERE relkind IN ('v', 'm')
		UNION ALL
		SELECT format('column %s.%s %s %s null %s default %s storage %s%s statistics %s collation %s generated %s%s inherited %s dropped %s privileges %s', r.name, attnum, attname, format_type(atttypid, atttypmod), NOT attnotnull,
			pg_get_expr(d.adbin, d.adrelid), attstorage, attcompression, attstattarget, attcollation::regcollation, attgenerated, attidentity, attinhcount, attisdropped, pg_temp.privileges(attacl))
		FROM relation r JOIN pg_attribute a ON attrelid = r.oid AND attnum > 0 LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum
		UNION ALL
		SELECT format('inherits %s %s', inhrelid::regclass, inhparent::regclass) FROM pg_inherits JOIN relation r ON r.oid = inhrelid
		UNION ALL
		SELECT format('constraint %s %s %s %s', r.name, conname, convalidated, pg_get_constraintdef(c.oid)) FROM pg_constraint c JOIN relation r ON r.oid = conrelid
		UNION ALL
		SELECT format('index %s', pg_get_indexdef(indexrelid)) FROM pg_index JOIN relation r ON r.oid = indrelid
		UNION ALL
		SELECT format('trigger %s %s', tgenabled, pg_get_triggerdef(t.oid)) FROM pg_trigger t JOIN relation r ON r.oid = tgrelid WHERE NOT tgisinternal
		UNION ALL
		SELECT format('rule %s %s %s', r.name, ev_enabled, CASE WHEN rulename <> '_RETURN' THEN pg_get_ruledef(u.oid) END) FROM pg_rewrite u JOIN relation r ON r.oid = ev_class
		UNION ALL
		SELECT format('policy %s %s %s %s %s using %s check %s', r.name, polname, polcmd, polpermissive, polroles::regrole[], pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) FROM pg_policy JOIN relation r ON r.oid = polrelid
		UNION ALL
		SELECT format('function %s privileges %s %s', proowner::regrole, pg_temp.privileges(proacl), pg_get_functiondef(p.oid)) FROM pg_proc p JOIN member ON classid = 'pg_proc'::regclass AND objid = p.oid
		UNION ALL
		SELECT format('type %s %s %s privileges %s', t.oid::regtype, typtype, typowner::regrole, pg_temp.privileges(typacl)) FROM pg_type t
		WHERE t.oid IN (SELECT objid FROM member WHERE classid = 'pg_type'::regclass UNION SELECT reltype FROM relation)
		UNION ALL
		SELECT format('comment %s %s: %s', i.type, i.identity, description) FROM member m JOIN pg_description d ON d.classoid = m.classid AND d.objoid = m.objid, pg_identify_object(d.classoid, d.objoid, d.objsubid) i
		UNION ALL
		SELECT format('initial privileges %s %s: %s', i.type, i.identity, pg_temp.privileges(initprivs)) FROM member m JOIN pg_init_privs p ON p.classoid = m.classid AND p.objoid = m.objid, pg_identify_object(p.classoid, p.objoid, p.objsubid) i
		UNION ALL
		SELECT format('row of %s %s', r.name, t.x) FROM relation r, xmltable('/table/row' PASSING query_to_xml(format('SELECT t::text AS x FROM ONLY %s t', r.name), true, false, '') COLUMNS x text) t WHERE r.relkind = 'r'
	) AS all_lines (line) ORDER BY line COLLATE "C"};
sub checked { my ($db) = @_; return answer($node, q{SELECT concat_ws(' ', level || ': ' || message, hint) FROM apitoken.check_setup() WHERE subject = 'version'}, database => $db); }
sub state_of { my ($db) = @_; return $node->safe_psql($db, $everything); }

# The lines that only one of two states has: what was expected with '-', what was found with '+'.
sub differences
{
	my ($expected, $found) = @_;
	my %count;

	$count{$_}-- foreach split /\n/, $expected;
	$count{$_}++ foreach split /\n/, $found;
	return join "\n", map { ($count{$_} < 0 ? '- ' : '+ ') . $_ } grep { $count{$_} != 0 } sort keys %count;
}

# ----- versions that were never released ---------------------------------------

# add NAME, SQL: a script of the extension.  $touch is the last statement of each step: see src/README.md.
sub add { my ($name, $sql) = @_; push @made, "$scripts/apitoken--$name.sql"; unlink $made[-1]; append_to_file($made[-1], $sql); return; }
my $touch = 'ALTER TABLE apitoken_internal.token_records ENABLE ROW LEVEL SECURITY;';

# cut PATTERN: takes the statements that match out of the script; returns them.
my $old = $fresh_script;
my $statements = sub {
	my ($pattern) = @_;
	my @cut = $old =~ /^($pattern.*?;)$/msg;
	die "no statement: $pattern" unless @cut;
	$old =~ s/^\Q$_\E\n//m foreach @cut;
	return join '', map { "$_\n" } @cut;
};

$node->safe_psql('postgres', "CREATE DATABASE fresh");
$node->safe_psql('fresh', 'CREATE EXTENSION apitoken');
my $fresh = state_of('fresh');
like($fresh, qr/^member function apitoken\.verify\(.*^policy apitoken\.users users_read .*^row of apitoken_internal\.built_in_roles .admin/ms, 'what is compared');

# 0.8: without a table and a function; a policy, a function's body and a row
# are different; there are an index and a privilege too many
my $table = $statements->('[A-Z]+ TABLE apitoken_internal\.own_privileges')
  . $statements->('COMMENT ON (?:TABLE|COLUMN) apitoken_internal\.own_privileges')
  . $statements->(q{SELECT pg_catalog\.pg_extension_config_dump\('apitoken_internal\.own_privileges'});
my $function = $statements->('CREATE FUNCTION apitoken\.mask\(') . $statements->('COMMENT ON FUNCTION apitoken\.mask\(');
my ($list) = $fresh_script =~ /^(CREATE FUNCTION apitoken\.list_tokens\(.*?^END;)$/ms or die;
(my $replaced = $list) =~ s/^CREATE/CREATE OR REPLACE/;
$old =~ s/'Everything, tokens included'/'old'/ or die;
$old .= q{
	CREATE INDEX too_many ON apitoken.events (at);
	GRANT SELECT ON apitoken.organizations TO PUBLIC;
	GRANT UPDATE (name) ON apitoken.users TO PUBLIC;
	GRANT EXECUTE ON FUNCTION apitoken.verify TO PUBLIC;
	ALTER POLICY users_read ON apitoken.users USING (true);
	ALTER TABLE apitoken.memberships DISABLE ROW LEVEL SECURITY;
	COMMENT ON TABLE apitoken.users IS 'old';
} . $replaced =~ s/^\tLIMIT .*;$/\tLIMIT 1;/mr;

my %delta = (
	# a trigger function of the library runs in this script, which leads to a version that is not the library's
	'0.8--0.9' => q{
		INSERT INTO apitoken.users (id) VALUES ('seen by a trigger');
		DELETE FROM apitoken.users;
		DELETE FROM apitoken_internal.deleted_users;
		ALTER TABLE apitoken_internal.built_in_roles DISABLE TRIGGER built_in_role_after_update;
		UPDATE apitoken_internal.built_in_roles SET description = 'Everything, tokens included' WHERE name = 'admin';
		ALTER TABLE apitoken_internal.built_in_roles ENABLE ALWAYS TRIGGER built_in_role_after_update;
		DROP INDEX apitoken.too_many;},
	"0.9--$version" => $table . $function . $replaced . q{
		REVOKE ALL ON apitoken_internal.own_privileges FROM PUBLIC;
		GRANT ALL ON apitoken_internal.own_privileges TO CURRENT_USER;
		REVOKE ALL ON FUNCTION apitoken.mask FROM PUBLIC;
		GRANT ALL ON FUNCTION apitoken.mask TO CURRENT_USER;
		REVOKE SELECT ON apitoken.organizations FROM PUBLIC;
		REVOKE UPDATE (name) ON apitoken.users FROM PUBLIC;
		REVOKE EXECUTE ON FUNCTION apitoken.verify FROM PUBLIC;
		ALTER POLICY users_read ON apitoken.users USING (apitoken_internal.sees_user(id));
		ALTER TABLE apitoken.memberships ENABLE ROW LEVEL SECURITY;
		COMMENT ON TABLE apitoken.users IS '';},
);
my ($comment) = $fresh_script =~ /^(COMMENT ON TABLE apitoken\.users IS .*)$/m or die;
$delta{"0.9--$version"} =~ s/^\s*COMMENT ON TABLE apitoken\.users .*;/$comment/m or die;
add('0.8', $old);
add($_, "$delta{$_}\n$touch\n") foreach sort keys %delta;

$node->safe_psql('postgres', 'CREATE DATABASE old; CREATE DATABASE forgot');
$node->safe_psql('old', q{CREATE EXTENSION apitoken VERSION '0.8'});
my $problem = qr/ERROR: 55000: extension "apitoken" has version 0\.8, but its library has version \Q$version\E HINT: Run ALTER EXTENSION apitoken UPDATE\./;

# ----- the library does not fit ------------------------------------------------

# each function in C; a strict function is looked up although null is not passed on
my $calls = $node->safe_psql('old', q{
	SELECT format('SELECT %s(%s) FROM (SELECT 1 %s OFFSET 0) s', p.oid::regproc,
		(SELECT string_agg(CASE WHEN provariadic <> 0 AND o = pronargs THEN 'VARIADIC ' ELSE '' END || 'a' || o, ', ' ORDER BY o) FROM unnest(proargtypes) WITH ORDINALITY AS u (t, o)),
		(SELECT string_agg(', NULL::' || CASE t WHEN '"any"'::regtype THEN 'text' ELSE format_type(t, NULL) END || ' AS a' || o, ' ' ORDER BY o) FROM unnest(proargtypes) WITH ORDINALITY AS u (t, o)))
	FROM pg_proc p WHERE pronamespace IN ('apitoken'::regnamespace, 'apitoken_internal'::regnamespace) AND prolang = (SELECT oid FROM pg_language WHERE lanname = 'c')
		-- by these, check_setup() tells of the library's version
		AND proname NOT IN ('read_setup', 'read_stats')
		AND prorettype <> 'trigger'::regtype AND NOT 'internal'::regtype = ANY (proargtypes) ORDER BY 1});
my @calls = split /\n/, $calls;
cmp_ok(scalar @calls, '>', 30, 'functions in C');
is(join("\n", map { "$_ " . answer($node, $_, database => 'old') } @calls), join("\n", map { "$_ [ERROR: 55000]" } @calls), 'each of them fails');
is(checked('old'), "error: the extension has version 0.8 in this database, but its library has version $version ALTER EXTENSION apitoken UPDATE;", 'check_setup() says so');
is(checked('fresh'), "ok: the library has the version of the extension", 'and nothing in another database');
like(answer($node, q{SELECT apitoken.generate('org')}, database => 'old', verbosity => 'verbose'), $problem, 'and says what to run');
my $request = q{LOAD 'apitoken'; BEGIN; SET LOCAL request.method = 'GET'; };
my $refused = answer($node, $request . q{SELECT apitoken.can('article:read')}, database => 'old', verbosity => 'verbose');
like($refused, qr/^\[ERROR: PGRST: \{.*DETAIL: \{"status": 500/, 'a client of HTTP');
unlike($refused, qr/0\.8|ALTER EXTENSION|\Q$version\E/, 'is not told why');

# triggers, views, policies, settings
$node->safe_psql('old', q{CREATE ROLE regress_apitoken_backend; CREATE ROLE regress_apitoken_reader; GRANT SELECT ON apitoken.tokens, apitoken.events TO regress_apitoken_reader;
	GRANT EXECUTE ON FUNCTION apitoken.authenticate, apitoken.act_as TO regress_apitoken_backend;
	CREATE TABLE public.article (id int, organization_id text); INSERT INTO public.article VALUES (1, 'acme');
	ALTER TABLE public.article ENABLE ROW LEVEL SECURITY; GRANT SELECT ON public.article TO PUBLIC;
	CREATE POLICY p ON public.article USING (apitoken.can('article:read', organization_id))});
foreach my $use (
	[ 'a trigger', q{INSERT INTO apitoken.organizations (id) VALUES ('acme')} ],
	[ 'a view under its policies', q{SET ROLE regress_apitoken_reader; SELECT * FROM apitoken.tokens} ],
	[ 'a table under its policies', q{SET ROLE regress_apitoken_reader; SELECT * FROM apitoken.events} ],
	[ "the application's policy", q{SET ROLE regress_apitoken_backend; SELECT * FROM public.article} ],
	[ 'COPY', q{COPY apitoken.users (id) FROM PROGRAM 'echo u'} ],
	[ 'a token in the setting', q{LOAD 'apitoken'; SET SESSION AUTHORIZATION regress_apitoken_backend; BEGIN; SET LOCAL apitoken.token = 'apt_x'; SELECT 1} ],
	[ 'a user in the setting', q{LOAD 'apitoken'; SET SESSION AUTHORIZATION regress_apitoken_backend; BEGIN; SET LOCAL apitoken.user_id = 'u'; SELECT 1} ],
	[ 'a DO block', q{DO $$BEGIN PERFORM apitoken.current_user_id(); END$$} ],
)
{
	my ($what, $sql) = @$use;
	like(answer($node, $sql, database => 'old'), qr/^\[ERROR: 55000\]$/, "$what fails");
}
is($node->safe_psql('old', 'SELECT count(*) FROM apitoken.users'), '0', 'the owner may look');

# a session that has met the error goes on as soon as another one has updated
my $open = connection($node, database => 'old');
is(ask($open, q{SELECT apitoken.mask('x') IS NULL}), '[ERROR: 42883]', 'a function that the old version does not have');
is(ask($open, q{SELECT apitoken.can('article:read')}), '[ERROR: 55000]', 'an open session fails');

# ----- the update ----------------------------------------------------------------

my $backend = connection($node, database => 'old');
is(ask($backend, q{LOAD 'apitoken'; SELECT 1}), '1', 'a session with the library');
is(ask($backend, 'ALTER EXTENSION apitoken UPDATE'), '', 'ALTER EXTENSION UPDATE, in two steps');
is(ask($_, q{SELECT apitoken.can('article:read'), apitoken.mask('x') IS NULL}), 'f|t', 'the sessions go on') foreach $open, $backend;
$node->safe_psql('old', 'REVOKE ALL ON apitoken.tokens, apitoken.events FROM regress_apitoken_reader; REVOKE ALL ON FUNCTION apitoken.authenticate, apitoken.act_as FROM regress_apitoken_backend; DROP TABLE public.article');
is(differences($fresh, state_of('old')), '', 'the updated extension is the fresh one');
$node->safe_psql('old', q{INSERT INTO apitoken.organizations (id) VALUES ('acme')});
my $token = create($node, 't', q{organization_id => 'acme'}, database => 'old');
is(ask($open, verdict($token)), 'valid', 'and works');

# ----- the library is the older one ----------------------------------------------

add("$version--9.9", $touch);
write_control($control_file =~ s/^default_version = .*/default_version = '9.9'/mr);
is(checked('old'), "warning: version 9.9 is installed on this server, but sessions use version $version ALTER EXTENSION apitoken UPDATE;  -- then restart the server", 'newer files are installed');
# the control file of another extension does not matter
push @made, "$scripts/regress_broken.control";
append_to_file($made[-1], "default_version = '1.0'\nno such thing = 'x'\n");
like(answer($node, 'SELECT count(*) FROM pg_available_extensions', database => 'old'), qr/ERROR/, 'the control file of another extension has a fault');
like(checked('old'), qr/^warning: version 9\.9 is installed/, 'check_setup() does not read it');
unlink $made[-1];
is(ask($open, verdict($token)), 'valid', 'an open session with what it has looked up');
$node->safe_psql('old', q{ALTER EXTENSION apitoken UPDATE TO '9.9'});
is(ask($open, verdict($token)), '[ERROR: 55000]', 'which meets a newer version');
like(answer($node, verdict($token), database => 'old', verbosity => 'verbose'), qr/has version 9\.9, but its library has version \Q$version\E HINT: .*connect again; if it is in shared_preload_libraries, restart the server/, 'the hint');
like(checked('old'), qr/^error: the extension has version 9\.9 in this database, but its library has version \Q$version\E pg_ctl restart/, 'check_setup() says so');
write_control($control_file);
add("9.9--$version", $touch);
$node->safe_psql('old', qq{ALTER EXTENSION apitoken UPDATE TO '$version'});
is(ask($open, verdict($token)), 'valid', 'and goes on');
$_->quit foreach $open, $backend;

# ----- an update that forgets something is found -------------------------------------

my $n = 0;
foreach my $forgotten (
	[ qr/^.*REVOKE SELECT ON apitoken\.organizations .*$/m, qr/^\+ relation apitoken\.organizations .* privileges =r/m ],
	[ qr/^.*REVOKE UPDATE \(name\).*$/m, qr/^\+ column apitoken\.users\.2 name .* privileges =w/m ],
	[ qr/^.*REVOKE EXECUTE.*$/m, qr/^\+ function \S+ privileges =X\S+ .* apitoken\.verify/m ],
	[ qr/^.*REVOKE ALL ON FUNCTION apitoken\.mask.*$/m, qr/^\+ initial privileges function apitoken\.mask/m ],
	[ qr/^.*ALTER POLICY.*$/m, qr/^\+ policy apitoken\.users users_read .* using true/m ],
	[ qr/^.*ALTER TABLE apitoken\.memberships.*$/m, qr/^\+ relation apitoken\.memberships .* rls f/m ],
	[ qr/^SELECT pg_catalog\.pg_extension_config_dump.*$/m, qr/^- dumped apitoken_internal\.own_privileges/m ],
	[ qr/^COMMENT ON FUNCTION apitoken\.mask.*$/m, qr/^- comment function apitoken\.mask/m ],
	[ qr/^CREATE OR REPLACE .*?^END;$/ms, qr/^\+ *LIMIT .*1;/m ],
	[ qr/^.*UPDATE apitoken_internal\.built_in_roles.*$/m, qr/^\+ row of apitoken_internal\.built_in_roles \(admin,old,/m ],
	[ qr/^.*DROP INDEX.*$/m, qr/^\+ index CREATE INDEX too_many/m ],
)
{
	my ($pattern, $difference) = @$forgotten;
	my $with = join "\n", map { $delta{$_} } sort keys %delta;
	(my $without = $with) =~ s/$pattern//;
	isnt($without, $with, "forgotten: $pattern");
	$n++;
	add("0.8--0.8.$n", $without);
	$node->safe_psql('forgot', qq{DROP EXTENSION IF EXISTS apitoken; CREATE EXTENSION apitoken VERSION '0.8'; ALTER EXTENSION apitoken UPDATE TO '0.8.$n'});
	my $found = differences($fresh, state_of('forgot') =~ s/^extension \S+/extension $version/mr);
	like($found, $difference, "and found");
}

# ----- pg_upgrade ----------------------------------------------------------------

$node->safe_psql('postgres', 'DROP DATABASE forgot; DROP DATABASE fresh');
$node->safe_psql('old', q{DROP EXTENSION apitoken; CREATE EXTENSION apitoken VERSION '0.8'});
$node->stop;
my $upgraded = PostgreSQL::Test::Cluster->new('upgraded');
$upgraded->init;
pg_upgrade($node, $upgraded, 'pg_upgrade with an old version of the extension');
$upgraded->start;
is(answer($upgraded, q{SELECT apitoken.can('article:read')}, database => 'old'), '[ERROR: 55000]', 'which fails afterwards');
is(answer($upgraded, q{ALTER EXTENSION apitoken UPDATE; SELECT apitoken.can('article:read')}, database => 'old'), 'f', 'until it is updated');
$upgraded->stop;
no_crash($upgraded);
unlink @made;
$node->start;

# ----- the versions that were released -----------------------------------------

my @released = split /\n/, $node->safe_psql('postgres', qq{
	SELECT source FROM pg_extension_update_paths('apitoken') WHERE target = '$version' AND path IS NOT NULL
		AND source IN (SELECT version FROM pg_available_extension_versions WHERE name = 'apitoken')});
note("released before $version: " . (@released ? "@released" : 'none'));
foreach my $from (@released)
{
	$node->safe_psql('postgres', qq{CREATE DATABASE "$from"});
	$node->safe_psql($from, qq{CREATE EXTENSION apitoken VERSION '$from'});
	my $row = q{SELECT xmin FROM pg_class WHERE oid = 'apitoken_internal.token_records'::regclass};
	my $before = $node->safe_psql($from, $row);
	$node->safe_psql($from, 'ALTER EXTENSION apitoken UPDATE');
	is(differences($fresh, state_of($from)), '', "from $from: the updated extension is the fresh one");
	isnt($node->safe_psql($from, $row), $before, "from $from: open sessions look again");
}

$node->stop;
no_crash($node);
done_testing();
