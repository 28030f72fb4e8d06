\set ECHO none
--
-- For the scripts in sql/, at their beginning: the extension, and what
-- regress_try.sql makes.  regress_teardown.sql takes both away.
--
SET client_min_messages = warning;
CREATE EXTENSION apitoken;
RESET client_min_messages;
\i :srcdir/test/regress_try.sql
