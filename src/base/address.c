/*
 * address.c
 *		Where a client is.
 *
 * In order: the client_address argument, the setting apitoken.client_address,
 * and the header of an HTTP request that the administrator has named, all only
 * from a session that may speak for others; then the connection's own address.
 * Unknown (a Unix socket, a request without the header) is NULL, and matches
 * no list of networks.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "base/base.h"

/* The server parses it anew each time, but it is the session's. */
static inet *
connection_address(void)
{
	static inet cached;
	static enum {NOT_ASKED, NONE, KNOWN} state = NOT_ASKED;

	if (state == NOT_ASKED)
	{
		LOCAL_FCINFO(fcinfo, 0);
		Datum		address;

		InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
		address = inet_client_addr(fcinfo);
		if (!fcinfo->isnull)
			memcpy(&cached, DatumGetInetPP(address), VARSIZE_ANY(DatumGetPointer(address)));
		state = fcinfo->isnull ? NONE : KNOWN;
	}
	return state == KNOWN ? &cached : NULL;
}

/*
 * An IPv4 address as a dual-stack gateway gives it (::ffff:a.b.c.d, RFC 4291
 * section 2.5.5.2) is the IPv4 address, and in its networks.
 */
static inet *
unmapped(inet *address)
{
	static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	inet	   *plain;

	if (ip_family(address) != PGSQL_AF_INET6 || ip_bits(address) < 96 ||
		memcmp(ip_addr(address), mapped, sizeof(mapped)) != 0)
		return address;
	plain = palloc0(sizeof(inet));
	ip_family(plain) = PGSQL_AF_INET;
	ip_bits(plain) = ip_bits(address) - 96;
	memcpy(ip_addr(plain), ip_addr(address) + sizeof(mapped), 4);
	SET_INET_VARSIZE(plain);
	return plain;
}

/* Nothing, or a colon and a port. */
static bool
is_port(const char *text)
{
	if (*text == '\0')
		return true;
	return *text == ':' && text[1] != '\0' && text[1 + strspn(text + 1, "0123456789")] == '\0';
}

/*
 * An address as proxies write it: alone, or as IPv4:port, [IPv6] or
 * [IPv6]:port.  NULL: it is none.
 */
static inet *
parse_address(const char *text)
{
	unsigned char bytes[16];
	char	   *address = pstrdup(text);
	char	   *end;
	int			family;

	if (*address == '[')
	{
		end = strchr(++address, ']');
		if (end == NULL || !is_port(end + 1))
			return NULL;
		*end = '\0';
	}
	else if ((end = strchr(address, ':')) != NULL && strchr(end + 1, ':') == NULL)
	{
		if (!is_port(end))
			return NULL;
		*end = '\0';
	}
	family = strchr(address, ':') != NULL ? PGSQL_AF_INET6 : PGSQL_AF_INET;
	if (strchr(address, '/') != NULL || pg_inet_net_pton(family, address, bytes, -1) < 0)
		return NULL;
	return DatumGetInetPP(DirectFunctionCall1(inet_in, CStringGetDatum(address)));
}

/*
 * The last address in the header that the administrator has named: the
 * nearest proxy has appended it, those before it are what it was told.
 */
static inet *
address_in_header(List *headers)
{
	List	   *values = apitoken_header_values(headers, apitoken_client_address_header);
	ApitokenField *field;
	char	   *last;
	size_t		length;

	if (values == NIL)
		return NULL;
	field = llast(values);
	if (field->value == NULL)
		return NULL;
	last = strrchr(field->value, ',');
	last = last == NULL ? field->value : last + 1;
	last += strspn(last, " \t");
	length = strlen(last);
	while (length > 0 && strchr(" \t", last[length - 1]) != NULL)
		length--;
	return parse_address(pnstrdup(last, length));
}

inet *
apitoken_client_address(inet *argument)
{
	const char *setting = apitoken_setting_in_force(APITOKEN_SETTING_CLIENT_ADDRESS);
	List	   *headers;

	if ((argument != NULL || setting != NULL) &&
		apitoken_session_may_vouch())
		return unmapped(argument != NULL ? argument :
						DatumGetInetPP(DirectFunctionCall1(inet_in, CStringGetDatum(setting))));
	if (*apitoken_client_address_header != '\0' &&
		apitoken_request_headers(&headers) != APITOKEN_NO_REQUEST &&
		apitoken_session_may_vouch())
	{
		inet	   *address = address_in_header(headers);

		return address == NULL ? NULL : unmapped(address);
	}
	return connection_address();
}

bool
apitoken_in_networks(inet *address, ArrayType *networks)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (address == NULL)
		return false;
	deconstruct_array(networks, CIDROID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		if (!nulls[i] &&
			DatumGetBool(DirectFunctionCall2(network_subeq, InetPGetDatum(address), elements[i])))
			return true;
	}
	return false;
}
