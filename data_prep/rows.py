"""Rows in verl's format, and the manifest beside them that says where they came from."""

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from common.command import first_line
from common.files import atomic, check_place, sha256, write_text
from common.json_lines import misfit, read_json, read_shapes
from data_prep.prompt import training_prompt

EXTRA_INFO = pa.struct({"index": pa.string(), "split": pa.string(), "problem": pa.string()})
SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"content": pa.string(), "role": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"ground_truth": pa.string(), "style": pa.string()}),
        "extra_info": EXTRA_INFO,
    }
)
COLUMNS = tuple(SCHEMA.names)
SHAPES = read_shapes(Path(__file__).parent)
MADE_BY = {  # the first of these fields that a manifest has tells the program
    "outcomes": "eval.select",
    "answer_types": "data_prep.benchmarks",
    "seed": "data_prep.demo",
    "settings": "data_prep.dapo",
    "found_in": "data_prep.gsm8k",
    "contamination": "data_prep.gsm8k",
}


def row(data_source: str, problem: str, ground_truth: str, index: int | str, split: str) -> dict:
    """Make a row of verl's RLHFDataset: training's user turn, and the bare problem for evaluation's, which differs."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": training_prompt(problem)}],
        "ability": "math",
        "reward_model": {"ground_truth": ground_truth, "style": "rule"},
        "extra_info": {"index": str(index), "split": split, "problem": problem},
    }


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.manifest.json")


def read_manifest(path: Path) -> dict | None:
    """Read the manifest of a prepared parquet file; None where there is none that can be read."""
    try:
        return read_json(manifest_path(path), shape=SHAPES["manifest"])
    except ValueError:
        return None


def check_output(path: Path, program: str, sources: Iterable[Path] = ()) -> None:
    """Raise a ValueError, before any work, for a file to write that would replace what the program did not make."""
    check_place(path)
    if path.suffix != ".parquet" or path.is_dir():
        raise ValueError(f"{path}: the output must be a .parquet file; choose another name")
    if path.resolve() in [source.resolve() for source in sources]:
        raise ValueError(f"{path}: is the source too; choose another --output")
    there, fields = [file for file in (path, manifest_path(path)) if file.exists()], read_manifest(path) or {}
    if there and next((maker for field, maker in MADE_BY.items() if field in fields), None) != program:
        raise ValueError(f"{there[0]}: is there, and {program} did not make it; move it, or choose another output")


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Name the file in one line whatever goes wrong while it is read: on damage pyarrow raises all sorts."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {first_line(error)}; is it truncated?") from error


def write_rows(path: Path, rows: list[dict], manifest: dict, repeat: int = 1, schema: pa.Schema = SCHEMA) -> None:
    """Write `rows`, `repeat` times over, to a parquet file, and `manifest` with counts and digest beside it.

    Each repetition is a row group of its own, so only one copy is ever in memory.
    """
    table = pa.Table.from_pylist(rows, schema=schema)
    with atomic(path) as aside:
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            for _ in tqdm(range(repeat), unit=" blocks", desc="writing", delay=2, leave=False, disable=None):
                writer.write_table(table, row_group_size=max(1, len(rows)))
        # The manifest first: after a kill in between it tells who made the file, and its digest that it is another one.
        outcome = {"rows_out": len(rows) * repeat, "sha256_out": sha256(aside)}
        versions = {"python": platform.python_version(), "pyarrow": importlib.metadata.version("pyarrow")}
        text = json.dumps({**manifest, **outcome, "versions": versions}, indent=2, ensure_ascii=False)
        write_text(manifest_path(path), text + "\n")


def open_rows(path: str | Path) -> pq.ParquetFile:
    """Open a prepared parquet file; only its footer is read.

    Not through pandas: pyarrow's data set scanner leaves threads that abort the interpreter when it ends soon after
    (https://github.com/apache/arrow/issues/34314; one exit in four on two busy cores).

    Raises:
        ValueError: the file is missing, is not readable parquet, lacks a column or has no rows.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name the parquet files in it")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; prepare it with data_prep first")
    with readable(path):
        file = pq.ParquetFile(path)
        names, rows = file.schema_arrow.names, file.metadata.num_rows
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise ValueError(f"{path}: lacks column {', '.join(missing)}; verl needs {', '.join(COLUMNS)}")
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return file


def read_problem_rows(path: Path) -> list[dict]:
    """Read what an evaluation needs of a prepared file; raises as `open_rows`, and for damage or a row without it."""
    file = open_rows(path)
    with readable(path):
        rows = file.read(columns=["reward_model", "extra_info"]).to_pylist()
    for number, made in enumerate(rows):
        if problem := misfit(made, SHAPES["row"]):
            raise ValueError(f"{path}: row {number}: {problem}; prepare it again with data_prep.benchmarks")
    return rows
