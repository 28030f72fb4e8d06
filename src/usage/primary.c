/*
 * primary.c
 *		The connection to the server that counts the use, by libpq: of a standby
 *		to its primary, of a logical subscriber to its publisher.
 *
 * The server's own libpqwalreceiver would save linking with libpq.  But before
 * PostgreSQL 17 it makes only connections for replication: the role would need the
 * attribute REPLICATION, with which it can read every row of the cluster.  Its
 * functions also change with each major, and it takes no parameters and no deadline.
 * libpq has one interface on all majors, and each server has it installed for its
 * own programs.
 *
 * Only a worker that sends uses this, outside of transactions, so that waiting for
 * the primary does not hold back the replay.  Every wait ends at a deadline, when
 * the worker is told to stop, and with the postmaster.  Only the lookup of a host
 * name cannot be interrupted.
 *
 * Use that is sent to a wrong server would be lost, because unknown tokens are left
 * out.  So a standby asks for the identifier of the cluster, which is its own, and a
 * subscriber for the replication slot of its subscription.  A server that sends use
 * itself refuses it (receive.c).
 *
 * Whoever may read apitoken.stats sees the reason of a failure.  It is never text
 * of the connection string, which may have a password.  libpq's own message, which
 * names the host, is for the server log.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xlog.h"
#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "usage/usage.h"

struct ApitokenPrimary
{
	PGconn	   *connection;
};

/*
 * After so long without an answer, in milliseconds, the next host of the connection
 * string is tried.  A value in the connection string has precedence.
 */
#define HOST_TIMEOUT "1500"

/*
 * What the session needs whatever its role and database set.  It must not wait for a
 * synchronous standby, which may be the one that sends.
 */
#define SESSION \
	"SET search_path = pg_catalog; SET default_transaction_isolation = 'read committed';" \
	" SET default_transaction_read_only = off; SET statement_timeout = '3s'; SET lock_timeout = '2s';" \
	" SET idle_in_transaction_session_timeout = '10s'; SET synchronous_commit = local; SET DateStyle = 'ISO, YMD';"

/* Is it a standby, and the right server?  The second one is the condition for that. */
#define IDENTIFY " SELECT pg_is_in_recovery(), "
#define IS_CLUSTER "system_identifier = " UINT64_FORMAT " FROM pg_control_system()"
#define HAS_SLOT "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s AND database = current_database())"

#define RECORD "SELECT apitoken.record_usage($1::pg_catalog.uuid, $2::pg_catalog.uuid, $3::pg_catalog.jsonb, $4::pg_catalog.jsonb)"
#define RECORD_PARAMETERS 4

static void
set_problem(ApitokenPrimaryError *error, const char *problem)
{
	snprintf(error->problem, sizeof(error->problem), "%s", problem);
	error->problem[pg_mbcliplen(error->problem, strlen(error->problem), sizeof(error->problem) - 1)] = '\0';
	for (char *c = error->problem; *c != '\0'; c++)
	{
		if (*c == '\n')
			*c = ' ';
	}
	while (error->problem[0] != '\0' && error->problem[strlen(error->problem) - 1] == ' ')
		error->problem[strlen(error->problem) - 1] = '\0';
}

/* What is wrong with the connection string, or NULL.  This does not repeat it. */
const char *
apitoken_conninfo_fault(void)
{
	char	   *message = NULL;
	PQconninfoOption *options;
	bool		password = false;

	if (apitoken_primary_conninfo[0] == '\0')
		return NULL;
	options = PQconninfoParse(apitoken_primary_conninfo, &message);
	if (message != NULL)
		PQfreemem(message);
	if (options == NULL)
		return "is not a connection string";
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
		password = password || (strcmp(option->keyword, "password") == 0 && option->val != NULL);
	PQconninfoFree(options);
	return password ? "has a password in it" : NULL;
}

/* ---- waiting ---- */

/* Wait for the socket, at most until the deadline.  Returns false after it. */
static bool
wait_for_socket(PGconn *connection, int events, TimestampTz until)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	int			occurred;

	if (left <= 0 || PQsocket(connection) == PGINVALID_SOCKET)
		return false;
	occurred = WaitLatchOrSocket(MyLatch, events | WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 PQsocket(connection), left, PG_WAIT_EXTENSION);
	if (occurred & WL_LATCH_SET)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return true;
}

/* Go on until the connection is made.  Returns false at the deadline. */
static bool
finish_connecting(PGconn *connection, TimestampTz until)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	while (status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		int			events = status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;

		if (!wait_for_socket(connection, events, until))
			return false;
		status = PQconnectPoll(connection);
	}
	return true;
}

