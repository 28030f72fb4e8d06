/*
 * condition.c
 *		What the planner is told about a policy.
 *
 * A policy is a call of a function, not an expression of operators, for three
 * reasons:
 *
 *	- Its cost is 0.  The planner puts a leakproof condition of the query before a
 *	  policy that costs more.  It would then be visible whether the policy was
 *	  evaluated, which tells whether a row that the caller may not see satisfies
 *	  the condition.  At equal cost, conditions keep their order, and plan.c puts
 *	  the policies first.
 *	- It is equivalent to an index condition: the caller sees the rows of certain
 *	  owners.  A scan with this condition reads only rows that the caller sees.
 *	- If the query names an owner, the caller mostly sees all rows of this owner.
 *	  For operators the planner would estimate that the caller sees few of them,
 *	  and it would read and sort all rows to return the newest fifty.
 */
#include "postgres.h"

#include "catalog/pg_collation_d.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/pathnodes.h"
#include "nodes/supportnodes.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "identity/identity.h"

/* The values of a column for which a policy function is true. */
typedef enum Values
{
	ANY_OF,						/* the elements of an array */
	ONE,						/* one value; null: none */
	REQUIRED					/* the value that the query requires; null: not this one */
} Values;

/*
 * An argument of a policy function that is a column of the table, and the
 * function that computes the values of the column.  The arguments of that
 * function are the value that the query requires (with REQUIRED), and the
 * permissions, the last argument of the policy function (if it has some).
 */
typedef struct PolicyArgument
{
	const char *policy;
	int			number;
	Oid			type;
	const char *schema;
	const char *function;
	Values		values;
	bool		permissions;
	bool		if_required;	/* only if the query requires a value of the column */
	ApitokenTable table;		/* the function's table; APITOKEN_TABLES: several */
} PolicyArgument;

#define INTERNAL "apitoken_internal"

static const PolicyArgument policy_arguments[] = {
	{"manages_organization", 0, TEXTOID, INTERNAL, "managed_organizations", ANY_OF, true, false, APITOKEN_TABLES},
	{"manages_user", 0, TEXTOID, INTERNAL, "managed_user", ONE, true, false, APITOKEN_TABLES},
	/* a token has one owner: if the query requires this one, the other is null */
	{"manages_record", 0, UUIDOID, INTERNAL, "managed_token", REQUIRED, true, true, APITOKEN_TOKEN_RECORDS},
	{"manages_record", 1, TEXTOID, INTERNAL, "managed_organizations", ANY_OF, true, true, APITOKEN_TOKEN_RECORDS},
	{"manages_record", 2, TEXTOID, INTERNAL, "managed_user", ONE, true, true, APITOKEN_TOKEN_RECORDS},
	{"manages_token", 0, UUIDOID, INTERNAL, "managed_token", REQUIRED, true, true, APITOKEN_TABLES},
	/* all events of a token have the same owner */
	{"manages_event", 0, UUIDOID, INTERNAL, "managed_token_of_events", REQUIRED, true, true, APITOKEN_EVENTS},
	{"is_current_token", 0, UUIDOID, "apitoken", "current_token_id", ONE, false, false, APITOKEN_TABLES},
	{"sees_organization", 0, TEXTOID, INTERNAL, "seen_organizations", ANY_OF, false, false, APITOKEN_ORGANIZATIONS},
	{"sees_members", 0, TEXTOID, INTERNAL, "seen_organizations", ANY_OF, false, false, APITOKEN_MEMBERSHIPS},
	{"sees_user", 0, TEXTOID, INTERNAL, "seen_users", ANY_OF, false, false, APITOKEN_USERS},
};

/* Returns the description of an argument of this function, or NULL. */
static const PolicyArgument *
find_argument(Oid function, int number)
{
	const char *name = get_func_name(function);

	for (int i = 0; i < lengthof(policy_arguments) && name != NULL; i++)
	{
		if (policy_arguments[i].number == number && strcmp(policy_arguments[i].policy, name) == 0)
			return &policy_arguments[i];
	}
	return NULL;
}

