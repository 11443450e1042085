r"""The strict-typed track: what a gold means decides how an answer is compared with it.

`data_prep.reference_answers` gives each gold a type; `reward.robust` compares by it: integers and fractions exactly,
lists as sets or in order, intervals with their ends, both values of a plus-minus, text by itself, equations up to a
factor and other formulas by math-verify in a sandboxed worker. Hedges, chains and several answers do not pass. What is
added here is the tolerance of a measured number.

    >>> from data_prep.reference_answers import parse
    >>> judge(r"\boxed{4.5\times 10^{33}}", "4.5e33", parse("4.5e33"))
    ('equivalent', '4.5\\times 10^{33}')
"""

from dataclasses import asdict, replace
from decimal import Decimal

from data_prep.reference_answers import ParsedAnswer
from reward import robust

RIGHT = robust.comparison.CORRECT
VERSION = 2  # raise it whenever an outcome may change: caches of grades go by it
# Of a decimal or a number in scientific notation that is not known to be rounded; those stand for half a unit of
# their last digit (`ParsedAnswer.tolerance`).
RELATIVE_TOLERANCE = Decimal("1e-6")


def judge(response: str, truth: str, reading: ParsedAnswer) -> tuple[str, str]:
    """Return the outcome of a response, one of `reward.robust.OUTCOMES`, and its final answer, "" if it has none.

    Args:
        truth: the gold without delimiters, with its correction if it has one.
        reading: what it means; both are what `data_prep.reference_answers.corrected` returns.
    """
    if reading.type in ("decimal", "scientific"):
        relative = abs(Decimal(reading.value)) * RELATIVE_TOLERANCE
        reading = replace(reading, tolerance=str(max(relative, Decimal(reading.tolerance or 0))))
    return robust.judge(response, truth, asdict(reading))
