/*
 * issue.c
 *		Creation of tokens: the insert trigger, create_token() and take_token().
 *
 * The trigger fires for every new token.  It checks authorization first, always
 * with the same error, and then the values.  (A BEFORE trigger runs before the
 * policies are checked, so errors about values could tell one tenant about
 * another.)  Only the trigger generates ids and digests.
 *
 * A row that already has a digest comes from a restore.  Only the tables' owner
 * may insert it, and it is stored unchanged.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "manage/manage.h"

static pg_noreturn void refuse_creation(void);

static void
refuse_creation(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to create a token for this owner")));
}

/*
 * Check that the caller may create a token for the owner in this record.  If the
 * record has no owner, the acting user becomes the owner.  Only the columns of
 * the owner, and the kind, are used.
 */
static void
authorize_creation(ApitokenRecord *record)
{
	const ApitokenPrincipal *principal = apitoken_principal();

	record->kind = record->organization_id != NULL ? APITOKEN_ORGANIZATION : APITOKEN_USER;
	if (record->organization_id != NULL && record->user_id != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("token must have exactly one owner"),
				 errhint("Specify \"organization_id\" or \"user_id\", not both.")));
	/*
	 * This comes before the authorization, because the hint helps: an id in
	 * another spelling is nobody's.  It depends on the argument alone, so it tells
	 * nothing about other tenants.
	 */
	if (record->organization_id != NULL && *record->organization_id != '\0')
		apitoken_check_id("organization", record->organization_id);
	if (record->user_id != NULL && *record->user_id != '\0')
		apitoken_check_id("user", record->user_id);
	if (record->organization_id == NULL && record->user_id == NULL)
	{
		if (principal != NULL && principal->user_id != NULL)
			record->user_id = principal->user_id;
		else if (apitoken_bypasses_rls())
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("token must have an owner"),
					 apitoken_errhint("Specify \"organization_id\" or \"user_id\", or act as a user first.",
									  "Specify \"organization_id\", or sign in as a user.")));
		else
			refuse_creation();
	}
	if (!apitoken_may_manage(record, "token:create"))
		refuse_creation();
}

/* The text of a column, or NULL. */
static char *
text_of(HeapTuple tuple, TupleDesc descriptor, AttrNumber attribute)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, attribute, descriptor, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* Create the row of a user who has none, unless the row was deleted. */
static void
ensure_user(const char *user_id)
{
	Datum		values[2];

	if (apitoken_required(&apitoken_require_known_users))
		return;
	values[0] = CStringGetTextDatum(user_id);
	values[1] = CStringGetTextDatum(apitoken_forgotten_mark(user_id));
	apitoken_execute(APITOKEN_ENSURE_USER, values, NULL);
}

static void
lock_user(const char *user_id)
{
	Datum		value;

	if (apitoken_is_locked(APITOKEN_USERS, user_id))
		return;
	value = CStringGetTextDatum(user_id);
	if (apitoken_execute(APITOKEN_LOCK_USER, &value, NULL) == 0)
	{
		ensure_user(user_id);
		if (apitoken_execute(APITOKEN_LOCK_USER, &value, NULL) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
					 errmsg("user \"%s\" does not exist", apitoken_clip(user_id)),
					 apitoken_errhint(psprintf("Run INSERT INTO apitoken.users (id) VALUES (%s) first.",
											   quote_literal_cstr(apitoken_clip(user_id))),
									  "Use the id of a user who exists.")));
	}
	apitoken_remember_locked(APITOKEN_USERS, user_id);
}

/*
 * The owner must exist, and is locked until this transaction ends.  Deleting an
 * owner revokes its tokens, so the deletion must see this token or must have
 * happened before.
 */
void
apitoken_lock_owner(const ApitokenRecord *record)
{
	if (record->kind == APITOKEN_USER)
		lock_user(record->user_id);
	else
		apitoken_lock_organization(record->organization_id);
}

