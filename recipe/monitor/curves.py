"""What the paper published about its runs (JustRL, arXiv 2512.16649), as data: bands, a curve, budgets.

Bands hold for runs of the paper's plain recipe on its two backbones, and for nothing else: `has_bands` decides.
"""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recipe import paper

NAMES = {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "DeepSeek", "nvidia/OpenMath-Nemotron-1.5B": "Nemotron"}

# (step, low, high), straight lines between. The paper gives one set of curves for the recipe (training dynamics):
# entropy oscillates in 1.0-1.6 nats; the reward climbs from about -0.6 to +0.4; the mean response shortens from 7-8
# to 4-5 thousand tokens by step 1,000 and stays there. How fast is not said. A curve that flattens is never on the
# wrong side of the straight line between its ends, so that line is the late edge. The reward's ends are single
# numbers, around which 0.2 is this project's allowance. The entropy's upper end is 2.4 in today's measure: verl 0.4
# logged about two thirds of it (FIDELITY.md, M1). Its lower end is left as published.
BANDS = {
    "entropy": ((0, 1.0, 2.4),),
    "reward": ((0, -0.8, 0.6), (4380, 0.2, 0.6)),
    "length": ((0, 4000, 8000), (1000, 4000, 5000)),
}

# AIME24 avg@32 in training, percent by step, read off figure 1 by eye. Graded with math-verify on up to 31,744 tokens.
AIME24 = {
    "DeepSeek": ((0, 28.5), (500, 40), (1000, 43), (2000, 46), (3000, 51), (4000, 54), (4860, 58.6)),
    "Nemotron": ((0, 56.3), (1000, 63), (2000, 64.5), (3000, 71), (3440, 73.3)),
}

# Steps of the published runs; tokens by the paper's formula (table of compute), which it prints in thousands.
STEPS = {name: paper.BACKBONES[model] for model, name in NAMES.items()}
BUDGETS = {
    "JustRL-DeepSeek": 1.4e11,
    "JustRL-Nemotron": 1.1e11,
    "DeepScaleR": 2.2e10,  # printed as 2.2e6 thousand; the paper's own formula gives 2.2e7
    "ProRL-V1": 2.1e11,
    "ProRL-V2": 2.8e11,
    "QuestA": 2.6e11,
    "BroRL": 6.8e11,
}
GPU_HOURS = 11500  # A800; 32 of them for about 15 days


def backbone(config: DictConfig) -> str | None:
    """Return "DeepSeek" or "Nemotron" if a composed config trains that one at the paper's length, else None."""
    path = OmegaConf.select(config, "actor_rollout_ref.model.path") or ""
    same_length = OmegaConf.select(config, "data.max_response_length") == paper.stated("data.max_response_length")
    return NAMES.get(paper.backbone(path)) if same_length else None


def has_bands(config: DictConfig) -> bool:
    """Return whether a composed config is the paper's plain recipe: its backbone and reward, and no penalty.

    The ablation arms change the reward, and their entropy is meant to fall.
    """
    reward = OmegaConf.select(config, "reward.custom_reward_function.path") or ""
    penalty = OmegaConf.select(config, "reward.reward_kwargs.overlong_buffer_cfg.enable")
    return backbone(config) is not None and Path(reward).name == "justrl.py" and not penalty


def band(quantity: str, step: int) -> tuple[float, float] | None:
    """Return the paper's (low, high) of "entropy" (nats), "reward" or "length" (tokens) at a step; None of others."""
    if quantity not in BANDS:
        return None
    steps, low, high = zip(*BANDS[quantity], strict=True)
    return float(np.interp(step, steps, low)), float(np.interp(step, steps, high))


def aime24(step: int, config: DictConfig) -> float | None:
    """Return the published AIME24 avg@32 (0 to 1) of a config's backbone at a step, None without one."""
    points = AIME24.get(backbone(config), ())
    if not points or step > points[-1][0]:
        return None
    steps, percent = zip(*points, strict=True)
    return float(np.interp(step, steps, percent)) / 100
