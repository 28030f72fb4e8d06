# A replay of PostgREST: the same statements over a real connection.
#
# For each request PostgREST (12 to 16) sends, by the extended protocol, with
# prepared statements named 0, 1, ... and results in binary:
#
#   BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY | READ WRITE
#   select set_config('search_path', ...), the role, the claims, the request
#   select "schema"."pre_request"()
#   one query
#   COMMIT; after an error ABORT
#
# This module does that for the parts of PostgREST's language that the tests use:
# select with computed relationships, filters with eq, order, on_conflict, Prefer,
# profiles, JSON and form bodies.  Errors become HTTP statuses by PostgREST's rules.  If a real postgrest is on the PATH,
# ApitokenPostgREST->real sends it the requests, and answers in the same form.
#
#   my $api = ApitokenPostgREST->replay($node, database => 'app', conf => FILE, secret => KEY);
#   my $answer = $api->request('GET', '/articles?id=eq.1', headers => { 'X-API-Key' => $token });
#   $answer->{status}, $answer->{headers}{'www-authenticate'}, $answer->{body}
#
# For programs, a process can serve the replay over HTTP: see serve().

package ApitokenPostgREST;

use strict;
use warnings;

use ApitokenTest;
use Digest::SHA qw(hmac_sha256);
use Encode qw(decode_utf8 encode_utf8);
use HTTP::Tiny;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64 qw(decode_base64url encode_base64url);
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my $json = JSON::PP->new->canonical->allow_nonref;

# jwt SECRET, CLAIMS: signed with HS256 (RFC 7515)
sub jwt
{
	my ($secret, %claims) = @_;
	my $text = join '.', map { encode_base64url(encode_utf8($json->encode($_))) } { alg => 'HS256', typ => 'JWT' }, \%claims;

	return "$text." . encode_base64url(hmac_sha256($text, $secret));
}

# The HTTP status of an error, given the role of the request, as in Error.hs.
sub http_status
{
	my ($sqlstate, $message, $detail, $anonymous) = @_;
	my %exact = ('23503' => 409, '23505' => 409, '25006' => 405, '21000' => 500, '53400' => 500, '57P01' => 503,
		'P0001' => 400, '42883' => 404, '42P01' => 404, '42P17' => 500, '42501' => $anonymous ? 401 : 403);
	my %class = ('08' => 503, '09' => 500, '0L' => 403, '0P' => 403, '25' => 500, '28' => 403, '2D' => 500, '38' => 500,
		'39' => 500, '3B' => 500, '40' => 500, '53' => 503, '54' => 500, '55' => 500, '57' => 500, '58' => 500,
		'F0' => 500, 'HV' => 500, 'P0' => 500, 'XX' => 500);

	return eval { $json->decode($detail)->{status} } // 500 if $sqlstate eq 'PGRST';
	return $1 if $sqlstate =~ /^PT(\d+)$/;
	return 401 if $sqlstate eq '22023' && ($message // '') =~ /^role.*does not exist$/;
	return $exact{$sqlstate} // $class{ substr($sqlstate, 0, 2) } // 400;
}

# ---- common to both

# The settings of a configuration file.
sub read_conf
{
	my ($file) = @_;
	my %conf = map { /^([\w-]+) *= *"?(.*?)"?\s*$/ ? ($1 => $2) : () } split /\n/, slurp_file($file);

	return \%conf;
}

# ---- the real one

sub real
{
	my ($class, $node, %how) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $self = bless { program => 'postgrest', url => "http://127.0.0.1:$port", http => HTTP::Tiny->new(timeout => 60) }, $class;

	local $ENV{PGRST_DB_URI} = 'postgresql:///' . $how{database} . '?user=authenticator&host=' . $node->host . '&port=' . $node->port;
	local $ENV{PGRST_JWT_SECRET} = $how{secret};
	local $ENV{PGRST_SERVER_PORT} = $port;
	local $ENV{PGRST_SERVER_HOST} = '127.0.0.1';
	local $ENV{PGRST_DB_TX_END} = 'commit-allow-override';
	# anonymous may ask this; while the schema is not loaded, the answer is another one
	start_program('postgrest', [ 'postgrest', $how{conf} ], ready => sub { return $self->{http}->get("$self->{url}/rpc/can?permission=article:read")->{success}; });
	return $self;
}

sub quit
{
	my ($self) = @_;

	stop_program($self->{program}) if $self->{program};
	close $self->{socket} if $self->{socket};
	kill 'KILL', $self->{child} and waitpid $self->{child}, 0 if $self->{child};
}

# serve PORT: answer HTTP requests on this port, in a process that quit() ends
sub serve
{
	my ($self, $port) = @_;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 10, ReuseAddr => 1) or die $!;

	return if $self->{child} = fork // die $!;
	# it ends without the test's END, and with the time that the test may take
	$SIG{ALRM} = sub { POSIX::_exit(1) };
	alarm 600;
	eval { $self->answer_client($listener->accept) } || warn $@ while 1;
}

