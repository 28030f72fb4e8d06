// What the page examples/console needs of a backend: the part of PostgREST's API of
// the schema apitoken that <api-tokens> speaks, and the page's files.
//
// Names of columns, functions and operators come from the lists below, and values are
// parameters.  Who may do what is decided by the database.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { DatabaseError } = require('pg');
const tokens = require('./tokens.js');
const { Refused } = tokens;

const TOKEN = {
	label: 'text', description: 'text', role: 'text', access: 'text', permissions: 'text[]', allowed_networks: 'cidr[]',
	rate_limit_per_minute: 'integer', quota: 'bigint', quota_period: 'text',
};
const EDITABLE = { ...TOKEN, expires_at: 'timestamptz', suspended_at: 'timestamptz' };

// Columns that a request may name, with their types.
const RELATIONS = {
	tokens: {
		...EDITABLE, id: 'uuid', organization_id: 'text', user_id: 'text', masked: 'text', created_by: 'text', created_by_name: 'text',
		created_at: 'timestamptz', revoked_at: 'timestamptz', last_used_at: 'timestamptz', status: 'text', remaining: 'bigint', previous_secrets: 'jsonb',
	},
	token_usage_daily: { token_id: 'uuid', day: 'date', accepted: 'bigint', refused: 'bigint' },
	organizations: { id: 'text', name: 'text', max_lifetime: 'interval', require_expiry: 'boolean', default_role: 'text' },
	roles: { name: 'text', description: 'text', permissions: 'text[]', database_role: 'text' },
	permissions: { name: 'text', description: 'text', resource: 'text', action: 'text' },
};
// Functions, with their arguments.
const FUNCTIONS = {
	'GET can': { permission: 'text', organization_id: 'text' },
	'POST create_token': { ...TOKEN, organization_id: 'text', expires_in: 'interval' },
	'POST regenerate_token': { id: 'uuid', overlap: 'interval', expires_in: 'interval' },
	'POST revoke_token': { id: 'uuid', confirm_label: 'text', reason: 'text' },
};
const OPERATORS = {
	eq: (column, type, value) => `${column} = ${value}::${type}`,
	lt: (column, type, value) => `${column} < ${value}::${type}`,
	gte: (column, type, value) => `${column} >= ${value}::${type}`,
	in: (column, type, value) => `${column} = ANY (${value}::${type}[])`,
	ilike: (column, type, value) => `${column} ILIKE ${value}`,
	is: (column) => `${column} IS NULL`,
};
const ROWS = 1000;

const unknown = (what) => new Refused(400, 'PGRST100', {}, `unknown ${what}`);
// the type of a name in one of the lists
function known(list, name, what) {
	if (!Object.hasOwn(list, name)) throw unknown(what);
	return list[name];
}
const quoted = (name) => `"${name}"`;

// ---- statements

// A value as the operator wants it: a list, a pattern, null.
function operand(operator, value) {
	const [, list] = /^\((.*)\)$/.exec(value) || [];
	if (operator === 'in' && list !== undefined) return list.split(',');
	if (operator === 'ilike') return value.replaceAll('*', '%');
	if (operator === 'in' || (operator === 'is' && value !== 'null')) throw unknown('value');
	return value;
}

// ?select=a,b&c=eq.x&order=a.desc&limit=10, as the parts of a SELECT
function parse(columns, query) {
	const parts = { select: [], where: [], order: [], limit: ROWS, values: [] };
	const names = (list) => list.split(',').map((name) => {
		known(columns, name, 'column');
		return quoted(name);
	});
	for (const [name, value] of query) {
		if (name === 'select') {
			parts.select = names(value);
		} else if (name === 'order') {
			parts.order = value.split(',').map((item) => {
				const [column, direction = 'asc'] = item.split('.');
				if (!/^(asc|desc)$/.test(direction)) throw unknown('order');
				return `${names(column)} ${direction}`;
			});
		} else if (name === 'limit') {
			if (!/^\d{1,4}$/.test(value)) throw unknown('limit');
			parts.limit = Math.min(Number(value), ROWS);
		} else {
			const type = known(columns, name, 'column');
			const [operator] = value.split('.', 1);
			const write = known(OPERATORS, operator, 'operator');
			const given = operand(operator, value.slice(operator.length + 1));
			parts.where.push(write(quoted(name), type, operator === 'is' ? '' : `$${parts.values.push(given)}`));
		}
	}
	if (!parts.select.length) throw unknown('select');
	return parts;
}

