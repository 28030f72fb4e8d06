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
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

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

/* By a statement; `old` and `action` for a change, NULL for a new token. */
static void
execute_event(TriggerData *trigger, const Actor *actor, HeapTuple row, HeapTuple old, const char *action)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	pg_uuid_t	id;
	Datum		values[8];
	char		nulls[8] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	generate_event_id(&id);
	values[0] = UUIDPGetDatum(&id);
	values[1] = heap_copy_tuple_as_datum(row, descriptor);
	for (int i = 0; i < lengthof(actor->values); i++)
	{
		values[2 + i] = actor->values[i];
		nulls[2 + i] = actor->nulls[i] ? 'n' : ' ';
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

/* A new token, and where what belongs to it goes. */
typedef struct Creation
{
	TupleDesc	descriptor;
	HeapTuple	row;
	Actor		actor;
	Relation	events;
	Relation	usage;
} Creation;

/* A column of the token for one of its event or usage. */
static void
copy_column(Creation *creation, AttrNumber from, Datum *values, bool *nulls, AttrNumber to)
{
	values[to - 1] = heap_getattr(creation->row, from, creation->descriptor, &nulls[to - 1]);
}

static void
push_column(Creation *creation, AttrNumber from, ApitokenJson *details, const char *key)
{
	bool		isnull;

	apitoken_json_string(details, key,
						 TextDatumGetCString(heap_getattr(creation->row, from, creation->descriptor, &isnull)));
}

static void
append_event(Creation *creation)
{
	ApitokenJson details = {0};
	Datum		values[Anum_events_details] = {0};
	bool		nulls[Anum_events_details] = {false};
	pg_uuid_t	id;

	generate_event_id(&id);
	values[Anum_events_id - 1] = UUIDPGetDatum(&id);
	copy_column(creation, Anum_token_records_created_at, values, nulls, Anum_events_at);
	values[Anum_events_action - 1] = CStringGetTextDatum("create");
	copy_column(creation, Anum_token_records_id, values, nulls, Anum_events_token_id);
	copy_column(creation, Anum_token_records_organization_id, values, nulls, Anum_events_organization_id);
	copy_column(creation, Anum_token_records_user_id, values, nulls, Anum_events_user_id);
	memcpy(&values[Anum_events_actor - 1], creation->actor.values, sizeof(creation->actor.values));
	memcpy(&nulls[Anum_events_actor - 1], creation->actor.nulls, sizeof(creation->actor.nulls));
	compat_push_json(&details, WJB_BEGIN_OBJECT, NULL);
	push_column(creation, Anum_token_records_masked, &details, "masked");
	push_column(creation, Anum_token_records_label, &details, "label");
	compat_push_json(&details, WJB_END_OBJECT, NULL);
	values[Anum_events_details - 1] = JsonbPGetDatum(JsonbValueToJsonb(details.result));
	apitoken_append(creation->events, values, nulls);
}

/* Not if it has one: somebody's trigger or RETURNING may have used the token. */
static void
append_usage(Creation *creation)
{
	Datum		values[Anum_token_usage_last_used_from] = {0};
	bool		nulls[Anum_token_usage_last_used_from] = {false};
	TimestampTz last_used_at;

	copy_column(creation, Anum_token_records_id, values, nulls, Anum_token_usage_token_id);
	nulls[Anum_token_usage_last_used_at - 1] = true;
	values[Anum_token_usage_accepted - 1] = Int64GetDatum(0);
	values[Anum_token_usage_refused - 1] = Int64GetDatum(0);
	nulls[Anum_token_usage_last_used_from - 1] = true;
	if (!apitoken_fetch_last_used(SnapshotSelf, DatumGetUUIDP(values[0]), &last_used_at))
		apitoken_append(creation->usage, values, nulls);
}

static void
append_created(void *arg)
{
	append_usage(arg);
	append_event(arg);
}

static void
write_created(TriggerData *trigger)
{
	Creation	creation;
	bool		plain_events;
	bool		plain_usage;

	creation.descriptor = RelationGetDescr(trigger->tg_relation);
	creation.row = trigger->tg_trigtuple;
	set_actor(&creation.actor);
	plain_events = apitoken_open_append(&creation.events, APITOKEN_EVENTS, Anum_events_details);
	plain_usage = apitoken_open_append(&creation.usage, APITOKEN_TOKEN_USAGE, Anum_token_usage_last_used_from);
	if (plain_events && plain_usage)
		apitoken_as_owner(APITOKEN_CREATED, append_created, &creation);
	else
		execute_event(trigger, &creation.actor, creation.row, NULL, NULL);
	apitoken_close_append(creation.usage);
	apitoken_close_append(creation.events);
}

static void
write_change(TriggerData *trigger, const char *action)
{
	Actor		actor;

	set_actor(&actor);
	execute_event(trigger, &actor, trigger->tg_newtuple, trigger->tg_trigtuple, action);
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
			write_created(trigger);
	}
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		action = action_of_update(trigger);
		if (action != NULL)
			write_change(trigger, action);
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
			 errmsg("cannot change or delete events"),
			 errdetail("Events can only be added."),
			 errhint("Set \"apitoken.retention\" to limit how long events are kept.")));
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
			 errmsg("cannot delete tokens"),
			 errhint("Use apitoken.revoke_token(id).  A revoked token is never accepted again.")));
	return PointerGetDatum(NULL);
}
