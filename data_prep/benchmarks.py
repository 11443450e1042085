"""The nine benchmarks: python -m data_prep.benchmarks --source hub --output data/bench

Writes `<TASK>.parquet` in verl's rows, the same for validation during training and for evaluation, beside a manifest.
The source is the hub (the data sets below, at pinned commits), or the folder of the official release or any of its
layout (`<TASK>/test.parquet`). A gold is kept as released in `extra_info.released`; `reward_model.ground_truth` is
what a strict match compares with, and `extra_info.answer` says what it means (`data_prep/reference_answers.py`). The
manifest lists every gold that is not as released, with the reason.

example: python -m data_prep.benchmarks --source benchmarks --output data/bench --tasks AIME24,AIME25
"""

import argparse
import hashlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from common.command import run
from data_prep.reference_answers import ARROW_TYPE, Correction, corrected, corrections, plain
from data_prep.rows import EXTRA_INFO, SCHEMA, open_rows, row, write_rows
from data_prep.source import Source, from_hub, records

HUB = "hub"


class Benchmark(NamedTuple):
    """Where a benchmark comes from, how large it is, and how often the paper samples each problem.

    `digest` is of the release's problems in their order: the hub's must be the same for ids to mean the same.
    """

    hub_id: str
    revision: str
    file: str  # of the split
    problem: str  # column
    answer: str  # column
    problems: int
    samples: int
    digest: str


BENCHMARKS = {
    "AIME24": Benchmark(
        *("math-ai/aime24", "83a7f387baaa524a8bda0022eac0541582297103", "test-00000-of-00001.parquet"),
        *("problem", "solution", 30, 32, "d5953a02f9e09260"),
    ),
    "AIME25": Benchmark(
        *("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test.jsonl"),
        *("problem", "answer", 30, 32, "2fb29b179f327793"),
    ),
    "AMC23": Benchmark(
        *("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "test-00000-of-00001.parquet"),
        *("question", "answer", 40, 32, "a239e92bd128decb"),
    ),
    "MATH-500": Benchmark(
        *("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl"),
        *("problem", "answer", 500, 4, "2dd654bd130aba80"),
    ),
    "Minerva": Benchmark(
        *("math-ai/minervamath", "ee46ddc498933b1977577953250ca5c66be64f96", "test.jsonl"),
        *("question", "answer", 272, 4, "848a3df7a76ebfec"),
    ),
    "Olympiad-Bench": Benchmark(
        *("math-ai/olympiadbench", "4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84", "test.parquet"),
        *("question", "final_answer", 674, 4, "914e3015d4dc5863"),
    ),
    "HMMT25": Benchmark(
        *("MathArena/hmmt_feb_2025", "6fdc4277120810ff75aa22d2d5489b91f7a262a1", "data/train-00000-of-00001.parquet"),
        *("problem", "answer", 30, 32, "dfd2c7874f6ca5ab"),
    ),
    "BRUMO25": Benchmark(
        *("MathArena/brumo_2025", "6de9bc0987f5710c6376ee980e1483dbeb55cfda", "data/train-00000-of-00001.parquet"),
        *("problem", "answer", 30, 32, "03c95e40be650f05"),
    ),
    "CMIMC25": Benchmark(
        *("MathArena/cmimc_2025", "8f27517ce4ad1d05e023c0e7eca4344754ba2a04", "data/train-00000-of-00001.parquet"),
        *("problem", "answer", 40, 32, "cf9918801f374e0a"),
    ),
}
EXTRA_FIELDS = {"released": pa.string(), "answer": ARROW_TYPE, "correction": pa.string()}
BENCHMARK_SCHEMA = SCHEMA.set(
    SCHEMA.get_field_index("extra_info"),
    pa.field("extra_info", pa.struct([*EXTRA_INFO, *(pa.field(name, kind) for name, kind in EXTRA_FIELDS.items())])),
)


def problem_and_gold(record: dict, benchmark: Benchmark) -> tuple[str, str]:
    """Return the bare problem and the gold as released, from a row of the hub or of either layout of the release.

    Raises:
        KeyError: a column is missing.
    """
    if "reward_model" in record:
        return record["prompt"][0]["content"], record["reward_model"]["ground_truth"]
    gold = record[benchmark.answer]
    if isinstance(gold, list):
        (gold,) = gold  # OlympiadBench has lists of one; more would be another benchmark
    return record[benchmark.problem].strip(), str(gold) if isinstance(gold, int) else gold


def find(source: str, task: str) -> Source:
    """Return the file of a task on the hub or in a folder.

    Raises:
        ValueError: there is none.
    """
    if source == HUB:
        return from_hub(BENCHMARKS[task].hub_id, BENCHMARKS[task].revision, BENCHMARKS[task].file)
    path = Path(source) / task / "test.parquet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --source is '{HUB}' or the release's folder of benchmarks")
    return Source(f"{task}/test.parquet", None, [path])


