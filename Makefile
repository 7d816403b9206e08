# The two commands of the README. Each installs what it needs and says what it does.
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
TRACE := demo/trace.jsonl

.PHONY: demo test bench-smoke setup

demo: setup ## write a synthetic day of requests and say what a prefix cache is worth on it
	cargo build --release --locked -p refrain
	mkdir -p demo
	"$(CARGO_TARGET_DIR)/release/refrain" workload --out $(TRACE)
	"$(CARGO_TARGET_DIR)/release/refrain" ideal $(TRACE)

test: setup ## run every test
	cargo test --release --locked --workspace

bench-smoke: setup ## run every benchmark at tiny sizes: that they work, not what they measure
	cargo bench --locked -p refrain-benches -- --smoke

setup:
	@.ci/setup
