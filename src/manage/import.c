/*
 * import.c
 *		import_token(): tokens of other systems, whose texts go on working.
 *
 * The caller has the capability directory, and may import a token of any owner, as
 * it may make anybody a member of any organization.  Only a role with a database_role
 * is refused, which the tables' owner alone gives.  The policy of an organization
 * decides when the token is used, and not here: the token exists already.
 *
 * Each import has an event.  It makes no notification: people are not told of
 * tokens that they have had for long.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"

#include "manage/manage.h"

/* as of other systems, 512 characters and a prefix are enough for each */
#define STORED_MAX 512
#define SALT_MAX 64				/* bytes */

/* The arguments of import_token(). */
enum
{
	FORMAT_ARG,
	STORED_ARG,
	LOOKUP_KEY_ARG,
	LABEL_ARG,
	ORGANIZATION_ID_ARG,
	USER_ID_ARG,
	ROLE_ARG,
	ACCESS_ARG,
	PERMISSIONS_ARG,
	SALT_ARG,
	CREATED_AT_ARG,
	EXPIRES_AT_ARG,
	LAST_USED_AT_ARG,
	REVOKED_AT_ARG,
	METADATA_ARG
};

/* The parameters of APITOKEN_IMPORT. */
enum
{
	ID,
	CREATED_AT,
	EXPIRES_AT,
	REVOKED_AT,
	SEAL_SCHEME,
	SEAL,
	ORGANIZATION_ID,
	USER_ID,
	LABEL,
	ACCESS,
	ROLE,
	PERMISSIONS,
	METADATA,
	MASKED,
	FORMAT,
	LOOKUP_KEY,
	DIGEST,
	SALT,
	LAST_USED_AT,
	EVENT_ID,
	ACTOR,
	ACTOR_TOKEN_ID,
	DATABASE_USER,
	CLIENT_ADDRESS,
	PARAMETERS
};

static pg_noreturn void invalid(const char *message, const char *hint);

static void
invalid(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg_internal("%s", message),
			 errhint("%s", hint)));
}

/* An argument as a string; NULL if it is null or empty, as a file has it. */
static char *
string_argument(FunctionCallInfo fcinfo, int argument)
{
	char	   *string = PG_ARGISNULL(argument) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(argument));

	return string == NULL || *string == '\0' ? NULL : string;
}

/* A time of the past; DT_NOBEGIN if it is null. */
static TimestampTz
past_argument(FunctionCallInfo fcinfo, int argument, const char *name)
{
	TimestampTz at;

	if (PG_ARGISNULL(argument))
		return DT_NOBEGIN;
	at = PG_GETARG_TIMESTAMPTZ(argument);
	if (TIMESTAMP_NOT_FINITE(at) || at > GetCurrentTimestamp())
		invalid(psprintf("\"%s\" must be a time in the past", name), "Specify null if the other system has no time, or another one.");
	return at;
}

/* Is a lookup key of this length one of the format? */
static bool
key_fits(const ApitokenFormat *format, const char *key)
{
	if (key == NULL)
		return format->lookup == APITOKEN_LOOKUP_DIGEST || format->lookup == APITOKEN_LOOKUP_PREFIX;
	return format->lookup != APITOKEN_LOOKUP_DIGEST &&
		strlen(key) >= format->key_min && strlen(key) <= format->key_max;
}

/*
 * The format of this name.  A name of several formats stands for the one that what
 * is stored fits to.
 */
static const ApitokenFormat *
find_format(const char *name, const char *stored, const char *key, const char *salt)
{
	const ApitokenFormat *format;
	const ApitokenFormat *found = NULL;
	ApitokenBytes digest;

	for (int i = 0; name != NULL && (format = apitoken_format(i)) != NULL; i++)
	{
		if (strcmp(format->name, name) == 0)
			return format;
		if (!apitoken_format_has_name(format, name, strlen(name)))
			continue;
		if (found == NULL ||
			(key_fits(format, key) && apitoken_foreign_stored(format, stored, &digest) == NULL &&
			 (format->hash == APITOKEN_FOREIGN_SHA512_SALTED) == (salt != NULL)))
			found = format;
	}
	if (found == NULL)
		invalid(name == NULL ? "format must not be null" : psprintf("unknown format \"%s\"", apitoken_clip(name)),
				"Use sanctum, strapi, knox (knox5, knox42, knox41), drf-api-key (drf-api-key3, drf-api-key2), better-auth, unkey, "
				"prefixed-api-key, gitlab, keyhippo, crypt or sha256.");
	return found;
}

