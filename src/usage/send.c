/*
 * send.c
 *		A standby sends the recorded use of tokens to the primary, and a logical
 *		subscriber to the publisher.
 *
 * logical.c tells whether use is sent.  The server that counts it is called the
 * primary here, also if it is a publisher.
 *
 * A worker connects to the database of the same name on the primary, and calls
 * apitoken.record_usage() for each batch (receive.c), with an id that increases.
 * If the answer is lost, the batch stays in shared memory as it is (batch.c).  The
 * next worker then sends its id again without any use.  The primary counts each id
 * once.  So if it counts the empty batch, it has not counted the lost one and will
 * never do so, even if that still arrives: the use is sent again, under another id.
 * Otherwise the lost batch was counted.
 *
 * Not every end of a batch is an answer:
 *
 *	- After an error of severity ERROR, the batch was not counted.
 *	- If the worker or the primary is killed, or the connection ends, nobody knows
 *	  before the next worker asks.
 *	- After a crash of this server, shared memory is empty, and the sender is a new
 *	  one.  What was on its way was counted or is lost, but is not sent again.
 *	- After a promotion of this server, its own tables tell whether the batch was
 *	  counted (flush.c).  So it is when a subscriber no longer sends: its subscription
 *	  brings the id of the batch with the use, or neither.
 *	- If another server was promoted, it is asked.  Its tables have the id if they
 *	  have the use.
 *
 * Places where tokens are seen have no counts.  They are returned to shared memory
 * whenever it is not certain that they have arrived, and may be sent twice.
 *
 * A lock keeps other workers of the same database from sending.  It is held by the
 * session, because there is no transaction while the worker waits for the primary.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "usage/usage.h"

/* Another batch is started only if at least this much time is left. */
#define BATCH_TIME (1000 * INT64CONST(1000))

/* Places of each kind in a batch.  Each network can become a notification. */
#define PLACES_MAX (2 * APITOKEN_NOTIFY_BATCH)

#define VERDICT_NAME(NAME, name, known, status) #name,

/* places that were taken from shared memory and may not have arrived */
static ApitokenSeenRow *places = NULL;
static int	place_count = 0;

/* ---- the texts of a batch ---- */

/* Begin a member of an object. */
static void
append_key(StringInfo object, const char *key)
{
	appendStringInfo(object, "%c\"%s\": ", object->data[object->len - 1] == '{' ? ' ' : ',', key);
}

static void
append_text(StringInfo object, const char *key, const char *text)
{
	append_key(object, key);
	escape_json(object, text);
}

static void
append_id(StringInfo object, const pg_uuid_t *id)
{
	append_text(object, "token_id", DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id))));
}

/* An address or a network; nothing if it is unknown. */
static void
append_address(StringInfo object, const char *key, const inet_struct *from)
{
	inet	   *address;

	if (from->family == 0)
		return;
	address = palloc0(sizeof(inet));
	memcpy(VARDATA(address), from, sizeof(*from));
	SET_INET_VARSIZE(address);
	append_text(object, key, DatumGetCString(DirectFunctionCall1(inet_out, InetPGetDatum(address))));
}

static void
append_day(StringInfo object, const char *key, DateADT day)
{
	int			year;
	int			month;
	int			of_month;

	j2date(day + POSTGRES_EPOCH_JDATE, &year, &month, &of_month);
	append_key(object, key);
	appendStringInfo(object, "\"%04d-%02d-%02d\"", year, month, of_month);
}

static void
append_use(StringInfo list, const ApitokenUsageRow *row)
{
	static const char *const names[APITOKEN_VERDICTS] = {VERDICTS(VERDICT_NAME)};

	appendStringInfo(list, "%s{", list->len > 1 ? ", " : "");
	append_id(list, &row->key.token_id);
	append_day(list, "day", row->key.day);
	append_key(list, "accepted");
	appendStringInfo(list, UINT64_FORMAT, row->accepted);
	if (row->last.at != DT_NOBEGIN)
	{
		append_text(list, "last_used_at", timestamptz_to_str(row->last.at));
		append_address(list, "last_used_from", &row->last.from);
	}
	append_key(list, "refused");
	appendStringInfoChar(list, '{');
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
	{
		if (row->refused[verdict] == 0)
			continue;
		append_key(list, names[verdict]);
		appendStringInfo(list, "%u", row->refused[verdict]);
	}
	appendStringInfoChar(list, '}');
	append_key(list, "previous");
	appendStringInfoChar(list, '{');
	for (int i = 0; i < APITOKEN_PREVIOUS_MAX; i++)
	{
		if (row->last.previous_at[i] != 0)
			append_text(list, psprintf("%d", i + 1), timestamptz_to_str(row->last.previous_at[i]));
	}
	appendStringInfoChar(list, '}');
	append_key(list, "reused");
	appendStringInfo(list, "%d", row->last.reused);
	if (row->last.reused != 0)
		append_address(list, "reused_from", &row->last.reused_from);
	appendStringInfoChar(list, '}');
}

