"""Log-probabilities of tokens from logits, and entropies, in blocks of rows, summed in fp32.

Replaces `verl.utils.torch_functional.logprobs_from_logits_v2`, which verl uses where flash-attn's cross entropy is not
installed: it loops over the rows in Python and keeps each in fp32, 20 GB for 32,768 tokens. And where a loss contains
the entropy, `entropy_from_logits_with_chunking`, which then keeps all its chunks, twice.
"""

from collections.abc import Iterator

import torch
from verl.utils.torch_functional import entropy_from_logits_with_chunking

# Elements of a block by device: on a GPU 256 MiB in fp32, enough work for each kernel; on a CPU what its caches hold.
BLOCK = {"cuda": 2**26, "cpu": 2**21}


def blocks(logits: torch.Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK.get(logits.device.type, BLOCK["cuda"]) // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)


class BlockedLogProbs(torch.autograd.Function):
    """log softmax of each row at its label; of the logits' size it keeps only the logits and their gradient."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = torch.empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        chosen = torch.empty_like(total)
        for rows in blocks(logits):
            block = logits[rows].to(total.dtype)
            total[rows] = block.logsumexp(dim=-1)
            chosen[rows] = block.gather(-1, labels[rows, None])[:, 0]
        ctx.save_for_backward(logits, labels, total)
        return chosen - total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels, total = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in blocks(logits):
            block = (logits[rows].to(total.dtype) - total[rows, None]).exp_().neg_()
            block.scatter_add_(-1, labels[rows, None], block.new_ones(len(block), 1))
            result[rows] = block.mul_(gradient[rows, None])
        return result, None


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the log-probability of each label.

    Args:
        logits: (..., vocabulary), of any floating type.
        labels: (...), of int64.

    Returns:
        (...), in fp32; in float64 for float64 logits.
    """
    flat = BlockedLogProbs.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return flat.view(labels.shape)


class BlockedEntropy(torch.autograd.Function):
    """Entropy of each row's softmax; of the logits' size it keeps only the logits and their gradient."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor) -> torch.Tensor:
        total = torch.empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        entropies = torch.empty_like(total)
        for rows in blocks(logits):
            block = logits[rows].to(total.dtype)
            total[rows] = block.logsumexp(dim=-1)
            block = block - total[rows, None]  # a copy: of fp32 logits the block is a view
            entropies[rows] = -block.mul_(block.exp()).sum(dim=-1)
        ctx.save_for_backward(logits, total, entropies)
        return entropies

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        logits, total, entropies = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in blocks(logits):
            block = logits[rows].to(total.dtype) - total[rows, None]  # log p, and the slope is -p (log p + entropy)
            result[rows] = block.exp().mul_(block.add_(entropies[rows, None])).mul_(-gradient[rows, None])
        return result


def entropy(logits: torch.Tensor, chunk_size: int = 2048) -> torch.Tensor:
    """Compute the entropy of each row of (tokens, vocabulary); verl's own where it is only a metric."""
    if logits.requires_grad:
        return BlockedEntropy.apply(logits)
    return entropy_from_logits_with_chunking(logits, chunk_size)
