"""pass@k, maj@N, distinct-4, intervals and tests of differences, against closed forms and by simulation."""

import itertools
import math

import numpy as np
import pytest

from eval import statistics
from eval.statistics import (
    crossed_mean,
    detectable_difference,
    distinct_n,
    holm,
    interval,
    majority,
    mean_interval,
    paired_mean_difference,
    pass_at_k,
    powers_of_two,
    sampling_error,
)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 2), (6, 3, 3), (8, 0, 4), (8, 8, 1), (5, 4, 2)])
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_one(samples, correct, k):
    grades = [1] * correct + [0] * (samples - correct)
    subsets = list(itertools.combinations(grades, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))


def test_pass_at_k_of_the_literature():
    """Chen et al. 2021, figure 3: the estimator as a product, 1 - prod(1 - k / i) for i from n - c + 1 to n."""
    for samples, correct, k in ((200, 7, 10), (100, 30, 100), (32, 5, 8)):
        product = 1 - np.prod(1 - k / np.arange(samples - correct + 1, samples + 1)) if samples - correct >= k else 1.0
        assert pass_at_k(samples, correct, k) == pytest.approx(product)
    assert pass_at_k(32, 5, 1) == pytest.approx(5 / 32)
    assert powers_of_two(32) == [1, 2, 4, 8, 16, 32]
    assert powers_of_two(6) == [1, 2, 4, 6]


def test_the_majority_votes_and_ties_share():
    assert majority(["4", "4", "5"], [1, 1, 0]) == 1
    assert majority(["5", "5", "4"], [0, 0, 1]) == 0
    assert majority(["5", "4"], [0, 1]) == 0.5
    assert majority([None, None, "4"], [0, 0, 1]) == 1, "no box, no vote"
    assert majority([None, None], [0, 0]) == 0


def test_distinct_4_counts_over_a_problems_responses():
    assert distinct_n(["a b c d"]) == 1
    assert distinct_n(["a b c d", "a b c d"]) == 0.5
    assert distinct_n(["a a a a a a"]) == pytest.approx(1 / 3)
    assert distinct_n(["a b c"]) is None
    text = "let us add the two numbers and let us add the two numbers again"
    words = text.split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    assert distinct_n([text]) == len(set(grams)) / len(grams)


def test_the_interval_agrees_with_students_for_a_plain_mean():
    rng = np.random.default_rng(1)
    values = rng.normal(0.5, 0.1, 30)
    low, high = interval(values)
    half = 2.0452 * values.std(ddof=1) / math.sqrt(len(values))  # t of 29 degrees of freedom, two-sided 95 %
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)


def test_the_widening_is_students():
    for problems, student in ((30, 2.0452), (40, 2.0227), (272, 1.9688), (5, 2.7764)):
        assert statistics.widening(problems) == pytest.approx(
            student / 1.95996 * math.sqrt(problems / (problems - 1)), rel=0.02
        )


@pytest.mark.parametrize("problems", [30, 40, 272])
@pytest.mark.parametrize("samples", [4, 32])
@pytest.mark.parametrize("shape", [(0.5, 0.5), (1, 3), (5, 5)])
def test_the_interval_covers_the_truth_19_times_in_20(problems, samples, shape, monkeypatch):
    """Problems drawn from a population, samples from each problem: 93 to 97 % of the intervals hold its mean."""
    monkeypatch.setattr(statistics, "RESAMPLES", 600)
    rng, truth, tries = np.random.default_rng(12), shape[0] / sum(shape), 1600 if problems < 100 else 600
    covered = 0
    for _ in range(tries):
        fractions = rng.binomial(samples, rng.beta(*shape, problems)) / samples
        low, high = interval(fractions)
        covered += low <= truth <= high
    assert 0.93 <= covered / tries <= 0.97


def test_a_benchmark_of_zeros_is_not_certain():
    """Of 30 problems without a correct answer: 1 - 0.025 ** (1 / 30), the exact bound of Clopper and Pearson."""
    assert interval(np.zeros(30)) == pytest.approx((0, 0.1157), abs=1e-4)
    assert interval(np.ones(30)) == pytest.approx((0.8843, 1), abs=1e-4)
    assert interval(np.zeros(1)) == pytest.approx((0, 0.975))