static void
check_key(const ApitokenFormat *format, const char *key)
{
	for (const char *at = key; at != NULL && *at != '\0'; at++)
	{
		if (*at <= ' ' || *at >= 0x7f)
			invalid("lookup key has a character that no token has", "Specify the part of the token text by which the other system finds it.");
	}
	if (key_fits(format, key))
		return;
	if (format->lookup == APITOKEN_LOOKUP_DIGEST)
		invalid(psprintf("format \"%s\" has no lookup key", format->name), "Omit \"lookup_key\": the token is found by its digest.");
	invalid(key == NULL ? psprintf("format \"%s\" requires a lookup key", format->name) :
			psprintf("lookup key of format \"%s\" has an invalid length", format->name),
			format->lookup == APITOKEN_LOOKUP_BOTH ? "Specify the id of the token in the other system, which its text begins with." :
			format->key_min == format->key_max ? psprintf("Specify the first %d characters of the token text.", format->key_min) :
			psprintf("Specify the part of the token text by which the other system finds it, %d to %d characters.",
					 format->key_min, format->key_max));
}

/* The salt of the token, in hexadecimal. */
static void
read_salt(const ApitokenFormat *format, const char *salt, ApitokenBytes *bytes)
{
	size_t		length = salt == NULL ? 0 : strlen(salt);
	uint8	   *result = palloc(SALT_MAX);

	bytes->data = NULL;
	bytes->length = 0;
	if (format->hash != APITOKEN_FOREIGN_SHA512_SALTED)
	{
		if (salt == NULL)
			return;
		if (format->secret != NULL)
			invalid(psprintf("format \"%s\" has no salt of each token", format->name),
					psprintf("Omit \"salt\", and add the line \"%s:key\" to the pepper file, with the salt or key of the other system in hexadecimal.",
							 format->secret));
		invalid(psprintf("format \"%s\" has no salt", format->name), "Omit \"salt\".");
	}
	if (length < 2 || length % 2 != 0 || length > 2 * SALT_MAX)
		invalid("invalid salt", "Specify the salt of the token in hexadecimal, as the other system stores it.");
	for (size_t i = 0; i < length; i += 2)
	{
		int			high = apitoken_hex_value(salt[i]);
		int			low = apitoken_hex_value(salt[i + 1]);

		if (high < 0 || low < 0)
			invalid("invalid salt", "Specify the salt of the token in hexadecimal, as the other system stores it.");
		result[i / 2] = (uint8) (high << 4 | low);
	}
	bytes->data = result;
	bytes->length = length / 2;
}

/*
 * Is there place for the token?  Only so many tokens with one lookup key are compared
 * with a text.  The unique index refuses a digest that two sessions import at once.
 */
static void
check_place(const ApitokenFormat *format, const ApitokenForeign *row)
{
	Snapshot	snapshot = apitoken_latest_snapshot();
	ApitokenForeign *other = apitoken_fetch_foreign_digest(snapshot, format->name, &row->digest);
	ApitokenRecord record;
	int			max = apitoken_foreign_slow(format) ? APITOKEN_FOREIGN_SLOW_MAX : APITOKEN_FOREIGN_MAX;

	if (other != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("token was imported before"),
				 apitoken_fetch_token(snapshot, &other->token_id, &record) ?
				 errdetail("Token %s with status \"%s\" has this digest.",
						   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&other->token_id))),
						   record.revoked ? "revoked" : "not revoked") : 0,
				 errhint("Leave out what was imported before.")));
	if (row->lookup_key != NULL &&
		list_length(apitoken_fetch_foreign(snapshot, format->name, row->lookup_key, strlen(row->lookup_key))) >= max)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 *row->lookup_key == '\0' ? errmsg("there are %d imported tokens without a lookup key", max) :
				 errmsg("there are %d imported tokens with this lookup key", max),
				 errdetail("Each of them is compared with a text that is presented."),
				 errhint("Specify a longer or another part of the token text as \"lookup_key\".")));
	UnregisterSnapshot(snapshot);
}

/* A database_role is given by the tables' owner alone. */
static void
check_database_role(const char *role)
{
	ApitokenRoleRow row;

	if (!apitoken_bypasses_rls() && apitoken_role(role, &row) && row.database_role != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to import a token whose role has a database role"),
				 errdetail("Tokens with token role \"%s\" enter the database role \"%s\".", role, row.database_role),
				 errhint("Use another token role, or let a database administrator import this token.")));
}

