# The commands of this project. The work is done by the scripts in scripts/, which say what they
# do and can be run by themselves.

.DEFAULT_GOAL := help
.PHONY: help up down build reference test test-upgrade test-vfio test-images chaos fuzz check audit bench release

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)$$/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

up: ## from a clone to a VPS you can log into, on this machine
	@scripts/up.sh

down: ## stop it again, instances stay (ARGS=--all stops them too, disks stay)
	@scripts/down.sh $(ARGS)

build: ## build for development
	@scripts/setup.sh
	cargo build --workspace --locked

check: ## sizes, format, dependencies, advisories and lints: what needs nothing but Rust
	@scripts/check.sh

reference: ## write docs/reference/{cli,errors}.md and crates/api/openapi.json anew from the program
	KOHAKURIVER_WRITE_REFERENCE=1 cargo test --workspace --locked --bin kohakuriver reference
	KOHAKURIVER_WRITE_REFERENCE=1 cargo test --workspace --locked --test it openapi_file

audit: ## known holes in dependencies (by cargo-deny and the network, else by the snapshot)
	@scripts/audit.sh

test: ## everything that must hold, with real Docker and real ssh (root or sudo)
	@scripts/test.sh

test-upgrade: ## the previous version's data, host and runner with this one's: builds both (root or sudo)
	@scripts/test-upgrade.sh

test-vfio: ## PCI passthrough in an emulated machine with an IOMMU: some two minutes, no GPU needed (root or sudo)
	@scripts/test-vfio.sh $(ARGS)

test-images: ## whole distributions as virtual machines: built, imported, booted (root or sudo)
	@scripts/test-images.sh

chaos: ## 500 faults on a cluster of three namespaces (ARGS="[--auth] FAULTS SEED")
	@scripts/chaos.sh $(ARGS)

fuzz: ## a minute of libFuzzer on each parser (ARGS="SECONDS TARGET...")
	@scripts/fuzz.sh $(ARGS)

bench: ## the measurements
	@scripts/bench.sh $(ARGS)

release: ## the executable that is published, proven static and small
	@scripts/release.sh
