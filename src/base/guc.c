/*
 * guc.c
 *		The settings, each described once, and whether a value was set in this
 *		transaction.
 *
 * A new setting is an entry of settings[], a variable, and a declaration in
 * base.h if other files read it.
 *
 * An identity belongs to one transaction.  So apitoken.token,
 * apitoken.user_id and apitoken.client_address have an effect only in the
 * transaction that sets them.  PostgreSQL itself knows which values these are:
 * a setting has a stack exactly while a value that was set in this transaction
 * is in force.  The stack follows savepoints, and it is right for values that
 * were set before this library was loaded.  PGOPTIONS, ALTER ROLE ... SET,
 * configuration files, and a session-wide SET that a pooler left behind make
 * no stack.  RESET makes one, but the source of the value that it restores is
 * not that of SET.
 *
 * A setting can have a value before the library is loaded.  PostgreSQL checks
 * that value when the library defines the setting.  If it is invalid, or the
 * role was not allowed to set it, PostgreSQL drops it with a warning, and the
 * default is in force.  This can even happen to a valid value of the
 * configuration file: one in the connection's options replaces it first, and
 * is then dropped.  Where the default would do harm,
 * apitoken_require_setting() raises an error.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/parallel.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inet.h"
#include "utils/varlena.h"

#include "base/base.h"

/* The defaults are in settings[]. */
char	   *apitoken_prefix;
char	   *apitoken_pepper_file;
bool		apitoken_mask_logs;
bool		apitoken_require_pepper;
bool		apitoken_require_known_users;
bool		apitoken_allow_unknown_permissions;
int			apitoken_retention;
int			apitoken_usage_retention;
int			apitoken_notification_retention;
bool		apitoken_notifications;
int			apitoken_usage_slots;
int			apitoken_flush_interval;
bool		apitoken_standbys_verify;
char	   *apitoken_primary_conninfo;
bool		apitoken_subscriber_sends;
char	   *apitoken_token_headers;
char	   *apitoken_client_address_header;
char	   *apitoken_jwt_user_claim;
char	   *apitoken_issuer;
char	   *apitoken_audience;

/* The formats in apitoken.imported_formats. */
const ApitokenFormat *apitoken_imported_formats[APITOKEN_FORMATS];
int			apitoken_imported_formats_count = 0;

static char *imported_formats;

/* Changes whenever the token or the user does, also on rollback. */
uint64		apitoken_setting_generation = 1;

/* Read by apitoken_setting_in_force() only. */
static char *token;
static char *user_id;
static char *client_address;

/* Times to keep things, in minutes.  A day is always 24 hours. */
#define DAY_MINUTES (HOURS_PER_DAY * MINS_PER_HOUR)
#define RETENTION_MAX (100 * 365 * DAY_MINUTES)

/* All settings are defined.  Values that they had before cause no warnings. */
static bool defined = false;

static bool
check_prefix(char **newval, void **extra, GucSource source)
{
	if (apitoken_valid_prefix(*newval))
		return true;
	GUC_check_errdetail("A prefix has 2 to 12 lower-case letters and digits, and begins with a letter.");
	return false;
}

/*
 * Outside a transaction block, the transaction is the statement that sets the
 * value.  So the value is of no use, and there is a warning, as for SET LOCAL.
 *
 * There is none in an implicit transaction block: several statements in one query
 * message, and those after the first one in a pipeline.  The first one in a
 * pipeline gets the warning, because the server cannot know what comes next.
 */
bool
apitoken_outside_block(void)
{
	return !IsTransactionBlock() && (MyXactFlags & XACT_FLAGS_PIPELINING) == 0;
}

static bool
check_identity(char **newval, void **extra, GucSource source)
{
	if (defined && **newval != '\0' && source == PGC_S_SESSION &&
		IsTransactionState() && apitoken_outside_block() && !IsParallelWorker())
		ereport(WARNING,
				(errcode(ERRCODE_NO_ACTIVE_SQL_TRANSACTION),
				 errmsg("effect of this setting ends with this statement or pipeline"),
				 errhint("Set it between BEGIN and COMMIT.")));
	return true;
}

