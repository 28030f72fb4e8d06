/*
 * check.c
 *		What check_setup() needs to know and SQL cannot see: the versions of the
 *		library and of the installed files, whether the pepper file can be used, and
 *		what is wrong with apitoken.primary_conninfo, which others may not see.
 *
 * The checks themselves are in apitoken--1.0.sql.  They are SQL, and read the
 * catalogs with the caller's privileges.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "manage/manage.h"

/* Column numbers. */
enum
{
	LIBRARY_VERSION,
	INSTALLED_VERSION,
	PEPPERS,
	PEPPER_PROBLEM,
	PEPPER_HINT,
	SENDS,
	CONNINFO_FAULT,
	COLUMNS
};

/*
 * The numbers of the peppers, or NIL.  If tokens cannot be made, or imported ones
 * cannot be verified, because of a setting or the pepper file, sets `error` to the
 * reason.  Its message names no path, because anybody may see it: see pepper.c.
 * Nothing has to be cleaned up after these errors.  Others, such as a cancel, are
 * raised.
 */
static List *
pepper_schemes(ErrorData **error)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *volatile schemes = NIL;

	*error = NULL;
	PG_TRY();
	{
		schemes = apitoken_pepper_schemes();
		/* without its key, each text that has the shape of the format is an error */
		for (int i = 0; i < apitoken_imported_formats_count; i++)
		{
			if (apitoken_imported_formats[i]->secret != NULL)
				(void) apitoken_key(apitoken_imported_formats[i]->secret);
		}
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		*error = CopyErrorData();
		if ((*error)->sqlerrcode == ERRCODE_OUT_OF_MEMORY ||
			ERRCODE_TO_CATEGORY((*error)->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return schemes;
}

/*
 * The default version in the extension's control file, or NULL.  The view
 * pg_available_extensions has it, too, but fails if the control file of any
 * extension has a fault.  PostgreSQL 18 and later search extension_control_path.
 */
static char *
installed_version(void)
{
	const char *path = GetConfigOption("extension_control_path", true, false);
	char	   *rest = pstrdup(path == NULL ? "$system" : path);
	char	   *folder;
	char		system[MAXPGPATH];
	FILE	   *file = NULL;
	char	   *name = NULL;
	char	   *version = NULL;
	ConfigVariable *first = NULL;
	ConfigVariable *last = NULL;

	get_share_path(my_exec_path, system);
	while (file == NULL && (folder = strsep(&rest, ":")) != NULL)
	{
		if (strncmp(folder, "$system", strlen("$system")) == 0)
			folder = psprintf("%s%s", system, folder + strlen("$system"));
		name = psprintf("%s/extension/apitoken.control", folder);
		file = AllocateFile(name, "r");
	}
	if (file == NULL)
		return NULL;
	(void) ParseConfigFp(file, name, 0, DEBUG1, &first, &last);
	FreeFile(file);
	for (ConfigVariable *item = first; item != NULL; item = item->next)
		if (strcmp(item->name, "default_version") == 0)
			version = item->value;
	return version;
}

/* Without APITOKEN_FUNCTION_INFO_V1, because it tells the library's version.  It has no arguments. */
PG_FUNCTION_INFO_V1(apitoken_read_setup);
Datum
apitoken_read_setup(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor = apitoken_result_type(fcinfo, COLUMNS);
	Datum		values[COLUMNS] = {0};
	bool		nulls[COLUMNS] = {0};
	char	   *version = installed_version();
	const char *fault = apitoken_conninfo_fault();
	ErrorData  *error;
	List	   *schemes = pepper_schemes(&error);
	Datum	   *numbers = palloc((list_length(schemes) + 1) * sizeof(Datum));
	ListCell   *lc;

	foreach(lc, schemes)
		numbers[foreach_current_index(lc)] = Int16GetDatum(lfirst_int(lc));
	values[LIBRARY_VERSION] = CStringGetTextDatum(APITOKEN_VERSION);
	nulls[INSTALLED_VERSION] = version == NULL;
	if (version != NULL)
		values[INSTALLED_VERSION] = CStringGetTextDatum(version);
	values[PEPPERS] = PointerGetDatum(construct_array(numbers, list_length(schemes), INT2OID, sizeof(int16), true, TYPALIGN_SHORT));
	if (error == NULL)
		nulls[PEPPER_PROBLEM] = true;
	else
		values[PEPPER_PROBLEM] = CStringGetTextDatum(error->message);
	if (error == NULL || error->hint == NULL)
		nulls[PEPPER_HINT] = true;
	else
		values[PEPPER_HINT] = CStringGetTextDatum(error->hint);
	values[SENDS] = BoolGetDatum(apitoken_sends(NULL));
	nulls[CONNINFO_FAULT] = fault == NULL;
	if (fault != NULL)
		values[CONNINFO_FAULT] = CStringGetTextDatum(fault);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls)));
}
