# How run_justrl.sh, which sources this, runs a stage so that signals reach it, and one fork server for all stages.
# shellcheck shell=bash

# Paths of sockets may have 107 bytes; see common/processes.py, which does the same for a stage on its own.
if [ "$(printf %s "${TMPDIR:-}" | wc -c)" -gt 40 ] || [ ! -d "${TMPDIR:-/tmp}" ] || [ ! -w "${TMPDIR:-/tmp}" ]; then
  echo "note: TMPDIR=$TMPDIR is too long for sockets, or no folder that can be written to; /tmp is used" >&2
  export TMPDIR=/tmp
fi

# Runs a command in the background, for bash waits for one in the foreground before it sees a signal, and in a process
# group of its own (set -m), to which signals are passed on.
child=""
run_stage() {
  set -m
  "$@" &
  child=$!
  set +m
  wait "$child"
}

# pass_on SIGNAL STATUS
pass_on() {
  trap '' INT TERM HUP
  [ -z "$child" ] || kill -s "$1" -- "-$child" 2>/dev/null || true
  while [ -n "$child" ] && kill -0 -- "-$child" 2>/dev/null; do sleep 0.2; done
  exit "$2"
}
trap 'pass_on INT 130' INT
trap 'pass_on TERM 143' TERM
trap 'pass_on HUP 129' HUP

# start_fork_server LOG: it imports while the data is prepared. The kernel ends it with this script; a session of its
# own keeps a Ctrl-C from ending it before the stage that it serves.
start_fork_server() {
  fork_folder=$(mktemp -d -t justrl-fork-XXXX)
  setsid python -m recipe.cpu.environment "$fork_folder/socket" >"$1" 2>&1 &
  fork_server=$!
  trap 'kill "$fork_server" 2>/dev/null || true; rm -rf "$fork_folder"' EXIT
}

# Waits until the server listens, if there is one. If it exited instead, each stage starts its own and reports why it fails.
use_fork_server() {
  [ -n "${fork_server:-}" ] || return 0
  while [ ! -S "$fork_folder/socket" ] && kill -0 "$fork_server" 2>/dev/null; do sleep 0.2; done
  [ ! -S "$fork_folder/socket" ] || export JUSTRL_FORK_SERVER="$fork_folder/socket"
}
