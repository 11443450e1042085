"""What follows the end of a run's start: another start, or the end of the run."""

import errno
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipe import train as training
from recipe.checkpoints import STOP
from recipe.compose import compose
from recipe.monitor.events import read_events
from recipe.supervise import Progress, Result
from recipe.train import train
from tests.test_checkpoints import checkpoint, log


@pytest.fixture
def run(tmp_path):
    """Compose the demo's config with a folder of its own."""
    return compose("demo", [f"trainer.default_local_dir={tmp_path}/run/checkpoints"], "cpu")


def test_a_run_whose_node_is_nearly_full_is_asked_to_save_once_where_it_may_restart(run, tmp_path):
    for may_restart in (False, True):
        progress = Progress(run, None, io.StringIO(), None, may_restart)
        progress.memory = SimpleNamespace(measure=dict, add=lambda *_: [], full=False)
        stop = tmp_path / "run" / STOP
        stop.parent.mkdir(exist_ok=True)
        progress.add(1, {"critic/score/mean": 0.5})
        assert not stop.exists()
        progress.memory.full = True
        progress.add(2, {"critic/score/mean": 0.5})
        assert (stop.exists(), progress.ends_for_memory) == (may_restart, may_restart)
        if may_restart:
            os.utime(stop)
            assert not progress.ends_for_memory, "now the user asks as well"
        stop.unlink(missing_ok=True)
        progress.add(3, {"critic/score/mean": 0.5})
        assert not stop.exists(), "a start removes the file, and it must not come back"


def test_a_run_that_is_full_at_its_last_step_is_not_asked(run, tmp_path):
    progress = Progress(run, None, io.StringIO(), None, may_restart=True)
    progress.memory = SimpleNamespace(measure=dict, add=lambda *_: [], full=True)
    (tmp_path / "run").mkdir()
    progress.add(run.trainer.total_training_steps, {"critic/score/mean": 0.5})
    assert not (tmp_path / "run" / STOP).exists()


@pytest.mark.parametrize("result", [Result(1), Result(1, "no progress", Path("x"))])
def test_a_run_that_the_user_asked_to_stop_is_not_started_again(run, tmp_path, monkeypatch, capsys, result):
    def asked(*_):
        (tmp_path / "run" / STOP).touch()
        return result

    monkeypatch.setattr(training, "supervise", asked)
    assert train(run, restarts=3) == 1
    assert "not started again: the file stop asks it to end" in capsys.readouterr().err


def test_an_error_of_the_file_server_is_tried_again(run, tmp_path, monkeypatch):
    left = starts(monkeypatch, Result(0))
    errors = [OSError(errno.ESTALE, "stale file handle")]
    reconcile = training.reconcile
    monkeypatch.setattr(
        training, "reconcile", lambda *a: (_ for _ in ()).throw(errors.pop()) if errors else reconcile(*a)
    )
    assert train(run, restarts=1) == 0
    assert not left
    errors.append(OSError(errno.ESTALE, "stale file handle"))
    with pytest.raises(OSError, match="stale"):
        train(run)


def starts(monkeypatch, *results):
    """Replace the starts of a run by results, one after another; returns those that are left."""
    left = list(results)
    monkeypatch.setattr(training, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(training, "supervise", lambda *_: left.pop(0))
    return left


def test_a_full_memory_a_hang_and_a_failure_are_restarts_in_the_record(run, tmp_path, monkeypatch, capsys):
    saved = tmp_path / "run" / "checkpoints"
    for step in (1, 2):
        checkpoint(saved, step)
    log(tmp_path / "run" / "metrics.jsonl", [1, 2])
    hang = Result(1, "no progress for 10 min in the update of step 3", tmp_path / "run" / "stalls" / "x.txt")
    left = starts(monkeypatch, Result(0, memory_full=True), hang, Result(1), Result(1))
    assert train(run, restarts=9) == 1
    assert not left
    events = read_events(tmp_path / "run")
    assert [(event["event"], event["kind"]) for event in events] == [
        ("restart", "ended early"),
        ("restart", "stalled"),
        ("restart", "failed"),
        ("failure", "failed"),
    ]
    assert {event["step"] for event in events} == {2}
    shown = capsys.readouterr()
    assert f"training stalled: {hang.stall}\n  see {hang.report}\n" in shown.err
    assert "restart 3 of 9" in shown.out
    assert "not started again: it ended in the same way twice after step 2" in shown.err


def test_without_restarts_the_first_failure_is_the_last(run, tmp_path, monkeypatch, capsys):
    left = starts(monkeypatch, Result(1), Result(0))
    assert train(run) == 1
    assert len(left) == 1
    assert "not started again" not in capsys.readouterr().err


def test_a_full_disk_is_not_started_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "FULL_BYTES", 1 << 60)
    left = starts(monkeypatch, Result(1), Result(0))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert train(run, restarts=3) == 1
    assert len(left) == 1


def test_someone_is_told_of_each_restart_and_of_the_end(run, tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTRL_ALERT", f"cat >> {tmp_path}/told")
    starts(monkeypatch, Result(1), Result(0))
    assert train(run, restarts=3) == 0
    lines = sorted((tmp_path / "told").read_text().splitlines())
    assert lines == [
        "run: failed after step 0, restart 1 of 3: no output",
        "run: finished after step 0",
    ]
