"""Compare two formulas with math-verify, in worker processes with limits that are killed at their deadline.

Another comparison may be sandboxed alike: a script that ends in `work(compare)`, and `Pool(script, answers)`.

No pool of the standard library does it: `concurrent.futures` cannot end a task that is running, and `multiprocessing`
imports the caller's main module, and the reward by a name, which one that verl loaded by its path does not have. A
process for each question would spend 0.3 s on imports where a worker that is kept needs 5 ms.
"""

import atexit
import functools
import json
import logging
import os
import queue
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve()
# What its worker may print; anything else is a crash.
ANSWERS = ("equivalent", "wrong", "unparsable", "unusable_truth")
# An honest comparison takes milliseconds; the slowest of 1,646 reference answers against an incorrect one took 5 s.
# Of processor time: on a loaded machine an honest one would miss a deadline by the clock.
DEADLINE_SECONDS = 3.0
TICK_SECONDS = 0.01  # of the kernel's timer, which less would not start
PATIENCE_SECONDS = 30.0  # by the clock, in which a worker that has a question uses no processor time
LEFT: ContextVar[list[float]] = ContextVar("LEFT")  # seconds, of the response that a thread compares
START_SECONDS = 120.0  # likewise, while it starts
WORKER_BYTES = 2 * 2**30
EXACT_PLACES = 500
COMMAND = re.compile(r"\\[a-zA-Z]+")
WORKERS = max(1, min(4, os.cpu_count() or 1))


@contextmanager
def one_deadline() -> Iterator[None]:
    """Let all questions of this thread, those of one response, share one deadline."""
    token = LEFT.set([DEADLINE_SECONDS])
    try:
        yield
    finally:
        LEFT.reset(token)


