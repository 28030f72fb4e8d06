/*
 * verdicts.h
 *		The verdicts of a verification.
 *
 * Each line below describes one verdict:
 *
 *	VERDICT(C name, name, known, HTTP status)
 *
 * The name is the text that verify() returns.  It is also the name of a column
 * of apitoken.stats; those columns have the order of these lines.  `known` is
 * true if the verdict requires the right secret.  Only then does the caller learn
 * which token the verdict is about.  The status is the one that PostgREST sends
 * (RFC 9110 section 15, RFC 6585 section 4).
 */
#ifndef APITOKEN_VERDICTS_H
#define APITOKEN_VERDICTS_H

#define VERDICTS(VERDICT) \
	VERDICT(VALID,              valid,              true,  200) \
	VERDICT(MALFORMED,          malformed,          false, 401) \
	VERDICT(UNKNOWN,            unknown,            false, 401) \
	VERDICT(REVOKED,            revoked,            true,  401) \
	VERDICT(EXPIRED,            expired,            true,  401) \
	VERDICT(SUSPENDED,          suspended,          true,  401) \
	VERDICT(POLICY_REFUSED,     policy_refused,     true,  403) \
	VERDICT(NETWORK_REFUSED,    network_refused,    true,  403) \
	VERDICT(PERMISSION_REFUSED, permission_refused, true,  403) \
	VERDICT(QUOTA_EXCEEDED,     quota_exceeded,     true,  429) \
	VERDICT(RATE_LIMITED,       rate_limited,       true,  429)

#define VERDICT_ENUM(NAME, name, known, status) APITOKEN_##NAME,

typedef enum ApitokenVerdict
{
	VERDICTS(VERDICT_ENUM)
	APITOKEN_VERDICTS
} ApitokenVerdict;

#endif							/* APITOKEN_VERDICTS_H */
