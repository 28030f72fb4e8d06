/*
 * compat.h
 *		The one place that knows how PostgreSQL's majors differ.
 *
 * PostgreSQL 15 is the floor: the view apitoken.tokens is security_invoker.
 */
#ifndef APITOKEN_COMPAT_H
#define APITOKEN_COMPAT_H

#include "access/genam.h"
#include "access/parallel.h"
#include "access/stratnum.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#endif
#include "common/jsonapi.h"
#include "executor/executor.h"
#include "nodes/pathnodes.h"
#include "nodes/primnodes.h"
#include "pgstat.h"
#include "replication/message.h"
#include "replication/slot.h"
#include "replication/walsender_private.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

#if PG_VERSION_NUM < 150000
#error "apitoken needs PostgreSQL 15 or later"
#endif

/* From 18 on a module tells its name and version (pg_get_loaded_modules()). */
#if PG_VERSION_NUM >= 180000
#define APITOKEN_MODULE_MAGIC PG_MODULE_MAGIC_EXT(.name = "apitoken", .version = APITOKEN_VERSION)
#else
#define APITOKEN_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/* 18 has this as a prefix, where an attribute macro was. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/*
 * ExecutorRun lost its execute_once argument in 18.  A hook declares its
 * parameters with the first macro and passes them on with the second.
 */
#if PG_VERSION_NUM >= 180000
#define APITOKEN_RUN_PARAMETERS QueryDesc *query, ScanDirection direction, uint64 count
#define APITOKEN_RUN_ARGUMENTS query, direction, count
#else
#define APITOKEN_RUN_PARAMETERS QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once
#define APITOKEN_RUN_ARGUMENTS query, direction, count, execute_once
#endif

/* The same for planner_hook, which 19 tells what EXPLAIN wants. */
#if PG_VERSION_NUM >= 190000
#define APITOKEN_PLAN_PARAMETERS Query *query, const char *text, int options, ParamListInfo params, \
	struct ExplainState *explain
#define APITOKEN_PLAN_ARGUMENTS query, text, options, params, explain
#else
#define APITOKEN_PLAN_PARAMETERS Query *query, const char *text, int options, ParamListInfo params
#define APITOKEN_PLAN_ARGUMENTS query, text, options, params
#endif

/* What post_parse_analyze_hook is told of a query's constants is const in 19. */
#if PG_VERSION_NUM >= 190000
#define APITOKEN_JUMBLE const JumbleState
#else
#define APITOKEN_JUMBLE JumbleState
#endif

/* CLUSTER is a kind of REPACK in 19. */
#if PG_VERSION_NUM >= 190000
#define APITOKEN_CLUSTER_STATEMENT T_RepackStmt
#else
#define APITOKEN_CLUSTER_STATEMENT T_ClusterStmt
#endif

/* The tables that a statement writes, as indexes into its range table. */
static inline List *
compat_result_relations(PlannedStmt *statement)
{
#if PG_VERSION_NUM >= 190000
	List	   *indexes = NIL;
	int			index = -1;

	while ((index = bms_next_member(statement->resultRelationRelids, index)) >= 0)
		indexes = lappend_int(indexes, index);
	return indexes;
#else
	return statement->resultRelations;
#endif
}

/* A hash table in shared memory, all of its entries allocated at the start. */
static inline HTAB *
compat_shared_hash(const char *name, int entries, HASHCTL *control, int flags)
{
#if PG_VERSION_NUM >= 190000
	return ShmemInitHash(name, entries, control, flags);
#else
	return ShmemInitHash(name, entries, entries, control, flags);
#endif
}

/* May this role execute this function?  (pg_proc_aclcheck until 15.) */
static inline bool
compat_may_execute(Oid function, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE) == ACLCHECK_OK;
#else
	return pg_proc_aclcheck(function, role, ACL_EXECUTE) == ACLCHECK_OK;
#endif
}

/* The lexer's constructor takes memory to use from 17 on. */
static inline JsonLexContext *
compat_json_lexer(const char *json, size_t length, int encoding)
{
#if PG_VERSION_NUM >= 170000
	return makeJsonLexContextCstringLen(NULL, json, length, encoding, true);
#else
	return makeJsonLexContextCstringLen(unconstify(char *, json), length, encoding, true);
#endif
}

/*
 * A jsonb value under construction, zero at the start.  In 19 the server's own
 * state holds the result; before, pushJsonbValue() returned it.
 */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState ApitokenJson;
#else
typedef struct ApitokenJson
{
	JsonbParseState *state;
	JsonbValue *result;			/* the value, once it is complete */
} ApitokenJson;
#endif

static inline void
compat_push_json(ApitokenJson *json, JsonbIteratorToken token, JsonbValue *value)
{
#if PG_VERSION_NUM >= 190000
	pushJsonbValue(json, token, value);
#else
	json->result = pushJsonbValue(&json->state, token, value);
#endif
}

/* May the session of this role SET ROLE to that one? */
static inline bool
compat_may_set_role(Oid session, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return member_can_set_role(session, role);
#else
	return is_member_of_role(session, role);
#endif
}

