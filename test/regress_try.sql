\set ECHO none
--
-- For the scripts in sql/: public.regress_try(), which regress_teardown.sql drops.
--
-- What an SQL text ends in, as the caller: how many rows it was about, or the
-- whole error.  Ids and texts of tokens are made unrecognizable.
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
