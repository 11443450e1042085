r"""What makes two problems the same: one canonical text for duplicates, one list of words for near copies.

Canonical text: Unicode NFC with ligatures and full-width forms made plain; LaTeX spacing, math delimiters,
`\left`, `\right`, `\displaystyle` and white space removed; `\dfrac` and `\tfrac` read as `\frac`; `_{1}` and `^{1}`
read as `_1` and `^1`. Nothing else is touched: letters keep their case, digits, operators and punctuation stay.
"""

import re
import unicodedata

from reward.answers import ONE_CHARACTER

COMPATIBILITY_FORMS = re.compile("[\ufb00-\ufb06\uff00-\uffef]")  # ligatures, full-width letters and signs
SPACING = re.compile(r"\\[,!;: ]|~|\\q?quad(?![a-zA-Z])")
LAYOUT = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])")
FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
# A dollar sign behind a backslash is money, not a delimiter.
MATH_DELIMITER = re.compile(r"(?<!\\)\${1,2}|\\[()\[\]]")

DIAGRAM = re.compile(r"\[asy\].*?(?:\[/asy\]|$)", re.DOTALL)
ENVIRONMENT = re.compile(r"\\(?:begin|end)\{\w+\*?\}|\\\\")
WORD = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+|\d+|[\u4e00-\u9fff]")
# Commands that say how a formula looks, or leave out its middle; "" removes a word.
REMOVED = (
    *("left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "displaystyle", "limits", "quad", "qquad"),
    *("text", "textbf", "textit", "mathrm", "mathbf", "mbox", "rm", "bf", "operatorname", "hfill", "tag"),
    *("ldots", "cdots", "dots", "lvert", "rvert"),
)
COMMANDS = dict.fromkeys(REMOVED, "") | {"dfrac": "frac", "tfrac": "frac", "leq": "le", "leqslant": "le"}
COMMANDS |= {"geq": "ge", "geqslant": "ge", "neq": "ne", "rightarrow": "to"}


def _plain_forms(text: str) -> str:
    # Not NFKC for all of it: that would read a superscript 2 as the digit 2.
    composed = unicodedata.normalize("NFC", text)
    return COMPATIBILITY_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match.group()), composed)


def canonical(problem: str) -> str:
    text = SPACING.sub("", _plain_forms(problem))
    text = FRACTION.sub(r"\\frac", LAYOUT.sub("", text))
    return ONE_CHARACTER.sub(r"\1", "".join(MATH_DELIMITER.sub("", text).split()))


def words(problem: str) -> list[str]:
    """Return a problem's words in lower case, for n-grams.

    A word is a run of letters in prose, a single letter or a command inside mathematics (`ab` and `a b` are the
    same product), a number, or a Chinese character. Diagrams and layout commands are left out.
    """
    text = SPACING.sub(" ", ENVIRONMENT.sub(" ", DIAGRAM.sub(" ", _plain_forms(problem))))
    found: list[str] = []
    for number, part in enumerate(MATH_DELIMITER.split(text)):
        in_math = number % 2 == 1
        for word in WORD.findall(part):
            if word.startswith("\\"):
                found.append(COMMANDS.get(word[1:], word[1:]).lower())
            elif in_math and word.isalpha():
                found.extend(word.lower())
            else:
                found.append(word.lower())
    return [word for word in found if word]
