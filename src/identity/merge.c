/*
 * merge.c
 *		Rows of several owners in order, without sorting them.
 *
 * A list shows the newest rows of all owners that the caller manages.  An index
 * has the rows of each owner in order, but not those of all owners.  A scan of
 * this file therefore opens one index scan for each owner and merges them, so that
 * the first page of a list reads about as many rows as it returns.  No other node
 * of the executor can do so: the owners are known only when the query runs.
 *
 * The scan reads only rows that satisfy a policy: an OR of policy functions (see
 * plan.c) of which each has an index that begins with its column, and continues
 * with the columns of the order.  The last of these is unique, so a row that
 * satisfies two parts of the OR comes twice in a row, and is returned once.  As in
 * any scan, all conditions are checked again, the policies first.
 *
 * Each open index scan needs memory and pins two buffers.  Above OPEN_MAX owners,
 * only the scan that has just returned a row is open.  The scan of another owner
 * begins again after its last row.
 */
#include "postgres.h"

#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "commands/explain.h"
#include "executor/executor.h"
#include "lib/binaryheap.h"
#include "miscadmin.h"
#include "nodes/extensible.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "identity/identity.h"

#define OPEN_MAX 64

/* columns of the order: the time and the id of tokens, the id of events */
#define ORDER_MAX 2

/* ---- planning ---- */

/*
 * Where the scan begins within the rows of an owner: the condition of a page after
 * the first.  The values are compared with the first columns of the order.
 */
typedef struct Bound
{
	StrategyNumber strategy;	/* InvalidStrategy: at the first row */
	List	   *values;			/* expressions */
} Bound;

/* Is this the column of the index, of the table itself? */
static bool
is_column(Node *node, IndexOptInfo *index, int column)
{
	Var		   *var = (Var *) node;

	return column < index->nkeycolumns && index->indexkeys[column] > 0 && IsA(node, Var) &&
		var->varlevelsup == 0 && var->varno == index->rel->relid && var->varattno == index->indexkeys[column];
}

/*
 * How many of the query's sort keys are columns of this index after the first, in
 * the index's order or, with *backward, against it?
 */
static int
count_ordered(PlannerInfo *root, IndexOptInfo *index, bool *backward)
{
	int			count = 0;
	ListCell   *lc;

	foreach(lc, root->query_pathkeys)
	{
		PathKey    *key = lfirst(lc);
		int			column = 1 + count;
		bool		descending = compat_is_descending(key);
		bool		against;
		bool		found = false;
		ListCell   *lm;

		if (column >= index->nkeycolumns || key->pk_opfamily != index->sortopfamily[column] ||
			key->pk_eclass->ec_has_volatile)
			break;
		foreach(lm, key->pk_eclass->ec_members)
			found = found || is_column((Node *) ((EquivalenceMember *) lfirst(lm))->em_expr, index, column);
		against = descending != index->reverse_sort[column];
		if (!found || key->pk_nulls_first != (against ? !index->nulls_first[column] : index->nulls_first[column]) ||
			(count > 0 && against != *backward))
			break;
		*backward = against;
		count++;
	}
	return count;
}

/* Can this operator compare the column with a value of its own type, and how? */
static StrategyNumber
comparison(Oid operator, IndexOptInfo *index, int column)
{
	int			strategy;
	Oid			left;
	Oid			right;

	if (!op_in_opfamily(operator, index->opfamily[column]))
		return InvalidStrategy;
	get_op_opfamily_properties(operator, index->opfamily[column], false, &strategy, &left, &right);
	return left == index->opcintype[column] && right == left ? strategy : InvalidStrategy;
}

/* Does a scan in this direction meet the rows that satisfy the comparison last? */
static bool
is_beginning(StrategyNumber strategy, bool descending)
{
	return descending ? strategy == BTLessStrategyNumber || strategy == BTLessEqualStrategyNumber :
		strategy == BTGreaterStrategyNumber || strategy == BTGreaterEqualStrategyNumber;
}

