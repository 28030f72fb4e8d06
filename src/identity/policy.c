/*
 * policy.c
 *		Functions of the row policies: which rows the caller sees.
 *
 * What the caller manages is computed once in a transaction that has written
 * nothing, and again when that may have changed; in others, once in each statement.
 * plan.c tells the planner about these functions.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "identity/identity.h"

/* A list shows the tokens of an owner in order.  This many ids are prefetched. */
#define PREFETCH_MAX 64

/*
 * The owners for whose tokens the caller has at least one of these permissions,
 * or with NULL, the organizations to which the caller belongs and the caller.
 */
typedef struct Managed
{
	struct Managed *next;
	ArrayType  *permissions;
	ArrayType  *organizations;
	Datum	   *ids;			/* elements of organizations, sorted */
	int			count;
	bool		has_user;		/* user_id has been looked up */
	text	   *user_id;		/* NULL: none */

	/* with permissions NULL: the token that is acting */
	bool		by_token;
	pg_uuid_t	acting_token;

	/* the last argument of manages_token() in this statement, initially zero, and the result */
	pg_uuid_t	token_id;
	bool		manages_token;

	/* ids of managed tokens that are likely to be the next arguments */
	pg_uuid_t	prefetched[PREFETCH_MAX];
	int			prefetched_count;
	int			lookups;		/* since a prefetched id was last used */
} Managed;

/* The cache of computed results, in its own memory context. */
static MemoryContext cache_context = NULL;
static Managed *cache;
static int	cache_count;

/*
 * The statement in which the cache was used last.  The generation alone, which
 * counts statements, is not enough: PL/pgSQL's expressions are not statements, and
 * between two of them this transaction may have written or rolled back rows.
 */
static uint64 cache_generation;
static CommandId cache_command;
static SubTransactionId cache_subtransaction;

/* What the results depend on, as it was before the first of them was computed. */
static uint64 cache_identity;
static uint64 cache_directory;
static bool cache_known_users;

/* The cache is cleared when it holds so many lists of permissions. */
#define CACHE_MAX 100

static int
compare_texts(const void *a, const void *b, void *unused)
{
	text	   *left = DatumGetTextPP(*(const Datum *) a);
	text	   *right = DatumGetTextPP(*(const Datum *) b);
	int			llength = VARSIZE_ANY_EXHDR(left);
	int			rlength = VARSIZE_ANY_EXHDR(right);
	int			order = memcmp(VARDATA_ANY(left), VARDATA_ANY(right), Min(llength, rlength));

	return order != 0 ? order : llength - rlength;
}

static void
clear_cache(void)
{
	cache = NULL;
	cache_count = 0;
	MemoryContextReset(cache_context);
}

/*
 * Do the results of an earlier statement still hold?  In a transaction that has
 * written anything they do not: see src/tables/changes.c.
 */
static bool
cache_holds(void)
{
	(void) apitoken_principal();
	if (cache_identity != apitoken_identity_changes || TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return false;
	AcceptInvalidationMessages();
	return cache_directory == apitoken_directory_changes &&
		cache_known_users == apitoken_require_known_users &&
		apitoken_directory_is_watched();
}

/* Tokens come and go without any notice. */
static void
forget_tokens(Managed *managed)
{
	memset(&managed->token_id, 0, sizeof(managed->token_id));
	managed->manages_token = false;
	managed->prefetched_count = 0;
	managed->lookups = 0;
}

static void
clear_outdated_cache(void)
{
	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "apitoken policies", ALLOCSET_SMALL_SIZES);
	else if (cache_generation == apitoken_identity_generation &&
			 cache_command == GetCurrentCommandId(false) &&
			 cache_subtransaction == GetCurrentSubTransactionId())
		return;
	else if (cache != NULL && cache_holds())
	{
		for (Managed *managed = cache; managed != NULL; managed = managed->next)
			forget_tokens(managed);
	}
	else
		clear_cache();
	cache_generation = apitoken_identity_generation;
	cache_command = GetCurrentCommandId(false);
	cache_subtransaction = GetCurrentSubTransactionId();
}

