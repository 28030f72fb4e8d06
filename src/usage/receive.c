/*
 * receive.c
 *		record_usage(): count a batch of use that another server has recorded.
 *
 * A standby or a logical subscriber sends its use in batches (send.c).  Each has an
 * id, which is greater than those of all earlier batches of the same sender.  The
 * table usage_senders has the last one of each sender, and changes in the transaction
 * that writes the use.  So a batch is counted once, whatever becomes of the answer,
 * and a batch that arrives after a later one is not counted at all.
 *
 * The use is written as a flush of this server would write it (flush.c), with the
 * same lock, so that no two of them wait for each other's rows.  A server that sends
 * its own use refuses batches.  What it wrote would be replaced by the replication,
 * and two servers might send to each other.
 *
 * Whoever may call this can make any token look used, as any server can that shares
 * the tables.  It is checked nevertheless that a batch cannot do more: counts are
 * neither negative nor so large that a sum overflows, times are not in the future,
 * which would stay the last use forever, and unknown tokens are left out.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inet.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "usage/usage.h"

/* The most objects in each list. */
#define LIST_MAX 10000

#define VERDICT_NAME(NAME, name, known, status) #name,

static const char *const use_keys[] = {
	"token_id", "day", "accepted", "last_used_at", "last_used_from", "refused", "previous", "reused", "reused_from", NULL
};
static const char *const place_keys[] = {"token_id", "organization_id", "network", "seen_at", NULL};
static const char *const previous_keys[APITOKEN_PREVIOUS_MAX + 1] = {"1", "2", "3", "4"};
static const char *const verdict_keys[APITOKEN_VERDICTS + 1] = {VERDICTS(VERDICT_NAME)};

pg_noreturn static void
refuse(const char *problem, const char *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("batch of token usage is not valid"),
			 errdetail("\"%s\" %s.", apitoken_clip(key), problem),
			 errhint("The servers may have different versions of apitoken.")));
}

/* ---- JSON ---- */

/* Raise an error if an object has another key, which a later version may know. */
static void
check_keys(JsonbContainer *object, const char *const *keys)
{
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		const char *const *key = keys;
		char	   *name;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(value.val.string.val, value.val.string.len);
		while (*key != NULL && strcmp(*key, name) != 0)
			key++;
		if (*key == NULL)
			refuse("is not known", name);
		pfree(name);
	}
}

/* A member of an object that is not null; NULL if it has none. */
static JsonbValue *
member(JsonbContainer *object, const char *key)
{
	JsonbValue *value = getKeyJsonValueFromContainer(object, key, strlen(key), NULL);

	return value == NULL || value->type == jbvNull ? NULL : value;
}

/* The value of a string as C string; NULL if the object does not have it. */
static char *
text_member(JsonbContainer *object, const char *key)
{
	JsonbValue *value = member(object, key);

	if (value == NULL)
		return NULL;
	if (value->type != jbvString)
		refuse("is not a string", key);
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static char *
required_text(JsonbContainer *object, const char *key)
{
	char	   *text = text_member(object, key);

	if (text == NULL)
		refuse("is missing", key);
	return text;
}

/* A number from 0 to `max`; 0 if the object does not have it. */
static int64
count_member(JsonbContainer *object, const char *key, int64 max)
{
	JsonbValue *value = member(object, key);
	int64		count;

	if (value == NULL)
		return 0;
	if (value->type != jbvNumeric)
		refuse("is not a number", key);
	if (numeric_is_nan(value->val.numeric) || numeric_is_inf(value->val.numeric))
		refuse("is not a finite number", key);
	count = DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(value->val.numeric)));
	if (count < 0 || count > max)
		refuse("is negative or too large", key);
	return count;
}

/* A time that is not in the future; 0 if the object does not have it. */
static TimestampTz
time_member(JsonbContainer *object, const char *key, TimestampTz now)
{
	char	   *text = text_member(object, key);
	TimestampTz at;

	if (text == NULL)
		return 0;
	at = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
												 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	if (TIMESTAMP_NOT_FINITE(at))
		refuse("is not a time", key);
	/* the clock of the sender may be ahead */
	return Min(at, now);
}

static void
address_member(JsonbContainer *object, const char *key, inet_struct *address)
{
	char	   *text = text_member(object, key);
	inet	   *value;

	if (text == NULL)
		return;
	value = DatumGetInetPP(DirectFunctionCall1(inet_in, CStringGetDatum(text)));
	memcpy(address, VARDATA_ANY(value), Min(VARSIZE_ANY_EXHDR(value), sizeof(*address)));
}

/* An object in an object; NULL if there is none. */
static JsonbContainer *
object_member(JsonbContainer *object, const char *key, const char *const *keys)
{
	JsonbValue *value = member(object, key);

	if (value == NULL)
		return NULL;
	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		refuse("is not an object", key);
	check_keys(value->val.binary.data, keys);
	return value->val.binary.data;
}

