/*
 * directory.c
 *		Triggers on organizations, users, memberships and roles.
 *
 * The trigger for the deletion of an owner is in revoke.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "manage/manage.h"

static bool
is_built_in(const char *role)
{
	return strcmp(role, "admin") == 0 || strcmp(role, "developer") == 0;
}

static char *
role_name(TriggerData *trigger, HeapTuple tuple)
{
	bool		isnull;
	Datum		name = heap_getattr(tuple, Anum_roles_name, RelationGetDescr(trigger->tg_relation), &isnull);

	/* after this trigger, the table refuses a null name */
	return isnull ? pstrdup("") : TextDatumGetCString(name);
}

/*
 * If the tables' owner inserts a role that exists, the existing row is updated.
 * A restore needs this, because the install script has created the built-in
 * roles before the restore inserts those of the dump.
 */
static bool
replace_role(TriggerData *trigger, const char *name)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	Snapshot	snapshot = apitoken_latest_snapshot();
	ApitokenRoleRow row;
	bool		exists = apitoken_fetch_role(snapshot, name, &row);
	Datum		values[Natts_roles];
	bool		isnull[Natts_roles];
	char		nulls[Natts_roles];

	UnregisterSnapshot(snapshot);
	if (!exists || !apitoken_is_owner())
		return false;
	for (int i = 0; i < lengthof(values); i++)
	{
		values[i] = heap_getattr(trigger->tg_trigtuple, i + 1, descriptor, &isnull[i]);
		nulls[i] = isnull[i] ? 'n' : ' ';
	}
	apitoken_execute(APITOKEN_REPLACE_ROLE, values, nulls);
	return true;
}

/* A role that a member has cannot be renamed or deleted. */
static void
refuse_role_in_use(const char *name)
{
	Datum		value = CStringGetTextDatum(name);

	if (apitoken_execute(APITOKEN_MEMBERS_WITH_ROLE, &value, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("token role \"%s\" is in use", name),
				 errdetail("Members of organizations have this token role."),
				 errhint("Run UPDATE apitoken.memberships SET role = '...' WHERE role = %s first.",
						 quote_literal_cstr(name))));
}

/*
 * A membership needs its organization and its role.  Both rows are locked, so
 * that they exist until this transaction ends.
 *
 * A restore is not checked, because it may insert these rows later.  It is
 * recognized by row_security, which pg_dump's scripts set to off.  A membership
 * without its organization or its role allows nothing.
 */
PG_FUNCTION_INFO_V1(apitoken_membership_before_change);
Datum
apitoken_membership_before_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor;
	HeapTuple	tuple;
	Datum		organization_id;
	Datum		role;
	bool		isnull;
	bool		no_role;

	apitoken_expect_trigger(fcinfo, APITOKEN_MEMBERSHIPS);
	descriptor = RelationGetDescr(trigger->tg_relation);
	tuple = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple;
	if (!row_security && apitoken_is_owner())
		return PointerGetDatum(tuple);

	/* after this trigger, the table refuses nulls */
	organization_id = heap_getattr(tuple, Anum_memberships_organization_id, descriptor, &isnull);
	if (!isnull)
	{
		apitoken_check_id("organization", TextDatumGetCString(organization_id));
		apitoken_lock_organization(TextDatumGetCString(organization_id));
	}
	role = heap_getattr(tuple, Anum_memberships_role, descriptor, &no_role);
	if (!no_role && apitoken_execute(APITOKEN_LOCK_ROLE, &role, NULL) == 0)
		apitoken_refuse_role(TextDatumGetCString(role));
	return PointerGetDatum(tuple);
}

