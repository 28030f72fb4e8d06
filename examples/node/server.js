// Articles over HTTP, for programs with an API token and for signed-in users.
//
//     PGUSER=app_node PGDATABASE=app node server.js
//
// GET, POST /articles       the articles that the caller may see
// GET /feed/ORGANIZATION    for tokens with article:read there
// POST /introspect          RFC 7662, for a gateway (INTROSPECTION_CLIENT=id:secret)
// GET /verify[/PERMISSION[/ORGANIZATION]]   for a gateway's forward authentication
// GET /console/index.html   the page of examples/console, which uses /apitoken/...
'use strict';

const crypto = require('node:crypto');
const http = require('node:http');
const { isIP } = require('node:net');
const { Pool } = require('pg');
const { pageRoutes, tokenRoutes } = require('./console.js');
const tokens = require('./tokens.js');
const { Refused } = tokens;

async function body(request, type) {
	const [sent] = (request.headers['content-type'] || '').split(';');
	// only JSON: a form on another site cannot send it with our cookie
	if (sent.trim() !== type) throw new Refused(415, `${type} expected`);
	let text = '';
	request.setEncoding('utf8');
	for await (const chunk of request) {
		text += chunk;
		if (text.length > 65536) throw new Refused(413, 'too long');
	}
	return text;
}

async function jsonObject(request) {
	let value;
	try {
		value = JSON.parse(await body(request, 'application/json'));
	} catch (error) {
		if (error instanceof Refused) throw error;
	}
	if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Refused(400, 'a JSON object is expected');
	return value;
}

async function json(request) {
	const value = await jsonObject(request);
	if (Object.values(value).some((text) => typeof text !== 'string')) throw new Refused(400, 'strings are expected');
	return value;
}

// A parameter must not be repeated (RFC 6749, section 3.2).
async function form(request) {
	const values = new URLSearchParams(await body(request, 'application/x-www-form-urlencoded'));
	for (const name of values.keys()) {
		if (values.getAll(name).length > 1) throw new Refused(400, 'invalid_request');
	}
	return values;
}

// Check a gateway's own credentials, by HTTP Basic (RFC 6749, section 2.3.1).
function requireClient(request) {
	const [, given] = /^basic\s+(\S+)\s*$/i.exec(request.headers.authorization || '') || [];
	const digest = (text) => crypto.createHash('sha256').update(text).digest();
	let client;
	try {
		client = Buffer.from(given || '', 'base64').toString().split(':').map((part) => decodeURIComponent(part.replaceAll('+', ' ')));
	} catch {
		client = [];
	}
	const wanted = process.env.INTROSPECTION_CLIENT;
	if (!wanted || !crypto.timingSafeEqual(digest(client.join(':')), digest(wanted))) {
		throw new Refused(401, 'invalid_client', { 'WWW-Authenticate': 'Basic realm="introspection"' });
	}
}

