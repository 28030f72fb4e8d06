/*
 * authorize.c
 *		Who may manage which token, and what they may hand out.
 *
 * The triggers and the functions that take a token's id ask here; the row
 * policies ask the same of principal.c, for the same answers.  Whoever is
 * above the policies (superuser, the tables' owner, BYPASSRLS) may do
 * everything, as PostgreSQL has it.
 */
#include "postgres.h"

#include "utils/snapmgr.h"

#include "identity/identity.h"

/*
 * May the caller do this to the token?  A permission of the resource token:
 * the owner user of a personal token has them all.
 */
bool
apitoken_may_manage(const ApitokenRecord *record, const char *permission)
{
	const ApitokenPrincipal *principal;
	const char *user_id;

	if (apitoken_bypasses_rls())
		return true;
	principal = apitoken_principal();
	if (principal == NULL)
		return false;
	if (record->kind == APITOKEN_ORGANIZATION)
		return apitoken_may(principal, permission, record->organization_id);
	user_id = apitoken_managed_user_of(principal, list_make1(unconstify(char *, permission)));
	return user_id != NULL && strcmp(user_id, record->user_id) == 0;
}

/*
 * Nobody hands out more than they hold: each effective pattern of the token
 * must be covered by a single one of the caller's.
 */
void
apitoken_check_ceiling(const ApitokenRecord *record, Snapshot snapshot)
{
	const ApitokenPrincipal *principal;
	ApitokenStanding standing;
	List	   *held;
	const char *excess;

	if (apitoken_bypasses_rls())
		return;
	principal = apitoken_principal();
	if (principal == NULL)
		apitoken_refuse();
	if (record->kind == APITOKEN_USER)
		held = apitoken_own_patterns(principal);
	else
	{
		apitoken_standing(principal, record->organization_id, snapshot, &standing);
		held = apitoken_effective_patterns(principal, &standing);
	}
	excess = apitoken_patterns_uncovered(apitoken_token_patterns(record), held);
	if (excess != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the token has or would have permissions that you do not have"),
				 errdetail("You do not have \"%s\".", excess),
				 errhint("Choose a role, an access or permissions that stay within your own.")));
}

/* The one answer about a token that is not there or not the caller's to manage. */
void
apitoken_refuse(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("there is no such token, or you may not do this to it")));
}

/* A token that the caller names by its id and wants to do something to. */
void
apitoken_fetch_managed(const pg_uuid_t *id, const char *permission, ApitokenRecord *record)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	bool		found = apitoken_fetch_token(snapshot, id, record);

	UnregisterSnapshot(snapshot);
	if (!found || !apitoken_may_manage(record, permission))
		apitoken_refuse();
}
