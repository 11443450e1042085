"""The nine benchmarks: python -m data_prep.benchmarks --source hub --output data/bench

Writes `<TASK>.parquet` in verl's rows, the same for validation during training and for evaluation, beside a manifest.
The source is the hub (the data sets below, at pinned commits), or the folder of the official release or any of its
layout (`<TASK>/test.parquet`). A reference answer is kept as released in `extra_info.released`;
`reward_model.ground_truth` is what a strict match compares with, and `extra_info.answer` is what it means
(`data_prep/reference_answers.py`). The manifest lists every answer that is not as released, with the reason.

example: python -m data_prep.benchmarks --source benchmarks --output data/bench --tasks AIME24,AIME25
"""

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from common.command import run
from data_prep.reference_answers import ARROW_TYPE, Correction, corrected, corrections, without_delimiters
from data_prep.rows import EXTRA_INFO, SCHEMA, read_problem_rows, row, write_rows
from data_prep.source import Source, from_hub, records

HUB = "hub"


class Benchmark(NamedTuple):
    """Where a benchmark comes from, how large it is, and how often the paper samples each problem.

    `digest` is of the released problems in their order: the hub's must be the same for ids to mean the same.
    """

    hub_id: str
    revision: str
    file: str  # of the split
    problem: str  # column
    answer: str  # column
    problems: int
    samples: int
    digest: str


TABLE = Path(__file__).with_suffix(".json")
BENCHMARKS = {task: Benchmark(**entry) for task, entry in json.loads(TABLE.read_text(encoding="utf-8")).items()}
BENCHMARK_EXTRA = {"released": pa.string(), "answer": ARROW_TYPE, "correction": pa.string()}
BENCHMARK_SCHEMA = SCHEMA.set(
    SCHEMA.get_field_index("extra_info"), pa.field("extra_info", pa.struct([*EXTRA_INFO, *BENCHMARK_EXTRA.items()]))
)


def problem_and_answer(record: dict, benchmark: Benchmark) -> tuple[str, str]:
    """Return the bare problem and the released answer, from a row of the hub or of either released layout."""
    if "reward_model" in record:
        answer = record["reward_model"]["ground_truth"]
        turns = [turn for turn in record["prompt"] if turn["role"] != "system"]
        if [turn["role"] for turn in turns] != ["user"]:
            raise ValueError("a prompt has not exactly one user message")
        problem = turns[0]["content"]
    else:
        answer, problem = record[benchmark.answer], record[benchmark.problem].strip()
    if isinstance(answer, list):
        (answer,) = answer  # OlympiadBench has lists of one; more would be another benchmark
    return problem, str(answer) if type(answer) is int else answer


def find(source: str, task: str) -> Source:
    """Return the file of a task on the hub or in a folder; ValueError if there is none."""
    benchmark = BENCHMARKS[task]
    if source == HUB:
        return from_hub(benchmark.hub_id, benchmark.revision, benchmark.file)
    path = Path(source) / task / "test.parquet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --source is '{HUB}' or the release's folder of benchmarks")
    return Source(f"{task}/test.parquet", None, [path])


def read_pairs(path: Path, task: str) -> list[tuple[str, str]]:
    """Return the problems and released answers of a raw file; ValueError if it is not the benchmark's."""
    listed = records(path)
    try:
        pairs = [problem_and_answer(record, BENCHMARKS[task]) for record in listed]
    except KeyError as error:
        raise ValueError(f"{path}: lacks column {error}; it is not {task} as released or on the hub") from error
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: a column has another type than {task} as released: {error}") from error
    for number, (problem, answer) in enumerate(pairs):
        if not (isinstance(problem, str) and isinstance(answer, str)):
            raise ValueError(
                f"{path}: row {number}: problem and answer are to be text: {problem!r:.40}, {answer!r:.40}"
            )
        if not without_delimiters(answer) or not problem:
            raise ValueError(f"{path}: row {number} has no problem or no answer: {answer!r:.80}")
    if len(pairs) != BENCHMARKS[task].problems:
        raise ValueError(f"{path}: has {len(pairs)} problems, and {task} has {BENCHMARKS[task].problems}; is it whole?")
    return pairs


def digest(problems: list[str]) -> str:
    return hashlib.sha256("\n".join("".join(text.split()) for text in problems).encode()).hexdigest()[:16]


def benchmark_row(task: str, index: int, problem: str, released: str, correction: Correction | None) -> dict:
    """Return the row of one problem; raises a ValueError for a correction that was written for another answer."""
    answer, parsed = corrected(released, task, correction)
    made = row(task, problem, answer, f"{task}-{index}", "test")
    reason = correction.reason if correction else ""
    made["extra_info"] |= {"released": released, "answer": asdict(parsed), "correction": reason}
    return made


def changes(rows: list[dict]) -> list[dict]:
    """Return every answer that is not as released: by a correction, or by removing its box or delimiters."""
    listed = []
    for made in rows:
        extra, answer = made["extra_info"], made["reward_model"]["ground_truth"]
        if extra["correction"] or answer != extra["released"]:
            change = {"problem_id": extra["index"], "released": extra["released"], "ground_truth": answer}
            reason = extra["correction"] or "without box, dollar delimiters or full stop"
            listed.append(change | {"reason": reason})
    return listed


def prepare(source: str, output: Path, tasks: list[str]) -> None:
    unknown = [task for task in tasks if task not in BENCHMARKS]
    if unknown:
        raise ValueError(f"unknown task '{unknown[0]}'; there are {', '.join(BENCHMARKS)}")
    for task in tasks:
        prepare_task(find(source, task), output / f"{task}.parquet", task)


def prepare_task(source: Source, path: Path, task: str) -> None:
    pairs, overlay = read_pairs(source.paths[0], task), corrections()
    rows = [benchmark_row(task, i, *pair, overlay.get(f"{task}-{i}")) for i, pair in enumerate(pairs)]
    extras, changed = [made["extra_info"] for made in rows], changes(rows)
    manifest = {
        "source": source.name,
        "revision": source.revision,
        "sha256_in": source.digests(),
        "rows_in": len(pairs),
        "problems_as_released": digest([problem for problem, _ in pairs]) == BENCHMARKS[task].digest,
        "answer_types": dict(Counter(extra["answer"]["type"] for extra in extras).most_common()),
        "changes": changed,
    }
    write_rows(path, rows, manifest, schema=BENCHMARK_SCHEMA)
    count = sum(bool(extra["correction"]) for extra in extras)
    print(f"{path}: {len(rows)} problems; {len(changed)} reference answers not written as released, {count} corrected")
    if not manifest["problems_as_released"]:
        print(f"{path}: problems or their order differ from the released ones, ids are not comparable")


def read_problems(folder: Path) -> dict[str, dict[str, str]]:
    """Return the bare problems of every prepared benchmark of a folder, by task and problem id."""
    paths = {task: folder / f"{task}.parquet" for task in BENCHMARKS}
    there = {task: path for task, path in paths.items() if path.is_file()}
    if not there:
        raise ValueError(f"{folder}: has no prepared benchmark; run python -m data_prep.benchmarks first")
    rows = {task: [made["extra_info"] for made in read_problem_rows(path)] for task, path in there.items()}
    return {task: {str(extra["index"]): extra["problem"] for extra in listed} for task, listed in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=HUB, help="'hub' or a folder with <TASK>/test.parquet (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--tasks", default=",".join(BENCHMARKS), help="comma-separated (default: all nine)")
    args = parser.parse_args()
    prepare(args.source, args.output, args.tasks.split(","))


if __name__ == "__main__":
    run(main)
