"""Loggers that continue after a resume: TensorBoard, and Weights & Biases with JUSTRL_WANDB=online or offline."""

import os
import re
import secrets
from pathlib import Path

from omegaconf import DictConfig

from common.files import write_text
from recipe.preflight import as_list


def use_wandb(config: DictConfig) -> None:
    """Add W&B to a composed config's loggers, in place, if JUSTRL_WANDB requests it; ValueError if it is mistyped."""
    mode = os.environ.get("JUSTRL_WANDB")
    if mode not in (None, "", "online", "offline"):
        raise ValueError(f"JUSTRL_WANDB={mode}: use online or offline")
    if mode:
        add_logger(config, "wandb")


def use_file(config: DictConfig) -> None:
    """Add verl's file logger to a composed config's loggers, in place: `metrics.jsonl` is filled from its file."""
    if add_logger(config, "file"):
        print("note: added file to trainer.logger, without which the run would have no metrics.jsonl")


def add_logger(config: DictConfig, name: str) -> bool:
    """Add a logger to a composed config, which may have a single one as text; return whether it was missing."""
    there = as_list(config.trainer.logger)
    if name not in there:
        config.trainer.logger = [*there, name]
    return name not in there


def wandb_environment(config: DictConfig, folder: Path) -> dict[str, str]:
    """Return the variables that make `verl.utils.tracking.Tracking` continue the W&B run of a run's folder.

    Its id is drawn once and kept in `wandb.id`: a name alone would mix the runs of two people or two attempts.
    """
    if "wandb" not in as_list(config.trainer.logger):
        return {}
    path = folder / "wandb.id"
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    run_id = path.read_bytes().decode(errors="replace").strip()
    if not re.fullmatch(r"[\w-]+", run_id, re.ASCII):
        raise ValueError(f"{path}: damaged; write the run's id on W&B into it, or remove it to log to a new one")
    variables = {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow", "WANDB_DIR": str(folder.resolve())}
    if mode := os.environ.get("JUSTRL_WANDB"):
        variables["WANDB_MODE"] = mode
    return variables


def purge_tensorboard(folder: Path, step: int) -> None:
    """Make TensorBoard drop what an interrupted run logged after `step`, as `SummaryWriter(purge_step=...)` does."""
    if not folder.is_dir():
        return
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer, first = EventFileWriter(str(folder)), step + 1 if step else 0  # from the start means from step 0
    writer.add_event(Event(step=first, file_version="brain.Event:2"))
    writer.add_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
    writer.close()