/* Columns that the trigger sets, collected for heap_modify_tuple_by_cols. */
typedef struct Columns
{
	int			count;
	int			attributes[Natts_token_records];
	Datum		values[Natts_token_records];
	bool		nulls[Natts_token_records];
} Columns;

static void
set_column(Columns *columns, int attribute, Datum value)
{
	columns->attributes[columns->count] = attribute;
	columns->values[columns->count] = value;
	columns->nulls[columns->count++] = false;
}

static void
set_null(Columns *columns, int attribute)
{
	columns->attributes[columns->count] = attribute;
	columns->values[columns->count] = (Datum) 0;
	columns->nulls[columns->count++] = true;
}

/* Check the values that the caller gave, and set the defaults of the others. */
static void
check_values(HeapTuple tuple, TupleDesc descriptor, const ApitokenOrganizationRow *organization,
			 ApitokenRecord *record, Columns *columns)
{
	Datum		value;
	Datum		permissions;
	bool		isnull;
	bool		no_permissions;

	apitoken_check_label(record->label);

	value = heap_getattr(tuple, Anum_token_records_description, descriptor, &isnull);
	if (!isnull)
		apitoken_check_description(TextDatumGetCString(value));

	permissions = heap_getattr(tuple, Anum_token_records_permissions, descriptor, &no_permissions);
	value = heap_getattr(tuple, Anum_token_records_access, descriptor, &isnull);
	if (isnull)
	{
		record->access = no_permissions ? APITOKEN_FULL : APITOKEN_CUSTOM;
		value = CStringGetTextDatum(apitoken_access_to_text(record->access));
		set_column(columns, Anum_token_records_access, value);
	}
	apitoken_check_access(TextDatumGetCString(value),
						  no_permissions ? NULL : DatumGetArrayTypeP(permissions));

	if (record->kind == APITOKEN_USER && record->role != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("personal token must not have a token role"),
				 errhint("Omit the role.  A personal token has the permissions of its user, limited by its access.")));
	if (record->kind == APITOKEN_ORGANIZATION)
	{
		if (record->role == NULL)
		{
			record->role = organization->default_role != NULL ? organization->default_role : pstrdup(APITOKEN_DEFAULT_ROLE);
			set_column(columns, Anum_token_records_role, CStringGetTextDatum(record->role));
		}
		apitoken_check_role(record->role);
	}

	if (record->expires_at != DT_NOEND)
		apitoken_check_expiry(record->expires_at, false);
	else
	{
		/* DT_NOEND also stands for infinity, which is refused */
		value = heap_getattr(tuple, Anum_token_records_expires_at, descriptor, &isnull);
		if (!isnull)
			apitoken_check_expiry(DatumGetTimestampTz(value), false);
	}
	if (record->kind == APITOKEN_ORGANIZATION)
		apitoken_check_lifetime(organization, GetCurrentTransactionStartTimestamp(), record->expires_at);
	apitoken_check_networks(record->allowed_networks, APITOKEN_FROM_EVERYWHERE);
	value = heap_getattr(tuple, Anum_token_records_rate_limit_per_minute, descriptor, &isnull);
	if (!isnull)
		apitoken_check_rate_limit(DatumGetInt32(value));
	apitoken_check_quota(tuple, descriptor);
	value = heap_getattr(tuple, Anum_token_records_metadata, descriptor, &isnull);
	if (isnull)
		set_column(columns, Anum_token_records_metadata,
				   DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	else
		apitoken_check_metadata(value);
}

/*
 * Is there place for another token of an organization whose policy limits their
 * number?  The creations of others wait until this transaction ends.  They then see
 * its token, whatever their isolation level.
 */
