"""verl's agent loop worker without its fixed cost per sample, which only a run of tiny responses notices."""

from types import SimpleNamespace

import hydra
import ray
from verl.experimental.agent_loop import agent_loop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from recipe.verl_plugins import agent_loops

LOOPS: dict[str, object] = {}


def instantiate_once(config: dict, **kwargs):
    """Replace `hydra.utils.instantiate` with one object per class, as it takes longer than a tiny model's response.

    The single-turn loop holds nothing between samples, and its arguments never change.
    """
    name = config["_target_"]
    if name not in LOOPS:
        LOOPS[name] = hydra.utils.instantiate(config, **kwargs)
    return LOOPS[name]


class AgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker in a process that has imported this module."""


class AgentLoopManager(agent_loops.AgentLoopManager):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(AgentLoopWorker)


agent_loop.hydra = SimpleNamespace(utils=SimpleNamespace(instantiate=instantiate_once))
