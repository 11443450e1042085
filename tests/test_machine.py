"""What a GPU machine lacks, with a module in NVML's place that answers as the machine of each test would."""

import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest

from common import machine
from common.machine import GIB, Demand, look
from recipe.compose import compose
from recipe.preflight import demand_here

Memory = namedtuple("Memory", "total free used")


class Stub:
    """NVML's Python module for some GPUs, all H100 unless a test says otherwise."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    def __init__(self, count=8, cuda=13000, name="NVIDIA H100 80GB HBM3", capability=(9, 0), gib=80, **more):
        self.count, self.cuda, self.name, self.capability, self.gib = count, cuda, name, capability, gib
        self.free, self.mig, self.forbidden = (more.get(key, {}) for key in ("free", "mig", "forbidden"))

    def nvmlInit(self):
        if self.count is None:
            raise self.NVMLError("NVML_ERROR_LIBRARY_NOT_FOUND")

    def nvmlShutdown(self):
        pass

    def nvmlDeviceGetCount(self):
        return self.count

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return self.cuda

    def nvmlSystemGetDriverVersion(self):
        return b"550.54.15" if self.cuda < 13000 else "580.65.06"

    def nvmlDeviceGetHandleByIndex(self, index):
        if index in self.forbidden:
            raise self.NVMLError("Insufficient Permissions")
        return index

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}{handle}{handle}"

    def nvmlDeviceGetName(self, handle):
        return self.name

    def nvmlDeviceGetMemoryInfo(self, handle):
        if handle in self.mig:
            raise self.NVMLError("Insufficient Permissions")
        free = self.free.get(handle, self.gib - 1)
        return Memory(self.gib * GIB, free * GIB, (self.gib - free) * GIB)

    def nvmlDeviceGetMigMode(self, handle):
        if self.capability < (8, 0):
            raise self.NVMLError("NVML_ERROR_NOT_SUPPORTED")
        return (int(handle in self.mig), 0)

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return self.capability


@pytest.fixture
def imitated(monkeypatch, tmp_path):
    """Let this machine be one with these GPUs, the wheels of requirements.txt, gcc and Python's headers."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JUSTRL_DEVICE", raising=False)
    monkeypatch.setattr(machine, "wheel_cuda", lambda: (13, 0))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")

    def imitate(**options):
        monkeypatch.setitem(sys.modules, "pynvml", Stub(**options))

    return imitate


@pytest.fixture(scope="module")
def wanted():
    """What the paper's run on one node of 8 GPUs asks of them."""
    return demand_here(compose("justrl_deepseek", ["+hardware=h100_8"], "cuda"))


def test_a_fitting_machine_lacks_nothing(imitated, wanted):
    imitated()
    assert machine.device() == "cuda"
    assert machine.lacks(wanted) == [] == machine.in_use(wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cuda": 12040},
            "NVIDIA driver 550.54.15 supports CUDA 12.4, and the installed torch needs CUDA 13.0; install ",
        ),
        ({"count": 4}, "the run wants 8 GPUs and there are 4; set trainer.n_gpus_per_node=4"),
        ({"name": "Tesla V100", "capability": (7, 0)}, "GPU 0, Tesla V100, has compute capability 7.0, and FlashAtt"),
        ({"mig": (3,)}, "GPU 3 is split by MIG, and a run needs whole GPUs; nvidia-smi -i 3 -mig 0 joins it"),
        ({"gib": 24}, "GPU 0, NVIDIA H100 80GB HBM3, has 24 GiB, and training needs 30"),
        ({"gib": 20 + 20}, ""),
    ],
)
def test_what_gpus_lack_is_one_line(imitated, wanted, options, message):
    imitated(**options)
    found = machine.lacks(wanted)
    assert (found[0] if found else "").startswith(message)
    assert bool(found) == bool(message)


def test_what_training_keeps_beside_the_rollout_counts(imitated):
    imitated(count=1)
    one = demand_here(compose("justrl_deepseek", ["trainer.nnodes=1", "trainer.n_gpus_per_node=1"], "cuda"))
    (line,) = machine.lacks(one)
    assert line.startswith(
        "GPU 0, NVIDIA H100 80GB HBM3, has 80 GiB, of which the rollout takes 85% and training keeps 23"
    )
    preset = compose("justrl_deepseek", ["+hardware=one_80gb"], "cuda")
    assert machine.lacks(demand_here(preset)) == []


