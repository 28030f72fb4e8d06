# PostgREST in front of the database, as examples/postgrest sets it up: the identity
# of each request, the management of tokens over HTTP, and refusals as HTTP
# statuses.  No identity may stay behind in a pooled connection.
#
# The requests are replayed, statement by statement (ApitokenPostgREST.pm).  If a
# real postgrest is on the PATH, the same requests go through it as well.

use strict;
use warnings;

use ApitokenPostgREST;
use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $secret = 'a secret that only this test knows, 32 bytes or more';
my $conf = 'examples/postgrest/postgrest.conf';
my %profile = ('Accept-Profile' => 'apitoken', 'Content-Profile' => 'apitoken');
my $api;
my @hints;						# what the client was told to do, over HTTP

sub signed_in { my ($user) = @_; return (Authorization => 'Bearer ' . ApitokenPostgREST::jwt($secret, role => 'web_user', sub => $user)); }
sub ask_api { my ($method, $target, $body, %headers) = @_; return $api->request($method, $target, headers => \%headers, body => $body); }

# manage METHOD, TARGET, BODY, HEADERS: the same in the schema apitoken
sub manage { my ($method, $target, $body, %headers) = @_; return ask_api($method, $target, $body, %profile, %headers); }
sub whoami { return manage('GET', '/rpc/whoami', undef, @_)->{body}; }

