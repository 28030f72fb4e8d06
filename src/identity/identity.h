/*
 * identity.h
 *		The identity of a transaction, and the permissions of users and tokens.
 */
#ifndef APITOKEN_IDENTITY_H
#define APITOKEN_IDENTITY_H

#include "usage/usage.h"

/* ----- principal.c: what a principal may do, and where ----- */

typedef enum ApitokenSource
{
	APITOKEN_SOURCE_TOKEN,
	APITOKEN_SOURCE_USER
} ApitokenSource;

typedef struct ApitokenPrincipal
{
	ApitokenSource source;
	ApitokenKind kind;
	char	   *organization_id;	/* owner of the token; NULL with APITOKEN_USER */
	char	   *user_id;		/* the acting user, or the owner of the personal token;
								 * NULL with APITOKEN_ORGANIZATION */
	/* columns of the token, with APITOKEN_SOURCE_TOKEN only: */
	pg_uuid_t	token_id;
	char	   *role;
	ApitokenAccess access;
	List	   *permissions;
	TimestampTz issued_at;
	TimestampTz expires_at;
	/* of the secret that was presented; only in the identity of the transaction */
	uint8		digest[APITOKEN_DIGEST_LENGTH];
} ApitokenPrincipal;

/*
 * The role and groups of a principal in one place: in an organization, or among
 * a user's own things.  It is read from the tables each time.
 */
typedef struct ApitokenStanding
{
	bool		suspended;		/* the owner is suspended, or has no row and needs one */
	bool		policy_refused; /* the policy of the organization refuses the token */
	bool		tells_networks; /* the owner wants to be told of new networks of the token */
	ArrayType  *allowed_networks;	/* of an organization for its tokens; NULL: not restricted */
	char	   *role;			/* NULL: none */
	List	   *role_patterns;	/* not yet narrowed by access; NIL: nothing is allowed */
	char	   *database_role;	/* of the role; NULL: none */
	ArrayType  *groups;			/* NULL: none */
} ApitokenStanding;

extern void apitoken_principal_of_token(const ApitokenRecord *record, ApitokenPrincipal *principal);
extern bool apitoken_lifetime_allowed(const ApitokenOrganizationRow *organization,
									  TimestampTz issued_at, TimestampTz expires_at);
extern bool apitoken_same_principal(const ApitokenPrincipal *a, const ApitokenPrincipal *b);
extern bool apitoken_user_needs_no_row(Snapshot snapshot, const char *user_id);
extern void apitoken_standing(const ApitokenPrincipal *principal, const char *organization_id,
							  Snapshot snapshot, ApitokenStanding *standing);
extern bool apitoken_standing_allows(const ApitokenPrincipal *principal, const ApitokenStanding *standing,
									 const char *permission);
extern List *apitoken_effective_patterns(const ApitokenPrincipal *principal,
										 const ApitokenStanding *standing);
extern bool apitoken_may(const ApitokenPrincipal *principal, const char *permission,
						 const char *organization_id);
extern List *apitoken_organizations_where(const ApitokenPrincipal *principal, List *permissions);
extern const char *apitoken_active_user(const ApitokenPrincipal *principal);
extern const char *apitoken_manageable_user(const ApitokenPrincipal *principal, List *permissions);
extern List *apitoken_own_patterns(const ApitokenPrincipal *principal);
extern List *apitoken_token_patterns(const ApitokenRecord *record);

/* ----- foreign.c: texts of tokens that other systems made ----- */

extern void apitoken_seal(const ApitokenForeign *row, const char *format, const ApitokenPepper *pepper,
						  uint8 seal[APITOKEN_DIGEST_LENGTH]);
extern bool apitoken_has_imported_shape(const char *text, size_t length);
extern char *apitoken_imported_shapes(const char *text, size_t length);
extern int	apitoken_find_imported(const char *text, size_t length, Snapshot snapshot, ApitokenRecord *record,
								   bool *has_fast, ApitokenFastDigest *fast);

/* ----- verify.c: verification of tokens ----- */

