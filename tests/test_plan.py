"""The plan reproduces the paper's run, scales as it should, and says in one line what it cannot plan."""

import json
import subprocess
import sys
from functools import cache

import pytest
from omegaconf import OmegaConf

from recipe.compose import compose
from recipe.plan import BACKBONES, GPUS, backbone, parameters, plan


@cache
def composed(name: str):
    return compose(name, [], "cuda")


def planned(gpus: int, gpu: str, *overrides: str, name: str = "justrl_deepseek") -> dict:
    return plan(OmegaConf.merge(composed(name), OmegaConf.from_dotlist(list(overrides))), gpu, gpus)


def expected_seconds(*args, **kwargs) -> float:
    return planned(*args, **kwargs)["seconds a step"]["expected"]


def test_paper_is_reproduced():
    found = planned(32, "A800-80GB")
    assert found["seconds a step"]["expected"] == pytest.approx(296, rel=0.01)
    assert found["days"]["expected"] == pytest.approx(15, rel=0.01)
    assert found["GPU hours"]["expected"] == pytest.approx(11_500, rel=0.01)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("gpus", [8, 32])
@pytest.mark.parametrize("name", ["justrl_deepseek", "justrl_nemotron"])
def test_shipped_configs_fit_and_the_range_holds_the_estimate(name, gpus, gpu):
    found = planned(gpus, gpu, name=name)
    assert found["fits"]
    assert found["most at once, GiB"] <= GPUS[gpu][2]
    assert found["generating, GiB"]["KV cache"] > 20
    low, middle, high = (found["days"][key] for key in ("low", "expected", "high"))
    assert low < middle < high


def test_one_gpu_fits_only_with_offload_and_a_smaller_share():
    assert not planned(1, "H100-80GB")["fits"]
    offload = [f"actor_rollout_ref.actor.fsdp_config.{part}_offload=true" for part in ("param", "optimizer")]
    assert planned(1, "H100-80GB", *offload)["fits"]
    assert planned(1, "H100-80GB", "actor_rollout_ref.rollout.gpu_memory_utilization=0.7")["fits"]


def test_scaling():
    assert expected_seconds(32, "A100-80GB") > expected_seconds(32, "H100-80GB") > expected_seconds(32, "H200")
    halves = expected_seconds(16, "H100-80GB") / expected_seconds(32, "H100-80GB")
    assert 1.2 < halves < 2  # the longest response takes as long on any number of GPUs
    shorter = expected_seconds(32, "H100-80GB", "data.max_response_length=7680")
    assert shorter < expected_seconds(32, "H100-80GB") / 2  # attention is quadratic
    fewer = expected_seconds(32, "H100-80GB", "actor_rollout_ref.rollout.n=4")
    assert expected_seconds(32, "H100-80GB") / 2 < fewer < expected_seconds(32, "H100-80GB")


def test_checkpoints_on_disk():
    whole = parameters(BACKBONES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]) * 12 / 1e9
    kept = {
        "": 5,
        "trainer.max_actor_ckpt_to_keep=null": 87,
        "trainer.total_training_steps=60": 1,
        "trainer.save_freq=-1": 0,
    }
    for override, count in kept.items():
        found = planned(8, "H200", *override.split())
        assert found["checkpoints, GB"] == pytest.approx(count * whole)


def test_backbones_have_the_published_numbers_of_parameters():
    assert [parameters(model) for model in BACKBONES.values()] == [1_777_088_000, 1_543_714_304]


def test_formula_counts_a_real_model(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, intermediate_size=80, vocab_size=100, tie_word_embeddings=False)
    config.save_pretrained(tmp_path)
    real = sum(tensor.numel() for tensor in Qwen2ForCausalLM(config).parameters())
    assert parameters(backbone(str(tmp_path))) == real


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8", "--gpu", "V100"], "unknown GPU 'V100'; there are A800-80GB"),
        (["--gpus", "0", "--gpu", "H200"], "--gpus and trainer.total_training_steps must be at least 1"),
        (["--gpus", "3", "--gpu", "H200"], "does not divide by 3 ranks"),
        (["--gpus", "8", "--gpu", "H200", "actor_rollout_ref.model.path=no/model"], "model.path=no/model: no folder"),
        (["--gpus", "8", "--gpu", "H200", "data.max_respons_length=1"], "did you mean data.max_response_length?"),
    ],
)
def test_wrong_use_is_one_line(arguments, message):
    command = [sys.executable, "-m", "recipe.plan", "justrl_deepseek", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_json():
    command = [sys.executable, "-m", "recipe.plan", "justrl_nemotron", "--gpus", "8", "--gpu", "H200", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found == planned(8, "H200", name="justrl_nemotron")
