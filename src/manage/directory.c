/*
 * directory.c
 *		Triggers on organizations, users, memberships and roles.
 *
 * The trigger for the deletion of an owner is in revoke.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "manage/manage.h"

static const char *const built_in_roles[] = {"admin", "developer"};

static bool
is_built_in(const char *role)
{
	for (int i = 0; i < lengthof(built_in_roles); i++)
	{
		if (strcmp(role, built_in_roles[i]) == 0)
			return true;
	}
	return false;
}

static char *
role_name(TriggerData *trigger, HeapTuple tuple)
{
	bool		isnull;
	Datum		name = heap_getattr(tuple, Anum_role_records_name, RelationGetDescr(trigger->tg_relation), &isnull);

	/* after this trigger, the table refuses a null name */
	return isnull ? pstrdup("") : TextDatumGetCString(name);
}

/* Run a statement whose parameters are the columns of a role. */
static uint64
execute_for_role(ApitokenStatement statement, TriggerData *trigger, HeapTuple tuple)
{
	Datum		values[Natts_role_records];
	bool		isnull[Natts_role_records];
	char		nulls[Natts_role_records];

	for (int i = 0; i < lengthof(values); i++)
	{
		values[i] = heap_getattr(tuple, i + 1, RelationGetDescr(trigger->tg_relation), &isnull[i]);
		nulls[i] = isnull[i] ? 'n' : ' ';
	}
	return apitoken_execute(statement, values, nulls);
}

/* A role that a member has, or that new tokens get, cannot be renamed or deleted. */
static void
refuse_role_in_use(const char *name)
{
	Datum		value = CStringGetTextDatum(name);

	if (apitoken_execute(APITOKEN_DEFAULTS_TO_ROLE, &value, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("token role \"%s\" is in use", name),
				 errdetail("It is the default role of an organization's tokens."),
				 apitoken_errhint(psprintf("Run UPDATE apitoken.organizations SET default_role = NULL WHERE default_role = %s first.",
										   quote_literal_cstr(name)),
								  "Give the organization another default role first, by PATCH /organizations.")));

	if (apitoken_execute(APITOKEN_MEMBERS_WITH_ROLE, &value, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("token role \"%s\" is in use", name),
				 errdetail("Members of organizations have this token role."),
				 apitoken_errhint(psprintf("Run UPDATE apitoken.memberships SET role = '...' WHERE role = %s first.",
										   quote_literal_cstr(name)),
								  "Give the members another token role first, by PATCH /memberships.")));
}

/*
 * The view roles is written with the rights of its owner, so no policy is asked.
 * The server has checked the privileges on the view, but has also counted those
 * of pg_write_all_data.
 */
static void
check_writer(TriggerData *trigger)
{
	AclMode		mode = TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ? ACL_INSERT :
		TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? ACL_UPDATE : ACL_DELETE;
	Oid			view = get_relname_relid("roles", get_namespace_oid("apitoken", false));

	if (!apitoken_is_owner() && !apitoken_was_granted(view, mode))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to change token roles"),
				 errhint("Grant the capability \"directory\" to the role.")));
}

/* The database_role in a row of roles; NULL if it is null or there is no row. */
static char *
database_role(TriggerData *trigger, HeapTuple tuple)
{
	bool		isnull;
	Datum		name;

	if (tuple == NULL)
		return NULL;
	name = heap_getattr(tuple, Anum_role_records_database_role, RelationGetDescr(trigger->tg_relation), &isnull);
	return isnull ? NULL : NameStr(*DatumGetName(name));
}

/*
 * Only the tables' owner may set, change or remove a database_role, whatever is
 * granted to others.  Deleting the role and inserting it again removes it, too.
 */
static void
check_database_role(TriggerData *trigger, HeapTuple old_tuple, HeapTuple new_tuple)
{
	const char *old_role = database_role(trigger, old_tuple);
	const char *new_role = database_role(trigger, new_tuple);

	if (old_role == new_role ||
		(old_role != NULL && new_role != NULL && strcmp(old_role, new_role) == 0) ||
		apitoken_is_owner())
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to set, change or remove the database role of a token role"),
			 errhint("Let the owner of the extension's tables, role \"%s\", do this.",
					 GetUserNameFromId(apitoken_owner(), false))));
}

/*
 * A restore is recognized by row_security, which pg_dump's scripts set to off.  It
 * may load the rows of all tables in any order.
 */
static bool
restoring(void)
{
	return !row_security && apitoken_is_owner();
}

