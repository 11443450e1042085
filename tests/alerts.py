"""What tests of alerts share: a run's folder that no process of an alert outlives, and texts that are hard to pass."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from common.progress import WARNING
from recipe import alert
from recipe.alert import Alerts
from tests.conftest import ENDING_SECONDS, HANGING_SECONDS

TEXTS = [
    "entropy 0.5 is below 0.6",
    "'single' \"double\" \\ \\\\ \\n %s %d",
    "$(touch executed) `touch executed` ; touch executed & | > executed",
    '"; touch executed; "',
    "'; touch executed; '",
    "${HOME} $HOME !! * ~ # {a,b} <!channel> &amp;",
    "-n -e --help @/etc/passwd",
    "é 漢字 \U0001f600 \x07 \x1b[31m",
]


@contextlib.contextmanager
def folder_for_alerts(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Make a run's folder; at the end no process and no zombie of an alert may be left."""
    for variable in ("JUSTRL_ALERT", "JUSTRL_WANDB", "WANDB_MODE", "WANDB_ENTITY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(alert, "LIMIT_SECONDS", float(HANGING_SECONDS))  # a test sets its own
    before = set(psutil.Process().children(recursive=True))
    (tmp_path / "run").mkdir()
    yield tmp_path / "run"
    assert set(psutil.Process().children(recursive=True)) <= before


def make_alerts(command, folder, log, logger=()) -> Alerts:
    names = {"logger": [*logger], "project_name": "justrl"}
    return Alerts(OmegaConf.create({"justrl": {"alert": command}, "trainer": names}), folder, log)


def settle(alerts: Alerts) -> None:
    """Wait until all commands have ended by themselves."""
    for command in alerts.outstanding:
        command.join(ENDING_SECONDS)
        assert not command.is_alive()


def notes(log) -> list[str]:
    with open(log.name) as file:
        lines = [line for line in file.read().splitlines() if line]
    assert all(line.startswith(f"{WARNING}alert: ") for line in lines)
    return [line.removeprefix(f"{WARNING}alert: ") for line in lines]
