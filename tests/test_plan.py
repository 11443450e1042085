"""The estimate reproduces the paper's run and scales as it should; wrong use is one line."""

import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache

import pytest
from omegaconf import OmegaConf

from recipe.compose import CONFIG_FOLDER, compose
from recipe.memory import GIB, model_shape, parameters, phases
from recipe.paper import BACKBONES
from recipe.plan import (
    GPUS,
    MEASURED,
    Estimate,
    Lengths,
    Utilization,
    estimate,
    gpu_type,
    ideal_seconds,
    read_measured,
    step_seconds,
    utilization,
)

SHAPES = {model: backbone["shape"] for model, backbone in BACKBONES.items()}


@cache
def composed(name: str):
    return compose(name, [], "cuda")


def planned(gpus: int, gpu: str, *overrides: str, name: str = "justrl_deepseek") -> Estimate:
    return estimate(OmegaConf.merge(composed(name), OmegaConf.from_dotlist(list(overrides))), gpu, gpus)


def expected_seconds(*args, **kwargs) -> float:
    return planned(*args, **kwargs).scenarios["expected"]["seconds per step"]


def test_paper_is_reproduced():
    expected = planned(32, "A800-80GB").scenarios["expected"]
    assert expected["seconds per step"] == pytest.approx(296, rel=0.01)
    assert expected["days"] == pytest.approx(15, rel=0.01)
    assert expected["GPU hours"] == pytest.approx(11_500, rel=0.01)


@pytest.mark.parametrize("gpu", [name for name, gpu in GPUS.items() if gpu.gib > 70])
@pytest.mark.parametrize("gpus", [8, 32])
@pytest.mark.parametrize("name", ["justrl_deepseek", "justrl_nemotron"])
def test_shipped_configs_fit_and_the_range_holds_the_estimate(name, gpus, gpu):
    cost = planned(gpus, gpu, name=name)
    assert cost.fits
    assert cost.needed_bytes / GIB <= GPUS[gpu].gib
    assert cost.memory_bytes["generation"]["KV cache"] / GIB > 20
    low, middle, high = (cost.scenarios[key]["days"] for key in ("low", "expected", "high"))
    assert low < middle < high


def test_one_gpu_fits_only_with_offload_or_a_smaller_rollout():
    assert not planned(1, "H100-80GB").fits
    offload = [f"actor_rollout_ref.actor.fsdp_config.{part}_offload=true" for part in ("param", "optimizer")]
    assert planned(1, "H100-80GB", *offload).fits
    assert planned(1, "H100-80GB", "actor_rollout_ref.rollout.gpu_memory_utilization=0.7").fits


def test_scaling():
    assert expected_seconds(32, "A100-80GB") > expected_seconds(32, "H100-80GB") > expected_seconds(32, "H200")
    halves = expected_seconds(16, "H100-80GB") / expected_seconds(32, "H100-80GB")
    assert 1.2 < halves < 2  # the longest response takes as long on any number of GPUs
    shorter = expected_seconds(32, "H100-80GB", "data.max_response_length=7680")
    assert shorter < expected_seconds(32, "H100-80GB") / 2  # attention is quadratic
    fewer = expected_seconds(32, "H100-80GB", "actor_rollout_ref.rollout.n=4")
    assert expected_seconds(32, "H100-80GB") / 2 < fewer < expected_seconds(32, "H100-80GB")


def test_checkpoints_on_disk():
    one = parameters(SHAPES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]) * 12 / 1e9
    kept = {
        "": 5,
        "trainer.max_actor_ckpt_to_keep=null": 87,
        "trainer.total_training_steps=60": 1,
        "trainer.save_freq=-1": 0,
    }
    for override, count in kept.items():
        assert planned(8, "H200", *override.split()).checkpoint_bytes / 1e9 == pytest.approx(count * one)


def test_backbones_have_the_published_numbers_of_parameters():
    assert [parameters(model) for model in SHAPES.values()] == [1_777_088_000, 1_543_714_304]


def test_formula_counts_a_real_model(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, intermediate_size=80, vocab_size=100, tie_word_embeddings=False)
    config.save_pretrained(tmp_path)
    real = sum(tensor.numel() for tensor in Qwen2ForCausalLM(config).parameters())
    assert parameters(model_shape(str(tmp_path))) == real


PRESETS = {"one_24gb": (1, "A10-24GB"), "one_80gb": (1, "H100-80GB"), "h100_8": (8, "H100-80GB")}
PRESETS["a100_32"] = (32, "A100-80GB")


def test_every_preset_fits_the_machine_that_it_is_named_after():
    folder = CONFIG_FOLDER / "hardware"
    assert {path.stem for path in folder.glob("*.yaml")} == PRESETS.keys()
    for preset, (gpus, gpu) in PRESETS.items():
        for name in ("justrl_deepseek", "justrl_nemotron"):
            config = compose(name, [f"+hardware={preset}"], "cuda")
            assert config.trainer.nnodes * config.trainer.n_gpus_per_node == gpus
            assert estimate(config, gpu, gpus).fits, preset


