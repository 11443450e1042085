"""The paper's nine benchmarks, those of 2026 and your own: python -m data_prep.benchmarks --output data/bench

Writes `<TASK>.parquet` in verl's rows, the same for validation during training and for evaluation, beside a manifest.
The source is the hub (the data sets of benchmarks.json, at pinned commits), or the folder of the official release or
any of its layout (`<TASK>/test.parquet`). A reference answer is kept as released in `extra_info.released`;
`reward_model.ground_truth` is what a strict match compares with, and `extra_info.answer` is what it means
(`data_prep/reference_answers.py`). The manifest lists every answer that is not as released, with the reason.

--add makes a benchmark of your own, from a parquet file or JSON lines of problems and answers (text or integers).
Everything in the output folder is evaluated, and looked for in the training set.

examples:
  python -m data_prep.benchmarks --source benchmarks --output data/bench --tasks AIME24,AIME25
  python -m data_prep.benchmarks --suite 2026 --output data/bench
  python -m data_prep.benchmarks --add mine --source mine.jsonl --problem question --output data/bench
  python -m data_prep.benchmarks --add MATH-5 --source HuggingFaceH4/MATH-500 --where level=5 --output data/bench
"""

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from common import command
from data_prep.normalise import canonical
from data_prep.reference_answers import ARROW_TYPE, Correction, corrected, corrections, without_delimiters
from data_prep.rows import EXTRA_INFO, SCHEMA, check_output, read_problem_rows, row, write_rows
from data_prep.source import Source, from_hub, locate, records

PROGRAM = "data_prep.benchmarks"
HUB = "hub"
PAPER, OWN, ALL = "paper", "your own", "all"  # suites


class Benchmark(NamedTuple):
    """Where a benchmark comes from, how large it is, and how often each problem is sampled.

    `digest` is of the released problems in their order: the hub's must be the same for ids to mean the same. It is
    empty where there is no release to compare with.
    """

    hub_id: str
    revision: str
    file: str  # of the split
    problem: str  # column
    answer: str  # column
    problems: int
    samples: int
    suite: str
    digest: str = ""


TABLE = Path(__file__).with_suffix(".json")
BENCHMARKS = {task: Benchmark(**entry) for task, entry in json.loads(TABLE.read_text(encoding="utf-8")).items()}
PAPER_BENCHMARKS = {task: benchmark for task, benchmark in BENCHMARKS.items() if benchmark.suite == PAPER}
SUITES = (*dict.fromkeys(benchmark.suite for benchmark in BENCHMARKS.values()), ALL)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of one of your own: a file's, and no comma for --tasks
FOR_ADD = ("problem", "answer", "where", "revision", "files")  # options
BENCHMARK_EXTRA = {"released": pa.string(), "answer": ARROW_TYPE, "correction": pa.string()}
BENCHMARK_SCHEMA = SCHEMA.set(
    SCHEMA.get_field_index("extra_info"), pa.field("extra_info", pa.struct([*EXTRA_INFO, *BENCHMARK_EXTRA.items()]))
)


def suite_of(task: str) -> str:
    return BENCHMARKS[task].suite if task in BENCHMARKS else OWN


def in_order(tasks: Iterable[str]) -> list[str]:
    """Sort tasks as the table has them; the others follow in their own order."""
    places = {task: place for place, task in enumerate(BENCHMARKS)}
    return sorted(tasks, key=lambda task: places.get(task, len(places)))


def problem_and_answer(record: dict, problem_column: str, answer_column: str) -> tuple[str, str]:
    """Return the bare problem and the released answer, from a row of the hub, of either released layout or of ours.

    Raises:
        ValueError: a problem or an answer is empty or not text; an answer may be an integer, or a list of one.
        KeyError: a column is missing.
        TypeError, AttributeError: a column has another type.
    """
    if "reward_model" in record and problem_column not in record:
        answer = record["reward_model"]["ground_truth"]
        turns = [turn for turn in record["prompt"] if turn["role"] != "system"]
        if [turn["role"] for turn in turns] != ["user"]:
            raise ValueError("a prompt has not exactly one user message")
        problem = (record.get("extra_info") or {}).get("problem") or turns[0]["content"]  # ours: without instruction
    else:
        answer, problem = record[answer_column], record[problem_column].strip()
    if isinstance(answer, list) and len(answer) == 1:
        (answer,) = answer  # OlympiadBench has lists of one; more would be another benchmark
    answer = str(answer) if type(answer) is int else answer
    if not (isinstance(problem, str) and isinstance(answer, str)):
        raise ValueError(
            f"problem and answer are to be text, or the answer an integer: {problem!r:.40}, {answer!r:.40}"
        )
    if not without_delimiters(answer) or not problem.strip():
        raise ValueError(f"has no problem or no answer: {answer!r:.80}")
    return problem, answer


