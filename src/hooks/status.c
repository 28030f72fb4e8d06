/*
 * status.c
 *		The HTTP status of an error, in a request that PostgREST describes.
 *
 * PostgREST chooses the status by the SQLSTATE alone.  What is a client's mistake
 * in one place and the server's fault in another can have the same SQLSTATE, and
 * PostgREST does not know about tokens.  Where its choice is wrong, the error is
 * replaced by one that names the status: see http_error.c.
 *
 * This is done when the error leaves the statement that the client sent.  Until
 * then it is as everywhere else: functions catch it by its SQLSTATE.  Outside such
 * a request nothing is replaced.
 *
 * The extension's own errors are recognized by their domain: see text.h.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/planner.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/fmgrprotos.h"

#include "hooks/hooks.h"

static planner_hook_type previous_planner = NULL;
static ExecutorStart_hook_type previous_start = NULL;
static ExecutorRun_hook_type previous_run = NULL;
static ExecutorFinish_hook_type previous_finish = NULL;
static ProcessUtility_hook_type previous_utility = NULL;

/* number of statements that are running, each within the one before */
static int	depth = 0;

/* Is the client's statement part of a request?  Has it a method that only reads? */
static bool in_request = false;
static bool only_reads = false;

/* start of the statement that loaded the library, which `depth` does not count */
static TimestampTz loaded_by = 0;

/*
 * Can a function around this statement still catch its error?  No statement is
 * around the triggers that are fired at COMMIT.
 */
static bool
is_nested(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0)) > 0 ||
		loaded_by == GetCurrentStatementStartTimestamp();
}

/* Before a statement is planned, which may run functions, and before it is run. */
static void
look_at_request(void)
{
	const char *method = NULL;

	if (depth > 0)
		return;
	if (IsTransactionState())
		method = apitoken_request_method();
	in_request = method != NULL && !is_nested();
	only_reads = in_request && (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0);
}

/* Is this the fault of the server, about which a client is told nothing? */
static bool
is_server_fault(const ErrorData *error)
{
	if (strcmp(error->domain, APITOKEN_SERVER_DOMAIN) == 0)
		return true;
	if (strcmp(error->domain, APITOKEN_DOMAIN) != 0)
		return false;
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_CONFIG_FILE_ERROR:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return true;
		default:
			return error->sqlerrcode == ERRCODE_UNDEFINED_TABLE;
	}
}

/*
 * The status of an error that is the client's.  0: the one that PostgREST chooses
 * is right.
 */
static int
client_status(const ErrorData *error)
{
	/*
	 * With an identity, the client has said who it is, so that 401 would be
	 * wrong.  PostgREST takes each request without a JWT for anonymous.
	 */
	if (error->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE)
		return apitoken_identity_is_fixed() ? 403 : 0;
	if (strcmp(error->domain, APITOKEN_DOMAIN) != 0)
		return 0;
	if (error->sqlerrcode == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE)
		return 409;
	if (error->sqlerrcode == ERRCODE_ACTIVE_SQL_TRANSACTION)
		return 400;
	return 0;
}

/* An error as the server log has it. */
static char *
for_log(const ErrorData *error)
{
	const char *detail = error->detail_log != NULL ? error->detail_log : error->detail;

	return psprintf("%s: %s%s%s%s%s", unpack_sql_state(error->sqlerrcode), error->message,
					detail == NULL ? "" : "\n", detail == NULL ? "" : detail,
					error->hint == NULL ? "" : "\n", error->hint == NULL ? "" : error->hint);
}

/* Replace the error that has been caught, or return if it is right. */
static void
replace_error(MemoryContext context)
{
	static const ApitokenHttpHeader insufficient_scope[] = {{"WWW-Authenticate", "Bearer error=\"insufficient_scope\""}, {NULL, NULL}};
	ApitokenHttpError http = {0};
	ErrorData  *error;
	int			status;

	if (geterrcode() == ERRCODE_OUT_OF_MEMORY)
		return;
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	http.context = error->context;
	if (is_server_fault(error))
	{
		http.status = 500;
		http.code = "server_error";
		http.message = "internal server error";
		http.log = for_log(error);
	}
	else if (error->sqlerrcode == ERRCODE_READ_ONLY_SQL_TRANSACTION && apitoken_principal_read_only() && !only_reads)
	{
		/*
		 * RFC 9110, section 15.5.4, and RFC 6750, section 3.1.  405 would be
		 * about the resource, which others may change.
		 */
		http.status = 403;
		http.code = "insufficient_scope";
		http.message = "the token is read-only";
		http.hint = "Use a token that may write.";
		http.headers = insufficient_scope;
	}
	else if ((status = client_status(error)) != 0)
	{
		http.status = status;
		http.code = pstrdup(unpack_sql_state(error->sqlerrcode));
		http.message = error->message;
		http.details = error->detail;
		http.hint = error->hint;
	}
	else
	{
		FreeErrorData(error);
		return;
	}
	FlushErrorState();
	apitoken_raise_http(&http);
}

/* Run one step of a statement. */
#define STEP(...) \
	do { \
		MemoryContext caller_context = CurrentMemoryContext; \
		PG_TRY(); \
		{ \
			depth++; \
			__VA_ARGS__; \
			depth--; \
		} \
		PG_CATCH(); \
		{ \
			if (--depth == 0 && in_request) \
				replace_error(caller_context); \
			PG_RE_THROW(); \
		} \
		PG_END_TRY(); \
	} while (0)

static PlannedStmt *
status_plan(APITOKEN_PLAN_PARAMETERS)
{
	PlannedStmt *volatile plan = NULL;

	look_at_request();
	STEP(plan = previous_planner ? previous_planner(APITOKEN_PLAN_ARGUMENTS) : standard_planner(APITOKEN_PLAN_ARGUMENTS));
	return plan;
}

static void
status_start(QueryDesc *query, int eflags)
{
	look_at_request();
	STEP(previous_start ? previous_start(query, eflags) : standard_ExecutorStart(query, eflags));
}

static void
status_run(APITOKEN_RUN_PARAMETERS)
{
	STEP(previous_run ? previous_run(APITOKEN_RUN_ARGUMENTS) : standard_ExecutorRun(APITOKEN_RUN_ARGUMENTS));
}

static void
status_finish(QueryDesc *query)
{
	STEP(previous_finish ? previous_finish(query) : standard_ExecutorFinish(query));
}

static void
status_utility(PlannedStmt *statement, const char *text, bool read_only_tree,
			   ProcessUtilityContext context, ParamListInfo params,
			   QueryEnvironment *environment, DestReceiver *receiver,
			   QueryCompletion *completion)
{
	ProcessUtility_hook_type next = previous_utility ? previous_utility : standard_ProcessUtility;

	look_at_request();
	STEP(next(statement, text, read_only_tree, context, params, environment, receiver, completion));
}

void
apitoken_status_init(void)
{
	if (ActivePortal != NULL)
		loaded_by = GetCurrentStatementStartTimestamp();
	previous_planner = planner_hook;
	planner_hook = status_plan;
	previous_start = ExecutorStart_hook;
	ExecutorStart_hook = status_start;
	previous_run = ExecutorRun_hook;
	ExecutorRun_hook = status_run;
	previous_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = status_finish;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = status_utility;
}
