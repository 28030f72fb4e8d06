# Random SQL as each capability and identity: calls of all functions of the schema
# apitoken, and statements on all its relations, as the catalog lists them, with
# hostile arguments, in savepoints, cursors, prepared statements and every kind of
# transaction.
#
# Each name, label and text of an owner in the tables is a mark that no statement of
# another owner contains.  So a mark in an answer tells whose row it comes from.
# What must be true: no mark of another owner in any answer, no internal error, no
# lost connection, no token text in the log, and the invariants at the end.
#
# APITOKEN_SEED names the seed.  APITOKEN_SECONDS says how long to run (make fuzz-sql),
# then by a seed of its own each time; otherwise a fixed number of sessions run.
# Session n is made from the seed + n, so it can be repeated.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{APITOKEN_SECONDS};
my $seed = $ENV{APITOKEN_SEED} // (defined $seconds ? time : 20260101);
note "seed $seed";

my $node = start_node('random', preload => 'shared', conf => q{
	apitoken.flush_interval = '1s'
	apitoken.jwt_user_claim = 'sub'
	autovacuum = off
	statement_timeout = 20s
	lock_timeout = 5s
	log_statement = all
	log_min_duration_statement = 0
	max_prepared_transactions = 5
});

# ---- the world: organizations a and b, with users of one, of both and of none

$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_use LOGIN;
	CREATE ROLE regress_apitoken_manage LOGIN;
	CREATE ROLE regress_apitoken_verify LOGIN;
	CREATE ROLE regress_apitoken_act LOGIN;
	CREATE ROLE regress_apitoken_directory LOGIN;
	CREATE ROLE regress_apitoken_monitor LOGIN;
	CREATE ROLE regress_apitoken_notify LOGIN;
	CREATE ROLE regress_apitoken_usage LOGIN;
	CREATE ROLE regress_apitoken_nobody LOGIN;
	SELECT apitoken.allow('regress_apitoken_use', 'use');
	SELECT apitoken.allow('regress_apitoken_manage', 'manage');
	SELECT apitoken.allow('regress_apitoken_verify', 'verify');
	SELECT apitoken.allow('regress_apitoken_act', 'act', 'manage');
	SELECT apitoken.allow('regress_apitoken_directory', 'directory');
	SELECT apitoken.allow('regress_apitoken_monitor', 'monitor');
	SELECT apitoken.allow('regress_apitoken_notify', 'notify');
	SELECT apitoken.allow('regress_apitoken_usage', 'usage');
	INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read}');
	INSERT INTO apitoken.organizations (id, name) SELECT id, 'zqO_' || id || '_q' FROM unnest('{orga,orgb}'::text[]) id;
	INSERT INTO apitoken.users (id, name, email) SELECT id, 'zqN_' || id || '_q', 'zqE_' || id || '_q@example.com'
		FROM unnest('{adama,lowa,adamb,lowb,both,lone}'::text[]) id;
	INSERT INTO apitoken.memberships VALUES ('orga', 'adama', 'admin'), ('orga', 'lowa', 'reader'), ('orgb', 'adamb', 'admin'),
		('orgb', 'lowb', 'reader'), ('orga', 'both', 'reader'), ('orgb', 'both', 'admin');
});

my @users = qw(adama lowa adamb lowb both lone);
my @organizations = qw(orga orgb);

# what each may see: marks by kind (O organization, N name of a user, E address of a
# user, T token)
my %sees = (
	adama => [qw(O_orga N_adama N_lowa N_both E_adama T_orga T_adama)],
	lowa => [qw(O_orga N_adama N_lowa N_both E_lowa T_lowa)],
	adamb => [qw(O_orgb N_adamb N_lowb N_both E_adamb T_orgb T_adamb)],
	lowb => [qw(O_orgb N_adamb N_lowb N_both E_lowb T_lowb)],
	both => [qw(O_orga O_orgb N_adama N_lowa N_adamb N_lowb N_both E_both T_orgb T_both)],
	lone => [qw(N_lone E_lone T_lone)],
	# an organization's token, with the role admin
	orga => [qw(O_orga N_adama N_lowa N_both T_orga)],
	orgb => [qw(O_orgb N_adamb N_lowb N_both T_orgb)],
);
# In an organization, those who read its tokens see personal tokens that acted there.
push @{ $sees{$_} }, qw(T_adama T_lowa T_both) foreach 'adama', 'orga';
push @{ $sees{$_} }, qw(T_adamb T_lowb T_both) foreach 'adamb', 'orgb';
push @{ $sees{both} }, qw(T_adamb T_lowb);
my @all_tokens = map { "T_$_" } @users, @organizations;
my @all_directory = ((map { ("N_$_", "E_$_") } @users), map { "O_$_" } @organizations);

