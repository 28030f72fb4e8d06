#!/bin/bash
#
# demo.sh: build the extension, start a throw-away server, and run
# examples/demo.sql in it.  Everything is in one temporary directory, which is
# removed at the end; with KEEP=1 the server stays.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

if [ -z "${APITOKEN_WORK:-}" ]; then
	c=$(find_pg_config) || die "no complete PostgreSQL found by ${PG_CONFIG:-pg_config}; run test/deps.sh"
	[ -f "$ROOT/examples/demo.sql" ] || die "examples/demo.sql is missing"
	# shellcheck disable=SC2119
	make_workplace
	PG_CONFIG=$c in_workplace test/demo.sh
	if [ -z "${KEEP:-}" ]; then
		echo "The server is stopped and removed.  To keep it and look around: KEEP=1 make demo"
		exit
	fi
	# from here on, the user owns the server
	d=$WORK
	WORK=
	pid=$(head -n 1 "$d/data/postmaster.pid")
	cat <<-EOF
		The server goes on running, in $d.

		  to connect:  psql -h $d/s -p 5432 -U postgres demo
		  to stop:     kill -INT $pid
		  to remove:   rm -rf $d
	EOF
	exit
fi

WORK=$APITOKEN_WORK
echo "Building for $("$PG_CONFIG" --version), and starting a temporary server ..."
private_server "$PG_CONFIG" "$WORK/server"
BIN=$("$PRIVATE_PG_CONFIG" --bindir)
build "$WORK/src" "$PRIVATE_PG_CONFIG"
start_server "$WORK/data" 5432 "$WORK/src/test/apitoken.conf"
"$BIN/createdb" -h "$WORK/s" -p 5432 -U postgres demo
echo
rc=0
"$BIN/psql" -X -q -v ON_ERROR_STOP=1 -P pager=off -h "$WORK/s" -p 5432 -U postgres \
	-d demo <"$WORK/src/examples/demo.sql" 2>&1 || rc=$?
echo
if [ "$rc" != 0 ]; then
	echo "The demo failed." >&2
	exit "$rc"
fi
[ -n "${KEEP:-}" ] || stop_server "$WORK/data"
