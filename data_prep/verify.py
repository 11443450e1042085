"""Check prepared files against their manifests and the rules they promise: python -m data_prep.verify FILE.parquet ...

Exit status 0 when all holds, 1 with a line for each fault, 2 when a file cannot be read. One block of a repeated file
is in memory at a time.

example: python -m data_prep.verify data/dapo/train.parquet data/bench/*.parquet
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import command
from common.files import sha256
from common.json_lines import read_json
from data_prep.benchmarks import BENCHMARK_SCHEMA, BENCHMARKS, benchmark_row
from data_prep.dapo import content_id, ground_truth_fault
from data_prep.normalise import canonical
from data_prep.prompt import BOXED_SENTENCE, DAPO_PREFIX, DAPO_SUFFIX, training_prompt
from data_prep.reference_answers import corrections
from data_prep.rows import SCHEMA, SHAPES, manifest_path, open_rows, readable

SHOWN = 5  # rows named for each kind of fault


def has_null(value: Any) -> bool:
    """Look for a missing value in rows; not in the footer's statistics, which abort Python if they are damaged."""
    if isinstance(value, dict | list):
        return any(map(has_null, value.values() if isinstance(value, dict) else value))
    return value is None


def prompt_faults(rows: list[dict]) -> Iterator[tuple[str, str]]:
    for made in rows:
        index, problem = made["extra_info"]["index"], made["extra_info"]["problem"]
        if made["prompt"] != [{"content": training_prompt(problem), "role": "user"}]:
            yield "prompt is not the problem, a blank line and the boxed sentence in a user turn", index
        if problem.startswith(DAPO_PREFIX) or problem.endswith((DAPO_SUFFIX, BOXED_SENTENCE)):
            yield "problem still has an instruction around it", index


def training_faults(rows: list[dict], keep_conflicts: bool) -> Iterator[tuple[str, str]]:
    seen = set()
    for made in rows:
        index, problem = made["extra_info"]["index"], made["extra_info"]["problem"]
        truth = made["reward_model"]["ground_truth"]
        text = canonical(problem) + ("\n" + truth if keep_conflicts else "")
        if text in seen:
            yield "problem occurs twice", index
        seen.add(text)
        if index != content_id(problem, truth):
            yield "id is not that of the row's content", index
        if fault := ground_truth_fault(truth):
            yield fault, index


def benchmark_faults(rows: list[dict], task: str) -> Iterator[tuple[str, str]]:
    if task in BENCHMARKS and len(rows) != BENCHMARKS[task].problems:
        yield f"{task} is not a benchmark of {len(rows)} problems", "all"
        return
    overlay = corrections()
    for number, made in enumerate(rows):
        extra = made["extra_info"]
        try:
            expected = benchmark_row(task, number, extra["problem"], extra["released"], overlay.get(f"{task}-{number}"))
        except ValueError:  # a correction that was written for another answer
            expected = None
        if made != expected:
            yield "row is not what its released answer and the overlay give", extra["index"]


def verify(path: Path) -> list[str]:
    """Return the faults of a prepared file, a line each; ValueError if it or its manifest cannot be read."""
    file, faults = open_rows(path), []
    manifest = read_json(manifest_path(path), shape=SHAPES["manifest"], fix=f"prepare {path.name} again")
    if sha256(path) != manifest.get("sha256_out"):
        faults.append("content is not what the manifest was written for (sha256)")
    if file.metadata.num_rows != manifest.get("rows_out"):
        faults.append(f"{file.metadata.num_rows} rows, and the manifest states {manifest.get('rows_out')}")
    groups = tqdm(range(1, file.num_row_groups), unit=" blocks", delay=2, leave=False, disable=None)
    with readable(path):
        block = file.read_row_group(0)
        rows = block.to_pylist() if block.schema in (SCHEMA, BENCHMARK_SCHEMA) else []
        if not rows or has_null(rows):
            return [*faults, "columns are not those of a prepared file, or a value is missing; prepare it again"]
        if not all(file.read_row_group(group).equals(block) for group in groups):
            faults.append("blocks differ")
    if block.schema == BENCHMARK_SCHEMA:
        found = benchmark_faults(rows, rows[0]["data_source"])
    else:
        found = training_faults(rows, manifest.get("settings", {}).get("conflicts") == "keep")
    places = defaultdict(list)
    for fault, index in chain(prompt_faults(rows), found):
        places[fault].append(index)
    return [*faults, *(f"{fault}: {len(where)} rows, {', '.join(where[:SHOWN])}" for fault, where in places.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=command.path, nargs="+", help="prepared parquet files")
    status = 0
    for path in parser.parse_args().files:
        faults = verify(path)
        print("\n".join(f"{path}: {fault}" for fault in faults) or f"{path}: all holds")
        status |= bool(faults)
    return status


if __name__ == "__main__":
    command.run(main)
