"""What a run costs, before it is started: days, GPU hours, memory of a GPU by part, disk.

example: python -m recipe.plan justrl_deepseek --gpus 8 --gpu H100-80GB [key=value ...]

Training is counted in FLOPs against the GPU's peak, generation in the bytes that decoding must read against its
memory bandwidth. Two utilisations are between that and seconds. The training one is assumed; the generation one is
what then makes the paper's run right, 296 s a step on 32 A800, so it holds validation and all else as well. No part
was measured alone: low and high vary both, and the length of the responses. FSDP is over all GPUs, with gradient
checkpointing, and vLLM sleeps while the model is trained.
"""

import argparse
import json
from pathlib import Path

from omegaconf import DictConfig

from data_prep.command import run
from recipe.compose import compose, config_names
from recipe.preflight import BYTES_PER_PARAMETER, check_batch

GIB = 2**30
GPUS = {  # dense bf16 FLOP/s, memory bytes/s (NVIDIA's data sheets, SXM), GiB that a process can use of 80 and 141 GB
    "A800-80GB": (312e12, 2.039e12, 79),  # an A100 with slower NVLink
    "A100-80GB": (312e12, 2.039e12, 79),
    "H100-80GB": (989e12, 3.35e12, 79),
    "H200": (989e12, 4.8e12, 139),
}
QWEN = {  # from the config.json of Qwen2.5-Math-1.5B, which both backbones derive from
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
BACKBONES = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": QWEN | {"tie_word_embeddings": False},  # 1.78 billion parameters
    "nvidia/OpenMath-Nemotron-1.5B": QWEN,  # 1.54 billion
}
# Mean response as a share of the longest, the share of bandwidth that generation reaches, the share of FLOP/s that
# training does. The paper's curve falls from 7.5 to 4.5 thousand tokens by step 1,000 of 4,380, of 15,360.
GUESSES = {
    "low": (0.26, 0.31, 0.45),  # 4 thousand tokens; decoding twice as fast with CUDA graphs, which the release lacked
    "expected": (0.315, 0.156, 0.35),
    "high": (0.39, 0.12, 0.25),  # 6 thousand tokens
}
ASSUMED = ("mean response of the longest", "generation of the bandwidth", "training of the FLOP/s")
SQUARE = 1.4  # assumed: mean square length over squared mean length, as of a log-normal with sigma 0.58
WORKSPACE = 3 * GIB  # assumed: vLLM's prefill and CUDA graphs


def backbone(path: str | None) -> dict:
    """Return the config of a known hub id or of a local Qwen2; ValueError for anything else."""
    file = Path(path or "") / "config.json"
    if not file.is_file() and path in BACKBONES:
        return BACKBONES[path]
    try:
        model = {"tie_word_embeddings": False} | (json.loads(file.read_text()) if file.is_file() else {})
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: no JSON ({error}); fetch the model again") from error
    if model.get("model_type") != "qwen2" or QWEN.keys() - model.keys():
        raise ValueError(
            f"actor_rollout_ref.model.path={path}: no folder of a Qwen2, and none of {', '.join(BACKBONES)}"
        )
    return model


def layer_parameters(model: dict) -> int:
    """Return the parameters of one layer: attention with its biases, MLP, two norms."""
    wide, narrow = model["hidden_size"], key_value_size(model)
    return 2 * wide * (wide + narrow) + 3 * wide * model["intermediate_size"] + 3 * wide + 2 * narrow


def key_value_size(model: dict) -> int:
    """Return how many numbers a layer's keys have for a token, and its values as well."""
    return model["hidden_size"] // model["num_attention_heads"] * model["num_key_value_heads"]


def parameters(model: dict, tables: int | None = None) -> int:
    """Return all parameters, or those with a given number of tables of the vocabulary's size."""
    tables, wide = tables or (1 if model["tie_word_embeddings"] else 2), model["hidden_size"]
    return model["num_hidden_layers"] * layer_parameters(model) + wide + tables * model["vocab_size"] * wide


def memory(config: DictConfig, model: dict, gpu_bytes: float, gpus: int) -> tuple[dict, dict]:
    """Return the bytes of each part on one GPU, while training and while generating."""
    ref, count = config.actor_rollout_ref, parameters(model)
    tokens, wide, layers = ref.actor.ppo_max_token_len_per_gpu, model["hidden_size"], model["num_hidden_layers"]
    training = {
        "weights": 4 * count / gpus,  # fp32
        "gradients": 4 * count / gpus,
        "optimizer": 8 * count / gpus,
        # bf16 weights and fp32 gradients of what FSDP gathers: the vocabulary's tables and a layer at a time
        "gathered": 6 * (count - (layers - 1) * layer_parameters(model)),
        # a checkpoint for each layer, and what the layer at work needs: 17 times its width and 3 times its MLP's
        "activations": 2 * tokens * (layers * wide + 17 * wide + 3 * model["intermediate_size"]),
        "logits": 4 * tokens * model["vocab_size"],  # bf16, and their gradient
    }
    rollout = 2 * count / ref.rollout.tensor_model_parallel_size
    generating = {
        "weights": 0 if ref.actor.fsdp_config.param_offload else training["weights"],
        "optimizer": 0 if ref.actor.fsdp_config.optimizer_offload else training["optimizer"],
        "rollout weights": rollout,
        "rollout workspace": WORKSPACE,
        "KV cache": ref.rollout.gpu_memory_utilization * gpu_bytes - rollout - WORKSPACE,
    }
    return training, generating


