"""Errors of the export; test_survival_slow.py exports for real."""

import pytest

from common.command import Failure
from common.locks import run_lock
from recipe.export import export
from tests.test_checkpoints import checkpoint


def test_a_step_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint to export"):
        export(tmp_path, None)
    checkpoint(tmp_path / "checkpoints", 5)
    checkpoint(tmp_path / "checkpoints", 10, truncated=("data.pt",))
    with pytest.raises(ValueError, match="no complete checkpoint of step 10; there are 5"):
        export(tmp_path, 10)


def test_a_second_export_at_once_is_refused(tmp_path):
    checkpoint(tmp_path / "checkpoints", 5)
    with run_lock(tmp_path / "export"), pytest.raises(ValueError, match="in progress"):
        export(tmp_path, 5)


@pytest.mark.slow
def test_a_failed_merge_leaves_no_export(tmp_path):
    checkpoint(tmp_path / "checkpoints", 5)
    with pytest.raises(Failure, match="merger failed"):
        export(tmp_path, 5)
    assert not list((tmp_path / "export").glob("step_*"))
