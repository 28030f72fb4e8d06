#!/bin/bash
#
# fresh.sh [MACHINE:CASE]...: try the README's commands on fresh Debian machines:
# chroots made by debootstrap, from the mirror that apt is configured with.  Without
# arguments, everything; "ci" is the part that .ci/run runs.  Needs root.
#
# A machine is SUITE-KIND.  A suite with "+" has security updates as well.
#
#   a   Debian's base system, git and make
#   b   a, and postgresql: a server with a cluster, but no development files
#   c   a, and libpq-dev, but no server
#   d   a, and everything that test/deps.sh installs
#
# Each case has a copy of the machine, so it changes nothing for the next one.  The
# machines stay in the cache: a second run is faster.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment

all=(
	bookworm-a:demo bookworm-b:demo bookworm+-a:demo bookworm+-b:demo trixie+-a:demo trixie+-b:demo
	bookworm-b:test bookworm+-a:test trixie+-a:test trixie+-b:test
	bookworm-c:demo trixie+-c:demo trixie+-d:demo trixie+-d:examples
	bookworm-a:user bookworm+-b:user trixie+-a:user trixie+-c:user
	bookworm+-a:readme trixie+-a:readme
	bookworm-d:places trixie+-d:places
	bookworm-b:untouched trixie+-b:untouched
	bookworm+-b:deb trixie+-b:deb
)
# readme begins with make demo
ci=(bookworm+-a:demo bookworm-b:demo trixie+-a:readme trixie+-b:demo trixie+-b:test bookworm-b:untouched)
case "$*" in
	'') cases=("${all[@]}") ;;
	ci) cases=("${ci[@]}") ;;
	*) cases=("$@") ;;
esac

[ "$(id -u)" = 0 ] || die "only root can make such machines"
if ! unshare --mount --pid --fork true 2>/dev/null; then
	echo "Fresh machines skipped: this machine does not let root mount (CAP_SYS_ADMIN)"
	[ -z "${APITOKEN_TOTALS:-}" ] || echo "0 0 ${#cases[@]}" >>"$APITOKEN_TOTALS"
	exit 0
fi
cache=$(cache_directory)/fresh
mkdir -p "$cache"
machine=$(mktemp -d "${TMPDIR:-/tmp}/apitoken-fresh.XXXXXX")
# everything that is mounted below it is mounted for the commands inside only
trap 'rm -rf --one-file-system "$machine"' EXIT
trap 'exit 130' INT TERM HUP

# inside ROOT COMMAND...: run it in there, with an environment that has no locale.
# Its processes end with it.
inside() {
	local root=$1
	shift
	# shellcheck disable=SC2016  # for the inner shell
	unshare --mount --pid --fork --kill-child bash -c '
		root=$1 archives=$2
		shift 2
		# a proxy between this network and the npm registry may have a certificate of its own
		if [ -n "${NODE_EXTRA_CA_CERTS:-}" ]; then
			cp "$NODE_EXTRA_CA_CERTS" "$root/etc/ssl/extra-ca.crt" && set -- env NODE_EXTRA_CA_CERTS=/etc/ssl/extra-ca.crt "$@" || exit
		fi
		mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" &&
			mount --bind "$archives" "$root/var/cache/apt/archives" || exit
		exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"' \
		inside "$root" "$cache/archives" "$@"
}
as_root() { inside "$machine/root" bash -c "cd; $1"; }
as_user() { inside "$machine/root" su -l somebody -c "$1"; }
install_there() { inside "$1" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:2}" >/dev/null; }

