/*
 * foreign.c
 *		Find the token of a text that another system made.
 *
 * A text that does not have the shape of our tokens is tried as each format of
 * apitoken.imported_formats whose shape it has.  What the other system stored is in
 * foreign_digests, and is found by the same lookups as everything else that a
 * verification reads (read.c).  The result is a token, and which of its secrets
 * the text is: the decision that follows does not know of formats.
 *
 * The token's own row has a seal in place of the digest: a digest of the token's row
 * in foreign_digests, under a pepper if there is one.  So a row there is worth nothing
 * without the token that it was imported with, and with apitoken.require_pepper
 * nobody can make one who does not have the pepper file.  When the token is
 * regenerated, the seal becomes that of a previous secret, with its overlap.
 *
 * A refusal does the same work whether the lookup key exists or not: if no row has
 * the key, the text is compared with another row of the format.  If a row has a
 * fast digest, only the right text is spared the slow one.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "identity/identity.h"

/* Add bytes with their length, so that no two rows have the same text. */
static void
add_piece(StringInfo text, const void *data, size_t length)
{
	if (data == NULL)
	{
		appendStringInfoString(text, "-;");
		return;
	}
	appendStringInfo(text, "%zu:", length);
	appendBinaryStringInfo(text, data, length);
}

/* The seal of an imported token under a pepper, or without one (NULL). */
void
apitoken_seal(const ApitokenForeign *row, const char *format, const ApitokenPepper *pepper,
			  uint8 seal[APITOKEN_DIGEST_LENGTH])
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "apitoken import:");
	add_piece(&text, &row->token_id, sizeof(row->token_id));
	add_piece(&text, format, strlen(format));
	add_piece(&text, row->lookup_key, row->lookup_key == NULL ? 0 : strlen(row->lookup_key));
	add_piece(&text, row->digest.data, row->digest.length);
	add_piece(&text, row->salt.data, row->salt.length);
	apitoken_pepper_digest(text.data, text.len, pepper, seal);
	pfree(text.data);
}

/* Which secret of the token has the seal of this row?  -1: none. */
static int
sealed_secret(const ApitokenForeign *row, const char *format, const ApitokenRecord *record)
{
	for (int i = 0; i < record->secret_count; i++)
	{
		int16		scheme = APITOKEN_SEAL_SCHEME(record->secrets[i].scheme);
		uint8		seal[APITOKEN_DIGEST_LENGTH];

		if (record->secrets[i].scheme >= 0)
			continue;
		if (scheme == 0 && apitoken_required(&apitoken_require_pepper))
			continue;
		apitoken_seal(row, format, scheme == 0 ? NULL : apitoken_pepper(scheme), seal);
		if (apitoken_digest_matches(seal, record->secrets[i].digest))
			return i;
	}
	return -1;
}

/* The pepper of a scheme, if the server has it. */
static const ApitokenPepper *
usable_pepper(int16 scheme)
{
	int			count;
	const ApitokenPepper *peppers = apitoken_usable_peppers(&count);

	for (int i = 0; i < count; i++)
	{
		if (peppers[i].scheme == scheme)
			return &peppers[i];
	}
	return NULL;
}

/*
 * The fast digest of a text under the pepper with the highest number.  Returns false
 * if there is none that may be stored.
 */
static bool
fast_digest(const char *text, size_t length, ApitokenFastDigest *digest)
{
	int			count;
	const ApitokenPepper *peppers = apitoken_usable_peppers(&count);
	const ApitokenPepper *highest = NULL;

	for (int i = 0; i < count; i++)
	{
		if (highest == NULL || peppers[i].scheme > highest->scheme)
			highest = &peppers[i];
	}
	/* also if the file cannot be used */
	if (highest == NULL && (*apitoken_pepper_file != '\0' || apitoken_required(&apitoken_require_pepper)))
		return false;
	digest->scheme = highest == NULL ? 0 : highest->scheme;
	apitoken_pepper_digest(text, length, highest, digest->digest);
	return true;
}

/* A text that is tried as one format. */
typedef struct Attempt
{
	const ApitokenFormat *format;
	ApitokenForeignParts parts;
	const char *text;
	size_t		length;
	Snapshot	snapshot;
	bool		has_fast;
	ApitokenFastDigest fast;	/* of the text, with has_fast */
	bool		slow;			/* the slow digest was right */
} Attempt;

/* Is the text that of this row, by the fast digest? */
static bool
matches_fast(const Attempt *attempt, const ApitokenForeign *row)
{
	const ApitokenPepper *pepper;
	uint8		digest[APITOKEN_DIGEST_LENGTH];

	if (attempt->has_fast && apitoken_digest_is_recorded(&row->token_id, &attempt->fast))
		return true;
	if (!row->has_fast)
		return false;
	if (attempt->has_fast && row->fast_scheme == attempt->fast.scheme)
		return apitoken_digest_matches(attempt->fast.digest, row->fast_digest);
	pepper = row->fast_scheme == 0 ? NULL : usable_pepper(row->fast_scheme);
	if (row->fast_scheme == 0 ? apitoken_required(&apitoken_require_pepper) : pepper == NULL)
		return false;
	apitoken_pepper_digest(attempt->text, attempt->length, pepper, digest);
	return apitoken_digest_matches(digest, row->fast_digest);
}

static bool
matches(Attempt *attempt, const ApitokenForeign *row)
{
	bool		slow = apitoken_foreign_slow(attempt->format);

	if (slow && matches_fast(attempt, row))
		return true;
	if (!apitoken_foreign_matches(attempt->format, &attempt->parts, &row->digest,
								  row->salt.data == NULL ? NULL : &row->salt))
		return false;
	attempt->slow = slow;
	return true;
}

