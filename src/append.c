/*
 * append.c
 *		New rows of events and token_usage, written without a statement.
 *
 * The statements that write.c would run for the event and the usage row of a
 * new token cost more than the token itself, which comes in an INSERT of any
 * number of rows.  So these rows are stored as logical replication stores
 * what it receives: constraints are checked and indexes filled, whatever
 * there are.
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

#include "apitoken.h"

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
apitoken_open_append(ApitokenAppend *append, ApitokenTable table, int columns)
{
	append->relation = relation_open(apitoken_table(table), RowExclusiveLock);
	return is_plain(append->relation, columns);
}

/* The lock stays until the transaction ends, as a statement's would. */
void
apitoken_close_append(ApitokenAppend *append)
{
	relation_close(append->relation, NoLock);
}

/* As the tables' owner, from here on to apitoken_end_append(). */
void
apitoken_begin_append(ApitokenAppend *append)
{
	PreventCommandIfReadOnly("INSERT");
	append->estate = CreateExecutorState();
	append->target = makeNode(ResultRelInfo);
	InitResultRelInfo(append->target, append->relation, 0, NULL, 0);
	ExecOpenIndices(append->target, false);
	append->slot = ExecInitExtraTupleSlot(append->estate, RelationGetDescr(append->relation), &TTSOpsVirtual);
}

void
apitoken_append(ApitokenAppend *append, const Datum *values, const bool *nulls)
{
	TupleTableSlot *slot = append->slot;
	int			columns = RelationGetNumberOfAttributes(append->relation);

	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, columns * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, columns * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	ExecSimpleRelationInsert(append->target, append->estate, slot);
	ResetPerTupleExprContext(append->estate);
}

void
apitoken_end_append(ApitokenAppend *append)
{
	ExecCloseIndices(append->target);
	ExecResetTupleTable(append->estate->es_tupleTable, false);
	FreeExecutorState(append->estate);
}
