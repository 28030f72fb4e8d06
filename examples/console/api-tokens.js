// <api-tokens>: the page on which people manage their API tokens, as a web component.
//
//     <script type="module" src="api-tokens.js"></script>
//     <api-tokens base-url="/apitoken" organization="acme"></api-tokens>
//     <api-tokens base-url="/apitoken" personal></api-tokens>
//
// It speaks PostgREST's API of the schema apitoken (docs/postgrest.md), which the
// backends in examples/node and examples/psycopg speak as well.  README.md describes
// attributes, properties, events, parts and custom properties.
//
// Three rules keep it safe in a page with a strict Content-Security-Policy:
//   - text from the server becomes text nodes and attributes, never markup
//   - the text of a new token is in one dialog only, and goes when that closes
//   - it decides nothing: it hides buttons that the server would refuse

// ---- texts ------------------------------------------------------------------------

// Replace them for another language, before the element is connected.  A text with
// forms is chosen by Intl.PluralRules.
export const texts = {
	generate: 'Generate token',
	filter: 'Filter by name',
	more: 'Show more',
	retry: 'Try again',
	cancel: 'Cancel',
	save: 'Save changes',
	loading: 'Loading tokens …',
	count: { one: '{n} token', other: '{n} tokens' },
	countMore: 'The newest {n} tokens',
	nothingFound: 'No token has “{text}” in its name.',
	emptyOrganization: 'This organization has no tokens yet',
	emptyPersonal: 'You have no personal tokens yet',
	emptyOrganizationWhy: 'A token lets a program use the API in the name of the organization. It keeps working when its creator leaves.',
	emptyPersonalWhy: 'A token lets a program use the API in your name. It can never do more than you may do yourself.',
	notVisible: 'You may not see the tokens of this organization',
	notVisibleWhy: 'Ask one of its administrators if you need one.',

	columns: { name: 'Name', access: 'Role and access', created: 'Created', used: 'Last used', expires: 'Expires', actions: 'Actions' },
	byNobody: 'an administrator',
	never: 'never',
	justNow: 'just now',
	networks: { one: '{n} network', other: '{n} networks' },
	perMinute: '{n} a minute',
	quota: { day: '{left} of {n} left today', month: '{left} of {n} left this month', life: '{left} of {n} left' },
	oldSecret: 'old text works until {time}',
	usage: { one: '{n} use in the last 30 days', other: '{n} uses in the last 30 days' },
	usageRefused: '{n} refused',
	day: '{day}: {accepted} accepted, {refused} refused',
	status: { active: 'Active', expiring: 'Expiring', expired: 'Expired', suspended: 'Suspended', policy_refused: 'Refused by policy', revoked: 'Revoked' },
	menu: 'Actions for {label}',
	edit: 'Edit',
	suspend: 'Suspend',
	resume: 'Resume',
	regenerate: 'Regenerate',
	revoke: 'Revoke',

	generateTitle: 'Generate a token',
	editTitle: 'Edit {label}',
	label: 'Name',
	labelHint: 'What the token is for, such as “Website” or “Nightly import”.',
	description: 'Description',
	optional: 'optional',
	role: 'Role',
	roleNothing: 'may do nothing',
	access: 'Access',
	accesses: {
		read_only: ['Read-only', 'It can read and list, and nothing else.'],
		full: ['Full', 'Everything that its role allows.'],
		custom: ['Custom', 'Only what you choose.'],
	},
	fullPersonal: 'Everything that you may do, except managing tokens and organizations.',
	permissions: 'Permissions',
	permissionsHint: 'One permission in a line, such as article:read or article:*.',
	expiry: 'Expires',
	days: 'in {days}',
	unlimited: 'Never',
	onDate: 'On a date …',
	longest: 'in {days}, the longest allowed',
	keepUntil: 'As it is: {time}',
	keepForever: 'As it is: never',
	date: 'Last day',
	expiresOn: 'Until {time}.',
	expiresNever: 'It works until you revoke it.',
	policyLimit: 'The organization allows at most {days}.',
	policyExpiry: 'The organization requires an expiry.',
	morePart: 'Networks and limits',
	allowedNetworks: 'Allowed networks',
	allowedNetworksHint: 'One address or network in a line, such as 192.0.2.0/24. Empty: from everywhere.',
	rate: 'Requests a minute',
	quotaNumber: 'Quota',
	quotaPeriod: 'Quota for',
	periods: { life: 'its whole life', day: 'each day', month: 'each month' },
	noLimit: 'no limit',

	secretTitle: 'Save your new token',
	secretWarning: 'This is the only time that it is shown. Copy it now to the place where it is used, and treat it like a password.',
	secret: 'Token',
	copy: 'Copy',
	copied: 'Copied',
	copyByHand: 'Selected: press Ctrl+C',
	saved: 'I have saved it',

	regenerateTitle: 'Regenerate {label}',
	regenerateWhy: 'The token gets a new text and keeps everything else. Programs that use the old text must get the new one.',
	overlap: 'The old text works for',
	noOverlap: 'no longer: it ends at once',
	overlapFor: '{time} more',

	revokeTitle: 'Revoke {label}',
	revokeWhy: 'This is final. Programs that use the token are refused from now on.',
	confirm: 'Type {label} to confirm',
	reason: 'Reason',

	done: {
		create: '“{label}” has been generated.', edit: '“{label}” has been changed.', suspend: '“{label}” has been suspended.',
		resume: '“{label}” works again.', regenerate: '“{label}” has a new text.', revoke: '“{label}” has been revoked.',
	},

	errors: {
		required: 'Enter a name.',
		inUse: 'This name is in use. Choose another one, or revoke that token.',
		confirm: 'This is not the name of the token.',
		permissions: 'Choose at least one permission.',
		date: 'Choose a day from today on.',
		number: 'Enter a whole number from {min} to {max}, or nothing.',
		network: '“{text}” is not an address or network.',
		quota: 'A period needs a quota.',
		tooMany: 'The organization has reached its maximum number of tokens. Revoke one first, also one that is expired.',
		tooMuch: 'You may not give a token more than you may do yourself.',
		overlaps: 'Too many old texts still work. Wait until one has ended, or let the old ones end at once.',
		refused: 'You may not do this, or the token is gone.',
		revoked: 'Somebody has revoked this token.',
		signedOut: 'You are signed out. Sign in again, then try once more.',
		offline: 'The server cannot be reached.',
		lost: 'No answer arrived, so it is not certain what happened. The list shows what is there now.',
		failed: 'The server could not do this. Try again later.',
	},
};

// Put values into the {places} of a text.
function fill(text, values = {}) {
	return text.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
}

// ---- numbers and times, by Intl ---------------------------------------------------

const DAY = 86400;
// units, with their length and the least time that is told in them
const UNITS = [['year', 365 * DAY, 365 * DAY], ['month', 30 * DAY, 60 * DAY], ['day', DAY, DAY], ['hour', 3600, 3600], ['minute', 60, 60]];

class Format {
	constructor(locale) {
		this.locale = locale;
		this.plurals = new Intl.PluralRules(locale);
		this.relative = new Intl.RelativeTimeFormat(locale, { numeric: 'always' });
		this.exact = new Intl.DateTimeFormat(locale, { dateStyle: 'full', timeStyle: 'long' });
		this.short = new Intl.DateTimeFormat(locale, { dateStyle: 'medium', timeStyle: 'short' });
		this.day = new Intl.DateTimeFormat(locale, { dateStyle: 'medium' });
		this.utcDay = new Intl.DateTimeFormat(locale, { dateStyle: 'medium', timeZone: 'UTC' });
		this.number = new Intl.NumberFormat(locale);
	}

	plural(forms, n) {
		return fill(forms[this.plurals.select(n)] ?? forms.other, { n: this.number.format(n) });
	}

	// 1 day, 7 days, 1 hour
	duration(seconds) {
		const [unit, size] = seconds % DAY === 0 ? ['day', DAY] : seconds % 3600 === 0 ? ['hour', 3600] : ['minute', 60];
		return new Intl.NumberFormat(this.locale, { style: 'unit', unit, unitDisplay: 'long' }).format(Math.floor(seconds / size));
	}

	// 5 days ago, in 3 hours
	ago(time) {
		const seconds = (Date.parse(time) - Date.now()) / 1000;
		const [unit, size] = UNITS.find(([, , least]) => Math.abs(seconds) >= least) ?? [];
		if (!unit) return seconds > 0 ? this.relative.format(1, 'minute') : texts.justNow;
		// what is past is over in full: 29.9 days are 29 days ago, and in 30 days
		return this.relative.format(seconds < 0 ? Math.trunc(seconds / size) : Math.round(seconds / size), unit);
	}
}

