\set ECHO none
--
-- For the scripts in sql/, after regress_setup.sql: a backend's login, which acts
-- for users and manages tokens, and two organizations with an administrator each.
-- One of the administrators has a row in users.
--
CREATE ROLE regress_apitoken_app LOGIN;
SELECT apitoken.allow('regress_apitoken_app', 'act', 'manage') \g /dev/null
INSERT INTO apitoken.organizations (id) VALUES ('acme'), ('globex');
INSERT INTO apitoken.users (id) VALUES ('ada');
INSERT INTO apitoken.memberships VALUES ('acme', 'ada', 'admin'), ('globex', 'gina', 'admin');
\set ECHO all
