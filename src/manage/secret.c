/*
 * secret.c
 *		Texts of tokens created in this transaction.
 *
 * The insert trigger stores the texts here.  take_token() and create_token()
 * return each text once, to the role that created the token.  Texts that were
 * not taken are wiped when the transaction ends, or when their subtransaction is
 * rolled back.
 *
 * An entry also tells the AFTER trigger that the token was created in this
 * transaction and not restored.  take_token() in RETURNING takes the text before
 * this trigger fires, and create_token() takes it afterwards.  An entry is
 * removed when both have happened.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "manage/manage.h"

typedef struct KeptText
{
	pg_uuid_t	id;				/* hash key */
	ApitokenMade entry;			/* in in_order */
	Oid			role;			/* the role that created the token */
	bool		taken;			/* the text was returned, and wiped here */
	bool		after_trigger;	/* the AFTER trigger has fired */
	char		text[APITOKEN_TEXT_MAX + 1];
} KeptText;

static HTAB *texts = NULL;		/* in TopTransactionContext */

/* The same texts in the order of creation: see subtransaction.c. */
static dlist_head in_order = DLIST_STATIC_INIT(in_order);

/*
 * Where the id of the next new token is stored; NULL: nowhere.  Only the first
 * id is stored, because a trigger on the table may create more tokens.
 */
static pg_uuid_t *new_id_target = NULL;

static void
forget(ApitokenMade *entry)
{
	KeptText   *kept = dlist_container(KeptText, entry.node, &entry->node);

	explicit_bzero(kept->text, sizeof(kept->text));
	dlist_delete(&entry->node);
	hash_search(texts, &kept->id, HASH_REMOVE, NULL);
}

static void
transaction_ended(XactEvent event, void *arg)
{
	new_id_target = NULL;
	if (texts == NULL ||
		(event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE))
		return;
	while (!dlist_is_empty(&in_order))
		forget(dlist_tail_element(ApitokenMade, node, &in_order));
	texts = NULL;
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		new_id_target = NULL;
	apitoken_end_made(&in_order, event, subtransaction, parent, forget);
}

void
apitoken_secret_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

void
apitoken_keep_text(const pg_uuid_t *id, const char *text)
{
	KeptText   *kept;

	if (texts == NULL)
	{
		HASHCTL		control = {0};

		control.keysize = sizeof(pg_uuid_t);
		control.entrysize = sizeof(KeptText);
		control.hcxt = TopTransactionContext;
		texts = hash_create("apitoken secrets", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	kept = hash_search(texts, id, HASH_ENTER, NULL);
	kept->role = GetUserId();
	kept->taken = false;
	kept->after_trigger = false;
	memcpy(kept->text, text, strlen(text) + 1);
	apitoken_add_made(&in_order, &kept->entry);
	if (new_id_target != NULL)
		*new_id_target = *id;
	new_id_target = NULL;
}

/*
 * Have the id of the next new token stored in *target.  Returns the previous
 * target, which the caller must set again.
 */
pg_uuid_t *
apitoken_capture_new_id(pg_uuid_t *target)
{
	pg_uuid_t  *previous = new_id_target;

	new_id_target = target;
	return previous;
}

static KeptText *
find(const pg_uuid_t *id)
{
	return texts == NULL ? NULL : hash_search(texts, id, HASH_FIND, NULL);
}

/* Was this token created in this transaction?  The AFTER trigger calls this once. */
bool
apitoken_made_here(const pg_uuid_t *id)
{
	KeptText   *kept = find(id);

	if (kept == NULL)
		return false;
	kept->after_trigger = true;
	if (kept->taken)
		forget(&kept->entry);
	return true;
}

/* Take the text of a token; NULL if there is none, or none for the current role. */
text *
apitoken_take_text(const pg_uuid_t *id)
{
	KeptText   *kept = find(id);
	text	   *result;

	if (kept == NULL || kept->taken || kept->role != GetUserId())
		return NULL;
	result = cstring_to_text(kept->text);
	kept->taken = true;
	explicit_bzero(kept->text, sizeof(kept->text));
	if (kept->after_trigger)
		forget(&kept->entry);
	return result;
}
