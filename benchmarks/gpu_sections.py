"""The sections of `benchmarks.gpu`: each runs the project's own commands and returns figures by name."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from common import machine
from recipe import attention
from recipe.memory import BACKBONES, GIB, model_shape, parameters, phases
from recipe.monitor.metrics import read_metrics, validation_accuracy
from recipe.plan import GPUS, Lengths, gpu_type, ideal_seconds, utilization

ROOT = Path(__file__).resolve().parent.parent
DEEPSEEK = BACKBONES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]["shape"]
TINY = DEEPSEEK | {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TINY["vocab_size"] = 512
PARTS = {"generation": "timing_s/gen", "old log-probs": "timing_s/old_log_prob", "update": "timing_s/update_actor"}
PARTS["weight transfer"] = "timing_s/update_weights"
END_SECONDS = 60
SAMPLE_SECONDS = 0.5  # between looks at the GPU's memory
DATA = ["data.train_files=data/demo/train.parquet", "data.val_files=data/demo/test.parquet"]
NO_VALIDATION = ["trainer.val_before_train=false", "trainer.test_freq=-1"]
ONE_WORKER = ["actor_rollout_ref.rollout.agent.num_workers=1", "reward.num_workers=1"]  # less to start


class Bench:
    """Where sections write, how long each may take, and what machine this is."""

    def __init__(self, folder: Path, seconds: int):
        self.folder, self.seconds = folder, seconds
        self.device, gpus = machine.device(), machine.look().gpus
        self.one = {"CUDA_VISIBLE_DEVICES": str(gpus[0].index)} if gpus else {}
        self.gpu_type = gpu_type(gpus[0].name) if gpus else None
        self.gpu_gib = gpus[0].total / GIB if gpus else 0.0
        self.small = self.device == "cpu"
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, name: str) -> None:
        """Start a section: its log and its time."""
        self.name, self.ends = name, time.monotonic() + self.seconds

    def environment(self) -> dict[str, str]:
        """Return the variables of every command: one GPU, nothing from a network."""
        one = {"JUSTRL_DEVICE": self.device, "JUSTRL_NODES": "1", "JUSTRL_GPUS_PER_NODE": "1"}
        return os.environ | one | self.one | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    def start(self, *arguments: str, log: str | None = None) -> subprocess.Popen:
        """Start a module of this project, its output appended to the section's log."""
        command, path = [sys.executable, "-m", *arguments], self.folder / f"{log or self.name}.log"
        with open(path, "a") as file:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment(), stdout=file, stderr=file)

    def wait(self, process: subprocess.Popen) -> None:
        """Wait for a command until the section's time is over; RuntimeError if it fails or is ended for that."""
        try:
            status = process.wait(max(1.0, self.ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            end(process)
            raise RuntimeError(f"took more than {self.seconds} s; --seconds allows more") from None
        if status:
            raise RuntimeError(f"{process.args[2]} ended with status {status}, see {self.folder}/{self.name}.log")

    def run(self, *arguments: str) -> None:
        """Run a module of this project to its end."""
        self.wait(self.start(*arguments))

    def demo_files(self) -> None:
        """Make the demo's data and model, which are kept if they are there."""
        self.run("data_prep.demo", "--data", "data/demo", "--model", "models/demo")

    def model(self) -> str:
        """Return the folder of a model of the backbone's shape with random weights and the demo's tokenizer."""
        self.demo_files()
        shape = TINY if self.small else DEEPSEEK
        folder = self.folder / f"model_{shape['hidden_size']}"
        if not (folder / "tokenizer.json").is_file():  # written last
            make_random_model(folder, shape)
        return str(folder)

    def train(self, experiment: str, *arguments: str, afresh: bool = True) -> dict[int, dict]:
        """Run a training and return its metrics by step, the most memory in use on the GPU (GiB) with the last."""
        if afresh:
            shutil.rmtree(ROOT / "outputs" / experiment, ignore_errors=True)
        with MemorySampler() as sampler:
            self.run("recipe.train", *arguments, f"trainer.experiment_name={experiment}")
        metrics = read_metrics(ROOT / "outputs" / experiment / "metrics.jsonl")
        metrics[max(metrics)]["memory"] = sampler.most / GIB
        return metrics


def end(process: subprocess.Popen) -> None:
    """End a command that may have ended: ask, so that it ends what it started, wait, kill."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class MemorySampler:
    """Watches how much of the first GPU's memory all processes together have in use."""

    def __enter__(self):
        self.most, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return self

    def sample(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            for gpu in machine.look().gpus[:1]:
                self.most = max(self.most, gpu.total - gpu.free)

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


def make_random_model(folder: Path, shape: dict) -> None:
    """Save a Qwen2 of a shape with random weights, in bf16, and the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(**shape, max_position_embeddings=131072, bos_token_id=None, **ends)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def kernels(bench: Bench) -> dict:
    """Attention and log-probabilities against fp32, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_kernels"]
    limits = {"cwd": ROOT, "env": bench.environment(), "timeout": bench.seconds}
    done = subprocess.run(command, capture_output=True, text=True, **limits)
    (bench.folder / "kernels.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def of_steps(metrics: dict[int, dict]) -> dict:
    """Return the figures of a training's last step."""
    last = metrics[max(metrics)]
    figures = {f"{part}, seconds": last[key] for part, key in PARTS.items() if key in last}
    figures["step, seconds"] = last["timing_s/step"]
    names = {
        "perf/throughput": "tokens per second, prompts included",
        "actor/perf/max_memory_allocated_gb": "actor's most memory, GB",
        "memory": "most memory in use on the GPU, GiB",
        "training/rollout_probs_diff_mean": "rollout-trainer mismatch, mean probability",
    }
    if last.get("memory"):  # verl knows the peak of no CPU
        names["perf/mfu/actor"] = "MFU of the update"
    return figures | {name: last[key] for key, name in names.items() if last.get(key)}


def demo(bench: Bench) -> dict:
    """The demo's first steps: does it learn, and how long does a start take?"""
    bench.demo_files()
    started = time.time()
    sizes = ["trainer.total_training_steps=8", "trainer.save_freq=4", "trainer.test_freq=4"]
    metrics = bench.train("gpu_demo", "demo", *sizes)
    accuracy = {step: validation_accuracy(line) for step, line in metrics.items()}
    figures = {f"validation accuracy at step {s}": a for s, a in accuracy.items() if a is not None}
    attempts = ROOT / "outputs" / "gpu_demo" / "config.yaml"
    figures["from the start to the end, seconds"] = time.time() - started
    figures["attention"] = OmegaConf.select(OmegaConf.load(attempts), attention.KEY)
    return figures | of_steps(metrics)


def step_overrides(bench: Bench, prompts: int, tokens: int) -> list[str]:
    """Return a step of the paper's config on one GPU, all responses as long as they may be."""
    preset = [] if bench.small else [f"+hardware={'one_80gb' if bench.gpu_gib > 70 else 'one_24gb'}"]
    sizes = [f"data.train_batch_size={prompts}", "actor_rollout_ref.actor.ppo_mini_batch_size=1"]
    sizes += [f"data.max_response_length={tokens}", "actor_rollout_ref.rollout.ignore_eos=true"]
    sizes += ["trainer.total_training_steps=1", "trainer.save_freq=-1", *NO_VALIDATION, *ONE_WORKER]
    model = [f"actor_rollout_ref.model.path={bench.model()}"]
    return ["justrl_deepseek", "--allow", "*", *preset, *DATA, *model, *sizes]


def long(bench: Bench) -> dict:
    """One step at the backbone's shape, all responses of the longest length, beside the plan."""
    prompts, tokens = (2, 256) if bench.small else (4 if bench.gpu_gib > 70 else 1, 15360)
    metrics = bench.train("gpu_long", *step_overrides(bench, prompts, tokens))
    figures = {"responses": prompts * 8, "tokens of each": tokens} | of_steps(metrics)
    config = OmegaConf.load(ROOT / "outputs" / "gpu_long" / "config.yaml")
    shape = model_shape(config.actor_rollout_ref.model.path)
    if bench.small:
        return figures
    memory = phases(config, shape, bench.gpu_gib * GIB, 1)
    figures |= {f"plan: {phase}, GiB": sum(parts.values()) / GIB for phase, parts in memory.items()}
    if bench.gpu_type:
        lengths = Lengths(prompts * 8, tokens, tokens, tokens**2)
        ideal = ideal_seconds(config, shape, GPUS[bench.gpu_type], lengths, memory["generation"]["KV cache"])
        reached = utilization(ideal, {part: figures[f"{part}, seconds"] for part in ideal})
        figures |= {"generation, of the bandwidth": reached.generation, "training, of the FLOP/s": reached.training}
        figures["utilization"] = reached._asdict()
    return figures


def two(bench: Bench) -> dict:
    """Two demos on one GPU at once; one is killed at its second step and continues."""
    bench.demo_files()
    share = ["actor_rollout_ref.rollout.gpu_memory_utilization=0.3", "trainer.save_freq=2"]
    # Of a fixed size: vLLM's measuring of free memory fails when another process frees some meanwhile.
    share.append("+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=268435456")
    if bench.small:
        share.pop()
    names, checkpoints = ("gpu_two_a", "gpu_two_b"), ROOT / "outputs/gpu_two_b/checkpoints"
    for name in names:
        shutil.rmtree(ROOT / "outputs" / name, ignore_errors=True)
    runs = [
        bench.start("recipe.train", "demo", *share, *NO_VALIDATION, f"trainer.total_training_steps={steps}",
                    f"trainer.experiment_name={name}", log=name)
        for name, steps in zip(names, (14, 6), strict=True)
    ]  # fmt: skip
    try:
        while runs[1].poll() is None and not (checkpoints / "global_step_2/data.pt").is_file():
            if time.monotonic() > bench.ends:
                break
            time.sleep(1)
        runs[1].kill()
        runs[1].wait()
        bench.train(names[1], "demo", *share, *NO_VALIDATION, "trainer.total_training_steps=6", afresh=False)
        bench.wait(runs[0])
    finally:
        end(runs[0])
    figures = {}
    for name in names:
        metrics = read_metrics(ROOT / "outputs" / name / "metrics.jsonl")
        figures[f"{name}, steps"] = len(metrics)
        figures |= {f"{name}, {what}": value for what, value in of_steps(metrics).items() if "mismatch" in what}
    return figures


def evaluation(bench: Bench) -> dict:
    """Samples a second of eval.generate: short ones of the demo's model, and longer ones at the backbone's shape."""
    figures, long_tokens = {}, 64 if bench.small else 1024
    for name, model, tokens in (("demo", "models/demo", 64), ("random", bench.model(), long_tokens)):
        output = bench.folder / f"evaluation_{name}"
        shutil.rmtree(output, ignore_errors=True)
        shared = ["--bench", "data/demo", "--tasks", "test", "--samples", "4", "--prompt", "training"]
        started = time.monotonic()
        bench.run("eval.generate", "--model", model, *shared, "--max-tokens", str(tokens), "--output", str(output))
        figures[f"{name}: from the start to the end, seconds"] = time.monotonic() - started
        lines = [json.loads(line) for line in (output / "test.samples.jsonl").read_text().splitlines()]
        figures[f"{name}: tokens"] = sum(line["tokens"] for line in lines)
        figures[f"{name}: tokens per second while sampling"] = last_rate(bench.folder / "evaluation.log")
    bench.run("eval.grade", str(bench.folder / "evaluation_demo"))
    scores = json.loads((bench.folder / "evaluation_demo" / "scores.json").read_text())
    figures["random: parameters, billion"] = parameters(TINY if bench.small else DEEPSEEK) / 1e9
    return figures | {"demo: avg@4, percent": 100 * scores["mean"]}


def last_rate(log: Path) -> int:
    """Return the rate (tokens per second) in the last progress line of eval.generate."""
    lines = [line for line in log.read_text().splitlines() if "tokens/s" in line]
    return int(lines[-1].split("responses, ")[1].split(" tokens/s")[0].replace(",", ""))


def attentions(bench: Bench) -> dict:
    """The same step of shorter responses by each attention."""
    kernels = [attention.REFERENCE] if bench.small else [attention.TORCH]
    if not bench.small and not attention.flash_attn_problem():
        kernels.append(attention.FLASH_ATTN)
    figures = {}
    for kernel in [*kernels, "sdpa"]:
        chosen = [f"actor_rollout_ref.model.override_config._attn_implementation={kernel}"]
        tokens = 128 if bench.small else 2048
        arguments = [*step_overrides(bench, 2 if bench.small else 4, tokens), *chosen]
        metrics = bench.train(f"gpu_{kernel}", *arguments, "actor_rollout_ref.rollout.enforce_eager=true")
        figures |= {f"{kernel}: {name}": value for name, value in of_steps(metrics).items() if "generation" not in name}
    return figures


SECTIONS: dict[str, Callable[[Bench], dict]] = {
    "kernels": kernels,
    "demo": demo,
    "long": long,
    "two": two,
    "evaluation": evaluation,
    "attention": attentions,
}