PG_FUNCTION_INFO_V1(apitoken_role_before_change);
Datum
apitoken_role_before_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	tuple;
	char	   *old_name = NULL;
	Datum		permissions;
	bool		isnull;

	apitoken_expect_trigger(fcinfo, APITOKEN_ROLES);
	if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		old_name = role_name(trigger, trigger->tg_trigtuple);
		if (is_built_in(old_name) &&
			(TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ||
			 strcmp(old_name, role_name(trigger, trigger->tg_newtuple)) != 0))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("cannot rename or delete built-in token role \"%s\"", old_name),
					 errhint("Only the other columns of a built-in token role can be changed.")));
		if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ||
			strcmp(old_name, role_name(trigger, trigger->tg_newtuple)) != 0)
			refuse_role_in_use(old_name);
		if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
			return PointerGetDatum(trigger->tg_trigtuple);
	}
	tuple = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple;
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || strcmp(old_name, role_name(trigger, tuple)) != 0)
		apitoken_check_role_name(role_name(trigger, tuple));
	permissions = heap_getattr(tuple, Anum_roles_permissions, RelationGetDescr(trigger->tg_relation), &isnull);
	if (!isnull)
		apitoken_check_patterns(DatumGetArrayTypeP(permissions));
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && replace_role(trigger, role_name(trigger, tuple)))
		return PointerGetDatum(NULL);
	return PointerGetDatum(tuple);
}

/*
 * Set resumed_at if this update ends a suspension.  The tokens of a suspended
 * organization cannot be used, so their idle time starts again.
 */
static HeapTuple
set_resumed_at(TriggerData *trigger)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	int			attribute = Anum_organizations_resumed_at;
	Datum		now = TimestampTzGetDatum(GetCurrentTimestamp());
	bool		isnull = false;

	if (heap_attisnull(trigger->tg_trigtuple, Anum_organizations_suspended_at, descriptor) ||
		!heap_attisnull(trigger->tg_newtuple, Anum_organizations_suspended_at, descriptor))
		return trigger->tg_newtuple;
	return heap_modify_tuple_by_cols(trigger->tg_newtuple, descriptor, 1, &attribute, &now, &isnull);
}

/*
 * Ids of organizations and users cannot change.  TRUNCATE is refused, because it
 * would not revoke the tokens.
 */
PG_FUNCTION_INFO_V1(apitoken_owner_before_change);
Datum
apitoken_owner_before_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		of_user = CALLED_AS_TRIGGER(fcinfo) &&
		RelationGetRelid(trigger->tg_relation) == apitoken_table(APITOKEN_USERS);
	AttrNumber	id = of_user ? Anum_users_id : Anum_organizations_id;
	TupleDesc	descriptor;
	bool		isnull;
	char	   *old_id;
	char	   *new_id;

	if (!of_user)
		apitoken_expect_trigger(fcinfo, APITOKEN_ORGANIZATIONS);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot truncate table \"%s\"", RelationGetRelationName(trigger->tg_relation)),
				 errhint("Use DELETE, which revokes the tokens of the deleted rows.")));

	descriptor = RelationGetDescr(trigger->tg_relation);
	old_id = TextDatumGetCString(heap_getattr(trigger->tg_trigtuple, id, descriptor, &isnull));
	new_id = heap_attisnull(trigger->tg_newtuple, id, descriptor) ? pstrdup("") :
		TextDatumGetCString(heap_getattr(trigger->tg_newtuple, id, descriptor, &isnull));
	if (strcmp(old_id, new_id) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change the id of an organization or user"),
				 errhint("Insert a new row, then delete the old one.  The deletion revokes its tokens.")));
	return PointerGetDatum(of_user ? trigger->tg_newtuple : set_resumed_at(trigger));
}

/*
 * For the tables' CHECK constraints, which also hold in a restore and without
 * triggers.  It raises an error itself, because that of a violated constraint has
 * no hint.
 */
PG_FUNCTION_INFO_V1(apitoken_check_id_sql);
Datum
apitoken_check_id_sql(PG_FUNCTION_ARGS)
{
	apitoken_check_id(text_to_cstring(PG_GETARG_TEXT_PP(0)), text_to_cstring(PG_GETARG_TEXT_PP(1)));
	PG_RETURN_BOOL(true);
}
