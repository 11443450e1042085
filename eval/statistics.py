"""Scores and their intervals, as pure functions of a problems-by-samples table of grades."""

import numpy as np

RESAMPLES = 10_000
SEED = 0  # of the resampling: the same grades give the same interval


def average(grades: np.ndarray) -> float:
    """avg@N: the mean of grades (problems x samples, 0 or 1) over everything."""
    return float(grades.mean())


def bootstrap_interval(per_problem: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over problems.

    Problems are resampled, not samples: the samples of one problem belong together.

    Args:
        per_problem: one number per problem, such as its share of right samples or a paired difference.
        level: coverage, 0 to 1.
    """
    rng = np.random.default_rng(SEED)
    chosen = rng.integers(len(per_problem), size=(RESAMPLES, len(per_problem)))
    means = per_problem[chosen].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(before: np.ndarray, after: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean difference of two models' per-problem scores over the same problems, with its 95 % interval."""
    difference = after - before
    return float(difference.mean()), bootstrap_interval(difference)
