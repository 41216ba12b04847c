# shellcheck shell=bash
# What up.sh and down.sh both know about the cluster on this machine. To be sourced, after lib.sh.

DATA_DIR=${KOHAKURIVER_DATA_DIR:-/var/lib/kohakuriver}
PORT=${KOHAKURIVER_PORT:-8000}
SSH_PORT=${KOHAKURIVER_SSH_PROXY_PORT:-8002}
STATE_DIR=${KOHAKURIVER_STATE_DIR:-/var/lib/kohakuriver-dev}
# shellcheck disable=SC2034 # the scripts that source this use it
LOG=$DATA_DIR/up.log
# One line: PID START_TIME.
PID_FILE=$DATA_DIR/up.pid

# require_root SCRIPT ARGUMENTS: starts the script once more, behind sudo. sudo forgets the
# environment, so what matters of it is named.
require_root() {
  is_root && return
  have sudo || die "this needs root and there is no sudo: run it as root"
  exec sudo env KOHAKURIVER_DATA_DIR="$DATA_DIR" KOHAKURIVER_PORT="$PORT" \
    KOHAKURIVER_SSH_PROXY_PORT="$SSH_PORT" KOHAKURIVER_STATE_DIR="$STATE_DIR" \
    CARGO_TARGET_DIR="$(target_dir)" "$@"
}

read_pid() {
  pid='' since=''
  if [ -r "$PID_FILE" ]; then read -r pid since <"$PID_FILE" || true; fi
}
cluster_runs() { read_pid && still_runs "$pid" "$since"; }
# The machine's own proxy settings are not meant for itself.
api() { curl -fsS --noproxy '*' --max-time 5 "http://127.0.0.1:$PORT/api/$1" 2>/dev/null; }
host_answers() { api health >/dev/null; }

# The ids of running containers that are instances of ours.
running_instances() {
  docker_answers || return 0
  docker_api GET '/containers/json?filters=%7B%22label%22%3A%5B%22kohakuriver.managed%3Dtrue%22%5D%7D' |
    grep -oE '"Id":"[0-9a-f]{64}"' | cut -d'"' -f4 || true
}
