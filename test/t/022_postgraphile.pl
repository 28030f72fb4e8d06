# examples/postgraphile, with the real PostGraphile from npm: the identities of its
# clients, what they may do over GraphQL, and how bad requests are refused.  On its
# pooled connections, no client may ever be taken for another.
#
# The test is skipped without APITOKEN_NPM_POSTGRAPHILE (see test/README.md).

use strict;
use warnings;

use ApitokenTest;
use Cwd ();
use HTTP::Tiny;
use JSON::PP;
use List::Util qw(shuffle);
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'PostGraphile is not installed (APITOKEN_NPM_POSTGRAPHILE)' if !defined $ENV{APITOKEN_NPM_POSTGRAPHILE};

my $example = 'examples/postgraphile';
my $json = JSON::PP->new->utf8->canonical;
my (%servers, @secrets);

my $node = start_node('postgraphile', conf => "log_statement = 'all'");
$node->safe_psql('postgres', 'CREATE DATABASE example');
$node->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', 'example', '-f', "$example/setup.sql" ], 'setup.sql runs');

# ---- PostGraphile itself

# Started as its README says, plus the settings in the environment.
sub start_postgraphile
{
	my ($name, %environment) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $log = "$PostgreSQL::Test::Utils::log_path/$name.log";
	my $top = Cwd::getcwd();

	local @ENV{ keys %environment } = values %environment;
	# node itself is one of the packages; old versions of npm do not link it into .bin
	local $ENV{PATH} = join(':', glob("$top/$example/node_modules/node-linux-*/bin"),
		"$top/$example/node_modules/.bin", $ENV{PATH});
	local @ENV{qw(GRAPHILE_ENV PORT PGHOST PGPORT PGDATABASE PGUSER PGAPPNAME)} =
		('production', $port, $node->host, $node->port, 'example', 'graphile', 'graphile');
	$servers{$name} = { log => $log, url => "http://127.0.0.1:$port/graphql" };
	start_program($name, ['postgraphile'], in => $example, log => $log, ready => sub { slurp_file($log) =~ /listening on port/ });
	return;
}

