/*
 * redact.c
 *		Masking of token texts in the server log and in displayed statements.
 *
 * Results are not the only way for a secret to leave the server.  It can also
 * appear in messages about a statement, in the statement that is logged with
 * them, in bound parameters, in pg_stat_activity and in pg_stat_statements.
 * The functions here overwrite the secret of each token text in all of these.
 * Prefix, kind and id stay readable, so that an administrator knows which token
 * to revoke.  token.c finds token texts within other text.
 *
 * A masked text has the length of the original.  Positions in it stay valid:
 * those of errors, and that of a statement in a string of several statements.
 *
 * The log.  emit_log_hook is called once for each message that goes to the log.
 * That is before the message is written to the destinations (stderr, csvlog,
 * jsonlog, syslog) and before it is sent to the client, so the client gets the
 * masked message too.
 * - The fields of the message are overwritten in place.  elog.c has allocated
 *   each of them for this message alone, and frees them afterwards.  Masking
 *   needs no memory, so it cannot fail when memory is exhausted.
 * - The statement is debug_query_string.  It points to the statement itself,
 *   which may belong to a plan or be in shared memory.  Therefore it is replaced
 *   by a masked copy.
 *
 * pg_stat_activity.  The entry of this process is overwritten in place too, by
 * the protocol that its readers follow.  Nothing else in it changes (times,
 * state, query id).  The server reports the original text repeatedly: when a
 * query or a Parse, Bind or Execute message arrives, and when a parallel worker
 * starts.  The change counter of the entry shows whether the text may be new,
 * so that the check is cheap.  For some messages the server calls no hook.
 * After each message it resets MessageContext, so a callback of this context
 * masks what they have left.
 *
 * Other modules get the text of a statement from the arguments of hooks.  They
 * are given a masked copy.  The server itself uses this text only for positions.
 * Most sessions never parse a token, because clients should bind tokens as
 * parameters.  Such a session searches each statement only when it is parsed.
 *
 * The log hook must not raise errors, take locks or read the catalog: it runs
 * in critical sections, during aborts, and when memory is exhausted.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "optimizer/planner.h"
#include "parser/analyze.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/memutils.h"

#include "hooks/hooks.h"

/* replaces a statement that cannot be copied */
#define WITHHELD "(statement withheld: it holds a token, and there is no memory for a masked copy)"

/* minimum length of a word that is masked because it may be the end of a token */
#define FRAGMENT_AFTER_DOTS 12
#define FRAGMENT_AFTER_QUOTE 12
#define FRAGMENT_AFTER_NEWLINE 24

/* number of masked statements that a process without MessageContext keeps */
#define COPIES_MAX 8

static emit_log_hook_type previous_log = NULL;
static post_parse_analyze_hook_type previous_parsed = NULL;
static planner_hook_type previous_planner = NULL;

/*
 * Did a statement that this session parsed contain a token?  Also true if the
 * session parsed statements that were not searched.
 */
static bool statements_hold_tokens = false;

/* Is the end of the client's message watched?  See watch_message(). */
static bool message_watched = false;

static bool
mask_field(char *field)
{
	return field != NULL && apitoken_mask_secrets(field, strlen(field));
}

/* The words after a marker may be ends of tokens: see fragment.c. */
static bool
mask_marked(char *field, const char *marker, size_t min_length, bool mixed)
{
	return field != NULL && apitoken_mask_fragments(field, marker, min_length, mixed);
}

/*
 * Copy a statement, to replace debug_query_string.  In a process that serves a
 * client, the copy is freed with the statement, when the next message arrives.
 * Other processes (background workers, autovacuum) may keep debug_query_string
 * for long, or restore a value that they have saved.  There the last few copies
 * are kept, so that neither pointer dangles, and older ones are freed.
 */
static char *
copy_statement(const char *text, size_t length)
{
	static char *copies[COPIES_MAX];
	static int	next = 0;
	char	   *copy;

	/* in a critical section a failed allocation would be a PANIC */
	if (CritSectionCount > 0)
		return NULL;
	copy = MemoryContextAllocExtended(MessageContext != NULL ? MessageContext : TopMemoryContext,
									  length + 1, MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);
	if (copy == NULL)
		return NULL;
	if (MessageContext == NULL)
	{
		if (copies[next] != NULL)
			pfree(copies[next]);
		copies[next] = copy;
		next = (next + 1) % COPIES_MAX;
	}
	memcpy(copy, text, length + 1);
	return copy;
}

static bool
mask_statement(void)
{
	size_t		length;
	char	   *copy;

	if (debug_query_string == NULL)
		return false;
	length = strlen(debug_query_string);
	if (!apitoken_holds_secret(debug_query_string, length))
		return false;

	copy = copy_statement(debug_query_string, length);
	if (copy != NULL)
		apitoken_mask_secrets(copy, length);
	debug_query_string = copy != NULL ? copy : WITHHELD;
	return true;
}

/* Mask the statement that pg_stat_activity shows for this process. */
static void
mask_activity(void)
{
	static int	seen_changecount = 0;
	volatile PgBackendStatus *entry = MyBEEntry;
	char	   *text;
	size_t		length;

	if (entry == NULL || entry->st_changecount == seen_changecount || !apitoken_mask_logs)
		return;

	/* only this process writes to the entry, so reading needs no protocol */
	text = entry->st_activity_raw;
	length = strnlen(text, pgstat_track_activity_query_size);
	if (apitoken_holds_secret(text, length))
	{
		PGSTAT_BEGIN_WRITE_ACTIVITY(entry);
		apitoken_mask_secrets(text, length);
		PGSTAT_END_WRITE_ACTIVITY(entry);
	}
	seen_changecount = entry->st_changecount;
}

