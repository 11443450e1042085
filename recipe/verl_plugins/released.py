"""What verl 0.4.0 computed otherwise in JustRL's release, for the arm `as_released` (recipe/FIDELITY.md, L3 and M1).

verl imports this module for `actor_rollout_ref.model.external_lib`, in every process of a run with that arm alone.
"""

from collections.abc import Sequence
from itertools import chain

import torch
import transfer_queue as tq
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, register_policy_loss
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import seqlen_balancing
from verl.utils.seqlen_balancing import ceildiv, get_seqlen_balanced_partitions

COMPUTE_ADVANTAGE = trainer_base.PPOTrainer._compute_advantage


@register_policy_loss("as_released")
def policy_loss(response_mask: torch.Tensor, config, **inputs) -> tuple[torch.Tensor, dict]:
    """Compute verl's loss of a micro-batch, aggregated as by `DataParallelPPOActor.update_policy` of verl 0.4.

    That is the micro-batch's token mean, times its fraction of the rank's responses of the mini-batch; FSDP averages
    the ranks. verl 0.9.1 divides the sum by `batch_num_tokens / dp_size`, so another number there gives 0.4's formula.
    It stays for what `ppo_loss` adds afterwards: 0.4 aggregated an entropy bonus and a KL loss alike.
    """
    info = config.global_batch_info
    tokens = max(1, int(response_mask.sum()))  # verl may fill a micro-batch with a masked response
    info["batch_num_tokens"] = tokens * info["global_batch_size"] / len(response_mask)
    return compute_policy_loss_vanilla(response_mask=response_mask, config=config, **inputs)


def tokens(lengths: torch.Tensor) -> torch.Tensor:
    """Stand in for verl's `calculate_workload`: 0.4 balanced ranks and micro-batches by tokens, 0.9.1 by work."""
    return lengths


def entropy_as_released(entropies: Sequence[torch.Tensor], lengths: list[int], ranks: int, budget: int) -> float:
    """Compute the mean entropy as verl 0.4 logged it, in nats: of one response under the mask of another.

    Its `compute_log_prob` put the log-probabilities of dynamic micro-batches back in order and forgot the entropies.
    Beyond a response's end they were zero, but for the one after its last token, which is left out here.

    Args:
        entropies: of the tokens of each response, by the rank that computed them.
        lengths: tokens of each response with its prompt.
        budget: tokens of a micro-batch.
    """
    share = len(lengths) // ranks
    by_rank = [lengths[first : first + share] for first in range(0, len(lengths), share)]
    count = max(min(share, ceildiv(sum(rank), budget)) for rank in by_rank)
    order = [
        rank * share + row
        for rank in range(ranks)
        for row in chain(*get_seqlen_balanced_partitions(by_rank[rank], count, equal_size=False))
    ]
    kept = sum(float(entropies[row][: len(masked)].sum()) for row, masked in zip(order, entropies, strict=True))
    return kept / sum(map(len, entropies))


def compute_advantage(self, batch, metrics: dict):
    """Replace `PPOTrainer._compute_advantage`, which is called when the entropies are there: log them as 0.4 did."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["entropy"])
    metrics["actor/entropy_as_released"] = entropy_as_released(
        data["entropy"].unbind(),
        [tag["seq_len"] for tag in batch.tags],
        ranks=max(self.actor_rollout_wg._dispatch_info["actor"]) + 1,
        budget=self.config.actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu,
    )
    return COMPUTE_ADVANTAGE(self, batch, metrics)


seqlen_balancing.calculate_workload = trainer_base.calculate_workload = tokens
trainer_base.PPOTrainer._compute_advantage = compute_advantage
