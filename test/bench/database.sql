-- A database under measurement, before its tokens are loaded: the extension, a
-- thousand organizations and users, and the benchmark's own helpers in the
-- schema bench.

CREATE EXTENSION apitoken CASCADE;
CREATE EXTENSION pg_prewarm;
CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO bench;

-- The login of pgbench: a backend's, which may read the tables besides, since
-- that is what the yardsticks do.
SELECT apitoken.allow('bench', 'verify');
GRANT SELECT ON ALL TABLES IN SCHEMA apitoken TO bench;

INSERT INTO apitoken.organizations (id) SELECT 'organization-' || i FROM generate_series(0, 999) i;
INSERT INTO apitoken.users (id, groups) SELECT 'user-' || i, ARRAY['staff'] FROM generate_series(0, 999) i;

-- What a client would keep: the tokens' texts.
CREATE TABLE bench.keys (n bigint PRIMARY KEY, id uuid, token text);

-- Tokens "key FROM" to "key TO", in turn of an organization and of a user.
CREATE FUNCTION bench.load("from" bigint, "to" bigint) RETURNS void LANGUAGE sql AS $$
	WITH made AS (
		INSERT INTO apitoken.tokens (label, organization_id, user_id)
		SELECT 'key ' || i,
			CASE WHEN i % 2 = 1 THEN 'organization-' || i / 2 % 1000 END,
			CASE WHEN i % 2 = 0 THEN 'user-' || i / 2 % 1000 END
		FROM generate_series("from", "to") i
		RETURNING id, label, apitoken.take_secret(id) AS token)
	INSERT INTO bench.keys SELECT substr(label, 5)::bigint, id, token FROM made;
$$;

-- How long a statement takes, in milliseconds; its rows go nowhere.
CREATE FUNCTION bench.milliseconds(statement text) RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz;
BEGIN
	began := clock_timestamp();
	EXECUTE statement;
	RETURN extract(epoch FROM clock_timestamp() - began) * 1000;
END
$$;
