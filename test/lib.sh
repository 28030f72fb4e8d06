# shellcheck shell=bash
#
# What run.sh, matrix.sh, demo.sh, bench.sh and lint.sh share.  Sourced, not run.
#
# A server refuses to run as root, and a test must not touch a server that is in
# use.  So each run has a workplace: a temporary directory that belongs to the
# user that runs the server, with
#
#   src/      a copy of the project, where it is built
#   server/   a private copy of the PostgreSQL installation.  The extension is
#             installed there.  Programs are copied, everything else is linked.
#             PostgreSQL finds its files relative to its programs, so the copy
#             uses its own lib and share directories.
#   s/        the directory of the sockets; no server listens on TCP
#
# Nothing is installed into the system's PostgreSQL.  Concurrent runs do not affect
# each other.  If all packages are installed, root is not needed.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "$0: $*" >&2; exit 1; }

# A calling make passes its own variables and flags, and a user's environment may
# name another server and a locale.  All of these are ignored here.  LANG is set as
# well as LC_ALL, because PostgreSQL::Test::Utils deletes LC_ALL.
clean_environment() {
	local v
	unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES GNUMAKEFLAGS
	for v in "${!PG@}"; do
		[ "$v" = PG_CONFIG ] || unset "$v"
	done
	# before the others are unset: bash warns of a LANG that does not exist
	export LANG=C.UTF-8 LC_ALL=C.UTF-8
	unset LANGUAGE
	for v in "${!LC_@}"; do
		[ "$v" = LC_ALL ] || unset "$v"
	done
	umask 022
}

# Can this pg_config's installation run a server, and build and test an extension?
# Debian's client packages contain PGXS; only a header shows that the development
# files are installed.
server_complete() {
	local bin pgxs
	bin=$("$1" --bindir 2>/dev/null) && pgxs=$("$1" --pgxs 2>/dev/null) || return 1
	[ -x "$bin/postgres" ] && [ -x "$bin/initdb" ] && [ -x "$bin/psql" ] && [ -x "$bin/pg_config" ] &&
		[ -f "$pgxs" ] && [ -f "$(dirname "$pgxs")/../Makefile.global" ] &&
		[ -f "$("$1" --includedir-server)/postgres.h" ] && [ -f "$("$1" --includedir)/libpq-fe.h" ] &&
		[ -x "$(dirname "$pgxs")/../test/regress/pg_regress" ] &&
		[ -f "$("$1" --sharedir)/extension/pgcrypto.control" ]
}

# Print the pg_config to use: the one that PG_CONFIG names, or else the one on the
# PATH.  If that one is not usable (it may belong to a client library of another
# major), print the one of the highest major that is completely installed.
find_pg_config() {
	local c=${PG_CONFIG:-pg_config} d
	if server_complete "$c"; then
		echo "$("$c" --bindir)/pg_config"
		return
	fi
	[ "$c" = pg_config ] || return 1
	for d in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5,5nr); do
		if [ "$(basename "$(dirname "$d")")" -ge 15 ] 2>/dev/null && server_complete "$d/pg_config"; then
			echo "$d/pg_config"
			return
		fi
	done
	return 1
}

pg_version() { "$1" --version | sed 's/^PostgreSQL \([^ ]*\).*/\1/'; }
pg_major() { pg_version "$1" | sed 's/^\([0-9]*\).*/\1/'; }

# Can clang build a program with libFuzzer?  Its library is a package of its own.
fuzzer_works() {
	echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n); int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return 0; }' |
		clang -fsanitize=fuzzer,address -x c - -o /dev/null >/dev/null 2>&1
}

# Fetched files are kept here.  The user that runs the servers must reach them, so
# root's cache is not in root's home directory.
cache_directory() {
	if [ -n "${APITOKEN_CACHE:-}" ]; then
		echo "$APITOKEN_CACHE"
	elif [ "$(id -u)" = 0 ]; then
		echo /var/cache/apitoken
	else
		echo "${XDG_CACHE_HOME:-$HOME/.cache}/apitoken"
	fi
}

# ---- Debian's archive ----------------------------------------------------------

# suites MAJOR: the Debian releases that have it and its libraries.
suites() {
	case $1 in
		15) echo bookworm ;;
		17) echo trixie ;;
		18) echo forky ;;
		19) echo sid experimental ;;
	esac
}

