/*
 * guard.c
 *		Hooks that keep the identity and READ ONLY in force.
 *
 * Before every statement, including nested ones, the hooks check the settings,
 * so that the first statement after a setting fixes the identity.  If the
 * identity is read-only, they set XactReadOnly.
 *
 * The server resets XactReadOnly when a subtransaction ends, and not everything
 * that writes is a statement: a PL/pgSQL expression may call nextval(), and
 * libpq's large-object functions call functions directly.  Therefore the hooks
 * also set XactReadOnly when a portal continues, and when a function is about
 * to be called for the first time in an expression or by the fast path.
 *
 * A statement may also fix a read-only identity itself, after the server has
 * checked whether it may write.  Therefore the hooks check every statement once
 * more when it has ended.
 *
 * The same hooks call redact.c, which masks token texts in the text of the
 * statement that the server shows and that other modules, such as
 * pg_stat_statements, get from these hooks.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"

#include "hooks/hooks.h"

static ExecutorStart_hook_type previous_start = NULL;
static ExecutorRun_hook_type previous_run = NULL;
static ExecutorFinish_hook_type previous_finish = NULL;
static ProcessUtility_hook_type previous_utility = NULL;
static object_access_hook_type previous_access = NULL;

static void
before_statement(void)
{
	apitoken_identity_generation++;
	apitoken_enforce_read_only();

	/*
	 * A parallel worker needs no identity and cannot write.  If neither setting
	 * is set, nothing is looked up, so that broken tables of the extension can
	 * be repaired.
	 */
	if (!IsParallelWorker() &&
		(apitoken_setting_in_force(APITOKEN_SETTING_TOKEN) != NULL ||
		 apitoken_setting_in_force(APITOKEN_SETTING_USER_ID) != NULL) &&
		apitoken_installed())
		apitoken_sync_identity();
}

static void
guard_start(QueryDesc *query, int eflags)
{
	apitoken_redact_activity();
	query->sourceText = apitoken_redacted(query->sourceText, query->plannedstmt->stmt_location,
										  query->plannedstmt->stmt_len);
	before_statement();
	if (previous_start)
		previous_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

static void
guard_run(APITOKEN_RUN_PARAMETERS)
{
	apitoken_redact_activity();
	apitoken_enforce_read_only();
	if (previous_run)
		previous_run(APITOKEN_RUN_ARGUMENTS);
	else
		standard_ExecutorRun(APITOKEN_RUN_ARGUMENTS);
}

/* The server refuses to write or lock a row of a permanent table in READ ONLY. */
static void
refuse_target(PlannedStmt *statement, Index target)
{
	RangeTblEntry *entry = rt_fetch(target, statement->rtable);

	if (!isTempNamespace(get_rel_namespace(entry->relid)))
		PreventCommandIfReadOnly(CreateCommandName((Node *) statement));
}

/*
 * The server checks before a statement starts whether it may write.  A statement
 * that fixes a read-only identity itself has passed that check.  It is checked
 * again here, after it has written and before the transaction can commit.
 */
static void
refuse_writes(QueryDesc *query)
{
	PlannedStmt *statement = query->plannedstmt;
	ListCell   *lc;

	if (!apitoken_principal_read_only())
		return;
	apitoken_enforce_read_only();
	foreach(lc, compat_result_relations(statement))
		refuse_target(statement, lfirst_int(lc));
	foreach(lc, statement->rowMarks)
	{
		PlanRowMark *mark = lfirst(lc);

		if (RowMarkRequiresRowShareLock(mark->markType))
			refuse_target(statement, mark->rti);
	}

	/*
	 * Under EXPLAIN ANALYZE, which itself is allowed, or in a session that loads
	 * the library in this statement.  17 and later fill a materialized view as
	 * REFRESH does.
	 */
	if (query->dest != NULL && query->dest->mydest == DestIntoRel)
		PreventCommandIfReadOnly("CREATE TABLE AS");
	if (query->dest != NULL && query->dest->mydest == DestTransientRel)
		PreventCommandIfReadOnly("REFRESH MATERIALIZED VIEW");
}

static void
guard_finish(QueryDesc *query)
{
	refuse_writes(query);
	if (previous_finish)
		previous_finish(query);
	else
		standard_ExecutorFinish(query);

	/* AFTER triggers, and WITH queries whose rows are not read, have run only now */
	refuse_writes(query);
}

/*
 * Does the server run this utility statement in READ ONLY transactions?  It
 * refuses all others at their start.  That is too early for a statement that
 * fixes a read-only identity itself, in an expression, a trigger or an event
 * trigger.  For the statements that DO, CALL and EXECUTE run, the hooks are
 * called separately.
 *
 * A kind of statement that is not listed here counts as refused.
 */
static bool
allowed_in_read_only(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_AlterSystemStmt:
		case T_CallStmt:
		case T_CheckPointStmt:
		case T_ClosePortalStmt:
		case T_ConstraintsSetStmt:
		case T_DeallocateStmt:
		case T_DeclareCursorStmt:
		case T_DiscardStmt:
		case T_DoStmt:
		case T_ExecuteStmt:
		case T_ExplainStmt:
		case T_FetchStmt:
		case T_ListenStmt:
		case T_LoadStmt:
		case T_LockStmt:
		case T_NotifyStmt:
		case T_PrepareStmt:
		case T_ReindexStmt:
		case T_TransactionStmt:
		case T_UnlistenStmt:
		case T_VacuumStmt:
		case T_VariableSetStmt:
		case T_VariableShowStmt:
		case APITOKEN_CLUSTER_STATEMENT:
			return true;
		case T_CopyStmt:
			{
				CopyStmt   *copy = (CopyStmt *) statement;

				return !copy->is_from ||
					isTempNamespace(get_rel_namespace(RangeVarGetRelid(copy->relation, NoLock, true)));
			}
		default:
			return false;
	}
}

