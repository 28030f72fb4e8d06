/*
 * fuzz.h
 *		What the targets of libFuzzer share.
 *
 * A target includes the C file that it tests, so that it reaches its static
 * functions.  Each target compares the code with a slow and simple version of its
 * own, written from the documentation and not from the code.
 *
 * server.c has the few functions of the server that the tested code calls.  The
 * linker drops what a target does not reach.
 */
#ifndef APITOKEN_FUZZ_H
#define APITOKEN_FUZZ_H

#include "postgres.h"

#include <setjmp.h>

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ends with a report of the sanitizers, which names the line */
#define require(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

/* printf() and its relatives are those of the C library */
#undef fprintf
#undef snprintf
#undef vsnprintf
#undef printf

/* Free what palloc() has allocated since the last call. */
extern void fuzz_free_all(void);

/* Where ereport(ERROR) goes; NULL if an error is a finding. */
extern sigjmp_buf *fuzz_error;

/* The next part of an input, up to a separator; the last part goes to the end. */
extern char *fuzz_part(const uint8_t **data, size_t *size, char separator);

#endif							/* APITOKEN_FUZZ_H */
