"""A run's curves as one picture, with the paper's bands and curve behind them where the run is one of the paper's."""

from pathlib import Path

import matplotlib
import numpy as np
from omegaconf import DictConfig

from recipe.curves import AIME24, BANDS, backbone, band, has_bands
from recipe.health import QUANTITIES, series

COLUMNS = 2
PANEL = (5.0, 2.6)  # inches
OURS, PAPERS = "#1f6f8b", "#e0a030"
COLOURS = (OURS, "#b5483a", "#5b8c3e", "#7a5195")  # of validation sets
VALIDATION_PANEL = 3  # after reward, entropy and length
MANY_STEPS = 100  # from here on a line is drawn without markers, and its running mean over it


def draw_curves(by_step: dict[int, dict], config: DictConfig, path: Path) -> None:
    """Draw every quantity that the run has, and its validation sets, over steps; write a PNG, whole."""
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    curves, last = series(by_step, config), max(by_step)
    names = [name for name in QUANTITIES if name in curves]
    sets = {name: values for name, values in curves.items() if name not in QUANTITIES}
    if sets:
        names.insert(VALIDATION_PANEL, "validation")
    rows = -(-len(names) // COLUMNS)
    size = (PANEL[0] * COLUMNS, PANEL[1] * rows)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        if name == "validation":
            draw_validation(axis, sets, config)
        else:
            draw_quantity(axis, name, curves[name], has_bands(config))
        axis.set_xlim(-0.02 * last, 1.02 * last)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=110, format="png")
    pyplot.close(figure)
    aside.replace(path)


def draw_line(axis, values: dict[int, float], colour: str, **options) -> None:
    """Draw values by step; of many, faint, with their running mean over a fiftieth of them."""
    steps, numbers = list(values), np.array(list(values.values()))
    if len(steps) < MANY_STEPS:
        axis.plot(steps, numbers, color=colour, marker="o", markersize=3, **options)
        return
    axis.plot(steps, numbers, color=colour, alpha=0.25, linewidth=0.7)
    window = len(steps) // 50
    mean = np.convolve(numbers, np.ones(window) / window, mode="valid")
    axis.plot(steps[window // 2 :][: len(mean)], mean, color=colour, **options)


def draw_quantity(axis, name: str, values: dict[int, float], papers: bool) -> None:
    """Draw one quantity, before the paper's band if it has one and the run is one of the paper's."""
    axis.set_title(QUANTITIES[name][1], fontsize="medium", loc="left")
    draw_line(axis, values, OURS)
    if papers and name in BANDS:
        steps = np.arange(max(values) + 1)
        low, high = zip(*(band(name, step) for step in steps), strict=True)
        axis.fill_between(steps, low, high, color=PAPERS, alpha=0.25, linewidth=0, zorder=0)
        axis.set_title("shaded: the paper's band", fontsize="small", loc="right")
    elif (numbers := np.nan_to_num(list(values.values()))).min() >= 0:
        axis.set_ylim(0, 1.1 * numbers.max() or 1)


def draw_validation(axis, sets: dict[str, dict[int, float]], config: DictConfig) -> None:
    """Draw the accuracy of each validation set, and the published AIME24 of the paper's plain runs."""
    for i, (name, values) in enumerate(sets.items()):
        draw_line(axis, values, COLOURS[i % len(COLOURS)], label=name)
    if has_bands(config):
        steps, percent = zip(*AIME24[backbone(config)], strict=True)
        axis.plot(steps, np.array(percent) / 100, color=PAPERS, linestyle="--", label="AIME24, paper, by eye")
    axis.set_title("validation accuracy", fontsize="medium", loc="left")
    axis.set_ylim(-0.02, 1.02)
    place = {"loc": "lower right", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0, "columnspacing": 1}
    axis.legend(ncols=2, frameon=False, fontsize="small", handlelength=1.2, **place)
