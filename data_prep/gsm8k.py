"""GSM8K as a training set and a benchmark: python -m data_prep.gsm8k --output data/gsm8k

Writes `train.parquet` and the test set, `GSM8K.parquet`, in verl's rows, each beside a manifest. The reference answer
is the number behind "####", without thousands separators. The source is the hub's data set at a pinned commit, or a
folder with a JSONL or parquet file for each split. Problems of the test set are looked for in the training set, and
with --training in other prepared training sets.

example: python -m data_prep.gsm8k --source gsm8k --training data/dapo/train.parquet --output data/gsm8k
"""

import argparse
import re
from collections import Counter
from pathlib import Path

from common import command
from data_prep import contamination
from data_prep.dapo import Pair, content_id, ground_truth_fault, select
from data_prep.rows import check_output, read_problem_rows, row, write_rows
from data_prep.source import Source, locate, records

HUB_ID = "openai/gsm8k"
REVISION = "740312add88f781978c0658806c59bc2815b9866"
HUB_FILES = "main/*.parquet"
SOCRATIC = "socratic"  # in the paths of copies with the same problems and other solutions
DATA_SOURCE = "gsm8k"
TASK = "GSM8K"
FILES = {"train": "train", "test": TASK}
SEPARATED = re.compile(r"-?[0-9]{1,3}(,[0-9]{3})+")
INTEGER = re.compile(r"0|-?[1-9][0-9]*")  # as a model writes it


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


def read_split(path: Path) -> tuple[list[tuple[str, str]], dict]:
    """Return the problems and answers of a split, each problem once as in `data_prep.dapo`, and what was dropped."""
    pairs = Counter[tuple[str, str]]()
    for number, record in enumerate(records(path)):
        try:
            pairs[problem_and_answer(record)] += 1
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}; is it GSM8K?") from error
    kept, dropped, conflicts = select([Pair(*pair, rows) for pair, rows in pairs.items()])
    if not kept:
        raise ValueError(f"{path}: no row is left; dropped: {dict(+dropped.counts)}")
    found, chosen = {"rows_in": pairs.total(), "dropped": dropped.as_manifest(), "conflicts": conflicts}, set(kept)
    return [pair for pair in pairs if pair in chosen], found


def prepare(source: Source, output: Path, others: list[Path]) -> None:
    """Write both splits; `others` are prepared training sets in which the test set is looked for as well."""
    for name in FILES.values():
        check_output(output / f"{name}.parquet", "data_prep.gsm8k", source.paths)
    paths = {split: split_file(source, split) for split in FILES}
    pairs, parts = {}, {}
    for split, path in paths.items():
        pairs[split], parts[split] = read_split(path)
    test = {content_id(*pair): pair[0] for pair in pairs["test"]}
    sets = {"train": [problem for problem, _ in pairs["train"]]}
    for path in others:
        name = path.resolve().parent.name
        if name in sets:
            raise ValueError(f"--training {path}: another set is called {name} already; rename one's folder")
        sets[name] = [made["extra_info"]["problem"] for made in read_problem_rows(path)]
    found = {name: contamination.report(known, contamination.find_matches(known, test)) for name, known in sets.items()}
    origin = {"source": source.name, "revision": source.revision}
    parts["train"]["contamination"], parts["test"]["found_in"] = {TASK: found["train"]}, found
    for split, name in FILES.items():
        rows = [row(DATA_SOURCE, *pair, content_id(*pair), split) for pair in pairs[split]]
        digests = source._replace(paths=[paths[split]]).digests()
        write_rows(output / f"{name}.parquet", rows, origin | {"sha256_in": digests} | parts[split])
        print(f"{output / name}.parquet: {len(rows):,} problems of {parts[split]['rows_in']:,} rows")
    for name, report in found.items():
        print(f"  of the test set in {name}: {report['exact']} exact and {report['near']} near copies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.register("type", None, command.name)
    parser.add_argument("--source", default=HUB_ID, help="hub id or folder (default %(default)s)")
    parser.add_argument("--revision", help="commit of the hub data set (default: pinned for the default source)")
    parser.add_argument("--files", help=f"which files of the source (default: {HUB_FILES} of the hub's, else all)")
    parser.add_argument("--output", type=command.path, required=True, help="folder to write to")
    parser.add_argument("--training", type=command.path, nargs="+", default=[], help="other prepared training sets")
    args = parser.parse_args()
    default = (REVISION, HUB_FILES) if args.source == HUB_ID else (None, "*")
    prepare(locate(args.source, args.revision, args.files, *default), args.output, args.training)


if __name__ == "__main__":
    command.run(main)
