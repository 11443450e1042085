"""What this machine has, and what it lacks for a run on GPUs, asked of NVML: neither CUDA nor torch is loaded.

`lacks` lists a message for each thing, what is wrong and how to fix it: `recipe.preflight` refuses a run for the first
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

    device_index: int
    name: str
    total: int
    free: int
    capability: tuple[int, int]
    mig: bool


class Found(NamedTuple):
    """What NVML reports: the GPUs that CUDA would see, the driver, the newest CUDA it supports, and what is wrong."""

    gpus: list[GPU]
    driver: str = ""
    cuda: tuple[int, int] | None = None
    problem: str = ""


class Demand(NamedTuple):
    """What a run asks of this machine: GPUs, and of each what `recipe.memory.demand` computes."""

    gpus: int
    share: float  # of the memory, which vLLM takes
    beside: float = 0.0  # bytes that training keeps meanwhile
    training: float = 0.0  # bytes at the peak of training
    others: int = 0  # of the GPUs, those of a teacher
    any_gpus: bool = False  # as on a Ray cluster, any of the machine's GPUs will do; else it takes the first ones


def device() -> str:
    """Return "cpu" or "cuda": JUSTRL_DEVICE, else what the machine has; ValueError if it is set to something else."""
    asked = os.environ.get("JUSTRL_DEVICE")
    if asked not in (None, "", "cpu", "cuda"):
        raise ValueError(f"JUSTRL_DEVICE={asked}: use cpu or cuda")
    return asked or ("cuda" if look().driver or has_device_files() else "cpu")


def has_device_files() -> bool:
    """Look for a driver's files, which a container may show without its driver."""
    return any(Path(file).exists() for file in DEVICE_FILES)


def look() -> Found:
    """Ask NVML about this machine; nothing is found where its Python module is not installed."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return Found([])
    except pynvml.NVMLError as error:
        problem = f"the NVIDIA driver cannot be used ({error}); in a container, start it with --gpus all"
        return Found([], problem=problem if has_device_files() else "")
    try:
        cuda = divmod(pynvml.nvmlSystemGetCudaDriverVersion_v2() // 10, 100)  # 12040 is 12.4
        found = Found([], text(pynvml.nvmlSystemGetDriverVersion()), cuda)
        every = [gpu for i in range(pynvml.nvmlDeviceGetCount()) if (gpu := look_at(pynvml, i))]
        return found._replace(gpus=visible(every, os.environ.get("CUDA_VISIBLE_DEVICES")))
    except ValueError as error:
        return found._replace(problem=str(error))
    except pynvml.NVMLError as error:
        return Found([], problem=f"the NVIDIA driver does not answer ({error}); nvidia-smi may say more")
    finally:
        pynvml.nvmlShutdown()


def look_at(nvml, index: int) -> tuple[str, GPU] | None:
    """Ask about a GPU and return its UUID too; None for one that a container may not use."""
    mig, total, free = False, 0, 0
    with contextlib.suppress(nvml.NVMLError):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        with contextlib.suppress(nvml.NVMLError):  # most GPUs have no MIG
            mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
        with contextlib.suppress(nvml.NVMLError):  # of a GPU that is split it may be refused
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            total, free = memory.total, memory.free
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
        name = text(nvml.nvmlDeviceGetName(handle))
        return text(nvml.nvmlDeviceGetUUID(handle)), GPU(index, name, total, free, capability, mig)
    return None


def text(value: str | bytes) -> str:
    """Decode what older releases of NVML's module give as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def visible(every: list[tuple[str, GPU]], variable: str | None) -> list[GPU]:
    """Choose GPUs as CUDA_VISIBLE_DEVICES does, where a wrong entry ends the list; ValueError for a slice of a GPU."""
    if variable is None:
        return [gpu for _, gpu in every]
    chosen: list[GPU] = []
    for entry in filter(None, (part.strip() for part in variable.split(","))):
        if entry.startswith("MIG-"):
            raise ValueError(f"CUDA_VISIBLE_DEVICES={variable}: a run needs whole GPUs, and {entry} is a MIG slice")
        matching = [gpu for uuid, gpu in every if (str(gpu.device_index) == entry) or uuid.startswith(entry)]
        if len(matching) != 1 or matching[0] in chosen:
            break
        chosen += matching
    return chosen


