"""What answers are written in several ways, near misses included, and the one deadline of a response."""

import json
import re
import signal

import pytest

from eval import typed
from reward import justrl, sandbox
from reward.comparison import CORRECT
from reward.robust import compute_score, judge
from reward.sandbox import POOL
from tests.conftest import ROOT

# An answer with a box of its own is a whole response.
CASES = json.loads((ROOT / "tests" / "cases" / "notations.json").read_text())
HARD = "(1+x+x^2+x^3)^{5000}"


def boxed(answer: str) -> str:
    return rf"so $\boxed{{{answer}}}$."


def whole_response(answer: str) -> str:
    return answer if re.search(r"\\(boxed|fbox|framebox)", answer) else boxed(answer)


@pytest.mark.parametrize("kind", sorted({case["type"] for case in CASES}))
def test_notations_and_their_near_misses_on_both_tracks(kind):
    wrong = []
    for case in (case for case in CASES if case["type"] == kind):
        response = whole_response(case["answer"])
        typed_outcome, _ = typed.grade(response, *typed.reference_answer(case["reference"]))
        for outcome in (judge(response, case["reference"])[0], typed_outcome):
            if (outcome in CORRECT) != case["correct"]:
                wrong.append((outcome, case))
    assert wrong == []
    assert len(CASES) >= 700


def test_the_strict_reward_keeps_the_papers_rule_for_boxes():
    """verl's function looks for an opening brace right after the command, so an earlier box may count there."""
    for response in (r"\boxed{5}, then \boxed 6", r"\boxed{5}, then \boxed {6}"):
        assert justrl.compute_score("d", response, "5")["acc"] == 1.0
        assert compute_score("d", response, "5", shadow=True)["acc"] == 0.0


def test_a_response_has_one_deadline_whatever_its_list_holds(monkeypatch):
    """A worker that needs 1.4 s for each pair gets 3, 1.6 and 0.2 s; the next response begins anew."""
    given = []

    class SlowWorker(sandbox.Worker):
        def ask(self, answer, reference, seconds=sandbox.DEADLINE_SECONDS):
            given.append(seconds)
            self.used_seconds = min(1.4, seconds)
            return "timed_out" if seconds < 1.4 else "wrong"

    monkeypatch.setattr(sandbox, "Worker", SlowWorker)
    POOL.end()
    reference = ",".join(f"(x+{k}y)^5" for k in range(6))
    answer = ",".join(f"(x+{k}y)^6" for k in range(6))
    for _ in range(2):
        assert judge(boxed(answer), reference)[0] == "timed_out"
        assert given == pytest.approx([3.0, 1.6, 0.2])
        given.clear()
    assert POOL.ask("x+y", "y+x") == "wrong", "outside a response each question has the whole deadline"
    assert given == [sandbox.DEADLINE_SECONDS]
    POOL.end()


def test_a_worker_says_how_long_it_worked():
    with sandbox.one_deadline():
        assert POOL.ask("(x+y+z+w)^{12}", "x+y+z+w") == "wrong"
        left = sandbox.LEFT.get()[0]
        assert 0 < left < sandbox.DEADLINE_SECONDS
        assert POOL.ask(HARD, "5+y") == "timed_out"
        assert sandbox.LEFT.get()[0] <= 0
        assert POOL.ask("x+y", "y+x") == "timed_out", "nothing is left"
    assert POOL.ask("x+y", "y+x") == "equivalent"


def test_a_worker_is_waited_for_as_long_as_it_uses_processor_time(monkeypatch):
    """By the clock a loaded machine may take much longer for an honest comparison than PATIENCE_SECONDS."""
    monkeypatch.setattr(sandbox, "PATIENCE_SECONDS", 0.2)
    worker = sandbox.Worker(sandbox.SCRIPT, sandbox.ANSWERS)
    try:
        assert worker.ask(HARD, "5+y") == "timed_out"
        assert worker.process.poll() == -signal.SIGPROF, "after 3 s of processor time, more than its owner's patience"
    finally:
        worker.end()
    worker = sandbox.Worker(sandbox.SCRIPT, sandbox.ANSWERS)
    try:
        worker.process.send_signal(signal.SIGSTOP)
        assert worker.ask("x+y", "y+x") == "timed_out", "it does nothing at all"
    finally:
        worker.end()
