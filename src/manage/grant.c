/*
 * grant.c
 *		Capabilities: allow() and disallow().
 *
 * A capability is a set of privileges.  allow() grants them by ordinary GRANTs,
 * which pg_dump dumps like any others.  The GRANTs are built as parse trees and
 * not as SQL text, and run with the caller's privileges.
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

/* One privilege on one function, table or view. */
typedef struct Privilege
{
	const char *name;			/* "execute" for a function */
	const char *schema;
	const char *object;
	ApitokenTable columns_of;	/* grant on the columns that columns.h lists for this table;
								 * APITOKEN_TABLES: on the whole object */
} Privilege;

/* Functions are not overloaded, so that their names are enough. */
#define FUNCTION(name) {"execute", "apitoken", name, APITOKEN_TABLES}
#define INTERNAL(name) {"execute", "apitoken_internal", name, APITOKEN_TABLES}
#define TABLE(privilege, name) {privilege, "apitoken", name, APITOKEN_TABLES}
#define COLUMNS(privilege, schema, name, table) {privilege, schema, name, table}
#define WRITABLE_TABLE(name) \
	TABLE("select", name), TABLE("insert", name), TABLE("update", name), TABLE("delete", name)

static const Privilege use_privileges[] = {
	FUNCTION("authenticate"),
	FUNCTION("pre_request"),
};

static const Privilege manage_privileges[] = {
	FUNCTION("create_token"),
	FUNCTION("take_token"),
	FUNCTION("regenerate_token"),
	FUNCTION("revoke_token"),
	FUNCTION("revoke_tokens"),
	FUNCTION("list_tokens"),
	INTERNAL("list_pattern"),
	INTERNAL("list_limit"),
	TABLE("select", "tokens"),
	COLUMNS("insert", "apitoken", "tokens", APITOKEN_TOKEN_RECORDS),
	COLUMNS("update", "apitoken", "tokens", APITOKEN_TOKEN_RECORDS),
	/* the view's trigger refuses DELETE with a hint, which a missing privilege would not give */
	TABLE("delete", "tokens"),
	COLUMNS("select", "apitoken_internal", "token_records", APITOKEN_TOKEN_RECORDS),
	COLUMNS("insert", "apitoken_internal", "token_records", APITOKEN_TOKEN_RECORDS),
	COLUMNS("update", "apitoken_internal", "token_records", APITOKEN_TOKEN_RECORDS),
	TABLE("select", "token_usage"),
	TABLE("select", "token_usage_daily"),
	TABLE("select", "events"),
	TABLE("select", "organizations"),
	COLUMNS("select", "apitoken", "users", APITOKEN_USERS),
	TABLE("select", "memberships"),
	INTERNAL("read_members"),
	TABLE("select", "members"),
};

static const Privilege verify_privileges[] = {
	FUNCTION("verify"),
	FUNCTION("introspect"),
	FUNCTION("revoke_by_token"),
};

static const Privilege act_privileges[] = {
	FUNCTION("act_as"),
};

static const Privilege directory_privileges[] = {
	WRITABLE_TABLE("organizations"),
	WRITABLE_TABLE("users"),
	WRITABLE_TABLE("memberships"),
	COLUMNS("insert", "apitoken", "roles", APITOKEN_ROLE_RECORDS),
	COLUMNS("update", "apitoken", "roles", APITOKEN_ROLE_RECORDS),
	TABLE("delete", "roles"),
};

static const Privilege monitor_privileges[] = {
	INTERNAL("read_stats"),
	TABLE("select", "stats"),
};

/* A named set of privileges. */
typedef struct Capability
{
	const char *name;
	const char *includes;		/* name of another capability; NULL: none */
	const Privilege *privileges;
	int			count;
} Capability;

#define CAPABILITY(name, includes) {#name, includes, name##_privileges, lengthof(name##_privileges)}

static const Capability capabilities[] = {
	CAPABILITY(use, NULL),
	CAPABILITY(manage, "use"),
	CAPABILITY(verify, NULL),
	CAPABILITY(act, NULL),
	CAPABILITY(directory, NULL),
	CAPABILITY(monitor, NULL),
};

static const Capability *
find_capability(const char *name)
{
	for (int i = 0; i < lengthof(capabilities); i++)
	{
		if (strcmp(capabilities[i].name, name) == 0)
			return &capabilities[i];
	}
	return NULL;
}

