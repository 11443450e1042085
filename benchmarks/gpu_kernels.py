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

from benchmarks.gpu_sections import packed_kernels  # noqa: E402
from common.machine import GIB, device  # noqa: E402
from recipe.verl_plugins.attention import KERNELS, reference_kernel  # noqa: E402
from recipe.verl_plugins.log_probs import log_probs  # noqa: E402

LENGTHS = [700, 1, 333, 2048, 5]
HEADS, KEY_HEADS, WIDTHS = 12, 2, (32, 128)  # of the backbones, and the demo's narrow heads
TIMED = {"cpu": 256, "cuda": 16384}  # tokens of the one sequence that is timed
LIMIT = 2e-2  # relative error of bf16 attention: its inputs have 8 bits
ROWS, VOCABULARY = {"cpu": 256, "cuda": 4096}, 151936
BLOCKS, FALLBACK = "log-probs in blocks", "log-probs, verl's fallback"


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()


def with_gradients(kernel, tensors: list[torch.Tensor], boundaries: torch.Tensor) -> list[torch.Tensor]:
    """Run a kernel; return its output and the gradients of a fixed weighting of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = kernel(*leaves, boundaries, max(LENGTHS), leaves[0].shape[-1] ** -0.5)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).sin()
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), leaves)]


def attention_errors(kernel: str, where: str) -> dict[str, float]:
    """Measure the largest relative error of a kernel's output and gradients, for each width of a head."""
    dtype = torch.float32 if where == "cpu" else torch.bfloat16
    boundaries = torch.tensor([0, *LENGTHS], device=where).cumsum(0).to(torch.int32)
    errors = {}
    for width in WIDTHS:
        torch.manual_seed(0)
        tensors = [torch.randn(sum(LENGTHS), h, width, device=where).to(dtype) for h in (HEADS, KEY_HEADS, KEY_HEADS)]
        got = with_gradients(KERNELS[kernel], tensors, boundaries)
        wanted = with_gradients(reference_kernel, [tensor.float() for tensor in tensors], boundaries)
        errors[f"{kernel}, heads of {width}, relative error"] = max(map(relative_error, got, wanted))
    return errors


def attention_seconds(kernel: str, where: str) -> dict[str, float]:
    """Measure one layer's forward and backward pass over one sequence of the paper's length, best of 5."""
    dtype = torch.float32 if where == "cpu" else torch.bfloat16
    length, width = TIMED[where], WIDTHS[-1]
    query, key, value = (
        torch.randn(length, heads, width, device=where).to(dtype).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    boundaries = torch.tensor([0, length], device=where).to(torch.int32)
    seconds = []
    for _ in range(5):
        memory(where)
        started = time.perf_counter()
        KERNELS[kernel](query, key, value, boundaries, length, width**-0.5).sum().backward()
        memory(where)
        seconds.append(time.perf_counter() - started)
    return {f"{kernel}, {length:,} tokens, seconds": min(seconds)}


def logits_and_labels(where: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(ROWS[where], VOCABULARY, device=where, dtype=torch.bfloat16)
    return logits, torch.randint(VOCABULARY, (ROWS[where],), device=where)


def memory(where: str) -> int:
    """Wait for the GPU and start measuring its peak anew; return the bytes in use."""
    if where == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def log_prob_figures(function, name: str, where: str) -> tuple[dict[str, float], torch.Tensor]:
    """Measure seconds and GiB of a forward and backward pass; return them and the log-probabilities."""
    logits, labels = logits_and_labels(where)
    logits.requires_grad_()
    function(logits[:8], labels[:8]).sum().backward()  # the first call of anything is slow
    logits.grad = None
    before, started = memory(where), time.perf_counter()
    with torch.autocast(where, torch.bfloat16):
        found = function(logits, labels)
    found.sum().backward()
    if where == "cpu":
        return {f"{name}, seconds": time.perf_counter() - started}, found.detach()
    torch.cuda.synchronize()
    seconds, more = time.perf_counter() - started, torch.cuda.max_memory_allocated() - before
    return {f"{name}, seconds": seconds, f"{name}, GiB more": more / GIB}, found.detach()


def main() -> int:
    where = device()
    errors: dict[str, float] = {}
    for kernel in packed_kernels(where):
        errors |= attention_errors(kernel, where)
    timed: dict[str, float] = {}
    for kernel in packed_kernels(where):
        timed |= attention_seconds(kernel, where)
    ours, found = log_prob_figures(log_probs, BLOCKS, where)
    theirs, _ = log_prob_figures(fallback_log_probs, FALLBACK, where)
    rows = zip(*logits_and_labels(where), strict=True)
    exact = torch.stack([row.double().log_softmax(-1)[label] for row, label in rows])
    errors[f"{BLOCKS}, relative error"] = relative_error(found, exact)
    ratio = theirs[f"{FALLBACK}, seconds"] / ours[f"{BLOCKS}, seconds"]
    print(json.dumps(errors | timed | ours | theirs | {f"{FALLBACK} over blocks": ratio}), flush=True)
    wrong = [name for name, error in errors.items() if not error < LIMIT]
    if wrong:
        print(f"benchmarks.gpu_kernels: wrong: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
