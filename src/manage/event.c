/*
 * event.c
 *		The audit: one event for each change of a token.
 *
 * The AFTER trigger writes it, so that it is there for every path that
 * changes a token, and not for one that did not.  A restored row (it came
 * with its digest) is not a change.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#include "manage/manage.h"

/* What an update did; NULL: nothing that is told. */
static const char *
action_of_update(TriggerData *trigger)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);

	if (apitoken_column_changed(trigger, Anum_token_records_revoked_at))
		return "revoke";
	if (apitoken_column_changed(trigger, Anum_token_records_digest))
		return "regenerate";
	if (heap_attisnull(trigger->tg_trigtuple, Anum_token_records_suspended_at, descriptor) !=
		heap_attisnull(trigger->tg_newtuple, Anum_token_records_suspended_at, descriptor))
		return heap_attisnull(trigger->tg_newtuple, Anum_token_records_suspended_at, descriptor) ?
			"resume" : "suspend";
	return apitoken_edited(trigger) ? "edit" : NULL;
}

/* Who did it: actor to client_address of an event. */
typedef struct Actor
{
	Datum		values[4];
	bool		nulls[4];
	NameData	login;
} Actor;

static void
set_actor(Actor *actor)
{
	const ApitokenPrincipal *principal = NULL;
	inet	   *address = apitoken_client_address(NULL);

	/* housekeeping acts for nobody, whoever calls it */
	if (apitoken_running_statement != APITOKEN_REVOKE_IDLE)
		principal = apitoken_principal();
	memset(actor, 0, sizeof(*actor));
	actor->nulls[0] = principal == NULL || principal->user_id == NULL;
	if (!actor->nulls[0])
		actor->values[0] = CStringGetTextDatum(principal->user_id);
	actor->nulls[1] = principal == NULL || principal->source != APITOKEN_SOURCE_TOKEN;
	if (!actor->nulls[1])
		actor->values[1] = UUIDPGetDatum(&principal->token_id);
	namestrcpy(&actor->login, GetUserNameFromId(GetSessionUserId(), false));
	actor->values[2] = NameGetDatum(&actor->login);
	actor->nulls[3] = address == NULL;
	actor->values[3] = InetPGetDatum(address);
}

static void
generate_event_id(pg_uuid_t *id)
{
	if (!apitoken_generate_id(id))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
}

/* `old` and `action` for a change, NULL for a new token. */
static void
write_event(TriggerData *trigger, HeapTuple row, HeapTuple old, const char *action)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	Actor		actor;
	pg_uuid_t	id;
	Datum		values[8];
	char		nulls[8] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	set_actor(&actor);
	generate_event_id(&id);
	values[0] = UUIDPGetDatum(&id);
	values[1] = heap_copy_tuple_as_datum(row, descriptor);
	for (int i = 0; i < lengthof(actor.values); i++)
	{
		values[2 + i] = actor.values[i];
		nulls[2 + i] = actor.nulls[i] ? 'n' : ' ';
	}
	if (old == NULL)
	{
		apitoken_execute(APITOKEN_CREATED, values, nulls);
		return;
	}
	values[6] = heap_copy_tuple_as_datum(old, descriptor);
	values[7] = CStringGetTextDatum(action);
	apitoken_execute(APITOKEN_CHANGED, values, nulls);
}

PG_FUNCTION_INFO_V1(apitoken_token_after_change);
Datum
apitoken_token_after_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor;
	const char *action;
	bool		isnull;

	apitoken_expect_trigger(fcinfo, APITOKEN_TOKEN_RECORDS);
	descriptor = RelationGetDescr(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		Datum		id = heap_getattr(trigger->tg_trigtuple, Anum_token_records_id, descriptor, &isnull);

		if (apitoken_made_here(DatumGetUUIDP(id)))
			write_event(trigger, trigger->tg_trigtuple, NULL, NULL);
	}
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		action = action_of_update(trigger);
		if (action != NULL)
			write_event(trigger, trigger->tg_newtuple, trigger->tg_trigtuple, action);
	}
	else
	{
		Datum		id = heap_getattr(trigger->tg_trigtuple, Anum_token_records_id, descriptor, &isnull);

		apitoken_execute(APITOKEN_FORGET_USAGE, &id, NULL);
	}
	return PointerGetDatum(NULL);
}

PG_FUNCTION_INFO_V1(apitoken_event_refuse_change);
Datum
apitoken_event_refuse_change(PG_FUNCTION_ARGS)
{
	apitoken_expect_trigger(fcinfo, APITOKEN_EVENTS);
	if (apitoken_running_statement == APITOKEN_REMOVE_EVENTS &&
		TRIGGER_FIRED_BY_DELETE(((TriggerData *) fcinfo->context)->tg_event))
		return PointerGetDatum(NULL);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("events cannot be changed or deleted"),
			 errdetail("The audit is only ever added to."),
			 errhint("The setting apitoken.retention says how long events are kept.")));
	return PointerGetDatum(NULL);
}

/* Of the view tokens, and TRUNCATE of the table beneath it. */
PG_FUNCTION_INFO_V1(apitoken_token_refuse_delete);
Datum
apitoken_token_refuse_delete(PG_FUNCTION_ARGS)
{
	/* the view is none of the tables that apitoken_expect_trigger() knows */
	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BY_DELETE(((TriggerData *) fcinfo->context)->tg_event))
		apitoken_expect_trigger(fcinfo, APITOKEN_TOKEN_RECORDS);
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("tokens are not deleted"),
			 errhint("Use apitoken.revoke_token(id): a revoked token is refused for good and kept for the record.")));
	return PointerGetDatum(NULL);
}
