#!/bin/bash
#
# long.sh TEST SECONDS: run one of the TAP tests that can run for long, for that long,
# and print its report.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
export APITOKEN_SECONDS=$2
[[ $2 =~ ^[0-9]+$ ]] || { echo "usage: $0 TEST SECONDS" >&2; exit 2; }
export APITOKEN_TIMEOUT=$((2 * $2 + 1800))

work=$(mktemp -d "${TMPDIR:-/tmp}/apitoken.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
rc=0
test/run.sh -w "$work/w" -c plain "tap:$name" || rc=$?
cat "$work"/w/*/tap/"$name"/tmp_check/log/report.txt 2>/dev/null || true
if [ "$rc" != 0 ]; then
	kept=$(mktemp -d "${TMPDIR:-/tmp}/apitoken-$name.XXXXXX")
	cp -r "$work"/w/*/tap/"$name"/tmp_check/log "$kept/" && echo "The logs are in $kept"
fi
exit "$rc"
