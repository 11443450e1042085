"""Estimate what a run costs before it is started: days, GPU hours, memory of a GPU by phase and part, disk.

example: python -m recipe.plan justrl_deepseek --gpus 8 --gpu H100-80GB [key=value ...]

Training is counted in FLOPs against the GPU's peak, generation in the bytes that decoding must read against its memory
bandwidth; two utilizations turn them into seconds. For H100 and H200 both were measured on one H100 (docs/gpu.md). For
other GPUs that of training is assumed, and that of generation is fitted to the paper's run, 296 s per step on 32 A800.
--measured FILE takes both from benchmarks.gpu on your GPUs. Low and high vary what is not measured, and the length of
the responses. `recipe.memory` estimates memory.
"""

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from omegaconf import DictConfig

from common.command import path, run
from recipe.compose import compose, config_names
from recipe.distillation import teacher_gpus
from recipe.memory import GIB, model_shape, needed, parameters, phases, token_bytes
from recipe.preflight import BYTES_PER_PARAMETER, check_batch, window


class GPUType(NamedTuple):
    """Dense bf16 FLOP/s and memory bytes/s (NVIDIA's data sheets), GiB that processes can use, NVML's name (regex)."""

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
    """The fractions reached of the bandwidth in generation, and of the FLOP/s in training."""

    generation: float
    training: float


class Lengths(NamedTuple):
    """The responses of a step on one GPU: their number; the longest, the mean and the mean square length in tokens."""

    responses: float
    longest: float
    mean: float
    square: float


# Mean response length over the limit, and the utilization where none was measured. The mean in the paper's runs falls
# from 7.5 to 4.5 thousand of 15,360 tokens by step 1,000 of 4,380; here it is 4, 4.8 and 6 thousand.
SCENARIOS = {
    "low": (0.26, Utilization(0.31, 0.45)),  # decoding twice as fast with CUDA graphs, which the release lacked
    "expected": (0.315, Utilization(0.156, 0.35)),
    "high": (0.39, Utilization(0.12, 0.25)),
}
# One step of 32 responses of 15,360 tokens on one H100, 2026-11-27, verl 0.9.1, vLLM 0.24.0, torch 2.11.0: docs/gpu.md.
H100 = Utilization(0.50, 0.215)
MEASURED = {"H100-80GB": H100, "H200": H100}  # an H200 is the same chip with more and faster memory
HIGH = 0.75  # assumed: how much of that is left at worst with more GPUs, and with more and shorter responses
SQUARE = 1.4  # assumed: mean square length over squared mean length, as of a log-normal with sigma 0.58


@dataclass
class Estimate:
    """What a run costs: scenario by row of the table, bytes of a GPU by phase and part, bytes of the checkpoints."""

    parameters: int
    steps: int
    scenarios: dict[str, dict[str, float]]
    memory_bytes: dict[str, dict[str, float]]
    needed_bytes: float
    fits: bool
    checkpoint_bytes: float


def gpu_type(name: str) -> str | None:
    """Look up the type of a GPU by its name in NVML, such as "NVIDIA H100 80GB HBM3"; None if it is not listed."""
    return next((kind for kind, gpu in GPUS.items() if re.search(gpu.pattern, name)), None)


def ideal_seconds(config: DictConfig, shape: dict, gpu: GPUType, lengths: Lengths, cache: float) -> dict[str, float]:
    """Return the seconds per step, by part, if a GPU with `cache` bytes of KV cache reached its peak."""
    per_token = token_bytes(shape)
    at_once = min(config.actor_rollout_ref.rollout.max_num_seqs, cache / (per_token * lengths.mean))
    iterations = lengths.longest + max(0.0, lengths.responses - at_once) * lengths.mean / at_once
    multiplied = parameters(shape, tables=1)  # all but the look-up of embeddings
    read = iterations * 2 * multiplied + lengths.responses * per_token * lengths.square / 2
    attention = shape["num_hidden_layers"] * shape["hidden_size"] * lengths.square
    forward = lengths.responses * 2 * (multiplied * lengths.mean + attention) / gpu.flops
    return {
        "generation": read / gpu.bandwidth,
        "old log-probs": forward,
        "update": 4 * forward,  # forward twice, because of checkpointing, and backward
    }


def utilization(ideal: dict[str, float], measured: dict[str, float]) -> Utilization:
    """Return the utilization of a step whose parts took `measured` seconds."""
    training = [seconds["old log-probs"] + seconds["update"] for seconds in (ideal, measured)]
    return Utilization(ideal["generation"] / measured["generation"], training[0] / training[1])


def step_seconds(ideal: dict[str, float], reached: Utilization) -> dict[str, float]:
    seconds = {part: ideal_part / reached.training for part, ideal_part in ideal.items()}
    return seconds | {"generation": ideal["generation"] / reached.generation}


def read_measured(path: Path, gpu: str) -> Utilization:
    """Read the utilization that `benchmarks.gpu` measured; ValueError if it did not, or on another type of GPU."""
    try:
        result = json.loads(path.read_text())
        reached, measured_on = Utilization(**result["utilization"]), result["gpu"]
        if not all(value > 0 for value in reached):
            raise KeyError("utilization")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no result of python -m benchmarks.gpu long ({type(error).__name__})") from error
    if measured_on != gpu:
        raise ValueError(f"{path}: was measured on {measured_on}, not {gpu}; measure on the GPU that you plan for")
    return reached