def find(source: str, task: str) -> Source:
    """Return the file of a task on the hub or in a folder; ValueError if there is none."""
    benchmark = BENCHMARKS[task]
    if source == HUB:
        return from_hub(benchmark.hub_id, benchmark.revision, benchmark.file)
    path = Path(source) / task / "test.parquet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --source is '{HUB}' or the release's folder of benchmarks")
    return Source(f"{task}/test.parquet", None, [path])


def as_pairs(path: Path, listed: list[dict], columns: tuple[str, str], fix: str) -> list[tuple[str, str]]:
    """Return the problems and released answers of a raw file's rows; ValueError with the first row that has none."""
    pairs = []
    for number, record in enumerate(listed):
        try:
            pairs.append(problem_and_answer(record, *columns))
        except KeyError as error:
            raise ValueError(f"{path}: row {number} lacks column {error}, it has {', '.join(record)}; {fix}") from error
        except (TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path}: row {number}: a column has another type than text: {error}; {fix}") from error
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}; {fix}") from error
    return pairs


def read_pairs(path: Path, task: str) -> list[tuple[str, str]]:
    """Return the problems and released answers of a raw file; ValueError if it is not the benchmark's."""
    benchmark = BENCHMARKS[task]
    columns = benchmark.problem, benchmark.answer
    pairs = as_pairs(path, records(path), columns, f"is it {task} as released or on the hub?")
    if len(pairs) != benchmark.problems:
        raise ValueError(f"{path}: has {len(pairs)} problems, and {task} has {benchmark.problems}; is it whole?")
    return pairs


def digest(problems: list[str]) -> str:
    return hashlib.sha256("\n".join("".join(text.split()) for text in problems).encode()).hexdigest()[:16]


def benchmark_row(task: str, index: int, problem: str, released: str, correction: Correction | None) -> dict:
    """Return the row of one problem; raises a ValueError for a correction that was written for another answer."""
    answer, parsed = corrected(released, task, correction)
    made = row(task, problem, answer, f"{task}-{index}", "test")
    reason = correction.reason if correction else ""
    made["extra_info"] |= {"released": released, "answer": asdict(parsed), "correction": reason}
    return made


def changes(rows: list[dict]) -> list[dict]:
    """Return every answer that is not as released: by a correction, or by removing its box or delimiters."""
    listed = []
    for made in rows:
        extra, answer = made["extra_info"], made["reward_model"]["ground_truth"]
        if extra["correction"] or answer != extra["released"]:
            change = {"problem_id": extra["index"], "released": extra["released"], "ground_truth": answer}
            reason = extra["correction"] or "without box, dollar delimiters or full stop"
            listed.append(change | {"reason": reason})
    return listed


def prepare(source: str, output: Path, tasks: list[str]) -> None:
    unknown = [task for task in tasks if task not in BENCHMARKS]
    if unknown:
        raise ValueError(f"unknown task '{unknown[0]}'; there are {', '.join(BENCHMARKS)}")
    for task in tasks:
        check_output(output / f"{task}.parquet", PROGRAM)
    for task in tasks:
        raw = find(source, task)
        write_task(raw, output / f"{task}.parquet", task, read_pairs(raw.paths[0], task), {})


def write_task(source: Source, path: Path, task: str, pairs: list[tuple[str, str]], found: dict) -> None:
    """Write a benchmark and its manifest; `found` adds to what the manifest of every benchmark has."""
    overlay, problems = corrections(), digest([problem for problem, _ in pairs])
    released = BENCHMARKS[task].digest if task in BENCHMARKS else ""
    rows = [benchmark_row(task, i, *pair, overlay.get(f"{task}-{i}")) for i, pair in enumerate(pairs)]
    extras, changed = [made["extra_info"] for made in rows], changes(rows)
    manifest = {
        "source": source.name,
        "revision": source.revision,
        "suite": suite_of(task),
        "sha256_in": source.digests(),
        "rows_in": len(pairs),
        "problems_digest": problems,
        **({"problems_as_released": problems == released} if released else {}),
        "answer_types": dict(Counter(extra["answer"]["type"] for extra in extras).most_common()),
        "changes": changed,
    }
    write_rows(path, rows, manifest | found, schema=BENCHMARK_SCHEMA)
    count = sum(bool(extra["correction"]) for extra in extras)
    print(f"{path}: {len(rows)} problems; {len(changed)} reference answers not written as released, {count} corrected")
    counts = Counter(canonical(problem) for problem, _ in pairs)
    if repeated := [row["extra_info"]["index"] for row in rows if counts[canonical(row["extra_info"]["problem"])] > 1]:
        print(f"{path}: {len(repeated)} rows share their problem with another row: {', '.join(repeated[:10])}")
    if released and problems != released:
        print(f"{path}: problems or their order differ from the released ones, ids are not comparable")