/* The bound that a condition of the query gives, if it gives one. */
static bool
find_bound(PlannerInfo *root, Node *clause, IndexOptInfo *index, bool descending, Bound *bound)
{
	StrategyNumber strategy;

	bound->values = NIL;
	if (IsA(clause, OpExpr) && list_length(((OpExpr *) clause)->args) == 2)
	{
		Node	   *left = linitial(((OpExpr *) clause)->args);
		Node	   *right = lsecond(((OpExpr *) clause)->args);
		Oid			operator = ((OpExpr *) clause)->opno;

		if (!is_column(left, index, 1))
		{
			Node	   *column = right;

			right = left;
			left = column;
			operator = get_commutator(operator);
		}
		strategy = OidIsValid(operator) && is_column(left, index, 1) ? comparison(operator, index, 1) : InvalidStrategy;
		if (!is_beginning(strategy, descending) || !is_pseudo_constant_for_index(root, right, index))
			return false;
		bound->strategy = strategy;
		bound->values = list_make1(right);
		return true;
	}
	if (IsA(clause, RowCompareExpr))
	{
		RowCompareExpr *row = (RowCompareExpr *) clause;
		ListCell   *left;
		ListCell   *right;
		ListCell   *operator;

		strategy = compat_row_comparison(row);
		if (!is_beginning(strategy, descending))
			return false;
		forthree(left, row->largs, right, row->rargs, operator, row->opnos)
		{
			int			column = 1 + list_length(bound->values);

			if (!is_column(lfirst(left), index, column) ||
				!is_beginning(comparison(lfirst_oid(operator), index, column), descending) ||
				!is_pseudo_constant_for_index(root, lfirst(right), index))
				break;
			bound->values = lappend(bound->values, lfirst(right));
		}
		/* of a longer row, the first columns may be equal */
		if (list_length(bound->values) < list_length(row->largs))
			strategy = descending ? BTLessEqualStrategyNumber : BTGreaterEqualStrategyNumber;
		bound->strategy = strategy;
		return bound->values != NIL;
	}
	return false;
}

/*
 * The index whose first column is an argument of this policy function, and that
 * has the order of the query after it; NULL if there is none.  *condition becomes
 * the policy's condition on that column.
 */
static IndexOptInfo *
find_index(PlannerInfo *root, RelOptInfo *rel, Node *policy, int *ordered, bool *backward, Node **condition)
{
	ListCell   *lc;

	if (!IsA(policy, FuncExpr))
		return NULL;
	foreach(lc, rel->indexlist)
	{
		IndexOptInfo *index = lfirst(lc);
		List	   *arguments = ((FuncExpr *) policy)->args;

		if (index->relam != BTREE_AM_OID || index->nkeycolumns < 2 || index->nkeycolumns > 1 + ORDER_MAX ||
			(*ordered = count_ordered(root, index, backward)) == 0)
			continue;
		for (int i = 0; i < list_length(arguments); i++)
		{
			if (!is_column(list_nth(arguments, i), index, 0))
				continue;
			/* the query names one owner, so there is nothing to merge */
			if (apitoken_required_value(root, list_nth(arguments, i)) != NULL)
				return NULL;
			*condition = apitoken_index_condition(root, (FuncExpr *) policy, i, index, 0);
			if (*condition != NULL && predicate_implied_by(index->indpred, list_make1(*condition), false))
				return index;
		}
	}
	return NULL;
}

/* Do the indexes have the same columns after the first, all of them ascending or all descending? */
static bool
same_order(IndexOptInfo *a, IndexOptInfo *b)
{
	if (a->nkeycolumns != b->nkeycolumns)
		return false;
	for (int i = 1; i < a->nkeycolumns; i++)
	{
		if (a->indexkeys[i] != b->indexkeys[i] || a->opfamily[i] != b->opfamily[i] ||
			a->reverse_sort[i] != b->reverse_sort[i] || a->reverse_sort[i] != a->reverse_sort[1])
			return false;
	}
	return true;
}

static Plan *make_plan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *targets, List *clauses, List *plans);

static const CustomPathMethods path_methods = {
	.CustomName = "apitoken merge",
	.PlanCustomPath = make_plan
};

/*
 * Add a path that merges the rows for which this policy is true.  "usable" are
 * conditions that may begin the scan.
 */
