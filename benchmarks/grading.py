"""How long grading takes: python -m benchmarks.grading --bench data/bench

Makes the protocol's volume of samples from the benchmarks' golds (right, rewritten and wrong ones in responses of some
5,000 tokens), grades them with `eval.grade` on both tracks, and again, and compares with math-verify called on each
whole response, as verl calls it, on a part of the same samples. Shares of the volume show the growth.

example: python -m benchmarks.grading --bench data/bench --shares 0.1 --plain 200
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.command import run
from common.json_lines import format_line
from data_prep.benchmarks import BENCHMARKS
from data_prep.rows import read_rows
from eval.samples import ENDING
from eval.tasks import wanted_samples

WORDS = 3_300  # of a response: about 20,000 characters, 5,000 tokens
OPENINGS = ["so", "we", "then", "let", "hence", "find", "note", "that"]
VOCABULARY = [a + b for a in OPENINGS for b in ("", "ing", " x=", " 2n", " +")]


def filler(rng: random.Random) -> str:
    """Return the reasoning of a made-up response."""
    return " ".join(rng.choices(VOCABULARY, k=WORDS))


def rewritten(gold: str, rng: random.Random) -> str:
    """Return a gold in another notation, which graders take or leave."""
    spaced = gold.replace("\\frac", "\\dfrac").replace(",", ", ").replace("+", " + ")
    return rng.choice([f" {spaced} ", f"x = {spaced}", rf"\text{{{gold}}}", f"{spaced}.", rf"{spaced}\,"])


def wrong(gold: str, golds: list[str], rng: random.Random) -> str:
    """Return another answer: a neighbour of a number, another problem's, or a hedge."""
    return rng.choice([f"{gold}1", f"-{gold}", f"{gold}+1", f"{gold} or {rng.choice(golds)}", rng.choice(golds)])


def write_samples(bench: Path, folder: Path, share: float, seed: int = 0) -> list[tuple[str, str]]:
    """Write a share of the protocol's samples of each benchmark; return some responses with their golds."""
    rng, some = random.Random(seed), []
    folder.mkdir()
    for task, benchmark in BENCHMARKS.items():
        records = wanted_samples(task, read_rows(bench / f"{task}.parquet"), "evaluation", benchmark.samples, 0)
        golds = [record["answer"] for record in records[:: benchmark.samples]]
        with open(folder / f"{task}{ENDING}", "w") as file:
            for record in records[: max(1, round(share * benchmark.problems)) * benchmark.samples]:
                gold = (
                    record["answer"].removeprefix(r"\boxed{").removesuffix("}")
                    if task == "AIME24"
                    else record["answer"]
                )
                answer = rng.choice([gold, rewritten(gold, rng), wrong(gold, golds, rng)])
                response = rf"{filler(rng)} The answer is $\boxed{{{answer}}}$."
                file.write(format_line(record | {"response": response, "tokens": 5000, "finish_reason": "stop"}))
                some.append((response, gold))
    rng.shuffle(some)
    return some


def seconds(folder: Path) -> float:
    """Return how long `eval.grade` takes for a folder."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "eval.grade", folder], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True, help="folder of data_prep.benchmarks")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 1.0], help="of the volume (%(default)s)")
    parser.add_argument("--plain", type=int, default=300, help="responses for math-verify (default %(default)s)")
    args = parser.parse_args()
    from math_verify import parse, verify

    print("responses  first grading   a second   again       a second")
    with tempfile.TemporaryDirectory() as scratch:
        for share in args.shares:
            folder = Path(scratch) / f"{share}"
            some = write_samples(args.bench, folder, share)
            first, again = seconds(folder), seconds(folder)
            count = len(some)
            print(
                f"{count:>9,}  {first:>9.1f} s {count / first:>12,.0f} {again:>9.1f} s {count / again:>10,.0f}",
                flush=True,
            )
        started = time.perf_counter()
        for response, gold in some[: args.plain]:
            verify(parse(f"${gold}$"), parse(response))
        plain = args.plain / (time.perf_counter() - started)
    print(f"math-verify on whole responses, one process, {args.plain} of them: {plain:,.1f} a second; ", end="")
    print(f"ratio {count / first / plain:.1f} for both tracks, {count / again / plain:.1f} again")


if __name__ == "__main__":
    run(main)
