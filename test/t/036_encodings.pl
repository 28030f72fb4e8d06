# Databases in UTF8, LATIN1 and SQL_ASCII: requests that the encoding cannot hold,
# or that are nested too deep for the server's own JSON parser, are refused with
# 400, or their claims name nobody; they are never an error of the server.  Labels
# are trimmed, and compared, by Unicode's rules wherever the encoding has them.

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
}

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
