# shellcheck shell=bash
# Building a base tree of the distribution this machine runs. To be sourced, after lib.sh.

# distribution_sources CODENAME [FOLDER]: the distribution's own package sources as this machine
# has them configured (so its mirror is used), one line each. Third parties' sources are left
# out: only the files an installer writes are read, of them only the suites of this release,
# and nothing that is signed by somebody else's key.
distribution_sources() {
  local codename=$1 apt=${2:-/etc/apt} file
  for file in "$apt/sources.list" "$apt"/sources.list.d/{debian,ubuntu}.sources; do
    [ -r "$file" ] || continue
    case $file in *.sources) deb822_to_lines "$file" ;; *) sed 's/#.*//' "$file" ;; esac
  done | awk -v codename="$codename" '
    $1 != "deb" { next }
    {
      options = ""; at = 2
      if ($2 ~ /^\[/) {
        # Options may hold blanks: they go on to the closing bracket.
        do { options = options (options == "" ? "" : " ") $at } while ($(at++) !~ /\]$/ && at <= NF)
      }
      uri = $at; suite = $(at + 1)
      if (suite != codename && suite != codename "-updates" && suite != codename "-security") next
      if (match(options, /signed-by=[^] ]*/)) {
        key = substr(options, RSTART + 10, RLENGTH - 10)
        if (key !~ /\/(debian|ubuntu)-archive-[^\/]*\.gpg$/) next
        options = " [signed-by=" key "]"
      } else options = ""
      components = ""
      for (i = at + 2; i <= NF; i++) if ($i == "main" || $i == "universe") components = components " " $i
      line = "deb" options " " uri " " suite components
      if (components != "" && !seen[line]++) print line
    }'
}

# deb822_to_lines FILE: stanzas of fields become one line for each address and suite.
deb822_to_lines() {
  awk '
    function flush(   t, u, s, i, j, k, n, m) {
      if (tolower(field["enabled"]) != "no") {
        n = split(field["uris"], u, " "); m = split(field["suites"], s, " ")
        k = field["signed-by"]; sub(/ .*/, "", k)
        for (t = split(field["types"], type, " "); t > 0; t--)
          for (i = 1; i <= n; i++) for (j = 1; j <= m; j++)
            print type[t] (k ~ /^\// ? " [signed-by=" k "]" : "") " " u[i] " " s[j] " " field["components"]
      }
      delete field
    }
    /^#/ { next }
    /^[ \t]*$/ { flush(); next }
    /^[ \t]/ { field[name] = field[name] " " $0; next }
    { name = tolower($0); sub(/:.*/, "", name); value = $0; sub(/^[^:]*:[ \t]*/, "", value); field[name] = value }
    END { flush() }' "$1"
}

# base_tar TAR PACKAGE,PACKAGE,...: a minimal system of this machine's own distribution and
# release with these packages, without documentation, as a tar. Needs root.
base_tar() {
  local tar=$1 packages=$2 sources VERSION_CODENAME=''
  . /etc/os-release
  [ -n "$VERSION_CODENAME" ] || die "/etc/os-release names no release"
  sources=$(distribution_sources "$VERSION_CODENAME")
  # Without sources of its own mmdebstrap takes the release's public mirror.
  local -a from=()
  if [ -n "$sources" ]; then from=(-); fi
  mmdebstrap --quiet --mode=root --variant=minbase --format=tar --include="$packages" \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; : >"$1/etc/machine-id"; : >"$1/etc/resolv.conf"' \
    "$VERSION_CODENAME" "$tar" "${from[@]}" <<<"$sources" >&2
}
