"""Reconcile the metrics and checkpoints from which a relaunched run continues, and prune checkpoints.

A run can die between any two writes. Metrics are logged after a checkpoint is saved, so the newest checkpoint may
lack its line, and lines may exist for steps that will be run again.
"""

import contextlib
import json
import re
import shutil
import zipfile
from pathlib import Path

from omegaconf import DictConfig

from common.files import write_text
from recipe.monitor.metrics import format_metrics, read_metrics

DISCARDED = "metrics.discarded.jsonl"  # metrics of steps without a checkpoint
STOP = "stop"  # has a run save and end, see recipe.verl_plugins.trainer; each start removes it
TRACKER = "latest_checkpointed_iteration.txt"  # verl.utils.checkpoint.checkpoint_manager reads it
CHECKPOINT = re.compile(r"(discarded_)?global_step_(\d+)")


def is_complete(checkpoint: Path) -> bool:
    """Check that every file of a checkpoint is there and not truncated.

    verl writes `data.pt` last; torch's files are zip archives, whose index comes last.
    """
    shards = [path for path in checkpoint.glob("actor/*.pt") if path.name.startswith("model")]
    ranks = max((int(found[1]) for path in shards if (found := re.search(r"world_size_(\d+)", path.name))), default=1)
    parts = [checkpoint / "data.pt", *checkpoint.glob("actor/*.pt")]
    return len(shards) >= ranks and all(zipfile.is_zipfile(part) for part in parts)


def complete_checkpoints(folder: Path) -> list[int]:
    """List the steps of the complete checkpoints in `folder`, ascending."""
    found = (path for path in folder.glob("global_step_*") if path.name.removeprefix("global_step_").isdigit())
    return sorted(int(path.name.removeprefix("global_step_")) for path in found if is_complete(path))


def check_ranks(checkpoint: Path, config: DictConfig) -> None:
    """Raise a ValueError of one line if another number of ranks or another FSDP saved a checkpoint.

    verl would look for missing files, or fail in the optimizer's state.
    """
    try:
        saved = json.loads((checkpoint / "actor" / "fsdp_config.json").read_text())
    except FileNotFoundError:
        return
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    fsdp = 2 if config.actor_rollout_ref.actor.strategy == "fsdp2" else 1
    if (saved["world_size"], saved["FSDP_version"]) != (ranks, fsdp):
        raise ValueError(
            f"{checkpoint}: saved by {saved['world_size']} ranks with FSDP {saved['FSDP_version']}, and this start has "
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


def prune(folder: Path, keep: int | None, step: int, best: int | None = None) -> None:
    """Remove all but the `keep` newest complete checkpoints up to `step`, and `best`.

    verl removes the oldest before the new one is complete, leaves its `data.pt`, and forgets every checkpoint of an
    earlier process (`BaseCheckpointManager.ensure_checkpoint_capacity`), so its own limit is off.

    Args:
        keep: None or 0 keeps every complete one; incomplete and discarded ones are removed all the same.
        step: the last one with a metrics line; a later checkpoint may not be finished and is left alone.
        best: a step whose checkpoint is kept, however old.
    """
    complete = [done for done in complete_checkpoints(folder) if done <= step]
    kept = {best, *complete[-max(keep or 0, 0) :]}
    for path in sorted(folder.glob("*global_step_*")) if complete else ():
        name = CHECKPOINT.fullmatch(path.name)
        if name and int(name[2]) <= complete[-1] and (name[1] or int(name[2]) not in kept):
            with contextlib.suppress(OSError):  # the next step tries again
                shutil.rmtree(path if name[1] else discard(path))


def reconcile(metrics_path: Path, attempt_path: Path, checkpoints: Path) -> int:
    """Reconcile metrics and checkpoints, and return the step to continue from (0: from the start).

    That step is the newest complete checkpoint with a metrics line for it and for every step before it. Later lines
    are dropped, and verl's tracker file is set to it. Without such a checkpoint all lines move to
    `metrics.discarded.jsonl`. A later complete checkpoint is renamed to `discarded_global_step_<N>`: overwritten in
    part, it would still look complete.

    Args:
        metrics_path: the run's `metrics.jsonl`.
        attempt_path: the metrics of the last start, merged into the former and removed.
        checkpoints: the folder of `global_step_<N>`.
    """
    by_step = read_metrics(metrics_path)
    for step, metrics in read_metrics(attempt_path).items():
        by_step.setdefault(step, {}).update(metrics)
    logged = 0
    while logged + 1 in by_step:
        logged += 1
    complete = complete_checkpoints(checkpoints)
    step = max((done for done in complete if done <= logged), default=0)
    for later in complete:
        if later > step:
            discard(checkpoints / f"global_step_{later}")
    if logged and not step:
        write_text(metrics_path.with_name(DISCARDED), format_metrics(by_step))
    write_text(metrics_path, format_metrics({s: m for s, m in by_step.items() if step and s <= step}))
    attempt_path.unlink(missing_ok=True)
    if step:
        write_text(checkpoints / TRACKER, str(step))
    else:
        (checkpoints / TRACKER).unlink(missing_ok=True)
    return step
