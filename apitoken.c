/*
 * apitoken.c
 *		Entry of the module: settings, callbacks and hooks.
 *
 * Loaded by the first call of one of its functions, by
 * session_preload_libraries, or by shared_preload_libraries.  The hooks work
 * from then on: with a preload from the first statement of a session.
 *
 * Copyright (c) 2026, the apitoken authors
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "hooks/hooks.h"
#include "manage/manage.h"

APITOKEN_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	apitoken_guc_init();
	apitoken_function_init();
	apitoken_catalog_init();
	apitoken_identity_init();
	apitoken_secret_init();
	apitoken_locked_init();
	apitoken_guard_init();

	/* last: of the hooks that both have, the one installed last runs first */
	apitoken_redact_init();

	/* pg_upgrade's servers verify nothing, and must not be written to */
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
	{
		apitoken_shared_init();
		apitoken_usage_file_init();
		apitoken_worker_init();
	}
}
