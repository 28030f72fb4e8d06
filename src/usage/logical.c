/*
 * logical.c
 *		Does this server write the use of a database's tokens, or send it?  And who
 *		else may use them?
 *
 * A standby cannot write, so it sends its use to the primary.  A logical subscriber
 * can, but the publisher's rows replace its own.  So with apitoken.subscriber_sends
 * it sends its use to the publisher as well, which has the sums of both.  They come
 * back by the replication.
 *
 * Whether a database is a subscriber is read from the catalog: one subscription with
 * a replication slot changes its table of usage.  So other databases of the same
 * server write their use, and so does this one when its subscription is dropped.  With
 * two such subscriptions, no publisher may know all of the tokens, and use is written.
 * Only the publisher has the slot, so a connection that finds it leads there
 * (primary.c).
 *
 * A standby of a subscriber has the same catalog, and sends to the publisher, too.
 *
 * These look the tables up by their names, because read_stats() must work with
 * another version of the extension.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_namespace.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "usage/usage.h"

/* Logical replication of PostgreSQL itself.  Other plugins do not feed a server that could verify. */
#define SUBSCRIBERS_PLUGIN "pgoutput"

/* Call `visit` for each row of a catalog with this value, until it returns false. */
static void
each_row(Oid catalog, Oid index, AttrNumber attribute, RegProcedure equal, Datum value,
		 bool (*visit) (HeapTuple row, void *arg), void *arg)
{
	Relation	relation = table_open(catalog, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	row;

	ScanKeyInit(&key, attribute, BTEqualStrategyNumber, equal, value);
	scan = systable_beginscan(relation, index, OidIsValid(index), NULL, 1, &key);
	while (HeapTupleIsValid(row = systable_getnext(scan)) && visit(row, arg))
		;
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
}

/* ---- the subscriber ---- */

/* The subscriptions that change a table. */
typedef struct Subscriptions
{
	int			count;
	const char *slot;			/* of the last one that has a slot */
} Subscriptions;

static bool
add_subscription(HeapTuple row, void *arg)
{
	Subscriptions *subscriptions = arg;
	Oid			subscription = ((Form_pg_subscription_rel) GETSTRUCT(row))->srsubid;
	HeapTuple	tuple = SearchSysCache1(SUBSCRIPTIONOID, ObjectIdGetDatum(subscription));
	Datum		slot;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		return true;
	slot = SysCacheGetAttr(SUBSCRIPTIONOID, tuple, Anum_pg_subscription_subslotname, &isnull);
	/* without a slot, it is about to be dropped */
	if (!isnull)
	{
		subscriptions->count++;
		subscriptions->slot = pstrdup(NameStr(*DatumGetName(slot)));
	}
	ReleaseSysCache(tuple);
	return true;
}

/* The slot of the subscription that changes this database's table of usage; NULL if there is none, or several. */
static const char *
subscription_slot(void)
{
	Oid			schema = get_namespace_oid("apitoken", true);
	Oid			table = OidIsValid(schema) ? get_relname_relid("token_usage", schema) : InvalidOid;
	Subscriptions subscriptions = {0};

	if (OidIsValid(table))
		each_row(SubscriptionRelRelationId, SubscriptionRelSrrelidSrsubidIndexId,
				 Anum_pg_subscription_rel_srrelid, F_OIDEQ, ObjectIdGetDatum(table), add_subscription, &subscriptions);
	return subscriptions.count == 1 ? subscriptions.slot : NULL;
}

/*
 * Does this server send the use of this database to another one?  Otherwise it writes
 * it, or, as a standby, keeps it until it is promoted.  `slot`, if not NULL, becomes
 * the publisher's slot of the subscription, or NULL if the use goes to the primary of
 * this standby.
 *
 * This must be called in a transaction.  A standby needs none if `slot` is NULL.
 */
bool
apitoken_sends(const char **slot)
{
	const char *publisher = NULL;

	if (apitoken_shared == NULL || apitoken_primary_conninfo[0] == '\0')
		return false;
	if (apitoken_subscriber_sends && (slot != NULL || !RecoveryInProgress()))
		publisher = subscription_slot();
	if (slot != NULL)
		*slot = publisher;
	return publisher != NULL || RecoveryInProgress();
}

/* ---- the publisher ---- */

/* Is there a slot by which this database can be replicated to a subscriber?  Also if it is not connected now. */
static bool
subscriber_has_slot(void)
{
	bool		found = false;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots && !found; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		found = slot->in_use && slot->data.database == MyDatabaseId &&
			strcmp(NameStr(slot->data.plugin), SUBSCRIBERS_PLUGIN) == 0;
	}
	LWLockRelease(ReplicationSlotControlLock);
	return found;
}

static bool
note_row(HeapTuple row, void *arg)
{
	*(bool *) arg = true;
	return false;
}

/* Does a publication have the table of the tokens? */
static bool
tokens_are_published(void)
{
	Oid			schema = get_namespace_oid("apitoken_internal", true);
	Oid			table = OidIsValid(schema) ? get_relname_relid("token_records", schema) : InvalidOid;
	bool		found = false;

	if (!OidIsValid(table))
		return false;
	each_row(PublicationRelRelationId, PublicationRelPrrelidPrpubidIndexId,
			 Anum_pg_publication_rel_prrelid, F_OIDEQ, ObjectIdGetDatum(table), note_row, &found);
	if (!found)
		each_row(PublicationNamespaceRelationId, PublicationNamespacePnnspidPnpubidIndexId,
				 Anum_pg_publication_namespace_pnnspid, F_OIDEQ, ObjectIdGetDatum(schema), note_row, &found);
	if (!found)
		each_row(PublicationRelationId, InvalidOid,
				 Anum_pg_publication_puballtables, F_BOOLEQ, BoolGetDatum(true), note_row, &found);
	return found;
}

/*
 * May a logical subscriber use the tokens of this database?  What it has recorded may
 * not be known here yet, or never will be.
 */
bool
apitoken_has_subscriber(void)
{
	return subscriber_has_slot() && tokens_are_published();
}
