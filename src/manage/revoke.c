/*
 * revoke.c
 *		Revocation of tokens.
 *
 * Revocation is final, and the revoked token is kept for the record.  The caller
 * needs the permission token:delete, or must be the user who owns the personal
 * token.  The ceiling is not checked, because a revocation gives nobody a
 * permission.  The latest version of the row is updated, whatever the isolation
 * level of the transaction.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#include "manage/manage.h"

/* The acting user, for revoked_by. */
static Datum
acting_user(char *null)
{
	const ApitokenPrincipal *principal = apitoken_principal();

	if (principal == NULL || principal->user_id == NULL)
	{
		*null = 'n';
		return (Datum) 0;
	}
	return CStringGetTextDatum(principal->user_id);
}

/* The reason, without secrets: it may quote what was found. */
static Datum
reason_argument(FunctionCallInfo fcinfo, int argument, char *null)
{
	if (PG_ARGISNULL(argument))
	{
		*null = 'n';
		return (Datum) 0;
	}
	apitoken_check_reason(text_to_cstring(PG_GETARG_TEXT_PP(argument)));
	return CStringGetTextDatum(apitoken_without_secrets(PG_GETARG_DATUM(argument), APITOKEN_REASON_MAX));
}

bool
apitoken_revoke_one(const pg_uuid_t *id, Datum reason, char reason_null)
{
	Datum		values[3];
	char		nulls[3] = {' ', ' ', reason_null};

	values[0] = UUIDPGetDatum(id);
	values[1] = acting_user(&nulls[1]);
	values[2] = reason;
	return apitoken_execute(APITOKEN_REVOKE, values, nulls) > 0;
}

/*
 * Something is revoked already.  The caller may repeat a revocation whose commit was
 * cancelled while it waited for synchronous standbys, or whose answer was lost.  A
 * transaction that writes nothing waits for no standby, so that "false" would confirm
 * nothing.  With this message in the WAL, which nobody reads, its commit waits until
 * they have all earlier ones, too.
 */
static void
confirm_earlier_revocation(void)
{
	if (!XactReadOnly && !IsInParallelMode())
		compat_log_message("apitoken");
}

APITOKEN_FUNCTION_INFO_V1(apitoken_revoke_token);
Datum
apitoken_revoke_token(PG_FUNCTION_ARGS)
{
	ApitokenRecord record;
	Datum		reason;
	char		reason_null = ' ';

	if (PG_ARGISNULL(0))
		apitoken_refuse();
	apitoken_fetch_managed(PG_GETARG_UUID_P(0), "token:delete", NULL, &record);
	reason = reason_argument(fcinfo, 2, &reason_null);
	if (record.revoked)
	{
		confirm_earlier_revocation();
		PG_RETURN_BOOL(false);
	}
	if (record.kind == APITOKEN_ORGANIZATION &&
		(PG_ARGISNULL(1) || strcmp(text_to_cstring(PG_GETARG_TEXT_PP(1)), record.label) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"confirm_label\" does not match the label of the token"),
				 apitoken_errhint("Use revoke_token(id, confirm_label => '...') with the label of the token.",
								  "Send the label of the token as \"confirm_label\".")));
	PG_RETURN_BOOL(apitoken_revoke_one(&record.id, reason, reason_null));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_revoke_by_token);
Datum
apitoken_revoke_by_token(PG_FUNCTION_ARGS)
{
	ApitokenVerification verification;

	apitoken_verify_datum(PG_GETARG_DATUM(0), PG_ARGISNULL(0), NULL, NULL, NULL, &verification);
	if (!apitoken_verdicts[verification.verdict].known)
		PG_RETURN_BOOL(false);
	if (verification.record.revoked)
	{
		confirm_earlier_revocation();
		PG_RETURN_BOOL(false);
	}
	PG_RETURN_BOOL(apitoken_revoke_one(&verification.record.id, CStringGetTextDatum("revoked_by_token"), ' '));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_revoke_tokens);
