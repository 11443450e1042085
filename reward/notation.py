r"""One notation for what LaTeX and Unicode write in several ways, and the last box of a response."""

import json
import re
import unicodedata
from itertools import groupby
from pathlib import Path

# Unicode signs, and the units that `units.py` reads.
TABLES = json.loads(Path(__file__).with_name("notation.json").read_text("utf-8"))
SIGNS = str.maketrans({char: latex for latex, chars in TABLES["signs"].items() for char in chars})
SCRIPTS = {"<super>": "^", "<sub>": "_", "<fraction>": r"\frac"}

GAP = "\u00a6"  # stands where something was removed, so that 3 4 is not 34; a thin space stays a space

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# \boxed 8 boxes one sign. Where more follows at once, as in \boxed 34, LaTeX boxes something else than what is meant.
BARE_BOX = re.compile(r"\\[a-zA-Z]+(?![a-zA-Z{\[])|[^\\{}\s$](?=[.,;:!]?(?:\s|$)|\$|\\[)\]])")

TEXT_COMMANDS = "text|mbox|textbf|textrm|textit|operatorname|mathrm"
TEXT = re.compile(rf"\\({TEXT_COMMANDS})\{{([^{{}}]*)\}}(?:\^\{{?(-?\d)\}}?)?")
RELATION = re.compile(r"(\\leq?(?![a-zA-Z])|\\geq?(?![a-zA-Z])|[<>])")
CONJUNCTION = re.compile(
    rf"(?:,[\s{GAP}]*)?(?:\\(?:{TEXT_COMMANDS})\{{\W*(and|or)\W*\}}"
    r"|(?<![a-zA-Z\\{])(?<!\{ )(and|or)(?![a-zA-Z])|\\(lor|vee|land|wedge)(?![a-zA-Z]))"
)
WORD = r"\\(?:text|mathrm|mbox)\{\s*"
DEGREE = r"\^\\circ "
# In the order in which they are replaced.
SYNONYMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"√(\[\d\])?\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[a-zA-Z]))", r"\\sqrt\1{\2\3\4}"),
        (r",\\!\s*(?=\d{3})|\{,\}", ","),
        (r"\\!|\\(?:limits|hline)(?![a-zA-Z])", ""),
        (r"\\[cdt]frac(?![a-zA-Z])", r"\\frac"),
        (r"eqslant", "eq"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\equiv(?![a-zA-Z])", "="),
        (r"\\[lc]?dots[bcimo]?(?![a-zA-Z])|\.{3,}", r"\\ldots "),
        (r"\\(?:text)?color(?:\[\w*\])?\{[^{}]*\}|\\[hv]space\*?\{[^{}]*\}", GAP),
        (
            r"\\(?:left|right|(?:display|text|script)style|math(?:bf|it|sf|normal)|boldsymbol|bm|bf|rm|it|underline|"
            r"[bB]igg?[lrm]?|large|Large)(?![a-zA-Z])",
            GAP,
        ),
        (r"(?<!\\)\\\\\[\s*-?[\d.]+\s*[a-z]{2}\s*\]|\\cr(?![a-zA-Z])", r"\\\\"),
        (r"\\varnothing(?![a-zA-Z])|\\\{[\s¦]*\\\}", r"\\emptyset "),
        (r"\\(?:R|Reals)(?![a-zA-Z])|\\mathbb\s*R(?![a-zA-Z])", r"\\mathbb{R}"),
        (r"\+\s*\\infty", r"\\infty"),
        (r"(\.\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", r"\1\\overline{\2\3\4}"),
        (r"(\.\d*)\\bar\s*\{?(\d+)\}?", r"\1\\overline{\2}"),
        (rf"{WORD}(?:\\?%|per ?cent)\s*\}}|(?<![a-zA-Z\\])per ?cent(?![a-zA-Z])", r"\\%"),
        (rf"{WORD}deg(?:ree)?s?\.?\s*\}}|(?<![a-zA-Z\\])degrees?(?![a-zA-Z])|\^\{{?\\circ\}}?|\\degree", r"^\\circ "),
        (rf"{DEGREE}\s*({WORD})?([CF])(?:elsius|ahrenheit)?(?![a-zA-Z])(?(1)\s*\}})", r" deg\2"),
        (r"(?s)^\W*\\\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\})?\s*(?:\\mid|\\vert|:|\|)(.*(?:[<>]|\\[lg]e).*)\\\}", r"\2"),
        (r"(?<!\\);", ", "),
        (r"(?<!\\)\\[,;: ]|~|\{\\,\}|\\thinspace(?![a-zA-Z])", " "),
        (r"\\\$", r"\\text{dollar}"),
        (r"\\q?quad(?![a-zA-Z])|\$|\n", GAP),
    )
]


def last_box(text: str) -> str | None:
    r"""Return the content of the last box in any form that LaTeX allows; None without one, or if it has no end."""
    last = None
    for last in BOX.finditer(text, max(text.rfind(r"\boxed"), 0)):
        pass
    if last is None:
        return None
    if not text.startswith("{", last.end()):
        bare = BARE_BOX.match(text, last.end())
        return bare and bare.group()
    depth = 0
    for brace in BRACE.finditer(text, last.end()):
        depth += (brace.group() == "{") - (brace.group() == "}")
        if depth == 0:
            return text[last.end() + 1 : brace.start()]
    return None


def _in_ascii(text: str) -> str:
    """Return Unicode signs as LaTeX, and what is a plain character in another form as that; digits of scripts stay."""
    parts = []
    for kind, run in groupby(text.translate(SIGNS), lambda char: unicodedata.decomposition(char).partition(" ")[0]):
        plain = unicodedata.normalize("NFKC", "".join(run))
        if kind == "<fraction>":
            plain = re.sub(r"(\d+)\u2044(\d+)", r"\\frac{\1}{\2}", plain)
        elif kind in SCRIPTS:
            plain = f"{SCRIPTS[kind]}{{{plain}}}"
        parts.append(plain.translate(SIGNS))
    return "".join(parts)


def _separator(match: re.Match, text: str) -> str:
    """Return what joins members of a set: a union joins intervals and inequalities."""
    union = match[1] == "or" or match[2] == "or" or match[3] in ("lor", "vee")
    return (r"\cup " if union else r"\cap ") if RELATION.search(text) or r"\infty" in text else ", "


def normalise(answer: str) -> str:
    """Return an answer in the one notation; units and text stay."""
    text = answer.strip()
    if not text.isascii():
        text = _in_ascii(text)
    if not re.search(r"[^\d,.+-]|\.\.", text):
        return text
    for pattern, replacement in SYNONYMS:
        text = pattern.sub(replacement, text)
    return CONJUNCTION.sub(lambda match: _separator(match, text), text)
