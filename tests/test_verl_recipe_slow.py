"""Two steps of the generated folder in a checkout of verl, by its own script: this repository is not on the path.

A GPU is what stock verl needs and this machine lacks, so the CPU platform comes from outside: by verl's environment
variables and a config group, from a copy of `recipe/cpu` under another name, since `recipe` is verl-recipe there.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from common.processes import RAY_PATIENCE
from recipe.cpu.environment import ENVIRONMENT
from recipe.monitor.metrics import has_training, read_metrics
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_verl_recipe import make_checkout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]

CPU, SCRIPT = "outside_cpu", "recipe/justrl/run_deepseek_r1_distill_qwen_1.5b.sh"
OURS = ("JUSTRL_", "VERL_", "PYTHONPATH", "RAY_ADDRESS")  # variables that a checkout of verl does not have
OVERRIDES = [
    f"actor_rollout_ref.model.path={ROOT}/models/demo",
    f"data.train_files={ROOT}/data/demo/train.parquet",
    f"data.val_files={ROOT}/data/demo/test.parquet",
    "data.val_max_samples=8",
    "data.train_batch_size=8",
    "data.max_prompt_length=64",
    "data.max_response_length=32",
    "data.dataloader_num_workers=0",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
    "actor_rollout_ref.rollout.max_num_batched_tokens=8192",
    "actor_rollout_ref.rollout.max_model_len=128",
    "actor_rollout_ref.rollout.max_num_seqs=64",
    "actor_rollout_ref.rollout.val_kwargs.n=1",
    "actor_rollout_ref.rollout.custom.validation_response_length=32",
    "trainer.total_training_steps=2",
    "trainer.save_freq=2",
    "trainer.test_freq=2",
    "++trainer.v1.sampler.sampler_kwargs.poll_interval=0.2",
    "++ray_kwargs.ray_init.address=local",
    "++ray_kwargs.ray_init.include_dashboard=false",
    "++ray_kwargs.ray_init.num_cpus=8",
    "++ray_kwargs.ray_init.num_gpus=1",  # declared, for the one rank
]


def outside(text: str) -> str:
    return text.replace("recipe.cpu", CPU).replace("recipe.verl_plugins", "recipe.justrl")


def write_cpu_platform(checkout: Path) -> None:
    """Write the module and the config group that stand for a user's own platform."""
    (checkout / CPU).mkdir()
    for name in ("__init__", "platform", "rollout", "agent_loops"):
        (checkout / CPU / f"{name}.py").write_text(outside((ROOT / "recipe" / "cpu" / f"{name}.py").read_text()))
    # On a loaded machine stock Ray gives up on its own agents; the import is only for this file as a program.
    patience = (ROOT / "common" / "ray_start.py").read_text()
    imported = "from common.processes import RAY_PATIENCE, python_path\n"
    assert imported in patience
    (checkout / CPU / "ray_start.py").write_text(f"{patience.replace(imported, '')}\n\nprepare_ray_start()\n")
    (checkout / "groups" / "device").mkdir(parents=True)
    preset = (ROOT / "recipe" / "config" / "device" / "cpu.yaml").read_text()
    (checkout / "groups" / "device" / "cpu.yaml").write_text(outside(preset))


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {
        **kept,
        **RAY_PATIENCE,
        **ENVIRONMENT,
        "VERL_USE_EXTERNAL_MODULES": f"{CPU}.platform,{CPU}.ray_start",
        "JUSTRL_DEVICE": "cpu",  # the platform's, to run where there is a GPU
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }


def run_to_the_end(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a command; one that hangs is ended with its child processes, and fails."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, cwd=folder, env=environment(), **pipes)
    try:
        output, _ = process.communicate(timeout=HANGING_SECONDS)
    finally:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
    return process.returncode, output


def test_two_steps_in_a_checkout_of_verl(tmp_path):
    make_checkout(tmp_path)
    write_cpu_platform(tmp_path)
    status, output = run_to_the_end(["bash", SCRIPT, "--config-dir=groups", "+device=cpu", *OVERRIDES], tmp_path)
    assert status == 0, output[-5000:]
    run = tmp_path / "outputs" / "justrl_deepseek"
    (log,) = run.glob("*.jsonl")
    metrics = read_metrics(log)
    assert sorted(metrics) == [0, 1, 2]
    for step in (1, 2):
        assert has_training(metrics[step])
        assert math.isfinite(metrics[step]["actor/grad_norm"])
        assert "reward/lenient" in metrics[step], "the shadow of reward.py, averaged by replay_buffer.py"
        assert metrics[step]["rollout/lost_prompts"] == metrics[step]["rollout/short_groups"] == 0
        assert metrics[step]["rollout/preemptions"] == 0
    for step in (0, 2):
        assert any(key.startswith("val-core/") for key in metrics[step]), "agent_loops.py has a loop for validation"
    assert (run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "2"
