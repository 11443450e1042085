"""One start of a run: verl in processes of its own, followed until they end or hang."""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from omegaconf import DictConfig, OmegaConf

from common.command import first_line
from common.files import write_text
from common.forked_python import FORK, py_executable
from common.processes import REPOSITORY, ProcessRecord, become_subreaper, end_with_parent, scratch
from common.progress import WARNING, WaitingLine
from recipe import heartbeat, stacks
from recipe.alert import Alerts
from recipe.checkpoints import STOP, best_checkpoint, complete_checkpoints, prune
from recipe.cpu.environment import fork_server
from recipe.environment import attempt_path, environment, prepare_config
from recipe.monitor.events import STARTED, Events
from recipe.monitor.health import RuleWarning, Warnings
from recipe.monitor.memory_growth import MemoryWatch
from recipe.monitor.metrics import StepLines, format_metrics, read_log, read_metrics, step_seconds, validation_accuracy
from recipe.preflight import run_folder
from recipe.run_id import give_id
from recipe.software import software
from recipe.watchdog import Stall, Watchdog

POLL_SECONDS = 1.0
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Result(NamedTuple):
    """How a start ended: verl's exit status; for a hang what hung, in a line, and the report's path.

    With `memory_full` it was asked to save and end, as its node's memory was nearly full.
    """

    status: int
    stall: str = ""
    report: Path | None = None
    memory_full: bool = False


class Journal(NamedTuple):
    """Where a run's events go: its record, and whoever is told."""

    events: Events
    alerts: Alerts


class Progress:
    """Moves finished steps from verl's file to `metrics.jsonl`: prints them, warns, and prunes checkpoints."""

    def __init__(self, config: DictConfig, keep: int | None, log, alerts: Alerts, may_restart: bool = False):
        self.checkpoints, self.keep, self.log = Path(config.trainer.default_local_dir), keep, log
        self.alerts, self.may_restart, self.asked_at = alerts, may_restart, 0
        self.attempt, self.metrics_path = attempt_path(config), run_folder(config) / "metrics.jsonl"
        self.lines, self.warnings = StepLines(config.trainer.total_training_steps or 0), Warnings(config)
        self.memory = MemoryWatch(config)
        self.watchdog = Watchdog(run_folder(config), self.checkpoints, config.justrl.stall_seconds)
        self.accuracy: dict[int, float | None] = {}
        self.seen: set[int] = set()
        self.read_to = 0
        for step, metrics in read_metrics(self.metrics_path).items():
            self.warnings.add(step, metrics)  # printed before the resume
            self.accuracy[step] = validation_accuracy(metrics)
            self.watchdog.add_step(step_seconds(metrics))
        self.unlogged = set(complete_checkpoints(self.checkpoints)) - self.accuracy.keys()
        self.prune(max(self.accuracy, default=0))

    def prune(self, step: int) -> None:
        """Remove old checkpoints; if the disk fails nothing is known of them, and the next step tries again."""
        with contextlib.suppress(OSError):
            prune(self.checkpoints, self.keep, step, best_checkpoint(self.checkpoints, self.accuracy), self.unlogged)

    def collect(self, last: bool = False) -> None:
        """Take the steps that verl has logged since the last call."""
        size = self.attempt.stat().st_size if self.attempt.exists() else 0
        if size == self.read_to and not last:  # a network file system may report an old size until the file is opened
            return
        self.read_to = size
        for step, metrics in read_metrics(self.attempt).items():
            if step not in self.seen:
                self.seen.add(step)
                self.add(step, metrics)

    def add(self, step: int, metrics: dict) -> None:
        with contextlib.suppress(OSError, psutil.Error):  # a step without them is no reason to end
            metrics = metrics | self.memory.measure()
        with open(self.metrics_path, "a") as file:
            file.write(format_metrics({step: metrics}))
        print(self.lines.line(step, metrics), flush=True)
        of_memory = [RuleWarning("memory", text) for text in self.memory.add(step, metrics)]
        for warning in [*self.warnings.add(step, metrics), *of_memory]:
            self.alerts.send(warning.text, once=warning.kind)
            print(f"  {WARNING}{warning}", flush=True)
            self.log.write(f"\n{WARNING}{warning}\n")  # verl's progress bar ends without a line break
            self.log.flush()
        self.accuracy[step] = validation_accuracy(metrics)
        self.watchdog.add_step(step_seconds(metrics))
        self.prune(step)
        if self.memory.full and self.may_restart and step < (self.lines.total_steps or math.inf):
            self.end_for_memory()

    def end_for_memory(self) -> None:
        """Ask the run to save and end, unless it was asked before, by this or by the user."""
        stop = self.metrics_path.parent / STOP
        if not self.asked_at and not stop.exists():
            stop.touch()
            self.asked_at = stop.stat().st_mtime_ns

    @property
    def ends_for_memory(self) -> bool:
        """Whether the run ends for its memory, and the user has not asked for it as well since."""
        stop = self.metrics_path.parent / STOP
        return bool(self.asked_at) and stop.exists() and stop.stat().st_mtime_ns == self.asked_at


