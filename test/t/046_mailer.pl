# examples/mailer against a real SMTP server (aiosmtpd) and an HTTP server: what
# arrives, how often, and what happens when something fails.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256_base64);
use JSON::PP;
use MIME::Base64;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

plan skip_all => 'psycopg or aiosmtpd is missing'
  if system('/usr/bin/python3', '-c', 'import psycopg, aiosmtpd') != 0;

my $dir = PostgreSQL::Test::Utils::tempdir;
my $json = JSON::PP->new->utf8;
my ($smtp_port, $http_port) = map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 2;

# Each mail becomes a line of JSON.  Addresses that begin with "bounce" are refused
# for good, and those that begin with "later" as long as the file "later" exists.
# The connection ends at "drop", and the reply to "nul" has other characters than ASCII.
# If the file "hold" exists, it becomes "held", and one mail is answered when that is gone.
append_to_file("$dir/smtp_sink.py", q{
import asyncio, email, email.policy, json, os, ssl, sys, time
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
port, directory, tls = int(sys.argv[1]), sys.argv[2], len(sys.argv) > 3
class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith('bounce'): return '550 5.1.1 no such user'
        if address.startswith('later') and os.path.exists(directory + '/later'): return '451 4.7.1 greylisted'
        if address.startswith('drop'): server.transport.abort()
        if address.startswith('nul'): return '451 4.7.1 n\0ul \u00fc'
        envelope.rcpt_tos.append(address)
        return '250 OK'
    async def handle_DATA(self, server, session, envelope):
        m = email.message_from_bytes(envelope.content, policy=email.policy.default)
        line = json.dumps({'to': envelope.rcpt_tos, 'headers': [[k, str(v)] for k, v in m.items()],
            'text': m.get_body(('plain',)).get_content(), 'html': m.get_body(('html',)).get_content(),
            'raw': envelope.content.decode('ascii'), 'session': id(session), 'tls': session.ssl is not None, 'login': session.authenticated})
        with open(directory + '/mails', 'a') as f: f.write(line + '\n')
        if os.path.exists(directory + '/hold'):
            os.rename(directory + '/hold', directory + '/held')
            while os.path.exists(directory + '/held'): await asyncio.sleep(0.05)
        return '250 accepted'
def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=data.login == b'apitoken' and data.password == b'smtp password')
arguments = {}
if tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory + '/cert.pem', directory + '/key.pem')
    arguments = dict(tls_context=context, require_starttls=True, authenticator=authenticate, auth_required=True)
Controller(Handler(), hostname='127.0.0.1', port=port, server_kwargs=arguments).start()
while True: time.sleep(1000)
});
# Answers what the file "status" has; 0 is no HTTP.
append_to_file("$dir/http_sink.py", q{
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        status = int(open(sys.argv[2] + '/status').read())
        with open(sys.argv[2] + '/hooks', 'a') as f: f.write(json.dumps({'headers': {k.lower(): v for k, v in self.headers.items()}, 'body': body, 'status': status}) + '\n')
        if status == 0:
            self.wfile.write(b'garbage\r\n\r\n')
            return
        self.send_response(status)
        if status == 302: self.send_header('Location', 'http://127.0.0.1:' + sys.argv[1] + '/elsewhere')
        self.send_header('Content-Length', '0')
        self.end_headers()
    do_GET = do_POST
    def log_message(self, *a): pass
HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
});

sub write_file { my ($name, $text) = @_; unlink "$dir/$name"; append_to_file("$dir/$name", $text); return; }
sub lines { my ($name) = @_; return -e "$dir/$name" ? map { $json->decode($_) } split /\n/, slurp_file("$dir/$name") : (); }
sub clear { unlink "$dir/mails", "$dir/hooks"; return; }
sub start_smtp { start_program('smtp', [ '/usr/bin/python3', "$dir/smtp_sink.py", $smtp_port, $dir, @_ ], port => $smtp_port); return; }
sub start_http { start_program('http', [ '/usr/bin/python3', "$dir/http_sink.py", $http_port, $dir ], port => $http_port); return; }

