/*
 * extension.c
 *		The version of the installed extension must be that of this library.
 *
 * The library may be newer, because CREATE EXTENSION or ALTER EXTENSION UPDATE has
 * yet to follow, or older, because the session loaded it before.  A function could
 * then read arguments or columns that do not exist.  So the version is checked when
 * the server looks up a function of this library: once in a session, and again
 * whenever the function changes in the catalog.  It is also checked whenever
 * catalog.c looks up the tables.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

#include "base/base.h"

/* Returns the installed version of the extension, or NULL. */
static char *
installed_version(Oid extension)
{
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(relation, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(relation), &isnull);

		if (!isnull)
			version = TextDatumGetCString(datum);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return version;
}

/* Does a script of the extension run?  It goes through all versions up to the one that is asked for. */
bool
apitoken_in_script(Oid extension)
{
	return creating_extension && CurrentExtensionObject == extension;
}

/*
 * Raise an error if the version of the extension is not the library's.  pg_upgrade
 * creates the functions of the old version with the new library, and calls none.
 */
void
apitoken_require_version(Oid extension)
{
	char	   *version;

	if (IsBinaryUpgrade || apitoken_in_script(extension))
		return;
	version = installed_version(extension);
	if (version == NULL || strcmp(version, APITOKEN_VERSION) != 0)
		ereport_server(
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"apitoken\" has version %s, but its library has version %s",
						version == NULL ? "none" : version, APITOKEN_VERSION),
				 errhint("Run ALTER EXTENSION apitoken UPDATE.  If the library is the older one, connect again; "
						 "if it is in shared_preload_libraries, restart the server.")));
}

/* The server looks up a function of this library. */
const Pg_finfo_record *
apitoken_function_info(void)
{
	static const Pg_finfo_record info = {1};
	Oid			extension = get_extension_oid("apitoken", true);

	if (OidIsValid(extension))
		apitoken_require_version(extension);
	return &info;
}
