/*
 * server.c
 *		The few functions of the server that fuzzed code calls, each as simple as it
 *		can be.  Each allocation is one of the C library's, so that the address
 *		sanitizer sees its end.
 */
#include "postgres.h"

#include "fuzz.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"

sigjmp_buf *fuzz_error = NULL;

/* only their addresses are used */
static MemoryContextData current;
static MemoryContextData top;
MemoryContext CurrentMemoryContext = &current;
MemoryContext TopMemoryContext = &top;
volatile sig_atomic_t InterruptPending = false;

/* ----- memory ----- */

typedef struct Allocation
{
	dlist_node	node;
	size_t		size;
	bool		keep;			/* until it is freed */
	char		data[FLEXIBLE_ARRAY_MEMBER] __attribute__((aligned(16)));
} Allocation;

static dlist_head allocations = DLIST_STATIC_INIT(allocations);

#define ALLOCATION_OF(pointer) ((Allocation *) ((char *) (pointer) - offsetof(Allocation, data)))

void *
palloc0(Size size)
{
	Allocation *allocation = calloc(1, offsetof(Allocation, data) + size);

	require(allocation != NULL);
	allocation->size = size;
	dlist_push_tail(&allocations, &allocation->node);
	return allocation->data;
}

/* not zero, as memory that was used before */
void *
palloc(Size size)
{
	return memset(palloc0(size), 0x7F, size);
}

void *
palloc_extended(Size size, int flags)
{
	return palloc(size);
}

void
pfree(void *pointer)
{
	dlist_delete(&ALLOCATION_OF(pointer)->node);
	free(ALLOCATION_OF(pointer));
}

void *
repalloc(void *pointer, Size size)
{
	void	   *moved = palloc(size);

	memcpy(moved, pointer, Min(size, ALLOCATION_OF(pointer)->size));
	pfree(pointer);
	return moved;
}

void
fuzz_free_all(void)
{
	dlist_mutable_iter i;

	dlist_foreach_modify(i, &allocations)
	{
		Allocation *allocation = dlist_container(Allocation, node, i.cur);

		if (!allocation->keep)
			pfree(allocation->data);
	}
}

void *
MemoryContextAllocExtended(MemoryContext context, Size size, int flags)
{
	void	   *data = (flags & MCXT_ALLOC_ZERO) ? palloc0(size) : palloc(size);

	ALLOCATION_OF(data)->keep = context == TopMemoryContext;
	return data;
}

void *MemoryContextAlloc(MemoryContext context, Size size) { return MemoryContextAllocExtended(context, size, 0); }
void *MemoryContextAllocZero(MemoryContext context, Size size) { return MemoryContextAllocExtended(context, size, MCXT_ALLOC_ZERO); }

char *
pnstrdup(const char *text, Size length)
{
	length = strnlen(text, length);
	return memcpy(palloc0(length + 1), text, length);
}

char *pstrdup(const char *text) { return pnstrdup(text, strlen(text)); }
char *MemoryContextStrdup(MemoryContext context, const char *text) { return strcpy(MemoryContextAlloc(context, strlen(text) + 1), text); }

/* the names that the server's code has in programs, which libpgcommon is made for */
void *pg_malloc(size_t size) { return palloc(size); }
void *pg_malloc0(size_t size) { return palloc0(size); }
void *pg_malloc_extended(size_t size, int flags) { return palloc(size); }
void *pg_realloc(void *pointer, size_t size) { return pointer == NULL ? palloc(size) : repalloc(pointer, size); }
void pg_free(void *pointer) { if (pointer != NULL) pfree(pointer); }
char *pg_strdup(const char *text) { return pstrdup(text); }

/* ----- lists ----- */

List *
lappend(List *list, void *datum)
{
	List	   *longer = palloc0(sizeof(List));
	int			length = list == NIL ? 0 : list->length;

	/* a new place for each element, so that a pointer to an old one is a finding */
	longer->type = T_List;
	longer->elements = palloc0((length + 1) * sizeof(ListCell));
	longer->length = longer->max_length = length + 1;
	if (list != NIL)
		memcpy(longer->elements, list->elements, length * sizeof(ListCell));
	longer->elements[length].ptr_value = datum;
	if (list != NIL)
		list_free(list);
	return longer;
}

void
list_free(List *list)
{
	if (list == NIL)
		return;
	pfree(list->elements);
	pfree(list);
}

List *
list_copy(const List *list)
{
	List	   *copy = NIL;

	for (int i = 0; i < list_length(list); i++)
		copy = lappend(copy, list_nth(list, i));
	return copy;
}

/* ----- errors ----- */

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	require(fuzz_error != NULL);
	siglongjmp(*fuzz_error, 1);
}

int errcode(int sqlerrcode) { return 0; }
int errcode_for_file_access(void) { return 0; }
int errmsg(const char *format, ...) { return 0; }
int errmsg_internal(const char *format, ...) { return 0; }
int errhint(const char *format, ...) { return 0; }
int errdetail(const char *format, ...) { return 0; }
int errdetail_log(const char *format, ...) { return 0; }
void ProcessInterrupts(void) { abort(); }

/* ----- others ----- */

/* the server's table, made from zlib's polynomial */
extern uint32 pg_crc32_table[256];
uint32		pg_crc32_table[256];

static void __attribute__((constructor))
fill_crc32_table(void)
{
	for (uint32 i = 0; i < 256; i++)
	{
		uint32		entry = i;

		for (int bit = 0; bit < 8; bit++)
			entry = (entry >> 1) ^ ((entry & 1) ? 0xEDB88320 : 0);
		pg_crc32_table[i] = entry;
	}
}

/* a fixed sequence instead of random bytes, so that a run can be repeated */
bool
pg_strong_random(void *buffer, size_t length)
{
	static uint32 state = 1;

	for (size_t i = 0; i < length; i++)
	{
		state = state * 1664525 + 1013904223;
		((uint8 *) buffer)[i] = (uint8) (state >> 24);
	}
	return true;
}

/* any good mixture: the tested code relies on no value */
uint32
hash_bytes(const unsigned char *bytes, int length)
{
	uint32		hash = 2166136261;

	for (int i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * 16777619;
	return hash;
}

/* ----- parts of an input ----- */

char *
fuzz_part(const uint8_t **data, size_t *size, char separator)
{
	const uint8_t *end = memchr(*data, separator, *size);
	size_t		length = end == NULL ? *size : end - *data;
	char	   *part = palloc0(length + 1);

	memcpy(part, *data, length);
	if (end != NULL)
		length++;
	*data += length;
	*size -= length;
	return part;
}
