/*
 * address.c
 *		Where a client is.
 *
 * In order: the client_address argument and the setting
 * apitoken.client_address, both only from a session that may speak for
 * others; then the connection's own address.  Unknown (a Unix socket) is
 * NULL, and matches no list of networks.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "apitoken.h"

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

inet *
apitoken_client_address(inet *argument)
{
	const char *setting = apitoken_setting_in_force(APITOKEN_SETTING_CLIENT_ADDRESS);

	if ((argument != NULL || setting != NULL) &&
		apitoken_session_may_vouch())
		return unmapped(argument != NULL ? argument :
						DatumGetInetPP(DirectFunctionCall1(inet_in, CStringGetDatum(setting))));
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
