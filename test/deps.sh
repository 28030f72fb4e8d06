#!/bin/bash
#
# deps.sh [KIND...]: make sure that everything the tests need is installed (build
# and test, if no kind is named).
#
#   build    the distribution's PostgreSQL (or the installed one, if there is
#            one) with its development files, and a C compiler
#   test     perl and its IPC::Run
#   examples what the examples run with: drivers, node and npm, curl, and pgbouncer,
#            nginx, Caddy, HAProxy, and Apache with mod_auth_openidc (programs, not services),
#            Chromium for the browser tests; Django with djangorestframework-api-key; pgaudit and pg_repack, if Debian has them for the server
#   cluster  what test-cluster runs with: Patroni, etcd, HAProxy, PgBouncer (programs, not services), DBD::Pg, ip
#   demo-console
#            node and npm
#   bench    gnuplot, for the plot; pgbouncer, taskset, node and npm, Django REST
#            framework, which some figures need
#   lint     clang, cppcheck, shellcheck
#   fuzz     clang with libFuzzer
#   matrix   patchelf, to unpack servers of other Debian releases
#   package  Debian's tools to build packages, with the development files of all majors
#            that this release has; lintian
#   fresh    debootstrap, to make fresh Debian machines
#   cassert  the libraries that PostgreSQL is built with
#
# If nothing is missing, nothing is done and the network is not used.  When we are
# root, missing packages are installed with apt; otherwise they are named.  No
# service is started, neither now nor at the next boot, no cluster is created, and
# no server that is installed is upgraded, because it may be in use.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

packages=()
need() { packages+=("$@"); }
# a user's PATH often lacks the directories of daemons
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }
perl_has() { PATH=/usr/bin:$PATH perl "-M$1" -e 1 >/dev/null 2>&1; }

# need_modules MAJOR: other extensions that the tests run beside.
need_modules() {
	local m
	for m in pgaudit repack; do
		[ -f "/usr/share/postgresql/$1/extension/${m/#repack/pg_repack}.control" ] ||
			! apt-cache show "postgresql-$1-$m" >/dev/null 2>&1 || need "postgresql-$1-$m"
	done
}

server='' modules=''
[ $# -gt 0 ] || set -- build test
for kind in "$@"; do
	case $kind in
		build)
			have gcc || have cc || need gcc
			have make || need make
			echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1 || need libc6-dev
			find_pg_config >/dev/null || server=missing
			;;
		test)
			have prove || need perl
			perl_has IPC::Run || need libipc-run-perl
			;;
		examples)
			perl_has DBD::Pg || need libdbd-pg-perl
			# Debian's python, because it finds Debian's packages
			/usr/bin/python3 -c 'import psycopg' >/dev/null 2>&1 || need python3-psycopg
			/usr/bin/python3 -c 'import psycopg_pool' >/dev/null 2>&1 || need python3-psycopg-pool
			/usr/bin/python3 -c 'import aiosmtpd' >/dev/null 2>&1 || need python3-aiosmtpd
			{ have node && have npm; } || need npm
			# a system whose keys are imported
			/usr/bin/python3 -c 'import rest_framework_api_key' >/dev/null 2>&1 || need python3-djangorestframework-api-key
			/usr/bin/python3 -c 'import psycopg2' >/dev/null 2>&1 || need python3-psycopg2
			have curl || need curl
			have pgbouncer || need pgbouncer
			have nginx || need nginx-light
			have caddy || need caddy
			have haproxy || need haproxy
			have apache2 || need apache2-bin
			{ have chromium-headless-shell || have chromium; } || need chromium-headless-shell
			have openssl || need openssl
			[ -f /usr/lib/apache2/modules/mod_auth_openidc.so ] || need libapache2-mod-auth-openidc
			modules=1
			;;
		cluster)
			have patroni || need patroni
			have etcd || need etcd-server
			have haproxy || need haproxy
			have pgbouncer || need pgbouncer
			perl_has DBD::Pg || need libdbd-pg-perl
			have ip || need iproute2
			;;
		demo-console)
			{ have node && have npm; } || need npm
			;;
		bench)
			# the version without a display: our plots are files
			have gnuplot || need gnuplot-nox
			have pgbouncer || need pgbouncer
			{ have node && have npm; } || need npm
			/usr/bin/python3 -c 'import rest_framework_api_key' >/dev/null 2>&1 || need python3-djangorestframework-api-key
			/usr/bin/python3 -c 'import psycopg2' >/dev/null 2>&1 || need python3-psycopg2
			;;
		lint)
			for p in clang cppcheck shellcheck; do have $p || need $p; done
			;;
		fuzz)
			if ! fuzzer_works; then
				# the library has the version of clang: that of this release, or that on the PATH
				v=$(clang -dumpversion 2>/dev/null | cut -d. -f1 || true)
				if [ -z "$v" ]; then
					need clang libclang-rt-dev
				elif apt-cache show "libclang-rt-$v-dev" >/dev/null 2>&1; then
					need "libclang-rt-$v-dev"
				else
					need libclang-rt-dev
				fi
			fi
			;;
		matrix)
			have patchelf || need patchelf
			;;
		package)
			dpkg-query -W -f '${db:Status-Status}' build-essential 2>/dev/null | grep -qx installed || need build-essential
			have dh || need debhelper
			dpkg-query -W -f '${db:Status-Status}' postgresql-server-dev-all 2>/dev/null | grep -qx installed ||
				need postgresql-server-dev-all
			have lintian || need lintian
			;;
		fresh)
			have debootstrap || need debootstrap
			;;
		cassert)
			echo '#include <zlib.h>' | cc -E - >/dev/null 2>&1 || need zlib1g-dev
			echo '#include <openssl/ssl.h>' | cc -E - >/dev/null 2>&1 || need libssl-dev
			have bzip2 || need bzip2
			;;
		*) die "unknown: $kind" ;;
	esac