def check_name(name: str) -> None:
    """Raise a ValueError for the name of a benchmark of your own that is no file's, or that something else has."""
    if not NAME.fullmatch(name):
        raise ValueError(f"--add {name}: not a plain name; use letters, digits, '-', '_' and '.'")
    if name.lower() in map(str.lower, BENCHMARKS):
        raise ValueError(f"--add {name}: benchmarks.json has it; prepare it with --tasks, or choose another name")
    if name.lower() == "mean":
        raise ValueError(f"--add {name}: reports have a mean of benchmarks; choose another name")


def chosen(path: Path, listed: list[dict], where: str | None) -> list[dict]:
    """Return the rows in which a column has a value, both given as "column=value"; all of them without."""
    if where is None:
        return listed
    column, equals, value = where.partition("=")
    if not equals or any(column not in record for record in listed):
        columns = ", ".join(dict.fromkeys(name for record in listed for name in record))
        raise ValueError(f"{path}: --where {where}: give COLUMN=VALUE with a column that all rows have, of {columns}")
    texts = [json.dumps(held) if isinstance(held, bool | None) else str(held) for held in (r[column] for r in listed)]
    kept = [record for record, text in zip(listed, texts, strict=True) if text == value]
    if not kept:
        values = ", ".join(sorted({f"{text:.30}" for text in texts})[:10])
        raise ValueError(f"{path}: no row has {where}; {column} is {values}")
    return kept


def add(args: argparse.Namespace) -> None:
    """Prepare a benchmark of your own, by the command's arguments."""
    path = args.output / f"{args.add}.parquet"
    check_name(args.add)
    source = locate(args.source, args.revision, args.files, single=True)
    check_output(path, PROGRAM, source.paths)
    raw, columns = source.paths[0], (args.problem or "problem", args.answer or "answer")
    rows = records(raw)
    pairs = as_pairs(raw, chosen(raw, rows, args.where), columns, "--problem and --answer name the columns")
    if not pairs:
        raise ValueError(f"{raw}: has no rows")
    write_task(source, path, args.add, pairs, {"rows_in": len(rows), "columns": columns, "where": args.where})


def read_problems(folder: Path) -> dict[str, dict[str, str]]:
    """Return the bare problems of every prepared benchmark of a folder, by task and problem id.

    That is every parquet file but training sets: benchmarks of your own are looked for like those of the paper.
    """
    problems = {}
    for task in in_order(sorted(path.stem for path in folder.glob("*.parquet"))):
        extras = [made["extra_info"] for made in read_problem_rows(folder / f"{task}.parquet")]
        if extras[0].get("split") != "train":
            problems[task] = {str(extra["index"]): extra["problem"] for extra in extras}
    if not problems:
        raise ValueError(f"{folder}: has no prepared benchmark; run python -m data_prep.benchmarks first")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = "'hub' or a folder with <TASK>/test.parquet (%(default)s); of --add a file, folder or hub data set"
    parser.register("type", None, command.name)
    parser.add_argument("--source", default=HUB, help=source)
    parser.add_argument("--output", type=command.path, required=True, help="folder to write to")
    parser.add_argument("--suite", choices=SUITES, help=f"default {PAPER}: the nine")
    parser.add_argument("--tasks", help="comma-separated (default: all of --suite)")
    parser.add_argument("--add", metavar="NAME", help="make a benchmark of your own from --source")
    parser.add_argument("--problem", metavar="COLUMN", help="of --add: the column of problems (problem)")
    parser.add_argument("--answer", metavar="COLUMN", help="of --add: the column of reference answers (answer)")
    parser.add_argument("--where", metavar="COLUMN=VALUE", help="of --add: only rows with this value, as JSON has it")
    parser.add_argument("--files", metavar="PATTERN", help="of --add: the file of a folder or a hub data set")
    parser.add_argument("--revision", help="of --add: commit of a hub data set (default: the newest, in the manifest)")
    args = parser.parse_args()
    if args.suite and (args.tasks or args.add is not None):
        parser.error("--suite: not together with --tasks or --add, which choose benchmarks themselves")
    if args.add is None:
        if given := [f"--{name}" for name in FOR_ADD if getattr(args, name)]:
            parser.error(f"{', '.join(given)}: only together with --add NAME")
        every = [task for task in BENCHMARKS if (args.suite or PAPER) in (ALL, suite_of(task))]
        prepare(args.source, args.output, args.tasks.split(",") if args.tasks else every)
    elif args.source == HUB or args.tasks:
        parser.error("--add needs --source, a file, a folder or a hub data set, and takes no --tasks")
    else:
        add(args)


if __name__ == "__main__":
    command.run(main)
