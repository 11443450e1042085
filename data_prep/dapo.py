"""The training set: python -m data_prep.dapo --source BytedTsinghua-SIA/DAPO-Math-17k --output FILE.parquet

Removes DAPO's instruction around each problem, keeps each problem once, drops those whose copies disagree on the
answer, checks that every ground truth can score with the reward, looks for the benchmarks' problems, and writes
verl's rows beside a manifest. The source is a hub data set, a local parquet or JSONL file of the same columns, or a
folder of such files; Hugging Face's processed variant (columns prompt and solution) is read too. The same problems
give the same bytes, whatever the order of the rows and the number of blocks.

example: python -m data_prep.dapo --source dapo-math-17k.parquet --benchmarks data/bench \\
             --output data/dapo/train.parquet
"""

import argparse
import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from common import command
from common.files import sha256
from data_prep import contamination
from data_prep.benchmarks import read_problems
from data_prep.distinct import distinct_rows
from data_prep.normalise import canonical
from data_prep.prompt import BOXED_SENTENCE, strip_dapo_template, training_prompt
from data_prep.rows import check_output, read_manifest, row, write_rows
from data_prep.source import Source, locate
from reward.justrl import BOX, compute_score

HUB_ID = "BytedTsinghua-SIA/DAPO-Math-17k"
REVISION = "65877096c24ffa7abc4e4fa5edb95cf3413a5674"  # of 2025-04-18, with 1,791,700 rows
FILES = "*.parquet"
DATA_SOURCE = "math_dapo"
EXAMPLES = 5  # of each kind of dropped row, in the manifest
PROMPT_LIMIT = 1024  # tokens; the trainer drops longer prompts (paper, table 2)
SCHEMA_VERSION = 2  # of what this module writes; a file of an older one is made again


class Pair(NamedTuple):
    """A problem without template, its ground truth, and how many rows of the source have both."""

    problem: str
    answer: Any  # a text, unless the source is damaged
    rows: int


class Dropped:
    """What was left out: reason to count, and the first examples of each."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.examples: dict[str, list] = defaultdict(list)

    def add(self, reason: str, count: int, example: dict | None = None) -> None:
        self.counts[reason] += count
        if example and len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(example)

    def as_manifest(self) -> dict:
        return {
            reason: {"count": n, "examples": self.examples[reason]} for reason, n in sorted(self.counts.items()) if n
        }


def without_template(table: pa.Table) -> tuple[list[Pair], dict[str, int]]:
    """Return each distinct problem and answer once, and how many rows had another template than DAPO's."""
    rows: Counter = Counter()
    other = Counter(rows_without_template=0, rows_with_another_instruction=0)
    for prompt, answer, count in zip(*(column.to_pylist() for column in table.columns), strict=True):
        problem, whole = strip_dapo_template(prompt or "")
        if problem.endswith(BOXED_SENTENCE):
            raise ValueError("the source is prepared already: its problems end with the boxed sentence")
        other["rows_without_template"] += 0 if whole else count
        # Some Chinese problems carry a second instruction of their own, "Answer: \boxed{...}".
        other["rows_with_another_instruction"] += count if "Answer:" in problem else 0
        rows[problem, answer] += count
    return [Pair(problem, answer, count) for (problem, answer), count in rows.items()], dict(other)


def ground_truth_fault(answer: str | None) -> str | None:
    """Return why no response could be scored against this ground truth; None if one could."""
    if not answer:
        return "ground truth is empty"
    if answer != answer.strip():
        return "ground truth has white space around it"
    if BOX in answer or "$" in answer:
        return "ground truth has a box or a dollar sign"
    try:
        scores = compute_score(DATA_SOURCE, rf"so the answer is $\boxed{{{answer}}}$.", answer)["acc"] == 1.0
    except ValueError:
        scores = False
    return None if scores else "ground truth cannot score"


def agreed(answers: dict[str, int], conflicts: str) -> list[str]:
    if conflicts == "keep":
        return sorted(answers)
    best, second = Counter(answers).most_common(2)
    return [best[0]] if conflicts == "majority" and best[1] > second[1] else []


