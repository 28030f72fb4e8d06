# No secret in the server's log, in pg_stat_activity, in pg_stat_statements, or
# in what the client gets besides results.
#
# Each case is run twice.  With apitoken.mask_logs on, no twelve consecutive
# characters of the secret may be found anywhere.  With it off, they must be found,
# so that a case which logs nothing does not pass.  The cases use a client of this
# file.  It can send the same statement as text, in a Parse message and with a bind
# parameter, and it shows exactly what the server sends (psql adds lines of the
# statement).

use strict;
use warnings;

use ApitokenTest;
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# ---- a client

$SIG{PIPE} = 'IGNORE';

package Client;

sub new
{
	my ($class, $node, $settings, $startup) = @_;
	my $path = $node->host . '/.s.PGSQL.' . $node->port;
	my $self = bless { socket => IO::Socket::UNIX->new(Peer => $path), got => '' }, $class;
	my $options = join(' ', map { "-c $_=" . ($settings->{$_} =~ s/([\\ ])/\\$1/gr) } sort keys %$settings);
	my $body = pack('N', 196608) . join('', map { "$_\0" } 'user', $main::superuser, 'database', 'postgres', 'options', $options, %{ $startup // {} }) . "\0";

	die "no connection to $path" unless $self->{socket};
	$self->{socket}->blocking(1);
	syswrite($self->{socket}, pack('N', 4 + length $body) . $body);
	return $self->wait_ready ? $self : undef;
}

sub get_bytes
{
	my ($self, $count) = @_;
	my $bytes = '';

	while (length $bytes < $count)
	{
		my $got = sysread($self->{socket}, $bytes, $count - length $bytes, length $bytes);
		return undef unless $got;
	}
	return $bytes;
}

# Read up to a message of that type (default: ReadyForQuery), or to the end.  Keep
# errors and notices.
sub wait_ready
{
	my ($self, $until) = @_;

	while (defined(my $head = $self->get_bytes(5)))
	{
		my ($type, $length) = unpack('aN', $head);
		my $body = $length > 4 ? $self->get_bytes($length - 4) : '';

		$self->{pid} = unpack('N', $body) if $type eq 'K';
		$self->{got} .= $body if $type eq 'E' || $type eq 'N';
		$self->{rows} .= substr($body, 6) if $type eq 'D';
		if ($type eq 'G')
		{
			$self->message('d', $self->{copy});
			$self->message('c', '');
		}
		return 1 if $type eq ($until // 'Z');
	}
	return 0;
}

sub message
{
	my ($self, $type, $body) = @_;

	syswrite($self->{socket}, $type . pack('N', 4 + length $body) . $body);
}

sub send_query { my ($self, $sql) = @_; $self->message('Q', "$sql\0"); }
sub send_parse { my ($self, $name, $sql) = @_; $self->message('P', "$name\0$sql\0" . pack('n', 0)); }

sub send_bind
{
	my ($self, $name, @values) = @_;

	$self->message('B', "\0$name\0" . pack('nn', 0, scalar @values) .
		join('', map { pack('N', length $_) . $_ } @values) . pack('n', 0));
}

sub send_execute { my ($self, $rows) = @_; $self->message('E', "\0" . pack('N', $rows // 0)); }
sub send_flush { my ($self) = @_; $self->message('H', ''); }
sub send_sync { my ($self) = @_; $self->message('S', ''); }

# As the text of a simple query, in a Parse message, or with bind parameters.
sub query { my ($self, $sql) = @_; $self->send_query($sql); $self->wait_ready; }

sub extended
{
	my ($self, $sql, @values) = @_;

	$self->send_parse('', $sql);
	$self->send_bind('', @values);
	$self->send_execute;
	$self->send_sync;
	$self->wait_ready;
}

# The rows of a query of the test's own, as text.
sub rows_of
{
	my ($self, $sql) = @_;

	$self->{rows} = '';
	$self->query($sql);
	return $self->{rows};
}

sub close { my ($self) = @_; $self->message('X', ''); $self->get_bytes(1); $self->{socket}->close; }

package main;

# ---- the server

my %libraries = (shared => "'pg_stat_statements, auto_explain, apitoken'", session => "'pg_stat_statements, auto_explain'",
	first => "'apitoken, pg_stat_statements, auto_explain'");
our $node = start_node('masking', conf => "shared_preload_libraries = $libraries{shared}\n" . q{
	logging_collector = on
	log_destination = 'stderr,csvlog,jsonlog'
	log_directory = 'log'
	log_filename = 'server.log'
	log_rotation_age = 0
	log_rotation_size = 0
	log_line_prefix = '%m [%p] '
	log_statement = none
	log_connections = off
	log_disconnections = off
	restart_after_crash = on
	compute_query_id = on
	autovacuum = off
	wal_level = replica
	max_wal_senders = 2
});
our $superuser = $node->safe_psql('postgres', 'SELECT current_user');
my $version = $node->safe_psql('postgres', 'SHOW server_version_num') / 10000;
my $parallel = $version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';

$node->safe_psql('postgres', q{
	CREATE EXTENSION apitoken;
	CREATE EXTENSION pg_stat_statements;
	CREATE TABLE things (name text PRIMARY KEY CHECK (name <> 'x'), n int NOT NULL);
	CREATE TABLE numbers (n int);
	INSERT INTO numbers VALUES (1), (2);
	CREATE FUNCTION runs_a_comment(t text) RETURNS text LANGUAGE plpgsql AS $$DECLARE r text; BEGIN EXECUTE format('SELECT count(*)::text /* %s */ FROM numbers', t) INTO r; RETURN r; END$$;
	CREATE TABLE many AS SELECT g AS n FROM generate_series(1, 5000) g;
	ANALYZE many;
	CREATE FUNCTION to_number(t text) RETURNS int LANGUAGE plpgsql AS $$BEGIN RETURN t::int; END$$;
	CREATE FUNCTION safe_to_number(t text) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$BEGIN RETURN t::int; END$$;
	CREATE FUNCTION says(level text, t text) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF level = 'log' THEN RAISE LOG 'message %', t USING DETAIL = 'detail ' || t, HINT = 'hint ' || t;
		ELSIF level = 'warning' THEN RAISE WARNING 'message %', t USING DETAIL = 'detail ' || t, HINT = 'hint ' || t;
		ELSIF level = 'notice' THEN RAISE NOTICE 'message %', t USING DETAIL = 'detail ' || t, HINT = 'hint ' || t;
		ELSE RAISE EXCEPTION 'message %', t USING DETAIL = 'detail ' || t, HINT = 'hint ' || t;
		END IF;
	END$$;
	CREATE FUNCTION runs(t text) RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE format('SELECT %L FROM FROM', t); END$$;
	CREATE FUNCTION runs_well(t text) RETURNS text LANGUAGE plpgsql AS $$DECLARE r text; BEGIN EXECUTE format('SELECT %L || count(*)::text FROM numbers', t) INTO r; RETURN r; END$$;
	CREATE PROCEDURE does(t text) LANGUAGE plpgsql AS $$BEGIN COMMIT; PERFORM t::int; END$$;
});

# ---- tokens, and where they must not appear

my @digits = ('0' .. '9', 'A' .. 'Z', 'a' .. 'z');
my $made = 0;

# A text in the form of a token: nothing here depends on its validity.
sub new_token
{
	my $prefix = ('apt', 'ab', 'abcdefghijk9')[ $made++ % 3 ];
	my $head = $prefix . ($made % 2 ? '_org_' : '_usr_') . '0' . join('', map { $digits[ rand 62 ] } 2 .. 22);
	my $secret = join('', map { $digits[ rand 62 ] } 1 .. 49);

	return { text => "$head$secret", head => $head, secret => $secret };
}

# Does the text contain so many consecutive characters of the secret?  (Unquoted
# names appear in lower case.)
sub leaks
{
	my ($text, $token, $length) = @_;
	my $lower = lc $text;

	$length //= 12;
	foreach my $at (0 .. length($token->{secret}) - $length)
	{
		return 1 if index($lower, lc substr($token->{secret}, $at, $length)) >= 0;
	}
	return 0;
}

# A text without the tokens in it, masked or not.
sub without
{
	my ($text, $token) = @_;

	return $text =~ s/\Q$token->{head}\E(\*+_?|[0-9A-Za-z]*)/TOKEN/gir =~ s/(\.\.\.|\n)[*\w]{12,}/$1PIECE/gr;
}

my @logs = map { $node->data_dir . "/log/server.$_" } 'log', 'csv', 'json';
my %position;
my $mark = 0;
my $observer;

# What was logged since the last call, by file.  The collector writes with some
# delay: once a last message has arrived, everything before it is there too.
sub logged
{
	my $name = 'mark-' . ++$mark . '-here';
	my %new;

	$observer->query("DO \$\$BEGIN RAISE LOG '$name'; END\$\$");
	foreach my $file (@logs)
	{
		for (my $tries = 0; ; $tries++)
		{
			my $all = slurp_file($file);

			$new{$file} = substr($all, $position{$file} // 0);
			if ($new{$file} =~ /LOG\W.*message\W.*$name|LOG: +$name|,LOG,.*$name|$name.*LOG/s)
			{
				$position{$file} = length $all;
				last;
			}
			die "$name does not come to $file" if $tries > 1000 * $PostgreSQL::Test::Utils::timeout_default;
			usleep(1000);
		}
	}
	return map { $new{$_} } @logs;
}

# ---- the cases

# The token replaces the ?: as a literal, or as $1.  set: settings of the session;
# client: the client gets the message as well; by: the ways to send it, if not all;
# piece: only a piece is logged, without the id; startup: parameters of the connection.
my %log_all = (log_statement => 'all');
my %log_slow = (log_min_duration_statement => 0);
my %log_parameters = (log_parameter_max_length_on_error => -1);
my %explain = ('auto_explain.log_min_duration' => 0, 'auto_explain.log_nested_statements' => 'on');
my @text = ('simple', 'parse');

# A NOTICE that only the client gets is not masked: "identifier ... will be truncated".
my %quiet = (client_min_messages => 'warning');

my @cases = (
	# statements that are logged, and their parameters
	{ name => 'log_statement', set => {%log_all}, sql => 'SELECT ?::text' },
	{ name => 'log_min_duration_statement', set => {%log_slow}, sql => 'SELECT ?::text' },
	{ name => 'log_min_duration_sample', set => { log_min_duration_sample => 0, log_statement_sample_rate => 1 }, sql => 'SELECT ?::text' },
	{ name => 'log_transaction_sample_rate', set => { log_transaction_sample_rate => 1 }, sql => 'SELECT ?::text' },
	{ name => 'log_statement and duration', set => { %log_all, %log_slow, log_duration => 'on' }, sql => 'SELECT ?::text' },
	{ name => 'log_statement = mod', set => { log_statement => 'mod' }, sql => q{INSERT INTO things SELECT ?::text, 1 WHERE false} },
	{ name => 'log_statement = ddl', set => { log_statement => 'ddl' }, sql => q{COMMENT ON TABLE things IS ?}, by => [@text] },
	{ name => 'log_error_verbosity', set => { %log_all, log_error_verbosity => 'verbose' }, sql => 'SELECT ?::text' },
	{ name => 'a comment', set => {%log_all}, sql => '/* path=/t/?/x don\'t */ SELECT 1 -- ?', by => [@text], bare => 1 },
	{ name => 'nothing but a comment', set => {%log_all}, sql => '-- ?', by => ['simple'], bare => 1 },
	{ name => 'several statements', set => {%log_all}, sql => 'SELECT 1; SELECT ?; SELECT 2', by => ['simple'] },
	{ name => 'several tokens', set => {%log_all}, sql => q{SELECT ?::text || ?::text, '?,?;?' || ?::text}, by => [@text] },
	{ name => 'a long statement', set => {%log_all}, sql => 'SELECT ARRAY[' . join(', ', map { "'$_'" } 1 .. 30000) . '] @> ARRAY[?]', by => [ 'simple', 'parse', 'bind' ] },
	{ name => 'a cursor', set => {%log_all}, sql => 'DECLARE c CURSOR WITH HOLD FOR SELECT ?::text', by => [@text] },
	{ name => 'CREATE FUNCTION', set => {%log_all}, sql => 'CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS $f$SELECT ?::text$f$', by => [@text] },
	{ name => 'CREATE TABLE AS', set => {%log_all}, sql => 'CREATE TEMP TABLE t AS SELECT ?::text' , by => [@text] },

	# log_parameter_max_length: 8 characters of the secret, and less
	{ name => 'a parameter cut in the secret', set => { %log_slow, log_parameter_max_length => 55 }, sql => 'SELECT ?::text', by => [ 'bind', 'named' ], window => 8 },
	{ name => 'a parameter cut in the secret, in an error', set => { log_parameter_max_length_on_error => 55 }, sql => 'SELECT length(?::text) / 0', by => [ 'bind', 'named' ], window => 8, client => 1 },

	# identity
	{ name => 'authenticate', set => {%log_parameters}, sql => 'SELECT FROM apitoken.authenticate(?)' },
	{ name => 'verify', set => {%log_slow}, sql => 'SELECT verdict FROM apitoken.verify(?)' },
	{ name => 'SET LOCAL apitoken.token', set => {%log_all}, sql => 'SET LOCAL apitoken.token = ?', by => [@text] },
	{ name => 'SET LOCAL apitoken.token, not quoted', set => { %log_all, %quiet }, sql => 'SET LOCAL apitoken.token = ?', by => [@text], bare => 1 },
	{ name => 'set_config of the token', set => {%log_slow}, sql => q{SELECT set_config('apitoken.token', ?, true)} },
	{ name => 'request.headers', set => {%log_slow}, sql => q{SELECT set_config('request.headers', ?, true)}, around => '{"accept":"*/*","authorization":"Bearer ?","x-api-key":"?"}' },
	{ name => 'request.headers, log_statement', set => {%log_all}, sql => q{SELECT set_config('request.headers', ?, true)}, around => '{"accept":"*/*","authorization":"Bearer ?","x-api-key":"?"}' },
	{ name => 'an address that is none', sql => 'SET LOCAL apitoken.client_address = ?', by => [@text], client => 1 },
	{ name => 'a user id too long', sql => 'SET LOCAL apitoken.user_id = ?', by => [@text], around => ('z' x 255) . '?' },

	# errors: the message, and the statement beside it
	{ name => 'a syntax error', sql => 'SELECT ? FROM FROM', by => [@text] },
	{ name => 'a syntax error at the token', sql => 'SELECT FROM FROM ?', by => [@text], bare => 1 },
	{ name => 'a syntax error at a string', sql => 'SELECT 1 1 ?', by => [@text] },
	{ name => 'a string without end', sql => q{SELECT '?}, by => [@text], bare => 1, client => 1 },
	{ name => 'an identifier', set => {%quiet}, sql => 'SELECT ?', by => [@text], bare => 1, client => 1, window => 8 },
	{ name => 'a quoted identifier', set => {%quiet}, sql => 'SELECT "?"', by => [@text], bare => 1, client => 1, window => 8 },
	{ name => 'a function that is not there', sql => 'SELECT nosuchfunction(?)', by => [@text] },
	(map { { name => "a cast to $_", set => {%log_parameters}, sql => "SELECT ?::text::$_", client => 1 } }
		qw(int uuid inet date interval boolean numeric point regclass regproc json jsonb int[] int4range timestamptz)),
	(map { { name => "a literal of type $_", sql => "SELECT $_ ?", by => [@text], client => 1 } } qw(int uuid jsonb inet)),
	{ name => 'a parameter that is no int', set => {%log_parameters}, sql => 'SELECT ?::int', by => [ 'bind', 'named' ], client => 1 },
	{ name => 'a parameter that is no uuid', set => { log_parameter_max_length_on_error => 55 }, sql => 'SELECT * FROM apitoken.tokens WHERE id = ?', by => [ 'bind', 'named' ], client => 1 },
	{ name => 'JSON with a token before the error', set => {%log_parameters}, sql => 'SELECT ?::text::json', around => '{"t":"?",x}', client => 1 },
	{ name => 'JSON with a token cut off', set => {}, sql => 'SELECT to_number(?::json->>0)', around => '{"filling":"so that it is long enough","token":"?" oops}', by => [ 'bind', 'named' ], client => 1, piece => 1 },
	{ name => 'XML with a token cut off', set => {%log_parameters}, sql => 'SELECT ?::text::xml', around => '<a t="?"></b>', client => 1 },
	{ name => 'XML with a token cut off, in its second line', set => {%log_parameters}, sql => 'SELECT ?::text::xml', around => qq{<a>\n<?x ?></b>}, client => 1 },
	{ name => 'upper()', sql => 'SELECT upper(?::text)::int', client => 1 },
	{ name => 'initcap()', sql => 'SELECT initcap(?::text)::int', client => 1 },
	{ name => 'to_date() with a token cut off', sql => q{SELECT to_date(?::text, '"' || repeat('x', 40) || '"MONTH')}, client => 1, piece => 1, by => [ 'bind', 'named' ] },
	{ name => 'division by zero', set => {%log_parameters}, sql => 'SELECT length(?::text) / 0' },
	{ name => 'a key that is there', sql => q{INSERT INTO things SELECT ?::text, 1 FROM numbers}, client => 1, set => {%log_parameters} },
	{ name => 'a failing row', sql => q{INSERT INTO things SELECT ?::text, NULL}, client => 1, set => {%log_parameters} },
	{ name => 'statement_timeout', set => { %log_parameters, statement_timeout => '20ms' }, sql => 'SELECT pg_sleep(100), ?::text' },
	{ name => 'an aborted transaction', sql => 'BEGIN; SELECT 1 / 0', then => 'SELECT ?::text', by => ['simple'] },
	{ name => 'a setting of another kind', sql => 'SET work_mem = ?', by => [@text], client => 1 },
	{ name => 'a prepared transaction', sql => 'COMMIT PREPARED ?', by => [@text], client => 1 },

	# messages of PL/pgSQL, with detail, hint and context
	(map { { name => "RAISE $_", sql => "SELECT says('$_', ?)", client => $_ ne 'log', set => {%log_parameters} } } qw(log warning exception)),
	{ name => 'RAISE NOTICE that is logged', sql => q{SELECT says('notice', ?)}, client => 1, set => { log_min_messages => 'notice' } },
	{ name => 'an error in PL/pgSQL', sql => 'SELECT to_number(?)', client => 1, set => {%log_parameters} },
	{ name => 'an error in EXECUTE', sql => 'SELECT runs(?)', set => {%log_parameters}, client => 1 },
	{ name => 'an error in DO', sql => 'DO $d$BEGIN PERFORM to_number(?); END$d$', by => [@text], client => 1 },
	{ name => 'an error in CALL', sql => 'CALL does(?)', client => 1, set => {%log_parameters} },
	{ name => 'an error in a parallel worker', sql => 'SELECT safe_to_number(?::text || n) FROM many', client => 1, set => { %log_parameters, $parallel => 'on' } },

	# COPY
	{ name => 'COPY FROM', sql => 'COPY numbers FROM STDIN', copy => "1\n?\n", by => ['copy'], client => 1 },
	{ name => 'COPY FROM, a line too long', sql => 'COPY numbers FROM STDIN', copy => "1\t?\n", by => ['copy'], client => 1 },
	{ name => 'COPY FROM, csv', sql => 'COPY things FROM STDIN (FORMAT csv)', copy => "\"?\",?\n", by => ['copy'], client => 1 },
	{ name => 'COPY TO', set => {%log_all}, sql => 'COPY (SELECT ?) TO STDOUT', by => ['simple'] },
	{ name => 'BASE_BACKUP', set => { log_replication_commands => 'on' }, startup => { replication => 'database' }, by => ['simple'],
		sql => q{BASE_BACKUP (LABEL ?, CHECKPOINT 'fast', WAL false, TARGET 'blackhole')} },
	{ name => 'COPY TO a file', sql => 'COPY (SELECT ?) TO \'/nonexistent/?\'', by => ['simple'], client => 1 },

	# statements prepared by SQL
	{ name => 'PREPARE', set => {%log_all}, sql => 'PREPARE p AS SELECT ?::text', by => [@text] },
	{ name => 'EXECUTE', set => {%log_all}, sql => 'PREPARE p(text) AS SELECT $1', then => 'EXECUTE p(?)', by => ['simple'] },
	{ name => 'EXECUTE with an error', sql => 'PREPARE p(text) AS SELECT $1::int', then => 'EXECUTE p(?)', by => ['simple'], client => 1 },
	{ name => 'EXECUTE of a text with a token', set => {%log_slow}, sql => 'PREPARE p AS SELECT ?::text', then => 'EXECUTE p', by => ['simple'] },

	# auto_explain
	{ name => 'auto_explain', set => {%explain}, sql => 'SELECT n FROM numbers WHERE n::text = ?' },
	{ name => 'auto_explain, JSON', set => { %explain, 'auto_explain.log_format' => 'json' }, sql => 'SELECT n FROM numbers WHERE n::text = ?' },
	{ name => 'auto_explain, XML, verbose', set => { %explain, 'auto_explain.log_format' => 'xml', 'auto_explain.log_verbose' => 'on' }, sql => 'SELECT n FROM numbers WHERE n::text = ?' },
	{ name => 'auto_explain, YAML', set => { %explain, 'auto_explain.log_format' => 'yaml' }, sql => 'SELECT n FROM numbers WHERE n::text = ?' },
	{ name => 'auto_explain, parameters', from => 16, set => { %explain, plan_cache_mode => 'force_generic_plan', 'auto_explain.log_parameter_max_length' => -1 }, sql => 'SELECT n FROM numbers WHERE n::text = ?', by => [ 'bind', 'named' ] },
	{ name => 'auto_explain, parameters cut in the secret', from => 16, set => { %explain, plan_cache_mode => 'force_generic_plan', 'auto_explain.log_parameter_max_length' => 55 }, sql => 'SELECT n FROM numbers WHERE n::text = ?', by => [ 'bind', 'named' ], window => 8 },
	{ name => 'auto_explain, analyze', set => { %explain, 'auto_explain.log_analyze' => 'on', 'auto_explain.log_triggers' => 'on' }, sql => 'INSERT INTO things SELECT name, 1 FROM things WHERE name = ?' },
	{ name => 'auto_explain, nested', set => {%explain}, sql => 'SELECT runs_well(?)' },
	{ name => 'auto_explain, parallel', set => { %explain, $parallel => 'on', 'auto_explain.log_analyze' => 'on' }, sql => 'SELECT count(*) FROM many WHERE n::text = ?' },
);

sub quote { return "'" . ($_[0] =~ s/'/''/gr) . "'"; }

sub run_case
{
	my ($case, $way, $token, $settings) = @_;
	my $value = ($case->{around} // '?') =~ s/\?/$token->{text}/gr;
	my $literal = $case->{bare} ? $value : quote($value);
	my $client = Client->new($node, { %{ $case->{set} // {} }, %$settings }, $case->{startup});
	my $sql = $case->{sql};

	$observer->query("TRUNCATE things");
	logged();
	if ($way eq 'copy')
	{
		$client->{copy} = $case->{copy} =~ s/\?/$token->{text}/gr;
		$client->query($sql);
	}
	elsif ($way eq 'simple' || $way eq 'parse')
	{
		my $inner = "in it: $sql" =~ /'[^']*\?[^']*'/;

		# a string of the statement contains the token itself
		$sql =~ s/('[^'?]*)\?([^']*')/my ($a, $b) = ($1, $2); $b =~ s|\?|$token->{text}|g; "$a$token->{text}$b"/ge if $inner && !$case->{bare};
		$sql =~ s/\?/$literal/g;
		$way eq 'simple' ? $client->query($sql) : $client->extended($sql);
	}
	elsif ($way eq 'bind')
	{
		$sql =~ s/\?/\$1/g;
		$client->extended($sql, $value);
	}
	else
	{
		$sql =~ s/\?/\$1/g;
		$client->send_parse('statement', $sql);
		$client->send_sync;
		$client->wait_ready;
		foreach my $round (1 .. 2)
		{
			$client->send_bind('statement', $value);
			$client->send_execute;
			$client->send_sync;
			$client->wait_ready;
		}
	}
	$client->query($case->{then} =~ s/\?/$literal/gr) if $case->{then};
	$client->close;
	return ($client->{got}, logged());
}

sub check_case
{
	my ($case, $way, $form, $settings) = @_;
	my $name = "$form: $case->{name}, $way";
	my $window = $case->{window} // 12;
	my $token = new_token();
	my @wrong;

	my ($got, @new) = run_case($case, $way, $token, $settings);
	foreach my $i (0 .. 2)
	{
		push @wrong, "masked: secret in $logs[$i]" if leaks($new[$i], $token, $window);
		push @wrong, "masked: no id in $logs[$i]" if !$case->{piece} && index(lc $new[$i], lc $token->{head}) < 0;
	}
	push @wrong, 'masked: secret at the client' if leaks($got, $token, $window);
	diag(map { substr($_, 0, 3000) } @new, $got) if @wrong;

	# the control
	my $masked = $got;
	($got, @new) = run_case($case, $way, $token, { %$settings, 'apitoken.mask_logs' => 'off' });
	foreach my $i (0 .. 2)
	{
		push @wrong, "control: no secret in $logs[$i]" if !leaks($new[$i], $token, $window);
	}
	push @wrong, 'control: no secret at the client' if $case->{client} && !leaks($got, $token, $window);
	push @wrong, 'the client was told something else' if !$case->{piece} && without($masked, $token) ne without($got, $token);
	diag(map { substr($_, 0, 3000) } $new[0], $masked, $got) if @wrong;
	ok(!@wrong, $name) or diag(join("\n", @wrong));
}


# ---- the log: messages that take two sessions, or a crash

# Wait until the client waits for that event.  Returns what the observer sees then.
sub wait_for_event
{
	my ($client, $event) = @_;

	for (my $tries = 0; $tries < 50 * $PostgreSQL::Test::Utils::timeout_default; $tries++)
	{
		my $seen = $observer->rows_of("SELECT query FROM pg_stat_activity WHERE $client->{pid} IN (pid, leader_pid) AND state = 'active' AND $event");

		return $seen if $seen ne '';
		usleep(10000);
	}
	die "the client never waits for $event";
}

my $asleep = "wait_event = 'PgSleep'";
my $locked = "wait_event_type = 'Lock'";

sub check_deadlock
{
	my ($form, $settings) = @_;
	my $token = new_token();

	# The second client reports the deadlock.  Only its own hook masks what the report
	# says about the first client.
	my @clients = (
		Client->new($node, { 'apitoken.mask_logs' => 'off', deadlock_timeout => '1h' }),
		Client->new($node, { %$settings, deadlock_timeout => '10ms' }));

	logged();
	foreach my $i (0, 1)
	{
		$clients[$i]->query('BEGIN');
		$clients[$i]->query('UPDATE numbers SET n = n WHERE n = ' . ($i + 1));
	}
	$clients[0]->send_query("UPDATE numbers SET n = n WHERE n = 2 AND '$token->{text}' <> ''");
	wait_for_event($clients[0], $locked);
	$clients[1]->send_query("UPDATE numbers SET n = n WHERE n = 1 AND '$token->{text}' <> ''");
	$_->wait_ready foreach reverse @clients;
	$_->close foreach @clients;

	my @new = logged();
	return (join('', @new, map { $_->{got} } @clients), $token, 'deadlock detected');
}

sub check_crash
{
	my ($form, $settings) = @_;
	my $token = new_token();

	# the postmaster's own setting counts as well
	$node->append_conf('postgresql.conf', 'apitoken.mask_logs = ' . ($settings->{'apitoken.mask_logs'} // 'on'));
	$node->reload;
	my $client = Client->new($node, $settings);

	logged();
	$client->send_query("SELECT pg_sleep(1000), '$token->{text}'");
	wait_for_event($client, $asleep);
	PostgreSQL::Test::Utils::system_log('pg_ctl', 'kill', 'KILL', $client->{pid});
	$client->wait_ready;
	$observer->wait_ready;

	# connections are refused until the server has recovered
	for (my $tries = 0; $tries < 50 * $PostgreSQL::Test::Utils::timeout_default; $tries++)
	{
		last if $observer = eval { Client->new($node, {}) };
		usleep(20000);
	}
	return (join('', logged()), $token, 'Failed process was running');
}

sub check_message
{
	my ($name, $form, $run) = @_;

	my ($seen, $token, $message) = $run->($form, {});
	my $masked = !leaks($seen, $token) && index($seen, $token->{head}) >= 0 && $seen =~ /$message/;
	diag($seen) if !$masked;
	($seen, $token) = $run->($form, { 'apitoken.mask_logs' => 'off' });
	$node->adjust_conf('postgresql.conf', 'apitoken.mask_logs', undef);
	$node->reload;
	ok($masked && leaks($seen, $token), "$form: $name");
}

# ---- pg_stat_activity, as another session sees it

# What to send, and what to wait for before looking: an event, or a message
# (ReadyForQuery).  Then the length of the secret to look for, and parameters of the
# connection.
my @activities = (
	[ 'while it runs', $asleep, sub { $_[0]->send_query("SELECT pg_sleep(1000), '$_[1]'") } ],
	[ 'idle after it', '', sub { $_[0]->send_query("SELECT '$_[1]'") } ],
	[ 'idle in transaction', '', sub { $_[0]->query('BEGIN'); $_[0]->send_query("SELECT '$_[1]'") } ],
	[ 'after a syntax error', '', sub { $_[0]->send_query("SELECT FROM FROM '$_[1]'") } ],
	[ 'after a syntax error in a transaction', '', sub { $_[0]->query('BEGIN'); $_[0]->send_query("SELECT FROM FROM '$_[1]'") } ],
	[ 'in an aborted transaction', '', sub { $_[0]->query('BEGIN; SELECT 1 / 0'); $_[0]->send_query("SELECT '$_[1]'") } ],
	[ 'after a syntax error that is not logged', '', sub { $_[0]->query('SET log_min_messages = fatal'); $_[0]->send_query("SELECT FROM FROM '$_[1]'") } ],
	[ 'after nothing but a comment', '', sub { $_[0]->send_query("-- '$_[1]'") } ],
	[ 'after nothing but a comment in a transaction', '', sub { $_[0]->query('BEGIN'); $_[0]->send_query("-- '$_[1]'") } ],
	[ 'after nothing but a comment in an aborted transaction', '', sub { $_[0]->query('BEGIN; SELECT 1 / 0'); $_[0]->send_query("-- '$_[1]'") } ],
	[ 'in an aborted transaction, not logged', '', sub { $_[0]->query('SET log_min_messages = fatal'); $_[0]->query('BEGIN; SELECT 1 / 0'); $_[0]->send_query("SELECT '$_[1]'") } ],
	[ 'in an aborted transaction, not logged, after others', '', sub {
		$_[0]->query('SET log_min_messages = fatal');
		$_[0]->query('BEGIN; SELECT 1 / 0');
		$_[0]->query("SELECT 1") foreach 1 .. 3;
		$_[0]->send_query("SELECT '$_[1]'") } ],
	[ 'several statements', $asleep, sub { $_[0]->send_query("SELECT 1; SELECT pg_sleep(1000); SELECT '$_[1]'; SELECT '$_[1]'") } ],
	[ 'a utility statement', '', sub { $_[0]->send_query("SET apitoken.token = '$_[1]'") } ],
	[ 'DO', $asleep, sub { $_[0]->send_query("DO \$d\$BEGIN PERFORM pg_sleep(1000), '$_[1]'; END\$d\$") } ],
	[ 'a long one, cut in the secret', $asleep, sub { $_[0]->send_query('SELECT pg_sleep(1000), /* ' . ('x' x (1023 - 26 - $_[2] - 9)) . "$_[1] */ 1") }, 9 ],
	[ 'Parse', '', sub { $_[0]->send_parse('s', "SELECT '$_[1]'"); $_[0]->send_sync } ],
	[ 'Bind', '', sub { $_[0]->send_parse('s', "SELECT '$_[1]'"); $_[0]->send_bind('s'); $_[0]->send_sync } ],
	[ 'Bind of a utility statement', '', sub { $_[0]->send_parse('s', "DO \$d\$BEGIN PERFORM '$_[1]'; END\$d\$"); $_[0]->send_bind('s'); $_[0]->send_sync } ],
	[ 'Bind of a utility statement prepared before', '', sub {
		$_[0]->send_parse('s', "DO \$d\$BEGIN PERFORM '$_[1]'; END\$d\$"); $_[0]->send_sync; $_[0]->wait_ready;
		$_[0]->query('SELECT 1');
		$_[0]->send_bind('s'); $_[0]->send_sync } ],
	[ 'in the middle of the protocol, after Bind of a utility statement', '2', sub { $_[0]->send_parse('s', "DO \$d\$BEGIN PERFORM '$_[1]'; END\$d\$"); $_[0]->send_bind('s'); $_[0]->send_flush } ],
	[ 'BASE_BACKUP', '', sub { $_[0]->send_query("BASE_BACKUP (LABEL '$_[1]', CHECKPOINT 'fast', WAL false, TARGET 'blackhole')") }, 12, { replication => 'database' } ],
	[ 'in the middle of the protocol, after Parse', '1', sub { $_[0]->send_parse('s', "SELECT '$_[1]'"); $_[0]->send_flush } ],
	[ 'in the middle of the protocol, after Bind', '2', sub { $_[0]->send_parse('s', "SELECT '$_[1]'"); $_[0]->send_bind('s'); $_[0]->send_flush } ],
	[ 'Execute', $asleep, sub { $_[0]->send_parse('s', "SELECT pg_sleep(1000), '$_[1]'"); $_[0]->send_bind('s'); $_[0]->send_execute; $_[0]->send_sync } ],
	[ 'Execute, once more', '', sub {
		$_[0]->send_parse('s', "SELECT '$_[1]'"); $_[0]->send_sync; $_[0]->wait_ready;
		$_[0]->query('SELECT 1');
		$_[0]->send_bind('s'); $_[0]->send_execute; $_[0]->send_execute; $_[0]->send_sync } ],
	[ 'Execute of a utility statement', $asleep, sub { $_[0]->send_parse('s', "DO \$d\$BEGIN PERFORM pg_sleep(1000), '$_[1]'; END\$d\$"); $_[0]->send_bind('s'); $_[0]->send_execute; $_[0]->send_sync } ],
	[ 'Execute of a utility statement that waits', $locked, sub {
		$_[0]->query('BEGIN');
		$_[0]->send_parse('s', "LOCK TABLE things /* $_[1] */"); $_[0]->send_bind('s'); $_[0]->send_execute; $_[0]->send_sync } ],
	[ 'RETURNING, fetched row by row', '', sub {
		$_[0]->query('BEGIN');
		$_[0]->send_parse('s', "UPDATE numbers SET n = n RETURNING n, '$_[1]'"); $_[0]->send_bind('s');
		$_[0]->send_execute(1); $_[0]->send_execute(1); $_[0]->send_sync } ],
	[ 'EXPLAIN, fetched row by row', '', sub {
		$_[0]->query('BEGIN');
		$_[0]->send_parse('s', "EXPLAIN SELECT '$_[1]' UNION ALL SELECT ''"); $_[0]->send_bind('s');
		$_[0]->send_execute(1); $_[0]->send_execute(1); $_[0]->send_sync } ],
	[ 'EXECUTE', $asleep, sub { $_[0]->query('PREPARE p(text) AS SELECT pg_sleep(1000), $1'); $_[0]->send_query("EXECUTE p('$_[1]')") } ],
	[ 'a parallel query', $asleep, sub { $_[0]->query("SET $parallel = on"); $_[0]->send_query("SELECT safe_sleep(), '$_[1]'") } ],
);

sub activity_of
{
	my ($activity, $token, $settings) = @_;
	my ($name, $until, $run) = @$activity;
	my $holder = Client->new($node, {});
	my $client = Client->new($node, $settings, $activity->[4]);

	$holder->query('BEGIN; LOCK TABLE things');
	$client->query('SELECT 1');
	$run->($client, $token->{text}, length $token->{head});
	length $until > 1 ? wait_for_event($client, $until) : $client->wait_ready($until || undef);

	# parallel workers as well
	my $of = "FROM pg_stat_activity WHERE $client->{pid} IN (pid, leader_pid)";
	my $query = $observer->rows_of("SELECT string_agg(query, chr(10) ORDER BY pid = $client->{pid}) $of");
	my $rest = $observer->rows_of(qq{SELECT state || ' ' || (xact_start IS NULL)::text || (query_start <= state_change)::text ||
		(query_start >= coalesce(xact_start, query_start) - interval '1 ms')::text || ' ' || coalesce(query_id::text, 'none')
		$of AND leader_pid IS NULL});

	$observer->query("SELECT pg_terminate_backend($client->{pid})");
	1 while $client->wait_ready;
	$holder->close;
	return ($query, $rest);
}

sub check_activities
{
	my ($form) = @_;

	foreach my $activity (@activities)
	{
		next if $activity->[4] && $form ne 'shared';

		my $token = new_token();
		my $window = $activity->[3] // 12;
		my ($query, $rest) = activity_of($activity, $token, {});
		my ($raw, $raw_rest) = activity_of($activity, $token, { 'apitoken.mask_logs' => 'off' });

		ok(!leaks($query, $token, $window) && index($query, $token->{head}) >= 0 && leaks($raw, $token, $window), "$form: pg_stat_activity, $activity->[0]")
		  or diag("$query\n$raw");
		is(without($query, $token), without($raw, $token), "$form: pg_stat_activity, $activity->[0]: nothing else of the text is gone");
		is($rest, $raw_rest, "$form: pg_stat_activity, $activity->[0]: its state, times and query id are as without masking");
	}
}

# ---- pg_stat_statements

my @statements = (
	[ 'a literal', sub { $_[0]->query("SELECT '$_[1]'") } ],
	[ 'a comment', sub { $_[0]->query("SELECT 1 /* route='/x/$_[1]/y', don't */ + 2") } ],
	[ 'several statements', sub { $_[0]->query("SELECT 1 /* $_[1] */; SELECT 2 /* $_[1] */ + 1; SELECT 'x' /* $_[1] */") } ],
	[ 'a bind parameter', sub { $_[0]->extended('SELECT $1', $_[1]) } ],
	[ 'Execute after a reset', sub {
		$_[0]->send_parse('s', "SELECT '$_[1]' /* $_[1] */"); $_[0]->send_sync; $_[0]->wait_ready;
		$observer->query('SELECT pg_stat_statements_reset()');
		$_[0]->send_bind('s'); $_[0]->send_execute; $_[0]->send_sync; $_[0]->wait_ready } ],
	[ 'EXECUTE after a reset', sub {
		$_[0]->query("PREPARE p AS SELECT '$_[1]' /* $_[1] */");
		$observer->query('SELECT pg_stat_statements_reset()');
		$_[0]->query('EXECUTE p') } ],
	[ 'in PL/pgSQL', sub { $_[0]->query("SELECT runs_well('$_[1]')") } ],
	[ 'a comment in PL/pgSQL', sub { $_[0]->query("SELECT runs_a_comment('$_[1]')") } ],
	[ 'parsed while masking was off', sub {
		$_[0]->query('SET apitoken.mask_logs = off');
		$_[0]->send_parse('s', "SELECT 1 /* $_[1] */"); $_[0]->send_sync; $_[0]->wait_ready;
		$_[0]->query('RESET apitoken.mask_logs');
		$observer->query('SELECT pg_stat_statements_reset()');
		$_[0]->send_bind('s'); $_[0]->send_execute; $_[0]->send_sync; $_[0]->wait_ready } ],
	[ 'a parallel query', sub { $_[0]->query('SET max_parallel_workers_per_gather = 2'); $_[0]->query('SET parallel_setup_cost = 0'); $_[0]->query('SET min_parallel_table_scan_size = 0'); $_[0]->query("SELECT count(*) /* $_[1] */ FROM many") } ],
	[ 'SET LOCAL', sub { $_[0]->query("BEGIN; SET LOCAL apitoken.token = '$_[1]'; COMMIT") }, 1 ],
	[ 'DO', sub { $_[0]->query("DO \$d\$BEGIN PERFORM '$_[1]'; END\$d\$") }, 1 ],
	[ 'CALL', sub { $_[0]->query("CALL is_called('$_[1]')") }, 1 ],
	[ 'EXECUTE', sub { $_[0]->query('PREPARE p(text) AS SELECT $1'); $_[0]->query("EXECUTE p('$_[1]') /* $_[1] */") }, 1 ],
	[ 'COPY', sub { $_[0]->query("COPY (SELECT '$_[1]') TO STDOUT") }, 1 ],
	[ 'COMMENT', sub { $_[0]->query("COMMENT ON TABLE things IS '$_[1]'") }, 1 ],
	[ 'CREATE TABLE AS', sub { $_[0]->query("CREATE TEMP TABLE t AS SELECT '$_[1]'::text") }, 1 ],
	[ 'EXPLAIN', sub { $_[0]->query("EXPLAIN SELECT '$_[1]'") }, 1 ],
	[ 'a cursor', sub { $_[0]->query("DECLARE c CURSOR WITH HOLD FOR SELECT '$_[1]'; FETCH c; CLOSE c") }, 1 ],
	[ 'a utility statement among others', sub { $_[0]->query("SELECT 1; DO \$d\$BEGIN PERFORM '$_[1]'; END\$d\$; SELECT '$_[1]'") }, 1 ],
	[ 'a utility statement by Execute', sub { $_[0]->extended("DO \$d\$BEGIN PERFORM '$_[1]'; END\$d\$") }, 1 ],
);

sub stored_by
{
	my ($run, $token, $settings) = @_;
	my $client = Client->new($node, $settings);

	$observer->query('SELECT pg_stat_statements_reset()');
	$run->($client, $token->{text});
	$client->close;
	return $observer->rows_of("SELECT string_agg(query, chr(10) ORDER BY regexp_replace(query, '(org|usr)_[0-9A-Za-z*]+', '')) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'");
}

sub check_statements
{
	my ($form, $utility_too) = @_;
	my %settings = ('pg_stat_statements.track' => 'all', 'pg_stat_statements.track_planning' => $utility_too ? 'on' : 'off');
	my $in_control = 0;

	foreach my $statement (@statements)
	{
		my ($name, $run, $utility) = @$statement;
		next if $utility && !$utility_too;

		my $token = new_token();
		my $stored = stored_by($run, $token, {%settings});
		my $raw = stored_by($run, $token, { %settings, 'apitoken.mask_logs' => 'off' });

		ok(!leaks($stored, $token) && $stored ne '', "$form: pg_stat_statements, $name") or diag($stored);
		is(without($stored, $token), without($raw, $token), "$form: pg_stat_statements, $name: the same otherwise");
		$in_control++ if leaks($raw, $token);
		note("$name: " . (leaks($raw, $token) ? 'a secret' : 'no secret') . ' without masking');
	}
	cmp_ok($in_control, '>=', $utility_too ? 8 : 3, "$form: pg_stat_statements: without masking there are secrets");
}

# ---- all of this with the library preloaded

$node->safe_psql('postgres', q{
	CREATE FUNCTION safe_sleep() RETURNS void LANGUAGE plpgsql PARALLEL SAFE AS $$BEGIN PERFORM pg_sleep(1000); END$$;
	CREATE PROCEDURE is_called(t text) LANGUAGE plpgsql AS $$BEGIN NULL; END$$;
});

foreach my $form ('shared', 'session')
{
	if ($form eq 'session')
	{
		$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', $libraries{session});
		$node->append_conf('postgresql.conf', q{session_preload_libraries = 'apitoken'});
		$observer->close;
		$node->restart;
	}
	$observer = Client->new($node, {});

	foreach my $case (@cases)
	{
		next if $version < ($case->{from} // 0);

		# connections for replication do not load session_preload_libraries
		next if $case->{startup} && $form ne 'shared';
		check_case($case, $_, $form, {}) foreach @{ $case->{by} // [ 'simple', 'parse', 'bind', 'named' ] };
	}
	check_message('a deadlock', $form, \&check_deadlock);
	check_message('a crash', $form, \&check_crash);
	check_activities($form);
	check_statements($form, 1);
}
$observer->close;

# ---- earlier hooks of other libraries see parsed statements masked as well, but
# not utility statements

$node->adjust_conf('postgresql.conf', 'session_preload_libraries', "''");
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', $libraries{first});
$node->restart;
$observer = Client->new($node, {});
check_statements('loaded first', 0);
foreach my $case (grep { $_->{name} =~ /^auto_explain|^log_statement$/ } @cases)
{
	next if $version < ($case->{from} // 0);
	check_case($case, $_, 'loaded first', {}) foreach @{ $case->{by} // [ 'simple', 'parse', 'bind', 'named' ] };
}
$observer->close;

# ---- without preload: masking starts with the first call of the extension

$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', $libraries{session});
$node->restart;
$observer = Client->new($node, {});

# What is logged of a session.  Its first statements may run before the library is
# loaded.
sub session
{
	my ($settings, @statements) = @_;
	my $client = Client->new($node, $settings);

	logged();
	$client->query($_) foreach @statements;

	my $activity = $observer->rows_of("SELECT query FROM pg_stat_activity WHERE pid = $client->{pid}");
	$client->close;
	return ($activity, logged());
}

{
	my ($first, $second) = (new_token(), new_token());
	my ($activity, @new) = session({%log_all}, "SELECT '$first->{text}'", 'SELECT apitoken.whoami()', "SELECT '$second->{text}'");

	ok(leaks($_, $first), 'plain: nothing masks before the library is there') foreach @new;
	ok(!leaks($_, $second) && index($_, $second->{head}) >= 0, 'plain: from then on it does') foreach $activity, @new;

	# the first call contains a token
	my $token = new_token();
	($activity, @new) = session({%log_slow}, "SELECT verdict FROM apitoken.verify('$token->{text}')");
	ok(!leaks($_, $token) && index($_, $token->{head}) >= 0, 'plain: a token in the statement that loads the library') foreach $activity, @new;
	($activity, @new) = session({}, "SELECT FROM apitoken.authenticate('$token->{text}')");
	ok(!leaks($_, $token) && index($_, $token->{head}) >= 0, 'plain: a token that is refused') foreach $activity, @new;

	# a statement that was parsed before the library was loaded
	my $client = Client->new($node, { 'pg_stat_statements.track' => 'all' });
	$client->send_parse('s', "SELECT 1 /* $token->{text} */");
	$client->send_sync;
	$client->wait_ready;
	$client->query('SELECT apitoken.whoami()');
	$observer->query('SELECT pg_stat_statements_reset()');
	$client->send_bind('s');
	$client->send_execute;
	$client->send_sync;
	$client->wait_ready;
	$client->close;
	my $stored = $observer->rows_of("SELECT string_agg(query, chr(10)) FROM pg_stat_statements");
	ok(!leaks($stored, $token) && index($stored, $token->{head}) >= 0, 'plain: parsed before the library was loaded') or diag($stored);
}

# ---- privileges to switch it off

$node->safe_psql('postgres', 'CREATE ROLE regress_apitoken_login LOGIN');
foreach my $preload ('', 'apitoken')
{
	my $token = new_token();
	my $load = $preload eq '' ? 'SELECT apitoken.whoami();' : '';
	my ($out, $err) = ('', '');

	$node->safe_psql('postgres', "ALTER ROLE regress_apitoken_login SET session_preload_libraries = '$preload'") if $preload ne '';
	logged();
	$node->psql('postgres', "$load SET apitoken.mask_logs = off; SHOW apitoken.mask_logs; SELECT '$token->{text}' FROM FROM;", stderr => \$err, stdout => \$out,
		on_error_stop => 0, extra_params => [ '-U', 'regress_apitoken_login' ]);
	like($err, qr/permission denied to set parameter "apitoken.mask_logs"/, "library '$preload': not anybody may SET it");
	like($out, qr/\bon$/, "library '$preload': and so it is on");
	ok(!leaks($_, $token) && index($_, $token->{head}) >= 0, "library '$preload': and masks") foreach logged();

	$token = new_token();
	local $ENV{PGOPTIONS} = '-c apitoken.mask_logs=off';
	$node->psql('postgres', "$load SELECT '$token->{text}' FROM FROM;", stderr => \$err, stdout => \$out,
		on_error_stop => 0, extra_params => [ '-U', 'regress_apitoken_login' ]);
	ok(!leaks($_, $token) && index($_, $token->{head}) >= 0, "library '$preload': nor by options of the connection") foreach logged();
	delete $ENV{PGOPTIONS};

	$node->safe_psql('postgres', 'ALTER ROLE regress_apitoken_login SET apitoken.mask_logs = off');
	logged();
	$node->psql('postgres', "$load SELECT '$token->{text}' FROM FROM;", stderr => \$err, stdout => \$out,
		on_error_stop => 0, extra_params => [ '-U', 'regress_apitoken_login' ]);
	ok(leaks($_, $token), "library '$preload': a superuser may switch it off for a role") foreach logged();
	$node->safe_psql('postgres', 'ALTER ROLE regress_apitoken_login RESET apitoken.mask_logs');
}

# ---- the session's own queries still work, and get their text unmasked

{
	my $token = new_token();
	my $client = Client->new($node, { session_preload_libraries => 'apitoken' });

	is($client->rows_of("SELECT '$token->{text}'"), $token->{text}, 'results are never masked');
	is($client->rows_of("/* $token->{text} */ SELECT current_query()"), "/* $token->{text} */ SELECT current_query()", 'nor current_query() of a statement of which nothing was logged');
	$client->query("DO \$d\$BEGIN RAISE LOG 'x'; PERFORM set_config('my.query', current_query() /* $token->{text} */, false); END\$d\$");
	my $query = $client->rows_of("SELECT current_setting('my.query')");
	ok(!leaks($query, $token) && index($query, $token->{head}) >= 0, 'once something was, it is masked') or diag($query);
	$client->query("PREPARE p(text) AS SELECT \$1 || '$token->{text}'");
	is($client->rows_of("EXECUTE p('x')"), "x$token->{text}", 'PREPARE prepares what was said');
	is(without($client->rows_of("SELECT statement FROM pg_prepared_statements"), $token), "PREPARE p(text) AS SELECT \$1 || 'TOKEN'", 'and pg_prepared_statements tells what');
	ok(!leaks($client->rows_of('SELECT statement FROM pg_prepared_statements'), $token), 'without the secret');
	$client->query("CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS \$f\$SELECT '$token->{text}'\$f\$");
	is($client->rows_of('SELECT pg_temp.f()'), $token->{text}, 'CREATE FUNCTION creates what was said');
	$client->query("CREATE TEMP TABLE t AS SELECT '$token->{text}'::text AS t; CREATE TEMP VIEW v AS SELECT * FROM t WHERE t = '$token->{text}'");
	is($client->rows_of('SELECT t FROM v'), $token->{text}, 'CREATE VIEW as well');
	$client->query("DECLARE c CURSOR WITH HOLD FOR SELECT '$token->{text}'");
	is($client->rows_of('FETCH c'), $token->{text}, 'and DECLARE');
	$client->{got} = '';
	$client->query("SELECT says('notice', '$token->{text}')");
	ok(leaks($client->{got}, $token), 'a NOTICE that is not logged comes to the client as it is');
	$client->close;
}

$observer->close;

$node->stop;
done_testing();