/*
 * A membership needs its organization and its role.  Both rows are locked, so
 * that they exist until this transaction ends.
 *
 * A restore is not checked, because it may insert these rows later.  A membership
 * without its organization or its role allows nothing.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_membership_before_change);
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
	if (restoring())
		return PointerGetDatum(tuple);

	/* after this trigger, the table refuses nulls */
	organization_id = heap_getattr(tuple, Anum_memberships_organization_id, descriptor, &isnull);
	if (!isnull)
	{
		apitoken_check_id("organization", TextDatumGetCString(organization_id));
		apitoken_lock_organization(TextDatumGetCString(organization_id));
	}
	role = heap_getattr(tuple, Anum_memberships_role, descriptor, &no_role);
	if (!no_role)
		apitoken_lock_role(TextDatumGetCString(role));
	return PointerGetDatum(tuple);
}

/* Of role_records and its child built_in_roles.  Returns whether the trigger is on the child. */
static bool
expect_role_trigger(FunctionCallInfo fcinfo)
{
	if (CALLED_AS_TRIGGER(fcinfo) &&
		RelationGetRelid(((TriggerData *) fcinfo->context)->tg_relation) == apitoken_table(APITOKEN_BUILT_IN_ROLES))
		return true;
	apitoken_expect_trigger(fcinfo, APITOKEN_ROLE_RECORDS);
	return false;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_role_before_change);
Datum
apitoken_role_before_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	tuple;
	char	   *old_name = NULL;
	Datum		permissions;
	bool		isnull;

	(void) expect_role_trigger(fcinfo);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot truncate table \"%s\"", RelationGetRelationName(trigger->tg_relation)),
				 errhint("Use DELETE, which checks each token role.")));
	check_writer(trigger);
	tuple = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple;
	check_database_role(trigger,
						TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ? NULL : trigger->tg_trigtuple,
						TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ? NULL : tuple);
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
			return PointerGetDatum(tuple);
	}
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || strcmp(old_name, role_name(trigger, tuple)) != 0)
		apitoken_check_role_name(role_name(trigger, tuple));
	permissions = heap_getattr(tuple, Anum_role_records_permissions, RelationGetDescr(trigger->tg_relation), &isnull);
	if (!isnull)
		apitoken_check_patterns(DatumGetArrayTypeP(permissions));
	/* a restore, which the owner runs, must not fail */
	if (!isnull && apitoken_running_statement == APITOKEN_NO_STATEMENT &&
		(TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || apitoken_column_changed(trigger, Anum_role_records_permissions)))
		apitoken_check_known(DatumGetArrayTypeP(permissions), apitoken_is_owner() ? WARNING : ERROR);
	return PointerGetDatum(tuple);
}

/*
 * If the tables' owner inserts a role that exists, the existing row is updated.
 * A restore or the replication into a database that has used or changed a
 * built-in role needs this.  Rows of built_in_roles come from the install script
 * alone; replication must not insert those of another database.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_role_before_insert);
Datum
apitoken_role_before_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	tuple;
	char	   *name;

	if (expect_role_trigger(fcinfo))
		return PointerGetDatum(NULL);
	tuple = trigger->tg_trigtuple;
	if (apitoken_running_statement == APITOKEN_STORE_BUILT_IN_ROLE ||
		apitoken_running_statement == APITOKEN_STORE_ROLE)
		return PointerGetDatum(tuple);
	if (apitoken_is_owner())
		return PointerGetDatum(execute_for_role(APITOKEN_REPLACE_ROLE, trigger, tuple) > 0 ? NULL : tuple);
	name = role_name(trigger, tuple);
	if (is_built_in(name))
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("token role \"%s\" exists already", name),
				 errhint("Use UPDATE to change a built-in token role.")));
	return PointerGetDatum(tuple);
}

/*
 * The first change of a built-in role: it becomes a row of role_records, and the
 * view does not show the row of built_in_roles any more.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_built_in_role_after_update);
Datum
apitoken_built_in_role_after_update(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	apitoken_expect_trigger(fcinfo, APITOKEN_BUILT_IN_ROLES);
	/* The publisher of a logical replication sends the row of role_records next. */
	if (execute_for_role(APITOKEN_STORE_ROLE, trigger, trigger->tg_newtuple) == 0 &&
		SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not change token role \"%s\" due to concurrent use or change",
						role_name(trigger, trigger->tg_newtuple)),
				 errhint("The transaction might succeed if retried.")));
	return PointerGetDatum(NULL);
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

/* Store a built-in role in role_records, unless it is there.  Does nothing for other roles. */
static void
store_role(const char *name)
{
	ApitokenRoleRow row;
	Datum		value;

	if (restoring() || apitoken_role(name, &row))
		return;
	value = CStringGetTextDatum(name);
	apitoken_execute(APITOKEN_STORE_BUILT_IN_ROLE, &value, NULL);
}

