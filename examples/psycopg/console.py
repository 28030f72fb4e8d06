"""What the page examples/console needs of a backend: the part of PostgREST's API of
the schema apitoken that <api-tokens> speaks, and the page's files.

Names of columns, functions and operators come from the lists below, and values are
parameters.  Who may do what is decided by the database.
"""

import json
import pathlib
import re
import sys
import urllib.parse

import psycopg
from psycopg.rows import tuple_row

import tokens

TOKEN = {
    "label": "text",
    "description": "text",
    "role": "text",
    "access": "text",
    "permissions": "text[]",
    "allowed_networks": "cidr[]",
    "rate_limit_per_minute": "integer",
    "quota": "bigint",
    "quota_period": "text",
}
EDITABLE = {**TOKEN, "expires_at": "timestamptz", "suspended_at": "timestamptz"}

# Columns that a request may name, with their types.
RELATIONS = {
    "tokens": {
        **EDITABLE,
        "id": "uuid",
        "organization_id": "text",
        "user_id": "text",
        "masked": "text",
        "created_by": "text",
        "created_by_name": "text",
        "created_at": "timestamptz",
        "revoked_at": "timestamptz",
        "last_used_at": "timestamptz",
        "status": "text",
        "remaining": "bigint",
        "previous_secrets": "jsonb",
    },
    "token_usage_daily": {"token_id": "uuid", "day": "date", "accepted": "bigint", "refused": "bigint"},
    "organizations": {"id": "text", "name": "text", "max_lifetime": "interval", "require_expiry": "boolean", "default_role": "text"},
    "roles": {"name": "text", "description": "text", "permissions": "text[]", "database_role": "text"},
    "permissions": {"name": "text", "description": "text", "resource": "text", "action": "text"},
}
# Functions, with their arguments.
FUNCTIONS = {
    "GET can": {"permission": "text", "organization_id": "text"},
    "POST create_token": {**TOKEN, "organization_id": "text", "expires_in": "interval"},
    "POST regenerate_token": {"id": "uuid", "overlap": "interval", "expires_in": "interval"},
    "POST revoke_token": {"id": "uuid", "confirm_label": "text", "reason": "text"},
}
OPERATORS = {
    "eq": "{column} = %s::{type}",
    "lt": "{column} < %s::{type}",
    "gte": "{column} >= %s::{type}",
    "in": "{column} = ANY (%s::{type}[])",
    "ilike": "{column} ILIKE %s",
    "is": "{column} IS NULL",
}
ROWS = 1000


def unknown(what):
    return tokens.Refused(400, "PGRST100", message=f"unknown {what}")


def known(names, name, what):
    """The entry of a name in one of the lists."""
    if name not in names:
        raise unknown(what)
    return names[name]


# ---- statements


def operand(operator, value):
    """A value as the operator wants it, in a list of parameters."""
    if operator == "is":
        if value != "null":
            raise unknown("value")
        return []
    if operator == "in":
        if not re.fullmatch(r"\(.*\)", value):
            raise unknown("value")
        return [value[1:-1].split(",")]
    return [value.replace("*", "%")] if operator == "ilike" else [value]


def quoted(columns, names):
    """The names in a list of columns, for a statement."""
    for name in names:
        known(columns, name, "column")
    return [f'"{name}"' for name in names]


def parse(columns, query):
    """?select=a,b&c=eq.x&order=a.desc&limit=10, as the parts of a SELECT."""
    select, where, order, limit, values = [], [], [], ROWS, []
    for name, value in query:
        if name == "select":
            select = quoted(columns, value.split(","))
        elif name == "order":
            for item in value.split(","):
                column, _, direction = item.partition(".")
                if direction not in ("", "asc", "desc"):
                    raise unknown("order")
                order.append(f"{quoted(columns, [column])[0]} {direction}")
        elif name == "limit":
            if not re.fullmatch("[0-9]{1,4}", value):
                raise unknown("limit")
            limit = min(int(value), ROWS)
        else:
            type_ = known(columns, name, "column")
            operator, _, text = value.partition(".")
            where.append(known(OPERATORS, operator, "operator").format(column=f'"{name}"', type=type_))
            values += operand(operator, text)
    if not select:
        raise unknown("select")
    return select, where, order, limit, values


