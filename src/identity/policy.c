/*
 * policy.c
 *		Which tokens the caller sees: what the policies ask for each row.
 *
 * Written with operators, "organization_id = ANY (managed organizations) OR
 * user_id = (managed user)", the condition makes the planner think that hardly
 * any row of an organization is seen, also where the query names one of the
 * caller's own; it then reads and sorts all of them for the newest fifty.
 * So the condition is written with functions, and a support function tells
 * the planner
 *
 *	- which index condition each half of the OR amounts to, for a query that
 *	  names no owner;
 *	- that all rows of an owner that the query names are seen: they mostly
 *	  are, and an ordered index scan can stop at the fiftieth; and what to
 *	  ask the index besides, so that nothing is read where none is.
 *
 * What the caller manages is found out once in each statement.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_opfamily_d.h"
#include "catalog/pg_operator_d.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/pathnodes.h"
#include "nodes/supportnodes.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "identity/identity.h"

/* A list shows an owner's tokens in order: so many are looked up at once. */
#define AHEAD 64

/* What the caller manages by at least one of these permissions. */
typedef struct Managed
{
	struct Managed *next;
	ArrayType  *permissions;
	ArrayType  *organizations;
	Datum	   *ids;			/* the same, in order */
	int			count;
	text	   *user_id;		/* NULL: nobody's personal tokens */

	/* what manages_token() was asked last, zero in the beginning */
	pg_uuid_t	token_id;
	bool		manages_token;

	/* ids of managed tokens that it may be asked about next */
	pg_uuid_t	ahead[AHEAD];
	int			ahead_count;
	int			lookups;		/* since there was one that it was asked about */
} Managed;

/*
 * What was found out, in a memory context of its own, and when.  PL/pgSQL's
 * expressions are no statements: between two of them this transaction may have
 * written something, or taken it back.
 */
static MemoryContext memory = NULL;
static uint64 generation;
static CommandId command;
static SubTransactionId subtransaction;
static Managed *found;
static int	found_count;

/* With more lists of permissions asked about in a statement, begin anew. */
#define FOUND_MAX 100

static int
compare_texts(const void *a, const void *b)
{
	text	   *left = DatumGetTextPP(*(const Datum *) a);
	text	   *right = DatumGetTextPP(*(const Datum *) b);
	int			llength = VARSIZE_ANY_EXHDR(left);
	int			rlength = VARSIZE_ANY_EXHDR(right);
	int			order = memcmp(VARDATA_ANY(left), VARDATA_ANY(right), Min(llength, rlength));

	return order != 0 ? order : llength - rlength;
}

static void
forget(void)
{
	found = NULL;
	found_count = 0;
	MemoryContextReset(memory);
}

static void
forget_outdated(void)
{
	if (memory == NULL)
		memory = AllocSetContextCreate(TopMemoryContext, "apitoken policies", ALLOCSET_SMALL_SIZES);
	else if (generation == apitoken_identity_generation && command == GetCurrentCommandId(false) &&
			 subtransaction == GetCurrentSubTransactionId())
		return;
	forget();
	generation = apitoken_identity_generation;
	command = GetCurrentCommandId(false);
	subtransaction = GetCurrentSubTransactionId();
}

static Managed *
find_out(ArrayType *permissions)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	List	   *asked = apitoken_strings_from_array(permissions);
	List	   *organizations = NIL;
	const char *user_id = NULL;
	MemoryContext old;
	Managed    *managed;
	ListCell   *lc;

	foreach(lc, asked)
		apitoken_check_permission(lfirst(lc));
	if (principal != NULL && asked != NIL)
	{
		organizations = apitoken_organizations_where(principal, asked);
		user_id = apitoken_managed_user_of(principal, asked);
	}

	/* who is acting may have been settled only now */
	forget_outdated();
	if (found_count >= FOUND_MAX)
		forget();
	old = MemoryContextSwitchTo(memory);
	managed = palloc0(sizeof(Managed));
	managed->permissions = (ArrayType *) PG_DETOAST_DATUM_COPY(PointerGetDatum(permissions));
	managed->organizations = apitoken_strings_to_array(organizations);
	deconstruct_array(managed->organizations, TEXTOID, -1, false, TYPALIGN_INT, &managed->ids, NULL, &managed->count);
	qsort(managed->ids, managed->count, sizeof(Datum), compare_texts);
	managed->user_id = user_id == NULL ? NULL : cstring_to_text(user_id);
	managed->next = found;
	found = managed;
	found_count++;
	MemoryContextSwitchTo(old);
	return managed;
}