my $node = start_node('main');
$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE ROLE regress_apitoken_mailer LOGIN;
	SELECT apitoken.allow('regress_apitoken_mailer', 'notify');
	INSERT INTO apitoken.organizations (id, name, notify) VALUES ('acme', E'Acme <b>&\r\nBcc: victim@evil.example\r\n\r\nCorp', '{create,regenerate,suspend,revoke}');
	INSERT INTO apitoken.users (id, name, email) VALUES ('ada', 'Ada Lovelace', 'ada@acme.example');
	INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin');
});
my $conninfo = $node->connstr('postgres') . ' user=regress_apitoken_mailer';
my $smtp = "[smtp]\nhost = 127.0.0.1\nport = $smtp_port\ntls = none\nfrom = API tokens <no-reply\@acme.example>\n";
my $secret = encode_base64('0123456789abcdef0123456789abcdef', '');
write_file('secret', "whsec_$secret\n");
my $webhook = "[webhook]\nurl = http://127.0.0.1:$http_port/hook\nsecret_file = $dir/secret\n";
write_file('mail.conf', "[database]\nconninfo = $conninfo\n$smtp\[outbox]\nlease = 2\nbatch = 5\npoll = 1\n");
write_file('hook.conf', "[database]\nconninfo = $conninfo\n$webhook");
write_file('both.conf', "[database]\nconninfo = $conninfo\n$smtp$webhook");
write_file('two.conf', "[database]\nconninfo = $conninfo\n$smtp$webhook\[outbox]\nbatch = 2\n");
write_file('long.conf', "[database]\nconninfo = $conninfo\n$smtp\[outbox]\npoll = 600\n");

my @mailer = ('/usr/bin/python3', '-B', 'examples/mailer/mailer.py');
# the exit status of a run, and what it has logged
sub once
{
	my ($config) = @_;
	my $log = '';
	IPC::Run::run([ @mailer, "$dir/$config.conf", '--once' ], '<', \undef, '>&', \$log);
	return wantarray ? ($? >> 8, $log) : $? >> 8;
}
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub create_one { my ($label) = @_; return sql("SELECT token FROM apitoken.create_token('$label', 'acme', role => 'developer')"); }
sub due_now { sql('UPDATE apitoken.notifications SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL'); return; }
sub outbox { return sql(q{SELECT count(*) FILTER (WHERE delivered_at IS NOT NULL) || ' delivered, ' || count(*) FILTER (WHERE next_attempt_at IS NOT NULL) || ' pending' FROM apitoken.notifications}); }
sub header { my ($mail, $name) = @_; return join '|', map { $_->[1] } grep { lc $_->[0] eq lc $name } @{ $mail->{headers} }; }

start_smtp();

# ---- what arrives
is(scalar(once('mail')), 0, 'nothing to do is no failure');
my @tokens = (create_one('one'), create_one('<i>two</i>'));
sql("SELECT apitoken.revoke_token(id, 'one', 'lost') FROM apitoken.tokens WHERE label = 'one'");
is(scalar(once('mail')), 0, 'everything is delivered');
my @mails = lines('mails');
is(scalar(@mails), 3, 'one mail for each event');
is(join(' ', map { header($_, 'Subject') } @mails), 'API token "one" was created API token "<i>two</i>" was created API token "one" was revoked', 'in order');
is(join(' ', map { "@{$_->{to}}" } @mails), 'ada@acme.example ada@acme.example ada@acme.example', 'to the administrator');
is(scalar(keys %{ { map { $_->{session} => 1 } @mails[ 0, 1 ] } }), 1, 'several mails over one connection');
my %ids = map { $_ => 1 } split /\n/, sql('SELECT id FROM apitoken.notifications');
is(scalar(grep { header($_, 'Message-ID') =~ /^<([-0-9a-f]{36})\.[0-9a-f]+\@acme\.example>$/ && $ids{$1} } @mails), 3, 'each has a Message-ID with the id of the notification');
like($mails[0]{text}, qr/Created by: an administrator\r?\n/, 'the text names the creator');
my $masked = sql("SELECT masked FROM apitoken.tokens WHERE label = '<i>two</i>'");
like($mails[1]{text}, qr/Token: \Q$masked\E/, 'the text has the masked token');
like($mails[1]{html}, qr{&lt;i&gt;two&lt;/i&gt;}, 'HTML is escaped');
unlike($mails[1]{html}, qr{<i>|<b>}, 'names add no HTML');
is(join('', map { header($_, 'Bcc') . header($_, 'Cc') } @mails), '', 'names add no header');
is(join('|', grep { /^Bcc:/im } map { $_->{raw} } @mails), '', 'names add no line');
is(scalar(grep { index($_->{raw} . $_->{text} . $_->{html}, substr($tokens[0], 30, 20)) >= 0 || index($_->{raw} . $_->{text} . $_->{html}, substr($tokens[1], 30, 20)) >= 0 || $_->{raw} =~ /_[0-9A-Za-z]{71}/ } @mails), 0, 'no mail contains a secret');
is(outbox(), '3 delivered, 0 pending', 'the outbox tells');
is(scalar(once('mail')), 0, 'a second run');
is(scalar(lines('mails')), 3, 'nothing is sent twice');

