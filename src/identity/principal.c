/*
 * principal.c
 *		What a principal may do, and where.
 *
 * A principal is an organization's token, a personal token, or a user acting
 * directly.  What it may do in a place (an organization, or a user's own
 * things) is a list of effective patterns: the patterns of the role, narrowed
 * by the token's access.  The list is computed for each check from the latest
 * committed state.  A change of a role, the end of a membership and a
 * suspension therefore take effect at once.  verify(), can(), the policies and
 * the ceiling all use these functions.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"

#include "identity/identity.h"

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
	principal->issued_at = record->issued_at;
	principal->expires_at = record->expires_at;
}

/*
 * Does the policy of an organization allow this lifetime of a token?  It starts
 * with the secret, so that a regeneration can end a refusal.  Months have different
 * lengths, so adding an interval to the start is not the same as subtracting it from
 * the expiry: either is good enough.  The sum is not computed for a much earlier
 * expiry, so no date is out of range.  All of it is in UTC, so that the time zone of
 * the session does not matter.
 */
bool
apitoken_lifetime_allowed(const ApitokenOrganizationRow *organization,
						  TimestampTz issued_at, TimestampTz expires_at)
{
	if (expires_at == DT_NOEND)
		return organization->max_lifetime == NULL && !organization->require_expiry;
	return organization->max_lifetime == NULL ||
		DatumGetTimestamp(DirectFunctionCall2(timestamp_mi_interval, TimestampGetDatum(expires_at),
											  IntervalPGetDatum(organization->max_lifetime))) <= issued_at ||
		DatumGetTimestamp(DirectFunctionCall2(timestamp_pl_interval, TimestampGetDatum(issued_at),
											  IntervalPGetDatum(organization->max_lifetime))) >= expires_at;
}

/*
 * Does the policy of an organization refuse this principal?  It is about tokens:
 * those of the organization, and personal tokens that act in it.
 */
static bool
is_refused(const ApitokenPrincipal *principal, const ApitokenOrganizationRow *organization)
{
	if (is_direct(principal))
		return false;
	if (principal->kind == APITOKEN_USER && !organization->allow_personal_tokens)
		return true;
	return !apitoken_lifetime_allowed(organization, principal->issued_at, principal->expires_at);
}

