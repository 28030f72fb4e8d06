# How the policies of docs/policies.md are executed: the identity is looked up once
# per query and not once per row, indexes on the owner's column are used, and a
# parallel plan gives the same rows.  Also, the document must show
# examples/policies.sql, and the table that sql/policies.sql tests.
use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

# ---- the document ----

my $document = slurp_file('docs/policies.md');
my $example = slurp_file('examples/policies.sql');
(my $told = join("\n", $document =~ /^```sql\n(.*?)^```$/msg)) =~ s/\s+/ /g;
my @statements = map { s/\s+/ /gr } grep { /\S/ } split /;\n\s*/, $example =~ s/^--.*\n//mgr;
cmp_ok(scalar(@statements), '>', 10, 'examples/policies.sql has statements');
is(join("\n", grep { index($told, "$_;") < 0 } @statements), '', 'docs/policies.md shows each');

# The other way round: the file has each policy and table of the document, except
# for the last example.
(my $file = $example) =~ s/\s+/ /g;
my @shown = grep { /^(CREATE (POLICY|TABLE|INDEX)|ALTER TABLE)/ && !/\binvoice/ } split /(?<=;) /, $told =~ s/--.*?(?=(CREATE|ALTER) )//gr;
cmp_ok(scalar(@shown), '>', 10, 'docs/policies.md has statements');
is(join("\n", grep { index($file, $_) < 0 } @shown), '', 'and no other policies');

my ($tried) = slurp_file('expected/policies.out');
my @table = $document =~ /^(\|(?: [^|]+ \|){9})$/mg;
shift @table;    # its head
cmp_ok(scalar(@table), '>=', 20, 'docs/policies.md has a table');
is(join("\n", grep { index($tried, "\n$_\n") < 0 } @table), '', 'each of its lines was tried');
my @others = grep { my $line = $_; !grep { $line eq $_ } @table } $tried =~ /^(\|(?: [^|]+ \|){9})$/mg;
is(join("\n", grep { !/^\| (the same|by PostgREST|claim|Alice, said)/ } @others), '', 'and it has each line that was tried');

# ---- many rows ----

my $node = start_node('plans', preload => 'session', conf => q{
	track_functions = 'all'
	jit = off
	max_parallel_workers = 4
	max_worker_processes = 12
	autovacuum = off
});
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id) SELECT 'org' || n FROM generate_series(1, 1000) n;
	INSERT INTO apitoken.users (id, groups) VALUES ('user1', '{staff}');
	INSERT INTO apitoken.memberships VALUES ('org1', 'user1', 'admin'), ('org2', 'user1', 'developer'), ('org3', 'user1', 'admin');
	CREATE ROLE app LOGIN;
	SELECT apitoken.allow('app', 'act', 'use')});
$node->safe_psql('postgres', $example);
$node->safe_psql('postgres', q{
	GRANT SELECT, INSERT, UPDATE, DELETE ON article, draft TO app;
	INSERT INTO article (organization_id, groups, title)
		SELECT 'org' || 1 + n % 1000, CASE n / 1000 % 3 WHEN 0 THEN '{staff}' WHEN 1 THEN '{board}' ELSE '{}' END::text[], 'title ' || n
		FROM generate_series(1, 100000) n;
	INSERT INTO draft (user_id, submitted_to, title)
		SELECT 'user' || 1 + n % 1000, CASE WHEN n / 1000 % 3 = 0 THEN 'org' || 1 + n % 1000 END, 'title ' || n FROM generate_series(1, 100000) n;
	-- the control: policies as nobody should write them
	CREATE TABLE careless (LIKE article INCLUDING ALL);
	ALTER TABLE careless ENABLE ROW LEVEL SECURITY;
	CREATE POLICY careless_read ON careless FOR SELECT USING (apitoken.can('article:read', organization_id));
	GRANT SELECT ON careless TO app;
	INSERT INTO careless OVERRIDING SYSTEM VALUE SELECT * FROM article WHERE id <= 1000;
	VACUUM ANALYZE article; VACUUM ANALYZE draft; VACUUM ANALYZE careless});
