"""Rows in verl's format, written whole beside a manifest that says where they came from."""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd

from data_prep.prompt import training_prompt

COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info")


def row(data_source: str, problem: str, ground_truth: str, index: int | str, split: str) -> dict:
    """Return one row as verl's RLHFDataset reads it: one user turn, a string ground truth.

    The turn is training's; the bare problem is kept beside it for evaluation, whose prompt differs.
    """
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": training_prompt(problem)}],
        "ability": "math",
        "reward_model": {"ground_truth": ground_truth, "style": "rule"},
        "extra_info": {"index": index, "split": split, "problem": problem},
    }


def sha256(path: str | Path) -> str:
    """Return the hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def write_text_whole(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a prepared parquet file lies."""
    return path.with_name(f"{path.stem}.manifest.json")


def write_rows(path: Path, rows: list[dict], manifest: dict) -> None:
    """Write `rows` to a parquet file and `manifest`, with counts and digest added, beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    pd.DataFrame(rows, columns=list(COLUMNS)).to_parquet(aside)
    aside.replace(path)
    manifest = {**manifest, "rows_out": len(rows), "sha256_out": sha256(path)}
    write_text_whole(manifest_path(path), json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read a prepared parquet file.

    Raises:
        ValueError: the file is missing, is not readable parquet, or lacks a column; one line that says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; prepare it with data_prep first")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable parquet file (truncated?): {str(error).splitlines()[0]}") from error
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise ValueError(f"{path}: lacks column {', '.join(missing)}; verl needs {', '.join(COLUMNS)}")
    if frame.empty:
        raise ValueError(f"{path}: has no rows")
    return frame
