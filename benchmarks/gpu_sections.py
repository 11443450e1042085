"""The sections of `benchmarks.gpu`: each runs the project's own commands and returns figures by name."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from common import machine
from common.processes import REPOSITORY
from common.progress import cause
from recipe import attention
from recipe.memory import GIB, model_shape, parameters, phases
from recipe.monitor.metrics import read_metrics, validation_accuracy
from recipe.paper import BACKBONES
from recipe.plan import GPUS, Lengths, gpu_type, ideal_seconds, utilization

OUTPUTS = REPOSITORY / "outputs"
DEEPSEEK = BACKBONES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]["shape"]
TINY = DEEPSEEK | {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TINY["vocab_size"] = 512
END_SECONDS = 60  # between asking and killing: a training ends what it started
SAMPLE_SECONDS = 0.5  # between looks at the GPU's memory
MISMATCH = "rollout-trainer mismatch, mean probability"
# Of a step's metrics; "memory" is `Bench.train`'s.
FIGURES = {
    "timing_s/gen": "generation, seconds",
    "timing_s/old_log_prob": "old log-probs, seconds",
    "timing_s/update_actor": "update, seconds",
    "timing_s/update_weights": "weight transfer, seconds",
    "timing_s/step": "step, seconds",
    "perf/throughput": "tokens per second, prompts included",
    "actor/perf/max_memory_allocated_gb": "actor's most memory, GB",
    "memory": "most memory in use on the GPU, GiB",
    "training/rollout_probs_diff_mean": MISMATCH,
    "perf/mfu/actor": "MFU of the update",
}
NO_VALIDATION = ["trainer.val_before_train=false", "trainer.test_freq=-1"]
FEW_WORKERS = ["actor_rollout_ref.rollout.agent.num_workers=1", "reward.num_workers=1"]  # little to start
# A step of the paper's config on one GPU, all responses as long as they may be.
ONE_STEP = [
    *("justrl_deepseek", "--allow", "*", *NO_VALIDATION, "trainer.total_training_steps=1", "trainer.save_freq=-1"),
    *("data.train_files=data/demo/train.parquet", "data.val_files=data/demo/test.parquet"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size=1", "actor_rollout_ref.rollout.ignore_eos=true"),
    *FEW_WORKERS,
]


class Bench:
    """Where sections write, how long each may take, and what machine this is."""

    def __init__(self, folder: Path, seconds: int):
        self.folder, self.seconds = folder, seconds
        self.device, gpus = machine.device(), machine.look().gpus
        self.small = self.device == "cpu"
        self.gpu_type = gpu_type(gpus[0].name) if gpus else None
        self.gpu_gib = gpus[0].total / GIB if gpus else 0.0
        # For every command: one GPU, nothing from a network.
        one = {"JUSTRL_DEVICE": self.device, "JUSTRL_NODES": "1", "JUSTRL_GPUS_PER_NODE": "1"}
        one |= {"CUDA_VISIBLE_DEVICES": str(gpus[0].device_index)} if gpus else {}
        self.environment = os.environ | one | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, name: str) -> None:
        self.name, self.log, self.ends = name, self.folder / f"{name}.log", time.monotonic() + self.seconds
        self.log.write_text("")

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start a module of this project, its output appended to the section's log."""
        with open(self.log, "a") as log:
            command = [sys.executable, "-m", *arguments]
            return subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log)

    def wait(self, process: subprocess.Popen) -> int:
        """Wait for a command and return the most memory (bytes) that was in use on the GPU meanwhile.

        Raises:
            RuntimeError: it failed, or was ended because the section's time is over.
        """
        most = 0
        while process.poll() is None:
            if time.monotonic() > self.ends:
                end(process)
                raise RuntimeError(f"took more than {self.seconds} s; --seconds allows more")
            most = max([most, *(gpu.total - gpu.free for gpu in machine.look().gpus[:1])])
            time.sleep(SAMPLE_SECONDS)
        if process.returncode:
            module = cast(list[str], process.args)[2]
            what = f"{module} exited with status {process.returncode}"
            raise RuntimeError(f"{what}, see {self.log}: {cause(self.log)}")
        return most

    def run(self, *arguments: str) -> int:
        return self.wait(self.start(*arguments))

    def demo_files(self) -> None:
        """Make the demo's data and model, which are kept if they are there."""
        self.run("data_prep.demo", "--data", "data/demo", "--model", "models/demo")

    def model(self) -> str:
        """Make a model of the backbone's shape with random weights and the demo's tokenizer; return its folder."""
        self.demo_files()
        shape = TINY if self.small else DEEPSEEK
        folder = self.folder / f"model_{shape['hidden_size']}"
        if not (folder / "tokenizer.json").is_file():  # written last
            make_random_model(folder, shape)
        return str(folder)

    def train(self, experiment: str, *arguments: str, afresh: bool = True) -> dict[int, dict]:
        """Run a training and return its metrics by step, the most memory in use on the GPU (GiB) with the last."""
        if afresh:
            shutil.rmtree(OUTPUTS / experiment, ignore_errors=True)
        most = self.run("recipe.train", *arguments, f"trainer.experiment_name={experiment}")
        metrics = read_metrics(OUTPUTS / experiment / "metrics.jsonl")
        metrics[max(metrics)]["memory"] = most / GIB
        return metrics

    def train_step(self, experiment: str, prompts: int, tokens: int, *overrides: str) -> dict:
        """Run one step of the paper's config at the backbone's shape and return its figures."""
        preset = [] if self.small else [f"+hardware={'one_80gb' if self.gpu_gib > 70 else 'one_24gb'}"]
        sizes = [f"data.train_batch_size={prompts}", f"data.max_response_length={tokens}"]
        model = f"actor_rollout_ref.model.path={self.model()}"
        figures = of_steps(self.train(experiment, *ONE_STEP, *preset, *sizes, model, *overrides))
        # vLLM samples only tokens of the tokenizer, which has few here; the trainer counts the whole vocabulary.
        return {name: value for name, value in figures.items() if name != MISMATCH}


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def make_random_model(folder: Path, shape: dict) -> None:
    """Save a Qwen2 of a shape with random weights, in bf16, and the demo's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "models" / "demo")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(**shape, max_position_embeddings=131072, bos_token_id=None, **ends)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def of_steps(metrics: dict[int, dict]) -> dict:
    """Name the figures of a training's last step."""
    last = dict(metrics[max(metrics)])
    if not last.get("memory"):  # verl knows the peak of no CPU
        last.pop("perf/mfu/actor", None)
    return {name: last[key] for key, name in FIGURES.items() if last.get(key)}