static Managed *
compute_managed(ArrayType *permissions)
{
	const ApitokenPrincipal *principal = apitoken_principal();
	uint64		directory = apitoken_directory_changes;
	bool		known_users = apitoken_require_known_users;
	List	   *names = NIL;
	List	   *organizations = NIL;
	MemoryContext old;
	Managed    *managed;
	ListCell   *lc;

	if (permissions != NULL)
	{
		/* each role of the caller is compared with each permission */
		apitoken_check_count(permissions, "Ask for fewer permissions at once.");
		names = apitoken_strings_from_array(permissions);
	}
	foreach(lc, names)
		apitoken_check_permission(lfirst(lc));
	if (principal != NULL && (permissions == NULL || names != NIL))
		organizations = apitoken_organizations_where(principal, names);

	/* apitoken_principal() may have fixed the identity only now */
	clear_outdated_cache();
	if (cache_count >= CACHE_MAX)
		clear_cache();
	if (cache == NULL)
	{
		cache_identity = apitoken_identity_changes;
		cache_directory = directory;
		cache_known_users = known_users;
	}
	old = MemoryContextSwitchTo(cache_context);
	managed = palloc0(sizeof(Managed));
	if (permissions != NULL)
		managed->permissions = (ArrayType *) PG_DETOAST_DATUM_COPY(PointerGetDatum(permissions));
	managed->organizations = apitoken_strings_to_array(organizations);
	deconstruct_array(managed->organizations, TEXTOID, -1, false, TYPALIGN_INT, &managed->ids, NULL, &managed->count);
	qsort_interruptible(managed->ids, managed->count, sizeof(Datum), compare_texts, NULL);
	if (principal != NULL && permissions == NULL && principal->source == APITOKEN_SOURCE_TOKEN)
	{
		managed->by_token = true;
		managed->acting_token = principal->token_id;
	}
	managed->next = cache;
	cache = managed;
	cache_count++;
	MemoryContextSwitchTo(old);
	return managed;
}

static bool
same_permissions(const ArrayType *a, const ArrayType *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return VARSIZE(a) == VARSIZE(b) && memcmp(a, b, VARSIZE(a)) == 0;
}

/* Organizations only: the user may not have been looked up. */
static Managed *
get_managed_organizations(ArrayType *permissions)
{
	clear_outdated_cache();
	for (Managed *managed = cache; managed != NULL; managed = managed->next)
	{
		if (same_permissions(managed->permissions, permissions))
			return managed;
	}
	return compute_managed(permissions);
}

/*
 * The user is looked up here, not when a row needs it: it would be visible in the
 * statistics views and in EXPLAIN whether there was such a row.
 */
static Managed *
get_managed(ArrayType *permissions)
{
	Managed    *managed = get_managed_organizations(permissions);
	const ApitokenPrincipal *principal;
	const char *user_id = NULL;
	List	   *names;

	if (managed->has_user)
		return managed;
	principal = apitoken_principal();
	names = permissions == NULL ? NIL : apitoken_strings_from_array(permissions);
	if (principal != NULL && permissions == NULL)
		user_id = apitoken_active_user(principal);
	else if (principal != NULL && names != NIL)
		user_id = apitoken_manageable_user(principal, names);
	if (user_id != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(cache_context);

		managed->user_id = cstring_to_text(user_id);
		MemoryContextSwitchTo(old);
	}
	managed->has_user = true;
	return managed;
}

static bool
manages_organization(const Managed *managed, text *id)
{
	Datum		key = PointerGetDatum(id);

	return managed->count > 0 &&
		bsearch_arg(&key, managed->ids, managed->count, sizeof(Datum), compare_texts, NULL) != NULL;
}

static bool
manages_user(const Managed *managed, text *id)
{
	Datum		key = PointerGetDatum(id);
	Datum		user = PointerGetDatum(managed->user_id);

	return managed->user_id != NULL && compare_texts(&key, &user, NULL) == 0;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_manages_organization);
