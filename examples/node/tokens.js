// API tokens with node-postgres: identify the caller, and map errors to HTTP.
'use strict';

const { DatabaseError } = require('pg');

// The request is refused, with an HTTP status, a code, headers, and perhaps words.
class Refused extends Error {
	constructor(status, code, headers = {}, text = code) {
		super(text);
		Object.assign(this, { status, code, headers });
	}
}

// The login lacks a capability.  The caller is not at fault.
class SetupError extends Error {}

// The HTTP response for a verdict other than valid (RFC 6750, RFC 6585).
function refused(verdict, seconds) {
	switch (verdict) {
		case 'quota_exceeded':
		case 'rate_limited':
			// seconds is null if the server cannot count (without shared_preload_libraries), or no wait helps
			return new Refused(429, verdict, seconds ? { 'Retry-After': String(Math.ceil(seconds)) } : {});
		case 'policy_refused':
		case 'network_refused':
			return new Refused(403, verdict);
		case 'permission_refused':
			return new Refused(403, 'insufficient_scope', { 'WWW-Authenticate': 'Bearer error="insufficient_scope"' });
		default: // malformed, unknown, revoked, expired, suspended: only the log may say which
			return new Refused(401, 'invalid_token', { 'WWW-Authenticate': 'Bearer error="invalid_token"' });
	}
}

// The token in an Authorization header; undefined if there is no such header.
function bearer(authorization) {
	if (authorization === undefined) return undefined;
	const [scheme, ...token] = authorization.trim().split(/\s+/);
	if (scheme.toLowerCase() !== 'bearer') throw new Refused(401, 'invalid_token', { 'WWW-Authenticate': 'Bearer' });
	return token.join(' ');
}

// Run one of our own statements.  A statement with a name stays prepared for as long
// as the connection lasts.  This does not work through a pooler that does not track
// prepared statements.
async function ask(client, name, text, values) {
	const named = process.env.PREPARE === 'off' ? {} : { name: `apitoken ${name}` };
	try {
		return await client.query({ ...named, text, values });
	} catch (error) {
		if (error.code === '42501') throw new SetupError(`${error.message}; ${error.hint || 'see apitoken.allow()'}`, { cause: error });
		throw error;
	}
}

// Verify a request in one statement.  Returns a row about the token, or throws Refused.
async function verify(pool, token, { permission = null, organizationId = null, clientAddress = null } = {}) {
	const { rows: [row] } = await ask(pool, 'verify',
		`SELECT valid, verdict, token_id, label, kind, organization_id, user_id, role, access, permissions, groups,
		        expires_at, metadata, extract(epoch FROM retry_after)::float8 AS seconds
		 FROM apitoken.verify($1, $2, $3, $4)`,
		[token, permission, organizationId, clientAddress]);
	if (!row.valid) throw refused(row.verdict, row.seconds);
	return row;
}

// Only we know the client: the connection's address is ours, or the pooler's.
function comeFrom(client, clientAddress) {
	return ask(client, 'address', "SELECT set_config('apitoken.client_address', $1, true)", [clientAddress || '']);
}

// Identify who acts in a transaction: a token, or a user whom we have signed in.
function byToken(token, clientAddress) {
	return async (client) => {
		await comeFrom(client, clientAddress);
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

function asUser(userId, clientAddress) {
	return async (client) => {
		await comeFrom(client, clientAddress);
		await ask(client, 'act_as', 'SELECT FROM apitoken.act_as($1)', [userId]);
	};
}

// Run work in a transaction with an identity: await acting(pool, byToken(...), work).
// It uses one connection from BEGIN to COMMIT (pool.query() takes any connection).
// A connection that is still in a transaction does not return to the pool.
async function acting(pool, identify, work) {
	const client = await pool.connect();
	let broken;
	try {
		await client.query('BEGIN');
		await identify(client);
		const result = await work(client);
		// COMMIT of a failed transaction is a ROLLBACK, even if the work raised no error
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

// The HTTP status of an error from the request's own work.
function statusOf(error) {
	const known = {
		42501: 403, // a policy refuses it
		25006: 403, // the token is read-only
		23505: 409,
		40001: 503, // try again
		'40P01': 503,
	};
	const classes = { 22: 400, 23: 400, '08': 503, 53: 503, 57: 503 };
	// not an error from the server: EPIPE looks like an SQLSTATE, but is none
	if (!(error instanceof DatabaseError)) return error.syscall || /connect/i.test(error.message) ? 503 : 500;
	return known[error.code] || classes[error.code.slice(0, 2)] || 500;
}

module.exports = { Refused, SetupError, bearer, verify, acting, byToken, asUser, ask, statusOf };
