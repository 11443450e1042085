"""What a run costs, before it is started: days, GPU hours, memory of a GPU by phase and part, disk.

example: python -m recipe.plan justrl_deepseek --gpus 8 --gpu H100-80GB [key=value ...]

Training is counted in FLOPs against the GPU's peak, generation in the bytes that decoding must read against its memory
bandwidth; two utilizations turn them into seconds. Unmeasured, that of training is assumed and that of generation is
what makes the paper's run right, 296 s per step on 32 A800. `--measured FILE` takes both from `benchmarks.gpu` on your
GPUs. Low and high vary what is not measured, and the length of the responses. `recipe.memory` has the memory model.
"""

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from common.command import run
from recipe.compose import compose, config_names
from recipe.memory import GIB, cache_bytes, model_shape, needed, parameters, phases, token_bytes
from recipe.preflight import BYTES_PER_PARAMETER, check_batch


class GPUType(NamedTuple):
    """Dense bf16 FLOP/s and memory bytes/s (NVIDIA's data sheets), GiB that processes can use, what NVML's name has."""

    flops: float
    bandwidth: float
    gib: float
    pattern: str


GPUS = {
    "A800-80GB": GPUType(312e12, 2.039e12, 79, "A800"),  # an A100 with slower NVLink
    "A100-80GB": GPUType(312e12, 2.039e12, 79, "A100.*80GB"),
    "H100-80GB": GPUType(989e12, 3.35e12, 79, "H100.*HBM3"),  # SXM; the PCIe card is slower
    "H200": GPUType(989e12, 4.8e12, 139, "H200"),
    "A10-24GB": GPUType(125e12, 0.6e12, 22, r"A10\b"),
    "RTX4090-24GB": GPUType(165e12, 1.008e12, 23, "4090"),
}


class Utilization(NamedTuple):
    """The shares of bandwidth that generation reaches, and of FLOP/s that training does."""

    generation: float
    training: float


class Lengths(NamedTuple):
    """A step's responses, in tokens: how many on one GPU, the longest, the mean, and the mean of the squares."""

    responses: float
    longest: float
    mean: float
    square: float


# Mean response over the longest: the paper's falls from 7.5 to 4.5 thousand of 15,360 tokens by step 1,000 of 4,380.
MEAN_SHARE = {"low": 0.26, "expected": 0.315, "high": 0.39}  # 4, 4.8 and 6 thousand tokens
ASSUMED = {
    "low": Utilization(0.31, 0.45),  # decoding twice as fast with CUDA graphs, which the release lacked
    "expected": Utilization(0.156, 0.35),
    "high": Utilization(0.12, 0.25),
}
SQUARE = 1.4  # assumed: mean square length over squared mean length, as of a log-normal with sigma 0.58


def gpu_type(name: str) -> str | None:
    """Return the type of a GPU by its name in NVML, such as "NVIDIA H100 80GB HBM3"; None for one not listed."""
    return next((kind for kind, gpu in GPUS.items() if re.search(gpu.pattern, name)), None)


def ideal_seconds(config: DictConfig, shape: dict, gpu: GPUType, lengths: Lengths, cache: float) -> dict[str, float]:
    """Return the seconds per step, by part, of a GPU that reaches its peak.

    Args:
        cache: bytes of the KV cache, which bound the responses at once.
    """
    layers, per_token = shape["num_hidden_layers"], token_bytes(shape)
    at_once = min(config.actor_rollout_ref.rollout.max_num_seqs, cache / (per_token * lengths.mean))
    iterations = lengths.longest + max(0.0, lengths.responses - at_once) * lengths.mean / at_once
    multiplied = parameters(shape, tables=1)  # all but the look-up of embeddings
    read = iterations * 2 * multiplied + lengths.responses * per_token * lengths.square / 2
    attention = layers * shape["hidden_size"] * lengths.square
    forward = lengths.responses * 2 * (multiplied * lengths.mean + attention) / gpu.flops
    return {
        "generation": read / gpu.bandwidth,
        "old log-probs": forward,
        "update": 4 * forward,  # forward twice, because of checkpointing, and backward
    }


def utilization(ideal: dict[str, float], measured: dict[str, float]) -> Utilization:
    """Return what a step reached whose parts took `measured` seconds."""
    training = [sum(seconds[part] for part in ("old log-probs", "update")) for seconds in (ideal, measured)]
    return Utilization(ideal["generation"] / measured["generation"], training[0] / training[1])


def step_seconds(ideal: dict[str, float], reached: Utilization) -> dict[str, float]:
    """Return the seconds per step by part at a utilization."""
    return {
        part: seconds / (reached.generation if part == "generation" else reached.training)
        for part, seconds in ideal.items()
    }