# ---- the server is down, and back
clear();
stop_program('smtp');
create_one("down $_") foreach 1 .. 3;
my ($status, $log) = once('mail');
is($status, 1, 'the SMTP server is down: a failure');
is(sql('SELECT count(*) FROM apitoken.notifications WHERE last_error IS NOT NULL AND next_attempt_at > now()'), 3, 'all of the batch are tried again later');
is(scalar(() = $log =~ /: connection refused|Connection refused/g), 3, 'the log tells why');
start_smtp();
due_now();
is(scalar(once('mail')), 0, 'it is back');
is(scalar(lines('mails')), 3, 'all arrive, once');

# ---- a recipient is refused
clear();
sql(q{INSERT INTO apitoken.users (id, email) VALUES ('bob', 'bounce@acme.example'), ('lea', 'later@acme.example'),
	('eve', E'eve@acme.example\r\nBcc: victim@evil.example'), ('zed', 'no address');
	INSERT INTO apitoken.memberships SELECT 'acme', id, 'admin' FROM apitoken.users WHERE id <> 'ada'});
write_file('later', '');
create_one('refused');
($status, $log) = once('mail');
is($status, 1, 'one recipient is refused for now');
is(join(' ', map { "@{$_->{to}}" } lines('mails')), 'ada@acme.example', 'others have their mail');
like($log, qr/a recipient was refused: 550/, 'who is refused for good is logged');
like(sql('SELECT last_error FROM apitoken.notifications WHERE next_attempt_at IS NOT NULL'), qr/^451 4\.7\.1 greylisted$/, 'why it is tried again');
unlink "$dir/later";
due_now();
is(scalar(once('mail')), 0, 'later it is accepted');
is(scalar(grep { $_->{to}[0] eq 'later@acme.example' } lines('mails')), 1, 'by the one who was refused');
my %by_message_id;
$by_message_id{ header($_, 'Message-ID') }{ $_->{to}[0] }++ foreach lines('mails');
is(scalar(grep { keys %$_ > 1 } values %by_message_id), 0, 'no Message-ID is that of two recipients');
sql(q{DELETE FROM apitoken.memberships WHERE user_id <> 'ada'; UPDATE apitoken.users SET email = 'bounce@acme.example' WHERE id = 'ada'});
create_one('all refused');
is(scalar(once('mail')), 1, 'all are refused for good: a failure');
is(sql('SELECT last_error FROM apitoken.notifications WHERE next_attempt_at IS NOT NULL'), 'all recipients were refused', 'the record tells');
sql(q{DELETE FROM apitoken.notifications; UPDATE apitoken.users SET email = 'ada@acme.example' WHERE id = 'ada'});

# ---- two at once, listening
clear();
foreach my $name ('first', 'second')
{
	start_program($name, [ @mailer, "$dir/long.conf" ], log => "$dir/$name.log", ready => sub { -e "$dir/$name.log" && slurp_file("$dir/$name.log") =~ /ready/ });
}
create_one("many $_") foreach 1 .. 30;
ok($node->poll_query_until('postgres', 'SELECT count(*) = 30 FROM apitoken.notifications WHERE delivered_at IS NOT NULL'), 'NOTIFY wakes them, which would otherwise look every 10 minutes');
is(scalar(lines('mails')), 30, 'two mailers send nothing twice');
# one that comes while a claim that cannot see it is running
sql(q{CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(47); RETURN NULL; END$$;
	CREATE TRIGGER slow AFTER UPDATE ON apitoken.notifications FOR EACH STATEMENT EXECUTE FUNCTION public.slow()});
