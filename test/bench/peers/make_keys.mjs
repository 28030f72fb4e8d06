// Keys of better-auth's API-key plugin, for a test that imports them.
//
//     node make_keys.mjs
//
// Connects as libpq does (PGHOST, ...).  Creates better-auth's tables and five keys
// there, and prints a JSON object with the user's id and the keys by name.
import { apiKey } from '@better-auth/api-key';
import { betterAuth } from 'better-auth';
import { getMigrations } from 'better-auth/db/migration';
import pg from 'pg';

const pool = new pg.Pool();
const options = {
	database: pool,
	secret: 'for a test, and of no use elsewhere',
	baseURL: 'http://localhost',
	telemetry: { enabled: false },
	plugins: [apiKey({ enableMetadata: true })],
};
await (await getMigrations(options)).runMigrations();
const auth = betterAuth(options);
const { internalAdapter } = await auth.$context;
const user = await internalAdapter.createUser({ email: 'ada@example.com', name: 'Ada' });
const keys = {};
const ids = {};

async function create(name, more) {
	const made = await auth.api.createApiKey({ body: { userId: user.id, name, ...more } });
	keys[name] = made.key;
	ids[name] = made.id;
}

await create('plain');
await create('prefixed', { prefix: 'ba_', metadata: { plan: 'free' } });
await create('limited', { permissions: { article: ['read', 'list'] } });
await create('expired', { expiresIn: 86400 * 2 });
await create('disabled');
// as version 1.3 wrote it
await pool.query('UPDATE apikey SET metadata = to_json($1::text) WHERE id = $2', ['{"old": true}', ids.plain]);
await auth.api.updateApiKey({ body: { userId: user.id, keyId: ids.disabled, enabled: false } });
// their own verification, so that each key is right
const valid = {};
for (const name of Object.keys(keys)) valid[name] = (await auth.api.verifyApiKey({ body: { key: keys[name] } })).valid;
// afterwards: it deletes expired keys that it sees
await pool.query('UPDATE apikey SET "expiresAt" = $1 WHERE id = $2', [new Date('2025-01-02T03:04:05Z'), ids.expired]);
await pool.end();
console.log(JSON.stringify({ user: user.id, keys, valid }));
