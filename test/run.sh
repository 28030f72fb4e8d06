#!/bin/bash
#
# run.sh [-c CONFIG] [-j JOBS] [-w DIR] [-f PG_CONFIG] [PART[:NAME]...]
#
# Build the extension for the server of $PG_CONFIG, and test it there.  Parts:
# unit, regress, isolation, tap; all of them unless some are named.
#
#   -c CONFIG     plain, session or shared (may be repeated; default: all three)
#   -j JOBS       number of configurations and TAP tests that run at a time (default: 1)
#   -w DIR        workplace that is kept, and used again the next time
#   -f PG_CONFIG  an older server, for the TAP tests that upgrade from one
#
# See test/README.md.

# start_job calls functions by name
# shellcheck disable=SC2317
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

configs=() parts=() workdir='' from=${APITOKEN_FROM:-} jobs=1
while getopts c:j:w:f: opt; do
	case $opt in
		c)
			case $OPTARG in plain | session | shared) configs+=("$OPTARG") ;; *) die "unknown configuration: $OPTARG" ;; esac
			;;
		j) jobs=$OPTARG ;;
		w) workdir=$OPTARG ;;
		f) from=$OPTARG ;;
		*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ ${#configs[@]} -gt 0 ] || configs=(plain session shared)
for p in "$@"; do
	case ${p%%:*} in unit | regress | isolation | tap) parts+=("$p") ;; *) die "unknown part: $p" ;; esac
