"""The one reader of answers in LaTeX: tidy form, type, members, exact value, units, and whether it may be parsed.

Text rules and exact arithmetic alone; nothing here evaluates an answer.
"""

import functools
import re
from fractions import Fraction
from itertools import accumulate

from .notation import GAP, RELATION, TEXT, normalise, without_units

# The limits are far above what the reference answers of the nine benchmarks have: 210 characters, brackets 4 deep,
# numbers of 11 digits, lists of 18 members.
MAX_CHARACTERS = 600
MAX_DEPTH = 16  # parsers recurse
MAX_DIGITS = 60  # exact arithmetic grows with them
# What is computed exactly grows without bound: 2024^{4046} is a reference answer, 9^{9^9} an attack.
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 1_000
MAX_MEMBERS = 40

TYPES = (
    *("integer", "rational", "decimal", "scientific", "set", "tuple", "interval", "matrix"),
    *("expression", "equation", "text", "based"),
)

REVERSED = {">": "<", r"\ge": r"\le", r"\geq": r"\leq"}
RECURRING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\{(\d+)\}")
# With spaces between the groups it is a list.
GROUPED = re.compile(r"([^,]*=\W*)?(-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?:\\?%)?)")
ONE_CHARACTER = re.compile(r"(?<=[_^])\{(\w)\}(?!\d)")
NUMBER = re.compile(r"([+-]?(?=\.?\d)\d*\.?\d*)(?:[eE]([+-]?\d+)|\\(?:times|cdot)10\^\{?([+-]?\d+)\}?)?")
FRACTION = re.compile(r"([+-]?)(\d*)\\frac(?:\{([+-]?\d+)\}|(\d))(?:\{(\d+)\}|(\d))|([+-]?\d+)/(\d+)")
# A factorial of a factorial, or of a bracket without a letter: nothing bounds its size.
NUMERIC_FACTORIAL = re.compile(r"!!|[({](?:[^a-zA-Z()\\]|\\[a-z]+)*[)}]!")
INTEGER, DECIMAL = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?\d*\.\d+")
SCIENTIFIC = re.compile(r"[+-]?\d+(?:\.\d+)?[eE][+-]?\d+")
BASED = re.compile(r"[({]?0*((?=[A-Z]*\d)[\dA-Z]+)[)}]?_\{?(\d+)\}?")
PERCENT = re.compile(r"\\?%$")
ASSIGNMENT = re.compile(r"^[a-zA-Z](?:_\{?\w+\}?)?=")
MODULO = re.compile(r"([^\\]+)\(?\\[bp]?mod\{?(\d+)\}?\)?")
# The Greek letters but pi, which is a number, and letters that are commands too.
GREEK = (
    r"\\((?:var)?(?:[Tt]heta|[Pp]hi|[Ss]igma|epsilon|rho)|Pi|[Pp]si|[Oo]mega|[Dd]elta|[Ll]ambda|gamma|Gamma(?!\()|[Xx]i"
    r"|[Uu]psilon|alpha|beta|zeta|eta|iota|kappa|mu|nu|tau|chi|ell|hbar)(?![a-zA-Z])"
)
# What may stand before an equals sign: not e, i or pi, which are numbers, nor a command such as \not.
NAME = re.compile(
    rf"(?:[a-df-hj-zA-Z]|{GREEK}|\{{[a-zA-Z]\}}"
    r"|\\(?:vec|overrightarrow|mathcal|mathbb) ?(?:[a-zA-Z]|\{[a-zA-Z]{1,2}\}))"
    r"(?:_(?:\w+|\{[\w,]+\}))?(?:\((?:[a-zA-Z]|-?\d+)\))?"
)
EXPONENT = re.compile(r"\^\{?\s*([+-]?\d+)|(\d+)\s*!")
MATRIX = re.compile(r"[(\[]?\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}[)\]]?")
OPENING, CLOSING = "([{", ")]}"


def tidy(answer: str) -> str:
    """Return an answer without what does not change its meaning: notation, spacing, layout, units and a full stop.

    A gap between digits that is no thousands separator or mixed number stays in the text, which then is no number.
    """
    return read(answer)[0]