/* ALTER ROLE ... SET and CREATE FUNCTION ... SET store a value where others can read it. */
static bool
check_token(char **newval, void **extra, GucSource source)
{
	if (defined && **newval != '\0' && source == PGC_S_TEST)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("token is being stored in a system catalog"),
				 errdetail("The setting has no effect there, and other roles can read the token."),
				 errhint("Remove the setting, for example with ALTER ROLE ... RESET apitoken.token, and revoke the token.")));
	return check_identity(newval, extra, source);
}

/* Checked when it is set, because not every transaction goes on to use it. */
static bool
check_client_address(char **newval, void **extra, GucSource source)
{
	unsigned char address[16];
	int			family = strchr(*newval, ':') != NULL ? PGSQL_AF_INET6 : PGSQL_AF_INET;

	if (**newval != '\0' && pg_inet_net_pton(family, *newval, address, -1) < 0)
	{
		GUC_check_errdetail("The value must be an IP address.");
		return false;
	}
	return check_identity(newval, extra, source);
}

/*
 * A value that was set before the library was loaded is checked when it is used,
 * because a refused one would make the transaction anonymous.
 */
static bool
check_user_id(char **newval, void **extra, GucSource source)
{
	const char *fault = defined && **newval != '\0' ? apitoken_id_fault(*newval, strlen(*newval)) : NULL;

	if (fault != NULL)
	{
		GUC_check_errhint("%s", fault);
		return false;
	}
	return check_identity(newval, extra, source);
}

static bool
check_header(char **newval, void **extra, GucSource source)
{
	if (**newval == '\0' || apitoken_is_http_token(*newval, strlen(*newval)))
		return true;
	GUC_check_errdetail("The value must be the name of an HTTP header.");
	return false;
}

/* each request is searched for each of these headers */
#define TOKEN_HEADERS_MAX 16

static bool
check_token_headers(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	ListCell   *lc;
	bool		good = SplitGUCList(copy, ',', &names);
	bool		many = list_length(names) > TOKEN_HEADERS_MAX;
	bool		twice = false;

	if (many)
		names = list_truncate(names, TOKEN_HEADERS_MAX);
	foreach(lc, names)
	{
		good = good && apitoken_is_http_token(lfirst(lc), strlen(lfirst(lc)));
		/* each request would appear to have several tokens */
		for (int i = 0; i < foreach_current_index(lc); i++)
			twice = twice || pg_strcasecmp(list_nth(names, i), lfirst(lc)) == 0;
	}
	list_free(names);
	pfree(copy);
	if (!good)
		GUC_check_errdetail("The value must be a comma-separated list of HTTP header names.");
	else if (many)
		GUC_check_errdetail("The list has more than %d headers.", TOKEN_HEADERS_MAX);
	else if (twice)
		GUC_check_errdetail("The list contains a header more than once.");
	return good && !many && !twice;
}

/*
 * A number without a unit means minutes.  '30' is refused because it was most
 * likely meant as days, and would remove all but the last half hour.
 */
static bool
check_retention(int *newval, void **extra, GucSource source)
{
	if (*newval == APITOKEN_KEEP_ALL || *newval >= DAY_MINUTES)
		return true;
	GUC_check_errdetail("The shortest retention is one day.");
	GUC_check_errhint("Specify a duration with its unit, like '30d', or -1 to keep everything.");
	return false;
}

static bool
check_formats(char **newval, void **extra, GucSource source)
{
	const ApitokenFormat *found[APITOKEN_FORMATS];

	if (apitoken_formats_in_list(*newval, found) >= 0)
		return true;
	GUC_check_errdetail("The value must be a comma-separated list of formats.");
	GUC_check_errhint("The formats are sanctum, strapi, knox (knox5, knox42, knox41), drf-api-key (drf-api-key3, drf-api-key2), "
					  "better-auth, unkey, prefixed-api-key, gitlab, keyhippo, crypt and sha256.");
	return false;
}

