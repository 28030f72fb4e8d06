/*
 * subtransaction.c
 *		Lists of entries that belong to subtransactions.
 *
 * When a subtransaction commits, its entries pass to its parent.  When it is
 * rolled back, its entries are removed.  A list has the order of creation.  When
 * a subtransaction ends, its entries are the last ones of the list, so no others
 * are visited, however long the list is.
 */
#include "postgres.h"

#include "manage/manage.h"

void
apitoken_add_made(dlist_head *in_order, ApitokenMade *entry)
{
	entry->subtransaction = GetCurrentSubTransactionId();
	dlist_push_tail(in_order, &entry->node);
}

/* Call this when a subtransaction ends.  forget() must remove the entry from the list. */
void
apitoken_end_made(dlist_head *in_order, SubXactEvent event, SubTransactionId subtransaction,
				  SubTransactionId parent, void (*forget) (ApitokenMade *entry))
{
	dlist_iter	iter;

	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		dlist_reverse_foreach(iter, in_order)
		{
			ApitokenMade *entry = dlist_container(ApitokenMade, node, iter.cur);

			if (entry->subtransaction != subtransaction)
				break;
			entry->subtransaction = parent;
		}
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (!dlist_is_empty(in_order))
		{
			ApitokenMade *entry = dlist_tail_element(ApitokenMade, node, in_order);

			if (entry->subtransaction != subtransaction)
				break;
			forget(entry);
		}
	}
}