static void
add_merge_path(PlannerInfo *root, RelOptInfo *rel, RestrictInfo *policy, List *usable)
{
	IndexOptInfo *first = NULL;
	int			ordered = 0;
	bool		backward = false;
	Bound		bound = {0};
	List	   *ids = NIL;
	List	   *values = NIL;
	List	   *arrays = NIL;
	CustomPath *path;
	List	   *conditions = list_make1(policy);
	double		rows;
	ListCell   *lc;

	foreach(lc, ((BoolExpr *) policy->orclause)->args)
	{
		Node	   *arm = lfirst(lc);
		Node	   *condition = NULL;
		int			arm_ordered;
		bool		arm_backward = false;
		IndexOptInfo *index = find_index(root, rel, IsA(arm, RestrictInfo) ? (Node *) ((RestrictInfo *) arm)->clause : arm,
										 &arm_ordered, &arm_backward, &condition);

		if (first == NULL)
		{
			first = index;
			ordered = arm_ordered;
			backward = arm_backward;
		}
		if (index == NULL || arm_ordered != ordered || arm_backward != backward || !same_order(index, first))
			return;
		ids = lappend_oid(ids, index->indexoid);
		arrays = lappend_int(arrays, IsA(condition, ScalarArrayOpExpr));
		values = lappend(values, IsA(condition, ScalarArrayOpExpr) ? lsecond(((ScalarArrayOpExpr *) condition)->args) :
						 lsecond(((OpExpr *) condition)->args));
	}
	foreach(lc, usable)
	{
		Bound		found;

		if (find_bound(root, (Node *) ((RestrictInfo *) lfirst(lc))->clause, first,
					   first->reverse_sort[1] != backward, &found) &&
			list_length(found.values) > list_length(bound.values))
		{
			bound = found;
			conditions = list_make2(policy, lfirst(lc));
		}
	}

	path = makeNode(CustomPath);
	path->path.pathtype = T_CustomScan;
	path->path.parent = rel;
	path->path.pathtarget = rel->reltarget;
	path->path.rows = rel->rows;
	path->path.pathkeys = list_copy_head(root->query_pathkeys, ordered);
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->methods = &path_methods;
	path->custom_private = list_make4(ids, arrays, list_make2_int(backward, bound.strategy),
									  list_make2(values, bound.values));

	/* About as much as a bitmap scan, whose rows would have to be sorted. */
	rows = clamp_row_est(rel->tuples * clauselist_selectivity(root, conditions, rel->relid, JOIN_INNER, NULL));
	path->path.startup_cost = list_length(ids) * random_page_cost / 2;
	path->path.total_cost = path->path.startup_cost + Min(rows, rel->pages) * (random_page_cost + seq_page_cost) / 2 +
		rows * (cpu_tuple_cost + cpu_index_tuple_cost + rel->baserestrictcost.per_tuple);
	add_path(rel, (Path *) path);
}

void
apitoken_add_merge_paths(PlannerInfo *root, RelOptInfo *rel, List *policies, List *usable)
{
	ListCell   *lc;

	if (root->query_pathkeys == NIL)
		return;
	foreach(lc, policies)
	{
		if (restriction_is_or_clause(lfirst(lc)))
			add_merge_path(root, rel, lfirst(lc), usable);
	}
}

/* ---- execution ---- */

/* The rows of one owner. */
typedef struct Source
{
	int			arm;			/* which index */
	Datum		owner;
	IndexScanDesc scan;			/* NULL: not open */
	ScanKeyData members[ORDER_MAX]; /* of its key that is a row comparison */
	TupleTableSlot *slot;		/* the current row; NULL: none was read yet */
	Datum		row[ORDER_MAX];	/* the columns of the order of the current row */
} Source;

