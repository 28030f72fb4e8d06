-- For figure 8: two tables with policies for requests with a token, and with
-- policies for requests with a JWT, as users of PostgREST write them; and the
-- requests.

CREATE ROLE bench_authenticator LOGIN NOINHERIT;
CREATE ROLE bench_anon;
CREATE ROLE bench_web_user;
GRANT bench_anon, bench_web_user TO bench_authenticator;
SELECT apitoken.allow('bench_authenticator', 'act');
SELECT apitoken.allow('bench_anon', 'use'), apitoken.allow('bench_web_user', 'use');

CREATE SCHEMA bench_api;
GRANT USAGE ON SCHEMA bench_api TO bench_anon, bench_web_user;

CREATE TABLE bench_api.articles (
	id              bigint PRIMARY KEY,
	organization_id text NOT NULL,
	title           text NOT NULL,
	created_at      timestamptz NOT NULL DEFAULT now()
);
INSERT INTO bench_api.articles SELECT i, 'organization-' || i % 1000, 'article ' || i FROM generate_series(1, 20000) i;
CREATE INDEX ON bench_api.articles (organization_id);

CREATE TABLE bench_api.drafts (
	id         bigint PRIMARY KEY,
	user_id    text NOT NULL,
	title      text NOT NULL,
	created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO bench_api.drafts SELECT i, 'user-' || i % 1000, 'draft ' || i FROM generate_series(1, 20000) i;
CREATE INDEX ON bench_api.drafts (user_id);

GRANT SELECT ON bench_api.articles, bench_api.drafts TO bench_anon, bench_web_user;
ALTER TABLE bench_api.articles ENABLE ROW LEVEL SECURITY;
ALTER TABLE bench_api.drafts ENABLE ROW LEVEL SECURITY;

-- docs/policies.md
CREATE POLICY by_token ON bench_api.articles FOR SELECT TO bench_anon
	USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY by_token ON bench_api.drafts FOR SELECT TO bench_anon
	USING (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:read')));

CREATE POLICY by_jwt ON bench_api.articles FOR SELECT TO bench_web_user
	USING (organization_id = current_setting('request.jwt.claims', true)::json->>'organization_id');
CREATE POLICY by_jwt ON bench_api.drafts FOR SELECT TO bench_web_user
	USING (user_id = current_setting('request.jwt.claims', true)::json->>'sub');

-- The headers with the token (h1, h2, ...) or with a JWT (j1, ...), and the claims
-- in the JWT (c1, ...).  The JWT is as short as a token here.  PostgREST has
-- verified it outside of the database.
CREATE TEMP TABLE request AS
	SELECT t.organization_id, t.user_id, (row_number() OVER (PARTITION BY t.user_id IS NULL ORDER BY random()) - 1) AS r,
		format('{"accept":"application/json","accept-encoding":"gzip, deflate","host":"localhost:3000","user-agent":"client/1.0","x-api-key":"%s"}', k.token) AS h,
		format('{"accept":"application/json","accept-encoding":"gzip, deflate","authorization":"Bearer %s","host":"localhost:3000","user-agent":"client/1.0"}',
			translate(k.token, '_', '.')) AS j,
		CASE WHEN t.user_id IS NULL
			THEN format('{"exp":1900000000,"organization_id":"%s","role":"bench_web_user"}', t.organization_id)
			ELSE format('{"exp":1900000000,"role":"bench_web_user","sub":"%s"}', t.user_id) END AS c
	FROM bench.keys k JOIN apitoken_internal.token_records t USING (id)
	WHERE k.n <= 100000;

SELECT format('CREATE TABLE bench.requests_%s WITH (toast_tuple_target = 8160) AS SELECT row_number() OVER () AS n, b.* FROM (SELECT %s FROM request '
		|| 'WHERE user_id IS %s NULL GROUP BY r / %4$s HAVING count(*) = %4$s) b',
		relation, (SELECT string_agg(format('max(%1$s) FILTER (WHERE r %% %3$s = %2$s - 1) AS %1$s%2$s', what, i, :each), ', ')
			FROM unnest('{h,j,c}'::text[]) what, generate_series(1, :each) i), personal, :each),
	format('ALTER TABLE bench.requests_%s ADD PRIMARY KEY (n)', relation)
FROM (VALUES ('articles', ''), ('drafts', 'NOT')) r (relation, personal) \gexec

GRANT SELECT ON bench.requests_articles, bench.requests_drafts TO bench_authenticator;
VACUUM ANALYZE bench_api.articles;
VACUUM ANALYZE bench_api.drafts;
VACUUM ANALYZE bench.requests_articles;
VACUUM ANALYZE bench.requests_drafts;
