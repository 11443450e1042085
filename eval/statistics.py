"""Scores and their intervals, as pure functions of grades (problems x samples, 0 or 1) and per-problem fractions.

The unit of chance is the problem: a benchmark is a sample of problems that could have been asked, and the samples of
one problem belong together. So problems are resampled, each with all its samples (Davison & Hinkley 1997, section 3.8:
resampling the inner level as well would count its noise twice). Small sets are widened as Hesterberg (2015, "What
teachers should know about the bootstrap", section 4.3) does: a plain percentile interval is too narrow by Student's
factor and sqrt(n / (n - 1)). Where runs over several seeds are compared, seeds are a second unit: `crossed_mean`.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import mpmath  # comes with sympy
import numpy as np

RESAMPLES = 10_000
SEED = 0  # of the resampling: the same grades give the same interval
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
SIGNIFICANT = 0.05
FOUND = 0.8  # how often a difference is found that a report calls large enough
NORMAL = 10_000  # degrees of freedom from which on Student's t is taken for normal


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def powers_of_two(samples: int) -> list[int]:
    """Return 1, 2, 4, ... up to the number of samples, which is in the list too."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def majority(answers: Sequence[str | None], grades: Sequence[int]) -> float:
    """maj@N of one problem: the grade of its most frequent answer; the mean grade of those that tie.

    Args:
        answers: normal form of each sample's final answer; None, for a sample without one, does not vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    winners = [answer for answer, count in votes.items() if count == most]
    means = [np.mean([g for a, g in zip(answers, grades, strict=True) if a == winner]) for winner in winners]
    return float(np.mean(means)) if means else 0.0


def distinct_n(texts: Sequence[str], n: int = 4) -> float | None:
    """Fraction of distinct n-grams of white-space separated words among all of a problem's responses, as released.

    None where no response has n words.
    """
    hashes = []
    for text in texts:
        words = np.fromiter(map(hash, text.split()), dtype=np.int64).view(np.uint64)
        grams = np.zeros(max(0, len(words) - n + 1), dtype=np.uint64)
        for i in range(n if len(grams) else 0):  # a polynomial in the words' hashes: 64 bits, so no two meet
            grams = grams * np.uint64(0x9E3779B97F4A7C15) + words[i : i + len(grams)]
        hashes.append(grams)
    every = np.concatenate(hashes) if hashes else np.zeros(0)
    return len(np.unique(every)) / len(every) if len(every) else None


def both_tails(t: float, df: float) -> float:
    """Return the two-sided p-value of Student's t; `df` need not be an integer."""
    if df >= NORMAL:
        return 2 * NormalDist().cdf(-abs(t))
    return float(mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True))


@functools.cache
def student(probability: float, df: float) -> float:
    """Return Student's quantile of a probability above one half."""
    if df >= NORMAL:
        return NormalDist().inv_cdf(probability)
    low, high = 0.0, 1.0
    while both_tails(high, df) / 2 > 1 - probability:
        high *= 2
    while high - low > 1e-8 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if both_tails(middle, df) / 2 > 1 - probability else (low, middle)
    return high


def widening(problems: int) -> float:
    """Return the factor by which deviations of a bootstrap mean of so many problems are too small."""
    df = problems - 1
    return student(1 - TAIL, df) / NormalDist().inv_cdf(1 - TAIL) * math.sqrt(problems / df)


