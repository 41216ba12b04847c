#!/usr/bin/env bash
# Holds the locked versions against what the RustSec database said when it was asked, which is
# advisories/snapshot.toml: needs no network. `--renew FOLDER` takes a new snapshot first, from a
# clone of the database, which https://rustsec.org leads to.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
add_cargo_to_path
have cargo || die "cargo is missing: run scripts/setup.sh"

arguments=()
case ${1:-} in
  '') ;;
  --renew)
    [ -d "${2:-}/crates" ] || die "give the folder of a clone of the database: scripts/advisories.sh --renew FOLDER"
    arguments=(renew "$(realpath -- "$2")" "$(date +%F)")
    ;;
  *) die "give nothing, or --renew FOLDER" ;;
esac
cd "$TOP"
as_invoking_user cargo run --quiet --locked -p kohakuriver-advisories -- "${arguments[@]}"