# Print the mirror that apt is configured with: that of this release, or, if apt has
# another name for the release, the first one that is not for security updates.
debian_mirror() {
	local codename
	# shellcheck disable=SC1091
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016  # apt's own variables
	apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' |
		awk -v c="$codename" '$1 == c { print $2; found = 1; exit } !first && !/security/ { first = $2 }
			END { if (!found && first) print first }'
}

# private_apt DIR KIND SUITE...: an apt in this directory that knows only these
# releases of Debian, from the mirror that apt is configured with, and their
# packages (KIND deb) or sources (deb-src).  Sets APT_OPTIONS for its commands.  The
# signature is checked; its age is not, because a mirror may lag behind.
private_apt() {
	local apt=$1 kind=$2 mirror keyring f suite
	shift 2
	command -v apt-get >/dev/null || { echo "Debian's packages can only be fetched with apt"; return 1; }
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || { echo "apt has no mirror configured"; return 1; }
	for f in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
		[ -f "$f" ] && keyring=$f && break
	done
	[ -n "${keyring:-}" ] || { echo "the keys of Debian's archive are missing (debian-archive-keyring)"; return 1; }

	rm -rf "$apt"
	mkdir -p "$apt"/{lists/partial,cache/archives/partial,none}
	: >"$apt/status"
	: >"$apt/preferences"
	for suite in "$@"; do
		echo "$kind [signed-by=$keyring] $mirror $suite main"
	done >"$apt/sources.list"
	# shellcheck disable=SC2034  # for the caller
	APT_OPTIONS=(-o "Dir::State=$apt" -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status"
		-o "Dir::Cache=$apt/cache" -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent
		-o "Dir::Etc::preferences=$apt/preferences" -o "Dir::Etc::preferencesparts=$apt/none"
		-o Acquire::Languages=none -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false
		-o Acquire::Retries=3 -o "APT::Sandbox::User=$(id -un)")
}

# ---- the workplace -----------------------------------------------------------

WORK=
KEEP_WORK=

# copy_project DIR: copy the project there, without what was built.  Times are kept,
# so that make rebuilds only what changed.
copy_project() {
	mkdir -p "$1"
	tar -C "$ROOT" --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude='*.bc' \
		--exclude=node_modules --exclude=./bench-results --exclude=./test/unit/bin --exclude=./results --exclude=./output_iso \
		--exclude='./tmp_check*' --exclude='./regression.*' -cf - . | tar -C "$1" --no-same-owner -xf -
}

