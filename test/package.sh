#!/bin/bash
#
# package.sh DIR: try the Debian packages of DIR on this machine, which is thrown
# away afterwards: fresh.sh calls it on a machine with a server and no development
# files.
#
# Installed, used in a cluster with the distribution's own settings, upgraded, tested
# by `make installcheck` and removed: nothing is left.
set -euo pipefail
# shellcheck source=test/lib.sh
. "$(dirname "$0")/lib.sh"
clean_environment
[ -n "${APITOKEN_THROWN_AWAY:-}" ] || die "this installs packages and starts servers; test/fresh.sh calls it on a machine of its own"

debs=$(cd "$1" && pwd)
v=$(ls /usr/lib/postgresql)
package=postgresql-$v-apitoken
export PG_CONFIG=/usr/lib/postgresql/$v/bin/pg_config
sql() { (cd / && su postgres -c "psql -XAtq -v ON_ERROR_STOP=1 -d ${2:-app}" <<<"$1"); }
apt() { DEBIAN_FRONTEND=noninteractive apt-get -y -qq "$@" >/dev/null; }
# what a package could leave: files, and what dpkg knows
files() {
	find / -xdev \( -path /proc -o -path /dev -o -path /tmp -o -path /root -o -path /var/lib/postgresql -o -path /var/log -o -path /var/cache -o -path /run \) -prune \
		-o -path /var/lib/dpkg/info -prune -o -path /var/lib/apt -prune -o -print | sort
	dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n'
	find /var/lib/dpkg/info -name '*apitoken*'
}
expect() { [ "$2" = "$3" ] || die "$1: expected '$2', found '$3'"; echo "$1: $3"; }

# the same package as an older version
dpkg-deb -R "$debs/${package}"_*.deb /tmp/older
sed -i 's/^Version: .*/Version: 0.9.9-1/' /tmp/older/DEBIAN/control
dpkg-deb -b /tmp/older /tmp/older.deb >/dev/null

files >/tmp/before
apt install /tmp/older.deb
pg_ctlcluster "$v" main start
sql 'CREATE DATABASE app' postgres
sql 'CREATE EXTENSION apitoken'
token=$(sql "SELECT token FROM apitoken.create_token('first', user_id => 'me')")
expect 'the older package' valid "$(sql "SELECT verdict FROM apitoken.verify('$token')")"
older=$(dpkg-query -W -f '${Version}' "$package")
apt install "$debs/${package}"_*.deb
dpkg --compare-versions "$older" lt "$(dpkg-query -W -f '${Version}' "$package")" || die "$older was not upgraded"
expect 'after the upgrade' valid "$(sql "ALTER EXTENSION apitoken UPDATE; SELECT verdict FROM apitoken.verify('$token')" 2>/dev/null)"

# the command is a package of its own, for all majors
apt install "$debs"/apitoken_*.deb
as_postgres() { (cd / && su postgres -c "env PGDATABASE=app $1"); }
expect 'the command, by its package' "$(sql "SELECT id FROM apitoken.tokens WHERE label = 'first'")" "$(as_postgres 'apitoken list --label first --ids')"
expect "the command, by the server's package" valid "$(as_postgres "/usr/lib/postgresql/$v/bin/apitoken verify" <<<"$token" | sed -n 's/^verdict *| //p')"
expect 'its manual and its completion' 2 "$(dpkg-query -L apitoken | grep -cE '^/usr/share/(man/man1/apitoken-verify.1.gz|bash-completion/completions/apitoken)$')"

sql 'DROP EXTENSION apitoken'
apt purge "$package" apitoken
files >/tmp/after
diff /tmp/before /tmp/after || die 'purging the package leaves something'
echo 'purged without a trace'

# installcheck needs the development files
apt install "$debs/${package}"_*.deb
env -u PG_CONFIG test/deps.sh build test
copy_project /tmp/apitoken
chown -R postgres: /tmp/apitoken
for target in install uninstall; do
	su postgres -c "make -s -C /tmp/apitoken PG_CONFIG=$PG_CONFIG DESTDIR=/tmp/apitoken/installed $target" >/tmp/log 2>&1 || { cat /tmp/log; die "make $target failed"; }
	find /tmp/apitoken/installed ! -type d >/tmp/$target
done
expect 'installed by make install' 16 "$(wc -l </tmp/install)"
expect 'left by make uninstall' '' "$(cat /tmp/uninstall)"
expect 'prepared transactions' 0 "$(sql 'SHOW max_prepared_transactions')"
expect 'preloaded' '' "$(sql 'SHOW shared_preload_libraries')"
su postgres -c "make -s -C /tmp/apitoken PG_CONFIG=$PG_CONFIG installcheck PROVE_TESTS='test/t/001_pepper.pl test/t/002_preload.pl test/t/040_upgrade.pl'" >/tmp/log 2>&1 ||
	{ cat /tmp/apitoken/regression.diffs /tmp/apitoken/output_iso/regression.diffs 2>/dev/null; tail -n 150 /tmp/log; die 'make installcheck failed'; }
grep -E '^(test |ok |All |# All |Files=|Result|.* skipped: )' /tmp/log
expect 'databases that it leaves' "$(printf 'contrib_regression\nisolation_regression')" "$(sql "SELECT datname FROM pg_database WHERE datname ~ 'regression' ORDER BY 1")"
expect 'roles that it leaves' '' "$(sql "SELECT rolname FROM pg_roles WHERE rolname ~ 'regress'")"
pg_ctlcluster "$v" main stop
