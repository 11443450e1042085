"""Train a baseline and arms with the same seeds, one run after the other: python -m recipe.compare demo overlong gspo

Each run has its own folder, outputs/CONFIG_ARM_seedK; trainer.experiment_name=NAME takes the place of CONFIG. A run
that is done is skipped, one that was interrupted continues, and one that fails is reported while the others go on.
`python -m eval.report` compares the runs. Seeds are those of the data's order and of the rollouts; all of a seed go
before the next seed, so that arms can be compared as soon as the first is done. Exit status: 0 all runs are done,
1 some are not, 2 wrong use.

An arm is a name, or several joined by commas. --print prints a command for each run, for Slurm to run as jobs:
  python -m recipe.compare justrl_deepseek overlong --print | while read -r run; do eval "sbatch --nodes 4 $run"; done
"""

import argparse
import functools
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass

from omegaconf import DictConfig

from common.command import Failure, name, positive, run
from common.machine import device
from common.processes import REPOSITORY
from recipe import preflight
from recipe.arms import NAME, arm_names, choices, named
from recipe.check import MACHINE, compare, matches, require_paper
from recipe.compose import compose, config_names
from recipe.preflight import run_folder
from recipe.train import changed_keys, shortened

# Key to its value for seed 1; an engine's seed is this plus its number, so that no two seeds share one.
SEEDS = {"data.seed": 1, "actor_rollout_ref.rollout.seed": 1000}


@dataclass(frozen=True)
class Run:
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
    def all_overrides(self) -> list[str]:
        chosen = [f"+arms=[{','.join(self.arms)}]"] if self.arms else []
        seeds = [f"{key}={first * self.seed}" for key, first in SEEDS.items()]
        return [*chosen, *seeds, named(self.name), *self.overrides]

    @property
    def arguments(self) -> list[str]:
        """The arguments of recipe.train, and of run_justrl.sh."""
        allowed = [part for key in [*SEEDS, *self.allow] for part in ("--allow", key)]
        return [self.config, *self.all_overrides, *allowed]

    @functools.cached_property
    def composed(self) -> DictConfig:
        return compose(self.config, self.all_overrides, device())

    def check(self) -> None:
        """Check the run's config, and that overrides leave its arms as they are; ValueError of one line."""
        for arm in self.arms:
            if set_by_arm := set(self.composed.justrl.allow[arm]) & set(map(key, self.overrides)):
                raise ValueError(f"{min(set_by_arm)}: the arm {arm} sets it; leave it out, or change the arm's file")
        config, comparisons = compare(self.config, self.all_overrides, device(), [*SEEDS, *self.allow])
        require_paper(comparisons)
        preflight.check_config(config)

    def check_unchanged(self) -> None:
        """Check that the run's folder has no run with other values; ValueError of one line."""
        folder = run_folder(self.composed)
        if changed := [key for key in changed_keys(folder / "config.yaml", self.composed) if not matches(key, MACHINE)]:
            raise ValueError(
                f"{folder}: holds a run with another {shortened(changed)}; delete it, or give the comparison another "
                f"name by {NAME}=NAME"
            )


def key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def planned_runs(args: argparse.Namespace) -> list[Run]:
    """List the runs of a comparison: for each seed the baseline, then the arms.

    Raises:
        ValueError: no arm, an unknown one or a wrong override, a config that differs from the paper although `--allow`
            does not cover it, or runs that would share a folder; one line.
    """
    overrides = [each for each in args.arms if "=" in each]
    names = [each for each in overrides if each.startswith(f"{NAME}=")]
    overrides = [each for each in overrides if each not in names]
    arms = [tuple(sorted(arm.split(","))) for arm in args.arms if "=" not in arm]
    check_words(arms, overrides)
    prefix = str(compose(args.config, names, device()).trainer.experiment_name)
    planned = []
    for seed in range(1, args.seeds + 1):
        planned += [Run(args.config, prefix, arm, seed, overrides, args.allow) for arm in [(), *arms]]
    for each in planned[: len(arms) + 1]:
        each.check()
    if len({run_folder(each.composed) for each in planned}) < len(planned):
        raise ValueError(f"trainer.default_local_dir: all runs would share {run_folder(planned[0].composed)}")
    return planned


def check_words(arms: list[tuple[str, ...]], overrides: list[str]) -> None:
    """Check that there are arms, each once, and that overrides leave arms, seeds and names alone."""
    if twice := [arm for arm in arms if arms.count(arm) > 1]:
        raise ValueError(f"{','.join(twice[0])}: given twice")
    if chosen := choices(overrides):
        raise ValueError(f"{chosen[0]}: name arms without +arms=, such as gspo or overlong,robust_verifier")
    if not arms:
        raise ValueError(f"name an arm to compare; there are {', '.join(arm_names())}")
    if own := [each for each in overrides if key(each) in (*SEEDS, NAME)]:
        raise ValueError(f"{own[0]}: each run has its own; use --seeds N, and {NAME}=NAME for all runs")


def train(each: Run) -> int:
    """Train one run, and return its exit status."""
    command = [sys.executable, "-m", "recipe.train", *each.arguments]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()  # a Ctrl-C reaches it as well; it ends its own processes
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
        raise Failure(f"{len(failed)} of {len(planned)} runs did not finish: {names}; see outputs/RUN/train.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=config_names(), metavar="config", help=f"one of {', '.join(config_names())}")
    arms = f"arms ({', '.join(arm_names())}) and overrides"
    parser.add_argument("arms", type=name, nargs="*", metavar="arm | key=value", help=arms)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="seeds 1 to N (default: %(default)s)")
    parser.add_argument("--allow", type=name, action="append", default=[], metavar="KEY", help="as in recipe.train")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--print", action="store_true", help="print a command for each run, and train nothing")
    shown.add_argument("--folders", action="store_true", help="print the folder of each run, and train nothing")
    args = parser.parse_intermixed_args()
    os.chdir(REPOSITORY)
    planned = planned_runs(args)
    if args.print:
        print("\n".join(shlex.join(["./run_justrl.sh", *each.arguments, "--only", "train"]) for each in planned))
    elif args.folders:
        print("\n".join(str(run_folder(each.composed)) for each in planned))
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for each in planned:
            each.check_unchanged()
        train_all(planned)


if __name__ == "__main__":
    run(main)