done
[ ${#parts[@]} -gt 0 ] || parts=(unit regress isolation tap)

# ---- outside: make the workplace, go on there ---------------------------------

if [ -z "${APITOKEN_WORK:-}" ]; then
	c=$(find_pg_config) || die "no complete PostgreSQL found by ${PG_CONFIG:-pg_config}; run test/deps.sh"
	[ "$(pg_major "$c")" -ge 15 ] || die "PostgreSQL 15 or later is required, but $c is $(pg_version "$c")"
	args=(-j "$jobs")
	for p in "${configs[@]}"; do args+=(-c "$p"); done
	[ -z "$from" ] || args+=(-f "$from")
	args+=("${parts[@]}")

	make_workplace ${workdir:+"$workdir/$(pg_major "$c")"}
	tests=()
	for f in "$ROOT"/test/t/*.pl; do
		n=$(basename "$f" .pl)
		[[ " ${parts[*]} " != *" tap "* && " ${parts[*]} " != *" tap:$n "* ]] || tests+=("$f")
	done
	npm_for_tests "${tests[@]}"
	# node may be in a directory that is not on the PATH inside
	APITOKEN_NODE_PATH=$(dirname "$(command -v node || echo /usr/bin/node)")
	APITOKEN_POSTGREST_PATH=$(dirname "$(command -v postgrest || echo /usr/bin/postgrest)")
	export APITOKEN_NODE_PATH APITOKEN_POSTGREST_PATH
	rc=0
	rm -f "$WORK/totals"
	PG_CONFIG=$c in_workplace test/run.sh "${args[@]}" || rc=$?
	[ -s "$WORK/totals" ] || { echo "the run ended early (exit code $rc)"; echo '0 1 0' >"$WORK/totals"; }
	[ "$rc" = 0 ] || ! totals_good "$WORK/totals" || echo '0 1 0' >>"$WORK/totals"
	if [ -n "${APITOKEN_TOTALS:-}" ]; then
		awk '{ p += $1; f += $2; s += $3 } END { print p, f, s }' "$WORK/totals" >>"$APITOKEN_TOTALS"
		echo "PostgreSQL $(pg_version "$c"): $(totals_line "$WORK/totals")"
	else
		totals_line "$WORK/totals"
	fi
	totals_good "$WORK/totals"
	exit
fi

# ---- inside -------------------------------------------------------------------

WORK=$APITOKEN_WORK
src=$WORK/src
cd "$src"
passed=0 failed=0 skipped=0
limit=${APITOKEN_TIMEOUT:-900} # seconds that one program may take

# score PASSED FAILED SKIPPED LABEL [SECONDS]
score() {
	passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
	printf '  %-30s %s of %s%s%s\n' "$4" "$1" "$(($1 + $2))" "${5:+   $5 s}" "$([ "$2" = 0 ] || echo "   FAILED")"
}
fail() { score 0 1 0 "$1"; }
finish() {
	echo "$passed $failed $skipped" >"$WORK/totals"
	[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
	exit
}

version=$(pg_version "$PG_CONFIG")
echo "PostgreSQL $version"
private_server "$PG_CONFIG" "$WORK/server"
PGC=$PRIVATE_PG_CONFIG
BIN=$("$PGC" --bindir)
pgxs=$(cd "$(dirname "$("$PGC" --pgxs)")/../.." && pwd)
export PATH=$BIN:/usr/local/bin:/usr/bin:/bin:/usr/sbin:${APITOKEN_NODE_PATH:-}:${APITOKEN_POSTGREST_PATH:-}
variable() { make -s -C "$src" "PG_CONFIG=$PGC" "print-$1"; }

# wanted PART NAME...: the names of a part that were requested.
wanted() {
	local part=$1 n p
	shift
	for n in "$@"; do
		for p in "${parts[@]}"; do
			if [ "$p" = "$part" ] || [ "$p" = "$part:$n" ]; then
				echo "$n"
				break
			fi
		done
	done
}
files() { find "$1" -maxdepth 1 -name "*.$2" -printf '%f\n' 2>/dev/null | sed "s/\.$2\$//" | sort; }
asked() { case " ${parts[*]}" in *" $1"*) return 0 ;; *) return 1 ;; esac; }
asked_whole() { case " ${parts[*]} " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# unit tests need nothing but their own files
if asked regress || asked isolation || asked tap; then
	if ! build "$src" "$PGC"; then
		fail "build"
		finish
	fi
fi

# Anything requested by name must exist.
for p in "${parts[@]}"; do
	n=${p#*:}
	case $p in
		unit:*) [ -f "test/unit/$n.c" ] || fail "no such unit test: $n" ;;
		tap:*) [ -f "test/t/$n.pl" ] || fail "no such TAP test: $n" ;;
		regress:*) [[ " $(variable REGRESS) " == *" $n "* ]] || fail "not in REGRESS: $n" ;;
		isolation:*) [[ " $(variable ISOLATION) " == *" $n "* ]] || fail "not in ISOLATION: $n" ;;
	esac
done

# tap_file LABEL LOG COMMAND...: run prove on one program, and count its assertions.
# If the program dies, or does not run the planned number, that is one failure.
tap_file() {
	local label=$1 log=$2 rc=0 ok bad part skip=0 start=$SECONDS
	shift 2
	timeout --foreground -k 10 "$limit" "$@" >"$log" 2>&1 </dev/null || rc=$?
	ok=$(grep -aE '^ok [0-9]+' "$log" | grep -acvE '# *skip' || true)
	part=$(grep -acE '^ok [0-9]+.*# *skip' "$log" || true)
	bad=$(grep -aE '^not ok [0-9]+' "$log" | grep -acviE '# *TODO' || true)
	if [ "$ok" = 0 ] && grep -aqE ' skipped: ' "$log" && [ "$rc" = 0 ]; then
		skip=1
	elif [ "$bad" = 0 ] && { [ "$rc" != 0 ] || [ "$((ok + part))" = 0 ]; }; then
		bad=1
	fi
	if [ "$skip" = 1 ]; then
		skipped=$((skipped + 1))
		printf '  %-30s skipped: %s\n' "$label" "$(sed -nE 's/^.* skipped: //p' "$log")"
		return
	fi
	score "$ok" "$bad" "$part" "$label" $((SECONDS - start))
	[ "$part" = 0 ] || sed -nE 's/^ok [0-9]+.*# *skip *(.*)$/    skipped: \1/p' "$log"
	if [ "$bad" != 0 ]; then
		[ "$rc" != 124 ] || echo "--- terminated after $limit seconds"
		grep -avE '^ok [0-9]+' "$log" | tail -n 200 | cut -c 1-2000
		return 1
	fi
}

# start_job DIR FUNCTION ARGUMENT...: run it as soon as fewer than $jobs are running.
# When it has ended, its output is printed in one block.
job_dirs=()
start_job() {
	while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do wait -n || true; done
	run_job "$@" &
	job_dirs+=("$1")
}
run_job() {
	local dir=$1
	shift
	rm -rf "$dir"
	mkdir -p "$dir"
	passed=0 failed=0 skipped=0
	"$@" >"$dir/out" 2>&1
	echo "$passed $failed $skipped" >"$dir/totals"
	flock "$WORK" cat "$dir/out"
}

# finish_jobs: wait for all of them, and count.
finish_jobs() {
	local dir p f s
	wait
	for dir in "${job_dirs[@]}"; do
		read -r p f s <"$dir/totals" || { p=0 f=1 s=0; cat "$dir/out" || true; }
		passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	done
	job_dirs=()
}

# ---- unit ----

if asked unit; then
	mapfile -t names < <(files test/unit c)
	[ ${#names[@]} -gt 0 ] || fail "unit: there are no tests"
	mapfile -t names < <(wanted unit "${names[@]}")
	mkdir -p "$WORK/out/unit"
	for n in "${names[@]}"; do
		if ! make -C "$src" "PG_CONFIG=$PGC" "test/unit/bin/$n" >"$WORK/out/unit/$n.build" 2>&1; then
			fail "unit $n (build)"
			head -n 60 "$WORK/out/unit/$n.build"
			continue
		fi
		tap_file "unit $n" "$WORK/out/unit/$n.log" prove -v --exec '' "test/unit/bin/$n" :: test/vectors || true
	done
fi

# ---- regress, isolation ----

# A file that no list names would never run.
unlisted() {
	local part=$1 dir=$2 ext=$3 list f
	list=" $(variable "$4") "
	for f in "$dir"/*."$ext"; do
		f=$(basename "$f" ".$ext")
		[ "$f" = '*' ] || [[ "$list" == *" $f "* ]] || fail "$part: $f.$ext is not in $4"
	done
}

# run_pg_regress PART PROGRAM INPUTDIR CONFIG PORT NAME...: each name is one case.  A case
# passes only if it is reported as passed.  (15 prints 'test x ... ok', 16 and
# later 'ok 1 - x'; without an expected file, pg_regress stops.)
run_pg_regress() {
	local part=$1 program=$2 input=$3 config=$4 port=$5 out n rc=0 good=0 bad=0 missing=() start=$SECONDS
	shift 5
	out=$WORK/out/$config/$part
	rm -rf "$out"
	mkdir -p "$out"
	timeout --foreground -k 10 "$limit" "$pgxs/src/test/$program" --inputdir="$input" --outputdir="$out" --bindir="$BIN" \
		--host="$WORK/s" --port="$port" --user=postgres --dbname="${part}_regression" \
		"$@" >"$out/log" 2>&1 </dev/null || rc=$?
	for n in "$@"; do
		if grep -qE "^(test $n +\.\.\. ok|ok [0-9]+ +[-+] $n)( |\$)" "$out/log"; then
			good=$((good + 1))
		else
			bad=$((bad + 1))
			missing+=("$n")
		fi
	done
	[ "$rc" = 0 ] || [ "$bad" != 0 ] || bad=1
	score "$good" "$bad" 0 "$config $part" $((SECONDS - start))
	if [ "$bad" != 0 ]; then
		[ "$rc" != 124 ] || echo "--- terminated after $limit seconds"
		echo "--- not passed: ${missing[*]}"
		if [ -s "$out/regression.diffs" ]; then
			head -n 500 "$out/regression.diffs"
		else
			cat "$out/log"
		fi
	fi
}

# test_config CONFIG PORT: on a server of its own
test_config() {
	local config=$1 port=$2 data=$WORK/data-$1 conf=()
	case $config in
		session) conf=(test/session.conf) ;;
		shared) conf=(test/apitoken.conf) ;;
	esac
	if ! start_server "$data" "$port" "${conf[@]}"; then
		fail "$config: the server does not start"
		return
	fi
	[ ${#regress[@]} = 0 ] ||
		run_pg_regress regress regress/pg_regress "$src" "$config" "$port" "${regress[@]}"
	[ ${#isolation[@]} = 0 ] ||
		run_pg_regress isolation isolation/pg_isolation_regress "$src/test/isolation" "$config" "$port" "${isolation[@]}"
	stop_server "$data" || fail "$config: the server does not stop"
	# A crash does not always fail the test in which it happens.
	if grep -nE 'terminated by signal|PANIC: |TRAP: ' "$data.log"; then
		fail "$config: the server crashed"
	fi
	rm -rf "$data"
}

# shellcheck disable=SC2046  # lists of words
{
	mapfile -t regress < <(wanted regress $(variable REGRESS))
	mapfile -t isolation < <(wanted isolation $(variable ISOLATION))
}
! asked_whole regress || unlisted regress sql sql REGRESS
! asked_whole isolation || unlisted isolation test/isolation/specs spec ISOLATION
if [ $((${#regress[@]} + ${#isolation[@]})) -gt 0 ]; then
	port=5432 # of a socket that is in our directory only
	for config in "${configs[@]}"; do
		start_job "$WORK/out/$config" test_config "$config" $((port++))
	done
fi

# ---- TAP ----

if asked tap; then
	mapfile -t names < <(files test/t pl)
	[ ${#names[@]} -gt 0 ] || fail "tap: there are no tests"
	mapfile -t names < <(wanted tap "${names[@]}")
	for n in ${APITOKEN_NPM_FAILED:-}; do
		fail "npm packages of examples/$n"
	done

	# A test that upgrades finds the older server's programs here, with the
	# extension installed.  Without them the test is skipped.
	if [ -n "$from" ] && [ ${#names[@]} -gt 0 ]; then
		private_server "$from" "$WORK/from"
		rm -rf "$WORK/from-src"
		cp -a "$src" "$WORK/from-src"
		make -C "$WORK/from-src" "PG_CONFIG=$PRIVATE_PG_CONFIG" clean >/dev/null
		if build "$WORK/from-src" "$PRIVATE_PG_CONFIG"; then
			APITOKEN_FROM_BINDIR=$("$PRIVATE_PG_CONFIG" --bindir)
			export APITOKEN_FROM_BINDIR
		else
			fail "build for the older server"
		fi
	fi

	# 16 and later copy a cluster that stands ready
	rm -rf "$WORK/initdb"
	"$BIN/initdb" -D "$WORK/initdb" -A trust -N >"$WORK/initdb.log" 2>&1 || cat "$WORK/initdb.log"
	export INITDB_TEMPLATE=$WORK/initdb

	# Each runs in directories of its own, with what PGXS's prove_installcheck sets.
	export PG_REGRESS=$pgxs/src/test/regress/pg_regress top_builddir=$WORK PGPORT=65432
	run_tap() {
		local n=$1
		export TESTDIR=$WORK/tap/$1 TESTDATADIR=$WORK/tap/$1/tmp_check TESTLOGDIR=$WORK/tap/$1/tmp_check/log
		mkdir -p "$TESTLOGDIR"
		if ! tap_file "tap $n" "$TESTDIR/log" \
			prove -v -I "$pgxs/src/test/perl" -I "$src/test/t" "test/t/$n.pl"; then
			echo "--- the end of its log"
			tail -n 60 "$TESTLOGDIR/regress_log_$n" 2>/dev/null || true
		fi
		if grep -rE 'terminated by signal (6|11|4|7|8)|PANIC: |TRAP: ' "$TESTLOGDIR" 2>/dev/null; then
			fail "tap $n: a server crashed"
		fi
	}
	timed=" $(variable TAP_TIMED) " alone=" $(variable TAP_ALONE) "
	for n in "${names[@]}"; do
		[[ "$timed$alone" == *" $n "* ]] || start_job "$WORK/tap/$n" run_tap "$n"
	done
	finish_jobs
	[ "$jobs" -le 2 ] || jobs=2
	for n in "${names[@]}"; do
		[[ "$timed" != *" $n "* ]] || start_job "$WORK/tap/$n" run_tap "$n"
	done
	finish_jobs
	for n in "${names[@]}"; do
		[[ "$alone" != *" $n "* ]] || start_job "$WORK/tap/$n" run_tap "$n"
		finish_jobs
	done
fi
finish_jobs

# a kept workplace keeps the logs, not the clusters
find "$WORK/tap" -name pgdata -type d -prune -exec rm -rf {} + 2>/dev/null || true

finish
