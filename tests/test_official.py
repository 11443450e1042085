"""The official track: labelled cases recorded from the released grader, hostile text, and the worker behind it."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_prep import benchmarks
from eval.official import CORRECT, MAX_CHARACTERS, POOL, boxed, grade, normal_form
from reward import sandbox
from tests.conftest import ROOT
from tests.test_robust import ATTEMPTS, HOSTILE

CASES = json.loads((ROOT / "tests" / "cases" / "official.json").read_text())


def response(answer: str) -> str:
    return rf"So the answer is $\boxed{{{answer}}}$."


def outcome(case: dict) -> str:
    return grade(case.get("response", response(case.get("answer", ""))), case["reference"])[0]


def test_outcomes_are_the_released_graders_but_for_errors():
    """`correct` was recorded from it, null where it did not end; `outcome` is ours where it must not agree."""
    assert len(CASES) >= 250
    with ThreadPoolExecutor(sandbox.WORKERS) as threads:
        found = list(threads.map(outcome, CASES))
    for case, said in zip(CASES, found, strict=True):
        if "outcome" in case:
            assert said == case["outcome"], case
        else:
            assert ((said in CORRECT), said == "error") == (case["correct"], False), case


def test_every_released_reference_answer_matches_itself(shared_data):
    for task, benchmark in benchmarks.PAPER_BENCHMARKS.items():
        pairs = benchmarks.read_pairs(shared_data / "bench" / task / "test.parquet", task)
        assert len(pairs) == benchmark.problems
        for _, released in pairs:
            bare = boxed(released) if r"\boxed" in released else released
            assert grade(response(bare), released) == ("match", bare)


def test_the_answer_comes_back_and_no_longer_than_the_cap():
    assert grade(response(" 7 "), "7") == ("match", " 7 ")
    assert grade("7", "7") == ("no_box", "")
    assert grade(response("x" * 10**6), "x") == ("wrong", "x" * MAX_CHARACTERS)


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (r"\dfrac{1}{2}", "1/2"),
        ("1,234.0", "1234"),
        (r"\text{Yes}", "yes"),
        (r"90^\circ", "90"),
        (r"(1, \pi]", "(1,pi]"),
    ],
)
def test_the_normal_form_that_votes_are_counted_by(answer, form):
    assert normal_form(answer) == form


def escaped(code: str) -> str:
    """Return an answer of two letters that sympy evaluates: digits of a string literal, their backslashes by LaTeX."""
    return 're("' + "".join(rf"\textbackslash {ord(character):03o}" for character in code) + '")'


def test_no_answer_runs_code(tmp_path):
    """With a control: given to `parse_expr`, as the released grader does, the escaped attempt leaves a mark."""
    mark = tmp_path / "mark"
    attempts = [attempt.format(mark) for attempt in ATTEMPTS]
    attempts += [escaped(f"open('{mark}','w')"), "re('open')", "f'x'", "id(x)", "x.x", "(x,1)[0]", "(x:=1)", "x)#)"]
    assert max(map(len, attempts)) < MAX_CHARACTERS
    for attempt in attempts:
        for reference in ("1/2", "x", attempt):
            outcome = grade(response(attempt), reference)[0]
            assert outcome in ("error", "wrong") or (outcome == "match" and reference == attempt)
        for text in (attempt, normal_form(attempt)):
            assert POOL.ask(text, "x") in ("error", "wrong"), text
            assert POOL.ask("x", text) in ("error", "wrong"), text
    assert list(tmp_path.iterdir()) == []
    assert grade(response(escaped(f"open('{mark}','w')")), "1/2")[0] == "error"
    control = "import sys; from sympy.parsing.sympy_parser import parse_expr; parse_expr(sys.argv[1])"
    released = normal_form(escaped(f"open('{mark}','w')"))
    subprocess.run([sys.executable, "-c", control, released], capture_output=True)
    assert mark.exists()


def test_hostile_answers_are_not_correct_and_leave_the_pool_intact():
    hostile = [*HOSTILE, "(" * 100 + "x" + ")" * 100, "-" * 1900 + "x", "x" + "!" * 1000, "1e400x", "\x00x", "\ud800x"]
    with ThreadPoolExecutor(sandbox.WORKERS) as threads:
        found = set(threads.map(lambda answer: grade(response(answer), "y")[0], hostile))
        assert found <= {"error", "wrong", "no_box"}
        again = list(threads.map(lambda i: grade(response(f"x+{i}"), f"{i}+x")[0], range(4 * sandbox.WORKERS)))
    assert set(again) == {"equivalent"}


def test_a_comparison_without_end_is_ended_by_its_deadline():
    """The kernel's signal ends it; without a deadline the worker would still run when its owner's patience is over."""
    worker = sandbox.Worker(POOL.script, POOL.answers)
    try:
        assert worker.ask("(1+x+x**2+x**3)**5000", "y") == "timed_out"
        assert worker.process.returncode == -signal.SIGPROF
    finally:
        worker.end()
