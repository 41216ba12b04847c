#!/usr/bin/env bash
# Everything that must hold before a change goes in, cheap things first: sizes, format,
# dependencies, lints, then all tests, the end-to-end ones with real Docker and real ssh (they
# need root).
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"

results=()
status=0
# step NAME COMMAND...: runs it, remembers how it went and how long it took.
step() {
  local name=$1 began=$SECONDS word=ok
  shift
  say
  say "== $name"
  "$@" || { word=FAILED status=1; }
  results+=("$(printf '%-7s %5ss  %s' "$word" "$((SECONDS - began))" "$name")")
  [ "$word" = ok ]
}
skip() { results+=("$(printf '%-7s %5s   %s' skipped - "$1")"); }

started_docker=0
finish() {
  local code=$?
  trap - EXIT
  if [ "$started_docker" = 1 ]; then scripts/docker.sh stop || true; fi
  say
  say "== summary ($SECONDS s)"
  [ "${#results[@]}" = 0 ] || printf '%s\n' "${results[@]}" >&2
  if [ "$code" = 0 ]; then say "all passed"; else say "FAILED"; fi
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_docker() {
  local answer
  answer=$(scripts/docker.sh start) || return 1
  if [ "$answer" = started ]; then started_docker=1; fi
}

# One profile and one selection of packages everywhere: Cargo unites features over what it is
# asked to build, and a different question would compile the dependencies once more.
build() { as_invoking_user cargo build --workspace --all-targets --locked; }

# The tests in e2e/ need root. Everything is built by then, so as root Cargo only runs; what it
# still writes is given back to whoever owns the tree.
run_tests() {
  local limit=() code=0
  # A hanging test must not eat the whole time CI grants.
  if [ "${CI:-}" = true ]; then limit=(timeout --kill-after=30 40m); fi
  if is_root; then
    "${limit[@]}" cargo test --workspace --locked --no-fail-fast </dev/null || code=$?
  else
    as_root -E env PATH="$PATH" HOME="$HOME" KOHAKURIVER_BIN="$KOHAKURIVER_BIN" \
      "${limit[@]}" cargo test --workspace --locked --no-fail-fast </dev/null || code=$?
  fi
  local owner
  owner=$(invoking_user)
  if [ "$owner" != root ]; then as_root chown -R --from=root "$owner" "$(target_dir)"; fi
  if [ "$code" = 124 ]; then say "stopped after 40 minutes"; fi
  return "$code"
}

step "set up" scripts/setup.sh --for test || exit 1
add_cargo_to_path
step sizes scripts/sizes.sh || true
step format as_invoking_user cargo fmt --all --check || true
step dependencies as_invoking_user scripts/audit.sh --if-installed || true
step "docker engine" start_docker || true
step "docker images" scripts/e2e-images.sh --with-debian || true
step "machine image" scripts/vm-micro-image.sh "$(target_dir)/vm-images" || true
step clippy as_invoking_user cargo clippy --workspace --all-targets --locked -- -D warnings || true
if step build build; then
  KOHAKURIVER_BIN=$(target_dir)/$(host_triple)/debug/kohakuriver
  export KOHAKURIVER_BIN
  step tests run_tests || true
else
  skip tests
fi
exit "$status"
