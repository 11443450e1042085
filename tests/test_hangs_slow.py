"""Real runs that hang or fail in the middle are noticed, explained by name, and started again by themselves."""

import contextlib
import json

import pytest

from recipe.checkpoints import complete_checkpoints
from recipe.heartbeat import ACTOR, TRAINER, read_heartbeats
from recipe.monitor.events import RESTART, read_events
from recipe.monitor.metrics import read_metrics
from tests.conftest import HANGING_SECONDS
from tests.stubborn import find, start
from tests.test_processes import wait_until
from tests.test_run_slow import assert_nothing_is_left, experiment
from tests.test_survival_slow import data_loader, problems, seen

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
STALL_SECONDS = 45  # more than a loaded machine takes between two signs of progress
# The role of a process, and the phase in which it is stopped.
HANGS = [
    ("EngineCore", "generation"),
    ("WorkerDict", "update"),
    ("AgentLoopWorker", "generation"),
    ("SimpleStorageUnit", "generation"),
    ("EngineCore", "weight transfer"),
]


def doing(folder):
    """Return the step and the phase that a run's trainer last wrote."""
    state = read_heartbeats(folder).get(TRAINER, {})
    return state.get("step"), state.get("phase")


def restarts(folder):
    """Return the record of a run's restarts."""
    return [event for event in read_events(folder) if event["event"] == RESTART]


def assert_every_step_once(folder, flags, steps):
    """The metrics have each step once, and the data are those of an undisturbed run in its order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    trainer = data_loader()
    assert [seen(flags, step) for step in range(1, steps + 1)] == [sorted(problems(trainer)) for _ in range(steps)]


def last_step(folder):
    """Return the last step that a run has logged, 0 before the first."""
    return max(read_metrics(folder / "metrics.jsonl"), default=0)


def hang(run, folder, name, phase):
    """Stop a process of a run in a phase of a step, and wait until the run is started again."""
    before, step = len(restarts(folder)), last_step(folder)
    wait_until(lambda: last_step(folder) > step, run)
    wait_until(lambda: find(run, name), run)
    process = find(run, name)
    wait_until(lambda: doing(folder)[1] == phase, run, pause=0.002)
    process.suspend()
    wait_until(lambda: len(restarts(folder)) > before, run)


def assert_reports(folder):
    """Each hang has a report, with what every process was doing."""
    reports = list((folder / "stalls").iterdir())
    assert len(reports) == len(HANGS) + 1
    names = ["recipe.driver", "TaskRunnerV1", "WorkerDict", "AgentLoopWorker", "RewardLoopWorker", "vLLMHttpServer"]
    for report in reports:
        text = report.read_text()
        assert all(f"== {name}, process" in text for name in names), report
        assert "Thread" in text, "stacks"


def test_six_hangs_are_noticed_named_and_healed(fork_server, tmp_path):
    folder, steps = experiment("test_hangs"), 24
    run = start(folder, fork_server, tmp_path, steps, 6, STALL_SECONDS)
    for name, phase in HANGS:
        hang(run, folder, name, phase)
    step = last_step(folder)
    wait_until(lambda: last_step(folder) > step, run)
    (tmp_path / "hang").touch()
    wait_until(lambda: len(restarts(folder)) == 6, run)
    (tmp_path / "hang").unlink()
    output, _ = run.communicate(timeout=HANGING_SECONDS)
    assert run.returncode == 0, output
    assert "restart 6 of 6" in output

    *stopped, waiting = restarts(folder)
    for event, (name, _) in zip(stopped, HANGS, strict=True):
        assert f"stopped: {name} (process " in event["cause"]
        assert event["kind"] == "stalled"
        assert event["seconds_lost"] > STALL_SECONDS
    assert "RewardLoopWorker" in waiting["cause"]
    assert "is in compute_score (stubborn_reward.py:" in waiting["cause"]
    assert_reports(folder)
    assert_every_step_once(folder, tmp_path, steps)
    assert complete_checkpoints(folder / "checkpoints")[-1] == steps
    assert read_heartbeats(folder)[ACTOR]["count"] > 0
    assert_nothing_is_left({}, folder)


def test_a_reward_that_raises_once_is_tried_again_and_one_that_always_does_is_not(fork_server, tmp_path):
    folder = experiment("test_raises")
    run = start(folder, fork_server, tmp_path, 12, 5, STALL_SECONDS)
    for healed in (True, False):
        before = len(restarts(folder))
        wait_until(lambda: last_step(folder) >= (3 if healed else 7), run)  # noqa: B023
        (tmp_path / "raise").touch()
        wait_until(lambda: len(restarts(folder)) > before, run)  # noqa: B023
        if healed:
            (tmp_path / "raise").unlink()
    output, _ = run.communicate(timeout=HANGING_SECONDS)
    assert run.returncode == 1, output
    last = read_events(folder)[-1]
    assert (last["event"], last["kind"]) == ("failure", "failed")
    assert "the reward has broken down" in last["cause"]
    assert f"not started again: it ended in the same way twice after step {last['step']}" in output
    # Three where a step after the checkpoint was lost, so that the second failure is after an earlier step.
    assert output.count("restart ") in (2, 3), output
    with contextlib.suppress(FileNotFoundError):
        assert not list((folder / "stalls").iterdir()), "a failure is no hang"
