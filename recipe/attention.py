"""Which attention kernel a run trains with, chosen before it starts and written into its config.

The kernels round differently and compute the same function, so `recipe.check` accepts any of them. Imports neither
torch nor flash-attn: where flash-attn is installed a child process tries it, since a build for another torch fails only
when it is imported.
"""

import functools
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig, open_dict

KEY = "actor_rollout_ref.model.override_config._attn_implementation"
PACKED = "packed"  # what the configs set: the best kernel that the machine has
FLASH_ATTN, TORCH, REFERENCE = f"{PACKED}_flash_attn", f"{PACKED}_torch", f"{PACKED}_reference"
TRANSFORMERS_FLASH = "flash_attention_2"  # flash-attn through transformers, verl's default
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


def requested(config: DictConfig) -> str:
    """Return the attention that a composed config sets; verl's own key for it, `attn_implementation`, wins."""
    override = config.actor_rollout_ref.model.override_config
    return override.get("attn_implementation") or override.get("_attn_implementation") or TRANSFORMERS_FLASH


def chosen(config: DictConfig) -> str:
    """Return the kernel that a composed config leads to on its device."""
    kernel = requested(config)
    return choose(config.trainer.device) if kernel == PACKED else kernel


def has_varlen() -> bool:
    """Return whether the installed torch has `torch.nn.attention.varlen`, without importing it."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder is not None and (folder / "nn" / "attention" / "varlen.py").is_file()


def beside_flash_attn(config: DictConfig) -> str:
    """Return the paper's `flash_attention_2` if a config's kernel is flash-attn, else a description of its kernel."""
    kernel = chosen(config)
    return TRANSFORMERS_FLASH if kernel in (FLASH_ATTN, TRANSFORMERS_FLASH) else describe(kernel)


def settle(config: DictConfig) -> str:
    """Replace `packed` in a composed config by the kernel; return a description of it and why it was chosen."""
    kernel = chosen(config)
    why = f" ({flash_attn_problem()})" if requested(config) == PACKED and kernel == TORCH else ""
    with open_dict(config):
        config.actor_rollout_ref.model.override_config.pop("attn_implementation", None)
        config.actor_rollout_ref.model.override_config._attn_implementation = kernel
    return describe(kernel) + why


def check(config: DictConfig) -> None:
    """Raise ValueError if the attention that a config sets cannot run on its device."""
    kernel, device = requested(config), config.trainer.device
    advice = f"use {PACKED}, which takes the best kernel that the machine has"
    if kernel.startswith(PACKED) and kernel not in NAMES:
        raise ValueError(f"{KEY}={kernel}: use {', '.join(NAMES)}, or an attention of transformers")
    if kernel in NAMES and not config.actor_rollout_ref.model.use_remove_padding:
        raise ValueError(f"{KEY}={kernel} needs actor_rollout_ref.model.use_remove_padding=true")
    if device == "cpu" and kernel in (FLASH_ATTN, TORCH, TRANSFORMERS_FLASH):
        raise ValueError(f"{KEY}={kernel} needs a GPU; {advice}")
    if kernel in (FLASH_ATTN, TRANSFORMERS_FLASH) and (problem := flash_attn_problem()):
        raise ValueError(f"{KEY}={kernel}: {problem}; {advice}")
    if device == "cuda" and kernel in (PACKED, TORCH) and not has_varlen():
        raise ValueError(f"torch {version('torch')} has no FlashAttention over packed sequences; use 2.10 or newer")


def describe(kernel: str) -> str:
    """Describe a kernel, such as "FlashAttention 2 of torch 2.11.0"."""
    if kernel == FLASH_ATTN:
        return f"flash-attn {version('flash_attn')}"
    if kernel == TORCH:
        return f"FlashAttention 2 of torch {version('torch')}"
    if kernel == REFERENCE:
        return f"sdpa of torch {version('torch')}, one sequence at a time"
    return f"{kernel} of transformers {version('transformers')}"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
