#!/usr/bin/env bash
# docker.sh start|stop|status [--state DIR]
# Makes sure that a Docker engine answers on the usual socket. An engine that already answers
# is used as it is; `stop` stops only an engine that `start` started. `start` prints `started`
# or `running` on stdout.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"

command=${1:-}
state=${KOHAKURIVER_STATE_DIR:-/var/lib/kohakuriver-dev}
case $# in
  1) ;;
  3) [ "$2" = --state ] || die "unknown option: $2"; state=$3 ;;
  *) die "usage: docker.sh start|stop|status [--state DIR]" ;;
esac
case $state in /*) ;; *) state=$PWD/$state ;; esac
# One line: `systemd`, or `process PID START_TIME`. Present only while an engine is ours.
record=$state/docker.started
log=$state/dockerd.log
pid_file=$state/dockerd.pid

has_systemd() { [ -d /run/systemd/system ] && have systemctl; }

read_record() {
  how='' pid='' since=''
  if [ -r "$record" ]; then read -r how pid since <"$record" || true; fi
}
write_record() {
  printf '%s\n' "$*" >"$record.new"
  mv -f "$record.new" "$record"
}

# After `kill -9` or a power cut the pid files stay, and a new engine would wait for, or refuse
# because of, a process that is long something else. A living one is left alone.
remove_stale_pid_file() {
  local file=$1 name=$2 pid=''
  [ -e "$file" ] || return 0
  read -r pid <"$file" || true
  if [ -n "$pid" ] && start_time "$pid" >/dev/null && [ "$(cat "/proc/$pid/comm")" = "$name" ]; then
    return 0
  fi
  rm -f "$file"
}

# Minimal machines have no control groups mounted, and no init that would mount them.
mount_cgroups() {
  mountpoint -q /sys/fs/cgroup && return
  [ -d /sys/fs/cgroup ] && mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null ||
    say "docker: no control groups at /sys/fs/cgroup, limits may not work"
}

engine_up_or_dead() { docker_answers || ! still_runs "$pid" "$since"; }

# launch [dockerd options]: starts dockerd, waits until it answers.
launch() {
  remove_stale_pid_file "$pid_file" dockerd
  remove_stale_pid_file /var/run/docker.pid dockerd
  remove_stale_pid_file /var/run/docker/containerd/containerd.pid containerd
  : >"$log"
  # In a session of its own: a Ctrl-C at the terminal is not for the engine. The lock (9) must
  # not be inherited or it would be held for ever.
  setsid dockerd --pidfile "$pid_file" "$@" </dev/null >>"$log" 2>&1 9>&- &
  pid=$!
  since=$(start_time "$pid") || since=''
  write_record process "$pid" "$since"
  wait_until 30 engine_up_or_dead || true
  docker_answers && still_runs "$pid" "$since"
}

stop_process() {
  still_runs "$pid" "$since" || return 0
  kill -TERM "$pid" 2>/dev/null || true
  wait_until 60 process_gone
}
process_gone() { ! still_runs "$pid" "$since"; }

start_by_hand() {
  have dockerd || die "dockerd is not installed: run scripts/setup.sh"
  mount_cgroups
  if launch; then return; fi
  stop_process || true
  # Without a firewall in the kernel containers run, but reach nothing outside and publish nothing.
  if grep -qiE 'iptables|nftables|ip6tables' "$log"; then
    say "docker: no working iptables here, starting without (containers will have no outside network)"
    mv -f "$log" "$log.first"
    if launch --iptables=false --ip6tables=false --ip-masq=false; then return; fi
    stop_process || true
  fi
  rm -f "$record"
  say "docker: the last lines of $log:"
  tail -n 20 "$log" >&2
  die "dockerd did not answer within 30 seconds"
}

start() {
  if docker_answers; then
    echo running
    return
  fi
  is_root || exec_as_root
  mkdir -p "$state"
  exec 9>"$state/docker.lock"
  flock 9
  if docker_answers; then # someone else was quicker
    echo running
    return
  fi
  if has_systemd; then
    say "docker: starting the service"
    systemctl start docker || die "systemctl start docker failed: see journalctl -u docker"
    wait_until 30 docker_answers || die "docker was started but does not answer: see journalctl -u docker"
    write_record systemd
  else
    say "docker: starting dockerd (log: $log)"
    start_by_hand
  fi
  echo started
}

stop() {
  [ -e "$record" ] || {
    say "docker: nothing to stop, no engine was started from here"
    return
  }
  is_root || exec_as_root
  exec 9>"$state/docker.lock"
  flock 9
  read_record
  case $how in
    systemd)
      say "docker: stopping the service"
      # The socket unit would start it again at the next look at /var/run/docker.sock.
      systemctl stop docker.socket docker.service
      ;;
    process)
      say "docker: stopping dockerd ($pid)"
      stop_process || die "dockerd ($pid) did not stop within 60 seconds: see $log"
      ;;
    *) say "docker: $record does not read well, leaving the engine alone" ;;
  esac
  rm -f "$record"
}

status() {
  if [ -S "$DOCKER_SOCKET" ] && [ ! -w "$DOCKER_SOCKET" ]; then exec_as_root; fi
  read_record
  docker_answers || {
    echo "not running"
    return 1
  }
  case $how in
    systemd) echo "running, service started from here" ;;
    process)
      if still_runs "$pid" "$since"; then
        echo "running, dockerd $pid started from here"
      else
        echo "running, not started from here"
      fi
      ;;
    *) echo "running, not started from here" ;;
  esac
}

exec_as_root() {
  have sudo || die "this needs root and there is no sudo: run it as root"
  exec sudo "$TOP/scripts/docker.sh" "$command" --state "$state"
}

case $command in
  start | stop | status) "$command" ;;
  *) die "usage: docker.sh start|stop|status [--state DIR]" ;;
esac