static void
assign_formats(const char *newval, void *extra)
{
	int			count = apitoken_formats_in_list(newval, apitoken_imported_formats);

	apitoken_imported_formats_count = Max(count, 0);
}

static void
assign_identity(const char *newval, void *extra)
{
	apitoken_setting_generation++;
}

static const char *
show_token(void)
{
	return token != NULL && *token != '\0' ? "***" : "";
}

/* A setting has the type of the member whose variable is given. */
typedef struct Setting
{
	const char *name;
	const char *summary;
	const char *explanation;
	GucContext	context;
	int			flags;			/* GUC_*, with the unit of an integer */
	struct
	{
		char	  **variable;
		const char *initial;
		GucStringCheckHook check;
		GucStringAssignHook assign;
		GucShowHook show;
	}			string;
	struct
	{
		int		   *variable;
		int			initial;
		int			minimum;
		int			maximum;
		GucIntCheckHook check;
	}			integer;
	struct
	{
		bool	   *variable;
		bool		initial;
	}			boolean;
} Setting;

static const Setting settings[] = {

	/* First those that ApitokenSetting numbers. */
	[APITOKEN_SETTING_TOKEN] = {
		.name = "apitoken.token",
		.summary = "Sets the token to act by in this transaction.",
		.explanation = "For clients that can set settings but cannot call authenticate(). It has an effect only in the transaction that sets it, and is shown as ***.",
		.context = PGC_USERSET,
		.flags = GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
		.string = {.variable = &token, .initial = "", .check = check_token, .assign = assign_identity, .show = show_token},
	},
	[APITOKEN_SETTING_USER_ID] = {
		.name = "apitoken.user_id",
		.summary = "Sets the user to act as in this transaction.",
		.explanation = "For trusted logins that can set settings but cannot call act_as(). It has an effect only in the transaction that sets it, and only if the session user has the capability act.",
		.context = PGC_USERSET,
		.flags = GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
		.string = {.variable = &user_id, .initial = "", .check = check_user_id, .assign = assign_identity},
	},
	[APITOKEN_SETTING_CLIENT_ADDRESS] = {
		.name = "apitoken.client_address",
		.summary = "Sets the address of the client that a backend works for in this transaction.",
		.explanation = "It is compared with allowed_networks and recorded. It has an effect only in the transaction that sets it, and only if the session user has the capability act or verify. Otherwise the address of the connection is used.",
		.context = PGC_USERSET,
		.flags = GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
		.string = {.variable = &client_address, .initial = "", .check = check_client_address},
	},

	{
		.name = "apitoken.prefix",
		.summary = "Sets the prefix of new tokens.",
		.explanation = "Secret scanners and people recognize tokens of this issuer by it. Tokens that were created with another prefix stay valid.",
		.context = PGC_SUSET,
		.string = {.variable = &apitoken_prefix, .initial = "apt", .check = check_prefix},
	},

	/*
	 * The file has no check hook: it is read when it is used.  A check that
	 * failed while the server starts would silently leave the default, which
	 * is no file at all.
	 */
	{
		.name = "apitoken.pepper_file",
		.summary = "Sets the file with the peppers that tokens are hashed with, one n:hex a line, and with keys of systems whose tokens were imported, one name:hex a line.",
		.explanation = "With a pepper outside the database, a copy of the database is not enough to check guesses. New tokens are hashed with the pepper that has the highest number. Older peppers verify older tokens. An empty value means plain SHA-256.",
		.context = PGC_SUSET,
		.flags = GUC_SUPERUSER_ONLY,
		.string = {.variable = &apitoken_pepper_file, .initial = ""},
	},
	{
		.name = "apitoken.require_pepper",
		.summary = "Refuses tokens whose digest has no pepper.",
		.explanation = "Somebody who can write the table of tokens, but cannot read the pepper file, can then make no token that is valid. Tokens that were created without a pepper are refused as unknown, so regenerate them first. Without a pepper file, no token can be created.",
		.context = PGC_SUSET,
		.boolean = {.variable = &apitoken_require_pepper, .initial = false},
	},
	{
		.name = "apitoken.imported_formats",
		.summary = "Sets the formats of other systems' tokens as which texts of another shape than a token's are verified.",
		.explanation = "A list of formats separated by commas, in the order in which they are tried. Tokens of these formats must have been imported by import_token(). An empty value means that no imported token is accepted, and that a text of another shape is refused before any table is read.",
		.context = PGC_SUSET,
		.string = {.variable = &imported_formats, .initial = "", .check = check_formats, .assign = assign_formats},
	},
	{
		.name = "apitoken.require_known_users",
		.summary = "Refuses to act as a user without a row in apitoken.users.",
		.explanation = "For applications that keep apitoken.users in step with their own table of users. A user whose row is deleted may do nothing from then on, and the first token of a user does not create the row. If it is off, a user needs no row, unless the row was deleted.",
		.context = PGC_SUSET,
		.boolean = {.variable = &apitoken_require_known_users, .initial = false},
	},
	{
		.name = "apitoken.allow_unknown_permissions",
		.summary = "Accepts permissions of tokens and roles that are not in apitoken.permissions.",
		.explanation = "If it is off, and the catalog has rows, a permission that matches none of them is refused, because it is most likely misspelled and would allow nothing.",
		.context = PGC_SUSET,
		.boolean = {.variable = &apitoken_allow_unknown_permissions, .initial = false},
	},
	{
		.name = "apitoken.mask_logs",
		.summary = "Masks tokens in the server log and in pg_stat_activity.",
		.explanation = "If it is off, everybody who can read the log sees the secrets of tokens in statements. The id of a token is readable either way.",
		.context = PGC_SUSET,
		.boolean = {.variable = &apitoken_mask_logs, .initial = true},
	},
	{
		.name = "apitoken.retention",
		.summary = "Sets how long events, and revoked or expired tokens, are kept.",
		.explanation = "Housekeeping removes them after this time, and leaves no trace. The shortest time is one day. -1 keeps everything.",
		.context = PGC_SUSET,
		.flags = GUC_UNIT_MIN,
		.integer = {.variable = &apitoken_retention, .initial = APITOKEN_KEEP_ALL, .minimum = APITOKEN_KEEP_ALL, .maximum = RETENTION_MAX, .check = check_retention},
	},
	{
		.name = "apitoken.usage_retention",
		.summary = "Sets how long the daily usage counts of tokens are kept.",
		.explanation = "There is one row for each token and each day on which it was used. Housekeeping removes rows after this time. The shortest time is one day. -1 keeps everything.",
		.context = PGC_SUSET,
		.flags = GUC_UNIT_MIN,
		.integer = {.variable = &apitoken_usage_retention, .initial = 90 * DAY_MINUTES, .minimum = APITOKEN_KEEP_ALL, .maximum = RETENTION_MAX, .check = check_retention},
	},
	{
		.name = "apitoken.notifications",
		.summary = "Makes notifications of events, which a mailer delivers.",
		.explanation = "A row of apitoken.notifications is made for each event of which somebody with an e-mail address wants to be told. If it is off, no such rows are made.",
		.context = PGC_SUSET,
		.boolean = {.variable = &apitoken_notifications, .initial = true},
	},
	{
		.name = "apitoken.notification_retention",
		.summary = "Sets how long notifications are kept.",
		.explanation = "Housekeeping removes them after this time, delivered or not. The shortest time is one day. -1 keeps everything.",
		.context = PGC_SUSET,
		.flags = GUC_UNIT_MIN,
		.integer = {.variable = &apitoken_notification_retention, .initial = 30 * DAY_MINUTES, .minimum = APITOKEN_KEEP_ALL, .maximum = RETENTION_MAX, .check = check_retention},
	},
	{
		.name = "apitoken.usage_slots",
		.summary = "Sets the number of tokens whose usage fits into shared memory.",
		.explanation = "It should be at least the number of tokens used in one apitoken.flush_interval, and the number of tokens with a rate limit or quota used in one minute. A slot takes about 430 bytes. Usage that does not fit is not recorded, and a token with a rate limit or quota that does not fit is refused. Both are counted as dropped. It has an effect only if the library is in shared_preload_libraries.",
		.context = PGC_POSTMASTER,
		.integer = {.variable = &apitoken_usage_slots, .initial = 65536, .minimum = 64, .maximum = 64 * 1024 * 1024},
	},
	{
		.name = "apitoken.flush_interval",
		.summary = "Sets the time between two writes of recorded usage to apitoken.token_usage.",
		.explanation = "A crash of the server loses at most the usage of this time. It has an effect only if the library is in shared_preload_libraries.",
		.context = PGC_SIGHUP,
		.flags = GUC_UNIT_MS,
		.integer = {.variable = &apitoken_flush_interval, .initial = 10000, .minimum = 100, .maximum = 3600000},
	},
	{
		.name = "apitoken.standbys_verify",
		.summary = "Says whether standbys and logical subscribers of this server verify tokens.",
		.explanation = "Use of tokens there is not known here. If it is on, no token is revoked as idle while a standby is connected or a logical subscriber of the tokens has a replication slot, and until the organization's idle_timeout has passed after that. Turn it off if they verify no tokens.",
		.context = PGC_SUSET,
		.boolean = {.variable = &apitoken_standbys_verify, .initial = true},
	},

	/* Without a check hook, whose error would have the value, which may be a password. */
	{
		.name = "apitoken.primary_conninfo",
		.summary = "Sets the connection by which a standby sends the recorded use of tokens to the primary, or a logical subscriber to the publisher.",
		.explanation = "A connection string of libpq, without the name of a database: each database sends to the one of the same name. If it is empty, the use stays on the standby until that is promoted. Use a password file or a certificate rather than a password. It has an effect only during recovery or with apitoken.subscriber_sends, and only if the library is in shared_preload_libraries.",
		.context = PGC_SIGHUP,
		.flags = GUC_SUPERUSER_ONLY,
		.string = {.variable = &apitoken_primary_conninfo, .initial = ""},
	},
	{
		.name = "apitoken.subscriber_sends",
		.summary = "Sends the recorded use of tokens to the publisher, in databases whose use is replicated by a subscription.",
		.explanation = "It is sent by apitoken.primary_conninfo, counted there, and comes back by the replication. Otherwise this server writes it, and changes of the publisher replace it. Set it on a logical subscriber and its standbys. It has an effect only if the library is in shared_preload_libraries.",
		.context = PGC_SIGHUP,
		.boolean = {.variable = &apitoken_subscriber_sends, .initial = false},
	},
	{
		.name = "apitoken.token_headers",
		.summary = "Sets the HTTP headers in which pre_request() looks for a token.",
		.explanation = "A list of names separated by commas. The value of such a header is a token, alone or after one of the schemes Bearer, Token, ApiKey and Api-Key.",
		.context = PGC_SUSET,
		.string = {.variable = &apitoken_token_headers, .initial = "x-api-key, authorization", .check = check_token_headers},
	},
	{
		.name = "apitoken.client_address_header",
		.summary = "Sets the HTTP header in which a trusted proxy gives the address of the client.",
		.explanation = "The last address in it is used, which the nearest proxy has appended, if the session user has the capability act or verify. Without this header the address is unknown. An empty value means that there is no such header.",
		.context = PGC_SUSET,
		.string = {.variable = &apitoken_client_address_header, .initial = "", .check = check_header},
	},
	{
		.name = "apitoken.jwt_user_claim",
		.summary = "Sets the claim of PostgREST's verified JWT that holds the id of the acting user.",
		.explanation = "It has an effect only if the session user has the capability act. An empty value means that a JWT does not identify a user.",
		.context = PGC_SUSET,
		.flags = GUC_SUPERUSER_ONLY,
		.string = {.variable = &apitoken_jwt_user_claim, .initial = ""},
	},
	{
		.name = "apitoken.issuer",
		.summary = "Sets the issuer of tokens, which introspect() returns as iss (RFC 7662).",
		.explanation = "Usually the URL of the service. If it is empty, introspect() returns no iss.",
		.context = PGC_SUSET,
		.string = {.variable = &apitoken_issuer, .initial = ""},
	},
	{
		.name = "apitoken.audience",
		.summary = "Sets the audience of tokens, which introspect() returns as aud (RFC 7662).",
		.explanation = "Usually the URL of the API. If it is empty, introspect() returns no aud.",
		.context = PGC_SUSET,
		.string = {.variable = &apitoken_audience, .initial = ""},
	},
};

