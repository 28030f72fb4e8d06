#!/bin/bash
#
# all.sh: run all tests, with one total: fuzzing for a minute a target, those of
# `make test`, the examples, the rest on this server, all but the examples and
# TAP_ONCE on 16 and 18, and the core on 17, between two majors on which everything
# runs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=test/lib.sh
. test/lib.sh

start_total
test/deps.sh build test examples matrix fuzz cluster || exit
mapfile -t core < <(make -s print-TAP_CORE | xargs printf 'tap:%s\n')
once=" $(make -s print-TAP_ONCE) "
mapfile -t more < <(for t in $(make -s print-TAP_MORE); do [[ $once == *" $t "* ]] || echo "tap:$t"; done)

# a release candidate
part "PostgreSQL 19" test/matrix.sh 19 -- -c plain -c shared -j 2 regress isolation
part "fuzzing" test/fuzz.sh 60
part "make test" make --no-print-directory test
part "the examples" make --no-print-directory test-examples
part "the rest" make --no-print-directory test-more
part "PostgreSQL 17" test/matrix.sh 17 -- -c plain -c shared -j 3 unit regress isolation "${core[@]}"
part "PostgreSQL 16 and 18" test/matrix.sh 16 18 -- -c plain -c shared -j 3 unit regress isolation "${core[@]}" "${more[@]}"

end_total
totals_good "$APITOKEN_TOTALS"
