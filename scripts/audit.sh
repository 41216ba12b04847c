#!/usr/bin/env bash
# Asks the advisory database whether a dependency has a known hole. Needs cargo-deny or cargo-audit
# and the network; --if-installed passes where neither tool is there.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
add_cargo_to_path

scripts/dependencies.sh
if have cargo-deny; then
  exec cargo deny --workspace --locked check
elif have cargo-audit; then
  # It reads no deny.toml: what is ignored there is told to it.
  ignored=()
  while read -r id; do ignored+=(--ignore "$id"); done < <(grep -oE 'RUSTSEC-[0-9]{4}-[0-9]{4}' deny.toml | sort -u)
  exec cargo audit "${ignored[@]}"
elif [ "${1:-}" = --if-installed ]; then
  say "audit: advisories were not asked for: neither cargo-deny nor cargo-audit is installed"
else
  die "advisories need cargo-deny: cargo install --locked cargo-deny"
fi