/* Send what libpq has in its buffer.  Returns false at the deadline, or if the connection is broken. */
static bool
finish_sending(PGconn *connection, TimestampTz until)
{
	int			more;

	while ((more = PQflush(connection)) == 1)
	{
		/* the server may wait for us to read */
		if (!wait_for_socket(connection, WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE, until) ||
			!PQconsumeInput(connection))
			return false;
	}
	return more == 0;
}

/* The last result of a query that was sent; NULL at the deadline, or if the connection is broken. */
static PGresult *
last_result(PGconn *connection, TimestampTz until)
{
	PGresult   *last = NULL;

	for (;;)
	{
		PGresult   *result;

		while (PQisBusy(connection))
		{
			if (!wait_for_socket(connection, WL_SOCKET_READABLE, until) || !PQconsumeInput(connection))
			{
				PQclear(last);
				return NULL;
			}
		}
		result = PQgetResult(connection);
		if (result == NULL)
			return last;
		/* an error is the last result of the statements that were sent together */
		PQclear(last);
		last = result;
		if (PQstatus(connection) == CONNECTION_BAD)
			return last;
	}
}

/* ---- errors ---- */

/*
 * Why there is no connection.  libpq begins the message with the host; what follows
 * was said by the server or the operating system.
 */
static void
connection_problem(PGconn *connection, ApitokenPrimaryError *error)
{
	static const char failed[] = " failed: ";
	char	   *message = pstrdup(PQerrorMessage(connection));
	char	   *reason = NULL;

	while (message[0] != '\0' && message[strlen(message) - 1] == '\n')
		message[strlen(message) - 1] = '\0';
	error->detail = message;
	/* of several hosts, the last one counts */
	for (char *at = strstr(message, "connection to server "); at != NULL; at = strstr(at + 1, "connection to server "))
	{
		reason = strstr(at, failed);
		if (reason != NULL)
			reason += strlen(failed);
	}
	if (reason != NULL)
	{
		char	   *line = pstrdup(reason);

		line[strcspn(line, "\n")] = '\0';
		set_problem(error, psprintf("could not connect: %s", line));
	}
	else
		set_problem(error, "could not connect");
}

/* An error that the primary has returned for a statement. */
static void
statement_problem(PGconn *connection, const PGresult *result, ApitokenPrimaryError *error)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);

	/* with FATAL, the transaction may have been committed */
	error->refused = severity != NULL && strcmp(severity, "ERROR") == 0;
	if (detail != NULL)
		error->detail = pstrdup(detail);
	if (sqlstate == NULL || message == NULL)
		connection_problem(connection, error);
	else if (strcmp(sqlstate, "3F000") == 0)
	{
		set_problem(error, "the extension \"apitoken\" is not installed in this database of the primary");
		error->hint = "Run CREATE EXTENSION apitoken there.";
	}
	else if (strcmp(sqlstate, "42883") == 0)
	{
		set_problem(error, "the extension \"apitoken\" of the primary has another version, without record_usage()");
		error->hint = "Run ALTER EXTENSION apitoken UPDATE there.";
	}
	else if (strcmp(sqlstate, "42501") == 0 && strstr(message, "record_usage") != NULL)
	{
		set_problem(error, message);
		error->hint = "Run SELECT apitoken.allow('...', 'usage') there, with the role of \"apitoken.primary_conninfo\".";
	}
	else
		set_problem(error, message);
}

/* ---- the connection ---- */

/* Warnings of the primary are in its own log. */
static void
ignore_notice(void *arg, const char *message)
{
}

static void
close_connection(PGconn *connection)
{
	PQfinish(connection);
	ReleaseExternalFD();
}

/* Begin to connect to this database.  Returns NULL if the connection string is not valid. */
static PGconn *
start_connecting(const char *database, ApitokenPrimaryError *error)
{
	char	   *message = NULL;
	PQconninfoOption *options = PQconninfoParse(apitoken_primary_conninfo, &message);
	const char **keywords;
	const char **values;
	int			count = 0;
	PGconn	   *connection;

	if (message != NULL)
		PQfreemem(message);
	if (options == NULL)
	{
		set_problem(error, "\"apitoken.primary_conninfo\" is not a connection string");
		return NULL;
	}
	while (options[count].keyword != NULL)
		count++;
	keywords = palloc0((count + 5) * sizeof(char *));
	values = palloc0((count + 5) * sizeof(char *));
	count = 0;
	/* of equal keywords, the last one counts */
	keywords[count] = "tcp_user_timeout";
	values[count++] = HOST_TIMEOUT;
	keywords[count] = "fallback_application_name";
	values[count++] = "apitoken";
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		if (option->val == NULL)
			continue;
		keywords[count] = option->keyword;
		values[count++] = option->val;
	}
	keywords[count] = "dbname";
	values[count++] = database;
	keywords[count] = "client_encoding";
	values[count++] = GetDatabaseEncodingName();
	connection = PQconnectStartParams(keywords, values, 0);
	PQconninfoFree(options);
	return connection;
}

