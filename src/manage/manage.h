/*
 * manage.h
 *		Creation, change, listing and revocation of tokens; the directory of
 *		organizations, users and roles; capabilities.
 */
#ifndef APITOKEN_MANAGE_H
#define APITOKEN_MANAGE_H

#include "access/xact.h"
#include "lib/ilist.h"

#include "identity/identity.h"

/* ----- secret.c: texts of tokens created in this transaction ----- */

extern void apitoken_secret_init(void);
extern void apitoken_keep_text(const pg_uuid_t *id, const char *text);
extern text *apitoken_take_text(const pg_uuid_t *id);
extern bool apitoken_made_here(const pg_uuid_t *id);
extern pg_uuid_t *apitoken_capture_new_id(pg_uuid_t *target);

/* ----- locked.c: owners that this transaction has locked ----- */

extern void apitoken_locked_init(void);
extern bool apitoken_is_locked(ApitokenTable table, const char *id);
extern void apitoken_remember_locked(ApitokenTable table, const char *id);
extern void apitoken_forget_locked(void);

/* ----- validate.c: checks of a token's columns ----- */

#define APITOKEN_FROM_EVERYWHERE "Specify null for a token that is accepted from every address."

extern HeapTuple apitoken_canonical_row(HeapTuple tuple, TupleDesc descriptor);
extern void apitoken_check_label(char *label);
extern void apitoken_check_description(char *description);
extern void apitoken_check_reason(char *reason);
extern char *apitoken_without_secrets(Datum string, int max);
extern void apitoken_check_role_name(char *name);
extern void apitoken_check_expiry(TimestampTz expires_at, bool may_be_past);
extern TimestampTz apitoken_expiry_after(Interval *expires_in);
extern TimestampTz apitoken_overlap_until(Interval *overlap);
extern void apitoken_check_lifetime(const ApitokenOrganizationRow *organization,
									TimestampTz issued_at, TimestampTz expires_at);
extern TimestampTz apitoken_plus_interval(TimestampTz start, Interval *interval);
extern void apitoken_lock_organization(const char *id);
extern void apitoken_lock_role(const char *role);
extern void apitoken_check_role(const char *role);
extern void apitoken_check_access(const char *access, ArrayType *permissions);
extern void apitoken_check_known(ArrayType *patterns, int elevel);
extern void apitoken_check_networks(ArrayType *networks, const char *none);
extern void apitoken_check_rate_limit(int32 limit);
extern void apitoken_check_quota(HeapTuple tuple, TupleDesc descriptor);
extern void apitoken_check_metadata(Datum metadata);
extern void apitoken_check_label_free(const ApitokenRecord *record, Snapshot snapshot);

/* ----- notify.c: the outbox ----- */

extern void apitoken_notify_init(void);
extern void apitoken_notify(Datum ids, Datum tokens, Datum actor, bool no_actor, const inet *address, const char *event);
extern void apitoken_notify_leak(const pg_uuid_t *id, Datum token, Datum actor, bool no_actor, const inet *address,
								 TimestampTz at, Datum leak);

/* ----- event.c: the audit ----- */

extern void apitoken_event_init(void);
extern void apitoken_write_leak(Datum token, Datum leak);
extern void apitoken_check_actor(const char *user_id);

/* ----- issue.c: creation of tokens ----- */

/* of an organization that has no default role */
#define APITOKEN_DEFAULT_ROLE "developer"

extern void apitoken_check_random(bool generated);
extern void apitoken_lock_owner(const ApitokenRecord *record);
extern Datum apitoken_issued_datum(const pg_uuid_t *id, text *token, const char *masked,
								   TimestampTz expires_at);

/* ----- edit.c: changes of tokens ----- */

extern TimestampTz apitoken_check_policy(const ApitokenRecord *record, TimestampTz issued_at,
										 TimestampTz expires_at, Snapshot snapshot);

/* ----- revoke.c: revocation of tokens ----- */

extern bool apitoken_revoke_one(const pg_uuid_t *id, Datum reason, char reason_null);
extern uint64 apitoken_end_owner(bool of_user, Datum id);

/* ----- subtransaction.c: lists whose entries end with their subtransaction ----- */

/* The first part of an entry: the subtransaction that made it. */
typedef struct ApitokenMade
{
	dlist_node	node;
	SubTransactionId subtransaction;
} ApitokenMade;

extern void apitoken_add_made(dlist_head *in_order, ApitokenMade *made);
extern void apitoken_end_made(dlist_head *in_order, SubXactEvent event, SubTransactionId subtransaction,
							  SubTransactionId parent, void (*forget) (ApitokenMade *made));

#endif							/* APITOKEN_MANAGE_H */
