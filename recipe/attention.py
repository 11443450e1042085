"""Which attention kernel a run trains with, chosen before it starts and written into its config.

The kernels round differently and compute the same function, so `recipe.check` accepts any of them.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

from omegaconf import DictConfig, open_dict

from recipe.verl_plugins.kernels import FLASH_ATTN, NAMES, PACKED, REFERENCE, TORCH, choose, flash_attn_problem

KEY = "actor_rollout_ref.model.override_config._attn_implementation"
TRANSFORMERS_FLASH = "flash_attention_2"  # flash-attn through transformers, verl's default


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
