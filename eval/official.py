r"""Grade as the released JustRL grader does by rule (`evals/utils.py`, `grade_answer_verl`), without evaluating text.

The last box is compared with the reference answer in two normal forms (after the MATH data set's and after PRM800K's
grader), then by sympy, member by member: is the difference zero? Its quirks are kept, so that scores compare with the
paper's; `tests/cases/official.json` has them one by one. Where the released grader hangs, exhausts memory or runs what
a model wrote as Python, the outcome is `error`, which is not correct. Needs pylatexenc and sympy, which verl brings.

    >>> grade(r"so $\boxed{\sqrt{8}}$", r"2\sqrt{2}")
    ('equivalent', '\\sqrt{8}')
"""

import atexit
import logging
import re
from pathlib import Path

from pylatexenc.latex2text import LatexNodes2Text

from reward.justrl import BOX, last_boxed
from reward.sandbox import Pool

VERSION = 1  # raise it whenever an outcome may change: caches of grades go by it
CORRECT = ("match", "equivalent")
# The longest reference answer of the benchmarks has 210 characters; work on a text grows faster than its length.
MAX_CHARACTERS = 2_000

POOL = Pool(Path(__file__).with_name("symbolic.py").resolve(), ("equivalent", "wrong", "error"))
atexit.register(POOL.end)

LATEX = LatexNodes2Text()
logging.getLogger("pylatexenc").setLevel(logging.ERROR)  # it warns of every formula that it cannot read

WRAPPED = re.compile(r"^\\text\{(.+)\}\n?\Z")
# A macro whose argument is missing, and one whose arguments have no braces.
BARE_ROOT, ROOT = re.compile(r"\\sqrt(?:\\sqrt|$)"), re.compile(r"\\sqrt([^{])")
BARE_FRACTION, FRACTION = re.compile(r"\\frac([^{]?)(?=\\frac|$)"), re.compile(r"\\frac([^{])(?:([^{])|(?=\{))")
SLASH = re.compile(r"^(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)$")
MULTIPLES = {"million": 6, "billion": 9, "trillion": 12}
UNIT_WORDS = "degree cm centimeter meter mile second minute hour day week month year foot feet inch yard".split()
SIGNS = str.maketrans({"√": "sqrt", "π": "pi", "∞": "inf", "\u222a": "U", "·": "*", "\u00d7": "*"})
THOUSANDS = re.compile(r"(\d),(\d{3}(?:$|\D))")
BRACKETS = set("()[]")
RATIO = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
# Exponents that the released grader leaves alone, for fear that sympy hangs.
POWER = re.compile(r"\^[{(]|\^[0-9]+\^|\^[0-9]{2}")


def boxed(text: str) -> str | None:
    r"""Return the content of the last box; None if there is none, if it never closes, or for `\boxed 5` as the last."""
    return last_boxed(text) if text.startswith(BOX, text.rfind(r"\boxed")) else None


def in_latex(answer: str) -> str:
    """Return the normal form that stays LaTeX; all of the answer as it is if one of the rules does not fit."""
    whole = text = WRAPPED.sub(r"\1", answer.strip()).strip()
    for old, new in (("\n", ""), (r"\!", ""), (r"\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")):
        text = text.replace(old, new)
    for layout in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$"):
        text = text.replace(layout, "")
    text, *units = text.split(r"\text{ ")
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text.replace(r"\%", ""))
    name, *values = text.split("=")
    if len(values) == 1 and len(name) <= 2:
        text = values[0]
    if len(units) > 1 or BARE_ROOT.search(text):
        return whole
    text = ROOT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    bare = BARE_FRACTION.search(text)
    if bare and not bare[1]:
        return whole
    if not bare:
        text = FRACTION.sub(lambda m: rf"\frac{{{m[1]}}}" + (f"{{{m[2]}}}" if m[2] else ""), text)
    return r"\frac{1}{2}" if text == "0.5" else SLASH.sub(r"\\frac{\1}{\2}", text)


