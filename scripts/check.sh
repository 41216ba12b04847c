#!/usr/bin/env bash
# The checks that need nothing but Rust, cheap ones first; all run, then all failures are told.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
add_cargo_to_path
have cargo || die "cargo is missing: run scripts/setup.sh"

failed=()
step() {
  local name=$1
  shift
  say "== $name"
  "$@" || failed+=("$name")
}
step sizes scripts/sizes.sh
step language scripts/language.sh
step format as_invoking_user cargo fmt --all --check
step dependencies scripts/dependencies.sh
step advisories scripts/advisories.sh
step clippy as_invoking_user cargo clippy --workspace --all-targets --locked -- -D warnings
[ "${#failed[@]}" = 0 ] || die "failed: ${failed[*]}"
