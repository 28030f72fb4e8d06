#!/bin/bash
#
# matrix.sh [MAJOR...]: run all tests on several majors (default: 15 17 18).
#
# The installed major is used as it is.  The others are fetched from the Debian
# release that has them, from the mirror that apt is configured with, and
# unpacked into a cache; nothing is installed into the system.  Each program is
# bound to the libraries that came with it (ELF interpreter and rpath), so that
# it runs here as it does there, under this machine's make, gcc and perl.  A
# second run needs no network.  Such a server has no JIT: LLVM is left out.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

cache=$(cache_directory)

# fetch MAJOR DIR
fetch() {
	local v=$1 d=$2 suite codename mirror keyring apt want all level next p f interpreter lib o
	case $v in
		15) suite=bookworm ;;
		17) suite=trixie ;;
		18) suite=forky ;;
		*) echo "no Debian release is known for PostgreSQL $v"; return 1 ;;
	esac
	command -v apt-get >/dev/null || { echo "servers can only be fetched with apt"; return 1; }
	echo "Fetching PostgreSQL $v from Debian's $suite"

	# the mirror of this release; if it goes by another name, the first that
	# is not for security updates
	# shellcheck disable=SC1091
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016  # apt's own variables
	mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' |
		awk -v c="$codename" '$1 == c { print $2; found = 1; exit } !first && !/security/ { first = $2 }
			END { if (!found && first) print first }')
	[ -n "$mirror" ] || { echo "apt has no mirror configured"; return 1; }
	for f in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
		[ -f "$f" ] && keyring=$f && break
	done
	[ -n "${keyring:-}" ] || { echo "the keys of Debian's archive are missing (debian-archive-keyring)"; return 1; }

	# An apt of its own in the directory, which knows this one release.  The
	# signature is checked; its age is not, as a mirror may lag behind.
	rm -rf "$d"
	apt=$d/.apt
	mkdir -p "$apt"/{lists/partial,cache/archives/partial} "$d/.debs"
	: >"$apt/status"
	echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
	o=(-o "Dir::State=$apt" -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status"
		-o "Dir::Cache=$apt/cache" -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent
		-o Acquire::Languages=none -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false
		-o Acquire::Retries=3 -o "APT::Sandbox::User=$(id -un)")
	apt-get "${o[@]}" update -qq || return 1

	# the libraries they need, level by level
	want="postgresql-$v postgresql-client-$v"
	all="$want postgresql-server-dev-$v"
	level=$want
	while [ -n "$level" ]; do
		# shellcheck disable=SC2086  # lists of words
		next=$(apt-cache "${o[@]}" depends -i $level | awk '$1 == "Depends:" || $1 == "PreDepends:" { print $2 }' |
			grep -E '^lib' | grep -vE 'llvm|libperl|debconf|^libpam-(modules|runtime)' | sort -u || true)
		level=
		for p in $next; do
			case " $all " in *" $p "*) ;; *) all="$all $p" level="$level $p" ;; esac
		done
	done
	# shellcheck disable=SC2086
	(cd "$d/.debs" && apt-get "${o[@]}" download -qq $all) || return 1
	for f in "$d"/.debs/*.deb; do dpkg-deb -x "$f" "$d" || return 1; done
	rm -rf "$d/.debs" "$d/.apt"

	# the JIT needs the LLVM left out
	rm -f "$d/usr/lib/postgresql/$v/lib/llvmjit.so"
	# an option of gcc 14 and later, in 18's flags
	sed -i 's/ -Wmissing-variable-declarations//' "$d/usr/lib/postgresql/$v/lib/pgxs/src/Makefile.global" || return 1
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

# server MAJOR: sets SERVER to its pg_config.
server() {
	local d=$cache/$1
	if [ -n "$installed" ] && [ "$(pg_major "$installed")" = "$1" ]; then
		SERVER=$installed
		return
	fi
	mkdir -p "$cache"
	if [ ! -s "$d/.complete" ]; then
		# two runs may want the same one
		(
			flock 8
			[ -s "$d/.complete" ] || fetch "$1" "$d"
		) 8>"$cache/.lock$1" || return 1
	fi
	SERVER=$d/usr/lib/postgresql/$1/bin/pg_config
	server_complete "$SERVER"
}

majors=("${@:-15}")
[ $# -gt 0 ] || majors=(15 17 18)
installed=$(find_pg_config || true)

outermost=
if [ -z "${APITOKEN_TOTALS:-}" ]; then
	outermost=1
	APITOKEN_TOTALS=$(mktemp "${TMPDIR:-/tmp}/apitoken-totals.XXXXXX")
	export APITOKEN_TOTALS
	trap 'rm -f "$APITOKEN_TOTALS"' EXIT
fi
mine=$(wc -l <"$APITOKEN_TOTALS")

# the lowest major, from which the others' tests upgrade
lowest=$installed
for v in "${majors[@]}"; do
	if ! server "$v"; then
		echo "PostgreSQL $v could not be fetched"
		echo '0 1 0' >>"$APITOKEN_TOTALS"
		continue
	fi
	if [ -z "$lowest" ] || [ "$v" -lt "$(pg_major "$lowest")" ]; then
		lowest=$SERVER
	fi
	from=$lowest
	[ "$(pg_major "$from")" -lt "$v" ] || from=
	part "PostgreSQL $v" env PG_CONFIG="$SERVER" APITOKEN_FROM="$from" "$ROOT/test/run.sh"
done

[ -z "$outermost" ] || totals_line "$APITOKEN_TOTALS"
tail -n +$((mine + 1)) "$APITOKEN_TOTALS" | awk '{ p += $1; f += $2 } END { exit !(p > 0 && f == 0) }'
