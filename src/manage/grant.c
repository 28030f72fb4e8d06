/*
 * grant.c
 *		Capabilities: allow() and disallow().
 *
 * A capability is a handful of GRANTs, which travel in pg_dump like any
 * others.  They are built as parse trees, not as text, and run as the caller.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "manage/manage.h"

#define NO_COLUMNS ""

/* What a capability grants: one privilege on one function or relation. */
typedef struct Privilege
{
	const char *capability;
	const char *privilege;		/* "execute" for a function */
	const char *object;
	const char *columns;		/* comma-separated; all if empty */
	int			nargs;			/* of a function; its argument types: */
	const char *args[11];
} Privilege;

#define FUNCTION(capability, name, ...) \
	{capability, "execute", name, NO_COLUMNS, \
	 lengthof(((const char *[]) {__VA_ARGS__})), {__VA_ARGS__}}
#define RELATION(capability, privilege, name, columns) \
	{capability, privilege, name, columns, 0, {NULL}}

/* What clients may read, set and change of token_records, and so of tokens. */
#define NARROWING "label,description,role,access,permissions,allowed_networks,rate_limit_per_minute,metadata,expires_at"
#define READABLE "id,organization_id,user_id," NARROWING ",masked,created_by,created_by_name," \
	"created_at,updated_at,suspended_at,revoked_at,revoked_by,revoke_reason"
#define INSERTABLE "organization_id,user_id," NARROWING
#define UPDATABLE NARROWING ",suspended_at"

static const Privilege privileges[] = {
	FUNCTION("use", "authenticate", "text"),
	FUNCTION("use", "pre_request"),

	FUNCTION("manage", "authenticate", "text"),
	FUNCTION("manage", "pre_request"),
	FUNCTION("manage", "create_token", "text", "text", "text", "text", "text", "text", "_text",
			 "interval", "_cidr", "int4", "jsonb"),
	FUNCTION("manage", "take_secret", "uuid"),
	FUNCTION("manage", "regenerate_token", "uuid", "interval", "interval"),
	FUNCTION("manage", "revoke_token", "uuid", "text", "text"),
	FUNCTION("manage", "revoke_tokens", "text", "text", "text", "text"),
	FUNCTION("manage", "list_tokens", "text", "text", "text", "uuid", "int4"),
	FUNCTION("manage", "list_pattern", "text"),
	FUNCTION("manage", "list_limit", "int4", "text"),
	RELATION("manage", "select", "tokens", NO_COLUMNS),
	RELATION("manage", "insert", "tokens", INSERTABLE),
	RELATION("manage", "update", "tokens", UPDATABLE),
	/* the view's trigger refuses, with a hint that a missing privilege has not */
	RELATION("manage", "delete", "tokens", NO_COLUMNS),
	RELATION("manage", "select", "token_records", READABLE),
	RELATION("manage", "insert", "token_records", INSERTABLE),
	RELATION("manage", "update", "token_records", UPDATABLE),
	RELATION("manage", "select", "token_usage", NO_COLUMNS),
	RELATION("manage", "select", "token_usage_daily", NO_COLUMNS),
	RELATION("manage", "select", "events", NO_COLUMNS),
	RELATION("manage", "select", "organizations", NO_COLUMNS),
	RELATION("manage", "select", "users", NO_COLUMNS),
	RELATION("manage", "select", "memberships", NO_COLUMNS),
	RELATION("manage", "select", "members", NO_COLUMNS),

	FUNCTION("verify", "verify", "text", "text", "text", "inet"),
	FUNCTION("verify", "introspect", "text", "text"),
	FUNCTION("verify", "revoke_by_token", "text", "text"),

	FUNCTION("act", "act_as", "text"),

	RELATION("directory", "select", "organizations", NO_COLUMNS),
	RELATION("directory", "insert", "organizations", NO_COLUMNS),
	RELATION("directory", "update", "organizations", NO_COLUMNS),
	RELATION("directory", "delete", "organizations", NO_COLUMNS),
	RELATION("directory", "select", "users", NO_COLUMNS),
	RELATION("directory", "insert", "users", NO_COLUMNS),
	RELATION("directory", "update", "users", NO_COLUMNS),
	RELATION("directory", "delete", "users", NO_COLUMNS),
	RELATION("directory", "select", "memberships", NO_COLUMNS),
	RELATION("directory", "insert", "memberships", NO_COLUMNS),
	RELATION("directory", "update", "memberships", NO_COLUMNS),
	RELATION("directory", "delete", "memberships", NO_COLUMNS),
	RELATION("directory", "insert", "roles", "name,description,permissions"),
	RELATION("directory", "update", "roles", "description,permissions"),
	RELATION("directory", "delete", "roles", NO_COLUMNS),

	FUNCTION("monitor", "read_stats"),
	RELATION("monitor", "select", "stats", NO_COLUMNS),
};

static List *
column_list(const char *columns)
{
	List	   *result = NIL;
	char	   *copy = pstrdup(columns);
	char	   *rest = NULL;

	for (char *name = strtok_r(copy, ",", &rest); name != NULL; name = strtok_r(NULL, ",", &rest))
		result = lappend(result, makeString(name));
	return result;
}

