"""How fast the rewards are: python -m benchmarks.reward

The strict reward against verl's strict function, the lenient one against math-verify called on the whole response, as
verl calls it, and the strict one's cost as the response grows. One process each, the lenient one with its worker.

example: python -m benchmarks.reward --pairs 200000 --long 400
"""

import argparse
import random

from benchmarks.alternatives import compare, per_second
from common.command import run
from reward import justrl, robust

FILLER = "We compute the sum of the first terms and find that it is even, so we go on. "
PASSES = 3  # of which the fastest counts


def responses(count: int, length: int, seed: int) -> list[tuple[str, str]]:
    """Make responses of `length` characters with an integer in a box, and reference answers; half are correct."""
    rng = random.Random(seed)
    text = (FILLER * (length // len(FILLER) + 1))[:length]
    pairs = []
    for _ in range(count):
        truth = rng.randint(0, 999)
        answer = truth if rng.random() < 0.5 else rng.randint(0, 999)
        pairs.append((text + rf" The answer is $\boxed{{{answer}}}$.", str(truth)))
    return pairs


def strict(response: str, truth: str) -> float:
    return justrl.compute_score("math_dapo", response, truth)["score"]


def lenient(response: str, truth: str) -> float:
    return robust.compute_score("math_dapo", response, truth)["acc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000, help="short pairs (default %(default)s)")
    parser.add_argument("--long", type=int, default=300, help="pairs of 24,000 characters (default %(default)s)")
    args = parser.parse_args()
    from math_verify import parse, verify
    from verl.utils.reward_score import math_dapo

    def verl_strict(response: str, truth: str) -> float:
        return math_dapo.compute_score(response, truth, strict_box_verify=True)["score"]

    def whole(response: str, truth: str) -> bool:
        return verify(parse(rf"\boxed{{{truth}}}"), parse(response))

    short, long = responses(args.pairs, 4_000, seed=0), responses(args.long, 24_000, seed=1)
    formulas = [(rf"so $\boxed{{\frac{{{i}\sqrt{{3}}}}{{3}}}}$", rf"\frac{{{i}}}{{\sqrt{{3}}}}") for i in range(2, 202)]
    for what, ours, pairs, alternative, theirs, passes in (
        ("strict, 4,000 characters", strict, short, "verl's", verl_strict, PASSES),
        ("lenient, 24,000 characters, integers", lenient, long, "math-verify on the whole response", whole, 1),
        ("lenient, formulas through the worker", lenient, formulas, "math-verify in this process", whole, PASSES),
    ):
        rates = per_second(ours, pairs, PASSES), per_second(theirs, pairs, passes)
        compare(what, "pairs/s", rates[0], alternative, rates[1])
    for length in (1_000, 10_000, 100_000, 1_000_000):
        pairs = responses(20, length, seed=2)
        microseconds = [1e6 / per_second(score, pairs, PASSES) for score in (strict, lenient)]
        print(f"{length:>9,} characters: strict {microseconds[0]:7.1f} us, lenient {microseconds[1]:7.1f} us")


if __name__ == "__main__":
    run(main)
