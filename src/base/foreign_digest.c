/*
 * foreign_digest.c
 *		What other systems store of their tokens: read it when a token is imported,
 *		and compare it with a text that is presented.
 *
 * Most systems store a digest that is as quick as that of our own tokens.  Two
 * formats are slow on purpose: PBKDF2 and those of crypt(3), which pgcrypto computes.
 * Their cost is bounded when a token is imported, and they can be interrupted.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/base64.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/syscache.h"

#include "base/base.h"

/* The greatest costs that are accepted: of each, a verification takes a few seconds. */
#define PBKDF2_ITERATIONS_MAX 2500000
#define BCRYPT_COST_MAX 15
#define CRYPT_ROUNDS_MAX 2000000

#define PBKDF2_SALT_MAX 128
#define PBKDF2_PREFIX "pbkdf2_sha256$"
#define DJANGO_SHA512_PREFIX "sha512$$"

/* the number of bytes of GitLab's key base that count */
#define KEYED_BYTES 32

/* ---- what is stored ---- */

/* Decode hexadecimal digits; NULL if they are none. */
static uint8 *
from_hex(const char *digits, size_t length)
{
	uint8	   *bytes = palloc(length / 2 + 1);

	if (length % 2 != 0)
		return NULL;
	for (size_t i = 0; i < length; i += 2)
	{
		int			high = apitoken_hex_value(digits[i]);
		int			low = apitoken_hex_value(digits[i + 1]);

		if (high < 0 || low < 0)
			return NULL;
		bytes[i / 2] = (uint8) (high << 4 | low);
	}
	return bytes;
}

/* Decode base64 or base64url, with or without padding, to 32 bytes; NULL if it is something else. */
static uint8 *
digest_from_base64(const char *text, size_t length)
{
	char		encoded[44];
	uint8	   *bytes = palloc(sizeof(encoded));

	if (length == 44 && text[43] == '=')
		length--;
	if (length != 43)
		return NULL;
	for (size_t i = 0; i < length; i++)
		encoded[i] = text[i] == '-' ? '+' : text[i] == '_' ? '/' : text[i];
	encoded[43] = '=';
	return pg_b64_decode(encoded, sizeof(encoded), (void *) bytes, sizeof(encoded)) == APITOKEN_DIGEST_LENGTH ? bytes : NULL;
}

/* The parts of "pbkdf2_sha256$iterations$salt$digest". */
typedef struct Pbkdf2
{
	int			iterations;
	ApitokenBytes salt;
	uint8	   *digest;
} Pbkdf2;

static bool
parse_pbkdf2(const char *stored, size_t length, Pbkdf2 *parts)
{
	const char *at = stored + strlen(PBKDF2_PREFIX);
	const char *end = stored + length;
	const char *salt;
	int			iterations = 0;

	if (length < strlen(PBKDF2_PREFIX) || memcmp(stored, PBKDF2_PREFIX, strlen(PBKDF2_PREFIX)) != 0)
		return false;
	while (at < end && *at >= '0' && *at <= '9' && iterations <= PBKDF2_ITERATIONS_MAX)
		iterations = iterations * 10 + (*at++ - '0');
	if (iterations < 1 || iterations > PBKDF2_ITERATIONS_MAX || at == end || *at++ != '$')
		return false;
	salt = at;
	at = memchr(at, '$', end - at);
	if (at == NULL || at - salt < 1 || at - salt > PBKDF2_SALT_MAX)
		return false;
	parts->iterations = iterations;
	parts->salt.data = salt;
	parts->salt.length = at - salt;
	parts->digest = digest_from_base64(at + 1, end - at - 1);
	return parts->digest != NULL;
}

static bool
is_crypt_text(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		char		c = text[i];

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '/'))
			return false;
	}
	return true;
}

/* The value of a digit in the base64 of crypt(3), least significant digit first. */
static int
crypt_number(const char *digits, int count)
{
	int			value = 0;

	for (int i = count - 1; i >= 0; i--)
	{
		char		c = digits[i];

		value = value * 64 + (c == '.' ? 0 : c == '/' ? 1 : c <= '9' ? c - '0' + 2 : c <= 'Z' ? c - 'A' + 12 : c - 'a' + 38);
	}
	return value;
}

