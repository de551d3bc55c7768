# Everything a developer does; `make help` lists it.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS  = -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# Packages whose tests need a broker: they run on kfake and on real Kafka.
INTEGRATION = $(shell grep -rlE 'envtest[.](Real)?Kafka\b' --include='*_test.go' internal stream cmd | xargs -n1 dirname | sort -u | sed 's|^|./|')

# go vet is a part of lint; without symbols for a debugger, linking takes half the time.
TESTFLAGS = -vet=off -ldflags='-s -w'

# go test takes the packages in this order: a package with long tests that begins last
# runs alone, and leaves the other cores idle.
LONGEST = ./stream ./cdc ./internal/e2e ./cmd/dinnerbell ./state

# Further go test flags, such as GOTESTFLAGS='-run TestX -v'.
GOTESTFLAGS ?=

# Further flags of the benchmark, such as BENCHFLAGS='-only fanout -runs 9'.
BENCHFLAGS ?=

LINT_VERSION = v2.15.0
LINT         = .cache/bin/golangci-lint-$(LINT_VERSION)

# Files that Git tracks or would add: bin and .cache are no source.
GO_FILES = $(shell git ls-files --cached --others --exclude-standard '*.go')

.DEFAULT_GOAL := help
.PHONY: bench bench-quick bench-compare build-bench help build demo test test-race test-kafka test-slow test-long test-secure test-docs test-fetch test-postgres test-alerts test-page model lint check clean chaos soak release licenses vulnerabilities fuzz test-packages test-image

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[36m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# No -trimpath: its objects share nothing with those of the tests, and a fresh
# machine would compile everything twice.
build: ## build bin/dinnerbell
	@scripts/install-tools.sh go
	go build -ldflags '$(LDFLAGS)' -o bin/dinnerbell ./cmd/dinnerbell

demo: build ## run the whole thing with made-up restaurants; Ctrl-C ends it
	@bin/dinnerbell demo

test: ## all tests on Postgres and kfake
	@scripts/install-tools.sh go kcat
	go test $(TESTFLAGS) -timeout 15m $(GOTESTFLAGS) $(LONGEST) ./...

# One goroutine simulates a crash after each write, or measures memory: the race detector
# finds nothing in these tests and takes ten times as long.
RACE_SKIP = ^Test(Crash|CrashLoad|CrashCheckpoint|CrashRestore|CrashUpgrade|GenerationCrash|MissingLog|AnyFileDamaged|DamagedManifest|FullDiskAtEveryWrite|LargeMessagesHoldLittleMemory)$$

# Not a part of test: the race detector needs a second build of everything.
test-race: ## the packages' tests under the race detector
	@scripts/install-tools.sh go
	go test -race $(TESTFLAGS) -skip '$(RACE_SKIP)' -timeout 25m $(GOTESTFLAGS) ./stream/... ./cdc/... ./state/... ./internal/testenv/...

# These tests start a broker of their own, or none: on a real Kafka they would repeat make test.
KAFKA_SKIP = ^Test(Demo.*|CommandLine|SetupPrintsSQL|InterruptReadsAsOne|DeadPostgresIsSaidOnce|CommandsAreDocumented|ServerThatRepeatsThePassword|StatusWhileServersAreDead|NoSecretComesOut.*|OpenListenerIsRefused|SystemdUnit|Deployment.*|Compose.*|Licences.*|Documented.*|Documents.*|Links.*|AlertsHaveRecipes|BrokerRestart|PostgresKill|SpeaksTLS|ExplainClientCertificate)$$

test-kafka: ## the integration tests on a real Apache Kafka (needs Java 17, Maven, Python)
	@scripts/install-tools.sh go kcat java python
	@scripts/with-kafka.sh go test -count=1 $(TESTFLAGS) -skip '$(KAFKA_SKIP)' -timeout 30m $(GOTESTFLAGS) $(INTEGRATION)

VERSIONS ?= 14 15 16 17 18

test-postgres: ## the mirror's tests on Postgres of each version: VERSIONS="17 18"
	@scripts/install-tools.sh go pgbouncer
	@GOTESTFLAGS="$(GOTESTFLAGS)" scripts/test-postgres.sh $(VERSIONS)

test-slow: ## the tests that take a minute or more each
	@scripts/install-tools.sh go
	TEST_SLOW=1 go test -count=1 $(TESTFLAGS) -timeout 20m -run 'Slow|AtEveryFailpoint' $(GOTESTFLAGS) ./internal/e2e

test-long: ## the tests that take minutes or gigabytes, alone
	@scripts/install-tools.sh go kcat
	TEST_LONG=1 go test -count=1 $(TESTFLAGS) -timeout 60m -p 1 -run Long $(GOTESTFLAGS) ./...

test-secure: ## logins, certificates, rights and rotation on a secured Apache Kafka and Postgres: UPDATE=1 writes the tables of docs/security.md, FULL=1 adds replay and preview without each right of Postgres (minutes)
	@scripts/install-tools.sh go java postgres kcat python
	@scripts/kafka.sh install >/dev/null
	UPDATE=$(UPDATE) FULL=$(FULL) TEST_SECURE=1 go test -count=1 $(TESTFLAGS) -timeout 15m -run '^TestSecure' $(GOTESTFLAGS) ./internal/e2e

test-docs: ## run every command block of the documents on real servers
	@scripts/install-tools.sh go kcat psql jq
	TEST_DOCS=1 go test -count=1 $(TESTFLAGS) -timeout 20m -run 'Executed|CommandBlocks' $(GOTESTFLAGS) ./internal/e2e

test-fetch: ## test the download of Postgres on a machine that has none
	@scripts/install-tools.sh go
	TESTENV_FETCH=1 go test -count=1 -vet=off -v -run '^TestFetchPostgres$$' ./internal/testenv

test-alerts: ## the alert rules with promtool, and the metrics that rules and dashboard name
	@scripts/install-tools.sh go promtool
	promtool check config deploy/prometheus/prometheus.yml
	promtool test rules deploy/prometheus/alerts_test.yaml
	TEST_PROMTOOL=1 go test -count=1 -vet=off -timeout 10m -run '^TestAlerts|^TestDashboard|^TestRulesAndDashboard' ./internal/e2e

# chromedp, which drives the browser, is compiled for this test alone: build tag page.
test-page: ## the live page in headless Chromium; UPDATE=1 takes the pictures of docs/images
	@scripts/install-tools.sh go chromium axe
	go vet -tags page ./internal/e2e
	UPDATE=$(UPDATE) go test -tags page -count=1 -vet=off -timeout 25m -run '^TestPage$$' $(GOTESTFLAGS) ./internal/e2e

test-packages: ## install, upgrade and remove the deb and the rpm in fresh roots; SKIPPED where that is not possible
	@scripts/install-tools.sh go
	@scripts/test-packages.sh

test-image: ## the Dockerfile's steps, and their result as a container without an engine; skipped without root
	@scripts/install-tools.sh go
	TEST_IMAGE=1 go test -count=1 $(TESTFLAGS) -v -timeout 15m -run '^TestImage$$' $(GOTESTFLAGS) ./internal/e2e

model: ## check the protocol's formal model, and that each rule is needed (spin)
	@scripts/model/run.sh

ROUNDS  ?= 5
FIRST   ?= 1
SEED    ?= 1
BROKER  ?= kfake
DAEMONS ?= 2
LENGTH  ?= 8
FAULTS  ?= 10

chaos: build ## break everything around the daemon and compare both sinks with an oracle: ROUNDS= SEED= BROKER=kafka|kfake DAEMONS=1|2
	@[ "$(BROKER)" != kafka ] || scripts/install-tools.sh java
	go build -o bin/chaos ./scripts/chaos
	bin/chaos -rounds $(ROUNDS) -first $(FIRST) -seed $(SEED) -broker $(BROKER) -daemons $(DAEMONS) -seconds $(LENGTH) -faults $(FAULTS)

MINUTES ?= 30

soak: build ## a moderate load with faults for MINUTES=30, both sinks compared, and no figure of the process or the tables may leak: SEED= BROKER=kafka|kfake
	@[ "$(BROKER)" != kafka ] || scripts/install-tools.sh java
	go build -o bin/chaos ./scripts/chaos
	bin/chaos -soak $(MINUTES) -seed $(SEED) -broker $(BROKER) -out build/soak.json -samples build/soak.jsonl -keep build/soak

bench: build-bench ## measure the daemon beside limits and a hand-written consumer, into build/bench.json (an hour)
	bin/bench $(BENCHFLAGS)

bench-quick: build-bench ## bench with small sizes, in three minutes
	bin/bench -quick $(BENCHFLAGS)

bench-compare: build-bench ## this daemon against another revision's: make bench-compare BASE=rev
	@scripts/bench/compare.sh "$(BASE)" $(BENCHFLAGS)

build-bench: build
	go build -o bin/bench ./scripts/bench
	go build -o bin/byhand ./scripts/byhand

lint: $(LINT) ## formatting, vet, linters, import arrows, go.mod
	@files=$$(gofmt -l $(GO_FILES)); if [ -n "$$files" ]; then echo "not gofmt-ed:" $$files; exit 1; fi
	@for f in scripts/*.sh scripts/*/*.sh .ci/run; do bash -n $$f || exit 1; done
	go mod tidy -diff
	go vet ./...
	$(LINT) run ./...

FUZZTIME ?= 5s

# One at a time: each target has workers of its own.
fuzz: ## every decoder of foreign bytes under the fuzzer: FUZZTIME=5s TARGET=Payload
	@scripts/install-tools.sh go
	@FUZZTIME=$(FUZZTIME) scripts/fuzz.sh $(TARGET)

vulnerabilities: ## known vulnerabilities in the linked code (govulncheck); SKIPPED where its database is out of reach
	@scripts/install-tools.sh go
	@scripts/vulnerabilities.sh

check: lint test ## CI without its slow tests

licenses: ## the licences of all that the released program links, into build/licenses; an unknown one fails
	@scripts/install-tools.sh go
	@scripts/licenses.sh

release: ## static programs, deb, rpm, SBOM and checksums into build/release: PLATFORMS= VERSION= TWICE=1
	@scripts/install-tools.sh go
	@scripts/release.sh

clean: ## delete builds, downloads and the servers' data
	@scripts/kafka.sh clean
	rm -rf bin build .cache

# The file name holds the version, so that a new LINT_VERSION is built, once.
$(LINT):
	@scripts/install-tools.sh go
	GOBIN=$(CURDIR)/.cache/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv .cache/bin/golangci-lint $@