typedef struct MergeState
{
	CustomScanState css;
	/* from the plan */
	bool		backward;
	StrategyNumber bound_strategy;
	int			arm_count;
	Relation   *indexes;
	bool	   *is_array;
	ExprState **owners;
	List	   *bound_values;	/* of ExprState */
	int			order_count;
	AttrNumber	columns[ORDER_MAX]; /* of the table */
	FmgrInfo	compare[ORDER_MAX];
	/* while the scan runs */
	MemoryContext context;		/* reset by a rescan */
	Datum		bound[ORDER_MAX];
	int			bound_count;
	List	   *sources;
	binaryheap *heap;			/* of sources that have a row */
	Source	   *returned;		/* the source of the row returned last; it moves on at the next call */
	ItemPointerData returned_tid;
} MergeState;

static Node *create_state(CustomScan *scan);

static const CustomScanMethods scan_methods = {
	.CustomName = "apitoken merge",
	.CreateCustomScanState = create_state
};

static Plan *
make_plan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *targets, List *clauses, List *plans)
{
	CustomScan *scan = makeNode(CustomScan);
	List	   *expressions = lfourth(path->custom_private);

	scan->scan.plan.targetlist = targets;
	scan->scan.plan.qual = extract_actual_clauses(clauses, false);
	scan->scan.scanrelid = rel->relid;
	scan->flags = path->flags;
	scan->custom_exprs = list_concat_copy(linitial(expressions), lsecond(expressions));
	scan->custom_private = list_make3(linitial(path->custom_private), lsecond(path->custom_private),
									  lthird(path->custom_private));
	scan->methods = &scan_methods;
	return (Plan *) scan;
}

static void
begin_merge(CustomScanState *css, EState *estate, int flags)
{
	MergeState *state = (MergeState *) css;
	CustomScan *scan = (CustomScan *) css->ss.ps.plan;
	List	   *ids = linitial(scan->custom_private);
	List	   *arrays = lsecond(scan->custom_private);
	List	   *expressions = ExecInitExprList(scan->custom_exprs, &css->ss.ps);
	Relation	index;

	state->backward = linitial_int(lthird(scan->custom_private));
	state->bound_strategy = lsecond_int(lthird(scan->custom_private));
	state->arm_count = list_length(ids);
	state->is_array = palloc(state->arm_count * sizeof(bool));
	state->owners = palloc(state->arm_count * sizeof(ExprState *));
	state->indexes = palloc0(state->arm_count * sizeof(Relation));
	for (int i = 0; i < state->arm_count; i++)
	{
		state->is_array[i] = list_nth_int(arrays, i);
		state->owners[i] = list_nth(expressions, i);
	}
	state->bound_values = list_copy_tail(expressions, state->arm_count);
	state->context = AllocSetContextCreate(estate->es_query_cxt, "apitoken merge", ALLOCSET_DEFAULT_SIZES);
	if (flags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	for (int i = 0; i < state->arm_count; i++)
		state->indexes[i] = index_open(list_nth_oid(ids, i), AccessShareLock);
	index = state->indexes[0];
	state->order_count = IndexRelationGetNumberOfKeyAttributes(index) - 1;
	for (int i = 0; i < state->order_count; i++)
	{
		state->columns[i] = index->rd_index->indkey.values[1 + i];
		fmgr_info_copy(&state->compare[i], index_getprocinfo(index, 2 + i, BTORDER_PROC), estate->es_query_cxt);
	}
}

/* Are the rows returned with the greatest first? */
static bool
is_descending(MergeState *state)
{
	return ((state->indexes[0]->rd_indoption[1] & INDOPTION_DESC) != 0) != state->backward;
}

/* The source whose row comes first is the greatest. */
static int
compare_sources(Datum a, Datum b, void *argument)
{
	MergeState *state = argument;
	Source	   *left = (Source *) DatumGetPointer(a);
	Source	   *right = (Source *) DatumGetPointer(b);

	for (int i = 0; i < state->order_count; i++)
	{
		int			order = DatumGetInt32(FunctionCall2(&state->compare[i], left->row[i], right->row[i]));

		if (order != 0)
			return (order > 0) == is_descending(state) ? 1 : -1;
	}
	return 0;
}

/* Set a key that compares the first "count" columns of the order with these values. */
static void
set_row_key(MergeState *state, Source *source, StrategyNumber strategy, Datum *values, int count, ScanKey key)
{
	Relation	index = state->indexes[source->arm];

	/* the scan copies the key, but not its members */
	MemSet(key, 0, sizeof(ScanKeyData));
	key->sk_flags = SK_ROW_HEADER;
	key->sk_attno = 2;
	key->sk_strategy = strategy;
	key->sk_argument = PointerGetDatum(source->members);
	for (int i = 0; i < count; i++)
		ScanKeyEntryInitializeWithInfo(&source->members[i], SK_ROW_MEMBER | (i == count - 1 ? SK_ROW_END : 0), 2 + i, strategy,
									   InvalidOid, index->rd_indcollation[1 + i], &state->compare[i], values[i]);
}

/* Open the index scan of an owner, at the first row or after the current one. */
static void
open_source(MergeState *state, Source *source)
{
	Relation	index = state->indexes[source->arm];
	ScanKeyData keys[2];
	int			count = 1;

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, index->rd_indcollation[0],
						   get_opcode(get_opfamily_member(index->rd_opfamily[0], index->rd_opcintype[0],
														  index->rd_opcintype[0], BTEqualStrategyNumber)),
						   source->owner);
	if (source->slot != NULL)
		set_row_key(state, source, is_descending(state) ? BTLessStrategyNumber : BTGreaterStrategyNumber,
					source->row, state->order_count, &keys[count++]);
	else if (state->bound_count > 0)
		set_row_key(state, source, state->bound_strategy, state->bound, state->bound_count, &keys[count++]);
	source->scan = compat_index_beginscan(state->css.ss.ss_currentRelation, index,
										  state->css.ss.ps.state->es_snapshot, count);
	index_rescan(source->scan, keys, count, NULL, 0);
}

