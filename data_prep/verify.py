"""Check prepared files against their manifests and the rules they promise: python -m data_prep.verify FILE.parquet ...

Exit status 0 when all holds, 1 with a line for each fault, 2 when a file cannot be read. Memory grows with the distinct
rows, not with their repetitions.

example: python -m data_prep.verify data/dapo/train.parquet data/bench/*.parquet
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from data_prep.benchmarks import BENCHMARK_SCHEMA
from data_prep.command import run
from data_prep.dapo import content_id, ground_truth_fault
from data_prep.files import sha256
from data_prep.golds import TYPES, plain
from data_prep.normalise import canonical
from data_prep.parquet import SCHEMA, open_rows, read_manifest
from data_prep.prompt import DAPO_PREFIX, DAPO_SUFFIX, training_prompt

SHOWN = 5  # rows named for each kind of fault


def distinct_rows(file: pq.ParquetFile) -> tuple[list[dict], Counter]:
    """Return the distinct rows of a prepared file and how often the index of each occurs."""
    counts: Counter = Counter()
    seen: dict[tuple, dict] = {}
    bar = tqdm(total=file.metadata.num_rows, unit=" rows", desc="checking", delay=2, leave=False, disable=None)
    with bar:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            counts.update(pc.struct_field(table["extra_info"].combine_chunks(), "index").to_pylist())
            new = _new_rows(table, seen)
            seen.update({_key(made): made for made in new})
            bar.update(table.num_rows)
    return list(seen.values()), counts


def _key(made: dict) -> tuple:
    return made["extra_info"]["index"], made["prompt"][0]["content"], made["reward_model"]["ground_truth"]


def _new_rows(table: pa.Table, seen: dict) -> list[dict]:
    contents = pc.struct_field(pc.list_flatten(table["prompt"].combine_chunks()), "content")
    indexes = pc.struct_field(table["extra_info"].combine_chunks(), "index")
    truths = pc.struct_field(table["reward_model"].combine_chunks(), "ground_truth")
    if len(contents) != table.num_rows:
        raise ValueError("a prompt is not exactly one message")
    keys = zip(indexes.to_pylist(), contents.to_pylist(), truths.to_pylist(), strict=True)
    return table.take(pa.array([i for i, key in enumerate(keys) if key not in seen], pa.int64())).to_pylist()


def row_faults(made: dict) -> Iterator[str]:
    """Yield what is wrong with one row, by the rules of data_prep.prompt, dapo and golds."""
    extra, truth = made["extra_info"], made["reward_model"]["ground_truth"]
    turn = made["prompt"][0]
    if turn["role"] != "user" or turn["content"] != training_prompt(extra["problem"]):
        yield "prompt is not the problem, a blank line and the boxed sentence in a user turn"
    if extra["problem"].startswith(DAPO_PREFIX) or extra["problem"].endswith(DAPO_SUFFIX):
        yield "problem still has DAPO's template"
    if extra["split"] == "train":
        if fault := ground_truth_fault(truth):
            yield fault
    elif not truth or truth != plain(truth):
        yield "ground truth is empty or has a box, a delimiter or white space around it"
    if "answer" in extra and extra["answer"]["type"] not in TYPES:
        yield f"answer type {extra['answer']['type']} is unknown"


def duplicates(rows: list[dict], manifest: dict) -> Iterator[str]:
    """Yield the ids of training rows that say the same, or that were not made from their content."""
    keep = manifest.get("settings", {}).get("conflicts") == "keep"
    texts = Counter()
    for made in rows:
        problem, truth = made["extra_info"]["problem"], made["reward_model"]["ground_truth"]
        text = canonical(problem) + ("\n" + truth if keep else "")
        texts[text] += 1
        if texts[text] > 1 or made["extra_info"]["index"] != content_id(problem, truth):
            yield made["extra_info"]["index"]


def verify(path: Path) -> list[str]:
    """Return the faults of a prepared file, a line each; none when all holds.

    Raises:
        ValueError: the file or its manifest cannot be read.
    """
    file, manifest = open_rows(path), read_manifest(path)
    if manifest is None:
        raise ValueError(f"{path}: has no manifest beside it; prepare the file again")
    faults = []
    if sha256(path) != manifest.get("sha256_out"):
        faults.append("content is not what the manifest was written for (sha256)")
    if file.metadata.num_rows != manifest.get("rows_out"):
        faults.append(f"{file.metadata.num_rows} rows, and the manifest says {manifest.get('rows_out')}")
    if not any(file.schema_arrow.equals(schema) for schema in (SCHEMA, BENCHMARK_SCHEMA)):
        return [*faults, "columns are not those of a prepared file"]
    rows, counts = distinct_rows(file)
    repeat = manifest.get("settings", {}).get("repeat", 1)
    wrong: dict[str, list[str]] = {}
    for made in rows:
        for fault in row_faults(made):
            wrong.setdefault(fault, []).append(made["extra_info"]["index"])
    for index in [index for index, count in counts.items() if count != repeat]:
        wrong.setdefault(f"row does not occur {repeat} times", []).append(index)
    if "dropped" in manifest:
        for index in duplicates(rows, manifest):
            wrong.setdefault("row repeats a problem, or its id is not of its content", []).append(index)
        accounted = manifest["problems"] + sum(what["count"] for what in manifest["dropped"].values())
        if accounted != manifest["rows_in"]:
            faults.append(f"manifest accounts for {accounted} of {manifest['rows_in']} rows")
    listed = (f"{fault}: {len(where)} rows, {', '.join(where[:SHOWN])}" for fault, where in wrong.items())
    return [*faults, *listed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="prepared parquet files")
    status = 0
    for path in parser.parse_args().files:
        faults = verify(path)
        print("\n".join(f"{path}: {fault}" for fault in faults) or f"{path}: all holds")
        status |= bool(faults)
    return status


if __name__ == "__main__":
    run(main)
