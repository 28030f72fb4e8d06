/*
 * authorize.c
 *		Which tokens the caller may manage, and which permissions the caller
 *		may give to a token.
 *
 * The triggers, and the functions that take the id of a token, check this
 * here.  The row policies check it in policy.c.  Both use principal.c, so they
 * always agree.  Roles that bypass row-level security (superusers, the tables'
 * owner, roles with BYPASSRLS) may do everything.
 */
#include "postgres.h"

#include "utils/snapmgr.h"

#include "identity/identity.h"

/*
 * Does the caller have this permission on the token?  It is a permission of
 * the resource token.  The user who owns a personal token has all of them.
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
	user_id = apitoken_manageable_user(principal, list_make1(unconstify(char *, permission)));
	return user_id != NULL && strcmp(user_id, record->user_id) == 0;
}

/*
 * A token enters the database_role of its role.  The caller may hand it out only
 * if their own role has the same one.
 */
static void
check_database_role(const char *role, const char *own_database_role)
{
	ApitokenRoleRow row;

	if (!apitoken_role(role, &row) || row.database_role == NULL ||
		(own_database_role != NULL && strcmp(row.database_role, own_database_role) == 0))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("token role has a database role that the role of the caller does not have"),
			 errdetail("Tokens with token role \"%s\" enter the database role \"%s\".", role, row.database_role),
			 errhint("Use another token role, or let a database administrator create or change this token.")));
}

/*
 * Check the ceiling: a token must not have permissions that the caller does
 * not have.  For each effective pattern of the token, a single pattern of the
 * caller must cover it.  A personal token has the database role of its user,
 * who is the caller.
 */
void
apitoken_check_ceiling(const ApitokenRecord *record, Snapshot snapshot)
{
	const ApitokenPrincipal *principal;
	ApitokenStanding standing = {0};
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
				 errmsg("token permissions exceed the permissions of the caller"),
				 errdetail("The caller does not have the permission \"%s\".", excess),
				 errhint("Use a token role, an access or permissions within those of the caller.")));
	if (record->kind == APITOKEN_ORGANIZATION)
		check_database_role(record->role, standing.database_role);
}

/*
 * The error is the same for a token that does not exist and for one that the
 * caller may not manage, so it does not tell which tokens exist.
 */
void
apitoken_refuse(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("token does not exist or permission denied")));
}

/*
 * Is this the token that is acting, and may it regenerate itself?  Its own
 * permissions must name that: no pattern includes it, and no role gives it or takes
 * it away.  So CI jobs can replace their credential although their role manages no
 * tokens.
 */
static bool
rotates_itself(Snapshot snapshot, ApitokenRecord *record)
{
	const ApitokenPrincipal *principal = apitoken_principal();

	if (principal == NULL || principal->source != APITOKEN_SOURCE_TOKEN ||
		memcmp(&principal->token_id, &record->id, sizeof(record->id)) != 0)
		return false;
	apitoken_complete_token(snapshot, record);
	return record->access == APITOKEN_CUSTOM && apitoken_strings_contain(record->permissions, "token:rotate");
}

/*
 * Check a token that regenerates itself, after its row was locked.  It must still be
 * accepted, and by its current secret.  An old one, which somebody may have kept, must
 * not take the token over, and of two calls at the same time only one succeeds.
 */
void
apitoken_check_rotation(const ApitokenRecord *record, Snapshot snapshot)
{
	ApitokenVerification verification = {.verdict = apitoken_decide_again(record, snapshot)};

	apitoken_require_valid(&verification);
	if (!apitoken_digest_matches(apitoken_principal()->digest, record->secrets[0].digest))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("previous secret of a token cannot regenerate it"),
				 errdetail("The token has a new secret."),
				 errhint("Use the current secret.  If it was lost, a caller with the permission \"token:update\" can regenerate the token.")));
}

/*
 * Fetch a token by its id, and check that the caller has this permission on it, or
 * unless by_itself is NULL, that the token may regenerate itself.
 * A refusal makes the same lookups whether the token exists or not, and whoever
 * owns it: everybody sees in the statistics views and in EXPLAIN (ANALYZE,
 * BUFFERS) what a call has read.
 */
void
apitoken_fetch_managed(const pg_uuid_t *id, const char *permission, bool *by_itself, ApitokenRecord *record)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	bool		found = apitoken_fetch_token(snapshot, id, record);
	bool		managed = found && apitoken_may_manage(record, permission);
	ApitokenRecord decoy = {.organization_id = "", .user_id = ""};

	if (by_itself != NULL)
		*by_itself = found && !managed && rotates_itself(snapshot, record);
	if (managed || (by_itself != NULL && *by_itself))
	{
		apitoken_complete_token(snapshot, record);
		UnregisterSnapshot(snapshot);
		return;
	}
	apitoken_fetch_decoy(snapshot, id, !found);
	UnregisterSnapshot(snapshot);
	for (decoy.kind = APITOKEN_ORGANIZATION; decoy.kind <= APITOKEN_USER; decoy.kind++)
	{
		if (!found || decoy.kind != record->kind)
			(void) apitoken_may_manage(&decoy, permission);
	}
	apitoken_refuse();
}
