/*
 * subtransaction.c
 *		What is kept in a transaction, by the subtransaction that made it.
 *
 * When a subtransaction commits, what it made becomes its parent's; when it is
 * rolled back, that is forgotten.  The entries stand in the order in which they
 * were made, so what a subtransaction made stands together at the end when it
 * ends, and its end costs no more than that, however many entries there are.
 */
#include "postgres.h"

#include "base/base.h"

void
apitoken_add_made(dlist_head *in_order, ApitokenMade *made)
{
	made->subtransaction = GetCurrentSubTransactionId();
	dlist_push_tail(in_order, &made->node);
}

/* To be called at a subtransaction's end; forget() takes an entry out of the list. */
void
apitoken_end_made(dlist_head *in_order, SubXactEvent event, SubTransactionId subtransaction,
				  SubTransactionId parent, void (*forget) (ApitokenMade *made))
{
	dlist_iter	iter;

	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		dlist_reverse_foreach(iter, in_order)
		{
			ApitokenMade *made = dlist_container(ApitokenMade, node, iter.cur);

			if (made->subtransaction != subtransaction)
				break;
			made->subtransaction = parent;
		}
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (!dlist_is_empty(in_order))
		{
			ApitokenMade *made = dlist_tail_element(ApitokenMade, node, in_order);

			if (made->subtransaction != subtransaction)
				break;
			forget(made);
		}
	}
}
