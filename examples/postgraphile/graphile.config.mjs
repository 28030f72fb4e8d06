// PostGraphile with apitoken: identify clients by API token.  See README.md.
import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import pg from 'pg';
import { makePgService } from 'postgraphile/adaptors/pg';
import { SafeError } from 'postgraphile/grafast';
import { defaultMaskError } from 'postgraphile/grafserv';
import { GraphQLError } from 'postgraphile/graphql';
import { PostGraphileAmberPreset } from 'postgraphile/presets/amber';

// PGHOST, PGDATABASE, PGUSER and so on name the database
const pool = new pg.Pool();
pool.on('error', (error) => console.error('lost a connection:', error.message));

// ---- identify the caller ----

// Refuse the whole request.
function refuse(response, statusCode, message, headers = {}) {
	for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
	const error = Object.assign(new SafeError(message), { statusCode });
	error.stack = message; // PostGraphile logs it
	throw error;
}

// All tokens in the headers: X-API-Key, and Authorization with the scheme
// Bearer, Token, ApiKey or none.  Other schemes, such as Basic, are ignored.
function tokensIn(request) {
	const { 'x-api-key': keys = [], authorization = [] } = request.headersDistinct;
	return keys.concat(authorization.flatMap((value) => {
		const [scheme, ...rest] = value.trim().split(/\s+/);
		if (rest.length === 0) return [scheme];
		return /^(bearer|token|apikey)$/i.test(scheme) ? [rest.join(' ')] : [];
	}));
}

// For allowed_networks.  Set BEHIND_PROXY=1 only if all requests come through a
// proxy that appends the client's address: clients can send X-Forwarded-For, too.
function clientAddress(request) {
	const address = process.env.BEHIND_PROXY === '1'
		? request.headers['x-forwarded-for']?.split(',').pop().trim()
		: request.socket.remoteAddress;
	return isIP(address) ? address.replace(/%.*/, '') : '::'; // unknown: no client has this one
}

// The user of the session; null if there is no such session.
async function signedIn(cookie) {
	const { rows: [session] } = await pool.query({
		text: 'SELECT user_id FROM private.sessions WHERE digest = $1 AND expires_at > now()',
		values: [createHash('sha256').update(cookie).digest()],
	});
	return session?.user_id ?? null;
}

// The settings of each transaction of this request.  A role must always be among
// them: without any setting, PostGraphile would work as the login itself.
async function settings(request, response) {
	const address = clientAddress(request);
	const [token, ...more] = tokensIn(request);
	const [, cookie] = /(?:^|; *)session=([^;]*)/.exec(request.headers.cookie) ?? [];

	if (more.length > 0) refuse(response, 400, 'send one token', { 'WWW-Authenticate': 'Bearer error="invalid_request"' });
	if (token !== undefined) {
		const { rows: [{ valid, verdict, seconds }] } = await pool.query({
			text: `SELECT valid, verdict, ceil(extract(epoch FROM retry_after)) AS seconds
				FROM apitoken.verify($1, client_address => $2)`,
			values: [token, address],
		});
		if (verdict === 'rate_limited') refuse(response, 429, verdict, { 'Retry-After': seconds ?? 60 });
		if (verdict === 'quota_exceeded') refuse(response, 429, verdict, seconds === null ? {} : { 'Retry-After': seconds });
		if (verdict === 'policy_refused' || verdict === 'network_refused') refuse(response, 403, verdict);
		if (!valid) refuse(response, 401, verdict, { 'WWW-Authenticate': 'Bearer error="invalid_token"' });
		// set the token, never its user: the user may do more than the token
		return { role: 'api_client', 'apitoken.client_address': address, 'apitoken.token': token };
	}
	if (cookie !== undefined) {
		const user = await signedIn(cookie);
		if (user === null) refuse(response, 401, 'sign in again');
		return { role: 'api_client', 'apitoken.client_address': address, 'apitoken.user_id': user };
	}
	return { role: 'api_anonymous' };
}

async function context({ node }) {
	if (!node) return { pgSettings: { role: 'api_anonymous' } }; // not over HTTP
	try {
		return { pgSettings: await settings(node.req, node.res) };
	} catch (error) {
		if (error instanceof SafeError) throw error;
		console.error(error); // PostGraphile would send the message to the client
		return refuse(node.res, 503, 'try again later');
	}
}

// ---- errors that clients see ----

// The SQLSTATEs of database errors that are about the request
const told = new Set(['22023', '22P02', '23502', '23503', '23505', '25006', '28000', '42501', '55000']);

function maskError(error) {
	const { originalError } = error;
	if (!(originalError instanceof pg.DatabaseError) || !told.has(originalError.code)) return defaultMaskError(error);
	const { nodes, source, positions, path } = error;
	const { message, code, detail } = originalError;
	return new GraphQLError(code === '28000' ? `${message}: ${detail}` : message,
		{ nodes, source, positions, path, extensions: { code } });
}

export default {
	extends: [PostGraphileAmberPreset],
	pgServices: [makePgService({ pool, schemas: ['app'], pubsub: false })],
	grafserv: { host: '127.0.0.1', port: Number(process.env.PORT ?? 5678), maskError },
	grafast: { context },
};