# make_workplace [DIR]: with DIR, an earlier workplace there is reused, with its
# object files, and stays after the run.
make_workplace() {
	RUN_AS=()
	if [ "$(id -u)" = 0 ]; then
		local user=nobody
		! id postgres >/dev/null 2>&1 || user=postgres
		RUN_AS=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups --)
	fi

	if [ $# -gt 0 ]; then
		mkdir -p "$1"
		KEEP_WORK=1
		WORK=$(cd "$1" && pwd)
		exec 9>"$WORK/.lock"
		flock -n 9 || die "$WORK is in use by another run"
	else
		WORK=$(mktemp -d "${TMPDIR:-/tmp}/apitoken.XXXXXX")
	fi
	trap remove_workplace EXIT
	trap 'exit 130' INT TERM HUP

	# a socket's path may have 107 characters
	[ ${#WORK} -le 80 ] || die "the path $WORK is too long for a socket; set TMPDIR to a shorter one"

	mkdir -p "$WORK/src" "$WORK/s" "$WORK/home"
	# files that were removed from the project must be removed here too
	find "$WORK/src" -type f ! -name '*.o' ! -name '*.so' ! -path '*/unit/bin/*' -delete
	copy_project "$WORK/src"
	chmod 700 "$WORK"
	[ ${#RUN_AS[@]} = 0 ] || chown -R "$user:" "$WORK"
	"${RUN_AS[@]}" test -r "$WORK/src/test/run.sh" ||
		die "user $user cannot reach $WORK; set TMPDIR to a directory open to all"
	test -x "$WORK/src/test/run.sh" ||
		die "no program can be executed in $WORK (mounted noexec?); set TMPDIR to another directory"
}

# Run a script of the copy as the user that runs servers.
in_workplace() {
	local script=$1
	shift
	cd "$WORK/src" || return
	APITOKEN_WORK=$WORK HOME=$WORK/home TMPDIR=$WORK "${RUN_AS[@]}" bash "$script" "$@"
}

# npm_packages DIRECTORY: make sure that the packages of that directory of the
# project are in the cache, as its lock file lists them.  Sets NPM_DIRECTORY, which
# has them in node_modules.  npm runs as our caller, because the caller may have
# configured a registry.  The packages' scripts are not run.
npm_packages() {
	local from=$ROOT/$1 name cache key log
	name=$(basename "$1")
	cache=$(cache_directory)/npm
	key=$(cat "$from/package.json" "$from/package-lock.json" | sha256sum | cut -c 1-16) || return 1
	NPM_DIRECTORY=$cache/$name-$key
	[ ! -f "$NPM_DIRECTORY/.complete" ] || return 0
	mkdir -p "$cache" || return 1
	# Two runs may want the same packages.  An interrupted installation leaves a
	# directory with another name.
	(
		flock 8
		[ ! -f "$NPM_DIRECTORY/.complete" ] || exit 0
		echo "Fetching the npm packages of $1"
		rm -rf "$NPM_DIRECTORY" "$NPM_DIRECTORY.new"
		mkdir "$NPM_DIRECTORY.new" && cd "$NPM_DIRECTORY.new" &&
			cp "$from/package.json" "$from/package-lock.json" . || exit 1
		log=$cache/$name.log
		if ! timeout -k 10 600 npm ci --ignore-scripts --no-audit --no-fund >"$log" 2>&1 </dev/null 8>&-; then
			tail -n 40 "$log"
			rm -rf "$NPM_DIRECTORY.new"
			exit 1
		fi
		chmod -R a+rX . && touch .complete && mv "$NPM_DIRECTORY.new" "$NPM_DIRECTORY"
	) 8>"$cache/.lock-$name"
}

# npm_for_tests TEST...: the same for each example that these TAP tests use, and for
# the benchmark's peers: they mention the variable APITOKEN_NPM_X for examples/x.
# Exports that variable, and creates examples/x/node_modules in the workplace's copy.
# Those whose packages could not be installed are added to APITOKEN_NPM_FAILED.
npm_for_tests() {
	local f directory example variable
	export APITOKEN_NPM_FAILED=
	for f in "$ROOT"/examples/*/package-lock.json "$ROOT"/test/bench/peers/package-lock.json; do
		[ -f "$f" ] || continue
		directory=${f#"$ROOT/"} directory=${directory%/*}
		example=$(basename "$directory")
		variable=APITOKEN_NPM_$(tr a-z- A-Z_ <<<"$example")
		unset "$variable"
		rm -f "$WORK/src/$directory/node_modules"
		if [ $# = 0 ] || ! grep -qw "$variable" "$@"; then
			continue
		fi
		if npm_packages "$directory"; then
			export "$variable=$NPM_DIRECTORY"
			ln -sfn "$NPM_DIRECTORY/node_modules" "$WORK/src/$directory/node_modules" || return 1
		else
			APITOKEN_NPM_FAILED="$APITOKEN_NPM_FAILED $example"
		fi
	done
}

# Stop every server that still runs in the workplace (an interrupted run), then
# remove it.
remove_workplace() {
	local f pid
	[ -n "$WORK" ] || return 0
	find "$WORK" -name postmaster.pid 2>/dev/null | while read -r f; do
		pid=$(head -n 1 "$f")
		kill -QUIT "$pid" 2>/dev/null || continue
		for _ in {1..50}; do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
	done
	[ -n "$KEEP_WORK" ] || rm -rf "$WORK"
}

# ---- inside the workplace ----------------------------------------------------

# link_directory ROOT DIR: make a link ROOT/DIR to DIR, unless a directory above it
# is a link already.  That link leads to DIR too, and anything created below it
# would be created in the system's directory.
link_directory() {
	local root=$1 d=$2 above=${2%/*}
	while [ -n "$above" ]; do
		[ ! -L "$root$above" ] || return 0
		above=${above%/*}
	done
	mkdir -p "$root${d%/*}"
	[ -e "$root$d" ] || ln -s "$d" "$root$d"
}

# private_server PG_CONFIG DIR: copy the installation; sets PRIVATE_PG_CONFIG.
private_server() {
	local c=$1 root=$2 bin lib share d f includes
	bin=$("$c" --bindir) lib=$("$c" --pkglibdir) share=$("$c" --sharedir)
	# shellcheck disable=SC2034  # for the caller
	PRIVATE_PG_CONFIG=$root$bin/pg_config
	[ "$(cat "$root/.complete" 2>/dev/null)" = "$c $("$c" --version), own manuals" ] && return
	rm -rf "$root"
	mkdir -p "$root$bin" "$root$lib" "$root$share/extension"
	cp -L "$bin"/* "$root$bin/"
	for f in "$lib"/*; do
		case ${f##*/} in apitoken*) ;; *) ln -s "$f" "$root$lib/" ;; esac
	done
	for f in "$share"/* "$share"/extension/*; do
		case ${f##*/} in
			# where files are installed, a link would lead to the system's directory
			extension | apitoken* | man | bash-completion) ;;
			*) ln -s "$f" "$root${f%/*}/" ;;
		esac
	done
	# often one of them is below another: sorted, the upper one comes first
	includes=$("$c" --includedir --pkgincludedir --includedir-server | sort -u)
	while read -r d; do
		link_directory "$root" "$d"
	done <<<"$includes"
	echo "$c $("$c" --version), own manuals" >"$root/.complete"
}

