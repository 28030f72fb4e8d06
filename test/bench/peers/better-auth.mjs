// better-auth's API-key plugin and apitoken.verify() through one node-postgres
// pool, in one process.
//
//     node better-auth.mjs KEYS
//
// Connects as libpq does (PGHOST, ...).  The database needs the table bench.keys, and
// a schema better_auth in which it may create tables.  Creates better-auth's tables,
// with KEYS keys, and prints "ready".  Each line of standard input has SECONDS and
// the name of one of the ways below.  For each line it makes calls with random keys,
// as many at a time as there are connections, and prints how many per second.
import { createInterface } from 'node:readline';

import { apiKey } from '@better-auth/api-key';
import { betterAuth } from 'better-auth';
import { getMigrations } from 'better-auth/db/migration';
import pg from 'pg';

const keys = Number(process.argv[2]);
const inFlight = 10; // node-postgres has so many connections by default
const pool = new pg.Pool({ max: inFlight, options: '-c search_path=better_auth' });
const hastyPool = new pg.Pool({ max: inFlight, options: '-c search_path=better_auth -c synchronous_commit=off' });

// Its own defaults, except for the rate limit, which would refuse the eleventh call.
function options(database, settings, more) {
	return {
		database,
		secret: 'for a benchmark, and of no use elsewhere',
		baseURL: 'http://localhost',
		telemetry: { enabled: false },
		logger: { disabled: true },
		plugins: [apiKey({ rateLimit: { enabled: false }, ...settings })],
		...more,
	};
}

await (await getMigrations(options(pool))).runMigrations();
const auth = betterAuth(options(pool));

// No unnecessary waits: neither for the disk, nor for the removal of expired keys.
const hasty = betterAuth(options(hastyPool, { deferUpdates: true },
	{ advanced: { backgroundTasks: { handler: (promise) => promise.catch(() => {}) } } }));

// Without a database: the keys are in this process.
const cache = new Map();
const cached = betterAuth(options(pool, { storage: 'secondary-storage', deferUpdates: true }, {
	advanced: { backgroundTasks: { handler: (promise) => promise.catch(() => {}) } },
	secondaryStorage: {
		get: async (key) => cache.get(key) ?? null,
		set: async (key, value) => { cache.set(key, value); },
		delete: async (key) => { cache.delete(key); },
	},
}));
const cachedKeys = [];

// createApiKey() makes only a few hundred keys per second.  It makes one; the others
// are copies of its row, each with a key of its own: as many as there are tokens.
async function makeKeys() {
	const { internalAdapter } = await auth.$context;
	const user = await internalAdapter.createUser({ email: 'user@example.com', name: 'User' });
	const body = { userId: user.id, name: 'key' };
	const { id } = await auth.api.createApiKey({ body });
	await pool.query(`CREATE TABLE texts AS
		SELECT n, left(translate(encode(sha512(gen_random_uuid()::text::bytea), 'base64'),
				E'+/=\n0123456789', 'aBcDeFgHiJkLmN'), 64) AS key
		FROM generate_series(1, ${keys}) n`);
	await pool.query(`INSERT INTO apikey
		SELECT (jsonb_populate_record(a, jsonb_build_object('id', md5(n::text), 'start', left(t.key, 6),
			'key', rtrim(translate(encode(sha256(t.key::bytea), 'base64'), '+/', '-_'), '=')))).*
		FROM texts t, apikey a WHERE a.id = $1`, [id]);
	await pool.query('VACUUM ANALYZE apikey');
	for (let n = 0; n < 1000; n++) cachedKeys.push((await cached.api.createApiKey({ body })).key);
}

async function column(sql) {
	const { rows } = await pool.query({ text: sql, rowMode: 'array' });
	return rows.map(([value]) => value);
}

await makeKeys();
const some = `ORDER BY random() LIMIT ${keys}`;
const tokens = await column(`SELECT token FROM bench.keys ${some}`);
const ids = await column(`SELECT id FROM bench.keys ${some}`);
const theirKeys = await column(`SELECT key FROM texts ${some}`);

function verifyBy(instance, texts) {
	return async () => (await instance.api.verifyApiKey({ body: { key: random(texts) } })).valid;
}

function random(values) {
	return values[Math.floor(Math.random() * values.length)];
}

const verify = 'SELECT * FROM apitoken.verify($1)';
const row = 'SELECT id, label, organization_id, user_id, role, access, permissions, expires_at, metadata, digest ' +
	'FROM apitoken_internal.token_records WHERE id = $1';

// Each returns whether the answer was there, and correct.
const ways = {
	'apitoken': async () =>
		(await pool.query(verify, [random(tokens)])).rows[0].valid,
	'apitoken prepared': async () =>
		(await pool.query({ name: 'verify', text: verify, values: [random(tokens)] })).rows[0].valid,
	'primary key prepared': async () =>
		(await pool.query({ name: 'row', text: row, values: [random(ids)] })).rows.length === 1,
	'better-auth': verifyBy(auth, theirKeys),
	'better-auth hasty': verifyBy(hasty, theirKeys),
	'better-auth cached': verifyBy(cached, cachedKeys),
};

async function rate(seconds, way) {
	let calls = 0;
	const start = performance.now();
	const end = start + seconds * 1000;
	await Promise.all(Array.from({ length: inFlight }, async () => {
		while (performance.now() < end) {
			if (!await way()) throw new Error('refused');
			calls++;
		}
	}));
	return calls / (performance.now() - start) * 1000;
}

if ((await auth.api.verifyApiKey({ body: { key: random(theirKeys).slice(1) } })).valid) throw new Error('accepted a wrong key');
console.log('ready');
for await (const line of createInterface({ input: process.stdin })) {
	const [, seconds, name] = /^(\S+) (.*)$/.exec(line);
	console.log(await rate(Number(seconds), ways[name]));
}
await Promise.all([pool.end(), hastyPool.end()]);
