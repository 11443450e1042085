"""Whether two answers are the same: numbers exactly, lists member by member, single formulas by math-verify."""

import re
from collections import Counter
from fractions import Fraction

from .answers import (
    BASED,
    GREEK,
    MAX_MEMBERS,
    MODULO,
    NAME,
    PERCENT,
    TEXT,
    as_interval,
    exact_value,
    fault,
    is_interval,
    shape_and_members,
    split_top,
)
from .notation import RELATION, unit_of
from .sandbox import POOL

CORRECT = ("match", "equivalent")

# A number with an index or in brackets is not that number, though math-verify reads it so; these have an index.
MARKED = re.compile(r"[_\[\]]")
UNCERTAIN = re.compile(r"\d+\(\d+\)")  # 34(1) is a measured number
# What math-verify passes over: an ellipsis, a modulus, brackets around all.
PASSED_OVER = re.compile(r"\\(?:ldots|[bp]?mod)(?![a-zA-Z])|^\[")
NUMBER_INDEX = re.compile(r"\d_(?:\w|\{\w+\})")
BOUND, DIFFERENTIAL = re.compile(r"\\(?:sum|prod|lim)_\{?([a-zA-Z])"), re.compile(r"d([a-zA-Z])")
INDEXED = re.compile(r"\\(?:log|sum|prod|int|lim|max|min)_|\\sqrt\[\d+\]|\\(?:int|lim|max|min)(?![a-zA-Z])")
FUNCTIONS = re.compile(r"\\[a-zA-Z]+|arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|pi")
CALL = re.compile(r"[fghFGHPE](?:_\w)?'*\([^()]*\)")  # math-verify takes f(2)=5 and f(3)=5 for the same
DEGREES = re.compile(r"(\d*\.?\d+|[a-z])\^\\circ")
# Two numbers side by side are a product, which math-verify reads as a mixed number where the second has brackets.
PRODUCT = re.compile(r"(?<![_^\d])\d+(?=[(\[]|\\\{)|\)(?=[\d(]|\\frac)")
# 1/2x is a half of x: a number ends a quotient.
QUOTIENT = re.compile(
    r"/\d+(?=[a-zA-Z]|\\(?:sqrt|frac|binom|sin|cos|tan|ln|log|pi|theta|alpha|beta|gamma|lambda|omega))"
)
DECIMAL_PART = re.compile(r"\d*\.(\d+)")
MAX_DECIMAL_PLACES = 12  # math-verify compares 30 of them, so that no short decimal is a root or a multiple of pi


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
    values = _without_names(answer, reference)
    if values is None:
        return "wrong"
    answer, reference = values
    shape, wanted = shape_and_members(reference)
    interval = as_interval(reference)
    if interval != reference or is_interval(shape, reference) or (shape == "()" and kind == "interval"):
        if interval != reference and as_interval(answer) != answer and _letters(answer) != _letters(reference):
            return "wrong"  # x>3 is not y>3
        answer, reference, kind = as_interval(answer), interval, "interval"
        shape, wanted = shape_and_members(reference)
    given_shape, given = shape_and_members(answer)
    if not shape and not given_shape:
        return _compare_values(answer, reference, tolerance)
    shapes = {shape, given_shape}
    ordered = kind == "tuple" and shapes == {"{}", "()"} and not answer.startswith(r"\{")
    alike = shape == given_shape or ordered
    alike = alike or (required_count == 1 and shapes == {"{}", ""})
    if not alike or len(given) != (required_count or len(wanted)) or len(given) > MAX_MEMBERS:
        return "wrong"
    keep_order = kind == "tuple" or shape not in ("{}", "union")
    unknowns = [_letters(member) for member in given if RELATION.search(member)]
    if shape == "union" and unknowns and not set.intersection(*unknowns):
        return "wrong"  # y<1 or x>4
    names, reference_names = _names(given), _names(wanted)
    if "=" not in reference and len(names) > (0 if keep_order else 1):
        return "wrong"  # (y=1,x=2) is not (1,2)
    if len(reference_names) > 1:  # 6,5 is not x=5,y=6
        if names and not all("=" in member for member in given):
            return "wrong"
        keep_order = keep_order or not names
    return _compare_members(given, wanted, tolerance, "interval" if shape == "union" else "", keep_order)


def _without_names(answer: str, reference: str) -> tuple[str, str] | None:
    """Return both without the name of a collection before it: `P=(1,2)`, `(x,y)=(1,2)`; None if the names differ."""
    if "=" not in answer + reference:
        return answer, reference
    names, values = [], []
    for text in (answer, reference):
        name, *value = split_top(text, "=")
        shape, members = shape_and_members(value[0] if len(value) == 1 else "")
        unknowns = shape_and_members(name)[1] if name[:1] == "(" else [name]
        named = shape and all(NAME.fullmatch(unknown) for unknown in unknowns) and len(unknowns) in (1, len(members))
        names.append(unknowns if named else [])
        values.append(value[0] if named else text)
    if [len(unknowns) for unknowns in names] in ([0, 1], [1, 0]) and max(answer.count("="), reference.count("=")) > 1:
        return None  # x=1,2 is not x=1,y=2
    for one, other in ((0, 1), (1, 0)):
        if len(names[one]) > 1 and not names[other] and "=" in values[other]:  # (x,y)=(1,2) is x=1,y=2
            shape, members = shape_and_members(values[one])
            if shape != "()":
                continue  # of two solutions
            values[one] = ",".join(f"{name}={member}" for name, member in zip(names[one], members, strict=True))
    if all(names):
        return (values[0], values[1]) if names[0] == names[1] else None
    in_order = all(unknowns == sorted(unknowns, key=lambda name: name.lstrip("\\")) for unknowns in names)
    return (values[0], values[1]) if in_order else None  # (y,x)=(1,2) is not (1,2)


