#!/usr/bin/env python3
"""Stands in for `python`, with a process that is a fork of the fork server (common/fork_server.py).

    JUSTRL_FORK_SERVER=SOCKET common/forked_python.py ARGUMENTS

Its process gets its arguments, environment, working directory, open files and signals; it exits with that process's
status. Without a server it becomes an ordinary Python. Ray takes it as the runtime environment's `py_executable`,
multiprocessing as its executable. Standard library only, so that it starts quickly.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping

SOCKET_VARIABLE = "JUSTRL_FORK_SERVER"
PYTHON_VARIABLE = "JUSTRL_PYTHON"
FORK = os.path.abspath(__file__)  # takes the place of the Python executable
STATUS_BYTES = 16
OPEN_FILES = "/proc/self/fd"


def py_executable(variables: Mapping[str, str]) -> str | None:
    """Return the `py_executable` of Ray's workers where `variables` set a fork server, else None."""
    if variables.get(SOCKET_VARIABLE, "0") == "0":
        return None
    return shlex.join([variables.get(PYTHON_VARIABLE, sys.executable), "-S", "-E", FORK])


def connect() -> socket.socket:
    """Connect to the fork server; where there is none, become an ordinary Python."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        server.connect(os.environ[SOCKET_VARIABLE])
    except (KeyError, OSError):
        python = os.environ.get(PYTHON_VARIABLE, sys.executable)
        os.execv(python, [python, *sys.argv[1:]])
    return server


def pass_signals_on(pidfd: int) -> None:
    def send(number: int, frame) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, send)


def main() -> int:
    # The listing has a file open itself, which is closed by now.
    files = [fd for fd in map(int, os.listdir(OPEN_FILES)) if os.path.lexists(f"{OPEN_FILES}/{fd}")]
    server = connect()
    request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "files": files}
    request_file = os.memfd_create("request")  # a file, as a request may be longer than a message
    os.pwrite(request_file, json.dumps(request).encode(), 0)
    socket.send_fds(server, [b"."], [request_file, *files])
    _, process, _, _ = socket.recv_fds(server, 1, 1)
    if process:
        pass_signals_on(process[0])
    return int(server.recv(STATUS_BYTES) or 1)  # no status: the server was killed, and its forks with it


if __name__ == "__main__":
    sys.exit(main())
