"""What the paper and its release state, read from `paper.yaml`."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Value(NamedTuple):
    """A stated value of a key of the composed config, its source, and what another value changes.

    `machine`: it changes speed, memory or rounding only, so another value makes no difference to learning.
    """

    key: str
    value: Any
    source: str
    affects: str
    machine: bool = False


PAPER = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text())
BACKBONES: dict[str, dict] = PAPER["backbones"]
VALUES = tuple(
    Value(key, value, PAPER["sources"][source], affects, machine=group == "machine")
    for group in ("values", "machine")
    for key, (value, source, affects) in PAPER[group].items()
)


def stated(key: str) -> Any:
    """Look up the value that the paper or its release states for a key; KeyError if they state none."""
    return {value.key: value.value for value in VALUES}[key]


def backbone(model: str | None) -> str | None:
    """Return the paper's backbone that a hub id or a local folder is named after; None for another model."""
    path = Path(str(model))
    local = path.is_absolute() or path.is_dir()
    return next((known for known in BACKBONES if model == known or (local and path.name == Path(known).name)), None)