// Seconds of an interval as PostgreSQL writes it, such as '1 mon 3 days 04:05:06'.
// A month counts 30 days: this chooses what to offer, and the server decides.
function intervalSeconds(text) {
	const sizes = { year: 365 * DAY, mon: 30 * DAY, day: DAY };
	let seconds = 0;
	for (const [, n, unit] of text.matchAll(/(-?\d+) (year|mon|day)s?/g)) seconds += n * sizes[unit];
	const [, h, m, s] = /(\d+):(\d+):(\d+)/.exec(text) ?? [];
	return seconds + (h ? h * 3600 + m * 60 + Number(s) : 0);
}

// ---- permissions ------------------------------------------------------------------

const RESERVED = ['token', 'organization'];

// Does the first pattern allow everything that the second one allows?
function covers(pattern, wanted) {
	if (pattern === '*') return true;
	if (wanted === '*') return false;
	const [[resource, action], [r, a]] = [pattern.split(':'), wanted.split(':')];
	return (resource === r || (resource === '*' && !RESERVED.includes(r))) && (action === '*' || action === a);
}

const allows = (patterns, wanted) => patterns.some((pattern) => covers(pattern, wanted));

// Roles, the one that may do least first.
function leastFirst(roles) {
	const within = (role) => roles.filter((other) => other.permissions.every((wanted) => allows(role.permissions, wanted))).length;
	return roles.map((role) => [role, within(role)])
		.sort(([a, m], [b, n]) => m - n || a.permissions.length - b.permissions.length || (a.name < b.name ? -1 : 1))
		.map(([role]) => role);
}

// ---- the API ----------------------------------------------------------------------

class ApiError extends Error {
	constructor(status, body) {
		super(body?.message || '');
		this.status = status;				// 0: no answer
		this.code = body?.code || '';		// the SQLSTATE
		this.details = body?.details || '';
		this.hint = body?.hint || '';
	}
}

class Api {
	constructor(element) { this.element = element; }

	get(path, query, signal) { return this.request('GET', path, { query, signal }); }
	call(name, body) { return this.request('POST', `/rpc/${name}`, { body }); }
	async edit(id, body) {
		const rows = await this.request('PATCH', '/tokens', { query: { id: `eq.${id}`, select: 'id' }, body });
		// row-level security hides it: it is gone, or the caller may not change it
		if (!rows.length) throw new ApiError(403, { code: '42501' });
	}

	async request(method, path, { query = {}, body, signal }) {
		const { baseUrl, headers } = this.element;
		const search = new URLSearchParams(query).toString().replaceAll('+', '%20');
		let given = headers;
		if (typeof headers === 'function') {
			// without credentials there is no session
			given = await Promise.resolve().then(() => headers.call(this.element)).catch(() => { throw new ApiError(401); });
		}
		const sent = new Headers(given ?? {});
		sent.set('Accept', 'application/json');
		sent.set(method === 'GET' ? 'Accept-Profile' : 'Content-Profile', 'apitoken');
		if (body) sent.set('Content-Type', 'application/json');
		if (method === 'PATCH') sent.set('Prefer', 'return=representation');

		let response, answer;
		try {
			response = await fetch(`${baseUrl.replace(/\/$/, '')}${path}${search && `?${search}`}`, {
				method, headers: sent, signal, body: body && JSON.stringify(body),
				cache: 'no-store', redirect: 'error', credentials: 'same-origin', referrerPolicy: 'no-referrer',
			});
			answer = await response.json().catch((error) => {
				// half an answer is none; a page of a proxy is one, without a meaning
				if (response.ok || !(error instanceof SyntaxError)) throw error;
			});
		} catch (error) {
			if (signal?.aborted) throw error;
			throw new ApiError(0);
		}
		if (!response.ok) throw new ApiError(response.status, answer);
		return answer;
	}
}

// What a refusal is about: the field of the form, and our words for it.  The
// extension's messages and SQLSTATEs are stable.  No words: the server's own.
const REFUSALS = [
	['23505', /^label /, 'label', 'inUse'],
	['22023', /^"confirm_label"/, 'confirm', 'confirm'],
	['22023', /^label /, 'label'],
	['22023', /^description /, 'description'],
	['22023', /^reason /, 'reason'],
	['22023', /lifetime|expir|duration/, 'expiry'],
	['22023', /network/, 'networks'],
	['22023', /rate limit/, 'rate'],
	['22023', /quota/, 'quota'],
	['22023', /permission/, 'permissions'],
	['22P02', /cidr|inet/, 'networks'],
	['23503', /role/, 'role'],
	['42501', /exceed|database role/, 'role', 'tooMuch'],
	['42501', /./, undefined, 'refused'],
	['42501', /^$/, undefined, 'refused'],
	['55000', /maximum number/, undefined, 'tooMany'],
	['55000', /overlap/, 'overlap', 'overlaps'],
	['55000', /revoked/, undefined, 'revoked'],
];

// { place: a field or undefined, text }
function explain(error, { changing = false } = {}) {
	const { errors } = texts;
	if (!(error instanceof ApiError)) throw error;
	if (error.status === 0) return { text: changing ? errors.lost : errors.offline };
	if (error.status === 401) return { text: errors.signedOut };
	const [, , place, own] = REFUSALS.find(([code, message]) => code === error.code && message.test(error.message)) ?? [];
	if (own) return { place, text: errors[own] };
	// 22...: the value is wrong, and the server says how; other messages are not for people
	if (/^22/.test(error.code) && error.message) {
		const sentences = [error.message, place === 'expiry' ? error.details : error.hint].filter(Boolean);
		return { place, text: sentences.map((s) => s[0].toUpperCase() + s.slice(1).replace(/\.?$/, '.')).join(' ') };
	}
	return { place, text: errors.failed };
}

// ---- building the page ------------------------------------------------------------

