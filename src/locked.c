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

#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "apitoken.h"

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
	dlist_node	node;			/* in in_order */
	SubTransactionId subtransaction;
} LockedOwner;

static HTAB *locked = NULL;		/* in TopTransactionContext */

/* The same, in the order in which they were locked: see secret.c. */
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
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	dlist_iter	iter;

	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		dlist_reverse_foreach(iter, &in_order)
		{
			LockedOwner *owner = dlist_container(LockedOwner, node, iter.cur);

			if (owner->subtransaction != subtransaction)
				break;
			owner->subtransaction = parent;
		}
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (!dlist_is_empty(&in_order))
		{
			LockedOwner *owner = dlist_tail_element(LockedOwner, node, &in_order);

			if (owner->subtransaction != subtransaction)
				break;
			dlist_delete(&owner->node);
			hash_search(locked, &owner->owner, HASH_REMOVE, NULL);
		}
	}
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
	owner->subtransaction = GetCurrentSubTransactionId();
	dlist_push_tail(&in_order, &owner->node);
}