/* "use, manage, ... and monitor" */
static const char *
capability_names(void)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < lengthof(capabilities); i++)
		appendStringInfo(&names, "%s%s",
						 i == 0 ? "" : i == lengthof(capabilities) - 1 ? " and " : ", ",
						 capabilities[i].name);
	return names.data;
}

/* The ACL letter of a privilege on columns. */
static char
acl_letter(const char *privilege)
{
	return strcmp(privilege, "select") == 0 ? 'r' : strcmp(privilege, "insert") == 0 ? 'a' : 'w';
}

static void
run_grant(const Privilege *privilege, RoleSpec *grantee, bool grant)
{
	GrantStmt  *statement = makeNode(GrantStmt);
	AccessPriv *access = makeNode(AccessPriv);
	char	   *schema = pstrdup(privilege->schema);
	char	   *object = pstrdup(privilege->object);

	access->priv_name = pstrdup(privilege->name);
	if (privilege->columns_of != APITOKEN_TABLES)
		access->cols = apitoken_columns_granted(privilege->columns_of, acl_letter(privilege->name));
	statement->is_grant = grant;
	statement->targtype = ACL_TARGET_OBJECT;
	statement->privileges = list_make1(access);
	statement->grantees = list_make1(grantee);
	statement->behavior = DROP_RESTRICT;
	if (strcmp(privilege->name, "execute") == 0)
	{
		ObjectWithArgs *function = makeNode(ObjectWithArgs);

		function->objname = list_make2(makeString(schema), makeString(object));
		function->args_unspecified = true;
		statement->objtype = OBJECT_FUNCTION;
		statement->objects = list_make1(function);
	}
	else
	{
		statement->objtype = OBJECT_TABLE;
		statement->objects = list_make1(makeRangeVar(schema, object, -1));
	}
	ExecuteGrantStmt(statement);
}

static void
run_grants(const Capability *capability, RoleSpec *grantee, bool grant)
{
	if (capability->includes != NULL)
		run_grants(find_capability(capability->includes), grantee, grant);
	for (int i = 0; i < capability->count; i++)
		run_grant(&capability->privileges[i], grantee, grant);
}

/* Was DELETE on this relation granted to the role directly? */
static bool
has_delete(Oid relation, Oid role)
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
 * Some capabilities share privileges.  If the role keeps another capability, the
 * privileges of that one are granted again.  DELETE on these relations shows
 * that the role has the capability.
 */
static void
grant_kept(List *revoked, Oid role, RoleSpec *grantee)
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
		bool		was_revoked = false;
		ListCell   *lc;

		foreach(lc, revoked)
			was_revoked = was_revoked || strcmp(lfirst(lc), kept[i].capability) == 0;
		if (!was_revoked && has_delete(get_relname_relid(kept[i].relation, schema), role))
			run_grants(find_capability(kept[i].capability), grantee, true);
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
				 errdetail("Only the owner of the extension's tables, role \"%s\", may change capabilities.",
						 GetUserNameFromId(apitoken_owner(), false))));
	/* for a GRANT, the server checks this before it calls ExecuteGrantStmt() */
	PreventCommandIfReadOnly(grant ? "apitoken.allow()" : "apitoken.disallow()");
	if (!PG_ARGISNULL(1) && !array_contains_nulls(PG_GETARG_ARRAYTYPE_P(1)))
		capabilities = apitoken_strings_from_array(PG_GETARG_ARRAYTYPE_P(1));
	if (PG_ARGISNULL(0) || capabilities == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("database role and at least one capability must be specified"),
				 errhint("Use for example SELECT apitoken.%s('backend', 'act', 'verify').",
						 grant ? "allow" : "disallow")));

	/* check all names before anything is granted */
	foreach(lc, capabilities)
	{
		if (find_capability(lfirst(lc)) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("capability \"%s\" does not exist", apitoken_clip(lfirst(lc))),
					 errhint("The capabilities are %s.", capability_names())));
	}

	grantee->roletype = ROLESPEC_CSTRING;
	grantee->rolename = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	grantee->location = -1;
	foreach(lc, capabilities)
		run_grants(find_capability(lfirst(lc)), grantee, grant);
	if (!grant)
		grant_kept(capabilities, get_role_oid(grantee->rolename, false), grantee);
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
