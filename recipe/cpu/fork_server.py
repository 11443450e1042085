#!/usr/bin/env python3
"""Python processes that start with torch, transformers and vLLM already imported.

A run is a serial chain of some ten processes, each of which imports the same 15 to 25 s of Python before it does
anything. Here one server imports once, and every process of the run is a fork of it:

    python -m recipe.cpu.fork_server SOCKET MODULE [MODULE ...]       the server; ends with its parent
    JUSTRL_FORK_SERVER=SOCKET recipe/cpu/fork_server.py ARGUMENTS     stands for `python ARGUMENTS`

The second form asks the server for a process with its own arguments, environment, folder and open files, passes signals
on, and ends as that process ends; without a server it starts a cold Python. Ray takes it as the runtime environment's
`py_executable`, multiprocessing as its executable. Standard library only, and quick to start.

Only for the CPU platform: a process that has touched a GPU must not be forked.
"""

import contextlib
import json
import os
import signal
import socket
import sys

SOCKET_VARIABLE = "JUSTRL_FORK_SERVER"
PYTHON_VARIABLE = "JUSTRL_PYTHON"
LENGTH_BYTES = 8
MOST_FILES = 250  # the kernel passes at most 253 file descriptors in one message
FIRST_FREE_FD = 512  # descriptors are parked above this while they are moved into place


# ---------------------------------------------------------------- the side that asks


def run(arguments: list[str]) -> int:
    """Run `python arguments` as a fork of the server and return its exit status."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(os.environ[SOCKET_VARIABLE])
    except (KeyError, OSError):
        python = os.environ.get(PYTHON_VARIABLE, sys.executable)
        os.execv(python, [python, *arguments])
    files = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd != server.fileno() and is_open(fd)]
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "files": files}
    body = json.dumps(request).encode()
    socket.send_fds(server, [len(body).to_bytes(LENGTH_BYTES, "big")], files)
    server.sendall(body)
    pid = int.from_bytes(receive(server, LENGTH_BYTES), "big")
    if not pid:  # the server died first
        return 1
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, frame: kill(pid, received))
    status = receive(server, LENGTH_BYTES)
    if not status:  # the server is gone
        kill(pid, signal.SIGKILL)
        return 1
    return int.from_bytes(status, "big")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def receive(connection: socket.socket, length: int) -> bytes:
    """Read exactly `length` bytes; b"" if the other side closes first."""
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            return b""
        data += part
    return data


# ---------------------------------------------------------------- the side that forks


def serve(path: str) -> dict:
    """Fork a process for each request on the socket at `path`; returns only in a forked process, its request."""
    import selectors

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, files = read_request(connection)
                if request and fork(connection, files, selector) == 0:
                    move_files(files, request["files"])
                    return request
            elif key.data["pidfd"] == key.fileobj:
                report_end(key.data, selector)
            else:  # the client was killed: its process goes with it
                kill(key.data["pid"], signal.SIGKILL)
                selector.unregister(key.fileobj)


def read_request(connection: socket.socket) -> tuple[dict | None, list[int]]:
    """Read a request and the open files that came with it; None of a client that was killed while it asked."""
    files: list[int] = []
    try:
        length, files, _, _ = socket.recv_fds(connection, LENGTH_BYTES, MOST_FILES)
        return json.loads(receive(connection, int.from_bytes(length, "big"))), files
    except (OSError, ValueError):
        connection.close()
        for fd in files:
            os.close(fd)
        return None, []


def fork(connection: socket.socket, files: list[int], selector) -> int:
    """Fork a process for one request; returns 0 in it, and its id in the server, which watches it."""
    import selectors

    pid = os.fork()
    if pid == 0:
        os.setsid()  # Ray ends a dead driver's whole process group, which must not be the server's
        close_all(selector)
        connection.close()
        return pid
    for fd in files:
        os.close(fd)
    data = {"pid": pid, "pidfd": os.pidfd_open(pid), "connection": connection}
    selector.register(data["pidfd"], selectors.EVENT_READ, data)
    selector.register(connection, selectors.EVENT_READ, data)
    with contextlib.suppress(OSError):  # a dead client is noticed when its end of the socket is read
        connection.sendall(pid.to_bytes(LENGTH_BYTES, "big"))
    return pid


def close_all(selector) -> None:
    """Close what the server has open, in a fork of it."""
    opened = [key.fileobj for key in selector.get_map().values()]
    selector.close()
    for each in opened:
        if isinstance(each, int):
            os.close(each)
        else:
            each.close()


def report_end(data: dict, selector) -> None:
    """Reap a process that has ended and send its exit status, as a shell gives it, to its client."""
    _, status = os.waitpid(data["pid"], 0)
    code = os.waitstatus_to_exitcode(status)
    for each in (data["pidfd"], data["connection"]):
        with contextlib.suppress(KeyError):
            selector.unregister(each)
    os.close(data["pidfd"])
    with contextlib.suppress(OSError), data["connection"] as connection:
        connection.sendall((code if code >= 0 else 128 - code).to_bytes(LENGTH_BYTES, "big"))


def move_files(received: list[int], wanted: list[int]) -> None:
    """Give the received descriptors the numbers they had where they come from."""
    import fcntl

    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_FREE_FD) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(parked, wanted, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def become(request: dict) -> None:
    """Turn this fork into the process that was asked for, and run it."""
    import multiprocessing
    import runpy
    import tempfile

    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # the server's own, remembered
    os.chdir(request["folder"])
    multiprocessing.set_executable(os.path.abspath(__file__))
    arguments = without_interpreter_flags(request["arguments"])
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def without_interpreter_flags(arguments: list[str]) -> list[str]:
    """Drop what multiprocessing puts before `-c`, such as -B and -X: a fork has its server's flags."""
    start = 0
    while arguments[start].startswith("-") and arguments[start] not in ("-c", "-m"):
        start += 2 if arguments[start] in ("-X", "-W") else 1
    return arguments[start:]


def main() -> None:
    import ctypes
    import gc
    import importlib

    path, *modules = sys.argv[1:]
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # keeps the collector from touching, and so copying, the pages that forks share
    become(serve(path))


if __name__ == "__main__":
    if __package__:  # started with -m: the server
        main()
    else:
        sys.exit(run(sys.argv[1:]))