/* Read the next row of an owner.  Returns false at the end. */
static bool
advance(MergeState *state, Source *source)
{
	bool		found;

	if (source->scan == NULL)
		open_source(state, source);
	if (source->slot == NULL)
		source->slot = table_slot_create(state->css.ss.ss_currentRelation, NULL);
	found = index_getnext_slot(source->scan, state->backward ? BackwardScanDirection : ForwardScanDirection, source->slot);
	if (!found || list_length(state->sources) > OPEN_MAX)
	{
		index_endscan(source->scan);
		source->scan = NULL;
	}
	if (!found)
		return false;
	/* a row in memory of its own pins no buffer */
	if (source->scan == NULL)
		ExecMaterializeSlot(source->slot);
	for (int i = 0; i < state->order_count; i++)
	{
		bool		isnull;

		source->row[i] = slot_getattr(source->slot, state->columns[i], &isnull);
		if (isnull)
			elog(ERROR, "unexpected null in column %d of \"%s\"", state->columns[i],
				 RelationGetRelationName(state->css.ss.ss_currentRelation));
	}
	return true;
}

/* The values that begin the scan.  Returns false if no row satisfies the condition. */
static bool
evaluate_bound(MergeState *state)
{
	ListCell   *lc;

	state->bound_count = 0;
	foreach(lc, state->bound_values)
	{
		bool		isnull;
		Datum		value = ExecEvalExpr((ExprState *) lfirst(lc), state->css.ss.ps.ps_ExprContext, &isnull);

		if (isnull && state->bound_count == 0)
			return false;
		if (isnull)
		{
			/* of (a, b) < (1, null), only a < 1 can be true */
			state->bound_strategy = is_descending(state) ? BTLessEqualStrategyNumber : BTGreaterEqualStrategyNumber;
			break;
		}
		state->bound[state->bound_count++] = value;
	}
	return true;
}

static void
add_source(MergeState *state, int arm, Datum owner)
{
	Source	   *source = palloc0(sizeof(Source));

	source->arm = arm;
	source->owner = owner;
	state->sources = lappend(state->sources, source);
}