class Worker:
    """A process that compares two formulas; killed at its deadline."""

    def __init__(self, script: Path, answers: tuple[str, ...]):
        self.answers = answers
        command = [sys.executable, "-I", str(script)]
        self.process: Any = subprocess.Popen(  # whose pipes may be None by their type
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
        if self._line(START_SECONDS) != "ready":
            self.end()
            raise OSError(f"the worker {script.name} did not start; is what it imports installed?")

    def _line(self, seconds: float) -> str | None:
        """Return the worker's next line; None if it uses no processor time for `seconds`, "" if it is dead."""
        ready = select.poll()  # not select: a Ray actor may have more than 1,024 files open
        ready.register(self.process.stdout, select.POLLIN)
        seen = self._ticks()
        while not ready.poll(1000 * seconds):
            before, seen = seen, self._ticks()
            if seen == before:
                return None
        return self.process.stdout.readline().decode().strip()

    def _ticks(self) -> list[str]:
        """Return the processor time that the worker has used, in ticks (proc(5), stat)."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[11:13]

    def ask(self, answer: str, reference: str, seconds: float = DEADLINE_SECONDS) -> str:
        self.used_seconds = seconds  # of processor time, where the question has no answer
        try:
            self.process.stdin.write(json.dumps([seconds, answer, reference]).encode() + b"\n")
        except OSError:
            return "crashed"
        line = self._line(PATIENCE_SECONDS)
        outcome, _, used = (line or "").partition(" ")
        if outcome in self.answers:
            self.used_seconds = float(used)
            return outcome
        if line:
            return "crashed"
        late = line is None or self.process.wait() == -signal.SIGPROF  # it has closed its pipe, so it is ending
        return "timed_out" if late else "crashed"

    def end(self) -> None:
        with self.process:  # closes its pipes and waits for it
            self.process.kill()


class Pool:
    """Workers that start when they are needed, for any number of threads; at most WORKERS at once."""

    def __init__(self, script: Path = SCRIPT, answers: tuple[str, ...] = ANSWERS):
        self.script, self.answers = script, answers
        self._forget_workers()
        os.register_at_fork(after_in_child=self._forget_workers)  # their pipes are the parent's

    def _forget_workers(self) -> None:
        self.idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()  # None for one that has not started
        for _ in range(WORKERS):
            self.idle.put(None)
        self.started = False

    def ask(self, answer: str, reference: str) -> str:
        """Compare two formulas in a worker; the clock starts when the worker has the question."""
        left = LEFT.get([DEADLINE_SECONDS])
        if left[0] < TICK_SECONDS:
            return "timed_out"
        worker, kept = self.idle.get(), None
        try:
            if worker is None or worker.process.poll() is not None:
                worker = Worker(self.script, self.answers)
            self.started = True
            outcome = worker.ask(answer, reference, left[0])
            left[0] -= worker.used_seconds
            if outcome in ("timed_out", "crashed"):
                worker.end()
            else:
                kept = worker
            return outcome
        except OSError:
            if not self.started:
                raise  # it never worked, so every formula would be wrong for ever
            return "crashed"
        finally:
            self.idle.put(kept)

    def end(self) -> None:
        """End all idle workers; one at work ends by itself at its deadline."""
        for worker in [self.idle.get() for _ in range(self.idle.qsize())]:
            if worker:
                worker.end()
            self.idle.put(None)


POOL = Pool()
atexit.register(POOL.end)


@functools.lru_cache(maxsize=20)
def _parsed(text: str, is_complex: bool) -> Any:
    """Return a formula whose letters keep their case, and where i, unless a sum counts with it, is the unit."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    names = ConversionConfig(lowercase_symbols=False)
    value = latex2sympy(text, is_real=None if is_complex else True, normalization_config=None, conversion_config=names)
    if not isinstance(value, sympy.Expr):
        return value
    return value.subs({symbol: sympy.I for symbol in value.free_symbols if symbol.name == "i"})


def _is_exact(ours: Any, theirs: Any) -> bool:
    """Return whether what math-verify finds equal, by 40 places of the difference, is equal in hundreds of them."""
    import sympy

    if isinstance(ours, sympy.Symbol) and isinstance(theirs, sympy.Symbol):
        return ours == theirs  # of a name longer than a letter it ignores the case
    if ours == theirs or not isinstance(ours, sympy.Expr) or not isinstance(theirs, sympy.Expr):
        return True
    try:
        difference = (ours - theirs).doit()
        values = {symbol: 3 + 2 * i for i, symbol in enumerate(sorted(difference.free_symbols, key=str))}
        difference = sympy.sympify(difference.subs(values))
        if difference.is_Rational or difference.has(sympy.Integral):  # an integral in hundreds of places takes minutes
            return not difference.is_Rational or bool(difference == 0)
        size = abs(difference.evalf(15, maxn=EXACT_PLACES))
    except Exception:
        return True  # what has no value here is left to math-verify
    return size.is_comparable is not True or bool(size < sympy.Float(10) ** (100 - EXACT_PLACES))


def _compare(answer: str, reference: str) -> str:
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, parser, verify

    texts = (answer, reference)
    is_complex = any("i" in COMMAND.sub("", text) or parser.should_treat_as_complex(text) for text in texts)
    parser.parse_latex_cached = functools.partial(_parsed, is_complex=is_complex)
    # Units are gone, so that m is a letter.
    form = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )

    def formulas(text: str) -> list:
        config = LatexExtractionConfig(normalization_config=form)
        return parse(f"${text}$", [config], parsing_timeout=None, raise_on_error=False)

    wanted, given = formulas(reference), formulas(answer)
    for found, outcome in ((wanted, "unusable_truth"), (given, "unparsable")):
        if all(isinstance(value, str) for value in found):
            return outcome
    # Its six decimal places make all tiny numbers the same.
    places = {"float_rounding": 30, "numeric_precision": 40}
    same = verify(wanted, given, **places, timeout_seconds=None, raise_on_error=False)
    return "equivalent" if same and _is_exact(given[0], wanted[0]) else "wrong"


def work(compare: Callable[[str, str], str]) -> None:
    """Answer the questions of a pool until it closes the pipe; a script that is a worker calls this."""
    import resource

    logging.disable()
    compare("1", "2")  # imports all it needs before the limits are set
    for limit, value in (
        (resource.RLIMIT_AS, WORKER_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, answer, reference = json.loads(line)
        start = time.process_time()
        # The kernel ends the process at its deadline, even inside C code and when its owner is dead.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            outcome = compare(answer, reference)
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            outcome = "unparsable"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(outcome, time.process_time() - start, flush=True)


if __name__ == "__main__":
    work(_compare)
