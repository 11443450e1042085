"""Which attention kernel a run trains with, decided before it starts and written into its config.

The kernels round differently and compute the same function, so the choice is free for `recipe.check`. Imports neither
torch nor flash-attn: on a machine with flash-attn a child process tries it, since a build for another torch only fails
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
PACKED = "packed"  # what the configs say: the best kernel that the machine has
FLASH_ATTN, TORCH, REFERENCE = f"{PACKED}_flash_attn", f"{PACKED}_torch", f"{PACKED}_reference"
TRANSFORMERS_FLASH = "flash_attention_2"  # transformers' own way to flash-attn, and verl's default
NAMES = (PACKED, FLASH_ATTN, TORCH, REFERENCE)
IMPORT_SECONDS = 300  # for a child process that imports torch from a slow disk


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
    reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return f"flash-attn cannot be imported: {reason[0]}" if done.returncode else ""


def requested(config: DictConfig) -> str:
    """Return the attention that a composed config names; verl's own key for it, `attn_implementation`, wins."""
    override = config.actor_rollout_ref.model.override_config
    return override.get("attn_implementation") or override.get("_attn_implementation") or TRANSFORMERS_FLASH


def has_varlen() -> bool:
    """Return whether the installed torch has `torch.nn.attention.varlen`, without importing it."""
    spec = importlib.util.find_spec("torch")
    return spec is not None and Path(spec.origin).with_name("nn").joinpath("attention", "varlen.py").is_file()


def beside_flash_attn(config: DictConfig) -> str:
    """Return what a config's attention is beside the paper's `flash_attention_2`: the same, or a description."""
    asked = requested(config)
    kernel = choose(config.trainer.device) if asked == PACKED else asked
    return TRANSFORMERS_FLASH if kernel in (FLASH_ATTN, TRANSFORMERS_FLASH) else describe(kernel)


def settle(config: DictConfig) -> str:
    """Put the kernel in place of `packed` in a composed config, and return a line that says which and why."""
    asked = requested(config)
    kernel = choose(config.trainer.device) if asked == PACKED else asked
    with open_dict(config):
        config.actor_rollout_ref.model.override_config.pop("attn_implementation", None)
        config.actor_rollout_ref.model.override_config._attn_implementation = kernel
    why = f" ({flash_attn_problem()})" if (asked, kernel) == (PACKED, TORCH) else ""
    return describe(kernel) + why


def check(config: DictConfig) -> None:
    """Raise a ValueError of one line if the attention that a config names cannot run on its device."""
    asked, model, device = requested(config), config.actor_rollout_ref.model, config.trainer.device
    if asked == TRANSFORMERS_FLASH and (device == "cpu" or flash_attn_problem()):
        why = "it needs a GPU" if device == "cpu" else flash_attn_problem()
        raise ValueError(f"{KEY}={asked}: {why}; use {PACKED}, which takes what the machine has")
    if device == "cuda" and asked in (PACKED, TORCH) and not has_varlen():
        raise ValueError(
            f"the installed torch {version('torch')} has no FlashAttention over packed sequences; take 2.10 on"
        )
    if not asked.startswith(PACKED):
        return
    if asked not in NAMES:
        raise ValueError(f"{KEY}={asked}: use {', '.join(NAMES)}, or an attention of transformers")
    if not model.use_remove_padding:
        raise ValueError(f"{KEY}={asked} needs actor_rollout_ref.model.use_remove_padding=true")
    if device == "cpu" and asked in (TORCH, FLASH_ATTN):
        raise ValueError(f"{KEY}={asked} needs a GPU; on the CPU use {REFERENCE}")
    if asked == FLASH_ATTN and (problem := flash_attn_problem()):
        raise ValueError(f"{KEY}={asked}: {problem}; use {TORCH}")


def describe(kernel: str) -> str:
    """Return a kernel for people, such as "FlashAttention 2 of torch 2.11.0"."""
    if kernel == FLASH_ATTN:
        return f"flash-attn {version('flash_attn')}"
    if kernel == TORCH:
        return f"FlashAttention 2 of torch {version('torch')}"
    if kernel == REFERENCE:
        return f"sdpa of torch {version('torch')}, one sequence at a time"
    return f"{kernel} of transformers {version('transformers')}"


def version(package: str) -> str:
    """Return an installed package's version, "?" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
