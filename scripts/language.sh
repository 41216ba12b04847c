#!/usr/bin/env bash
# language.sh [PATH...]
# What can be checked of the rules in CONTRIBUTING.md "Language": summary lines of docs, words that help,
# errors and docs do not use, and the length of test names. Prints FILE:LINE: what is wrong.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
# The agent, its protocol, the VM crate and the end-to-end tests are still to come.
if [ $# -eq 0 ]; then
  set -- bench fuzz/src
  for crate in crates/*; do
    case $crate in crates/agent | crates/agent-protocol | crates/vm) ;; *) set -- "$@" "$crate" ;; esac
  done
fi

found=$(find "$@" -name '*.rs' -type f -not -path '*/target/*' -print0 | sort -z | xargs -0 awk '
  function report(line, text) { printf "%s:%d: %s\n", FILENAME, line, text }
  function summary_ends() {
    if (open && last !~ /[.:?!)`|]$/) report(first, "the summary has no full stop: " last)
    open = 0
  }
  FNR == 1 { open = 0; test = 0; error = 0 }
  # The first paragraph of a doc comment.
  /^[ \t]*\/\/[\/!]/ {
    text = $0; sub(/^[ \t]*\/\/[\/!] ?/, "", text); sub(/[ \t]+$/, "", text)
    if (tolower(text) ~ /(^|[^a-z`_])(nobody|somebody|whoever|whatever it is called)([^a-z_]|$)/) report(FNR, "names no noun: " text)
    if (!in_doc) {
      in_doc = 1; open = 1; first = FNR
      if (text ~ /^(Who|Whoever|What|Nobody|Somebody|One) /) report(FNR, "the summary starts with no noun or verb: " text)
    }
    if (open && text == "") summary_ends()
    else if (open && text ~ /^(```|#|\* |- |\|)/) open = 0
    else if (open) last = text
    next
  }
  in_doc { summary_ends(); in_doc = 0 }
  # Texts of errors and help.
  /#\[error\(/ { error = 1 }
  error || /(about|help) = "/ || /hint\(/ {
    if (match(tolower($0), /"[^"]*[^a-z_](nobody|somebody|whoever|knock|gate|stray|wish|parting)[^a-z_][^"]*"/)) report(FNR, "a word that help and errors do not use: " $0)
  }
  error && /\)\]/ { error = 0 }
  # Names of tests.
  /#\[(tokio::)?test(\(|\])/ { test = 1; next }
  test && match($0, /fn [a-z0-9_]+/) {
    name = substr($0, RSTART + 3, RLENGTH - 3)
    if (length(name) > 60) report(FNR, "the test name has " length(name) " characters: " name)
    test = 0
  }
')
[ -z "$found" ] && exit 0
printf '%s\n' "$found" >&2
die "$(printf '%s\n' "$found" | wc -l) places do not follow CONTRIBUTING.md"