Datum
apitoken_manages_organization(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(manages_organization(get_managed(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_TEXT_PP(0)));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_manages_user);
Datum
apitoken_manages_user(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(manages_user(get_managed(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_TEXT_PP(0)));
}

static bool
manages_owner(FunctionCallInfo fcinfo, int organization_id, int user_id, int permissions)
{
	Managed    *managed;

	if (PG_ARGISNULL(permissions))
		return false;
	managed = get_managed(PG_GETARG_ARRAYTYPE_P(permissions));
	return (!PG_ARGISNULL(organization_id) && manages_organization(managed, PG_GETARG_TEXT_PP(organization_id))) ||
		(!PG_ARGISNULL(user_id) && manages_user(managed, PG_GETARG_TEXT_PP(user_id)));
}

/*
 * The policy of token_records.  A list asks next for the usage of this token: see
 * manages_token().
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_manages_record);
Datum
apitoken_manages_record(PG_FUNCTION_ARGS)
{
	Managed    *managed;

	if (!manages_owner(fcinfo, 1, 2, 3))
		PG_RETURN_BOOL(false);
	managed = get_managed(PG_GETARG_ARRAYTYPE_P(3));
	if (!PG_ARGISNULL(0))
	{
		managed->token_id = *PG_GETARG_UUID_P(0);
		managed->manages_token = true;
	}
	PG_RETURN_BOOL(true);
}

/* The policy of events.  The id of the token, the first argument, is for the planner: see plan.c. */
APITOKEN_FUNCTION_INFO_V1(apitoken_manages_event);
Datum
apitoken_manages_event(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(manages_owner(fcinfo, 1, 2, 3));
}

static bool
is_prefetched(Managed *managed, const pg_uuid_t *id)
{
	for (int i = 0; i < managed->prefetched_count; i++)
	{
		if (memcmp(&managed->prefetched[i], id, sizeof(*id)) == 0)
			return true;
	}
	return false;
}

static bool
manages_owner_of_token(const Managed *managed, const ApitokenOwner *owner)
{
	return owner->kind == APITOKEN_ORGANIZATION ? manages_organization(managed, owner->id) :
		manages_user(managed, owner->id);
}

static bool
manages_nothing(const Managed *managed)
{
	return managed->count == 0 && managed->user_id == NULL;
}

static bool
look_up(Managed *managed, const pg_uuid_t *id)
{
	Snapshot	snapshot;
	ApitokenOwner owner;
	bool		manages;

	if (manages_nothing(managed))
		return false;
	snapshot = apitoken_latest_snapshot();
	manages = apitoken_fetch_owner(snapshot, id, &owner) && manages_owner_of_token(managed, &owner);

	/* prefetch at the second lookup, and again only after a prefetched id was used */
	if (manages && ++managed->lookups == 2)
		managed->prefetched_count = apitoken_fetch_older(snapshot, &owner, managed->prefetched, PREFETCH_MAX);
	UnregisterSnapshot(snapshot);
	return manages;
}

/*
 * Does the caller manage the owner of this token?  The view tokens asks this
 * several times in a row for the same token, once for each of its usage columns.
 * The last result is kept: the owner of a token never changes.
 */
static bool
manages_token(Managed *managed, const pg_uuid_t *id)
{
	if (memcmp(id, &managed->token_id, sizeof(*id)) != 0)
	{
		bool		prefetched = is_prefetched(managed, id);

		if (prefetched)
			managed->lookups = 1;
		managed->manages_token = prefetched || look_up(managed, id);
		managed->token_id = *id;
	}
	return managed->manages_token;
}

APITOKEN_FUNCTION_INFO_V1(apitoken_manages_token);
Datum
apitoken_manages_token(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(manages_token(get_managed(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_UUID_P(0)));
}

/* Returns the id of a token if the caller manages its owner, otherwise null. */
APITOKEN_FUNCTION_INFO_V1(apitoken_managed_token);
Datum
apitoken_managed_token(PG_FUNCTION_ARGS)
{
	if (!manages_token(get_managed(PG_GETARG_ARRAYTYPE_P(1)), PG_GETARG_UUID_P(0)))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PG_GETARG_DATUM(0));
}

/* The same for a token that has events.  It may be removed already. */
APITOKEN_FUNCTION_INFO_V1(apitoken_managed_token_of_events);
Datum
apitoken_managed_token_of_events(PG_FUNCTION_ARGS)
{
	Managed    *managed = get_managed(PG_GETARG_ARRAYTYPE_P(1));
	Snapshot	snapshot;
	ApitokenOwner owner;
	bool		manages;

	if (manages_nothing(managed))
		PG_RETURN_NULL();
	snapshot = apitoken_latest_snapshot();
	manages = apitoken_fetch_owner_of_events(snapshot, PG_GETARG_UUID_P(0), &owner) &&
		manages_owner_of_token(managed, &owner);
	UnregisterSnapshot(snapshot);
	if (!manages)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PG_GETARG_DATUM(0));
}

/* Index scans keep this value, so it is a copy in the caller's memory context. */
static Datum
copy_organizations(const Managed *managed)
{
	return PointerGetDatum(PG_DETOAST_DATUM_COPY(PointerGetDatum(managed->organizations)));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_managed_organizations);
Datum
apitoken_managed_organizations(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));
	PG_RETURN_DATUM(copy_organizations(get_managed(PG_GETARG_ARRAYTYPE_P(0))));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_managed_user);
