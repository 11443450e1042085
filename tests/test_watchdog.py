"""When silence counts as a hang, and what is written about one."""

import re
import subprocess
import sys
import time

import psutil
import pytest

from common import patience
from recipe import stacks, watchdog
from recipe.heartbeat import FOLDER, RUN_FILE, SAVE, START, TRAINER, VALIDATION, Heartbeat, read_heartbeats
from recipe.watchdog import LEAST_SECONDS, PATIENT_SECONDS, START_SECONDS, Watchdog


@pytest.fixture
def heartbeat(tmp_path, monkeypatch):
    """The trainer's heartbeat of a run in `tmp_path`."""
    monkeypatch.setenv(RUN_FILE, str(tmp_path / "attempt.jsonl"))
    return Heartbeat(TRAINER)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, in seconds."""
    now = [0.0]
    for module in (patience, watchdog):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def silence(dog, clock, seconds):
    """Look at a run for so long; return the hang that is seen first."""
    until = clock[0] + seconds
    while clock[0] < until:
        clock[0] += patience.LOOK_SECONDS
        if stall := dog.look():
            return stall
    return None


def test_a_generation_without_a_new_response_is_a_hang_and_one_with_is_none(tmp_path, heartbeat, clock):
    dog = Watchdog(tmp_path, tmp_path / "checkpoints", 60)
    for responses in range(5):
        heartbeat.set(phase="generation", step=7, done=f"{responses} responses")
        assert silence(dog, clock, 55) is None
    stall = silence(dog, clock, 60)
    assert str(stall) == "no progress for 60 s during the generation of step 7 (4 responses)"


def test_each_micro_batch_is_progress(tmp_path, heartbeat, clock, monkeypatch):
    actor, dog = Heartbeat("actor"), Watchdog(tmp_path, tmp_path / "checkpoints", 60)
    heartbeat.set(phase="update", step=7)
    for _ in range(5):
        actor.count()
        assert silence(dog, clock, 55) is None
    assert silence(dog, clock, 60).doing["phase"] == "update"


def test_a_checkpoint_that_grows_is_progress(tmp_path, heartbeat, clock):
    saved = tmp_path / "checkpoints" / "global_step_7" / "actor"
    saved.mkdir(parents=True)
    dog = Watchdog(tmp_path, tmp_path / "checkpoints", 60)
    heartbeat.set(phase=SAVE, step=7)
    for size in range(5):
        (saved / "model.pt").write_bytes(bytes(size))
        assert silence(dog, clock, 175) is None
    assert silence(dog, clock, 180)


def test_the_limit_comes_from_the_runs_own_steps_and_is_larger_for_slow_phases(tmp_path):
    dog = Watchdog(tmp_path, tmp_path, None)
    assert dog.limit("update") == LEAST_SECONDS
    assert dog.limit(SAVE) == dog.limit(VALIDATION) == PATIENT_SECONDS
    assert dog.limit(START) == START_SECONDS
    for seconds in (400, 100, 100, 100, 100):
        dog.add_step(seconds)
    assert dog.limit("generation") == 1200
    assert dog.limit(VALIDATION) == 3600
    dog.add_step(100)
    assert dog.limit("generation") == LEAST_SECONDS, "the first of the last five is too old"
    fixed = Watchdog(tmp_path, tmp_path, 20)
    assert fixed.limit("update") == 20
    assert fixed.limit(VALIDATION) == 60
    assert fixed.limit(START) == START_SECONDS, "the steps say nothing about a start"


def test_zero_turns_it_off(tmp_path, heartbeat, clock):
    heartbeat.set(phase="generation", step=1)
    assert silence(Watchdog(tmp_path, tmp_path, 0), clock, 10000) is None


def test_a_supervisor_that_was_stopped_itself_sees_no_hang(tmp_path, heartbeat, clock):
    dog = Watchdog(tmp_path, tmp_path, 60)
    heartbeat.set(phase="generation", step=1)
    assert silence(dog, clock, 30) is None
    clock[0] += 100_000
    assert dog.look() is None


def test_a_heartbeat_on_a_full_disk_disturbs_nobody(tmp_path, heartbeat):
    (tmp_path / FOLDER).write_text("no folder")
    heartbeat.set(phase="update", step=1)
    heartbeat.count()
    assert read_heartbeats(tmp_path) == {}


def test_a_damaged_heartbeat_is_left_out(tmp_path, heartbeat):
    heartbeat.set(phase="update", step=1)
    (tmp_path / FOLDER / "actor").write_text("{")
    assert read_heartbeats(tmp_path) == {TRAINER: {"phase": "update", "step": 1}}


REWARD = """
import time
def compute_score():
    while True:
        time.sleep(0.1)
compute_score()
"""


@pytest.fixture
def hanging(tmp_path):
    """A process that is in a function of a reward's file, and one that is stopped."""
    (tmp_path / "my_reward.py").write_text(REWARD)
    commands = ([str(tmp_path / "my_reward.py")], ["-c", "import time; time.sleep(3600)"])
    processes = [subprocess.Popen([sys.executable, *command]) for command in commands]
    stopped = psutil.Process(processes[1].pid)
    stopped.suspend()
    while stopped.status() != psutil.STATUS_STOPPED:
        time.sleep(0.1)
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_report_has_the_stacks_and_names_a_process_that_is_stopped(tmp_path, heartbeat, hanging):
    heartbeat.set(phase="generation", step=7)
    path, culprit = stacks.write_report(tmp_path, "no progress", str(tmp_path / "my_reward.py"))
    assert re.fullmatch(rf"stopped: \w+ \(process {hanging[1].pid}\)", culprit)
    text = path.read_text()
    assert text.startswith("no progress\n\ntrainer: {'phase': 'generation', 'step': 7}\n")
    assert f"process {hanging[0].pid}, " in text
    assert f"process {hanging[1].pid}, stopped, " in text
    assert "compute_score (" in text
    assert path.parent == tmp_path / stacks.FOLDER


def test_a_report_names_a_reward_that_does_not_return(hanging, tmp_path):
    process = psutil.Process(hanging[0].pid)
    while "compute_score" not in (text := stacks.describe(process)):
        time.sleep(0.1)
    culprit = stacks.culprit(text, str(tmp_path / "my_reward.py"))
    assert culprit.endswith(" is in compute_score (my_reward.py:5)")
    assert f"process {process.pid}" in culprit
    assert stacks.culprit(text, None) == ""


def test_without_py_spy_the_states_are_still_there(hanging, monkeypatch):
    monkeypatch.setattr(stacks.shutil, "which", lambda *_, **__: None)
    text = stacks.describe(psutil.Process(hanging[1].pid))
    assert text.endswith("no stacks: py-spy is not installed")
    assert ", stopped, " in text


def test_an_ended_process_is_left_out():
    process = subprocess.Popen([sys.executable, "-c", ""])
    gone = psutil.Process(process.pid)
    process.wait()
    assert stacks.describe(gone) == ""
