/*
 * validate.c
 *		Checks of a token's columns.
 *
 * The insert and the update trigger call them after authorization.  An error is
 * 22023 with a hint that names the fix.  The exceptions are an organization or a
 * role that does not exist (23503), and a label that is in use (23505).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/varlena.h"

#include "manage/manage.h"

#define LABEL_MAX 255			/* characters */
#define DESCRIPTION_MAX 4000	/* characters */
#define METADATA_MAX 65536		/* bytes */
#define NETWORKS_MAX 100
#define DURATION_MIN (1 * USECS_PER_MINUTE)
#define DURATION_MAX_YEARS 100

static pg_noreturn void invalid(const char *message, const char *hint);
static pg_noreturn void invalid_as(const char *message, const char *sql, const char *http);

static void
invalid(const char *message, const char *hint)
{
	invalid_as(message, hint, hint);
}

/* The same if the value is written in another way over HTTP. */
static void
invalid_as(const char *message, const char *sql, const char *http)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg_internal("%s", message),
			 apitoken_errhint(sql, http)));
}

/* Refuse a text that shows nothing, or that has control characters. */
static void
check_visible(const char *what, char *text, bool lines)
{
	ApitokenVisible visible = apitoken_examine_text(text, lines, NULL);

	if (visible == APITOKEN_CONTROL_CHARACTER)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s contains a control character", what),
				 lines ?
				 errhint("Remove control characters other than tabs and line breaks, and those that change the direction of text.") :
				 errhint("Use one line, without control characters and those that change the direction of text.")));
	if (visible == APITOKEN_NOTHING_VISIBLE && !lines)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s has no visible character", what),
				 errhint("Use a text that people can read.")));
}

void
apitoken_check_label(char *label)
{
	if (label == NULL || *label == '\0')
		invalid("label must not be empty", "Use a label of 1 to 255 characters.");
	if (pg_mbstrlen(label) > LABEL_MAX)
		invalid("label is too long", "Use a label of 1 to 255 characters.");
	check_visible("label", label, false);
}

void
apitoken_check_description(char *description)
{
	if (pg_mbstrlen(description) > DESCRIPTION_MAX)
		invalid("description is too long", "Use at most 4000 characters.");
	check_visible("description", description, true);
}

void
apitoken_check_reason(char *reason)
{
	if (strlen(reason) > APITOKEN_REASON_MAX)
		invalid("reason is too long", "Use a reason of at most 1000 bytes.");
	check_visible("reason", reason, true);
}

/*
 * The beginning of a text, up to a number of bytes, without secrets.  More of it is
 * searched for them: a secret that the end of what is read cuts in two is far behind
 * the end of what is kept.
 */
char *
apitoken_without_secrets(Datum string, int max)
{
	char	   *kept = text_to_cstring(DatumGetTextPSlice(string, 0, 8 * max));
	int			length = strlen(kept);

	(void) apitoken_mask_secrets(kept, length);
	kept[pg_mbcliplen(kept, Min(length, max + MAX_MULTIBYTE_CHAR_LEN), max)] = '\0';
	return kept;
}

/* The table checks the length. */
void
apitoken_check_role_name(char *name)
{
	char	   *trimmed;

	if (*name == '\0' || strlen(name) >= NAMEDATALEN)
		return;
	(void) apitoken_examine_text(name, false, &trimmed);
	check_visible("name of the token role", name, false);
	if (trimmed != name)
		invalid("name of the token role begins or ends with a blank character", "Remove white space at both ends.");
}

/*
 * The row that is stored for the row of an INSERT or UPDATE.  Blank characters at
 * the ends of the label are removed, so that two labels which differ only there
 * are the same one.  Networks of mapped IPv4 addresses become IPv4 networks.  This
 * raises no errors about values.
 */
