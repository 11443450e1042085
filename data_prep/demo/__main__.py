"""The demo's problems and model, made on the spot: python -m data_prep.demo --data data/demo --model models/demo

Writes `train.parquet` and `test.parquet`, sums of two-digit numbers, and a Qwen2 of half a million parameters that
solves a minority of them, so that RL has something to do. The model is kept, and made again when its settings change.
With --hard the sums have three terms, and the model often makes mistakes where it works them out.
"""

import argparse
from pathlib import Path

from common.command import run
from data_prep.demo import model, problems


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m data_prep.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the problems")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--hard", action="store_true", help="make those of the config demo_hard")
    parser.add_argument("--seed", type=int, default=0, help="of the problems, the weights and the order (%(default)s)")
    args = parser.parse_args()
    settings = (model.HARD if args.hard else model.SETTINGS) | {"seed": args.seed}
    problems.write(args.data, seed=args.seed, terms=settings["terms"])
    model.write(args.model, settings)


if __name__ == "__main__":
    run(main)
