"""Metrics and checkpoints agree after a death at any point between two writes."""

import json
import zipfile

import pytest

from recipe.checkpoints import (
    DISCARDED,
    TRACKER,
    best_checkpoint,
    check_ranks,
    complete_checkpoints,
    prune,
    reconcile,
)
from recipe.compose import compose
from recipe.monitor.metrics import read_metrics


def checkpoint(folder, step, parts=("data.pt", "actor/model.pt"), truncated=()):
    """Make a checkpoint folder of small zip archives, as torch writes them, some cut short."""
    for part in parts:
        path = folder / f"global_step_{step}" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", "x" * 1000)
        if part in truncated:
            path.write_bytes(path.read_bytes()[:500])


def log(path, steps, tail=""):
    """Write a metrics line for each step, then whatever a dying process left."""
    path.write_text("".join(json.dumps({"step": s, "data": {"loss": s}}) + "\n" for s in steps) + tail)


def reconciled(tmp_path):
    """Run `reconcile` and return its step, the logged steps after it and the tracker's content."""
    step = reconcile(tmp_path / "metrics.jsonl", tmp_path / "attempt.jsonl", tmp_path)
    tracker = tmp_path / TRACKER
    return step, list(read_metrics(tmp_path / "metrics.jsonl")), tracker.read_text() if tracker.exists() else None


def test_nothing_there(tmp_path):
    assert reconciled(tmp_path) == (0, [], None)


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    checkpoint(tmp_path, 5)
    log(tmp_path / "metrics.jsonl", range(0, 8))
    assert reconciled(tmp_path) == (5, [0, 1, 2, 3, 4, 5], "5")


def test_a_checkpoint_whose_line_was_never_written_is_not_used(tmp_path):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10)
    log(tmp_path / "metrics.jsonl", range(0, 10))
    assert reconciled(tmp_path) == (5, [0, 1, 2, 3, 4, 5], "5")


def test_incomplete_checkpoints_are_skipped(tmp_path):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, parts=("actor/model.pt",))
    checkpoint(tmp_path, 15, truncated=("actor/model.pt",))
    checkpoint(tmp_path, 20, truncated=("data.pt",))
    (tmp_path / TRACKER).write_text("")
    log(tmp_path / "metrics.jsonl", range(0, 21))
    assert complete_checkpoints(tmp_path) == [5]
    assert reconciled(tmp_path)[0] == 5


def test_what_the_last_start_wrote_is_merged(tmp_path):
    checkpoint(tmp_path, 5)
    log(tmp_path / "metrics.jsonl", range(0, 4))
    log(tmp_path / "attempt.jsonl", range(3, 7), tail='{"step": 7, "da')
    assert reconciled(tmp_path) == (5, [0, 1, 2, 3, 4, 5], "5")
    assert not (tmp_path / "attempt.jsonl").exists()


def test_a_gap_in_the_metrics_is_no_reason_to_go_back(tmp_path):
    checkpoint(tmp_path, 3)
    checkpoint(tmp_path, 6)
    log(tmp_path / "metrics.jsonl", [0, 1, 2, 3, 5, 6])
    assert reconciled(tmp_path) == (6, [0, 1, 2, 3, 5, 6], "6")


def test_dying_before_the_first_checkpoint_starts_over(tmp_path):
    log(tmp_path / "metrics.jsonl", range(0, 4))
    (tmp_path / TRACKER).write_text("5")
    assert reconciled(tmp_path) == (0, [], None)
    assert list(read_metrics(tmp_path / DISCARDED)) == [0, 1, 2, 3]


def folders(path):
    """Return the names of the folders in `path`."""
    return sorted(child.name for child in path.iterdir() if child.is_dir())


def test_the_newest_complete_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 12, truncated=("actor/model.pt",))
    checkpoint(tmp_path, 2, parts=("data.pt",))  # what verl's own retention leaves
    (tmp_path / "global_step_5_copy").mkdir()
    prune(tmp_path, 2, 20)
    assert folders(tmp_path) == ["global_step_15", "global_step_20", "global_step_5_copy"]


def test_the_best_checkpoint_by_validation_is_kept_as_well(tmp_path):
    for step in (5, 10, 15, 20):
        checkpoint(tmp_path, step)
    accuracy = {0: 0.9, 5: 0.7, 10: 0.5, 15: None, 17: 0.8}
    assert best_checkpoint(tmp_path, {}) is None
    assert best_checkpoint(tmp_path, accuracy) == 5, "steps without a checkpoint or a score do not count"
    prune(tmp_path, 1, 20, best_checkpoint(tmp_path, accuracy))
    assert folders(tmp_path) == ["global_step_20", "global_step_5"]
    prune(tmp_path, 1, 20, best_checkpoint(tmp_path, accuracy | {20: 0.7}))
    assert folders(tmp_path) == ["global_step_20"], "the newest of equals"