HeapTuple
apitoken_canonical_row(HeapTuple tuple, TupleDesc descriptor)
{
	int			attributes[2];
	Datum		values[2];
	bool		nulls[2] = {false};
	int			count = 0;
	Datum		value;
	bool		isnull;

	value = heap_getattr(tuple, Anum_token_records_label, descriptor, &isnull);
	if (!isnull)
	{
		char	   *label = TextDatumGetCString(value);
		char	   *trimmed = label;

		/* a longer one is refused in any case */
		if (strlen(label) <= LABEL_MAX * MAX_MULTIBYTE_CHAR_LEN)
			(void) apitoken_examine_text(label, false, &trimmed);
		if (trimmed != label)
		{
			attributes[count] = Anum_token_records_label;
			values[count++] = CStringGetTextDatum(trimmed);
		}
	}
	value = heap_getattr(tuple, Anum_token_records_allowed_networks, descriptor, &isnull);
	if (!isnull)
	{
		ArrayType  *networks = DatumGetArrayTypeP(value);
		ArrayType  *canonical = apitoken_canonical_networks(networks);

		if (canonical != networks)
		{
			attributes[count] = Anum_token_records_allowed_networks;
			values[count++] = PointerGetDatum(canonical);
		}
	}
	return count == 0 ? tuple : heap_modify_tuple_by_cols(tuple, descriptor, count, attributes, values, nulls);
}

/* In UTC, so that a duration is the same in all time zones, as a policy's limit is. */
TimestampTz
apitoken_plus_interval(TimestampTz start, Interval *interval)
{
	return DatumGetTimestamp(DirectFunctionCall2(timestamp_pl_interval,
												 TimestampGetDatum(start),
												 IntervalPGetDatum(interval)));
}

static TimestampTz
latest_expiry(void)
{
	Interval	years = {0};

	years.month = DURATION_MAX_YEARS * MONTHS_PER_YEAR;
	return apitoken_plus_interval(GetCurrentTransactionStartTimestamp(), &years);
}

/* `may_be_past`: the caller is an administrator, who may set a time in the past. */
void
apitoken_check_expiry(TimestampTz expires_at, bool may_be_past)
{
	if (TIMESTAMP_NOT_FINITE(expires_at))
		invalid("expiration time must be finite", "Specify null for a token that never expires.");
	if (!may_be_past && expires_at <= GetCurrentTimestamp())
		invalid("expiration time is in the past", "Specify a time in the future, or null for a token that never expires.");
	if (expires_at > latest_expiry())
		invalid("expiration time is too far in the future", "Specify a time within 100 years, or null for a token that never expires.");
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
		invalid("duration is too long", "Specify at most 100 years, or null for a token that never expires.");
	years.month = -years.month;
	if (DatumGetBool(DirectFunctionCall2(interval_lt, IntervalPGetDatum(duration), IntervalPGetDatum(&years))))
		invalid(too_short, "Specify a duration with its unit, like '30 days'.  The value '30' means 30 seconds.");
	end = apitoken_plus_interval(start, duration);
	if (end - start < DURATION_MIN)
		invalid(too_short, "Specify a duration with its unit, like '30 days'.  The value '30' means 30 seconds.");
	return end;
}

TimestampTz
apitoken_expiry_after(Interval *expires_in)
{
	return end_of_duration(expires_in, "token lifetime must be at least one minute");
}

/* The end of an overlap, until which the old secret is accepted; DT_NOBEGIN: no overlap. */
TimestampTz
apitoken_overlap_until(Interval *overlap)
{
	Interval	none = {0};

	if (DatumGetBool(DirectFunctionCall2(interval_eq, IntervalPGetDatum(overlap), IntervalPGetDatum(&none))))
		return DT_NOBEGIN;
	return end_of_duration(overlap, "overlap must be zero or at least one minute");
}

/*
 * A token that its organization's policy refuses is not made.  Over HTTP and in
 * SQL, the names of what sets the expiration time are the same.
 */
