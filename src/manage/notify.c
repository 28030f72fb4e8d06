/*
 * notify.c
 *		The outbox: notifications of events, for a mailer.
 *
 * A notification is a row of apitoken.notifications, which is inserted in the
 * transaction of its event.  So there is one if and only if the event happened.
 * claim_notifications() lends rows to a mailer.  A mailer that dies leaves rows
 * whose lease ends.
 *
 * NOTIFY only wakes the mailer, which also looks at intervals.  It is queued when
 * the transaction commits: PREPARE TRANSACTION refuses a transaction that has
 * executed NOTIFY, but tokens can be created in two phases.  A prepared transaction
 * wakes nobody.  COMMIT fails if the server's queue of notifications is full, and
 * any session that listens and never ends its transaction can fill it.  A revocation
 * must not fail by that, so nobody is woken while the queue is more than half full.
 *
 * Rows that a restore or replication brings are delivered by the server from which
 * they came.  The trigger removes their next_attempt_at.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/trigger.h"
#include "common/int.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/inet.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "manage/manage.h"

/* The channel of NOTIFY. */
#define CHANNEL "apitoken"

/* NOTIFY is sent for so many notifications of a transaction.  One would be enough to wake the mailer. */
#define QUEUED_MAX 100

/* NOTIFY is not sent if more than this fraction of the server's queue is in use. */
#define QUEUE_USAGE_MAX 0.5

/* Limits of the arguments of claim_notifications(). */
#define CLAIM_MAX 1000
#define LEASE_MIN USECS_PER_SEC
#define LEASE_MAX USECS_PER_DAY

/* The bytes of an error that are kept. */
#define ERROR_MAX 1000

/* Events that notifications are about. */
static const char *const events[] = {"create", "regenerate", "suspend", "revoke", "expire", "reuse", "leak", APITOKEN_NEW_NETWORK};

/* A notification of this transaction. */
typedef struct Queued
{
	pg_uuid_t	id;
	ApitokenMade entry;			/* in queue */
} Queued;

/* In TopTransactionContext: see subtransaction.c. */
static dlist_head queue = DLIST_STATIC_INIT(queue);
static int	queued = 0;

static bool
is_event(const char *name)
{
	for (int i = 0; i < lengthof(events); i++)
	{
		if (strcmp(events[i], name) == 0)
			return true;
	}
	return false;
}

/*
 * Insert the notifications of events, unless nobody wants them.  `ids` is an array of
 * their ids, `tokens` one of the rows of their tokens, `actor` the id of the user who
 * acted, unless that is null, and `address` the client's address, or NULL.
 */
void
apitoken_notify(Datum ids, Datum tokens, Datum actor, bool no_actor, const inet *address, const char *event)
{
	Datum		values[5] = {ids, tokens, actor, CStringGetTextDatum(event), InetPGetDatum(address)};
	char		nulls[5] = {' ', ' ', no_actor ? 'n' : ' ', ' ', address == NULL ? 'n' : ' '};

	if (apitoken_notifications && is_event(event))
		apitoken_execute(APITOKEN_NOTIFY, values, nulls);
}

/* The same for one leak at this time, with what is known of it, as jsonb. */
void
apitoken_notify_leak(const pg_uuid_t *id, Datum token, Datum actor, bool no_actor, const inet *address,
					 TimestampTz at, Datum leak)
{
	Datum		values[6] = {UUIDPGetDatum(id), token, actor, InetPGetDatum(address), TimestampTzGetDatum(at), leak};
	char		nulls[6] = {' ', ' ', no_actor ? 'n' : ' ', address == NULL ? 'n' : ' ', ' ', ' '};

	if (apitoken_notifications)
		apitoken_execute(APITOKEN_NOTIFY_LEAK, values, nulls);
}

static void
forget(ApitokenMade *entry)
{
	dlist_delete(&entry->node);
	queued--;
}

static void
transaction_ended(XactEvent event, void *arg)
{
	dlist_iter	iter;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (queued == 0 || DatumGetFloat8(OidFunctionCall0(F_PG_NOTIFICATION_QUEUE_USAGE)) > QUEUE_USAGE_MAX)
				break;
			dlist_foreach(iter, &queue)
			{
				Queued	   *notification = dlist_container(Queued, entry.node, iter.cur);

				Async_Notify(CHANNEL, DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&notification->id))));
			}
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			dlist_init(&queue);
			queued = 0;
			break;
		default:
			break;
	}
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	apitoken_end_made(&queue, event, subtransaction, parent, forget);
}

void
apitoken_notify_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_notification_before_change);
Datum
apitoken_notification_before_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor;
	HeapTuple	tuple;
	int			attribute = Anum_notifications_next_attempt_at;
	Datum		none = (Datum) 0;
	bool		isnull = true;

	apitoken_expect_trigger(fcinfo, APITOKEN_NOTIFICATIONS);
	descriptor = RelationGetDescr(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		tuple = trigger->tg_newtuple;
		if (SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
			return PointerGetDatum(tuple);
	}
	else
	{
		tuple = trigger->tg_trigtuple;
		if (apitoken_running_statement == APITOKEN_NOTIFY || apitoken_running_statement == APITOKEN_NOTIFY_LEAK ||
			apitoken_running_statement == APITOKEN_NOTIFY_EXPIRY || apitoken_running_statement == APITOKEN_WRITE_NETWORKS)
		{
			bool		no_id;
			Datum		id = heap_getattr(tuple, Anum_notifications_id, descriptor, &no_id);

			if (queued < QUEUED_MAX)
			{
				Queued	   *notification = MemoryContextAlloc(TopTransactionContext, sizeof(Queued));

				notification->id = *DatumGetUUIDP(id);
				apitoken_add_made(&queue, &notification->entry);
				queued++;
			}
			return PointerGetDatum(tuple);
		}
	}
	if (heap_attisnull(tuple, attribute, descriptor))
		return PointerGetDatum(tuple);
	return PointerGetDatum(heap_modify_tuple_by_cols(tuple, descriptor, 1, &attribute, &none, &isnull));
}

