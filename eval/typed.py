r"""The strict-typed track: what a reference answer means decides how an answer is compared with it.

`data_prep.reference_answers` gives each reference answer a type; `reward.robust` compares by it: integers and fractions
exactly, lists as sets or in order, intervals with their ends, both values of a plus-minus, text by itself, equations up
to a factor and other formulas by math-verify in a sandboxed worker. Several answers offered and chains do not pass.
What is added here is the tolerance of a measured number.

    >>> grade(r"\boxed{4.5\times 10^{33}}", *reference_answer("4.5e33"))
    ('equivalent', '4.5\\times 10^{33}')
"""

import functools
from dataclasses import asdict, replace
from decimal import Decimal

from data_prep.reference_answers import ParsedAnswer, corrected, corrections
from reward import robust

VERSION = 4  # raise it whenever an outcome may change: caches of grades go by it
# Of a decimal or a number in scientific notation that is not known to be rounded; those stand for half a unit of
# their last digit (`ParsedAnswer.tolerance`).
RELATIVE_TOLERANCE = Decimal("1e-6")


@functools.cache
def reference_answer(released: str, task: str = "", problem_id: str = "") -> tuple[str, ParsedAnswer]:
    """Read a reference answer: its text without delimiters and its meaning, both with today's correction if it has one.

    When it is graded, not when it is sampled: a correction holds for the samples that are there.
    """
    return corrected(released, task, corrections().get(problem_id))


def grade(response: str, reference: str, parsed: ParsedAnswer) -> tuple[str, str]:
    """Return the outcome of a response, one of `reward.robust.OUTCOMES`, and its final answer, "" if it has none.

    Args:
        reference: the text that `reference_answer` returns.
        parsed: what it means.
    """
    if parsed.type in ("decimal", "scientific"):
        relative = abs(Decimal(parsed.value)) * RELATIVE_TOLERANCE
        parsed = replace(parsed, tolerance=str(max(relative, Decimal(parsed.tolerance or 0))))
    return robust.judge(response, reference, asdict(parsed))
