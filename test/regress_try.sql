\set ECHO none
--
-- For the scripts in sql/: public.regress_try(), which regress_teardown.sql drops.
--
-- Runs an SQL text as the caller and returns the number of rows, or the whole
-- error, with ids and texts of tokens masked.
--
CREATE FUNCTION public.regress_try(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
	detail text;
	n bigint;
BEGIN
	EXECUTE sql;
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN pg_catalog.format('done (%s)', n);
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT, detail = PG_EXCEPTION_DETAIL;
	RETURN pg_catalog.regexp_replace(pg_catalog.concat_ws(' | ', SQLSTATE, SQLERRM, nullif(detail, ''), nullif(hint, '')),
		'_[0-9A-Za-z]{22}_\.\.\.[0-9A-Za-z]{4}', '_(masked)', 'g');
END $$;
\set ECHO all
