/*
 * text.h
 *		The text of a token, the form of ids, and permission patterns.
 *
 * This is the lowest folder.  Nothing in it reads a catalog, so it can be
 * tested and fuzzed without a server.
 */
#ifndef APITOKEN_TEXT_H
#define APITOKEN_TEXT_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/*
 * The domain of an error says whose it is: ereport() gives it to each error of this
 * extension.  There are no translations.  With ereport_server(), the error is about
 * the server, whatever its SQLSTATE, and not about what a client has done.
 */
#define APITOKEN_DOMAIN "apitoken"
#define APITOKEN_SERVER_DOMAIN "apitoken-server"
#undef TEXTDOMAIN
#define TEXTDOMAIN APITOKEN_DOMAIN
#define ereport_server(...) ereport_domain(ERROR, APITOKEN_SERVER_DOMAIN, __VA_ARGS__)

/* ----- token.c: the text of a token; no catalog, no palloc, no ereport ----- */

#define APITOKEN_PREFIX_MIN 2
#define APITOKEN_PREFIX_MAX 12
#define APITOKEN_ID_CHARS 22
#define APITOKEN_SECRET_CHARS 43
#define APITOKEN_CHECKSUM_CHARS 6
#define APITOKEN_BODY_CHARS (APITOKEN_ID_CHARS + APITOKEN_SECRET_CHARS + APITOKEN_CHECKSUM_CHARS)

/* "<prefix>_<kind>_<body>", without a terminating zero */
#define APITOKEN_TEXT_MAX (APITOKEN_PREFIX_MAX + 1 + 3 + 1 + APITOKEN_BODY_CHARS)

/* "<prefix>_<kind>_<id>_...<last four>", without a terminating zero */
#define APITOKEN_MASKED_MAX (APITOKEN_PREFIX_MAX + 1 + 3 + 1 + APITOKEN_ID_CHARS + 4 + 4)

/* A truncated token text counts as a secret if it has at least this many characters of the secret. */
#define APITOKEN_SECRET_CUT 8

typedef enum ApitokenKind
{
	APITOKEN_ORGANIZATION,
	APITOKEN_USER
} ApitokenKind;

typedef struct ApitokenParts
{
	char		prefix[APITOKEN_PREFIX_MAX + 1];
	ApitokenKind kind;
	pg_uuid_t	id;
	char		masked[APITOKEN_MASKED_MAX + 1];
} ApitokenParts;

extern bool apitoken_valid_prefix(const char *prefix);
extern bool apitoken_parse_text(const char *text, size_t length, ApitokenParts *parts);
extern bool apitoken_generate_id(pg_uuid_t *id);
extern int	apitoken_compare_ids(const void *a, const void *b);
extern bool apitoken_generate_text(const char *prefix, ApitokenKind kind, const pg_uuid_t *id,
								   char text[APITOKEN_TEXT_MAX + 1], ApitokenParts *parts);
extern TimestampTz apitoken_id_time(const pg_uuid_t *id);
extern void apitoken_min_id(TimestampTz at, pg_uuid_t *id);
extern const char *apitoken_kind_code(ApitokenKind kind);	/* org, usr */
extern const char *apitoken_kind_name(ApitokenKind kind);	/* organization, user */
extern bool apitoken_kind_from_name(const char *name, ApitokenKind *kind);
extern bool apitoken_holds_secret(const char *text, size_t length);
extern bool apitoken_next_token(const char *text, size_t length, size_t *start, size_t *token_length, ApitokenParts *parts);
extern bool apitoken_next_foreign(const char *text, size_t length, size_t *start, size_t *token_length);
extern bool apitoken_holds_token(const char *text, size_t length);
extern bool apitoken_mask_secrets(char *text, size_t length);

/* ----- fragment.c: words that may be the end of a token; no catalog, no palloc, no ereport ----- */

extern bool apitoken_mask_fragments(char *text, const char *marker, size_t min_length, bool mixed);

/* ----- foreign.c: formats of tokens of other systems; no catalog, no palloc, no ereport ----- */

#define APITOKEN_FORMATS 14

/* maximum length of a text, in bytes, and of the part by which its token is looked up */
#define APITOKEN_FOREIGN_TEXT_MAX 512
#define APITOKEN_LOOKUP_KEY_MAX 64

/* length of the lookup key of format crypt: the first characters of the text */
#define APITOKEN_CRYPT_KEY_MIN 4
#define APITOKEN_CRYPT_KEY_MAX 16

/* By what a token is looked up. */
typedef enum ApitokenLookup
{
	APITOKEN_LOOKUP_KEY,		/* a part of the text */
	APITOKEN_LOOKUP_DIGEST,
	APITOKEN_LOOKUP_BOTH,		/* by the key if the text has one */
	APITOKEN_LOOKUP_PREFIX		/* the first characters of the text, of any number */
} ApitokenLookup;

/* How the other system writes what it stores. */
typedef enum ApitokenStored
{
	APITOKEN_STORED_HEX,
	APITOKEN_STORED_BASE64,		/* or base64url, with or without padding */
	APITOKEN_STORED_DJANGO,		/* sha512$$ and hex */
	APITOKEN_STORED_PBKDF2,		/* pbkdf2_sha256$iterations$salt$ and base64 */
	APITOKEN_STORED_CRYPT		/* crypt(3) */
} ApitokenStored;

