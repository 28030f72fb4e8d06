/*
 * masking_fuzz.c
 *		libFuzzer target for the masking of messages of the server, against a
 *		masker that looks at each position anew.
 *
 * An input is a byte (which SQLSTATE) and the fields of a message, separated by zeros.
 */
#include "postgres.h"

#include "fuzz.h"

#include "hooks/redact.c"

/* what redact.c reads of the server */
const char *debug_query_string = NULL;
PgBackendStatus *MyBEEntry = NULL;
int			pgstat_track_activity_query_size = 1024;
MemoryContext MessageContext = NULL;
static MemoryContextData message;
Portal		ActivePortal = NULL;
volatile uint32 CritSectionCount = 0;
emit_log_hook_type emit_log_hook = NULL;
post_parse_analyze_hook_type post_parse_analyze_hook = NULL;
planner_hook_type planner_hook = NULL;
bool		apitoken_mask_logs = true;

static uint64 masked_messages = 0;

void
apitoken_count(ApitokenCounter counter, uint64 by)
{
	require(counter == APITOKEN_MASKED);
	masked_messages += by;
}

static bool
is_digit(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* The end of the letters, digits and `others` from here on. */
static size_t
end_of(const char *text, size_t length, size_t at, const char *others)
{
	while (at < length && (is_digit(text[at]) || (text[at] != '\0' && strchr(others, text[at]) != NULL)))
		at++;
	return at;
}

/* Mask a secret, if it is long enough. */
static void
slow_secret(const char *text, size_t length, size_t start, size_t min_length, const char *others, char *masked)
{
	size_t		end = end_of(text, length, start, others);

	if (end < start + min_length)
		return;
	memset(masked + start, '*', end - start);
	/* so that no comment ends there */
	if (end < length && text[end] == '/')
		masked[end - 1] = '_';
}

/*
 * A secret: what follows the 22 characters of an id after "_org_" or "_usr_", which
 * is after a letter or digit; eight letters and digits or more.  Or one of GitLab's or
 * of Laravel Sanctum's.
 */
static void
slow_secrets(const char *text, size_t length, char *masked)
{
	memcpy(masked, text, length);
	for (size_t at = 1; at + 5 <= length; at++)
	{
		if ((strncasecmp(text + at, "_org_", 5) == 0 || strncasecmp(text + at, "_usr_", 5) == 0) &&
			is_digit(text[at - 1]) && end_of(text, length, at + 5, "") >= at + 5 + 22)
			slow_secret(text, length, at + 5 + 22, 8, "", masked);
	}
	for (size_t at = 0; at + 6 <= length; at++)
	{
		if (memcmp(text + at, "glpat-", 6) == 0)
			slow_secret(text, length, at + 6, 8, "-_.", masked);
	}
	for (size_t at = 1; at < length; at++)
	{
		if (text[at] == '|' && text[at - 1] >= '0' && text[at - 1] <= '9')
			slow_secret(text, length, at + 1, 40, "_", masked);
	}
}

/* A long word that follows a mark may be the end of a token. */
static void
slow_fragments(char *text, const char *mark, size_t min_length, bool mixed)
{
	size_t		length = strlen(text);
	char	   *masked = pstrdup(text);

	for (size_t at = 0; at + strlen(mark) <= length; at++)
	{
		size_t		start = at + strlen(mark);
		size_t		end = start;
		bool		upper = false;
		bool		lower = false;

		if (strncmp(text + at, mark, strlen(mark)) != 0)
			continue;
		while (is_digit(text[end]) || text[end] == '_')
		{
			upper |= text[end] >= 'A' && text[end] <= 'Z';
			lower |= text[end] >= 'a' && text[end] <= 'z';
			end++;
		}
		if (end - start >= min_length && text[end] != '*' && (!mixed || (upper && lower)))
			memset(masked + start, '*', end - start);
	}
	strcpy(text, masked);
}

static char *
slow_mask(const char *text)
{
	char	   *masked = palloc0(strlen(text) + 1);

	slow_secrets(text, strlen(text), masked);
	return masked;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	ErrorData	edata = {0};
	char	  **fields[] = {&edata.message, &edata.detail, &edata.detail_log, &edata.hint, &edata.context, &edata.internalquery};
	char	   *wanted[lengthof(fields)] = {NULL};
	char	   *before[lengthof(fields)] = {NULL};
	char	   *statement = NULL;
	bool		changed = false;
	uint64		count = masked_messages;
	uint8		how;

	if (size == 0)
		return 0;
	how = data[0];
	data++;
	size--;
	edata.sqlerrcode = (how & 1) ? ERRCODE_INVALID_DATETIME_FORMAT : ERRCODE_SYNTAX_ERROR;
	for (int i = 0; i < lengthof(fields) && size > 0; i++)
	{
		before[i] = fuzz_part(&data, &size, '\0');
		*fields[i] = pstrdup(before[i]);
		wanted[i] = slow_mask(before[i]);
	}
	if (size > 0)
		statement = fuzz_part(&data, &size, '\0');
	debug_query_string = statement;

	if (wanted[4] != NULL)
		slow_fragments(wanted[4], "...", 12, false);
	if (wanted[1] != NULL)
		slow_fragments(wanted[1], "\n", 24, true);
	if ((how & 1) && wanted[0] != NULL)
		slow_fragments(wanted[0], "\"", 12, true);

	CritSectionCount = how & 2;
	/* a process with or without a client */
	MessageContext = (how & 4) ? &message : NULL;
	redact_message(&edata);
	CritSectionCount = 0;
	for (int i = 0; i < lengthof(fields); i++)
	{
		require((*fields[i] == NULL) == (wanted[i] == NULL));
		if (wanted[i] == NULL)
			continue;
		require(strcmp(*fields[i], wanted[i]) == 0);
		changed |= strcmp(before[i], wanted[i]) != 0;
		require(!apitoken_holds_secret(*fields[i], strlen(*fields[i])));
	}
	if (statement != NULL)
	{
		char	   *masked = slow_mask(statement);
		bool		holds = strcmp(masked, statement) != 0;

		/* the statement itself may be in shared memory, and does not change */
		require(holds == (debug_query_string != statement));
		require(strcmp(debug_query_string, (holds && (how & 2)) ? WITHHELD : masked) == 0);
		changed |= holds;

		/* a part of it, wherever callers say that it begins and ends */
		{
			size_t		length = strlen(statement);
			int			location = (int) (how % (length + 2)) - 1;
			int			part_length = (how >> 4) % (length + 2);
			size_t		start = Max(location, 0);
			size_t		end = location >= 0 && part_length > 0 ? Min(start + part_length, length) : length;
			char	   *part_masked = pstrdup(statement);

			if (start <= length)
			{
				const char *part = redacted_part(statement, location, part_length);

				if (end > start)
					slow_secrets(statement + start, end - start, part_masked + start);
				require(strcmp(part, part_masked) == 0);
			}
		}
	}
	require(masked_messages == count + changed);
	debug_query_string = NULL;
	fuzz_free_all();
	return 0;
}
