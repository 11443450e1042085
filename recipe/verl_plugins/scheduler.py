"""vLLM's scheduler without the memory leak of vLLM 0.24.0, and with a count of preemptions.

For each 16 tokens 0.24.0 keeps the number of the block that holds their keys and values, and drops it only for models
with Mamba layers (vllm 44175): 8 bytes each, some 25 GB over the engines of the paper's run. vLLM 0.26 or newer drops
them after each step itself (vllm 44490); `schedule` can then be deleted, and changes nothing before.

verl 0.9.1 has `num_preempted` for preemptions, which vLLM up to 0.28 does not return (vllm 32470). The scheduler counts
them per request, and with a finished request it returns `kv_transfer_params`, which verl puts into the response's extra
fields. vLLM's own counters would need its statistics of every token (`disable_log_stats: false`).

vLLM builds the class in its engine's process, from the class path in `rollout.engine_kwargs.vllm.scheduler_cls`.
"""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput

from recipe.verl_plugins.preemptions import COUNT


class Scheduler(AsyncScheduler):
    """vLLM's default, as verl starts it: asynchronous, which a subclass of vLLM's other class would turn off."""

    def schedule(self, *args, **options) -> SchedulerOutput:
        """Schedule one step, then drop the numbers of its new blocks, which nothing reads without Mamba layers."""
        output = super().schedule(*args, **options)
        if not self.needs_kv_cache_zeroing:
            self.kv_cache_manager.take_new_block_ids()
        return output

    def _connector_finished(self, request) -> tuple[bool, dict[str, Any] | None]:
        delay, returned = super()._connector_finished(request)
        if request.num_preemptions:
            returned = (returned or {}) | {COUNT: request.num_preemptions}
        return delay, returned
