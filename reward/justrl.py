r"""The reward that JustRL was trained with: the last `\boxed{}` must equal the ground truth, byte for byte.

The paper calls it DAPO's light rule verifier (arXiv 2512.16649, section 2); upstream it is
`verl.utils.reward_score.math_dapo.compute_score(..., strict_box_verify=True)`. Standard library only,
so any verl recipe can name this file:

    reward.custom_reward_function.path=/path/to/reward/justrl.py

    >>> compute_score("math_dapo", r"2 + 2 is $\boxed{4}$.", "4")
    {'score': 1.0, 'acc': 1.0, 'pred': '4'}
"""

import functools
import re

BOX = r"\boxed{"

# The release cuts the response to 300 characters and looks for the box in the last 100 of those.
WINDOW = 100

BRACE = re.compile(r"[{}]")
# What `lenient` looks past: LaTeX spacing, delimiters, text commands, thousands separators, a full stop, zeros.
IGNORED = re.compile(r"\\[,!;: $]|\\(?:left|right|text|mathrm)(?![a-zA-Z])|[\s${}]|(?<=\d),(?=\d{3}(?!\d))")
ENDING = re.compile(r"(?:(?<=\d)\.0*|\.)$")


def last_boxed(text: str) -> str | None:
    """Return the content of the last box; None if there is none or it is never closed."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    start += len(BOX)
    depth = 1
    for brace in BRACE.finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


@functools.lru_cache(maxsize=2**16)
def _usable(ground_truth: str, window: int) -> bool:
    """Whether a response could match at all: not empty, and found again inside a box and the window."""
    return ground_truth != "" and last_boxed(f"{BOX}{ground_truth}}}"[-window:]) == ground_truth


def check_ground_truth(data_source: str, ground_truth, extra_info: dict | None, window: int) -> None:
    """Raise a ValueError that names the row if no response could ever match the ground truth."""
    if not isinstance(ground_truth, str) or window < 1 or not _usable(ground_truth, window):
        row = (extra_info or {}).get("index", "?")
        raise ValueError(
            f"row {row} of {data_source}: no response can match the ground truth {ground_truth!r:.200}; it must be a "
            f"non-empty string without a box, with balanced braces, that fits {window} characters with its box"
        )


def _loose(answer: str) -> str:
    bare = ENDING.sub("", IGNORED.sub("", answer).replace("dfrac", "frac").replace("tfrac", "frac"))
    return re.sub(r"^(-?)0+(?=\d)", r"\1", bare.rpartition("=")[2])


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    window: int = WINDOW,
    wrong: float = -1.0,
    shadow: bool = False,
    **kwargs,
) -> dict:
    """Score one response; with the defaults, as the release does.

    verl passes `window`, `wrong` and `shadow` from `reward.custom_reward_function.reward_kwargs`. Called alike by verl
    0.4 to 0.9; the numbers of the result become training metrics, so the keys are always the same and never None.

    Args:
        data_source: not used, every source is scored alike.
        solution_str: the decoded response, without special tokens.
        ground_truth: the reference answer, the expected content of the box.
        extra_info: the row's `extra_info`; only its `index` is used, to name a row in an error.
        window: characters at the end of the response in which the box must lie.
        wrong: score of an incorrect response; 0.0 gives the scale 0/1.
        shadow: add `outside` and `lenient`, which never touch the score.
        **kwargs: what verl passes to reward functions that ask a model; not used.

    Returns:
        `score` (1.0 or `wrong`), `acc` (1.0 or 0.0) and `pred` (content of the box, "" if none). With `shadow` also
        `outside` (1.0 where the window has no box and the response has one) and `lenient` (1.0 where the last box of
        the response is correct up to spacing, delimiters, `x =`, thousands separators, zeros and a full stop).

    Raises:
        ValueError: no response could ever match the ground truth: it is not a string, is empty, has a box or
            unbalanced braces, or does not fit the window. A reward of -1 for the whole run would hide that.
    """
    check_ground_truth(data_source, ground_truth, extra_info, window)
    pred = last_boxed(solution_str[-window:])
    correct = pred == ground_truth
    result = {"score": 1.0 if correct else wrong, "acc": float(correct), "pred": pred or ""}
    if shadow:
        anywhere = last_boxed(solution_str)
        result["outside"] = float(pred is None and anywhere is not None)
        result["lenient"] = float(anywhere is not None and _loose(anywhere) == _loose(ground_truth))
    return result
