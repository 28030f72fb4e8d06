#!/bin/bash
#
# deb.sh: build Debian packages, one for each major whose development files are
# installed, by Debian's own tools.  They are put into dist/.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

work=$(mktemp -d "${TMPDIR:-/tmp}/apitoken-deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
copy_project "$work/apitoken"
cd "$work/apitoken"

export PG_SUPPORTED_VERSIONS=installed
pg_buildext updatecontrol
dpkg-buildpackage -b -us -uc >"$work/log" 2>&1 || { tail -n 100 "$work/log"; die "the packages could not be built"; }
! grep -E 'warning: .*\[-W' "$work/log" || die "the compiler warns"
lintian --allow-root --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "$work"/*.changes
mkdir -p "$ROOT/dist"
cp "$work"/*.deb "$ROOT/dist/"
cd "$work"
ls -- *.deb