def kernels(bench: Bench) -> dict:
    """Attention and log-probabilities against fp32, in a process of its own."""
    bench.run("benchmarks.gpu_kernels")
    return json.loads(next(line for line in bench.log.read_text().splitlines() if line.startswith("{")))


def demo(bench: Bench) -> dict:
    """The demo's first steps: does it learn, and how long does a start take?"""
    bench.demo_files()
    started = time.monotonic()
    sizes = ["trainer.total_training_steps=8", "trainer.save_freq=4", "trainer.test_freq=4"]
    metrics = bench.train("gpu_demo", "demo", *sizes)
    accuracy = {step: validation_accuracy(line) for step, line in metrics.items()}
    figures: dict[str, float | str] = {
        f"validation accuracy at step {step}": value for step, value in accuracy.items() if value is not None
    }
    figures["from the start to the end, seconds"] = time.monotonic() - started
    figures["attention"] = attention.requested(OmegaConf.load(OUTPUTS / "gpu_demo" / "config.yaml"))
    return figures | of_steps(metrics)


def long(bench: Bench) -> dict:
    """One step at the backbone's shape, all responses of the longest length, beside the plan."""
    prompts, tokens = (2, 256) if bench.small else (4 if bench.gpu_gib > 70 else 1, 15360)
    step = bench.train_step("gpu_long", prompts, tokens)
    figures = {"responses": prompts * 8, "tokens of each": tokens} | step
    if bench.small:
        return figures
    config = OmegaConf.load(OUTPUTS / "gpu_long" / "config.yaml")
    shape = model_shape(config.actor_rollout_ref.model.path)
    memory = phases(config, shape, bench.gpu_gib * GIB, 1)
    figures |= {f"plan: {phase}, GiB": sum(parts.values()) / GIB for phase, parts in memory.items()}
    if bench.gpu_type:
        lengths = Lengths(prompts * 8, tokens, tokens, tokens**2)
        ideal = ideal_seconds(config, shape, GPUS[bench.gpu_type], lengths, memory["generation"]["KV cache"])
        reached = utilization(ideal, {part: step[f"{part}, seconds"] for part in ideal})
        figures |= {"generation, of the bandwidth": reached.generation, "training, of the FLOP/s": reached.training}
        figures["utilization"] = reached._asdict()
    return figures


