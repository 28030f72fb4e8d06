/*
 * write.c
 *		Run the extension's statements as the owner of its tables.
 *
 * Users have no privileges on digests, events, usage and the columns about
 * revocation.  These statements change such data for them, after the caller has
 * checked their authorization.  Each statement is a constant string with
 * parameters, whose plan is saved for the session.  The server analyzes a saved
 * plan again when search_path changes.  Therefore all names in a statement,
 * including operators, are schema-qualified, so that no object of a user can
 * take the place of the intended one.
 *
 * The statements use the latest snapshot, as the server's foreign-key checks do,
 * so that a revocation in a REPEATABLE READ transaction finds the current rows.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "tables/tables.h"

/*
 * Placeholders for the row types of tables, whose OIDs are not fixed: of token_records,
 * for its array type, of organizations, of users.
 */
#define RECORDTYPE InvalidOid
#define RECORDTYPES RECORDARRAYOID
#define ORGANIZATIONTYPE ANYELEMENTOID
#define USERTYPE ANYNONARRAYOID

#define PARAMETERS_MAX 24

typedef struct
{
	const char *sql;
	int			nargs;
	Oid			args[PARAMETERS_MAX];
} Statement;

/* Insert an event.  Parameters $3 to $6 describe the actor. */
#define EVENT_COLUMNS \
	"INSERT INTO apitoken.events (id, at, action, token_id, organization_id, user_id," \
	" actor, actor_token_id, database_user, client_address, details) "

/*
 * Insert the event of a change of an organization or user: $1: id, $2: action, $7: the
 * row as it was, $8: as it is.  `organization` and `user` are expressions, `told` is a
 * condition on the names of the columns, o.key.
 */
#define OWNER_CHANGED(organization, user, told) \
	EVENT_COLUMNS \
	"SELECT $1, pg_catalog.clock_timestamp(), $2, NULL, " organization ", " user ", $3, $4, $5, $6," \
	" pg_catalog.jsonb_build_object('old', pg_catalog.jsonb_object_agg(o.key, o.value), 'new', pg_catalog.jsonb_object_agg(n.key, n.value))" \
	" FROM pg_catalog.jsonb_each(pg_catalog.to_jsonb($7)) o, pg_catalog.jsonb_each(pg_catalog.to_jsonb($8)) n" \
	" WHERE o.key OPERATOR(pg_catalog.=) n.key AND o.value OPERATOR(pg_catalog.<>) n.value AND o.key OPERATOR(pg_catalog." told

/*
 * $1: ids of events, $2: the row of the token of each.  The subquery is always empty.
 * With it, the statement is analyzed again when the columns of the table have changed.
 */
#define TOKENS_OF_EVENTS \
	"ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS g (apitoken_event_id)" \
	" WHERE NOT EXISTS (SELECT FROM apitoken_internal.token_records WHERE false)"

/* Values for each place of a previous secret, n; and conditions, with its bit in ApitokenLastUse.reused. */
#define EACH_PREVIOUS(next) \
	"ARRAY[" next("1", "1") ", " next("2", "2") ", " next("3", "4") ", " next("4", "8") "]"
#define ANY_PREVIOUS(condition) \
	"(" condition("1", "1") " OR " condition("2", "2") " OR " condition("3", "4") " OR " condition("4", "8") ")"
#define TOUCHED(n, bit) "CASE WHEN $4 OPERATOR(pg_catalog.=) " n " THEN $2 ELSE u.previous_last_used_at[" n "] END"
#define FIRST(n, bit) "CASE WHEN $4 OPERATOR(pg_catalog.=) " n " THEN $2 END"
#define GIVEN_PREVIOUS_USE \
	"ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4)," \
	" pg_catalog.unnest($5), pg_catalog.unnest($6)) AS g (token_id, previous_1, previous_2, previous_3, previous_4, reused)"
/* the use after the overlap, and one that has no event yet */
#define REUSED(n, bit) \
	"((g.reused OPERATOR(pg_catalog.&) " bit "::pg_catalog.int2) OPERATOR(pg_catalog.<>) 0" \
	" AND g.previous_" n " OPERATOR(pg_catalog.>) r.previous_expires_at[" n "])"
#define UNTOLD(n, bit) \
	"(" REUSED(n, bit) " AND (r.previous_reused_at[" n "] OPERATOR(pg_catalog.>=) r.previous_expires_at[" n "]) IS NOT TRUE)"
#define TELL(n, bit) \
	"CASE WHEN " UNTOLD(n, bit) " THEN g.previous_" n " ELSE r.previous_reused_at[" n "] END"
#define LATER(n, bit) "GREATEST(u.previous_last_used_at[" n "], g.previous_" n ")"

/* The sum of two JSON objects with numbers. */
#define ADD_REFUSALS(refusals, more) \
	"(SELECT pg_catalog.jsonb_object_agg(s.verdict, s.count) FROM (" \
	"SELECT v.key AS verdict, pg_catalog.sum(v.value::pg_catalog.numeric) AS count FROM (" \
	"SELECT * FROM pg_catalog.jsonb_each_text(" refusals ") UNION ALL" \
	" SELECT * FROM pg_catalog.jsonb_each_text(" more ")) v GROUP BY v.key) s)"

/*
 * Add the usage in `use`, which is of one day, to the row u of token_usage.  Its
 * counts of a day become those of the later day: see APITOKEN_WRITE_USAGE.
 */
#define OF_LATER_DAY(use, sum, known, new) \
	"CASE WHEN u.last_day OPERATOR(pg_catalog.=) " use ".last_day THEN " sum \
	" WHEN u.last_day OPERATOR(pg_catalog.>) " use ".last_day THEN " known " ELSE " new " END"
#define ADD_TOTALS(use) \
	"last_used_at = GREATEST(u.last_used_at, " use ".last_used_at)," \
	" last_used_from = CASE WHEN " use ".last_used_at OPERATOR(pg_catalog.<) u.last_used_at" \
	" OR " use ".last_used_at IS NULL THEN u.last_used_from ELSE " use ".last_used_from END," \
	" accepted = u.accepted OPERATOR(pg_catalog.+) " use ".accepted," \
	" refused = u.refused OPERATOR(pg_catalog.+) " use ".refused"
#define SUM_REFUSALS(use) \
	"CASE WHEN " use ".day_refusals IS NULL THEN u.day_refusals ELSE " ADD_REFUSALS("u.day_refusals", use ".day_refusals") " END"
#define ADD_USE(use) \
	ADD_TOTALS(use) "," \
	" last_day = GREATEST(u.last_day, " use ".last_day)," \
	" day_accepted = " OF_LATER_DAY(use, "u.day_accepted OPERATOR(pg_catalog.+) " use ".accepted", \
									"u.day_accepted", use ".accepted") "," \
	" day_refused = " OF_LATER_DAY(use, "u.day_refused OPERATOR(pg_catalog.+) " use ".refused", \
								   "u.day_refused", use ".refused") "," \
	" day_refusals = " OF_LATER_DAY(use, SUM_REFUSALS(use), "u.day_refusals", use ".day_refusals")

/* the uses in the parameters of APITOKEN_WRITE_SAME_DAY and APITOKEN_WRITE_USAGE */
#define GIVEN_USE \
	"SELECT g.token_id, g.last_day, g.last_used_at, g.accepted, g.refused, g.refusals::pg_catalog.jsonb AS day_refusals, g.last_used_from" \
	" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4)," \
	" pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7))" \
	" AS g (token_id, last_day, last_used_at, accepted, refused, refusals, last_used_from)"
#define USE_PARAMETERS \
	7, {UUIDARRAYOID, DATEARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID, INT8ARRAYOID, TEXTARRAYOID, INETARRAYOID}

/*
 * Idle tokens, and the time since which an idle token was not used.
 *
 * The usage row is locked too.  So no use is recorded between the check and the
 * revocation, and the row is skipped if an open transaction is recording a use.  A
 * token without a usage row is not revoked, because a restore loads tokens before
 * their usage.  Intervals are subtracted in UTC, so the result does not depend on
 * the session's time zone.
 */
#define IDLE_SINCE \
	"pg_catalog.timezone('UTC'::pg_catalog.text, pg_catalog.timezone('UTC'::pg_catalog.text, $2) OPERATOR(pg_catalog.-) o.idle_timeout)"
#define IDLE_TOKENS \
	" FROM apitoken.organizations o, apitoken_internal.token_records r, apitoken.token_usage u" \
	" WHERE o.idle_timeout IS NOT NULL AND o.suspended_at IS NULL" \
	" AND r.organization_id OPERATOR(pg_catalog.=) o.id AND r.revoked_at IS NULL AND r.suspended_at IS NULL" \
	" AND (r.expires_at IS NULL OR r.expires_at OPERATOR(pg_catalog.>) $1)" \
	" AND u.token_id OPERATOR(pg_catalog.=) r.id" \
	" AND GREATEST(r.created_at, r.updated_at, o.resumed_at, u.last_used_at) OPERATOR(pg_catalog.<) " IDLE_SINCE \
	" AND u.token_id OPERATOR(pg_catalog.>) $3 AND r.id OPERATOR(pg_catalog.>) $3" \
	" AND ($4 IS NULL OR (u.token_id OPERATOR(pg_catalog.<=) $4 AND r.id OPERATOR(pg_catalog.<=) $4))"

/*
 * Insert the notification of an event of the token t, unless nobody wants it: for
 * an organization's token to the members whose role includes token:read, and for a
 * personal token to its user.  `id`, `at`, `actor`, `address` and `event` are expressions.
 * Members are read only if the organization wants this event, and no more of them
 * than can be told.
 */
