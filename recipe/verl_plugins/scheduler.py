"""vLLM's scheduler without the memory leak of vLLM 0.24.0.

For each 16 tokens 0.24.0 keeps the number of the block that holds their keys and values, and drops it only for models
with Mamba layers (vllm 44175): 8 bytes each, some 25 GB over the engines of the paper's run. Delete this module with
vLLM 0.26 or newer, which drops them after each step itself (vllm 44490); there it changes nothing.

vLLM builds the class in its engine's process, as `rollout.engine_kwargs.vllm.scheduler_cls` names it.
"""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput


class Scheduler(AsyncScheduler):
    """vLLM's default, as verl starts it: asynchronous, which a subclass of vLLM's other class would turn off."""

    def schedule(self, *args, **options) -> SchedulerOutput:
        """Schedule one step, then drop the numbers of its new blocks, which nothing reads without Mamba layers."""
        output = super().schedule(*args, **options)
        if not self.needs_kv_cache_zeroing:
            self.kv_cache_manager.take_new_block_ids()
        return output
