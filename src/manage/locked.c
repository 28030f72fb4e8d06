/*
 * locked.c
 *		Owners that this transaction has locked already.
 *
 * Whoever makes a token locks its owner FOR KEY SHARE until the transaction
 * ends.  Once is enough, however many tokens it makes for that owner: nobody
 * else can delete a row that is locked.  What the transaction itself deletes
 * forgets it all (revoke.c), and what a subtransaction locked is forgotten
 * when that is rolled back, since the locks go then, too.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "manage/manage.h"

/* So many are remembered; others are locked again each time. */
#define LOCKED_MAX 10000

typedef struct Owner
{
	Oid			table;			/* another one after DROP and CREATE EXTENSION */
	char		id[APITOKEN_OWNER_ID_MAX + 1];	/* zeros after its end */
} Owner;

typedef struct LockedOwner
{
	Owner		owner;			/* hash key */
	ApitokenMade made;			/* in in_order */
} LockedOwner;

static HTAB *locked = NULL;		/* in TopTransactionContext */

/* The same, in the order in which they were locked: see subtransaction.c. */
static dlist_head in_order = DLIST_STATIC_INIT(in_order);

void
apitoken_forget_locked(void)
{
	if (locked != NULL)
		hash_destroy(locked);
	locked = NULL;
	dlist_init(&in_order);
}

static void
transaction_ended(XactEvent event, void *arg)
{
	/* the memory goes with the transaction */
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		locked = NULL;
		dlist_init(&in_order);
	}
}

static void
forget(ApitokenMade *made)
{
	LockedOwner *owner = dlist_container(LockedOwner, made.node, &made->node);

	dlist_delete(&made->node);
	hash_search(locked, &owner->owner, HASH_REMOVE, NULL);
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	apitoken_end_made(&in_order, event, subtransaction, parent, forget);
}

void
apitoken_locked_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

/* False: it has an id that no owner has. */
static bool
set_key(Owner *owner, ApitokenTable table, const char *id)
{
	if (strlen(id) > APITOKEN_OWNER_ID_MAX)
		return false;
	memset(owner, 0, sizeof(*owner));
	owner->table = apitoken_table(table);
	memcpy(owner->id, id, strlen(id));
	return true;
}

bool
apitoken_is_locked(ApitokenTable table, const char *id)
{
	Owner		owner;

	return locked != NULL && set_key(&owner, table, id) &&
		hash_search(locked, &owner, HASH_FIND, NULL) != NULL;
}

void
apitoken_note_locked(ApitokenTable table, const char *id)
{
	Owner		key;
	LockedOwner *owner;
	bool		found;

	if (!set_key(&key, table, id))
		return;
	if (locked == NULL)
	{
		HASHCTL		control = {0};

		control.keysize = sizeof(Owner);
		control.entrysize = sizeof(LockedOwner);
		control.hcxt = TopTransactionContext;
		locked = hash_create("apitoken owners", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (hash_get_num_entries(locked) >= LOCKED_MAX)
		return;
	owner = hash_search(locked, &key, HASH_ENTER, &found);
	if (found)
		return;
	apitoken_add_made(&in_order, &owner->made);
}
