"""What this machine has, and what it lacks for a run on GPUs, asked of NVML: neither CUDA nor torch is loaded.

`lacks` gives a line for each thing, what is wrong and how to fix it; `recipe.preflight` refuses a run for the first on
this machine, `recipe.nodes` for the first on any node.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

GIB = 2**30
DEVICE_FILES = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl")  # some sandboxes have one of them, or none
FREE_SPACE = {"/tmp": 2.0, "/dev/shm": 1.0}  # GB that Ray's logs and spilled objects, and its shared memory, need
OLDEST = (8, 0)  # compute capability that FlashAttention 2 and bf16 need: Ampere
DRIVERS = {12: "525", 13: "580"}  # NVIDIA's table of the oldest driver for any release of a CUDA major version


class GPU(NamedTuple):
    """A GPU that CUDA would see; sizes in bytes."""

    index: int
    name: str
    total: int
    free: int
    capability: tuple[int, int]
    mig: bool


class Driver(NamedTuple):
    """The driver's version, and the newest CUDA that it supports."""

    version: str
    cuda: tuple[int, int]


def device() -> str:
    """Return "cpu" or "cuda": JUSTRL_DEVICE if set, else what the machine has.

    Raises:
        ValueError: JUSTRL_DEVICE is something else.
    """
    asked = os.environ.get("JUSTRL_DEVICE")
    if asked not in (None, "", "cpu", "cuda"):
        raise ValueError(f"JUSTRL_DEVICE={asked}: use cpu or cuda")
    with nvml() as library:
        found = library.nvmlDeviceGetCount() if library else any(Path(file).exists() for file in DEVICE_FILES)
    return asked or ("cuda" if found else "cpu")