Datum
apitoken_revoke_tokens(PG_FUNCTION_ARGS)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	List	   *permissions = list_make1("token:delete");
	List	   *organizations = NIL;
	const char *user_id = NULL;
	const char *wanted[3] = {NULL, NULL, NULL};
	bool		bypasses = apitoken_bypasses_rls();
	Datum		values[8];
	char		nulls[8] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	int64		revoked;

	if (PG_ARGISNULL(0) && PG_ARGISNULL(1) && PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("tokens to revoke must be specified"),
				 errhint("Specify \"organization_id\", \"user_id\" or \"created_by\".")));
	/* an id in another spelling would match nothing, and no token would be revoked */
	for (int i = 0; i < 3; i++)
	{
		if (PG_ARGISNULL(i))
			continue;
		wanted[i] = text_to_cstring(PG_GETARG_TEXT_PP(i));
		apitoken_check_id(i == 0 ? "organization" : "user", wanted[i]);
	}
	if (principal != NULL)
	{
		organizations = apitoken_organizations_where(principal, permissions);
		user_id = apitoken_manageable_user(principal, permissions);
	}
	/*
	 * The statement runs as the tables' owner, and counts in the caller's
	 * statistics.  So it looks only for owners whose tokens the caller may revoke.
	 */
	if (wanted[0] != NULL)
	{
		organizations = apitoken_strings_contain(organizations, wanted[0]) ? list_make1(unconstify(char *, wanted[0])) : NIL;
		user_id = NULL;
	}
	if (wanted[1] != NULL)
	{
		organizations = NIL;
		if (user_id != NULL && strcmp(user_id, wanted[1]) != 0)
			user_id = NULL;
	}
	if (!bypasses && organizations == NIL && user_id == NULL)
	{
		PreventCommandIfReadOnly("UPDATE");
		PG_RETURN_INT64(0);
	}
	values[0] = acting_user(&nulls[0]);
	values[1] = reason_argument(fcinfo, 3, &nulls[1]);
	for (int i = 0; i < 3; i++)
	{
		values[2 + i] = PG_GETARG_DATUM(i);
		nulls[2 + i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	values[5] = BoolGetDatum(bypasses);
	values[6] = PointerGetDatum(apitoken_strings_to_array(organizations));
	if (user_id == NULL)
		nulls[7] = 'n';
	else
		values[7] = CStringGetTextDatum(user_id);
	revoked = apitoken_execute(APITOKEN_REVOKE_MATCHING, values, nulls);
	if (revoked == 0)
		confirm_earlier_revocation();
	PG_RETURN_INT64(revoked);
}

/*
 * Revoke the tokens of an organization or user, and end its memberships.  If the
 * id is used again, the new owner has none of them.  Returns the number of both.
 */
uint64
apitoken_end_owner(bool of_user, Datum id)
{
	Datum		values[8];
	char		nulls[8] = {' ', ' ', 'n', 'n', 'n', ' ', 'n', 'n'};
	uint64		ended;

	apitoken_forget_locked();
	values[0] = acting_user(&nulls[0]);
	values[1] = CStringGetTextDatum("owner_deleted");
	values[of_user ? 3 : 2] = id;
	nulls[of_user ? 3 : 2] = ' ';
	values[5] = BoolGetDatum(true);
	ended = apitoken_execute(APITOKEN_REVOKE_MATCHING, values, nulls);
	return ended + apitoken_execute(of_user ? APITOKEN_END_MEMBERSHIPS_OF_USER : APITOKEN_END_MEMBERSHIPS_IN, &id, NULL);
}

/*
 * A deleted user is remembered, because acting as a user would otherwise create
 * the row again.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_owner_after_delete);
Datum
apitoken_owner_after_delete(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		of_user;
	Datum		id;
	bool		isnull;

	if (!CALLED_AS_TRIGGER(fcinfo))
		apitoken_expect_trigger(fcinfo, APITOKEN_USERS);
	of_user = RelationGetRelid(trigger->tg_relation) == apitoken_table(APITOKEN_USERS);
	apitoken_expect_trigger(fcinfo, of_user ? APITOKEN_USERS : APITOKEN_ORGANIZATIONS);

	id = heap_getattr(trigger->tg_trigtuple, of_user ? Anum_users_id : Anum_organizations_id,
					  RelationGetDescr(trigger->tg_relation), &isnull);
	(void) apitoken_end_owner(of_user, id);
	if (of_user)
		apitoken_execute(APITOKEN_REMEMBER_DELETED, &id, NULL);
	return PointerGetDatum(NULL);
}
