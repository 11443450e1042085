"""How long grading takes: python -m benchmarks.grading --bench data/bench

Makes the protocol's volume of samples from the benchmarks' reference answers (correct, rewritten and incorrect ones in
responses of some 5,000 tokens), grades them with `eval.grade` on both tracks, and again, and compares with math-verify
called on each whole response, as verl calls it, on a part of the same samples. Parts of the volume show the growth.

example: python -m benchmarks.grading --bench data/bench --fractions 0.1 --plain 200
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.alternatives import compare, per_second
from common.command import path, run
from data_prep.benchmarks import PAPER_BENCHMARKS
from data_prep.rows import read_problem_rows

WORDS = 3_300  # of a response: about 20,000 characters, 5,000 tokens
OPENINGS = ["so", "we", "then", "let", "hence", "find", "note", "that"]
VOCABULARY = [a + b for a in OPENINGS for b in ("", "ing", " x=", " 2n", " +")]
META = {"model": "made up", "prompt": "evaluation", "temperature": 0.7, "top_p": 0.9, "max_tokens": 31744}


def made_up_answer(reference: str, others: list[str], rng: random.Random) -> str:
    """Choose a reference answer, another notation of it, which graders take or leave, or an incorrect answer."""
    spaced = reference.replace("\\frac", "\\dfrac").replace(",", ", ").replace("+", " + ")
    other = rng.choice(others)
    rewritten = [f" {spaced} ", f"x = {spaced}", rf"\text{{{reference}}}", f"{spaced}.", rf"{spaced}\,"]
    incorrect = [f"{reference}1", f"-{reference}", f"{reference}+1", f"{reference} or {other}", other]
    return rng.choice([reference, rng.choice(rewritten), rng.choice(incorrect)])


def unboxed(reference: str, task: str) -> str:
    """Take AIME24's reference answers out of their boxes."""
    return reference.removeprefix(r"\boxed{").removesuffix("}") if task == "AIME24" else reference


def write_samples(bench: Path, folder: Path, fraction: float, seed: int = 0) -> list[tuple[str, str]]:
    """Write samples of a fraction of each benchmark's problems; return responses with their reference answers."""
    rng, pairs = random.Random(seed), []
    folder.mkdir()
    for task, benchmark in PAPER_BENCHMARKS.items():
        problems = [made["extra_info"] for made in read_problem_rows(bench / f"{task}.parquet")]
        references = [problem["released"] for problem in problems]
        problems = problems[: max(1, round(fraction * benchmark.problems))]
        with open(folder / f"{task}.samples.jsonl", "w") as file:
            for problem, sample in itertools.product(problems, range(benchmark.samples)):
                reference = unboxed(problem["released"], task)
                answer = made_up_answer(reference, references, rng)
                response = rf"{' '.join(rng.choices(VOCABULARY, k=WORDS))} The answer is $\boxed{{{answer}}}$."
                record = {"task": task, "problem_id": problem["index"], "sample": sample, "seed": sample}
                record |= {"prompt": problem["problem"], "answer": problem["released"], "response": response}
                file.write(json.dumps(record | {"tokens": 5000, "finish_reason": "stop"}) + "\n")
                pairs.append((response, reference))
        (folder / f"{task}.meta.json").write_text(json.dumps(META | {"problem_count": len(problems)}))
    rng.shuffle(pairs)
    return pairs


def grade(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "eval.grade", folder], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=path, required=True, help="folder of data_prep.benchmarks")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[0.1, 0.3, 1.0], help="fractions of the responses (%(default)s)"
    )
    parser.add_argument("--plain", type=int, default=300, help="responses for math-verify (default %(default)s)")
    args = parser.parse_args()
    from math_verify import parse, verify

    def whole(response: str, reference: str) -> bool:
        return verify(parse(f"${reference}$"), parse(response))

    print("responses  first grading per second   again   per second")
    with tempfile.TemporaryDirectory() as scratch:
        for fraction in args.fractions:
            folder = Path(scratch) / f"{fraction}"
            pairs = write_samples(args.bench, folder, fraction)
            first, again = (len(pairs) * per_second(grade, [(folder,)]) for _ in range(2))
            print(f"{len(pairs):>9,}  {len(pairs) / first:>9.1f} s {first:>12,.0f}", end=" ")
            print(f"{len(pairs) / again:>9.1f} s {again:>10,.0f}", flush=True)
    plain = per_second(whole, pairs[: args.plain])
    for what, rate in (("both tracks", first), ("both tracks, again", again)):
        compare(what, "responses/s", rate, f"math-verify on {args.plain} whole responses, one process,", plain)


if __name__ == "__main__":
    run(main)
