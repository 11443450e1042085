"""The memory of a run's nodes by step: the supervisor sees its own node alone, and any may be the first to end."""

import contextlib
import threading
import time

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.host_memory import Memory, node_memory
from common.machine import GIB
from recipe.monitor.memory_growth import FULLEST_TOTAL, FULLEST_USED

SAMPLE_SECONDS = 1.0
ANSWER_SECONDS = 5.0  # a node that does not answer is left out of a step


class Gauge:
    """An actor on a node, which samples the node's memory in use."""

    def __init__(self):
        self.peak = node_memory()
        threading.Thread(target=self.sample, daemon=True).start()

    def sample(self) -> None:
        """Look once per second, for a peak is enough for Ray to end a worker."""
        while True:
            time.sleep(SAMPLE_SECONDS)
            self.peak = max(self.peak, node_memory())

    def take(self) -> Memory:
        """Return the highest use since the last call, and what the node has, in bytes."""
        peak, self.peak = self.peak, node_memory()
        return peak


class NodeMemory:
    """A gauge on every node of a run with several, nothing on one."""

    def __init__(self):
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        self.gauges = []
        for node in nodes if len(nodes) > 1 else ():
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            self.gauges.append(ray.remote(Gauge).options(num_cpus=0, scheduling_strategy=place).remote())

    def fullest(self) -> dict[str, float]:
        """Return metrics of the node that has least left, in GiB; none where no node answers."""
        calls = [gauge.take.remote() for gauge in self.gauges]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS) if calls else ([], [])
        found = []
        for call in done:
            with contextlib.suppress(RayError):  # the node is lost, which the run finds out by itself
                found.append(ray.get(call))
        if not found:
            return {}
        used, total = min(found, key=lambda memory: memory.total - memory.used)
        return {FULLEST_USED: used / GIB, FULLEST_TOTAL: total / GIB}