void
apitoken_check_lifetime(const ApitokenOrganizationRow *organization,
						TimestampTz issued_at, TimestampTz expires_at)
{
	char	   *limit;

	if (apitoken_lifetime_allowed(organization, issued_at, expires_at))
		return;
	if (organization->max_lifetime == NULL)
		invalid("organization requires an expiration time of its tokens", "Specify \"expires_in\", such as '30 days'.");
	limit = DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(organization->max_lifetime)));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 expires_at == DT_NOEND ? errmsg("organization requires an expiration time of its tokens") :
			 errmsg("token lifetime exceeds the limit of the organization"),
			 errdetail("A secret of the organization's tokens may live for at most %s.", limit),
			 errhint("Specify \"expires_in\" of at most '%s'.", limit)));
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
				 apitoken_errhint(psprintf("Run INSERT INTO apitoken.organizations (id) VALUES (%s) first.",
										   quote_literal_cstr(apitoken_clip(id))),
								  "Use the id of an organization that exists.")));
	apitoken_remember_locked(APITOKEN_ORGANIZATIONS, id);
}

/*
 * The role must exist, and is locked until this transaction ends.  Its first use
 * stores a built-in role.
 */
void
apitoken_lock_role(const char *role)
{
	Datum		value = CStringGetTextDatum(role);

	if (apitoken_execute(APITOKEN_LOCK_ROLE, &value, NULL) > 0)
		return;
	apitoken_execute(APITOKEN_STORE_BUILT_IN_ROLE, &value, NULL);
	if (apitoken_execute(APITOKEN_LOCK_ROLE, &value, NULL) > 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
			 errmsg("token role \"%s\" does not exist", apitoken_clip(role)),
			 apitoken_errhint(psprintf("Use a token role in apitoken.roles, or add one, for example with "
									   "INSERT INTO apitoken.roles (name, permissions) VALUES (%s, '{article:read}').",
									   quote_literal_cstr(apitoken_clip(role))),
							  "GET /roles lists the token roles.")));
}

void
apitoken_check_role(const char *role)
{
	ApitokenRoleRow row;

	if (!apitoken_role(role, &row))
		apitoken_lock_role(role);
}

void
apitoken_check_access(const char *access, ArrayType *permissions)
{
	ApitokenAccess value = apitoken_access_from_text(access);

	if (value == APITOKEN_CUSTOM && permissions == NULL)
		invalid_as("access \"custom\" requires permissions", "Specify permissions such as '{article:read}', or use access \"read_only\" or \"full\".",
				   "Specify permissions such as [\"article:read\"], or use access \"read_only\" or \"full\".");
	if (value != APITOKEN_CUSTOM && permissions != NULL)
		invalid("permissions require access \"custom\"", "Omit access or set it to \"custom\", or omit the permissions.");
	if (permissions != NULL)
	{
		apitoken_check_patterns(permissions);
		apitoken_check_known(permissions, ERROR);
	}
}

/* The permissions of the extension itself, which the catalog need not have. */
static const char *const own_permissions[] = {
	"token:read", "token:create", "token:update", "token:delete", "token:rotate", "organization:update"
};

/* A permission with "*" in those halves in which the pattern has it. */
static char *
generalize(const char *pattern, const char *permission)
{
	const char *colon = strchr(permission, ':');

	return psprintf("%.*s:%s", pattern[0] == '*' ? 1 : (int) (colon - permission), pattern[0] == '*' ? "*" : permission,
					pattern[strlen(pattern) - 1] == '*' ? "*" : colon + 1);
}

/* What was most likely meant: at most a third of it differs.  NULL if nothing is near. */
static char *
nearest_pattern(const char *pattern, List *known)
{
	int			length = strlen(pattern);
	int			distance = length / 3;
	char	   *nearest = NULL;
	ListCell   *lc;

	foreach(lc, known)
	{
		char	   *candidate = generalize(pattern, lfirst(lc));
		int			differs = varstr_levenshtein_less_equal(pattern, length, candidate, strlen(candidate), 1, 1, 1, distance, true);

		CHECK_FOR_INTERRUPTS();
		if (differs <= distance && (nearest == NULL || differs < distance) && apitoken_pattern_matches(candidate, lfirst(lc)))
		{
			nearest = candidate;
			distance = differs;
		}
	}
	return nearest;
}

/*
 * Each pattern must match a permission of the catalog, if there is one, or one of
 * the extension itself.  Another one allows nothing, and is most likely misspelled.
 */