my $token = create($node, 't', q{organization_id => 'org1'});
my $personal = create($node, 't', q{user_id => 'user1', access => 'read_only'});

my %caller = (
	user => "SELECT FROM apitoken.act_as('user1')",
	personal => "SELECT FROM apitoken.authenticate('$personal')",
	organization => "SELECT FROM apitoken.authenticate('$token')");

# as_caller CALLER, SETTINGS, SQL: its output, as that caller, in a transaction that is taken back
sub as_caller
{
	my ($caller, $settings, $sql) = @_;
	return $node->safe_psql('postgres', "BEGIN; $settings; $caller{$caller}; $sql; ROLLBACK", extra_params => [ '-U', 'app' ]);
}

# calls CALLER, SQL, SETTINGS: how often each function that asks was called by SQL
sub calls
{
	my ($caller, $sql, $settings) = @_;
	my $counted = as_caller($caller, $settings // '', qq{
		DO \$\$ BEGIN EXECUTE \$sql\$ $sql \$sql\$; END \$\$;
		SELECT string_agg(funcname || ' ' || calls, ', ' ORDER BY funcname) FROM pg_stat_xact_user_functions
		WHERE schemaname IN ('apitoken', 'apitoken_internal') AND funcname NOT IN ('act_as', 'authenticate')});
	return $counted;
}

