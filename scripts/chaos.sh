#!/usr/bin/env bash
# chaos.sh [--auth] [FAULTS [SEED]]
# The long run of the chaos suite: a host and two nodes in network namespaces, each node with a
# Docker engine of its own and virtual machines; everything is killed, cut, removed and filled while
# people go on. Needs root. With --auth they log in, also while something is broken.
# KOHAKURIVER_CHAOS_CLOCK=1 also moves this machine's clock back and forth.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
is_root || exec sudo -E "$TOP/scripts/chaos.sh" "$@"
if [ "${1:-}" = --auth ]; then
  export KOHAKURIVER_CHAOS_AUTH=1
  shift
fi
scripts/setup.sh --for test
started=$(scripts/docker.sh start)
finish() { if [ "$started" = started ]; then scripts/docker.sh stop; fi; }
trap finish EXIT
scripts/e2e-images.sh
scripts/vm-micro-image.sh "$(target_dir)/vm-images"
add_cargo_to_path
as_invoking_user cargo build --workspace --all-targets --locked
KOHAKURIVER_BIN=$(target_dir)/$(host_triple)/debug/kohakuriver
KOHAKURIVER_CHAOS_FAULTS=${1:-500}
export KOHAKURIVER_BIN KOHAKURIVER_CHAOS_FAULTS
if [ -n "${2:-}" ]; then export KOHAKURIVER_CHAOS_SEED=$2; fi
cargo test --workspace --locked --test chaos -- --nocapture