my $slow = $node->background_psql('postgres');
$slow->query_safe('SELECT pg_advisory_lock(47)');
sql('NOTIFY apitoken');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 2 FROM pg_stat_activity WHERE application_name = 'apitoken-mailer' AND wait_event = 'advisory'}), 'both claim what there is');
create_one('unseen');
$slow->query_safe('SELECT pg_advisory_unlock(47)');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM apitoken.notifications WHERE delivered_at IS NOT NULL AND payload->>'label' = 'unseen'}), 'a NOTIFY that comes meanwhile counts');
$slow->quit;
sql('DROP TRIGGER slow ON apitoken.notifications');
my $before = time;
stop_program($_) foreach 'first', 'second';
ok(time - $before < 8, 'SIGTERM ends them');

# ---- killed between the SMTP server's answer and the report
clear();
my $pid_file = "$dir/pid";
my $ignored;
# a trigger of the owner's holds the report, but not the claim
sql(q{CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN IF NEW.delivered_at IS NOT NULL AND pg_try_advisory_xact_lock(46) IS FALSE THEN PERFORM pg_advisory_xact_lock(46); END IF; RETURN NEW; END$$;
	CREATE TRIGGER hold BEFORE UPDATE ON apitoken.notifications FOR EACH ROW EXECUTE FUNCTION public.hold()});
my $holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(46)');
sql('DELETE FROM apitoken.notifications');
create_one('killed in the middle');
my $run = IPC::Run::start([ '/bin/sh', '-c', "echo \$\$ > $pid_file; exec @mailer $dir/mail.conf" ], '<', \undef, '>&', \$ignored);
ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'apitoken-mailer' AND wait_event = 'advisory'}), 'the report waits');
is(scalar(lines('mails')), 1, 'the SMTP server has the mail');
chomp(my $pid = slurp_file($pid_file));
kill KILL => $pid;
$run->finish;
sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'apitoken-mailer'});
$holder->quit;
sql('DROP TRIGGER hold ON apitoken.notifications');
is(outbox(), '0 delivered, 1 pending', 'it is not lost');
start_program('after', [ @mailer, "$dir/mail.conf" ], log => "$dir/after.log", ready => sub { -e "$dir/after.log" && slurp_file("$dir/after.log") =~ /ready/ });
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM apitoken.notifications WHERE delivered_at IS NOT NULL'), 'when the lease has ended, another one sends it');
stop_program('after');
@mails = lines('mails');
is(scalar(@mails), 2, 'which is the second time');
is(header($mails[0], 'Message-ID'), header($mails[1], 'Message-ID'), 'with the same Message-ID');

# ---- webhooks
clear();
write_file('status', '200');
start_http();
my $token = create_one('hooked');
is(scalar(once('hook')), 0, 'a webhook');
my ($hook, @more) = lines('hooks');
is(scalar(@more), 0, 'once');
my $h = $hook->{headers};
is($h->{'webhook-id'}, sql('SELECT id FROM apitoken.notifications ORDER BY id DESC LIMIT 1'), 'its id');
ok(abs(time - $h->{'webhook-timestamp'}) < 60, 'its time');
my $expected = hmac_sha256_base64("$h->{'webhook-id'}.$h->{'webhook-timestamp'}.$hook->{body}", decode_base64($secret));
is($h->{'webhook-signature'}, "v1,$expected=", 'its signature');
my $body = $json->decode($hook->{body});
is("$body->{type} $body->{data}{label} $body->{data}{organization_id}", 'token.create hooked acme', 'its body');
ok(index($hook->{body}, substr($token, 30, 20)) < 0 && $hook->{body} !~ /acme\.example/, 'neither a secret nor an address');
foreach my $bad (500, 302, 404)
{
	clear();
	write_file('status', $bad);
	create_one("status $bad");
	is(scalar(once('hook')), 1, "$bad is a failure");
	is(scalar(lines('hooks')), 1, '... and nothing else is asked');
	write_file('status', '204');
	due_now();
	is(scalar(once('hook')), 0, '... which is tried again');
}
clear();
create_one('both');
is(scalar(once('both')), 0, 'both ways');
is(scalar(lines('mails')) . scalar(lines('hooks')), '11', 'once each');

