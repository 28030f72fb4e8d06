-- The tokens in random order (a million of them, if there are more), a hundred
-- in a row: bench.batch_t (n, t1 ... t100) has the texts, bench.batch_i
-- (n, i1 ... i100) the ids of the same tokens, and the view bench.batches both.
-- So pgbench has a hundred of them by a single statement.

CREATE TEMP TABLE shuffled AS
	SELECT r / 100 AS n, array_agg(id ORDER BY r) AS i, array_agg(token ORDER BY r) AS t
	FROM (SELECT row_number() OVER (ORDER BY random()) - 1 AS r, id, token FROM bench.keys) o
	WHERE r < 1000000
	GROUP BY 1 HAVING count(*) = 100;

-- a hundred texts fill a page: they stay there, uncompressed
SELECT format('CREATE TABLE bench.batch_%1$s (n bigint PRIMARY KEY, %s) WITH (toast_tuple_target = 8160)',
		what, string_agg(what || i || ' ' || type, ', ' ORDER BY i)),
	format('INSERT INTO bench.batch_%1$s SELECT n, %s FROM shuffled',
		what, string_agg(format('%s[%s]', what, i), ', ' ORDER BY i))
FROM (VALUES ('t', 'text'), ('i', 'uuid')) w (what, type), generate_series(1, 100) i
GROUP BY what \gexec

CREATE VIEW bench.batches AS SELECT * FROM bench.batch_t JOIN bench.batch_i USING (n);
GRANT SELECT ON ALL TABLES IN SCHEMA bench TO bench;
