/*
 * usage_file_fuzz.c
 *		libFuzzer target for the loader of the file that preserves usage across a
 *		restart.
 *
 * The first byte says how much of the file is made right: 1, the header's first
 * fields; 2, the numbers of rows, so that they add up to the length; 4, the CRC.  A
 * fuzzer would not guess those.
 *
 * What must be true: a file is applied as a whole or not at all, each row once, in
 * order and to the byte; and one that is applied has a right CRC and length.
 */
#include "postgres.h"

#include <sys/mman.h>

#include "fuzz.h"

#include "usage/usage_file.c"

/* what usage_file.c uses of the server and of the other files */
char	   *DataDir = NULL;
bool		IsUnderPostmaster = false;
shmem_startup_hook_type shmem_startup_hook = NULL;
static ApitokenShared shared;
ApitokenShared *apitoken_shared = &shared;
ApitokenMap *const apitoken_usage_map = NULL;

/* what was applied, in the order of the file */
static char *applied;
static size_t applied_size;

static void
apply(const void *data, size_t size)
{
	memcpy(applied + applied_size, data, size);
	applied_size += size;
}

void
apitoken_return_usage(const ApitokenUsageRow *rows, int count, uint32 flush)
{
	require(count == 1 && flush == 0);
	apply(rows, sizeof(*rows));
}

void
apitoken_return_seen(const ApitokenSeenRow *rows, int count)
{
	require(count == 1);
	apply(rows, sizeof(*rows));
}

void
apitoken_record_maintenance(Oid database, TimestampTz at, int task, const pg_uuid_t *position)
{
	SavedDatabase saved;

	memset(&saved, 0, sizeof(saved));
	saved.database = database;
	saved.maintained_at = at;
	require(task == 0);
	apply(&saved, sizeof(saved));
}

static void
make_right(char *file, size_t size, int how)
{
	Header		header;

	if (size >= sizeof(header) && (how & 3))
	{
		memcpy(&header, file, sizeof(header));
		if (how & 1)
		{
			Header		right;

			fill_header(&right);
			right.rows = header.rows;
			right.seen = header.seen;
			right.databases = header.databases;
			header = right;
		}
		if (how & 2)
		{
			size_t		rest = size - sizeof(header);
			size_t		end = APITOKEN_LOSSES * sizeof(TimestampTz) + sizeof(pg_crc32c);

			rest -= Min(rest, end);
			header.rows = (uint64) header.rows % (rest / sizeof(ApitokenUsageRow) + 1);
			rest -= header.rows * sizeof(ApitokenUsageRow);
			header.seen = (uint64) header.seen % (rest / sizeof(ApitokenSeenRow) + 1);
			rest -= header.seen * sizeof(ApitokenSeenRow);
			header.databases = rest / sizeof(SavedDatabase);
		}
		memcpy(file, &header, sizeof(header));
	}
	if (size >= sizeof(pg_crc32c) && (how & 4))
	{
		pg_crc32c	crc;

		INIT_CRC32C(crc);
		COMP_CRC32C(crc, file, size - sizeof(crc));
		FIN_CRC32C(crc);
		memcpy(file + size - sizeof(crc), &crc, sizeof(crc));
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	UsageFile	usage_file = {0};
	char	   *file;
	bool		valid;
	TimestampTz lost[APITOKEN_LOSSES];

	if (size == 0)
		return 0;
	file = palloc0(size);
	memcpy(file, data + 1, --size);
	make_right(file, size, data[0]);
	applied = palloc0(size + 1);
	applied_size = 0;
	for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
		pg_atomic_write_u64(&shared.lost_at[loss], 0);

	/* fmemopen() refuses a size of 0 in some libraries */
	usage_file.file = size == 0 ? fopen("/dev/null", "r") : fmemopen(file, size, "r");
	require(usage_file.file != NULL);
	valid = read_file(&usage_file, false);
	require(applied_size == 0);
	for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
		require(pg_atomic_read_u64(&shared.lost_at[loss]) == 0);
	if (valid)
	{
		Header		header;
		pg_crc32c	crc;
		size_t		rows = size - sizeof(Header) - sizeof(lost) - sizeof(crc);
		size_t		saved;

		require(size >= sizeof(Header) + sizeof(lost) + sizeof(crc));
		INIT_CRC32C(crc);
		COMP_CRC32C(crc, file, size - sizeof(crc));
		FIN_CRC32C(crc);
		require(memcmp(&crc, file + size - sizeof(crc), sizeof(crc)) == 0);
		memcpy(&header, file, sizeof(header));
		require(memcmp(header.magic, "apitoken usage\0", 16) == 0);
		require(strncmp(header.version, APITOKEN_VERSION, sizeof(header.version)) == 0);
		saved = Max(header.databases, 0) * sizeof(SavedDatabase);
		require(Max(header.rows, 0) * sizeof(ApitokenUsageRow) + Max(header.seen, 0) * sizeof(ApitokenSeenRow) + saved == rows);

		require(read_file(&usage_file, true));
		require(applied_size == rows);
		require(memcmp(applied, file + sizeof(Header), rows - saved) == 0);
		/* without the padding, which need not be zero */
		for (size_t at = rows - saved; at < rows; at += sizeof(SavedDatabase))
		{
			SavedDatabase from;
			SavedDatabase to;

			memcpy(&from, file + sizeof(Header) + at, sizeof(from));
			memcpy(&to, applied + at, sizeof(to));
			require(from.database == to.database && from.maintained_at == to.maintained_at);
		}
		memcpy(lost, file + sizeof(Header) + rows, sizeof(lost));
		for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
			require(pg_atomic_read_u64(&shared.lost_at[loss]) == Max(lost[loss], 0));
	}
	fclose(usage_file.file);
	fuzz_free_all();
	return 0;
}
