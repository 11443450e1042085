"""Show a config as a run would use it: python -m recipe.compose demo [key=value ...]

A config holds only differences from verl's `ppo_trainer`. Hydra rejects an unknown key on the command line but silently
accepts a mistyped one inside a YAML file; here both are errors.
"""

import argparse
import difflib
import functools
import importlib.util
import os
import re
from pathlib import Path

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.command import first_line, name, run
from common.machine import count_gpus, device
from common.processes import REPOSITORY
from recipe.arms import arm_names, check_arms, check_files, choices, own_overrides, read_allow
from recipe.kinds import check_kinds, plain

CONFIG_FOLDER = REPOSITORY / "recipe" / "config"

# Keys that verl 0.9.1 reads although its own YAML files do not declare them, each with the reader.
UNDECLARED_KEYS = {
    "actor_rollout_ref.actor.fsdp_config.mixed_precision": "verl.workers.config.FSDPEngineConfig",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision": "verl.workers.config.FSDPEngineConfig",
    "actor_rollout_ref.rollout.enable_sleep_mode": "verl.workers.config.RolloutConfig",
    "distillation.teacher_models.teacher_model.inference.enable_sleep_mode": "verl.workers.config.RolloutConfig",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": "verl.trainer.main_ppo.TaskRunnerV1",
    "actor_rollout_ref.rollout.custom.validation_response_length": "recipe.verl_plugins.agent_loops",
    "reward.reward_kwargs": "verl.experimental.reward_loop.reward_manager.dapo.DAPORewardManager",
    "reward.custom_reward_function.reward_kwargs": "verl.trainer.ppo.reward.get_custom_reward_fn",
    "ray_kwargs.ray_init": "ray.init, called by verl.trainer.main_ppo.run_ppo",
    "justrl": "recipe.check",
}


def config_names() -> list[str]:
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def compose(name: str, overrides: list[str], device: str) -> DictConfig:
    """Compose a config as the run will use it, every interpolation resolved; see `compose_unresolved`."""
    return resolve(compose_unresolved(name, overrides, device))


def resolve(config: DictConfig) -> DictConfig:
    """Resolve every interpolation in place; ValueError of one line if one cannot be, or leads to a wrong value."""
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'an interpolation ${...}'}: {first_line(error)}") from error
    for key, value in check_kinds(plain(config), verl_defaults()).items():
        OmegaConf.update(config, key, value)
    return config


