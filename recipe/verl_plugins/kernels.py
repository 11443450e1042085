"""The names of the attention kernels, and which one `packed` means.

Imports neither torch nor flash-attn: where flash-attn is installed a child process tries it, since a build for another
torch fails only when it is imported.
"""

import functools
import importlib.util
import subprocess
import sys

PACKED = "packed"  # what the configs set: the best kernel that the machine has
FLASH_ATTN, TORCH, REFERENCE = f"{PACKED}_flash_attn", f"{PACKED}_torch", f"{PACKED}_reference"
NAMES = (PACKED, FLASH_ATTN, TORCH, REFERENCE)
IMPORT_SECONDS = 3600  # for a child process that imports torch, from a slow disk or on a loaded machine


def choose(device: str) -> str:
    """Return the kernel that `packed` means on "cpu" or "cuda"."""
    if device == "cpu":
        return REFERENCE
    return TORCH if flash_attn_problem() else FLASH_ATTN


@functools.cache
def flash_attn_problem() -> str:
    """Return why the package flash-attn cannot be used, "" if it can."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    command = [sys.executable, "-c", "import flash_attn"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"flash-attn took more than {IMPORT_SECONDS} s to import"
    reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return f"flash-attn cannot be imported: {reason}" if done.returncode else ""
