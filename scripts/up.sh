#!/usr/bin/env bash
# From a clone to a VPS one can log into: installs what is missing, builds, starts the host and
# a runner on this machine, creates the VPS `first`. Run again, it keeps what runs.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
. "$(dirname -- "$0")/cluster.sh"
cd "$TOP"
require_root "$TOP/scripts/up.sh" "$@"

# Copied under another name first and then renamed: whoever starts it meanwhile gets the old or
# the new one, never half of one, and a running one is not disturbed.
install_executable() {
  local place=/usr/local/bin
  if [ ! -w "$place" ]; then
    say "$place cannot be written: using $executable"
    return
  fi
  if ! cmp -s "$executable" "$place/kohakuriver"; then
    install -m 755 "$executable" "$place/.kohakuriver.new"
    mv -f "$place/.kohakuriver.new" "$place/kohakuriver"
    say "installed $place/kohakuriver"
  fi
  executable=$place/kohakuriver
}

start_cluster() {
  if cluster_runs; then
    say "kohakuriver runs already ($pid)"
    if ! cmp -s "/proc/$pid/exe" "$executable"; then
      say "  it is an earlier build: make down && make up takes the new one, instances stay"
    fi
  elif host_answers; then
    say "port $PORT is answered by a kohakuriver that was not started from here: using that"
    return
  else
    mkdir -p "$DATA_DIR"
    # In a session of its own, so that it outlives the terminal.
    setsid "$executable" up --data-dir "$DATA_DIR" --port "$PORT" --ssh-port "$SSH_PORT" \
      </dev/null >>"$LOG" 2>&1 &
    pid=$!
    since=$(start_time "$pid") || since=''
    printf '%s %s\n' "$pid" "$since" >"$PID_FILE.new"
    mv -f "$PID_FILE.new" "$PID_FILE"
    say "starting kohakuriver ($pid, log: $LOG)"
  fi
  wait_until 60 answers_or_dead || true
  if ! cluster_runs || ! host_answers; then
    say "the last lines of $LOG:"
    tail -n 20 "$LOG" >&2 || true
    die "kohakuriver does not answer on port $PORT"
  fi
}
answers_or_dead() { host_answers || ! still_runs "$pid" "$since"; }
node_is_online() { api nodes | grep -q '"status":"online"'; }
has_first() { api vps | grep -qE '"name": ?"first"'; }

create_first() {
  if has_first; then return; fi
  wait_until 30 node_is_online || say "no node has come online yet, trying nevertheless"
  # As the person who asked: the SSH key it may make belongs into their home.
  as_invoking_user env KOHAKURIVER_PORT="$PORT" KOHAKURIVER_SSH_PROXY_PORT="$SSH_PORT" \
    "$executable" vps create --name first --ssh ||
    die "the VPS was not created; the log is $LOG"
}

scripts/setup.sh --for up
scripts/docker.sh start --state "$STATE_DIR" >/dev/null
add_cargo_to_path
as_invoking_user cargo build --release --locked -p kohakuriver
executable=$(target_dir)/$(host_triple)/release/kohakuriver
install_executable
start_cluster
create_first

command=$executable
if [ "$(command -v kohakuriver || true)" = "$executable" ]; then command=kohakuriver; fi
say
say "Ready. Get in with:"
# Plain ssh offers the usual keys by itself, but not one that was made for this VPS.
id=$(api vps | grep -oE '"task_id":"[0-9]+"[^}]*"name":"first"' | grep -oE '[0-9]{6,}' | head -n1 || true)
key=$(invoking_home)/.ssh/id-kohakuriver-$id
identity=''
if [ -n "$id" ] && as_root test -e "$key"; then identity="-i $key "; fi
printf '  %s ssh first\n  ssh %s-J %s@127.0.0.1:%s root@first\n' "$command" "$identity" "$(invoking_user)" "$SSH_PORT"
