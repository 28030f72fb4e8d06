# apitoken: API tokens inside PostgreSQL.
#
#   make && make install       build, and install into the server of PG_CONFIG
#   make test                  run the tests of the core: see test/README.md
#   make bench                 run the benchmarks: see test/bench/README.md

EXTENSION = apitoken
MODULE_big = apitoken
PGFILEDESC = "apitoken - API tokens verified inside the database"
DATA = apitoken--1.0.sql
# the command line
SCRIPTS_built = apitoken

# The lowest folder comes first: see src/README.md.
OBJS = \
	apitoken.o \
	src/text/http.o \
	src/text/id.o \
	src/text/token.o \
	src/text/fragment.o \
	src/text/foreign.o \
	src/text/permission.o \
	src/text/visible.o \
	src/base/guc.o \
	src/base/extension.o \
	src/base/function.o \
	src/base/encoding.o \
	src/base/request.o \
	src/base/http_error.o \
	src/base/address.o \
	src/base/pepper.o \
	src/base/digest.o \
	src/base/foreign_digest.o \
	src/base/json.o \
	src/tables/catalog.o \
	src/tables/trigger.o \
	src/tables/changes.o \
	src/tables/read.o \
	src/tables/role.o \
	src/tables/write.o \
	src/usage/shared.o \
	src/usage/limit.o \
	src/usage/flush_state.o \
	src/usage/usage.o \
	src/usage/batch.o \
	src/usage/seen.o \
	src/usage/complete.o \
	src/usage/logical.o \
	src/usage/usage_file.o \
	src/usage/flush.o \
	src/usage/primary.o \
	src/usage/send.o \
	src/usage/receive.o \
	src/usage/maintenance.o \
	src/usage/stats.o \
	src/usage/worker.o \
	src/identity/principal.o \
	src/identity/foreign.o \
	src/identity/verify.o \
	src/identity/identity.o \
	src/identity/authorize.o \
	src/identity/condition.o \
	src/identity/merge.o \
	src/identity/plan.o \
	src/identity/policy.o \
	src/hooks/redact.o \
	src/hooks/guard.o \
	src/hooks/upsert.o \
	src/hooks/status.o \
	src/manage/subtransaction.o \
	src/manage/locked.o \
	src/manage/secret.o \
	src/manage/validate.o \
	src/manage/issue.o \
	src/manage/import.o \
	src/manage/edit.o \
	src/manage/regenerate.o \
	src/manage/revoke.o \
	src/manage/leak.o \
	src/manage/erase.o \
	src/manage/notify.o \
	src/manage/event.o \
	src/manage/directory.o \
	src/manage/grant.o \
	src/manage/check.o \
	src/manage/list.o \
	src/manage/token_sql.o \
	src/api/postgrest.o \
	src/api/introspect.o \
	src/api/support.o
