"""verl's fixed costs per sample, which only a run of tiny responses notices."""

from types import SimpleNamespace

import hydra
import ray
from verl.experimental.agent_loop import agent_loop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from recipe.verl_plugins import agent_loops


def instantiate_once(config: dict, made: dict = {}, **kwargs):  # noqa: B006 - the shared default is the memory
    """Stand in for `hydra.utils.instantiate`: one object per class instead of one per call."""
    if config["_target_"] not in made:
        made[config["_target_"]] = hydra.utils.instantiate(config, **kwargs)
    return made[config["_target_"]]


class AgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker, which keeps its agent loop instead of instantiating one for every sample.

    `AgentLoopWorker._run_agent_loop` does that through Hydra, which takes longer than a tiny model's whole
    response. The single-turn loop holds nothing between samples, and its arguments never change.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        agent_loop.hydra = SimpleNamespace(utils=SimpleNamespace(instantiate=instantiate_once))


class AgentLoopManager(agent_loops.AgentLoopManager):
    """The run's manager with the worker above; named by `rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(AgentLoopWorker)