static Managed *
managed_by(ArrayType *permissions)
{
	forget_outdated();
	for (Managed *managed = found; managed != NULL; managed = managed->next)
	{
		if (VARSIZE(managed->permissions) == VARSIZE(permissions) &&
			memcmp(managed->permissions, permissions, VARSIZE(permissions)) == 0)
			return managed;
	}
	return find_out(permissions);
}

static bool
manages_organization(const Managed *managed, text *id)
{
	Datum		key = PointerGetDatum(id);

	return managed->count > 0 &&
		bsearch(&key, managed->ids, managed->count, sizeof(Datum), compare_texts) != NULL;
}

static bool
manages_user(const Managed *managed, text *id)
{
	Datum		key = PointerGetDatum(id);
	Datum		user = PointerGetDatum(managed->user_id);

	return managed->user_id != NULL && compare_texts(&key, &user) == 0;
}

PG_FUNCTION_INFO_V1(apitoken_manages_organization);
Datum
apitoken_manages_organization(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(manages_organization(managed_by(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_TEXT_PP(0)));
}

PG_FUNCTION_INFO_V1(apitoken_manages_user);
Datum
apitoken_manages_user(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(manages_user(managed_by(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_TEXT_PP(0)));
}

PG_FUNCTION_INFO_V1(apitoken_manages_owner);
Datum
apitoken_manages_owner(PG_FUNCTION_ARGS)
{
	Managed    *managed;

	if (PG_ARGISNULL(2))
		PG_RETURN_BOOL(false);
	managed = managed_by(PG_GETARG_ARRAYTYPE_P(2));
	PG_RETURN_BOOL((!PG_ARGISNULL(0) && manages_organization(managed, PG_GETARG_TEXT_PP(0))) ||
				   (!PG_ARGISNULL(1) && manages_user(managed, PG_GETARG_TEXT_PP(1))));
}

static bool
is_ahead(Managed *managed, const pg_uuid_t *id)
{
	for (int i = 0; i < managed->ahead_count; i++)
	{
		if (memcmp(&managed->ahead[i], id, sizeof(*id)) == 0)
			return true;
	}
	return false;
}

static bool
look_up(Managed *managed, const pg_uuid_t *id)
{
	Snapshot	snapshot;
	ApitokenOwner owner;
	bool		manages;

	if (managed->count == 0 && managed->user_id == NULL)
		return false;
	snapshot = apitoken_latest_snapshot();
	manages = apitoken_fetch_owner(snapshot, id, &owner) &&
		(owner.kind == APITOKEN_ORGANIZATION ? manages_organization(managed, owner.id) :
		 manages_user(managed, owner.id));

	/* not for a single one, and not again if the last time was for nothing */
	if (manages && ++managed->lookups == 2)
		managed->ahead_count = apitoken_fetch_older(snapshot, &owner, managed->ahead, AHEAD);
	UnregisterSnapshot(snapshot);
	return manages;
}

/*
 * The view asks about a token several times in a row, once for each column.
 * The owner of a token never changes.
 */
PG_FUNCTION_INFO_V1(apitoken_manages_token);
Datum
apitoken_manages_token(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	Managed    *managed = managed_by(PG_GETARG_ARRAYTYPE_P(1));

	if (memcmp(id, &managed->token_id, sizeof(*id)) != 0)
	{
		bool		ahead = is_ahead(managed, id);

		if (ahead)
			managed->lookups = 1;
		managed->manages_token = ahead || look_up(managed, id);
		managed->token_id = *id;
	}
	PG_RETURN_BOOL(managed->manages_token);
}

/* What an index or an InitPlan compares with: in the caller's memory. */
PG_FUNCTION_INFO_V1(apitoken_managed_organizations);
Datum
apitoken_managed_organizations(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));
	PG_RETURN_DATUM(PointerGetDatum(PG_DETOAST_DATUM_COPY(PointerGetDatum(managed_by(PG_GETARG_ARRAYTYPE_P(0))->organizations))));
}

PG_FUNCTION_INFO_V1(apitoken_managed_user);
Datum
apitoken_managed_user(PG_FUNCTION_ARGS)
{
	Managed    *managed;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	managed = managed_by(PG_GETARG_ARRAYTYPE_P(0));
	if (managed->user_id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PointerGetDatum(PG_DETOAST_DATUM_COPY(PointerGetDatum(managed->user_id))));
}

/* ---- for the planner ---- */

/* Does the query say that this is equal to some one value? */
static bool
is_fixed(PlannerInfo *root, Node *expression)
{
	ListCell   *lc;

	if (root == NULL)
		return false;
	foreach(lc, root->eq_classes)
	{
		EquivalenceClass *class = lfirst(lc);
		ListCell   *lm;

		if (!class->ec_has_const)
			continue;
		foreach(lm, class->ec_members)
		{
			if (equal(((EquivalenceMember *) lfirst(lm))->em_expr, expression))
				return true;
		}
	}
	return false;
}

