# The commands for contributors. POSIX make; GNU make and bmake both run it.
#
#   make demo     a real smtpd, good and bad clients, and the results of their mail
#   make test     every test, and the branch coverage required of the core; TESTS=PATHS: some
#   make unit     the tests within one process, with a part of their examples, in a minute
#   make unit-all     those and the tests that start processes, but no servers
#   make unit-debian  tests with the libraries of this release of Debian, in place of the newest
#   make clock    the tests of the demo and on Rspamd, 400 days from now and 400 days ago
#   make check    lint, format, types, import directions
#   make reference    write docs/reference.md and the tables of docs/protocol.md from the code
#   make api-check      incompatible changes to the interface of the last release
#   make release-check  agreement of version, dates and interface of a release
#   make bench    this project compared with established filters, as ratios
#   make storm    1,000 failures of each supervised program under load, some hours; STORM_ARGS: fewer
#   make hops     the number of functions that a request and a body pass through; HOPS_ARGS=--calls: all
#   make fuzz     the protocol under a fuzzer, for FUZZ_SECONDS
#   make dist     the wheel and the sdist, in dist/
#   make deb      the Debian package, built with Debian's own tools, in dist/
#   make pkg      a FreeBSD package, and the ports for FreeBSD and OpenBSD, in dist/
#   make clean    remove the files made by these targets
#
# Each target makes VENV if it is missing and, as root on Debian, installs the system packages that it
# uses. PYTHON is the interpreter for a new VENV.
.POSIX:
.SUFFIXES:

VENV = .venv
PYTHON =
# More than cores, because many tests wait. The tests of a module share a server and so a worker.
WORKERS = 4
# Without servers, whose processes take the cores meanwhile, more of them wait at a time.
UNIT_WORKERS = 6
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS)
PYTEST_ARGS =
TESTS =
REPORT = build/tests.xml
UNIT_REPORT = build/unit.xml
# The tests without servers, with a part of their examples.
WITHOUT_SERVERS = not e2e and not packaging and not allocations
UNIT = tests/fetch-data $(BIN)/python || true; $(BYTECODE); mkdir -p build; \
	SMTPD_FILTERS_TESTS=quick $(PYTEST) --numprocesses $(UNIT_WORKERS) --quiet --dist worksteal \
	--junit-xml=$(UNIT_REPORT)
# The tests of the modules that import libraries of others, with this release of Debian's in LIBRARIES.
LIBRARIES = build/libraries
LIBRARY_REPORTS = build/libraries
LIBRARY_TESTS = tests/authentication tests/filters/auth tests/lookups/dns tests/lookups/http tests/web \
	tests/tables/remote/test_redis_answers.py
LIBRARY_SERVER_TESTS = tests/stores/test_redis.py tests/stores/test_redis_cluster.py tests/stores/test_redis_pool.py \
	tests/e2e/test_redis_tables.py
# The tests of servers that read the clock, and its offsets.
CLOCKS = +400d -400d
CLOCK_TESTS = tests/demo/test_demo.py tests/e2e/test_rspamd.py tests/e2e/test_rspamd_limits.py \
	tests/e2e/test_rspamd_reply.py tests/e2e/test_rspamd_request.py tests/e2e/test_learn.py \
	tests/e2e/test_dovecot.py tests/cli/test_learn.py
BENCH_ARGS = --check
HOPS_ARGS =
STORM_ARGS =
FUZZ_SECONDS = 600

