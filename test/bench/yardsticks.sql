-- The extension is compared with these: keys in a table, and PL/pgSQL functions
-- that check them with pgcrypto.  They take the same token texts, so both sides of
-- a comparison get the same keys.  Each has all of the tokens.

CREATE TABLE bench.api_keys (
	id              uuid PRIMARY KEY,
	token_hash      bytea NOT NULL UNIQUE,
	label           text NOT NULL,
	organization_id text,
	user_id         text,
	role            text,
	permissions     text[] NOT NULL,
	created_at      timestamptz NOT NULL DEFAULT now(),
	expires_at      timestamptz,
	revoked_at      timestamptz,
	last_used_at    timestamptz
) WITH (fillfactor = 90); -- room to update rows in place, which is kind to them
INSERT INTO bench.api_keys (id, token_hash, label, organization_id, user_id, role, permissions)
	SELECT k.id, public.digest(k.token, 'sha256'), t.label, t.organization_id, t.user_id, t.role, '{*:read,*:write}'
	FROM bench.keys k JOIN apitoken_internal.token_records t USING (id);

-- The usual function: hash, look up, check, note the time.
CREATE FUNCTION bench.check_and_note(token text) RETURNS bench.api_keys LANGUAGE plpgsql AS $$
DECLARE
	k bench.api_keys;
BEGIN
	SELECT * INTO k FROM bench.api_keys WHERE token_hash = public.digest(token, 'sha256');
	IF NOT FOUND OR k.revoked_at IS NOT NULL OR k.expires_at <= now() THEN
		RETURN NULL;
	END IF;
	UPDATE bench.api_keys SET last_used_at = now() WHERE id = k.id;
	RETURN k;
END
$$;

-- The same without noting the time.
CREATE FUNCTION bench.check_only(token text) RETURNS bench.api_keys LANGUAGE plpgsql STABLE AS $$
DECLARE
	k bench.api_keys;
BEGIN
	SELECT * INTO k FROM bench.api_keys WHERE token_hash = public.digest(token, 'sha256');
	IF NOT FOUND OR k.revoked_at IS NOT NULL OR k.expires_at <= now() THEN
		RETURN NULL;
	END IF;
	RETURN k;
END
$$;

-- The design of extensions written in SQL: the secrets in one table, the metadata of
-- keys in a second one, the permissions in a third one.  The time is noted once a
-- minute.
CREATE TABLE bench.key_secrets (key_hash text PRIMARY KEY, key_id uuid NOT NULL);
CREATE TABLE bench.key_metadata (
	id           uuid PRIMARY KEY,
	owner        text NOT NULL,
	label        text NOT NULL,
	expires_at   timestamptz,
	revoked_at   timestamptz,
	last_used_at timestamptz
) WITH (fillfactor = 90);
CREATE TABLE bench.key_claims (owner text PRIMARY KEY, permissions text[] NOT NULL, claims jsonb NOT NULL);
INSERT INTO bench.key_secrets SELECT encode(token_hash, 'hex'), id FROM bench.api_keys;
INSERT INTO bench.key_metadata SELECT id, coalesce(organization_id, user_id), label FROM bench.api_keys;
INSERT INTO bench.key_claims SELECT DISTINCT owner, ARRAY['*:read', '*:write'], '{"role": "developer"}'::jsonb FROM bench.key_metadata;

CREATE TYPE bench.context AS (key_id uuid, owner text, permissions text[], claims jsonb);
CREATE FUNCTION bench.check_in_parts(token text) RETURNS bench.context LANGUAGE plpgsql AS $$
DECLARE
	m bench.key_metadata;
	found_id uuid;
	answer bench.context;
BEGIN
	SELECT key_id INTO found_id FROM bench.key_secrets WHERE key_hash = encode(public.digest(token, 'sha256'), 'hex');
	IF found_id IS NULL THEN
		RETURN NULL;
	END IF;
	SELECT * INTO m FROM bench.key_metadata WHERE id = found_id AND revoked_at IS NULL;
	IF NOT FOUND OR m.expires_at <= now() THEN
		RETURN NULL;
	END IF;
	UPDATE bench.key_metadata SET last_used_at = now()
	WHERE id = found_id AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute');
	SELECT m.id, m.owner, c.permissions, c.claims INTO answer FROM bench.key_claims c WHERE c.owner = m.owner;
	RETURN answer;
END
$$;
VACUUM ANALYZE bench.api_keys, bench.key_secrets, bench.key_metadata, bench.key_claims;
GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA bench TO bench;
