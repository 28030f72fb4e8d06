/*
 * secret.c
 *		Texts of tokens made in this transaction, until they are taken.
 *
 * The insert trigger keeps them here, take_token() and create_token() hand
 * each out once, to the role that made it.  What is left is wiped when its
 * (sub)transaction ends, whichever way it ends.
 *
 * An entry also tells the AFTER trigger that the token was made here and not
 * restored.  RETURNING takes the text before that trigger fires, create_token
 * after it: so an entry goes when both have been there.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "manage/manage.h"

typedef struct KeptSecret
{
	pg_uuid_t	id;				/* hash key */
	ApitokenMade made;			/* in in_order */
	Oid			role;			/* who made it */
	bool		taken;			/* the text was handed out, and wiped here */
	bool		seen;			/* by the AFTER trigger */
	char		text[APITOKEN_TEXT_MAX + 1];
} KeptSecret;

static HTAB *kept = NULL;		/* in TopTransactionContext */

/* The same, in the order in which they were made: see subtransaction.c. */
static dlist_head in_order = DLIST_STATIC_INIT(in_order);

/*
 * Where the id of the next token that is made goes.  The first one counts: a
 * trigger on the table may make more.
 */
static pg_uuid_t *capture = NULL;

static void
forget(ApitokenMade *made)
{
	KeptSecret *secret = dlist_container(KeptSecret, made.node, &made->node);

	explicit_bzero(secret->text, sizeof(secret->text));
	dlist_delete(&made->node);
	hash_search(kept, &secret->id, HASH_REMOVE, NULL);
}

static void
transaction_ended(XactEvent event, void *arg)
{
	capture = NULL;
	if (kept == NULL ||
		(event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE))
		return;
	while (!dlist_is_empty(&in_order))
		forget(dlist_tail_element(ApitokenMade, node, &in_order));
	kept = NULL;
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		capture = NULL;
	apitoken_end_made(&in_order, event, subtransaction, parent, forget);
}

void
apitoken_secret_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

void
apitoken_keep_secret(const pg_uuid_t *id, const char *text)
{
	KeptSecret *secret;

	if (kept == NULL)
	{
		HASHCTL		control = {0};

		control.keysize = sizeof(pg_uuid_t);
		control.entrysize = sizeof(KeptSecret);
		control.hcxt = TopTransactionContext;
		kept = hash_create("apitoken secrets", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	secret = hash_search(kept, id, HASH_ENTER, NULL);
	secret->role = GetUserId();
	secret->taken = false;
	secret->seen = false;
	memcpy(secret->text, text, strlen(text) + 1);
	apitoken_add_made(&in_order, &secret->made);
	if (capture != NULL)
		*capture = *id;
	capture = NULL;
}

/* Have the id of the next token that is made; returns who waited for one. */
pg_uuid_t *
apitoken_capture_id(pg_uuid_t *id)
{
	pg_uuid_t  *previous = capture;

	capture = id;
	return previous;
}

static KeptSecret *
find(const pg_uuid_t *id)
{
	return kept == NULL ? NULL : hash_search(kept, id, HASH_FIND, NULL);
}

/* Was this token made in this transaction?  Asked once, by the AFTER trigger. */
bool
apitoken_made_here(const pg_uuid_t *id)
{
	KeptSecret *secret = find(id);

	if (secret == NULL)
		return false;
	secret->seen = true;
	if (secret->taken)
		forget(&secret->made);
	return true;
}

/* The text of a token, once; NULL if there is none for this role. */
text *
apitoken_release_secret(const pg_uuid_t *id)
{
	KeptSecret *secret = find(id);
	text	   *result;

	if (secret == NULL || secret->taken || secret->role != GetUserId())
		return NULL;
	result = cstring_to_text(secret->text);
	secret->taken = true;
	explicit_bzero(secret->text, sizeof(secret->text));
	if (secret->seen)
		forget(&secret->made);
	return result;
}
