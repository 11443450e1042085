# How run_justrl.sh, which sources this, runs a stage so that signals reach it, and one fork server for all stages.
# shellcheck shell=bash

# Paths of sockets may have 107 bytes; see common/processes.py, which does the same for a stage on its own.
if [ "$(printf %s "${TMPDIR:-}" | wc -c)" -gt 40 ] || [ ! -d "${TMPDIR:-/tmp}" ] || [ ! -w "${TMPDIR:-/tmp}" ]; then
  echo "note: TMPDIR=${TMPDIR:-/tmp} is too long for sockets, or no folder that can be written to; /tmp is used" >&2
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

# wait_while WHAT COMMAND...: waits as long as the command succeeds, and prints every 20 s what it waits for.
wait_while() {
  local what="$1" start="$SECONDS" said="$SECONDS"
  shift
  while "$@" 2>/dev/null; do
    sleep 0.2
    [ $((SECONDS - said)) -lt 20 ] || { said="$SECONDS" && echo "  $what ... $((SECONDS - start)) s"; }
  done
}

# pass_on SIGNAL STATUS
pass_on() {
  trap '' INT TERM HUP
  if [ -n "$child" ]; then
    kill -s "$1" -- "-$child" 2>/dev/null || true
    wait_while "ending the stage's processes" kill -0 -- "-$child"
  fi
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

fork_server_starts() { [ ! -S "$fork_folder/socket" ] && kill -0 "$fork_server"; }

# Waits until the server listens, if there is one. If it exited instead, each stage starts its own and reports why it fails.
use_fork_server() {
  [ -n "${fork_server:-}" ] || return 0
  wait_while "importing torch, vLLM and transformers, once for all stages" fork_server_starts
  [ ! -S "$fork_folder/socket" ] || export JUSTRL_FORK_SERVER="$fork_folder/socket"
}
