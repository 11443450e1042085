"""Files that are written atomically: a reader sees the old one or the new one, never a part."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` at the end, and is removed if anything fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raise a ValueError for a path below a file, where nothing can be written."""
    if files := [above for above in path.parents if above.exists() and not above.is_dir()]:
        raise ValueError(f"{path}: {files[0]} is a file, not a folder; choose another place")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def digest(parts: list[str]) -> str:
    """Return a short digest of texts in their order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
