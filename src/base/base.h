/*
 * base.h
 *		Settings, capabilities, digests, the HTTP request and the client's
 *		address, for all higher folders.
 */
#ifndef APITOKEN_BASE_H
#define APITOKEN_BASE_H

#include "text/text.h"

#include "fmgr.h"
#include "utils/inet.h"
#include "utils/jsonb.h"

#include "base/compat.h"
#include "base/verdicts.h"

/* ----- guc.c: settings ----- */

typedef enum ApitokenSetting
{
	APITOKEN_SETTING_TOKEN,
	APITOKEN_SETTING_USER_ID,
	APITOKEN_SETTING_CLIENT_ADDRESS,
	APITOKEN_SETTINGS
} ApitokenSetting;

/* A retention that never ends. */
#define APITOKEN_KEEP_ALL (-1)

extern char *apitoken_prefix;
extern char *apitoken_pepper_file;
extern int	apitoken_retention;			/* minutes */
extern int	apitoken_usage_retention;	/* minutes */
extern int	apitoken_notification_retention;
extern bool apitoken_notifications;
extern int	apitoken_usage_slots;
extern int	apitoken_flush_interval;	/* milliseconds */
extern bool apitoken_standbys_verify;
extern char *apitoken_primary_conninfo;
extern bool apitoken_subscriber_sends;
extern char *apitoken_token_headers;
extern char *apitoken_client_address_header;
extern char *apitoken_jwt_user_claim;
extern char *apitoken_issuer;
extern char *apitoken_audience;
extern bool apitoken_mask_logs;
extern bool apitoken_require_pepper;
extern bool apitoken_require_known_users;
extern bool apitoken_allow_unknown_permissions;
extern const ApitokenFormat *apitoken_imported_formats[APITOKEN_FORMATS];
extern int	apitoken_imported_formats_count;
extern uint64 apitoken_setting_generation;
extern void apitoken_guc_init(void);
extern bool apitoken_outside_block(void);
extern void apitoken_require_setting(const void *variable);
extern bool apitoken_required(const bool *setting);
extern const char *apitoken_setting_in_force(ApitokenSetting setting);
extern Oid	apitoken_setting_role(ApitokenSetting setting);
extern const char *apitoken_request_setting(const char *name, Oid *setter);

/* ----- json.c: build fields of JSON objects ----- */

extern void apitoken_json_string(ApitokenJson *state, const char *key, const char *string);
extern void apitoken_json_bool(ApitokenJson *state, const char *key, bool boolean);
extern void apitoken_json_integer(ApitokenJson *state, const char *key, int64 integer);
extern void apitoken_json_strings(ApitokenJson *state, const char *key, ArrayType *array);

/* ----- encoding.c: conversion between encodings, texts in the database's encoding ----- */

extern char *apitoken_convert(const char *text, size_t length, int from, int to);
extern ApitokenVisible apitoken_examine_text(char *text, bool lines, char **trimmed);

/* ----- request.c: the HTTP request, from PostgREST's settings ----- */

typedef enum ApitokenRequest
{
	APITOKEN_NO_REQUEST,
	APITOKEN_REQUEST,
	APITOKEN_BROKEN_REQUEST,	/* the headers are not a JSON object */
	APITOKEN_FOREIGN_REQUEST	/* the headers do not count: see apitoken_setter_counts() */
} ApitokenRequest;

typedef struct ApitokenField
{
	char	   *name;
	char	   *value;			/* NULL if neither a string nor a number */
	bool		is_string;
} ApitokenField;

extern const char *apitoken_request_method(void);
extern ApitokenRequest apitoken_request_headers(List **headers);
extern List *apitoken_header_values(List *headers, const char *name);
extern char *apitoken_request_claim(const char *name, Oid *setter);

/* ----- http_error.c: errors for clients of HTTP ----- */

#define APITOKEN_ERRCODE_POSTGREST MAKE_SQLSTATE('P', 'G', 'R', 'S', 'T')

/* A header of a response.  Arrays end with a name of NULL. */
typedef struct ApitokenHttpHeader
{
	const char *name;
	const char *value;
} ApitokenHttpHeader;

typedef struct ApitokenHttpError
{
	int			status;
	const char *code;			/* in the body of the response, as are the next three */
	const char *message;
	const char *details;		/* NULL: none, as with all that follow */
	const char *hint;
	const ApitokenHttpHeader *headers;	/* of the response */
	const char *log;			/* detail for the server log only */
	const char *context;
} ApitokenHttpError;

extern pg_noreturn void apitoken_raise_http(const ApitokenHttpError *error);
extern int	apitoken_errhint(const char *sql, const char *http);