@functools.lru_cache(maxsize=2**14)
def read(answer: str, is_list: bool = False) -> tuple[str, tuple[str, ...]]:
    """Return an answer as `tidy` does, and its units.

    Args:
        is_list: every comma separates members: 7,112 is two numbers.
    """
    if INTEGER.fullmatch(answer) and answer.isascii():
        return answer, ()
    text, units = without_units(normalise(answer))
    text = TEXT.sub(_words, text)
    text = re.sub(r"(?<!\d)([1-9]\d{0,2})((?: \d{3})+)(?!\d)", lambda m: m[1] + m[2].replace(" ", ""), text)
    text = re.sub(r"(?<=\d) (\d+)/(\d+)$", r"\\frac{\1}{\2}", text)
    text = GAP.join(text.replace(GAP, " ").split())
    text = re.sub(rf"(?<=[^.])\.{GAP}*$", "", text).strip(GAP)
    while (
        text[:1] + text[-1:] in ("{}", "()")
        and _one_pair(text)
        and (text[0] == "{" or len(split_top(text[1:-1], ",")) == 1)
    ):
        text = text[1:-1].strip(GAP)
    if not is_list and (match := GROUPED.fullmatch(text)):
        text = (match[1] or "") + match[2].replace(",", "")
    text = re.sub(rf"(?<!\\)(\\[a-zA-Z]+){GAP}+(?=[a-zA-Z])", r"\1 ", text)  # \pi x is not \pix
    text = re.sub(rf"(?<=[_^])(\d){GAP}+(?=\d)", r"{\1}", text)  # \log_2 8
    text = re.sub(rf"(?<!\d){GAP}+|{GAP}+(?!\d|{GAP})", "", text)
    text = re.sub(
        r"(?:^|(?<=\\cup)|(?<=\\cup ))(?:[a-zA-Z]|\((?:x,y(?:,z)?|a,b(?:,c)?|m,n|p,q)\))\\in(?![a-z])", "", text
    )
    return ONE_CHARACTER.sub(r"\1", text), units


def _depths(text: str) -> list[int]:
    return list(accumulate((char in OPENING) - (char in CLOSING) for char in text))


def _one_pair(text: str) -> bool:
    depths = _depths(text)
    return depths[-1] == 0 and 0 not in depths[:-1]


def _words(match: re.Match) -> str:
    words = match[2].replace(GAP, " ").split()
    if not words or match[1] == "mathrm" or (len(words) == 1 and words[0].strip("-").isdigit()):
        return f" {''.join(words)}" + (f"^{match[3]} " if match[3] else " ")
    words[-1:] = [word.rstrip(".") or word for word in words[-1:]]
    return rf"\text{{{' '.join(words)}}}" + (f"^{match[3]}" if match[3] else "")


def split_top(text: str, separator: str) -> list[str]:
    """Split at separators outside brackets."""
    parts, start = [], 0
    for i, depth in enumerate(_depths(text)):
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i].strip())
            start = i + len(separator)
    return [*parts, text[start:].strip()]


def _both_signs(text: str) -> list[str]:
    """Return both values of a plus-minus, or the one value."""
    before, *after = re.split(r"\\pm(?![a-zA-Z])", text)
    return [f"{before}+{after[0]}".lstrip("+"), f"{before}-{after[0]}"] if len(after) == 1 else [text]


def shape_and_members(text: str) -> tuple[str, list[str]]:
    """Return the shape of an answer and its members: "()", "[)" and so on, "{}" for a bare list too, "" for a value."""
    if match := MATRIX.fullmatch(text):
        rows = [row for row in match[2].split(r"\\") if row]
        return f"rows {[row.count('&') for row in rows]}", [cell for row in rows for cell in row.split("&")]
    union = split_top(text, r"\cup")
    if len(union) > 1:
        return "union", union
    braces = text.startswith(r"\{") and text.endswith(r"\}")
    listed = [value for part in split_top(text[2:-2] if braces else text, ",") for value in _both_signs(part)]
    if braces or len(listed) > 1:
        return "{}", listed
    inner = split_top(text[1:-1], ",") if text[:1] in ("(", "[") and text[-1:] in (")", "]") else []
    return (text[0] + text[-1], inner) if len(inner) > 1 else ("", [text])


