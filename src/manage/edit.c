/*
 * edit.c
 *		Changes of tokens: the update trigger.
 *
 * An UPDATE of the view may change the columns that describe a token or narrow
 * what it may do.  Only the extension's own statements change the owner, the
 * creator, the secret and the revocation.  This applies to superusers too: a
 * revoked token cannot become valid again.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "manage/manage.h"

static void
check_protected_columns(TriggerData *trigger)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);

	for (AttrNumber attribute = 1; attribute <= Natts_token_records; attribute++)
	{
		if (apitoken_column_granted(APITOKEN_TOKEN_RECORDS, attribute, 'w') ||
			attribute == Anum_token_records_updated_at ||
			!apitoken_column_changed(trigger, attribute))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot update column \"%s\" of a token",
						NameStr(TupleDescAttr(descriptor, attribute - 1)->attname)),
				 errhint("Use regenerate_token() for a new secret, revoke_token() to revoke the token, or create_token() for another token.")));
	}
}

/*
 * Check a new lifetime against the policy of the token's organization.  Returns when
 * the policy ends the secret that the token has; DT_NOEND: it does not.
 */
TimestampTz
apitoken_check_policy(const ApitokenRecord *record, TimestampTz issued_at, TimestampTz expires_at, Snapshot snapshot)
{
	ApitokenOrganizationRow organization;

	if (record->kind == APITOKEN_USER ||
		!apitoken_fetch_organization(snapshot, record->organization_id, &organization))
		return DT_NOEND;
	apitoken_check_lifetime(&organization, issued_at, expires_at);
	return organization.max_lifetime == NULL ? DT_NOEND :
		apitoken_plus_interval(record->issued_at, organization.max_lifetime);
}

/* Check the values that change.  Unchanged values are not checked again. */
static void
check_new_values(TriggerData *trigger, const ApitokenRecord *record, Snapshot snapshot)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	HeapTuple	tuple = trigger->tg_newtuple;
	Datum		value;
	bool		isnull;

	if (apitoken_column_changed(trigger, Anum_token_records_label))
	{
		apitoken_check_label(record->label);
		if (!apitoken_is_imported(record))
			apitoken_check_label_free(record, snapshot);
	}
	value = heap_getattr(tuple, Anum_token_records_description, descriptor, &isnull);
	if (!isnull && apitoken_column_changed(trigger, Anum_token_records_description))
		apitoken_check_description(TextDatumGetCString(value));
	if (apitoken_column_changed(trigger, Anum_token_records_access) ||
		apitoken_column_changed(trigger, Anum_token_records_permissions))
	{
		value = heap_getattr(tuple, Anum_token_records_permissions, descriptor, &isnull);
		apitoken_check_access(apitoken_access_to_text(record->access),
							  isnull ? NULL : DatumGetArrayTypeP(value));
	}
	if (apitoken_column_changed(trigger, Anum_token_records_role))
	{
		if (record->kind == APITOKEN_USER || record->role == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("organization token must have a token role, and personal token must not"),
					 apitoken_errhint("Run SELECT name FROM apitoken.roles to list the token roles.", "GET /roles lists the token roles.")));
		apitoken_check_role(record->role);
	}
	if (apitoken_column_changed(trigger, Anum_token_records_expires_at))
	{
		value = heap_getattr(tuple, Anum_token_records_expires_at, descriptor, &isnull);
		if (!isnull)
			apitoken_check_expiry(DatumGetTimestampTz(value), apitoken_is_owner());
		apitoken_check_policy(record, record->issued_at, record->expires_at, snapshot);
	}
	value = heap_getattr(tuple, Anum_token_records_suspended_at, descriptor, &isnull);
	if (!isnull && TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(value)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("time of the suspension must be finite"),
				 apitoken_errhint("Specify now(), or null for a token that is not suspended.", "Specify \"now\", or null for a token that is not suspended.")));
	if (apitoken_column_changed(trigger, Anum_token_records_allowed_networks))
		apitoken_check_networks(record->allowed_networks, APITOKEN_FROM_EVERYWHERE);
	value = heap_getattr(tuple, Anum_token_records_rate_limit_per_minute, descriptor, &isnull);
	if (!isnull && apitoken_column_changed(trigger, Anum_token_records_rate_limit_per_minute))
		apitoken_check_rate_limit(DatumGetInt32(value));
	if (apitoken_column_changed(trigger, Anum_token_records_quota) ||
		apitoken_column_changed(trigger, Anum_token_records_quota_period))
		apitoken_check_quota(tuple, descriptor);
	value = heap_getattr(tuple, Anum_token_records_metadata, descriptor, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("metadata must be a JSON object"),
				 apitoken_errhint("Specify '{}' for no metadata.", "Specify {} for no metadata.")));
	if (apitoken_column_changed(trigger, Anum_token_records_metadata))
		apitoken_check_metadata(value);
}

