"""The paper's table of results (`published.json`), and a model's scores beside it."""

import json
import math
from pathlib import Path

import numpy as np

from common.markdown import signed_percent
from data_prep.benchmarks import PAPER_BENCHMARKS
from eval.statistics import sampling_error
from eval.tables import Table, interval_cell

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
NORMAL_95 = 1.96


def published_row(model: str) -> dict[str, float] | None:
    """Map benchmarks, and "mean", to the published avg@N as a fraction; None for a model without a row.

    Args:
        model: a row's name, a hub id, or a folder that is named like the model.
    """
    rows = {name.lower(): row for name, row in PUBLISHED["models"].items()}
    row = rows.get(Path(model).name.lower())
    pairs = zip(PUBLISHED["benchmarks"], row or (), strict=row is not None)
    return {name: value / 100 for name, value in pairs if value is not None} if row else None


def beside_published(tasks: dict[str, dict], paper: dict[str, float]) -> Table:
    """Compare the benchmarks that are here complete and with the paper's number of samples.

    The problems are the same, so the difference varies with what was sampled alone, on both sides; the paper's
    sampling error, which it does not give, is taken to be ours.
    """
    sizes = {task: (benchmark.problems, benchmark.samples) for task, benchmark in PAPER_BENCHMARKS.items()}
    there = [t for t in sizes if t in paper and t in tasks and (tasks[t]["problems"], tasks[t]["samples"]) == sizes[t]]
    groups = {task: [task] for task in there} | ({"mean": there} if len(there) == len(PAPER_BENCHMARKS) else {})
    rows = []
    for name, group in groups.items():
        for track in tasks[group[0]]["tracks"]:
            results = {task: tasks[task]["tracks"][track] for task in group}
            fractions = {task: np.array([*result["per_problem"].values()]) for task, result in results.items()}
            error = math.hypot(*(sampling_error(table, sizes[task][1]) for task, table in fractions.items()))
            half = NORMAL_95 * math.sqrt(2) * error / len(group)
            ours = sum(result["avg"] for result in results.values()) / len(group)
            gap = ours - paper[name]
            row = {"benchmark": name, "grader": track, "ours": ours, "published": paper[name]}
            rows.append(row | {"difference": interval_cell(gap, (gap - half, gap + half))})
    return Table(rows, {"published": lambda value: f"{100 * value:.2f}", "difference": signed_percent})
