"""The reward that a config names, loaded and checked before a run needs it."""

import functools
import importlib.util
import inspect
import re
import runpy
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from common.command import first_line
from common.processes import REPOSITORY

KEY = "reward.custom_reward_function"
OURS = {REPOSITORY / "reward" / name for name in ("justrl.py", "robust.py", "released.py")}
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")  # as verl's reward managers pass them


def is_ours(config: DictConfig) -> bool:
    path = config.reward.custom_reward_function.path
    return bool(path) and Path(path.removeprefix("file://")).resolve() in OURS


def load(config: DictConfig) -> Callable | None:
    """Load the reward function; None where verl's own is used, or a module, which may be slow to import.

    Raises a ValueError of one line if it cannot be loaded or called as verl does, or lacks a configured option.
    """
    reward = config.reward.custom_reward_function
    if not reward.path:
        return None
    if reward.path.startswith("pkg://"):
        if not importlib.util.find_spec(re.split("[./]", reward.path.removeprefix("pkg://"))[0]):
            raise ValueError(f"{reward.path}: no such package; use another")
        return None
    path = Path(reward.path.removeprefix("file://"))
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; use another")
    try:
        names = runpy.run_path(str(path))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's file raises
        raise ValueError(f"{path}: cannot be loaded: {type(error).__name__}: {first_line(error)}; fix it") from error
    function = names.get(reward.name)
    if not callable(function):
        raise ValueError(f"{path}: has no function {reward.name}; set {KEY}.name")
    options = reward.get("reward_kwargs") or {}
    check_signature(function, f"{path}: {reward.name}", options)
    if not is_ours(config):
        return function
    try:  # ours are quick, so the kinds of their options are checked by a call
        function("", "", "1", **options)["score"] + 0.0
    except (TypeError, ValueError) as error:
        raise ValueError(f"{KEY}.reward_kwargs={options}: {first_line(error)}; see reward/README.md") from error
    return functools.partial(function, **options)


def numbers(config: DictConfig) -> list[str]:
    """List the numbers that one of our rewards returns for a response; nothing for another reward."""
    function = load(config) if is_ours(config) else None
    found = function("", "", "1") if function else {}
    return [name for name, value in found.items() if isinstance(value, (int, float))]


def check_signature(function: Callable, name: str, options: dict) -> None:
    """Check that verl can call a function, with the configured options: `**kwargs` would swallow mistyped ones."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a function of a C library
        return
    parameters = signature.parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for option in options:
        if option not in known:
            names = ", ".join(name for name in known if name not in ARGUMENTS)
            there = f"there are {names}" if names else "it takes none"
            remove = f"to remove it pass '~{KEY}.reward_kwargs.{option}'"
            raise ValueError(f"{name} has no option {option}; {there}; {remove}")
    try:
        signature.bind(**dict.fromkeys([*ARGUMENTS, *options]))
    except TypeError as error:
        raise ValueError(f"{name} cannot be called: {error}; verl passes {', '.join(ARGUMENTS)} by name") from error
