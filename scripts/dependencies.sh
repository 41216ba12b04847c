#!/usr/bin/env bash
# Checks the dependencies against deny.toml with nothing but Cargo: licences, what is banned, where
# they come from, one version of the cryptography. Advisories are asked by scripts/advisories.sh.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
add_cargo_to_path
have cargo || die "cargo is missing: run scripts/setup.sh"

policy=${1:-deny.toml}
wrong=0
complain() {
  say "dependencies: $*"
  wrong=1
}

# entries SECTION KEY: the words in quotes of a list in deny.toml, one a line.
entries() {
  awk -v section="[$1]" -v key="$2" '
    /^\[/ { inside = ($0 == section); next }
    inside && $0 ~ "^" key " = \\[" { list = 1; next }
    /^\]/ { list = 0 }
    inside && list && match($0, /"[^"]+"/) { print substr($0, RSTART + 1, RLENGTH - 2) }
  ' "$policy"
}

# is_allowed EXPRESSION: whether the allowed licences fulfil what a package says of itself. Each
# licence becomes 1 or 0, AND and OR what they are in arithmetic.
is_allowed() {
  local sum='' word
  local text=${1//\// OR }
  text=${text//(/ ( }
  text=${text//)/ ) }
  # An exception belongs to the licence before it.
  text=${text// WITH /+WITH+}
  for word in $text; do
    case $word in
      '(' | ')') sum+=$word ;;
      AND) sum+='&&' ;;
      OR) sum+='||' ;;
      *[!A-Za-z0-9.+-]*) return 1 ;;
      *) if [ -n "${allowed[${word//+WITH+/ WITH }]:-}" ]; then sum+=1; else sum+=0; fi ;;
    esac
  done
  [ -n "$sum" ] && ((sum))
}

declare -A allowed=() banned=()
while read -r licence; do allowed[$licence]=1; done < <(entries licenses allow)
while read -r name; do banned[$name]=1; done < <(entries bans deny)
[ "${#allowed[@]}" -gt 0 ] && [ "${#banned[@]}" -gt 0 ] || die "$policy does not read well"

packages=$(cargo tree --workspace --locked --edges normal,build,dev --prefix none --no-dedupe \
  --format '{p}|{l}' | grep . | sort -u)
count=0
while IFS='|' read -r package licence; do
  read -r name version rest <<<"$package"
  # Ours have a path. What we patched keeps its maker's licence, and is looked at too.
  case $rest in *"($TOP/vendor/"*) ;; *"($TOP"*) continue ;; esac
  count=$((count + 1))
  if [ -n "${banned[$name]:-}" ]; then
    complain "$name is banned; what needs it: cargo tree --workspace --invert $name"
  fi
  is_allowed "$licence" || complain "$name $version has the licence '$licence', which $policy does not allow"
done <<<"$packages"
[ "$count" -gt 50 ] || die "cargo tree told of $count packages only"

one=$(grep -cE '^aws-lc-rs v' <<<"$(cut -d' ' -f1,2 <<<"$packages" | sort -u)" || true)
[ "$one" = 1 ] || complain "there are $one versions of aws-lc-rs, not one"
if grep -qE '^source = "(git|sparse)\+' Cargo.lock; then
  complain "Cargo.lock names a source that is not the usual one"
fi
[ "$wrong" = 0 ] || exit 1
say "dependencies: $count packages are as $policy allows"