#define REACHABLE "u.email OPERATOR(pg_catalog.<>) '' AND u.suspended_at IS NULL"
/* the same text whatever the session's time zone */
#define IN_UTC(time) \
	"pg_catalog.to_char(pg_catalog.timezone('UTC'::pg_catalog.text, " time "), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"'::pg_catalog.text)"
#define NOTIFY(id, at, actor, address, event) NOTIFY_MORE(id, at, actor, address, event, "")
/* `more` is what follows the payload: an operator and its operand */
#define NOTIFY_MORE(id, at, actor, address, event, more) \
	"INSERT INTO apitoken.notifications (id, created_at, event, token_id, organization_id, user_id, payload, recipients," \
	" recipient_ids, next_attempt_at)" \
	" SELECT " id ", " at ", " event ", t.id, t.organization_id, t.user_id, pg_catalog.jsonb_build_object(" \
	"'event', " event ", 'at', " IN_UTC(at) ", 'token_id', t.id, 'organization_id', t.organization_id, 'organization_name', r.name," \
	" 'user_id', t.user_id, 'label', t.label, 'masked', t.masked, 'role', t.role, 'access', t.access," \
	" 'created_by', t.created_by, 'created_by_name', t.created_by_name, 'created_at', " IN_UTC("t.created_at") "," \
	" 'expires_at', " IN_UTC("t.expires_at") "," \
	" 'actor', " actor ", 'client_address', " address ", 'reason', t.revoke_reason)" more ", r.addresses, r.ids, " at \
	" FROM t, LATERAL (" \
	"SELECT o.name, a.addresses, a.ids FROM apitoken.organizations o, LATERAL (" \
	"SELECT pg_catalog.array_agg(d.email) AS addresses, pg_catalog.array_agg(d.id) AS ids" \
	" FROM (SELECT DISTINCT ON (l.email COLLATE pg_catalog.\"C\") l.email, l.id FROM (SELECT u.email, u.id" \
	" FROM apitoken.memberships m, apitoken.users u" \
	" WHERE m.organization_id OPERATOR(pg_catalog.=) o.id AND apitoken_internal.role_allows(m.role, 'token:read')" \
	" AND u.id OPERATOR(pg_catalog.=) m.user_id AND " REACHABLE " LIMIT 1000) l" \
	" ORDER BY l.email COLLATE pg_catalog.\"C\", l.id) d) a" \
	" WHERE o.id OPERATOR(pg_catalog.=) t.organization_id AND " event " OPERATOR(pg_catalog.=) ANY (o.notify)" \
	" UNION ALL SELECT NULL, ARRAY[u.email], ARRAY[u.id] FROM apitoken.users u" \
	" WHERE u.id OPERATOR(pg_catalog.=) t.user_id AND " event " OPERATOR(pg_catalog.=) ANY (u.notify) AND " REACHABLE ") r" \
	" WHERE r.addresses IS NOT NULL"

/* When a token that expires later than this from now is the first to be told. */
#define EXPIRY_DUE(before) \
	"(SELECT r.expires_at OPERATOR(pg_catalog.-) '" before "'::pg_catalog.interval FROM apitoken_internal.token_records r" \
	" WHERE r.revoked_at IS NULL AND r.expires_at OPERATOR(pg_catalog.>) ($1 OPERATOR(pg_catalog.+) '" before "'::pg_catalog.interval)" \
	" ORDER BY r.expires_at LIMIT 1)"

/* A notification is given up after so many attempts, which is after about three days. */
#define ATTEMPTS_MAX "20"

/* Notifications among which a claim searches first: more than can be claimed at once. */
#define OLDEST_MAX "2000"

/*
 * The number of networks that are kept of a token.  One that was seen in so many is
 * used from everywhere: no further one is kept or told, until retention removes one.
 */
#define NETWORKS_MAX "32"

#define AND_NEXT " AND id OPERATOR(pg_catalog.>) $3 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED"

