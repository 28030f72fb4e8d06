/*
 * upsert.c
 *		Refuse INSERT ... ON CONFLICT into the view tokens.
 *
 * The insert trigger refuses a label that is in use, with an error that names the
 * token which has it, before the server looks for a conflict.  So ON CONFLICT
 * could not do what it says.  It could not return the text of the existing token
 * either.  This hook sees the clause, which a trigger does not.  The planner gets
 * a statement after views and rules have been applied: its target is the table, but
 * the view is still in the range table, whatever view or rule led to it.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "nodes/parsenodes.h"
#include "optimizer/planner.h"
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "hooks/hooks.h"

static planner_hook_type previous_planner = NULL;

static bool
inserts_into_tokens(const Query *query)
{
	Oid			tokens = get_relname_relid("tokens", get_namespace_oid("apitoken", true));
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		if (((RangeTblEntry *) lfirst(lc))->relid == tokens)
			return OidIsValid(tokens) && apitoken_installed();
	}
	return false;
}

static void
refuse_upsert(const Query *query)
{
	ListCell   *lc;

	foreach(lc, query->cteList)
	{
		Node	   *common = ((CommonTableExpr *) lfirst(lc))->ctequery;

		if (IsA(common, Query))
			refuse_upsert((Query *) common);
	}
	/* what an INSERT reads is in a range table of its own */
	if (query->onConflict != NULL && inserts_into_tokens(query))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("INSERT with ON CONFLICT is not supported for tokens"),
				 apitoken_errhint("Use INSERT or create_token().  If the label is in use (23505), use UPDATE or regenerate_token() on the token that has it.",
								  "Use POST without \"on_conflict\" and \"Prefer: resolution\".  If the label is in use (23505), use PATCH or /rpc/regenerate_token on the token that has it.")));
}

static PlannedStmt *
plan_without_upsert(APITOKEN_PLAN_PARAMETERS)
{
	refuse_upsert(query);
	return (previous_planner ? previous_planner : standard_planner) (APITOKEN_PLAN_ARGUMENTS);
}

void
apitoken_upsert_init(void)
{
	previous_planner = planner_hook;
	planner_hook = plan_without_upsert;
}
