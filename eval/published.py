"""The paper's table of results (`published.json`), and a model's scores beside it."""

import json
import math
from pathlib import Path

import numpy as np

from data_prep.benchmarks import BENCHMARKS
from eval.page import Cell, percent
from eval.statistics import sampling_error

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
NORMAL_95 = 1.96


def published(model: str) -> dict[str, float] | None:
    """Return benchmark, and "mean", to the published avg@N as a share; None for a model without a row.

    Args:
        model: a row's name, a hub id, or a folder that is named like the model.
    """
    rows = {name.lower(): row for name, row in PUBLISHED["models"].items()}
    row = rows.get(Path(model).name.lower())
    pairs = zip(PUBLISHED["benchmarks"], row or (), strict=row is not None)
    return {name: value / 100 for name, value in pairs if value is not None} if row else None


def beside_published(tasks: dict[str, dict], theirs: dict[str, float]) -> list[list[Cell | str]]:
    """Return a table's rows, the header first, of the benchmarks that are here whole and with the paper's samples.

    The problems are the same, so the difference varies with what was sampled alone, on both sides; the paper's
    sampling error, which it does not give, is taken to be ours.
    """
    sizes = {task: (benchmark.problems, benchmark.samples) for task, benchmark in BENCHMARKS.items()}
    there = [t for t in theirs if t in tasks and (tasks[t]["problems"], tasks[t]["samples"]) == sizes[t]]
    groups = {task: [task] for task in there} | ({"mean": there} if len(there) == len(BENCHMARKS) else {})
    rows: list[list[Cell | str]] = [["benchmark", "grader", "ours", "published", "difference"]]
    for name, group in groups.items():
        for track in tasks[group[0]]["tracks"]:
            results = [tasks[task]["tracks"][track] for task in group]
            errors = [
                sampling_error(np.array([*result["per_problem"].values()]), sizes[task][1])
                for task, result in zip(group, results, strict=True)
            ]
            ours = sum(result["avg"] for result in results) / len(group)
            half, difference = NORMAL_95 * math.sqrt(2) * math.hypot(*errors) / len(group), ours - theirs[name]
            bounds = (difference - half, difference + half)
            published = Cell(f"{100 * theirs[name]:.2f}", theirs[name])
            rows.append([name, track, percent(ours), published, percent(difference, bounds, signed=True)])
    return rows
