"""Articles over HTTP, as a WSGI application, for programs with an API token and for
signed-in users (your session middleware sets REMOTE_USER).

    PGUSER=app_psycopg PGDATABASE=app python3 app.py

GET, POST /articles       the articles that the caller may see
GET /feed/ORGANIZATION    for tokens with article:read there
POST /tokens              creates a token, for signed-in users
GET /console/index.html   the page of examples/console, which uses /apitoken/...
"""

import json
import os
import re
import sys

import psycopg
import psycopg_pool
from psycopg.rows import dict_row

import console
import tokens

# libpq's environment variables (PGHOST, ...) name the server.  autocommit: a
# connection is in a transaction only if this program begins one.
# PREPARE=off: for a pooler that does not track prepared statements.
pool = psycopg_pool.ConnectionPool(
    min_size=1,
    max_size=int(os.environ.get("POOL_SIZE", 4)),
    timeout=10,
    kwargs={
        "autocommit": True,
        "row_factory": dict_row,
        "prepare_threshold": None if os.environ.get("PREPARE") == "off" else 5,
    },
)


def acting(connection, environ):
    """A transaction of the caller.  With a bad token it never acts as the signed-in user."""
    token = tokens.bearer(environ.get("HTTP_AUTHORIZATION"))
    if token is not None:
        return tokens.by_token(connection, token, address(environ))
    return signed_in(connection, environ)


def signed_in(connection, environ):
    """A transaction of the signed-in user."""
    return tokens.as_user(connection, required(environ.get("REMOTE_USER")), address(environ))


def address(environ):
    """The client's address as this server sees it.  Behind your own proxy, use the address that the proxy sends."""
    return environ.get("REMOTE_ADDR")


def required(credentials):
    if not credentials:
        raise tokens.Refused(401, "unauthorized", [("WWW-Authenticate", "Bearer")])
    return credentials


def json_object(environ):
    # only JSON: a form on another site cannot send it with our cookie
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip() != "application/json":
        raise tokens.Refused(415, "application/json expected")
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        value = json.loads(environ["wsgi.input"].read(min(length, 65536)))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise tokens.Refused(400, "a JSON object is expected")
    return value


def body(environ):
    value = json_object(environ)
    if any(not isinstance(text, str) for text in value.values()):
        raise tokens.Refused(400, "strings are expected")
    return value


def list_articles(connection, environ):
    with acting(connection, environ):
        return 200, connection.execute("SELECT id, organization_id, title FROM article ORDER BY id").fetchall()


def create_article(connection, environ):
    article = body(environ)
    with acting(connection, environ):
        return 201, connection.execute(
            "INSERT INTO article (organization_id, title) VALUES (%s, %s) RETURNING id, organization_id, title",
            [article.get("organization_id"), article.get("title")],
        ).fetchone()


def feed(connection, environ, organization_id):
    """No transaction, no policies: one question, and we must act on the answer."""
    token = required(tokens.bearer(environ.get("HTTP_AUTHORIZATION")))
    row = tokens.verify(connection, token, "article:read", organization_id, environ.get("REMOTE_ADDR"))
    return 200, {"organization_id": organization_id, "label": row["label"], "kind": row["kind"]}


def create_token(connection, environ):
    wanted = body(environ)
    with signed_in(connection, environ):
        return 201, connection.execute(
            """SELECT id::text, token, masked FROM apitoken.create_token(%s, organization_id => %s, access => %s,
                                                                         expires_in => %s::interval)""",
            [wanted.get("label"), wanted.get("organization_id"), wanted.get("access"), wanted.get("expires_in", "90 days")],
        ).fetchone()


def token_api(connection, environ, path):
    return console.token_api(connection, environ, path, signed_in, json_object)


ROUTES = [
    ("GET", r"/articles", list_articles),
    ("POST", r"/articles", create_article),
    ("GET", r"/feed/([^/]+)", feed),
    ("POST", r"/tokens", create_token),
    ("GET", r"/apitoken/(.+)", token_api),
    ("POST", r"/apitoken/(.+)", token_api),
    ("PATCH", r"/apitoken/(.+)", token_api),
]


def answer(environ):
    file = re.fullmatch("/console/([^/]+)", environ.get("PATH_INFO", ""))
    if file and environ["REQUEST_METHOD"] == "GET":
        return console.page(file[1])
    for method, path, function in ROUTES:
        match = re.fullmatch(path, environ.get("PATH_INFO", ""))
        if match and method == environ["REQUEST_METHOD"]:
            # when it returns to the pool, the connection has no transaction and no identity
            with pool.connection() as connection:
                status, value, *headers = function(connection, environ, *match.groups())
                return status, value, headers[0] if headers else []
    return 404, {"error": "not found"}, []


def application(environ, start_response):
    try:
        status, value, headers = answer(environ)
    except tokens.Refused as error:
        status, value, headers = error.status, {"error": error.code}, error.headers
    except psycopg_pool.PoolTimeout:
        status, value, headers = 503, {"error": "try again"}, []
    except (psycopg.Error, tokens.SetupError) as error:
        status = tokens.status_of(error) if isinstance(error, psycopg.Error) else 500
        print(f"{status}: {error}", file=sys.stderr)
        # the server's message is for our log: it may quote other users' data
        value, headers = {"error": "refused" if status < 500 else "failed"}, []
    start_response(
        f"{status} {'OK' if status < 300 else 'Refused' if status < 500 else 'Failed'}",
        list({"Content-Type": "application/json", "Cache-Control": "no-store", **dict(headers)}.items()),
    )
    return [value if isinstance(value, bytes) else json.dumps(value).encode()]


if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    with make_server("127.0.0.1", int(os.environ.get("PORT", 8080)), application) as server:
        server.serve_forever()
