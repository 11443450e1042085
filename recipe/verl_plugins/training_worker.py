"""What a training worker of verl loads: patches of its weight transfer, and a sign of progress for each micro-batch.

verl imports this module for `rollout.checkpoint_engine.custom_backend_module`, after its engines.
"""

import functools

import torch
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from recipe.heartbeat import ACTOR, Heartbeat
from recipe.verl_plugins import weight_transfer  # noqa: F401, it patches verl

FORWARD_STEP = FSDPEngineWithLMHead.forward_step
heartbeat = functools.cache(Heartbeat)


def forward_step(self, *args, **kwargs):
    """Replace `FSDPEngineWithLMHead.forward_step`. The ranks go through their micro-batches together, so one counts."""
    if torch.distributed.get_rank() == 0:
        heartbeat(ACTOR).count()
    return FORWARD_STEP(self, *args, **kwargs)


FSDPEngineWithLMHead.forward_step = forward_step
