# The SELECTs of docs/migrating.md, as they are printed, on tables with the columns and
# types that the other systems publish.  Each imports what those systems store, row for
# row (the vectors), and the texts of their clients go on working.  The session's time
# zone is not UTC.
#
# 055_real_systems runs some of these systems themselves.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

use ApitokenTest;

my $document = slurp_file('docs/migrating.md');
my $peppers = PostgreSQL::Test::Utils::tempdir() . '/peppers';
my %vector = map { my @column = split /\t/, $_, -1; ("$column[0] $column[2]" => { token => $column[1], key => $column[2], stored => $column[3], secret => $column[5] }) }
	(split /\n/, slurp_file('test/vectors/foreign_digests.tsv'))[ 1 .. 14 ];
sub vector { my ($name) = @_; my ($found) = grep { /^\Q$name\E / } sort keys %vector; return $vector{$found} // die $name; }

# ---- keys of the other systems, by the command that the page shows
my ($command) = $document =~ /^Add `strapi:` .*?: `(printf .*)`\.$/m;
ok(defined $command, 'the command that prints the line of the pepper file');
my $line = do { local $ENV{API_TOKEN_SALT} = vector('strapi')->{secret}; qx($command); };
is($line, 'strapi:' . unpack('H*', vector('strapi')->{secret}) . "\n", 'prints it');
append_to_file($peppers, '1:' . '07' x 32 . "\n${line}gitlab:" . unpack('H*', vector('gitlab')->{secret}) . "\n");
chmod 0600, $peppers;

my $node = start_node('tables', conf => "timezone = 'America/New_York'\napitoken.pepper_file = '$peppers'\n");
sub sql { return $node->safe_psql('postgres', $_[0]); }
sql(q{CREATE EXTENSION pgcrypto; CREATE EXTENSION apitoken;
	INSERT INTO apitoken.organizations (id) VALUES ('1'), ('ws_1');
	INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read,article:list}');
	INSERT INTO apitoken.users (id) VALUES ('7'), ('9f0b3c6e-1f4e-4a5f-8a3e-0c8a4c4e8f11')});