done

if [ -n "$modules" ] && [ -z "$server" ]; then
	c=$(find_pg_config)
	# servers of other origins have no packages
	[[ $c != /usr/lib/postgresql/* ]] || need_modules "$(pg_major "$c")"
fi

if [ -n "$server" ] && [ "${PG_CONFIG:-pg_config}" != pg_config ]; then
	die "$PG_CONFIG names no PostgreSQL that is complete (server, client programs, contrib, development files)"
fi

# When a server is installed, Debian creates and starts a database cluster, and it
# starts services.  We need none of them, so tell Debian not to, and restore its
# configuration afterwards: also after a run that was killed.  The lock is there
# because two runs would restore each other's changes.
conf=/etc/postgresql-common/createcluster.conf
template=/usr/share/postgresql-common/createcluster.conf
policy=/usr/sbin/policy-rc.d
mark='apitoken: no service starts, and no cluster is made, while test/deps.sh installs packages'
log=''
# save_file FILE: move the user's file away; restore_file FILE: remove ours, and
# return the user's.  It is false if ours was there and the user's was not.
save_file() { [ ! -e "$1" ] || mv "$1" "$1.apitoken-saved"; }
restore_file() {
	local ours=''
	if grep -qsF "$mark" "$1"; then
		rm -f "$1"
		ours=1
	fi
	if [ -e "$1.apitoken-saved" ]; then mv "$1.apitoken-saved" "$1"; else [ -z "$ours" ]; fi
}
restore() {
	restore_file $policy || true
	# it came with the packages
	if ! restore_file $conf; then
		if [ -f $conf.ucf-dist ]; then mv $conf.ucf-dist $conf; elif [ -f $template ]; then cp $template $conf; fi
	fi
	[ -z "$log" ] || rm -f "$log"
}

if [ "$(id -u)" = 0 ]; then
	exec 7>/run/apitoken-deps.lock
	flock 7
	trap restore EXIT
	trap 'exit 130' INT TERM HUP
	restore
fi

if [ ${#packages[@]} = 0 ] && [ -z "$server" ]; then
	exit 0
fi
# The distribution's server, or what the installed one lacks.  Packages that are
# installed are not named: apt would upgrade them.
name_server() {
	local major
	major=$({ find /usr/lib/postgresql/*/bin/postgres 2>/dev/null || true; } | cut -d/ -f5 | sort -n | tail -n 1)
	if [ -z "$major" ] || [ "$major" -lt 15 ]; then
		major=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p')
	fi
	if [ -z "$major" ] && [ "$(id -u)" != 0 ]; then
		# apt has no lists yet
		need postgresql postgresql-server-dev-all
		return
	fi
	[ "${major:-0}" -ge 15 ] || die "this system has no PostgreSQL 15 or later (found: ${major:-none})"
	[ -x "/usr/lib/postgresql/$major/bin/postgres" ] || need "postgresql-$major"
	[ -f "/usr/include/postgresql/$major/server/postgres.h" ] || need "postgresql-server-dev-$major"
	[ ${#packages[@]} -gt 0 ] || die "PostgreSQL $major is installed, but not complete"
	[ -z "$modules" ] || need_modules "$major"
}

if ! have apt-get; then
	echo "These are missing (by Debian's names):" "${packages[@]}" \
		"${server:+PostgreSQL 15 or later, with client programs, contrib and development files}" >&2
	exit 1
fi
# apt also upgrades the packages that were built with those to install: an installed
# server, when its development files are installed.  And it may remove packages.
careful=(--no-remove -o APT::Get::Upgrade-By-Source-Package=false)
if [ "$(id -u)" != 0 ]; then
	[ -z "$server" ] || name_server
	cat >&2 <<-EOF
		Packages are missing.  Root can install them:

		    apt-get install ${careful[*]} ${packages[*]}
	EOF
	exit 1
fi

apt-get update -qq || echo "apt-get update failed; going on with the lists there are" >&2
[ -z "$server" ] || name_server

upgraded=$(apt-get install -s "${careful[@]}" --no-install-recommends "${packages[@]}" | sed -nE 's/^Inst (postgresql-[0-9]+) \[.*/\1/p')
[ -z "$upgraded" ] ||
	die "apt would upgrade ${upgraded//$'\n'/ }, which may be in use; upgrade it, or install ${packages[*]} by hand"

save_file $policy
printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" >$policy
chmod 755 $policy
if [ -n "$server" ]; then
	mkdir -p ${conf%/*}
	save_file $conf
	{ echo "# $mark"; sed '/^ *create_main_cluster/d' $conf.apitoken-saved 2>/dev/null || true; echo 'create_main_cluster = false'; } >$conf
fi
# The links by which services start, without the numbers, which other services can change.
started_at_boot() {
	find /etc/rc[2-5S].d /etc/systemd/system/*.wants -type l \( -name 'S[0-9][0-9]*' -o -name '*.service' \) 2>/dev/null |
		sed -E 's,/S[0-9]{2}([^/]*)$,/\1,' | sort || true
}
started=$(started_at_boot)
openidc=/etc/apache2/mods-enabled/auth_openidc.load
enabled=$([ ! -e $openidc ] || echo 1)

echo "Installing ${packages[*]}"
log=$(mktemp)
if ! DEBIAN_FRONTEND=noninteractive apt-get install -y "${careful[@]}" --no-install-recommends "${packages[@]}" >"$log" 2>&1 7>&-; then
	cat "$log"
	die "the packages could not be installed"
fi

# The next boot must not start the new services either.  PostgreSQL's own stays: it
# starts clusters, and none was created.
comm -13 <(echo "$started") <(started_at_boot) | while read -r link; do
	name=${link##*/}
	case $link in
		*/postgresql | */postgresql.service) ;;
		/etc/rcS.d/*) update-rc.d "$name" disable S ;;
		/etc/rc*) update-rc.d "$name" disable ;;
		# it has no init script
		*) DPKG_MAINTSCRIPT_PACKAGE=$(dpkg-query -S "*/systemd/system/$name" | sed 's/:.*//;q') deb-systemd-helper disable "$name" ;;
	esac >/dev/null 2>&1 || true
done
# where the package apache2 is installed, the module would be loaded at its next start
[ -n "$enabled" ] || [ ! -e $openidc ] || a2dismod auth_openidc >/dev/null 2>&1 || true
