/*
 * identity.c
 *		The identity of the transaction: the user or token that is acting.
 *
 * The first identity that a transaction uses is fixed until the transaction
 * ends.  It comes from one of these sources:
 *
 * - authenticate() and act_as();
 * - the settings apitoken.token and apitoken.user_id.  They take effect with
 *   the next statement: guard.c calls apitoken_sync_identity() before each
 *   statement.
 * - the user whom PostgREST's JWT names, if apitoken.jwt_user_claim is set and
 *   there is no other source.  This identity is fixed when a function first
 *   needs the identity.
 *
 * Another identity in the same transaction is an error.  ROLLBACK TO a
 * savepoint that is older than the identity removes the identity.
 *
 * The identity is fixed because privileges on the settings cannot protect it:
 * SQL that runs under a weaker role, which was entered by SET LOCAL ROLE, can
 * leave that role by set_config('role', 'none', true) within an expression.
 *
 * While the identity is read-only, XactReadOnly is set again and again, because
 * the server resets it when a subtransaction ends.
 *
 * Fixing an identity changes no setting, writes no row and assigns no
 * transaction id.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"

#include "identity/identity.h"

typedef struct FixedIdentity
{
	bool		set;
	ApitokenPrincipal principal;	/* in TopTransactionContext */
	SubTransactionId subtransaction;	/* its rollback removes the identity */
	uint64		generation;		/* of the settings that were checked last */
	char	   *jwt_user_id;	/* the user that a JWT named; NULL: another source */
} FixedIdentity;

static FixedIdentity fixed;

/* Incremented when the identity changes; the first one also before each statement. */
uint64		apitoken_identity_generation = 0;
uint64		apitoken_identity_changes = 0;

/* number of transactions of this session that a read-only identity committed */
uint64		apitoken_read_only_commits = 0;

static void
identity_changed(void)
{
	apitoken_identity_generation++;
	apitoken_identity_changes++;
}

static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && apitoken_principal_read_only())
		apitoken_read_only_commits++;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			memset(&fixed, 0, sizeof(fixed));
			identity_changed();
			break;
		default:
			break;
	}
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	if (!fixed.set || fixed.subtransaction != subtransaction)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		fixed.subtransaction = parent;

		/*
		 * The server now resets XactReadOnly.  PL/pgSQL may continue with an
		 * expression like nextval() that it prepared before the identity was
		 * fixed, and no hook of guard.c is called for it.  After a reset of the
		 * plan cache, PL/pgSQL prepares its expressions again.
		 */
		if (apitoken_principal_read_only())
			ResetPlanCache();
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		memset(&fixed, 0, sizeof(fixed));
		identity_changed();
	}
}

void
apitoken_identity_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

bool
apitoken_principal_read_only(void)
{
	return fixed.set && fixed.principal.source == APITOKEN_SOURCE_TOKEN &&
		fixed.principal.access == APITOKEN_READ_ONLY;
}

bool
apitoken_identity_is_fixed(void)
{
	return fixed.set;
}

void
apitoken_enforce_read_only(void)
{
	if (!XactReadOnly && apitoken_principal_read_only())
		XactReadOnly = true;
}

static char *
copy_string(const char *value)
{
	return value == NULL ? NULL : pstrdup(value);
}

/* Fix the identity of the transaction; an error if it already has another one. */
static void
fix_principal(const ApitokenPrincipal *principal)
{
	MemoryContext old;
	List	   *permissions = NIL;
	ListCell   *lc;

	if (fixed.set)
	{
		if (!apitoken_same_principal(&fixed.principal, principal))
			ereport(ERROR,
					(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
					 errmsg("cannot change the identity of a transaction"),
					 errdetail("The transaction already has another identity."),
					 apitoken_errhint("Set the other identity in a new transaction.", "Send another request for the other identity.")));
		return;
	}

	old = MemoryContextSwitchTo(TopTransactionContext);
	foreach(lc, principal->permissions)
		permissions = lappend(permissions, pstrdup(lfirst(lc)));
	fixed.principal = *principal;
	fixed.principal.organization_id = copy_string(principal->organization_id);
	fixed.principal.user_id = copy_string(principal->user_id);
	fixed.principal.role = copy_string(principal->role);
	fixed.principal.permissions = permissions;
	MemoryContextSwitchTo(old);
	fixed.subtransaction = GetCurrentSubTransactionId();
	fixed.set = true;
	identity_changed();
	apitoken_enforce_read_only();
}

