"""A sanity set, problems that a model solves now and then: python -m eval.select DIR --bench DIR --output FILE.parquet

A correct implementation brings its training accuracy on them above 95 %: the model can solve each, and does not yet do
so reliably (arXiv 2510.26788, prime-rl's hendrycks-sanity). DIR has samples, of eval.generate or the release's; --bench
is the folder of the files that were sampled. A response counts as correct by the training reward, a strict match, since
training accuracy does too. Writes rows for training beside a manifest.

example: python -m eval.select outputs/eval/base --bench data/dapo --between 0.2 0.8 --output data/sanity/train.parquet
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from common import command
from common.command import within
from common.files import sha256
from common.models import public_name
from data_prep.dapo import content_id, ground_truth_fault
from data_prep.normalise import canonical
from data_prep.rows import check_output, read_problem_rows, row, write_rows
from eval.samples import PROTOCOL, check_complete, read_samples, sample_files, settings_of
from eval.tasks import task_files
from reward.justrl import compute_score

DATA_SOURCE = "sanity"
KEPT, BELOW, ABOVE, COPY = "kept", "solved less often", "solved more often", "copy of another problem"


def responses_to(path: Path, task: str, problems: dict[str, str]) -> dict[str, list[str]]:
    """Map problem ids to responses; ValueError if they are to other problems, not as many to each, or not all."""
    responses: dict[str, list[str]] = {}
    for record in read_samples(path, task):
        problem = problems.get(record["problem_id"])
        if problem is None or problem not in (record["prompt"] or problem):  # some of the release have no prompt
            raise ValueError(f"{path}: {record['problem_id']} is another problem in --bench; name what was sampled")
        responses.setdefault(record["problem_id"], []).append(record["response"])
    if len(counts := {len(listed) for listed in responses.values()}) != 1:
        raise ValueError(f"{path}: has {sorted(counts) or 'no'} samples per problem; run eval.generate again")
    check_complete(path, settings_of(path, task), {problem: len(listed) for problem, listed in responses.items()})
    return responses


def solved_fractions(files: dict[str, Path], bench: Path) -> tuple[dict[tuple[str, str], float], Counter]:
    """Return each problem's fraction of correct responses, by problem and ground truth, and what was left out."""
    fractions, texts, left_out = dict[tuple[str, str], float](), set[str](), Counter[str]()
    for task, path in task_files(bench, ",".join(files)).items():
        rows = {str(made["extra_info"]["index"]): made for made in read_problem_rows(path)}
        problems = {index: made["extra_info"]["problem"] for index, made in rows.items()}
        for index, responses in responses_to(files[task], task, problems).items():
            truth, text = rows[index]["reward_model"]["ground_truth"], canonical(problems[index])
            if fault := ground_truth_fault(truth) or (COPY if text in texts else None):
                left_out[fault] += 1
                continue
            texts.add(text)
            correct = sum(compute_score(task, response, truth)["acc"] for response in responses)
            fractions[problems[index], truth] = correct / len(responses)
    return fractions, left_out


def select(folder: Path, bench: Path, low: float, high: float, output: Path) -> None:
    """Write the problems whose fraction of correct responses is from `low` to `high`."""
    if low > high:
        raise ValueError(f"--between {low:g} {high:g}: the lower end comes first")
    check_output(output, "eval.select", bench.glob("*.parquet"))
    files = sample_files(folder)
    fractions, outcomes = solved_fractions(files, bench)
    kept = {content_id(*pair): pair for pair, value in fractions.items() if low <= value <= high}
    outcomes.update(BELOW if value < low else ABOVE if value > high else KEPT for value in fractions.values())
    outcome = ", ".join(f"{count:,} {what}" for what, count in outcomes.most_common())
    if not kept:
        raise ValueError(f"{folder}: no problem is solved {low:.0%} to {high:.0%} of the time: {outcome}")
    settings = {task: settings_of(path, task) for task, path in files.items()}
    sampling = {task: {name: settings[task].get(name) for name in ("samples", *PROTOCOL)} for task in files}
    for task, given in sampling.items():  # a manifest has no machine's paths
        given["model"] = public_name(settings[task]["model"])
    manifest: dict[str, Any] = {
        "source": ", ".join(files),
        "sampling": sampling,
        "sha256_in": {path.name: sha256(path) for path in files.values()},
    }
    manifest |= {"settings": {"between": [low, high]}, "rows_in": outcomes.total(), "outcomes": dict(outcomes)}
    manifest["fractions"] = {key: fractions[kept[key]] for key in sorted(kept)}
    write_rows(output, [row(DATA_SOURCE, *kept[key], key, "train") for key in sorted(kept)], manifest)
    print(f"{output}: {len(kept):,} problems; of {outcomes.total():,}: {outcome}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=command.path, metavar="DIR", help="folder with samples")
    parser.add_argument("--bench", type=command.path, required=True, help="folder of the files that were sampled")
    between, ends = "fractions of correct responses (0.2 0.8)", ("LOW", "HIGH")
    parser.add_argument("--between", type=within(0, 1), nargs=2, default=(0.2, 0.8), metavar=ends, help=between)
    parser.add_argument("--output", type=command.path, required=True, help="parquet file to write")
    args = parser.parse_args()
    low, high = args.between
    select(args.folder, args.bench, low, high, args.output)


if __name__ == "__main__":
    command.run(main)
