"""The section of a report about a run's training: its curves, warnings and compute, the paper's beside them."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from omegaconf import DictConfig, OmegaConf

from common.figures import COLOURS, colour, file_name, label, panels, save
from common.json_lines import name_lines
from common.markdown import escaped
from common.progress import duration
from common.svg import show_values
from recipe import attention
from recipe.monitor.compute import compute, compute_rows, count
from recipe.monitor.config import read_config
from recipe.monitor.curves import AIME24, BANDS, BUDGETS, backbone, band, has_bands
from recipe.monitor.events import read_events, restarts, seconds_lost
from recipe.monitor.health import QUANTITIES, series, warnings
from recipe.monitor.metrics import REWARD, format_metric, has_training, number, read_log

TEMPLATE = Path(__file__).with_name("report.md.j2")
OURS, PAPER = COLOURS[0], "#e0a030"
MAIN = ("reward", "entropy", "length", "validation")  # the panels of the first figure
BAND_POINTS, SMOOTH_POINTS = 1000, 400  # of the paper's bands and of a running mean, as far as they are drawn
MANY_STEPS = 100  # from here on a line is drawn without markers, and its running mean over it


class TrainingSection(NamedTuple):
    """A sentence on how far the run came, Markdown, and for report.json the rows of its table and its other numbers."""

    verdict: str
    text: str
    compute_table: list[dict[str, Any]]
    numbers: dict[str, Any]


def training_section(run: Path, folder: Path, title: str = "") -> TrainingSection | None:
    """Report a run's training, its figures written into `folder`; None for a run without metrics.

    Args:
        title: what the run is called, unlike any other of the report; its folder's name without one.

    Raises:
        FileNotFoundError: the run has metrics and no config.
        ValueError: the config is damaged.
    """
    title = title or run.name
    by_step, bad = read_log(run / "metrics.jsonl")
    trained = [metrics for metrics in by_step.values() if has_training(metrics)]
    damaged = name_lines(run / "metrics.jsonl", bad) if bad else ""
    if not trained:
        text = f"## Training of {escaped(title)}\n\nNo step can be read: {escaped(damaged)}.\n"
        return TrainingSection(f"No step of {title} can be read.", text, [], {"damaged": damaged}) if bad else None
    config = read_config(run / "config.yaml", complete=True)
    figures = draw_figures(by_step, config, folder, "" if folder == run else f"_{file_name(title)}")
    events = read_events(run)
    ours, name = compute(by_step, config), backbone(config) or "DeepSeek"
    rows = compute_rows(ours, config, name)
    rewards = [format_metric(metrics, REWARD) for metrics in (trained[0], trained[-1])]
    text = jinja2.Template(TEMPLATE.read_text(), trim_blocks=True, lstrip_blocks=True).render(
        run=escaped(title),
        steps=len(trained),
        damaged=escaped(damaged),
        seconds=sum(number(metrics, "timing_s/step", 0.0) for metrics in trained),
        rewards=rewards,
        attention=attention.requested(config),
        figures=figures,
        has_bands=has_bands(config),
        warnings=warnings(by_step, config),
        restarts=restarts(events),
        lost=duration(seconds_lost(events)),
        backbone=name,
        rows=[row.texts() for row in rows],
        context=config.data.max_prompt_length + config.data.max_response_length,
        budgets=[f"{method} {count(tokens)}" for method, tokens in BUDGETS.items()],
    )
    table = [
        {"compute": row.quantity, "this run": row.ours, f"JustRL-{name}, published": row.published} for row in rows
    ]
    curves = {
        name: {step: None if math.isnan(value) else value for step, value in values.items()}
        for name, values in series(by_step, config).items()
    }
    numbers = ours | {"curves": curves, "budgets": BUDGETS, "damaged": damaged}
    return TrainingSection(verdict(max(by_step), config, rewards), text, table, numbers)


def verdict(last: int, config: DictConfig, rewards: list[str]) -> str:
    """Say in one sentence whether a run finished, and where its reward went."""
    total = OmegaConf.select(config, "trainer.total_training_steps")
    came = f"come to step {last:,}" + (f" of {total:,}" if total else "")
    if total and last >= total:
        came = f"finished its {total:,} steps"
    return f"Training has {came}; the mean reward went from {rewards[0]} to {rewards[1]}."


def draw_figures(by_step: dict[int, dict], config: DictConfig, folder: Path, ending: str) -> list[str]:
    """Draw every quantity that the run has, and its validation sets, over steps; return the figures' names."""
    curves = series(by_step, config)
    names = {*curves, "validation"} if curves.keys() - QUANTITIES.keys() else {*curves}
    rest = [name for name in QUANTITIES if name in names and name not in MAIN]
    figures = {f"curves{ending}.png": [name for name in MAIN if name in names], f"details{ending}.png": rest}
    drawn = [figure for figure, panel_names in figures.items() if panel_names]
    for figure in drawn:
        draw_curves(curves, figures[figure], config, folder / figure)
    return drawn


