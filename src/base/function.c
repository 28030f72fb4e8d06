/*
 * function.c
 *		The extension's functions, and who may execute them.
 *
 * The capabilities act and verify are the privilege to execute the function of
 * that name.  Their OIDs are cached for the session, and dropped when any
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
static Oid	verify_function = InvalidOid;

static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	act_as_function = InvalidOid;
	verify_function = InvalidOid;
}

void
apitoken_function_init(void)
{
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
}

/*
 * A function, without asking whether the caller has USAGE on its schema;
 * InvalidOid: there is none.
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

static bool
role_may(Oid role, Oid *function, const char *name, int nargs, const Oid *args)
{
	if (!OidIsValid(*function))
		*function = apitoken_find_function("apitoken", name, nargs, args);
	return OidIsValid(*function) && compat_may_execute(*function, role);
}

/* Does this role hold the capability act? */
bool
apitoken_role_may_act(Oid role)
{
	static const Oid args[] = {TEXTOID};

	return role_may(role, &act_as_function, "act_as", lengthof(args), args);
}

/* Does the session user speak for clients: does it hold act or verify? */
bool
apitoken_session_may_vouch(void)
{
	static const Oid args[] = {TEXTOID, TEXTOID, TEXTOID, INETOID};

	return apitoken_role_may_act(GetSessionUserId()) ||
		role_may(GetSessionUserId(), &verify_function, "verify", lengthof(args), args);
}
