# The command line: installed into a directory of its own, and run from there by
# different shells, with and against the rules.
use strict;
use warnings;

use ApitokenTest;
use Cwd qw(getcwd);
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# with pg_stat_statements, which stores statements
my $node = start_node('main', init => [ allows_streaming => 1 ], conf => q{
	shared_preload_libraries = 'pg_stat_statements, apitoken'
	log_statement = all
	log_min_duration_statement = 0
	log_min_messages = debug1
	timezone = 'UTC'
	lc_messages = 'C'});
$node->safe_psql('postgres', 'CREATE DATABASE app');

# ---- installed

my $place = PostgreSQL::Test::Utils::tempdir();
my $bindir = $node->config_data('--bindir');
{
	local %ENV = %ENV;
	delete $ENV{$_} foreach qw(MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES DESTDIR);
	my @make = ('make', '-s', "PG_CONFIG=$bindir/pg_config", "DESTDIR=$place/other");
	my $files = sub { my @files = split /\n/, `find '$place/other' ! -type d`; return @files; };

	command_ok([ @make, 'install' ], 'installed');
	my @installed = $files->();
	is(scalar(grep { m{/apitoken(-\w+)?\.1$} } @installed), 12, 'with manual pages');
	command_ok([ @make, 'uninstall' ], 'uninstalled');
	is(join(' ', $files->()), '', 'nothing is left');
	command_ok([ @make[0 .. 2], "DESTDIR=$place", 'install' ], 'installed again');
}
my $command = "$place$bindir/apitoken";
my $man = $place . $node->config_data('--mandir') . '/man1';
$ENV{PATH} = "$place$bindir:$bindir:$ENV{PATH}";
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
$ENV{PGDATABASE} = 'app';
# the standard output may be one that no UTF-8 is written to
$ENV{LC_ALL} = 'C.UTF-8';
delete $ENV{PGAPPNAME};