/* Set up the session, and check that it is one of the server that counts the use. */
static bool
set_up_session(PGconn *connection, const char *slot, TimestampTz until, ApitokenPrimaryError *error)
{
	char	   *statements = slot == NULL ? psprintf(SESSION IDENTIFY IS_CLUSTER, GetSystemIdentifier()) :
		psprintf(SESSION IDENTIFY HAS_SLOT, quote_literal_cstr(slot));
	PGresult   *result = NULL;
	bool		ready = false;

	PQsetNoticeProcessor(connection, ignore_notice, NULL);
	if (PQsetnonblocking(connection, 1) == 0 && PQsendQuery(connection, statements) &&
		finish_sending(connection, until))
		result = last_result(connection, until);
	if (result == NULL || PQstatus(connection) == CONNECTION_BAD)
		set_problem(error, "the connection was lost or timed out");
	else if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) != 1 || PQnfields(result) != 2)
		statement_problem(connection, result, error);
	else if (strcmp(PQgetvalue(result, 0, 0), "t") == 0)
	{
		set_problem(error, "\"apitoken.primary_conninfo\" leads to a standby");
		error->hint = "Name the primary in \"apitoken.primary_conninfo\", or all servers, with target_session_attrs=read-write.";
	}
	else if (strcmp(PQgetvalue(result, 0, 1), "t") != 0 && slot == NULL)
	{
		set_problem(error, "\"apitoken.primary_conninfo\" leads to another cluster");
		error->hint = "Name the primary of this standby in \"apitoken.primary_conninfo\".";
	}
	else if (strcmp(PQgetvalue(result, 0, 1), "t") != 0)
	{
		set_problem(error, "\"apitoken.primary_conninfo\" does not lead to the publisher");
		error->hint = "Name the publisher.  There, the database of the same name must have the replication slot of the subscription.";
	}
	else
		ready = true;
	PQclear(result);
	return ready;
}

/*
 * Connect to the database of this name on the server that has this slot, or, if that is
 * NULL, on the primary of this standby.  Returns NULL, and why, if that fails.
 */
ApitokenPrimary *
apitoken_connect_primary(const char *database, const char *slot, TimestampTz until, ApitokenPrimaryError *error)
{
	PGconn	   *connection;
	ApitokenPrimary *primary;

	memset(error, 0, sizeof(*error));
	if (!AcquireExternalFD())
	{
		set_problem(error, "too many files are open");
		return NULL;
	}
	connection = start_connecting(database, error);
	if (connection != NULL && PQstatus(connection) != CONNECTION_BAD && !finish_connecting(connection, until))
		set_problem(error, "could not connect: timeout expired");
	else if (connection != NULL && PQstatus(connection) != CONNECTION_OK)
		connection_problem(connection, error);
	else if (connection != NULL && set_up_session(connection, slot, until, error))
	{
		primary = MemoryContextAlloc(TopMemoryContext, sizeof(ApitokenPrimary));
		primary->connection = connection;
		return primary;
	}
	close_connection(connection);
	return NULL;
}

/*
 * Call record_usage() with these arguments.  Returns true if the primary has
 * answered, and whether it has counted the batch now.  Otherwise returns false, and
 * why; then error->refused tells whether the batch was certainly not counted.
 */
bool
apitoken_ask_primary(ApitokenPrimary *primary, const char *const *values, TimestampTz until, bool *counted,
					 ApitokenPrimaryError *error)
{
	PGconn	   *connection = primary->connection;
	PGresult   *result = NULL;
	bool		answered = false;

	memset(error, 0, sizeof(*error));
	if (PQsendQueryParams(connection, RECORD, RECORD_PARAMETERS, NULL, values, NULL, NULL, 0) &&
		finish_sending(connection, until))
		result = last_result(connection, until);
	if (result == NULL)
		set_problem(error, "the connection was lost or timed out");
	else if (PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1 && !PQgetisnull(result, 0, 0))
	{
		*counted = strcmp(PQgetvalue(result, 0, 0), "t") == 0;
		answered = true;
	}
	else if (PQresultErrorField(result, PG_DIAG_SQLSTATE) == NULL)
	{
		set_problem(error, "the connection was lost or timed out");
		error->detail = pstrdup(PQresultErrorMessage(result));
	}
	else
		statement_problem(connection, result, error);
	PQclear(result);
	return answered;
}

void
apitoken_leave_primary(ApitokenPrimary *primary)
{
	close_connection(primary->connection);
	pfree(primary);
}
