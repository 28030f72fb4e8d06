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
static pg_cryptohash_ctx *sha512_context = NULL;
static pg_hmac_ctx *hmac_context = NULL;
static pg_hmac_ctx *hmac_sha512_context = NULL;

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
	if (sha512_context == NULL)
		sha512_context = pg_cryptohash_create(PG_SHA512);
	if (hmac_context == NULL)
		hmac_context = pg_hmac_create(PG_SHA256);
	if (hmac_sha512_context == NULL)
		hmac_sha512_context = pg_hmac_create(PG_SHA512);
	CurrentResourceOwner = caller;
	MemoryContextSwitchTo(memory);
}

static pg_noreturn void fail(const char *error, uint8 *digest, size_t size);

static void
fail(const char *error, uint8 *digest, size_t size)
{
	explicit_bzero(digest, size);
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("could not compute token digest: %s", error)));
}

/* Compute the digest of several pieces, one after the other, or raise an error. */
static void
hash(pg_cryptohash_ctx *context, const ApitokenBytes *pieces, int count, uint8 *digest, size_t size)
{
	bool		good = pg_cryptohash_init(context) >= 0;

	for (int i = 0; i < count && good; i++)
		good = pg_cryptohash_update(context, pieces[i].data, pieces[i].length) >= 0;
	if (!good || pg_cryptohash_final(context, digest, size) < 0)
		fail(pg_cryptohash_error(context), digest, size);
}

/* The same under a key. */
static void
hmac(pg_hmac_ctx *context, const ApitokenBytes *key, const ApitokenBytes *pieces, int count, uint8 *digest, size_t size)
{
	bool		good = pg_hmac_init(context, key->data, key->length) >= 0;

	for (int i = 0; i < count && good; i++)
		good = pg_hmac_update(context, pieces[i].data, pieces[i].length) >= 0;
	if (!good || pg_hmac_final(context, digest, size) < 0)
		fail(pg_hmac_error(context), digest, size);
}

void
apitoken_sha256_of(const ApitokenBytes *pieces, int count, uint8 digest[APITOKEN_DIGEST_LENGTH])
{
	if (sha256_context == NULL)
		make_contexts();
	hash(sha256_context, pieces, count, digest, APITOKEN_DIGEST_LENGTH);
}

void
apitoken_sha512_of(const ApitokenBytes *pieces, int count, uint8 digest[APITOKEN_SHA512_LENGTH])
{
	if (sha512_context == NULL)
		make_contexts();
	hash(sha512_context, pieces, count, digest, APITOKEN_SHA512_LENGTH);
}

void
apitoken_hmac_sha256_of(const ApitokenBytes *key, const ApitokenBytes *pieces, int count,
						uint8 digest[APITOKEN_DIGEST_LENGTH])
{
	if (hmac_context == NULL)
		make_contexts();
	hmac(hmac_context, key, pieces, count, digest, APITOKEN_DIGEST_LENGTH);
}

void
apitoken_hmac_sha512_of(const ApitokenBytes *key, const ApitokenBytes *pieces, int count,
						uint8 digest[APITOKEN_SHA512_LENGTH])
{
	if (hmac_sha512_context == NULL)
		make_contexts();
	hmac(hmac_sha512_context, key, pieces, count, digest, APITOKEN_SHA512_LENGTH);
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
	ApitokenBytes piece = {text, length};
	ApitokenBytes key;

	if (pepper == NULL)
	{
		apitoken_sha256_of(&piece, 1, digest);
		return;
	}
	key.data = pepper->key;
	key.length = pepper->length;
	apitoken_hmac_sha256_of(&key, &piece, 1, digest);
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

/* Bytes as a value of type bytea. */
Datum
apitoken_bytea_datum(const void *data, size_t length)
{
	bytea	   *value = palloc(VARHDRSZ + length);

	SET_VARSIZE(value, VARHDRSZ + length);
	memcpy(VARDATA(value), data, length);
	return PointerGetDatum(value);
}
