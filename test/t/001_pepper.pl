# Peppers: which one signs, and which ones verify.  A file that cannot be used is
# an error whenever it is needed, and never a silent fall-back.

use strict;
use warnings;

use ApitokenTest;
use Digest::SHA qw(hmac_sha256_hex sha256_hex);
use POSIX qw(mkfifo);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $vectors = 'test/vectors/token_text_valid.tsv';
my $vector_key = ('00' x 31) . '01';
my $key1 = 'c0ffee' x 10 . 'a1';
my $key2 = 'facade' x 10 . 'b2';
my $key3 = 'decade' x 10 . 'c3';
my @keys = ($key1, $key2, $key3, 'beef' x 8);

my $node = start_node('pepper', conf => 'max_connections = 10');
my $place = PostgreSQL::Test::Utils::tempdir_short();
my $file = "$place/peppers";
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	-- what a statement answers, or SQLSTATE, message, detail and hint
	CREATE FUNCTION public.outcome(statement text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE
		value text; state text; message text; detail text; hint text;
	BEGIN
		EXECUTE statement INTO value;
		RETURN value;
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
			detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RETURN state || ' ' || message || ' ' || detail || ' HINT ' || hint;
	END $$;
	CREATE ROLE regress_apitoken_plain LOGIN;
	GRANT EXECUTE ON FUNCTION apitoken.hash(text) TO regress_apitoken_plain;
});

# the answer of each statement, in one session of its own
sub outcomes
{
	my @statements = @_;
	my $sql = join("\n", map { "SELECT coalesce(public.outcome(\$_\$$_\$_\$), 'null');" } @statements);
	my ($rc, $out, $err) = $node->psql('postgres', $sql);
	die "outcomes: $err" if $rc != 0;
	return split /\n/, $out;
}
sub outcome { return (outcomes(@_))[0]; }

# Replace the file by a new one of the same name, as an administrator should.
sub write_file
{
	my ($content, $mode) = @_;
	unlink "$file.new";
	open my $fh, '>', "$file.new" or die "$file.new: $!";
	binmode $fh;
	print $fh $content;
	close $fh;
	chmod($mode // 0600, "$file.new");
	rename "$file.new", $file or die "rename: $!";
}

# The setting is set by the configuration file and a reload, without a restart.
my $path = '';
sub pepper_file
{
	my ($name) = @_;
	$path = $name;
	configure($node, 'apitoken.pepper_file', $name);
}

my $acme = q{organization_id => 'acme'};
sub scheme
{
	my ($label) = @_;
	return $node->safe_psql('postgres',
		"SELECT digest_scheme, encode(digest, 'hex') FROM apitoken_internal.token_records WHERE label = '$label'");
}

$node->safe_psql('postgres', q{INSERT INTO apitoken.organizations VALUES ('acme')});

# ----- what is computed --------------------------------------------------------

# without a pepper: scheme 0
my $token0 = create($node, 'zero', $acme);
is(scheme('zero'), '0|' . sha256_hex($token0), 'no pepper file: SHA-256');

# hash() is HMAC-SHA-256 under the published key for every published token
write_file("1:$vector_key\n");
pepper_file($file);
open my $fh, '<', $vectors or die "$vectors: $!";
my ($header, @lines) = <$fh>;
close $fh;
my (@tokens, @expected);
foreach (@lines)
{
	chomp;
	my @columns = split /\t/;
	push @tokens, "SELECT encode(apitoken.hash('$columns[0]'), 'hex')";
	push @expected, $columns[5];
}
cmp_ok(scalar(@tokens), '>', 5, 'there are vectors');
is_deeply([ outcomes(@tokens) ], \@expected, 'hash() equals the published HMAC of every vector');

# ----- the highest signs, the others verify; no reload, no new session ---------

write_file("1:$key1\n");
my $token1 = create($node, 'one', $acme);
is(scheme('one'), '1|' . hmac_sha256_hex($token1, pack('H*', $key1)), 'pepper 1 signs');

my $session = $node->background_psql('postgres', on_error_stop => 0);
sub in_session
{
	my ($sql) = @_;
	my $out = $session->query("SELECT coalesce(public.outcome(\$_\$$sql\$_\$), 'null');");
	chomp $out;
	return $out;
}
sub hash_of { return "SELECT encode(apitoken.hash('$_[0]'), 'hex')"; }

is(in_session(hash_of($token1)), hmac_sha256_hex($token1, pack('H*', $key1)), 'a session under pepper 1');
$session->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
# the highest number, not the last line
write_file("# the new one comes first\n2:$key2\n1:$key1\n");
is(in_session(hash_of($token1)), hmac_sha256_hex($token1, pack('H*', $key2)),
	'a second pepper signs at once in a session and a transaction that began before');
is(in_session(verdict($token1)), 'valid', 'and the first one still verifies there');
$session->query('COMMIT');
my $token2 = create($node, 'two', $acme);
is(scheme('two'), '2|' . hmac_sha256_hex($token2, pack('H*', $key2)), 'pepper 2 signs new tokens');
is_deeply([ outcomes(map { verdict($_) } $token0, $token1, $token2) ], [ 'valid', 'valid', 'valid' ],
	'schemes 0, 1 and 2 verify side by side');

# appended to in place, and removed from in place
open $fh, '>>', $file or die;
print $fh "3:$key3\n";
close $fh;
is(in_session(hash_of($token1)), hmac_sha256_hex($token1, pack('H*', $key3)), 'a line appended in place is seen');
write_file("1:$key1\n2:$key2\n");
is(in_session(hash_of($token1)), hmac_sha256_hex($token1, pack('H*', $key2)), 'and its removal, too');

# a changed key of the same length under the same number
write_file("1:$key1\n2:$key3\n");
is_deeply([ in_session(verdict($token2)), in_session(verdict($token1)) ], [ 'unknown', 'valid' ],
	'another key under the same number does not verify what the old one signed');
write_file("1:$key1\n2:$key2\n");
is(in_session(verdict($token2)), 'valid', 'with the old key it does again');

# regeneration moves to the newest pepper; the old secret keeps its own scheme
my $old = create($node, 'moves', $acme);
write_file("1:$key1\n2:$key2\n3:$key3\n");
my $new = outcome(q{SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken_internal.token_records WHERE label = 'moves'), overlap => '1 hour')});
is(scheme('moves'), '3|' . hmac_sha256_hex($new, pack('H*', $key3)), 'regenerate_token moves a token to the newest pepper');
is($node->safe_psql('postgres', q{SELECT previous_digest_scheme FROM apitoken_internal.token_records WHERE label = 'moves'}),
	'{2}', 'its previous digest keeps its scheme');