static void message_ended(void *unused);

/*
 * Have message_ended() called when MessageContext is reset.  A callback is
 * called only once, and must not register itself again for the same reset.
 * Therefore it belongs to an empty child context.  The reset deletes the child
 * first, and the parent's callback then makes the next child.
 */
static void
watch_message(void *unused)
{
	static MemoryContextCallback ended = {.func = message_ended};

	message_watched = false;
	MemoryContextRegisterResetCallback(AllocSetContextCreate(MessageContext, "apitoken message",
															 ALLOCSET_SMALL_SIZES), &ended);
	message_watched = true;
}

static void
message_ended(void *unused)
{
	static MemoryContextCallback next = {.func = watch_message};

	mask_activity();
	MemoryContextRegisterResetCallback(MessageContext, &next);
}

/* For hooks: mask pg_stat_activity, now and when the client's message ends. */
void
apitoken_redact_activity(void)
{
	if (!message_watched && MessageContext != NULL)
		watch_message(NULL);
	mask_activity();
}

static void
redact_message(ErrorData *edata)
{
	if (apitoken_mask_logs)
	{
		bool		masked = false;

		masked |= mask_field(edata->message);
		masked |= mask_field(edata->detail);
		masked |= mask_field(edata->detail_log);
		masked |= mask_field(edata->hint);
		masked |= mask_field(edata->context);
		masked |= mask_marked(edata->context, "...", FRAGMENT_AFTER_DOTS, false);
		masked |= mask_marked(edata->detail, "\n", FRAGMENT_AFTER_NEWLINE, true);
		if (edata->sqlerrcode == ERRCODE_INVALID_DATETIME_FORMAT)
			masked |= mask_marked(edata->message, "\"", FRAGMENT_AFTER_QUOTE, true);
		masked |= mask_field(edata->internalquery);
		masked |= mask_statement();
		if (masked)
			apitoken_count(APITOKEN_MASKED, 1);

		/* no other hook is called for a statement with a syntax error */
		mask_activity();
	}
	if (previous_log)
		previous_log(edata);
}

/*
 * Mask one statement in a string of statements.  Its location and length are
 * those of its tree (length 0: to the end; location -1: unknown, which means
 * the whole string).  Returns the string itself, or, if this part contains a
 * token, a copy of the string in which this part is masked.  The other parts
 * are not searched, because this function is called for each statement.
 */
static const char *
redacted_part(const char *text, int location, int length)
{
	size_t		start = location > 0 ? location : 0;
	size_t		end;
	char	   *copy;
	size_t		size;

	if (text == NULL)
		return NULL;

	/* callers of the server's functions may pass a text and the tree of another one */
	if (location >= 0 && length > 0)
		end = strnlen(text, start + length);
	else
		end = strlen(text);
	if (end <= start || !apitoken_holds_secret(text + start, end - start))
		return text;

	size = strlen(text) + 1;
	copy = palloc_extended(size, MCXT_ALLOC_HUGE);
	memcpy(copy, text, size);
	apitoken_mask_secrets(copy + start, end - start);
	return copy;
}

/*
 * Mask the text of a statement that was parsed before, for other modules.  A
 * copy is made in the current memory context.
 *
 * If the text is that of the active portal, the portal gets a copy of its own.
 * The next Execute message reports the text of the portal, and calls no hook if
 * the rows to fetch have been computed already.
 */
const char *
apitoken_redacted(const char *text, int location, int length)
{
	const char *redacted;

	if (!apitoken_mask_logs || !statements_hold_tokens)
		return text;
	redacted = redacted_part(text, location, length);
	if (redacted != text && ActivePortal != NULL && ActivePortal->sourceText == text)
		ActivePortal->sourceText = MemoryContextStrdup(ActivePortal->portalContext, redacted);
	return redacted;
}

static void
redact_parsed(ParseState *pstate, Query *query, APITOKEN_JUMBLE *jumble)
{
	apitoken_redact_activity();
	if (apitoken_mask_logs)
	{
		const char *text = redacted_part(pstate->p_sourcetext, query->stmt_location, query->stmt_len);

		if (text != pstate->p_sourcetext)
			statements_hold_tokens = true;
		pstate->p_sourcetext = text;
	}
	else
		statements_hold_tokens = true;
	if (previous_parsed)
		previous_parsed(pstate, query, jumble);
}

static PlannedStmt *
redact_planner(APITOKEN_PLAN_PARAMETERS)
{
	text = apitoken_redacted(text, query->stmt_location, query->stmt_len);
	if (previous_planner)
		return previous_planner(APITOKEN_PLAN_ARGUMENTS);
	return standard_planner(APITOKEN_PLAN_ARGUMENTS);
}

/*
 * The first message of a session may call no other hook: a comment, or a
 * statement with a syntax error.  Memory is allocated only where an error may
 * be raised.
 */
static void
redact_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT)
		apitoken_redact_activity();
	else
		mask_activity();
}

void
apitoken_redact_init(void)
{
	previous_log = emit_log_hook;
	emit_log_hook = redact_message;
	previous_parsed = post_parse_analyze_hook;
	post_parse_analyze_hook = redact_parsed;
	previous_planner = planner_hook;
	planner_hook = redact_planner;
	RegisterXactCallback(redact_transaction, NULL);

	/* if a statement has loaded the library, earlier ones were not searched */
	statements_hold_tokens = debug_query_string != NULL;
}
