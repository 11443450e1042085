"""What this machine's GPU does with the recipe, measured: python -m benchmarks.gpu [SECTION ...]

Each section writes its figures to `outputs/gpu/<section>.json`, and the table of all of them, with hardware, versions
and date, to `outputs/gpu/gpu.md`. A section that is done is skipped, one that takes too long is ended. Nothing is
downloaded: the models are the demo's and one of the backbone's shape with random weights. Without a GPU the sections
run small, on the CPU.

  kernels     attention and log-probabilities against fp32                                                 1 min
  demo        the demo, 8 steps                                                                            6 min
  long        a step at the 1.5B shape, all responses of the longest length: seconds by part, memory       7 min
  two         two demos on one GPU, one is killed and continues                                            5 min
  evaluation  eval.generate on the demo's model and at the 1.5B shape                                      4 min
  attention   the same step of 2,048-token responses with each attention that the machine has              8 min

example: python -m benchmarks.gpu kernels long
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu_sections import SECTIONS, Bench
from common import command, machine
from common.command import positive, run
from common.files import write_text
from recipe.software import software

LIMIT_SECONDS = 1200  # for each section
MEASURED_ON = "GPU: {GPUs}; driver {driver}; {processor}; {versions}; commit {commit}; {date}."


def hardware() -> dict:
    """Describe what the figures are measured on: GPUs, driver, processor, package versions, date."""
    found, installed = machine.look(), software()
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "GPUs": [f"{gpu.name}, {gpu.total / machine.GIB:.0f} GiB" for gpu in found.gpus] or "none",
        "driver": found.driver or "none",
        "processor": f"{os.cpu_count()} cores of {model[0].partition(':')[2].strip() if model else platform.machine()}",
        "versions": installed["versions"] | {"Python": platform.python_version()},
        "commit": installed["commit"],
        "date": datetime.date.today().isoformat(),
    }


def measure(name: str, section: Callable[[Bench], dict], bench: Bench) -> bool:
    """Run a section, unless it is done, and keep its figures; return whether they are there."""
    path = bench.folder / f"{name}.json"
    if path.is_file():
        print(f"{name}: done before, see {path}", flush=True)
        return True
    print(f"{name}: at most {bench.seconds} s, output in {bench.folder}/{name}.log", flush=True)
    started = time.monotonic()
    bench.begin(name)
    try:
        figures = section(bench)
    except Exception as error:  # whatever goes wrong in one section, the others can still be measured
        why = f"{type(error).__name__}: {error}"
        print(f"{name}: FAILED after {time.monotonic() - started:.0f} s: {why}", file=sys.stderr, flush=True)
        return False
    found = {"gpu": bench.gpu_type, "figures": figures, "hardware": hardware()}
    if reached := figures.pop("utilization", None):
        found["utilization"] = reached
    write_text(path, json.dumps(found, indent=1) + "\n")
    print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)
    return True


def table(folder: Path) -> str:
    """Format the figures of every section that is done, as Markdown, below what they were measured on."""
    parts, before = ["# Measured by python -m benchmarks.gpu"], None
    for path in (folder / f"{name}.json" for name in SECTIONS):
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        if (place := measured_on(found["hardware"])) != before:
            parts.append(place)
            before = place
        rows = [f"| {what} | {show(value)} |" for what, value in found["figures"].items()]
        parts.append("\n".join([f"| {path.stem} | measured |", "| --- | ---: |", *rows]))
    return "\n\n".join(parts) + "\n"


def measured_on(hardware: dict) -> str:
    gpus = hardware["GPUs"] if isinstance(hardware["GPUs"], str) else " + ".join(hardware["GPUs"])
    versions = ", ".join(f"{package} {number}" for package, number in hardware["versions"].items())
    return MEASURED_ON.format(**hardware | {"GPUs": gpus, "versions": versions})


def show(value) -> str:
    """Format a figure with as many digits as it deserves."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"default: {' '.join(SECTIONS)}")
    parser.add_argument("--output", type=command.path, default=Path("outputs/gpu"), help="folder (default %(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=LIMIT_SECONDS, help="time limit per section (default %(default)s)"
    )
    args = parser.parse_args()
    for name in args.sections:
        if name not in SECTIONS:
            raise ValueError(f"unknown section '{name}'; there are {', '.join(SECTIONS)}")
    bench = Bench(args.output, args.seconds)
    done = [measure(name, SECTIONS[name], bench) for name in args.sections or SECTIONS]
    write_text(args.output / "gpu.md", table(args.output))
    print(f"{args.output}/gpu.md")
    return int(not all(done))


if __name__ == "__main__":
    run(main)
