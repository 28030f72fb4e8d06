/*
 * upsert.c
 *		Refuse INSERT ... ON CONFLICT into the view tokens.
 *
 * The insert trigger refuses a label that is in use, with an error that names the
 * token which has it, before the server looks for a conflict.  So ON CONFLICT
 * could not do what it says.  It could not return the text of the existing token
 * either.  This hook sees the clause, which a trigger does not.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"

#include "hooks/hooks.h"

static post_parse_analyze_hook_type previous_parsed = NULL;

static void
refuse_upsert(Query *query)
{
	ListCell   *lc;

	/* statements that are run by others are analyzed with them */
	if (query->utilityStmt != NULL && IsA(query->utilityStmt, ExplainStmt))
	{
		Node	   *explained = ((ExplainStmt *) query->utilityStmt)->query;

		if (explained != NULL && IsA(explained, Query))
			refuse_upsert((Query *) explained);
		return;
	}
	foreach(lc, query->cteList)
	{
		Node	   *common = ((CommonTableExpr *) lfirst(lc))->ctequery;

		if (IsA(common, Query))
			refuse_upsert((Query *) common);
	}
	if (query->onConflict != NULL &&
		rt_fetch(query->resultRelation, query->rtable)->relid ==
		get_relname_relid("tokens", get_namespace_oid("apitoken", true)) &&
		apitoken_installed())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("INSERT with ON CONFLICT is not supported for tokens"),
				 errhint("Use INSERT or create_token().  If the label is in use (23505), use UPDATE or regenerate_token() on the token that has it.")));
}

static void
upsert_parsed(ParseState *pstate, Query *query, APITOKEN_JUMBLE *jumble)
{
	refuse_upsert(query);
	if (previous_parsed)
		previous_parsed(pstate, query, jumble);
}

void
apitoken_upsert_init(void)
{
	previous_parsed = post_parse_analyze_hook;
	post_parse_analyze_hook = upsert_parsed;
}
