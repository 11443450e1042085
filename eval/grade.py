"""Grade sampled responses on two tracks: python -m eval.grade DIR [--judge MODEL]

Reads every `<task>.samples.jsonl` in DIR, or the files that the official release publishes, and writes
`<task>.grades.jsonl` and `scores.json`. The tracks are never mixed:

  official        the released grader's rule (eval/official.py)
  official+judge  official, or accepted by the judge; needs --judge; compare it with the paper's table
  strict-typed    what the reference answer means decides (eval/typed.py)

What was graded or judged once is looked up in `grades.cache.jsonl` and `judgements.jsonl`.

example: python -m eval.grade outputs/demo/eval/base
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

from common import command
from common.command import settings, within
from common.files import sha256, write_text
from common.models import check_model
from common.processes import held_folder
from eval import judge
from eval.engines import ModelSettings, add_engine_arguments
from eval.grading import JUDGED, OFFICIAL, TYPED, Cache, Grade, grade_samples
from eval.samples import PROTOCOL, check_alike, check_complete, read_samples, sample_files, settings_of
from eval.scores import DISTINCT_VERSION, by_problem, grade_lines, mean_distinct_4, score_task
from eval.suites import main_score


@dataclass(frozen=True)
class JudgeSettings(ModelSettings):
    """A model that judges; `audit`: the fraction of accepted samples that it sees."""

    audit: float = 0.05


def grade_task(path: Path, task: str, made_by: dict, cache: Cache) -> tuple[list[Grade], float | None]:
    records = read_samples(path, task)
    if not records:
        raise ValueError(f"{path}: holds no samples; run eval.generate again")
    check_complete(path, made_by, Counter(record["problem_id"] for record in records))
    try:
        grades = grade_samples(records, task, cache)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    by_problem(grades, path)  # refuses unequal numbers of samples, before a judge is asked
    key = cache.key("distinct_4", DISTINCT_VERSION, sha256(path))
    cache.fill({key: (records,)}, mean_distinct_4, f"{task}, distinct-4")
    return grades, cache.known[key]


def with_verdicts(
    grades: dict[str, list[Grade]], judge_settings: JudgeSettings, folder: Path
) -> dict[str, list[Grade]]:
    """Ask the judge about what the rule rejected and a fraction of what it accepted."""

    def is_asked(grade: Grade) -> bool:
        accepted = grade.is_correct(OFFICIAL)
        return not accepted or judge.is_audited(judge_settings.audit, grade.task, grade.problem_id, grade.sample)

    questions = (grade.question for graded in grades.values() for grade in filter(is_asked, graded))
    verdicts = judge.ask(questions, folder, judge_settings)
    return {
        task: [replace(g, verdict=verdicts[g.question]) if is_asked(g) else g for g in graded]
        for task, graded in grades.items()
    }


def grade_folder(folder: Path, judge_settings: JudgeSettings | None = None) -> dict:
    """Grade every task of a folder and return its scores."""
    files, cache = sample_files(folder), Cache(folder / "grades.cache.jsonl")
    if judge_settings and not judge_settings.endpoint:
        check_model(judge_settings.model)
    made_by = {task: settings_of(path, task) for task, path in files.items()}
    check_alike(folder, made_by)
    grades, distinct = {}, {}
    for task, path in files.items():
        grades[task], distinct[task] = grade_task(path, task, made_by[task], cache)
    tracks: tuple[str, ...] = (OFFICIAL, TYPED)
    if judge_settings:
        grades, tracks = with_verdicts(grades, judge_settings, folder), (*tracks, JUDGED)
    tasks = {}
    for task, path in files.items():
        write_text(folder / f"{task}.grades.jsonl", grade_lines(grades[task]))
        tasks[task] = score_task(grades[task], path, tracks, distinct[task])
    scores = {
        "model": next(iter(made_by.values()))["model"],
        "protocol": {task: {name: values.get(name) for name in PROTOCOL} for task, values in made_by.items()},
        "track": OFFICIAL,  # whose average is a model's score
        **main_score(tasks, OFFICIAL),
        "judge": {"model": judge_settings.model, "audit": judge_settings.audit} if judge_settings else None,
        "tasks": tasks,
    }
    write_text(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=command.path, help="folder with samples")
    parser.add_argument(
        "--judge",
        dest="model",
        type=command.name,
        nargs="?",
        const=judge.DEFAULT,
        metavar="MODEL",
        help=f"also ask a judge about what the rule rejects (default model: {judge.DEFAULT})",
    )
    parser.add_argument(
        "--audit", type=within(0, 1), default=0.05, help="fraction of accepted samples that it audits (%(default)s)"
    )
    add_engine_arguments(parser)
    args = parser.parse_args()
    given = [each.name for each in fields(JudgeSettings) if getattr(args, each.name) not in (None, each.default)]
    if given and args.model is None:
        raise ValueError(f"--{given[0].replace('_', '-')} is for a judge; add --judge, or leave it out")
    sample_files(args.folder)
    with held_folder(args.folder):
        scores = grade_folder(args.folder, settings(JudgeSettings, args) if args.model else None)
    for task, values in scores["tasks"].items():
        low, high = values["ci95"]
        others = [f"{track} {100 * s['avg']:.1f}" for track, s in values["tracks"].items() if track != OFFICIAL]
        print(
            f"  {task}: avg@{values['samples']} {100 * values['avg']:.1f} [{100 * low:.1f}, {100 * high:.1f}]; "
            + ", ".join(others)
        )


if __name__ == "__main__":
    command.run(main)
