"""The reward equals the released one, as verl still holds it."""

import random

import pytest
from verl.utils.reward_score import math_dapo

from reward.justrl import compute_score, last_boxed

PIECES = [r"\boxed{", "}", "{", r"\boxed", "34", " 34", "34.0", r"\text{34}", r"\frac{1}{2}", "$", ".", " ", "\n"]
PIECES += ["Answer: 34", r"\fbox{34}", "é", "x" * 90, "x" * 97, "y" * 210, r"\boxed{34}", r"\boxed{\frac{1}{2}}"]
PIECES += ["{}", r"\boxed{}", "0"]
TRUTHS = ["34", "0", r"\frac{1}{2}", "1000", "}", "-7"]


def test_agrees_with_verl_on_generated_responses():
    rng = random.Random(0)
    right = 0
    for _ in range(20_000):
        response = "".join(rng.choices(PIECES, k=rng.randint(0, 9)))
        truth = rng.choice(TRUTHS)
        theirs = math_dapo.compute_score(response, truth, strict_box_verify=True)
        ours = compute_score("math_dapo", response, truth)
        assert ours["score"] == theirs["score"], (response, truth)
        assert ours["acc"] == float(theirs["acc"]), (response, truth)
        assert ours["pred"] == (theirs["pred"] or ""), (response, truth)
        right += ours["acc"] == 1.0
    assert right > 200, "the generator made too few right answers to mean anything"


@pytest.mark.parametrize(
    ("response", "truth", "score"),
    [
        (r"so \boxed{34}", "34", 1.0),
        (r"so $\boxed{34}$.", "34", 1.0),
        (r"\boxed{1} no, \boxed{34}", "34", 1.0),
        (r"\boxed{ 34 }", "34", -1.0),
        (r"\boxed{1,000}", "1000", -1.0),
        (r"\boxed{34.0}", "34", -1.0),
        (r"\boxed{\text{34}}", "34", -1.0),
        ("Answer: 34", "34", -1.0),
        (r"\boxed{34", "34", -1.0),
        (r"\boxed{34}" + "." * 90, "34", 1.0),
        (r"\boxed{34}" + "." * 91, "34", -1.0),
        ("", "34", -1.0),
    ],
)
def test_known_scores(response, truth, score):
    assert compute_score("math_dapo", response, truth)["score"] == score


def test_keys_are_always_the_same_and_never_none():
    for response in ("", r"\boxed{1}", r"\boxed{2}"):
        result = compute_score("any", response, "1", {"index": 3}, unknown=True)
        assert list(result) == ["score", "acc", "pred"]
        assert None not in result.values()


@pytest.mark.parametrize("truth", [34, None, "", ["34"]])
def test_a_ground_truth_that_nothing_can_match_is_an_error_with_the_row(truth):
    with pytest.raises(ValueError, match="row 17"):
        compute_score("math_dapo", r"\boxed{34}", truth, {"index": 17})


def test_nested_braces():
    assert last_boxed(r"\boxed{a{b}c} tail") == "a{b}c"
    assert last_boxed(r"\boxed{a{b}c") is None
