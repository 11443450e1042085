"""Grades of samples on two tracks, each outcome computed once and kept in a file."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common.json_lines import drop_damaged, format_line, read_lines
from eval import official, typed
from eval.judge import Question, final_part
from eval.samples import JUDGED, OFFICIAL, SHAPES, TYPED
from reward.justrl import last_boxed
from reward.notation import last_box
from reward.sandbox import WORKERS


class Cache:
    """Outcomes by what they depend on, in a file of JSON lines that outlives a kill."""

    def __init__(self, path: Path):
        self.path = path
        drop_damaged(path, SHAPES["cached"])
        self.known = {line["key"]: line["value"] for line in (read_lines(path)[0] if path.exists() else [])}

    @staticmethod
    def key(*parts: str) -> str:
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def fill(self, wanted: dict[str, tuple], compute: Callable, what: str) -> None:
        """Compute what is not known, in threads: the comparisons run in worker processes.

        Args:
            wanted: key to arguments of `compute`.
        """
        missing = {key: arguments for key, arguments in wanted.items() if key not in self.known}
        with open(self.path, "a") as file, ThreadPoolExecutor(WORKERS) as threads:
            found = threads.map(lambda arguments: compute(*arguments), missing.values())
            bar = tqdm(missing, desc=what, unit=" answers", delay=2, leave=False, disable=None)
            for key, value in zip(bar, found, strict=True):
                self.known[key] = value
                if value != "crashed":  # by what else ran on the machine, perhaps
                    file.write(format_line({"key": key, "value": value}))


@dataclass(frozen=True)
class Grade:
    """A sample's outcome on each track, and what later stages need of it, without its response.

    Attributes:
        answer: the content of its last box; None without one.
        vote: the normal form by which a majority is counted.
        verdict: the judge's; None of a sample that it was not asked about.
    """

    task: str
    problem_id: str
    sample: int
    tokens: int | None
    finish_reason: str | None
    answer: str | None
    vote: str | None
    question: Question
    outcomes: dict[str, str]
    verdict: str | None = None

    def is_correct(self, track: str) -> bool:
        if track == JUDGED:
            return self.is_correct(OFFICIAL) or self.verdict == "A"
        return self.outcomes[track] in official.CORRECT


def comparisons(record: dict) -> dict[str, tuple[str, Callable, tuple]]:
    """Map tracks to a sample's final answer, what grades it and its reference; only where it has an answer."""
    reference = record["answer"]
    parsed = typed.reference_answer(reference, record["task"], record["problem_id"])
    found: dict[str, tuple[str | None, Callable, tuple]] = {
        OFFICIAL: (official.boxed(record["response"]), official.grade, (reference,)),
        TYPED: (last_box(record["response"]), typed.grade, parsed),
    }
    return {track: (answer, grade, rest) for track, (answer, grade, rest) in found.items() if answer is not None}


def track_versions() -> dict[str, str]:
    sympy, pylatexenc, math_verify = map(importlib.metadata.version, ("sympy", "pylatexenc", "math-verify"))
    return {OFFICIAL: f"{official.VERSION} {sympy} {pylatexenc}", TYPED: f"{typed.VERSION} {sympy} {math_verify}"}


def grade_samples(records: list[dict], task: str, cache: Cache) -> list[Grade]:
    """Grade the samples of a task; ValueError for a correction that was written for another reference answer."""
    wanted, versions = {}, track_versions()
    keys: list[dict[str, str]] = []
    for record in records:
        keys.append({})
        for track, (answer, grade, reference) in comparisons(record).items():
            keys[-1][track] = key = cache.key(track, versions[track], answer, *map(str, reference))
            wanted[key] = (grade, rf"\boxed{{{answer}}}", *reference)
    cache.fill(wanted, lambda grade, *arguments: grade(*arguments)[0], task)
    return [
        make_grade(record, {track: cache.known[by[track]] if track in by else "no_box" for track in (OFFICIAL, TYPED)})
        for record, by in zip(records, keys, strict=True)
    ]


def make_grade(record: dict, outcomes: dict[str, str]) -> Grade:
    response, answer = record["response"], official.boxed(record["response"])
    answer = None if answer is None else answer[: official.MAX_CHARACTERS]
    shown = final_part(response, last_boxed(response) or "")
    return Grade(
        task=record["task"],
        problem_id=record["problem_id"],
        sample=record["sample"],
        tokens=record.get("tokens"),
        finish_reason=record.get("finish_reason"),
        answer=answer,
        vote=None if answer is None else official.normal_form(answer),
        question=Question(record["prompt"] or "", record["answer"], shown),
        outcomes=outcomes,
    )
