/*
 * event.c
 *		The audit: one event for each change of a token, or of an organization or
 *		user that its tokens depend on; and what becomes of rows that are deleted or
 *		replicated.
 *
 * The AFTER triggers write the events, whatever statement changed the tokens.  A
 * statement that changed nothing leaves no event.  A restored row, which comes
 * with its digest, is not a change.
 *
 * New tokens are collected by the trigger.  What belongs to them (events, rows of
 * token_usage, notifications) is written when their statement ends, and for every
 * thousand of them: a statement for each would take most of the time of a creation.
 * Hooks tell of that end.  A statement trigger would leave memory behind in each
 * subtransaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
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
	EVENT_ID,					/* these two for APITOKEN_CREATED are arrays */
	EVENT_TOKEN,
	EVENT_ACTOR,
	EVENT_ACTOR_TOKEN_ID,
	EVENT_DATABASE_USER,
	EVENT_CLIENT_ADDRESS,
	EVENT_OLD_TOKEN,			/* these two for APITOKEN_CHANGED only */
	EVENT_ACTION,
	EVENT_PARAMETERS,
	EVENT_AT = EVENT_OLD_TOKEN, /* these two for APITOKEN_LEAKED only */
	EVENT_LEAK = EVENT_ACTION,
	EVENT_OWNER_ACTION = EVENT_TOKEN,	/* these three for organizations and users only */
	EVENT_OLD_OWNER = EVENT_OLD_TOKEN,
	EVENT_NEW_OWNER = EVENT_ACTION
};

typedef struct Event
{
	pg_uuid_t	id;
	NameData	login;
	Datum		values[EVENT_PARAMETERS];
	char		nulls[EVENT_PARAMETERS];
} Event;

/* New tokens of one subtransaction. */
typedef struct Batch
{
	ApitokenMade entry;			/* in batches */
	MemoryContext context;		/* has all of it */
	List	   *event_ids;		/* pg_uuid_t */
	List	   *tokens;			/* HeapTupleHeader */
} Batch;

/* See subtransaction.c.  The last one may be of this subtransaction. */
static dlist_head batches = DLIST_STATIC_INIT(batches);

/* A batch is written when it has so many tokens, or bytes. */
#define BATCH_TOKENS 1000
#define BATCH_BYTES (1024 * 1024)

static ExecutorFinish_hook_type previous_finish = NULL;
static ProcessUtility_hook_type previous_utility = NULL;

/* The start of the client's statement that loaded the library; 0 or earlier with a preload. */
static TimestampTz loaded_at = 0;

static void
forget(ApitokenMade *entry)
{
	dlist_delete(&entry->node);
	MemoryContextDelete(dlist_container(Batch, entry.node, &entry->node)->context);
}

static void
transaction_ended(XactEvent event, void *arg)
{
	if ((event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE) && !dlist_is_empty(&batches))
		elog(ERROR, "events of new tokens were not written");
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		dlist_init(&batches);
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	apitoken_end_made(&batches, event, subtransaction, parent, forget);
}

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

