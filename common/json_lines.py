"""JSON in files: one object, or one per line, of which a kill may have truncated the last."""

import json
from pathlib import Path

from common.files import write_text


def read_json(path: Path, *keys: str) -> dict:
    """Read a JSON object that has these keys; ValueError with the path if it is missing, truncated or another."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: missing or truncated ({error})") from error
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise ValueError(f"{path}: is no object with {', '.join(keys)}")
    return value


def read_lines(path: Path) -> tuple[list[dict], int]:
    """Read the records of a file, and count the lines that are no JSON; ValueError for JSON that is no object."""
    records, truncated = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                truncated += bool(line.strip())
                continue
            if not isinstance(record, dict):
                raise ValueError(f"{path}: holds {line.strip()[:40]!r} where an object should be; is it another file?")
            records.append(record)
    return records, truncated


def format_line(record: dict) -> str:
    return json.dumps(record) + "\n"  # in ASCII: a model may write half a character


def drop_truncated(path: Path) -> int:
    """Drop truncated lines from a file, so that lines can be appended; return how many there were."""
    if not path.exists():
        return 0
    records, truncated = read_lines(path)
    ends = path.stat().st_size == 0 or path.read_bytes()[-1:] == b"\n"
    if truncated or not ends:
        write_text(path, "".join(format_line(record) for record in records))
    return truncated
