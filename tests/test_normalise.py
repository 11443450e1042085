"""Which problems are the same: the template, the canonical text and the words."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.normalise import canonical, words
from data_prep.prompt import DAPO_PREFIX, DAPO_SUFFIX, strip_dapo_template

# What a problem is made of, and what typesetting may put between any two of these.
ATOMS = st.sampled_from(
    ["x", "X", "12", "7", "+", "=", "(", ")", "{", "}", r"\frac", r"\sqrt", "the", "Sum", "²", "角"]
)
BETWEEN = st.sampled_from(["", " ", "\n", "$", r"\,", r"\ ", "~", r"\left", r"\right ", "\t", r"\(", r"\]", "$$"])
PROBLEMS = st.lists(ATOMS, min_size=1, max_size=12)


def typeset(atoms: list[str], between: list[str]) -> str:
    """Join atoms with typesetting; a command's name must not run into the letters behind it."""
    text = ""
    for atom, space in zip(atoms, between, strict=True):
        ends_in_command = text.rpartition("\\")[2].isascii() and text.rpartition("\\")[2].isalpha() and "\\" in text
        text += (" " if ends_in_command and atom[0].isascii() and atom[0].isalpha() else "") + atom + space
    return text


@given(st.text())
def test_the_template_comes_off_exactly(problem):
    assert strip_dapo_template(DAPO_PREFIX + problem + DAPO_SUFFIX) == (problem, True)


@given(st.text(alphabet='SolveRmbthfnagp.\n "', max_size=40))
def test_without_the_template_nothing_comes_off(problem):
    assert strip_dapo_template(problem) == (problem, False)


@given(st.data())
def test_typesetting_does_not_change_the_canonical_text(data):
    atoms = data.draw(PROBLEMS)
    spaces = st.lists(BETWEEN, min_size=len(atoms), max_size=len(atoms))
    assert canonical(typeset(atoms, data.draw(spaces))) == canonical(typeset(atoms, data.draw(spaces)))


@given(st.text(alphabet="aA bB12+-=^_{}²", max_size=20), st.text(alphabet="aA bB12+-=^_{}²", max_size=20))
def test_problems_that_differ_in_content_stay_different(one, other):
    assert (canonical(one) == canonical(other)) == ("".join(one.split()) == "".join(other.split()))


@given(st.text())
def test_the_form_of_unicode_does_not_matter(problem):
    decomposed = unicodedata.normalize("NFD", problem)
    assert canonical(problem) == canonical(decomposed)
    assert words(problem) == words(decomposed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"Let $x=\dfrac{1}{2}$.", r"Let \(x = \frac{1}{2}\)."),
        ("the in\ufb01nite grid", "the infinite grid"),
        (r"$\left( 1,\,2 \right)$", "$(1,2)$"),
        ("求\uff08x\uff09", "求(x)"),
    ],
)
def test_duplicates(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(("one", "other"), [("$x^2$", "$x²$"), ("$A$", "$a$"), ("$12$", "$21$"), (r"\$5", "5")])
def test_no_duplicates(one, other):
    assert canonical(one) != canonical(other)


@given(st.text())
def test_words_are_lower_case_and_never_empty(problem):
    assert all(word and word == word.lower() for word in words(problem))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Find $ab$ and $a b$", ["find", "a", "b", "and", "a", "b"]),
        (r"$\dfrac{1}{2}\leqslant x$", ["frac", "1", "2", "le", "x"]),
        (r"costs \$27 or $m$", ["costs", "27", "or", "m"]),
        ("See [asy] draw((0,0)); [/asy] here", ["see", "here"]),
        ("求x的值", ["求", "x", "的", "值"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected
