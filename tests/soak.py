"""A long run of the smallest steps with random faults, and what of it grows: python -m tests.soak [--steps N]

The first half of the run meets with the faults, the second half runs undisturbed, so that growth can be seen. Prints a
table for docs/reliability.md, checks that each step is there once with the data of an undisturbed run, and exits with 1
if not. Nothing of it is part of `make test`: 1,000 steps with 20 faults take 22 minutes on two cores.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict

import psutil

from common.host_memory import by_role, shared_memory
from common.processes import descendants, role
from recipe.monitor.events import read_events, seconds_lost
from recipe.monitor.metrics import read_metrics
from tests.conftest import ROOT
from tests.stubborn import find, start
from tests.test_survival_slow import data_loader, problems, seen

ROLES = (
    "EngineCore",
    "WorkerDict",
    "AgentLoopWorker",
    "RewardLoopWorker",
    "SimpleStorageUnit",
    "TaskRunnerV1",
    "raylet",
)
KINDS = [
    *((name, number) for name in ROLES for number in (signal.SIGKILL, signal.SIGSTOP)),
    ("hang", None),
    ("raise", None),
]
SAMPLE_STEPS = 25
STALL_SECONDS = 30


def sample(run: subprocess.Popen) -> dict[str, dict[str, float]]:
    """Measure the run's processes by role: memory (MB, shared pages by their share), open files and threads."""
    processes = [psutil.Process(run.pid), *descendants(psutil.Process(run.pid))]
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"MB": 0, "files": 0, "threads": 0})
    for name, size in by_role(processes).items():
        found[name]["MB"] = size / 1e6
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found[role(process)]["files"] += process.num_fds()
            found[role(process)]["threads"] += process.num_threads()
    found["/dev/shm"] = {"MB": shared_memory() / 1e6, "files": 0, "threads": 0}
    return dict(found)


def strike(run: subprocess.Popen, flags, kind: tuple) -> None:
    """Do one fault to a run and, where it would last, take its cause away after the restart."""
    name, number = kind
    if number is None:
        (flags / name).touch()
        return
    with contextlib.suppress(psutil.Error, AttributeError):  # it may be between two starts
        find(run, name).send_signal(number)


def disturb(run: subprocess.Popen, folder, flags, until: int, faults: int, chance: random.Random) -> None:
    """Strike at random steps until a step; each fault waits for the restart that the one before has caused."""
    kinds = [chance.choice(KINDS) for _ in range(faults - len(KINDS))] + KINDS
    chance.shuffle(kinds)
    for step, kind in zip(sorted(chance.sample(range(2, until), len(kinds))), kinds, strict=True):
        wait(run, lambda: last_step(folder) >= step)  # noqa: B023
        time.sleep(chance.uniform(0, 1))
        before = restarts(folder)
        print(f"step {last_step(folder)}: {kind[0]} {kind[1].name if kind[1] else ''}", flush=True)
        strike(run, flags, kind)
        wait(run, lambda: restarts(folder) > before)  # noqa: B023
        for flag in ("hang", "raise"):
            (flags / flag).unlink(missing_ok=True)
        started = len(read_events(folder))
        wait(run, lambda: len(read_events(folder)) > started)  # noqa: B023


def wait(run: subprocess.Popen, condition) -> None:
    while not condition():
        if run.poll() is not None:
            sys.exit(f"the run ended with {run.returncode}")
        time.sleep(0.2)


def last_step(folder) -> int:
    return max(read_metrics(folder / "metrics.jsonl"), default=0)


def restarts(folder) -> int:
    return sum(event["event"] == "restart" for event in read_events(folder))


def follow(run: subprocess.Popen, folder, steps: int) -> dict[int, dict]:
    """Sample an undisturbed run to its end; return the samples by step."""
    samples: dict[int, dict] = {}
    while run.poll() is None:
        step = last_step(folder)
        if step >= max(samples, default=0) + SAMPLE_STEPS and step < steps:
            samples[step] = sample(run)
        time.sleep(0.5)
    return samples


def table(samples: dict[int, dict]) -> str:
    """Format what the first and the last sample have, by role."""
    first, last = samples[min(samples)], samples[max(samples)]
    rows = [
        f"| process | memory at step {min(samples)} and {max(samples)}, MB | open files | threads |",
        "| --- | --- | --- | --- |",
    ]
    for name in sorted(last, key=lambda name: -last[name]["MB"]):
        pairs = [(first.get(name, {}).get(key, 0), last[name][key]) for key in ("MB", "files", "threads")]
        rows.append(f"| {name} | " + " | ".join(f"{before:.0f}, {after:.0f}" for before, after in pairs) + " |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--faults", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder, flags, began = ROOT / "outputs" / "soak", ROOT / "outputs" / "soak_flags", time.monotonic()
    for path in (folder, flags):
        shutil.rmtree(path, ignore_errors=True)
    flags.mkdir(parents=True)
    with open(flags / "output", "w") as output:
        sizes = ["trainer.total_epochs=100000", "trainer.max_actor_ckpt_to_keep=2"]
        run = start(folder, None, flags, args.steps, 10 * args.faults, STALL_SECONDS, *sizes, output=output)
        disturb(run, folder, flags, args.steps // 2, args.faults, random.Random(args.seed))
        samples = follow(run, folder, args.steps)
    events, found = read_events(folder), sorted(read_metrics(folder / "metrics.jsonl"))
    (flags / "samples.json").write_text(json.dumps(samples))
    lost = f"{restarts(folder)} restarts, {seconds_lost(events):.0f} s lost"
    print(f"{args.steps} steps in {time.monotonic() - began:.0f} s, {lost}")
    print(table(samples))
    trainer = data_loader()
    same = all(seen(flags, step) == sorted(problems(trainer)) for step in range(1, args.steps + 1))
    print(f"exit status {run.returncode}; each step once: {found == list(range(1, args.steps + 1))}; same data: {same}")
    return int(run.returncode != 0 or not same or found != list(range(1, args.steps + 1)))


if __name__ == "__main__":
    sys.exit(main())
