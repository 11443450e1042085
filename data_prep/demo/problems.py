"""Sums of two-digit numbers in the recipe's row format, drawn with a seed.

No problem of the test set occurs in the training set, in either order of its terms.
"""

import random
from pathlib import Path
from typing import NamedTuple

from data_prep.rows import row, write_rows

DATA_SOURCE = "demo_arithmetic"
TRAIN, TEST = 3584, 256  # problems, of 4,095 that there are


class Problem(NamedTuple):
    """The sum of two numbers of two digits."""

    a: int
    b: int

    @property
    def text(self) -> str:
        return f"What is {self.a} + {self.b}?"

    @property
    def answer(self) -> int:
        return self.a + self.b

    @property
    def worked(self) -> str:
        """The correct answer, worked out: ones first, then tens with the carry."""
        return self.work_out(0, 0)

    def slip(self, rng: random.Random) -> str:
        """An answer with a mistake of 1 or 2 in one step of its work, and never correct."""
        offset = rng.choice((-2, -1, 1, 2))
        return self.work_out(offset, 0) if rng.random() < 0.5 else self.work_out(0, offset)

    def work_out(self, off_ones: int, off_tens: int) -> str:
        """Work the sum out with a mistake of so much in the ones and in the tens."""
        (tens_a, ones_a), (tens_b, ones_b) = divmod(self.a, 10), divmod(self.b, 10)
        ones = ones_a + ones_b
        ones += off_ones if ones + off_ones >= 0 else -off_ones
        carry = ones // 10
        tens = tens_a + tens_b + carry + off_tens
        return rf"{ones_a}+{ones_b}={ones}, {tens_a}+{tens_b}+{carry}={tens}. \boxed{{{10 * tens + ones % 10}}}"

    def guess(self, rng: random.Random) -> str:
        """An answer without any work, near the correct one and never correct."""
        offset = rng.choice([n for n in range(-12, 13) if n])
        return rf"\boxed{{{self.answer + offset}}}"


def all_problems() -> list[Problem]:
    """Every sum once, the smaller term first: 90 x 91 / 2 of them."""
    numbers = range(10, 100)
    return [Problem(a, b) for a in numbers for b in numbers if a <= b]


def split(train: int, test: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Return disjoint training and test problems, the terms of each in random order."""
    rng = random.Random(seed)
    problems = rng.sample(all_problems(), train + test)
    problems = [Problem(p.b, p.a) if rng.random() < 0.5 else p for p in problems]
    return problems[test:], problems[:test]


def write(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = 0) -> None:
    for name, problems in zip(("train", "test"), split(train, test, seed), strict=True):
        rows = [row(DATA_SOURCE, p.text, str(p.answer), i, name) for i, p in enumerate(problems)]
        path = folder / f"{name}.parquet"
        write_rows(path, rows, {"source": "data_prep.demo", "seed": seed, "rows_in": len(rows)})
        print(f"{path}: {len(rows)} problems")
