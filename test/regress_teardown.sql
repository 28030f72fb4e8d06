\set ECHO none
--
-- For the scripts in sql/, at their end: drops the extensions, regress_try(), and
-- the roles that the script made.  It is an error if something else still depends
-- on one of these.
--
SET client_min_messages = warning;
DROP EXTENSION apitoken CASCADE;
DROP FUNCTION IF EXISTS public.regress_try(text);
DO $$
DECLARE
	r name;
BEGIN
	FOR r IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname ~* '^regress_apitoken' LOOP
		EXECUTE pg_catalog.format('DROP ROLE %I', r);
	END LOOP;
END
$$;
RESET client_min_messages;
\set ECHO all
