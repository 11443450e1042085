"""The units that an answer names, in one form, and the answer without them."""

import re
from collections import Counter

from .notation import GAP, TABLES, TEXT, TEXT_COMMANDS


def _names(table: dict[str, str]) -> dict[str, str]:
    """Map each way to write a unit to its first one; a name of three letters or more has a plural."""
    names = {}
    for unit, words in table.items():
        for word in (unit, *words.split()):
            names |= {word: unit} | ({f"{word}s": unit} if len(word) > 2 and word.isalpha() else {})
    return names


PREFIXED = {
    prefix + unit: " ".join((spelled if len(name) > 2 else prefix) + name for name in names.split())
    for prefix, spelled in TABLES["prefixes"].items()
    for unit, names in TABLES["prefixed_units"].items()
}
UNITS = _names(PREFIXED) | _names(TABLES["prefixed_units"]) | _names(TABLES["units"])
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
# Without \text these are units; other symbols may be products of variables, as 5 mg is five times m times g.
CLEAR = {*TABLES["clear_symbols"], *(word for word in UNITS if len(word) > 2 and word.islower())}
CLEAR_AT_ONCE = ("cm", "mm", "km", "kg")  # also without a space before them, as words of three letters are
SPEEDS = ("m^1 s^-1", "m^1 s^-2")

POWER = r"(?:\^\{?-?\d\}?)?"
TOKEN = re.compile(r"(\\mu ?(?:\\Omega|[a-zA-Z]+)|\\Omega|[a-zA-Z]+)\.?|\^\{?(-?\d)\}?|(/)")
IN_COMMAND = rf"\\(?:{TEXT_COMMANDS})\{{[^{{}}]*\}}{POWER}"
TEXT_FRACTION = re.compile(rf"\\frac\{{({IN_COMMAND})\}}\{{({IN_COMMAND})\}}")
IN_TEXT = re.compile(rf"(?:[ {GAP}]*(?:/|\\cdot|\\times)?[ {GAP}]*(?:\\mu *)?{IN_COMMAND})+")
# At the end of an answer or of a member of a list.
WORD = rf"[a-zA-Z]+\.?{POWER}"
PLAIN = re.compile(
    rf"(?<![a-zA-Z\\_^{{]){WORD}(?:(?: *[/-] *| +| *\\cdot *){WORD})*(?=[ {GAP}]*(?:[,)\]]|\\\}}|\.?[ {GAP}]*$))"
)
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")


def unit_of(phrase: str) -> str | None:
    """Return a unit in one form, `m^1 s^-2` for `meters per second squared`; None if a word is no unit."""
    phrase = " ".join(re.sub(rf"\\cdot|\\times|[{GAP}*]|-(?!\d)", " ", phrase).split())
    if TOKEN.sub("", phrase).strip():
        return None
    powers: Counter = Counter()
    sign, power, last = 1, 1, ""
    for word, exponent, slash in TOKEN.findall(phrase):
        name = UNITS.get(word) or (UNITS.get(word.lower()) if len(word) > 3 else None)
        if slash or word == "per":
            sign = -1
        elif last and (exponent or word in ("squared", "cubed")):
            powers[last] *= int(exponent or POWERS[word])
        elif word in POWERS:
            power = POWERS[word]
        elif name:
            powers[name] += sign * power
            last, power = name, 1
        else:
            return None
    return " ".join(f"{name}^{count}" for name, count in sorted(powers.items())) or None


def _is_clear(phrase: str, name: str, before: str) -> bool:
    words = re.findall("[a-zA-Z]+", phrase)
    if name not in SPEEDS and not CLEAR.intersection(words) and not CLEAR.intersection(map(str.lower, words)):
        return False
    return before in (" ", GAP) or words[0] in CLEAR_AT_ONCE or len(words[0]) > 2


def apart(text: str) -> tuple[str, set[str]]:
    """Return a text in the one notation without its units, and the units; one without a number is an answer itself."""
    found = set()

    def take(match: re.Match) -> str:
        phrase = TEXT.sub(lambda part: f" {part[2]}" + (f"^{part[3]}" if part[3] else ""), match[0])
        name = unit_of(phrase)
        before = match.string[: match.start()][-1:]
        if name is None or (phrase == match[0] and not _is_clear(phrase, name, before)):
            return match[0]
        found.add(name)
        return GAP

    rest = PLAIN.sub(take, IN_TEXT.sub(take, TEXT_FRACTION.sub(r"\1/\2", text)))
    if r"^\circ" in rest and not TRIGONOMETRIC.search(rest):
        rest = rest.replace(r"^\circ", GAP)
        found.add("degree")
    if not rest.strip(f" {GAP}"):
        return text, set()
    return rest, found | ({"percent"} if "%" in rest else set())
