"""The terminal view as a user runs it: once, followed in a terminal, and on folders that are not a run's."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from common.locks import lock_holder, run_lock
from recipe.watch import details, follow, headline, read_run
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_checkpoints import checkpoint

CASE = ROOT / "tests" / "cases" / "metrics.jsonl"
WATCH = [sys.executable, "-m", "recipe.watch"]


@pytest.fixture
def folder(tmp_path):
    """Make a run of 4 steps that has logged its validation before training and step 2, and saved step 2."""
    run = tmp_path / "tried"
    (run / "checkpoints").mkdir(parents=True)
    config = {"trainer": {"total_training_steps": 4}, "data": {"max_response_length": 64}}
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")
    shutil.copy(CASE, run / "metrics.jsonl")
    checkpoint(run / "checkpoints", 2)
    return run


def watch(*arguments):
    """Run the command with its output in a pipe."""
    return subprocess.run(
        [*WATCH, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=HANGING_SECONDS
    )


def test_once_shows_values_checkpoint_and_that_nothing_runs(folder):
    done = watch(folder, "--once")
    assert done.returncode == 0, done.stderr
    assert "tried: step 2 of 4; not running; last complete checkpoint 2" in done.stdout
    rows = {line.split("  ")[0]: line.split()[-3:] for line in done.stdout.splitlines()}
    assert rows["mean reward"] == ["2", "-0.359", "-0.359"]
    assert rows["policy entropy (nats)"] == ["2", "0.245", "0.245"]
    assert rows["fraction of responses truncated"] == ["2", "0.000", "0.000"]
    assert rows["rollout-trainer mismatch (probability)"] == ["2", "0.00183", "0.00183"]
    assert rows["validation demo_arithmetic avg@4"] == ["2", "0.594", "0.453"]
    assert watch(folder).stdout == done.stdout, "a pipe is not a terminal, so nothing is followed"


def test_the_papers_run_has_bands_published_scores_and_warnings(folder):
    paper = {
        "trainer": {"total_training_steps": 4380},
        "actor_rollout_ref": {"model": {"path": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"}},
        "data": {"max_response_length": 15360},
        "reward": {"custom_reward_function": {"path": "reward/justrl.py"}},
    }
    OmegaConf.save(OmegaConf.create(paper), folder / "config.yaml")
    step = json.loads(CASE.read_text().splitlines()[1])["data"] | {"val-core/AIME24/acc/mean@32": 0.3}
    lines = [json.dumps({"step": number, "data": step}) for number in range(1, 7)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 7, "da')
    out = watch(folder).stdout
    assert "1.000 to 2.400" in out
    assert [line.split()[-4:] for line in out.splitlines() if "AIME24" in line] == [["6", "0.300", "0.300", "0.286"]]
    assert out.count("warning: step 5: ") == 3, "entropy below band and limit, and length"


def test_only_the_newest_warnings_are_shown(folder):
    step = json.loads(CASE.read_text().splitlines()[1])["data"]
    cut_off = step | {"response_length/max": 64.0, "response_length/clip_ratio": 1.0}
    lines = [json.dumps({"step": n, "data": cut_off if n // 20 % 2 else step}) for n in range(1, 241)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    out = watch(folder).stdout
    assert "2 earlier warnings are in" in out
    assert [line.split(":")[1] for line in out.splitlines() if line.startswith("warning")] == [
        f" step {n}" for n in (102, 142, 182, 222)
    ]


def test_a_live_run_is_told_from_a_dead_one(folder):
    with run_lock(folder):
        assert f"process {os.getpid()} on" in lock_holder(folder).text
        out = watch(folder).stdout
        assert f"running (process {os.getpid()} on" in out
        assert "step 2 of 4, 7.1 s/step, 14 s left" in out
        with pytest.raises(ValueError, match="in progress"), run_lock(folder):
            pass  # looking must not have released the lock
    assert lock_holder(folder) == (False, "")
    assert "; not running; last" in watch(folder).stdout
    (folder / "run.lock").write_text("process 7 on elsewhere since 2026-01-01 00:00:00\n")
    assert "running (process 7 on elsewhere since" in watch(folder).stdout
    os.utime(folder / "run.lock", (1, 1))
    assert "not running, ended abnormally (process 7 on elsewhere since" in watch(folder).stdout


def test_a_run_without_metrics_is_one_clear_line(folder):
    (folder / "metrics.jsonl").unlink()
    done = watch(folder)
    assert done.returncode == 0
    assert done.stdout.startswith("tried: no metrics yet; not running")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("outputs/never_started", "no such folder; see ls outputs"),
        ("tests", "has no run's config.yaml, so none was started there"),
    ],
)
def test_a_folder_that_is_not_a_runs_is_one_line_and_status_2(path, message):
    done = watch(path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


CONFIGS = ["", "null", "data: [1,", "data: 5", "data: {max_response_length: x}", "- 1", "1", "data: ${x}", "\0"]
RESTS = ["trainer: {total_training_steps: x}", "reward: {reward_kwargs: [1]}", "actor_rollout_ref: [1]"]
LIMIT = "data: {max_response_length: 64}\n"


@pytest.mark.parametrize("content", [*CONFIGS, *(LIMIT + rest for rest in RESTS)])
def test_a_config_that_cannot_be_read_is_one_line_with_the_fix(folder, content):
    path = folder / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path}: damaged \(.*\); each start of the run writes it anew$"):
        read_run(folder)


def test_a_config_that_cannot_be_read_is_status_2(folder):
    (folder / "config.yaml").write_text("data: [1,")
    done = watch(folder)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", [LIMIT, f"{LIMIT}trainer:", f"{LIMIT}reward: 5"])
def test_a_config_with_the_limit_alone_is_enough(folder, content):
    (folder / "config.yaml").write_text(content)
    assert headline(read_run(folder)).startswith("tried: step 2 of ?; not running")
    assert details(read_run(folder))


@pytest.mark.parametrize(
    "line", ["null", '{"step": "3", "data": {}}', '{"step": 3, "data": {"critic/score/mean": "x"}}']
)
def test_damaged_lines_are_named_and_the_others_are_shown(folder, line):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(f"{line}\n[]\n")
    before = (folder / "metrics.jsonl").read_bytes()
    run = read_run(folder)
    assert "step 2 of 4" in headline(run)
    (text,) = (str(part) for part in details(run) if str(part).startswith("warning: left out"))
    assert text.startswith(f"warning: left out: {folder}/metrics.jsonl, line 3: ")
    assert text.endswith(" (and 1 more damaged lines)")
    assert (folder / "metrics.jsonl").read_bytes() == before, "it only reads"


def test_a_line_that_is_being_written_is_not_damaged(folder):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "da')
    with run_lock(folder):
        assert not read_run(folder).damaged
    assert read_run(folder).damaged


def test_null_and_missing_numbers_are_no_tracebacks(folder):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "data": {"critic/score/mean": null, "val-core/[/a]/acc/mean@4": 0.5}}\n')
    done = watch(folder)
    assert done.returncode == 0, done.stderr
    assert "validation [/a] avg@4" in done.stdout


def test_values_are_computed_again_only_when_the_metrics_change(folder, monkeypatch):
    computed, rounds = [], iter([None, lambda: log_step(folder, 3), None, lambda: log_step(folder, 4)])
    monkeypatch.setattr("recipe.watch.details", lambda run: computed.append(max(run.by_step)) or [])
    monkeypatch.setattr("recipe.watch.time.sleep", lambda seconds: (next(rounds) or (lambda: None))())
    follow(folder, Console(file=io.StringIO()))
    assert computed == [2, 3, 4]


def read_until(terminal, text, seconds=HANGING_SECONDS):
    """Read from a terminal until `text` appears; fail if it does not."""
    seen, end = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < end, f"no {text!r} in {seen!r}"
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536).decode()
    return seen


@pytest.fixture
def followed(folder):
    """Start the command, which follows the run in a terminal of its own, and return both."""
    ours, its = pty.openpty()
    env = os.environ | {"COLUMNS": "120", "LINES": "50", "TERM": "xterm"}
    # A new process group that takes interrupts, where the suite ignores them.
    enable = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    process = subprocess.Popen(
        [*WATCH, str(folder)], cwd=ROOT, stdin=its, stdout=its, stderr=its, env=env, preexec_fn=enable
    )
    yield process, ours
    process.kill()
    process.wait()
    os.close(its)
    os.close(ours)


def log_step(folder, step):
    """Append a step's metrics, as a run does."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "data": json.loads(CASE.read_text().splitlines()[1])["data"]}) + "\n")


def test_it_follows_and_an_interrupt_ends_it(folder, followed):
    process, terminal = followed
    read_until(terminal, "step 2 of 4")
    log_step(folder, 3)
    read_until(terminal, "step 3 of 4")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=HANGING_SECONDS) == 0
    assert "Traceback" not in read_until(terminal, "\x1b[?25h"), "the cursor is shown again"


def test_it_ends_with_the_run(folder, followed):
    process, terminal = followed
    read_until(terminal, "step 2 of 4")
    log_step(folder, 4)
    read_until(terminal, "step 4 of 4")
    assert process.wait(timeout=HANGING_SECONDS) == 0