# call ARGUMENTS, { in => standard input, env => {...}, by => shell }: exit status,
# output, errors
sub call
{
	my $how = ref $_[-1] eq 'HASH' ? pop : {};
	my ($out, $err) = ('', '');
	my @command = (defined $how->{by} ? @{ $how->{by} } : (), $command, @_);

	local %ENV = (%ENV, %{ $how->{env} // {} });
	IPC::Run::run(\@command, '<', \($how->{in} // ''), '>', \$out, '2>', \$err);
	return ($? >> 8, $out, $err);
}

# it STATUS, ARGUMENTS..., NAME, {...}: an assertion; returns output and errors
sub it
{
	my ($status, @arguments) = @_;
	my $how = ref $arguments[-1] eq 'HASH' ? pop @arguments : {};
	my $name = pop @arguments;
	my ($got, $out, $err) = call(@arguments, $how);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($got, $status, $name) or diag("output: $out\nerrors: $err");
	return ($out, $err);
}
sub json { my ($out) = it(0, @_); return $out eq '' ? {} : decode_json($out); }

# ---- the documents

# What differs each time: ids, texts, times.
sub same_form
{
	my ($text) = @_;
	$text =~ s/\b[0-9a-f]{8}-[0-9a-f-]{27}\b/<id>/g;
	$text =~ s/_(org|usr)_[0-9A-Za-z]{71}\b/_$1_<text>/g;
	$text =~ s/_(org|usr)_[0-9A-Za-z]{22}_\.\.\.[0-9A-Za-z]{4}/_$1_<masked>/g;
	$text =~ s/\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.\d]*\+00/<time>/g;
	$text =~ s/\b\d{4}-\d\d-\d\d\b/<day>/g;
	# the width of a column depends on the digits of a time
	$text =~ s/-{4,}/---/g;
	$text =~ s/ +/ /g;
	$text =~ s/ $//mg;
	$text =~ s/\A\n+|\n+\z//g;
	return $text;
}

append_to_file("$place/services", "[tokens]\nhost=" . $node->host . "\nport=" . $node->port . "\ndbname=app\n");
$ENV{PGSERVICEFILE} = "$place/services";

# All ```sh blocks run in one shell, in order; the ```sql blocks have run before.
my (@expected, $blocks_of_shell);
{
	my $document = slurp_file('docs/command-line.md');
	my $shell = "exec 2>&1; cd '$place'\n";
	while ($document =~ /^```(\w+)\n(.*?)^```\n/gms)
	{
		my ($language, $block) = ($1, $2);
		if ($language eq 'sql') { $node->safe_psql('app', $block); }
		elsif ($language eq 'text') { $expected[-1] = $block; }
		else { push @expected, undef; $shell .= "echo '\@\@" . scalar(@expected) . "'\n$block"; }
	}
	my $out = '';
	# the completion needs a pg_config whose directory is below the place
	my $sharedir = $node->config_data('--sharedir');
	IPC::Run::run([ 'bash' ], '<', \($shell =~ s/\$\(pg_config --sharedir\)/$place$sharedir/r), '>', \$out);
	my ($nothing, %got) = split /^\@\@(\d+)\n/m, $out;
	foreach my $n (1 .. @expected)
	{
		my $got = same_form($got{$n} // 'was not reached');
		if (defined $expected[ $n - 1 ]) { is($got, same_form($expected[ $n - 1 ]), "docs/command-line.md, block $n: prints what is shown"); }
		else { unlike($got, qr/error|not found|was not reached/i, "docs/command-line.md, block $n: runs"); }
	}
}

# ---- the manual pages

# Their examples run in one shell, too, in this order.
my @pages = map { "apitoken$_" } '', map { "-$_" } qw(list create show edit regenerate verify events check grep import revoke);
is(join(' ', sort map { s{.*/|\.1$}{}gr } glob("$man/*.1")), join(' ', sort @pages), 'the manual pages');
{
	my $shell = "exec 2>&1\nset -e\n";
	foreach my $page (@pages)
	{
		my ($examples) = slurp_file("$man/$page.1") =~ /^\.Sh EXAMPLES\n(.*?)^\.Sh/ms;
		my @lines = $examples =~ /^\$ (.*)$/mg;
		ok(@lines > 0, "$page has examples");
		$shell .= join('', map { "$_ || [ \$? -lt 3 ]\n" } map { s/\\en/\\n/gr } @lines) . "echo 'end of $page'\n";
	}
	$node->safe_psql('app', q{UPDATE apitoken.tokens SET label = label || ' of the document' WHERE revoked_at IS NULL});
	my $out = '';
	IPC::Run::run([ 'bash' ], '<', \$shell, '>', \$out);
	foreach my $page (@pages) { like($out, qr/^end of $page$/m, "$page: the examples run"); }
	unlike($out, qr/ERROR|Try '/, 'without an error') or diag($out);
}

# The help, the manual and the program know the same options.
foreach my $page (@pages)
{
	my ($name) = $page =~ /-(\w+)$/;
	my ($help) = it(0, defined $name ? ($name) : (), '--help', "$page: help");
	my $manual = slurp_file("$man/$page.1");
	like($manual, qr/^\.Dt \U$page\E 1\n/m, "$page: the title");
	my %in_help = map { $_ => 1 } $help =~ /^ +(?:-\w, )?--([a-z-]+)/mg;
	delete $in_help{$_} foreach defined $name ? qw(host port username dbname no-password) : ();
	my ($documented) = $manual =~ /^\.Sh (?:DESCRIPTION|OPTIONS)\n(.*)/ms;
	my %in_manual = map { $_ => 1 } map { /-([a-z][a-z-]+)/g } $documented =~ /^\.It (Fl .*)$/mg;
	is(join(' ', sort keys %in_manual), join(' ', sort keys %in_help), "$page: the manual and the help name the same options");
	next unless defined $name;
	my ($known) = slurp_file($command) =~ /^\t\t$name\) echo (.*?) ;;$/ms;
	$known =~ s/[':+\\]//g;
	is(join(' ', sort split ' ', $known), join(' ', sort keys %in_help), "$page: and the program does");
}

# masking is off: what is not shown then was never there
configure($node, 'apitoken.mask_logs', 'off');

# ---- statuses

like((it(0, '--version', 'the version'))[0], qr/^apitoken \d+\.\d+$/, 'is printed');
it(2, 'no command');
it(2, 'unknown', 'an unknown command');
it(2, 'list', '--unknown', 'an unknown option');
it(2, 'list', '--org', 'an option without its value');
it(2, 'list', '--json=1', 'a value that is not taken');
it(2, 'list', '--limit', '1; DROP', 'a limit that is no number');
it(2, 'list', 'operand', 'an operand that is not taken');
it(2, 'show', 'Website', 'an id that is none');
it(2, 'edit', '01a21bd5-0e87-7f39-bc02-6174cb7ad66b', '--as', 'alice', 'no change');
it(2, 'edit', '01a21bd5-0e87-7f39-bc02-6174cb7ad66b', '--suspend', '--resume', 'two that exclude each other');
it(2, 'revoke', '01a21bd5-0e87-7f39-bc02-6174cb7ad66b', 'no label and no terminal');
it(3, 'check', '--unknown', 'a plugin has status 3 for arguments');
it(3, 'list', '-p', '1', 'no connection');
like((it(3, 'check', '-p1', 'no connection for the plugin'))[0], qr/^APITOKEN UNKNOWN/, 'says so');
it(1, 'show', '01a21bd5-0e87-7f39-bc02-6174cb7ad66b', 'no such token');
it(1, 'edit', '01a21bd5-0e87-7f39-bc02-6174cb7ad66b', '--suspend', 'no such token to edit');
it(1, 'revoke', '01a21bd5-0e87-7f39-bc02-6174cb7ad66b', '--yes', 'x', 'no such token to revoke');
it(1, 'list', '-d', 'postgres', 'no extension');
my (undef, $refused) = it(1, 'create', 'soon', '--user', 'u', '--expires-in', '30', 'refused by the server');
like($refused, qr/\AERROR:  22023: .*\nHINT:  .*'30 days'.*\n\z/, 'with SQLSTATE and hint, and nothing else');
it(1, 'list', '--status', 'activ', 'an unknown status');
it(0, 'list', '--dbname=service=tokens', '--limit=1', 'a service', { env => { PGDATABASE => 'nowhere' } });
it(0, '-d', 'app', 'list', 'an option before the command', { env => { PGDATABASE => 'nowhere' } });

# ---- what users write reaches SQL as it is

my @labels = ("it's", 'back\\slash', '\\', "\\'; SELECT 1/0 --", "'; SELECT 1/0; --", '"quoted"', '$$dollar$$', '\\! touch PWNED', '\\gexec', '\\.', ':label', ":'yes'", ':"id"',
	':{?id}', '$(touch PWNED)', '`touch PWNED`', '; touch PWNED;', '*', '%s%n', '-n', '--json', '--', '-v', '=', '{a,b}', '{"a":1}', "E'\\x41'", "\x{fc}n\x{ef}\x{2713}\x{1f600}", 'NULL', '0');
my $evil = q{CREATE SCHEMA evil; } . join(' ', map { "CREATE FUNCTION evil.$_ RETURNS text LANGUAGE plpgsql AS \$\$BEGIN RAISE EXCEPTION 'evil'; END\$\$;" }
	'lower(text)', 'strpos(text, text)', 'concat(text, text, text)', 'now()', 'json_agg(json)', 'coalesce2(text)', 'to_json(anyelement)', 'date_trunc(text, timestamptz)', 'act_as(text)')
	. q{CREATE FUNCTION evil.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'evil'; END$$;
	CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same); GRANT USAGE ON SCHEMA evil TO PUBLIC;};
$node->safe_psql('app', $evil);
append_to_file("$place/psqlrc", "\\echo PSQLRC\n\\set ON_ERROR_STOP off\n\\set id nothing\n");
mkdir "$place/home";
append_to_file("$place/home/.psqlrc", "\\echo PSQLRC\n");
my $options = '-c search_path=evil,pg_catalog,apitoken -c DateStyle=SQL,DMY -c bytea_output=escape';
$options .= ' -c standard_conforming_strings=off -c backslash_quote=on' if $node->pg_version < 19;
my $hostile = { env => { PGOPTIONS => $options, PSQLRC => "$place/psqlrc", HOME => "$place/home", CDPATH => '/', IFS => 'aeiou/', ENV => "$place/psqlrc",
		PSQL_HISTORY => "$place/history", COLUMNS => '1', POSIXLY_CORRECT => '1', PAGER => 'touch PWNED',
		given => 'if-absent', list => 'x', plain => '1', text => 'x', where => 'false', limit => 'LIMIT 0', owner => 'x',
		columns => 'x', span => '1', values_permission => 'x', values_network => 'x', options => 'x', command => 'x', name => 'x', value => 'x' } };
my $here = getcwd();
chdir $place or die;
my ($n, @wrong) = (0);
foreach my $label (@labels)
{
	utf8::encode(my $bytes = $label);
	my $user = 'user' . ++$n;
	my ($status, $out) = call('create', '--user', $user, '--description', $bytes, '--json', '--', $bytes, $hostile);
	my $made = $status == 0 ? decode_json($out) : {};
	my $id = $made->{id} // 'none';
	push @wrong, "create $bytes: $status" unless $made->{created} && $made->{token} =~ /^apt_usr_\w{71}$/;
	($status, $out) = call('create', '--user', $user, '--if-absent', '--json', '--', $bytes, $hostile);
	push @wrong, "if-absent $bytes" unless $status == 0 && decode_json($out)->{id} eq $id && $out =~ /"created" : false, .*"token" : null/;
	($status, $out) = call('list', "--user=$user", "--label=$bytes", '--json', $hostile);
	my ($row) = $status == 0 ? @{ decode_json($out) } : ();
	push @wrong, "list $bytes" unless defined $row && $row->{label} eq $label && $row->{description} eq $label;
	($status, $out) = call('verify', '--json', { %$hostile, in => $made->{token} });
	push @wrong, "verify $bytes" unless $status == 0 && decode_json($out)->{label} eq $label;
	($status) = call('revoke', $id, "--yes=x$bytes", $hostile);
	push @wrong, "another label than $bytes" unless $status == 1;
	($status) = call('revoke', $id, "--yes=$bytes", "--reason=$bytes", $hostile);
	push @wrong, "revoke $bytes" unless $status == 0;
}
is(join("\n", @wrong), '', 'labels are what they are');
foreach my $arguments ([ 'events', '--since', '1 day' ], [ 'list', '--all' ], ['check'], [ 'show', $node->safe_psql('app', 'SELECT max(id::text) FROM apitoken.tokens') ])
{
	my ($out) = it($arguments->[0] eq 'check' ? 1 : 0, @$arguments, "$arguments->[0] in a hostile session", $hostile);
	unlike($out, qr/PSQLRC/, 'without psqlrc');
}
is(join(' ', grep { -e "$place/$_" } qw(PWNED history)), '', 'nothing was executed, and there is no history');
chdir $here or die;

# other values than labels, and what is refused
foreach my $bad ([ 'invalid UTF-8', "\xff\xfe" ], [ 'half a character', "x\xc3" ], [ 'a label of 100 kB', 'x' x 100_000 ], [ 'a line break', "a\nb" ], [ 'a control character', "\e[2J" ], [ 'nothing', '' ])
{
	my ($name, $label) = @$bad;
	my ($out, $err) = it(1, 'create', '--user', 'bad', '--json', '--', $label, "$name in a label");
	is($out, '', 'prints nothing');
}
it(1, 'create', 'x', '--user', 'bad', "--$_", "'); DROP TABLE apitoken.events; --", "hostile $_")
  foreach qw(role access permission expires-in network rate-limit quota quota-period metadata);
is($node->safe_psql('app', q{SELECT count(*) FROM apitoken.tokens WHERE user_id = 'bad'}), '0', 'no token was made');
it(0, 'list', '--org', "x' OR true --", '--as', "' OR true", 'hostile ids');
is((it(0, 'list', '--org', "x' OR 'a' = 'a", '--ids', 'a hostile organization'))[0], '', 'finds nothing');
{
	my $made = json('create', "\xfc", '--user', 'latin', '--json', 'a label in LATIN1', { env => { PGCLIENTENCODING => 'LATIN1' } });
	is($node->safe_psql('app', qq{SELECT label FROM apitoken.tokens WHERE id = '$made->{id}'}), "\xc3\xbc", 'is stored as what it is');
	$made = json('create', "\xc3\xbc", '--user', 'c', '--json', 'a label without a locale', { env => { LC_ALL => 'C' } });
	is($node->safe_psql('app', qq{SELECT label FROM apitoken.tokens WHERE id = '$made->{id}'}), "\xc3\xbc", 'is stored as its bytes');
}

# ---- edit

$node->safe_psql('app', q{
	CREATE ROLE regress_apitoken_backend LOGIN; SELECT apitoken.allow('regress_apitoken_backend', 'act', 'manage', 'verify');
	CREATE ROLE regress_apitoken_stranger LOGIN;
	CREATE ROLE regress_apitoken_monitor LOGIN; SELECT apitoken.allow('regress_apitoken_monitor', 'monitor')});
my $backend = { env => { PGUSER => 'regress_apitoken_backend' } };

{
	my $id = json('create', 'edited', '--org', 'acme', '--json', 'a token to edit')->{id};
	my $all = json('edit', $id, '--label', 'new', '--description', 'd', '--role', 'admin', '--permission', 'a:b', '--permission', 'c:*', '--network', '10.0.0.0/8',
		'--rate-limit', '60', '--quota', '5', '--quota-period', 'day', '--metadata', '{"a":1}', '--expires-in', '30 days', '--suspend', '--json', 'everything at once');
	is(join('|', (map { $all->{$_} } qw(label description role access rate_limit_per_minute quota quota_period status)), @{ $all->{permissions} }, @{ $all->{allowed_networks} }, $all->{metadata}{a}),
		'new|d|admin|custom|60|5|day|suspended|a:b|c:*|10.0.0.0/8|1', 'is changed');
	$all = json('edit', $id, '--access', 'full', map({ "--no-$_" } qw(description expiry network rate-limit quota)), '--resume', '--json', 'and removed');
	is(join(' ', grep { defined $all->{$_} } qw(description expires_at allowed_networks rate_limit_per_minute quota quota_period suspended_at permissions)), '', 'nothing of it is left');
	my $suspended = json('edit', $id, '--suspend', '--json', 'suspended')->{suspended_at};
	is(json('edit', $id, '--suspend', '--json', 'and once more')->{suspended_at}, $suspended, 'since the first time');
	it(1, 'create', 'new', '--org', 'acme', '--if-absent', 'a suspended token is not usable');
	it(2, 'edit', $id, '--expires-in', '30', 'a duration without a unit');
	it(1, 'edit', $id, '--expires-at', 'yesterday', '--label', 'past', '--as', 'alice', 'a time in the past', { env => { PGUSER => 'regress_apitoken_backend' } });
}

# ---- who may

is((it(0, 'list', '--ids', 'a backend without an identity', $backend))[0], '', 'sees nothing');
like((it(0, 'list', '--as', 'alice', 'as a member', $backend))[0], qr/ acme /, 'it sees the tokens of the organization');
unlike((it(0, 'list', '--as', 'alice', '--all', 'as a member', $backend))[0], qr/ user1 /, 'and nobody else\'s');
it(1, 'create', 'not mine', '--org', 'acme', '--as', 'user1', 'a stranger to the organization', $backend);
it(0, 'create', 'mine', '--as', 'user1', 'a personal token', $backend);
{
	my $mine = json('create', 'mine', '--as', 'user1', '--if-absent', '--json', 'once more', $backend);
	ok(!$mine->{created}, 'it exists');
	it(1, $_->[0], $mine->{id}, @{$_}[1 .. $#$_], '--as', 'alice', "another's token: $_->[0]", $backend)
	  foreach [ 'show' ], [ 'edit', '--suspend' ], [ 'edit', '--end-overlap' ], [ 'regenerate' ], [ 'revoke', '--yes', 'mine' ];
	is(json('show', $mine->{id}, '--json', 'it')->{status}, 'active', 'is as it was');
}
foreach my $arguments ([ 'list' ], [ 'list', '--as', 'alice' ], [ 'create', 'x', '--user', 'u' ], [ 'events' ])
{
	like((it(1, @$arguments, "a login without a capability: @$arguments", { env => { PGUSER => 'regress_apitoken_stranger' } }))[1], qr/42501/, 'is told why');
}
it(3, 'check', 'a login without monitor', { env => { PGUSER => 'regress_apitoken_stranger' } });
like((it(1, 'check', 'a login with monitor', { env => { PGUSER => 'regress_apitoken_monitor' } }))[0], qr/\AAPITOKEN WARNING - errors: 0 warnings: \d+ notices: \d+\nwarning: logs: .*\n    \S/, 'sees the findings and the hints');
is(ref decode_json((it(1, 'check', '--json', 'the findings as JSON'))[0]), 'ARRAY', 'an array');

# ---- secrets

my $secret = json('create', 'secret', '--user', 'keeper', '--json', 'a secret');
my $text = $secret->{token};
my $core = substr $text, 40, 20;
my $verify_is = sub { my ($status, $name, $how, @arguments) = @_; return it($status, 'verify', @arguments, $name, { %{ $how // {} }, in => $how->{in} // "$text\n" }); };
$verify_is->(0, 'a text');
$verify_is->(0, 'without a line break', { in => $text });
$verify_is->(0, 'with another line break', { in => "  $text\r\n\n" });
$verify_is->(0, 'explained', undef, '--explain');
foreach my $bad ([ 'nothing', '' ], [ 'two', "$text\n$text\n" ], [ 'another character', "$text'" ], [ 'a statement', "'); SELECT 1/0; --" ], [ 'the end of COPY', "\\.\n$text" ], [ 'the end of COPY alone', '\\.' ],
	[ 'a command', "\\! touch $place/PWNED" ], [ 'NUL', "\0$text" ], [ 'invalid UTF-8', "\xff\xfe" ], [ 'many lines', "\n" x 10_000 ])
{
	my ($name, $in) = @$bad;
	like(($verify_is->(4, "$name instead of a text", { in => $in }))[0], qr/^verdict +\| malformed$/m, 'is malformed');
}
ok(!-e "$place/PWNED", 'nothing was executed');
foreach my $large ("$text " . 'x' x 1_000_000, 'x' x 1_000_000)
{
	# only its beginning is read
	unlink "$place/large";
	append_to_file("$place/large", $large);
	my $out = '';
	IPC::Run::run([ $command, 'verify' ], '<', "$place/large", '>', \$out);
	is(($? >> 8) . ($out =~ /malformed/ ? ' malformed' : ''), '4 malformed', 'a megabyte is malformed');
}

# arguments that have a text are refused, and not repeated
foreach my $arguments ([ 'verify', $text ], [ 'verify', "--json=$text" ], [ $text ], [ 'create', "x $text" ], [ 'create', 'x', '--description', $text ], [ 'show', $text ], [ 'list', '--', $text ],
	[ 'list', '--label', uc $text ], [ 'list', "--$text" ], [ 'verify', substr($text, 0, 39) ], [ '-h', $text, 'list' ], [ 'revoke', $secret->{id}, '--yes', $text ])
{
	my ($out, $err) = it(2, @$arguments, 'a text in an argument');
	my $id = substr $text, 8, 22;
	unlike($out . $err, qr/\Q@{[ substr $text, 8, 22 ]}\E/i, 'is not repeated');
}
it(0, 'list', '--label', $secret->{masked}, 'a masked text is no secret');
like((it(1, 'revoke', $secret->{id}, '--yes', 'nothing', 'another label'))[1], qr/not the label/, 'is told');

# where the text may be while it is verified: the verification waits for a lock
append_to_file("$place/text", "$text\n");
foreach my $how ([ 'main', {} ], [ 'a superuser who may not write', { PGOPTIONS => '-c default_transaction_read_only=on' } ])
{
	my ($name, $env) = @$how;
	my $masked = $name ne 'main';
	configure($node, 'apitoken.mask_logs', $masked ? 'on' : 'off');
	my $log = log_mark($node);
	my $lock = connection($node, database => 'app');
	ask($lock, 'BEGIN; LOCK TABLE apitoken_internal.token_records IN ACCESS EXCLUSIVE MODE');
	my ($out, $err) = ('', '');
	local %ENV = (%ENV, %$env, TMPDIR => "$place/home");
	my $verification = IPC::Run::start([ $command, 'verify' ], '<', "$place/text", '>', \$out, '2>', \$err);
	$node->poll_query_until('app', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'apitoken' AND wait_event_type = 'Lock'});
	my @found;
	foreach my $file (glob '/proc/[0-9]*/cmdline /proc/[0-9]*/environ')
	{
		# our own environment is of before; processes of others cannot be read
		open my $handle, '<:raw', $file or next;
		my $content = do { local $/; <$handle> } // '';
		push @found, $file if index($content, $core) >= 0;
	}
	push @found, map { "view: $_" } grep { /$core/ } $node->safe_psql('app', 'SELECT query FROM pg_stat_activity UNION ALL SELECT name || setting FROM pg_settings');
	push @found, `grep -rlF -e $core '$place/home' '${\ $node->data_dir }' 2>/dev/null`;
	is(join(' ', @found), '', "$name: while a text is verified, no process, view or file has it");
	ask($lock, 'ROLLBACK');
	$lock->quit;
	$verification->finish;
	like($out, qr/^verdict +\| valid$/m, "$name: it is valid") or diag($err);
	unlike(log_since($node, $log), qr/$core/, "$name: nor has the log");
	like(log_since($node, $log), qr/apitoken\.verify/, "$name: which has the statement");
}
unlike($node->safe_psql('app', 'CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT query FROM pg_stat_statements'), qr/$core/, 'nor have the statistics of statements');
unlike(slurp_file($node->logfile), qr/_(usr|org)_[0-9A-Za-z]{71}/, 'the log has no text at all');

# where no temporary table can be made, masking is needed
configure($node, 'apitoken.mask_logs', 'off');
$node->safe_psql('app', 'REVOKE TEMPORARY ON DATABASE app FROM PUBLIC');
like(($verify_is->(1, 'no privilege and no masking', $backend))[1], qr/the text would be in the log/, 'is refused');
configure($node, 'apitoken.mask_logs', 'on');
$verify_is->(0, 'no privilege', $backend);
$verify_is->(4, 'no privilege and no text', { %$backend, in => "x'y" });
$node->safe_psql('app', 'GRANT TEMPORARY ON DATABASE app TO PUBLIC');
$node->backup('base');
my $standby = start_standby($node, 'standby', conf => "listen_addresses = ''");
$node->wait_for_catchup($standby);
{
	local $ENV{PGHOST} = $standby->host;
	local $ENV{PGPORT} = $standby->port;
	$verify_is->(0, 'on a standby');
	it(0, 'list', 'a list on a standby');
	it(0, 'show', $secret->{id}, 'one token on a standby');
	like((it(1, 'create', 'x', '--user', 'u', 'no creation on a standby'))[1], qr/25006/, 'says why');
	unlike(slurp_file($standby->logfile), qr/$core/, 'the log has no text');
}
$standby->stop;

# ---- tokens of another system

{
	use Digest::SHA qw(sha256_hex);
	my @digests = map { sha256_hex(sprintf '%040d', $_) } 1 .. 20;
	my $rows = sub { return { in => join('', map { "$_\n" } @_) } };
	my $imported = sub { return $node->safe_psql('app', q{SELECT count(*) FROM apitoken.tokens WHERE imported_as IS NOT NULL}) };
	my $before = $imported->();

	my ($out) = it(0, 'import', 'sanctum', '--org', 'acme', '--role', 'admin', '--json', 'tokens of another system',
		{ in => "\xef\xbb\xbfmetadata,stored,\"lookup_key\",label,access,permissions,user_id,expires_at,revoked_at\r\n"
			. qq|"{""from"": ""there""}",$digests[0],1,"one, '; \\\\! touch PWNED :label ""quoted""",,,,2050-01-01,\r\n|
			. qq|,$digests[1],2,two,custom,"{article:read,article:list}",,,2020-02-29\r\n|
			. qq|,$digests[2],3,three,,,u,,| });
	my @rows = @{ decode_json($out) };
	is(join(' ', map { $_->{row} } @rows), '1 2 3', 'each row is told');
	is($node->safe_psql('app', "SELECT string_agg(concat_ws('|', label, organization_id, user_id, role, access, permissions, metadata, extract(year FROM expires_at), revoked_at IS NOT NULL), E'\\n' ORDER BY id) FROM apitoken.tokens WHERE id IN ("
			. join(', ', map { "'$_->{id}'" } @rows) . ')'),
		join("\n", q(one, '; \\\\! touch PWNED :label "quoted"|acme|admin|full|{"from": "there"}|2050|f), 'two|acme|admin|custom|{article:read,article:list}|{}|t', 'three|u|full|{}|f'), 'they are as the rows say')
		or diag($out);
	is($imported->(), $before + 3, 'no others are imported');
	($out) = it(0, 'import', 'sanctum', '--user', 'u', '--permission', 'article:read', '--permission', 'article:list', 'with permissions', $rows->('stored,lookup_key', "$digests[3],4"));
	like($out, qr/imported\D+1\b/, 'how many');
	it(0, 'import', 'sanctum', '--user', 'u', 'no rows', $rows->('stored'));

	# all or nothing, and the error names the row
	my (undef, $error) = it(1, 'import', 'sanctum', '--org', 'acme', 'again', $rows->('stored,lookup_key', "$digests[4],5", "$digests[0],1"));
	like($error, qr/23505.*row 2: /, 'it was imported before');
	like($error, qr/DETAIL: .*No token was imported/, 'so nothing is');
	foreach my $case (
		[ 1, 'no owner', $rows->('stored,lookup_key', "$digests[4],5") ],
		[ 1, 'a digest that is none', $rows->('stored,lookup_key,user_id', "$digests[4],5,u", 'x,6,u') ],
		[ 1, 'permissions that are no array', $rows->('stored,lookup_key,user_id,permissions', "$digests[4],5,u,article:read") ],
		[ 1, 'too many fields', $rows->('stored,user_id', "$digests[4],u,x") ],
		[ 1, 'too few fields', $rows->('stored,user_id', $digests[4]) ],
		[ 1, 'an open quote', $rows->('stored,user_id', qq("$digests[4],u)) ],
		[ 1, 'a backend', { %$backend, %{ $rows->('stored,lookup_key,user_id', "$digests[4],5,u") } } ],
		[ 2, 'no input', $rows->() ],
		[ 2, 'no names of columns', $rows->("$digests[4],u") ],
		[ 2, 'a column that is not known', $rows->('stored,id', "$digests[4],1") ],
		[ 2, 'SQL as a column', $rows->('stored) FROM PROGRAM $$touch PWNED$$ --', $digests[4]) ],
		[ 2, 'a column twice', $rows->('stored,user_id,stored', "$digests[4],u,1") ],
		[ 2, 'a column too few', $rows->('user_id', 'u') ],
		[ 2, 'an empty name', $rows->('stored,,user_id', "$digests[4],,u") ])
	{
		my ($status, $what, $how) = @$case;
		my ($said, $why) = it($status, 'import', 'sanctum', $what, $how);

		is($said, '', "$what: no answer");
		isnt($why, '', "$what: says why");
		unlike($why, qr/$digests[4]/, "$what: without the digest");
	}
	it(1, 'import', 'nothing', '--user', 'u', 'an unknown format', $rows->('stored,lookup_key', "$digests[4],5"));
	it(2, 'import', 'no format', $rows->('stored', $digests[4]));
	it(2, 'import', 'sanctum', '--user', 'u', '--org', 'acme', 'two owners', $rows->('stored', $digests[4]));
	is($imported->(), $before + 4, 'nothing of all that is imported');
	ok(!-e "$place/PWNED" && !-e 'PWNED', 'nothing was executed');

	$node->safe_psql('postgres', q{ALTER SYSTEM SET apitoken.imported_formats = 'sanctum'; SELECT pg_reload_conf()});
	$node->poll_query_until('app', q{SELECT current_setting('apitoken.imported_formats', true) = 'sanctum'}) or die;
	($out) = it(0, 'verify', '--json', 'a text of the other system', { in => sprintf "1|%040d\n", 1 });
	is(decode_json($out)->{token_id}, $rows[0]{id}, 'is that of the token');
}

# ---- tokens in files

{
	my ($name, $other) = ("two\nlines '; \\! touch PWNED :id", '--json');
	chdir $place or die;
	append_to_file($name, "first\r\n\0\xff<a href='$text'>$text</a>\nX_$text\n");
	append_to_file($other, "$secret->{masked} " . substr($text, 0, 78) . ($text =~ /a\z/ ? 'b' : 'a') . "\n\\.\n" . 'x' x 100_000);
	my ($out) = it(4, 'grep', '--json', '--', $name, $other, 'texts in files', $hostile);
	my @found = $out eq '' ? () : @{ decode_json($out) };
	is(join(' ', map { join(':', @{$_}{qw(line masked label status)}) } grep { $_->{file} eq $name } @found[ 0, 1 ]),
		join(' ', ("2:$secret->{masked}:secret:active") x 2), 'are found, masked');
	is(scalar(grep { $_->{file} ne $name } @found), 0, 'what only looks like one is not');
	unlike($out, qr/$core/, 'no text is shown');
	it(0, 'grep', '--', $other, 'no text in a file');
	it(4, 'grep', 'a text in standard input', { in => "x=$text" });
	it(0, 'grep', 'nothing in standard input');
	it(1, 'grep', 'missing', 'a file that is missing');
	it(1, 'grep', '.', 'a directory');
	it(1, 'grep', 'a backend', { %$backend, in => $text });
	ok(!-e 'PWNED', 'nothing was executed');
	unlike(slurp_file($node->logfile), qr/$core/, 'the log has no text');
	chdir $here or die;
}

# a text that cannot be written is not taken for delivered
SKIP: {
	skip 'no /dev/full', 2 unless -c '/dev/full';
	my $err = '';
	IPC::Run::run([ $command, 'create', 'lost', '--user', 'keeper' ], '>', '/dev/full', '2>', \$err);
	is($? >> 8, 1, 'an output that is full');
	like($err, qr/could not be written/, 'is told');
}

# ---- at the same time

{
	my @running = map {
		my ($out, $err) = ('', '');
		my @streams = (\$out, \$err);
		[ IPC::Run::start([ $command, 'create', 'only one', '--org', 'acme', '--if-absent', '--json' ], '<', \undef, '>', $streams[0], '2>', $streams[1]), \$out, \$err ];
	} 1 .. 8;
	my ($made, %ids) = (0);
	foreach my $one (@running)
	{
		$one->[0]->finish;
		my $answer = $one->[0]->result == 0 ? decode_json(${ $one->[1] }) : { id => ${ $one->[2] } };
		$ids{ $answer->{id} } = 1;
		$made++ if $answer->{created};
	}
	is($made . ' ' . keys %ids, '1 1', 'eight at once make one token, and all know it');
}

# ---- shells

foreach my $shell ([ 'dash' ], [ 'bash', '--posix' ], [ 'bash' ], [ 'bash', '-x' ], [ 'busybox', 'sh' ], [ 'ksh' ], [ 'mksh' ], [ 'zsh', '--emulate', 'sh' ])
{
  SKIP: {
		skip "$shell->[0] is not installed", 3 if system("command -v $shell->[0] >/dev/null") != 0;
		my $label = "by @$shell \\e '";
		my ($status, $out, $err) = call('create', $label, '--org', 'acme', '--json', { by => $shell });
		# mksh has no printf of its own
		skip "@$shell: $err", 3 if $err =~ /no printf of its own/;
		my $made = $status == 0 ? decode_json($out) : {};
		like($made->{token} // $err, qr/^apt_org_\w{71}$/, "@$shell: create");
		($status, $out, $err) = call('verify', '--json', { by => $shell, in => $made->{token} // '' });
		is($status == 0 ? decode_json($out)->{label} : $err, $label, "@$shell: verify");
		my $shown = substr $made->{token} // 'x' x 80, 31, 40;
		unlike($err, qr/$shown/, "@$shell: shows no text");
	}
}
{
	my ($out, $err) = it(0, 'create', 'traced', '--org', 'acme', '--json', 'a traced shell', { by => [ 'bash', '--posix' ], env => { SHELLOPTS => 'xtrace' } });
	my $traced = decode_json($out)->{token};
	unlike($err, qr/\Q$traced\E/, 'shows no text');
}

# ---- a terminal

SKIP: {
	skip 'IO::Pty is not installed', 8 unless eval { require IO::Pty; 1 };
	my ($in, $out) = ('', '');
	my $ask = sub {
		my ($arguments, $prompt, $answer) = @_;
		($in, $out) = ('', '');
		my $timer = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
		my $run = IPC::Run::start([ $command, @$arguments ], '<pty<', \$in, '>pty>', \$out, $timer);
		$run->pump until $out =~ /$prompt/;
		$in .= "$answer\n";
		$run->finish;
		return $run->result || 0;
	};
	is($ask->(['verify'], 'Text of the token: ', $text), 0, 'a text that is typed');
	like($out, qr/verdict +\| valid/, 'is verified');
	unlike($out, qr/$core/, 'and not shown');
	my $id = json('create', 'typed', '--org', 'acme', '--json', 'a token to revoke')->{id};
	is($ask->([ 'revoke', $id ], 'Type its label', 'Typed'), 1, 'another label that is typed');
	is(json('show', $id, '--json', 'the token')->{status}, 'active', 'revokes nothing');
	is($ask->([ 'revoke', $id ], 'Type its label', 'typed'), 0, 'the label that is typed');
	like($out, qr/label +\| typed\r?\nowner +\| acme/, 'after the token was shown');
	is(json('show', $id, '--json', 'the token')->{status}, 'revoked', 'revokes');
	is((it(0, 'revoke', $id, '--yes', 'typed', 'once more'))[1], "apitoken: token $id was revoked before\n", 'is no error');
}

# ---- completion

{
	my $completion = $place . $node->config_data('--sharedir') . '/bash-completion/completions/apitoken';
	my $complete = sub {
		my $words = join(' ', map { "'$_'" } @_);
		my $last = $#_;
		return `bash -c "source '$completion'; COMP_WORDS=($words); COMP_CWORD=$last; _apitoken apitoken; echo \\"\\\${COMPREPLY[*]}\\"" 2>&1` =~ s/\n\z//r;
	};
	is($complete->('apitoken', 're'), 'regenerate revoke', 'completes a command');
	is($complete->('apitoken', 'revoke', '--'), '--yes --reason --as --host --port --username --dbname --no-password --help', 'its options');
	is($complete->('apitoken', '-d', 'app', 'create', '--access', 'r'), 'read_only', 'a value');
	is($complete->('apitoken', 'help', 'ch'), 'check', 'the command to help with');
	is($complete->('apitoken', '--dbn'), '--dbname', 'an option before the command');
}

no_crash($node);
$node->stop;
done_testing();
