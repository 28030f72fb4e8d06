/*
 * fragment_test.c
 *		Tests src/text/fragment.c without a server.  Prints TAP.
 */
#include "postgres.h"

#include "text/text.h"

/* the C library's own functions, because libpgport is not linked */
#undef printf

static int	tests = 0;
static int	failures = 0;

static void
masks(const char *text, const char *marker, size_t min_length, bool mixed, const char *wanted, const char *name)
{
	char		copy[200];
	bool		found;

	strcpy(copy, text);
	found = apitoken_mask_fragments(copy, marker, min_length, mixed);
	if (strcmp(copy, wanted) != 0 || found != (strcmp(text, wanted) != 0))
	{
		printf("not ");
		failures++;
	}
	printf("ok %d - %s\n", ++tests, name);
}

int
main(int argc, char **argv)
{
	masks("line 1: ...abcdefghijkl", "...", 12, false, "line 1: ...************", "a long word after dots");
	masks("line 1: ...abcdefghijk", "...", 12, false, "line 1: ...abcdefghijk", "a short word after dots");
	masks("line 1: ....abcdefghijkl", "...", 12, false, "line 1: ....************", "a word after four dots");
	masks("line 1: .....abcdefghijkl.", "...", 12, false, "line 1: .....************.", "a word after five dots");
	masks("...abcdefghijkl...mnopqrstuvwx", "...", 12, false, "...************...************", "two words");
	masks("...abc_DEF_123_***", "...", 12, false, "...abc_DEF_123_***", "what is readable of a masked token");
	masks("abcdefghijkl", "...", 12, false, "abcdefghijkl", "no marker");
	masks("...", "...", 12, false, "...", "nothing after the marker");
	masks("", "...", 12, false, "", "an empty text");
	masks("a\n\nabcdefghijklmnopqrstuvwX", "\n", 24, true, "a\n\n************************", "the second of two lines");
	masks("\n20240101T120000Z0000000000", "\n", 24, true, "\n20240101T120000Z0000000000", "a word without small letters");
	masks("\"20240101t120000z0000000000", "\"", 12, true, "\"20240101t120000z0000000000", "a word without capitals");
	printf("1..%d\n", tests);
	return failures != 0;
}