static void
check_place(const char *organization_id)
{
	Datum		id = CStringGetTextDatum(organization_id);
	Datum		max;
	Snapshot	snapshot;
	int			count;

	if (!apitoken_execute_value(APITOKEN_LOCK_PLACES, &id, NULL, &max))
		return;
	snapshot = apitoken_latest_snapshot();
	count = apitoken_count_tokens(snapshot, organization_id, DatumGetInt32(max));
	UnregisterSnapshot(snapshot);
	if (count < DatumGetInt32(max))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("organization has reached its maximum number of tokens"),
			 errdetail("It may have %d tokens that are not revoked.", DatumGetInt32(max)),
			 errhint("Revoke a token first, also one that is expired.")));
}

/* Raise an error unless the server's source of random values gave some. */
void
apitoken_check_random(bool generated)
{
	if (!generated)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
}

/* Generate id, digest and masked text.  The token text is kept for take_token(). */
static void
generate_token(ApitokenRecord *record, Columns *columns)
{
	char		text[APITOKEN_TEXT_MAX + 1];
	ApitokenParts parts;
	int16		scheme = apitoken_signing_scheme();
	bytea	   *digest = palloc(VARHDRSZ + APITOKEN_DIGEST_LENGTH);
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	apitoken_check_random(apitoken_generate_id(id) &&
						  apitoken_generate_text(apitoken_prefix, record->kind, id, text, &parts));
	SET_VARSIZE(digest, VARHDRSZ + APITOKEN_DIGEST_LENGTH);
	apitoken_digest(text, strlen(text), scheme, (uint8 *) VARDATA(digest));
	apitoken_keep_text(id, text);
	explicit_bzero(text, sizeof(text));

	set_column(columns, Anum_token_records_id, UUIDPGetDatum(id));
	set_column(columns, Anum_token_records_digest, PointerGetDatum(digest));
	set_column(columns, Anum_token_records_digest_scheme, Int16GetDatum(scheme));
	set_column(columns, Anum_token_records_masked, CStringGetTextDatum(parts.masked));
}

static void
set_creator(Columns *columns, Snapshot snapshot)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	ApitokenUserRow user = {0};

	if (principal == NULL || principal->user_id == NULL)
	{
		set_null(columns, Anum_token_records_created_by);
		set_null(columns, Anum_token_records_created_by_name);
		return;
	}
	if (!apitoken_fetch_user(snapshot, principal->user_id, &user))
		ensure_user(principal->user_id);
	set_column(columns, Anum_token_records_created_by, CStringGetTextDatum(principal->user_id));
	if (user.name != NULL)
		set_column(columns, Anum_token_records_created_by_name, CStringGetTextDatum(user.name));
	else
		set_null(columns, Anum_token_records_created_by_name);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_token_before_insert);
