# shellcheck shell=bash
# What the scripts next to this file share. To be sourced, never run.

# sbin is where dockerd, sshd and ip live, and an ordinary user's PATH leaves it out.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
TOP=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
DOCKER_SOCKET=/var/run/docker.sock

# Talk goes to stderr: stdout belongs to whatever a script answers.
say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# Runs a command as root: directly, or through sudo.
as_root() {
  if is_root; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    die "this needs root and there is no sudo: run it as root"
  fi
}

# The person who typed the command, also behind sudo. What is built and every key that is
# made belongs to them and not to root.
invoking_user() {
  if is_root && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    printf '%s\n' "$SUDO_USER"
  else
    id -un
  fi
}
invoking_home() {
  if [ "$(invoking_user)" = "$(id -un)" ]; then
    printf '%s\n' "${HOME:-/root}"
  else
    getent passwd "$SUDO_USER" | cut -d: -f6
  fi
}
as_invoking_user() {
  local user
  user=$(invoking_user)
  if [ "$user" = "$(id -un)" ]; then
    "$@"
  else
    sudo -u "$user" env HOME="$(invoking_home)" PATH="$PATH" "$@"
  fi
}

# rustup puts cargo into the user's home, where sudo's own PATH does not look.
add_cargo_to_path() {
  have cargo && return
  local dir
  dir="$(invoking_home)/.cargo/bin"
  if [ -x "$dir/cargo" ]; then PATH=$dir:$PATH; fi
}
# The workspace names its build target, so the executable lies below the target's own folder.
host_triple() { as_invoking_user rustc -vV | sed -n 's/^host: //p'; }
target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$TOP/target}"; }

# A process is named by pid AND start time, so a number used again is never mistaken for it.
# Prints the start time; fails when the process is gone or only waits to be reaped.
start_time() {
  local stat state rest
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # The name is in parentheses and may hold anything, so cut after the last one.
  # shellcheck disable=SC2086 # the fields are words
  set -- ${stat##*) }
  state=$1 rest=${20}
  case $state in Z | X) return 1 ;; esac
  printf '%s\n' "$rest"
}
# still_runs PID START_TIME
still_runs() { [ -n "${1:-}" ] && [ -n "${2:-}" ] && [ "$(start_time "$1" || true)" = "$2" ]; }
# wait_until SECONDS COMMAND...: tries five times a second.
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# docker_api METHOD PATH [curl options]: the engine itself, since its command line may be
# absent (Debian 13 packs it apart).
docker_api() {
  local method=$1 path=$2
  shift 2
  curl -fsS --unix-socket "$DOCKER_SOCKET" -X "$method" "$@" "http://docker$path"
}
docker_answers() {
  [ -S "$DOCKER_SOCKET" ] &&
    [ "$(docker_api GET /_ping --max-time 5 2>/dev/null || true)" = OK ]
}