/* Compare the text with all rows that have this lookup key, and return the one that it is of; NULL: none. */
static ApitokenForeign *
find_by_key(Attempt *attempt, const char *key, size_t length)
{
	List	   *rows = apitoken_fetch_foreign(attempt->snapshot, attempt->format->name, key, length);
	ApitokenForeign *decoy;
	ListCell   *lc;

	foreach(lc, rows)
	{
		CHECK_FOR_INTERRUPTS();
		if (matches(attempt, lfirst(lc)))
			return lfirst(lc);
	}
	decoy = apitoken_fetch_foreign_decoy(attempt->snapshot, attempt->format->name, key, length, rows == NIL);
	if (decoy != NULL)
	{
		(void) matches(attempt, decoy);
		attempt->slow = false;
	}
	return NULL;
}

static ApitokenForeign *
find_by_digest(Attempt *attempt)
{
	ApitokenBytes digest;

	if (!apitoken_foreign_digest(attempt->format, &attempt->parts, &digest))
		return NULL;
	return apitoken_fetch_foreign_digest(attempt->snapshot, attempt->format->name, &digest);
}

/*
 * The text of a token of crypt(3) has no part of its own that is the key.  Its first
 * characters are, and how many differs from token to token.  A token that was
 * accepted before is found by its fast digest.
 */
static ApitokenForeign *
find_by_prefix(Attempt *attempt)
{
	List	   *rows = attempt->has_fast ?
		apitoken_fetch_foreign_fast(attempt->snapshot, attempt->format->name, attempt->fast.digest) : NIL;
	bool		compared = false;
	ApitokenForeign *decoy;
	ListCell   *lc;

	foreach(lc, rows)
	{
		if (matches_fast(attempt, lfirst(lc)))
			return lfirst(lc);
	}
	/* longest first; the last ones are the tokens without a key */
	for (int length = Min(APITOKEN_CRYPT_KEY_MAX, attempt->length); length >= 0; length--)
	{
		if (length > 0 && length < APITOKEN_CRYPT_KEY_MIN)
			continue;
		rows = apitoken_fetch_foreign(attempt->snapshot, attempt->format->name, attempt->text, length);
		foreach(lc, rows)
		{
			CHECK_FOR_INTERRUPTS();
			compared = compared || length > 0;
			if (matches(attempt, lfirst(lc)))
				return lfirst(lc);
		}
	}
	/* the work of a refusal is that of one token with a key, and of those without one */
	decoy = apitoken_fetch_foreign_decoy(attempt->snapshot, attempt->format->name, attempt->text,
										 Min(APITOKEN_CRYPT_KEY_MAX, attempt->length), true);
	if (decoy != NULL && *decoy->lookup_key != '\0' && !compared)
	{
		(void) matches(attempt, decoy);
		attempt->slow = false;
	}
	return NULL;
}

static ApitokenForeign *
find_row(Attempt *attempt)
{
	switch (attempt->format->lookup)
	{
		case APITOKEN_LOOKUP_DIGEST:
			return find_by_digest(attempt);
		case APITOKEN_LOOKUP_KEY:
			return find_by_key(attempt, attempt->parts.key, attempt->parts.key_length);
		case APITOKEN_LOOKUP_BOTH:
			return attempt->parts.key == NULL ? find_by_digest(attempt) :
				find_by_key(attempt, attempt->parts.key, attempt->parts.key_length);
		case APITOKEN_LOOKUP_PREFIX:
			return find_by_prefix(attempt);
	}
	return NULL;
}

/* Does the text have the shape of one of the formats that are accepted? */
bool
apitoken_has_imported_shape(const char *text, size_t length)
{
	ApitokenForeignParts parts;

	for (int i = 0; i < apitoken_imported_formats_count; i++)
	{
		if (apitoken_foreign_shape(apitoken_imported_formats[i], text, length, &parts))
			return true;
	}
	return false;
}

/* The names of these formats, for people. */
char *
apitoken_imported_shapes(const char *text, size_t length)
{
	ApitokenForeignParts parts;
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < apitoken_imported_formats_count; i++)
	{
		if (apitoken_foreign_shape(apitoken_imported_formats[i], text, length, &parts))
			appendStringInfo(&names, "%s%s", names.len == 0 ? "" : ", ", apitoken_imported_formats[i]->name);
	}
	return names.data;
}

/*
 * Find the token of a text that another system made.  Returns which of its secrets
 * the text is, as for our own tokens; -1: none.  `fast` becomes the fast digest to
 * be stored, with has_fast.
 */
int
apitoken_find_imported(const char *text, size_t length, Snapshot snapshot, ApitokenRecord *record,
					   bool *has_fast, ApitokenFastDigest *fast)
{
	*has_fast = false;
	for (int i = 0; i < apitoken_imported_formats_count; i++)
	{
		Attempt		attempt = {0};
		ApitokenForeign *row;
		int			secret;

		attempt.format = apitoken_imported_formats[i];
		if (!apitoken_foreign_shape(attempt.format, text, length, &attempt.parts))
			continue;
		attempt.text = text;
		attempt.length = length;
		attempt.snapshot = snapshot;
		if (apitoken_foreign_slow(attempt.format))
			attempt.has_fast = fast_digest(text, length, &attempt.fast);
		row = find_row(&attempt);
		if (row == NULL || !apitoken_fetch_token(snapshot, &row->token_id, record))
			continue;
		secret = sealed_secret(row, attempt.format->name, record);
		if (secret < 0)
			continue;
		*has_fast = attempt.slow && attempt.has_fast;
		*fast = attempt.fast;
		return secret;
	}
	return -1;
}