@contextlib.contextmanager
def nvml():
    """Yield NVML's Python module, or None where it is not installed or there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def driver() -> Driver | None:
    """Return the NVIDIA driver; None where NVML cannot be asked."""
    with nvml() as library:
        if not library:
            return None
        cuda = library.nvmlSystemGetCudaDriverVersion_v2()
        return Driver(text(library.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10))


def text(value: str | bytes) -> str:
    """Return a string of NVML's, which older releases of its module give as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def gpus() -> list[GPU]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; none where NVML cannot be asked.

    Raises:
        ValueError: CUDA_VISIBLE_DEVICES names a slice of a GPU.
    """
    with nvml() as library:
        if not library:
            return []
        every = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        uuids = [text(library.nvmlDeviceGetUUID(handle)) for handle in every]
        return [look_at(library, every[i], i) for i in visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))]


def visible(uuids: list[str], variable: str | None) -> list[int]:
    """Return the indices of the GPUs that CUDA_VISIBLE_DEVICES leaves; as in CUDA, a wrong entry ends the list."""
    if variable is None:
        return list(range(len(uuids)))
    chosen = []
    for entry in filter(None, (part.strip() for part in variable.split(","))):
        if entry.startswith("MIG-"):
            raise ValueError(f"CUDA_VISIBLE_DEVICES={variable}: a run needs whole GPUs, and {entry} is a MIG slice")
        if entry.isdigit():
            matching = [int(entry)] if int(entry) < len(uuids) else []
        else:
            matching = [i for i, uuid in enumerate(uuids) if uuid.startswith(entry)]
        if len(matching) != 1 or matching[0] in chosen:
            break
        chosen += matching
    return chosen


def look_at(library, handle, index: int) -> GPU:
    """Return what NVML says of one GPU."""
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    mig = False
    with contextlib.suppress(library.NVMLError):  # most GPUs have no MIG, and some containers may not ask
        mig = library.nvmlDeviceGetMigMode(handle)[0] == library.NVML_DEVICE_MIG_ENABLE
    capability = tuple(library.nvmlDeviceGetCudaComputeCapability(handle))
    return GPU(index, text(library.nvmlDeviceGetName(handle)), memory.total, memory.free, capability, mig)


def wheel_cuda() -> tuple[int, int] | None:
    """Return the CUDA version that the installed torch is built for; None for a build without CUDA."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py").read_text() if spec else ""
    found = re.search(r"^cuda\b[^=]*= '(\d+)\.(\d+)'", version, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


class Demand(NamedTuple):
    """What a run asks of this machine: GPUs, and of each what `recipe.memory.demand` says."""

    gpus: int
    share: float
    beside: float
    training: float


def lacks(demand: Demand) -> list[str]:
    """Return what this machine lacks for a run on GPUs, a line each; none of GPUs where NVML cannot be asked."""
    return [*driver_lacks(), *compiler_lacks(), *gpu_lacks(demand), *space_lacks()]


def driver_lacks() -> list[str]:
    """Return a line if the driver is too old for the installed torch, or torch is built without CUDA."""
    wheels, found = wheel_cuda(), driver()
    if wheels is None:
        return ["the installed torch has no CUDA; run JUSTRL_DEVICE=cuda ./run_justrl.sh --setup-only"]
    if found is None:
        return []
    if found.cuda < (wheels[0], 0):
        oldest = DRIVERS.get(wheels[0], "a newer one")
        return [
            f"NVIDIA driver {found.version} supports CUDA {found.cuda[0]}.{found.cuda[1]}, and the installed torch "
            f"needs CUDA {wheels[0]}.{wheels[1]}; install driver {oldest} or newer"
        ]
    return []


def compiler_lacks() -> list[str]:
    """Return a line for each thing missing that Triton compiles with at run time: a C compiler, Python's headers."""
    found = []
    if not os.environ.get("CC") and not shutil.which("gcc") and not shutil.which("clang"):
        found.append("no C compiler, which Triton needs at run time; install gcc (apt-get install gcc)")
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        found.append(
            f"{include}/Python.h is missing, which Triton needs at run time; install Python's headers (apt-get install "
            "python3-dev), or remove .venv and set up again, which then takes a Python that has them"
        )
    return found


def gpu_lacks(demand: Demand) -> list[str]:
    """Return a line for each GPU of the run that cannot serve it, whatever else uses it, or one for too few of them."""
    with nvml() as library:
        if not library:
            return []
    try:
        every = gpus()
    except ValueError as error:
        return [str(error)]
    if len(every) < demand.gpus:
        variable = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if variable is None else f" (CUDA_VISIBLE_DEVICES={variable})"
        advice = f"set trainer.n_gpus_per_node={len(every)}" if every else "JUSTRL_DEVICE=cpu runs on the CPU"
        return [f"the run wants {demand.gpus} GPUs and there are {len(every)}{hidden}; {advice}"]
    return [line for gpu in every[: demand.gpus] if (line := one_gpu_lacks(gpu, demand))]


def one_gpu_lacks(gpu: GPU, demand: Demand) -> str:
    """Return a line about a GPU that cannot serve the run; "" if it can."""
    if gpu.mig:
        return f"GPU {gpu.index} is split by MIG, and a run needs whole GPUs; nvidia-smi -i {gpu.index} -mig 0 joins it"
    if gpu.capability < OLDEST:
        return (
            f"GPU {gpu.index}, {gpu.name}, has compute capability {gpu.capability[0]}.{gpu.capability[1]}, and "
            "FlashAttention needs 8.0 (Ampere) or newer; take another GPU"
        )
    size = f"GPU {gpu.index}, {gpu.name}, has {gpu.total / GIB:.0f} GiB"
    if gpu.total < demand.training:
        return (
            f"{size}, and training needs {demand.training / GIB:.0f} (recipe.plan has the parts); take more GPUs, "
            "a preset such as +hardware=one_24gb, or a smaller actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
        )
    if (1 - demand.share) * gpu.total < demand.beside:
        return (
            f"{size}, of which the rollout takes {demand.share:.0%} and training keeps {demand.beside / GIB:.0f} GiB; "
            "lower actor_rollout_ref.rollout.gpu_memory_utilization"
        )
    return ""


def in_use(demand: Demand) -> list[str]:
    """Return a line if a GPU of the run has less free than the rollout's share: vLLM would refuse it minutes later."""
    every = gpus()
    taken = [gpu for gpu in every[: demand.gpus] if gpu.free < demand.share * gpu.total]
    if not taken:
        return []
    idle = ",".join(str(gpu.index) for gpu in every if gpu.free >= demand.share * gpu.total)
    instead = f"set CUDA_VISIBLE_DEVICES={idle}, " if idle else ""
    return [
        f"GPU {taken[0].index}: {taken[0].free / GIB:.1f} of {taken[0].total / GIB:.1f} GiB are free, and the rollout "
        f"takes {demand.share:.0%} of a GPU; end what uses it (nvidia-smi), {instead}"
        "or lower actor_rollout_ref.rollout.gpu_memory_utilization"
    ]


def free_space() -> dict[str, float]:
    """Return the GB free in each folder of FREE_SPACE that there is."""
    return {path: shutil.disk_usage(path).free / 1e9 for path in FREE_SPACE if Path(path).is_dir()}


def space_lacks() -> list[str]:
    """Return a line for each folder of FREE_SPACE with too little."""
    return [
        f"{free:.2f} GB free in {path}, {FREE_SPACE[path]:.0f} GB needed; free some, in a container by --ipc=host or "
        "--shm-size"
        for path, free in free_space().items()
        if free < FREE_SPACE[path]
    ]


def count_gpus(divides: int = 0) -> int:
    """Return how many GPUs this machine has, at least 1; of more than divide a number, as many as do."""
    there = max(1, len(gpus()))
    return next(count for count in range(there, 0, -1) if not divides or divides % count == 0)
