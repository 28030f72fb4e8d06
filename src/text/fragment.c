/*
 * fragment.c
 *		Masking of words that may be the end of a token.
 */
#include "postgres.h"

#include "text/text.h"

/*
 * Some errors quote a part of a text.  The quotation may begin within a token,
 * and the rest of a token looks like any other word:
 *
 * - JSON: fifty characters before the error, in the context: "JSON data, line 1:
 *   ...3kV9x".  Any long word that follows the dots is masked.
 * - Dates: the message of to_date() and its relatives quotes the rest of the
 *   text from the error on.  A date without separators is a long word as well
 *   ("20240101T120000Z").  Therefore the word must have capitals and small
 *   letters (`mixed`).
 * - XML: eighty characters before the error, on a line of their own in the
 *   detail.  Other lines of details begin with words too, for example those of a
 *   statement.  Therefore the word must also be longer.
 *
 * Little is lost if the word is not part of a token.
 */
bool
apitoken_mask_fragments(char *text, const char *marker, size_t min_length, bool mixed)
{
	bool		found = false;
	char	   *fragment = text;

	while ((fragment = strstr(fragment, marker)) != NULL)
	{
		size_t		length;
		bool		upper = false;
		bool		lower = false;

		fragment += strlen(marker);
		for (length = 0;; length++)
		{
			char		c = fragment[length];

			if (c >= 'A' && c <= 'Z')
				upper = true;
			else if (c >= 'a' && c <= 'z')
				lower = true;
			else if (!(c >= '0' && c <= '9') && c != '_')
				break;
		}

		/* a word that is followed by a mask is the readable part of a token */
		if (length >= min_length && fragment[length] != '*' && (!mixed || (upper && lower)))
		{
			memset(fragment, '*', length);
			found = true;
		}

		/* The last characters of a marker can be the first ones of the next: "....". */
		if (length == 0)
			fragment -= strlen(marker) - 1;
		fragment += length;
	}
	return found;
}