typedef struct ApitokenVerification
{
	ApitokenVerdict verdict;
	TimestampTz at;				/* time of the verification; not set with APITOKEN_MALFORMED */
	ApitokenAllowance allowance;	/* of a rate limit and a quota, after apitoken_use() */
	TimestampTz secret_ends_at;	/* end of the overlap for the previous secret, otherwise the
								 * token's expiry */
	const char *organization_id;	/* where the token is to act; NULL: not said */
	int			secret;			/* 0: the current secret; n: the n-th previous one.  With
								 * APITOKEN_UNKNOWN, n is one whose overlap is over. */
	ApitokenRecord record;		/* not with APITOKEN_MALFORMED; with APITOKEN_UNKNOWN only
								 * if secret is not 0 */
	ApitokenStanding standing;	/* with APITOKEN_VALID */
	List	   *patterns;		/* effective patterns, with APITOKEN_VALID */
	bool		has_fast_digest;	/* the token is imported, and this one is to be stored */
	ApitokenFastDigest fast_digest;
} ApitokenVerification;

/* A step of a decision. */
typedef struct ApitokenStep
{
	ApitokenVerdict verdict;	/* the decision if it is not passed */
	bool		passed;
	char	   *saw;
} ApitokenStep;

/* A verdict as verdicts.h describes it. */
typedef struct ApitokenVerdictInfo
{
	const char *name;
	bool		known;			/* the secret is right */
	int			http_status;
} ApitokenVerdictInfo;

extern const ApitokenVerdictInfo apitoken_verdicts[APITOKEN_VERDICTS];
extern void apitoken_verify(const char *text, size_t length, const char *permission,
							const char *organization_id, inet *address,
							ApitokenVerification *verification);
extern void apitoken_verify_datum(Datum token, bool isnull, const char *permission,
								  const char *organization_id, inet *address,
								  ApitokenVerification *verification);
extern void apitoken_verify_in_steps(Datum token, bool isnull, const char *permission,
									 const char *organization_id, inet *address,
									 Snapshot snapshot, List **steps,
									 ApitokenVerification *verification);
extern ApitokenVerdict apitoken_decide_again(const ApitokenRecord *record, Snapshot snapshot);
extern void apitoken_explain_use(ApitokenVerification *verification, List **steps);
extern void apitoken_use(ApitokenVerification *verification, int32 cost, inet *address, bool may_write);
extern Datum apitoken_verification_datum(const ApitokenVerification *verification);

/* ----- identity.c: the identity of the transaction ----- */

extern uint64 apitoken_identity_generation;
extern uint64 apitoken_identity_changes;
extern uint64 apitoken_read_only_commits;
extern void apitoken_identity_init(void);
extern void apitoken_sync_identity(void);
extern void apitoken_enforce_read_only(void);
extern const ApitokenPrincipal *apitoken_principal(void);
extern bool apitoken_principal_read_only(void);
extern bool apitoken_identity_is_fixed(void);
extern void apitoken_require_valid(const ApitokenVerification *verification);
extern void apitoken_act_by(const ApitokenVerification *verification);

/* ----- authorize.c: which tokens the caller may manage ----- */

extern bool apitoken_may_manage(const ApitokenRecord *record, const char *permission);
extern void apitoken_check_ceiling(const ApitokenRecord *record, Snapshot snapshot);
extern pg_noreturn void apitoken_refuse(void);
extern void apitoken_check_rotation(const ApitokenRecord *record, Snapshot snapshot);
extern void apitoken_fetch_managed(const pg_uuid_t *id, const char *permission, bool *by_itself,
								   ApitokenRecord *record);

/* ----- policy.c: functions of the row policies ----- */

extern bool apitoken_sees_all(ApitokenTable table);

/* ----- condition.c: what the planner is told about a policy ----- */

extern Node *apitoken_required_value(struct PlannerInfo *root, Node *expression);
extern Node *apitoken_index_condition(struct PlannerInfo *root, FuncExpr *call, int number,
									  struct IndexOptInfo *index, int column);
extern bool apitoken_limits_rows(Oid function);

/* ----- plan.c: the paths of tables with policies ----- */

extern void apitoken_plan_init(void);

/* ----- merge.c: rows of several owners in order ----- */

extern void apitoken_merge_init(void);
extern void apitoken_add_merge_paths(struct PlannerInfo *root, struct RelOptInfo *rel, List *policies, List *usable);

#endif							/* APITOKEN_IDENTITY_H */