Datum
apitoken_managed_user(PG_FUNCTION_ARGS)
{
	Managed    *managed;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	managed = get_managed(PG_GETARG_ARRAYTYPE_P(0));
	if (managed->user_id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PointerGetDatum(PG_DETOAST_DATUM_COPY(PointerGetDatum(managed->user_id))));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_organizations_allowed);
Datum
apitoken_organizations_allowed(PG_FUNCTION_ARGS)
{
	FuncCallContext *context;
	Datum		id;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;

		context = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(context->multi_call_memory_ctx);
		if (!PG_ARGISNULL(0))
		{
			char	   *permission = text_to_cstring(PG_GETARG_TEXT_PP(0));
			ArrayType  *organizations;
			Datum	   *ids;
			int			count;

			apitoken_check_permission(permission);
			organizations = DatumGetArrayTypeP(copy_organizations(get_managed_organizations(apitoken_strings_to_array(list_make1(permission)))));
			deconstruct_array(organizations, TEXTOID, -1, false, TYPALIGN_INT, &ids, NULL, &count);
			context->user_fctx = ids;
			context->max_calls = count;
		}
		MemoryContextSwitchTo(old);
	}
	context = SRF_PERCALL_SETUP();
	if (context->call_cntr >= context->max_calls)
		SRF_RETURN_DONE(context);
	id = ((Datum *) context->user_fctx)[context->call_cntr];
	SRF_RETURN_NEXT(context, id);
}

/* Is this the token that is acting? */
APITOKEN_FUNCTION_INFO_V1(apitoken_is_current_token);
Datum
apitoken_is_current_token(PG_FUNCTION_ARGS)
{
	Managed    *managed = get_managed(NULL);

	PG_RETURN_BOOL(managed->by_token &&
				   memcmp(&managed->acting_token, PG_GETARG_UUID_P(0), sizeof(pg_uuid_t)) == 0);
}

/* ---- the directory: organizations, users and memberships ---- */

/*
 * A database role that was granted DELETE on a table of the directory (capability
 * directory) sees all its rows, whatever the identity.
 */
bool
apitoken_sees_all(ApitokenTable table)
{
	return apitoken_was_granted(apitoken_table(table), ACL_DELETE);
}

/*
 * For the policies of the directory: was the privilege that the statement needs
 * granted to the caller?
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_was_granted_sql);
Datum
apitoken_was_granted_sql(PG_FUNCTION_ARGS)
{
	const char *privilege = text_to_cstring(PG_GETARG_TEXT_PP(1));
	AclMode		mode = strcmp(privilege, "INSERT") == 0 ? ACL_INSERT :
		strcmp(privilege, "UPDATE") == 0 ? ACL_UPDATE :
		strcmp(privilege, "DELETE") == 0 ? ACL_DELETE : ACL_NO_RIGHTS;

	PG_RETURN_BOOL(apitoken_was_granted(PG_GETARG_OID(0), mode));
}

static bool
sees_organization(text *id)
{
	return apitoken_sees_all(APITOKEN_ORGANIZATIONS) || manages_organization(get_managed(NULL), id);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_sees_organization);
Datum
apitoken_sees_organization(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(sees_organization(PG_GETARG_TEXT_PP(0)));
}

/*
 * Does the policy of an organization refuse this lifetime?  A subquery in the view
 * would be planned with the policy on organizations, as a scan for each token.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_refuses_lifetime);
Datum
apitoken_refuses_lifetime(PG_FUNCTION_ARGS)
{
	ApitokenOrganizationRow organization;
	text	   *id;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_BOOL(false);
	id = PG_GETARG_TEXT_PP(0);
	if (!sees_organization(id) && !apitoken_bypasses_rls())
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(apitoken_fetch_organization(GetActiveSnapshot(), text_to_cstring(id), &organization) &&
				   !apitoken_lifetime_allowed(&organization, PG_GETARG_TIMESTAMPTZ(1),
											  PG_ARGISNULL(2) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(2)));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_sees_members);
Datum
apitoken_sees_members(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(apitoken_sees_all(APITOKEN_MEMBERSHIPS) ||
				   manages_organization(get_managed(NULL), PG_GETARG_TEXT_PP(0)));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_sees_user);
Datum
apitoken_sees_user(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(apitoken_sees_all(APITOKEN_USERS) ||
				   manages_user(get_managed(NULL), PG_GETARG_TEXT_PP(0)));
}

/*
 * Ids of the organizations that the caller sees.  A role that sees all gets here
 * only with a plan that was made before it was granted the capability.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_seen_organizations);
Datum
apitoken_seen_organizations(PG_FUNCTION_ARGS)
{
	if (apitoken_sees_all(APITOKEN_ORGANIZATIONS))
		PG_RETURN_ARRAYTYPE_P(apitoken_strings_to_array(apitoken_fetch_all_ids(APITOKEN_ORGANIZATIONS)));
	PG_RETURN_DATUM(copy_organizations(get_managed(NULL)));
}

/* The same for users. */
APITOKEN_FUNCTION_INFO_V1(apitoken_seen_users);
Datum
apitoken_seen_users(PG_FUNCTION_ARGS)
{
	Managed    *managed;
	Datum		id;

	if (apitoken_sees_all(APITOKEN_USERS))
		PG_RETURN_ARRAYTYPE_P(apitoken_strings_to_array(apitoken_fetch_all_ids(APITOKEN_USERS)));
	managed = get_managed(NULL);
	id = PointerGetDatum(managed->user_id);
	PG_RETURN_ARRAYTYPE_P(construct_array(&id, managed->user_id == NULL ? 0 : 1, TEXTOID, -1, false, TYPALIGN_INT));
}

