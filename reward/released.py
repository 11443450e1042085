"""The rewards of JustRL's release: the strict box in training, math-verify on the whole response in validation.

Its `utils/reward_score/__init__.py` went by the data source: AIME24, AIME25 and AMC23 to verl 0.4's `math_verify.py`,
which gives 0 or 1. A row's `extra_info.split`, as `data_prep` writes it, tells the same. It needs math-verify, and this
repository on the path:

    reward.custom_reward_function.path=/path/to/reward/released.py
"""

import atexit
from pathlib import Path

from reward import justrl
from reward.sandbox import Pool

POOL = Pool(Path(__file__).with_name("whole_response.py").resolve(), ("correct", "incorrect"))
atexit.register(POOL.end)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    shadow: bool = False,
    **kwargs,
) -> dict:
    """Score one response as `justrl.compute_score` does, which also has the arguments and what is raised.

    Returns:
        The same keys. Of a response to a row of another split than `train`, `score` and `acc` are math-verify's. With
        `shadow` also `strict`, 1 where the strict box is correct, which never touches the score.
    """
    result = justrl.compute_score(data_source, solution_str, ground_truth, extra_info, shadow=shadow)
    if shadow:
        result["strict"] = result["acc"]
    if (extra_info or {}).get("split", "train") != "train":
        correct = float(POOL.ask(solution_str, ground_truth) == "correct")  # as 0.4, incorrect where it takes too long
        result |= {"score": correct, "acc": correct}
    return result
