"""A command that starts processes of its own: alone in its folder, and their output in a log."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common.command import Failure
from common.locks import run_lock
from common.processes import ProcessRecord, become_subreaper
from common.progress import cause

RECORD_SECONDS = 2.0  # between looks at which processes were started


@contextlib.contextmanager
def one_driver(folder: Path) -> Iterator[None]:
    """Hold a folder: end the stale processes of an earlier start, and at the end those of this one."""

    def keep_record() -> None:
        while not ended.wait(RECORD_SECONDS):
            record.update()

    with run_lock(folder):
        record, ended = ProcessRecord(folder), threading.Event()
        if stale := record.end_stale():
            print(f"  ended {stale} stale processes of an earlier start", flush=True)
        become_subreaper()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        keeper = threading.Thread(target=keep_record, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ended.set()
            keeper.join()
            record.end_descendants()


def redirect(out: int, errors: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(errors, 2)


@contextlib.contextmanager
def output_into(log_path: Path) -> Iterator[TextIO]:
    """Send everything that this process prints into a log; yield a file that still reaches the terminal.

    By descriptor: Ray's and vLLM's C++ parts print too.

    Raises:
        Failure: with the cause, for any error but ValueError and OSError.
    """
    terminal, errors = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    start = os.lseek(log, 0, os.SEEK_END)
    redirect(log, log)
    try:
        yield terminal
    except (ValueError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        raise Failure(f"failed: {cause(log_path, start)}\n  see {log_path}") from error
    finally:
        redirect(terminal.fileno(), errors.fileno())