def draw_curves(curves: dict[str, dict[int, float]], names: list[str], config: DictConfig, path: Path) -> None:
    """Draw a panel for each of these quantities; "validation" is all validation sets in one."""
    from matplotlib import ticker

    sets = {name: values for name, values in curves.items() if name not in QUANTITIES}
    last = max(max(values) for values in curves.values())
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        if name == "validation":
            draw_validation(axis, sets, config)
        else:
            draw_quantity(axis, name, curves[name], has_bands(config))
        axis.set_xlim(-0.02 * last, 1.02 * last)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    save(figure, path)


def draw_line(axis, values: dict[int, float], shade: str, **options) -> None:
    """Draw values by step; of many, faint, with their running mean over a fiftieth of them."""
    steps, numbers = list(values), np.array(list(values.values()))
    note, name = "", f"{options['label']}, " if "label" in options else ""
    if len(steps) < MANY_STEPS:
        axis.plot(steps, numbers, color=shade, marker="o", markersize=3, **options)
    else:
        # Rasterized: as an SVG's path, thousands of steps would make the page large.
        axis.plot(steps, numbers, color=shade, alpha=0.25, linewidth=0.7, rasterized=True)
        window, stride = len(steps) // 50, max(1, len(steps) // SMOOTH_POINTS)
        numbers = np.convolve(numbers, np.ones(window) / window, mode="valid")
        steps, numbers = steps[window // 2 :][: len(numbers) : stride], numbers[::stride]
        note = f" (mean of {window} steps)"
        axis.plot(steps, numbers, color=shade, **options)
    texts = [f"{name}step {step:,}: {value:.4g}{note}" for step, value in zip(steps, numbers, strict=True)]
    show_values(axis, steps, numbers, texts, shade)


def draw_quantity(axis, name: str, values: dict[int, float], of_paper: bool) -> None:
    """Draw one quantity, before the paper's band if it has one and the config is the paper's."""
    axis.set_title(QUANTITIES[name][1], fontsize="small", loc="left")
    draw_line(axis, values, OURS)
    if of_paper and name in BANDS:
        steps = np.linspace(0, max(values), BAND_POINTS)
        bounds = np.array([band(name, int(step)) for step in steps])
        axis.fill_between(steps, bounds[:, 0], bounds[:, 1], color=PAPER, alpha=0.25, linewidth=0, zorder=0)
    elif (numbers := np.nan_to_num(list(values.values()))).min() >= 0:
        axis.set_ylim(0, 1.1 * numbers.max() or 1)


def draw_validation(axis, sets: dict[str, dict[int, float]], config: DictConfig) -> None:
    """Draw the accuracy of each validation set, and the published AIME24 of the paper's plain runs."""
    for i, (name, values) in enumerate(sets.items()):
        draw_line(axis, values, colour(i), label=label(name))
    if has_bands(config):
        steps, percent = zip(*AIME24[backbone(config)], strict=True)
        axis.plot(steps, np.array(percent) / 100, color=PAPER, linestyle="--", label="AIME24, paper, by eye")
    axis.set_title("validation accuracy", fontsize="small", loc="left")
    axis.set_ylim(-0.02, 1.02)
    axis.legend(ncols=2, fontsize="x-small", handlelength=1.2, columnspacing=1, framealpha=0.7)