def wheel_cuda() -> tuple[int, int] | None:
    """Find the CUDA version that the installed torch is built for; None for a build without CUDA."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    found = re.search(r"^cuda\b[^=]*= '(\d+)\.(\d+)'", version, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def lacks(demand: Demand) -> list[str]:
    """List what this machine lacks for a run on GPUs, whatever else uses them."""
    found = look()
    return [*driver_lacks(found), *compiler_lacks(), *gpu_lacks(found, demand), *space_lacks()]


def driver_lacks(found: Found) -> list[str]:
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
    """Look for what Triton compiles with at run time."""
    found = []
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        found.append("no C compiler, which Triton needs at run time; install gcc (apt-get install gcc)")
    # As triton.runtime.build has it: Debian's own scheme names a folder that only its packages fill.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    if not header.is_file():
        found.append(
            f"{header} is missing, which Triton needs at run time; install Python's headers (apt-get install "
            "python3-dev), or remove .venv and set up again, which then takes a Python that has them"
        )
    return found


def gpu_lacks(found: Found, demand: Demand) -> list[str]:
    if not found.driver or found.problem:
        return []
    there = len(found.gpus)
    if there >= demand.gpus:
        return [problem for gpu in taken(found, demand) if (problem := gpu_problem(gpu, demand))]
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if variable is None else f" (CUDA_VISIBLE_DEVICES={variable})"
    left = there - demand.others
    advice = f"set trainer.n_gpus_per_node={left}" if left > 0 else "JUSTRL_DEVICE=cpu runs on the CPU"
    if there and left <= 0:
        advice = f"the teacher takes {demand.others}: lower distillation.n_gpus_per_node"
    return [f"the run wants {demand.gpus} GPUs and there are {there}{hidden}; {advice}"]


def taken(found: Found, demand: Demand) -> list[GPU]:
    """Choose the GPUs that a run takes: the first, or of any the best."""
    gpus = found.gpus
    if demand.any_gpus:
        gpus = sorted(gpus, key=lambda gpu: (bool(gpu_problem(gpu, demand)), -gpu.free))
    return gpus[: demand.gpus]


def gpu_problem(gpu: GPU, demand: Demand) -> str:
    """Tell why a GPU cannot serve the run; "" if it can."""
    if gpu.mig:
        fix = f"nvidia-smi -i {gpu.device_index} -mig 0 joins it"
        return f"GPU {gpu.device_index} is split by MIG, and a run needs whole GPUs; {fix}"
    if gpu.capability < OLDEST:
        return (
            f"GPU {gpu.device_index}, {gpu.name}, has compute capability {gpu.capability[0]}.{gpu.capability[1]}, and "
            "FlashAttention needs 8.0 (Ampere) or newer; take another GPU"
        )
    size = f"GPU {gpu.device_index}, {gpu.name}, has {gpu.total / GIB:.0f} GiB"
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
    """Look for a GPU of the run that has less free than vLLM takes, which would fail minutes later."""
    found = look()
    busy = [gpu for gpu in taken(found, demand) if gpu.free < demand.share * gpu.total]
    if not busy:
        return []
    idle = ",".join(str(gpu.device_index) for gpu in found.gpus if gpu.free >= demand.share * gpu.total)
    instead = f", or set CUDA_VISIBLE_DEVICES={idle}" if idle else ""
    gpu = busy[0]
    return [
        f"GPU {gpu.device_index}: {gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB are free, and vLLM takes "
        f"{demand.share:.0%} of a GPU; end what uses it (nvidia-smi){instead}"
    ]


def free_space() -> dict[str, float]:
    """Measure the GB free in each folder of FREE_SPACE that there is."""
    return {path: shutil.disk_usage(path).free / 1e9 for path in FREE_SPACE if Path(path).is_dir()}


def space_lacks() -> list[str]:
    return [
        f"{free:.2f} GB free in {path}, {FREE_SPACE[path]:.0f} GB needed; free some, in a container by --ipc=host or "
        "--shm-size"
        for path, free in free_space().items()
        if free < FREE_SPACE[path]
    ]


def count_gpus(divides: int = 0, left: int = 0) -> int:
    """Count this machine's GPUs but `left` of them, at least 1; of more than divide a number, as many as do."""
    there = max(1, len(look().gpus) - left)
    return next(count for count in range(there, 0, -1) if not divides or divides % count == 0)