// signedInUser(request) returns the id of the session's user, if there is one.  more
// has further routes.
function createServer({ pool, signedInUser = () => undefined, more = {} }) {
	// The client's address.  Set BEHIND_PROXY=1 only if all requests come through your
	// own proxy, which appends the address: clients can send X-Forwarded-For, too.
	function address(request) {
		const from = process.env.BEHIND_PROXY === '1'
			? (request.headers['x-forwarded-for'] || '').split(',').pop().trim()
			: request.socket.remoteAddress;
		return isIP(from) ? from.replace(/%.*/, '') : '::'; // unknown: no client has this one
	}

	function required(credentials) {
		if (!credentials) throw new Refused(401, 'unauthorized', { 'WWW-Authenticate': 'Bearer' });
		return credentials;
	}

	// A request with a bad token never acts as its signed-in user.
	function caller(request) {
		const token = tokens.bearer(request.headers.authorization);
		if (token !== undefined) return tokens.byToken(token, address(request));
		return session(request);
	}

	function session(request) {
		return tokens.asUser(required(signedInUser(request)), address(request));
	}

	// For a gateway that asks about each request.  It passes the headers on to its
	// application.  They are percent-encoded, because an id may be any text.  All of
	// them are sent: in place of a missing one, Caddy passes the name of a variable.
	async function verified(request, permission, organizationId) {
		// node would drop a second header
		const sent = request.headersDistinct.authorization || [];
		if (sent.length > 1) throw new Refused(401, 'invalid_token', { 'WWW-Authenticate': 'Bearer error="invalid_token"' });
		const row = await tokens.verify(pool, required(tokens.bearer(sent[0])), {
			permission, organizationId, clientAddress: address(request),
		});
		const text = (id) => encodeURIComponent(id ?? '');
		return [200, { label: row.label }, {
			'X-Apitoken-Id': row.token_id, 'X-Apitoken-User': text(row.user_id), 'X-Apitoken-Organization': text(row.organization_id),
		}];
	}

	const routes = {
		'GET /verify': verified,
		'GET /verify/:id': verified,
		'GET /verify/:id/:id': verified,

		'GET /articles': async (request) => tokens.acting(pool, caller(request), async (client) => {
			const { rows } = await client.query('SELECT id, organization_id, title FROM article ORDER BY id');
			return [200, rows];
		}),

		'POST /articles': async (request) => {
			const article = await json(request);
			return tokens.acting(pool, caller(request), async (client) => {
				const { rows } = await client.query(
					'INSERT INTO article (organization_id, title) VALUES ($1, $2) RETURNING id, organization_id, title',
					[article.organization_id, article.title]);
				return [201, rows[0]];
			});
		},

		// No transaction, no policies: one question, and we must act on the answer.
		'GET /feed/:id': async (request, organizationId) => {
			const token = required(tokens.bearer(request.headers.authorization));
			const row = await tokens.verify(pool, token, {
				permission: 'article:read', organizationId, clientAddress: address(request),
			});
			return [200, { organization_id: organizationId, label: row.label, kind: row.kind }];
		},

		'POST /introspect': async (request) => {
			requireClient(request);
			const values = await form(request);
			if (!values.get('token')) throw new Refused(400, 'invalid_request');
			const { rows } = await tokens.ask(pool, 'introspect', 'SELECT apitoken.introspect($1, $2) AS answer',
				[values.get('token'), values.get('token_type_hint')]);
			return [200, rows[0].answer];
		},

		...tokenRoutes({ pool, identify: session, json: jsonObject }),
		...pageRoutes,
		...more,
	};

	async function answer(request) {
		const [, path, rest] = /^(\/[a-z]+)((?:\/[^/?]+)*)(?:\?|$)/.exec(request.url) || [, '', ''];
		const ids = rest.split('/').slice(1).map(decodeURIComponent);
		const route = routes[`${request.method} ${path}${'/:id'.repeat(ids.length)}`];
		if (!route) throw new Refused(404, 'not found');
		return route(request, ...ids);
	}

	return http.createServer(async (request, response) => {
		let status, value, headers = {};
		try {
			[status, value, headers = {}] = await answer(request);
		} catch (error) {
			if (error instanceof Refused) {
				({ status, headers } = error);
				value = { error: error.code };
			} else {
				status = error instanceof URIError ? 400 : error instanceof tokens.SetupError ? 500 : tokens.statusOf(error);
				console.error(`${status}: ${error.message}`);
				// the server's message is for our log: it may quote other users' data
				value = { error: status < 500 ? 'refused' : 'failed' };
			}
		}
		response.writeHead(status, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store', ...headers });
		response.end(Buffer.isBuffer(value) ? value : JSON.stringify(value));
	});
}

// libpq's environment variables (PGHOST, ...) name the database.
function createPool() {
	const pool = new Pool({ max: Number(process.env.POOL_SIZE || 4), connectionTimeoutMillis: 10000 });
	// An 'error' event without a listener ends the process.  If an idle connection
	// breaks, the pool gets the event, and makes another connection.  If a connection
	// breaks while it is in use, its queries fail as well.
	pool.on('error', (error) => console.error(error.message));
	pool.on('connect', (client) => client.on('error', () => {}));
	return pool;
}

module.exports = { createServer, createPool, json };

if (require.main === module) {
	createServer({ pool: createPool() }).listen(Number(process.env.PORT || 8080), '127.0.0.1');
}
