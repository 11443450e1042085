"""Arms: each file of config/arms is one trick over the same baseline, chosen by `+arms=NAME` or `+arms=[A,B]`.

`justrl.allow` maps an arm to the keys that it sets. With `justrl.arms` a small config gives an arm other values:
overrides for each arm that needs them.
"""

import itertools
import re
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from common.processes import REPOSITORY

FOLDER = REPOSITORY / "recipe" / "config" / "arms"
CHOICE = re.compile(r"\+{0,2}arms=")


def arm_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def arms(config: DictConfig) -> list[str]:
    """List the arms of a composed config, in the order in which they were given."""
    allow = OmegaConf.select(config, "justrl.allow")
    return [name for name in allow if name in arm_names()] if isinstance(allow, Mapping) else []


def title(name: str) -> str:
    """Return the first comment of an arm's file: "Name: what it is (source)."."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return next(line for line in lines if not line.startswith("# @")).removeprefix("# ")


def choices(overrides: list[str]) -> list[str]:
    """Return those of a command's overrides that choose arms."""
    return [override for override in overrides if CHOICE.match(override)]


def own_overrides(config: DictConfig, overrides: list[str]) -> list[str]:
    """Return the overrides that go before the command's own: an experiment's name, and what a small config needs."""
    chosen = arms(config)
    scale = [override for arm in chosen for override in config.justrl.arms.get(arm, [])]
    if not choices(overrides):
        return scale
    name = OmegaConf.to_container(config.trainer)["experiment_name"]  # not resolved: it may be of what is not there
    return [*scale, f"trainer.experiment_name={'_'.join([name, *chosen])}"]


def check_arms(config: DictConfig) -> None:
    """Check that no two arms set the same key; ValueError of one line."""
    for one, other in itertools.combinations(arms(config), 2):
        if both := sorted(set(config.justrl.allow[one]) & set(config.justrl.allow[other])):
            raise ValueError(f"arms {one} and {other} both set {both[0]}; choose one of them")