Datum
apitoken_token_before_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor;
	HeapTuple	tuple;
	ApitokenRecord owner = {0};
	ApitokenRecord record;
	ApitokenOrganizationRow organization = {0};
	Snapshot	snapshot;
	Columns		columns = {0};
	Datum		now;
	bool		isnull;

	apitoken_expect_trigger(fcinfo, APITOKEN_TOKEN_RECORDS);
	descriptor = RelationGetDescr(trigger->tg_relation);
	tuple = trigger->tg_trigtuple;

	(void) heap_getattr(tuple, Anum_token_records_digest, descriptor, &isnull);
	if (!isnull)
	{
		if (!apitoken_is_owner())
			refuse_creation();
		return PointerGetDatum(tuple);
	}
	(void) heap_getattr(tuple, Anum_token_records_id, descriptor, &isnull);
	if (!isnull)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cannot specify the id of a token"),
				 errhint("Omit \"id\".  It is generated with the token.")));

	/* only the owner: reading the whole row could raise errors about values */
	owner.organization_id = text_of(tuple, descriptor, Anum_token_records_organization_id);
	owner.user_id = text_of(tuple, descriptor, Anum_token_records_user_id);
	authorize_creation(&owner);
	tuple = apitoken_canonical_row(tuple, descriptor);
	apitoken_record_from_tuple(tuple, descriptor, &record);
	record.user_id = owner.user_id;
	if (record.kind == APITOKEN_USER)
		set_column(&columns, Anum_token_records_user_id, CStringGetTextDatum(record.user_id));

	snapshot = apitoken_latest_snapshot();
	if (record.kind == APITOKEN_ORGANIZATION)
		(void) apitoken_fetch_organization(snapshot, record.organization_id, &organization);
	check_values(tuple, descriptor, &organization, &record, &columns);
	apitoken_check_ceiling(&record, snapshot);
	apitoken_lock_owner(&record);
	if (organization.limits_tokens)
		check_place(record.organization_id);
	apitoken_check_label_free(&record, snapshot);
	set_creator(&columns, snapshot);
	UnregisterSnapshot(snapshot);

	now = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	set_column(&columns, Anum_token_records_created_at, now);
	set_column(&columns, Anum_token_records_updated_at, now);
	set_null(&columns, Anum_token_records_regenerated_at);
	set_null(&columns, Anum_token_records_revoked_at);
	set_null(&columns, Anum_token_records_revoked_by);
	set_null(&columns, Anum_token_records_revoke_reason);
	set_null(&columns, Anum_token_records_previous_digest);
	set_null(&columns, Anum_token_records_previous_digest_scheme);
	set_null(&columns, Anum_token_records_previous_expires_at);
	set_null(&columns, Anum_token_records_expiry_notified_at);
	set_null(&columns, Anum_token_records_previous_replaced_at);
	set_null(&columns, Anum_token_records_previous_reused_at);
	generate_token(&record, &columns);

	return PointerGetDatum(heap_modify_tuple_by_cols(tuple, descriptor, columns.count,
													 columns.attributes, columns.values, columns.nulls));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_take_token);
Datum
apitoken_take_token(PG_FUNCTION_ARGS)
{
	text	   *token = apitoken_take_text(PG_GETARG_UUID_P(0));

	if (token == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("token text is not available"),
				 errdetail("The text can be taken once, by the role that inserted the token, in the same transaction."),
				 apitoken_errhint("Use apitoken.regenerate_token() to give the token a new text.",
								  "POST /rpc/regenerate_token gives the token a new text.")));
	PG_RETURN_TEXT_P(token);
}

/* Form a value of type apitoken.issued_token. */
Datum
apitoken_issued_datum(const pg_uuid_t *id, text *token, const char *masked, TimestampTz expires_at)
{
	Datum		values[Natts_issued_token];
	bool		nulls[Natts_issued_token] = {false};

	values[Anum_issued_token_id - 1] = UUIDPGetDatum(id);
	values[Anum_issued_token_token - 1] = PointerGetDatum(token);
	values[Anum_issued_token_masked - 1] = CStringGetTextDatum(masked);
	values[Anum_issued_token_expires_at - 1] = TimestampTzGetDatum(expires_at);
	nulls[Anum_issued_token_expires_at - 1] = expires_at == DT_NOEND;
	return apitoken_form_row(APITOKEN_ISSUED_TOKEN_ROW, values, nulls);
}

/* The arguments of create_token(), and the columns that they set. */
enum
{
	LABEL_ARG,
	ORGANIZATION_ID_ARG,
	USER_ID_ARG,
	DESCRIPTION_ARG,
	ROLE_ARG,
	ACCESS_ARG,
	PERMISSIONS_ARG,
	EXPIRES_IN_ARG,
	ALLOWED_NETWORKS_ARG,
	RATE_LIMIT_ARG,
	METADATA_ARG,
	QUOTA_ARG,
	QUOTA_PERIOD_ARG,
	ARGS
};