static void
fix_token(const ApitokenVerification *verification)
{
	const ApitokenRecord *record = &verification->record;
	ApitokenPrincipal principal;

	apitoken_principal_of_token(record, &principal);
	memcpy(principal.digest, record->secrets[verification->secret].digest, sizeof(principal.digest));
	fix_principal(&principal);
}

static void
fix_user(const char *user_id)
{
	ApitokenPrincipal principal = {0};
	ApitokenUserRow user;
	Snapshot	snapshot;

	apitoken_check_id("user", user_id);
	snapshot = apitoken_latest_snapshot();
	if (!apitoken_fetch_user(snapshot, user_id, &user) && !apitoken_user_needs_no_row(snapshot, user_id))
	{
		bool		deleted = apitoken_user_was_deleted(snapshot, user_id);

		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 deleted ? errmsg("user \"%s\" was deleted", apitoken_clip(user_id)) :
				 errmsg("user \"%s\" does not exist", apitoken_clip(user_id)),
				 apitoken_errhint(psprintf("If %s, run INSERT INTO apitoken.users (id) VALUES (%s).",
										   deleted ? "the user has come back" : "this is a user of the application",
										   quote_literal_cstr(apitoken_clip(user_id))),
								  "Sign in as another user.")));
	}
	UnregisterSnapshot(snapshot);
	principal.source = APITOKEN_SOURCE_USER;
	principal.kind = APITOKEN_USER;
	principal.user_id = unconstify(char *, user_id);
	principal.access = APITOKEN_FULL;
	fix_principal(&principal);
}

/*
 * Fix the identity to this user.  The session user must hold the capability
 * "act".  `setter` is the role that named the user: see apitoken_setter_counts().
 */
static void
act_as_user(const char *user_id, Oid setter)
{
	char	   *login = GetUserNameFromId(GetSessionUserId(), false);

	if (!apitoken_role_may_act(GetSessionUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to act as a user"),
				 errdetail("Session user \"%s\" does not have the capability \"act\".", login),
				 apitoken_errhint(psprintf("Run SELECT apitoken.allow(%s, 'act').", quote_literal_cstr(login)), NULL)));
	if (!apitoken_setter_counts(setter, apitoken_role_may_act))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to act as a user set by another role"),
				 errdetail("Role \"%s\" does not have the capability \"act\".",
						   GetUserNameFromId(setter, false)),
				 errhint("Set the user before a function of another role runs.")));
	fix_user(user_id);
}

/*
 * Fix the identity to the user whom the JWT names, if the claim counts.  A
 * claim that does not count is not an error, because any login may set claims
 * for other purposes.
 */
static void
sync_jwt_user(void)
{
	Oid			setter = InvalidOid;
	char	   *user_id;
	const char *fault;

	if (*apitoken_jwt_user_claim == '\0' || (fixed.set && fixed.jwt_user_id == NULL))
		return;
	user_id = apitoken_request_claim(apitoken_jwt_user_claim, &setter);
	if (fixed.set && user_id != NULL && strcmp(user_id, fixed.jwt_user_id) == 0)
		return;
	if (user_id == NULL || !apitoken_role_may_act(GetSessionUserId()) ||
		!apitoken_setter_counts(setter, apitoken_role_may_act))
		return;
	fault = apitoken_id_fault(user_id, strlen(user_id));
	if (fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid user id in claim \"%s\"", apitoken_jwt_user_claim),
				 errhint("%s", fault)));
	fix_user(user_id);
	fixed.jwt_user_id = fixed.principal.user_id;
}

