/*
 * erase.c
 *		Erasure: forget_user() removes what the tables tell of a person.
 *
 * The user is deleted, as by DELETE FROM apitoken.users: personal tokens are
 * revoked and memberships end.  Then one pseudonym takes the place of the id in
 * all rows that stay.  It is random, so nobody can compute it from the id.  Names,
 * addresses and the texts of the user's personal tokens are removed.  Texts of an
 * organization's tokens belong to the organization.
 *
 * What remains of the id is a digest in deleted_users.  Without it, a session or
 * a JWT of the user that is still valid would bring the user back.
 *
 * No event names the user after the erasure.  It locks the user as actor first,
 * and waits for transactions that have written such an event.  Others cannot
 * write one until its end, and afterwards find that the user was forgotten (see
 * event.c).
 *
 * Use of the user's tokens may still be in shared memory.  A flush is kept from
 * writing its address and places between the erasure and its commit.  At the
 * commit, they are removed from shared memory.  The tokens are revoked, so no more
 * are recorded.  Those that a standby has recorded are left out when they arrive
 * (receive.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "manage/manage.h"

/*
 * The statements that erase, each from one table.  Their parameters are the id and
 * the pseudonym.  A new table with ids, names or addresses of users needs a
 * statement in write.c, and a line here.
 */
static const ApitokenStatement erasures[] = {
	APITOKEN_ERASE_DELETED,
	APITOKEN_ERASE_TOKENS,
	APITOKEN_ERASE_EVENTS,
	APITOKEN_ERASE_RECIPIENT,
	APITOKEN_ERASE_NOTIFICATIONS,
	APITOKEN_ERASE_USAGE,
	APITOKEN_ERASE_SEEN,
	APITOKEN_ERASE_NETWORKS,
};

/*
 * The personal tokens of users whom this transaction has forgotten, in
 * TopTransactionContext.  After a ROLLBACK TO SAVEPOINT, what is not
 * written yet may be lost.
 */
typedef struct Forgotten
{
	int			count;
	pg_uuid_t	ids[FLEXIBLE_ARRAY_MEMBER];
} Forgotten;

static List *forgotten_tokens = NIL;

static void
xact_callback(XactEvent event, void *arg)
{
	ListCell   *lc;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_PREPARE && event != XACT_EVENT_ABORT)
		return;
	if (event != XACT_EVENT_ABORT)
	{
		foreach(lc, forgotten_tokens)
		{
			Forgotten  *forgotten = lfirst(lc);

			apitoken_forget_places(MyDatabaseId, forgotten->ids, forgotten->count);
		}
	}
	forgotten_tokens = NIL;
}

/* Remove the addresses and places in shared memory when this transaction commits. */
static void
forget_places_at_commit(Datum pseudonym)
{
	static bool registered = false;
	Datum		found = (Datum) 0;
	Datum	   *ids;
	int			count;
	Forgotten  *forgotten;
	MemoryContext context;

	if (apitoken_shared == NULL)
		return;
	(void) apitoken_execute_value(APITOKEN_FORGOTTEN_TOKENS, &pseudonym, NULL, &found);
	if (found == (Datum) 0)
		return;
	deconstruct_array(DatumGetArrayTypeP(found), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &ids, NULL, &count);
	if (!registered)
		RegisterXactCallback(xact_callback, NULL);
	registered = true;
	context = MemoryContextSwitchTo(TopTransactionContext);
	forgotten = MemoryContextAllocHuge(TopTransactionContext, offsetof(Forgotten, ids) + count * sizeof(pg_uuid_t));
	forgotten->count = count;
	for (int i = 0; i < count; i++)
		forgotten->ids[i] = *DatumGetUUIDP(ids[i]);
	forgotten_tokens = lappend(forgotten_tokens, forgotten);
	MemoryContextSwitchTo(context);
}

static Datum
new_pseudonym(void)
{
	uint8		random[16];
	char		hex[2 * sizeof(random) + 1] = {0};

	apitoken_check_random(pg_strong_random(random, sizeof(random)));
	hex_encode((const char *) random, sizeof(random), hex);
	return CStringGetTextDatum(psprintf("forgotten-%s", hex));
}

/* The event has no actor: nobody is acting. */
static void
write_event(Datum pseudonym)
{
	inet	   *address = apitoken_client_address(NULL);
	NameData	login;
	pg_uuid_t	id;
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', address == NULL ? 'n' : ' '};

	apitoken_check_random(apitoken_generate_id(&id));
	namestrcpy(&login, GetUserNameFromId(GetSessionUserId(), false));
	values[0] = UUIDPGetDatum(&id);
	values[1] = pseudonym;
	values[2] = NameGetDatum(&login);
	values[3] = InetPGetDatum(address);
	apitoken_execute(APITOKEN_FORGOTTEN, values, nulls);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_forget_user);
Datum
apitoken_forget_user(PG_FUNCTION_ARGS)
{
	char	   *user_id = PG_ARGISNULL(0) ? pstrdup("") : text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum		values[2];
	Datum		mark;
	uint64		changed;

	PreventCommandDuringRecovery("apitoken.forget_user()");
	PreventCommandIfReadOnly("apitoken.forget_user()");
	PreventCommandIfParallelMode("apitoken.forget_user()");
	apitoken_require_triggers("forget users");
	apitoken_check_id("user", user_id);
	/* the holder of a token, or a user, must not be able to erase what the audit tells of them */
	if (apitoken_principal() != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot forget users while a user or token is acting"),
				 errhint("Call apitoken.forget_user() in a transaction of its own, without authenticate() and act_as().")));

	(void) apitoken_lock_actor(user_id, ExclusiveLock, true);
	values[0] = CStringGetTextDatum(user_id);
	values[1] = new_pseudonym();
	changed = apitoken_execute(APITOKEN_DELETE_USER, values, NULL);
	/* again, for a user without a row */
	changed += apitoken_end_owner(true, values[0]);
	for (int i = 0; i < lengthof(erasures); i++)
	{
		/* only now, because no use is written to the tables from here to the end of the transaction */
		if (erasures[i] == APITOKEN_ERASE_USAGE)
			(void) apitoken_lock_usage();
		changed += apitoken_execute(erasures[i], values, NULL);
	}
	mark = CStringGetTextDatum(apitoken_forgotten_mark(user_id));
	apitoken_execute(APITOKEN_MARK_FORGOTTEN, &mark, NULL);
	if (changed == 0)
		PG_RETURN_BOOL(false);
	/* nobody acts as the pseudonym, either */
	apitoken_execute(APITOKEN_REMEMBER_DELETED, &values[1], NULL);
	forget_places_at_commit(values[1]);
	write_event(values[1]);
	PG_RETURN_BOOL(true);
}