def select(pairs: list[Pair], conflicts: str = "drop") -> tuple[list[tuple[str, str]], Dropped, list[dict]]:
    """Keep each problem once.

    Of duplicates, problems with the same canonical text, the shortest text is kept, so the result does not depend on
    their order.

    Args:
        conflicts: what becomes of duplicates with different answers: drop, majority (of rows; drop a draw) or keep.

    Returns:
        The kept (problem, answer), what was dropped, and the conflicts, each with all answers and their rows.
    """
    dropped, listed, kept = Dropped(), [], []
    example: dict[str, Any] | None
    duplicates: dict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: (len(pair.problem), pair.problem, pair.answer or "")):
        dropped.add("exact copy", pair.rows - 1)
        fault = "problem is empty" if not pair.problem.strip() else ground_truth_fault(pair.answer)
        if fault:
            dropped.add(fault, 1, {"problem": pair.problem, "answer": pair.answer})
        else:
            duplicates[canonical(pair.problem)].append(pair)
    for copies in duplicates.values():
        answers = dict.fromkeys(sorted({pair.answer for pair in copies}), 0)
        for pair in copies:
            answers[pair.answer] += pair.rows
        chosen = list(answers) if len(answers) == 1 else agreed(answers, conflicts)
        if len(answers) > 1:
            listed.append({"problem": copies[0].problem, "answers": answers, "kept": chosen})
        for number, answer in enumerate(answers):
            texts = [pair.problem for pair in copies if pair.answer == answer]
            if answer in chosen:
                kept.append((texts[0], answer))
                example = {"kept": texts[0], "dropped": texts[-1]} if len(texts) > 1 else None
                dropped.add("copy after normalisation", len(texts) - 1, example)
            else:
                example = {"problem": copies[0].problem, "answers": list(answers)} if number == 0 else None
                dropped.add("conflicting answers", len(texts), example)
    return kept, dropped, listed


def content_id(problem: str, answer: str) -> str:
    """Return an id that depends on nothing but the problem and its answer; it also gives the rows' order."""
    return hashlib.sha256(f"{canonical(problem)}\n{answer}".encode()).hexdigest()[:16]


def decontaminate(kept: list[tuple[str, str]], folder: Path, how: str, dropped: Dropped) -> tuple[list, dict]:
    """Look for the problems of every prepared benchmark; return the pairs to keep and the manifest's part."""
    benchmarks = read_problems(folder)
    problems = {key: text for task in benchmarks.values() for key, text in task.items()}
    training = [problem for problem, _ in kept]
    matches = dict(zip(problems, contamination.find_matches(training, problems), strict=True))
    report = {
        task: contamination.report(training, [matches[key] for key in listed]) for task, listed in benchmarks.items()
    }
    if how == "report":
        return kept, report
    copies = {match.training_index for found in matches.values() for match in found if match.kind != "other"}
    for index in sorted(copies):
        dropped.add("copy of a benchmark problem", 1, {"problem": kept[index][0]})
    return [pair for index, pair in enumerate(kept) if index not in copies], report


def load_tokenizer(name: str):
    from transformers import AutoTokenizer

    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(f"tokenizer {name}: neither a folder nor a hub id")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer {name}: cannot be loaded; give a model's folder or hub id") from error


def over_long(kept: list[tuple[str, str]], tokenizer) -> dict:
    """Count the prompts that the trainer would drop as too long: tokens with the chat template around them."""
    long = []
    for problem, _ in tqdm(kept, unit=" prompts", desc="tokenizing", delay=2, leave=False, disable=None):
        turn = [{"role": "user", "content": training_prompt(problem)}]
        tokens = len(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))
        if tokens > PROMPT_LIMIT:
            long.append({"problem": problem[:200], "tokens": tokens})
    return {"limit": PROMPT_LIMIT, "count": len(long), "examples": long[:EXAMPLES]}


def is_made(output: Path, settings: dict) -> bool:
    manifest = read_manifest(output)
    if manifest is None or not output.is_file() or {**manifest, **settings} != manifest:
        return False
    return sha256(output) == manifest.get("sha256_out")


def file_settings(args: argparse.Namespace, source: Source) -> dict:
    folder = compared_benchmarks(args)
    return {
        "schema": SCHEMA_VERSION,
        "source": source.name,
        "revision": source.revision,
        "sha256_in": source.digests(),
        "settings": {
            "conflicts": args.conflicts,
            "decontaminate": args.decontaminate if folder else "off",
            "benchmarks": {path.stem: sha256(path) for path in sorted(folder.glob("*.parquet"))} if folder else {},
            "repeat": args.repeat,
            "files": args.files or FILES,
            "tokenizer": args.tokenizer and Path(args.tokenizer).name,
        },
    }