def without_thousands(text: str) -> str:
    """Remove the commas of thousands, from the left and again until none is left: 1,234,567,890 keeps one."""
    while (shorter := THOUSANDS.sub(r"\1\2", text)) != text:
        text = shorter
    return text


def nearest(text: str) -> int | None:
    """Return the integer that a number in Python's notation is within 1e-7 of; None if there is none."""
    try:
        value = float(text)
        return round(value) if abs(value - round(value)) <= 1e-7 else None
    except (ValueError, OverflowError):  # not a number; nan or infinite
        return None


def is_integer(text: str) -> bool:
    return nearest(without_thousands(text)) is not None


def normal_form(answer: str) -> str:
    """Return the normal form that sympy could read; the release's majority vote compares it too."""
    text = re.sub(r"\\?[$%]", "", WRAPPED.sub(r"\1", answer))
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in MULTIPLES.items():
        text = text.replace(word, f"*10^{power}")
    for unit in UNIT_WORDS:
        text = re.sub(rf"{unit}(?:es)?s? *(?:\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text[:1] == "{" and text[-1:] == "}":
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    text = text if (integer := nearest(text)) is None else str(integer)
    if "\\" in text:
        try:
            converted = LATEX.latex_to_text(re.sub(r"\\[td]?frac", r" \\frac", text))
            text = converted.translate(SIGNS).strip()
        except Exception:  # pylatexenc raises many kinds; the released grader goes on with LaTeX too
            pass
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", re.sub("- *", "-", text))  # mixed numbers
    text = re.sub("[ {}]", "", text).lower()
    return str(int(float(text.replace(",", "")))) if is_integer(text) else text


def split_members(text: str) -> list[str]:
    """Return the members of a tuple, list or interval without brackets inside; any other text as the only member."""
    text = without_thousands(text)
    if len(text) > 2 and {text[0], text[-1]} <= BRACKETS and not BRACKETS.intersection(text[1:-1]):
        return [member.strip() for member in text[1:-1].split(",")]
    return [text] if text else []


def compare_members(given: str, reference: str) -> str:
    """Return the outcome for two members: fractions must be the same text, and an integer demands an integer."""
    if RATIO.search(given) and RATIO.search(reference):
        return "equivalent" if given == reference else "wrong"
    both = f"({reference})-({given})"
    letters = {*filter(str.isalpha, both.replace("sqrt", "").replace("frac", ""))}
    if is_integer(given) != is_integer(reference) or len(letters) > 2 or POWER.search(both):
        return "wrong"
    outcome = POOL.ask(given, reference)
    return outcome if outcome in POOL.answers else "error"


def grade(response: str, released: str) -> tuple[str, str]:
    r"""Return the outcome of a response and its final answer, "" if it has none.

    Args:
        released: the reference answer; a `\boxed{}` around it is taken off.

    Returns:
        `match` (the same text in a normal form), `equivalent`, `wrong` (also beyond MAX_CHARACTERS, to which the answer
        is cut), `no_box` or `error`.

    Raises:
        OSError: not one worker has ever started.
    """
    answer = boxed(response)
    if answer is None:
        return "no_box", ""
    answer, cut = answer[:MAX_CHARACTERS], len(answer) > MAX_CHARACTERS
    reference = boxed(released) if r"\boxed" in released else released or None
    if reference is None or cut:
        return "wrong", answer
    given_form, reference_form = normal_form(answer), normal_form(reference)
    if in_latex(answer) == in_latex(reference) or given_form == reference_form:
        return "match", answer
    given, wanted = split_members(given_form), split_members(reference_form)
    brackets = len(wanted) > 1 and (given_form[:1], given_form[-1:]) != (reference_form[0], reference_form[-1])
    if brackets or len(given) != len(wanted) or not given:
        return "wrong", answer
    outcomes = (compare_members(*pair) for pair in zip(given, wanted, strict=True))
    return next((outcome for outcome in outcomes if outcome != "equivalent"), "equivalent"), answer
