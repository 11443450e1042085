"""The report's pictures: scores, pass@k, lengths, and a run's curves before the paper's where the run is one of its.

All are as wide as a page's text and two panels across, so that they can be read on a phone.
"""

from pathlib import Path

import matplotlib
import numpy as np
from omegaconf import DictConfig

from common.files import atomic
from recipe.monitor.curves import AIME24, BANDS, backbone, band, has_bands
from recipe.monitor.health import QUANTITIES, series

WIDTH, PANEL = 6.4, 2.0  # inches: of a picture, and a panel's height
OURS, PAPERS = "#1f6f8b", "#e0a030"
COLOURS = (OURS, "#b5483a", "#5b8c3e", "#7a5195", "#c17f1b", "#4a4e57", "#2a9d8f", "#d1679b")  # of models and sets
VALIDATION_PANEL = 3  # after reward, entropy and length
MANY_STEPS = 100  # from here on a line is drawn without markers, and its running mean over it
LOOK = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}


def colour(i: int) -> str:
    """Return the colour of the i-th model or set; they come round."""
    return COLOURS[i % len(COLOURS)]


def panels(count: int, height: float = PANEL):
    """Return a figure and as many axes, two in a row."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(LOOK)
    columns = min(2, count)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, height * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes.flat[:count]


def save(figure, path: Path, legend=None) -> None:
    """Write a figure as PNG, whole, and forget it; the lines of the axis `legend` are named above all panels."""
    from matplotlib import pyplot

    if legend:
        lines, names = legend.get_legend_handles_labels()
        across = max(1, 80 // (8 + max(map(len, names))))  # as many as fit
        figure.legend(lines, names, loc="outside upper left", ncols=across, frameon=False, handlelength=1.6)
    with atomic(path) as aside:
        figure.savefig(aside, dpi=200, format="png")
    pyplot.close(figure)


def draw_scores(scores: dict[str, dict[str, tuple[float, tuple[float, float]]]], path: Path) -> None:
    """Draw benchmark to model to score and interval (shares), the first benchmark on top."""
    models = len(next(iter(scores.values())))
    figure, (axis,) = panels(1, 0.7 + len(scores) * (0.2 + 0.13 * models))
    for i, name in enumerate(next(iter(scores.values()))):
        share, low, high = np.array([(by_model[name][0], *by_model[name][1]) for by_model in scores.values()]).T * 100
        rows = np.arange(len(scores)) + (i - (models - 1) / 2) * 0.7 / models
        ends = np.clip([share - low, high - share], 0, None)
        axis.errorbar(share, rows, xerr=ends, fmt="o", color=colour(i), label=name, markersize=4)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set(xlim=(-2, 102), ylim=(len(scores) - 0.5, -0.5), xlabel="percent right, with 95 % interval over problems")
    save(figure, path, legend=axis)


def draw_pass_at_k(tasks: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draw task to model to pass@k by k, a panel for each task."""
    figure, axes = panels(len(tasks))
    for axis, (task, models) in zip(axes, tasks.items(), strict=True):
        for i, (name, by_k) in enumerate(models.items()):
            ks = sorted(map(int, by_k))
            axis.plot(ks, [100 * by_k[str(k)] for k in ks], "o-", color=colour(i), label=name, markersize=3)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, ks)
        axis.set(ylim=(-3, 103), xlabel="k", ylabel="pass@k, percent")
        axis.set_title(task, loc="left", fontsize="medium")
    save(figure, path, legend=axes[0])


def draw_lengths(tasks: dict[str, dict[str, dict]], path: Path) -> None:
    """Draw task to model to its histogram (`edges` in tokens, counts of `right` and `wrong`), or None, a panel each."""
    from matplotlib import ticker

    figure, axes = panels(len(tasks))
    for axis, (task, models) in zip(axes, tasks.items(), strict=True):
        for i, (name, lengths) in ((i, item) for i, item in enumerate(models.items()) if item[1]):
            every = (sum(lengths["right"]) + sum(lengths["wrong"])) * np.diff(lengths["edges"])
            for which, style, label in (("right", "-", name), ("wrong", ":", None)):
                density = np.array(lengths[which]) / every
                axis.stairs(density, lengths["edges"], color=colour(i), linestyle=style, label=label)
        axis.set(xlabel="tokens", ylabel="density", yticks=[])
        axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_title(task, loc="left", fontsize="medium")
    save(figure, path, legend=axes[0])


def draw_curves(by_step: dict[int, dict], config: DictConfig, path: Path) -> None:
    """Draw every quantity that the run has, and its validation sets, over steps."""
    from matplotlib import ticker

    curves, last = series(by_step, config), max(by_step)
    names = [name for name in QUANTITIES if name in curves]
    sets = {name: values for name, values in curves.items() if name not in QUANTITIES}
    if sets:
        names.insert(VALIDATION_PANEL, "validation")
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        if name == "validation":
            draw_validation(axis, sets, config)
        else:
            draw_quantity(axis, name, curves[name], has_bands(config))
        axis.set_xlim(-0.02 * last, 1.02 * last)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    save(figure, path)


def draw_line(axis, values: dict[int, float], shade: str, **options) -> None:
    """Draw values by step; of many, faint, with their running mean over a fiftieth of them."""
    steps, numbers = list(values), np.array(list(values.values()))
    if len(steps) < MANY_STEPS:
        axis.plot(steps, numbers, color=shade, marker="o", markersize=3, **options)
        return
    axis.plot(steps, numbers, color=shade, alpha=0.25, linewidth=0.7)
    window = len(steps) // 50
    mean = np.convolve(numbers, np.ones(window) / window, mode="valid")
    axis.plot(steps[window // 2 :][: len(mean)], mean, color=shade, **options)


def draw_quantity(axis, name: str, values: dict[int, float], papers: bool) -> None:
    """Draw one quantity, before the paper's band if it has one and the run is one of the paper's."""
    axis.set_title(QUANTITIES[name][1], fontsize="small", loc="left")
    draw_line(axis, values, OURS)
    if papers and name in BANDS:
        steps = np.arange(max(values) + 1)
        low, high = zip(*(band(name, step) for step in steps), strict=True)
        axis.fill_between(steps, low, high, color=PAPERS, alpha=0.25, linewidth=0, zorder=0)
    elif (numbers := np.nan_to_num(list(values.values()))).min() >= 0:
        axis.set_ylim(0, 1.1 * numbers.max() or 1)


def draw_validation(axis, sets: dict[str, dict[int, float]], config: DictConfig) -> None:
    """Draw the accuracy of each validation set, and the published AIME24 of the paper's plain runs."""
    for i, (name, values) in enumerate(sets.items()):
        draw_line(axis, values, colour(i), label=name)
    if has_bands(config):
        steps, percent = zip(*AIME24[backbone(config)], strict=True)
        axis.plot(steps, np.array(percent) / 100, color=PAPERS, linestyle="--", label="AIME24, paper, by eye")
    axis.set_title("validation accuracy", fontsize="small", loc="left")
    axis.set_ylim(-0.02, 1.02)
    axis.legend(ncols=2, fontsize="x-small", handlelength=1.2, columnspacing=1, framealpha=0.7)
