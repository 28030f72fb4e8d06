/*
 * event.c
 *		The audit: one event for each change of a token; and what becomes of rows
 *		that are deleted or replicated.
 *
 * The AFTER trigger writes the event, whatever statement changed the token.  A
 * statement that changed nothing leaves no event.  A restored row, which comes
 * with its digest, is not a change.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "manage/manage.h"

/* The action of an update; NULL if it has no event. */
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
	if (apitoken_column_changed(trigger, Anum_token_records_previous_expires_at))
		return "end_overlap";
	if (apitoken_column_changed(trigger, Anum_token_records_previous_reused_at))
		return "reuse";
	return apitoken_edited(trigger) ? "edit" : NULL;
}

/* The parameters of the statements that write an event, $1 first. */
enum
{
	EVENT_ID,
	EVENT_TOKEN,
	EVENT_ACTOR,
	EVENT_ACTOR_TOKEN_ID,
	EVENT_DATABASE_USER,
	EVENT_CLIENT_ADDRESS,
	EVENT_OLD_TOKEN,			/* these two for APITOKEN_CHANGED only */
	EVENT_ACTION,
	EVENT_PARAMETERS,
	EVENT_AT = EVENT_OLD_TOKEN, /* these two for APITOKEN_LEAKED only */
	EVENT_LEAK = EVENT_ACTION
};

typedef struct Event
{
	pg_uuid_t	id;
	NameData	login;
	Datum		values[EVENT_PARAMETERS];
	char		nulls[EVENT_PARAMETERS];
} Event;

/*
 * A user who is being forgotten, or was while this transaction waited, must not
 * appear in a new event.  This does not wait for the erasure, which may wait for a
 * row that this transaction has locked.  But an erasure that ends gives back its
 * locks one after the other: whom one wakes may find the next one taken for a moment.
 */
void
apitoken_check_actor(const char *user_id)
{
	Snapshot	snapshot;
	ApitokenUserRow user;
	bool		locked = apitoken_lock_actor(user_id, ShareLock, false);
	bool		forgotten;

	for (int i = 0; !locked && i < 25; i++)
	{
		CHECK_FOR_INTERRUPTS();
		pg_usleep(10000L);		/* 10 ms */
		locked = apitoken_lock_actor(user_id, ShareLock, false);
	}
	forgotten = !locked;
	if (locked)
	{
		snapshot = apitoken_latest_snapshot();
		forgotten = apitoken_user_was_forgotten(snapshot, user_id) &&
			!apitoken_fetch_user(snapshot, user_id, &user);
		UnregisterSnapshot(snapshot);
	}
	if (forgotten)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the acting user was deleted"),
				 errhint("Roll back the transaction, and sign in as another user.")));
}

/* Begin the event of a token.  `actor` and `address` are NULL if there is none. */
static void
begin_event(Event *event, Datum token, const ApitokenPrincipal *actor, const inet *address)
{
	memset(event, 0, sizeof(*event));
	memset(event->nulls, ' ', sizeof(event->nulls));
	apitoken_check_random(apitoken_generate_id(&event->id));
	namestrcpy(&event->login, GetUserNameFromId(GetSessionUserId(), false));
	event->values[EVENT_ID] = UUIDPGetDatum(&event->id);
	event->values[EVENT_TOKEN] = token;
	if (actor != NULL && actor->user_id != NULL)
	{
		apitoken_check_actor(actor->user_id);
		event->values[EVENT_ACTOR] = CStringGetTextDatum(actor->user_id);
	}
	else
		event->nulls[EVENT_ACTOR] = 'n';
	if (actor != NULL && actor->source == APITOKEN_SOURCE_TOKEN)
		event->values[EVENT_ACTOR_TOKEN_ID] = UUIDPGetDatum(&actor->token_id);
	else
		event->nulls[EVENT_ACTOR_TOKEN_ID] = 'n';
	event->values[EVENT_DATABASE_USER] = NameGetDatum(&event->login);
	if (address != NULL)
		event->values[EVENT_CLIENT_ADDRESS] = InetPGetDatum(address);
	else
		event->nulls[EVENT_CLIENT_ADDRESS] = 'n';
}

/* Write the event of a change; `old` and `action` are NULL for a new token. */
static void
write_event(TriggerData *trigger, HeapTuple row, HeapTuple old, const char *action)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	inet	   *address;
	/* housekeeping has no actor, whatever identity its caller has */
	const ApitokenPrincipal *actor = apitoken_running_statement == APITOKEN_REVOKE_IDLE ? NULL :
		apitoken_principal();
	Datum		token_id;
	bool		isnull;
	Event		event;

	/* a flush tells of a client that is not its own */
	token_id = heap_getattr(row, Anum_token_records_id, descriptor, &isnull);
	address = apitoken_running_statement == APITOKEN_TELL_REUSE ? apitoken_reused_from(DatumGetUUIDP(token_id)) :
		apitoken_client_address(NULL);
	begin_event(&event, heap_copy_tuple_as_datum(row, descriptor), actor, address);
	if (old == NULL)
		apitoken_execute(APITOKEN_CREATED, event.values, event.nulls);
	else
	{
		event.values[EVENT_OLD_TOKEN] = heap_copy_tuple_as_datum(old, descriptor);
		event.values[EVENT_ACTION] = CStringGetTextDatum(action);
		apitoken_execute(APITOKEN_CHANGED, event.values, event.nulls);
	}
	apitoken_notify(&event.id, event.values[EVENT_TOKEN], event.values[EVENT_ACTOR], event.nulls[EVENT_ACTOR] == 'n', address,
					old == NULL ? "create" : action);
}

