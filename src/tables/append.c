/*
 * append.c
 *		New rows of events and token_usage, written without a statement.
 *
 * The statement that write.c would run for the event and the usage row of a
 * new token costs more than storing them.  So these rows are stored as logical
 * replication stores what it receives: constraints are checked and indexes
 * filled, whatever there are.
 *
 * One at a time: a trigger at the end of the statement could write those of
 * many tokens together, but any AFTER STATEMENT trigger costs 8 kB for each
 * subtransaction in which it fires, until the transaction ends.
 *
 * That is only done with tables that are as the extension made them: where
 * the administrator has added a column, a rule or a trigger for new rows, the
 * caller runs the statement.
 */
#include "postgres.h"

#include "access/relation.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/rel.h"

#include "tables/tables.h"

/* Would a statement do no more than store the row? */
static bool
is_plain(Relation relation, int columns)
{
	TriggerDesc *triggers = relation->trigdesc;

	return RelationGetNumberOfAttributes(relation) == columns &&
		relation->rd_rules == NULL &&
		(triggers == NULL ||
		 !(triggers->trig_insert_before_row || triggers->trig_insert_after_row ||
		   triggers->trig_insert_before_statement || triggers->trig_insert_after_statement));
}

/*
 * Open a table of so many columns, to be closed with apitoken_close_append()
 * in any case.  False: only a statement will do.
 */
bool
apitoken_open_append(Relation *relation, ApitokenTable table, int columns)
{
	*relation = relation_open(apitoken_table(table), RowExclusiveLock);
	return is_plain(*relation, columns);
}

/* The lock stays until the transaction ends, as a statement's would. */
void
apitoken_close_append(Relation relation)
{
	relation_close(relation, NoLock);
}

/* Store a row, as the tables' owner. */
void
apitoken_append(Relation relation, const Datum *values, const bool *nulls)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *target = makeNode(ResultRelInfo);
	TupleTableSlot *slot = ExecInitExtraTupleSlot(estate, RelationGetDescr(relation), &TTSOpsVirtual);
	int			columns = RelationGetNumberOfAttributes(relation);

	PreventCommandIfReadOnly("INSERT");
	InitResultRelInfo(target, relation, 0, NULL, 0);
	ExecOpenIndices(target, false);
	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, columns * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, columns * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	ExecSimpleRelationInsert(target, estate, slot);
	ExecCloseIndices(target);
	ExecResetTupleTable(estate->es_tupleTable, false);
	FreeExecutorState(estate);
	pfree(target);
}