def two(bench: Bench) -> dict:
    """Two demos on one GPU at once; one is killed at its second step and continues."""
    bench.demo_files()
    demo = ["demo", *NO_VALIDATION, *FEW_WORKERS, "trainer.save_freq=2"]
    demo.append("actor_rollout_ref.rollout.gpu_memory_utilization=0.3")
    if not bench.small:
        # Of a fixed size: vLLM's measuring of free memory fails when another process frees some meanwhile.
        demo.append("+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=268435456")
    steps = {"gpu_two_a": "trainer.total_training_steps=14", "gpu_two_b": "trainer.total_training_steps=6"}
    for name in steps:
        shutil.rmtree(OUTPUTS / name, ignore_errors=True)
    undisturbed, killed = (
        bench.start("recipe.train", *demo, steps[name], f"trainer.experiment_name={name}") for name in steps
    )
    try:
        saved = OUTPUTS / "gpu_two_b/checkpoints/global_step_2/data.pt"
        while killed.poll() is None and not saved.is_file() and time.monotonic() < bench.ends:
            time.sleep(1)
        killed.kill()
        killed.wait()
        bench.train("gpu_two_b", *demo, steps["gpu_two_b"], afresh=False)
        bench.wait(undisturbed)
    finally:
        end(undisturbed)
    figures = {}
    for name in steps:
        metrics = read_metrics(OUTPUTS / name / "metrics.jsonl")
        figures[f"{name}, steps"] = len(metrics)
        figures |= {f"{name}, {what}": value for what, value in of_steps(metrics).items() if what == MISMATCH}
    return figures


def evaluation(bench: Bench) -> dict:
    """Samples per second of eval.generate: short ones of the demo's model, longer ones at the backbone's shape."""
    figures, models = {}, {"demo": ("models/demo", "64"), "random": (bench.model(), "64" if bench.small else "1024")}
    shared = ["--bench", "data/demo", "--tasks", "test", "--samples", "4", "--prompt", "training"]
    for name, (model, tokens) in models.items():
        output = bench.folder / f"evaluation_{name}"
        shutil.rmtree(output, ignore_errors=True)
        started = time.monotonic()
        bench.run("eval.generate", "--model", model, *shared, "--max-tokens", tokens, "--output", str(output))
        figures[f"{name}: from the start to the end, seconds"] = time.monotonic() - started
        lines = (output / "test.samples.jsonl").read_text().splitlines()
        figures[f"{name}: tokens"] = sum(json.loads(line)["tokens"] for line in lines)
        figures[f"{name}: tokens per second while sampling"] = last_rate(bench.log)
    bench.run("eval.grade", str(bench.folder / "evaluation_demo"))
    scores = json.loads((bench.folder / "evaluation_demo" / "scores.json").read_text())
    figures["random: parameters, billion"] = parameters(TINY if bench.small else DEEPSEEK) / 1e9
    return figures | {"demo: avg@4, percent": 100 * scores["mean"]}


def last_rate(log: Path) -> int:
    """Read the tokens per second in the last progress line of eval.generate."""
    lines = [line for line in log.read_text().splitlines() if "tokens/s" in line]
    return int(lines[-1].split("responses, ")[1].split(" tokens/s")[0].replace(",", ""))


def packed_kernels(device: str) -> list[str]:
    """List the kernels for packed sequences that this machine has."""
    best = attention.choose(device)
    return [best] if best in (attention.REFERENCE, attention.TORCH) else [attention.TORCH, best]


def attentions(bench: Bench) -> dict:
    """The same step of shorter responses by each attention."""
    figures: dict[str, float] = {}
    prompts, tokens = (2, 128) if bench.small else (4, 2048)
    for kernel in [*packed_kernels(bench.device), "sdpa"]:
        chosen = f"actor_rollout_ref.model.override_config._attn_implementation={kernel}"
        eager = "actor_rollout_ref.rollout.enforce_eager=true"
        step = bench.train_step(f"gpu_{kernel}", prompts, tokens, chosen, eager)
        figures |= {f"{kernel}: {name}": value for name, value in step.items() if "generation" not in name}
    return figures


SECTIONS: dict[str, Callable[[Bench], dict]] = {
    "kernels": kernels,
    "demo": demo,
    "long": long,
    "two": two,
    "evaluation": evaluation,
    "attention": attentions,
}