@pytest.mark.parametrize(
    ("gpus", "phase", "gigabytes"),
    [(1, "update", 54), (8, "update", 29.5), (1, "weight transfer", 34.1), (8, "weight transfer", 11)],
)
def test_the_memory_of_a_phase_matches_a_sum_by_hand(gpus, phase, gigabytes):
    """1.78 billion parameters, 32,768 tokens, nothing offloaded; summed by hand from verl 0.9.1's source."""
    found = phases(composed("justrl_deepseek"), SHAPES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"], 80 * GIB, gpus)
    assert sum(found[phase].values()) / 1e9 == pytest.approx(gigabytes, rel=0.1)


def test_offloading_moves_what_it_names():
    shape = SHAPES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]

    def parts(*overrides, gpus=8):
        return phases(compose("justrl_deepseek", list(overrides), "cuda"), shape, 80 * GIB, gpus)

    fsdp = "actor_rollout_ref.actor.fsdp_config"
    offloaded = parts(f"{fsdp}.param_offload=true", f"{fsdp}.optimizer_offload=true")
    assert (offloaded["generation"]["weights"], offloaded["generation"]["optimizer"]) == (0, 0)
    assert offloaded["update"] == parts()["update"], "they return for the update"
    alone = parts(f"{fsdp}.param_offload=true", gpus=1)
    assert alone["generation"]["weights"] > 7e9, "FSDP 1 on one GPU keeps them"
    in_host = parts("+hardware=one_24gb", gpus=1)
    assert in_host["update"]["weights"] == in_host["update"]["optimizer"] == in_host["generation"]["weights"] == 0


def test_measured_utilizations_take_the_place_of_assumed_ones(tmp_path):
    """A step that took what is estimated, at one length for all responses, gives the utilizations back."""
    config, shape = composed("justrl_deepseek"), SHAPES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]
    ideal = ideal_seconds(config, shape, GPUS["H100-80GB"], Lengths(32, 15360, 15360, 15360**2), 40 * GIB)
    reached = Utilization(generation=0.25, training=0.4)
    found = utilization(ideal, step_seconds(ideal, reached))
    assert found == pytest.approx(reached)
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"gpu": "H100-80GB", "utilization": found._asdict()}))
    assumed = planned(8, "A100-80GB")
    measured = estimate(compose("justrl_deepseek", [], "cuda"), "H100-80GB", 8, read_measured(path, "H100-80GB"))
    spread = [cost.scenarios["high"]["days"] / cost.scenarios["low"]["days"] for cost in (assumed, measured)]
    assert spread[1] < spread[0] / 1.5, "what is measured is no reason for a range"
    published = planned(8, "H100-80GB").scenarios
    assert published["expected"]["generation, % of bandwidth"] == 100 * MEASURED["H100-80GB"].generation
    assert published["high"]["training, % of FLOP/s"] < published["low"]["training, % of FLOP/s"]
    with pytest.raises(ValueError, match="was measured on H100-80GB, not H200"):
        read_measured(path, "H200")
    path.write_text("{}")
    with pytest.raises(ValueError, match="no result of python -m benchmarks"):
        read_measured(path, "H100-80GB")


def test_gpu_types_are_found_by_nvml_names():
    assert gpu_type("NVIDIA H100 80GB HBM3") == "H100-80GB"
    assert gpu_type("NVIDIA A100-SXM4-80GB") == "A100-80GB"
    assert gpu_type("NVIDIA A800-SXM4-80GB") == "A800-80GB"
    assert gpu_type("NVIDIA H200") == "H200"
    assert gpu_type("NVIDIA A10") == "A10-24GB"
    assert gpu_type("NVIDIA A100-PCIE-40GB") is None
    assert gpu_type("NVIDIA L40S") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8", "--gpu", "V100"], "unknown GPU 'V100'; there are A800-80GB"),
        (["--gpus", "0", "--gpu", "H200"], "--gpus and trainer.total_training_steps must be at least 1"),
        (["--gpus", "3", "--gpu", "H200"], "does not divide by 3 ranks"),
        (
            ["--gpus", "8", "--gpu", "H200", "actor_rollout_ref.model.path=no/model"],
            "model.path=no/model: not a folder",
        ),
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
    assert found == asdict(planned(8, "H200", name="justrl_nemotron"))


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "1536"}, {"num_attention_heads": 0}, {"vocab_size": None}, {"num_key_value_heads": 1e9}, None],
)
def test_a_malformed_shape_is_one_line(tmp_path, changes):
    shape = {"model_type": "qwen2", **SHAPES["nvidia/OpenMath-Nemotron-1.5B"]}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert model_shape(str(tmp_path)) == shape
    (tmp_path / "config.json").write_text(json.dumps(shape | changes if changes else [shape]))
    with pytest.raises(ValueError, match=r"^actor_rollout_ref\.model\.path=.*: not a folder of a Qwen2 or Llama; "):
        model_shape(str(tmp_path))


@pytest.mark.parametrize("generation", [0, -0.5, "0.5", None, [0.5]])
def test_a_malformed_measurement_is_one_line(tmp_path, generation):
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"gpu": "H200", "utilization": {"generation": generation, "training": 0.2}}))
    with pytest.raises(ValueError, match=r"long\.json: no result of python -m benchmarks\.gpu long"):
        read_measured(path, "H200")


def test_a_window_that_the_model_sets_can_be_planned():
    assert planned(8, "H100-80GB", "actor_rollout_ref.rollout.max_model_len=null").fits