# ---- the tables.  Times are those of 2026-01-02 03:04:05 UTC.
my $digest = sub { my ($name) = @_; return "'" . vector($name)->{stored} . "'"; };
my $other = "repeat('0', 128)";
my @made = ('2026-01-02 03:04:05', '2026-01-02 03:04:05+00');
my %chapters = (
	# database/migrations of laravel/sanctum: bigIncrements, morphs, text, string(64), text, timestamps
	'Laravel Sanctum' => {
		formats => 'sanctum',
		tables => qq{CREATE TABLE personal_access_tokens (id bigserial PRIMARY KEY, tokenable_type varchar(255) NOT NULL, tokenable_id bigint NOT NULL,
				name text NOT NULL, token varchar(64) NOT NULL UNIQUE, abilities text, last_used_at timestamp(0), expires_at timestamp(0),
				created_at timestamp(0), updated_at timestamp(0));
			INSERT INTO personal_access_tokens (id, tokenable_type, tokenable_id, name, token, abilities, created_at) VALUES
				(42, 'App\\Models\\User', 7, 'all', '$vector{'sanctum 42'}{stored}', '["*"]', '$made[0]'),
				(43, 'App\\Models\\User', 7, 'some', '$vector{'sanctum 43'}{stored}', '["article:read"]', '$made[0]'),
				(44, 'App\\Models\\User', 7, 'none', encode(sha256('0123456789012345678901234567890123456789'), 'hex'), NULL, '$made[0]'),
				(45, 'App\\Models\\Team', 7, 'other', repeat('0', 64), '["*"]', '$made[0]')},
		imported => "all|7|full|\nnone|7|custom|{}\nsome|7|custom|{article:read}",
		texts => [ $vector{'sanctum 42'}{token}, $vector{'sanctum 43'}{token}, '44|0123456789012345678901234567890123456789' ] },
	# as Strapi 5.54 makes them
	'Strapi' => {
		formats => 'strapi',
		tables => qq{CREATE TABLE strapi_api_tokens (id serial PRIMARY KEY, document_id varchar(255), name varchar(255), description varchar(255), kind varchar(255),
				type varchar(255), access_key varchar(255), encrypted_key text, last_used_at timestamp(6), expires_at timestamp(6), lifespan bigint,
				created_at timestamp(6), updated_at timestamp(6));
			CREATE TABLE strapi_api_token_permissions (id serial PRIMARY KEY, document_id varchar(255), action varchar(255));
			CREATE TABLE strapi_api_token_permissions_token_lnk (id serial PRIMARY KEY, api_token_permission_id integer, api_token_id integer, api_token_permission_ord double precision);
			INSERT INTO strapi_api_tokens (name, kind, type, access_key, created_at) VALUES
				('custom', 'content-api', 'custom', ${\ $digest->('strapi') }, '$made[0]'), ('full', 'content-api', 'full-access', $other, '$made[0]'),
				('reader', 'content-api', 'read-only', translate($other, '0', '1'), '$made[0]'), ('admin', 'admin', NULL, translate($other, '0', '2'), '$made[0]');
			INSERT INTO strapi_api_token_permissions (action) VALUES ('api::article.article.find'), ('api::article.article.findOne'), ('plugin::upload.content-api.upload');
			INSERT INTO strapi_api_token_permissions_token_lnk (api_token_permission_id, api_token_id) VALUES (1, 1), (2, 1), (3, 1)},
		imported => "custom|1|custom|{article.article:list,article.article:read,upload.content-api:upload}\nfull|1|full|\nreader|1|read_only|",
		texts => [ vector('strapi')->{token} ] },
	# knox/migrations of jazzband/django-rest-knox; see 055_real_systems
	'django-rest-knox' => {
		formats => 'knox',
		tables => qq{CREATE TABLE knox_authtoken (digest varchar(128) PRIMARY KEY, created timestamptz NOT NULL, user_id integer NOT NULL, expiry timestamptz, token_key varchar(25) NOT NULL);
			INSERT INTO knox_authtoken VALUES (${\ $digest->('knox5') }, '$made[1]', 7, NULL, '${\ vector('knox5')->{key} }')},
		imported => 'knox 9e6b|7|full|', texts => [ vector('knox5')->{token} ] },
	# migrations of florimondmanca/djangorestframework-api-key; see 055_real_systems
	'djangorestframework-api-key' => {
		formats => 'drf-api-key',
		tables => qq{CREATE TABLE rest_framework_api_key_apikey (id varchar(150) PRIMARY KEY, created timestamptz NOT NULL, name varchar(50) NOT NULL, revoked boolean NOT NULL,
				expiry_date timestamptz, hashed_key varchar(150) NOT NULL, prefix varchar(8) NOT NULL UNIQUE);
			INSERT INTO rest_framework_api_key_apikey VALUES ('a', '$made[1]', 'old', false, NULL, ${\ $digest->('drf-api-key2') }, 'aBcD1234')},
		imported => 'old|1|full|', texts => [ vector('drf-api-key2')->{token} ] },
	# as better-auth 1.7 makes it; see 055_real_systems
	'better-auth' => {
		formats => 'better-auth',
		tables => qq{CREATE TABLE apikey (id text PRIMARY KEY, name text, key text NOT NULL, "referenceId" text NOT NULL, enabled boolean, "expiresAt" timestamptz, "createdAt" timestamptz NOT NULL,
				"lastRequest" timestamptz, permissions text, metadata text);
			INSERT INTO apikey VALUES ('k', 'script', ${\ $digest->('better-auth') }, '7', true, NULL, '$made[1]', NULL, NULL, NULL)},
		imported => 'script|7|full|', texts => [ vector('better-auth')->{token} ] },
	# pkg/db/schema.sql of unkeyed/unkey, in MySQL: datetime(3) is a timestamp
	'Unkey' => {
		formats => 'unkey',
		tables => qq{CREATE TABLE keys (id varchar(256) NOT NULL UNIQUE, key_auth_id varchar(256) NOT NULL, hash varchar(256) NOT NULL UNIQUE, start varchar(256) NOT NULL, workspace_id varchar(256) NOT NULL,
				for_workspace_id varchar(256), name varchar(256), meta text, expires timestamp(3), created_at_m bigint NOT NULL DEFAULT 0, deleted_at_m bigint,
				enabled boolean NOT NULL DEFAULT true, last_used_at bigint, pending_migration_id varchar(256));
			INSERT INTO keys (id, key_auth_id, hash, start, workspace_id, for_workspace_id, name, created_at_m, deleted_at_m, enabled, pending_migration_id) VALUES
				('key_1', 'ks_1', ${\ $digest->('unkey') }, 'prod', 'ws_1', NULL, 'job', 1767323045000, NULL, true, NULL),
				('key_2', 'ks_1', 'deleted', 'prod', 'ws_1', NULL, NULL, 1767323045000, 1767323045000, true, NULL), ('key_3', 'ks_1', 'disabled', 'prod', 'ws_1', NULL, NULL, 1767323045000, NULL, false, NULL),
				('key_4', 'ks_1', 'root', 'prod', 'ws_1', 'ws_1', NULL, 1767323045000, NULL, true, NULL), ('key_5', 'ks_1', 'pending', 'prod', 'ws_1', NULL, NULL, 1767323045000, NULL, true, 'm_1')},
		imported => 'job|ws_1|full|', texts => [ vector('unkey')->{token} ] },
	# keyhippo--1.2.5.sql of integrated-reasoning/KeyHippo
	'KeyHippo' => {
		formats => 'keyhippo',
		tables => qq{CREATE SCHEMA keyhippo;
			CREATE TABLE keyhippo.api_key_metadata (id uuid PRIMARY KEY, user_id uuid NOT NULL, scope_id uuid, description text, prefix text NOT NULL UNIQUE, created_at timestamptz NOT NULL DEFAULT now(),
				last_used_at timestamptz, expires_at timestamptz NOT NULL DEFAULT (now() + interval '100 years'), is_revoked boolean NOT NULL DEFAULT false, claims jsonb DEFAULT '{}');
			CREATE TABLE keyhippo.api_key_secrets (key_metadata_id uuid PRIMARY KEY REFERENCES keyhippo.api_key_metadata, key_hash text NOT NULL);
			INSERT INTO keyhippo.api_key_metadata (id, user_id, description, prefix, created_at) VALUES ('3b241101-e2bb-4255-8caf-4136c566a962', '9f0b3c6e-1f4e-4a5f-8a3e-0c8a4c4e8f11', 'robot', '${\ vector('keyhippo')->{key} }', '$made[1]');
			INSERT INTO keyhippo.api_key_secrets VALUES ('3b241101-e2bb-4255-8caf-4136c566a962', ${\ $digest->('keyhippo') })},
		imported => 'robot|9f0b3c6e-1f4e-4a5f-8a3e-0c8a4c4e8f11|full|', texts => [ vector('keyhippo')->{token} ] },
	# db/structure.sql of gitlab-org/gitlab
	'GitLab' => {
		formats => 'gitlab',
		tables => qq{CREATE TABLE personal_access_tokens (id bigserial PRIMARY KEY, user_id bigint NOT NULL, name varchar NOT NULL, revoked boolean DEFAULT false, expires_at date, created_at timestamp NOT NULL,
				updated_at timestamp NOT NULL, scopes varchar DEFAULT E'--- []\\n' NOT NULL, impersonation boolean DEFAULT false NOT NULL, token_digest varchar, last_used_at timestamp);
			INSERT INTO personal_access_tokens (user_id, name, created_at, updated_at, scopes, token_digest, impersonation, expires_at) VALUES
				(7, 'reader', '$made[0]', '$made[0]', E'---\\n- read_api\\n', ${\ $digest->('gitlab') }, false, NULL),
				(7, 'writer', '$made[0]', '$made[0]', E'---\\n- api\\n', encode(sha256('writer'), 'base64'), false, '2026-01-03'),
				(7, 'as another', '$made[0]', '$made[0]', E'---\\n- api\\n', encode(sha256('another'), 'base64'), true, NULL)},
		imported => "reader|7|read_only|\nwriter|7|full|", texts => [ vector('gitlab')->{token} ],
		expires => '2026-01-03 00:00:00' },
	'A table of SHA-256 digests' => {
		formats => 'sha256',
		tables => qq{CREATE TABLE api_keys (key_hash text, name text, team_id bigint, created_at timestamptz, last_used_at timestamptz);
			INSERT INTO api_keys VALUES (encode(sha256('sk_live_0123456789abcdef'), 'hex'), 'backend', 1, '$made[1]')},
		imported => 'backend|1|full|', texts => ['sk_live_0123456789abcdef'] },
	'A table of crypt digests' => {
		formats => 'crypt',
		tables => q{CREATE TABLE api_keys (key_hash text, key_prefix text, name text, team_id bigint);
			INSERT INTO api_keys VALUES (crypt('legacy-key-0001', gen_salt('bf', 4)), 'legacy-k', 'bcrypt', 1), (crypt('other-key-0002', gen_salt('bf', 4)), NULL, 'no prefix', 1)},
		imported => "bcrypt|1|full|\nno prefix|1|full|", texts => [ 'legacy-key-0001', 'other-key-0002' ], made => 'none' });