function selectRows(relation, query) {
	const { select, where, order, limit, values } = parse(known(RELATIONS, relation, 'relation'), query);
	return [`SELECT coalesce(json_agg(t), '[]') AS answer FROM (SELECT ${select} FROM apitoken.${relation}`
		+ `${where.length ? ` WHERE ${where.join(' AND ')}` : ''}${order.length ? ` ORDER BY ${order}` : ''} LIMIT ${limit}) t`, values];
}

// The fields of a JSON object, as a row of these types: FROM ...
function record(types, body, what) {
	const names = Object.keys(body);
	if (!names.length) throw unknown(what);
	return [names, `json_to_record($1::json) AS b (${names.map((name) => `${quoted(name)} ${known(types, name, what)}`)})`];
}

function callFunction(method, name, body) {
	const [names, from] = record(known(FUNCTIONS, `${method} ${name}`, 'function'), body, 'argument');
	const given = names.map((argument) => `${quoted(argument)} => b.${quoted(argument)}`);
	return [`SELECT to_json(f) AS answer FROM ${from}, LATERAL apitoken.${name}(${given}) AS f`, [JSON.stringify(body)]];
}

function editToken(query, body) {
	const [names, from] = record(EDITABLE, body, 'column');
	const { select, where, values } = parse(RELATIONS.tokens, query);
	// one token, by its id
	if (values.length !== 1 || !where[0].startsWith('"id" = $1')) throw unknown('filter');
	return [`WITH t AS (UPDATE apitoken.tokens SET ${names.map((name) => `${quoted(name)} = b.${quoted(name)}`)} FROM ${from} `
		+ `WHERE tokens.id = $2::uuid RETURNING ${select.map((name) => `tokens.${name}`)}) SELECT coalesce(json_agg(t), '[]') AS answer FROM t`,
	[JSON.stringify(body), values[0]]];
}

// ---- answers

// The statuses of docs/errors.md.  The statements above are on the extension's own
// relations and functions, and with these SQLSTATEs it tells callers about their own
// request.  A message with another one may be anybody's: it is for our log.
const TOLD = { 22023: 400, '22P02': 400, 23502: 400, 23503: 409, 23505: 409, 25006: 403, 28000: 403, 42501: 403, 55000: 409 };

function refusal(error) {
	const body = (code, message, details, hint) => ({ code, message, details: details ?? null, hint: hint ?? null });
	if (error instanceof Refused) return [error.status, body(error.code, error.message), error.headers];
	if (error instanceof DatabaseError && TOLD[error.code]) return [TOLD[error.code], body(error.code, error.message, error.detail, error.hint)];
	const status = error instanceof tokens.SetupError ? 500 : tokens.statusOf(error);
	console.error(`${status}: ${error.message}`);
	return [status, status < 500 ? body(error.code, 'refused') : body('server_error', 'internal server error')];
}

// identify(request) is the identity of tokens.acting(), and json(request) reads a body.
function tokenRoutes({ pool, identify, json }) {
	const route = (statement) => async (request, ...names) => {
		try {
			const query = new URL(request.url, 'http://localhost').searchParams;
			const identity = identify(request);
			const [text, values] = await statement(request, query, ...names);
			return await tokens.acting(pool, identity, async (client) => [200, (await client.query(text, values)).rows[0].answer]);
		} catch (error) {
			return refusal(error);
		}
	};
	const rpc = (body) => route(async (request, query, folder, name) => {
		if (folder !== 'rpc') throw unknown('relation');
		return callFunction(request.method, name, await body(request, query));
	});
	return {
		'GET /apitoken/:id': route((request, query, relation) => selectRows(relation, query)),
		'PATCH /apitoken/:id': route(async (request, query, relation) => {
			if (relation !== 'tokens') throw unknown('relation');
			return editToken(query, await json(request));
		}),
		'GET /apitoken/:id/:id': rpc((request, query) => Object.fromEntries(query)),
		'POST /apitoken/:id/:id': rpc((request) => json(request)),
	};
}

// ---- the page

// The page may run its own script, and nothing else: no markup from strings either.
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
	+ "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const TYPES = { html: 'text/html', js: 'text/javascript', css: 'text/css', svg: 'image/svg+xml' };
const PAGE = path.join(__dirname, '..', 'console');
const FILES = ['index.html', 'page.js', 'page.css', 'icon.svg', 'api-tokens.js'];

const pageRoutes = {
	'GET /console/:id': async (request, name) => {
		if (!FILES.includes(name)) throw new Refused(404, 'not found');
		return [200, await fs.promises.readFile(path.join(PAGE, name)), {
			'Content-Type': `${TYPES[name.split('.').pop()]}; charset=utf-8`, 'Content-Security-Policy': POLICY,
			'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer', 'Cross-Origin-Opener-Policy': 'same-origin',
		}];
	},
};

module.exports = { tokenRoutes, pageRoutes };