static void
run_grant(const Privilege *privilege, RoleSpec *grantee, bool grant)
{
	GrantStmt  *statement = makeNode(GrantStmt);
	AccessPriv *access = makeNode(AccessPriv);
	char	   *object = pstrdup(privilege->object);

	access->priv_name = pstrdup(privilege->privilege);
	access->cols = column_list(privilege->columns);
	statement->is_grant = grant;
	statement->targtype = ACL_TARGET_OBJECT;
	statement->privileges = list_make1(access);
	statement->grantees = list_make1(grantee);
	statement->behavior = DROP_RESTRICT;
	if (strcmp(privilege->privilege, "execute") == 0)
	{
		ObjectWithArgs *function = makeNode(ObjectWithArgs);

		function->objname = list_make2(makeString(pstrdup("apitoken")), makeString(object));
		for (int i = 0; i < privilege->nargs; i++)
			function->objargs = lappend(function->objargs,
										makeTypeNameFromNameList(list_make2(makeString(pstrdup("pg_catalog")),
																			makeString(pstrdup(privilege->args[i])))));
		statement->objtype = OBJECT_FUNCTION;
		statement->objects = list_make1(function);
	}
	else
	{
		statement->objtype = OBJECT_TABLE;
		statement->objects = list_make1(makeRangeVar(pstrdup("apitoken"), object, -1));
	}
	ExecuteGrantStmt(statement);
}

static bool
grants_of(const char *capability, RoleSpec *grantee, bool grant)
{
	bool		known = false;

	for (int i = 0; i < lengthof(privileges); i++)
	{
		if (strcmp(privileges[i].capability, capability) != 0)
			continue;
		known = true;
		if (grantee != NULL)
			run_grant(&privileges[i], grantee, grant);
	}
	return known;
}

/* Was DELETE on this relation granted to the role itself? */
static bool
may_delete(Oid relation, Oid role)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	bool		granted = false;
	bool		isnull;
	Datum		datum;

	if (!HeapTupleIsValid(tuple))
		return false;
	datum = SysCacheGetAttr(RELOID, tuple, Anum_pg_class_relacl, &isnull);
	if (!isnull)
	{
		Acl		   *acl = DatumGetAclP(datum);
		AclItem    *items = ACL_DAT(acl);

		for (int i = 0; i < ACL_NUM(acl); i++)
			granted = granted || (items[i].ai_grantee == role && (ACLITEM_GET_PRIVS(items[i]) & ACL_DELETE));
	}
	ReleaseSysCache(tuple);
	return granted;
}

/*
 * Some capabilities share privileges: what one that the role keeps needs is
 * granted again.  DELETE on these relations tells that it has the capability.
 */
static void
restore_shared(List *taken, Oid role, RoleSpec *grantee)
{
	static const struct
	{
		const char *capability;
		const char *relation;
	}			kept[] = {
		{"manage", "tokens"},
		{"directory", "organizations"},
	};
	Oid			schema = get_namespace_oid("apitoken", false);

	CommandCounterIncrement();
	for (int i = 0; i < lengthof(kept); i++)
	{
		bool		was_taken = false;
		ListCell   *lc;

		foreach(lc, taken)
			was_taken = was_taken || strcmp(lfirst(lc), kept[i].capability) == 0;
		if (!was_taken && may_delete(get_relname_relid(kept[i].relation, schema), role))
			grants_of(kept[i].capability, grantee, true);
	}
}

static void
change_capabilities(FunctionCallInfo fcinfo, bool grant)
{
	RoleSpec   *grantee = makeNode(RoleSpec);
	List	   *capabilities = NIL;
	ListCell   *lc;

	if (!apitoken_is_owner())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to change capabilities"),
				 errhint("Only the owner of the extension's tables may, \"%s\".",
						 GetUserNameFromId(apitoken_owner(), false))));
	/* as GRANT is, which the server checks before it gets as far as this */
	PreventCommandIfReadOnly(grant ? "apitoken.allow()" : "apitoken.disallow()");
	if (!PG_ARGISNULL(1) && !array_contains_nulls(PG_GETARG_ARRAYTYPE_P(1)))
		capabilities = apitoken_strings_from_array(PG_GETARG_ARRAYTYPE_P(1));
	if (PG_ARGISNULL(0) || capabilities == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a database role and at least one capability are needed"),
				 errhint("SELECT apitoken.allow('backend', 'act', 'verify');")));

	/* all are known, before the first is granted */
	foreach(lc, capabilities)
	{
		if (!grants_of(lfirst(lc), NULL, grant))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there is no capability \"%s\"", apitoken_clip(lfirst(lc))),
					 errhint("Capabilities are use, manage, verify, act, directory and monitor.")));
	}

	grantee->roletype = ROLESPEC_CSTRING;
	grantee->rolename = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	grantee->location = -1;
	foreach(lc, capabilities)
		grants_of(lfirst(lc), grantee, grant);
	if (!grant)
		restore_shared(capabilities, get_role_oid(grantee->rolename, false), grantee);
}

PG_FUNCTION_INFO_V1(apitoken_allow);
Datum
apitoken_allow(PG_FUNCTION_ARGS)
{
	change_capabilities(fcinfo, true);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(apitoken_disallow);
Datum
apitoken_disallow(PG_FUNCTION_ARGS)
{
	change_capabilities(fcinfo, false);
	PG_RETURN_VOID();
}
