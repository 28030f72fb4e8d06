// API tokens with node-postgres: who is asking, and what became of it.
'use strict';

const { DatabaseError } = require('pg');

// The request is refused: an HTTP status, a code, and headers.
class Refused extends Error {
	constructor(status, code, headers = {}) {
		super(code);
		Object.assign(this, { status, code, headers });
	}
}

// The login lacks a capability: no fault of who is asking.
class SetupError extends Error {}

// What a verdict other than valid is in HTTP (RFC 6750, RFC 6585).
function refused(verdict, seconds) {
	switch (verdict) {
		case 'rate_limited':
			// not known where the server cannot count (without shared_preload_libraries)
			return new Refused(429, verdict, seconds ? { 'Retry-After': String(Math.ceil(seconds)) } : {});
		case 'network_refused':
			return new Refused(403, verdict);
		case 'permission_refused':
			return new Refused(403, 'insufficient_scope', { 'WWW-Authenticate': 'Bearer error="insufficient_scope"' });
		default: // malformed, unknown, revoked, expired, suspended: the log may know which
			return new Refused(401, 'invalid_token', { 'WWW-Authenticate': 'Bearer error="invalid_token"' });
	}
}

// The token of an Authorization header; undefined if there is no such header.
function bearer(authorization) {
	if (authorization === undefined) return undefined;
	const [scheme, ...token] = authorization.trim().split(/\s+/);
	if (scheme.toLowerCase() !== 'bearer') throw new Refused(401, 'invalid_token', { 'WWW-Authenticate': 'Bearer' });
	return token.join(' ');
}

// One of our own statements.  With a name the server keeps it prepared, for as
// long as the connection lasts: not through a pooler that does not know these.
async function ask(client, name, text, values) {
	const named = process.env.PREPARE === 'off' ? {} : { name: `apitoken ${name}` };
	try {
		return await client.query({ ...named, text, values });
	} catch (error) {
		if (error.code === '42501') throw new SetupError(`${error.message}; ${error.hint || 'see apitoken.allow()'}`, { cause: error });
		throw error;
	}
}

// Verify a request in one statement: a row about the token, or Refused.
async function verify(pool, token, { permission = null, organizationId = null, clientAddress = null } = {}) {
	const { rows: [row] } = await ask(pool, 'verify',
		`SELECT valid, verdict, token_id, label, kind, organization_id, user_id, role, access, permissions, groups,
		        expires_at, metadata, extract(epoch FROM retry_after)::float8 AS seconds
		 FROM apitoken.verify($1, $2, $3, $4)`,
		[token, permission, organizationId, clientAddress]);
	if (!row.valid) throw refused(row.verdict, row.seconds);
	return row;
}

// Who acts in a transaction: a token, or a user whom we have signed in ourselves.
function byToken(token, clientAddress) {
	return async (client) => {
		// nobody else knows it: the connection's address is ours, or the pooler's
		await ask(client, 'address', "SELECT set_config('apitoken.client_address', $1, true)", [clientAddress || '']);
		try {
			await ask(client, 'authenticate', 'SELECT FROM apitoken.authenticate($1)', [token]);
		} catch (error) {
			if (error.code !== '28000') throw error;
			const [, verdict] = /Verdict: (\w+)/.exec(error.detail) || [];
			const [, seconds] = /in ([\d.]+) seconds/.exec(error.hint) || [];
			throw refused(verdict, Number(seconds));
		}
	};
}

function asUser(userId) {
	return (client) => ask(client, 'act_as', 'SELECT FROM apitoken.act_as($1)', [userId]);
}

// A transaction in which somebody acts: await acting(pool, byToken(...), work).
// One connection from BEGIN to COMMIT (pool.query() takes any); back in the pool
// it is in no transaction, or it is not given back.
async function acting(pool, identify, work) {
	const client = await pool.connect();
	let broken;
	try {
		await client.query('BEGIN');
		await identify(client);
		const result = await work(client);
		// a transaction that failed, though the work did not say so, ends in ROLLBACK
		const { command } = await client.query('COMMIT');
		if (command !== 'COMMIT') throw new Error('the transaction was rolled back');
		return result;
	} catch (error) {
		await client.query('ROLLBACK').catch((failure) => { broken = failure; });
		throw error;
	} finally {
		client.release(broken);
	}
}

// The HTTP status of an error that the request's own work ended with.
function statusOf(error) {
	const known = {
		42501: 403, // a policy says no
		25006: 403, // the token is read-only
		23505: 409,
		40001: 503, // try again
		'40P01': 503,
	};
	const classes = { 22: 400, 23: 400, '08': 503, 53: 503, 57: 503 };
	// not the server's word: EPIPE is no SQLSTATE, though it looks like one
	if (!(error instanceof DatabaseError)) return error.syscall || /connect/i.test(error.message) ? 503 : 500;
	return known[error.code] || classes[error.code.slice(0, 2)] || 500;
}

module.exports = { Refused, SetupError, bearer, verify, acting, byToken, asUser, ask, statusOf };
