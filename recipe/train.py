"""Train a config through verl: python -m recipe.train demo [key=value ...]

Checks the config against the paper and what the run needs, continues from the last checkpoint if there is one, prints
each step and logs verl's own output. A run that fails or hangs is started again, --restarts times at most. Files go to
`outputs/<experiment_name>/`. Exit status: 0 done, 1 the run failed or was interrupted, 2 wrong use. Paths are relative
to the repository's root.

example: python -m recipe.train justrl_deepseek trainer.nnodes=1 trainer.n_gpus_per_node=8
"""

import argparse
import contextlib
import copy
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from omegaconf import DictConfig

from common.command import Failure, first_line, size
from common.command import run as run_command
from common.locks import run_lock
from common.machine import device
from common.processes import REPOSITORY, ProcessRecord
from common.progress import cause
from recipe import alert, attention, preflight, run_id
from recipe.alert import Alerts
from recipe.check import add_arguments, compare, flat, require_paper
from recipe.checkpoints import DISCARDED, STOP, TRACKER, check_ranks, complete_checkpoints, reconcile
from recipe.environment import attempt_path
from recipe.monitor.config import read_config
from recipe.monitor.events import END, EVENTS, FAILURE, RESTART, Events
from recipe.monitor.loggers import purge_tensorboard, use_file, use_wandb
from recipe.monitor.metrics import read_metrics
from recipe.preflight import run_folder
from recipe.restarts import DONE, FAILED, FULL, STALLED, STOPPED, Ended, Restarts, default_restarts
from recipe.supervise import STOPPING_SIGNALS, Journal, Result, supervise

FILES = ["metrics.jsonl", DISCARDED, EVENTS, "config.yaml", "train.log", "run.lock", "processes.json", "wandb.id", STOP]
FILES += [run_id.FILE]
FULL_BYTES = 1 << 20  # less free space than this after a failure means that it was the disk
KEYS_SHOWN = 20
PAUSE_SECONDS = 60.0  # before a restart, if no step was finished
# Keys that differ at every start.
START_KEYS = ("ray_kwargs.", "trainer.val_before_train", "trainer.max_actor_ckpt_to_keep")


class Interrupted(KeyboardInterrupt):  # no Exception: OmegaConf replaces each that passes through it
    """SIGINT, SIGTERM or SIGHUP arrived."""


def changed_keys(before: Path, config: DictConfig) -> list[str]:
    """List the dotted keys in which `config` differs from the config of the last start."""
    if not before.exists():
        return []
    old, new = (flat(c) for c in (read_config(before), config))
    return sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and not k.startswith(START_KEYS))


def shortened(keys: list[str]) -> str:
    more = [f"and {len(keys) - KEYS_SHOWN} more"] if keys[KEYS_SHOWN:] else []
    return ", ".join([*keys[:KEYS_SHOWN], *more])


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
            print(f"  note: changed since the last start: {shortened(changed)}")
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


def train(config: DictConfig, restarts: int = 0) -> int:
    """Run a composed config to its end, with so many restarts at most, and return the exit status."""
    folder = run_folder(config)
    check_paths(config)
    with run_lock(folder), open(folder / "train.log", "a") as log, alerts_of(config, folder, log) as alerts:
        counted, journal = Restarts(restarts), Journal(Events(folder), alerts)
        while True:
            began = time.time()
            ended = attempt_despite_errors(copy.deepcopy(config), log, journal, counted)
            if ended.kind in (DONE, STOPPED) or not start_again(ended, config, counted, journal, began):
                break
        if ended.kind == DONE:
            journal.events.record(END, step=ended.step)
            alerts.send(f"finished after step {ended.step}")
        return int(ended.kind != DONE)


@contextlib.contextmanager
def alerts_of(config: DictConfig, folder: Path, log: TextIO) -> Iterator[Alerts]:
    """Give a run its alerts; an error of the supervisor itself, such as a full disk, is the last of them."""
    alerts = Alerts(config, folder, log)
    try:
        yield alerts
    except Exception as error:
        alerts.send(f"failed: {first_line(error)}")
        raise
    finally:
        alerts.close()


def start_again(ended: Ended, config: DictConfig, counted: Restarts, journal: Journal, began: float) -> bool:
    """Tell how a start that began at a time (seconds since 1970) ended; return whether to start again."""
    print(f"training {ended.kind}: {ended.cause}\n  see {ended.see}", file=sys.stderr, flush=True)
    details = {"kind": ended.kind, "step": ended.step, "cause": ended.cause}
    if refusal := counted.refusal(ended):
        journal.events.record(FAILURE, **details)
        journal.alerts.send(f"{ended.kind} after step {ended.step}, not started again: {ended.cause}")
        if counted.allowed:
            print(f"  not started again: {refusal}", file=sys.stderr)
        return False
    lost = time.time() - max(began, saved_at(config))
    journal.events.record(RESTART, **details, seconds_lost=round(max(0.0, lost), 1))
    restart = f"restart {counted.used} of {counted.allowed}"
    journal.alerts.send(f"{ended.kind} after step {ended.step}, {restart}: {ended.cause}")
    print(restart, flush=True)
    if ended.idle:  # what failed at once may need time: a file server, GPUs of a cluster that are not free yet
        time.sleep(PAUSE_SECONDS)
    return True


