#!/bin/bash
#
# lint.sh: static checks of the sources.  Each tool is one case.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment
cd "$ROOT"

c=$(find_pg_config) || die "no complete PostgreSQL found by ${PG_CONFIG:-pg_config}; run test/deps.sh"
include=$("$c" --includedir-server)
libpq=$("$c" --includedir)
version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" apitoken.control)
defines=(-Isrc "-DAPITOKEN_VERSION=\"$version\"")
mapfile -t sources < <(find . -path ./.git -prune -o -name '*.c' -print | sort)
mapfile -t units < <(printf '%s\n' "${sources[@]}" | grep -v '^\./test/')

tmp=$(mktemp -d "${TMPDIR:-/tmp}/apitoken-lint.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

good=0 bad=0
check() {
	local name=$1
	shift
	if "$@" >"$tmp/out" 2>&1; then
		good=$((good + 1))
		printf '  %-30s ok\n' "lint $name"
	else
		bad=$((bad + 1))
		printf '  %-30s FAILED\n' "lint $name"
		head -n 200 "$tmp/out"
	fi
}

# With optimization: only then does a compiler follow values through the code.
compile() {
	local f rc=0 compiler=$1
	shift
	[ ${#sources[@]} -gt 0 ] || { echo "there are no sources"; return 1; }
	for f in "${sources[@]}"; do
		"$compiler" -O2 -fPIC -fno-strict-aliasing -fwrapv -D_GNU_SOURCE \
			-Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror "$@" \
			"${defines[@]}" -I"$include" -I"$libpq" -c "$f" -o "$tmp/x.o" || rc=1
	done
	return $rc
}

# cppcheck sees our files only, because PostgreSQL's headers would take it minutes.
# So the macros from them that are not plain C are defined here.
run_cppcheck() {
	cppcheck -q --std=c11 --language=c --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
		--suppress=missingInclude --suppress=missingIncludeSystem --suppress=preprocessorErrorDirective \
		-DPG_VERSION_NUM=150000 -DINT64_FORMAT='"%ld"' -DUINT64_FORMAT='"%lu"' \
		'-DCppConcat(a,b)=a##b' -DPG_MODULE_MAGIC= -DPGDLLEXPORT= '-DPG_MODULE_MAGIC_EXT(...)=' \
		'-DPG_TRY(...)=do{' '-DPG_CATCH(...)=}while(0);{' '-DPG_FINALLY(...)=}while(0);{' '-DPG_END_TRY(...)=}' \
		'-DPG_FUNCTION_ARGS=FunctionCallInfo fcinfo' '-DFLEXIBLE_ARRAY_MEMBER=1' \
		'-Dpg_attribute_noreturn()=' -Dpg_noreturn= -Dpg_attribute_unused= -DPG_USED_FOR_ASSERTS_ONLY= \
		'-DStaticAssertDecl(c,m)=' '-DStaticAssertStmt(c,m)=' '-DAssert(c)=' '-Dpg_unreachable()=__builtin_unreachable()' \
		'-Dforeach(c,l)=for(c=list_head(l);c;c=lnext(l,c))' '-Dlfirst(c)=((c)->p)' '-Dlfirst_oid(c)=((c)->o)' \
		"${defines[@]}" "${units[@]}"
}

manuals() {
	local f
	for f in command/man/*.1; do groff -ww -mandoc -Tutf8 -z "$f" 2>&1 || echo "$f failed"; done >"$tmp/manuals"
	! grep . "$tmp/manuals"
}

# A script that was released is never changed, and each one is listed; the version
# to come is not released.
released() {
	local f
	sed '/^#/d' test/released.sha256 >"$tmp/released"
	[ ! -s "$tmp/released" ] || sha256sum --strict --check "$tmp/released" || return
	for f in apitoken--*.sql; do
		[[ $f == *"--$version.sql" ]] || grep -qE " \*?$f\$" "$tmp/released" || { echo "$f is not in test/released.sha256"; return 1; }
	done
}

# The server asks for the version of the extension when it looks up a function.
functions() { ! grep -rn '^ *PG_FUNCTION_INFO_V1' src apitoken.c | grep -vE '\(apitoken_read_(setup|stats)\);'; }

# OBJS names each source, and nothing else.
objects() {
	diff <(find apitoken.c src -name '*.c' | sed 's/c$/o/' | sort) \
		<(make -s "PG_CONFIG=$c" print-OBJS | tr ' ' '\n' | sort)
}

# No folder of src uses a higher one: no function, no variable and no header of it.
# hooks, manage and api are the top level, and do not use each other.
floors() {
	local dir=$tmp/objects f rc=0
	rm -rf "$dir"
	for f in "${units[@]}"; do
		mkdir -p "$dir/$(dirname "$f")"
		gcc -O0 -fPIC "${defines[@]}" -I"$include" -I"$libpq" -c "$f" -o "$dir/${f%.c}.o" || rc=1
	done
	[ "$rc" = 0 ] || return 1
	(
		cd "$dir/src" || exit
		for f in */*.o; do nm -g "$f" | sed "s|^|$f |"; done
		cd "$ROOT/src" || exit
		for f in */*.h; do echo "$f T $f"; done
		grep -o '^#include "[^"]*"' ./*/*.[ch] | sed 's|^./\(.*\):#include "\(.*\)"|\1 U \2|'
	) | awk '
		BEGIN {
			floor["text"] = 1; floor["base"] = 2; floor["tables"] = 3; floor["usage"] = 4
			floor["identity"] = 5; floor["hooks"] = floor["manage"] = floor["api"] = 6
		}
		{ split($1, path, "/"); folder = path[1] }
		!(folder in floor) { print "src/" folder " is on no floor"; bad = 1 }
		$(NF - 1) == "U" { uses[$1 " " $NF] = folder; next }
		{ home[$NF] = folder }
		END {
			for (u in uses) {
				split(u, use, " ")
				to = home[use[2]]
				if (to != "" && to != uses[u] && floor[to] >= floor[uses[u]]) {
					print "src/" use[1] " reaches up to " use[2] " in src/" to
					bad = 1
				}
			}
			exit bad
		}'
}

check gcc compile gcc
# PostgreSQL's headers, configured for gcc, use an attribute of its own
check clang compile clang -Wno-ignored-attributes
check cppcheck run_cppcheck
check shellcheck shellcheck -x test/*.sh .ci/run command/apitoken.sh command/apitoken.bash-completion
if command -v groff >/dev/null; then
	check "manual pages" manuals
else
	echo "  lint manual pages             skipped: groff is not installed"
fi
check META.json perl test/meta.pl
check released released
check functions functions
if command -v rpmspec >/dev/null; then
	check "RPM's spec file" rpmspec --parse packaging/apitoken.spec
else
	echo "  lint RPM's spec file          skipped: rpmspec is not installed"
fi
check objects objects
check floors floors

if [ -n "${APITOKEN_TOTALS:-}" ]; then
	echo "$good $bad 0" >>"$APITOKEN_TOTALS"
fi
[ "$bad" = 0 ]