def scenario(config: DictConfig, gpu: GPUType, cache: float, mean: float, reached: Utilization) -> dict[str, float]:
    """Return the rows of the table for a mean response length in tokens and a utilization."""
    gpus, steps = config.trainer.nnodes * config.trainer.n_gpus_per_node, config.trainer.total_training_steps
    responses = config.data.train_batch_size * config.actor_rollout_ref.rollout.n / gpus
    lengths = Lengths(responses, config.data.max_response_length, mean, SQUARE * mean**2)
    ideal = ideal_seconds(config, model_shape(config.actor_rollout_ref.model.path), gpu, lengths, max(cache, GIB))
    seconds = step_seconds(ideal, reached)
    step = sum(seconds.values())
    return {
        "seconds per step": step,
        **{f"of them, {part}": value for part, value in seconds.items()},
        "days": step * steps / 86400,
        "GPU hours": step * steps * (gpus + teacher_gpus(config)) / 3600,
        "mean response, tokens": mean,
        "generation, % of bandwidth": 100 * reached.generation,
        "training, % of FLOP/s": 100 * reached.training,
    }


def scenario_utilization(name: str, gpu: str, measured: Utilization | None) -> Utilization:
    """Return the utilization in a scenario: the user's measurement, else the one of docs/gpu.md, else assumed."""
    if measured or gpu not in MEASURED:
        return measured or SCENARIOS[name][1]
    scale = HIGH if name == "high" else 1.0
    return Utilization(*(scale * fraction for fraction in MEASURED[gpu]))


def source(gpu: str, measured: bool) -> str:
    if measured:
        return "measured"
    return "measured on one H100, see docs/gpu.md" if gpu in MEASURED else "assumed"


def divide(config: DictConfig, gpus: int) -> None:
    """Give a run `gpus` GPUs as one node, in place; a teacher, whose time is not estimated, keeps its fraction."""
    trainer, distillation, teacher = config.trainer, config.distillation, teacher_gpus(config)
    others = gpus * teacher // (teacher + trainer.nnodes * trainer.n_gpus_per_node)
    trainer.nnodes, trainer.n_gpus_per_node = 1, gpus - others
    if teacher:
        distillation.nnodes, distillation.n_gpus_per_node = 1, others


def estimate(config: DictConfig, gpu: str, gpus: int, measured: Utilization | None = None) -> Estimate:
    """Estimate what a composed config costs on `gpus` GPUs of a type; ValueError if it cannot run on them."""
    trainer, shape = config.trainer, model_shape(config.actor_rollout_ref.model.path)
    if gpu not in GPUS:
        raise ValueError(f"unknown GPU '{gpu}'; there are {', '.join(GPUS)}")
    if gpus < 1 or not trainer.total_training_steps:
        raise ValueError("--gpus and trainer.total_training_steps must be at least 1")
    divide(config, gpus)
    check_batch(config)
    memory = phases(config, shape, GPUS[gpu].gib * GIB, trainer.n_gpus_per_node)
    cache = memory["generation"]["KV cache"]
    longest_sequence = (config.actor_rollout_ref.rollout.max_model_len or window(config)) * token_bytes(shape)
    saved = trainer.total_training_steps // trainer.save_freq if trainer.save_freq > 0 else 0
    kept = min(saved, (trainer.max_actor_ckpt_to_keep or saved) + 2)  # the best, and one is being written
    scenarios = {}
    for name, (fraction, _) in SCENARIOS.items():
        reached = scenario_utilization(name, gpu, measured)
        scenarios[name] = scenario(config, GPUS[gpu], cache, fraction * config.data.max_response_length, reached)
    return Estimate(
        parameters=parameters(shape),
        steps=trainer.total_training_steps,
        scenarios=scenarios,
        memory_bytes=memory,
        needed_bytes=needed(memory),
        fits=cache >= longest_sequence and needed(memory) <= GPUS[gpu].gib * GIB,
        checkpoint_bytes=kept * parameters(shape) * BYTES_PER_PARAMETER,
    )


def summary(cost: Estimate, gpu: str, measured: bool) -> str:
    form = {"float_format": "{:,.1f}".format, "na_rep": ""}
    memory = pd.DataFrame(cost.memory_bytes) / GIB
    memory.loc["sum"] = memory.sum()
    advice = "no; lower rollout.gpu_memory_utilization or actor.ppo_max_token_len_per_gpu, or offload"
    return f"""{cost.parameters / 1e9:.2f} billion parameters, {cost.steps:,} steps

{pd.DataFrame(cost.scenarios).to_string(**form)}
utilization: {source(gpu, measured)}

GiB per GPU, by phase:
{memory.to_string(**form)}
needed, including what lies outside torch: {cost.needed_bytes / GIB:.1f} of {GPUS[gpu].gib} GiB
fits: {"yes" if cost.fits else advice}
checkpoints: {cost.checkpoint_bytes / 1e9:.1f} GB"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help=f"one of {', '.join(config_names())}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, which win over the file")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs, over all nodes")
    parser.add_argument("--gpu", required=True, metavar="TYPE", help=", ".join(GPUS))
    parser.add_argument("--measured", type=path, metavar="FILE", help="outputs/gpu/long.json of benchmarks.gpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args()
    measured = read_measured(args.measured, args.gpu) if args.measured else None
    cost = estimate(compose(args.config, args.overrides, "cuda"), args.gpu, args.gpus, measured)
    print(json.dumps(asdict(cost), indent=2) if args.json else summary(cost, args.gpu, bool(measured)))


if __name__ == "__main__":
    run(main)