def compose_unresolved(name: str, overrides: list[str], device: str) -> DictConfig:
    """Compose a config with its interpolations as they are written.

    Args:
        name: a config of `recipe/config`, without `.yaml`.
        overrides: Hydra overrides, which win over the files.
        device: "cpu" adds `recipe/config/device/cpu.yaml`, "cuda" nothing.

    Raises:
        ValueError: an unknown config, a malformed override or an unknown key; one line.
    """
    if name not in config_names():
        raise ValueError(f"unknown config '{name}'; there are {', '.join(config_names())}")
    read_allow(CONFIG_FOLDER / f"{name}.yaml")
    check_files(overrides)
    os.environ.setdefault("JUSTRL_ROOT", str(REPOSITORY))  # justrl.yaml has the reward's path below it
    # ${local_gpus:N} in a config: the largest number of this machine's GPUs that divides N; ${local_gpus:N,K} leaves K.
    OmegaConf.register_new_resolver("local_gpus", count_gpus, replace=True)
    OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("half", lambda number: number // 2, replace=True)
    preset = ["+device=cpu"] if device == "cpu" else []
    base = verl_config()
    search_path = f"hydra.searchpath=[file://{verl_config_folder()}]"
    try:
        config = hydra_compose(CONFIG_FOLDER, name, [search_path, *preset, *overrides])
    except ValueError as error:
        raise ValueError(explain(str(error), overrides, base)) from error
    values = plain(config)
    if unknown := unknown_keys(values, plain(base)):
        files = " ".join([name, *choices(overrides)])
        raise ValueError(f"{files}: unknown key {unknown[0]}{suggestion(unknown[0], base)}")
    check_kinds(values, verl_defaults())
    check_arms(config)
    if own := own_overrides(config, overrides):
        return hydra_compose(CONFIG_FOLDER, name, [search_path, *preset, *own, *overrides])
    return config


def explain(problem: str, overrides: list[str], base: DictConfig) -> str:
    """Add to Hydra's line which override it is about, and the fix where one is known."""
    if unknown := re.search(r"Could not (?:find|load) 'arms/(.*)'", problem):
        return f"unknown arm '{unknown[1]}'; there are {', '.join(arm_names())}"
    if "'arms'" in problem or "arms=" in problem:
        return f"{problem.rstrip('.')}; choose arms by +arms=NAME or +arms=[NAME,NAME]"
    if refused := re.search(r"override '([\w.]+)'", problem):
        return problem.rstrip(".") + suggestion(refused[1], base)
    if "group override" in problem:
        groups = [each for each in overrides if "." not in each.partition("=")[0]]
        if choices(groups) == groups:
            return "choose arms by +arms=NAME or +arms=[NAME,NAME]"
        return f"{', '.join(groups)}: a section cannot be set; set its keys instead"
    unread = any(words in problem for words in ("Lexer", "viable", "mismatched", "extraneous", "Ambiguous"))
    return problem + ("; quote a value with other characters than Latin letters: KEY=\"'VALUE'\"" if unread else "")


def verl_config_folder() -> Path:
    """Find verl's folder of configs without importing verl, which takes ten seconds."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise ValueError("verl is not installed; run ./run_justrl.sh --setup-only first")
    return Path(spec.origin).parent / "trainer" / "config"


@functools.cache
def verl_config() -> DictConfig:
    """Compose verl's own `ppo_trainer`, which is not to be changed."""
    return hydra_compose(verl_config_folder(), "ppo_trainer", [])


@functools.cache
def verl_defaults() -> dict:
    """Return `verl_config` resolved, as a plain dictionary, which is not to be changed."""
    return plain(verl_config(), resolve=True)


def hydra_compose(folder: Path, name: str, overrides: list[str]) -> DictConfig:
    """Run Hydra's compose; its errors become a ValueError of one line."""
    try:
        with hydra.initialize_config_dir(str(folder), version_base=None):
            return hydra.compose(name, overrides=overrides)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        told = error if str(error).strip() else error.__cause__ or error
        is_part = (line := first_line(told)).endswith(":") or isinstance(told, yaml.YAMLError)  # cause or file follow
        raise ValueError(f"{name}: {' '.join(str(told).split()) if is_part else line}") from error


def unknown_keys(config: dict, base: dict, prefix: str = "") -> list[str]:
    """List the dotted keys of `config` that neither `base` nor verl's code knows."""
    unknown = []
    for key, value in config.items():
        path = f"{prefix}{key}"
        if any(path == known or path.startswith(f"{known}.") for known in UNDECLARED_KEYS):
            continue
        parent = any(known.startswith(f"{path}.") for known in UNDECLARED_KEYS)
        if key not in base and not parent:
            unknown.append(path)
        elif isinstance(value, dict) and (parent or (isinstance(base[key], dict) and base[key])):
            # An empty mapping in verl's files takes any key.
            unknown += unknown_keys(value, base.get(key, {}), f"{path}.")
    return unknown


def suggestion(path: str, base: DictConfig) -> str:
    """Suggest the known key nearest to the first unknown part of `path`: "; did you mean ...?" or ""."""
    known: list[str] = []
    node = base
    for key in path.split("."):
        if not isinstance(node, DictConfig):
            return ""
        if key not in node:
            nearest = difflib.get_close_matches(key, list(node), n=1)
            return f"; did you mean {'.'.join([*known, nearest[0]])}?" if nearest else ""
        known.append(key)
        node = node[key]
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help=f"one of {', '.join(config_names())}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    parser.add_argument("--get", type=name, action="append", metavar="KEY", help="print this value alone; repeatable")
    args = parser.parse_args()
    config = compose(args.config, args.overrides, device())
    for key in args.get or []:
        try:
            print(OmegaConf.select(config, key, throw_on_missing=True))
        except OmegaConfBaseException as error:
            raise ValueError(first_line(error)) from error
    if not args.get:
        print(OmegaConf.to_yaml(config, sort_keys=True), end="")


if __name__ == "__main__":
    run(main)
