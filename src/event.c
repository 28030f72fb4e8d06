/*
 * event.c
 *		The audit: one event for each change of a token.
 *
 * AFTER triggers write it, so that it is there for every path that changes a
 * token, and not for one that did not.  A restored row (it came with its
 * digest) is not a change.
 *
 * New tokens come in any number: one trigger for the whole statement writes
 * what belongs to them.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "apitoken.h"

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

/* $1 to $6 of APITOKEN_CREATED and APITOKEN_CHANGED */
static void
set_parameters(const Actor *actor, const pg_uuid_t *event_id, Datum row, Datum *values, char *nulls)
{
	values[0] = UUIDPGetDatum(event_id);
	nulls[0] = ' ';
	values[1] = row;
	nulls[1] = ' ';
	for (int i = 0; i < lengthof(actor->values); i++)
	{
		values[2 + i] = actor->values[i];
		nulls[2 + i] = actor->nulls[i] ? 'n' : ' ';
	}
}

static void
write_change(TriggerData *trigger, const char *action)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	Actor		actor;
	pg_uuid_t	id;
	Datum		values[8];
	char		nulls[8];

	set_actor(&actor);
	if (!apitoken_generate_id(&id))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	set_parameters(&actor, &id, heap_copy_tuple_as_datum(trigger->tg_newtuple, descriptor), values, nulls);
	values[6] = heap_copy_tuple_as_datum(trigger->tg_trigtuple, descriptor);
	nulls[6] = ' ';
	values[7] = CStringGetTextDatum(action);
	nulls[7] = ' ';
	apitoken_execute(APITOKEN_CHANGED, values, nulls);
}

/* The new tokens of a statement, and where what belongs to them goes. */
typedef struct Creation
{
	Tuplestorestate *made;
	TupleTableSlot *token;		/* the one that it is about now */
	pg_uuid_t	event_id;
	Actor		actor;
	ApitokenAppend events;
	ApitokenAppend usage;
} Creation;

/* Go on to the next token that was made and not restored. */
static bool
next_made(Creation *creation)
{
	bool		isnull;

	while (tuplestore_gettupleslot(creation->made, true, false, creation->token))
	{
		Datum		id = slot_getattr(creation->token, Anum_token_records_id, &isnull);

		if (apitoken_made_here(DatumGetUUIDP(id), &creation->event_id))
			return true;
	}
	return false;
}

/* A column of the token for one of its event. */
static void
copy_column(TupleTableSlot *token, AttrNumber from, Datum *values, bool *nulls, AttrNumber to)
{
	values[to - 1] = slot_getattr(token, from, &nulls[to - 1]);
}

static void
append_event(Creation *creation)
{
	TupleTableSlot *token = creation->token;
	JsonbParseState *details = NULL;
	Datum		values[Anum_events_details] = {0};
	bool		nulls[Anum_events_details] = {false};
	bool		isnull;

	values[Anum_events_id - 1] = UUIDPGetDatum(&creation->event_id);
	copy_column(token, Anum_token_records_created_at, values, nulls, Anum_events_at);
	values[Anum_events_action - 1] = CStringGetTextDatum("create");
	copy_column(token, Anum_token_records_id, values, nulls, Anum_events_token_id);
	copy_column(token, Anum_token_records_organization_id, values, nulls, Anum_events_organization_id);
	copy_column(token, Anum_token_records_user_id, values, nulls, Anum_events_user_id);
	memcpy(&values[Anum_events_actor - 1], creation->actor.values, sizeof(creation->actor.values));
	memcpy(&nulls[Anum_events_actor - 1], creation->actor.nulls, sizeof(creation->actor.nulls));
	pushJsonbValue(&details, WJB_BEGIN_OBJECT, NULL);
	apitoken_json_string(&details, "masked",
						 TextDatumGetCString(slot_getattr(token, Anum_token_records_masked, &isnull)));
	apitoken_json_string(&details, "label",
						 TextDatumGetCString(slot_getattr(token, Anum_token_records_label, &isnull)));
	values[Anum_events_details - 1] =
		JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&details, WJB_END_OBJECT, NULL)));
	apitoken_append(&creation->events, values, nulls);
}

