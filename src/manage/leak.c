/*
 * leak.c
 *		report_leaked(): texts of tokens that have become known.
 *
 * As with revoke_by_token(), the text is the only authorization needed, and it is
 * no use of the token.  All texts are verified first.  Then the tokens that are not
 * revoked are locked and told in the order of their ids, so that two reports of the
 * same tokens do not deadlock.  The second one finds them revoked.
 *
 * The texts come from outside, and most of them may be none of ours.  About those,
 * the answer says no more than verify() does.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "manage/manage.h"

#define TOKENS_MAX 1000

/* The bytes that are kept of what is said about the place of the leak. */
#define SOURCE_MAX 200
#define URL_MAX 2000

/* A text that was reported. */
typedef struct Leaked
{
	int			number;			/* its place in the array, from 0 */
	ApitokenVerdict verdict;
	pg_uuid_t	id;				/* this and what follows only if the secret is right */
	char	   *masked;
	char	   *organization_id;	/* NULL in a personal token */
	bool		current;		/* is it the current secret? */
	const char *action;
} Leaked;

/* By token, and the texts of one token by their place.  Those of unknown tokens come last. */
static int
compare(const void *a, const void *b)
{
	const Leaked *left = *(Leaked *const *) a;
	const Leaked *right = *(Leaked *const *) b;
	bool		left_known = left->masked != NULL;
	bool		right_known = right->masked != NULL;
	int			order = 0;

	if (left_known != right_known)
		return left_known ? -1 : 1;
	if (left_known)
		order = memcmp(&left->id, &right->id, UUID_LEN);
	return order != 0 ? order : left->number - right->number;
}

/* Verify a text.  What is kept of the token is in the current memory context. */
static void
examine(Datum text, bool isnull, Snapshot snapshot, MemoryContext work_context, Leaked *leaked)
{
	MemoryContext context = MemoryContextSwitchTo(work_context);
	ApitokenVerification verification;

	apitoken_verify_in_steps(text, isnull, NULL, NULL, NULL, snapshot, NULL, &verification);
	MemoryContextSwitchTo(context);
	leaked->verdict = verification.verdict;
	leaked->action = "none";
	if (apitoken_verdicts[verification.verdict].known)
	{
		leaked->id = verification.record.id;
		leaked->masked = pstrdup(verification.record.masked);
		if (verification.record.organization_id != NULL)
			leaked->organization_id = pstrdup(verification.record.organization_id);
		leaked->current = verification.secret == 0;
	}
	MemoryContextReset(work_context);
}

static bool
only_notifies(const char *organization_id)
{
	Datum		id;

	if (organization_id == NULL)
		return false;
	id = CStringGetTextDatum(organization_id);
	return apitoken_execute(APITOKEN_ONLY_NOTIFIES, &id, NULL) > 0;
}

/* Tell the leak of a token, and end the token, unless it has been revoked since it was verified. */
static void
report(Leaked *leaked, const char *source, const char *url)
{
	Datum		id = UUIDPGetDatum(&leaked->id);
	Datum		token = (Datum) 0;
	bool		revokes;
	ApitokenJson leak = {0};

	if (!apitoken_execute_value(APITOKEN_LOCK_LEAKED, &id, NULL, &token))
	{
		leaked->verdict = APITOKEN_REVOKED;
		return;
	}
	revokes = !only_notifies(leaked->organization_id);
	leaked->action = revokes ? "revoked" : "notified";

	compat_push_json(&leak, WJB_BEGIN_OBJECT, NULL);
	apitoken_json_string(&leak, "source", source);
	apitoken_json_string(&leak, "url", url);
	apitoken_json_string(&leak, "secret", leaked->current ? "current" : "previous");
	apitoken_json_string(&leak, "action", leaked->action);
	compat_push_json(&leak, WJB_END_OBJECT, NULL);
	apitoken_write_leak(token, JsonbPGetDatum(JsonbValueToJsonb(leak.result)));

	if (revokes)
		(void) apitoken_revoke_one(&leaked->id, CStringGetTextDatum("leaked"), ' ');
}

static void
put_row(ReturnSetInfo *result, const Leaked *leaked)
{
	bool		known = leaked->masked != NULL;
	Datum		values[6] = {0};
	bool		nulls[6] = {false, !known, !known, false, false, false};

	values[0] = Int32GetDatum(leaked->number + 1);
	if (known)
	{
		values[1] = UUIDPGetDatum(&leaked->id);
		values[2] = CStringGetTextDatum(leaked->masked);
	}
	values[3] = CStringGetTextDatum(known ? "true_positive" : "false_positive");
	values[4] = CStringGetTextDatum(apitoken_verdicts[leaked->verdict].name);
	values[5] = CStringGetTextDatum(leaked->action);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_report_leaked);
Datum
apitoken_report_leaked(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *source = PG_ARGISNULL(1) ? NULL : apitoken_without_secrets(PG_GETARG_DATUM(1), SOURCE_MAX);
	char	   *url = PG_ARGISNULL(2) ? NULL : apitoken_without_secrets(PG_GETARG_DATUM(2), URL_MAX);
	ArrayType  *tokens;
	Datum	   *texts;
	bool	   *nulls;
	int			count;
	Leaked	   *leaked;
	Leaked	  **ordered;
	Snapshot	snapshot;
	MemoryContext row_context;
	MemoryContext caller_context;

	/* A read-only token makes the transaction READ ONLY.  The error must not depend on whose the texts are. */
	(void) apitoken_principal();
	PreventCommandIfReadOnly("apitoken.report_leaked()");
	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	tokens = PG_GETARG_ARRAYTYPE_P(0);
	if (ArrayGetNItems(ARR_NDIM(tokens), ARR_DIMS(tokens)) > TOKENS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cannot report more than %d tokens at once", TOKENS_MAX),
				 errhint("Divide the tokens among several calls.")));
	deconstruct_array(tokens, TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, &count);
	leaked = palloc0((count + 1) * sizeof(Leaked));
	ordered = palloc0((count + 1) * sizeof(Leaked *));

	row_context = AllocSetContextCreate(CurrentMemoryContext, "apitoken leak", ALLOCSET_DEFAULT_SIZES);
	snapshot = apitoken_latest_snapshot();
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		leaked[i].number = i;
		ordered[i] = &leaked[i];
		examine(texts[i], nulls[i], snapshot, row_context, &leaked[i]);
	}
	UnregisterSnapshot(snapshot);

	qsort(ordered, count, sizeof(Leaked *), compare);
	caller_context = MemoryContextSwitchTo(row_context);
	for (int i = 0; i < count && ordered[i]->masked != NULL; i++)
	{
		CHECK_FOR_INTERRUPTS();
		/* a token is told once, by the first of its texts */
		if (i > 0 && ordered[i - 1]->masked != NULL && memcmp(&ordered[i]->id, &ordered[i - 1]->id, UUID_LEN) == 0)
			continue;
		if (ordered[i]->verdict != APITOKEN_REVOKED)
			report(ordered[i], source, url);
		MemoryContextReset(row_context);
	}
	for (int i = 0; i < count; i++)
	{
		put_row(result, &leaked[i]);
		MemoryContextReset(row_context);
	}
	MemoryContextSwitchTo(caller_context);
	if (PointerGetDatum(tokens) != PG_GETARG_DATUM(0))
		explicit_bzero(tokens, VARSIZE_ANY(tokens));
	return (Datum) 0;
}
