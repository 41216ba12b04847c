#!/usr/bin/env bash
# down.sh [--all]
# Stops the kohakuriver that up.sh started. Instances go on running, and the next `make up`
# finds them again. With --all they are stopped too, their disks stay.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
. "$(dirname -- "$0")/cluster.sh"

all=0
case "${1:-}" in
  '') ;;
  --all) all=1 ;;
  *) die "usage: down.sh [--all]" ;;
esac
require_root "$TOP/scripts/down.sh" "$@"

cluster_is_gone() { ! still_runs "$pid" "$since"; }
stop_cluster() {
  if ! cluster_runs; then
    rm -f "$PID_FILE"
    say "kohakuriver was not running (or not started from here)"
    return
  fi
  kill -TERM "$pid" 2>/dev/null || true
  wait_until 30 cluster_is_gone || die "kohakuriver ($pid) did not stop within 30 seconds: see $LOG"
  rm -f "$PID_FILE"
  say "stopped kohakuriver ($pid)"
}

stop_instances() {
  local id
  for id in $(running_instances); do
    docker_api POST "/containers/$id/stop?t=10" >/dev/null || say "instance ${id:0:12} did not stop"
  done
}

stop_cluster
if [ "$all" = 1 ]; then stop_instances; fi

# An engine started by hand takes its containers with it, so it stays while there are any.
if docker_answers; then
  ours=$(running_instances | wc -l)
  any=$(docker_api GET /containers/json | grep -oE '"Id":"[0-9a-f]{64}"' | wc -l || true)
  if [ "$ours" -gt 0 ]; then
    say "$ours instance(s) still run, and so does Docker: \`make down ARGS=--all\` stops them (disks stay)"
    exit 0
  elif [ "$any" -gt 0 ]; then
    say "Docker still runs: it has $any container(s) that are not ours"
    exit 0
  fi
fi
"$TOP/scripts/docker.sh" stop --state "$STATE_DIR"
if docker_answers; then say "Docker still runs: it was not started from here"; fi