def seconds(config: DictConfig, model: dict, gpu: str, gpus: int, cache: float, guess: tuple) -> dict[str, float]:
    """Return the seconds of a step by part; `cache` is the bytes of KV cache, which bound the responses at once."""
    (flops, bandwidth, _), (share, generation, training) = GPUS[gpu], guess
    layers, longest = model["num_hidden_layers"], config.data.max_response_length
    responses, mean = config.data.train_batch_size * config.actor_rollout_ref.rollout.n / gpus, share * longest
    token_bytes = 2 * 2 * layers * key_value_size(model)  # keys and values in bf16
    at_once = min(config.actor_rollout_ref.rollout.max_num_seqs, cache / (token_bytes * mean))
    iterations = longest + max(0.0, responses - at_once) * mean / at_once
    multiplied, square = parameters(model, tables=1), SQUARE * mean**2  # all but the look-up of embeddings
    read = iterations * 2 * multiplied + responses * token_bytes * square / 2
    forward = responses * 2 * (multiplied * mean + layers * model["hidden_size"] * square)
    return {
        "generation": read / bandwidth / generation,
        "old log-probs": forward / flops / training,
        "update": 4 * forward / flops / training,  # forward twice, because of checkpointing, and backward
    }


def plan(config: DictConfig, gpu: str, gpus: int) -> dict:
    """Return the whole estimate for a composed config.

    Raises:
        ValueError: an unknown GPU or model, no number of steps, or a batch that does not divide by the GPUs.
    """
    steps = config.trainer.total_training_steps
    if gpu not in GPUS:
        raise ValueError(f"unknown GPU '{gpu}'; there are {', '.join(GPUS)}")
    if gpus < 1 or not steps:
        raise ValueError("--gpus and trainer.total_training_steps must be at least 1")
    config.trainer.nnodes, config.trainer.n_gpus_per_node = 1, gpus
    check_batch(config)
    model, gpu_bytes = backbone(config.actor_rollout_ref.model.path), GPUS[gpu][2] * GIB
    training, generating = memory(config, model, gpu_bytes, gpus)
    cache, needed = generating["KV cache"], (sum(training.values()), sum(generating.values()))
    parts = {name: seconds(config, model, gpu, gpus, max(cache, GIB), guess) for name, guess in GUESSES.items()}
    step = {name: sum(part.values()) for name, part in parts.items()}
    saved = steps // config.trainer.save_freq if config.trainer.save_freq > 0 else 0
    kept = min(saved, (config.trainer.max_actor_ckpt_to_keep or saved) + 2)  # the best, and one is being written
    return {
        "parameters, billion": parameters(model) / 1e9,
        "steps": steps,
        "seconds a step": step,
        "of them, expected": parts["expected"],
        "days": {name: value * steps / 86400 for name, value in step.items()},
        "GPU hours": {name: value * steps * gpus / 3600 for name, value in step.items()},
        "training, GiB": {part: size / GIB for part, size in training.items()},
        "generating, GiB": {part: size / GIB for part, size in generating.items()},
        "most at once, GiB": max(needed) / GIB,
        "fits": cache > 0 and max(needed) <= gpu_bytes,
        "assumed": ", ".join(
            f"{what} {middle:.0%} ({low:.0%} to {high:.0%})"
            for what, low, middle, high in zip(ASSUMED, *GUESSES.values(), strict=True)
        ),
        "checkpoints, GB": kept * parameters(model) * BYTES_PER_PARAMETER / 1e9,
    }


def text(value) -> str:
    """Return a number, a text, a truth or a mapping of numbers for people."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return (
            "yes"
            if value
            else "NO: lower rollout.gpu_memory_utilization or actor.ppo_max_token_len_per_gpu, or offload"
        )
    if isinstance(value, dict):
        return "  ".join(f"{name} {text(part)}" for name, part in value.items())
    return f"{value:,.{0 if value >= 1000 or isinstance(value, int) else 2 if value < 10 else 1}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help=f"one of {', '.join(config_names())}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, which win over the file")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="how many, over all nodes")
    parser.add_argument("--gpu", required=True, metavar="TYPE", help=", ".join(GPUS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args()
    found = plan(compose(args.config, args.overrides, "cuda"), args.gpu, args.gpus)
    rows = [f"{name:<20}{text(value)}" for name, value in found.items()]
    print(json.dumps(found, indent=2) if args.json else "\n".join(rows))
    return 0


if __name__ == "__main__":
    run(main)
