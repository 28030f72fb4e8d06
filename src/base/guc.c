/*
 * guc.c
 *		The settings, and whether a value was set in this transaction.
 *
 * An identity belongs to one transaction.  So apitoken.token,
 * apitoken.user_id and apitoken.client_address count only when they were set
 * in the transaction that uses them.  The setting's own stack knows: it is
 * there exactly while a value set in this transaction stands, it follows
 * savepoints, and it is right for values set before this library was loaded.
 * A session-wide SET that a pooler carried over, PGOPTIONS, ALTER ROLE ...
 * SET and configuration files leave no stack.  RESET in a transaction leaves
 * one, but brings back a value with the source of those, not of SET.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/parallel.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/datetime.h"
#include "utils/inet.h"
#include "utils/varlena.h"

#include "base/base.h"

char	   *apitoken_prefix = NULL;
char	   *apitoken_pepper_file = NULL;
bool		apitoken_mask_logs = true;

/* A value was there when the library was loaded, and did not count. */
bool		apitoken_pepper_file_refused = false;

char	   *apitoken_token_headers = NULL;
char	   *apitoken_client_address_header = NULL;
char	   *apitoken_jwt_user_claim = NULL;
char	   *apitoken_issuer = NULL;
char	   *apitoken_audience = NULL;

/* Only the postmaster's value counts, when shared memory is laid out. */
int			apitoken_usage_slots = 65536;

/* milliseconds */
int			apitoken_flush_interval = 10000;

/* Changes whenever an identity setting does, also on rollback. */
uint64		apitoken_setting_generation = 1;

static char *setting_values[APITOKEN_SETTINGS];
static struct config_generic *setting_records[APITOKEN_SETTINGS];
static const char *const setting_names[APITOKEN_SETTINGS] = {
	"apitoken.token",
	"apitoken.user_id",
	"apitoken.client_address",
};

#define RETENTION_MAX_YEARS 100

static char *retention_values[APITOKEN_RETENTIONS];
static Interval retentions[APITOKEN_RETENTIONS];
static bool retention_limited[APITOKEN_RETENTIONS];

/* A value was there when the library was loaded, and did not count. */
static bool retention_refused[APITOKEN_RETENTIONS];
static const char *const retention_names[APITOKEN_RETENTIONS] = {
	"apitoken.retention",
	"apitoken.usage_retention",
};

/* True once all settings are defined: values taken over at load do not warn. */
static bool defined = false;

static bool
check_prefix(char **newval, void **extra, GucSource source)
{
	if (apitoken_valid_prefix(*newval))
		return true;
	GUC_check_errdetail("A prefix is 2 to 12 lower-case letters and digits and begins with a letter.");
	return false;
}

/*
 * Outside a transaction block a value lasts for the statement that sets it,
 * and so for nothing: say so, as SET LOCAL does.
 */
static bool
check_identity(char **newval, void **extra, GucSource source)
{
	if (defined && **newval != '\0' && source == PGC_S_SESSION &&
		IsTransactionState() && !IsTransactionBlock() && !IsParallelWorker())
		ereport(WARNING,
				(errcode(ERRCODE_NO_ACTIVE_SQL_TRANSACTION),
				 errmsg("an apitoken setting counts only in the transaction that sets it"),
				 errhint("Set it between BEGIN and COMMIT.")));
	return true;
}

/* ALTER ROLE ... SET, CREATE FUNCTION ... SET: what is stored, others read. */
static bool
check_token(char **newval, void **extra, GucSource source)
{
	if (defined && **newval != '\0' && source == PGC_S_TEST)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("the text of a token is being stored in a system catalog"),
				 errdetail("It does not count there, and others can read it."),
				 errhint("Take it back (ALTER ROLE ... RESET apitoken.token) and revoke the token.")));
	return check_identity(newval, extra, source);
}

/* Refused here and not when an address is needed, which is not always. */
static bool
check_client_address(char **newval, void **extra, GucSource source)
{
	unsigned char address[16];
	int			family = strchr(*newval, ':') != NULL ? PGSQL_AF_INET6 : PGSQL_AF_INET;

	if (**newval != '\0' && pg_inet_net_pton(family, *newval, address, -1) < 0)
	{
		GUC_check_errdetail("It is not an IP address.");
		return false;
	}
	return check_identity(newval, extra, source);
}

static bool
check_user_id(char **newval, void **extra, GucSource source)
{
	if (strlen(*newval) > APITOKEN_OWNER_ID_MAX)
	{
		GUC_check_errdetail("A user id has at most %d bytes.", APITOKEN_OWNER_ID_MAX);
		return false;
	}
	return check_identity(newval, extra, source);
}

