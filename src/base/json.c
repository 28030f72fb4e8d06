/*
 * json.c
 *		Build the fields of the JSON objects that the extension returns.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/numeric.h"

#include "base/base.h"

static void
push_key(ApitokenJson *state, const char *key)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, key);
	value.val.string.len = strlen(key);
	compat_push_json(state, WJB_KEY, &value);
}

void
apitoken_json_string(ApitokenJson *state, const char *key, const char *string)
{
	JsonbValue	value;

	push_key(state, key);
	if (string == NULL)
		value.type = jbvNull;
	else
	{
		value.type = jbvString;
		value.val.string.val = unconstify(char *, string);
		value.val.string.len = strlen(string);
	}
	compat_push_json(state, WJB_VALUE, &value);
}

void
apitoken_json_bool(ApitokenJson *state, const char *key, bool boolean)
{
	JsonbValue	value;

	push_key(state, key);
	value.type = jbvBool;
	value.val.boolean = boolean;
	compat_push_json(state, WJB_VALUE, &value);
}

void
apitoken_json_strings(ApitokenJson *state, const char *key, ArrayType *array)
{
	ListCell   *lc;

	push_key(state, key);
	compat_push_json(state, WJB_BEGIN_ARRAY, NULL);
	foreach(lc, apitoken_strings_from_array(array))
	{
		JsonbValue	value;

		CHECK_FOR_INTERRUPTS();
		value.type = jbvString;
		value.val.string.val = lfirst(lc);
		value.val.string.len = strlen(lfirst(lc));
		compat_push_json(state, WJB_ELEM, &value);
	}
	compat_push_json(state, WJB_END_ARRAY, NULL);
}

void
apitoken_json_integer(ApitokenJson *state, const char *key, int64 integer)
{
	JsonbValue	value;

	push_key(state, key);
	value.type = jbvNumeric;
	value.val.numeric = int64_to_numeric(integer);
	compat_push_json(state, WJB_VALUE, &value);
}