/*
 * Statements that must work whatever the settings contain: those that control
 * transactions, and those that set and show settings.  A client may set several
 * settings before a statement uses them.
 */
static bool
needs_no_identity(Node *statement)
{
	return IsA(statement, TransactionStmt) ||
		IsA(statement, VariableSetStmt) ||
		IsA(statement, VariableShowStmt) ||
		IsA(statement, DiscardStmt) ||
		IsAbortedTransactionBlockState();
}

static void
guard_utility(PlannedStmt *statement, const char *text, bool read_only_tree,
			  ProcessUtilityContext context, ParamListInfo params,
			  QueryEnvironment *environment, DestReceiver *receiver,
			  QueryCompletion *completion)
{
	const char *refused = NULL;
	uint64		commits = apitoken_read_only_commits;

	apitoken_redact_activity();
	text = apitoken_redacted(text, statement->stmt_location, statement->stmt_len);

	/*
	 * Decided now, because when the statement has ended, its tree may be freed
	 * and the name of its target may mean another table.
	 */
	if (!IsAbortedTransactionBlockState() && !allowed_in_read_only(statement->utilityStmt))
		refused = CreateCommandName(statement->utilityStmt);
	if (!needs_no_identity(statement->utilityStmt))
		before_statement();
	else
	{
		/* COMMIT computes the rows of cursors WITH HOLD */
		apitoken_identity_generation++;
		apitoken_enforce_read_only();
	}
	if (previous_utility)
		previous_utility(statement, text, read_only_tree, context, params,
						 environment, receiver, completion);
	else
		standard_ProcessUtility(statement, text, read_only_tree, context, params,
								environment, receiver, completion);

	/* CREATE INDEX CONCURRENTLY runs several transactions, which end its identities. */
	if (refused != NULL && (apitoken_principal_read_only() || commits != apitoken_read_only_commits))
	{
		XactReadOnly = true;
		PreventCommandIfReadOnly(refused);
	}
}

static void
guard_access(ObjectAccessType access, Oid class, Oid object, int sub, void *arg)
{
	/* The fast path calls a function without a statement and without a portal. */
	if (access == OAT_FUNCTION_EXECUTE && ActivePortal == NULL)
		before_statement();
	else if (access == OAT_FUNCTION_EXECUTE)
		apitoken_enforce_read_only();
	if (previous_access)
		previous_access(access, class, object, sub, arg);
}

void
apitoken_guard_init(void)
{
	previous_start = ExecutorStart_hook;
	ExecutorStart_hook = guard_start;
	previous_run = ExecutorRun_hook;
	ExecutorRun_hook = guard_run;
	previous_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = guard_finish;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = guard_utility;
	previous_access = object_access_hook;
	object_access_hook = guard_access;
}