def is_interval(shape: str, text: str) -> bool:
    """Return whether brackets cannot be a tuple's: a square one, or an infinite end."""
    return shape in ("[)", "(]", "[]") or (shape == "()" and r"\infty" in text)


def as_interval(text: str) -> str:
    """Return `1<x\\leq2` as `(1,2]`, `x>1` as `(1,\\infty)` and all real numbers so; any other text as it is."""
    if text == r"\mathbb{R}":
        return r"(-\infty,\infty)"
    parts = [part.strip() for part in RELATION.split(text)]
    if len(parts) == 1:
        return text
    if all(part in REVERSED for part in parts[1::2]):
        parts = [REVERSED.get(part, part) for part in reversed(parts)]
    variables = [bool(NAME.fullmatch(part)) for part in parts]
    if len(parts) == 3 and any(variables):
        parts = [r"-\infty", "<", *parts] if variables[0] else [*parts, "<", r"\infty"]
    if len(parts) != 5 or not NAME.fullmatch(parts[2]) or "(" in parts[2] or {parts[1], parts[3]} & REVERSED.keys():
        return text
    return f"{'(' if parts[1] == '<' else '['}{parts[0]},{parts[4]}{')' if parts[3] == '<' else ']'}"


def exact_value(text: str) -> Fraction | None:
    """Return the exact value of a plain number: integer, decimal, recurring, scientific, fraction, mixed, remainder."""
    if match := MODULO.fullmatch(text):
        number, modulus = exact_value(match[1]), int(match[2])
        return number % modulus if number is not None and modulus else None
    if match := RECURRING.fullmatch(text):
        sign, whole, part, repeated = match.groups()
        value = Fraction(f"{whole or 0}.{part or 0}")
        value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(part))
        return -value if sign == "-" else value
    if match := NUMBER.fullmatch(re.sub(r"^(-?)(10\^)", r"\g<1>1\\cdot\2", text)):
        exponent = int(match[2] or match[3] or 0)
        return Fraction(match[1]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    if match := FRACTION.fullmatch(text):
        sign, whole, top, top1, below, below1, plain_top, plain_below = match.groups()
        above, under = int(top or top1 or plain_top), int(below or below1 or plain_below)
        if under:
            value = int(whole or "0") + Fraction(above, under)
            return -value if sign == "-" else value
    return None


def answer_type(text: str) -> str:
    """Return one of TYPES for a tidy answer, by its form; an order that the question asks for does not show in it."""
    shape, _ = shape_and_members(text)
    if shape.startswith("rows"):
        return "matrix"
    if shape == "union" or is_interval(shape, text):
        return "interval"
    if shape:
        return "tuple" if shape == "()" else "set"
    if TEXT.fullmatch(text):
        return "text"
    patterns = {"integer": INTEGER, "decimal": DECIMAL, "scientific": SCIENTIFIC, "rational": FRACTION, "based": BASED}
    for name, pattern in patterns.items():
        if pattern.fullmatch(bare_number(text)):
            return name
    return "equation" if "=" in text or RELATION.search(text) else "expression"


def bare_number(text: str) -> str:
    """Return a tidy answer without `x=` before it and a percent sign after it."""
    return PERCENT.sub("", ASSIGNMENT.sub("", text, count=1))


def fault(text: str) -> str | None:
    """Return which cap an answer breaks; None if it may be parsed."""
    if len(text) > MAX_CHARACTERS:
        return "length"
    depths = [0, *_depths(text)]
    if max(depths) > MAX_DEPTH or depths[-1]:
        return "depth"
    if any(len(digits) > MAX_DIGITS or not digits.isascii() for digits in re.findall(r"\d+", text)):
        return "digits"
    if text.count("!") > 4 or NUMERIC_FACTORIAL.search(text):
        return "factorial"
    for exponent, factorial in EXPONENT.findall(text):
        if (exponent and abs(int(exponent)) > MAX_EXPONENT) or (factorial and int(factorial) > MAX_FACTORIAL):
            return "exponent"
    if re.search(r"\^\{[^{}]*\^|\^\{[^{}]*\{[^{}]*\^", text):
        return "tower"
    return None if text.isprintable() else "invisible"