/* The rows of the view personal_tokens_seen: for members who may read the tokens of the organization. */
APITOKEN_FUNCTION_INFO_V1(apitoken_read_personal_tokens_seen);
Datum
apitoken_read_personal_tokens_seen(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const Managed *managed = get_managed(apitoken_strings_to_array(list_make1("token:read")));
	Snapshot	snapshot = apitoken_latest_snapshot();

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (int i = 0; i < managed->count; i++)
	{
		ListCell   *lc;

		foreach(lc, apitoken_fetch_personal_use(snapshot, TextDatumGetCString(managed->ids[i])))
		{
			const ApitokenPersonalUse *use = lfirst(lc);
			ApitokenRecord record;
			Datum		values[5];
			bool		nulls[5] = {false};

			CHECK_FOR_INTERRUPTS();
			if (!apitoken_fetch_token(snapshot, &use->token_id, &record) || record.kind != APITOKEN_USER)
				continue;
			apitoken_complete_token(snapshot, &record);
			values[0] = managed->ids[i];
			values[1] = CStringGetTextDatum(record.user_id);
			values[2] = CStringGetTextDatum(record.label);
			values[3] = CStringGetTextDatum(record.masked);
			values[4] = TimestampTzGetDatum(use->last_used_at);
			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		}
	}
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}

/* Adds the members of an organization to the result. */
static void
put_members(ReturnSetInfo *result, Snapshot snapshot, Datum organization_id)
{
	ListCell   *lm;

	foreach(lm, apitoken_fetch_members(snapshot, TextDatumGetCString(organization_id)))
	{
		const ApitokenMembership *member = lfirst(lm);
		ApitokenUserRow user = {0};
		Datum		values[4];
		bool		nulls[4] = {false};

		CHECK_FOR_INTERRUPTS();
		(void) apitoken_fetch_user(snapshot, member->user_id, &user);
		values[0] = CStringGetTextDatum(member->organization_id);
		values[1] = CStringGetTextDatum(member->user_id);
		nulls[2] = user.name == NULL;
		values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(user.name);
		values[3] = CStringGetTextDatum(member->role);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

/* The rows of the view members. */
APITOKEN_FUNCTION_INFO_V1(apitoken_read_members);
Datum
apitoken_read_members(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const Managed *managed = get_managed(NULL);
	Snapshot	snapshot = apitoken_latest_snapshot();

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (int i = 0; i < managed->count; i++)
		put_members(result, snapshot, managed->ids[i]);
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}

/*
 * Those of one organization, whose row is the argument.  The row may be made up.
 * What counts is whether the caller sees the rows of its id in the view.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_read_members_of);
Datum
apitoken_read_members_of(PG_FUNCTION_ARGS)
{
	bool		isnull;
	Datum		id = GetAttributeByName(PG_GETARG_HEAPTUPLEHEADER(0), "id", &isnull);
	Snapshot	snapshot;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (isnull || !manages_organization(get_managed(NULL), DatumGetTextPP(id)))
		return (Datum) 0;
	snapshot = apitoken_latest_snapshot();
	put_members((ReturnSetInfo *) fcinfo->resultinfo, snapshot, id);
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}
