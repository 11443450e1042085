"""The id of a run, by which a repository of the hub is known to have its models."""

import json
import re
import secrets
from pathlib import Path

from common.files import digest, write_text
from recipe.monitor.metrics import read_metrics

FILE = "run.id"


def give_id(run: Path) -> None:
    """Write a random id into a run's folder at its first start; a run with metrics and no id keeps its digest."""
    if not (run / FILE).exists() and not read_metrics(run / "metrics.jsonl"):
        write_text(run / FILE, secrets.token_hex(8) + "\n")


def run_id(run: Path, name: str, by_step: dict[int, dict]) -> str:
    """Return a run's id: the one in its folder, or of an older run a digest of its name and its first metrics.

    Both are what a resume keeps on any machine. The digest of two runs with the same first metrics is the same.
    """
    text = (run / FILE).read_text(errors="replace").strip() if (run / FILE).is_file() else ""
    if re.fullmatch("[0-9a-f]{16}", text):
        return text
    return digest([name, json.dumps(by_step[min(by_step)], sort_keys=True)])
