r"""What a benchmark's gold means: its type and parts, read by rule, and corrected where the release is ill-formed.

    >>> read(r"$\frac{1}{2}$")
    Reading(type='rational', value='\\frac{1}{2}', parts=[], unit='', base=0, tolerance='', asked=0)

`corrections.json` is the versioned overlay: what a rule cannot know (an order that the question asks for, a comma
where a product was meant), each entry with the gold it was written for and its reason.
"""

import json
import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from reward.justrl import BOX, last_boxed

CORRECTIONS = Path(__file__).with_name("corrections.json")
TYPES = (
    *("integer", "rational", "decimal", "scientific", "set", "tuple", "interval", "matrix"),
    *("expression", "equation", "text", "based"),
)
# Golds of this task are measured or computed to a few digits; a decimal elsewhere is exact unless corrected.
ROUNDED_TASKS = ("Minerva",)

FENCE = re.compile(r"\\(?:left|right)(?![a-zA-Z])")
FRACTION = r"\\[dt]?frac\s*(?:\{-?\d+\}|\d)\s*(?:\{\d+\}|\d+)"
NUMBERS = {
    "integer": re.compile(r"[+-]?\d+"),
    "decimal": re.compile(r"[+-]?\d*\.\d+"),
    "scientific": re.compile(r"[+-]?\d+(?:\.\d+)?[eE][+-]?\d+"),
    "rational": re.compile(rf"-?\s*(?:\d+\s*)?{FRACTION}|-?\d+\s*/\s*\d+"),
}
THOUSANDS = re.compile(r"\d{1,3}(?:,(?:\\!\s?)?\d{3})+")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")
WORDS = re.compile(r"\\(?:text|mbox|mathrm)\{([^{}]*)\}")
UNITS = (
    (re.compile(r"\\\$\s*(.+)"), "dollar"),
    (re.compile(r"(.+?)\s*\\?%"), "percent"),
    (re.compile(r"(.+?)\s*\^\{?\\circ\}?"), "degree"),
    (re.compile(r"(.+?)\s*\\(?:text|mbox)\{\s*([a-zA-Z ]+?)\s*\}(\^\d)?"), None),
)
MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
ASSIGNMENT = re.compile(r"^[a-zA-Z](?:_\{?\w+\}?)?\s*=\s*")
OPENING, CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Reading:
    """What a gold means.

    Attributes:
        type: one of TYPES; `expression` is any formula without a simpler reading, `equation` any relation.
        value: the gold without delimiters, unit and layout, in LaTeX.
        parts: members of a set, tuple, matrix or union, each in LaTeX; empty for others.
        unit: what the gold was given in; "" if none.
        base: of a number in a base; 0 otherwise.
        tolerance: largest absolute difference of a number, or of each part, from the gold; "0" or "" for none.
        asked: how many of `parts` an answer must name; 0 for all.
    """

    type: str
    value: str
    parts: list[str] = field(default_factory=list)
    unit: str = ""
    base: int = 0
    tolerance: str = ""
    asked: int = 0


ARROW_TYPE = pa.struct(
    {
        **{name: pa.string() for name in ("type", "value")},
        "parts": pa.list_(pa.string()),
        "unit": pa.string(),
        "base": pa.int32(),
        "tolerance": pa.string(),
        "asked": pa.int32(),
    }
)


def plain(gold: str) -> str:
    """Return a gold without box, dollar delimiters, leading space commands and a full stop at its end."""
    text = gold.strip()
    text = last_boxed(text) or "" if text.startswith(BOX) else text
    text = re.sub(r"(?<!\\)\$", "", text)
    text = re.sub(r"^(?:\\q?quad|~|\s)+", "", text)
    return re.sub(r"\s*(?<!\\)\.$", "", text).strip()


def split_top(text: str, separator: str = ",") -> list[str]:
    """Split at separators outside all brackets; interval brackets may be of two kinds."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in OPENING) - (char in CLOSING)
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i].strip())
            start = i + len(separator)
    return [*parts, text[start:].strip()]


def one_bracket(text: str, opening: str, closing: str) -> str | None:
    """Return what one pair of brackets around all of `text` holds; None if there is no such pair."""
    if len(text) < 2 or text[0] not in opening or text[-1] not in closing:
        return None
    depth = 0
    for i, char in enumerate(text):
        depth += (char in OPENING) - (char in CLOSING)
        if depth == 0:
            return text[1:-1] if i == len(text) - 1 else None
    return None


def both_signs(text: str) -> list[str]:
    r"""Return the two values of a formula with one \pm; a formula without is its only value."""
    if text.count(r"\pm") != 1:
        return [text]
    before, after = (part.strip() for part in text.split(r"\pm"))
    return [f"{before} + {after}".removeprefix(" + "), f"{before} - {after}".strip()]


def is_interval(text: str) -> bool:
    """Return whether brackets cannot be a tuple's: a square one, or an infinite end."""
    inner = one_bracket(text, "([", ")]")
    ends = split_top(inner) if inner is not None else []
    return len(ends) == 2 and (text[0] == "[" or text[-1] == "]" or r"\infty" in inner)


