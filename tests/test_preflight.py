"""Each thing that a run lacks is found before anything starts, and named in one line."""

import shutil
from collections import namedtuple

import numpy
import pytest
from safetensors.numpy import save_file

from data_prep.demo import problems as demo
from data_prep.rows import row, write_rows
from recipe import preflight
from recipe.compose import compose

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def ready(tmp_path):
    """A demo config whose data, model and folders are all there."""
    demo.write(tmp_path, train=64, test=8)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    save_file({"w": numpy.zeros((1000, 500), "float32")}, model / "model.safetensors")
    overrides = [
        f"data.train_files={tmp_path}/train.parquet",
        f"data.val_files={tmp_path}/test.parquet",
        f"actor_rollout_ref.model.path={model}",
        f"trainer.default_local_dir={tmp_path}/run/checkpoints",
    ]
    return tmp_path, overrides


def problem(overrides, *more):
    """Return the one line that the checks raise."""
    with pytest.raises(ValueError) as caught:
        preflight.check(compose("demo", [*overrides, *more], "cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_there(ready):
    preflight.check(compose("demo", ready[1], "cpu"))


def test_data(ready):
    assert "no such file" in problem(ready[1], "data.train_files=absent.parquet")
    truncated = ready[0] / "truncated.parquet"
    truncated.write_bytes((ready[0] / "train.parquet").read_bytes()[:-50])
    assert "truncated" in problem(ready[1], f"data.val_files={truncated}")
    write_rows(ready[0] / "few.parquet", [row("demo", "p", "1", 0, "train")], {})
    assert "lower data.train_batch_size to 1" in problem(ready[1], f"data.train_files={ready[0]}/few.parquet")


def test_model(ready):
    assert "has no model" in problem(ready[1], "actor_rollout_ref.model.path=null")
    assert "no such folder" in problem(ready[1], "actor_rollout_ref.model.path=/no/such/model")
    (ready[0] / "model" / "config.json").write_text('{"max_position_embeddings": 100}')
    assert "its context is 100 tokens" in problem(ready[1])
    (ready[0] / "model" / "tokenizer.json").unlink()
    assert "has no tokenizer" in problem(ready[1])
    (ready[0] / "model" / "config.json").unlink()
    assert "has no config.json" in problem(ready[1])


def test_reward_and_batch(ready):
    assert "no such file" in problem(ready[1], "reward.custom_reward_function.path=reward/absent.py")
    assert "has no function score" in problem(ready[1], "reward.custom_reward_function.name=score")
    mistyped = "+reward.custom_reward_function.reward_kwargs.windw=50"
    assert "has no option windw; there are" in problem(ready[1], mistyped)
    assert "is not a multiple" in problem(ready[1], "actor_rollout_ref.actor.ppo_mini_batch_size=12")
    assert "larger than" in problem(ready[1], "actor_rollout_ref.actor.ppo_mini_batch_size=64")


def test_lengths_and_steps(ready):
    assert "max_model_len allows 100 tokens" in problem(ready[1], "actor_rollout_ref.rollout.max_model_len=100")
    tokens = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
    assert f"{tokens} allows 127 tokens" in problem(ready[1], f"{tokens}=127")
    preflight.check(compose("demo", [*ready[1], f"{tokens}=128"], "cpu"))
    longer = "actor_rollout_ref.rollout.custom.validation_response_length=65"
    assert "max_model_len allows 128 tokens, and prompt plus response may have 129" in problem(ready[1], longer)
    preflight.check(compose("demo", [*ready[1], longer, "actor_rollout_ref.rollout.max_model_len=129"], "cpu"))
    assert "end after 18 steps" in problem(ready[1], "trainer.total_epochs=9")


def test_ray_cpus(ready):
    assert preflight.ray_cpus_needed(compose("demo", ready[1], "cpu")) == 6
    assert "set ray_kwargs.ray_init.num_cpus=6" in problem(ready[1], "ray_kwargs.ray_init.num_cpus=5")
    preflight.check(compose("demo", [*ready[1], "ray_kwargs.ray_init.num_cpus=6"], "cpu"))


def test_disk(ready, monkeypatch):
    assert preflight.count_parameters(str(ready[0] / "model")) == 500_000
    needed = 5 * 500_000 * preflight.BYTES_PER_PARAMETER
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 1, needed - 1))
    assert "GB needed for 5 checkpoints" in problem(ready[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 0, needed))
    preflight.check(compose("demo", ready[1], "cpu"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, needed - 1, needed // 5))
    monkeypatch.setattr(preflight, "complete_checkpoints", lambda folder: [5, 10, 15, 20])
    preflight.check(compose("demo", ready[1], "cpu"))  # a resume: those that are there need no more room
