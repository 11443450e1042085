"""Reconcile the metrics and checkpoints from which a relaunched run continues, and prune checkpoints.

A run can die between any two writes. Metrics are logged after a checkpoint is saved, so the newest checkpoint may
lack its line, and lines may exist for steps that will be run again.
"""

import contextlib
import os
import re
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from common.files import write_text
from common.json_lines import damaged_path, name_lines, read_json, set_aside
from recipe.monitor.metrics import format_metrics, read_log

DISCARDED = "metrics.discarded.jsonl"  # metrics of steps after the checkpoint from which a run continued
STOP = "stop"  # has a run save and end, see recipe.verl_plugins.trainer; each start removes it
TRACKER = "latest_checkpointed_iteration.txt"  # verl.utils.checkpoint.checkpoint_manager reads it
ARCHIVE_END = 65557  # bytes that a zip archive's index ends within
CHECKPOINT = re.compile(r"(discarded_)?global_step_([1-9][0-9]*)")  # as verl writes steps


def is_complete(checkpoint: Path) -> bool:
    """Check that every file of a checkpoint is there and not truncated.

    verl writes `data.pt` last; torch's files are zip archives, whose index comes last.

    Raises:
        OSError: the disk or file server fails, which says nothing about the checkpoint.
    """
    try:
        names = [name for name in os.listdir(checkpoint / "actor") if name.endswith(".pt")]
        shards = [name for name in names if name.startswith("model")]
        ranks = max((int(found[1]) for name in shards if (found := re.search(r"world_size_(\d+)", name))), default=1)
        parts = [checkpoint / "data.pt", *(checkpoint / "actor" / name for name in names)]
        return len(shards) >= ranks and all(is_archive(part) for part in parts)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def is_archive(path: Path) -> bool:
    """Check that a file ends with a zip archive's index; OSError if it cannot be read."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - ARCHIVE_END))
        file.read()  # `is_zipfile` would take an error for no archive
    return zipfile.is_zipfile(path)


def checkpoint_folders(folder: Path) -> list[tuple[int, bool, Path]]:
    """List the step of each checkpoint in `folder`, whether it is discarded, and its path, in the order of steps."""
    named = [(CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("*global_step_*") if path.is_dir()]
    return sorted((int(name[2]), bool(name[1]), path) for name, path in named if name)


def complete_checkpoints(folder: Path) -> list[int]:
    """List the steps of the complete checkpoints in `folder`, ascending."""
    return [step for step, discarded, path in checkpoint_folders(folder) if not discarded and is_complete(path)]


def saved_by(checkpoint: Path) -> tuple[int, int] | None:
    """Return ranks and FSDP version that saved a checkpoint, None if it does not say; ValueError if that is damaged."""
    path = checkpoint / "actor" / "fsdp_config.json"
    try:
        saved = read_json(path, "world_size", "FSDP_version") if path.exists() else None
    except ValueError as error:
        raise ValueError(
            f"{error}; copy it from another checkpoint, or write the world_size and FSDP_version"
        ) from error
    return (saved["world_size"], saved["FSDP_version"]) if saved else None


def check_ranks(checkpoint: Path, config: DictConfig) -> None:
    """Raise a ValueError of one line if another number of ranks or another FSDP saved a checkpoint.

    verl would look for missing files, or fail in the optimizer's state.
    """
    saved = saved_by(checkpoint)
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    fsdp = 2 if config.actor_rollout_ref.actor.strategy == "fsdp2" else 1
    if saved and saved != (ranks, fsdp):
        raise ValueError(
            f"{checkpoint}: saved by {saved[0]} ranks with FSDP {saved[1]}, and this start has "
            f"{ranks} with FSDP {fsdp}; continue with the same (trainer.nnodes, trainer.n_gpus_per_node, "
            "actor_rollout_ref.actor.strategy), or give the run another trainer.experiment_name"
        )


def discard(checkpoint: Path) -> Path:
    """Rename a checkpoint folder so that nothing takes it, or a part of it, for a checkpoint; return its new path."""
    aside = checkpoint.with_name(f"discarded_{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def best_checkpoint(folder: Path, accuracy: dict[int, float | None]) -> int | None:
    """Find the step of the complete checkpoint with the highest validation accuracy, the newest of equals."""
    validated = [step for step in complete_checkpoints(folder) if accuracy.get(step) is not None]
    return max(validated, key=lambda step: (accuracy[step], step), default=None)


def prune(folder: Path, keep: int | None, step: int, best: int | None = None, unlogged: Collection[int] = ()) -> None:
    """Remove all but the `keep` newest complete checkpoints up to `step`, `best` and `unlogged`.

    verl removes the oldest before the new one is complete, leaves its `data.pt`, and forgets every checkpoint of an
    earlier process (`BaseCheckpointManager.ensure_checkpoint_capacity`), so its own limit is off.

    Args:
        keep: None or 0 keeps every complete one; incomplete and discarded ones are removed all the same.
        step: the last one with a metrics line; a later checkpoint may not be finished and is left alone.
        best: a step whose checkpoint is kept, however old.
        unlogged: steps whose metrics line is lost: any may be the best.
    """
    complete = [done for done in complete_checkpoints(folder) if done <= step]
    kept = {best, *unlogged, *complete[-max(keep or 0, 0) :]}
    for found, discarded, path in checkpoint_folders(folder) if complete else ():
        if found <= complete[-1] and (discarded or found not in kept):
            with contextlib.suppress(OSError):  # the next step tries again
                shutil.rmtree(path if discarded else discard(path))


def reconcile(metrics_path: Path, attempt_path: Path, checkpoints: Path) -> int:
    """Reconcile metrics and checkpoints, and return the step to continue from (0: from the start).

    That step is the newest complete checkpoint with a metrics line of its own, or the newest complete one where none
    has its line; earlier lines may be missing. A later checkpoint is renamed to `discarded_global_step_<N>`:
    overwritten in part, it would still look complete. verl's tracker file is set to the step. Later lines move to
    `metrics.discarded.jsonl`, damaged ones to `metrics.jsonl.damaged`. Prints a note on each of these.

    Args:
        metrics_path: the run's `metrics.jsonl`.
        attempt_path: the metrics of the last start, merged into the former and removed.
        checkpoints: the folder of `global_step_<N>`.
    """
    by_step = take_undamaged(attempt_path) | take_undamaged(metrics_path)  # which has more than verl logs
    complete = complete_checkpoints(checkpoints)
    logged = [done for done in complete if done in by_step]
    step = max(logged or complete, default=0)
    if complete and not logged:
        print(f"  note: {metrics_path} has the line of no complete checkpoint; training continues from the newest")
    later = {done: metrics for done, metrics in by_step.items() if done > step or not step}
    if later:
        discarded = metrics_path.with_name(DISCARDED)
        with open(discarded, "a") as file:
            file.write(format_metrics(later))
        print(f"  note: training repeats steps without a checkpoint; their metrics are in {discarded}")
    write_text(metrics_path, format_metrics({done: by_step[done] for done in by_step.keys() - later.keys()}))
    for done in complete:
        if done > step:
            aside = discard(checkpoints / f"global_step_{done}")
            print(f"  note: {aside} has no undamaged line in {metrics_path.name}; training repeats its steps")
    attempt_path.unlink(missing_ok=True)
    if step:
        write_text(checkpoints / TRACKER, str(step))
    else:
        (checkpoints / TRACKER).unlink(missing_ok=True)
    return step


def take_undamaged(path: Path) -> dict[int, dict]:
    """Return the metrics of a log by step; damaged lines move aside, with a note."""
    by_step, damaged = read_log(path)
    set_aside(path, damaged)
    if damaged:
        print(f"  note: {name_lines(path, damaged)}; moved to {damaged_path(path)}")
    return by_step
