"""What of the supervisor can be seen without a run."""

import os
import signal

import pytest
from omegaconf import OmegaConf

from common.processes import RAY_PATIENCE
from recipe.compose import compose
from recipe.environment import environment, prepare_config
from recipe.train import STOPPING_SIGNALS, Interrupted, interrupt


@pytest.fixture
def handlers():
    """The handlers of signals, put back after the test: what is ignored here, every later child would ignore."""
    before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_an_interrupt_crosses_a_library_that_rewrites_errors():
    OmegaConf.register_new_resolver("interrupt", lambda: interrupt(signal.SIGTERM, None))
    config = OmegaConf.create({"value": "${interrupt:}"})
    with pytest.raises(Interrupted, match=r"^SIGTERM$"):
        config["value"]
    assert {signal.getsignal(number) for number in STOPPING_SIGNALS} == {signal.SIG_IGN}, "a second one is no matter"


@pytest.fixture
def alone(monkeypatch):
    """No Ray cluster, and nothing of Ray's in the environment."""
    for name in ("RAY_ADDRESS", "JUSTRL_FORK_SERVER", *RAY_PATIENCE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_a_slow_machine_has_time_to_start_ray(tmp_path, monkeypatch):
    config = compose("demo", [], "cpu")
    assert RAY_PATIENCE.items() <= environment(config, tmp_path).items()
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "5")
    assert environment(config, tmp_path)["RAY_raylet_start_wait_time_s"] == "5", "what the user set stays"


@pytest.mark.usefixtures("alone")
def test_ray_is_given_the_cpus_that_verl_waits_for():
    config = compose("justrl_deepseek", [], "cuda")
    prepare_config(config, 0)
    assert config.ray_kwargs.ray_init.num_cpus == max(os.cpu_count(), 32 * 3 + 1 + 8 + 1), "logical ones"
    config = compose("demo", [], "cpu")
    prepare_config(config, 0)
    assert config.ray_kwargs.ray_init.num_cpus == 8, "the config's own"


@pytest.mark.usefixtures("alone")
def test_an_optimizer_in_host_memory_has_the_cpus_threads(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    preset = compose("justrl_deepseek", ["+hardware=one_24gb"], "cuda")
    assert environment(preset, tmp_path)["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(preset, tmp_path)["OMP_NUM_THREADS"] == "3", "what the user set stays"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in environment(compose("justrl_deepseek", [], "cuda"), tmp_path)
