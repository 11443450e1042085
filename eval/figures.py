"""The report's figures of evaluations: scores, pass@k and lengths."""

from pathlib import Path

import numpy as np

from common.figures import colour, label, panels, save
from common.markdown import percent
from common.svg import show_values
from eval.results import Results


def draw_scores(scores: dict[str, dict[str, dict]], path: Path) -> None:
    """Draw benchmark to model to score and interval (fractions), the first benchmark on top."""
    models = list(next(iter(scores.values())))
    figure, (axis,) = panels(1, 0.7 + len(scores) * (0.2 + 0.13 * len(models)))
    for i, name in enumerate(models):
        ends = [[by_model[name][key] for by_model in scores.values()] for key in ("value", "low", "high")]
        value, low, high = 100 * np.array(ends)
        rows = np.arange(len(scores)) + (i - (len(models) - 1) / 2) * 0.7 / len(models)
        bars = np.clip([value - low, high - value], 0, None)
        axis.errorbar(value, rows, xerr=bars, fmt="o", color=colour(i), label=label(name), markersize=4)
        texts = [f"{name}, {row}: {percent(by_model[name])} percent" for row, by_model in scores.items()]
        show_values(axis, value, rows, texts, colour(i))
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set(xlim=(-2, 102), ylim=(len(scores) - 0.5, -0.5), xlabel="percent correct, with 95 % interval over problems")
    save(figure, path, legend=axis)


def draw_pass_at_k(results: Results, path: Path) -> None:
    """Draw pass@k by k on the results' track, a panel for each benchmark."""
    figure, axes = panels(len(results.tasks))
    for axis, (task, models) in zip(axes, results.tasks.items(), strict=True):
        for i, (name, part) in enumerate(models.items()):
            by_k = {int(k): 100 * value for k, value in part["tracks"][results.track]["pass"].items()}
            ks = sorted(by_k)
            axis.plot(ks, [by_k[k] for k in ks], "o-", color=colour(i), label=label(name), markersize=3)
            texts = [f"{name}: pass@{k} {by_k[k]:.1f} percent" for k in ks]
            show_values(axis, ks, [by_k[k] for k in ks], texts, colour(i))
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, ks)
        axis.set(ylim=(-3, 103), xlabel="k", ylabel="pass@k, percent")
        axis.set_title(task, loc="left", fontsize="medium")
    save(figure, path, legend=axes[0])


def draw_lengths(results: Results, path: Path) -> None:
    """Draw histograms of the lengths of correct and incorrect responses, a panel for each benchmark that has them.

    Of the first and the last model: more would hide each other.
    """
    from matplotlib import ticker

    shown = (results.models[0], results.models[-1])
    tasks = {task: models for task, models in results.tasks.items() if any(models[name]["tokens"] for name in shown)}
    figure, axes = panels(len(tasks))
    for axis, (task, models) in zip(axes, tasks.items(), strict=True):
        for i, (name, part) in enumerate(models.items()):
            if name in shown and part["tokens"]:
                draw_histogram(axis, part["tokens"], colour(i), name)
        axis.set(xlabel="tokens", ylabel="density", yticks=[])
        axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_title(task, loc="left", fontsize="medium")
    save(figure, path, legend=axes[0])


def draw_histogram(axis, lengths: dict, shade: str, name: str) -> None:
    every = (sum(lengths["right"]) + sum(lengths["wrong"])) * np.diff(lengths["edges"])
    edges = np.array(lengths["edges"])
    for outcome, style, word in (("right", "-", "correct"), ("wrong", ":", "incorrect")):
        named = label(name) if outcome == "right" else None
        heights = np.array(lengths[outcome]) / every
        axis.stairs(heights, edges, color=shade, linestyle=style, label=named)
        bins = zip(edges, edges[1:], lengths[outcome], strict=False)
        texts = [f"{name}, {low:,.0f} to {high:,.0f} tokens: {count:,} {word}" for low, high, count in bins]
        show_values(axis, (edges[1:] + edges[:-1]) / 2, heights, texts, shade)
