/*
 * token_sql.c
 *		SQL functions on token texts: generate(), hash(), parse(), mask() and
 *		find_tokens().
 *
 * They read no table.  They are for administrators and granted to nobody.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "manage/manage.h"

APITOKEN_FUNCTION_INFO_V1(apitoken_generate_sql);
Datum
apitoken_generate_sql(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	ApitokenKind kind;
	char		buffer[APITOKEN_TEXT_MAX + 1];
	ApitokenParts parts;
	pg_uuid_t	id;
	text	   *result;

	if (!apitoken_kind_from_name(name, &kind))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid token kind"),
				 errhint("Use \"organization\" or \"user\".")));
	apitoken_check_random(apitoken_generate_id(&id) &&
						  apitoken_generate_text(apitoken_prefix, kind, &id, buffer, &parts));
	result = cstring_to_text(buffer);
	explicit_bzero(buffer, sizeof(buffer));
	PG_RETURN_TEXT_P(result);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_hash);
Datum
apitoken_hash(PG_FUNCTION_ARGS)
{
	text	   *token = PG_GETARG_TEXT_PP(0);
	bytea	   *digest = palloc(VARHDRSZ + APITOKEN_DIGEST_LENGTH);

	SET_VARSIZE(digest, VARHDRSZ + APITOKEN_DIGEST_LENGTH);
	apitoken_digest(VARDATA_ANY(token), VARSIZE_ANY_EXHDR(token), apitoken_signing_scheme(),
					(uint8 *) VARDATA(digest));
	PG_RETURN_BYTEA_P(digest);
}

/* Parse a text argument.  A text too long to be a token is not detoasted. */
static bool
parse_argument(Datum token, ApitokenParts *parts)
{
	text	   *argument;

	if (toast_raw_datum_size(token) - VARHDRSZ > APITOKEN_TEXT_MAX)
		return false;
	argument = DatumGetTextPP(token);
	return apitoken_parse_text(VARDATA_ANY(argument), VARSIZE_ANY_EXHDR(argument), parts);
}

APITOKEN_FUNCTION_INFO_V1(apitoken_parse_sql);
Datum
apitoken_parse_sql(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor;
	ApitokenParts parts;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};

	if (!parse_argument(PG_GETARG_DATUM(0), &parts))
		PG_RETURN_NULL();
	descriptor = apitoken_result_type(fcinfo, lengthof(values));
	values[0] = CStringGetTextDatum(parts.prefix);
	values[1] = CStringGetTextDatum(apitoken_kind_name(parts.kind));
	values[2] = UUIDPGetDatum(&parts.id);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls)));
}

APITOKEN_FUNCTION_INFO_V1(apitoken_mask);
Datum
apitoken_mask(PG_FUNCTION_ARGS)
{
	ApitokenParts parts;

	if (!parse_argument(PG_GETARG_DATUM(0), &parts))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(parts.masked));
}

/*
 * One row for each whole token in a text.  What has the shape of a token, but not its
 * checksum, is none.  Tokens of another system are found if they have a prefix of
 * their own; they have neither a kind nor an id.
 */
APITOKEN_FUNCTION_INFO_V1(apitoken_find_tokens);
Datum
apitoken_find_tokens(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	text	   *document = PG_GETARG_TEXT_PP(0);
	const char *bytes = VARDATA_ANY(document);
	size_t		length = VARSIZE_ANY_EXHDR(document);
	size_t		counted = 0;	/* bytes before the position */
	int			position = 1;	/* in characters */
	size_t		start = 0;
	size_t		token_length;
	size_t		foreign_start = 0;
	size_t		foreign_length;
	ApitokenParts parts;
	bool		found;
	bool		found_foreign;
	MemoryContext row_context;
	MemoryContext caller_context;

	InitMaterializedSRF(fcinfo, 0);
	/* the tuplestore writes to disk what is too large for memory, so a row must not stay there */
	row_context = AllocSetContextCreate(CurrentMemoryContext, "apitoken find_tokens", ALLOCSET_DEFAULT_SIZES);
	caller_context = MemoryContextSwitchTo(row_context);
	found = apitoken_next_token(bytes, length, &start, &token_length, &parts);
	found_foreign = apitoken_next_foreign(bytes, length, &foreign_start, &foreign_length);
	while (found || found_foreign)
	{
		bool		foreign = found_foreign && (!found || foreign_start < start);
		size_t		at = foreign ? foreign_start : start;
		size_t		text_length = foreign ? foreign_length : token_length;
		Datum		values[6];
		bool		nulls[6] = {false};

		CHECK_FOR_INTERRUPTS();
		position += pg_mbstrlen_with_len(bytes + counted, at - counted);
		counted = at;
		values[0] = Int32GetDatum(position);
		values[1] = PointerGetDatum(cstring_to_text_with_len(bytes + at, text_length));
		if (foreign)
		{
			values[2] = CStringGetTextDatum("glpat-...");
			values[3] = CStringGetTextDatum("glpat");
			nulls[4] = nulls[5] = true;
		}
		else
		{
			values[2] = CStringGetTextDatum(parts.masked);
			values[3] = CStringGetTextDatum(parts.prefix);
			values[4] = CStringGetTextDatum(apitoken_kind_name(parts.kind));
			values[5] = UUIDPGetDatum(&parts.id);
		}
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		MemoryContextReset(row_context);
		if (foreign)
		{
			foreign_start += foreign_length;
			found_foreign = apitoken_next_foreign(bytes, length, &foreign_start, &foreign_length);
		}
		else
		{
			start += token_length;
			found = apitoken_next_token(bytes, length, &start, &token_length, &parts);
		}
	}
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(row_context);
	return (Datum) 0;
}