void
apitoken_check_known(ArrayType *patterns, int elevel)
{
	List	   *known = NIL;
	Datum		given = PointerGetDatum(patterns);
	Datum		catalog;
	ListCell   *lc;

	if (apitoken_allow_unknown_permissions ||
		!apitoken_execute_value(APITOKEN_CATALOG, &given, NULL, &catalog))
		return;
	known = apitoken_strings_from_array(DatumGetArrayTypeP(catalog));
	for (int i = 0; i < lengthof(own_permissions); i++)
		known = lappend(known, unconstify(char *, own_permissions[i]));
	foreach(lc, apitoken_strings_from_array(patterns))
	{
		const char *pattern = lfirst(lc);
		bool		matches = false;
		ListCell   *known_cell;
		char	   *nearest;

		foreach(known_cell, known)
		{
			CHECK_FOR_INTERRUPTS();
			matches = apitoken_pattern_matches(pattern, lfirst(known_cell));
			if (matches)
				break;
		}
		if (matches)
			continue;
		nearest = nearest_pattern(pattern, known);
		ereport(elevel,
				(errcode(elevel == ERROR ? ERRCODE_INVALID_PARAMETER_VALUE : ERRCODE_WARNING),
				 errmsg("unknown permission \"%s\"", pattern),
				 errdetail("It matches no row of apitoken.permissions."),
				 nearest != NULL ? errhint("Perhaps you meant \"%s\".", nearest) :
				 apitoken_errhint("Run SELECT name FROM apitoken.permissions to list the permissions, or insert this one.",
								  "GET /permissions lists the permissions.")));
	}
}

/* `none`: what null means */
void
apitoken_check_networks(ArrayType *networks, const char *none)
{
	int			count;

	if (networks == NULL)
		return;
	count = ArrayGetNItems(ARR_NDIM(networks), ARR_DIMS(networks));
	if (count == 0)
		invalid("list of allowed networks is empty", none);
	if (count > NETWORKS_MAX || ARR_NDIM(networks) > 1 || array_contains_nulls(networks))
		invalid("invalid list of allowed networks", "Specify a one-dimensional array of at most 100 networks without nulls.");
}

void
apitoken_check_rate_limit(int32 limit)
{
	if (limit < 1 || limit > 1000000)
		invalid("rate limit is out of range", "Specify 1 to 1000000 uses per minute, or null for no limit.");
}

/* The largest number is that of an Integer in an HTTP field (RFC 9651, section 3.3.1). */
void
apitoken_check_quota(HeapTuple tuple, TupleDesc descriptor)
{
	bool		no_quota;
	bool		no_period;
	Datum		quota = heap_getattr(tuple, Anum_token_records_quota, descriptor, &no_quota);
	Datum		value = heap_getattr(tuple, Anum_token_records_quota_period, descriptor, &no_period);
	const char *period = no_period ? NULL : TextDatumGetCString(value);

	if (!no_quota && (DatumGetInt64(quota) < 1 || DatumGetInt64(quota) > INT64CONST(999999999999999)))
		invalid("quota is out of range", "Specify 1 to 999999999999999 uses, or null for no quota.");
	if (period != NULL && strcmp(period, "day") != 0 && strcmp(period, "month") != 0)
		invalid("invalid period of the quota", "Specify \"day\" or \"month\", or null for the life of the token.");
	if (period != NULL && no_quota)
		invalid("a period of the quota requires a quota", "Specify the quota too, or null for the period.");
}

void
apitoken_check_metadata(Datum metadata)
{
	Jsonb	   *json = DatumGetJsonbP(metadata);

	if (!JB_ROOT_IS_OBJECT(json))
		invalid_as("metadata must be a JSON object", "Specify an object such as '{\"key\": \"value\"}'.",
				   "Specify an object such as {\"key\": \"value\"}.");
	if (VARSIZE(json) > METADATA_MAX)
		invalid("metadata is too large", "Use at most 64 kB.");
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
			 errmsg("label \"%s\" is already in use", record->label),
			 errdetail("Token \"%s\" with status \"%s\" has this label.", other.masked, state_in_words(&other)),
			 errhint("Use another label, or revoke that token.")));
}
