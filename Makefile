# Every check of this repository, each on its own: `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# `make test` runs one after another, in the order in which they are named: they share two cores and one .venv.
.NOTPARALLEL:

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export LC_ALL := C.UTF-8
export ANSIBLE_NOCOWS := 1
# Files of Python's cache would be in the way of whoever cleans up, and belong to root after a test as root.
export PYTHONDONTWRITEBYTECODE := 1
# Folders of molecule's fleets: one for each clone, so that two may run at once.
export FLEETCLEAN_MOLECULE ?= /var/tmp/fleetclean-$(shell printf %s '$(CURDIR)' | cksum | cut -c1-6)
# In CI a skipped test is a failed one, see tests/no_skips.py.
ifeq ($(CI),true)
export FLEETCLEAN_NO_SKIP ?= 1
endif

# What starts test hosts has to end when make ends, however that ends: no shell in between (exec), and the
# kernel's word for it. The hosts end with the process that wanted them.
bound := exec setpriv --pdeathsig KILL --
# Test hosts need root. Without it a check that is about them says so, which is a failure only where none may be skipped.
as_root = if [ "$$(id -u)" != 0 ]; then echo "$@: skipped, it needs root"; [ "$${FLEETCLEAN_NO_SKIP:-}" != 1 ]; exit; fi;
pytest := python -m pytest -p tests.no_skips -p no:cacheprovider -rs --durations=5 --continue-on-collection-errors
# One test, or one scenario: make unit ARGS='-k duration', make molecule SCENARIO=full
ARGS ?=
# How long to fuzz: make fuzz MINUTES=5, or one file's targets: make fuzz ARGS='--only test_options'
MINUTES ?= 30
SCENARIO ?= default full full_disk

.PHONY: help
help: ## say what there is
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## prepare this machine: Debian packages (as root) and .venv; quick when all is there
	@bash scripts/setup.sh

.PHONY: lint
lint: .venv/made-from ## ruff, mypy, yamllint, ansible-lint (profile production), changelog fragments
	@ruff check --quiet --output-format concise .
	@mypy --no-error-summary
	@yamllint --strict .
	@ansible-lint -q --nocolor
	@antsibull-changelog lint
	@echo "lint: ruff, mypy, yamllint, ansible-lint and antsibull-changelog have nothing to say"

.PHONY: sanity
sanity: .venv/made-from ## ansible-test's sanity tests, on what ships
	@bash scripts/sanity.sh $(ARGS)

.PHONY: docs
docs: .venv/made-from ## the documentation of modules and role is right, and links lead somewhere
	@bash scripts/docs.sh

.PHONY: build
build: .venv/made-from ## build the collection's archive, install it elsewhere, look for its parts there
	@bash scripts/build.sh --check

.PHONY: unit
unit: .venv/made-from ## tests without an engine, and the fuzz targets with a small, fixed budget
	@$(bound) $(pytest) tests/unit tests/fuzz $(ARGS)

.PHONY: fuzz
fuzz: .venv/made-from ## fuzz targets with new inputs, for MINUTES=30; on ext4, xfs and btrfs as well as root
	@$(bound) python -m tests.fuzz --minutes $(MINUTES) $(ARGS)

.PHONY: integration
integration: .venv/made-from ## tests on real engines and hosts (root)
	@$(bound) $(pytest) tests/integration $(ARGS)

.PHONY: molecule
molecule: .venv/made-from ## scenarios: a careful clean-up, a full one, a full disk (root)
	@$(as_root) $(bound) bash scripts/molecule.sh $(SCENARIO)

.PHONY: demo
demo: setup ## a throwaway fleet gets dirty, full, and clean again (root, 2 minutes)
	@$(as_root) $(bound) python scripts/demo.py

.PHONY: roots
roots: .venv/made-from ## root file systems with other engines for the integration tests (root, 1 minute each, once)
	@$(as_root) $(bound) bash scripts/roots.sh

.PHONY: bench-start
bench-start: .venv/made-from ## what a module costs before it does anything, beside ansible.builtin.stat: ratios (root, 2 minutes)
	@$(as_root) $(bound) python benchmarks/start.py $(ARGS)

.PHONY: bench-report
bench-report: .venv/made-from ## docker_disk_report beside du and docker system df: ratios (root, 10 minutes, 8 GB of disk)
	@$(as_root) $(bound) python benchmarks/report.py $(ARGS)

.PHONY: bench-clean
bench-clean: .venv/made-from ## docker_clean beside docker system prune and docker_prune: ratios (root, 30 minutes, 6 GB of disk)
	@$(as_root) $(bound) python benchmarks/clean.py $(ARGS)

.PHONY: bench-logs
bench-logs: .venv/made-from ## docker_log_truncate beside truncate, copy-truncate and logrotate: ratios (root, 1 hour, 12 GB of disk)
	@$(as_root) $(bound) python benchmarks/logs.py $(ARGS)

.PHONY: bench-fleet
bench-fleet: .venv/made-from ## clean.yml over 1 to 200 hosts beside ping and docker_prune: ratios (root, 1 hour)
	@$(as_root) $(bound) python benchmarks/fleet.py $(ARGS)

.PHONY: test-vm test-vm-devicemapper test-vm-zfs
test-vm: test-vm-devicemapper test-vm-zfs ## devicemapper and zfs, in emulated machines (root, 4 minutes, 6 more the first time)
test-vm-devicemapper test-vm-zfs: test-vm-%: .venv/made-from
	@$(as_root) setpriv --pdeathsig KILL -- bash scripts/vm.sh $* && $(bound) $(pytest) tests/vm/test_machine.py tests/vm/test_$*.py $(ARGS)

.PHONY: test
test: setup lint docs build unit sanity roots molecule demo integration test-vm-devicemapper ## all of it, the quick ones first (under 30 minutes)

.PHONY: clean
clean: ## remove what the checks leave behind, .venv too (what is made once stays in ~/.cache/fleetclean)
	@rm -rf .venv .build .ansible .mypy_cache .ruff_cache .pytest_cache *.tar.gz
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A check without `make setup` before it: then it comes first.
.venv/made-from: requirements-dev.txt constraints-dev.txt
	@bash scripts/setup.sh
