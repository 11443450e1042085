"""The report's figures of evaluations: scores, pass@k and lengths."""

from pathlib import Path

import numpy as np

from common.figures import colour, panels, save


def draw_scores(scores: dict[str, dict[str, dict]], path: Path) -> None:
    """Draw benchmark to model to score and interval (fractions), the first benchmark on top."""
    models = list(next(iter(scores.values())))
    figure, (axis,) = panels(1, 0.7 + len(scores) * (0.2 + 0.13 * len(models)))
    for i, name in enumerate(models):
        ends = [[by_model[name][key] for by_model in scores.values()] for key in ("value", "low", "high")]
        value, low, high = 100 * np.array(ends)
        rows = np.arange(len(scores)) + (i - (len(models) - 1) / 2) * 0.7 / len(models)
        bars = np.clip([value - low, high - value], 0, None)
        axis.errorbar(value, rows, xerr=bars, fmt="o", color=colour(i), label=name, markersize=4)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set(xlim=(-2, 102), ylim=(len(scores) - 0.5, -0.5), xlabel="percent correct, with 95 % interval over problems")
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
    """Draw task to model to `tokens` of scores.json, or None: lengths of correct and incorrect ones, a panel each."""
    from matplotlib import ticker

    figure, axes = panels(len(tasks))
    for axis, (task, models) in zip(axes, tasks.items(), strict=True):
        for i, (name, lengths) in enumerate(models.items()):
            if not lengths:
                continue
            every = (sum(lengths["right"]) + sum(lengths["wrong"])) * np.diff(lengths["edges"])
            for outcome, style, label in (("right", "-", name), ("wrong", ":", None)):
                density = np.array(lengths[outcome]) / every
                axis.stairs(density, lengths["edges"], color=colour(i), linestyle=style, label=label)
        axis.set(xlabel="tokens", ylabel="density", yticks=[])
        axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_title(task, loc="left", fontsize="medium")
    save(figure, path, legend=axes[0])
