// The browser tests of <api-tokens>: test/t/050_console.pl sets up a server and a
// backend, and runs this with node.  It prints a line of JSON for each assertion.
//
//     CONSOLE_URL       of the page's server, such as http://127.0.0.1:8080
//     CONSOLE_API       of PostgREST, if that is to be asked and not the page's server
//     CONSOLE_JWT       for PostgREST: the users' JWTs by user, as JSON
//     CONSOLE_BACKEND   leave out what is about the page alone
//     CONSOLE_PICTURES  a directory: take the pictures of the documentation, test nothing

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const server = process.env.CONSOLE_URL;
const postgrest = process.env.CONSOLE_API;
const jwts = JSON.parse(process.env.CONSOLE_JWT || '{}');

// ---- assertions

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
function ok(passed, name, about = '') {
	say({ ok: Boolean(passed), name, about: passed ? '' : String(about) });
	return passed;
}
const is = (got, expected, name) => ok(JSON.stringify(got) === JSON.stringify(expected), name, `got ${JSON.stringify(got)}, expected ${JSON.stringify(expected)}`);
const like = (got, pattern, name) => ok(pattern.test(got), name, `got ${JSON.stringify(got)}, expected ${pattern}`);

// ---- asking the API as a user, beside the page

const cookies = {};
async function credentials(user) {
	if (postgrest) return user ? { Authorization: `Bearer ${jwts[user]}`, 'Accept-Profile': 'apitoken', 'Content-Profile': 'apitoken' } : {};
	if (user && !cookies[user]) {
		const response = await fetch(`${server}/session`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ user }) });
		cookies[user] = response.headers.get('set-cookie').split(';')[0];
	}
	return user ? { Cookie: cookies[user] } : {};
}

async function ask(user, method, path, body, headers = {}) {
	const json = body && { 'Content-Type': 'application/json', Prefer: 'return=representation' };
	const response = await fetch(`${postgrest ?? `${server}/apitoken`}${path}`, {
		method, headers: { ...await credentials(user), ...json, ...headers }, body: typeof body === 'string' ? body : body && JSON.stringify(body),
	});
	const text = await response.text();
	return { status: response.status, body: text ? JSON.parse(text) : undefined };
}

const create = async (user, token) => (await ask(user, 'POST', '/rpc/create_token', token)).body;
const find = async (user, label, columns = 'id,label') =>
	(await ask(user, 'GET', `/tokens?select=${columns}&label=eq.${encodeURIComponent(label)}&revoked_at=is.null`)).body[0];

// Is the text of a token accepted?
async function accepted(token) {
	const response = postgrest
		? await fetch(`${postgrest}/rpc/whoami`, { headers: { 'X-API-Key': token, 'Accept-Profile': 'apitoken' } })
		: await fetch(`${server}/articles`, { headers: { Authorization: `Bearer ${token}` } });
	return response.status === 200;
}

// ---- pages

const browser = await chromium.launch({
	executablePath: process.env.CONSOLE_CHROMIUM || '/usr/bin/chromium',
	args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});

// Everything that a page says and asks for, in all tests.
const violations = [];
const contexts = [];

// open(user, place): the page, when its list is there.  watch has what it said and asked for.
async function open(user, place = '#organization=acme', how = {}) {
	const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, locale: 'en-US', timezoneId: 'UTC', reducedMotion: 'reduce', ...how });
	contexts.push(context);
	const watch = { said: [], requests: [] };
	if (user) {
		const [name, value] = (await sessionCookie(user)).split('=');
		await context.addCookies([{ name, value, url: server }]);
	}
	await context.exposeFunction('violated', (what) => violations.push(what));
	await context.addInitScript(() => document.addEventListener('securitypolicyviolation', (event) => window.violated(`${event.violatedDirective} ${event.blockedURI}`)));
	if (postgrest) {
		await context.route(/\/apitoken\//, async (route) => {
			const request = route.request();
			const response = await route.fetch({
				url: request.url().replace(/^.*?\/apitoken/, postgrest),
				headers: { ...request.headers(), ...(how.signedOut ? {} : { authorization: `Bearer ${jwts[user]}` }) },
			});
			await route.fulfill({ response });
		});
	}
	const page = await context.newPage();
	page.setDefaultTimeout(60000);
	page.on('console', (message) => watch.said.push(message.text()));
	page.on('pageerror', (error) => { watch.said.push(String(error)); ok(false, 'no error in a script', error.stack); });
	page.on('dialog', (dialog) => dialog.accept());
	page.on('request', (request) => watch.requests.push({ method: request.method(), url: request.url(), body: request.postData(), headers: request.headers() }));
	await page.goto(`${server}/console/index.html${place}`);
	await settled(page);
	return { page, context, watch, changes: () => watch.requests.filter(({ method, url }) => method !== 'GET' && /apitoken\//.test(url)) };
}

async function sessionCookie(user) {
	if (!postgrest) return (await credentials(user)).Cookie;
	const response = await fetch(`${server}/session`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ user }) });
	return response.headers.get('set-cookie').split(';')[0];
}

// The list has been read.
async function settled(page) {
	await page.waitForFunction(() => {
		const element = document.querySelector('api-tokens');
		return element?.shadowRoot && !element.hasAttribute('aria-busy') && !element.shadowRoot.querySelector('.loading');
	});
}

const labels = (page) => page.locator('tbody .label').allTextContents();
const row = (page, label) => page.getByRole('row').filter({ has: page.locator('.label', { hasText: new RegExp(`^${label.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}$`) }) });
const cell = async (page, label, column) => (await row(page, label).locator(`td.${column}`).innerText()).replace(/\s+/g, ' ').trim();
const dialog = (page) => page.locator('dialog');
const field = (page, name) => page.locator(`.field-${name}`);
const submit = (page) => dialog(page).locator('footer button').last().click();
const errorAt = async (page, name) => {
	const error = field(page, name).locator('.error');
	await error.waitFor();
	return error.innerText();
};
const summary = async (page) => {
	await page.locator('.error.summary').waitFor();
	return page.locator('.error.summary').innerText();
};
async function act(page, label, action) {
	await page.getByLabel(`Actions for ${label}`, { exact: true }).click();
	await row(page, label).getByRole('button', { name: action, exact: true }).click();
}
async function generate(page) {
	await page.getByRole('button', { name: 'Generate token' }).first().click();
	await dialog(page).waitFor();
}
const name = (page) => dialog(page).locator('input[name=label]');
async function secretOf(page) {
	await page.locator('.secret').waitFor();
	return page.locator('.secret').innerText();
}
async function saved(page) {
	await page.getByRole('button', { name: 'I have saved it' }).click();
	await dialog(page).waitFor({ state: 'detached' });
	await settled(page);
}