/* Ask the policy of an organization. */
static void
ask_policy(const ApitokenPrincipal *principal, const ApitokenOrganizationRow *organization, ApitokenStanding *standing)
{
	standing->policy_refused = is_refused(principal, organization);
	standing->has_policy = true;
	standing->require_expiry = organization->require_expiry;
	standing->allow_personal_tokens = organization->allow_personal_tokens;
	standing->max_lifetime = organization->max_lifetime;
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

/* The patterns of a role: everything for NULL, nothing if the role does not exist. */
static List *
patterns_of_role(const char *role, char **database_role)
{
	ApitokenRoleRow row = {0};

	if (role == NULL)
		return everything();
	(void) apitoken_role(role, &row);
	if (database_role != NULL)
		*database_role = row.database_role;
	return row.patterns;
}

static List *
narrowed(const ApitokenPrincipal *principal, List *patterns)
{
	if (is_direct(principal))
		return patterns;
	return apitoken_patterns_narrow(patterns, principal->access, principal->permissions,
									principal->kind == APITOKEN_USER);
}

/* Do these patterns of a role, narrowed for this principal, allow the permission? */
static bool
allows(const ApitokenPrincipal *principal, List *role_patterns, const char *permission)
{
	return apitoken_patterns_match(role_patterns, permission) &&
		(is_direct(principal) ||
		 apitoken_narrowing_allows(principal->access, principal->permissions,
								   principal->kind == APITOKEN_USER, permission));
}

static void
organization_token_standing(const ApitokenPrincipal *principal, const char *organization_id,
							Snapshot snapshot, ApitokenStanding *standing)
{
	ApitokenOrganizationRow organization;

	standing->suspended = !apitoken_fetch_organization(snapshot, principal->organization_id, &organization) ||
		organization.suspended;
	standing->role = principal->role;
	if (standing->suspended)
		return;
	standing->allowed_networks = organization.allowed_networks;
	standing->tells_networks = organization.tells_networks;
	ask_policy(principal, &organization, standing);
	if (standing->policy_refused)
		return;

	/* the token may do nothing in other organizations */
	if (organization_id != NULL && strcmp(organization_id, principal->organization_id) != 0)
		return;
	standing->role_patterns = patterns_of_role(principal->role, &standing->database_role);
}

/*
 * May a user act without a row in users?  Many applications have no copy of
 * their users there.  But who was deleted must not come back by acting.
 */
bool
apitoken_user_needs_no_row(Snapshot snapshot, const char *user_id)
{
	return !apitoken_required(&apitoken_require_known_users) && !apitoken_user_was_deleted(snapshot, user_id);
}

/*
 * Fetch the row of the user who is acting, directly or by a personal token.  The
 * owner of a personal token got a row with the token at the latest, and without a
 * row was deleted.  A user who may not act counts as suspended.
 */
static void
fetch_acting_user(const ApitokenPrincipal *principal, Snapshot snapshot, ApitokenUserRow *user)
{
	memset(user, 0, sizeof(*user));
	if (!apitoken_fetch_user(snapshot, principal->user_id, user))
		user->suspended = !is_direct(principal) ||
			!apitoken_user_needs_no_row(snapshot, principal->user_id);
}

static void
user_standing(const ApitokenPrincipal *principal, const char *organization_id,
			  Snapshot snapshot, ApitokenStanding *standing)
{
	ApitokenUserRow user;
	ApitokenOrganizationRow organization;

	fetch_acting_user(principal, snapshot, &user);
	standing->suspended = user.suspended;
	standing->groups = user.groups;
	standing->tells_networks = user.tells_networks;
	if (user.suspended)
		return;

	if (organization_id == NULL)
	{
		standing->role = user.role;
		standing->role_patterns = patterns_of_role(user.role, &standing->database_role);
		return;
	}
	standing->role = apitoken_fetch_membership(snapshot, organization_id, principal->user_id);
	if (standing->role == NULL)
		return;
	if (!apitoken_fetch_organization(snapshot, organization_id, &organization) || organization.suspended)
		return;
	ask_policy(principal, &organization, standing);
	if (standing->policy_refused)
		return;
	standing->role_patterns = patterns_of_role(standing->role, &standing->database_role);
}

/*
 * The standing of a principal in an organization.  NULL means the token's own
 * organization, or the user's own things.
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

/* Does the principal have this permission with this standing? */
bool
apitoken_standing_allows(const ApitokenPrincipal *principal, const ApitokenStanding *standing,
						 const char *permission)
{
	return allows(principal, standing->role_patterns, permission);
}

/* All patterns that the principal has with this standing. */
List *
apitoken_effective_patterns(const ApitokenPrincipal *principal, const ApitokenStanding *standing)
{
	return narrowed(principal, standing->role_patterns);
}

/* The principal was allowed something in an organization: record it of a personal token. */
static void
record_seen(const ApitokenPrincipal *principal, const char *organization_id)
{
	if (!is_direct(principal) && principal->kind == APITOKEN_USER)
		apitoken_record_seen(&principal->token_id, organization_id, GetCurrentTimestamp());
}

bool
apitoken_may(const ApitokenPrincipal *principal, const char *permission, const char *organization_id)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	ApitokenStanding standing;
	bool		may;

	apitoken_standing(principal, organization_id, snapshot, &standing);
	UnregisterSnapshot(snapshot);
	may = apitoken_standing_allows(principal, &standing, permission);
	if (may && organization_id != NULL)
		record_seen(principal, organization_id);
	return may;
}

/* Does this role allow at least one of these permissions?  True for an empty list. */
static bool
role_allows_any(const ApitokenPrincipal *principal, const char *role, List *permissions)
{
	List	   *patterns;
	ListCell   *lc;

	if (permissions == NIL)
		return true;
	patterns = patterns_of_role(role, NULL);
	foreach(lc, permissions)
	{
		if (allows(principal, patterns, lfirst(lc)))
			return true;
	}
	return false;
}