INCLUDED = $(wildcard $(srcdir)/src/*/*.h)

# Tests are listed by name, so that a stray file in sql/ is not run.
# test/run.sh fails if a file in sql/ is missing from these lists.
REGRESS = schema dependencies import token create verify identity read_only ownership ceiling lists permissions edit rotation events notifications directory hostile oracles maintenance pre_request introspect policies organization_policies check_setup erasure support leaks
ISOLATION = last_used list revocation regenerate rotate role directory label owner_deleted maintenance revoke_tokens two_tokens forget_user max_tokens notifications leaks
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl

# What `make test` runs of the TAP tests.  They need no program but the server.
TAP_CORE = 001_pepper 002_preload 003_pooled 004_standby 005_dump 009_readme 015_stats 020_postgrest \
	025_policy_plans 030_grants 031_known_users
# These run the examples, and the extension beside other programs.
TAP_EXAMPLES = 021_nginx 022_postgraphile 023_backends 024_pgbouncer 026_openidc 037_neighbours 039_adopting 041_bearer 046_mailer 050_console 053_leaks 055_real_systems
# the rest
TAP_MORE = $(filter-out $(TAP_CORE) $(TAP_EXAMPLES),$(notdir $(basename $(wildcard $(PROVE_TESTS)))))

# What these find does not depend on the major of the server: make test-all runs them
# on one.
TAP_ONCE = 007_bulk 051_command 060_merged_lists 070_random_sql 071_crash_loop 072_soak 073_cluster

# These look at how long something takes, and mostly wait.  They run beside each other
# only, at most two at a time.
TAP_TIMED = 011_masking 012_usage 013_worker 014_rate_limit 016_maintenance 035_idle 044_quota 049_new_network 052_standby_usage 057_subscriber_usage
# The first one changes the installed files, so no other test runs beside it.  Beside
# other tests, a machine with few cores misses the deadlines of the last.
TAP_ALONE = 040_upgrade 073_cluster

ISOLATION_OPTS = --inputdir=$(srcdir)/test/isolation

# The version is written in the control file only.
EXTVERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" apitoken.control)
PG_CPPFLAGS = -I$(srcdir)/src -I$(libpq_srcdir) -DAPITOKEN_VERSION='"$(EXTVERSION)"'
# src/usage/primary.c connects to a primary
SHLIB_LINK = $(libpq)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare

# Bitcode would let the JIT inline our functions into expressions.  None of
# them would become faster, and without bitcode the build does not need clang.
ifndef with_llvm
override with_llvm := no
endif

UNIT_TESTS = $(patsubst test/unit/%.c,test/unit/bin/%,$(wildcard test/unit/*_test.c))
UNIT_CFLAGS = -fsanitize=address,undefined -fno-sanitize-recover=all \
	-ffunction-sections -fdata-sections -Wl,--gc-sections
EXTRA_CLEAN = test/unit/bin dist

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

.DEFAULT_GOAL := all

# On a machine without PostgreSQL's development files the targets that fetch
# them (test, demo) must still work, so their absence is only an error for the
# targets that need them at once.  Debian's client packages bring PGXS without the
# headers.
POSTGRES_H := $(wildcard $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)/postgres.h)
ifneq ($(and $(wildcard $(PGXS)),$(POSTGRES_H)),)
include $(PGXS)

# the directory of the TAP tests' own module
PROVE_FLAGS += -I test/t

# The command, and beside it what PGXS has no variable for.  pg_config names the
# directories: mandir, and the one that bash-completion looks in, below datadir.
MANUALS = $(wildcard $(srcdir)/command/man/*.1)
man1dir = $(mandir)/man1
completionsdir = $(datadir)/bash-completion/completions

install: install-command
install-command:
	$(MKDIR_P) '$(DESTDIR)$(man1dir)' '$(DESTDIR)$(completionsdir)'
	$(INSTALL_DATA) $(MANUALS) '$(DESTDIR)$(man1dir)/'
	$(INSTALL_DATA) $(srcdir)/command/apitoken.bash-completion '$(DESTDIR)$(completionsdir)/apitoken'

uninstall: uninstall-command
uninstall-command:
	rm -f $(addprefix '$(DESTDIR)$(man1dir)'/, $(notdir $(MANUALS))) '$(DESTDIR)$(completionsdir)/apitoken'

# PGXS does not track dependencies on headers.
$(OBJS): $(INCLUDED)
apitoken.o: apitoken.control

# test/unit/x_test.c tests src/text/x.c alone, and prints TAP.  It defines the
# server functions that the tested code needs.  The linker drops functions of
# x.c that no test calls, so their references need no definition.  If a
# sanitizer finds a fault, it ends the program with an error.
test/unit/bin/%_test: test/unit/%_test.c src/text/%.c $(INCLUDED)
	@$(MKDIR_P) $(@D)
	$(CC) $(CFLAGS) $(UNIT_CFLAGS) $(CPPFLAGS) $(filter %.c,$^) -o $@

unit-programs: $(UNIT_TESTS)
else
all install installcheck uninstall clean unit-programs:
	@echo "PostgreSQL's development files are missing: '$(PG_CONFIG)' does not lead to pgxs.mk and postgres.h." >&2
	@echo "Run 'test/deps.sh build' as root, or install postgresql-server-dev-NN of your server's major by hand," >&2
	@echo "or name another server with PG_CONFIG=/path/to/its/pg_config." >&2
	@exit 1
endif

apitoken: command/apitoken.sh apitoken.control
	sed 's/@VERSION@/$(EXTVERSION)/' $< >$@
	chmod +x $@

# The targets below run in temporary directories only.  Their scripts read
# PG_CONFIG from the environment.
export PG_CONFIG

test:
	@test/deps.sh build test
	@test/run.sh -c plain -j 2 unit regress isolation $(TAP_CORE:%=tap:%)

test-examples:
	@test/deps.sh build test examples
	@test/run.sh -j 2 $(TAP_EXAMPLES:%=tap:%)

# what the two above leave out, on the same server
test-more:
	@test/deps.sh build test
	@test/run.sh -c session -c shared -j 2 regress isolation $(TAP_MORE:%=tap:%)

test-matrix:
	@test/deps.sh build test examples matrix
	@test/matrix.sh

test-all:
	@test/all.sh

unit:
	@test/deps.sh build test
	@test/run.sh unit

test-fresh:
	@test/fresh.sh

test-deb:
	@test/deps.sh fresh
	@test/fresh.sh bookworm+-b:deb trixie+-b:deb

test-cassert:
	@test/deps.sh build test cassert
	@test/cassert.sh

# How long these run can be said: make soak SECONDS=60.
fuzz:
	@test/deps.sh build fuzz
	@test/fuzz.sh $(or $(SECONDS),600)

fuzz-sql:
	@test/deps.sh build test
	@test/long.sh 070_random_sql $(or $(SECONDS),600)

soak:
	@test/deps.sh build test
	@APITOKEN_TRANSACTIONS=$(or $(TRANSACTIONS),100000) test/long.sh 072_soak $(or $(SECONDS),1800)

# CHECKS and ROUNDS can be said: make test-cluster CHECKS=1000 ROUNDS=1
test-cluster:
	@test/deps.sh build test cluster
	@CHECKS=$(or $(CHECKS),100000) ROUNDS=$(or $(ROUNDS),3) test/long.sh 073_cluster 1800

lint:
	@test/deps.sh build lint
	@test/lint.sh

# Packages are put into dist/.
deb:
	@test/deps.sh package
	@test/deb.sh

# PGXN's zip, of what is committed
DISTVERSION = $(shell sed -n 's/^   "version": "\(.*\)",$$/\1/p' META.json)
dist:
	@mkdir -p dist
	git archive --format=zip --prefix=apitoken-$(DISTVERSION)/ -o dist/apitoken-$(DISTVERSION).zip HEAD

demo:
	@test/deps.sh build
	@test/demo.sh

demo-console:
	@test/deps.sh build demo-console
	@test/demo-console.sh

bench:
	@test/deps.sh build bench
	@test/bench.sh

# For scripts: print the value of a variable of this file.
print-%:
	@echo $($*)

.PHONY: unit-programs install-command uninstall-command test test-examples test-more test-matrix test-all test-fresh test-cassert unit fuzz fuzz-sql soak test-cluster lint deb test-deb dist demo demo-console bench
