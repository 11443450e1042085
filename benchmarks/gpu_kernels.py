"""Whether this machine's kernels compute what they should, against plain fp32: python -m benchmarks.gpu_kernels

Attention over packed sequences, forward and backward, by each kernel that the machine has, and log-probabilities in
blocks beside verl's row-by-row fallback. Prints JSON: relative errors, seconds, GiB. Exit status 1 if one is wrong.
"""

import json
import sys
import time

import torch
from verl.utils import torch_functional

fallback_log_probs = torch_functional.logprobs_from_logits_v2  # before the next import replaces it

from common.machine import device  # noqa: E402
from recipe import attention as names  # noqa: E402
from recipe.verl_plugins.attention import KERNELS, reference_kernel  # noqa: E402
from recipe.verl_plugins.log_probs import log_probs  # noqa: E402

LENGTHS = [700, 1, 333, 2048, 5]
HEADS, KEY_HEADS, WIDTHS = 12, 2, (32, 128)  # of the backbones, and the demo's narrow heads
LIMIT = 2e-2  # relative error of bf16 attention: its inputs have 8 bits
ROWS, VOCABULARY = {"cpu": 256, "cuda": 4096}, 151936


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of what is wanted."""
    return ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()


def with_gradients(kernel, tensors: list[torch.Tensor], boundaries: torch.Tensor) -> list[torch.Tensor]:
    """Return a kernel's output and the gradients of a fixed weighting of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = kernel(*leaves, boundaries, max(LENGTHS), leaves[0].shape[-1] ** -0.5)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).sin()
    (out.float() * weights).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def attention_errors(kernel: str, where: str) -> dict[str, float]:
    """Return the largest relative error of a kernel's output and gradients, for each width of a head."""
    dtype = torch.float32 if where == "cpu" else torch.bfloat16
    boundaries = torch.tensor([0, *LENGTHS], device=where).cumsum(0).to(torch.int32)
    errors = {}
    for width in WIDTHS:
        torch.manual_seed(0)
        tensors = [torch.randn(sum(LENGTHS), h, width, device=where).to(dtype) for h in (HEADS, KEY_HEADS, KEY_HEADS)]
        got = with_gradients(KERNELS[kernel], tensors, boundaries)
        wanted = with_gradients(reference_kernel, [tensor.float() for tensor in tensors], boundaries)
        pairs = zip(got, wanted, strict=True)
        errors[f"{kernel}, heads of {width}, relative error"] = max(relative_error(*pair) for pair in pairs)
    return errors


def log_prob_figures(function, name: str, where: str) -> tuple[dict[str, float], torch.Tensor]:
    """Return seconds and GiB of a forward and backward pass, and the log-probabilities."""
    torch.manual_seed(0)
    logits = torch.randn(ROWS[where], VOCABULARY, device=where, dtype=torch.bfloat16).requires_grad_()
    labels = torch.randint(VOCABULARY, (ROWS[where],), device=where)
    function(logits[:8], labels[:8]).sum().backward()  # the first call of anything is slow
    logits.grad, cuda = None, where == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    before, started = torch.cuda.memory_allocated() if cuda else 0, time.perf_counter()
    with torch.autocast(where, torch.bfloat16):
        found = function(logits, labels)
    found.sum().backward()
    if cuda:
        torch.cuda.synchronize()
    figures = {f"{name}, seconds": time.perf_counter() - started}
    if cuda:
        figures[f"{name}, GiB more"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    return figures, found.detach()


def main() -> int:
    where = device()
    kernels = [names.REFERENCE] if where == "cpu" else [names.TORCH]
    if where == "cuda" and not names.flash_attn_problem():
        kernels.append(names.FLASH_ATTN)
    errors = {name: error for kernel in kernels for name, error in attention_errors(kernel, where).items()}
    figures, found = log_prob_figures(log_probs, "log-probs in blocks", where)
    theirs, _ = log_prob_figures(fallback_log_probs, "log-probs, verl's fallback", where)
    torch.manual_seed(0)
    logits = torch.randn(ROWS[where], VOCABULARY, device=where, dtype=torch.bfloat16)
    labels = torch.randint(VOCABULARY, (ROWS[where],), device=where)
    rows = zip(logits, labels, strict=True)
    exact = torch.stack([row.double().log_softmax(-1)[label] for row, label in rows])
    errors["log-probs in blocks, relative error"] = relative_error(found, exact)
    ratio = theirs["log-probs, verl's fallback, seconds"] / figures["log-probs in blocks, seconds"]
    print(json.dumps(errors | figures | theirs | {"log-probs, verl's fallback over blocks": ratio}))
    wrong = [name for name, error in errors.items() if not error < LIMIT]
    if wrong:
        print(f"benchmarks.gpu_kernels: wrong: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