static void
append_place(StringInfo list, const ApitokenSeenRow *row)
{
	appendStringInfo(list, "%s{", list->len > 1 ? ", " : "");
	append_id(list, &row->key.token_id);
	if (row->place == APITOKEN_IN_NETWORK)
		append_address(list, "network", &row->key.in.network);
	else
		append_text(list, "organization_id", row->key.in.organization_id);
	append_text(list, "seen_at", timestamptz_to_str(row->at));
	appendStringInfoChar(list, '}');
}

/* ---- sending ---- */

/* What a worker sends with. */
typedef struct Sender
{
	char	   *database;		/* its name */
	char	   *slot;			/* of the publisher; NULL: to the primary of this standby */
	bool		writes;			/* this server does not send */
	ApitokenPrimary *primary;
	ApitokenPrimaryError error;
	TimestampTz until;
	int			max;			/* rows in a batch */
} Sender;

static void
return_places(int code, Datum arg)
{
	apitoken_return_seen(places, place_count);
	place_count = 0;
}

/*
 * In a transaction: what the worker needs of the catalogs, and the lock.  Returns
 * whether it sends, and the extension is installed.
 */
static bool
prepare(void *arg)
{
	Sender	   *sender = arg;
	const char *slot = NULL;

	if (!apitoken_sends(&slot) && !RecoveryInProgress())
	{
		sender->writes = true;
		return false;
	}
	if (!apitoken_installed())
		return false;
	sender->database = MemoryContextStrdup(TopMemoryContext, get_database_name(MyDatabaseId));
	if (slot != NULL)
		sender->slot = MemoryContextStrdup(TopMemoryContext, slot);
	apitoken_lock_sending(true);
	return true;
}

/* Call record_usage().  Returns false if there is no answer. */
static bool
ask(Sender *sender, const ApitokenBatchId *batch, const char *uses, const char *seen, bool *counted)
{
	const char *values[4];

	values[0] = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&batch->sender)));
	values[1] = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&batch->last)));
	values[2] = uses;
	values[3] = seen;
	return apitoken_ask_primary(sender->primary, values, sender->until, counted, &sender->error);
}

/* It is known whether a batch was counted. */
static void
end_batch(const ApitokenBatchId *batch, bool counted, bool new_sender)
{
	uint64		uses;

	if (!apitoken_settle_batch(MyDatabaseId, &batch->last, new_sender))
		return;
	uses = apitoken_end_batch(MyDatabaseId, counted);
	if (counted)
		apitoken_count(APITOKEN_SENT, uses);
}

/* Find out about the batch whose answer was lost, if there is one.  Returns false if the primary does not tell. */
static bool
settle_lost(Sender *sender)
{
	ApitokenFlushState state;
	bool		counted;

	if (!apitoken_flush_state(MyDatabaseId, &state) || !state.batch.sent)
		return true;
	if (!ask(sender, &state.batch, "[]", "[]", &counted))
		return false;
	/* the empty one was counted: the lost one was not */
	end_batch(&state.batch, !counted, false);
	return true;
}

/*
 * Take places of each kind from shared memory.  Returns whether there may be more.
 * Digests stay here.  A role that could send them could make texts of its own valid.
 */
static bool
take_places(void)
{
	static const ApitokenPlace kinds[] = {APITOKEN_IN_ORGANIZATION, APITOKEN_IN_NETWORK};
	bool		more = false;

	for (int i = 0; i < lengthof(kinds); i++)
	{
		int			taken = apitoken_take_seen(kinds[i], MyDatabaseId, places + place_count, PLACES_MAX / lengthof(kinds));

		place_count += taken;
		more = more || taken == PLACES_MAX / lengthof(kinds);
	}
	return more;
}

/* Send one batch.  Returns false if that has failed; otherwise, sets `more` to whether there may be more. */
static bool
send_batch(Sender *sender, bool *more)
{
	ApitokenUsageRow *rows = palloc(sender->max * sizeof(ApitokenUsageRow));
	pg_uuid_t	fresh[2];
	ApitokenBatchId batch;
	StringInfoData uses;
	StringInfoData seen;
	int			count;
	bool		counted;

	for (int i = 0; i < lengthof(fresh); i++)
	{
		if (!apitoken_generate_id(&fresh[i]))
			elog(ERROR, "could not generate random values");
	}
	if (!apitoken_next_batch(MyDatabaseId, &fresh[0], &fresh[1], &batch))
	{
		snprintf(sender->error.problem, APITOKEN_PROBLEM_MAX, "there is no memory for the state of this database");
		return false;
	}
	count = apitoken_take_batch(MyDatabaseId, rows, sender->max);
	*more = take_places() || count == sender->max;
	if (count == 0 && place_count == 0)
	{
		end_batch(&batch, false, false);
		return true;
	}

	initStringInfo(&uses);
	initStringInfo(&seen);
	appendStringInfoChar(&uses, '[');
	appendStringInfoChar(&seen, '[');
	for (int i = 0; i < count; i++)
		append_use(&uses, &rows[i]);
	for (int i = 0; i < place_count; i++)
		append_place(&seen, &places[i]);
	appendStringInfoChar(&uses, ']');
	appendStringInfoChar(&seen, ']');

	if (!ask(sender, &batch, uses.data, seen.data, &counted))
	{
		if (sender->error.refused)
			end_batch(&batch, false, false);
		return false;
	}
	/* An id that was never sent before: the primary has later ones of this sender. */
	end_batch(&batch, counted, !counted);
	if (!counted)
	{
		snprintf(sender->error.problem, APITOKEN_PROBLEM_MAX, "the primary has counted later batches of this server");
		return false;
	}
	place_count = 0;
	return true;
}

