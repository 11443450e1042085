"""Memory is measured as Ray and the kernel count it, and its end is foreseen by growth alone, not by noise."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from omegaconf import OmegaConf

from common import host_memory
from common.host_memory import Memory, by_role, node_memory
from common.machine import GIB, GPU, Found
from recipe.monitor.memory_growth import (
    FEWEST,
    FULLEST_TOTAL,
    FULLEST_USED,
    ROLE,
    SHARED,
    TOTAL,
    USED,
    WARM_UP,
    MemoryWatch,
    forecast,
    limit_gb,
)
from recipe.verl_plugins import node_memory as node_gauges

MB = 1 << 20
RUN = {"trainer": {"device": "cpu", "total_training_steps": 4380, "default_local_dir": "outputs/r/checkpoints"}}
# A child that says when it holds its memory, and holds it until its standard input ends.
HOLD = "import sys; held = {}; print('holds', flush=True); sys.stdin.read()"
PRIVATE = HOLD.format("b'x' * (200 << 20)")
SHARING = HOLD.format("__import__('mmap').mmap((file := open('{path}', 'r+b')).fileno(), 200 << 20); sum(held[::4096])")
LIMITS = {
    "version 2": ("", "0::/job/step\n", ("memory.max", "memory.current", "")),
    "version 1": ("memory", "5:cpu,memory:/job/step\n", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")),
}


def run(used, total=1000.0, start=1, **more):
    """Return metrics by step of an attempt whose node uses these GiB."""
    return {start + i: {USED: float(value), TOTAL: total, SHARED: 0.0} | more for i, value in enumerate(used)}


def watched(by_step):
    """Return the steps that warn with their message, and those at which the watch says that memory is full."""
    watch, said, full = MemoryWatch(OmegaConf.create(RUN)), {}, []
    for step, metrics in by_step.items():
        for message in watch.add(step, metrics):
            said[step] = message
        full += [step] if watch.full else []
    return said, full


@pytest.fixture(autouse=True)
def ray_default(monkeypatch):
    monkeypatch.delenv("RAY_memory_usage_threshold", raising=False)


@pytest.fixture
def children():
    started = []

    def start(code):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", code], text=True, **pipes))
        assert started[-1].stdout.readline() == "holds\n"
        return psutil.Process(started[-1].pid)

    yield start
    for child in started:
        child.communicate("")


def test_flat_noise_never_has_an_end():
    """Of any length and size, half of them with the peaks that checkpoints make."""
    random = np.random.default_rng(0)
    for trial in range(10_000):
        used = 900 + random.normal(size=random.integers(FEWEST, 210) + WARM_UP) * 10 ** random.uniform(-3, 1.3)
        if trial % 2:
            used[random.integers(50) :: 50] += 30
        assert forecast(run(used)) is None


def test_linear_growth_is_predicted_at_any_noise_below_it_and_early():
    random = np.random.default_rng(1)
    for noise in (0, 0.1, 1):
        by_step = run(500 + 0.5 * np.arange(1, 901) + noise * random.normal(size=900))
        said, full = watched(by_step)
        early = forecast(dict(list(by_step.items())[:300]))
        assert early.step == pytest.approx(900, abs=45)
        assert early.slope == pytest.approx(0.5, rel=0.05)
        assert min(said) <= 130, "long before 900"
        assert 3 <= len(said) <= 8, "once per halving of what is left, not at each step"
        assert 885 <= min(full) <= 895, "the trainer still needs a step or two to save"


def test_peaks_of_checkpoints_end_memory_before_its_mean_does():
    used = 500 + 0.5 * np.arange(1, 601)
    used[49::50] += 100
    assert forecast(run(used)).step == pytest.approx(700, abs=10)


@pytest.mark.parametrize("steps", [8, 20, 60, 300])
def test_growth_that_saturates_below_the_limit_never_warns(steps):
    random = np.random.default_rng(steps)
    x = np.arange(1500)
    assert watched(run(500 + 300 * (1 - np.exp(-x / steps)) + 0.3 * random.normal(size=len(x)))) == ({}, [])


def test_growth_that_slows_down_but_reaches_the_limit_is_foreseen():
    x = np.arange(1, 1500)
    used = 500 + 600 * (1 - np.exp(-x / 300))
    end = int(x[np.argmax(used >= 950)])
    said, full = watched(run(used[:end]))
    assert forecast(run(used[: end - 100])).step == pytest.approx(end, abs=10)
    assert min(said) < end - 200
    assert full


def test_a_jump_is_no_growth():
    random = np.random.default_rng(2)
    for at in (30, 100, 217):
        used = 500 + random.normal(size=600)
        used[at:] += 300
        assert watched(run(used)) == ({}, [])


def test_growth_whose_end_lies_behind_the_run_is_silent():
    assert watched(run(500 + 0.1 * np.arange(4380))) == ({}, [])


def test_the_warning_names_the_role_that_grows(monkeypatch):
    by_step = run(500 + 2.0 * np.arange(1, 101))
    for step, metrics in by_step.items():
        if step % 3 == 0:  # roles are looked at less often
            metrics |= {f"{ROLE}AgentLoopWorker": 10 + 1.5 * step, f"{ROLE}WorkerDict": 300 + 0.1 * step}
    said, _ = watched(by_step)
    expected = (
        "memory of this node grows by 2 GiB per step, mostly AgentLoopWorker, and runs out near step 225 of 4,380"
    )
    assert said[WARM_UP + FEWEST].startswith(f"step {WARM_UP + FEWEST}: {expected}; to free it, create outputs/r/stop")
    assert "mostly unknown processes" in watched(run(500 + 2.0 * np.arange(1, 101)))[0][WARM_UP + FEWEST]
    elsewhere = run(500 + 2.0 * np.arange(1, 101), **{f"{ROLE}recipe.train": 0.1})
    assert "mostly outside this run's processes" in watched(elsewhere)[0][WARM_UP + FEWEST]
    for step, metrics in by_step.items():
        metrics[SHARED] = 2.0 * step
    assert "mostly /dev/shm" in watched(by_step)[0][WARM_UP + FEWEST]
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.8")
    assert forecast(by_step).step == 150


def test_memory_that_fills_too_fast_for_a_fit_is_full():
    said, full = watched(run(np.linspace(500, 940, 12)))
    assert full == [10, 11, 12], "with 40 per step, 860 is the third before the end"
    assert list(said) == [10]
    assert said[10].startswith("step 10: 860.0 of the 950.0 GiB that Ray leaves to this node are in use, 360.0 more")


def test_neither_peaks_nor_a_level_just_below_the_limit_are_full():
    random = np.random.default_rng(4)
    used = 820 + random.normal(size=400)
    used[49::50] += 120
    assert watched(run(used)) == ({}, [])
    x = np.arange(400)
    assert watched(run(700 + 240 * (1 - np.exp(-x / 10)) + 0.3 * random.normal(size=400)))[1] == []


def test_a_node_that_is_full_after_the_start_is_not_restarted():
    random = np.random.default_rng(3)
    said, full = watched(run(np.minimum(949, 930 + 0.1 * np.arange(300) + random.normal(size=300))))
    assert not full
    assert list(said) == [WARM_UP]
    assert "so a restart frees nothing" in said[WARM_UP]
    # What loading takes for a moment is not the level.
    assert watched(run([940, *([600] * 300)])) == ({}, [])


def test_a_step_without_measurement_is_let_pass():
    assert MemoryWatch(OmegaConf.create(RUN)).add(1, {"critic/score/mean": 0.5}) == []


def test_private_memory_counts_in_its_role(children):
    child = children(PRIVATE)
    sizes = by_role([child])
    assert sum(sizes.values()) == pytest.approx(210 * MB, rel=0.1)
    assert next(iter(sizes)).startswith("python")
    assert node_memory().used > 210 * MB


def test_memory_shared_by_two_processes_counts_once(children, tmp_path):
    path = host_memory.SHARED_MEMORY / f"justrl-test-{tmp_path.name}"
    try:
        path.write_bytes(b"x" * (200 * MB))
        both = [children(SHARING.format(path=path)) for _ in range(2)]
        assert sum(process.memory_info().rss for process in both) > 400 * MB
        assert sum(by_role(both).values()) == pytest.approx(215 * MB, rel=0.1)
        assert host_memory.shared_memory() > 200 * MB
    finally:
        path.unlink()


def test_a_process_that_has_ended_is_left_out(children):
    child = children(PRIVATE)
    child.kill()
    child.wait()
    assert sum(by_role([child]).values()) == 0


@pytest.mark.parametrize("version", LIMITS)
def test_the_cgroup_with_the_least_left_counts_without_its_file_cache(version, tmp_path):
    """A job has 4 MB and the step in it no limit; what holds for the whole machine is larger."""
    top, own, (limit, use, prefix) = LIMITS[version]
    (tmp_path / "own").write_text("1:name=systemd:/init\n" + own)
    for folder, allowed in (("", 1 << 62), ("job", 4 * MB), ("job/step", "max" if not prefix else 1 << 62)):
        path = tmp_path / top / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / limit).write_text(f"{allowed}\n")
        (path / use).write_text(f"{3 * MB}\n")
        stat = {"anon": 9, "inactive_file": 7 * MB, "active_file": 7 * MB}  # version 1's of this cgroup alone
        stat |= {f"{prefix}inactive_file": MB, f"{prefix}active_file": MB // 2}
        (path / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))
    assert node_memory(tmp_path, tmp_path / "own") == Memory(3 * MB // 2, 4 * MB)


def test_without_a_limit_the_machine_counts_as_ray_counts_it(tmp_path):
    machine = psutil.virtual_memory()
    found = node_memory(tmp_path, tmp_path / "none")
    assert found.total == machine.total
    assert found.used == pytest.approx(machine.total - machine.available, abs=GIB)


def test_the_node_that_has_least_left_is_watched():
    steps, grown = run([100.0] * 80), 400 + 4.0 * np.arange(80)
    for metrics, used in zip(steps.values(), grown, strict=True):
        metrics |= {FULLEST_USED: used, FULLEST_TOTAL: 1000.0}
    said, full = watched(steps)
    assert "memory of the fullest node grows by 4 GiB per step, mostly unknown processes, and runs out near step" in (
        next(iter(said.values()))
    )
    assert not full
    for metrics in steps.values():
        metrics[FULLEST_TOTAL] = 1e6
    assert watched(steps) == ({}, [])


def test_the_gauges_of_several_nodes_give_the_fullest(monkeypatch):
    memories = [Memory(3 * GIB, 8 * GIB), Memory(30 * GIB, 80 * GIB), Memory(7 * GIB, 8 * GIB)]
    gauges = [SimpleNamespace(take=SimpleNamespace(remote=lambda memory=memory: memory)) for memory in memories]
    fake = SimpleNamespace(nodes=list, wait=lambda calls, **_: (calls[1:], calls[:1]), get=lambda call: call)
    monkeypatch.setattr(node_gauges, "ray", fake)
    watch = node_gauges.NodeMemory()
    assert watch.fullest() == {}, "on one node the supervisor sees all"
    watch.gauges = gauges
    assert watch.fullest() == {FULLEST_USED: 7, FULLEST_TOTAL: 8}


def test_a_watch_measures_this_process_and_keeps_the_highest_sample(children, monkeypatch):
    watch = MemoryWatch(OmegaConf.create(RUN))
    monkeypatch.setattr("recipe.monitor.memory_growth.node_memory", lambda: Memory(7 * GIB, 8 * GIB))
    watch.sample()
    monkeypatch.setattr("recipe.monitor.memory_growth.node_memory", lambda: Memory(5 * GIB, 8 * GIB))
    children(PRIVATE)
    first, second = watch.measure(), watch.measure()
    assert (first[USED], first[TOTAL], second[USED]) == (7, 8, 5)
    assert sum(value for key, value in first.items() if key.startswith(ROLE)) > 0.2
    assert not any(key.startswith(ROLE) for key in second), "every process is looked at now and then only"
    assert limit_gb(first) == pytest.approx(7.6)


def test_gpu_memory_in_use_is_measured_where_the_run_has_gpus(monkeypatch):
    gpus = [GPU(i, "", 80 * GIB, free * GIB, (9, 0), False) for i, free in enumerate((30, 20))]
    monkeypatch.setattr("common.machine.look", lambda: Found(gpus))
    on_cpu, on_gpus = RUN, {"trainer": RUN["trainer"] | {"device": "cuda"}}
    assert "memory/gpu_gb/max" not in MemoryWatch(OmegaConf.create(on_cpu)).measure()
    assert MemoryWatch(OmegaConf.create(on_gpus)).measure()["memory/gpu_gb/max"] == 60
