"""The benchmarks: python -m data_prep.benchmarks --source FOLDER --output data/bench

Reads the folder of the official release (`<TASK>/test.parquet`, with its two layouts of columns) and
writes `<TASK>.parquet` in verl's rows, the same for validation during training and for evaluation.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from data_prep.files import sha256
from data_prep.parquet import row, write_rows
from reward.justrl import BOX, last_boxed

TASKS = ("AIME24", "AIME25", "AMC23", "MATH-500", "Minerva", "Olympiad-Bench", "HMMT25", "BRUMO25", "CMIMC25")


def problem_and_answer(record: dict) -> tuple[str, str]:
    """Return the bare problem and the gold of a released row; AIME24's golds come in a box, which is removed.

    Raises:
        KeyError: the row has neither of the release's two layouts.
    """
    if "problem" in record:
        return record["problem"].strip(), str(record["answer"])
    answer = record["reward_model"]["ground_truth"]
    return record["prompt"][0]["content"], last_boxed(answer) if answer.startswith(BOX) else answer


def prepare(source: Path, output: Path, tasks: list[str]) -> None:
    """Prepare every task.

    Raises:
        ValueError: an unknown task, or a file that is missing or has other columns.
    """
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"unknown task '{task}'; there are {', '.join(TASKS)}")
        path = source / task / "test.parquet"
        try:
            records = pd.read_parquet(path).to_dict("records")
            pairs = [problem_and_answer(record) for record in records]
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file; --source is the release's folder of benchmarks") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
        except KeyError as error:
            raise ValueError(f"{path}: lacks column {error}; it is not a benchmark of the release") from error
        rows = [row(task, problem, answer, i, "test") for i, (problem, answer) in enumerate(pairs)]
        manifest = {"source": f"{task}/test.parquet", "sha256_in": sha256(path), "rows_in": len(records)}
        write_rows(output / f"{task}.parquet", rows, manifest)
        print(f"{output / task}.parquet: {len(rows)} problems")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with <TASK>/test.parquet")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated (default: all nine)")
    args = parser.parse_args()
    try:
        prepare(args.source, args.output, args.tasks.split(","))
    except ValueError as error:
        print(f"data_prep.benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
