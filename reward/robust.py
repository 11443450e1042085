r"""A lenient reward: what the strict match rejects is read by rule, and by math-verify in a sandbox.

The paper's "robust verifier" arm (arXiv 2512.16649, ablations) uses DeepScaleR's, which passes a model's text to
sympy's `parse_expr`. This one never evaluates text in the calling process: numbers are compared exactly, lists,
tuples and intervals member by member, and only single formulas go to math-verify, in a worker process with limits on
time, memory, files and processes that is killed and replaced at its deadline. It needs math-verify and the other files
of this folder, and plugs in by its path:

    reward.custom_reward_function.path=/path/to/reward/robust.py

    >>> compute_score("math", r"so $\boxed{\tfrac12}$", r"\frac{1}{2}")["acc"]
    1.0
"""

import importlib
import logging
import re
import sys
import types
from collections import Counter
from fractions import Fraction
from pathlib import Path


def _package() -> str:
    """Return the name of this folder's package, which verl, loading this file by its path, does not give it."""
    if __package__:
        return __package__
    folder = Path(__file__).resolve().parent
    name = f"justrl_reward_{abs(hash(folder))}"  # another copy of this folder is another package
    sys.modules.setdefault(name, types.ModuleType(name)).__path__ = [str(folder)]
    return name


strict, answers, comparison, notation, sandbox = (
    importlib.import_module(f"{_package()}.{name}")
    for name in ("justrl", "answers", "comparison", "notation", "sandbox")
)

OUTCOMES = ("match", "equivalent", "wrong", "no_box", "unparsable", "refused", "timed_out", "crashed", "unusable_truth")

# Above this fraction of time-outs, after this many responses, a warning is logged.
TIMEOUT_FRACTION, TIMEOUT_AFTER = 0.01, 500

# A negation or a quotation mark makes another answer of the same digits, and so does each prime.
NEGATION, PRIME = re.compile(r"\\(?:not|neq?|lnot|neg)(?![a-zA-Z])|\""), re.compile(r"'|\\prime(?![a-zA-Z])")
AMBIGUOUS = re.compile(
    r"(?<![a-zA-Z\\])(?:or|and|either|about|maybe)(?![a-zA-Z])|\\(?:approx|sim(?:eq)?|cong|cap|[hv]?phantom)(?![a-zA-Z])"
)
ANGLES = {"degree", "grad^1", "rev^1"}

COUNTS: Counter = Counter()


def _count(outcome: str) -> None:
    COUNTS[outcome] += 1
    total, late = COUNTS.total(), COUNTS["timed_out"]
    doubled = late & (late - 1) == 0  # a line for each power of two, not for each time-out
    if outcome == "timed_out" and doubled and total >= TIMEOUT_AFTER and late > TIMEOUT_FRACTION * total:
        logging.getLogger(__name__).warning("%d of %d responses timed out in math-verify", late, total)


def _is_plain(text: str) -> bool:
    """Tell whether a text is an integer in digits alone, which most are: nothing else need be looked for."""
    return text.isascii() and text.isdigit() and len(text) <= answers.MAX_DIGITS


def judge(solution_str: str, ground_truth: str, parsed: dict | None = None) -> tuple[str, str]:
    """Return the outcome of one response, and its answer ("" if none).

    Args:
        parsed: what `data_prep.reference_answers` knows of the ground truth: `type`, `tolerance` and `required_count`.
    """
    answer = notation.last_box(solution_str)
    if answer is None:
        return "no_box", ""
    if answer == ground_truth:
        return "match", answer
    if len(answer) > answers.MAX_CHARACTERS:
        return "refused", answer[: answers.MAX_CHARACTERS]
    if not parsed and _is_plain(answer) and _is_plain(ground_truth):
        return ("equivalent" if int(answer) == int(ground_truth) else "wrong"), answer
    parsed = parsed if isinstance(parsed, dict) else {}  # other data sets keep a solution under this name
    kind = parsed.get("type") or ""
    reference, reference_units = answers.read(ground_truth, kind in ("set", "tuple"))
    if not reference or answers.fault(reference):
        return "unusable_truth", answer
    shape, members = answers.shape_and_members(reference)
    given, units = answers.read(answer, shape == "{}")
    marked = notation.normalise(answer), notation.normalise(ground_truth)
    if any(mark.search(marked[0]) and not mark.search(marked[1]) for mark in (AMBIGUOUS, NEGATION)):
        return "wrong", answer
    if len(PRIME.findall(marked[0])) != len(PRIME.findall(marked[1])):
        return "wrong", answer  # f is not f'
    differ = set(units) != set(reference_units) or (len(set(units)) > 1 and units != reference_units)  # 5 ft 3 in
    if units and differ and (reference_units or len(set(units)) > 1):
        return "wrong", answer
    if (
        not reference_units
        and ANGLES & set(units)
        and any(answers.exact_value(member.rpartition("=")[2]) is None for member in members)
    ):
        return "wrong", answer  # pi/3 is in radians
    if len(set(units)) > 1 and kind != "interval":
        kind = "tuple"  # 5 m and 3 cm are not 3 m and 5 cm
    tolerance = answers.exact_value(str(parsed.get("tolerance") or 0)) or Fraction(0)
    required = parsed.get("required_count") or parsed.get("asked") or 0  # its name in files prepared before
    with sandbox.one_deadline():
        return comparison.compare_answers(given, reference, tolerance, kind, required), answer


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    window: int | None = None,
    wrong: float = -1.0,
    shadow: bool = False,
    **kwargs,
) -> dict:
    """Score one response; the same contract as `justrl.compute_score`, with the reason of an incorrect one.

    Args:
        data_source: not used.
        solution_str: the decoded response.
        ground_truth: the reference answer.
        extra_info: the row's; `index` names a row in an error, `answer` is the parsed reference answer if there is one.
        window: characters at the end of the response in which the box must lie; None for all of it.
        wrong: score of an incorrect response; 0.0 gives the scale 0/1.
        shadow: add `strict`, which never touches the score: whether `justrl.compute_score` would accept the response.
        **kwargs: what verl passes to reward functions that ask a model; not used.

    Returns:
        `score`, `acc`, `pred`, and for each outcome but correct ones 1.0 or 0.0, which verl averages into its metrics.

    Raises:
        ValueError: the ground truth is not a string, is empty, or has a box or unbalanced braces.
    """
    strict.check_ground_truth(data_source, ground_truth, extra_info, window=window or sys.maxsize)
    outcome, answer = judge(
        solution_str[-window:] if window else solution_str, ground_truth, (extra_info or {}).get("answer")
    )
    _count(outcome)
    correct = outcome in comparison.CORRECT
    result = {"score": 1.0 if correct else wrong, "acc": float(correct), "pred": answer}
    result |= {name: float(name == outcome) for name in OUTCOMES if name not in comparison.CORRECT}
    if shadow:
        result["strict"] = float(strict.last_boxed(solution_str[-strict.WINDOW :]) == ground_truth)
    return result
