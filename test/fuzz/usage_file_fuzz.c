/*
 * usage_file_fuzz.c
 *		libFuzzer target for the loader of the file that preserves usage across a
 *		restart.
 *
 * The first byte says how much of the file is made right: 1, the header's first
 * fields; 2, the numbers of rows, so that they add up to the length; 4, the CRC; 8, the
 * rows (with 1 and 2).  A fuzzer would not guess those.
 *
 * What must be true: a file is applied as a whole or not at all, each row once, in
 * order and to the byte; and one that is applied has a right CRC and length, and no
 * value that the rest of the code cannot bear.  One that is made right is applied.
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
static int64 applied_batch_rows;

static void
apply(const void *data, size_t size)
{
	memcpy(applied + applied_size, data, size);
	applied_size += size;
}

static void
require_address(const inet_struct *address)
{
	require(address->family == 0 || address->family == PGSQL_AF_INET || address->family == PGSQL_AF_INET6);
	require(address->family == 0 || address->bits <= (address->family == PGSQL_AF_INET ? 32 : 128));
}

static void
require_usage(const ApitokenUsageRow *row)
{
	require_address(&row->last.from);
	require_address(&row->last.reused_from);
	require(row->last.at == DT_NOBEGIN || IS_VALID_TIMESTAMP(row->last.at));
	require(IS_VALID_DATE(row->key.day));
	require((int64) row->accepted >= 0);
	require((row->last.reused & ~15) == 0);
	for (int i = 0; i < APITOKEN_PREVIOUS_MAX; i++)
		require(IS_VALID_TIMESTAMP(row->last.previous_at[i]));
}

void
apitoken_return_usage(const ApitokenUsageRow *rows, int count)
{
	require(count == 1 && applied_batch_rows == 0);
	require_usage(rows);
	apply(rows, sizeof(*rows));
}

void
apitoken_return_batch(const ApitokenUsageRow *row)
{
	require_usage(row);
	applied_batch_rows++;
	apply(row, sizeof(*row));
}

void
apitoken_return_seen(const ApitokenSeenRow *rows, int count)
{
	require(count == 1);
	/* each place has a map */
	require((int) rows->place >= 0 && (int) rows->place < APITOKEN_PLACES);
	if (rows->place == APITOKEN_IN_ORGANIZATION)
		require(strnlen(rows->key.in.organization_id, APITOKEN_OWNER_ID_MAX + 1) - 1 < APITOKEN_OWNER_ID_MAX);
	else if (rows->place == APITOKEN_IN_NETWORK)
	{
		require_address(&rows->key.in.network);
		require(rows->key.in.network.family != 0);
	}
	require(IS_VALID_TIMESTAMP(rows->at));
	apply(rows, sizeof(*rows));
}

/* a database is applied in two calls */
static SavedDatabase next_database;

void
apitoken_record_maintenance(Oid database, TimestampTz at, int task, const pg_uuid_t *position)
{
	memset(&next_database, 0, sizeof(next_database));
	next_database.database = database;
	next_database.maintained_at = at;
	require(task == 0 && IS_VALID_TIMESTAMP(at));
}

void
apitoken_restore_batch(Oid database, const ApitokenBatchId *batch)
{
	uint8		sent;

	memcpy(&sent, &batch->sent, 1);
	require(database == next_database.database && sent <= 1);
	next_database.batch = *batch;
	apply(&next_database, sizeof(next_database));
}

static void
make_address_right(inet_struct *address, bool may_be_unknown)
{
	address->family = address->family % 3 == 0 && may_be_unknown ? 0 :
		address->family % 2 == 0 ? PGSQL_AF_INET : PGSQL_AF_INET6;
	address->bits %= address->family == PGSQL_AF_INET6 ? 129 : 33;
}

