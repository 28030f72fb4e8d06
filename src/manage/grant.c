/*
 * grant.c
 *		Capabilities: allow() and disallow().
 *
 * A capability is a set of privileges.  allow() grants them by ordinary GRANTs,
 * which pg_dump dumps like any others.  The GRANTs are built as parse trees and
 * not as SQL text, and run with the caller's privileges.  Event triggers and
 * modules such as pgaudit see each of them as a command.
 *
 * disallow() leaves each privilege as it was before allow().  ACLs do not show
 * how it was: several capabilities can contain the privilege, and the role may
 * have had it before.  Therefore two things are recorded:
 *
 *	- A role has a capability if it has SELECT on the column of this name of
 *	  apitoken_internal.capabilities.  Being a privilege, this mark shares the
 *	  fate of the others: in dumps, when the role is renamed, at DROP OWNED and
 *	  DROP ROLE, and when the owner changes.
 *	- A row of apitoken_internal.own_privileges says that the role had this
 *	  privilege before allow().  Rows are read only for privileges in a capability
 *	  that the role has, and allow() sets them right first.  A row that is left
 *	  from a dropped role therefore keeps nothing, and without its row a privilege
 *	  is revoked.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "parser/parse_func.h"
#include "tcop/dest.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "manage/manage.h"

/* A kind of privilege. */
typedef struct Kind
{
	const char *name;
	AclMode		mode;
	char		letter;			/* in columns.h */
} Kind;

static const Kind execute_kind = {"EXECUTE", ACL_EXECUTE, 'X'};
static const Kind select_kind = {"SELECT", ACL_SELECT, 'r'};
static const Kind insert_kind = {"INSERT", ACL_INSERT, 'a'};
static const Kind update_kind = {"UPDATE", ACL_UPDATE, 'w'};
static const Kind delete_kind = {"DELETE", ACL_DELETE, 'd'};

/* One privilege on one function, table or view. */
typedef struct Privilege
{
	const Kind *kind;			/* execute_kind for a function */
	const char *schema;
	const char *object;
	ApitokenTable columns_of;	/* grant on the columns that columns.h lists for this table;
								 * APITOKEN_TABLES: on the whole object */
} Privilege;

/* Functions are not overloaded, so that their names are enough. */
#define FUNCTION(name) {&execute_kind, "apitoken", name, APITOKEN_TABLES}
#define INTERNAL(name) {&execute_kind, "apitoken_internal", name, APITOKEN_TABLES}
#define TABLE(kind, name) {&kind##_kind, "apitoken", name, APITOKEN_TABLES}
#define COLUMNS(kind, schema, name, table) {&kind##_kind, schema, name, table}
#define WRITABLE_TABLE(name) \
	TABLE(select, name), TABLE(insert, name), TABLE(update, name), TABLE(delete, name)

/* The mark of a capability, on one column. */
static const Privilege mark = {&select_kind, "apitoken_internal", "capabilities", APITOKEN_TABLES};

static const Privilege use_privileges[] = {
	FUNCTION("authenticate"),
	FUNCTION("pre_request"),
};

static const Privilege manage_privileges[] = {
	FUNCTION("create_token"),
	FUNCTION("take_token"),
	FUNCTION("regenerate_token"),
	FUNCTION("end_overlap"),
	FUNCTION("revoke_token"),
	FUNCTION("revoke_tokens"),
	FUNCTION("list_tokens"),
	INTERNAL("list_pattern"),
	INTERNAL("list_limit"),
	TABLE(select, "tokens"),
	COLUMNS(insert, "apitoken", "tokens", APITOKEN_TOKEN_RECORDS),
	COLUMNS(update, "apitoken", "tokens", APITOKEN_TOKEN_RECORDS),
	COLUMNS(select, "apitoken_internal", "token_records", APITOKEN_TOKEN_RECORDS),
	COLUMNS(insert, "apitoken_internal", "token_records", APITOKEN_TOKEN_RECORDS),
	COLUMNS(update, "apitoken_internal", "token_records", APITOKEN_TOKEN_RECORDS),
	TABLE(select, "token_usage"),
	TABLE(select, "token_usage_daily"),
	COLUMNS(select, "apitoken_internal", "token_days", APITOKEN_TOKEN_DAYS),
	TABLE(select, "events"),
	COLUMNS(select, "apitoken", "notifications", APITOKEN_NOTIFICATIONS),
	TABLE(select, "organizations"),
	COLUMNS(update, "apitoken", "organizations", APITOKEN_ORGANIZATIONS),
	COLUMNS(select, "apitoken", "users", APITOKEN_USERS),
	TABLE(select, "memberships"),
	INTERNAL("read_members"),
	TABLE(select, "members"),
	FUNCTION("organizations"),
	FUNCTION("members"),
	INTERNAL("read_personal_tokens_seen"),
	TABLE(select, "personal_tokens_seen"),
	TABLE(select, "permissions"),
};