/* The name of a header is a token of RFC 9110, section 5.6.2. */
static bool
valid_header(const char *name)
{
	return *name != '\0' &&
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") == strlen(name);
}

static bool
check_header(char **newval, void **extra, GucSource source)
{
	if (**newval == '\0' || valid_header(*newval))
		return true;
	GUC_check_errdetail("It is not the name of an HTTP header.");
	return false;
}

static bool
check_token_headers(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	ListCell   *lc;
	bool		good = SplitGUCList(copy, ',', &names);
	bool		twice = false;

	foreach(lc, names)
	{
		good = good && valid_header(lfirst(lc));
		/* each request would seem to have several tokens */
		for (int i = 0; i < foreach_current_index(lc); i++)
			twice = twice || pg_strcasecmp(list_nth(names, i), lfirst(lc)) == 0;
	}
	list_free(names);
	pfree(copy);
	if (!good)
		GUC_check_errdetail("It is not a list of names of HTTP headers.");
	else if (twice)
		GUC_check_errdetail("A header is named twice.");
	return good && !twice;
}

/*
 * An interval in any syntax that PostgreSQL reads.  interval_in() would raise,
 * and this runs where nothing may.
 */
static bool
parse_interval(char *text, Interval *interval)
{
	char		buffer[256];
	char	   *fields[MAXDATEFIELDS];
	int			types[MAXDATEFIELDS];
	int			count;
	int			kind = DTK_DELTA;
	int			error;
	struct pg_itm_in parts = {0};

	error = ParseDateTime(text, buffer, sizeof(buffer), fields, types, MAXDATEFIELDS, &count);
	if (error == 0)
		error = DecodeInterval(fields, types, count, INTERVAL_FULL_RANGE, &kind, &parts);
	if (error == DTERR_BAD_FORMAT)
		error = DecodeISO8601Interval(text, &kind, &parts);
	return error == 0 && kind == DTK_DELTA && itmin2interval(&parts, interval) == 0;
}

/* Empty: without limit, and nothing in *extra. */
static bool
check_duration(char *value, void **extra, int64 minimum, const char *too_short)
{
	Interval	interval;
	Interval   *kept;
	int64		days;

	*extra = NULL;
	if (*value == '\0')
		return true;
	if (!parse_interval(value, &interval))
	{
		GUC_check_errdetail("It is not an interval.");
		GUC_check_errhint("Write a duration with its unit, like '30 days', or nothing to keep all.");
		return false;
	}

	/* a part below zero could make it end at once in a short month */
	days = (int64) interval.month * DAYS_PER_MONTH + interval.day + interval.time / USECS_PER_DAY;
	if (interval.month < 0 || interval.day < 0 || interval.time < 0 ||
		(days == 0 && interval.time < minimum) ||
		value[strspn(value, " 0123456789.")] == '\0')
	{
		GUC_check_errdetail("%s", too_short);
		GUC_check_errhint("Write a duration with its unit, like '30 days': '30' is thirty seconds.");
		return false;
	}
	if (days > RETENTION_MAX_YEARS * MONTHS_PER_YEAR * DAYS_PER_MONTH)
	{
		GUC_check_errdetail("It is longer than %d years.", RETENTION_MAX_YEARS);
		GUC_check_errhint("Write nothing to keep all.");
		return false;
	}
	kept = compat_guc_malloc(sizeof(Interval));
	if (kept == NULL)
		return false;
	*kept = interval;
	*extra = kept;
	return true;
}

static bool
check_retention(char **newval, void **extra, GucSource source)
{
	return check_duration(*newval, extra, USECS_PER_MINUTE, "It has to be at least a minute, and to name its unit.");
}

static bool
check_usage_retention(char **newval, void **extra, GucSource source)
{
	return check_duration(*newval, extra, USECS_PER_DAY, "It has to be at least a day, and to name its unit.");
}

static void
assign_duration(ApitokenRetention retention, const void *extra)
{
	retention_limited[retention] = extra != NULL;
	if (extra != NULL)
		retentions[retention] = *(const Interval *) extra;
}

static void
assign_retention(const char *newval, void *extra)
{
	assign_duration(APITOKEN_RETENTION, extra);
}

static void
assign_usage_retention(const char *newval, void *extra)
{
	assign_duration(APITOKEN_USAGE_RETENTION, extra);
}

static void
assign_identity(const char *newval, void *extra)
{
	apitoken_setting_generation++;
}