/* Send all use, as long as there is time.  Returns the outcome. */
static ApitokenOutcome
send_all(Sender *sender)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "apitoken batch", ALLOCSET_DEFAULT_SIZES);
	bool		more = true;
	bool		good;

	MemoryContextSwitchTo(context);
	sender->primary = apitoken_connect_primary(sender->database, sender->slot, sender->until, &sender->error);
	if (sender->primary == NULL)
		return APITOKEN_FLUSH_FAILED;
	MemoryContextSwitchTo(TopMemoryContext);
	places = palloc(PLACES_MAX * sizeof(ApitokenSeenRow));
	before_shmem_exit(return_places, (Datum) 0);
	MemoryContextSwitchTo(context);
	good = settle_lost(sender);
	/* after a promotion, a flush writes what is left; that of a subscriber still goes to the publisher */
	while (good && more && (sender->slot != NULL || RecoveryInProgress()) && GetCurrentTimestamp() < sender->until - BATCH_TIME)
	{
		good = send_batch(sender, &more);
		/* of an error, nothing but static text and `detail` is left, which is read later */
		if (good)
			MemoryContextReset(context);
	}
	return_places(0, (Datum) 0);
	if (!good)
		return APITOKEN_FLUSH_FAILED;
	apitoken_leave_primary(sender->primary);
	return more ? APITOKEN_FLUSH_UNFINISHED : APITOKEN_FLUSH_DONE;
}

static void
report(Sender *sender, ApitokenOutcome outcome)
{
	const ApitokenPrimaryError *error = &sender->error;

	if (outcome == APITOKEN_FLUSH_FAILED)
		ereport(WARNING,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not send token usage of database \"%s\": %s", sender->database, error->problem),
				 error->detail == NULL ? errdetail("The usage is kept in memory, and sending it will be retried.") :
				 errdetail("%s", error->detail),
				 error->hint == NULL ? 0 : errhint("%s", error->hint)));
	else
		ereport(LOG,
				(errmsg("resumed sending token usage of database \"%s\"", sender->database)));
}

/*
 * Send the usage of this worker's database, and record the outcome under the ticket.
 * Returns false if this server is to write it instead.
 */
bool
apitoken_send(uint64 ticket, TimestampTz until)
{
	static Sender sender;
	ApitokenFlushState state;
	ApitokenOutcome outcome = APITOKEN_FLUSH_FAILED;

	if (!RecoveryInProgress() && !apitoken_subscriber_sends)
		return false;
	sender.until = until;
	sender.max = APITOKEN_SENT_MAX;
	if (apitoken_flush_state(MyDatabaseId, &state))
		sender.max = Max(APITOKEN_SENT_MAX >> Min(state.failures, 10), 1);
	apitoken_remove_usage_file();
	if (apitoken_run_in_transaction(prepare, &sender, until, sender.error.problem))
	{
		pgstat_report_activity(STATE_RUNNING, "sending the usage of tokens");
		outcome = send_all(&sender);
		pgstat_report_activity(STATE_IDLE, NULL);
	}
	else if (sender.writes)
		return false;
	else if (sender.error.problem[0] == '\0')
	{
		outcome = APITOKEN_FLUSH_MISSING;
		snprintf(sender.error.problem, APITOKEN_PROBLEM_MAX, "extension \"apitoken\" is not installed");
	}
	if (outcome == APITOKEN_FLUSH_UNFINISHED)
		apitoken_wake_launcher();
	if (sender.database == NULL)
		sender.database = psprintf("%u", MyDatabaseId);
	if (apitoken_record_flush(MyDatabaseId, ticket, outcome, sender.error.problem))
		report(&sender, outcome == APITOKEN_FLUSH_MISSING ? APITOKEN_FLUSH_FAILED : outcome);
	if (!RecoveryInProgress() && outcome != APITOKEN_FLUSH_MISSING)
		apitoken_flush_digests(until);
	return true;
}
