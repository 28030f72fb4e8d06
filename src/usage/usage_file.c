/*
 * usage_file.c
 *		What is recorded survives a clean restart.
 *
 * When the server stops no worker can be started any more, so what is still
 * in shared memory is saved to a file, by the postmaster, after its last
 * process has ended; and taken over before it starts the first one again.
 *
 * The file is there for as long as nothing of it has been written to tables:
 * the launcher removes it when it starts, and so does a worker that is
 * earlier.  So a start that fails loses nothing, and a crash has nothing
 * counted twice.
 *
 * The file is of this server only.  One of another version, or that is
 * damaged, is put aside with a message, and removed.
 */
#include "postgres.h"

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

/* How the file begins; rows of usage follow, then databases, then a CRC of all. */
typedef struct Header
{
	char		magic[16];
	char		version[16];
	int32		row_size;
	int32		database_size;
	int64		rows;
	int64		databases;
} Header;

/* The databases, and when they were maintained. */
typedef struct SavedDatabase
{
	Oid			database;
	TimestampTz maintained_at;
} SavedDatabase;

/* A file being written or read. */
typedef struct Saving
{
	FILE	   *file;
	pg_crc32c	crc;
	bool		failed;
	int64		rows;
} Saving;

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
put(Saving *saving, const void *data, size_t size)
{
	if (fwrite(data, size, 1, saving->file) != 1)
		saving->failed = true;
	COMP_CRC32C(saving->crc, data, size);
}

static bool
get(Saving *saving, void *data, size_t size)
{
	if (fread(data, size, 1, saving->file) != 1)
		saving->failed = true;
	else
		COMP_CRC32C(saving->crc, data, size);
	return !saving->failed;
}

static bool
save_row(void *entry, void *arg)
{
	ApitokenUsage *usage = entry;
	Saving	   *saving = arg;
	ApitokenUsageRow row;

	memset(&row, 0, sizeof(row));
	row.key = usage->key;
	row.accepted = pg_atomic_read_u64(&usage->accepted);
	row.refused = pg_atomic_read_u64(&usage->refused);
	row.last = usage->last;
	if (row.accepted == 0 && row.refused == 0)
		return true;
	saving->rows++;
	if (saving->file != NULL)
		put(saving, &row, sizeof(row));
	return true;
}

static void
write_file(Saving *saving)
{
	Header		header;
	Saving		counting = {0};
	Oid		   *databases = palloc(APITOKEN_DATABASES_MAX * sizeof(Oid));

	apitoken_map_each(apitoken_usage_map, save_row, &counting);
	fill_header(&header);
	header.rows = counting.rows;
	header.databases = apitoken_flush_state_databases(databases, APITOKEN_DATABASES_MAX);
	put(saving, &header, sizeof(header));
	apitoken_map_each(apitoken_usage_map, save_row, saving);
	for (int i = 0; i < header.databases; i++)
	{
		ApitokenFlushState state = {0};
		SavedDatabase saved;

		memset(&saved, 0, sizeof(saved));
		(void) apitoken_flush_state(databases[i], &state);
		saved.database = databases[i];
		saved.maintained_at = state.maintained_at;
		put(saving, &saved, sizeof(saved));
	}
	FIN_CRC32C(saving->crc);
	if (fwrite(&saving->crc, sizeof(saving->crc), 1, saving->file) != 1)
		saving->failed = true;
}

/* Was the server shut down in good order?  Stopped at once it was not, says the code what it will. */
static bool
ended_well(int code)
{
	bool		crc_is_right;
	ControlFileData *control;

	if (code != 0)
		return false;
	control = get_controlfile(DataDir, &crc_is_right);
	return crc_is_right &&
		(control->state == DB_SHUTDOWNED || control->state == DB_SHUTDOWNED_IN_RECOVERY);
}

static void
save(int code, Datum arg)
{
	Saving		saving = {0};

	/* memory, and its locks, are as the last process has left them */
	if (!ended_well(code))
		return;
	INIT_CRC32C(saving.crc);
	saving.file = AllocateFile(TEMPORARY_FILE, PG_BINARY_W);
	if (saving.file != NULL)
	{
		write_file(&saving);
		if (FreeFile(saving.file) == 0 && !saving.failed)
		{
			/* with the file's and the directory's fsync; it tells what fails */
			(void) durable_rename(TEMPORARY_FILE, SAVED_FILE, LOG);
			return;
		}
	}
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", TEMPORARY_FILE),
			 errdetail("The usage of tokens since the last flush is lost.")));
	unlink(TEMPORARY_FILE);
}

/* Take a file over; false: it is none of ours. */
static bool
read_file(Saving *saving, bool apply)
{
	Header		expected;
	Header		header;
	pg_crc32c	crc;
	pg_uuid_t	nothing_seen = {0};

	INIT_CRC32C(saving->crc);
	rewind(saving->file);
	fill_header(&expected);
	if (!get(saving, &header, sizeof(header)))
		return false;
	expected.rows = header.rows;
	expected.databases = header.databases;
	if (memcmp(&header, &expected, sizeof(header)) != 0)
		return false;
	for (int64 i = 0; i < header.rows; i++)
	{
		ApitokenUsageRow row;

		if (!get(saving, &row, sizeof(row)))
			return false;
		if (apply)
			apitoken_give_back_usage(&row, 1, 0);
	}
	for (int64 i = 0; i < header.databases; i++)
	{
		SavedDatabase saved;

		if (!get(saving, &saved, sizeof(saved)))
			return false;
		if (apply)
			apitoken_maintenance_ended(saved.database, saved.maintained_at, &nothing_seen);
	}
	FIN_CRC32C(saving->crc);
	return fread(&crc, sizeof(crc), 1, saving->file) == 1 && EQ_CRC32C(crc, saving->crc);
}

static void
restore(void)
{
	Saving		saving = {0};

	saving.file = AllocateFile(SAVED_FILE, PG_BINARY_R);
	if (saving.file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", SAVED_FILE)));
		return;
	}

	/* all of it is read and found right before the first row is taken over */
	if (!read_file(&saving, false) || !read_file(&saving, true))
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ignoring file \"%s\": it is damaged, or of another version of apitoken", SAVED_FILE),
				 errdetail("The usage of tokens that it holds is lost.")));
	FreeFile(saving.file);
	pg_atomic_write_u32(&apitoken_shared->usage_file, 1);
}

/*
 * What is in memory is about to be written: from then on the file, if there is
 * still one, would be counted twice after a crash.  Of two at once both see to
 * it that it is gone.
 */
void
apitoken_remove_usage_file(void)
{
	if (pg_atomic_read_u32(&apitoken_shared->usage_file) == 0)
		return;
	if (unlink(SAVED_FILE) != 0 && errno != ENOENT)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", SAVED_FILE),
				 errdetail("The usage of tokens in it will be counted again.")));
	(void) fsync_fname_ext(PGSTAT_STAT_PERMANENT_DIRECTORY, true, true, LOG);
	pg_atomic_write_u32(&apitoken_shared->usage_file, 0);
}

static void
start(void)
{
	if (previous_startup)
		previous_startup();
	if (IsUnderPostmaster)
		return;
	restore();
	on_shmem_exit(save, (Datum) 0);
}

/* After shared.c: its hook makes the memory, and must run first. */
void
apitoken_usage_file_init(void)
{
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = start;
}