# ---- names and addresses from others
sub templates
{
	my ($first) = @_;
	my $text = slurp_file('examples/mailer/templates/create.txt');
	mkdir "$dir/templates";
	PostgreSQL::Test::Utils::system_or_bail('cp', glob('examples/mailer/templates/*'), "$dir/templates");
	write_file('templates/create.txt', $text =~ s/^.*/$first/r);
	write_file('templates.conf', "[database]\nconninfo = $conninfo\n${smtp}templates = $dir/templates\n");
	return;
}
clear();
my $word = '=?utf-8?q?=0d=0aBcc:_x?=';
sql("UPDATE apitoken.organizations SET name = '$word'");
create_one("a $word");
is(scalar(once('mail')), 0, 'an encoded word in a label');
templates('API token "$label" of $organization was created');
create_one('by name');
is(scalar(once('templates')), 0, '... and in the name of an organization');
is(join('|', map { header($_, 'Subject') } lines('mails')), join('|', map { s/=\?utf/= ?utf/r } "API token \"a $word\" was created", "API token \"by name\" of $word was created"), '... is not decoded');

clear();
sql(q{DELETE FROM apitoken.notifications; UPDATE apitoken.organizations SET name = 'Acme';
	INSERT INTO apitoken.users (id, email) VALUES ('bad1', 'a@[1.2.3.4'), ('bad2', repeat('(', 5000) || 'a@b.c'), ('bad3', E'_@ [\t'),
		('bad4', 'x@=?utf-8?q?=0d=0aBcc:_x?='), ('bad5', 'a.' || repeat('b', 300) || '@c.example'), ('nul', 'nul@acme.example');
	INSERT INTO apitoken.memberships SELECT 'acme', id, 'admin' FROM apitoken.users WHERE id LIKE 'bad%'});
create_one('bad 1');
create_one('bad 2');
($status, $log) = once('mail');
is($status, 0, 'no address ends the mailer');
is(join(' ', map { "@{$_->{to}}" } lines('mails')), 'ada@acme.example ada@acme.example', '... and others have their mails');
is(scalar(() = $log =~ /an address is not valid/g), 10, '... as the log tells of each');
is(outbox(), '2 delivered, 0 pending', '... at the first attempt');
sql(q{DELETE FROM apitoken.memberships WHERE user_id LIKE 'bad%'; INSERT INTO apitoken.memberships VALUES ('acme', 'nul', 'admin')});
clear();
create_one('nul');
sql(q{DELETE FROM apitoken.memberships WHERE user_id = 'nul'});
create_one('after nul');
is(scalar(once('mail')), 1, 'a reply with a NUL byte is a failure');
is(sql('SELECT last_error FROM apitoken.notifications WHERE next_attempt_at IS NOT NULL'), '451 4.7.1 n ul \xfc', '... which is recorded, in ASCII');
is(scalar(lines('mails')), 2, '... and others have their mails');
clear();
write_file('status', '0');
sql('DELETE FROM apitoken.notifications');
create_one("garbage $_") foreach 1, 2;
($status, $log) = once('both');
is($status, 1, 'a webhook that does not answer in HTTP is a failure');
is(sql(q{SELECT string_agg(last_error, ' ') FROM apitoken.notifications WHERE next_attempt_at IS NOT NULL}), 'BadStatusLine BadStatusLine', '... which is recorded');
is(scalar(lines('mails')), 2, '... and the mails are sent');
unlike($log, qr/garbage/, 'the log has no text of an unexpected exception');

clear();
write_file('status', '200');
sql('DELETE FROM apitoken.notifications');
templates('100 % $ wrong');
create_one('mistake');
($status, $log) = once('templates');
is($status, 1, 'a template with a mistake is a failure');
like(sql('SELECT last_error FROM apitoken.notifications'), qr/^no template create, or a mistake in it: Invalid placeholder/, '... which the record tells');
unlike($log, qr/address/, '... and not one of an address');
clear();
sql('DELETE FROM apitoken.notifications');
create_one('far');
sql(q{UPDATE apitoken.notifications SET payload = payload || '{"expires_at": "12026-01-02T03:04:05+00:00"}'});
is(scalar(once('mail')), 0, 'a time that Python does not know is no failure');
like((lines('mails'))[0]{text}, qr/Expires: 12026-01-02T03:04:05/, '... and is in its mail');