static const AttrNumber argument_columns[ARGS] = {
	[LABEL_ARG] = Anum_token_records_label,
	[ORGANIZATION_ID_ARG] = Anum_token_records_organization_id,
	[USER_ID_ARG] = Anum_token_records_user_id,
	[DESCRIPTION_ARG] = Anum_token_records_description,
	[ROLE_ARG] = Anum_token_records_role,
	[ACCESS_ARG] = Anum_token_records_access,
	[PERMISSIONS_ARG] = Anum_token_records_permissions,
	[EXPIRES_IN_ARG] = Anum_token_records_expires_at,
	[ALLOWED_NETWORKS_ARG] = Anum_token_records_allowed_networks,
	[RATE_LIMIT_ARG] = Anum_token_records_rate_limit_per_minute,
	[METADATA_ARG] = Anum_token_records_metadata,
	[QUOTA_ARG] = Anum_token_records_quota,
	[QUOTA_PERIOD_ARG] = Anum_token_records_quota_period,
};

/* The INSERT of create_token(), with a parameter for each argument. */
static SPIPlanPtr
prepare_insert(void)
{
	StringInfoData names;
	StringInfoData parameters;
	Oid			types[ARGS];
	SPIPlanPtr	plan;

	initStringInfo(&names);
	initStringInfo(&parameters);
	for (int i = 0; i < ARGS; i++)
	{
		appendStringInfo(&names, "%s%s", i == 0 ? "" : ", ",
						 apitoken_column_name(APITOKEN_TOKEN_RECORDS, argument_columns[i]));
		appendStringInfo(&parameters, "%s$%d", i == 0 ? "" : ", ", i + 1);
		types[i] = apitoken_column_type(APITOKEN_TOKEN_RECORDS, argument_columns[i]);
	}
	plan = SPI_prepare(psprintf("INSERT INTO apitoken.tokens (%s) VALUES (%s)", names.data, parameters.data),
					   ARGS, types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	return plan;
}

/*
 * create_token() inserts into the view as the caller.  The privileges, the
 * trigger and the policies are those of a plain INSERT.  The token text comes
 * from secret.c and not from RETURNING, which would need the right to read.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_create_token);
Datum
apitoken_create_token(PG_FUNCTION_ARGS)
{
	static SPIPlanPtr plan = NULL;
	Datum		values[ARGS];
	char		nulls[ARGS];
	ApitokenRecord owner = {0};
	TimestampTz expires_at = DT_NOEND;
	pg_uuid_t	id = {0};
	pg_uuid_t  *outer_target;
	text	   *token;
	ApitokenParts parts;
	uint64		inserted;

	for (int i = 0; i < ARGS; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	if (!PG_ARGISNULL(EXPIRES_IN_ARG))
	{
		/* the trigger checks this too, but an error about expires_in must not come first */
		owner.organization_id = PG_ARGISNULL(ORGANIZATION_ID_ARG) ? NULL :
			text_to_cstring(PG_GETARG_TEXT_PP(ORGANIZATION_ID_ARG));
		owner.user_id = PG_ARGISNULL(USER_ID_ARG) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(USER_ID_ARG));
		authorize_creation(&owner);
		expires_at = apitoken_expiry_after(PG_GETARG_INTERVAL_P(EXPIRES_IN_ARG));
		values[EXPIRES_IN_ARG] = TimestampTzGetDatum(expires_at);
	}

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (plan == NULL)
		plan = prepare_insert();
	/* after an error, the end of the (sub)transaction resets this */
	outer_target = apitoken_capture_new_id(&id);
	if (SPI_execute_plan(plan, values, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(SPI_result));
	inserted = SPI_processed;
	SPI_finish();
	apitoken_capture_new_id(outer_target);

	token = inserted == 1 ? apitoken_take_text(&id) : NULL;
	if (token == NULL ||
		!apitoken_parse_text(VARDATA_ANY(token), VARSIZE_ANY_EXHDR(token), &parts))
		ereport_server(
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("token was not inserted"),
				 errdetail("A rule or trigger on \"apitoken.tokens\" or \"apitoken_internal.token_records\" prevented it.")));
	PG_RETURN_DATUM(apitoken_issued_datum(&id, token, parts.masked, expires_at));
}