/* "$5$" or "$6$", "rounds=n$" or nothing, a salt, "$" and a digest of this length */
static bool
is_sha_crypt(const char *stored, size_t length, size_t digest_length)
{
	const char *at = stored + 3;
	const char *salt;

	if (strncmp(at, "rounds=", 7) == 0)
	{
		int			rounds = 0;

		at += 7;
		while (*at >= '0' && *at <= '9' && rounds <= CRYPT_ROUNDS_MAX)
			rounds = rounds * 10 + (*at++ - '0');
		if (rounds < 1000 || rounds > CRYPT_ROUNDS_MAX || *at++ != '$')
			return false;
	}
	salt = at;
	at = strchr(at, '$');
	return at != NULL && at - salt >= 1 && at - salt <= 16 && is_crypt_text(salt, at - salt) &&
		strlen(at + 1) == digest_length && is_crypt_text(at + 1, digest_length);
}

/*
 * Is this a digest of crypt(3) that pgcrypto can compute, within bounds?  The
 * traditional one is refused, because only eight characters of the text count.
 */
static bool
is_crypt(const char *stored, size_t length)
{
	if (length == 60 && stored[0] == '$' && stored[1] == '2' && strchr("abxy", stored[2]) != NULL && stored[3] == '$')
	{
		int			cost = (stored[4] - '0') * 10 + stored[5] - '0';

		return cost >= 4 && cost <= BCRYPT_COST_MAX && stored[6] == '$' && is_crypt_text(stored + 7, 53);
	}
	if (strncmp(stored, "$1$", 3) == 0)
	{
		const char *dollar = strchr(stored + 3, '$');

		return dollar != NULL && dollar - stored - 3 >= 1 && dollar - stored - 3 <= 8 &&
			is_crypt_text(stored + 3, dollar - stored - 3) && strlen(dollar + 1) == 22 && is_crypt_text(dollar + 1, 22);
	}
	if (stored[0] == '_')
		return length == 20 && is_crypt_text(stored + 1, 19) && crypt_number(stored + 1, 4) >= 1 &&
			crypt_number(stored + 1, 4) <= CRYPT_ROUNDS_MAX;
#if PG_VERSION_NUM >= 180000
	if (strncmp(stored, "$5$", 3) == 0)
		return is_sha_crypt(stored, length, 43);
	if (strncmp(stored, "$6$", 3) == 0)
		return is_sha_crypt(stored, length, 86);
#else
	(void) is_sha_crypt;
#endif
	return false;
}

/*
 * Convert what the other system stores to what is stored here: the bytes of a
 * digest, or the text if that has parameters.  Returns NULL, or the hint of an error.
 */
const char *
apitoken_foreign_stored(const ApitokenFormat *format, const char *stored, ApitokenBytes *digest)
{
	size_t		length = strlen(stored);
	bool		wide = format->hash != APITOKEN_FOREIGN_SHA256 && format->hash != APITOKEN_FOREIGN_SHA256_KEYED;
	Pbkdf2		parts;

	/* a bytea as text */
	if (format->stored == APITOKEN_STORED_HEX && strncmp(stored, "\\x", 2) == 0)
	{
		stored += 2;
		length -= 2;
	}
	digest->length = wide ? APITOKEN_SHA512_LENGTH : APITOKEN_DIGEST_LENGTH;
	switch (format->stored)
	{
		case APITOKEN_STORED_HEX:
			digest->data = length == 2 * digest->length ? from_hex(stored, length) : NULL;
			if (digest->data != NULL)
				return NULL;
			return wide ? "Specify the digest as 128 hexadecimal digits." : "Specify the digest as 64 hexadecimal digits.";
		case APITOKEN_STORED_BASE64:
			digest->data = digest_from_base64(stored, length);
			return digest->data != NULL ? NULL : "Specify the digest in base64 or base64url, which is 43 characters without padding.";
		case APITOKEN_STORED_DJANGO:
			digest->data = length == strlen(DJANGO_SHA512_PREFIX) + 2 * digest->length &&
				strncmp(stored, DJANGO_SHA512_PREFIX, strlen(DJANGO_SHA512_PREFIX)) == 0 ?
				from_hex(stored + strlen(DJANGO_SHA512_PREFIX), 2 * digest->length) : NULL;
			return digest->data != NULL ? NULL : "Specify \"sha512$$\" and 128 hexadecimal digits, as the column hashed_key has them.";
		case APITOKEN_STORED_PBKDF2:
			digest->data = stored;
			digest->length = length;
			return parse_pbkdf2(stored, length, &parts) ? NULL :
				"Specify \"pbkdf2_sha256$iterations$salt$digest\", with at most 2500000 iterations and a salt of at most 128 characters.";
		case APITOKEN_STORED_CRYPT:
			digest->data = stored;
			digest->length = length;
			return is_crypt(stored, length) ? NULL :
				"Use bcrypt ($2) with a cost of at most 15, $1, or with at most 2000000 rounds extended DES, and from PostgreSQL 18 on $5 and $6.";
	}
	return "Unknown format.";
}

