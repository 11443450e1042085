"""JSON in files: one object, or one per line, of which a kill, a full disk or an editor may have damaged some."""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from common.files import atomic


class Line(NamedTuple):
    """A line of a file that is not blank: its number from 1, its record, or None and why it has none, its bytes."""

    number: int
    record: dict | None
    problem: str
    raw: bytes


def read_json(path: Path, *keys: str) -> dict:
    """Read a JSON object that has these keys; ValueError with the path if it is missing, truncated or another."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: missing or damaged ({error})") from error
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise ValueError(f"{path}: is no object with {', '.join(keys)}")
    return value


def lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file one by one, without blank ones and a byte order mark."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            text = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if text.strip():
                yield parse(number, text)


def parse(number: int, raw: bytes) -> Line:
    try:
        record = json.loads(raw.decode())
    except UnicodeDecodeError:
        return Line(number, None, "is not UTF-8", raw)
    except (ValueError, RecursionError):
        problem = "is not JSON" if raw.endswith(b"\n") else "is truncated"
        return Line(number, None, problem, raw)
    if not isinstance(record, dict):
        return Line(number, None, "is no JSON object", raw)
    return Line(number, record, "", raw)


def read_lines(path: Path) -> tuple[list[dict], list[Line]]:
    """Read the records of a file, and the lines that hold none."""
    every = list(lines(path))
    return [line.record for line in every if line.record is not None], [line for line in every if line.record is None]


def name_lines(path: Path, bad: list[Line]) -> str:
    """Describe damaged lines in one line: the first, and how many more."""
    more = f" (and {len(bad) - 1} more damaged lines)" if bad[1:] else ""
    return f"{path}, line {bad[0].number}: {bad[0].problem}{more}"


def format_line(record: dict) -> str:
    return json.dumps(record) + "\n"  # in ASCII: a model may write half a character


def damaged_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def drop_damaged(path: Path) -> list[Line]:
    """Move the damaged lines of a file, if it exists, to `<file>.damaged`, so that lines can follow; return them."""
    bad = read_lines(path)[1] if path.exists() else []
    set_aside(path, bad)
    return bad


def set_aside(path: Path, bad: Iterable[Line]) -> None:
    """Move lines from a file to `<file>.damaged` beside it, and end the file's last line, so that more can follow."""
    dropped = {line.number: line for line in bad}
    if not path.exists():
        return
    with open(path, "rb") as file:
        kept = [raw for number, raw in enumerate(file, 1) if number not in dropped]
    ended = not kept or kept[-1].endswith(b"\n")
    if dropped:
        with open(damaged_path(path), "ab") as file:
            file.writelines(line.raw.rstrip(b"\n") + b"\n" for line in dropped.values())
    if dropped or not ended:
        with atomic(path) as aside:
            aside.write_bytes(b"".join(kept) + (b"" if ended else b"\n"))
