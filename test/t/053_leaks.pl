# examples/leaks: reports that GitHub's secret scanning would send, signed with a key
# of this test.  Only what is signed by a key of the list reaches the database, and
# no text of a token is in a log.

use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

plan skip_all => 'psycopg or openssl is missing'
  if system('/usr/bin/python3', '-c', 'import psycopg') != 0 || system('openssl version >/dev/null 2>&1') != 0;

my $dir = PostgreSQL::Test::Utils::tempdir;
my $json = JSON::PP->new->canonical;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $log = "$PostgreSQL::Test::Utils::log_path/leaks.log";

sub write_file { my ($name, $text) = @_; unlink "$dir/$name"; append_to_file("$dir/$name", $text); return; }
sub openssl { system_or_bail('openssl', @_); return; }

# ---- keys: two of the list, one of another curve, one of RSA, and one that is not in it
foreach my $key (qw(first second stranger))
{
	openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', "$dir/$key.key");
}
openssl('ecparam', '-name', 'secp384r1', '-genkey', '-noout', '-out', "$dir/other_curve.key");
openssl('genrsa', '-out', "$dir/rsa.key", '2048');
openssl('pkey', '-in', "$dir/$_.key", '-pubout', '-out', "$dir/$_.pub") foreach qw(first second stranger other_curve rsa);
sub publish
{
	write_file('list.json', $json->encode({ public_keys => [ map { { key_identifier => "id-$_", key => slurp_file("$dir/$_.pub"), is_current => JSON::PP::true } } @_ ] }));
	return;
}
publish(qw(first other_curve rsa));

