"""Compare two formulas with math-verify, in worker processes with limits that are killed at their deadline.

Another comparison may stand behind the same wall: a script that ends in `work(judge)`, and `Pool(script, answers)`.
"""

import atexit
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).resolve()
# What its worker may say; anything else is a crash.
ANSWERS = ("equivalent", "wrong", "unparsable", "unusable_truth")
# An honest comparison takes milliseconds; the slowest of 1,646 golds against a wrong one took 5 s unprotected.
# Of processor time: on a loaded machine an honest one would miss a deadline by the clock.
DEADLINE_SECONDS = 3.0
PATIENCE_SECONDS = 30.0  # by the clock, for a worker that waits for something
START_SECONDS = 120.0
WORKER_BYTES = 2 * 2**30
WORKERS = max(1, min(4, os.cpu_count() or 1))


class Worker:
    """A process that compares two formulas; killed at its deadline."""

    def __init__(self, script: Path, answers: tuple[str, ...]):
        self.answers = answers
        command = [sys.executable, "-I", str(script)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **pipes, bufsize=0, cwd="/", start_new_session=True)
        if self._line(START_SECONDS) != "ready":
            self.end()
            raise OSError(f"the worker {script.name} did not start; is what it imports installed?")

    def _line(self, seconds: float) -> str | None:
        """Return the worker's next line; None if it takes longer, "" if the worker is dead."""
        ready = select.poll()  # not select: a Ray actor may have more than 1,024 files open
        ready.register(self.process.stdout, select.POLLIN)
        if not ready.poll(1000 * seconds):
            return None
        return self.process.stdout.readline().decode().strip()

    def ask(self, answer: str, truth: str) -> str:
        try:
            self.process.stdin.write(json.dumps([answer, truth]).encode() + b"\n")
        except OSError:
            return "crashed"
        outcome = self._line(PATIENCE_SECONDS)
        if outcome in self.answers:
            return outcome
        late = outcome is None or self.process.wait(PATIENCE_SECONDS) == -signal.SIGPROF
        return "timed_out" if late else "crashed"

    def end(self) -> None:
        with self.process:  # closes its pipes and waits for it
            self.process.kill()


class Pool:
    """Workers that start when they are needed, for any number of threads; at most WORKERS at once."""

    def __init__(self, script: Path = SCRIPT, answers: tuple[str, ...] = ANSWERS):
        self.script, self.answers = script, answers
        self.free = threading.BoundedSemaphore(WORKERS)
        self.idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self.owner = os.getpid()
        self.started = False

    def ask(self, answer: str, truth: str) -> str:
        """Compare two formulas in a worker; the clock starts when the worker has the question."""
        if os.getpid() != self.owner:
            self.__init__(self.script, self.answers)  # a fork shares its parent's pipes and must not use them
        with self.free:
            try:
                worker = self._worker()
            except OSError:
                if not self.started:
                    raise  # it never worked, so every formula would be wrong for ever
                return "crashed"
            self.started = True
            outcome = worker.ask(answer, truth)
            if outcome in ("timed_out", "crashed"):
                worker.end()
            else:
                self.idle.put(worker)
            return outcome

    def _worker(self) -> Worker:
        while True:
            try:
                worker = self.idle.get_nowait()
            except queue.Empty:
                return Worker(self.script, self.answers)
            if worker.process.poll() is None:
                return worker
            worker.end()

    def end(self) -> None:
        """End all idle workers; one at work ends by itself at its deadline."""
        while os.getpid() == self.owner and not self.idle.empty():
            self.idle.get_nowait().end()


POOL = Pool()
atexit.register(POOL.end)


def _judge(answer: str, truth: str) -> str:
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list:
        return parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=False)

    gold = read(truth)
    if not any(not isinstance(value, str) for value in gold):
        return "unusable_truth"
    given = read(answer)
    if not any(not isinstance(value, str) for value in given):
        return "unparsable"
    # Its six decimal places make all tiny numbers the same.
    places = {"float_rounding": 30, "numeric_precision": 40}
    return "equivalent" if verify(gold, given, **places, timeout_seconds=None, raise_on_error=False) else "wrong"


def work(judge: Callable[[str, str], str]) -> None:
    """Answer the questions of a pool until it closes the pipe; a script that is a worker calls this."""
    import resource

    logging.disable()
    judge("1", "2")  # imports all it needs before the limits are set
    for limit, value in (
        (resource.RLIMIT_AS, WORKER_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    print("ready", flush=True)
    for line in sys.stdin:
        # The kernel ends the process at its deadline, even inside C code and when its owner is dead.
        signal.setitimer(signal.ITIMER_PROF, DEADLINE_SECONDS)
        try:
            outcome = judge(*json.loads(line))
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            outcome = "unparsable"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(outcome, flush=True)


if __name__ == "__main__":
    work(_judge)
