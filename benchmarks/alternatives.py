"""Two ways of doing the same, timed in the same run."""

import time
from collections.abc import Callable, Sequence


def per_second(work: Callable[..., object], items: Sequence[tuple], passes: int = 1) -> float:
    """Call `work(*item)` for each item and return the items per second of the fastest pass."""
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        for item in items:
            work(*item)
        seconds.append(time.perf_counter() - started)
    return len(items) / min(seconds)


def compare(what: str, unit: str, ours: float, alternative: str, theirs: float) -> None:
    print(f"{what}: {ours:,.0f} {unit}; {alternative} {theirs:,.0f}; ratio {ours / theirs:.2f}", flush=True)