# The identity of a request, in words.
sub request_is
{
	my $who = whoami(@_);

	return join ' ', map { $_ // '-' } @$who{qw(source user_id organization_id database_user)} if defined $who->{source};
	return $who->{code};
}

sub refused_with
{
	my ($answer, $status, $code, $what) = @_;

	is("$answer->{status} " . (ref $answer->{body} eq 'HASH' ? $answer->{body}{code} : '?'), "$status $code", $what);
	push @hints, $answer->{body}{hint} if ref $answer->{body} eq 'HASH' && defined $answer->{body}{hint};
}

# What the client must not learn is in none of the fields.
sub fault_of_server
{
	my ($node, $mark, $answer, $log, $what) = @_;

	refused_with($answer, 500, 'server_error', $what);
	is_deeply($answer->{body}, { code => 'server_error', message => 'internal server error', details => undef, hint => undef }, '... and says no more');
	like(log_since($node, $mark), $log, '... the log does');
}
sub lines { my ($key, $rows) = @_; return join ' ', map { $_->{$key} } @$rows; }

# The database of an application, set up by the example's own file.
sub set_up
{
	my ($node) = @_;

	drop_roles($node);
	$node->safe_psql('postgres', 'CREATE DATABASE app');
	my ($out, $err) = ('', '');
	my $ok = run_log([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-1', '-d', $node->connstr('app'), '-f', 'examples/postgrest/setup.sql' ], '>', \$out, '2>', \$err);
	ok($ok && $err eq '', 'setup.sql runs') or diag($err);
	$node->safe_psql('app', q{
		INSERT INTO apitoken.organizations (id, name) VALUES ('acme', 'Acme'), ('globex', 'Globex');
		INSERT INTO apitoken.users (id, name) VALUES ('ada', 'Ada'), ('bob', 'Bob'), ('gina', 'Gina');
		INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('acme', 'bob', 'developer'), ('globex', 'gina', 'admin');
		INSERT INTO api.articles (organization_id, title) VALUES ('acme', 'One'), ('acme', 'Two'), ('globex', 'Three');
		-- a role of tokens whose database_role the authenticator may not enter, and one without
		CREATE ROLE stray NOLOGIN;
		INSERT INTO apitoken.roles (name, permissions, database_role) VALUES ('stray', '{article:read}', 'stray'), ('lost', '{article:read}', 'no_such_role');
		-- functions of the application that catch our errors, or let them pass
		CREATE FUNCTION api.regenerate(id uuid) RETURNS text LANGUAGE plpgsql AS $$
		BEGIN
			RETURN (apitoken.regenerate_token(id)).masked;
		EXCEPTION WHEN object_not_in_prerequisite_state THEN
			RETURN SQLERRM;
		END $$;
		CREATE FUNCTION api.write() RETURNS text LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO api.articles (organization_id, title) VALUES ('acme', 'By a function');
			RETURN 'written';
		EXCEPTION WHEN read_only_sql_transaction THEN
			RETURN 'read-only';
		END $$;
		CREATE FUNCTION api.identify(token text) RETURNS text LANGUAGE sql AS 'SELECT apitoken.authenticate(token)::text';
		CREATE FUNCTION api.deny() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'not you' USING ERRCODE = '42501', DETAIL = 'why', HINT = 'what'; END $$;
		CREATE FUNCTION api.fail(sqlstate text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine' USING ERRCODE = sqlstate; END $$});
}

# A token made over HTTP by a signed-in user.
sub create_by_api
{
	my ($user, %arguments) = @_;
	my $answer = manage('POST', '/rpc/create_token', \%arguments, signed_in($user));

	is($answer->{status}, 200, "$user creates \"$arguments{label}\"") or diag(explain($answer));
	return $answer->{body};
}

sub api_tests
{
	my ($node, $preloaded) = @_;
	my $answer;

	# ---- anonymous: nothing, and that is 401

	is(request_is(), 'none - - anon', 'without anything a request is anonymous');
	refused_with(ask_api('GET', '/articles'), 401, '42501', 'anonymous reads nothing');
	is(ask_api('GET', '/articles')->{headers}{'www-authenticate'}, 'Bearer', 'and is asked to say who it is');
	refused_with(manage('GET', '/tokens'), 401, '42501', 'nor tokens');
	refused_with(manage('POST', '/rpc/create_token', { label => 'x' }), 401, '42501', 'nor makes one');
	refused_with(manage('POST', '/rpc/introspect', { token => 'x' }), 401, '42501', 'nor asks about one');
	refused_with(manage('POST', '/rpc/act_as', { user_id => 'ada' }), 401, '42501', 'nor calls itself somebody');
	is(manage('POST', '/rpc/can', { permission => 'article:read' })->{body}, 0, 'nor may do anything');
	is(request_is(Authorization => 'Basic YWRhOmFkYQ=='), 'none - - anon', 'other credentials are not ours');

	# ---- a signed-in user, and the management of tokens

	my @ada = signed_in('ada');
	my @bob = signed_in('bob');
	is(request_is(@ada), 'jwt ada - web_user', 'a JWT names the user');
	is(request_is(Authorization => 'Bearer ' . ApitokenPostgREST::jwt($secret, role => 'web_user')), 'none - - web_user', 'one without the claim names nobody');
	is(lines('title', ask_api('GET', '/articles?order=title.asc', undef, @ada)->{body}), 'One Two', 'she reads the articles of her organization');
	is(manage('GET', '/rpc/can?permission=token%3Acreate', undef, @ada)->{body}, 1, 'can, by GET: her own things');
	is(manage('GET', '/rpc/can?permission=token%3Acreate&organization_id=acme', undef, @ada)->{body}, 1, 'can, in an organization');
	is(manage('POST', '/rpc/can', { permission => 'token:create', organization_id => 'globex' }, @ada)->{body}, 0, 'but not in another');
	is(join(' ', @{ manage('GET', '/rpc/organizations_allowed?permission=article:read', undef, @ada)->{body} }), 'acme', 'organizations_allowed');

	my $deploy = create_by_api('ada', label => 'deploy', organization_id => 'acme', permissions => [ 'article:read', 'article:create' ],
		expires_in => '90 days', allowed_networks => ['192.0.2.0/24'], metadata => { ticket => 4711 });
	is(join(' ', sort keys %$deploy), 'expires_at id masked token', 'its text is in the answer, this once');
	like($deploy->{token}, qr/^apt_org_\w{71}$/, 'it is a token');
	my $mine = create_by_api('ada', label => 'laptop');
	like($mine->{token}, qr/^apt_usr_/, 'without an organization it is her own');
	refused_with(manage('POST', '/rpc/create_token', { label => 'x', organization_id => 'acme' }, @bob), 403, '42501', 'Bob may not make one there');
	refused_with(manage('POST', '/rpc/create_token', { label => 'laptop' }, @ada), 409, '23505', 'a label in use');
	refused_with(manage('POST', '/rpc/create_token', { label => 'y', organization_id => 'acme', role => 'nosuch' }, @ada), 409, '23503', 'an unknown role');
	refused_with(manage('POST', '/rpc/create_token', { label => 'y', expires_in => '30' }, @ada), 400, '22023', 'a bad duration');
	refused_with(manage('POST', '/rpc/create_token', { label => 'y', expires_in => 'soon' }, @ada), 400, '22007', 'no duration');
	refused_with(manage('POST', '/rpc/create_token', {}, @ada), 404, 'PGRST202', 'without a label there is no such function');
	refused_with(manage('GET', '/rpc/create_token?label=z', undef, @ada), 405, '25006', 'creating by GET');

	is(lines('label', manage('GET', '/tokens?select=label,status&order=label.asc', undef, @ada)->{body}), 'deploy laptop', 'GET /tokens');
	is(lines('label', manage('GET', '/tokens?status=eq.active&organization_id=eq.acme', undef, @ada)->{body}), 'deploy', 'GET /tokens with filters');
	is(lines('label', manage('GET', '/tokens', undef, @bob)->{body}), '', 'Bob sees none of them');
	is(lines('label', manage('GET', '/rpc/list_tokens?label=LAP', undef, @ada)->{body}), 'laptop', 'GET /rpc/list_tokens');
	is(lines('label', manage('POST', '/rpc/list_tokens', { organization_id => 'acme', page_size => 1 }, @ada)->{body}), 'deploy', 'POST /rpc/list_tokens');
	refused_with(manage('GET', '/rpc/list_tokens?status=nosuch', undef, @ada), 400, '22023', 'with an unknown status');
	my ($row) = @{ manage('GET', "/tokens?id=eq.$deploy->{id}", undef, @ada)->{body} };
	is(join(' ', grep { /digest|secret|token$/ } sort keys %$row), 'previous_secrets', 'no digest among its columns, and of secrets only the times of previous ones');
	is($row->{metadata}{ticket}, 4711, 'what was given is there');
	refused_with(manage('GET', '/token_records', undef, @ada), 404, 'PGRST205', 'the table beneath is not published');
	refused_with(manage('GET', '/token_records?select=digest', undef, @ada), 404, 'PGRST205', 'its digests least of all');

	$answer = manage('POST', '/tokens', { label => 'by post', organization_id => 'acme', access => 'read_only' }, @ada, Prefer => 'return=representation');
	is($answer->{status} . ' ' . lines('label', $answer->{body}) . ' ' . lines('created_by_name', $answer->{body}), '201 by post Ada', 'POST /tokens, return=representation');
	unlike(JSON::PP->new->encode($answer->{body}), qr/apt_org_\w{71}/, 'and no text is in that');
	$answer = manage('POST', '/tokens', [ { label => 'bulk 1' }, { label => 'bulk 2' } ], @ada, Prefer => 'return=representation');
	is($answer->{status} . ' ' . lines('label', $answer->{body}), '201 bulk 1 bulk 2', 'several at once');
	is(manage('POST', '/tokens', { label => 'minimal' }, @ada)->{status}, 201, 'POST /tokens without');
	refused_with(manage('POST', '/tokens', { label => 'x', organization_id => 'globex' }, @ada), 403, '42501', 'nor for another organization');
	refused_with(manage('POST', '/tokens', { label => 'x', organization_id => 'nosuch' }, @ada), 403, '42501', 'nor for one that is not there: the same');
	refused_with(manage('POST', '/tokens', { label => 'x', masked => 'x' }, @ada), 403, '42501', 'nor with columns of the extension');

	$answer = manage('PATCH', "/tokens?id=eq.$mine->{id}", { label => 'notebook', description => 'hers' }, @ada, Prefer => 'return=representation');
	is($answer->{status} . ' ' . lines('label', $answer->{body}), '200 notebook', 'PATCH /tokens, return=representation');
	is(manage('PATCH', "/tokens?id=eq.$mine->{id}", { suspended_at => '2026-01-01' }, @ada)->{status}, 204, 'PATCH /tokens without: suspended');
	refused_with(manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $mine->{token}), 401, 'invalid_token', 'it is refused');
	is(manage('PATCH', "/tokens?id=eq.$mine->{id}", { suspended_at => undef }, @ada)->{status}, 204, 'and resumed');
	is(request_is('X-API-Key' => $mine->{token}), 'token ada - web_user', 'and good again');
	$answer = manage('PATCH', "/tokens?id=eq.$mine->{id}", { label => 'his' }, @bob, Prefer => 'return=representation');
	is($answer->{status} . ' ' . @{ $answer->{body} }, '200 0', 'Bob changes nothing');
	refused_with(manage('PATCH', "/tokens?id=eq.$mine->{id}", { masked => 'x' }, @ada), 403, '42501', 'a column that cannot change');
	refused_with(manage('DELETE', "/tokens?id=eq.$mine->{id}", undef, @ada), 403, '42501', 'DELETE is not granted');
	is($node->safe_psql('app', q{SELECT string_agg(c, ' ') FROM unnest('{organizations,users,memberships,members,roles,token_usage,events,tokens}'::text[]) c
		WHERE has_table_privilege('web_user', 'apitoken.' || c, 'INSERT, UPDATE, DELETE, TRUNCATE') OR has_any_column_privilege('web_user', 'apitoken.' || c, 'INSERT, UPDATE') AND c NOT IN ('tokens', 'organizations')}),
		'', 'nor anything else that the policies would refuse');
	is($node->safe_psql('app', q{SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = 'apitoken.organizations'::regclass AND attnum > 0 AND has_column_privilege('web_user', attrelid, attnum, 'INSERT, UPDATE')}),
		'max_lifetime require_expiry max_tokens allowed_networks default_role allow_personal_tokens notify revoke_on_reuse on_leak', 'of organizations, only the policy');

	my $again = manage('POST', '/rpc/regenerate_token', { id => $mine->{id} }, @ada);
	is($again->{status}, 200, 'regenerated');
	refused_with(manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $mine->{token}), 401, 'invalid_token', 'the old text is refused');
	is(request_is('X-API-Key' => $again->{body}{token}), 'token ada - web_user', 'the new one is good');
	refused_with(manage('POST', '/rpc/regenerate_token', { id => $mine->{id} }, @bob), 403, '42501', 'not by Bob');

	# ---- a token that regenerates itself

	my $job = create_by_api('ada', label => 'job', organization_id => 'acme', permissions => [ 'article:read', 'token:rotate' ], expires_in => '30 days');
	my $rotated = manage('POST', '/rpc/regenerate_token', { id => $job->{id}, overlap => '1 hour' }, 'X-API-Key' => $job->{token});
	is("$rotated->{status} " . ($rotated->{body}{expires_at} // '?'), "200 $job->{expires_at}", 'a job replaces its credential, which ends when it did');
	is(request_is('X-API-Key' => $rotated->{body}{token}), request_is('X-API-Key' => $job->{token}), 'both are good');
	refused_with(manage('POST', '/rpc/regenerate_token', { id => $job->{id} }, 'X-API-Key' => $job->{token}), 403, '42501', 'not by the old one');
	my @job = ('X-API-Key' => $rotated->{body}{token});
	refused_with(manage('POST', '/rpc/regenerate_token', { id => $job->{id}, expires_in => '60 days' }, @job), 400, '22023', 'nor for longer');
	refused_with(manage('POST', '/rpc/regenerate_token', { id => $mine->{id} }, @job), 403, '42501', 'nor another token');
	refused_with(manage('POST', '/rpc/end_overlap', { id => $job->{id} }, @job), 403, '42501', 'nor anything else of it');
	is_deeply(manage('PATCH', "/tokens?id=eq.$job->{id}", { label => 'mine' }, @job, Prefer => 'return=representation')->{body}, [], 'which it does not see');
	is($node->safe_psql('app', "SELECT string_agg(concat_ws(' ', action, actor, actor_token_id = token_id), ', ' ORDER BY id) FROM apitoken.events WHERE token_id = '$job->{id}'"),
		'create ada, regenerate t', 'the event says that the token did it');
	is(manage('POST', '/rpc/revoke_token', { id => $job->{id}, confirm_label => 'job' }, @ada)->{body}, 1, 'it is over');

	# ---- embedding

	is_deeply(manage('GET', '/tokens?select=label,organizations(name)&label=eq.deploy', undef, @ada)->{body},
		[ { label => 'deploy', organizations => { name => 'Acme' } } ], 'a token with its organization');
	is_deeply(manage('GET', '/tokens?select=label,organizations(name)&label=eq.notebook', undef, @ada)->{body},
		[ { label => 'notebook', organizations => undef } ], 'a personal token has none');
	is_deeply(manage('GET', '/organizations?select=id,members(name,role)', undef, @ada)->{body},
		[ { id => 'acme', members => [ { name => 'Ada', role => 'admin' }, { name => 'Bob', role => 'developer' } ] } ], 'an organization with its members, and no other one');
	is_deeply(manage('GET', '/organizations?select=id,members(user_id)', undef, signed_in('nobody'))->{body}, [], 'a stranger sees none');
	refused_with(manage('GET', '/rpc/organizations', undef, @ada), 404, 'PGRST202', 'and there is no /rpc/ of it');

	# ---- tokens of all kinds

	my $org = create_by_api('ada', label => 'org', organization_id => 'acme');
	my $read_only = create_by_api('ada', label => 'read only', organization_id => 'acme', access => 'read_only');
	my $reader = create_by_api('ada', label => 'reader', organization_id => 'acme', permissions => ['article:read']);
	my $admin = create_by_api('ada', label => 'admin', organization_id => 'acme', role => 'admin');
	# a role with a database_role is above the ceiling of a member who has none
	refused_with(manage('POST', '/rpc/create_token', { label => 'gateway', organization_id => 'acme', role => 'gateway' }, @ada), 403, '42501',
		'a member does not hand out a database_role');
	my $gateway = { token => create($node, 'gateway', q{organization_id => 'acme', role => 'gateway'}, database => 'app') };
	my $own = $again->{body};
	my $own_read_only = create_by_api('ada', label => 'own read only', access => 'read_only');
	my $keeper = create_by_api('ada', label => 'keeper', permissions => [ 'token:read', 'token:delete' ]);

	is(request_is('X-API-Key' => $org->{token}), 'token - acme web_user', 'an organization\'s token, in X-API-Key');
	is(request_is(Authorization => "Token $org->{token}"), 'token - acme web_user', 'in Authorization: Token');
	is(request_is(Authorization => "apikey $org->{token}"), 'token - acme web_user', 'in Authorization: ApiKey');
	is(request_is(Authorization => $org->{token}), 'token - acme web_user', 'in Authorization, alone');
	refused_with(manage('GET', '/rpc/whoami', undef, Authorization => "Bearer $org->{token}"), 401, 'PGRST301', 'in Authorization: Bearer it does not reach SQL');
	is(request_is('X-API-Key' => $gateway->{token}), 'token - acme gateway', 'its role\'s database_role');
	is(request_is('X-API-Key' => $org->{token}, signed_in('gina')), 'token - acme web_user', 'a token goes before a JWT');
	refused_with(manage('GET', '/rpc/whoami', undef, 'X-API-Key' => 'garbage', @ada), 401, 'invalid_token', 'a bad one too');

	foreach my $kind ([ 'an organization\'s', $org ], [ 'a personal', $own ])
	{
		my ($what, $token) = @$kind;
		my @key = ('X-API-Key' => $token->{token});
		is(lines('title', ask_api('GET', '/articles?organization_id=eq.acme&order=title.asc', undef, @key)->{body}), 'One Two', "$what token reads");
		is(ask_api('GET', '/articles?organization_id=eq.globex', undef, @key)->{status}, 200, "$what token looks elsewhere");
		is(@{ ask_api('GET', '/articles?organization_id=eq.globex', undef, @key)->{body} }, 0, 'and sees nothing there');
		$answer = ask_api('POST', '/articles', { organization_id => 'acme', title => 'New' }, @key, Prefer => 'return=representation');
		is($answer->{status} . ' ' . lines('title', $answer->{body}), '201 New', 'inserts');
		my $id = $answer->{body}[0]{id};
		$answer = ask_api('PATCH', "/articles?id=eq.$id", { title => 'Newer' }, @key, Prefer => 'return=representation');
		is($answer->{status} . ' ' . lines('title', $answer->{body}), '200 Newer', 'updates');
		is(ask_api('DELETE', "/articles?id=eq.$id", undef, @key)->{status}, 204, 'deletes');
		refused_with(ask_api('POST', '/articles', { organization_id => 'globex', title => 'New' }, @key), 403, '42501', 'not elsewhere');
		is(lines('label', manage('GET', '/tokens', undef, @key)->{body}), '', 'and manages no tokens');
		refused_with(manage('POST', '/rpc/create_token', { label => 'successor' }, @key), 403, '42501', 'and makes itself no successor');
	}
	foreach my $kind ([ 'read-only', $read_only ], [ 'personal read-only', $own_read_only ])
	{
		my ($what, $token) = @$kind;
		my @key = ('X-API-Key' => $token->{token});
		is(whoami(@key)->{read_only}, 1, "a $what token");
		is(ask_api('GET', '/articles', undef, @key)->{status}, 200, 'reads');
		$answer = ask_api('POST', '/articles', { organization_id => 'acme', title => 'New' }, @key);
		refused_with($answer, 403, 'insufficient_scope', 'POST is 403');
		is("$answer->{body}{message}, $answer->{headers}{'www-authenticate'}", 'the token is read-only, Bearer error="insufficient_scope"', 'and says why');
		refused_with(ask_api('PATCH', '/articles?title=eq.One', { title => 'New' }, @key), 403, 'insufficient_scope', 'PATCH is 403');
		refused_with(ask_api('DELETE', '/articles?title=eq.One', undef, @key), 403, 'insufficient_scope', 'DELETE is 403');
		is(ask_api('POST', '/rpc/write', {}, @key)->{body}, 'read-only', 'a function catches that by its SQLSTATE');
		refused_with(ask_api('GET', '/rpc/identify?token=x', undef, @key), 403, '28000', 'another error is as it was');
		refused_with(manage('POST', '/rpc/revoke_token', { id => $mine->{id} }, @key), 403, '42501', 'and ends no token');
	}
	{
		my @key = ('X-API-Key' => $reader->{token});
		is(@{ ask_api('GET', '/articles', undef, @key)->{body} }, 2, 'a token with permissions of its own reads');
		refused_with(ask_api('POST', '/articles', { organization_id => 'acme', title => 'New' }, @key), 403, '42501', 'and does not write: 403, although PostgREST takes the request for anonymous');
		is(@{ ask_api('PATCH', '/articles?title=eq.One', { title => 'New' }, @key, Prefer => 'return=representation')->{body} }, 0, 'nor change');
	}
	{
		my @key = ('X-API-Key' => $admin->{token});
		like(lines('label', manage('GET', '/tokens?order=label.asc', undef, @key)->{body}), qr/^admin by post deploy /, 'an administrating token sees its organization\'s tokens');
		unlike(lines('label', manage('GET', '/tokens', undef, @key)->{body}), qr/notebook|keeper/, 'and no personal ones');
		$answer = manage('POST', '/rpc/create_token', { label => 'by a token', organization_id => 'acme' }, @key);
		is($answer->{status}, 200, 'it makes another');
		is(manage('GET', "/tokens?id=eq.$answer->{body}{id}", undef, @ada)->{body}[0]{created_by}, undef, 'which no user made');
		is(manage('POST', '/rpc/revoke_token', { id => $answer->{body}{id}, confirm_label => 'by a token' }, @key)->{body}, 1, 'and ends it');
		like(lines('label', manage('GET', '/tokens?order=label.asc', undef, 'X-API-Key' => $keeper->{token})->{body}),
			qr/^admin .*\bkeeper minimal notebook org own read only\b/, 'a personal token that names token:read sees what its user sees');
	}

	# ---- gateways: RFC 7662 and RFC 7009, with a form body

	{
		my @key = ('X-API-Key' => $gateway->{token}, 'Content-Type' => 'application/x-www-form-urlencoded');
		my $victim = create_by_api('ada', label => 'victim');
		$answer = manage('POST', '/rpc/introspect', "token=$victim->{token}&token_type_hint=access_token", @key);
		is(join(' ', $answer->{status}, @{ $answer->{body} }{qw(active sub jti)}), "200 1 ada $victim->{id}", 'introspect');
		is_deeply(manage('POST', '/rpc/introspect', 'token=x%2By+z', @key)->{body}, { active => JSON::PP::false() }, 'of a bad one nothing but that');
		is(manage('POST', '/rpc/introspect', { token => $victim->{token} }, 'X-API-Key' => $gateway->{token})->{body}{active}, 1, 'with a JSON body too');
		refused_with(manage('GET', '/rpc/introspect', undef, 'X-API-Key' => $gateway->{token}), 404, 'PGRST202', 'not without a token');
		is(manage('POST', '/rpc/revoke_by_token', "token=$victim->{token}", @key)->{body}, 1, 'revoke_by_token');
		is(manage('POST', '/rpc/revoke_by_token', "token=$victim->{token}&token_type_hint=access_token", @key)->{body}, 0, 'once');
		is_deeply(manage('POST', '/rpc/introspect', "token=$victim->{token}", @key)->{body}, { active => JSON::PP::false() }, 'it is ended');
		refused_with(manage('GET', '/tokens', undef, 'X-API-Key' => $gateway->{token}), 403, '42501', 'a gateway manages no tokens');
		refused_with(manage('POST', '/rpc/introspect', "token=$victim->{token}", 'X-API-Key' => $own->{token}, 'Content-Type' => 'application/x-www-form-urlencoded'), 403, '42501', 'and others are no gateway');
	}

	# ---- refusals

	foreach my $bad ('', 'garbage', substr($org->{token}, 0, -1), $deploy->{masked}, 'x' x 8192)
	{
		$answer = manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $bad);
		refused_with($answer, 401, 'invalid_token', 'a bad token: ' . substr($bad, 0, 20));
		is($answer->{headers}{'www-authenticate'}, 'Bearer error="invalid_token"', 'and says so as RFC 6750 does');
	}
	$answer = manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $org->{token}, Authorization => "Token $own->{token}");
	refused_with($answer, 400, 'invalid_request', 'two tokens');
	is($answer->{headers}{'www-authenticate'}, 'Bearer error="invalid_request"', 'likewise');
	refused_with(manage('POST', '/rpc/create_token', { label => 'x' }, 'X-API-Key' => 'garbage', @ada), 401, 'invalid_token', 'by POST, with a JWT beside it');

	# the client's address: the header that the proxy sets, and nothing else
	refused_with(manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $deploy->{token}), 403, 'network_refused', 'from nowhere');
	refused_with(manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $deploy->{token}, 'X-Real-IP' => '203.0.113.7'), 403, 'network_refused', 'from elsewhere');
	refused_with(manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $deploy->{token}, 'X-Forwarded-For' => '192.0.2.7'), 403, 'network_refused', 'by another header');
	is(request_is('X-API-Key' => $deploy->{token}, 'X-Real-IP' => '192.0.2.7'), 'token - acme web_user', 'from its network');

	# revoked: at the next request, on the same connection
	my $ended = create_by_api('ada', label => 'ended', organization_id => 'acme');
	is(request_is('X-API-Key' => $ended->{token}), 'token - acme web_user', 'a token');
	refused_with(manage('POST', '/rpc/revoke_token', { id => $ended->{id}, confirm_label => 'Ended' }, @ada), 400, '22023', 'the label is typed wrong');
	refused_with(manage('POST', '/rpc/revoke_token', { id => $ended->{id}, confirm_label => 'ended' }, @bob), 403, '42501', 'by who may not');
	refused_with(manage('POST', '/rpc/revoke_token', { id => '00000000-0000-7000-8000-000000000000' }, @ada), 403, '42501', 'one that is not there');
	is(manage('POST', '/rpc/revoke_token', { id => $ended->{id}, confirm_label => 'ended', reason => 'test' }, @ada)->{body}, 1, 'revoked');
	refused_with(manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $ended->{token}), 401, 'invalid_token', 'is refused at the next request');
	refused_with(manage('POST', '/rpc/regenerate_token', { id => $ended->{id} }, @ada), 409, '55000', 'and is regenerated no more');
	is(manage('POST', '/rpc/revoke_token', { id => $ended->{id}, confirm_label => 'ended' }, @ada)->{body}, 0, 'nor revoked twice');

	# ---- what a client does wrong is 4xx, with the code and the words of the error

	$answer = manage('PATCH', '/tokens?organization_id=eq.acme&role=eq.developer', { description => 'all' }, @ada);
	refused_with($answer, 409, '55000', 'PATCH of a set with a revoked token');
	my ($masked) = grep { ($answer->{body}{details} // '') =~ /\Q$_\E/ } map { $_->{masked} } @{ manage('GET', "/tokens?status=eq.revoked", undef, @ada)->{body} };
	$masked //= '?';
	is("$answer->{body}{message}: $answer->{body}{details} $answer->{body}{hint}", "token is revoked: Token \"$masked\" cannot be changed. Create another token.", 'says which');
	is(@{ manage('GET', '/tokens?description=eq.all', undef, @ada)->{body} }, 0, 'and nothing has changed');
	my $old = create_by_api('ada', label => 'old');
	$node->safe_psql('app', "UPDATE apitoken.tokens SET expires_at = now() - interval '1 day' WHERE id = '$old->{id}'");
	$answer = manage('POST', '/rpc/regenerate_token', { id => $old->{id} }, @ada);
	refused_with($answer, 409, '55000', 'an expired token needs a new time');
	is($answer->{body}{hint}, 'Send "expires_in", such as "30 days", to set a new expiration time.', 'which is said in the words of HTTP');
	is(manage('POST', '/rpc/regenerate_token', { id => $old->{id}, expires_in => '30 days' }, @ada)->{status}, 200, 'and works');
	refused_with(manage('POST', '/rpc/take_token', { id => $old->{id} }, @ada), 409, '55000', 'a text that cannot be taken');
	refused_with(manage('POST', '/rpc/authenticate', { token => $own->{token} }, 'X-API-Key' => $org->{token}), 400, '25001', 'a second identity');
	refused_with(ask_api('POST', '/rpc/identify', { token => $own->{token} }, @ada), 400, '25001', 'beside a JWT, within a function');
	refused_with(manage('PATCH', "/tokens?id=eq.$old->{id}", { created_at => '2020-01-01' }, @ada), 403, '42501', 'a column that cannot change');
	refused_with(manage('PATCH', "/tokens?id=eq.$old->{id}", { metadata => undef }, @ada), 400, '23502', 'a null that cannot be');
	refused_with(manage('PATCH', "/tokens?id=eq.$old->{id}", { metadata => [] }, @ada), 400, '22023', 'a list that must be an object');
	refused_with(manage('PATCH', "/tokens?id=eq.$old->{id}", { role => 'admin' }, @ada), 400, '22023', 'a role that a personal token has not');
	refused_with(manage('PATCH', "/tokens?id=eq.$deploy->{id}", { role => 'nosuch' }, @ada), 409, '23503', 'a role that is not there');
	refused_with(manage('PATCH', "/tokens?id=eq.$deploy->{id}", { role => undef }, @ada), 400, '22023', 'or none');
	refused_with(manage('POST', '/rpc/create_token', { label => 'y', permissions => [ [ 'a:b' ], [ 'c:d' ] ] }, @ada), 400, '22023', 'a list of lists');
	refused_with(manage('POST', '/rpc/create_token', { label => 'y', access => 'custom' }, @ada), 400, '22023', 'custom, and no permissions');
	refused_with(manage('POST', '/rpc/create_token', { label => 'y' }, Authorization => 'Bearer ' . ApitokenPostgREST::jwt($secret, role => 'web_user')), 403, '42501', 'nobody\'s token');
	my ($kept) = map { $_->{description} } @{ manage('GET', "/tokens?id=eq.$old->{id}", undef, @ada)->{body} };
	foreach my $column (qw(id label))
	{
		$answer = manage('POST', "/tokens?on_conflict=$column", { label => 'old', description => 'upserted' }, @ada, Prefer => 'resolution=merge-duplicates');
		is($answer->{status} =~ s/\d\d$/xx/r, '4xx', "an upsert on $column ($answer->{body}{code})");
		push @hints, $answer->{body}{hint} // ();
	}
	is(manage('GET', "/tokens?id=eq.$old->{id}", undef, @ada)->{body}[0]{description}, $kept, 'changes nothing');
	is(ask_api('POST', '/rpc/regenerate', { id => $ended->{id} }, @ada)->{body}, 'token is revoked', 'a function catches ours by its SQLSTATE');

	# ---- errors of others are theirs

	refused_with(ask_api('POST', '/rpc/fail', { sqlstate => '55000' }, @ada), 500, '55000', 'an error of a function of the application');
	refused_with(ask_api('POST', '/rpc/fail', { sqlstate => 'F0000' }, 'X-API-Key' => $org->{token}), 500, 'F0000', 'with a token too');
	refused_with(ask_api('POST', '/rpc/fail', { sqlstate => 'PT418' }, 'X-API-Key' => $org->{token}), 418, 'PT418', 'or one that names its status');
	refused_with(ask_api('POST', '/rpc/deny'), 401, '42501', 'anonymous is asked to say who it is');
	$answer = ask_api('POST', '/rpc/deny', undef, 'X-API-Key' => $org->{token});
	refused_with($answer, 403, '42501', 'who has done so is not');
	is("$answer->{body}{message}, $answer->{body}{details}, $answer->{body}{hint}", 'not you, why, what', 'and gets the function\'s words');

	# ---- faults of the server

	foreach my $role (qw(stray lost))
	{
		my $token = create($node, $role, "organization_id => 'acme', role => '$role'", database => 'app');
		my $mark = log_mark($node);
		fault_of_server($node, $mark, ask_api('GET', '/articles', undef, 'X-API-Key' => $token),
			$role eq 'stray' ? qr/42501: cannot set database role "stray".*\n.*\n.*GRANT stray TO authenticator/ : qr/42501: cannot set database role "no_such_role"/, "a token with a database_role ($role)");
	}
	my $directory = PostgreSQL::Test::Utils::tempdir();
	append_to_file("$directory/pepper", '1:' . '5a' x 32 . "\n");
	chmod 0600, "$directory/pepper";
	configure($node, 'apitoken.pepper_file', "$directory/pepper");
	my $peppered = create_by_api('ada', label => 'peppered');
	foreach my $problem ([ 'cannot be read', sub { chmod 0, "$directory/pepper" }, qr/42501: could not read pepper file\s.*"\Q$directory\E/ ],
		[ 'has a bad line', sub { chmod 0600, "$directory/pepper"; append_to_file("$directory/pepper", "x\n") }, qr/F0000: invalid line 2 in pepper file\s.*"\Q$directory\E/ ],
		[ 'is not there', sub { unlink "$directory/pepper" }, qr/58P01: could not read pepper file\s.*"\Q$directory\E/ ])
	{
		my ($what, $break, $log) = @$problem;
		$break->();
		my $mark = log_mark($node);
		fault_of_server($node, $mark, manage('POST', '/rpc/create_token', { label => "pepper $what" }, @ada), $log, "a pepper file that $what, for a new token");
		$mark = log_mark($node);
		fault_of_server($node, $mark, manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $peppered->{token}), $log, 'for one that exists');
	}
	configure($node, 'apitoken.pepper_file', '');

	is(join("\n", grep { /\b(Run|SELECT|INSERT INTO|UPDATE|GRANT)\b|=>|apitoken\.|'\{/ } @hints), '', 'hints speak of HTTP, not of SQL');
	cmp_ok(scalar(@hints), '>', 15, 'there were some');

	# Prefer: tx=rollback rolls back the request and everything that it created
	is(manage('POST', '/rpc/create_token', { label => 'trial' }, @ada, Prefer => 'tx=rollback')->{status}, 200, 'a trial');
	is(@{ manage('GET', '/tokens?label=eq.trial', undef, @ada)->{body} }, 0, 'leaves nothing');

	# ---- one request after the other: no identity stays

	my %visitors = (
		'none - - anon' => [],
		'jwt ada - web_user' => [@ada],
		'jwt bob - web_user' => [@bob],
		'token - acme web_user' => [ 'X-API-Key' => $org->{token} ],
		'token - acme gateway' => [ Authorization => "Token $gateway->{token}" ],
		'token ada - web_user' => [ 'X-API-Key' => $own_read_only->{token} ],
		'invalid_token' => [ 'X-API-Key' => 'garbage' ],
		'invalid_request' => [ 'X-API-Key' => $org->{token}, Authorization => 'Token x' ],
	);
	my @names = sort keys %visitors;
	my @wrong;
	srand(4);
	for (1 .. 400)
	{
		my $name = $names[ int rand @names ];
		# now and then a request that fails in the main query, or is rolled back
		ask_api('POST', '/articles', { organization_id => 'globex', title => 'x' }, @{ $visitors{$name} }) if rand() < 0.1;
		manage('POST', '/rpc/create_token', { label => "rolled back $_" }, @{ $visitors{$name} }, Prefer => 'tx=rollback') if rand() < 0.1;
		my $got = request_is(@{ $visitors{$name} });
		push @wrong, "$got instead of $name" if $got ne $name;
	}
	is("@wrong", '', '400 requests on one connection are each who they are');
	is(ask_api('POST', '/articles', { organization_id => 'acme', title => 'After' }, 'X-API-Key' => $org->{token})->{status}, 201, 'nothing stays READ ONLY');
	$node->safe_psql('app', q{DELETE FROM api.articles WHERE title = 'After'});

	# ---- rate limits

	return if !$preloaded;
	my $slow = create_by_api('ada', label => 'slow', rate_limit_per_minute => 2);
	is(join(' ', map { manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $slow->{token})->{status} } 1 .. 2), '200 200', 'within the limit');
	$answer = manage('GET', '/rpc/whoami', undef, 'X-API-Key' => $slow->{token});
	refused_with($answer, 429, 'rate_limited', 'over it');
	like($answer->{headers}{'retry-after'}, qr/^([1-9]|[12]\d|30)$/, 'Retry-After is in seconds');
	like($answer->{body}{hint}, qr/^Try again in \d+ seconds\.$/, 'and in words');

	# ---- the use is recorded, with the client's address, also of READ ONLY requests
	$node->safe_psql('app', 'SELECT apitoken.flush_usage()');
	($row) = @{ manage('GET', "/tokens?id=eq.$deploy->{id}", undef, @ada)->{body} };
	is("$row->{last_used} $row->{last_used_from}", 'just now 192.0.2.7', 'used just now, from there');
}

# What is left in a pooled connection between two requests.
sub connection_tests
{
	my ($user) = $api->statement('SELECT current_user::text, session_user::text, current_setting($1), apitoken.whoami()->>$2', [ 705, 'request.headers' ], [ 705, 'source' ]);

	is(join('|', @{ $user->[0] }), 'authenticator|authenticator||none', 'between requests the connection is nobody\'s');

	# the statements of one request are those that PostgREST sends
	@{ $api->{statements} } = ();
	manage('GET', '/rpc/can?permission=article:read');
	is(join("\n", map { s/^(.{60}).*/$1/r } @{ $api->{statements} }), join("\n", 'BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY',
		q{select set_config('search_path', $1, true), set_config('role', $2, }  =~ s/^(.{60}).*/$1/r,
		'select "api_private"."pre_request"()', 'WITH pgrst_source AS (SELECT pgrst_call.pgrst_scalar FROM (SELECT "apitoken"."can"(' =~ s/^(.{60}).*/$1/r, 'COMMIT'),
		'the statements of a request');
	cmp_ok(scalar(keys %{ $api->{prepared} }), '>', 10, 'they are prepared');
}

# What PostgREST requires of the functions that it publishes.
sub function_tests
{
	my ($node) = @_;
	my $functions = q{
		SELECT p.* FROM pg_proc p
		WHERE p.pronamespace = 'apitoken'::regnamespace AND p.prorettype NOT IN ('trigger'::regtype, 'internal'::regtype)};
	my %volatility = (
		# reads, by GET
		(map { $_ => 's' } qw(list_tokens whoami can organizations_allowed current_user_id current_organization_id current_token_id current_role_name current_groups)),
		# writes; and functions that take a token's text, which must not be in a URL
		(map { $_ => 'v' } qw(create_token regenerate_token revoke_token revoke_tokens revoke_by_token introspect verify authenticate pre_request)));
	my %found = map { split /\|/ } split /\n/, $node->safe_psql('app', "SELECT proname, provolatile FROM ($functions) f WHERE proname IN (" . join(', ', map { "'$_'" } sort keys %volatility) . ')');

	is_deeply(\%found, \%volatility, 'functions meant for HTTP have the volatility that their method needs');
	is($node->safe_psql('app', "SELECT string_agg(DISTINCT proname, ' ') FROM ($functions) f WHERE prokind <> 'f' OR cardinality(proargnames) < pronargs OR proargnames IS NULL AND pronargs > 0 OR '' = ANY (proargnames)"),
		'members organizations', 'all arguments have names, but for the two computed relationships, which are not called by /rpc/');
	is($node->safe_psql('app', "SELECT string_agg(proname, ' ' ORDER BY proname) FROM ($functions) f WHERE has_function_privilege('anon', f.oid, 'EXECUTE')"),
		'authenticate can current_groups current_organization_id current_role_name current_token_id current_user_id organizations_allowed pre_request whoami',
		'anonymous may call what tells about the caller, and what identifies it; no helper');
	is($node->safe_psql('app', "SELECT string_agg(proname, ' ') FROM (SELECT proname FROM ($functions) f GROUP BY 1 HAVING count(*) > 1) f"), '', 'no function has two forms');
	is($node->safe_psql('app', "SELECT string_agg(DISTINCT proname || '.' || a, ' ') FROM ($functions) f, unnest(proargnames) a WHERE a IN ('select', 'order', 'limit', 'offset', 'and', 'or', 'not', 'columns', 'on_conflict')"),
		'', 'no argument has the name of a parameter of PostgREST');
	# json_to_record() and a cast need a type that a column can have
	is($node->safe_psql('app', "SELECT string_agg(DISTINCT proname, ' ') FROM ($functions) f, unnest(proargtypes) a JOIN pg_type t ON t.oid = a WHERE typtype = 'p'"),
		'', 'no function has an argument that PostgREST cannot pass');
	is($node->safe_psql('app', "SELECT string_agg(proname, ' ') FROM ($functions) f WHERE proname IN (" . join(', ', map { "'$_'" } sort keys %volatility) . ") AND coalesce(obj_description(f.oid, 'pg_proc') !~ '^[A-Z].{20,}' OR obj_description(f.oid, 'pg_proc') ~ '\\n', true)"),
		'', 'each has a comment of one line, its summary in the OpenAPI output');
	# the token's text is never an argument of a function that GET can call
	is($node->safe_psql('app', "SELECT string_agg(proname, ' ') FROM ($functions) f WHERE 'token' = ANY (proargnames[1:pronargs]) AND provolatile <> 'v'"), '', 'what takes a token is volatile');
}

# The documentation's table gives PostgREST's status for each SQLSTATE.
sub errors_tests
{
	my @rows = slurp_file('docs/errors.md') =~ /^\| `(\w{5})` \|[^|]*\|[^|]*\| ([\d, or]+)(?: \(([\d or]+)\))? \|/mg;
	my @wrong;

	# in parentheses: what PostgREST would choose without the extension
	while (my ($sqlstate, $status, $own) = splice @rows, 0, 3)
	{
		my $statuses = $own // $status;
		my %said = map { $_ => 1 } $statuses =~ /\d+/g;
		next if $sqlstate eq 'PGRST';
		my %is = map { ApitokenPostgREST::http_status($sqlstate, '', undef, $_) => 1 } 0, 1;
		push @wrong, "$sqlstate: $statuses" if join(' ', sort keys %said) ne join(' ', sort keys %is);
	}
	is("@wrong", '', 'docs/errors.md has PostgREST\'s statuses');
	cmp_ok(scalar(() = slurp_file('docs/errors.md') =~ /^\| `\w{5}` \|/mg), '>', 12, 'of many');
}

# The shell commands of the documentation, in order, in one shell; a ```json block
# after one is what it prints, except that the order of fields does not matter.
sub documentation_tests
{
	my ($node) = @_;
	my @blocks = slurp_file('docs/postgrest.md') =~ /^```(sh|json)\n(.*?)^```$/msg;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my (@scripts, @expected);
	my $key = PostgreSQL::Test::Utils::tempdir() . '/jwt-secret';
	local @ENV{qw(PGHOST PGPORT)} = ($node->host, $node->port);

	append_to_file($key, $secret);
	drop_roles($node);
	while (my ($kind, $text) = splice @blocks, 0, 2)
	{
		if ($kind eq 'json') { $expected[$#scripts] = $text }
		# the server and the secret of this test
		else { push @scripts, $text =~ s{http://localhost:3000}{http://127.0.0.1:$port}r =~ s{/etc/postgrest/jwt-secret}{$key}r }
	}
	my $lines = sub { return [ map { my $line = $_; eval { JSON::PP->new->decode($line) } // $line } split /\n/, $_[0] // '' ] };
	my $shell = sub {
		my ($out, $err) = ('', '');
		my $script = join '', map { "echo '\@\@'\n$_" } @_;
		my $ok = IPC::Run::run([ 'bash', '-eu' ], '<', \$script, '>', \$out, '2>', \$err);
		ok($ok && $err eq '', 'commands run') or diag($err);
		return (split /^\@\@\n/m, $out)[ 1 .. @_ ];
	};

	# those before the requests are the set-up
	my ($first) = grep { $scripts[$_] =~ /^api=/m } 0 .. $#scripts;
	$shell->(@scripts[ 0 .. $first - 1 ]);
	my $served = ApitokenPostgREST->replay($node, database => 'app', conf => $conf, secret => $secret);
	$served->serve($port);
	my @printed = $shell->(@scripts[ $first .. $#scripts ]);
	my $compared = 0;
	foreach my $i ($first .. $#scripts)
	{
		my ($command) = $scripts[$i] =~ /\A(.{1,60})/;
		next if !defined $expected[$i];
		$compared++;
		is_deeply($lines->($printed[ $i - $first ]), $lines->($expected[$i]), "prints what is shown: $command") or diag($printed[ $i - $first ]);
	}
	cmp_ok($compared, '>=', 5, 'blocks were compared');
	$served->quit;
	$node->safe_psql('postgres', 'DROP DATABASE app');
}

# ApitokenPostgREST->real waits until PostgREST has loaded the schema.
sub waiting_tests
{
	my ($node) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir();

	# a postgrest that is asked four times until it answers
	append_to_file("$directory/postgrest", <<'FAKE');
#!/usr/bin/perl
use IO::Socket::INET;
my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ENV{PGRST_SERVER_PORT}, Listen => 5, ReuseAddr => 1) or die $!;
foreach my $status (503, 401, 404, 200, 200)
{
	my $client = $listen->accept;
	while (<$client> =~ /\S/) {}
	print $client "HTTP/1.1 $status -\r\nContent-Length: 4\r\nConnection: close\r\n\r\n$status ";
	close $client;
}
FAKE
	chmod 0755, "$directory/postgrest";
	local $ENV{PATH} = "$directory:$ENV{PATH}";
	my $real = ApitokenPostgREST->real($node, database => 'postgres', conf => $conf, secret => $secret);
	is($real->request('GET', '/')->{body}, 200, 'a postgrest that is loading, or knows no function yet, is waited for');
	$real->quit;
}

foreach my $preload (undef, 'shared')
{
	my $label = $preload // 'session';
	my $node = start_node("postgrest_$label", preload => $preload, conf => "timezone = 'UTC'\n");
	my %how = (database => 'app', conf => $conf, secret => $secret);

	note("replayed, preloaded: $label");
	set_up($node);
	$api = ApitokenPostgREST->replay($node, %how);
	api_tests($node, $preload);
	connection_tests();
	function_tests($node);
	$api->quit;

	if ($preload)
	{
		SKIP: {
			skip 'no postgrest on the PATH: its requests were replayed, not made', 1 unless grep { -x "$_/postgrest" } split /:/, $ENV{PATH};
			note('through a real postgrest');
			$node->safe_psql('postgres', 'DROP DATABASE app');
			set_up($node);
			$api = ApitokenPostgREST->real($node, %how);
			api_tests($node, $preload);
			$api->quit;
		}
		$node->safe_psql('postgres', 'DROP DATABASE app');
		SKIP:
		{
			skip 'curl is not installed', 1 if system('command -v curl >/dev/null 2>&1') != 0;
			documentation_tests($node);
		}
		waiting_tests($node);
	}
	no_crash($node);
	$node->stop;
}
errors_tests();

# The documentation shows the file itself.
my ($shown) = slurp_file('docs/postgrest.md') =~ /^```conf\n(.*?)^```$/ms;
is($shown, slurp_file($conf), 'docs/postgrest.md shows the configuration file to the letter');
done_testing();