static const Privilege verify_privileges[] = {
	FUNCTION("verify"),
	FUNCTION("verify_all"),
	FUNCTION("explain_verify"),
	FUNCTION("introspect"),
	FUNCTION("revoke_by_token"),
	FUNCTION("report_leaked"),
};

static const Privilege act_privileges[] = {
	FUNCTION("act_as"),
};

static const Privilege directory_privileges[] = {
	WRITABLE_TABLE("organizations"),
	WRITABLE_TABLE("users"),
	WRITABLE_TABLE("memberships"),
	COLUMNS(insert, "apitoken", "roles", APITOKEN_ROLE_RECORDS),
	COLUMNS(update, "apitoken", "roles", APITOKEN_ROLE_RECORDS),
	TABLE(delete, "roles"),
	WRITABLE_TABLE("permissions"),
	INTERNAL("check_permission"),
	FUNCTION("forget_user"),
	FUNCTION("import_token"),
};

static const Privilege monitor_privileges[] = {
	INTERNAL("read_stats"),
	TABLE(select, "stats"),
	FUNCTION("check_setup"),
	INTERNAL("read_setup"),
	/* has the caller's privileges, and so refuses a role that has nothing else */
	INTERNAL("count_tokens"),
};

static const Privilege notify_privileges[] = {
	FUNCTION("claim_notifications"),
	FUNCTION("notification_delivered"),
	FUNCTION("notification_failed"),
};

