-- The database of the application.  Run it once, on the leader, as superuser:
--
--     psql "host=10.0.0.11,10.0.0.12,10.0.0.13 target_session_attrs=read-write user=postgres dbname=app" \
--         -v ON_ERROR_STOP=1 -1 -f setup.sql

CREATE EXTENSION apitoken;

-- what the application connects as
CREATE ROLE app_backend LOGIN PASSWORD 'backend-password';
SELECT apitoken.allow('app_backend', 'act', 'manage', 'verify');

-- What replicas send the use of tokens as.  It can do nothing else.
CREATE ROLE apitoken_sender LOGIN PASSWORD 'sender-password' CONNECTION LIMIT 20;
SELECT apitoken.allow('apitoken_sender', 'usage');