static pg_uuid_t
token_member(JsonbContainer *object)
{
	char	   *text = required_text(object, "token_id");

	return *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(text)));
}

/* ---- rows ---- */

static void
read_use(JsonbContainer *object, TimestampTz now, void *row)
{
	ApitokenUsageRow *use = row;
	JsonbContainer *previous;
	JsonbContainer *refused;
	DateADT		day;

	check_keys(object, use_keys);
	use->key.database = MyDatabaseId;
	use->key.token_id = token_member(object);
	day = DatumGetDateADT(DirectFunctionCall1(date_in, CStringGetDatum(required_text(object, "day"))));
	if (DATE_NOT_FINITE(day))
		refuse("is not a day", "day");
	use->key.day = Min(day, apitoken_day_of(now));
	use->accepted = count_member(object, "accepted", APITOKEN_SENT_COUNT_MAX);
	use->last.at = time_member(object, "last_used_at", now);
	if (use->last.at == 0)
		use->last.at = DT_NOBEGIN;
	if (use->accepted > 0 && use->last.at == DT_NOBEGIN)
		refuse("is missing", "last_used_at");
	address_member(object, "last_used_from", &use->last.from);
	refused = object_member(object, "refused", verdict_keys);
	for (int verdict = 0; refused != NULL && verdict < APITOKEN_VERDICTS; verdict++)
		use->refused[verdict] = count_member(refused, verdict_keys[verdict], PG_UINT32_MAX);
	previous = object_member(object, "previous", previous_keys);
	for (int i = 0; previous != NULL && i < APITOKEN_PREVIOUS_MAX; i++)
		use->last.previous_at[i] = time_member(previous, previous_keys[i], now);
	use->last.reused = count_member(object, "reused", (1 << APITOKEN_PREVIOUS_MAX) - 1);
	address_member(object, "reused_from", &use->last.reused_from);
}

static void
read_place(JsonbContainer *object, TimestampTz now, void *row)
{
	ApitokenSeenRow *seen = row;
	char	   *organization_id = text_member(object, "organization_id");
	char	   *network = text_member(object, "network");

	check_keys(object, place_keys);
	seen->key.database = MyDatabaseId;
	seen->key.token_id = token_member(object);
	seen->at = time_member(object, "seen_at", now);
	if (seen->at == 0)
		refuse("is missing", "seen_at");
	if ((organization_id == NULL) == (network == NULL))
		refuse("is missing, or there is \"organization_id\" as well", "network");
	if (organization_id != NULL)
	{
		if (apitoken_id_fault(organization_id, strlen(organization_id)) != NULL)
			refuse("is not an id", "organization_id");
		seen->place = APITOKEN_IN_ORGANIZATION;
		snprintf(seen->key.in.organization_id, sizeof(seen->key.in.organization_id), "%s", organization_id);
	}
	else
	{
		seen->place = APITOKEN_IN_NETWORK;
		apitoken_network_of(DatumGetInetPP(DirectFunctionCall1(inet_in, CStringGetDatum(network))),
							&seen->key.in.network);
	}
}

/* Read each object of a list into a row of this size. */
static void *
read_list(Jsonb *list, const char *name, Size size,
		  void (*read) (JsonbContainer *object, TimestampTz now, void *row), int *count)
{
	TimestampTz now = GetCurrentTimestamp();
	JsonbContainer *container = &list->root;
	char	   *rows;

	if (!JsonContainerIsArray(container) || JsonContainerIsScalar(container))
		refuse("is not a list", name);
	*count = JsonContainerSize(container);
	if (*count > LIST_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("batch of token usage is too large"),
				 errdetail("\"%s\" has more than %d objects.", name, LIST_MAX)));
	rows = palloc0(Max(*count, 1) * size);
	for (int i = 0; i < *count; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(container, i);

		if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
			refuse("has an element that is not an object", name);
		read(value->val.binary.data, now, rows + i * size);
		CHECK_FOR_INTERRUPTS();
	}
	return rows;
}

static int
compare_places(const void *a, const void *b)
{
	const ApitokenSeenRow *left = a;
	const ApitokenSeenRow *right = b;
	int			order = (int) left->place - (int) right->place;

	if (order == 0)
		order = memcmp(&left->key, &right->key, sizeof(left->key));
	/* the latest first */
	return order != 0 ? order : (left->at < right->at) - (left->at > right->at);
}

/* ---- writing ---- */

