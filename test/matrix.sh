#!/bin/bash
#
# matrix.sh [MAJOR...] [-- ARGUMENT...]: run all tests, or those that run.sh's
# arguments select, on several majors (default: 15 16 17 18 19).
#
# An installed major is used as it is.  The others are fetched from the Debian
# release that has them, from the mirror that apt is configured with, and unpacked
# into a cache.  Nothing is installed into the system.  Each program is bound to
# the libraries that came with it (ELF interpreter and rpath), so it runs as in its
# own release.  make, gcc and perl are this machine's.  A second run needs no
# network.  Such a server has no JIT: LLVM is left out.
#
# If a major is not installed and no Debian release has it, it counts as one
# skipped test.  So does a major that should be in experimental but cannot be
# fetched.  Failures of an unreleased server are printed, but not counted.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

cache=$(cache_directory)

# fetch MAJOR DIR
fetch() {
	local v=$1 d=$2 suites want all level next p f interpreter lib
	suites=$(suites "$v")
	echo "Fetching PostgreSQL $v from Debian's $suites"

	# From experimental, only packages built with the server (libpq) are taken; the
	# rest comes from sid.
	rm -rf "$d"
	mkdir -p "$d/.debs"
	# shellcheck disable=SC2086  # a list of words
	private_apt "$d/.apt" deb $suites || return 1
	printf '%s\n' "Package: src:postgresql-$v" 'Pin: release *' 'Pin-Priority: 990' >"$d/.apt/preferences"
	apt-get "${APT_OPTIONS[@]}" update -qq || return 1

	# the libraries they need, level by level
	want="postgresql-$v postgresql-client-$v"
	all="$want postgresql-server-dev-$v libpq-dev"
	level=$want
	while [ -n "$level" ]; do
		# shellcheck disable=SC2086  # lists of words
		next=$(apt-cache "${APT_OPTIONS[@]}" depends -i $level | awk '$1 == "Depends:" || $1 == "PreDepends:" { print $2 }' |
			grep -E '^lib' | grep -vE 'llvm|libperl|debconf|^libpam-(modules|runtime)' | sort -u || true)
		level=
		for p in $next; do
			case " $all " in *" $p "*) ;; *) all="$all $p" level="$level $p" ;; esac
		done
	done
	# shellcheck disable=SC2086
	(cd "$d/.debs" && apt-get "${APT_OPTIONS[@]}" download -qq $all) || return 1
	for f in "$d"/.debs/*.deb; do dpkg-deb -x "$f" "$d" || return 1; done
	rm -rf "$d/.debs" "$d/.apt"

	# the JIT needs LLVM, which was left out
	rm -f "$d/usr/lib/postgresql/$v/lib/llvmjit.so"
	# an option of gcc 14 and later, in the flags of 18 and 19
	sed -i 's/ -Wmissing-variable-declarations//' "$d/usr/lib/postgresql/$v/lib/pgxs/src/Makefile.global" || return 1
	# code in 19's headers that only gcc 14 and later understands
	sed -i 's|^#define HAVE_TYPEOF_UNQUAL 1$|/* & */|' "$d/usr/include/postgresql/$v/server/pg_config.h" || return 1
	lib=$(dirname "$(find "$d/usr/lib" -name libc.so.6 | head -n 1)")
	for f in "$d/usr/lib/postgresql/$v/bin"/* "$d/usr/lib/postgresql/$v/lib/pgxs/src/test"/*/*; do
		interpreter=$([ -f "$f" ] && patchelf --print-interpreter "$f" 2>/dev/null) || continue # no program
		interpreter=$lib/$(basename "$interpreter")
		patchelf --set-interpreter "$interpreter" --force-rpath --set-rpath "$lib" "$f" || return 1
		if "$interpreter" --list "$f" | grep 'not found'; then
			echo "libraries of $f are missing"
			return 1
		fi
	done
	"$d/usr/lib/postgresql/$v/bin/postgres" --version >"$d/.complete"
}