static const Privilege usage_privileges[] = {
	FUNCTION("record_usage"),
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
	CAPABILITY(notify, NULL),
	CAPABILITY(usage, NULL),
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

/* The privileges of a capability, with those of the capability that it includes. */
static List *
privileges_of(const Capability *capability)
{
	List	   *privileges = NIL;

	if (capability->includes != NULL)
		privileges = privileges_of(find_capability(capability->includes));
	for (int i = 0; i < capability->count; i++)
		privileges = lappend(privileges, unconstify(Privilege *, &capability->privileges[i]));
	return privileges;
}

/*
 * The parts of a privilege that are granted one by one: Strings that name its
 * columns, or NULL for the whole object.
 */
static List *
parts_of(const Privilege *privilege)
{
	if (privilege->columns_of == APITOKEN_TABLES)
		return list_make1(NULL);
	return apitoken_columns_granted(privilege->columns_of, privilege->kind->letter);
}

/* A privilege in words, as messages and own_privileges have it. */
static char *
describe(const Privilege *privilege, Node *part)
{
	return psprintf("%s%s%s%s on %s.%s", privilege->kind->name,
					part == NULL ? "" : " (", part == NULL ? "" : strVal(part), part == NULL ? "" : ")",
					privilege->schema, privilege->object);
}

/* ----- what a role has ----- */

/* Copy the ACL in this column of a catalog row.  NULL: it is null. */
static Acl *
copy_acl(int cache, HeapTuple tuple, AttrNumber attribute)
{
	bool		isnull;
	Datum		acl = SysCacheGetAttr(cache, tuple, attribute, &isnull);

	return isnull ? NULL : DatumGetAclPCopy(acl);
}

static Oid
relation_of(const Privilege *privilege)
{
	return RangeVarGetRelid(makeRangeVar(pstrdup(privilege->schema), pstrdup(privilege->object), -1),
							NoLock, false);
}

/* The ACL that has a privilege, and the owner of the object.  NULL: an empty ACL. */
static Acl *
acl_of(const Privilege *privilege, Node *part, Oid *owner)
{
	bool		of_function = privilege->kind == &execute_kind;
	Oid			no_types = InvalidOid;	/* not read, but must not be null */
	Oid			object;
	HeapTuple	tuple;
	Acl		   *acl;

	if (of_function)
		object = LookupFuncName(list_make2(makeString(pstrdup(privilege->schema)),
										   makeString(pstrdup(privilege->object))), -1, &no_types, false);
	else
		object = relation_of(privilege);
	tuple = SearchSysCache1(of_function ? PROCOID : RELOID, ObjectIdGetDatum(object));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for object %u", object);
	if (of_function)
	{
		*owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
		acl = copy_acl(PROCOID, tuple, Anum_pg_proc_proacl);
	}
	else
	{
		*owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		acl = copy_acl(RELOID, tuple, Anum_pg_class_relacl);
	}
	ReleaseSysCache(tuple);
	if (part == NULL)
		return acl != NULL ? acl : acldefault(of_function ? OBJECT_FUNCTION : OBJECT_TABLE, *owner);

	tuple = SearchSysCacheAttName(object, strVal(part));
	if (!HeapTupleIsValid(tuple))
		return NULL;			/* GRANT raises the error */
	acl = copy_acl(ATTNAME, tuple, Anum_pg_attribute_attacl);
	ReleaseSysCache(tuple);
	return acl;
}

/*
 * The grants of a privilege to the role itself, by the owner of the object and by
 * others.  Membership in other roles, and PUBLIC, do not count.
 */
typedef struct Grants
{
	bool		by_owner;
	bool		with_option;	/* by the owner, with grant option */
	Oid			grantor;		/* one of the grantors, another one than the owner if there
								 * is one; InvalidOid: not granted */
	bool		by_other;		/* that is not the owner */
} Grants;

static Grants
grants_of(const Privilege *privilege, Node *part, Oid role)
{
	Grants		grants = {0};
	Oid			owner;
	Acl		   *acl = acl_of(privilege, part, &owner);
	AclItem    *items = acl == NULL ? NULL : ACL_DAT(acl);

	for (int i = 0; acl != NULL && i < ACL_NUM(acl); i++)
	{
		if (items[i].ai_grantee != role || !(ACLITEM_GET_PRIVS(items[i]) & privilege->kind->mode))
			continue;
		if (items[i].ai_grantor == owner)
		{
			grants.by_owner = true;
			grants.with_option = (ACLITEM_GET_GOPTIONS(items[i]) & privilege->kind->mode) != 0;
		}
		else
			grants.by_other = true;
		if (!OidIsValid(grants.grantor) || items[i].ai_grantor != owner)
			grants.grantor = items[i].ai_grantor;
	}
	return grants;
}

static Node *
mark_of(const Capability *capability)
{
	return (Node *) makeString(pstrdup(capability->name));
}

static bool
has_capability(Oid role, const Capability *capability)
{
	return grants_of(&mark, mark_of(capability), role).by_owner;
}

/* Does the role have a capability with this privilege, other than `except`? */
static bool
is_covered(const Privilege *privilege, Oid role, const Capability *except)
{
	for (int i = 0; i < lengthof(capabilities); i++)
	{
		ListCell   *lc;

		if (&capabilities[i] == except || !has_capability(role, &capabilities[i]))
			continue;
		foreach(lc, privileges_of(&capabilities[i]))
		{
			const Privilege *other = lfirst(lc);

			if (other->kind == privilege->kind && other->columns_of == privilege->columns_of &&
				strcmp(other->schema, privilege->schema) == 0 &&
				strcmp(other->object, privilege->object) == 0)
				return true;
		}
	}
	return false;
}

/* ----- changes ----- */

/* Run a statement on own_privileges.  Returns whether it changed a row. */
static bool
change_own(ApitokenStatement statement, Oid role, const Privilege *privilege, Node *part)
{
	Datum		values[2] = {
		CStringGetTextDatum(GetUserNameFromId(role, false)), CStringGetTextDatum(describe(privilege, part))
	};

	return apitoken_execute(statement, values, NULL) > 0;
}

/* The text of a GRANT, for those who log it. */
static char *
grant_text(const GrantStmt *statement, const Privilege *privilege, const RoleSpec *grantee)
{
	StringInfoData text;
	AccessPriv *access = linitial(statement->privileges);
	ListCell   *lc;

	initStringInfo(&text);
	appendStringInfo(&text, "%s %s", statement->is_grant ? "GRANT" : "REVOKE", privilege->kind->name);
	foreach(lc, access->cols)
		appendStringInfo(&text, "%s%s", lc == list_head(access->cols) ? " (" : ", ",
						 quote_identifier(strVal(lfirst(lc))));
	appendStringInfo(&text, "%s ON %s%s.%s %s %s%s", access->cols == NIL ? "" : ")",
					 privilege->kind == &execute_kind ? "FUNCTION " : "",
					 privilege->schema, privilege->object, statement->is_grant ? "TO" : "FROM",
					 quote_identifier(grantee->rolename),
					 statement->grant_option ? " WITH GRANT OPTION" : "");
	return text.data;
}

/* Grant or revoke a privilege, on these columns or (NIL) on the whole object. */
static void
run_grant(const Privilege *privilege, List *columns, RoleSpec *grantee, bool grant, bool with_option)
{
	GrantStmt  *statement = makeNode(GrantStmt);
	AccessPriv *access = makeNode(AccessPriv);
	PlannedStmt *wrapper = makeNode(PlannedStmt);
	char	   *schema = pstrdup(privilege->schema);
	char	   *object = pstrdup(privilege->object);

	access->priv_name = asc_tolower(privilege->kind->name, strlen(privilege->kind->name));
	access->cols = columns;
	statement->is_grant = grant;
	statement->grant_option = with_option;
	statement->targtype = ACL_TARGET_OBJECT;
	statement->privileges = list_make1(access);
	statement->grantees = list_make1(grantee);
	statement->behavior = DROP_RESTRICT;
	if (privilege->kind == &execute_kind)
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
	wrapper->commandType = CMD_UTILITY;
	wrapper->utilityStmt = (Node *) statement;
	wrapper->stmt_location = -1;

	/* as a statement in a function, which event triggers and pgaudit handle as a command */
	ProcessUtility(wrapper, grant_text(statement, privilege, grantee), false, PROCESS_UTILITY_QUERY,
				   NULL, NULL, None_Receiver, NULL);
	CommandCounterIncrement();
}

static void
allow_capability(const Capability *capability, Oid role, RoleSpec *grantee)
{
	ListCell   *lc;

	foreach(lc, privileges_of(capability))
	{
		const Privilege *privilege = lfirst(lc);
		List	   *parts = parts_of(privilege);
		ListCell   *part;

		foreach(part, parts)
		{
			if (!grants_of(privilege, lfirst(part), role).by_owner)
				change_own(APITOKEN_REMOVE_OWN_PRIVILEGE, role, privilege, lfirst(part));
			else if (!is_covered(privilege, role, NULL))
				change_own(APITOKEN_ADD_OWN_PRIVILEGE, role, privilege, lfirst(part));
		}
		run_grant(privilege, privilege->columns_of == APITOKEN_TABLES ? NIL : parts, grantee, true, false);
	}
	run_grant(&mark, list_make1(mark_of(capability)), grantee, true, false);
}

/*
 * Revoke a privilege on a whole object.  For a relation, REVOKE takes the same
 * privilege on its columns, too, which is granted again here.
 */
static void
revoke_whole(const Privilege *privilege, RoleSpec *grantee, Oid role)
{
	List	   *columns[2] = {NIL, NIL};	/* without and with grant option */

	if (privilege->kind != &execute_kind)
	{
		Oid			relation = relation_of(privilege);
		char	   *name;

		for (AttrNumber i = 1; (name = get_attname(relation, i, true)) != NULL; i++)
		{
			Grants		grants = grants_of(privilege, (Node *) makeString(name), role);

			if (grants.by_owner)
				columns[grants.with_option] = lappend(columns[grants.with_option], makeString(name));
		}
	}
	run_grant(privilege, NIL, grantee, false, false);
	for (int i = 0; i < lengthof(columns); i++)
	{
		if (columns[i] != NIL)
			run_grant(privilege, columns[i], grantee, true, i == 1);
	}
}

static void
disallow_capability(const Capability *capability, Oid role, RoleSpec *grantee)
{
	ListCell   *lc;

	if (!has_capability(role, capability))
		return;
	foreach(lc, privileges_of(capability))
	{
		const Privilege *privilege = lfirst(lc);
		List	   *revoked = NIL;
		ListCell   *part;

		if (is_covered(privilege, role, capability))
			continue;
		foreach(part, parts_of(privilege))
		{
			if (!change_own(APITOKEN_REMOVE_OWN_PRIVILEGE, role, privilege, lfirst(part)))
				revoked = lappend(revoked, lfirst(part));
		}
		if (revoked == NIL)
			continue;
		if (privilege->columns_of == APITOKEN_TABLES)
			revoke_whole(privilege, grantee, role);
		else
			run_grant(privilege, revoked, grantee, false, false);
	}
	run_grant(&mark, list_make1(mark_of(capability)), grantee, false, false);
}

/*
 * Tell which privileges of a revoked capability the role still has: those that it
 * had before, and those that somebody else has granted.  If the whole capability
 * is left by a grant of another role, this is an error.
 */
static void
check_revoked(const Capability *capability, Oid role, const char *role_name)
{
	bool		whole = true;
	bool		by_other = false;
	char	   *remaining = NULL;
	Oid			grantor = InvalidOid;
	ListCell   *lc;

	foreach(lc, privileges_of(capability))
	{
		const Privilege *privilege = lfirst(lc);
		ListCell   *part;

		if (is_covered(privilege, role, NULL))
			continue;
		foreach(part, parts_of(privilege))
		{
			Grants		grants = grants_of(privilege, lfirst(part), role);

			if (!OidIsValid(grants.grantor))
				whole = false;
			else if (remaining == NULL || (grants.by_other && !by_other))
			{
				remaining = describe(privilege, lfirst(part));
				grantor = grants.grantor;
				by_other = grants.by_other;
			}
		}
	}
	if (remaining == NULL)
		return;
	ereport(whole && by_other ? ERROR : WARNING,
			(errcode(whole && by_other ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE : ERRCODE_WARNING_PRIVILEGE_NOT_REVOKED),
			 whole ? errmsg("role \"%s\" still has all privileges of capability \"%s\"", role_name, capability->name) :
			 errmsg("role \"%s\" still has privileges of capability \"%s\"", role_name, capability->name),
			 errdetail("Role \"%s\" has granted %s.", GetUserNameFromId(grantor, false), remaining),
			 errhint("Use REVOKE as that role.")));
}

static void
change_capabilities(FunctionCallInfo fcinfo, bool grant)
{
	RoleSpec   *grantee = makeNode(RoleSpec);
	List	   *names = NIL;
	ListCell   *lc;
	Oid			role;

	if (!apitoken_is_owner())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to change capabilities"),
				 errdetail("Only the owner of the extension's tables, role \"%s\", may change capabilities.",
						 GetUserNameFromId(apitoken_owner(), false))));
	/* before the lock */
	PreventCommandIfReadOnly(grant ? "apitoken.allow()" : "apitoken.disallow()");
	if (!PG_ARGISNULL(1) && !array_contains_nulls(PG_GETARG_ARRAYTYPE_P(1)))
		names = apitoken_strings_from_array(PG_GETARG_ARRAYTYPE_P(1));
	if (PG_ARGISNULL(0) || names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("database role and at least one capability must be specified"),
				 errhint("Use for example SELECT apitoken.%s('backend', 'act', 'verify').",
						 grant ? "allow" : "disallow")));

	/* check all names before anything is granted */
	foreach(lc, names)
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
	role = get_role_oid(grantee->rolename, false);

	/* one after the other: the second must see what the first has changed */
	apitoken_execute(APITOKEN_LOCK_OWN_PRIVILEGES, NULL, NULL);
	foreach(lc, names)
	{
		if (grant)
			allow_capability(find_capability(lfirst(lc)), role, grantee);
		else
			disallow_capability(find_capability(lfirst(lc)), role, grantee);
	}
	foreach(lc, names)
	{
		if (!grant)
			check_revoked(find_capability(lfirst(lc)), role, grantee->rolename);
	}
}

APITOKEN_FUNCTION_INFO_V1(apitoken_allow);
Datum
apitoken_allow(PG_FUNCTION_ARGS)
{
	change_capabilities(fcinfo, true);
	PG_RETURN_VOID();
}

APITOKEN_FUNCTION_INFO_V1(apitoken_disallow);
Datum
apitoken_disallow(PG_FUNCTION_ARGS)
{
	change_capabilities(fcinfo, false);
	PG_RETURN_VOID();
}