is_deeply([ outcomes(verdict($old), verdict($new)) ], [ 'valid', 'valid' ], 'both secrets verify');
write_file("3:$key3\n");
is(outcome(verdict($new)), 'valid', 'the new secret verifies without the old pepper');
like(outcome(verdict($old)), qr/^F0000 .*requires pepper 2.* HINT ./, 'the old secret without its pepper is an error');
my $new0 = outcome(q{SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken_internal.token_records WHERE label = 'zero'), overlap => '1 hour')});
is(outcome(verdict($token0)), 'valid', 'a previous digest of scheme 0 verifies under a pepper');
like(scheme('zero'), qr/^3\|/, 'and the new one is signed');

# ----- what cannot be used is an error at use ----------------------------------

# a token of scheme 0, and none
pepper_file('');
my $plain = create($node, 'plain', $acme);
pepper_file($file);
my $unknown = outcome(q{SELECT apitoken.generate('org')});
my $good = "1:$key1\n2:$key2\n3:$key3\n";

my %path_told;

# What must hold while the file is broken; $state is the SQLSTATE.
sub check_broken
{
	my ($what, $state, $message, $hint) = @_;
	$hint //= qr/./;
	my @needing = (
		hash_of($token1),
		q{SELECT token FROM apitoken.create_token('broken', organization_id => 'acme')},
		q{INSERT INTO apitoken.tokens (label, user_id) VALUES ('broken', 'u') RETURNING id},
		q{SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken_internal.token_records WHERE label = 'one'))},
		verdict($token1),
		verdict($new0),
		"SELECT apitoken.authenticate('$token1')",
		"SELECT apitoken.revoke_by_token('$token1')");
	my @others = (
		verdict($plain), verdict($unknown), verdict('garbage'), verdict(''),
		'SELECT verdict FROM apitoken.verify(NULL)',
		"SELECT kind FROM apitoken.parse('$token1')",
		"SELECT apitoken.revoke_by_token('$unknown')");
	my @got = outcomes(@needing, @others);
	my @errors = splice @got, 0, scalar(@needing);
	my @bad = grep { $_ !~ /^$state .*$message.* HINT ./ || $_ !~ /HINT .*$hint/ } @errors;
	is(scalar(@bad), 0, "$what: whatever needs a pepper raises $state with a hint")
	  or diag(join("\n", @bad));
	is_deeply(\@got, [ 'valid', 'unknown', 'malformed', 'malformed', 'malformed', 'organization', 'false' ],
		"$what: scheme 0 verifies, unknown and malformed texts do not raise");

	# in a session that had good peppers a moment ago as well
	like(in_session(hash_of($token1)), qr/^$state .*$message/, "$what: a running session forgets what it knew");
	my $shown = join("\n", @errors);
	my @leaks = grep { $shown =~ /$_/i } map { substr($_, 0, 12) } @keys;
	is_deeply(\@leaks, [], "$what: the message shows nothing of the content");

	# where the file is: the log tells, the callers do not learn it
	unlike($shown, qr/\Q$path\E/, "$what: the path is in no error");
	return if $path_told{$message}++;
	my $mark = log_mark($node);
	my ($rc, $out, $err) = $node->psql('postgres', "SET client_min_messages = debug5; SELECT apitoken.hash('$token1')",
		extra_params => [ '-U', 'regress_apitoken_plain', '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/$state: .*$message/, "$what: another login gets the error");
	unlike($err, qr/\Q$path\E/, "$what: without the path");
	like(log_since($node, $mark), qr/DETAIL: .*"\Q$path\E"/, "$what: the path is in the log");
}


# missing, unreadable, open to others
unlink $file;
check_broken('a missing file', '58P01', 'could not read pepper file', 'apitoken.pepper_file');
foreach my $mode (0000, 0200)
{
	write_file($good, $mode);
	check_broken(sprintf('mode %04o', $mode), '42501', 'could not read pepper file', 'apitoken.pepper_file');
}
foreach my $mode (0604, 0640, 0660, 0602, 0666, 0610, 0601)
{
	write_file($good, $mode);
	check_broken(sprintf('mode %04o', $mode), 'F0000', 'has group or world access', '0600');
}

# permissions that change under an unchanged file
write_file($good);
is(in_session(verdict($token1)), 'valid', 'usable again');
chmod 0644, $file;
check_broken('permissions opened afterwards', 'F0000', 'has group or world access', '0600');

# not a regular file
unlink $file;
mkdir $file;
check_broken('a directory', 'F0000', 'is not a regular file');
rmdir $file;
mkfifo($file, 0600) or die "mkfifo: $!";
check_broken('a pipe', 'F0000', 'is not a regular file');
unlink $file;
pepper_file('/dev/null');
check_broken('a device', 'F0000', 'is not a regular file');
pepper_file("$place/no/such/directory");
check_broken('a missing directory', '58P01', 'could not read pepper file');
pepper_file($file);
symlink("$place/nowhere", $file);
check_broken('a dangling link', '58P01', 'could not read pepper file');
unlink $file;

# too large, empty
write_file($good . '#' . ('x' x (64 * 1024 - length($good) - 2)) . "\n");
is(in_session(verdict($token1)), 'valid', '64 kB are not too large');
write_file($good . '#' . ('x' x (64 * 1024 - length($good) - 1)) . "\n");
check_broken('a byte more than 64 kB', 'F0000', 'is too large', 'bytes');
write_file('');
check_broken('an empty file', 'F0000', 'contains no pepper', 'openssl');
write_file("# 1:$key1\n\n");
check_broken('only comments', 'F0000', 'contains no pepper', 'openssl');

# every way to write a line wrong: the message gives the line number and no more
my %malformed = (
	'no number' => ":$key3",
	'no colon' => "4$key3",
	'no key' => '4:',
	'only a number' => '4',
	'number 0' => "0:$key3",
	'a negative number' => "-4:$key3",
	'number 32768' => "32768:$key3",
	'a number beyond 64 bits' => "18446744073709551617:$key3",
	'a word' => $key3,
	'a digit that is not hexadecimal' => '4:' . 'g' . substr($key3, 1),
	'a space before the number' => " 4:$key3",
	'a space after the colon' => "4: $key3",
	'a space in the key' => '4:' . substr($key3, 0, 40) . ' ' . substr($key3, 40),
	'a sign of its own (0x)' => "4:0x$key3",
	'an odd number of digits' => '4:' . substr($key3, 1),
	'15 bytes' => '4:' . 'ab' x 15,
	'129 bytes' => '4:' . 'ab' x 129,
	'a zero byte' => "4:" . substr($key3, 0, 40) . "\0" . substr($key3, 42),
	'a zero byte at the end' => "4:$key3\0",
	'two keys in a line' => "4:$key3 5:$key3",
	'a comment behind the key' => "4:$key3 # new",
	'an equals sign' => "4=$key3",
	'base64' => '4:3q2+796tvu/erb7v3q2+796tvu/erb7v3q2+7w==',
	'a letter of another script' => "4:$key3\xc3\xa9");
foreach my $what (sort keys %malformed)
{
	write_file("$good$malformed{$what}\n");
	check_broken($what, 'F0000', 'invalid line 4 in pepper file\b', 'hexadecimal');
}
write_file("\xef\xbb\xbf$good");
check_broken('a byte order mark', 'F0000', 'invalid line 1 in pepper file\b');
write_file("${good}2:$key3\n");
check_broken('a number twice', 'F0000', 'line 4 of pepper file repeats the number or name of an earlier line');
write_file($good . '4:' . substr($key3, 0, 20));
check_broken('a line cut off', 'F0000', 'invalid line 4 in pepper file\b');

# a file that is merely unusual is accepted
write_file("\r\n  \t\n# comment\r\n1:" . uc($key1) . "  \r\n02:$key2\t\n3:$key3");
is_deeply([ outcomes(map { verdict($_) } $token1, $token2, $new0) ], [ 'valid', 'valid', 'valid' ],
	'blank lines, comments, carriage returns, capitals and a missing last line feed are fine');
foreach my $key ('ab' x 16, 'cd' x 128)
{
	write_file("${good}32767:$key\n");
	is(outcome(hash_of($token1)), hmac_sha256_hex($token1, pack('H*', $key)),
		'a key of ' . length($key) / 2 . ' bytes under number 32767');
}
rename $file, "$place/elsewhere";
symlink("$place/elsewhere", $file);
is(outcome(verdict($token1)), 'valid', 'a link to a good file is fine');
unlink $file;

# a pepper is missing: only tokens that were signed under it are refused
write_file("2:$key2\n3:$key3\n");
is_deeply([ map { s/ DETAIL.*//r } outcomes(verdict($token2), verdict($plain)) ], [ 'valid', 'valid' ],
	'without pepper 1 the others work');
like($_, qr/^F0000 token digest requires pepper 1, which the pepper file does not contain +HINT .*1:key/,
	'and a token of pepper 1 is an error')
  foreach outcomes(verdict($token1), "SELECT apitoken.authenticate('$token1')", "SELECT apitoken.revoke_by_token('$token1')");
pepper_file('');
like($_, qr/^F0000 token digest requires pepper 1, but no pepper file is set .*HINT .*apitoken\.pepper_file/,
	'no file at all is an error for it, too')
  foreach outcomes(verdict($token1), "SELECT apitoken.authenticate('$token1')");
is_deeply([ outcomes(verdict($plain), verdict($unknown)) ], [ 'valid', 'unknown' ], 'and for nothing else');
pepper_file($file);

my @as_plain = (extra_params => [ '-U', 'regress_apitoken_plain', '-v', 'VERBOSITY=verbose' ]);
my ($rc, $out, $err);
my $load = "SELECT 1 FROM apitoken.hash('')";

# ----- apitoken.require_pepper -------------------------------------------------

sub require_pepper { configure($node, 'apitoken.require_pepper', $_[0]); }
sub regenerate { return outcome("SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken_internal.token_records WHERE label = '$_[0]'), overlap => '1 hour')"); }

write_file($good);
pepper_file('');
my $zero_then = create($node, 'zero then', $acme);
pepper_file($file);
my $then_pepper = regenerate('zero then');
my $pepper_then = create($node, 'pepper then', $acme);
pepper_file('');
my $then_zero = regenerate('pepper then');
pepper_file($file);
# who can write the table makes a row of scheme 0 for a text of their own
my $forged = outcome(q{SELECT apitoken.generate('org')});
$node->safe_psql('postgres', "INSERT INTO apitoken_internal.token_records (id, label, organization_id, role, access, created_at, updated_at, masked, digest, digest_scheme) SELECT (apitoken.parse('$forged')).id, 'forged', 'acme', 'admin', 'full', now(), now(), '', sha256('$forged'), 0");
my @all = ($plain, $forged, $zero_then, $then_pepper, $pepper_then, $then_zero, $token1, $unknown);

is_deeply([ outcomes(map { verdict($_) } @all) ], [ ('valid') x 7, 'unknown' ], 'off: rows choose their scheme');
is(outcome(q{SELECT count(*) FROM apitoken_internal.token_records WHERE revoked_at IS NULL AND (digest_scheme = 0 OR 0 = ANY (previous_digest_scheme))}),
	outcome(q{SELECT count(*) FROM apitoken_internal.token_records WHERE label IN ('plain', 'forged', 'zero then', 'pepper then', 'zero')}), 'rows of scheme 0 can be counted');
require_pepper('on');
is_deeply([ outcomes(map { verdict($_) } @all) ], [ 'unknown', 'unknown', 'unknown', 'valid', 'valid', 'unknown', 'valid', 'unknown' ],
	'required: scheme 0 is unknown, also as the previous one');
foreach my $zero ($plain, $forged, $zero_then, $then_zero)
{
	is_deeply([ map { s/ HINT.*//r } outcomes("SELECT apitoken.authenticate('$zero')", "SELECT apitoken.revoke_by_token('$zero')", "SELECT apitoken.introspect('$zero')",
			"SELECT set_config('apitoken.token', '$zero', true) || coalesce(apitoken.current_organization_id(), 'nobody')",
			"SELECT concat_ws(' ', valid, token_id, label) FROM apitoken.verify('$zero')") ],
		[ '28000 invalid token Verdict: unknown.', 'false', '{"active": false}', '28000 invalid token Verdict: unknown.', 'f' ],
		'required: whatever verifies refuses it, and tells nothing');
}
like(scheme('signed'), qr/^3\|/, 'required: new tokens have the pepper') if create($node, 'signed', $acme);
pepper_file('');
like($_, qr/^F0000 "apitoken.require_pepper" is on, but no pepper file is set +HINT .*apitoken.pepper_file/, 'required, and no file: nothing is made')
  foreach outcomes(hash_of($token1), q{SELECT token FROM apitoken.create_token('broken', organization_id => 'acme')},
	q{INSERT INTO apitoken.tokens (label, organization_id) VALUES ('broken', 'acme') RETURNING id},
	q{SELECT token FROM apitoken.regenerate_token((SELECT id FROM apitoken_internal.token_records WHERE label = 'plain'))});
is_deeply([ outcomes(map { verdict($_) } $plain, $unknown, 'garbage') ], [ 'unknown', 'unknown', 'malformed' ], 'and texts are refused as ever');
pepper_file($file);
unlink $file;
is_deeply([ outcomes(map { verdict($_) } $plain, $unknown) ], [ 'unknown', 'unknown' ], 'also with a file that cannot be read');
write_file($good);
# a client's options cannot switch it off
{
	my ($rc, $out, $err) = $node->psql('postgres', 'SET apitoken.require_pepper = off', extra_params => [ '-U', 'regress_apitoken_plain' ]);
	$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION apitoken.verify(text, text, apitoken.id, inet, integer) TO regress_apitoken_plain');
	local $ENV{PGOPTIONS} = '-c apitoken.require_pepper=off';
	($rc, $out, $err) = $node->psql('postgres', verdict($plain), extra_params => [ '-U', 'regress_apitoken_plain', '-v', 'VERBOSITY=verbose' ]);
	like("$out$err", qr/ERROR:  F0000: value of parameter "apitoken.require_pepper" was rejected/, 'options of a client do not switch it off');
	$node->safe_psql('postgres', 'REVOKE EXECUTE ON FUNCTION apitoken.verify(text, text, apitoken.id, inet, integer) FROM regress_apitoken_plain');
}
($rc, $out, $err) = $node->psql('postgres', "$load; SET apitoken.require_pepper = off", @as_plain);
like($err, qr/42501/, 'nor does SET');
require_pepper('off');
is_deeply([ outcomes(map { verdict($_) } @all) ], [ ('valid') x 7, 'unknown' ], 'off again');

# ----- nobody but a superuser reads or sets it ---------------------------------

write_file($good);
foreach my $statement (
	'SHOW apitoken.pepper_file',
	q{SELECT current_setting('apitoken.pepper_file')},
	q{SET apitoken.pepper_file = ''},
	q{SET LOCAL apitoken.pepper_file = ''},
	q{SELECT set_config('apitoken.pepper_file', '', false)},
	'RESET apitoken.pepper_file',
	q{ALTER ROLE regress_apitoken_plain SET apitoken.pepper_file = ''})
{
	($rc, $out, $err) = $node->psql('postgres', "$load; $statement", @as_plain);
	like($err, qr/42501/, "not for others: $statement");
}
is($node->safe_psql('postgres', "$load; SELECT count(setting) FROM pg_settings WHERE name = 'apitoken.pepper_file'",
		extra_params => [ '-U', 'regress_apitoken_plain' ]),
	"1\n0", 'pg_settings does not show it to others');

# set before the library is loaded, in each way that a client has
my $signed = hmac_sha256_hex($token1, pack('H*', $key3));
($rc, $out, $err) = $node->psql('postgres',
	qq{SET apitoken.pepper_file = ''; SELECT encode(apitoken.hash('$token1'), 'hex')}, @as_plain, on_error_stop => 0);
is($out, $signed, 'SET before the library is loaded does not take the pepper away');
{
	local $ENV{PGOPTIONS} = '-c apitoken.pepper_file=/dev/null';
	($rc, $out, $err) = $node->psql('postgres', qq{SELECT encode(apitoken.hash('$token1'), 'hex')}, @as_plain);
	like($err, qr/ERROR:  F0000: value of parameter "apitoken.pepper_file" was rejected/, 'nor do PGOPTIONS');
	is($out, '', 'they do not fall back to the plain digest');
}
($rc, $out, $err) = $node->psql('postgres',
	q{ALTER ROLE regress_apitoken_plain SET apitoken.pepper_file = ''}, @as_plain);
isnt($rc, 0, 'nor can a role set it for itself');
is($node->safe_psql('postgres', qq{SET apitoken.pepper_file = ''; SELECT encode(apitoken.hash('$token1'), 'hex')}),
	sha256_hex($token1), 'a superuser may');

# ----- a server that starts with a broken file ---------------------------------

foreach my $preload ('session_preload_libraries', 'shared_preload_libraries')
{
	unlink $file;
	$node->append_conf('postgresql.conf', "$preload = 'apitoken'");
	$session->quit;
	$node->restart;
	$session = $node->background_psql('postgres', on_error_stop => 0);
	is($node->safe_psql('postgres', 'SHOW apitoken.pepper_file'), $file, "$preload: a missing file does not empty the setting");
	check_broken("$preload, a missing file", '58P01', 'could not read pepper file');
	write_file("nonsense\n");
	$session->quit;
	$node->restart;
	$session = $node->background_psql('postgres', on_error_stop => 0);
	check_broken("$preload, a malformed file", 'F0000', 'invalid line 1 in pepper file\b');
	write_file($good);
	is_deeply([ outcomes(map { verdict($_) } $plain, $token1, $token2, $new0) ], [ ('valid') x 4 ],
		"$preload: after the repair everything works, without a restart");
	is(in_session(verdict($token1)), 'valid', "$preload: in running sessions, too");
	like(outcome("SELECT token FROM apitoken.create_token('after $preload', organization_id => 'acme')"),
		qr/^apt_org_/, "$preload: and tokens are made");
	like(scheme("after $preload"), qr/^3\|/, "$preload: under the newest pepper");
	is($node->safe_psql('postgres', qq{SET apitoken.pepper_file = '/dev/null'; RESET apitoken.pepper_file; SHOW apitoken.pepper_file}),
		$file, "$preload: RESET goes back to it");
	{
		local $ENV{PGOPTIONS} = '-c apitoken.pepper_file=';
		($rc, $out, $err) = $node->psql('postgres', qq{SELECT encode(apitoken.hash('$token1'), 'hex')}, @as_plain);
		isnt($rc, 0, "$preload: a client's options do not empty the setting");
		is($out, '', "$preload: nor lead to a plain digest");
	}
	$node->append_conf('postgresql.conf', "$preload = ''");
}

# refused statements left no trace
is($node->safe_psql('postgres', q{SELECT count(*) FROM apitoken_internal.token_records WHERE label = 'broken'}), '0',
	'no token was made without its pepper');

$session->quit;
$node->stop;

# ----- the log -----------------------------------------------------------------

my $log = slurp_file($node->logfile);
my @leaks = grep { $log =~ /$_/i } map { (substr($_, 0, 12), substr($_, -12)) } @keys;
is_deeply(\@leaks, [], 'no part of a pepper is in the log');
my @told = grep { !/statement: |STATEMENT: |CONTEXT: / && /(?:org|usr)_[0-9A-Za-z]{71}/ } split /\n/, $log;
is_deeply(\@told, [], 'no message shows a token');

done_testing();