def follow(
    driver: subprocess.Popen,
    record: ProcessRecord,
    progress: Progress,
    events: Events,
    details: dict[str, Any],
) -> Stall | None:
    """Follow a driver until it ends, or return the hang of its run; `details` are for the event of its first step."""
    waiting = WaitingLine("starting Ray, the FSDP actor and the vLLM rollout")
    started, stall = time.monotonic(), None
    while driver.poll() is None and not stall:
        record.update()
        progress.memory.sample()
        progress.collect()
        if not progress.seen:
            waiting.tick()
        elif started:
            seconds = round(time.monotonic() - started, 1)
            events.record(STARTED, step=min(progress.seen), start_seconds=seconds, **details)
            started = 0.0
        time.sleep(POLL_SECONDS)
        stall = progress.watchdog.look()
    progress.collect(last=True)
    # Else the next start takes its lines, and keeps the damaged ones aside: a run that hangs may still write.
    if not stall and not read_log(progress.attempt)[1]:
        progress.attempt.unlink(missing_ok=True)
    return stall


def supervise(config: DictConfig, step: int, record: ProcessRecord, log, journal: Journal, restarts: int) -> Result:
    """Start verl in its own processes, follow it, and end all of them.

    Args:
        step: from which it continues.
        restarts: that are left; with any, a run whose node's memory is nearly full is asked to save and end.
    """
    folder, keep = run_folder(config), config.trainer.max_actor_ckpt_to_keep
    on_cpu = config.trainer.device == "cpu" and not os.environ.get("RAY_ADDRESS")
    shutil.rmtree(folder / heartbeat.FOLDER, ignore_errors=True)
    give_id(folder)
    installed = software()  # now, as git may take long, or files may be changed while the run starts
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(scratch(folder))
        variables = environment(config, temporary)
        become_subreaper()
        try:
            if on_cpu:
                variables = stack.enter_context(fork_server(temporary / "fork", variables, log))
            forked = py_executable(variables)
            prepare_config(config, step, forked)
            write_text(folder / "config.yaml", OmegaConf.to_yaml(config, sort_keys=True))
            python = [sys.executable, FORK] if forked else [sys.executable]
            driver = subprocess.Popen(
                [*python, "-m", "recipe.driver", str(folder / "config.yaml")],
                cwd=REPOSITORY,
                env=variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Once the supervisor is killed the run holds no lock, so its driver must not go on.
                preexec_fn=end_with_parent,
            )
            progress = Progress(config, keep, log, journal.alerts, restarts > 0)
            stall = follow(driver, record, progress, journal.events, installed)
            if stall:
                return report_stall(config, str(stall))
            return Result(driver.returncode, memory_full=progress.ends_for_memory)
        finally:
            with signals_held():
                journal.alerts.close()  # it would be ended with the rest
                record.end_descendants()


def report_stall(config: DictConfig, stall: str) -> Result:
    """Write what the processes of a hanging run do, and return what hangs."""
    folder = run_folder(config)
    print(f"  {stall}; looking at what each process does", flush=True)
    try:
        report, culprit = stacks.write_report(folder, stall, config.reward.custom_reward_function.path)
    except OSError as error:  # of a file server that fails, which may be why the run hangs
        report, culprit = folder / "train.log", f"no report: {first_line(error)}"
    return Result(1, f"{stall}; {culprit}" if culprit else stall, report)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back a Ctrl-C or SIGTERM until the end, so that nothing is left running."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in STOPPING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
