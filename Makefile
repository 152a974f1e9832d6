# Commands of a developer. `make verify` changes nothing and needs no root; `.ci/run` runs everything.

.PHONY: help verify fix test sim mutants fuzz browser observability chaos manifests bench soak

help: ## Show this list
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | column -t -s "$$(printf '\t')"

verify: ## Format, lints, documentation and all tests in Rust
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --all-targets --locked -- -D warnings
	cargo clippy --package quorum-chat-client --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
	cargo test --locked

fix: ## Format, and apply what clippy proposes
	cargo clippy --all-targets --locked --fix --allow-dirty --allow-staged
	cargo fmt
	cargo fmt --manifest-path fuzz/Cargo.toml

test: ## All tests in Rust
	cargo test --locked

sim: ## The simulation, with 60 seeds from 1 on
	cargo sim --locked -- --first 1 --seeds 60

mutants: ## The mutation check: the simulation finds each seeded bug
	cargo sim --locked -- --first 1 --mutants --seeds 200

fuzz: ## Each fuzz target for ten seconds
	fuzz/run 10

browser: ## The page in a headless Chromium
	tests/browser/types
	cargo build --locked
	tests/browser/run

observability: ## Alerts and dashboards, with Prometheus
	cargo build --locked
	tests/observability/run

chaos: ## Faults on containers; needs Docker
	tests/containers/chaos

manifests: ## The Kubernetes manifests, executed; needs Docker and root
	docker build --build-arg PROFILE=quick --tag quorum-chat:chaos .
	tests/containers/manifests --image quorum-chat:chaos

bench: ## Acknowledged sends, compared with etcd and NATS
	tests/bench/compare

soak: ## What CI has no time for; some ten hours
	cargo sim --locked -- --random --seeds 5000
	fuzz/run 600
	docker build --build-arg PROFILE=quick --tag quorum-chat:chaos .
	tests/containers/manifests --image quorum-chat:chaos --only-mutants
	tests/containers/chaos --no-build --tls
	tests/soak --minutes 480