# ---- tokens: whole texts by owner, and ids; more are made before each session

my (%text, %ids, @every_text);
my $made = 0;
sub mint
{
	my ($owner, $personal) = @_;
	my $label = "zqT_${owner}_q" . ++$made;
	my $as = $personal ? "user_id => '$owner', access => 'custom', permissions => '{*,token:*,organization:*}'" : "organization_id => '$owner', role => 'admin'";
	# an administrator's session may have changed the policy
	$node->safe_psql('postgres', q{UPDATE apitoken.organizations SET max_lifetime = NULL, require_expiry = false, max_tokens = NULL, idle_timeout = NULL,
		allowed_networks = NULL, allow_personal_tokens = true, revoke_on_reuse = false, suspended_at = NULL});
	my ($id, $token) = split /\|/, $node->safe_psql('postgres',
		"SELECT id, token FROM apitoken.create_token('$label', $as, description => 'zqT_${owner}_q', metadata => '{\"m\": \"zqT_${owner}_q\"}')");
	push @{ $text{$owner} }, $token;
	push @{ $ids{$owner} }, $id;
	push @every_text, $token;
	return $token;
}
foreach (1, 2)
{
	mint($_, 1) foreach @users;
	mint($_, 0) foreach @organizations;
}
# some use, also in organizations
$node->safe_psql('postgres', join '', map { my $u = $_; map { "SELECT apitoken.verify('$text{$u}[0]', 'article:read', '$_');" } @organizations } @users);
$node->safe_psql('postgres', 'SELECT apitoken.flush_usage()');

# ---- the catalog: what there is to call

my @functions = map { my ($name, $names, $types, $defaults, $variadic) = split /\|/, $_, -1;
	{ name => $name, names => [ split /,/, $names ], types => [ split /;/, $types ], defaults => $defaults, variadic => $variadic eq 't' } }
  split /\n/, $node->safe_psql('postgres', q{
	SELECT p.proname, coalesce(array_to_string(p.proargnames[1:p.pronargs], ',', '-'), ''),
		coalesce((SELECT string_agg(format_type(t, NULL), ';' ORDER BY n) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a (t, n)), ''),
		p.pronargdefaults, p.provariadic <> 0
	FROM pg_proc p WHERE p.pronamespace = 'apitoken'::regnamespace AND p.prokind = 'f' ORDER BY p.oid});
my @relations;
foreach (split /\n/, $node->safe_psql('postgres', q{
	SELECT c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, NULL), ';' ORDER BY a.attnum)
	FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.relnamespace = 'apitoken'::regnamespace AND c.relkind IN ('r', 'v', 'p', 'm') GROUP BY c.oid, c.relname ORDER BY c.oid}))
{
	my ($name, $columns) = split /\|/;
	push @relations, { name => $name, columns => [ map { [ split / /, $_, 2 ] } split /;/, $columns ] };
}
cmp_ok(scalar @functions, '>', 30, 'functions from the catalog');
cmp_ok(scalar @relations, '>', 10, 'relations from the catalog');

# ---- values