def saved_at(config: DictConfig) -> float:
    """Return when the checkpoint that a restart takes was finished (seconds since 1970), 0 without one."""
    checkpoints, logged = Path(config.trainer.default_local_dir), read_metrics(run_folder(config) / "metrics.jsonl")
    with contextlib.suppress(OSError):
        newest = max(step for step in [0, *complete_checkpoints(checkpoints)] if not step or step in logged)
        return (checkpoints / f"global_step_{newest}" / "data.pt").stat().st_mtime
    return 0.0


def attempt_despite_errors(config: DictConfig, log: TextIO, journal: Journal, counted: Restarts) -> Ended:
    """Do as `attempt`, but where restarts are allowed take an error as a failure: a file server may be back soon."""
    try:
        return attempt(config, log, journal, counted)
    except OSError as error:
        if error.errno == errno.ENOSPC or not counted.allowed:
            raise
        return Ended(FAILED, 0, first_line(error), run_folder(config) / "train.log", idle=True)


def attempt(config: DictConfig, log: TextIO, journal: Journal, counted: Restarts) -> Ended:
    """Start a run once, from its newest checkpoint, and print how it ended unless it failed.

    Args:
        config: changed in place.
    """
    folder, total = run_folder(config), config.trainer.total_training_steps
    record = ProcessRecord(folder)
    if stale := record.end_stale():
        print(f"ended {stale} stale processes of an earlier start")
    checkpoints = Path(config.trainer.default_local_dir)
    step = reconcile(folder / "metrics.jsonl", attempt_path(config), checkpoints)
    (folder / STOP).unlink(missing_ok=True)
    if total and step >= total:
        print(f"training already finished: {folder} has step {step}")
        return Ended(DONE, step)
    if not counted.used:  # after a restart they are free as soon as the killed processes have left them
        preflight.check_gpus_free(config)
    if step:
        check_ranks(checkpoints / f"global_step_{step}", config)
    purge_tensorboard(folder / "tensorboard", step)
    announce(config, step, log)
    log_start = os.fstat(log.fileno()).st_size
    result = supervise(config, step, record, log, journal, counted.allowed - counted.used)
    ended = finish(config, result, log_start)
    return ended._replace(idle=ended.step <= step)


def finish(config: DictConfig, result: Result, log_start: int) -> Ended:
    """Tell how a start ended; prints it, unless it failed."""
    folder, checkpoints = run_folder(config), Path(config.trainer.default_local_dir)
    log = folder / "train.log"
    saved = max(complete_checkpoints(checkpoints), default=0)
    step = max(read_metrics(folder / "metrics.jsonl"), default=saved)
    final = "the file stop asks it to end" if (folder / STOP).exists() and not result.memory_full else ""
    if result.report:
        return Ended(STALLED, step, result.stall, result.report, final)
    if result.status:
        # Of a full disk torch's error is no more than "iostream error".
        full = checkpoints.is_dir() and shutil.disk_usage(checkpoints).free < FULL_BYTES
        why = f" (no space left in {checkpoints}; earlier checkpoints are kept)" if full else ""
        return Ended(FAILED, step, cause(log, log_start) + why, log, "the disk is full" if full else final)
    if result.memory_full and saved != config.trainer.total_training_steps:
        return Ended(FULL, step, "the memory of this node is nearly full; a checkpoint was saved", log)
    if final and saved != config.trainer.total_training_steps:
        print(f"stopped on request, saved at step {saved}; the same command continues", file=sys.stderr)
        return Ended(STOPPED, step)
    print(f"training finished: {step} steps")
    return Ended(DONE, step)


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
    alert.add_argument(parser)
    restarts = "restart up to N times after a failure or a hang (default: JUSTRL_RESTARTS, else 3, or 0 at a terminal)"
    parser.add_argument("--restarts", type=size, metavar="N", help=restarts)
    args = parser.parse_intermixed_args()
    os.chdir(REPOSITORY)
    for number in STOPPING_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, interrupt)
    try:
        config, comparisons = compare(args.config, args.overrides, device(), args.allow)
        require_paper(comparisons)
        use_wandb(config)
        alert.use_alert(args.alert)
        use_file(config)
        preflight.check(config)
        return train(config, default_restarts() if args.restarts is None else args.restarts)
    except (RuntimeError, OSError) as error:
        raise Failure(str(error)) from error
    except Interrupted as error:
        raise Failure(f"interrupted by {error}; the same command continues from the last checkpoint") from error


if __name__ == "__main__":
    run_command(main)
