/*
 * address.c
 *		The address of the client.
 *
 * The first of these that is present gives the address:
 *
 *	1. the argument client_address,
 *	2. the setting apitoken.client_address,
 *	3. the HTTP header that apitoken.client_address_header names,
 *	4. the address of the connection.
 *
 * The first three count only in a session that may speak for clients.  If a
 * request does not have the configured header, if a function of another role has
 * set the setting, or if the connection uses a Unix socket, the address is
 * unknown.  An unknown address is NULL, and is in no list of networks.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "base/base.h"

/* The connection's address, cached because inet_client_addr() parses it on each call. */
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
 * Convert an IPv4-mapped IPv6 address or network (::ffff:a.b.c.d, RFC 4291
 * section 2.5.5.2), which dual-stack gateways and runtimes write, to the IPv4
 * address or network.  Returns the same pointer for any other.
 *
 * An address is of one family and so is a network, as in pg_hba.conf: 0.0.0.0/0
 * contains all IPv4 addresses, mapped or not, and ::/0 contains all IPv6
 * addresses, and no IPv4 address.  So does every other network that is wider than
 * ::ffff:0:0/96.
 */
static inet *
unmap_ipv4(inet *address)
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

/* Is the text empty, or a colon and a port number? */
static bool
is_port(const char *text)
{
	if (*text == '\0')
		return true;
	return *text == ':' && text[1] != '\0' && text[1 + strspn(text + 1, "0123456789")] == '\0';
}

/*
 * Parse an address in the forms that proxies write: an address alone,
 * IPv4:port, [IPv6] or [IPv6]:port.  Returns NULL if it is malformed.
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
 * Returns the last address in the header that apitoken.client_address_header
 * names, or NULL.  The nearest proxy appended that one; a client can forge the
 * addresses before it.
 */
static inet *
header_address(List *headers)
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

	if (argument == NULL && setting != NULL && apitoken_session_is_trusted())
	{
		if (!apitoken_setter_counts(apitoken_setting_role(APITOKEN_SETTING_CLIENT_ADDRESS), apitoken_role_is_trusted))
			return NULL;
		argument = DatumGetInetPP(DirectFunctionCall1(inet_in, CStringGetDatum(setting)));
	}
	if (argument != NULL && apitoken_session_is_trusted())
		return unmap_ipv4(argument);
	if (*apitoken_client_address_header != '\0' &&
		apitoken_request_headers(&headers) != APITOKEN_NO_REQUEST &&
		apitoken_session_is_trusted())
	{
		inet	   *address = header_address(headers);

		return address == NULL ? NULL : unmap_ipv4(address);
	}
	return connection_address();
}

/*
 * The network that an address counts as in news of networks: a provider's customers
 * mostly keep a /24 of IPv4 and a /48 of IPv6, though their addresses change.  The
 * address is that of apitoken_client_address(), so none is mapped.
 */
void
apitoken_network_of(const inet *address, inet_struct *network)
{
	memset(network, 0, sizeof(*network));
	network->family = ip_family(address);
	network->bits = Min(ip_bits(address), ip_family(address) == PGSQL_AF_INET ? 24 : 48);
	memcpy(network->ipaddr, ip_addr(address), network->bits / 8);
	if (network->bits % 8 != 0)
		network->ipaddr[network->bits / 8] = ip_addr(address)[network->bits / 8] & (0xff << (8 - network->bits % 8));
}

/* The list with mapped IPv4 networks converted; the same pointer if there are none. */
ArrayType *
apitoken_canonical_networks(ArrayType *networks)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	bool		changed = false;

	deconstruct_array(networks, CIDROID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		inet	   *network = nulls[i] ? NULL : DatumGetInetPP(elements[i]);
		inet	   *plain = nulls[i] ? NULL : unmap_ipv4(network);

		if (plain == network)
			continue;
		elements[i] = InetPGetDatum(plain);
		changed = true;
	}
	if (!changed)
		return networks;
	return construct_md_array(elements, nulls, ARR_NDIM(networks), ARR_DIMS(networks), ARR_LBOUND(networks),
							  CIDROID, -1, false, TYPALIGN_INT);
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
		/* a list that was stored without our trigger may have mapped networks */
		if (!nulls[i] &&
			DatumGetBool(DirectFunctionCall2(network_subeq, InetPGetDatum(address),
											 InetPGetDatum(unmap_ipv4(DatumGetInetPP(elements[i]))))))
			return true;
	}
	return false;
}
