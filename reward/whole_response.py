"""The worker of `reward.released`: whether math-verify finds the reference answer in a response.

Its calls are those of verl 0.4's `utils/reward_score/math_verify.py`, without time limits: `reward.sandbox` has one.
"""

import sys
from pathlib import Path


def compare(response: str, reference: str) -> str:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    wanted = parse(rf"\boxed{{{reference}}}", (LatexExtractionConfig(),), parsing_timeout=None)
    given = parse(response, (ExprExtractionConfig(), LatexExtractionConfig()), parsing_timeout=None)
    return "correct" if verify(wanted, given, timeout_seconds=None) else "incorrect"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from reward.sandbox import work

    work(compare)
