r"""One notation for what LaTeX and Unicode write in several ways, the units of an answer, and a response's last box.

`notation.json` has the tables: Unicode signs, patterns that are replaced in their order, and units by name and by
symbols; those of `units_in_text_commands` count in \text{} alone, since 5 mg may be five times m times g.
"""

import functools
import json
import re
import unicodedata
from collections import Counter
from itertools import groupby
from pathlib import Path

from .justrl import BOX, last_boxed

TABLES = json.loads(Path(__file__).with_name("notation.json").read_text("utf-8"))
SIGNS = str.maketrans({char: latex for latex, chars in TABLES["signs"].items() for char in chars})
SYNONYMS = [(re.compile(pattern), replacement) for pattern, replacement in TABLES["synonyms"]]
SCRIPTS = {"<super>": "^", "<sub>": "_", "<fraction>": r"\frac"}
GAP = "\u00a6"  # stands where something was removed, so that 3 4 is not 34; a thin space stays a space

ANY_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
# \boxed 8 boxes one sign. Where more follows at once, as in \boxed 34, LaTeX boxes something else than what is meant.
BARE_BOX = re.compile(r"\\[a-zA-Z]+(?![a-zA-Z{\[])|[^\\{}\s$](?=[.,;:!]?(?:\s|$)|[$}]|\\[)\]])")

TEXT_COMMANDS = "text|mbox|textbf|textrm|textit|textsf|texttt|operatorname|mathrm"
CONTENT = r"(?:[^{}]|\^\{-?\d\})*"
POWER = r"(?:\^(-?\d|\{-?\d\}))?"
TEXT = re.compile(rf"\\({TEXT_COMMANDS})\{{({CONTENT})\}}{POWER}")
RELATION = re.compile(r"(\\leq?(?![a-zA-Z])|\\geq?(?![a-zA-Z])|[<>])")
INTERVAL = re.compile(RELATION.pattern + r"|\\in(?:fty)?(?![a-zA-Z])")

WORDS = {word: unit for unit, words in TABLES["units"].items() for word in words.split()}
SYMBOLS = {word: unit for unit, words in TABLES["units_in_text_commands"].items() for word in words.split()}
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
TOKEN = re.compile(r"([a-zA-ZµΩ]+)\.?|\^\{?(-?\d)\}?|(/)")
IN_COMMAND = rf"(?:\\mu *)?\\(?:{TEXT_COMMANDS})\{{{CONTENT}\}}(?:\^(?:-?\d|\{{-?\d\}}))?"
TEXT_FRACTION = re.compile(rf"\\frac\{{({IN_COMMAND})\}}\{{({IN_COMMAND})\}}")
# What has no units of its own: an exponent, an index, an argument.
INNER = r"((?:[\^_]|\\(?:sqrt|binom|log|ln)(?![a-zA-Z])(?:_\w)?|\\binom\{\w+\}) *\{(?:[^{}]|\{[^{}]*\})*\})"
TEXT_UNIT = re.compile(rf"{INNER}|(?:[ {GAP}]*(?:(?:/|\\cdot|\\times)[ {GAP}]*)?{IN_COMMAND})+")
DEGREE = re.compile(rf"{INNER}|\^\\circ")
# A factor after a unit's name: \mathrm{d}x and \mathrm{N}(x) have no unit.
FACTOR = re.compile(
    rf"[ {GAP}]*(?:[a-zA-Z(]|\\\{{|"
    r"\\(?!c[au]p|l?or|l?and|times|cdot|pm|leq?|geq?|end|ldots|sqrt|text|mbox|mathrm)[a-zA-Z])"
)
# Before a number a unit may stand in text alone, \text{cm}3, and by no name that is a function's too.
BEFORE_NUMBER = re.compile(rf"\\(?:text|mbox)\{{ *(?!(?:sec|min|g?rad|d) *\}})[^{{}}]*\}}[ {GAP}]*(?=[-.\d])")
CURRENCIES = {"dollar^1", "euro^1", "sterling^1", "yen^1", "yuan^1", "rupee^1"}
# At the end of an answer or of a member of a list.
PLAIN = r"[a-zA-Z]+\.?(?:\^(?:-?\d|\{-?\d\}))?"
FIRST = rf"(?=(?i:{'|'.join([*WORDS, *POWERS, 'per'])})(?![a-zA-Z])|[a-zA-Z]+ */)"
PLAIN_UNIT = re.compile(
    rf"(?<![a-zA-Z\\_^{{]){FIRST}{PLAIN}(?:(?: *[/-] *| +| *\\cdot *){PLAIN})*"
    rf"(?=[ {GAP}]*(?:[,)\]]|\\\}}|\.?[ {GAP}]*$))"
)
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")