/* Begin an event, without id and token.  `actor` and `address` are NULL if there is none. */
static void
begin_event(Event *event, const ApitokenPrincipal *actor, const inet *address)
{
	memset(event, 0, sizeof(*event));
	memset(event->nulls, ' ', sizeof(event->nulls));
	namestrcpy(&event->login, GetUserNameFromId(GetSessionUserId(), false));
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

/* Give an event a new id, and a token. */
static void
set_token(Event *event, Datum token)
{
	apitoken_check_random(apitoken_generate_id(&event->id));
	event->values[EVENT_ID] = UUIDPGetDatum(&event->id);
	event->values[EVENT_TOKEN] = token;
}

/* An array of what the pointers of a list point to. */
static Datum
array_of(const List *pointers, Oid type)
{
	Datum	   *elements = palloc(list_length(pointers) * sizeof(Datum));
	int			count = 0;
	int16		length;
	bool		byval;
	char		align;
	ListCell   *lc;

	foreach(lc, pointers)
		elements[count++] = PointerGetDatum(lfirst(lc));
	get_typlenbyvalalign(type, &length, &byval, &align);
	return PointerGetDatum(construct_array(elements, count, type, length, byval, align));
}

/* Give an event the ids and tokens of several. */
static void
set_tokens(Event *event, const List *ids, const List *tokens)
{
	event->values[EVENT_ID] = array_of(ids, UUIDOID);
	event->values[EVENT_TOKEN] = array_of(tokens, get_rel_type_id(apitoken_table(APITOKEN_TOKEN_RECORDS)));
}

/* Notifications of what set_tokens() has set. */
static void
notify(const Event *event, const inet *address, const char *action)
{
	apitoken_notify(event->values[EVENT_ID], event->values[EVENT_TOKEN], event->values[EVENT_ACTOR],
					event->nulls[EVENT_ACTOR] == 'n', address, action);
}

/* The batch of this subtransaction, or NULL. */
static Batch *
find_batch(void)
{
	Batch	   *batch = dlist_is_empty(&batches) ? NULL : dlist_tail_element(Batch, entry.node, &batches);

	return batch != NULL && batch->entry.subtransaction == GetCurrentSubTransactionId() ? batch : NULL;
}

/* Write what belongs to the new tokens.  A trigger on what is written may create more tokens. */
static void
write_batch(Batch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	inet	   *address = apitoken_client_address(NULL);
	Event		event;

	dlist_delete(&batch->entry.node);
	begin_event(&event, apitoken_principal(), address);
	set_tokens(&event, batch->event_ids, batch->tokens);
	apitoken_execute(APITOKEN_CREATED, event.values, event.nulls);
	notify(&event, address, "create");
	MemoryContextSwitchTo(old);
	MemoryContextDelete(batch->context);
}

/*
 * Add a new token to the batch of this subtransaction.  A failure to write it leaves
 * the memory to the rollback of the subtransaction.
 *
 * A COPY that has loaded the library was started without its hook, so nothing tells of
 * its end.
 */
static void
add_to_batch(HeapTuple row, TupleDesc descriptor)
{
	Batch	   *batch = find_batch();
	pg_uuid_t  *event_id;
	MemoryContext old;

	if (batch == NULL)
	{
		MemoryContext context = AllocSetContextCreate(CurTransactionContext, "apitoken new tokens", ALLOCSET_DEFAULT_SIZES);

		batch = MemoryContextAllocZero(context, sizeof(Batch));
		batch->context = context;
		apitoken_add_made(&batches, &batch->entry);
	}
	old = MemoryContextSwitchTo(batch->context);
	event_id = palloc(sizeof(pg_uuid_t));
	apitoken_check_random(apitoken_generate_id(event_id));
	batch->event_ids = lappend(batch->event_ids, event_id);
	batch->tokens = lappend(batch->tokens, DatumGetHeapTupleHeader(heap_copy_tuple_as_datum(row, descriptor)));
	MemoryContextSwitchTo(old);
	if (list_length(batch->tokens) >= BATCH_TOKENS || MemoryContextMemAllocated(batch->context, false) >= BATCH_BYTES ||
		GetCurrentStatementStartTimestamp() == loaded_at)
		write_batch(batch);
}

static void
statement_ended(void)
{
	Batch	   *batch;

	while ((batch = find_batch()) != NULL)
		write_batch(batch);
}

static void
finish_query(QueryDesc *query)
{
	if (previous_finish)
		previous_finish(query);
	else
		standard_ExecutorFinish(query);
	statement_ended();
}

/* COPY */
static void
run_utility(PlannedStmt *statement, const char *text, bool read_only_tree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *environment, DestReceiver *receiver,
			QueryCompletion *completion)
{
	if (previous_utility)
		previous_utility(statement, text, read_only_tree, context, params,
						 environment, receiver, completion);
	else
		standard_ProcessUtility(statement, text, read_only_tree, context, params,
								environment, receiver, completion);
	statement_ended();
}

void
apitoken_event_init(void)
{
	loaded_at = GetCurrentStatementStartTimestamp();
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
	previous_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish_query;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = run_utility;
}

/* Write the event of a change. */
static void
write_event(TriggerData *trigger, const char *action)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	HeapTuple	row = trigger->tg_newtuple;
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
	begin_event(&event, actor, address);
	set_token(&event, heap_copy_tuple_as_datum(row, descriptor));
	event.values[EVENT_OLD_TOKEN] = heap_copy_tuple_as_datum(trigger->tg_trigtuple, descriptor);
	event.values[EVENT_ACTION] = CStringGetTextDatum(action);
	apitoken_execute(APITOKEN_CHANGED, event.values, event.nulls);
	set_tokens(&event, list_make1(&event.id), list_make1(DatumGetPointer(event.values[EVENT_TOKEN])));
	notify(&event, address, action);
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

	begin_event(&event, apitoken_principal(), address);
	set_token(&event, token);
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
			add_to_batch(trigger->tg_trigtuple, descriptor);
	}
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		action = apitoken_running_statement == APITOKEN_ERASE_TOKENS ? NULL : action_of_update(trigger);
		if (action != NULL)
			write_event(trigger, action);
	}
	else
	{
		Datum		id = heap_getattr(trigger->tg_trigtuple, Anum_token_records_id, descriptor, &isnull);

		apitoken_execute(APITOKEN_FORGET_USAGE, &id, NULL);
	}
	return PointerGetDatum(NULL);
}

