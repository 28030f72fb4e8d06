-- A database for measurements, before its tokens are loaded: the extension, a
-- thousand organizations and users, and the benchmark's own helpers in the
-- schema bench.

CREATE EXTENSION pgcrypto;
CREATE EXTENSION apitoken;
CREATE EXTENSION pg_prewarm;
CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO PUBLIC;

-- The login of pgbench: a backend's login that may also read the tables, because
-- the yardsticks do that.
SELECT apitoken.allow('bench', 'verify');
-- the yardsticks read the tables themselves
GRANT USAGE ON SCHEMA apitoken_internal TO bench;
GRANT SELECT ON ALL TABLES IN SCHEMA apitoken, apitoken_internal TO bench;

INSERT INTO apitoken.organizations (id) SELECT 'organization-' || i FROM generate_series(0, 999) i;
INSERT INTO apitoken.users (id, groups) SELECT 'user-' || i, ARRAY['staff'] FROM generate_series(0, 999) i;

-- The tokens' texts, which a client would keep.
CREATE TABLE bench.keys (n bigint PRIMARY KEY, id uuid, token text);

-- Create tokens "key FROM" to "key TO", alternately for an organization and a user.
CREATE FUNCTION bench.load("from" bigint, "to" bigint) RETURNS void LANGUAGE sql AS $$
	WITH made AS (
		INSERT INTO apitoken.tokens (label, organization_id, user_id)
		SELECT 'key ' || i,
			CASE WHEN i % 2 = 1 THEN 'organization-' || i / 2 % 1000 END,
			CASE WHEN i % 2 = 0 THEN 'user-' || i / 2 % 1000 END
		FROM generate_series("from", "to") i
		RETURNING id, label, apitoken.take_token(id) AS token)
	INSERT INTO bench.keys SELECT substr(label, 5)::bigint, id, token FROM made;
$$;

-- The processor time of this process according to the kernel, in nanoseconds.
-- Other load on the machine hardly changes it.  While a process runs, the kernel
-- counts only at each tick; when the process pauses, it counts exactly.
CREATE FUNCTION bench.processor_time() RETURNS bigint LANGUAGE sql SECURITY DEFINER
BEGIN ATOMIC
	SELECT pg_sleep(0.0001);
	SELECT split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::bigint;
END;

-- How long a statement takes, in milliseconds: by the clock, and of a processor.
-- The rows are discarded.
CREATE FUNCTION bench.milliseconds(statement text, OUT clock double precision, OUT processor double precision)
LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
	had bigint := bench.processor_time();
BEGIN
	EXECUTE statement;
	processor := (bench.processor_time() - had) / 1e6;
	clock := extract(epoch FROM clock_timestamp() - began) * 1000;
END
$$;

-- Stores the texts or ids of a query (r, value) in the order of r, a hundred in
-- each row of the table bench.batch_<letter> (n, <letter>1 ... <letter>100).  So
-- pgbench gets a hundred of them with a single statement.
CREATE FUNCTION bench.make_batches(letter text, type text, query text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	-- a hundred texts fill a page: they stay there, uncompressed
	EXECUTE format('CREATE TABLE bench.batch_%s (n bigint PRIMARY KEY, %s) WITH (toast_tuple_target = 8160)', letter,
		(SELECT string_agg(letter || i || ' ' || type, ', ' ORDER BY i) FROM generate_series(1, 100) i));
	EXECUTE format('INSERT INTO bench.batch_%s SELECT n, %s FROM (
			SELECT row_number() OVER () - 1 AS n, array_agg(value ORDER BY r) AS v
			FROM (SELECT (row_number() OVER (ORDER BY r) - 1) / 100 AS n, r, value FROM (%s) q) o
			GROUP BY n HAVING count(*) = 100) a', letter,
		(SELECT string_agg(format('v[%s]', i), ', ' ORDER BY i) FROM generate_series(1, 100) i), query);
	EXECUTE format('GRANT SELECT ON bench.batch_%s TO bench', letter);
END
$$;
