/*
 * visible.c
 *		Which characters of a text can people see?
 *
 * People tell tokens apart by their labels.  So a label must show something,
 * and what cannot be seen at its ends is not part of it.
 *
 * The lists below are the same for all majors, because PostgreSQL has tables of
 * these properties only from 17 on, and a label must not mean something else
 * after an upgrade.  They hardly ever change: Unicode guarantees that a control
 * character stays one.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "text/text.h"

typedef struct Range
{
	pg_wchar	first;
	pg_wchar	last;
} Range;

/*
 * White space (PropList.txt of the Unicode Character Database, White_Space), and
 * the spaces of no width, which are not in that list.
 */
static const Range blanks[] = {
	{0x0009, 0x000D}, {0x0020, 0x0020}, {0x0085, 0x0085}, {0x00A0, 0x00A0},
	{0x1680, 0x1680}, {0x2000, 0x200B}, {0x2028, 0x2029}, {0x202F, 0x202F},
	{0x205F, 0x2060}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF},
};

/*
 * Control characters and separators of lines (UnicodeData.txt, categories Cc, Zl
 * and Zp), and the characters that change the direction of the text around them
 * (PropList.txt, Bidi_Control, without the three marks, which only have a
 * direction of their own and are common in Arabic and Hebrew).
 */
static const Range controls[] = {
	{0x0000, 0x001F}, {0x007F, 0x009F}, {0x2028, 0x202E}, {0x2066, 0x2069},
};

/*
 * Characters that are not shown (DerivedCoreProperties.txt,
 * Default_Ignorable_Code_Point), those whose picture is empty (the pattern of
 * Braille without dots, the Khitan filler, the null notehead), the marks of
 * interlinear annotations, and noncharacters of the basic plane.
 */
static const Range invisible[] = {
	{0x00AD, 0x00AD}, {0x034F, 0x034F}, {0x061C, 0x061C}, {0x115F, 0x1160},
	{0x17B4, 0x17B5}, {0x180B, 0x180F}, {0x200B, 0x200F}, {0x202A, 0x202E},
	{0x2060, 0x206F}, {0x2800, 0x2800}, {0x3164, 0x3164}, {0xFDD0, 0xFDEF},
	{0xFE00, 0xFE0F}, {0xFEFF, 0xFEFF}, {0xFFA0, 0xFFA0}, {0xFFF0, 0xFFFB},
	{0xFFFE, 0xFFFF}, {0x16FE4, 0x16FE4}, {0x1BCA0, 0x1BCA3}, {0x1D159, 0x1D159},
	{0x1D173, 0x1D17A}, {0xE0000, 0xE0FFF},
};

static bool
is_in(pg_wchar character, const Range *ranges, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (character >= ranges[i].first && character <= ranges[i].last)
			return true;
	}
	return false;
}

#define IS_IN(character, ranges) is_in(character, ranges, lengthof(ranges))

/*
 * Examine a text in UTF-8, which must be valid.  Sets the numbers of blank
 * characters before and after the rest; only the rest is examined.  In a text of
 * several lines, tabs and line breaks are not control characters.
 */
ApitokenVisible
apitoken_examine(const char *text, size_t length, bool lines, int *before, int *after)
{
	const char *end = text + length;
	bool		rest = false;
	bool		control_in_blanks = false;
	ApitokenVisible result = APITOKEN_NOTHING_VISIBLE;

	*before = *after = 0;
	while (text < end)
	{
		pg_wchar	character = utf8_to_unicode((const unsigned char *) text);
		bool		control = IS_IN(character, controls) &&
			!(lines && (character == '\t' || character == '\n' || character == '\r'));

		text += pg_utf_mblen((const unsigned char *) text);
		if (IS_IN(character, blanks))
		{
			++*(rest ? after : before);
			control_in_blanks |= rest && control;
			continue;
		}
		if (control || control_in_blanks)
			result = APITOKEN_CONTROL_CHARACTER;
		else if (result == APITOKEN_NOTHING_VISIBLE && !IS_IN(character, invisible))
			result = APITOKEN_VISIBLE;
		rest = true;
		*after = 0;
	}
	return result;
}