sub answer_client
{
	my ($self, $client) = @_;
	my ($method, $target) = split / /, <$client>;
	my (%headers, $body);

	while (<$client> =~ /^([\w-]+): *(.*?)\r\n/) { $headers{$1} = $2 }
	read $client, $body, $headers{'Content-Length'} if $headers{'Content-Length'};
	my $answer = $self->request($method, $target, headers => \%headers, body => $body);
	my $content = defined $answer->{body} ? encode_utf8($json->encode($answer->{body})) : '';
	print $client join "\r\n", "HTTP/1.1 $answer->{status} -", 'Content-Length: ' . length $content, 'Connection: close',
	  (map { "$_: $answer->{headers}{$_}" } sort keys %{ $answer->{headers} }), '', $content;
	return close $client;
}

# request METHOD, TARGET, headers => {}, body => text, or a structure for JSON
sub request
{
	my ($self, $method, $target, %how) = @_;
	my %headers = %{ $how{headers} // {} };
	my $body = $how{body};

	if (ref $body)
	{
		$body = encode_utf8($json->encode($body));
		$headers{'Content-Type'} //= 'application/json';
	}
	return $self->replay_request($method, $target, \%headers, $body) unless $self->{program};

	my $answer = $self->{http}->request($method, $self->{url} . $target, { headers => \%headers, content => $body });
	return { status => $answer->{status}, headers => $answer->{headers},
		body => $answer->{content} =~ /\S/ ? $json->decode(decode_utf8($answer->{content})) : undef };
}

# ---- the protocol (PostgreSQL's documentation, chapter 55)

sub send_messages { my ($self, @messages) = @_; print { $self->{socket} } @messages or die "the server has gone: $!"; $self->{socket}->flush; }
sub message { my ($type, $content) = @_; return $type . pack('N', length($content) + 4) . $content; }

sub read_exactly
{
	my ($self, $length) = @_;
	my $content = '';

	while (length($content) < $length)
	{
		read($self->{socket}, $content, $length - length($content), length($content)) or die 'the server has gone';
	}
	return $content;
}

# Read until the server is ready.  Returns the rows, the error, its notices, and the
# transaction's status.
sub receive
{
	my ($self) = @_;
	my %result = (rows => [], notices => []);

	while (1)
	{
		my ($type, $length) = unpack('aN', $self->read_exactly(5));
		my $content = $self->read_exactly($length - 4);
		if ($type eq 'E' || $type eq 'N')
		{
			my %fields = map { (substr($_, 0, 1) => substr($_, 1)) } grep { $_ ne '' } split /\0/, $content;
			if ($type eq 'E') { $result{error} //= \%fields } else { push @{ $result{notices} }, \%fields }
		}
		elsif ($type eq 'D')
		{
			my ($count, @row) = (unpack('n', $content));
			my $at = 2;
			for (1 .. $count)
			{
				my $size = unpack('l>', substr($content, $at, 4));
				push @row, $size < 0 ? undef : substr($content, $at + 4, $size);
				$at += 4 + ($size < 0 ? 0 : $size);
			}
			push @{ $result{rows} }, \@row;
		}
		elsif ($type eq 'Z')
		{
			$result{status} = $content;
			return \%result;
		}
	}
}

# Run a statement as hasql does: prepare it once per connection, for its text and
# the types of its parameters; then bind, describe and execute it.  Dies with the
# error.
sub statement
{
	my ($self, $sql, @parameters) = @_;
	my @types = map { $_->[0] } @parameters;
	my $key = join "\0", $sql, @types;

	push @{ $self->{statements} }, $sql;
	if (!defined $self->{prepared}{$key})
	{
		my $name = keys %{ $self->{prepared} };
		$self->send_messages(message('P', "$name\0$sql\0" . pack('nN*', scalar(@types), @types)), message('S', ''));
		my $result = $self->receive;
		die $result->{error} if $result->{error};
		$self->{prepared}{$key} = $name;
	}
	my $values = join '', map { defined $_->[1] ? pack('N/a*', $_->[1]) : pack('N', 0xffffffff) } @parameters;
	$self->send_messages(
		message('B', "\0$self->{prepared}{$key}\0" . pack('nn', 0, scalar @parameters) . $values . pack('nn', 1, 1)),
		message('D', "P\0"), message('E', "\0" . pack('N', 0)), message('S', ''));
	my $result = $self->receive;
	die $result->{error} if $result->{error};
	return $result->{rows};
}

# ---- the replay

sub replay
{
	my ($class, $node, %how) = @_;
	my $conf = read_conf($how{conf});
	my $self = bless { conf => $conf, secret => $how{secret}, prepared => {}, statements => [], schemas => [ split /, */, $conf->{'db-schemas'} ] }, $class;
	my $in = join ', ', map { "'$_'" } @{ $self->{schemas} };

	# what PostgREST reads about the schemas when it starts
	$self->{cache} = $json->decode($node->safe_psql($how{database}, qq{
		SELECT json_build_object(
			'functions', (SELECT json_object_agg(n.nspname || '.' || p.proname, json_build_object(
					'volatile', p.provolatile = 'v', 'set', p.proretset, 'void', p.prorettype = 'void'::regtype,
					'composite', t.typtype = 'c',
					'required', p.pronargs - p.pronargdefaults,
					'arguments', (SELECT coalesce(json_agg(json_build_array(p.proargnames[i], format_type(p.proargtypes[i - 1], NULL)) ORDER BY i), '[]')
						FROM generate_series(1, p.pronargs) i)))
				FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_type t ON t.oid = p.prorettype
				WHERE n.nspname IN ($in) AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype AND (p.pronargs = 0 OR p.proargnames IS NOT NULL)),
			'computed', (SELECT json_object_agg(a.typrelid::regclass::text || '.' || p.proname, json_build_object('schema', n.nspname, 'one', p.prorows = 1))
				FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_type a ON a.oid = p.proargtypes[0] JOIN pg_type t ON t.oid = p.prorettype
				WHERE n.nspname IN ($in) AND p.pronargs = 1 AND a.typtype = 'c' AND t.typtype = 'c' AND p.proretset),
			'tables', (SELECT json_object_agg(n.nspname || '.' || c.relname, (SELECT json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod))
					FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
				FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE n.nspname IN ($in) AND c.relkind IN ('r', 'v')))}));

	socket($self->{socket}, Socket::PF_UNIX(), Socket::SOCK_STREAM(), 0) or die $!;
	connect($self->{socket}, Socket::pack_sockaddr_un($node->host . '/.s.PGSQL.' . $node->port)) or die $!;
	my $startup = pack('N', 196608) . join("\0", user => 'authenticator', database => $how{database}, client_encoding => 'UTF8', '', '');
	$self->send_messages(pack('N', length($startup) + 4) . $startup);
	my $result = $self->receive;
	die $result->{error}{M} if $result->{error};
	return $self;
}

sub refused
{
	my ($status, $code) = @_;

	return { status => $status, headers => $status == 401 ? { 'www-authenticate' => 'Bearer' } : {}, body => { code => $code } };
}

# The claims of a valid JWT; undef if it is invalid.
sub verify_jwt
{
	my ($self, $jwt) = @_;
	my ($head, $claims, $signature, @more) = split /\./, $jwt, -1;

	return undef if !defined $signature || @more || $signature ne encode_base64url(hmac_sha256("$head.$claims", $self->{secret}));
	return $json->decode(decode_utf8(decode_base64url($claims)));
}

sub quoted { my ($name) = @_; $name =~ s/"/""/g; return "\"$name\""; }
sub decoded { my ($text) = @_; $text =~ tr/+/ /; $text =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge; return $text; }
sub pairs { my ($text) = @_; return map { [ map { decoded($_) } split /=/, $_, 2 ] } split /&/, $text // ''; }

my $response = q{nullif(current_setting('response.headers', true), '') AS response_headers, nullif(current_setting('response.status', true), '') AS response_status, '' AS response_inserted};
my ($UNKNOWN, $JSON) = (705, 114);

# The body's columns, from JSON: FROM ...
sub body_columns
{
	my ($columns, $array, $limit) = @_;

	return '(SELECT $1 AS json_data) pgrst_payload, LATERAL (SELECT ' . join(', ', map { quoted($_->[0]) } @$columns)
	  . ' FROM json_to_record' . ($array ? 'set' : '') . '(pgrst_payload.json_data) AS _(' . join(', ', map { quoted($_->[0]) . " $_->[1]" } @$columns)
	  . ')' . ($limit ? ' LIMIT 1' : ' ') . ') pgrst_body ';
}

# What select asks for: columns, and rows embedded by computed relationships, as the
# list of the SELECT and its joins.  Nothing if there is no such relationship.
sub selected
{
	my ($self, $schema, $name, $select) = @_;
	my $table = quoted($schema) . '.' . quoted($name);
	my (@list, @joins);

	while ($select =~ /\G,?([\w*]+)(?:\(([\w,*]*)\))?/g)
	{
		my ($item, $columns) = ($1, $2);
		if (!defined $columns)
		{
			push @list, "$table." . ($item eq '*' ? '*' : quoted($item));
			next;
		}
		my $related = $self->{cache}{computed}{"$schema.$name.$item"} or return;
		my ($alias, $as) = (quoted("${name}_${item}_1"), quoted("${item}_1"));
		my $rows = 'SELECT ' . join(', ', map { "$as." . ($_ eq '*' ? '*' : quoted($_)) } split /,/, $columns)
		  . ' FROM ' . quoted($related->{schema}) . '.' . quoted($item) . '(' . quoted($name) . "::$table) AS $as  ";
		push @list, $related->{one} ? "row_to_json($alias.*)::jsonb AS " . quoted($item) : "COALESCE( $alias.$alias, '[]') AS " . quoted($item);
		push @joins, ' LEFT JOIN LATERAL ( ' . ($related->{one} ? $rows : "SELECT json_agg($alias)::jsonb AS $alias FROM ($rows ) AS $alias") . " ) AS $alias ON TRUE";
	}
	return (join(', ', @list), join('', @joins));
}

# The main query for a table or a view.
sub table_query
{
	my ($self, $method, $schema, $name, $query, $headers, $body) = @_;
	my $columns = $self->{cache}{tables}{"$schema.$name"} or return refused(404, 'PGRST205');
	my $table = quoted($schema) . '.' . quoted($name);
	my ($select, $joins, @where, $order, $conflict, @parameters) = ("$table.*", '');
	my $full = ($headers->{prefer} // '') =~ /return=representation/;

	@parameters = ([ $JSON, $body ]) if defined $body;
	foreach my $pair (@$query)
	{
		my ($key, $value) = @$pair;
		if ($key eq 'select') { ($select, $joins) = $self->selected($schema, $name, $value) or return refused(400, 'PGRST200') }
		elsif ($key eq 'on_conflict') { $conflict = join ', ', map { quoted($_) } split /,/, $value }
		elsif ($key eq 'order') { $order = join ', ', map { my ($c, $d) = split /\./; "$table." . quoted($c) . ' ' . uc($d // 'asc') } split /,/, $value }
		elsif (exists $columns->{$key} && $value =~ s/^eq\.//)
		{
			push @parameters, [ $UNKNOWN, $value ];
			push @where, " $table." . quoted($key) . ' = $' . @parameters;
		}
		else { return refused(400, 'PGRST100') }
	}
	my $where = @where ? ' WHERE ' . join(' AND ', @where) : '';

	if ($method eq 'GET')
	{
		return ("WITH pgrst_source AS ( SELECT $select FROM $table$joins$where" . (defined $order ? "  ORDER BY $order" : '') . '  ) '
			  . "SELECT null::bigint AS total_result_set, pg_catalog.count(_postgrest_t) AS page_total, coalesce(json_agg(_postgrest_t), '[]') AS body, $response FROM ( SELECT * FROM pgrst_source ) _postgrest_t",
			\@parameters, 200, 2);
	}
	my $returning = ' RETURNING ' . ($full ? $select : '1');
	my $mutation;
	if ($method eq 'DELETE') { $mutation = "DELETE FROM $table $where$returning" }
	else
	{
		my $content = eval { $json->decode(decode_utf8($body)) } // return refused(400, 'PGRST102');
		my @names = sort keys %{ ref $content eq 'ARRAY' ? $content->[0] : $content };
		return refused(400, 'PGRST204') if grep { !exists $columns->{$_} } @names;
		my $from = body_columns([ map { [ $_, $columns->{$_} ] } @names ], ref $content eq 'ARRAY', 0);
		my @body = map { '"pgrst_body".' . quoted($_) } @names;
		if ($method eq 'POST') { $mutation = "INSERT INTO $table(" . join(', ', map { quoted($_) } @names) . ') SELECT ' . join(', ', @body) . " FROM $from"
			  . (defined $conflict ? " ON CONFLICT($conflict) DO UPDATE SET " . join(', ', map { quoted($_) . ' = EXCLUDED.' . quoted($_) } @names) : '') . $returning }
		else { $mutation = "UPDATE $table SET " . join(', ', map { quoted($names[$_]) . " = $body[$_]" } 0 .. $#names) . " FROM $from$where$returning" }
	}
	return ("WITH pgrst_source AS ($mutation) SELECT '' AS total_result_set, pg_catalog.count(_postgrest_t) AS page_total, array[]::text[] AS header, "
		  . ($full ? "coalesce(json_agg(_postgrest_t), '[]')" : "''::text") . " AS body, $response FROM (SELECT "
		  . ($full ? quoted($name) . '.* FROM "pgrst_source" AS ' . quoted($name) : '* FROM pgrst_source') . ') _postgrest_t',
		\@parameters, $method eq 'POST' ? 201 : $full ? 200 : 204, 3);
}

# The main query for a function.
sub function_query
{
	my ($self, $method, $schema, $name, $query, $headers, $body) = @_;
	my $function = $self->{cache}{functions}{"$schema.$name"} or return refused(404, 'PGRST202');
	my @direct = @$query;
	my $form = $method eq 'POST' && ($headers->{'content-type'} // '') =~ m{^application/x-www-form-urlencoded};
	my ($arguments, @parameters, %given);

	@direct = pairs($body) if $form;
	if ($method eq 'POST' && !$form)
	{
		my $content = eval { $json->decode(decode_utf8($body // '{}')) } // return refused(400, 'PGRST102');
		%given = map { $_ => 1 } keys %$content;
	}
	else { %given = map { $_->[0] => $_->[1] } @direct }

	# the function that takes these arguments, and requires no others
	my @arguments = @{ $function->{arguments} };
	my %known = map { $_->[0] => 1 } @arguments;
	return refused(404, 'PGRST202') if grep { !$known{$_} } keys %given;
	return refused(404, 'PGRST202') if grep { !exists $given{$_->[0]} } @arguments[ 0 .. $function->{required} - 1 ];
	@arguments = grep { exists $given{$_->[0]} } @arguments;

	my ($source, $call) = ('', quoted($schema) . '.' . quoted($name));
	if (@arguments && $method eq 'POST' && !$form)
	{
		$source = body_columns(\@arguments, 0, 1) . ', LATERAL ';
		@parameters = ([ $JSON, $body ]);
		$call .= '(' . join(', ', map { quoted($_->[0]) . ' := pgrst_body.' . quoted($_->[0]) } @arguments) . ')';
	}
	else
	{
		@parameters = map { [ $UNKNOWN, $given{$_->[0]} ] } @arguments;
		$call .= '(' . join(', ', map { quoted($arguments[$_][0]) . ' := $' . ($_ + 1) . "::$arguments[$_][1]" } 0 .. $#arguments) . ')';
	}
	my $scalar = !$function->{composite};
	my $cte = $scalar ? "SELECT pgrst_call.pgrst_scalar FROM $source(SELECT $call pgrst_scalar) pgrst_call" : "SELECT \"pgrst_call\".* FROM $source$call pgrst_call";
	my $rows = $scalar ? 'json_agg(_postgrest_t.pgrst_scalar)' : 'json_agg(_postgrest_t)';
	my $body_of = $function->{set} ? "coalesce($rows, '[]')" : "coalesce($rows->0, 'null')";

	return ("WITH pgrst_source AS ($cte) SELECT null::bigint AS total_result_set, "
		  . ($scalar && !$function->{set} ? '1' : 'pg_catalog.count(_postgrest_t)') . " AS page_total, $body_of AS body, $response FROM (SELECT "
		  . quoted($name) . '.* FROM "pgrst_source" AS ' . quoted($name) . '    ) _postgrest_t',
		\@parameters, $function->{void} ? 204 : 200, 2, $function->{volatile});
}

sub replay_request
{
	my ($self, $method, $target, $given, $body) = @_;
	my %headers = (host => 'localhost:3000', map { lc($_) => $given->{$_} } keys %$given);
	my ($path, $query) = split /\?/, $target, 2;
	my $role = $self->{conf}{'db-anon-role'};
	my $claims = {};

	if (($headers{authorization} // '') =~ /^bearer\s+(.*)$/i)
	{
		$claims = $self->verify_jwt($1) or return refused(401, 'PGRST301');
		$role = $claims->{role} // $role;
	}
	my $anonymous = $role eq $self->{conf}{'db-anon-role'};
	my $schema = $headers{ $method eq 'GET' ? 'accept-profile' : 'content-profile' } // $self->{schemas}[0];
	return refused(406, 'PGRST106') unless grep { $_ eq $schema } @{ $self->{schemas} };

	my ($sql, $parameters, $status, $column, $volatile) = $path =~ m{^/rpc/(.*)$}
	  ? $self->function_query($method, $schema, $1, [ pairs($query) ], \%headers, $body)
	  : $self->table_query($method, $schema, substr($path, 1), [ pairs($query) ], \%headers, $body);
	return $sql if ref $sql;
	$volatile //= 1;

	my $pre_request = join '.', map { quoted($_) } split /\./, $self->{conf}{'db-pre-request'};
	my $answer = eval {
		$self->statement('BEGIN ISOLATION LEVEL READ COMMITTED ' . ($method ne 'GET' && $volatile ? 'READ WRITE' : 'READ ONLY'));
		$self->statement(q{select set_config('search_path', $1, true), set_config('role', $2, true), set_config('request.jwt.claims', $3, true), set_config('request.method', $4, true), set_config('request.path', $5, true), set_config('request.headers', $6, true), set_config('request.cookies', $7, true)},
			map { [ $UNKNOWN, $_ ] } quoted($schema) . ', "public"', $role, encode_utf8($json->encode({ %$claims, role => $role })),
			$method, $path, encode_utf8($json->encode(\%headers)), '{}');
		$self->statement("select $pre_request()");
		my $rows = $self->statement($sql, @$parameters);
		if (($headers{prefer} // '') =~ /tx=rollback/)
		{
			$self->statement('SET CONSTRAINTS ALL IMMEDIATE');
			$self->statement('ABORT');
		}
		else { $self->statement('COMMIT') }
		my $content = $rows->[0][$column];
		{ status => $status, headers => {},
			body => defined $content && $content ne '' && $status != 204 ? $json->decode(decode_utf8($content)) : undef };
	};
	return $answer if $answer;

	my $error = $@;
	die $error unless ref $error;
	$self->statement('ABORT');
	my ($sqlstate, $message, $detail, $hint) = map { decode_utf8($_ // '') } @$error{qw(C M D H)};
	$answer = { status => http_status($sqlstate, $message, $detail, $anonymous), headers => {},
		body => { code => $sqlstate, message => $message, details => $detail, hint => $hint } };
	if ($sqlstate eq 'PGRST')
	{
		my $headers = $json->decode($detail)->{headers};
		$answer->{headers} = { map { lc($_) => $headers->{$_} } keys %$headers };
		$answer->{body} = $json->decode($message);
	}
	elsif ($answer->{status} == 401) { $answer->{headers}{'www-authenticate'} = 'Bearer' }
	return $answer;
}

1;