# ---- the database; the library masks its log
my $node = start_node('main', preload => 'session', conf => "log_statement = all\nlog_min_duration_statement = 0\nlog_parameter_max_length = -1");
sub sql { return $node->safe_psql('postgres', $_[0]); }
sql(q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_leaks LOGIN;
	SELECT apitoken.allow('regress_apitoken_leaks', 'verify');
	INSERT INTO apitoken.organizations (id, on_leak) VALUES ('acme', DEFAULT), ('patient', 'notify');
	INSERT INTO apitoken.users (id, email) VALUES ('ada', 'ada@acme.example');
	INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('patient', 'ada', 'admin');
});
my @texts;
sub create_one
{
	my ($label, $organization) = @_;
	push @texts, sql("SELECT token FROM apitoken.create_token('$label', '" . ($organization // 'acme') . "')");
	return $texts[-1];
}
sub status { my ($label) = @_; return sql("SELECT status || coalesce(' ' || revoke_reason, '') FROM apitoken.tokens WHERE label = '$label'"); }

write_file('leaks.conf', "[database]\nconninfo = " . $node->connstr('postgres') . " user=regress_apitoken_leaks\n[http]\nport = $port\npath = /leaks\nmax_body = 500000\n[keys]\nlist = $dir/list.json\nrefresh_unknown = 0\n");
start_program('leaks', [ '/usr/bin/python3', '-B', 'examples/leaks/leaks.py', "$dir/leaks.conf" ], port => $port, log => $log);

# ---- requests
sub signature
{
	my ($body, $key) = @_;
	write_file('body', $body);
	openssl('dgst', '-sha256', '-sign', "$dir/$key.key", '-out', "$dir/signature", "$dir/body");
	return encode_base64(slurp_file("$dir/signature"), '');
}
# post BODY, key => who signs, id => the key that is named, signature =>, signed => what is signed, path =>
sub post
{
	my ($body, %how) = @_;
	my $key = $how{key} // 'first';
	my %headers = ('Content-Type' => 'application/json', 'Github-Public-Key-Identifier' => $how{id} // "id-$key",
		'Github-Public-Key-Signature' => $how{signature} // signature($how{signed} // $body, $key));
	delete $headers{$_} foreach @{ $how{without} // [] };
	return http_request($port, $how{path} // '/leaks', undef, method => 'POST', content => $body, headers => \%headers);
}
sub match { my ($token, %more) = @_; return { token => $token, type => 'apitoken', url => 'https://github.com/acme/app/blob/1/.env', source => 'content', %more }; }
sub report { return $json->encode([@_]); }
sub labels
{
	my ($response) = @_;
	my $answer = eval { $json->decode($response->{content}); };
	return "$response->{status} " . (ref $answer eq 'ARRAY' ? join ' ', map { $_->{label} } @$answer : '');
}

# ---- what is refused
my $live = create_one('live');
my $good = report(match($live));
foreach my $case (
	[ 'another body is signed', signed => report(match($live, source => 'commit')) ],
	[ 'another key', key => 'stranger', id => 'id-first' ],
	[ 'a key that is not in the list', key => 'stranger' ],
	[ 'a key of another curve, in the list', key => 'other_curve' ],
	[ 'a key of RSA, in the list', key => 'rsa' ],
	[ 'no key is named', without => ['Github-Public-Key-Identifier'] ],
	[ 'no signature', without => ['Github-Public-Key-Signature'] ],
	[ 'an empty signature', signature => '' ],
	[ 'a signature that is no base64', signature => '%%%' ],
	[ 'a signature that is no DER', signature => encode_base64('x' x 70, '') ],
	[ 'a long signature', signature => encode_base64('x' x 5000, '') ],
	[ 'a key whose name is a path', id => "../../$dir/first.pub" ])
{
	my ($name, %how) = @$case;
	is(post($good, %how)->{status}, 401, "$name: refused");
}
my $signature = signature($good, 'first');
my $changed = $good =~ s/content/Content/r;
is(post($changed, signature => $signature)->{status}, 401, 'a body with one other character');
is(post($good . "\n", signature => $signature)->{status}, 401, 'a body with one more character');
is(post($good, path => '/')->{status}, 404, 'another path');
is(http_request($port, '/leaks')->{status}, 501, 'GET');
is(status('live'), 'active', 'none of them has revoked the token');

# the answer comes before the body is sent
sub raw
{
	my ($head) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or die;
	print $socket "POST /leaks HTTP/1.1\r\nHost: x\r\n$head\r\n\r\n";
	my $line = <$socket> // '';
	return $line =~ /^HTTP\/1\.1 (\d+)/ ? $1 : $line;
}
is(raw('Content-Length: 500001'), 413, 'a body that is too large');
is(raw('Content-Length: ' . '9' x 30), 413, 'a body that is much too large');
is(raw("Transfer-Encoding: chunked"), 411, 'a body without a length');
is(raw("Content-Length: -1"), 411, 'a length that is none');
is(post(report((match($live, url => 'x' x 100)) x 1500))->{status} // '', 200, 'a large body within the limit, of one token');
is(status('live'), 'revoked leaked', 'is accepted');
is(sql(q{SELECT count(*) FROM apitoken.events WHERE action = 'leak'}), '1', 'the token is told once');

# ---- what is answered
my ($one, $two, $previous, $patient) = (create_one('one'), create_one('two'), create_one('rotated'), create_one('patient', 'patient'));
my $unknown = sql(q{SELECT apitoken.generate('organization')});
push @texts, $unknown, sql(q{SELECT (apitoken.regenerate_token(id, '1 hour')).token FROM apitoken.tokens WHERE label = 'rotated'});
my $response = post(report(match($one), match($unknown, type => 'other'), match($two, source => 'commit', url => "https://acme.example/?key=$two"), match($one), match($previous), match($patient), match($live)));
is(labels($response), '200 true_positive false_positive true_positive true_positive true_positive true_positive true_positive', 'the labels');
is_deeply($json->decode($response->{content})->[1], { token_hash => sha256_hex($unknown), token_type => 'other', label => 'false_positive' }, 'one answer: hash, type, label');
is(scalar(grep { index($response->{content}, substr($_, 30, 20)) >= 0 } @texts), 0, 'no text of a token is in the answer');
is(join(', ', map { status($_) } qw(one two rotated patient)), 'revoked leaked, revoked leaked, revoked leaked, active', 'the tokens');
is(sql(q{SELECT string_agg(concat_ws(' ', details->>'label', details->>'source', details->>'action', database_user), ', ' ORDER BY details->>'label') FROM apitoken.events WHERE action = 'leak'}),
	'live content revoked regress_apitoken_leaks, one content revoked regress_apitoken_leaks, patient content notified regress_apitoken_leaks, rotated content revoked regress_apitoken_leaks, two commit revoked regress_apitoken_leaks', 'the events');
is(sql(q{SELECT count(*) || ' ' || count(DISTINCT token_id) FROM apitoken.notifications WHERE event = 'leak'}), '5 5', 'the notifications');
is(labels(post('[]')), '200 ', 'an empty report');

# ---- reports of other forms, signed
foreach my $body ('', 'x', '{}', '"x"', '1', 'null', '[1]', '[{}]', '[{"token": "x"}]', '[{"token": 1, "type": "x"}]', '[{"token": null, "type": "x"}]',
	'[{"token": "\ud800", "type": "x"}]', '[' x 100000)
{
	is(post($body)->{status}, 400, 'another form: ' . substr($body, 0, 40));
}
is(labels(post('[{"token": "x\u0000y", "type": "x", "url": "a\u0000b\ud800", "source": 7}, {"token": "\u00e4", "type": {}}, {"token": "", "type": null, "url": null, "source": ""}]')), '200 false_positive false_positive false_positive', 'values that no scanner sends');
my @many = map { create_one("many $_") } 1 .. 3;
$response = post(report(match($many[0]), (map { match("no token $_") } 1 .. 2400), map { match($_) } @many[ 1, 2 ]));
is(labels($response), '200 ' . join(' ', 'true_positive', ('false_positive') x 2400, ('true_positive') x 2), 'more texts than report_leaked() takes at once');
is(status('many 3'), 'revoked leaked', 'the last one is revoked');

# ---- the list changes; the database is away
publish(qw(second));
is(labels(post(report(match('x')), key => 'second')), '200 false_positive', 'a new key');
is(post(report(match('x')))->{status}, 401, 'the old key is gone');
write_file('list.json', 'garbage');
is(labels(post(report(match('x')), key => 'second')), '200 false_positive', 'a list that cannot be read: the known keys stay');
is(post(report(match('x')), key => 'first')->{status}, 401, 'also when an unknown one is named');
my $late = create_one('late');
$node->stop;
is(post(report(match($late)), key => 'second')->{status}, 500, 'the database is away');
$node->start;
is(status('late'), 'active', 'nothing has happened');
is(labels(post(report(match($late)), key => 'second')), '200 true_positive', 'it is back');
is(status('late'), 'revoked leaked', 'and the token is revoked');
sql('REVOKE EXECUTE ON FUNCTION apitoken.report_leaked FROM regress_apitoken_leaks');
is(post(report(match($late)), key => 'second')->{status}, 500, 'a login that may not');

# ---- logs
stop_program('leaks');
my $told = slurp_file($log);
my $server = slurp_file($node->logfile);
like($told, qr/^INFO ready$/m, 'the log of the endpoint');
like($told, qr/^INFO 7 reported: 2 none, 1 notified, 3 revoked$|^INFO 7 reported: 3 none, 1 notified, 3 revoked$/m, 'tells what was done');
like($server, qr/report_leaked/, 'the log of the server has the statements');
is(scalar(grep { index($told, substr($_, 8, 60)) >= 0 || index($server, substr($_, 30, 20)) >= 0 } @texts), 0, 'no text of a token is in one of them');
unlike($told, qr/Traceback/, 'no error that was not expected');
is(sql(q{SELECT count(*) FROM (SELECT to_jsonb(e)::text FROM apitoken.events e UNION ALL SELECT to_jsonb(n)::text FROM apitoken.notifications n) t (x) WHERE x ~ '_[0-9A-Za-z]{71}'}), '0', 'nor in an event or notification');

done_testing();