/* Does this WAL sender send to a standby?  (16 and later know; a logical one has a logical slot.) */
static inline bool
compat_is_physical(const WalSnd *sender)
{
#if PG_VERSION_NUM >= 160000
	return sender->kind == REPLICATION_KIND_PHYSICAL;
#else
	bool		physical = true;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (slot->in_use && slot->active_pid == sender->pid && SlotIsLogical(slot))
			physical = false;
	}
	LWLockRelease(ReplicationSlotControlLock);
	return physical;
#endif
}

/* The index of a table's primary key. */
static inline Oid
compat_primary_key(Relation relation)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(relation, false);
#else
	return RelationGetPrimaryKeyIndex(relation);
#endif
}

/* Does this sort key put the greatest first? */
static inline bool
compat_is_descending(const PathKey *key)
{
#if PG_VERSION_NUM >= 180000
	return key->pk_cmptype == COMPARE_GT;
#else
	return key->pk_strategy == BTGreaterStrategyNumber;
#endif
}

/* How a row comparison compares, as a strategy number of btree. */
static inline StrategyNumber
compat_row_comparison(const RowCompareExpr *row)
{
#if PG_VERSION_NUM >= 180000
	return row->cmptype == COMPARE_LT ? BTLessStrategyNumber :
		row->cmptype == COMPARE_LE ? BTLessEqualStrategyNumber :
		row->cmptype == COMPARE_GE ? BTGreaterEqualStrategyNumber :
		row->cmptype == COMPARE_GT ? BTGreaterStrategyNumber : InvalidStrategy;
#else
	return row->rctype;
#endif
}

/* Begin an index scan without ORDER BY operators. */
static inline IndexScanDesc
compat_index_beginscan(Relation table, Relation index, Snapshot snapshot, int keys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(table, index, snapshot, NULL, keys, 0, 0);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, keys, 0);
#else
	return index_beginscan(table, index, snapshot, keys, 0);
#endif
}

/* What this transaction has read of a relation, as the statistics views count it. */
#if PG_VERSION_NUM >= 160000
#define COMPAT_COUNTS(relation) (&(relation)->pgstat_info->counts)
#define COMPAT_COUNT(name) name
#else
#define COMPAT_COUNTS(relation) (&(relation)->pgstat_info->t_counts)
#define COMPAT_COUNT(name) t_##name
#endif

static inline PgStat_TableCounts
compat_counts(Relation relation)
{
	PgStat_TableCounts none = {0};

	/* This looks up the counters that the transaction may have already. */
	return pgstat_should_count_relation(relation) ? *COMPAT_COUNTS(relation) : none;
}

/* Reset what was read to what it was, but not the number of scans. */
static inline void
compat_forget_reading(Relation relation, const PgStat_TableCounts *before)
{
	if (relation->pgstat_info == NULL)
		return;
	COMPAT_COUNTS(relation)->COMPAT_COUNT(tuples_returned) = before->COMPAT_COUNT(tuples_returned);
	COMPAT_COUNTS(relation)->COMPAT_COUNT(tuples_fetched) = before->COMPAT_COUNT(tuples_fetched);
	COMPAT_COUNTS(relation)->COMPAT_COUNT(blocks_fetched) = before->COMPAT_COUNT(blocks_fetched);
	COMPAT_COUNTS(relation)->COMPAT_COUNT(blocks_hit) = before->COMPAT_COUNT(blocks_hit);
}

#if PG_VERSION_NUM < 160000
/* As the server sorts settings: by plain chars, ASCII letters in either case. */
static inline int
compat_compare_settings(const void *a, const void *b)
{
	const char *left = (*(struct config_generic *const *) a)->name;
	const char *right = (*(struct config_generic *const *) b)->name;

	for (;; left++, right++)
	{
		char		l = *left >= 'A' && *left <= 'Z' ? *left + 'a' - 'A' : *left;
		char		r = *right >= 'A' && *right <= 'Z' ? *right + 'a' - 'A' : *right;

		if (l == '\0' || r == '\0')
			return (l != '\0') - (r != '\0');
		if (l != r)
			return l - r;
	}
}
#endif

/*
 * A setting's own record, which knows whether the value in force was set in
 * this transaction.  find_option() is exported from 16 on.
 */
static inline struct config_generic *
compat_find_setting(const char *name)
{
#if PG_VERSION_NUM >= 160000
	return find_option(name, false, true, LOG);
#else
	struct config_generic named = {.name = name};
	struct config_generic *key = &named;
	struct config_generic **found = bsearch(&key, get_guc_variables(), GetNumConfigOptions(),
											sizeof(key), compat_compare_settings);

	return found == NULL ? NULL : *found;
#endif
}

/* The value of a setting that is a string. */
static inline const char *
compat_string_setting(struct config_generic *record)
{
#if PG_VERSION_NUM >= 190000
	return *record->_string.variable;
#else
	return *((struct config_string *) record)->variable;
#endif
}

/* Write an empty message into the WAL, as a part of the transaction. */
static inline void
compat_log_message(const char *prefix)
{
#if PG_VERSION_NUM >= 170000
	(void) LogLogicalMessage(prefix, "", 0, true, false);
#else
	(void) LogLogicalMessage(prefix, "", 0, true);
#endif
}

#endif							/* APITOKEN_COMPAT_H */
