/*
 * token_fuzz.c
 *		libFuzzer target for the parser of token texts, and for masking them
 *		within other texts.
 *
 * A fuzzer does not guess checksums.  So each input is parsed as it is, and once
 * more with a corrected checksum, so that it reaches the code behind that check.
 */
#include "postgres.h"

#include "fuzz.h"
#include "text/text.h"

extern uint32 pg_crc32_table[256];

static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/* An accepted text must equal the text that is made of its parts. */
static void
check_accepted(const char *text, size_t length, const ApitokenParts *parts)
{
	size_t		head = strlen(parts->prefix) + 1 + 3 + 1 + APITOKEN_ID_CHARS;
	char		again[APITOKEN_TEXT_MAX + 1];
	ApitokenParts same;

	require(apitoken_valid_prefix(parts->prefix));
	require(length == head + APITOKEN_SECRET_CHARS + APITOKEN_CHECKSUM_CHARS);
	for (size_t i = 0; i < length; i++)
		require(text[i] == '_' || (text[i] != '\0' && strchr(digits, text[i]) != NULL));

	/* another secret, but the same prefix, kind and id, digit by digit */
	require(apitoken_generate_text(parts->prefix, parts->kind, &parts->id, again, &same));
	require(strlen(again) == length);
	require(memcmp(again, text, head) == 0);
	require(memcmp(&same.id, &parts->id, UUID_LEN) == 0);
	require(same.kind == parts->kind);

	/* the masked form shows the head and four characters, and is not a token */
	require(strlen(parts->masked) == head + 8);
	require(memcmp(parts->masked, text, head) == 0);
	require(memcmp(parts->masked + head, "_...", 4) == 0);
	require(memcmp(parts->masked + head + 4, text + length - 4, 4) == 0);
	require(!apitoken_parse_text(parts->masked, strlen(parts->masked), &same));
}

/* Only masked characters change, and there is nothing left to mask.  A secret of another system can have "-", "_" and ".". */
static void
check_masking(const char *text, size_t size)
{
	char	   *copy = malloc(size + 1);
	bool		held = apitoken_holds_secret(text, size);

	memcpy(copy, text, size);
	require(apitoken_mask_secrets(copy, size) == held);
	require(held == (memcmp(copy, text, size) != 0));
	require(!apitoken_holds_secret(copy, size));
	require(!apitoken_holds_token(copy, size));
	require(held || !apitoken_holds_token(text, size));
	for (size_t i = 0; i < size; i++)
	{
		bool		maskable = text[i] != '\0' && (strchr(digits, text[i]) != NULL || strchr("-_.", text[i]) != NULL);

		require(copy[i] == text[i] || (maskable && (copy[i] == '*' || copy[i] == '_')));
	}
	free(copy);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *) data;
	ApitokenParts parts;
	char		fixed[APITOKEN_TEXT_MAX];
	uint32		crc = 0xFFFFFFFF;

	check_masking(text, size);
	if (apitoken_parse_text(text, size, &parts))
	{
		check_accepted(text, size, &parts);
		require(apitoken_holds_secret(text, size));
		require(apitoken_holds_token(text, size));
	}

	if (size < APITOKEN_CHECKSUM_CHARS || size > APITOKEN_TEXT_MAX)
		return 0;
	memcpy(fixed, text, size);
	for (size_t i = 0; i < size - APITOKEN_CHECKSUM_CHARS; i++)
		crc = (crc >> 8) ^ pg_crc32_table[(crc ^ (uint8) fixed[i]) & 0xFF];
	crc ^= 0xFFFFFFFF;
	for (size_t i = 1; i <= APITOKEN_CHECKSUM_CHARS; i++)
	{
		fixed[size - i] = digits[crc % 62];
		crc /= 62;
	}
	if (apitoken_parse_text(fixed, size, &parts))
		check_accepted(fixed, size, &parts);
	return 0;
}
