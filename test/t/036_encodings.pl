# Databases in several encodings: requests that the encoding cannot hold, or that are
# nested too deep for the server's own JSON parser, are refused with 400, or their
# claims name nobody; they are never an error of the server.  Labels are trimmed by
# Unicode's rules as far as the text can be converted.

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('encodings', init => [ extra => [ '--no-locale', '--encoding=UTF8' ] ]);
$node->safe_psql('postgres', 'CREATE ROLE regress_apitoken_web LOGIN');

foreach my $encoding (qw(UTF8 LATIN1 SQL_ASCII))
{
	$node->safe_psql('postgres', "CREATE DATABASE $encoding TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
	$node->safe_psql(lc $encoding, q{
		CREATE EXTENSION apitoken;
		SELECT apitoken.allow('regress_apitoken_web', 'act', 'manage');
		INSERT INTO apitoken.organizations (id) VALUES ('acme');
		CREATE TABLE t AS SELECT token FROM apitoken.create_token('t', 'acme');
		GRANT SELECT ON t TO PUBLIC;

		-- who acts, or the answer, or the error of the server
		CREATE FUNCTION request(headers text, claims text DEFAULT '{}') RETURNS text LANGUAGE plpgsql AS $$
		DECLARE
			detail text;
		BEGIN
			PERFORM set_config('request.jwt.claims', claims, true), set_config('request.headers', replace(headers, '<t>', (SELECT token FROM t)), true);
			PERFORM apitoken.pre_request();
			RAISE SQLSTATE 'DONE0' USING MESSAGE = concat_ws(' ', apitoken.whoami()->>'source', apitoken.current_user_id());
		EXCEPTION
			WHEN SQLSTATE 'DONE0' THEN RETURN SQLERRM;
			WHEN SQLSTATE 'PGRST' THEN
				GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
				RETURN detail::json->>'status';
			WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
		END $$;
	});
	$node->safe_psql('postgres', "ALTER DATABASE $encoding SET apitoken.jwt_user_claim = 'sub'");
	requests($encoding);
	labels($encoding);
}
$node->safe_psql('postgres', "CREATE DATABASE $_ TEMPLATE template0 ENCODING '$_' LOCALE 'C'") foreach qw(EUC_JP MULE_INTERNAL);
$node->safe_psql(lc $_, q{CREATE EXTENSION apitoken; INSERT INTO apitoken.organizations (id) VALUES ('acme');}) foreach qw(EUC_JP MULE_INTERNAL);
labels($_) foreach qw(EUC_JP MULE_INTERNAL);

$node->stop;
no_crash($node);
done_testing();

# The answers of the requests with these headers and claims, in one statement.
sub requests_are
{
	my ($session, $expected, $what, @requests) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(ask($session, 'SELECT ' . join(', ', map { 'request(' . join(', ', map { "\$x\$$_\$x\$" } @$_) . ')' } @requests) . ';'), $expected, $what);
	return;
}

sub requests
{
	my ($encoding) = @_;
	my $session = connection($node, database => lc $encoding, user => 'regress_apitoken_web');
	my ($latin1, $unicode) = ($encoding ne 'SQL_ASCII', $encoding eq 'UTF8');
	# does an escape make a valid request?
	my %fits = (
		'\u0041' => 1, '\u007f' => 1, '\u0080' => $latin1, '\u00e9' => $latin1, '\u00ff' => $latin1, '\u00FF' => $latin1,
		'\u0100' => $unicode, '\u20ac' => $unicode, '\uffff' => $unicode, '\ud83d\ude00' => $unicode, '\u00e9\u20ac' => $unicode, '\\\\\u20ac' => $unicode,
		'\\\\u20ac' => 1, '\\\\\u0041' => 1, '\"\u0041' => 1,
		'\u0000' => 0, '\ud83d' => 0, '\ude00' => 0, '\ud83d\u0041' => 0, '\ud83d\ud83d\ude00' => 0, '\ude00\ud83d' => 0,
		'\u12' => 0, '\u' => 0, '\uzzzz' => 0, '\x' => 0, "\\" => 0);

	foreach my $escape (sort keys %fits)
	{
		requests_are($session, $fits{$escape} ? 'token|token|none|401|jwt ada' : '400|400|400|400|none',
			"$encoding: $escape in a value, a name, further inside, as the token, in the claims",
			[qq({"x": "$escape", "x-api-key": "<t>"})], [qq({"$escape": "x", "x-api-key": "<t>"})], [qq({"x": [{"y": "$escape"}]})],
			[qq({"x-api-key": "$escape"})], [ '{}', qq({"x": "$escape", "sub": "ada"}) ]);
	}
	is(ask($session, q{SELECT request('{}', '{"sub": "ren\u00e9"}') = 'jwt ren' || chr(233);}), $latin1 ? 't' : 'f', "$encoding: a user's id with an escape");

	# bytes that are a character in LATIN1 only
	my $bytes = q{convert_from('\xe9ff8041', getdatabaseencoding())};
	is(ask($session, qq{SELECT request('{"x": "' || $bytes || '", "x-api-key": "<t>"}'), request('{"authorization": "' || $bytes || ' <t>"}');}),
		$unicode ? '[ERROR: 22021]' : 'token|401', "$encoding: bytes that are not UTF-8");

	# nested, with little stack
	$session->quit;
	$session = connection($node, database => lc $encoding);
	ask($session, q{SET max_stack_depth = '100kB'; SET SESSION AUTHORIZATION regress_apitoken_web;});
	foreach my $n (100, 10_000, 1_000_000)
	{
		is(ask($session, "SELECT request(format('{\"x\": %s%s, \"x-api-key\": \"<t>\"}', repeat('[', $n), repeat(']', $n))), request('{\"x\": ' || repeat('[', $n)),"
			  . " request('{}', format('{\"x\": %s1%s, \"sub\": \"ada\"}', repeat('{\"sub\":', $n), repeat('}', $n)));"),
			'token|400|jwt ada', "$encoding: $n values, one in the other");
	}
	$session->quit;
	return;
}

# Each label is given by its bytes.  The answer is the bytes that are stored, or the
# SQLSTATE.
sub labels
{
	my ($encoding) = @_;
	my $plain = '446570'; # Dep
	my %is = (
		# of ASCII only, in all of them
		all => {
			"20$plain" => $plain, "${plain}0d0a" => $plain, "0b09$plain" => $plain, "44206570" => '44206570',
			'20090a0b0c0d' => '22023', '440a6570' => '22023', "1b$plain" => '22023', "${plain}7f" => '22023' },
		UTF8 => { "c2a0$plain" => $plain, "${plain}e38080" => $plain, 'c2a0' => '22023', "${plain}c285" => $plain, "44c2856570" => '22023', "c29b$plain" => '22023', 'c2ad' => '22023',
			"c3a9c2a0" => 'c3a9' },
		LATIN1 => { "a0$plain" => $plain, "${plain}a020a0" => $plain, 'a0' => '22023', "${plain}85" => $plain, "44856570" => '22023', "9b$plain" => '22023', 'ad' => '22023', 'adad20' => '22023',
			"e9a0" => 'e9', "a0c2a0e9" => 'c2a0e9' },
		# valid UTF-8 is taken for that; anything else is not trimmed but for ASCII
		SQL_ASCII => { "c2a0$plain" => $plain, "${plain}e38080" => $plain, 'c2a0' => '22023', "44c2856570" => '22023', 'c2ad' => '22023', "c3a9c2a0" => 'c3a9',
			"a0$plain" => "a0$plain", "20a0c2a020" => 'a0c2a0', 'a0' => 'a0', 'ad' => 'ad', "ff0a" => 'ff', "ff0aff" => '22023' },
		EUC_JP => { "a1a1$plain" => $plain, "${plain}a1a1" => $plain, 'a1a1' => '22023', "20a1a1a4a2a1a120" => 'a4a2', "a4a2a1a1a4a2" => 'a4a2a1a1a4a2', "a1a18ea720" => '8ea7' },
		# LATIN1's, which the server cannot convert to UTF-8
		MULE_INTERNAL => { "2081e920" => '81e9', "81e981a0" => '81e981a0', "81a0" => '81a0' });
	my %given = (%{ $is{all} }, %{ $is{$encoding} });
	my $session = connection($node, database => lc $encoding);

	ask($session, q{
		CREATE FUNCTION label(given bytea) RETURNS text LANGUAGE plpgsql AS $$
		DECLARE
			made uuid;
		BEGIN
			made := (apitoken.create_token(convert_from(given, getdatabaseencoding()), 'acme')).id;
			RETURN (SELECT encode(convert_to(label, getdatabaseencoding()), 'hex') FROM apitoken.tokens WHERE id = made);
		EXCEPTION
			WHEN invalid_parameter_value THEN RETURN SQLSTATE;
		END $$;});
	foreach my $label (sort keys %given)
	{
		is(ask($session, "BEGIN; SELECT label('\\x$label'); ROLLBACK;"), $given{$label}, "$encoding: label $label");
	}
	is(ask($session, "SELECT label('\\x$plain'); SELECT apitoken.create_token(convert_from('\\x0d0a20${plain}0a', getdatabaseencoding()), 'acme');"),
		"$plain [ERROR: 23505]", "$encoding: the same label with other blanks around it");
	$session->quit;
	return;
}