def half_unit(number: str) -> str:
    """Return half a unit of the last digit given: `1.6` stands for anything between 1.55 and 1.65."""
    return str(Decimal(5).scaleb(Decimal(number).as_tuple().exponent - 1))


def _number(text: str, rounded: bool) -> Reading | None:
    if THOUSANDS.fullmatch(text):
        return Reading("integer", re.sub(r"\D", "", text))
    for kind, pattern in NUMBERS.items():
        if pattern.fullmatch(text):
            inexact = kind in ("decimal", "scientific")
            tolerance = (half_unit(text) if rounded else "0") if inexact else ""
            return Reading(kind, text.removeprefix("+"), tolerance=tolerance)
    if match := BASED.fullmatch(text):
        return Reading("based", match[1], base=int(match[2]))
    return None


def _collection(text: str) -> Reading | None:
    if match := MATRIX.fullmatch(text):
        rows = [row.strip() for row in match[1].split(r"\\")]
        return Reading("matrix", text, parts=[row for row in rows if row])
    pieces = [piece for piece in split_top(text.removeprefix(r"x \in").strip(), r"\cup") if piece]
    if any(is_interval(piece) for piece in pieces) or (len(pieces) > 1 and one_bracket(pieces[0], "(", ")")):
        return Reading("interval", r" \cup ".join(pieces), parts=pieces)
    braces = re.fullmatch(r"\\\{(.*)\\\}", text)
    members = split_top(braces[1] if braces else text)
    if len(members) > 1 or braces or r"\pm" in text:
        values = [value for member in members for value in both_signs(ASSIGNMENT.sub("", member, count=1))]
        return Reading("set", ", ".join(values), parts=values)
    inner = one_bracket(text, "(", ")")
    if inner is not None and len(split_top(inner)) > 1:
        return Reading("tuple", text, parts=split_top(inner))
    return None


def _unit(text: str) -> tuple[str, str]:
    for pattern, name in UNITS:
        if match := pattern.fullmatch(text):
            return match[1], name or match[2].replace("degrees", "degree") + (match[3] or "")
    return text, ""


def read(gold: str, task: str = "") -> Reading:
    """Read a gold by rule; any string has a reading, at worst as an expression."""
    text = FENCE.sub("", plain(gold)).strip()
    rounded = task in ROUNDED_TASKS
    if match := WORDS.fullmatch(text):
        return Reading("text", match[1])
    if found := _number(text, rounded):
        return found
    bare, unit = _unit(text)
    if unit and (len(split_top(text)) == 1 or _number(bare, rounded)):
        return replace(_number(bare, rounded) or read(bare, task), unit=unit)
    if len(split_top(text)) > 1 and all(_unit(part)[1] == "degree" for part in split_top(text)):
        values = [_unit(part)[0] for part in split_top(text)]
        return Reading("set", ", ".join(values), parts=values, unit="degree")
    if found := _collection(text):
        return found
    named = ASSIGNMENT.sub("", text, count=1)
    if named != text and (number := _number(named, rounded)):
        return number
    relation = re.search(r"=|\\[lg]e(?:q|qslant)?(?![a-zA-Z])|[<>]", text)
    return Reading("equation" if relation else "expression", text)


@dataclass(frozen=True)
class Correction:
    """An entry of the overlay: the gold it was written for, what replaces it or its reading, and why."""

    problem_id: str
    released: str
    reason: str
    answer: str | None = None
    reading: dict = field(default_factory=dict)


def corrections() -> dict[str, Correction]:
    """Return the overlay: problem id to correction."""
    entries = json.loads(CORRECTIONS.read_text())["corrections"]
    return {entry["problem_id"]: Correction(**entry) for entry in entries}


def corrected(gold: str, task: str, correction: Correction | None) -> tuple[str, Reading]:
    """Return a gold as a strict match compares with it, and its reading, both with its correction if it has one.

    Raises:
        ValueError: the correction was written for another gold.
    """
    if correction is None:
        return plain(gold), read(gold, task)
    if correction.released != gold:
        raise ValueError(
            f"{correction.problem_id}: the gold is {gold!r}, the correction is for {correction.released!r}"
        )
    answer = gold if correction.answer is None else correction.answer
    return plain(answer), replace(read(answer, task), **correction.reading)
