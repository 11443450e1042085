"""verl's GRPO pass@k, which ends a run at a group of one response, as failed responses and padding leave some."""

from collections import Counter

import torch
from verl.trainer.ppo import core_algos

NAME = "grpo_passk"
ESTIMATE = core_algos.get_adv_estimator_fn(NAME)


def advantages(token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index, **options):
    """Replace `compute_grpo_passk_outcome_advantage`, which also has the arguments: a lone response learns nothing."""
    sizes = Counter(index)
    grouped = [row for row, uid in enumerate(index) if sizes[uid] > 1]
    result = torch.zeros_like(token_level_rewards)
    if grouped:
        result[grouped], _ = ESTIMATE(token_level_rewards[grouped], response_mask[grouped], index[grouped], **options)
    return result, result


core_algos.ADV_ESTIMATOR_REGISTRY[NAME] = advantages
