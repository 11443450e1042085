"""Benchmarks by suite: what the main score is over, a report's rows, and one suite alone."""

from collections.abc import Iterable

import numpy as np

from data_prep.benchmarks import ALL, PAPER, in_order, suite_of
from eval.statistics import mean_interval


def by_suite(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Map suites to their benchmarks, in the order of the table: of the paper, of 2026, your own."""
    suites: dict[str, list[str]] = {}
    for task in in_order(tasks):
        suites.setdefault(suite_of(task), []).append(task)
    return suites


def main_benchmarks(tasks: Iterable[str]) -> list[str]:
    """Return the benchmarks whose mean is the main score, here and in a report: those of the first suite."""
    return next(iter(by_suite(tasks).values()), [])


def main_score(tasks: dict[str, dict], track: str) -> dict:
    """Return a model's main score on a track, as `mean` and `ci95`, and those of all tracks, as `means`."""
    main = [tasks[task]["tracks"] for task in main_benchmarks(tasks)]
    means = {}
    for name in main[0]:
        if all(name in tracks for tracks in main):
            mean, bounds = mean_interval([np.array([*tracks[name]["per_problem"].values()]) for tracks in main])
            means[name] = {"avg": mean, "ci95": bounds}
    return {"mean": means[track]["avg"], "ci95": means[track]["ci95"], "means": means}


def of_suite(scores: dict[str, dict], suite: str) -> dict[str, dict]:
    """Leave of each model's scores the benchmarks of a suite, and their mean; ValueError if a model has none."""
    if suite == ALL:
        return scores
    kept = {}
    for model, given in scores.items():
        tasks = {task: part for task, part in given["tasks"].items() if suite_of(task) == suite}
        if not tasks:
            raise ValueError(f"--suite {suite}: {model} has none of its benchmarks, but {', '.join(given['tasks'])}")
        kept[model] = given | {"tasks": tasks} | main_score(tasks, given["track"])
    return kept


def grouped(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Map a table's rows to their benchmarks: those of a suite, each by itself, and their mean if there are several.

    The mean over the benchmarks of the paper, or of a single suite, is "mean of 9".
    """
    rows: dict[str, list[str]] = {}
    suites = by_suite(tasks)
    for suite, members in suites.items():
        rows |= {task: [task] for task in members}
        if members[1:]:
            is_short = suite == PAPER or len(suites) == 1
            size = len(members)
            rows[f"mean of {size}" if is_short else f"mean of the {size} benchmarks of {suite}"] = members
    return rows
