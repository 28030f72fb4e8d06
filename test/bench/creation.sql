-- For figure 11: a copy of token_records with the same rows and without triggers;
-- such copies of the other tables in which a new token has a row; rows to insert
-- into them; and each way to create many tokens in one transaction.

CREATE TABLE bench.bare_records (LIKE apitoken_internal.token_records INCLUDING ALL);
INSERT INTO bench.bare_records SELECT * FROM apitoken_internal.token_records;
CREATE TABLE bench.bare_usage (LIKE apitoken.token_usage INCLUDING ALL);
INSERT INTO bench.bare_usage SELECT * FROM apitoken.token_usage;
CREATE TABLE bench.bare_events (LIKE apitoken.events INCLUDING ALL);
INSERT INTO bench.bare_events SELECT * FROM apitoken.events;
VACUUM ANALYZE bench.bare_records, bench.bare_usage, bench.bare_events;

-- The columns of the row of a new organization's token, except its id, for pgbench.
-- The label and the owner are pgbench's variables; all others are constants.
CREATE FUNCTION bench.columns() RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname <> 'id', attnum)
	FROM pg_attribute WHERE attrelid = 'apitoken_internal.token_records'::regclass AND attnum > 0 AND NOT attisdropped
$$;
CREATE FUNCTION bench.constants() RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(
		CASE attname
			WHEN 'label' THEN '''made '' || :label'
			WHEN 'organization_id' THEN '''organization-'' || :owner'
			WHEN 'created_at' THEN 'now()'
			WHEN 'updated_at' THEN 'now()'
			ELSE format('%L::%s', to_jsonb(r) ->> attname, format_type(atttypid, atttypmod))
		END, ', ' ORDER BY attnum)
	FROM pg_attribute, (SELECT * FROM apitoken_internal.token_records WHERE organization_id IS NOT NULL LIMIT 1) r
	WHERE attrelid = 'apitoken_internal.token_records'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'id'
$$;

-- Rows to insert.  Their ids ascend, as those of tokens do.
CREATE TABLE bench.new_rows (LIKE apitoken_internal.token_records);
CREATE FUNCTION bench.make_rows(number integer, run bigint) RETURNS void LANGUAGE sql AS $$
	TRUNCATE bench.new_rows;
	INSERT INTO bench.new_rows SELECT * FROM apitoken_internal.token_records WHERE organization_id IS NOT NULL LIMIT number;
	UPDATE bench.new_rows SET label = 'loop ' || run || '.' || n.i,
		id = (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
			|| lpad(to_hex(n.i), 8, '0') || substr(md5(random()::text), 1, 12))::uuid
	FROM (SELECT ctid, row_number() OVER () AS i FROM bench.new_rows) n WHERE new_rows.ctid = n.ctid;
$$;

-- These return seconds.
CREATE SEQUENCE bench.run;
CREATE FUNCTION bench.create_tokens(number integer) RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
	run bigint := nextval('bench.run');
BEGIN
	FOR i IN 1 .. number LOOP
		PERFORM FROM apitoken.create_token('loop ' || run || '.' || i, organization_id => 'organization-' || i % 1000);
	END LOOP;
	RETURN extract(epoch FROM clock_timestamp() - began);
END
$$;
CREATE FUNCTION bench.insert_rows(number integer) RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz;
	new_row bench.new_rows;
BEGIN
	PERFORM bench.make_rows(number, nextval('bench.run'));
	began := clock_timestamp();
	FOR new_row IN SELECT * FROM bench.new_rows LOOP
		INSERT INTO bench.bare_records VALUES (new_row.*);
	END LOOP;
	RETURN extract(epoch FROM clock_timestamp() - began);
END
$$;
CREATE FUNCTION bench.insert_all(number integer) RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz;
BEGIN
	PERFORM bench.make_rows(number, nextval('bench.run'));
	began := clock_timestamp();
	INSERT INTO bench.bare_records SELECT * FROM bench.new_rows;
	INSERT INTO bench.bare_usage (token_id) SELECT id FROM bench.new_rows;
	INSERT INTO bench.bare_events
		SELECT id, created_at, 'create', id, organization_id, user_id, created_by, NULL, CURRENT_USER, NULL,
			jsonb_build_object('masked', masked, 'label', label)
		FROM bench.new_rows;
	RETURN extract(epoch FROM clock_timestamp() - began);
END
$$;

CREATE ROLE bench_creator LOGIN;
SELECT apitoken.allow('bench_creator', 'act', 'manage');
INSERT INTO apitoken.organizations (id) VALUES ('creation');
INSERT INTO apitoken.memberships VALUES ('creation', 'creator', 'admin');

-- an organization that is told of each of its tokens
INSERT INTO apitoken.organizations (id) VALUES ('told');
INSERT INTO apitoken.users (id, email) SELECT 'told-' || i, 'told-' || i || '@example.com' FROM generate_series(1, 3) i;
INSERT INTO apitoken.memberships SELECT 'told', 'told-' || i, 'admin' FROM generate_series(1, 3) i;