/* PostgreSQL's own record of each setting. */
static struct config_generic *records[lengthof(settings)];

/* A configured value was dropped when the library was loaded. */
static bool refused[lengthof(settings)];

static void
define(const Setting *setting)
{
	GucContext	context = setting->context;

	/*
	 * Such a setting can be defined only while the postmaster loads libraries.
	 * If the library is loaded later, the setting has no effect, but it must
	 * not be an error in a configuration file.
	 */
	if (context == PGC_POSTMASTER && !process_shared_preload_libraries_in_progress)
		context = PGC_SIGHUP;

	if (setting->string.variable != NULL)
		DefineCustomStringVariable(setting->name, setting->summary, setting->explanation,
								   setting->string.variable, setting->string.initial,
								   context, setting->flags,
								   setting->string.check, setting->string.assign, setting->string.show);
	else if (setting->integer.variable != NULL)
		DefineCustomIntVariable(setting->name, setting->summary, setting->explanation,
								setting->integer.variable, setting->integer.initial,
								setting->integer.minimum, setting->integer.maximum,
								context, setting->flags,
								setting->integer.check, NULL, NULL);
	else
		DefineCustomBoolVariable(setting->name, setting->summary, setting->explanation,
								 setting->boolean.variable, setting->boolean.initial,
								 context, setting->flags,
								 NULL, NULL, NULL);
}

