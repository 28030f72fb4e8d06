/*
 * principal.c
 *		Who may do what where.
 *
 * A principal is an organization's token, a personal token, or a user acting
 * directly.  What it may do in a place (an organization, or a user's own
 * things) is a list of effective patterns: the role's, narrowed by the
 * token's access.  It is read anew at each question, from the latest
 * committed state, so a changed role, a lost membership and a suspension tell
 * at once.  verify(), can(), the policies and the ceiling all ask here.
 */
#include "postgres.h"

#include "utils/snapmgr.h"

#include "apitoken.h"

static List *
everything(void)
{
	return list_make1(pstrdup("*"));
}

static bool
is_direct(const ApitokenPrincipal *principal)
{
	return principal->source == APITOKEN_SOURCE_USER;
}

void
apitoken_principal_of_token(const ApitokenRecord *record, ApitokenPrincipal *principal)
{
	memset(principal, 0, sizeof(*principal));
	principal->source = APITOKEN_SOURCE_TOKEN;
	principal->kind = record->kind;
	principal->organization_id = record->organization_id;
	principal->user_id = record->user_id;
	principal->token_id = record->id;
	principal->role = record->role;
	principal->access = record->access;
	principal->permissions = record->permissions;
}

bool
apitoken_same_principal(const ApitokenPrincipal *a, const ApitokenPrincipal *b)
{
	if (a->source != b->source)
		return false;
	if (a->source == APITOKEN_SOURCE_TOKEN)
		return memcmp(&a->token_id, &b->token_id, sizeof(a->token_id)) == 0;
	return strcmp(a->user_id, b->user_id) == 0;
}

/* A role's patterns as this principal has them; none if there is no such role. */
static List *
patterns_under_role(const ApitokenPrincipal *principal, const char *role, Snapshot snapshot)
{
	List	   *patterns = NIL;

	if (role == NULL)
		patterns = everything();
	else if (!apitoken_fetch_role(snapshot, role, &patterns))
		return NIL;
	if (is_direct(principal))
		return patterns;
	return apitoken_patterns_narrow(patterns, principal->access, principal->permissions,
									principal->kind == APITOKEN_USER);
}

static void
organization_token_standing(const ApitokenPrincipal *principal, const char *organization_id,
							Snapshot snapshot, ApitokenStanding *standing)
{
	if (!apitoken_fetch_organization(snapshot, principal->organization_id, &standing->suspended))
		standing->suspended = true;
	standing->role = principal->role;
	if (standing->suspended)
		return;

	/* it acts in its own organization only */
	if (organization_id != NULL && strcmp(organization_id, principal->organization_id) != 0)
		return;
	standing->patterns = patterns_under_role(principal, principal->role, snapshot);
}

static void
user_standing(const ApitokenPrincipal *principal, const char *organization_id,
			  Snapshot snapshot, ApitokenStanding *standing)
{
	ApitokenUserRow user = {0};
	bool		suspended;

	/*
	 * A user acting directly needs no row.  The owner of a token has one from
	 * the token's creation on: if it is gone, so is the user.
	 */
	if (!apitoken_fetch_user(snapshot, principal->user_id, &user))
		user.suspended = !is_direct(principal);
	standing->suspended = user.suspended;
	standing->groups = user.groups;
	if (user.suspended)
		return;

	if (organization_id == NULL)
	{
		standing->role = user.role;
		standing->patterns = patterns_under_role(principal, user.role, snapshot);
		return;
	}
	standing->role = apitoken_fetch_membership(snapshot, organization_id, principal->user_id);
	if (standing->role == NULL)
		return;
	if (!apitoken_fetch_organization(snapshot, organization_id, &suspended) || suspended)
		return;
	standing->patterns = patterns_under_role(principal, standing->role, snapshot);
}

/*
 * What a principal is in an organization; NULL: a user's own things, or an
 * organization's token's own organization.
 */
void
apitoken_standing(const ApitokenPrincipal *principal, const char *organization_id,
				  Snapshot snapshot, ApitokenStanding *standing)
{
	memset(standing, 0, sizeof(*standing));
	if (principal->kind == APITOKEN_ORGANIZATION)
		organization_token_standing(principal, organization_id, snapshot, standing);
	else
		user_standing(principal, organization_id, snapshot, standing);
}

bool
apitoken_may(const ApitokenPrincipal *principal, const char *permission, const char *organization_id)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	ApitokenStanding standing;

	apitoken_standing(principal, organization_id, snapshot, &standing);
	UnregisterSnapshot(snapshot);
	return apitoken_patterns_match(standing.patterns, permission);
}

/*
 * Ids of the organizations where the principal has at least one of these
 * permissions; with no permissions, of those that it belongs to.
 */
List *
apitoken_organizations_where(const ApitokenPrincipal *principal, List *permissions)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	List	   *candidates = NIL;
	List	   *organizations = NIL;
	ApitokenStanding standing;
	ListCell   *lc;

	if (principal->kind == APITOKEN_ORGANIZATION)
		candidates = list_make1(principal->organization_id);
	else
	{
		foreach(lc, apitoken_fetch_memberships(snapshot, principal->user_id))
			candidates = lappend(candidates, ((ApitokenMembership *) lfirst(lc))->organization_id);
	}

	foreach(lc, candidates)
	{
		char	   *organization_id = lfirst(lc);
		bool		counts = permissions == NIL;
		ListCell   *lp;

		apitoken_standing(principal, organization_id, snapshot, &standing);
		if (standing.suspended)
			break;
		foreach(lp, permissions)
			counts = counts || apitoken_patterns_match(standing.patterns, lfirst(lp));
		if (counts)
			organizations = lappend(organizations, organization_id);
	}
	UnregisterSnapshot(snapshot);
	return organizations;
}

/*
 * What a user, or a personal token, may hand on to a personal token: how the
 * user's own permissions, whatever they are, are narrowed.
 */
List *
apitoken_own_patterns(const ApitokenPrincipal *principal)
{
	if (is_direct(principal))
		return everything();
	return apitoken_patterns_narrow(everything(), principal->access, principal->permissions, true);
}

/*
 * The user whose personal tokens the principal may manage, given that one of
 * these token: permissions suffices; NULL: nobody's.  Any user manages their
 * own; a personal token only if it is custom and names the permission.
 */
const char *
apitoken_managed_user_of(const ApitokenPrincipal *principal, List *permissions)
{
	Snapshot	snapshot;
	ApitokenStanding standing;
	bool		counts = is_direct(principal);
	ListCell   *lc;

	if (principal->kind == APITOKEN_ORGANIZATION)
		return NULL;
	snapshot = apitoken_latest_snapshot();
	apitoken_standing(principal, NULL, snapshot, &standing);
	UnregisterSnapshot(snapshot);
	if (standing.suspended)
		return NULL;
	foreach(lc, permissions)
		counts = counts || apitoken_patterns_match(apitoken_own_patterns(principal), lfirst(lc));
	return counts ? principal->user_id : NULL;
}

/*
 * The effective patterns that the ceiling compares: an organization's token's
 * under its role; a personal token's over whatever its user may do.
 */
List *
apitoken_token_patterns(const ApitokenRecord *record, Snapshot snapshot)
{
	ApitokenPrincipal principal;

	apitoken_principal_of_token(record, &principal);
	if (record->kind == APITOKEN_USER)
		return apitoken_own_patterns(&principal);
	return patterns_under_role(&principal, record->role, snapshot);
}
