"""Whether two answers are the same: numbers exactly, lists member by member, single formulas by math-verify."""

import re
from fractions import Fraction

from .answers import MAX_MEMBERS, TEXT, as_interval, fault, members, number, split_top
from .sandbox import POOL

RIGHT = ("match", "equivalent")

# What may stand before an equals sign: not e, i or pi, which are numbers, nor a command such as \not.
NAME = re.compile(
    r"(?:[a-df-hj-zA-Z]|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|rho|sigma|tau|omega))(?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?"
)
# A number with an index, a letter behind it or in brackets is not that number, though math-verify reads it so.
MARKED = re.compile(r"[_\[\]]|\d[a-zA-Z]")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")


def same(answer: str, truth: str, tolerance: Fraction = Fraction(0), ordered: bool = False, asked: int = 0) -> str:
    """Compare two tidy answers and return an outcome; lists are compared member by member.

    Args:
        tolerance: largest difference of two numbers.
        ordered: a bare list has its order.
        asked: how many members of the truth suffice; 0 for all.
    """
    if answer == truth:
        return "equivalent"
    shape, wanted = members(truth)
    if shape in ("[)", "(]", "[]") or (shape == "()" and r"\infty" in truth):
        answer = as_interval(answer)  # (1,2) may be a point, which no inequality is
    given_shape, given = members(answer)
    if shape or given_shape:
        shapes = {shape, given_shape}
        if (
            shape != given_shape
            and not (ordered and shapes == {"{}", "()"})
            and not (asked == 1 and shapes == {"{}", ""})
        ):
            return "wrong"
        if len(given) != (asked or len(wanted)) or len(given) > MAX_MEMBERS:
            return "wrong"
        keep_order = ordered or shape not in ("{}", "union")
        names = {split_top(member, "=")[0] for member in given if "=" in member}
        if "=" not in truth and len(names) > (0 if keep_order else 1):
            return "wrong"  # (y=1,x=2) is not (1,2)
        return _same_members(given, wanted, tolerance, keep_order)
    return _same_value(answer, truth, tolerance)


def _same_members(given: list[str], wanted: list[str], tolerance: Fraction, keep_order: bool) -> str:
    left = list(wanted)
    for member in given:
        outcomes = []
        for candidate in left[:1] if keep_order else list(left):
            outcomes.append(same(member, candidate, tolerance))
            if outcomes[-1] in RIGHT:
                left.remove(candidate)
                break
            if outcomes[-1] in ("timed_out", "crashed"):
                return outcomes[-1]  # one deadline a response, not one for each pair of members
        else:
            return next((outcome for outcome in outcomes if outcome != "wrong"), "wrong")
    return "equivalent"


def _letters(text: str) -> set[str]:
    return set(re.findall(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)))


def _same_value(answer: str, truth: str, tolerance: Fraction) -> str:
    texts = [TEXT.fullmatch(text) for text in (answer, truth)]
    if any(texts) or r"\text" in answer + truth:
        words = [match[2] if match else text for match, text in zip(texts, (answer, truth), strict=True)]
        return "equivalent" if words[0].strip("()").lower() == words[1].strip("()").lower() else "wrong"
    sides, truth_sides = split_top(answer, "="), split_top(truth, "=")
    if len(sides) > 2 or (len(sides) == 2 and not NAME.fullmatch(sides[0]) and len(truth_sides) == 1):
        return "wrong"  # a chain offers several answers
    if len(sides) == 2 and len(truth_sides) == 1:
        return same(sides[1], truth, tolerance)
    if len(truth_sides) == 2 and len(sides) == 1 and NAME.fullmatch(truth_sides[0]):
        return same(answer, truth_sides[1], tolerance)
    if BASED.fullmatch(answer) or BASED.fullmatch(truth):
        pairs = [BASED.fullmatch(text) for text in (answer, truth)]
        return "equivalent" if all(pairs) and pairs[0].groups() == pairs[1].groups() else "wrong"
    percent = [re.sub(r"\\?%$", "", text) for text in (answer, truth)]
    if truth != percent[1]:
        answer, truth = percent  # 62.5 for 62.5\%, but not 62.5\% for 62.5
    if fault(answer):
        return "refused"
    ours, theirs = number(answer), number(truth)
    if ours is not None and theirs is not None:
        return "equivalent" if abs(ours - theirs) <= tolerance else "wrong"
    if theirs is not None and MARKED.search(answer):
        return "wrong"
    if re.search(r"\.\d", answer) and not re.search(r"\.\d", truth):
        return "wrong"  # a decimal is not an exact formula
    if _letters(answer) != _letters(truth) and _letters(answer.lower()) == _letters(truth.lower()):
        return "wrong"  # R is not r; math-verify takes them for the same
    return POOL.ask(answer, truth)
