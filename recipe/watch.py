"""Follow a run in the terminal: python -m recipe.watch outputs/justrl_deepseek [--once]

Shows the newest values, the mean of the last five, the paper's band or figure beside them where the run is one of the
paper's, and the warnings. Only reads the run's folder. Ends with Ctrl-C, or when the run is done; with --once, or
where the output is no terminal, it prints once and ends.
"""

import argparse
import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from data_prep.command import run as run_command
from recipe.curves import aime24, band, has_bands
from recipe.health import QUANTITIES, series, warnings
from recipe.processes import last_start, lock_holder
from recipe.progress import (
    SMOOTHED_STEPS,
    WARNING,
    duration,
    has_training,
    seconds_left,
    step_seconds,
)
from recipe.resume import complete_checkpoints, read_metrics

REFRESH_SECONDS = 2.0
WARNINGS_SHOWN = 4  # with the table they fit 24 lines; what does not fit, rich cuts off
WIDTH = 1000  # where the output is no terminal: lines stay whole


class Run(NamedTuple):
    """What a run's folder held when it was read."""

    folder: Path
    config: DictConfig
    by_step: dict[int, dict]
    warnings: list[str]
    checkpoints: list[int]  # steps


def check_folder(folder: Path) -> None:
    """Raise ValueError, with a line that says what to give instead, unless `folder` is a run's."""
    if not folder.is_dir():
        named = Path("outputs") / folder
        raise ValueError(f"{folder}: no such folder; " + (f"use {named}" if named.is_dir() else "see ls outputs"))
    path = folder / "config.yaml"
    config = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    if not OmegaConf.select(config, "data.max_response_length"):
        raise ValueError(f"{folder}: has no run's config.yaml, so none was started there; give outputs/<experiment>")


def read_run(folder: Path) -> Run:
    """Read a run's files."""
    config, by_step = OmegaConf.load(folder / "config.yaml"), read_metrics(folder / "metrics.jsonl")
    return Run(folder, config, by_step, warnings(by_step, config), complete_checkpoints(folder / "checkpoints"))


def headline(run: Run) -> str:
    """Return step, time left, whether the run is alive and where, and the last checkpoint it can continue from."""
    total = run.config.trainer.total_training_steps
    step = f"step {max(run.by_step)} of {total or '?'}" if run.by_step else "no metrics yet"
    parts = [f"{run.folder.name}: {step}"]
    seconds = [step_seconds(metrics) for metrics in run.by_step.values() if has_training(metrics)]
    holder = lock_holder(run.folder)
    if holder and total and seconds:
        parts.append(f"{duration(seconds_left(seconds, total - max(run.by_step)))} left")
    parts.append(
        f"running ({holder})" if holder else f"not running on this machine (started: {last_start(run.folder)})"
    )
    parts.append(f"last complete checkpoint {run.checkpoints[-1] if run.checkpoints else 'none'}")
    return "; ".join(parts)


def table(run: Run) -> Table:
    """Return each quantity and validation set: its last step, the value there, the mean of the last, the paper's."""
    shown = Table("quantity", "step", "value", f"mean of {SMOOTHED_STEPS}", "paper", box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    papers = has_bands(run.config)
    for name, values in series(run.by_step, run.config).items():
        step, (_, label, form) = list(values)[-1], QUANTITIES.get(name, (None, f"validation {name}", ".3f"))
        paper = band(name, step) if papers else None
        if papers and name == "AIME24 avg@32":
            paper = [published] if (published := aime24(step, run.config)) else None
        numbers = [values[step], np.mean(list(values.values())[-SMOOTHED_STEPS:])]
        limits = " to ".join(format(limit, form) for limit in paper or ())
        shown.add_row(label, str(step), *(format(value, form) for value in numbers), limits)
    return shown


def view(run: Run) -> Group:
    """Return everything that is shown of a run."""
    lines = [f"{WARNING}{line}" for line in run.warnings[-WARNINGS_SHOWN:]]
    if len(run.warnings) > WARNINGS_SHOWN:
        lines.insert(0, f"{len(run.warnings) - WARNINGS_SHOWN} earlier warnings are in {run.folder / 'train.log'}")
    parts = [Text(headline(run)), *([table(run)] if run.by_step else []), *(Text(line, "yellow") for line in lines)]
    return Group(*parts)


def follow(folder: Path, console: Console) -> None:
    """Show a run until it has reached its last step and ended."""
    metrics, read_at = folder / "metrics.jsonl", None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            changed = metrics.stat().st_mtime_ns if metrics.exists() else 0
            if changed != read_at:
                run, read_at = read_run(folder), changed
            live.update(view(run), refresh=True)
            total = run.config.trainer.total_training_steps
            if total and max(run.by_step, default=0) >= total and not lock_holder(folder):
                return
            time.sleep(REFRESH_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, outputs/<experiment>")
    parser.add_argument("--once", action="store_true", help="print once and end")
    args = parser.parse_args()
    check_folder(args.run)
    console = Console()
    if args.once or not console.is_terminal:
        Console(width=None if console.is_terminal else WIDTH).print(view(read_run(args.run)))
        return 0
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to be ended
        follow(args.run, console)
    return 0


if __name__ == "__main__":
    run_command(main)