# every node of a plan
sub nodes
{
	my ($plan) = @_;
	return ($plan, map { nodes($_) } @{ $plan->{Plans} // [] });
}

# plan_of CALLER, SQL, SETTINGS: the nodes of how it was carried out
sub plan_of
{
	my ($caller, $sql, $settings) = @_;
	my $json = as_caller($caller, $settings // '', "EXPLAIN (ANALYZE, VERBOSE, TIMING OFF, FORMAT JSON) $sql");
	return nodes(decode_json($json)->[0]{Plan});
}

# ---- once per query ----

# the control: calls per row are counted
is(calls('user', 'SELECT count(*) FROM careless'), 'can 1000', 'the control: a policy that asks for each row');

my %asked = (
	'SELECT count(*) FROM article' => 'current_groups 1, organizations_allowed 1',
	'SELECT count(*) FROM draft' => 'can 1, current_organization_id 1, current_user_id 1',
	q{SELECT count(*) FROM article WHERE title LIKE 'title 1%' OR id % 2 = 0} => 'current_groups 1, organizations_allowed 1',
	q{SELECT * FROM article a JOIN LATERAL (SELECT count(*) FROM draft d WHERE d.submitted_to = a.organization_id) d ON true} =>
	  'can 1, current_groups 1, current_organization_id 1, current_user_id 1, organizations_allowed 1');
foreach my $sql (sort keys %asked)
{
	is(calls($_, $sql), $asked{$sql}, "asked once, by $_: $sql") foreach sort keys %caller;
	is(calls('user', $sql, 'SET LOCAL plan_cache_mode = force_generic_plan'), $asked{$sql}, "asked once, generic: $sql");
	is(calls('user', $sql, 'SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_indexonlyscan = off'),
		$asked{$sql}, "asked once, without an index: $sql");
}

# Writing: each policy asks once, regardless of the number of rows.
is(calls('user', q{INSERT INTO article (organization_id, groups, title) SELECT 'org1', '{staff}', 'x' || n FROM generate_series(1, 1000) n}),
	'current_groups 1, organizations_allowed 1', 'INSERT of 1000 rows');
foreach my $sql (q{UPDATE article SET title = title || '!'}, 'DELETE FROM article WHERE id > 0', q{UPDATE draft SET title = 'x' WHERE id > 0})
{
	my $calls = calls('user', $sql);
	my @more = grep { $_ > 6 } $calls =~ / (\d+)/g;

	ok($calls ne '' && !@more, "$sql: $calls");
}

# ---- the plan ----

foreach my $case (
	[ 'user', 'SELECT * FROM article', 'article_organization_id_idx' ],
	[ 'organization', 'SELECT * FROM article', 'article_organization_id_idx' ],
	[ 'personal', 'SELECT count(*) FROM article', 'article_organization_id_idx' ],
	[ 'user', 'SELECT * FROM draft', 'draft_user_id_idx' ],
	[ 'organization', 'SELECT * FROM draft', 'draft_submitted_to_idx' ],
	[ 'user', q{UPDATE article SET title = 'x'}, 'article_organization_id_idx' ],
	[ 'user', 'DELETE FROM draft', 'draft_user_id_idx' ],
	[ 'user', q{SELECT * FROM article WHERE title LIKE '%1%' ORDER BY title LIMIT 10}, 'article_organization_id_idx' ])
{
	my ($caller, $sql, $index) = @$case;

	foreach my $settings ('', 'SET LOCAL plan_cache_mode = force_generic_plan')
	{
		my @nodes = plan_of($caller, $sql, $settings);
		my @initplans = grep { ($_->{'Parent Relationship'} // '') eq 'InitPlan' } @nodes;
		my @scans = grep { ($_->{'Index Name'} // '') eq $index && ($_->{'Index Cond'} // '') =~ /\$\d|InitPlan/ } @nodes;
		my $rows = 0;

		$rows += $_->{'Actual Rows'} * $_->{'Actual Loops'} foreach @scans;
		ok(scalar(@initplans) && !(grep { $_->{'Actual Loops'} > 1 } @initplans), "$caller, $sql: who is acting is asked once");
		is(join(', ', map { "$_->{'Node Type'} on $_->{'Relation Name'}" } grep { $_->{'Node Type'} eq 'Seq Scan' } @nodes), '',
			"$caller, $sql: reads no whole table");
		ok(@scans && $rows < 5000, "$caller, $sql: uses $index, for $rows entries");
		is(join(', ', grep { defined && /apitoken/ } map { $_->{'Filter'} } @nodes), '', "$caller, $sql: no row is asked about");
	}
}

# ---- lists of tokens ----

# When members look at the newest tokens of their organization, only those are
# read.  Nothing is read of an organization that is not theirs.
$node->safe_psql('postgres', q{
	INSERT INTO apitoken.tokens (organization_id, label) SELECT 'org' || 1 + n % 1000, 'listed ' || n FROM generate_series(1, 20000) n;
	INSERT INTO apitoken.tokens (organization_id, label) SELECT o, 'more ' || n FROM unnest('{org1,org2,org9}'::text[]) o, generate_series(1, 500) n;
	SELECT apitoken.allow('app', 'manage');
	VACUUM ANALYZE apitoken_internal.token_records; VACUUM ANALYZE apitoken.token_usage});
my $newest = 'ORDER BY created_at DESC, id DESC LIMIT 50';
my $index = 'token_records_organization_id_idx';

foreach my $case (
	[ 'its own organization', "SELECT * FROM apitoken.tokens WHERE organization_id = 'org1' $newest", 50 ],
	[ 'by list_tokens', q{SELECT * FROM apitoken.list_tokens(organization_id => 'org1')}, 50 ],
	[ 'where nothing may be seen', "SELECT * FROM apitoken.tokens WHERE organization_id = 'org2' $newest", 0 ],
	[ 'of strangers', "SELECT * FROM apitoken.tokens WHERE organization_id = 'org9' $newest", 0 ])
{
	my ($what, $sql, $expected) = @$case;

	foreach my $settings ('', 'SET LOCAL plan_cache_mode = force_generic_plan')
	{
		my @nodes = plan_of('user', $sql, $settings);
		my ($scan) = grep { ($_->{'Index Name'} // '') eq $index } @nodes;

		is($scan ? "$scan->{'Node Type'} $scan->{'Actual Rows'}" : 'none', "Index Scan $expected", "$what: reads those only");
		is($scan->{'Rows Removed by Filter'} // 0, 0, "$what: and no others to be left out");
		# 16 and later sort the previous secrets of one token by a node of its own
		ok(!(grep { $_->{'Node Type'} eq 'Sort' && "@{ $_->{'Sort Key'} }" =~ /created_at/ } @nodes), "$what: in order");
	}
}
foreach my $sql ("SELECT * FROM apitoken.tokens $newest", 'SELECT * FROM apitoken.list_tokens()', 'SELECT count(*) FROM apitoken.tokens')
{
	is(join(', ', map { "$_->{'Node Type'} on $_->{'Relation Name'}" } grep { $_->{'Node Type'} eq 'Seq Scan' } plan_of('user', $sql, '')),
		'', "$sql: reads no whole table");
}

# The use of each of these tokens is visible, and of no others, in any order of
# look-ups: the order of a list, a random one, alternating with tokens of others.
$node->safe_psql('postgres', 'UPDATE apitoken.token_usage SET last_used_at = now()');
my $own = $node->safe_psql('postgres', q{SELECT count(*) FROM apitoken.tokens WHERE organization_id IN ('org1', 'org3') OR user_id = 'user1'});
cmp_ok($own, '>', 500, 'there are tokens to see');
foreach my $order ('created_at DESC, id DESC', 'created_at, id', 'label', 'md5(id::text)')
{
	is(as_caller('user', '', "SELECT count(*), count(last_used_at) FROM (SELECT * FROM apitoken.tokens ORDER BY $order OFFSET 0) t"), "$own|$own", "use of each, by $order");
}
my $ids = $node->safe_psql('postgres', 'SELECT array_agg(id ORDER BY created_at DESC, id DESC) FROM apitoken.tokens');
is(as_caller('user', '', 'SELECT count(*) FROM apitoken.token_usage'), $own, 'use of no others');
# the policy's function itself, which only the owner can call by name
$node->safe_psql('postgres', 'GRANT USAGE ON SCHEMA apitoken_internal TO PUBLIC');
is(as_caller('user', '', "SELECT count(*) FROM unnest('$ids'::uuid[]) id WHERE apitoken_internal.manages_token(id, 'token:read')"), $own, 'nor in order with those of others');
is(as_caller('user', '', "SELECT count(*) FROM unnest('$ids'::uuid[]) id (id) WHERE apitoken_internal.manages_token(id.id, 'token:read') <> EXISTS (SELECT FROM apitoken.tokens t WHERE t.id = id.id)"), 0, 'and each is told apart');
is(as_caller('organization', '', 'SELECT count(*) FROM apitoken.token_usage'), 0, 'a token that manages none sees none');

# ---- in parallel ----

my $workers = 'SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0;'
  . 'SET LOCAL min_parallel_index_scan_size = 0; SET LOCAL max_parallel_workers_per_gather = 2; SET LOCAL parallel_leader_participation = off';
my $whole = "$workers; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_indexonlyscan = off";

foreach my $caller (sort keys %caller)
{
	foreach my $relation (qw(article draft))
	{
		my $sql = "SELECT id, title FROM $relation WHERE title LIKE 'title%'";
		my $rows = "SELECT count(*), md5(string_agg(id || title, ',' ORDER BY id)) FROM ($sql) r";
		my $expected = as_caller($caller, 'SET LOCAL max_parallel_workers_per_gather = 0', $rows);

		like($expected, qr/^[1-9]\d+\|/, "$caller sees rows of $relation");
		foreach my $settings ($workers, $whole)
		{
			my $how = $settings eq $whole ? 'whole table' : 'index';
			my @nodes = plan_of($caller, $sql, $settings);
			my @gathers = grep { $_->{'Node Type'} =~ /^Gather/ } @nodes;
			my @parallel = grep { $_->{'Parallel Aware'} && ($_->{'Relation Name'} // '') eq $relation } @nodes;

			is(as_caller($caller, $settings, $rows), $expected, "$caller, $relation, $how: the same rows in parallel");
			# the planner may find nothing to share out among an index's few rows
			next if $how eq 'index' && !@gathers;
			ok(@parallel && @gathers && $gathers[0]{'Workers Launched'} > 0, "$caller, $relation, $how: is a parallel plan");
			ok(!(grep { $_->{'Actual Loops'} > 1 } grep { ($_->{'Parent Relationship'} // '') eq 'InitPlan' } @nodes),
				"$caller, $relation, $how: who is acting is asked once, by the leader");
		}
		like(calls($caller, "SELECT count(*) FROM $relation", $whole), qr/^[a-z_]+ 1(, [a-z_]+ 1)*$/, "$caller, $relation: in parallel asked once");
	}
}

$node->stop;
done_testing();
