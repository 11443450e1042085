"""`actor_rollout_ref.nccl_timeout` reaches PyTorch, in a process as a run starts it."""

import os
import subprocess
import sys

import pytest

from recipe.compose import compose
from recipe.environment import fixed_environment
from tests.conftest import HANGING_SECONDS, ROOT

# engine_workers takes the function by name, as this does.
WORKER = """
import torch.distributed
torch.distributed.init_process_group = lambda **options: print("backend", options["backend"], options["timeout"])
from verl.utils.distributed import initialize_global_process_group_ray
initialize_global_process_group_ray(timeout_second=None)
"""


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "cpu:gloo,")])
def test_the_timeout_reaches_the_process_group_of_a_training_worker(device, backend, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "this")  # a module of the user's own is kept
    config = compose("demo", ["actor_rollout_ref.nccl_timeout=7", "trainer.n_gpus_per_node=2"], "cpu")
    config.trainer.device = device
    variables = os.environ | fixed_environment(config) | {"RAY_LOCAL_WORLD_SIZE": "2"}
    options = {"cwd": ROOT, "env": variables, "capture_output": True, "text": True, "timeout": HANGING_SECONDS}
    done = subprocess.run([sys.executable, "-c", WORKER], **options)
    assert f"backend {backend}" in done.stdout, done.stderr[-2000:]
    assert "0:00:07" in done.stdout
    assert "The Zen of Python" in done.stdout
