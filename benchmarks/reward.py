"""How fast the rewards are: python -m benchmarks.reward

The strict reward against verl's strict function, the lenient one against math-verify called on the whole response, as
verl calls it, and the strict one's cost as the response grows. One process each, the lenient one with its worker.

example: python -m benchmarks.reward --pairs 200000 --long 400
"""

import argparse
import random
import time
from collections.abc import Callable

from common.command import run
from reward import justrl, robust

FILLER = "We compute the sum of the first terms and find that it is even, so we go on. "


def responses(count: int, length: int, seed: int) -> list[tuple[str, str]]:
    """Return responses of `length` characters with an integer in a box, and integer golds; half are right."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        truth = rng.randint(0, 999)
        answer = truth if rng.random() < 0.5 else rng.randint(0, 999)
        text = FILLER * (length // len(FILLER) + 1)
        pairs.append((text[:length] + rf" The answer is $\boxed{{{answer}}}$.", str(truth)))
    return pairs


def per_second(score: Callable[[str, str], object], pairs: list[tuple[str, str]], repeats: int = 3) -> float:
    """Return the pairs a second of the fastest of some passes."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for response, truth in pairs:
            score(response, truth)
        best = min(best, time.perf_counter() - started)
    return len(pairs) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000, help="short pairs (default %(default)s)")
    parser.add_argument("--long", type=int, default=300, help="pairs of 24,000 characters (default %(default)s)")
    args = parser.parse_args()
    from math_verify import parse, verify
    from verl.utils.reward_score import math_dapo

    def theirs(response: str, truth: str) -> float:
        return math_dapo.compute_score(response, truth, strict_box_verify=True)["score"]

    def ours(response: str, truth: str) -> float:
        return justrl.compute_score("math_dapo", response, truth)["score"]

    def whole(response: str, truth: str) -> bool:
        return verify(parse(rf"\boxed{{{truth}}}"), parse(response))

    def walled(response: str, truth: str) -> float:
        return robust.compute_score("math_dapo", response, truth)["acc"]

    short = responses(args.pairs, 4_000, seed=0)
    verl, strict = per_second(theirs, short), per_second(ours, short)
    print(f"strict, 4,000 characters: {strict:,.0f} pairs/s; verl's {verl:,.0f}; ratio {strict / verl:.2f}")
    long = responses(args.long, 24_000, seed=1)
    plain, lenient = per_second(whole, long, 1), per_second(walled, long)
    print(f"lenient, 24,000 characters, integer golds: {lenient:,.0f} pairs/s", end="; ")
    print(f"math-verify on the whole response {plain:,.0f}; ratio {lenient / plain:.1f}")
    formula = [(rf"so $\boxed{{\frac{{{i}\sqrt{{3}}}}{{3}}}}$", rf"\frac{{{i}}}{{\sqrt{{3}}}}") for i in range(2, 202)]
    print(f"lenient, formulas through the worker: {per_second(walled, formula):,.0f} pairs/s", end="; ")
    print(f"math-verify in this process {per_second(whole, formula):,.0f}")
    for length in (1_000, 10_000, 100_000, 1_000_000):
        pairs = responses(20, length, seed=2)
        print(f"{length:>9,} characters: strict {1e6 / per_second(ours, pairs):7.1f} us", end=", ")
        print(f"lenient {1e6 / per_second(walled, pairs):7.1f} us")


if __name__ == "__main__":
    run(main)
