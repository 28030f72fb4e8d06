/*
 * usage_file.c
 *		Preserve recorded usage across a clean restart.
 *
 * Workers cannot be started during a shutdown.  So the postmaster saves the usage
 * that is still in shared memory to a file, after its last process has ended.  It
 * loads the file at the next start, before it starts the first process.
 *
 * The file is removed before any usage is written to the tables: by the launcher
 * when it starts, or by a worker that starts earlier.  Therefore a failed start
 * loses no usage, and usage is not counted twice after a crash.
 *
 * The file is not portable between servers or versions.  A file that is damaged or
 * of another version is ignored with a log message, and removed.  A temporary file
 * is left by a stop that could not save the usage.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "usage/usage.h"

#define SAVED_FILE PGSTAT_STAT_PERMANENT_DIRECTORY "/apitoken.usage"
#define TEMPORARY_FILE SAVED_FILE ".tmp"

/*
 * The file's header.  Rows of usage, those of batches for the primary, places of
 * tokens, databases, the times of losses, and a CRC of everything before it follow.
 */
typedef struct Header
{
	char		magic[16];
	char		version[16];
	int32		row_size;
	int32		database_size;
	int64		rows;			/* number of ApitokenUsageRow */
	int64		batch_rows;		/* the same, in batches; each has the key of one before, which may have no uses */
	int64		seen;			/* number of ApitokenSeenRow */
	int64		databases;		/* number of SavedDatabase */
} Header;

/* The time of a database's last maintenance, and its last batch for the primary. */
typedef struct SavedDatabase
{
	Oid			database;
	TimestampTz maintained_at;
	ApitokenBatchId batch;
} SavedDatabase;

/* A file that is being written or read; a NULL file only counts rows. */
typedef struct UsageFile
{
	FILE	   *file;
	pg_crc32c	crc;
	bool		failed;
	int64		rows;
} UsageFile;

static shmem_startup_hook_type previous_startup = NULL;

static void
fill_header(Header *header)
{
	memset(header, 0, sizeof(*header));
	memcpy(header->magic, "apitoken usage", 14);
	memcpy(header->version, APITOKEN_VERSION, Min(strlen(APITOKEN_VERSION), sizeof(header->version)));
	header->row_size = sizeof(ApitokenUsageRow);
	header->database_size = sizeof(SavedDatabase);
}

static void
write_data(UsageFile *usage_file, const void *data, size_t size)
{
	if (fwrite(data, size, 1, usage_file->file) != 1)
		usage_file->failed = true;
	COMP_CRC32C(usage_file->crc, data, size);
}

/* Count a row, and write it if there is a file. */
static void
save_row(UsageFile *usage_file, const void *row, size_t size)
{
	usage_file->rows++;
	if (usage_file->file != NULL)
		write_data(usage_file, row, size);
}

static bool
read_data(UsageFile *usage_file, void *data, size_t size)
{
	if (fread(data, size, 1, usage_file->file) != 1)
		usage_file->failed = true;
	else
		COMP_CRC32C(usage_file->crc, data, size);
	return !usage_file->failed;
}

static bool
write_row(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	UsageFile  *usage_file = arg;
	ApitokenUsageRow row;

	memset(&row, 0, sizeof(row));
	row.key = usage->key;
	row.accepted = pg_atomic_read_u64(&usage->accepted);
	for (int verdict = 0; verdict < APITOKEN_VERDICTS; verdict++)
		row.refused[verdict] = pg_atomic_read_u32(&usage->refused[verdict]);
	row.last = usage->last;
	if (row.accepted == 0 && apitoken_refused_total(&row) == 0 && !usage->in_batch)
		return true;
	save_row(usage_file, &row, sizeof(row));
	return true;
}

static bool
write_batch_row(void *entry, void *arg)
{
	UsageFile  *usage_file = arg;
	ApitokenUsageRow row;

	if (!apitoken_read_batch(entry, &row))
		return true;
	save_row(usage_file, &row, sizeof(row));
	return true;
}

static bool
write_seen(const ApitokenSeenRow *row, void *arg)
{
	UsageFile  *usage_file = arg;

	save_row(usage_file, row, sizeof(*row));
	return true;
}

