#!/bin/bash
#
# cassert.sh [ARGUMENT...]: run all tests, or those that run.sh's arguments select,
# on a server with assertions, and then a part of them with
# debug_discard_caches = 1, which makes the server forget all that it has cached at
# every chance.
#
# The server is built from Debian's source of PostgreSQL 15, without Debian's
# patches, with --enable-cassert.  The source comes from the mirror that apt is
# configured with.  The server stays in the cache: a second run needs no network.
# This takes long, so it is not a part of .ci/run.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

major=15
# without cached catalogs a statement takes up to a hundred times as long
discarding=(-c plain regress:token regress:lists regress:dependencies)

# fetch DIR: build the server there.
fetch() {
	local d=$1 log=$1/build.log source=$1/source
	echo "Building PostgreSQL $major with assertions (log: $log)"
	rm -rf "$d"
	mkdir -p "$source"
	# shellcheck disable=SC2046  # a list of words
	private_apt "$d/.apt" deb-src $(suites "$major") || return 1
	apt-get "${APT_OPTIONS[@]}" update -qq || return 1
	(cd "$source" && apt-get "${APT_OPTIONS[@]}" source -qq --download-only "postgresql-$major") >"$log" 2>&1 || { cat "$log"; return 1; }
	tar -C "$source" --strip-components=1 -xf "$(echo "$source"/postgresql-"$major"_*.orig.tar.*)" || return 1
	if ! (cd "$source" && ./configure -q --prefix="$d/server" --enable-cassert --enable-debug --enable-tap-tests \
		--with-ssl=openssl --without-readline CFLAGS='-O1 -g' &&
		make -s -j"$(nproc)" && make -s install && make -s -C contrib -j"$(nproc)" install) >>"$log" 2>&1; then
		tail -n 40 "$log"
		return 1
	fi
	rm -rf "$source" "$d/.apt"
	"$d/server/bin/postgres" --version >"$d/.complete"
}

cache=$(cache_directory)
mkdir -p "$cache"
(
	flock 8
	[ -s "$cache/cassert/.complete" ] || fetch "$cache/cassert"
) 8>"$cache/.lock-cassert" || die "the server with assertions could not be built"
export PG_CONFIG=$cache/cassert/server/bin/pg_config
server_complete "$PG_CONFIG" || die "$PG_CONFIG is not complete"

start_total
part "with assertions" env APITOKEN_TIMEOUT="${APITOKEN_TIMEOUT:-3600}" "$ROOT/test/run.sh" "$@"
[ $# -gt 0 ] ||
	part "without caches" env APITOKEN_TIMEOUT="${APITOKEN_TIMEOUT:-3600}" APITOKEN_SETTINGS='debug_discard_caches = 1' \
		"$ROOT/test/run.sh" "${discarding[@]}"
end_total
totals_good "$APITOKEN_TOTALS"
