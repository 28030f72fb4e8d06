# Privileges of the extension's objects, where servers differ: default privileges of
# the database that a dump is restored into, and what pgaudit logs of allow().

use strict;
use warnings;

use ApitokenTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $place = PostgreSQL::Test::Utils::tempdir_short();
my $node = start_node('grants');
my @members = qw(backend sync own app);

$node->safe_psql('postgres', "CREATE ROLE regress_apitoken_$_ LOGIN") foreach @members;

# Everything that is granted, and what a dump takes for the extension's own.
my $privileges = q{
	WITH object (classoid, oid, name, acl) AS (
		SELECT 'pg_namespace'::regclass, oid, nspname::text, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace WHERE nspname ~ '^apitoken'
		UNION ALL SELECT 'pg_class'::regclass, oid, oid::regclass::text, coalesce(relacl, acldefault('r', relowner))
		FROM pg_class WHERE relnamespace::regnamespace::text ~ '^apitoken' AND relkind IN ('r', 'v')
		UNION ALL SELECT 'pg_class'::regclass, attrelid, attrelid::regclass || '.' || attname, attacl FROM pg_attribute WHERE attrelid::regclass::text ~ '^apitoken'
		UNION ALL SELECT 'pg_proc'::regclass, oid, oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner))
		FROM pg_proc WHERE pronamespace::regnamespace::text ~ '^apitoken'
		UNION ALL SELECT 'pg_type'::regclass, oid, oid::regtype::text, coalesce(typacl, acldefault('T', typowner))
		FROM pg_type WHERE typnamespace::regnamespace::text ~ '^apitoken'
	), item AS (
		SELECT name, 'has' AS kind, aclexplode(acl) AS item FROM object
		UNION ALL
		SELECT o.name, 'initially', aclexplode(i.initprivs) FROM object o JOIN pg_init_privs i ON (i.classoid, i.objoid, i.objsubid) = (o.classoid, o.oid, 0)
	)
	SELECT DISTINCT name || ' ' || kind || ' ' || CASE (item).grantee WHEN 0 THEN 'PUBLIC' ELSE (item).grantee::regrole::text END || ' '
		|| (item).privilege_type || ' ' || (item).is_grantable FROM item ORDER BY 1};
my @kinds = qw(TABLES SEQUENCES FUNCTIONS TYPES SCHEMAS);
my %defaults = (
	none => [],
	granted => [ map { "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO regress_apitoken_app, PUBLIC" } @kinds ],
	revoked => [ map { "ALTER DEFAULT PRIVILEGES REVOKE ALL ON $_ FROM PUBLIC" } @kinds ]);

# ----- installed and restored under each of them --------------------------------

my $expected;
foreach my $from (qw(none granted revoked))
{
	$node->safe_psql('postgres', "CREATE DATABASE $from");
	$node->safe_psql($from, join ';', @{ $defaults{$from} }, 'CREATE EXTENSION apitoken');
	# two roles have a privilege of their own that a capability contains
	$node->safe_psql($from, q{
		GRANT SELECT ON apitoken.users TO regress_apitoken_sync;
		GRANT UPDATE (label) ON apitoken_internal.token_records TO regress_apitoken_own;
		SELECT apitoken.allow('regress_apitoken_sync', 'directory');
		SELECT apitoken.allow('regress_apitoken_backend', 'act', 'verify', 'manage');
		SELECT apitoken.allow('regress_apitoken_own', 'manage', 'use')});
	$expected //= $node->safe_psql($from, $privileges);
	is($node->safe_psql($from, $privileges), $expected, "installed with default privileges $from");
	unlike($expected, qr/regress_apitoken_app/, 'nobody has anything by accident');
	like($expected, qr/^apitoken\.can\(.* has PUBLIC EXECUTE false$/m, 'and everybody has what everybody needs');

	command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr($from), '-f', "$place/$from" ], "pg_dump of $from");
	foreach my $to (qw(none granted revoked))
	{
		my $database = "${from}_to_$to";

		$node->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0");
		$node->safe_psql($database, join ';', @{ $defaults{$to} }, 'SELECT') if @{ $defaults{$to} };
		command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr($database), "$place/$from" ], "pg_restore to $to");
		is($node->safe_psql($database, $privileges), $expected, 'the same privileges');
		# what disallow() needs to know is in the dump
		is($node->safe_psql($database, q{
			SET client_min_messages = error;
			SELECT apitoken.disallow('regress_apitoken_sync', 'directory'), apitoken.disallow('regress_apitoken_backend', 'act', 'verify', 'manage'),
				apitoken.disallow('regress_apitoken_own', 'manage');
			SELECT grantee::regrole || ' ' || string_agg(privilege_type || ' ' || name, ', ' ORDER BY name) FROM (
				SELECT oid::regclass::text AS name, (aclexplode(relacl)).* FROM pg_class WHERE relnamespace::regnamespace::text ~ '^apitoken'
				UNION ALL SELECT attrelid::regclass || '.' || attname, (aclexplode(attacl)).* FROM pg_attribute WHERE attrelid::regclass::text ~ '^apitoken'
				UNION ALL SELECT proname, (aclexplode(proacl)).* FROM pg_proc WHERE pronamespace::regnamespace::text ~ '^apitoken') g
			WHERE grantee::regrole::text ~ '^regress' GROUP BY grantee ORDER BY grantee::regrole::text COLLATE "C"}),
			join("\n", '||', 'regress_apitoken_own SELECT apitoken_internal.capabilities.use, UPDATE apitoken_internal.token_records.label, EXECUTE authenticate, EXECUTE pre_request',
				'regress_apitoken_sync SELECT apitoken.users'), 'disallow() leaves what was there before allow()');
	}
}

