"""Samples on disk, a JSON line for each response: ours, or the official release's.

Ours are `<task>.samples.jsonl` with `task`, `problem_id`, `sample`, `seed`, `prompt`, `answer` (the gold as the
benchmark states it), `response`, `tokens` and `finish_reason`. The release's, `<task>_t0.7_p0.9_n32-MNT31744.jsonl` and
the like, have `example_id`, `prompt`, `answer`, `seed` and `response`.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

from common.files import write_text
from data_prep.benchmarks import BENCHMARKS

ENDING = ".samples.jsonl"
RELEASED = re.compile(r"(.+?)_t[\d.]+_p[\d.]+_n\d+-MNT\d+\.jsonl")


def sample_files(folder: Path) -> dict[str, Path]:
    """Return task to samples file, ours or the release's, in the order of the paper's table.

    Raises:
        ValueError: there is none.
    """
    files = {path.name.removesuffix(ENDING): path for path in sorted(folder.glob(f"*{ENDING}"))}
    names = {task.lower(): task for task in BENCHMARKS}
    for path in sorted(folder.glob("*.jsonl")):
        if match := RELEASED.fullmatch(path.name):
            task = names.get(match[1].lower(), match[1])
            if task in files:
                raise ValueError(f"{folder}: {files[task].name} and {path.name} are both of {task}; keep one")
            files[task] = path
    if not files:
        raise ValueError(f"{folder}: has no *{ENDING} and no *-MNT*.jsonl of the release; run eval.generate first")
    order = list(BENCHMARKS)
    return dict(sorted(files.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def read_lines(path: Path) -> tuple[list[dict], int]:
    """Return the records of a file of JSON lines, and how many lines are no JSON: a kill tears the last one."""
    records, torn = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                torn += bool(line.strip())
                continue
            if not isinstance(record, dict):
                raise ValueError(f"{path}: holds {line.strip()[:40]!r} where a sample should be; is it a samples file?")
            records.append(record)
    return records, torn


def read_samples(path: Path, task: str | None = None) -> list[dict]:
    """Read a samples file, in either format, as ours; what is torn is left out with a note.

    Raises:
        ValueError: a sample lacks a field or is there twice; the message names it.
    """
    records, torn = read_lines(path)
    if torn:
        print(f"{path}: {torn} torn lines left out", file=sys.stderr)
    task = task or path.name.removesuffix(ENDING)
    try:
        if records and "example_id" in records[0]:
            records = [ours(task, record) for record in records]
        keys = Counter((record["problem_id"], record["seed"], record["sample"]) for record in records)
        for field, kinds in (("answer", str), ("response", str), ("prompt", (str, type(None)))):
            if not all(isinstance(record[field], kinds) for record in records):
                raise KeyError(f"{field} as text")
    except KeyError as error:
        raise ValueError(f"{path}: a sample lacks {error}; is it a samples file?") from error
    samples = Counter((problem, sample if sample is not None else seed) for problem, seed, sample in keys.elements())
    (key, count), *_ = [*samples.most_common(1), (None, 0)]
    if count > 1:
        raise ValueError(f"{path}: sample {key[1]} of problem {key[0]} is there {count} times; remove all but one line")
    seen: Counter = Counter()
    for record in records:
        if record["sample"] is None:  # the release counts none
            record["sample"] = seen[record["problem_id"]]
            seen[record["problem_id"]] += 1
    return records


def ours(task: str, record: dict) -> dict:
    """Return a line of the release in our format; what it does not say is None."""
    made = {"task": task, "problem_id": f"{task}-{record['example_id']}", "sample": None, "seed": record.get("seed")}
    return made | {name: record.get(name) for name in ("prompt", "answer", "response", "tokens", "finish_reason")}


def repair(path: Path) -> int:
    """Drop torn lines from a samples file, so that lines can be appended; return how many there were."""
    if not path.exists():
        return 0
    records, torn = read_lines(path)
    ends = path.stat().st_size == 0 or path.read_bytes()[-1:] == b"\n"
    if torn or not ends:
        write_text(path, "".join(format_line(record) for record in records))
    return torn


def format_line(record: dict) -> str:
    """Return a record as one JSON line."""
    return json.dumps(record) + "\n"  # in ASCII: a model may write half a character


def read_json(path: Path, *keys: str) -> dict:
    """Read a JSON object that has these keys; ValueError with the path if it is missing, torn or another."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: missing or torn ({error})") from error
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise ValueError(f"{path}: is no object with {', '.join(keys)}")
    return value