/* Not if it has one: somebody's trigger or RETURNING may have used the token. */
static void
append_usage(Creation *creation)
{
	Datum		values[Anum_token_usage_last_used_from] = {0};
	bool		nulls[Anum_token_usage_last_used_from] = {false};
	TimestampTz last_used_at;
	bool		isnull;

	values[Anum_token_usage_token_id - 1] = slot_getattr(creation->token, Anum_token_records_id, &isnull);
	nulls[Anum_token_usage_last_used_at - 1] = true;
	values[Anum_token_usage_accepted - 1] = Int64GetDatum(0);
	values[Anum_token_usage_refused - 1] = Int64GetDatum(0);
	nulls[Anum_token_usage_last_used_from - 1] = true;
	if (!apitoken_fetch_last_used(SnapshotSelf, DatumGetUUIDP(values[0]), &last_used_at))
		apitoken_append(&creation->usage, values, nulls);
}

static void
append_created(void *arg)
{
	Creation   *creation = arg;
	MemoryContext per_token = AllocSetContextCreate(CurrentMemoryContext, "apitoken new token", ALLOCSET_SMALL_SIZES);

	apitoken_begin_append(&creation->events);
	apitoken_begin_append(&creation->usage);
	do
	{
		MemoryContext old = MemoryContextSwitchTo(per_token);

		append_event(creation);
		append_usage(creation);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_token);
	} while (next_made(creation));
	apitoken_end_append(&creation->usage);
	apitoken_end_append(&creation->events);
	MemoryContextDelete(per_token);
}

/* The same by a statement for each. */
static void
execute_created(Creation *creation)
{
	Datum		values[6];
	char		nulls[6];

	do
	{
		Datum		row = ExecFetchSlotHeapTupleDatum(creation->token);

		set_parameters(&creation->actor, &creation->event_id, row, values, nulls);
		apitoken_execute(APITOKEN_CREATED, values, nulls);
		pfree(DatumGetPointer(row));
	} while (next_made(creation));
}

PG_FUNCTION_INFO_V1(apitoken_token_after_insert);
Datum
apitoken_token_after_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Creation	creation;
	bool		plain_events;
	bool		plain_usage;

	apitoken_expect_trigger(fcinfo, APITOKEN_TOKEN_RECORDS);
	if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || trigger->tg_newtable == NULL)
		apitoken_refuse_trigger();
	creation.made = trigger->tg_newtable;
	tuplestore_select_read_pointer(creation.made,
								   tuplestore_alloc_read_pointer(creation.made, EXEC_FLAG_REWIND));
	tuplestore_rescan(creation.made);
	creation.token = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation), &TTSOpsMinimalTuple);
	if (next_made(&creation))
	{
		set_actor(&creation.actor);
		plain_events = apitoken_open_append(&creation.events, APITOKEN_EVENTS, Anum_events_details);
		plain_usage = apitoken_open_append(&creation.usage, APITOKEN_TOKEN_USAGE, Anum_token_usage_last_used_from);
		if (plain_events && plain_usage)
			apitoken_as_owner(APITOKEN_CREATED, append_created, &creation);
		else
			execute_created(&creation);
		apitoken_close_append(&creation.usage);
		apitoken_close_append(&creation.events);
	}
	ExecDropSingleTupleTableSlot(creation.token);
	return PointerGetDatum(NULL);
}

PG_FUNCTION_INFO_V1(apitoken_token_after_change);
Datum
apitoken_token_after_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *action;
	bool		isnull;

	apitoken_expect_trigger(fcinfo, APITOKEN_TOKEN_RECORDS);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		action = action_of_update(trigger);
		if (action != NULL)
			write_change(trigger, action);
	}
	else
	{
		Datum		id = heap_getattr(trigger->tg_trigtuple, Anum_token_records_id,
									  RelationGetDescr(trigger->tg_relation), &isnull);

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
