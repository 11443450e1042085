"""The curves and figures that the paper published about its runs, beside which a run is shown.

Bands hold for the paper's plain recipe on its two backbones, and for nothing else: `has_bands` decides.
"""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recipe import paper

BANDS, AIME24, BUDGETS, GPU_HOURS = (paper.PAPER[name] for name in ("bands", "aime24", "budgets", "gpu_hours"))
STEPS = {backbone["name"]: backbone["steps"] for backbone in paper.BACKBONES.values()}


def backbone(config: DictConfig) -> str | None:
    """Return "DeepSeek" or "Nemotron" if a composed config trains that one at the paper's length, else None."""
    known = paper.backbone(OmegaConf.select(config, "actor_rollout_ref.model.path") or "")
    same_length = OmegaConf.select(config, "data.max_response_length") == paper.stated("data.max_response_length")
    return paper.BACKBONES[known]["name"] if known and same_length else None


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