static void
write_file(UsageFile *usage_file)
{
	Header		header;
	UsageFile	counting = {0};
	UsageFile	counting_batch = {0};
	UsageFile	counting_seen = {0};
	Oid		   *databases = palloc(APITOKEN_DATABASES_MAX * sizeof(Oid));

	apitoken_map_each(apitoken_usage_map, write_row, &counting);
	apitoken_map_each(apitoken_usage_map, write_batch_row, &counting_batch);
	apitoken_each_seen(write_seen, &counting_seen);
	fill_header(&header);
	header.rows = counting.rows;
	header.batch_rows = counting_batch.rows;
	header.seen = counting_seen.rows;
	header.databases = apitoken_flush_state_databases(databases, APITOKEN_DATABASES_MAX);
	write_data(usage_file, &header, sizeof(header));
	apitoken_map_each(apitoken_usage_map, write_row, usage_file);
	apitoken_map_each(apitoken_usage_map, write_batch_row, usage_file);
	apitoken_each_seen(write_seen, usage_file);
	for (int i = 0; i < header.databases; i++)
	{
		ApitokenFlushState state = {0};
		SavedDatabase saved;

		memset(&saved, 0, sizeof(saved));
		(void) apitoken_flush_state(databases[i], &state);
		saved.database = databases[i];
		saved.maintained_at = state.maintained_at;
		saved.batch = state.batch;
		write_data(usage_file, &saved, sizeof(saved));
	}
	for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
	{
		TimestampTz at = pg_atomic_read_u64(&apitoken_shared->lost_at[loss]);

		write_data(usage_file, &at, sizeof(at));
	}
	FIN_CRC32C(usage_file->crc);
	if (fwrite(&usage_file->crc, sizeof(usage_file->crc), 1, usage_file->file) != 1)
		usage_file->failed = true;
}

/* Does the control file say that the server was shut down cleanly? */
static bool
shut_down_cleanly(void)
{
	bool		crc_is_right;
	ControlFileData *control = get_controlfile(DataDir, &crc_is_right);

	return crc_is_right &&
		(control->state == DB_SHUTDOWNED || control->state == DB_SHUTDOWNED_IN_RECOVERY);
}

static void
save_usage(int code, Datum arg)
{
	UsageFile	usage_file = {0};

	/*
	 * After a crash, shared memory and its locks may be in any state.  An immediate
	 * shutdown never counts as clean, whatever the exit code.
	 */
	if (code != 0 || !shut_down_cleanly())
		return;
	INIT_CRC32C(usage_file.crc);
	/* If it is a FIFO, for example, opening it might never return. */
	unlink(TEMPORARY_FILE);
	usage_file.file = AllocateFile(TEMPORARY_FILE, PG_BINARY_W);
	if (usage_file.file != NULL)
	{
		write_file(&usage_file);
		if (FreeFile(usage_file.file) == 0 && !usage_file.failed)
		{
			/* This syncs the file and its directory, and logs errors. */
			(void) durable_rename(TEMPORARY_FILE, SAVED_FILE, LOG);
			return;
		}
	}
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", TEMPORARY_FILE),
			 errdetail("Token usage since the last flush is lost.")));
	/* What is left of the file tells the next start. */
}

/*
 * The following check what the rest of the code relies on.  The CRC shows damage, but
 * anybody can compute it.
 */

/* The family of an unknown address is 0. */
static bool
valid_address(const inet_struct *address)
{
	return address->family == 0 ||
		(address->family == PGSQL_AF_INET && address->bits <= 32) ||
		(address->family == PGSQL_AF_INET6 && address->bits <= 128);
}

static bool
valid_usage(const ApitokenUsageRow *row)
{
	const ApitokenLastUse *last = &row->last;

	for (int i = 0; i < APITOKEN_PREVIOUS_MAX; i++)
	{
		if (!IS_VALID_TIMESTAMP(last->previous_at[i]))
			return false;
	}
	return IS_VALID_DATE(row->key.day) && row->accepted <= PG_INT64_MAX &&
		(last->at == DT_NOBEGIN || IS_VALID_TIMESTAMP(last->at)) &&
		last->reused >= 0 && last->reused < (1 << APITOKEN_PREVIOUS_MAX) &&
		valid_address(&last->from) && valid_address(&last->reused_from);
}

static bool
valid_seen(const ApitokenSeenRow *row)
{
	const char *organization_id = row->key.in.organization_id;

	if (!IS_VALID_TIMESTAMP(row->at))
		return false;
	switch (row->place)
	{
		case APITOKEN_IN_ORGANIZATION:
			return organization_id[0] != '\0' &&
				memchr(organization_id, '\0', sizeof(row->key.in.organization_id)) != NULL;
		case APITOKEN_IN_NETWORK:
			return row->key.in.network.family != 0 && valid_address(&row->key.in.network);
		case APITOKEN_WITH_DIGEST:
			return true;
		default:
			return false;
	}
}

static bool
valid_database(const SavedDatabase *saved)
{
	uint8		sent;

	/* not as a bool, which may not have any other value */
	memcpy(&sent, &saved->batch.sent, sizeof(sent));
	return IS_VALID_TIMESTAMP(saved->maintained_at) && sent <= 1;
}