static const Statement statements[APITOKEN_STATEMENTS] = {
	[APITOKEN_LOCK_ORGANIZATION] = {
		"SELECT FROM apitoken.organizations WHERE id OPERATOR(pg_catalog.=) $1 FOR KEY SHARE",
		1, {TEXTOID}
	},
	/*
	 * Creations of tokens run one by one where their number is limited.  This does not
	 * wait for those that only need the organization to exist.  Returns the limit.
	 */
	[APITOKEN_LOCK_PLACES] = {
		"SELECT COALESCE(max_tokens, 2147483647) FROM apitoken.organizations"
		" WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
		1, {TEXTOID}
	},
	[APITOKEN_LOCK_USER] = {
		"SELECT FROM apitoken.users WHERE id OPERATOR(pg_catalog.=) $1 FOR KEY SHARE",
		1, {TEXTOID}
	},
	[APITOKEN_ENSURE_USER] = {
		"INSERT INTO apitoken.users (id) SELECT $1 WHERE NOT EXISTS ("
		"SELECT FROM apitoken_internal.deleted_users WHERE id OPERATOR(pg_catalog.=) $1 OR id OPERATOR(pg_catalog.=) $2)"
		" ON CONFLICT (id) DO NOTHING",
		2, {TEXTOID, TEXTOID}
	},
	[APITOKEN_REMEMBER_DELETED] = {
		"INSERT INTO apitoken_internal.deleted_users (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET deleted_at = excluded.deleted_at",
		1, {TEXTOID}
	},
	[APITOKEN_LOCK_TOKEN] = {
		"SELECT FROM apitoken_internal.token_records WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
		1, {UUIDOID}
	},
	[APITOKEN_REGENERATE] = {
		"UPDATE apitoken_internal.token_records SET digest = $2, digest_scheme = $3, masked = $4, expires_at = $5,"
		" regenerated_at = pg_catalog.now(), imported_as = NULL,"
		" previous_expires_at = $6, previous_replaced_at = $7, previous_digest_scheme = $8, previous_digest = $9"
		" WHERE id OPERATOR(pg_catalog.=) $1",
		9, {UUIDOID, BYTEAOID, INT2OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID,
		INT2ARRAYOID, BYTEAOID}
	},
	[APITOKEN_END_OVERLAP] = {
		"UPDATE apitoken_internal.token_records SET previous_expires_at = $2 WHERE id OPERATOR(pg_catalog.=) $1",
		2, {UUIDOID, TIMESTAMPTZARRAYOID}
	},
	[APITOKEN_REVOKE] = {
		"UPDATE apitoken_internal.token_records SET revoked_at = pg_catalog.clock_timestamp(), revoked_by = $2, revoke_reason = $3"
		" WHERE id OPERATOR(pg_catalog.=) $1 AND revoked_at IS NULL",
		3, {UUIDOID, TEXTOID, TEXTOID}
	},
	/* The row of a token, unless it is revoked. */
	[APITOKEN_LOCK_LEAKED] = {
		"SELECT r FROM apitoken_internal.token_records r WHERE r.id OPERATOR(pg_catalog.=) $1 AND r.revoked_at IS NULL"
		" FOR NO KEY UPDATE",
		1, {UUIDOID}
	},
	[APITOKEN_ONLY_NOTIFIES] = {
		"SELECT FROM apitoken.organizations WHERE id OPERATOR(pg_catalog.=) $1 AND on_leak OPERATOR(pg_catalog.=) 'notify'",
		1, {TEXTOID}
	},
	/*
	 * $6 is true if the caller bypasses the policies.  Otherwise the caller may
	 * revoke the tokens of organizations $7 and of user $8, and by an index only
	 * those are read.  The rows are locked in the order of their ids, so that two
	 * such statements do not deadlock.
	 */
	[APITOKEN_REVOKE_MATCHING] = {
		"UPDATE apitoken_internal.token_records SET revoked_at = pg_catalog.clock_timestamp(), revoked_by = $1, revoke_reason = $2"
		" WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM apitoken_internal.token_records"
		" WHERE revoked_at IS NULL"
		" AND ($3 IS NULL OR organization_id OPERATOR(pg_catalog.=) $3)"
		" AND ($4 IS NULL OR user_id OPERATOR(pg_catalog.=) $4)"
		" AND ($5 IS NULL OR created_by OPERATOR(pg_catalog.=) $5)"
		" AND ($6 OR id OPERATOR(pg_catalog.=) ANY (pg_catalog.array_cat("
		"ARRAY(SELECT id FROM apitoken_internal.token_records WHERE revoked_at IS NULL AND organization_id OPERATOR(pg_catalog.=) ANY ($7)),"
		" ARRAY(SELECT id FROM apitoken_internal.token_records WHERE revoked_at IS NULL AND user_id OPERATOR(pg_catalog.=) $8))))"
		" ORDER BY id FOR NO KEY UPDATE))",
		8, {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, TEXTARRAYOID, TEXTOID}
	},
	[APITOKEN_END_MEMBERSHIPS_OF_USER] = {
		"DELETE FROM apitoken.memberships WHERE user_id OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[APITOKEN_END_MEMBERSHIPS_IN] = {
		"DELETE FROM apitoken.memberships WHERE organization_id OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[APITOKEN_LOCK_ROLE] = {
		"SELECT FROM ONLY apitoken_internal.role_records WHERE name OPERATOR(pg_catalog.=) $1 FOR KEY SHARE",
		1, {TEXTOID}
	},
	[APITOKEN_MEMBERS_WITH_ROLE] = {
		"SELECT FROM apitoken.memberships WHERE role OPERATOR(pg_catalog.=) $1 LIMIT 1",
		1, {TEXTOID}
	},
	[APITOKEN_DEFAULTS_TO_ROLE] = {
		"SELECT FROM apitoken.organizations WHERE default_role OPERATOR(pg_catalog.=) $1 LIMIT 1",
		1, {TEXTOID}
	},
	/* $1: ids of the events, $2: the tokens */
	[APITOKEN_CREATED] = {
		"WITH t AS (SELECT apitoken_event_id, created_at, id, organization_id, user_id, masked, label FROM " TOKENS_OF_EVENTS "),"
		" usage AS (INSERT INTO apitoken.token_usage (token_id) SELECT id FROM t ON CONFLICT (token_id) DO NOTHING) "
		EVENT_COLUMNS
		"SELECT apitoken_event_id, created_at, 'create', id, organization_id, user_id, $3, $4, $5, $6,"
		" pg_catalog.jsonb_build_object('masked', masked, 'label', label) FROM t",
		6, {UUIDARRAYOID, RECORDTYPES, TEXTOID, UUIDOID, NAMEOID, INETOID}
	},
	/* A token of another system, with its event.  It has its digest, so the trigger keeps the row as it is. */
	[APITOKEN_IMPORT] = {
		"WITH token AS (INSERT INTO apitoken_internal.token_records (id, created_at, updated_at, expires_at, revoked_at,"
		" revoke_reason, digest_scheme, digest, organization_id, user_id, label, access, role, permissions, metadata, masked, imported_as)"
		" VALUES ($1, $2, pg_catalog.now(), $3, $4, CASE WHEN $4 IS NOT NULL THEN 'imported' END, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)),"
		" digest AS (INSERT INTO apitoken_internal.foreign_digests (token_id, format, lookup_key, digest, salt)"
		" VALUES ($1, $15, $16, $17, $18)),"
		" usage AS (INSERT INTO apitoken.token_usage (token_id, last_used_at) VALUES ($1, $19) ON CONFLICT (token_id) DO NOTHING) "
		EVENT_COLUMNS
		"VALUES ($20, pg_catalog.now(), 'import', $1, $7, $8, $21, $22, $23, $24,"
		" pg_catalog.jsonb_build_object('masked', $14, 'label', $9, 'imported_as', $15))",
		24, {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT2OID, BYTEAOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
			TEXTOID, TEXTARRAYOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, BYTEAOID, BYTEAOID, TIMESTAMPTZOID, UUIDOID, TEXTOID,
		UUIDOID, NAMEOID, INETOID}
	},
	/* $1: tokens, $2: schemes, $3: digests.  This never waits: a row that is locked is left for the next use. */
	[APITOKEN_WRITE_FAST_DIGESTS] = {
		"UPDATE apitoken_internal.foreign_digests f SET fast_digest_scheme = g.scheme, fast_digest = g.digest"
		" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3)) AS g (token_id, scheme, digest)"
		" WHERE f.token_id OPERATOR(pg_catalog.=) g.token_id"
		" AND f.token_id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT token_id FROM apitoken_internal.foreign_digests"
		" WHERE token_id OPERATOR(pg_catalog.=) ANY ($1) FOR NO KEY UPDATE SKIP LOCKED))",
		3, {UUIDARRAYOID, INT2ARRAYOID, BYTEAARRAYOID}
	},
	/* Of tokens that no longer exist.  While there are no tokens at all, a restore may not have loaded them yet. */
	[APITOKEN_REMOVE_FOREIGN] = {
		"DELETE FROM apitoken_internal.foreign_digests WHERE token_id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT f.token_id FROM apitoken_internal.foreign_digests f"
		" WHERE EXISTS (SELECT FROM apitoken_internal.token_records)"
		" AND NOT EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id OPERATOR(pg_catalog.=) f.token_id)"
		" LIMIT $1 FOR UPDATE OF f SKIP LOCKED))",
		1, {INT8OID}
	},
	/* $7: the row as it was; $8: the action */
	[APITOKEN_CHANGED] = {
		EVENT_COLUMNS
		"SELECT $1, ($2).updated_at, $8, ($2).id, ($2).organization_id, ($2).user_id, $3, $4, $5, $6,"
		" pg_catalog.jsonb_build_object('masked', ($2).masked, 'label', ($2).label,"
		"  'old', pg_catalog.jsonb_object_agg(o.key, o.value), 'new', pg_catalog.jsonb_object_agg(n.key, n.value))"
		" FROM pg_catalog.jsonb_each(pg_catalog.to_jsonb($7)) o, pg_catalog.jsonb_each(pg_catalog.to_jsonb($2)) n"
		" WHERE o.key OPERATOR(pg_catalog.=) n.key AND o.value OPERATOR(pg_catalog.<>) n.value"
		" AND o.key OPERATOR(pg_catalog.<>) ALL ('{digest,digest_scheme,previous_digest,previous_digest_scheme,previous_replaced_at,regenerated_at,updated_at}'::pg_catalog.text[])",
		8, {UUIDOID, RECORDTYPE, TEXTOID, UUIDOID, NAMEOID, INETOID, RECORDTYPE, TEXTOID}
	},
	/* The name is the application's. */
	[APITOKEN_ORGANIZATION_CHANGED] = {
		OWNER_CHANGED("($8).id", "NULL", "<>) ALL ('{id,name,created_at,resumed_at}'::pg_catalog.text[])"),
		8, {UUIDOID, TEXTOID, TEXTOID, UUIDOID, NAMEOID, INETOID, ORGANIZATIONTYPE, ORGANIZATIONTYPE}
	},
	[APITOKEN_USER_CHANGED] = {
		OWNER_CHANGED("NULL", "($8).id", "=) 'suspended_at'"),
		8, {UUIDOID, TEXTOID, TEXTOID, UUIDOID, NAMEOID, INETOID, USERTYPE, USERTYPE}
	},
	/* $7: the time; $8: what is known of the leak */
	[APITOKEN_LEAKED] = {
		EVENT_COLUMNS
		"SELECT $1, $7, 'leak', ($2).id, ($2).organization_id, ($2).user_id, $3, $4, $5, $6,"
		" pg_catalog.jsonb_build_object('masked', ($2).masked, 'label', ($2).label) OPERATOR(pg_catalog.||) $8",
		8, {UUIDOID, RECORDTYPE, TEXTOID, UUIDOID, NAMEOID, INETOID, TIMESTAMPTZOID, JSONBOID}
	},
	[APITOKEN_HAS_USAGE] = {
		"SELECT FROM apitoken.token_usage WHERE token_id OPERATOR(pg_catalog.=) $1",
		1, {UUIDOID}
	},
	[APITOKEN_HAS_DAY] = {
		"SELECT FROM apitoken_internal.token_days WHERE token_id OPERATOR(pg_catalog.=) $1 AND day OPERATOR(pg_catalog.=) $2",
		2, {UUIDOID, DATEOID}
	},
	/* This never waits.  It skips locked rows, which APITOKEN_REMOVE_ORPHANS and APITOKEN_REMOVE_FOREIGN remove later. */
	[APITOKEN_FORGET_USAGE] = {
		"WITH digest AS (DELETE FROM apitoken_internal.foreign_digests WHERE token_id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT token_id FROM apitoken_internal.foreign_digests WHERE token_id OPERATOR(pg_catalog.=) $1 FOR UPDATE SKIP LOCKED))),"
		" daily AS (DELETE FROM apitoken_internal.token_days WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT ctid FROM apitoken_internal.token_days WHERE token_id OPERATOR(pg_catalog.=) $1 FOR UPDATE SKIP LOCKED))) "
		"DELETE FROM apitoken.token_usage WHERE token_id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT token_id FROM apitoken.token_usage WHERE token_id OPERATOR(pg_catalog.=) $1 FOR UPDATE SKIP LOCKED))",
		1, {UUIDOID}
	},
	/* This never waits.  It does nothing if the row is locked. */
	[APITOKEN_TOUCH_USAGE] = {
		"UPDATE apitoken.token_usage u SET last_used_at = $2, last_used_from = $3, accepted = accepted OPERATOR(pg_catalog.+) 1,"
		" previous_last_used_at = CASE WHEN $4 OPERATOR(pg_catalog.=) 0 THEN u.previous_last_used_at ELSE " EACH_PREVIOUS(TOUCHED) " END"
		" WHERE token_id OPERATOR(pg_catalog.=) (SELECT token_id FROM apitoken.token_usage"
		" WHERE token_id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE SKIP LOCKED)",
		4, {UUIDOID, TIMESTAMPTZOID, INETOID, INT4OID}
	},
	/*
	 * For a token without a usage row, for example after a partial restore.  Only
	 * the transaction that locks the token's row inserts, so this never waits.
	 */
	[APITOKEN_ADD_USAGE] = {
		"INSERT INTO apitoken.token_usage (token_id, last_used_at, last_used_from, accepted, previous_last_used_at)"
		" SELECT id, $2, $3, 1, CASE WHEN $4 OPERATOR(pg_catalog.>) 0"
		" THEN " EACH_PREVIOUS(FIRST) " END FROM apitoken_internal.token_records"
		" WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE SKIP LOCKED ON CONFLICT (token_id) DO NOTHING",
		4, {UUIDOID, TIMESTAMPTZOID, INETOID, INT4OID}
	},
	/*
	 * The use of tokens that were used before on the same day.  Most flushes need no
	 * more: they change one row of a token, and look it up once.  Returns the ids of
	 * these tokens.  APITOKEN_WRITE_USAGE writes the use of the others.
	 *
	 * Neither can deadlock: there is only one flush at a time, and no other statement
	 * waits for a row of this table while it has another one locked.
	 *
	 * The parameters of both are arrays in the order of the token ids, which is about
	 * the order of the pages, with each token once: $1 token ids, $2 days, $3 times of
	 * last use, $4 numbers of accepted uses, $5 of refused uses, $6 these by verdict,
	 * as JSON, $7 addresses of last use.
	 */
	[APITOKEN_WRITE_SAME_DAY] = {
		"UPDATE apitoken.token_usage u SET " ADD_TOTALS("g") ","
		" day_accepted = u.day_accepted OPERATOR(pg_catalog.+) g.accepted,"
		" day_refused = u.day_refused OPERATOR(pg_catalog.+) g.refused,"
		" day_refusals = " SUM_REFUSALS("g")
		" FROM (" GIVEN_USE ") g WHERE u.token_id OPERATOR(pg_catalog.=) g.token_id AND u.last_day OPERATOR(pg_catalog.=) g.last_day"
		" RETURNING u.token_id",
		USE_PARAMETERS
	},
	/*
	 * Existing rows are updated by UPDATE, which writes less than ON CONFLICT DO
	 * UPDATE does.  The ON CONFLICT clause handles rows that others insert at the
	 * same time.  No row is inserted for a token that no longer exists.
	 *
	 * Of the day of this use and the last one before, the earlier goes to token_days,
	 * unless they are the same, or a trigger has prevented the update.
	 *
	 * The planner does not know how many rows there are.  "IS TRUE" keeps it from a
	 * nested loop over those that were updated: it makes a hash table instead.
	 */
	[APITOKEN_WRITE_USAGE] = {
		"WITH given AS MATERIALIZED (" GIVEN_USE
		"), updated AS ("
		"UPDATE apitoken.token_usage u SET " ADD_USE("g")
		" FROM given g WHERE u.token_id OPERATOR(pg_catalog.=) g.token_id"
		" RETURNING u.token_id"
		"), earlier AS ("
		"INSERT INTO apitoken_internal.token_days AS d (token_id, day, accepted, refused, refusals)"
		" SELECT e.* FROM given g JOIN apitoken.token_usage u ON u.token_id OPERATOR(pg_catalog.=) g.token_id, LATERAL ("
		"SELECT u.token_id, u.last_day, COALESCE(u.day_accepted, 0), COALESCE(u.day_refused, 0), u.day_refusals"
		" WHERE u.last_day OPERATOR(pg_catalog.<) g.last_day"
		" UNION ALL SELECT g.token_id, g.last_day, g.accepted, g.refused, g.day_refusals WHERE u.last_day OPERATOR(pg_catalog.>) g.last_day) e"
		" WHERE u.last_day OPERATOR(pg_catalog.<>) g.last_day"
		" AND (g.token_id OPERATOR(pg_catalog.=) ANY (SELECT token_id FROM updated)) IS TRUE"
		" ON CONFLICT (token_id, day) DO UPDATE SET"
		" accepted = d.accepted OPERATOR(pg_catalog.+) excluded.accepted,"
		" refused = d.refused OPERATOR(pg_catalog.+) excluded.refused,"
		" refusals = CASE WHEN excluded.refusals IS NULL THEN d.refusals ELSE " ADD_REFUSALS("d.refusals", "excluded.refusals") " END"
		") "
		"INSERT INTO apitoken.token_usage AS u (token_id, last_day, last_used_at, last_used_from, accepted, day_accepted,"
		" refused, day_refused, day_refusals)"
		" SELECT g.token_id, g.last_day, g.last_used_at, g.last_used_from, g.accepted, g.accepted, g.refused, g.refused, g.day_refusals FROM given g"
		" WHERE NOT (g.token_id OPERATOR(pg_catalog.=) ANY (SELECT token_id FROM updated))"
		" AND EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id OPERATOR(pg_catalog.=) g.token_id)"
		" ON CONFLICT (token_id) DO UPDATE SET " ADD_USE("excluded"),
		USE_PARAMETERS
	},
	/*
	 * The last uses of previous secrets, after the two above: $1 token ids, $2
	 * to $5 times, $6 which of them are after the overlap.
	 */
	[APITOKEN_WRITE_PREVIOUS_USE] = {
		"UPDATE apitoken.token_usage u SET previous_last_used_at = " EACH_PREVIOUS(LATER)
		" FROM " GIVEN_PREVIOUS_USE " WHERE u.token_id OPERATOR(pg_catalog.=) g.token_id",
		6, {UUIDARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT2ARRAYOID}
	},
	/*
	 * The use of previous secrets after their overlap: the change leaves an event, once
	 * for each secret.  These never wait: a token whose row is locked is left out.
	 */
	[APITOKEN_TELL_REUSE] = {
		"UPDATE apitoken_internal.token_records r SET previous_reused_at = " EACH_PREVIOUS(TELL)
		" FROM " GIVEN_PREVIOUS_USE " WHERE r.id OPERATOR(pg_catalog.=) g.token_id AND " ANY_PREVIOUS(UNTOLD)
		" AND r.id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM apitoken_internal.token_records"
		" WHERE id OPERATOR(pg_catalog.=) ANY ($1) AND revoked_at IS NULL FOR NO KEY UPDATE SKIP LOCKED))",
		6, {UUIDARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT2ARRAYOID}
	},
	[APITOKEN_REVOKE_REUSED] = {
		"UPDATE apitoken_internal.token_records SET revoked_at = pg_catalog.clock_timestamp(), revoked_by = NULL, revoke_reason = 'reuse'"
		" WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT r.id FROM " GIVEN_PREVIOUS_USE
		" JOIN apitoken_internal.token_records r ON r.id OPERATOR(pg_catalog.=) g.token_id"
		" JOIN apitoken.organizations o ON o.id OPERATOR(pg_catalog.=) r.organization_id AND o.revoke_on_reuse"
		" WHERE r.revoked_at IS NULL AND " ANY_PREVIOUS(REUSED) " FOR NO KEY UPDATE OF r SKIP LOCKED))",
		6, {UUIDARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT2ARRAYOID}
	},
	[APITOKEN_STORE_BUILT_IN_ROLE] = {
		"INSERT INTO apitoken_internal.role_records SELECT * FROM apitoken_internal.built_in_roles"
		" WHERE name OPERATOR(pg_catalog.=) $1 ON CONFLICT (name) DO NOTHING",
		1, {TEXTOID}
	},
	/* The catalog, unless each of the patterns $1 is in it as it stands: then it need not be read. */
	[APITOKEN_CATALOG] = {
		"SELECT pg_catalog.array_agg(name ORDER BY name) FROM apitoken.permissions WHERE EXISTS ("
		"SELECT FROM pg_catalog.unnest($1) p (name) WHERE NOT EXISTS ("
		"SELECT FROM apitoken.permissions k WHERE k.name OPERATOR(pg_catalog.=) p.name))"
		" HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0",
		1, {TEXTARRAYOID}
	},
	[APITOKEN_STORE_ROLE] = {
		"INSERT INTO apitoken_internal.role_records VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING",
		4, {TEXTOID, TEXTOID, TEXTARRAYOID, NAMEOID}
	},
	[APITOKEN_REPLACE_ROLE] = {
		"UPDATE ONLY apitoken_internal.role_records SET description = $2, permissions = $3, database_role = $4"
		" WHERE name OPERATOR(pg_catalog.=) $1",
		4, {TEXTOID, TEXTOID, TEXTARRAYOID, NAMEOID}
	},
	[APITOKEN_LOCK_OWN_PRIVILEGES] = {
		"LOCK TABLE apitoken_internal.own_privileges IN SHARE ROW EXCLUSIVE MODE",
		0, {0}
	},
	[APITOKEN_ADD_OWN_PRIVILEGE] = {
		"INSERT INTO apitoken_internal.own_privileges (database_role, privilege) VALUES ($1, $2) ON CONFLICT DO NOTHING",
		2, {TEXTOID, TEXTOID}
	},
	[APITOKEN_REMOVE_OWN_PRIVILEGE] = {
		"DELETE FROM apitoken_internal.own_privileges"
		" WHERE database_role OPERATOR(pg_catalog.=) $1 AND privilege OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, TEXTOID}
	},

	/*
	 * Housekeeping, in batches.  These statements never wait for a row.  They
	 * skip locked rows, which the next run processes.
	 */

	/*
	 * Revoke idle tokens with ids greater than $3, and up to $4 unless that is
	 * null.  $1 is the current time; all uses between $5 and $2 are recorded.
	 */
	[APITOKEN_REVOKE_IDLE] = {
		"UPDATE apitoken_internal.token_records SET revoked_at = pg_catalog.clock_timestamp(), revoked_by = NULL, revoke_reason = 'idle'"
		" WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT r.id" IDLE_TOKENS
		" AND $5 OPERATOR(pg_catalog.<) " IDLE_SINCE
		" LIMIT $6 FOR NO KEY UPDATE OF r, u SKIP LOCKED))",
		6, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, UUIDOID, TIMESTAMPTZOID, INT8OID}
	},
	/* Count those that are idle but must not be revoked yet. */
	[APITOKEN_COUNT_SPARED] = {
		"SELECT pg_catalog.count(*)" IDLE_TOKENS
		" AND $5 OPERATOR(pg_catalog.>=) " IDLE_SINCE,
		5, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, UUIDOID, TIMESTAMPTZOID}
	},
	/*
	 * Find and lock the next rows to be removed, at most $2, which are older than $1
	 * and have ids greater than $3.  $4 is an upper bound on the ids of events that old, so that this can
	 * use the primary key.
	 */
	[APITOKEN_FIND_EVENTS] = {
		"SELECT pg_catalog.array_agg(f.id) FROM (SELECT id FROM apitoken.events"
		" WHERE id OPERATOR(pg_catalog.<) $4 AND at OPERATOR(pg_catalog.<) $1" AND_NEXT ") f",
		4, {TIMESTAMPTZOID, INT8OID, UUIDOID, UUIDOID}
	},
	[APITOKEN_FIND_REVOKED] = {
		"SELECT pg_catalog.array_agg(f.id) FROM (SELECT id FROM apitoken_internal.token_records"
		" WHERE revoked_at OPERATOR(pg_catalog.<) $1" AND_NEXT ") f",
		3, {TIMESTAMPTZOID, INT8OID, UUIDOID}
	},
	[APITOKEN_FIND_EXPIRED] = {
		"SELECT pg_catalog.array_agg(f.id) FROM (SELECT id FROM apitoken_internal.token_records"
		" WHERE expires_at OPERATOR(pg_catalog.<) $1 AND revoked_at IS NULL" AND_NEXT ") f",
		3, {TIMESTAMPTZOID, INT8OID, UUIDOID}
	},
	[APITOKEN_REMOVE_EVENTS] = {
		"DELETE FROM apitoken.events WHERE id OPERATOR(pg_catalog.=) ANY ($1)",
		1, {UUIDARRAYOID}
	},
	[APITOKEN_REMOVE_TOKENS] = {
		"DELETE FROM apitoken_internal.token_records WHERE id OPERATOR(pg_catalog.=) ANY ($1)",
		1, {UUIDARRAYOID}
	},
	/* A quota of a month counts the days from $3 on, so these are kept. */
	[APITOKEN_REMOVE_DAYS] = {
		"DELETE FROM apitoken_internal.token_days WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT d.ctid FROM apitoken_internal.token_days d WHERE d.day OPERATOR(pg_catalog.<) $1"
		" AND (d.day OPERATOR(pg_catalog.<) $3 OR NOT EXISTS (SELECT FROM apitoken_internal.token_records r"
		" WHERE r.id OPERATOR(pg_catalog.=) d.token_id AND r.quota_period OPERATOR(pg_catalog.=) 'month'))"
		" LIMIT $2 FOR UPDATE OF d SKIP LOCKED))",
		3, {DATEOID, INT8OID, DATEOID}
	},
	/* The same of the day in token_usage, with ids greater than $1, and up to $2 unless that is null; $3, $4: the days. */
	[APITOKEN_FORGET_DAYS] = {
		"UPDATE apitoken.token_usage SET last_day = NULL, day_accepted = NULL, day_refused = NULL, day_refusals = NULL"
		" WHERE token_id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT u.token_id FROM apitoken.token_usage u WHERE u.token_id OPERATOR(pg_catalog.>) $1"
		" AND ($2 IS NULL OR u.token_id OPERATOR(pg_catalog.<=) $2) AND u.last_day OPERATOR(pg_catalog.<) $3"
		" AND (u.last_day OPERATOR(pg_catalog.<) $4 OR NOT EXISTS (SELECT FROM apitoken_internal.token_records r"
		" WHERE r.id OPERATOR(pg_catalog.=) u.token_id AND r.quota_period OPERATOR(pg_catalog.=) 'month'))"
		" FOR NO KEY UPDATE OF u SKIP LOCKED))",
		4, {UUIDOID, UUIDOID, DATEOID, DATEOID}
	},
	/* Find the last of the next $2 rows after id $1. */
	[APITOKEN_NEXT_USAGE] = {
		"SELECT token_id FROM apitoken.token_usage WHERE token_id OPERATOR(pg_catalog.>) $1"
		" ORDER BY token_id OFFSET $2 OPERATOR(pg_catalog.-) 1 LIMIT 1",
		2, {UUIDOID, INT8OID}
	},
	/*
	 * Remove usage of tokens that no longer exist, with ids greater than $1, and up
	 * to $2 unless that is null.  This does nothing while there are no tokens at
	 * all, because a restore may not have loaded them yet.
	 */
	[APITOKEN_REMOVE_ORPHANS] = {
		"WITH gone AS (DELETE FROM apitoken.token_usage WHERE token_id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT u.token_id FROM apitoken.token_usage u WHERE u.token_id OPERATOR(pg_catalog.>) $1"
		" AND ($2 IS NULL OR u.token_id OPERATOR(pg_catalog.<=) $2)"
		" AND EXISTS (SELECT FROM apitoken_internal.token_records)"
		" AND NOT EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id OPERATOR(pg_catalog.=) u.token_id"
		" AND r.id OPERATOR(pg_catalog.>) $1 AND ($2 IS NULL OR r.id OPERATOR(pg_catalog.<=) $2))"
		" FOR UPDATE OF u SKIP LOCKED)) RETURNING token_id),"
		" daily AS (DELETE FROM apitoken_internal.token_days WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT d.ctid FROM gone g, apitoken_internal.token_days d"
		" WHERE d.token_id OPERATOR(pg_catalog.=) g.token_id FOR UPDATE OF d SKIP LOCKED)) RETURNING token_id)"
		" SELECT token_id FROM gone UNION ALL SELECT token_id FROM daily",
		2, {UUIDOID, UUIDOID}
	},

	/* Erasure: see src/manage/erase.c. */
	[APITOKEN_DELETE_USER] = {
		"DELETE FROM apitoken.users WHERE id OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	/* A time would tell which pseudonym the id had. */
	[APITOKEN_MARK_FORGOTTEN] = {
		"INSERT INTO apitoken_internal.deleted_users (id, deleted_at) VALUES ($1, '-infinity') ON CONFLICT (id) DO NOTHING",
		1, {TEXTOID}
	},
	/* In these, $1 is the id and $2 the pseudonym. */
	[APITOKEN_ERASE_DELETED] = {
		"UPDATE apitoken_internal.deleted_users SET id = $2 WHERE id OPERATOR(pg_catalog.=) $1",
		2, {TEXTOID, TEXTOID}
	},
	/* Texts, addresses and data of the user's own tokens, and the names of their ids everywhere. */
	[APITOKEN_ERASE_TOKENS] = {
		"UPDATE apitoken_internal.token_records SET"
		" label = CASE WHEN user_id OPERATOR(pg_catalog.=) $1 THEN 'forgotten' ELSE label END,"
		" description = CASE WHEN user_id OPERATOR(pg_catalog.=) $1 THEN NULL ELSE description END,"
		" metadata = CASE WHEN user_id OPERATOR(pg_catalog.=) $1 THEN '{}' ELSE metadata END,"
		" allowed_networks = CASE WHEN user_id OPERATOR(pg_catalog.=) $1 THEN NULL ELSE allowed_networks END,"
		" revoke_reason = CASE WHEN user_id OPERATOR(pg_catalog.=) $1"
		"  AND revoke_reason OPERATOR(pg_catalog.<>) 'owner_deleted' THEN NULL ELSE revoke_reason END,"
		" user_id = CASE WHEN user_id OPERATOR(pg_catalog.=) $1 THEN $2 ELSE user_id END,"
		" created_by_name = CASE WHEN created_by OPERATOR(pg_catalog.=) $1 THEN NULL ELSE created_by_name END,"
		" created_by = CASE WHEN created_by OPERATOR(pg_catalog.=) $1 THEN $2 ELSE created_by END,"
		" revoked_by = CASE WHEN revoked_by OPERATOR(pg_catalog.=) $1 THEN $2 ELSE revoked_by END"
		" WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM apitoken_internal.token_records"
		" WHERE user_id OPERATOR(pg_catalog.=) $1 OR created_by OPERATOR(pg_catalog.=) $1 OR revoked_by OPERATOR(pg_catalog.=) $1"
		" ORDER BY id FOR UPDATE))",
		2, {TEXTOID, TEXTOID}
	},
	[APITOKEN_ERASE_USAGE] = {
		"UPDATE apitoken.token_usage SET last_used_from = NULL WHERE last_used_from IS NOT NULL"
		" AND token_id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM apitoken_internal.token_records"
		" WHERE user_id OPERATOR(pg_catalog.=) $2))",
		2, {TEXTOID, TEXTOID}
	},
	/* Of the user's own tokens, the details may have texts and addresses.  The user's own events have no masked text. */
	[APITOKEN_ERASE_EVENTS] = {
		"UPDATE apitoken.events SET"
		" details = CASE WHEN user_id OPERATOR(pg_catalog.=) $1"
		" THEN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('masked', details OPERATOR(pg_catalog.->) 'masked'))"
		" WHEN (details OPERATOR(pg_catalog.#>>) '{new,revoked_by}') OPERATOR(pg_catalog.=) $1"
		" THEN pg_catalog.jsonb_set(details, '{new,revoked_by}', pg_catalog.to_jsonb($2))"
		" ELSE details END,"
		" user_id = CASE WHEN user_id OPERATOR(pg_catalog.=) $1 THEN $2 ELSE user_id END,"
		" actor = CASE WHEN actor OPERATOR(pg_catalog.=) $1 THEN $2 ELSE actor END,"
		" client_address = NULL"
		" WHERE user_id OPERATOR(pg_catalog.=) $1 OR actor OPERATOR(pg_catalog.=) $1",
		2, {TEXTOID, TEXTOID}
	},
	/* An address that another user has as well stays, as that user's. */
	[APITOKEN_ERASE_RECIPIENT] = {
		"WITH other AS (SELECT u.email, pg_catalog.min(u.id) AS id FROM apitoken.users u"
		" WHERE u.id OPERATOR(pg_catalog.<>) $1 AND u.email OPERATOR(pg_catalog.=) ANY (SELECT r.address"
		" FROM apitoken.notifications n, ROWS FROM (pg_catalog.unnest(n.recipients), pg_catalog.unnest(n.recipient_ids)) r (address, id)"
		" WHERE r.id OPERATOR(pg_catalog.=) $1) GROUP BY u.email),"
		" changed AS (SELECT n.id, pg_catalog.array_agg(r.address ORDER BY r.n) AS recipients, pg_catalog.array_agg(r.id ORDER BY r.n) AS ids"
		" FROM apitoken.notifications n LEFT JOIN LATERAL ("
		"SELECT r.address, CASE WHEN r.id OPERATOR(pg_catalog.=) $1 THEN o.id ELSE r.id END AS id, r.n"
		" FROM ROWS FROM (pg_catalog.unnest(n.recipients), pg_catalog.unnest(n.recipient_ids)) WITH ORDINALITY r (address, id, n)"
		" LEFT JOIN other o ON o.email OPERATOR(pg_catalog.=) r.address"
		" WHERE COALESCE(r.id, '') OPERATOR(pg_catalog.<>) $1 OR o.id IS NOT NULL) r ON true"
		" WHERE $1 OPERATOR(pg_catalog.=) ANY (n.recipient_ids) GROUP BY n.id)"
		" UPDATE apitoken.notifications n SET last_error = NULL,"
		" recipients = CASE WHEN c.recipients[1] IS NULL THEN '{}' ELSE c.recipients END,"
		" recipient_ids = CASE WHEN c.recipients[1] IS NULL THEN '{}' ELSE c.ids END,"
		" next_attempt_at = CASE WHEN c.recipients[1] IS NOT NULL THEN n.next_attempt_at END"
		" FROM changed c WHERE n.id OPERATOR(pg_catalog.=) c.id",
		1, {TEXTOID}
	},
	[APITOKEN_ERASE_NOTIFICATIONS] = {
		"WITH own AS (DELETE FROM apitoken.notifications WHERE user_id OPERATOR(pg_catalog.=) $1)"
		" UPDATE apitoken.notifications SET payload = payload OPERATOR(pg_catalog.||) CASE"
		" WHEN (payload OPERATOR(pg_catalog.->>) 'created_by') OPERATOR(pg_catalog.=) $1"
		" THEN pg_catalog.jsonb_build_object('created_by', $2, 'created_by_name', NULL) ELSE '{}' END OPERATOR(pg_catalog.||)"
		" CASE WHEN (payload OPERATOR(pg_catalog.->>) 'actor') OPERATOR(pg_catalog.=) $1"
		" THEN pg_catalog.jsonb_build_object('actor', $2, 'client_address', NULL) ELSE '{}' END"
		" WHERE user_id IS NULL AND ((payload OPERATOR(pg_catalog.->>) 'created_by') OPERATOR(pg_catalog.=) $1"
		" OR (payload OPERATOR(pg_catalog.->>) 'actor') OPERATOR(pg_catalog.=) $1)",
		2, {TEXTOID, TEXTOID}
	},
	[APITOKEN_FORGOTTEN] = {
		EVENT_COLUMNS
		"VALUES ($1, pg_catalog.clock_timestamp(), 'forget', NULL, NULL, $2, NULL, NULL, $3, $4, '{}')",
		4, {UUIDOID, TEXTOID, NAMEOID, INETOID}
	},
	[APITOKEN_FORGOTTEN_TOKENS] = {
		"SELECT pg_catalog.array_agg(id ORDER BY id) FROM apitoken_internal.token_records WHERE user_id OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	/* $1: id of the event, $2: the token, $3: the user who acted, $4: the event, $5: the client's address */
	[APITOKEN_NOTIFY] = {
		"WITH t AS NOT MATERIALIZED (SELECT * FROM " TOKENS_OF_EVENTS ") "
		NOTIFY("t.apitoken_event_id", "t.updated_at", "$3", "$5", "$4"),
		5, {UUIDARRAYOID, RECORDTYPES, TEXTOID, TEXTOID, INETOID}
	},
	/* $5: the time; $6: what is known of the leak */
	[APITOKEN_NOTIFY_LEAK] = {
		"WITH t AS NOT MATERIALIZED (SELECT ($2).*) "
		NOTIFY_MORE("$1", "$5", "$3", "$4", "'leak'::pg_catalog.text", " OPERATOR(pg_catalog.||) $6"),
		6, {UUIDOID, RECORDTYPE, TEXTOID, INETOID, TIMESTAMPTZOID, JSONBOID}
	},
	/*
	 * The coming expiry of a token is told a week and a day before.  expiry_notified_at
	 * tells which of the two is done, also after the expiry has changed.  A token that
	 * was created later than that is not told.  $1 is the current time.  If the clock was
	 * set back since the last time, that does not count.
	 */
	[APITOKEN_NOTIFY_EXPIRY] = {
		"WITH t AS (SELECT r.* FROM apitoken_internal.token_records r"
		" WHERE r.revoked_at IS NULL AND r.expires_at OPERATOR(pg_catalog.>) $1"
		" AND r.expires_at OPERATOR(pg_catalog.<=) ($1 OPERATOR(pg_catalog.+) '168 hours'::pg_catalog.interval)"
		" AND GREATEST(r.created_at, CASE WHEN r.expiry_notified_at OPERATOR(pg_catalog.<=) $1 THEN r.expiry_notified_at END)"
		" OPERATOR(pg_catalog.<) (r.expires_at OPERATOR(pg_catalog.-)"
		" CASE WHEN r.expires_at OPERATOR(pg_catalog.<=) ($1 OPERATOR(pg_catalog.+) '24 hours'::pg_catalog.interval)"
		" THEN '24 hours'::pg_catalog.interval ELSE '168 hours'::pg_catalog.interval END)"
		" LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED),"
		" told AS (" NOTIFY("apitoken_internal.new_id()", "$1", "NULL::pg_catalog.text", "NULL::pg_catalog.inet", "'expire'::pg_catalog.text") ")"
		" UPDATE apitoken_internal.token_records SET expiry_notified_at = $1 WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM t))",
		2, {TIMESTAMPTZOID, INT8OID}
	},
	/* When is the next one due?  $1 is the current time. */
	[APITOKEN_NEXT_EXPIRY] = {
		"SELECT LEAST(" EXPIRY_DUE("168 hours") ", " EXPIRY_DUE("24 hours") ")",
		1, {TIMESTAMPTZOID}
	},
	/*
	 * Claim at most $1 notifications until $2; $3 is the current time.  This never waits.
	 * Only the first pending notification of a token can be claimed.  The search among
	 * the oldest ones that are due is enough, unless tokens have very many of them.  Then
	 * the first one of each token is looked up, by one probe of an index.
	 */
	[APITOKEN_CLAIM_NOTIFICATIONS] = {
		"WITH RECURSIVE oldest AS MATERIALIZED (SELECT id FROM apitoken.notifications"
		" WHERE next_attempt_at OPERATOR(pg_catalog.<=) $3 ORDER BY next_attempt_at, id LIMIT " OLDEST_MAX "),"
		" found AS MATERIALIZED (SELECT n.id FROM apitoken.notifications n"
		" WHERE n.id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM oldest)) AND n.next_attempt_at OPERATOR(pg_catalog.<=) $3"
		" AND NOT EXISTS (SELECT FROM apitoken.notifications e WHERE e.token_id OPERATOR(pg_catalog.=) n.token_id"
		" AND e.id OPERATOR(pg_catalog.<) n.id AND e.next_attempt_at IS NOT NULL)"
		" ORDER BY n.next_attempt_at, n.id LIMIT $1 FOR NO KEY UPDATE OF n SKIP LOCKED),"
		" firsts (token_id, id) AS ((SELECT token_id, id FROM apitoken.notifications WHERE next_attempt_at IS NOT NULL"
		" AND (SELECT pg_catalog.count(*) FROM oldest) OPERATOR(pg_catalog.=) " OLDEST_MAX
		" AND (SELECT pg_catalog.count(*) FROM found) OPERATOR(pg_catalog.<) $1 ORDER BY token_id, id LIMIT 1)"
		" UNION ALL SELECT n.token_id, n.id FROM firsts f, LATERAL (SELECT token_id, id FROM apitoken.notifications"
		" WHERE next_attempt_at IS NOT NULL AND token_id OPERATOR(pg_catalog.>) f.token_id ORDER BY token_id, id LIMIT 1) n),"
		" more AS MATERIALIZED (SELECT id FROM apitoken.notifications"
		" WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM firsts EXCEPT SELECT id FROM found))"
		" AND next_attempt_at OPERATOR(pg_catalog.<=) $3 ORDER BY next_attempt_at, id"
		" LIMIT $1 OPERATOR(pg_catalog.-) (SELECT pg_catalog.count(*) FROM found) FOR NO KEY UPDATE SKIP LOCKED),"
		" claimed AS (UPDATE apitoken.notifications n SET attempts = LEAST(n.attempts OPERATOR(pg_catalog.+) 1, " ATTEMPTS_MAX "),"
		" next_attempt_at = CASE WHEN n.attempts OPERATOR(pg_catalog.<) " ATTEMPTS_MAX " THEN $2 END,"
		" last_error = CASE WHEN n.attempts OPERATOR(pg_catalog.<) " ATTEMPTS_MAX " THEN n.last_error"
		" ELSE COALESCE(n.last_error, 'no outcome was reported') END"
		" WHERE n.id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM found UNION ALL SELECT id FROM more)) RETURNING n AS notification)"
		" SELECT pg_catalog.array_agg(notification ORDER BY (notification).id) FROM claimed WHERE (notification).next_attempt_at IS NOT NULL",
		3, {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	},
	[APITOKEN_NOTIFICATION_DELIVERED] = {
		"UPDATE apitoken.notifications SET delivered_at = $2, next_attempt_at = NULL"
		" WHERE id OPERATOR(pg_catalog.=) $1 AND delivered_at IS NULL AND attempts OPERATOR(pg_catalog.>) 0",
		2, {UUIDOID, TIMESTAMPTZOID}
	},
	/*
	 * The delay is a minute, and doubles each time, up to six hours.  A mailer whose
	 * lease has ended must not take the row from the one that claimed it since: that
	 * has counted $4 up.
	 */
	[APITOKEN_NOTIFICATION_FAILED] = {
		"UPDATE apitoken.notifications SET last_error = $3, next_attempt_at ="
		" CASE WHEN attempts OPERATOR(pg_catalog.<) " ATTEMPTS_MAX " THEN $2 OPERATOR(pg_catalog.+) pg_catalog.make_interval(mins =>"
		" LEAST(360, 1 OPERATOR(pg_catalog.<<) LEAST(attempts OPERATOR(pg_catalog.-) 1, 9))) END"
		" WHERE id OPERATOR(pg_catalog.=) $1 AND next_attempt_at IS NOT NULL AND attempts OPERATOR(pg_catalog.>) 0"
		" AND ($4 IS NULL OR attempts OPERATOR(pg_catalog.=) $4) RETURNING next_attempt_at",
		4, {UUIDOID, TIMESTAMPTZOID, TEXTOID, INT4OID}
	},
	/* $1: upper bound on the ids, which begin with the time */
	[APITOKEN_REMOVE_NOTIFICATIONS] = {
		"DELETE FROM apitoken.notifications WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT id FROM apitoken.notifications WHERE id OPERATOR(pg_catalog.<) $1 LIMIT $2 FOR UPDATE SKIP LOCKED))",
		2, {UUIDOID, INT8OID}
	},
	/* No lease and no delay ends later than a day from $1, the current time. */
	[APITOKEN_RESUME_NOTIFICATIONS] = {
		"UPDATE apitoken.notifications SET next_attempt_at = $1 WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT id FROM apitoken.notifications"
		" WHERE next_attempt_at OPERATOR(pg_catalog.>) ($1 OPERATOR(pg_catalog.+) '25 hours'::pg_catalog.interval)"
		" LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED))",
		2, {TIMESTAMPTZOID, INT8OID}
	},
	[APITOKEN_HAS_SEEN] = {
		"SELECT FROM apitoken_internal.personal_token_use WHERE organization_id OPERATOR(pg_catalog.=) $1 AND token_id OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, UUIDOID}
	},
	/*
	 * Where personal tokens acted: $1 organizations, $2 token ids, $3 times.  There is
	 * only one flush at a time, and no other statement waits for a row of this table.
	 */
	[APITOKEN_WRITE_SEEN] = {
		"INSERT INTO apitoken_internal.personal_token_use AS s (organization_id, token_id, last_used_at)"
		" SELECT g.organization_id, g.token_id, g.last_used_at"
		" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3))"
		" AS g (organization_id, token_id, last_used_at)"
		" WHERE EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id OPERATOR(pg_catalog.=) g.token_id)"
		" AND EXISTS (SELECT FROM apitoken.organizations o WHERE o.id OPERATOR(pg_catalog.=) g.organization_id)"
		" ON CONFLICT (organization_id, token_id) DO UPDATE SET last_used_at = GREATEST(s.last_used_at, excluded.last_used_at)",
		3, {TEXTARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID}
	},
	[APITOKEN_REMOVE_SEEN] = {
		"DELETE FROM apitoken_internal.personal_token_use WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT s.ctid FROM apitoken_internal.personal_token_use s WHERE s.last_used_at OPERATOR(pg_catalog.<) $1"
		" OR NOT EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id OPERATOR(pg_catalog.=) s.token_id)"
		" OR NOT EXISTS (SELECT FROM apitoken.organizations o WHERE o.id OPERATOR(pg_catalog.=) s.organization_id)"
		" LIMIT $2 FOR UPDATE OF s SKIP LOCKED))",
		2, {TIMESTAMPTZOID, INT8OID}
	},
	[APITOKEN_ERASE_SEEN] = {
		"DELETE FROM apitoken_internal.personal_token_use WHERE token_id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT id FROM apitoken_internal.token_records WHERE user_id OPERATOR(pg_catalog.=) $2))",
		2, {TEXTOID, TEXTOID}
	},
	[APITOKEN_HAS_NETWORK] = {
		"SELECT FROM apitoken_internal.token_networks WHERE token_id OPERATOR(pg_catalog.=) $1 AND network OPERATOR(pg_catalog.=) $2",
		2, {UUIDOID, CIDROID}
	},
	/*
	 * From which networks tokens were used: $1 networks, $2 token ids, $3 times.  A
	 * network that is new is told if $4 is true, but not the first one of a token.
	 * Its row is locked, so that forget_user() finds the notification or prevents it.
	 * This never waits for a row: if one is locked, the next use counts.
	 */
	[APITOKEN_WRITE_NETWORKS] = {
		"WITH given AS MATERIALIZED (SELECT g.network, g.token_id, g.seen_at"
		" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3)) AS g (network, token_id, seen_at)),"
		" known AS MATERIALIZED (SELECT n.ctid, g.seen_at FROM given g JOIN apitoken_internal.token_networks n"
		" ON n.token_id OPERATOR(pg_catalog.=) g.token_id AND n.network OPERATOR(pg_catalog.=) g.network"
		" FOR NO KEY UPDATE OF n SKIP LOCKED),"
		" again AS (UPDATE apitoken_internal.token_networks n SET last_seen_at = GREATEST(n.last_seen_at, k.seen_at)"
		" FROM known k WHERE n.ctid OPERATOR(pg_catalog.=) k.ctid),"
		" fresh AS MATERIALIZED (SELECT g.network, g.token_id, g.seen_at FROM given g WHERE NOT EXISTS ("
		"SELECT FROM apitoken_internal.token_networks n"
		" WHERE n.token_id OPERATOR(pg_catalog.=) g.token_id AND n.network OPERATOR(pg_catalog.=) g.network)),"
		" token AS MATERIALIZED (SELECT r.* FROM apitoken_internal.token_records r"
		" WHERE r.id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT token_id FROM fresh)) AND r.revoked_at IS NULL"
		" ORDER BY r.id FOR NO KEY UPDATE SKIP LOCKED),"
		" numbered AS MATERIALIZED (SELECT f.network, f.token_id, f.seen_at, k.count OPERATOR(pg_catalog.+)"
		" pg_catalog.row_number() OVER (PARTITION BY f.token_id ORDER BY f.seen_at, f.network) AS n"
		" FROM fresh f, LATERAL (SELECT pg_catalog.count(*) AS count FROM apitoken_internal.token_networks n"
		" WHERE n.token_id OPERATOR(pg_catalog.=) f.token_id) k"
		" WHERE f.token_id OPERATOR(pg_catalog.=) ANY (SELECT id FROM token)),"
		" added AS (INSERT INTO apitoken_internal.token_networks (token_id, network, first_seen_at, last_seen_at)"
		" SELECT token_id, network, seen_at, seen_at FROM numbered WHERE n OPERATOR(pg_catalog.<=) " NETWORKS_MAX
		" ON CONFLICT (token_id, network) DO NOTHING RETURNING token_id, network),"
		" t AS (SELECT r.*, f.network, f.seen_at FROM added a, numbered f, token r"
		" WHERE f.token_id OPERATOR(pg_catalog.=) a.token_id AND f.network OPERATOR(pg_catalog.=) a.network"
		" AND f.n OPERATOR(pg_catalog.>) 1 AND r.id OPERATOR(pg_catalog.=) f.token_id AND $4) "
		NOTIFY("apitoken_internal.new_id()", "t.seen_at", "NULL::pg_catalog.text", "t.network",
			   "'" APITOKEN_NEW_NETWORK "'::pg_catalog.text"),
		4, {CIDRARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, BOOLOID}
	},
	/* The latest network of a token stays as long as the token does, so that the next one is news. */
	[APITOKEN_REMOVE_NETWORKS] = {
		"DELETE FROM apitoken_internal.token_networks WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT n.ctid FROM apitoken_internal.token_networks n WHERE (n.last_seen_at OPERATOR(pg_catalog.<) $1"
		" AND EXISTS (SELECT FROM apitoken_internal.token_networks l"
		" WHERE l.token_id OPERATOR(pg_catalog.=) n.token_id AND l.last_seen_at OPERATOR(pg_catalog.>) n.last_seen_at))"
		" OR NOT EXISTS (SELECT FROM apitoken_internal.token_records r WHERE r.id OPERATOR(pg_catalog.=) n.token_id)"
		" LIMIT $2 FOR UPDATE OF n SKIP LOCKED))",
		2, {TIMESTAMPTZOID, INT8OID}
	},
	[APITOKEN_ERASE_NETWORKS] = {
		"DELETE FROM apitoken_internal.token_networks WHERE token_id OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT id FROM apitoken_internal.token_records WHERE user_id OPERATOR(pg_catalog.=) $2))",
		2, {TEXTOID, TEXTOID}
	},
	/* Which of the tokens $1 are of users whom forget_user() has forgotten? */
	[APITOKEN_FORGOTTEN_AMONG] = {
		"SELECT pg_catalog.array_agg(r.id) FROM apitoken_internal.token_records r"
		" WHERE r.id OPERATOR(pg_catalog.=) ANY ($1) AND r.user_id OPERATOR(pg_catalog.~~) 'forgotten-%'"
		" AND EXISTS (SELECT FROM apitoken_internal.deleted_users d WHERE d.id OPERATOR(pg_catalog.=) r.user_id)",
		1, {UUIDARRAYOID}
	},
	/* Count batch $2 of sender $1, unless it or a later one was counted before. */
	[APITOKEN_CLAIM_BATCH] = {
		"INSERT INTO apitoken_internal.usage_senders AS s (sender, batch, received_at, database_user, client_address)"
		" VALUES ($1, $2, pg_catalog.now(), SESSION_USER, pg_catalog.inet_client_addr())"
		" ON CONFLICT (sender) DO UPDATE SET batch = excluded.batch, received_at = excluded.received_at,"
		" database_user = excluded.database_user, client_address = excluded.client_address"
		" WHERE s.batch OPERATOR(pg_catalog.<) excluded.batch",
		2, {UUIDOID, UUIDOID}
	},
	[APITOKEN_BATCH_COUNTED] = {
		"SELECT FROM apitoken_internal.usage_senders WHERE sender OPERATOR(pg_catalog.=) $1 AND batch OPERATOR(pg_catalog.>=) $2",
		2, {UUIDOID, UUIDOID}
	},
	/* Senders that have sent nothing since $1: there is a new one after each crash of a standby. */
	[APITOKEN_REMOVE_SENDERS] = {
		"DELETE FROM apitoken_internal.usage_senders WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT ctid FROM apitoken_internal.usage_senders WHERE received_at OPERATOR(pg_catalog.<) $1 LIMIT $2 FOR UPDATE SKIP LOCKED))",
		2, {TIMESTAMPTZOID, INT8OID}
	},
};

/*
 * Custom plans are for statements that may process very many rows: the numbers
 * of rows may have grown much since the session started.  Generic plans are for
 * statements that find each row by its key, and run in short-lived workers, or for one
 * token as well as for a thousand.
 * For other statements, the server chooses.
 */
static const int plan_options[APITOKEN_STATEMENTS] = {
	[APITOKEN_WRITE_SAME_DAY] = CURSOR_OPT_GENERIC_PLAN,
	[APITOKEN_WRITE_USAGE] = CURSOR_OPT_GENERIC_PLAN,
	[APITOKEN_CREATED] = CURSOR_OPT_GENERIC_PLAN,
	[APITOKEN_NOTIFY] = CURSOR_OPT_GENERIC_PLAN,
	[APITOKEN_REVOKE_MATCHING] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_FORGET_USAGE] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_REVOKE_IDLE] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_COUNT_SPARED] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_FIND_EVENTS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_FIND_REVOKED] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_FIND_EXPIRED] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_REMOVE_EVENTS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_REMOVE_TOKENS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_REMOVE_DAYS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_FORGET_DAYS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_NEXT_USAGE] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_REMOVE_ORPHANS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_ERASE_TOKENS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_ERASE_USAGE] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_ERASE_EVENTS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_NOTIFY_EXPIRY] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_NEXT_EXPIRY] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_CLAIM_NOTIFICATIONS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_REMOVE_NOTIFICATIONS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_RESUME_NOTIFICATIONS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_WRITE_SEEN] = CURSOR_OPT_GENERIC_PLAN,
	[APITOKEN_REMOVE_SEEN] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_ERASE_SEEN] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_WRITE_NETWORKS] = CURSOR_OPT_GENERIC_PLAN,
	[APITOKEN_REMOVE_NETWORKS] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_REMOVE_FOREIGN] = CURSOR_OPT_CUSTOM_PLAN,
	[APITOKEN_WRITE_FAST_DIGESTS] = CURSOR_OPT_GENERIC_PLAN,
	[APITOKEN_ERASE_NETWORKS] = CURSOR_OPT_CUSTOM_PLAN,
};