bool
apitoken_foreign_slow(const ApitokenFormat *format)
{
	return format->hash == APITOKEN_FOREIGN_PBKDF2 || format->hash == APITOKEN_FOREIGN_CRYPT;
}

/* ---- digests of a text ---- */

/*
 * Compute the digest of a text.  Returns false if its parameters are in what is
 * stored, without which there is no digest.
 */
static bool
compute(const ApitokenFormat *format, const ApitokenForeignParts *parts, const ApitokenBytes *salt,
		ApitokenBytes *digest)
{
	ApitokenBytes pieces[2] = {{parts->secret, parts->secret_length}};
	const ApitokenPepper *key = format->secret == NULL ? NULL : apitoken_key(format->secret);
	ApitokenBytes server_key;
	uint8	   *result = palloc(APITOKEN_SHA512_LENGTH);

	digest->data = result;
	digest->length = APITOKEN_SHA512_LENGTH;
	switch (format->hash)
	{
		case APITOKEN_FOREIGN_SHA256_KEYED:
			pieces[1].data = key->key;
			pieces[1].length = Min(key->length, KEYED_BYTES);
			digest->length = APITOKEN_DIGEST_LENGTH;
			apitoken_sha256_of(pieces, 2, result);
			return true;
		case APITOKEN_FOREIGN_SHA256:
			digest->length = APITOKEN_DIGEST_LENGTH;
			apitoken_sha256_of(pieces, 1, result);
			return true;
		case APITOKEN_FOREIGN_SHA512_SALTED:
		case APITOKEN_FOREIGN_SHA512_BYTES:
			if (format->hash == APITOKEN_FOREIGN_SHA512_SALTED)
			{
				if (salt == NULL)
					return false;
				pieces[1] = *salt;
			}
			pieces[0].data = from_hex(parts->secret, parts->secret_length);
			pieces[0].length /= 2;
			if (pieces[0].data == NULL)
				return false;
			apitoken_sha512_of(pieces, pieces[1].data != NULL ? 2 : 1, result);
			return true;
		case APITOKEN_FOREIGN_SHA512:
			apitoken_sha512_of(pieces, 1, result);
			return true;
		case APITOKEN_FOREIGN_HMAC_SHA512:
			server_key.data = key->key;
			server_key.length = key->length;
			apitoken_hmac_sha512_of(&server_key, pieces, 1, result);
			return true;
		case APITOKEN_FOREIGN_PBKDF2:
		case APITOKEN_FOREIGN_CRYPT:
			break;
	}
	return false;
}

/* The digest of a text by which its token is looked up; false if the format has none. */
bool
apitoken_foreign_digest(const ApitokenFormat *format, const ApitokenForeignParts *parts, ApitokenBytes *digest)
{
	return compute(format, parts, NULL, digest);
}

/* PBKDF2 with HMAC-SHA-256 (RFC 8018), of which the first block is the digest. */
static void
pbkdf2(const ApitokenForeignParts *parts, const ApitokenBytes *salt, int iterations,
	   uint8 digest[APITOKEN_DIGEST_LENGTH])
{
	ApitokenBytes key = {parts->secret, parts->secret_length};
	uint8		short_key[APITOKEN_DIGEST_LENGTH];
	uint32		one = pg_hton32(1);
	ApitokenBytes pieces[2] = {*salt, {&one, sizeof(one)}};
	uint8		block[APITOKEN_DIGEST_LENGTH];
	ApitokenBytes last = {block, sizeof(block)};

	/* HMAC would hash a long key anew in each iteration */
	if (key.length > 64)
	{
		apitoken_sha256_of(&key, 1, short_key);
		key.data = short_key;
		key.length = sizeof(short_key);
	}
	apitoken_hmac_sha256_of(&key, pieces, 2, block);
	memcpy(digest, block, sizeof(block));
	for (int i = 1; i < iterations; i++)
	{
		if (i % 1000 == 0)
			CHECK_FOR_INTERRUPTS();
		apitoken_hmac_sha256_of(&key, &last, 1, block);
		for (int j = 0; j < sizeof(block); j++)
			digest[j] ^= block[j];
	}
	explicit_bzero(block, sizeof(block));
	explicit_bzero(short_key, sizeof(short_key));
}

