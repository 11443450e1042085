"""Samples on disk, a JSON line for each response: ours, or the official release's.

Ours are `<task>.samples.jsonl` with `task`, `problem_id`, `sample`, `seed`, `prompt`, `answer` (the reference answer as
the benchmark states it), `response`, `tokens` and `finish_reason`. The release's, `<task>_t0.7_p0.9_n32-MNT31744.jsonl`
and the like, have `example_id`, `prompt`, `answer`, `seed` and `response`.
"""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from common.json_lines import name_lines, read_json, read_lines, read_shapes
from data_prep.benchmarks import BENCHMARKS, in_order

ENDING = ".samples.jsonl"
OFFICIAL, TYPED, JUDGED = "official", "strict-typed", "official+judge"  # the tracks of their grades
SHAPES = read_shapes(Path(__file__).parent)
# How the release samples, beside the number of samples.
PROTOCOL = {"prompt": "evaluation", "temperature": 0.7, "top_p": 0.9, "max_tokens": 31744}
NUMBER = r"(\d+(?:\.\d+)?)"
RELEASED = re.compile(rf"(.+?)_t{NUMBER}_p{NUMBER}_n\d+-MNT(\d+)\.jsonl")
OURS, RELEASE = "eval.generate", "the release"
# What decides a sample, beside the problems: all tasks of a folder have the same.
SHARED = "format model revision files endpoint prompt temperature top_p max_tokens base_seed".split()


def find_samples(folder: Path) -> dict[str, Path]:
    """Map tasks to samples files, ours or the release's, in the order of the table of benchmarks."""
    files = {path.name.removesuffix(ENDING): path for path in sorted(folder.glob(f"*{ENDING}"))}
    names = {task.lower(): task for task in BENCHMARKS}
    for path in sorted(folder.glob("*.jsonl")):
        if match := RELEASED.fullmatch(path.name):
            task = names.get(match[1].lower()) or match[1]
            if task in files:
                raise ValueError(f"{folder}: {files[task].name} and {path.name} are both of {task}; keep one")
            files[task] = path
    return {task: files[task] for task in in_order(files)}


def sample_files(folder: Path) -> dict[str, Path]:
    """Find the samples files of a folder as `find_samples` does; ValueError if there are none."""
    if files := find_samples(folder):
        return files
    raise ValueError(f"{folder}: has no *{ENDING} and no *-MNT*.jsonl of the release; run eval.generate first")


def settings_of(path: Path, task: str) -> dict:
    """Read what made a samples file: of ours its settings; the release's are in its name, the model its folder's."""
    if match := RELEASED.fullmatch(path.name):
        count = {"problem_count": BENCHMARKS[task].problems} if task in BENCHMARKS else {}
        sampling = {"temperature": float(match[2]), "top_p": float(match[3]), "max_tokens": int(match[4])}
        return {"format": RELEASE, "model": path.resolve().parent.name, **sampling, **count}
    fix = f"without it {path.name} cannot be used: delete both and run eval.generate again"
    return {"format": OURS} | read_json(path.with_name(f"{task}.meta.json"), shape=SHAPES["settings"], fix=fix)


def check_alike(folder: Path, settings: dict[str, dict]) -> None:
    """Raise a ValueError if the tasks of a folder differ in a setting; one that an older file lacks does not count."""
    for name in SHARED:
        there = {task: given[name] for task, given in settings.items() if name in given}
        first = next(iter(there), "")
        for task, value in there.items():
            if value != there[first]:
                both = f"{first} has {name}={there[first]!r:.99} and {task} {name}={value!r:.99}"
                fix = "choose another --output for one of them, or move its files"
                raise ValueError(f"{folder}: {both}; the tasks of a folder have one model and one sampling: {fix}")


def check_complete(path: Path, made_by: dict, counts: Mapping[str, int]) -> None:
    """Raise a ValueError if fewer problems have samples, or fewer samples each, than the settings that made them state.

    Args:
        counts: problem id to number of samples.
    """
    if made_by.get("problem_count") not in (None, len(counts)):
        total = made_by["problem_count"]
        raise ValueError(f"{path}: has samples of {len(counts)} problems of {total}; run eval.generate again")
    if made_by.get("samples", 0) > (samples := max(counts.values())):
        raise ValueError(f"{path}: has {samples} samples per problem of {made_by['samples']}; run eval.generate again")


def read_samples(path: Path, task: str | None = None) -> list[dict]:
    """Read a samples file, in either format, as ours.

    Damaged lines of ours are left out with a note: `eval.generate` makes those samples again.
    """
    task = task or path.name.removesuffix(ENDING)
    is_release = RELEASED.fullmatch(path.name)
    records, bad = read_lines(path, SHAPES["released sample" if is_release else "sample"])
    if bad and (is_release or not records or any(line.record is not None for line in bad)):
        raise ValueError(f"{name_lines(path, bad)}; is it a samples file? correct or remove the line")
    if bad:
        print(f"{name_lines(path, bad)}; left out", file=sys.stderr)
    if is_release:
        records = [from_release(task, record) for record in records]
    check_samples(path, records)
    number_samples(records)
    return records


def from_release(task: str, record: dict) -> dict:
    """Convert a line of the release to our format; what it does not state is None."""
    made = {"task": task, "problem_id": f"{task}-{record['example_id']}", "sample": None, "seed": record.get("seed")}
    return made | {name: record.get(name) for name in ("prompt", "answer", "response", "tokens", "finish_reason")}


def check_samples(path: Path, records: list[dict]) -> None:
    """Raise a ValueError for two reference answers to a problem, and a sample (number or seed) that is there twice."""
    answers = {record["problem_id"]: record["answer"] for record in records}
    for problem, one in ((record["problem_id"], record["answer"]) for record in records):
        if one != (other := answers[problem]):
            raise ValueError(f"{path}: {problem!r:.99} has two answers, {one!r:.99} and {other!r:.99}; keep one")
    numbers = [record["seed"] if record["sample"] is None else record["sample"] for record in records]
    keys = [(record["problem_id"], number) for record, number in zip(records, numbers, strict=True)]
    samples = Counter(key for key in keys if key[1] is not None)
    for (problem, sample), count in samples.most_common(1):
        if count > 1:
            raise ValueError(
                f"{path}: sample {sample} of problem {problem} is there {count} times; remove all but one line"
            )


def number_samples(records: list[dict]) -> None:
    """Number each problem's samples, in place and in the file's order, where the release has no numbers."""
    seen: Counter = Counter()
    for record in records:
        if record["sample"] is None:
            record["sample"] = seen[record["problem_id"]]
            seen[record["problem_id"]] += 1