/* Read a file, and load its data if `apply` is true.  Returns false if the file is not valid. */
static bool
read_file(UsageFile *usage_file, bool apply)
{
	Header		expected;
	Header		header;
	pg_crc32c	crc;
	pg_uuid_t	nothing_seen = {0};

	INIT_CRC32C(usage_file->crc);
	rewind(usage_file->file);
	fill_header(&expected);
	if (!read_data(usage_file, &header, sizeof(header)))
		return false;
	expected.rows = header.rows;
	expected.batch_rows = header.batch_rows;
	expected.seen = header.seen;
	expected.databases = header.databases;
	if (memcmp(&header, &expected, sizeof(header)) != 0 ||
		header.rows < 0 || header.batch_rows < 0 || header.seen < 0 || header.databases < 0)
		return false;
	for (int64 i = 0; i < header.rows; i++)
	{
		ApitokenUsageRow row;

		if (!read_data(usage_file, &row, sizeof(row)) || !valid_usage(&row))
			return false;
		if (apply)
			apitoken_return_usage(&row, 1);
	}
	for (int64 i = 0; i < header.batch_rows; i++)
	{
		ApitokenUsageRow row;

		if (!read_data(usage_file, &row, sizeof(row)) || !valid_usage(&row))
			return false;
		if (apply)
			apitoken_return_batch(&row);
	}
	for (int64 i = 0; i < header.seen; i++)
	{
		ApitokenSeenRow row;

		if (!read_data(usage_file, &row, sizeof(row)) || !valid_seen(&row))
			return false;
		if (apply)
			apitoken_return_seen(&row, 1);
	}
	for (int64 i = 0; i < header.databases; i++)
	{
		SavedDatabase saved;

		if (!read_data(usage_file, &saved, sizeof(saved)) || !valid_database(&saved))
			return false;
		if (!apply)
			continue;
		apitoken_record_maintenance(saved.database, saved.maintained_at, 0, &nothing_seen);
		apitoken_restore_batch(saved.database, &saved.batch);
	}
	for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
	{
		TimestampTz at;

		if (!read_data(usage_file, &at, sizeof(at)) || !IS_VALID_TIMESTAMP(at))
			return false;
		/* Loading the rows may have been a loss itself. */
		if (apply && at > (TimestampTz) pg_atomic_read_u64(&apitoken_shared->lost_at[loss]))
			pg_atomic_write_u64(&apitoken_shared->lost_at[loss], at);
	}
	FIN_CRC32C(usage_file->crc);
	return fread(&crc, sizeof(crc), 1, usage_file->file) == 1 && EQ_CRC32C(crc, usage_file->crc) &&
		fgetc(usage_file->file) == EOF;
}

/* Load the file.  Returns false if its usage is lost, and true also if there is no file. */
static bool
load_usage(void)
{
	UsageFile	usage_file = {0};
	struct stat status;
	int			fd = open(SAVED_FILE, O_RDONLY | O_NONBLOCK | PG_BINARY, 0);
	bool		valid;

	if (fd < 0 && errno == ENOENT)
		return true;
	if (fd < 0)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", SAVED_FILE)));
		return false;
	}
	/* Reading a FIFO, for example, might never return. */
	valid = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && (usage_file.file = fdopen(fd, PG_BINARY_R)) != NULL;

	/* The first pass checks the whole file, the second one loads it. */
	valid = valid && read_file(&usage_file, false) && read_file(&usage_file, true);
	if (!valid)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ignoring file \"%s\" because it is damaged or from another version of apitoken", SAVED_FILE),
				 errdetail("The token usage in this file is lost.")));
	if (usage_file.file != NULL)
		fclose(usage_file.file);
	else
		close(fd);
	pg_atomic_write_u32(&apitoken_shared->usage_file, 1);
	return valid;
}

static void
restore_usage(void)
{
	bool		loaded = load_usage();
	bool		saved = unlink(TEMPORARY_FILE) != 0 && errno == ENOENT;

	if (!loaded || !saved || !shut_down_cleanly())
		apitoken_note_loss(APITOKEN_LOST_IN_CRASH);
}

/*
 * Remove the file, if it still exists, before usage is written to the tables.
 * Otherwise its usage would be counted twice after a crash.  Several processes may
 * call this at the same time; none returns before the file is removed.  A session
 * may call it, whose client must not see the path.
 */
void
apitoken_remove_usage_file(void)
{
	if (pg_atomic_read_u32(&apitoken_shared->usage_file) == 0)
		return;
	if (unlink(SAVED_FILE) != 0 && errno != ENOENT)
		ereport(LOG_SERVER_ONLY,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", SAVED_FILE),
				 errdetail("The token usage in this file will be counted again.")));
	(void) fsync_fname_ext(PGSTAT_STAT_PERMANENT_DIRECTORY, true, true, LOG_SERVER_ONLY);
	pg_atomic_write_u32(&apitoken_shared->usage_file, 0);
}

static void
startup_hook(void)
{
	if (previous_startup)
		previous_startup();
	if (IsUnderPostmaster)
		return;
	restore_usage();
	on_shmem_exit(save_usage, (Datum) 0);
}

/* Must be called after apitoken_shared_init(), whose hook creates the memory and must run first. */
void
apitoken_usage_file_init(void)
{
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = startup_hook;
}