/* Make the rows right.  They need not be aligned. */
static void
make_rows_right(char *at, const Header *header)
{
	for (int64 i = 0; i < header->rows + header->batch_rows; i++, at += sizeof(ApitokenUsageRow))
	{
		ApitokenUsageRow row;

		memcpy(&row, at, sizeof(row));
		row.key.day %= 1000000;
		row.accepted >>= 1;
		row.last.at = row.last.at < 0 ? DT_NOBEGIN : row.last.at >> 4;
		row.last.reused &= 15;
		for (int previous = 0; previous < APITOKEN_PREVIOUS_MAX; previous++)
			row.last.previous_at[previous] &= PG_INT64_MAX >> 4;
		make_address_right(&row.last.from, true);
		make_address_right(&row.last.reused_from, true);
		memcpy(at, &row, sizeof(row));
	}
	for (int64 i = 0; i < header->seen; i++, at += sizeof(ApitokenSeenRow))
	{
		ApitokenSeenRow row;

		memcpy(&row, at, sizeof(row));
		row.place = (uint32) row.place % APITOKEN_PLACES;
		row.at &= PG_INT64_MAX >> 4;
		if (row.place == APITOKEN_IN_ORGANIZATION)
		{
			row.key.in.organization_id[0] |= 'a';
			row.key.in.organization_id[APITOKEN_OWNER_ID_MAX] = '\0';
		}
		else if (row.place == APITOKEN_IN_NETWORK)
			make_address_right(&row.key.in.network, false);
		memcpy(at, &row, sizeof(row));
	}
	for (int64 i = 0; i < header->databases; i++, at += sizeof(SavedDatabase))
	{
		TimestampTz maintained_at;

		memcpy(&maintained_at, at + offsetof(SavedDatabase, maintained_at), sizeof(maintained_at));
		maintained_at &= PG_INT64_MAX >> 4;
		memcpy(at + offsetof(SavedDatabase, maintained_at), &maintained_at, sizeof(maintained_at));
		at[offsetof(SavedDatabase, batch.sent)] &= 1;
	}
	for (int loss = 0; loss < APITOKEN_LOSSES; loss++, at += sizeof(TimestampTz))
	{
		TimestampTz lost;

		memcpy(&lost, at, sizeof(lost));
		lost &= PG_INT64_MAX >> 4;
		memcpy(at, &lost, sizeof(lost));
	}
}

/* Returns true if the file is right now. */
static bool
make_right(char *file, size_t size, int how)
{
	Header		header;
	bool		right = false;

	if (size >= sizeof(header) && (how & 3))
	{
		memcpy(&header, file, sizeof(header));
		if (how & 1)
		{
			Header		right;

			fill_header(&right);
			right.rows = header.rows;
			right.batch_rows = header.batch_rows;
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
			header.batch_rows = (uint64) header.batch_rows % (rest / sizeof(ApitokenUsageRow) + 1);
			rest -= header.batch_rows * sizeof(ApitokenUsageRow);
			header.seen = (uint64) header.seen % (rest / sizeof(ApitokenSeenRow) + 1);
			rest -= header.seen * sizeof(ApitokenSeenRow);
			header.databases = rest / sizeof(SavedDatabase);
			if ((how & 9) == 9 && size >= sizeof(header) + end)
			{
				make_rows_right(file + sizeof(header), &header);
				right = rest % sizeof(SavedDatabase) == 0 && (how & 4);
			}
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
	return right;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	UsageFile	usage_file = {0};
	char	   *file;
	bool		right;
	bool		valid;
	TimestampTz lost[APITOKEN_LOSSES];

	if (size == 0)
		return 0;
	file = palloc0(size);
	memcpy(file, data + 1, --size);
	right = make_right(file, size, data[0]);
	applied = palloc0(size + 1);
	applied_size = 0;
	applied_batch_rows = 0;
	for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
		pg_atomic_write_u64(&shared.lost_at[loss], 0);

	/* fmemopen() refuses a size of 0 in some libraries */
	usage_file.file = size == 0 ? fopen("/dev/null", "r") : fmemopen(file, size, "r");
	require(usage_file.file != NULL);
	valid = read_file(&usage_file, false);
	require(valid || !right);
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
		require(header.rows >= 0 && header.batch_rows >= 0 && header.seen >= 0 && header.databases >= 0);
		saved = header.databases * sizeof(SavedDatabase);
		require((header.rows + header.batch_rows) * sizeof(ApitokenUsageRow) + header.seen * sizeof(ApitokenSeenRow) + saved == rows);

		require(read_file(&usage_file, true));
		require(applied_size == rows && applied_batch_rows == header.batch_rows);
		require(memcmp(applied, file + sizeof(Header), rows - saved) == 0);
		/* without the padding, which need not be zero */
		for (size_t at = rows - saved; at < rows; at += sizeof(SavedDatabase))
		{
			SavedDatabase from;
			SavedDatabase to;

			memcpy(&from, file + sizeof(Header) + at, sizeof(from));
			memcpy(&to, applied + at, sizeof(to));
			require(from.database == to.database && from.maintained_at == to.maintained_at);
			require(memcmp(&from.batch, &to.batch, sizeof(from.batch)) == 0);
		}
		memcpy(lost, file + sizeof(Header) + rows, sizeof(lost));
		for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
			require(pg_atomic_read_u64(&shared.lost_at[loss]) == Max(lost[loss], 0));
	}
	fclose(usage_file.file);
	fuzz_free_all();
	return 0;
}
