/*
 * policy.c
 *		Functions of the row policies: which tokens the caller sees.
 *
 * The policy could use operators: "organization_id = ANY (managed
 * organizations) OR user_id = (managed user)".  The planner would then estimate
 * that the caller sees few rows of an organization, even if the query names an
 * organization that the caller manages.  It would read and sort all rows of the
 * organization to return the newest fifty.
 *
 * Therefore the policy calls functions, and their support function tells the
 * planner:
 *
 *	- for a query that names no owner, the index condition that each half of
 *	  the OR is equivalent to;
 *	- for a query that names an owner, that the caller sees all rows of this
 *	  owner.  That is mostly true, and an ordered index scan can then stop at
 *	  the fiftieth row.  An additional index condition makes the scan read
 *	  nothing if the caller sees none of these rows.
 *
 * What the caller manages is computed once in each statement.
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

/* A list shows the tokens of an owner in order.  This many ids are prefetched. */
#define PREFETCH_MAX 64

/* The owners for whose tokens the caller has at least one of these permissions. */
typedef struct Managed
{
	struct Managed *next;
	ArrayType  *permissions;
	ArrayType  *organizations;
	Datum	   *ids;			/* elements of organizations, sorted */
	int			count;
	text	   *user_id;		/* owner of personal tokens; NULL: none */

	/* the last argument of manages_token(), initially zero, and the result */
	pg_uuid_t	token_id;
	bool		manages_token;

	/* ids of managed tokens that are likely to be the next arguments */
	pg_uuid_t	prefetched[PREFETCH_MAX];
	int			prefetched_count;
	int			lookups;		/* since a prefetched id was last used */
} Managed;

/*
 * The cache of computed results, in its own memory context, and the state in
 * which it is valid.  The generation alone, which counts statements, is not
 * enough: PL/pgSQL's expressions are not statements, and between two of them
 * this transaction may have written or rolled back rows.
 */
static MemoryContext cache_context = NULL;
static uint64 cache_generation;
static CommandId cache_command;
static SubTransactionId cache_subtransaction;
static Managed *cache;
static int	cache_count;

/* The cache is cleared when it holds so many lists of permissions. */
#define CACHE_MAX 100

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
clear_cache(void)
{
	cache = NULL;
	cache_count = 0;
	MemoryContextReset(cache_context);
}

static void
clear_outdated_cache(void)
{
	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "apitoken policies", ALLOCSET_SMALL_SIZES);
	else if (cache_generation == apitoken_identity_generation &&
			 cache_command == GetCurrentCommandId(false) &&
			 cache_subtransaction == GetCurrentSubTransactionId())
		return;
	clear_cache();
	cache_generation = apitoken_identity_generation;
	cache_command = GetCurrentCommandId(false);
	cache_subtransaction = GetCurrentSubTransactionId();
}

static Managed *
compute_managed(ArrayType *permissions)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	List	   *names = apitoken_strings_from_array(permissions);
	List	   *organizations = NIL;
	const char *user_id = NULL;
	MemoryContext old;
	Managed    *managed;
	ListCell   *lc;

	foreach(lc, names)
		apitoken_check_permission(lfirst(lc));
	if (principal != NULL && names != NIL)
	{
		organizations = apitoken_organizations_where(principal, names);
		user_id = apitoken_manageable_user(principal, names);
	}

	/* apitoken_principal() may have fixed the identity only now */
	clear_outdated_cache();
	if (cache_count >= CACHE_MAX)
		clear_cache();
	old = MemoryContextSwitchTo(cache_context);
	managed = palloc0(sizeof(Managed));
	managed->permissions = (ArrayType *) PG_DETOAST_DATUM_COPY(PointerGetDatum(permissions));
	managed->organizations = apitoken_strings_to_array(organizations);
	deconstruct_array(managed->organizations, TEXTOID, -1, false, TYPALIGN_INT, &managed->ids, NULL, &managed->count);
	qsort(managed->ids, managed->count, sizeof(Datum), compare_texts);
	managed->user_id = user_id == NULL ? NULL : cstring_to_text(user_id);
	managed->next = cache;
	cache = managed;
	cache_count++;
	MemoryContextSwitchTo(old);
	return managed;
}