// Everything that the document has, shadow roots and values of fields included.
const everything = (page) => page.evaluate(() => {
	const parts = [];
	const walk = (node) => {
		parts.push(node.nodeValue ?? '');
		for (const { value } of node.attributes ?? []) parts.push(value);
		if (typeof node.value === 'string') parts.push(node.value);
		if (node.shadowRoot) walk(node.shadowRoot);
		for (const child of node.childNodes) walk(child);
	};
	walk(document);
	const stored = [...Object.values(localStorage), ...Object.values(sessionStorage), document.cookie, document.title, location.href,
		JSON.stringify(history.state), document.referrer, window.name, ...performance.getEntries().map((entry) => entry.name)];
	return [...parts, ...stored].join('\n');
});

async function noFaults(page, what) {
	await page.evaluate(axe);
	const { violations: found } = await page.evaluate(() => window.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
	is(found.map(({ id, nodes }) => `${id}: ${nodes[0].target} ${nodes[0].failureSummary}`), [], `axe-core finds nothing: ${what}`);
}

const fits = (page) => page.evaluate(() => {
	const over = document.scrollingElement.scrollWidth - innerWidth;
	const open = document.querySelector('api-tokens').shadowRoot.querySelector('dialog .body');
	return over <= 0 && (!open || open.scrollWidth <= open.clientWidth);
});

// ---- the tests

const tests = [];
// page: it is about the page alone, so one backend is enough
const test = (name, run, { page = false } = {}) => tests.push([name, run, page]);

test('list', async () => {
	const { page, watch } = await open('alice');
	is(await labels(page), ['Deploy job', 'Partner preview', 'Grafana', 'Terraform', 'Website', 'Nightly import', 'Old importer'], 'newest first');
	is(await page.locator('thead th').allTextContents(), ['Name', 'Role and access', 'Created', 'Last used', 'Expires', 'Actions'], 'columns');
	like(await cell(page, 'Website', 'name'), /^Website Renders the public pages apt_org_\S+_\.\.\.\S{4} 600 a minute$/, 'label, description, masked text, limits');
	is(await cell(page, 'Terraform', 'access'), 'developer · Full', 'role and access');
	is(await cell(page, 'Grafana', 'access'), 'viewer · Custom stats:read, stats:list', 'custom permissions');
	is(await cell(page, 'Nightly import', 'created'), 'Alice Anderson 2 months ago', 'who created it, and when');
	is(await cell(page, 'Terraform', 'used'), '5 days ago', 'last used, in words');
	is(await cell(page, 'Partner preview', 'used'), 'never', 'never used');
	const used = row(page, 'Terraform').locator('td.used time');
	const [title, exact] = [await used.getAttribute('title'), new Date(await used.getAttribute('datetime'))];
	ok(title.includes(String(exact.getUTCFullYear())) && /\d\d:\d\d.* UTC/.test(title), 'the exact time on hover', title);
	is(Math.floor((Date.now() - exact) / 86400000), 5, '... is that of five days ago');
	like(await cell(page, 'Nightly import', 'expires'), /^Active in 9 months$/, 'expiry');
	is(await cell(page, 'Website', 'expires'), 'Active never', 'no expiry');
	like(await cell(page, 'Deploy job', 'expires'), /^Expiring in [12] days?$/, 'expiring');
	is(await cell(page, 'Old importer', 'expires'), 'Expired 2 months ago', 'expired');
	like(await cell(page, 'Partner preview', 'expires'), /^Suspended in (10|9) days$/, 'suspended');
	like(await cell(page, 'Terraform', 'name'), /1 network · old text works until /, 'networks, and a previous secret in its overlap');
	like(await cell(page, 'Grafana', 'name'), /[\d,]+ of 10,000 left today/, 'a quota');
	const drawn = row(page, 'Website').locator('svg.chart');
	like(await drawn.getAttribute('aria-label'), /^[\d,]+ uses in the last 30 days$/, 'the chart has a name');
	is(await drawn.locator('rect.accepted').count(), 30, 'a bar for each of 30 days');
	like(await row(page, 'Grafana').locator('svg.chart').getAttribute('aria-label'), /, \d+ refused$/, 'refused uses are in it, too');
	const { body: days } = await ask('alice', 'GET', `/token_usage_daily?select=day,accepted&token_id=in.(${(await find('alice', 'Website')).id})&order=day`);
	const sum = days.slice(-30).reduce((total, day) => total + day.accepted, 0);
	is(Number((await drawn.getAttribute('aria-label')).replace(/\D*30 days|\D/g, '')), sum, 'it shows what token_usage_daily has');
	is(await drawn.locator('g title').last().textContent().then((text) => text.includes(`${days.at(-1).accepted.toLocaleString('en-US')} accepted`)), true, 'each bar says its day');
	is(await page.locator('.status').innerText(), '7 tokens', 'how many');
	ok(watch.requests.filter(({ url }) => /apitoken\//.test(url)).every(({ url, headers }) => !/[?&]/.test(new URL(url).pathname) && headers['accept-profile'] === 'apitoken'), 'asks as PostgREST wants it');
});

test('filter', async () => {
	const { page, watch } = await open('alice');
	const filter = page.getByRole('searchbox', { name: 'Filter by name' });
	const count = async (n) => { await page.waitForFunction((wanted) => document.querySelector('api-tokens').shadowRoot.querySelectorAll('tbody tr').length === wanted, n); return labels(page); };
	watch.requests.length = 0;
	await filter.pressSequentially('IMPORT', { delay: 20 });
	is(await count(2), ['Nightly import', 'Old importer'], 'while typing, in upper or lower case');
	ok(watch.requests.filter(({ url }) => url.includes('/tokens?')).length < 6, 'not a request for each key');
	is(await filter.evaluate((node) => node === node.getRootNode().activeElement), true, 'the focus stays');
	await filter.fill('100%');
	await page.locator('p.empty').waitFor();
	is(await page.locator('p.empty').innerText(), 'No token has “100%” in its name.', 'a % is a %');
	for (const text of ['_', '\\', '),(', '&id=eq.x', '"', "'; DROP TABLE x"]) {
		await filter.fill('import');
		await count(2);
		await filter.fill(text);
		await page.locator('p.empty').waitFor();
		ok(await page.locator('.notice').isHidden(), `${text} stands for itself`);
	}
	await filter.fill('');
	is((await count(7)).length, 7, 'all again');
});

test('pages', async () => {
	for (let n = 1; n <= 30; n++) await create('dave', { label: `Sensor ${n}`, expires_in: '30 days' });
	const { page } = await open('dave', '#personal');
	is((await labels(page)).length, 25, 'a page');
	like(await page.locator('.status').innerText(), /^The newest 25 tokens$/, '... and that there are more');
	await page.getByRole('button', { name: 'Show more' }).click();
	await page.waitForFunction(() => document.querySelector('api-tokens').shadowRoot.querySelectorAll('tbody tr').length === 30);
	is(new Set(await labels(page)).size, 30, 'the next page follows');
	is(await page.getByRole('button', { name: 'Show more' }).count(), 0, 'no more');
	await act(page, 'Sensor 1', 'Suspend');
	await row(page, 'Sensor 1').locator('.badge.suspended').waitFor();
	is((await labels(page)).length, 30, 'a change keeps what is shown');
});

test('empty', async () => {
	const { page } = await open('erin', '#personal');
	like(await page.locator('.empty').innerText(), /You have no personal tokens yet\s+A token lets a program/, 'an empty list explains');
	ok(await page.locator('input[type=search]').isHidden(), 'nothing to filter');
	ok(await page.getByRole('button', { name: 'Generate token' }).isVisible(), 'the first one can be generated');
	await noFaults(page, 'an empty list');
	const organization = await open('erin', '#organization=initech');
	like(await organization.page.locator('.empty').innerText(), /This organization has no tokens yet/, 'of an organization, too');
}, { page: true });

test('generate', async () => {
	const { page, changes, watch } = await open('alice');
	await generate(page);
	ok(await name(page).evaluate((node) => node === node.getRootNode().activeElement), 'the first field has the focus');
	await submit(page);
	is(await errorAt(page, 'label'), 'Enter a name.', 'the label is required');
	is(await name(page).getAttribute('aria-invalid'), 'true', '... as screen readers are told');
	ok((await name(page).getAttribute('aria-describedby')).split(' ').includes(await field(page, 'label').locator('.error').getAttribute('id')), '... with the reason');
	is(changes().length, 0, '... before anything is sent');
	await name(page).fill('  Website ');
	await submit(page);
	is(await errorAt(page, 'label'), 'This name is in use. Choose another one, or revoke that token.', 'a label in use: at the field');
	ok(await name(page).evaluate((node) => node === node.getRootNode().activeElement), '... which has the focus');

	const roles = await field(page, 'role').locator('.choice-name').allTextContents();
	is(roles, ['viewer', 'auditor', 'keeper', 'publisher', 'developer', 'admin'], 'roles, least first');
	like(await field(page, 'role').locator('.choice').first().innerText(), /viewer\s+Reads everything\s+\*:read, \*:list/, '... with what they may do');
	ok(await field(page, 'role').getByLabel('viewer').isChecked(), '... the least is chosen');
	is(await field(page, 'access').locator('.choice-name').allTextContents(), ['Read-only', 'Full', 'Custom'], 'types of access');
	ok(await field(page, 'access').getByLabel('Read-only').isChecked(), '... the least is chosen');
	is(await field(page, 'expiry').locator('option').allTextContents(), ['in 7 days', 'in 30 days', 'in 90 days', 'On a date …', 'Never'], 'durations');
	ok(await field(page, 'permissions').isHidden(), 'permissions are for custom access');

	await name(page).fill('Newsletter');
	await dialog(page).getByLabel('Description').fill('Weekly\nand <b>monthly</b>');
	await field(page, 'role').getByLabel('publisher').check();
	await field(page, 'expiry').locator('select').selectOption({ label: 'in 90 days' });
	await page.getByText('Networks and limits').click();
	await field(page, 'networks').locator('textarea').fill('192.0.2.0/24\nhere');
	await field(page, 'rate').locator('input').fill('0');
	await submit(page);
	is(await errorAt(page, 'networks'), '“here” is not an address or network.', 'a network that is none');
	like(await errorAt(page, 'rate'), /^Enter a whole number from 1 to 1000000/, 'a limit out of range');
	await field(page, 'networks').locator('textarea').fill('192.0.2.1/24');
	await field(page, 'rate').locator('input').fill('60');
	await submit(page);
	like(await errorAt(page, 'networks'), /^Invalid cidr value/i, 'what only the server knows is wrong: at the field');
	await field(page, 'networks').locator('textarea').fill('192.0.2.0/24\n2001:db8::/32');
	await field(page, 'quota').locator('input').fill('1000');
	await field(page, 'period').locator('select').selectOption('month');
	watch.requests.length = 0;
	await submit(page);
	like(await secretOf(page), /^apt_org_[0-9A-Za-z]{71}$/, 'the text is shown');
	is(changes().length, 1, 'by one request');
	await saved(page);
	const made = await find('alice', 'Newsletter', 'label,description,role,access,allowed_networks,rate_limit_per_minute,quota,quota_period,expires_at');
	is(Math.round((Date.parse(made.expires_at) - Date.now()) / 86400000), 90, 'it ends in 90 days');
	delete made.expires_at;
	is(made, { label: 'Newsletter', description: 'Weekly\nand <b>monthly</b>', role: 'publisher', access: 'read_only',
		allowed_networks: ['192.0.2.0/24', '2001:db8::/32'], rate_limit_per_minute: 60, quota: 1000, quota_period: 'month' }, 'everything arrived');
	is((await labels(page))[0], 'Newsletter', 'it is the first of the list');
	like(await page.locator('.status').innerText(), /“Newsletter” has been generated\./, '... and the page says so');
	ok(await page.getByRole('button', { name: 'Generate token' }).evaluate((node) => node === node.getRootNode().activeElement), 'the focus is where it was');

	await generate(page);
	await name(page).fill('Forever');
	await field(page, 'access').getByLabel('Full').check();
	await field(page, 'expiry').locator('select').selectOption({ label: 'Never' });
	await submit(page);
	await secretOf(page);
	is(await dialog(page).locator('.hint').innerText(), 'It works until you revoke it.', 'without an expiry');
	await saved(page);
	is(await find('alice', 'Forever', 'access,expires_at'), { access: 'full', expires_at: null }, '... as the server has it');

	await generate(page);
	await name(page).fill('Until a day');
	await field(page, 'expiry').locator('select').selectOption({ label: 'On a date …' });
	await submit(page);
	is(await errorAt(page, 'expiry'), 'Choose a day from today on.', 'a date is needed');
	const day = new Date(Date.now() + 10 * 86400000).toISOString().slice(0, 10);
	await field(page, 'expiry').locator('input[type=date]').fill(day);
	await submit(page);
	await secretOf(page);
	await saved(page);
	like((await find('alice', 'Until a day', 'expires_at')).expires_at, new RegExp(`^${day}T23:59:5`), 'until the end of that day');
});

test('permissions', async () => {
	const { page } = await open('alice');
	const catalog = (await ask('alice', 'GET', '/permissions?select=name&order=name')).body;
	await generate(page);
	await name(page).fill('Chosen');
	await field(page, 'role').getByLabel('publisher').check();
	await field(page, 'access').getByLabel('Custom').check();
	await submit(page);
	is(await errorAt(page, 'permissions'), 'Choose at least one permission.', 'at least one');
	if (Array.isArray(catalog) && catalog.length) {
		const boxes = field(page, 'permissions').getByRole('checkbox');
		is(await boxes.evaluateAll((nodes) => nodes.map((node) => node.value).sort()), catalog.map((entry) => entry.name).sort(), 'a box for each permission of the catalog');
		await field(page, 'permissions').locator('input[value="article:create"]').check();
		await field(page, 'permissions').locator('input[value="article:read"]').check();
		await field(page, 'role').getByLabel('viewer').check();
		ok(await field(page, 'permissions').locator('input[value="article:create"]').isDisabled(), 'what the role does not have cannot be chosen');
		await field(page, 'role').getByLabel('publisher').check();
		await noFaults(page, 'checkboxes');
		// a page that does not know the catalog
		const other = await open('alice');
		await other.page.route(/\/permissions\?/, (route) => route.fulfill({ status: 404, json: {} }));
		await generate(other.page);
		await name(other.page).fill('Misspelled');
		await field(other.page, 'access').getByLabel('Custom').check();
		await field(other.page, 'permissions').locator('textarea').fill('article:reed');
		await submit(other.page);
		is(await errorAt(other.page, 'permissions'), 'Unknown permission "article:reed". Perhaps you meant "article:read".', 'an unknown permission: at the field');
	} else {
		is(catalog.length ?? 'none', catalog.code ? 'none' : 0, 'there is no catalog');
		const lines = field(page, 'permissions').locator('textarea');
		await lines.fill('article:create\narticle:reed ead');
		await submit(page);
		like(await errorAt(page, 'permissions'), /^Malformed permission "ead"/, 'a permission that is none: at the field');
		await lines.fill('article:create\narticle:read');
	}
	await submit(page);
	await secretOf(page);
	await saved(page);
	is((await find('alice', 'Chosen', 'access,permissions')), { access: 'custom', permissions: ['article:create', 'article:read'] }, 'these are what it has');
	await act(page, 'Chosen', 'Edit');
	await field(page, 'access').getByLabel('Read-only').check();
	await submit(page);
	await dialog(page).waitFor({ state: 'detached' });
	is((await find('alice', 'Chosen', 'access,permissions')), { access: 'read_only', permissions: null }, 'another access has none');
});

test('policy', async () => {
	const { page } = await open('alice', '#organization=globex');
	await generate(page);
	is(await field(page, 'expiry').locator('option').allTextContents(), ['in 7 days', 'in 30 days', 'in 60 days, the longest allowed', 'On a date …'], 'durations within the policy');
	is(await field(page, 'expiry').locator('.policy').innerText(), 'The organization allows at most 60 days.', 'and why');
	await name(page).fill('Within');
	await field(page, 'expiry').locator('select').selectOption('date');
	const last = await field(page, 'expiry').locator('input[type=date]').getAttribute('max');
	is(last, new Date(Date.now() + 60 * 86400000).toISOString().slice(0, 10), 'the last day');
	await field(page, 'expiry').locator('input[type=date]').fill(last);
	await submit(page);
	await secretOf(page);
	await saved(page);
	ok(Date.parse((await find('alice', 'Within', 'expires_at')).expires_at) <= Date.now() + 60 * 86400000, 'the last day ends with the limit');

	// a page that does not know the policy
	await page.route(/\/organizations\?/, (route) => route.fulfill({ json: [{ id: 'globex', name: 'Globex', max_lifetime: null, require_expiry: false }] }));
	await generate(page);
	await name(page).fill('Without');
	await field(page, 'expiry').locator('select').selectOption('never');
	await submit(page);
	like(await errorAt(page, 'expiry'), /^Organization requires an expiration time of its tokens\. A secret .* at most 60 days\.$/, "the server's refusal: at the field");
	await field(page, 'expiry').locator('select').selectOption({ label: 'in 90 days' });
	await submit(page);
	like(await errorAt(page, 'expiry'), /^Token lifetime exceeds the limit/, 'too long, too');
	await dialog(page).getByRole('button', { name: 'Cancel' }).click();
	await dialog(page).waitFor({ state: 'detached' });
	const full = await open('erin', '#organization=full');
	await generate(full.page);
	await name(full.page).fill('One more');
	await submit(full.page);
	like(await summary(full.page), /maximum number of tokens/, 'the maximum number of tokens');
});

test('shown once', async () => {
	const { page, context, watch } = await open('alice');
	await context.grantPermissions(['clipboard-read', 'clipboard-write']);
	await generate(page);
	await name(page).fill('Secret');
	await submit(page);
	const token = await secretOf(page);
	ok(await accepted(token), 'the text that is shown is accepted');
	ok((await everything(page)).includes(token), 'the search would find it');
	like(await page.locator('.warning').innerText(), /only time that it is shown/, 'a warning');
	await noFaults(page, 'the text of a token');
	ok(await page.getByRole('button', { name: 'Copy' }).evaluate((node) => node === node.getRootNode().activeElement), 'Copy has the focus');
	await page.getByRole('button', { name: 'Copy' }).click();
	is(await page.evaluate(() => navigator.clipboard.readText()), token, 'Copy copies it');
	await page.getByText('Copied').waitFor();
	for (let n = 0; n < 4; n++) await page.keyboard.press('Escape');
	await page.mouse.click(5, 5);
	ok(await page.locator('.secret').isVisible(), 'neither Escape nor a click beside it closes it');
	await page.evaluate(() => document.querySelector('api-tokens').shadowRoot.querySelector('dialog').close());
	await page.waitForTimeout(100);
	ok(await page.locator('.secret').isVisible(), 'nor does a browser that closes it');
	await saved(page);
	const left = await everything(page);
	ok(!left.includes(token) && !left.includes(token.slice(-40)), 'then it is not in the page, in storage, in the address or in the history');
	ok(!JSON.stringify(watch.said).includes(token), '... not in the console');
	ok(!watch.requests.some((request) => JSON.stringify(request).includes(token)), '... and in no request');
	is(await context.cookies().then((all) => all.some(({ value }) => value.includes(token))), false, '... not in cookies');
	is(await page.evaluate(async () => [(await indexedDB.databases()).length, (await caches.keys()).length]), [0, 0], '... not in databases or caches of the browser');
	await page.goBack().catch(() => {});
	await page.goForward().catch(() => {});
	await settled(page);
	ok(!(await everything(page)).includes(token), 'nor when one comes back');

	// a page that is left, and kept by the browser
	await generate(page);
	await name(page).fill('Secret 2');
	await submit(page);
	const second = await secretOf(page);
	await page.evaluate(() => window.dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
	await dialog(page).waitFor({ state: 'detached' });
	ok(!(await everything(page)).includes(second), 'a page in the back/forward cache has no text of a token');
	watch.requests.length = 0;
	await page.evaluate(() => window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
	await settled(page);
	ok(watch.requests.some(({ url }) => /\/tokens\?/.test(url)), '... and reads the list again when it is shown');

	// without the right to write into the clipboard
	const other = await open('alice', '#personal');
	await other.page.evaluate(() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); });
	await generate(other.page);
	await name(other.page).fill('By hand');
	await submit(other.page);
	const third = await secretOf(other.page);
	await other.page.getByRole('button', { name: 'Copy' }).click();
	await other.page.getByText('Selected: press Ctrl+C').waitFor();
	is(await other.page.evaluate(() => String(getSelection())), third, 'it is selected, to be copied by hand');
	await saved(other.page);
}, { page: true });

test('edit, suspend, resume', async () => {
	const { token } = await create('alice', { label: 'Editable', organization_id: 'acme', role: 'developer', expires_in: '30 days', description: 'before' });
	const { page, changes } = await open('alice');
	await act(page, 'Editable', 'Edit');
	is(await name(page).inputValue(), 'Editable', 'the form has what is there');
	like(await field(page, 'expiry').locator('option').first().innerText(), /^As it is: /, '... and keeps the expiry');
	await noFaults(page, 'the form');
	await name(page).fill('Edited');
	await submit(page);
	await dialog(page).waitFor({ state: 'detached' });
	is(JSON.parse(changes()[0].body), { label: 'Edited' }, 'only what was changed is sent');
	await row(page, 'Edited').waitFor();
	await act(page, 'Edited', 'Edit');
	await dialog(page).getByLabel('Description').fill('');
	await field(page, 'role').getByLabel('viewer').check();
	await field(page, 'access').getByLabel('Read-only').check();
	await field(page, 'expiry').locator('select').selectOption('never');
	await submit(page);
	await dialog(page).waitFor({ state: 'detached' });
	is(await find('alice', 'Edited', 'description,role,access,expires_at'), { description: null, role: 'viewer', access: 'read_only', expires_at: null }, 'all of it is changed');
	await act(page, 'Edited', 'Edit');
	await name(page).fill('Website');
	await submit(page);
	like(await errorAt(page, 'label'), /^This name is in use/, 'a label in use: at the field');
	await page.keyboard.press('Escape');
	await dialog(page).waitFor({ state: 'detached' });

	ok(await accepted(token), 'it is accepted');
	await act(page, 'Edited', 'Suspend');
	await row(page, 'Edited').locator('.badge.suspended').waitFor();
	ok(!await accepted(token), 'suspended, it is refused');
	like(await page.locator('.status').innerText(), /“Edited” has been suspended/, '... and the page says so');
	ok(await page.getByLabel('Actions for Edited').evaluate((node) => node === node.getRootNode().activeElement), 'the focus stays at its row');
	await act(page, 'Edited', 'Resume');
	await row(page, 'Edited').locator('.badge.active').waitFor();
	ok(await accepted(token), 'resumed, it is accepted');
});

test('regenerate, revoke', async () => {
	const { token: first } = await create('alice', { label: 'Renewed', organization_id: 'acme', expires_in: '30 days' });
	const { page, changes } = await open('alice');
	await act(page, 'Renewed', 'Regenerate');
	await dialog(page).waitFor();
	like(await dialog(page).innerText(), /must get the new one/, 'it is asked first');
	is(await field(page, 'overlap').locator('option').allTextContents(), ['no longer: it ends at once', '1 hour more', '1 day more', '7 days more'], 'overlaps');
	await noFaults(page, 'regenerate');
	is(changes().length, 0, 'nothing is done yet');
	await field(page, 'overlap').locator('select').selectOption({ label: '1 day more' });
	await submit(page);
	const second = await secretOf(page);
	await saved(page);
	is([first !== second, await accepted(first), await accepted(second)], [true, true, true], 'both are accepted in the overlap');
	like(await cell(page, 'Renewed', 'name'), /old text works until/, '... as the list says');
	await act(page, 'Renewed', 'Regenerate');
	await submit(page);
	const third = await secretOf(page);
	await saved(page);
	is([await accepted(first), await accepted(second), await accepted(third)], [false, false, true], 'without an overlap, only the new one');

	await act(page, 'Renewed', 'Revoke');
	await dialog(page).waitFor();
	await noFaults(page, 'revoke');
	const before = changes().length;
	await submit(page);
	is(await errorAt(page, 'confirm'), 'This is not the name of the token.', 'the label must be typed');
	await field(page, 'confirm').locator('input').fill('renewed');
	await submit(page);
	is(await errorAt(page, 'confirm'), 'This is not the name of the token.', '... exactly');
	is(changes().length, before, '... and nothing is sent before');
	await field(page, 'confirm').locator('input').fill('Renewed');
	await field(page, 'reason').locator('input').fill('replaced');
	await submit(page);
	await dialog(page).waitFor({ state: 'detached' });
	await row(page, 'Renewed').waitFor({ state: 'detached' });
	ok(!await accepted(third), 'it is refused from then on');
	is(JSON.parse(changes().at(-1).body).reason, 'replaced', 'the reason is kept');

	// an expired token needs a new expiry
	await act(page, 'Old importer', 'Regenerate');
	ok(!(await field(page, 'expiry').locator('option').allTextContents()).some((text) => text.startsWith('As it is')), 'an expired token gets a new expiry');
	await submit(page);
	ok(await accepted(await secretOf(page)), '... and is accepted again');
	await saved(page);

	// a personal token
	const { token } = await create('alice', { label: 'Own', expires_in: '30 days' });
	const personal = await open('alice', '#personal');
	await act(personal.page, 'Own', 'Revoke');
	await field(personal.page, 'confirm').locator('input').fill('Own');
	await submit(personal.page);
	await dialog(personal.page).waitFor({ state: 'detached' });
	ok(!await accepted(token), 'a personal token is revoked as well');
});

test('who sees what', async () => {
	const { page: personal } = await open('alice', '#personal');
	const own = await labels(personal);
	ok(own.includes('Laptop') && !own.includes('Website'), 'personal tokens alone', own);
	like(await personal.locator('tbody .access .first').first().innerText(), /^(Full|Read-only)$/, '... have no role');
	await generate(personal);
	is(await field(personal, 'role').count(), 0, '... and are given none');
	const { page: organization } = await open('alice');
	ok(!(await labels(organization)).includes('Laptop'), "the organization's alone");
	await organization.evaluate(() => { location.hash = '#personal'; });
	await organization.getByText('Laptop', { exact: true }).waitFor();
	ok(!(await labels(organization)).includes('Website'), 'one after the other');

	const { page: carol, watch } = await open('carol');
	ok((await labels(carol)).includes('Website'), 'who may look sees the list');
	is(await carol.locator('api-tokens').getByRole('button').count(), 0, '... and no buttons');
	is(await carol.locator('api-tokens summary').count(), 0, '... and no menus');
	is(await carol.locator('thead th').allTextContents(), ['Name', 'Role and access', 'Created', 'Last used', 'Expires'], '... and no column for them');
	ok(watch.requests.every(({ method }) => method === 'GET'), '... and the page asked for nothing else');
	await noFaults(carol, 'who may only look');
	const { page: bob } = await open('bob');
	is([(await labels(bob)).length, await bob.locator('api-tokens').getByRole('button').count()], [0, 0], 'who may not look sees nothing');
	like(await bob.locator('.empty').innerText(), /You may not see the tokens of this organization/, '... and why');
	const { page: tina } = await open('tina');
	await tina.getByLabel('Actions for Website').click();
	is(await row(tina, 'Website').getByRole('button').allTextContents(), ['Edit', 'Suspend', 'Regenerate'], 'who may not revoke is not offered it');
	await generate(tina);
	await name(tina).fill('Too much');
	await field(tina, 'role').getByLabel('admin').check();
	await field(tina, 'access').getByLabel('Full').check();
	await submit(tina);
	is(await errorAt(tina, 'role'), 'You may not give a token more than you may do yourself.', 'more than one may: at the role');
});

test('what goes wrong', async () => {
	await create('alice', { label: 'Moved', organization_id: 'acme', expires_in: '30 days' });
	const { page, changes, watch } = await open('alice');
	// another administrator revokes it meanwhile
	await act(page, 'Moved', 'Edit');
	const { id } = await find('alice', 'Moved');
	await ask('alice', 'POST', '/rpc/revoke_token', { id, confirm_label: 'Moved' });
	await name(page).fill('Moved on');
	await submit(page);
	like(await summary(page), /Somebody has revoked this token/, 'revoked by somebody else');
	await row(page, 'Moved').waitFor({ state: 'detached' });
	ok(true, '... and the list is read again');
	await dialog(page).getByRole('button', { name: 'Cancel' }).click();

	// another one has renamed it: the label that one types is no longer right
	await create('alice', { label: 'Renamed', organization_id: 'acme', expires_in: '30 days' });
	await page.evaluate(() => document.querySelector('api-tokens').refresh());
	await act(page, 'Renamed', 'Revoke');
	const renamed = await find('alice', 'Renamed');
	await ask('alice', 'PATCH', `/tokens?id=eq.${renamed.id}&select=id`, { label: 'Renamed again' });
	await field(page, 'confirm').locator('input').fill('Renamed');
	await submit(page);
	is(await errorAt(page, 'confirm'), 'This is not the name of the token.', "the server's refusal of the label: at the field");
	await dialog(page).getByRole('button', { name: 'Cancel' }).click();

	// two clicks, and a slow network
	await page.route(/create_token/, async (route) => { await new Promise((done) => { setTimeout(done, 700); }); await route.fallback(); });
	await generate(page);
	await name(page).fill('Once');
	const before = changes().length;
	await name(page).press('Enter');
	await name(page).press('Enter');
	await dialog(page).locator('footer button').last().click({ force: true }).catch(() => {});
	await page.keyboard.press('Escape');
	ok(await dialog(page).isVisible(), 'a form that is being sent does not close');
	await secretOf(page);
	await saved(page);
	is(changes().length - before, 1, 'a second click sends nothing');
	await page.unroute(/create_token/);

	// the answer is lost
	await page.route(/create_token/, async (route) => { await (postgrest ? route.fallback() : route.fetch()); await route.abort().catch(() => {}); });
	if (!postgrest) {
		await generate(page);
		await name(page).fill('Lost');
		await submit(page);
		like(await summary(page), /not certain what happened/, 'a lost answer: nobody is told that nothing happened');
		await row(page, 'Lost').waitFor();
		ok(true, '... and the list shows what is there');
		await dialog(page).getByRole('button', { name: 'Cancel' }).click();
	}
	await page.unroute(/create_token/);

	// faults of the server
	for (const [what, answer] of [['500', { status: 500, json: { code: 'server_error', message: 'internal server error' } }],
		["a proxy's page", { status: 502, contentType: 'text/html', body: '<h1>Bad gateway</h1>' }],
		['a message that is not for people', { status: 400, json: { code: 'P0001', message: 'SELECT secret' } }]]) {
		await page.route(/create_token/, (route) => route.fulfill(answer));
		await generate(page);
		await name(page).fill('Never');
		await submit(page);
		is(await summary(page), 'The server could not do this. Try again later.', what);
		await dialog(page).getByRole('button', { name: 'Cancel' }).click();
		await dialog(page).waitFor({ state: 'detached' });
		await page.unroute(/create_token/);
	}
	await page.route(/\/tokens\?/, (route) => route.abort());
	await page.evaluate(() => document.querySelector('api-tokens').refresh());
	is(await page.locator('.notice span').innerText(), 'The server cannot be reached.', 'without a network');
	ok((await labels(page)).length > 0, '... the list stays');
	await page.unroute(/\/tokens\?/);
	await page.getByRole('button', { name: 'Try again' }).click();
	await page.locator('.notice').waitFor({ state: 'hidden' });
	await page.route(/token_usage_daily/, (route) => route.fulfill({ status: 500, json: {} }));
	await page.evaluate(() => document.querySelector('api-tokens').refresh());
	ok((await labels(page)).length > 0 && await page.locator('.notice').isHidden(), 'without the chart, the list is there');
	await page.unroute(/token_usage_daily/);

	// the session ends
	await generate(page);
	await name(page).fill('Signed out');
	await page.evaluate(() => { window.told = 0; document.addEventListener('api-tokens-signed-out', () => { window.told++; }); });
	await page.route(/\/apitoken\//, (route) => route.fulfill({ status: 401, json: { code: 'unauthorized', message: 'unauthorized' } }));
	await submit(page);
	like(await summary(page), /You are signed out/, 'the session has ended: the form says so');
	is(await name(page).inputValue(), 'Signed out', '... and keeps what was typed');
	ok(await page.evaluate(() => window.told) > 0, '... and the host page is told');
	await page.unroute(/\/apitoken\//);
	await submit(page);
	await secretOf(page);
	await saved(page);
	ok(true, '... and goes on when one has signed in again');
	await page.route(/\/apitoken\//, (route) => route.fulfill({ status: 401, json: { code: 'unauthorized', message: 'unauthorized' } }));
	await page.evaluate(() => document.querySelector('api-tokens').refresh());
	await page.locator('.notice').waitFor();
	is([(await labels(page)).length, await page.getByRole('button', { name: 'Generate token' }).count()], [0, 0], 'a list after the session is gone');
	ok(!watch.said.some((line) => /token|secret/i.test(line.replace(/apitoken|create_token|Failed to load resource.*/g, ''))), 'the console has nothing of it');
}, { page: true });

test('hostile texts', async () => {
	const hostile = ['<img src=x onerror="window.hacked=1">', '</style><script>window.hacked=1</script>', '{{7*7}}{label}', '"onfocus="window.hacked=1" x="',
		'javascript:window.hacked=1', 'W'.repeat(255), 'مفتاح الإنتاج', '& < > " \' `', '$&'];
	for (const label of hostile) await create('erin', { label, organization_id: 'initech', description: `${label} ${label}`.slice(0, 300), access: 'custom', permissions: ['article:read'], expires_in: '30 days' });
	const { page } = await open('erin', '#organization=initech');
	is((await labels(page)).reverse(), hostile, 'labels are what they are');
	for (const label of hostile) {
		await act(page, label, 'Revoke');
		await dialog(page).waitFor();
		is(await dialog(page).locator('h2').innerText().then((text) => text.replace(/\s+/g, ' ')), `Revoke ${label}`, `${label.slice(0, 20)}: in a dialog`);
		await field(page, 'confirm').locator('input').fill(label);
		await submit(page);
		await dialog(page).waitFor({ state: 'detached' });
	}
	await page.locator('.empty').waitFor();
	is(await page.evaluate(() => window.hacked), undefined, 'none of them ran');
	is(await page.evaluate(() => { try { document.body.innerHTML = '<b>x</b>'; return 'markup'; } catch (error) { return error.name; } }), 'TypeError', 'the page could not make markup of a text');
	for (let n = 0; n < 50 && !violations.length; n++) await page.waitForTimeout(100);
	is(violations.splice(0), ['require-trusted-types-for trusted-types-sink'], '... and a violation of the policy would be heard of');
}, { page: true });

test('narrow and wide, light and dark', async () => {
	await create('dave', { label: 'W'.repeat(255), description: 'x'.repeat(1000), expires_in: '30 days' });
	for (const [width, ...schemes] of [[320, 'light', 'dark'], [760, 'light'], [1200, 'light', 'dark'], [2400, 'light']]) {
		for (const colorScheme of schemes) {
			const { page } = await open('alice', '#organization=acme', { viewport: { width, height: 800 }, colorScheme });
			const what = `${width}, ${colorScheme}`;
			ok(await fits(page), `nothing is cut off: ${what}`);
			await noFaults(page, what);
			await generate(page);
			await field(page, 'access').getByLabel('Custom').check();
			await page.getByText('Networks and limits').click();
			ok(await fits(page), `the form fits: ${what}`);
			await noFaults(page, `the form, ${what}`);
			is(await page.evaluate(() => getComputedStyle(document.querySelector('api-tokens').shadowRoot.querySelector('dialog')).backgroundColor), colorScheme === 'light' ? 'rgb(255, 255, 255)' : 'rgb(13, 17, 23)', `its colour: ${what}`);
		}
	}
	const { page } = await open('dave', '#personal', { viewport: { width: 320, height: 800 } });
	ok(await fits(page), 'a long label without a blank is not cut off');
}, { page: true });

test('keyboard', async () => {
	await create('alice', { label: 'By keyboard', organization_id: 'acme', expires_in: '30 days' });
	const { page } = await open('alice');
	const active = () => page.evaluate(() => {
		const node = document.activeElement.shadowRoot?.activeElement ?? document.activeElement;
		return `${node.localName} ${node.getAttribute('aria-label') ?? node.name ?? ''} ${node.localName === 'button' ? node.textContent : ''}`.trim().replace(/\s+/g, ' ');
	});
	await page.locator('input[type=search]').focus();
	await page.keyboard.press('Tab');
	is(await active(), 'button Generate token', 'Tab: the button');
	await page.keyboard.press('Tab');
	is(await active(), 'summary Actions for By keyboard', 'Tab: the menu of the first row');
	await page.keyboard.press('Enter');
	await page.keyboard.press('Escape');
	is([await page.locator('details.menu[open]').count(), await active()], [0, 'summary Actions for By keyboard'], 'Escape closes the menu');
	await page.keyboard.press('Space');
	await page.keyboard.press('Tab');
	is(await active(), 'button Edit', 'Tab: the first action');
	await page.keyboard.press('Enter');
	await dialog(page).waitFor();
	is(await active(), 'input label', 'the form has the focus');
	for (let n = 0; n < 40; n++) await page.keyboard.press('Tab');
	ok(await page.evaluate(() => { const root = document.querySelector('api-tokens').shadowRoot; const node = root.activeElement; return !node || root.querySelector('dialog').contains(node); }), 'it keeps it');
	await page.keyboard.press('Escape');
	await dialog(page).waitFor({ state: 'detached' });
	is(await active(), 'summary Actions for By keyboard', 'and gives it back');
	await page.keyboard.press('Enter');
	for (let n = 0; n < 4; n++) await page.keyboard.press('Tab');
	await page.keyboard.press('Enter');
	await page.keyboard.type('By keyboard');
	await page.keyboard.press('Enter');
	await dialog(page).waitFor({ state: 'detached' });
	await row(page, 'By keyboard').waitFor({ state: 'detached' });
	ok(['button Generate token', 'input Filter by name'].includes(await active()), 'the focus is not lost with the row', await active());
}, { page: true });

test('the host page', async () => {
	const { page, watch } = await open('alice');
	watch.requests.length = 0;
	await page.evaluate(async () => {
		const { texts } = await import('/console/api-tokens.js');
		Object.assign(texts, { generate: 'Token erzeugen', never: 'nie' });
		document.documentElement.lang = 'de';
		const element = document.createElement('api-tokens');
		element.headers = async () => ({ 'X-Host': 'yes' });			// a function
		element.setAttribute('base-url', '/apitoken/');
		element.setAttribute('organization', 'acme');
		element.style.setProperty('--api-tokens-accent', 'rgb(1, 2, 3)');
		window.changes = [];
		element.addEventListener('api-tokens-change', ({ detail }) => window.changes.push(detail.action));
		document.querySelector('api-tokens').replaceWith(element);
	});
	await page.getByRole('button', { name: 'Token erzeugen' }).waitFor();
	is([await cell(page, 'Terraform', 'used'), await cell(page, 'Partner preview', 'used')], ['vor 5 Tagen', 'nie'], 'in another language');
	ok(watch.requests.filter(({ url }) => /apitoken\//.test(url)).every(({ headers }) => headers['x-host'] === 'yes'), 'with headers of a function');
	is(await page.getByRole('button', { name: 'Token erzeugen' }).evaluate((node) => getComputedStyle(node).backgroundColor), 'rgb(1, 2, 3)', 'in a colour of the page');
	await act(page, 'Partner preview', 'Resume');
	await page.waitForFunction(() => window.changes.length > 0);
	is(await page.evaluate(() => window.changes), ['resume'], 'the page is told of changes');

	// properties that were set before the element was defined, and headers that come late
	await page.evaluate(() => {
		const frame = document.querySelector('api-tokens');
		const early = document.implementation.createHTMLDocument('').createElement('api-tokens');
		Object.assign(early, { headers: { 'X-Host': 'early' }, baseUrl: '/apitoken', organization: 'acme' });
		frame.replaceWith(early);
	});
	watch.requests.length = 0;
	await page.evaluate(() => document.querySelector('api-tokens').refresh());
	await settled(page);
	is((await labels(page)).length > 0 && watch.requests.every(({ headers }) => headers['x-host'] === 'early'), true, 'set before it was defined');
	await page.evaluate(() => { document.querySelector('api-tokens').headers = () => Promise.reject(new Error('gone')); });
	is(await page.locator('.notice span').innerText(), 'You are signed out. Sign in again, then try once more.', 'headers that cannot be had are no session');
	await page.evaluate(() => { document.querySelector('api-tokens').headers = { 'X-Host': 'late' }; });
	await page.locator('.notice').waitFor({ state: 'hidden' });
	ok(watch.requests.at(-1).headers['x-host'] === 'late', 'new headers read the list again');

	// removed while a token is being made
	await page.route(/create_token/, async (route) => { await new Promise((done) => { setTimeout(done, 500); }); await route.fallback(); });
	await page.getByRole('button', { name: 'Token erzeugen' }).click();
	await name(page).fill('Removed');
	await submit(page);
	const answered = page.waitForResponse(/create_token/);
	await page.evaluate(() => document.querySelector('api-tokens').remove());
	await answered;
	await page.waitForTimeout(300);
	ok(!/apt_org_[0-9A-Za-z]{71}/.test(await everything(page)), 'an element that is removed shows no token');
}, { page: true });

test('the routes', async () => {
	if (postgrest) return;
	const uuid = '0196f0c0-0000-7000-8000-000000000000';
	const json = { 'Content-Type': 'application/json' };
	for (const [user, method, path, body, status, code, headers] of [
		[undefined, 'GET', '/tokens?select=id', undefined, 401, 'unauthorized'],
		[undefined, 'POST', '/rpc/create_token', { label: 'x' }, 401, 'unauthorized'],
		['alice', 'GET', '/events?select=id', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/constructor?select=id', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=digest', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id,(SELECT%201)', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&label=or.x', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&label=toString.x', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&__proto__=eq.x', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&revoked_at=is.true', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&order=id.desc;x', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&order=masked.sideways', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&limit=-1', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&limit=1;x', undefined, 400, 'PGRST100'],
		['alice', 'GET', '/tokens?select=id&id=eq.x', undefined, 400, '22P02'],
		['alice', 'GET', `/tokens?select=id&id=in.(${uuid},x)`, undefined, 400, '22P02'],
		['alice', 'GET', '/tokens?select=id&label=eq.%00', undefined, 400],
		['alice', 'GET', '/rpc/can?permission=x', undefined, 400, '22023'],
		['alice', 'GET', '/rpc/revoke_token?id=x', undefined, 400, 'PGRST100'],
		['alice', 'POST', '/rpc/act_as', { user_id: 'bob' }, 400, 'PGRST100'],
		['alice', 'POST', '/rpc/create_token', { label: 'x', user_id: 'bob' }, 400, 'PGRST100'],
		['alice', 'POST', '/rpc/create_token', {}, 400, 'PGRST100'],
		['alice', 'POST', '/rpc/create_token', '[]', 400, undefined],
		['alice', 'POST', '/rpc/create_token', '{"label":', 400, undefined],
		['alice', 'POST', '/rpc/create_token', '{"label": "a\\u0000b"}', 400],
		['alice', 'POST', '/rpc/create_token', { label: { a: 1 }, rate_limit_per_minute: 'x' }, 400, '22P02'],
		['alice', 'POST', '/rpc/create_token', { label: 'x', 'label") FROM y; --': 1 }, 400, 'PGRST100'],
		['alice', 'POST', '/rpc/create_token', 'label=x', 415, undefined, { 'Content-Type': 'application/x-www-form-urlencoded' }],
		['alice', 'POST', '/rpc/create_token', '{"label": "x"}', 415, undefined, { 'Content-Type': 'text/plain' }],
		['alice', 'PATCH', '/tokens?select=id', { label: 'x' }, 400, 'PGRST100'],
		['alice', 'PATCH', '/tokens?select=id&label=eq.Website', { label: 'x' }, 400, 'PGRST100'],
		['alice', 'PATCH', `/tokens?select=id&id=lt.${uuid}`, { label: 'x' }, 400, 'PGRST100'],
		['alice', 'PATCH', `/tokens?select=id&id=in.(${uuid})`, { label: 'x' }, 400, 'PGRST100'],
		['alice', 'PATCH', `/tokens?select=id&id=eq.${uuid}&id=eq.${uuid}`, { label: 'x' }, 400, 'PGRST100'],
		['alice', 'PATCH', `/tokens?select=id&id=eq.${uuid}`, { created_by: 'x' }, 400, 'PGRST100'],
		['alice', 'PATCH', `/roles?select=name&name=eq.viewer`, { description: 'x' }, 400, 'PGRST100'],
		['bob', 'POST', '/rpc/create_token', { label: 'x', organization_id: 'acme' }, 403, '42501'],
		['alice', 'POST', '/rpc/revoke_token', { id: uuid }, 403, '42501'],
	]) {
		const answer = await ask(user, method, path, body, { ...json, ...headers });
		is([answer.status, ...(code ? [answer.body.code] : [])], [status, ...(code ? [code] : [])], `${method} ${path} ${JSON.stringify(body) ?? ''}`);
	}
	is((await ask('alice', 'PATCH', `/tokens?select=id&id=eq.${uuid}`, { label: 'x' })).body, [], 'a token that is none: no row');
	const other = await find('alice', 'Laptop');
	is((await ask('carol', 'PATCH', `/tokens?select=id&id=eq.${other.id}`, { label: 'x' })).body, [], "another user's token: no row");
	is((await ask('carol', 'GET', '/tokens?select=label&organization_id=is.null')).body, [], '... and it is not seen');
	const { status, body } = await ask('alice', 'POST', '/rpc/create_token', { label: 'Website', organization_id: 'acme' });
	is([status, Object.keys(body).sort()], [409, ['code', 'details', 'hint', 'message']], "a refusal has PostgREST's form");
	const { id } = await create('alice', { label: 'Ended', organization_id: 'acme', expires_in: '1 day' });
	const end = (confirm_label) => ask('alice', 'POST', '/rpc/revoke_token', { id, confirm_label });
	is([await end('ended'), await end('Ended'), await end('Ended')].map((answer) => [answer.status, answer.body.code ?? answer.body]),
		[[400, '22023'], [200, true], [200, false]], 'revoked once');
	is((await ask('alice', 'PATCH', `/tokens?select=id&id=eq.${id}`, { label: 'x' })).body.code, '55000', '... and then not changed any more');
	is((await ask('alice', 'POST', '/rpc/regenerate_token', { id })).status, 409, '... and not regenerated');
	const page = await fetch(`${server}/console/index.html`);
	is(page.headers.get('content-security-policy'), "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
		+ "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'", 'the policy of the page');
	is([page.headers.get('x-content-type-options'), page.headers.get('cache-control')], ['nosniff', 'no-store'], 'its other headers');
	for (const path of ['/console/demo.js', '/console/package.json', '/console/..%2Fnode%2Fserver.js', '/console/%2e%2e', '/console/index.html/x']) {
		is((await fetch(`${server}${path}`)).status, 404, `${path} is not there`);
	}
});

// ---- pictures for the documentation

async function pictures(directory) {
	const take = async (file, how, prepare) => {
		const { page } = await open('alice', '#organization=acme', { viewport: { width: 1120, height: 700 }, ...how });
		await prepare?.(page);
		await page.screenshot({ path: `${directory}/${file}.png` });
	};
	await take('console-light', { colorScheme: 'light' });
	await take('console-narrow', { colorScheme: 'light', viewport: { width: 360, height: 700 } });
	await take('console-dark', { colorScheme: 'dark' }, async (page) => {
		await generate(page);
		await name(page).fill('Newsletter');
		await submit(page);
		await secretOf(page);
	});
}

// ---- run

const wanted = process.argv.slice(2);
try {
	if (process.env.CONSOLE_PICTURES) {
		await pictures(process.env.CONSOLE_PICTURES);
	} else {
		for (const [title, run, page] of tests) {
			if (wanted.length ? !wanted.includes(title) : page && process.env.CONSOLE_BACKEND) continue;
			say({ note: title });
			await run().catch((error) => ok(false, title, error.stack));
			while (contexts.length) await contexts.pop().close();
			is(violations.splice(0), [], `${title}: the Content-Security-Policy was not violated`);
		}
	}
	say({ done: true });
} finally {
	await browser.close();
}
