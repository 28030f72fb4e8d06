// A page of an application around <api-tokens>: the organizations of the signed-in
// user, their personal tokens, and in the demo the choice of who is signed in.

const base = '/apitoken';
const nav = document.querySelector('nav');
const who = document.querySelector('#who');

async function get(address) {
	const response = await fetch(address, { headers: { Accept: 'application/json', 'Accept-Profile': 'apitoken' }, cache: 'no-store' });
	return response.ok ? response.json() : undefined;
}

function signIn(user) {
	return fetch('/session', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ user }) });
}

// The demo's server knows a few users, and lets everybody be any of them.
async function showSession() {
	const session = await get('/session');
	if (!session) return;
	if (!session.user) await signIn(session.user = session.users[0].id);
	const select = who.querySelector('select');
	select.replaceChildren(...session.users.map(({ id, name }) => new Option(name, id, false, id === session.user)));
	select.onchange = async () => {
		await signIn(select.value);
		location.reload();
	};
	who.hidden = false;
}

function link(hash, text) {
	const a = document.createElement('a');
	a.href = hash;
	a.textContent = text;
	return a;
}

// #organization=acme, or #personal
function show(organizations) {
	const id = new URLSearchParams(location.hash.slice(1)).get('organization');
	const organization = organizations.find((row) => row.id === id);
	const element = document.createElement('api-tokens');
	element.baseUrl = base;
	if (organization) element.organization = organization.id;
	else element.personal = true;
	document.querySelector('#about').textContent = organization
		? `Programs use these tokens in the name of ${organization.name ?? organization.id}.`
		: 'Programs use these tokens in your name. Nobody else sees them.';
	document.querySelector('#tokens').replaceChildren(element);
	for (const a of nav.children) {
		if (a.hash === location.hash) a.setAttribute('aria-current', 'page');
		else a.removeAttribute('aria-current');
	}
}

await showSession();
const organizations = await get(`${base}/organizations?select=id,name&order=name`) ?? [];
const hashes = organizations.map(({ id }) => `#organization=${encodeURIComponent(id)}`);
nav.replaceChildren(...organizations.map(({ id, name }, i) => link(hashes[i], name ?? id)), link('#personal', 'Personal'));
if (!location.hash) history.replaceState(null, '', hashes[0] ?? '#personal');
window.addEventListener('hashchange', () => show(organizations));
show(organizations);
