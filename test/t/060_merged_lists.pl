# Lists of the tokens, events and notifications of several owners in order: the rows
# and their order are those of a sort, for each kind of caller, page and order, and
# a page reads about as many rows as it returns.
use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

my $node = start_node('lists', preload => 'session', conf => "autovacuum = off\njit = off");

# o1 to o99: more owners than the scan keeps index scans open for.  Many tokens have
# the same creation time.
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_app LOGIN;
	SELECT apitoken.allow('regress_apitoken_app', 'manage', 'act');
	GRANT SELECT ON apitoken.notifications TO regress_apitoken_app;
	INSERT INTO apitoken.organizations (id, notify) SELECT 'o' || n, '{create}' FROM generate_series(1, 120) n;
	INSERT INTO apitoken.users (id, email) VALUES ('three', 'three@example.com'), ('one', NULL), ('many', NULL), ('none', NULL), ('reader', NULL);
	INSERT INTO apitoken.roles (name, permissions) VALUES ('blind', '{article:read}');
	INSERT INTO apitoken.memberships
		SELECT 'o' || n, 'many', 'admin' FROM generate_series(1, 99) n
		UNION ALL SELECT 'o' || n, 'three', 'admin' FROM generate_series(1, 3) n
		UNION ALL VALUES ('o1', 'one', 'admin'), ('o2', 'one', 'blind'), ('o5', 'none', 'blind');
	INSERT INTO apitoken.tokens (organization_id, label) SELECT 'o' || 1 + n % 120, 'of all ' || n FROM generate_series(1, 4000) n;
	INSERT INTO apitoken.tokens (organization_id, label) SELECT 'o' || 1 + n % 3, 'of few ' || n FROM generate_series(1, 6000) n;
	INSERT INTO apitoken.tokens (user_id, label) SELECT 'three', 'personal ' || n FROM generate_series(1, 500) n;
	SET session_replication_role = replica;
	UPDATE apitoken_internal.token_records SET created_at = '2026-01-01'::timestamptz + (hashtext(label) % 40) * interval '1 hour';
	RESET session_replication_role;
	DELETE FROM apitoken.organizations WHERE id = 'o77';
	SELECT apitoken.create_token('manager', organization_id => 'o1', role => 'admin');
	VACUUM ANALYZE});
# the user three is the actor of some events of organizations' tokens, which match twice
my @as_three = map { "SELECT apitoken.create_token('made by three $_', organization_id => 'o' || 1 + $_ % 3);" } 1 .. 30;
$node->safe_psql('postgres', "BEGIN; SELECT FROM apitoken.act_as('three'); @as_three COMMIT", extra_params => [ '-U', 'regress_apitoken_app' ]);
my $manager = create($node, 'acting', q{organization_id => 'o1', role => 'admin'});

my %caller = ((map { ($_ => "SELECT FROM apitoken.act_as('$_')") } qw(one three many none)),
	token => "SELECT FROM apitoken.authenticate('$manager')", anonymous => 'SELECT');