# build SRC PG_CONFIG: build there, and install into that server.
build() {
	local log=$WORK/build.log
	if ! make -s -C "$1" -j"$(nproc)" "PG_CONFIG=$2" all >"$log" 2>&1 ||
		! make -s -C "$1" "PG_CONFIG=$2" install >>"$log" 2>&1; then
		cat "$log"
		return 1
	fi
	grep -E 'warning:' "$log" || true
}

# start_server DATADIR PORT [FILE]: make a cluster, add the settings of FILE, start it
# on the socket $WORK/s/.s.PGSQL.PORT.  Its log is DATADIR.log.  Tests compare plans:
# an autovacuum at the wrong moment would change one of two.
start_server() {
	local data=$1 port=$2
	rm -rf "$data" "$data.log"
	"$BIN/initdb" -D "$data" -U postgres -A trust -E UTF8 --no-locale --no-sync >"$data.initdb" 2>&1 ||
		{ cat "$data.initdb"; return 1; }
	cat >>"$data/postgresql.conf" <<-EOF
		listen_addresses = ''
		unix_socket_directories = '$WORK/s'
		port = $port
		fsync = off
		autovacuum = off
		max_prepared_transactions = 10
		log_line_prefix = '%m [%p] %q%a '
	EOF
	[ $# -lt 3 ] || cat "$3" >>"$data/postgresql.conf"
	[ -z "${APITOKEN_SETTINGS:-}" ] || echo "$APITOKEN_SETTINGS" >>"$data/postgresql.conf"
	# 9 is the lock of a workplace that is kept: not the server's
	"$BIN/pg_ctl" -D "$data" -l "$data.log" -s -w start 9>&- || { cat "$data.log"; return 1; }
}

stop_server() { "$BIN/pg_ctl" -D "$1" -s -w -m fast stop; }

# ---- totals -------------------------------------------------------------------

# When several runs make one total, APITOKEN_TOTALS names a file.  Each run adds a
# line 'passed failed skipped' to it, and only the outermost prints the plain
# closing line.
totals_line() {
	awk '{ p += $1; f += $2; s += $3 }
		END { printf "%d passed, %d failed%s\n", p, f, s ? ", " s " skipped" : "" }' "$1"
}

# start_total, end_total: around parts that make one total.  Unless our caller makes
# a larger one, it is ours, and printed.
OUTERMOST=
start_total() {
	[ -z "${APITOKEN_TOTALS:-}" ] || return 0
	OUTERMOST=1
	APITOKEN_TOTALS=$(mktemp "${TMPDIR:-/tmp}/apitoken-totals.XXXXXX")
	export APITOKEN_TOTALS
	trap 'rm -f "$APITOKEN_TOTALS"' EXIT
}
end_total() { [ -z "$OUTERMOST" ] || totals_line "$APITOKEN_TOTALS"; }

totals_good() { awk '{ p += $1; f += $2 } END { exit !(p > 0 && f == 0) }' "$1"; }

# part NAME COMMAND...: run a script that adds its own line.  If it ends without
# adding one, that counts as one failure.
part() {
	local name=$1 before after rc=0
	shift
	before=$(wc -l <"$APITOKEN_TOTALS")
	"$@" || rc=$?
	after=$(wc -l <"$APITOKEN_TOTALS")
	if [ "$before" = "$after" ]; then
		echo "$name could not run (exit $rc)"
		echo '0 1 0' >>"$APITOKEN_TOTALS"
	fi
}