INSTALLED = $(VENV)/.installed
BIN = $(VENV)/bin
# The real clock, without faketime or datefudge: pip checks certificates with it.
TRUE_CLOCK = unset LD_PRELOAD
# Tests start Python hundreds of times; without bytecode each start compiles all modules.
BYTECODE = unset PYTHONDONTWRITEBYTECODE
# The modules with complete branch coverage, and the tests that cover them. Only these modules are measured, which
# nearly doubles the time of a test.
CORE = addresses protocol session message tables supervise
# The clients of databases and servers are tested with real ones, and so is what starts programs under
# filter-supervise and waits for them.
BEYOND_CORE = smtpd_filters/tables/remote/*,smtpd_filters/supervise/fleet.py,smtpd_filters/supervise/loop.py,smtpd_filters/supervise/process.py,smtpd_filters/supervise/program.py,smtpd_filters/supervise/short_form.py
CORE_TESTS = tests/addresses tests/protocol tests/tables tests/scoring tests/checks/author tests/supervise \
	tests/test_ask_and_decide.py tests/test_chain.py tests/test_completion.py tests/test_filter.py \
	tests/test_guard.py tests/test_life.py tests/test_message.py tests/test_moving.py tests/test_session.py \
	tests/test_settings.py
CORE_REPORT = build/core.xml

all: demo

# Without a virtual environment the demo replays recorded sessions.
demo:
	@packaging/debian-deps demo || true
	@if $(MAKE) $(INSTALLED); then \
		exec packaging/moved-clock $(BIN)/python -m tests.demo; \
	else exec $${PYTHON:-python3} -m tests.demo --replay; fi

# With all system packages installed, a skipped end-to-end test is an error. --basetemp: with a moved
# clock, pytest would take the temporary folders of other runs for abandoned ones and delete them.
test: $(INSTALLED)
	@$(BYTECODE); if packaging/debian-deps test; then SMTPD_FILTERS_E2E=required; export SMTPD_FILTERS_E2E; fi; \
	if [ "$$(id -u)" -eq 0 ] && [ -x tests/e2e/setup-roots ]; then tests/e2e/setup-roots || exit; fi; \
	tests/fetch-data $(BIN)/python || true; \
	mkdir -p build; \
	[ -z "$${FAKETIME:-}" ] || set -- --basetemp=build/tmp$$FAKETIME; \
	if [ -n "$(TESTS)" ]; then set -- "$$@" $(TESTS); else \
		measured=; for each in $(CORE); do measured="$$measured --cov=smtpd_filters.$$each"; done; \
		$(PYTEST) --dist worksteal $$measured --cov-report= --junit-xml=$(CORE_REPORT) $(PYTEST_ARGS) $(CORE_TESTS) && \
		echo "Branch coverage of the core:" && \
		$(BIN)/coverage report --omit='$(BEYOND_CORE)' --skip-covered --fail-under=100 || failed=1; \
		for each in $(CORE_TESTS); do set -- "$$@" --ignore=$$each; done; \
	fi; \
	packaging/moved-clock $(PYTEST) --dist loadfile --no-loadscope-reorder --junit-xml=$(REPORT) $(PYTEST_ARGS) "$$@" || exit; \
	[ -z "$${failed:-}" ] || { echo "The core failed, in its tests or its coverage: see before all others" >&2; exit 1; }

# The tests that start processes get their marker from tests/conftest.py. No time-out: its thread for
# each test is some 7 % of the processor's time, and a developer sees a test that hangs.
unit: $(INSTALLED)
	@$(UNIT) --override-ini faulthandler_timeout=0 -m "$(WITHOUT_SERVERS) and not processes" $(PYTEST_ARGS)

unit-all: $(INSTALLED)
	@$(UNIT) -m "$(WITHOUT_SERVERS)" $(PYTEST_ARGS)

unit-debian: $(INSTALLED)
	@packaging/debian-deps libraries
	@tests/fetch-data $(BIN)/python || true
	@$(BYTECODE); $(BIN)/python packaging/debian_libraries.py $(LIBRARIES) && \
		PYTHONPATH="$$PWD/$(LIBRARIES)" SMTPD_FILTERS_E2E=required && export PYTHONPATH SMTPD_FILTERS_E2E && \
		$(PYTEST) --quiet --dist worksteal --junit-xml=$(LIBRARY_REPORTS)-servers.xml $(PYTEST_ARGS) $(LIBRARY_SERVER_TESTS) && \
		SMTPD_FILTERS_TESTS=quick $(PYTEST) --numprocesses $(UNIT_WORKERS) --quiet --dist worksteal \
		--junit-xml=$(LIBRARY_REPORTS).xml -m "$(WITHOUT_SERVERS) and not processes" $(PYTEST_ARGS) $(LIBRARY_TESTS)

# Both clocks at once, because one alone leaves a third of two cores idle. What they test with is
# installed before, and what each prints comes at its end.
clock: $(INSTALLED)
	@packaging/debian-deps clock
	@packaging/debian-deps test || true
	@mkdir -p build; SMTPD_FILTERS_E2E=required; export SMTPD_FILTERS_E2E; printf '%s\n' $(CLOCKS) | \
		xargs -n 1 -P 2 sh -c 'faketime -f "$$1" $(MAKE) test TESTS="$(CLOCK_TESTS)" \
			REPORT="build/tests$$1.xml" >"build/clock$$1.log" 2>&1; \
			status=$$?; cat "build/clock$$1.log"; exit "$$status"' sh

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: $(INSTALLED)
	$(BIN)/python packaging/update_reference.py
	$(BIN)/python packaging/update_protocol.py

api-check: $(INSTALLED)
	$(BIN)/python packaging/api_check.py

release-check: $(INSTALLED)
	$(BIN)/python packaging/release_check.py

bench: $(INSTALLED)
	@packaging/debian-deps bench || true
	@$(BIN)/python -m tests.bench.run $(BENCH_ARGS)

storm: $(INSTALLED)
	@packaging/debian-deps test || true
	@if [ "$$(id -u)" -eq 0 ]; then tests/e2e/setup-roots || exit; fi
	@$(BIN)/python -m tests.bench.storm $(STORM_ARGS)

hops: $(INSTALLED)
	@$(BIN)/python -m tests.bench.hops $(HOPS_ARGS)

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz -max_total_time=$(FUZZ_SECONDS)

dist: $(INSTALLED)
	@rm -f dist/smtpd_filters-*
	$(BIN)/python -m hatchling build -d dist

deb:
	@packaging/debian-deps deb
	packaging/build-deb

pkg: dist
	$(BIN)/python packaging/make_pkg.py dist/smtpd_filters-*.whl dist
	$(BIN)/python packaging/make_ports.py dist/smtpd_filters-*.tar.gz dist/smtpd_filters-*.whl dist/ports

clean:
	rm -rf .venv build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache \
		.ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The tools are an extra, not a dependency group, which Debian 12's pip 23.0 doesn't support.
$(INSTALLED): pyproject.toml
	@packaging/make-venv "$(VENV)" "$(PYTHON)"
	@$(TRUE_CLOCK); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev]'
	@touch $@

$(VENV)/.fuzz: $(INSTALLED)
	@$(TRUE_CLOCK); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[fuzz]'
	@touch $@

.PHONY: all demo test unit unit-all unit-debian clock check reference api-check release-check bench storm hops fuzz dist deb pkg clean
