"""How often vLLM preempted a response: dropped its KV cache for want of space, to compute it again later.

verl 0.9.1 has `num_preempted` for it, which vLLM up to 0.28 does not return (vLLM 32470). vLLM's scheduler counts per
request, and with a finished request it returns `kv_transfer_params`, which verl puts into the response's extra fields.
vLLM's own counters would need its statistics of every token (`disable_log_stats: false`).
"""

from typing import Any

COUNT = "num_preemptions"


def scheduler(vllm_config, **options):
    """Stand in for a class in vLLM's `scheduler_cls`: its scheduler of this config, with the count."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    base: type[Scheduler] = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler

    class CountingScheduler(base):
        def _connector_finished(self, request) -> tuple[bool, dict[str, Any] | None]:
            delay, returned = super()._connector_finished(request)
            if request.num_preemptions:
                returned = (returned or {}) | {COUNT: request.num_preemptions}
            return delay, returned

    return CountingScheduler(vllm_config=vllm_config, **options)


def preemptions(extra_fields: dict) -> int:
    """Return how often a response was preempted, from its extra fields."""
    return (extra_fields.get("kv_transfer_params") or {}).get(COUNT, 0)
