/*
 * plan.c
 *		The paths of tables with policies.
 *
 * The policies are put before the other conditions: see condition.c.
 *
 * A scan may also use an index for a condition of the query, and let the policy
 * remove rows afterwards.  EXPLAIN ANALYZE and the statistics views show how
 * many rows were removed, and so how many rows of other tenants satisfy the
 * condition.  Therefore the hook replaces the paths of tables with these policies
 * by paths that read either all rows or only rows that the caller sees.  One of
 * these is in merge.c: it reads the rows of several owners in order.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "nodes/pathnodes.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "utils/lsyscache.h"

#include "identity/identity.h"

static set_rel_pathlist_hook_type previous_pathlist = NULL;

/* Does this expression call a policy function that limits what the caller sees? */
static bool
calls_policy(Node *node, void *support)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr))
	{
		Oid			function = ((FuncExpr *) node)->funcid;

		if (get_func_support(function) == *(Oid *) support && apitoken_limits_rows(function))
			return true;
	}
	return expression_tree_walker(node, calls_policy, support);
}

/* Does a policy give a condition on the first column of this index? */
static bool
is_limited(PlannerInfo *root, IndexOptInfo *index, List *policies)
{
	ListCell   *lc;

	foreach(lc, policies)
	{
		FuncExpr   *call = (FuncExpr *) ((RestrictInfo *) lfirst(lc))->clause;

		if (!IsA(call, FuncExpr))
			continue;
		for (int i = 0; i < list_length(call->args); i++)
		{
			if (match_index_to_operand(list_nth(call->args, i), 0, index) &&
				apitoken_index_condition(root, call, i, index, 0) != NULL)
				return true;
		}
	}
	return false;
}

/*
 * Make the paths again, with two differences.  An index is used alone only if a
 * policy gives a condition on its first column, which is then part of all its
 * scans.  For an OR only if it is in a policy: then each scan has a condition of
 * the policy too.  Joins do not use indexes, and no condition uses ctid.
 *
 * While the server makes the paths, what it must not use is hidden from it.
 */
static void
replace_paths(PlannerInfo *root, RelOptInfo *rel, List *policies, List *usable)
{
	List	   *restrictions = rel->baserestrictinfo;
	List	   *joins = rel->joininfo;
	bool		has_eclass_joins = rel->has_eclass_joins;
	int			count = list_length(rel->indexlist);
	List	  **index_restrictions = palloc(count * sizeof(List *));
	bool	   *optional_keys = palloc(count * sizeof(bool));
	ListCell   *lc;

	foreach(lc, rel->indexlist)
	{
		IndexOptInfo *index = lfirst(lc);
		int			i = foreach_current_index(lc);

		index_restrictions[i] = index->indrestrictinfo;
		optional_keys[i] = index->amoptionalkey;
		if (!is_limited(root, index, policies))
		{
			index->indrestrictinfo = NIL;
			index->amoptionalkey = false;
		}
	}
	rel->baserestrictinfo = usable;
	rel->joininfo = NIL;
	rel->has_eclass_joins = false;

	rel->pathlist = NIL;
	rel->partial_pathlist = NIL;
	add_path(rel, create_seqscan_path(root, rel, rel->lateral_relids, 0));
	create_index_paths(root, rel);
	apitoken_add_merge_paths(root, rel, policies, usable);

	rel->baserestrictinfo = restrictions;
	rel->joininfo = joins;
	rel->has_eclass_joins = has_eclass_joins;
	foreach(lc, rel->indexlist)
	{
		IndexOptInfo *index = lfirst(lc);

		index->indrestrictinfo = index_restrictions[foreach_current_index(lc)];
		index->amoptionalkey = optional_keys[foreach_current_index(lc)];
	}
}

/*
 * Put the policies before the other conditions, for a table and for its indexes,
 * whose lists may lack some.  In a member of a UNION ALL, the planner has the
 * conditions of the outer query before the policies.
 */
static void
put_first(RelOptInfo *rel, List *policies, List *others)
{
	ListCell   *lc;

	rel->baserestrictinfo = list_concat_copy(policies, others);
	foreach(lc, rel->indexlist)
	{
		IndexOptInfo *index = lfirst(lc);
		List	   *ordered = NIL;
		ListCell   *lr;

		foreach(lr, rel->baserestrictinfo)
		{
			if (list_member_ptr(index->indrestrictinfo, lfirst(lr)))
				ordered = lappend(ordered, lfirst(lr));
		}
		index->indrestrictinfo = ordered;
	}
}

/* Is this one of the extension's tables?  Users' tables with policies must not become slower. */
static bool
is_in_extension(Oid relation)
{
	Oid			schema = get_rel_namespace(relation);

	return schema == get_namespace_oid("apitoken", true) || schema == get_namespace_oid("apitoken_internal", true);
}

static void
plan_paths(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	static const Oid support_arguments[] = {INTERNALOID};
	List	   *policies = NIL;
	List	   *others = NIL;
	List	   *usable;
	Oid			support;
	ListCell   *lc;

	if (previous_pathlist)
		previous_pathlist(root, rel, rti, rte);
	if (rte->rtekind != RTE_RELATION || rte->relkind != RELKIND_RELATION || rte->securityQuals == NIL ||
		IS_DUMMY_REL(rel) || !is_in_extension(rte->relid))
		return;
	support = apitoken_find_function("apitoken_internal", "policy_support", 1, support_arguments);
	if (!OidIsValid(support))
		return;
	foreach(lc, rel->baserestrictinfo)
	{
		RestrictInfo *restriction = lfirst(lc);

		if (calls_policy((Node *) restriction->clause, &support))
			policies = lappend(policies, restriction);
		else
			others = lappend(others, restriction);
	}
	if (policies == NIL)
		return;
	put_first(rel, policies, others);
	if (rte->inh || rte->tablesample != NULL)
		return;
	usable = list_copy(policies);
	foreach(lc, others)
	{
		RestrictInfo *restriction = lfirst(lc);

		/* UPDATE ... WHERE CURRENT OF changes a row that the caller has read */
		if (IsA(restriction->clause, CurrentOfExpr))
			return;
		if (!restriction_is_or_clause(restriction))
			usable = lappend(usable, restriction);
	}
	replace_paths(root, rel, policies, usable);
}

void
apitoken_plan_init(void)
{
	apitoken_merge_init();
	previous_pathlist = set_rel_pathlist_hook;
	set_rel_pathlist_hook = plan_paths;
}