/* Find the owners, and read the first row of each. */
static void
start(MergeState *state)
{
	MemoryContext old = MemoryContextSwitchTo(state->context);
	bool		possible = evaluate_bound(state);
	ListCell   *lc;

	for (int i = 0; i < state->arm_count && possible; i++)
	{
		bool		isnull;
		Datum		value = ExecEvalExpr(state->owners[i], state->css.ss.ps.ps_ExprContext, &isnull);
		Datum	   *elements;
		bool	   *nulls;
		int			count;

		if (isnull)
			continue;
		if (!state->is_array[i])
		{
			add_source(state, i, value);
			continue;
		}
		deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
		for (int j = 0; j < count; j++)
			add_source(state, i, elements[j]);
	}
	state->heap = binaryheap_allocate(Max(list_length(state->sources), 1), compare_sources, state);
	foreach(lc, state->sources)
	{
		CHECK_FOR_INTERRUPTS();
		if (advance(state, lfirst(lc)))
			binaryheap_add_unordered(state->heap, PointerGetDatum(lfirst(lc)));
	}
	binaryheap_build(state->heap);
	state->returned = NULL;
	ItemPointerSetInvalid(&state->returned_tid);
	MemoryContextSwitchTo(old);
}

/* The next row of all owners, without conditions. */
static TupleTableSlot *
next_row(ScanState *scan)
{
	MergeState *state = (MergeState *) scan;

	if (state->heap == NULL)
		start(state);
	for (;;)
	{
		TupleTableSlot *slot;

		if (state->returned != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(state->context);

			if (advance(state, state->returned))
				binaryheap_replace_first(state->heap, PointerGetDatum(state->returned));
			else
				(void) binaryheap_remove_first(state->heap);
			MemoryContextSwitchTo(old);
		}
		state->returned = NULL;
		if (binaryheap_empty(state->heap))
			return NULL;
		state->returned = (Source *) DatumGetPointer(binaryheap_first(state->heap));
		slot = state->returned->slot;
		/* a row that satisfies several parts of the policy */
		if (ItemPointerIsValid(&state->returned_tid) && ItemPointerEquals(&state->returned_tid, &slot->tts_tid))
			continue;
		state->returned_tid = slot->tts_tid;
		/* expressions over a custom scan expect a slot in which all columns are there */
		slot_getallattrs(slot);
		return slot;
	}
}

/*
 * Check the newest version of a row that was locked after waiting.  ExecScan()
 * checks the policies and all other conditions, as for any row.
 */
static bool
recheck(ScanState *scan, TupleTableSlot *slot)
{
	slot_getallattrs(slot);
	return true;
}

static TupleTableSlot *
exec_merge(CustomScanState *css)
{
	return ExecScan(&css->ss, next_row, recheck);
}

static void
close_sources(MergeState *state)
{
	ListCell   *lc;

	foreach(lc, state->sources)
	{
		Source	   *source = lfirst(lc);

		if (source->scan != NULL)
			index_endscan(source->scan);
		if (source->slot != NULL)
			ExecDropSingleTupleTableSlot(source->slot);
	}
	state->sources = NIL;
	state->heap = NULL;
	state->returned = NULL;
	MemoryContextReset(state->context);
}

static void
rescan_merge(CustomScanState *css)
{
	close_sources((MergeState *) css);
	ExecScanReScan(&css->ss);
}

static void
end_merge(CustomScanState *css)
{
	MergeState *state = (MergeState *) css;

	close_sources(state);
	for (int i = 0; i < state->arm_count; i++)
	{
		if (state->indexes[i] != NULL)
			index_close(state->indexes[i], NoLock);
	}
}

static void
explain_merge(CustomScanState *css, List *ancestors, ExplainState *es)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, linitial(((CustomScan *) css->ss.ps.plan)->custom_private))
		names = lappend(names, get_rel_name(lfirst_oid(lc)));
	ExplainPropertyList("Merged Indexes", names, es);
}

static const CustomExecMethods exec_methods = {
	.CustomName = "apitoken merge",
	.BeginCustomScan = begin_merge,
	.ExecCustomScan = exec_merge,
	.EndCustomScan = end_merge,
	.ReScanCustomScan = rescan_merge,
	.ExplainCustomScan = explain_merge
};

static Node *
create_state(CustomScan *scan)
{
	MergeState *state = (MergeState *) newNode(sizeof(MergeState), T_CustomScanState);

	state->css.methods = &exec_methods;
	return (Node *) state;
}

void
apitoken_merge_init(void)
{
	RegisterCustomScanMethods(&scan_methods);
}
