"""Arms: each file of config/arms is one trick over the same baseline, chosen by `+arms=NAME` or `+arms=[A,B]`.

`justrl.allow` maps an arm to the keys that it sets. With `justrl.arms` a small config gives an arm other values:
overrides for each arm that needs them.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.command import first_line
from common.processes import REPOSITORY

FOLDER = REPOSITORY / "recipe" / "config" / "arms"
CHOICE = re.compile(r"\+{0,2}arms=")
NAME = "trainer.experiment_name"
HEADER = "# @package _global_"  # without it Hydra puts a file's keys below its folder's name
UNCLIPPED = "with one update per step nothing is clipped"
# Arms that set no common key, but of which one takes the other's effect away.
CONFLICTS = {
    ("as_released", "dr_grpo"): "the release's aggregation is a token mean",
    ("dr_grpo", "reinforce_pp"): "REINFORCE++ has its own normalisation",
    ("dr_grpo", "rloo"): "RLOO never divides by the deviation",
    ("grpo_passk", "overlong"): "the penalty would decide which response is the best",
    ("cispo", "on_policy"): UNCLIPPED,
    ("clip_cov", "on_policy"): UNCLIPPED,
    ("gspo", "on_policy"): UNCLIPPED,
    ("on_policy", "symmetric_clip"): UNCLIPPED,
}
# Arms of the reward, the advantages or the policy loss, which a teacher replaces.
REPLACED = """as_released cispo clip_cov dr_grpo dynamic_sampling entropy_bonus grpo_passk gspo kl_loss overlong
reinforce_pp rloo robust_verifier symmetric_clip""".split()
for arm in REPLACED:
    CONFLICTS[min("distillation", arm), max("distillation", arm)] = "the teacher replaces reward and loss"


def arm_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def arms(config: DictConfig) -> list[str]:
    """List the arms of a composed config, sorted: their order makes no difference."""
    allow = OmegaConf.select(config, "justrl.allow")
    return sorted(set(allow) & set(arm_names())) if isinstance(allow, Mapping) else []


def missing_arms(config: DictConfig) -> list[str]:
    """List the names in `justrl.allow` of a run's config that neither an arm nor a config has any more, sorted."""
    allow = OmegaConf.select(config, "justrl.allow")
    known = {*arm_names(), *(path.stem for path in FOLDER.parent.glob("*.yaml"))}
    return sorted(set(allow) - known) if isinstance(allow, Mapping) else []


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
    name = OmegaConf.to_container(config.trainer)["experiment_name"]  # unresolved: it may refer to what is not set
    return [*scale, named("_".join([str(name), *chosen]))]


def named(name: str) -> str:
    """Return the override that gives an experiment a name of any characters."""
    escaped = re.sub(r"([\\'])", r"\\\1", name)
    return f"{NAME}='{escaped}'"


def read_allow(path: Path) -> Any:
    """Read `justrl.allow` of a config's file; ValueError of one line with its path, and the line where it is known."""
    try:
        return OmegaConf.select(OmegaConf.load(path), "justrl.allow", throw_on_resolution_failure=False)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        raise ValueError(f"{path}{f', line {mark.line + 1}' if mark else ''}: {problem}; correct it") from error


def check_files(overrides: list[str]) -> None:
    """Check that the file of each chosen arm can be read, is for Hydra, and lists its keys; ValueError of one line."""
    chosen = {name for choice in choices(overrides) for name in re.findall(r"[^\[\], ]+", choice.partition("=")[2])}
    for name in sorted(chosen.intersection(arm_names())):
        allow = read_allow(path := FOLDER / f"{name}.yaml")
        if not re.match(rf"\s*{HEADER}\s*$", path.read_text(encoding="utf-8"), re.MULTILINE):
            raise ValueError(f"{path}: begin it with the line {HEADER}, without a byte order mark")
        if not isinstance(allow, Mapping) or name not in allow:
            raise ValueError(f"{path}: justrl.allow has no entry {name}; list the keys that it sets")


def check_arms(config: DictConfig) -> None:
    """Check that no two arms set the same key or undo each other; ValueError of one line."""
    for one, other in itertools.combinations(arms(config), 2):
        if both := sorted(set(config.justrl.allow[one]) & set(config.justrl.allow[other])):
            raise ValueError(f"arms {one} and {other} both set {both[0]}; choose one of them")
        if reason := CONFLICTS.get((one, other)):
            raise ValueError(f"arms {one} and {other} do not go together: {reason}; choose one of them")