/* Returns the constant that the query requires this expression to equal, or NULL. */
Node *
apitoken_required_value(PlannerInfo *root, Node *expression)
{
	ListCell   *lc;

	if (root == NULL)
		return NULL;
	foreach(lc, root->eq_classes)
	{
		EquivalenceClass *class = lfirst(lc);
		Node	   *constant = NULL;
		bool		has_expression = false;
		ListCell   *lm;

		if (!class->ec_has_const)
			continue;
		foreach(lm, class->ec_members)
		{
			EquivalenceMember *member = lfirst(lm);

			if (member->em_is_const)
				constant = (Node *) member->em_expr;
			has_expression = has_expression || equal(member->em_expr, expression);
		}
		if (has_expression && constant != NULL && exprType(constant) == exprType(expression))
			return constant;
	}
	return NULL;
}

/* "column = ANY (function(...))" or "column = function(...)" */
static Expr *
make_comparison(const PolicyArgument *argument, Node *column, Node *required, Node *permissions, Oid collation)
{
	Oid			operator = lookup_type_cache(argument->type, TYPECACHE_EQ_OPR)->eq_opr;
	bool		array = argument->values == ANY_OF;
	Oid			types[2];
	List	   *arguments = NIL;
	FuncExpr   *values;
	ScalarArrayOpExpr *any;

	if (argument->values == REQUIRED)
	{
		types[list_length(arguments)] = argument->type;
		arguments = lappend(arguments, copyObject(required));
	}
	if (argument->permissions)
	{
		types[list_length(arguments)] = TEXTARRAYOID;
		arguments = lappend(arguments, copyObject(permissions));
	}
	values = makeFuncExpr(apitoken_find_function(argument->schema, argument->function,
												 list_length(arguments), types),
						  array ? get_array_type(argument->type) : argument->type, arguments,
						  argument->type == TEXTOID ? collation : InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	values->funcvariadic = OidIsValid(get_func_variadictype(values->funcid));
	if (!array)
	{
		OpExpr	   *equal_to = (OpExpr *) make_opclause(operator, BOOLOID, false, (Expr *) copyObject(column),
													   (Expr *) values, InvalidOid, collation);

		set_opfuncid(equal_to);
		return (Expr *) equal_to;
	}
	any = makeNode(ScalarArrayOpExpr);
	any->opno = operator;
	any->opfuncid = get_opcode(operator);
	any->useOr = true;
	any->inputcollid = collation;
	any->args = list_make2(copyObject(column), values);
	any->location = -1;
	return (Expr *) any;
}

/*
 * If the query requires an owner or a token, the caller mostly sees all of its
 * rows.  The selectivity of a function that is only about this case is that of
 * the condition beside it.
 */
static void
set_selectivity(SupportRequestSelectivity *request)
{
	const PolicyArgument *argument = find_argument(request->funcid, 0);
	Node	   *column = linitial(request->args);

	if (argument == NULL || argument->if_required || apitoken_required_value(request->root, column) != NULL)
		request->selectivity = 1.0;
	else
	{
		Expr	   *clause = make_comparison(argument, column, NULL, llast(request->args),
											 argument->type == TEXTOID ? C_COLLATION_OID : InvalidOid);

		request->selectivity = clause_selectivity(request->root, (Node *) clause, request->varRelid,
												  request->jointype, request->sjinfo);
	}
}

/* Does the caller see all rows of the table of this function? */
static bool
sees_all(const PolicyArgument *argument)
{
	switch (argument->table)
	{
		case APITOKEN_ORGANIZATIONS:
		case APITOKEN_MEMBERSHIPS:
		case APITOKEN_USERS:
			return apitoken_sees_all(argument->table);
		default:
			return false;
	}
}

/*
 * For a function that takes a token's id and owner: are these arguments the
 * columns of the function's table?
 */
static bool
is_about_row(PlannerInfo *root, FuncExpr *call, IndexOptInfo *index, const PolicyArgument *argument)
{
	static const AttrNumber of_token[] = {
		Anum_token_records_id, Anum_token_records_organization_id, Anum_token_records_user_id
	};
	static const AttrNumber of_event[] = {
		Anum_events_token_id, Anum_events_organization_id, Anum_events_user_id
	};
	const AttrNumber *columns = argument->table == APITOKEN_EVENTS ? of_event : of_token;

	if (argument->table != APITOKEN_TOKEN_RECORDS && argument->table != APITOKEN_EVENTS)
		return true;
	if (planner_rt_fetch(index->rel->relid, root)->relid != apitoken_table(argument->table))
		return false;
	for (int i = 0; i < lengthof(of_token); i++)
	{
		Var		   *var = list_nth(call->args, i);

		if (!IsA(var, Var) || var->varlevelsup != 0 || var->varno != index->rel->relid ||
			var->varattno != columns[i])
			return false;
	}
	return true;
}

/*
 * The condition on a column of an index that is equivalent to the call of a
 * policy function with this column as the given argument; NULL if there is none.
 * The planner does not check the condition.  Therefore this function checks that
 * its values can be computed before a row is read, and that the index, like the
 * function, treats values as equal only if their bytes are.
 */
Node *
apitoken_index_condition(PlannerInfo *root, FuncExpr *call, int number, IndexOptInfo *index, int column)
{
	const PolicyArgument *argument = find_argument(call->funcid, number);
	Node	   *owner;
	Node	   *required;
	Oid			collation = index->indexcollations[column];

	if (argument == NULL ||
		index->opfamily[column] != lookup_type_cache(argument->type, TYPECACHE_BTREE_OPFAMILY)->btree_opf ||
		(argument->type == TEXTOID && !get_collation_isdeterministic(collation)) ||
		(argument->permissions && !is_pseudo_constant_for_index(root, llast(call->args), index)) ||
		!is_about_row(root, call, index, argument) ||
		sees_all(argument))
		return NULL;

	owner = list_nth(call->args, number);
	required = apitoken_required_value(root, owner);
	if (argument->if_required &&
		(required == NULL || !is_pseudo_constant_for_index(root, required, index)))
		return NULL;

	/*
	 * With an array for a column that is not the first one, an index scan
	 * returns rows in the order of the array.  The planner would not notice
	 * that for the condition made here.
	 */
	if (argument->values == ANY_OF && column > 0)
		return NULL;
	return (Node *) make_comparison(argument, owner, required, llast(call->args), collation);
}

/* Is this a policy function that limits what the caller sees? */
bool
apitoken_limits_rows(Oid function)
{
	const PolicyArgument *argument = find_argument(function, 0);

	return argument != NULL && !sees_all(argument);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_policy_support);
Datum
apitoken_policy_support(PG_FUNCTION_ARGS)
{
	Node	   *node = (Node *) PG_GETARG_POINTER(0);

	if (IsA(node, SupportRequestCost))
	{
		SupportRequestCost *request = (SupportRequestCost *) node;

		request->startup = 0;
		request->per_tuple = 0;
		PG_RETURN_POINTER(request);
	}
	if (IsA(node, SupportRequestSelectivity))
	{
		set_selectivity((SupportRequestSelectivity *) node);
		PG_RETURN_POINTER(node);
	}
	if (IsA(node, SupportRequestIndexCondition))
	{
		SupportRequestIndexCondition *request = (SupportRequestIndexCondition *) node;
		Node	   *condition = NULL;

		if (IsA(request->node, FuncExpr))
			condition = apitoken_index_condition(request->root, (FuncExpr *) request->node, request->indexarg,
										request->index, request->indexcol);
		if (condition == NULL)
			PG_RETURN_POINTER(NULL);
		request->lossy = false;
		PG_RETURN_POINTER(list_make1(condition));
	}
	PG_RETURN_POINTER(NULL);
}
