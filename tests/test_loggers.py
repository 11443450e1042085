"""Weights & Biases: one switch, one id for a run however often it is started; TensorBoard after a resume."""

import os
import subprocess
import time

import pytest
from omegaconf import OmegaConf

from recipe.compose import compose
from recipe.monitor.loggers import purge_tensorboard, use_file, use_wandb, wandb_environment
from tests.conftest import HANGING_SECONDS, ROOT


@pytest.fixture
def config():
    """Make a config with the loggers of justrl.yaml."""
    return OmegaConf.create({"trainer": {"logger": ["console", "file", "tensorboard"]}})


def test_without_the_switch_nothing_changes(config, tmp_path, monkeypatch):
    monkeypatch.delenv("JUSTRL_WANDB", raising=False)
    use_wandb(config)
    assert config.trainer.logger == ["console", "file", "tensorboard"]
    assert wandb_environment(config, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_switch_adds_the_logger_and_a_permanent_id(config, tmp_path, monkeypatch):
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
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 2
    assert done.stderr == "recipe.train: JUSTRL_WANDB=ofline: use online or offline\n"


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    def log(steps, value):
        with SummaryWriter(tmp_path) as writer:
            for step in steps:
                writer.add_scalar("loss", value, step)

    purge_tensorboard(tmp_path / "absent", 0)
    log(range(1, 8), 1.0)
    time.sleep(1)  # TensorBoard reads files in the order of the seconds in their names
    purge_tensorboard(tmp_path, 5)
    time.sleep(1)
    log(range(6, 10), 2.0)
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(s, 1.0 if s < 6 else 2.0) for s in range(1, 10)]


@pytest.mark.parametrize(
    ("override", "loggers"),
    [
        ("[console]", ["console", "file"]),
        ("console", ["console", "file"]),
        ("[console,wandb]", ["console", "wandb", "file"]),
        ("[]", ["file"]),
        ("file", "file"),
        ("[file,console]", ["file", "console"]),
        ("vemlp_wandb", ["vemlp_wandb", "file"]),
    ],
)
def test_an_override_of_the_loggers_keeps_the_file_that_the_metrics_come_from(override, loggers, capsys):
    config = compose("demo", [f"trainer.logger={override}"], "cpu")
    use_file(config)
    assert config.trainer.logger == loggers
    assert ("added file to trainer.logger" in capsys.readouterr().out) == ("file" not in override)


def test_a_single_logger_takes_wandb_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTRL_WANDB", "offline")
    config = compose("demo", ["trainer.logger=console"], "cpu")
    use_wandb(config)
    assert config.trainer.logger == ["console", "wandb"]
    config.trainer.logger = "vemlp_wandb"
    assert wandb_environment(config, tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a b", b"null\nnull", b"\0\0"])
def test_a_damaged_id_is_one_line_and_another_run_is_not_begun(config, tmp_path, content):
    config.trainer.logger.append("wandb")
    (tmp_path / "wandb.id").write_bytes(content)
    with pytest.raises(ValueError, match=r"wandb\.id: damaged; write the run's id on W&B into it, or remove it"):
        wandb_environment(config, tmp_path)
    (tmp_path / "wandb.id").write_text("abcd1234\n")
    assert wandb_environment(config, tmp_path)["WANDB_RUN_ID"] == "abcd1234"