void
apitoken_require_valid(const ApitokenVerification *verification)
{
	if (verification->verdict != APITOKEN_VALID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("invalid token"),
				 errdetail("Verdict: %s.", apitoken_verdicts[verification->verdict].name),
				 verification->allowance.retry_after > 0 ?
				 /* rounded up, so that waiting this long is enough */
				 errhint("Try again in %.3f seconds.", (verification->allowance.retry_after + 999) / 1000 / 1000.0) : 0));
}

/*
 * Fix the identity to the token in the setting.  A role that cannot call
 * authenticate() must not bring a token into the session of another one.
 */
static void
act_by_setting(const char *token)
{
	Oid			setter = apitoken_setting_role(APITOKEN_SETTING_TOKEN);
	ApitokenVerification verification;

	if (!apitoken_setter_counts(setter, apitoken_role_may_use))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to act by a token set by another role"),
				 errdetail("Role \"%s\" does not have the capability \"use\".",
						   GetUserNameFromId(setter, false)),
				 errhint("Set the token before a function of another role runs.")));
	apitoken_verify(token, strlen(token), NULL, NULL, NULL, &verification);
	/* any statement may have led here, so the use must not be written now */
	apitoken_use(&verification, 1, NULL, false);
	apitoken_require_valid(&verification);
	fix_token(&verification);
}

/* Fix the identity that the settings name, if the settings have changed. */
void
apitoken_sync_identity(void)
{
	const char *token;
	const char *user_id;

	apitoken_enforce_read_only();
	if (fixed.set && fixed.generation == apitoken_setting_generation)
		return;
	token = apitoken_setting_in_force(APITOKEN_SETTING_TOKEN);
	user_id = apitoken_setting_in_force(APITOKEN_SETTING_USER_ID);
	if (token != NULL)
		act_by_setting(token);
	else if (user_id != NULL)
		act_as_user(user_id, apitoken_setting_role(APITOKEN_SETTING_USER_ID));
	fixed.generation = apitoken_setting_generation;
}

/* The principal of the transaction; NULL if it is anonymous. */
const ApitokenPrincipal *
apitoken_principal(void)
{
	apitoken_sync_identity();
	sync_jwt_user();
	return fixed.set ? &fixed.principal : NULL;
}

static void
warn_outside_block(const char *function)
{
	if (apitoken_outside_block())
		ereport(WARNING,
				(errcode(ERRCODE_NO_ACTIVE_SQL_TRANSACTION),
				 errmsg("effect of %s() ends with this statement or pipeline", function),
				 errhint("Call it between BEGIN and COMMIT.")));
}

/*
 * Enter a database role until the transaction ends, as SET LOCAL ROLE does.
 * This is a convenience and does not confine the client: a client that can run
 * SQL can leave the role by RESET ROLE.
 */