sub as_caller
{
	my ($caller, $sql, $settings) = @_;
	return $node->safe_psql('postgres', 'BEGIN; ' . ($settings // '') . "; $caller{$caller}; $sql; ROLLBACK", extra_params => [ '-U', 'regress_apitoken_app' ]);
}

sub nodes { my ($plan) = @_; return ($plan, map { nodes($_) } @{ $plan->{Plans} // [] }); }
sub plan_of
{
	my ($caller, $sql, $settings) = @_;
	return nodes(decode_json(as_caller($caller, "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) $sql", $settings))->[0]{Plan});
}
sub merges { return grep { ($_->{'Custom Plan Provider'} // '') eq 'apitoken merge' } @_; }

# ---- what is read ----

my $before = as_caller('three', 'SELECT id FROM apitoken.list_tokens(page_size => 1000) OFFSET 999');
my $before_at = as_caller('three', "SELECT created_at FROM apitoken.tokens WHERE id = '$before'");
my $event = as_caller('three', 'SELECT id FROM apitoken.events ORDER BY id DESC LIMIT 1 OFFSET 400');
foreach my $case (
	[ 'the newest', 'SELECT * FROM apitoken.tokens ORDER BY created_at DESC, id DESC LIMIT 50' ],
	[ 'as PostgREST asks', 'SELECT * FROM apitoken.tokens ORDER BY created_at DESC LIMIT 50' ],
	[ 'the oldest', 'SELECT * FROM apitoken.tokens ORDER BY created_at, id LIMIT 50' ],
	[ 'list_tokens', 'SELECT * FROM apitoken.list_tokens()' ],
	[ 'a later page', "SELECT * FROM apitoken.list_tokens(before_id => '$before')" ],
	[ 'a later page by a row', "SELECT * FROM apitoken.tokens WHERE (created_at, id) < ('$before_at', '$before') ORDER BY created_at DESC, id DESC LIMIT 50" ],
	[ 'the oldest after a row', "SELECT * FROM apitoken.tokens WHERE (created_at, id) > ('$before_at', '$before') ORDER BY created_at, id LIMIT 50" ],
	[ 'events', 'SELECT * FROM apitoken.events ORDER BY id DESC LIMIT 50' ],
	[ 'older events', "SELECT * FROM apitoken.events WHERE id < '$event' ORDER BY id DESC LIMIT 50" ],
	[ 'notifications', 'SELECT * FROM apitoken.notifications ORDER BY id DESC LIMIT 50' ])
{
	my ($what, $sql) = @$case;

	foreach my $settings ('', 'SET LOCAL plan_cache_mode = force_generic_plan')
	{
		my @nodes = plan_of('three', $sql, $settings);
		my @merges = merges(@nodes);

		ok(@merges, "$what: merges the owners' rows");
		is($_->{'Rows Removed by Filter'} // 0, 0, "$what: reads no row in vain") foreach @merges;
		ok(!(grep { $_->{'Node Type'} =~ /Sort/ && "@{ $_->{'Sort Key'} }" =~ /created_at|[.]id|^id/ } @nodes), "$what: sorts nothing");
	}
}
is(scalar(merges(plan_of('three', q{SELECT * FROM apitoken.list_tokens(organization_id => 'o1')}))), 0, 'for one owner, its index is enough');
is(scalar(merges(plan_of('three', 'SELECT * FROM apitoken.tokens ORDER BY label LIMIT 5'))), 0, 'in another order there is nothing to merge');

# A page reads about as many blocks when there are many more rows, of its own owners and of others.
sub blocks
{
	my ($caller, $sql) = @_;
	my ($plan) = decode_json(as_caller($caller, "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) $sql"))->[0]{Plan};
	return $plan->{'Shared Hit Blocks'} + $plan->{'Shared Read Blocks'};
}
my @pages = ('SELECT id FROM apitoken.list_tokens()', "SELECT id FROM apitoken.list_tokens(before_id => '$before')");
my @few = map { blocks('three', $_) } @pages;
$node->safe_psql('postgres', q{
	INSERT INTO apitoken.tokens (organization_id, label) SELECT 'o' || 1 + n % 110, 'more of all ' || n FROM generate_series(1, 8000) n WHERE 1 + n % 110 <> 77;
	INSERT INTO apitoken.tokens (organization_id, label) SELECT 'o' || 1 + n % 3, 'more of few ' || n FROM generate_series(1, 8000) n;
	VACUUM ANALYZE apitoken_internal.token_records; VACUUM ANALYZE apitoken.token_usage});
foreach my $i (0, 1)
{
	my $many = blocks('three', $pages[$i]);
	cmp_ok($many, '<', 2 * $few[$i] + 50, 'page ' . ($i + 1) . ": $few[$i] blocks of few rows, $many of many");
}

# ---- the same rows in the same order ----

# The rows of the caller as they come, and sorted: a subquery with OFFSET is not merged.
my %condition = (
	'apitoken.tokens' => [ '', "label LIKE '%1%'", "(created_at, id) < ('$before_at', '$before')", "(created_at, id) <= ('$before_at', '$before')",
		"(created_at, id) < ('$before_at', NULL)", "(created_at, id) < (NULL, '$before')", "created_at < '$before_at'", "'$before_at' >= created_at",
		'created_at < NULL', "(created_at, id) > ('$before_at', '$before')", "created_at >= '$before_at' AND created_at > '$before_at'::timestamptz - interval '1 h'",
		"(created_at, id, label) < ('$before_at', '$before', 'x')", "(created_at, label) < ('$before_at', 'of few 3')", "created_at < '$before_at'::timestamptz::timestamp",
		"created_at < now() AND id < '$before'", "user_id IS NULL", "organization_id = 'o2' OR label = 'personal 3'" ],
	'apitoken.events' => [ '', "action = 'create'", "actor = 'three'", "id < '$event'", "id > '$event'", "id <= '$event'", "'$event' <= id", 'id < NULL' ],
	'apitoken.notifications' => [ '', "id < '$event'", "id > '$event'" ]);
foreach my $caller (sort keys %caller)
{
	foreach my $relation (sort keys %condition)
	{
		my @orders = $relation eq 'apitoken.tokens' ? ('created_at DESC, id DESC', 'created_at, id', 'created_at DESC', 'created_at', 'created_at DESC, id', 'created_at DESC NULLS LAST, id DESC')
			: ('id DESC', 'id');
		my $shown = $relation eq 'apitoken.tokens' ? 'created_at, id' : 'id';

		foreach my $order (@orders)
		{
			my @lists;
			# rows that are equal in the order may come in any order
			my $columns = $order =~ /id/ || $relation ne 'apitoken.tokens' ? $shown : 'created_at';

			foreach my $condition (@{ $condition{$relation} })
			{
				my $where = $condition eq '' ? '' : "WHERE $condition";
				push @lists, map { "SELECT $columns FROM SOURCE s $where ORDER BY $order $_" } 'LIMIT 7', 'LIMIT 120 OFFSET 3', '';
			}
			my ($merged, $sorted) = map {
				my $source = $_;
				[ split /\n/, as_caller($caller, join '; ', map { "SELECT count(*), md5(string_agg(q::text, ' ')) FROM (" . s/SOURCE s/$source/r . ') q' } @lists) ]
			} "$relation s", "(SELECT * FROM $relation OFFSET 0) s";
			my @wrong = map { "$lists[$_]: $merged->[$_], not $sorted->[$_]" } grep { ($merged->[$_] // 'none') ne $sorted->[$_] } 0 .. $#lists;
			is(scalar(@$sorted), scalar(@lists), "$caller, $relation by $order: there are lists to compare with");
			is(join("\n", @wrong), '', "$caller, $relation by $order: " . @lists . ' lists');
		}
	}
}
# The lists were not empty, and those of the callers differ.
is(join(' ', map { $_ . ':' . (as_caller($_, 'SELECT count(*) FROM apitoken.tokens') > 0 ? 'some' : 'none') } sort keys %caller),
	'anonymous:none many:some none:none one:some three:some token:some', 'who sees tokens');
ok(merges(plan_of($_, 'SELECT id FROM apitoken.tokens ORDER BY created_at DESC, id DESC LIMIT 7')), "$_: merged") foreach sort keys %caller;

# ---- page after page ----

foreach my $caller (qw(one three many))
{
	is(as_caller($caller, q{
		CREATE TEMP TABLE page (n serial, id uuid);
		DO $$
		DECLARE before uuid; n int;
		BEGIN
			LOOP
				INSERT INTO page (id) SELECT id FROM apitoken.list_tokens(before_id => before, page_size => 333);
				GET DIAGNOSTICS n = ROW_COUNT;
				EXIT WHEN n = 0;
				SELECT p.id INTO before FROM page p ORDER BY p.n DESC LIMIT 1;
			END LOOP;
		END $$;
		SELECT count(*) = (SELECT count(*) FROM apitoken.tokens) AND bool_and(n = place)
		FROM (SELECT p.n, row_number() OVER (ORDER BY t.created_at DESC, t.id DESC) AS place
			FROM page p JOIN (SELECT * FROM apitoken.tokens OFFSET 0) t USING (id)) q}),
		't', "$caller: all pages have all rows, each once");
}

# ---- within other queries ----

foreach my $caller (qw(three many))
{
	my $own = as_caller($caller, 'SELECT count(*) FROM apitoken.tokens');

	is(as_caller($caller, q{
		DECLARE c SCROLL CURSOR FOR SELECT id FROM apitoken.tokens ORDER BY created_at DESC, id DESC;
		MOVE 5 FROM c; FETCH 1 FROM c; MOVE BACKWARD 3 FROM c; MOVE 2 FROM c; FETCH 1 FROM c}) =~ /^(\S+)\n\1$/ ? 'same' : 'other', 'same', "$caller: a scroll cursor");
	is(as_caller($caller, q{
		SELECT string_agg(t.id::text, ' ' ORDER BY o.n) = (SELECT string_agg(id::text, ' ' ORDER BY created_at DESC, id DESC) FROM
			(SELECT * FROM apitoken.tokens ORDER BY created_at DESC, id DESC LIMIT 9) l)
		FROM generate_series(0, 8) o (n), LATERAL (SELECT id FROM apitoken.tokens ORDER BY created_at DESC, id DESC OFFSET o.n LIMIT 1) t}), 't', "$caller: again for each row of another query");
	is(as_caller($caller, q{
		SELECT count(*), count(DISTINCT t.id) FROM generate_series(1, 3) o (n),
			LATERAL (SELECT id FROM apitoken.tokens WHERE created_at <= now() + o.n * interval '1 s' ORDER BY created_at DESC, id DESC LIMIT 40) t}), '120|40', "$caller: with a bound that changes");
	is(as_caller($caller, q{
		WITH changed AS (UPDATE apitoken.tokens SET description = 'x' WHERE id IN (SELECT id FROM apitoken.tokens WHERE suspended_at IS NULL AND revoked_at IS NULL ORDER BY created_at DESC, id DESC LIMIT 30) RETURNING id)
		SELECT count(*) FROM changed}), '30', "$caller: in an UPDATE");
	is(as_caller($caller, q{
		SELECT count(*) FROM (SELECT * FROM apitoken.tokens ORDER BY created_at DESC, id DESC LIMIT 100000) t}), $own, "$caller: all rows");
	is(as_caller($caller, q{
		PREPARE page (timestamptz, uuid) AS SELECT md5(string_agg(id::text, ' ')) FROM (SELECT id FROM apitoken.tokens WHERE (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT 20) q;
		EXECUTE page ('} . "$before_at', '$before'" . q{); EXECUTE page (NULL, NULL)}, 'SET LOCAL plan_cache_mode = force_generic_plan') =~ /^\w{32}\n?$/ ? 'rows, then none' : 'other', 'rows, then none', "$caller: prepared");
}

# A plan that was made for one caller is used for another.
is(as_caller('one', q{
	PREPARE newest AS SELECT count(*), count(DISTINCT organization_id) FROM (SELECT * FROM apitoken.tokens ORDER BY created_at DESC, id DESC LIMIT 100000) q;
	EXECUTE newest; COMMIT;
	BEGIN; SELECT FROM apitoken.act_as('none'); EXECUTE newest; COMMIT;
	BEGIN; SELECT FROM apitoken.act_as('three'); EXECUTE newest}) =~ /^[1-9]\d+\|1\n\n?0\|0\n\n?[1-9]\d+\|3$/ ? 'each their own' : 'other', 'each their own', 'a prepared statement of several callers');

# Without the index, which a DBA may drop, the rows are sorted.
$node->safe_psql('postgres', 'DROP INDEX apitoken_internal.token_records_user_id_idx');
is(scalar(merges(plan_of('three', 'SELECT * FROM apitoken.tokens ORDER BY created_at DESC, id DESC LIMIT 50'))), 0, 'without an index nothing is merged');
is(as_caller('three', 'SELECT count(*) FROM apitoken.list_tokens()'), 50, 'and the list is there');

no_crash($node);
$node->stop;
done_testing();
