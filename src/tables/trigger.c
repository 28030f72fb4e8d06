/*
 * trigger.c
 *		Functions that several trigger functions use.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "utils/datum.h"
#include "utils/rel.h"

#include "tables/tables.h"

/* Raise an error unless the function is called by a trigger on this table. */
void
apitoken_expect_trigger(FunctionCallInfo fcinfo, ApitokenTable table)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		RelationGetRelid(trigger->tg_relation) != apitoken_table(table))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function can only be called by a trigger of extension \"apitoken\"")));
}

/* Raise an error if the extension's triggers do not fire in this session. */
void
apitoken_require_triggers(const char *action)
{
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot %s while \"session_replication_role\" is \"replica\"", action),
				 errdetail("The triggers of the extension do not fire in this mode."),
				 errhint("Run SET session_replication_role = origin.")));
}

/* Did the update change this column? */
bool
apitoken_column_changed(TriggerData *trigger, AttrNumber attribute)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	Form_pg_attribute column = TupleDescAttr(descriptor, attribute - 1);
	bool		old_null;
	bool		new_null;
	Datum		old_value = heap_getattr(trigger->tg_trigtuple, attribute, descriptor, &old_null);
	Datum		new_value = heap_getattr(trigger->tg_newtuple, attribute, descriptor, &new_null);

	if (old_null || new_null)
		return old_null != new_null;
	return !datum_image_eq(old_value, new_value, column->attbyval, column->attlen);
}

/* Did the update change any column of token_records that users may update? */
bool
apitoken_edited(TriggerData *trigger)
{
	for (AttrNumber attribute = 1; attribute <= Natts_token_records; attribute++)
	{
		if (apitoken_column_granted(APITOKEN_TOKEN_RECORDS, attribute, 'w') &&
			apitoken_column_changed(trigger, attribute))
			return true;
	}
	return false;
}