def _names(members: list[str]) -> set[str]:
    """Return the names before equals signs without their indices: x_1 and x_2 are values of one unknown."""
    return {split_top(member, "=")[0].split("_")[0] for member in members if "=" in member}


def _compare_members(given: list[str], wanted: list[str], tolerance: Fraction, kind: str, keep_order: bool) -> str:
    left = list(wanted)
    if not keep_order:  # the same text first, so that few pairs are left for math-verify
        same = Counter(given) & Counter(wanted)
        given, left = list((Counter(given) - same).elements()), list((Counter(wanted) - same).elements())
    for member in given:
        outcomes = []
        for candidate in left[:1] if keep_order else list(left):
            outcomes.append(compare_answers(member, candidate, tolerance, kind))
            if outcomes[-1] in CORRECT:
                left.remove(candidate)
                break
            if outcomes[-1] in ("timed_out", "crashed"):
                return outcomes[-1]
        else:
            return next((outcome for outcome in outcomes if outcome != "wrong"), "wrong")
    return "equivalent"


def _letters(text: str) -> set[str]:
    """Return the letters of a formula, Greek ones by name; pi, e and i are numbers."""
    latin = re.findall(r"[a-zA-Z]", FUNCTIONS.sub("", re.sub(r"\\(?:begin|end)\{\w+\}", "", text)))
    return {*latin, *re.findall(GREEK, text)} - {"e", "i"}


def _bound(text: str) -> set[str]:
    """Return the letters that sums, limits and integrals bind: one of two equal answers may have them alone."""
    return {*BOUND.findall(text), *(["d", *DIFFERENTIAL.findall(text)] if r"\int" in text else [])}


def _same_words(answer: str, reference: str) -> bool:
    matches = [(TEXT.fullmatch(text), text) for text in (answer, reference)]
    words = [match[2] + (f"^{match[3]}" if match[3] else "") if match else text for match, text in matches]
    if unit_of(words[0]) == unit_of(words[1]) is not None:
        return True
    bare = [re.sub(r"\s", "", word.strip("()")) for word in words]
    if len(words[1]) == 1:  # kelvin is not the prefix k; but a choice, (C), has any case
        return bare[0] == bare[1]
    return bare[0].lower() == bare[1].lower()


def _exact(text: str) -> str:
    """Return a formula with fractions for decimals and for degrees of an angle, and a dot in products."""
    text = QUOTIENT.sub(r"\g<0>\\cdot ", PRODUCT.sub(r"\g<0>\\cdot ", text))
    text = DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    return DECIMAL_PART.sub(lambda match: "(\\frac{{{}}}{{{}}})".format(*Fraction(match[0]).as_integer_ratio()), text)


def _compare_values(answer: str, reference: str, tolerance: Fraction) -> str:
    if r"\text" in answer + reference or r"\mbox" in answer + reference:
        return "equivalent" if _same_words(answer, reference) else "wrong"
    sides, reference_sides = split_top(answer, "="), split_top(reference, "=")
    if len(sides) > 2 or (len(sides) == 2 and not NAME.fullmatch(sides[0]) and len(reference_sides) == 1):
        return "wrong"  # a chain offers several answers
    if len(sides) == len(reference_sides) == 2 and CALL.fullmatch(sides[0]) and CALL.fullmatch(reference_sides[0]):
        return compare_answers(sides[1], reference_sides[1], tolerance) if sides[0] == reference_sides[0] else "wrong"
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
    if len({match[2] for text in (answer, reference) if (match := MODULO.fullmatch(text))}) > 1:
        return "wrong"
    ours, theirs = exact_value(answer), exact_value(reference)
    if ours is not None and theirs is not None:
        return "equivalent" if abs(ours - theirs) <= tolerance else "wrong"
    bare = INDEXED.sub("", answer)
    if (theirs is not None and (MARKED.search(bare) or UNCERTAIN.fullmatch(answer))) or r"\ldots" in reference:
        return "wrong"
    if PASSED_OVER.search(bare) and not PASSED_OVER.search(reference):
        return "wrong"
    if sorted(NUMBER_INDEX.findall(bare)) != sorted(NUMBER_INDEX.findall(INDEXED.sub("", reference))):
        return "wrong"  # nor 3_5+1 for 3_6+1
    unlike = (_letters(answer) ^ _letters(reference)) - _bound(answer) - _bound(reference)
    if any(len(places) > MAX_DECIMAL_PLACES for places in DECIMAL_PART.findall(answer)):
        return "wrong"
    answer, reference = _exact(answer), _exact(reference)
    if r"\circ" in answer + reference:
        return "wrong"
    outcome = POOL.ask(answer, reference)
    return "wrong" if outcome == "equivalent" and unlike else outcome  # x+y-y is not x