static HeapTuple
set_updated_at(TriggerData *trigger, TimestampTz updated_at)
{
	int			attribute = Anum_token_records_updated_at;
	Datum		value = TimestampTzGetDatum(updated_at);
	bool		isnull = false;

	return heap_modify_tuple_by_cols(trigger->tg_newtuple, RelationGetDescr(trigger->tg_relation),
									 1, &attribute, &value, &isnull);
}

/*
 * Keep access and permissions consistent: another access than custom clears the
 * permissions, and new permissions make the access custom, as in create_token().
 */
static void
reconcile_access(TriggerData *trigger)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	bool		access_changed = apitoken_column_changed(trigger, Anum_token_records_access);
	bool		permissions_changed = apitoken_column_changed(trigger, Anum_token_records_permissions);
	bool		no_permissions = heap_attisnull(trigger->tg_newtuple, Anum_token_records_permissions, descriptor);
	bool		custom;
	bool		isnull;
	int			attribute;
	Datum		value;

	if (access_changed == permissions_changed)
		return;
	value = heap_getattr(trigger->tg_newtuple, Anum_token_records_access, descriptor, &isnull);
	custom = !isnull && strcmp(TextDatumGetCString(value), apitoken_access_to_text(APITOKEN_CUSTOM)) == 0;
	if (access_changed && !custom && !no_permissions)
	{
		attribute = Anum_token_records_permissions;
		value = (Datum) 0;
		isnull = true;
	}
	else if (permissions_changed && !custom && !no_permissions)
	{
		attribute = Anum_token_records_access;
		value = CStringGetTextDatum(apitoken_access_to_text(APITOKEN_CUSTOM));
		isnull = false;
	}
	else
		return;
	trigger->tg_newtuple = heap_modify_tuple_by_cols(trigger->tg_newtuple, descriptor,
													 1, &attribute, &value, &isnull);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_token_before_update);
Datum
apitoken_token_before_update(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor;
	ApitokenRecord old_record;
	ApitokenRecord new_record;
	Snapshot	snapshot;

	apitoken_expect_trigger(fcinfo, APITOKEN_TOKEN_RECORDS);
	descriptor = RelationGetDescr(trigger->tg_relation);

	/* the extension's own statements were checked before they ran */
	if (apitoken_running_statement == APITOKEN_REGENERATE ||
		apitoken_running_statement == APITOKEN_END_OVERLAP ||
		apitoken_running_statement == APITOKEN_REVOKE ||
		apitoken_running_statement == APITOKEN_REVOKE_MATCHING ||
		apitoken_running_statement == APITOKEN_REVOKE_IDLE ||
		apitoken_running_statement == APITOKEN_TELL_REUSE ||
		apitoken_running_statement == APITOKEN_REVOKE_REUSED)
		return PointerGetDatum(set_updated_at(trigger, GetCurrentTimestamp()));

	/* telling an expiry and erasure are not changes by a user */
	if (apitoken_running_statement == APITOKEN_NOTIFY_EXPIRY ||
		apitoken_running_statement == APITOKEN_ERASE_TOKENS)
		return PointerGetDatum(trigger->tg_newtuple);

	apitoken_record_from_tuple(trigger->tg_trigtuple, descriptor, &old_record);
	if (!apitoken_may_manage(&old_record, "token:update"))
		apitoken_refuse();
	if (old_record.revoked)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("token is revoked"),
				 errdetail("Token \"%s\" cannot be changed.", old_record.masked),
				 errhint("Create another token.")));
	check_protected_columns(trigger);
	trigger->tg_newtuple = apitoken_canonical_row(trigger->tg_newtuple, descriptor);
	if (!apitoken_edited(trigger))
		return PointerGetDatum(trigger->tg_trigtuple);

	/* a record has no nulls in these columns, so check the row itself */
	if (heap_attisnull(trigger->tg_newtuple, Anum_token_records_access, descriptor) ||
		heap_attisnull(trigger->tg_newtuple, Anum_token_records_label, descriptor))
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("label and access of a token must not be null"),
				 errhint("Use a label of 1 to 255 characters, and access \"read_only\", \"full\" or \"custom\".")));
	reconcile_access(trigger);
	apitoken_record_from_tuple(trigger->tg_newtuple, descriptor, &new_record);
	snapshot = apitoken_latest_snapshot();
	check_new_values(trigger, &new_record, snapshot);
	apitoken_check_ceiling(&old_record, snapshot);
	apitoken_check_ceiling(&new_record, snapshot);
	UnregisterSnapshot(snapshot);
	return PointerGetDatum(set_updated_at(trigger, GetCurrentTimestamp()));
}
