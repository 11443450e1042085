"""Train a config through verl: python -m recipe.train demo [key=value ...]

Checks the config against the paper and what the run needs, continues from the last checkpoint if there is one, prints
each step and logs verl's own output. Files go to `outputs/<experiment_name>/`. Exit status: 0 done, 1 the run
failed or was interrupted, 2 wrong use. Paths are relative to the repository's root.

example: python -m recipe.train justrl_deepseek trainer.nnodes=1 trainer.n_gpus_per_node=8
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from common.command import Failure
from common.command import run as run_command
from common.files import write_text
from common.forked_python import FORK, py_executable
from common.locks import run_lock
from common.machine import device
from common.processes import REPOSITORY, ProcessRecord, become_subreaper, end_with_parent, scratch
from common.progress import WARNING, WaitingLine, cause
from recipe import attention, preflight
from recipe.check import add_arguments, compare, flat, require_paper
from recipe.checkpoints import (
    DISCARDED,
    STOP,
    TRACKER,
    best_checkpoint,
    check_ranks,
    complete_checkpoints,
    prune,
    reconcile,
)
from recipe.cpu.environment import fork_server
from recipe.environment import attempt_path, environment, prepare_config
from recipe.monitor.config import read_config
from recipe.monitor.health import Warnings
from recipe.monitor.loggers import purge_tensorboard, use_file, use_wandb
from recipe.monitor.metrics import StepLines, format_metrics, read_log, read_metrics, validation_accuracy
from recipe.preflight import run_folder

POLL_SECONDS = 1.0
FILES = ("metrics.jsonl", DISCARDED, "config.yaml", "train.log", "run.lock", "processes.json", "wandb.id", STOP)
FULL_BYTES = 1 << 20  # less free space than this after a failure means that it was the disk
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KEYS_SHOWN = 20
# Keys that differ at every start.
START_KEYS = ("ray_kwargs.", "trainer.val_before_train", "trainer.max_actor_ckpt_to_keep")


class Interrupted(BaseException):  # as KeyboardInterrupt: OmegaConf replaces every Exception that passes through it
    """SIGINT, SIGTERM or SIGHUP arrived."""


def changed_keys(before: Path, config: DictConfig) -> str:
    """List the dotted keys in which `config` differs from the config of the last start, "" if in none."""
    if not before.exists():
        return ""
    old, new = (flat(c) for c in (read_config(before), config))
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and not k.startswith(START_KEYS))
    more = [f"and {len(keys) - KEYS_SHOWN} more"] if keys[KEYS_SHOWN:] else []
    return ", ".join([*keys[:KEYS_SHOWN], *more])


class Progress:
    """Moves finished steps from verl's file to `metrics.jsonl`: prints them, warns, and prunes checkpoints."""

    def __init__(self, config: DictConfig, keep: int | None, log):
        self.checkpoints, self.keep, self.log = Path(config.trainer.default_local_dir), keep, log
        self.attempt, self.metrics_path = attempt_path(config), run_folder(config) / "metrics.jsonl"
        self.lines, self.warnings = StepLines(config.trainer.total_training_steps or 0), Warnings(config)
        self.accuracy: dict[int, float | None] = {}
        self.seen: set[int] = set()
        self.read_to = 0
        for step, metrics in read_metrics(self.metrics_path).items():
            self.warnings.add(step, metrics)  # printed before the resume
            self.accuracy[step] = validation_accuracy(metrics)
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
        with open(self.metrics_path, "a") as file:
            file.write(format_metrics({step: metrics}))
        print(self.lines.line(step, metrics), flush=True)
        for warning in self.warnings.add(step, metrics):
            print(f"  {WARNING}{warning}", flush=True)
            self.log.write(f"\n{WARNING}{warning}\n")  # verl's progress bar ends without a line break
            self.log.flush()
        self.accuracy[step] = validation_accuracy(metrics)
        self.prune(step)


def follow(driver: subprocess.Popen, record: ProcessRecord, progress: Progress) -> int:
    """Follow a driver until it ends; return its exit status."""
    waiting = WaitingLine("starting Ray, the FSDP actor and the vLLM rollout")
    while driver.poll() is None:
        record.update()
        progress.collect()
        if not progress.seen:
            waiting.tick()
        time.sleep(POLL_SECONDS)
    progress.collect(last=True)
    if not read_log(progress.attempt)[1]:  # else the next start keeps the damaged lines aside
        progress.attempt.unlink(missing_ok=True)
    return driver.returncode