static void
enter_database_role(const char *name)
{
	Oid			role = get_role_oid(name, true);
	char	   *login = GetUserNameFromId(GetSessionUserId(), false);

	if (!OidIsValid(role) || !compat_may_set_role(GetSessionUserId(), role))
		ereport_server(
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot set database role \"%s\"", name),
				 OidIsValid(role) ?
				 errdetail("Session user \"%s\" may not set this role.", login) :
				 errdetail("The database role does not exist."),
				 OidIsValid(role) ?
				 errhint("Run GRANT %s TO %s.", quote_identifier(name), quote_identifier(login)) :
				 errhint("Correct \"database_role\" in apitoken.roles.")));
	(void) set_config_option("role", name, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* Act by a valid token until the transaction ends. */
void
apitoken_act_by(const ApitokenVerification *verification)
{
	fix_token(verification);
	if (verification->standing.database_role != NULL)
		enter_database_role(verification->standing.database_role);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_authenticate);
Datum
apitoken_authenticate(PG_FUNCTION_ARGS)
{
	ApitokenVerification verification;

	apitoken_sync_identity();
	warn_outside_block("authenticate");
	apitoken_verify_datum(PG_GETARG_DATUM(0), PG_ARGISNULL(0), NULL, NULL, NULL, &verification);
	apitoken_use(&verification, 1, NULL, true);
	apitoken_require_valid(&verification);
	apitoken_act_by(&verification);
	PG_RETURN_DATUM(apitoken_verification_datum(&verification));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_current_user_id);
Datum
apitoken_current_user_id(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();

	if (principal == NULL || principal->user_id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(principal->user_id));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_current_organization_id);
Datum
apitoken_current_organization_id(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();

	if (principal == NULL || principal->organization_id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(principal->organization_id));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_current_token_id);
Datum
apitoken_current_token_id(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	pg_uuid_t  *id;

	if (principal == NULL || principal->source != APITOKEN_SOURCE_TOKEN)
		PG_RETURN_NULL();
	id = palloc(sizeof(pg_uuid_t));
	*id = principal->token_id;
	PG_RETURN_UUID_P(id);
}

/* The standing in the token's own organization, or among the user's own things. */
static void
own_standing(const ApitokenPrincipal *principal, ApitokenStanding *standing)
{
	Snapshot	snapshot = apitoken_latest_snapshot();

	apitoken_standing(principal, NULL, snapshot, standing);
	UnregisterSnapshot(snapshot);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_current_role_name);
Datum
apitoken_current_role_name(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	ApitokenStanding standing;

	if (principal == NULL)
		PG_RETURN_NULL();
	own_standing(principal, &standing);
	if (standing.role == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(standing.role));
}

static ArrayType *
groups_of(const ApitokenStanding *standing)
{
	if (standing->groups == NULL || standing->suspended)
		return construct_empty_array(TEXTOID);
	return standing->groups;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_current_groups);
Datum
apitoken_current_groups(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	ApitokenStanding standing = {0};

	if (principal != NULL)
		own_standing(principal, &standing);
	PG_RETURN_ARRAYTYPE_P(groups_of(&standing));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_whoami);
Datum
apitoken_whoami(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	ApitokenPrincipal anonymous = {0};
	ApitokenStanding standing = {0};
	bool		by_token = principal != NULL && principal->source == APITOKEN_SOURCE_TOKEN;
	ApitokenJson state = {0};
	const char *source = "none";

	if (principal != NULL)
	{
		source = by_token ? "token" : fixed.jwt_user_id != NULL ? "jwt" : "user";
		own_standing(principal, &standing);
	}
	else
		principal = &anonymous;

	compat_push_json(&state, WJB_BEGIN_OBJECT, NULL);
	apitoken_json_string(&state, "source", source);
	apitoken_json_string(&state, "user_id", principal->user_id);
	apitoken_json_string(&state, "organization_id", principal->organization_id);
	apitoken_json_string(&state, "token_id", !by_token ? NULL :
				DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&principal->token_id))));
	apitoken_json_string(&state, "role", standing.role);
	apitoken_json_strings(&state, "groups", groups_of(&standing));
	apitoken_json_string(&state, "access", by_token ? apitoken_access_to_text(principal->access) : NULL);
	apitoken_json_bool(&state, "suspended", standing.suspended);
	apitoken_json_bool(&state, "read_only", apitoken_principal_read_only());
	apitoken_json_string(&state, "database_user", GetUserNameFromId(GetUserId(), false));
	apitoken_json_bool(&state, "bypasses_rls", apitoken_bypasses_rls());
	compat_push_json(&state, WJB_END_OBJECT, NULL);
	PG_RETURN_JSONB_P(JsonbValueToJsonb(state.result));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_act_as);
Datum
apitoken_act_as(PG_FUNCTION_ARGS)
{
	char	   *user_id = PG_ARGISNULL(0) ? pstrdup("") : text_to_cstring(PG_GETARG_TEXT_PP(0));

	apitoken_check_id("user", user_id);
	apitoken_sync_identity();
	warn_outside_block("act_as");
	act_as_user(user_id, GetUserId());
	PG_RETURN_DATUM(PG_GETARG_DATUM(0));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_can);
Datum
apitoken_can(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	char	   *permission;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	permission = text_to_cstring(PG_GETARG_TEXT_PP(0));
	apitoken_check_permission(permission);
	if (principal == NULL)
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(apitoken_may(principal, permission,
								PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1))));
}
