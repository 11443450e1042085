"""The reward that a config names, loaded and checked before a run needs it."""

import functools
import importlib.util
import inspect
import runpy
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from common.command import first_line
from common.processes import REPOSITORY

KEY = "reward.custom_reward_function"
OURS = {REPOSITORY / "reward" / name for name in ("justrl.py", "robust.py")}
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")  # as verl's reward managers pass them


def is_ours(config: DictConfig) -> bool:
    path = config.reward.custom_reward_function.path
    return bool(path) and Path(path.removeprefix("file://")).resolve() in OURS


def load(config: DictConfig) -> Callable | None:
    """Load the reward function; None where verl's own is used, or a module, which may be slow to import.

    Raises:
        ValueError: it cannot be loaded or called as verl does, or lacks a configured option; one line.
    """
    reward = config.reward.custom_reward_function
    if not reward.path:
        return None
    if reward.path.startswith("pkg://"):
        check_package(reward.path)
        return None
    path = Path(reward.path.removeprefix("file://"))
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; use another")
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{path}: cannot be loaded: {why}; fix it, or use another") from error
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


def check_package(path: str) -> None:
    """Check that the file of a module exists, without importing it."""
    first, *rest = path.removeprefix("pkg://").replace("/", ".").split(".")
    spec = importlib.util.find_spec(first) if first else None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
    if not spec or (rest and not any(list(folder.glob(f"{'/'.join(rest)}*")) for folder in folders)):
        raise ValueError(f"{path}: no such module; use another")


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
            raise ValueError(f"{name} has no option {option}; there are {', '.join(known)}")
    try:
        signature.bind(**dict.fromkeys([*ARGUMENTS, *options]))
    except TypeError as error:
        raise ValueError(f"{name} cannot be called: {error}; verl passes {', '.join(ARGUMENTS)} by name") from error
