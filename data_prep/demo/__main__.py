"""The demo's problems and model, made on the spot: python -m data_prep.demo --data data/demo --model models/demo

Writes `train.parquet` and `test.parquet`, sums of two-digit numbers, and a Qwen2 of half a million parameters that
solves a minority of them, so that RL has something to do. The model is kept, and made again when its settings change.
With --hard the model makes a mistake in half of the sums that it works out. With --init a pretrained model gets the
demo's supervised start instead.
"""

import argparse
from pathlib import Path

from common import command
from data_prep.demo import model, problems
from data_prep.rows import check_output


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m data_prep.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.register("type", None, command.name)
    parser.add_argument("--data", type=command.path, required=True, help="folder of the problems")
    parser.add_argument("--model", type=command.path, required=True, help="folder of the model")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--hard", action="store_true", help="make the model of the config demo_hard")
    kind.add_argument("--init", metavar="MODEL", help="an instruct model to begin with, folder or hub id")
    parser.add_argument("--seed", type=int, default=0, help="of the problems, the weights and the order (%(default)s)")
    args = parser.parse_args()
    init = args.init and str(Path(args.init).expanduser())
    settings = (model.HARD if args.hard else model.PRETRAINED if init else model.SETTINGS) | {"seed": args.seed}
    for name in ("train", "test"):
        check_output(args.data / f"{name}.parquet", "data_prep.demo")
    model.write(args.model, settings, init, args.data)
    problems.write(args.data, seed=args.seed)


if __name__ == "__main__":
    command.run(main)
