"""JSON in files: one object, or one per line, of which a kill, a full disk or an editor may have damaged some."""

import codecs
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, extend

from common.files import atomic

# JSON Schema, but NaN, infinity and 1.0 are no integer, and the first two are no number either.
TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "integer": lambda _, value: type(value) is int,
        "number": lambda _, value: type(value) is int or (type(value) is float and math.isfinite(value)),
    }
)
Shape = extend(Draft202012Validator, type_checker=TYPES)
ANY = Shape({})


def read_shapes(folder: Path) -> dict:
    """Read the shapes of a package's records, by name, from its `shapes.json`."""
    return {name: Shape(schema) for name, schema in json.loads((folder / "shapes.json").read_text()).items()}


class Line(NamedTuple):
    """A line of a file that is not blank.

    Attributes:
        number: from 1.
        record: None if the line is damaged; one of another shape is there.
        problem: why it is damaged or of another shape; "" if it is neither.
    """

    number: int
    record: dict | None
    problem: str
    raw: bytes


def misfit(record: dict, shape: Validator) -> str:
    """Say what of a record does not have a shape, the first of it; "" if it has."""
    for error in shape.iter_errors(record):
        where, value = f"{error.json_path[2:]!s:.99}", error.validator_value
        if error.validator == "required":
            return f"{where} lacks {error.message.removesuffix(' is a required property')}".strip()
        expected = " or ".join(map(str, value)) if isinstance(value, list) else value
        return f"{where}: expected {error.validator} {expected}, got {error.instance!r:.60}"
    return ""


def finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no number")
    return number


def read_json(path: Path, *keys: str, shape: Validator = ANY, fix: str = "") -> dict:
    """Read a JSON object that has these keys, or a shape; ValueError with the path if it is missing or another.

    An object without a shape may be another's, as a model's config, which may hold Infinity.

    Args:
        fix: what to do then, for the message.
    """
    fix, number = f"; {fix}" if fix else "", float if shape is ANY else finite
    try:
        value = json.loads(path.read_bytes(), parse_constant=number, parse_float=number)  # UTF-8, UTF-16 or UTF-32
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: missing or damaged ({getattr(error, 'strerror', error)}){fix}") from error
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise ValueError(f"{path}: is no object with {', '.join(keys) or 'fields'}{fix}")
    if problem := misfit(value, shape):
        raise ValueError(f"{path}: {problem}{fix}")
    return value


def lines(path: Path, shape: Validator = ANY) -> Iterator[Line]:
    """Yield the lines of a file one by one, without blank ones and byte order marks.

    Raises:
        ValueError: the file is not UTF-8 at all; a single line that is not, or has another shape, is yielded.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError(f"{path}: is UTF-16; convert it with iconv -f UTF-16 -t UTF-8")
            text = raw.removeprefix(codecs.BOM_UTF8)  # also within, where files were joined
            if text.strip():
                yield parse(number, text, shape)


def parse(number: int, raw: bytes, shape: Validator) -> Line:
    try:
        record = json.loads(raw.decode())
    except UnicodeDecodeError:
        return Line(number, None, "is not UTF-8", raw)
    except json.JSONDecodeError:
        return Line(number, None, "is not JSON" if raw.endswith(b"\n") else "is truncated", raw)
    except (ValueError, RecursionError):
        return Line(number, None, "has an integer of too many digits, or is nested too deep", raw)
    if not isinstance(record, dict):
        return Line(number, None, "is no JSON object", raw)
    return Line(number, record, misfit(record, shape), raw)


def read_lines(path: Path, shape: Validator = ANY) -> tuple[list[dict], list[Line]]:
    """Read the records of a file, and the lines that hold none of this shape."""
    every = list(lines(path, shape))
    records = [line.record for line in every if line.record is not None and not line.problem]
    return records, [line for line in every if line.problem]


def name_lines(path: Path, bad: list[Line]) -> str:
    """Describe damaged lines in one line: the first, and how many more."""
    more = f" (and {len(bad) - 1} more damaged lines)" if bad[1:] else ""
    return f"{path}, line {bad[0].number}: {bad[0].problem}{more}"


def format_line(record: dict) -> str:
    return json.dumps(record) + "\n"  # in ASCII: a model may write half a character


def damaged_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def drop_damaged(path: Path, shape: Validator = ANY) -> list[Line]:
    """Move the damaged lines of a file, if it exists, to `<file>.damaged`, so that lines can follow; return them."""
    bad = read_lines(path, shape)[1] if path.exists() else []
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
