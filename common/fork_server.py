"""A Python process that has imported torch, transformers and vLLM, and forks itself on request.

A run is a serial chain of some ten processes, each of which would import the same 7 to 25 s of Python before it does
anything. The fork server imports once, and every process of the run is a fork of it, requested by the client
common/forked_python.py. It ends with its parent, and its forks end with it and with their clients.

    python -m common.fork_server SOCKET MODULE [MODULE ...]

multiprocessing has a fork server too, for functions of one program: it passes on neither environment nor working
directory, and no signals. Only for the CPU platform: a process that has used a GPU must not be forked.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from common.forked_python import FORK, PYTHON_VARIABLE
from common.processes import end_with_parent

TITLE = 200  # characters
MOST_FILES = 253  # that the kernel passes in one message
exit_status = 1  # of a fork, until it has run to its end: that of an uncaught exception


class Fork(NamedTuple):
    """A process, what becomes readable when it ends, and the connection to its client."""

    pid: int
    pidfd: io.FileIO
    client: socket.socket


def serve(path: str) -> list[int]:
    """Fork for each client of the socket at `path`; returns only in a fork, with the files that its client sent."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # who sees it can connect
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        key, _ = selector.select()[0]  # one at a time, as `finish` takes two out of the selector
        if key.fileobj is not listener:
            finish(key.data, selector)
            continue
        client, _ = listener.accept()
        _, files, _, _ = socket.recv_fds(client, 1, MOST_FILES)
        if not files:  # the client was killed before it sent its request
            client.close()
        elif fork(client, files, selector) == 0:
            return files


def fork(client: socket.socket, files: list[int], selector: selectors.BaseSelector) -> int:
    """Fork a process and watch it and its client; returns 0 in the fork, else its id."""
    pid = os.fork()
    if pid == 0:
        os.setsid()  # Ray ends a dead driver's whole process group, which must not be the server's
        end_with_parent()
        opened: list[Any] = [client, selector, *(key.fileobj for key in selector.get_map().values())]
        for each in opened:
            each.close()
        return pid
    for fd in files:
        os.close(fd)
    process = Fork(pid, io.FileIO(os.pidfd_open(pid)), client)
    for watched in (process.pidfd, client):
        selector.register(watched, selectors.EVENT_READ, process)
    with contextlib.suppress(OSError):  # of a killed client, which `finish` handles
        socket.send_fds(client, [b"."], [process.pidfd.fileno()])
    return pid


def finish(process: Fork, selector: selectors.BaseSelector) -> None:
    """Send the exit status of a process, as a shell gives it, to its client; a killed client's process is killed."""
    for watched in (process.pidfd, process.client):
        selector.unregister(watched)
    os.kill(process.pid, signal.SIGKILL)  # without effect on a process that has ended
    _, status = os.waitpid(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError), process.pidfd, process.client:
        process.client.send(str(code if code >= 0 else 128 - code).encode())


def move_files(received: Sequence[int], wanted: list[int]) -> None:
    """Give the received descriptors the numbers that they have in the client."""
    above = max(wanted, default=0) + 1
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(parked, wanted, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def become(request_file: int, *files: int) -> None:
    """Turn this fork into the requested process, and run it."""
    with open(request_file, "rb") as file:
        request = json.load(file)
    move_files(files, request["files"])
    arguments = without_interpreter_flags(request["arguments"])
    set_title(arguments)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[PYTHON_VARIABLE] = sys.executable
    os.chdir(request["folder"])
    tempfile.tempdir = None  # forget the server's
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    multiprocessing.set_executable(FORK)
    set_threads()
    run(arguments)


def set_threads() -> None:
    """Give torch, which read the server's OMP_NUM_THREADS when it was imported, the fork's."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "torch" in sys.modules and threads.isdigit():
        sys.modules["torch"].set_num_threads(int(threads))


def set_title(arguments: list[str]) -> None:
    """Show in `ps` what a fork is, in place of its server's arguments; before its environment changes.

    Ray sets the titles of its workers, which are scripts, and by another way that this would block.
    """
    if "setproctitle" in sys.modules and arguments[0] in ("-c", "-m"):
        sys.modules["setproctitle"].setproctitle(" ".join(["python", *arguments])[:TITLE])


def without_interpreter_flags(arguments: list[str]) -> list[str]:
    """Drop what multiprocessing puts before `-c`, such as -B and -X: a fork has its server's flags."""
    start = 0
    while arguments[start].startswith("-") and arguments[start] not in ("-c", "-m"):
        start += 2 if arguments[start] in ("-X", "-W") else 1
    return arguments[start:]


def run(arguments: list[str]) -> None:
    """Do what `python arguments` does with a command, a module or a script."""
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def leave_early() -> None:
    """End a fork before Python takes its modules apart, which takes time and has Triton list all its types as leaks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # Ray has closed it, or nobody reads it
            stream.flush()
    os._exit(exit_status)


def fork_forever(path: str, *modules: str) -> None:
    """Import modules, then serve at the socket `path`; returns only in a fork that has run."""
    global exit_status
    atexit.register(leave_early)  # the first that is registered runs last
    end_with_parent()
    os.close(os.pidfd_open(os.getpid()))  # OSError here, before any client waits, where the kernel has no pidfd
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # keeps the collector from touching, and so copying, the pages that forks share
    try:
        become(*serve(path))
        exit_status = 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            exit_status = error.code or 0
        raise


if __name__ == "__main__":
    fork_forever(*sys.argv[1:])