# request { headers }, QUERY, variables =>, server =>: the response, with its body
# decoded from JSON.
sub request
{
	my ($headers, $query, %how) = @_;
	my $server = $servers{ $how{server} // 'postgraphile' };
	my $response = HTTP::Tiny->new(timeout => $PostgreSQL::Test::Utils::timeout_default)->post($server->{url}, {
		headers => { 'content-type' => 'application/json', accept => 'application/graphql-response+json', %$headers },
		content => $json->encode({ query => $query, variables => $how{variables} // {} }) });

	$response->{body} = eval { $json->decode($response->{content}) } // {};
	return $response;
}

# The same in one line: the status, the data, and for each error its code, or its
# message if it has no code.
sub response_line
{
	my ($response) = @_;
	my $body = $response->{body};
	my @parts = $response->{status};

	push @parts, $json->encode($body->{data}) if defined $body->{data};
	push @parts, map { '[' . ($_->{extensions}{code} // $_->{message} =~ s/\(logged.*/(masked)/r) . ']' } @{ $body->{errors} // [] };
	return join(' ', @parts);
}

sub check_query
{
	my ($headers, $query, $expected, $label, %how) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(response_line(request($headers, $query, %how)), $expected, $label);
}

sub key { return { 'x-api-key' => $_[0] }; }
sub cookie { return { cookie => "theme=dark; session=$_[0]" }; }
sub sql { return $node->safe_psql('example', $_[0]); }

# A token, made by the superuser.
sub token_of
{
	my ($label, $arguments) = @_;
	my $text = create($node, $label, $arguments, database => 'example');

	push @secrets, $text;
	return $text;
}

is(sql('SHOW session_preload_libraries'), 'apitoken', 'the library is there before the first statement of a session');
sql(q{
	INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme'), ('globex', 'Globex'), ('closed', 'Closed');
	INSERT INTO apitoken.users (id, name) VALUES ('alice', 'Alice'), ('bob', 'Bob'), ('carol', 'Carol');
	INSERT INTO apitoken.memberships (organization_id, user_id, role) VALUES
		('acme', 'alice', 'admin'), ('acme', 'bob', 'developer'), ('globex', 'carol', 'admin');
	INSERT INTO app.articles (id, organization_id, title) VALUES
		('00000000-0000-4000-8000-00000000000a', 'acme', 'Anvils'),
		('00000000-0000-4000-8000-00000000000b', 'globex', 'Doomsday devices');
	INSERT INTO app.drafts (user_id, text) VALUES ('alice', 'draft of alice'), ('bob', 'draft of bob'), ('carol', 'draft of carol');
	INSERT INTO private.sessions (digest, user_id)
	SELECT sha256(convert_to('cookie-of-' || id, 'UTF8')), id FROM apitoken.users;
	INSERT INTO private.sessions VALUES (sha256('cookie-that-expired'), 'alice', now() - interval '1 second');
});
push @secrets, map { "cookie-of-$_" } qw(alice bob carol);

my $acme = token_of('acme', q{organization_id => 'acme'});
my $acme_ro = token_of('acme ro', q{organization_id => 'acme', access => 'read_only'});
my $acme_admin = token_of('acme admin', q{organization_id => 'acme', role => 'admin'});
my $acme_custom = token_of('acme custom', q{organization_id => 'acme', permissions => '{comment:read}'});
my $globex = token_of('globex', q{organization_id => 'globex'});
my $alice = token_of('alice', q{user_id => 'alice'});
my $alice_ro = token_of('alice ro', q{user_id => 'alice', access => 'read_only'});
my $alice_custom = token_of('alice custom', q{user_id => 'alice', permissions => '{article:read}'});

start_postgraphile('postgraphile');

# ---- what the API shows: the parts of apitoken that setup.sql has in app, no others

my $fields = 'fields { name }';
my $shown = request({}, "{ __schema { queryType { $fields } mutationType { $fields } } }")->{body}{data}{__schema};
my $names = sub { join ' ', sort map { $_->{name} } @{ $shown->{ $_[0] }{fields} } };
is($names->('queryType'), 'allArticles allDrafts allTokens article articleByRowId draft draftByRowId id node query searchTokens token tokenByRowId whoami',
	'what can be queried');
is($names->('mutationType'), 'createArticle createDraft createToken deleteArticle deleteArticleByRowId deleteDraft deleteDraftByRowId regenerateToken '
	  . 'revokeToken updateArticle updateArticleByRowId updateDraft updateDraftByRowId updateToken updateTokenByRowId', 'what can be changed');

# ---- anonymous: nothing in the request, and what is not about tokens

my $who = '{ whoami }';
my $everything = '{ allArticles { nodes { title } } allDrafts { nodes { text } } allTokens { nodes { label } } }';
foreach my $case (
	[ 'no header', {} ],
	[ 'another cookie', { cookie => 'theme=dark; xsession=cookie-of-alice' } ],
	[ 'HTTP Basic', { authorization => 'Basic YWxpY2U6c2VjcmV0' } ],
	[ 'settings as headers', { 'apitoken.user_id' => 'alice', 'apitoken.token' => $acme, role => 'postgres', 'x-forwarded-for' => '127.0.0.1' } ])
{
	my ($label, $headers) = @$case;

	is(join(' ', @{ request($headers, $who)->{body}{data}{whoami} }{qw(source database_user)}), 'none api_anonymous', "$label: anonymous");
	check_query($headers, $everything, '200 {"allArticles":null,"allDrafts":null,"allTokens":null} [42501] [42501] [42501]', "$label: sees nothing");
}
check_query({}, 'mutation { createToken(input: {label: "x"}) { result { token } } }', '200 {"createToken":null} [42501]', 'anonymous makes no token');
check_query({}, 'mutation { createArticle(input: {article: {title: "x", organizationId: "acme"}}) { article { title } } }',
	'200 {"createArticle":null} [42501]', 'anonymous writes nothing');

# ---- a bad token gets 401 in every form, and is never anonymous

my $unknown = sql(q{SELECT apitoken.generate('org')});
my $digest = sql(qq{SELECT encode(apitoken.hash('$acme'), 'hex')});
my $expired = token_of('expired', q{organization_id => 'acme'});
my $suspended = token_of('suspended', q{organization_id => 'acme'});
my $closed = token_of('closed', q{organization_id => 'closed'});
sql(q{
	UPDATE apitoken.tokens SET expires_at = now() - interval '1 second' WHERE label = 'expired';
	UPDATE apitoken.tokens SET suspended_at = now() WHERE label = 'suspended';
	UPDATE apitoken.organizations SET suspended_at = now() WHERE id = 'closed';
});
foreach my $case (
	[ 'garbage', { 'x-api-key' => 'garbage' }, 'malformed' ],
	[ 'an empty X-API-Key', { 'x-api-key' => '' }, 'malformed' ],
	[ 'an empty Authorization', { authorization => '' }, 'malformed' ],
	[ 'Bearer without a token', { authorization => 'Bearer' }, 'malformed' ],
	[ 'a JWT', { authorization => 'Bearer eyJh.eyJi.c2ln' }, 'malformed' ],
	[ 'the digest', { 'x-api-key' => $digest }, 'malformed' ],
	[ 'a word after the token', { authorization => "Bearer $acme x" }, 'malformed' ],
	[ 'two tokens in one value', { 'x-api-key' => "$acme, $acme" }, 'malformed' ],
	[ 'one letter wrong', { 'x-api-key' => ($acme =~ s/(.)$/$1 eq 'x' ? 'y' : 'x'/er) }, 'malformed' ],
	[ 'another secret', { authorization => "Bearer $unknown" }, 'unknown' ],
	[ 'expired', key($expired), 'expired' ],
	[ 'suspended', key($suspended), 'suspended' ],
	[ 'its organization suspended', key($closed), 'suspended' ],
	[ 'a bad token beside a good session', { %{ cookie('cookie-of-alice') }, 'x-api-key' => 'garbage' }, 'malformed' ],
	[ 'a very long one', { 'x-api-key' => 'apt_org_' . 'x' x 10000 }, 'malformed' ])
{
	my ($label, $headers, $verdict) = @$case;

	foreach my $accept ('application/graphql-response+json', 'application/json')
	{
		my $response = request({ %$headers, accept => $accept }, $who);

		is(response_line($response), "401 [$verdict]", "$label: 401 ($accept)");
		is($response->{headers}{'www-authenticate'}, 'Bearer error="invalid_token"', "$label: WWW-Authenticate");
	}
}
foreach my $case (
	[ 'two X-API-Key', { 'x-api-key' => [ $acme, $globex ] } ],
	[ 'the same twice', { 'x-api-key' => [ $acme, $acme ] } ],
	[ 'two Authorization', { authorization => [ "Bearer $acme", "Bearer $globex" ] } ],
	[ 'a good and a bad one', { authorization => "Bearer $acme", 'x-api-key' => 'garbage' } ],
	[ 'both headers', { authorization => "Bearer $acme", 'x-api-key' => $acme } ])
{
	check_query($case->[1], $who, '400 [send one token]', "$case->[0]: 400");
}
foreach my $cookie ('cookie-of-nobody', 'cookie-that-expired', '', "' OR true --")
{
	check_query(cookie($cookie), $who, '401 [sign in again]', "session '$cookie': 401");
}

# ---- a good token, in each form

my $token_id = sql(qq{SELECT id FROM apitoken.parse('$acme')});
foreach my $headers (
	{ 'x-api-key' => $acme }, { authorization => $acme }, { authorization => "Bearer $acme" }, { authorization => "bearer  $acme" },
	{ authorization => "Token $acme" }, { authorization => "APIKEY $acme" },
	{ authorization => [ 'Basic YWxpY2U6c2VjcmV0', "Bearer $acme" ] }, { %{ cookie('cookie-of-carol') }, 'x-api-key' => $acme })
{
	is(join(' ', @{ request($headers, $who)->{body}{data}{whoami} }{qw(source token_id database_user bypasses_rls)}),
		"token $token_id api_client 0", join(', ', map { "$_: " . (ref $headers->{$_} ? 'two' : $headers->{$_} =~ s/apt\w+/.../r) } sort keys %$headers));
}

# ---- the rows that each identity sees

sub seen
{
	my ($headers) = @_;
	my $data = request($headers, '{ allArticles { nodes { title } } allDrafts { nodes { text } } }')->{body}{data};

	return join(', ', sort map { values %$_ } map { @{ $_->{nodes} } } values %$data);
}
is(seen(key($acme)), 'Anvils', 'a token sees what its organization has');
is(seen(key($globex)), 'Doomsday devices', '... and another what the other has');
is(seen(key($acme_ro)), 'Anvils', 'a read-only token reads');
is(seen(key($acme_custom)), '', 'a token that may not read articles sees none');
is(seen(key($alice)), 'Anvils, draft of alice', 'a personal token sees its user\'s organizations and drafts');
is(seen(key($alice_custom)), 'Anvils', '... one for articles no drafts');
is(seen(cookie('cookie-of-alice')), 'Anvils, draft of alice', 'a user who is signed in');
is(seen(cookie('cookie-of-carol')), 'Doomsday devices, draft of carol', '... and another');
check_query(key($acme), '{ articleByRowId(rowId: "00000000-0000-4000-8000-00000000000b") { title } }', '200 {"articleByRowId":null}', 'another organization\'s by its id');
check_query(key($acme), '{ allArticles(condition: {organizationId: "globex"}) { totalCount } }', '200 {"allArticles":{"totalCount":0}}', '... nor counted');

# ---- changes

my $create = 'mutation { createArticle(input: {article: {title: "New"}}) { article { title organizationId } } }';
check_query(key($acme), $create, '200 {"createArticle":{"article":{"organizationId":"acme","title":"New"}}}', 'a token creates in its organization');
check_query(key($acme), 'mutation { createArticle(input: {article: {title: "x", organizationId: "globex"}}) { article { title } } }',
	'200 {"createArticle":null} [42501]', '... not in another');
sub by_id { my ($what, $last, $rest) = @_; return "mutation { ${what}ByRowId(input: {rowId: \"00000000-0000-4000-8000-00000000000$last\"$rest}) { article { title } } }"; }
check_query(key($acme), by_id('updateArticle', 'a', ', articlePatch: {title: "Anvils!"}'), '200 {"updateArticleByRowId":{"article":{"title":"Anvils!"}}}', 'changes its own');
check_query(key($acme), by_id('updateArticle', 'b', ', articlePatch: {title: "x"}'), '200 {"updateArticleByRowId":{"article":null}}', '... not another\'s');
check_query(key($acme), by_id('deleteArticle', 'b', ''), '200 {"deleteArticleByRowId":null} [An error occurred (masked)]', 'deletes not another\'s');
check_query(key($alice), 'mutation { createDraft(input: {draft: {text: "x"}}) { draft { userId } } }', '200 {"createDraft":{"draft":{"userId":"alice"}}}', 'a draft is its user\'s');
check_query(key($acme), 'mutation { createDraft(input: {draft: {text: "x"}}) { draft { userId } } }', '200 {"createDraft":null} [42501]', 'an organization\'s token has no drafts');
check_query(key($acme), by_id('deleteArticle', 'a', ''), '200 {"deleteArticleByRowId":{"article":{"title":"Anvils!"}}}', 'deletes its own');
sql(q{INSERT INTO app.articles (id, organization_id, title) VALUES ('00000000-0000-4000-8000-00000000000a', 'acme', 'Anvils')});

# A read-only token writes nothing, whatever else the role might do.
my $before = sql('SELECT (SELECT count(*) FROM app.articles), (SELECT count(*) FROM app.drafts), (SELECT count(*) FROM apitoken.events)');
my $alice_id = sql(q{SELECT id FROM apitoken.tokens WHERE label = 'alice'});
foreach my $token ($acme_ro, $alice_ro)
{
	my $form = $token eq $acme_ro ? 'an organization\'s' : 'a personal';

	foreach my $mutation (
		$create, by_id('updateArticle', 'a', ', articlePatch: {title: "x"}'), by_id('deleteArticle', 'a', ''),
		'mutation { createDraft(input: {draft: {text: "x"}}) { draft { userId } } }',
		'mutation { createToken(input: {label: "x"}) { result { token } } }',
		"mutation { updateTokenByRowId(input: {rowId: \"$alice_id\", tokenPatch: {label: \"x\"}}) { token { label } } }",
		# these first check whether it may do this to that token; it never may
		"mutation { regenerateToken(input: {id: \"$alice_id\"}) { result { token } } }",
		"mutation { revokeToken(input: {id: \"$alice_id\"}) { result } }")
	{
		my ($field) = $mutation =~ /(\w+)\(/;
		my $code = $field =~ /^re/ ? '42501' : '25006';

		check_query(key($token), $mutation, "200 {\"$field\":null} [$code]", "$form read-only token: no $field");
	}
}
is(sql('SELECT (SELECT count(*) FROM app.articles), (SELECT count(*) FROM app.drafts), (SELECT count(*) FROM apitoken.events)'), $before, 'nothing was written');

# ---- a signed-in user manages tokens

my $browser = cookie('cookie-of-alice');
my $make = 'mutation($input: CreateTokenInput!) { createToken(input: $input) { result { rowId token masked expiresAt } } }';

# The result of createToken or regenerateToken.  The token's text in it is a secret.
sub made
{
	my ($response) = @_;
	my ($field) = values %{ $response->{body}{data} // {} };

	die 'no token was made: ' . response_line($response) if !defined $field;
	push @secrets, $field->{result}{token};
	return $field->{result};
}

my $deploy = made(request($browser, $make, variables => { input => { label => 'Deploy', organizationId => 'acme', expiresIn => { days => 90 },
	permissions => [ 'article:read', 'article:create' ], allowedNetworks => [ '127.0.0.0/8' ], metadata => { ticket => 4711 } } }));
like($deploy->{token}, qr/^apt_org_[0-9A-Za-z]{71}$/, 'createToken gives the text');
is($deploy->{masked}, sql("SELECT apitoken.mask('$deploy->{token}')"), '... and its masked form');
is(sql(q{SELECT count(*), min(created_by), bool_and(expires_at = created_at + interval '90 days'), min(metadata::text) FROM apitoken.tokens WHERE label = 'Deploy'}),
	'1|alice|t|{"ticket": 4711}', 'one token was made, by the user');
is(seen(key($deploy->{token})), 'Anvils, New', 'it works at once');
check_query(key($deploy->{token}), $create, '200 {"createArticle":{"article":{"organizationId":"acme","title":"New"}}}', '... within its permissions');
check_query(key($deploy->{token}), by_id('deleteArticle', 'a', ''), '200 {"deleteArticleByRowId":null} [An error occurred (masked)]', '... and not beyond');
my $personal = made(request($browser, $make, variables => { input => { label => 'CLI' } }));
is(seen(key($personal->{token})), 'Anvils, New, New, draft of alice, x', 'a personal token');

my $list = request($browser, '{ allTokens { nodes { label masked status organizationId userId createdBy } } searchTokens(label: "cli") { nodes { label } } }');
is($list->{body}{data}{searchTokens}{nodes}[0]{label}, 'CLI', 'searchTokens finds by a part of the label');
is(join(', ', sort map { $_->{label} } @{ $list->{body}{data}{allTokens}{nodes} }),
	'CLI, Deploy, acme, acme admin, acme custom, acme ro, alice, alice custom, alice ro, expired, suspended', 'the list: what is the user\'s and the organization\'s');
unlike($list->{content}, qr/[0-9A-Za-z]{71}/, 'it has no text of a token');
check_query($browser, '{ searchTokens(status: "nonsense") { nodes { label } } }', '200 {"searchTokens":null} [22023]', 'a status that there is not');
check_query(cookie('cookie-of-bob'), '{ allTokens { nodes { label } } }', '200 {"allTokens":{"nodes":[]}}', 'a developer sees none of the organization\'s');
check_query(cookie('cookie-of-carol'), "{ tokenByRowId(rowId: \"$deploy->{rowId}\") { label } }", '200 {"tokenByRowId":null}', 'another organization\'s admin neither, by its id');

# without the permission, the error is the same whether the token exists or not
my $nowhere = '00000000-0000-4000-8000-000000000000';
foreach my $case ([ 'a developer', cookie('cookie-of-bob') ], [ 'another organization\'s admin', cookie('cookie-of-carol') ], [ 'a token', key($acme) ], [ 'itself', key($deploy->{token}) ])
{
	my ($label, $headers) = @$case;
	my %messages;

	check_query($headers, $make, '200 {"createToken":null} [42501]', "$label creates none", variables => { input => { label => 'x', organizationId => 'acme' } });
	foreach my $id ($deploy->{rowId}, $nowhere)
	{
		foreach my $mutation ("regenerateToken(input: {id: \"$id\"}) { result { token } }", "revokeToken(input: {id: \"$id\", confirmLabel: \"Deploy\"}) { result }")
		{
			my ($field) = $mutation =~ /^(\w+)/;
			my $response = request($headers, "mutation { $mutation }");

			is(response_line($response), "200 {\"$field\":null} [42501]", "$label: no $field");
			$messages{$field}{ $response->{body}{errors}[0]{message} } = 1;
		}
		check_query($headers, "mutation { updateTokenByRowId(input: {rowId: \"$id\", tokenPatch: {label: \"x\"}}) { token { label } } }",
			'200 {"updateTokenByRowId":{"token":null}}', "$label: no update");
	}
	is(join(' ', map { scalar keys %{ $messages{$_} } } sort keys %messages), '1 1', "$label is not told what is there");
}
my $successor = made(request(key($acme_admin), $make, variables => { input => { label => 'Made by a token', organizationId => 'acme' } }));
is(seen(key($successor->{token})), 'Anvils, New, New', 'a token whose role says so makes another');
check_query(key($personal->{token}), $make, '200 {"createToken":null} [42501]', 'an ordinary personal token makes no successor', variables => { input => { label => 'x' } });

# suspend, resume, regenerate, revoke: each takes effect in the next request
sub update { my ($patch) = @_; return "mutation { updateTokenByRowId(input: {rowId: \"$deploy->{rowId}\", tokenPatch: {$patch}}) { token { status } } }"; }
check_query($browser, update('suspendedAt: "2026-01-01T00:00:00Z"'), '200 {"updateTokenByRowId":{"token":{"status":"suspended"}}}', 'suspend');
check_query(key($deploy->{token}), $who, '401 [suspended]', '... counts at once');
check_query($browser, update('suspendedAt: null'), '200 {"updateTokenByRowId":{"token":{"status":"active"}}}', 'resume');
is(request(key($deploy->{token}), $who)->{status}, 200, '... counts at once');
my $again = sub { my ($rest) = @_; return made(request($browser, "mutation { regenerateToken(input: {id: \"$deploy->{rowId}\"$rest}) { result { rowId token masked expiresAt } } }")); };
my $second = $again->(', overlap: {hours: 1}');
is(join(' ', map { request(key($_->{token}), $who)->{status} } $deploy, $second), '200 200', 'regenerate: with an overlap both work');
my $third = $again->('');
is(join(' ', map { request(key($_->{token}), $who)->{status} } $deploy, $second, $third), '401 401 200', '... without one only the new');
is($third->{rowId}, $deploy->{rowId}, '... and it is the same token');
my $revoke = sub { my ($rest) = @_; return "mutation { revokeToken(input: {id: \"$deploy->{rowId}\"$rest}) { result } }"; };
check_query($browser, $revoke->(''), '200 {"revokeToken":null} [22023]', 'revoke: the label must be typed');
is(request(key($third->{token}), $who)->{status}, 200, '... nothing happened');
check_query($browser, $revoke->(', confirmLabel: "Deploy", reason: "over"'), '200 {"revokeToken":{"result":true}}', '... and it is revoked');
check_query(key($third->{token}), $who, '401 [revoked]', 'it is refused in the next request');
check_query(key($third->{token}), $create, '401 [revoked]', '... whatever that asks for');
check_query($browser, $revoke->(', confirmLabel: "Deploy"'), '200 {"revokeToken":{"result":false}}', 'revoked before');
is(sql("SELECT string_agg(action || ' ' || actor || ' ' || host(client_address), ', ' ORDER BY id) FROM apitoken.events WHERE token_id = '$deploy->{rowId}'"),
	join(', ', map { "$_ alice 127.0.0.1" } qw(create suspend resume regenerate regenerate revoke)), 'all that was recorded, and from where');

# a suspended user may do nothing, from the next request on
sql(q{UPDATE apitoken.users SET suspended_at = now() WHERE id = 'alice'});
is(seen($browser), '', 'a suspended user sees nothing');
check_query($browser, $make, '200 {"createToken":null} [42501]', '... and makes no token', variables => { input => { label => 'x' } });
check_query(key($personal->{token}), $who, '401 [suspended]', '... and their tokens are refused');
sql(q{UPDATE apitoken.users SET suspended_at = NULL WHERE id = 'alice'});

# ---- what clients see of other errors

foreach my $case (
	[ { label => 'CLI' }, '23505', 'label "CLI" is already in use' ],
	[ { label => '' }, '22023', undef ],
	[ { label => 'x', access => 'all' }, '22023', undef ],
	[ { label => 'x', quota => '0' }, '22023', undef ],
	[ { label => 'x', quota => '5', quotaPeriod => 'week' }, '22023', undef ],
	[ { label => 'x', organizationId => 'acme', role => 'nobody' }, '23503', 'token role "nobody" does not exist' ],
	[ { label => 'x', expiresIn => { seconds => 1 } }, '22023', undef ])
{
	my ($input, $code, $message) = @$case;
	my $error = request($browser, $make, variables => { input => $input })->{body}{errors}[0];

	is($error->{extensions}{code}, $code, 'createToken ' . $json->encode($input) . ": $code");
	is($error->{message}, $message, '... said to the client') if defined $message;
	is(join(' ', sort keys %{ $error->{extensions} }), 'code', '... and no more');
}
check_query($browser, "mutation { regenerateToken(input: {id: \"$deploy->{rowId}\"}) { result { token } } }", '200 {"regenerateToken":null} [55000]', 'regenerate what is revoked: 55000');
sql('ALTER TABLE app.articles RENAME TO elsewhere');
check_query($browser, '{ allArticles { totalCount } }', '200 {"allArticles":null} [An error occurred (masked)]', 'what is not about the request is masked');
sql('ALTER TABLE app.elsewhere RENAME TO articles');

# another site's page can make a browser send a form with the cookie, but not JSON
foreach my $case ([ 'application/x-www-form-urlencoded', 415 ], [ 'multipart/form-data; boundary=x', 415 ], [ 'text/plain', 415 ])
{
	check_query({ %$browser, 'content-type' => $case->[0] }, $make, "$case->[1] [Media type '" . ($case->[0] =~ s/;.*//r) . "' is not allowed]", "$case->[0]: $case->[1]");
}

# ---- networks: the address is the HTTP connection's, or the one the proxy passes

my $here = token_of('here', q{organization_id => 'acme', allowed_networks => '{127.0.0.0/8}'});
my $there = token_of('there', q{organization_id => 'acme', allowed_networks => '{192.0.2.0/24,2001:db8::/32}'});
is(seen(key($here)), 'Anvils, New, New', 'a token for this network');
check_query(key($there), $who, '403 [network_refused]', 'a token for another: 403');
check_query({ %{ key($there) }, 'x-forwarded-for' => '192.0.2.1' }, $who, '403 [network_refused]', '... whatever the client says');
start_postgraphile('proxied', BEHIND_PROXY => '1');
foreach my $case ([ '192.0.2.1', 200 ], [ '10.1.1.1, 192.0.2.1', 200 ], [ '2001:db8::1', 200 ], [ '::ffff:192.0.2.1', 200 ],
	[ '192.0.2.1, 10.1.1.1', 403 ], [ '', 403 ], [ 'unknown', 403 ], [ '192.0.2.1:80', 403 ], [ '192.0.2.0/24', 403 ], [ [ '192.0.2.1', '10.1.1.1' ], 403 ])
{
	my ($forwarded, $status) = @$case;
	my $response = request({ %{ key($there) }, 'x-forwarded-for' => $forwarded }, $who, server => 'proxied');

	is($response->{status}, $status, 'behind a proxy: ' . (ref $forwarded ? 'two headers' : "'$forwarded'") . ": $status");
	is($response->{body}{data}{whoami}{source} // 'none', $status == 200 ? 'token' : 'none', '... in the transactions too');
}
check_query(key($here), $who, '403 [network_refused]', 'behind a proxy: no header, no address', server => 'proxied');

# ---- hundreds of requests of all identities, from several clients at a time

sub only { my ($source, $user, $organization, $articles, $drafts) = @_; return join('|', $source, $user // '-', $organization // '-', $articles, $drafts); }
my @callers = (
	[ key($acme), only('token', undef, 'acme', 'acme', '') ],
	[ key($acme_ro), only('token', undef, 'acme', 'acme', '') ],
	[ key($acme_custom), only('token', undef, 'acme', '', '') ],
	[ key($globex), only('token', undef, 'globex', 'globex', '') ],
	[ key($alice), only('token', 'alice', undef, 'acme', 'alice') ],
	[ key($alice_custom), only('token', 'alice', undef, 'acme', '') ],
	[ cookie('cookie-of-alice'), only('user', 'alice', undef, 'acme', 'alice') ],
	[ cookie('cookie-of-bob'), only('user', 'bob', undef, 'acme', 'bob') ],
	[ cookie('cookie-of-carol'), only('user', 'carol', undef, 'globex', 'carol') ],
	[ {}, only('none', undef, undef, 'refused', 'refused') ],
	[ key('garbage'), '401' ],
	[ key($third->{token}), '401' ],
	[ key($there), '403' ]);
my $all = '{ whoami allArticles { nodes { organizationId } } allDrafts { nodes { userId } } }';

# The owners of the rows that were seen.
sub owners
{
	my ($connection) = @_;

	return 'refused' if !defined $connection;
	my %owners = map { $_ => 1 } map { values %$_ } @{ $connection->{nodes} // [] };

	return join(',', sort keys %owners);
}

sub who_was_it
{
	my ($response) = @_;
	my $data = $response->{body}{data};

	return $response->{status} if !defined $data;
	return only(@{ $data->{whoami} }{qw(source user_id organization_id)}, owners($data->{allArticles}), owners($data->{allDrafts}));
}

my ($clients, $rounds) = (6, 6);
my @children;
foreach my $client (1 .. $clients)
{
	my $pid = open(my $from, '-|') // die $!;

	if ($pid == 0)
	{
		# the child must not stop or clean up anything of the parent's
		srand($client);
		foreach (1 .. $rounds)
		{
			foreach my $caller (shuffle(@callers))
			{
				my $was = who_was_it(request($caller->[0], $all));

				print $was eq $caller->[1] ? "right\n" : "wrong: $was instead of $caller->[1]\n";
			}
		}
		close STDOUT;
		POSIX::_exit(0);
	}
	push @children, $from;
}
my @answers = map { my $from = $_; my @lines = <$from>; close $from; @lines } @children;
is(scalar(grep { $_ eq "right\n" } @answers), $clients * $rounds * @callers, 'everybody was who they are, in each of ' . scalar(@answers) . ' requests')
  or diag(grep { $_ ne "right\n" } @answers[0 .. ($#answers < 50 ? $#answers : 50)]);
cmp_ok(sql(q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'graphile'}), '<=', 20, 'they shared the connections of the pools');

# ---- the database is away; then it is back, and preloaded

my $mark = log_mark($node);
$node->stop('fast');
foreach my $headers (key($acme), $browser)
{
	check_query($headers, $who, '503 [try again later]', 'without the database: 503, and no reason given');
}
check_query({}, $who, '200 {"whoami":null} [An error occurred (masked)]', '... anonymous learns no more');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'apitoken'");
$node->start;
is(seen(key($acme)), 'Anvils, New, New', 'it goes on when the database is back');

# ---- rate limits, which need that: each request counts once, and each of its
# transactions

my $limited = token_of('limited', q{organization_id => 'acme', rate_limit_per_minute => 2});
is(response_line(request(key($limited), '{ allArticles { totalCount } }')), '200 {"allArticles":{"totalCount":3}}', 'two uses are within a limit of two');
my $refused = request(key($limited), $who);
is(response_line($refused), '429 [rate_limited]', 'the third is 429');
like($refused->{headers}{'retry-after'}, qr/^([1-9]|[1-5][0-9]|60)$/, '... with Retry-After, in seconds');
$refused = request(key(token_of('one', q{organization_id => 'acme', rate_limit_per_minute => 1})), '{ allArticles { totalCount } }');
is(response_line($refused), '200 {"allArticles":null} [28000]', 'refused in a transaction it is that field\'s error');
is($refused->{body}{errors}[0]{message}, 'invalid token: Verdict: rate_limited.', '... which says why');
is(seen(key($acme)), 'Anvils, New, New', 'others are not affected');

# ---- no secret was written anywhere

stop_program($_) foreach keys %servers;
my %logs = map { ($_ => slurp_file($servers{$_}{log})) } keys %servers;
$logs{'the server'} = join('', grep { /\] graphile / } split /^(?=\d{4}-)/m, slurp_file($node->logfile));
like($logs{'the server'}, qr/apitoken\.verify\(\$1/, 'the server has logged the statements');
foreach my $name (sort keys %logs)
{
	is(scalar(grep { index($logs{$name}, $_) >= 0 } @secrets), 0, "no secret in what $name logged");
}

$node->stop;
done_testing();
