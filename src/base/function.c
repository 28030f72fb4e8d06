/*
 * function.c
 *		Look up functions of the extension, and check the capabilities of roles.
 *
 * A role has the capability act, use or verify if it may execute
 * apitoken.act_as(), apitoken.authenticate() or apitoken.verify().  The OIDs of
 * these functions are cached for the session.  The cache is cleared whenever a
 * function changes.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "base/base.h"

static Oid	act_as_function = InvalidOid;
static Oid	authenticate_function = InvalidOid;
static Oid	verify_function = InvalidOid;

static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	act_as_function = InvalidOid;
	authenticate_function = InvalidOid;
	verify_function = InvalidOid;
}

void
apitoken_function_init(void)
{
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
}

/*
 * Look up a function without checking for USAGE on its schema.  Returns
 * InvalidOid if it does not exist.
 */
Oid
apitoken_find_function(const char *schema, const char *name, int nargs, const Oid *args)
{
	oidvector  *types = buildoidvector(args, nargs);
	Oid			function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
										   CStringGetDatum(name),
										   PointerGetDatum(types),
										   ObjectIdGetDatum(get_namespace_oid(schema, true)));

	pfree(types);
	return function;
}

/* In the argument types of a function: the type apitoken.id. */
#define ID_TYPE InvalidOid

static bool
role_may_execute(Oid role, Oid *function, const char *name, int nargs, const Oid *args)
{
	if (!OidIsValid(*function))
	{
		Oid			types[FUNC_MAX_ARGS];

		for (int i = 0; i < nargs; i++)
			types[i] = args[i] != ID_TYPE ? args[i] :
				GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("id"),
								ObjectIdGetDatum(get_namespace_oid("apitoken", true)));
		*function = apitoken_find_function("apitoken", name, nargs, types);
	}
	return OidIsValid(*function) && compat_may_execute(*function, role);
}

/* Does this role have the capability act? */
bool
apitoken_role_may_act(Oid role)
{
	static const Oid args[] = {ID_TYPE};

	return role_may_execute(role, &act_as_function, "act_as", lengthof(args), args);
}

/* Does this role have the capability use? */
bool
apitoken_role_may_use(Oid role)
{
	static const Oid args[] = {TEXTOID};

	return role_may_execute(role, &authenticate_function, "authenticate", lengthof(args), args);
}

/* May this role speak for clients?  It must have the capability act or verify. */
bool
apitoken_role_is_trusted(Oid role)
{
	static const Oid args[] = {TEXTOID, TEXTOID, ID_TYPE, INETOID, INT4OID};

	return apitoken_role_may_act(role) ||
		role_may_execute(role, &verify_function, "verify", lengthof(args), args);
}

bool
apitoken_session_is_trusted(void)
{
	return apitoken_role_is_trusted(GetSessionUserId());
}

/*
 * Does a setting that this role has set count in this session?  Functions of
 * other roles may run in the session: in ANALYZE, in the cascade of a foreign
 * key, in a trigger, or as SECURITY DEFINER.  Such a function must not lend the
 * session what its owner could not do: the owner needs the capability itself.
 */
bool
apitoken_setter_counts(Oid setter, bool (*has_capability) (Oid role))
{
	return setter == GetSessionUserId() || setter == GetOuterUserId() || has_capability(setter);
}
