/*
 * list.c
 *		Helper functions of list_tokens() and of the view tokens.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "manage/manage.h"

#define PAGE_MAX 1000

/* How long ago a time was, in words. */
APITOKEN_FUNCTION_INFO_V1(apitoken_in_words);
Datum
apitoken_in_words(PG_FUNCTION_ARGS)
{
	static const struct
	{
		int64		seconds;
		const char *unit;
	}			units[] = {
		{365 * SECS_PER_DAY, "year"},
		{30 * SECS_PER_DAY, "month"},
		{SECS_PER_DAY, "day"},
		{SECS_PER_HOUR, "hour"},
		{SECS_PER_MINUTE, "minute"},
	};
	TimestampTz at;
	int64		seconds;

	if (PG_ARGISNULL(0))
		PG_RETURN_TEXT_P(cstring_to_text("never"));
	at = PG_GETARG_TIMESTAMPTZ(0);
	if (TIMESTAMP_NOT_FINITE(at))
		PG_RETURN_NULL();
	seconds = (GetCurrentStatementStartTimestamp() - at) / USECS_PER_SEC;
	for (int i = 0; i < lengthof(units); i++)
	{
		int64		count = seconds / units[i].seconds;

		if (count > 0)
			PG_RETURN_TEXT_P(cstring_to_text(psprintf(INT64_FORMAT " %s%s ago", count, units[i].unit,
													  count == 1 ? "" : "s")));
	}
	PG_RETURN_TEXT_P(cstring_to_text("just now"));
}

/*
 * An ILIKE pattern for a label.  A text with % is a pattern already.  Any other
 * text means "contains", and its characters stand for themselves.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_list_pattern);
Datum
apitoken_list_pattern(PG_FUNCTION_ARGS)
{
	char	   *label;
	StringInfoData pattern;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	label = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (strchr(label, '%') != NULL)
	{
		size_t		length = strlen(label);
		size_t		backslashes = 0;

		while (backslashes < length && label[length - 1 - backslashes] == '\\')
			backslashes++;
		if (backslashes % 2 != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("label pattern must not end with a single backslash"),
					 errhint("Write \"\\\\\" for a backslash in a pattern.  A text without %% is no pattern.")));
		PG_RETURN_TEXT_P(cstring_to_text(label));
	}
	initStringInfo(&pattern);
	appendStringInfoChar(&pattern, '%');
	for (char *c = label; *c != '\0'; c++)
	{
		CHECK_FOR_INTERRUPTS();
		if (*c == '_' || *c == '\\')
			appendStringInfoChar(&pattern, '\\');
		appendStringInfoChar(&pattern, *c);
	}
	appendStringInfoChar(&pattern, '%');
	PG_RETURN_TEXT_P(cstring_to_text(pattern.data));
}

static void
check_status(const char *status)
{
	static const char *const known[] = {"active", "expiring", "expired", "suspended", "policy_refused", "revoked"};

	for (int i = 0; i < lengthof(known); i++)
	{
		if (strcmp(status, known[i]) == 0)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized token status \"%s\"", apitoken_clip(status)),
			 errhint("Use \"active\", \"expiring\", \"expired\", \"suspended\", \"policy_refused\" or \"revoked\".")));
}

/*
 * The number of rows of a page.  The status is checked here too, because this
 * function is called once, even if there are no rows to compare it with.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_list_limit);
Datum
apitoken_list_limit(PG_FUNCTION_ARGS)
{
	int32		size = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT32(0);

	if (!PG_ARGISNULL(1))
		check_status(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	if (size < 1 || size > PAGE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page size is out of range"),
				 errhint("Specify 1 to %d.", PAGE_MAX)));
	PG_RETURN_INT64(size);
}
