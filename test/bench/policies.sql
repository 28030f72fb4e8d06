-- For figure 10: the same rows in tables with different policies.  The identity is
-- a member of three of a thousand organizations, or a token of one of them.

CREATE ROLE bench_policies LOGIN;
SELECT apitoken.allow('bench_policies', 'act', 'use');

INSERT INTO apitoken.organizations (id) SELECT 'policy-' || i FROM generate_series(1, 3) i;
INSERT INTO apitoken.memberships SELECT 'policy-' || i, 'policy-member', 'developer' FROM generate_series(1, 3) i;

CREATE TABLE bench.allowed (id bigint PRIMARY KEY, organization_id text NOT NULL, title text NOT NULL);
INSERT INTO bench.allowed SELECT i, 'policy-' || i % 1000, 'title ' || i FROM generate_series(1, :rows) i;
CREATE INDEX ON bench.allowed (organization_id);

-- the first of them with the recommended policy (docs/policies.md)
ALTER TABLE bench.allowed ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON bench.allowed
	USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));

SELECT format('CREATE TABLE bench.%s (LIKE bench.allowed INCLUDING ALL)', name),
	format('INSERT INTO bench.%s SELECT * FROM bench.allowed', name),
	format('ALTER TABLE bench.%s ENABLE ROW LEVEL SECURITY', name),
	format('CREATE POLICY p ON bench.%s USING (%s)', name, policy)
FROM (VALUES
	('constants', $$organization_id = ANY ('{policy-1,policy-2,policy-3}')$$),
	('own', $$organization_id = (SELECT apitoken.current_organization_id())$$),
	('constant', $$organization_id = 'policy-1'$$),
	-- a bad policy: it calls the function for each row
	('careless', $$apitoken.can('article:read', organization_id)$$)) p (name, policy) \gexec

SELECT format('GRANT SELECT ON bench.%s TO bench_policies', name), format('VACUUM ANALYZE bench.%s', name)
FROM unnest('{allowed,constants,own,constant,careless}'::text[]) name \gexec