static Managed *
get_managed(ArrayType *permissions)
{
	clear_outdated_cache();
	for (Managed *managed = cache; managed != NULL; managed = managed->next)
	{
		if (VARSIZE(managed->permissions) == VARSIZE(permissions) &&
			memcmp(managed->permissions, permissions, VARSIZE(permissions)) == 0)
			return managed;
	}
	return compute_managed(permissions);
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
	PG_RETURN_BOOL(manages_organization(get_managed(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_TEXT_PP(0)));
}

PG_FUNCTION_INFO_V1(apitoken_manages_user);
Datum
apitoken_manages_user(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(manages_user(get_managed(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_TEXT_PP(0)));
}

PG_FUNCTION_INFO_V1(apitoken_manages_owner);
Datum
apitoken_manages_owner(PG_FUNCTION_ARGS)
{
	Managed    *managed;

	if (PG_ARGISNULL(2))
		PG_RETURN_BOOL(false);
	managed = get_managed(PG_GETARG_ARRAYTYPE_P(2));
	PG_RETURN_BOOL((!PG_ARGISNULL(0) && manages_organization(managed, PG_GETARG_TEXT_PP(0))) ||
				   (!PG_ARGISNULL(1) && manages_user(managed, PG_GETARG_TEXT_PP(1))));
}

static bool
is_prefetched(Managed *managed, const pg_uuid_t *id)
{
	for (int i = 0; i < managed->prefetched_count; i++)
	{
		if (memcmp(&managed->prefetched[i], id, sizeof(*id)) == 0)
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

	/* prefetch at the second lookup, and again only after a prefetched id was used */
	if (manages && ++managed->lookups == 2)
		managed->prefetched_count = apitoken_fetch_older(snapshot, &owner, managed->prefetched, PREFETCH_MAX);
	UnregisterSnapshot(snapshot);
	return manages;
}

/*
 * The view calls this several times in a row for the same token, once for each
 * of its usage columns.  The last result is kept: the owner of a token never
 * changes.
 */
PG_FUNCTION_INFO_V1(apitoken_manages_token);
Datum
apitoken_manages_token(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	Managed    *managed = get_managed(PG_GETARG_ARRAYTYPE_P(1));

	if (memcmp(id, &managed->token_id, sizeof(*id)) != 0)
	{
		bool		prefetched = is_prefetched(managed, id);

		if (prefetched)
			managed->lookups = 1;
		managed->manages_token = prefetched || look_up(managed, id);
		managed->token_id = *id;
	}
	PG_RETURN_BOOL(managed->manages_token);
}

/* Index scans and InitPlans keep this value, so it is a copy in the caller's memory context. */
PG_FUNCTION_INFO_V1(apitoken_managed_organizations);
Datum
apitoken_managed_organizations(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));
	PG_RETURN_DATUM(PointerGetDatum(PG_DETOAST_DATUM_COPY(PointerGetDatum(get_managed(PG_GETARG_ARRAYTYPE_P(0))->organizations))));
}

PG_FUNCTION_INFO_V1(apitoken_managed_user);
Datum
apitoken_managed_user(PG_FUNCTION_ARGS)
{
	Managed    *managed;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	managed = get_managed(PG_GETARG_ARRAYTYPE_P(0));
	if (managed->user_id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PointerGetDatum(PG_DETOAST_DATUM_COPY(PointerGetDatum(managed->user_id))));
}

/* ---- planner support ---- */

/* Does the query require that this expression equals a constant? */
static bool
equals_constant(PlannerInfo *root, Node *expression)
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

/* Of the two functions with one owner, is this manages_organization()? */
static bool
is_organization_function(Oid function)
{
	return strcmp(get_func_name(function), "manages_organization") == 0;
}

/* owner = ANY (managed_organizations(...)), or owner = managed_user(...) */
static Expr *
make_comparison(Oid function, Node *owner, Node *permissions, bool organization, Oid collation)
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

/* The arguments are the ids of owners (organization, user or both), then permissions. */
static void
set_selectivity(SupportRequestSelectivity *request)
{
	Node	   *owner = linitial(request->args);

	/* with both owners, the selectivity is that of the OR beside this call */
	if (list_length(request->args) == 3 || equals_constant(request->root, owner))
		request->selectivity = 1.0;
	else
	{
		Expr	   *clause = make_comparison(request->funcid, owner, lsecond(request->args),
											 is_organization_function(request->funcid), C_COLLATION_OID);

		request->selectivity = clause_selectivity(request->root, (Node *) clause, request->varRelid,
												  request->jointype, request->sjinfo);
	}
}

/* Is this expression the given column of the index's table? */
static bool
is_column(IndexOptInfo *index, Node *expression, AttrNumber attribute)
{
	Var		   *var = (Var *) expression;

	return IsA(var, Var) && var->varlevelsup == 0 && var->varno == index->rel->relid &&
		var->varattno == attribute;
}

/*
 * The index condition that is equivalent to the call, or NULL.  The planner
 * does not check the condition.  Therefore this function checks that the
 * permissions can be computed before a row is read, and that the index's
 * collation, like the function, treats texts as equal only if their bytes are.
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

		/* a token has one owner: if the query names this one, the other is null */
		if (!equals_constant(request->root, owner) || table != apitoken_table(APITOKEN_TOKEN_RECORDS) ||
			!is_column(request->index, linitial(call->args), Anum_token_records_organization_id) ||
			!is_column(request->index, lsecond(call->args), Anum_token_records_user_id))
			return NULL;
		organization = request->indexarg == 0;
	}
	else
		organization = is_organization_function(call->funcid);

	/*
	 * With an array for a column that is not the first one, an index scan
	 * returns rows in the order of the array.  The planner would not notice
	 * that for the condition made here.
	 */
	if (organization && request->indexcol > 0)
		return NULL;
	request->lossy = false;
	return (Node *) list_make1(make_comparison(call->funcid, owner, llast(call->args), organization,
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