static SPIPlanPtr plans[APITOKEN_STATEMENTS];

/* The row type of token_records when the plan was made.  It changes on DROP and CREATE EXTENSION, as all row types do. */
static Oid	plan_record_types[APITOKEN_STATEMENTS];

/*
 * The statement that is running.  It tells the triggers on token_records that the
 * extension itself, and not a user, changes the row.
 */
ApitokenStatement apitoken_running_statement = APITOKEN_NO_STATEMENT;

/* The type of a parameter, which may be a placeholder. */
static Oid
parameter_type(Oid type, Oid record_type)
{
	switch (type)
	{
		case RECORDTYPE:
			return record_type;
		case RECORDTYPES:
			return get_array_type(record_type);
		case ORGANIZATIONTYPE:
			return get_rel_type_id(apitoken_table(APITOKEN_ORGANIZATIONS));
		case USERTYPE:
			return get_rel_type_id(apitoken_table(APITOKEN_USERS));
		default:
			return type;
	}
}

static SPIPlanPtr
saved_plan(ApitokenStatement statement)
{
	Oid			record_type = get_rel_type_id(apitoken_table(APITOKEN_TOKEN_RECORDS));
	Oid			args[PARAMETERS_MAX];
	SPIPlanPtr	plan;

	if (plans[statement] != NULL && plan_record_types[statement] == record_type)
		return plans[statement];

	if (plans[statement] != NULL)
	{
		SPI_freeplan(plans[statement]);
		plans[statement] = NULL;
	}
	for (int i = 0; i < statements[statement].nargs; i++)
		args[i] = parameter_type(statements[statement].args[i], record_type);
	plan = SPI_prepare_cursor(statements[statement].sql, statements[statement].nargs, args, plan_options[statement]);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	plans[statement] = plan;
	plan_record_types[statement] = record_type;
	return plan;
}

