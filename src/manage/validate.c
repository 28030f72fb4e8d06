/*
 * validate.c
 *		Checks of a token's columns.
 *
 * The insert and the update trigger call them after authorization.  An error is
 * 22023 with a hint that names the fix.  The exceptions are an organization or a
 * role that does not exist (23503), and a label that is in use (23505).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "manage/manage.h"

#define LABEL_MAX 255			/* characters */
#define DESCRIPTION_MAX 4000	/* characters */
#define METADATA_MAX 65536		/* bytes */
#define NETWORKS_MAX 100
#define DURATION_MIN (1 * USECS_PER_MINUTE)
#define DURATION_MAX_YEARS 100

static pg_noreturn void invalid(const char *message, const char *hint);

static void
invalid(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg_internal("%s", message),
			 errhint("%s", hint)));
}

void
apitoken_check_label(const char *label)
{
	if (label == NULL || label[strspn(label, " \t\r\n")] == '\0')
		invalid("a token needs a label", "Give a label of 1 to 255 characters.");
	if (pg_mbstrlen(label) > LABEL_MAX)
		invalid("the label is too long", "Give a label of 1 to 255 characters.");
}

void
apitoken_check_description(const char *description)
{
	if (description != NULL && pg_mbstrlen(description) > DESCRIPTION_MAX)
		invalid("the description is too long", "A description has at most 4000 characters.");
}

static TimestampTz
plus_interval(TimestampTz start, Interval *interval)
{
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(start),
												   IntervalPGetDatum(interval)));
}

static TimestampTz
latest_expiry(void)
{
	Interval	years = {0};

	years.month = DURATION_MAX_YEARS * MONTHS_PER_YEAR;
	return plus_interval(GetCurrentTransactionStartTimestamp(), &years);
}

/* `may_be_past`: the caller is an administrator, who may set a time in the past. */
void
apitoken_check_expiry(TimestampTz expires_at, bool may_be_past)
{
	if (TIMESTAMP_NOT_FINITE(expires_at))
		invalid("the expiry is not a point in time", "For a token that never expires, give null.");
	if (!may_be_past && expires_at <= GetCurrentTimestamp())
		invalid("the expiry is in the past", "Give a time in the future, or null for a token that never expires.");
	if (expires_at > latest_expiry())
		invalid("the expiry is too far away", "Give a time within 100 years, or null for a token that never expires.");
}

/* The end of a duration that starts with the transaction. */
static TimestampTz
end_of_duration(Interval *duration, const char *too_short)
{
	TimestampTz start = GetCurrentTransactionStartTimestamp();
	TimestampTz end;

	/* compare before the addition, which could overflow */
	Interval	years = {0};

	years.month = DURATION_MAX_YEARS * MONTHS_PER_YEAR;
	if (DatumGetBool(DirectFunctionCall2(interval_gt, IntervalPGetDatum(duration), IntervalPGetDatum(&years))))
		invalid("the duration is too long", "Give at most 100 years, or null for a token that never expires.");
	years.month = -years.month;
	if (DatumGetBool(DirectFunctionCall2(interval_lt, IntervalPGetDatum(duration), IntervalPGetDatum(&years))))
		invalid(too_short, "Write a duration with its unit, like '30 days': '30' is thirty seconds.");
	end = plus_interval(start, duration);
	if (end - start < DURATION_MIN)
		invalid(too_short, "Write a duration with its unit, like '30 days': '30' is thirty seconds.");
	return end;
}

TimestampTz
apitoken_expiry_after(Interval *expires_in)
{
	return end_of_duration(expires_in, "a token must live for at least a minute");
}

/* The end of an overlap, until which the old secret is accepted; DT_NOBEGIN: no overlap. */
TimestampTz
apitoken_overlap_until(Interval *overlap)
{
	Interval	none = {0};

	if (DatumGetBool(DirectFunctionCall2(interval_eq, IntervalPGetDatum(overlap), IntervalPGetDatum(&none))))
		return DT_NOBEGIN;
	return end_of_duration(overlap, "an overlap must be none, or at least a minute");
}

/* The organization must exist, and is locked until this transaction ends. */
void
apitoken_lock_organization(const char *id)
{
	Datum		value;

	if (apitoken_is_locked(APITOKEN_ORGANIZATIONS, id))
		return;
	value = CStringGetTextDatum(id);
	if (apitoken_execute(APITOKEN_LOCK_ORGANIZATION, &value, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("organization \"%s\" does not exist", apitoken_clip(id)),
				 errhint("Insert it into apitoken.organizations first.")));
	apitoken_remember_locked(APITOKEN_ORGANIZATIONS, id);
}

void
apitoken_refuse_role(const char *role)
{
	ereport(ERROR,
			(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
			 errmsg("role \"%s\" does not exist", apitoken_clip(role)),
			 errhint("SELECT name FROM apitoken.roles; lists the roles.")));
}

void
apitoken_check_role(const char *role)
{
	ApitokenRoleRow row;

	if (!apitoken_role(role, &row))
		apitoken_refuse_role(role);
}

void
apitoken_check_access(const char *access, ArrayType *permissions)
{
	ApitokenAccess value = apitoken_access_from_text(access);

	if (value == APITOKEN_CUSTOM && permissions == NULL)
		invalid("access custom needs permissions", "Give permissions such as '{article:read}', or access read_only or full.");
	if (value != APITOKEN_CUSTOM && permissions != NULL)
		invalid("permissions need access custom", "Leave access out or set it to custom, or give no permissions.");
	if (permissions != NULL)
		apitoken_check_patterns(permissions);
}

void
apitoken_check_networks(ArrayType *networks)
{
	int			count;

	if (networks == NULL)
		return;
	count = ArrayGetNItems(ARR_NDIM(networks), ARR_DIMS(networks));
	if (count == 0)
		invalid("the list of networks is empty", "For a token that is accepted from everywhere, give null.");
	if (count > NETWORKS_MAX || ARR_NDIM(networks) > 1 || array_contains_nulls(networks))
		invalid("the list of networks is not valid", "Give one list of at most 100 networks, without nulls.");
}

void
apitoken_check_rate_limit(int32 limit)
{
	if (limit < 1 || limit > 1000000)
		invalid("the rate limit is out of range", "Give 1 to 1000000 a minute, or null for no limit.");
}

void
apitoken_check_metadata(Datum metadata)
{
	Jsonb	   *json = DatumGetJsonbP(metadata);

	if (!JB_ROOT_IS_OBJECT(json))
		invalid("metadata must be a JSON object", "Write it like '{\"key\": \"value\"}'.");
	if (VARSIZE(json) > METADATA_MAX)
		invalid("metadata is too large", "It may take at most 64 kB.");
}

static const char *
state_in_words(const ApitokenRecord *record)
{
	if (record->expires_at <= GetCurrentTimestamp())
		return "expired";
	return record->suspended ? "suspended" : "active";
}

/*
 * The unique indexes would refuse the label too, but this error names the token
 * that has it.  If two sessions insert the same label at once, the index refuses
 * the second one.
 */
void
apitoken_check_label_free(const ApitokenRecord *record, Snapshot snapshot)
{
	ApitokenRecord other;

	if (!apitoken_fetch_label(snapshot, record, &other))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("the label \"%s\" is in use", record->label),
			 errdetail("Token %s has it, and is %s.", other.masked, state_in_words(&other)),
			 errhint("Choose another label, or revoke that token.")));
}