def bootstrap_means(per_problem: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return RESAMPLES means of one number per problem, problems resampled; of one problem, only its own."""
    rng = np.random.default_rng([SEED, seed])
    problems = len(per_problem)
    chosen = rng.integers(problems, size=(RESAMPLES, problems))
    mean = per_problem.mean()
    return mean + (per_problem[chosen].mean(axis=1) - mean) * (widening(problems) if problems > 1 else 1.0)


def unseen(problems: int) -> float:
    """Return the largest fraction of all problems, at the 2.5 % level, of which so many may show none."""
    return 1 - TAIL ** (1 / problems)


def mean_interval(tables: Sequence[np.ndarray], lowest: float = 0.0) -> tuple[float, tuple[float, float]]:
    """Return the mean over benchmarks of each one's mean over problems, with its 95 % interval.

    Args:
        tables: for each benchmark one number per problem, such as its fraction of correct samples.
        lowest: least value of such a number, 0 or, of a difference, -1; the greatest is 1.

    A benchmark whose problems are all alike says nothing of others by resampling: there the bound is that of an
    unseen kind of problem (`unseen`), at worst.
    """
    means = np.mean([bootstrap_means(table, seed) for seed, table in enumerate(tables)], axis=0)
    mean = float(np.mean([table.mean() for table in tables]))
    low, high = np.quantile(means, [TAIL, 1 - TAIL])
    alike = [table for table in tables if np.ptp(table) == 0]
    low -= sum(unseen(len(table)) * (table[0] - lowest) for table in alike) / len(tables)
    high += sum(unseen(len(table)) * (1 - table[0]) for table in alike) / len(tables)
    return mean, (max(lowest, float(low)), min(1.0, float(high)))


def interval(per_problem: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean over problems."""
    return mean_interval([per_problem])[1]


def paired_mean_difference(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, tuple[float, float], float]:
    """Return the difference of two models, averaged over benchmarks, its 95 % interval and p-value.

    The p-value is of the sign-flip permutation test: were the models alike, each problem's difference could as well
    have the other sign.

    Args:
        pairs: for each benchmark the per-problem fractions of both models, over the same problems.
    """
    differences = [after - before for before, after in pairs]
    mean, bounds = mean_interval(differences, lowest=-1.0)
    rng = np.random.default_rng(SEED)
    flipped = np.zeros(RESAMPLES)
    for difference in differences:
        signs = 2 * rng.integers(2, size=(RESAMPLES, len(difference)), dtype=np.int8) - 1
        flipped += signs @ difference / len(difference) / len(differences)
    as_far = np.sum(np.abs(flipped) >= abs(mean) - 1e-12)
    return mean, bounds, float((1 + as_far) / (1 + RESAMPLES))


class Difference(NamedTuple):
    """A mean of paired differences with its 95 % interval, its p-value, and the degrees of freedom behind both."""

    value: float
    bounds: tuple[float, float]
    p: float
    df: float


def student_mean(values: np.ndarray) -> Difference:
    """Return the mean of one number per unit, such as a seed, by Student's t; two units or more."""
    error, df = float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1
    return from_standard_error(float(values.mean()), error, df)


def from_standard_error(mean: float, error: float, df: float) -> Difference:
    half = error * student(1 - TAIL, df)
    p = both_tails(mean / error, df) if error else float(mean == 0)
    return Difference(mean, (mean - half, mean + half), p, df)


def crossed_mean(table: np.ndarray) -> Difference:
    """Return the mean difference of two models over seeds (rows) and problems (columns), both of them sampled.

    Every seed has every problem, as every subject has every item in Clark (1973, "The language-as-fixed-effect
    fallacy"), whose min F' this is: the variance is the sum of the seed means' and the problem means' own, which
    counts the noise of single cells twice, as the bootstrap of both does too (Owen 2007, "The pigeonhole bootstrap");
    degrees of freedom by Satterthwaite. A few seeds may have like means by chance: their part is at least what the
    noise of single cells leaves in a seed's mean, as a component of variance is not negative. So it errs towards no
    difference, the more the less seeds differ. Of differences that are all alike the interval is that of problems
    alone, as in `mean_interval`.

    Args:
        table: the difference of each seed and problem, two or more of either.
    """
    seeds, problems = table.shape
    mean, of_seeds, of_problems = table.mean(), table.mean(axis=1), table.mean(axis=0)
    noise = ((table - of_seeds[:, None] - of_problems + mean) ** 2).sum() / (seeds - 1) / (problems - 1) / table.size
    by_seed, by_problem = max(of_seeds.var(ddof=1) / seeds, noise), of_problems.var(ddof=1) / problems
    if np.ptp(table) == 0:
        return Difference(*mean_interval([of_problems], lowest=-1.0), p=float(mean == 0), df=math.inf)
    df = (by_seed + by_problem) ** 2 / (by_seed**2 / (seeds - 1) + by_problem**2 / (problems - 1))
    return from_standard_error(float(mean), math.sqrt(by_seed + by_problem), float(df))


def sampling_error(per_problem: np.ndarray, samples: int) -> float:
    """Return the standard error of avg@N over these very problems: that of drawing samples alone; two or more."""
    return float(np.sqrt(np.sum(per_problem * (1 - per_problem) / (samples - 1))) / len(per_problem))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Correct p-values for there being several (Holm 1979)."""
    corrected, worst = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        worst = max(worst, min(1.0, (len(p_values) - i) * p_values[name]))
        corrected[name] = worst
    return corrected


def detectable_difference(bounds: tuple[float, float], tests: int, df: float = math.inf) -> float:
    """Return the true difference that is found four times in five, from a 95 % interval; 1.0 if none is.

    Args:
        tests: how many the p-value is corrected for; Holm's first step divides by all of them.
        df: degrees of freedom of the interval; without them it is a normal one.
    """
    error = (bounds[1] - bounds[0]) / 2 / student(1 - TAIL, df)
    return min(1.0, error * (student(1 - SIGNIFICANT / 2 / tests, df) + student(FOUND, df)))