# ---- a server that ends the connection at one mail
clear();
sql(q{DELETE FROM apitoken.notifications; INSERT INTO apitoken.users (id, email) VALUES ('drop', 'drop@acme.example'); INSERT INTO apitoken.memberships VALUES ('acme', 'drop', 'admin')});
create_one('dropped');
sql(q{DELETE FROM apitoken.memberships WHERE user_id = 'drop'});
create_one('not dropped');
is(scalar(once('mail')), 1, 'a server that ends the connection: a failure');
is(join(' ', map { "@{$_->{to}}" } lines('mails')), 'ada@acme.example ada@acme.example', '... of that mail only');
is(outbox(), '1 delivered, 1 pending', '... and of that notification');

# ---- the end of a lease, and SIGTERM, between two recipients
my $holds = 0;
sub start_held
{
	my ($config, @options) = @_;
	clear();
	sql(q{DELETE FROM apitoken.notifications});
	write_file('hold', '');
	create_one('held ' . ++$holds);
	my $output = '';
	my $mailer = IPC::Run::start([ '/bin/sh', '-c', "echo \$\$ > $pid_file; exec @mailer $dir/$config.conf @options" ], '<', \undef, '>&', \$output);
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last if -e "$dir/held";
		select undef, undef, undef, 0.1;
	}
	ok(-e "$dir/held", 'the mailer waits for the reply to its first mail');
	return ($mailer, \$output);
}
sql(q{INSERT INTO apitoken.users (id, email) SELECT 'many' || i, 'many' || i || '@acme.example' FROM generate_series(1, 3) i;
	INSERT INTO apitoken.memberships SELECT 'acme', id, 'admin' FROM apitoken.users WHERE id LIKE 'many%'});
my ($held, $held_log) = start_held('mail', '--once');
$node->poll_query_until('postgres', 'SELECT bool_and(next_attempt_at < now()) FROM apitoken.notifications');
is(scalar(once('long')), 0, 'its lease ends, and another mailer delivers');
unlink "$dir/held";
$held->finish;
is(scalar(lines('mails')), 5, 'who lost the lease sends nothing more');
like($$held_log, qr/the time of the lease was over/, '... and tells why');
is(outbox(), '1 delivered, 0 pending', '... and takes nothing back');

($held, $held_log) = start_held('mail', '--once');
$node->poll_query_until('postgres', 'SELECT bool_and(next_attempt_at < now()) FROM apitoken.notifications');
is(sql(q{SELECT attempts FROM apitoken.claim_notifications(lease => '1 day')}), 2, 'its lease ends, and another mailer has the notification');
unlink "$dir/held";
$held->finish;
is(sql(q{SELECT next_attempt_at > now() + '1 hour' AND last_error IS NULL FROM apitoken.notifications}), 't', 'who lost the lease does not take it back');
like($$held_log, qr/claimed by another mailer/, '... and tells so');

($held, $held_log) = start_held('long');
chomp($pid = slurp_file($pid_file));
kill TERM => $pid;
unlink "$dir/held";
$held->finish;
is(scalar(lines('mails')), 1, 'SIGTERM ends it after the mail that is being sent');
is(sql('SELECT last_error FROM apitoken.notifications'), 'the mailer was stopped', '... as the record tells');
sql(q{DELETE FROM apitoken.memberships WHERE user_id LIKE 'many%'});

