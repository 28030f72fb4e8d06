# Figure 8: a GET as PostgREST carries it out, with a token and with a JWT.

use strict;
use warnings;

# transactions of one script, whose texts are fetched by one statement
my $EACH = 10;

# What PostgREST sends: a transaction for each request (docs/postgrest.md).
sub get_script
{
	my ($relation, $role, $headers, $claims, $pre_request) = @_;
	my $columns = join ', ', map { ($headers . $_, $claims eq 'c' ? "c$_" : ()) } 1 .. $EACH;
	my $script = "\\set n random(1, :batches)\nSELECT $columns FROM bench.requests_$relation WHERE n = :n \\gset\n";

	foreach my $i (1 .. $EACH)
	{
		my $value = $claims eq 'c' ? "c$i" : 'anonymous';

		$script .= "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;\n"
		  . "select set_config('search_path', :path, true), set_config('role', :$role, true), set_config('request.jwt.claims', :$value, true), "
		  . "set_config('request.method', :method, true), set_config('request.path', :target, true), "
		  . "set_config('request.headers', :$headers$i, true), set_config('request.cookies', :cookies, true);\n"
		  . ($pre_request ? qq{select "apitoken"."pre_request"();\n} : '')
		  . qq{WITH pgrst_source AS ( SELECT "bench_api"."$relation".* FROM "bench_api"."$relation"    )  SELECT null::bigint AS total_result_set, }
		  . q{pg_catalog.count(_postgrest_t) AS page_total, coalesce(json_agg(_postgrest_t), '[]') AS body, }
		  . q{nullif(current_setting('response.headers', true), '') AS response_headers, nullif(current_setting('response.status', true), '') AS response_status, }
		  . qq{'' AS response_inserted FROM ( SELECT * FROM pgrst_source ) _postgrest_t;\nCOMMIT;\n};
	}
	return $script;
}

Bench::figure('8', 'a GET as PostgREST carries it out', sub {
	my ($b) = @_;
	my %rows = (articles => "organization's token, 20 rows of its organization", drafts => "personal token, 20 rows of its user");

	$b->psql_file("$b->{here}/get_transaction.sql", vars => { each => $EACH });
	foreach my $relation (sort keys %rows)
	{
		my %how = (user => 'bench_authenticator', statements => $EACH, define => {
			batches => $b->psql("SELECT count(*) FROM bench.requests_$relation"),
			path => '"bench_api", "public"', method => 'GET', target => "/$relation", cookies => '{}',
			anon => 'bench_anon', web_user => 'bench_web_user', anonymous => '{"role":"bench_anon"}' });
		my %script = (
			token => get_script($relation, 'anon', 'h', 'anonymous', 1),
			jwt => get_script($relation, 'web_user', 'j', 'c', 1),
			without => get_script($relation, 'web_user', 'j', 'c', 0));

		# the same answers, or nothing is compared
		my %body = map { $_ => $b->psql_file(Bench::spew("$b->{dir}/get.sql",
			$script{$_} =~ s/^\\set n .*$/\\set n 1/mr =~ s/(:\w+\b)(?=[,)])/":'" . substr($1, 1) . "'"/ger), user => 'bench_authenticator',
			vars => $how{define}) } keys %script;
		my %articles = map { $_ => join ' ', $body{$_} =~ /"title" ?: ?"([^"]+)"/g } keys %body;
		die "not the same rows: " . join(' / ', values %articles)
		  if $articles{token} eq '' || grep { $_ ne $articles{token} } values %articles;

		# db-pre-request is the server's: a request with a JWT comes through it, too
		foreach my $case ([ jwt => '', "by a JWT's claims", '>= 0.85' ], [ without => 'x', "by a JWT's claims, where there is no pre-request", undef ])
		{
			my ($yardstick, $suffix, $by, $wanted) = @$case;

			next if $b->{quick} && !$wanted;
			$b->compare(
				figure => ($relation eq 'articles' ? '8' : '8b') . $suffix, unit => 'GETs/s', wanted => $wanted,
				what => "GET, $rows{$relation} / $by",
				ours => sub { $b->pgbench(%how, script => $script{token}) },
				yardstick => sub { $b->pgbench(%how, script => $script{$yardstick}) });
		}
	}
});

1;
