/*
 * secret.c
 *		Texts of tokens made in this transaction, until they are taken.
 *
 * The insert trigger keeps them here, take_secret() and create_token() hand
 * each out once, to the role that made it.  What is left is wiped when its
 * (sub)transaction ends, whichever way it ends.
 *
 * An entry also tells the AFTER trigger that the token was made here and not
 * restored.  RETURNING takes the text before that trigger fires, create_token
 * after it: so an entry goes when both have been there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "apitoken.h"

typedef struct KeptSecret
{
	pg_uuid_t	id;				/* hash key */
	Oid			role;			/* who made it */
	SubTransactionId subtransaction;
	bool		taken;			/* the text was handed out, and wiped here */
	bool		seen;			/* by the AFTER trigger */
	char		text[APITOKEN_TEXT_MAX + 1];
} KeptSecret;

static HTAB *kept = NULL;		/* in TopTransactionContext */
static pg_uuid_t last_kept;

static void
forget(KeptSecret *secret)
{
	explicit_bzero(secret->text, sizeof(secret->text));
	hash_search(kept, &secret->id, HASH_REMOVE, NULL);
}

static void
transaction_ended(XactEvent event, void *arg)
{
	HASH_SEQ_STATUS scan;
	KeptSecret *secret;

	if (kept == NULL ||
		(event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE))
		return;
	hash_seq_init(&scan, kept);
	while ((secret = hash_seq_search(&scan)) != NULL)
		forget(secret);
	kept = NULL;
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subtransaction,
					 SubTransactionId parent, void *arg)
{
	HASH_SEQ_STATUS scan;
	KeptSecret *secret;

	if (kept == NULL ||
		(event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
		return;
	hash_seq_init(&scan, kept);
	while ((secret = hash_seq_search(&scan)) != NULL)
	{
		if (secret->subtransaction != subtransaction)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			secret->subtransaction = parent;
		else
			forget(secret);
	}
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
	secret->subtransaction = GetCurrentSubTransactionId();
	secret->taken = false;
	secret->seen = false;
	memcpy(secret->text, text, strlen(text) + 1);
	last_kept = *id;
}

/* The id of the token whose text was kept last. */
const pg_uuid_t *
apitoken_last_kept(void)
{
	return &last_kept;
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
		forget(secret);
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
		forget(secret);
	return result;
}
