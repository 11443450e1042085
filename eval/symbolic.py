"""The worker of `eval.official`: whether the difference of two normalised answers simplifies to zero.

The released grader gives a model's text to sympy's `parse_expr`, which evaluates it as Python. Here only text whose
tokens are numbers, names and operators gets there, in a process that `reward.sandbox` sandboxes, with no name but
those below. `error` means that the released grader would have evaluated something else.
"""

import builtins
import io
import keyword
import sys
import tokenize
from itertools import pairwise
from pathlib import Path

# Python's operators on numbers and symbols; any other sign (= : ; ] and so on) made the released grader fail as well.
OPERATORS = {*"+-*/(),!<>|&~@", "**", "//", "<<", ">>", "==", "!=", "<=", ">="}
# Answers have two letters at most besides sqrt and frac: sympy has no more names of these that are formulas. The second
# line is what `parse_expr` itself writes.
NAMES = (
    "csc ff frac hn1 hn2 im jn li ln nan oo pi re rf sqrt yn zoo "
    "Float Function I Integer Number Symbol factorial factorial2"
).split()
QUIET = (tokenize.NAME, tokenize.NUMBER, tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)


def refusal(text: str) -> str | None:
    """Return why a text must not be parsed: "error" where parsing would evaluate it, "wrong" where it would fail.

    Raises:
        tokenize.TokenError: brackets or quotes are never closed, so that it would fail.
    """
    import sympy

    meant = {*sympy.__all__, *dir(builtins), *keyword.kwlist}.difference(NAMES)
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for before, token in pairwise([tokens[0], *tokens]):
        attribute = before.string == "." and token.type == tokenize.NAME
        subscript = before.string in (")", "]") and token.string == "["
        if attribute or subscript or token.string == ":=" or (token.type == tokenize.NAME and token.string in meant):
            return "error"
        if token.type not in (*QUIET, tokenize.OP, tokenize.ERRORTOKEN):
            return "error"  # strings and comments
    signs = {token.string for token in tokens if token.type not in QUIET}
    return None if signs <= OPERATORS else "wrong"


def compare(answer: str, reference: str) -> str:
    """Return "equivalent", "wrong" or "error" for two normalised answers."""
    import sympy
    from sympy.parsing import sympy_parser

    text = f"({reference})-({answer})".replace("^", "**")
    steps = (*sympy_parser.standard_transformations, sympy_parser.implicit_multiplication_application)
    try:
        if refused := refusal(text):
            return refused
        names = {"__builtins__": {}, **{name: getattr(sympy, name) for name in NAMES}}
        difference = sympy_parser.parse_expr(text, transformations=steps, global_dict=names)
        return "equivalent" if sympy.simplify(difference) == 0 else "wrong"
    except MemoryError:
        raise  # what comes after it cannot be trusted: the worker ends
    except Exception:  # as the released grader has it: whatever goes wrong in sympy makes the answer wrong
        return "wrong"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from reward.sandbox import work

    work(compare)
