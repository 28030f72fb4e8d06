-- The tokens in random order (a million of them, if there are more), in batches:
-- bench.batch_t (n, t1 ... t100) has the texts, bench.batch_i (n, i1 ... i100)
-- the ids of the same tokens, and the view bench.batches both.

CREATE TEMP TABLE shuffled AS
	SELECT row_number() OVER () AS r, id, token
	FROM (SELECT id, token FROM bench.keys ORDER BY random() LIMIT 1000000) o;
SELECT bench.make_batches('t', 'text', 'SELECT r, token AS value FROM shuffled'),
	bench.make_batches('i', 'uuid', 'SELECT r, id AS value FROM shuffled');
CREATE VIEW bench.batches AS SELECT * FROM bench.batch_t JOIN bench.batch_i USING (n);
GRANT SELECT ON bench.batches TO bench;