def test_a_checkpoint_that_may_be_the_best_is_kept_while_its_line_is_missing(tmp_path):
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    prune(tmp_path, 1, 15, best=None, unlogged={5})
    assert folders(tmp_path) == ["global_step_15", "global_step_5"]


def test_nothing_is_removed_for_a_checkpoint_that_is_not_whole_or_not_logged(tmp_path):
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 20, parts=("actor/model.pt",))
    prune(tmp_path, 1, 14)
    assert folders(tmp_path) == ["global_step_10", "global_step_15", "global_step_20"]
    prune(tmp_path, 1, 20)
    assert folders(tmp_path) == ["global_step_15", "global_step_20"], "20 may still be being written"


def test_without_a_complete_checkpoint_nothing_is_removed(tmp_path):
    checkpoint(tmp_path, 5, parts=("actor/model.pt",))
    prune(tmp_path, 1, 5)
    assert folders(tmp_path) == ["global_step_5"]


@pytest.mark.parametrize("keep", [None, 0, -1])
def test_all_complete_checkpoints_can_be_kept(tmp_path, keep):
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 7, parts=("data.pt",))
    prune(tmp_path, keep, 15)
    assert folders(tmp_path) == ["global_step_10", "global_step_15", "global_step_5"]


def test_a_checkpoint_beyond_the_metrics_is_set_aside_until_training_has_passed_it(tmp_path):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10)
    log(tmp_path / "metrics.jsonl", range(0, 10))
    assert reconciled(tmp_path)[0] == 5
    prune(tmp_path, 3, 5)
    assert folders(tmp_path) == ["discarded_global_step_10", "global_step_5"]
    checkpoint(tmp_path, 10, truncated=("actor/model.pt",))  # killed while it was written again
    assert reconciled(tmp_path)[0] == 5
    prune(tmp_path, 3, 9)
    assert folders(tmp_path) == ["discarded_global_step_10", "global_step_10", "global_step_5"]
    checkpoint(tmp_path, 10)
    prune(tmp_path, 3, 10)
    assert folders(tmp_path) == ["global_step_10", "global_step_5"]


def test_checkpoints_without_any_metrics_are_not_lost(tmp_path):
    checkpoint(tmp_path, 5)
    assert reconciled(tmp_path) == (5, [], "5")
    prune(tmp_path, 3, 0)
    assert folders(tmp_path) == ["global_step_5"]


def test_removing_is_safe_against_a_death_in_its_middle(tmp_path, monkeypatch):
    """What is being removed is no checkpoint any more, and goes the next time."""
    for step in (5, 10):
        checkpoint(tmp_path, step)
    with monkeypatch.context() as dying:
        dying.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        prune(tmp_path, 1, 10)
    assert complete_checkpoints(tmp_path) == [10]
    prune(tmp_path, 1, 10)
    assert folders(tmp_path) == ["global_step_10"]


def test_a_checkpoint_of_other_ranks_is_refused_before_verl_reads_it(tmp_path):
    config = compose("justrl_deepseek", ["+hardware=h100_8"], "cuda")
    check_ranks(tmp_path, config)  # of a verl that did not say
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor" / "fsdp_config.json").write_text('{"FSDP_version": 1, "world_size": 8}')
    check_ranks(tmp_path, config)
    for overrides in (["trainer.n_gpus_per_node=4"], ["actor_rollout_ref.actor.strategy=fsdp2"]):
        with pytest.raises(ValueError, match="saved by 8 ranks with FSDP 1, and this start has"):
            check_ranks(tmp_path, compose("justrl_deepseek", ["+hardware=h100_8", *overrides], "cuda"))


def test_a_disk_that_fails_makes_no_checkpoint_incomplete(tmp_path, monkeypatch):
    """zipfile takes an error of the disk for a file that is no archive; the best checkpoint must not go for that."""
    for step in (20, 180, 200):
        checkpoint(tmp_path, step)

    def fail(path, *options):
        if "global_step_20/" in str(path):
            raise OSError(116, "Stale file handle")
        return open(path, *options)

    monkeypatch.setattr("recipe.checkpoints.open", fail, raising=False)
    with pytest.raises(OSError, match="Stale"):
        complete_checkpoints(tmp_path)
    with pytest.raises(OSError, match="Stale"):
        prune(tmp_path, 1, 200, best=20)
    monkeypatch.undo()
    assert complete_checkpoints(tmp_path) == [20, 180, 200]
