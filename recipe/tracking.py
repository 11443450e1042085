"""Weights & Biases by one switch: JUSTRL_WANDB=online or offline; without it a run logs to file and TensorBoard."""

import os
import secrets
from pathlib import Path

from omegaconf import DictConfig

from data_prep.files import write_text_whole
from recipe.preflight import files

LOGGER = "wandb"
MODES = ("online", "offline")


def use_wandb(config: DictConfig) -> None:
    """Add W&B to a composed config's loggers, in place, if JUSTRL_WANDB asks for it.

    Raises:
        ValueError: JUSTRL_WANDB is something else.
    """
    mode = os.environ.get("JUSTRL_WANDB")
    if not mode:
        return
    if mode not in MODES:
        raise ValueError(f"JUSTRL_WANDB={mode}: use {' or '.join(MODES)}")
    if LOGGER not in config.trainer.logger:
        config.trainer.logger = [*files(config.trainer.logger), LOGGER]


def wandb_environment(config: DictConfig, folder: Path) -> dict[str, str]:
    """Return the variables by which W&B, started by `verl.utils.tracking.Tracking`, continues one run of `folder`.

    The id is drawn once and kept in the folder's `wandb.id`: a name alone would mix runs of two people or two tries.
    """
    if LOGGER not in config.trainer.logger:
        return {}
    path = folder / "wandb.id"
    if not path.exists():
        write_text_whole(path, secrets.token_hex(4))
    mode = os.environ.get("JUSTRL_WANDB")
    return {
        "WANDB_RUN_ID": path.read_text(),
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(folder.resolve()),
    } | ({"WANDB_MODE": mode} if mode else {})
