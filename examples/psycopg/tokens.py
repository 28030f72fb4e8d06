"""API tokens with psycopg 3: identify the caller, and map errors to HTTP.

A connection given to these functions comes from a pool, or belongs to one
thread.  It must not be in a transaction: an identity lasts for one transaction,
and the code that began the transaction would share it.
"""

import contextlib
import math
import re

import psycopg
from psycopg.pq import TransactionStatus


class Refused(Exception):
    """The request is refused, with an HTTP status, a code, headers, and perhaps words."""

    def __init__(self, status, code, headers=(), message=None):
        super().__init__(message or code)
        self.status, self.code, self.headers = status, code, list(headers)


class SetupError(Exception):
    """The login lacks a capability.  The caller is not at fault."""


def refused(verdict, seconds=None):
    """The HTTP response for a verdict other than valid (RFC 6750, RFC 6585)."""
    if verdict in ("quota_exceeded", "rate_limited"):
        # seconds is None if the server cannot count (without shared_preload_libraries), or no wait helps
        return Refused(429, verdict, [("Retry-After", str(math.ceil(seconds)))] if seconds else [])
    if verdict in ("policy_refused", "network_refused"):
        return Refused(403, verdict)
    if verdict == "permission_refused":
        return Refused(403, "insufficient_scope", [("WWW-Authenticate", 'Bearer error="insufficient_scope"')])
    # malformed, unknown, revoked, expired, suspended: only the log may say which
    return Refused(401, "invalid_token", [("WWW-Authenticate", 'Bearer error="invalid_token"')])


def bearer(authorization):
    """The token in an Authorization header; None if there is no such header."""
    if authorization is None:
        return None
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Refused(401, "invalid_token", [("WWW-Authenticate", "Bearer")])
    return token.strip()


def verify(connection, token, permission=None, organization_id=None, client_address=None):
    """Verify a request in one statement.  Returns a row about the token, or raises Refused."""
    with _setup(), connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute(
            """SELECT valid, verdict, token_id, label, kind, organization_id, user_id, role, access, permissions, groups,
                      expires_at, metadata, extract(epoch FROM retry_after)::float8 AS seconds
               FROM apitoken.verify(%s, %s, %s, %s)""",
            [token, permission, organization_id, client_address],
        ).fetchone()
    if not row["valid"]:
        raise refused(row["verdict"], row["seconds"])
    return row


@contextlib.contextmanager
def by_token(connection, token, client_address=None):
    """A transaction that acts by the token: policies apply to the token."""
    _require_idle(connection)
    with connection.transaction():
        try:
            with _setup():
                _come_from(connection, client_address)
                connection.execute("SELECT FROM apitoken.authenticate(%s)", [token])
        except psycopg.errors.InvalidAuthorizationSpecification as error:
            verdict = re.search(r"Verdict: (\w+)", error.diag.message_detail or "")
            seconds = re.search(r"in ([\d.]+) seconds", error.diag.message_hint or "")
            raise refused(verdict and verdict[1], seconds and float(seconds[1])) from None
        yield connection


@contextlib.contextmanager
def as_user(connection, user_id, client_address=None):
    """A transaction that acts as a user whom we have signed in."""
    _require_idle(connection)
    with connection.transaction():
        with _setup():
            _come_from(connection, client_address)
            connection.execute("SELECT FROM apitoken.act_as(%s)", [user_id])
        yield connection


def status_of(error):
    """The HTTP status of a psycopg.Error from the request's own work."""
    state = error.sqlstate
    if state is None:  # the error is not from the server
        return 400 if isinstance(error, psycopg.DataError) else 503
    known = {
        "42501": 403,  # a policy refuses it
        "25006": 403,  # the token is read-only
        "23505": 409,
        "40001": 503,  # try again
        "40P01": 503,
    }
    classes = {"22": 400, "23": 400, "08": 503, "53": 503, "57": 503}
    return known.get(state) or classes.get(state[:2]) or 500


def _come_from(connection, client_address):
    # Only we know the client: the connection's address is ours, or the pooler's.
    connection.execute("SELECT set_config('apitoken.client_address', %s, true)", [client_address or ""])


@contextlib.contextmanager
def _setup():
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise SetupError(f"{error.diag.message_primary}; {error.diag.message_hint or 'see apitoken.allow()'}") from error


def _require_idle(connection):
    if connection.info.transaction_status != TransactionStatus.IDLE:
        raise SetupError("the connection is within a transaction; open the pool with autocommit=True")
