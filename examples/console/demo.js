// The demo's server: examples/node with the page, and a session for everybody who asks.
// test/demo-console.sh starts it.  It is for loopback only: anybody who reaches it is
// whom they choose to be.
'use strict';

const crypto = require('node:crypto');
const { createServer, createPool, json } = require('../node/server.js');
const { Refused } = require('../node/tokens.js');

// Sessions by the random text in their cookie.  A page on another site cannot send it
// (SameSite), and no script can read it (HttpOnly).
function createDemo({ pool, users }) {
	const sessions = new Map();

	function signedInUser(request) {
		const [, id] = /(?:^|;\s*)session=([\w-]+)/.exec(request.headers.cookie || '') || [];
		return sessions.get(id);
	}

	async function signIn(request) {
		const { user } = await json(request);
		if (!users.some(({ id }) => id === user)) throw new Refused(400, 'unknown user');
		const id = crypto.randomBytes(24).toString('base64url');
		sessions.set(id, user);
		return [200, { user }, { 'Set-Cookie': `session=${id}; Path=/; HttpOnly; SameSite=Strict` }];
	}

	return createServer({
		pool, signedInUser,
		more: {
			'GET /session': async (request) => [200, { user: signedInUser(request) ?? null, users }],
			'POST /session': signIn,
		},
	});
}

module.exports = { createDemo };

if (require.main === module) {
	const users = [
		{ id: 'alice', name: 'Alice, administrator' },
		{ id: 'carol', name: 'Carol, who may only look' },
		{ id: 'bob', name: 'Bob, developer' },
	];
	const server = createDemo({ pool: createPool(), users });
	server.listen(Number(process.env.PORT || 0), '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}/console/index.html`));
}
