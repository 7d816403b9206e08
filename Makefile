# The commands of the README, and of docs/testing.md. Each installs what it needs and says what it does.
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
REFRAIN := "$(abspath $(CARGO_TARGET_DIR))/release/refrain"
TRACE := demo/trace.jsonl
PYTHON ?= python3
VENV ?= python/.venv
WHEELS := $(abspath $(CARGO_TARGET_DIR))/wheels
BIN := $(abspath $(VENV))/bin

MINUTES ?= 60

VLLM_VENV ?= python/.venv-vllm
SGLANG_VENV ?= python/.venv-sglang
# `all` for what takes too long for every change.
VLLM_TESTS ?= quick

.PHONY: demo test handshakes sanitize simulate soak python vllm sglang engine-suites bench-smoke setup

demo: setup ## replay synthetic requests on a real sidecar, kill it half-way, compare every byte
	cargo build --release --locked -p refrain
	mkdir -p demo
	@echo "Writing $(TRACE): conversations, system prompts and documents, as block ids."
	$(REFRAIN) workload --out $(TRACE) --requests 4000
	@echo "Replaying it on a sidecar in demo/, on 5 GiB of disk; half-way the sidecar is killed and started again."
	cd demo && $(REFRAIN) replay $(notdir $(TRACE)) --block-bytes 128KiB --capacity 5GiB --kill-at half

test: setup ## run every test of the Rust crates
	cargo test --release --locked --workspace

handshakes: setup ## try every order in which threads may meet, where they meet by hand
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$(abspath $(CARGO_TARGET_DIR))/loom" \
		cargo test --release --locked -p refrain-store -p refrain-gpu-transfer --lib handshake

# The compiler takes the flag on its stable channel only so; what it compiles is the same.
sanitized = RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$(abspath $(CARGO_TARGET_DIR))/sanitize" \
	cargo test --release --locked --target "$$(rustc --print host-tuple)"

sanitize: setup ## run what has unsafe code, and real sidecars and workers under faults, with AddressSanitizer
	$(sanitized) -p refrain-store -p refrain-gpu-transfer --lib
	$(sanitized) -p refrain --test faults -- kills --count 60
	$(sanitized) -p refrain --test faults -- calls --count 600
	$(sanitized) -p refrain --test faults -- scribbled --count 20
	$(sanitized) -p refrain --test faults -- served --count 300

SECONDS ?= 120
simulate: setup ## run a node over simulated drives from new seeds, for SECONDS
	cargo run --release --locked -p refrain-simulation -- --seconds $(SECONDS)

python: setup $(VENV)/installed ## build the wheel of the Python package, install it beside its tools, run its tests
	cargo build --release --locked -p refrain
	rm -rf "$(WHEELS)"
	cd python && "$(BIN)/maturin" build --quiet --release --locked --out "$(WHEELS)"
	"$(BIN)/pip" install --quiet --force-reinstall --no-deps "$(WHEELS)"/*.whl
	cd python && "$(BIN)/ruff" format --quiet --check . && "$(BIN)/ruff" check --quiet .
	"$(BIN)/mypy" --strict --no-error-summary --config-file python/pyproject.toml \
		--exclude 'torch\.py|/(sglang|vllm)/' python/python/refrain_kv
	cd python && CARGO_TARGET_DIR="$(abspath $(CARGO_TARGET_DIR))" "$(BIN)/pytest" --ignore tests/in_vllm

vllm: setup ## install a real vLLM for the CPU, put the newest wheel (`make python`) into it, run engines with and without Refrain
	.ci/vllm "$(VLLM_VENV)"
	"$(abspath $(VLLM_VENV))/bin/pip" install --quiet --force-reinstall --no-deps "$(WHEELS)"/*.whl
	cd python && CARGO_TARGET_DIR="$(abspath $(CARGO_TARGET_DIR))" VLLM_TESTS=$(VLLM_TESTS) \
		"$(abspath $(VLLM_VENV))/bin/pytest" tests/in_vllm

sglang: setup ## install SGLang and vLLM for the CPU, put the newest wheel (`make python`) into them, run what they load
	.ci/sglang "$(SGLANG_VENV)" "$(VLLM_VENV)"
	"$(abspath $(SGLANG_VENV))/bin/pip" install --quiet --force-reinstall --no-deps "$(WHEELS)"/*.whl
	cd python && PATH="$(abspath $(SGLANG_VENV))/bin:$$PATH" CARGO_TARGET_DIR="$(abspath $(CARGO_TARGET_DIR))" \
		"$(abspath $(SGLANG_VENV))/bin/pytest" tests/in_sglang tests/in_vllm_tier

engine-suites: setup ## run those tests of vLLM's own suites that can be pointed at Refrain (after `make python vllm`)
	CARGO_TARGET_DIR="$(abspath $(CARGO_TARGET_DIR))" .ci/engine-suites "$(abspath $(VLLM_VENV))"

# Tools of pinned versions, in an environment of their own.
$(VENV)/installed: python/requirements-dev.txt
	$(PYTHON) -m venv "$(VENV)"
	"$(BIN)/pip" install --quiet --requirement python/requirements-dev.txt
	touch "$@"

soak: setup ## mixed load for MINUTES, with reclaim running: nothing may grow
	cargo test --release --locked -p refrain --test faults -- soak --minutes $(MINUTES)

bench-smoke: setup ## run every benchmark at tiny sizes: that they work, not what they measure
	cargo bench --locked -p refrain-benches -- --smoke

setup:
	@.ci/setup