// el('p', { class: 'x', onclick: f }, 'text', child): children are nodes or text.
function el(name, attributes = {}, ...children) {
	return fillNode(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
	return fillNode(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function fillNode(node, attributes, children) {
	for (const [name, value] of Object.entries(attributes)) {
		if (value === undefined || value === null || value === false) continue;
		if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
		else node.setAttribute(name, value === true ? '' : value);
	}
	node.append(...children.flat().filter((child) => child || child === 0));
	return node;
}

let ids = 0;
const newId = () => `f${++ids}`;

function button(text, onclick, { kind = '', type = 'button', ...attributes } = {}) {
	const part = kind ? `button ${kind}-button` : 'button';
	return el('button', { type, class: kind, part, onclick, ...attributes }, text);
}

// <time>, in words, with the exact time in its title.
function timeOf(time, words, format) {
	return el('time', { datetime: time, title: format.exact.format(new Date(time)) }, words);
}

// Uses on each of the last 30 days: accepted, and refused on top.
const CHART_DAYS = 30;
function chart(rows, format) {
	const today = Math.floor(Date.now() / 1000 / DAY);
	const days = Array.from({ length: CHART_DAYS }, (_, i) => ({ number: today - CHART_DAYS + 1 + i, accepted: 0, refused: 0 }));
	for (const { day, accepted, refused } of rows) {
		const at = days[Math.floor(Date.parse(`${day}T00:00:00Z`) / 1000 / DAY) - days[0].number];
		if (at) Object.assign(at, { accepted, refused });
	}
	const sum = (key) => days.reduce((total, day) => total + day[key], 0);
	const most = Math.max(1, ...days.map((day) => day.accepted + day.refused));
	const height = (n) => (n && Math.max(1.5, (n / most) * 22));
	const bars = days.map(({ number, accepted, refused }, i) => {
		const [a, r] = [height(accepted), height(refused)];
		const day = format.utcDay.format(new Date(number * DAY * 1000));
		return svg('g', {},
			svg('title', {}, fill(texts.day, { day, accepted: format.number.format(accepted), refused: format.number.format(refused) })),
			svg('rect', { class: 'base', x: i * 4, y: 23, width: 3, height: 1 }),
			a > 0 && svg('rect', { class: 'accepted', x: i * 4, y: 24 - a, width: 3, height: a }),
			r > 0 && svg('rect', { class: 'refused', x: i * 4, y: Math.max(0, 24 - a - r), width: 3, height: r }));
	});
	const label = [format.plural(texts.usage, sum('accepted')), sum('refused') && fill(texts.usageRefused, { n: format.number.format(sum('refused')) })];
	return svg('svg', { class: 'chart', part: 'chart', viewBox: `0 0 ${CHART_DAYS * 4 - 1} 24`, role: 'img', 'aria-label': label.filter(Boolean).join(', ') }, bars);
}

// ---- fields of forms --------------------------------------------------------------

// A field has a name, an element, a value, and a place for its error.  read() checks
// the value and throws Invalid.
class Invalid extends Error {}

class Field {
	constructor(name, { group = false, label, hint, optional = false }) {
		this.name = name;
		this.id = newId();
		this.group = group;
		this.hint = hint && el('p', { class: 'hint', id: `${this.id}-hint` }, hint);
		this.error = el('p', { class: 'error', part: 'error', id: `${this.id}-error`, hidden: true });
		const note = optional && el('span', { class: 'optional' }, texts.optional);
		const title = group ? el('legend', {}, label, note) : el('label', { for: this.id }, label, note);
		this.element = el(group ? 'fieldset' : 'div', { class: `field field-${name}` }, title);
	}

	// the control, or the element that contains the controls of a group
	add(control, ...more) {
		this.control = control;
		this.described = this.group ? this.element : control;
		this.element.append(...[this.hint, control, ...more, this.error].filter(Boolean));
		this.describe();
		return this;
	}

	describe() {
		const by = [this.hint?.id, !this.error.hidden && this.error.id].filter(Boolean).join(' ');
		if (by) this.described.setAttribute('aria-describedby', by);
		else this.described.removeAttribute('aria-describedby');
	}

	fail(text) {
		this.error.textContent = text;
		this.error.hidden = !text;
		if (this.group) this.element.classList.toggle('invalid', Boolean(text));
		else this.control.setAttribute('aria-invalid', text ? 'true' : 'false');
		this.describe();
	}

	focus() {
		const control = this.group ? this.element.querySelector('input:checked, select, textarea, input') : this.control;
		control?.closest('details')?.setAttribute('open', '');
		control?.focus();
	}
}

class TextField extends Field {
	constructor(name, { value = '', multiline = 0, maxlength, type = 'text', required = false, check, ...how }) {
		super(name, how);
		const attributes = { id: this.id, name, maxlength, autocomplete: 'off', spellcheck: multiline ? null : 'false', 'aria-required': required ? 'true' : null };
		this.add(multiline ? el('textarea', { ...attributes, rows: multiline }) : el('input', { ...attributes, type, ...how.more }));
		this.control.value = value ?? '';
		this.check = check;
	}

	read() {
		const value = this.control.value.trim();
		return this.check ? this.check(value) : value || null;
	}
}

const requiredLabel = (value) => {
	if (!value) throw new Invalid(texts.errors.required);
	return value;
};

const wholeNumber = (min, max) => (value) => {
	if (!value) return null;
	if (!/^\d+$/.test(value) || Number(value) < min || Number(value) > max) throw new Invalid(fill(texts.errors.number, { min, max }));
	return Number(value);
};

// A first look; the server knows what a network is.
const networkList = (value) => {
	const lines = value.split(/[\s,]+/).filter(Boolean);
	const bad = lines.find((line) => !/^[\da-f.:]+(\/\d{1,3})?$/i.test(line));
	if (bad) throw new Invalid(fill(texts.errors.network, { text: bad }));
	return lines.length ? lines : null;
};

// One of a few, as radio buttons with what each means.
class ChoiceField extends Field {
	constructor(name, { options, value, onchange, ...how }) {
		super(name, { ...how, group: true });
		const radios = options.map((option) => el('label', { class: 'choice' },
			el('input', { type: 'radio', name: this.id, value: option.value, checked: option.value === value, onchange }),
			el('span', { class: 'choice-text' }, el('span', { class: 'choice-name' }, option.label), el('span', { class: 'hint' }, option.note))));
		this.add(el('div', { class: 'choices' }, radios));
	}

	read() { return this.control.querySelector('input:checked')?.value ?? null; }
}

class SelectField extends Field {
	constructor(name, { options, value, onchange, ...how }) {
		super(name, how);
		this.add(el('select', { id: this.id, name, onchange }, options.map(([key, text]) => el('option', { value: key, selected: key === value }, text))));
	}

	read() { return this.control.value; }
}

// Checkboxes of the catalog, by resource; lines of text if there is no catalog.
class PermissionsField extends Field {
	constructor(catalog, value) {
		super('permissions', { group: true, label: texts.permissions, hint: catalog.length ? undefined : texts.permissionsHint });
		this.boxes = [];
		this.before = new Set(value);
		const known = new Set(catalog.map(({ name }) => name));
		const rest = (value ?? []).filter((name) => !known.has(name));
		if (!catalog.length) {
			this.lines = el('textarea', { rows: 4, 'aria-label': texts.permissions, spellcheck: 'false', autocomplete: 'off' });
			this.lines.value = rest.join('\n');
			this.add(this.lines);
			return;
		}
		const groups = Map.groupBy
			? Map.groupBy(catalog, (row) => row.resource)
			: catalog.reduce((map, row) => map.set(row.resource, [...(map.get(row.resource) ?? []), row]), new Map());
		// patterns that the token has already, and the catalog does not list
		if (rest.length) groups.set('*', rest.map((name) => ({ name, action: name })));
		this.add(el('div', { class: 'catalog' }, [...groups].map(([resource, rows]) =>
			el('div', { class: 'resource', role: 'group', 'aria-label': resource },
				el('span', { class: 'resource-name' }, resource),
				rows.map((row) => this.box(row, value?.includes(row.name)))))));
	}

	box({ name, action, description }, checked) {
		const input = el('input', { type: 'checkbox', value: name, checked, 'aria-label': description ? `${name}: ${description}` : name });
		this.boxes.push(input);
		return el('label', { class: 'permission', title: description || name }, input, action);
	}

	// A permission that the role does not have would do nothing.  token:rotate is the
	// token's alone.
	limit(patterns) {
		for (const input of this.boxes) {
			const within = !patterns || input.value === 'token:rotate' || allows(patterns, input.value);
			input.disabled = !within;
			input.parentNode.classList.toggle('outside', !within);
		}
	}

	read() {
		const value = this.lines
			? this.lines.value.split(/[\s,]+/).filter(Boolean)
			: this.boxes.filter((input) => input.checked && (!input.disabled || this.before.has(input.value))).map((input) => input.value);
		if (!value.length) throw new Invalid(texts.errors.permissions);
		return value;
	}
}

// A duration that the policy allows, never, or a day.  read() returns seconds, null for
// never, or undefined to keep what is there.
class ExpiryField extends Field {
	constructor({ organization, format, current, keep = false, never = true }) {
		super('expiry', { group: true, label: texts.expiry });
		this.format = format;
		this.limit = organization?.max_lifetime ? intervalSeconds(organization.max_lifetime) : Infinity;
		const endless = never && this.limit === Infinity && !organization?.require_expiry;
		const days = [7, 30, 90].map((n) => n * DAY).filter((seconds) => seconds <= this.limit);
		const inDays = (text, seconds) => fill(text, { days: format.duration(seconds) });
		const options = days.map((seconds) => [String(seconds), inDays(texts.days, seconds)]);
		if (this.limit < Infinity && !days.includes(this.limit)) options.push([String(this.limit), inDays(texts.longest, this.limit)]);
		options.push(['date', texts.onDate]);
		if (endless) options.push(['never', texts.unlimited]);
		if (keep) options.unshift(['keep', current ? fill(texts.keepUntil, { time: format.day.format(new Date(current)) }) : texts.keepForever]);
		this.select = el('select', { 'aria-label': texts.expiry, onchange: () => this.show() }, options.map(([value, text]) => el('option', { value }, text)));
		this.select.value = keep ? 'keep' : options.some(([value]) => value === String(30 * DAY)) ? String(30 * DAY) : options[0][0];
		this.day = el('input', { type: 'date', 'aria-label': texts.date, min: this.dayAfter(0), max: this.limit < Infinity && this.dayAfter(this.limit), onchange: () => this.show() });
		this.note = el('p', { class: 'hint', 'aria-live': 'polite' });
		const policy = this.limit < Infinity ? inDays(texts.policyLimit, this.limit) : organization?.require_expiry ? texts.policyExpiry : '';
		this.add(el('div', { class: 'expiry-choice' }, this.select, this.day), this.note, policy && el('p', { class: 'hint policy' }, policy));
		this.show();
	}

	// a day in local time, as <input type=date> writes it
	dayAfter(seconds) {
		const day = new Date(Date.now() + seconds * 1000);
		return [day.getFullYear(), day.getMonth() + 1, day.getDate()].map((n) => String(n).padStart(2, '0')).join('-');
	}

	// The end of the chosen day, but not after the policy's limit.
	secondsToDay() {
		if (!this.day.value) return NaN;
		return Math.min(Math.floor((new Date(`${this.day.value}T23:59:59`) - Date.now()) / 1000), this.limit);
	}

	show() {
		const { value } = this.select;
		this.day.hidden = value !== 'date';
		const seconds = value === 'date' ? this.secondsToDay() : Number(value);
		this.note.textContent = value === 'never' ? texts.expiresNever
			: seconds > 0 ? fill(texts.expiresOn, { time: this.format.day.format(new Date(Date.now() + seconds * 1000)) }) : '';
	}

	read() {
		const { value } = this.select;
		if (value === 'keep') return undefined;
		if (value === 'never') return null;
		const seconds = value === 'date' ? this.secondsToDay() : Number(value);
		if (!(seconds >= 60)) throw new Invalid(texts.errors.date);
		return seconds;
	}
}

// '30 days' and not '2592000 seconds': the server compares it with a limit in days.
const asInterval = (seconds) => (seconds === null ? null : seconds % DAY === 0 ? `${seconds / DAY} days` : `${seconds} seconds`);

// ---- dialogs ----------------------------------------------------------------------

// A <dialog> keeps the focus inside, and gives it back when it closes.
class Dialog {
	constructor(page, title) {
		this.page = page;
		const id = newId();
		this.title = el('h2', { id }, title);
		this.element = el('dialog', { 'aria-labelledby': id, part: 'dialog' });
		this.element.addEventListener('close', () => {
			// a browser may close a dialog in spite of us
			if (!this.mayClose()) return this.element.showModal();
			this.element.remove();
			return this.onclosed?.();
		});
	}

	mayClose() { return true; }

	open() {
		this.page.shadowRoot.append(this.element);
		this.element.showModal();
	}

	close() { this.element.close(); }
}

// A form that sends one change.  send() may return what to do when it has closed.
class FormDialog extends Dialog {
	constructor(page, { title, intro, fields, submit, kind = 'primary', send }) {
		super(page, title);
		this.fields = fields.flat().filter(Boolean);
		this.send = send;
		this.failure = el('p', { class: 'error summary', part: 'error', role: 'alert', hidden: true });
		this.submit = button(submit, undefined, { kind, type: 'submit' });
		this.form = el('form', { novalidate: true, autocomplete: 'off', onsubmit: (event) => this.onsubmit(event) },
			el('header', {}, this.title),
			el('div', { class: 'body' }, intro && el('p', { class: 'intro' }, intro), fields.map((field) => this.elementsOf(field)), this.failure),
			el('footer', {}, button(texts.cancel, () => this.close()), this.submit));
		this.element.append(this.form);
		// not the part that scrolls
		this.fields[0].control.setAttribute('autofocus', '');
		// the answer of a change that was sent must not be missed
		this.element.addEventListener('cancel', (event) => { if (this.busy) event.preventDefault(); });
	}

	// an array of fields is the part that is folded up
	elementsOf(field) {
		if (!Array.isArray(field)) return field && field.element;
		return el('details', { class: 'more' }, el('summary', {}, texts.morePart), el('div', {}, field.map((f) => f.element)));
	}

	async onsubmit(event) {
		event.preventDefault();
		if (this.busy) return;
		const values = this.read();
		if (!values) return;
		this.setBusy(true);
		try {
			const next = await this.send(values);
			this.setBusy(false);
			this.close();
			// unless the host page has removed the element meanwhile
			if (this.page.isConnected) next?.();
		} catch (error) {
			this.setBusy(false);
			this.refused(error);
		}
	}

	setBusy(busy) {
		this.busy = busy;
		this.form.setAttribute('aria-busy', String(busy));
		for (const control of this.form.querySelectorAll('footer button')) control.disabled = busy;
	}

	// The values by name; nothing if one is wrong.
	read() {
		const values = {};
		const wrong = [];
		this.fail('');
		for (const field of this.fields) {
			field.fail('');
			if (field.element.hidden) continue;
			try {
				values[field.name] = field.read();
			} catch (error) {
				if (!(error instanceof Invalid)) throw error;
				field.fail(error.message);
				wrong.push(field);
			}
		}
		wrong[0]?.focus();
		return wrong.length ? undefined : values;
	}

	fail(text) {
		this.failure.textContent = text;
		this.failure.hidden = !text;
	}

	// The server's refusal, at the field that it is about.
	refused(error) {
		const { place, text } = explain(error, { changing: true });
		const field = this.fields.find(({ name, element }) => name === place && !element.hidden)
			?? (place === 'role' && this.fields.find(({ name }) => name === 'access'));
		if (field) {
			field.fail(text);
			field.focus();
		} else {
			this.fail(text);
			this.submit.focus();
			this.failure.scrollIntoView({ block: 'nearest' });
		}
		this.page.refused(error);
	}
}

// The text of a new token.  It is nowhere but in this dialog, which closes by its
// button only, and forgets the text then.
class SecretDialog extends Dialog {
	constructor(page, token, note) {
		super(page, texts.secretTitle);
		const label = newId();
		this.code = el('code', { class: 'secret', part: 'secret', tabindex: 0, role: 'textbox', 'aria-readonly': 'true', 'aria-labelledby': label }, token);
		this.said = el('span', { class: 'said', role: 'status' });
		this.element.setAttribute('closedby', 'none');
		this.element.append(
			el('header', {}, this.title),
			el('div', { class: 'body' },
				el('p', { class: 'warning', part: 'warning' }, texts.secretWarning),
				el('div', { class: 'secret-head' }, el('span', { id: label, class: 'secret-label' }, texts.secret), this.said),
				el('div', { class: 'secret-row' }, this.code, button(texts.copy, () => this.copy(), { autofocus: true })),
				note && el('p', { class: 'hint' }, note)),
			el('footer', {}, button(texts.saved, () => this.saved(), { kind: 'primary' })));
		this.element.addEventListener('keydown', (event) => { if (event.key === 'Escape') event.preventDefault(); });
		this.element.addEventListener('cancel', (event) => event.preventDefault());
		this.warn = (event) => event.preventDefault();
		window.addEventListener('beforeunload', this.warn);
	}

	async copy() {
		try {
			await navigator.clipboard.writeText(this.code.textContent);
			this.said.textContent = texts.copied;
		} catch {
			// not allowed here: select it
			getSelection().selectAllChildren(this.code);
			this.code.focus();
			this.said.textContent = texts.copyByHand;
		}
	}

	saved() {
		this.forget();
		this.close();
	}

	forget() {
		this.code.replaceChildren();
		this.forgotten = true;
		window.removeEventListener('beforeunload', this.warn);
	}

	mayClose() { return this.forgotten || !this.page.isConnected; }
}

// ---- the element ------------------------------------------------------------------

const PAGE_SIZE = 25;
const REREAD = 200;				// rows that are read again after a change
const COLUMNS = 'id,label,description,masked,role,access,permissions,allowed_networks,rate_limit_per_minute,quota,quota_period,remaining,'
	+ 'expires_at,created_at,created_by,created_by_name,last_used_at,status,previous_secrets';
const CHANGES = ['create', 'update', 'delete'];

export class ApiTokens extends HTMLElement {
	static observedAttributes = ['base-url', 'organization', 'personal', 'lang'];

	#headers = {};
	#api = new Api(this);
	#rights = {};				// what the caller may do: create, update, delete
	#tokens = [];
	#usage = new Map();			// rows of token_usage_daily by token
	#complete = true;
	#dialog;
	#request;					// of the list: a later one ends it
	#scheduled = false;

	constructor() {
		super();
		const root = this.attachShadow({ mode: 'open' });
		root.adoptedStyleSheets = [sheet()];
	}

	// An object, or a function that returns one, also a promise of one.
	get headers() { return this.#headers; }
	set headers(value) {
		this.#headers = value;
		if (this.isConnected) this.#schedule();
	}
	get baseUrl() { return this.getAttribute('base-url') ?? ''; }
	set baseUrl(value) { this.setAttribute('base-url', value); }
	get organization() { return this.getAttribute('organization'); }
	set organization(value) { this.setAttribute('organization', value); }
	get personal() { return this.hasAttribute('personal'); }
	set personal(value) { this.toggleAttribute('personal', value); }

	connectedCallback() {
		// what was set before this class was defined
		for (const name of ['headers', 'baseUrl', 'organization', 'personal']) {
			if (!Object.hasOwn(this, name)) continue;
			const value = this[name];
			delete this[name];
			this[name] = value;
		}
		this.#format = new Format(this.closest('[lang]')?.lang || navigator.language);
		this.#build();
		window.addEventListener('pagehide', this.#onpagehide);
		window.addEventListener('pageshow', this.#onpageshow);
		document.addEventListener('visibilitychange', this.#onvisible);
		document.addEventListener('click', this.#onclick);
		this.#schedule();
	}

	disconnectedCallback() {
		window.removeEventListener('pagehide', this.#onpagehide);
		window.removeEventListener('pageshow', this.#onpageshow);
		document.removeEventListener('visibilitychange', this.#onvisible);
		document.removeEventListener('click', this.#onclick);
		this.#request?.abort();
		this.#closeDialog();
	}

	attributeChangedCallback() { if (this.isConnected) this.#schedule(); }

	// Read the list again.
	refresh() { return this.#load(); }

	// ---- what the page does by itself

	#format;
	// The back/forward cache keeps a page as it was, for the case that somebody goes back to it.
	#onpagehide = () => this.#closeDialog();
	#onpageshow = (event) => { if (event.persisted) this.#start(); };
	// Others may have changed something meanwhile.
	#onvisible = () => {
		if (!document.hidden && !this.#dialog && Date.now() - this.#loadedAt > 30000) this.#load();
	};
	#loadedAt = 0;
	#onclick = (event) => {
		for (const menu of this.shadowRoot.querySelectorAll('details.menu[open]')) {
			if (!event.composedPath().includes(menu)) menu.open = false;
		}
	};

	#closeDialog() {
		this.#dialog?.forget?.();
		this.#dialog?.close();
	}

	// Several attributes that are set at once are one start.
	#schedule() {
		if (this.#scheduled) return;
		this.#scheduled = true;
		queueMicrotask(() => {
			this.#scheduled = false;
			if (this.isConnected) this.#start();
		});
	}

	async #start() {
		// nothing of another owner stays on the page
		this.#closeDialog();
		this.#tokens = [];
		this.#rights = {};
		this.#filter.value = '';
		this.#say('');
		await this.#load();
	}

	// ---- reading

	get #owner() {
		if (this.personal) return { organization_id: 'is.null' };
		return { organization_id: `eq.${this.organization ?? ''}` };
	}

	async #readRights(signal) {
		if (this.personal) return Object.fromEntries(CHANGES.map((right) => [right, true]));
		const may = CHANGES.map((right) => this.#api.get('/rpc/can', { permission: `token:${right}`, organization_id: this.organization ?? '' }, signal));
		const answers = await Promise.all(may);
		return Object.fromEntries(CHANGES.map((right, i) => [right, answers[i] === true]));
	}

	#readTokens(limit, after, signal) {
		// % and _ stand for themselves
		const text = this.#filter.value.trim().replace(/[\\%_]/g, '\\$&');
		return this.#api.get('/tokens', {
			select: COLUMNS, ...this.#owner, revoked_at: 'is.null', ...(text && { label: `ilike.*${text}*` }),
			...(after && { id: `lt.${after}` }), order: 'id.desc', limit: limit + 1,
		}, signal);
	}

	// The chart is no reason to show nothing.
	async #readUsage(tokens, signal) {
		const since = new Date(Date.now() - (CHART_DAYS - 1) * DAY * 1000).toISOString().slice(0, 10);
		// not more rows at once than a server returns
		const pages = Array.from({ length: Math.ceil(tokens.length / PAGE_SIZE) }, (_, i) => tokens.slice(i * PAGE_SIZE, (i + 1) * PAGE_SIZE));
		const rows = (await Promise.all(pages.map((page) => this.#api.get('/token_usage_daily', {
			select: 'token_id,day,accepted,refused', token_id: `in.(${page.map(({ id }) => id).join(',')})`, day: `gte.${since}`, order: 'day',
		}, signal).catch((error) => { if (signal.aborted) throw error; return []; })))).flat();
		for (const { id } of tokens) this.#usage.set(id, rows.filter((row) => row.token_id === id));
	}

	// Read as much of the list as is shown, or with `more` the next page.
	async #load({ more = false } = {}) {
		this.#request?.abort();
		const { signal } = this.#request = new AbortController();
		this.setAttribute('aria-busy', 'true');
		const limit = more ? PAGE_SIZE : Math.min(Math.max(PAGE_SIZE, this.#tokens.length), REREAD);
		const after = more ? this.#tokens.at(-1)?.id : undefined;
		try {
			const [rights, rows] = await Promise.all([this.#readRights(signal), this.#readTokens(limit, after, signal)]);
			const page = rows.slice(0, limit);
			await this.#readUsage(page, signal);
			this.#rights = rights;
			this.#complete = rows.length <= limit;
			this.#tokens = more ? [...this.#tokens, ...page] : page;
			this.#loadedAt = Date.now();
			this.#fail();
			this.#render();
		} catch (error) {
			if (signal.aborted) return;
			// what a caller may no longer see does not stay
			if (error.status !== 0) {
				this.#tokens = [];
				this.#rights = {};
				this.#render();
				this.#list.replaceChildren();
			}
			this.#fail(error);
			this.#signedOut(error);
		}
		this.removeAttribute('aria-busy');
	}

	// ---- the page

	#filter = el('input', { type: 'search', part: 'filter', autocomplete: 'off', spellcheck: 'false', 'data-key': 'filter' });
	#generate;
	#notice = el('div', { class: 'notice', role: 'alert', hidden: true });
	#status = el('p', { class: 'status', role: 'status', part: 'status' });
	#list = el('div', { class: 'list' });

	#build() {
		const f = texts.filter;
		fillNode(this.#filter, { placeholder: f, 'aria-label': f, maxlength: 255 }, []);
		let timer;
		this.#filter.oninput = () => {
			clearTimeout(timer);
			timer = setTimeout(() => this.#load(), 200);
		};
		this.#generate = button(texts.generate, () => this.#openCreate(), { kind: 'primary', 'data-key': 'generate', hidden: true });
		this.#list.replaceChildren(el('p', { class: 'loading' }, texts.loading));
		this.shadowRoot.replaceChildren(
			el('div', { class: 'toolbar', part: 'toolbar' }, this.#filter, this.#generate), this.#notice, this.#list, this.#status);
	}

	#say(text) { this.#status.textContent = text; }

	#fail(error) {
		this.#notice.hidden = !error;
		if (error) this.#notice.replaceChildren(el('span', {}, explain(error).text), button(texts.retry, () => this.#load()));
	}

	#signedOut(error) {
		if (error.status === 401) this.dispatchEvent(new CustomEvent('api-tokens-signed-out', { bubbles: true, composed: true }));
	}

	#count() {
		const n = this.#tokens.length;
		return this.#complete ? this.#format.plural(texts.count, n) : fill(texts.countMore, { n });
	}

	#render() {
		const filtered = this.#filter.value.trim();
		const key = this.shadowRoot.activeElement?.dataset.key;
		const opened = this.shadowRoot.querySelector('details.menu[open] summary')?.dataset.key;
		this.#generate.hidden = !this.#rights.create;
		this.#filter.hidden = !this.#tokens.length && !filtered;
		this.#list.replaceChildren(...this.#tokens.length ? this.#table() : [this.#empty(filtered)]);
		if (!this.#message) this.#say(this.#tokens.length ? this.#count() : '');
		this.#message = '';
		if (opened) this.#find(opened)?.parentNode.setAttribute('open', '');
		if (key && this.shadowRoot.activeElement?.dataset.key !== key) this.#focus(key);
	}
	#message = '';				// said until the next render but one

	#find(key) { return [...this.shadowRoot.querySelectorAll('[data-key]')].find((node) => node.dataset.key === key && !node.hidden); }

	// The control of that name, or what is nearest if it is gone.
	#focus(key) {
		(this.#find(key) ?? [this.#generate, this.#filter].find((node) => !node.hidden))?.focus();
	}

	#empty(filtered) {
		if (filtered) return el('p', { class: 'empty', part: 'empty' }, fill(texts.nothingFound, { text: filtered }));
		const mayNothing = !this.personal && !CHANGES.some((right) => this.#rights[right]);
		const [title, why] = mayNothing ? [texts.notVisible, texts.notVisibleWhy]
			: this.personal ? [texts.emptyPersonal, texts.emptyPersonalWhy] : [texts.emptyOrganization, texts.emptyOrganizationWhy];
		return el('div', { class: 'empty', part: 'empty' }, keyIcon(), el('strong', {}, title), el('p', {}, why));
	}

	// Roles are written out because narrow pages show the rows as cards, and a table
	// that is no table for CSS would be none for screen readers.
	#table() {
		const { columns } = texts;
		const actions = this.#rights.update || this.#rights.delete;
		const head = ['name', 'access', 'created', 'used', 'expires'].map((column) => el('th', { role: 'columnheader', scope: 'col', class: column }, columns[column]));
		if (actions) head.push(el('th', { role: 'columnheader', scope: 'col', class: 'actions' }, el('span', { class: 'unseen' }, columns.actions)));
		const table = el('table', { role: 'table', part: 'table' },
			el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, head)),
			el('tbody', { role: 'rowgroup' }, this.#tokens.map((token) => this.#row(token, actions))));
		const more = !this.#complete && el('div', { class: 'more-row' }, button(texts.more, () => this.#load({ more: true }), { 'data-key': 'more' }));
		return [table, more].filter(Boolean);
	}

	#row(token, actions) {
		const format = this.#format;
		const cell = (column, ...children) => el('td', { role: 'cell', class: column, 'data-label': texts.columns[column] }, ...children);
		const facts = this.#facts(token);
		const [access] = texts.accesses[token.access] ?? [token.access];
		return el('tr', { role: 'row', part: 'row', class: token.status, 'data-id': token.id },
			cell('name',
				el('span', { class: 'label', part: 'label' }, token.label),
				token.description && el('span', { class: 'description' }, token.description),
				el('code', { class: 'masked', part: 'masked' }, token.masked),
				facts && el('span', { class: 'facts' }, facts)),
			cell('access',
				el('span', { class: 'first' }, [token.role, access].filter(Boolean).join(' · ')),
				token.permissions && el('span', { class: 'second patterns', title: token.permissions.join('\n') }, token.permissions.join(', '))),
			cell('created',
				el('span', { class: 'first' }, token.created_by_name || token.created_by || texts.byNobody),
				el('span', { class: 'second' }, timeOf(token.created_at, format.ago(token.created_at), format))),
			cell('used',
				el('span', { class: 'first' }, token.last_used_at ? timeOf(token.last_used_at, format.ago(token.last_used_at), format) : texts.never),
				this.#usage.get(token.id)?.length > 0 && chart(this.#usage.get(token.id), format)),
			cell('expires',
				el('span', { class: `badge ${token.status}`, part: `badge badge-${token.status}` }, texts.status[token.status] ?? token.status),
				el('span', { class: 'second' }, token.expires_at ? timeOf(token.expires_at, format.ago(token.expires_at), format) : texts.never)),
			actions && el('td', { role: 'cell', class: 'actions' }, this.#menu(token)));
	}

	// What only some tokens have.
	#facts(token) {
		const format = this.#format;
		const n = (number) => format.number.format(number);
		const last = token.previous_secrets?.map((secret) => secret.expires_at).sort().at(-1);
		return [
			token.allowed_networks && format.plural(texts.networks, token.allowed_networks.length),
			token.rate_limit_per_minute && fill(texts.perMinute, { n: n(token.rate_limit_per_minute) }),
			token.quota && fill(texts.quota[token.quota_period ?? 'life'], { n: n(token.quota), left: n(token.remaining ?? token.quota) }),
			last && fill(texts.oldSecret, { time: format.short.format(new Date(last)) }),
		].filter(Boolean).join(' · ');
	}

	#menu(token) {
		const { update, delete: end } = this.#rights;
		const key = `menu-${token.id}`;
		const suspended = token.status === 'suspended';
		const item = (text, action, kind) => el('button', { type: 'button', class: kind, part: 'menu-item', 'data-key': `${key} ${text}`, onclick: () => {
			// the dialog gives the focus back to where it was
			menu.open = false;
			menu.firstChild.focus();
			action(token);
		} }, text);
		const menu = el('details', { class: 'menu', onkeydown: (event) => {
			if (event.key !== 'Escape' || !menu.open) return;
			menu.open = false;
			menu.firstChild.focus();
		}, onfocusout: (event) => { if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false; } },
		el('summary', { 'aria-label': fill(texts.menu, { label: token.label }), part: 'menu', 'data-key': key }, dots()),
		el('div', { class: 'items', part: 'menu-items' },
			update && item(texts.edit, () => this.#openEdit(token)),
			update && item(suspended ? texts.resume : texts.suspend, () => this.#suspend(token, !suspended)),
			update && item(texts.regenerate, () => this.#openRegenerate(token)),
			end && item(texts.revoke, () => this.#openRevoke(token), 'danger')));
		return menu;
	}

	// ---- changes

	#show(dialog) {
		const opener = this.shadowRoot.activeElement?.dataset.key;
		dialog.onclosed = () => {
			if (this.#dialog !== dialog) return;
			this.#dialog = undefined;
			// the row that had the focus may have been rendered again
			if (this.isConnected && !this.shadowRoot.activeElement) this.#focus(opener);
		};
		this.#dialog = dialog;
		dialog.open();
	}

	// A dialog whose content is read first.  One at a time.
	async #prepare(make) {
		if (this.#preparing || this.#dialog) return;
		this.#preparing = true;
		try {
			const dialog = await make();
			if (this.isConnected) this.#show(dialog);
		} catch (error) {
			this.#fail(error);
			this.#signedOut(error);
		} finally {
			this.#preparing = false;
		}
	}
	#preparing = false;

	#changed(action, { id, label }) {
		this.#message = fill(texts.done[action], { label });
		this.#say(this.#message);
		this.dispatchEvent(new CustomEvent('api-tokens-change', { bubbles: true, composed: true, detail: { action, id } }));
		return this.#load();
	}

	// A dialog's change was refused: the list may be out of date.
	refused(error) {
		this.#signedOut(error);
		if (error.status !== 401 && /^$|^42501$|^55000$/.test(error.code)) this.#load();
	}

	async #organizationRow() {
		if (this.personal) return null;
		const rows = await this.#api.get('/organizations', { select: 'id,name,max_lifetime,require_expiry,default_role', id: `eq.${this.organization}` });
		return rows[0] ?? null;
	}

	// A role with a database role is for administrators to give.
	async #roles() {
		if (this.personal) return [];
		return leastFirst(await this.#api.get('/roles', { select: 'name,description,permissions', database_role: 'is.null', order: 'name' }));
	}

	// The catalog is optional.
	#catalog() {
		return this.#api.get('/permissions', { select: 'name,description,resource,action', order: 'name' })
			.catch((error) => { if (error.status === 404) return []; throw error; });
	}

	// The fields of a token that can be given and edited.
	async #tokenFields(token) {
		const [organization, roles, catalog] = await Promise.all([this.#organizationRow(), this.#roles(), this.#catalog()]);
		const own = token?.role && !roles.some(({ name }) => name === token.role) ? [{ name: token.role, permissions: [] }] : [];
		const patterns = (name) => roles.find((role) => role.name === name)?.permissions;
		const accesses = Object.entries(texts.accesses).map(([value, [label, note]]) => ({ value, label, note: value === 'full' && this.personal ? texts.fullPersonal : note }));
		const permissions = new PermissionsField(catalog, token?.permissions);
		const access = new ChoiceField('access', { label: texts.access, options: accesses, value: token?.access ?? 'read_only', onchange: () => update() });
		const chosen = token?.role ?? roles.find(({ name }) => name === organization?.default_role)?.name ?? roles[0]?.name;
		const role = !this.personal && new ChoiceField('role', {
			label: texts.role, value: chosen, onchange: () => update(),
			options: [...roles, ...own].map((r) => ({ value: r.name, label: r.name, note: roleNote(r) })),
		});
		const update = () => {
			permissions.element.hidden = access.read() !== 'custom';
			if (role) permissions.limit(patterns(role.read()));
		};
		update();
		return [
			new TextField('label', { label: texts.label, hint: texts.labelHint, value: token?.label, maxlength: 255, required: true, check: requiredLabel }),
			new TextField('description', { label: texts.description, optional: true, value: token?.description, multiline: 2, maxlength: 4000 }),
			role, access, permissions,
			new ExpiryField({ organization, format: this.#format, current: token?.expires_at, keep: Boolean(token) }),
			[
				new TextField('networks', { label: texts.allowedNetworks, hint: texts.allowedNetworksHint, value: token?.allowed_networks?.join('\n'), multiline: 3, check: networkList }),
				new TextField('rate', { label: texts.rate, value: token?.rate_limit_per_minute, check: wholeNumber(1, 1000000), more: { inputmode: 'numeric', placeholder: texts.noLimit } }),
				new TextField('quota', { label: texts.quotaNumber, value: token?.quota, check: wholeNumber(1, 999999999999999), more: { inputmode: 'numeric', placeholder: texts.noLimit } }),
				new SelectField('period', { label: texts.quotaPeriod, value: token?.quota_period ?? 'life', options: Object.entries(texts.periods) }),
			],
		];
	}

	// The columns of a token, from the values of its form.
	#columns(values) {
		return {
			label: values.label, description: values.description,
			...(!this.personal && { role: values.role }),
			access: values.access, permissions: values.access === 'custom' ? values.permissions : null,
			allowed_networks: values.networks, rate_limit_per_minute: values.rate,
			quota: values.quota, quota_period: values.quota === null || values.period === 'life' ? null : values.period,
		};
	}

	#openCreate() {
		return this.#prepare(async () => new FormDialog(this, {
			title: texts.generateTitle, submit: texts.generate, fields: await this.#tokenFields(),
			send: async (values) => {
				const given = { ...this.#columns(values), expires_in: asInterval(values.expiry), ...(!this.personal && { organization_id: this.organization }) };
				return this.#issued('create', await this.#api.call('create_token', given), values.label);
			},
		}));
	}

	// What follows when the form has closed: the token's new text is shown.
	#issued(action, { id, token, expires_at: until }, label) {
		const note = until ? fill(texts.expiresOn, { time: this.#format.exact.format(new Date(until)) }) : texts.expiresNever;
		return () => {
			this.#show(new SecretDialog(this, token, note));
			this.#changed(action, { id, label });
		};
	}

	#openEdit(token) {
		return this.#prepare(async () => new FormDialog(this, {
			title: fill(texts.editTitle, { label: token.label }), submit: texts.save, fields: await this.#tokenFields(token),
			send: async (values) => {
				const wanted = this.#columns(values);
				if (values.expiry !== undefined) wanted.expires_at = values.expiry === null ? null : new Date(Date.now() + values.expiry * 1000).toISOString();
				// what nobody touched is not sent: somebody else may have changed it
				const same = (name) => JSON.stringify(wanted[name]) === JSON.stringify(token[name] ?? null);
				const changes = Object.fromEntries(Object.entries(wanted).filter(([name]) => !same(name)));
				if (!Object.keys(changes).length) return undefined;
				await this.#api.edit(token.id, changes);
				return () => this.#changed('edit', { ...token, label: values.label });
			},
		}));
	}

	async #suspend(token, suspend) {
		if (this.#preparing) return;
		this.#preparing = true;
		try {
			await this.#api.edit(token.id, { suspended_at: suspend ? 'now' : null });
			await this.#changed(suspend ? 'suspend' : 'resume', token);
		} catch (error) {
			await this.#load();
			this.#fail(error);
			this.#signedOut(error);
		} finally {
			this.#preparing = false;
		}
	}

	#openRegenerate(token) {
		const overlaps = [['0', texts.noOverlap], ...[3600, DAY, 7 * DAY].map((seconds) => [String(seconds), fill(texts.overlapFor, { time: this.#format.duration(seconds) })])];
		// an expired token, and one that the policy refuses, needs a new expiry
		const needed = ['expired', 'policy_refused'].includes(token.status);
		return this.#prepare(async () => new FormDialog(this, {
			title: fill(texts.regenerateTitle, { label: token.label }), intro: texts.regenerateWhy, submit: texts.regenerate,
			fields: [
				new SelectField('overlap', { label: texts.overlap, options: overlaps, value: '0' }),
				new ExpiryField({ organization: await this.#organizationRow(), format: this.#format, current: token.expires_at, keep: !needed, never: false }),
			],
			send: async ({ overlap, expiry }) => {
				const issued = await this.#api.call('regenerate_token', {
					id: token.id, overlap: asInterval(Number(overlap)), ...(expiry && { expires_in: asInterval(expiry) }),
				});
				return this.#issued('regenerate', issued, token.label);
			},
		}));
	}

	#openRevoke(token) {
		return this.#prepare(async () => new FormDialog(this, {
			title: fill(texts.revokeTitle, { label: token.label }), intro: texts.revokeWhy, submit: texts.revoke, kind: 'danger',
			fields: [
				new TextField('confirm', { label: fill(texts.confirm, { label: token.label }), check: (value) => {
					if (value !== token.label) throw new Invalid(texts.errors.confirm);
					return value;
				} }),
				new TextField('reason', { label: texts.reason, optional: true, maxlength: 250 }),
			],
			send: async ({ confirm, reason }) => {
				await this.#api.call('revoke_token', { id: token.id, confirm_label: confirm, reason });
				return () => this.#changed('revoke', token);
			},
		}));
	}
}

// What a role may do, in a line.
function roleNote({ description, permissions }) {
	return [description && el('span', {}, description), el('code', {}, permissions.join(', ') || texts.roleNothing)].filter(Boolean);
}

function dots() {
	return svg('svg', { viewBox: '0 0 16 16', width: 16, height: 16, 'aria-hidden': 'true' }, [3, 8, 13].map((cx) => svg('circle', { cx, cy: 8, r: 1.5, fill: 'currentColor' })));
}

function keyIcon() {
	return svg('svg', { class: 'key', viewBox: '0 0 24 24', width: 28, height: 28, 'aria-hidden': 'true', fill: 'none', stroke: 'currentColor', 'stroke-width': 1.6, 'stroke-linecap': 'round', 'stroke-linejoin': 'round' },
		svg('circle', { cx: 8, cy: 15, r: 4 }), svg('path', { d: 'M11 12 20 3m-4 4 3 3m-6 0 2 2' }));
}

// ---- style ------------------------------------------------------------------------

// Custom properties are for the host page; light-dark() follows its color-scheme.
const STYLE = `
:host {
	--accent: var(--api-tokens-accent, light-dark(#1f6feb, #4493f8));
	--on-accent: var(--api-tokens-on-accent, light-dark(#fff, #0d1117));
	--text: var(--api-tokens-text, light-dark(#1f2328, #e6edf3));
	--muted: var(--api-tokens-muted, light-dark(#59636e, #9198a1));
	--surface: var(--api-tokens-surface, light-dark(#fff, #0d1117));
	--raised: var(--api-tokens-raised, light-dark(#f6f8fa, #161b22));
	--border: var(--api-tokens-border, light-dark(#d1d9e0, #30363d));
	--control: var(--api-tokens-control, light-dark(#818b98, #656c76));
	--good: var(--api-tokens-good, light-dark(#1a7f37, #3fb950));
	--warn: var(--api-tokens-warn, light-dark(#8a5a00, #d29922));
	--danger: var(--api-tokens-danger, light-dark(#cf222e, #ff7b72));
	--radius: var(--api-tokens-radius, 8px);
	--mono: var(--api-tokens-mono, ui-monospace, SFMono-Regular, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace);
	display: block;
	container-type: inline-size;
	color: var(--text);
	font: var(--api-tokens-font, 14px/1.45 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif);
}
:host([hidden]) { display: none; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
code { font-family: var(--mono); font-size: 12px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

button, input, select, textarea { font: inherit; color: inherit; }
button {
	padding: 5px 14px; border: 1px solid var(--border); border-radius: 6px; background: var(--raised);
	font-weight: 500; line-height: 20px; white-space: nowrap; cursor: pointer;
	&:hover { border-color: var(--control); }
	&:disabled { opacity: .55; cursor: default; }
	&.primary { background: var(--accent); border-color: transparent; color: var(--on-accent); }
	&.danger { color: var(--danger); }
	&.primary:hover { filter: brightness(1.08); }
}
input:not([type=radio], [type=checkbox]), select, textarea {
	width: 100%; padding: 5px 10px; border: 1px solid var(--control); border-radius: 6px; background: var(--surface); line-height: 20px;
	&:focus { outline: 2px solid var(--accent); outline-offset: -1px; border-color: transparent; }
	&[aria-invalid=true] { border-color: var(--danger); }
	&::placeholder { color: var(--muted); opacity: 1; }
}
select, input[type=date] { min-height: 32px; }
textarea { resize: vertical; }
input:is([type=radio], [type=checkbox]) { accent-color: var(--accent); margin: 0; flex: none; width: 16px; height: 16px; }

.toolbar { display: flex; gap: 12px; align-items: center; justify-content: space-between; margin-bottom: 12px; }
.toolbar input { max-width: 280px; }
.toolbar .primary { margin-left: auto; }
.notice {
	display: flex; gap: 12px; align-items: center; justify-content: space-between; padding: 8px 12px; margin-bottom: 12px;
	border: 1px solid color-mix(in srgb, var(--danger) 40%, transparent); border-radius: 6px;
	background: color-mix(in srgb, var(--danger) 8%, transparent);
}
.status { min-height: 20px; margin: 8px 2px 0; color: var(--muted); font-size: 13px; }
.loading { margin: 0; padding: 32px; text-align: center; color: var(--muted); }
.empty {
	margin: 0; padding: 40px 24px; border: 1px dashed var(--border); border-radius: var(--radius); text-align: center; text-wrap: balance; color: var(--muted);
	& strong { display: block; margin-top: 8px; color: var(--text); font-size: 16px; }
	& p { max-width: 46ch; margin: 4px auto 0; }
}
.more-row { margin-top: 12px; text-align: center; }

table { width: 100%; border: 1px solid var(--border); border-spacing: 0; border-radius: var(--radius); background: var(--surface); }
th {
	padding: 8px 12px; border-bottom: 1px solid var(--border); background: var(--raised); color: var(--muted);
	font-size: 12px; font-weight: 500; text-align: start; white-space: nowrap;
	&:first-child { border-start-start-radius: var(--radius); }
	&:last-child { border-start-end-radius: var(--radius); }
}
td { padding: 11px 12px; vertical-align: top; }
:is(th, td):first-child { padding-inline-start: 16px; }
tr + tr td { border-top: 1px solid var(--border); }
td.name { width: 38%; overflow-wrap: anywhere; }
td.access { max-width: 180px; }
td :is(.label, .description, .masked, .facts, .first, .second) { display: block; }
.label { font-weight: 600; }
.description { color: var(--muted); font-size: 13px; }
.masked { margin-top: 3px; color: var(--muted); }
.facts { margin-top: 3px; color: var(--muted); font-size: 12px; }
.first { white-space: nowrap; }
.second { color: var(--muted); font-size: 12px; }
.patterns { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
time { cursor: help; text-decoration: underline dotted transparent; text-underline-offset: 3px; }
time:hover { text-decoration-color: currentColor; }
tr:is(.expired, .suspended, .policy_refused) .label { color: var(--muted); }
.chart {
	display: block; width: 119px; height: 24px; margin-top: 2px;
	& .base { fill: var(--border); }
	& .accepted { fill: var(--accent); }
	& .refused { fill: var(--danger); }
}
.badge {
	--color: var(--muted);
	display: block; white-space: nowrap;
	&::before { content: ""; display: inline-block; margin-inline-end: 6px; width: 8px; height: 8px; border-radius: 50%; background: var(--color); }
	&.active { --color: var(--good); }
	&.expiring { --color: var(--warn); color: var(--warn); }
	&:is(.expired, .policy_refused) { --color: var(--danger); color: var(--danger); }
	&.suspended { color: var(--muted); }
	&.suspended::before { background: none; border: 2px solid var(--color); }
}
:is(th, td).actions { width: 48px; padding-inline-start: 0; text-align: end; }

.menu {
	position: relative; display: inline-block; text-align: start;
	& summary { display: grid; place-items: center; width: 30px; height: 30px; border-radius: 6px; color: var(--muted); list-style: none; cursor: pointer; }
	& summary::-webkit-details-marker { display: none; }
	& summary:hover, &[open] summary { background: var(--raised); color: var(--text); }
	& .items {
		position: absolute; z-index: 2; inset-inline-end: 0; top: 34px; min-width: 160px; padding: 4px; border: 1px solid var(--border);
		border-radius: var(--radius); background: var(--surface); box-shadow: 0 8px 24px light-dark(#1f232826, #010409cc);
	}
	& button { display: block; width: 100%; padding: 6px 10px; border: 0; background: none; font-weight: 400; text-align: start; }
	& button:hover { background: var(--raised); }
	& button.danger:hover { background: color-mix(in srgb, var(--danger) 10%, transparent); }
}

dialog {
	width: min(560px, calc(100vw - 32px)); max-height: min(860px, calc(100dvh - 32px)); padding: 0; overflow: hidden;
	border: 1px solid var(--border); border-radius: 12px; background: var(--surface); color: inherit;
	box-shadow: 0 24px 48px light-dark(#1f232833, #010409);
	&::backdrop { background: light-dark(#1f232866, #010409b3); }
	&[open], & form { display: flex; flex-direction: column; min-height: 0; }
	& form { flex: 1; max-height: inherit; }
	& header { padding: 16px 20px 12px; border-bottom: 1px solid var(--border); }
	& h2 { margin: 0; font-size: 16px; font-weight: 600; line-height: 24px; overflow-wrap: anywhere; }
	& .body { flex: 1; min-height: 0; padding: 16px 20px; overflow-y: auto; }
	& footer { display: flex; gap: 8px; justify-content: flex-end; padding: 12px 20px; border-top: 1px solid var(--border); background: var(--raised); }
	& footer button { background: var(--surface); }
	& footer .primary { background: var(--accent); }
	& footer .danger { background: var(--danger); border-color: transparent; color: light-dark(#fff, #0d1117); }
}
.intro { margin: 0 0 16px; }
.field { min-width: 0; margin: 0 0 18px; padding: 0; border: 0; }
.field:last-child { margin-bottom: 0; }
:is(label, legend) { display: block; margin-bottom: 4px; padding: 0; font-weight: 600; overflow-wrap: anywhere; }
.optional { margin-inline-start: 6px; color: var(--muted); font-size: 12px; font-weight: 400; }
.hint { display: block; margin: 0; color: var(--muted); font-size: 12px; font-weight: 400; }
.field > .hint { margin-bottom: 6px; }
.field > :is(input, select, textarea, div) ~ .hint { margin: 6px 0 0; }
.error { margin: 6px 0 0; color: var(--danger); font-size: 13px; }
.error.summary { margin: 0; padding: 8px 12px; border-radius: 6px; background: color-mix(in srgb, var(--danger) 10%, transparent); }
.choices { border: 1px solid var(--border); border-radius: var(--radius); }
.choice {
	display: flex; gap: 10px; margin: 0; padding: 9px 12px; font-weight: 400; cursor: pointer;
	& + & { border-top: 1px solid var(--border); }
	& input { margin-top: 2px; }
	&:has(:checked) { background: color-mix(in srgb, var(--accent) 7%, transparent); }
	&:first-child { border-radius: var(--radius) var(--radius) 0 0; }
	&:last-child { border-radius: 0 0 var(--radius) var(--radius); }
	&:only-child { border-radius: var(--radius); }
}
.choice-text { min-width: 0; }
.choice-name { font-weight: 500; }
.choice .hint { overflow-wrap: anywhere; }
.choice .hint > span { display: block; }
.invalid :is(.choices, .catalog) { border-color: var(--danger); }
.catalog { border: 1px solid var(--border); border-radius: var(--radius); }
.resource {
	display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 8px 12px;
	& + & { border-top: 1px solid var(--border); }
}
.resource-name { flex: 0 0 104px; font-weight: 500; overflow-wrap: anywhere; }
.permission { display: inline-flex; gap: 6px; align-items: center; margin: 0; font-weight: 400; cursor: pointer; }
.permission.outside { color: var(--muted); text-decoration: line-through; cursor: default; }
.expiry-choice { display: flex; flex-wrap: wrap; gap: 8px; }
.expiry-choice > * { flex: 1 1 180px; }
.more {
	margin: 0 0 18px;
	& summary { width: fit-content; font-weight: 600; cursor: pointer; }
	& > div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; margin-top: 12px; }
	& .field { margin: 0; }
	& .field-networks { grid-column: 1 / -1; }
}
.more:has(+ .summary[hidden]) { margin-bottom: 0; }
.warning {
	margin: 0 0 16px; padding: 10px 12px; border-radius: 6px; border-inline-start: 3px solid var(--warn);
	background: color-mix(in srgb, var(--warn) 10%, transparent);
}
.secret-head { display: flex; justify-content: space-between; margin-bottom: 4px; }
.secret-label { font-weight: 600; }
.said { color: var(--good); font-size: 13px; }
.secret-row { display: flex; gap: 8px; align-items: stretch; margin-bottom: 8px; }
.secret {
	flex: 1; padding: 8px 10px; border: 1px solid var(--control); border-radius: 6px; background: var(--raised); font-size: 13px; line-height: 20px;
	overflow-wrap: anywhere; user-select: all;
}

@container (max-width: 760px) {
	table, tbody, tr, td { display: block; }
	thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
	tr { position: relative; padding: 12px 16px; }
	tr + tr { border-top: 1px solid var(--border); }
	tr + tr td { border: 0; }
	td, td:first-child { width: auto; max-width: none; padding: 0; }
	td.name { margin-bottom: 10px; }
	.name :is(.label, .description) { padding-inline-end: 40px; }
	td.access { max-width: none; }
	td:is(.access, .created, .used, .expires) { display: grid; grid-template-columns: 104px 1fr; column-gap: 12px; padding: 3px 0; }
	td:is(.access, .created, .used, .expires)::before { content: attr(data-label); grid-row: 1 / span 2; color: var(--muted); font-size: 12px; line-height: 20px; }
	td:is(.access, .created, .used, .expires) > * { grid-column: 2; min-width: 0; }
	.first, .patterns { white-space: normal; overflow-wrap: anywhere; }
	td.actions { position: absolute; top: 8px; inset-inline-end: 10px; width: auto; }
}
@container (max-width: 480px) {
	.toolbar { flex-direction: column-reverse; align-items: stretch; }
	.toolbar input { max-width: none; }
	.toolbar .primary { margin: 0; }
}
@media (max-width: 480px) {
	dialog { width: calc(100vw - 16px); max-height: calc(100dvh - 16px); }
	dialog :is(header, .body, footer) { padding-inline: 16px; }
	dialog footer button { flex: 1; }
	.more > div { grid-template-columns: 1fr; }
	.secret-row { flex-direction: column; }
	.resource-name { flex-basis: 100%; }
}
@media (prefers-reduced-motion: no-preference) {
	button, .menu summary { transition: background-color .12s, border-color .12s; }
}
`;

let shared;
function sheet() {
	if (!shared) {
		shared = new CSSStyleSheet();
		shared.replaceSync(STYLE);
	}
	return shared;
}

customElements.define('api-tokens', ApiTokens);
