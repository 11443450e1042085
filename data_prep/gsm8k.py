"""GSM8K as a training set and a benchmark: python -m data_prep.gsm8k --output data/gsm8k

Writes `train.parquet` and the test set, `GSM8K.parquet`, in verl's rows, each beside a manifest. The reference answer
is the number behind "####", without thousands separators. The source is the hub's data set at a pinned commit, or a
folder with a JSONL or parquet file for each split. Problems of the test set are looked for in the training set, and
with --training in other prepared training sets.

example: python -m data_prep.gsm8k --source gsm8k --training data/dapo/train.parquet --output data/gsm8k
"""

import argparse
import re
from pathlib import Path

from common.command import run
from data_prep import contamination
from data_prep.dapo import content_id, ground_truth_fault
from data_prep.rows import read_problem_rows, row, write_rows
from data_prep.source import Source, locate, records

HUB_ID = "openai/gsm8k"
REVISION = "740312add88f781978c0658806c59bc2815b9866"
HUB_FILES = "main/*.parquet"
SOCRATIC = "socratic"  # in the paths of copies with the same problems and other solutions
DATA_SOURCE = "gsm8k"
TASK = "GSM8K"
FILES = {"train": "train", "test": TASK}
SEPARATED = re.compile(r"-?\d{1,3}(,\d{3})+")
INTEGER = re.compile(r"-?\d+")


def split_file(source: Source, split: str) -> Path:
    """Return the source's file of a split: the one whose name begins with it, the socratic ones aside."""
    found = [path for path in source.paths if path.name.startswith(split)]
    found = [path for path in found if SOCRATIC not in path.name and path.parent.name != SOCRATIC]
    if len(found) != 1:
        listed = ", ".join(str(path) for path in found or source.paths)
        raise ValueError(f"{source.name}: {len(found)} files begin with '{split}', not one: {listed}; see --files")
    return found[0]


def problem_and_answer(record: dict) -> tuple[str, str]:
    """Return the problem and its final number; ValueError for a row without them."""
    problem, solution = record.get("question"), record.get("answer")
    if not (isinstance(problem, str) and isinstance(solution, str) and problem.strip()):
        raise ValueError("'question' and 'answer' are to be text")
    answer = solution.rpartition("####")[2].strip() if "####" in solution else ""
    if SEPARATED.fullmatch(answer):
        answer = answer.replace(",", "")
    if not INTEGER.fullmatch(answer) or ground_truth_fault(answer):
        raise ValueError(f"the answer does not end in #### and an integer: {solution[-40:]!r}")
    return problem.strip(), answer


def read_split(path: Path) -> list[tuple[str, str]]:
    """Return the problems and answers of a split; ValueError with the row of one that is none."""
    pairs = []
    for number, record in enumerate(records(path)):
        try:
            pairs.append(problem_and_answer(record))
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}; is it GSM8K?") from error
    if not pairs:
        raise ValueError(f"{path}: has no rows")
    return pairs


def training_problems(path: Path) -> list[str]:
    return [made["extra_info"]["problem"] for made in read_problem_rows(path)]


def prepare(source: Source, output: Path, others: list[Path]) -> None:
    """Write both splits; `others` are prepared training sets in which the test set is looked for as well."""
    paths = {split: split_file(source, split) for split in FILES}
    pairs = {split: read_split(path) for split, path in paths.items()}
    test = {content_id(*pair): pair[0] for pair in pairs["test"]}
    sets = {"train": [problem for problem, _ in pairs["train"]]}
    for path in others:
        name = path.resolve().parent.name
        if name in sets:
            raise ValueError(f"--training {path}: another set is called {name} already; rename one's folder")
        sets[name] = training_problems(path)
    found = {name: contamination.report(known, contamination.find_matches(known, test)) for name, known in sets.items()}
    origin = {"source": source.name, "revision": source.revision}
    parts = {"train": {"contamination": {TASK: found["train"]}}, "test": {"found_in": found}}
    for split, name in FILES.items():
        rows = [row(DATA_SOURCE, *pair, content_id(*pair), split) for pair in pairs[split]]
        digests = source._replace(paths=[paths[split]]).digests()
        write_rows(
            output / f"{name}.parquet", rows, origin | {"sha256_in": digests, "rows_in": len(rows)} | parts[split]
        )
        print(f"{output / name}.parquet: {len(rows):,} problems")
    for name, report in found.items():
        print(f"  of the test set in {name}: {report['exact']} exact and {report['near']} near copies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=HUB_ID, help="hub id or folder (default %(default)s)")
    parser.add_argument("--revision", help="commit of the hub data set (default: pinned for the default source)")
    parser.add_argument("--files", help=f"which files of the source (default: {HUB_FILES} of the hub's, else all)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--training", type=Path, nargs="+", default=[], help="other prepared training sets")
    args = parser.parse_args()
    from_hub = args.source == HUB_ID
    revision = args.revision or (REVISION if from_hub else None)
    prepare(locate(args.source, revision, args.files or (HUB_FILES if from_hub else "*")), args.output, args.training)


if __name__ == "__main__":
    run(main)