def supervise(config: DictConfig, step: int, record: ProcessRecord, log) -> int:
    """Start verl in its own processes, follow it, and end all of them; return its exit status."""
    folder, keep = run_folder(config), config.trainer.max_actor_ckpt_to_keep
    on_cpu = config.trainer.device == "cpu" and not os.environ.get("RAY_ADDRESS")
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
            return follow(driver, record, Progress(config, keep, log))
        finally:
            ignore_signals()  # a Ctrl-C now must not leave anything running
            record.end_descendants()


def announce(config: DictConfig, step: int, log) -> None:
    """Print what this start does, and resolve its attention."""
    folder = run_folder(config)
    print(f"training {config.trainer.experiment_name} " + (f"from step {step}" if step else "from the start"))
    print(f"  folder {folder}, full output in {log.name}")
    chosen = attention.settle(config)
    print(f"  attention: {chosen}", flush=True)
    log.write(f"attention: {chosen}\n")
    log.flush()
    try:
        if step and (changed := changed_keys(folder / "config.yaml", config)):
            print(f"  note: changed since the last start: {changed}")
    except ValueError as error:
        print(f"  note: changes since the last start are unknown: {error}")


def check_paths(config: DictConfig) -> None:
    """Check that nothing has the place of a run's files and folders; ValueError of one line."""
    folder, checkpoints = run_folder(config), Path(config.trainer.default_local_dir)
    folders = [*reversed(folder.parents), folder, checkpoints, folder / "tensorboard", folder / "validation"]
    files = [*(folder / name for name in FILES), attempt_path(config), checkpoints / TRACKER]
    for path in folders + files:
        if os.path.lexists(path) and path.is_dir() != (path in folders):
            raise ValueError(f"{path}: the run needs a {'folder' if path in folders else 'file'} there; move it away")


def train(config: DictConfig) -> int:
    """Run a composed config to its end and return the exit status.

    Raises:
        Failure: the run failed, or was stopped on request.
    """
    folder, total = run_folder(config), config.trainer.total_training_steps
    check_paths(config)
    with run_lock(folder):
        record = ProcessRecord(folder)
        if ended := record.end_stale():
            print(f"ended {ended} stale processes of an earlier start")
        checkpoints = Path(config.trainer.default_local_dir)
        step = reconcile(folder / "metrics.jsonl", attempt_path(config), checkpoints)
        (folder / STOP).unlink(missing_ok=True)
        if total and step >= total:
            print(f"training already finished: {folder} has step {step}")
            return 0
        preflight.check_gpus_free(config)
        if step:
            check_ranks(checkpoints / f"global_step_{step}", config)
        purge_tensorboard(folder / "tensorboard", step)
        with open(folder / "train.log", "a") as log:
            announce(config, step, log)
            log_start = log.tell()
            status = supervise(config, step, record, log)
        return finish(config, status, log_start)


def finish(config: DictConfig, status: int, log_start: int) -> int:
    """Print how a run ended; return its exit status; raises as `train` does."""
    folder, checkpoints = run_folder(config), Path(config.trainer.default_local_dir)
    log = folder / "train.log"
    if status:
        # Of a full disk torch's error is no more than "iostream error".
        full = checkpoints.is_dir() and shutil.disk_usage(checkpoints).free < FULL_BYTES
        why = f" (no space left in {checkpoints}; earlier checkpoints are kept)" if full else ""
        print(f"training failed: {cause(log, log_start)}{why}\n  see {log}", file=sys.stderr)
        return 1
    step = max(complete_checkpoints(checkpoints), default=0)
    if (folder / STOP).exists() and step != config.trainer.total_training_steps:
        print(f"stopped on request, saved at step {step}; the same command continues", file=sys.stderr)
        return 1
    print(f"training finished: {max(read_metrics(folder / 'metrics.jsonl'), default=step)} steps")
    return 0


def ignore_signals() -> None:
    """Keep a second signal from disturbing the end of a run."""
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number: int, frame) -> None:
    """Turn a signal into an exception, so that every `finally` runs."""
    ignore_signals()
    raise Interrupted(signal.Signals(number).name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_intermixed_args()
    os.chdir(REPOSITORY)
    for number in STOPPING_SIGNALS:
        signal.signal(number, interrupt)
    try:
        config, comparisons = compare(args.config, args.overrides, device(), args.allow)
        require_paper(comparisons)
        use_wandb(config)
        use_file(config)
        preflight.check(config)
        return train(config)
    except (RuntimeError, OSError) as error:
        raise Failure(str(error)) from error
    except Interrupted as error:
        raise Failure(f"interrupted by {error}; the same command continues from the last checkpoint") from error


if __name__ == "__main__":
    run_command(main)
