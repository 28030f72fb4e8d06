/*
 * identity.h
 *		Who is acting, and what they may do.
 */
#ifndef APITOKEN_IDENTITY_H
#define APITOKEN_IDENTITY_H

#include "usage/usage.h"

/* ----- principal.c: who may do what where ----- */

typedef enum ApitokenSource
{
	APITOKEN_SOURCE_TOKEN,
	APITOKEN_SOURCE_USER
} ApitokenSource;

typedef struct ApitokenPrincipal
{
	ApitokenSource source;
	ApitokenKind kind;
	char	   *organization_id;	/* an organization's token's */
	char	   *user_id;		/* a user's, or a personal token's */
	pg_uuid_t	token_id;		/* with APITOKEN_SOURCE_TOKEN, as are: */
	char	   *role;
	ApitokenAccess access;
	List	   *permissions;
} ApitokenPrincipal;

/* What a principal is in one place, read anew each time. */
typedef struct ApitokenStanding
{
	bool		suspended;		/* the owner is, or is gone */
	char	   *role;			/* NULL: none */
	List	   *role_patterns;	/* before they are narrowed; NIL: may do nothing */
	char	   *database_role;	/* the role's; NULL: none */
	ArrayType  *groups;			/* NULL: none */
} ApitokenStanding;

extern void apitoken_principal_of_token(const ApitokenRecord *record, ApitokenPrincipal *principal);
extern bool apitoken_same_principal(const ApitokenPrincipal *a, const ApitokenPrincipal *b);
extern void apitoken_standing(const ApitokenPrincipal *principal, const char *organization_id,
							  Snapshot snapshot, ApitokenStanding *standing);
extern bool apitoken_standing_allows(const ApitokenPrincipal *principal, const ApitokenStanding *standing,
									 const char *permission);
extern List *apitoken_effective_patterns(const ApitokenPrincipal *principal,
										 const ApitokenStanding *standing);
extern bool apitoken_may(const ApitokenPrincipal *principal, const char *permission,
						 const char *organization_id);
extern List *apitoken_organizations_where(const ApitokenPrincipal *principal, List *permissions);
extern const char *apitoken_managed_user_of(const ApitokenPrincipal *principal, List *permissions);
extern List *apitoken_own_patterns(const ApitokenPrincipal *principal);
extern List *apitoken_token_patterns(const ApitokenRecord *record);

/* ----- verify.c: facts in, verdict out ----- */

typedef struct ApitokenVerification
{
	ApitokenVerdict verdict;
	TimestampTz at;				/* when; not with APITOKEN_MALFORMED */
	int64		retry_after;	/* with APITOKEN_RATE_LIMITED: microseconds; 0: not known */
	TimestampTz secret_ends_at;	/* the previous secret's overlap, or as the token's expiry */
	ApitokenRecord record;		/* from APITOKEN_REVOKED on, and when valid */
	ApitokenStanding standing;	/* when valid, as are: */
	List	   *patterns;		/* effective patterns */
} ApitokenVerification;

/* What verdicts.h says of each verdict. */
typedef struct ApitokenVerdictInfo
{
	const char *name;
	bool		known;			/* the secret was right */
	int			http_status;
} ApitokenVerdictInfo;

extern const ApitokenVerdictInfo apitoken_verdicts[APITOKEN_VERDICTS];
extern void apitoken_verify(const char *text, size_t length, const char *permission,
							const char *organization_id, inet *address,
							ApitokenVerification *verification);
extern void apitoken_verify_datum(Datum token, bool isnull, const char *permission,
								  const char *organization_id, inet *address,
								  ApitokenVerification *verification);
extern void apitoken_use(ApitokenVerification *verification, inet *address, bool may_write);
extern Datum apitoken_verification_datum(const ApitokenVerification *verification);

/* ----- identity.c: who is acting in this transaction ----- */

extern uint64 apitoken_identity_generation;
extern void apitoken_identity_init(void);
extern void apitoken_sync_identity(void);
extern void apitoken_enforce_read_only(void);
extern const ApitokenPrincipal *apitoken_principal(void);
extern bool apitoken_principal_read_only(void);
extern void apitoken_act_by(const ApitokenVerification *verification);

/* ----- authorize.c: who may manage which token ----- */

extern bool apitoken_may_manage(const ApitokenRecord *record, const char *permission);
extern void apitoken_check_ceiling(const ApitokenRecord *record, Snapshot snapshot);
extern pg_noreturn void apitoken_refuse(void);
extern void apitoken_fetch_managed(const pg_uuid_t *id, const char *permission, ApitokenRecord *record);

#endif							/* APITOKEN_IDENTITY_H */
