"""How often vLLM preempted a response: dropped its KV cache for want of space, to compute it again later."""

COUNT = "num_preemptions"  # of vLLM's requests; recipe.verl_plugins.scheduler returns it with a finished one


def preemptions(extra_fields: dict) -> int:
    """Return how often a response was preempted, from its extra fields."""
    return (extra_fields.get("kv_transfer_params") or {}).get(COUNT, 0)