/* The role, the access and the permissions of the token, checked as those of a new one. */
static void
set_permissions(FunctionCallInfo fcinfo, const ApitokenRecord *record, Datum *values, char *nulls)
{
	char	   *role = string_argument(fcinfo, ROLE_ARG);
	char	   *access = string_argument(fcinfo, ACCESS_ARG);
	ArrayType  *permissions = PG_ARGISNULL(PERMISSIONS_ARG) ? NULL : PG_GETARG_ARRAYTYPE_P(PERMISSIONS_ARG);
	ApitokenOrganizationRow organization = {0};

	if (access == NULL)
		access = pstrdup(apitoken_access_to_text(permissions == NULL ? APITOKEN_FULL : APITOKEN_CUSTOM));
	apitoken_check_access(access, permissions);
	values[ACCESS] = CStringGetTextDatum(access);
	if (permissions != NULL)
		values[PERMISSIONS] = PointerGetDatum(permissions);
	else
		nulls[PERMISSIONS] = 'n';

	if (record->kind == APITOKEN_USER && role != NULL)
		invalid("personal token must not have a token role", "Omit the role.  A personal token has the permissions of its user, limited by its access.");
	if (record->kind == APITOKEN_USER)
	{
		nulls[ROLE] = 'n';
		return;
	}
	if (role == NULL)
	{
		Snapshot	snapshot = apitoken_latest_snapshot();

		(void) apitoken_fetch_organization(snapshot, record->organization_id, &organization);
		UnregisterSnapshot(snapshot);
		role = organization.default_role != NULL ? organization.default_role : pstrdup(APITOKEN_DEFAULT_ROLE);
	}
	apitoken_check_role(role);
	check_database_role(role);
	values[ROLE] = CStringGetTextDatum(role);
}

static void
set_time(TimestampTz at, Datum *value, char *null)
{
	if (TIMESTAMP_NOT_FINITE(at))
		*null = 'n';
	else
		*value = TimestampTzGetDatum(at);
}

static void
set_text(const char *text, Datum *value, char *null)
{
	if (text == NULL)
		*null = 'n';
	else
		*value = CStringGetTextDatum(text);
}

/* Who imports the token, for the event. */
static void
set_actor(Datum *values, char *nulls)
{
	const ApitokenPrincipal *actor = apitoken_principal();
	inet	   *address = apitoken_client_address(NULL);
	Name		login = palloc0(sizeof(NameData));

	if (actor != NULL && actor->user_id != NULL)
		apitoken_check_actor(actor->user_id);
	set_text(actor == NULL ? NULL : actor->user_id, &values[ACTOR], &nulls[ACTOR]);
	if (actor != NULL && actor->source == APITOKEN_SOURCE_TOKEN)
	{
		pg_uuid_t  *token_id = palloc(sizeof(pg_uuid_t));

		*token_id = actor->token_id;
		values[ACTOR_TOKEN_ID] = UUIDPGetDatum(token_id);
	}
	else
		nulls[ACTOR_TOKEN_ID] = 'n';
	namestrcpy(login, GetUserNameFromId(GetSessionUserId(), false));
	values[DATABASE_USER] = NameGetDatum(login);
	if (address != NULL)
		values[CLIENT_ADDRESS] = InetPGetDatum(address);
	else
		nulls[CLIENT_ADDRESS] = 'n';
}

/* The masked form: the format, and the beginning of the lookup key. */
static char *
masked_form(const ApitokenFormat *format, const char *key)
{
	return key == NULL || *key == '\0' ? psprintf("%s:...", format->name) :
		psprintf("%s:%.*s...", format->name, format->key_shown, key);
}

/* The id, the seal under the signing pepper, and what the other system stores. */
static void
set_digest(const ApitokenFormat *format, const ApitokenForeign *row, Datum *values, char *nulls)
{
	const ApitokenPepper *pepper = apitoken_signing_pepper();
	uint8		seal[APITOKEN_DIGEST_LENGTH];

	apitoken_seal(row, format->name, pepper, seal);
	values[SEAL] = apitoken_bytea_datum(seal, sizeof(seal));
	values[SEAL_SCHEME] = Int16GetDatum(APITOKEN_SEAL_SCHEME(pepper == NULL ? 0 : pepper->scheme));
	values[FORMAT] = CStringGetTextDatum(format->name);
	set_text(row->lookup_key, &values[LOOKUP_KEY], &nulls[LOOKUP_KEY]);
	values[DIGEST] = apitoken_bytea_datum(row->digest.data, row->digest.length);
	if (row->salt.data != NULL)
		values[SALT] = apitoken_bytea_datum(row->salt.data, row->salt.length);
	else
		nulls[SALT] = 'n';
}