def read_pairs(path: Path, task: str) -> list[tuple[str, str]]:
    """Return the problems and golds of a raw file.

    Raises:
        ValueError: the file cannot be read, has other columns, or has another number of problems.
    """
    listed = records(path)
    try:
        pairs = [problem_and_gold(record, BENCHMARKS[task]) for record in listed]
    except KeyError as error:
        raise ValueError(f"{path}: lacks column {error}; it is not {task} as released or on the hub") from error
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: a column has another type than {task} as released: {error}") from error
    for number, (problem, gold) in enumerate(pairs):
        if not isinstance(gold, str) or not plain(gold) or not problem:
            raise ValueError(f"{path}: row {number} has no problem or no gold: {gold!r:.80}")
    if len(pairs) != BENCHMARKS[task].problems:
        raise ValueError(f"{path}: has {len(pairs)} problems, and {task} has {BENCHMARKS[task].problems}; is it whole?")
    return pairs


def digest(problems: list[str]) -> str:
    """Return a short digest of problems in their order, blind to white space."""
    return hashlib.sha256("\n".join("".join(text.split()) for text in problems).encode()).hexdigest()[:16]


def benchmark_row(task: str, index: int, problem: str, gold: str, correction: Correction | None) -> dict:
    """Return the row of one problem; raises a ValueError for a correction that was written for another gold."""
    truth, reading = corrected(gold, task, correction)
    made = row(task, problem, truth, f"{task}-{index}", "test")
    made["extra_info"] |= {
        "released": gold,
        "answer": asdict(reading),
        "correction": correction.reason if correction else "",
    }
    return made


def changes(rows: list[dict]) -> list[dict]:
    """Return every gold that is not as released: by a correction, or by removing its box or delimiters."""
    listed = []
    for made in rows:
        extra, truth = made["extra_info"], made["reward_model"]["ground_truth"]
        if extra["correction"] or truth != extra["released"]:
            reason = extra["correction"] or "without box, dollar delimiters or full stop"
            listed.append(
                {"problem_id": extra["index"], "released": extra["released"], "ground_truth": truth}
                | {"reason": reason}
            )
    return listed


def prepare(source: str, output: Path, tasks: list[str]) -> None:
    """Prepare every task.

    Raises:
        ValueError: an unknown task, or a file that is missing or is not the benchmark.
    """
    unknown = [task for task in tasks if task not in BENCHMARKS]
    if unknown:
        raise ValueError(f"unknown task '{unknown[0]}'; there are {', '.join(BENCHMARKS)}")
    overlay = corrections()
    for task in tasks:
        found = find(source, task)
        pairs = read_pairs(found.paths[0], task)
        rows = [
            benchmark_row(task, index, problem, gold, overlay.get(f"{task}-{index}"))
            for index, (problem, gold) in enumerate(pairs)
        ]
        as_released = digest([problem for problem, _ in pairs]) == BENCHMARKS[task].digest
        listed = changes(rows)
        manifest = {
            "source": found.name,
            "revision": found.revision,
            "sha256_in": found.digests(),
            "rows_in": len(pairs),
            "problems_as_released": as_released,
            "answer_types": dict(Counter(made["extra_info"]["answer"]["type"] for made in rows).most_common()),
            "changes": listed,
        }
        path = output / f"{task}.parquet"
        write_rows(path, rows, manifest, schema=BENCHMARK_SCHEMA)
        corrections_used = sum(bool(made["extra_info"]["correction"]) for made in rows)
        print(
            f"{path}: {len(rows)} problems; {len(listed)} golds not written as released, {corrections_used} corrected"
            + ("" if as_released else "; problems or their order differ from the release's, ids are not comparable")
        )


def read_problems(folder: Path) -> dict[str, dict[str, str]]:
    """Return the problems of every prepared benchmark of a folder: task to problem id to bare problem.

    Raises:
        ValueError: there is none, or one is not a prepared file.
    """
    paths = {task: folder / f"{task}.parquet" for task in BENCHMARKS}
    there = {task: path for task, path in paths.items() if path.is_file()}
    if not there:
        raise ValueError(f"{folder}: has no prepared benchmark; run python -m data_prep.benchmarks first")
    extras = {task: open_rows(path).read(columns=["extra_info"])["extra_info"] for task, path in there.items()}
    return {task: {e["index"]: e["problem"] for e in column.to_pylist()} for task, column in extras.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=HUB, help="'hub' or a folder with <TASK>/test.parquet (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--tasks", default=",".join(BENCHMARKS), help="comma-separated (default: all nine)")
    args = parser.parse_args()
    prepare(args.source, args.output, args.tasks.split(","))


if __name__ == "__main__":
    run(main)
