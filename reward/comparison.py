"""Whether two answers are the same: numbers exactly, lists member by member, single formulas by math-verify."""

import re
from fractions import Fraction

from .answers import (
    BASED,
    MAX_MEMBERS,
    PERCENT,
    TEXT,
    as_interval,
    exact_value,
    fault,
    is_interval,
    shape_and_members,
    split_top,
)
from .sandbox import POOL

CORRECT = ("match", "equivalent")

# What may stand before an equals sign: not e, i or pi, which are numbers, nor a command such as \not.
NAME = re.compile(
    r"(?:[a-df-hj-zA-Z]|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|rho|sigma|tau|omega))(?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?"
)
# A number with an index, a letter behind it or in brackets is not that number, though math-verify reads it so.
MARKED = re.compile(r"[_\[\]]|\d[a-zA-Z]")


def compare_answers(
    answer: str, reference: str, tolerance: Fraction = Fraction(0), kind: str = "", required_count: int = 0
) -> str:
    """Compare two tidy answers and return an outcome; lists are compared member by member.

    Args:
        tolerance: largest difference of two numbers.
        kind: the reference answer's type where its form does not show it: a bare list that is a `tuple` has an order,
            and (1,2) that is an `interval` is no point.
        required_count: how many members of the reference answer suffice; 0 for all.
    """
    if answer == reference:
        return "equivalent"
    shape, wanted = shape_and_members(reference)
    if is_interval(shape, reference) or (shape == "()" and kind == "interval"):
        answer = as_interval(answer)
    given_shape, given = shape_and_members(answer)
    if not shape and not given_shape:
        return _compare_values(answer, reference, tolerance)
    shapes = {shape, given_shape}
    alike = shape == given_shape or (kind == "tuple" and shapes == {"{}", "()"})
    alike = alike or (required_count == 1 and shapes == {"{}", ""})
    if not alike or len(given) != (required_count or len(wanted)) or len(given) > MAX_MEMBERS:
        return "wrong"
    keep_order = kind == "tuple" or shape not in ("{}", "union")
    names = {split_top(member, "=")[0] for member in given if "=" in member}
    if "=" not in reference and len(names) > (0 if keep_order else 1):
        return "wrong"  # (y=1,x=2) is not (1,2)
    return _compare_members(given, wanted, tolerance, "interval" if shape == "union" else "", keep_order)


def _compare_members(given: list[str], wanted: list[str], tolerance: Fraction, kind: str, keep_order: bool) -> str:
    left = list(wanted)
    for member in given:
        outcomes = []
        for candidate in left[:1] if keep_order else list(left):
            outcomes.append(compare_answers(member, candidate, tolerance, kind))
            if outcomes[-1] in CORRECT:
                left.remove(candidate)
                break
            if outcomes[-1] in ("timed_out", "crashed"):
                return outcomes[-1]  # one deadline a response, not one for each pair of members
        else:
            return next((outcome for outcome in outcomes if outcome != "wrong"), "wrong")
    return "equivalent"


def _letters(text: str) -> set[str]:
    return set(re.findall(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)))


def _compare_values(answer: str, reference: str, tolerance: Fraction) -> str:
    texts = [TEXT.fullmatch(text) for text in (answer, reference)]
    if any(texts) or r"\text" in answer + reference:
        words = [match[2] if match else text for match, text in zip(texts, (answer, reference), strict=True)]
        return "equivalent" if words[0].strip("()").lower() == words[1].strip("()").lower() else "wrong"
    sides, reference_sides = split_top(answer, "="), split_top(reference, "=")
    if len(sides) > 2 or (len(sides) == 2 and not NAME.fullmatch(sides[0]) and len(reference_sides) == 1):
        return "wrong"  # a chain offers several answers
    if len(sides) == 2 and len(reference_sides) == 1:
        return compare_answers(sides[1], reference, tolerance)
    if len(reference_sides) == 2 and len(sides) == 1 and NAME.fullmatch(reference_sides[0]):
        return compare_answers(answer, reference_sides[1], tolerance)
    if BASED.fullmatch(answer) or BASED.fullmatch(reference):
        parts = [match.groups() for text in (answer, reference) if (match := BASED.fullmatch(text))]
        return "equivalent" if len(parts) == 2 and parts[0] == parts[1] else "wrong"
    percent = [PERCENT.sub("", text) for text in (answer, reference)]
    if reference != percent[1]:
        answer, reference = percent  # 62.5 for 62.5\%, but not 62.5\% for 62.5
    if fault(answer):
        return "refused"
    ours, theirs = exact_value(answer), exact_value(reference)
    if ours is not None and theirs is not None:
        return "equivalent" if abs(ours - theirs) <= tolerance else "wrong"
    if theirs is not None and MARKED.search(answer):
        return "wrong"
    if re.search(r"\.\d", answer) and not re.search(r"\.\d", reference):
        return "wrong"  # a decimal is not an exact formula
    if _letters(answer) != _letters(reference) and _letters(answer.lower()) == _letters(reference.lower()):
        return "wrong"  # R is not r; math-verify takes them for the same
    return POOL.ask(answer, reference)