/* Returns the first column of the first row, in the caller's memory context; 0 if null or no row. */
static Datum
first_value(void)
{
	Form_pg_attribute column;
	Datum		value;
	bool		isnull;

	if (SPI_processed == 0 || SPI_tuptable == NULL)
		return (Datum) 0;
	column = TupleDescAttr(SPI_tuptable->tupdesc, 0);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? (Datum) 0 : SPI_datumTransfer(value, column->attbyval, column->attlen);
}

/* Returns the first column of all rows, which are ids, in the caller's memory context. */
static pg_uuid_t *
all_ids(void)
{
	pg_uuid_t  *ids = SPI_palloc(SPI_processed * sizeof(pg_uuid_t));
	bool		isnull;

	for (uint64 i = 0; i < SPI_processed; i++)
		ids[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	return ids;
}

typedef struct Execution
{
	ApitokenStatement statement;
	Datum	   *values;
	const char *nulls;
	Datum	   *value;			/* receives the first column of the first row, unless NULL */
	pg_uuid_t **ids;			/* receives the first column of all rows, unless NULL */
	uint64		processed;
} Execution;

static void
run_statement(Execution *execution)
{
	int			result;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	result = SPI_execute_snapshot(saved_plan(execution->statement), execution->values, execution->nulls,
								  GetLatestSnapshot(), InvalidSnapshot,
								  false, true, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s", SPI_result_code_string(result));
	execution->processed = SPI_processed;
	if (execution->value != NULL)
		*execution->value = first_value();
	if (execution->ids != NULL)
		*execution->ids = all_ids();
	SPI_finish();
}

/* Run the statement as the tables' owner, with it as the running statement. */
static void
run_as_owner(Execution *execution)
{
	ApitokenStatement outer = apitoken_running_statement;
	Oid			user;
	int			context;
	MemoryContext caller_context = CurrentMemoryContext;

	/* On an error, the abort of the (sub)transaction restores the user. */
	GetUserIdAndSecContext(&user, &context);

	/*
	 * A worker's session user is a superuser.  In a worker, triggers of the tables'
	 * owner must not be able to queue anything until the end of the transaction,
	 * where it would run as superuser.
	 */
	SetUserIdAndSecContext(apitoken_owner(),
						   context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS |
						   (MyBackendType == B_BG_WORKER ? SECURITY_RESTRICTED_OPERATION : 0));
	PG_TRY();
	{
		apitoken_running_statement = execution->statement;
		run_statement(execution);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		apitoken_running_statement = outer;
		MemoryContextSwitchTo(caller_context);
		error = CopyErrorData();

		/* The detail was made for the owner, and can show the row with its digests.  Remove it. */
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
			PG_RE_THROW();
		FlushErrorState();
		error->detail = NULL;
		ReThrowError(error);
	}
	PG_END_TRY();
	apitoken_running_statement = outer;
	SetUserIdAndSecContext(user, context);
}

/*
 * Run a statement as the tables' owner.  `nulls` is as in SPI: 'n' marks a null,
 * and NULL means that there are none.  Returns the number of rows processed.
 */
uint64
apitoken_execute(ApitokenStatement statement, Datum *values, const char *nulls)
{
	Execution	execution = {.statement = statement, .values = values, .nulls = nulls};

	run_as_owner(&execution);
	return execution.processed;
}

/* Run a statement that returns a single non-null value.  Returns false if there is no row. */
bool
apitoken_execute_value(ApitokenStatement statement, Datum *values, const char *nulls, Datum *value)
{
	Execution	execution = {.statement = statement, .values = values, .nulls = nulls, .value = value};

	run_as_owner(&execution);
	return execution.processed > 0;
}

/* Run a statement that returns ids.  Returns how many. */
uint64
apitoken_execute_ids(ApitokenStatement statement, Datum *values, const char *nulls, pg_uuid_t **ids)
{
	Execution	execution = {.statement = statement, .values = values, .nulls = nulls, .ids = ids};

	run_as_owner(&execution);
	return execution.processed;
}
