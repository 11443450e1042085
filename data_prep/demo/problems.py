"""Sums of two-digit numbers in the recipe's row format, drawn with a seed.

No problem of the test set occurs in the training set, in any order of its terms.
"""

import itertools
import random
from pathlib import Path
from typing import NamedTuple

from data_prep.rows import row, write_rows

DATA_SOURCE = "demo_arithmetic"
TRAIN, TEST = 3584, 256  # problems; there are 4,095 sums of two terms, 125,580 of three


class Problem(NamedTuple):
    """The sum of numbers of two digits."""

    terms: tuple[int, ...]

    @property
    def text(self) -> str:
        return f"What is {' + '.join(map(str, self.terms))}?"

    @property
    def answer(self) -> int:
        return sum(self.terms)

    @property
    def worked(self) -> str:
        """The correct answer, worked out: ones first, then tens with the carry."""
        tens, ones = zip(*(divmod(term, 10) for term in self.terms), strict=True)
        tens = (*tens, sum(ones) // 10)
        work = [f"{'+'.join(map(str, digits))}={sum(digits)}" for digits in (ones, tens)]
        return rf"{', '.join(work)}. \boxed{{{self.answer}}}"

    def guess(self, rng: random.Random) -> str:
        """An answer without any work, near the correct one and never correct."""
        offset = rng.choice([n for n in range(-12, 13) if n])
        return rf"\boxed{{{self.answer + offset}}}"


def all_problems(terms: int) -> list[Problem]:
    """Every sum of so many terms once, smaller terms first."""
    return [Problem(each) for each in itertools.combinations_with_replacement(range(10, 100), terms)]


def split(train: int, test: int, seed: int, terms: int) -> tuple[list[Problem], list[Problem]]:
    """Return disjoint training and test problems, the terms of each in random order."""
    rng = random.Random(seed)
    problems = []
    for problem in rng.sample(all_problems(terms), train + test):
        orders = list(itertools.permutations(reversed(problem.terms)))
        problems.append(Problem(orders[int(rng.random() * len(orders))]))
    return problems[test:], problems[:test]


def write(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = 0, terms: int = 2) -> None:
    for name, problems in zip(("train", "test"), split(train, test, seed, terms), strict=True):
        rows = [row(DATA_SOURCE, p.text, str(p.answer), i, name) for i, p in enumerate(problems)]
        path = folder / f"{name}.parquet"
        write_rows(path, rows, {"source": "data_prep.demo", "seed": seed, "rows_in": len(rows)})
        print(f"{path}: {len(rows)} problems")
