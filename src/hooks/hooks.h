/*
 * hooks.h
 *		The server's hooks.  They keep the identity and READ ONLY in force, and
 *		mask token texts.
 */
#ifndef APITOKEN_HOOKS_H
#define APITOKEN_HOOKS_H

#include "identity/identity.h"

/* ----- redact.c: masking of token texts in the log and in displayed statements ----- */

extern void apitoken_redact_activity(void);
extern const char *apitoken_redacted(const char *text, int location, int length);
extern void apitoken_redact_init(void);

/* ----- guard.c: hooks that keep the identity and READ ONLY in force ----- */

extern void apitoken_guard_init(void);

/* ----- upsert.c: refuses ON CONFLICT for tokens ----- */

extern void apitoken_upsert_init(void);

/* ----- status.c: the HTTP status of an error ----- */

extern void apitoken_status_init(void);

#endif							/* APITOKEN_HOOKS_H */
