r"""The reward that JustRL was trained with: the last `\boxed{}` must equal the ground truth, byte for byte.

The paper calls it DAPO's light rule verifier (arXiv 2512.16649, section 2); upstream it is
`verl.utils.reward_score.math_dapo.compute_score(..., strict_box_verify=True)`. Standard library only,
so any verl recipe can name this file:

    reward.custom_reward_function.path=/path/to/reward/justrl.py

    >>> compute_score("math_dapo", r"2 + 2 is $\boxed{4}$.", "4")
    {'score': 1.0, 'acc': 1.0, 'pred': '4'}
"""

BOX = r"\boxed{"

# The release cuts the response to 300 characters and looks for the box in the last 100 of those.
WINDOW = 100


def last_boxed(text: str) -> str | None:
    """Return the content of the last box in `text`; None if there is none or it is never closed."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    start += len(BOX)
    depth = 1
    for end in range(start, len(text)):
        if text[end] == "{":
            depth += 1
        elif text[end] == "}":
            depth -= 1
            if depth == 0:
                return text[start:end]
    return None


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info=None, **kwargs) -> dict:
    """Score one response as the release does.

    Args:
        data_source: name of the data set; not used, every source is scored alike.
        solution_str: the decoded response, without special tokens.
        ground_truth: the expected content of the box.
        extra_info: the row's `extra_info`; only its `index` is used, to name a row in an error.
        **kwargs: what verl passes to reward functions that ask a model; not used.

    Returns:
        `score` (+1.0 or -1.0), `acc` (1.0 or 0.0) and `pred` (content of the box, "" if none).
        The keys are always the same and never None: verl 0.9 averages the numbers over a batch.

    Raises:
        ValueError: the ground truth is not a string or is empty. No answer could ever match it,
            and a reward of -1 for the whole run would hide that.
    """
    if not isinstance(ground_truth, str) or not ground_truth:
        row = (extra_info or {}).get("index", "?")
        raise ValueError(f"row {row} of {data_source}: ground truth must be a non-empty string, got {ground_truth!r}")
    pred = last_boxed(solution_str[-WINDOW:])
    correct = pred == ground_truth
    return {"score": 1.0 if correct else -1.0, "acc": float(correct), "pred": pred or ""}