# ---- one way fails, and the other one does not
clear();
sql(q{DELETE FROM apitoken.notifications; UPDATE apitoken.users SET email = 'bounce@acme.example' WHERE id = 'ada'});
create_one('all refused, hooked');
is(scalar(once('both')), 1, 'all are refused for good: a failure, although the webhook has it');
is(sql('SELECT last_error FROM apitoken.notifications'), 'all recipients were refused', '... as the record tells');
is(scalar(lines('hooks')), 1, '... and it does');
sql(q{UPDATE apitoken.users SET email = 'ada@acme.example' WHERE id = 'ada'});
foreach my $down ('smtp', 'http')
{
	clear();
	sql('DELETE FROM apitoken.notifications');
	stop_program($down);
	create_one("$down is down $_") foreach 1 .. 5;
	is(scalar(once('two')), 1, "$down cannot be reached: a failure");
	is(scalar(lines($down eq 'smtp' ? 'hooks' : 'mails')), 5, '... but not of the other way');
	is(outbox(), '0 delivered, 5 pending', '... and all are tried again');
	$down eq 'smtp' ? start_smtp() : start_http();
}

# ---- a leak: where it was found, and whether the token is still accepted
clear();
sql('DELETE FROM apitoken.notifications');
sql(q{UPDATE apitoken.organizations SET notify = '{leak}', on_leak = 'notify' WHERE id = 'acme'});
my $found = create_one('found');
my $report = "SELECT count(*) FROM apitoken.report_leaked(ARRAY['$found'], 'commit', E'https://git.example/<b>?key=$found\\r\\nBcc: x')";
sql($report);
sql(q{UPDATE apitoken.organizations SET on_leak = 'revoke' WHERE id = 'acme'});
sql($report);
is(scalar(once('mail')), 0, 'two reports of a token');
my @leaks = lines('mails');
is(join('|', map { header($_, 'Subject') } @leaks), 'API token "found" has leaked|API token "found" has leaked', '... are told');
like($leaks[0]{text}, qr/It is still accepted/, 'the first one did not revoke it');
like($leaks[1]{text}, qr/The token was revoked/, 'the second one did');
like($leaks[1]{text}, qr{^Found in: commit https://git\.example/<b>\?key=apt_org_\w{22}\*+ Bcc: x\r?$}m, 'the place, on one line and without the secret');
is(scalar(grep { index($_->{raw}, substr($found, 30, 20)) >= 0 || $_->{html} =~ /<b>/ } @leaks), 0, 'neither the secret nor HTML');
sql(q{UPDATE apitoken.organizations SET notify = '{create}' WHERE id = 'acme'});

# ---- STARTTLS and a login
SKIP:
{
	skip 'openssl is missing', 5 if system("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout $dir/key.pem -out $dir/cert.pem >/dev/null 2>&1") != 0;
	stop_program('smtp');
	start_smtp('tls');
	clear();
	write_file('password', "smtp password\n");
	my $tls = $smtp =~ s/tls = none/tls = starttls/r;
	write_file('tls.conf', "[database]\nconninfo = $conninfo\n${tls}ca_file = $dir/cert.pem\nuser = apitoken\npassword_file = $dir/password\n");
	write_file('untrusted.conf', "[database]\nconninfo = $conninfo\n${tls}user = apitoken\npassword_file = $dir/password\n");
	create_one('encrypted');
	is(scalar(once('mail')), 1, 'a server that requires TLS refuses a mailer without it');
	due_now();
	($status, $log) = once('untrusted');
	is($status, 1, 'a certificate that nobody vouches for is refused');
	like($log, qr/certificate verify failed/, '... and the log tells');
	due_now();
	is(scalar(once('tls')), 0, 'STARTTLS and login');
	my ($mail) = lines('mails');
	ok($mail->{tls} && $mail->{login}, 'the server has seen both');
}

# ---- the unit: its user exists, so that files with secrets can be readable for it alone
my $unit = slurp_file('examples/mailer/apitoken-mailer.service');
unlike($unit, qr/^DynamicUser=/m, 'the unit has a user to whom files can belong');
like(slurp_file('examples/mailer/README.md'), qr/useradd --system .*\s${\($unit =~ m{^User=(\w+)$}m)}$/m, '... whom the README makes');
SKIP:
{
	skip 'systemd-analyze is missing', 1 if system('systemd-analyze --version >/dev/null 2>&1') != 0;
	my $output = '';
	IPC::Run::run([ 'systemd-analyze', 'verify', 'examples/mailer/apitoken-mailer.service' ], '<', \undef, '>&', \$output);
	is($output, '', 'systemd understands it');
}

stop_program($_) foreach 'smtp', 'http';
no_crash($node);
done_testing();