static const char *
show_token(void)
{
	char	   *value = setting_values[APITOKEN_SETTING_TOKEN];

	return value != NULL && *value != '\0' ? "***" : "";
}

/*
 * The value of a setting if it was set in this transaction, otherwise NULL.
 * Empty values, which a finished transaction leaves behind, count as unset.
 */
const char *
apitoken_setting_in_force(ApitokenSetting setting)
{
	char	   *value = setting_values[setting];

	if (value == NULL || *value == '\0')
		return NULL;
	if (setting_records[setting]->stack == NULL ||
		setting_records[setting]->source != PGC_S_SESSION)
		return NULL;
	return value;
}

/*
 * The same for a setting of another's, as PostgREST's are: its text, and the
 * role that set it if that is asked.
 */
const char *
apitoken_request_setting(const char *name, Oid *setter)
{
	struct config_generic *record = compat_find_setting(name);
	const char *value;

	if (record == NULL || record->vartype != PGC_STRING ||
		record->stack == NULL || record->source != PGC_S_SESSION)
		return NULL;
	value = compat_string_setting(record);
	if (value == NULL || *value == '\0')
		return NULL;
	if (setter != NULL)
		*setter = record->srole;
	return value;
}

/* Does a setting have a value of a configuration file, a role, a connection? */
static bool
is_configured(const char *name)
{
	struct config_generic *record = compat_find_setting(name);

	return record != NULL && record->reset_source != PGC_S_DEFAULT;
}

/*
 * How long things are kept; NULL: for ever.  Nothing may be removed by the
 * default where the administrator said something else.
 */
const Interval *
apitoken_retention(ApitokenRetention retention)
{
	const char *name = retention_names[retention];
	struct config_generic *record = compat_find_setting(name);

	if (retention_refused[retention] && record != NULL && record->source == PGC_S_DEFAULT)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("the value of %s was refused", name),
				 errdetail("It is not valid, or the connection's options hide the server's configuration: only a superuser's count."),
				 errhint("Correct it where it is configured, and connect without it among the options.")));
	return retention_limited[retention] ? &retentions[retention] : NULL;
}

/* The role that set it. */
Oid
apitoken_setting_role(ApitokenSetting setting)
{
	return setting_records[setting]->srole;
}

