"""Weights & Biases by one switch: JUSTRL_WANDB=online or offline. Without it a run logs to its file and TensorBoard."""

import os
import secrets
from pathlib import Path

from omegaconf import DictConfig

from data_prep.files import write_text_whole
from recipe.preflight import files


def use_wandb(config: DictConfig) -> None:
    """Add W&B to a composed config's loggers, in place, if JUSTRL_WANDB asks for it; ValueError if it is mistyped."""
    mode = os.environ.get("JUSTRL_WANDB")
    if mode not in (None, "", "online", "offline"):
        raise ValueError(f"JUSTRL_WANDB={mode}: use online or offline")
    if mode and "wandb" not in config.trainer.logger:
        config.trainer.logger = [*files(config.trainer.logger), "wandb"]


def wandb_environment(config: DictConfig, folder: Path) -> dict[str, str]:
    """Return the variables by which W&B, started by `verl.utils.tracking.Tracking`, continues one run of `folder`.

    The id is drawn once and kept in the folder's `wandb.id`: a name alone would mix runs of two people or two tries.
    """
    if "wandb" not in config.trainer.logger:
        return {}
    path, mode = folder / "wandb.id", os.environ.get("JUSTRL_WANDB")
    if not path.exists():
        write_text_whole(path, secrets.token_hex(4))
    fixed = {"WANDB_RUN_ID": path.read_text(), "WANDB_RESUME": "allow", "WANDB_DIR": str(folder.resolve())}
    return fixed | ({"WANDB_MODE": mode} if mode else {})
