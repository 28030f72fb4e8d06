/*
 * digest.c
 *		Compute and compare the digests of tokens, which are stored in place of
 *		their texts.
 *
 * Scheme 0 is SHA-256 of the whole text.  A secret has 256 random bits, so a
 * slower hash would not be safer.  Scheme n is HMAC-SHA-256 under pepper n, a
 * key that is kept outside the database.  If apitoken.require_pepper is on,
 * write access to the table is not enough to forge a digest; that also needs the
 * pepper file.  Otherwise a row may have scheme 0, which needs no key.
 */
#include "postgres.h"

#include "base/base.h"
#include "common/cryptohash.h"
#include "common/hmac.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/*
 * The contexts in which digests are computed.  They are created once in a
 * session, because creating one costs more than the digest of a token.  The
 * server frees a context together with the resource owner that was current when
 * it was created, so these contexts have a resource owner of their own.  (After
 * an error, the server resets CurrentResourceOwner itself.)
 */
static pg_cryptohash_ctx *sha256_context = NULL;
static pg_hmac_ctx *hmac_context = NULL;

static void
make_contexts(void)
{
	static ResourceOwner owner = NULL;
	ResourceOwner caller = CurrentResourceOwner;
	MemoryContext memory = MemoryContextSwitchTo(TopMemoryContext);

	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "apitoken digests");
	CurrentResourceOwner = owner;
	if (sha256_context == NULL)
		sha256_context = pg_cryptohash_create(PG_SHA256);
	if (hmac_context == NULL)
		hmac_context = pg_hmac_create(PG_SHA256);
	CurrentResourceOwner = caller;
	MemoryContextSwitchTo(memory);
}

/* Compute a SHA-256 digest.  Returns NULL, or an error message. */
static const char *
sha256(const char *text, size_t length, uint8 *digest)
{
	if (sha256_context == NULL)
		make_contexts();
	if (pg_cryptohash_init(sha256_context) < 0 ||
		pg_cryptohash_update(sha256_context, (const uint8 *) text, length) < 0 ||
		pg_cryptohash_final(sha256_context, digest, APITOKEN_DIGEST_LENGTH) < 0)
		return pg_cryptohash_error(sha256_context);
	return NULL;
}

/* Compute an HMAC-SHA-256 digest under a pepper.  Returns NULL, or an error message. */
static const char *
hmac_sha256(const ApitokenPepper *pepper, const char *text, size_t length, uint8 *digest)
{
	if (hmac_context == NULL)
		make_contexts();
	if (pg_hmac_init(hmac_context, pepper->key, pepper->length) < 0 ||
		pg_hmac_update(hmac_context, (const uint8 *) text, length) < 0 ||
		pg_hmac_final(hmac_context, digest, APITOKEN_DIGEST_LENGTH) < 0)
		return pg_hmac_error(hmac_context);
	return NULL;
}

/* Returns the scheme for new digests.  Raises an error if the pepper file is set but unusable, or required. */
int16
apitoken_signing_scheme(void)
{
	const ApitokenPepper *pepper = apitoken_signing_pepper();

	return pepper == NULL ? 0 : pepper->scheme;
}

/* Compute the digest of a token's text under a pepper, or without one, or raise an error. */
void
apitoken_pepper_digest(const char *text, size_t length, const ApitokenPepper *pepper,
					   uint8 digest[APITOKEN_DIGEST_LENGTH])
{
	const char *error;

	if (pepper == NULL)
		error = sha256(text, length, digest);
	else
		error = hmac_sha256(pepper, text, length, digest);

	if (error != NULL)
	{
		explicit_bzero(digest, APITOKEN_DIGEST_LENGTH);
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute token digest: %s", error)));
	}
}

/* The same under a scheme.  Raises an error if its pepper is missing. */
void
apitoken_digest(const char *text, size_t length, int16 scheme,
				uint8 digest[APITOKEN_DIGEST_LENGTH])
{
	apitoken_pepper_digest(text, length, scheme == 0 ? NULL : apitoken_pepper(scheme), digest);
}

/* Compare digests in constant time. */
bool
apitoken_digest_matches(const uint8 a[APITOKEN_DIGEST_LENGTH],
						const uint8 b[APITOKEN_DIGEST_LENGTH])
{
	return timingsafe_bcmp(a, b, APITOKEN_DIGEST_LENGTH) == 0;
}