def compared_benchmarks(args: argparse.Namespace) -> Path | None:
    return args.benchmarks if args.decontaminate != "off" else None


def clean(args: argparse.Namespace, paths: list[Path], tokenizer) -> tuple[list[tuple[str, str]], dict]:
    """Return the problems and answers to keep, in the file's order, and what the manifest says was found."""
    table = distinct_rows(paths)
    pairs, templates = without_template(table)
    kept, dropped, conflicts = select(pairs, args.conflicts)
    kept.sort(key=lambda pair: content_id(*pair))
    found = {"rows_in": pc.sum(table["rows"]).as_py()} | templates
    if folder := compared_benchmarks(args):
        kept, found["contamination"] = decontaminate(kept, folder, args.decontaminate, dropped)
    if not kept:
        raise ValueError(f"{args.source}: no row is left; dropped: {dict(dropped.counts)}")
    if tokenizer:
        found["over_long"] = over_long(kept, tokenizer)
    return kept, found | {"problems": len(kept), "dropped": dropped.as_manifest(), "conflicts": conflicts}


def prepare(args: argparse.Namespace) -> None:
    """Make the training set; one that is there and was made from the same source by the same settings is kept."""
    source = locate(args.source, args.revision, args.files, REVISION if args.source == HUB_ID else None, FILES)
    check_output(args.output, "data_prep.dapo", source.paths)
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    settings = file_settings(args, source)
    if is_made(args.output, settings):
        print(f"{args.output}: kept, its source and settings have not changed")
        return
    kept, found = clean(args, source.paths, tokenizer)
    rows = [row(DATA_SOURCE, problem, answer, content_id(problem, answer), "train") for problem, answer in kept]
    write_rows(args.output, rows, settings | found, repeat=args.repeat)
    summarise(args.output, found, args.repeat)


def summarise(output: Path, found: dict, repeat: int) -> None:
    print(f"{output}: {found['problems']:,} problems of {found['rows_in']:,} rows" + f", {repeat} times" * (repeat > 1))
    print(f"  without the whole template: {found['rows_without_template']:,}")
    print(f"  with another instruction inside: {found['rows_with_another_instruction']:,}")
    for reason, what in found["dropped"].items():
        print(f"  dropped, {reason}: {what['count']:,}")
    print(f"  problems whose copies disagree: {len(found['conflicts'])}, see the manifest")
    for task, what in found.get("contamination", {}).items():
        print(f"  {task}: {what['exact']} exact and {what['near']} near copies of {what['problems']} problems")
    if "contamination" not in found:
        print("  not compared with the benchmarks; name their prepared folder with --benchmarks")
    if "over_long" in found:
        print(f"  prompts over {PROMPT_LIMIT:,} tokens, which the trainer drops: {found['over_long']['count']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.register("type", None, command.name)
    parser.add_argument("--source", default=HUB_ID, help="hub id, file or folder (default %(default)s)")
    parser.add_argument("--revision", help="commit of the hub data set (default: pinned for the default source)")
    parser.add_argument("--files", help=f"which files of a hub data set or folder ({FILES})")
    parser.add_argument("--output", type=command.path, required=True, help="parquet file to write")
    parser.add_argument("--conflicts", choices=("drop", "majority", "keep"), default="drop", help="default %(default)s")
    parser.add_argument("--benchmarks", type=command.path, help="folder of data_prep.benchmarks, to compare with")
    copies = "what to do with training problems that occur in a benchmark (default %(default)s)"
    parser.add_argument("--decontaminate", choices=("off", "report", "drop"), default="report", help=copies)
    parser.add_argument("--repeat", type=command.positive, default=1, help="blocks to write; the release has 100")
    parser.add_argument("--tokenizer", help=f"model whose prompts over {PROMPT_LIMIT} tokens are counted")
    args = parser.parse_args()
    if args.decontaminate == "drop" and not args.benchmarks:
        parser.error("--decontaminate drop needs --benchmarks")
    prepare(args)


if __name__ == "__main__":
    command.run(main)