/* How its digest is made. */
typedef enum ApitokenForeignHash
{
	APITOKEN_FOREIGN_SHA256,
	APITOKEN_FOREIGN_SHA256_KEYED,	/* of the secret and a key of the server, of which 32 bytes count */
	APITOKEN_FOREIGN_SHA512,
	APITOKEN_FOREIGN_SHA512_BYTES,	/* of the bytes that the secret has in hexadecimal */
	APITOKEN_FOREIGN_SHA512_SALTED, /* the same, followed by the token's salt */
	APITOKEN_FOREIGN_HMAC_SHA512,	/* under a key of the server */
	APITOKEN_FOREIGN_PBKDF2,
	APITOKEN_FOREIGN_CRYPT
} ApitokenForeignHash;

typedef struct ApitokenFormat
{
	const char *name;
	const char *family;			/* another name, which several formats may have; NULL: none */
	ApitokenLookup lookup;
	ApitokenStored stored;
	ApitokenForeignHash hash;
	const char *secret;			/* name of the server's key in the pepper file; NULL: none */
	int			key_min;		/* length of a lookup key */
	int			key_max;
	int			key_shown;		/* characters of it that the masked form has; fewer if they are secret */
} ApitokenFormat;

/* The parts of a text; they point into it. */
typedef struct ApitokenForeignParts
{
	const char *key;			/* NULL: it has none */
	size_t		key_length;
	const char *secret;			/* what is hashed */
	size_t		secret_length;
} ApitokenForeignParts;

extern const ApitokenFormat *apitoken_format(int n);
extern bool apitoken_format_has_name(const ApitokenFormat *format, const char *name, size_t length);
extern bool apitoken_foreign_shape(const ApitokenFormat *format, const char *text, size_t length,
								   ApitokenForeignParts *parts);
extern int	apitoken_formats_in_list(const char *list, const ApitokenFormat *found[APITOKEN_FORMATS]);

/* ----- id.c: ids of organizations and users ----- */

/* maximum length of an id, in bytes; the minimum is 1 */
#define APITOKEN_OWNER_ID_MAX 255

/* What deleted_users has before the digest of an id.  No id begins with it. */
#define APITOKEN_FORGOTTEN_MARK "forgotten:"

extern int	apitoken_hex_value(char digit);
extern const char *apitoken_id_fault(const char *id, size_t length);
extern void apitoken_check_id(const char *owner, const char *id);

/* ----- http.c: names in HTTP; no catalog, no palloc, no ereport ----- */

extern bool apitoken_is_http_token(const char *text, size_t length);

/* ----- permission.c: permissions and patterns ----- */

/* maximum length of each half of "resource:action"; the minimum is 1 */
#define APITOKEN_HALF_MAX 64
#define APITOKEN_PATTERN_MAX (2 * APITOKEN_HALF_MAX + 1)
#define APITOKEN_PATTERNS_MAX 100

typedef enum ApitokenAccess
{
	APITOKEN_READ_ONLY,
	APITOKEN_FULL,
	APITOKEN_CUSTOM
} ApitokenAccess;

extern bool apitoken_valid_permission(const char *permission);
extern bool apitoken_valid_pattern(const char *pattern);
extern bool apitoken_pattern_matches(const char *pattern, const char *permission);
extern bool apitoken_pattern_covers(const char *pattern, const char *other);
extern bool apitoken_pattern_intersect(const char *a, const char *b,
									   char result[APITOKEN_PATTERN_MAX + 1]);
extern bool apitoken_patterns_match(List *patterns, const char *permission);
extern const char *apitoken_patterns_uncovered(List *patterns, List *by);
extern List *apitoken_patterns_reduce(List *patterns);
extern List *apitoken_patterns_narrow(List *patterns, ApitokenAccess access, List *own,
									  bool personal);
extern bool apitoken_narrowing_allows(ApitokenAccess access, List *own, bool personal,
									  const char *permission);
extern bool apitoken_strings_contain(List *strings, const char *string);
extern List *apitoken_strings_from_array(ArrayType *array);
extern ArrayType *apitoken_strings_to_array(List *strings);
extern void apitoken_check_count(ArrayType *array, const char *hint);
extern void apitoken_check_patterns(ArrayType *array);
extern void apitoken_check_permission(const char *permission);
extern char *apitoken_clip(const char *text);
extern ApitokenAccess apitoken_access_from_text(const char *access);
extern const char *apitoken_access_to_text(ApitokenAccess access);

/* ----- visible.c: what people see of a text ----- */

typedef enum ApitokenVisible
{
	APITOKEN_VISIBLE,
	APITOKEN_NOTHING_VISIBLE,
	APITOKEN_CONTROL_CHARACTER
} ApitokenVisible;

extern ApitokenVisible apitoken_examine(const char *text, size_t length, bool lines, int *before, int *after);

#endif							/* APITOKEN_TEXT_H */
