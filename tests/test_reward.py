"""The reward equals the released one, as verl still holds it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verl.utils.reward_score import math_dapo

from reward.justrl import compute_score, last_boxed

PIECES = [r"\boxed{", "}", "{", r"\boxed", "34", " 34", "34.0", r"\text{34}", r"\frac{1}{2}", "$", ".", " ", "\n"]
PIECES += ["Answer: 34", r"\fbox{34}", "é", "角", "\u200b", "x" * 90, "x" * 97, "y" * 210, r"\boxed{34}"]
PIECES += ["{}", r"\boxed{}", "0", r"\boxed{\frac{1}{2}}", r"\boxed{ 34 }", "\\", "\U0001d7db"]
TRUTHS = ["34", "0", r"\frac{1}{2}", "1000", "{}", "-7", "角", " 34 "]


def agrees_with_verl(response: str, truth: str) -> bool:
    """Compare one response with verl's strict function; return whether it was correct."""
    theirs = math_dapo.compute_score(response, truth, strict_box_verify=True)
    ours = compute_score("math_dapo", response, truth)
    assert ours["score"] == theirs["score"], (response, truth)
    assert ours["acc"] == float(theirs["acc"]), (response, truth)
    assert ours["pred"] == (theirs["pred"] or ""), (response, truth)
    return ours["acc"] == 1.0


def test_agrees_with_verl_on_a_million_generated_responses():
    rng = random.Random(0)
    correct = 0
    for _ in range(1_000_000):
        response = "".join(rng.choices(PIECES, k=rng.randint(0, 9)))
        correct += agrees_with_verl(response, rng.choice(TRUTHS))
    assert correct > 10_000, "the generator made too few correct answers to mean anything"


@given(st.text(alphabet="\\boxed{}34$. é角", max_size=400), st.sampled_from(TRUTHS))
def test_agrees_with_verl_on_any_text(response, truth):
    agrees_with_verl(response, truth)


@given(st.text(max_size=60), st.integers(0, 120), st.integers(0, 320))
def test_agrees_with_verl_at_the_edges_of_the_window(content, after, before):
    agrees_with_verl("x" * before + rf"\boxed{{{content}}}" + "y" * after, "34")
    agrees_with_verl("x" * before + r"\boxed{34}" + "y" * after, "34")


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


@pytest.mark.parametrize("truth", [34, None, "", ["34"], r"\boxed{34}", "{34", "34}", "9" * 93])
def test_a_ground_truth_that_nothing_can_match_is_an_error_with_the_row(truth):
    with pytest.raises(ValueError, match="row 17"):
        compute_score("math_dapo", r"\boxed{34}", truth, {"index": 17})


def test_nested_braces():
    assert last_boxed(r"\boxed{a{b}c} tail") == "a{b}c"
    assert last_boxed(r"\boxed{a{b}c") is None


def test_options_change_the_scale_and_the_window():
    far = r"\boxed{34}" + "." * 150
    assert compute_score("d", far, "34") == {"score": -1.0, "acc": 0.0, "pred": ""}
    assert compute_score("d", far, "34", wrong=0.0)["score"] == 0.0
    assert compute_score("d", far, "34", window=200)["score"] == 1.0
    assert compute_score("d", r"\boxed{" + "9" * 93 + "}", "9" * 93, window=101)["score"] == 1.0


@pytest.mark.parametrize(
    ("response", "outside", "lenient"),
    [
        (r"\boxed{1000}", 0, 1),
        (r"\boxed{1000}" + "." * 150, 1, 1),
        (r"\boxed{ 1,000 }", 0, 1),
        (r"\boxed{1\,000.}", 0, 1),
        (r"\boxed{x = 1000.0}", 0, 1),
        (r"\boxed{\text{1000}}", 0, 1),
        (r"\boxed{\$1000}", 0, 1),
        (r"\boxed{01000}", 0, 1),
        (r"\boxed{100}", 0, 0),
        (r"\boxed{10,00}", 0, 0),
        (r"\boxed{1000, 2000}", 0, 0),
        ("1000", 0, 0),
    ],
)
def test_shadow_fields_say_what_strictness_costs_and_never_touch_the_score(response, outside, lenient):
    plain = compute_score("d", response, "1000")
    shadowed = compute_score("d", response, "1000", shadow=True)
    assert shadowed == plain | {"outside": outside, "lenient": lenient}


@pytest.mark.parametrize("unit", ["{", "}", r"\boxed{", "$", "x", r"\boxed{1}", "角"])
def test_a_megabyte_of_anything_is_scored(unit):
    """Work that grew with the square of the length would not end here."""
    response = unit * (1_000_000 // len(unit))
    assert compute_score("d", response, "34", shadow=True)["score"] == -1.0