def read_measured(path: Path, gpu: str) -> Utilization:
    """Return the utilization that `benchmarks.gpu` measured on a type of GPU.

    Raises:
        ValueError: the file is not one of its results, or is of another GPU.
    """
    try:
        found = json.loads(path.read_text())
        reached, measured_on = Utilization(**found["utilization"]), found["gpu"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no result of python -m benchmarks.gpu long ({type(error).__name__})") from error
    if measured_on != gpu:
        raise ValueError(f"{path}: was measured on {measured_on}, not {gpu}")
    return reached


def plan(config: DictConfig, gpu: str, gpus: int, measured: Utilization | None = None) -> dict:
    """Return the whole estimate for a composed config.

    Raises:
        ValueError: an unknown GPU or model, no number of steps, or a batch that does not divide by the GPUs.
    """
    steps, rollout = config.trainer.total_training_steps, config.actor_rollout_ref.rollout
    if gpu not in GPUS:
        raise ValueError(f"unknown GPU '{gpu}'; there are {', '.join(GPUS)}")
    if gpus < 1 or not steps:
        raise ValueError("--gpus and trainer.total_training_steps must be at least 1")
    config.trainer.nnodes, config.trainer.n_gpus_per_node = 1, gpus
    check_batch(config)
    shape, gpu_bytes = model_shape(config.actor_rollout_ref.model.path), GPUS[gpu].gib * GIB
    memory = phases(config, shape, gpu_bytes, gpus)
    cache, longest = memory["generation"]["KV cache"], config.data.max_response_length
    reached = ASSUMED if measured is None else dict.fromkeys(ASSUMED, measured)
    parts = {}
    for name, share in MEAN_SHARE.items():
        mean = share * longest
        lengths = Lengths(config.data.train_batch_size * rollout.n / gpus, longest, mean, SQUARE * mean**2)
        ideal = ideal_seconds(config, shape, GPUS[gpu], lengths, max(cache, GIB))
        parts[name] = step_seconds(ideal, reached[name])
    step = {name: sum(part.values()) for name, part in parts.items()}
    saved = steps // config.trainer.save_freq if config.trainer.save_freq > 0 else 0
    kept = min(saved, (config.trainer.max_actor_ckpt_to_keep or saved) + 2)  # the best, and one is being written
    return {
        "parameters, billion": parameters(shape) / 1e9,
        "steps": steps,
        "seconds per step": step,
        "of them, expected": parts["expected"],
        "days": {name: value * steps / 86400 for name, value in step.items()},
        "GPU hours": {name: value * steps * gpus / 3600 for name, value in step.items()},
        "memory, GiB": {
            phase: {"sum": sum(found.values()) / GIB} | {part: size / GIB for part, size in found.items()}
            for phase, found in memory.items()
        },
        "needed, GiB": needed(memory) / GIB,
        "fits": cache >= cache_bytes(config, shape) and needed(memory) <= gpu_bytes,
        "utilization": "measured" if measured else "assumed",
        "generation, of the bandwidth": {name: value.generation for name, value in reached.items()},
        "training, of the FLOP/s": {name: value.training for name, value in reached.items()},
        "mean response, of the longest": MEAN_SHARE,
        "checkpoints, GB": kept * parameters(shape) * BYTES_PER_PARAMETER / 1e9,
    }


def text(value) -> str:
    """Return a number, a text, a truth or a mapping of numbers for people."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        if value:
            return "yes"
        return "NO: lower rollout.gpu_memory_utilization or actor.ppo_max_token_len_per_gpu, or offload"
    if isinstance(value, dict):
        return "  ".join(f"{name} {text(part)}" for name, part in value.items())
    return f"{value:,.{0 if value >= 1000 or isinstance(value, int) else 2 if value < 10 else 1}f}"


def lines(found: dict) -> list[str]:
    """Return the estimate as lines for the terminal, a phase of the memory each."""
    shown = []
    for name, value in found.items():
        if name == "memory, GiB":
            shown += [f"{'GiB, ' + phase:<32}{text(parts)}" for phase, parts in value.items()]
        else:
            shown.append(f"{name:<32}{text(value)}")
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help=f"one of {', '.join(config_names())}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, which win over the file")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="how many, over all nodes")
    parser.add_argument("--gpu", required=True, metavar="TYPE", help=", ".join(GPUS))
    parser.add_argument("--measured", type=Path, metavar="FILE", help="outputs/gpu/long.json of benchmarks.gpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args()
    measured = read_measured(args.measured, args.gpu) if args.measured else None
    found = plan(compose(args.config, args.overrides, "cuda"), args.gpu, args.gpus, measured)
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines(found)))
    return 0


if __name__ == "__main__":
    run(main)
