# The two commands of the README. Each installs what it needs and says what it does.
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
REFRAIN := "$(abspath $(CARGO_TARGET_DIR))/release/refrain"
TRACE := demo/trace.jsonl

MINUTES ?= 60

.PHONY: demo test soak bench-smoke setup

demo: setup ## replay synthetic requests on a real sidecar, kill it half-way, compare every byte
	cargo build --release --locked -p refrain
	mkdir -p demo
	@echo "Writing $(TRACE): conversations, system prompts and documents, as block ids."
	$(REFRAIN) workload --out $(TRACE) --requests 4000
	@echo "Replaying it on a sidecar in demo/, on 5 GiB of disk; half-way the sidecar is killed and started again."
	cd demo && $(REFRAIN) replay $(notdir $(TRACE)) --block-bytes 128KiB --capacity 5GiB --kill-at half

test: setup ## run every test
	cargo test --release --locked --workspace

soak: setup ## mixed load for MINUTES, with reclaim running: nothing may grow
	cargo test --release --locked -p refrain --test faults -- soak --minutes $(MINUTES)

bench-smoke: setup ## run every benchmark at tiny sizes: that they work, not what they measure
	cargo bench --locked -p refrain-benches -- --smoke

setup:
	@.ci/setup
