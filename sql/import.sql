--
-- Tokens of other systems: import, verification by the text that their clients send.
--
\set VERBOSITY terse
\getenv srcdir PG_ABS_SRCDIR
\i :srcdir/test/regress_setup.sql
\i :srcdir/test/regress_tenants.sql
CREATE ROLE regress_apitoken_gateway LOGIN;
SELECT apitoken.allow('regress_apitoken_gateway', 'verify', 'use');
CREATE ROLE regress_apitoken_sync LOGIN;
SELECT apitoken.allow('regress_apitoken_sync', 'directory');
INSERT INTO apitoken.roles (name, permissions) VALUES ('reader', '{article:read,article:list}');

-- keys of other systems are in the pepper file, by name
\set pepper_file `echo "${TMPDIR:-/tmp}/regress_apitoken_peppers.$$"`
SELECT current_setting('data_directory') || '/regress_apitoken_peppers' AS pepper_file,
	'umask 077; cat > "' || current_setting('data_directory') || '/regress_apitoken_peppers"' AS write_peppers \gset
COPY (SELECT '1:' || repeat('07', 32) UNION ALL SELECT 'strapi:' || encode('strapi-api-token-salt-0001', 'hex')
	UNION ALL SELECT 'gitlab:' || encode('0123456789abcdef0123456789abcdef', 'hex')) TO PROGRAM :'write_peppers';

-- what ten systems store, row for row
CREATE TABLE public.regress_vector (format text, token text, lookup_key text, stored text, algorithm text, secret text, notes text);
\set vectors :srcdir '/test/vectors/foreign_digests.tsv'
\set read_vectors 'tail -n +2 "' :vectors '"'
COPY public.regress_vector FROM PROGRAM :'read_vectors' WITH (FORMAT csv, DELIMITER E'\t', QUOTE E'\b', NULL '');
DELETE FROM public.regress_vector WHERE format = 'bcrypt';
GRANT SELECT ON public.regress_vector TO PUBLIC;
SELECT count(*) FROM public.regress_vector;

-- the key of the other system is needed
SET ROLE regress_apitoken_sync;
SELECT public.regress_try(format('SELECT apitoken.import_token(%L, %L, organization_id => ''acme'')', format, stored))
FROM public.regress_vector WHERE format IN ('strapi', 'gitlab');
RESET ROLE;
SET apitoken.pepper_file = :'pepper_file';
SET ROLE regress_apitoken_sync;
SELECT apitoken.import_token(v.format, v.stored, v.lookup_key, label => 'key of ' || v.format, organization_id => 'acme', role => 'reader',
	salt => CASE WHEN v.format = 'knox41' THEN v.secret END, created_at => '2021-02-03 04:05:06+00', last_used_at => '2022-02-03 04:05:06+00',
	metadata => jsonb_build_object('n', row_number() OVER ())) IS NOT NULL AS imported
FROM public.regress_vector v;
RESET ROLE;

-- nothing is accepted as long as no format is
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.token) v;
-- each only as its format
SET apitoken.imported_formats = 'knox5, gitlab';
SELECT t.format, v.verdict FROM public.regress_vector t, apitoken.verify(t.token) v ORDER BY 1, 2;
SET apitoken.imported_formats = 'sanctum, strapi, knox, drf-api-key, better-auth, unkey, prefixed-api-key, gitlab, keyhippo, sha256';
SELECT t.format, v.verdict, v.label, v.kind, v.organization_id, v.role, v.permissions, v.secret FROM public.regress_vector t, apitoken.verify(t.token) v ORDER BY 1, 3;
-- a stored digest is no token, in no format, and nor is one with another secret
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.stored) v;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(coalesce(t.lookup_key || '|', '') || t.stored) v;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.lookup_key || t.stored) v WHERE t.lookup_key IS NOT NULL;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(t.lookup_key || '.' || substr(t.stored, 1, 60)) v WHERE t.lookup_key IS NOT NULL;
SELECT DISTINCT v.verdict FROM public.regress_vector t, apitoken.verify(overlay(t.token PLACING CASE right(t.token, 1) WHEN '0' THEN '1' ELSE '0' END FROM length(t.token))) v;
\i :srcdir/test/regress_teardown.sql
