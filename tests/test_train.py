"""What of the supervisor can be seen without a run."""

import io
import json
import os
import signal
import time

import pytest
from omegaconf import OmegaConf

from common.processes import RAY_PATIENCE, ProcessRecord
from recipe import train as training
from recipe.checkpoints import TRACKER
from recipe.compose import compose
from recipe.environment import environment, prepare_config
from recipe.monitor.events import Events, read_events
from recipe.monitor.metrics import format_metrics, read_metrics
from recipe.supervise import Progress, Result, follow, signals_held
from recipe.train import FILES, STOPPING_SIGNALS, Interrupted, changed_keys, interrupt, shortened, train
from tests.test_checkpoints import checkpoint, folders, log


@pytest.fixture
def handlers():
    """The handlers of signals, put back after the test: what is ignored here, every later child would ignore."""
    before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_an_interrupt_crosses_a_library_that_rewrites_errors():
    OmegaConf.register_new_resolver("interrupt", lambda: interrupt(signal.SIGTERM, None))
    config = OmegaConf.create({"value": "${interrupt:}"})
    with pytest.raises(Interrupted, match=r"^SIGTERM$"):
        config["value"]
    assert {signal.getsignal(number) for number in STOPPING_SIGNALS} == {signal.SIG_IGN}, "a second one is no matter"


@pytest.mark.usefixtures("handlers")
def test_an_interrupt_while_processes_are_ended_comes_after_that():
    """Else a restart would follow what the user wanted to end."""
    ended = []

    def end_processes():
        with signals_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            ended.append("all")

    for number in STOPPING_SIGNALS:
        signal.signal(number, interrupt)
    with pytest.raises(Interrupted, match=r"^SIGINT$"):
        end_processes()
    assert ended == ["all"]


@pytest.fixture
def alone(monkeypatch):
    """No Ray cluster, and nothing of Ray's in the environment."""
    for name in ("RAY_ADDRESS", "JUSTRL_FORK_SERVER", *RAY_PATIENCE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_a_slow_machine_has_time_to_start_ray(tmp_path, monkeypatch):
    config = compose("demo", [], "cpu")
    assert RAY_PATIENCE.items() <= environment(config, tmp_path).items()
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "5")
    assert environment(config, tmp_path)["RAY_raylet_start_wait_time_s"] == "5", "what the user set stays"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    prepare_config(config, 0)
    of_workers = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert of_workers["TQ_STORAGE_HANDSHAKE_TIMEOUT"] == RAY_PATIENCE["TQ_STORAGE_HANDSHAKE_TIMEOUT"], "on clusters too"


@pytest.mark.usefixtures("alone")
def test_ray_is_given_the_cpus_that_verl_waits_for():
    config = compose("justrl_deepseek", [], "cuda")
    prepare_config(config, 0)
    assert config.ray_kwargs.ray_init.num_cpus == max(os.cpu_count(), 32 * 3 + 1 + 8 + 1), "logical ones"
    config = compose("demo", [], "cpu")
    prepare_config(config, 0)
    assert (config.ray_kwargs.ray_init.num_cpus, config.ray_kwargs.ray_init.num_gpus) == (8, 1)
    config = compose("demo", ["+arms=distillation", "ray_kwargs.ray_init.num_cpus=20"], "cpu")
    prepare_config(config, 0)
    assert (config.ray_kwargs.ray_init.num_cpus, config.ray_kwargs.ray_init.num_gpus) == (20, 2), "and the teacher's"


