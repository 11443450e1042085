"""The training set: python -m data_prep.dapo --source BytedTsinghua-SIA/DAPO-Math-17k --output FILE.parquet

Removes DAPO's instruction around each problem, drops repeated problems and those whose copies disagree
on the answer, checks that every ground truth can score with the reward, and writes verl's rows beside a
manifest. The source is a hub data set, or a local parquet or JSONL file of the same columns.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd

from data_prep.files import sha256
from data_prep.parquet import manifest_path, row, write_rows
from data_prep.prompt import strip_dapo_template
from reward.justrl import compute_score

EXAMPLES = 3  # of each kind of dropped row, in the manifest
SCHEMA_VERSION = 1  # of what this module writes; a file of an older one is made again


def read_source(source: str, revision: str | None) -> pd.DataFrame:
    """Read a local parquet or JSONL file, or a hub data set.

    Raises:
        ValueError: nothing can be read there; one line that says why.
    """
    path = Path(source)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix in (".jsonl", ".json"):
            return pd.read_json(path, lines=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: cannot be read: {str(error).splitlines()[0]}") from error
    if path.exists() or source.count("/") != 1:
        raise ValueError(f"{source}: neither a .parquet or .jsonl file nor a hub data set's owner/name")
    import datasets

    try:
        return datasets.load_dataset(source, revision=revision, split="train").to_pandas()
    except Exception as error:  # the hub client raises many kinds; all mean that there is no data
        raise ValueError(f"{source}: the hub gave no data ({type(error).__name__}); use a local file") from error


def problems(frame: pd.DataFrame) -> tuple[list[tuple[str, str]], int]:
    """Return (problem, ground truth) pairs in order, and the number of rows without the whole template.

    Raises:
        ValueError: a column is missing.
    """
    missing = [column for column in ("prompt", "reward_model") if column not in frame]
    if missing:
        raise ValueError(f"the source lacks column {', '.join(missing)}; it needs prompt and reward_model")
    pairs, bare = [], 0
    for prompt, reward_model in zip(frame["prompt"], frame["reward_model"], strict=True):
        text, whole = strip_dapo_template(prompt[0]["content"])
        bare += not whole
        pairs.append((text, reward_model["ground_truth"]))
    return pairs, bare


def can_score(answer) -> bool:
    """Return whether a response that ends with the boxed answer gets the full reward."""
    try:
        return compute_score("math_dapo", rf"so \boxed{{{answer}}}", answer)["acc"] == 1.0
    except ValueError:
        return False


def select(pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], dict]:
    """Return the pairs to train on, each problem once, and what was dropped: reason to count and examples."""
    answers: dict[str, set] = defaultdict(set)
    for problem, answer in pairs:
        answers[problem].add(answer)
    kept: dict[str, str] = {}
    counts: Counter = Counter()
    examples: dict[str, list] = defaultdict(list)
    for problem, answer in pairs:
        if len(answers[problem]) > 1:
            reason = "conflicting answers"
        elif problem in kept:
            reason = "duplicate"
        elif not can_score(answer):
            reason = "ground truth cannot score"
        else:
            kept[problem] = answer
            continue
        counts[reason] += 1
        if len(examples[reason]) < EXAMPLES:
            examples[reason].append({"problem": problem, "answers": sorted(map(str, answers[problem]))})
    return list(kept.items()), {r: {"count": counts[r], "examples": examples[r]} for r in counts}


def is_made(output: Path, settings: dict) -> bool:
    """Return whether `output` was made from the same source by the same settings."""
    try:
        manifest = json.loads(manifest_path(output).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return output.exists() and all(manifest.get(name) == value for name, value in settings.items())


def prepare(source: str, revision: str | None, output: Path) -> None:
    """Make the training set; one that is there and was made from the same source is kept."""
    local = Path(source).is_file()
    digest = sha256(source) if local else None
    settings = {"source": Path(source).name if local else source, "revision": revision, "sha256_in": digest}
    settings["schema"] = SCHEMA_VERSION
    if is_made(output, settings):
        print(f"{output}: kept, its source has not changed")
        return
    frame = read_source(source, revision)
    pairs, bare = problems(frame)
    kept, dropped = select(pairs)
    rows = [row("math_dapo", problem, answer, i, "train") for i, (problem, answer) in enumerate(kept)]
    write_rows(output, rows, settings | {"rows_in": len(pairs), "rows_without_template": bare, "dropped": dropped})
    print(f"{output}: {len(rows)} problems of {len(pairs)} rows, {bare} rows without the template")
    for reason, what in dropped.items():
        print(f"  dropped, {reason}: {what['count']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="BytedTsinghua-SIA/DAPO-Math-17k", help="default %(default)s")
    parser.add_argument("--revision", help="commit of the hub data set")
    parser.add_argument("--output", type=Path, required=True, help="parquet file to write")
    args = parser.parse_args()
    try:
        prepare(args.source, args.revision, args.output)
    except ValueError as error:
        print(f"data_prep.dapo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
