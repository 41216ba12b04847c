#!/usr/bin/env bash
# fuzz.sh [SECONDS] [TARGET...]
# Looks for inputs that hurt, with libFuzzer, SECONDS (60) for each target (all of them). What it
# learned goes into fuzz/corpus/TARGET, at most 40 files each; what hurts ends it and is named.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
triple=x86_64-unknown-linux-gnu
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
RUSTFLAGS=$coverage cargo build --quiet --release --target $triple \
  --manifest-path fuzz/libfuzzer/Cargo.toml --target-dir target/fuzz
binary=target/fuzz/$triple/release/kohakuriver-libfuzzer
if [ $# -eq 0 ]; then
  # The program's own list, from its complaint about a target that is none.
  set -- $(KOHAKURIVER_FUZZ_TARGET=none $binary -runs=1 -artifact_prefix=target/fuzz/ 2>&1 | sed -n 's/.*there are: //p' | tr -d ',')
fi
for target in "$@"; do
  work=$(mktemp -d)
  mkdir -p "fuzz/corpus/$target" "$work/new" "$work/small"
  echo "fuzzing $target for $seconds s" >&2
  KOHAKURIVER_FUZZ_TARGET=$target $binary -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 \
    -max_len=4096 -verbosity=0 -artifact_prefix="fuzz/found-$target-" "$work/new" "fuzz/corpus/$target" 2>"$work/log" ||
    { tail -20 "$work/log" >&2; echo "error: an input that hurts $target is in fuzz/found-$target-*" >&2; exit 1; }
  KOHAKURIVER_FUZZ_TARGET=$target $binary -merge=1 -verbosity=0 "$work/small" "$work/new" "fuzz/corpus/$target" 2>/dev/null
  rm -f "fuzz/corpus/$target"/*
  ls -S -r "$work/small" | sed -n 1,40p | while read -r file; do cp "$work/small/$file" "fuzz/corpus/$target/$file"; done
  rm -rf "$work"
done
