/*
 * base62_fuzz.c
 *		libFuzzer target for base62 and the checksum of token texts, against
 *		arithmetic by the rules of school, a digit and a bit at a time.
 */
#include "postgres.h"

#include "fuzz.h"

#include "text/token.c"

static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/* The number that these digits write, in 20 bytes. */
static void
slow_decode(const char *text, int count, uint8 number[20])
{
	memset(number, 0, 20);
	for (int i = 0; i < count; i++)
	{
		int			carry = strchr(digits, text[i]) - digits;

		for (int byte = 19; byte >= 0; byte--)
		{
			carry += number[byte] * 62;
			number[byte] = carry % 256;
			carry /= 256;
		}
		require(carry == 0);
	}
}

static void
slow_encode(const uint8 *number, int bytes, int count, char *text)
{
	uint8		rest[20];

	memcpy(rest, number, bytes);
	for (int i = count - 1; i >= 0; i--)
	{
		int			remainder = 0;

		for (int byte = 0; byte < bytes; byte++)
		{
			remainder = remainder * 256 + rest[byte];
			rest[byte] = remainder / 62;
			remainder %= 62;
		}
		text[i] = digits[remainder];
	}
	for (int byte = 0; byte < bytes; byte++)
		require(rest[byte] == 0);
}

/* the CRC-32 of zlib, without a table */
static uint32
slow_checksum(const uint8_t *data, size_t size)
{
	uint32		crc = 0xFFFFFFFF;

	for (size_t i = 0; i < size; i++)
	{
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ ((crc & 1) ? 0xEDB88320 : 0);
	}
	return crc ^ 0xFFFFFFFF;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char		text[APITOKEN_ID_CHARS + 1] = "";
	char		slow[APITOKEN_ID_CHARS];
	uint8		number[20];
	uint8		nothing[20] = {0};
	uint32		crc = slow_checksum(data, size);
	uint32		big_endian = pg_hton32(crc);
	uint64		value = 0;
	pg_uuid_t	id;
	pg_uuid_t	again;

	require(checksum_of((const char *) data, size) == crc);
	encode_checksum(crc, text);
	slow_encode((const uint8 *) &big_endian, 4, APITOKEN_CHECKSUM_CHARS, slow);
	require(memcmp(text, slow, APITOKEN_CHECKSUM_CHARS) == 0);
	require(decode_checksum(text) == crc);
	for (int c = 0; c < 256; c++)
	{
		const char *digit = c == 0 ? NULL : strchr(digits, c);

		require(digit_value((char) c) == (digit == NULL ? -1 : digit - digits));
	}
	if (size < APITOKEN_ID_CHARS)
		return 0;

	/* any digits as a number: what exceeds 16 bytes is no id */
	for (int i = 0; i < APITOKEN_ID_CHARS; i++)
		text[i] = digits[data[i] % 62];
	slow_decode(text, APITOKEN_ID_CHARS, number);
	if (decode_id(text, &id))
	{
		require(memcmp(number, nothing, 4) == 0);
		require(memcmp(number + 4, id.data, UUID_LEN) == 0);
		encode_id(&id, slow);
		require(memcmp(text, slow, APITOKEN_ID_CHARS) == 0);
	}
	else
		require(memcmp(number, nothing, 4) != 0);

	/* six digits as a checksum, which may exceed 32 bits */
	slow_decode(text, APITOKEN_CHECKSUM_CHARS, number);
	for (int i = 0; i < 20; i++)
		value = value << 8 | number[i];
	require(decode_checksum(text) == value);

	/* any bytes as an id */
	memcpy(id.data, data, UUID_LEN);
	encode_id(&id, text);
	slow_encode(id.data, UUID_LEN, APITOKEN_ID_CHARS, slow);
	require(memcmp(text, slow, APITOKEN_ID_CHARS) == 0);
	require(decode_id(text, &again));
	require(memcmp(&id, &again, UUID_LEN) == 0);
	return 0;
}
