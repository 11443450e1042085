"""Raw files of a data set, from the hub or from disk, and their rows batch by batch."""

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from common.files import sha256
from common.json_lines import lines, name_lines
from data_prep.rows import readable

BATCH_ROWS = 65536  # about 30 MB of problems
# Read without pyarrow's data set scanner, see data_prep.rows.open_rows.
SUFFIXES = (".parquet", ".jsonl", ".json")


class Source(NamedTuple):
    """Where rows come from: a name without a machine's paths, the hub's commit if any, and local files."""

    name: str
    revision: str | None
    paths: list[Path]

    def digests(self) -> dict[str, str]:
        """Return the files' digests, by their paths below the folder they share."""
        folder = os.path.commonpath([path.parent for path in self.paths])
        return {path.relative_to(folder).as_posix(): sha256(path) for path in self.paths}


def hub_files(repo: str, revision: str | None, pattern: str) -> list[str]:
    """List the files of a hub data set that match `pattern`; none where the hub cannot be reached."""
    import httpx
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
    except (OSError, ValueError, httpx.HTTPError):
        return []
    return [name for name in names if Path(name).suffix in SUFFIXES and fnmatch(name, pattern)]


def check_single(source: str, names: list[str]) -> None:
    if len(names) > 1:
        raise ValueError(f"{source}: has {len(names)} files: {', '.join(names[:5])}; name one by --files")


def from_hub(repo: str, revision: str | None, pattern: str) -> Source:
    """Download the files of a hub data set that match `pattern`, or find them in the hub's local cache."""
    import httpx
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=pattern))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ValueError(
            f"{repo}: the hub gave no data ({type(error).__name__}); on a machine with access run 'hf download {repo} "
            f"--repo-type dataset --revision {revision or 'main'}' with the same HF_HOME, or use a local --source"
        ) from error
    return from_folder(folder, pattern)._replace(name=repo, revision=folder.name)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, links to folders followed, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()
        yield from (Path(place, name) for name in names)


def from_folder(folder: Path, pattern: str) -> Source:
    files = sorted(path for path in files_below(folder) if path.is_file() and path.suffix in SUFFIXES)
    matching = [path for path in files if fnmatch(str(path.relative_to(folder)), pattern)]
    if not matching:
        raise ValueError(
            f"{folder}: has no file like {pattern}; it has {', '.join(p.name for p in files[:5]) or 'none'}"
        )
    return Source(folder.name, None, matching)


def locate(
    source: str, revision: str | None, files: str | None, pinned: str | None = None, pattern: str = "*", single=False
) -> Source:
    """Find a local file, a local folder, or a hub data set's owner/name.

    Raises:
        ValueError: there is none, or it has several files and `single` is set; those of the hub are not downloaded;
            or `revision` or `files`, for which `pinned` and `pattern` stand in, has no meaning there.
    """
    path, pattern = Path(source), files or pattern
    if revision and path.exists():
        raise ValueError(f"--revision {revision}: only a hub data set has one, and {source} is on disk; leave it out")
    if source and path.is_dir():
        found = from_folder(path, pattern)
    elif path.suffix in SUFFIXES:
        if not path.is_file():
            raise ValueError(f"{source}: no such file")
        if files:
            raise ValueError(f"--files {files}: {source} is a file, not a folder of files; leave it out")
        found = Source(path.name, None, [path])
    elif path.exists() or source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise ValueError(f"{source}: neither a .parquet or .jsonl file, nor a folder, nor a hub data set's owner/name")
    else:
        check_single(source, hub_files(source, revision or pinned, pattern) if single else [])
        found = from_hub(source, revision or pinned, pattern)
    check_single(source, [file.name for file in found.paths] if single else [])
    return found


def row_count(path: Path) -> int | None:
    """Return the number of rows of a parquet file from its footer; None for JSON lines, which do not say."""
    with readable(path):
        return pq.ParquetFile(path).metadata.num_rows if path.suffix == ".parquet" else None


def json_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a file of JSON lines; ValueError for a line that is none: no row is lost unseen."""
    for line in lines(path):
        if b"\\u" in line.raw:
            try:
                json.dumps(line.record, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                line = line._replace(record=None, problem="has an unpaired surrogate")
        if line.record is None:
            raise ValueError(f"{name_lines(path, [line])}; each line is to be a JSON object in UTF-8: fix or remove it")
        yield line.record


def record_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield those of `columns` that a file has, batch by batch; ValueError if it is damaged."""
    if path.suffix != ".parquet":
        rows_left = json_rows(path)
        while rows := list(islice(rows_left, BATCH_ROWS)):
            names = [name for name in columns if any(name in row for row in rows)]
            with readable(path):
                batch = pa.RecordBatch.from_pylist([{name: row.get(name) for name in names} for row in rows])
            yield batch
        return
    with readable(path):
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        yield from file.iter_batches(BATCH_ROWS, columns=[c for c in columns if c in file.schema_arrow.names])


def records(path: Path) -> list[dict]:
    if path.suffix != ".parquet":
        return list(json_rows(path))
    with readable(path):
        return pq.ParquetFile(path).read().to_pylist()