# only the schema: disallow() takes everything away, and keeps nothing that it should not
command_ok([ 'pg_dump', '-Fc', '--schema-only', '-d', $node->connstr('none'), '-f', "$place/schema" ], 'pg_dump --schema-only');
$node->safe_psql('postgres', 'CREATE DATABASE schema_only');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('schema_only'), "$place/schema" ], 'restored');
is($node->safe_psql('schema_only', q{
	SELECT apitoken.disallow('regress_apitoken_sync', 'directory');
	SELECT has_table_privilege('regress_apitoken_sync', 'apitoken.users', 'SELECT, DELETE')}), "\nf", 'schema only: disallow() revokes the whole capability');

# a role that has no capability works under hardened default privileges
$node->safe_psql('revoked', q{
	CREATE TABLE article (organization_id text);
	INSERT INTO article VALUES ('acme');
	ALTER TABLE article ENABLE ROW LEVEL SECURITY;
	CREATE POLICY r ON article USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))) AND apitoken.can('article:read', organization_id));
	GRANT SELECT ON article TO regress_apitoken_backend;
	INSERT INTO apitoken.organizations (id) VALUES ('acme');
	INSERT INTO apitoken.memberships VALUES ('acme', 'alice', 'admin')});
run_on($node, database => 'revoked');
is(run_as('regress_apitoken_backend', q{BEGIN; SELECT apitoken.act_as('alice'); SELECT * FROM article; SELECT count(*) FROM apitoken.tokens;
	SELECT label FROM apitoken.create_token('A', organization_id => 'acme') t, LATERAL (SELECT 'made' AS label) l; SELECT apitoken.whoami()->>'user_id'; ROLLBACK}),
	'alice acme 0 made alice', 'policies, views and functions work where EXECUTE was taken from PUBLIC');
run_on($node);

# ----- pgaudit ------------------------------------------------------------------

SKIP: {
	skip 'pgaudit is not installed', 3 unless -f $node->config_data('--pkglibdir') . '/pgaudit.so';
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pgaudit,apitoken'\npgaudit.log = 'role'\nlog_statement = none");
	$node->restart;
	my $mark = log_mark($node);
	$node->safe_psql('none', q{SELECT apitoken.allow('regress_apitoken_app', 'verify'); SELECT apitoken.disallow('regress_apitoken_app', 'verify')});
	my $log = log_since($node, $mark);
	my @audited = $log =~ /AUDIT: SESSION,\d+,\d+,ROLE,(\w+,\w*,[^,]*,"?.*?"?),<not logged>/g;
	is(join("\n", map { s/,.*?,.*?,/: /r } @audited), join("\n",
			(map { "GRANT: GRANT EXECUTE ON FUNCTION apitoken.$_ TO regress_apitoken_app" } qw(verify verify_all explain_verify introspect revoke_by_token report_leaked)),
			'GRANT: GRANT SELECT (verify) ON apitoken_internal.capabilities TO regress_apitoken_app',
			(map { "REVOKE: REVOKE EXECUTE ON FUNCTION apitoken.$_ FROM regress_apitoken_app" } qw(verify verify_all explain_verify introspect revoke_by_token report_leaked)),
			'REVOKE: REVOKE SELECT (verify) ON apitoken_internal.capabilities FROM regress_apitoken_app'),
		'pgaudit logs each GRANT and REVOKE') or diag($log);
	is($node->safe_psql('none', q{SELECT has_function_privilege('regress_apitoken_app', 'apitoken.verify(text,text,apitoken.id,inet,integer)', 'EXECUTE')}), 'f', 'which were made');
	no_crash($node);
}

$node->stop;
done_testing();