def test_a_model_of_another_kind_is_not_guessed_at(imitated, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    imitated(gib=8)
    config = compose("justrl_deepseek", [f"actor_rollout_ref.model.path={tmp_path}"], "cuda")
    assert machine.lacks(demand_here(config)) == []


def test_compiler_and_headers(imitated, wanted, monkeypatch, tmp_path):
    imitated()
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").unlink()
    compiler, headers = machine.lacks(wanted)
    assert compiler.startswith("no C compiler, which Triton needs at run time; install gcc")
    assert headers.startswith(f"{tmp_path}/Python.h is missing, which Triton needs at run time; install")
    monkeypatch.setenv("CC", "cc")
    assert machine.lacks(wanted) == [headers]


def test_a_torch_without_cuda(imitated, wanted, monkeypatch):
    imitated()
    monkeypatch.setattr(machine, "wheel_cuda", lambda: None)
    assert machine.lacks(wanted)[0].startswith("the installed torch has no CUDA; run JUSTRL_DEVICE=cuda")


def test_the_installed_torch_is_read_not_imported():
    assert machine.wheel_cuda() is None, "the CPU set's"


def test_gpus_in_use_are_named_and_idle_ones_offered(imitated, wanted):
    imitated(free={0: 10})
    (line,) = machine.in_use(wanted)
    assert line.startswith("GPU 0: 10.0 of 80.0 GiB are free, and vLLM takes 75% of a GPU; end what uses it")
    assert line.endswith(", or set CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7")
    assert machine.in_use(Demand(1, 0.1, 0.0, 0.0)) == []


@pytest.mark.parametrize(
    ("variable", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        ("GPU-33,1", [3, 1]),
        ("1,9,2", [1]),  # as in CUDA
        ("0,0", [0]),
        ("GPU-", []),  # of several GPUs
    ],
)
def test_cuda_visible_devices(imitated, monkeypatch, variable, indices):
    imitated(count=4)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert [gpu.device_index for gpu in look().gpus] == indices


def test_hidden_gpus_and_slices_are_reported(imitated, monkeypatch, wanted):
    imitated()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert machine.lacks(wanted)[0].startswith("the run wants 8 GPUs and there are 2 (CUDA_VISIBLE_DEVICES=1,2); set")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1a2b")
    assert machine.lacks(wanted) == [
        "CUDA_VISIBLE_DEVICES=MIG-1a2b: a run needs whole GPUs, and MIG-1a2b is a MIG slice"
    ]


def test_gpus_that_a_container_may_not_use_are_left_out(imitated, wanted):
    imitated(count=10, forbidden=(0, 3))
    assert [gpu.device_index for gpu in look().gpus] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert machine.lacks(wanted) == []


def test_on_a_cluster_any_of_a_nodes_gpus_will_do(imitated):
    """Ray chooses them; a raylet may have been started with some of them alone."""
    imitated(free={0: 2, 1: 2}, mig=(2,))
    assert machine.in_use(Demand(4, 0.5, any_gpus=True)) == [] == machine.lacks(Demand(4, 0.5, any_gpus=True))
    assert machine.in_use(Demand(4, 0.5))
    assert machine.in_use(Demand(6, 0.5, any_gpus=True))


def test_without_nvmls_module_nothing_is_reported_of_gpus(imitated, wanted, monkeypatch):
    imitated()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.lacks(wanted) == [] == look().gpus


def test_a_driver_that_cannot_be_used_is_reported_where_its_files_are(imitated, wanted, monkeypatch, tmp_path):
    """A container without the GPU runtime shows /proc/driver/nvidia of its host."""
    imitated(count=None)
    monkeypatch.setattr(machine, "DEVICE_FILES", (str(tmp_path / "absent"),))
    assert machine.device() == "cpu"
    assert machine.lacks(wanted) == []
    monkeypatch.setattr(machine, "DEVICE_FILES", (str(tmp_path),))
    assert machine.device() == "cuda"
    (line,) = machine.lacks(wanted)
    assert line.startswith("the NVIDIA driver cannot be used (NVML_ERROR_LIBRARY_NOT_FOUND); in a container, start it")


def test_the_device_is_what_is_asked_for_or_there(imitated, monkeypatch):
    imitated(count=1)
    assert machine.device() == "cuda"
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=lambda: 1 / 0))
    monkeypatch.setenv("JUSTRL_DEVICE", "cpu")
    assert machine.device() == "cpu", "a sick driver is not asked"
    monkeypatch.setenv("JUSTRL_DEVICE", "gpu")
    with pytest.raises(ValueError, match="use cpu or cuda"):
        machine.device()


def test_too_little_space(monkeypatch):
    free = {"/tmp": 0.5e9, "/dev/shm": 64e6}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))
    lines = machine.space_lacks()
    assert [line[:31] for line in lines] == ["0.50 GB free in /tmp, 2 GB need", "0.06 GB free in /dev/shm, 1 GB "]


@pytest.mark.parametrize(("there", "taken"), [(None, 1), (1, 1), (2, 2), (3, 2), (6, 4), (8, 8)])
def test_the_demo_takes_the_gpus_that_divide_its_batch(imitated, there, taken, monkeypatch):
    imitated(count=there)
    for variable in ("JUSTRL_NODES", "JUSTRL_GPUS_PER_NODE"):
        monkeypatch.delenv(variable, raising=False)
    config = compose("demo", [], "cuda")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (1, taken)
    assert compose("demo", [], "cpu").trainer.n_gpus_per_node == 1
    assert compose("demo", ["trainer.n_gpus_per_node=1"], "cuda").trainer.n_gpus_per_node == 1
    assert compose("demo", ["+hardware=h100_8"], "cuda").trainer.n_gpus_per_node == 8
    monkeypatch.setenv("JUSTRL_NODES", "2")
    monkeypatch.setenv("JUSTRL_GPUS_PER_NODE", "4")
    config = compose("demo", [], "cuda")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (2, 4)
