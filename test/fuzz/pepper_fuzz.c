/*
 * pepper_fuzz.c
 *		libFuzzer target for the pepper file, against a slow parser of its lines.
 */
#include "postgres.h"

#include <sys/mman.h>

#include "fuzz.h"

#include "base/pepper.c"

char	   *apitoken_pepper_file = NULL;
bool		apitoken_require_pepper = false;

/* ----- the slow parser: as docs/reference.md describes the file ----- */

/*
 * "n:key": a number from 1 to 32767 of at most five digits, and 16 to 128 bytes in
 * hexadecimal.  "name:key": up to 31 small letters, digits and "-", of which the first is
 * a letter, and 1 to 128 bytes; the scheme is 0.
 */
static bool
slow_line(const char *line, size_t length, int *scheme, char name[32], uint8 *key, int *key_length)
{
	const char *letters = "abcdefghijklmnopqrstuvwxyz0123456789-";
	size_t		colon = 0;
	int			min = 16;

	*scheme = 0;
	memset(name, 0, 32);
	while (colon < length && line[colon] != ':')
		colon++;
	if (colon < 1 || colon > 31 || colon == length)
		return false;
	for (size_t i = 0; i < colon; i++)
	{
		if (line[i] == '\0' || strchr(letters, line[i]) == NULL)
			return false;
	}
	if (line[0] >= 'a' && line[0] <= 'z')
	{
		memcpy(name, line, colon);
		min = 1;
	}
	else
	{
		if (colon > 5)
			return false;
		for (size_t i = 0; i < colon; i++)
		{
			if (line[i] < '0' || line[i] > '9')
				return false;
			*scheme = *scheme * 10 + line[i] - '0';
		}
		if (*scheme < 1 || *scheme > 32767)
			return false;
	}
	*key_length = 0;
	for (size_t i = colon + 1; i < length; i += 2)
	{
		unsigned int byte = 0;

		for (size_t digit = i; digit < i + 2; digit++)
		{
			const char *hex = "0123456789abcdef0123456789ABCDEF";
			const char *found = digit < length && line[digit] != '\0' ? strchr(hex, line[digit]) : NULL;

			if (found == NULL)
				return false;
			byte = byte * 16 + (found - hex) % 16;
		}
		if (*key_length == 128)
			return false;
		key[(*key_length)++] = byte;
	}
	return *key_length >= min;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int			fd = memfd_create("peppers", 0);
	PepperProblem problem = {0};
	PepperFile *file;
	const char *text = (const char *) data;
	bool		valid = true;
	int			found = 0;
	int			found_keys = 0;
	int			highest = 0;

	require(fd >= 0 && fchmod(fd, 0600) == 0);
	require(write(fd, data, size) == size && lseek(fd, 0, SEEK_SET) == 0);
	file = read_open_file(fd, "peppers", &problem);
	close(fd);

	for (size_t start = 0, line = 1; start < size && valid; line++)
	{
		size_t		end = start;
		size_t		next;
		int			scheme;
		char		name[32];
		uint8		key[128];
		int			length;

		while (end < size && text[end] != '\n')
			end++;
		next = end + 1;
		while (end > start && (text[end - 1] == ' ' || text[end - 1] == '\t' || text[end - 1] == '\r'))
			end--;
		if (end > start && text[start] != '#')
		{
			if (!slow_line(text + start, end - start, &scheme, name, key, &length))
			{
				require(file == NULL && problem.fault == FAULT_LINE && problem.line == line);
				valid = false;
			}
			else if (file != NULL)
			{
				const ApitokenPepper *pepper = scheme > 0 ? find_pepper(file, scheme) : find_key(file, name);

				/* the place of this line, so no line before has the same number or name */
				if (scheme > 0)
					require(pepper == &file->peppers[found++]);
				else
					require(pepper == &file->peppers[file->room - ++found_keys]);
				require(pepper->scheme == scheme && strcmp(pepper->name, name) == 0);
				require(pepper->length == length && memcmp(pepper->key, key, length) == 0);
				highest = Max(highest, scheme);
			}
			else if (problem.fault == FAULT_DUPLICATE && problem.line == line)
				valid = false;
			else if (scheme > 0)
				found++;
		}
		start = next;
	}
	if (file == NULL)
		require(!valid || (found == 0 && problem.fault == FAULT_EMPTY) ||
				(size > PEPPER_FILE_MAX && problem.fault == FAULT_TOO_LARGE));
	else
	{
		require(valid && found > 0 && found == file->count && found_keys == file->key_count);
		/* they do not overlap, and the path behind them is whole */
		require(found + found_keys <= file->room && strcmp(file->path, "peppers") == 0);
		require(file->highest->scheme == highest);
		wipe_peppers(file);
	}
	fuzz_free_all();
	return 0;
}
