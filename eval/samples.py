"""Samples on disk, a JSON line for each response: ours, or the official release's.

Ours are `<task>.samples.jsonl` with `task`, `problem_id`, `sample`, `seed`, `prompt`, `answer` (the reference answer as
the benchmark states it), `response`, `tokens` and `finish_reason`. The release's, `<task>_t0.7_p0.9_n32-MNT31744.jsonl`
and the like, have `example_id`, `prompt`, `answer`, `seed` and `response`.
"""

import re
import sys
from collections import Counter
from pathlib import Path

from common.json_lines import name_lines, read_lines
from data_prep.benchmarks import BENCHMARKS

ENDING = ".samples.jsonl"
# How the release samples, beside the number of samples.
PROTOCOL = {"prompt": "evaluation", "temperature": 0.7, "top_p": 0.9, "max_tokens": 31744}
RELEASED = re.compile(r"(.+?)_t[\d.]+_p[\d.]+_n\d+-MNT\d+\.jsonl")


def sample_files(folder: Path) -> dict[str, Path]:
    """Map tasks to samples files, ours or the release's, in the order of the paper's table."""
    files = {path.name.removesuffix(ENDING): path for path in sorted(folder.glob(f"*{ENDING}"))}
    names = {task.lower(): task for task in BENCHMARKS}
    for path in sorted(folder.glob("*.jsonl")):
        if match := RELEASED.fullmatch(path.name):
            task = names.get(match[1].lower()) or match[1]
            if task in files:
                raise ValueError(f"{folder}: {files[task].name} and {path.name} are both of {task}; keep one")
            files[task] = path
    if not files:
        raise ValueError(f"{folder}: has no *{ENDING} and no *-MNT*.jsonl of the release; run eval.generate first")
    order = list(BENCHMARKS)
    return dict(sorted(files.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def read_samples(path: Path, task: str | None = None) -> list[dict]:
    """Read a samples file, in either format, as ours; damaged lines are left out with a note."""
    records, damaged = read_lines(path)
    if damaged and not records:
        raise ValueError(f"{name_lines(path, damaged)}; is it a samples file?")
    if damaged:
        print(f"{name_lines(path, damaged)}; left out", file=sys.stderr)
    task = task or path.name.removesuffix(ENDING)
    try:
        if records and "example_id" in records[0]:
            records = [from_release(task, record) for record in records]
        check_samples(path, records)
    except KeyError as error:
        raise ValueError(f"{path}: a sample lacks {error}; is it a samples file?") from error
    number_samples(records)
    return records


def from_release(task: str, record: dict) -> dict:
    """Convert a line of the release to our format; what it does not state is None."""
    made = {"task": task, "problem_id": f"{task}-{record['example_id']}", "sample": None, "seed": record.get("seed")}
    return made | {name: record.get(name) for name in ("prompt", "answer", "response", "tokens", "finish_reason")}


def check_samples(path: Path, records: list[dict]) -> None:
    """Raise a KeyError for a field that is missing or no text, and a ValueError for a sample that is there twice."""
    keys = [(record["problem_id"], record["seed"], record["sample"]) for record in records]
    for field, kinds in (("answer", str), ("response", str), ("prompt", (str, type(None)))):
        if not all(isinstance(record[field], kinds) for record in records):
            raise KeyError(f"{field} as text")
    samples = Counter((problem, seed if sample is None else sample) for problem, seed, sample in keys)
    for (problem, sample), count in samples.most_common(1):
        if count > 1:
            raise ValueError(
                f"{path}: sample {sample} of problem {problem} is there {count} times; remove all but one line"
            )


def number_samples(records: list[dict]) -> None:
    """Number each problem's samples, in place, where the release has no numbers."""
    seen: Counter = Counter()
    for record in records:
        if record["sample"] is None:
            record["sample"] = seen[record["problem_id"]]
            seen[record["problem_id"]] += 1
