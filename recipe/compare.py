"""Train a baseline and arms with the same seeds, one run after the other: python -m recipe.compare demo overlong gspo

Each run has its own folder, outputs/CONFIG_ARM_seedK; trainer.experiment_name=NAME takes the place of CONFIG. A run
that is done is skipped, one that was interrupted continues, and one that fails is reported while the others go on.
`python -m eval.report` compares the runs. Seeds are those of the data's order and of the rollouts; all of a seed go
before the next seed, so that arms can be compared as soon as the first is done. Exit status: 0 all runs are done,
1 some are not, 2 wrong use.

An arm is a name or several, separated by commas. For a Slurm array, --print prints a command for each run:
  python -m recipe.compare justrl_deepseek overlong --print | sed -n "${SLURM_ARRAY_TASK_ID}p"
"""

import argparse
import os
import shlex
import subprocess
import sys
from typing import NamedTuple

from common.command import Failure, positive, run
from common.machine import device
from common.processes import REPOSITORY
from recipe.arms import arm_names
from recipe.check import compare, require_paper
from recipe.compose import config_names
from recipe.preflight import run_folder

# Key to its value for seed 1; an engine's seed is this plus its number, so that no two runs share any.
SEEDS = {"data.seed": 1, "actor_rollout_ref.rollout.seed": 1000}
NAME = "trainer.experiment_name"


class Run(NamedTuple):
    """One training run of a comparison."""

    config: str
    prefix: str  # of its name
    arms: tuple[str, ...]
    seed: int
    overrides: list[str]
    allow: list[str]

    @property
    def name(self) -> str:
        return "_".join([self.prefix, *self.arms, f"seed{self.seed}"])

    @property
    def arguments(self) -> list[str]:
        """The arguments of recipe.train, and of run_justrl.sh."""
        chosen = [f"+arms=[{','.join(self.arms)}]"] if self.arms else []
        seeds = [f"{key}={first * self.seed}" for key, first in SEEDS.items()]
        allowed = [part for key in [*SEEDS, *self.allow] for part in ("--allow", key)]
        return [self.config, *chosen, *seeds, f"{NAME}={self.name}", *self.overrides, *allowed]

    def folder(self) -> str:
        """Check the run's config against the paper, and return its folder; ValueError of one line."""
        overrides = [part for part in self.arguments[1:] if "=" in part]
        config, comparisons = compare(self.config, overrides, device(), [*SEEDS, *self.allow])
        require_paper(comparisons)
        return str(run_folder(config))


def planned_runs(args: argparse.Namespace) -> list[Run]:
    """List the runs of a comparison: for each seed the baseline, then the arms. Checks each arm's config.

    Raises:
        ValueError: an arm is unknown, or a config differs from the paper without leave; one line.
    """
    names = [each for each in args.arms if each.startswith(f"{NAME}=")]
    prefix = names[-1].partition("=")[2] if names else args.config
    overrides = [each for each in args.arms if "=" in each and each not in names]
    if own := [each for each in overrides if each.lstrip("+").split("=")[0] in SEEDS]:
        raise ValueError(f"{own[0]}: each run has its own seed; use --seeds")
    arms = [(), *(tuple(arm.split(",")) for arm in args.arms if "=" not in arm)]
    for arm in arms:
        Run(args.config, prefix, arm, 1, overrides, args.allow).folder()
    planned = []
    for seed in range(1, args.seeds + 1):
        planned += [Run(args.config, prefix, arm, seed, overrides, args.allow) for arm in arms]
    return planned


def train(each: Run) -> int:
    """Train one run, and return its exit status."""
    command = [sys.executable, "-m", "recipe.train", *each.arguments]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # it has the signal as well, and ends its own processes
            process.wait()
            raise


def train_all(planned: list[Run]) -> None:
    """Train runs one after the other, and raise a Failure that names those that are not done."""
    failed = []
    for number, each in enumerate(planned, 1):
        print(f"== run {number} of {len(planned)}: {each.name}", flush=True)
        if train(each):
            failed.append(each.name)
    if failed:
        names = ", ".join(failed)
        raise Failure(f"{len(failed)} of {len(planned)} runs are not done: {names}; see outputs/RUN/train.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=config_names(), metavar="config", help=f"one of {', '.join(config_names())}")
    arms = f"arms ({', '.join(arm_names())}) and overrides"
    parser.add_argument("arms", nargs="*", metavar="arm | key=value", help=arms)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="seeds 1 to N (default: %(default)s)")
    parser.add_argument("--allow", action="append", default=[], metavar="KEY", help="as of recipe.train")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--print", action="store_true", help="print a command for each run, and train nothing")
    shown.add_argument("--folders", action="store_true", help="print the folder of each run, and train nothing")
    args = parser.parse_intermixed_args()
    os.chdir(REPOSITORY)
    planned = planned_runs(args)
    if args.print:
        print("\n".join(shlex.join(["./run_justrl.sh", *each.arguments, "--only", "train"]) for each in planned))
    elif args.folders:
        print("\n".join(each.folder() for each in planned))
    else:
        train_all(planned)


if __name__ == "__main__":
    run(main)
