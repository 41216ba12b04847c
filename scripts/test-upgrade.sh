#!/usr/bin/env bash
# test-upgrade.sh
# The previous version and this one: a data directory is taken over with running VPSes, and host and runner of
# both versions work together. Builds the previous version from its commit, unless KOHAKURIVER_PREVIOUS_BIN
# names its executable. Needs root.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
is_root || exec sudo -E "$TOP/scripts/test-upgrade.sh" "$@"

# The last commit before the names inside changed.
previous=f4ee8156116e

scripts/setup.sh --for test
add_cargo_to_path
if [ -z "${KOHAKURIVER_PREVIOUS_BIN:-}" ]; then
  tree=$(target_dir)/previous/tree
  if [ ! -e "$tree/Cargo.toml" ]; then
    git worktree prune
    git worktree add --detach "$tree" "$previous" || die "commit $previous is not here: git fetch --unshallow"
  fi
  say "building the previous version ($previous)"
  (cd "$tree" && CARGO_TARGET_DIR=$(target_dir)/previous/target cargo build --workspace --locked)
  KOHAKURIVER_PREVIOUS_BIN=$(target_dir)/previous/target/$(host_triple)/debug/kohakuriver
fi
started=$(scripts/docker.sh start)
finish() { if [ "$started" = started ]; then scripts/docker.sh stop; fi; }
trap finish EXIT
scripts/e2e-images.sh
scripts/vm-micro-image.sh "$(target_dir)/vm-images"
as_invoking_user cargo build --workspace --all-targets --locked
KOHAKURIVER_BIN=$(target_dir)/$(host_triple)/debug/kohakuriver
export KOHAKURIVER_BIN KOHAKURIVER_PREVIOUS_BIN
cargo test --workspace --locked --test upgrade