def select_rows(relation, query):
    select, where, order, limit, values = parse(known(RELATIONS, relation, "relation"), query)
    return (
        f"SELECT coalesce(json_agg(t), '[]') FROM (SELECT {', '.join(select)} FROM apitoken.{relation}"
        + (f" WHERE {' AND '.join(where)}" if where else "")
        + (f" ORDER BY {', '.join(order)}" if order else "")
        + f" LIMIT {limit}) t",
        values,
    )


def record(types, body, what):
    """The fields of a JSON object, as a row of these types: FROM ..."""
    if not body:
        raise unknown(what)
    fields = ", ".join(f'"{name}" {known(types, name, what)}' for name in body)
    return f"json_to_record(%s::json) AS b ({fields})"


def call_function(method, name, body):
    source = record(known(FUNCTIONS, f"{method} {name}", "function"), body, "argument")
    given = ", ".join(f'"{argument}" => b."{argument}"' for argument in body)
    return f"SELECT to_json(f) FROM {source}, LATERAL apitoken.{name}({given}) AS f", [json.dumps(body)]


def edit_token(query, body):
    source = record(EDITABLE, body, "column")
    select, where, _, _, values = parse(RELATIONS["tokens"], query)
    # one token, by its id
    if where != ['"id" = %s::uuid']:
        raise unknown("filter")
    changes = ", ".join(f'"{name}" = b."{name}"' for name in body)
    columns = ", ".join(f"tokens.{name}" for name in select)
    return (
        f"WITH t AS (UPDATE apitoken.tokens SET {changes} FROM {source} WHERE tokens.id = %s::uuid RETURNING {columns}) "
        "SELECT coalesce(json_agg(t), '[]') FROM t",
        [json.dumps(body), *values],
    )


# ---- answers

# The statuses of docs/errors.md.  The statements above are on the extension's own
# relations and functions, and with these SQLSTATEs it tells callers about their own
# request.  A message with another one may be anybody's: it is for our log.
TOLD = {"22023": 400, "22P02": 400, "23502": 400, "23503": 409, "23505": 409, "25006": 403, "28000": 403, "42501": 403, "55000": 409}


def refusal(error):
    """The answer for an exception, in PostgREST's form."""

    def body(code, message, details=None, hint=None):
        return {"code": code, "message": message, "details": details, "hint": hint}

    if isinstance(error, tokens.Refused):
        return error.status, body(error.code, str(error)), error.headers
    state = getattr(error, "sqlstate", None)
    if state in TOLD:
        return TOLD[state], body(state, error.diag.message_primary, error.diag.message_detail, error.diag.message_hint), []
    status = tokens.status_of(error) if isinstance(error, psycopg.Error) else 500
    print(f"{status}: {error}", file=sys.stderr)
    return (status, body(state, "refused"), []) if status < 500 else (status, body("server_error", "internal server error"), [])


def token_api(connection, environ, path, acting, read_body):
    """Answer one request.  acting(connection, environ) is a transaction of the signed-in
    user, and read_body(environ) reads a JSON object."""
    try:
        method = environ["REQUEST_METHOD"]
        query = urllib.parse.parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        function = re.fullmatch("rpc/([^/]+)", path)
        with acting(connection, environ):
            if function:
                statement = call_function(method, function[1], dict(query) if method == "GET" else read_body(environ))
            elif method == "GET":
                statement = select_rows(path, query)
            elif method == "PATCH" and path == "tokens":
                statement = edit_token(query, read_body(environ))
            else:
                raise unknown("relation")
            with connection.cursor(row_factory=tuple_row) as cursor:
                return 200, cursor.execute(*statement).fetchone()[0], []
    except (tokens.Refused, tokens.SetupError, psycopg.Error) as error:
        return refusal(error)


# ---- the page

# The page may run its own script, and nothing else: no markup from strings either.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE = pathlib.Path(__file__).resolve().parent.parent / "console"
FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml; charset=utf-8",
    "api-tokens.js": "text/javascript; charset=utf-8",
}


def page(name):
    """A file of the page, with its headers."""
    if name not in FILES:
        raise tokens.Refused(404, "not found")
    return 200, (PAGE / name).read_bytes(), [
        ("Content-Type", FILES[name]),
        ("Content-Security-Policy", POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
    ]