/*
 * The first organization stores the built-in roles, so that the first tokens of
 * different organizations do not wait for each other.  The role that limits a
 * user may be one that does not exist.
 */
static void
store_roles_of_owner(bool of_user, HeapTuple tuple, TupleDesc descriptor)
{
	bool		isnull;
	Datum		role;

	if (!of_user)
	{
		for (int i = 0; i < lengthof(built_in_roles); i++)
			store_role(built_in_roles[i]);
		return;
	}
	role = heap_getattr(tuple, Anum_users_role, descriptor, &isnull);
	if (!isnull)
		store_role(TextDatumGetCString(role));
}

/* Is this the insert of a row, or an update that changes this column? */
static bool
is_new_value(TriggerData *trigger, AttrNumber attribute)
{
	return TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || apitoken_column_changed(trigger, attribute);
}

/*
 * May the caller give this role to a token of the organization?  The default role of
 * new tokens must not wait for one that somebody with more permissions makes.
 */
static void
check_may_give(char *organization_id, char *role)
{
	ApitokenRecord token = {
		.kind = APITOKEN_ORGANIZATION, .organization_id = organization_id, .role = role, .access = APITOKEN_FULL
	};
	Snapshot	snapshot = apitoken_latest_snapshot();

	apitoken_check_ceiling(&token, snapshot);
	UnregisterSnapshot(snapshot);
}

/*
 * Check the policy of an organization, apart from what the table's constraints check.
 * Returns the row that is stored.
 */
static HeapTuple
check_policy(TriggerData *trigger, HeapTuple tuple)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	int			attribute = Anum_organizations_allowed_networks;
	Datum		value;
	bool		isnull;

	if (is_new_value(trigger, Anum_organizations_default_role) && !restoring())
	{
		char	   *role;

		value = heap_getattr(tuple, Anum_organizations_default_role, descriptor, &isnull);
		role = isnull ? pstrdup(APITOKEN_DEFAULT_ROLE) : TextDatumGetCString(value);
		if (!isnull)
			apitoken_lock_role(role);
		if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) && !apitoken_sees_all(APITOKEN_ORGANIZATIONS))
			check_may_give(TextDatumGetCString(heap_getattr(trigger->tg_trigtuple, Anum_organizations_id,
															descriptor, &isnull)), role);
	}
	value = heap_getattr(tuple, Anum_organizations_allowed_networks, descriptor, &isnull);
	if (!isnull && is_new_value(trigger, Anum_organizations_allowed_networks))
	{
		ArrayType  *networks = DatumGetArrayTypeP(value);

		apitoken_check_networks(networks, "Specify null for tokens that are accepted from every address.");
		value = PointerGetDatum(apitoken_canonical_networks(networks));
		tuple = heap_modify_tuple_by_cols(tuple, descriptor, 1, &attribute, &value, &isnull);
	}
	return tuple;
}

/*
 * Ids of organizations and users cannot change.  TRUNCATE is refused, because it
 * would not revoke the tokens.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_owner_before_change);
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
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		store_roles_of_owner(of_user, trigger->tg_trigtuple, descriptor);
		return PointerGetDatum(of_user ? trigger->tg_trigtuple : check_policy(trigger, trigger->tg_trigtuple));
	}
	if (of_user)
		store_roles_of_owner(true, trigger->tg_newtuple, descriptor);
	old_id = TextDatumGetCString(heap_getattr(trigger->tg_trigtuple, id, descriptor, &isnull));
	new_id = heap_attisnull(trigger->tg_newtuple, id, descriptor) ? pstrdup("") :
		TextDatumGetCString(heap_getattr(trigger->tg_newtuple, id, descriptor, &isnull));
	if (strcmp(old_id, new_id) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change the id of an organization or user"),
				 errhint("Insert a new row, then delete the old one.  The deletion revokes its tokens.")));
	return PointerGetDatum(of_user ? trigger->tg_newtuple : check_policy(trigger, set_resumed_at(trigger)));
}

/*
 * For the tables' CHECK constraints, which also hold in a restore and without
 * triggers.  It raises an error itself, because that of a violated constraint has
 * no hint.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_check_permission_sql);
Datum
apitoken_check_permission_sql(PG_FUNCTION_ARGS)
{
	apitoken_check_permission(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_BOOL(true);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_check_id_sql);
Datum
apitoken_check_id_sql(PG_FUNCTION_ARGS)
{
	apitoken_check_id(text_to_cstring(PG_GETARG_TEXT_PP(0)), text_to_cstring(PG_GETARG_TEXT_PP(1)));
	PG_RETURN_BOOL(true);
}