void
apitoken_guc_init(void)
{
	bool		pepper_file_configured = is_configured("apitoken.pepper_file");
	bool		retention_configured[APITOKEN_RETENTIONS];

	for (int i = 0; i < APITOKEN_RETENTIONS; i++)
		retention_configured[i] = is_configured(retention_names[i]);

	DefineCustomStringVariable("apitoken.prefix",
							   "First part of the text of new tokens.",
							   "Lets secret scanners and people tell whose token it is; tokens made under another prefix go on working.",
							   &apitoken_prefix,
							   "apt",
							   PGC_SUSET,
							   0,
							   check_prefix, NULL, NULL);

	DefineCustomStringVariable("apitoken.pepper_file",
							   "File with the peppers under which token texts are hashed, one n:hex a line.",
							   "With a pepper outside the database, a copy of the database alone does not allow checking guesses. The highest n signs new tokens, older ones verify. Empty: plain SHA-256.",
							   &apitoken_pepper_file,
							   "",
							   PGC_SUSET,
							   GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);

	/*
	 * No check hook: one that failed while the server starts would silently
	 * leave the default, no file at all.  The file is read when it is used.
	 * A client's connection options have the same effect when the library is
	 * loaded after they were: they do not count, but the configuration file's
	 * value, which they hide, is forgotten.
	 */
	apitoken_pepper_file_refused = pepper_file_configured && !is_configured("apitoken.pepper_file");

	DefineCustomStringVariable(retention_names[APITOKEN_RETENTION],
							   "How long events, and tokens that are revoked or expired, are kept.",
							   "They are removed by housekeeping, and then nothing tells that they were. Empty: kept for ever.",
							   &retention_values[APITOKEN_RETENTION],
							   "",
							   PGC_SUSET,
							   0,
							   check_retention, assign_retention, NULL);

	DefineCustomStringVariable(retention_names[APITOKEN_USAGE_RETENTION],
							   "How long the daily counts of each token's use are kept.",
							   "One row for each token and day that it was used on. Empty: kept for ever.",
							   &retention_values[APITOKEN_USAGE_RETENTION],
							   "90 days",
							   PGC_SUSET,
							   0,
							   check_usage_retention, assign_usage_retention, NULL);

	for (int i = 0; i < APITOKEN_RETENTIONS; i++)
		retention_refused[i] = retention_configured[i] && !is_configured(retention_names[i]);

	DefineCustomBoolVariable("apitoken.mask_logs",
							 "Masks the texts of tokens in the server's log and in pg_stat_activity.",
							 "Off, a statement that holds a token shows its secret to whoever reads the log. The id of a token stays readable either way.",
							 &apitoken_mask_logs,
							 true,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);

	DefineCustomStringVariable(setting_names[APITOKEN_SETTING_TOKEN],
							   "Token to act by in this transaction.",
							   "For clients that can set settings but not call authenticate(). Counts only in the transaction that sets it; shown as ***.",
							   &setting_values[APITOKEN_SETTING_TOKEN],
							   "",
							   PGC_USERSET,
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   check_token, assign_identity, show_token);

	DefineCustomStringVariable(setting_names[APITOKEN_SETTING_USER_ID],
							   "User to act as in this transaction.",
							   "For trusted logins that can set settings but not call act_as(). Counts only in the transaction that sets it, and only if the session user holds the capability act.",
							   &setting_values[APITOKEN_SETTING_USER_ID],
							   "",
							   PGC_USERSET,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   check_user_id, assign_identity, NULL);

	DefineCustomStringVariable(setting_names[APITOKEN_SETTING_CLIENT_ADDRESS],
							   "Address of the client that the backend speaks for in this transaction.",
							   "For allowed_networks and for the record. Counts only in the transaction that sets it, and only if the session user holds the capability act or verify; otherwise the connection's own address is taken.",
							   &setting_values[APITOKEN_SETTING_CLIENT_ADDRESS],
							   "",
							   PGC_USERSET,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   check_client_address, NULL, NULL);

	/* without shared preload it has no effect, and is no error in a configuration file */
	DefineCustomIntVariable("apitoken.usage_slots",
							"Tokens whose use can be kept in shared memory at a time.",
							"Enough for the tokens used in one apitoken.flush_interval; as many again with rate limits, used in the last minute. About 160 bytes each, for both. A use that does not fit is not recorded, a token with a limit that does not is refused; both are counted as dropped.",
							&apitoken_usage_slots,
							65536, 64, 64 * 1024 * 1024,
							process_shared_preload_libraries_in_progress ? PGC_POSTMASTER : PGC_SIGHUP,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("apitoken.flush_interval",
							"How often recorded use is written to apitoken.token_usage.",
							"A crash of the server loses at most this much of it. Has no effect without shared preload.",
							&apitoken_flush_interval,
							10000, 100, 3600000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomStringVariable("apitoken.token_headers",
							   "HTTP headers in which pre_request() looks for a token.",
							   "Names separated by commas. A value is the token's text, alone or after one of the schemes Bearer, Token and ApiKey.",
							   &apitoken_token_headers,
							   "x-api-key, authorization",
							   PGC_SUSET,
							   0,
							   check_token_headers, NULL, NULL);

	DefineCustomStringVariable("apitoken.client_address_header",
							   "HTTP header in which a trusted proxy gives the client's address.",
							   "Its last address counts, which the nearest proxy has appended, if the session user holds the capability act or verify; without one the address is unknown. Empty: none.",
							   &apitoken_client_address_header,
							   "",
							   PGC_SUSET,
							   0,
							   check_header, NULL, NULL);

	DefineCustomStringVariable("apitoken.jwt_user_claim",
							   "Claim of PostgREST's verified JWT that holds the id of the user who is acting.",
							   "Counts if the session user holds the capability act. Empty: a JWT says nothing about who is acting.",
							   &apitoken_jwt_user_claim,
							   "",
							   PGC_SUSET,
							   GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);

	DefineCustomStringVariable("apitoken.issuer",
							   "What introspect() answers as iss, the issuer of tokens (RFC 7662).",
							   "Mostly the URL of the service. Empty: it is left out.",
							   &apitoken_issuer,
							   "",
							   PGC_SUSET,
							   0,
							   NULL, NULL, NULL);

	DefineCustomStringVariable("apitoken.audience",
							   "What introspect() answers as aud, whom tokens are for (RFC 7662).",
							   "Mostly the URL of the API. Empty: it is left out.",
							   &apitoken_audience,
							   "",
							   PGC_SUSET,
							   0,
							   NULL, NULL, NULL);

	MarkGUCPrefixReserved("apitoken");

	for (int i = 0; i < APITOKEN_SETTINGS; i++)
	{
		setting_records[i] = compat_find_setting(setting_names[i]);
		if (setting_records[i] == NULL)
			elog(ERROR, "setting %s is not registered", setting_names[i]);
	}
	defined = true;
}