# find_installed MAJOR: sets SERVER to its pg_config, if it is installed.
find_installed() {
	SERVER=$installed
	[ -n "$SERVER" ] && [ "$(pg_major "$SERVER")" = "$1" ] && return
	SERVER=/usr/lib/postgresql/$1/bin/pg_config
	server_complete "$SERVER"
}

# server MAJOR: sets SERVER to its pg_config.
server() {
	local d=$cache/$1
	! find_installed "$1" || return 0
	mkdir -p "$cache"
	# what was fetched before the extension used libpq lacks that
	if [ ! -s "$d/.complete" ] || [ ! -f "$d/usr/include/postgresql/libpq-fe.h" ]; then
		# two runs may want the same one
		(
			flock 8
			{ [ -s "$d/.complete" ] && [ -f "$d/usr/include/postgresql/libpq-fe.h" ]; } || fetch "$1" "$d"
		) 8>"$cache/.lock$1" || return 1
	fi
	SERVER=$d/usr/lib/postgresql/$1/bin/pg_config
	server_complete "$SERVER"
}

# Is this server a development version, a beta or a release candidate?
unreleased() { [[ $(pg_version "$1") == *[a-z]* ]]; }

majors=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	majors+=("$1")
	shift
done
[ $# = 0 ] || shift
[ ${#majors[@]} -gt 0 ] || majors=(15 16 17 18 19)
installed=$(find_pg_config || true)

start_total
mine=$(wc -l <"$APITOKEN_TOTALS")

# the tests of the other majors upgrade from the lowest one, 005_dump from the one before as well
lowest=$installed previous=
for v in "${majors[@]}"; do
	if ! find_installed "$v" && [ -z "$(suites "$v")" ]; then
		echo "PostgreSQL $v skipped: no Debian release has it, and it is not installed"
		echo '0 0 1' >>"$APITOKEN_TOTALS"
		continue
	fi
	if ! server "$v"; then
		echo "PostgreSQL $v could not be fetched"
		# experimental is incomplete on some days: that is not our failure
		[[ $(suites "$v") == *experimental ]] && unfetched='0 0 1' || unfetched='0 1 0'
		echo "$unfetched" >>"$APITOKEN_TOTALS"
		continue
	fi
	if [ -z "$lowest" ] || [ "$v" -lt "$(pg_major "$lowest")" ]; then
		lowest=$SERVER
	fi
	from=$lowest
	[ "$(pg_major "$from")" -lt "$v" ] || from=
	before=$(wc -l <"$APITOKEN_TOTALS")
	part "PostgreSQL $v" env PG_CONFIG="$SERVER" APITOKEN_FROM="$from" "$ROOT/test/run.sh" "$@"
	# and from the major before, if that is not the lowest
	if [ -n "$from" ] && [ -n "$previous" ] && [ "$previous" != "$from" ] && [[ $# = 0 || " $* " == *" tap"* ]]; then
		part "PostgreSQL $v from $(pg_major "$previous")" env PG_CONFIG="$SERVER" APITOKEN_FROM="$previous" "$ROOT/test/run.sh" tap:005_dump
	fi
	previous=$SERVER
	unreleased "$SERVER" || continue
	uncounted=$(tail -n +$((before + 1)) "$APITOKEN_TOTALS" | awk '{ f += $2 } END { print f + 0 }')
	[ "$uncounted" = 0 ] ||
		echo "PostgreSQL $(pg_version "$SERVER") is not released: failures not counted: $uncounted"
	sed -i "$((before + 1))"',$s/^\([0-9]*\) [0-9]* /\1 0 /' "$APITOKEN_TOTALS"
done

end_total
tail -n +$((mine + 1)) "$APITOKEN_TOTALS" | awk '{ p += $1; f += $2 } END { exit !(p > 0 && f == 0) }'
