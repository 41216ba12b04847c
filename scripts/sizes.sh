#!/usr/bin/env bash
# No Rust file may pass 600 lines: files are aimed at 250, and what passes 600 wants splitting.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"

limit=600
bad=0
while IFS= read -r -d '' file; do
  lines=$(wc -l <"$file")
  if [ "$lines" -gt "$limit" ]; then
    say "$file: $lines lines, more than $limit"
    bad=1
  fi
done < <(find . -path ./target -prune -o -path ./vendor -prune -o -path ./.git -prune -o -name '*.rs' -type f -print0)
exit "$bad"
