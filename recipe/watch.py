"""Follow a run in the terminal: python -m recipe.watch outputs/justrl_deepseek [--once]

Shows the newest values, the mean of the last five, the published band or score where the config is the paper's, and
the warnings. Only reads the run's folder. Exits with Ctrl-C, or when the run is done; with --once, or where the output
is not a terminal, it prints once and exits.
"""

import argparse
import contextlib
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common import command
from common.json_lines import Line, name_lines
from common.locks import lock_holder
from common.progress import WARNING, duration
from recipe.checkpoints import complete_checkpoints
from recipe.monitor.config import read_config
from recipe.monitor.curves import aime24, band, has_bands
from recipe.monitor.events import read_events, restarts, seconds_lost
from recipe.monitor.health import QUANTITIES, series, warnings
from recipe.monitor.metrics import SMOOTHED_STEPS, has_training, read_log, seconds_left, step_seconds

REFRESH_SECONDS = 2.0
WARNINGS_SHOWN = 4  # with the table they fit 24 lines; what does not fit, rich cuts off
PIPE_WIDTH = 1000  # keeps lines in one piece where the output is not a terminal


class Run(NamedTuple):
    """What a run's folder holds; `saved` is the step of the last complete checkpoint, 0 for none; `total` the last."""

    folder: Path
    config: DictConfig
    by_step: dict[int, dict]
    damaged: list[Line]
    saved: int
    total: int | None


def read_run(folder: Path) -> Run:
    """Read a run's folder; ValueError if it is not one. Opens every file of every checkpoint."""
    if not folder.is_dir():
        inside = Path("outputs") / folder
        raise ValueError(f"{folder}: no such folder; " + (f"use {inside}" if inside.is_dir() else "see ls outputs"))
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder}: has no run's config.yaml, so none was started there; use outputs/<experiment>")
    config, (by_step, damaged) = read_config(folder / "config.yaml"), read_log(folder / "metrics.jsonl")
    if damaged and not damaged[-1].raw.endswith(b"\n") and lock_holder(folder).alive:
        damaged.pop()  # being written
    saved = max(complete_checkpoints(folder / "checkpoints"), default=0)
    return Run(folder, config, by_step, damaged, saved, OmegaConf.select(config, "trainer.total_training_steps"))


def headline(run: Run) -> str:
    total, holder, last = run.total, lock_holder(run.folder), max(run.by_step, default=0)
    seconds = [step_seconds(metrics) for metrics in run.by_step.values() if has_training(metrics)]
    parts = [f"step {last} of {total or '?'}" if run.by_step else "no metrics yet"]
    if holder.alive and seconds:
        parts.append(f"{fmean(seconds[-SMOOTHED_STEPS:]):.1f} s/step")
        parts += [f"{duration(seconds_left(seconds, total - last))} left"] if total else []
    state = "running" if holder.alive else "not running, ended abnormally" if holder.text else "not running"
    state += f" ({holder.text})" if holder.text else ""
    return f"{run.folder.name}: {', '.join(parts)}; {state}; last complete checkpoint {run.saved or 'none'}"


def table(by_step: dict[int, dict], config: DictConfig) -> Table:
    shown = Table("quantity", box=None, pad_edge=False)
    for title in ("step", "value", f"mean of {SMOOTHED_STEPS}", "paper"):
        shown.add_column(title, justify="right")
    for name, values in series(by_step, config).items():
        _, label, form = QUANTITIES.get(name, ("", escape(f"validation {name}"), ".3f"))
        step, recent = max(values), list(values.values())[-SMOOTHED_STEPS:]
        paper: tuple[float, ...] = ()
        if has_bands(config):
            score = aime24(step, config) if name == "AIME24 avg@32" else None
            paper = (score,) if score else band(name, step) or ()
        published = " to ".join(format(value, form) for value in paper)
        shown.add_row(label, str(step), format(recent[-1], form), format(fmean(recent), form), published)
    return shown


def details(run: Run) -> list[Table | Text]:
    """Show the values, the damaged lines, the newest warnings and the restarts."""
    messages = [f"{WARNING}{message}" for message in warnings(run.by_step, run.config)]
    if (hidden := len(messages) - WARNINGS_SHOWN) > 0:
        messages = [f"{hidden} earlier warnings are in {run.folder / 'train.log'}", *messages[hidden:]]
    if run.damaged:
        messages.insert(0, f"{WARNING}left out: {name_lines(run.folder / 'metrics.jsonl', run.damaged)}")
    if lines := restarts(events := read_events(run.folder)):
        lost = duration(seconds_lost(events))
        messages.append(f"restarts: {len(lines)}, costing {lost} with startup; last: {lines[-1]}")
    tables = [table(run.by_step, run.config)] if run.by_step else []
    return [*tables, *(Text(line, "yellow") for line in messages)]


def follow(folder: Path, console: Console) -> None:
    """Show a run until it has reached its last step and ended."""
    path, read_at = folder / "metrics.jsonl", None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            changed_at = path.stat().st_mtime_ns if path.exists() else 0
            if changed_at != read_at:
                run, read_at = read_run(folder), changed_at
                shown = details(run)
            live.update(Group(Text(headline(run)), *shown), refresh=True)
            if run.total and max(run.by_step, default=0) >= run.total and not lock_holder(folder).alive:
                return
            time.sleep(REFRESH_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=command.path, metavar="RUN", help="folder of a run, outputs/<experiment>")
    parser.add_argument("--once", action="store_true", help="print once and exit")
    args = parser.parse_args()
    run, console = read_run(args.run), Console()
    if args.once or not console.is_terminal:
        width = None if console.is_terminal else PIPE_WIDTH
        Console(width=width).print(Group(Text(headline(run)), *details(run)))
        return
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to be ended
        follow(args.run, console)


if __name__ == "__main__":
    command.run(main)
