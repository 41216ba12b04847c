#!/usr/bin/env bash
# Asks the advisory database whether a dependency has a known hole. That needs cargo-deny or
# cargo-audit and the network; where neither tool is there, the snapshot of the database is asked
# (scripts/advisories.sh). --if-installed leaves the snapshot out, for who asks it anyhow.
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
fi
if [ "${1:-}" = --if-installed ]; then
  say "audit: the database itself was not asked: neither cargo-deny nor cargo-audit is installed"
else
  scripts/advisories.sh
  say "audit: that was the snapshot. The database itself, with what is newer and what is yanked, is asked"
  say "audit: by cargo-deny: cargo install --locked cargo-deny"
fi
