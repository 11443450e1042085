"""What this machine has, and what it lacks for a run on GPUs, asked of NVML: neither CUDA nor torch is loaded.

`lacks` returns a line for each thing, what is wrong and how to fix it: `recipe.preflight` refuses a run for the first
on this machine, `recipe.nodes` for the first on any node.
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


class Found(NamedTuple):
    """What NVML says: the GPUs that CUDA would see, the driver and the newest CUDA that it supports ("" and None if it
    cannot be asked), and what is wrong with the answer, "" if nothing is."""

    gpus: list[GPU]
    driver: str = ""
    cuda: tuple[int, int] | None = None
    problem: str = ""


class Demand(NamedTuple):
    """What a run asks of this machine: GPUs, and of each what `recipe.memory.demand` says.

    Attributes:
        share: of the memory, which vLLM takes.
        beside: bytes that training keeps meanwhile.
        training: bytes at the peak of training.
        any_gpus: whether any of the machine's GPUs will do, as on a Ray cluster, or the first ones are taken.
    """

    gpus: int
    share: float
    beside: float = 0.0
    training: float = 0.0
    any_gpus: bool = False


def device() -> str:
    """Return "cpu" or "cuda": JUSTRL_DEVICE if set, else what the machine has.

    Raises:
        ValueError: JUSTRL_DEVICE is something else.
    """
    asked = os.environ.get("JUSTRL_DEVICE")
    if asked not in (None, "", "cpu", "cuda"):
        raise ValueError(f"JUSTRL_DEVICE={asked}: use cpu or cuda")
    if asked:
        return asked
    return "cuda" if look().driver or has_device_files() else "cpu"


def has_device_files() -> bool:
    """Return whether a driver's files are there, which a container may show without its driver."""
    return any(Path(file).exists() for file in DEVICE_FILES)


def look() -> Found:
    """Return what NVML says of this machine; nothing where its Python module is not installed."""
    try:
        import pynvml
    except ImportError:
        return Found([])
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        problem = f"the NVIDIA driver cannot be used ({error}); in a container, start it with --gpus all"
        return Found([], problem=problem if has_device_files() else "")
    try:
        version, cuda = text(pynvml.nvmlSystemGetDriverVersion()), pynvml.nvmlSystemGetCudaDriverVersion_v2()
        every = [gpu for i in range(pynvml.nvmlDeviceGetCount()) if (gpu := look_at(pynvml, i))]
        found = Found([], version, (cuda // 1000, cuda % 1000 // 10))
        return found._replace(gpus=visible(every, os.environ.get("CUDA_VISIBLE_DEVICES")))
    except ValueError as error:
        return found._replace(problem=str(error))
    except pynvml.NVMLError as error:
        return Found([], problem=f"the NVIDIA driver does not answer ({error}); nvidia-smi may say more")
    finally:
        pynvml.nvmlShutdown()


def look_at(nvml, index: int) -> tuple[str, GPU] | None:
    """Return a GPU's UUID and what NVML says of it; None for one that a container may not use."""
    mig = False
    with contextlib.suppress(nvml.NVMLError):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        with contextlib.suppress(nvml.NVMLError):  # most GPUs have no MIG
            mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
        total = free = 0
        with contextlib.suppress(nvml.NVMLError):  # of a GPU that is split it may be refused
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            total, free = memory.total, memory.free
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
        name = text(nvml.nvmlDeviceGetName(handle))
        return text(nvml.nvmlDeviceGetUUID(handle)), GPU(index, name, total, free, capability, mig)
    return None


def text(value: str | bytes) -> str:
    """Return a string of NVML's, which older releases of its module give as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def visible(every: list[tuple[str, GPU]], variable: str | None) -> list[GPU]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; as in CUDA, a wrong entry ends the list.

    Raises:
        ValueError: it names a slice of a GPU.
    """
    if variable is None:
        return [gpu for _, gpu in every]
    chosen: list[GPU] = []
    for entry in filter(None, (part.strip() for part in variable.split(","))):
        if entry.startswith("MIG-"):
            raise ValueError(f"CUDA_VISIBLE_DEVICES={variable}: a run needs whole GPUs, and {entry} is a MIG slice")
        matching = [gpu for uuid, gpu in every if (str(gpu.index) == entry) or uuid.startswith(entry)]
        if len(matching) != 1 or matching[0] in chosen:
            break
        chosen += matching
    return chosen


def wheel_cuda() -> tuple[int, int] | None:
    """Return the CUDA version that the installed torch is built for; None for a build without CUDA."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py").read_text() if spec else ""
    found = re.search(r"^cuda\b[^=]*= '(\d+)\.(\d+)'", version, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def lacks(demand: Demand) -> list[str]:
    """Return what this machine lacks for a run on GPUs, whatever else uses them, a line each."""
    found = look()
    return [*driver_lacks(found), *compiler_lacks(), *gpu_lacks(found, demand), *space_lacks()]


def driver_lacks(found: Found) -> list[str]:
    """Return a line if the driver cannot be used or is too old for the installed torch, or that is without CUDA."""
    wheels = wheel_cuda()
    if wheels is None:
        return ["the installed torch has no CUDA; run JUSTRL_DEVICE=cuda ./run_justrl.sh --setup-only"]
    if found.problem:
        return [found.problem]
    if found.cuda and found.cuda < (wheels[0], 0):
        return [
            f"NVIDIA driver {found.driver} supports CUDA {found.cuda[0]}.{found.cuda[1]}, and the installed torch "
            f"needs CUDA {wheels[0]}.{wheels[1]}; install driver {DRIVERS.get(wheels[0], 'a newer one')} or newer"
        ]
    return []


def compiler_lacks() -> list[str]:
    """Return a line for each thing missing that Triton compiles with at run time: a C compiler, Python's headers."""
    found = []
    if not os.environ.get("CC") and not shutil.which("gcc") and not shutil.which("clang"):
        found.append("no C compiler, which Triton needs at run time; install gcc (apt-get install gcc)")
    # As triton.runtime.build has it: Debian's own scheme names a folder that only its packages fill.
    scheme = sysconfig.get_default_scheme()
    include = Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme))
    if not (include / "Python.h").is_file():
        found.append(
            f"{include}/Python.h is missing, which Triton needs at run time; install Python's headers (apt-get install "
            "python3-dev), or remove .venv and set up again, which then takes a Python that has them"
        )
    return found