/* Does a setting have a value from a configuration file, a role, a connection? */
static bool
is_configured(const struct config_generic *record)
{
	return record != NULL && record->reset_source != PGC_S_DEFAULT;
}

void
apitoken_guc_init(void)
{
	for (int i = 0; i < lengthof(settings); i++)
	{
		bool		configured = is_configured(compat_find_setting(settings[i].name));

		define(&settings[i]);
		records[i] = compat_find_setting(settings[i].name);
		if (records[i] == NULL)
			elog(ERROR, "setting %s is not registered", settings[i].name);
		refused[i] = configured && !is_configured(records[i]);
	}
	MarkGUCPrefixReserved("apitoken");
	defined = true;
}

/*
 * Raise an error if the default of a setting is in force only because the
 * configured value was refused.  The setting is named by its variable.
 */
void
apitoken_require_setting(const void *variable)
{
	for (int i = 0; i < lengthof(settings); i++)
	{
		if (variable != settings[i].string.variable &&
			variable != settings[i].integer.variable &&
			variable != settings[i].boolean.variable)
			continue;
		if (refused[i] && records[i]->source == PGC_S_DEFAULT)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("value of parameter \"%s\" was rejected", settings[i].name),
					 errdetail("The value is invalid, or it was set in the options of a connection whose role may not set the parameter."),
					 errhint("Correct the configured value, and connect without \"%s\" in the options.", settings[i].name)));
	}
}

/*
 * Is this setting on, which makes the server stricter?  It must not be off only
 * because the configured value was refused.
 */
bool
apitoken_required(const bool *setting)
{
	if (!*setting)
		apitoken_require_setting(setting);
	return *setting;
}

/*
 * The value of a setting if it was set in this transaction, otherwise NULL.
 * An empty value, which a finished transaction leaves behind, counts as unset.
 */
const char *
apitoken_setting_in_force(ApitokenSetting setting)
{
	const char *value = *settings[setting].string.variable;

	if (value == NULL || *value == '\0')
		return NULL;
	if (records[setting]->stack == NULL ||
		records[setting]->source != PGC_S_SESSION)
		return NULL;
	return value;
}

/* The role that set it. */
Oid
apitoken_setting_role(ApitokenSetting setting)
{
	return records[setting]->srole;
}

/*
 * The same for a setting that is not ours, such as those of PostgREST.  If
 * setter is given, it becomes the role that set it.
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
