\set ECHO none
--
-- For sql/oracles.sql: run all statements as each caller.
--
SET SESSION AUTHORIZATION regress_apitoken_app;
BEGIN;
SELECT oracle.run(:world, 'member', 'SELECT apitoken.act_as(''ada'')') \g /dev/null
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_web;
BEGIN;
SELECT oracle.run(:world, 'anonymous', NULL) \g /dev/null
COMMIT;
BEGIN;
SELECT oracle.run(:world, 'token', format('SELECT apitoken.authenticate(%L)', :'mine')) \g /dev/null
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_user;
BEGIN;
SELECT oracle.run(:world, 'use', NULL) \g /dev/null
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_gateway;
BEGIN;
SELECT oracle.run(:world, 'verify', NULL) \g /dev/null
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_monitor;
BEGIN;
SELECT oracle.run(:world, 'monitor', NULL) \g /dev/null
COMMIT;
SET SESSION AUTHORIZATION regress_apitoken_nobody;
BEGIN;
SELECT oracle.run(:world, 'nobody', NULL) \g /dev/null
COMMIT;
RESET SESSION AUTHORIZATION;
\set ECHO all