def gpu_lacks(found: Found, demand: Demand) -> list[str]:
    """Return a line for each GPU of the run that cannot serve it, or one for too few of them."""
    if not found.driver or found.problem:
        return []
    if len(found.gpus) < demand.gpus:
        variable = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if variable is None else f" (CUDA_VISIBLE_DEVICES={variable})"
        there = len(found.gpus)
        advice = f"set trainer.n_gpus_per_node={there}" if there else "JUSTRL_DEVICE=cpu runs on the CPU"
        return [f"the run wants {demand.gpus} GPUs and there are {there}{hidden}; {advice}"]
    return [line for gpu in taken(found, demand) if (line := one_gpu_lacks(gpu, demand))]


def taken(found: Found, demand: Demand) -> list[GPU]:
    """Return the GPUs that a run takes: the first, or of any the best."""
    gpus = found.gpus
    if demand.any_gpus:
        gpus = sorted(gpus, key=lambda gpu: (bool(one_gpu_lacks(gpu, demand)), -gpu.free))
    return gpus[: demand.gpus]


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
    """Return a line if a GPU of the run has less free than vLLM takes, which would fail minutes later."""
    found = look()
    busy = [gpu for gpu in taken(found, demand) if gpu.free < demand.share * gpu.total]
    if not busy:
        return []
    idle = ",".join(str(gpu.index) for gpu in found.gpus if gpu.free >= demand.share * gpu.total)
    instead = f", or set CUDA_VISIBLE_DEVICES={idle}" if idle else ""
    return [
        f"GPU {busy[0].index}: {busy[0].free / GIB:.1f} of {busy[0].total / GIB:.1f} GiB are free, and vLLM takes "
        f"{demand.share:.0%} of a GPU; end what uses it (nvidia-smi){instead}"
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
    there = max(1, len(look().gpus))
    return next(count for count in range(there, 0, -1) if not divides or divides % count == 0)