def test_the_mean_of_benchmarks_weighs_each_alike():
    rng = np.random.default_rng(0)
    tables = [rng.random(30), rng.random(500)]
    mean, (low, high) = mean_interval(tables)
    assert mean == pytest.approx((tables[0].mean() + tables[1].mean()) / 2)
    error = math.sqrt(sum(table.var(ddof=1) / len(table) for table in tables)) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_paired_differences_use_the_pairs():
    before = np.array([0.0, 0.25, 0.5, 0.75] * 20)
    mean, (low, high), p = paired_mean_difference([(before, before + np.tile([0.2, 0.3], 40))])
    assert mean == pytest.approx(0.25)
    assert 0.23 < low < 0.25 < high < 0.27, "far narrower than the models' own intervals"
    assert p == pytest.approx(1 / (1 + statistics.RESAMPLES))
    assert paired_mean_difference([(before, before)])[2] == 1


def test_the_p_value_is_the_exact_one_of_few_problems():
    """Of six problems that all improved alike, 2 of the 64 sign patterns are as far: p = 2 / 64."""
    _, _, p = paired_mean_difference([(np.zeros(6), np.full(6, 0.5))])
    assert p == pytest.approx(2 / 64, abs=0.006)


def test_the_p_value_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(5)
    values = [paired_mean_difference([(rng.random(20), rng.random(20)) for _ in range(2)])[2] for _ in range(200)]
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.1


def test_the_sampling_error_is_that_of_repeated_evaluations():
    rng = np.random.default_rng(3)
    chances = rng.beta(1, 1, 30)
    scores = [(rng.binomial(32, chances) / 32).mean() for _ in range(3000)]
    estimates = [sampling_error(rng.binomial(32, chances) / 32, 32) for _ in range(200)]
    assert np.mean(estimates) == pytest.approx(np.std(scores), rel=0.05)


def test_holms_correction():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_the_detectable_difference_is_that_of_a_test_at_80_percent_power():
    rng = np.random.default_rng(0)
    problems, deviation = 400, 0.3
    shift = detectable_difference(
        (-1.96 * deviation / math.sqrt(problems), 1.96 * deviation / math.sqrt(problems)), tests=1
    )
    means = rng.normal(shift, deviation, (5000, problems)).mean(axis=1)
    assert np.mean(means > 1.96 * deviation / math.sqrt(problems)) == pytest.approx(0.8, abs=0.02)


def test_the_detectable_difference_counts_the_tests_that_holm_corrects_for():
    """Of nine tests the first needs p < 0.05 / 9, which is 2.77 standard errors instead of 1.96."""
    assert detectable_difference((-0.0196, 0.0196), 9) / detectable_difference((-0.0196, 0.0196), 1) == pytest.approx(
        3.61 / 2.80, abs=0.01
    )


def test_an_arm_like_the_baseline_is_told_apart_as_rarely_as_is_stated():
    """Seeds and problems that matter to both, and an arm that matters to single problems, better or worse."""
    rng, found = np.random.default_rng(1), {2: [], 3: [], 5: []}
    for seeds, p_values in found.items():
        for _ in range(300):
            difficulty = rng.normal(0.8, 1.5, 64)
            runs = []
            for own in (rng.normal(0, 0.4, 64), 0.0):
                logit = difficulty + own + rng.normal(0, 0.2, (seeds, 1))
                runs.append(rng.binomial(4, 1 / (1 + np.exp(-logit)), (seeds, 64)) / 4)
            p_values.append(crossed_mean(runs[0] - runs[1]).p)
        assert 0 < np.mean(np.array(p_values) < 0.05) < 0.08
        assert np.mean(np.array(p_values) < 0.05 / 15) < 0.015, "as for 15 arms, where few seeds may agree by chance"


def test_seeds_that_differ_widen_the_interval():
    """The same problems by seed: all of the mean's variance is of seeds, whose interval is Student's."""
    by_seed = np.array([0.1, 0.2, 0.3])
    found = crossed_mean(np.tile(by_seed[:, None], 64))
    half = 4.30265 * 0.1 / np.sqrt(3)
    assert found.bounds == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    assert found.df == pytest.approx(2)
    assert found.p == pytest.approx(0.0742, abs=1e-4), "t = 3.4641 with 2 degrees of freedom"
    swapped = crossed_mean(np.array([[0.5, -0.5] * 32, [-0.5, 0.5] * 32]))
    error = np.sqrt(128 * 0.25 / 63 / 128)
    assert swapped.bounds[1] == pytest.approx(12.7062 * error, rel=1e-4), "equal means of two noisy seeds prove little"
    alike = crossed_mean(np.zeros((3, 64)))
    assert alike.bounds[1] == pytest.approx(1 - 0.025 ** (1 / 64)), "that of a problem of another kind"
    assert alike.p == 1