def last_box(text: str) -> str | None:
    """Return the content of the last box in any form that LaTeX allows; None without one, or if it has no end."""
    *_, last = [None, *ANY_BOX.finditer(text, max(text.rfind(r"\boxed"), 0))]
    if last is None:
        return None
    if text.startswith("{", last.end()):
        return last_boxed(BOX + text[last.end() + 1 :])
    bare = BARE_BOX.match(text, last.end())
    return bare and bare.group()


def _in_ascii(text: str) -> str:
    """Return signs as LaTeX and other forms of plain characters as these; other scripts stay."""
    parts = []
    for kind, run in groupby(text.translate(SIGNS), lambda char: unicodedata.decomposition(char).partition(" ")[0]):
        plain = unicodedata.normalize("NFKC", "".join(run))
        if kind == "<fraction>":
            plain = re.sub(r"(\d+)\u2044(\d+)", r"\\frac{\1}{\2}", plain)
        elif kind in SCRIPTS:
            plain = f"{SCRIPTS[kind]}{{{plain}}}"
        parts.append(plain.translate(SIGNS))
    return "".join(parts)


@functools.lru_cache(maxsize=2**14)
def normalise(answer: str) -> str:
    """Return an answer in the one notation; units and text stay."""
    text = answer.strip()
    if not text.isascii():
        text = _in_ascii(text)
    if not re.search(r"[^\d,.+-]|\.\.", text):
        return text
    for pattern, replacement in SYNONYMS:
        if pattern.search(text):  # most are not there, and a search is faster than a replacement that finds none
            text = pattern.sub(replacement, text)
    sets = INTERVAL.search(text)  # which "or" unites and "and" intersects
    return text.replace(r"\lor", r"\cup" if sets else ",").replace(r"\land", r"\cap" if sets else ",")


def unit_of(phrase: str) -> str | None:
    """Return a unit in one form, `m^1 s^-2` for `meters per second squared`; None if a word is no unit."""
    phrase = re.sub(rf"\\cdot|\\times|[{GAP}*]|-(?!\d)", " ", re.sub(r"/ *\((.*)\)", r"/\1", phrase))
    phrase = re.sub(r"\\mu\s*", "µ", phrase).replace(r"\Omega", "Ω")
    if TOKEN.sub("", phrase).strip():
        return None
    powers: Counter = Counter()
    sign, power, last = 1, 1, ""
    for word, exponent, slash in TOKEN.findall(phrase):
        name = WORDS.get(word) or SYMBOLS.get(word) or (WORDS.get(word.lower()) if len(word) > 3 else None)
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


def _is_unit_here(match: re.Match, name: str) -> bool:
    """Return whether a name that may be a unit's stands where a unit does: after a value and before no factor."""
    if name in CURRENCIES:
        return True
    before = match.string[: match.start()].rstrip(f" {GAP}")[-1:]
    is_after_value = before.isalnum() or before in tuple(")]}%!'|.")
    return (is_after_value and not FACTOR.match(match.string, match.end())) or bool(
        BEFORE_NUMBER.match(match.string, match.start())
    )


def without_units(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a text in the one notation without its units, and these in order; one without a number is an answer."""
    found = []

    def take(match: re.Match, is_plain: bool = False) -> str:
        if not is_plain and match[1]:
            return match[0]
        name = unit_of(TEXT.sub(lambda part: f" {part[2]}" + (f"^{part[3]}" if part[3] else ""), match[0]))
        words = re.findall("[a-zA-Z]+", match[0])
        is_clear = name in ("m^1 s^-1", "m^1 s^-2") or any(word in WORDS or word.lower() in WORDS for word in words)
        is_apart = match.string[: match.start()][-1:] in (" ", GAP) or len(words[0]) > 2 or words[0][1:] in ("m", "g")
        if name is None or (is_plain and not (is_clear and is_apart)) or not _is_unit_here(match, name):
            return match[0]
        found.append(name)
        return GAP

    rest = TEXT_UNIT.sub(take, TEXT_FRACTION.sub(r"\1/\2", text))
    rest = PLAIN_UNIT.sub(lambda match: take(match, is_plain=True), rest)
    if r"^\circ" in rest and not TRIGONOMETRIC.search(rest):
        rest = DEGREE.sub(lambda match: match[1] or GAP, rest)
        found.append("degree")
    if not rest.strip(f" .{GAP}"):
        return text, ()
    return rest, (*found, *(["percent"] if "%" in rest else []))
