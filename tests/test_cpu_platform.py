"""The CPU platform, in a process of its own as verl loads it."""

import os
import subprocess
import sys

from recipe.cpu.environment import ENVIRONMENT as CPU_ENVIRONMENT
from tests.conftest import HANGING_SECONDS, ROOT


def python(code, **environment):
    """Run code in a process with the CPU platform's environment."""
    variables = os.environ | CPU_ENVIRONMENT | {"PYTHONPATH": str(ROOT), "RAY_LOCAL_WORLD_SIZE": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=HANGING_SECONDS
    )


def test_verl_finds_the_platform_and_its_answers():
    code = """
import importlib.metadata, torch, verl
from verl.plugin.platform import get_platform
from verl.utils import device, distributed
from verl.workers.engine import EngineRegistry
platform = get_platform()
assert type(platform).__module__ == "recipe.cpu.platform"
assert device.get_device_name() == "cpu" and device.get_device_id() == "cpu"
assert device.get_torch_device().max_memory_allocated() == 0
assert not device.is_support_ipc()
assert "cpu" in importlib.metadata.version("vllm")
assert "FSDP" in EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager
state = BaseCheckpointManager.get_rng_state()
first = torch.rand(3)
BaseCheckpointManager.load_rng_state(state)
assert torch.equal(torch.rand(3), first)
import os
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": "0", "WORLD_SIZE": "1"}
distributed.initialize_global_process_group_ray()
tensor = torch.ones(3, device=device.get_device_id())
torch.distributed.all_reduce(tensor)
assert torch.distributed.get_backend() == "gloo"
print("all answered")
"""
    done = python(code)
    assert "all answered" in done.stdout, done.stderr[-2000:]


def test_it_refuses_a_machine_with_a_gpu_unless_the_cpu_is_requested():
    """torch.cuda.is_available, which alone decides, stands for a machine with a GPU."""
    code = "import torch; torch.cuda.is_available = lambda: True\nimport recipe.cpu.platform\nprint('loaded')"
    refused = python(code, JUSTRL_DEVICE="")
    assert "set JUSTRL_DEVICE=cpu" in refused.stderr
    assert "loaded" not in refused.stdout


def test_the_rollout_keeps_weights_that_can_be_loaded_into_again():
    code = """
import torch
from recipe.cpu.rollout import keep_weight_unpacked
layer = torch.nn.Linear(4, 4, bias=False)
keep_weight_unpacked(layer, remove_weight=True)
layer.weight.data.fill_(2.0)
assert layer.cpu_linear(torch.ones(1, 4), layer.weight).sum().item() == 32.0
print("replaced")
"""
    done = python(code)
    assert "replaced" in done.stdout, done.stderr[-2000:]
