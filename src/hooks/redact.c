/*
 * redact.c
 *		Texts of tokens in the server's log, and in what shows statements.
 *
 * A secret leaves the server by more ways than a result: in messages about a
 * statement, in the statement that is logged beside them, in the parameters
 * that were bound, in pg_stat_activity and in pg_stat_statements.  Here the
 * secret of each token text is overwritten in all of these; prefix, kind and
 * id stay readable, so that one knows which token to revoke.  What a token
 * looks like within other text is token.c's knowledge.
 *
 * A masked text is as long as the original, so that positions in it stay
 * right: those of errors, and those of a statement within a string of several.
 *
 * The log.  emit_log_hook comes once for each message that goes to the log,
 * before the destinations part (stderr, csvlog, jsonlog, syslog) and before
 * the message is sent to the client, who therefore gets the masked one too.
 * - The message's fields are overwritten where they are: elog.c made each of
 *   them for this message alone and frees them after it.  So this needs no
 *   memory, and cannot fail for want of it.
 * - The statement is debug_query_string, which is the statement itself, and
 *   may be a plan's or in shared memory: that one is replaced by a copy.
 *
 * pg_stat_activity.  Our own entry is overwritten in place as well, by the
 * protocol that its readers know, so that nothing else about it changes (its
 * times, its state, its query id).  The server reports the raw text again and
 * again: when a query or a Parse, Bind or Execute message arrives, and when a
 * parallel worker starts.  The entry's change counter tells whether there can
 * be something new, so that looking costs next to nothing.
 *
 * Other modules take a statement's text from what the server hands to hooks.
 * Those are given a masked copy; the server itself needs the text only for
 * positions.  Most sessions never parse a token, as tokens should be bound as
 * parameters: there, statements are looked at when they are parsed, and never
 * again.
 *
 * In the hook of the log nothing may be raised, locked or looked up: it runs
 * in critical sections, in the middle of aborts, and out of memory.
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

/* in place of a statement that cannot be copied */
#define WITHHELD "(statement withheld: it holds a token, and there is no memory for a masked copy)"

/* how long a word must be to be taken for the rest of a token without its beginning */
#define PIECE_AFTER_DOTS 12
#define PIECE_AFTER_LINE 24

/* How many masked statements a process without messages keeps. */
#define STATEMENTS_KEPT 8

static emit_log_hook_type previous_log = NULL;
static post_parse_analyze_hook_type previous_parsed = NULL;
static planner_hook_type previous_planner = NULL;

/*
 * Was a token in a statement that this session parsed?  True as well if there
 * were statements that nobody looked at.
 */
static bool statements_hold_tokens = false;

static bool
mask_field(char *field)
{
	return field != NULL && apitoken_mask_secrets(field, strlen(field));
}

/*
 * Two kinds of errors quote what is before them, and that can be a token that
 * lacks its beginning, so that nothing tells it from another word:
 *
 * - JSON: fifty characters, in the context: "JSON data, line 1: ...3kV9x".
 *   Whatever long word follows the dots is overwritten.
 * - XML: eighty characters, as a line of their own in the detail.  Lines of
 *   details begin with other things as well (statements have many lines), so
 *   that the word must be longer, and of capitals, small letters and digits.
 *
 * If the word is none of a token, little is lost.
 */
static bool
mask_pieces(char *field, const char *after, size_t least, bool mixed)
{
	bool		found = false;
	char	   *piece = field;

	while (piece != NULL && (piece = strstr(piece, after)) != NULL)
	{
		size_t		length;
		bool		digit = false;
		bool		upper = false;
		bool		lower = false;

		piece += strlen(after);
		for (length = 0;; length++)
		{
			char		c = piece[length];

			if (c >= '0' && c <= '9')
				digit = true;
			else if (c >= 'A' && c <= 'Z')
				upper = true;
			else if (c >= 'a' && c <= 'z')
				lower = true;
			else if (c != '_')
				break;
		}

		/* with a mask behind it, it is a token's head */
		if (length >= least && piece[length] != '*' && (!mixed || (digit && upper && lower)))
		{
			memset(piece, '*', length);
			found = true;
		}
		piece += length;
	}
	return found;
}

/*
 * Where the server itself drops the statement after each message, the copy
 * goes with it.  Other processes (background workers, autovacuum) may leave
 * debug_query_string as it is for long, or put back one that they had saved:
 * the last few copies stay, so that neither dangles, and no more than that.
 */
static char *
copy_of_statement(const char *text, size_t length)
{
	static char *kept[STATEMENTS_KEPT];
	static int	next = 0;
	char	   *copy;

	/* where a failing allocation would be a PANIC, none is tried */
	if (CritSectionCount > 0)
		return NULL;
	copy = MemoryContextAllocExtended(MessageContext != NULL ? MessageContext : TopMemoryContext,
									  length + 1, MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);
	if (copy == NULL)
		return NULL;
	if (MessageContext == NULL)
	{
		if (kept[next] != NULL)
			pfree(kept[next]);
		kept[next] = copy;
		next = (next + 1) % STATEMENTS_KEPT;
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

	copy = copy_of_statement(debug_query_string, length);
	if (copy != NULL)
		apitoken_mask_secrets(copy, length);
	debug_query_string = copy != NULL ? copy : WITHHELD;
	return true;
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
		masked |= mask_pieces(edata->context, "...", PIECE_AFTER_DOTS, false);
		masked |= mask_pieces(edata->detail, "\n", PIECE_AFTER_LINE, true);
		masked |= mask_field(edata->internalquery);
		masked |= mask_statement();
		if (masked)
			apitoken_count(APITOKEN_MASKED, 1);

		/* a statement with a syntax error comes to no other hook */
		apitoken_redact_activity();
	}
	if (previous_log)
		previous_log(edata);
}

/*
 * Mask what pg_stat_activity shows of this process.
 */
void
apitoken_redact_activity(void)
{
	static int	looked_at = 0;
	volatile PgBackendStatus *entry = MyBEEntry;
	char	   *text;
	size_t		length;

	if (entry == NULL || entry->st_changecount == looked_at || !apitoken_mask_logs)
		return;

	/* only this process writes to it */
	text = entry->st_activity_raw;
	length = strnlen(text, pgstat_track_activity_query_size);
	if (apitoken_holds_secret(text, length))
	{
		PGSTAT_BEGIN_WRITE_ACTIVITY(entry);
		apitoken_mask_secrets(text, length);
		PGSTAT_END_WRITE_ACTIVITY(entry);
	}
	looked_at = entry->st_changecount;
}

/*
 * One statement of a string of them, at the location that its tree tells
 * (length 0: to the end; location -1: unknown, then it is all): the string
 * itself, or, if a token is in that part, a copy of the string with that part
 * masked.  Each statement comes here, so that the other parts must not count.
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

	/* whoever calls the server's functions may have mixed up texts and trees */
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
 * The same for a statement that was parsed before: the text that other modules
 * are to see.  A copy is made in the current memory context.
 *
 * If it is that of the portal which is run, the portal gets a copy of its own:
 * the next Execute message reports that, and may come to no hook, since all
 * there is to fetch has been computed.
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
 * What came to no hook: a query of nothing but a comment, and a syntax error
 * where log_min_messages keeps errors out of the log.
 */
static void
redact_ended(XactEvent event, void *arg)
{
	apitoken_redact_activity();
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
	RegisterXactCallback(redact_ended, NULL);

	/* loaded by a statement: there may have been others before it */
	statements_hold_tokens = debug_query_string != NULL;
}
