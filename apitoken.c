/*
 * apitoken.c
 *		Module entry: installs settings, callbacks and hooks.
 *
 * The module is loaded by shared_preload_libraries, by
 * session_preload_libraries, or by the first call of one of its functions.  The
 * hooks take effect when it is loaded.  With a preload, that is before the first
 * statement of a session.
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
	apitoken_plan_init();
	apitoken_secret_init();
	apitoken_locked_init();
	apitoken_event_init();
	apitoken_notify_init();
	apitoken_guard_init();
	apitoken_upsert_init();

	/* after guard.c, whose errors it sees */
	apitoken_status_init();

	/* This must follow the other hooks: of hooks on the same event, the last one installed runs first. */
	apitoken_redact_init();

	/* The servers that pg_upgrade starts verify no tokens, and must not be written to. */
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
	{
		apitoken_shared_init();
		apitoken_usage_file_init();
		apitoken_worker_init();
	}
}
