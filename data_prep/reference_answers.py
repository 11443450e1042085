r"""What a benchmark's reference answer means: type, tolerance and required count, corrected where it is ill-formed.

    >>> parse(r"$\frac{1}{2}$")
    ParsedAnswer(type='rational', value='\\frac{1}{2}', tolerance='', required_count=0)

`reward.answers` reads the LaTeX. `corrections.json` is the versioned overlay: what a rule cannot know (an order that
the question asks for, a comma where a product was meant), each entry with the released answer it was written for and
its reason.
"""

import json
import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from reward.answers import answer_type, bare_number, tidy
from reward.justrl import BOX, last_boxed

CORRECTIONS = Path(__file__).with_name("corrections.json")
# Answers of this task are measured or computed to a few digits; a decimal elsewhere is exact unless corrected.
ROUNDED_TASKS = ("Minerva",)


@dataclass(frozen=True)
class ParsedAnswer:
    """What a reference answer means.

    Attributes:
        type: one of `reward.answers.TYPES`; `expression` is any formula of no simpler type, `equation` any relation.
        value: the answer in tidy form; a number without its name.
        tolerance: largest absolute difference of a number, or of each member, from it; "0" or "" for none.
        required_count: how many of its members an answer must have; 0 for all.
    """

    type: str
    value: str
    tolerance: str = ""
    required_count: int = 0


ARROW_TYPE = pa.struct({**dict.fromkeys(("type", "value", "tolerance"), pa.string()), "required_count": pa.int32()})


def without_delimiters(answer: str) -> str:
    """Return an answer without box, dollar delimiters, leading space commands and a full stop at its end."""
    text = answer.strip()
    text = last_boxed(text) or "" if text.startswith(BOX) else text
    text = re.sub(r"(?<!\\)\$", "", text)
    text = re.sub(r"^(?:\\q?quad|~|\s)+", "", text)
    return re.sub(r"\s*(?<!\\)\.$", "", text).strip()


def half_unit(number: str) -> str:
    """Return half a unit of the last digit given: `1.6` stands for anything between 1.55 and 1.65."""
    exponent = int(Decimal(number).as_tuple().exponent)
    return str(Decimal(5).scaleb(exponent - 1))


def parse(answer: str, task: str = "") -> ParsedAnswer:
    """Parse a reference answer by rule; any string has a type, at worst `expression`."""
    value = tidy(without_delimiters(answer))
    kind = answer_type(value)
    if kind in ("integer", "rational", "decimal", "scientific"):
        value = bare_number(value).removeprefix("+")
    if kind not in ("decimal", "scientific"):
        return ParsedAnswer(kind, value)
    return ParsedAnswer(kind, value, half_unit(value) if task in ROUNDED_TASKS else "0")


@dataclass(frozen=True)
class Correction:
    """An entry of the overlay: the released answer it was written for, what replaces it or its meaning, and why."""

    problem_id: str
    released: str
    reason: str
    answer: str | None = None
    parsed: dict = field(default_factory=dict)


def corrections() -> dict[str, Correction]:
    entries = json.loads(CORRECTIONS.read_text(encoding="utf-8"))["corrections"]
    return {entry["problem_id"]: Correction(**entry) for entry in entries}


def corrected(released: str, task: str, correction: Correction | None) -> tuple[str, ParsedAnswer]:
    """Return a reference answer as a strict match compares with it, and parsed, both corrected if need be."""
    if correction is None:
        return without_delimiters(released), parse(released, task)
    if correction.released != released:
        raise ValueError(
            f"{correction.problem_id}: the reference answer is {released!r}, "
            f"the correction is for {correction.released!r}; use the benchmark at its pinned commit"
        )
    answer = released if correction.answer is None else correction.answer
    return without_delimiters(answer), replace(parse(answer, task), **correction.parsed)
