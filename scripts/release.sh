#!/usr/bin/env bash
# Builds the executable that is published and proves what is promised of it: it is linked
# statically and it is at most 40 MB.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
scripts/setup.sh
add_cargo_to_path

limit=$((40 * 1000 * 1000))
# Relocations packed: a megabyte and a half less. C libraries before glibc 2.36 would not unpack
# them, so this is for what is published, not for what people build.
link_args=(-C link-arg=-Wl,-z,pack-relative-relocs)
# Functions with the same machine code are kept once: over a megabyte less. Only LLD can, which is
# the toolchain's linker for this architecture.
if [ "$(host_triple)" = x86_64-unknown-linux-gnu ]; then
  link_args+=(-C link-arg=-Wl,--icf=all)
fi
as_invoking_user cargo rustc --profile dist --locked -p kohakuriver --bin kohakuriver -- "${link_args[@]}"
executable=$(target_dir)/$(host_triple)/dist/kohakuriver
"$executable" --version

# No interpreter and no needed library: the kernel alone can start it.
if readelf --program-headers --dynamic --wide "$executable" | grep -E 'INTERP|\(NEEDED\)' >&2; then
  die "$executable is not statically linked"
fi
size=$(stat -c %s "$executable")
[ "$size" -le "$limit" ] || die "$executable has $size bytes, more than $limit"
printf '%s\nstatically linked\n%s bytes (at most %s)\n' "$executable" "$size" "$limit"
