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
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.command import run as run_command
from common.locks import lock_holder
from common.progress import WARNING, duration
from recipe.checkpoints import complete_checkpoints
from recipe.monitor.curves import aime24, band, has_bands
from recipe.monitor.health import QUANTITIES, series, warnings
from recipe.monitor.metrics import SMOOTHED_STEPS, has_training, read_metrics, seconds_left, step_seconds

REFRESH_SECONDS = 2.0
WARNINGS_SHOWN = 4  # with the table they fit 24 lines; what does not fit, rich cuts off
WIDTH = 1000  # where the output is no terminal: lines stay whole


class Run(NamedTuple):
    """What a run's folder held when it was read: metrics by step, complete checkpoints, and what is shown of them."""

    folder: Path
    config: DictConfig
    by_step: dict[int, dict]
    checkpoints: list[int]
    body: Group

    @property
    def last(self) -> int:
        return max(self.by_step, default=0)


def read_run(folder: Path) -> Run:
    """Read a run's files; ValueError, with a line that says what to give instead, if `folder` is no run's."""
    if not folder.is_dir():
        named = Path("outputs") / folder
        raise ValueError(f"{folder}: no such folder; " + (f"use {named}" if named.is_dir() else "see ls outputs"))
    config = OmegaConf.create()
    with contextlib.suppress(FileNotFoundError, yaml.YAMLError):
        config = OmegaConf.load(folder / "config.yaml")
    if not OmegaConf.select(config, "data.max_response_length"):
        raise ValueError(f"{folder}: has no run's config.yaml, so none was started there; give outputs/<experiment>")
    by_step = read_metrics(folder / "metrics.jsonl")
    lines = [f"{WARNING}{line}" for line in warnings(by_step, config)]
    if (hidden := len(lines) - WARNINGS_SHOWN) > 0:
        lines = [f"{hidden} earlier warnings are in {folder / 'train.log'}", *lines[hidden:]]
    body = Group(*([table(by_step, config)] if by_step else []), *(Text(line, "yellow") for line in lines))
    return Run(folder, config, by_step, complete_checkpoints(folder / "checkpoints"), body)


def headline(run: Run) -> str:
    """Return step, rate, time left, whether the run is alive and where, and the last complete checkpoint."""
    total, holder = run.config.trainer.total_training_steps, lock_holder(run.folder)
    seconds = [step_seconds(metrics) for metrics in run.by_step.values() if has_training(metrics)]
    step = f"step {run.last} of {total or '?'}" if run.by_step else "no metrics yet"
    rate = f", {np.mean(seconds[-SMOOTHED_STEPS:]):.1f} s a step" if holder.alive and seconds else ""
    left = f", {duration(seconds_left(seconds, total - run.last))} left" if rate and total else ""
    life = f"running ({holder.text})" if holder.alive else "not running"
    if holder.text and not holder.alive:
        life += f", ended without a word ({holder.text})"
    saved = (run.checkpoints or ["none"])[-1]
    return f"{run.folder.name}: {step}{rate}{left}; {life}; last complete checkpoint {saved}"


def table(by_step: dict[int, dict], config: DictConfig) -> Table:
    """Return each quantity and validation set: its last step, the value there, the mean of the last, the paper's."""
    shown = Table("quantity", box=None, pad_edge=False)
    for title in ("step", "value", f"mean of {SMOOTHED_STEPS}", "paper"):
        shown.add_column(title, justify="right")
    for name, values in series(by_step, config).items():
        step, (_, label, form) = list(values)[-1], QUANTITIES.get(name, ("", f"validation {name}", ".3f"))
        paper = ()
        if has_bands(config):
            published = aime24(step, config) if name == "AIME24 avg@32" else None
            paper = (published,) if published else band(name, step) or ()
        numbers = (values[step], np.mean(list(values.values())[-SMOOTHED_STEPS:]))
        cells = [*(format(value, form) for value in numbers), " to ".join(format(limit, form) for limit in paper)]
        shown.add_row(label, str(step), *cells)
    return shown


def view(run: Run) -> Group:
    """Return everything that is shown of a run; whether it is alive is looked up now."""
    return Group(Text(headline(run)), run.body)


def follow(run: Run, console: Console) -> None:
    """Show a run until it has reached its last step and ended."""
    metrics, read_at = run.folder / "metrics.jsonl", None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            changed = metrics.stat().st_mtime_ns if metrics.exists() else 0
            if changed != read_at:
                run, read_at = read_run(run.folder), changed
            live.update(view(run), refresh=True)
            if run.last >= (run.config.trainer.total_training_steps or np.inf) and not lock_holder(run.folder).alive:
                return
            time.sleep(REFRESH_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, outputs/<experiment>")
    parser.add_argument("--once", action="store_true", help="print once and end")
    args = parser.parse_args()
    run, console = read_run(args.run), Console()
    if args.once or not console.is_terminal:
        Console(width=None if console.is_terminal else WIDTH).print(view(run))
        return 0
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to be ended
        follow(run, console)
    return 0


if __name__ == "__main__":
    run_command(main)
