/*
 * locked.c
 *		Owners that this transaction has already locked.
 *
 * The creation of a token locks its owner FOR KEY SHARE until the transaction
 * ends.  One lock is enough for many tokens of an owner, because no other
 * transaction can delete the locked row.  If this transaction itself deletes an
 * owner, all entries are removed (revoke.c).  If a subtransaction is rolled
 * back, its entries are removed, because its locks are released.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "manage/manage.h"

/* Maximum number of entries.  Other owners are locked again each time. */
#define LOCKED_MAX 10000

typedef struct OwnerKey
{
	Oid			table;			/* changes with DROP and CREATE EXTENSION */
	char		id[APITOKEN_OWNER_ID_MAX + 1];	/* padded with zeros */
} OwnerKey;

typedef struct LockedOwner
{
	OwnerKey	key;			/* hash key */
	ApitokenMade entry;			/* in in_order */
} LockedOwner;

static HTAB *locked = NULL;		/* in TopTransactionContext */

/* The same owners in the order in which they were locked: see subtransaction.c. */
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
forget(ApitokenMade *entry)
{
	LockedOwner *owner = dlist_container(LockedOwner, entry.node, &entry->node);

	dlist_delete(&entry->node);
	hash_search(locked, &owner->key, HASH_REMOVE, NULL);
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

/* Returns false if no owner can have this id. */
static bool
set_key(OwnerKey *key, ApitokenTable table, const char *id)
{
	if (strlen(id) > APITOKEN_OWNER_ID_MAX)
		return false;
	memset(key, 0, sizeof(*key));
	key->table = apitoken_table(table);
	memcpy(key->id, id, strlen(id));
	return true;
}

bool
apitoken_is_locked(ApitokenTable table, const char *id)
{
	OwnerKey	key;

	return locked != NULL && set_key(&key, table, id) &&
		hash_search(locked, &key, HASH_FIND, NULL) != NULL;
}

void
apitoken_remember_locked(ApitokenTable table, const char *id)
{
	OwnerKey	key;
	LockedOwner *owner;
	bool		found;

	if (!set_key(&key, table, id))
		return;
	if (locked == NULL)
	{
		HASHCTL		control = {0};

		control.keysize = sizeof(OwnerKey);
		control.entrysize = sizeof(LockedOwner);
		control.hcxt = TopTransactionContext;
		locked = hash_create("apitoken owners", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (hash_get_num_entries(locked) >= LOCKED_MAX)
		return;
	owner = hash_search(locked, &key, HASH_ENTER, &found);
	if (found)
		return;
	apitoken_add_made(&in_order, &owner->entry);
}
