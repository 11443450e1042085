"""Weights & Biases: one switch, one id for a run however often it is started."""

import os
import shutil
import subprocess

import pytest
from omegaconf import OmegaConf

from recipe.health import UNSCORED
from recipe.resume import read_metrics
from recipe.tracking import use_wandb, wandb_environment
from tests.conftest import ROOT


@pytest.fixture
def config():
    """A config with the loggers of justrl.yaml."""
    return OmegaConf.create({"trainer": {"logger": ["console", "file", "tensorboard"]}})


def test_without_the_switch_nothing_changes(config, tmp_path, monkeypatch):
    monkeypatch.delenv("JUSTRL_WANDB", raising=False)
    use_wandb(config)
    assert config.trainer.logger == ["console", "file", "tensorboard"]
    assert wandb_environment(config, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_switch_adds_the_logger_and_a_lasting_id(config, tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTRL_WANDB", "offline")
    use_wandb(config)
    use_wandb(config)
    assert config.trainer.logger == ["console", "file", "tensorboard", "wandb"]
    first = wandb_environment(config, tmp_path)
    assert first == wandb_environment(config, tmp_path)
    assert (first["WANDB_MODE"], first["WANDB_RESUME"], first["WANDB_DIR"]) == ("offline", "allow", str(tmp_path))
    (tmp_path / "other").mkdir()
    assert wandb_environment(config, tmp_path / "other")["WANDB_RUN_ID"] != first["WANDB_RUN_ID"]


def test_an_override_of_the_loggers_gets_the_same_id(config, tmp_path, monkeypatch):
    monkeypatch.delenv("JUSTRL_WANDB", raising=False)
    config.trainer.logger.append("wandb")
    assert set(wandb_environment(config, tmp_path)) == {"WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR"}


def test_a_mistyped_switch_is_one_line_and_status_2():
    command = [".venv/bin/python", "-m", "recipe.train", "demo"]
    env = os.environ | {"JUSTRL_WANDB": "ofline"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "recipe.train: JUSTRL_WANDB=ofline: use online or offline\n"


@pytest.mark.slow
def test_a_resumed_run_keeps_its_id_and_its_warnings():
    """Responses of at most 4 tokens have no room for a box: the first validation in training warns."""
    folder = ROOT / "outputs" / "test_tracking"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        ["./run_justrl.sh", "demo", "--only", "data"], cwd=ROOT, check=True, capture_output=True, timeout=900
    )
    sizes = ["data.val_max_samples=8", "data.max_response_length=4", "trainer.save_freq=5", "trainer.test_freq=5"]
    command = [".venv/bin/python", "-m", "recipe.train", "demo", "trainer.experiment_name=test_tracking", *sizes]
    env = os.environ | {"JUSTRL_WANDB": "offline"}
    outputs = []
    for steps in (5, 6):
        started = [*command, f"trainer.total_training_steps={steps}"]
        done = subprocess.run(started, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)

    run_id = (folder / "wandb.id").read_text()
    starts = sorted(path.name for path in (folder / "wandb").glob("offline-run-*"))
    assert [name.rsplit("-", 1)[1] for name in starts] == [run_id, run_id]
    assert all((folder / "wandb" / name / f"run-{run_id}.wandb").stat().st_size > 1000 for name in starts)
    assert list((folder / "tensorboard").iterdir())

    metrics = read_metrics(folder / "metrics.jsonl")
    assert [step for step in metrics if UNSCORED[0] in metrics[step]] == [1, 2, 3, 4, 5, 6]
    line = "warning: step 5: share of responses unscored"
    assert line in outputs[0]
    assert line not in outputs[1], "what was said before the resume is not said again"
    log = (folder / "train.log").read_text(errors="replace").splitlines()
    assert len([text for text in log if text.startswith(line)]) == 1