/* Does a role include a permission?  For the recipients of a notification. */
APITOKEN_FUNCTION_INFO_V1(apitoken_role_allows);
Datum
apitoken_role_allows(PG_FUNCTION_ARGS)
{
	ApitokenRoleRow role;

	PG_RETURN_BOOL(apitoken_role(text_to_cstring(PG_GETARG_TEXT_PP(0)), &role) &&
				   apitoken_patterns_match(role.patterns, text_to_cstring(PG_GETARG_TEXT_PP(1))));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_new_id);
Datum
apitoken_new_id(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	apitoken_check_random(apitoken_generate_id(id));
	PG_RETURN_UUID_P(id);
}

/* For CHECK constraints, whose own error has no hint. */
APITOKEN_FUNCTION_INFO_V1(apitoken_check_notify);
Datum
apitoken_check_notify(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	ListCell   *lc;

	if (ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) > lengthof(events))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there are only %d events of which there are notifications", (int) lengthof(events)),
				 errhint("Name each event once.")));
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name of an event must not be null"),
				 errhint("Use an empty array for no notifications.")));
	foreach(lc, apitoken_strings_from_array(array))
	{
		if (!is_event(lfirst(lc)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there are no notifications of event \"%s\"", apitoken_clip(lfirst(lc))),
					 errhint("The events are create, regenerate, suspend, revoke, expire, reuse, leak and new_network.")));
	}
	PG_RETURN_BOOL(true);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_claim_notifications);
Datum
apitoken_claim_notifications(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	TimestampTz now = GetCurrentTimestamp();
	Interval   *lease = PG_ARGISNULL(1) ? NULL : PG_GETARG_INTERVAL_P(1);
	int64		length = 0;
	Datum		values[3];
	Datum		claimed = (Datum) 0;
	Datum	   *rows;
	int			count;

	PreventCommandIfReadOnly("apitoken.claim_notifications()");
	if (PG_ARGISNULL(0) || PG_GETARG_INT32(0) < 1 || PG_GETARG_INT32(0) > CLAIM_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of notifications must be between 1 and %d", CLAIM_MAX),
				 errhint("Call the function again for more notifications.")));
	/* a day has 24 hours, whatever the session's time zone */
	if (lease == NULL ||
		pg_mul_s64_overflow((int64) lease->month * DAYS_PER_MONTH + lease->day, USECS_PER_DAY, &length) ||
		pg_add_s64_overflow(length, lease->time, &length) ||
		length < LEASE_MIN || length > LEASE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be between one second and one day"),
				 errhint("Specify an interval with its unit, like '5 minutes'.")));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = TimestampTzGetDatum(now + length);
	values[2] = TimestampTzGetDatum(now);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	(void) apitoken_execute_value(APITOKEN_CLAIM_NOTIFICATIONS, values, NULL, &claimed);
	if (claimed == (Datum) 0)
		return (Datum) 0;
	deconstruct_array(DatumGetArrayTypeP(claimed), ARR_ELEMTYPE(DatumGetArrayTypeP(claimed)), -1, false, TYPALIGN_DOUBLE,
					  &rows, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		HeapTupleHeader row = DatumGetHeapTupleHeader(rows[i]);
		HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(row), .t_data = row};

		tuplestore_puttuple(result->setResult, &tuple);
	}
	return (Datum) 0;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_notification_delivered);
Datum
apitoken_notification_delivered(PG_FUNCTION_ARGS)
{
	Datum		values[2] = {PG_GETARG_DATUM(0), TimestampTzGetDatum(GetCurrentTimestamp())};

	PreventCommandIfReadOnly("apitoken.notification_delivered()");
	PG_RETURN_BOOL(apitoken_execute(APITOKEN_NOTIFICATION_DELIVERED, values, NULL) > 0);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_notification_failed);
Datum
apitoken_notification_failed(PG_FUNCTION_ARGS)
{
	Datum		values[4];
	char		nulls[4] = {' ', ' ', PG_ARGISNULL(1) ? 'n' : ' ', PG_ARGISNULL(2) ? 'n' : ' '};
	Datum		next_attempt_at = (Datum) 0;

	PreventCommandIfReadOnly("apitoken.notification_failed()");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	values[0] = PG_GETARG_DATUM(0);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[2] = PG_ARGISNULL(1) ? (Datum) 0 : CStringGetTextDatum(apitoken_without_secrets(PG_GETARG_DATUM(1), ERROR_MAX));
	values[3] = PG_GETARG_DATUM(2);
	(void) apitoken_execute_value(APITOKEN_NOTIFICATION_FAILED, values, nulls, &next_attempt_at);
	if (next_attempt_at == (Datum) 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(next_attempt_at);
}
