"""Attention over packed sequences, and log-probabilities in blocks, with or without the package flash-attn.

verl packs the sequences of a micro-batch into one row (`use_remove_padding`). Without flash-attn, transformers refuses
its flash attention, its `sdpa` builds a mask of tokens x tokens, and verl computes log-probabilities row by row.
verl imports this module in every process (`actor_rollout_ref.model.external_lib`), which registers an attention for
each of `recipe.verl_plugins.kernels.NAMES` and replaces verl's fallback for log-probabilities. The kernels compute the
same function; `tests/test_attention.py` compares them with float64.
"""

import functools
import inspect
from collections.abc import Callable

import torch
import verl.utils.torch_functional
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface
from verl.utils import ulysses

from recipe.verl_plugins.kernels import FLASH_ATTN, PACKED, REFERENCE, TORCH, choose
from recipe.verl_plugins.log_probs import entropy, log_probs

# Boundaries of each pack, for as long as its tensor of positions exists: computed once for all layers.
PACKS = WeakIdKeyDictionary()
# Arguments of transformers' attention functions that change the result and that no kernel here implements.
UNSUPPORTED = ("dropout", "sliding_window", "softcap", "s_aux")


def reference_kernel(query, key, value, boundaries: torch.Tensor, longest: int, scale: float | None) -> torch.Tensor:
    """Attend to one sequence of a pack after another with torch's own attention; any device and dtype."""
    lengths = boundaries.diff().tolist()
    sequences = zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True)
    attended = [
        torch.nn.functional.scaled_dot_product_attention(
            *(tensor.transpose(0, 1)[None] for tensor in sequence), is_causal=True, scale=scale, enable_gqa=True
        )
        for sequence in sequences
    ]
    return torch.cat([one[0].transpose(0, 1) for one in attended])


def torch_kernel(query, key, value, boundaries: torch.Tensor, longest: int, scale: float | None) -> torch.Tensor:
    """Attend with torch's build of FlashAttention 2; CUDA, bf16 or fp16, compute capability 8.0 or newer."""
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 accepts grouped heads without this argument, later releases require it.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    causal = {"window_size": (-1, 0)}
    return varlen_attn(query, key, value, boundaries, boundaries, longest, longest, scale=scale, **causal, **grouped)


def flash_attn_kernel(query, key, value, boundaries: torch.Tensor, longest: int, scale: float | None) -> torch.Tensor:
    """Attend with the package flash-attn; the same conditions as for `torch_kernel`."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query, key, value, boundaries, boundaries, longest, longest, softmax_scale=scale, causal=True
    )


KERNELS = {REFERENCE: reference_kernel, TORCH: torch_kernel, FLASH_ATTN: flash_attn_kernel}


@functools.cache
def best_kernel(device: str) -> Callable:
    return KERNELS[choose(device)]


def pack_boundaries(position_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return where the sequences of a pack begin, with the pack's end as the last entry, and the longest's length.

    Args:
        position_ids: of any shape; each sequence begins with 0, as does what verl pads a pack with.
    """
    flat = position_ids.reshape(-1)
    starts = (flat == 0).nonzero().flatten()
    boundaries = torch.cat((starts, starts.new_tensor([flat.numel()]))).to(torch.int32)
    return boundaries, int(boundaries.diff().max())


def in_kernel_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Cast a tensor as autocast would for a matrix product, as norms and rotations may return fp32."""
    device = tensor.device.type
    if tensor.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def gather_sequence(tensor: torch.Tensor, ranks: int) -> torch.Tensor:
    """Exchange (1, tokens / ranks, heads, width) for (1, tokens, heads / ranks, width) among Ulysses ranks.

    With fewer heads than ranks several ranks get the same one, as in `verl.models.transformers.monkey_patch`.
    """
    copies = max(1, ranks // tensor.shape[2])
    return ulysses.gather_seq_scatter_heads(tensor.repeat_interleave(copies, dim=2), seq_dim=1, head_dim=2)


def packed_attention(
    kernel: Callable | None,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    **options,
) -> tuple[torch.Tensor, None]:
    """One of transformers' attention functions: attends causally and within each sequence of a pack.

    Args:
        kernel: None for the best one of the tensors' device.
        query: (1, heads, tokens, width); key and value may have fewer heads. With Ulysses, one rank's tokens.
        position_ids: (1, tokens), which begin with 0 at each sequence.

    Returns:
        (1, tokens, heads, width), and None for the attention weights.

    Raises:
        ValueError: the input is not packed, or an option is set that no kernel implements.
    """
    unsupported = [name for name in UNSUPPORTED if options.get(name)]
    if unsupported:
        raise ValueError(
            f"packed attention has no {unsupported[0]}, which {type(module).__name__} requires; with flash-attn "
            "installed, try actor_rollout_ref.model.override_config._attn_implementation=flash_attention_2"
        )
    if query.shape[0] != 1 or position_ids is None or attention_mask is not None:
        raise ValueError("packed attention takes packed sequences; set actor_rollout_ref.model.use_remove_padding=true")
    query, key, value = (in_kernel_dtype(tensor).transpose(1, 2) for tensor in (query, key, value))
    ranks = ulysses.get_ulysses_sequence_parallel_world_size()
    if ranks > 1:
        query, key, value = (gather_sequence(tensor, ranks) for tensor in (query, key, value))
    if position_ids not in PACKS:  # computing boundaries waits for the GPU
        whole = ulysses.all_gather_tensor(position_ids[0]) if ranks > 1 else position_ids
        PACKS[position_ids] = pack_boundaries(whole)
    kernel = kernel or best_kernel(query.device.type)
    attended = kernel(query[0], key[0], value[0], *PACKS[position_ids], scaling)[None]
    if ranks > 1:
        attended = ulysses.gather_heads_scatter_seq(attended, seq_dim=1, head_dim=2)
    return attended, None


AttentionInterface.register(PACKED, functools.partial(packed_attention, None))
for name, kernel in KERNELS.items():
    AttentionInterface.register(name, functools.partial(packed_attention, kernel))
verl.utils.torch_functional.logprobs_from_logits_v2 = log_probs
verl.utils.torch_functional.entropy_from_logits_with_chunking = entropy
