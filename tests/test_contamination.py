"""Finding benchmark problems in a training set: the matcher, and how well it separates labelled pairs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import benchmarks, contamination, dapo
from data_prep.contamination import FEW_NGRAMS, TEMPLATE_PROBLEMS, N, find_matches, ngrams
from data_prep.normalise import words
from tests.conftest import ROOT

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD = st.text(alphabet=LETTERS, min_size=3, max_size=6)
LONG = st.lists(WORD, min_size=N + FEW_NGRAMS, max_size=40, unique=True)


def best(training: list[str], problem: str) -> contamination.Match | None:
    """Return the best match of one problem."""
    found = find_matches(training, {"T-0": problem})[0]
    return found[0] if found else None


@given(LONG, st.lists(WORD, max_size=10), st.lists(WORD, max_size=10))
def test_a_problem_inside_a_longer_one_is_a_copy(problem, before, after):
    text = " ".join(problem)
    match = best([" ".join([*before, *problem, *after])], text)
    assert match.share == match.found == 1.0
    assert match.kind == ("near" if before or after else "exact")


@given(LONG, st.lists(LONG, min_size=1, max_size=5))
def test_fractions_are_those_of_a_plain_count(problem, training):
    training = [" ".join(tokens) for tokens in training]
    mine = set(ngrams(problem))
    shares = [len(mine & set(ngrams(words(text)))) / len(mine) for text in training]
    match = best(training, " ".join(problem))
    assert (match.share if match else 0.0) == pytest.approx(max(shares), abs=1e-3)


@given(LONG, LONG)
def test_the_order_of_training_problems_changes_no_fraction(one, other):
    problem = " ".join(one[: N + 4] + other[: N + 4])
    texts = [" ".join(one), " ".join(other), " ".join(one + other)]
    forwards, backwards = best(texts, problem), best(texts[::-1], problem)
    assert (forwards.share, forwards.kind) == (backwards.share, backwards.kind)


FORM = "can be written in the form $m/n$ where $m$ and $n$ are relatively prime positive integers. Find $m + n$."


def test_a_template_is_no_match():
    training = [f"{LETTERS[i] * 4} problem about a thing of kind {i}; the answer {FORM}" for i in range(20)]
    assert len(training) > TEMPLATE_PROBLEMS
    problem = f"A fair die is thrown until a six appears. The expected number of throws {FORM}"
    match = best(training, problem)
    assert match is None or match.kind == "other"
    assert best([*training, problem + " Give the sum."], problem).kind == "near"


def test_other_numbers_are_another_problem():
    text = "Ann has {} apples and {} pears and gives {} fruits to each of {} friends; how many fruits has she left now?"
    assert best([text.format(12, 30, 4, 7)], text.format(12, 30, 4, 7)).kind == "exact"
    match = best([text.format(12, 30, 4, 7)], text.format(15, 22, 3, 9))
    assert match is None or match.kind == "other"


def test_a_short_problem_needs_all_of_its_words():
    problem = "How many perfect squares less than 2023 are divisible by 5?"
    assert len(ngrams(words(problem))) < FEW_NGRAMS
    assert best([problem + " Fill in the blank."], problem).kind == "near"
    assert best(["How many perfect squares less than 2023 are divisible by 7 or 5?"], problem).kind == "other"
    assert best(["Simplify it."], "Simplify it.").kind == "exact"
    assert best(["Simplify it again."], "Simplify it.") is None


def test_the_thresholds_separate_labelled_pairs(shared_data, tmp_path):
    cases = json.loads((ROOT / "tests" / "cases" / "contamination.json").read_text())
    labels = {case["problem_id"]: case["label"] for case in cases}
    benchmarks.prepare(str(shared_data / "bench"), tmp_path, list(benchmarks.PAPER_BENCHMARKS))
    pairs, _ = dapo.without_template(dapo.distinct_rows([shared_data / "dapo-math-17k-one-block.parquet"]))
    kept, _, _ = dapo.select(pairs)
    problems = {key: text for listed in benchmarks.read_problems(tmp_path).values() for key, text in listed.items()}
    found = find_matches([problem for problem, _ in kept], problems)
    flagged = {matches[0].problem_id for matches in found if matches and matches[0].kind != "other"}
    assert flagged <= set(labels), "a flagged pair that nobody has read"
    copies = {key for key, label in labels.items() if label == "copy"}
    assert len(flagged & copies) / len(flagged) >= 0.93
    assert len(flagged & copies) / len(copies) >= 0.96
