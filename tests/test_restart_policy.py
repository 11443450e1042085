"""Which ends of a run are followed by another start, and the record of them."""

import json
import sys

import pytest

from recipe.monitor.events import EVENTS, RESTART, Events, read_events, restarts, seconds_lost
from recipe.restarts import FAILED, STALLED, UNATTENDED, Ended, Restarts, default_restarts


def test_a_failure_is_tried_again_as_often_as_allowed():
    counted = Restarts(2)
    assert counted.refusal(Ended(FAILED, 1, "lost a node")) is None
    assert counted.refusal(Ended(FAILED, 2, "lost a node")) is None
    assert counted.refusal(Ended(FAILED, 3, "lost a node")) == "all 2 restarts are used"
    assert Restarts(0).refusal(Ended(STALLED, 1, "no progress")) == "all 0 restarts are used"


def test_the_same_failure_twice_at_one_step_is_the_last():
    counted = Restarts(9)
    assert counted.refusal(Ended(FAILED, 6, "ValueError: in process 12 at 0x7ffe")) is None
    assert counted.refusal(Ended(FAILED, 6, "ValueError: in process 345 at 0x1234")).startswith(
        "it ended in the same way twice"
    )


@pytest.mark.parametrize("other", [Ended(FAILED, 7, "a"), Ended(FAILED, 6, "b"), Ended(STALLED, 6, "a")])
def test_another_step_cause_or_kind_is_tried_again(other):
    counted = Restarts(9)
    assert counted.refusal(Ended(FAILED, 6, "a")) is None
    assert counted.refusal(other) is None
    assert counted.refusal(Ended(FAILED, 6, "a")) is None, "only two in a row are the same"


def test_a_full_disk_is_not_tried_again():
    assert Restarts(9).refusal(Ended(FAILED, 6, "no space left", final="the disk is full")) == "the disk is full"


class Stream:
    def __init__(self, terminal):
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(("given", "terminal", "expected"), [("", True, 0), ("", False, UNATTENDED), ("5", True, 5)])
def test_restarts_are_for_runs_without_a_terminal(monkeypatch, given, terminal, expected):
    monkeypatch.setenv("JUSTRL_RESTARTS", given)
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(sys, name, Stream(terminal))
    assert default_restarts() == expected
    monkeypatch.setattr(sys, "stdin", None)
    assert default_restarts() == expected, "a closed stdin is no terminal"


@pytest.mark.parametrize("given", ["-1", "many", "1.5", "²", "9" * 20])
def test_a_mistyped_number_of_restarts_is_one_line(monkeypatch, given):
    monkeypatch.setenv("JUSTRL_RESTARTS", given)
    with pytest.raises(
        ValueError, match=f"^JUSTRL_RESTARTS={given}: use the number of restarts, such as 3, or 0 for none$"
    ):
        default_restarts()


def test_events_are_read_back_without_damaged_lines(tmp_path):
    assert read_events(tmp_path) == []
    (tmp_path / EVENTS).write_text('{"time": "x", "event": "restart", "seconds_lost": null}\n{"time": "x", "ev')
    events = Events(tmp_path)
    events.record(RESTART, kind=STALLED, step=7, cause="no progress", seconds_lost=90.0)
    events.record("started", step=6, start_seconds=30.0)
    assert [event["event"] for event in read_events(tmp_path)] == [RESTART, "started"]
    (line,) = restarts(read_events(tmp_path))
    assert line.endswith("Z: stalled after step 7, 90 s lost: no progress")
    assert seconds_lost(read_events(tmp_path)) == 120
    events.record(RESTART, seconds_lost=1e308)
    assert seconds_lost(read_events(tmp_path)) == 120
    assert json.loads((tmp_path / EVENTS).read_text().splitlines()[-2])["step"] == 6


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path):
    Events(tmp_path / "missing").record(RESTART)
    assert not (tmp_path / "missing").exists()