APITOKEN_FUNCTION_INFO_V1(apitoken_import_token);
Datum
apitoken_import_token(PG_FUNCTION_ARGS)
{
	char	   *stored = string_argument(fcinfo, STORED_ARG);
	char	   *key = string_argument(fcinfo, LOOKUP_KEY_ARG);
	char	   *salt = string_argument(fcinfo, SALT_ARG);
	char	   *label = string_argument(fcinfo, LABEL_ARG);
	TimestampTz created_at = past_argument(fcinfo, CREATED_AT_ARG, "created_at");
	TimestampTz expires_at = PG_ARGISNULL(EXPIRES_AT_ARG) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(EXPIRES_AT_ARG);
	const ApitokenFormat *format;
	const char *fault;
	ApitokenForeign row = {0};
	ApitokenRecord record = {0};
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	pg_uuid_t	event_id;
	Datum		values[PARAMETERS] = {0};
	char		nulls[PARAMETERS];

	memset(nulls, ' ', sizeof(nulls));
	if (stored == NULL || strlen(stored) > STORED_MAX)
		invalid(stored == NULL ? "stored digest must not be null" : "stored digest is too long",
				"Specify what the other system stores of the token.");
	format = find_format(string_argument(fcinfo, FORMAT_ARG), stored, key, salt);
	fault = apitoken_foreign_stored(format, stored, &row.digest);
	if (fault != NULL)
		invalid(psprintf("invalid stored digest of format \"%s\"", format->name), fault);
	check_key(format, key);
	read_salt(format, salt, &row.salt);
	row.lookup_key = key == NULL && format->lookup == APITOKEN_LOOKUP_PREFIX ? pstrdup("") : key;
	if (format->secret != NULL)
		(void) apitoken_key(format->secret);
	if (format->hash == APITOKEN_FOREIGN_CRYPT)
		apitoken_require_crypt();

	record.organization_id = string_argument(fcinfo, ORGANIZATION_ID_ARG);
	record.user_id = string_argument(fcinfo, USER_ID_ARG);
	if ((record.organization_id == NULL) == (record.user_id == NULL))
		invalid("token must have exactly one owner", "Specify \"organization_id\" or \"user_id\", not both.");
	record.kind = record.organization_id != NULL ? APITOKEN_ORGANIZATION : APITOKEN_USER;
	apitoken_check_id(record.organization_id != NULL ? "organization" : "user",
					  record.organization_id != NULL ? record.organization_id : record.user_id);
	if (label == NULL)
		label = psprintf("imported from %s", format->name);
	else
		(void) apitoken_examine_text(label, false, &label);
	apitoken_check_label(label);
	if (!PG_ARGISNULL(EXPIRES_AT_ARG))
		apitoken_check_expiry(expires_at, true);
	if (!PG_ARGISNULL(METADATA_ARG))
		apitoken_check_metadata(PG_GETARG_DATUM(METADATA_ARG));
	apitoken_lock_owner(&record);
	set_permissions(fcinfo, &record, values, nulls);
	check_place(format, &row);

	apitoken_check_random(apitoken_generate_id(id) && apitoken_generate_id(&event_id));
	row.token_id = *id;
	values[ID] = UUIDPGetDatum(id);
	values[EVENT_ID] = UUIDPGetDatum(&event_id);
	set_digest(format, &row, values, nulls);
	values[CREATED_AT] = TimestampTzGetDatum(created_at == DT_NOBEGIN ? GetCurrentTransactionStartTimestamp() : created_at);
	set_time(expires_at, &values[EXPIRES_AT], &nulls[EXPIRES_AT]);
	set_time(past_argument(fcinfo, REVOKED_AT_ARG, "revoked_at"), &values[REVOKED_AT], &nulls[REVOKED_AT]);
	set_time(past_argument(fcinfo, LAST_USED_AT_ARG, "last_used_at"), &values[LAST_USED_AT], &nulls[LAST_USED_AT]);
	set_text(record.organization_id, &values[ORGANIZATION_ID], &nulls[ORGANIZATION_ID]);
	set_text(record.user_id, &values[USER_ID], &nulls[USER_ID]);
	values[LABEL] = CStringGetTextDatum(label);
	values[METADATA] = PG_ARGISNULL(METADATA_ARG) ?
		DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")) : PG_GETARG_DATUM(METADATA_ARG);
	values[MASKED] = CStringGetTextDatum(masked_form(format, key));
	set_actor(values, nulls);
	apitoken_execute(APITOKEN_IMPORT, values, nulls);
	PG_RETURN_UUID_P(id);
}