/*
 * Ids of the organizations where the principal has at least one of these
 * permissions.  With an empty list: ids of the organizations to which the
 * principal belongs.  A user may be a member of many organizations, mostly with
 * few roles, so each role is checked once.
 */
List *
apitoken_organizations_where(const ApitokenPrincipal *principal, List *permissions)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	List	   *memberships = NIL;
	List	   *checked_roles = NIL;
	List	   *allowing_roles = NIL;
	List	   *organizations = NIL;
	ListCell   *lc;

	if (principal->kind == APITOKEN_ORGANIZATION)
	{
		ApitokenMembership *own = palloc0(sizeof(ApitokenMembership));

		own->organization_id = principal->organization_id;
		own->role = principal->role;
		memberships = list_make1(own);
	}
	else
	{
		ApitokenUserRow user;

		fetch_acting_user(principal, snapshot, &user);
		if (!user.suspended)
			memberships = apitoken_fetch_memberships(snapshot, principal->user_id);
	}

	foreach(lc, memberships)
	{
		ApitokenMembership *membership = lfirst(lc);
		ApitokenOrganizationRow organization;

		CHECK_FOR_INTERRUPTS();
		if (!apitoken_strings_contain(checked_roles, membership->role))
		{
			checked_roles = lappend(checked_roles, membership->role);
			if (role_allows_any(principal, membership->role, permissions))
				allowing_roles = lappend(allowing_roles, membership->role);
		}
		if (apitoken_strings_contain(allowing_roles, membership->role) &&
			apitoken_fetch_organization(snapshot, membership->organization_id, &organization) &&
			!is_refused(principal, &organization) &&
			(!organization.suspended || (permissions == NIL && principal->kind == APITOKEN_USER)))
		{
			organizations = lappend(organizations, membership->organization_id);
			if (permissions != NIL)
				record_seen(principal, membership->organization_id);
		}
	}
	UnregisterSnapshot(snapshot);
	return organizations;
}

/*
 * The patterns that a user or a personal token may give to a personal token.
 * The permissions of the user limit both tokens, whatever they are, so only the
 * narrowing by access is compared: it is applied to everything.
 */
List *
apitoken_own_patterns(const ApitokenPrincipal *principal)
{
	if (is_direct(principal))
		return everything();
	return apitoken_patterns_narrow(everything(), principal->access, principal->permissions, true);
}

/* The user who is acting, directly or by a personal token; NULL if suspended or none. */
const char *
apitoken_active_user(const ApitokenPrincipal *principal)
{
	Snapshot	snapshot;
	ApitokenStanding standing;

	if (principal->kind == APITOKEN_ORGANIZATION)
		return NULL;
	snapshot = apitoken_latest_snapshot();
	apitoken_standing(principal, NULL, snapshot, &standing);
	UnregisterSnapshot(snapshot);
	return standing.suspended ? NULL : principal->user_id;
}

/*
 * The user whose personal tokens the principal may manage by at least one of
 * these permissions of the resource token; NULL if there is none.  A user
 * acting directly manages their own personal tokens.  A personal token manages
 * those of its user only if its access is custom and it names the permission.
 */
const char *
apitoken_manageable_user(const ApitokenPrincipal *principal, List *permissions)
{
	const char *user_id = apitoken_active_user(principal);
	bool		allowed = is_direct(principal);
	ListCell   *lc;

	if (user_id == NULL)
		return NULL;
	foreach(lc, permissions)
		allowed = allowed || apitoken_narrowing_allows(principal->access, principal->permissions, true, lfirst(lc));
	return allowed ? user_id : NULL;
}

/*
 * The patterns of a token that are compared with the ceiling: for an
 * organization's token its effective patterns, for a personal token those of
 * apitoken_own_patterns().
 */
List *
apitoken_token_patterns(const ApitokenRecord *record)
{
	ApitokenPrincipal principal;

	apitoken_principal_of_token(record, &principal);
	if (record->kind == APITOKEN_USER)
		return apitoken_own_patterns(&principal);
	return narrowed(&principal, patterns_of_role(record->role, NULL));
}