sub quote { my ($s) = @_; $s =~ s/'/''/g; return ($s =~ s/\\/\\\\/g ? 'E' : '') . "'$s'"; }

# A text that is no token any more; where its secret is not shown as a whole either.
sub broken_token
{
	my $token = pick(@every_text);
	my $how = int rand 7;
	return substr($token, 0, rand length $token) if $how == 0;
	return substr($token, 31 + int rand 20) if $how == 1;
	return uc $token if $how == 2;
	return $token . pick('0', ' ', "\n", '_', $token) if $how == 3;
	return " $token" if $how == 4;
	return 'a' x (1 + int rand 100000) if $how == 5;
	# not before the secret: what does not look like a token is not masked
	my $at = 8 + int rand length($token) - 8;
	substr($token, $at, 1) = pick('0' .. '9', 'A' .. 'Z', 'a' .. 'z', $at < 30 ? () : ('_', '-'));
	return $token;
}

# the session that is being made
my %session;

sub text_value
{
	my ($name) = @_;
	my $me = $session{owner} // 'none';

	return broken_token() if $name =~ /token|document/ && rand() < 0.3;
	if ($name =~ /^tokens?$|document/)
	{
		# the whole text of another owner only to those who may verify any, and to functions that read no table
		return pick(@every_text) if $session{any_token} && rand() < 0.7;
		return pick(@{ $text{$me} }) if exists $text{$me};
	}
	return pick(@organizations, 'none') if $name =~ /organization/ && rand() < 0.7;
	return pick(@users, 'none') if $name =~ /user|created_by/ && $session{foreign_users} && rand() < 0.7;
	return $me if $name =~ /user|created_by/ && rand() < 0.5;
	return pick('admin', 'developer', 'reader', 'none') if $name =~ /role/ && rand() < 0.7;
	return pick('full', 'read_only', 'custom', '') if $name eq 'access' && rand() < 0.8;
	return pick('active', 'expiring', 'expired', 'suspended', 'policy_refused', 'revoked', 'x') if $name eq 'status' && rand() < 0.8;
	return pick('article:read', 'token:read', 'token:create', 'token:delete', 'organization:update', '*', '*:*', 'a:b:c', ':') if $name =~ /permission/ && rand() < 0.8;
	return "zqT_${me}_q" . int rand 1000 if $name =~ /label|description|name|reason/ && exists $text{$me} && rand() < 0.7;
	return pick('', ' ', '%', '_', '\\', "'", '"', '$$', "a\nb", "\x{1}", "\xc3\xa9\xe2\x80\x8b", '0', '-1', 'null', 'org', 'usr', 'day', 'month',
		'pg_catalog', '../../etc/passwd', '%s%n', '{}', 'x' x 300, 'x' x (rand() < 0.05 ? 1048576 : 5000));
}

sub value
{
	my ($type, $name) = @_;

	return 'NULL' if rand() < 0.12;
	return '(SELECT ' . value($type, $name) . ')' if rand() < 0.03;
	if ($type =~ /^(text|name|character varying|apitoken\.id|.*\bid)$/ && $type ne 'uuid')
	{
		return quote(text_value($name));
	}
	return quote(pick('{}', '{NULL}', '{a,b}', '{{a},{b}}', '{article:read}', '{*}', '{token:*}', '{create,revoke}', '{verify}', '{act,manage}', '[5:6]={a,b}', '{""}', '{' . join(',', ('a:b') x 200) . '}'))
	  . '::text[]' if $type eq 'text[]' && ($name ne 'tokens' || rand() < 0.2);
	return 'ARRAY[' . join(',', map { quote(text_value('token')) } 1 .. 1 + rand 3) . ']' if $type eq 'text[]';
	return quote(pick((map { @{ $ids{$_} } } keys %ids), '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff')) . '::uuid' if $type eq 'uuid';
	return quote(pick('0', '-1 day', '1 minute', '30 days', '100 years', '1 microsecond', '-178000000 years', '178000000 years', '1 mon -30 days',
		$node->pg_version >= 17 ? ('infinity', '-infinity') : ())) . '::interval' if $type eq 'interval';
	return quote(pick('now', 'infinity', '-infinity', '4713-01-01 00:00:00 BC', '294276-12-31', 'epoch', '2999-01-01')) . "::$type" if $type =~ /^timestamp/;
	return quote(pick('infinity', '-infinity', 'today', '5874897-12-31')) . '::date' if $type eq 'date';
	return quote(pick('192.0.2.1', '::', '::ffff:192.0.2.1', '0.0.0.0/0', '10.0.0.0/8', 'fe80::1/64')) . '::inet' if $type eq 'inet';
	return quote(pick('{}', '{0.0.0.0/0}', '{::/0}', '{192.0.2.0/24,NULL}', '{::ffff:0:0/96}')) . '::cidr[]' if $type eq 'cidr[]';
	return pick('true', 'false') if $type eq 'boolean';
	return quote(pick('{}', 'null', '[]', '1e100', '{"a": {"a": [1]}}', '"x"', '{"m": "' . ('x' x 3000) . '"}')) . "::$type" if $type =~ /^jsonb?$/;
	return pick(0, 1, -1, 2, 50, 1000, 32767) if $type eq 'smallint';
	return pick(0, 1, -1, 2, 50, 1000, 2147483647, '(-2147483648)') if $type eq 'integer';
	return pick(0, 1, -1, 2, 1000, '9223372036854775807', '(-9223372036854775808)') if $type =~ /bigint|numeric/;
	return quote(pick('', '\x00', '\x' . ('ff' x 32))) . '::bytea' if $type eq 'bytea';
	# rows, real and made up
	return pick("NULL::$type", "(SELECT x FROM $type x LIMIT 1)",
		"jsonb_populate_record(NULL::$type, jsonb_build_object('id', " . quote(pick('orga', 'orgb')) . ", 'organization_id', " . quote(pick('orga', 'orgb')) . '))') if $type =~ /^apitoken\./;
	return 'NULL';
}

# ---- statements

sub call
{
	# a call that succeeds, now and then: most random ones do not
	return "SELECT * FROM apitoken.create_token('zqT_$session{owner}_q" . int(rand 1e9) . "', " . pick(
		"organization_id => '" . pick(@organizations) . "'", "user_id => '$session{owner}'", "access => 'read_only'",
		"organization_id => '" . pick(@organizations) . "', permissions => '{article:read}', expires_in => '1 day'") . ')' if defined $session{owner} && rand() < 0.1;
	my $f = pick(@functions);
	my @arguments;
	my $count = @{ $f->{types} };

	# These make another user the caller, who then may see what is theirs.
	local $session{foreign_users} = $session{foreign_users} && $f->{name} ne 'act_as';
	local $session{any_token} = ($session{any_token} || $f->{name} =~ /^(parse|mask|hash|find_tokens)$/) && $f->{name} ne 'authenticate';
	foreach my $i (0 .. $count - 1)
	{
		my $name = $f->{names}[$i] // '';
		my $type = $f->{types}[$i];

		next if $i >= $count - $f->{defaults} && rand() < 0.5;
		my $value = value($type, $name);
		push @arguments, $f->{variadic} && $i == $count - 1 ? "VARIADIC $value" : $name =~ /^\w+$/ ? "$name => $value" : $value;
	}
	return "SELECT * FROM apitoken.$f->{name}(" . join(', ', @arguments) . ')';
}

sub query
{
	my $r = pick(@relations);
	my $what = rand() < 0.5 ? '*' : join ', ', map { pick(@{ $r->{columns} })->[0] } 1 .. 3;
	my $where = '';

	if (rand() < 0.5)
	{
		my ($column, $type) = @{ pick(@{ $r->{columns} }) };
		$where = " WHERE $column " . pick('=', '<>', '<', '>=', 'IS NOT DISTINCT FROM') . ' ' . value($type, $column);
	}
	return "SELECT $what FROM apitoken.$r->{name}$where" . pick('', '', ' LIMIT 3', ' FOR UPDATE', ' ORDER BY 1 DESC OFFSET 1');
}

sub change
{
	my $r = pick(@relations, grep { $_->{name} =~ /^(tokens|organizations)$/ } @relations);
	my %set = map { my ($column, $type) = @$_; ($column => value($type, $column)) } map { pick(@{ $r->{columns} }) } 1 .. 1 + rand 3;
	my ($column, $type) = @{ pick(@{ $r->{columns} }) };
	my $where = rand() < 0.3 ? '' : " WHERE $column = " . value($type, $column);
	my $how = rand;

	return "DELETE FROM apitoken.$r->{name}$where RETURNING *" if $how < 0.2;
	return "UPDATE apitoken.$r->{name} SET " . join(', ', map { "$_ = $set{$_}" } sort keys %set) . "$where RETURNING *" if $how < 0.6;
	if ($r->{name} eq 'tokens')
	{
		my $me = $session{owner} // 'none';
		$set{label} = quote("zqT_${me}_q" . int rand 1000);
	}
	return "INSERT INTO apitoken.$r->{name} (" . join(', ', sort keys %set) . ') VALUES (' . join(', ', map { $set{$_} } sort keys %set) . ')' . pick('', ' RETURNING *', ' ON CONFLICT DO NOTHING');
}

sub setting
{
	my $name = pick('apitoken.token', 'apitoken.user_id', 'apitoken.client_address', 'request.headers', 'request.jwt.claims', 'apitoken.prefix', 'apitoken.mask_logs', 'role', 'session_replication_role', 'search_path');
	my $token = text_value('token');
	# an identity that counts is the session's own
	my $user = $session{foreign_users} ? pick(@users) : $session{owner} // 'none';
	my $value = $name eq 'apitoken.token' ? $token
	  : $name eq 'apitoken.user_id' ? $user
	  : $name eq 'request.headers' ? qq({"authorization": "Bearer $token", "x": 1})
	  : $name eq 'request.jwt.claims' ? qq({"sub": "$user"})
	  : $name eq 'role' ? pick('none', map { "regress_apitoken_$_" } qw(use manage verify act directory monitor notify usage))
	  : pick('', 'on', 'off', 'replica', 'x', '192.0.2.1', 'pg_temp, public');
	return 'SELECT set_config(' . quote($name) . ', ' . quote($value) . ', ' . pick('true', 'true', 'false') . ') IS NOT NULL' if $name ne 'role' || $session{owner};
	return 'SELECT 1';
}

sub statement
{
	my $how = rand;
	return $how < 0.6 ? call() : $how < 0.8 ? query() : $how < 0.95 ? change() : setting();
}

my $prepared = 0;
sub wrapped
{
	my $s = statement();
	my $how = rand;

	return "SAVEPOINT s;\n$s;\n" . pick('ROLLBACK TO s', 'RELEASE s', 'ROLLBACK TO s') . ";\n" if $how < 0.2;
	return "DECLARE c CURSOR " . pick('', 'WITH HOLD ') . "FOR $s;\nFETCH 2 FROM c;\n" . pick('', "SAVEPOINT c;\nROLLBACK TO c;\n") . "FETCH ALL FROM c;\nCLOSE c;\n" if $how < 0.3 && $s =~ /^SELECT/;
	if ($how < 0.4)
	{
		my $p = 'p' . ++$prepared;
		return "PREPARE $p AS $s;\n" . ("EXECUTE $p;\n" x (1 + rand 3)) . pick('', "DEALLOCATE $p;\n");
	}
	return "DO \$do\$ BEGIN PERFORM * FROM ($s) s; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END \$do\$;\n" if $how < 0.45 && $s =~ /^SELECT \*/ && $s !~ /\$\$/;
	return "EXPLAIN (ANALYZE, VERBOSE, COSTS OFF, TIMING OFF, SUMMARY OFF) $s;\n" if $how < 0.5;
	return "COPY ($s) TO STDOUT;\n" if $how < 0.53;
	return "$s;\n";
}

sub transaction
{
	my $sql = 'BEGIN' . pick('', '', ' READ ONLY', ' ISOLATION LEVEL REPEATABLE READ', ' ISOLATION LEVEL SERIALIZABLE', ' ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE') . ";\n";

	$sql .= $session{identity} if defined $session{identity} && rand() < 0.9;
	$sql .= wrapped() foreach 1 .. 3 + rand 8;
	return $sql . ($session{keep} && rand() < 0.3 ? pick('COMMIT', 'COMMIT', 'COMMIT AND CHAIN;' . "\nROLLBACK") : 'ROLLBACK') . ";\n";
}

# ---- sessions

my @kinds = (
	(map { my $user = $_; { role => 'act', owner => $user, sees => $sees{$user}, identity => "SELECT apitoken.act_as('$user');\n", keep => 1 } } @users),
	(map { my $owner = $_; map { { role => $_, owner => $owner, sees => $sees{$owner}, token => 1, keep => 1, foreign_users => 1 } } 'use', 'manage' } @users, @organizations),
	{ role => 'act', sees => [] },
	{ role => 'manage', sees => [], foreign_users => 1 },
	{ role => 'use', sees => [], foreign_users => 1 },
	{ role => 'verify', sees => \@all_tokens, any_token => 1, foreign_users => 1 },
	{ role => 'directory', sees => \@all_directory, foreign_users => 1 },
	{ role => 'monitor', sees => [], foreign_users => 1 },
	# news are of tokens, and name people
	{ role => 'notify', sees => [ @all_tokens, @all_directory ], foreign_users => 1 },
	# it may have tokens look used, and reads nothing
	{ role => 'usage', sees => [], foreign_users => 1 },
	{ role => 'nobody', sees => [], foreign_users => 1 });

my (%codes, @findings, %secrets);
my $marks = 0;
sub collect { my ($out) = @_; $secrets{$1} = 1 while $out =~ /_(?:org|usr)_[0-9A-Za-z]{22}([0-9A-Za-z]{43})[0-9A-Za-z]{6}(?![0-9A-Za-z])/g; return; }

sub finding
{
	my ($number, $what, $sql) = @_;
	my $file = "$PostgreSQL::Test::Utils::log_path/finding_$number.sql";

	append_to_file($file, $sql);
	push @findings, "session $number: $what (the statements are in $file)";
	diag $findings[-1];
	return;
}

sub run_session
{
	my ($number) = @_;

	srand($seed + $number);
	%session = %{ $kinds[ $number % @kinds ] };
	if ($session{token})
	{
		my $token = mint($session{owner}, !grep { $_ eq $session{owner} } @organizations);
		$session{identity} = pick("SELECT verdict FROM apitoken.authenticate('$token');\n", "SELECT set_config('apitoken.token', '$token', true) IS NOT NULL;\n");
	}
	my $sql = "\\set VERBOSITY verbose\n" . (rand() < 0.85 ? "\\set ON_ERROR_ROLLBACK on\n" : '');
	$sql .= transaction() foreach 1 .. 8;
	# each a transaction of its own
	if ($session{keep})
	{
		$sql .= wrapped() foreach 1 .. 3;
	}
	$sql .= "\\echo zq-end\n";

	my ($out, $err) = ('', '');
	$node->psql('postgres', $sql, stdout => \$out, stderr => \$err, on_error_stop => 0, timeout => 120,
		extra_params => [ '-U', "regress_apitoken_$session{role}" ]);

	# errors show the statement, with the label of a token that nobody would have
	my %allowed = map { $_ => 1 } @{ $session{sees} }, 'T_' . ($session{owner} // 'none');
	my %strange;
	foreach my $answer ($out, $err)
	{
		while ($answer =~ /zq([A-Z]_[a-z]+)_q/g)
		{
			$marks++;
			$strange{$1} = 1 unless $allowed{$1};
		}
	}
	finding($number, "$session{role} as " . ($session{owner} // 'nobody') . ' sees ' . join(', ', sort keys %strange), $sql) if %strange;
	finding($number, 'the session ended early: ' . substr($err, -500), $sql) unless $out =~ /^zq-end$/m;
	while ($err =~ /(?:ERROR|FATAL|PANIC):  ([0-9A-Z]{5}): (.*)/g)
	{
		my ($code, $message) = ($1, $2);

		$codes{$code}++;
		finding($number, "$code: $message", $sql) if $code =~ /^(XX|58|53|57P0[^1]|F0)/ || $message =~ /internal error|could not open relation|cache lookup|unrecognized node/;
	}
	collect($_) foreach $sql, $out, $err;
	return;
}

# ---- invariants

# What must not change from one look to the next.
$node->safe_psql('postgres', q{
	CREATE SCHEMA seen;
	CREATE TABLE seen.events AS SELECT id, md5(e::text) AS content FROM apitoken.events e;
	CREATE TABLE seen.revoked AS SELECT id, revoked_at, revoke_reason FROM apitoken_internal.token_records WHERE revoked_at IS NOT NULL;
});
my @invariants = (
	'each token has one owner' => q{SELECT count(*) FROM apitoken_internal.token_records WHERE num_nonnulls(organization_id, user_id) <> 1},
	'each token has a row of usage' => q{SELECT count(*) FROM apitoken_internal.token_records r LEFT JOIN apitoken.token_usage u ON u.token_id = r.id WHERE u.token_id IS NULL},
	'usage is of tokens' => q{SELECT count(*) FROM apitoken.token_usage u LEFT JOIN apitoken_internal.token_records r ON u.token_id = r.id WHERE r.id IS NULL},
	'days of usage add up' => q{SELECT count(*) FROM apitoken.token_usage u WHERE u.accepted < (SELECT coalesce(sum(accepted), 0) FROM apitoken.token_usage_daily d WHERE d.token_id = u.token_id)},
	'each token has an event' => q{SELECT count(*) FROM apitoken_internal.token_records r WHERE NOT EXISTS (SELECT FROM apitoken.events e WHERE e.token_id = r.id AND e.action = 'create')},
	'events stay as they are' => q{SELECT count(*) FROM seen.events s LEFT JOIN apitoken.events e ON e.id = s.id WHERE s.content IS DISTINCT FROM md5(e::text)},
	'revoked tokens stay revoked' => q{SELECT count(*) FROM seen.revoked s LEFT JOIN apitoken_internal.token_records r ON r.id = s.id WHERE (r.revoked_at, r.revoke_reason) IS DISTINCT FROM (s.revoked_at, s.revoke_reason)},
	'labels are unique' => q{SELECT count(*) FROM (SELECT FROM apitoken_internal.token_records WHERE revoked_at IS NULL GROUP BY organization_id, user_id, label HAVING count(*) > 1) s},
	'digests are whole' => q{SELECT count(*) FROM apitoken_internal.token_records WHERE length(digest) <> 32},
	'digests are unique' => q{SELECT count(*) - count(DISTINCT digest) FROM apitoken_internal.token_records},
	'nobody gained a membership' => q{SELECT abs(count(*) - 6) FROM apitoken.memberships},
	'no organization changed hands' => q{SELECT count(*) FROM apitoken_internal.token_records WHERE label ~ '^zqT_[a-z]+_q' AND substring(label FROM '^zqT_([a-z]+)_q') NOT IN (organization_id, created_by)
		AND organization_id IS NOT NULL AND created_by IS NOT NULL AND organization_id NOT IN (SELECT organization_id FROM apitoken.memberships m WHERE m.user_id = created_by)});
sub invariants
{
	my $bad = '';
	for (my $i = 0; $i < @invariants; $i += 2)
	{
		my $count = $node->safe_psql('postgres', $invariants[ $i + 1 ]);
		$bad .= "$invariants[$i]: $count; " if $count ne '0';
	}
	$node->safe_psql('postgres', q{
		INSERT INTO seen.events SELECT id, md5(e::text) FROM apitoken.events e WHERE id NOT IN (SELECT id FROM seen.events);
		INSERT INTO seen.revoked SELECT id, revoked_at, revoke_reason FROM apitoken_internal.token_records WHERE revoked_at IS NOT NULL AND id NOT IN (SELECT id FROM seen.revoked)});
	return $bad;
}

# ---- run

my $until = defined $seconds ? time + $seconds : undef;
my $sessions = 0;
my $broken = '';
while (defined $until ? time < $until : $sessions < 4 * @kinds)
{
	run_session($sessions++);
	$broken .= invariants() if $sessions % @kinds == 0;
	last if $broken ne '' || @findings > 20;
}
$node->safe_psql('postgres', 'SELECT apitoken.flush_usage()');
$broken .= invariants();

my $report = "seed $seed; $sessions sessions; errors by SQLSTATE: " . join ', ', map { "$_ $codes{$_}" } sort { $codes{$b} <=> $codes{$a} } keys %codes;
note $report;
append_to_file("$PostgreSQL::Test::Utils::log_path/report.txt", "$report\n");
is(join("\n", @findings), '', 'no row of another owner, no internal error, no lost connection');
is($broken, '', 'invariants');
cmp_ok($marks, '>', 100, 'rows of the callers were seen');
cmp_ok(scalar keys %codes, '>', 10, 'statements failed in many ways');
cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM apitoken_internal.token_records WHERE label ~ '^zqT_' AND masked IS NOT NULL}), '>', $made, 'and some made tokens');

# the log can have a gigabyte, and there can be thousands of secrets
cmp_ok(scalar keys %secrets, '>', 20, 'secrets in statements and answers: ' . scalar keys %secrets);
my $list = "$PostgreSQL::Test::Utils::tmp_check/secrets";
append_to_file($list, join '', map { "$_\n" } keys %secrets);
local $ENV{LC_ALL} = 'C';
open my $grep, '-|', 'grep', '-a', '-o', '-F', '-f', $list, $node->logfile or die "grep: $!";
chomp(my @told = <$grep>);
close $grep;
cmp_ok($? >> 8, '<', 2, 'the log was searched for them');
is(join(' ', map { substr($_, 0, 12) . '...' } @told), '', 'none of them is in the log');
no_crash($node);
$node->stop;
done_testing();