# ---- each chapter
my @titles = $document =~ /^## ([^\n]+)\n(?:(?!^## ).*?\n)*?SELECT count\(apitoken\.import_token/mg;
is(join(', ', sort @titles), join(', ', sort keys %chapters), 'each chapter with a SELECT is here');
foreach my $title (sort keys %chapters)
{
	my %of = %{ $chapters{$title} };
	my ($statement) = $document =~ /^## \Q$title\E\n.*?^(SELECT count\(apitoken\.import_token.*?;)(?: .*)?$/ms;
	my $number = () = $of{imported} =~ /^./mg;

	sql($of{tables});
	is(sql($statement), $number, "$title: what is to be imported");
	is(sql("SELECT label, coalesce(organization_id, user_id), access, permissions FROM apitoken.tokens t ORDER BY label"), $of{imported}, "$title: the columns");
	is(sql("SELECT count(*) FROM apitoken.tokens t WHERE created_at <> '$made[1]'"), 0, "$title: the time of creation") unless $of{made};
	is(sql("SELECT expires_at AT TIME ZONE 'UTC' FROM apitoken.tokens t WHERE expires_at IS NOT NULL"), $of{expires}, "$title: the expiry") if $of{expires};
	my @verify = map { "SELECT verdict FROM apitoken.verify('$_')" } @{ $of{texts} };
	is(sql(join '; ', "SET apitoken.imported_formats = '$of{formats}'", @verify), join("\n", map { 'valid' } @verify), "$title: the texts");
	my @changed = map { s/(.)\z/$1 eq 'a' ? 'b' : 'a'/re } @{ $of{texts} };
	is(sql(join '; ', "SET apitoken.imported_formats = '$of{formats}'", map { "SELECT verdict FROM apitoken.verify('$_')" } @changed), join("\n", map { 'unknown' } @changed), "$title: other texts");

	# the next one has its own
	sql(q{SET session_replication_role = replica; DELETE FROM apitoken_internal.token_records; DELETE FROM apitoken_internal.foreign_digests; DELETE FROM apitoken.token_usage;
		DROP SCHEMA IF EXISTS keyhippo CASCADE; DROP TABLE IF EXISTS personal_access_tokens, strapi_api_tokens, strapi_api_token_permissions, strapi_api_token_permissions_token_lnk,
			knox_authtoken, rest_framework_api_key_apikey, apikey, keys, api_keys});
}

no_crash($node);
$node->stop;
done_testing();
