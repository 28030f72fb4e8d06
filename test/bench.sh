#!/bin/bash
#
# bench.sh: build the extension, start a server of its own with durable
# settings, and measure what test/bench/README.md says.  Everything is in one
# temporary directory, which is removed at the end; the results go to OUT, by
# default a new directory in bench-results.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

if [ -z "${APITOKEN_WORK:-}" ]; then
	c=$(find_pg_config) || die "no complete PostgreSQL found by ${PG_CONFIG:-pg_config}; run test/deps.sh"
	OUT=${OUT:-bench-results/$(date +%Y%m%d-%H%M%S)}
	mkdir -p "$OUT"
	OUT=$(cd "$OUT" && pwd)
	# the command as it would be typed, for the report
	APITOKEN_COMMAND='make bench'
	for v in QUICK SIZES ROUNDS SECONDS_EACH CLIENTS ONLY; do
		case ${!v:-} in
			'') ;;
			*' '*) APITOKEN_COMMAND+=" $v=\"${!v}\"" ;;
			*) APITOKEN_COMMAND+=" $v=${!v}" ;;
		esac
	done
	export APITOKEN_COMMAND
	# shellcheck disable=SC2119
	make_workplace
	# without them, that figure says so; the short form runs it only on request
	if [[ ,${ONLY:-${QUICK:-peers}}, == *[,\ ]peers[,\ ]* ]] && npm_packages test/bench/peers; then
		ln -sfn "$NPM_DIRECTORY/node_modules" "$WORK/src/test/bench/peers/node_modules"
	fi
	PG_CONFIG=$c in_workplace test/bench.sh
	# the last results there are, which may be those that OUT has now
	against=${AGAINST:-$({ find bench-results "$OUT" -name performance.csv -printf '%T@ %p\n' 2>/dev/null || true; } | sort -n | sed -n '$s/^[^ ]* //p')}
	[ -z "$against" ] || perl test/bench/compare.pl "$against" "$WORK/results/performance.csv"
	cp "$WORK"/results/* "$OUT/"
	echo "The results are in $OUT"
	exit
fi

WORK=$APITOKEN_WORK
echo "Building for $("$PG_CONFIG" --version)"
private_server "$PG_CONFIG" "$WORK/server"
build "$WORK/src" "$PRIVATE_PG_CONFIG"
mkdir "$WORK/results"
exec perl -I test/bench test/bench/run.pl "$("$PRIVATE_PG_CONFIG" --bindir)" "$WORK"
