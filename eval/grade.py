"""Grade sampled responses: python -m eval.grade DIR

Reads every `<task>.samples.jsonl` in DIR and writes `<task>.grades.jsonl` and `scores.json`. The track is
"training-reward": the same strict match that training used (`reward/justrl.py`).

example: python -m eval.grade outputs/demo/eval/base
"""

import argparse
import json
from pathlib import Path

import numpy as np

from data_prep.command import run as run_command
from data_prep.files import write_text_whole
from eval.generate import read_samples
from eval.statistics import average, bootstrap_interval
from reward.justrl import BOX, WINDOW, compute_score

TRACK = "training-reward"


def grade(record: dict) -> dict:
    """Return the grade of one sample, with the reason of a wrong one."""
    # A gold longer than training's window widens it: it would be wrong for ever otherwise.
    window = max(WINDOW, len(BOX) + len(record["answer"]) + 1)
    row = {"index": record["problem_id"]}
    result = compute_score(record["task"], record["response"], record["answer"], row, window=window)
    if result["acc"]:
        reason = "match"
    elif result["pred"]:
        reason = "another answer"
    else:
        reason = "no box" if record["finish_reason"] == "stop" else "no box, cut off"
    keys = {name: record[name] for name in ("task", "problem_id", "sample")}
    return keys | {"rule": int(result["acc"]), "judge": None, "reason": reason}


def table(grades: list[dict]) -> dict[str, list[int]]:
    """Return problem id to the grades of its samples."""
    by_problem: dict[str, list[int]] = {}
    for record in grades:
        by_problem.setdefault(record["problem_id"], []).append(record["rule"])
    return by_problem


def score(grades: list[dict], tokens: list[int]) -> dict:
    """Return a task's statistics.

    Raises:
        ValueError: some problems have more samples than others; the mean would favour them.
    """
    by_problem = table(grades)
    counts = {len(values) for values in by_problem.values()}
    if len(counts) != 1:
        raise ValueError(f"problems have between {min(counts)} and {max(counts)} samples; run eval.generate again")
    values = np.array(list(by_problem.values()), dtype=float)
    low, high = bootstrap_interval(values.mean(axis=1))
    return {
        "problems": len(by_problem),
        "samples": counts.pop(),
        "avg": average(values),
        "ci95": [low, high],
        "no_box": sum(record["reason"].startswith("no box") for record in grades) / len(grades),
        "mean_tokens": sum(tokens) / len(tokens),
        "per_problem": {problem: sum(right) / len(right) for problem, right in by_problem.items()},
    }


def run(folder: Path) -> dict:
    """Grade every task of a folder and return its scores."""
    paths = sorted(folder.glob("*.samples.jsonl"))
    if not paths:
        raise ValueError(f"{folder}: has no *.samples.jsonl; run eval.generate first")
    tasks, model = {}, None
    for path in paths:
        task = path.name.removesuffix(".samples.jsonl")
        records = read_samples(path)
        grades = [grade(record) for record in records]
        write_text_whole(folder / f"{task}.grades.jsonl", "".join(json.dumps(record) + "\n" for record in grades))
        tasks[task] = score(grades, [record["tokens"] for record in records])
        model = json.loads((folder / f"{task}.meta.json").read_text())["model"]
    scores = {
        "model": model,
        "track": TRACK,
        "mean": float(np.mean([t["avg"] for t in tasks.values()])),
        "tasks": tasks,
    }
    write_text_whole(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with *.samples.jsonl")
    args = parser.parse_args()
    scores = run(args.folder)
    for task, values in scores["tasks"].items():
        low, high = values["ci95"]
        print(f"  {task}: avg@{values['samples']} {100 * values['avg']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")


if __name__ == "__main__":
    run_command(main)