/* ----- pepper.c: the pepper file ----- */

#define APITOKEN_PEPPER_BYTES_MAX 128

#define APITOKEN_KEY_NAME_MAX 31

typedef struct ApitokenPepper
{
	int16		scheme;			/* number of the digest scheme, 1 or more; 0: a key with a name */
	char		name[APITOKEN_KEY_NAME_MAX + 1];	/* empty: a pepper */
	uint8		length;
	uint8		key[APITOKEN_PEPPER_BYTES_MAX];
} ApitokenPepper;

extern const ApitokenPepper *apitoken_signing_pepper(void);
extern const ApitokenPepper *apitoken_pepper(int16 scheme);
extern const ApitokenPepper *apitoken_usable_peppers(int *count);
extern List *apitoken_pepper_schemes(void);
extern const ApitokenPepper *apitoken_key(const char *name);

/* ----- digest.c: SHA-256, HMAC under a pepper, comparison ----- */

#define APITOKEN_DIGEST_LENGTH 32

extern int16 apitoken_signing_scheme(void);
extern void apitoken_digest(const char *text, size_t length, int16 scheme,
							uint8 digest[APITOKEN_DIGEST_LENGTH]);
extern void apitoken_pepper_digest(const char *text, size_t length, const ApitokenPepper *pepper,
								   uint8 digest[APITOKEN_DIGEST_LENGTH]);
extern bool apitoken_digest_matches(const uint8 a[APITOKEN_DIGEST_LENGTH],
									const uint8 b[APITOKEN_DIGEST_LENGTH]);

/* One of the pieces of which a digest is made. */
typedef struct ApitokenBytes
{
	const void *data;
	size_t		length;
} ApitokenBytes;

#define APITOKEN_SHA512_LENGTH 64

extern Datum apitoken_bytea_datum(const void *data, size_t length);
extern void apitoken_sha256_of(const ApitokenBytes *pieces, int count, uint8 digest[APITOKEN_DIGEST_LENGTH]);
extern void apitoken_hmac_sha256_of(const ApitokenBytes *key, const ApitokenBytes *pieces, int count,
									uint8 digest[APITOKEN_DIGEST_LENGTH]);
extern void apitoken_sha512_of(const ApitokenBytes *pieces, int count, uint8 digest[APITOKEN_SHA512_LENGTH]);
extern void apitoken_hmac_sha512_of(const ApitokenBytes *key, const ApitokenBytes *pieces, int count,
									uint8 digest[APITOKEN_SHA512_LENGTH]);

/* ----- foreign_digest.c: what other systems store of their tokens ----- */

extern const char *apitoken_foreign_stored(const ApitokenFormat *format, const char *stored, ApitokenBytes *digest);
extern bool apitoken_foreign_slow(const ApitokenFormat *format);
extern bool apitoken_foreign_digest(const ApitokenFormat *format, const ApitokenForeignParts *parts,
									ApitokenBytes *digest);
extern bool apitoken_foreign_matches(const ApitokenFormat *format, const ApitokenForeignParts *parts,
									 const ApitokenBytes *stored, const ApitokenBytes *salt);
extern void apitoken_require_crypt(void);

/* ----- extension.c: the installed version must be the library's ----- */

extern bool apitoken_in_script(Oid extension);
extern void apitoken_require_version(Oid extension);
extern const Pg_finfo_record *apitoken_function_info(void);

/* In place of PG_FUNCTION_INFO_V1: the server calls pg_finfo_...() when it looks up the function. */
#define APITOKEN_FUNCTION_INFO_V1(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	extern PGDLLEXPORT const Pg_finfo_record *CppConcat(pg_finfo_,name)(void); \
	const Pg_finfo_record *CppConcat(pg_finfo_,name)(void) { return apitoken_function_info(); } \
	extern int no_such_variable

/* ----- function.c: functions of the extension, capabilities of roles ----- */

extern void apitoken_function_init(void);
extern Oid	apitoken_find_function(const char *schema, const char *name, int nargs, const Oid *args);
extern bool apitoken_role_may_act(Oid role);
extern bool apitoken_role_may_use(Oid role);
extern bool apitoken_role_is_trusted(Oid role);
extern bool apitoken_session_is_trusted(void);
extern bool apitoken_setter_counts(Oid setter, bool (*has_capability) (Oid role));

/* ----- address.c: the address of the client ----- */

extern inet *apitoken_client_address(inet *argument);
extern void apitoken_network_of(const inet *address, inet_struct *network);
extern ArrayType *apitoken_canonical_networks(ArrayType *networks);
extern bool apitoken_in_networks(inet *address, ArrayType *networks);

#endif							/* APITOKEN_BASE_H */
