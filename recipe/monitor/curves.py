"""The published curves and figures of the paper's runs, to compare a run with."""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recipe import paper
from recipe.arms import arms

BANDS, AIME24, BUDGETS, GPU_HOURS = (paper.PAPER[name] for name in ("bands", "aime24", "budgets", "gpu_hours"))
STEPS = {backbone["name"]: backbone["steps"] for backbone in paper.BACKBONES.values()}


def backbone(config: DictConfig) -> str | None:
    """Return "DeepSeek" or "Nemotron" if a composed config trains that backbone at the paper's length, else None."""
    known = paper.backbone(OmegaConf.select(config, "actor_rollout_ref.model.path") or "")
    same_length = OmegaConf.select(config, "data.max_response_length") == paper.stated("data.max_response_length")
    return paper.BACKBONES[known]["name"] if known and same_length else None


def has_bands(config: DictConfig) -> bool:
    """Return whether a composed config is the paper's plain recipe, the only one that the bands apply to.

    Arms change the reward or the entropy on purpose.
    """
    reward = OmegaConf.select(config, "reward.custom_reward_function.path") or ""
    penalty = OmegaConf.select(config, "reward.reward_kwargs.overlong_buffer_cfg.enable")
    changed = Path(reward).name != "justrl.py" or penalty or arms(config)
    return backbone(config) is not None and not changed


def interpolate(points: list[list[float]], step: int) -> tuple[float, ...]:
    """Interpolate every column of points that begin with their step."""
    steps, *columns = zip(*points, strict=True)
    return tuple(float(np.interp(step, steps, column)) for column in columns)


def band(quantity: str, step: int) -> tuple[float, float] | None:
    """Return the paper's (low, high) of "entropy" (nats), "reward" or "length" (tokens); None for other quantities."""
    if quantity not in BANDS:
        return None
    low, high = interpolate(BANDS[quantity], step)
    return low, high


def aime24(step: int, config: DictConfig) -> float | None:
    """Return the published AIME24 avg@32 (0 to 1) of a config's backbone; None if there is none for this step."""
    points = AIME24.get(backbone(config))
    return interpolate(points, step)[0] / 100 if points and step <= points[-1][0] else None