/* Of tokens of forgotten users, neither addresses nor places are written. */
static void
forget_places(ApitokenUsageRow *uses, int use_count, ApitokenSeenRow *places, int *place_count)
{
	Datum	   *ids = palloc((use_count + *place_count + 1) * sizeof(Datum));
	Datum		all;
	Datum		found = (Datum) 0;
	int			forgotten;
	int			kept = 0;

	for (int i = 0; i < use_count; i++)
		ids[i] = UUIDPGetDatum(&uses[i].key.token_id);
	for (int i = 0; i < *place_count; i++)
		ids[use_count + i] = UUIDPGetDatum(&places[i].key.token_id);
	all = PointerGetDatum(construct_array(ids, use_count + *place_count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	(void) apitoken_execute_value(APITOKEN_FORGOTTEN_AMONG, &all, NULL, &found);
	if (found == (Datum) 0)
		return;
	deconstruct_array(DatumGetArrayTypeP(found), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &ids, NULL, &forgotten);
	for (int f = 0; f < forgotten; f++)
	{
		for (int i = 0; i < use_count; i++)
		{
			if (memcmp(DatumGetUUIDP(ids[f]), &uses[i].key.token_id, sizeof(pg_uuid_t)) == 0)
			{
				memset(&uses[i].last.from, 0, sizeof(uses[i].last.from));
				memset(&uses[i].last.reused_from, 0, sizeof(uses[i].last.reused_from));
			}
		}
	}
	for (int i = 0; i < *place_count; i++)
	{
		bool		forget = false;

		for (int f = 0; f < forgotten && !forget; f++)
			forget = memcmp(DatumGetUUIDP(ids[f]), &places[i].key.token_id, sizeof(pg_uuid_t)) == 0;
		if (!forget)
			places[kept++] = places[i];
	}
	*place_count = kept;
}

static void
tell_reuse(void *arg)
{
	(void) apitoken_tell_reuse(NULL);
}

/* Places of one kind. */
typedef struct Places
{
	ApitokenPlace place;
	ApitokenSeenRow *rows;
	int			count;
} Places;

static void
write_places(void *arg)
{
	Places	   *places = arg;

	apitoken_write_seen(places->place, places->rows, places->count);
}

/* What triggers on other tables prevent must not prevent that use is counted. */
static void
try_to(void (*work) (void *arg), void *arg)
{
	ErrorData  *error = apitoken_try(work, arg);

	if (error != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not record where and how tokens were used: %s", error->message),
				 errdetail("Their next use will be recorded.")));
}

static void
write_all_places(ApitokenSeenRow *rows, int count)
{
	int			distinct = 0;

	qsort(rows, count, sizeof(ApitokenSeenRow), compare_places);
	for (int i = 0; i < count; i++)
	{
		if (distinct == 0 || rows[i].place != rows[distinct - 1].place ||
			memcmp(&rows[i].key, &rows[distinct - 1].key, sizeof(rows[i].key)) != 0)
			rows[distinct++] = rows[i];
	}
	for (int first = 0; first < distinct;)
	{
		Places		places = {rows[first].place, rows + first, 0};

		while (first < distinct && rows[first].place == places.place)
		{
			places.count++;
			first++;
		}
		try_to(write_places, &places);
	}
}

APITOKEN_FUNCTION_INFO_V1(apitoken_record_usage);
Datum
apitoken_record_usage(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"sender", "batch", "uses", "places"};
	ApitokenUsageRow *uses;
	ApitokenSeenRow *places;
	int			use_count;
	int			place_count;
	Datum		ids[2];

	PreventCommandDuringRecovery("apitoken.record_usage()");
	PreventCommandIfReadOnly("apitoken.record_usage()");
	PreventCommandIfParallelMode("apitoken.record_usage()");
	for (int i = 0; i < lengthof(names); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" of %s must not be null", names[i], "record_usage()")));
		if (i < lengthof(ids))
			ids[i] = PG_GETARG_DATUM(i);
	}
	uses = read_list(PG_GETARG_JSONB_P(2), names[2], sizeof(ApitokenUsageRow), read_use, &use_count);
	places = read_list(PG_GETARG_JSONB_P(3), names[3], sizeof(ApitokenSeenRow), read_place, &place_count);

	if (!apitoken_lock_usage())
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("extension \"apitoken\" is not installed in this database")));
	if (apitoken_sends(NULL))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server does not count token usage, because it sends its own to the publisher"),
				 errhint("Send it to the publisher.")));
	/* what is known of the sender may have been removed by now */
	if (apitoken_id_time(PG_GETARG_UUID_P(1)) < GetCurrentTimestamp() - APITOKEN_SENDER_RETENTION ||
		apitoken_execute(APITOKEN_CLAIM_BATCH, ids, NULL) == 0)
		PG_RETURN_BOOL(false);
	forget_places(uses, use_count, places, &place_count);
	if (use_count > 0)
	{
		apitoken_write_usage(uses, use_count);
		try_to(tell_reuse, NULL);
	}
	write_all_places(places, place_count);
	PG_RETURN_BOOL(true);
}