/*
 * The action of an update of an organization or user; NULL if it has no event.  Only
 * what decides about tokens has one.  The application keeps the other columns.
 */
static const char *
action_of_owner(TriggerData *trigger, bool of_user)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	AttrNumber	suspended_at = of_user ? Anum_users_suspended_at : Anum_organizations_suspended_at;
	bool		resumed = heap_attisnull(trigger->tg_newtuple, suspended_at, descriptor);

	if (heap_attisnull(trigger->tg_trigtuple, suspended_at, descriptor) != resumed)
		return resumed ? "resume" : "suspend";
	for (AttrNumber attribute = 1; !of_user && attribute <= Natts_organizations; attribute++)
	{
		/* the policy: what members may change, and this column */
		if ((apitoken_column_granted(APITOKEN_ORGANIZATIONS, attribute, 'w') || attribute == Anum_organizations_idle_timeout) &&
			apitoken_column_changed(trigger, attribute))
			return "policy";
	}
	return NULL;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_owner_after_update);
Datum
apitoken_owner_after_update(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		of_user = CALLED_AS_TRIGGER(fcinfo) &&
		RelationGetRelid(trigger->tg_relation) == apitoken_table(APITOKEN_USERS);
	TupleDesc	descriptor;
	const char *action;
	pg_uuid_t	id;
	Event		event;
	int			nest_level;

	apitoken_expect_trigger(fcinfo, of_user ? APITOKEN_USERS : APITOKEN_ORGANIZATIONS);
	descriptor = RelationGetDescr(trigger->tg_relation);
	action = action_of_owner(trigger, of_user);
	if (action == NULL)
		return PointerGetDatum(NULL);
	begin_event(&event, apitoken_principal(), apitoken_client_address(NULL));
	apitoken_check_random(apitoken_generate_id(&id));
	event.values[EVENT_ID] = UUIDPGetDatum(&id);
	event.values[EVENT_OWNER_ACTION] = CStringGetTextDatum(action);
	event.values[EVENT_OLD_OWNER] = heap_copy_tuple_as_datum(trigger->tg_trigtuple, descriptor);
	event.values[EVENT_NEW_OWNER] = heap_copy_tuple_as_datum(trigger->tg_newtuple, descriptor);
	/* the same text of an interval, whatever the session's style */
	nest_level = NewGUCNestLevel();
	(void) set_config_option("IntervalStyle", "postgres", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	apitoken_execute(of_user ? APITOKEN_USER_CHANGED : APITOKEN_ORGANIZATION_CHANGED, event.values, event.nulls);
	AtEOXact_GUC(true, nest_level);
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