/*
 * Write the event and the notification of a leak.  `token` is the row of the token,
 * `leak` is jsonb.
 */
void
apitoken_write_leak(Datum token, Datum leak)
{
	inet	   *address = apitoken_client_address(NULL);
	TimestampTz at = GetCurrentTimestamp();
	Event		event;

	begin_event(&event, token, apitoken_principal(), address);
	event.values[EVENT_AT] = TimestampTzGetDatum(at);
	event.values[EVENT_LEAK] = leak;
	apitoken_execute(APITOKEN_LEAKED, event.values, event.nulls);
	apitoken_notify_leak(&event.id, token, event.values[EVENT_ACTOR], event.nulls[EVENT_ACTOR] == 'n', address, at, leak);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_token_after_change);
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
		action = apitoken_running_statement == APITOKEN_ERASE_TOKENS ? NULL : action_of_update(trigger);
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

APITOKEN_FUNCTION_INFO_V1(apitoken_event_refuse_change);
Datum
apitoken_event_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerEvent event;

	apitoken_expect_trigger(fcinfo, APITOKEN_EVENTS);
	event = ((TriggerData *) fcinfo->context)->tg_event;
	if ((apitoken_running_statement == APITOKEN_REMOVE_EVENTS && TRIGGER_FIRED_BY_DELETE(event)) ||
		(apitoken_running_statement == APITOKEN_ERASE_EVENTS && TRIGGER_FIRED_BY_UPDATE(event)))
		return PointerGetDatum(NULL);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("cannot change or delete events"),
			 errdetail("Events can only be added."),
			 errhint("Set \"apitoken.retention\" to limit how long events are kept.  Use apitoken.forget_user(user_id) to remove what they tell of a person.")));
	return PointerGetDatum(NULL);
}

/*
 * Of the view tokens, and of the table beneath it.  Whoever could delete a row
 * could insert it again without revoked_at.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_token_refuse_delete);
Datum
apitoken_token_refuse_delete(PG_FUNCTION_ARGS)
{
	/* the view is none of the tables that apitoken_expect_trigger() knows */
	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BY_DELETE(((TriggerData *) fcinfo->context)->tg_event))
		apitoken_expect_trigger(fcinfo, APITOKEN_TOKEN_RECORDS);
	if (apitoken_running_statement == APITOKEN_REMOVE_TOKENS)
		return PointerGetDatum(NULL);
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot delete tokens"),
			 errhint("Use apitoken.revoke_token(id).  A revoked token is never accepted again, and run_maintenance() removes it after \"apitoken.retention\".")));
	return PointerGetDatum(NULL);
}

/*
 * Of the tables of usage, for logical replication only.  Both
 * servers may record the use of a token.  If this server has a row already, the
 * row of the publisher is left out; it must not stop the replication.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_usage_before_insert);
Datum
apitoken_usage_before_insert(PG_FUNCTION_ARGS)
{
	/* the first columns are the key */
	static const struct
	{
		ApitokenTable table;
		int			key_columns;
		ApitokenStatement has_row;
	}			usage[] = {
		{APITOKEN_TOKEN_DAYS, 2, APITOKEN_HAS_DAY},
		{APITOKEN_PERSONAL_TOKEN_USE, 2, APITOKEN_HAS_SEEN},
		{APITOKEN_TOKEN_NETWORKS, 2, APITOKEN_HAS_NETWORK},
		{APITOKEN_TOKEN_USAGE, 1, APITOKEN_HAS_USAGE}
	};
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	int			n = 0;
	Datum		key[2] = {0};
	bool		isnull;

	while (n < lengthof(usage) - 1 && CALLED_AS_TRIGGER(fcinfo) &&
		   RelationGetRelid(trigger->tg_relation) != apitoken_table(usage[n].table))
		n++;
	apitoken_expect_trigger(fcinfo, usage[n].table);
	for (int i = 0; i < usage[n].key_columns; i++)
	{
		key[i] = heap_getattr(trigger->tg_trigtuple, i + 1, RelationGetDescr(trigger->tg_relation), &isnull);
		if (isnull)
			return PointerGetDatum(trigger->tg_trigtuple);	/* which the table refuses */
	}
	if (apitoken_execute(usage[n].has_row, key, NULL) > 0)
		return PointerGetDatum(NULL);
	return PointerGetDatum(trigger->tg_trigtuple);
}
