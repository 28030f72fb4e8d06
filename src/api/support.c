/*
 * support.c
 *		verify_all(), for gateways that check many tokens, and explain_verify(), for
 *		those who help users.
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "identity/identity.h"

#define TOKENS_MAX 1000

/*
 * Verify each text with the same snapshot.  Each one is a use of its token, as with
 * verify().
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_verify_all);
Datum
apitoken_verify_all(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ArrayType  *tokens;
	Datum	   *texts;
	bool	   *nulls;
	int			count;
	Snapshot	snapshot;
	MemoryContext row_context;
	MemoryContext caller_context;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	tokens = PG_GETARG_ARRAYTYPE_P(0);
	if (ArrayGetNItems(ARR_NDIM(tokens), ARR_DIMS(tokens)) > TOKENS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cannot verify more than %d tokens at once", TOKENS_MAX),
				 errhint("Divide the tokens among several calls.")));
	deconstruct_array(tokens, TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, &count);

	snapshot = apitoken_latest_snapshot();
	row_context = AllocSetContextCreate(CurrentMemoryContext, "apitoken verification", ALLOCSET_DEFAULT_SIZES);
	caller_context = MemoryContextSwitchTo(row_context);
	for (int i = 0; i < count; i++)
	{
		ApitokenVerification verification;
		HeapTupleHeader row;
		HeapTupleData tuple;

		CHECK_FOR_INTERRUPTS();
		apitoken_verify_in_steps(texts[i], nulls[i], NULL, NULL, NULL, snapshot, NULL, &verification);
		apitoken_use(&verification, 1, NULL, true);
		row = DatumGetHeapTupleHeader(apitoken_verification_datum(&verification));
		tuple.t_len = HeapTupleHeaderGetDatumLength(row);
		ItemPointerSetInvalid(&tuple.t_self);
		tuple.t_tableOid = InvalidOid;
		tuple.t_data = row;
		tuplestore_puttuple(result->setResult, &tuple);
		MemoryContextReset(row_context);
	}
	MemoryContextSwitchTo(caller_context);
	UnregisterSnapshot(snapshot);
	if (PointerGetDatum(tokens) != PG_GETARG_DATUM(0))
		explicit_bzero(tokens, VARSIZE_ANY(tokens));
	return (Datum) 0;
}

/*
 * The steps are those of the decision itself (verify.c).  This is no use of the
 * token: nothing is recorded, and no limit counts it.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_explain_verify);
Datum
apitoken_explain_verify(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *permission = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *organization_id = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	inet	   *address = PG_ARGISNULL(3) ? NULL : PG_GETARG_INET_PP(3);
	ApitokenVerification verification;
	List	   *steps = NIL;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	apitoken_verify_in_steps(PG_GETARG_DATUM(0), PG_ARGISNULL(0), permission, organization_id,
							 address, NULL, &steps, &verification);
	apitoken_explain_use(&verification, &steps);
	foreach(lc, steps)
	{
		const ApitokenStep *step = lfirst(lc);
		Datum		values[4];
		bool		nulls[4] = {false};

		values[0] = Int32GetDatum(foreach_current_index(lc) + 1);
		values[1] = CStringGetTextDatum(apitoken_verdicts[step->verdict].name);
		values[2] = BoolGetDatum(step->passed);
		values[3] = CStringGetTextDatum(step->saw);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