@pytest.mark.usefixtures("alone")
def test_an_optimizer_in_host_memory_has_the_cpus_threads(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    preset = compose("justrl_deepseek", ["+hardware=one_24gb"], "cuda")
    assert environment(preset, tmp_path)["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(preset, tmp_path)["OMP_NUM_THREADS"] == "3", "what the user set stays"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in environment(compose("justrl_deepseek", [], "cuda"), tmp_path)


@pytest.fixture
def run(tmp_path):
    """Compose the demo's config with a folder of its own."""
    return compose("demo", [f"trainer.default_local_dir={tmp_path}/run/checkpoints"], "cpu")


def test_a_finished_run_without_metrics_is_not_trained_again(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "supervise", lambda *_: pytest.fail("it must not start"))
    checkpoint(tmp_path / "run" / "checkpoints", 10)
    checkpoint(tmp_path / "run" / "checkpoints", 20)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert train(run) == 0
    assert f"training already finished: {tmp_path}/run has step 20" in capsys.readouterr().out
    assert folders(tmp_path / "run" / "checkpoints") == ["global_step_10", "global_step_20"]


@pytest.mark.parametrize("path", ["", "run", "run/checkpoints", "run/tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_one_line(run, tmp_path, path):
    run.trainer.default_local_dir = f"{tmp_path}/x/run/checkpoints"
    place = tmp_path / "x" / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    with pytest.raises(ValueError, match=f"^{place}: the run needs a folder there; move it away$"):
        train(run)
    assert place.read_text() == "mine"


@pytest.mark.parametrize("name", [*FILES, "attempt.jsonl", f"checkpoints/{TRACKER}"])
def test_a_folder_in_the_place_of_a_file_is_one_line(run, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'run' / name}: the run needs a file there; move it away$"):
        train(run)


@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b"12", b"data: [1,", b"\xff\xfe", b"data: 5", b"abc", b"\0"])
def test_a_damaged_config_of_the_last_start_is_named(run, tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: damaged .*; each start of the run writes it anew$"):
        changed_keys(path, run)


def test_changed_keys_are_listed_up_to_a_number(run, tmp_path):
    path = tmp_path / "config.yaml"
    assert changed_keys(path, run) == []
    OmegaConf.save(run, path)
    assert changed_keys(path, run) == []
    changed = run.copy()
    changed.data.train_batch_size = 64
    assert shortened(changed_keys(path, changed)) == "data.train_batch_size"
    path.write_text("data:\n  max_response_length: 64\n")  # truncated at the end of a line
    assert shortened(changed_keys(path, run)).endswith(" more")
    assert len(shortened(changed_keys(path, run))) < 2000


def test_progress_waits_for_the_rest_of_a_line_that_verl_is_writing(run, tmp_path, capsys):
    checkpoint(tmp_path / "run" / "checkpoints", 1)
    progress = Progress(run, None, io.StringIO(), None)
    line = format_metrics({1: {"critic/score/mean": 0.5, "timing_s/step": 2.0}})
    progress.attempt.write_text(line[:-20])
    progress.collect()
    assert capsys.readouterr().out == ""
    progress.attempt.write_text(line + "null\n")
    progress.collect(last=True)
    assert "step    1/20  reward +0.500" in capsys.readouterr().out
    assert list(read_metrics(progress.metrics_path)) == [1]


def test_a_start_removes_no_checkpoint_whose_line_is_damaged(run, tmp_path):
    saved, metrics = tmp_path / "run" / "checkpoints", tmp_path / "run" / "metrics.jsonl"
    for step in (5, 10, 15, 20):
        checkpoint(saved, step)
    log(metrics, [*range(10), *range(11, 21)])
    Progress(run, 1, io.StringIO(), None)
    assert folders(saved) == ["global_step_10", "global_step_20"]


def test_a_damaged_step_in_verls_file_is_left_for_the_next_start(run, tmp_path, monkeypatch, capsys):
    """The run ends, its damaged line stays in verl's file, and the next start keeps it aside."""
    progress = Progress(run, None, io.StringIO(), None)
    driver = type("Driver", (), {"poll": lambda self: 0, "returncode": 0})()
    for content, left in (('{"step": 1, "data": {}}\n', False), ('{"step": 2, "data": {}}\nnull\n', True)):
        progress.attempt.parent.mkdir(exist_ok=True)
        progress.attempt.write_text(content)
        assert follow(driver, None, progress, Events(tmp_path / "run"), {}) is None
        assert progress.attempt.exists() == left
    monkeypatch.setattr(training, "supervise", lambda *_: Result(0))
    train(run)
    assert "attempt.jsonl, line 2: is no JSON object; moved to" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / training.DISCARDED).open()] == [1, 2]


def test_a_start_records_what_it_ran_with(run, tmp_path, monkeypatch):
    progress, polls = Progress(run, None, io.StringIO(), None), iter([None, None, 0])
    progress.attempt.parent.mkdir(exist_ok=True)
    progress.attempt.write_text('{"step": 1, "data": {}}\n')
    driver = type("Driver", (), {"poll": lambda self: next(polls)})()
    monkeypatch.setattr("recipe.supervise.POLL_SECONDS", 0)
    record, events = ProcessRecord(tmp_path / "run"), Events(tmp_path / "run")
    assert follow(driver, record, progress, events, {"versions": {"verl": "0.9.1"}, "commit": "c0ffee"}) is None
    (event,) = read_events(tmp_path / "run")
    assert (event["event"], event["step"], event["commit"]) == ("started", 1, "c0ffee")
    assert event["versions"] == {"verl": "0.9.1"}
