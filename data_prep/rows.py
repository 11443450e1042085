"""Rows in verl's format, and the manifest beside them that says where they came from."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from common.command import first_line
from common.files import atomic, sha256, write_text
from data_prep.prompt import training_prompt

if TYPE_CHECKING:
    import pandas  # a second, which `to_pandas` takes when it is called

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
        manifest = json.loads(manifest_path(path).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) else None


def write_rows(path: Path, rows: list[dict], manifest: dict, repeat: int = 1, schema: pa.Schema = SCHEMA) -> None:
    """Write `rows`, `repeat` times over, to a parquet file, and `manifest` with counts and digest beside it.

    Each repetition is a row group of its own, so only one copy is ever in memory.
    """
    table = pa.Table.from_pylist(rows, schema=schema)
    with atomic(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for _ in tqdm(range(repeat), unit=" blocks", desc="writing", delay=2, leave=False, disable=None):
            writer.write_table(table, row_group_size=max(1, len(rows)))
    # After the file: a kill in between leaves a manifest whose digest says that it is of another one.
    outcome = {"rows_out": len(rows) * repeat, "sha256_out": sha256(path)}
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
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable parquet file (truncated?): {first_line(error)}") from error
    missing = [column for column in COLUMNS if column not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"{path}: lacks column {', '.join(missing)}; verl needs {', '.join(COLUMNS)}")
    if not file.metadata.num_rows:
        raise ValueError(f"{path}: has no rows")
    return file


def read_rows(path: str | Path) -> "pandas.DataFrame":
    """Read a prepared parquet file; raises what `open_rows` raises, and a ValueError for damage behind the footer."""
    try:
        return open_rows(path).read().to_pandas()
    except OSError as error:
        raise ValueError(f"{path}: damaged: {first_line(error)}; prepare it again") from error