/* Of the two functions with one owner, is it that of organizations? */
static bool
asks_organization(Oid function)
{
	return strcmp(get_func_name(function), "manages_organization") == 0;
}

/* owner = ANY (managed_organizations(...)), or owner = managed_user(...) */
static Expr *
comparison(Oid function, Node *owner, Node *permissions, bool organization, Oid collation)
{
	Oid			array = TEXTARRAYOID;
	Oid			managing = apitoken_find_function(get_namespace_name(get_func_namespace(function)),
												  organization ? "managed_organizations" : "managed_user",
												  1, &array);
	FuncExpr   *managed = makeFuncExpr(managing,
									   organization ? TEXTARRAYOID : TEXTOID,
									   list_make1(copyObject(permissions)),
									   organization ? InvalidOid : collation, InvalidOid, COERCE_EXPLICIT_CALL);
	ScalarArrayOpExpr *any;

	managed->funcvariadic = true;
	if (!organization)
	{
		Expr	   *equal_to = make_opclause(TextEqualOperator, BOOLOID, false, (Expr *) copyObject(owner),
											 (Expr *) managed, InvalidOid, collation);

		((OpExpr *) equal_to)->opfuncid = F_TEXTEQ;
		return equal_to;
	}
	any = makeNode(ScalarArrayOpExpr);
	any->opno = TextEqualOperator;
	any->opfuncid = F_TEXTEQ;
	any->useOr = true;
	any->inputcollid = collation;
	any->args = list_make2(copyObject(owner), managed);
	any->location = -1;
	return (Expr *) any;
}

/* The arguments that are owners: organization, user or both; then permissions. */
static void
set_selectivity(SupportRequestSelectivity *request)
{
	Node	   *owner = linitial(request->args);

	/* of both owners: the OR beside it has said all */
	if (list_length(request->args) == 3 || is_fixed(request->root, owner))
		request->selectivity = 1.0;
	else
	{
		Expr	   *clause = comparison(request->funcid, owner, lsecond(request->args),
										asks_organization(request->funcid), C_COLLATION_OID);

		request->selectivity = clause_selectivity(request->root, (Node *) clause, request->varRelid,
												  request->jointype, request->sjinfo);
	}
}

/* Is this a column of the table whose index is asked about? */
static bool
is_column(IndexOptInfo *index, Node *expression, AttrNumber attribute)
{
	Var		   *var = (Var *) expression;

	return IsA(var, Var) && var->varlevelsup == 0 && var->varno == index->rel->relid &&
		var->varattno == attribute;
}

/*
 * What an index scan may ask instead, or NULL.  The planner believes us: it
 * checks neither that what is compared with can be computed before a row is
 * read, nor that the index's collation tells apart what the function does.
 */
static Node *
index_condition(SupportRequestIndexCondition *request)
{
	FuncExpr   *call = (FuncExpr *) request->node;
	Node	   *owner;
	bool		organization;

	if (!IsA(call, FuncExpr) || request->opfamily != TEXT_BTREE_FAM_OID ||
		!get_collation_isdeterministic(request->indexcollation) ||
		!is_pseudo_constant_for_index(request->root, llast(call->args), request->index))
		return NULL;
	owner = list_nth(call->args, request->indexarg);
	if (list_length(call->args) == 3)
	{
		Oid			table = planner_rt_fetch(request->index->rel->relid, request->root)->relid;

		/* a token whose owner the query names has no other owner */
		if (!is_fixed(request->root, owner) || table != apitoken_table(APITOKEN_TOKEN_RECORDS) ||
			!is_column(request->index, linitial(call->args), Anum_token_records_organization_id) ||
			!is_column(request->index, lsecond(call->args), Anum_token_records_user_id))
			return NULL;
		organization = request->indexarg == 0;
	}
	else
		organization = asks_organization(call->funcid);

	/* the planner would not see that rows of a later column's array come in the array's order */
	if (organization && request->indexcol > 0)
		return NULL;
	request->lossy = false;
	return (Node *) list_make1(comparison(call->funcid, owner, llast(call->args), organization,
										  request->indexcollation));
}

PG_FUNCTION_INFO_V1(apitoken_policy_support);
Datum
apitoken_policy_support(PG_FUNCTION_ARGS)
{
	Node	   *request = (Node *) PG_GETARG_POINTER(0);

	if (IsA(request, SupportRequestSelectivity))
	{
		set_selectivity((SupportRequestSelectivity *) request);
		PG_RETURN_POINTER(request);
	}
	if (IsA(request, SupportRequestIndexCondition))
		PG_RETURN_POINTER(index_condition((SupportRequestIndexCondition *) request));
	PG_RETURN_POINTER(NULL);
}
