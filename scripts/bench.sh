#!/usr/bin/env bash
# bench.sh [NAME...]
# The measurements of bench/, all or the named ones, with the released build. Needs root.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
is_root || exec sudo -E "$TOP/scripts/bench.sh" "$@"
scripts/setup.sh --for bench
started=$(scripts/docker.sh start)
finish() { if [ "$started" = started ]; then scripts/docker.sh stop; fi; }
trap finish EXIT
scripts/e2e-images.sh --with-debian
add_cargo_to_path
as_invoking_user cargo build --release --locked -p kohakuriver -p kohakuriver-bench
folder=$(target_dir)/$(host_triple)/release
# The machines' image: what is measured with it boots as people's do.
store=$(target_dir)/vm-images
if [ ! -e "$store/debian-12/image.json" ]; then
  scratch=$(mktemp -d)
  mkdir -p "$scratch/shared" "$store"
  ln -s "$store" "$scratch/shared/vm-images"
  "$folder/kohakuriver" qemu image create --name debian-12 --data-dir "$scratch" --shared-dir "$scratch/shared"
  rm -rf "$scratch"
fi
KOHAKURIVER_BIN=$folder/kohakuriver "$folder/kohakuriver-bench" "$@"
