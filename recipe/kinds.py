"""Check the kind of every value of a config before it is read; kinds.yaml has what verl's defaults do not tell."""

import fnmatch
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

TABLE: dict[str, str] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
REQUIRED = {"actor_rollout_ref.rollout.custom.validation_response_length"}  # by this recipe, beside verl's own keys
UNSET = "???"  # OmegaConf's; here also the default of a key that verl does not declare
SHOWN = 80  # characters of a wrong value
LARGEST = 2**63  # integers are below it, as torch's and the file formats'
LONGEST_NAME = 240  # bytes; a file's has at most 255, and verl appends to it


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def is_number(value: Any) -> bool:
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and value != UNSET


def is_name(value: Any) -> bool:
    # Blanks and dots would make a run's folder another one.
    whole = is_path(value) and value.isprintable() and not {".", ".."} & set(value.split("/"))
    return whole and len(value.encode()) <= LONGEST_NAME


# Name to a description and a test.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "null": ("null", lambda value: value is None),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "integer": ("an integer", is_integer),
    "size": ("an integer of at least 0", lambda value: is_integer(value) and value >= 0),
    "count": ("an integer of at least 1", lambda value: is_integer(value) and value >= 1),
    "number": ("a finite number", is_number),
    "amount": ("a finite number of at least 0", lambda value: is_number(value) and value >= 0),
    "limit": ("a number of at least 0, inf for none", lambda value: KINDS["amount"][1](value) or value == math.inf),
    "fraction": ("a number above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1),
    "text": ("text", lambda value: isinstance(value, str) and value != UNSET),
    "name": (f"a name of at most {LONGEST_NAME} bytes without . or .. between slashes", is_name),
    "path": ("a path", is_path),
    "files": ("a file or a list of files", lambda value: is_path(value) or (bool(value) and is_list(is_path, value))),
    "texts": ("a list of text", lambda value: is_list(KINDS["text"][1], value)),
    "numbers": ("a list of numbers", lambda value: is_list(is_number, value)),
    "list": ("a list", lambda value: isinstance(value, list)),
    "section": ("a section", lambda value: isinstance(value, dict)),
    "device": ("cpu or cuda", lambda value: value in ("cpu", "cuda")),
}
TEXT, PATHS = {"text", "name", "path"}, {"path", "files"}


def is_list(test: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(test(each) for each in value)


def kind_of(default: Any) -> tuple[str, ...]:
    """Return the kind of one of verl's defaults; () where it allows anything, as a null does."""
    order = ["flag", "integer", "number", "text", "section", *(["texts", "numbers"] if default else []), "list"]
    return tuple(kind for kind in order if KINDS[kind][1](default))[:1]


@functools.cache
def listed_kinds(key: str) -> tuple[str, ...]:
    kinds = next((kinds for pattern, kinds in TABLE.items() if fnmatch.fnmatchcase(key, pattern)), "")
    return tuple(kinds.split(" or ")) if kinds else ()


def entries(values: dict, defaults: dict, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and verl's default, sections before what they hold; ValueError for a missing key."""
    for name in defaults | values:
        key, default = f"{prefix}{name}", defaults.get(name, UNSET)
        if name not in values:
            raise ValueError(f"{key}: missing; a key may be changed but not removed")
        yield key, values[name], default
        if isinstance(values[name], dict):
            yield from entries(values[name], default if isinstance(default, dict) else {}, f"{key}.")


def check_kinds(values: dict, defaults: dict) -> dict[str, Any]:
    """Check the kind of every value of a config but interpolations; `defaults` is verl's own.

    Returns:
        Key to the value to use instead: text for an integer in its place, and paths without `~`.

    Raises:
        ValueError: a key is missing or a value of another kind; one line.
    """
    instead, keys = {}, set()
    for key, value, default in entries(values, defaults):
        keys.add(key)
        kinds = listed_kinds(key) or kind_of(default)
        if not kinds or (isinstance(value, str) and "${" in value):
            continue
        if is_integer(value) and TEXT & set(kinds) and not {"integer", "number"} & set(kinds):
            value = instead[key] = str(value)  # Hydra takes a name such as 20261127 for an integer
        if not any(KINDS[kind][1](value) for kind in kinds) and (type(value), value) != (type(default), default):
            raise ValueError(problem(key, value, default, kinds))
        if PATHS & set(kinds) and (expanded := without_tilde(value)) != value:
            instead[key] = expanded
    if missing := sorted(REQUIRED - keys):
        raise ValueError(f"{missing[0]}: missing; this recipe needs it")
    return instead


def without_tilde(value: Any) -> Any:
    """Put the home folder in place of `~`, which verl would take for a folder's name."""
    if isinstance(value, list):
        return [without_tilde(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def problem(key: str, value: Any, default: Any, kinds: tuple[str, ...]) -> str:
    expected = " or ".join(KINDS[kind][0] for kind in kinds)
    expected += ", below 2**63" if isinstance(value, int) and abs(value) >= LARGEST else ""
    got = json.dumps(value, default=str, ensure_ascii=False)[:SHOWN]
    other = int(value) if isinstance(value, float) and value.is_integer() else default
    fix = "pass another" + ("" if isinstance(other, str) else f", such as {key}={json.dumps(other)}")
    return f"{key}: expected {expected}, got {got}; {'set its keys instead' if 'section' in kinds else fix}"


def plain(config: DictConfig, resolve: bool = False) -> dict:
    return cast(dict, OmegaConf.to_container(config, resolve=resolve))