/*
 * crypt(text, text) of pgcrypto; InvalidOid if that is not installed.  It is found
 * by the extension that it belongs to.  Its schema may be anybody's, so the function
 * must also be the one in C, which only a superuser can make.
 */
static Oid
crypt_function(void)
{
	Oid			extension = get_extension_oid("pgcrypto", true);
	Oid			types[] = {TEXTOID, TEXTOID};
	Relation	relation;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			schema = InvalidOid;
	Oid			function;
	bool		in_c = false;

	if (!OidIsValid(extension))
		return InvalidOid;
	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(relation, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(relation, AccessShareLock);

	tuple = SearchSysCache3(PROCNAMEARGSNSP, CStringGetDatum("crypt"),
							PointerGetDatum(buildoidvector(types, lengthof(types))), ObjectIdGetDatum(schema));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	function = ((Form_pg_proc) GETSTRUCT(tuple))->oid;
	in_c = ((Form_pg_proc) GETSTRUCT(tuple))->prolang == ClanguageId;
	ReleaseSysCache(tuple);
	return in_c && getExtensionOfObject(ProcedureRelationId, function) == extension ? function : InvalidOid;
}

static Oid
require_crypt_function(void)
{
	Oid			function = crypt_function();

	if (!OidIsValid(function))
		ereport_server(
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("imported tokens of format \"crypt\" require the extension \"pgcrypto\""),
				 errhint("Run CREATE EXTENSION pgcrypto.")));
	return function;
}

/* Raise an error unless digests of format crypt can be computed. */
void
apitoken_require_crypt(void)
{
	(void) require_crypt_function();
}

/*
 * The variants of bcrypt differ in faults of old implementations, for characters
 * that are not ASCII.  These have no place in a token, so all are computed as $2a.
 */
static bool
crypt_matches(const ApitokenForeignParts *parts, const ApitokenBytes *stored)
{
	char	   *setting = pnstrdup(stored->data, stored->length);
	text	   *secret = cstring_to_text_with_len(parts->secret, parts->secret_length);
	text	   *result;
	bool		matches;

	if (strncmp(setting, "$2", 2) == 0 && setting[2] != '\0' && setting[3] == '$')
		setting[2] = 'a';
	result = DatumGetTextPP(OidFunctionCall2Coll(require_crypt_function(), DEFAULT_COLLATION_OID,
												 PointerGetDatum(secret), CStringGetTextDatum(setting)));
	matches = VARSIZE_ANY_EXHDR(result) == stored->length &&
		timingsafe_bcmp(VARDATA_ANY(result), setting, stored->length) == 0;
	explicit_bzero(secret, VARSIZE(secret));
	return matches;
}

/*
 * Is this the text of a token of which this is stored?  The digests are compared in
 * constant time.  The work depends on what is stored, and not on the outcome.
 */
bool
apitoken_foreign_matches(const ApitokenFormat *format, const ApitokenForeignParts *parts,
						 const ApitokenBytes *stored, const ApitokenBytes *salt)
{
	ApitokenBytes digest;
	Pbkdf2		pbkdf2_parts;
	uint8		result[APITOKEN_DIGEST_LENGTH];

	switch (format->hash)
	{
		case APITOKEN_FOREIGN_PBKDF2:
			/* a row that its owner has altered may have anything */
			if (!parse_pbkdf2(stored->data, stored->length, &pbkdf2_parts))
				return false;
			pbkdf2(parts, &pbkdf2_parts.salt, pbkdf2_parts.iterations, result);
			return timingsafe_bcmp(result, pbkdf2_parts.digest, sizeof(result)) == 0;
		case APITOKEN_FOREIGN_CRYPT:
			return is_crypt(pnstrdup(stored->data, stored->length), stored->length) && crypt_matches(parts, stored);
		default:
			return compute(format, parts, salt, &digest) && digest.length == stored->length &&
				timingsafe_bcmp(digest.data, stored->data, stored->length) == 0;
	}
}