# base SUITE: print the directory of a machine of kind a, after making it if needed.
base() {
	local root=$cache/$1-a suite=${1%+} mirror security
	[ -f "$root.complete" ] || {
		mirror=$(debian_mirror) && rm -rf --one-file-system "$root" && mkdir -p "$cache/archives/partial" &&
			debootstrap --variant=minbase --include=ca-certificates,debian-archive-keyring "$suite" "$root" "$mirror" >"$root.log" 2>&1 || return 1
		cp /etc/resolv.conf "$root/etc/"
		rm -f "$root/etc/apt/sources.list.d"/*
		echo "deb $mirror $suite main" >"$root/etc/apt/sources.list"
		# shellcheck disable=SC2016  # apt's own variable
		security=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m 1 security || true)
		[ "$suite" = "$1" ] || echo "deb ${security:-$mirror-security} $suite-security main" >>"$root/etc/apt/sources.list"
		echo 'Acquire { Check-Valid-Until "false"; Check-Date "false"; Retries "3"; };' >"$root/etc/apt/apt.conf.d/99test"
		# packages that one machine has fetched serve the others
		echo 'Binary::apt-get::APT::Keep-Downloaded-Packages "true"; APT::Keep-Downloaded-Packages "true";' >>"$root/etc/apt/apt.conf.d/99test"
		echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/test"
		{ inside "$root" apt-get update -qq && inside "$root" apt-get upgrade -qq -y && install_there "$root" git make; } >>"$root.log" 2>&1 || return 1
		touch "$root.complete"
	}
	echo "$root"
}

# make_machine SUITE KIND
make_machine() {
	local root=$machine/root from
	rm -rf --one-file-system "$root"
	from=$(base "$1") || return 1
	cp -a "$from" "$root" || return 1
	case $2 in
		a) ;;
		b)
			# a real one's cluster would run; here, nobody shares a port with it
			printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
			chmod 755 "$root/usr/sbin/policy-rc.d"
			install_there "$root" postgresql || return 1
			rm "$root/usr/sbin/policy-rc.d"
			;;
		c) install_there "$root" libpq-dev ;;
		d)
			copy_project "$root/root/first"
			as_root 'cd first && test/deps.sh build test examples && cd .. && rm -rf first' >/dev/null
			;;
		*) die "no such machine: $1-$2" ;;
	esac
}

# ---- cases: each prints what went wrong, and fails then ------------------------

clone() { copy_project "$machine/root$1" && inside "$machine/root" chown -R "${2:-root}:" "$1"; }

case_demo() { clone /root/apitoken && as_root 'cd apitoken && make demo'; }
case_test() { clone /root/apitoken && as_root 'cd apitoken && make test'; }
case_examples() { clone /root/apitoken && as_root 'cd apitoken && make test-examples'; }

# README.md's own commands after make demo, which creates no cluster.
# shellcheck disable=SC2016  # for the inner shell
case_readme() {
	clone /root/apitoken && as_root '
		echo "APT::Get::Assume-Yes \"true\";" >/etc/apt/apt.conf.d/99yes
		export DEBIAN_FRONTEND=noninteractive
		apt-get install -qq --no-install-recommends sudo >/dev/null && cd apitoken && make demo >/dev/null || exit
		release=$(sed -n "s/^VERSION_ID=\"\(.*\)\"/\1/p" /etc/os-release)
		blocks() { sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/p" | grep -v "^\`\`\`"; }
		commands=$(sed -n "/^## Installation/,/^## A token/p" README.md | blocks sh | grep -E "# Debian $release\$|^[^#]*\$|PG_CONFIG")
		step() { bash -ec "$(grep -E "$1" <<<"$commands")"; }
		step apt-get >/dev/null && step "^make|make install" >/dev/null && ! step createdb && step createcluster && step createdb || exit
		blocks sql <README.md | sudo -u postgres psql -X app >out 2>&1
		cat out
		grep -q " t  *| valid  *| first | user" out && grep -q "^ Anvils" out && [ "$(grep -c "^ERROR" out)" = 1 ]'
}

# A user who may install nothing gets a list that can be pasted behind apt-get install.
case_user() {
	local named
	as_root 'useradd -m -s /bin/bash somebody' && clone /home/somebody/apitoken somebody || return 1
	if named=$(as_user 'cd apitoken && make demo 2>&1'); then
		echo "nothing is missing?"
		return 1
	fi
	echo "$named"
	named=$(sed -n 's/^  *apt-get install //p' <<<"$named")
	[ -n "$named" ] || return 1
	as_root "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $named >/dev/null" &&
		as_user 'cd apitoken && make demo' || return 1
	named=$(as_user 'cd apitoken && make test 2>&1' | sed -n 's/^  *apt-get install //p')
	[ -z "$named" ] || as_root "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $named >/dev/null" || return 1
	as_user 'cd apitoken && make test'
}

# Locales, names with spaces, closed directories.
case_places() {
	local out
	as_root 'useradd -m -s /bin/bash somebody && chmod 700 /home/somebody' &&
		clone '/home/somebody/my own clones/apitoken' somebody && clone '/root/my own clones/apitoken' || return 1
	for locale in '' C C.UTF-8 POSIX de_DE.UTF-8 xx_XX; do
		as_user "export LANG=$locale; cd 'my own clones/apitoken' && make demo >out 2>&1 || { cat out; exit 1; }" || return 1
	done
	as_root "export LC_ALL=xx_XX; cd 'my own clones/apitoken' && make demo" || return 1
	as_user "cd 'my own clones/apitoken' && test/run.sh -c plain unit regress:verify isolation:label tap:015_stats" || return 1
	# the message names the cause
	if out=$(as_root "mount -t tmpfs -o noexec,mode=1777 tmpfs /tmp; cd 'my own clones/apitoken' && make demo 2>&1"); then
		echo "no error although nothing in /tmp can be executed"
		return 1
	fi
	echo "$out"
	grep -q noexec <<<"$out" && as_root "mount -t tmpfs -o noexec,mode=1777 tmpfs /tmp; cd 'my own clones/apitoken' && TMPDIR=/var/tmp make demo"
}

# Installing what the tests need touches no server of the user's: not its programs,
# not its clusters, not the configuration of either.
# shellcheck disable=SC2016  # for the inner shell
case_untouched() {
	clone /root/apitoken && as_root '
		v=$(ls /usr/lib/postgresql)
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends apache2 >/dev/null || exit 1
		# an older package, with a cluster that runs
		sed -i "/^Package: postgresql-$v\$/,/^\$/s/^Version: .*/Version: $v.0-0/" /var/lib/dpkg/status
		sed -i "s/^port = .*/port = 61234/; \$a listen_addresses = '\'\''" /etc/postgresql/$v/main/postgresql.conf
		pg_ctlcluster $v main start || exit 1
		echo "# the user'\''s own" >>/etc/postgresql-common/createcluster.conf
		printf "#!/bin/sh\nexit 0\n" >/usr/sbin/policy-rc.d
		chmod 755 /usr/sbin/policy-rc.d
		see() {
			dpkg-query -W -f "\${Package} \${Version}\n" "postgresql-$v"
			sha256sum /usr/lib/postgresql/$v/bin/postgres /etc/postgresql-common/createcluster.conf /usr/sbin/policy-rc.d \
				/etc/postgresql/$v/main/*.conf
			ls /etc/postgresql/* /var/lib/postgresql/* /etc/rc[2-5S].d/S* /etc/systemd/system/*.wants /etc/apache2/mods-enabled
			pg_lsclusters
			head -n 3 /var/lib/postgresql/$v/main/postmaster.pid
			cat /proc/[0-9]*/comm | grep -E "nginx|apache|pgbouncer|postgres" | sort | uniq -c
		}
		see >before
		cd apitoken
		test/deps.sh build test examples || exit 1
		# as a run leaves them that is killed
		for f in /usr/sbin/policy-rc.d /etc/postgresql-common/createcluster.conf; do
			mv $f $f.apitoken-saved
			sed -n "s/^mark=.\(.*\).\$/# \1/p" test/deps.sh >$f
			[ -s $f ] || exit 1
		done
		test/deps.sh build || exit 1
		cd ..
		see >after
		diff before after && [ -f /usr/include/postgresql/$v/server/postgres.h ] && cd apitoken && make demo >/dev/null'
}

# The packages are built on one machine, and tried on one that has never built any.
case_deb() {
	clone /root/apitoken && as_root 'cd apitoken && test/deps.sh package && test/deb.sh' || return 1
	rm -rf "$machine/debs"
	mv "$machine/root/root/apitoken/dist" "$machine/debs" && make_machine "${name%-*}" "${name##*-}" &&
		clone /root/apitoken && mv "$machine/debs" "$machine/root/root/" || return 1
	as_root 'cd apitoken && APITOKEN_THROWN_AWAY=1 test/package.sh /root/debs'
}

passed=0 failed=0
for c in "${cases[@]}"; do
	name=${c%%:*} what=${c#*:} start=$SECONDS log=$machine/log
	declare -F "case_$what" >/dev/null || die "no such case: $what"
	if make_machine "${name%-*}" "${name##*-}" >"$log" 2>&1 && "case_$what" >"$log" 2>&1; then
		passed=$((passed + 1))
		printf '  %-30s ok   %s s%s\n' "$c" $((SECONDS - start)) "$(sed -n 's/^\([0-9]* passed, .*\)/   \1/p' "$log")"
	else
		failed=$((failed + 1))
		printf '  %-30s FAILED\n' "$c"
		tail -n 100 "$log"
	fi
done

if [ -n "${APITOKEN_TOTALS:-}" ]; then
	echo "$passed $failed 0" >>"$APITOKEN_TOTALS"
	echo "Fresh machines: $passed passed, $failed failed"
else
	echo "$passed passed, $failed failed"
fi
[ "$failed" = 0 ]
