#!/bin/bash
#
# fuzz.sh [SECONDS] [TARGET...]: run the targets of test/fuzz with libFuzzer and the
# address and undefined-behaviour sanitizers, SECONDS (600) each, two at a time.
# Each target is one case, which fails if it finds anything.  What it found is kept
# in fuzz-found/.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment
cd "$ROOT"

seconds=600
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
	seconds=$1
	shift
fi

# what is compiled with each target: the files that it does not include itself
declare -A sources=(
	[token]=src/text/token.c
	[base62]=''
	[permission]=src/text/permission.c
	[request]='src/text/token.c src/text/http.c'
	[masking]='src/text/token.c src/text/fragment.c'
	[pepper]=src/text/id.c
	[usage_file]=''
)
declare -A longest=([token]=300 [base62]=64 [permission]=300 [request]=1000 [masking]=600 [pepper]=2000 [usage_file]=8000)

for f in test/fuzz/*_fuzz.c; do
	n=$(basename "$f" _fuzz.c)
	[ -n "${sources[$n]+x}" ] || die "$n is not in the list of targets"
done
targets=("$@")
[ $# -gt 0 ] || targets=(token base62 permission request masking pepper usage_file)
for n in "${targets[@]}"; do [ -n "${sources[$n]+x}" ] || die "no such target: $n"; done

tmp=$(mktemp -d "${TMPDIR:-/tmp}/apitoken-fuzz.XXXXXX")
pids=()
stop() {
	[ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
	wait
	rm -rf "$tmp"
}
trap stop EXIT
trap 'exit 130' INT TERM HUP

# end PASSED FAILED SKIPPED
end() {
	if [ -n "${APITOKEN_TOTALS:-}" ]; then
		echo "$1 $2 $3" >>"$APITOKEN_TOTALS"
	else
		printf '%s passed, %s failed%s\n' "$1" "$2" "$([ "$3" = 0 ] || echo ", $3 skipped")"
	fi
	trap - EXIT
	stop
	[ "$2" = 0 ]
	exit
}

if ! fuzzer_works; then
	echo "  fuzzing                        skipped: clang's libFuzzer is not installed (test/deps.sh fuzz)"
	end 0 0 ${#targets[@]}
fi
c=$(find_pg_config) || die "no complete PostgreSQL found by ${PG_CONFIG:-pg_config}; run test/deps.sh"
version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" apitoken.control)

# What a target does not call is not defined: only a call of it would end the program.
compile() {
	# shellcheck disable=SC2086  # a list of words
	clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
		-fno-strict-aliasing -fwrapv -D_GNU_SOURCE "-DAPITOKEN_VERSION=\"$version\"" \
		-Wno-ignored-attributes -Wno-unused-function \
		-no-pie -Wl,-z,lazy -Wl,--unresolved-symbols=ignore-all \
		-Isrc -I"$("$c" --includedir-server)" "test/fuzz/${1}_fuzz.c" ${sources[$1]} test/fuzz/server.c \
		-L"$("$c" --pkglibdir)" -L"$("$c" --libdir)" -lpgcommon -lpgport -o "$tmp/$1/target"
}

# The seeds are in test/fuzz/corpus; those of token texts are the vectors.
seeds() {
	mkdir -p "$tmp/$1/corpus" "$tmp/$1/found"
	[ ! -d "test/fuzz/corpus/$1" ] || cp "test/fuzz/corpus/$1"/* "$tmp/$1/corpus/"
	case $1 in
		token | masking | base62)
			awk -F '\t' -v to="$tmp/$1/corpus/" -v zero="$([ "$1" != masking ] || echo x)" \
				'FNR > 1 { printf "%s%s", zero, $1 > (to "vector" ++n) }' test/vectors/token_text_valid.tsv test/vectors/token_text_malformed.tsv
			;;
	esac
}

run_target() {
	seeds "$1"
	compile "$1" || return
	cd "$tmp/$1"
	exec ./target -max_total_time="$seconds" -max_len="${longest[$1]}" -timeout=20 -detect_leaks=0 \
		-print_final_stats=1 -artifact_prefix=found/ corpus
}

start() {
	mkdir -p "$tmp/$1"
	run_target "$1" >"$tmp/$1/log" 2>&1 </dev/null &
	pids+=($!)
}

good=0 bad=0
finish() {
	local n=$1 rc=0 runs cover f
	wait "$2" || rc=$?
	runs=$(sed -nE 's/^stat::number_of_executed_units: *//p' "$tmp/$n/log")
	# a target that ends at a seed, or is not compiled, has none
	cover=$(grep -aoE ' cov: [0-9]+' "$tmp/$n/log" | tail -n 1 | tr -dc 0-9) || true
	if [ "$rc" = 0 ] && [ "${runs:-0}" -gt 0 ]; then
		good=$((good + 1))
		printf '  %-30s %9d runs, coverage %4d, nothing found\n' "fuzz $n" "$runs" "$cover"
		return
	fi
	bad=$((bad + 1))
	printf '  %-30s %9d runs, coverage %4d, FAILED\n' "fuzz $n" "${runs:-0}" "${cover:-0}"
	grep -avE '^#[0-9]+|^INFO:' "$tmp/$n/log" | tail -n 60 | cut -c 1-2000
	for f in "$tmp/$n"/found/*; do
		[ -f "$f" ] || continue
		mkdir -p fuzz-found
		cp "$f" "fuzz-found/$n-${f##*/}"
		echo "--- the input is fuzz-found/$n-${f##*/}"
	done
}

# two at a time, in this order
jobs=2
running=() running_pids=()
for n in "${targets[@]}"; do
	if [ ${#running[@]} = "$jobs" ]; then
		finish "${running[0]}" "${running_pids[0]}"
		running=("${running[@]:1}") running_pids=("${running_pids[@]:1}")
	fi
	start "$n"
	running+=("$n") running_pids+=("${pids[-1]}")
done
for i in "${!running[@]}"; do finish "${running[i]}" "${running_pids[i]}"; done
pids=()
end "$good" "$bad" 0
