#!/bin/bash
#
# demo-console.sh: build the extension, start a throw-away server and the backend of
# examples/node, with examples/console and made-up tokens, and say which address to
# open.  Ctrl-C ends and removes all of it.  The page is on loopback only; PORT names
# its port.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

if [ -z "${APITOKEN_WORK:-}" ]; then
	c=$(find_pg_config) || die "no complete PostgreSQL found by ${PG_CONFIG:-pg_config}; run test/deps.sh"
	command -v node >/dev/null || die "node is missing; run test/deps.sh examples"
	npm_packages examples/node || die "the npm packages of examples/node could not be fetched"
	# shellcheck disable=SC2119
	make_workplace
	ln -sfn "$NPM_DIRECTORY/node_modules" "$WORK/src/examples/node/node_modules"
	# node may be in a directory that is not on the PATH inside
	APITOKEN_NODE_PATH=$(dirname "$(command -v node)")
	export APITOKEN_NODE_PATH
	# Ctrl-C ends what is inside; we wait for it, and remove the rest
	trap ':' INT
	rc=0
	PG_CONFIG=$c in_workplace test/demo-console.sh || rc=$?
	[ "$rc" = 130 ] || [ "$rc" = 143 ] || [ "$rc" = 0 ] || exit "$rc"
	echo "The server is stopped and removed."
	exit
fi

WORK=$APITOKEN_WORK
export PATH=$PATH:$APITOKEN_NODE_PATH
echo "Building for $("$PG_CONFIG" --version), and starting a temporary server ..."
private_server "$PG_CONFIG" "$WORK/server"
BIN=$("$PRIVATE_PG_CONFIG" --bindir)
build "$WORK/src" "$PRIVATE_PG_CONFIG"
start_server "$WORK/data" 5432 "$WORK/src/test/apitoken.conf"
export PGHOST=$WORK/s PGPORT=5432 PGDATABASE=demo
"$BIN/createdb" -U postgres demo
for f in examples/articles.sql examples/console/demo.sql; do
	"$BIN/psql" -X -q -v ON_ERROR_STOP=1 -U postgres -o /dev/null -f "$WORK/src/$f"
done

server=
finish() {
	trap - INT TERM EXIT
	[ -z "$server" ] || kill "$server" 2>/dev/null || true
	stop_server "$WORK/data" || true
	exit "$1"
}
trap 'finish 130' INT
trap 'finish 143' TERM
trap 'finish $?' EXIT
PGUSER=app_node node "$WORK/src/examples/console/demo.js" >"$WORK/address" 2>"$WORK/backend.log" &
server=$!
for _ in {1..100}; do
	[ ! -s "$WORK/address" ] || break
	kill -0 "$server" 2>/dev/null || { cat "$WORK/backend.log" >&2; exit 1; }
	sleep 0.1
done
cat <<-END

	Open  $(cat "$WORK/address")

	Choose there who is signed in.  Ctrl-C ends the demo, and removes all of it.
END
wait "$server"
